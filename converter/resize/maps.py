"""What becomes of an axis that is made of widths."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np

from converter.resize.units import MOST_RUNS, Matrix, Run, Units
from converter.structure.axes.axis import Axis, Factor, Term, term_size
from converter.variable import Array


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
        # Of its own widths alone: a checkpoint has thousands of variables and of widths.
        self._new = {n: units[n].size if n in units else sizes[n] for n in axis.widths()}
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
            begin += term_size(term, self._new)
            old += term_size(term, self._old)
        return found

    def _runs_of_term(self, term: Term) -> list[Run] | None:
        length = term_size(term, self._new)
        if not self._changes(term):
            return [Run(0, length, 0)] if length else []
        head, rest = term[:1], term[1:]
        runs = self._runs_of_factor(head[0])
        if runs is None:
            return None
        inner, old_inner = term_size(rest, self._new), term_size(rest, self._old)
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
        return [Run(0, term_size((factor,), self._new), 0)]

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
            end = begin + term_size(term, self._new)
            here = (places >= begin) & (places < end)
            if here.all() or here.any():
                found, factor = self._of_term(term, places[here] - begin)
                index[here] = np.where(found < 0, -1, found + old_begin)
                weight[here] = factor
            begin = end
            old_begin += term_size(term, self._old)
        return index, weight

    def _of_term(self, term: Term, places: Array) -> tuple[Array, Array]:
        index = np.zeros(places.shape, np.int64)
        weight = np.ones(places.shape)
        inner = term_size(term, self._new)
        for factor in term:
            inner //= max(1, term_size((factor,), self._new))
            digit, places = np.divmod(places, max(1, inner))
            found, more = self._of_factor(factor, digit)
            index = np.where(
                (index < 0) | (found < 0), -1, index * term_size((factor,), self._old) + found
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
        end = begin + term_size(term, sizes)
        here = (places >= begin) & (places < end)
        rest, inner = places[here] - begin, end - begin
        found = np.full(rest.shape, -1)
        for factor in term:
            inner //= max(1, term_size((factor,), sizes))
            digit, rest = np.divmod(rest, max(1, inner))
            if factor == name:
                found = digit
            elif isinstance(factor, Axis):
                within = _owners(factor, sizes, name, digit)
                found = np.where(within < 0, found, within)
        owner[here] = found
        begin = end
    return owner


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
        length, old_length = term_size(term, new_sizes), term_size(term, sizes)
        dense = [place for place, factor in enumerate(term) if factor in matrices]
        inside = any(
            isinstance(f, Axis) and not matrices.keys().isdisjoint(f.widths()) for f in term
        )
        if inside or len(dense) > 1:
            raise ValueError(str(axis))
        old, new = slice(old_begin, old_begin + old_length), slice(begin, begin + length)
        if dense:
            place = dense[0]
            outer, inner = term_size(term[:place], sizes), term_size(term[place + 1 :], sizes)
            name = term[place]
            assert isinstance(name, str)
            found.append(Panel(old, new, outer, inner, matrices[name]))
        else:
            found.append(Panel(old, new, 1, old_length, None))
        begin += length
        old_begin += old_length
    return tuple(found)
