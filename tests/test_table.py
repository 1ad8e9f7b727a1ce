"""The sorted string table: real ones are rewritten byte by byte, damaged ones are refused."""

from __future__ import annotations

import io
import random
from collections.abc import Callable, Iterable
from pathlib import Path

import cramjam
import pytest
from conftest import DATA
from hypothesis import given
from hypothesis import strategies as st

from converter.errors import InputError
from converter.formats import table as module
from converter.formats.stream import crc32c
from converter.formats.table import (
    MAGIC,
    Table,
    encode_tensor_name_slice,
    get_varint,
    mask,
    put_varint,
    unmask,
    write_table,
)

REAL = sorted(
    path
    for path in DATA.rglob("*")
    if path.is_file() and path.read_bytes().endswith(MAGIC) and "snappy" not in str(path)
)


def table_of(items: Iterable[tuple[bytes, bytes]], *, block_size: int = 262144) -> bytes:
    out = io.BytesIO()
    write_table(out.write, items, block_size=block_size)
    return out.getvalue()


def seal(contents: bytes, kind: int = 0) -> bytes:
    sealed = contents + bytes([kind])
    return sealed + mask(crc32c(sealed)).to_bytes(4, "little")


def reseal(data: bytes, change: Callable[[bytes], tuple[bytes, int]]) -> bytes:
    """Return a table of one data block whose contents and type are changed, and sealed again."""
    footer = data[-48:]
    meta_offset, _ = get_varint(footer, 0)
    contents, kind = change(data[: meta_offset - 5])
    block = seal(contents, kind)
    key = b"\xff" * 20
    meta = seal(bytes(4) + b"\1\0\0\0")
    handle = put_varint(0) + put_varint(len(contents))
    lengths = bytes([0, len(key), len(handle)])
    index = lengths + key + handle + bytes(4) + b"\1\0\0\0"
    end = len(block) + len(meta)
    footer = b"".join(map(put_varint, [len(block), 8, end, len(index)]))
    return block + meta + seal(index) + footer.ljust(40, b"\0") + MAGIC


def opened(tmp_path: Path, data: bytes, *, verify: bool = True) -> Table:
    path = tmp_path / "table"
    path.write_bytes(data)
    return Table(path, verify=verify)


def walked(table: Table) -> list[tuple[bytes, bytes]]:
    return [(e.key, e.read(0, e.size)) for block in table.blocks for e in table.entries(block)]


@pytest.mark.parametrize("path", REAL, ids=lambda path: str(path.relative_to(DATA)))
def test_real_tables_are_rewritten_byte_by_byte(path: Path) -> None:
    table = Table(path)
    items = list(table.items())
    assert table_of(items) == path.read_bytes()
    assert walked(table) == items
    for block in table.blocks:
        table.check(block)


keys = st.lists(st.binary(max_size=12), unique=True, max_size=60).map(sorted)


@given(keys, st.randoms(use_true_random=False), st.integers(1, 300), st.integers(15, 100))
def test_any_keys_and_values_come_back(
    tmp_path_factory: pytest.TempPathFactory,
    keys: list[bytes],
    draw: random.Random,
    block_size: int,
    window_bytes: int,
) -> None:
    items = [(key, draw.randbytes(draw.randrange(40))) for key in keys]
    table = opened(tmp_path_factory.mktemp("t"), table_of(items, block_size=block_size))
    assert list(table.items()) == items
    assert walked(table) == items
    with pytest.MonkeyPatch.context() as patch:
        # As if every block were too large to be held.
        patch.setattr(module, "HELD_BYTES", 0)
        patch.setattr(module, "WINDOW_BYTES", window_bytes)
        assert walked(table) == items


def test_an_empty_table_has_an_empty_index(tmp_path: Path) -> None:
    table = opened(tmp_path, table_of([]))
    assert (table.blocks, list(table.items())) == ([], [])


def test_blocks_are_closed_where_tensorflow_closes_them(tmp_path: Path) -> None:
    items = [(b"a%03d" % i, bytes(100_000)) for i in range(4)] + [
        (b"b", bytes(600_000)),
        (b"c", b""),
    ]
    table = opened(tmp_path, table_of(items))
    # Above 256 KiB, and before a value of more than 512 KiB.
    assert [[e.key for e in table.entries(block)] for block in table.blocks] == [
        [b"a000", b"a001", b"a002"],
        [b"a003"],
        [b"b"],
        [b"c"],
    ]
    assert [block.last for block in table.blocks] == [b"a002", b"a003", b"b", b"d"]


def test_values_of_large_blocks_stay_on_disk(tmp_path: Path) -> None:
    long = b"k" * 100_000
    items = [
        (b"a", bytes(3 << 20)),
        (b"b", b"x" * 1000),
        (b"c" + long, b"1"),
        (b"c" + long + b"d", b"2"),
    ]
    table = opened(tmp_path, table_of(items, block_size=1 << 30))
    (block,) = table.blocks
    assert walked(table) == items
    assert list(table.items()) == items
    data = (tmp_path / "table").read_bytes()
    for entry, (_, value) in zip(table.entries(block), items, strict=True):
        assert entry.file_offset is not None
        assert data[entry.file_offset : entry.file_offset + entry.size] == value
    damaged = bytearray(data)
    damaged[1000] ^= 1
    table = opened(tmp_path, bytes(damaged))
    assert [e.key for e in table.entries(block)] == [key for key, _ in items]
    with pytest.raises(InputError, match="its checksum is"):
        table.check(block)


def test_snappy_blocks_are_read(tmp_path: Path) -> None:
    items = [(b"key%02d" % i, b"value" * i) for i in range(50)]
    packed = reseal(
        table_of(items), lambda contents: (bytes(cramjam.snappy.compress_raw(contents)), 1)
    )
    table = opened(tmp_path, packed)
    assert list(table.items()) == items
    assert walked(table) == items
    assert {entry.file_offset for entry in table.entries(table.blocks[0])} == {None}
    table.check(table.blocks[0])


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        (put_varint(1 << 40) + b"\0a", r"3 bytes|claim to hold 1099511627776"),
        (b"\x80", "claim to hold -1"),
        (b"", "claim to hold -1"),
        (b"\x05\x10ab", "broken"),
    ],
)
def test_broken_snappy_is_refused_before_anything_is_allocated(
    tmp_path: Path, contents: bytes, message: str
) -> None:
    table = opened(tmp_path, reseal(table_of([(b"a", b"b")]), lambda _: (contents, 1)))
    with pytest.raises(InputError, match=message):
        list(table.items())


ONE = b"\0\0\0\0\1\0\0\0"


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        (b"\0\1\1ab\0\1\1ab" + ONE, "'a' is out of order"),
        (b"\0\1\1bb\0\1\1ab" + ONE, "'a' is out of order"),
        (b"\1\1\1ab" + ONE, "lengths 1, 1 and 1"),
        (b"\0\1\x7fab" + ONE, "lengths 0, 1 and 127"),
        (b"\0\1" + ONE, "ends early|lengths"),
        (b"\0\1\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff" + ONE, "ends early"),
        (b"\0\1\1ab" + b"\0\0\0\0\xff\0\0\0", "255 restarts"),
        (b"\0\1\1ab" + b"\0\0\0\0", "0 restarts"),
        (b"abc", "no restarts"),
        (b"\0\x15\1" + b"\xff" * 21 + b"b" + ONE, "no key is above"),
    ],
)  # fmt: skip
def test_damaged_blocks_are_refused(tmp_path: Path, contents: bytes, message: str) -> None:
    table = opened(tmp_path, reseal(table_of([(b"a", b"b")]), lambda _: (contents, 0)))
    with pytest.raises(InputError, match=message):
        list(table.items())


def test_keys_that_repeat_each_other_too_often_are_refused(tmp_path: Path) -> None:
    # 30 kB of contents that would become keys of 500 MB.
    long = b"a" * 10_000
    contents = b"\0" + put_varint(len(long)) + b"\0" + long
    for i in range(4000):
        contents += put_varint(len(long) + i) + b"\1\0b"
    table = opened(tmp_path, reseal(table_of([(b"a", b"b")]), lambda _: (contents + ONE, 0)))
    with pytest.raises(InputError, match="repeat each other"):
        list(table.items())


def test_unknown_types_of_blocks_are_refused(tmp_path: Path) -> None:
    table = opened(tmp_path, reseal(table_of([(b"a", b"b")]), lambda contents: (contents, 2)))
    with pytest.raises(InputError, match="its type is 2"):
        list(table.items())


@pytest.mark.slow
def test_every_flipped_byte_is_noticed(tmp_path: Path) -> None:
    items = [(b"key%02d" % i, b"value" * i) for i in range(20)]
    data = table_of(items, block_size=100)
    for at in range(len(data)):
        damaged = bytearray(data)
        damaged[at] ^= 0x10
        try:
            found = list(opened(tmp_path, bytes(damaged)).items())
        except InputError:
            continue
        # The padding of the footer, and the metaindex, hold nothing.
        assert found == items


def test_checksums_are_left_alone_on_request(tmp_path: Path) -> None:
    data = bytearray(table_of([(b"a", b"value")]))
    data[5] ^= 1
    with pytest.raises(InputError, match="at 0 is damaged: its checksum is"):
        list(opened(tmp_path, bytes(data)).items())
    assert list(opened(tmp_path, bytes(data), verify=False).items()) == [(b"a", b"v`lue")]


@pytest.mark.parametrize("size", [0, 1, 47, 48, 100])
def test_what_is_no_table_is_refused(tmp_path: Path, size: int) -> None:
    with pytest.raises(InputError, match="table"):
        opened(tmp_path, bytes(size))
    with pytest.raises(InputError, match="the file is missing"):
        Table(tmp_path / "nothing")
    with pytest.raises(InputError, match="cannot be read"):
        list(Table(tmp_path).items())


def test_blocks_that_lie_over_each_other_are_refused(tmp_path: Path) -> None:
    data = table_of([(b"a", b"1"), (b"b", b"2")], block_size=1)
    blocks = opened(tmp_path, data).blocks
    handle = put_varint(blocks[0].offset) + put_varint(blocks[0].size)
    index = (
        b"".join(bytes([0, 1, len(handle)]) + key + handle for key in (b"a", b"b"))
        + b"\0\0\0\0"
        + b"\1\0\0\0"
    )
    end = blocks[1].offset + blocks[1].size + 5
    footer = b"".join(map(put_varint, [0, 1, end, len(index)])).ljust(40, b"\0") + MAGIC
    with pytest.raises(InputError, match="blocks overlap at byte 0"):
        opened(tmp_path, data[:end] + seal(index) + footer)


def test_reading_beyond_a_value_is_refused(tmp_path: Path) -> None:
    table = opened(tmp_path, table_of([(b"a", b"12345"), (b"b", b"6789")]))
    entry = next(iter(table.entries(table.blocks[0])))
    assert entry.read(1, 3) == b"234"
    with pytest.raises(InputError, match="bytes 3 to 6 of a value of 5"):
        entry.read(3, 3)


def test_unsorted_keys_are_a_bug() -> None:
    with pytest.raises(ValueError, match="must ascend"):
        table_of([(b"b", b""), (b"a", b"")])


@pytest.mark.parametrize(
    ("name", "extents", "key"),
    [
        # Keys that TensorFlow has written: facts of 1.0, 1.4 and 2.21.
        (b"part/emb", [(3, 2), (0, 3)], "00 706172742f656d62 0001 0102 83 82 80 83"),
        (b"a\0b\xff", [(0, -1)], "00 6100ff62ff00 0001 0101 80 7f"),
        (b"v", [], "00 76 0001 00"),
        (b"v", [(63, 64), (334, 1500)], "00 76 0001 0102 bf c040 c14e c5dc"),
        (b"v", [(1 << 61, (1 << 63) - 1)], "00 76 0001 0101 ff a0 00 00 00 00 00 00 00"
                                           "ff c0 7f ff ff ff ff ff ff ff"),
    ],
)  # fmt: skip
def test_keys_of_slices(name: bytes, extents: list[tuple[int, int]], key: str) -> None:
    assert encode_tensor_name_slice(name, extents) == bytes.fromhex(key)


@given(st.integers(0, 2**64 - 1))
def test_varints(value: int) -> None:
    assert get_varint(b"x" + put_varint(value) + b"y", 1) == (value, 1 + len(put_varint(value)))


@given(st.integers(0, 2**32 - 1))
def test_masked_checksums(crc: int) -> None:
    assert unmask(mask(crc)) == crc


def test_the_mask_is_tensorflows() -> None:
    assert mask(crc32c(b"")).to_bytes(4, "little") == bytes.fromhex("d8ea82a2")
