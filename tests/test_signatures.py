"""Which signature of an exported model is run, where nobody says."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import run, told
from test_measure import check

from converter import UsageError, measure, open_checkpoint
from converter.activations.asked import Question
from converter.activations.file import read_measured

pytestmark = pytest.mark.slow

X = np.random.default_rng(0).standard_normal((5, 3)).astype("f4")


@pytest.fixture(scope="module")
def tf() -> Any:
    return pytest.importorskip("tensorflow")


@pytest.fixture(scope="module")
def exported(tf: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Export a model of Keras 3, whose two signatures are the same."""
    keras = pytest.importorskip("keras")
    inputs = [keras.Input((3,), name=name) for name in ("x", "more")]
    hidden = keras.layers.Dense(4, activation="relu", name="hidden")
    added = keras.layers.Add()([hidden(inputs[0]), hidden(inputs[1])])
    model = keras.Model(inputs, keras.layers.Dense(2, name="head")(added))
    single = keras.Model(inputs[0], hidden(inputs[0]))
    directory = tmp_path_factory.mktemp("exported")
    model.export(str(directory / "two"), verbose=False)
    single.export(str(directory / "one"), verbose=False)
    np.save(directory / "x.npy", X)
    np.savez(directory / "one.npz", x=X)
    np.savez(directory / "two.npz", x=X, more=X[::-1])
    return directory


@pytest.mark.parametrize("data", ["x.npy", "one.npz"])
def test_two_signatures_of_one_function_need_no_choice(exported: Path, data: str) -> None:
    out = exported / f"{data}.safetensors"
    outcome = run("stats", exported / "one", "--data", exported / data, "-o", out)
    assert outcome.exit_code == 0, outcome.output
    found = read_measured(out)
    (consumed,) = (moments for (_, side), moments in found.items() if side == "consumed")
    check(consumed, X)


def test_inputs_have_the_names_that_the_signatures_have_for_them(exported: Path) -> None:
    batch = {"x": X, "more": X[::-1]}
    checkpoint = open_checkpoint(exported / "two")
    found = measure(checkpoint, [batch])
    (hidden,) = (m for (_, side), m in found.items() if (m.size, side) == (3, "consumed"))
    check(hidden, np.concatenate([X, X]))
    chosen = measure(checkpoint, [batch], question=Question(signature="serve"))
    assert {key: moments.count for key, moments in chosen.items()} == {
        key: moments.count for key, moments in found.items()
    }
    names = {name for names in found.tensors.values() for name in names}
    assert all(n.startswith(("StatefulPartitionedCall_1/", "serving_default")) for n in names)
    output = told(run("stats", exported / "two", "--data", exported / "x.npy"), 2)
    assert re.fullmatch(
        r".*/x\.npy: it holds one array without a name, and the model takes (x, more|more, x); "
        r"save them by name in an \.npz",
        output,
    )


@pytest.fixture(scope="module")
def different(tf: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save a model with two functions that are not the same."""
    module = tf.Module()
    module.w = tf.Variable(np.ones((3, 2), "f4"), name="w")
    spec = tf.TensorSpec((None, 3), tf.float32, "x")
    plain = tf.function(lambda x: {"y": tf.matmul(x, module.w)}, input_signature=[spec])
    twice = tf.function(lambda x: {"y": tf.matmul(2 * x, module.w)}, input_signature=[spec])
    directory = tmp_path_factory.mktemp("different")
    signatures = {"plain": plain, "twice": twice}
    tf.saved_model.save(module, str(directory / "model"), signatures=signatures)
    np.save(directory / "x.npy", X)
    np.savez(directory / "x.npz", x=X)
    return directory


def test_signatures_of_different_functions_are_to_be_chosen(different: Path) -> None:
    hint = ", or choose a signature (--signature): plain, twice"
    for name, says in {
        "x.npy": "it holds one array without a name, and the model takes plain_x, twice_x; save "
        "them by name in an .npz",
        "x.npz": "x: the graph has no such tensor; its inputs are plain_x, twice_x",
    }.items():
        output = told(run("stats", different / "model", "--data", different / name), 2)
        assert output == f"{different / name}: {says}{hint}"
    checkpoint = open_checkpoint(different / "model")
    with pytest.raises(UsageError, match=r"x: the graph has no such .* \(--signature\): plain, tw"):
        measure(checkpoint, [{"x": X}])
    with pytest.raises(UsageError, match=r"no values for twice_x.* \(--signature\): plain, twice"):
        measure(checkpoint, [{"plain_x": X}])
    for name, factor in {"plain": 1, "twice": 2}.items():
        found = measure(checkpoint, [{"x": X}], question=Question(signature=name))
        check(found["w", "consumed"], factor * X)


def proved(outcome: Any) -> tuple[list[str], list[str]]:
    """Return the lines of inputs and outputs that a proof shows."""
    assert outcome.exit_code == 0, outcome.output
    lines = [line.split() for line in outcome.output.splitlines()]
    inputs = [" ".join(line[1:]) for line in lines if line[:1] == ["input"]]
    return inputs, [line[0] for line in lines if line[-1:] == ["passes"]]


@pytest.mark.parametrize("data", ["x.npy", "one.npz"])
def test_a_proof_takes_the_file_that_statistics_take(exported: Path, data: str) -> None:
    model = exported / "one"
    inputs, outputs = proved(run("prove", model, model, "--inputs", exported / data))
    assert inputs == ["x float32 [5, 3] given"]
    # That of the other signature is the same function.
    assert outputs == ["StatefulPartitionedCall_1"]
    node = proved(run("prove", model, model, "--feed", "serving_default_x=[[1, 2, 3]]"))
    named = proved(run("prove", model, model, "--feed", "x=[[1, 2, 3]]"))
    assert named == node == (["x float32 [1, 3] given"], outputs)
    assert proved(run("prove", model, model))[0] == ["x float32 [8, 3] drawn"]
    fetched = run("prove", model, model, "--fetch", "StatefulPartitionedCall")
    assert proved(fetched) == (["serve_x float32 [8, 3] drawn"], ["StatefulPartitionedCall"])


def test_the_proof_of_a_plan_names_inputs_as_the_signature_does(exported: Path) -> None:
    given = ["--prove", "--inputs", exported / "two.npz", "--json"]
    outcome = run("ckpt", exported / "two", "--rename", "hidden/(.*)=first/\\1", *given)
    assert outcome.exit_code == 0, outcome.output
    proof = json.loads(outcome.stdout)["proof"]
    assert sorted((i["name"], i["source"]) for i in proof["inputs"]) == [
        ("more", "given"),
        ("x", "given"),
    ]
    assert [output["passed"] for output in proof["outputs"]] == [True]
    output = told(run("prove", exported / "two", exported / "two", "--feed", "y=[1]"), 2)
    assert re.fullmatch(
        r"--feed: y: the graph has no such tensor; its inputs are (x, more|more, x)", output
    )
    shown = run("inspect", exported / "two", "--graph", "--json", "--feed", "more=[[1, 2, 3]]")
    listed = json.loads(shown.stdout)
    assert sorted(found["name"] for found in listed["inputs"]) == ["more", "x"]
    (one,) = listed["outputs"]
    assert one["name"] == "StatefulPartitionedCall_1"
    assert one["why"] == "signature serving_default/output_0"


def test_a_proof_runs_all_signatures_where_they_are_different_functions(different: Path) -> None:
    model = different / "model"
    inputs, outputs = proved(run("prove", model, model))
    assert inputs == ["plain_x float32 [8, 3] drawn", "twice_x float32 [8, 3] drawn"]
    assert len(outputs) == 2
    output = told(run("prove", model, model, "--inputs", different / "x.npz"), 2)
    says = "x: the graph has no such tensor; its inputs are plain_x, twice_x"
    assert output == f"{different / 'x.npz'}: {says}"


@pytest.fixture(scope="module")
def normed(tf: Any, different: Path) -> Path:
    """Save a model with a batch normalisation, and two functions that are not the same."""
    spec = tf.TensorSpec((None, 3), tf.float32, "x")
    module = tf.Module()
    module.w = tf.Variable(np.ones((3, 2), "f4"), name="norm/kernel")
    kinds = {"gamma": 1.0, "beta": 0.0, "moving_mean": 0.0, "moving_variance": 1.0}
    gamma, beta, mean, variance = module.parts = [
        tf.Variable([value, value], name=f"norm/{name}") for name, value in kinds.items()
    ]

    def call(x: Any) -> dict[str, Any]:
        given = tf.reshape(tf.matmul(x, module.w), (-1, 1, 1, 2))
        normalised = tf.raw_ops.FusedBatchNormV3(
            x=given, scale=gamma, offset=beta, mean=mean, variance=variance, is_training=False
        )
        return {"y": tf.nn.relu(normalised.y)}

    signatures = {
        "plain": tf.function(call, input_signature=[spec]),
        "twice": tf.function(lambda x: call(2 * x), input_signature=[spec]),
    }
    tf.saved_model.save(module, str(different / "normed"), signatures=signatures)
    return different / "normed"


@pytest.mark.parametrize("plugin", ["activation-scale", "recalibrate-batchnorm"])
def test_strategies_name_their_own_options(different: Path, normed: Path, plugin: str) -> None:
    data = ["--plugin", plugin, f"--{plugin}-data", different / "x.npz"]
    output = told(run("ckpt", normed, *data), 2)
    assert output == (
        f"{plugin}: {different / 'x.npz'}: x: the graph has no such tensor; its inputs are "
        f"plain_x, twice_x, or choose a signature (--{plugin}-signature): plain, twice"
    )
    given = [*data, f"--{plugin}-signature", "twice"]
    for more, says in {
        (f"--{plugin}-feed", "x"): f"--{plugin}-feed must be NAME=VALUE, got 'x'",
        (f"--{plugin}-fetch", "w"): f"{normed}/saved_model.pb: the graph has no tensor 'w'",
    }.items():
        assert told(run("ckpt", normed, *given, *more), 2).startswith(f"{plugin}: {says}")
    chosen = run("ckpt", normed, *given)
    assert chosen.exit_code == 0, chosen.output


def test_an_export_without_signatures_says_so(tf: Any, tmp_path: Path) -> None:
    module = tf.Module()
    module.w = tf.Variable(np.ones((3, 2), "f4"), name="w")
    spec = tf.TensorSpec((None, 3), tf.float32, "x")
    # A single function would be saved as a signature.
    module.once = tf.function(lambda x: tf.matmul(x, module.w), input_signature=[spec])
    module.twice = tf.function(lambda x: tf.matmul(2 * x, module.w), input_signature=[spec])
    model, data = tmp_path / "model", tmp_path / "x.npz"
    tf.saved_model.save(module, str(model))
    np.savez(data, x=X)
    says = (
        f"{model}/saved_model.pb: it was exported without signatures, so nothing in its graph runs "
        "the model; export it again with one (tf.saved_model.save(..., signatures=...))"
    )
    for command in (
        ["stats", model, "--data", data],
        ["stats", model, "--data", data, "--signature", "serving_default"],
        ["stats", model, "--data", data, "--feed", "x=1"],
        ["prove", model, model],
        ["prove", model, model, "--inputs", data],
        # Its savers are no part of the model.
        ["inspect", model, "--graph"],
    ):
        assert told(run(*command), 2) == says
    for plugin in ("activation-scale", "recalibrate-batchnorm"):
        given = ["--plugin", plugin, f"--{plugin}-data", data, "--dry-run"]
        assert told(run("ckpt", model, *given), 2) == f"{plugin}: {says}"
    for variables in ((), "w"):
        with pytest.raises(UsageError, match="exported without signatures"):
            measure(open_checkpoint(model), [{"x": X}], variables=variables)


def test_zeros_that_a_causal_convolution_pads_with_are_consumed(tf: Any, tmp_path: Path) -> None:
    keras = pytest.importorskip("keras")
    inputs = keras.Input((6, 2), name="x")
    layer = keras.layers.Conv1D(3, 3, padding="causal", name="c")
    keras.Model(inputs, layer(inputs)).export(str(tmp_path), verbose=False)
    given = np.random.default_rng(0).standard_normal((4, 6, 2)).astype("f4")
    found = measure(open_checkpoint(tmp_path), [{"x": given}])
    (consumed,) = (moments for (_, side), moments in found.items() if side == "consumed")
    check(consumed, np.pad(given, ((0, 0), (2, 0), (0, 0))))
