"""Which widths a request is about."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest
from conftest import case
from converter_plugins.eras import Eras
from converter_plugins.rename import Rename

from converter import open_checkpoint
from converter.errors import PlanError, UsageError
from converter.names import Role
from converter.plan import make_plan
from converter.structure.axes.axis import Axis, Width
from converter.structure.choose import choose, held
from converter.structure.infer import structure_of
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


@pytest.mark.parametrize(
    ("request_", "told"),
    [
        ("lm/table", "it is a variable, with the widths lm/words (9), lm/features (4)"),
        ("lm/cell/gate/w", "it is a variable, with the widths lm/features (4), lm/cell (5)"),
        ("lm/cell/gate", "it fits variables, with the widths lm/features (4), lm/cell (5)"),
        ("lm/c*/gate/b", "it fits variables, with the widths lm/cell (5)"),
        ("lm/cell/gato", "did you mean a width of lm/cell/gate: lm/features (4), lm/cell (5)?"),
        ("lm/sell", "did you mean 'lm/cell'?"),
        ("lm/wurd?", "did you mean 'lm/words'?"),
    ],
)
def test_what_fits_variables_is_told_their_widths(request_: str, told: str) -> None:
    found = structure(**{"lm/words": (9, True), "lm/features": (4, True), "lm/cell": (5, True)})
    words, features, cell = (Axis(((name,),)) for name in found.widths)
    axes = {
        "lm/table": (words, features),
        "lm/cell/gate/w": (features, cell),
        "lm/cell/gate/w/Adam": (words, words),
        "lm/cell/gate/b": (cell,),
    }
    follows = {"lm/cell/gate/w/Adam": Role("slot", "lm/cell/gate/w")}
    with pytest.raises(UsageError) as error:
        choose(replace(found, axes=axes, follows=follows), {request_: 3})
    assert str(error.value) == f"{request_} fits none of the 3 widths; {told}"


def test_what_cannot_be_resized_is_refused() -> None:
    with pytest.raises(PlanError, match=r"^rnn/inputs cannot be resized: it is fed$"):
        choose(structure(**MODEL), {"rnn/inputs": 4})
    fed = structure(a=(3, False), b=(3, False))
    with pytest.raises(PlanError, match=r"^3 fits nothing that can be resized: a \(it is fed\), b"):
        choose(fed, {"3": 4})


def test_a_model_without_widths_has_none_to_resize() -> None:
    with pytest.raises(UsageError, match=r"^a: there are no widths that could be resized$"):
        choose(structure(), {"a": 4})


def test_widths_are_found_by_the_new_names_of_their_variables_too() -> None:
    checkpoint = open_checkpoint(case("tf14_v2_charlm_lstm_ema").path)
    steps = [
        Rename(rename={r"charlm/softmax/(.*)": r"tags/\1"}),
        Rename(rename={r"charlm/(.*)": r"lm/\1"}),
    ]
    found = structure_of(make_plan(checkpoint, steps).result)
    assert dict(found.called) == {
        "charlm/embedding/vocabulary": "lm/embedding/vocabulary",
        "charlm/embedding": "lm/embedding",
        "charlm/rnn/lstm_cell": "lm/rnn/lstm_cell",
        "charlm/softmax": "tags",
    }
    for request_, name in (
        ("lm/rnn/lstm_cell", "charlm/rnn/lstm_cell"),
        ("lm/r*", "charlm/rnn/lstm_cell"),
        ("tags", "charlm/softmax"),
        ("charlm/softmax", "charlm/softmax"),
    ):
        assert choose(found, {request_: 50}).sizes == {name: 50}
    with pytest.raises(UsageError, match=r"did you mean 'lm/rnn/lstm_cell'\?"):
        choose(found, {"lm/rnn/lstm": 50})


def test_names_of_another_release_call_widths_otherwise() -> None:
    checkpoint = open_checkpoint(case("tf012_v1_charlm_basiclstm").path)
    (cell,) = (n for n in structure_of(checkpoint).widths if n.endswith("/BasicLSTMCell"))
    found = structure_of(make_plan(checkpoint, [Eras(eras="1.15")]).result)
    assert found.called[cell] == cell.replace("RNN/BasicLSTMCell", "rnn/basic_lstm_cell")
    assert choose(found, {"basic_lstm_cell": 50}).sizes == {cell: 50}


def test_what_stays_is_told_shortly_and_listed_in_full() -> None:
    model = structure(a=(4, False), b=(4, False), c=(4, False), d=(4, True))
    assert choose(model, {"*": 8}).notes == (
        "*: 3 of these cannot be resized, and stay: a, b and 1 more; --json tells why",
    )
    assert held(model, {"*": 8}) == dict.fromkeys("abc", "it is fed")


def test_what_to_do_about_positions_that_nothing_reads() -> None:
    found = structure_of(open_checkpoint(case("tf115_v2_bert_mini").path))
    with pytest.raises(PlanError) as error:
        choose(found, {"position_embeddings": 128})
    assert str(error.value) == (
        "bert/embeddings/position_embeddings cannot be resized: no op reads these entries of "
        "bert/embeddings/position_embeddings, so the graph does not tell what more of them would "
        "be; --shape 'bert/embeddings/position_embeddings=SIZES' resizes this variable alone"
    )


def test_a_size_of_any_number_of_digits_is_one_that_no_width_has() -> None:
    told = r"no width has 9{197}\.\.\. units; the nearest sizes are 14, 30"
    with pytest.raises(UsageError, match=told):
        choose(structure(**MODEL), {"9" * 5000: 3})
