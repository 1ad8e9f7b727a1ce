"""How checkpoints differ: what counts as equal, and what `convert diff` says."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from converter.cli import cli
from converter.difference import Comparison, compare
from converter.dtype import BY_NAME, VARIANT, DType
from converter.formats import bundle, safetensors
from converter.formats.stream import Output
from converter.variable import Variable

BF16 = ml_dtypes.bfloat16


def variable(array: npt.ArrayLike, name: str = "x", dtype: DType | None = None) -> Variable:
    return Variable.from_array(name, np.asarray(array), dtype=dtype)


def compared(a: npt.ArrayLike, b: npt.ArrayLike) -> Comparison:
    (found,) = compare({"x": variable(a)}, {"x": variable(b)})
    return found


def diff(*args: str | Path) -> Result:
    return CliRunner().invoke(cli, ["diff", *map(str, args)])


def test_names_on_one_side_only() -> None:
    x, y, z = (variable([1.0], name) for name in "xyz")
    found = list(compare({"x": x, "y": y}, {"z": z, "y": y}))
    assert [(c.name, c.differences) for c in found] == [
        ("x", ("only in A",)),
        ("y", ()),
        ("z", ("only in B",)),
    ]


@pytest.mark.parametrize("name", [d.name for d in BY_NAME.values() if d.itemsize])
def test_every_dtype(name: str) -> None:
    dtype = BY_NAME[name]
    assert dtype.numpy is not None
    zeros, one = np.zeros((3, 4)), np.zeros((3, 4))
    one[1, 2] = one[2, 0] = 1
    a = variable(zeros.astype(dtype.numpy), dtype=dtype)
    b = variable(one.astype(dtype.numpy), dtype=dtype)
    (same,) = compare({"x": a}, {"x": a})
    assert (same.differences, same.differing, same.at) == ((), 0, None)
    (found,) = compare({"x": a}, {"x": b})
    assert found.differences == ("values",)
    assert (found.differing, found.at) == (2, (1, 2))
    assert found.largest == (None if name == "bool" else 1)
    assert found.values == ((False, True) if name == "bool" else (0, 1))


def test_bits_decide_within_one_dtype() -> None:
    quiet = np.array([0x7FC00000, 0x3F800000], "u4").view("f4")
    payload = np.array([0x7FC00001, 0x3F800000], "u4").view("f4")
    assert compared(quiet, quiet.copy()).differences == ()
    found = compared(quiet, payload)
    assert (found.differing, found.largest, found.at) == (1, 0, (0,))
    found = compared([0.0, 1.0], [-0.0, 1.0])
    assert (found.differing, found.largest) == (1, 0)


def test_values_decide_between_dtypes() -> None:
    values = np.array([1.0, np.nan, np.inf, -0.0], "f4")
    found = compared(values, values.astype(BF16))
    assert (found.differences, found.differing) == (("dtype",), 0)
    found = compared(np.array([1.0, 1.001], "f4"), np.array([1.0, 1.001], BF16))
    assert found.differences == ("dtype", "values")
    assert found.at == (1,)
    assert found.largest == pytest.approx(0.001, rel=1e-3)
    assert compared(np.arange(3, dtype="i4"), np.arange(3, dtype="i8")).differing == 0
    assert compared([True, False], np.array([1, 0], "i4")).differing == 0


def test_nan_and_infinity_are_the_largest_differences() -> None:
    assert compared([0.0, 5.0, np.nan], [1.0, 9.0, 0.0]).at == (2,)
    assert compared([0.0, 5.0, np.nan], [1.0, 9.0, 0.0]).largest == math.inf
    assert compared([np.inf, 1.0], [-np.inf, 2.0]).largest == math.inf


def test_integers_differ_exactly() -> None:
    low, high = -(2**63), 2**63 - 1
    found = compared(np.array([low, 2**60], "i8"), np.array([high, 2**60 + 1], "i8"))
    assert (found.differing, found.largest, found.at) == (2, 2.0**64, (0,))
    assert compared(np.array([2**60], "i8"), np.array([2**60 + 1], "i8")).largest == 1
    assert compared(np.array([0], "u8"), np.array([2**64 - 1], "u8")).largest == 2.0**64
    assert compared(np.array([-128], "i1"), np.array([127], "i1")).largest == 255


@pytest.mark.parametrize(
    ("integer", "dtype", "number"),
    [
        (2**53 + 1, "i8", 2.0**53),
        (-(2**53) - 1, "i8", -(2.0**53)),
        (2**63 - 1, "i8", 2.0**63),
        (2**64 - 1, "u8", 2.0**64),
        (2**60, "i8", 2.0**60),
        (-(2**63), "i8", -(2.0**63)),
        (-1, "i8", -1 + 2.0**-53),
        (3, "i8", math.nan),
        (3, "u8", -math.inf),
    ],
)
@pytest.mark.parametrize("other", ["f8", "c16"])
def test_integers_and_floats_differ_exactly(
    integer: int, dtype: str, number: float, other: str
) -> None:
    a, b = np.array([integer], dtype), np.array([number], other)
    for found in (compared(a, b), compared(b, a)):
        assert found.differing == (integer != number)
        if integer == number:
            assert found.largest is None
        elif math.isfinite(number):
            assert found.largest == float(abs(integer - Fraction(number)))
        else:
            assert found.largest == math.inf


def test_integers_of_two_signs_differ_exactly() -> None:
    found = compared(np.array([2**63 - 1], "i8"), np.array([2**63], "u8"))
    assert (found.differing, found.largest) == (1, 1)
    assert compared(np.array([2**63 - 1], "i8"), np.array([2**63 - 1], "u8")).differing == 0
    assert compared(np.array([-1], "i8"), np.array([2**64 - 1], "u8")).largest == 2.0**64


@given(st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False))
def test_any_integer_and_float_are_equal_as_python_has_it(integer: int, number: float) -> None:
    for near in (number, float(integer), float(np.nextafter(float(integer), 0))):
        found = compared(np.array([integer], "i8"), np.array([near], "f8"))
        assert found.differing == (integer != near)


def test_the_largest_difference_of_all_blocks() -> None:
    a = np.zeros((3, 300_000), "f4")
    b = a.copy()
    b[0, 7], b[1, 250_000], b[2, 299_999] = 1, -3, 2
    found = compared(a, b)
    assert (found.differing, found.largest, found.at) == (3, 3, (1, 250_000))
    assert found.values == (0.0, -3.0)


def test_shapes_and_kinds_that_cannot_be_compared() -> None:
    found = compared(np.zeros((2, 3)), np.zeros((3, 2)))
    assert (found.differences, found.differing) == (("shape",), None)
    found = compared(np.zeros(1), np.array([b"a"], object))
    assert (found.differences, found.differing) == (("dtype",), None)


def test_strings() -> None:
    a = np.array([[b"a", b"b\0"], [b"", b"c"]], object)
    b = np.array([[b"a", b"b"], [b"", b"d"]], object)
    assert compared(a, a.copy()).differences == ()
    found = compared(a, b)
    assert (found.differing, found.at, found.largest) == (2, (0, 1), None)
    assert found.values == (b"b\0", b"b")


def test_variants_are_equal_when_their_bytes_are() -> None:
    def variant(*values: int) -> Variable:
        return Variable("x", VARIANT, (), lambda region: np.array(values, np.uint8))

    cases = {((1, 2), (1, 2)): (), ((1, 2), (1, 3)): ("values",), ((1,), (1, 2)): ("values",)}
    for (a, b), differences in cases.items():
        (found,) = compare({"x": variant(*a)}, {"x": variant(*b)})
        assert found.differences == differences


def test_scalars_and_empty_variables() -> None:
    assert compared(np.float32(1), np.float32(1)).differences == ()
    assert compared(np.float32(1), np.float32(2)).at == ()
    assert compared(np.zeros((0, 3)), np.zeros((0, 3))).differences == ()


SHAPES = hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=5)


@given(st.data(), st.sampled_from(["f4", "f8", "i1", "i8", "u8", "?", "c8"]), SHAPES)
def test_equal_to_the_bit_or_told_where(
    data: st.DataObject, dtype: str, shape: tuple[int, ...]
) -> None:
    a, b = (data.draw(hnp.arrays(dtype, shape)) for _ in range(2))
    found = compared(a, b)
    pairs = zip(a.reshape(-1), b.reshape(-1), strict=True)
    unequal = np.array([x.tobytes() != y.tobytes() for x, y in pairs], bool).reshape(shape)
    assert found.differing == unequal.sum()
    assert bool(found.differences) == bool(unequal.any())
    if unequal.any():
        assert found.at is not None
        assert unequal[found.at]


# --- the command ---


@pytest.fixture
def values() -> dict[str, npt.NDArray[np.generic]]:
    return {
        "a/kernel": np.arange(12, dtype="f4").reshape(3, 4),
        "a/bias": np.ones(4, "f4"),
        "step": np.array(7, "i8"),
    }


def write_tf(prefix: Path, values: Mapping[str, npt.ArrayLike]) -> Path:
    variables = [variable(array, name) for name, array in sorted(values.items())]
    bundle.write(prefix, variables, open_output=Output)
    return prefix


def write_safetensors(path: Path, values: Mapping[str, npt.ArrayLike]) -> Path:
    layout = safetensors.layout([variable(v, name) for name, v in values.items()], path.stem)
    safetensors.write(path.parent, layout, open_output=Output)
    return path


Values = dict[str, npt.NDArray[np.generic]]


def test_equal_across_formats(values: Values, tmp_path: Path) -> None:
    a, b = write_tf(tmp_path / "a", values), write_safetensors(tmp_path / "b.safetensors", values)
    result = diff(a, b)
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines() == [
        f"A  {a}  TensorFlow V2, 3 variables",
        f"B  {b}  safetensors, 3 variables",
        "equal: 3 variables, 72 B",
    ]
    document = json.loads(diff(a, b, "--json").stdout)
    assert document == {
        "a": {"path": str(a), "format": "TensorFlow V2"},
        "b": {"path": str(b), "format": "safetensors"},
        "equal": 3,
        "variables": [],
    }


def test_differences_and_exit_code(values: Values, tmp_path: Path) -> None:
    a = write_tf(tmp_path / "a", values)
    values["a/kernel"][1, 2] += 0.5
    values["a/bias"] = np.ones(5, "f4")
    values["b\n"] = values.pop("step")
    b = write_tf(tmp_path / "b", values)
    result = diff(a, b)
    assert result.exit_code == 1
    assert result.stdout.splitlines()[2:] == [
        "shape       a/bias  float32 [4] / float32 [5]",
        "values      a/kernel  float32 [3, 4]: 1 of 12 elements differ, by up to 0.5, "
        "at [1, 2] (6 / 6.5)",
        "only in A   step  int64 []",
        "only in B   b\\n  int64 []",
        "different: shape 1, values 1, only in A 1, only in B 1; 0 variables equal",
    ]
    result = diff(a, b, "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["variables"] == [
        {
            "name": "a/bias",
            "differences": ["shape"],
            "a": {"dtype": "float32", "shape": [4]},
            "b": {"dtype": "float32", "shape": [5]},
            "differing": None,
            "largest": None,
            "at": None,
        },
        {
            "name": "a/kernel",
            "differences": ["values"],
            "a": {"dtype": "float32", "shape": [3, 4]},
            "b": {"dtype": "float32", "shape": [3, 4]},
            "differing": 1,
            "largest": 0.5,
            "at": [1, 2],
        },
        {
            "name": "step",
            "differences": ["only in A"],
            "a": {"dtype": "int64", "shape": []},
            "b": None,
            "differing": None,
            "largest": None,
            "at": None,
        },
        {
            "name": "b\n",
            "differences": ["only in B"],
            "a": None,
            "b": {"dtype": "int64", "shape": []},
            "differing": None,
            "largest": None,
            "at": None,
        },
    ]


def test_another_dtype_with_equal_values(values: Values, tmp_path: Path) -> None:
    a = write_tf(tmp_path / "a", values)
    b = write_tf(tmp_path / "b", values | {"a/bias": np.ones(4, BF16)})
    result = diff(a, b)
    assert result.exit_code == 1
    assert "dtype       a/bias  float32 [4] / bfloat16 [4]: equal values" in result.stdout


def test_infinite_differences_are_json(values: Values, tmp_path: Path) -> None:
    a = write_tf(tmp_path / "a", values)
    b = write_tf(tmp_path / "b", values | {"a/bias": np.full(4, np.nan, "f4")})
    (found,) = json.loads(diff(a, b, "--json").stdout)["variables"]
    assert (found["differing"], found["largest"], found["at"]) == (4, "inf", [0])


def test_a_checkpoint_that_is_not_there(values: Values, tmp_path: Path) -> None:
    a = write_tf(tmp_path / "a", values)
    result = diff(a, tmp_path / "none")
    assert result.exit_code == 3
    assert result.stdout == ""


def test_damage_is_no_difference(values: Values, tmp_path: Path) -> None:
    a, b = write_tf(tmp_path / "a", values), write_tf(tmp_path / "b", values)
    data = tmp_path / "b.data-00000-of-00001"
    content = bytearray(data.read_bytes())
    content[20] ^= 1
    data.write_bytes(content)
    result = diff(a, b)
    assert result.exit_code == 3
    assert str(data) in result.stderr
    assert diff(a, b, "--no-verify-source").exit_code == 1
