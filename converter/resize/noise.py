"""Noise on the copies of units, so that they part in training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from converter.drawing import Block, Drawing
from converter.dtype import BY_NAME
from converter.initializers import Normal
from converter.resize.maps import AxisMap
from converter.resize.units import Units
from converter.rounding import round_to
from converter.values import Values
from converter.variable import Array, Region, Variable, shape_of, whole


def copies(units: Units) -> Array:
    """Return which new units are copies beside the first one of their old unit, as booleans."""
    marks = np.ones(units.size, bool)
    marks[np.unique(units.index, return_index=True)[1]] = False
    found: Array = marks & (units.index >= 0)
    return found


class Noise(NamedTuple):
    """Which entries along an axis get noise.

    Attributes:
        axis: its number.
        marked: a map by which these entries are new.
        amount: how much, in standard deviations.
    """

    axis: int
    marked: AxisMap
    amount: float


def add_noise(
    variable: Variable, noises: Sequence[Noise], of: Variable, drawing: Drawing, stream: str
) -> Variable:
    """Return a variable with normal noise on some of its entries.

    Args:
        variable: of floats.
        noises: what is marked along several axes gets the most of their amounts.
        of: the variable whose standard deviation counts.
        drawing: draws the noise, with the same values for the same stream.
        stream: its key.
    """
    values = Values(of, whole(of.shape))
    field = drawing.redraw(
        Variable(variable.name, BY_NAME["float64"], variable.shape, _zeros),
        [Block("noise", whole(variable.shape), Normal(stddev=1.0), 1, 1)],
        stream=stream,
    )

    def load(region: Region) -> Array:
        most = np.zeros((1,) * len(region))
        for axis, marked, amount in noises:
            s = region[axis]
            here = amount * (marked.entries(s.start, s.stop).old < 0)
            most = np.maximum(
                most, here.reshape([-1 if k == axis else 1 for k in range(most.ndim)])
            )
        before = variable.load(region)
        if not most.any():
            return before
        found = before.astype(np.float64) + most * values.std * field.load(region)
        return round_to(found, variable.dtype, variable.counts)

    return variable.derive(load)


def _zeros(region: Region) -> Array:
    return np.zeros(shape_of(region))
