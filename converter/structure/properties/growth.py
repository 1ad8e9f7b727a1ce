"""Whether units can be added to a width so that nothing else changes, and what they may hold.

Nothing changes where all that sums over the width gets nothing from the new units: what consumes
them is zero, and so is what a sum takes of them. That is asked of every such op, once for units
that hold any numbers, and if that does not do, for units that are made of zeros. Infinities and NaN
are not nothing, whatever they are multiplied with.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

from converter.graph.node import Node, Output
from converter.graph.ops import QUOTIENTS, ops
from converter.structure.axes.axis import AVERAGING, SINGLING, Growth, Touch
from converter.structure.properties.facts import Facts
from converter.structure.properties.newcomers import (
    OVER_ALL,
    PRODUCTS,
    Carriers,
    Newcomers,
    contracted,
    reduced,
)
from converter.structure.properties.ranges import ANY, ONE, ZERO, Range
from converter.structure.properties.shares import is_shared_out
from converter.structure.tensors.analysis import Analysis
from converter.structure.tensors.atoms import leaves

NEVER: frozenset[Touch] = SINGLING | AVERAGING
"""These see units that are zero, too. An output only has more entries, beside the old ones."""

_ADDS_UP = ops("Sum EuclideanNorm L2Loss Einsum")


def growth(analysis: Analysis, fact: Facts, carriers: Carriers) -> Growth:
    """Tell how a width can be grown; what hinders it is marked if it is an op with a pole."""
    if not NEVER.isdisjoint(fact.touches):
        return "none"
    before = cache(lambda: Newcomers(analysis, fact, carriers, ANY, old=True))
    newcomers = Newcomers(analysis, fact, carriers, ANY)
    takers = carriers.takers(fact.atom)
    if all(_gets_nothing(analysis, node, newcomers, before) for node in takers):
        return "any"
    newcomers = Newcomers(analysis, fact, carriers, ZERO)
    if all(_gets_nothing(analysis, node, newcomers, before) for node in takers):
        return "zero"
    if newcomers.poles:
        fact.touches.setdefault("pole", next(iter(newcomers.poles)))
    return "none"


def stays_zero(analysis: Analysis, fact: Facts, carriers: Carriers) -> bool:
    """Tell whether units that are made of zeros reach all that consumes them as zeros.

    Then neither side gets a gradient if both are zero: a unit that is zero in what makes it and in
    what takes it is dead to training.
    """
    is_paired = "self paired" in fact.touches
    if "lookup" in fact.touches or "sum" in fact.touches:
        return False
    if not is_paired and not fact.by_use("consume"):
        return False
    newcomers = Newcomers(analysis, fact, carriers, ZERO)
    for found in fact.uses.values():
        if (node := found.get("consume")) is None:
            continue
        data = [output for output in node.inputs if not analysis.tensor(output).origins]
        if any(not (newcomers.of(output) or ZERO).is_zero for output in data):
            return False
    # Where both sides of a product are made of one variable, each of them takes the other.
    sides = [
        side
        for pairing in analysis.pairings
        if is_paired and fact.atom in leaves(pairing.atom)
        for side in (pairing.left, pairing.right)
    ]
    return all((newcomers.of(side) or ZERO).is_zero for side in sides)


def mark_computed(analysis: Analysis, fact: Facts, carriers: Carriers) -> None:
    """Mark what takes units by something computed of a variable, which cannot be shared out."""
    for (node, output), axes in carriers.sums(fact.atom).items():
        # Of two matrices of variables the second consumes.
        both = all(analysis.is_weight(o) for o in node.inputs[:2]) and output == node.inputs[0]
        if both or not analysis.is_weight(output):
            continue
        if not is_shared_out(analysis, output, axes):
            fact.touches.setdefault("computed", node)


def _gets_nothing(
    analysis: Analysis, node: Node, newcomers: Newcomers, before: Callable[[], Newcomers]
) -> bool:
    """Whether an op gives what it gave, with new units.

    Args:
        analysis: of the graph.
        node: takes units.
        newcomers: what new units hold.
        before: gives what the old ones hold.
    """
    if node.op in PRODUCTS:
        taken = (_summed(analysis, node, o, newcomers) for o in node.inputs)
        summed = [r for r in taken if r is not None]
        return all(r.is_finite for r in summed) and any(r.is_zero for r in summed)
    if node.op in ("Max", "Min", "Any", "All"):
        new, old = (_reduced(analysis, node, units) for units in (newcomers, before()))
        return _is_outdone(node.op, new, old)
    if node.op in _ADDS_UP:
        return _reduced(analysis, node, newcomers).is_zero
    if node.op == "Mul" or node.op in QUOTIENTS:
        # A product that is summed: what sums it is asked.
        return True
    if any(event.what in OVER_ALL for event in analysis.events.get(node, ())):
        return False
    found = [newcomers.of(output) for output in node.inputs if not analysis.is_weight(output)]
    return all(r is None or r.is_finite for r in found)


def _summed(analysis: Analysis, node: Node, output: Output, newcomers: Newcomers) -> Range | None:
    """Return what of new units a product sums over; None where it sums over none of them."""
    axes = analysis.tensor(output).axes or ()
    own = contracted(analysis, node, output)
    return newcomers.of(output, [k for k in range(len(axes)) if k not in own]) if own else None


def _reduced(analysis: Analysis, node: Node, newcomers: Newcomers) -> Range:
    """Return what of new units a reduction takes."""
    source = node.inputs[0]
    gone = reduced(analysis, node)
    left = [k for k in range(len(analysis.tensor(source).axes or ())) if k not in gone]
    return newcomers.of(source, left) or ZERO


def _is_outdone(op: str, new: Range, old: Range) -> bool:
    """Whether the largest, or the smallest, is none of the new units."""
    if not new.is_finite:
        return False
    if op in ("Max", "Any"):
        return new.high <= old.low or (op == "Any" and new.is_zero)
    return new.low >= old.high or (op == "All" and new == ONE)
