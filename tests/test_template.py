"""The sizes for which the variables have a template's shapes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import case

from converter import Checkpoint, Variable, open_checkpoint
from converter.errors import PlanError
from converter.structure.axes.axis import Axis, Width
from converter.structure.infer import infer
from converter.structure.structure import Structure
from converter.structure.template import sizes_like

LSTM = {
    "embedding": ["vocabulary", "features"],
    "kernel": ["features + units", "[i,j,f,o]*units"],
    "bias": ["[i,j,f,o]*units"],
    "softmax": ["units", "classes"],
}
SIZES = {"vocabulary": 9, "features": 6, "units": 10, "classes": 9}


def checkpoint(path: str, shapes: Mapping[str, tuple[int, ...]]) -> Checkpoint:
    variables = [Variable.from_array(n, np.zeros(s, "f4")) for n, s in shapes.items()]
    return Checkpoint(variables, path=Path(path))


def made(texts: Mapping[str, list[str]], sizes: Mapping[str, int]) -> tuple[Structure, Checkpoint]:
    axes = {name: tuple(map(Axis.parse, axes)) for name, axes in texts.items()}
    widths = {name: Width(name, size, "permutation", True, "any") for name, size in sizes.items()}
    shapes = {name: tuple(a.size(sizes) for a in found) for name, found in axes.items()}
    found = Structure(widths, axes, {}, (), {}, {}, (), None, None)
    return found, checkpoint("here", shapes)


def held(found: Structure, name: str) -> Structure:
    width = replace(found.widths[name], resizable=False, why="it is fed")
    return replace(found, widths={**found.widths, name: width})


def like(
    texts: Mapping[str, list[str]], sizes: Mapping[str, int], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, int]:
    return sizes_like(*made(texts, sizes), checkpoint("there", shapes))


def test_finds_the_sizes() -> None:
    shapes = {"embedding": (9, 8), "kernel": (20, 48), "bias": (48,), "softmax": (12, 9)}
    assert like(LSTM, SIZES, shapes) == {"features": 8, "units": 12}


def test_a_sum_is_solved_by_what_the_others_tell() -> None:
    assert like(LSTM, SIZES, {"kernel": (20, 48)}) == {"features": 8, "units": 12}
    texts = {"x": ["a + b"], "y": ["a + 2*b"], "z": ["3*(b + c) + 1"]}
    old = {"a": 1, "b": 2, "c": 3}
    assert like(texts, old, {"x": (9,), "y": (13,), "z": (31,)}) == {"a": 5, "b": 4, "c": 6}


def test_what_nothing_decides_stays() -> None:
    assert like(LSTM, SIZES, {"softmax": (12, 9), "step": ()}) == {"units": 12}
    assert like({"x": ["a + b"], "y": ["c"]}, {"a": 1, "b": 2, "c": 3}, {"x": (3,), "y": (4,)}) == {
        "c": 4
    }


def test_what_is_held_decides_the_rest_of_a_sum() -> None:
    found, here = made({"x": ["a + b"]}, {"a": 1, "b": 2})
    assert sizes_like(held(found, "a"), here, checkpoint("there", {"x": (9,)})) == {"b": 8}


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (
            {"bias": (40,), "kernel": (18, 48)},
            "there: bias, axis 0: [i,j,f,o]*units is 4*12 = 48, but its length is 40; the "
            "template is of another model, or take --resize",
        ),
        (
            {"bias": (42,)},
            "there: bias, axis 0: no size of units makes [i,j,f,o]*units as long as 42; the "
            "template is of another model, or take --resize",
        ),
        (
            {"bias": (1, 40)},
            "there: bias is [1, 40] there and [40] here; the template is of another model, or take "
            "--resize",
        ),
        ({"other": (1,)}, "there: none of its 1 variables is called as one of here; rename them"),
    ],
)
def test_a_template_that_cannot_be_reached(
    shapes: Mapping[str, tuple[int, ...]], message: str
) -> None:
    with pytest.raises(PlanError) as error:
        like(LSTM, SIZES, shapes)
    assert str(error.value).startswith(message)


@pytest.mark.parametrize(
    ("axis", "length", "message"),
    [
        (
            "a + b",
            10,
            "there: x, axis 0: a + b is 4 + 3 = 7 and has to be 10, which leaves open which of "
            "a, b changes; say it with --resize: a=7 or b=6",
        ),
        (
            "a*b",
            24,
            "there: x, axis 0: a*b is 4*3 = 12 and has to be 24, which leaves open which of "
            "a, b changes; say it with --resize: a=8 or b=6",
        ),
        (
            "a*b",
            35,
            "there: x, axis 0: a*b is 4*3 = 12 and has to be 35, which leaves open which of "
            "a, b changes; say it with --resize: several of them together",
        ),
    ],
)
def test_what_is_ambiguous_is_asked_for(axis: str, length: int, message: str) -> None:
    with pytest.raises(PlanError) as error:
        like({"x": [axis]}, {"a": 4, "b": 3}, {"x": (length,)})
    assert str(error.value) == message


def test_what_cannot_be_resized_is_refused() -> None:
    found, here = made(LSTM, SIZES)
    shapes = {"embedding": (9, 8)}
    with pytest.raises(PlanError) as error:
        sizes_like(held(found, "features"), here, checkpoint("there", shapes))
    assert str(error.value) == (
        "there: features has 8 units there and 6 here, and cannot be resized: it is fed"
    )


def test_a_real_model_with_its_slots() -> None:
    here = open_checkpoint(case("tf14_v2_charlm_lstm_ema").path)
    found = infer(here)
    new = {**found.sizes, "charlm/rnn/lstm_cell": 45, "charlm/embedding": 12}
    shapes = {name: tuple(a.size(new) for a in axes) for name, axes in found.axes.items()}
    wanted = {"charlm/embedding": 12, "charlm/rnn/lstm_cell": 45}
    assert sizes_like(found, here, checkpoint("there", shapes)) == wanted
    model = {name: shape for name, shape in shapes.items() if here.roles()[name].kind == "model"}
    assert len(model) < len(shapes)
    assert sizes_like(found, here, checkpoint("there", model)) == wanted
