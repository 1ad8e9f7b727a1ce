"""What a proof says of outputs that change: figures, other models of the size, losses, learning."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from conftest import Case, case
from converter_plugins.duplicate import Duplicate
from converter_plugins.pad import Pad
from converter_plugins.rename import Rename
from converter_plugins.select import Select
from converter_plugins.truncate import Truncate
from model_maker import Maker, N, save

from converter import Checkpoint, Strategy, convert, open_checkpoint
from converter.baselines import blind, drawn
from converter.cli import cli
from converter.formats.messages import message
from converter.initializers import GlorotUniform
from converter.plan import Plan, make_plan
from converter.proof import Proof, Question, prove_plan
from converter.structure.infer import structure_of
from converter.variable import Array

CHARLM = case("tf14_v2_charlm_lstm_ema")
CELL = {"charlm/rnn/lstm_cell": 20}
KERNEL, BIAS = "charlm/rnn/lstm_cell/kernel", "charlm/rnn/lstm_cell/bias"
LOGITS = "charlm/softmax/BiasAdd"


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, list(map(str, arguments)))


def judged(source: Checkpoint, strategy: Strategy, **question: Any) -> tuple[Plan, Proof]:
    plan = make_plan(source, [strategy])
    return plan, prove_plan(plan, None, Question(**question), is_judged=True)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """Two lines of what the model was trained on, with the characters that come next."""
    return written(tmp_path / "text.npz", "x", "y")


def written(path: Path, *names: str) -> Path:
    record = CHARLM.record
    ids = np.array([record["vocabulary"].index(c) for c in record["text"] * 2][:49], "i4")
    arrays: dict[str, Any] = {"x": ids[:-1].reshape(2, 24), "y": ids[1:].reshape(2, 24)}
    np.savez(path, **{name: arrays[name] for name in names})
    return path


def test_other_models_have_the_sizes_and_their_own_values() -> None:
    source = open_checkpoint(CHARLM.path)
    plan = make_plan(source, [Select(resize=CELL)])
    assert plan.structure is not None
    cut = blind(plan, plan.structure)
    old = source[KERNEL].read()
    assert np.array_equal(cut.variables[KERNEL].read(), old[:28, :80])
    assert np.array_equal(cut.variables[BIAS].read(), source[BIAS].read()[:80])
    # Chance is that of the strategy that draws, so that each of the three models can be made.
    for seed in (0, 1):
        chosen = make_plan(source, [Select(resize=CELL, by="random", seed=seed)]).result
        other = drawn(plan, plan.structure, seed).variables
        assert np.array_equal(other[KERNEL].read(), chosen[KERNEL].read())
        assert np.array_equal(other[BIAS].read(), chosen[BIAS].read())
        assert not np.array_equal(other[BIAS].read(), cut.variables[BIAS].read())


def test_words_that_are_looked_up_are_not_drawn() -> None:
    source = open_checkpoint(CHARLM.path)
    words = next(w for w in structure_of(source).widths.values() if "lookup" in dict(w.touches))
    plan = make_plan(source, [Truncate(resize={words.name: 10})])
    assert plan.structure is not None
    other = drawn(plan, plan.structure, 0).variables["charlm/embedding"].read()
    assert np.array_equal(other, source["charlm/embedding"].read()[:10])


@pytest.mark.slow
def test_figures_are_those_of_the_outputs(tmp_path: Path, text: Path) -> None:
    pytest.importorskip("tensorflow")
    out = tmp_path / "out"
    cut = ["--plugin", "truncate", "--resize", "lstm_cell=20", "--to", "tf", "-o", str(out)]
    asked = ["--prove", "--tolerance", "2", "--inputs", str(text), "--json"]
    outcome = run("ckpt", CHARLM.path, *cut, *asked)
    assert outcome.exit_code == 0, outcome.output
    proof = json.loads(outcome.stdout)["proof"]
    before, after = (logits(path, text) for path in (CHARLM.path, str(out)))
    found = {o["name"]: o for o in proof["outputs"]}[LOGITS]
    error = np.linalg.norm(before - after) / np.linalg.norm(before)
    assert found["relative_error"] == pytest.approx(error, rel=1e-4)
    cosine = (before * after).sum() / np.linalg.norm(before) / np.linalg.norm(after)
    assert found["cosine"] == pytest.approx(cosine, rel=1e-4)
    assert found["agreement"] == (before.argmax(-1) == after.argmax(-1)).mean()
    p, q = likely(before), likely(after)
    assert found["divergence"] == pytest.approx((np.exp(p) * (p - q)).sum(-1).mean(), rel=1e-3)
    with np.load(text) as given:
        wanted = given["y"][..., None]
    (loss,) = proof["losses"]
    for side, of in (("before", p), ("after", q)):
        mean = -np.take_along_axis(of, wanted, -1).mean()
        assert loss[side] == pytest.approx(mean, rel=1e-4)
    # What knows no gates loses far more than what does, and all of it is told.
    blindly, random = proof["baselines"]
    assert (blindly["kind"], random["kind"]) == ("blind", "random")
    cut_figures = {o["name"]: o for o in blindly["outputs"]}[LOGITS]
    assert cut_figures["relative_error"] > 1.5 * found["relative_error"]
    assert cut_figures["divergence"] > 3 * found["divergence"]
    assert blindly["losses"][0]["loss"] > loss["after"] + 1
    drawn_figures = {o["name"]: o for o in random["outputs"]}[LOGITS]
    assert found["divergence"] / 3 < drawn_figures["divergence"] < cut_figures["divergence"]


def logits(path: str, inputs: Path) -> Array:
    """Return the logits of a character model, computed in numpy."""
    model = open_checkpoint(path)
    table, kernel, bias, output, shift = (
        model[f"charlm/{name}"].read().astype(np.float64)
        for name in (
            *("embedding", "rnn/lstm_cell/kernel", "rnn/lstm_cell/bias"),
            *("softmax/kernel", "softmax/bias"),
        )
    )
    with np.load(inputs) as given:
        ids = given["x"]
    hidden = cell = np.zeros((len(ids), len(bias) // 4))
    steps = []
    for now in ids.T:
        joined = np.concatenate([table[now], hidden], axis=1) @ kernel + bias
        i, j, f, o = np.split(joined, 4, axis=1)
        cell = cell / (1 + np.exp(-f - 1)) + np.tanh(j) / (1 + np.exp(-i))
        hidden = np.tanh(cell) / (1 + np.exp(-o))
        steps.append(hidden @ output + shift)
    found: Array = np.stack(steps, axis=1)
    return found


def likely(scores: Array) -> Array:
    found: Array = scores - np.log(np.exp(scores).sum(-1, keepdims=True))
    return found


RECURRENT = [
    ("tf012_v2_lstm_peephole", "pred"),
    ("tf10_v2_multilstm_adagrad", "logits"),
    ("tf115_v2_lstmblockfused", "head/BiasAdd"),
    ("tf14_v2_bidirectional", "tags/BiasAdd"),
    ("tf14_v2_layernorm_lstm", "head/BiasAdd"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "output"), RECURRENT)
def test_gates_that_are_cut_blindly_are_lost(name: str, output: str) -> None:
    pytest.importorskip("tensorflow")
    source = open_checkpoint(case(name).path)
    cells = {
        w.name: w.size * 2 // 3
        for w in structure_of(source).widths.values()
        if w.resizable and set(w.produced_by) & set(w.consumed_by)
    }
    plan, proof = judged(source, Truncate(resize=cells))
    assert not plan.is_exact
    blindly, random = (baseline.outputs[output] for baseline in proof.baselines)
    kept = next(o.likeness for o in proof.outputs if o.name == output)
    for figures in (blindly, random, kept):
        assert figures.relative_error is not None
        assert figures.cosine is not None
    assert kept.cosine is not None
    assert blindly.cosine is not None
    assert random.cosine is not None
    assert blindly.cosine < min(kept.cosine, random.cosine) - 0.2


@pytest.mark.slow
def test_outputs_of_fewer_units_are_compared_unit_by_unit() -> None:
    pytest.importorskip("tensorflow")
    source = open_checkpoint(CHARLM.path)
    _, proof = judged(source, Select(resize=CELL))
    hidden = next(o for o in proof.outputs if o.name == "charlm/rnn/while/Exit_3")
    assert hidden.shape[1] == 20
    assert hidden.likeness.cosine is not None
    assert hidden.likeness.cosine > 0.8
    blindly = proof.baselines[0].outputs[hidden.name]
    assert blindly.cosine is not None
    assert blindly.cosine < 0.5


@pytest.mark.slow
def test_what_stays_is_compared_with_nothing_else(tmp_path: Path) -> None:
    pytest.importorskip("tensorflow")
    # Losses that nobody asked for are not missed in what is exact.
    output = tmp_path / "copy.safetensors"
    convert(CHARLM.path, output)
    outcome = run("prove", CHARLM.path, output, "--json")
    document = json.loads(outcome.stdout)
    for found in document["outputs"]:
        assert (found["relative_error"], found["cosine"], found["agreement"]) == (0, 1, 1)
    assert [o["divergence"] for o in document["outputs"]] == [None, None, 0]
    assert document["losses"] == []
    assert document.keys().isdisjoint({"baselines", "learning"})
    assert not any("loss" in note for note in document["notes"])


@pytest.mark.slow
def test_figures_are_shown_of_what_fails_too(tmp_path: Path, text: Path) -> None:
    pytest.importorskip("tensorflow")
    cut = ["--plugin", "truncate", "--resize", "lstm_cell=20"]
    outcome = run("ckpt", CHARLM.path, *cut, "--prove", "-o", tmp_path / "out", "--to", "tf")
    assert outcome.exit_code == 1
    assert not (tmp_path / "out").exists()
    lines = outcome.stdout.splitlines()
    place = next(n for n, line in enumerate(lines) if line.startswith("likeness"))
    assert lines[place].split() == [
        "likeness",
        "relative",
        "error",
        "cosine",
        "argmax",
        "divergence",
    ]
    below = lines[place + 1 :]
    row = next(n for n, line in enumerate(below) if line.startswith(LOGITS))
    assert below[row + 1].startswith("  cut blindly ")
    assert below[row + 2].startswith("  random units ")
    assert len(below[row].split()) == 5
    # Drawn labels would say nothing of the loss.
    (note,) = [line for line in lines if "the loss Mean is not compared" in line]
    assert "give x, y (--inputs or --feed)" in note
    # Labels alone are not enough, and all data are.
    only = written(tmp_path / "only.npz", "x")
    outcome = run("ckpt", CHARLM.path, *cut, "--prove", "--inputs", only)
    assert "give y (--inputs or --feed)" in outcome.stdout
    outcome = run("ckpt", CHARLM.path, *cut, "--prove", "--inputs", text)
    (loss,) = [line for line in outcome.stdout.splitlines() if line.startswith("loss ")]
    assert "; cut blindly " in loss
    assert "; random units " in loss


LEARNING = [
    "tf012_v2_gru_seqlen",
    "tf10_v2_gatewise_lstm",
    "tf10_v2_partitioned",
    "tf115_v2_keras_rnn",
    "tf14_v2_charlm_lstm_ema",
]


@pytest.mark.slow
@pytest.mark.parametrize("name", LEARNING)
def test_what_the_plan_calls_dead_has_no_gradient(name: str) -> None:
    pytest.importorskip("tensorflow")
    source = open_checkpoint(case(name).path)
    for width in structure_of(source).widths.values():
        for fill in (None, GlorotUniform()) if width.resizable else ():
            sizes = {width.name: width.size + 3}
            strategy = Pad(resize=sizes) if fill is None else Pad(resize=sizes, fill=fill)
            plan, proof = judged(source, strategy)
            is_dead = any(w.dead is not None for r in plan.resized for w in r.widths)
            assert proof.learning is not None, proof.notes
            _, entries, first, second = proof.learning.total
            if is_dead:
                assert (first, second) == (0, 0), width.name
            elif entries:
                assert second > 0.9 * entries, width.name


@pytest.mark.slow
def test_new_units_take_a_step_to_learn(text: Path) -> None:
    pytest.importorskip("tensorflow")
    source = open_checkpoint(CHARLM.path)
    size = {"charlm/rnn/lstm_cell": 45}
    _, proof = judged(source, Pad(resize=size, fill=GlorotUniform()), inputs=text)
    assert proof.learning is not None
    # All that the new columns of 15 units have, what takes them, and what they take of another.
    new = 15 * 4 * (8 + 30 + 15) + 15 * 4 * 30 + 15 * 4 + 15 * 14
    assert proof.learning.total.entries == new
    # What takes new units is zero, so that at first only that is moved, and not what makes them.
    by_name = {found.name: found for found in proof.learning.variables}
    assert by_name["charlm/softmax/kernel"][1:] == (15 * 14, 15 * 14, 15 * 14)
    assert by_name[BIAS][1:] == (15 * 4, 0, 15 * 4)
    assert proof.learning.total.second == new
    assert not proof.learning.is_drawn
    # Copies have gradients at once.
    _, proof = judged(source, Duplicate(resize=size))
    assert proof.learning is not None
    assert proof.learning.is_drawn
    assert proof.learning.total.entries == proof.learning.total.first == new


@pytest.mark.slow
def test_a_graph_without_known_optimizer_tells_gradients_by_its_loss() -> None:
    pytest.importorskip("tensorflow")
    one: Case = case("tf115_v2_bert_mini")
    source = open_checkpoint(one.path)
    width = next(
        w
        for w in structure_of(source).widths.values()
        if "bert/encoder/layer_0/intermediate/dense/kernel" in w.produced_by and w.resizable
    )
    grown = {width.name: width.size + 4}
    _, proof = judged(source, Pad(resize=grown, fill=GlorotUniform()))
    assert proof.learning is not None, proof.notes
    by_name = {found.name.rpartition("layer_0/")[2]: found for found in proof.learning.variables}
    made = by_name["intermediate/dense/kernel"]
    taken = by_name["output/dense/kernel"]
    assert (made.first, made.second) == (0, made.entries)
    assert (taken.first, taken.second) == (taken.entries, taken.entries)


@pytest.mark.slow
def test_what_an_unknown_optimizer_trains_in_a_loop_is_not_known(tmp_path: Path) -> None:
    pytest.importorskip("tensorflow")
    shutil.copytree(CHARLM.directory, tmp_path / "copy")
    (path,) = (tmp_path / "copy").glob("*.meta")
    meta = message("MetaGraphDef").FromString(path.read_bytes())
    for node in meta.graph_def.node:
        if node.op in (b"ApplyAdam", b"ScatterAdd"):
            node.op = b"Mine"
    path.write_bytes(meta.SerializeToString())
    source = open_checkpoint(path.with_suffix(""))
    _, proof = judged(source, Pad(resize={"charlm/rnn/lstm_cell": 45}))
    assert proof.passed
    assert proof.learning is None
    (note,) = [note for note in proof.notes if note.startswith("whether new entries learn")]
    assert note.endswith("Mean is computed in a loop, whose gradients are not in it")


@pytest.mark.slow
def test_steps_of_several_strategies_are_judged_together() -> None:
    pytest.importorskip("tensorflow")
    source = open_checkpoint(CHARLM.path)
    steps: list[Strategy] = [
        Truncate(resize=CELL),
        Rename(rename={"charlm/(.*)": r"lm/\1"}),
        Pad(resize={"8": 12}, fill=GlorotUniform()),
    ]
    plan = make_plan(source, steps)
    proof = prove_plan(plan, None, Question(fetches=(LOGITS,)), is_judged=True)
    # By the names that the source has: four more features of 14 words, taken by 4 gates of 20.
    assert proof.learning is not None
    assert [found[:2] for found in proof.learning.variables] == [
        ("charlm/embedding", 14 * 4),
        (KERNEL, 4 * 4 * 20),
    ]
    assert proof.learning.total.second == 14 * 4 + 4 * 4 * 20
    # What is added changes nothing, so that the others differ by their units alone.
    alone = prove_plan(make_plan(source, steps[:1]), None, Question(fetches=(LOGITS,)))
    assert proof.outputs[0].likeness.divergence == pytest.approx(
        alone.outputs[0].likeness.divergence, rel=1e-4
    )
    assert [baseline.kind for baseline in proof.baselines] == ["blind", "random"]


@pytest.mark.slow
def test_what_trains_nothing_is_told(tmp_path: Path) -> None:
    tf = pytest.importorskip("tensorflow").compat.v1

    def make(maker: Maker) -> list[Any]:
        return [maker.dense(maker.dense(maker.input(4, N), "a", act=tf.nn.relu), "b")]

    save(tf, make, tmp_path / "model", train=False)
    source = open_checkpoint(tmp_path / "model")
    made = next(w for w in structure_of(source).widths.values() if "a/kernel" in w.produced_by)
    _, proof = judged(source, Pad(resize={made.name: N + 2}))
    assert proof.passed
    assert proof.learning is None
    (note,) = [note for note in proof.notes if note.startswith("whether new entries learn")]
    assert "it has no loss whose gradients could be looked at" in note
