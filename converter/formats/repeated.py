"""The numbers of a repeated protobuf field, decoded window by window, packed or not."""

from __future__ import annotations

from collections.abc import Callable
from threading import Lock
from typing import NamedTuple

import numpy as np

from converter.formats.wire import BYTES, FIXED32, FIXED64, VARINT, Field, fields, varints
from converter.variable import Array

WIDTHS = {FIXED32: 4, FIXED64: 8, BYTES: 1}
"""Bytes of a number on the wire, where it has a fixed width; a `bytes` field counts as packed."""

_WINDOW = 1 << 16
_CHUNK_BYTES = 128 << 10


class _Mark(NamedTuple):
    """Where decoding goes on: a position, and the end of the packed run that it lies in.

    Between two fields both are the same.
    """

    at: int
    run_stop: int


class Repeated:
    """The numbers of a repeated field, in the order in which they are stored.

    Any of them can be asked for. What is held is one window of them, and for each window before
    it a mark of where it begins, so that none is decoded from the start of the field twice.

    Args:
        message: the message that the field belongs to.
        number: of the field.
        kind: wire type of a number that is not packed.
        convert: turns decoded varints (uint64) into items.
        width: bytes of an item, which is an unsigned integer.
    """

    def __init__(
        self,
        message: Field,
        number: int,
        kind: int,
        convert: Callable[[Array], Array],
        width: int,
    ) -> None:
        self.dtype = np.dtype(f"<u{width}")
        self._lock = Lock()
        self._message = message
        self._number = number
        self._kind = kind
        self._convert = convert
        self._marks = [_Mark(message.start, message.start)]
        self._held: tuple[int, Array] = (-1, np.empty(0, self.dtype))

    def take(self, first: int, stop: int) -> Array:
        """Return the items from `first` to `stop`, or to the last that is stored.

        Raises:
            InputError: they are damaged.
        """
        parts = [np.empty(0, self.dtype)]
        with self._lock:
            for index in range(first // _WINDOW, -(-stop // _WINDOW)):
                window, base = self._window(index), index * _WINDOW
                parts.append(window[max(0, first - base) : stop - base])
                if len(window) < _WINDOW:
                    break
        return parts[1] if len(parts) == 2 else np.concatenate(parts[1:] or parts)

    def count(self) -> int:
        """Return how many are stored.

        Raises:
            InputError: they are damaged.
        """
        with self._lock:
            while len(self._window(len(self._marks) - 1)) == _WINDOW:
                pass
            return (len(self._marks) - 1) * _WINDOW + len(self._held[1])

    def _window(self, index: int) -> Array:
        held, items = self._held
        while held != index:
            held = min(index, len(self._marks) - 1)
            items, mark = self._decode(self._marks[held])
            if len(items) == _WINDOW:
                if held == len(self._marks) - 1:
                    self._marks.append(mark)
            elif held < index:
                return items[:0]
        self._held = held, items
        return items

    def _decode(self, mark: _Mark) -> tuple[Array, _Mark]:
        parts, found = [np.empty(0, self.dtype)], 0
        while found < _WINDOW:
            items, mark = self._step(mark, _WINDOW - found)
            if not len(items):
                break
            parts.append(items)
            found += len(items)
        return np.concatenate(parts[1:] or parts), mark

    def _step(self, mark: _Mark, limit: int) -> tuple[Array, _Mark]:
        if mark.at == mark.run_stop:
            singles, mark = self._advance(mark.at, limit)
            if singles or mark.at == mark.run_stop:
                return self._items(np.array(singles, np.uint64)), mark
        at, run_stop = mark
        source, width = self._message.source, WIDTHS.get(self._kind)
        if width:
            data = source.bytes(at, min(limit, (run_stop - at) // width) * width)
            return np.frombuffer(data, self.dtype), _Mark(at + len(data), run_stop)
        data = source.bytes(at, min(_CHUNK_BYTES, run_stop - at))
        try:
            values, used = varints(data, limit)
        except ValueError as error:
            raise source.damaged(at, str(error)) from None
        if not used:
            raise source.damaged(at, "a varint has no end")
        return self._items(values), _Mark(at + used, run_stop)

    def _advance(self, at: int, limit: int) -> tuple[list[int], _Mark]:
        """Return the numbers that stand alone from here on, or else the next packed run."""
        singles: list[int] = []
        for entry in fields(self._message.source, at, self._message.stop):
            if entry.number == self._number:
                width = WIDTHS.get(self._kind, 1)
                if entry.kind == BYTES and entry.size % width:
                    raise entry.source.damaged(at, f"{entry.size} bytes are no whole numbers")
                if entry.kind == BYTES and singles:
                    break
                if entry.kind == BYTES and entry.size:
                    return [], _Mark(entry.start, entry.stop)
                if entry.kind != BYTES:
                    singles.append(_value(entry.expect(self._kind)))
            at = entry.stop
            if len(singles) == limit:
                break
        return singles, _Mark(at, at)

    def _items(self, values: Array) -> Array:
        return self._convert(values) if self._kind == VARINT else values.astype(self.dtype)


def _value(entry: Field) -> int:
    return entry.value if entry.kind == VARINT else int.from_bytes(entry.data(), "little")
