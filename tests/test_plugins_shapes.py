"""pad and truncate: plain growing and cutting, to a template's shapes or explicit ones."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import slow
from converter_plugins.pad import Pad
from converter_plugins.truncate import Truncate
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors.numpy import save_file

from converter import (
    Array,
    Checkpoint,
    PlanError,
    Region,
    Role,
    Strategy,
    UsageError,
    Variable,
)
from converter.dtype import BY_NAME, VARIANT
from converter.initializers import Constant, GlorotUniform
from converter.plan import make_plan
from converter.testing import NAME, check_strategy

Sizes = Mapping[str, tuple[int, ...]]


def checkpoint(arrays: Mapping[str, Any], roles: Mapping[str, Role] | None = None) -> Checkpoint:
    """Return a checkpoint of arrays, with roles by name where names do not tell them."""
    variables = [Variable.from_array(name, array) for name, array in arrays.items()]
    if roles is None:
        return Checkpoint(variables)
    return Checkpoint(
        variables, roles=lambda found: {n: roles.get(n, Role("model")) for n in found}
    )


def apply(strategy: Strategy, source: Checkpoint) -> dict[str, Array]:
    return {v.name: v.read() for v in strategy.apply(source)}


def error(strategy: Strategy, source: Checkpoint) -> str:
    with pytest.raises((PlanError, UsageError)) as caught:
        list(strategy.apply(source))
    assert "\n" not in str(caught.value)
    return f"{type(caught.value).__name__}: {caught.value}"


def test_pad_keeps_old_values_in_their_places() -> None:
    result = apply(
        Pad(shape={"w": (3, 4)}, fill=Constant(-1.5)),
        checkpoint({"w": np.arange(6, dtype="f4").reshape(2, 3), "b": np.array([7], "f4")}),
    )
    expected = [[0, 1, 2, -1.5], [3, 4, 5, -1.5], [-1.5, -1.5, -1.5, -1.5]]
    np.testing.assert_array_equal(result["w"], np.array(expected, "f4"), strict=True)
    np.testing.assert_array_equal(result["b"], np.array([7], "f4"), strict=True)


def test_truncate_keeps_what_comes_first() -> None:
    source = checkpoint({"w": np.arange(12, dtype="i4").reshape(3, 4)})
    result = apply(Truncate(shape={"w": (2, 3)}), source)
    np.testing.assert_array_equal(result["w"], np.array([[0, 1, 2], [4, 5, 6]], "i4"), strict=True)


@given(
    array=hnp.arrays(np.float32, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)),
    growth=st.lists(st.integers(0, 3), min_size=3, max_size=3),
)
def test_truncate_undoes_pad(array: Array, growth: list[int]) -> None:
    larger = tuple(size + more for size, more in zip(array.shape, growth, strict=False))
    padded = Checkpoint(Pad(shape={"w": larger}).apply(checkpoint({"w": array})))
    assert padded["w"].shape == larger
    result = apply(Truncate(shape={"w": array.shape}), padded)
    np.testing.assert_array_equal(result["w"], array, strict=True)


@pytest.mark.parametrize("more", [slow(0), 1, slow(3)])
def test_pad_keeps_the_contract(more: int) -> None:
    fill = Constant(1)
    check_strategy(lambda c: Pad(shape={"*": tuple(s + more for s in c[NAME].shape)}, fill=fill))


@pytest.mark.parametrize("less", [slow(0), 1, slow(3)])
def test_truncate_keeps_the_contract(less: int) -> None:
    check_strategy(lambda c: Truncate(shape={"*": tuple(max(0, s - less) for s in c[NAME].shape)}))


def test_an_unchanged_shape_is_the_same_variable() -> None:
    source = checkpoint({"w": np.zeros((2, 3), "f4")})
    assert list(Pad(shape={"w": (2, 3)}).apply(source)) == [source["w"]]


def test_of_several_globs_the_first_that_fits_wins() -> None:
    source = checkpoint({"a/w": np.zeros(2), "b/w": np.zeros(2)})
    result = apply(Pad(shape={"a/*": (3,), "*": (5,)}), source)
    assert {name: value.shape for name, value in result.items()} == {"a/w": (3,), "b/w": (5,)}


def _template(path: Path, shapes: Sizes) -> Path:
    save_file({name: np.zeros(shape, np.float32) for name, shape in shapes.items()}, path)
    return path


@pytest.mark.parametrize(
    ("strategy", "array", "message"),
    [
        (Pad(shape={"w": (512, 768)}), np.zeros((768, 768)), "PlanError: w[0]: pad cannot "
         "turn 768 units into 512; it only grows them (truncate cuts)"),
        (Truncate(shape={"w": (3,)}), np.zeros(2), "PlanError: w[0]: truncate cannot turn 2 units "
         "into 3; it only cuts them (pad grows)"),
        (Pad(shape={"w": (3, 3)}), np.zeros(3), "PlanError: w: pad cannot turn [3] into [3, 3]; "
         "the number of axes differs"),
        (Pad(shape={"w": (3,)}), np.array(["a"]), "PlanError: w: string variables cannot "
         "grow; new entries are numbers"),
        (Pad(shape={"w": (3,)}, fill=Constant(0.5)), np.array([1]),
         "PlanError: w: int64 cannot hold the fill 0.5; choose another"),
        (Pad(shape={"w": (3,)}, fill=Constant(300)), np.array([1], "u1"),
         "PlanError: w: uint8 cannot hold the fill 300; choose another"),
        (Pad(shape={"w": (3,)}, fill=Constant(1e6)), np.array([1], "f2"),
         "PlanError: w: float16 cannot hold the fill 1e+06; choose another"),
        (Pad(shape={"v*": (3,)}), np.zeros(2), "UsageError: 'v*' fits none of the 1 variables"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(strategy: Strategy, array: Array, message: str) -> None:
    assert error(strategy, checkpoint({"w": array})) == message


def test_variants_are_refused() -> None:
    def load(region: Region) -> Array:
        raise AssertionError

    source = Checkpoint([Variable("w", VARIANT, (2,), load)])
    assert error(Truncate(shape={"w": (1,)}), source).endswith("their bytes are opaque")


@pytest.mark.parametrize("dtype", ["bfloat16", "float8_e4m3fn", "int4", "bool", "complex64"])
def test_every_dtype_of_numbers_can_grow(dtype: str) -> None:
    array = np.array([1]).astype(BY_NAME[dtype].numpy)
    result = apply(Pad(shape={"w": (2,)}, fill=Constant(1)), checkpoint({"w": array}))
    np.testing.assert_array_equal(result["w"], np.array([1, 1]).astype(array.dtype), strict=True)


def test_shapes_are_needed() -> None:
    with pytest.raises(UsageError, match=r"^no sizes are given; use --resize WIDTH=SIZE, --like"):
        Pad()
    with pytest.raises(UsageError, match=r"^shape 'a': sizes cannot be negative, got \[-1\]$"):
        Truncate(shape={"a": (-1,)})


SLOT = Role("slot", of="w", slot="m", optimizer="Adam")
AVERAGE = Role("average", of="w")


@pytest.mark.parametrize(("role", "word"), [(SLOT, "slot"), (AVERAGE, "average")])
def test_slots_and_averages_follow_their_variable(role: Role, word: str) -> None:
    arrays = {"w": np.ones(2, "f4"), "w/x": np.ones(2, "f4")}
    found = apply(Pad(shape={"w": (3,)}), checkpoint(arrays, {"w/x": role}))
    assert found["w/x"].tolist() == [1, 1, 0]
    source = checkpoint({"w": np.zeros(3), "w/x": np.zeros(3)}, {"w/x": role})
    assert apply(Pad(shape={"w*": (4,)}), source)["w/x"].shape == (4,)
    assert error(Truncate(shape={"w/x": (2,)}), source) == (
        f"PlanError: w/x: as the {word} of w it would be [2] beside [3]; resize it too "
        f"(--shape 'w/x=3'), or drop it before (--drop {word}s)"
    )


@pytest.mark.parametrize(
    ("slot_shape", "new", "shape"),
    [
        ((), (2, 5), ()),
        ((1,), (2, 5), (1,)),
        ((2,), (2, 5), (2,)),
        ((3,), (2, 5), None),
        ((3, 3), (2, 5), None),
        ((2, 2), (2, 5), (2, 2)),
        ((2, 3), (3, 3), (3, 3)),
    ],
)
def test_slots_of_other_shapes_must_fit_the_new_one(
    slot_shape: tuple[int, ...], new: tuple[int, ...], shape: tuple[int, ...] | None
) -> None:
    source = checkpoint({"w": np.zeros((2, 3)), "w/x": np.zeros(slot_shape)}, {"w/x": SLOT})
    if shape is not None:
        assert apply(Pad(shape={"w": new}), source)["w/x"].shape == shape
    else:
        assert "as the slot of w it would be" in error(Pad(shape={"w": new}), source)


def test_what_did_not_fit_before_is_left_alone() -> None:
    source = checkpoint({"w": np.zeros(2), "w/x": np.zeros(7), "v": np.zeros(2)}, {"w/x": SLOT})
    assert apply(Pad(shape={"v": (3,)}), source)["w/x"].shape == (7,)


def test_a_fill_is_drawn_where_nothing_follows() -> None:
    """The axes are independent: no entry is zero because another variable would take it."""
    source = checkpoint({"w": np.full((2, 2), 9, "f4")})
    found = apply(Pad(shape={"w": (3, 4)}, fill=GlorotUniform()), source)["w"]
    assert (found[:2, :2] == 9).all()
    new = np.concatenate([found[2], found[:2, 2:].ravel()])
    assert len(np.unique(new)) == new.size
    assert (new != 0).all()
    assert np.abs(new).max() <= np.sqrt(6 / 7)


def test_only_what_a_region_needs_is_read() -> None:
    read: list[Region] = []

    def load(region: Region) -> Array:
        read.append(region)
        return np.ones(tuple(s.stop - s.start for s in region), "f4")

    def blocks(strategy: Strategy) -> Iterable[Array]:
        (variable,) = strategy.apply(Checkpoint([Variable("w", BY_NAME["float32"], (4, 4), load)]))
        return variable.blocks(32)

    assert [block.tolist() for block in blocks(Pad(shape={"w": (5, 8)}))] == [
        *([[[1, 1, 1, 1, 0, 0, 0, 0]]] * 4),
        [[0] * 8],
    ]
    assert read == [(slice(row, row + 1), slice(0, 4)) for row in range(4)]
    read.clear()
    assert [block.shape for block in blocks(Truncate(shape={"w": (3, 4)}))] == [(2, 4), (1, 4)]
    assert read == [(slice(0, 2), slice(0, 4)), (slice(2, 3), slice(0, 4))]


def test_the_plan_of_four_times_as_many_variables_takes_no_more_than_that_much_longer() -> None:
    def seconds(count: int) -> float:
        names = [f"layer_{k}/kernel{slot}" for k in range(count) for slot in ("", "/Adam")]
        source = checkpoint(dict.fromkeys(names, np.zeros((2, 3), "f4")))
        began = time.process_time()
        plan = make_plan(source, [Pad(shape={"*/kernel": (3, 4)})])
        assert {v.shape for v in plan.variables} == {(3, 4)}
        return time.process_time() - began

    few, many = (min(seconds(count) for _ in range(3)) for count in (150, 600))
    assert many < 8 * few, f"{few:.3f} s, {many:.3f} s"
