"""Queues that a rewritten graph fills, and what empties them.

They are what TensorFlow stages: its own queues take several times as long to put something in, and
give several elements at once only where they are of one shape, or as parts of the largest.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from converter.variable import Array

_STEPS = (16, 4, 1)  # elements that are taken at once: more of them leave the caches
_ITEMS_ALONE = 1 << 12  # of a tensor, that is taken as it is sooner than it is joined with others

Masked = tuple[Array, Array | None]
"""A tensor, and which of its rows are masked: a bool for each, or for as many of them in a row."""


@dataclass(frozen=True, slots=True)
class Queue:
    """A queue that a rewritten graph puts several tensors into at once.

    Attributes:
        name: its shared name.
        dtypes: TensorFlow's number of the dtype of each of them, and of their mask.
        columns: of each of them the size of its last axis, by which it is had as rows; None to have
            it as it is.
        is_masked: whether a mask of their first axes comes after them.
    """

    name: str
    dtypes: Sequence[int]
    columns: Sequence[int | None]
    is_masked: bool


@dataclass(frozen=True, slots=True)
class Taking:
    """Tensors that take several elements of a queue.

    Attributes:
        tensors: of each place of an element, the rows of all elements, or a tensor of each.
        mask: of all elements, flat; nothing where there is none.
        shapes: of the mask of each element, and then of the rows in each place that are had as
            such; nothing where there is no mask.
        are_joined: for each place, whether it has the rows of all elements.
    """

    tensors: Sequence[Sequence[Any]]
    mask: Sequence[Any]
    shapes: Sequence[Any]
    are_joined: Sequence[bool]

    @property
    def fetches(self) -> list[Any]:
        """All that is computed."""
        return [*(tensor for of in self.tensors for tensor in of), *self.mask, *self.shapes]

    def places(self, found: Sequence[Array]) -> list[list[Masked]]:
        """Return what was taken for each place, from the values of `fetches`."""
        rest = iter(found)
        values = [[next(rest) for _ in of] for of in self.tensors]
        if not self.mask:
            return [[(value, None) for value in of] for of in values]
        mask, of_mask = next(rest), next(rest).reshape(-1)
        single = np.split(mask, np.cumsum(of_mask)[:-1])
        return [
            [(of[0], _of_rows(mask, of_mask, next(rest).reshape(-1, 2)[:, 0]))]
            if are_joined
            else list(zip(of, single, strict=True))
            for of, are_joined in zip(values, self.are_joined, strict=True)
        ]


def _of_rows(mask: Array, of_mask: Array, rows: Array) -> Array:
    """Return a bool for each row of several elements, from those that stand for some in a row."""
    if (rows == of_mask).all():
        return mask
    return np.repeat(mask, np.repeat(rows // np.maximum(of_mask, 1), of_mask))


class Emptying:
    """What empties a queue of the graph that is the default one.

    Args:
        queue: which.

    Attributes:
        queue: as above.
        size: a tensor; how many elements are in it.
        first: tensors; the first of them, which stays in it.
    """

    def __init__(self, tf: Any, queue: Queue) -> None:
        of = {"dtypes": queue.dtypes, "shared_name": queue.name}
        self.queue = queue
        self.size = tf.raw_ops.StageSize(**of)
        self.first = tf.raw_ops.StagePeek(index=0, **of)
        self._taking: dict[int, Taking] = {}

    @property
    def is_made(self) -> bool:
        """Whether there are tensors that take what is in it."""
        return bool(self._taking)

    def make(self, tf: Any, first: Sequence[Array]) -> None:
        """Make the tensors that take what is in it.

        Args:
            first: the first element.
        """
        self._taking = {number: _taking(tf, self.queue, first, number) for number in _STEPS}

    def steps(self, count: int) -> Iterator[Taking]:
        """Yield what is to be run to take so many elements."""
        for number, taking in self._taking.items():
            times, count = divmod(count, number)
            yield from [taking] * times


def _taking(tf: Any, queue: Queue, first: Sequence[Array], number: int) -> Taking:
    elements: list[Any] = []
    for _ in range(number):
        # One after the other: the same data are to be added in the same order every time.
        with tf.control_dependencies(elements[-1] if elements else ()):
            elements.append(tf.raw_ops.Unstage(dtypes=queue.dtypes, shared_name=queue.name))
    places = list(zip(*elements, strict=True))
    masks = [_reshaped(tf, places.pop(), [-1], first[-1])] if queue.is_masked else []
    tensors: list[Sequence[Any]] = []
    shapes = [_shapes(tf, of) for of in masks]
    are_joined = []
    for of, size, value in zip(places, queue.columns, first, strict=False):
        are_joined.append(size is not None and value.size < _ITEMS_ALONE)
        if size is None or not are_joined[-1]:
            tensors.append(of)
            continue
        rows = _reshaped(tf, of, [-1, size], value)
        tensors.append([_joined(tf, rows)])
        shapes += [_shapes(tf, rows) for _ in masks]
    joined = [_joined(tf, of) for of in masks]
    return Taking(tensors, joined, shapes, are_joined)


def _reshaped(tf: Any, tensors: Sequence[Any], shape: Sequence[int], like: Array) -> Sequence[Any]:
    if like.ndim == len(shape) and shape[-1] in (-1, like.shape[-1]):
        return tensors
    wanted = tf.constant(shape)
    return [tf.raw_ops.Reshape(tensor=tensor, shape=wanted) for tensor in tensors]


def _joined(tf: Any, tensors: Sequence[Any]) -> Any:
    return tensors[0] if len(tensors) == 1 else tf.raw_ops.ConcatV2(values=tensors, axis=0)


def _shapes(tf: Any, tensors: Sequence[Any]) -> Any:
    return _joined(tf, tf.raw_ops.ShapeN(input=tensors))
