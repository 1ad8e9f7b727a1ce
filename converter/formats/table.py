"""The sorted string table in which both TensorFlow checkpoint formats live.

A file is a row of blocks, an index of them, and a footer. A block is a row of entries, sorted by
key, each key stored as what differs from the one before. Everything of a file is untrusted.

References:
    tensorflow/core/lib/io: format.cc, table_builder.cc, block_builder.cc, table_options.h;
    tensorflow/core/lib/strings/ordered_code.cc; google/snappy's format_description.txt.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from converter.errors import InputError
from converter.formats.region import DataFile
from converter.formats.stream import crc32c, crc32c_of_range

MAGIC = bytes.fromhex("57fb808b247547db")
FOOTER_BYTES = 48
TRAILER_BYTES = 5
RAW, SNAPPY = 0, 1

BLOCK_SIZE = 262144
RESTART_INTERVAL = 16

HELD_BYTES = 1 << 20
"""Up to here, an uncompressed block is read whole; beyond, its values stay on disk."""

WINDOW_BYTES = 64 << 10
"""Read at a time to walk the keys of larger blocks."""

MAX_KEY_BYTES = 1 << 20

# The densest element of snappy is a copy of 64 bytes told in 3.
SNAPPY_EXPANSION = 22

_VARINT_BYTES = 10
_ESCAPES = {b"\0": b"\xff", b"\xff": b"\0"}


class Block(NamedTuple):
    """Where a block lies: `size` bytes of contents, then the type and the checksum.

    Its keys are above `after` (None: no bound) and not above `last`, by the table's index.
    """

    offset: int
    size: int
    after: bytes | None
    last: bytes | None


@dataclass(frozen=True, slots=True)
class Entry:
    """One key and the place of its value.

    Attributes:
        key: the key.
        size: bytes of the value.
        file_offset: where the value lies in the file; None where its block is compressed.
    """

    key: bytes
    size: int
    file_offset: int | None
    _table: Table
    _block: Block
    _start: int

    def read(self, start: int, size: int) -> bytes:
        """Return `size` bytes of the value from `start` on.

        Raises:
            InputError: the value ends before, or the file cannot be read.
        """
        if start < 0 or size < 0 or start + size > self.size:
            raise self._table.damaged(
                self._block, f"bytes {start} to {start + size} of a value of {self.size} are needed"
            )
        if self.file_offset is not None:
            return self._table.file.read(self.file_offset + start, size)
        begin = self._start + start
        return self._table.contents(self._block)[begin : begin + size]


class Table:
    """A table that is read block by block.

    Args:
        path: the file.
        verify: check the checksum of every block that is read.

    Attributes:
        blocks: the data blocks, in the order of their keys.

    Raises:
        InputError: the file is missing, no table, or damaged.
    """

    def __init__(self, path: Path, *, verify: bool = True) -> None:
        self.path = path
        self.file = DataFile(path)
        self._verify = verify
        self._checked: set[Block] = set()
        self._held: tuple[Block, bytes] | None = None
        self.blocks = self._read_index(self._read_footer())

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        """Yield every key and value in the order of the keys, one block in memory at a time.

        Raises:
            InputError: a block is damaged.
        """
        for block in self.blocks:
            contents = self.contents(block)
            for key, start, size in self._walk(block, contents, None, len(contents)):
                yield key, contents[start : start + size]

    def entries(self, block: Block) -> Iterator[Entry]:
        """Yield the entries of a block in the order of their keys.

        Of a large block that is not compressed only the keys are read, and its checksum is left
        to `check`. Others are read whole and checked.

        Raises:
            InputError: the block is damaged.
        """
        offset: int | None = block.offset
        if self._is_streamed(block):
            walk = self._walk(block, b"", self._reader(block), block.size)
        else:
            contents, kind = self._load(block)
            if kind == SNAPPY:
                offset = None
            walk = self._walk(block, contents, None, len(contents))
        for key, start, size in walk:
            place = None if offset is None else offset + start
            yield Entry(key, size, place, self, block, start)

    def check(self, block: Block) -> None:
        """Compare a block with its checksum, in bounded memory, once.

        Raises:
            InputError: they differ.
        """
        if block in self._checked:
            return
        end = block.offset + block.size
        crc = crc32c_of_range(self.path, block.offset, block.size + 1)
        self._compare(block, crc, self.file.read(end + 1, 4))

    def contents(self, block: Block) -> bytes:
        """Return the contents of a block, decompressed, and checked where that is wanted.

        Raises:
            InputError: the block is damaged.
        """
        return self._load(block)[0]

    def damaged(self, block: Block, what: str) -> InputError:
        """Return the error to raise for a block."""
        return InputError(
            f"{self.path}: the block of {block.size} bytes at {block.offset} is damaged: {what}"
        )

    def _load(self, block: Block) -> tuple[bytes, int]:
        # The values of a compressed block are asked for one after the other.
        if self._held is not None and self._held[0] == block:
            return self._held[1], SNAPPY
        raw = self.file.read(block.offset, block.size + TRAILER_BYTES)
        if self._verify and block not in self._checked:
            self._compare(block, crc32c(raw[:-4]), raw[-4:])
        contents, kind = raw[:-TRAILER_BYTES], raw[-TRAILER_BYTES]
        if kind == RAW:
            return contents, kind
        if kind != SNAPPY:
            raise self.damaged(block, f"its type is {kind}, where 0 and 1 are known")
        self._held = block, self._decompress(block, contents)
        return self._held[1], kind

    def _read_footer(self) -> Block:
        size = self.file.size
        if size < FOOTER_BYTES:
            raise InputError(
                f"{self.path}: {size} bytes are too few for a TensorFlow table; "
                "the file is empty or cut short"
            )
        footer = self.file.read(size - FOOTER_BYTES, FOOTER_BYTES)
        if not footer.endswith(MAGIC):
            raise InputError(
                f"{self.path}: this is no TensorFlow table, or it is cut short "
                f"(it ends with {footer[-8:].hex()}, not with {MAGIC.hex()})"
            )
        try:
            offset, position = get_varint(footer, 0)
            length, position = get_varint(footer, position)
            self._bounded(Block(offset, length, None, None))
            offset, position = get_varint(footer, position)
            length, position = get_varint(footer, position)
        except (IndexError, ValueError):
            raise InputError(f"{self.path}: the footer of the table is damaged") from None
        return self._bounded(Block(offset, length, None, None))

    def _read_index(self, index: Block) -> list[Block]:
        blocks: list[Block] = []
        contents = self.contents(index)
        end, last = 0, None
        for key, start, size in self._walk(index, contents, None, len(contents)):
            handle = contents[start : start + size]
            try:
                offset, position = get_varint(handle, 0)
                length, position = get_varint(handle, position)
            except (IndexError, ValueError):
                raise self.damaged(index, "a handle in it ends early") from None
            # Blocks that lie over each other would let a small file cost hours.
            if offset < end:
                raise self.damaged(index, f"blocks overlap at byte {offset}")
            blocks.append(self._bounded(Block(offset, length, last, key)))
            end, last = offset + length + TRAILER_BYTES, key
        return blocks

    def _bounded(self, block: Block) -> Block:
        if block.offset + block.size + TRAILER_BYTES > self.file.size - FOOTER_BYTES:
            raise self.damaged(block, f"the file has {self.file.size} bytes")
        return block

    def _is_streamed(self, block: Block) -> bool:
        end = block.offset + block.size
        return block.size > HELD_BYTES and self.file.read(end, 1)[0] == RAW

    def _reader(self, block: Block) -> Callable[[int, int], bytes]:
        return lambda start, size: self.file.read(block.offset + start, size)

    def _compare(self, block: Block, crc: int, recorded: bytes) -> None:
        wanted = unmask(int.from_bytes(recorded, "little"))
        if crc != wanted:
            raise self.damaged(block, f"its checksum is {crc:08x} where {wanted:08x} is recorded")
        self._checked.add(block)

    def _decompress(self, block: Block, data: bytes) -> bytes:
        # Most tables are not compressed, and importing this costs as much as reading one.
        import cramjam

        try:
            size, _ = get_varint(data, 0)
        except (IndexError, ValueError):
            size = -1
        if not 0 <= size <= SNAPPY_EXPANSION * len(data):
            raise self.damaged(block, f"its snappy data of {len(data)} bytes claim to hold {size}")
        try:
            contents = bytes(cramjam.snappy.decompress_raw(data))
        except cramjam.DecompressionError as error:
            raise self.damaged(block, f"its snappy data are broken ({error})") from None
        if len(contents) != size:
            raise self.damaged(block, f"its snappy data hold {len(contents)} bytes, not {size}")
        return contents

    def _walk(
        self,
        block: Block,
        window: bytes,
        read: Callable[[int, int], bytes] | None,
        length: int,
    ) -> Iterator[tuple[bytes, int, int]]:
        """Yield key, start and size of each value of a block's contents.

        This loop sets how fast a checkpoint opens, hence the local names and the shortcut for
        one-byte lengths.

        Args:
            block: for its bounds, and for messages.
            window: the contents from their first byte on: all of them, or any part.
            read: gives more of the contents; None where the window is all.
            length: bytes of the contents.
        """
        if length < 4:
            raise self.damaged(block, "it has no restarts")
        tail = window[length - 4 :] if read is None else read(length - 4, 4)
        restarts = int.from_bytes(tail, "little")
        end = length - 4 - 4 * restarts
        if restarts == 0 or end < 0:
            raise self.damaged(block, f"{restarts} restarts do not fit into it")
        base = position = expanded = 0
        key, previous = b"", block.after
        # Between two restarts a key repeats at most 15 times what the writer stored once.
        limit = RESTART_INTERVAL * length
        while position < end:
            at = position - base
            if read is not None and at + 15 > len(window) and base + len(window) < end:
                window, base, at = read(position, min(WINDOW_BYTES, end - position)), position, 0
            try:
                shared, added, size = window[at], window[at + 1], window[at + 2]
                at += 3
                if shared > 127 or added > 127 or size > 127:
                    shared, at = get_varint(window, at - 3)
                    added, at = get_varint(window, at)
                    size, at = get_varint(window, at)
            except (IndexError, ValueError):
                raise self.damaged(block, f"the entry at {position} ends early") from None
            start = base + at + added
            position = start + size
            if position > end or shared > len(key) or added > MAX_KEY_BYTES:
                raise self.damaged(
                    block, f"an entry before {position} has lengths {shared}, {added} and {size}"
                )
            if read is not None and at + added > len(window):
                window, base, at = read(base + at, added), base + at, 0
            key = key[:shared] + window[at : at + added]
            expanded += len(key)
            if previous is not None and key <= previous:
                raise self.damaged(block, f"the key {_shown(key)} is out of order")
            if expanded > limit:
                raise self.damaged(block, "its keys repeat each other beyond what is ever written")
            previous = key
            yield key, start, size
        if block.last is not None and key > block.last:
            raise self.damaged(block, f"the index says that no key is above {_shown(block.last)}")


def _shown(key: bytes) -> str:
    return repr(key[:80])[1:]


def mask(crc: int) -> int:
    """Return a checksum as TensorFlow stores it."""
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def unmask(stored: int) -> int:
    """Return the CRC-32C that TensorFlow stored as `stored`."""
    rotated = (stored - 0xA282EAD8) & 0xFFFFFFFF
    return (rotated >> 17 | rotated << 15) & 0xFFFFFFFF


def get_varint(data: bytes, position: int) -> tuple[int, int]:
    """Return the varint of at most 64 bits at `position`, and the position behind it.

    Raises:
        IndexError: the data end within it.
        ValueError: it has more than 64 bits.
    """
    value = shift = 0
    for index in range(position, position + _VARINT_BYTES):
        byte = data[index]
        value |= (byte & 127) << shift
        if byte < 128:
            if value >> 64:
                break
            return value, index + 1
        shift += 7
    raise ValueError("the varint has more than 64 bits")


def put_varint(value: int) -> bytes:
    """Return a number from 0 to 2**64 - 1 as a varint."""
    encoded = bytearray()
    while value > 127:
        encoded.append(value & 127 | 128)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


class _BlockWriter:
    def __init__(self, restart_interval: int) -> None:
        self._interval = restart_interval
        self.clear()

    def clear(self) -> None:
        self.data = bytearray()
        self._restarts = [0]
        self._since_restart = 0
        self._key = b""

    def add(self, key: bytes, value: bytes) -> None:
        shared = 0
        if self._since_restart < self._interval:
            shared = _shared_prefix(self._key, key)
        else:
            self._restarts.append(len(self.data))
            self._since_restart = 0
        lengths = shared, len(key) - shared, len(value)
        self.data += b"".join(map(put_varint, lengths)) + key[shared:] + value
        self._since_restart += 1
        self._key = key

    @property
    def size(self) -> int:
        return len(self.data) + 4 * len(self._restarts) + 4

    def contents(self) -> bytes:
        tail = [*self._restarts, len(self._restarts)]
        return bytes(self.data) + b"".join(number.to_bytes(4, "little") for number in tail)


def write_table(
    write: Callable[[bytes], object],
    items: Iterable[tuple[bytes, bytes]],
    *,
    block_size: int = BLOCK_SIZE,
) -> None:
    """Write a table byte by byte as TensorFlow does.

    Args:
        write: appends bytes to the file.
        items: keys, strictly ascending, and values.
        block_size: a block is closed when it has so many bytes.

    Raises:
        ValueError: the keys do not ascend.
    """
    position = 0

    def put(contents: bytes) -> bytes:
        nonlocal position
        sealed = contents + bytes([RAW])
        write(sealed + mask(crc32c(sealed)).to_bytes(4, "little"))
        handle = put_varint(position) + put_varint(len(contents))
        position += len(contents) + TRAILER_BYTES
        return handle

    block, index = _BlockWriter(RESTART_INTERVAL), _BlockWriter(1)
    last = handle = None
    for key, value in items:
        if last is not None and key <= last:
            raise ValueError(f"keys of a table must ascend: {key!r} comes after {last!r}")
        if block.data and len(key) + len(value) >= 2 * block_size:
            handle = put(block.contents())
            block.clear()
        if handle is not None and last is not None:
            index.add(_separator(last, key), handle)
            handle = None
        block.add(key, value)
        last = key
        if block.size >= block_size:
            handle = put(block.contents())
            block.clear()
    if block.data:
        handle = put(block.contents())
    metaindex = put(_BlockWriter(RESTART_INTERVAL).contents())
    if handle is not None and last is not None:
        index.add(_successor(last), handle)
    footer = metaindex + put(index.contents())
    write(footer.ljust(FOOTER_BYTES - len(MAGIC), b"\0") + MAGIC)


def _shared_prefix(a: bytes, b: bytes) -> int:
    size = min(len(a), len(b))
    # Integers compare all bytes at once: the highest bit that differs tells where.
    differing = int.from_bytes(a[:size], "big") ^ int.from_bytes(b[:size], "big")
    return size - (differing.bit_length() + 7) // 8


def _separator(last: bytes, following: bytes) -> bytes:
    at = _shared_prefix(last, following)
    if at < min(len(last), len(following)) and last[at] + 1 < following[at]:
        return last[:at] + bytes([last[at] + 1])
    return last


def _successor(last: bytes) -> bytes:
    for at, byte in enumerate(last):
        if byte != 0xFF:
            return last[:at] + bytes([byte + 1])
    return last


def encode_tensor_name_slice(name: bytes, extents: Iterable[tuple[int, int]]) -> bytes:
    """Return the key under which a slice of a tensor is stored.

    Args:
        name: of the tensor.
        extents: start and length for each axis; (0, -1) for an axis that is not cut.
    """
    numbers = [number for extent in extents for number in extent]
    rank = len(numbers) // 2
    count = (rank.bit_length() + 7) // 8
    return b"".join(
        [
            b"\0",
            re.sub(rb"[\0\xff]", lambda byte: byte[0] + _ESCAPES[byte[0]], name) + b"\0\1",
            bytes([count]) + rank.to_bytes(count, "big"),
            *map(_ordered, numbers),
        ]
    )


def _ordered(number: int) -> bytes:
    size = (number if number >= 0 else ~number).bit_length() // 7 + 1
    # As many ones as there are bytes: longer numbers sort behind shorter ones.
    header = ((1 << size) - 1) << (7 * size)
    return ((number % (1 << 8 * size)) ^ header).to_bytes(size, "big")
