"""Reads any region of a C-ordered array that lies in a file, in bounded memory."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from converter.errors import InputError
from converter.variable import BLOCK_BYTES, Array, Region, shape_of

Buffer = bytes | bytearray | memoryview
Read = Callable[[int, int], Buffer]
"""Gives `size` bytes from `start` on: `read(start, size)`."""

GAP_BYTES = 64 << 10
"""Bytes between two runs that are cheaper to read along than to skip with a second call."""


class DataFile:
    """A file that is read by position.

    It is opened for each read and closed at once: that costs ten microseconds beside blocks of
    megabytes, and a checkpoint of ten thousand shards needs one descriptor.

    Attributes:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @cached_property
    def size(self) -> int:
        """Bytes of the file when it was first asked for.

        Raises:
            InputError: there is no such file.
        """
        try:
            return self.path.stat().st_size
        except (OSError, ValueError) as error:
            raise self._unreadable(error) from None

    def read(self, offset: int, size: int) -> bytes:
        """Return `size` bytes from `offset` on.

        Raises:
            InputError: the file is missing, unreadable, or ends before.
        """
        if size == 0:
            return b""
        # The size decides first, so that a damaged header cannot ask for an allocation.
        if offset < 0 or offset + size > self.size:
            raise self._too_short(offset + size)
        try:
            with self.path.open("rb", buffering=0) as file:
                file.seek(offset)
                data = file.read(size)
                if len(data) < size:
                    # One call gives 2 GiB at most.
                    data = b"".join([data, *_rest(file.read, size - len(data))])
        except OSError as error:
            raise self._unreadable(error) from None
        if len(data) < size:
            raise self._too_short(offset + size)
        return data

    def _too_short(self, needed: int) -> InputError:
        return InputError(
            f"{self.path}: the file has {self.size} bytes where {needed} are needed; "
            "it is cut short or belongs to another checkpoint"
        )

    def _unreadable(self, error: Exception) -> InputError:
        if isinstance(error, FileNotFoundError):
            return InputError(f"{self.path}: the file is missing")
        reason = error.strerror if isinstance(error, OSError) else None
        return InputError(f"{self.path}: the file cannot be read ({reason or error})")


def _rest(read: Callable[[int], bytes], size: int) -> Iterator[bytes]:
    while size and (data := read(size)):
        yield data
        size -= len(data)


def read_region(read: Read, shape: Sequence[int], dtype: np.dtype[Any], region: Region) -> Array:
    """Return a region of a C-ordered array, reading not much more than its bytes.

    A region that is one run of bytes is read at once. Others are read in spans of at most
    BLOCK_BYTES that hold several runs and the gaps between them, unless a gap is larger than
    GAP_BYTES: so a panel of columns is not read row by row.

    Args:
        read: gives bytes; positions count from the first byte of the value.
        shape: of the whole array.
        dtype: of the elements as they are stored.
        region: which part; one slice with explicit start and stop for each axis.

    Returns:
        An array of the region's shape, in any memory layout, possibly read-only.
    """
    wanted = shape_of(region)
    if 0 in wanted:
        return np.empty(wanted, dtype)
    strides = _strides(shape, dtype.itemsize)
    first = sum(part.start * stride for part, stride in zip(region, strides, strict=True))
    # spans[k]: bytes from the first to the last element, the axes before k at one index.
    spans = [dtype.itemsize]
    for size, stride in zip(reversed(wanted), reversed(strides), strict=True):
        spans.insert(0, spans[0] + (size - 1) * stride)

    def view(shape: Sequence[int], start: int, size: int) -> Array:
        values: Array = np.ndarray(shape, dtype, buffer=read(start, size), strides=strides)
        return values

    if spans[0] == dtype.itemsize * math.prod(wanted):
        return view(wanted, first, spans[0])
    axis = _cut_axis(wanted, strides, spans)
    step = 1 + (BLOCK_BYTES - spans[axis + 1]) // strides[axis]
    if math.prod(wanted[:axis]) == 1 and step >= wanted[axis]:
        return view(wanted, first, spans[0])
    values: Array = np.empty(wanted, dtype)
    for outer in itertools.product(*(range(size) for size in wanted[:axis])):
        base = first + sum(i * stride for i, stride in zip(outer, strides, strict=False))
        for low in range(0, wanted[axis], step):
            count = min(step, wanted[axis] - low)
            size = spans[axis + 1] + (count - 1) * strides[axis]
            part_shape = (*[1] * axis, count, *wanted[axis + 1 :])
            part = view(part_shape, base + low * strides[axis], size)
            place: tuple[Any, ...] = (*outer, slice(low, low + count))
            values[place] = part[(0,) * axis]
    return values


def _strides(shape: Sequence[int], itemsize: int) -> tuple[int, ...]:
    sizes = itertools.accumulate(reversed(shape), lambda a, b: a * b, initial=itemsize)
    return tuple(sizes)[-2::-1]


def _cut_axis(wanted: Sequence[int], strides: Sequence[int], spans: Sequence[int]) -> int:
    """Return the axis along which spans are cut: those before it are walked index by index."""
    cut = 0
    for axis, stride in enumerate(strides):
        is_wide = wanted[axis] > 1 and stride - spans[axis + 1] > GAP_BYTES
        if is_wide or spans[axis + 1] > BLOCK_BYTES:
            cut = axis + 1
    return cut
