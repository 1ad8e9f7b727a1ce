"""Resized models are run against the original: what the plan calls exact is."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from click.testing import CliRunner, Result
from conftest import VALID, Case, case
from converter_plugins.duplicate import Duplicate
from converter_plugins.pad import Pad
from converter_plugins.scale import Scale

from converter import (
    ConverterError,
    Coupled,
    Resizer,
    Strategy,
    Units,
    Width,
    WidthMap,
    convert,
    open_checkpoint,
)
from converter.cli import cli
from converter.graph.definition import read_definition
from converter.initializers import GlorotUniform
from converter.plan import Plan, make_plan
from converter.proof import Proof, Question, prove, prove_plan
from converter.structure.infer import structure_of

CHARLM = case("tf14_v2_charlm_lstm_ema")
WITH_GRAPHS = [
    c for c in VALID if c.record.get("io") and read_definition(open_checkpoint(c.path)) is not None
]


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, list(map(str, arguments)))


def proven(one: Case, strategy: Strategy) -> tuple[Plan, Proof]:
    plan = make_plan(open_checkpoint(one.path), [strategy])
    return plan, prove_plan(plan, None, Question())


@pytest.mark.slow
@pytest.mark.parametrize("one", WITH_GRAPHS, ids=lambda one: one.name)
def test_what_the_plan_calls_exact_is(one: Case) -> None:
    pytest.importorskip("tensorflow")
    widths = structure_of(open_checkpoint(one.path)).widths.values()
    sizes = {w.name: -(-w.size * 3 // 2) for w in widths if w.resizable}
    jobs = [{name: size} for name, size in sizes.items()]
    exact = 0
    for job in (*jobs, sizes):
        for strategy in (Pad(resize=job, fill=GlorotUniform()), Duplicate(resize=job)):
            plan, proof = proven(one, strategy)
            if plan.is_exact:
                exact += 1
                assert proof.passed, (strategy, proof.outputs)
    assert exact or all(not w.exact for w in widths)


@pytest.mark.slow
def test_what_is_called_exact_and_is_not_is_not_published(tmp_path: Path) -> None:
    pytest.importorskip("tensorflow")
    # The bias of the softmax is another, which no plan could know of.
    (tmp_path / "off.py").write_text(
        "from dataclasses import dataclass\n"
        "from typing import ClassVar\n"
        "from converter import Strategy, hookimpl\n"
        "@dataclass(frozen=True)\n"
        "class Off(Strategy):\n"
        '    "Add one to biases."\n'
        '    name: ClassVar[str] = "off"\n'
        "    def convert(self, variable):\n"
        "        if variable.name == 'charlm/softmax/bias':\n"
        "            variable = variable.map(lambda values: values + values.dtype.type(1))\n"
        "        yield variable\n"
        "@hookimpl\n"
        "def converter_strategies():\n"
        "    yield Off\n"
    )
    steps: list[str | Path] = [
        "--plugin",
        "pad",
        "--resize",
        "lstm_cell=45",
        "--plugin",
        tmp_path / "off.py",
    ]
    outcome = run("ckpt", CHARLM.path, *steps, "-o", tmp_path / "out", "--to", "tf", "--prove")
    assert outcome.exit_code == 1
    assert "nothing was published" in outcome.stderr
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


@pytest.mark.slow
def test_what_the_plan_calls_inexact_is_published_within_a_tolerance(tmp_path: Path) -> None:
    pytest.importorskip("tensorflow")
    out = tmp_path / "small"
    cut = ["--plugin", "truncate", "--resize", "lstm_cell=20", "-o", str(out), "--to", "tf"]
    outcome = run("ckpt", CHARLM.path, *cut, "--prove")
    assert outcome.exit_code == 1
    assert "The plan says that they change: --tolerance says how far they may" in outcome.stderr
    assert not out.exists()
    assert run("ckpt", CHARLM.path, *cut, "--prove", "--tolerance", "2").exit_code == 0
    assert (out / "model.ckpt-300.meta").is_file()


@pytest.mark.slow
def test_a_graph_of_other_sizes_and_names_is_written_and_proven(tmp_path: Path) -> None:
    pytest.importorskip("tensorflow")
    out = tmp_path / "out"
    steps = ["--plugin", "pad", "--resize", "lstm_cell=45", "--pad-fill", "he_normal"]
    renamed = ["--rename", r"charlm/(.*)=lm/\1"]
    outcome = run("ckpt", CHARLM.path, *steps, *renamed, "-o", out, "--to", "tf", "--prove")
    assert outcome.exit_code == 0, outcome.output
    graph = open_checkpoint(out)
    assert graph["lm/rnn/lstm_cell/kernel"].shape == (8 + 45, 4 * 45)
    assert structure_of(graph).widths["lm/rnn/lstm_cell"].size == 45


@pytest.mark.slow
def test_averages_other_names_and_safetensors_are_proven_in_the_resized_graph(
    tmp_path: Path,
) -> None:
    pytest.importorskip("tensorflow")
    outcome = run(
        *("ckpt", CHARLM.path, "--drop", "optimizer", "--rename", r"charlm/(.*)=lm/\1"),
        *("--plugin", "pad", "--resize", "lstm_cell=45", "--pad-fill", "he_normal"),
        *("-o", tmp_path / "lm.safetensors", "--prove", "--json"),
    )
    assert outcome.exit_code == 0, outcome.output
    report = json.loads(outcome.stdout)
    assert report["proof"]["passed"] is True
    assert {o["name"]: o["passed"] for o in report["proof"]["outputs"]} == {
        "charlm/rnn/while/Exit_2": True,
        "charlm/rnn/while/Exit_3": True,
        "charlm/softmax/BiasAdd": True,
    }
    kernel = open_checkpoint(tmp_path / "lm.safetensors")["lm/rnn/lstm_cell/kernel"]
    assert kernel.shape == (8 + 45, 4 * 45)


@pytest.mark.slow
def test_two_steps_and_back_again_are_the_same_bytes(tmp_path: Path) -> None:
    grown = Pad(resize={"lstm_cell": 45}, fill=GlorotUniform())
    plan = make_plan(open_checkpoint(CHARLM.path), [grown, _truncate({"lstm_cell": 30})])
    before = open_checkpoint(CHARLM.path)
    for name, variable in plan.result.items():
        np.testing.assert_array_equal(variable.read(), before[name].read(), strict=True)


def _truncate(sizes: dict[str, int]) -> Strategy:
    from converter_plugins.truncate import Truncate

    return Truncate(resize=sizes)


@pytest.mark.slow
def test_another_size_than_that_of_a_graph_is_no_proof(tmp_path: Path) -> None:
    pytest.importorskip("tensorflow")
    plan = make_plan(open_checkpoint(CHARLM.path), [Pad(shape={"charlm/embedding": (16, 8)})])
    with pytest.raises(ConverterError, match=r"charlm/embedding: it is \[14, 8\] in the graph of"):
        prove_plan(plan, None, Question())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "width", "strategy"),
    [
        ("tf012_v2_gru_seqlen", "GRUCell", "pad"),
        ("tf012_v2_gru_seqlen", "GRUCell", "duplicate"),
        ("tf10_v2_gatewise_lstm", "LSTMcell", "duplicate"),
    ],
)
def test_two_checkpoints_of_two_sizes_with_a_state_that_is_fed(
    name: str, width: str, strategy: str, tmp_path: Path
) -> None:
    pytest.importorskip("tensorflow")
    a = open_checkpoint(case(name).path)
    (found,) = (w for w in structure_of(a).widths if w.endswith(width))
    size = structure_of(a).widths[found].size
    resizer: Strategy = Duplicate(resize={found: size + 7})
    if strategy == "pad":
        resizer = Pad(resize={found: size + 7}, fill=GlorotUniform())
    convert(a.path, tmp_path / "tf", [resizer], to="tf")
    convert(a.path, tmp_path / "flat.safetensors", [resizer])
    for output in (tmp_path / "tf", tmp_path / "flat.safetensors"):
        proof = prove(a, open_checkpoint(output))
        assert proof.passed
        assert all(found.passed for found in proof.outputs)
        assert proof.notes[0].startswith(f"other sizes: {found} {size} -> {size + 7}; the first")
    same = prove_plan(make_plan(a, [resizer]), None)
    assert [o.name for o in same.outputs] == [o.name for o in proof.outputs]
    # And back: what nothing consumed is left out. Of copies each is fed another state then.
    assert prove(open_checkpoint(tmp_path / "tf"), a).passed is (strategy == "pad")


@pytest.mark.slow
def test_another_model_of_another_size_is_told_from_it(tmp_path: Path) -> None:
    pytest.importorskip("tensorflow")
    a = open_checkpoint(CHARLM.path)
    shift = Scale(scale={"charlm/softmax/kernel": 1.01})
    convert(a.path, tmp_path / "tf", [Pad(resize={"lstm_cell": 45}), shift], to="tf")
    proof = prove(a, open_checkpoint(tmp_path / "tf"))
    assert {o.name: o.passed for o in proof.outputs} == {
        "charlm/rnn/while/Exit_2": True,
        "charlm/rnn/while/Exit_3": True,
        "charlm/softmax/BiasAdd": False,
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tf115_frozen", "tf115_savedmodel", "tf221_savedmodel_module"])
def test_what_has_no_meta_is_run_at_other_sizes_too(name: str, tmp_path: Path) -> None:
    pytest.importorskip("tensorflow")
    source = open_checkpoint(case(name).path)
    sizes = {w.name: w.size + 3 for w in structure_of(source).widths.values() if w.exact}
    assert sizes
    convert(source.path, tmp_path / "wide", [Pad(resize=sizes, fill=GlorotUniform())], to="tf")
    wide = open_checkpoint(tmp_path / "wide")
    assert any(wide[name].shape != source[name].shape for name in source if name in wide)
    proof = prove(source, wide, Question())
    assert proof.passed
    assert proof.notes[0].startswith("other sizes: ")


@dataclass(frozen=True)
class Weighted(Resizer):
    """Multiply units, copies of them too, and divide what takes them."""

    name: ClassVar[str] = "weighted"

    def width_map(self, width: Width, size: int, coupled: Coupled) -> WidthMap:
        index = np.arange(size) % width.size
        weights = 1 + np.arange(width.size) / 4
        shares = 1 / (weights * np.bincount(index))
        return WidthMap(Units(size, index, weights[index]), Units(size, index, shares[index]))


@pytest.mark.slow
def test_weighted_units_go_through_batch_normalisations() -> None:
    pytest.importorskip("tensorflow")
    source = open_checkpoint(case("tf115_v2_convbn_ema").path)
    plan = make_plan(source, [Weighted(resize={"conv1": 9, "conv2": 8})])
    assert plan.is_exact
    assert prove_plan(plan, None, Question()).passed
