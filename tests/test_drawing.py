"""Drawing: the same values whatever the order, the regions and what else is drawn."""

from __future__ import annotations

import itertools
import math
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from converter import (
    Array,
    ConverterError,
    Initializer,
    InputError,
    PlanError,
    Region,
    UsageError,
    Variable,
    option,
)
from converter.drawing import Block, Drawing, _pieces
from converter.dtype import BY_NAME
from converter.initializers import Constant, Match, Normal, Orthogonal, Template, Uniform
from converter.values import PIECE, Values
from converter.variable import regions, shape_of, whole

Shape = tuple[int, ...]


def unread(region: Region) -> Array:
    raise AssertionError("it was read")


def variable(shape: Shape, name: str = "scope/w", dtype: str = "float32") -> Variable:
    return Variable(name, BY_NAME[dtype], shape, unread)


def all_of(shape: Shape, initializer: Initializer, label: str = "") -> Block:
    return Block(label, whole(shape), initializer, 1, 1)


def test_the_values_of_a_seed_are_for_ever() -> None:
    # Other numbers here break what users have written down with a seed.
    drawn = Drawing(3).redraw(variable((2, 3)), [all_of((2, 3), Normal(stddev=1.0))]).read()
    np.testing.assert_array_equal(drawn, np.array(NORMAL, np.float32).reshape(2, 3), strict=True)
    drawn = Drawing(3).redraw(variable((4,)), [all_of((4,), Uniform(0.0, 1.0))]).read()
    np.testing.assert_array_equal(drawn, np.array(UNIFORM, np.float32), strict=True)


NORMAL = [
    1.0509281158447266,
    0.1605798304080963,
    1.0907293558120728,
    -0.8903332948684692,
    0.4554067552089691,
    0.08556907624006271,
]
UNIFORM = [0.7917314767837524, 0.0208639707416296, 0.06260725855827332, 0.6127585768699646]


def test_streams_depend_on_seed_name_and_label() -> None:
    shape = (50,)
    drawn = [
        Drawing(seed).redraw(variable(shape, name), [all_of(shape, Normal(), label)]).read()
        for seed in (0, 1)
        for name in ("a", "b", "\udc80")
        for label in ("", "i")
    ]
    for one, other in itertools.combinations(drawn, 2):
        assert not np.isin(one, other).any()
    stream = Drawing(0).redraw(variable(shape, "b"), [all_of(shape, Normal())], stream="a")
    assert np.array_equal(stream.read(), drawn[0])


@pytest.mark.parametrize(
    "shape", [(7, 9), (3 * PIECE + 5,), (2, PIECE + 3), (5, 3, PIECE // 4), (1, 2, 2 * PIECE + 1)]
)
@pytest.mark.parametrize("max_bytes", [1000, 65536, 1 << 20])
def test_blocks_of_any_size_hold_the_same(shape: Shape, max_bytes: int) -> None:
    if math.prod(shape) > 1000 * max_bytes // 4:
        max_bytes *= 10
    drawn = Drawing(0).redraw(variable(shape), [all_of(shape, Normal())])
    pieces = [block.ravel() for block in drawn.blocks(max_bytes)]
    assert np.array_equal(np.concatenate(pieces), drawn.read().ravel())


@given(st.data())
def test_any_region_holds_the_same(data: st.DataObject) -> None:
    shape = tuple(data.draw(st.lists(st.integers(1, 70), min_size=1, max_size=3)))
    shape = (*shape[:-1], shape[-1] * data.draw(st.sampled_from([1, PIECE // 60])))
    if math.prod(shape) > 400_000:
        shape = shape[-1:]
    region = []
    for size in shape:
        start = data.draw(st.integers(0, size - 1))
        region.append(slice(start, data.draw(st.integers(start, size))))
    drawn = Drawing(5).redraw(variable(shape), [all_of(shape, Uniform())])
    assert np.array_equal(drawn.read(tuple(region)), drawn.read()[tuple(region)])


@given(
    shape=st.lists(st.integers(1, 9), min_size=0, max_size=3),
    scale=st.sampled_from([1, 1000, PIECE, 2 * PIECE + 7]),
    axis=st.integers(0, 2),
)
def test_pieces_are_those_that_tile_a_shape(shape: list[int], scale: int, axis: int) -> None:
    if axis < len(shape):
        shape[axis] *= scale
    tiles = list(enumerate(regions(shape, PIECE)))
    assert list(_pieces(shape, whole(shape))) == tiles


def test_no_stream_is_used_twice_in_a_block() -> None:
    shape = (3, 2 * PIECE)
    values = Drawing(0).redraw(variable(shape, dtype="float64"), [all_of(shape, Uniform())]).read()
    assert len(np.unique(values)) == values.size


def test_what_no_block_covers_stays() -> None:
    old = np.arange(24, dtype=np.float32).reshape(4, 6)
    before = old.copy()
    blocks = [
        Block("a", (slice(1, 3), slice(0, 2)), Constant(-1.0), 1, 1),
        Block("b", (slice(3, 4), slice(4, 6)), Constant(-2.0), 1, 1),
    ]
    changed = Drawing(0).redraw(Variable.from_array("w", old), blocks)
    expected = old.copy()
    expected[1:3, :2] = -1
    expected[3:, 4:] = -2
    np.testing.assert_array_equal(changed.read(), expected, strict=True)
    for region in regions((4, 6), 1):
        assert np.array_equal(changed.read(region), expected[region])
    assert np.array_equal(old, before)


def test_what_is_drawn_is_not_read() -> None:
    blocks = [
        Block("a", (slice(0, 2), slice(0, 3)), Normal(), 1, 1),
        Block("b", (slice(0, 2), slice(3, 5)), Normal(), 1, 1),
    ]
    assert Drawing(0).redraw(variable((2, 5)), blocks).read().shape == (2, 5)


def test_planning_draws_nothing() -> None:
    huge = (1 << 40, 1 << 20)
    drawn = Drawing(0).redraw(variable(huge), [all_of(huge, Normal())])
    region = (slice(1 << 39, (1 << 39) + 2), slice(5, 8))
    assert np.isfinite(drawn.read(region)).all()


def test_memory_is_bounded() -> None:
    shape = (1, 20_000_000)
    old = Values(
        Variable("w", BY_NAME["float32"], shape, lambda r: np.ones(shape_of(r), "f4")), whole(shape)
    )
    blocks = [
        Block("a", (slice(0, 1), slice(0, 1 << 24)), Normal(), 1, 1),
        Block("b", (slice(0, 1), slice(1 << 24, shape[1])), Match(), 1, 1, old),
    ]
    drawn = Drawing(0).redraw(variable(shape), blocks)
    tracemalloc.start()
    try:
        total = sum(block.size for block in drawn.blocks())
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert total == shape[1]
    assert peak < 10 << 20


def test_a_whole_block_is_drawn_once_and_held_for_one_variable() -> None:
    calls = []

    @dataclass(frozen=True)
    class Counted(Orthogonal):
        """Orthogonal, counted."""

        def __call__(self, rng: np.random.Generator, shape: Shape, *_: object) -> Array:
            calls.append(shape)
            return super().__call__(rng, shape)

    drawing = Drawing(0)
    blocks = [
        Block(label, (slice(0, 8), columns), Counted(), 1, 1)
        for label, columns in (("i", slice(0, 4)), ("j", slice(4, 8)))
    ]
    one, other = (drawing.redraw(variable((8, 8), name), blocks) for name in "ab")
    values = np.concatenate(list(one.blocks(40)))
    assert calls == [(8, 4), (8, 4)]
    assert np.allclose(values[:, :4].T @ values[:, :4], np.eye(4), atol=1e-6)
    assert not np.array_equal(values[:, :4], values[:, 4:])
    other.read()
    assert np.array_equal(one.read(), values)
    assert len(calls) == 6


@pytest.mark.parametrize("dtype", ["float64", "float16", "bfloat16", "float8_e4m3fn"])
def test_values_are_rounded_once(dtype: str) -> None:
    shape = (1000,)
    wide = Drawing(0).redraw(variable(shape, dtype="float64"), [all_of(shape, Normal())]).read()
    drawn = Drawing(0).redraw(variable(shape, dtype=dtype), [all_of(shape, Normal())]).read()
    numpy = BY_NAME[dtype].numpy
    assert numpy is not None
    np.testing.assert_array_equal(drawn, wide.astype(numpy), strict=True)


def test_what_overflows_is_counted() -> None:
    drawn = Drawing(0).redraw(variable((3,), dtype="float16"), [all_of((3,), Constant(1e5))])
    assert np.isinf(drawn.read()).all()
    assert drawn.counts == {"overflowed to infinity": 3}


@pytest.mark.parametrize("dtype", ["int32", "bool", "complex64", "string"])
def test_floats_only(dtype: str) -> None:
    with pytest.raises(PlanError) as caught:
        Drawing(0).redraw(variable((3,), dtype=dtype), [all_of((3,), Constant(1.0))])
    assert str(caught.value) == (
        f"scope/w: new values are drawn for floats only, and it is {dtype}; choose others"
    )


# --- what an initializer gets, and what it must give ---


@dataclass(frozen=True)
class Recorder(Initializer):
    """Records what it gets."""

    name: ClassVar[str] = "recorder"
    seen: ClassVar[list[tuple[Any, ...]]] = []

    def __call__(self, *given: Any) -> Array:
        _, shape, fan_in, fan_out, old, template = given
        self.seen.append((shape, fan_in, fan_out, old.read(), template.mean))
        return np.asarray(old.read() + template.read())


def test_an_initializer_gets_pieces() -> None:
    rows = PIECE // 1000
    old = np.random.default_rng(0).normal(size=(rows + 2, 1200)).astype(np.float32)
    template = old * 2
    region = (slice(1, rows + 2), slice(100, 1100))
    block = Block(
        "i",
        region,
        Recorder(),
        11,
        12,
        Values(Variable.from_array("w", old), region),
        Values(Variable.from_array("w", template), region),
    )
    Recorder.seen.clear()
    drawn = Drawing(0).redraw(Variable.from_array("w", old), [block]).read()
    np.testing.assert_array_equal(drawn[region], 3 * old[region].astype("f8").astype("f4"))
    (first, second) = Recorder.seen
    assert first[:3] == ((rows, 1000), 11, 12)
    assert second[:3] == ((1, 1000), 11, 12)
    assert np.array_equal(first[3], old[1 : rows + 1, 100:1100])
    assert np.array_equal(second[3], old[rows + 1 :, 100:1100])
    assert math.isclose(first[4], template[region].astype("f8").mean(), rel_tol=1e-9)
    assert first[4] == second[4]


@dataclass(frozen=True)
class Bad(Initializer):
    """Gives what it should not."""

    name: ClassVar[str] = "bad"
    how: str = option("shape", help="what is wrong")

    def __call__(self, rng: np.random.Generator, shape: Shape, *_: object) -> Array:
        if self.how == "usage":
            raise UsageError("it cannot be")
        if self.how == "input":
            raise InputError("x.data: it ends too early")
        given: dict[str, Callable[[], Any]] = {
            "shape": lambda: np.zeros((2, 2)),
            "nan": lambda: np.full(shape, np.nan),
            "none": lambda: None,
            "text": lambda: np.full(shape, "abc"),
            "zero": lambda: 1 / 0,
            "lines": lambda: int("a\nb", 36 + 1),
        }
        return np.asarray(given[self.how]())


@pytest.mark.parametrize(
    ("how", "error"),
    [
        ("shape", "gave [2, 2], where finite values [3] are expected; this is a bug of it"),
        ("nan", "gave NaN or infinities, where finite values [3] are expected"),
        ("none", "gave [], where finite values [3]"),
        ("text", "raised ValueError: could not convert"),
        ("zero", "raised ZeroDivisionError: division by zero"),
        ("lines", "raised ValueError"),
    ],
)
def test_a_faulty_initializer_is_named(how: str, error: str) -> None:
    drawn = Drawing(0).redraw(variable((3,)), [all_of((3,), Bad(how))])
    with pytest.raises(ConverterError) as caught:
        drawn.read()
    assert str(caught.value).startswith("scope/w: the initializer bad ")
    assert error in str(caught.value)
    assert "\n" not in str(caught.value)


def test_errors_for_the_user_keep_their_kind() -> None:
    with pytest.raises(ConverterError, match=r"^scope/w: bad: it cannot be$"):
        Drawing(0).redraw(variable((3,)), [all_of((3,), Bad("usage"))]).read()
    with pytest.raises(InputError, match=r"^x\.data: it ends too early$"):
        Drawing(0).redraw(variable((3,)), [all_of((3,), Bad("input"))]).read()


def test_a_template_of_another_dtype_is_rounded() -> None:
    template = np.array([1 / 3, 2, 1e-9])
    known = Values(Variable.from_array("w", template), whole((3,)))
    block = Block("", whole((3,)), Template(), 1, 1, None, known)
    drawn = Drawing(0).redraw(variable((3,), dtype="bfloat16"), [block]).read()
    assert np.array_equal(drawn, template.astype(ml_dtypes.bfloat16))
