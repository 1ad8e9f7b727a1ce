"""An axis written out: which entry of it stands where, once the units of its widths move."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from converter.structure.axis import Axis, Blocks, Factor
from converter.variable import Array


def entries(axis: Axis, orders: Mapping[str, Array], sizes: Mapping[str, int]) -> Array:
    """Return for each entry of an axis the one that is put in its place.

    `[i,f]*units` of two units, which change places, is `[1, 0, 3, 2]`.

    Args:
        axis: the axis.
        orders: by width, for each unit the one that is put in its place; others stay.
        sizes: of all widths of the axis.
    """
    pieces: list[Array] = []
    start = 0
    for term in axis.terms:
        found = np.zeros(1, np.int64)
        for factor in term:
            found = (found[:, None] * _size(factor, sizes) + _units(factor, orders, sizes)).ravel()
        pieces.append(found + start)
        start += math.prod(_size(factor, sizes) for factor in term)
    return np.concatenate(pieces)


def _units(factor: Factor, orders: Mapping[str, Array], sizes: Mapping[str, int]) -> Array:
    if isinstance(factor, Axis):
        return entries(factor, orders, sizes)
    if isinstance(factor, str) and factor in orders:
        return orders[factor]
    return np.arange(_size(factor, sizes))


def _size(factor: Factor, sizes: Mapping[str, int]) -> int:
    if isinstance(factor, Axis):
        return factor.size(sizes)
    if isinstance(factor, Blocks):
        return len(factor.labels)
    return sizes[factor] if isinstance(factor, str) else factor
