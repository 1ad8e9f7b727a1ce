"""The notation of axes: read, written, and solved for sizes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from converter.errors import PlanError, UsageError
from converter.structure.axes.axis import Axis, Blocks, Equation, check, is_name, solve

SIZES = {"features": 10, "units": 30, "a": 3, "b": 5, "rnn/lstm_cell": 7, "1CNN": 4}


@pytest.mark.parametrize(
    ("text", "axis", "size"),
    [
        ("units", Axis((("units",),)), 30),
        ("features + units", Axis((("features",), ("units",))), 40),
        ("[i,j,f,o]*units", Axis(((Blocks(("i", "j", "f", "o")), "units"),)), 120),
        ("4*units", Axis(((4, "units"),)), 120),
        ("7*7*(a + b)", Axis(((7, 7, Axis((("a",), ("b",)))),)), 392),
        ("a*(b + 2*a)*3", Axis((("a", Axis((("b",), (2, "a"))), 3),)), 99),
        ("3", Axis(((3,),)), 3),
        ("rnn/lstm_cell + 1CNN", Axis((("rnn/lstm_cell",), ("1CNN",))), 11),
    ],
)
def test_reads_and_writes(text: str, axis: Axis, size: int) -> None:
    assert Axis.parse(text) == axis
    assert str(axis) == text
    assert axis.size(SIZES) == size


def test_reads_any_spacing() -> None:
    assert Axis.parse(" 7 *7*( a+b ) ") == Axis.parse("7*7*(a + b)")
    assert Axis.parse("[ i, j ]*units") == Axis.parse("[i,j]*units")


def test_shows_sizes_and_renames() -> None:
    axis = Axis.parse("features + [i,j,f,o]*units + 2*(a + b)")
    assert axis.shown(SIZES) == "10 + 4*30 + 2*(3 + 5)"
    assert axis.widths() == ("features", "units", "a", "b")
    assert str(axis.rename({"units": "h", "b": "c"})) == "features + [i,j,f,o]*h + 2*(a + c)"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "'': a width, a number, [labels] or a bracket must stand at character 1"),
        ("a +", "'a +': a width, a number, [labels] or a bracket must stand at character 4"),
        ("a b", "'a b': +, * or the end must stand at character 2"),
        ("2*(a + b", "'2*(a + b': a closing bracket must stand at character 9"),
        ("[i,i]*a", "'[i,i]*a': labels that differ, such as [i,j,f,o] must stand at character 1"),
        ("9" * 30, "a smaller number must stand at character 1"),
        ("(" * 40 + "a", "fewer brackets must stand at character 17"),
        ("a\x1b[0m", "'a\\x1b[0m': +, * or the end must stand at character 2"),
    ],
)
def test_says_where_the_notation_is_wrong(text: str, message: str) -> None:
    with pytest.raises(UsageError) as error:
        Axis.parse(text)
    assert f"the axis {message}" in str(error.value) or message in str(error.value)


def test_names_are_no_numbers() -> None:
    assert all(map(is_name, ["encoder/layer_0", "1CNN", "a.b-c", "_"]))
    assert not any(map(is_name, ["12", "a b", "", "a+b", "-a", "ä"]))


def equation(text: str, length: int) -> Equation:
    return Equation(Axis.parse(text), length, f"v[{length}]")


def test_solves_for_new_sizes() -> None:
    found = solve(
        [equation("features + units", 96), equation("4*units", 256), equation("7*7*(c + c)", 490)],
        {},
    )
    assert found == {"units": 64, "features": 32, "c": 5}


def test_leaves_open_what_the_lengths_leave_open() -> None:
    assert solve([equation("a + b", 100)], {}) == {}
    assert solve([equation("a + b", 100)], {"a": 40}) == {"a": 40, "b": 60}


@pytest.mark.parametrize(
    ("equations", "message"),
    [
        ([equation("4*units", 30)], "v[30]: no size of units makes 4*units as long as 30; "),
        (
            [equation("units", 8), equation("4*units", 30)],
            "v[30]: 4*units is 4*8 = 32, but its length is 30; correct the axis or the sizes",
        ),
        ([equation("5 + units", 5)], "v[5]: no size of units makes 5 + units as long as 5; "),
    ],
)
def test_says_which_axis_cannot_be(equations: list[Equation], message: str) -> None:
    with pytest.raises(PlanError) as error:
        check(equations, solve(equations, {}))
    assert str(error.value).startswith(message)


def axes(depth: int = 2) -> st.SearchStrategy[Axis]:
    factor = st.one_of(
        st.integers(1, 9),
        st.sampled_from(["a", "b", "x/y_1", "2d"]),
        st.sampled_from([Blocks(("i", "j")), Blocks(("z", "r", "h"))]),
    )
    if depth:
        factor = st.one_of(factor, axes(depth - 1))
    terms = st.lists(st.lists(factor, min_size=1, max_size=3).map(tuple), min_size=1, max_size=3)
    return terms.map(lambda found: Axis(tuple(found)))


@given(axes())
def test_what_is_written_is_read_again(axis: Axis) -> None:
    assert Axis.parse(str(axis)) == axis
