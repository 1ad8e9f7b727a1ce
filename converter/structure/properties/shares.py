"""Whether what takes a unit can be shared out among its copies: whether it is linear in a variable.

Of `softplus(w)` half is not `softplus(w / 2)`.
"""

from __future__ import annotations

from collections.abc import Collection

from converter.graph.node import Node, Output
from converter.graph.ops import (
    ADDS,
    JOINS,
    LOOKUPS,
    MATMULS,
    MOVES,
    QUOTIENTS,
    REPEATS,
    SLICES,
    SPLITS,
    STACKS,
    VARIABLES,
    ops,
)
from converter.structure.properties.facts import Place
from converter.structure.tensors.analysis import Analysis

_ADDS = ADDS | ops("Sub AddN AccumulateNV2")
_KEEPS = (
    MOVES
    | JOINS
    | SPLITS
    | SLICES
    | STACKS
    | REPEATS
    | LOOKUPS
    | _ADDS
    | ops("ReadVariableOp DynamicStitch ParallelDynamicStitch Neg Sum Mean Print")
)
_POWERS = {"Square": 2.0, "Sqrt": 0.5, "Rsqrt": -0.5, "Reciprocal": -1.0, "Inv": -1.0}
_PRODUCTS = MATMULS | ops("Mul")
_MAX_DEPTH = 64


def is_shared_out(analysis: Analysis, output: Output, axes: Collection[int]) -> bool:
    """Tell whether a tensor of variables takes a share if these take it along some of its axes."""
    origins = analysis.tensor(output).origins
    if origins is None:
        return False
    places = frozenset(Place(o.variable, o.axis) for axis in axes for o in origins[axis])
    return bool(places) and _Powers(analysis, places).of(output) == 1


class _Powers:
    """To which power of the share tensors go that are made of variables; None where to none."""

    def __init__(self, analysis: Analysis, places: frozenset[Place]) -> None:
        self._analysis = analysis
        self._places = places
        self._known: dict[Node, float | None] = {}

    def of(self, output: Output, depth: int = 0) -> float | None:
        node = output.node
        if node not in self._known:
            # What loops has no power but that of its first value, which is asked for first.
            self._known[node] = None
            self._known[node] = self._power(node, depth)
        return self._known[node]

    def _power(self, node: Node, depth: int) -> float | None:
        if node in self._analysis.variables or node.op in VARIABLES:
            origins = self._analysis.variables[node].origins or ()
            return float(any(Place(o.variable, o.axis) in self._places for a in origins for o in a))
        if depth > _MAX_DEPTH:
            return None
        operands = [o for o in node.inputs if self._analysis.is_weight(o)]
        if not operands:
            return 0.0
        powers = [self.of(operand, depth + 1) for operand in operands]
        known = [power for power in powers if power is not None]
        if len(known) < len(powers):
            return None
        if not any(known):
            return 0.0
        if node.op in _PRODUCTS:
            return sum(known)
        if node.op in QUOTIENTS and len(operands) == 2:
            return known[0] - known[1]
        if node.op in QUOTIENTS and operands[0] == node.inputs[0]:
            return known[0]
        if node.op in _POWERS:
            return known[0] * _POWERS[node.op]
        if node.op in _ADDS and not self._is_whole(node, operands):
            return None
        return known[0] if node.op in _KEEPS and len(set(known)) == 1 else None

    def _is_whole(self, node: Node, operands: Collection[Output]) -> bool:
        """Whether all that is added takes the share."""
        others = [o for o in node.inputs if o not in operands]
        return all(self._analysis.tensor(o).number == 0 for o in others)
