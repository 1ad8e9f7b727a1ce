"""Sums of units over observations, all in one pass over the values and in float64.

numba compiles the pass; without it numpy needs several, which take some times as long.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from converter.variable import Array

Floats = npt.NDArray[np.float64]

_WIDTH = 1024  # of rows: loops over fewer columns spend their time on beginning them
_BLOCK_ITEMS = 1 << 15  # that numpy takes at once, to stay in the cache


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


def sums_of(rows: Array, shift: Floats) -> Sums:
    """Add up observations.

    Args:
        rows: (observations, units), contiguous, float32 or float64; at least one.
        shift: about what the mean is, for each unit: squares are added up about it, so that none is
            lost where the mean is large beside the deviation.
    """
    count, size = rows.shape
    # Several observations stand side by side in a row of few units.
    beside = max(1, min(_WIDTH // size, count))
    even = count - count % beside
    made = _Running.of(beside * size, rows.dtype)
    add = _compiled() or _add
    off = np.tile(shift, beside)
    with np.errstate(over="ignore", invalid="ignore"):
        add(rows[:even].reshape(-1, beside * size), off, *made.arrays)
        if even < count:
            # What is left fills the beginning of a row.
            add(rows[even:].reshape(1, -1), off, *made.arrays)
        total, squares, absolute = made.sums.reshape(3, beside, size).sum(1)
        return Sums(
            shift + total / count,
            np.maximum(squares - total * total / count, 0),
            absolute,
            made.min.reshape(beside, size).min(0).astype(np.float64),
            made.max.reshape(beside, size).max(0).astype(np.float64),
            made.zero.reshape(beside, size).sum(0, dtype=np.int64),
        )


@dataclass(frozen=True, slots=True, eq=False)
class _Running:
    """Sums that values are added to.

    Attributes:
        sums: (3, columns) of differences from the shift, of their squares, of absolute values.
        min: the least value.
        max: the largest value.
        zero: how many values are exactly zero.
    """

    sums: Floats
    min: Array
    max: Array
    zero: npt.NDArray[np.int32]

    @classmethod
    def of(cls, width: int, dtype: np.dtype[Any]) -> _Running:
        """Return those of nothing."""
        low, high = np.full(width, np.inf, dtype), np.full(width, -np.inf, dtype)
        return cls(np.zeros((3, width)), low, high, np.zeros(width, np.int32))

    @property
    def arrays(self) -> tuple[Array, ...]:
        """What `_add` takes after the rows and the shift."""
        return self.sums, self.min, self.max, self.zero


def _add(rows: Array, shift: Array, sums: Array, low: Array, high: Array, zero: Array) -> None:
    width = rows.shape[1]
    step = max(1, _BLOCK_ITEMS // width)
    for start in range(0, len(rows), step):
        block = rows[start : start + step]
        wide = block.astype(np.float64)
        apart = wide - shift[:width]
        sums[0, :width] += apart.sum(0)
        sums[1, :width] += np.einsum("ij,ij->j", apart, apart)
        sums[2, :width] += np.abs(wide).sum(0)
        low[:width] = np.minimum(low[:width], block.min(0))
        high[:width] = np.maximum(high[:width], block.max(0))
        zero[:width] += (block == 0).sum(0, dtype=np.int32)


@cache
def _compiled() -> Callable[..., None] | None:
    """Return what does the same as `_add` in one pass; None where there is no numba."""
    try:
        import numba
    except ImportError:
        return None

    def add(rows: Any, shift: Any, sums: Any, low: Any, high: Any, zero: Any) -> None:
        even = len(rows) - len(rows) % 4
        # Sums are read and written once for four rows.
        for row in range(0, even, 4):
            for unit in range(rows.shape[1]):
                a, b = rows[row, unit], rows[row + 1, unit]
                c, d = rows[row + 2, unit], rows[row + 3, unit]
                off = shift[unit]
                w, x = np.float64(a) - off, np.float64(b) - off
                y, z = np.float64(c) - off, np.float64(d) - off
                sums[0, unit] += (w + x) + (y + z)
                sums[1, unit] += (w * w + x * x) + (y * y + z * z)
                sums[2, unit] += (np.float64(abs(a)) + np.float64(abs(b))) + (
                    np.float64(abs(c)) + np.float64(abs(d))
                )
                least, least_of_others = a if a < b else b, c if c < d else d
                least = least if least < least_of_others else least_of_others
                low[unit] = least if least < low[unit] else low[unit]
                most, most_of_others = a if a > b else b, c if c > d else d
                most = most if most > most_of_others else most_of_others
                high[unit] = most if most > high[unit] else high[unit]
                zero[unit] += (
                    np.int32(a == 0) + np.int32(b == 0) + np.int32(c == 0) + np.int32(d == 0)
                )
        for row in range(even, len(rows)):
            for unit in range(rows.shape[1]):
                a = rows[row, unit]
                w = np.float64(a) - shift[unit]
                sums[0, unit] += w
                sums[1, unit] += w * w
                sums[2, unit] += np.float64(abs(a))
                low[unit] = a if a < low[unit] else low[unit]
                high[unit] = a if a > high[unit] else high[unit]
                zero[unit] += np.int32(a == 0)

    # Other threads go on meanwhile.
    compiled: Callable[..., None] = numba.njit(nogil=True, error_model="numpy")(add)
    return compiled
