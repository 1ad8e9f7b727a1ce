"""Axes at two sizes: how long they were, how long they become, and which old entry is where."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from converter.structure.axes.axis import Axis
from converter.structure.axes.entries import entries
from converter.structure.lengths import Part
from converter.variable import Array


class Sizes:
    """The sizes of all widths before and after.

    Args:
        before: of every width.
        after: of every width.
        parts: the slices of partitioned variables, whose names stand in axes too.
    """

    def __init__(
        self, before: Mapping[str, int], after: Mapping[str, int], parts: Mapping[str, Part]
    ) -> None:
        self.before = dict(before)
        self.after = dict(after)
        for name, part in parts.items():
            self.before[name] = part.sizes[part.place]
            self.after[name] = shares(part.axis.size(after), part.sizes)[part.place]
        self.changed = {n for n, size in self.before.items() if self.after[n] != size}

    def lengths(self, axis: Axis) -> tuple[int, int]:
        """Return how long an axis was, and how long it becomes."""
        return axis.size(self.before), axis.size(self.after)

    def resized(self, axis: Axis, present: int) -> int | None:
        """Return what a number becomes that is the length of an axis, or its negative.

        None where it does not change, or is not the length.
        """
        if self.changed.isdisjoint(axis.widths()):
            return None
        before, after = self.lengths(axis)
        return {before: after, -before: -after}.get(present) if before else None

    def places(self, axis: Axis) -> Array:
        """Return for each new entry of an axis the old one that it repeats: of new units the last.

        Returns:
            int64 [new length].
        """
        changed = self.changed.intersection(axis.widths())
        last = {n: np.minimum(np.arange(self.after[n]), self.before[n] - 1) for n in changed}
        return entries(axis, last, self.before)

    def alike(self, axis: Axis) -> Array:
        """Return for each old entry of an axis that of the first unit of what changes.

        Returns:
            int64 [old length].
        """
        changed = self.changed.intersection(axis.widths())
        return entries(axis, {n: np.zeros(self.before[n], int) for n in changed}, self.before)


def shares(total: int, sizes: Sequence[int]) -> tuple[int, ...]:
    """Return how long the slices of an axis become that is `total` long now.

    They are as even as TensorFlow's partitioners make them, if they were; else they keep their
    parts of the whole.
    """
    count = len(sizes)
    if tuple(sizes) == _even(sum(sizes), count):
        return _even(total, count)
    ends = np.cumsum(sizes) * total // max(1, sum(sizes))
    return tuple(int(size) for size in np.diff(ends, prepend=0))


def _even(total: int, count: int) -> tuple[int, ...]:
    return tuple(total // count + (index < total % count) for index in range(count))
