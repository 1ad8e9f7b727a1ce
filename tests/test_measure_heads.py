"""Attention whose kernels and biases hold their units in two axes: `[heads, size]`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_measure import check

from converter import Checkpoint, measure, open_checkpoint, open_keras
from converter.activations.file import Key, Measured
from converter.variable import Array

pytestmark = pytest.mark.slow

FEATURES, HEADS, SIZE = 12, 3, 5
RNG = np.random.default_rng(0)
X = RNG.standard_normal((9, 7, FEATURES)).astype("f4")
SHAPES = {
    **{f"{name}/kernel": (FEATURES, HEADS, SIZE) for name in ("query", "key", "value")},
    **{f"{name}/bias": (HEADS, SIZE) for name in ("query", "key", "value")},
    "attention_output/kernel": (HEADS, SIZE, FEATURES),
    "attention_output/bias": (FEATURES,),
}
VALUES = {name: RNG.standard_normal(shape).astype("f4") for name, shape in SHAPES.items()}


@pytest.fixture(scope="module")
def tf() -> Any:
    return pytest.importorskip("tensorflow")


def attention(tf: Any, x: Any, held: dict[str, Any]) -> Any:
    """Apply it as tf_keras 2 does, by Einsum."""
    query, key, value = (
        tf.einsum("btf,fhu->bthu", x, held[f"{name}/kernel"]) + held[f"{name}/bias"]
        for name in ("query", "key", "value")
    )
    weights = tf.nn.softmax(tf.einsum("bthu,bshu->bhts", query * SIZE**-0.5, key))
    mixed = tf.einsum("bhts,bshu->bthu", weights, value)
    out = tf.einsum("bthu,huf->btf", mixed, held["attention_output/kernel"])
    return out + held["attention_output/bias"]


def computed() -> dict[str, Array]:
    """Return what is made before and behind the mixing, computed in float64."""
    wide = {name: value.astype("f8") for name, value in VALUES.items()}
    found = {
        name: np.einsum("btf,fhu->bthu", X, wide[f"{name}/kernel"]) + wide[f"{name}/bias"]
        for name in ("query", "key", "value")
    }
    logits = np.einsum("bthu,bshu->bhts", found["query"] * SIZE**-0.5, found["key"])
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    return {**found, "mixed": np.einsum("bhts,bshu->bthu", weights, found["value"])}


def check_heads(found: Measured, prefix: str, name: str, rows: Array) -> None:
    """Each unit of each head has statistics of its own, in the order of the variable's axes."""
    key: Key = (f"{prefix}{name}", "produced")
    assert found[key].size == HEADS * SIZE
    check(found[key], rows.reshape(-1, HEADS * SIZE))


def test_heads_of_keras(tf: Any) -> None:
    keras = pytest.importorskip("keras")
    inputs = keras.Input((7, FEATURES), name="x")
    layer = keras.layers.MultiHeadAttention(HEADS, SIZE, name="att")
    model = keras.Model(inputs, layer(inputs, inputs))
    for variable in model.variables:
        variable.assign(VALUES[variable.path.removeprefix("att/")])
    found = measure(open_keras(model), [{"x": X}])
    wanted = computed()
    for name in ("query", "key", "value"):
        for part in ("kernel", "bias"):
            check_heads(found, "att/", f"{name}/{part}", wanted[name])
    check(found["att/attention_output/kernel", "consumed"], wanted["mixed"])


def saved_graph(tf: Any, directory: Path) -> Checkpoint:
    with tf.Graph().as_default():
        x = tf.compat.v1.placeholder(tf.float32, [None, 7, FEATURES], "x")
        held = {n: tf.compat.v1.get_variable(n, initializer=v) for n, v in VALUES.items()}
        tf.identity(attention(tf, x, held), "y")
        with tf.compat.v1.Session() as session:
            session.run(tf.compat.v1.global_variables_initializer())
            tf.compat.v1.train.Saver().save(session, str(directory / "model"))
    return open_checkpoint(directory)


def saved_model(tf: Any, directory: Path) -> Checkpoint:
    """In a function its tensors are put into queues."""
    module = tf.Module()
    module.held = [tf.Variable(value, name=name) for name, value in VALUES.items()]
    signature = tf.TensorSpec([None, 7, FEATURES], tf.float32, "x")

    def apply(x: Any) -> Any:
        return attention(tf, x, dict(zip(VALUES, module.held, strict=True)))

    module.apply = tf.function(apply, input_signature=[signature])
    tf.saved_model.save(module, str(directory))
    return open_checkpoint(directory)


@pytest.mark.parametrize("save", [saved_graph, saved_model])
def test_kernels_and_biases_of_einsum(tf: Any, tmp_path: Path, save: Any) -> None:
    found = measure(save(tf, tmp_path), [{"x": X[:4]}, {"x": X[4:]}])
    wanted = computed()
    wanted["query"] *= SIZE**-0.5  # No unit is changed by what the graph multiplies all with.
    for name in ("query", "key", "value"):
        for leaf in ("kernel", "bias"):
            check_heads(found, "", f"{name}/{leaf}", wanted[name])
            assert (
                found.tensors[f"{name}/{leaf}", "produced"]
                == (found.tensors[f"{name}/kernel", "produced"])
            )
    check(found["attention_output/kernel", "consumed"], wanted["mixed"])
    assert found["query/kernel", "consumed"].size == FEATURES


def test_steps_and_places_are_no_units(tf: Any, tmp_path: Path) -> None:
    table = RNG.standard_normal((7, 4)).astype("f4")
    with tf.Graph().as_default():
        x = tf.compat.v1.placeholder(tf.float32, [None, 7, FEATURES], "x")
        kernel = tf.compat.v1.get_variable("kernel", [FEATURES, 4])
        positions = tf.compat.v1.get_variable("positions", initializer=table)
        tf.nn.relu(tf.einsum("btf,fu->btu", x, kernel) + positions, name="y")
        with tf.compat.v1.Session() as session:
            session.run(tf.compat.v1.global_variables_initializer())
            tf.compat.v1.train.Saver().save(session, str(tmp_path / "model"))
            rows = session.run("y:0", {"x:0": X})
    found = measure(open_checkpoint(tmp_path), [{"x": X}])
    for name in ("kernel", "positions"):
        check(found[name, "produced"], rows)
        assert found[name, "produced"].size == 4
