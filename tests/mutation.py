"""Damages bytes, protobuf messages and tables, in the ways on which parsers are known to trip.

What has checksums is sealed again afterwards, so that the damage reaches the parser.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

from google.protobuf.message import DecodeError
from wire_writer import varint

from converter.formats.messages import message
from converter.formats.stream import crc32c
from converter.formats.table import MAGIC, RAW, SNAPPY, Table, get_varint, mask

NUMBERS = (
    *(0, 1, 2, 3, 7, 100, 127, 128, 255, 256, 65535, 65536),
    *(2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**40, 2**53, 2**60, 2**62, 2**63 - 1, 2**63),
    *(2**64 - 2, 2**64 - 1),
)
_BYTES = (0x00, 0x7F, 0x80, 0xFF)
# More than the ten bytes that any varint has.
_ENDLESS = b"\xff" * 11

Items = list[tuple[bytes, bytes]]


def damage(rng: Random, data: bytes, *, keep_size: bool = False) -> bytes:
    """Return bytes with one to three changes; with `keep_size`, everything stays in its place."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        _damage_once(rng, out, keep_size=keep_size)
    return bytes(out)


def _damage_once(rng: Random, out: bytearray, *, keep_size: bool) -> None:
    at = rng.randrange(len(out) + 1) if not keep_size else rng.randrange(max(len(out), 1))
    stop = min(len(out), at + rng.choice((1, 2, 4, 8, 40, 400)))
    way = rng.choice(("flip", "set", "set", "number") if keep_size or not out else _WAYS)
    if way == "flip" and at < len(out):
        out[at] ^= 1 << rng.randrange(8)
    elif way == "set" and at < len(out):
        out[at] = rng.choice(_BYTES)
    elif way == "number":
        width = min(rng.choice((4, 8)), len(out) - at)
        number = rng.choice(NUMBERS).to_bytes(8, "little")
        out[at : at + width] = number[:width]
    elif way == "insert":
        out[at:at] = rng.choice((rng.randbytes(4), bytes(8), b"\xff" * 9, b"\x80" * 400))
    elif way == "delete":
        del out[at:stop]
    elif way == "duplicate":
        out[at:at] = out[at:stop] * rng.choice((1, 1, 50))
    elif way == "truncate":
        del out[at:]
    elif way == "varint":
        out[at : at + 1] = rng.choice((_ENDLESS, varint(rng.choice(NUMBERS))))


_WAYS = ("flip", "set", "set", "number", "insert", "delete", "duplicate", "truncate", "varint")


# -- protobuf -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Piece:
    """One field of a message: the number and wire type of its tag, and its content."""

    number: int
    kind: int
    content: bytes

    def encoded(self) -> bytes:
        size = varint(len(self.content)) if self.kind == 2 else b""
        return varint(self.number << 3 | self.kind) + size + self.content


def _split(data: bytes) -> list[_Piece] | None:
    """Return the fields of a message, or None where the bytes are none."""
    pieces, at = [], 0
    try:
        while at < len(data):
            tag, at = get_varint(data, at)
            number, kind = tag >> 3, tag & 7
            start = at
            if kind == 0:
                at = get_varint(data, at)[1]
            elif kind == 2:
                size, start = get_varint(data, at)
                at = start + size
            else:
                at += {1: 8, 5: 4}[kind]
            if at > len(data) or not number:
                return None
            pieces.append(_Piece(number, kind, data[start:at]))
    except (IndexError, KeyError, ValueError):
        return None
    return pieces


def damage_message(rng: Random, data: bytes, depth: int = 0) -> bytes:
    """Return a message with one field changed, somewhere within; the lengths around it fit."""
    pieces = _split(data)
    if not pieces or rng.random() < 0.05:
        return damage(rng, data)
    at = rng.randrange(len(pieces))
    piece = pieces[at]
    way = rng.random()
    if way < 0.1:
        del pieces[at]
    elif way < 0.2:
        pieces[at:at] = [piece] * rng.choice((1, 1, 2, 300))
    elif way < 0.25:
        pieces.append(pieces.pop(at))
    elif way < 0.3:
        pieces[at] = replace(piece, number=rng.choice((1, 2, 3, 5, 7, 19, 2**29 - 1)))
    elif way < 0.35:
        pieces[at] = rng.choice(
            (
                replace(piece, kind=2),
                replace(piece, kind=rng.choice((3, 4))),
                _Piece(piece.number, 5, rng.randbytes(4)),
                _Piece(piece.number, 1, rng.randbytes(8)),
                _Piece(piece.number, 0, varint(rng.choice(NUMBERS))),
                _nested(piece.number, rng.choice((3, 200))),
            )
        )
    elif piece.kind == 0:
        near = get_varint(piece.content, 0)[0] + rng.choice((-1, 1))
        value = rng.choice((varint(rng.choice(NUMBERS)), varint(near), _ENDLESS[:10]))
        pieces[at] = replace(piece, content=value)
    elif piece.kind == 2 and depth < 8 and rng.random() < 0.8:
        pieces[at] = replace(piece, content=damage_message(rng, piece.content, depth + 1))
    else:
        pieces[at] = replace(piece, content=damage(rng, piece.content, keep_size=piece.kind != 2))
    return b"".join(piece.encoded() for piece in pieces)


def _nested(number: int, depth: int) -> _Piece:
    piece = _Piece(number, 2, b"")
    for _ in range(depth):
        piece = _Piece(number, 2, piece.encoded())
    return piece


# -- tables ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sealed:
    """One block of a table: its bytes as stored, their type, and the last key of the index."""

    last: bytes
    stored: bytes
    kind: int = RAW


def read_items(path: Path) -> Items:
    """Return all keys and values of an intact table."""
    return list(Table(path).items())


def pack(items: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Return the contents of a block with each key in full, in whatever order they come."""
    out, restarts = b"", []
    for key, value in items:
        restarts.append(len(out))
        out += b"\0" + varint(len(key)) + varint(len(value)) + key + value
    tail = [*restarts, len(restarts)] if restarts else [0, 1]
    return out + b"".join(number.to_bytes(4, "little") for number in tail)


def blocks_of(rng: Random, items: Items) -> list[Sealed]:
    """Return blocks of one or several items each."""
    size = rng.choice((1, 3, 16, len(items) or 1))
    groups = [items[i : i + size] for i in range(0, len(items), size)]
    return [Sealed(group[-1][0], pack(group)) for group in groups]


def compress(block: Sealed) -> Sealed:
    """Return the block as a snappy block."""
    import cramjam

    return Sealed(block.last, bytes(cramjam.snappy.compress_raw(block.stored)), SNAPPY)


def seal(blocks: Sequence[Sealed], change: Callable[[bytes], bytes] = bytes) -> bytes:
    """Return a table of blocks, with checksums; `change` is applied to the block of the index."""
    out = b""

    def put(stored: bytes, kind: int) -> bytes:
        nonlocal out
        handle = varint(len(out)) + varint(len(stored))
        sealed = stored + bytes([kind])
        out += sealed + mask(crc32c(sealed)).to_bytes(4, "little")
        return handle

    index = [(block.last, put(block.stored, block.kind)) for block in blocks]
    footer = put(pack([]), RAW) + put(change(pack(index)), RAW)
    return out + footer.ljust(40, b"\0") + MAGIC


def seal_again(data: bytes, table: Table) -> bytes:
    """Return a table that was changed in place with the checksums that its blocks have now."""
    out = bytearray(data)
    # The block of the index lies between the last one and the footer, behind the metaindex.
    places = [(block.offset, block.size) for block in table.blocks]
    footer = data[-48:]
    try:
        _, at = get_varint(footer, 0)
        _, at = get_varint(footer, at)
        offset, at = get_varint(footer, at)
        size, at = get_varint(footer, at)
        places.append((offset, size))
    except (IndexError, ValueError):
        pass
    for offset, size in places:
        end = offset + size + 1
        if end + 4 <= len(out):
            out[end : end + 4] = mask(crc32c(bytes(out[offset:end]))).to_bytes(4, "little")
    return bytes(out)


# -- bundles --------------------------------------------------------------------------------------


def seal_entries(items: Items, data: Mapping[int, bytearray]) -> Items:
    """Return the items of an index with the checksums that the data have now.

    The checksum within a string tensor is written into the data.
    """
    return [(key, _sealed(value, data) if key else value) for key, value in items]


def _sealed(value: bytes, data: Mapping[int, bytearray]) -> bytes:
    pieces = _split(value)
    try:
        entry = message("BundleEntryProto").FromString(value)
    except DecodeError:
        return value
    file = data.get(entry.shard_id)
    start, stop = entry.offset, entry.offset + entry.size
    if pieces is None or file is None or not 0 <= start <= stop <= len(file):
        return value
    crc = crc32c(bytes(file[start:stop]))
    if entry.dtype == 7:
        count = 1
        for dim in entry.shape.dim:
            count *= dim.size
        crc = _crc_of_strings(file, start, stop, count)
    content = mask(crc).to_bytes(4, "little")
    changed = [
        replace(piece, content=content) if (piece.number, piece.kind) == (6, 5) else piece
        for piece in pieces
    ]
    return b"".join(piece.encoded() for piece in changed)


def _crc_of_strings(file: bytearray, start: int, stop: int, count: int) -> int:
    at, crc = start, 0
    try:
        for _ in range(min(count, stop - start)):
            length, used = get_varint(bytes(file[at : min(stop, at + 10)]), 0)
            at += used
            crc = crc32c(length.to_bytes(4 if length < 2**32 else 8, "little"), crc)
    except (IndexError, ValueError):
        return 0
    if at + 4 > stop:
        return 0
    file[at : at + 4] = mask(crc).to_bytes(4, "little")
    return crc32c(bytes(file[at:stop]), crc)
