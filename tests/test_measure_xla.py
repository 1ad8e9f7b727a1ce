"""Functions are measured inside that TensorFlow runs otherwise: by XLA, or for a device."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_measure import check

from converter import measure, open_checkpoint, open_keras
from converter.activations.file import Measured

pytestmark = pytest.mark.slow

RNG = np.random.default_rng(0)
X = RNG.standard_normal((4, 5, 6)).astype("f4")


@pytest.fixture(scope="module")
def tf() -> Any:
    return pytest.importorskip("tensorflow")


def test_grouped_convolutions(tf: Any) -> None:
    keras = pytest.importorskip("keras")
    inputs = keras.Input((5, 6), name="x")
    layer = keras.layers.Conv1D(9, 3, groups=3, padding="same", activation="relu", name="conv")
    model = keras.Model(inputs, keras.layers.Dense(2, name="head")(layer(inputs)))
    checkpoint = open_keras(model)
    assert checkpoint.meta is not None
    assert b"_XlaMustCompile" in checkpoint.meta.read_bytes()
    found = measure(checkpoint, [{"x": X}])
    kernel, bias = (variable.numpy() for variable in layer.weights)
    wide = np.pad(X, [(0, 0), (1, 1), (0, 0)]).astype("f8")
    rows = np.stack([wide[:, step : step + 3] for step in range(5)], 1)
    groups = [
        np.einsum("bski,kio->bso", rows[..., 2 * g : 2 * g + 2], kernel[..., 3 * g : 3 * g + 3])
        for g in range(3)
    ]
    check(found["conv/kernel", "consumed"], X)
    check(found["conv/kernel", "produced"], np.maximum(np.concatenate(groups, -1) + bias, 0))
    check(found["head/kernel", "consumed"], np.maximum(np.concatenate(groups, -1) + bias, 0))


def saved(tf: Any, directory: Path) -> Any:
    """Save a loop, compiled in a branch, with what is compiled again in it."""
    shapes = {"a": (6, 3), "b": (3, 3), "c": (3, 2)}
    module = tf.Module()
    module.held = [
        tf.Variable(RNG.standard_normal(shape).astype("f4"), name=name)
        for name, shape in shapes.items()
    ]
    a, b, c = module.held

    head = tf.function(lambda h: tf.nn.relu(tf.matmul(h, c)), jit_compile=True)

    def steps(x: Any) -> Any:
        h = tf.zeros((4, 3))
        for step in tf.range(5):
            h = tf.tanh(tf.matmul(x[:, step], a) + tf.matmul(h, b))
        return head(h)

    loop = tf.function(steps, jit_compile=True)
    serve = tf.function(
        lambda x: {"y": tf.cond(tf.reduce_sum(x) > 0, lambda: loop(x), lambda: loop(-x))},
        input_signature=[tf.TensorSpec((4, 5, 6), tf.float32, "x")],
    )
    module.serve = serve
    tf.saved_model.save(module, str(directory), signatures={"serve": serve})
    return [variable.numpy().astype("f8") for variable in module.held]


def test_loops_and_calls_that_are_compiled_together(tf: Any, tmp_path: Path) -> None:
    a, b, c = saved(tf, tmp_path)
    up = X if X.sum() > 0 else -X
    found: Measured = measure(open_checkpoint(tmp_path), [{"x": up}, {"x": -up}])
    h = np.zeros((4, 3))
    before, after = [], []
    for step in range(5):
        before.append(h)
        h = np.tanh(up[:, step] @ a + h @ b)
        after.append(h)
    # The other branch takes the same with its sign turned.
    check(found["a", "consumed"], np.concatenate([up, up]))
    check(found["a", "produced"], np.concatenate(after * 2))
    check(found["b", "consumed"], np.concatenate(before * 2))
    check(found["c", "produced"], np.concatenate([np.maximum(h @ c, 0)] * 2))


def test_functions_that_are_implemented_for_devices(tf: Any, tmp_path: Path) -> None:
    """Those of recurrent layers of Keras 2; TensorFlow runs any that implements the same."""
    module = tf.Module()
    module.a = tf.Variable(RNG.standard_normal((6, 3)).astype("f4"), name="a")
    one, other = (
        tf.function(
            lambda x, a: tf.tanh(tf.matmul(x, a)),
            autograph=False,
            experimental_attributes={"api_implements": "rnn", "api_preferred_device": device},
        )
        for device in ("CPU", "GPU")
    )

    def serve(x: Any) -> Any:
        other.get_concrete_function(x, module.a.read_value()).add_to_graph()
        return {"y": one(x, module.a)}

    spec = tf.TensorSpec((None, 6), tf.float32, "x")
    module.serve = tf.function(serve, input_signature=[spec])
    tf.saved_model.save(module, str(tmp_path), signatures={"serve": module.serve})
    rows = X.reshape(-1, 6)
    found = measure(open_checkpoint(tmp_path), [{"x": rows}])
    check(found["a", "consumed"], rows)
    check(found["a", "produced"], np.tanh(rows @ module.a.numpy().astype("f8")))
