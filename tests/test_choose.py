"""Which widths a request is about."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from converter.errors import PlanError, UsageError
from converter.structure.axis import Width
from converter.structure.choose import choose
from converter.structure.structure import Structure


def structure(**widths: tuple[int, bool]) -> Structure:
    """Return a structure of nothing but widths: their sizes, and whether they can be resized."""
    found = {
        name: Width(
            name,
            size,
            "permutation" if is_resizable else "bound",
            is_resizable,
            "any" if is_resizable else "none",
            why="it is fed",
        )
        for name, (size, is_resizable) in widths.items()
    }
    return Structure(found, {}, {}, (), {}, {}, (), None, None)


MODEL = {
    "rnn/cell_0": (30, True),
    "rnn/cell_1": (30, True),
    "rnn/inputs": (30, False),
    "softmax": (14, True),
}


@pytest.mark.parametrize(
    ("requests", "sizes"),
    [
        ({"rnn/cell_1": 40}, {"rnn/cell_1": 40}),
        ({"softmax": 20, "rnn/cell_?": 40}, {"rnn/cell_0": 40, "rnn/cell_1": 40, "softmax": 20}),
        ({"14": 20}, {"softmax": 20}),
        ({"014": 20}, {"softmax": 20}),
        ({"rnn/cell_0": 40, "rnn/cell_*": 40}, {"rnn/cell_0": 40, "rnn/cell_1": 40}),
        ({"softmax": 14}, {"softmax": 14}),
        ({"cell_1": 40}, {"rnn/cell_1": 40}),
    ],
)
def test_by_name_by_glob_and_by_size(requests: Mapping[str, int], sizes: dict[str, int]) -> None:
    assert choose(structure(**MODEL), requests) == (sizes, ())


@pytest.mark.parametrize("request_", ["30", "rnn/*"])
def test_passes_over_what_cannot_be_resized(request_: str) -> None:
    found = choose(structure(**MODEL), {request_: 40})
    assert found.sizes == {"rnn/cell_0": 40, "rnn/cell_1": 40}
    assert found.notes == (f"{request_}: cannot be resized, and stay: rnn/inputs (it is fed)",)


@pytest.mark.parametrize(
    ("requests", "message"),
    [
        ({"rnn/cel_1": 4}, "rnn/cel_1 fits none of the 4 widths; did you mean 'rnn/cell_1'?"),
        (
            {"x*": 4},
            "x* fits none of the 4 widths; they are rnn/cell_0, rnn/cell_1, rnn/inputs, softmax",
        ),
        ({"31": 4}, "no width has 31 units; the nearest sizes are 14, 30"),
        ({"9" * 30: 4}, f"no width has {'9' * 30} units; the nearest sizes are 14, 30"),
        ({"rnn/cell_1": 0}, "rnn/cell_1=0: a width must have one unit at least"),
        (
            {"rnn/cell_0": 5, "30": 6},
            "rnn/cell_0 is to have 5 units by rnn/cell_0 and 6 by 30; ask for one of them",
        ),
    ],
)
def test_requests_that_cannot_be_meant(requests: Mapping[str, int], message: str) -> None:
    with pytest.raises(UsageError) as error:
        choose(structure(**MODEL), requests)
    assert str(error.value) == message


def test_what_cannot_be_resized_is_refused() -> None:
    with pytest.raises(PlanError, match=r"^rnn/inputs cannot be resized: it is fed$"):
        choose(structure(**MODEL), {"rnn/inputs": 4})
    held = structure(a=(3, False), b=(3, False))
    with pytest.raises(PlanError, match=r"^3 fits nothing that can be resized: a \(it is fed\), b"):
        choose(held, {"3": 4})


def test_a_model_without_widths_has_none_to_resize() -> None:
    with pytest.raises(UsageError, match=r"^a: there are no widths that could be resized$"):
        choose(structure(), {"a": 4})
