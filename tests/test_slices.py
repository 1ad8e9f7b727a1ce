"""V1 checkpoints: every dtype, packing and slicing, shards, and every way of being damaged."""

from __future__ import annotations

import math
import random
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import slow
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_tiling import tilings
from wire_writer import (
    Array,
    Extent,
    compressed,
    explicit,
    field,
    full,
    meta,
    numbers,
    slice_key,
    v1_items,
    write_items,
)

from converter.dtype import BY_NAME, STRING, DType
from converter.errors import InputError
from converter.formats import Contents, repeated, slices
from converter.formats.crc import crc32c_between
from converter.formats.stream import crc32c
from converter.variable import Region, whole

DTYPES = [dtype for dtype in BY_NAME.values() if dtype.itemsize] + [STRING]
FLOAT32 = BY_NAME["float32"]
INT32 = BY_NAME["int32"]


def random_values(dtype: DType, shape: tuple[int, ...], draw: random.Random) -> Array:
    """Values of any bits; compare them with `same`."""
    count = math.prod(shape)
    assert dtype.numpy is not None
    if dtype is STRING:
        values = np.empty(count, object)
        values[:] = [draw.randbytes(draw.choice([0, 1, 5, 300])) for _ in range(count)]
        return values.reshape(shape)
    data: Array = np.frombuffer(draw.randbytes(count * dtype.itemsize), np.uint8)
    if dtype.name == "bool":
        data = data & 1
    elif dtype.itemsize == 1 and dtype.name[-1] in "42":
        data = data & (15 if dtype.name[-1] == "4" else 3)
    elif dtype.name == "float4_e2m1fn":
        data = data & 15
    return data.view(dtype.numpy).reshape(shape)


def same(a: Array, b: Array) -> bool:
    if a.dtype.hasobject or b.dtype.hasobject:
        return a.shape == b.shape and a.tolist() == b.tolist()
    return a.shape == b.shape and a.dtype == b.dtype and a.tobytes() == b.tobytes()


def write(
    path: Path,
    name: str,
    values: Array,
    dtype: DType = FLOAT32,
    *,
    regions: Sequence[Region] | None = None,
    shape: tuple[int, ...] | None = None,
    pieces: list[int] | None = None,
    block_size: int = 262144,
) -> Path:
    """Write one tensor, whole or as the given slices of it."""
    key = name.encode()
    extents: list[list[Extent]] = (
        [full(values.shape)] if regions is None else [explicit(region) for region in regions]
    )
    # One string of no axes loses the zero bytes at its end as an array of another dtype.
    parts = (
        [values]
        if regions is None
        else [np.asarray(values[region], values.dtype) for region in regions]
    )
    shape = values.shape if shape is None else shape
    items = v1_items(
        [meta(key, dtype, shape, extents)],
        {
            slice_key(key, extent): numbers(dtype, part, pieces)
            for extent, part in zip(extents, parts, strict=True)
        },
    )
    return write_items(path, items, block_size)


def read(*paths: Path, verify: bool = True) -> Contents:
    contents = slices.read(paths, verify=verify)
    contents.check(variable.name for variable in contents.variables)
    return contents


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    dtype=st.sampled_from(DTYPES),
    shape=st.lists(st.integers(1, 6), max_size=4).map(tuple),
    draw=st.randoms(use_true_random=False),
    cuts=st.integers(0, 6),
    pieces=st.none() | st.lists(st.integers(0, 5), max_size=8),
    shards=st.integers(1, 3),
    block_size=st.sampled_from([20, 262144]),
    window=st.sampled_from([2, 6, 1 << 16]),
    as_snappy=st.booleans(),
)
def test_any_dtype_packing_and_slicing(
    tmp_path: Path,
    dtype: DType,
    shape: tuple[int, ...],
    draw: random.Random,
    cuts: int,
    pieces: list[int] | None,
    shards: int,
    block_size: int,
    window: int,
    as_snappy: bool,
) -> None:
    values = random_values(dtype, shape, draw)
    regions = tilings(shape, draw, cuts)
    paths = [
        write(
            tmp_path / f"shard-{k}",
            "scope/v",
            values,
            dtype,
            regions=regions[k::shards],
            pieces=pieces,
            block_size=block_size,
        )
        for k in range(min(shards, len(regions)))
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(repeated, "_WINDOW", window)
        patch.setattr(repeated, "_CHUNK_BYTES", 12)
        contents = read(*(map(compressed, paths) if as_snappy else paths))
        (variable,) = contents.variables
        assert (variable.name, variable.dtype, variable.shape) == ("scope/v", dtype, shape)
        assert same(variable.read(), values)
        for _ in range(3):
            region = tuple(
                slice(*sorted((draw.randint(0, size), draw.randint(0, size)))) for size in shape
            )
            assert same(variable.read(region), np.asarray(values[region], values.dtype, order="C"))
        if dtype.itemsize:
            blocks = [block.tobytes() for block in variable.blocks(64)]
            assert b"".join(blocks) == values.tobytes()
    stored = [region for k in range(shards) for region in regions[k::shards]]
    assert contents.partitions == ({"scope/v": tuple(stored)} if len(stored) > 1 else {})


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (0,), (0, 4), (3, 0, 2)])
def test_scalars_and_empty_tensors(tmp_path: Path, dtype: DType, shape: tuple[int, ...]) -> None:
    values = random_values(dtype, shape, random.Random(1))
    (variable,) = read(write(tmp_path / "c", "v", values, dtype)).variables
    assert same(variable.read(), values)


def test_known_bytes(tmp_path: Path) -> None:
    """As TensorFlow writes them: negatives in ten bytes, halves as their bits."""
    half = BY_NAME["float16"]
    items = v1_items(
        [meta(b"a", INT32, (3,), [full((3,))]), meta(b"b", half, (2,), [full((2,))])],
        {
            b"\0a\0\1\1\1\x80\x7f": b"\x3a\x0d\x05" + b"\xfe" + b"\xff" * 8 + b"\x01" + b"\x80\x01",
            b"\0b\0\1\1\1\x80\x7f": b"\x6a\x06\x80\x78\x80\x80\x80\x00",
        },
    )
    a, b = read(write_items(tmp_path / "c", items)).variables
    assert a.read().tolist() == [5, -2, 128]
    assert b.dtype.name == "float16"
    assert b.read().tolist() == [1.0, 0.0]


def test_names_of_any_bytes_in_table_order(tmp_path: Path) -> None:
    names = [b"\xff\xfe", b"a\0b", b"plain", "größe".encode(), b""]
    items = v1_items(
        [meta(name, FLOAT32, (1,), [full((1,))]) for name in names],
        {
            slice_key(name, full((1,))): numbers(FLOAT32, np.array([k], "f4"))
            for k, name in enumerate(names)
        },
    )
    variables = read(write_items(tmp_path / "c", items)).variables
    found = [variable.name.encode("utf-8", "surrogateescape") for variable in variables]
    assert found == sorted(names)
    for name, variable in zip(found, variables, strict=True):
        assert variable.read().tolist() == [names.index(name)]


def test_unknown_fields_are_skipped(tmp_path: Path) -> None:
    key = slice_key(b"v", full((2,)))
    values = (
        field(99, b"?") + field(2, b"") + numbers(FLOAT32, np.array([1, 2], "f4")) + field(98, 7)
    )
    listed = field(1, meta(b"v", FLOAT32, (2,), [full((2,))]) + field(77, 3)) + field(55, b"x")
    items = [
        (b"", field(1, listed)),
        (key, field(9, 9) + field(2, field(1, b"v") + field(3, values))),
    ]
    assert read(write_items(tmp_path / "c", items)).variables[0].read().tolist() == [1, 2]


# Large values


@pytest.mark.parametrize("cut", [None, 0, 1])
def test_floats_stream_in_constant_memory(tmp_path: Path, cut: int | None) -> None:
    values = np.arange(1 << 23, dtype="f4").reshape(1 << 10, 1 << 13)
    all_of = whole(values.shape)
    regions: list[Region] = [
        (*all_of[:axis], part, *all_of[axis + 1 :])
        for axis in range(2)
        for part in (slice(0, 700), slice(700, values.shape[axis]))
        if axis == cut
    ]
    path = write(tmp_path / "c", "v", values, regions=regions or None)
    (variable,) = read(path).variables
    tracemalloc.start()
    try:
        for block, start in zip(variable.blocks(1 << 20), range(0, 1 << 30, 1 << 18), strict=False):
            assert block.ravel()[0] == start
        panel = variable.read((slice(0, 1 << 10), slice(695, 705)))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    np.testing.assert_array_equal(panel, values[:, 695:705])
    assert peak < 16 << 20


@pytest.mark.parametrize("alone", [[], slow([0, 0, 200_000, 0])])
def test_integers_stream_and_can_be_read_from_anywhere(tmp_path: Path, alone: list[int]) -> None:
    values = np.random.default_rng(1).integers(-(1 << 31), 1 << 31, 1 << 19).astype("i4")
    (variable,) = read(write(tmp_path / "c", "v", values, INT32, pieces=alone)).variables
    for start in (500_000, 3, 131_000, 65_536, 65_535, 524_280, 0):
        region = (slice(start, min(start + 70_000, 1 << 19)),)
        np.testing.assert_array_equal(variable.read(region), values[region])
    tracemalloc.start()
    try:
        blocks = [block.copy() for block in variable.blocks(1 << 18)]
        peak = tracemalloc.get_traced_memory()[1] - values.nbytes
    finally:
        tracemalloc.stop()
    np.testing.assert_array_equal(np.concatenate(blocks), values)
    assert peak < 8 << 20


def test_checksums_of_large_blocks_are_verified_before_the_first_value(tmp_path: Path) -> None:
    values = np.ones(1 << 20, "f4")
    path = write(tmp_path / "c", "v", values)
    data = bytearray(path.read_bytes())
    data[3 << 20] ^= 1
    path.write_bytes(data)
    (variable,) = read(path).variables
    with pytest.raises(InputError, match=f"^{path}: .*checksum"):
        variable.read((slice(0, 1),))
    (unverified,) = read(path, verify=False).variables
    assert int((unverified.read() != values).sum()) == 1


@pytest.mark.parametrize("dtype", ["float32", "complex128"])
def test_large_floats_tell_where_they_are_stored_and_their_checksum(
    tmp_path: Path, dtype: str
) -> None:
    large = random_values(BY_NAME[dtype], (300_000,), random.Random(5))
    names = {b"a": np.ones(3, "f4"), b"b": large, b"c": np.ones(30_000, "f4")}
    dtypes = {b"a": FLOAT32, b"b": BY_NAME[dtype], b"c": FLOAT32}
    items = v1_items(
        [meta(name, dtypes[name], v.shape, [full(v.shape)]) for name, v in names.items()],
        {slice_key(n, full(v.shape)): numbers(dtypes[n], v) for n, v in names.items()},
    )
    path = write_items(tmp_path / "c", items, block_size=1 << 22)
    for verify in (True, False):
        stored = {
            variable.name: variable.stored for variable in read(path, verify=verify).variables
        }
        assert stored["a"] is stored["c"] is None
        assert stored["b"] is not None
        with path.open("rb") as file:
            file.seek(stored["b"].offset)
            assert file.read(stored["b"].size) == large.tobytes()
        assert stored["b"].crc32c == (crc32c(large) if verify else None)
    assert read(compressed(path)).variables[1].stored is None


@given(st.binary(), st.binary(), st.binary())
def test_the_checksum_of_a_part_follows_from_that_of_the_whole(
    before: bytes, part: bytes, after: bytes
) -> None:
    whole = crc32c(before + part + after)
    assert crc32c_between(whole, before, len(part), after) == crc32c(part)


# Damage


def one(path: Path) -> Callable[[], Any]:
    return lambda: read(path).variables[0].read()


@pytest.mark.parametrize("dtype", [FLOAT32, INT32, STRING, BY_NAME["complex64"]], ids=str)
@pytest.mark.parametrize("change", [-1, 1])
def test_the_number_of_values_must_be_right(tmp_path: Path, dtype: DType, change: int) -> None:
    values = random_values(dtype, (6 + change,), random.Random(2))
    path = write(tmp_path / "c", "v", values, dtype, shape=(6,))
    with pytest.raises(InputError, match=f"^{path}: v: .*values are stored where .* has 6"):
        one(path)()


@pytest.mark.parametrize("stored", [(1 << 16) - 1, (1 << 16) + 1])
def test_values_are_counted_at_the_end_of_a_window(tmp_path: Path, stored: int) -> None:
    values = np.full(stored, 3, "i4")
    path = write(tmp_path / "c", "v", values, INT32, shape=(1 << 16,))
    (variable,) = slices.read([path]).variables
    np.testing.assert_array_equal(variable.read((slice(0, 9),)), values[:9])
    with pytest.raises(InputError, match=r"values are stored where int32 .* has 65536"):
        variable.read()


def sliced(tmp_path: Path, regions: list[Region], shape: tuple[int, ...] = (4,)) -> Path:
    parts = np.zeros([max(r[0].stop for r in regions)] if regions else (0,), "f4")
    return write(tmp_path / "c", "v", parts, regions=regions, shape=shape)


@pytest.mark.parametrize(
    ("regions", "message"),
    [
        ([(slice(0, 3),), (slice(2, 4),)], "c: the slices of v .* overlap"),
        ([(slice(0, 2),), (slice(1, 3),)], "c: the slices of v .* overlap"),
        ([(slice(0, 2),), (slice(0, 2),)], "0:2.* of v .4. is stored twice"),
        ([(slice(0, 2),)], "c: 2 of 4 elements of v are here; other shards are missing"),
        ([], "c: 0 of 4 elements of v are here; other shards are missing"),
        ([(slice(2, 5),)], "a slice of v .* reaches outside"),
    ],
)
def test_slices_must_tile(tmp_path: Path, regions: list[Region], message: str) -> None:
    with pytest.raises(InputError, match=message):
        one(sliced(tmp_path, regions))()


def test_what_other_shards_have_is_missed_only_when_it_is_wanted(tmp_path: Path) -> None:
    path = sliced(tmp_path, [(slice(0, 1),), (slice(3, 4),)])
    contents = slices.read([path])
    (variable,) = contents.variables
    assert variable.shape == (4,)
    assert contents.partitions == {"v": ((slice(0, 1),), (slice(3, 4),))}
    message = f"^{path}: 2 of 4 elements of v are here; other shards are missing$"
    with pytest.raises(InputError, match=message):
        contents.check(["v"])
    with pytest.raises(InputError, match=message):
        variable.read((slice(0, 1),))
    contents.check([])


def test_shards_may_not_contradict_each_other(tmp_path: Path) -> None:
    a = write(tmp_path / "a", "v", np.zeros(4, "f4"))
    b = write(tmp_path / "b", "v", np.zeros(4, "i4"), INT32)
    c = write(tmp_path / "c", "v", np.zeros(5, "f4"))
    with pytest.raises(InputError, match=f"^{b}: v is int32 .* and float32 .* in {a}; .*different"):
        slices.read([a, b])
    with pytest.raises(InputError, match=f"^{c}: v is float32 .5. here, and float32 .4. in {a}"):
        slices.read([a, c])
    with pytest.raises(InputError, match=f"stored twice, here and in {a}"):
        slices.read([a, a])


def listed(extent: bytes, shape: bytes = field(2, field(1, 4)), dtype: int = 1) -> bytes:
    """The list of tensors with one entry, whose slice has the given extent."""
    tensor = field(1, b"v") + field(2, shape) + field(3, dtype) + field(4, extent)
    return field(1, field(1, tensor))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (b"\x08\x01\x1a\x02\x08\x01", "no V1 checkpoint; if its name ends with .index"),
        (listed(b"\x0a\x00"), "v: the table has no entry for it"),
        (listed(field(1, field(2, -2))), "reaches outside"),
        (listed(field(1, field(1, -1) + field(2, 2))), "reaches outside"),
        (listed(field(1, field(1, 1 << 62) + field(2, 1 << 62))), "reaches outside"),
        (listed(b"\x0a\x00\x0a\x00"), "reaches outside"),
        (listed(b""), "reaches outside"),
        (listed(b"\x0a\x00", shape=field(3, 1)), "no known rank"),
        (listed(b"\x0a\x00", shape=field(2, field(1, -4))), "no array of shape"),
        (listed(b"\x0a\x00" * 40, shape=field(2, field(1, 1)) * 40), "no array of shape"),
        (
            listed(b"\x0a\x00" * 2, shape=field(2, field(1, 1 << 40)) * 2),
            "there is no float32 array",
        ),
        (
            listed(b"\x0a\x00" * 3, shape=b"\x12\0" + field(2, field(1, 1 << 40)) * 2),
            "no float32 array",
        ),
        (listed(b"\x0a\x00", dtype=20), "its dtype is none"),
        (listed(b"\x0a\x00", dtype=21), "its dtype is none"),
        (listed(b"\x0a\x00", dtype=99), "its dtype is none"),
        (field(1, field(2, field(1, 9) + field(2, 2))), "needs a reader of version 2"),
        (b"\x0a\x7f", "says 127 bytes where 0 are left"),
    ],
)
def test_a_damaged_list_is_told(tmp_path: Path, value: bytes, message: str) -> None:
    path = write_items(tmp_path / "c", [(b"", value)])
    with pytest.raises(InputError, match=f"^{path}: .*{message}"):
        one(path)()


@pytest.mark.usefixtures("must_end")
@pytest.mark.parametrize("is_damaged", [False, slow(True)])
def test_many_missing_entries_are_told_in_time(tmp_path: Path, is_damaged: bool) -> None:
    count = 15_000
    shape = (1 << 20,)
    metas = [meta(b"v%05d" % k, FLOAT32, shape, [full(shape)]) for k in range(count)]
    others = {slice_key(b"u%05d" % k, full(shape)): b"" for k in range(count)}
    # All in one block, in which the missing ones are looked for.
    items = [*v1_items(metas, others), (b"\xff", b"")]
    path = write_items(tmp_path / "c", items, block_size=1 << 30)
    if is_damaged:
        data = bytearray(path.read_bytes())
        data[-50_000:-49_800] = b"\xff" * 200
        path.write_bytes(data)
    contents = slices.read([path], verify=not is_damaged)
    assert len(contents.variables) == count
    for variable in contents.variables[:2]:
        with pytest.raises(InputError, match="ends early" if is_damaged else "no entry for it"):
            variable.read()


def test_a_table_without_list_is_no_checkpoint(tmp_path: Path) -> None:
    path = write_items(tmp_path / "c", [(b"a", b"b")])
    with pytest.raises(InputError, match=f"^{path}: this table is no V1 checkpoint"):
        slices.read([path])
    with pytest.raises(InputError, match="no V1 checkpoint"):
        slices.read([write_items(tmp_path / "d", [])])


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (b"", "holds no values"),
        (field(2, b""), "holds no values"),
        (field(2, field(3, 5)), "field 3 is a varint"),
        (field(2, field(3, b"")), "0 values are stored"),
        (field(2, field(3, field(5, b"\0" * 6))), "1 values are stored"),
        (field(2, field(3, field(5, b"\0" * 5) + b"\x2d\0\0\0\0" * 3)), "no whole numbers"),
        (field(2, field(3, field(5, b"\0" * 12) + field(5, 1))), "field 5 is a varint"),
        (field(2, field(3, field(4, b"\0" * 12))), "12 bytes are stored"),
        (field(2, field(3, b"\x2a\x20")), "says 32 bytes where 0 are left"),
    ],
)
def test_damaged_values_are_told(tmp_path: Path, value: bytes, message: str) -> None:
    tensors = field(1, meta(b"v", FLOAT32, (4,), [full((4,))]))
    items = [(b"", field(1, tensors)), (slice_key(b"v", full((4,))), value)]
    path = write_items(tmp_path / "c", items)
    with pytest.raises(InputError, match=f"^{path}: v: .*{message}"):
        one(path)()


def test_a_varint_without_end_is_told(tmp_path: Path) -> None:
    tensors = field(1, meta(b"v", INT32, (4,), [full((4,))]))
    for data in (b"\1\1\1\x80", b"\1\1\1" + b"\x80" * 10 + b"\1"):
        value = field(2, field(3, field(7, data)))
        path = write_items(
            tmp_path / "c", [(b"", field(1, tensors)), (slice_key(b"v", full((4,))), value)]
        )
        with pytest.raises(InputError, match=f"^{path}: v: a varint has"):
            one(path)()


def all_dtypes(draw: random.Random) -> list[tuple[bytes, bytes]]:
    """A table with a tensor of each dtype, some packed and some not, some in slices."""
    shape = (3, 4)
    in_slices: list[list[Extent]] = [[(0, 1), (0, None)], [(1, 2), (0, 4)]]
    metas, stored = [], {}
    for k, dtype in enumerate(DTYPES):
        name = dtype.name.encode()
        slices = [full(shape)] if k % 3 else in_slices
        metas.append(meta(name, dtype, shape, slices))
        for extents in slices:
            values = random_values(dtype, (extents[0][1] or 3, 4), draw)
            stored[slice_key(name, extents)] = numbers(dtype, values, [2, 0] if k % 2 else None)
    return v1_items(metas, stored)


@pytest.mark.slow
def test_mutants_are_read_or_refused(tmp_path: Path) -> None:
    """Any damage gives InputError or values; checksums do not hide the parser."""
    draw = random.Random(7)
    items = all_dtypes(draw)
    assert len(read(write_items(tmp_path / "c", items)).variables) == len(DTYPES)
    refused = 0
    for _ in range(1500):
        key, value = items[index := draw.choice([0, 0, draw.randrange(len(items))])]
        mutant = [*items[:index], (key, mutated(value, draw)), *items[index + 1 :]]
        path = write_items(tmp_path / "m", mutant)
        try:
            for variable in slices.read([path]).variables:
                if variable.size < 1 << 20:
                    variable.read()
        except InputError:
            refused += 1
    assert refused > 500


def mutated(data: bytes, draw: random.Random) -> bytes:
    """Flip, set, insert, remove or repeat a few bytes."""
    changed = bytearray(data)
    for _ in range(draw.choice([1, 1, 2, 4])):
        at = draw.randrange(len(changed) + 1)
        kind = draw.randrange(5)
        if kind == 0 and at < len(changed):
            changed[at] ^= 1 << draw.randrange(8)
        elif kind == 1 and at < len(changed):
            changed[at] = draw.choice([0, 1, 127, 128, 255])
        elif kind == 2:
            changed[at:at] = draw.choice([b"\xff" * 9, b"\0", b"\x80", draw.randbytes(3)])
        elif kind == 3:
            del changed[at : at + draw.randrange(1, 4)]
        else:
            changed[at:at] = changed[at : at + draw.randrange(1, 40)]
    return bytes(changed)


# TensorFlow as the reference


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "float32",
        "float64",
        "int32",
        "uint8",
        "int16",
        "int8",
        "int64",
        "bool",
        "complex64",
        "complex128",
        "float16",
        "uint16",
        "string",
        "qint8",
        "quint8",
        "qint32",
    ],
)
def test_what_tensorflow_writes_is_read(tmp_path: Path, name: str) -> None:
    import tensorflow as tf

    draw = random.Random(3)
    dtype = BY_NAME[name]
    values = {
        f"v{shape}": random_values(dtype, shape, draw) for shape in [(), (0, 3), (5,), (70, 40)]
    }
    cast = {
        key: tf.bitcast(value, name) if name.startswith("q") else tf.constant(value, name)
        for key, value in values.items()
    }
    tensors = [*cast.values(), cast["v(70, 40)"][3:9, :] if name[0] != "q" else cast["v(5,)"]]
    specs = [*[""] * len(cast), "70 40 3,6:-" if name[0] != "q" else "6 0,5"]
    path = tmp_path / "c"
    tf.raw_ops.SaveSlices(
        filename=str(path), tensor_names=[*cast, "part"], shapes_and_slices=specs, data=tensors
    )
    contents = slices.read([path])
    found = {variable.name: variable for variable in contents.variables}
    for key, value in values.items():
        assert (found[key].dtype, found[key].shape) == (dtype, value.shape)
        assert same(found[key].read(), value)
    with pytest.raises(InputError, match="elements of part are here; other shards are missing"):
        contents.check(["part"])


@pytest.mark.slow
def test_tensorflow_reads_what_the_tests_write(tmp_path: Path) -> None:
    import tensorflow as tf

    values = random_values(INT32, (6, 5), random.Random(4))
    regions = [(slice(0, 4), slice(0, 5)), (slice(4, 6), slice(0, 2)), (slice(4, 6), slice(2, 5))]
    path = write(tmp_path / "c", "v", values, INT32, regions=regions, pieces=[3, 0, 0])
    restored = tf.raw_ops.Restore(file_pattern=str(path), tensor_name="v", dt=tf.int32)
    np.testing.assert_array_equal(restored.numpy(), values)
