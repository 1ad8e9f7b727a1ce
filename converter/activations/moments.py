"""The moments of units, in one pass over any amount of data, and mergeable.

Parts are joined as parallel runs are, so that nothing is lost where the mean is large beside the
deviation.

References:
    Chan, Golub and LeVeque, Updating formulae and a pairwise algorithm for computing sample
    variances, 1979.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from converter.activations.sums import Floats, Sums
from converter.variable import Array

_SAMPLED = 64  # observations that tell about where the others are
_PRODUCT_ITEMS = 1 << 20  # products of matrices want larger blocks


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
        rows = np.moveaxis(values, axis, -1)
        if mask is not None:
            rows = rows[mask]
        rows = _prepared(rows, self.size)
        if not len(rows):
            return
        sums = Sums(rows, self.mean if self.count else _about(rows))
        sums.add(rows)
        sums.check([rows])
        of_rows = _moments(sums)
        if self.products is not None:
            of_rows.products = _products(rows, of_rows.mean)
        self.merge(of_rows)

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


class Accumulator:
    """Adds up observations in many small parts, which `Moments.add` takes longer for.

    Args:
        moments: what they are added to.
    """

    def __init__(self, moments: Moments) -> None:
        self._before = moments
        self._sums: Sums | None = None

    @property
    def moments(self) -> Moments:
        """Those of what was added so far; they go on as more is added."""
        if self._sums is not None:
            self._before.merge(_moments(self._sums))
            self._sums = None
        return self._before

    def add(self, parts: Sequence[Array]) -> None:
        """Add observations.

        Args:
            parts: each (observations, units), of numbers.

        Raises:
            NotFiniteError: a value is NaN or infinite; the moments are of no use any more.
        """
        if self._before.products is not None:
            for part in parts:
                self._before.add(part)
            return
        for part in parts:
            rows = _prepared(part, self._before.size)
            if not len(rows):
                continue
            if self._sums is None or not self._sums.takes(rows):
                if self._sums is not None:
                    self._sums.check(parts)
                before = self.moments
                self._sums = Sums(rows, before.mean if before.count else _about(rows))
            self._sums.add(rows)
        if self._sums is not None:
            self._sums.check(parts)


def _prepared(values: Array, size: int) -> Array:
    """Return values as rows that can be added up."""
    wide = values.dtype.itemsize > 4 or values.dtype.kind in "iu"
    return np.ascontiguousarray(values.reshape(-1, size), np.float64 if wide else np.float32)


def _about(rows: Array) -> Floats:
    # Not the first ones, which are of one sequence or one image.
    about: Floats = rows[:: -(-len(rows) // _SAMPLED)].mean(0, dtype=np.float64)
    return about


def _moments(sums: Sums) -> Moments:
    return Moments(sums.count, **sums.each())


def _products(rows: Array, mean: Floats) -> Floats:
    count, size = rows.shape
    products = np.zeros((size, size))
    step = max(_PRODUCT_ITEMS // size, 1)
    for start in range(0, count, step):
        apart = rows[start : start + step] - mean
        products += apart.T @ apart
    return products
