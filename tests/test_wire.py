"""The wire format: what is found where, and every way of being damaged."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from wire_writer import field, varint

from converter.errors import InputError
from converter.formats.wire import BYTES, FIXED32, FIXED64, VARINT, Field, Source, varints

uint64 = st.integers(0, (1 << 64) - 1)
mixed = st.one_of(uint64, st.integers(0, 300), st.sampled_from([0, 127, 128, (1 << 64) - 1]))


def source(data: bytes) -> Source:
    return Source(lambda start, size: data[start : start + size], len(data), "file")


def test_fields_of_all_kinds_and_nested_messages() -> None:
    inner = field(1, b"name\xff") + field(3, 1 << 40)
    data = (
        field(1, 300)
        + field(2, inner)
        + varint(3 << 3 | 5)
        + b"abcd"
        + varint(99_999 << 3 | 1)
        + b"12345678"
        + field(5, -1)
    )
    found = list(source(data).message())
    assert [(f.number, f.kind) for f in found] == [
        (1, VARINT),
        (2, BYTES),
        (3, FIXED32),
        (99_999, FIXED64),
        (5, VARINT),
    ]
    assert (found[0].value, found[0].integer(), found[4].integer()) == (300, 300, -1)
    assert (found[2].data(), found[3].data()) == (b"abcd", b"12345678")
    assert found[-1].stop == len(data)
    name, number = found[1].message()
    assert (name.text(), number.value) == ("name\udcff", 1 << 40)


def test_contents_are_not_read() -> None:
    large = 1 << 40
    data = field(1, b"x" * 10) + varint(2 << 3 | 2) + varint(large)
    read: list[tuple[int, int]] = []

    def reads(start: int, size: int) -> bytes:
        read.append((start, size))
        return data[start : start + size].ljust(size, b"\0")

    found = list(Source(reads, len(data) + large, "file").message())
    assert [f.size for f in found] == [10, large]
    assert sum(size for _, size in read) < 1 << 20


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\x0a\x05abc", "field 1 says 5 bytes where 3 are left"),
        (b"\x0d\x00\x00\x00", "field 1 says 4 bytes where 3 are left"),
        (b"\x09abc", "says 8 bytes where 3"),
        (b"\x08", "a varint has no end"),
        (b"\x08\xff\xff", "a varint has no end"),
        (b"\x08" + b"\xff" * 12, "a varint has no end"),
        (b"\x0b", "no field of number 1 and kind 3"),
        (b"\x0c", "no field of number 1 and kind 4"),
        (b"\x00\x00", "no field of number 0"),
        (varint(1 << 32) + b"\0", "no field of number"),
        (field(1, b"")[:-1], "a varint has no end"),
        (b"\x0a" + varint((1 << 64) - 1), "field 1 says 18446744073709551615 bytes"),
    ],
)
def test_damage_is_told(data: bytes, message: str) -> None:
    with pytest.raises(InputError, match=f"^file: .*{message}.*; it is damaged$"):
        list(source(data).message())


def test_a_message_may_not_reach_beyond_the_one_around_it() -> None:
    inner = b"\x0a\x09abc"
    outer = next(source(field(1, inner) + field(2, b"more than enough")).message())
    with pytest.raises(InputError, match="says 9 bytes where 3 are left"):
        list(outer.message())


def test_kinds_are_checked_where_they_matter() -> None:
    number, data = source(field(1, 5) + field(2, b"ab")).message()
    for wrong in (number.message, number.text, data.integer):
        with pytest.raises(InputError, match=r"field \d is .*, not "):
            wrong()


def test_a_file_that_shrank_is_told() -> None:
    data = field(1, b"x" * 100_000)
    short = Source(lambda start, size: data[start : start + size][:-1], len(data), "file")
    with pytest.raises(InputError, match="bytes are left where"):
        list(short.message())


@given(st.binary(max_size=60))
def test_any_bytes_are_fields_or_damaged(data: bytes) -> None:
    waiting: list[Field] = []
    try:
        waiting += source(data).message()
        while waiting:
            found = waiting.pop()
            assert 0 <= found.start <= found.stop <= len(data)
            if found.kind == BYTES:
                waiting += found.message()
    except InputError:
        pass


@given(st.lists(mixed, max_size=200), st.integers(0, 250))
def test_varints_are_decoded(values: list[int], limit: int) -> None:
    encoded = [varint(value) for value in values]
    decoded, used = varints(b"".join(encoded), limit)
    assert decoded.tolist() == values[:limit]
    assert decoded.dtype == np.uint64
    assert used == sum(map(len, encoded[:limit]))


@given(st.lists(mixed, min_size=1, max_size=30))
def test_a_varint_that_is_cut_off_is_left(values: list[int]) -> None:
    *encoded, last = [varint(value) for value in values]
    decoded, used = varints(b"".join(encoded) + last[:-1], 1000)
    assert (decoded.tolist(), used) == (values[:-1], len(b"".join(encoded)))


def test_varints_may_be_padded_and_are_cut_to_64_bits() -> None:
    assert varints(b"\x81\x80\x80\x00\x05", 9)[0].tolist() == [1, 5]
    assert varints(b"\xff" * 9 + b"\x7f", 9)[0].tolist() == [(1 << 64) - 1]
    single = next(source(b"\x08" + b"\xff" * 9 + b"\x7f").message())
    assert single.integer() == -1


@pytest.mark.parametrize("data", [b"\xff" * 10 + b"\x01", b"\xff" * 11, b"\1\2" + b"\x80" * 10])
def test_varints_beyond_ten_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="ten bytes"):
        varints(data, 100)


def test_damage_behind_the_limit_is_not_looked_at() -> None:
    assert varints(b"\1\2" + b"\xff" * 20, 2)[0].tolist() == [1, 2]


def test_many_varints_at_once() -> None:
    draw = random.Random(1)
    values = [draw.getrandbits(draw.randrange(1, 65)) for _ in range(50_000)]
    assert varints(b"".join(map(varint, values)), 1 << 30)[0].tolist() == values
