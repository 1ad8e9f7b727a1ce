"""The values of a TensorFlow V2 checkpoint, as they lie in its data files."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from converter.dtype import STRING, VARIANT, DType
from converter.errors import InputError
from converter.formats.region import DataFile, Read, read_region
from converter.formats.stream import crc32c, crc32c_of_range
from converter.formats.strings import crc_of_variants, decode_strings
from converter.formats.tiling import assemble, check_tiling, notation
from converter.variable import BLOCK_BYTES, Array, Region


class Opened:
    """What all values of one opened checkpoint share.

    Attributes:
        index: the path of the index.
        verify: compare each value with its checksum when it is first loaded.
        is_big_endian: the byte order of the machine that wrote the data files.
        verified: what has been compared since the checkpoint was opened.
    """

    def __init__(self, index: Path, *, verify: bool, is_big_endian: bool) -> None:
        self.index = index
        self.verify = verify
        self.is_big_endian = is_big_endian
        self.verified: set[object] = set()


@dataclass(slots=True, eq=False)
class Value:
    """A range of a data file, and the tensor or slice that it holds. Calling it loads a region.

    Attributes:
        name: of the variable.
        size: bytes in the file.
        crc32c: the recorded checksum (not masked).
        is_plain: whether the bytes in the file are the value: no strings, nothing to swap.
    """

    opened: Opened
    name: str
    dtype: DType
    shape: tuple[int, ...]
    file: DataFile
    offset: int
    size: int
    crc32c: int
    is_plain: bool

    def check(self) -> None:
        """Raise InputError if the data file is missing or ends before the value does."""
        if not self.size:
            return
        try:
            available = self.file.size
        except InputError as error:
            raise InputError(f"{error}; {self.name} lies in it") from None
        end = self.offset + self.size
        if end > available:
            raise InputError(
                f"{self.file.path}: the file has {available} bytes, and {self.name} ends at {end}; "
                "it is cut short, or of another save than its index"
            )

    def __call__(self, region: Region) -> Array:
        """Return a region; of a variant, its bytes.

        Raises:
            InputError: the bytes are missing or differ from their checksum.
        """
        self.check()
        dtype = self.dtype.numpy
        if self.dtype is STRING:
            # asarray, because indexing a scalar gives the bytes themselves.
            return np.asarray(self._strings()[region], object)
        if dtype is None:
            return np.frombuffer(self._variants(), np.uint8)
        if self.is_plain:
            return read_region(self._verified_read(), self.shape, dtype, region)
        # ml_dtypes has no byte orders.
        stored = dtype.newbyteorder(">") if dtype.isbuiltin == 1 else np.dtype(">u2")
        values = read_region(self._verified_read(), self.shape, stored, region)
        return values.astype(stored.newbyteorder("<")).view(dtype)

    def _verified_read(self) -> Read:
        """Return what reads the value, once its checksum has been compared."""
        file, offset, size = self.file, self.offset, self.size
        place = file, offset, size, self.crc32c
        if self.opened.verify and place not in self.opened.verified:
            if size <= BLOCK_BYTES:
                data = file.read(offset, size)
                self._compare(crc32c(data))
                self.opened.verified.add(place)
                return lambda start, size: memoryview(data)[start : start + size]
            self._compare(crc32c_of_range(file.path, offset, size))
            self.opened.verified.add(place)
        return lambda start, size: file.read(offset + start, size)

    def _strings(self) -> Array:
        data, opened = self.file.read(self.offset, self.size), self.opened
        try:
            values, crc = decode_strings(
                data, self.shape, big_endian=opened.is_big_endian, verify=opened.verify
            )
        except ValueError as error:
            raise InputError(
                f"{self.file.path}: the strings of {self.name} are damaged: {error}"
            ) from None
        if opened.verify:
            self._compare(crc)
        return values

    def _variants(self) -> bytes:
        if self.opened.is_big_endian:
            raise InputError(
                f"{self.file.path}: {self.name} is a variant of a big-endian machine, "
                "which nothing can read"
            )
        data = self.file.read(self.offset, self.size)
        if self.opened.verify:
            try:
                crc = crc_of_variants(data, math.prod(self.shape))
            except ValueError as error:
                raise InputError(
                    f"{self.file.path}: the variant {self.name} is damaged: {error}"
                ) from None
            self._compare(crc)
        return data

    def _compare(self, crc: int) -> None:
        if crc != self.crc32c:
            raise InputError(
                f"{self.file.path}: the bytes of {self.name} have checksum {crc:08x} where "
                f"{self.crc32c:08x} is recorded; the file is damaged, or of another save "
                "than its index"
            )


@dataclass(slots=True, eq=False)
class Sliced:
    """A partitioned variable. Calling it loads a region.

    Attributes:
        pieces: the region of each slice, and its value; None where the index has none.
    """

    opened: Opened
    name: str
    dtype: DType
    shape: tuple[int, ...]
    pieces: tuple[tuple[Region, Value | None], ...]

    def check(self) -> None:
        """Raise InputError if the slices do not tile the variable, or bytes are missing."""
        for _, piece in self._found():
            piece.check()

    def __call__(self, region: Region) -> Array:
        """Return a region, put together of the slices that it touches.

        Raises:
            InputError: a slice is missing, or differs from its checksum.
        """
        return assemble(region, np.dtype(self.dtype.numpy), self._found())

    def _found(self) -> list[tuple[Region, Value]]:
        found = [(region, piece) for region, piece in self.pieces if piece is not None]
        if self in self.opened.verified:
            return found
        for region, piece in self.pieces:
            if piece is None:
                raise InputError(
                    f"{self.opened.index}: the slice [{notation(region)}] of {self.name} is missing"
                )
        check_tiling(self.name, self.shape, [region for region, _ in found], self.opened.index)
        if self.dtype is VARIANT:
            raise InputError(f"{self.opened.index}: {self.name} is a variant cut into slices")
        self.opened.verified.add(self)
        return found
