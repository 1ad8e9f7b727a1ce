"""An axis written out: which entry of it stands where, once the units of its widths move."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from converter.structure.axes.axis import Axis, Factor, term_size
from converter.variable import Array


def entries(axis: Axis, units: Mapping[str, Array], sizes: Mapping[str, int]) -> Array:
    """Return for each new entry of an axis the old one that is put in its place.

    `[i,f]*units` of two units, which change places, is `[1, 0, 3, 2]`; of two units and a new one,
    `[0, 1, -1, 2, 3, -1]`.

    Args:
        axis: the axis.
        units: by width, for each new unit the old one that is put in its place, or -1 where there
            is none; other widths stay.
        sizes: the old sizes of all widths of the axis.

    Returns:
        int64 (new length), -1 where a new unit stands.
    """
    pieces = [np.empty(0, np.int64)]
    start = 0
    for term in axis.terms:
        found = np.zeros((1, 1), np.int64)
        for factor in term:
            inner = _inner(factor, units, sizes)
            places = found * term_size((factor,), sizes) + inner
            found = np.where((found < 0) | (inner < 0), -1, places).reshape(-1, 1)
        pieces.append(np.where(found < 0, -1, found + start).ravel())
        start += term_size(term, sizes)
    return np.concatenate(pieces)


def _inner(factor: Factor, units: Mapping[str, Array], sizes: Mapping[str, int]) -> Array:
    if isinstance(factor, Axis):
        return entries(factor, units, sizes)
    if isinstance(factor, str) and factor in units:
        return units[factor]
    return np.arange(term_size((factor,), sizes))
