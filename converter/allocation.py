"""How this process gets memory from the system, and when it looks for garbage in it."""

from __future__ import annotations

import contextlib
import ctypes
import gc
from collections.abc import Iterator

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # As malloc.h of glibc numbers them.
_KEPT_BYTES = 64 << 20
_MAPPED_BYTES = 32 << 20  # The most that glibc accepts.


def keep_freed_memory() -> None:
    """Keep what is freed for the next allocation, where the C library is glibc.

    Variables stream in blocks of some megabytes. Left alone, glibc gives many of them back as they
    are freed, and the kernel clears every page again for the next one: a fifth of all time that
    padding a checkpoint takes. It holds for the whole process, so a library must not do it.
    """
    # Other C libraries have no such function.
    with contextlib.suppress(OSError, AttributeError):
        tune = ctypes.CDLL(None).mallopt
        tune(_M_MMAP_THRESHOLD, _MAPPED_BYTES)
        tune(_M_TRIM_THRESHOLD, _KEPT_BYTES)


@contextlib.contextmanager
def without_collections() -> Iterator[None]:
    """Let no garbage collection interrupt what makes many objects that all stay.

    Collections would find nothing, and look through whatever else there is: a third of the time in
    which a large index is read, and half of that of a graph with TensorFlow loaded.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
