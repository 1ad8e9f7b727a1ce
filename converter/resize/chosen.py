"""Variables whose entries are chosen from those of another one, region by region."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from converter.errors import PlanError
from converter.resize.maps import AxisMap
from converter.rounding import round_to
from converter.variable import BLOCK_BYTES, Array, Region, Variable, shape_of

_WASTE = 4
"""How many entries may be read for each that is wanted."""

_Chosen = list[Array]


def choose(
    variable: Variable, axes: Sequence[AxisMap | None], fill: float | Callable[[], float] = 0.0
) -> Variable:
    """Return a variable whose entries are those of another one, weighed, and a number elsewhere.

    Args:
        variable: the old one.
        axes: what becomes of each axis; None where it stays.
        fill: what entries hold that are new along any axis; a function is called when the first
            of them is asked for.

    Raises:
        PlanError: the dtype cannot hold the fill, or has no numbers.
    """
    shape = [size if m is None else m.length for m, size in zip(axes, variable.shape, strict=True)]
    filling = None if callable(fill) else _in_dtype(variable, fill)
    is_weighted = any(m is not None and m.is_weighted for m in axes)
    if is_weighted and not variable.dtype.is_float:
        raise PlanError(f"{variable.name}: {variable.dtype} values cannot be shared among copies")

    def load(region: Region) -> Array:
        indices: _Chosen = []
        places: list[Any] = []
        weights: list[tuple[int, Array]] = []
        for number, (m, s) in enumerate(zip(axes, region, strict=True)):
            if m is None:
                indices.append(np.arange(s.start, s.stop))
                places.append(slice(0, s.stop - s.start))
                continue
            index, weight = m.entries(s.start, s.stop)
            held = np.flatnonzero(index >= 0)
            indices.append(index[held])
            places.append(_as_slice(held))
            if weight is not None and not (weight[held] == 1).all():
                weights.append((number, weight[held]))
        found = _gather(variable, indices)
        if weights:
            wide = found.astype(np.float64)
            for number, weight in weights:
                wide *= weight.reshape([-1 if k == number else 1 for k in range(wide.ndim)])
            found = round_to(wide, variable.dtype, variable.counts)
        if found.shape == shape_of(region):
            return found
        new = _in_dtype(variable, fill()) if callable(fill) else filling
        values = np.full(shape_of(region), new)
        values[_open(places)] = found
        return values

    return variable.derive(load, shape=shape)


def _as_slice(places: Array) -> Any:
    """Return places that follow one another as a slice, which numpy copies far faster."""
    if len(places) and places[-1] - places[0] == len(places) - 1:
        return slice(int(places[0]), int(places[-1]) + 1)
    return places


def _open(places: Sequence[Any]) -> Any:
    """Return what indexes the product of the places of each axis."""
    if all(isinstance(place, slice) for place in places):
        return tuple(places)
    return np.ix_(*(np.arange(p.start, p.stop) if isinstance(p, slice) else p for p in places))


def _gather(variable: Variable, indices: Sequence[Array]) -> Array:
    """Load the product of some entries of each axis, without reading much else."""
    shape = tuple(len(index) for index in indices)
    if not all(shape):
        return np.empty(shape, variable.dtype.numpy)
    ranges = [(int(index.min()), int(index.max()) + 1) for index in indices]
    read = math.prod(stop - start for start, stop in ranges)
    wanted = math.prod(shape)
    if read > max(_WASTE * wanted, BLOCK_BYTES // variable.dtype.itemsize):
        ratios = [(b - a) / size for (a, b), size in zip(ranges, shape, strict=True)]
        axis = ratios.index(max(ratios))
        if shape[axis] > 1:
            return _in_halves(variable, indices, axis)
    values = variable.load(tuple(slice(start, stop) for start, stop in ranges))
    for axis, (index, (start, stop)) in enumerate(zip(indices, ranges, strict=True)):
        if len(index) != stop - start or (index[1:] <= index[:-1]).any():
            values = np.take(values, index - start, axis=axis)
    return values


def _in_halves(variable: Variable, indices: Sequence[Array], axis: int) -> Array:
    """Load one half after the other of what is wanted along an axis, in the order of the source."""
    order = np.argsort(indices[axis], kind="stable")
    middle = len(order) // 2
    values = np.empty([len(index) for index in indices], variable.dtype.numpy)
    for half in (order[:middle], order[middle:]):
        part = [indices[axis][half] if k == axis else index for k, index in enumerate(indices)]
        values[(slice(None),) * axis + (half,)] = _gather(variable, part)
    return values


def _in_dtype(variable: Variable, fill: float) -> Array:
    """Return the fill as an array of shape () of the variable's dtype."""
    dtype = variable.dtype
    if not dtype.itemsize:
        raise PlanError(
            f"{variable.name}: {dtype} variables cannot be resized; they hold no numbers"
        )
    with np.errstate(all="ignore"):
        filling = np.asarray(fill, np.float64).astype(dtype.numpy)
        held = np.isfinite(filling) == np.isfinite(fill) if dtype.is_float else filling == fill
    if not held:
        raise PlanError(f"{variable.name}: {dtype} cannot hold the fill {fill:g}; choose another")
    found: Array = filling
    return found
