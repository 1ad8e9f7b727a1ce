"""The permutation test tells right structures from wrong ones."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from conftest import case
from model_maker import Build, Maker, N, asked, save

from converter import Checkpoint, InputError, open_checkpoint
from converter.cli import cli
from converter.cli.permutation import show_test
from converter.graph.node import Tensor
from converter.model import Model, difference, jittered, noisy, rounded
from converter.permutation import Member, PermutationTest, cycle, permute
from converter.proof import Question
from converter.session import RunError
from converter.structure.axes.axis import Axis, Width
from converter.structure.axes.entries import entries
from converter.structure.infer import infer
from converter.structure.structure import Structure

slow = pytest.mark.slow
CELL = "charlm/rnn/lstm_cell"


# --- axes written out ---


@pytest.mark.parametrize(
    ("axis", "written"),
    [
        ("b", [2, 0, 1]),
        ("a + b", [0, 1, 4, 2, 3]),
        ("b + a", [2, 0, 1, 3, 4]),
        ("[i,j]*b", [2, 0, 1, 5, 3, 4]),
        ("b*2", [4, 5, 0, 1, 2, 3]),
        ("2*(a + b)", [0, 1, 4, 2, 3, 5, 6, 9, 7, 8]),
        ("b*a*b", [14, 12, 13, 17, 15, 16, 2, 0, 1, 5, 3, 4, 8, 6, 7, 11, 9, 10]),
        ("a", [0, 1]),
        ("3 + 1", [0, 1, 2, 3]),
    ],
)
def test_units_of_a_width_move_wherever_it_stands(axis: str, written: list[int]) -> None:
    orders = {"b": np.array([2, 0, 1])}
    assert entries(Axis.parse(axis), orders, {"a": 2, "b": 3}).tolist() == written


@pytest.mark.parametrize("size", [2, 3, 7, 100])
def test_no_unit_stays_and_all_change_places_with_all(size: int) -> None:
    order = cycle("rnn", size)
    seen = [0]
    while order[seen[-1]] != 0:
        seen.append(int(order[seen[-1]]))
    assert sorted(seen) == list(range(size))
    assert order.tolist() == cycle("rnn", size).tolist()


# --- values ---


def test_values_that_look_the_same_in_every_order_get_noise() -> None:
    drawn = np.random.default_rng(0).normal(size=(5, 4)).astype("f4")
    values = {
        "gamma": np.ones(5, "f4"),
        "zeros": np.zeros((5, 4), "f4"),
        "bias": np.repeat(np.array([0, 1, 0, 0], "f4"), 5),
        "tiny": drawn * np.float32(1e-6),
        "rows": np.repeat(drawn[:1], 5, axis=0),
        "trained": drawn,
        "ids": np.zeros(5, np.int32),
    }
    found = jittered(values)
    for name in ("gamma", "zeros", "bias", "tiny", "rows"):
        apart = np.abs(found[name] - values[name])
        assert 0.05 < apart.max() <= 0.1 * max(1, np.abs(values[name]).max()), name
        assert len(np.unique(found[name])) == found[name].size
        assert found[name].dtype == np.float32
    assert found["trained"] is drawn
    assert found["ids"] is values["ids"]
    assert jittered({"gamma": values["gamma"]})["gamma"].tolist() == found["gamma"].tolist()


def test_variances_stay_positive() -> None:
    zeros = np.zeros(100, "f4")
    assert (jittered({"var": zeros}, positive=["var"])["var"] >= 0).all()
    assert (jittered({"var": zeros})["var"] < 0).any()
    assert (noisy("var", np.full(100, 2.0), 0.5, positive=True) >= 2).all()


def test_rounding_moves_values_by_their_last_digit() -> None:
    values = {"half": np.full(1000, 1, "f2"), "single": np.full(1000, 3, "f4"), "n": np.arange(3)}
    found = rounded(values, 0.0)
    assert np.unique(found["half"]).tolist() == [1 - 2**-11, 1]
    assert 0 < np.abs(found["single"] / np.float32(3) - 1).max() <= 2**-23
    assert found["n"] is values["n"]
    assert np.abs(rounded(values, 2**-7)["single"] / 3 - 1).max() > 2**-9


def test_choices_are_compared_only_where_nothing_is_computed() -> None:
    logits, choice = Tensor("logits"), Tensor("choice")
    a = {logits: np.array([[1.0, 2.0]]), choice: np.array([1, 0])}
    b = {logits: np.array([[1.0, 2.5]]), choice: np.array([0, 0])}
    assert difference(a, b) == 0.25
    assert difference({choice: a[choice]}, {choice: b[choice]}) == 0.5
    empty = {logits: np.array([np.nan])}
    assert np.isnan(difference(empty, empty))


# --- a trained model ---


@pytest.fixture(scope="module")
def charlm() -> tuple[Checkpoint, Structure, Question]:
    pytest.importorskip("tensorflow")
    checkpoint = open_checkpoint(case("tf14_v2_charlm_lstm_ema").path)
    return checkpoint, infer(checkpoint), Question(fetches=("charlm/softmax/BiasAdd",))


def changed(structure: Structure, **axes: str) -> Structure:
    """Return a structure that says something else of some variables of the model."""
    names = {f"charlm/{name.replace('__', '/')}": text for name, text in axes.items()}
    own = {n: tuple(Axis.parse(t) for t in text.split(", ")) for n, text in names.items()}
    return replace(structure, axes={**structure.axes, **own})


@slow
def test_a_right_structure_passes(charlm: tuple[Checkpoint, Structure, Question]) -> None:
    test = permute(*charlm)
    assert test.passed
    assert test.tolerance < 2e-5
    assert {name: trial.result for name, trial in test.trials.items()} == {
        "charlm/embedding/vocabulary": "bound",
        "charlm/embedding": "tested",
        CELL: "tested",
        "charlm/softmax": "tested",
    }
    trial = test.trials[CELL]
    assert trial.error is not None
    assert trial.control is not None
    assert trial.error < 1e-5 < 0.1 < trial.control
    assert (trial.moved, trial.unread, trial.invariant, trial.why) == ((), (), (), "")
    # The outputs have this width: they are compared in the new order.
    assert test.trials["charlm/softmax"].moved == ("charlm/softmax/BiasAdd",)
    vocabulary = test.trials["charlm/embedding/vocabulary"]
    assert vocabulary.error is not None
    assert vocabulary.error > 0.1
    assert vocabulary.why.startswith("the outputs move by ")


WRONG = {
    "bias is left out": {"rnn__lstm_cell__bias": "120"},
    "a consumer is left out": {"softmax__kernel": "30, charlm/softmax"},
    "the gates are the inner ones": {"rnn__lstm_cell__bias": f"{CELL}*4"},
    "the order of the sum is another": {
        "rnn__lstm_cell__kernel": f"{CELL} + charlm/embedding, 4*{CELL}"
    },
}


@slow
@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_structure_is_refuted(
    charlm: tuple[Checkpoint, Structure, Question], wrong: str
) -> None:
    checkpoint, structure, question = charlm
    test = permute(checkpoint, changed(structure, **WRONG[wrong]), question)
    assert not test.passed
    trial = test.trials[CELL]
    assert trial.result == "refuted"
    assert trial.error is not None
    assert trial.error > 1e-4
    assert trial.why == f"the outputs move by {trial.error:.2g} of their scale"


@slow
def test_an_axis_that_does_not_belong_is_named(
    charlm: tuple[Checkpoint, Structure, Question],
) -> None:
    checkpoint, structure, question = charlm
    wrong = changed(structure, embedding="charlm/softmax, charlm/embedding")
    test = permute(checkpoint, wrong, question)
    # The class is bound, so that it is not refuted; with a class that is not, it is.
    assert test.trials["charlm/softmax"].result == "bound"
    widths = {**wrong.widths}
    widths["charlm/softmax"] = replace(widths["charlm/softmax"], symmetry="permutation")
    trial = permute(checkpoint, replace(wrong, widths=widths), question).trials["charlm/softmax"]
    assert trial.result == "refuted"
    assert trial.but_for == (Member("charlm/embedding", 0),)


def split(structure: Structure, name: str, second: Mapping[str, str]) -> Structure:
    """Return a structure in which a width is two: `second` tells which axes have the other one."""
    other = f"{name}_other"
    widths: dict[str, Width] = {}
    for known, width in structure.widths.items():
        widths[known] = width
        if known == name:
            widths[other] = replace(width, name=other)
    axes = dict(structure.axes)
    for variable, places in second.items():
        axes[variable] = tuple(
            axis.rename({name: other}) if str(number) in places else axis
            for number, axis in enumerate(axes[variable])
        )
    return replace(structure, widths=widths, axes=axes)


@slow
def test_widths_that_are_one_are_found_by_permuting_them_together(
    charlm: tuple[Checkpoint, Structure, Question], capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint, structure, question = charlm
    parted = split(structure, CELL, {"charlm/softmax/kernel": "0"})
    test = permute(checkpoint, parted, question)
    assert test.trials[CELL].result == "refuted"
    assert test.trials[CELL].together == (f"{CELL}_other",)
    assert test.trials[f"{CELL}_other"].together == (CELL,)
    assert test.trials["charlm/embedding"].result == "tested"
    show_test(test, parted)
    lines = capsys.readouterr().out.splitlines()
    assert (
        f"note    {CELL}_other and {CELL} are bound together: permuted alike the outputs stay; "
        f"write {CELL} for {CELL}_other in a layout file (-o):"
    ) in lines
    assert (
        f'note      [variables."charlm/softmax/kernel"] axes = ["{CELL}", "charlm/softmax"]'
    ) in lines
    assert lines[-1].startswith("failed  5 widths: 2 tested, 2 refuted, 1 bound; within ")


@slow
def test_three_widths_that_are_one(charlm: tuple[Checkpoint, Structure, Question]) -> None:
    checkpoint, structure, question = charlm
    once = split(structure, CELL, {"charlm/softmax/kernel": "0"})
    twice = split(once, CELL, {"charlm/rnn/lstm_cell/bias": "0"})
    axes = dict(twice.axes)
    axes["charlm/softmax/kernel"] = (Axis.parse("third"), axes["charlm/softmax/kernel"][1])
    third = replace(twice.widths[CELL], name="third")
    widths = {**twice.widths, "third": third}
    test = permute(checkpoint, replace(twice, widths=widths, axes=axes), question)
    together = {name: trial.together for name, trial in test.trials.items() if trial.together}
    assert together == {
        CELL: (f"{CELL}_other", "third"),
        f"{CELL}_other": (CELL, "third"),
        "third": (CELL, f"{CELL}_other"),
    }


@slow
def test_what_is_not_needed_or_has_one_unit_is_unseen(
    charlm: tuple[Checkpoint, Structure, Question],
) -> None:
    checkpoint, structure, _ = charlm
    single = replace(structure.widths["charlm/softmax"], name="single", size=1)
    axes = {**structure.axes, "charlm/rnn/lstm_cell/bias": (Axis.parse("single*120"),)}
    wider = replace(structure, widths={**structure.widths, "single": single}, axes=axes)
    test = permute(checkpoint, wider, Question(fetches=("charlm/embedding_lookup",)))
    trial = test.trials["charlm/softmax"]
    assert (trial.result, trial.error) == ("unseen", None)
    assert trial.why == "the outputs do not need it"
    assert trial.unread == (Member("charlm/softmax/bias", 0), Member("charlm/softmax/kernel", 1))
    test = permute(checkpoint, wider, Question(fetches=("charlm/softmax/BiasAdd",)))
    assert test.trials["single"].result == "unseen"
    assert test.trials["single"].why == "one unit has no other order"


@slow
def test_graphs_that_lack_something_are_told() -> None:
    checkpoint = open_checkpoint(case("tf221_raw_dtypes").path)
    structure = infer(open_checkpoint(case("tf14_v2_charlm_lstm_ema").path))
    with pytest.raises(InputError, match=r"it has no graph \(.meta, .pb\)"):
        permute(checkpoint, structure)


# --- models that are made ---


@pytest.fixture
def tested(tmp_path: Path) -> Callable[..., tuple[Structure, PermutationTest]]:
    tf = pytest.importorskip("tensorflow").compat.v1

    def run(
        make: Build,
        edit: Callable[[Structure], Structure] = lambda structure: structure,
        *,
        train: bool = True,
        drawn: bool = False,
    ) -> tuple[Structure, PermutationTest]:
        maker, outputs = save(tf, make, tmp_path / "model", train=train)
        checkpoint = open_checkpoint(tmp_path / "model")
        structure = edit(infer(checkpoint))
        question = asked(maker.feeds, outputs, tmp_path / "inputs.npz")
        question = Question(fetches=tuple(outputs)) if drawn else question
        return structure, permute(checkpoint, structure, question)

    return run


def without(*names: str) -> Callable[[Structure], Structure]:
    """Return what says that variables have no widths."""

    def edit(structure: Structure) -> Structure:
        sizes = structure.sizes
        axes = {
            name: tuple(Axis(((axis.size(sizes),),)) if name in names else axis for axis in axes)
            for name, axes in structure.axes.items()
        }
        return replace(structure, axes=axes)

    return edit


@slow
@pytest.mark.parametrize("left_out", ["n/gamma", "n/beta", "out/kernel"])
def test_fresh_ones_and_zeros_hide_no_error(tested: Any, left_out: str) -> None:
    def make(m: Maker) -> list[Any]:
        tf = m.tf
        h = tf.tanh(m.dense(m.input(N, N), "first"))
        gamma = tf.get_variable("n/gamma", [N], initializer=tf.ones_initializer())
        beta = tf.get_variable("n/beta", [N], initializer=tf.zeros_initializer())
        kernel = tf.get_variable("out/kernel", [N, N], initializer=tf.zeros_initializer())
        return [tf.matmul(h * gamma + beta, kernel)]

    structure, test = tested(make, train=False)
    assert {t.result for t in test.trials.values()} == {"tested"}
    assert structure.widths["first"].symmetry == "permutation"
    _, test = tested(make, without(left_out), train=False)
    assert test.trials["first"].result == "refuted"


@slow
def test_what_a_softmax_does_not_see_is_listed(tested: Any) -> None:
    def make(m: Maker) -> list[Any]:
        tf = m.tf
        x = m.input(N, N, N)
        q, k, v = (m.dense(x, name) for name in "qkv")
        return [m.dense(tf.matmul(tf.nn.softmax(tf.matmul(q, k, transpose_b=True)), v), "out")]

    _, test = tested(make)
    (shared,) = (t for t in test.trials.values() if t.invariant)
    assert shared.result == "tested"
    assert shared.invariant == (Member("k/bias", 0),)
    assert shared.control is not None
    assert shared.control > 1e-3


@slow
def test_a_width_that_moves_nothing_is_never_called_tested(tested: Any) -> None:
    def make(m: Maker) -> list[Any]:
        table = m.variable("positions", 3 * N, N)
        return [m.dense(m.input(N, N) + table[:N], "out")]

    structure, test = tested(make)
    (rest,) = (n for n, w in structure.widths.items() if w.size == 2 * N)
    assert test.trials[rest].result == "unseen"
    assert test.trials[rest].error == 0
    assert test.trials[rest].control is None
    assert test.trials[rest].invariant == (Member("positions", 0),)
    assert test.trials[rest].why == "the outputs stay in a wrong order, too"


@slow
def test_small_members_are_seen_among_large_ones(tested: Any) -> None:
    def make(m: Maker) -> list[Any]:
        tf = m.tf
        h = m.dense(m.input(N, N), "first")
        small = tf.get_variable("small", [N], initializer=tf.random_normal_initializer(stddev=0.01))
        return [m.dense(tf.nn.relu(1e3 * h + small), "out")]

    _, test = tested(make, train=False)
    assert test.trials["first"].result == "tested"
    assert test.trials["first"].invariant == ()


@slow
def test_an_error_that_is_too_small_to_be_seen_is_enlarged(tested: Any) -> None:
    def make(m: Maker) -> list[Any]:
        tf = m.tf
        h = m.dense(m.input(N, N), "first")
        small = tf.get_variable("small", [2 * N], initializer=tf.random_normal_initializer())
        a, b = tf.split(small, 2)
        return [m.dense(tf.nn.relu(h + 1e-6 * (a + 2.0 * b)), "out")]

    def turn(structure: Structure) -> Structure:
        assert structure.axes["small"] == (Axis.parse("2*first"),)
        return replace(structure, axes={**structure.axes, "small": (Axis.parse("first*2"),)})

    _, test = tested(make, train=False)
    assert test.trials["first"].result == "tested"
    _, test = tested(make, turn, train=False)
    assert test.trials["first"].result == "refuted"


@slow
def test_noise_that_loses_all_digits_refutes_nothing(tested: Any) -> None:
    def make(m: Maker) -> list[Any]:
        tf = m.tf
        x = m.input(N, N, N)
        q, k, v = m.dense(x, "q"), m.dense(0.01 * x, "k"), m.dense(x, "v")
        scores = 30.0 * tf.matmul(q, k, transpose_b=True)
        return [m.dense(tf.matmul(tf.nn.softmax(scores), v), "out")]

    _, test = tested(make, train=False)
    assert test.passed
    assert [m for t in test.trials.values() for m in t.invariant] == [Member("k/bias", 0)]


@slow
def test_averages_that_are_read_stand_for_their_variables(tested: Any) -> None:
    def make(m: Maker) -> list[Any]:
        tf = m.tf
        h = m.dense(m.input(N, N), "first", act=tf.tanh)
        kernel = m.variable("second/kernel", N, N)
        averages = tf.train.ExponentialMovingAverage(0.9)
        averages.apply([kernel])
        m.variable("unread/kernel", N, N)
        return [tf.matmul(h, averages.average(kernel))]

    _, test = tested(make, train=False)
    assert test.trials["first"].result == "tested"
    assert test.trials["first"].unread == ()


@slow
def test_states_that_are_fed_are_permuted_too(tested: Any) -> None:
    def make(m: Maker) -> list[Any]:
        tf = m.tf
        state = tf.placeholder("float32", [N, N], "state")
        m.feeds[state.name] = np.random.default_rng(3).normal(size=(N, N)).astype("f4")
        joined = tf.concat([m.input(N, N), state], 1)
        kernel = m.variable("cell/kernel", 2 * N, N)
        h = tf.tanh(tf.matmul(joined, kernel) + state)
        return [h, m.dense(h, "out")]

    _, test = tested(make)
    cell = test.trials["cell"]
    assert cell.result == "tested"
    assert cell.moved == ("state", "Tanh")
    assert test.trials["x"].moved == ("x",)
    assert test.trials["x"].result == "tested"


@slow
def test_noise_that_is_drawn_is_permuted_too(tested: Any) -> None:
    def make(m: Maker) -> list[Any]:
        tf = m.tf
        mean = m.dense(m.input(N, N), "mean")
        hidden = mean + tf.random_normal(tf.shape(mean), name="noise")
        return [m.dense(tf.tanh(hidden), "out")]

    _, test = tested(make, drawn=True)
    assert test.trials["mean"].result == "tested"
    assert test.trials["mean"].moved == ("noise/RandomStandardNormal",)
    assert test.forward.random == ()


@slow
def test_noise_in_a_loop_refutes_nothing(tested: Any) -> None:
    def make(m: Maker) -> list[Any]:
        tf = m.tf
        kernel = m.variable("cell/kernel", N, N)

        def body(i: Any, h: Any) -> Any:
            return i + 1, tf.tanh(tf.matmul(h, kernel) + tf.random_normal([N, N]))

        _, h = tf.while_loop(lambda i, _: i < 3, body, (0, m.dense(m.input(N, N), "first")))
        return [m.dense(h, "out")]

    tf = pytest.importorskip("tensorflow").compat.v1
    was = tf.control_flow_v2_enabled()
    tf.disable_control_flow_v2()
    try:
        _, test = tested(make, drawn=True)
    finally:
        (tf.enable_control_flow_v2 if was else tf.disable_control_flow_v2)()
    (trial,) = (t for t in test.trials.values() if t.name not in ("x", "out"))
    assert trial.result == "unseen"
    assert trial.why.endswith("draws other random numbers for each unit")
    assert test.passed


@slow
def test_half_precision_is_no_refutation(tested: Any) -> None:
    def make(m: Maker) -> list[Any]:
        tf = m.tf
        h = m.input(N, N)
        for name in "abc":
            kernel = m.variable(f"{name}/kernel", N, N)
            h = tf.tanh(tf.matmul(tf.cast(h, tf.float16), tf.cast(kernel, tf.float16)))
        return [tf.cast(h, tf.float32)]

    _, test = tested(make)
    assert test.tolerance > 1e-4
    assert {t.result for t in test.trials.values()} == {"tested"}


@slow
def test_outputs_that_say_nothing_are_refused(tested: Any) -> None:
    def make(m: Maker) -> list[Any]:
        return [m.dense(m.input(N, N), "out") / 0.0 * 0.0]

    with pytest.raises(RunError, match="its outputs tell nothing about widths: they are not finit"):
        tested(make, train=False)


@slow
def test_a_model_runs_as_often_as_wanted_with_other_values(tmp_path: Path) -> None:
    tf = pytest.importorskip("tensorflow").compat.v1

    def make(m: Maker) -> list[Any]:
        state = tf.get_variable("state", [N], initializer=tf.zeros_initializer())
        count = tf.assign_add(state, tf.ones([N]))
        with tf.control_dependencies([count]):
            drawn = tf.multinomial(m.dense(m.input(N, N), "out"), 50)
        return [tf.identity(state.read_value()) + tf.reduce_sum(tf.cast(drawn, tf.float32))]

    maker, outputs = save(tf, make, tmp_path / "model", train=False)
    question = asked(maker.feeds, outputs, tmp_path / "inputs.npz")
    with Model(open_checkpoint(tmp_path / "model"), question) as model:
        first, second = model.run(model.values), model.run(model.values)
        (output,) = first
        assert first[output].tolist() == second[output].tolist()
        if "state" in model.values:
            moved = model.run({**model.values, "state": np.full(N, 5, "f4")})
            again = model.run({**model.values, "state": np.full(N, 5, "f4")})
            assert (moved[output] - first[output]).tolist() == [5.0] * N
            assert moved[output].tolist() == again[output].tolist()


# --- the command ---


def run(*arguments: str) -> Any:
    return CliRunner().invoke(cli, ["inspect", *arguments])


@slow
def test_people_see_what_was_tested(lstm: str) -> None:
    result = run(lstm, "--widths", "--test", "--fetch", "charlm/softmax/BiasAdd")
    assert result.exit_code == 0
    lines = result.output.splitlines()
    assert lines[2].split()[3:6] == ["grows", "test", "produced"]
    assert [line.split()[4] for line in lines[3:7]] == ["bound", "tested", "tested", "tested"]
    assert "input   x  int32 [8, 8]  drawn" in lines
    assert "output  charlm/softmax/BiasAdd" in lines
    assert lines[-1].startswith("passed  4 widths: 3 tested, 1 bound; within 1")
    assert lines[-1].endswith("of the scale, on drawn inputs")


@slow
def test_a_refuted_width_fails(tested: Any, tmp_path: Path) -> None:
    def make(m: Maker) -> list[Any]:
        tf = m.tf
        h = m.dense(m.input(N, N), "first", act=tf.tanh)
        return [tf.matmul(tf.transpose(h, [0, 1]), m.variable("second/kernel", N, N))]

    tested(make, train=False)
    path = str(tmp_path / "model")
    arguments = (path, "--widths", "--test", "--fetch", "MatMul")
    result = run(*arguments)
    assert result.exit_code == 0
    # The structure goes by the constant, and the graph by what is fed in its place.
    result = run(*arguments, "--feed", "transpose/perm=[1, 0]")
    assert result.exit_code == 1
    assert "note    first is refuted: the outputs move by " in result.output
    assert result.output.splitlines()[-1].startswith("failed  3 widths: ")
    document = json.loads(run(*arguments, "--feed", "transpose/perm=[1, 0]", "--json").stdout)
    assert document["passed"] is False


LAYOUT = """
[variables."charlm/rnn/lstm_cell/kernel"]
axes = ["charlm/embedding + charlm/rnn/lstm_cell", "[i,j,f,o]*charlm/rnn/lstm_cell"]
[variables."charlm/rnn/lstm_cell/bias"]
axes = ["[i,j,f,o]*charlm/rnn/lstm_cell"]
[variables."charlm/softmax/kernel"]
axes = ["other", "charlm/softmax"]
"""


@slow
def test_a_layout_that_is_wrong_is_mended_as_it_is_told(lstm: str, tmp_path: Path) -> None:
    path = tmp_path / "layout.toml"
    path.write_text(LAYOUT)
    arguments = (lstm, "--widths", "--test", "--layout", str(path))
    result = run(*arguments)
    assert result.exit_code == 1
    at = LAYOUT.splitlines().index('axes = ["other", "charlm/softmax"]')
    assert "is left as it is" not in result.output
    assert result.output.count("bound together") == 1
    assert result.output.count("[variables.") == 1
    told = f'[variables."charlm/softmax/kernel"] axes = ["{CELL}", "charlm/softmax"]'
    assert f"note      {told}" in result.output.splitlines()
    lines = LAYOUT.splitlines()
    lines[at] = told.partition("] ")[2]
    path.write_text("\n".join(lines))
    result = run(*arguments)
    assert result.exit_code == 0
    assert "bound together" not in result.output


@slow
def test_members_are_listed_with_what_came_of_them(lstm: str) -> None:
    lines = run(lstm, "--widths", "--test", "-v").output.splitlines()
    start = lines.index(f"{CELL}  30, permutation")
    assert lines[start + 5].startswith("  tested      the outputs move by ")
    assert lines[start + 6 : start + 8] == [
        "  with        charlm/rnn/while/Exit_2",
        "  with        charlm/rnn/while/Exit_3",
    ]


@slow
def test_keys_of_json(lstm: str) -> None:
    result = run(lstm, "--widths", "--test", "--json", "--fetch", "charlm/softmax/BiasAdd")
    document = json.loads(result.stdout)
    assert list(document) == [
        *("widths", "variables", "opaque", "even"),
        *("inputs", "outputs", "tolerance", "passed", "notes"),
    ]
    (cell,) = (width for width in document["widths"] if width["name"] == CELL)
    assert cell["tested"].pop("error") < 1e-5
    assert cell["tested"].pop("control") > 0.1
    assert cell["tested"] == {
        "result": "tested",
        "with": [],
        "unread": [],
        "invariant": [],
        "but_for": [],
        "together": [],
        "why": "",
    }
    assert document["outputs"] == [{"name": "charlm/softmax/BiasAdd", "why": "chosen"}]
    assert document["passed"] is True


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--test",), "--test is about the widths; add --widths"),
        (("--widths", "--inputs", "x.npz"), "--inputs and --tolerance are about the test; add"),
        (("--widths", "--tolerance", "1"), "--inputs and --tolerance are about the test; add"),
        (("--widths", "--fetch", "x"), "--feed and --fetch are about the graph; add --graph, or"),
        (("--widths", "--test", "--tolerance", "-1"), "--tolerance must be 0 or more, got -1"),
    ],
)
def test_options_that_are_about_nothing(
    lstm: str, arguments: tuple[str, ...], message: str
) -> None:
    result = run(lstm, *arguments)
    assert result.exit_code == 2
    assert message in result.output
