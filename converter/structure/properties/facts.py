"""What is known of each atom in the end: the ops that touched it, and the variables that use it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from converter.graph.node import Node, Output
from converter.graph.ops import ADDS, ARRAY_READS, BIAS_ADDS, DIVISIONS, MOVES, ops
from converter.structure.axes.axis import Touch, Use
from converter.structure.tensors.analysis import Analysis, Pairing, Role
from converter.structure.tensors.atoms import (
    Atom,
    Clash,
    Kind,
    Product,
    find,
    leaves,
    size_of,
    terms,
)
from converter.structure.tensors.flow import Kind as DataKind
from converter.structure.tensors.run import Findings

_MAX_STEPS = 64

# What hands a tensor on, so that what it produced is produced still, and as it was.
_LINEAR = MOVES | ARRAY_READS | ADDS | BIAS_ADDS | DIVISIONS | ops("Sub Mul Neg Tile")
_SUMS = ADDS | ops("Sub")


class Place(NamedTuple):
    """An axis of a variable."""

    variable: str
    axis: int


@dataclass
class Facts:
    """What is known of an atom.

    Attributes:
        atom: a leaf.
        touches: each kind of thing that an op did to it, and the first node that did.
        uses: how each axis of a variable uses it.
        places: the axes of variables that hold it.
    """

    atom: Atom
    touches: dict[Touch, Node] = field(default_factory=dict)
    uses: dict[Place, dict[Use, Node]] = field(default_factory=dict)
    places: dict[Place, None] = field(default_factory=dict)

    def by_use(self, *uses: Use) -> list[str]:
        """Return the variables that use it so, each once."""
        return list(
            dict.fromkeys(
                p.variable for p, found in self.uses.items() if not found.keys().isdisjoint(uses)
            )
        )


def gather(
    findings: Findings, names: Iterable[str]
) -> tuple[dict[Atom, Facts], dict[Place, list[Product]]]:
    """Collect the facts of every atom that the named variables are made of.

    Returns:
        The facts by atom, and the terms of every axis.
    """
    analysis = findings.analysis
    axes = {
        Place(name, axis): atom for name in names for axis, atom in enumerate(findings.axes[name])
    }
    _split_pieces(axes.values())
    products = {place: _terms(analysis, atom, place, findings) for place, atom in axes.items()}
    facts: dict[Atom, Facts] = {}
    for place, atom in axes.items():
        for part in leaves(atom):
            facts.setdefault(part, Facts(part)).places[place] = None
    parts = _Leaves()
    roles = list(_all_roles(analysis))
    for node, events in sorted(analysis.events.items(), key=lambda item: item[0].order):
        for event in events:
            for part in parts(event.atom):
                if part in facts:
                    facts[part].touches.setdefault(event.what, node)
    for role in roles:
        place = Place(role.origin.variable, role.origin.axis)
        for part in parts(role.atom):
            if part in facts and place in facts[part].places:
                facts[part].uses.setdefault(place, {}).setdefault(role.use, role.node)
    for fact in facts.values():
        _mark_unread(fact, findings, products)
    return facts, products


def _mark_unread(
    fact: Facts, findings: Findings, products: Mapping[Place, Sequence[Product]]
) -> None:
    """Mark what is left of an axis of which only other pieces are used."""
    if not fact.uses and not fact.touches and any(len(products[p]) > 1 for p in fact.places):
        fact.touches["rest"] = findings.nodes[next(iter(fact.places)).variable][0]


class _Leaves:
    """Remembers of what atoms are made, once nothing changes any more."""

    def __init__(self) -> None:
        self._known: dict[Atom, list[Atom]] = {}

    def __call__(self, atom: Atom) -> list[Atom]:
        root = find(atom)
        if root not in self._known:
            self._known[root] = leaves(root)
        return self._known[root]


def _split_pieces(axes: Iterable[Atom]) -> None:
    """Where an axis holds a slice of a partitioned one, the slices are axes of their own."""
    for atom in axes:
        for product in _try_terms(atom) or ():
            for factor in product:
                if factor.kind is Kind.LEAF and factor.piece and factor.piece.whole.is_whole:
                    factor.piece.whole.split()


def _try_terms(atom: Atom) -> list[Product] | None:
    try:
        return terms(atom)
    except Clash:
        return None


def _terms(analysis: Analysis, atom: Atom, place: Place, findings: Findings) -> list[Product]:
    found = _try_terms(atom)
    if found is None:
        # Too many pieces to be told apart: the axis stands for itself, and nothing is known of it.
        fresh = Atom(size_of(atom))
        analysis.opaque(fresh, findings.nodes[place.variable][0])
        found = [(fresh,)]
    return found


def _all_roles(analysis: Analysis) -> Iterable[Role]:
    """Yield all roles, with what is paired with something else turned to consuming it."""
    turned = consumers_by_pairing(analysis)
    for node, roles in sorted(analysis.roles.items(), key=lambda item: item[0].order):
        for role in roles:
            if role.use in ("produce", "shift") and node in turned:
                for part in leaves(role.atom):
                    yield role._replace(
                        atom=part, use="consume" if part in turned[node] else role.use
                    )
                continue
            yield role


def consumers_by_pairing(analysis: Analysis) -> dict[Node, set[Atom]]:
    """Find what is made for nothing but to be contracted with other data.

    In `queries * keys` both are data, and both widths are one. One of the two has to consume it:
    that one which is linear in its variables up to there, and is used nowhere else. Where neither
    is, that is noted.

    Returns:
        The nodes in which these variables are used, with the atoms that they consume there.
    """
    turned: dict[Node, set[Atom]] = {}
    for pairing in analysis.pairings:
        made = [_made_for(analysis, side, pairing) for side in (pairing.right, pairing.left)]
        left, right = made[1], made[0]
        if left is not None and right is not None and left & right:
            analysis.touch("self paired", [pairing.atom], pairing.node)
            continue
        chosen = right if right is not None else left
        if chosen is None:
            analysis.touch("self paired", [pairing.atom], pairing.node)
        for node in chosen or ():
            turned.setdefault(node, set()).update(leaves(pairing.atom))
    return turned


def _reads(analysis: Analysis, node: Node) -> bool:
    """Whether a node takes the values of its inputs, and not only their shapes."""
    return node in analysis.flow.telling and analysis.flow.kinds[node] is DataKind.DATA


def _made_for(analysis: Analysis, side: Output, pairing: Pairing) -> set[Node] | None:
    """Return the nodes that use variables to make one side, if it is made for this only."""
    found: set[Node] = set()
    waiting: list[tuple[Node, Node]] = [(side.node, pairing.node)]
    seen: set[Node] = set()
    for _ in range(_MAX_STEPS):
        if not waiting:
            return found or None
        node, reader = waiting.pop()
        if node in seen:
            continue
        seen.add(node)
        readers = [c for c in analysis.graph.consumers[node] if _reads(analysis, c)]
        if any(other is not reader and other not in seen for other in readers):
            return None
        roles = analysis.roles.get(node, ())
        if roles:
            found.add(node)
        if node.op not in _LINEAR:
            if not any(role.use == "produce" for role in roles):
                return None
            continue
        if not _is_linear(analysis, node):
            return None
        waiting += [
            (source, node)
            for source, _ in node.inputs
            if analysis.flow.kinds[source] == analysis.flow.kinds[side.node]
        ]
    return None


def _is_linear(analysis: Analysis, node: Node) -> bool:
    """Whether what an op gives is shared out as what it takes is."""
    if node.op in DIVISIONS:
        return not analysis.is_data(node.inputs[1])
    if node.op not in _SUMS:
        return True
    constants = [o for o in node.inputs if analysis.kind(o) < DataKind.WEIGHT]
    return all(analysis.tensor(o).number == 0 for o in constants)
