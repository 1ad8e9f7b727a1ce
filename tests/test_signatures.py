"""Which signature of an exported model is run, where nobody says."""

from __future__ import annotations

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
