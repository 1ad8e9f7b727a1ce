"""A checkpoint without a graph that is given the graph of another one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import run, told
from conftest import DATA, case
from converter_plugins.equalize import Equalize

from converter import InputError, UsageError, convert, open_checkpoint
from converter.plan import make_plan
from converter.structure.infer import structure_of

CONVBN = case("tf115_v2_convbn_ema").path
GRAPHS = [
    "tf115_v2_convbn_ema",
    "tf14_v2_charlm_lstm_ema",
    "tf115_frozen",
    "tf115_savedmodel",
    "tf221_savedmodel_module",
]


def bare(path: str, directory: Path) -> Path:
    """Write the variables of a checkpoint without its graph."""
    convert(path, directory / "bare.safetensors")
    return directory / "bare.safetensors"


@pytest.mark.parametrize("name", GRAPHS)
def test_its_structure_is_that_of_the_other(name: str, tmp_path: Path) -> None:
    path = case(name).path
    found = structure_of(open_checkpoint(bare(path, tmp_path), graph_from=path))
    wanted = structure_of(open_checkpoint(path))
    assert wanted.findings is not None
    assert found.findings is not None
    assert set(found.widths) == set(wanted.widths)
    assert {n: list(map(str, axes)) for n, axes in found.axes.items()} == {
        n: list(map(str, axes)) for n, axes in wanted.axes.items() if n in found.axes
    }


def test_a_meta_alone_will_do_and_what_strategies_make_has_it_too(tmp_path: Path) -> None:
    path = bare(CONVBN, tmp_path)
    meta = tmp_path / "alone.meta"
    shutil.copy(f"{CONVBN}.meta", meta)
    plan = make_plan(open_checkpoint(path, graph_from=meta), [Equalize(), Equalize()])
    assert any("widths that are equalised: conv1, conv2" in note for note in plan.notes)
    assert "conv1/kernel" in {c.variable.name for c in plan.changes if c.steps}


def test_who_has_one_takes_no_other(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"conv.ckpt-60: it has a graph of its own, .*\.meta; le"):
        open_checkpoint(CONVBN, graph_from=CONVBN)
    path = bare(CONVBN, tmp_path)
    with pytest.raises(
        InputError, match=r"bare.safetensors: it has no graph \(.meta, .pb\) either"
    ):
        open_checkpoint(path, graph_from=path)
    other = open_checkpoint(path, graph_from=case("tf10_v1_sharded").path)
    with pytest.raises(InputError, match="it is the graph of another checkpoint"):
        structure_of(other)


def test_commands_take_it(tmp_path: Path) -> None:
    path = bare(CONVBN, tmp_path)
    shown = json.loads(run("inspect", path, "--graph", "--graph-from", CONVBN, "--json").stdout)
    assert shown["graph"] == f"{CONVBN}.meta"
    widths = run("inspect", path, "--widths", "--graph-from", CONVBN).stdout
    assert widths.splitlines()[0].startswith(f"{CONVBN}.meta  707 nodes, 4 widths")
    assert "add --graph or --widths" in told(run("inspect", path, "--graph-from", CONVBN), 2)
    assert "--graph-from" in told(run("inspect", path, "--graph"), 3)
    outcome = run("ckpt", path, "--plugin", "equalize", "--graph-from", CONVBN, "--json")
    assert "conv1/kernel" in outcome.stdout
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        f'source = "bare.safetensors"\ngraph_from = "{CONVBN}"\n[[step]]\nplugin = "equalize"\n'
    )
    assert run("ckpt", "--recipe", recipe, "--json").stdout == outcome.stdout


@pytest.mark.slow
def test_of_many_those_take_it_that_have_none(tmp_path: Path) -> None:
    root, out = tmp_path / "in", tmp_path / "out"
    root.mkdir()
    bare(CONVBN, root)
    for file in (DATA / "tf115_v2_convbn_ema").glob("conv.ckpt-60.*"):
        shutil.copy(file, root)
    arguments = ["batch", root, "-o", out, "--keep", "model", "--plugin", "equalize", "-j", "1"]
    outcome = run(*arguments, "--graph-from", CONVBN)
    assert outcome.exit_code == 0, outcome.output
    with_graph, without = (open_checkpoint(path) for path in sorted(out.rglob("*.safetensors")))
    for name in with_graph:
        assert np.array_equal(with_graph[name].read(), without[name].read()), name
    # Made by another graph it would be another output.
    assert "2 checkpoints" in run(*arguments, "--graph-from", CONVBN).stdout.splitlines()[-2]
    again = run(*arguments, "--graph-from", f"{case('tf14_v2_bidirectional').path}.meta")
    assert again.exit_code == 5
    assert "was made from another source or in another way" in again.stdout


@pytest.mark.slow
def test_it_is_measured_in_it(tmp_path: Path) -> None:
    pytest.importorskip("tensorflow")
    path = bare(CONVBN, tmp_path)
    np.savez(tmp_path / "x.npz", images=np.random.default_rng(0).normal(size=(5, 8, 8, 2)))
    arguments = ["--data", tmp_path / "x.npz", "--json"]
    assert "--graph-from" in told(run("stats", path, *arguments), 3)
    found: list[Any] = [
        json.loads(run("stats", *given, *arguments).stdout)["statistics"]
        for given in ((CONVBN,), (path, "--graph-from", CONVBN))
    ]
    assert len(found[0]) > 4
    assert found[0] == found[1]
    outcome = run("prove", path, path, "--graph-from", CONVBN)
    assert outcome.stdout.splitlines()[-1].startswith("passed  1 output")
    assert "--graph-from" in told(run("prove", path, path), 3)
    scaled = ["--plugin", "activation-scale", "--activation-scale-data", tmp_path / "x.npz"]
    outcome = run("ckpt", path, *scaled, "--graph-from", CONVBN, "-o", tmp_path / "o.safetensors")
    assert "found   activation-scale: conv1/kernel" in outcome.stdout


def test_what_it_is_taken_from_is_never_written(tmp_path: Path) -> None:
    for file in (DATA / "tf115_v2_convbn_ema").glob("conv.ckpt-60.*"):
        shutil.copy(file, tmp_path)
    path, other = bare(CONVBN, tmp_path), tmp_path / "conv.ckpt-60"
    arguments = ["--graph-from", other, "--to", "tf", "-o", f"{other}.index", "--force"]
    assert "belongs to the source, which is never written" in told(run("ckpt", path, *arguments), 4)
