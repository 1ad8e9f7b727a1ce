"""Queues that a rewritten graph fills, and what empties them."""

from __future__ import annotations

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


def emptying(tf: Any, queue: Queue) -> list[Any]:
    """Make the tensors that take all that is in a queue: its rows, how many count, and masks."""
    if queue.axis != -1:
        return [_looping(tf, queue)]
    types = [queue.dtype, tf.int32] if queue.keeps is None else [queue.dtype, tf.int32, tf.bool]
    shapes = [[None, queue.size], [2], [None]][: len(types)]
    handle = tf.raw_ops.PaddingFIFOQueueV2(
        component_types=types, shapes=shapes, shared_name=queue.name
    )
    size = tf.raw_ops.QueueSizeV2(handle=handle)
    return list(tf.raw_ops.QueueDequeueManyV2(handle=handle, n=size, component_types=types))


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


def _looping(tf: Any, queue: Queue) -> Any:
    """Make the tensor (rows, units) that takes all that is in a queue, by a loop.

    The units are on another axis than the last, where rows would be padded.
    """
    types = [queue.dtype] if queue.keeps is None else [queue.dtype, tf.bool]
    handle = tf.raw_ops.FIFOQueueV2(component_types=types, shared_name=queue.name)

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

    size = tf.raw_ops.QueueSizeV2(handle=handle)
    taken = tf.TensorArray(
        tf.as_dtype(queue.dtype),
        size + 1,
        element_shape=[None, queue.size],
        infer_shape=False,
        clear_after_read=False,
    )
    # Of no rows at all the concatenation would not know how long they are.
    taken = taken.write(0, tf.zeros([0, queue.size], queue.dtype))
    _, taken = tf.compat.v1.while_loop(
        lambda number, _: number < size, take, [0, taken], parallel_iterations=1
    )
    return taken.concat()
