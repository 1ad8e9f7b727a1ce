"""Variables that are made of blocks of others: concatenated, or one block of one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from converter.errors import PlanError
from converter.variable import Array, Region, Variable, shape_of


def concatenated(name: str, variables: Sequence[Variable], axis: int) -> Variable:
    """Return variables one after the other along an axis, under one name.

    Args:
        name: of the result.
        variables: at least one.
        axis: which one.

    Raises:
        PlanError: they are of several dtypes, or of shapes that differ elsewhere.
    """
    first = variables[0]
    for other in variables[1:]:
        if other.dtype != first.dtype:
            raise PlanError(
                f"{name}: {first.name} is {first.dtype} and {other.name} {other.dtype}, and they "
                f"cannot be one variable; cast one of them before"
            )
        if axis >= len(first.shape) or _without(other.shape, axis) != _without(first.shape, axis):
            raise PlanError(
                f"{name}: {first.name} is {list(first.shape)} and {other.name} "
                f"{list(other.shape)}, which cannot be joined along axis {axis}"
            )
    if len(variables) == 1:
        return first.rename(name)
    ends = np.cumsum([variable.shape[axis] for variable in variables]).tolist()
    starts = [0, *ends[:-1]]
    shape = (*first.shape[:axis], ends[-1], *first.shape[axis + 1 :])
    pieces = tuple(zip(starts, ends, variables, strict=True))

    def load(region: Region) -> Array:
        wanted = region[axis]
        found = [
            variable.read(_moved(region, axis, max(wanted.start, start), wanted.stop, start, end))
            for start, end, variable in pieces
            if max(wanted.start, start) < min(wanted.stop, end)
        ]
        if not found:
            return np.empty(shape_of(region), first.dtype.numpy)
        return found[0] if len(found) == 1 else np.concatenate(found, axis)

    sources = tuple(dict.fromkeys(s for variable in variables for s in variable.sources))
    joined = first.derive(load, shape=shape)
    return replace(joined, name=name, sources=sources)


def _without(shape: Sequence[int], axis: int) -> tuple[int, tuple[int, ...]]:
    """Return how many axes a shape has, and the others than one."""
    return len(shape), (*shape[:axis], *shape[axis + 1 :])


def _moved(region: Region, axis: int, first: int, last: int, start: int, end: int) -> Region:
    own = slice(first - start, min(last, end) - start)
    return (*region[:axis], own, *region[axis + 1 :])


def block(name: str, variable: Variable, axis: int, start: int, stop: int) -> Variable:
    """Return the indices `start` to `stop` of an axis as a variable of its own."""
    if (start, stop) == (0, variable.shape[axis]):
        return variable.rename(name)

    def load(region: Region) -> Array:
        own = slice(region[axis].start + start, region[axis].stop + start)
        return variable.read((*region[:axis], own, *region[axis + 1 :]))

    shape = (*variable.shape[:axis], stop - start, *variable.shape[axis + 1 :])
    return variable.derive(load, shape=shape).rename(name)


def even_sizes(total: int, count: int) -> tuple[int, ...]:
    """Return the sizes of `count` blocks of an axis as TensorFlow 1 partitions it."""
    return tuple(total // count + (index < total % count) for index in range(count))
