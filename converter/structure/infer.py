"""The structure of a checkpoint: which axes of its variables share which widths."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from converter.allocation import without_collections
from converter.errors import PlanError
from converter.graph.node import Node
from converter.graph.ops import READS
from converter.graph.ordered import OrderedGraph, read_ordered
from converter.names import Role
from converter.names.optimizers import slots_of_op
from converter.structure.axes.axis import Axis, Blocks, Factor, Term, Use, Width
from converter.structure.axes.followers import Axes, Uses, follows, with_followers
from converter.structure.cells import by_name, labels_by_name
from converter.structure.declare import declare
from converter.structure.follow import follow
from converter.structure.properties import classes, naming
from converter.structure.properties.counts import mark_averages, mark_lengths
from converter.structure.properties.facts import Facts, Place, gather
from converter.structure.properties.gates import labels_of
from converter.structure.properties.growth import growth, mark_computed, stays_zero
from converter.structure.properties.newcomers import Carriers
from converter.structure.properties.normalised import normalised, turnable
from converter.structure.structure import EvenParts, Opaque, SizeFactor, Structure
from converter.structure.tensors.analysis import Analysis
from converter.structure.tensors.atoms import ONE, Atom, Clash, Kind, Product, find, size_of, terms
from converter.structure.tensors.run import Findings, analyse

if TYPE_CHECKING:
    from converter.checkpoint import Checkpoint
    from converter.structure.layout import Layout

_MAX_PASSED = 64
# One gate by two names.
_SAME = {"c": "j", "z": "u"}
_APPLIES = re.compile(r"(Resource)?(Sparse)?Apply[A-Z]\w*")


def structure_of(checkpoint: Checkpoint, layout: Layout | None = None) -> Structure:
    """Return the structure of a checkpoint, that of what strategies made included.

    It is inferred once for a checkpoint and a layout; what was made of a checkpoint follows it.

    Raises:
        ConverterError: it cannot be told; the message says what would help.
    """
    key = (Structure, None if layout is None else layout.path)
    origin = checkpoint.origin
    if origin is None:
        return checkpoint.once(key, lambda: infer(checkpoint, layout))
    before = structure_of(origin.checkpoint, layout)
    return checkpoint.once(key, lambda: follow(before, origin, checkpoint))


@without_collections()
def infer(checkpoint: Checkpoint, layout: Layout | None = None) -> Structure:
    """Tell the structure of a checkpoint from its graph; where there is none, from its names.

    Args:
        checkpoint: whose variables are told.
        layout: what somebody says of them, which goes before all else.

    Raises:
        InputError: the graph is damaged, or it is that of another checkpoint.
        PlanError: lengths contradict the layout, or graph and names contradict each other.
        UsageError: the layout is of another checkpoint, or leaves something open.
    """
    graph = read_ordered(checkpoint)
    if graph is not None:
        return infer_from(graph, checkpoint, layout)
    roles = checkpoint.roles()
    told = by_name(checkpoint, roles, layout)
    axes, uses = with_followers(told.axes, told.uses, checkpoint, roles)
    followers = {n: roles[n] for n in checkpoint if follows(roles[n], checkpoint)}
    return Structure(
        told.widths, axes, uses, (), {}, followers, (), None, None, of=str(checkpoint.path)
    )


def infer_from(
    graph: OrderedGraph, checkpoint: Checkpoint, layout: Layout | None = None
) -> Structure:
    """Tell the structure of a checkpoint from a graph, and from a layout if there is one.

    Raises:
        InputError: it is the graph of another checkpoint.
        PlanError: lengths contradict the layout, or names the graph.
        UsageError: the layout is of another checkpoint, or leaves something open.
    """
    findings = analyse(graph, checkpoint)
    roles = checkpoint.roles()
    roles = {**roles, **_slots(findings, checkpoint, roles)}
    followers = {n: roles[n] for n in checkpoint if follows(roles[n], checkpoint)}
    held = [name for name in findings.axes if name not in followers]
    mark_averages(findings.analysis)
    mark_lengths(findings.analysis)
    facts, products = gather(findings, held)
    _mark_unused(findings, facts)
    classes.mark_outputs(findings.analysis, facts)
    widths = {a: f for a, f in facts.items() if a is not ONE and not _is_fixed(f, products)}
    names = naming.names(widths, products)
    carriers = Carriers(findings.analysis)
    for fact in widths.values():
        mark_computed(findings.analysis, fact, carriers)
    told = {atom: classes.classify(fact) for atom, fact in widths.items()}
    moving = [atom for atom, found in told.items() if found.resizable]
    factors = classes.scale_factors(findings.analysis, facts, moving)
    writer = _Writer(names, labels_of(findings.analysis, facts.values(), products))
    axes, uses = _axes(checkpoint, roles, products, facts, names, writer)
    structure = Structure(
        {
            names[atom]: _width(names[atom], fact, told[atom], findings.analysis, carriers)
            for atom, fact in widths.items()
        },
        axes,
        uses,
        tuple(_opaque(names[a], f) for a, f in widths.items() if told[a].symmetry == "opaque"),
        {
            names[atom]: tuple(
                SizeFactor(f.node.name, f.number, f.power, f.is_of_products) for f in found
            )
            for atom, found in factors.items()
        },
        followers,
        tuple(
            f"{c.node.op} {c.node.name}: the {c.what} {c.sizes[0]} and {c.sizes[1]} stand opposite"
            for c in findings.analysis.conflicts
        ),
        findings,
        writer.any_axis,
        evens=tuple(_evens(findings.analysis, writer, set(names.values()))),
    )
    _compare(structure, checkpoint, roles, layout)
    return structure if layout is None else declare(structure, checkpoint, layout, roles)


def _compare(
    structure: Structure,
    checkpoint: Checkpoint,
    roles: Mapping[str, Role],
    layout: Layout | None,
) -> None:
    """Raise PlanError where the gates are others by the arithmetic than by the name of a cell."""
    for name, number, blocks in labels_by_name(checkpoint, roles):
        axis = structure.axes[name][number]
        found = axis.terms[0][0]
        if not isinstance(found, Blocks) or (layout is not None and name in layout.axes):
            continue
        if [_SAME.get(gate, gate) for gate in found.labels] != [
            _SAME.get(gate, gate) for gate in blocks.labels
        ]:
            raise PlanError(
                f"{checkpoint.path}: {name}, axis {number}, is {axis} by the graph, and {blocks} "
                "by the name of the cell; say which it is in a layout file: "
                f"[variables.{json.dumps(name)}] axes = ..."
            )


def _slots(
    findings: Findings, checkpoint: Checkpoint, roles: Mapping[str, Role]
) -> dict[str, Role]:
    """Return the slots that names do not tell, by the ops that apply gradients."""
    names = {node: name for name, nodes in findings.nodes.items() for node in nodes}
    found: dict[str, Role] = {}
    for node in findings.analysis.graph.nodes:
        if _APPLIES.fullmatch(node.op) is None or not node.inputs:
            continue
        of = names.get(_source(node.inputs[0].node))
        optimizer, slots = slots_of_op(node.op)
        for place, output in enumerate(node.inputs[1:]):
            slot = names.get(_source(output.node))
            if of is None or slot in (None, of) or slot is None or roles[slot].kind != "model":
                continue
            if checkpoint[slot].shape == checkpoint[of].shape and checkpoint[of].shape:
                kind = slots[place] if place < len(slots) else None
                found[slot] = Role("slot", of, kind, optimizer)
    return found


def _source(node: Node) -> Node:
    for _ in range(_MAX_PASSED):
        if node.op not in READS or not node.inputs:
            break
        node = node.inputs[0].node
    return node


def _mark_unused(findings: Findings, facts: Mapping[Atom, Facts]) -> None:
    """What no op touches, and nothing is tied to, may be tied to anything outside."""
    analysis = findings.analysis
    used = {place.variable for fact in facts.values() for place in fact.uses}
    for name, nodes in findings.nodes.items():
        if name in used or any(
            c in analysis.flow.wanted for n in nodes for c in analysis.graph.consumers[n]
        ):
            continue
        for atom in findings.axes[name]:
            fact = facts.get(find(atom))
            if fact is not None and len({place.variable for place in fact.places}) == 1:
                fact.touches.setdefault("opaque", nodes[0])


def _is_fixed(fact: Facts, products: Mapping[Place, Sequence[Product]]) -> bool:
    """Whether a size is none that a model could be given another one of: of windows, of blocks."""
    if fact.atom.size == 0 or any(what in fact.touches for what in classes.FIXED):
        return True
    if "index" not in fact.touches or "input" in fact.touches:
        return False
    # Entries that are told apart by their places, as the gates of a cell are.
    alone = any(term == (fact.atom,) for place in fact.places for term in products[place])
    return not alone or not fact.by_use("produce", "consume")


def _width(
    name: str, fact: Facts, found: classes.Classified, analysis: Analysis, carriers: Carriers
) -> Width:
    produced = fact.by_use("produce")
    consumed = fact.by_use("consume")
    rest = list(dict.fromkeys(place.variable for place in fact.places))
    grows = growth(analysis, fact, carriers) if found.resizable else "none"
    may_be_normalised = found.resizable and grows == "none"
    return Width(
        name,
        size_of(fact.atom) or 0,
        found.symmetry,
        found.resizable,
        grows,
        tuple(produced),
        tuple(consumed),
        tuple(n for n in rest if n not in produced and n not in consumed),
        found.why,
        tuple((what, classes.named(node)) for what, node in fact.touches.items()),
        grows != "none" and stays_zero(analysis, fact, carriers),
        normalised(analysis, fact) if may_be_normalised else None,
        turnable(analysis, fact) if may_be_normalised else None,
    )


def _opaque(name: str, fact: Facts) -> Opaque:
    node = fact.touches["opaque"]
    return Opaque(name, node.op, node.name)


class _Writer:
    """Writes axes over the names of widths."""

    def __init__(self, names: Mapping[Atom, str], labels: Mapping[Place, Sequence[str]]) -> None:
        self._given = names
        self._names = dict(names)
        self._labels = labels

    def any_axis(self, atom: Atom) -> Axis:
        """Return an axis of any tensor."""
        if any(known.link is not None for known in self._names):
            # What is found out later may merge a width with something else.
            self._names = {find(known): name for known, name in self._given.items()}
        return self.axis(Place("", 0), terms(atom))

    def axis(self, place: Place, products: Sequence[Product]) -> Axis:
        """Return an axis of a variable; what repeats stands once, behind its number."""
        found: list[Term] = []
        written = [self._term(product) for product in products]
        for term, same in groupby(written):
            count = len(list(same))
            labels = self._labels.get(place, ())
            if count == 1 and term[0] == len(labels) and len(term) > 1:
                found.append((Blocks(tuple(labels)), *term[1:]))
            elif count == 1:
                found.append(term)
            elif len(labels) == count == len(written):
                found.append((Blocks(tuple(labels)), *term))
            elif all(isinstance(factor, int) for factor in term):
                found.append((count * _product(term),))
            else:
                found.append((count, *term))
        return Axis(tuple(found) or ((0,),))

    def _term(self, product: Product) -> Term:
        factors = [self._factor(atom) for atom in product]
        merged: list[Factor] = []
        for factor in factors:
            if isinstance(factor, int) and merged and isinstance(merged[-1], int):
                merged[-1] *= factor
            elif factor != 1 or not merged:
                merged.append(factor)
        if len(merged) > 1 and merged[0] == 1:
            del merged[0]
        return tuple(merged)

    def _factor(self, atom: Atom) -> Factor:
        root = find(atom)
        if root.kind is Kind.LEAF:
            if root.piece is not None and root.piece.whole.is_whole:
                return root.piece.name
            return self._names.get(root, size_of(root) or 0)
        inner = Axis(tuple(self._term(term) for term in terms(root)))
        if inner.widths():
            return self.axis(Place("", 0), terms(root))
        return inner.size({})


def _product(term: Iterable[Factor]) -> int:
    found = 1
    for factor in term:
        found *= factor if isinstance(factor, int) else 1
    return found


def _evens(analysis: Analysis, writer: _Writer, widths: Collection[str]) -> Iterator[EvenParts]:
    """Yield what has to stay equally long, though the widths in it differ.

    Slices of partitioned variables in it are no widths, and nothing is asked of it then.
    """
    for node, parts in analysis.evens:
        atoms = dict.fromkeys(map(find, parts))
        if len(atoms) == 1:
            continue
        try:
            axes = tuple(dict.fromkeys(map(writer.any_axis, atoms)))
        except Clash:
            # Too many pieces to be told apart; nothing is known of the axis then.
            continue
        held = [name for axis in axes for name in axis.widths()]
        if len(axes) > 1 and held and all(name in widths for name in held):
            yield EvenParts(node.op, node.name, axes)


def _axes(
    checkpoint: Checkpoint,
    roles: Mapping[str, Role],
    products: Mapping[Place, Sequence[Product]],
    facts: Mapping[Atom, Facts],
    names: Mapping[Atom, str],
    writer: _Writer,
) -> tuple[dict[str, Axes], dict[str, Uses]]:
    """Write the axes of every variable; slots and averages have those of their variable."""
    by_place: dict[Place, dict[str, tuple[Use, ...]]] = {}
    for atom, fact in facts.items():
        for place in fact.places:
            if atom in names:
                uses = _settled(fact, place, roles[place.variable])
                by_place.setdefault(place, {})[names[atom]] = uses
    axes: dict[str, Axes] = {}
    used: dict[str, Uses] = {}
    for name, variable in checkpoint.items():
        places = [Place(name, axis) for axis in range(len(variable.shape))]
        if places and all(place in products for place in places):
            axes[name] = tuple(writer.axis(place, products[place]) for place in places)
            used[name] = tuple(by_place.get(place, {}) for place in places)
    return with_followers(axes, used, checkpoint, roles)


def _settled(fact: Facts, place: Place, role: Role) -> tuple[Use, ...]:
    """Return how an axis uses a width: what is certain, or else what its name says."""
    found = tuple(fact.uses.get(place, ()))
    if "gain" in found and "mean" in found:
        return ("gain",)
    if found or not fact.uses:
        return found
    if role.kind != "batch_statistic":
        return ("shift",)
    return ("variance",) if "var" in place.variable.rpartition("/")[2] else ("mean",)
