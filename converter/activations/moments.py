"""The moments of units, in one pass over any amount of data, and mergeable.

Parts are joined as parallel runs are, so that nothing is lost where the mean is large beside the
deviation.

References:
    Chan, Golub and LeVeque, Updating formulae and a pairwise algorithm for computing sample
    variances, 1979.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from converter.activations.sums import LARGE, Floats, sums_of
from converter.variable import Array

_SAMPLED = 64  # observations that tell about where the others are
_FEW_FAR = 32  # of so many units one may be far from zero
_PART_ITEMS = 1 << 22  # whose sums over a few rows fit into the cache
_PRODUCT_ITEMS = 1 << 20  # products of matrices want larger blocks


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
        if not len(rows):
            return
        covariance = self.products is not None
        shift = self._shift(rows)
        step = max(1, _PART_ITEMS // self.size)
        parts = [
            part
            for start in range(0, len(rows), step)
            for part in _moments(rows[start : start + step], shift, covariance=covariance)
        ]
        for part in parts:
            self.merge(part)

    def _shift(self, rows: Array) -> Floats | None:
        """Return where values are about, if many are far from zero beside their deviation.

        A few are added up again for less than it costs to take something off all.

        Args:
            rows: observations, some of which tell if there are none yet: not the first ones, which
                are of one sequence or one image.
        """
        mean, squares, count = self.mean, self.squares, self.count
        if not count:
            count, sums = sums_of(rows[:: -(-len(rows) // _SAMPLED)])[0]
            mean, squares = sums.mean, sums.squares
        is_far = mean * mean * count > LARGE * squares
        return mean if np.count_nonzero(is_far) * _FEW_FAR > len(mean) else None

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


def _moments(rows: Array, shift: Floats | None, *, covariance: bool) -> Iterator[Moments]:
    """Yield the moments of parts of (observations, units), contiguous, float32 or float64."""
    start = 0
    for count, sums in sums_of(rows, shift):
        if not np.isfinite(sums.squares).all():
            raise NotFiniteError(_not_finite(rows))
        part = rows[start : start + count]
        products = _products(part, sums.mean) if covariance else None
        yield Moments(
            count,
            sums.mean,
            sums.squares,
            sums.absolute,
            sums.min,
            sums.max,
            sums.zero,
            products,
        )
        start += count


def _products(rows: Array, mean: Floats) -> Floats:
    count, size = rows.shape
    products = np.zeros((size, size))
    step = max(_PRODUCT_ITEMS // size, 1)
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
