"""Arrays in `.npz` and `.npy` files: their headers at once, their values row by row.

Not by numpy.load, which allocates what a header claims before it looks for the bytes.
"""

from __future__ import annotations

import contextlib
import math
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from converter.errors import InputError
from converter.variable import Array

SUFFIXES = (".npz", ".npy")
"""What the names of such files end with."""

_MEMBER = ".npy"
_MAGIC = b"\x93NUMPY"
# The bytes that tell how long a header is, by the version of the format.
_LENGTHS = {b"\x01\x00": 2, b"\x02\x00": 4, b"\x03\x00": 4}
_MAX_HEADER = 1 << 16
_MAX_AXES = 64  # Numpy has no more.
_OBJECTS = re.compile(rb"\s*\{\s*'descr':\s*'\|O")
# What numpy writes before an array of numbers or texts; Python 2 wrote sizes like `10L`.
_HEADER = re.compile(
    rb"\s*\{\s*'descr':\s*'(?P<dtype>[<>|=](?:[fiu][1248]|b1|c8|c16|[SU]\d{1,6}))',"
    rb"\s*'fortran_order':\s*(?P<fortran>True|False),"
    rb"\s*'shape':\s*\((?P<shape>(?:\d{1,18}L?, ?)*(?:\d{1,18}L?)?)\),?\s*\}\s*"
)
# What zipfile and numpy raise on files that are none of theirs; RuntimeError is for encryption and
# for compression that is not implemented.
_UNREADABLE = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    OSError,
    EOFError,
    ValueError,
    TypeError,
    RuntimeError,
    MemoryError,
)


@dataclass(frozen=True, slots=True)
class Header:
    """What an array in a file is, before any of it is read.

    Attributes:
        path: the file.
        member: the part of an `.npz` file; empty for an `.npy` file.
    """

    path: Path
    member: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    is_fortran: bool

    @property
    def rows(self) -> int:
        """How many rows there are; 1 without axes."""
        return self.shape[0] if self.shape else 1

    @property
    def row_bytes(self) -> int:
        """How many bytes a row has."""
        return math.prod(self.shape[1:]) * self.dtype.itemsize

    @contextlib.contextmanager
    def opened(self) -> Iterator[Callable[[int], Array]]:
        """Open the array; what this gives returns the next rows, as many as it is asked for.

        An array without axes has one row, which is the array itself.

        Raises:
            InputError: the file is unreadable or damaged.
        """
        with contextlib.ExitStack() as stack:
            with told(self.path):
                if self.member:
                    archive = stack.enter_context(zipfile.ZipFile(self.path))
                    file = stack.enter_context(_opened(archive, self.member))
                else:
                    file = stack.enter_context(self.path.open("rb"))
                _read_header(file, self.member)
                rows = _Rows(self, file)
            yield rows.take

    def read(self) -> Array:
        """Return the whole array.

        Raises:
            InputError: the file is unreadable or damaged.
        """
        with self.opened() as take:
            return take(self.rows)


class _Rows:
    """The rows of an array, in their order."""

    def __init__(self, header: Header, file: IO[bytes]) -> None:
        self._header = header
        self._file = file
        self._left = header.rows
        self._whole: Array | None = None
        if header.is_fortran and len(header.shape) > 1:
            # Its first axis is the one that varies first.
            flat = self._read(header.rows * header.row_bytes, is_last=True)
            self._whole = flat.reshape(header.shape, order="F")

    def take(self, count: int) -> Array:
        with told(self._header.path):
            return self._taken(count)

    def _taken(self, count: int) -> Array:
        header = self._header
        start = header.rows - self._left
        self._left -= count
        if self._whole is not None:
            return self._whole[start : start + count]
        values = self._read(header.row_bytes * count, is_last=not self._left)
        return values.reshape((count, *header.shape[1:]) if header.shape else ())

    def _read(self, size: int, *, is_last: bool) -> Array:
        data = self._file.read(size)
        if len(data) != size:
            raise EOFError(f"{self._name} ends before its header says")
        # The CRC is checked where the end is met.
        if is_last and self._file.read(1):
            raise ValueError(f"{self._name} is longer than its header says")
        return np.frombuffer(data, self._header.dtype)

    @property
    def _name(self) -> str:
        return self._header.member or "it"


def read_headers(
    path: Path, is_wanted: Callable[[str], bool] = lambda name: True
) -> dict[str, Header]:
    """Return what the arrays in a file are, by name; that of an `.npy` file is empty.

    Args:
        path: the file, an `.npz` or `.npy`.
        is_wanted: tells by the name which arrays are looked at.

    Raises:
        InputError: the file is unreadable or damaged, or an array is none of numbers or texts.
    """
    with told(path):
        if path.suffix == _MEMBER:
            with path.open("rb") as file:
                return {"": Header(path, "", *_read_header(file))}
        found = {}
        with zipfile.ZipFile(path) as archive:
            for member in archive.namelist():
                name = member.removesuffix(_MEMBER)
                if name in found:
                    raise ValueError(f"it has two arrays named {name}")
                if is_wanted(name):
                    with _opened(archive, member) as file:
                        found[name] = Header(path, member, *_read_header(file, member))
        return found


@contextlib.contextmanager
def told(path: Path) -> Iterator[None]:
    """Tell what is wrong with a file by one line."""
    try:
        yield
    except _UNREADABLE as error:
        what = getattr(error, "strerror", None) or str(error).partition("\n")[0]
        raise InputError(f"{path}: it is no readable {path.suffix} file ({what})") from None


def _opened(archive: zipfile.ZipFile, member: str) -> IO[bytes]:
    info = archive.getinfo(member)
    # numpy uses no others, and each has errors of its own.
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"{member} is compressed in a way that numpy never uses")
    return archive.open(info)


def _read_header(file: IO[bytes], member: str = "") -> tuple[tuple[int, ...], np.dtype[Any], bool]:
    """Return the shape, the dtype and the order of an array, and leave the file at its values."""
    name = member or "it"
    magic = file.read(len(_MAGIC))
    length = _LENGTHS.get(file.read(2))
    if magic != _MAGIC or length is None:
        raise ValueError(f"{name} is no array of numpy's")
    size = int.from_bytes(file.read(length), "little")
    header = file.read(size) if size <= _MAX_HEADER else b""
    match = _HEADER.fullmatch(header)
    if _OBJECTS.match(header):
        raise ValueError(
            f"{name} holds pickled objects, which are not read; save texts as "
            "np.array(texts, dtype='S')"
        )
    if match is None:
        raise ValueError(f"{name} is no array of numbers or texts")
    sizes = match["shape"].replace(b"L", b"").split(b",")
    shape = tuple(int(size) for size in sizes if size.strip())
    if len(shape) > _MAX_AXES:
        raise ValueError(f"{name} has {len(shape)} axes, and numpy knows {_MAX_AXES}")
    return shape, np.dtype(match["dtype"].decode()), match["fortran"] == b"True"
