"""Reads files of activation statistics: what `scale` divides by."""

from __future__ import annotations

import math
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

from converter import (
    Array,
    Checkpoint,
    InputError,
    PlanError,
    Region,
    UsageError,
    Variable,
    open_checkpoint,
)
from converter.dtype import BY_NUMPY
from converter.patterns import nearest

_SUFFIX = "/mean_abs"

# What numpy writes before an array of numbers, version 1.0; Python 2 wrote sizes like `10L`.
_HEADER = re.compile(
    rb"\s*\{\s*'descr':\s*'(?P<dtype>[<>|=][fiu][1248])',\s*'fortran_order':\s*(?:True|False),"
    rb"\s*'shape':\s*\((?P<shape>[\dL, ]*)\),?\s*\}\s*"
)
# What zipfile raises on files that are none of its own; RuntimeError is for encryption and for what
# it does not implement.
_UNREADABLE = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    OSError,
    EOFError,
    ValueError,
    RuntimeError,
)


def read_mean_abs(path: Path, checkpoint: Checkpoint) -> dict[str, Array]:
    """Return the mean absolute value of each variable that the file has one for.

    Args:
        path: `.npz`, or whatever `open_checkpoint` takes, with keys `VARIABLE/mean_abs`.
        checkpoint: the variables.

    Returns:
        By variable name, an array of shape () or (size of the variable's last axis,), of finite
        numbers that are not negative.

    Raises:
        UsageError: the file is about none of the variables.
        PlanError: a statistic has another shape or is no such number.
        InputError: the file is unreadable or damaged.
    """
    is_npz = path.suffix == ".npz"
    entries = Checkpoint(_npz(path), path=path) if is_npz else open_checkpoint(path)
    about = {key.removesuffix(_SUFFIX): key for key in entries if key.endswith(_SUFFIX)}
    found = [name for name in about if name in checkpoint]
    if not found:
        first = next(iter(about), None)
        raise UsageError(
            f"{path}: it has no key VARIABLE{_SUFFIX}"
            if first is None
            else f"{path}: none of its {len(about)} statistics is of a variable that is here, such "
            f"as {first!r}{nearest(first, checkpoint)}"
        )
    return {name: _checked(path, entries[about[name]], checkpoint[name]) for name in found}


def _checked(path: Path, entry: Variable, variable: Variable) -> Array:
    wanted = ((), variable.shape[-1:])
    if entry.shape not in wanted:
        raise PlanError(
            f"{variable.name}: its statistic in {path} is {list(entry.shape)}; it must be [] or "
            f"{list(wanted[1])}, the last axis"
        )
    if not entry.dtype.is_number or entry.dtype.name.startswith("complex"):
        raise PlanError(f"{variable.name}: its statistic in {path} is {entry.dtype}, no number")
    values = entry.read().astype(np.float64)
    if not np.isfinite(values).all() or (values < 0).any():
        raise PlanError(
            f"{variable.name}: its statistic in {path} has negative numbers, infinities or NaN; a "
            f"mean of absolute values cannot"
        )
    return values


def _npz(path: Path) -> Iterator[Variable]:
    """Give the arrays of an `.npz` file: only their headers are read.

    Not by numpy.load, which allocates what a header claims before it looks for the bytes.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                if member.filename.endswith(f"{_SUFFIX}.npy"):
                    with _opened(archive, member.filename) as file:
                        shape, dtype = _header(file)
                    name = member.filename.removesuffix(".npy")
                    known = BY_NUMPY[dtype.newbyteorder("<")]
                    yield Variable(name, known, shape, _loader(path, member.filename))
    except _UNREADABLE as error:
        raise InputError(f"{path}: it is no readable .npz file ({error})") from None


def _opened(archive: zipfile.ZipFile, member: str) -> IO[bytes]:
    info = archive.getinfo(member)
    # numpy uses no others, and each has errors of its own.
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"{member} is compressed in a way that numpy never uses")
    return archive.open(info)


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Return the shape and the dtype of an .npy file, and leave it at its values.

    The order of the values does not matter: there is one axis at most.
    """
    magic = file.read(10)
    match = _HEADER.fullmatch(file.read(int.from_bytes(magic[8:], "little")))
    if magic[:8] != b"\x93NUMPY\x01\x00" or match is None:
        raise ValueError(f"{file.name} is no array of numbers")
    sizes = match["shape"].replace(b"L", b"").split(b",")
    shape = tuple(int(size) for size in sizes if size.strip())
    return shape, np.dtype(match["dtype"].decode())


def _loader(path: Path, member: str) -> Callable[[Region], Array]:
    def load(region: Region) -> Array:
        try:
            with zipfile.ZipFile(path) as archive, _opened(archive, member) as file:
                shape, dtype = _header(file)
                data = file.read(math.prod(shape) * dtype.itemsize)
                # The CRC is checked where the end is met.
                if file.read(1):
                    raise ValueError(f"{member} is longer than its header says")
                values = np.frombuffer(data, dtype).reshape(shape)
        except _UNREADABLE as error:
            raise InputError(f"{path}: {member} cannot be read ({error})") from None
        return values.astype(dtype.newbyteorder("<"))[region or ...]

    return load
