"""Walks protobuf's wire format where it lies: fields are found, and no message is built.

A message of gigabytes costs what its field headers cost, and nothing is read that is not asked
for. Every length is checked against the message around it, before anything is read or allocated.

References:
    https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from converter.errors import InputError
from converter.formats.region import Read
from converter.variable import Array

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
_KINDS = {
    VARINT: "a varint",
    FIXED64: "8 bytes",
    BYTES: "a length and bytes",
    FIXED32: "4 bytes",
}
MAX_VARINT = 10
"""Bytes of the longest varint."""

_WINDOW_BYTES = 64 << 10
# By length of a varint: its bits in the first eight bytes.
_GROUPS = np.array([int.from_bytes(b"\x7f" * min(n, 8), "little") for n in range(11)], np.uint64)
_FOLDS = [
    (np.uint64(0x00FF00FF00FF00FF), np.uint64(1)),
    (np.uint64(0x0000FFFF0000FFFF), np.uint64(2)),
    (np.uint64(0x00000000FFFFFFFF), np.uint64(4)),
]


class Source:
    """Bytes that hold a message, read through a small window.

    Attributes:
        size: how many bytes there are.
        subject: begins the message of every error: the file, or the file and what in it.
    """

    def __init__(self, read: Read, size: int, subject: str) -> None:
        self.size = size
        self.subject = subject
        self._read = read
        # A position and the bytes from there on, replaced as one: threads may share a source.
        self._window = 0, b""

    def message(self) -> Iterator[Field]:
        """Yield the fields of the message that all of the bytes are."""
        return fields(self, 0, self.size)

    def bytes(self, start: int, size: int) -> bytes:
        """Return bytes that a field was found to have."""
        base, window = self._window
        if base <= start and start + size <= base + len(window):
            return window[start - base : start - base + size]
        data = bytes(self._read(start, size))
        if len(data) != size:
            raise self.damaged(start, f"{len(data)} bytes are left where {size} are needed")
        return data

    def varint(self, at: int, stop: int) -> tuple[int, int]:
        """Return the varint at a position, cut to 64 bits, and the position behind it."""
        base, window = self._window
        # Nearly all are one byte: this is what the speed of walking depends on.
        if base <= at < stop and at < base + len(window) and window[at - base] < 0x80:
            return window[at - base], at + 1
        longest = min(MAX_VARINT, stop - at)
        if at < base or at + longest > base + len(window):
            base, window = at, self.bytes(at, min(_WINDOW_BYTES, self.size - at))
            self._window = base, window
        value = 0
        for index, byte in enumerate(window[at - base : at - base + longest]):
            value |= (byte & 0x7F) << (7 * index)
            if byte < 0x80:
                return value & 0xFFFF_FFFF_FFFF_FFFF, at + index + 1
        raise self.damaged(at, "a varint has no end")

    def damaged(self, at: int, fault: str) -> InputError:
        """Return the error for what is found at a position."""
        return InputError(f"{self.subject}: {fault}, at byte {at} of its message; it is damaged")


class Field(NamedTuple):
    """One field of a message.

    Attributes:
        source: the bytes that it lies in.
        number: its number.
        kind: its wire type.
        value: what it holds, for varints; 0 for the other kinds.
        start: position of its contents.
        size: bytes of its contents.
    """

    source: Source
    number: int
    kind: int
    value: int
    start: int
    size: int

    @property
    def stop(self) -> int:
        """Position behind the field."""
        return self.start + self.size

    def message(self) -> Iterator[Field]:
        """Yield the fields of the message that this field holds."""
        return fields(self.expect(BYTES).source, self.start, self.stop)

    def data(self) -> bytes:
        """Return the contents."""
        return self.source.bytes(self.start, self.size)

    def text(self) -> str:
        """Return the contents as text; bytes that are no UTF-8 become surrogate escapes."""
        return self.expect(BYTES).data().decode("utf-8", "surrogateescape")

    def integer(self) -> int:
        """Return the value of a varint as a signed number (int32, int64, enums, booleans)."""
        value = self.expect(VARINT).value
        return value - (1 << 64) if value >> 63 else value

    def expect(self, kind: int) -> Field:
        """Return the field, if it is of a kind.

        Raises:
            InputError: it is of another.
        """
        if self.kind != kind:
            raise self.source.damaged(
                self.start, f"field {self.number} is {_KINDS[self.kind]}, not {_KINDS[kind]}"
            )
        return self


def fields(source: Source, start: int, stop: int) -> Iterator[Field]:
    """Yield the fields between two positions, the first of which begins a field."""
    at = start
    while at < stop:
        tag, at = source.varint(at, stop)
        number, kind = tag >> 3, tag & 7
        if not 0 < number < 1 << 29 or kind not in _KINDS:
            raise source.damaged(at, f"there is no field of number {number} and kind {kind}")
        value = size = 0
        if kind == VARINT:
            # Where a varint stands has no use: `start` is behind it, and `size` is 0.
            value, at = source.varint(at, stop)
        elif kind == BYTES:
            size, at = source.varint(at, stop)
        else:
            size = 8 if kind == FIXED64 else 4
        if size > stop - at:
            raise source.damaged(at, f"field {number} says {size} bytes where {stop - at} are left")
        yield Field(source, number, kind, value, at, size)
        at += size


def varints(data: bytes, limit: int) -> tuple[Array, int]:
    """Decode the varints that `data` begins with, cut to 64 bits.

    Args:
        data: varints back to back; the last one may be cut off.
        limit: how many to decode at most.

    Returns:
        The values as an array of uint64, which is empty where not one is complete, and the
        number of bytes that they take.

    Raises:
        ValueError: one is longer than ten bytes.
    """
    encoded = np.frombuffer(data, np.uint8)
    ends = np.flatnonzero(encoded < 0x80)[:limit]
    edges = np.concatenate([[0], ends + 1])
    used, starts, lengths = int(edges[-1]), edges[:-1], np.diff(edges)
    longest = int(lengths.max(initial=0))
    if longest > MAX_VARINT or (len(ends) < limit and len(data) - used >= MAX_VARINT):
        raise ValueError("a varint has more than ten bytes")
    if longest <= 1:
        return encoded[:used].astype(np.uint64), used
    # Eight bytes at every start, without those of the next varint; then the groups of 7 bits
    # are pushed together in pairs, which makes groups of 14, 28 and 56.
    words = np.ndarray(used, "<u8", data[:used] + bytes(8), strides=(1,))
    values = words[starts]
    values &= _GROUPS[lengths]
    for low, bits in _FOLDS:
        high = values & ~low
        high >>= bits
        values &= low
        values |= high
    for index in range(8, longest):
        longer = np.flatnonzero(lengths > index)
        group = (encoded[starts[longer] + index] & 0x7F).astype(np.uint64)
        values[longer] |= group << np.uint64(7 * index)
    return values, used
