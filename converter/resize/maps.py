"""What becomes of the units of a width, and of an axis that is made of widths."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, TypeAlias

import numpy as np

from converter.errors import ConverterError
from converter.initializer import Initializer
from converter.initializers import Zeros
from converter.structure.axis import Axis, Blocks, Factor, Term
from converter.variable import Array


class Matrix:
    """A matrix that units are mixed by, made when its first entry is asked for.

    Args:
        shape: (n, N) for what produces a width of n units, and (N, n) for what consumes it.
        values: gives its entries: an array of that shape, of real numbers.
    """

    def __init__(self, shape: tuple[int, int], values: Callable[[], Array]) -> None:
        self.shape = shape
        self._values = values

    @classmethod
    def of(cls, values: Array) -> Matrix:
        """Return the matrix that an array (rows, columns) is."""
        rows, columns = values.shape
        return cls((rows, columns), lambda: values)

    @cached_property
    def values(self) -> Array:
        """Its entries, float64."""
        found = np.asarray(self._values(), np.float64)
        if found.shape != self.shape or not np.isfinite(found).all():
            gave = "NaN or infinities" if found.shape == self.shape else list(found.shape)
            raise ConverterError(
                f"a matrix of a width has {gave}, where finite values {list(self.shape)} are "
                f"expected; this is a bug of the strategy that made it"
            )
        return found

    @property
    def T(self) -> Matrix:
        """The transposed matrix."""
        rows, columns = self.shape
        return Matrix((columns, rows), lambda: self.values.T)

    def map(self, function: Callable[[Array], Array]) -> Matrix:
        """Return the matrix whose entries are `function` of these."""
        return Matrix(self.shape, lambda: function(self.values))


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
        self._index = index
        self._weight = weight

    @cached_property
    def index(self) -> Array:
        """The old unit of each new one, -1 for none; int64 of shape (size,)."""
        index = self._index() if callable(self._index) else self._index
        return np.asarray(index, np.int64)

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
    """

    produce: UnitMap
    consume: UnitMap
    fill: Initializer = ZEROS
    bias: float | None = None
    gain: float = 1.0
    rescale: float = 1.0
    noise: float = 0.0
    is_centred: bool = False

    @property
    def size(self) -> int:
        """The number of units that there will be."""
        return self.produce.size if isinstance(self.produce, Units) else self.produce.shape[1]


class Entries(NamedTuple):
    """What the entries of an axis are made of.

    Attributes:
        old: the old entry of each new one; -1 where it is new.
        weight: the factor of each; None for 1.
    """

    old: Array
    weight: Array | None


class AxisMap:
    """What becomes of an axis by choosing units, entry by entry and without writing it out.

    Args:
        axis: the expression.
        sizes: the old size of each of its widths.
        units: what becomes of the units of a width; those that are not in it stay.
    """

    def __init__(self, axis: Axis, sizes: Mapping[str, int], units: Mapping[str, Units]) -> None:
        self._axis = axis
        self._old = sizes
        self._units = units
        self._new = {name: units[name].size if name in units else sizes[name] for name in sizes}
        self.old_length = axis.size(self._old)
        self.length = axis.size(self._new)
        self.is_weighted = any(u.is_weighted for n, u in units.items() if n in axis.widths())
        self._last: tuple[tuple[int, int], Entries] | None = None

    def entries(self, start: int, stop: int) -> Entries:
        """Return what the new entries from `start` to `stop` are."""
        # Regions of a variable are often whole along all axes but one.
        if self._last is None or self._last[0] != (start, stop):
            index, weight = self._of_axis(self._axis, np.arange(start, stop))
            entries = Entries(index, weight if self.is_weighted else None)
            self._last = (start, stop), entries
        return self._last[1]

    @cached_property
    def runs(self) -> tuple[Run, ...] | None:
        """All entries in order, in stretches; None where there are many, or weights."""
        if self.is_weighted:
            return None
        found = self._runs_of(self._axis)
        return None if found is None else tuple(_joined(found))

    def _runs_of(self, axis: Axis) -> list[Run] | None:
        found: list[Run] = []
        begin = old = 0
        for term in axis.terms:
            runs = self._runs_of_term(term)
            if runs is None or len(found) + len(runs) > MOST_RUNS:
                return None
            found += [_moved(run, begin, old) for run in runs]
            begin += _length(term, self._new)
            old += _length(term, self._old)
        return found

    def _runs_of_term(self, term: Term) -> list[Run] | None:
        length = _length(term, self._new)
        if not self._changes(term):
            return [Run(0, length, 0)] if length else []
        head, rest = term[:1], term[1:]
        runs = self._runs_of_factor(head[0])
        if runs is None:
            return None
        inner, old_inner = _length(rest, self._new), _length(rest, self._old)
        if not self._changes(rest):
            return [
                Run(r.start * inner, r.stop * inner, r.old if r.old < 0 else r.old * old_inner)
                for r in runs
            ]
        within = self._runs_of_term(rest)
        if within is None or len(within) * sum(r.stop - r.start for r in runs) > MOST_RUNS:
            return None
        found = []
        for run in runs:
            for digit in range(run.start, run.stop):
                begin = digit * inner
                if run.old < 0:
                    found.append(Run(begin, begin + inner, -1))
                    continue
                old = (run.old + digit - run.start) * old_inner
                found += [_moved(other, begin, old) for other in within]
        return found

    def _runs_of_factor(self, factor: Factor) -> list[Run] | None:
        if isinstance(factor, Axis):
            return self._runs_of(factor)
        if isinstance(factor, str) and factor in self._units:
            return self._units[factor].runs()
        return [Run(0, _length((factor,), self._new), 0)]

    def _changes(self, term: Term) -> bool:
        return any(
            not self._units.keys().isdisjoint(f.widths())
            if isinstance(f, Axis)
            else f in self._units
            for f in term
        )

    def _of_axis(self, axis: Axis, places: Array) -> tuple[Array, Array]:
        index = np.full(places.shape, -1)
        weight = np.ones(places.shape)
        begin = old_begin = 0
        for term in axis.terms:
            end = begin + _length(term, self._new)
            here = (places >= begin) & (places < end)
            if here.all() or here.any():
                found, factor = self._of_term(term, places[here] - begin)
                index[here] = np.where(found < 0, -1, found + old_begin)
                weight[here] = factor
            begin = end
            old_begin += _length(term, self._old)
        return index, weight

    def _of_term(self, term: Term, places: Array) -> tuple[Array, Array]:
        index = np.zeros(places.shape, np.int64)
        weight = np.ones(places.shape)
        inner = _length(term, self._new)
        for factor in term:
            inner //= max(1, _length((factor,), self._new))
            digit, places = np.divmod(places, max(1, inner))
            found, more = self._of_factor(factor, digit)
            index = np.where(
                (index < 0) | (found < 0), -1, index * _length((factor,), self._old) + found
            )
            weight = weight * more
        return index, weight

    def _of_factor(self, factor: Factor, places: Array) -> tuple[Array, Array]:
        if isinstance(factor, Axis):
            return self._of_axis(factor, places)
        if isinstance(factor, str) and (units := self._units.get(factor)) is not None:
            chosen = units.at(places)
            weight = units.weight
            return chosen, np.ones(places.shape) if weight is None else weight[places]
        return places, np.ones(places.shape)


def _moved(run: Run, by: int, old: int) -> Run:
    return Run(run.start + by, run.stop + by, run.old if run.old < 0 else run.old + old)


def _joined(runs: Sequence[Run]) -> Iterator[Run]:
    """Yield the same runs, where one that continues the one before is one with it."""
    held: Run | None = None
    for run in runs:
        if run.start == run.stop:
            continue
        if held is not None and (
            run.old == held.old == -1
            or (held.old >= 0 and run.old == held.old + held.stop - held.start)
        ):
            held = held._replace(stop=run.stop)
            continue
        if held is not None:
            yield held
        held = run
    if held is not None:
        yield held


def places_of(axis: Axis, sizes: Mapping[str, int], name: str) -> Array:
    """Return where the units of a width stand on an axis: int64 of shape (times, units)."""
    owner = _owners(axis, sizes, name, np.arange(axis.size(sizes)))
    held = np.flatnonzero(owner >= 0)
    order = held[np.argsort(owner[held], kind="stable")]
    found: Array = order.reshape(sizes[name], -1).T
    return found


def _owners(axis: Axis, sizes: Mapping[str, int], name: str, places: Array) -> Array:
    """Return of which unit of a width each entry is; -1 where it is of none."""
    owner = np.full(places.shape, -1)
    begin = 0
    for term in axis.terms:
        end = begin + _length(term, sizes)
        here = (places >= begin) & (places < end)
        rest, inner = places[here] - begin, end - begin
        found = np.full(rest.shape, -1)
        for factor in term:
            inner //= max(1, _length((factor,), sizes))
            digit, rest = np.divmod(rest, max(1, inner))
            if factor == name:
                found = digit
            elif isinstance(factor, Axis):
                within = _owners(factor, sizes, name, digit)
                found = np.where(within < 0, found, within)
        owner[here] = found
        begin = end
    return owner


def _length(term: Sequence[Factor], sizes: Mapping[str, int]) -> int:
    found = 1
    for factor in term:
        if isinstance(factor, Axis):
            found *= factor.size(sizes)
        elif isinstance(factor, Blocks):
            found *= len(factor.labels)
        else:
            found *= sizes[factor] if isinstance(factor, str) else factor
    return found


class Panel(NamedTuple):
    """A stretch of an axis that a matrix acts on: `outer` times n entries, `inner` apart.

    Attributes:
        old: where it begins and ends on the old axis.
        new: where on the new one.
        outer: how many times the width stands in it.
        inner: how many entries each unit has.
        matrix: (n, N) of float64; None where the entries stay.
    """

    old: slice
    new: slice
    outer: int
    inner: int
    matrix: Matrix | None


def panels(
    axis: Axis, sizes: Mapping[str, int], matrices: Mapping[str, Matrix]
) -> tuple[Panel, ...]:
    """Cut an axis into stretches on each of which one matrix acts, or none.

    The matrices act on one width at a time, and on widths that stand in no brackets.

    Raises:
        ValueError: a matrix would have to act inside brackets, or twice in a product.
    """
    new_sizes = {
        name: matrices[name].shape[1] if name in matrices else sizes[name] for name in sizes
    }
    found = []
    begin = old_begin = 0
    for term in axis.terms:
        length, old_length = _length(term, new_sizes), _length(term, sizes)
        dense = [place for place, factor in enumerate(term) if factor in matrices]
        inside = any(
            isinstance(f, Axis) and not matrices.keys().isdisjoint(f.widths()) for f in term
        )
        if inside or len(dense) > 1:
            raise ValueError(str(axis))
        old, new = slice(old_begin, old_begin + old_length), slice(begin, begin + length)
        if dense:
            place = dense[0]
            outer, inner = _length(term[:place], sizes), _length(term[place + 1 :], sizes)
            name = term[place]
            assert isinstance(name, str)
            found.append(Panel(old, new, outer, inner, matrices[name]))
        else:
            found.append(Panel(old, new, 1, old_length, None))
        begin += length
        old_begin += old_length
    return tuple(found)
