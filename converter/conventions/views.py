"""Views: what a variable of the result is made of, without any values.

A view is told once and then made of several sets of variables: of the variables of the model, of
their moving averages, and of each slot of the optimizer.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from converter.formats.tiling import assemble
from converter.variable import Array, Region, Variable, shape_of, whole

Shape = tuple[int, ...]

AHEAD_BYTES = 16 << 20
"""How much of a variable is held while its columns are written as rows."""


class Taken(NamedTuple):
    """The variables that a view is made of.

    Attributes:
        of: gives the one that stands for a variable of the model, or None where there is none.
        is_model: whether these are the variables of the model themselves.
        is_slot: whether these are slots: then they follow gradients, not values.
        follows_values: of slots, whether values are in them all the same.
    """

    of: Callable[[str], Variable | None]
    is_model: bool = False
    is_slot: bool = False
    follows_values: bool = False


class View(ABC):
    """What a variable is made of."""

    # Fields in some views, computed in others. Properties here would be taken for the defaults of
    # those fields, so views that compute them override attributes: hence what mypy is told.
    shape: Shape
    sources: tuple[str, ...]

    @abstractmethod
    def make(self, taken: Taken) -> Variable | None:
        """Return the variable; None where what it is made of is not there or has no such slot."""


@dataclass(frozen=True)
class Whole(View):
    """A variable as it is."""

    name: str
    shape: Shape

    @property
    def sources(self) -> tuple[str, ...]:  # type: ignore[override]
        return (self.name,)

    def make(self, taken: Taken) -> Variable | None:
        found = taken.of(self.name)
        return found if found is not None and found.shape == self.shape else None


@dataclass(frozen=True)
class _Of(View):
    """A view of one view."""

    view: View

    @property
    def sources(self) -> tuple[str, ...]:  # type: ignore[override]
        return self.view.sources


@dataclass(frozen=True)
class _Part(_Of):
    axis: int
    start: int
    stop: int

    @property
    def shape(self) -> Shape:  # type: ignore[override]
        head, tail = self.view.shape[: self.axis], self.view.shape[self.axis + 1 :]
        return (*head, self.stop - self.start, *tail)

    def make(self, taken: Taken) -> Variable | None:
        made = self.view.make(taken)
        if made is None:
            return None
        below, axis, start = made.load, self.axis, self.start

        def load(region: Region) -> Array:
            moved = slice(region[axis].start + start, region[axis].stop + start)
            return below((*region[:axis], moved, *region[axis + 1 :]))

        return made.derive(load, shape=self.shape)


@dataclass(frozen=True)
class _Transposed(_Of):
    axes: tuple[int, ...]

    @property
    def shape(self) -> Shape:  # type: ignore[override]
        return tuple(self.view.shape[axis] for axis in self.axes)

    def make(self, taken: Taken) -> Variable | None:
        made = self.view.make(taken)
        if made is None:
            return None
        axes = self.axes
        # What is asked for comes in the order of the result: a few columns of the source each.
        below = _Ahead(made, axes[0]) if axes[0] != 0 and made.dtype.itemsize else made.load

        def load(region: Region) -> Array:
            places = dict(zip(axes, region, strict=True))
            values: Array = below(tuple(places[axis] for axis in range(len(axes))))
            turned: Array = values.transpose(axes)
            return turned

        return made.derive(load, shape=self.shape)


class _Ahead:
    """Loads more of a variable than is asked for, for what is asked for next.

    Args:
        variable: the variable.
        axis: the axis along which regions follow one another.
    """

    def __init__(self, variable: Variable, axis: int) -> None:
        self._variable = variable
        self._axis = axis
        each = max(1, variable.nbytes // max(1, variable.shape[axis]))
        self._count = max(1, AHEAD_BYTES // each)
        self._start = 0
        self._held: Array | None = None

    def __call__(self, region: Region) -> Array:
        axis, shape = self._axis, self._variable.shape
        wanted = region[axis]
        rest = (*region[:axis], *region[axis + 1 :])
        if rest != (*whole(shape[:axis]), *whole(shape[axis + 1 :])):
            return self._variable.load(region)
        held = self._held
        start = self._start
        if held is None or not start <= wanted.start <= wanted.stop <= start + held.shape[axis]:
            start = wanted.start
            stop = min(shape[axis], max(wanted.stop, start + self._count))
            held = self._variable.load((*region[:axis], slice(start, stop), *region[axis + 1 :]))
        # Behind the end nothing is asked for any more.
        is_last = wanted.stop == shape[axis]
        self._start, self._held = (0, None) if is_last else (start, held)
        part = slice(wanted.start - start, wanted.stop - start)
        places: Region = (*whole(held.shape[:axis]), part)
        values: Array = held[places]
        return values


@dataclass(frozen=True)
class _Reshaped(_Of):
    shape: Shape

    def make(self, taken: Taken) -> Variable | None:
        made = self.view.make(taken)
        if made is None:
            return None
        below, old, new = made.load, made.shape, self.shape

        def load(region: Region) -> Array:
            return _reshaped(below, old, new, region)

        return made.derive(load, shape=new)


def _reshaped(below: Callable[[Region], Array], old: Shape, new: Shape, region: Region) -> Array:
    """Return a region of a reshaped array, of no more rows of the old one than it touches."""
    wanted = shape_of(region)
    strides = [math.prod(new[axis + 1 :]) for axis in range(len(new))]
    row = math.prod(old[1:])
    if 0 in wanted or not old:
        return below(tuple(slice(0, 0 if 0 in wanted else size) for size in old)).reshape(wanted)
    first = sum(part.start * stride for part, stride in zip(region, strides, strict=True))
    last = sum((part.stop - 1) * stride for part, stride in zip(region, strides, strict=True))
    rows = slice(first // row, last // row + 1)
    flat = np.asarray(below((rows, *whole(old[1:]))), order="C").reshape(-1)
    held = flat[first - rows.start * row :]
    steps = tuple(stride * flat.itemsize for stride in strides)
    values: Array = np.lib.stride_tricks.as_strided(held, wanted, steps, writeable=False)
    return values


@dataclass(frozen=True)
class _Joined(View):
    views: tuple[View, ...]
    axis: int

    @property
    def shape(self) -> Shape:  # type: ignore[override]
        first = self.views[0].shape
        size = sum(view.shape[self.axis] for view in self.views)
        return (*first[: self.axis], size, *first[self.axis + 1 :])

    @property
    def sources(self) -> tuple[str, ...]:  # type: ignore[override]
        return tuple(dict.fromkeys(name for view in self.views for name in view.sources))

    def make(self, taken: Taken) -> Variable | None:
        parts = [part for view in self.views if (part := view.make(taken)) is not None]
        if len(parts) < len(self.views) or len({part.dtype.name for part in parts}) > 1:
            return None
        pieces = []
        start = 0
        for part in parts:
            stop = start + part.shape[self.axis]
            extent = list(whole(part.shape))
            extent[self.axis] = slice(start, stop)
            pieces.append((tuple(extent), part.load))
            start = stop
        dtype = np.dtype(parts[0].dtype.numpy)

        def load(region: Region) -> Array:
            return assemble(region, dtype, pieces)

        return _of_all(parts).derive(load, shape=self.shape)


@dataclass(frozen=True)
class _Shifted(_Of):
    number: float

    @property
    def shape(self) -> Shape:  # type: ignore[override]
        return self.view.shape

    def make(self, taken: Taken) -> Variable | None:
        made = self.view.make(taken)
        if made is None or taken.is_slot:
            return None if taken.follows_values else made
        number = self.number
        return made.map(lambda values: values + values.dtype.type(number))


@dataclass(frozen=True)
class _Sum(View):
    one: View
    other: View

    @property
    def shape(self) -> Shape:  # type: ignore[override]
        return self.one.shape

    @property
    def sources(self) -> tuple[str, ...]:  # type: ignore[override]
        return tuple(dict.fromkeys((*self.one.sources, *self.other.sources)))

    def make(self, taken: Taken) -> Variable | None:
        one, other = self.one.make(taken), self.other.make(taken)
        if taken.is_slot or one is None or other is None or one.dtype is not other.dtype:
            return None
        first, second = one.load, other.load

        def load(region: Region) -> Array:
            total: Array = first(region) + second(region)
            return total

        return _of_all([one, other]).derive(load)


@dataclass(frozen=True)
class Constant(View):
    """The same number everywhere.

    Attributes:
        shape: its shape.
        number: the number.
        like: what has its dtype, and which it stands beside.
    """

    shape: Shape
    number: float
    like: View

    @property
    def sources(self) -> tuple[str, ...]:  # type: ignore[override]
        return self.like.sources

    def make(self, taken: Taken) -> Variable | None:
        made = self.like.make(taken)
        if made is None or taken.is_slot:
            return None
        number, dtype = self.number, made.dtype.numpy

        def load(region: Region) -> Array:
            return np.full(shape_of(region), number, dtype)

        return made.derive(load, shape=self.shape)


@dataclass(frozen=True)
class Count(View):
    """An integer that is zero: how often something was counted, which no source says.

    Attributes:
        like: what it stands beside.
    """

    like: View
    shape: Shape = ()

    @property
    def sources(self) -> tuple[str, ...]:  # type: ignore[override]
        return self.like.sources

    def make(self, taken: Taken) -> Variable | None:
        made = self.like.make(taken)
        if made is None or not taken.is_model:
            return None
        zero = Variable.from_array(made.name, np.zeros((), np.int64))
        return replace(zero, sources=made.sources)


def _of_all(parts: Sequence[Variable]) -> Variable:
    """Return the first of several, with the sources of all."""
    names = dict.fromkeys(name for part in parts for name in part.sources)
    return replace(parts[0], sources=tuple(names))


def part(view: View, axis: int, start: int, stop: int) -> View:
    """Return what lies between two places of an axis, which may be counted from the end."""
    axis %= len(view.shape)
    return view if (start, stop) == (0, view.shape[axis]) else _Part(view, axis, start, stop)


def split(view: View, axis: int, count: int) -> list[View]:
    """Return the equal blocks of an axis."""
    size = view.shape[axis] // count
    return [part(view, axis, i * size, (i + 1) * size) for i in range(count)]


def joined(views: Sequence[View], axis: int) -> View:
    """Return views behind one another; what lies together in one variable is read at once."""
    if len(views) == 1:
        return views[0]
    axis %= len(views[0].shape)
    found: list[View] = []
    for view in views:
        last = found[-1] if found else None
        if (
            isinstance(last, _Part)
            and isinstance(view, _Part)
            and last.view == view.view
            and last.axis == view.axis == axis
            and last.stop == view.start
        ):
            found[-1] = part(last.view, axis, last.start, view.stop)
        else:
            found.append(view)
    return found[0] if len(found) == 1 else _Joined(tuple(found), axis)


def transposed(view: View, axes: Sequence[int] | None = None) -> View:
    """Return a view with its axes in another order; None turns them around."""
    order = tuple(axes) if axes is not None else tuple(range(len(view.shape)))[::-1]
    return view if order == tuple(range(len(order))) else _Transposed(view, order)


def reshaped(view: View, shape: Sequence[int]) -> View:
    """Return the same elements, in their order, as another shape."""
    return view if tuple(shape) == view.shape else _Reshaped(view, tuple(shape))


def shifted(view: View, number: float) -> View:
    """Return a view with a number added to its values, but not to the slots of them."""
    return _Shifted(view, number) if number else view


def added(one: View, other: View | None) -> View:
    """Return the sum of two views; None adds nothing."""
    return one if other is None else _Sum(one, other)
