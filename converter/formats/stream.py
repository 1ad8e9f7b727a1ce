"""Moves the bytes of variables into a file that is being written, and checks them on the way."""

from __future__ import annotations

import contextlib
import functools
import io
import os
import queue
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

import google_crc32c
import numpy as np

from converter.errors import InputError
from converter.variable import Array, Stored, Variable

COPY_BYTES = 512 << 10
"""Copied at a time: what is read stays in the processor's cache until it is written."""

_LARGE = 64 << 10  # Smaller pieces are gathered before they are handed on.
_AHEAD = 2  # Pieces that wait for the writer.
_FLUSH_BYTES = 8 << 20


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


class _Writer(threading.Thread):
    """Writes what it is handed, in order, while the one who hands it on reads the next piece.

    What cannot be written is raised by the next call of `hand` or by `finish`.
    """

    def __init__(self, file: io.FileIO, *, early: bool) -> None:
        super().__init__(daemon=True)
        self._file = file
        self._early = early and hasattr(os, "posix_fadvise")
        self._queue: queue.Queue[tuple[memoryview, Callable[[], None]] | None] = queue.Queue(_AHEAD)
        self._error: BaseException | None = None
        self.start()

    def hand(self, data: memoryview, release: Callable[[], None]) -> None:
        """Take bytes that must not change until `release` is called."""
        self._raise()
        self._queue.put((data, release))

    def wait(self) -> None:
        """Return when everything so far is with the operating system."""
        self._queue.join()
        self._raise()

    def finish(self) -> None:
        """Write the rest and end."""
        self._queue.put(None)
        self.join()
        self._raise()

    def abandon(self) -> None:
        """End without writing what is still in the queue."""
        self._error = self._error or InterruptedError()
        self._queue.put(None)
        self.join()

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    def run(self) -> None:
        """Write until the end is told; after an error, only empty the queue."""
        written = flushed = 0
        while (item := self._queue.get()) is not None:
            data, release = item
            try:
                if self._error is None:
                    written += self._write(data)
                    if self._early and written - flushed >= _FLUSH_BYTES:
                        # On Linux this starts to write dirty pages, and waits for nothing: the
                        # disk works while we read, and the last fsync finds little left to do.
                        count = written - flushed
                        with contextlib.suppress(OSError):
                            os.posix_fadvise(
                                self._file.fileno(), flushed, count, os.POSIX_FADV_DONTNEED
                            )
                        flushed = written
            # Whatever it is belongs to the thread that waits for the output.
            except BaseException as error:
                self._error = error
            finally:
                release()
                self._queue.task_done()
        self._queue.task_done()

    def _write(self, data: memoryview) -> int:
        done = 0
        while done < len(data):
            done += self._file.write(data[done:]) or 0
        return done


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
        self._file = io.FileIO(path, "x")
        self._writer = _Writer(self._file, early=sync)
        self._small = bytearray()
        self._source: tuple[Path, int] | None = None
        self._free: queue.SimpleQueue[Array] = queue.SimpleQueue()
        for _ in range(_AHEAD + 2):
            self._free.put(np.empty(COPY_BYTES, np.uint8))

    def write(self, data: bytes | Array) -> int:
        """Append bytes, or the bytes of a C-ordered array, and return their CRC-32C.

        The array must not change before the output is closed.
        """
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
        self._count(len(raw))
        if len(raw) >= _LARGE:
            self._hand_small()
            self._writer.hand(memoryview(raw), _nothing)
            return
        self._small += raw
        if len(self._small) >= COPY_BYTES:
            self._hand_small()

    def _hand_small(self) -> None:
        if self._small:
            self._writer.hand(memoryview(self._small), _nothing)
            self._small = bytearray()

    def _count(self, count: int) -> None:
        self.position += count
        self._progress(count)

    def _copy(self, stored: Stored) -> int:
        source = self._descriptor(stored.file)
        crc, done = 0, 0
        while done < stored.size:
            buffer = self._free.get()
            piece = buffer[: min(COPY_BYTES, stored.size - done)]
            count = os.preadv(source, [piece.data], stored.offset + done)
            if not count:
                raise InputError(_short(stored.file, stored.offset + done, stored.size - done))
            crc = crc32c(piece[:count], crc)
            if count >= _LARGE:
                self._hand_small()
                self._count(count)
                self._writer.hand(piece[:count].data, functools.partial(self._free.put, buffer))
            else:
                self._append(piece[:count])
                self._free.put(buffer)
            done += count
        return crc

    def _copy_by_kernel(self, stored: Stored) -> None:
        if not hasattr(os, "copy_file_range"):
            self._copy(stored)
            return
        source = self._descriptor(stored.file)
        self._hand_small()
        self._writer.wait()
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
            self._count(count)

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
            self._hand_small()
            self._writer.finish()
            if self._sync:
                os.fsync(self._file.fileno())
        except BaseException:
            self._writer.abandon()
            raise
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
            self._writer.abandon()
            self._close_source()
            self._file.close()


def _nothing() -> None:
    pass
