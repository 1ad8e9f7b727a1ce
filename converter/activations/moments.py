"""The moments of units, in one pass over any amount of data, and mergeable.

Everything is added up in float64, block by block of what fits into the cache. Blocks are joined as
parallel runs are, so that nothing is lost where the mean is large beside the deviation.

References:
    Chan, Golub and LeVeque, Updating formulae and a pairwise algorithm for computing sample
    variances, 1979.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from converter.variable import Array

Floats = npt.NDArray[np.float64]

_WIDTH = 256  # of a row: reductions over fewer columns spend their time on the rows
_BLOCK_ITEMS = 1 << 15
_MAX_ROWS = 255  # zeros of a block are counted in a byte
_MIN_ROWS = 32
_LOST = 1e-4  # of the 16 digits of float64, four
_PRODUCT_ITEMS = 1 << 20  # products of matrices want larger blocks
_MANY_BLOCKS = 256


class NotFiniteError(ValueError):
    """Values are NaN or infinite."""


@dataclass(slots=True, eq=False)
class Moments:
    """The moments of n units over the observations that were added.

    Attributes:
        count: how many observations.
        mean: (n,), zeros where there is no observation yet, as all sums.
        squares: (n,) the sum of squared deviations from the mean.
        absolute: (n,) the sum of absolute values.
        min: (n,) the least value; infinite where there is no observation yet.
        max: (n,)
        zero: (n,) how many values are exactly zero.
        products: (n, n) the sum of products of deviations; None where nobody wants it.
    """

    count: int
    mean: Floats
    squares: Floats
    absolute: Floats
    min: Floats
    max: Floats
    zero: npt.NDArray[np.int64]
    products: Floats | None = None

    @classmethod
    def of(cls, size: int, *, covariance: bool = False) -> Moments:
        """Return the moments of no observations of `size` units."""
        return cls(
            0,
            np.zeros(size),
            np.zeros(size),
            np.zeros(size),
            np.full(size, np.inf),
            np.full(size, -np.inf),
            np.zeros(size, np.int64),
            np.zeros((size, size)) if covariance else None,
        )

    @property
    def size(self) -> int:
        """How many units there are."""
        return len(self.mean)

    @property
    def mean_abs(self) -> Floats:
        """The mean of absolute values."""
        return self.absolute / self.count

    @property
    def std(self) -> Floats:
        """The standard deviation of what was observed, not estimated for more."""
        return np.sqrt(self.squares / self.count)

    @property
    def second_moment(self) -> Floats:
        """The mean of squares."""
        return self.squares / self.count + self.mean**2

    @property
    def max_abs(self) -> Floats:
        """The largest absolute value."""
        return np.maximum(np.abs(self.min), np.abs(self.max))

    @property
    def zeros(self) -> Floats:
        """The share of values that are exactly zero."""
        return self.zero / self.count

    @property
    def covariance(self) -> Floats | None:
        """The covariance of what was observed, (n, n); None where nobody wanted it."""
        return None if self.products is None else self.products / self.count

    def add(self, values: Array, axis: int = -1, mask: Array | None = None) -> None:
        """Add observations.

        Args:
            values: numbers, with an axis of as many units as there are.
            axis: of the units; all others are observations.
            mask: bools over the first of the other axes, or all of them: what counts. None for
                all.

        Raises:
            NotFiniteError: a value is NaN or infinite; nothing was added.
        """
        wide = values.dtype.itemsize > 4 or values.dtype.kind in "iu"
        rows = np.moveaxis(values, axis, -1)
        if mask is not None:
            rows = rows[mask]
        rows = np.ascontiguousarray(rows.reshape(-1, self.size), np.float64 if wide else np.float32)
        added = []
        for start in range(0, len(rows), step := _MANY_BLOCKS * _MAX_ROWS):
            added.append(_moments(rows[start : start + step], self.products is not None))
        for moments in added:
            self.merge(moments)

    def merge(self, other: Moments) -> None:
        """Add the observations of which others are the moments.

        Raises:
            ValueError: they are of another number of units, or only one has a covariance.
        """
        if self.size != other.size:
            raise ValueError(f"{self.size} units, and {other.size}")
        if (self.products is None) != (other.products is None):
            raise ValueError("only one of them has a covariance")
        if not other.count:
            return
        count = self.count + other.count
        shift = other.mean - self.mean
        weight = self.count * (other.count / count)
        self.squares = self.squares + other.squares + shift * shift * weight
        if self.products is not None and other.products is not None:
            self.products += other.products
            self.products += np.outer(shift, shift) * weight
        self.mean = self.mean + shift * (other.count / count)
        self.absolute = self.absolute + other.absolute
        self.min = np.minimum(self.min, other.min)
        self.max = np.maximum(self.max, other.max)
        self.zero = self.zero + other.zero
        self.count = count


def _moments(rows: Array, covariance: bool) -> Moments:
    """Return the moments of (observations, units), contiguous and of float32 or float64."""
    count, size = rows.shape
    result = Moments.of(size, covariance=covariance)
    if not rows.size:
        return result
    beside = max(1, _WIDTH // size)
    even = count - count % beside
    # Several observations stand side by side in a row of few units.
    parts = [_Sums.of(rows[:even].reshape(-1, beside * size), size)] if even else []
    parts += [_Sums.of(rows[even:], size)] if even < count else []
    counts = np.concatenate([part.counts for part in parts])
    totals = np.concatenate([part.total for part in parts])
    squares = np.concatenate([part.squares for part in parts])
    result.count = count
    with np.errstate(over="ignore", invalid="ignore"):
        result.mean = totals.sum(0) / count
        apart = totals / counts - result.mean
        result.squares = squares.sum(0) + (apart * apart * counts).sum(0)
    if not np.isfinite(result.squares).all():
        raise NotFiniteError(_not_finite(rows))
    for part in parts:
        result.absolute += part.absolute.sum(0)
        result.min = np.minimum(result.min, part.min.min(0))
        result.max = np.maximum(result.max, part.max.max(0))
        result.zero += part.zero.sum(0, dtype=np.int64)
    if covariance:
        result.products = _products(rows, result.mean)
    return result


@dataclass(slots=True, eq=False)
class _Sums:
    """The sums over blocks that fit into the cache, each (blocks, units).

    Attributes:
        counts: (blocks, 1) how many observations there are in each.
        total: the sum.
        squares: the sum of squared deviations from the mean of the block.
        absolute: the sum of absolute values.
        min: the least value.
        max: the largest value.
        zero: how many values are exactly zero.
    """

    counts: Floats
    total: Floats
    squares: Floats
    absolute: Floats
    min: Array
    max: Array
    zero: Array

    @classmethod
    def of(cls, wide: Array, size: int) -> _Sums:
        """Add up rows of one observation of `size` units, or of several side by side."""
        count, width = wide.shape
        step = min(_MAX_ROWS, max(_MIN_ROWS, _BLOCK_ITEMS // width))
        starts = range(0, count, step)
        total, squares, absolute = (np.empty((len(starts), width)) for _ in range(3))
        low, high = (np.empty((len(starts), width), wide.dtype) for _ in range(2))
        zero = np.zeros((len(starts), width), np.uint8)
        buffer = np.empty((step, width))
        with np.errstate(over="ignore", invalid="ignore"):
            for number, start in enumerate(starts):
                block = wide[start : start + step]
                np.minimum.reduce(block, axis=0, out=low[number])
                np.maximum.reduce(block, axis=0, out=high[number])
                _add_up(
                    block,
                    buffer[: len(block)],
                    total[number],
                    squares[number],
                    # What a Relu gives is its own absolute value.
                    None if low[number].min() >= 0 else absolute[number],
                )
                if low[number].min() >= 0:
                    absolute[number] = total[number]
                is_zero = block == 0
                if is_zero.any():
                    is_zero = is_zero.view(np.uint8)
                    np.add.reduce(is_zero, axis=0, dtype=np.uint8, out=zero[number])
        counts = np.diff(np.append(starts, count)).astype(np.float64)
        sums = (part.reshape(-1, size) for part in (total, squares, absolute, low, high, zero))
        return cls(np.repeat(counts, width // size)[:, None], *sums)


def _add_up(
    block: Array, values: Floats, total: Floats, squares: Floats, absolute: Floats | None
) -> None:
    """Put the sums over the first axis of a block where they belong, by way of `values`."""
    np.copyto(values, block)
    np.add.reduce(values, axis=0, out=total)
    # Not by BLAS: its threads wait for each other longer than so short a sum takes.
    np.einsum("ij,ij->j", values, values, out=squares)
    of_mean = total * total / len(block)
    if (squares - of_mean < _LOST * squares).any():
        # The mean is so large that the difference would lose too many digits.
        apart = values - total / len(block)
        np.einsum("ij,ij->j", apart, apart, out=squares)
    else:
        squares -= of_mean
    if absolute is not None:
        np.add.reduce(np.abs(values, out=values), axis=0, out=absolute)


def _products(rows: Array, mean: Floats) -> Floats:
    count, size = rows.shape
    products = np.zeros((size, size))
    step = max(_PRODUCT_ITEMS // size, _MIN_ROWS)
    for start in range(0, count, step):
        apart = rows[start : start + step] - mean
        products += apart.T @ apart
    return products


def _not_finite(rows: Array) -> str:
    nans, infinite = int(np.isnan(rows).sum()), int(np.isinf(rows).sum())
    parts = [
        f"{count:,} {what}" for count, what in ((nans, "NaN"), (infinite, "infinite")) if count
    ]
    return f"of {rows.size:,} values {' and '.join(parts) or 'some are too large to be squared'}"
