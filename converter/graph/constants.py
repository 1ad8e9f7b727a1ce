"""The constants of a graph: what the TensorProto of a `Const` holds.

A graph may hold tens of thousands, most of them a few numbers, and anything of any size. So there
are two ways: numbers, which the protobuf runtime reads at once where they are few, and arrays of
any dtype, of which nothing but the layout is looked at before they are known to be small.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from converter.dtype import BY_TENSORFLOW
from converter.formats.messages import parse
from converter.formats.tensor_proto import TensorProto, Values, walk
from converter.formats.wire import BYTES, Field, Source
from converter.graph.node import Node, shape_of, texts
from converter.variable import Array, whole

_MAX_VALUES = 4096
_MAX_ENTRIES = 1 << 16
_FIELDS = {
    "float32": "float_val",
    "float64": "double_val",
    "int64": "int64_val",
    "bool": "bool_val",
}


class Constant(NamedTuple):
    """A constant: its shape, and its values in the order of memory where they are few.

    Attributes:
        is_whole: whether its values are integers or truths.
    """

    shape: tuple[int, ...]
    values: tuple[float, ...] | None
    is_whole: bool = False


def read_constant(node: Node, path: Path) -> Constant | None:
    """Return a constant whose values are wanted where they are few; None for none of numbers.

    Args:
        node: any node.
        path: the file of its graph.

    Raises:
        InputError: it is damaged.
    """
    data = _data(node)
    if data is None:
        return None
    subject = _subject(node, path)
    if len(data) > 16 * _MAX_VALUES:
        sizes = _sizes(parse("TensorHead", data, subject))
        return None if sizes is None else Constant(sizes, None)
    proto = parse("TensorProto", data, subject)
    sizes, dtype = _sizes(proto), BY_TENSORFLOW.get(proto.dtype)
    if sizes is None:
        return None
    count = math.prod(sizes)
    if dtype is None or not dtype.is_number or count > _MAX_VALUES or "complex" in dtype.name:
        return Constant(sizes, None)
    if proto.tensor_content:
        if dtype.numpy is None or len(proto.tensor_content) != count * dtype.itemsize:
            return Constant(sizes, None)
        values = np.frombuffer(proto.tensor_content, dtype.numpy).astype(dtype.wide).tolist()
    elif proto.half_val:
        values = (
            np.array(proto.half_val, "<u2").view(dtype.numpy or "<f2").astype(dtype.wide).tolist()
        )
    else:
        values = list(getattr(proto, _FIELDS.get(dtype.name, "int_val")))
    if len(values) > count:
        return Constant(sizes, None)
    # TensorFlow leaves out what repeats the last value, and zeros altogether.
    values = (*values, *(values[-1:] or [0]) * (count - len(values)))
    return Constant(sizes, values, "int" in dtype.name or dtype.name == "bool")


def _sizes(proto: Any) -> tuple[int, ...] | None:
    shape = shape_of(proto.tensor_shape)
    return None if shape is None or None in shape else tuple(size or 0 for size in shape)


def read_strings(node: Node, path: Path) -> list[str]:
    """Return the texts that a constant holds; none where it is no such constant.

    Raises:
        InputError: it is damaged.
    """
    data = _data(node)
    if data is None:
        return []
    return list(texts(parse("TensorProto", data, _subject(node, path)).string_val))


def read_array(node: Node, path: Path) -> Array | None:
    """Return the value of a constant of moderate size; None for any other node.

    Raises:
        InputError: it is damaged.
    """
    proto = _walked(node, path)
    if proto is None or proto.dtype is None or proto.dtype.numpy is None:
        return None
    if math.prod(proto.shape) > _MAX_ENTRIES:
        return None
    return Values(proto, proto.dtype, proto.shape, repeat=True).load(whole(proto.shape))


def read_shape(node: Node, path: Path) -> tuple[int, ...] | None:
    """Return the shape of a constant, of whatever size; None for any other node.

    Raises:
        InputError: it is damaged.
    """
    proto = _walked(node, path)
    return None if proto is None else proto.shape


def _walked(node: Node, path: Path) -> TensorProto | None:
    data = _data(node)
    if data is None:
        return None
    source = Source(lambda start, size: data[start : start + size], len(data), _subject(node, path))
    return walk(Field(source, 0, BYTES, 0, 0, len(data)))


def _data(node: Node) -> bytes | None:
    value = node.attributes.get("value") if node.op == "Const" else None
    return None if value is None else value.tensor


def _subject(node: Node, path: Path) -> str:
    return f"{path}: the constant {node.name}"
