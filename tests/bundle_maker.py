"""Writes TensorFlow V2 checkpoints as they could have been written, entry by entry."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import cramjam
import numpy as np

from converter.dtype import BY_NAME, STRING, DType
from converter.formats import Contents, bundle
from converter.formats.bundle_index import data_file
from converter.formats.messages import message
from converter.formats.stream import Output, crc32c
from converter.formats.table import (
    MAGIC,
    get_varint,
    mask,
    put_varint,
    write_table,
)
from converter.variable import Array, Variable

NUMERIC = [dtype for dtype in BY_NAME.values() if dtype.itemsize]
HEADER = bytes.fromhex("08011a020801")
open_output = partial(Output, sync=False)


FLOAT = BY_NAME["float32"]
SLICE = np.zeros((2, 3), "f4")


def some_values(dtype: DType, shape: tuple[int, ...], seed: int = 0) -> Array:
    draw = np.random.default_rng(seed)
    if dtype is STRING:
        values = np.empty(shape, object)
        for place in np.ndindex(shape):
            values[place] = draw.bytes(int(draw.integers(0, 300)))
        return values
    assert dtype.numpy is not None
    return np.asarray(
        draw.integers(0, 2, shape) if dtype.itemsize == 1 else draw.normal(size=shape) * 9
    ).astype(dtype.numpy)


def variables_of(*arrays: tuple[str, DType, Array]) -> list[Variable]:
    return [Variable.from_array(name, values, dtype=dtype) for name, dtype, values in arrays]


def by_name(contents: Contents) -> dict[str, Variable]:
    return {variable.name: variable for variable in contents.variables}


class Maker:
    """Writes checkpoints as they could have been written, entry by entry."""

    def __init__(self, directory: Path, *, shards: int = 1, order: str = "<") -> None:
        self.prefix = directory / "model.ckpt"
        self.data = [bytearray() for _ in range(shards)]
        self.order = order
        self.header = message("BundleHeaderProto")(num_shards=shards, endianness=int(order == ">"))
        self.entries: dict[bytes, Any] = {}

    def put(
        self, key: bytes, dtype: DType, shape: Iterable[int], data: bytes, crc: int, shard: int = 0
    ) -> Any:
        entry = message("BundleEntryProto")(
            dtype=dtype.tensorflow,
            shard_id=shard,
            offset=len(self.data[shard]),
            size=len(data),
            crc32c=mask(crc),
        )
        entry.shape.SetInParent()
        for size in shape:
            entry.shape.dim.add(size=size)
        self.data[shard] += data
        self.entries[key] = entry
        return entry

    def add(self, key: bytes, dtype: DType, values: Array, shard: int = 0) -> Any:
        if self.order == ">" and dtype.itemsize > 1:
            width = dtype.itemsize // (2 if dtype.name.startswith("complex") else 1)
            data = np.frombuffer(values.tobytes(), f"<u{width}").astype(f">u{width}").tobytes()
        else:
            data = values.tobytes()
        return self.put(key, dtype, values.shape, data, crc32c(data), shard)

    def partition(
        self,
        name: bytes,
        dtype: DType,
        shape: tuple[int, ...],
        slices: Iterable[tuple[tuple[int, int], ...]],
    ) -> Any:
        entry = message("BundleEntryProto")(dtype=dtype.tensorflow)
        entry.shape.SetInParent()
        for size in shape:
            entry.shape.dim.add(size=size)
        for extents in slices:
            part = entry.slices.add()
            for start, length in extents:
                extent = part.extent.add()
                if length >= 0:
                    extent.start, extent.length = start, length
        self.entries[name] = entry
        return entry

    def index(self, *, block_size: int = 262144) -> Path:
        return self.index_of(
            {b"": self.header.SerializeToString()}
            | {k: e.SerializeToString() for k, e in self.entries.items()},
            block_size=block_size,
        )

    def index_of(self, items: Mapping[bytes, bytes], *, block_size: int = 262144) -> Path:
        for shard, data in enumerate(self.data):
            data_file(self.prefix, shard, len(self.data)).write_bytes(data)
        out = io.BytesIO()
        write_table(out.write, sorted(items.items()), block_size=block_size)
        path = self.prefix.with_name("model.ckpt.index")
        path.write_bytes(out.getvalue())
        return path

    def read(self, *, verify: bool = True) -> dict[str, Variable]:
        return by_name(bundle.read(self.index(), verify=verify))


def put_any(maker: Maker, key: bytes, dtype: DType, values: Array, shard: int = 0) -> None:
    values = np.asarray(values, dtype.numpy)
    if dtype is STRING:
        data, crc = string_bytes(values.ravel().tolist(), "little")
        maker.put(key, dtype, values.shape, data, crc, shard)
    else:
        maker.add(key, dtype, values, shard)


def string_bytes(strings: list[bytes], order: Any) -> tuple[bytes, int]:
    """Return strings as the sources of TensorFlow have it, on a machine of some byte order."""
    crc = 0
    for string in strings:
        crc = crc32c(len(string).to_bytes(4, order), crc)
    lengths = b"".join(put_varint(len(string)) for string in strings)
    checksum = mask(crc).to_bytes(4, order)
    contents = b"".join(strings)
    return lengths + checksum + contents, crc32c(contents, crc32c(checksum, crc))


def variant_bytes(variants: list[bytes]) -> tuple[bytes, int]:
    data, crc = b"", 0
    for variant in variants:
        crc = crc32c(variant, crc32c(len(variant).to_bytes(8, "little"), crc))
        checksum = mask(crc).to_bytes(4, "little")
        crc = crc32c(checksum, crc)
        data += put_varint(len(variant)) + variant + checksum
    return data, crc


def compressed(table: bytes) -> bytes:
    """Return a table of one data block with all of its blocks compressed."""
    written = b""
    handles = []
    at = 0
    footer = table[-48:]
    meta, at = get_varint(footer, 0)
    meta_size, at = get_varint(footer, at)
    index, at = get_varint(footer, at)
    index_size, at = get_varint(footer, at)
    for contents in (table[: meta - 5], table[meta : meta + meta_size]):
        handles.append(len(written))
        written += sealed(contents)
        handles.append(len(written) - 5 - handles[-1])
    entry = table[index : index + index_size]
    key = entry[3 : 3 + entry[1]]
    handle = b"".join(map(put_varint, handles[:2]))
    contents = bytes([0, len(key), len(handle)]) + key + handle + bytes(4) + b"\1\0\0\0"
    handles += [len(written), len(sealed(contents)) - 5]
    written += sealed(contents)
    return written + b"".join(map(put_varint, handles[2:])).ljust(40, b"\0") + MAGIC


def sealed(contents: bytes) -> bytes:
    packed = bytes(cramjam.snappy.compress_raw(contents)) + b"\1"
    return packed + mask(crc32c(packed)).to_bytes(4, "little")
