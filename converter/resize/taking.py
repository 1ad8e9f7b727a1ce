"""How an axis takes the units of a width, by what it does with them and what it holds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from converter.resize.units import Matrix, UnitMap, Units, WidthMap
from converter.structure.axes.axis import Use
from converter.variable import Array

_FOLLOWS: frozenset[Use] = frozenset(["gain", "mean", "variance"])


def of_values(width_map: WidthMap, old: int, uses: Sequence[Use]) -> UnitMap:
    """Return how an axis takes the units of a width, of which there were `old`, in values."""
    if "consume" in uses and "produce" not in uses:
        return _transposed(width_map.consume)
    produce = width_map.produce
    if "variance" in uses and isinstance(produce, Units):
        # What makes the units is weighted, and their means are: divided by the old deviation, what
        # is normalised keeps the weight, whatever epsilon is.
        return plain(produce)
    if "variance" in uses:
        return _scaled(_to_power(produce, 2), width_map.rescale**2)
    if "gain" in uses and "produce" not in uses:
        return _scaled(plain(produce), width_map.gain)
    if width_map.is_centred:
        produce = _centred(old, produce)
    return _scaled(produce, width_map.rescale)


def of_gradients(width_map: WidthMap, uses: Sequence[Use], power: int) -> UnitMap:
    """Return how an axis takes the units of a width where it holds a power of gradients.

    Gradients are turned by the transpose of what turns the values: a copy that has a share of the
    effect has that share of the gradient, and what takes a share of a unit has all of it.

    Args:
        width_map: what becomes of the width.
        uses: what the axis of the variable does with the width.
        power: 0 for what is measured in steps, whose size does not depend on gradients.
    """
    if power == 0:
        return plain(width_map.produce)
    if "consume" in uses and "produce" not in uses:
        return _to_power(width_map.produce, power)
    follows = "produce" not in uses and not _FOLLOWS.isdisjoint(uses)
    scale = width_map.gain if follows else width_map.rescale
    taken = _transposed(width_map.consume)
    if "gain" in uses and isinstance(taken, Units):
        # What a gain multiplies is weighted, and so is the gradient that it has.
        taken = _weighted_by(taken, width_map.produce)
    return _scaled(_to_power(taken, power), scale**-power)


def of_both(width_map: WidthMap, old: int, uses: Sequence[Use]) -> UnitMap:
    """Return how an axis takes the units of a width where it holds values times gradients."""
    values, gradients = of_values(width_map, old, uses), of_gradients(width_map, uses, 1)
    if not isinstance(values, Units) or not isinstance(gradients, Units):
        return values
    if not values.is_weighted and not gradients.is_weighted:
        return values
    return values.weighted(lambda: _weight(values) * _weight(gradients))


def plain(unit_map: UnitMap) -> UnitMap:
    """Return the choice of units without its weights."""
    return unit_map.plain() if isinstance(unit_map, Units) else unit_map


def _centred(old: int, produce: UnitMap) -> Matrix:
    """Return the matrix that takes off the mean over the old units before they are chosen."""

    def values() -> Array:
        if isinstance(produce, Matrix):
            chosen = produce.values
        else:
            chosen = (np.arange(old)[:, None] == produce.index).astype(np.float64)
        centred: Array = chosen - chosen.mean(axis=0)
        return centred

    return Matrix((old, produce.size if isinstance(produce, Units) else produce.shape[1]), values)


def squares(unit_map: UnitMap) -> float:
    """Return the sum of the squares of what is left of units that were all 1."""
    if not isinstance(unit_map, Units):
        return float(np.square(unit_map.values).sum())
    if unit_map.kept is not None and not unit_map.is_weighted:
        return float(unit_map.kept)
    return float(np.square(_weight(unit_map))[unit_map.index >= 0].sum())


def _transposed(unit_map: UnitMap) -> UnitMap:
    return unit_map if isinstance(unit_map, Units) else unit_map.T


def _scaled(unit_map: UnitMap, factor: float) -> UnitMap:
    if factor == 1:
        return unit_map
    if not isinstance(unit_map, Units):
        return unit_map.map(lambda values: factor * values)
    return unit_map.weighted(lambda: factor * _weight(unit_map))


def _weighted_by(units: Units, other: UnitMap) -> Units:
    if not isinstance(other, Units) or not other.is_weighted:
        return units
    return units.weighted(lambda: _weight(units) * _weight(other))


def _to_power(unit_map: UnitMap, power: int) -> UnitMap:
    if power == 1:
        return unit_map
    if not isinstance(unit_map, Units):
        return unit_map.map(lambda values: values**power)
    if not unit_map.is_weighted:
        return unit_map
    return unit_map.weighted(lambda: _weight(unit_map) ** power)


def _weight(units: Units) -> Array:
    return np.ones(units.size) if units.weight is None else units.weight
