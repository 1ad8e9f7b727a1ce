"""One declaration of a strategy gives its constructor, flags, recipe keys and their checks."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pytest
from converter_plugins.cast import Cast
from converter_plugins.drop import Drop
from converter_plugins.pad import Pad
from converter_plugins.reinit import Reinit
from hypothesis import given
from hypothesis import strategies as st

from converter import Checkpoint, PlanError, Strategy, UsageError, Variable, option
from converter.errors import ConverterError
from converter.initializer import Zeros
from converter.initializers import Normal
from converter.options import Option
from converter.strategy import build, options, summary, values_of
from converter.testing import check_strategy


@dataclass(frozen=True)
class Sample(Strategy):
    """Take one option of each kind.

    And say more about it.
    """

    name: ClassVar[str] = "sample"
    needed: int = option(help="how many")
    sample: tuple[str, ...] = option((), help="some texts", metavar="GLOB")
    rate: float | None = option(None, help="a rate")
    exact_match: bool = option(False, help="whether to be exact")
    mode: Literal["fast", "slow"] = option("fast", help="how")
    dtype: str = option("f4", help="which", choices=("f4", "f8"))
    file: Path | None = option(None, help="a file", metavar="FILE")
    like: Path | None = option(None, help="a template", shared=True)
    shape: Mapping[str, tuple[int, ...]] = option({}, help="shapes", metavar="GLOB=SIZES")
    factor: Mapping[str, float] = option({}, help="factors")
    size: tuple[int, ...] = option((1,), help="a size")
    plain: str = "x"
    switch: Mapping[str, bool] = option({}, help="switches")
    derived: int = field(init=False, default=0)


def _option(name: str) -> Option:
    return next(option for option in options(Sample) if option.name == name)


def test_flags_are_spelt_from_the_plugin_and_the_field() -> None:
    assert {o.name: o.flag for o in options(Sample)} == {
        "needed": "--sample-needed",
        "sample": "--sample",
        "rate": "--sample-rate",
        "exact_match": "--sample-exact-match",
        "mode": "--sample-mode",
        "dtype": "--sample-dtype",
        "file": "--sample-file",
        "like": "--like",
        "shape": "--sample-shape",
        "factor": "--sample-factor",
        "size": "--sample-size",
        "plain": "--sample-plain",
        "switch": "--sample-switch",
    }
    assert [o.name for o in options(Sample) if o.selects] == ["sample"]
    assert [o.name for o in options(Sample) if o.shared] == ["like"]
    assert [o.name for o in options(Sample) if o.multiple] == [
        "sample",
        "shape",
        "factor",
        "switch",
    ]
    assert [o.name for o in options(Sample) if o.is_flag] == ["exact_match"]
    assert [o.name for o in options(Sample) if o.required] == ["needed"]


def test_an_option_knows_its_help_metavar_choices_and_default() -> None:
    assert {o.name: o.metavar for o in options(Sample)} == {
        "needed": "INTEGER",
        "sample": "GLOB",
        "rate": "NUMBER",
        "exact_match": "",
        "mode": "TEXT",
        "dtype": "TEXT",
        "file": "FILE",
        "like": "PATH",
        "shape": "GLOB=SIZES",
        "factor": "PATTERN=NUMBER",
        "size": "SIZES",
        "plain": "TEXT",
        "switch": "PATTERN=",
    }
    assert _option("mode").choices == ("fast", "slow")
    assert _option("dtype").choices == ("f4", "f8")
    assert _option("plain").choices is None
    assert _option("needed").default is MISSING
    assert _option("shape").default == {}
    assert _option("mode").default == "fast"
    assert _option("needed").help == "how many"
    assert _option("plain").help == ""


@pytest.mark.parametrize(
    ("name", "given_text", "value"),
    [
        ("needed", "-3", -3),
        ("sample", ("a", "b=c"), ("a", "b=c")),
        ("sample", "a", ("a",)),
        ("rate", "1e-3", 1e-3),
        ("rate", "2", 2.0),
        ("exact_match", True, True),
        ("mode", "slow", "slow"),
        ("file", "a/b", Path("a/b")),
        ("size", "30592,768", (30592, 768)),
        ("size", "[30592, 768]", (30592, 768)),
        ("size", "", ()),
        ("shape", ("a*=3,4", "b="), {"a*": (3, 4), "b": ()}),
        ("shape", ("a=b=3",), {"a=b": (3,)}),
        ("factor", "a=0.5", {"a": 0.5}),
        ("switch", ("a=true", "b=false"), {"a": True, "b": False}),
    ],
)
def test_command_line_texts_become_values(name: str, given_text: Any, value: object) -> None:
    parsed = _option(name).parse(given_text)
    assert parsed == value
    assert type(parsed) is type(value)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("needed", "1.5", "--sample-needed: must be an integer, got '1.5'"),
        ("rate", "fast", "--sample-rate: must be a number, got 'fast'"),
        ("mode", "fsat", "must be one of fast, slow, got 'fsat'; did you mean 'fast'?"),
        ("size", "3;4", "--sample-size: must be sizes such as [30592, 768], got '3;4'"),
        ("file", "", "--sample-file: must be a path, got ''"),
        ("shape", ["a"], "--sample-shape: must be GLOB=SIZES, got 'a'"),
        ("shape", ["=3"], "--sample-shape: must be GLOB=SIZES, got '=3'"),
        ("shape", ["a=x"], "--sample-shape: 'a' must be sizes such as [30592, 768], got 'x'"),
        ("shape", ["a=1", "a=2"], "--sample-shape: 'a' is given twice"),
        ("switch", ["a=yes"], "--sample-switch: 'a' must be true or false, got 'yes'"),
    ],
)
def test_wrong_texts_are_refused_by_the_name_of_the_flag(
    name: str, text: Any, message: str
) -> None:
    with pytest.raises(UsageError) as caught:
        _option(name).parse(text)
    assert message in str(caught.value)


def test_build_checks_types_strictly_and_makes_lists_tuples() -> None:
    made = build(
        Sample,
        {"needed": 1, "sample": ["a"], "rate": 2, "shape": {"a": [3, 4]}, "size": [5]},
        "pad",
    )
    assert made == Sample(needed=1, sample=("a",), rate=2.0, shape={"a": (3, 4)}, size=(5,))
    assert type(made.rate) is float


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"needed": True}, "needed must be an integer, got True"),
        ({"needed": "128"}, "needed must be an integer, got '128'"),
        ({"needed": 1.0}, "needed must be an integer, got 1.0"),
        ({"needed": 1, "rate": "1"}, "rate must be a number, got '1'"),
        ({"needed": 1, "rate": False}, "rate must be a number, got False"),
        ({"needed": 1, "rate": 10**400}, "rate must be a number, got 1000"),
        ({"needed": 1, "exact_match": 1}, "exact_match must be true or false, got 1"),
        ({"needed": 1, "plain": 5}, "plain must be a text, got 5"),
        ({"needed": 1, "sample": [1]}, "sample must be a text, got 1"),
        ({"needed": 1, "size": [True]}, "size must be sizes such as [30592, 768], got [True]"),
        ({"needed": 1, "size": "3,4"}, "size must be sizes such as [30592, 768], got '3,4'"),
        ({"needed": 1, "shape": [3]}, "shape must be a table of GLOB=SIZES, got [3]"),
        (
            {"needed": 1, "shape": {"a": 3}},
            "shape 'a' must be sizes such as [30592, 768], got 3",
        ),
        ({"needed": 1, "mode": "slwo"}, "mode must be one of fast, slow, got 'slwo'; did you mean"),
        ({"needed": 1, "file": ""}, "file must be a path, got ''"),
        ({"needed": 1, "fiel": "x"}, "sample has no option 'fiel'; did you mean 'file'?"),
        ({"needed": 1, "zzz": "x"}, "sample has no option 'zzz'; it has needed, sample, rate,"),
        ({}, "needed is missing; give --sample-needed INTEGER, or needed in a recipe"),
    ],
)
def test_wrong_values_are_refused_with_the_place(values: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        build(Sample, values, "recipe.toml: step 1 (sample)")
    assert str(caught.value).startswith(f"recipe.toml: step 1 (sample): {message}")
    assert "\n" not in str(caught.value)


def test_paths_as_text_start_from_the_directory_and_others_stay() -> None:
    made = build(Sample, {"needed": 1, "file": "a", "like": Path("b")}, "x", Path("/recipes"))
    assert made.file == Path("/recipes/a")
    assert made.like == Path("b")


def test_what_a_strategy_itself_refuses_gets_the_place_too() -> None:
    @dataclass(frozen=True)
    class Picky(Strategy):
        """Refuse odd numbers."""

        name: ClassVar[str] = "picky"
        number: int = 0

        def __post_init__(self) -> None:
            if self.number % 2:
                raise UsageError(f"number must be even, got {self.number}")

    with pytest.raises(UsageError, match=r"^r\.toml: step 2: number must be even, got 3$"):
        build(Picky, {"number": 3}, "r.toml: step 2")


@given(
    needed=st.integers(),
    sample=st.lists(st.text()),
    rate=st.floats(allow_nan=False) | st.none(),
    exact=st.booleans(),
    shape=st.dictionaries(st.text(), st.lists(st.integers(0))),
    file=st.none() | st.text("ab/.", min_size=1),
)
def test_values_survive_a_recipe(
    needed: int,
    sample: list[str],
    rate: float | None,
    exact: bool,
    shape: dict[str, list[int]],
    file: str | None,
) -> None:
    made = Sample(
        needed,
        tuple(sample),
        rate,
        exact,
        file=None if file is None else Path(file),
        shape={glob: tuple(sizes) for glob, sizes in shape.items()},
    )
    assert build(Sample, values_of(made), "x") == made


def test_values_hold_only_what_differs_from_the_defaults() -> None:
    assert values_of(Sample(3, shape={"a": (1,)})) == {"needed": 3, "shape": {"a": [1]}}


def test_mapping_defaults_are_not_shared() -> None:
    assert Sample(1).shape is not Sample(1).shape


def test_the_summary_is_the_first_line() -> None:
    assert summary(Sample) == "Take one option of each kind"


def _declare(body: dict[str, Any], annotations: dict[str, Any], **how: bool) -> type[Strategy]:
    made = type("Wrong", (Strategy,), {"__doc__": "A.", **body, "__annotations__": annotations})
    return dataclass(frozen=how.get("frozen", True))(made)


@pytest.mark.parametrize(
    ("body", "annotations", "message"),
    [
        ({}, {}, "Wrong: it has no name; add `name: ClassVar[str]"),
        ({"name": 3}, {}, "Wrong: it has no name"),
        ({"name": "Big"}, {}, "Wrong: the name 'Big' must be lower case letters and digits"),
        ({"name": "a--b"}, {}, "Wrong: the name 'a--b' must be"),
        ({"name": "ok", "__doc__": None}, {}, "Wrong: it has no docstring"),
        ({"name": "ok"}, {"bad": "set[str]"}, "Wrong.bad: an option cannot be set[str]; it can"),
        ({"name": "ok"}, {"bad": "bytes"}, "Wrong.bad: an option cannot be bytes; it can be str"),
        ({"name": "ok"}, {"bad": "int | str"}, "Wrong.bad: an option cannot be int | str"),
        ({"name": "ok"}, {"bad": "tuple[float, ...]"}, "Wrong.bad: an option cannot be tuple"),
        (
            {"name": "ok"},
            {"bad": "Mapping[str, tuple[str, ...]]"},
            "Wrong.bad: an option cannot be",
        ),
        ({"name": "ok"}, {"bad": "Nowhere"}, "Wrong: the type of a field cannot be resolved"),
        ({"name": "ok"}, {"apply": "int"}, "Wrong.apply: an option cannot have this name"),
        ({"name": "ok"}, {"plugin": "str"}, "Wrong.plugin: an option cannot have this name"),
        ({"name": "ok"}, {"name": "str"}, "declare it as `name: ClassVar[str] = 'ok'`"),
    ],
)
def test_mistakes_in_a_declaration_name_the_class(
    body: dict[str, Any], annotations: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConverterError) as caught:
        options(_declare(body, annotations))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_strategy_must_be_a_frozen_dataclass() -> None:
    for wrong in (
        type("Wrong", (Strategy,), {"name": "wrong"}),
        _declare({"name": "wrong"}, {}, frozen=False),
        type("Wrong", (Sample,), {"name": "wrong"}),
    ):
        with pytest.raises(ConverterError, match=r"^Wrong: a strategy is a frozen dataclass"):
            options(wrong)


def test_apply_maps_convert_over_the_variables() -> None:
    @dataclass(frozen=True)
    class Twice(Strategy):
        """Write every variable twice, but no integers."""

        name: ClassVar[str] = "twice"

        def convert(self, variable: Variable) -> Iterable[Variable]:
            if variable.dtype.is_float:
                yield variable
                yield variable.rename(f"{variable.name}/copy")

    checkpoint = Checkpoint(
        [Variable.from_array("a", np.array([1.0], "f4")), Variable.from_array("n", np.int32(3))]
    )
    assert [v.name for v in Twice().apply(checkpoint)] == ["a", "a/copy"]
    assert [v.name for v in Sample(1).apply(checkpoint)] == ["a", "n"]


_NUMBERS = itertools.count()


class TestContract:
    """check_strategy finds what a strategy does wrong."""

    def test_a_good_strategy_passes(self) -> None:
        @dataclass(frozen=True)
        class Negate(Strategy):
            """Negate floats."""

            name: ClassVar[str] = "negate"

            def convert(self, variable: Variable) -> Iterable[Variable]:
                yield variable.map(np.negative) if variable.dtype.is_float else variable

        check_strategy(Negate())

    @pytest.mark.parametrize(
        ("convert", "message"),
        [
            (lambda v: v.map(lambda x: x[..., :1] if x.ndim else x), "only while values were read"),
            (lambda v: v.map(lambda x: x.astype("f8")), "only while values were read"),
            (lambda v: Variable.from_array(v.name, v.read()), "apply read values"),
            (lambda v: v.map(_spoil), "the values of the source were modified"),
            (lambda v: v.map(_Counter()), "a second run gave another result|only .* is read"),
            (lambda v: _plus(v, next(_NUMBERS)), "a second run gave another result"),
            (lambda v: replace(v, shape=tuple(np.array(v.shape))), "is no name and shape"),
            (lambda v: v.map(lambda x: x - x.sum(dtype=x.dtype)), "when only .* is read"),
            (lambda v: replace(v, load=lambda r: v.load(r) * 2), "is still `stored` as bytes that"),
        ],
        ids=["shape", "dtype", "early", "in-place", "random", "other", "type", "apart", "stored"],
    )
    def test_a_bad_one_does_not(self, convert: Any, message: str) -> None:
        @dataclass(frozen=True)
        class Bad(Strategy):
            """Do something wrong with floats."""

            name: ClassVar[str] = "bad"

            def convert(self, variable: Variable) -> Iterable[Variable]:
                yield convert(variable) if variable.dtype.name == "float32" else variable

        with pytest.raises(AssertionError, match=message):
            check_strategy(Bad())

    def test_options_that_change_on_their_way_do_not(self) -> None:
        @dataclass(frozen=True)
        class Grow(Strategy):
            """Grow with every construction."""

            name: ClassVar[str] = "grow"
            factor: int = 2

            def __post_init__(self) -> None:
                object.__setattr__(self, "factor", self.factor + 1)

        with pytest.raises(AssertionError, match=r"factor=3\) became .*factor=4\) on its way"):
            check_strategy(Grow())

    def test_one_that_refuses_everything_does_not(self) -> None:
        @dataclass(frozen=True)
        class Refuse(Strategy):
            """Refuse everything."""

            name: ClassVar[str] = "refuse"

            def convert(self, variable: Variable) -> Iterable[Variable]:
                raise PlanError(f"{variable.name}: no")

        with pytest.raises(AssertionError, match=r"every variable was refused"):
            check_strategy(Refuse())


def _plus(variable: Variable, number: int) -> Variable:
    return variable.map(lambda values: values + values.dtype.type(number))


def _spoil(values: Any) -> Any:
    values += 1
    return values


class _Counter:
    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, values: Any) -> Any:
        self.calls += 1
        return values + np.float32(self.calls)


def test_options_are_read_from_what_a_recipe_would_hold() -> None:
    given: dict[str, Any] = {
        "resize": {"rnn": np.int64(4)},
        "fill": "normal(stddev=0.1)",
        "like": "a",
        "shape": {"b": [1, 2]},
    }
    pad = Pad(**given)
    fill = Normal(stddev=0.1)
    assert pad == Pad(resize={"rnn": 4}, fill=fill, like=Path("a"), shape={"b": (1, 2)})
    assert type(pad.resize["rnn"]) is int
    texts: dict[str, Any] = {"*": "zeros"}
    assert Reinit(reinit=texts).reinit == {"*": Zeros()}


@pytest.mark.parametrize(
    ("strategy", "values", "message"),
    [
        (Pad, {"resize": {"a": 1}, "fill": "glorot"}, "pad: fill must be an initializer, got 'gl"),
        (Pad, {"resize": {"a": "45"}}, "pad: resize 'a' must be an integer, got '45'"),
        (Pad, {"resize": "a=45"}, "pad: resize must be a table of WIDTH=SIZE, got 'a=45'"),
        (Cast, {"cast": "float17"}, "cast: cast must be one of float32, "),
        (Drop, {"drop": (1,)}, "drop: drop must be a text, got 1"),
    ],
)
def test_what_an_option_cannot_be_is_told(
    strategy: type[Strategy], values: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError) as error:
        strategy(**values)
    assert str(error.value).startswith(message)
