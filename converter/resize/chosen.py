"""Variables whose entries are chosen from those of another one, region by region."""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from converter.dtype import VARIANT
from converter.errors import PlanError
from converter.resize.maps import AxisMap
from converter.rounding import round_to
from converter.variable import BLOCK_BYTES, Array, Region, Variable, shape_of

_WASTE = 4
"""How many entries may be read for each that is wanted."""

_MOST_PIECES = 256
"""How many pieces of a region are copied one by one."""


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
        PlanError: the dtype cannot hold the fill, or cannot be resized.
    """
    shape = [size if m is None else m.length for m, size in zip(axes, variable.shape, strict=True)]
    _check(variable, shape, axes)
    filling = None if callable(fill) else in_dtype(variable, fill)

    def new() -> Array:
        found = in_dtype(variable, fill()) if callable(fill) else filling
        assert found is not None
        return found

    def load(region: Region) -> Array:
        pieces = [
            [_Piece(slice(0, s.stop - s.start), s)] if m is None else _pieces(m, s)
            for m, s in zip(axes, region, strict=True)
        ]
        known = [found for found in pieces if found is not None]
        if len(known) == len(pieces) and math.prod(map(len, known)) <= _MOST_PIECES:
            values = _copied(variable, known, shape_of(region), new)
            if values is not None:
                return values
        return _gathered(variable, axes, region, new)

    return variable.derive(load, shape=shape)


class _Piece(NamedTuple):
    """A stretch of a region along one axis, and the old entries that it holds; None for new."""

    place: slice
    old: slice | None


def _pieces(axis_map: AxisMap, wanted: slice) -> list[_Piece] | None:
    """Cut a stretch of the new axis; None where that would be into many pieces."""
    runs = axis_map.runs
    if runs is None:
        return None
    found = []
    first = bisect.bisect_right(runs, wanted.start, key=lambda run: run.stop)
    for run in runs[first:]:
        start, stop = max(run.start, wanted.start), min(run.stop, wanted.stop)
        if start >= stop:
            break
        old = None
        if run.old >= 0:
            old = slice(run.old + start - run.start, run.old + stop - run.start)
        found.append(_Piece(slice(start - wanted.start, stop - wanted.start), old))
    return found


def _copied(
    variable: Variable,
    pieces: Sequence[Sequence[_Piece]],
    shape: Sequence[int],
    new: Callable[[], Array],
) -> Array | None:
    """Copy a region piece by piece; None where that would read far more than is wanted."""
    if not math.prod(shape):
        return np.empty(shape, variable.dtype.numpy)
    olds = [[piece.old for piece in along if piece.old is not None] for along in pieces]
    if not all(olds) and pieces:
        return np.full(shape, new())
    cover = [
        slice(min(old.start for old in along), max(old.stop for old in along)) for along in olds
    ]
    wanted = math.prod(sum(old.stop - old.start for old in along) for along in olds)
    if _is_wasteful(variable, math.prod(s.stop - s.start for s in cover), wanted):
        return None
    loaded = variable.load(tuple(cover))
    if all(len(along) == 1 for along in pieces):
        return loaded
    values = np.empty(shape, variable.dtype.numpy)
    for parts in itertools.product(*pieces):
        place = tuple(part.place for part in parts)
        within = [
            slice(part.old.start - s.start, part.old.stop - s.start)
            for part, s in zip(parts, cover, strict=True)
            if part.old is not None
        ]
        values[place] = loaded[tuple(within)] if len(within) == len(parts) else new()
    return values


def _gathered(
    variable: Variable,
    axes: Sequence[AxisMap | None],
    region: Region,
    new: Callable[[], Array],
) -> Array:
    """Gather a region entry by entry, with weights."""
    indices: list[Array] = []
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
        wide = np.asarray(found, np.float64)
        for number, weight in weights:
            wide = wide * weight.reshape([-1 if k == number else 1 for k in range(wide.ndim)])
        found = round_to(wide, variable.dtype, variable.counts)
    if found.shape == shape_of(region):
        return found
    values = np.full(shape_of(region), new())
    values[_open(places)] = found
    return values


def new_entries(axes: Sequence[AxisMap | None]) -> Callable[[Region], Array]:
    """Return a function that tells which entries of a region are new along any axis."""

    def is_new(region: Region) -> Array:
        found = np.zeros([s.stop - s.start for s in region], np.bool_)
        for number, (m, s) in enumerate(zip(axes, region, strict=True)):
            if m is not None:
                new = m.entries(s.start, s.stop).old < 0
                found |= new.reshape([-1 if k == number else 1 for k in range(found.ndim)])
        return found

    return is_new


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
    if _is_wasteful(variable, read, wanted):
        ratios = [(b - a) / size for (a, b), size in zip(ranges, shape, strict=True)]
        axis = ratios.index(max(ratios))
        if shape[axis] > 1:
            return _in_halves(variable, indices, axis)
    values = variable.load(tuple(slice(start, stop) for start, stop in ranges))
    for axis, (index, (start, stop)) in enumerate(zip(indices, ranges, strict=True)):
        if len(index) != stop - start or (index[1:] <= index[:-1]).any():
            values = np.take(values, index - start, axis=axis)
    return values


def _is_wasteful(variable: Variable, read: int, wanted: int) -> bool:
    return read > max(_WASTE * wanted, BLOCK_BYTES // max(1, variable.dtype.itemsize))


def _in_halves(variable: Variable, indices: Sequence[Array], axis: int) -> Array:
    """Load one half after the other of what is wanted along an axis, in the order of the source."""
    order = np.argsort(indices[axis], kind="stable")
    middle = len(order) // 2
    values = np.empty([len(index) for index in indices], variable.dtype.numpy)
    for half in (order[:middle], order[middle:]):
        part = [indices[axis][half] if k == axis else index for k, index in enumerate(indices)]
        values[(slice(None),) * axis + (half,)] = _gather(variable, part)
    return values


def _check(variable: Variable, shape: Sequence[int], axes: Sequence[AxisMap | None]) -> None:
    """Raise PlanError where the entries of a variable cannot be chosen so."""
    dtype = variable.dtype
    if dtype is VARIANT:
        raise PlanError(
            f"{variable.name}: {dtype} variables cannot be resized; their bytes are opaque"
        )
    if any(m is not None and m.is_weighted for m in axes) and not dtype.is_float:
        raise PlanError(f"{variable.name}: {dtype} values cannot be shared among copies")
    if not dtype.itemsize and any(n > o for n, o in zip(shape, variable.shape, strict=True)):
        raise PlanError(f"{variable.name}: {dtype} variables cannot grow; new entries are numbers")


def in_dtype(variable: Variable, fill: float) -> Array | None:
    """Return the fill as an array of shape () of the variable's dtype; None for strings.

    Raises:
        PlanError: the dtype cannot hold it.
    """
    dtype = variable.dtype
    if not dtype.itemsize:
        return None
    with np.errstate(all="ignore"):
        filling = np.asarray(fill, np.float64).astype(dtype.numpy)
        held = np.isfinite(filling) == np.isfinite(fill) if dtype.is_float else filling == fill
    if not held:
        raise PlanError(f"{variable.name}: {dtype} cannot hold the fill {fill:g}; choose another")
    found: Array = filling
    return found
