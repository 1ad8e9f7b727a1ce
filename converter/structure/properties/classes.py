"""Which changes of basis leave a model as it is, for each width, and what decides it."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from converter.errors import printable
from converter.graph.node import Node
from converter.graph.ops import (
    ADDS,
    BIAS_ADDS,
    JOINS,
    LOOKUPS,
    MOVES,
    SLICES,
    SPLITS,
    STACKS,
    VARIABLES,
    ops,
)
from converter.structure.axes.axis import Symmetry, Touch
from converter.structure.properties.facts import Facts
from converter.structure.tensors.analysis import Analysis
from converter.structure.tensors.atoms import Atom, find, leaves

# What binds each entry to its place, and in which words; the first that applies is told.
_BOUND: Mapping[Touch, str] = {
    "input": "{node} brings it in from outside",
    "constant": "{node} adds, multiplies or chooses by a constant that differs from entry to entry",
    "dynamic": "{node} meets a size that is only known when the graph runs",
    "index": "{node} goes by the place of each entry",
    "rest": "no op reads these entries of {name}",
    "unread": "{node} is not known, and stands behind the outputs",
    "choice": "{node} chooses one of its entries",
    "softmax": "{node} normalises over it",
    "cross entropy": "{node} normalises over it",
    "output": "{node} is an output",
    "label": "{node} is what it is compared with",
    "lookup": "{node} looks up in it",
}
# Sizes that no width is: of windows, of images, of groups.
FIXED: tuple[Touch, ...] = ("spatial", "fixed")

_PERMUTATION: Mapping[Touch, str] = {
    "nonlinear": "{node} is nonlinear",
    "gated": "{node} multiplies it with other data, unit by unit",
    "affine": "{node} adds a number to each unit",
    "variance": "{node} normalises by mean and variance over it",
    "mean": "{node} averages over it",
    "extreme": "{node} takes the largest over it",
    "sum": "{node} sums over it",
    "product": "{node} multiplies over it",
    "computed": "{node} takes it by what is computed of a variable",
    "norm": "{node} takes the norm over it",
    "weight": "{node} changes the variable that holds it",
}
_ORTHOGONAL: Mapping[Touch, str] = {
    "square mean": "{node} averages the squares over it",
    "square sum": "{node} sums the squares over it",
    "weight norm": "{node} sums a variable over it",
    "self paired": "{node} contracts two tensors over it of which neither is made for that",
}
_SCALING: Mapping[Touch, str] = {
    "homogeneous": "{node} is positively homogeneous",
    "gain": "{node} scales each unit by a variable",
}
_REASONS: tuple[tuple[Symmetry, Mapping[Touch, str]], ...] = (
    ("bound", _BOUND),
    ("permutation", _PERMUTATION),
    ("orthogonal", _ORTHOGONAL),
    ("scaling", _SCALING),
)
_REDUCING: frozenset[Touch] = frozenset(
    {"sum", "paired", "self paired", "square sum", "mean", "extreme", "product"}
)
# What holds it at its size: what comes from outside, and what goes by its places.
_HELD: tuple[Touch, ...] = ("input", "constant", "dynamic", "index", "rest", "unread")


class Classified(NamedTuple):
    """What a width allows."""

    symmetry: Symmetry
    resizable: bool
    why: str


def classify(fact: Facts) -> Classified:
    """Tell the symmetry of a width from all that was done to it."""
    touches = fact.touches
    if "opaque" in touches:
        node = touches["opaque"]
        why = f"what {named(node)} does is not known"
        if node.op in VARIABLES | {"Const"}:
            why = f"no op of the graph reads {printable(node.name)}"
        return Classified("opaque", False, why)
    if is_fed(fact):
        touches = {what: node for what, node in touches.items() if what != "input"}
    held = any(what in touches for what in _HELD)
    for symmetry, reasons in _REASONS:
        for what, words in reasons.items():
            if what in touches:
                both = symmetry == "orthogonal" and "homogeneous" in touches
                # What only rotations leave and what only positive factors leave, permutations do.
                known = "permutation" if both else symmetry
                return Classified(known, not held, _say(words, touches[what]))
    return Classified("free", True, "only linear ops touch it")


def is_fed(fact: Facts) -> bool:
    """Whether a width comes in beside what variables produce of it.

    It is a state then, or passes a layer by: whoever feeds it feeds the new units too.
    """
    return "input" in fact.touches and "output" not in fact.touches and bool(fact.by_use("produce"))


def named(node: Node) -> str:
    """Return the op and the name of a node; the name alone where its scope is called as the op."""
    name = printable(node.name)
    return name if "/" in name and name.startswith(node.op) else f"{node.op} {name}"


def _say(words: str, node: Node) -> str:
    return words.format(op=node.op, name=printable(node.name), node=named(node))


def mark_outputs(analysis: Analysis, facts: Mapping[Atom, Facts]) -> None:
    """Mark the widths that the outputs have, and that nothing but themselves is made of.

    The state of a loop, or the outputs of a cell of which only the last is used, are outputs of
    the graph too. A width that something else is made of is an inner one all the same.
    """
    outside = _leading_out(_leads_to(facts))
    shown = [
        (node, part)
        for node in analysis.flow.outputs
        for tensor in analysis.tensors.get(node, ())
        for atom in tensor.axes or ()
        for part in leaves(atom)
        if part in facts
    ]
    inner = outside | _escaping(analysis, {part for _, part in shown} - outside)
    for node, part in shown:
        # It stands in an output, whether or not something else is made of it, too.
        facts[part].touches.setdefault("shown", node)
        if part not in inner:
            facts[part].touches.setdefault("output", node)


def _escaping(analysis: Analysis, atoms: Collection[Atom]) -> set[Atom]:
    """Return of which widths something is made by summing over them that does not come back."""
    carriers: dict[Atom, set[Node]] = {atom: set() for atom in atoms}
    for node, tensors in analysis.tensors.items():
        for tensor in tensors:
            for atom in tensor.axes or ():
                for part in leaves(atom):
                    if part in carriers:
                        carriers[part].add(node)
    found: set[Atom] = set()
    for node, events in analysis.events.items():
        summed = (part for e in events if e.what in _REDUCING for part in leaves(e.atom))
        for part in dict.fromkeys(summed):
            if part not in carriers or part in found or node in carriers[part]:
                continue
            if not _comes_to(analysis, node, carriers[part]):
                found.add(part)
    return found


def _comes_to(analysis: Analysis, node: Node, goals: Collection[Node]) -> bool:
    """Whether what is made of a node gets to one of some others."""
    seen, waiting = {node}, [node]
    while waiting:
        for consumer in analysis.graph.users(waiting.pop()):
            if consumer in analysis.flow.telling and consumer not in seen:
                if consumer in goals:
                    return True
                seen.add(consumer)
                waiting.append(consumer)
    return False


def _leads_to(facts: Mapping[Atom, Facts]) -> dict[Atom, set[Atom | None]]:
    """Return which widths are made of each: None stands for an axis of one entry."""
    produced: dict[str, list[Atom]] = {}
    for atom, fact in facts.items():
        for variable in fact.by_use("produce"):
            produced.setdefault(variable, []).append(atom)
    leads: dict[Atom, set[Atom | None]] = {atom: set() for atom in facts}
    for atom, fact in facts.items():
        if "lookup" in fact.touches:
            continue
        for variable in fact.by_use("consume"):
            leads[atom].update(produced.get(variable) or [None])
    return leads


def _leading_out(leads: Mapping[Atom, Collection[Atom | None]]) -> set[Atom]:
    """Return the widths from which one gets to others that do not lead back."""
    circles = _circles(leads)
    left = {
        circles[atom]
        for atom, others in leads.items()
        if any(other is None or circles[other] is not circles[atom] for other in others)
    }
    return {atom for atom in leads if circles[atom] in left}


def _circles(leads: Mapping[Atom, Collection[Atom | None]]) -> dict[Atom, Atom]:
    """Return one and the same width for all that lead to each other, by Kosaraju's algorithm."""
    back: dict[Atom, list[Atom]] = {atom: [] for atom in leads}
    ordered: list[Atom] = []
    seen: set[Atom] = set()
    for start in leads:
        stack = [(start, False)]
        while stack:
            atom, is_done = stack.pop()
            if is_done:
                ordered.append(atom)
            elif atom not in seen:
                seen.add(atom)
                stack.append((atom, True))
                for other in leads[atom]:
                    if other is not None:
                        back[other].append(atom)
                        stack.append((other, False))
    circles: dict[Atom, Atom] = {}
    for first in reversed(ordered):
        waiting = [first]
        while waiting:
            atom = waiting.pop()
            if atom not in circles:
                circles[atom] = first
                waiting += back[atom]
    return circles


_MAX_MET = 64
# A partitioned table is looked up in part by part.
_LOOKUPS = LOOKUPS | ops("DynamicStitch ParallelDynamicStitch")
_MOVES = MOVES | SPLITS | SLICES | JOINS | STACKS | ADDS | BIAS_ADDS | ops("Tile")


class Factor(NamedTuple):
    """A constant that is a root or a share of a width's size.

    Attributes:
        node: the node that multiplies with it.
        number: the factor.
        power: of the size: 0.5, -0.5 or -1.
        is_of_products: whether all that is made of the width are contractions of two tensors, each
            of them scaled by such a factor: what produces the width can make up for it then.
    """

    node: Node
    number: float
    power: float
    is_of_products: bool = False


def scale_factors(
    analysis: Analysis, facts: Mapping[Atom, Facts], resizable: Iterable[Atom]
) -> dict[Atom, list[Factor]]:
    """Find constants such as `1 / sqrt(head size)`, which have to move with their width."""
    found: dict[Atom, list[Factor]] = {}
    wanted = set(resizable)
    for scale in analysis.scales:
        for atom, powers in _scaled(analysis, scale.operand.node, scale.node):
            if atom not in wanted or not atom.size:
                continue
            for power in powers:
                if math.isclose(abs(scale.number), atom.size**power, rel_tol=1e-5):
                    found.setdefault(atom, []).append(Factor(scale.node, scale.number, power))
                    facts[atom].touches.setdefault("scaled by size", scale.node)
                    break
    for atom, factors in found.items():
        if _makes_products_only(analysis, facts[atom], factors):
            found[atom] = [factor._replace(is_of_products=True) for factor in factors]
    return found


def _makes_products_only(analysis: Analysis, fact: Facts, factors: Sequence[Factor]) -> bool:
    """Whether a width is contracted in products of two tensors alone, and each has one factor."""
    products = {p.node for p in analysis.pairings if fact.atom in leaves(p.atom)}
    alike = {
        event.node
        for events in analysis.events.values()
        for event in events
        if event.what == "self paired" and fact.atom in leaves(event.atom)
    }
    if alike and alike != products:
        # What makes the width makes one side of some of them, and both of others.
        return False
    scaled = []
    for factor in factors:
        near = {factor.node, *(o.node for o in factor.node.inputs)}
        near |= _met(factor.node, lambda step: analysis.graph.consumers[step])
        scaled += [node for node in products if node in near]
    if sorted(n.order for n in scaled) != sorted(n.order for n in products):
        return False
    # A variable that takes the width by itself would take what is scaled.
    return not any(
        role.use == "consume" and fact.atom in leaves(role.atom)
        for roles in analysis.roles.values()
        for role in roles
    )


def _scaled(
    analysis: Analysis, operand: Node, node: Node
) -> Iterator[tuple[Atom, tuple[float, ...]]]:
    """Yield the widths that a factor may be about, with the powers of them that it may be.

    A number alone proves nothing: 0.1 may be the slope of a ReLU, and not the root of 100. So a
    factor has to stand where such factors do: at a contraction of data over the width, on the way
    to one, or behind the lookup in a table.
    """
    near = {operand, node, *(c for c in analysis.graph.consumers[node])}
    paired = [part for p in analysis.pairings if p.node in near for part in leaves(p.atom)]
    for part in dict.fromkeys(map(find, paired)):
        yield part, (-0.5, 0.5, -1.0)
    tensors = analysis.tensors.get(operand, ())[:1]
    parts = [find(part) for t in tensors for atom in t.axes or () for part in leaves(atom)]
    later = _met(node, lambda step: analysis.graph.consumers[step])
    ahead = {part for p in analysis.pairings if p.node in later for part in leaves(p.atom)}
    is_looked_up = any(
        step.op in _LOOKUPS
        for step in _met(operand, lambda step: [source for source, _ in step.inputs])
    )
    for part in dict.fromkeys(parts):
        if part not in paired:
            yield part, (-0.5,) * (part in ahead) + (0.5,) * is_looked_up


def _met(node: Node, following: Callable[[Node], Iterable[Node]]) -> set[Node]:
    """Return what is met from a node on, beyond ops that only move entries."""
    seen, waiting = {node}, [node]
    while waiting and len(seen) < _MAX_MET:
        current = waiting.pop()
        if current is not node and current.op not in _MOVES:
            continue
        for other in following(current):
            if other not in seen:
                seen.add(other)
                waiting.append(other)
    return seen
