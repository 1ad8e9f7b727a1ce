"""The constants of a graph at other sizes: from one TensorProto to another."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from converter.dtype import STRING, DType
from converter.errors import InputError, PlanError
from converter.formats.messages import message, parse
from converter.formats.tensor_proto import TensorProto, Values, walk
from converter.formats.wire import BYTES, Field, Source
from converter.variable import Array

MAX_ENTRIES = 1 << 28
_VERSION = 3  # the last field of a TensorProto before those that hold values
# What one value for all entries is written in.
_SINGLE = {
    "float32": "float_val",
    "float64": "double_val",
    "int32": "int_val",
    "int16": "int_val",
    "int8": "int_val",
    "uint8": "int_val",
    "int64": "int64_val",
    "bool": "bool_val",
    "float16": "half_val",
    "bfloat16": "half_val",
}


class Constant:
    """The value of a constant.

    Args:
        data: a TensorProto.
        subject: begins the message of every error.

    Raises:
        InputError: it is damaged.
    """

    def __init__(self, data: bytes, subject: str) -> None:
        self._data = data
        self._subject = subject
        source = Source(lambda start, size: data[start : start + size], len(data), subject)
        self._proto: TensorProto = walk(Field(source, 8, BYTES, 0, 0, len(data)))
        self.shape = self._proto.shape

    @property
    def dtype(self) -> DType | None:
        """Its dtype; None where it is none whose values can be told."""
        dtype = self._proto.dtype
        return dtype if dtype is STRING or (dtype is not None and dtype.numpy) else None

    @property
    def is_one_value(self) -> bool:
        """Whether it is written as one value for all entries."""
        runs = [run for number, run in self._proto.runs.items() if number > _VERSION]
        single = [run for run in runs if run.singles + run.packed == 1]
        if self._proto.content is not None or len(runs) != len(single) or len(runs) > 1:
            return False
        return not runs or self._count() <= 1

    def _count(self) -> int:
        """Return how many values are written; strings and numbers that are not packed: one each."""
        head = parse("TensorProto", self._data, self._subject)
        lists = [getattr(head, name) for name in {*_SINGLE.values(), "string_val"}]
        return max(1, *(len(values) for values in lists))

    @cached_property
    def values(self) -> Array | None:
        """All values; None where they cannot be told, or are too many."""
        dtype, count = self.dtype, math.prod(self.shape)
        if dtype is None or count > MAX_ENTRIES:
            return None
        return Values(self._proto, dtype, self.shape, repeat=True).load(
            tuple(slice(0, size) for size in self.shape)
        )

    def entry(self, place: int) -> float | None:
        """Return one number of it."""
        return None if self.values is None else self.values.reshape(-1)[place].item()

    def with_entries(self, entries: Mapping[int, Any]) -> bytes:
        """Return it with others in some places of its memory.

        Raises:
            InputError: its values cannot be told.
            PlanError: its dtype cannot hold one of them.
        """
        if self.values is None or self.dtype is None:
            raise InputError(f"{self._subject}: its values cannot be told; it is damaged")
        values = self.values.copy()
        for place, entry in entries.items():
            if values.dtype.kind in "iu" and abs(entry) > np.iinfo(values.dtype).max:
                raise PlanError(
                    f"{self._subject} is {self.dtype}, which cannot hold {entry}; choose a smaller "
                    "size, or leave the graph out (--to safetensors)"
                )
            values.reshape(-1)[place] = entry
        return _encoded(values, self.dtype)

    def filled(self, shape: Sequence[int]) -> bytes | None:
        """Return it with another shape; None where its entries are not all the same."""
        if self.is_one_value:
            return self._shaped(shape)
        if self.values is None or self.dtype is None or self.dtype.name not in _SINGLE:
            return None
        value = _single(self.values)
        return None if value is None else _filled(value, shape, self.dtype)

    def empty(self, shape: Sequence[int]) -> bytes:
        """Return zeros of another shape in its dtype."""
        proto = message("TensorProto")(dtype=parse("TensorProto", self._data, self._subject).dtype)
        _set_shape(proto, shape)
        return bytes(proto.SerializeToString())

    def is_alike(self, places: Sequence[Array | None]) -> bool:
        """Whether it is the same when each axis is indexed; None leaves an axis."""
        return self.values is not None and all(
            bool(np.array_equal(np.take(self.values, index, axis), self.values))
            for axis, index in enumerate(places)
            if index is not None
        )

    def taken(self, places: Sequence[Array | None]) -> bytes | None:
        """Return it with each axis indexed; None where its values cannot be told."""
        values = self.values
        if values is None or self.dtype is None:
            return None
        for axis, index in enumerate(places):
            if index is not None:
                values = np.take(values, index, axis)
        return _encoded(values, self.dtype)

    def _shaped(self, shape: Sequence[int]) -> bytes:
        proto = parse("TensorProto", self._data, self._subject)
        _set_shape(proto, shape)
        return bytes(proto.SerializeToString())


def _single(values: Array) -> Array | None:
    """Return the one value that all entries have."""
    if not values.size or values.dtype == object:
        return None
    first = values.reshape(-1)[:1]
    raw = np.ascontiguousarray(values).reshape(-1).view(np.uint8).reshape(-1, values.itemsize)
    return first if bool((raw == raw[0]).all()) else None


def _filled(value: Array, shape: Sequence[int], dtype: DType) -> bytes:
    proto = message("TensorProto")(dtype=dtype.tensorflow)
    _set_shape(proto, shape)
    name = _SINGLE[dtype.name]
    bits = value.view(np.uint16) if name == "half_val" else value
    getattr(proto, name).append(bits[0].item())
    return bytes(proto.SerializeToString())


def _encoded(values: Array, dtype: DType) -> bytes:
    proto = message("TensorProto")(dtype=dtype.tensorflow)
    _set_shape(proto, values.shape)
    if dtype is STRING:
        proto.string_val.extend(values.reshape(-1).tolist())
    else:
        proto.tensor_content = values.tobytes()
    return bytes(proto.SerializeToString())


def _set_shape(proto: Any, shape: Sequence[int]) -> None:
    proto.tensor_shape.Clear()
    for size in shape:
        proto.tensor_shape.dim.add(size=size)
