"""TensorFlow V1 checkpoints: tables that hold the data themselves, one file or several shards.

Under the empty key lies a list of tensors, each with its dtype, its full shape and the slices of
it that this shard holds; under the key of each slice lie its values, as a TensorProto.

References:
    tensorflow/core/util: saved_tensor_slice.proto, tensor_slice_reader.cc, tensor_slice_writer.cc.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import NamedTuple

from converter.dtype import DType
from converter.errors import InputError
from converter.formats import Contents
from converter.formats.crc import crc32c_between
from converter.formats.table import (
    HELD_BYTES,
    Block,
    Entry,
    Table,
    encode_tensor_name_slice,
    unmask,
)
from converter.formats.tensor_proto import Values, check_size, read_dtype, read_shape, walk
from converter.formats.tiling import assemble, check_extent, check_tiling, notation
from converter.formats.wire import BYTES, Field, Source
from converter.variable import Array, Region, Stored, Variable, shape_of, whole

VERSION = 1
"""TF_CHECKPOINT_VERSION: what a file may ask of its reader at most."""

_FULL = (0, -1)
# Values hold a window of what they decoded, so that not those of all slices are kept.
_OPEN_VALUES = 16
# What lies in a block beside a value, and is read when the checkpoint is opened.
_MAX_REST_BYTES = 1 << 20


class _Slice(NamedTuple):
    """A slice of a tensor: its extents as they are written, start and length, and its region."""

    shard: _Shard
    name: str
    extents: list[tuple[int, int]]
    region: Region

    @property
    def key(self) -> bytes:
        """The key of its values."""
        return encode_tensor_name_slice(_encoded(self.name), self.extents)


@dataclass(slots=True)
class _Tensor:
    name: str
    dtype: DType
    shape: tuple[int, ...]
    paths: list[Path]
    slices: list[_Slice] = field(default_factory=list)

    @property
    def files(self) -> str:
        """The files that list it, for messages."""
        return ", ".join(sorted({str(path) for path in self.paths}))

    @property
    def held(self) -> int:
        """Elements in all slices."""
        return sum(math.prod(shape_of(part.region)) for part in self.slices)

    @property
    def is_partitioned(self) -> bool:
        return [part.region for part in self.slices] != [whole(self.shape)]


def read(paths: Sequence[Path], *, verify: bool = True) -> Contents:
    """Read the names, shapes and dtypes of a checkpoint.

    Args:
        paths: its one file, or all of its shards. Of a lone shard, variables with slices in
            other shards are listed, and cannot be loaded.
        verify: check the checksum of each block before values in it are read.

    Raises:
        InputError: a file is no V1 checkpoint or damaged, or the shards contradict each other.
    """
    tensors: dict[str, _Tensor] = {}
    for path in paths:
        for part in _Shard(path, verify=verify).tensors():
            _merge(tensors, part)
    for tensor in tensors.values():
        _check_slices(tensor)
    opened = _Reader(tensors)
    return Contents(
        "TensorFlow V1",
        tuple(
            opened.variable(tensor)
            for tensor in sorted(tensors.values(), key=lambda tensor: _encoded(tensor.name))
        ),
        tuple(paths),
        partitions={
            tensor.name: tuple(part.region for part in tensor.slices)
            for tensor in tensors.values()
            if tensor.is_partitioned
        },
        check=opened.check,
    )


class _Shard:
    """One file: a table, and where the values of its slices are."""

    def __init__(self, path: Path, *, verify: bool) -> None:
        self.path = path
        self._verify = verify
        self._table = Table(path, verify=verify)
        self._lasts = [block.last for block in self._table.blocks if block.last is not None]
        self._slices: list[_Slice] = []
        self._found: dict[bytes, tuple[Entry, Block]] = {}
        self._walked: dict[Block, str] = {}

    def tensors(self) -> Iterator[_Tensor]:
        """Yield what the list under the empty key says."""
        for tensors in self._lists():
            for entry in tensors.message():
                if entry.number == 1:
                    yield self._tensor(entry)
                elif entry.number == 2:
                    self._check_version(entry)

    def values(self, part: _Slice, dtype: DType) -> Values:
        """Return the values of a slice; they are not read."""
        content: Field | None = None
        entry, _ = self._find(part)
        for saved in Source(entry.read, entry.size, f"{self.path}: {part.name}").message():
            if saved.number == 2:
                for data in saved.message():
                    if data.number == 3:
                        content = data.expect(BYTES)
        if content is None:
            raise InputError(f"{self.path}: {part.name}: its entry holds no values; it is damaged")
        return Values(walk(content), dtype, shape_of(part.region), repeat=False)

    def stored(self, part: _Slice, values: Values) -> Stored | None:
        """Return where the bytes of a slice lie on disk, with their checksum if that is wanted.

        The file has checksums of blocks only. That of a value is worked out where it is nearly
        all of its block, so that it is verified in passing while it is copied.
        """
        entry, block = self._find(part)
        if values.raw is None or entry.file_offset is None:
            return None
        size, offset = values.raw.size, entry.file_offset + values.raw.start
        if not self._verify:
            return Stored(self.path, offset, size)
        end, stop = block.offset + block.size, offset + size
        if block.size - size > _MAX_REST_BYTES:
            return None
        return Stored(
            self.path,
            offset,
            size,
            crc32c_between(
                unmask(int.from_bytes(self._table.file.read(end + 1, 4), "little")),
                self._table.file.read(block.offset, offset - block.offset),
                size,
                self._table.file.read(stop, end + 1 - stop),
            ),
        )

    def verify(self, part: _Slice) -> None:
        """Check the block that a slice lies in, unless that was done or is not wanted."""
        if self._verify:
            self._table.check(self._find(part)[1])

    def _lists(self) -> list[Field]:
        block = self._table.blocks[0] if self._table.blocks else None
        entry = next(self._table.entries(block), None) if block else None
        if block and entry and not entry.key:
            if self._verify:
                self._table.check(block)
            source = Source(entry.read, entry.size, f"{self.path}: the list of tensors")
            lists = [tensors for tensors in source.message() if tensors.number == 1]
            # A V2 index has its header under the empty key, which begins with a number.
            if lists and lists[0].kind == BYTES:
                return lists
        raise InputError(
            f"{self.path}: this table is no V1 checkpoint; if its name ends with .index, "
            "open it without that ending"
        )

    def _find(self, part: _Slice) -> tuple[Entry, Block]:
        key = part.key
        damage = ""
        if key not in self._found:
            index = bisect_left(self._lasts, key)
            for block in self._table.blocks[index : index + 1]:
                damage = self._walk(block)
        if key not in self._found:
            raise InputError(
                damage or f"{self.path}: {part.name}: the table has no entry for it; it is damaged"
            )
        return self._found[key]

    def _walk(self, block: Block) -> str:
        """Find whatever is wanted of a block, once; return what is wrong with it, or nothing."""
        if block not in self._walked:
            self._walked[block] = ""
            try:
                for entry in self._table.entries(block):
                    if entry.key in self._keys:
                        self._found[entry.key] = entry, block
            except InputError as error:
                self._walked[block] = str(error)
        return self._walked[block]

    @cached_property
    def _keys(self) -> set[bytes]:
        return {part.key for part in self._slices}

    def _check_version(self, version: Field) -> None:
        for entry in version.message():
            if entry.number == 2 and entry.integer() > VERSION:
                raise InputError(
                    f"{self.path}: the checkpoint needs a reader of version {entry.integer()}; "
                    f"there is none above {VERSION}"
                )

    def _tensor(self, meta: Field) -> _Tensor:
        name, slices = "", []
        dtype: DType | None = None
        shape: tuple[int, ...] = ()
        for entry in meta.message():
            if entry.number == 1:
                name = entry.text()
            elif entry.number == 2:
                shape = read_shape(entry)
            elif entry.number == 3:
                dtype = read_dtype(entry)
            elif entry.number == 4:
                slices.append(entry)
        if dtype is None or dtype.numpy is None:
            raise InputError(f"{self.path}: {name}: its dtype is none that V1 files can hold")
        check_size(shape, dtype, f"{self.path}: {name}")
        tensor = _Tensor(name, dtype, shape, [self.path])
        for entry in slices:
            extents = _extents(entry)
            part = _Slice(self, name, extents, _region(extents, shape))
            check_extent(name, shape, part.region, self.path)
            tensor.slices.append(part)
        self._slices += tensor.slices
        return tensor


class _Reader:
    """The tensors of all shards, and their values."""

    def __init__(self, tensors: Mapping[str, _Tensor]) -> None:
        self._tensors = tensors
        self._values = lru_cache(maxsize=_OPEN_VALUES)(self._open)

    def variable(self, tensor: _Tensor) -> Variable:
        return Variable(
            tensor.name,
            tensor.dtype,
            tensor.shape,
            partial(self.load, tensor.name),
            (tensor.name,),
            self._stored(tensor),
        )

    def load(self, name: str, region: Region) -> Array:
        tensor = self._complete(name)
        assert tensor.dtype.numpy is not None
        pieces = [
            (part.region, partial(self._load_slice, name, index))
            for index, part in enumerate(tensor.slices)
        ]
        return assemble(region, tensor.dtype.numpy, pieces)

    def check(self, names: Iterable[str]) -> None:
        for name in names:
            for index, _ in enumerate(self._complete(name).slices):
                self._values(name, index).check()

    def _stored(self, tensor: _Tensor) -> Stored | None:
        # Only of values that are large enough to have a block of their own: smaller ones are not
        # looked for before they are wanted.
        if tensor.is_partitioned or math.prod(tensor.shape) * tensor.dtype.itemsize <= HELD_BYTES:
            return None
        (part,) = tensor.slices
        try:
            return part.shard.stored(part, self._values(tensor.name, 0))
        except InputError:
            # Raised again when the values are wanted; the other variables may be fine.
            return None

    def _complete(self, name: str) -> _Tensor:
        tensor = self._tensors[name]
        if tensor.held < math.prod(tensor.shape):
            raise InputError(
                f"{tensor.files}: {tensor.held} of {math.prod(tensor.shape)} elements of {name} "
                "are here; other shards are missing"
            )
        return tensor

    def _load_slice(self, name: str, index: int, region: Region) -> Array:
        part = self._tensors[name].slices[index]
        values = self._values(name, index)
        part.shard.verify(part)
        return values.load(region)

    def _open(self, name: str, index: int) -> Values:
        tensor = self._tensors[name]
        part = tensor.slices[index]
        return part.shard.values(part, tensor.dtype)


def _merge(tensors: dict[str, _Tensor], part: _Tensor) -> None:
    """Add what one shard has of a tensor to what others have."""
    tensor = tensors.setdefault(part.name, part)
    if tensor is part:
        return
    if (tensor.dtype, tensor.shape) != (part.dtype, part.shape):
        raise InputError(
            f"{part.files}: {part.name} is {part.dtype} {list(part.shape)} here, and "
            f"{tensor.dtype} {list(tensor.shape)} in {tensor.files}; "
            "the shards belong to different checkpoints"
        )
    tensor.slices += part.slices
    tensor.paths += part.paths


def _check_slices(tensor: _Tensor) -> None:
    seen: dict[str, _Slice] = {}
    for part in tensor.slices:
        twin = seen.setdefault(notation(part.region), part)
        if twin is not part:
            raise InputError(
                f"{part.shard.path}: [{notation(part.region)}] of {tensor.name} "
                f"{list(tensor.shape)} is stored twice, here and in {twin.shard.path}"
            )
    # Slices that are missing may be in other shards. They matter where the values are wanted.
    if tensor.held >= math.prod(tensor.shape):
        check_tiling(
            tensor.name, tensor.shape, [part.region for part in tensor.slices], tensor.files
        )


def _encoded(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape")


def _extents(message: Field) -> list[tuple[int, int]]:
    """Return start and length for each axis; _FULL for an axis that is not cut."""
    extents = []
    for extent in message.message():
        if extent.number == 1:
            start, length = _FULL
            for entry in extent.message():
                if entry.number == 1:
                    start = entry.integer()
                elif entry.number == 2:
                    length = entry.integer()
            extents.append((start, length))
    return extents


def _region(extents: Sequence[tuple[int, int]], shape: Sequence[int]) -> Region:
    # Of another rank than the shape, it is refused afterwards, whatever it is.
    sizes = (*shape, *(0 for _ in extents))
    return tuple(
        slice(0, size) if (start, length) == _FULL else slice(start, start + length)
        for (start, length), size in zip(extents, sizes, strict=False)
    )
