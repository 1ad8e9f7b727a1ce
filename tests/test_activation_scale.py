"""Layers that are scaled to what they give on data."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pytest
from command_line import run as run_command
from conftest import DATA
from converter_plugins.activation_scale import ActivationScale
from converter_plugins.recalibrate_batchnorm import RecalibrateBatchnorm
from converter_plugins.rename import Rename
from converter_plugins.scale import Scale
from converter_plugins.truncate import Truncate
from measured_cases import case
from nets import MODELS, N, Net, hidden
from test_measure_cells import LENGTHS, STEPS, BlockCell
from test_session import dense
from test_session import made as saved

from converter import (
    Array,
    Checkpoint,
    ConverterError,
    InputError,
    PlanError,
    Strategy,
    UsageError,
    Variable,
    convert,
    open_checkpoint,
)
from converter.activations.asked import Question
from converter.activations.file import Key, Measured, write_measured
from converter.activations.measure import measure
from converter.activations.moments import Moments
from converter.pipeline import run
from converter.plan import make_plan
from converter.scaling.search import Search
from converter.target import parse_target

# --- the search ---


def searched(
    give: Callable[[Array], Array], target: float, *, is_proportional: bool = False
) -> tuple[Search, int]:
    """Return a search that has ended, and how often it measured."""
    search = Search(target, 1e-6, is_proportional=is_proportional)
    search.see(give(np.asarray(1.0)))
    for turn in range(20):
        if search.is_done.all():
            return search, turn
        search.tell(give(search.factors))
    raise AssertionError(search.factors)


@pytest.mark.parametrize("target", [0.01, 0.3, 1.0, 40.0])
def test_a_multiple_needs_one_measurement(target: float) -> None:
    slopes = np.array([0.2, 3.0, 700.0])
    search, turns = searched(lambda s: slopes * s, target, is_proportional=True)
    assert turns == 1
    assert search.factors == pytest.approx(target / slopes)


@pytest.mark.parametrize(
    "give",
    [
        lambda s: np.tanh(0.2 * s),
        lambda s: 1 / (1 + np.exp(-0.5 * s)),
        lambda s: np.sqrt(0.3 + s**2),
        lambda s: s**0.3,
        lambda s: np.minimum(s, 6) ** 3,
    ],
    ids=["tanh", "sigmoid", "with an offset", "slow", "fast, and bounded"],
)
def test_a_rising_function_is_followed_to_the_target(give: Callable[[Array], Array]) -> None:
    search, _ = searched(give, 0.7)
    assert float(give(search.factors)) == pytest.approx(0.7, rel=0.002)
    assert not search.is_stuck.any()


@pytest.mark.parametrize(
    ("give", "target", "nearest"),
    [
        (lambda s: np.tanh(0.5 * s), 1.5, 1.0),
        (lambda s: 1 / (1 + np.exp(-s * 1.5)), 0.3, 0.5),
    ],
)
def test_what_no_factor_brings_to_the_target_stays_as_it_is(
    give: Callable[[Array], Array], target: float, nearest: float
) -> None:
    search, turns = searched(give, target)
    assert search.is_stuck
    assert not search.is_off
    assert turns < 8
    assert search.factors == 1
    assert float(search.nearest) == pytest.approx(nearest, rel=0.05)


def test_units_that_are_not_there_in_the_end_are_given_up_alone() -> None:
    search = Search(1.0, 1e-6, is_proportional=False)
    search.see(np.array([0.5, 0.9]))
    search.tell(np.array([0.5, 0.9]))
    first = search.factors
    search.see(np.array([1.0, 0.95]))
    search.give_up()
    assert search.is_stuck.tolist() == [False, True]
    assert search.factors.tolist() == [first[0], 1]


def test_dead_units_stay_and_others_go_on() -> None:
    slopes = np.array([0.0, 2.0, 1e-8, 0.5])
    search, _ = searched(lambda s: slopes * s, 1.0)
    assert search.dead.tolist() == [True, False, True, False]
    assert search.factors == pytest.approx([1, 0.5, 1, 2], rel=0.003)


# --- with a file of statistics, which needs no TensorFlow ---


def relu() -> Net:
    net = Net()
    hidden("Relu")(net)
    return net


def of(rows: Array) -> Moments:
    moments = Moments.of(rows.shape[1])
    moments.add(rows)
    return moments


def given(net: Net) -> dict[str, Array]:
    """Return what the layers give."""
    v = net.values
    h = np.maximum(net.feeds["x"] @ v["h/w"] + v["h/b"], 0)
    return {"h": h, "out": h @ v["out/w"] + v["out/b"]}


def statistics(path: Path, rows: dict[str, Array]) -> Path:
    measured = Measured({(f"{n}/w", "produced"): of(r) for n, r in rows.items()}, {}, 1)
    return write_measured(path / "s.safetensors", measured)


def made(checkpoint: Checkpoint, strategy: Strategy) -> dict[str, Array]:
    return {v.name: v.read() for v in strategy.apply(checkpoint)}


def test_once_divides_each_layer_by_what_it_gave(tmp_path: Path) -> None:
    net = relu()
    rows = given(net)
    file = statistics(tmp_path, rows)
    strategy = ActivationScale(statistics=file, method="once", target=2.0)
    checkpoint = net.checkpoint()
    values = made(checkpoint, strategy)
    for name, found in rows.items():
        factor = 2 / np.abs(found).mean(0).mean()
        assert values[f"{name}/w"] == pytest.approx(net.values[f"{name}/w"] * factor)
        assert values[f"{name}/b"] == pytest.approx(net.values[f"{name}/b"] * factor)
    (note,) = strategy.notes(checkpoint)
    assert note.startswith("changes the outputs")
    found_lines = list(strategy.findings(checkpoint))
    mean = np.abs(rows["h"]).mean(0).mean()
    assert found_lines[0] == f"h/w: mean |a| {mean:.4g}, times {2 / mean:.4g}"


@pytest.mark.parametrize(("name", "is_bent"), [("tanh", True), ("relu", False)])
def test_what_no_factor_goes_through_is_told(tmp_path: Path, name: str, is_bent: bool) -> None:
    net = Net()
    MODELS[name](net)
    checkpoint = net.checkpoint()
    file = statistics(tmp_path, {"h": np.ones((2, N)), "out": np.ones((2, 3))})
    said = (
        "h/w: no factor goes through Tanh, so that dividing the weights before it does not divide "
        "what it gives; activation-scale's sequential method measures again"
    )
    for strategy in (ActivationScale(statistics=file, method="once"), Scale(statistics=file)):
        assert (said in strategy.notes(checkpoint)) == is_bent


@pytest.mark.parametrize("of_", ["mean-abs", "std"])
@pytest.mark.parametrize("per", ["variable", "unit"])
def test_paired_keeps_the_outputs(
    tmp_path: Path, of_: Literal["mean-abs", "std"], per: Literal["variable", "unit"]
) -> None:
    net = relu()
    rows = given(net)
    rows["h"][:, 1] = 0  # a dead unit
    file = statistics(tmp_path, rows)
    strategy = ActivationScale(statistics=file, method="paired", of=of_, per=per)
    checkpoint = net.checkpoint()
    values = made(checkpoint, strategy)
    assert net.run(values) == pytest.approx(net.run(net.values), rel=1e-9)
    units = np.abs(rows["h"]).mean(0) if of_ == "mean-abs" else rows["h"].std(0)
    whole = units.mean() if of_ == "mean-abs" else np.sqrt((units**2).mean())
    wanted = 1 / whole if per == "variable" else np.where(units > 0, 1 / np.maximum(units, 1e-9), 1)
    assert values["h/w"] / net.values["h/w"] == pytest.approx(np.broadcast_to(wanted, (4, N)))
    assert values["out/w"] / net.values["out/w"] == pytest.approx(
        np.broadcast_to(1 / np.broadcast_to(wanted, N)[:, None], (N, 3))
    )
    assert np.array_equal(values["out/b"], net.values["out/b"])
    notes = list(strategy.notes(checkpoint))
    assert notes[0].startswith("keeps the outputs")
    assert notes[1].startswith("the layer of out/w stays: out: ")
    (line,) = strategy.findings(checkpoint)
    assert line.endswith("; 1 of 6 units is below the floor 1e-06 and stays") == (per == "unit")


def test_nothing_is_found_before_a_value_is_asked_for(tmp_path: Path) -> None:
    net = relu()
    strategy = ActivationScale(statistics=statistics(tmp_path, given(net)), method="once")
    plan = make_plan(net.checkpoint(), [strategy])
    assert plan.findings() == ()
    plan.result["h/b"].read()
    assert [line.partition(": mean")[0] for line in plan.findings()] == [
        "activation-scale: h/w",
        "activation-scale: out/w",
    ]


@pytest.mark.slow
def test_the_model_is_run_before_values_are_written(tmp_path: Path) -> None:
    source, _, feeds = case("tf115_v2_convbn_ema", tmp_path)
    data = (tmp_path / "x.npz",)
    for strategy in (
        ActivationScale(data=data, feed=feeds, only=("conv1/kernel",)),
        RecalibrateBatchnorm(data=data, feed=feeds),
    ):
        plan = make_plan(open_checkpoint(source), [strategy])
        assert plan.findings() == ()
        plan.prepare()
        found = plan.findings()
        assert any(re.match(rf"{strategy.name}: [a-z0-9_/]+: .*(times|moved)", f) for f in found)
        # Values that nobody prepared are the same.
        other = make_plan(open_checkpoint(source), [strategy])
        for name, variable in plan.result.items():
            assert np.array_equal(variable.read(), other.result[name].read())
        assert plan.findings() == other.findings()


@pytest.mark.slow
def test_what_is_wrong_with_data_is_told_with_the_strategy(tmp_path: Path) -> None:
    source, _, feeds = case("tf115_v2_convbn_ema", tmp_path)
    for images, kind, said in (
        (np.full((2, 8, 8, 2), np.nan), InputError, "y.npz: images: 256 of 256 values are NaN"),
        (np.full((2, 8, 8, 2), np.inf), ConverterError, "are not finite"),
    ):
        np.savez(tmp_path / "y.npz", images=images)
        for strategy in (
            ActivationScale(data=(tmp_path / "y.npz",), feed=feeds),
            RecalibrateBatchnorm(data=(tmp_path / "y.npz",), feed=feeds),
        ):
            with pytest.raises(kind, match=rf"{strategy.name}: .*{said}") as error:
                convert(source, tmp_path / "out.safetensors", [strategy])
            assert type(error.value) is kind
            assert str(error.value).startswith(f"{strategy.name}: ")


@dataclass(frozen=True)
class Broken(Strategy):
    """Find nothing, and raise."""

    name: ClassVar[str] = "broken"

    def findings(self, checkpoint: Checkpoint) -> Iterator[str]:
        yield f"{len(checkpoint)} variables"
        raise RuntimeError("no more")


def test_what_findings_raise_is_told_with_the_strategy(tmp_path: Path) -> None:
    source = tmp_path / "a.safetensors"
    net = relu()
    target = parse_target(source, name="a", to=None, shard_size=None)
    run(make_plan(net.checkpoint(), [], target))
    with pytest.raises(ConverterError, match="broken: the strategy raised RuntimeError: no more"):
        convert(source, tmp_path / "b.safetensors", [Broken()])
    assert not (tmp_path / "b.safetensors").exists()


def test_only_some_layers(tmp_path: Path) -> None:
    net = relu()
    file = statistics(tmp_path, given(net))
    one = ActivationScale(statistics=file, method="once", only=("out/*",))
    values = made(net.checkpoint(), one)
    assert np.array_equal(values["h/w"], net.values["h/w"])
    assert not np.array_equal(values["out/w"], net.values["out/w"])
    with pytest.raises(PlanError, match=r"out/w: nothing can undo a factor .*: out: "):
        made(
            net.checkpoint(),
            ActivationScale(statistics=file, method="paired", only=("out/w",)),
        )
    with pytest.raises(UsageError, match="fits none of the 4 variables of layers"):
        made(net.checkpoint(), ActivationScale(statistics=file, method="once", only=("no",)))


def test_a_file_that_says_nothing_of_a_layer(tmp_path: Path) -> None:
    net = relu()
    file = statistics(tmp_path, {"h": given(net)["h"]})
    with pytest.raises(UsageError, match="it has no statistics of out/w with 3 units"):
        made(net.checkpoint(), ActivationScale(statistics=file, method="once"))


def test_a_kernel_that_is_in_two_layers_is_scaled_once(tmp_path: Path) -> None:
    net = Net()
    table = net.variable("table", 7, N)
    h = net.op("Gather", table, net.ids())
    net.op("MatMul", net.dense(h, "h", N, N), table, transpose_b=True)
    rng = np.random.default_rng(0)
    rows: dict[Key, Moments] = {("table", "produced"): of(rng.normal(size=(9, N)))}
    rows["h/w", "produced"] = of(rng.normal(size=(9, N)))
    file = write_measured(tmp_path / "s.safetensors", Measured(rows, {}, 1))
    strategy = ActivationScale(statistics=file, method="once")
    checkpoint = net.checkpoint()
    values = made(checkpoint, strategy)
    factor = 1 / rows["table", "produced"].mean_abs.mean()
    assert values["table"] == pytest.approx(net.values["table"] * factor)
    notes = list(strategy.notes(checkpoint))
    assert notes[1] == (
        "the layer of table (which makes table/vocabulary) stays: table is in another layer, too, "
        "which is scaled"
    )
    (line,) = (line for line in strategy.findings(checkpoint) if line.startswith("table"))
    assert line.startswith("table (which makes table): mean |a| ")
    with pytest.raises(
        PlanError, match=r"^table \(which makes table/vocabulary\): its layer cannot"
    ):
        made(net.checkpoint(), replace(strategy, only=("table",)))


def test_what_is_in_no_layer_is_named(tmp_path: Path) -> None:
    net = Net()
    x = net.op("Add", net.op("Tanh", net.x(N)), net.variable("places", 5, N))
    net.dense(x, "out", N, 3)
    file = statistics(tmp_path, {"out": net.rng.normal(size=(9, 3))})
    strategy = ActivationScale(statistics=file, method="once")
    checkpoint = net.checkpoint()
    assert np.array_equal(made(checkpoint, strategy)["places"], net.values["places"])
    why = "it is added to, or multiplied with, what is of no layer, and no kernel makes it"
    assert f"places stays: {why}" in list(strategy.notes(checkpoint))
    with pytest.raises(PlanError, match=f"^places: it cannot be scaled: {why}; choose"):
        made(net.checkpoint(), replace(strategy, only=("places",)))
    # A glob may fit it beside what is meant.
    checkpoint = net.checkpoint()
    strategy = replace(strategy, only=("*", "p*"))
    assert not np.array_equal(made(checkpoint, strategy)["out/w"], net.values["out/w"])
    assert sum("places stays" in note for note in strategy.notes(checkpoint)) == 1


def test_a_layer_of_one_unit_cannot_be_paired(tmp_path: Path) -> None:
    net = Net()
    h = net.op("Relu", net.dense(net.x(4), "h", 4, N))
    net.dense(net.op("Relu", net.dense(h, "one", N, 1)), "out", 1, 3)
    file = statistics(tmp_path, {"h": net.rng.normal(size=(9, N))})
    strategy = ActivationScale(statistics=file, method="paired")
    assert (
        "the layer of one/w stays: it has one unit, and what takes an axis of one entry is not "
        "followed"
    ) in list(strategy.notes(net.checkpoint()))


def test_what_the_graph_has_in_another_size_is_refused(tmp_path: Path) -> None:
    net = relu()
    file = statistics(tmp_path, given(net))
    with pytest.raises(PlanError, match=r"is \[.*4\], and \[.*6\] in the graph, which is to be"):
        make_plan(
            net.checkpoint(),
            [Truncate(resize={"h": 4}), ActivationScale(statistics=file, method="once")],
        )


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "data or statistics are needed"),
        ({"data": (Path("x.npz"),), "statistics": Path("s")}, "data or statistics are needed"),
        ({"statistics": Path("s")}, "sequential measures each layer anew"),
        ({"data": (Path("x.npz"),), "target": 0.0}, "target must be a positive number"),
        ({"data": (Path("x.npz"),), "floor": float("nan")}, "floor must be a positive number"),
        ({"data": (Path("x.npz"),), "batch_size": 0}, "batch_size must be positive"),
        (
            {"data": (Path("x.npz"),), "batch_size": 8, "whole_files": True},
            "whole_files runs each file at once, so batch_size means nothing; leave one out",
        ),
    ],
)
def test_options_that_cannot_be(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        ActivationScale(**options)


def test_data_that_are_not_there_are_refused_with_the_plan(tmp_path: Path) -> None:
    net = relu()
    missing = (tmp_path / "x.npz",)
    with pytest.raises(UsageError, match="there is no such file"):
        make_plan(net.checkpoint(), [ActivationScale(data=missing)])
    with pytest.raises(PlanError, match="it has no batch normalisation"):
        make_plan(net.checkpoint(), [RecalibrateBatchnorm(data=missing)])
    with pytest.raises(UsageError, match="data are needed"):
        RecalibrateBatchnorm()


def test_without_tensorflow_the_plan_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    np.savez(tmp_path / "x.npz", images=np.ones((3, 8, 8, 2), "f4"))
    checkpoint = open_checkpoint(DATA / "tf115_v2_convbn_ema" / "conv.ckpt-60")
    for strategy in (ActivationScale, RecalibrateBatchnorm):
        with pytest.raises(UsageError, match=r"pip install 'ckpt-converter\[tensorflow\]'"):
            make_plan(checkpoint, [strategy(data=(tmp_path / "x.npz",))])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arrays", "kind", "said"),
    [
        ({"images": np.ones((3, 8, 8, 3), "f4")}, UsageError, "takes \\[\\?, 8, 8, 2\\]"),
        ({"image": np.ones((3, 8, 8, 2), "f4")}, UsageError, "did you mean 'images'"),
        (
            {"images": np.full((99, 8, 8, 2), np.nan)},
            InputError,
            "images: 12672 of 12672 values are",
        ),
        ({"labels": np.ones(3, "i4")}, UsageError, "no values for images, which the model needs"),
    ],
    ids=["shape", "name", "nan", "missing"],
)
def test_bad_data_are_refused_with_the_plan(
    tmp_path: Path, arrays: dict[str, Any], kind: type[Exception], said: str
) -> None:
    pytest.importorskip("tensorflow")
    np.savez(tmp_path / "x.npz", **arrays)
    checkpoint = open_checkpoint(DATA / "tf115_v2_convbn_ema" / "conv.ckpt-60")
    for strategy in (ActivationScale, RecalibrateBatchnorm):
        with pytest.raises(kind, match=said):
            make_plan(checkpoint, [strategy(data=(tmp_path / "x.npz",))])


# --- on running models ---


REACHED = {
    "tf115_v2_convbn_ema": 1.0,
    "tf14_v2_charlm_lstm_ema": 0.8,
    "tf115_v2_bert_mini": 0.7,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", REACHED)
@pytest.mark.parametrize("per", ["variable", "unit"])
def test_sequential_brings_every_layer_to_the_target(
    name: str, per: Literal["variable", "unit"], tmp_path: Path
) -> None:
    """Convolutions with batch normalisations, the gates of a loop, attention: measured again."""
    source, batch, feeds = case(name, tmp_path)
    target = REACHED[name]
    strategy = ActivationScale(
        data=(tmp_path / "x.npz",), feed=feeds, target=target, per=per, batch_size=2
    )
    if "bert" in name and per == "unit":
        # Units that a few data saturate, or leave dead, have no such factor.
        strategy = ActivationScale(
            data=(tmp_path / "x.npz",), feed=feeds, target=target, per=per, only=("*LayerNorm*",)
        )
    result = convert(source, tmp_path / "out", [strategy], to="tf")
    told = [
        line.split(": ")[1].partition(" (which")[0]
        for line in result.found
        if ": mean |a| " in line
    ]
    assert len(told) == len(set(told)) >= 3
    after = measure(open_checkpoint(result.output), [batch], question=Question(feeds))
    for variable in told:
        found = after[variable, "produced"].mean_abs
        found = found if per == "unit" else found.mean(keepdims=True)
        assert found == pytest.approx(np.full(found.shape, target), rel=0.01), variable
    assert "no factor" not in " ".join(result.found)


@pytest.mark.slow
def test_a_loop_that_takes_what_it_makes_and_a_target_out_of_reach(tmp_path: Path) -> None:
    source, batch, feeds = case("tf012_v2_gru_seqlen", tmp_path)

    def found(target: float) -> tuple[dict[str, float], dict[str, str]]:
        strategy = ActivationScale(data=(tmp_path / "x.npz",), feed=feeds, target=target)
        result = convert(source, tmp_path / "out", [strategy], to="tf", force=True)
        measured = measure(open_checkpoint(result.output), [batch], question=Question(feeds))
        lines = dict(line.split(": ", 2)[1:] for line in result.found if ": mean |a| " in line)
        return {n: float(measured[n, "produced"].mean_abs.mean()) for n in lines}, lines

    reached, _ = found(0.6)
    assert list(reached.values()) == pytest.approx([0.6] * 3, rel=0.01)
    reached, lines = found(1.0)
    gates, candidate, head = reached
    assert (reached[gates], reached[head]) == pytest.approx((1.0, 1.0), rel=0.01)
    assert lines[candidate].endswith("); left as it was")
    assert (
        ", times 1; no factor was found that brings it to 1 (the nearest was 0.9"
        in (lines[candidate])
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("per", "bias", "told"),
    [
        ("variable", [-1, -2], "mean |a| is 1.5, and 0{}, below the floor 1e-06; it stays"),
        (
            "unit",
            [-1, 0],
            "mean |a| 3 -> 0.5, times 1; 1 of 2 units is below the floor 1e-06{} and stays",
        ),
    ],
)
def test_what_dies_behind_layers_that_are_scaled_is_told(
    per: Literal["variable", "unit"], bias: list[int], told: str, tmp_path: Path
) -> None:
    tf = pytest.importorskip("tensorflow").compat.v1
    with tf.Graph().as_default(), tf.Session() as session:
        x = tf.placeholder(tf.float32, [None, 2], "x")
        h = tf.nn.relu(tf.matmul(x, tf.get_variable("h", initializer=np.eye(2, dtype="f4"))))
        kernel = tf.get_variable("out/w", initializer=np.eye(2, dtype="f4"))
        tf.nn.relu(tf.matmul(h, kernel) + tf.get_variable("b", initializer=np.array(bias, "f4")))
        session.run(tf.global_variables_initializer())
        tf.train.Saver().save(session, str(tmp_path / "model.ckpt"))
    np.savez(tmp_path / "x.npz", x=np.full((4, 2), 3, "f4"))
    strategy = ActivationScale(data=(tmp_path / "x.npz",), target=0.5, per=per)
    result = convert(tmp_path / "model.ckpt", tmp_path / "out", [strategy], to="tf")
    line = f"activation-scale: out/w: {told.format(' behind layers that were scaled')}"
    assert result.found[-1] == line


@pytest.mark.slow
@pytest.mark.parametrize("method", ["sequential", "once"])
@pytest.mark.parametrize("length", [0, -1])
def test_empty_sequences_are_told(
    method: Literal["sequential", "once"], length: int, tmp_path: Path
) -> None:
    source, batch, _ = case("tf012_v2_gru_seqlen", tmp_path)
    lengths = np.full_like(batch["lengths:0"], length)
    arrays: dict[str, Any] = {**batch, "lengths:0": lengths}
    np.savez(tmp_path / "x.npz", **arrays)
    strategy = ActivationScale(data=(tmp_path / "x.npz",), method=method)
    result = convert(source, tmp_path / "out.safetensors", [strategy])
    told = "all sequences of the data are empty; it stays (give data with longer ones)"
    assert [line.split(": ", 2)[1:] for line in result.found if told in line] == [
        ["RNN/GRUCell/Gates/Linear/Matrix", told],
        ["RNN/GRUCell/Candidate/Linear/Matrix", told],
    ]
    # What is not run at all has no other data, but another part of the graph.
    strategy = ActivationScale(data=(tmp_path / "x.npz",), method=method, fetch=("transpose",))
    result = convert(source, tmp_path / "out2.safetensors", [strategy])
    assert "nothing of it was run, or some of its units more " in " ".join(result.found)
    assert told not in " ".join(result.found)


@pytest.mark.slow
def test_what_stays_is_told_to_give_something_else_behind_what_was_scaled(tmp_path: Path) -> None:
    tf = pytest.importorskip("tensorflow").compat.v1
    x = np.random.default_rng(0).standard_normal((50, 6)).astype("f4")

    def build() -> None:
        h = dense(tf, tf.placeholder(tf.float32, [None, 6], "x"), 5, "a")
        tf.identity(tf.tanh(dense(tf, h, 4, "b")), "out")

    (tmp_path / "m").mkdir()
    (out,) = saved(tf, tmp_path / "m", build, feeds={"x": x}, fetches=["out"]).values()
    np.savez(tmp_path / "x.npz", x=x)
    strategy = ActivationScale(data=(tmp_path / "x.npz",), target=1.5)
    result = convert(tmp_path / "m", tmp_path / "out", [strategy], to="tf")
    measured = measure(open_checkpoint(result.output), [{"x": x}])
    after = measured["b/w", "produced"].mean_abs.mean()
    before = np.abs(out).mean()
    assert abs(after / before - 1) > 0.02
    (line,) = (line for line in result.found if ": b/w: " in line)
    assert f": mean |a| {before:.4g} -> {after:.4g}, times 1; no factor" in line
    told = f"); left as it was, and gives {after:.4g} behind layers that were scaled"
    assert line.endswith(told)


@pytest.mark.slow
def test_noise_is_the_same_whenever_the_model_is_run(tmp_path: Path) -> None:
    """Else it would be taken for something that the factors made."""
    tf = pytest.importorskip("tensorflow").compat.v1
    x = np.random.default_rng(0).standard_normal((40, 6)).astype("f4")

    def build() -> None:
        h = dense(tf, tf.placeholder(tf.float32, [None, 6], "x"), 3, "a")
        h = tf.nn.relu(dense(tf, h + tf.exp(h) * tf.random_normal(tf.shape(h)), 5, "b"))
        tf.identity(dense(tf, h, 2, "c"), "out")

    (tmp_path / "m").mkdir()
    saved(tf, tmp_path / "m", build, feeds={"x": x}, fetches=["out"])
    np.savez(tmp_path / "x.npz", x=x)
    strategy = ActivationScale(data=(tmp_path / "x.npz",), target=2.0, batch_size=8)
    result = convert(tmp_path / "m", tmp_path / "out", [strategy], to="tf")
    batches = [{"x": x[first : first + 8]} for first in range(0, 40, 8)]
    found = measure(open_checkpoint(result.output), batches)
    again = measure(open_checkpoint(result.output), batches)
    for variable in ("a/w", "b/w", "c/w"):
        mean = found[variable, "produced"].mean_abs.mean()
        assert mean == pytest.approx(2, rel=0.01)
        assert mean == again[variable, "produced"].mean_abs.mean()


@pytest.mark.slow
def test_paired_on_a_running_model_under_other_names(tmp_path: Path) -> None:
    source, batch, feeds = case("tf115_v2_convbn_ema", tmp_path)
    data = (tmp_path / "x.npz",)
    rename = Rename(rename={r"conv1/(.*)": r"first/\1"})
    scale = ActivationScale(data=data, feed=feeds, method="paired", per="unit")
    result = convert(source, tmp_path / "out", [rename, scale], to="tf")
    assert any(line.startswith("activation-scale: first/kernel: ") for line in result.found)
    question = Question(feeds)
    before = measure(open_checkpoint(source), [batch], question=question)
    after = measure(open_checkpoint(result.output), [batch], question=question)
    found = after["first/kernel", "produced"].mean_abs
    assert found == pytest.approx(np.ones(found.shape), rel=1e-4)
    same = before["logits/kernel", "produced"]
    assert after["logits/kernel", "produced"].mean == pytest.approx(same.mean, rel=1e-4, abs=1e-5)


@pytest.mark.slow
def test_data_that_do_not_fit_leave_no_output(tmp_path: Path) -> None:
    source, _, _ = case("tf115_v2_convbn_ema", tmp_path)
    np.savez(tmp_path / "y.npz", pictures=np.zeros((2, 8, 8, 2), "f4"))
    for strategy in (
        ActivationScale(data=(tmp_path / "y.npz",)),
        RecalibrateBatchnorm(data=(tmp_path / "y.npz",)),
    ):
        with pytest.raises(UsageError, match=r"y\.npz: .*pictures"):
            convert(source, tmp_path / "out.safetensors", [strategy])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.npz", "y.npz"]


@pytest.mark.slow
def test_what_was_found_is_printed(tmp_path: Path) -> None:
    source, _, _ = case("tf115_v2_convbn_ema", tmp_path)
    command = ["ckpt", str(source), "--plugin", "activation-scale", "--activation-scale-data"]
    command += [str(tmp_path / "x.npz"), "--activation-scale-only", "conv*"]
    shown = run_command(*command, "-o", str(tmp_path / "a.safetensors"))
    assert "found   activation-scale: conv1/kernel: mean |a| 0.3352 -> 1, times 2.984" in (
        shown.output
    )
    shown = run_command(*command, "-o", str(tmp_path / "b.safetensors"), "--json")
    report = json.loads(shown.stdout)
    found = [line for line in report["result"]["found"] if ": mean |a| " in line]
    assert [line.split(": ")[1] for line in found] == [
        "conv1/kernel",
        "conv2/kernel",
    ]


# --- names ---


def test_variables_that_follow_the_graph_by_their_sources() -> None:
    """What was made of several variables is not the graph's any more."""
    from converter.scaling.running import Named

    source = Checkpoint(Variable.from_array(n, np.ones(2)) for n in ("a", "b"))
    opened = Checkpoint(
        [Variable(v.name, v.dtype, v.shape, v.load, (v.name,)) for v in source.values()]
    )
    swapped = opened.derive([opened["a"].rename("b"), opened["b"].rename("a")])
    named = Named(swapped)
    assert named.called("a") == "b"
    assert [v.name for v in named.renamed(named.checkpoint.values())] == ["b", "a"]
    twice = opened.derive([opened["a"], opened["a"].rename("c")])
    with pytest.raises(PlanError, match="a and c are made of a in the graph"):
        Named(twice)


@pytest.mark.slow
def test_kernels_of_einsum_are_scaled_but_those_of_several_axes(tmp_path: Path) -> None:
    tf = pytest.importorskip("tensorflow").compat.v1

    def einsum(equation: str, *given: Any) -> Any:
        return tf.raw_ops.Einsum(inputs=given, equation=equation)

    def build() -> None:
        x = tf.placeholder(tf.float32, [None, 5, 6], "x")
        kernels = {"a": [6, 8], "q": [8, 2, 3], "o": [2, 3, 7], "turned": [4, 7]}
        w = {name: tf.get_variable(f"{name}/kernel", shape) for name, shape in kernels.items()}
        bias = tf.get_variable("a/bias", [8], initializer=tf.ones_initializer())
        rows = tf.nn.relu(einsum("btd,df->btf", x, w["a"]) + bias)
        heads = tf.nn.relu(einsum("abc,cde->abde", rows, w["q"]))
        out = einsum("abcd,cde->abe", heads, w["o"])
        tf.nn.relu(einsum("ed,abd->abe", w["turned"], out), name="out")

    batch: dict[str, Any] = {"x": np.random.default_rng(0).random((40, 5, 6), "f4") - 0.5}
    (tmp_path / "in").mkdir()
    saved(tf, tmp_path / "in", build, feeds=batch, fetches=["out"])
    np.savez(tmp_path / "x.npz", **batch)
    result = convert(
        tmp_path / "in", tmp_path / "out", [ActivationScale(data=(tmp_path / "x.npz",))], to="tf"
    )
    why = "it makes units of several axes, q, q_1"
    assert f"activation-scale: the layer of q/kernel stays: {why}" in result.plan.notes
    after = measure(open_checkpoint(result.output), [batch])
    for name in ("a", "o", "turned"):
        mean_abs = after[f"{name}/kernel", "produced"].mean_abs.mean()
        assert mean_abs == pytest.approx(1, rel=0.01)
    only = ActivationScale(data=(tmp_path / "x.npz",), only=("q/*",))
    with pytest.raises(PlanError, match=rf"q/kernel: .* scaled: {why}; choose others .*, or mult"):
        make_plan(open_checkpoint(tmp_path / "in"), [only])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "given", "kernel", "of"),
    [
        ("tf115_v2_lstmblockfused", "x_time_major", "lstm_fused_cell/kernel", "mean-abs"),
        ("tf115_v2_lstmblockfused", "x_time_major", "lstm_fused_cell/kernel", "std"),
        # Each of its gates is in a tensor of its own.
        ("tf115_v2_keras_rnn", "x", "first/kernel", "mean-abs"),
        ("tf115_v2_keras_rnn", "x", "first/kernel", "std"),
    ],
)
@pytest.mark.parametrize("per", ["variable", "unit"])
def test_gates_that_are_no_one_tensor_of_the_graph(
    tmp_path: Path,
    name: str,
    given: str,
    kernel: str,
    of: Literal["mean-abs", "std"],
    per: Literal["variable", "unit"],
) -> None:
    pytest.importorskip("tensorflow")
    batch = {given: np.load(DATA / name / "io.npz")["in_x"]}
    np.savez(tmp_path / "x.npz", **batch)
    data = (tmp_path / "x.npz",)
    strategy = ActivationScale(
        data=data, only=(kernel,), of=of, per=per, target=0.7, whole_files=True
    )
    result = convert(DATA / name, tmp_path / "out", [strategy], to="tf")
    after = measure(open_checkpoint(result.output), [batch])[kernel, "produced"]
    if of == "std":
        found = after.std if per == "unit" else np.sqrt((after.std**2).mean())
    else:
        found = after.mean_abs if per == "unit" else after.mean_abs.mean()
    assert np.abs(found / 0.7 - 1).max() <= 0.01


@pytest.mark.slow
@pytest.mark.parametrize("per", ["variable", "unit"])
def test_a_cell_that_is_one_op_with_two_kernels(
    tmp_path: Path, per: Literal["variable", "unit"]
) -> None:
    tf = pytest.importorskip("tensorflow").compat.v1

    def build() -> None:
        x = tf.placeholder(tf.float32, [7, 6, 4], "x")
        said = tf.placeholder(tf.int32, [6], "lengths")
        steps, _ = tf.nn.dynamic_rnn(
            BlockCell(tf, "GRUBlockCell"), x, said, dtype=tf.float32, time_major=True
        )
        tf.identity(steps, "out")

    batch = {"x": STEPS, "lengths": LENGTHS}
    (tmp_path / "in").mkdir()
    saved(tf, tmp_path / "in", build, feeds=batch, fetches=["out"])
    np.savez(tmp_path / "x.npz", **batch)  # type: ignore[arg-type]
    strategy = ActivationScale(data=(tmp_path / "x.npz",), per=per, target=0.5, whole_files=True)
    result = convert(tmp_path / "in", tmp_path / "out", [strategy], to="tf")
    after = measure(open_checkpoint(result.output), [batch])
    produced = {name: of.mean_abs for (name, side), of in after.items() if side == "produced"}
    assert [name[-6:] for name in sorted(produced)] == ["date/b", "date/w", "ates/b", "ates/w"]
    for mean_abs in produced.values():
        found = mean_abs if per == "unit" else mean_abs.mean()
        assert np.abs(found / 0.5 - 1).max() <= 0.01


@pytest.mark.slow
def test_gates_of_which_some_are_in_another_layer(tmp_path: Path) -> None:
    pytest.importorskip("tensorflow")
    path = DATA / "tf115_v2_keras_rnn"
    np.savez(tmp_path / "x.npz", x=np.load(path / "io.npz")["in_x"])
    strategy = ActivationScale(data=(tmp_path / "x.npz",), only=("second/kernel",))
    why = "only some of its units are in second/while/add and second/while/add_1"
    with pytest.raises(PlanError, match=f"^second/kernel .* scaled: {why}; choose others"):
        make_plan(open_checkpoint(path), [strategy])


@pytest.mark.slow
def test_a_layer_of_which_some_units_are_made_more_often_than_others(tmp_path: Path) -> None:
    tf = pytest.importorskip("tensorflow").compat.v1

    def build() -> None:
        x = tf.placeholder(tf.float32, [None, 5, 3], "x")
        kernel = tf.get_variable("kernel", [3, 8])
        first, second = kernel[:, :4], kernel[:, 4:]
        often = sum(tf.nn.relu(tf.matmul(x[:, step], first)) for step in (0, 1))
        once = tf.nn.relu(tf.matmul(x[:, 2], second))
        tf.matmul(tf.concat([often, once], 1), tf.get_variable("head", [8, 2]), name="out")

    batch: dict[str, Any] = {"x": np.random.default_rng(0).random((40, 5, 3), "f4")}
    (tmp_path / "in").mkdir()
    saved(tf, tmp_path / "in", build, feeds=batch, fetches=["out"])
    np.savez(tmp_path / "x.npz", **batch)
    strategy = ActivationScale(data=(tmp_path / "x.npz",))
    result = convert(tmp_path / "in", tmp_path / "out", [strategy], to="tf")
    told = "kernel: nothing of it was run, or some of its units more often than others; it stays"
    assert told in result.found[0]


@pytest.mark.slow
@pytest.mark.parametrize("per", ["variable", "unit"])
def test_heads_whose_bias_is_added_in_two_axes(
    tmp_path: Path, per: Literal["variable", "unit"]
) -> None:
    keras = pytest.importorskip("keras")
    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    given = keras.Input((8, 12), name="x")
    out = keras.layers.MultiHeadAttention(3, 4, name="heads")(given, given)
    model = keras.Model(given, keras.layers.Dense(2, name="head")(out))
    for weight in model.weights:
        weight.assign(rng.normal(size=weight.shape))
    model.export(str(tmp_path / "in"), verbose=False)
    x = rng.normal(size=(70, 8, 12)).astype("f4")
    np.savez(tmp_path / "x.npz", x=x)
    found = measure(open_checkpoint(tmp_path / "in"), [{"x": x}])
    strategy = ActivationScale(data=(tmp_path / "x.npz",), per=per)
    result = convert(tmp_path / "in", tmp_path / "out.safetensors", [strategy])
    old, new = open_checkpoint(tmp_path / "in"), open_checkpoint(result.output)
    for name in ("query", "key", "value"):
        kernel, bias = f"heads/{name}/kernel", f"heads/{name}/bias"
        made, scaled = (
            np.abs(np.einsum("bti,ihd->bthd", x, of[kernel].read()) + of[bias].read())
            for of in (old, new)
        )
        for variable in (kernel, bias):
            mean_abs = found[variable, "produced"].mean_abs
            assert mean_abs == pytest.approx(made.mean((0, 1)).ravel(), rel=1e-5)
        units = scaled.mean((0, 1))
        assert (units if per == "unit" else units.mean()) == pytest.approx(1, rel=0.01)
