"""What happens to the outputs of a model when a width gets a unit that nothing takes."""

from __future__ import annotations

import numpy as np

from converter.model import Model, difference
from converter.permutation import axes_of
from converter.structure.axes.axis import Axis
from converter.structure.axes.entries import entries
from converter.structure.structure import Structure
from converter.variable import Array


def growth_error(model: Model, structure: Structure, width: str, unit: int) -> float:
    """Return how far the outputs move with what makes a unit, if what takes it is zero.

    That is what happens to a new unit. An output that has the width itself is not looked at.
    """
    noise = np.random.default_rng(1)
    without, other = dict(model.values), dict(model.values)
    for name, array in model.values.items():
        taken, made = np.zeros(array.shape, bool), np.zeros(array.shape, bool)
        for number, axis in enumerate(structure.axes[name]):
            if width not in axis.widths():
                continue
            place = [1] * array.ndim
            place[number] = -1
            mask = _mask(axis, structure, width, unit).reshape(place)
            consumes = "consume" in structure.uses[name][number][width]
            taken, made = taken | (mask & consumes), made | (mask & (not consumes))
        without[name] = np.where(taken, 0, array).astype(array.dtype)
        drawn = np.abs(noise.normal(1, 0.5, array.shape))
        other[name] = np.where(made & ~taken, drawn, without[name]).astype(array.dtype)
    before, after = model.run(without), model.run(other)
    without_it = [
        source
        for source in before
        if not any(width in axis.widths() for axis in axes_of(structure, source))
    ]
    return difference({s: before[s] for s in without_it}, after) if without_it else 0.0


def _mask(axis: Axis, structure: Structure, width: str, unit: int) -> Array:
    """Return which entries of an axis are of a unit: those that stay if all units become it."""
    size = structure.sizes[width]

    def stays(number: int) -> Array:
        found = entries(axis, {width: np.full(size, number)}, structure.sizes)
        return np.equal(found, np.arange(len(found)))

    # What has no such unit stays whatever the unit is.
    return stays(unit) & ~stays((unit + 1) % size)
