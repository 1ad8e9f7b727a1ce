"""cast and scale: what becomes of values."""

from __future__ import annotations

import contextlib
import functools
import io
import re
import zipfile
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from converter_plugins.cast import Cast
from converter_plugins.scale import Scale
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors.numpy import save_file

from converter import (
    Array,
    Checkpoint,
    ConverterError,
    InputError,
    PlanError,
    Strategy,
    UsageError,
    Variable,
)
from converter.dtype import BY_NAME
from converter.strategy import options
from converter.testing import check_strategy


def checkpoint(arrays: Mapping[str, Any]) -> Checkpoint:
    return Checkpoint(Variable.from_array(name, array) for name, array in arrays.items())


def apply(strategy: Strategy, arrays: Mapping[str, Any]) -> dict[str, Array]:
    return {v.name: v.read() for v in strategy.apply(checkpoint(arrays))}


def error(strategy: Strategy, arrays: Mapping[str, Any]) -> str:
    with pytest.raises(ConverterError) as caught:
        apply(strategy, arrays)
    assert "\n" not in str(caught.value)
    return f"{type(caught.value).__name__}: {caught.value}"


SHORT_FLOATS = [d.name for d in BY_NAME.values() if d.is_float and d.itemsize < 4]
SHORT_FLOATS.remove("float4_e2m1fn")


@functools.cache
def finite(dtype: str) -> Array:
    """Return all finite numbers of a short float dtype as sorted float64."""
    found = BY_NAME[dtype]
    assert found.numpy is not None
    bits = np.arange(1 << 8 * found.itemsize).astype(f"u{found.itemsize}")
    with np.errstate(invalid="ignore"):
        values = bits.view(found.numpy).astype("f8")
    return np.unique(values[np.isfinite(values)])


def nearest(value: float, grid: Array, dtype: str) -> float:
    """Return the number of the grid that is nearest, of two the one whose last bit is 0."""
    place = int(np.clip(np.searchsorted(grid, float(value)), 1, len(grid) - 2))
    around = [float(number) for number in grid[place - 1 : place + 2]]
    found = BY_NAME[dtype]

    def order(number: float) -> tuple[Fraction, int]:
        bits = np.array(number).astype(found.numpy).view(f"u{found.itemsize}")
        return abs(Fraction(number) - Fraction(value)), int(bits) & 1

    return min(around, key=order)


class TestCast:
    def test_floats_are_rounded_to_nearest_and_integers_stay(self) -> None:
        result = apply(
            Cast(cast="float16"), {"w": np.array([1 / 3, -2, 2049], "f8"), "step": np.int64(7)}
        )
        np.testing.assert_array_equal(
            result["w"], np.array([0.33325195, -2, 2048], "f2"), strict=True
        )
        np.testing.assert_array_equal(result["step"], np.array(7, "i8"), strict=True)

    @pytest.mark.parametrize("dtype", SHORT_FLOATS)
    @given(data=st.data())
    def test_rounding_is_exact(self, dtype: str, data: st.DataObject) -> None:
        grid = finite(dtype)
        place = data.draw(st.integers(1, len(grid) - 1))
        tie = (grid[place - 1] + grid[place]) / 2
        value = data.draw(
            st.one_of(
                st.sampled_from([tie, np.nextafter(tie, -np.inf), np.nextafter(tie, np.inf)]),
                st.integers(1, 52).map(lambda bits: tie * (1 + 2.0**-bits)),
                st.floats(grid[0], grid[-1]),
            ).filter(lambda value: abs(value) <= grid[-1])
        )
        (rounded,) = Cast(cast=dtype).apply(checkpoint({"w": np.array([value], "f8")}))
        assert float(rounded.read()[0]) == nearest(value, grid, dtype)

    @pytest.mark.parametrize("dtype", SHORT_FLOATS)
    def test_the_range_ends_half_a_step_beyond_the_last(self, dtype: str) -> None:
        grid = finite(dtype)
        end = grid[-1] + (grid[-1] - grid[-2]) / 2
        values = np.array(
            [np.nextafter(end, 0), np.nextafter(end, np.inf), 1e300, np.nan, 0.0, -0.0, -1e-300]
        )
        (rounded,) = Cast(cast=dtype).apply(checkpoint({"w": values}))
        result = rounded.read().astype("f8")
        assert (result[0], *np.isfinite(result[1:4])) == (grid[-1], False, False, False)
        assert result[4:].tolist() == [0, 0, 0]
        assert sum(rounded.counts.values()) == 2

    @pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
    @pytest.mark.parametrize("source", ["i8", "u8", "i4", "u4"])
    def test_integers_are_rounded_to_nearest(self, source: str, dtype: str) -> None:
        bits = np.arange(1, np.iinfo(source).bits - 1, dtype=source)
        one = np.ones((), source)
        powers = one << bits
        # Ties of bfloat16 and of float16, and what lies beside them.
        ties = np.concatenate([powers + (powers >> one * 8), powers + (powers >> one * 11)])
        values = np.concatenate([ties, ties + one, ties - one, np.zeros(1, source)])
        if source.startswith("i"):
            values = np.concatenate([values, -values])
        (rounded,) = Cast(cast=dtype, only=("n",)).apply(checkpoint({"n": values}))
        grid = finite(dtype)
        for value, found in zip(values.tolist(), rounded.read().astype("f8"), strict=True):
            if abs(value) <= grid[-1]:
                assert found == nearest(value, grid, dtype)

    def test_integers_that_floats_round_are_counted(self) -> None:
        values = np.array([16777217, 16777216, 2049, 70000, -(2**63), 2**63 - 1, 0], "i8")
        for dtype, counts in {
            "float64": {"rounded to another integer": 1},
            "float32": {"rounded to another integer": 2},
            "float16": {"overflowed to infinity": 5, "rounded to another integer": 1},
        }.items():
            (cast,) = Cast(cast=dtype, only=("n",)).apply(checkpoint({"n": values}))
            cast.read()
            assert cast.counts == counts
        (small,) = Cast(cast="float32", only=("n",)).apply(checkpoint({"n": values.astype("i2")}))
        small.read()
        assert small.counts == {}

    def test_overflows_are_counted(self) -> None:
        source = checkpoint({"w": np.array([1e6, -1e6, 65504, np.inf, np.nan], "f4")})
        (half,) = Cast(cast="float16").apply(source)
        np.testing.assert_array_equal(
            half.read(), np.array([np.inf, -np.inf, 65504, np.inf, np.nan], "f2"), strict=True
        )
        assert half.counts == {"overflowed to infinity": 2}

    def test_overflows_to_nan_are_counted_as_such(self) -> None:
        source = checkpoint({"w": np.array([1e6, 1, np.nan], "f4")})
        (small,) = Cast(cast="float8_e4m3fn").apply(source)
        assert small.read().astype("f4").tolist()[1] == 1
        assert small.counts == {"overflowed to NaN": 1}

    def test_the_same_dtype_is_the_same_variable(self) -> None:
        source = checkpoint({"w": np.array([1], "f4")})
        assert list(Cast(cast="float32").apply(source)) == [source["w"]]

    def test_only_chosen_variables_change_integers_too(self) -> None:
        result = apply(
            Cast(cast="float32", only=("step", "flag")),
            {"w": np.array([1.0]), "step": np.int64(2**24 + 1), "flag": np.array([True])},
        )
        assert {n: v.dtype.name for n, v in result.items()} == {
            "w": "float64",
            "step": "float32",
            "flag": "float32",
        }
        assert result["step"] == 2**24
        assert result["flag"] == [1]

    def test_words_choose_too(self) -> None:
        arrays = {"w": np.array([1.0]), "w/Adam": np.array([2.0]), "w/Adam_1": np.array([2.0])}
        result = apply(Cast(cast="float16", only=("model",)), arrays)
        assert {name: value.dtype.name for name, value in result.items()} == {
            "w": "float16",
            "w/Adam": "float64",
            "w/Adam_1": "float64",
        }

    def test_integers_must_fit(self) -> None:
        result = apply(Cast(cast="int8", only=("n",)), {"n": np.array([127, -128])})
        np.testing.assert_array_equal(result["n"], np.array([127, -128], "i1"), strict=True)
        for number in (128, -129):
            assert error(Cast(cast="int8", only=("n",)), {"n": np.array([0, number])}) == (
                f"ConverterError: n: {number} does not fit int8; choose a wider one"
            )
        assert error(Cast(cast="uint64", only=("n",)), {"n": np.array([-1])}).startswith(
            "ConverterError: n: -1 does not fit uint64"
        )

    @pytest.mark.parametrize(
        ("array", "dtype", "message"),
        [
            (
                np.array([1], "f4"),
                "int32",
                "w: cast does not turn float32 into int32; choose a float",
            ),
            (
                np.array([1], "c8"),
                "float32",
                "w: cast does not turn complex64 into float32; narrow",
            ),
            (np.array(["a"]), "float32", "w: cast does not turn string into float32; narrow"),
        ],
    )
    def test_what_would_lose_its_meaning_is_refused(
        self, array: Array, dtype: str, message: str
    ) -> None:
        found = error(Cast(cast=dtype, only=("w",)), {"w": array})
        assert found.startswith(f"PlanError: {message}")

    def test_integers_must_be_chosen(self) -> None:
        with pytest.raises(UsageError, match=r"^int32 is for integers; say which ones \(--cast-o"):
            Cast(cast="int32")

    def test_a_glob_must_fit(self) -> None:
        assert error(Cast(cast="float16", only=("v",)), {"w": np.array([1], "f4")}) == (
            "UsageError: 'v' fits none of the 1 variables"
        )

    @pytest.mark.parametrize(
        "dtype", [d.name for d in BY_NAME.values() if d.is_float and d.name != "float4_e2m1fn"]
    )
    def test_the_contract_is_kept(self, dtype: str) -> None:
        check_strategy(Cast(cast=dtype))

    def test_every_float_but_float4_and_every_whole_integer_can_be_chosen(self) -> None:
        plain = {
            d.name
            for d in BY_NAME.values()
            if d.is_float or re.fullmatch(r"u?int(8|16|32|64)", d.name)
        }
        assert set(options(Cast)[0].choices or ()) == plain - {"float4_e2m1fn"}

    def test_the_contract_is_kept_for_integers(self) -> None:
        check_strategy(Cast(cast="int16", only=("*",)))

    @given(hnp.arrays(np.float32, hnp.array_shapes(max_side=3), elements=st.floats(width=32)))
    def test_wider_and_back_is_the_same(self, array: Array) -> None:
        (wide,) = Cast(cast="float64").apply(checkpoint({"w": array}))
        (back,) = Cast(cast="float32").apply(Checkpoint([wide]))
        np.testing.assert_array_equal(back.read(), array, strict=True)
        assert not back.counts


class TestScale:
    def test_globs_choose_factors_and_dtypes_stay(self) -> None:
        result = apply(
            Scale(scale={"a/*": 0.5, "*": -3}),
            {"a/w": np.array([1, 2], "f4"), "b": np.array([1, 2], ml_dtypes.bfloat16)},
        )
        np.testing.assert_array_equal(result["a/w"], np.array([0.5, 1], "f4"), strict=True)
        np.testing.assert_array_equal(
            result["b"], np.array([-3, -6], ml_dtypes.bfloat16), strict=True
        )

    @given(hnp.arrays(np.float32, hnp.array_shapes(max_side=3), elements=st.floats(width=32)))
    def test_a_factor_of_one_changes_nothing(self, array: Array) -> None:
        result = apply(Scale(scale={"*": 1}), {"w": array})
        np.testing.assert_array_equal(result["w"], array, strict=True)

    @given(
        hnp.arrays(np.float32, 3, elements=st.floats(-(2.0**90), 2.0**90, width=32)),
        st.floats(-1e6, 1e6, allow_subnormal=False),
    )
    def test_products_are_rounded_once(self, array: Array, factor: float) -> None:
        result = apply(Scale(scale={"*": factor}), {"w": array})
        exact = [np.float32(float(value) * factor) for value in array]
        np.testing.assert_array_equal(result["w"], np.array(exact, "f4"), strict=True)

    @pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
    def test_products_in_float64_are_rounded_to_nearest(self, dtype: str) -> None:
        grid = finite(dtype)
        values = grid[np.abs(grid) < grid[-1] / 2][:: len(grid) // 3000]
        source = checkpoint({"w": values.astype(BY_NAME[dtype].numpy)})
        (scaled,) = Scale(scale={"*": 1.1}).apply(source)
        for value, found in zip(values, scaled.read().astype("f8"), strict=True):
            assert found == nearest(float(value) * 1.1, grid, dtype)

    def test_overflows_are_counted(self) -> None:
        for array, factor in ((np.array([60000, 1], "f2"), 2), (np.array([1e300, 1], "f8"), 1e10)):
            (scaled,) = Scale(scale={"*": factor}).apply(checkpoint({"w": array}))
            assert np.isinf(scaled.read()).tolist() == [True, False]
            assert scaled.counts == {"overflowed to infinity": 1}

    def test_integers_are_refused(self) -> None:
        assert error(Scale(scale={"*": 2}), {"step": np.int64(3)}) == (
            "PlanError: step: scale changes floats only, and it is int64; choose others"
        )

    @pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
    def test_statistics_divide(self, tmp_path: Path, suffix: str) -> None:
        path = tmp_path / f"statistics{suffix}"
        save(path, {"w/mean_abs": np.array([2, 0, 4], "f4"), "b/mean_abs": np.float64(0.5)})
        arrays = {
            "w": np.array([[2, 2, 2], [4, 4, 4]], "f4"),
            "b": np.array([3], "f4"),
            "c": np.zeros(2),
        }
        strategy = Scale(statistics=path, floor=0.25, scale={"b": 10})
        result = apply(strategy, arrays)
        assert result["w"].tolist() == [[1, 8, 0.5], [2, 16, 1]]
        assert result["b"].tolist() == [60]
        assert result["c"].tolist() == [0, 0]
        assert list(strategy.notes(checkpoint(arrays))) == [
            "changes the outputs, as nothing follows what is chosen by its name",
            "1 statistic of 1 variable, such as w, is below the floor 0.25, and counts as it",
        ]

    @pytest.mark.parametrize(
        ("statistic", "message"),
        [
            (np.ones(2), "PlanError: w: its statistic in {path} is [2]; it must be [] or [3], the"),
            (np.ones((1, 3)), "PlanError: w: its statistic in {path} is [1, 3]; it must be []"),
            (np.array([1, -1, 1]), "PlanError: w: its statistic in {path} has negative numbers,"),
            (np.array([1, np.nan, 1]), "PlanError: w: its statistic in {path} has negative num"),
            (
                np.array([1, 1, 1j]),
                "PlanError: w: its statistic in {path} is complex128, no number",
            ),
            (np.array(["a"] * 3), "InputError: {path}: w/mean_abs is <U1, and must be numbers"),
        ],
    )
    def test_statistics_must_suit(self, tmp_path: Path, statistic: Array, message: str) -> None:
        path = tmp_path / "s.npz"
        save(path, {"w/mean_abs": statistic})
        found = error(Scale(statistics=path), {"w": np.ones((2, 3))})
        assert found.startswith(message.format(path=path))

    def test_a_scalar_has_no_units(self, tmp_path: Path) -> None:
        path = tmp_path / "s.npz"
        save(path, {"w/mean_abs": np.float32(4)})
        assert apply(Scale(statistics=path), {"w": np.float32(2)})["w"] == 0.5

    def test_statistics_of_other_variables_are_refused(self, tmp_path: Path) -> None:
        path = tmp_path / "s.npz"
        save(path, {"encoder/w/mean_abs": np.ones(1)})
        assert error(Scale(statistics=path), {"encodr/w": np.ones(1)}) == (
            f"UsageError: {path}: none of its 1 statistics is of a variable that is here, such as "
            f"'encoder/w'; did you mean 'encodr/w'?"
        )
        save(path, {"w": np.ones(1)})
        assert error(Scale(statistics=path), {"w": np.ones(1)}) == (
            f"UsageError: {path}: it has no key VARIABLE/mean_abs"
        )

    @pytest.mark.parametrize(
        ("values", "message"),
        [
            ({}, "factors or statistics are needed; give --scale 'GLOB=FACTOR', --scale-"),
            ({"scale": {"a": np.inf}}, "scale 'a': the factor must be finite, got inf"),
            ({"scale": {"a": 1}, "floor": 0.0}, "floor must be a positive number, got 0.0"),
            ({"scale": {"a": 1}, "floor": np.nan}, "floor must be a positive number, got nan"),
        ],
    )
    def test_options_must_make_sense(self, values: dict[str, Any], message: str) -> None:
        with pytest.raises(UsageError) as caught:
            Scale(**values)
        assert str(caught.value).startswith(message)

    def test_the_contract_is_kept(self) -> None:
        check_strategy(Scale(scale={"*": 1.5}))

    def test_the_contract_is_kept_for_a_vector(self, tmp_path: Path) -> None:
        path = tmp_path / "s.npz"

        def make(source: Checkpoint) -> Strategy:
            ((name, variable),) = source.items()
            units = variable.shape[-1] if variable.shape else 1
            save(path, {f"{name}/mean_abs": np.arange(1.0, units + 1).reshape(variable.shape[-1:])})
            return Scale(statistics=path)

        check_strategy(make)


def save(path: Path, arrays: Mapping[str, Array]) -> None:
    if path.suffix == ".npz":
        np.savez(path, allow_pickle=True, **arrays)
    else:
        save_file({name: np.asarray(array, order="C") for name, array in arrays.items()}, path)


def npy(header: bytes, data: bytes = b"", version: bytes = b"\x01\x00") -> bytes:
    """Return the bytes of an .npy member with any header."""
    size = len(header).to_bytes(2 if version[0] == 1 else 4, "little")
    return b"\x93NUMPY" + version + size + header + data


def header(shape: str = "(3,)", descr: str = "'<f8'") -> bytes:
    return f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}\n".encode()


class TestHostileStatistics:
    """Nothing but InputError or PlanError, and nothing large is allocated."""

    @pytest.mark.parametrize(
        "member",
        [
            b"",
            b"\x93NUMPY",
            npy(b""),
            npy(b"{}"),
            npy(b"(" * 60000),
            npy(b"-" * 9000 + b"1"),
            npy(b"[" * 3000),
            npy(header(shape="(-3,)"), b"\0" * 24),
            npy(header(shape="'x'")),
            npy(header(descr="'|O'"), b"cos\nsystem\n(S'true'\ntR."),
            npy(header(descr="'<f99'")),
            npy(header(descr="[('a', '<f8')]"), b"\0" * 24),
            npy(header(), b"\0" * 23),
            npy(header(), b"\0" * 25),
            npy(header(), b"\0" * 24, version=b"\x02\x07"),
            npy(b"\0" * 100, version=b"\x09\x09"),
        ],
    )
    def test_bad_members_are_refused(self, tmp_path: Path, member: bytes) -> None:
        path = tmp_path / "s.npz"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("w/mean_abs.npy", member)
        found = error(Scale(statistics=path), {"w": np.ones((2, 3))})
        assert found.startswith(f"InputError: {path}: ")

    def test_a_shape_that_does_not_suit_is_never_allocated(self, tmp_path: Path) -> None:
        path = tmp_path / "s.npz"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("w/mean_abs.npy", npy(header(shape="(1000000000000,)")))
        found = error(Scale(statistics=path), {"w": np.ones((2, 3))})
        assert found.startswith(f"PlanError: w: its statistic in {path} is [1000000000000]")

    @pytest.mark.parametrize("keep", [0, 1, 10, 60, 150])
    def test_truncated_archives_are_refused(self, tmp_path: Path, keep: int) -> None:
        path = tmp_path / "s.npz"
        save(path, {"w/mean_abs": np.ones(3)})
        path.write_bytes(path.read_bytes()[:keep])
        with pytest.raises(InputError, match=r"s\.npz: it is no readable \.npz file \("):
            apply(Scale(statistics=path), {"w": np.ones((2, 3))})

    def test_damaged_bytes_are_found(self, tmp_path: Path) -> None:
        path = tmp_path / "s.npz"
        save(path, {"w/mean_abs": np.ones(3)})
        data = bytearray(path.read_bytes())
        at = data.index(np.ones(3).tobytes())
        data[at + 6] ^= 1
        path.write_bytes(data)
        with pytest.raises(InputError, match=r"s\.npz: it is no readable \.npz file \(Bad CRC-32"):
            apply(Scale(statistics=path), {"w": np.ones((2, 3))})

    def test_files_that_are_not_there_are_refused(self, tmp_path: Path) -> None:
        for name in ("none.npz", "none.safetensors"):
            with pytest.raises(InputError, match=r"none"):
                apply(Scale(statistics=tmp_path / name), {"w": np.ones((2, 3))})

    @given(st.data())
    def test_mutants_of_a_good_file(self, tmp_path_factory: Any, data: st.DataObject) -> None:
        buffer = io.BytesIO()
        np.savez(buffer, **{"w/mean_abs": np.ones(3)}, allow_pickle=True)
        mutant = bytearray(buffer.getvalue())
        for _ in range(data.draw(st.integers(1, 4))):
            mutant[data.draw(st.integers(0, len(mutant) - 1))] = data.draw(st.integers(0, 255))
        path = tmp_path_factory.mktemp("mutants") / "s.npz"
        path.write_bytes(mutant)
        with contextlib.suppress(InputError, PlanError, UsageError):
            apply(Scale(statistics=path), {"w": np.ones((2, 3))})
