"""Moves the bytes of variables into a file that is being written, and checks them on the way."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

import google_crc32c
import numpy as np

from converter.errors import InputError
from converter.variable import Array, Stored, Variable

COPY_BYTES = 512 << 10
"""Copied at a time: what is read stays in the processor's cache until it is written."""


def crc32c(data: bytes | Array, crc: int = 0) -> int:
    """Return the CRC-32C (Castagnoli, not masked) of bytes or of a C-ordered array's bytes.

    Args:
        data: what to add.
        crc: the checksum of what came before.
    """
    if isinstance(data, np.ndarray):
        data = data.reshape(-1).view(np.uint8)
    extended: int = google_crc32c.extend(crc, data)
    return extended


def crc32c_of_range(path: Path, offset: int, size: int) -> int:
    """Return the CRC-32C of `size` bytes of a file, read in small pieces.

    Raises:
        InputError: the file is missing or ends before the range does.
    """
    crc = 0
    buffer = np.empty(min(COPY_BYTES, max(size, 1)), np.uint8)
    source = _open(path)
    try:
        done = 0
        while done < size:
            piece = buffer[: min(len(buffer), size - done)]
            count = os.preadv(source, [piece.data], offset + done)
            if not count:
                raise InputError(_short(path, offset + done, size - done))
            crc = google_crc32c.extend(crc, piece[:count])
            done += count
    finally:
        os.close(source)
    return crc


def _open(path: Path) -> int:
    try:
        return os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from error


def _short(path: Path, offset: int, missing: int) -> str:
    return f"{path}: the file ends at byte {offset}, where {missing} more are needed; it was cut"


class Output:
    """A new file that is written from its first byte to its last.

    Args:
        path: must not exist.
        verify: compare copied bytes with the checksum that their source records.
        checksum: compute the checksum of copied bytes even where nobody compares it; without
            it, and without `verify`, the kernel copies them and no byte passes through here.
        sync: make `close` wait until the disk has everything.
        progress: called with the number of bytes of each piece that was written.

    Attributes:
        position: bytes written so far.
    """

    def __init__(
        self,
        path: Path,
        *,
        verify: bool = True,
        checksum: bool = True,
        sync: bool = True,
        progress: Callable[[int], None] | None = None,
    ) -> None:
        self.path = path
        self.position = 0
        self._verify = verify
        self._checksum = checksum
        self._sync = sync
        self._progress = progress or (lambda count: None)
        self._raw = io.FileIO(path, "x")
        self._file = io.BufferedWriter(self._raw, COPY_BYTES)
        self._source: tuple[Path, int] | None = None
        self._buffer = np.empty(COPY_BYTES, np.uint8)

    def write(self, data: bytes | Array) -> int:
        """Append bytes, or the bytes of a C-ordered array, and return their CRC-32C."""
        self._append(data)
        return crc32c(data)

    def put(self, variable: Variable) -> int | None:
        """Append the value of a variable of fixed-size elements.

        Bytes that are stored as they are meant are copied without decoding.

        Returns:
            The CRC-32C of the bytes; None where nobody wanted it and the source has none.

        Raises:
            InputError: the source is missing, too short, or differs from its checksum.
        """
        stored = variable.stored
        if stored is None:
            crc = 0
            for block in variable.blocks():
                self._append(block)
                crc = crc32c(block, crc) if self._checksum else 0
            return crc if self._checksum else None
        if not (self._checksum or (self._verify and stored.crc32c is not None)):
            self._copy_by_kernel(stored)
            return stored.crc32c
        crc = self._copy(stored)
        if self._verify and stored.crc32c not in (None, crc):
            raise InputError(
                f"{stored.file}: the bytes of {variable.name} have checksum {crc:08x} where "
                f"{stored.crc32c:08x} is recorded; the file is damaged, or of another save "
                "than its index"
            )
        return crc

    def _append(self, data: bytes | Array) -> None:
        raw = data.reshape(-1).view(np.uint8).data if isinstance(data, np.ndarray) else data
        self._file.write(raw)
        self.position += len(raw)
        self._progress(len(raw))

    def _copy(self, stored: Stored) -> int:
        source = self._descriptor(stored.file)
        crc, done = 0, 0
        while done < stored.size:
            piece = self._buffer[: min(COPY_BYTES, stored.size - done)]
            count = os.preadv(source, [piece.data], stored.offset + done)
            if not count:
                raise InputError(_short(stored.file, stored.offset + done, stored.size - done))
            self._append(piece[:count])
            crc = crc32c(piece[:count], crc)
            done += count
        return crc

    def _copy_by_kernel(self, stored: Stored) -> None:
        if not hasattr(os, "copy_file_range"):
            self._copy(stored)
            return
        source = self._descriptor(stored.file)
        self._file.flush()
        done = 0
        while done < stored.size:
            try:
                count = os.copy_file_range(
                    source,
                    self._file.fileno(),
                    min(stored.size - done, 64 << 20),
                    stored.offset + done,
                )
            except OSError:
                # Across filesystems, on old kernels and on some network mounts.
                rest = Stored(stored.file, stored.offset + done, stored.size - done)
                self._copy(rest)
                return
            if not count:
                raise InputError(_short(stored.file, stored.offset + done, stored.size - done))
            done += count
            self.position += count
            self._progress(count)

    def _descriptor(self, path: Path) -> int:
        # Neighbouring variables come from one file as a rule: the last one stays open.
        if self._source is None or self._source[0] != path:
            self._close_source()
            self._source = (path, _open(path))
        return self._source[1]

    def _close_source(self) -> None:
        if self._source is not None:
            os.close(self._source[1])
            self._source = None

    def close(self) -> None:
        """Hand everything to the disk (with `sync`, wait until it is there) and close."""
        try:
            self._file.flush()
            if self._sync:
                os.fsync(self._file.fileno())
        finally:
            self._close_source()
            self._file.close()

    def __enter__(self) -> Output:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self.close()
        else:
            self._close_source()
            # Not through the buffer: what could not be written cannot be flushed either.
            self._raw.close()
