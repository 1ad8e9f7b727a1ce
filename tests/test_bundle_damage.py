"""TensorFlow V2 checkpoints that are damaged, and those that cannot be."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundle_maker import (
    FLOAT,
    NUMERIC,
    SLICE,
    Maker,
    by_name,
    put_any,
    some_values,
    string_bytes,
    variant_bytes,
)

from converter.dtype import BY_NAME, STRING, VARIANT
from converter.errors import InputError
from converter.formats import bundle
from converter.formats.bundle_index import data_file
from converter.formats.stream import crc32c
from converter.formats.table import (
    encode_tensor_name_slice,
    get_varint,
    mask,
)


@pytest.fixture
def maker(tmp_path: Path) -> Maker:
    return Maker(tmp_path)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b"\x08\x01\x1a\x02\x10\x02", "asks for readers of version 2"),
        (b"\x08\x01\x10\x02", "the byte order is 2"),
        (b"\x08\x00", "no index of a TensorFlow V2 checkpoint"),
        (b"", "no index of a TensorFlow V2 checkpoint"),
        # Of a V1 file.
        (b"\x0a\x05\x12\x03abc", "no index of a TensorFlow V2 checkpoint"),
        (b"\xff", "the header is damaged"),
    ],
)
def test_headers(maker: Maker, header: bytes, message: str) -> None:
    with pytest.raises(InputError, match=message):
        bundle.read(maker.index_of({b"": header}))


def changed(**fields: Any) -> Callable[[Any], None]:
    def change(entry: Any) -> None:
        for name, value in fields.items():
            setattr(entry, name, value)

    return change


def shaped(*sizes: int) -> Callable[[Any], None]:
    def change(entry: Any) -> None:
        entry.shape.Clear()
        for size in sizes:
            entry.shape.dim.add(size=size)

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (changed(dtype=99), "v has dtype number 99"),
        (changed(dtype=0), "v has dtype number 0"),
        (changed(dtype=20), "v has dtype number 20"),
        (changed(dtype=-1), "v has dtype number -1"),
        (changed(shard_id=1), "v lies in data file 1 of 1"),
        (changed(shard_id=-1), "v lies in data file -1 of 1"),
        (changed(offset=-1), "at -1 of its file"),
        (changed(size=20), r"v is float32 \[2, 3\], which takes 24 bytes, and has 20"),
        (changed(size=-24), "has -24"),
        (shaped(-2, -3), r"shape \[-2, -3\]"),
        (shaped(*[1] * 33), r"1, 1\], which no array can have"),
        (shaped(0, 1 << 62, 1 << 62), r"shape \[0, .*which no array can have"),
        (shaped(1 << 60, 1 << 60), "which no array can have"),
        (lambda entry: setattr(entry.shape, "unknown_rank", True), "the shape of v is unknown"),
    ],
)
def test_entries_that_cannot_be(maker: Maker, change: Callable[[Any], None], message: str) -> None:
    change(maker.add(b"v", FLOAT, SLICE))
    with pytest.raises(InputError, match=rf"model\.ckpt\.index: .*{message}"):
        maker.read()


def test_data_files_that_are_missing_short_or_others(tmp_path: Path) -> None:
    maker = Maker(tmp_path, shards=2)
    maker.add(b"a", FLOAT, SLICE)
    maker.add(b"b", FLOAT, SLICE, 1)
    maker.add(b"c", FLOAT, SLICE + 1, 1)
    maker.add(b"empty", FLOAT, np.zeros((0, 2), "f4"), 1)
    index = maker.index()
    second = data_file(index, 1, 2)
    second.write_bytes(second.read_bytes()[:30])
    contents = bundle.read(index)
    contents.check(["a", "b", "empty"])
    with pytest.raises(InputError, match="00001-of-00002: the file has 30 bytes, and c ends at 48"):
        contents.check(["a", "b", "c"])
    with pytest.raises(InputError, match="c ends at 48"):
        by_name(contents)["c"].read()
    second.unlink()
    contents = bundle.read(index)
    assert len(contents.variables) == 4
    contents.check(["a", "empty"])
    with pytest.raises(InputError, match="00001-of-00002: the file is missing; b lies in it"):
        contents.check(["b"])
    assert by_name(contents)["empty"].read().shape == (0, 2)


@pytest.mark.parametrize("size", [10, 5 << 20])
def test_damaged_values_are_noticed_when_anything_of_them_is_loaded(
    maker: Maker, size: int
) -> None:
    maker.add(b"v", BY_NAME["uint8"], np.zeros(size, "u1"))
    maker.data[0][-1] = 1
    variable = maker.read()["v"]
    for _ in range(2):
        with pytest.raises(InputError, match=r"the bytes of v have checksum .* is recorded"):
            variable.read((slice(0, 3),))
    assert maker.read(verify=False)["v"].read()[-1] == 1


def test_a_missing_checksum_is_no_checksum(maker: Maker) -> None:
    maker.add(b"v", FLOAT, SLICE).ClearField("crc32c")
    with pytest.raises(InputError, match="the bytes of v have checksum"):
        maker.read()["v"].read()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: b"\x06" + data[1:], "are left for strings of"),
        (lambda data: data[:5] + b"\0" + data[6:], "the lengths have checksum"),
        (lambda data: data[:-1] + b"!", "the bytes of s have checksum"),
        (lambda data: b"\xff" * len(data), "end within|64 bits"),
        (lambda data: data[:5], "cannot hold 2 strings"),
    ],
)
def test_damaged_strings(maker: Maker, change: Callable[[bytes], bytes], message: str) -> None:
    data, crc = string_bytes([b"hello", b"world"], "little")
    maker.put(b"s", STRING, [2], change(data), crc)
    with pytest.raises(InputError, match=f"model.ckpt.data-00000-of-00001: .*({message})"):
        maker.read()["s"].read()


def test_more_strings_than_bytes_are_not_allocated(maker: Maker) -> None:
    maker.put(b"s", STRING, [1 << 50], b"\0" * 100, 0)
    with pytest.raises(InputError, match="100 bytes cannot hold 1125899906842624 strings"):
        maker.read()["s"].read()


@pytest.mark.parametrize(
    ("change", "count", "message"),
    [
        (lambda data: data[:3] + b"!" + data[4:], 2, "variant 0 has checksum"),
        (lambda data: data, 1, "follow the last of 1 variants"),
        (lambda data: data, 3, "end within variant 2 of 3"),
        (lambda data: data[:-2], 2, "end within variant 1 of 2"),
        (lambda data: b"\xff" * 20, 2, "64 bits"),
    ],
)
def test_damaged_variants(
    maker: Maker, change: Callable[[bytes], bytes], count: int, message: str
) -> None:
    data, crc = variant_bytes([b"first", b"second"])
    maker.put(b"v", VARIANT, [count], change(data), crc)
    with pytest.raises(InputError, match=f"the variant v is damaged: .*{message}"):
        maker.read()["v"].read()


@pytest.mark.slow
def test_mutated_indexes_raise_nothing_but_input_errors(tmp_path: Path) -> None:
    # The checksums are computed again, so that they do not hide the parser.
    maker = Maker(tmp_path, shards=2)
    for i, dtype in enumerate(NUMERIC):
        maker.add(f"scope/{dtype}".encode(), dtype, some_values(dtype, (i % 4, 3)), i % 2)
    put_any(maker, b"strings", STRING, some_values(STRING, (4,)))
    maker.put(b"variant", VARIANT, [1], *variant_bytes([b"x"]))
    extents = [((0, 2), (0, -1)), ((2, 2), (0, -1))]
    maker.partition(b"v", FLOAT, (4, 3), extents)
    for pair in extents:
        maker.add(encode_tensor_name_slice(b"v", pair), FLOAT, SLICE)
    index = maker.index(block_size=300)
    original = index.read_bytes()
    draw = random.Random(0)
    outcomes = {mutated_outcome(index, original, draw) for _ in range(3000)}
    assert outcomes == {"read", "refused"}


def mutated_outcome(index: Path, original: bytes, draw: random.Random) -> str:
    index.write_bytes(resealed(mutated(original, draw)))
    try:
        contents = bundle.read(index)
        for variable in contents.variables:
            try:
                contents.check([variable.name])
                variable.read()
            except InputError:
                pass
    except InputError:
        return "refused"
    return "read"


def mutated(data: bytes, draw: random.Random) -> bytes:
    mutant = bytearray(data)
    for _ in range(draw.choice([1, 1, 2, 5])):
        at = draw.randrange(len(mutant) - 8)
        kind = draw.randrange(4)
        if kind == 0:
            mutant[at] ^= 1 << draw.randrange(8)
        elif kind == 1:
            mutant[at] = draw.choice([0, 1, 0x7F, 0x80, 0xFF])
        elif kind == 2:
            mutant[at : at + draw.randrange(5)] = draw.randbytes(draw.randrange(5))
        else:
            begin = draw.randrange(len(mutant) - 8)
            mutant[at : at + 8] = mutant[begin : begin + 8]
    return bytes(mutant)


def resealed(data: bytes) -> bytes:
    """Return a table whose blocks, as far as they can be found, have the checksums that fit."""
    table = bytearray(data)
    try:
        footer = bytes(table[-48:])
        _, at = get_varint(footer, 0)
        _, at = get_varint(footer, at)
        offset, at = get_varint(footer, at)
        size, at = get_varint(footer, at)
        handles = [(offset, size)]
        position = offset
        while position < offset + size - 8:
            _, added, length = table[position : position + 3]
            handle = bytes(table[position + 3 + added : position + 3 + added + length])
            first, at = get_varint(handle, 0)
            handles.append((first, get_varint(handle, at)[0]))
            position += 3 + added + length
    except (IndexError, ValueError):
        handles = handles if "handles" in locals() else []
    for offset, size in reversed(handles):
        end = offset + size + 1
        if end + 4 <= len(table):
            table[end : end + 4] = mask(crc32c(bytes(table[offset:end]))).to_bytes(4, "little")
    return bytes(table)
