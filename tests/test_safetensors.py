"""safetensors: equal to the library's files to the byte, read back, and no trust in a header."""

from __future__ import annotations

import contextlib
import json
import os
import re
import struct
import tracemalloc
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import safetensors
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from converter.dtype import BY_NAME, BY_SAFETENSORS, DType
from converter.errors import ConverterError, InputError, PlanError
from converter.formats import safetensors as ours
from converter.formats.stream import Output, crc32c
from converter.variable import Array, Variable

HELD = [dtype for dtype in BY_NAME.values() if dtype.safetensors]
NOT_HELD = [dtype for dtype in BY_NAME.values() if not dtype.safetensors]


def write(
    directory: Path,
    variables: Sequence[Variable],
    *,
    shard_size: int | None = None,
    metadata: Mapping[str, str] | None = None,
) -> Path:
    """Write variables as `model`, and return the path that reads them."""
    plan = ours.layout(variables, "model", shard_size=shard_size, metadata=metadata)
    ours.write(directory, plan, open_output=Output)
    files = [shard.file for shard in plan.shards] + ([plan.index_file] if plan.index_file else [])
    assert sorted(path.name for path in directory.iterdir()) == sorted(files)
    return directory / files[-1]


def values(path: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    return {v.name: (v.dtype.name, v.shape, v.read().tobytes()) for v in ours.read(path).variables}


def meant(variables: Sequence[Variable]) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    return {v.name: (v.dtype.name, v.shape, v.read().tobytes()) for v in variables}


def ramp(dtype: DType, *shape: int) -> Array:
    assert dtype.numpy is not None
    return np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(dtype.numpy)


def raw(path: Path, header: object, data: bytes = b"") -> Path:
    """Write a file with any header, which needs not be JSON."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


# --- the library reads ours, and ours are the library's ---


def test_bytes_are_those_of_the_library(tmp_path: Path) -> None:
    plain = [dtype for dtype in HELD if BY_SAFETENSORS[dtype.safetensors or ""] is dtype]
    arrays = {
        f"{name}/{dtype}": ramp(dtype, *shape)
        for dtype in plain
        for name, shape in {"b": (2, 3), "a": (), "é": (0, 4), 'c"\\\n\x01\x7f': (5,)}.items()
    }
    variables = [Variable.from_array(name, array) for name, array in arrays.items()]
    path = write(tmp_path, variables)
    assert path.read_bytes() == safetensors.numpy.save(arrays, {"format": "tf"})


@pytest.mark.parametrize("dtype", HELD, ids=str)
def test_every_dtype_that_fits_comes_back(dtype: DType, tmp_path: Path) -> None:
    variables = [
        Variable.from_array("matrix", ramp(dtype, 3, 5), dtype=dtype),
        Variable.from_array("scalar", ramp(dtype), dtype=dtype),
        Variable.from_array("empty", ramp(dtype, 2, 0, 3), dtype=dtype),
    ]
    path = write(tmp_path, variables)
    assert values(path) == meant(variables)
    library = dict(safetensors.deserialize(path.read_bytes()))  # type: ignore[no-untyped-call]
    for variable in variables:
        tensor = library[variable.name]
        assert tensor["dtype"] == dtype.safetensors
        assert tuple(tensor["shape"]) == variable.shape
        assert bytes(tensor["data"]) == variable.read().tobytes()


def test_quantised_dtypes_are_remembered_in_the_metadata(tmp_path: Path) -> None:
    variables = [
        Variable.from_array("q", np.arange(4, dtype="i1"), dtype=BY_NAME["qint8"]),
        Variable.from_array("plain", np.arange(4, dtype="i1")),
    ]
    path = write(tmp_path, variables, metadata={"licence": "MIT"})
    with safetensors.safe_open(path, "numpy") as opened:
        assert opened.metadata() == {
            "format": "tf",
            "licence": "MIT",
            "tensorflow_dtypes": '{"q": "qint8"}',
        }
    contents = ours.read(path)
    assert contents.metadata == {"format": "tf", "licence": "MIT"}
    assert {v.name: v.dtype.name for v in contents.variables} == {"q": "qint8", "plain": "int8"}


def test_remembered_dtypes_that_no_longer_fit_are_passed_over(tmp_path: Path) -> None:
    header = {
        "__metadata__": {"tensorflow_dtypes": '{"a": "qint8", "b": "qint99", "gone": "qint8"}'},
        "a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
        "b": {"dtype": "I8", "shape": [1], "data_offsets": [4, 5]},
    }
    contents = ours.read(raw(tmp_path / "x.safetensors", header, bytes(5)))
    assert [v.dtype.name for v in contents.variables] == ["float32", "int8"]


@pytest.mark.parametrize(
    "view",
    [
        lambda a: a.T,
        lambda a: a[::-1],
        lambda a: a[:, ::2],
        lambda a: np.asfortranarray(a),
        lambda a: a[1:, 1:].transpose(1, 0),
        lambda a: np.broadcast_to(a[0], (4, a.shape[1])),
        lambda a: a[2, 3],
        lambda a: a[2, 3, ...],
        lambda a: a.astype(">f4"),
    ],
    ids=[
        "transposed",
        "reversed",
        "strided",
        "fortran",
        "both",
        "broadcast",
        "item",
        "0-d",
        "big-endian",
    ],
)
def test_any_memory_layout_is_written_in_c_order(
    view: Callable[[Array], Array], tmp_path: Path
) -> None:
    array = view(np.arange(24, dtype="f4").reshape(4, 6))
    path = write(tmp_path, [Variable.from_array("x", array)])
    np.testing.assert_array_equal(safetensors.numpy.load_file(path)["x"], array, strict=False)
    assert ours.read(path).variables[0].shape == np.shape(array)


def test_checksums_are_of_the_values(tmp_path: Path) -> None:
    variables = [Variable.from_array(n, np.arange(i, dtype="f4")) for i, n in enumerate("abc")]
    plan = ours.layout(variables, "model")
    checksums = ours.write(tmp_path, plan, open_output=Output)
    assert checksums == {v.name: crc32c(v.read().tobytes()) for v in variables}


def test_stored_and_regions_give_the_same_values(tmp_path: Path) -> None:
    array = np.arange(60, dtype="f8").reshape(3, 4, 5)
    first = Variable.from_array("a", np.ones(3, "f4"))
    path = write(tmp_path, [first, Variable.from_array("x", array)])
    variable = next(v for v in ours.read(path).variables if v.name == "x")
    assert variable.stored is not None
    assert variable.stored.crc32c is None
    with path.open("rb") as file:
        file.seek(variable.stored.offset)
        assert file.read(variable.stored.size) == array.tobytes()
    region = (slice(1, 3), slice(0, 4), slice(2, 3))
    np.testing.assert_array_equal(variable.read(region), array[region])
    np.testing.assert_array_equal(
        np.concatenate([b.ravel() for b in variable.blocks(24)]), array.ravel()
    )


# --- any set of variables ---


@st.composite
def variables(draw: st.DrawFn) -> list[Variable]:
    names = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
    shapes = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)
    made = []
    for name in draw(st.sets(names.filter(lambda name: name != "__metadata__"), max_size=6)):
        dtype, shape = draw(st.sampled_from(HELD)), draw(shapes)
        assert dtype.numpy is not None
        count = int(np.prod(shape)) * dtype.itemsize
        data = draw(st.binary(min_size=count, max_size=count))
        if dtype.name == "bool":
            data = bytes(byte & 1 for byte in data)
        array = np.frombuffer(data, dtype.numpy).reshape(shape)
        made.append(Variable.from_array(name, array, dtype=dtype))
    return made


@given(
    variables=variables(),
    shard_size=st.one_of(st.none(), st.integers(0, 200)),
    metadata=st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs"])),
        st.text(st.characters(exclude_categories=["Cs"])),
        max_size=3,
    ),
)
@settings(deadline=None)
def test_round_trip(
    variables: list[Variable],
    shard_size: int | None,
    metadata: dict[str, str],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    metadata.pop("tensorflow_dtypes", None)
    directory = tmp_path_factory.mktemp("round")
    path = write(directory, variables, shard_size=shard_size, metadata=metadata)
    contents = ours.read(path)
    assert values(path) == meant(variables)
    assert contents.metadata == {"format": "tf"} | metadata
    for file in contents.files:
        if file.suffix == ".safetensors":
            safetensors.deserialize(file.read_bytes())  # type: ignore[no-untyped-call]


@pytest.mark.slow
@given(data=st.data(), variables=variables().filter(bool))
@settings(deadline=None, max_examples=300)
def test_damage_is_an_input_error_or_harmless(
    data: st.DataObject, variables: list[Variable], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = write(tmp_path_factory.mktemp("damaged"), variables)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content) - 1))
        piece = data.draw(
            st.one_of(st.binary(max_size=3), st.sampled_from([b'"', b"[", b"{", b"-", b"9", b"\\"]))
        )
        content[at : at + data.draw(st.integers(0, 2))] = piece
        if not content:
            break
    path.write_bytes(content)
    with contextlib.suppress(InputError):
        for variable in ours.read(path).variables:
            variable.read()


# --- shards ---


def test_shards_as_hugging_face_names_them(tmp_path: Path) -> None:
    variables = [Variable.from_array(n, np.full(4, i, "f4")) for i, n in enumerate("cab")]
    variables.append(Variable.from_array("large", np.arange(100, dtype="f4")))
    variables.append(Variable.from_array("last", np.int64(7)))
    path = write(tmp_path, variables, shard_size=32)
    assert path.name == "model.safetensors.index.json"
    file = "model-0000{}-of-00004.safetensors".format
    places = {"c": file(1), "a": file(1), "b": file(2), "large": file(3), "last": file(4)}
    assert path.read_text() == (
        json.dumps(
            {"metadata": {"total_size": 456}, "weight_map": places}, indent=2, sort_keys=True
        )
        + "\n"
    )
    contents = ours.read(path)
    assert [f.name for f in contents.files] == [path.name, *(file(i) for i in (1, 2, 3, 4))]
    assert values(path) == meant(variables)
    for name, place in places.items():
        assert name in safetensors.numpy.load_file(tmp_path / place)


def test_a_layout_is_known_before_anything_is_read() -> None:
    def load(region: object) -> Array:
        raise AssertionError("read")

    variables = [Variable(n, BY_NAME["float32"], (1 << 40,), load) for n in "ab"]
    plan = ours.layout(variables, "m", shard_size=5 << 40)
    assert plan.index_file == "m.safetensors.index.json"
    assert [(shard.file, *(v.name for v in shard.variables)) for shard in plan.shards] == [
        ("m-00001-of-00002.safetensors", "a"),
        ("m-00002-of-00002.safetensors", "b"),
    ]


def test_nothing_at_all_can_be_written(tmp_path: Path) -> None:
    path = write(tmp_path, [])
    assert path.read_bytes() == safetensors.numpy.save({}, {"format": "tf"})
    assert ours.read(path).variables == ()


INDEX_FAULTS = {
    "escape": ({"x": "../model-1.safetensors"}, "no file name"),
    "absolute": ({"x": "/etc/passwd"}, "no file name"),
    "windows": ({"x": "..\\model-1.safetensors"}, "no file name"),
    "drive": ({"x": "C:model.safetensors"}, "no file name"),
    "nul": ({"x": "a\0b"}, "no file name"),
    "parent": ({"x": ".."}, "no file name"),
    "empty": ({"x": ""}, "no file name"),
    "missing shard": ({"x": "s1", "y": "s2", "z": "s3"}, "s3: the file is missing"),
    "missing tensor": ({"x": "s1", "y": "s2", "z": "s2"}, "places z in s2, which does not hold"),
    "unknown tensor": ({"x": "s1"}, None),
    "swapped": ({"x": "s2", "y": "s1"}, "holds y, but the index places it in s1"),
    "unnamed tensor": ({"x": "s1", "y": "s2", "w": "s4"}, "s4: holds y, but another shard"),
    "number": ({"x": 1}, "instead of a string"),
    "list": (["x"], "instead of '{'"),
    "surrogate": ({"x": "\ud800"}, "no valid Unicode"),
}


@pytest.mark.parametrize(("weight_map", "message"), INDEX_FAULTS.values(), ids=list(INDEX_FAULTS))
def test_an_index_that_does_not_fit(
    weight_map: object, message: str | None, tmp_path: Path
) -> None:
    one = {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}
    raw(tmp_path / "s1", {"x": one}, b"1")
    raw(tmp_path / "s2", {"y": one}, b"2")
    raw(tmp_path / "s4", {"w": one, "y": one | {"data_offsets": [1, 2]}}, b"34")
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(json.dumps({"metadata": {"a": [{"b": "]"}]}, "weight_map": weight_map}))
    if message is None:
        assert [v.name for v in ours.read(path).variables] == ["x"]
        return
    with pytest.raises(InputError, match=re.escape(message)):
        ours.read(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "the end"),
        (b"{}", "no weight_map"),
        (b'{"weight_map": {"x": "a", "x": "b"}}', "the key 'x' twice"),
        (b'{"weight_map": {}} {', "instead of its end"),
        (b'{"metadata": ' + b"[" * 200_000, "instead of a value"),
        (b'{"metadata": "\xff"}', "no UTF-8 at byte 14"),
        (b'{"weight_map": {"x": "a', "Unterminated string"),
    ],
)
def test_an_index_that_is_none(text: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors.index.json"
    path.write_bytes(text)
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        ours.read(path)
    assert str(caught.value).startswith(f"{path}: ")


# --- hostile headers ---


def tensor(dtype: object = "F32", shape: object = (2,), offsets: object = (0, 8)) -> object:
    return {"x": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}


PIECE = '{"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}'
HEADERS = {
    "no object": (b"[]", "does not start with"),
    "leading space": (b" {}", "does not start with"),
    "empty": (b"", "does not start with"),
    "no json": (b"{x", "instead of a string"),
    "no utf-8": (b'{"\xff": 1}', "no UTF-8 at byte 2"),
    "rest": (f'{{"x": {PIECE}}} {{'.encode(), "instead of its end"),
    "twice": (f'{{"x": {PIECE}, "x": {PIECE}}}'.encode(), "the key 'x' twice"),
    "twice escaped": (f'{{"x": {PIECE}, "\\u0078": {PIECE}}}'.encode(), "the key 'x' twice"),
    "trailing comma": (f'{{"x": {PIECE},}}'.encode(), "instead of a string"),
    "surrogate": (f'{{"\\udc80": {PIECE}}}'.encode(), "no valid Unicode"),
    "control": (f'{{"a\nb": {PIECE}}}'.encode(), "Invalid control character"),
    "deep": (b'{"x": ' + b"[" * 100_000, "of x"),
    "deep objects": (b'{"x": ' * 100_000, "of x"),
    "deep metadata": (b'{"__metadata__": ' + b'{"x": ' * 100_000, "instead of a string"),
    "null": ({"x": None}, "of x"),
    "no shape": ({"x": {"dtype": "F32", "data_offsets": [0, 8]}}, "of x"),
    "dtype twice": (
        b'{"x": {"dtype": "F32", "dtype": "F32", "data_offsets": [0, 8]}}',
        "in the header, which is damaged",
    ),
    "another field": ({"x": {"dtype": "F32", "shape": [2], "offsets": [0, 8]}}, "of x"),
    "metadata number": ({"__metadata__": {"a": 1}}, "instead of a string"),
    "metadata list": ({"__metadata__": []}, "instead of '{'"),
    "metadata null": ({"__metadata__": None}, "instead of '{'"),
    "kept dtypes": ({"__metadata__": {"tensorflow_dtypes": "["}}, "instead of '{'"),
    "dtype unknown": (tensor("F32X"), "x has dtype 'F32X', for which TensorFlow has none"),
    "dtype packed": (tensor("F4"), "x has dtype 'F4'"),
    "dtype e8m0": (tensor("F8_E8M0"), "x has dtype 'F8_E8M0'"),
    "dtype number": (tensor(1), "of x"),
    "dtype list": (tensor([2]), "x is"),
    "shape text": (tensor(shape="2"), "x is"),
    "shape number": (tensor(shape=2), "of x"),
    "size negative": (tensor(shape=[-2]), "of x"),
    "size true": (tensor(shape=[2, True]), "of x"),
    "size float": (tensor(shape=[2.0]), "of x"),
    "size exponent": (b'{"x": {"dtype": "F32", "shape": [2e0], "data_offsets": [0, 8]}}', "of x"),
    "size octal": (b'{"x": {"dtype": "F32", "shape": [02], "data_offsets": [0, 8]}}', "x is"),
    "size endless": (
        b'{"x": {"dtype": "F32", "shape": [%s], "data_offsets": [0, 8]}}' % (b"9" * 5000),
        "of x",
    ),
    "size long": (
        b'{"x": {"dtype": "F32", "shape": [%s], "data_offsets": [0, 8]}}' % (b"9" * 4000),
        "no array",
    ),
    "size missing": (b'{"x": {"dtype": "F32", "shape": [2,], "data_offsets": [0, 8]}}', "x is"),
    "sizes overflow": (tensor(shape=[1 << 40, 1 << 40]), "no array"),
    "sizes hidden": (tensor(shape=[0, 1 << 62], offsets=[0, 0]), "no array"),
    "dimensions": (tensor(shape=[1] * 1000, offsets=[0, 4]), "no array"),
    "size wrong": (tensor(shape=[3]), "takes 12 bytes"),
    "offsets reversed": (tensor(offsets=[8, 0]), "takes 8 bytes"),
    "offsets single": (tensor(offsets=[8]), "takes 8 bytes"),
    "offsets three": (tensor(offsets=[0, 8, 8]), "takes 8 bytes"),
    "offsets negative": (tensor(offsets=[-8, 0]), "of x"),
    "offset later": (tensor(offsets=[8, 16]), "x starts at byte 8 of the data, but"),
    "overlap": (
        {"x": json.loads(PIECE), "y": {"dtype": "U8", "shape": [1], "data_offsets": [7, 8]}},
        "y starts at byte 7",
    ),
    "too long": (tensor(shape=[1], offsets=[0, 4]), "something was appended"),
    "too short": (tensor(shape=[3], offsets=[0, 12]), "cut short"),
    "far away": (tensor(shape=[1 << 50], offsets=[0, 1 << 52]), "cut short"),
}


@pytest.mark.parametrize(("header", "message"), HEADERS.values(), ids=list(HEADERS))
def test_a_header_that_is_not_as_the_format_demands(
    header: object, message: str, tmp_path: Path
) -> None:
    path = raw(tmp_path / "x.safetensors", header, bytes(8))
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        ours.read(path)
    text = str(caught.value)
    assert text.startswith(f"{path}: ")
    assert "\n" not in text
    assert len(text) < len(str(path)) + 400


def test_lengths_are_checked_before_anything_is_read(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    for content in [b"", b"1234567", struct.pack("<Q", 3) + b"{}", b"\xff" * 8 + b"{}"]:
        path.write_bytes(content)
        with pytest.raises(InputError, match="short"):
            ours.read(path)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", ours.MAX_HEADER_BYTES + 1) + b"{}")
        file.truncate(ours.MAX_HEADER_BYTES + 100)
    with pytest.raises(InputError, match="exceeds 100000000"):
        ours.read(path)


def test_a_hostile_header_takes_little_memory(tmp_path: Path) -> None:
    path = raw(tmp_path / "x.safetensors", b'{"x": [' + b"[]," * 1_000_000 + b"[]]}")
    tracemalloc.start()
    with pytest.raises(InputError):
        ours.read(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * path.stat().st_size


def test_what_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.safetensors")
    for name in ["absent.safetensors", "pipe.safetensors", ".", "a\0b.safetensors"]:
        with pytest.raises(InputError):
            ours.read(tmp_path / name)


def test_any_spelling_of_a_valid_header(tmp_path: Path) -> None:
    header = (
        b'{\n "b\\u002f" : { "shape":[ 2 ,1 ],\t"data_offsets": [1,3], "dtype":"U8"} ,'
        b'"a":{"data_offsets":[0,1],"dtype":"BOOL","shape":[]},\r\n'
        b'"e":{"dtype":"F32","shape":[0,3],"data_offsets":[1,1]} } \n '
    )
    contents = ours.read(raw(tmp_path / "x.safetensors", header, b"\x01\x02\x03"))
    assert [(v.name, v.shape) for v in contents.variables] == [
        ("b/", (2, 1)),
        ("a", ()),
        ("e", (0, 3)),
    ]
    assert [v.read().tolist() for v in contents.variables] == [[[2], [3]], True, []]


# --- what cannot be held ---


@pytest.mark.parametrize("dtype", NOT_HELD, ids=str)
def test_dtypes_that_do_not_fit_are_refused(dtype: DType) -> None:
    variable = Variable("x", dtype, (1,), lambda region: np.zeros(1))
    assert ours.refusal(variable) == f"safetensors has no dtype for {dtype}"
    with pytest.raises(PlanError, match=f"^x: safetensors has no dtype for {dtype}; drop it"):
        ours.layout([variable], "model")


def test_names_that_do_not_fit_are_refused() -> None:
    variable = Variable.from_array("x", np.zeros(1, "f4"))
    assert ours.refusal(variable) is None
    assert "keeps the name __metadata__" in str(ours.refusal(variable.rename("__metadata__")))
    assert "UTF-8" in str(ours.refusal(variable.rename("caf\udce9")))
    with pytest.raises(PlanError, match="x: two variables"):
        ours.layout([variable, variable], "model", shard_size=1)


def test_a_header_beyond_the_limit_is_refused_before_writing() -> None:
    variable = Variable.from_array("x" * 60_000_000, np.zeros(1, "f4"))
    assert ours.layout([variable], "model").shards
    with pytest.raises(PlanError, match="safetensors allow 100000000"):
        ours.layout([variable, variable.rename("y" * 60_000_000)], "model")


def test_a_strategy_that_breaks_its_word_is_told(tmp_path: Path) -> None:
    variable = Variable("x", BY_NAME["float32"], (2,), lambda region: np.zeros(3, "f4"))
    with pytest.raises(ConverterError, match="bug of the strategy"):
        write(tmp_path, [variable])
