"""Batches from files: `.npz` with arrays by the names of inputs, `.npy` for a single input.

Rows are read as they are needed, so that a file can be larger than the memory.
"""

from __future__ import annotations

import contextlib
import math
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple

import numpy as np

from converter.errors import InputError, UsageError
from converter.variable import Array

if TYPE_CHECKING:
    from converter.forward.inputs import Input

BATCH = 64
"""Rows that are run at once where nobody says how many."""

_SUFFIXES = (".npz", ".npy")
_MAX_BATCH_BYTES = 1 << 31
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
class _Header:
    """What an array in a file is, before any of it is read."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    is_fortran: bool

    @property
    def row_bytes(self) -> int:
        return math.prod(self.shape[1:]) * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class DataFile:
    """A file of arrays that the model is run on.

    Attributes:
        path: the file.
        headers: of its arrays by name; the name is empty in an `.npy` file.
    """

    path: Path
    headers: Mapping[str, _Header]

    @property
    def rows(self) -> int | None:
        """How many rows its arrays have in common; None where they differ."""
        firsts = {header.shape[0] for header in self.headers.values() if header.shape}
        return firsts.pop() if len(firsts) == 1 else None

    def batches(self, size: int | None, *, keep_rest: bool) -> Iterator[dict[str, Array]]:
        """Yield its rows in batches; arrays without axes go with each of them.

        Args:
            size: how many rows a batch has; None to take all at once where the arrays differ in
                their rows, and else BATCH.
            keep_rest: whether the last batch may have less rows.

        Raises:
            InputError: it is unreadable or damaged, or has NaN in it.
            UsageError: its arrays cannot be cut alike.
        """
        rows = self.rows
        if rows is None and size is not None and any(h.shape for h in self.headers.values()):
            sizes = ", ".join(f"{n}: {h.shape[0]}" for n, h in self.headers.items() if h.shape)
            raise UsageError(
                f"{self.path}: its arrays have not the same number of rows ({sizes}), so it cannot "
                "be cut; leave out --batch-size"
            )
        if rows is None:
            yield dict(self._whole())
            return
        size = size or BATCH
        largest = max(header.row_bytes for header in self.headers.values()) * min(size, rows)
        if largest > _MAX_BATCH_BYTES:
            raise UsageError(
                f"{self.path}: a batch of {min(size, rows)} rows takes {largest / 1e9:.1f} GB; "
                "take less at once (--batch-size N)"
            )
        with contextlib.ExitStack() as stack, _told(self.path):
            readers = {n: self._reader(n, h, stack) for n, h in self.headers.items()}
            for start in range(0, rows if keep_rest else rows - rows % size, size):
                count = min(size, rows - start)
                yield {
                    name: self._checked(name, read(start, count)) for name, read in readers.items()
                }

    def _whole(self) -> Iterator[tuple[str, Array]]:
        with contextlib.ExitStack() as stack, _told(self.path):
            for name, header in self.headers.items():
                rows = header.shape[0] if header.shape else 1
                if header.row_bytes * rows > _MAX_BATCH_BYTES:
                    raise InputError(f"{self.path}: {name} is too large to be read at once")
                yield name, self._checked(name, self._reader(name, header, stack)(0, rows))

    def _reader(
        self, name: str, header: _Header, stack: contextlib.ExitStack
    ) -> Callable[[int, int], Array]:
        """Return what gives the rows from a place on, asked for in their order."""
        if self.path.suffix == ".npy":
            mapped = np.load(self.path, mmap_mode="r", allow_pickle=False)
            return lambda start, count: np.array(mapped[start : start + count])
        archive = stack.enter_context(zipfile.ZipFile(self.path))
        member = f"{name}.npy"
        if member not in archive.namelist():
            member = name
        if not header.shape or (header.is_fortran and len(header.shape) > 1):
            file = stack.enter_context(archive.open(member))
            values = np.lib.format.read_array(file, allow_pickle=False)
            return lambda start, count: values[start : start + count] if values.shape else values
        file = stack.enter_context(archive.open(member))
        _read_header(file)
        return lambda start, count: _next_rows(file, header, count, member)

    def _checked(self, name: str, values: Array) -> Array:
        if values.dtype.kind in "fc" and (count := int(np.isnan(values).sum())):
            subject = f"{self.path}: {name}" if name else str(self.path)
            raise InputError(f"{subject}: {count} of {values.size} values of a batch are NaN")
        return values


def _next_rows(file: IO[bytes], header: _Header, count: int, member: str) -> Array:
    wanted = header.row_bytes * count
    data = file.read(wanted)
    if len(data) != wanted:
        raise EOFError(f"{member} ends before its header says")
    return np.frombuffer(data, header.dtype).reshape(count, *header.shape[1:])


def open_data(paths: Iterable[Path]) -> list[DataFile]:
    """Return the files of data that paths name, directories in the order of their names.

    Only headers are read.

    Raises:
        UsageError: a path is missing or no such file, or a directory has none.
        InputError: a file is unreadable or damaged.
    """
    found = []
    for path in paths:
        if path.is_dir():
            inside = sorted(p for p in path.iterdir() if p.suffix in _SUFFIXES)
            if not inside:
                raise UsageError(f"{path}: there is no .npz or .npy file in it")
            found += inside
        elif not path.exists():
            raise UsageError(f"{path}: there is no such file or directory")
        elif path.suffix not in _SUFFIXES:
            raise UsageError(f"{path}: data are .npz or .npy files; save them with np.savez")
        else:
            found.append(path)
    return [_open(path) for path in found]


def _open(path: Path) -> DataFile:
    with _told(path):
        if path.suffix == ".npy":
            with path.open("rb") as file:
                header = _read_header(file)
            if not header.shape:
                raise ValueError("it holds a single number, no rows")
            return DataFile(path, {"": header})
        headers = {}
        with zipfile.ZipFile(path) as archive:
            for member in archive.namelist():
                with archive.open(member) as file:
                    headers[member.removesuffix(".npy")] = _read_header(file)
        if not headers:
            raise ValueError("it holds no arrays")
        return DataFile(path, headers)


def _read_header(file: IO[bytes]) -> _Header:
    version = np.lib.format.read_magic(file)
    read = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }.get(version)
    if read is None:
        raise ValueError(f"its version {version} is for arrays of records")
    shape, is_fortran, dtype = read(file)
    if dtype.hasobject or dtype.names:
        raise ValueError(f"{dtype} is no dtype of plain arrays")
    if any(size < 0 for size in shape):
        raise ValueError(f"no array has the shape {list(shape)}")
    return _Header(shape, dtype, is_fortran)


@contextlib.contextmanager
def _told(path: Path) -> Iterator[None]:
    """Tell what is wrong with a file by one line."""
    try:
        yield
    except _UNREADABLE as error:
        what = getattr(error, "strerror", None) or str(error).partition("\n")[0]
        raise InputError(f"{path}: it is no readable {path.suffix} file ({what})") from None


class Cut(NamedTuple):
    """How files are cut into batches.

    Attributes:
        name: of the input that `.npy` files are for.
        rows: of a batch; None as in `DataFile.batches`.
        keep_rest: whether the last batch may have less.
        notes: what is to be said of it, one line each.
    """

    name: str
    rows: int | None
    keep_rest: bool
    notes: tuple[str, ...]


def cut(files: Sequence[DataFile], inputs: Sequence[Input], rows: int | None) -> Cut:
    """Return how files are cut so that a model takes them.

    Args:
        files: what `open_data` gave.
        inputs: what the model has to be given.
        rows: of a batch, as somebody says; None for what the graph fixes.

    Raises:
        UsageError: an array has no name, and the model takes several.
    """
    names = [str(found.tensor) for found in inputs]
    unnamed = next((file for file in files if "" in file.headers), None)
    if unnamed is not None and len(names) != 1:
        raise UsageError(
            f"{unnamed.path}: it holds one array without a name, and the model takes "
            f"{', '.join(names) or 'nothing'}; save them by name in an .npz"
        )
    # What the graph fixes cannot be cut in another way.
    fixed = {found.shape[0] for found in inputs if found.shape and found.shape[0] > 0}
    if rows is None and len(fixed) == 1:
        (rows,) = fixed
    rests = [file.rows % rows for file in files if file.rows is not None and rows and fixed]
    notes = (
        (f"the graph takes {rows} rows at once; {sum(rests)} are left over",) if any(rests) else ()
    )
    return Cut(names[0] if names else "", rows, not fixed, notes)


def batches(
    files: Sequence[DataFile], name: str, size: int | None, *, keep_rest: bool
) -> Iterator[dict[str, Array]]:
    """Yield the batches of files one after the other.

    Args:
        files: what `open_data` gave.
        name: of the input that `.npy` files are for.
        size: as in `DataFile.batches`.
        keep_rest: as in `DataFile.batches`.
    """
    for file in files:
        for batch in file.batches(size, keep_rest=keep_rest):
            yield {key or name: value for key, value in batch.items()}
