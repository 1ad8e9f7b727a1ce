"""What becomes of the units of a width: a choice of them, or a matrix that mixes them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, Protocol, TypeAlias

import numpy as np

from converter.errors import ConverterError
from converter.initializer import Initializer, Zeros
from converter.variable import Array


class Matrix:
    """A matrix that units are mixed by, made when its first entry is asked for.

    Args:
        shape: (n, N) for what produces a width of n units, and (N, n) for what consumes it.
        values: gives its entries: an array of that shape, of real numbers.
        is_held: whether they are remembered, once they were asked for. Where there are many such
            matrices, `values` remembers some of them.
    """

    def __init__(
        self, shape: tuple[int, int], values: Callable[[], Array], *, is_held: bool = True
    ) -> None:
        self.shape = shape
        self._is_held = is_held
        self._values = values
        self._found: Array | None = None

    @classmethod
    def of(cls, values: Array) -> Matrix:
        """Return the matrix that an array (rows, columns) is."""
        rows, columns = values.shape
        return cls((rows, columns), lambda: values)

    @property
    def values(self) -> Array:
        """Its entries, float64."""
        if self._found is not None:
            return self._found
        found = np.asarray(self._values(), np.float64)
        if found.shape != self.shape or not np.isfinite(found).all():
            gave = "NaN or infinities" if found.shape == self.shape else list(found.shape)
            raise ConverterError(
                f"a matrix of a width has {gave}, where finite values {list(self.shape)} are "
                f"expected; this is a bug of the strategy that made it"
            )
        if self._is_held:
            self._found = found
        return found

    @property
    def T(self) -> Matrix:
        """The transposed matrix."""
        rows, columns = self.shape
        return Matrix((columns, rows), lambda: self.values.T, is_held=self._is_held)

    def map(self, function: Callable[[Array], Array]) -> Matrix:
        """Return the matrix whose entries are `function` of these."""
        return Matrix(self.shape, lambda: function(self.values), is_held=self._is_held)


class Taken(NamedTuple):
    """How often old units are there.

    Attributes:
        removed: how many are not.
        most: the largest number of copies of one.
        even: whether all are there equally often.
        new: how many units are none of the old ones.
    """

    removed: int
    most: int
    even: bool
    new: int


class Units:
    """An index map: which old unit each new unit is, and how much of it.

    Args:
        size: how many new units there are.
        index: for each new unit the old one, -1 where it is new. A function is called when the
            first values are asked for, so that a choice can look at values while a plan is free;
            where a width grows, it is called for the plan and must not.
        weight: for each new unit the factor of its entries; None for 1.
    """

    def __init__(
        self,
        size: int,
        index: Array | Callable[[], Array],
        weight: Array | Callable[[], Array] | None = None,
    ) -> None:
        self.size = size
        self.is_weighted = weight is not None
        self.kept: int | None = None
        """Where the first units stay, and none but new ones follow: how many of them."""
        self.old: int | None = None
        """How many old units there are, where that is known."""
        self._index = index
        self._weight = weight

    @cached_property
    def index(self) -> Array:
        """The old unit of each new one, -1 for none; int64 of shape (size,)."""
        index = np.asarray(self._index() if callable(self._index) else self._index)
        if index.shape != (self.size,) or index.dtype.kind not in "iu":
            raise ConverterError(
                f"a choice of units has {index.dtype} {list(index.shape)}, where integers "
                f"[{self.size}] are expected; this is a bug of the strategy that made it"
            )
        if self.old is not None and not ((index >= -1) & (index < self.old)).all():
            wrong = index[(index < -1) | (index >= self.old)][0]
            raise ConverterError(
                f"a choice of units takes unit {wrong} of {self.old}; this is a bug of the "
                f"strategy that made it"
            )
        return index.astype(np.int64)

    @cached_property
    def weight(self) -> Array | None:
        """The factor of each new unit, float64 of shape (size,); None for 1."""
        weight = self._weight() if callable(self._weight) else self._weight
        return None if weight is None else np.asarray(weight, np.float64)

    @classmethod
    def first(cls, old: int, new: int) -> Units:
        """Keep the first units; those beyond the old ones are new."""
        found = cls(new, lambda: np.where(np.arange(new) < old, np.arange(new), -1))
        # Lookup tables can have more rows than an index of them should be written out for.
        found.kept = min(old, new)
        return found

    def plain(self) -> Units:
        """Return the choice of units without its weights."""
        if not self.is_weighted:
            return self
        found = Units(self.size, lambda: self.index)
        found.kept = self.kept
        return found

    def weighted(self, weight: Callable[[], Array]) -> Units:
        """Return the choice of units with other weights."""
        return Units(self.size, lambda: self.index, weight)

    def at(self, places: Array) -> Array:
        """Return the old units of some new ones."""
        if self.kept is None:
            return self.index[places]
        return np.where(places < self.kept, places, -1)

    def taken(self, old: int) -> Taken:
        """Return how often the old units, of which there were so many, are there."""
        if self.kept is not None:
            return Taken(
                old - self.kept, min(1, self.kept), self.kept == old, self.size - self.kept
            )
        counts = np.bincount(self.index[self.index >= 0], minlength=old)
        most = int(counts.max(initial=0))
        even = bool((counts == most).all())
        return Taken(int((counts == 0).sum()), most, even, int((self.index < 0).sum()))

    def runs(self) -> list[Run] | None:
        """Return the stretches of new units that were one; None where there are many."""
        if self.kept is not None:
            found = [Run(0, self.kept, 0), Run(self.kept, self.size, -1)]
            return [run for run in found if run.start < run.stop]
        index = self.index
        is_next = (np.diff(index) == 1) | ((index[1:] < 0) & (index[:-1] < 0))
        edges = np.flatnonzero(~is_next | ((index[1:] < 0) != (index[:-1] < 0))) + 1
        if len(edges) > MOST_RUNS or not len(index):
            return None
        starts, stops = [0, *edges.tolist()], [*edges.tolist(), len(index)]
        return [
            Run(start, stop, int(index[start])) for start, stop in zip(starts, stops, strict=True)
        ]


class Run(NamedTuple):
    """A stretch of new entries: those of the old ones from `old` on, or new ones for -1."""

    start: int
    stop: int
    old: int


UnitMap: TypeAlias = Units | Matrix
ZEROS = Zeros()
MOST_RUNS = 1024
"""Stretches that are copied one by one; more of them are gathered by an index."""


class Mending(NamedTuple):
    """How what consumes units takes over what those did that are removed.

    Attributes:
        matrix: (new, old) of float64: how much of each old entry each one takes that stays; None
            where they only stay.
        shift: (old,) of float64: what is constant of each entry that goes, 0 for one that stays.
            The bias behind takes it, where there is one.
    """

    matrix: Array | None
    shift: Array


class Repair(Protocol):
    """Mends what consumes the units that are removed, variable by variable."""

    @property
    def mixes(self) -> bool:
        """Whether what stays is changed, and not only the bias behind it."""

    def knows(self, variable: str) -> bool:
        """Tell whether a variable can be mended. It reads no values."""

    def mending(self, variable: str, length: int, kept: Array, *, has_bias: bool) -> Mending:
        """Return how a variable is mended, when the first of its values are asked for.

        Args:
            variable: its name.
            length: of the axis that consumes the units, with all of them.
            kept: the entries of that axis that stay, in their new order.
            has_bias: whether a bias takes the shift.
        """


class Fold(Protocol):
    """Says what becomes of all that stands behind the normalisations of a width.

    A gain and a shift are of single units. Where these are mixed, what consumes them takes the gain
    and the shift on that stood before it: it is mixed by a matrix of its own.
    """

    def number(self, variable: str) -> float | None:
        """Return what a gain or a shift holds for each unit; None of any other variable."""

    def matrices(self, variable: str, of: str) -> tuple[Matrix, Matrix] | None:
        """Return what a variable is mixed by that consumes the units; None for any other.

        Args:
            variable: its name, or that of a slot or an average of it.
            of: its name.

        Returns:
            As `produce` and `consume` of a `WidthMap`: by the first, gradients of it are turned.
        """


@dataclass(frozen=True, eq=False)
class WidthMap:
    """What becomes of a width of n units that is to have N.

    Attributes:
        produce: for the axes that produce it, and for biases, which shift it: a choice of units,
            or a `Matrix` (n, N) that the entries are multiplied with from the right. Both are asked
            for their values when the first of a variable are, or, where units are added, for the
            verdict: functions of a grown width read no variables.
        consume: for the axes that consume it: a choice of units whose weights say how much of the
            old unit each takes, or a matrix (N, n).
        fill: what new units are made of, on the producing side. What consumes them is zero.
        bias: what the biases of new units hold; None for what the fill or zero gives.
        gain: a factor of the gains of a normalised width, in addition.
        rescale: a factor of all that produces it, where a constant of the graph moves with the
            width, or a normalisation counts new units.
        is_centred: whether the mean over the old units is taken off what makes a normalised width.
        noise: of copies: how far from the original they are, in its standard deviations.
        repair: mends what consumes the units that are removed; None where nothing does.
        fold: moves the gains and the shifts of a normalised width into what consumes it; None where
            they stay.
    """

    produce: UnitMap
    consume: UnitMap
    fill: Initializer = ZEROS
    bias: float | None = None
    gain: float = 1.0
    rescale: float = 1.0
    noise: float = 0.0
    is_centred: bool = False
    repair: Repair | None = None
    fold: Fold | None = None

    @property
    def size(self) -> int:
        """The number of units that there will be."""
        return self.produce.size if isinstance(self.produce, Units) else self.produce.shape[1]
