"""Sums of units over observations, all in one pass over the values and in float64.

numba compiles the pass; without it numpy needs several, which take some times as long.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
import numpy.typing as npt

from converter.variable import Array

Floats = npt.NDArray[np.float64]

_WIDTH = 1024  # of rows: loops over fewer columns spend their time on beginning them
_FEW = 8  # rows, over which they are not put beside each other
_BLOCK_ITEMS = 1 << 15  # that numpy takes at once, to stay in the cache
_MAX_COUNT = (1 << 31) - 1  # of zeros that can be counted


class NotFiniteError(ValueError):
    """Values are NaN or infinite."""


class Sums:
    """Sums of units over observations, that go on as more are added.

    Args:
        rows: the first observations, as for `add`; they are not added yet.
        shift: about what the mean is, for each unit: squares are added up about it, so that none is
            lost where the mean is large beside the deviation.

    Attributes:
        count: how many observations were added.
        shift: as above.
    """

    def __init__(self, rows: Array, shift: Floats) -> None:
        self.count = 0
        self.shift = shift
        self._dtype = rows.dtype
        self._beside = _beside(rows)
        width = self._beside * len(shift)
        self._shifts = np.tile(shift, self._beside)
        # Of differences from the shift, of their squares, of absolute values.
        self._sums = np.zeros((3, width))
        self._min = np.full(width, np.inf, rows.dtype)
        self._max = np.full(width, -np.inf, rows.dtype)
        self._zero = np.zeros(width, np.int32)

    def takes(self, rows: Array) -> bool:
        """Whether these are added as well as by sums that begin with them."""
        return (
            rows.dtype == self._dtype
            and _beside(rows) <= self._beside
            and self.count + len(rows) <= _MAX_COUNT
        )

    def add(self, rows: Array) -> None:
        """Add observations.

        Args:
            rows: (observations, units), contiguous, float32 or float64, as the first ones.
        """
        even = len(rows) - len(rows) % self._beside
        width = len(self._shifts)
        add = _compiled() or _add
        made = self._shifts, self._sums, self._min, self._max, self._zero
        add(rows[:even].reshape(-1, width), *made)
        if even < len(rows):
            # What is left fills the beginning of a row.
            add(rows[even:].reshape(1, -1), *made)
        self.count += len(rows)

    def check(self, rows: Sequence[Array]) -> None:
        """See that sums are numbers.

        Args:
            rows: what was added last.

        Raises:
            NotFiniteError: a value is NaN or infinite, or too large to be squared; the sums are
                of no use any more.
        """
        if not np.isfinite(self._sums[1]).all():
            raise NotFiniteError(_not_finite(rows))

    def each(self) -> dict[str, Array]:
        """Return the sums of each unit.

        Returns:
            The mean; squares, the sum of squared deviations from it; absolute, the sum of absolute
            values; min, max; and zero, how many values are exactly zero.
        """
        size = len(self.shift)
        total, squares, absolute = self._sums.reshape(3, -1, size).sum(1)
        return {
            "mean": self.shift + total / self.count,
            "squares": np.maximum(squares - total * (total / self.count), 0),
            "absolute": absolute,
            "min": self._min.reshape(-1, size).min(0).astype(np.float64),
            "max": self._max.reshape(-1, size).max(0).astype(np.float64),
            "zero": self._zero.reshape(-1, size).sum(0, dtype=np.int64),
        }


def _beside(rows: Array) -> int:
    """Return how many observations of few units stand side by side in a row."""
    count, size = rows.shape
    return int(max(1, min(_WIDTH // size, count // _FEW)))


def _not_finite(rows: Sequence[Array]) -> str:
    nans, infinite = (sum(int(f(part).sum()) for part in rows) for f in (np.isnan, np.isinf))
    parts = [
        f"{count:,} {what}" for count, what in ((nans, "NaN"), (infinite, "infinite")) if count
    ]
    total = sum(part.size for part in rows)
    return f"of {total:,} values {' and '.join(parts) or 'some are too large to be squared'}"


def _add(rows: Array, shift: Array, sums: Array, low: Array, high: Array, zero: Array) -> None:
    width = rows.shape[1]
    step = max(1, _BLOCK_ITEMS // width)
    for start in range(0, len(rows), step):
        block = rows[start : start + step]
        wide = block.astype(np.float64)
        with np.errstate(over="ignore", invalid="ignore"):
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
        importlib.import_module("numba")
        from converter.activations.compiled import add
    except ImportError:
        return None
    return add
