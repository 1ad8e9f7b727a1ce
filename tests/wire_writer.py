"""Writes protobuf, V1 checkpoints and graphs in all the ways that the formats allow.

Written from the formats, and shares nothing with the readers but the table, whose bytes have
tests of their own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from converter.dtype import DType
from converter.formats.table import encode_tensor_name_slice, write_table
from converter.variable import Region

Array = npt.NDArray[Any]
Extent = tuple[int, int | None]

FIXED = {"float32": 5, "float64": 6, "complex64": 9, "complex128": 12}
VARINTS = {"int64": 10, "bool": 11, "float16": 13, "bfloat16": 13, "uint32": 16, "uint64": 17}


def varint(value: int) -> bytes:
    value %= 1 << 64
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def field(number: int, value: int | bytes) -> bytes:
    """A varint, or a length and bytes."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def shape_proto(shape: Sequence[int]) -> bytes:
    return b"".join(field(2, field(1, size) if size else b"") for size in shape)


def numbers(dtype: DType, values: Array, pieces: Sequence[int] | None = None) -> bytes:
    """The value field of a TensorProto.

    Args:
        dtype: of the values.
        values: any shape.
        pieces: None packs all in one field. Otherwise the next so many items are packed, or,
            where there is a 0, the next item stands alone; the rest is packed.
    """
    flat = np.asarray(values, order="C").ravel()
    if dtype.name == "string":
        return b"".join(field(8, value) for value in flat.tolist())
    if dtype.name.startswith(("float8", "float4")):
        return field(18, flat.tobytes()) if flat.size else b""
    if dtype.name in FIXED:
        number = FIXED[dtype.name]
        width = 4 if dtype.name in ("float32", "complex64") else 8
        data = flat.tobytes()
        if pieces is None:
            return field(number, data) if data else b""
        items = [data[i : i + width] for i in range(0, len(data), width)]
        single = varint(number << 3 | (5 if width == 4 else 1))
    else:
        number = VARINTS.get(dtype.name, 7)
        if dtype.name in ("float16", "bfloat16"):
            flat = flat.view(np.uint16)
        items = [varint(int(value)) for value in flat.tolist()]
        single = varint(number << 3)
    out, at = b"", 0
    for piece in pieces or ():
        if piece:
            out += field(number, b"".join(items[at : at + piece]))
        elif at < len(items):
            out += single + items[at]
        at += piece or 1
    rest = items[at:]
    return out + (field(number, b"".join(rest)) if rest else b"")


def slice_proto(extents: Iterable[Extent]) -> bytes:
    return b"".join(
        field(1, b"" if length is None else (field(1, start) if start else b"") + field(2, length))
        for start, length in extents
    )


def explicit(region: Region) -> list[Extent]:
    return [(s.start, s.stop - s.start) for s in region]


def full(shape: Sequence[int]) -> list[Extent]:
    return [(0, None) for _ in shape]


def slice_key(name: bytes, extents: Iterable[Extent]) -> bytes:
    return encode_tensor_name_slice(
        name, [(start, -1 if length is None else length) for start, length in extents]
    )


def meta(
    name: bytes, dtype: DType, shape: Sequence[int], slices: Iterable[Iterable[Extent]]
) -> bytes:
    """What the list of tensors says of one."""
    return (
        field(1, name)
        + field(2, shape_proto(shape))
        + field(3, dtype.tensorflow)
        + b"".join(field(4, slice_proto(extents)) for extents in slices)
    )


def v1_items(metas: Iterable[bytes], slices: Mapping[bytes, bytes]) -> list[tuple[bytes, bytes]]:
    """The table of a V1 file, of what `meta` gives, and of TensorProtos by key."""
    tensors = b"".join(field(1, entry) for entry in metas) + field(2, field(1, 1))
    items = [(b"", field(1, tensors))]
    return items + [(key, field(2, field(3, slices[key]))) for key in sorted(slices)]


def write_items(path: Path, items: Iterable[tuple[bytes, bytes]], block_size: int = 262144) -> Path:
    with path.open("wb") as file:
        write_table(file.write, items, block_size=block_size)
    return path


def const(name: str, dtype: DType, shape: Sequence[int], values: bytes) -> bytes:
    """A Const node of a GraphDef, with a TensorProto that holds `values`."""
    tensor = field(1, dtype.tensorflow) + field(2, shape_proto(shape)) + values
    attributes = {b"dtype": field(6, dtype.tensorflow), b"value": field(8, tensor)}
    return node(name, "Const", attributes=attributes)


def node(
    name: str, op: str, inputs: Iterable[str] = (), attributes: Mapping[bytes, bytes] | None = None
) -> bytes:
    """A node, as a field of a GraphDef."""
    return field(
        1,
        field(1, name.encode("utf-8", "surrogateescape"))
        + field(2, op.encode())
        + b"".join(field(3, i.encode("utf-8", "surrogateescape")) for i in inputs)
        + b"".join(
            field(5, field(1, key) + field(2, value)) for key, value in (attributes or {}).items()
        ),
    )


def compressed(path: Path) -> Path:
    """Write the blocks of a table anew as snappy blocks, beside it, as old TensorFlows did."""
    import cramjam

    from converter.formats.stream import crc32c
    from converter.formats.table import Table, mask, put_varint

    table, out = Table(path), b""
    items: list[bytes] = []

    def put(contents: bytes, kind: int) -> bytes:
        nonlocal out
        handle = put_varint(len(out)) + put_varint(len(contents))
        sealed = contents + bytes([kind])
        out += sealed + mask(crc32c(sealed)).to_bytes(4, "little")
        return handle

    for block in table.blocks:
        assert block.last is not None
        handle = put(bytes(cramjam.snappy.compress_raw(table.contents(block))), 1)
        lengths = b"\0" + put_varint(len(block.last)) + put_varint(len(handle))
        items.append(lengths + block.last + handle)
    metaindex = put(bytes(4) + b"\1\0\0\0", 0)
    restarts = [len(b"".join(items[:i])) for i in range(len(items))]
    index = b"".join(items) + b"".join(r.to_bytes(4, "little") for r in [*restarts, len(items)])
    footer = metaindex + put(bytes(cramjam.snappy.compress_raw(index)), 1)
    target = path.with_name(path.name + ".snappy")
    target.write_bytes(out + footer.ljust(40, b"\0") + bytes.fromhex("57fb808b247547db"))
    return target
