"""Where the parts of partitioned variables lie, as savers write it down."""

from __future__ import annotations

from typing import NamedTuple

from converter.errors import InputError


class Slice(NamedTuple):
    """Where a node's part of a partitioned variable lies."""

    full: tuple[int, ...]
    offset: tuple[int, ...]
    shape: tuple[int, ...]


def read_slice(spec: str) -> Slice | None:
    """Return what `48 20 0,48:0,10` says: the full shape, and start and length for each axis.

    None for all of the variable.

    Raises:
        InputError: it is no slice.
    """
    sizes, _, extents = spec.rpartition(" ")
    if not sizes:
        return None
    try:
        full = tuple(map(int, sizes.split(" ")))
        pairs = [
            _extent(extent, size) for size, extent in zip(full, extents.split(":"), strict=True)
        ]
    except ValueError:
        raise InputError(
            f"the graph saves a slice {spec!r}, which is none; it is damaged"
        ) from None
    offset, shape = tuple(begin for begin, _ in pairs), tuple(size for _, size in pairs)
    return None if shape == full else Slice(full, offset, shape)


def _extent(text: str, size: int) -> tuple[int, int]:
    begin, length = (0, size) if text == "-" else map(int, text.split(","))
    if not 0 <= begin <= begin + length <= size:
        raise ValueError
    return begin, length
