"""The index of a TensorFlow V2 checkpoint: what each variable is made of.

References:
    tensorflow/core/protobuf/tensor_bundle.proto; tensorflow/core/framework: tensor_shape.proto,
    tensor_slice.proto, versions.proto.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from converter.dtype import BY_TENSORFLOW, STRING, DType
from converter.errors import InputError
from converter.formats.bundle_data import Opened, Sliced, Value
from converter.formats.messages import parse, parser
from converter.formats.region import DataFile
from converter.formats.table import Table, encode_tensor_name_slice, unmask
from converter.formats.tiling import check_extent, notation
from converter.variable import Region, shape_of, whole

_VERSION = 1
_LITTLE_ENDIAN, _BIG_ENDIAN = 0, 1

_SLICES_TAG = b"\x3a"

_REF = 100
"""Added to a dtype's number for a reference to it."""

# What every numpy can hold: axes, and elements along axes that are not empty.
_MAX_RANK = 32
_MAX_ELEMENTS = 1 << 58


def data_file(index: Path, shard: int, shards: int) -> Path:
    """Return the path of one of the data files that belong to an index."""
    prefix = index.name.removesuffix(".index")
    return index.with_name(f"{prefix}.data-{shard:05d}-of-{shards:05d}")


class _Kind(NamedTuple):
    """The dtype and shape of an entry. Many entries share one, which is decoded once."""

    dtype: DType
    shape: tuple[int, ...]
    nbytes: int | None
    is_plain: bool


class _Slice(NamedTuple):
    region: Region
    key: bytes


class Index:
    """The entries of an index.

    Args:
        path: the file.
        verify: compare the index, and later the values, with their checksums.

    Attributes:
        files: the data files that entries lie in, by number.

    Raises:
        InputError: the file is missing, damaged, or no index.
    """

    def __init__(self, path: Path, *, verify: bool = True) -> None:
        self.path = path
        self.files: dict[int, DataFile] = {}
        self._kinds: dict[bytes, _Kind] = {}
        self._parse = parser("BundleEntryProto", f"{path}: the entry of ")
        self._entries = dict(Table(path, verify=verify).items())
        self._shards, is_big_endian = self._header(self._entries.pop(b"", b""))
        self._opened = Opened(path, verify=verify, is_big_endian=is_big_endian)

    def values(self) -> dict[str, Value | Sliced]:
        """Return what each variable is made of, by name, in the order of the names.

        Raises:
            InputError: an entry is damaged. Slices that are missing or do not fit together are
                left to `Sliced.check`, since the other variables can be read without them.
        """
        slices = self._slices()
        # Names may look like the keys of slices, so that only this tells which are.
        hidden = {piece.key for pieces in slices.values() for piece in pieces}
        values: dict[str, Value | Sliced] = {}
        for key, raw in self._entries.items():
            if key in slices:
                values[_name(key)] = self._assembled(_name(key), raw, slices[key])
            elif key not in hidden:
                name = _name(key)
                values[name] = self._value(name, raw)
        return values

    def _header(self, raw: bytes) -> tuple[int, bool]:
        """Return the number of data files, and whether a big-endian machine wrote them."""
        header = parse("BundleHeaderProto", raw, f"{self.path}: the header")
        if header.num_shards < 1:
            raise InputError(f"{self.path}: this table is no index of a TensorFlow V2 checkpoint")
        if header.version.min_consumer > _VERSION:
            raise InputError(
                f"{self.path}: the checkpoint asks for readers of version "
                f"{header.version.min_consumer}, and version {_VERSION} is the newest known"
            )
        if header.endianness not in (_LITTLE_ENDIAN, _BIG_ENDIAN):
            raise InputError(f"{self.path}: the byte order is {header.endianness}, not 0 or 1")
        return header.num_shards, header.endianness == _BIG_ENDIAN

    def _slices(self) -> dict[bytes, list[_Slice]]:
        """Return the slices of each partitioned variable by its key."""
        slices: dict[bytes, list[_Slice]] = {}
        number = 0
        for key, raw in self._entries.items():
            if _SLICES_TAG not in raw:
                continue
            name = _name(key)
            entry = self._parse(raw, name)
            number += len(entry.slices)
            if number > len(self._entries):
                # Each has an entry of its own, so that the index is no smaller than its variables.
                raise InputError(f"{self.path}: {name} has more slices than the index has entries")
            if entry.slices:
                shape = self._kind(name, raw, entry).shape
                slices[key] = [self._slice(key, shape, proto.extent) for proto in entry.slices]
        return slices

    def _slice(self, key: bytes, shape: tuple[int, ...], protos: Sequence[Any]) -> _Slice:
        name = _name(key)
        # A length that is absent, and not 0, means all of an axis.
        extents = [(e.start, e.length if e.HasField("length") else -1) for e in protos]
        if len(extents) != len(shape):
            raise InputError(
                f"{self.path}: a slice of {name} {list(shape)} has {len(extents)} axes"
            )
        region = tuple(
            slice(0, size) if extent == (0, -1) else slice(extent[0], sum(extent))
            for extent, size in zip(extents, shape, strict=True)
        )
        check_extent(name, shape, region, self.path)
        return _Slice(region, encode_tensor_name_slice(key, extents))

    def _assembled(self, name: str, raw: bytes, slices: list[_Slice]) -> Value | Sliced:
        dtype, shape, _, _ = self._kind(name, raw, self._parse(raw, name))
        pieces: list[tuple[Region, Value | None]] = []
        for region, key in slices:
            piece = self._value(name, self._entries[key]) if key in self._entries else None
            if piece and (piece.dtype, piece.shape) != (dtype, shape_of(region)):
                raise InputError(
                    f"{self.path}: the slice [{notation(region)}] of {name} is {piece.dtype} "
                    f"{list(piece.shape)}, and not {dtype} {list(shape_of(region))}"
                )
            pieces.append((region, piece))
        if len(pieces) == 1 and pieces[0][0] == whole(shape):
            # A slice that is the whole: TensorFlow wrote it as one until 2017, and never since.
            return pieces[0][1] or self._value(name, raw)
        return Sliced(self._opened, name, dtype, shape, tuple(pieces))

    def _value(self, name: str, raw: bytes) -> Value:
        entry = self._parse(raw, name)
        dtype, shape, nbytes, is_plain = self._kind(name, raw, entry)
        shard, offset, size = entry.shard_id, entry.offset, entry.size
        if offset < 0 or size < 0 or (size != nbytes and nbytes is not None):
            takes = "" if nbytes is None else f", which takes {nbytes} bytes,"
            raise InputError(
                f"{self.path}: {name} is {dtype} {list(shape)}{takes} and has {size} bytes "
                f"at {offset} of its file; the index is damaged"
            )
        file = self.files.get(shard) or self._file(name, shard)
        crc = unmask(entry.crc32c)
        return Value(self._opened, name, dtype, shape, file, offset, size, crc, is_plain)

    def _file(self, name: str, shard: int) -> DataFile:
        if not 0 <= shard < self._shards:
            raise InputError(
                f"{self.path}: {name} lies in data file {shard} of {self._shards}; "
                "the index is damaged"
            )
        self.files[shard] = DataFile(data_file(self.path, shard, self._shards))
        return self.files[shard]

    def _kind(self, name: str, raw: bytes, entry: Any) -> _Kind:
        # As TensorFlow writes it, an entry begins with its dtype and its shape, in fields of less
        # than 128 bytes. One that begins otherwise is decoded each time.
        if len(raw) < 4:
            return self._decode_kind(name, entry)
        head = raw[: 4 + raw[3]]
        kind = self._kinds.get(head)
        if kind is None:
            kind = self._decode_kind(name, entry)
            if raw[0] == 8 and raw[2] == 18 and raw[1] < 128 and raw[3] < 128:
                self._kinds[head] = kind
        return kind

    def _decode_kind(self, name: str, entry: Any) -> _Kind:
        dtype = BY_TENSORFLOW.get(entry.dtype - _REF if entry.dtype > _REF else entry.dtype)
        if dtype is None:
            raise InputError(f"{self.path}: {name} has dtype number {entry.dtype}, unknown here")
        if entry.shape.unknown_rank:
            raise InputError(f"{self.path}: the shape of {name} is unknown")
        shape = tuple(dim.size for dim in entry.shape.dim)
        elements = math.prod(size or 1 for size in shape[:_MAX_RANK])
        if min(shape, default=0) < 0 or len(shape) > _MAX_RANK or elements > _MAX_ELEMENTS:
            raise InputError(
                f"{self.path}: {name} has shape {list(shape)[: _MAX_RANK + 1]}, which no array "
                "can have; the index is damaged"
            )
        nbytes = math.prod(shape) * dtype.itemsize if dtype.itemsize else None
        is_plain = dtype.itemsize == 1 or (dtype is not STRING and not self._opened.is_big_endian)
        return _Kind(dtype, shape, nbytes, is_plain)


def _name(key: bytes) -> str:
    return key.decode("utf-8", "surrogateescape")
