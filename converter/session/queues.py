"""Queues that a rewritten graph fills, and what empties them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from converter.variable import Array


@dataclass(frozen=True, slots=True)
class Queue:
    """A queue that a rewritten graph puts the values of a tensor into.

    Attributes:
        name: its shared name.
        dtype: TensorFlow's number for the dtype of what is in it.
        axis: that holds the units.
        size: of this axis.
        keeps: the value for which a row counts of the mask that is put in with each tensor; None
            where there is no mask.
    """

    name: str
    dtype: int
    axis: int
    size: int
    keeps: bool | None


@dataclass(frozen=True, slots=True)
class Emptying:
    """Tensors that empty a queue.

    Attributes:
        queue: which.
        size: how many tensors are in it.
        count: is fed with how many are taken.
        taken: their rows, how many of them count, and masks.
    """

    queue: Queue
    size: Any
    count: Any
    taken: Sequence[Any]


def emptying(tf: Any, queue: Queue) -> Emptying:
    """Make the tensors that empty a queue."""
    types = [queue.dtype] if queue.axis != -1 else [queue.dtype, tf.int32]
    types += [] if queue.keeps is None else [tf.bool]
    count = tf.compat.v1.placeholder(tf.int32, [])
    if queue.axis != -1:
        handle = tf.raw_ops.FIFOQueueV2(component_types=types, shared_name=queue.name)
        taken = [_looping(tf, queue, handle, types, count)]
    else:
        handle = tf.raw_ops.PaddingFIFOQueueV2(
            component_types=types,
            shapes=[[None, queue.size], [2], [None]][: len(types)],
            shared_name=queue.name,
        )
        taken = tf.raw_ops.QueueDequeueManyV2(handle=handle, n=count, component_types=types)
    return Emptying(queue, tf.raw_ops.QueueSizeV2(handle=handle), count, list(taken))


def counted(
    queue: Queue, values: Array, shapes: Array | None = None, mask: Array | None = None
) -> Array:
    """Return the rows that count of what was in a queue, which is padded to the longest."""
    if shapes is None:
        return values
    rows = shapes[:, :1]
    if mask is None and (rows == values.shape[1]).all():
        return values.reshape(-1, queue.size)
    counts = np.arange(values.shape[1]) < rows
    if mask is not None and mask.shape[1]:
        # A mask is for the first axis, and stands for all rows behind it.
        counts &= np.repeat(mask == queue.keeps, values.shape[1] // mask.shape[1], axis=1)
    return values[counts]


def _looping(tf: Any, queue: Queue, handle: Any, types: Sequence[Any], count: Any) -> Any:
    """Make the tensor (rows, units) of as many tensors as a queue is to give, by a loop.

    The units are on another axis than the last, where rows would be padded.
    """

    def take(number: Any, taken: Any) -> tuple[Any, Any]:
        value, *mask = tf.raw_ops.QueueDequeueV2(handle=handle, component_types=types)
        if mask:
            counted = tf.reshape(tf.equal(mask[0], queue.keeps), [-1])
            value = tf.gather(value, tf.where(counted)[:, 0])
        rank = tf.rank(value)
        axis = tf.math.floormod(queue.axis, rank)
        order = [tf.range(axis), tf.range(axis + 1, rank), [axis]]
        value = tf.transpose(value, tf.concat(order, 0))
        return number + 1, taken.write(number + 1, tf.reshape(value, [-1, queue.size]))

    taken = tf.TensorArray(
        tf.as_dtype(queue.dtype),
        count + 1,
        element_shape=[None, queue.size],
        infer_shape=False,
        clear_after_read=False,
    )
    # Of no rows at all the concatenation would not know how long they are.
    taken = taken.write(0, tf.zeros([0, queue.size], queue.dtype))
    _, taken = tf.compat.v1.while_loop(
        lambda number, _: number < count, take, [0, taken], parallel_iterations=1
    )
    return taken.concat()
