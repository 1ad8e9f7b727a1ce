"""What strategies have renamed, and averages that they put in the place of variables."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import case as recorded
from converter_plugins.activation_scale import ActivationScale
from converter_plugins.ema import Ema
from converter_plugins.fold_batchnorm import FoldBatchnorm
from converter_plugins.names import Names
from converter_plugins.recalibrate_batchnorm import RecalibrateBatchnorm
from converter_plugins.rename import Rename
from converter_plugins.scale import Scale
from measured_cases import case

from converter import Checkpoint, PlanError, Strategy, Variable, convert, open_checkpoint
from converter.plan import make_plan
from converter.scaling.kinds import Biases
from converter.scaling.running import Named
from converter.structure.biases import Bias, bias_of
from converter.structure.called import called_in_graph, called_now
from converter.structure.infer import structure_of

USE = Ema(ema="use")
RENAME = Rename(rename={"conv1/(.*)": r"c1/\1", "bn1/(.*)": r"n1/\1"})
NAME = "tf115_v2_convbn_ema"
AVERAGE = "ExponentialMovingAverage"


@pytest.fixture(scope="module")
def source() -> Checkpoint:
    return open_checkpoint(recorded(NAME).path)


@pytest.fixture(scope="module", params=[[USE, RENAME], [RENAME, USE]], ids=["last", "first"])
def derived(request: pytest.FixtureRequest, source: Checkpoint) -> Checkpoint:
    """The averages of a model under other names, renamed last or first."""
    return make_plan(source, request.param).result


def test_an_average_in_the_place_of_its_variable_is_that(
    source: Checkpoint, derived: Checkpoint
) -> None:
    assert derived["c1/kernel"].sources == (f"conv1/kernel/{AVERAGE}",)
    called = called_in_graph(derived)
    assert called["c1/kernel"] == ("conv1/kernel",)
    assert called["n1/moving_mean"] == ("bn1/moving_mean",)
    assert called_now(derived)["conv1/kernel"] == "c1/kernel"
    # One that has its own name is what it was, though its variable has gone.
    kept = source.derive(v for name, v in source.items() if name != "conv1/kernel")
    average = f"conv1/kernel/{AVERAGE}"
    assert called_in_graph(kept)[average] == (average,)
    assert "conv1/kernel" not in called_now(kept)


def test_what_was_cut_or_put_together_is_no_variable_of_the_graph() -> None:
    opened = Checkpoint(
        Variable.from_array(n, np.ones(2)).derive(lambda r: np.ones(2)[r]) for n in "abc"
    )
    opened = Checkpoint(Variable(v.name, v.dtype, v.shape, v.load, (v.name,))
                        for v in opened.values())  # fmt: skip
    a, b, c = opened.values()
    both = Variable("ab", a.dtype, a.shape, a.load, ("a", "b"))
    assert called_now(opened.derive([both, c.rename("d")])) == {"c": "d"}
    assert called_now(opened.derive([a, b, c.rename("d"), c.rename("e")])) == {"a": "a", "b": "b"}


def test_the_model_is_run_under_the_names_of_its_graph(
    source: Checkpoint, derived: Checkpoint
) -> None:
    named = Named(derived)
    average = source[f"conv1/kernel/{AVERAGE}"].read()
    assert np.array_equal(named["conv1/kernel"].read(), average)
    assert named.called("bn1/moving_mean") == "n1/moving_mean"
    # What nothing was done to is the very variable that it was.
    new = named["bn1/moving_mean"].derive(np.zeros(6, np.float32).__getitem__)
    given = {v.name: v for v in named.renamed([named["conv1/kernel"], new])}
    assert given["c1/kernel"] is derived["c1/kernel"]
    assert given["n1/moving_mean"].read().tolist() == [0] * 6


def test_normalisations_are_folded_into_averages(source: Checkpoint, derived: Checkpoint) -> None:
    folded = {v.name: v.read() for v in FoldBatchnorm().apply(derived)}
    gamma = source[f"bn1/gamma/{AVERAGE}"].read()
    factor = gamma / np.sqrt(source["bn1/moving_variance"].read() + 1e-3)
    kernel = source[f"conv1/kernel/{AVERAGE}"].read()
    np.testing.assert_allclose(folded["c1/kernel"], kernel * factor, rtol=1e-5)
    assert folded["n1/gamma"].tolist() == [1] * 6


@pytest.mark.parametrize("biases", ["left", "scaled", "power"])
def test_kinds_of_layers_are_scaled(
    biases: Biases, source: Checkpoint, derived: Checkpoint
) -> None:
    kinds = {"convolution": 0.5}
    scaled = {v.name: v.read() for v in Scale(kind=kinds, biases=biases).apply(derived)}
    kernel = source[f"conv1/kernel/{AVERAGE}"].read()
    assert np.array_equal(scaled["c1/kernel"], kernel / 2)
    assert np.array_equal(scaled["n1/moving_mean"], source["bn1/moving_mean"].read() / 2)


def test_kernels_that_are_not_what_the_graph_has_are_not_scaled(source: Checkpoint) -> None:
    kernel = source["conv1/kernel"]
    cut = source.derive(
        piece
        for v in source.values()
        for piece in ((v.rename("x"), v.rename("y")) if v is kernel else (v,))
    )
    with pytest.raises(PlanError, match="conv1/kernel: its layer is to be multiplied, and it is"):
        list(Scale(kind={"convolution": 0.5}).apply(cut))


def test_biases_are_found_behind_averages(derived: Checkpoint) -> None:
    structure = structure_of(derived)
    assert bias_of(structure, derived, "c1/kernel", 2) == Bias("n1/moving_mean", (3,), -1)
    assert bias_of(structure, derived, "conv2/kernel", 2) == Bias("conv2/bias", (3,))


def test_names_of_the_graph_come_back(source: Checkpoint, derived: Checkpoint) -> None:
    names = {v.name for v in Names(names="graph").apply(derived)}
    assert {"conv1/kernel", "bn1/moving_mean"} <= names
    assert not {"c1/kernel", "n1/moving_mean"} & names


@pytest.mark.slow
@pytest.mark.parametrize("before", [[USE], [RENAME], [USE, RENAME]], ids=["ema", "name", "both"])
def test_only_moments_are_recalibrated(
    before: list[Strategy], source: Checkpoint, tmp_path: Path
) -> None:
    np.savez(tmp_path / "x.npz", images=np.zeros((2, 8, 8, 2), np.float32))
    plan = make_plan(source, [*before, RecalibrateBatchnorm(data=(tmp_path / "x.npz",))])
    touched = [c.variable.name for c in plan.changes if "recalibrate-batchnorm" in c.steps]
    one = "bn1" if before == [USE] else "n1"
    moments = ("moving_mean", "moving_variance")
    assert sorted(touched) == sorted(f"{n}/{m}" for n in (one, "bn2") for m in moments)


@pytest.mark.slow
def test_averages_are_run_as_those_that_were_written_first(tmp_path: Path) -> None:
    path, _, feeds = case(NAME, tmp_path)
    data = (tmp_path / "x.npz",)
    strategies: list[Strategy] = [
        RecalibrateBatchnorm(data=data, feed=feeds),
        ActivationScale(data=data, feed=feeds),
    ]
    at_once = convert(path, tmp_path / "once.safetensors", [USE, RENAME, *strategies])
    written = convert(path, tmp_path / "first", [USE], to="tf")
    assert written.output is not None
    # It is not written along, as the output has not all that it would restore.
    shutil.copy(path.with_suffix(".meta"), f"{written.output}.meta")
    then = convert(written.output, tmp_path / "then.safetensors", [*strategies, RENAME])
    assert at_once.output is not None
    assert then.output is not None
    found, expected = open_checkpoint(at_once.output), open_checkpoint(then.output)
    assert set(found) == set(expected)
    for name, variable in found.items():
        np.testing.assert_allclose(variable.read(), expected[name].read(), rtol=1e-4, atol=1e-6)
