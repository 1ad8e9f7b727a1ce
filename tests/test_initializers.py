"""Initializers against their definitions, and how they are written."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any, ClassVar

import numpy as np
import pytest
from converter_plugins.reinit import Reinit
from hypothesis import given
from hypothesis import strategies as st

from converter import (
    Array,
    ConverterError,
    Initializer,
    PlanError,
    Strategy,
    UsageError,
    Variable,
    option,
)
from converter.drawing import LARGEST_WHOLE, Block, Drawing, fans
from converter.dtype import BY_NAME
from converter.initializer import arguments, parse_initializer, signature
from converter.initializers import BUILT_IN, CUT_STD, Identity, Orthogonal
from converter.strategy import build, options, values_of
from converter.values import Values
from converter.variable import whole

Shape = tuple[int, ...]

# Numbers of this many draws are off by less than 5 standard errors.
MANY = (500, 400)
SIGMAS = 5 / math.sqrt(500 * 400)


def draw(
    text: str,
    shape: Shape = MANY,
    *,
    name: str = "w",
    seed: int = 1,
    old: Array | None = None,
    template: Array | None = None,
) -> Array:
    """Draw a float64 variable of a shape as one block."""
    region = whole(shape)
    values = [
        None if a is None else Values(Variable.from_array(name, a), whole(a.shape))
        for a in (old, template)
    ]
    block = Block("", region, parse_initializer(text, BUILT_IN), *fans(name, shape), *values)
    variable = Variable.from_array(name, np.full(shape, np.nan))
    return Drawing(seed).redraw(variable, [block]).read()


def assert_moments(values: Array, mean: float, std: float) -> None:
    assert abs(values.mean() - mean) < SIGMAS * std
    # The error of a variance depends on the fourth moment, at most 3 here.
    assert abs(values.std() / std - 1) < SIGMAS


@pytest.mark.parametrize(
    ("text", "value"),
    [("zeros", 0), ("ones", 1), ("constant(value=-2.5)", -2.5), ("0.25", 0.25), ("-1e-3", -1e-3)],
)
def test_numbers(text: str, value: float) -> None:
    assert np.array_equal(draw(text, (3, 4)), np.full((3, 4), value))
    assert np.array_equal(draw(text, ()), np.array(value))
    assert draw(text, (0, 4)).shape == (0, 4)


def test_normal() -> None:
    values = draw("normal(mean=2, stddev=0.5)")
    assert_moments(values, 2, 0.5)
    for share in (0.001, 0.1, 0.5, 0.9, 0.999):
        assert abs(np.quantile(values, share) - NormalDist(2, 0.5).inv_cdf(share)) < 0.03
    assert_moments(draw("normal"), 0, 0.05)


def test_truncated_normal_draws_again_beyond_two_sigma() -> None:
    values = draw("truncated_normal(mean=-1, stddev=0.5)")
    # Not clipped: nothing lies on the bounds, and it is close to them.
    assert 0.999 < np.abs(values + 1).max() < 1
    assert_moments(values, -1, 0.5 * CUT_STD)
    standard = NormalDist()
    for share in (0.05, 0.3, 0.5, 0.8):
        inside = standard.cdf(-2) + share * (standard.cdf(2) - standard.cdf(-2))
        assert abs(np.quantile(values, share) - (-1 + 0.5 * standard.inv_cdf(inside))) < 0.01


def test_the_deviation_of_a_cut_normal() -> None:
    density = NormalDist().pdf(2)
    inside = NormalDist().cdf(2) - NormalDist().cdf(-2)
    assert math.isclose(CUT_STD, math.sqrt(1 - 4 * density / inside), rel_tol=1e-9)


def test_uniform() -> None:
    values = draw("uniform(minval=1, maxval=3)")
    assert 1 <= values.min() < 1.0001
    assert 2.9999 < values.max() < 3
    assert_moments(values, 2, 2 / math.sqrt(12))
    assert np.abs(draw("uniform")).max() <= 0.05


CONVOLUTION = (3, 5, 16, 32)


@pytest.mark.parametrize("shape", [MANY, CONVOLUTION, (4000,)])
@pytest.mark.parametrize(
    ("text", "kind", "variance"),
    [
        ("glorot_uniform", "uniform", lambda i, o: 2 / (i + o)),
        ("glorot_normal", "cut", lambda i, o: 2 / (i + o)),
        ("he_uniform", "uniform", lambda i, o: 2 / i),
        ("he_normal", "cut", lambda i, o: 2 / i),
        ("lecun_uniform", "uniform", lambda i, o: 1 / i),
        ("lecun_normal", "cut", lambda i, o: 1 / i),
        ("variance_scaling", "cut", lambda i, o: 1 / i),
        (
            "variance_scaling(scale=3, mode=fan_out, distribution=uniform)",
            "uniform",
            lambda i, o: 3 / o,
        ),
        ("variance_scaling(mode=fan_avg, distribution=normal)", "cut", lambda i, o: 2 / (i + o)),
        ("variance_scaling(distribution=untruncated_normal)", "normal", lambda i, o: 1 / i),
    ],
)  # fmt: skip
def test_variance_scaling(text: str, kind: str, variance: Any, shape: Shape) -> None:
    window = math.prod(shape[:-2])
    fan_in, fan_out = shape * 2 if len(shape) == 1 else (window * shape[-2], window * shape[-1])
    std = math.sqrt(variance(fan_in, fan_out))
    values = draw(text, shape)
    error = 5 / math.sqrt(values.size)
    assert abs(values.mean()) < error * std
    assert abs(values.std() / std - 1) < error
    largest = np.abs(values).max() / std
    if kind == "uniform":
        assert math.sqrt(3) * 0.99 < largest <= math.sqrt(3)
    elif kind == "cut":
        assert 2 / CUT_STD * 0.98 < largest <= 2 / CUT_STD
    else:
        assert largest > 3


def test_a_fan_of_nothing_counts_as_one() -> None:
    assert draw("he_normal", (0, 5)).shape == (0, 5)


@pytest.mark.parametrize(
    ("shape", "inputs"), [((300, 50), 300), ((3, 5, 16, 32), 3 * 5 * 16), ((2000,), 1)]
)
def test_uniform_unit_scaling_is_that_of_tensorflow_0(shape: Shape, inputs: int) -> None:
    limit = 1.43 * math.sqrt(3 / inputs)
    values = draw("uniform_unit_scaling(factor=1.43)", shape)
    assert 0.99 * limit < np.abs(values).max() <= limit
    assert abs(values.std() * math.sqrt(3) / limit - 1) < 0.05


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("w", (), (1, 1)),
        ("w", (7,), (7, 7)),
        ("dense/kernel", (7, 9), (7, 9)),
        ("conv1d/kernel", (5, 7, 9), (35, 45)),
        ("conv2d/kernel", (3, 5, 7, 9), (105, 135)),
        ("conv2d_transpose/kernel", (3, 5, 9, 7), (105, 135)),
        ("net/Conv2d_transpose_1/weights", (3, 5, 9, 7), (105, 135)),
        ("separable_conv2d/depthwise_kernel", (3, 5, 7, 2), (15, 30)),
        ("MobilenetV1/Conv2d_1_depthwise/depthwise_weights", (3, 3, 32, 1), (9, 9)),
        ("separable_conv2d/pointwise_kernel", (1, 1, 14, 9), (14, 9)),
        ("depthwise_conv2d_1/kernel", (3, 5, 7, 2), (15, 30)),
        ("transpose/kernel", (7, 9), (7, 9)),
        ("conv2dtranspose" * 5000, (7, 9), (7, 9)),
    ],
)
def test_fans(name: str, shape: Shape, expected: tuple[int, int]) -> None:
    assert fans(name, shape) == expected


@pytest.mark.parametrize("shape", [(6, 6), (9, 4), (4, 9), (3, 2, 4, 5), (1, 7), (7, 1), (0, 3)])
def test_orthogonal(shape: Shape) -> None:
    rows, columns = math.prod(shape[:-1]), shape[-1]
    matrix = draw("orthogonal(gain=1.5)", shape).reshape(rows, columns)
    smaller = matrix.T @ matrix if rows >= columns else matrix @ matrix.T
    assert np.allclose(smaller, 1.5**2 * np.eye(len(smaller)), atol=1e-12)


def test_orthogonal_matrices_are_uniform() -> None:
    # Without the signs of R, LAPACK gives a first entry that is never positive.
    first = np.array([draw("orthogonal", (3, 3), seed=k)[0, 0] for k in range(400)])
    assert abs(first.mean()) < 0.15
    # A coordinate of a random direction in three dimensions is uniform.
    assert abs(np.quantile(first, 0.25) + 0.5) < 0.15
    assert abs(np.quantile(first, 0.75) - 0.5) < 0.15


@pytest.mark.parametrize("shape", [(4, 4), (3, 5), (5, 3)])
def test_identity(shape: Shape) -> None:
    assert np.array_equal(draw("identity(gain=0.5)", shape), 0.5 * np.eye(shape[0], shape[1]))


@pytest.mark.parametrize(
    ("text", "shape", "error"),
    [
        ("orthogonal", (4,), "w: orthogonal cannot draw [4]; only a matrix is orthogonal"),
        ("identity", (1, 4, 4), "w: identity cannot draw [1, 4, 4]; only a matrix of two axes has"),
        ("match", (4,), "w: match has no old values for it; choose another"),
        ("template", (4,), "w: template has no template values for it; choose another"),
    ],
)
def test_what_a_block_cannot_be(text: str, shape: Shape, error: str) -> None:
    with pytest.raises(PlanError) as caught:
        draw(text, shape)
    assert str(caught.value).startswith(error)


@pytest.mark.parametrize("initializer", [Orthogonal(), Identity()])
def test_what_needs_a_whole_block_has_a_limit(initializer: Initializer) -> None:
    shape = (LARGEST_WHOLE // 1000 + 1, 1000)
    variable = Variable("w", BY_NAME["float32"], shape, lambda region: np.zeros(0, np.float32))
    block = Block("", whole(shape), initializer, 1, 1)
    with pytest.raises(PlanError, match=r"^w: \w+ needs a block as a whole, and \[16778, 1000\] h"):
        Drawing(0).redraw(variable, [block])


def test_match_has_the_moments_of_the_old_values() -> None:
    old = np.random.default_rng(7).gamma(2, 3, (300, 70)) - 4
    values = draw("match", MANY, old=old)
    assert abs(values.mean() - old.mean()) < SIGMAS * old.std()
    assert abs(values.std() / old.std() - 1) < SIGMAS
    assert np.array_equal(draw("match", (3,), old=np.full(5, 0.75)), np.full(3, 0.75))


def test_moments_are_those_of_all_pieces() -> None:
    old = np.random.default_rng(7).normal(1000, 0.01, (90, 1000))
    known = Values(Variable.from_array("w", old), (slice(10, 80), slice(5, 1000)))
    part = old[10:80, 5:]
    assert known.shape == (70, 995)
    assert math.isclose(known.mean, part.mean(), rel_tol=1e-14)
    assert math.isclose(known.std, part.std(), rel_tol=1e-9)
    assert np.array_equal(known.read((slice(1, 3), slice(0, 2))), part[1:3, :2])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_match_refuses_what_has_no_moments(bad: float) -> None:
    with pytest.raises(ConverterError, match=r"^w: match: the old values have NaN or infinities"):
        draw("match", (3,), old=np.array([1, bad, 2]))


def test_template_gives_its_values() -> None:
    template = np.random.default_rng(7).normal(size=(300, 200))
    assert np.array_equal(draw("template", (300, 200), template=template), template)


# --- how they are written ---


@pytest.mark.parametrize("name", BUILT_IN)
def test_what_is_printed_can_be_written(name: str) -> None:
    initializer = BUILT_IN[name]
    assert initializer.name == name
    spelt = signature(initializer).replace("NUMBER", "7")
    made = parse_initializer(spelt, BUILT_IN)
    assert type(made) is initializer
    assert parse_initializer(str(made), BUILT_IN) == made


@pytest.mark.parametrize(
    ("text", "printed"),
    [
        ("normal", "normal"),
        ("normal()", "normal"),
        (" normal ( mean = 1 ,stddev=2e-1 ) ", "normal(mean=1, stddev=0.2)"),
        ("normal(stddev=0.05)", "normal"),
        ("variance_scaling(mode=fan_avg)", "variance_scaling(mode=fan_avg)"),
        ("1", "constant(value=1)"),
        ("-.5e-3", "constant(value=-0.0005)"),
        ("uniform(minval=-1e300,maxval=+1.)", "uniform(minval=-1e+300, maxval=1)"),
    ],
)
def test_spellings(text: str, printed: str) -> None:
    made = parse_initializer(text, BUILT_IN)
    assert str(made) == printed
    assert parse_initializer(printed, BUILT_IN) == made


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("glorot_unifrom", "got 'glorot_unifrom'; did you mean 'glorot_uniform'?"),
        ("Normal", "got 'Normal'; did you mean 'normal'?"),
        ("zzzz", "got 'zzzz'; `convert plugins` lists them"),
        ("", "got ''; write NAME or NAME(key=value, ...)"),
        ("normal(", "got 'normal('; write NAME"),
        ("normal)", "got 'normal)'; write NAME"),
        ("normal(stddev=1))", "normal takes key=value between commas, got 'stddev=1)'; write"),
        ("normal(stddev=(1))", "got 'stddev=(1)'"),
        ("normal(0.1)", "got '0.1'; write normal(mean=0, stddev=0.05)"),
        ("normal(stddev=1,)", "normal takes key=value between commas, got ''"),
        ("normal(stdev=1)", "normal has no argument 'stdev'; did you mean 'stddev'?"),
        ("zeros(value=1)", "zeros has no argument 'value'; it has none"),
        ("normal(stddev=1, stddev=2)", "normal has its stddev twice"),
        ("normal(stddev=-1)", "normal: stddev must be 0 or more, got -1"),
        ("normal(stddev=x)", "normal: stddev must be a number, got 'x'"),
        ("normal(stddev=nan)", "stddev must be a number, got 'nan'"),
        ("normal(stddev=1_0)", "stddev must be a number, got '1_0'"),
        ("normal(stddev=0x10)", "stddev must be a number, got '0x10'"),
        ("normal(stddev=\u0661)", "stddev must be a number, got '\u0661'"),
        ("normal(stddev=1e999)", "normal: stddev must be finite, got 1e999"),
        ("uniform(minval=1)", "uniform: maxval must be 1 or more, got 0.05"),
        ("variance_scaling(scale=0)", "variance_scaling: scale must be more than 0, got 0"),
        ("variance_scaling(mode=fan_inn)", "mode must be one of fan_in, fan_out, fan_avg, got"),
        ("constant", "constant needs its value; write constant(value=NUMBER)"),
        ("__import__('os').system('x')", "got '__import__'; `convert plugins` lists them"),
        ("normal(__class__=1)", "normal has no argument '__class__'"),
        ("normal\0(stddev=1)", "got 'normal\\x00'"),
        ("nan", "got 'nan'"),
        ("1e999", "constant: value must be finite, got 1e999"),
        ("9" * 5000, "write NAME or NAME"),
        ("normal(" + "stddev=1," * 400 + ")", "write NAME or NAME"),
        ("normal" + "(" * 900, "write NAME or NAME"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant(text: str, error: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_initializer(text, BUILT_IN)
    message = str(caught.value)
    assert message.startswith("must be an initializer")
    assert error in message
    assert "\n" not in message
    assert len(message) < 250


@given(st.text(max_size=40) | st.text(alphabet="normal(stdev=0.1,) \n\t_", max_size=60))
def test_any_text_is_an_initializer_or_a_usage_error(text: str) -> None:
    try:
        made = parse_initializer(text, BUILT_IN)
    except UsageError:
        with pytest.raises(UsageError, match=r"^must be [^\n]+$"):
            parse_initializer(text, BUILT_IN)
    else:
        assert parse_initializer(str(made), BUILT_IN) == made


@dataclass(frozen=True)
class Own(Initializer):
    """As many as there are letters."""

    name: ClassVar[str] = "own"
    count: int = option(help="how many")
    word: str = option("abc", help="letters")
    loud: bool = option(False, help="whether")

    def __call__(self, rng: np.random.Generator, shape: Shape, *_: object) -> Array:
        return np.full(shape, self.count * len(self.word))


def test_arguments_of_other_types() -> None:
    known = {"own": Own}
    assert signature(Own) == "own(count=INTEGER, word=abc, loud=false)"
    made = parse_initializer("own(count=3, loud=true, word=a-b)", known)
    assert made == Own(3, "a-b", True)
    assert parse_initializer(str(made), known) == made
    for text, error in {
        "own(count=1.5)": "own: count must be an integer, got '1.5'",
        "own(count=1, loud=True)": "own: loud must be true or false, got 'True'",
        "own": "own needs its count; write own(count=INTEGER",
        "normal": "got 'normal'; `convert plugins` lists them",
    }.items():
        with pytest.raises(UsageError) as caught:
            parse_initializer(text, known)
        assert error in str(caught.value)
    with pytest.raises(UsageError, match=r"^own: word cannot be written, got 'a b'; leave out spa"):
        Own(1, "a b")
    with pytest.raises(UsageError, match=r"^normal: mean must be finite, got nan$"):
        BUILT_IN["normal"](mean=math.nan)  # type: ignore[call-arg]


def _class(**members: Any) -> type[Initializer]:
    body = {"name": "own", "__doc__": "Own.", "__call__": Own.__call__, **members}
    return dataclass(frozen=True)(type("Made", (Initializer,), body))


@pytest.mark.parametrize(
    ("members", "error"),
    [
        ({"name": "My-own"}, "Made: the name 'My-own' must be lower case letters and digits, with"),
        ({"name": None}, "Made: it has no name"),
        ({"__doc__": None}, "Made: it has no docstring"),
        ({"__call__": Initializer.__call__}, "Made: it draws nothing; define __call__"),
        (
            {"sizes": (), "__annotations__": {"sizes": "tuple[int, ...]"}},
            "Made.sizes: an argument can be float, int, bool, str",
        ),
        (
            {"other": (), "__annotations__": {"other": "tuple[str, ...]"}},
            "Made.other: an argument can be float, int, bool, str",
        ),
        (
            {"lost": 1, "__annotations__": {"lost": "Nowhere"}},
            "Made: the type of a field cannot be",
        ),
    ],
)
def test_declarations_are_checked(members: dict[str, Any], error: str) -> None:
    with pytest.raises(ConverterError) as caught:
        arguments(_class(**members))
    assert str(caught.value).startswith(error)


def test_an_initializer_is_frozen() -> None:
    body = {"name": "own", "__doc__": "Own.", "__call__": Own.__call__}
    thawed: type[Initializer] = dataclass(type("Made", (Initializer,), body))
    with pytest.raises(ConverterError, match=r"^Made: an initializer is a frozen dataclass"):
        arguments(thawed)


@dataclass(frozen=True)
class Filling(Strategy):
    """Has initializers among its options."""

    name: ClassVar[str] = "filling"
    fill: Initializer = option(BUILT_IN["zeros"](), help="one")
    other: Initializer | None = option(None, help="none, or one")
    each: tuple[Initializer, ...] = option((), help="some")


def test_an_option_can_be_an_initializer() -> None:
    by_name = {o.name: o for o in options(Filling)}
    assert [o.metavar for o in by_name.values()] == ["INITIALIZER"] * 3
    given: dict[str, str | list[str]] = {
        "fill": "normal(stddev=0.5)",
        "other": "2",
        "each": ["ones", "own(count=1)"],
    }
    values = {name: by_name[name].parse(texts) for name, texts in given.items()}
    known = {**BUILT_IN, "own": Own}
    made = build(Filling, values, "filling", initializers=known)
    assert made.fill == BUILT_IN["normal"](stddev=0.5)  # type: ignore[call-arg]
    assert made.other == BUILT_IN["constant"](value=2.0)  # type: ignore[call-arg]
    assert made.each == (BUILT_IN["ones"](), Own(1))
    assert values_of(Filling()) == {}
    assert values_of(made) == {
        "fill": "normal(stddev=0.5)",
        "other": "constant(value=2)",
        "each": ["ones", "own(count=1)"],
    }
    assert build(Filling, values_of(made), "filling", initializers=known) == made
    with pytest.raises(UsageError) as caught:
        build(Filling, values, "filling")
    assert str(caught.value) == (
        "filling: each must be an initializer, got 'own'; `convert plugins` lists them"
    )
    with pytest.raises(UsageError, match=r"^filling: fill must be an initializer such as normal"):
        build(Filling, {"fill": None}, "filling")


# --- the document ---

DOCUMENT = (Path(__file__).parent.parent / "docs" / "initializers.md").read_text()


def test_the_document_lists_them_with_their_arguments() -> None:
    table = DOCUMENT.partition("| initializer | values |")[2].partition("\n\n")[0]
    cells = [row.split(" | ")[0] for row in table.splitlines()]
    listed = {s for cell in cells for s in re.findall(r"`([^`]*)`", cell)}
    assert listed == {signature(initializer) for initializer in BUILT_IN.values()}


def test_the_document_lists_the_options() -> None:
    listed = re.findall(r"^\| `(--[a-z-]+)( [A-Z=]+)?` \|", DOCUMENT, re.MULTILINE)
    assert [(flag, metavar.strip()) for flag, metavar in listed] == [
        (option.flag, option.metavar) for option in options(Reinit)
    ]


# --- TensorFlow's own ---


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(400, 300), (3, 3, 40, 80), (30000,)])
@pytest.mark.parametrize(
    ("text", "theirs"),
    [
        ("normal(mean=1, stddev=2)", lambda v1: v1.initializers.random_normal(1.0, 2.0)),
        ("truncated_normal(stddev=2)", lambda v1: v1.truncated_normal_initializer(0.0, 2.0)),
        ("uniform(minval=-2, maxval=1)", lambda v1: v1.random_uniform_initializer(-2.0, 1.0)),
        ("glorot_uniform", lambda v1: v1.glorot_uniform_initializer()),
        ("glorot_normal", lambda v1: v1.glorot_normal_initializer()),
        ("he_uniform", lambda v1: v1.initializers.he_uniform()),
        ("he_normal", lambda v1: v1.initializers.he_normal()),
        ("lecun_uniform", lambda v1: v1.initializers.lecun_uniform()),
        ("lecun_normal", lambda v1: v1.initializers.lecun_normal()),
        ("variance_scaling", lambda v1: v1.variance_scaling_initializer()),
        (
            "variance_scaling(scale=2, mode=fan_out, distribution=untruncated_normal)",
            lambda v1: v1.variance_scaling_initializer(2.0, "fan_out", "untruncated_normal"),
        ),
        ("uniform_unit_scaling", lambda v1: v1.uniform_unit_scaling_initializer()),
    ],
)
def test_distributions_are_those_of_tensorflow(text: str, theirs: Any, shape: Shape) -> None:
    tf = pytest.importorskip("tensorflow")
    tf.random.set_seed(5)
    with tf.device("CPU"):
        reference = np.asarray(theirs(tf.compat.v1)(list(shape), tf.float32), np.float64)
    values = draw(text, shape)
    std = reference.std()
    assert abs(values.std() / std - 1) < 0.02
    for share in (0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99):
        assert abs(np.quantile(values, share) - np.quantile(reference, share)) < 0.06 * std
    assert abs(np.abs(values).max() - np.abs(reference).max()) < 0.9 * std
    if not text.startswith(("normal", "variance_scaling(scale=2")):
        # Where there are bounds, they are the same.
        assert abs(values.max() - reference.max()) < 0.02 * std


@pytest.mark.slow
def test_orthogonal_takes_axes_as_tensorflow_does() -> None:
    tf = pytest.importorskip("tensorflow")
    for shape in ((3, 2, 4, 5), (3, 20)):
        reference = np.asarray(tf.compat.v1.orthogonal_initializer(2.0)(list(shape), tf.float32))
        for matrix in (reference, draw("orthogonal(gain=2)", shape)):
            flat = matrix.reshape(-1, shape[-1])
            smaller = flat.T @ flat if len(flat) >= shape[-1] else flat @ flat.T
            assert np.allclose(smaller, 4 * np.eye(len(smaller)), atol=1e-4)
