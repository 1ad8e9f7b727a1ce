"""The moments of units, in one pass over any amount of data, and mergeable.

Of float32 values 32 are added up in float32, which keeps seven digits; everything else is float64.
Blocks that fit into the cache are joined as parallel runs are, so that nothing is lost where the
mean is large beside the deviation.

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
_BLOCK_ITEMS = 1 << 16
_MAX_ROWS = 255  # zeros of a block are counted in a byte
_FEW_ITEMS = 1 << 14
_TOGETHER = 32  # rows that are added up in their own dtype; such sums, in float64
_LARGE = 32  # squares, in variances: beyond, their difference keeps less than five digits
_TINY = 1e-30  # squares that lose digits in float32
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
    if rows.size <= _FEW_ITEMS:
        return _moments_of_few(rows, result)
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


def _moments_of_few(rows: Array, result: Moments) -> Moments:
    """Fill in the moments of what is so little that each call counts, and not each value."""
    wide = rows.astype(np.float64)
    result.count = len(rows)
    with np.errstate(over="ignore", invalid="ignore"):
        total = np.add.reduce(wide, axis=0)
        result.mean = total / len(rows)
        apart = wide - result.mean
        result.squares = np.einsum("ij,ij->j", apart, apart)
    if not np.isfinite(result.squares).all():
        raise NotFiniteError(_not_finite(rows))
    result.min = np.minimum.reduce(wide, axis=0)
    result.max = np.maximum.reduce(wide, axis=0)
    result.absolute = np.add.reduce(np.abs(wide), axis=0)
    result.zero = np.add.reduce(wide == 0, axis=0, dtype=np.int64)
    if result.products is not None:
        result.products = apart.T @ apart
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
        step = min(_MAX_ROWS, max(_TOGETHER, _BLOCK_ITEMS // width))
        starts = range(0, count, step)
        total, squares, absolute = (np.empty((len(starts), width)) for _ in range(3))
        low, high = (np.empty((len(starts), width), wide.dtype) for _ in range(2))
        zero = np.zeros((len(starts), width), np.uint8)
        with np.errstate(over="ignore", invalid="ignore", under="ignore"):
            for number, start in enumerate(starts):
                block = wide[start : start + step]
                np.minimum.reduce(block, axis=0, out=low[number])
                np.maximum.reduce(block, axis=0, out=high[number])
                largest = np.maximum(high[number], -low[number])
                total[number], squares[number] = _about_mean(block, largest)
                # What a Relu gives is its own absolute value.
                is_positive = low[number].min() >= 0
                absolute[number] = total[number] if is_positive else _added(np.abs(block))
                is_zero = block == 0
                if is_zero.any():
                    is_zero = is_zero.view(np.uint8)
                    np.add.reduce(is_zero, axis=0, dtype=np.uint8, out=zero[number])
        counts = np.diff(np.append(starts, count)).astype(np.float64)
        sums = (part.reshape(-1, size) for part in (total, squares, absolute, low, high, zero))
        return cls(np.repeat(counts, width // size)[:, None], *sums)


def _about_mean(block: Array, largest: Array) -> tuple[Floats, Floats]:
    """Return the sums over the first axis, and those of squared deviations from the mean.

    Args:
        block: of observations, and as many columns as there are sums.
        largest: absolute values of the columns.
    """
    total, squares = _added(block), _squared(block)
    is_beyond = ~np.isfinite(squares) | ((squares < _TINY) & (largest > 0))
    if block.dtype == np.float32 and is_beyond.any():
        # Their squares are beyond float32.
        return _about_mean(block.astype(np.float64), largest)
    deviations = squares - total * total / len(block)
    if (deviations * _LARGE < squares).any():
        # The mean is so large that the difference has lost digits.
        shift = (total / len(block)).astype(block.dtype)
        apart = block - shift
        rest = _added(apart)
        total = shift.astype(np.float64) * len(block) + rest
        squares = _squared(apart)
        deviations = squares - rest * rest / len(block)
    return total, np.maximum(deviations, 0)


def _added(block: Array) -> Floats:
    groups, rest = _in_groups(block)
    total: Floats = np.add.reduce(groups, axis=1).sum(0, dtype=np.float64)
    return np.asarray(total + np.add.reduce(rest, axis=0), np.float64)


def _squared(block: Array) -> Floats:
    groups, rest = _in_groups(block)
    # Not by BLAS: its threads wait for each other longer than so short a sum takes.
    total: Floats = np.einsum("gij,gij->gj", groups, groups).sum(0, dtype=np.float64)
    return np.asarray(total + np.einsum("ij,ij->j", rest, rest), np.float64)


def _in_groups(block: Array) -> tuple[Array, Array]:
    """Return groups of rows that are added up in their own dtype, and the rows that are left."""
    even = len(block) - len(block) % _TOGETHER
    return block[:even].reshape(-1, _TOGETHER, block.shape[1]), block[even:]


def _products(rows: Array, mean: Floats) -> Floats:
    count, size = rows.shape
    products = np.zeros((size, size))
    step = max(_PRODUCT_ITEMS // size, _TOGETHER)
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
