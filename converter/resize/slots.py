"""What becomes of the slots of optimizers: they follow the gradients of their variable.

References:
    tensorflow/core/kernels/training_ops.cc of TensorFlow 1.15 (Ftrl); Shazeer and Stern, Adafactor:
    adaptive learning rates with sublinear memory cost, 2018.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from converter.errors import PlanError
from converter.graph.node import Node
from converter.graph.ordered import OrderedGraph
from converter.names import Role
from converter.names.fresh import COPIES, fresh_value
from converter.names.gradient import FACTORED, gradient_power
from converter.resize.taking import squares
from converter.resize.units import UnitMap
from converter.rounding import round_to
from converter.structure.axes.axis import Axis
from converter.structure.structure import Structure
from converter.variable import Array, Region, Variable

_SAMPLE = 1 << 18
# The moments whose average is corrected for its start, which was long ago: of zero, the first steps
# of new entries would be several times too large.
_CORRECTED = frozenset(["v", "velocity", "vhat", "velocity_hat", "rms"])
_MAX_PASSED = 8


class Ftrl(NamedTuple):
    """The constants with which a variable is computed from its slots."""

    rate: float
    l1: float
    l2: float


def holds_values(role: Role) -> bool:
    """Whether a variable holds what its variable does: all but slots, and copies among these."""
    if role.kind == "slot":
        return role.slot in COPIES
    return role.optimizer is None or role.kind == "average"


def is_linear(role: Role) -> bool:
    """Whether a slot is that of Ftrl from which its variable is computed."""
    return role.slot == "linear"


def power_of(name: str, role: Role) -> int:
    """Return the power of the gradient that a slot holds.

    Raises:
        PlanError: no rule tells.
    """
    power = gradient_power(role.optimizer, role.slot)
    if power is None:
        raise PlanError(
            f"{name}: nothing is known of how {role.slot or name.rpartition('/')[2]!r} of "
            f"{role.optimizer or 'this optimizer'} follows gradients, and its variable is "
            f"resized; drop it before (--drop '{name}'), or all of its kind (--drop slots)"
        )
    return power


def fresh_entries(variable: Variable, role: Role) -> float | Callable[[], float]:
    """Return what new entries of a slot hold: what it starts with, or the median of the old."""
    fresh = fresh_value(role.optimizer, role.slot) or 0.0
    is_square = gradient_power(role.optimizer, role.slot) == 2
    if fresh or not is_square or role.slot not in _CORRECTED:
        return fresh
    return _Median(variable)


def thinned(
    structure: Structure,
    name: str,
    role: Role,
    maps: Mapping[str, UnitMap],
    new: Mapping[str, int],
) -> Callable[[], float] | None:
    """Return the factor of averages over an axis that is another one now; None for all others.

    Averages of squared gradients over new entries, whose gradients are zero as yet, are that much
    smaller. Without it the product of the two factored averages would not be what it was.

    Args:
        structure: the axes.
        name: the slot.
        role: what it is.
        maps: how gradients are turned, by width.
        new: the new sizes of all widths.
    """
    if role.slot not in FACTORED or role.of is None or role.of not in structure.axes:
        return None
    lost = _lost(structure.axes[name], structure.axes[role.of], role)
    if lost is None or maps.keys().isdisjoint(lost.widths()):
        return None

    def factor() -> float:
        left: dict[str, float] = dict(structure.sizes)
        left |= {width: squares(maps[width]) for width in lost.widths() if width in maps}
        return lost.size(left) / max(1, lost.size(new))

    return factor


def lost_axis(own: int, of: int, role: Role) -> int | None:
    """Return the number of the axis that a factored slot lacks; None where it lacks none."""
    if own != of - 1 or role.slot not in FACTORED:
        return None
    return of - 1 if role.slot in ("vr", "r") else of - 2


def _lost(own: Sequence[Axis], of: Sequence[Axis], role: Role) -> Axis | None:
    """Return the axis that is averaged away."""
    usual = lost_axis(len(own), len(of), role)
    if usual is None:
        return None
    # The larger one in mesh TensorFlow, the last in all others.
    order = [usual, *(k for k in range(len(of)) if k != usual)]
    rest = ((k, (*of[:k], *of[k + 1 :])) for k in order)
    return next((of[k] for k, axes in rest if axes == tuple(own)), None)


def multiplied(variable: Variable, factor: Callable[[], float]) -> Variable:
    """Return a variable times a number that is computed when values are asked for."""

    def load(region: Region) -> Array:
        values = variable.load(region)
        number = factor()
        if number == 1:
            return values
        wide = np.asarray(values, np.float64) * number
        return round_to(wide, variable.dtype, variable.counts)

    return variable.derive(load)


def recomputed(
    slot: Variable,
    variable: Variable,
    accumulator: Variable,
    ftrl: Ftrl,
    is_new: Callable[[Region], Array],
) -> Variable:
    """Return Ftrl's linear slot with new entries from which the variable's come out again.

    Args:
        slot: the slot, resized.
        variable: the variable, resized.
        accumulator: the sum of squared gradients, resized.
        ftrl: the constants of the graph.
        is_new: which entries of a region are new.
    """

    def load(region: Region) -> Array:
        values = slot.load(region)
        new = is_new(region)
        if not new.any():
            return values
        weights = np.asarray(variable.load(region), np.float64)
        sums = np.asarray(accumulator.load(region), np.float64)
        linear = -weights * (np.sqrt(sums) / ftrl.rate + 2 * ftrl.l2) - np.sign(weights) * ftrl.l1
        held: Array = np.where(new, round_to(linear, slot.dtype, slot.counts), values)
        return held

    return slot.derive(load)


def ftrl_of(structure: Structure, name: str) -> Ftrl | None:
    """Return the constants of the op that applies gradients to a variable; None without."""
    if structure.findings is None:
        return None
    graph = structure.findings.analysis.graph
    nodes = set(structure.findings.nodes.get(name, ()))
    for node in graph.nodes:
        if "ApplyFtrl" not in node.op or not node.inputs:
            continue
        if nodes.isdisjoint(_passed(node.inputs[0].node)):
            continue
        at = 5 if "Sparse" in node.op else 4
        has_shrinkage = node.op.endswith("V2")
        places = (at, at + 1, at + 2, at + (4 if has_shrinkage else 3))
        if len(node.inputs) <= places[-1]:
            continue
        rate, l1, l2, power = (_number(graph, node.inputs[place].node) for place in places)
        if rate and l1 is not None and l2 is not None and power == -0.5:
            return Ftrl(rate, l1, l2)
    return None


def _passed(node: Node) -> Iterator[Node]:
    """Yield a node and those that it passes on."""
    for _ in range(_MAX_PASSED):
        yield node
        if not node.inputs:
            return
        node = node.inputs[0].node


def _number(graph: OrderedGraph, node: Node) -> float | None:
    """Return the one number of a constant; None where it is computed."""
    for passed in _passed(node):
        if (constant := graph.constant(passed)) is not None:
            values = constant.values
            return values[0] if values is not None and len(values) == 1 else None
        if passed.op not in ("Identity", "Cast"):
            return None
    return None


class _Median:
    """The median of a variable's first values."""

    def __init__(self, variable: Variable) -> None:
        self._variable = variable
        self._found: float | None = None

    def __call__(self) -> float:
        if self._found is None:
            first = next(self._variable.blocks(_SAMPLE), None)
            self._found = 0.0 if first is None else float(np.median(np.asarray(first, np.float64)))
        return self._found if np.isfinite(self._found) else 0.0
