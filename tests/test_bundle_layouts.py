"""TensorFlow V2 checkpoints in every layout: slices, shards, big-endian, snappy, strings ..."""

from __future__ import annotations

import random
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from bundle_maker import (
    FLOAT,
    HEADER,
    NUMERIC,
    SLICE,
    Maker,
    by_name,
    compressed,
    open_output,
    put_any,
    some_values,
    string_bytes,
    variables_of,
    variant_bytes,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from test_tiling import tilings

from converter.dtype import BY_NAME, STRING, VARIANT, DType
from converter.errors import InputError
from converter.formats import bundle
from converter.formats.messages import message
from converter.formats.stream import crc32c
from converter.formats.table import (
    encode_tensor_name_slice,
    mask,
)


@pytest.fixture
def maker(tmp_path: Path) -> Maker:
    return Maker(tmp_path)


@settings(deadline=None)
@given(
    st.sampled_from([*NUMERIC, STRING]),
    st.lists(st.integers(1, 6), max_size=4).map(tuple),
    st.randoms(use_true_random=False),
    st.integers(0, 12),
    st.integers(1, 3),
)
def test_any_slicing_is_assembled(
    tmp_path_factory: pytest.TempPathFactory,
    dtype: DType,
    shape: tuple[int, ...],
    draw: random.Random,
    cuts: int,
    shards: int,
) -> None:
    values = some_values(dtype, shape)
    maker = Maker(tmp_path_factory.mktemp("s"), shards=shards)
    regions = tilings(shape, draw, cuts)
    extents = []
    for region in regions:
        explicit = draw.random() < 0.5
        extents.append(tuple(
            (s.start, s.stop - s.start) if explicit or s != slice(0, n) else (0, -1)
            for s, n in zip(region, shape, strict=True)
        ))  # fmt: skip
        key = encode_tensor_name_slice(b"v\0\xff", extents[-1])
        put_any(maker, key, dtype, values[region], draw.randrange(shards))
    maker.partition(b"v\0\xff", dtype, shape, extents)
    contents = bundle.read(maker.index(block_size=draw.choice([50, 262144])))
    contents.check(["v\0\udcff"])
    (variable,) = contents.variables
    assert (variable.name, variable.dtype, variable.shape) == ("v\0\udcff", dtype, shape)
    assert variable.read().tolist() == values.tolist()
    region = tuple(slice(*sorted((draw.randint(0, n), draw.randint(0, n)))) for n in shape)
    assert variable.read(region).tolist() == np.asarray(values[region], values.dtype).tolist()
    if len(regions) > 1:
        assert contents.partitions == {"v\0\udcff": tuple(regions)}
        assert variable.stored is None


def test_a_slice_that_is_the_whole_is_a_plain_variable(maker: Maker) -> None:
    values = np.arange(6, dtype="f4").reshape(2, 3)
    float32 = BY_NAME["float32"]
    for name, extents in [(b"full", (0, -1)), (b"explicit", None)]:
        pairs = tuple(extents or (0, n) for n in values.shape)
        maker.partition(name, float32, (2, 3), [pairs])
        maker.add(encode_tensor_name_slice(name, pairs), float32, values)
    collapsed = maker.add(b"collapsed", float32, values)
    collapsed.slices.add().extent.add()
    collapsed.slices[0].extent.add()
    contents = bundle.read(maker.index())
    assert contents.partitions == {}
    assert sorted(by_name(contents)) == ["collapsed", "explicit", "full"]
    for variable in contents.variables:
        assert variable.stored is not None
        np.testing.assert_array_equal(variable.read(), values)


@pytest.mark.parametrize(
    ("extents", "stored", "message"),
    [
        ([(0, 2)], [(0, 2)], "leave gaps: they hold 6 of 12"),
        ([(0, 2), (1, 2)], [(0, 2), (1, 2)], "overlap, and leave gaps"),
        ([(0, 2), (2, 2), (1, 2)], [(0, 2), (2, 2), (1, 2)], "overlap: they hold 18"),
        ([(0, 2), (2, 2)], [(0, 2)], r"the slice \[2:4, 0:3\] of v is missing"),
    ],
)
def test_slices_that_do_not_fit_harm_only_their_variable(
    maker: Maker, extents: list[tuple[int, int]], stored: list[tuple[int, int]], message: str
) -> None:
    maker.add(b"other", FLOAT, SLICE)
    maker.partition(b"v", FLOAT, (4, 3), [(extent, (0, -1)) for extent in extents])
    for extent in stored:
        maker.add(encode_tensor_name_slice(b"v", [extent, (0, -1)]), FLOAT, SLICE)
    contents = bundle.read(maker.index())
    contents.check(["other"])
    with pytest.raises(InputError, match=rf"model.ckpt.index: .*\bv\b.*{message}|{message}"):
        contents.check(["other", "v"])
    with pytest.raises(InputError, match=message):
        by_name(contents)["v"].read()


def test_slices_of_the_wrong_kind(maker: Maker) -> None:
    def entry(shape: tuple[int, ...], dtype: str, extents: list[tuple[int, int]]) -> None:
        maker.partition(b"v", FLOAT, (4, 3), [extents])  # type: ignore[list-item]
        values = np.zeros(shape, BY_NAME[dtype].numpy)
        maker.add(encode_tensor_name_slice(b"v", extents), BY_NAME[dtype], values)

    for shape, dtype, extents, fault in [
        ((2, 3), "int32", [(0, 2), (0, -1)], r"slice \[0:2, 0:3\] of v is int32 \[2, 3\]"),
        ((3, 2), "float32", [(0, 2), (0, -1)], r"float32 \[3, 2\], and not float32 \[2, 3\]"),
        ((2,), "float32", [(0, 2)], "has 1 axes"),
        ((2, 3), "float32", [(3, 2), (0, -1)], "outside"),
        ((2, 3), "float32", [(-1, 2), (0, -1)], "outside"),
    ]:
        entry(shape, dtype, extents)
        with pytest.raises(InputError, match=fault):
            bundle.read(maker.index())


def test_more_slices_than_entries_are_refused(maker: Maker) -> None:
    maker.partition(b"v", FLOAT, (), [()] * 100_000)
    with pytest.raises(InputError, match="v has more slices than the index has entries"):
        bundle.read(maker.index())


def test_a_name_like_the_key_of_a_slice_is_listed(maker: Maker) -> None:
    key = encode_tensor_name_slice(b"v", [(0, 2), (0, -1)])
    maker.add(key, FLOAT, SLICE)
    (variable,) = maker.read().values()
    assert variable.name.encode("utf-8", "surrogateescape") == key


@pytest.mark.parametrize("dtype", NUMERIC, ids=str)
def test_big_endian_values_are_swapped(tmp_path: Path, dtype: DType) -> None:
    maker = Maker(tmp_path, order=">")
    arrays = {shape: some_values(dtype, shape) for shape in [(), (2, 5), (0,)]}
    for shape, values in arrays.items():
        maker.add(str(shape).encode(), dtype, values)
    found = maker.read()
    for shape, values in arrays.items():
        variable = found[str(shape)]
        assert variable.read().tobytes() == values.tobytes()
        assert (variable.stored is None) == (dtype.itemsize > 1)
    assert (
        found["(2, 5)"].read((slice(1, 2), slice(2, 4))).tolist() == arrays[2, 5][1:2, 2:4].tolist()
    )


def test_big_endian_strings_and_variants(tmp_path: Path) -> None:
    maker = Maker(tmp_path, order=">")
    data, crc = string_bytes([b"ab", b"", b"c" * 300], "big")
    maker.put(b"s", STRING, [3], data, crc)
    maker.put(b"v", VARIANT, [1], *variant_bytes([b"x"]))
    found = maker.read()
    assert found["s"].read().tolist() == [b"ab", b"", b"c" * 300]
    with pytest.raises(InputError, match="v is a variant of a big-endian machine"):
        found["v"].read()


@pytest.mark.parametrize(
    ("strings", "data"),
    [
        ([b"hello"], "05 d9c6 9c43 68656c6c6f"),
        (
            [b"", b"ab", b"c" * 300],
            "00 02 ac02 0d7769da 6162",
        ),
        ([], "d8ea82a2"),
    ],
)
def test_strings_are_stored_as_tensorflow_does(
    tmp_path: Path, strings: list[bytes], data: str
) -> None:
    shape = () if strings == [b"hello"] else (len(strings),)
    values = np.empty(shape, object)
    values[...] = strings[0] if shape == () else strings
    bundle.write(tmp_path / "m", variables_of(("s", STRING, values)), open_output=open_output)
    written = (tmp_path / "m.data-00000-of-00001").read_bytes()
    assert written.startswith(bytes.fromhex(data))
    assert by_name(bundle.read(tmp_path / "m.index"))["s"].read().tolist() == values.tolist()


def test_an_empty_string_tensor_may_have_no_bytes(maker: Maker) -> None:
    maker.put(b"s", STRING, [0, 4], b"", 0)
    assert maker.read()["s"].read().shape == (0, 4)


def test_variants_are_carried(maker: Maker, tmp_path: Path) -> None:
    data, crc = variant_bytes([b"first", b"", b"third" * 100])
    maker.put(b"v", VARIANT, [3], data, crc)
    variable = maker.read()["v"]
    assert variable.read().tobytes() == data
    assert variable.nbytes == len(data)
    bundle.write(tmp_path / "copy", [variable.rename("w")], open_output=open_output)
    (copy,) = bundle.read(tmp_path / "copy.index").variables
    assert (copy.name, copy.dtype, copy.shape) == ("w", VARIANT, (3,))
    assert copy.read().tobytes() == data


def test_ranges_may_be_padded_shared_and_nested(maker: Maker) -> None:
    values = np.arange(8, dtype="i4")
    maker.data[0] += b"before"
    first = maker.add(b"a", BY_NAME["int32"], values)
    maker.data[0] += b"\0" * 50
    maker.entries[b"alias"] = first
    part = message("BundleEntryProto")()
    part.CopyFrom(first)
    part.offset, part.size, part.crc32c = first.offset + 8, 8, mask(crc32c(values[2:4].tobytes()))
    part.shape.dim[0].size = 2
    maker.entries[b"nested"] = part
    found = maker.read()
    assert found["alias"].read().tolist() == values.tolist()
    assert found["nested"].read().tolist() == [2, 3]


def test_reference_dtypes_and_unknown_fields(maker: Maker) -> None:
    maker.add(b"v", FLOAT, SLICE).dtype += 100
    items = {
        b"": HEADER + b"\x7a\1x",
        b"v": maker.entries[b"v"].SerializeToString() + b"\x7a\1x\x70\5",
    }
    (variable,) = bundle.read(maker.index_of(items)).variables
    assert (variable.dtype, variable.read().shape) == (FLOAT, (2, 3))


def test_files_without_a_version_are_read(maker: Maker) -> None:
    # Before September 2016.
    maker.header.ClearField("version")
    maker.add(b"v", FLOAT, SLICE)
    assert maker.read()["v"].read().tolist() == SLICE.tolist()


def test_many_blocks_and_snappy(maker: Maker) -> None:
    for i in range(300):
        maker.add(b"v%03d" % i, FLOAT, np.full(2, i, "f4"))
    index = maker.index(block_size=200)
    assert {name: v.read().tolist() for name, v in by_name(bundle.read(index)).items()} == {
        f"v{i:03d}": [i, i] for i in range(300)
    }
    plain = by_name(bundle.read(maker.index()))
    index.write_bytes(compressed(index.read_bytes()))
    packed = by_name(bundle.read(index))
    assert [(v.name, v.stored) for v in packed.values()] == [
        (v.name, v.stored) for v in plain.values()
    ]


@pytest.mark.parametrize("shape", [(16 << 20, 1), (4096, 4096), (1, 16 << 20)])
def test_large_variables_are_read_in_bounded_memory(maker: Maker, shape: tuple[int, int]) -> None:
    values = np.arange(16 << 20, dtype="f4").reshape(shape)
    maker.add(b"v", FLOAT, values)
    variable = maker.read()["v"]
    maker.data.clear()
    rows, columns = (slice(0, min(size, 1000)) for size in shape)
    tracemalloc.start()
    assert (variable.read((rows, columns)) == values[rows, columns]).all()
    position = 0
    for block in variable.blocks():
        assert (block.ravel() == values.ravel()[position : position + block.size]).all()
        position += block.size
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert position == values.size
    assert peak < 32 << 20
