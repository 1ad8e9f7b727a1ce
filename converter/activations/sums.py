"""Sums of units over observations, in tiles that fit into the cache.

Of float32 values 32 are added up in float32, which keeps seven digits; everything else is float64.
Where the mean is large beside the deviation, it is taken off before anything is squared, and units
whose squares lost digits all the same are added up again in float64.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from converter.variable import Array

Floats = npt.NDArray[np.float64]

LARGE = 16
"""Squares, in variances: beyond, their difference can keep less than five digits in float32.

Sums of 32 that are rounded the same way, as of values that hardly differ, are off by 1e-6.
"""

_ROWS = 32  # that are added up in their own dtype
_WIDTH = 4096  # of rows: reductions over fewer columns spend their time on the rows
_FEW_ITEMS = 1 << 14
_TINY = 1e-15  # what is lost in float32 when it is squared


@dataclass(frozen=True, slots=True, eq=False)
class Sums:
    """Sums over observations, for each unit.

    Attributes:
        mean: the mean.
        squares: the sum of squared deviations from it; not finite where values are not, or are too
            large to be squared.
        absolute: the sum of absolute values.
        min: the least value.
        max: the largest value.
        zero: how many values are exactly zero.
    """

    mean: Floats
    squares: Floats
    absolute: Floats
    min: Floats
    max: Floats
    zero: npt.NDArray[np.int64]


def sums_of(rows: Array, shift: Floats | None = None) -> list[tuple[int, Sums]]:
    """Add up observations.

    Args:
        rows: (observations, units), contiguous, float32 or float64.
        shift: about what the mean is, for each unit; None for about zero.

    Returns:
        The sums of parts of the observations, and of how many.
    """
    count, size = rows.shape
    # Several observations stand side by side in a row of few units.
    beside = max(1, _WIDTH // size)
    even = 0 if rows.size <= _FEW_ITEMS else count - count % beside
    parts = []
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        if even:
            off = np.zeros(size) if shift is None else shift
            parts.append((even, _of_many(rows[:even], off.astype(rows.dtype), beside)))
        if even < count:
            parts.append((count - even, _of_few(rows[even:])))
    return parts


def _of_few(rows: Array) -> Sums:
    """Add up what is so little that each call counts, and not each value."""
    wide = rows.astype(np.float64)
    mean = np.add.reduce(wide, axis=0) / len(rows)
    apart = wide - mean
    return Sums(
        mean,
        np.einsum("ij,ij->j", apart, apart),
        np.add.reduce(np.abs(wide), axis=0),
        np.minimum.reduce(wide, axis=0),
        np.maximum.reduce(wide, axis=0),
        np.add.reduce(wide == 0, axis=0, dtype=np.int64),
    )


def _of_many(rows: Array, shift: Array, beside: int) -> Sums:
    """Add up observations, of which as many stand side by side."""
    count, size = rows.shape
    tiles = _Tiles.of(rows.reshape(-1, beside * size), np.tile(shift, beside))
    total, squares, absolute = tiles.sums.sum(1, dtype=np.float64).reshape(3, beside, size).sum(1)
    low = tiles.min.min(0).reshape(beside, size).min(0)
    high = tiles.max.max(0).reshape(beside, size).max(0)
    deviations = squares - total * total / count
    largest = np.maximum(np.abs(low - shift), np.abs(high - shift))
    is_lost = (deviations * LARGE < squares) | (largest < _TINY) | ~np.isfinite(squares)
    found = Sums(
        total / count + shift,
        deviations,
        absolute,
        low.astype(np.float64),
        high.astype(np.float64),
        tiles.zero.sum(0, dtype=np.int64).reshape(beside, size).sum(0),
    )
    # What is always the same has lost nothing once that is taken off.
    units = np.flatnonzero(is_lost & (largest != 0))
    if len(units):
        again = _of_few(rows[:, units])
        found.mean[units], found.squares[units] = again.mean, again.squares
        found.absolute[units] = again.absolute
    return found


@dataclass(frozen=True, slots=True, eq=False)
class _Tiles:
    """The sums over a few rows each, all (tiles, columns), in the dtype of the rows.

    Attributes:
        sums: (3, tiles, columns) of what is left when the shift is taken off, of its squares, and
            of absolute values with nothing taken off.
        min: the least value.
        max: the largest value.
        zero: how many values are exactly zero.
    """

    sums: Array
    min: Array
    max: Array
    zero: npt.NDArray[np.uint8]

    @classmethod
    def of(cls, rows: Array, shift: Array) -> _Tiles:
        """Add up rows, with a shift for each column."""
        count, width = rows.shape
        starts = range(0, count, _ROWS)
        sums, low, high = np.split(np.empty((5, len(starts), width), rows.dtype), [3, 4])
        tiles = cls(sums, low[0], high[0], np.zeros((len(starts), width), np.uint8))
        shape = min(_ROWS, count), min(width, _WIDTH)
        room = np.empty(shape, rows.dtype), np.empty(shape, np.bool_)
        is_shifted = bool(shift.any())
        for left in range(0, width, _WIDTH):
            columns = slice(left, left + _WIDTH)
            # Taken off a tile of its own shape, it costs half as much.
            off = np.tile(shift[columns], (_ROWS, 1)) if is_shifted else None
            for number, start in enumerate(starts):
                tiles._add((number, columns), rows[start : start + _ROWS, columns], off, room)
        return tiles

    def _add(
        self, at: tuple[int, slice], tile: Array, shift: Array | None, room: tuple[Array, Array]
    ) -> None:
        values, is_zero = (part[: len(tile), : tile.shape[1]] for part in room)
        low = self.min[at]
        total, squares, absolute = self.sums[:, at[0], at[1]]
        np.minimum.reduce(tile, axis=0, out=low)
        np.maximum.reduce(tile, axis=0, out=self.max[at])
        apart = tile if shift is None else np.subtract(tile, shift[: len(tile)], out=values)
        np.add.reduce(apart, axis=0, out=total)
        # Not by BLAS: its threads wait for each other longer than so short a sum takes.
        np.einsum("ij,ij->j", apart, apart, out=squares)
        if low.min() < 0:
            np.add.reduce(np.abs(tile, out=values), axis=0, out=absolute)
        else:
            # What a Relu gives is its own absolute value.
            absolute[:] = total if shift is None else total + shift[0] * len(tile)
        if np.equal(tile, 0, out=is_zero).any():
            np.add.reduce(is_zero.view(np.uint8), axis=0, dtype=np.uint8, out=self.zero[at])
