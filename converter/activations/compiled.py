"""Adds up rows in one pass, compiled by numba, which keeps what it compiled for the next time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np

from converter.variable import Array

_TOGETHER = 8  # rows that are added up in registers, before sums are read and written


def _jit(**options: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    # Other threads go on meanwhile.
    options |= {"nogil": True, "error_model": "numpy"}

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        try:
            found = numba.njit(cache=True, **options)(function)
        except RuntimeError:  # No directory can be written to.
            found = numba.njit(**options)(function)
        compiled: Callable[..., None] = found
        return compiled

    return decorate


# Inlined, so that a constant count of rows is unrolled.
@_jit(forceinline=True)
def _block(
    rows: Any, first: int, count: int, shift: Any, sums: Any, low: Any, high: Any, zero: Any
) -> None:
    # Two loops, as one over values of 8 and of 4 bytes takes as few of either at once.
    for unit in range(rows.shape[1]):
        total = squares = absolute = 0.0
        for row in range(first, first + count):
            value = np.float64(rows[row, unit])
            apart = value - shift[unit]
            total += apart
            squares += apart * apart
            absolute += abs(value)
        sums[0, unit] += total
        sums[1, unit] += squares
        sums[2, unit] += absolute
    for unit in range(rows.shape[1]):
        least, most, zeros = low[unit], high[unit], zero[unit]
        for row in range(first, first + count):
            value = rows[row, unit]
            least = value if value < least else least
            most = value if value > most else most
            zeros += np.int32(value == 0)
        low[unit], high[unit], zero[unit] = least, most, zeros


@_jit()
def add(rows: Array, shift: Array, sums: Array, low: Array, high: Array, zero: Array) -> None:
    """Add rows to sums.

    Args:
        rows: (observations, columns), float32 or float64, contiguous.
        shift: (columns,) or more, as of all that follows.
        sums: (3, columns) of differences from the shift, of their squares, of absolute values.
        low: the least value.
        high: the largest value.
        zero: how many values are exactly zero.
    """
    even = len(rows) - len(rows) % _TOGETHER
    for row in range(0, even, _TOGETHER):
        _block(rows, row, _TOGETHER, shift, sums, low, high, zero)
    for row in range(even, len(rows)):
        _block(rows, row, 1, shift, sums, low, high, zero)
