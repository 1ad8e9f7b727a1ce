"""TensorProto: the values of V1 checkpoints and of graph constants, read where they lie.

A TensorProto holds raw bytes (`tensor_content`), or one repeated field for each family of
dtypes, packed or not. Fixed-width fields that are packed in one piece are the raw bytes of the
value too; everything else is decoded window by window, so that memory does not grow with size.

References:
    tensorflow/core/framework/tensor.proto; the reader is `Tensor::FromProto` in tensor.cc.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import NamedTuple

import numpy as np

from converter.dtype import BY_TENSORFLOW, STRING, DType
from converter.errors import InputError
from converter.formats.region import read_region
from converter.formats.repeated import WIDTHS, Repeated
from converter.formats.wire import BYTES, FIXED32, FIXED64, MAX_VARINT, VARINT, Field, varints
from converter.variable import Array, Region

_DTYPE, _SHAPE, _CONTENT, _STRINGS = 1, 2, 4, 8
_MAX_RANK = 32  # numpy's own limit, before its version 2
_MAX_REPEATED_STRINGS = 1 << 20


class _Encoding(NamedTuple):
    """How values of a dtype are told: as items, of which a complex number takes two."""

    number: int
    kind: int
    width: int  # bytes of an item in memory


_FIXED = {
    "float32": _Encoding(5, FIXED32, 4),
    "float64": _Encoding(6, FIXED64, 8),
    "complex64": _Encoding(9, FIXED32, 4),
    "complex128": _Encoding(12, FIXED64, 8),
}
_VARINTS = {"int64": 10, "bool": 11, "uint32": 16, "uint64": 17, "float16": 13, "bfloat16": 13}
_INT_VAL, _FLOAT8_VAL = 7, 18


def _encoding(dtype: DType) -> _Encoding:
    if dtype.name in _FIXED:
        return _FIXED[dtype.name]
    if dtype.name.startswith(("float8", "float4")):
        return _Encoding(_FLOAT8_VAL, BYTES, 1)
    return _Encoding(_VARINTS.get(dtype.name, _INT_VAL), VARINT, dtype.itemsize)


def _bits(dtype: DType, values: Array) -> Array:
    """Return what varints say as the bytes that the elements have in memory.

    Negative numbers are sign-extended to 64 bits on the wire, halves stand as their bits.
    """
    if dtype.name == "bool":
        values = values != 0
    if dtype.name in ("int4", "uint4", "int2", "uint2"):
        values &= np.uint64(15 if dtype.name.endswith("4") else 3)
    return values.astype(f"<u{dtype.itemsize}")


@dataclass(slots=True)
class _Run:
    """What a message holds of one repeated field."""

    first: Field
    singles: int = 0
    packed: int = 0
    packed_bytes: int = 0


@dataclass(slots=True)
class TensorProto:
    """A TensorProto that has been walked, but not read.

    Attributes:
        message: where it lies.
        dtype: its dtype, or None where it does not say one that a checkpoint can hold.
        shape: its shape; `()` where it does not say one.
        content: `tensor_content`, or None where there are no such bytes.
    """

    message: Field
    dtype: DType | None = None
    shape: tuple[int, ...] = ()
    content: Field | None = None
    runs: dict[int, _Run] = field(default_factory=dict)


def walk(message: Field) -> TensorProto:
    """Find what a TensorProto holds.

    Raises:
        InputError: it is damaged.
    """
    proto = TensorProto(message)
    for entry in message.message():
        if entry.number == _DTYPE:
            proto.dtype = read_dtype(entry)
        elif entry.number == _SHAPE:
            proto.shape = read_shape(entry)
        elif entry.number == _CONTENT:
            proto.content = entry.expect(BYTES) if entry.size else None
        else:
            run = proto.runs.setdefault(entry.number, _Run(entry))
            run.packed += entry.kind == BYTES
            run.packed_bytes += entry.size if entry.kind == BYTES else 0
            run.singles += entry.kind != BYTES
    return proto


def read_dtype(entry: Field) -> DType | None:
    """Return the dtype that a DataType field says, or None for one that we do not know."""
    number = entry.integer()
    # 101 and above are references to values of that dtype; files are not expected to have them.
    return BY_TENSORFLOW.get(number - 100 if number > 100 else number)


def read_shape(entry: Field) -> tuple[int, ...]:
    """Return the shape that a TensorShapeProto holds.

    Raises:
        InputError: the rank is not known, an axis is negative, or there are too many.
    """
    shape: list[int] = []
    for dim in entry.message():
        if dim.number == 3 and dim.integer():
            raise entry.source.damaged(entry.start, "the shape has no known rank")
        if dim.number == 2:
            sizes = [size.integer() for size in dim.message() if size.number == 1]
            shape.append(sizes[-1] if sizes else 0)
    if len(shape) > _MAX_RANK or any(size < 0 for size in shape):
        raise entry.source.damaged(entry.start, f"there is no array of shape {shape[:40]}")
    return tuple(shape)


def check_size(shape: Sequence[int], dtype: DType, subject: str) -> None:
    """Check that an array of a shape can be, before anything is made of it.

    Raises:
        InputError: it has more bytes than can be counted.
    """
    # Zeros do not make it small: numpy multiplies the other axes too.
    if math.prod(size or 1 for size in shape) * max(1, dtype.itemsize) >= 1 << 62:
        raise InputError(f"{subject}: there is no {dtype} array of shape {list(shape)}")


class Values:
    """The values of a TensorProto.

    Attributes:
        proto: the message.
        dtype: of the elements.
        shape: of the array.
        repeat: whether the last of fewer values stands for all that follow, no values for zeros,
            and surplus values for nothing, as in graph constants; otherwise both are damage.
        raw: the field whose bytes are the C-ordered little-endian value, or None.
    """

    def __init__(
        self, proto: TensorProto, dtype: DType, shape: Sequence[int], *, repeat: bool
    ) -> None:
        self.proto = proto
        self.dtype = dtype
        self.shape = tuple(shape)
        self.repeat = repeat
        check_size(shape, dtype, proto.message.source.subject)
        self._count = math.prod(shape)
        self._encoding = _encoding(dtype)
        self.raw = self._find_raw()

    def load(self, region: Region) -> Array:
        """Return the values of a region.

        Raises:
            InputError: there are fewer or more values than there should be, or they are damaged.
        """
        if self.dtype is STRING:
            strings = self._strings()
            values: Array = np.empty(len(strings), object)
            values[:] = strings
            # asarray, because indexing a scalar gives the bytes themselves.
            return np.asarray(values.reshape(self.shape)[region], object)
        assert self.dtype.numpy is not None
        return read_region(self._read, self.shape, self.dtype.numpy, region)

    def check(self) -> None:
        """Check what sizes tell without decoding.

        Raises:
            InputError: there cannot be as many values as there should be.
        """
        content, run = self.proto.content, self.proto.runs.get(self._field)
        if content is not None:
            if self.dtype is not STRING and content.size != self._count * self.dtype.itemsize:
                raise self._wrong_count(f"{content.size} bytes")
            return
        if self.repeat:
            return
        least = most = 0
        if run is not None and self.dtype is STRING:
            least = most = run.packed
        elif run is not None:
            width = WIDTHS.get(self._encoding.kind)
            least = run.singles + run.packed_bytes // (width or MAX_VARINT)
            most = run.singles + run.packed_bytes // (width or 1)
        if not least <= self._items <= most:
            raise self._wrong_count(f"{most // self._per_element} values")

    @cached_property
    def _numbers(self) -> Repeated:
        number, kind, width = self._encoding
        return Repeated(self.proto.message, number, kind, partial(_bits, self.dtype), width)

    @property
    def _field(self) -> int:
        return _STRINGS if self.dtype is STRING else self._encoding.number

    @property
    def _per_element(self) -> int:
        return 2 if self.dtype.name.startswith("complex") else 1

    @property
    def _items(self) -> int:
        return self._count * self._per_element

    def _find_raw(self) -> Field | None:
        nbytes = self._count * self.dtype.itemsize
        if self.dtype is STRING:
            return None
        if self.proto.content is not None:
            return self.proto.content if self.proto.content.size == nbytes else None
        run = self.proto.runs.get(self._encoding.number)
        if run is None or self._encoding.kind == VARINT or (run.singles, run.packed) != (0, 1):
            return None
        return run.first if run.packed_bytes == nbytes else None

    def _wrong_count(self, found: str) -> InputError:
        return InputError(
            f"{self.proto.message.source.subject}: {found} are stored where {self.dtype} "
            f"{list(self.shape)} has {self._count}; it is damaged"
        )

    def _read(self, start: int, size: int) -> bytes:
        if self.raw is not None:
            return self.raw.source.bytes(self.raw.start + start, size)
        if self.proto.content is not None:
            raise self._wrong_count(f"{self.proto.content.size} bytes")
        width = self._encoding.width
        first, stop = start // width, -(-(start + size) // width)
        return self._take(first, stop).tobytes()[start - first * width :][:size]

    def _take(self, first: int, stop: int) -> Array:
        found = self._numbers.take(first, stop)
        missing = stop - first - len(found)
        if self.repeat:
            return np.concatenate([found, self._fill(stop - missing, missing)])
        if missing:
            raise self._wrong_count(f"{self._numbers.count() // self._per_element} values")
        if stop == self._items and len(self._numbers.take(stop, stop + 1)):
            raise self._wrong_count(f"more than {self._count} values")
        return found

    def _fill(self, first: int, size: int) -> Array:
        if not size:
            return np.empty(0, self._numbers.dtype)
        stored, pair = self._numbers.count(), self._per_element
        if stored % pair:
            raise self._wrong_count(f"{stored / pair} values")
        last = (
            self._numbers.take(stored - pair, stored)
            if stored
            else np.zeros(1, self._numbers.dtype)
        )
        # Fill may begin with the second half of a complex number.
        # Not np.resize, which makes a tuple of as many arrays first.
        return np.tile(np.roll(last, -(first % pair)), -(-size // len(last)))[:size]

    def _strings(self) -> list[bytes]:
        message, content = self.proto.message, self.proto.content
        if content is not None:
            return self._string_list(content.data())
        strings = [
            entry.expect(BYTES).data() for entry in message.message() if entry.number == _STRINGS
        ]
        missing = self._count - len(strings)
        # Strings come whole, so a claim of many would be believed with memory.
        if (missing and not self.repeat) or missing > _MAX_REPEATED_STRINGS:
            raise self._wrong_count(f"{len(strings)} values")
        return strings[: self._count] + (strings[-1:] or [b""]) * missing

    def _string_list(self, data: bytes) -> list[bytes]:
        # All lengths as varints, then all bytes: EncodeStringList in tensor_coding.cc.
        try:
            lengths, at = varints(data[: MAX_VARINT * self._count], self._count)
        except ValueError:
            raise self._wrong_count("no such strings") from None
        stops = [at]
        for length in lengths.tolist():
            stops.append(stops[-1] + length)
        if len(lengths) != self._count or stops[-1] != len(data):
            raise self._wrong_count(f"strings of {stops[-1] - at} bytes")
        return [data[a:b] for a, b in itertools.pairwise(stops)]
