"""What layers are said to do is what TensorFlow computes, in loops and functions too."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import VALID, Case, case
from model_maker import Build, Maker, N, save
from test_measure import check as check_moments
from test_session import made

from converter import Checkpoint, open_checkpoint
from converter.activations.asked import Question
from converter.activations.measure import measure
from converter.activations.probes import Probe, find_probes
from converter.activations.run import Run
from converter.structure.layers import Layer, Units, layers
from converter.variable import Array

pytestmark = pytest.mark.slow

TOLERANCE = 2e-5
RECORDED = [
    case
    for case in VALID
    if case.record.get("io") and all("tensor" in e for e in case.record["io"]["inputs"].values())
]
# A kernel is cut into gates before it is taken; a cell is one op; a vector makes one number.
APART = {
    "tf115_v2_keras_rnn": {"first/kernel", "second/kernel", "second/recurrent_kernel"},
    "tf115_v2_lstmblockfused": {"lstm_fused_cell/kernel"},
    "tf14_v2_attention_bahdanau": {
        "decoder/decoder/attention_wrapper/bahdanau_attention/attention_v"
    },
}


@pytest.fixture(scope="module", autouse=True)
def tf() -> Any:
    return pytest.importorskip("tensorflow").compat.v1


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


FUNCTIONS: dict[str, Callable[[Array], Array]] = {
    "Relu": lambda x: np.maximum(x, 0),
    "Relu6": lambda x: np.clip(x, 0, 6),
    "LeakyRelu": lambda x: np.maximum(x, 0.2 * x),
    "Elu": lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0))),
    "Tanh": np.tanh,
    "Sigmoid": sigmoid,
    "Softplus": lambda x: np.log1p(np.exp(x)),
}
WRITTEN_OUT: dict[str, Callable[[Array], Array]] = {
    "Sigmoid": lambda x: x * sigmoid(x),
    "Tanh": lambda x: 0.5 * x * (1 + np.tanh((2 / np.pi) ** 0.5 * (x + 0.044715 * x**3))),
    "Erf": lambda x: 0.5 * x * (1 + np.vectorize(math.erf)(x * 0.5**0.5)),
    "Erfc": lambda x: 0.5 * x * np.vectorize(math.erfc)(-x * 0.5**0.5),
}


class Check:
    """Runs a model, and compares each layer with what its definition says."""

    def __init__(
        self, checkpoint: Checkpoint, batch: dict[str, Array], question: Question | None = None
    ) -> None:
        self.layers = layers(checkpoint)
        self._checkpoint = checkpoint
        units = dict.fromkeys(
            units
            for layer in self.layers
            for place in layer.places
            for units in (*place.inputs, place.linear, place.finished)
            if units is not None and units.size is not None
        )
        probes = {
            u: Probe(u.tensor, u.axis, u.size or 0, None, False, (("x", "produced"),))
            for u in units
        }
        with Run(checkpoint, batch, list(probes.values()), question or Question()) as run:
            taken = run.take(batch)
            for queue, held in run.held().items():
                parts = [of_probe for part in run.empty(queue, held) for of_probe in part]
                taken += [one for of_probe in parts for one in of_probe]
        rows: dict[int, list[Array]] = {}
        for one in taken:
            rows.setdefault(id(one.probe), []).append(one.rows().astype("f8"))
        self._rows = {u: np.concatenate(rows[id(p)]) for u, p in probes.items() if id(p) in rows}

    def run(self) -> set[str]:
        """Compare all; return the kernels of what could not be."""
        apart = set()
        for layer in self.layers:
            done = [self._place(layer, number) for number in range(len(layer.places))]
            if not any(done):
                apart.add((*layer.kernels, "")[0])
        return apart

    def _place(self, layer: Layer, number: int) -> bool:
        place = layer.places[number]
        finished, linear = self._given(place.finished), self._given(place.linear)
        if finished is None or linear is None:
            return False
        if layer.kind in ("dense", "recurrent") and None not in place.inputs:
            inputs = [self._given(units) for units in place.inputs]
            wanted = self._product(layer, inputs, linear.shape[1])
            if wanted is None:
                return False
            linear = wanted
        if not layer.constants:
            close(finished, self._finished(layer, linear, place.finished))
        return True

    def _given(self, units: Units | None) -> Array | None:
        return None if units is None else self._rows.get(units)

    def _product(self, layer: Layer, inputs: Sequence[Array | None], columns: int) -> Array | None:
        total = np.zeros((1, columns))
        for name, rows in zip(layer.kernels, inputs, strict=True):
            kernel = self._read(name)
            if rows is None:
                return None
            if kernel.shape != (rows.shape[1], columns):
                kernel = kernel.T
            if kernel.shape != (rows.shape[1], columns):
                return None
            # Loops run several turns at once, and what they hand out is in no order.
            total = (total[:, None] + (rows @ kernel)[None]).reshape(-1, columns)
        return total

    def _finished(self, layer: Layer, x: Array, finished: Units | None) -> Array:
        for name in layer.biases:
            # Some cells have two in one variable.
            rows = np.atleast_2d(self._read(name))
            x = (x[:, None] + rows[None]).reshape(-1, x.shape[1])
        norm = layer.normalisation
        if norm is not None:
            assert norm.epsilon is not None
            mean = x.mean(-1 if norm.over == "layer" else 0, keepdims=True)
            variance = x.var(-1 if norm.over == "layer" else 0, keepdims=True)
            if norm.mean is not None and norm.variance is not None:
                mean, variance = self._read(norm.mean), self._read(norm.variance)
            x = (x - mean) / np.sqrt(variance + norm.epsilon)
            x = x * (self._read(norm.gamma) if norm.gamma else 1)
            x = x + (self._read(norm.beta) if norm.beta else 0)
        if layer.activation is None:
            return x
        assert finished is not None
        name = finished.tensor.node.rpartition("/")[2].lower()
        is_written_out = name.startswith(("mul", "add"))
        return (WRITTEN_OUT if is_written_out else FUNCTIONS)[layer.activation.op](x)

    def _read(self, name: str) -> Array:
        return np.asarray(self._checkpoint[name].read(), "f8")


def close(found: Array, wanted: Array) -> None:
    """Every row that was found is one of those that are wanted."""
    assert found.size > 0
    for row in found:
        assert np.abs(wanted - row).max(1).min() <= TOLERANCE * max(1, np.abs(row).max())


def recorded(case: Case) -> tuple[Checkpoint, dict[str, Array]]:
    with np.load(case.directory / "io.npz") as arrays:
        inputs = case.record["io"]["inputs"].items()
        return open_checkpoint(case.path), {e["tensor"]: arrays[n] for n, e in inputs}


@pytest.mark.parametrize("case", RECORDED, ids=lambda case: case.name)
def test_layers_of_real_graphs(case: Case) -> None:
    checkpoint, batch = recorded(case)
    feeds = case.record["io"].get("feeds", {})
    question = Question(feeds=tuple(f"{name}={value}" for name, value in feeds.items()))
    assert Check(checkpoint, batch, question).run() == APART.get(case.name, set())


@pytest.mark.parametrize(
    ("name", "lengths", "kernels"),
    [
        ("tf012_v2_gru_seqlen", "lengths", ["RNN/GRUCell/Gates/Linear/Matrix"]),
        (
            "tf14_v2_bidirectional",
            "lengths",
            ["bidirectional_rnn/fw/lstm_cell/kernel", "bidirectional_rnn/bw/gru_cell/gates/kernel"],
        ),
    ],
)
def test_rows_behind_the_ends_of_sequences_do_not_count(
    name: str, lengths: str, kernels: list[str]
) -> None:
    checkpoint, batch = recorded(case(name))
    found = measure(checkpoint, [batch])
    (given,) = (v for v in batch.values() if v.ndim == 1)
    assert given.min() < given.max()
    for kernel in kernels:
        assert found[kernel, "produced"].count == given.sum(), lengths
        assert found[kernel, "consumed"].count == given.sum()


@pytest.fixture
def check(tf: Any, tmp_path: Path) -> Callable[[Build], tuple[Layer, ...]]:
    """Build a model, train it one step, and compare all of its layers."""

    def run(make: Build) -> tuple[Layer, ...]:
        maker, outputs = save(tf, make, tmp_path / "model")
        checkpoint = open_checkpoint(tmp_path / "model")
        checked = Check(checkpoint, maker.feeds, Question(fetches=tuple(outputs)))
        assert checked.run() == set()
        missing = {name for name, side in find_probes(checkpoint).unmeasured if side == "produced"}
        assert missing <= {name for name in missing if not checkpoint[name].shape}
        return checked.layers

    return run


def test_residual_network_with_a_switch_for_training(check: Any) -> None:
    def make(m: Maker) -> list[Any]:
        tf = m.tf
        training = tf.placeholder_with_default(False, (), "training")

        def layer(x: Any, name: str, *, is_active: bool = True) -> Any:
            with tf.variable_scope(name):
                x = tf.nn.conv2d(x, m.variable("w", 3, 3, N, N), [1, 1, 1, 1], "SAME")
                gamma, beta = m.variable("gamma", N), m.variable("beta", N)
                mean = m.variable("mean", N)
                variance = tf.get_variable("variance", N, initializer=tf.ones_initializer())
                x = tf.cond(
                    training,
                    lambda: tf.nn.fused_batch_norm(x, gamma, beta)[0],
                    lambda: tf.nn.fused_batch_norm(
                        x, gamma, beta, mean, variance, is_training=False
                    )[0],
                )
                return tf.nn.relu(x) if is_active else x

        x = layer(m.input(N, N, N, N), "first")
        x = tf.nn.relu(x + layer(layer(x, "a"), "b", is_active=False))
        x = tf.nn.dropout(
            tf.reduce_mean(x, [1, 2]), rate=tf.cond(training, lambda: 0.5, lambda: 0.0)
        )
        return [m.dense(x, "out")]

    found = check(make)
    assert [layer.kernels for layer in found] == [("first/w",), ("a/w",), ("b/w",), ("out/kernel",)]
    assert [layer.sources for layer in found] == [(), (0,), (1,), (0, 2)]
    assert [layer.activation is not None for layer in found] == [True, True, False, False]


def test_functions_that_are_written_out(check: Any) -> None:
    def make(m: Maker) -> list[Any]:
        tf = m.tf
        x = m.input(N, N)
        x = m.dense(x, "a", N, lambda h: tf.nn.gelu(h) if hasattr(tf.nn, "gelu") else h)
        x = m.dense(x, "b", N, lambda h: h * tf.sigmoid(h))
        x = m.dense(x, "c", N, lambda h: 0.5 * h * (1 + tf.erf(h / np.sqrt(2).astype("f4"))))
        x = m.dense(x, "d", N, tf.nn.softplus)
        return [m.dense(x, "out", N, tf.nn.elu)]

    assert all(layer.activation for layer in check(make) if layer.kernels != ("a/kernel",))


def test_a_grouped_convolution(tf: Any, tmp_path: Path) -> None:
    def build() -> None:
        x = tf.placeholder(tf.float32, [None, 5, 5, 4], "x")
        w = tf.get_variable("w", [3, 3, 2, 6], initializer=tf.glorot_normal_initializer(1))
        tf.nn.relu(tf.nn.conv2d(x, w, strides=1, padding="SAME"), "out")

    x = np.random.default_rng(5).standard_normal((3, 5, 5, 4)).astype("f4")
    wanted = made(tf, tmp_path, build, feeds={"x": x}, fetches=["out"])
    found = measure(open_checkpoint(tmp_path), [{"x": x}])
    check_moments(found["w", "produced"], wanted["out"])
    check_moments(found["w", "consumed"], x)


@pytest.mark.parametrize("version", [1, 2])
def test_loops_of_both_versions(tf: Any, check: Any, version: int) -> None:
    def make(m: Maker) -> list[Any]:
        tf = m.tf
        x = m.input(N, N, N)
        kernel, recurrent = m.variable("cell/kernel", N, N), m.variable("cell/recurrent", N, N)
        bias = m.variable("cell/bias", N)

        def body(i: Any, h: Any, found: Any) -> Any:
            h = tf.tanh(tf.matmul(x[:, i], kernel) + tf.matmul(h, recurrent) + bias)
            return i + 1, h, found.write(i, h)

        start = (0, tf.zeros([N, N]), tf.TensorArray("float32", N, element_shape=[N, N]))
        _, _, found = tf.while_loop(lambda i, *_: i < N, body, start)
        return [m.dense(tf.transpose(found.stack(), [1, 0, 2]), "out")]

    was = tf.control_flow_v2_enabled()
    (tf.enable_control_flow_v2 if version == 2 else tf.disable_control_flow_v2)()
    try:
        cell, out = check(make)
    finally:
        (tf.enable_control_flow_v2 if was else tf.disable_control_flow_v2)()
    assert (cell.kind, cell.kernels) == ("recurrent", ("cell/kernel", "cell/recurrent"))
    assert (cell.biases, cell.activation) == (("cell/bias",), ("Tanh", False))
    assert [tuple(rows) for rows in cell.state] == [("cell/recurrent", 0, N)]
    assert (cell.sources, out.sources) == ((0,), (0,))


def test_partitions_lookups_and_layer_norm(check: Any) -> None:
    def make(m: Maker) -> list[Any]:
        tf = m.tf
        ids = m.ids(N, N)
        with tf.variable_scope("emb", partitioner=tf.fixed_size_partitioner(3)):
            table = m.variable("table", N, N)
        with tf.variable_scope("fc", partitioner=tf.fixed_size_partitioner(2, axis=1)):
            kernel = tf.convert_to_tensor(m.variable("w", N, N))
        x = tf.nn.embedding_lookup(table, ids) + m.variable("positions", N, N)
        mean, variance = tf.nn.moments(x, [-1], keepdims=True)
        gamma, beta = m.variable("n/gamma", N), m.variable("n/beta", N)
        x = tf.nn.batch_normalization(x, mean, variance, beta, gamma, 1e-6)
        x = tf.nn.relu(tf.matmul(tf.reshape(x, [-1, N]), kernel))
        return [m.dense(x, "out")]

    found = check(make)
    assert [layer.kind for layer in found] == ["embedding", "normalisation", "dense", "dense"]
    assert found[2].kernels == ("fc/w",)


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "SimpleRNN"])
def test_recurrent_layers_of_keras_in_an_export(tmp_path: Path, kind: str) -> None:
    keras = pytest.importorskip("tensorflow").keras
    keras.utils.set_random_seed(3)
    model = keras.Sequential(
        [
            keras.layers.Input((5, 4), name="x"),
            getattr(keras.layers, kind)(7, return_sequences=True),
            keras.layers.LayerNormalization(),
            keras.layers.Dense(3, activation="relu"),
        ]
    )
    model.export(str(tmp_path / "export"), verbose=False)
    checkpoint = open_checkpoint(tmp_path / "export")
    x = np.random.default_rng(0).normal(size=(2, 5, 4)).astype("f4")
    checked = Check(checkpoint, {"x": x}, Question(signature="serving_default"))
    assert checked.run() == set()
    *cells, norm, dense = checked.layers
    assert {layer.kind for layer in cells} == {"recurrent"}
    shapes = [checkpoint[name].shape for layer in cells for name in layer.kernels]
    gates = {"LSTM": 4, "GRU": 3, "SimpleRNN": 1}[kind]
    assert shapes == [(4, gates * 7), (7, gates * 7)]
    (state,) = (rows for layer in cells for rows in layer.state)
    assert state == (cells[-1].kernels[-1], 0, 7)
    assert (norm.kind, dense.kind, dense.activation) == ("normalisation", "dense", ("Relu", True))
    # Each step counts, and what Keras computes once to learn of shapes does not.
    found = measure(checkpoint, [{"x": x}], question=Question(signature="serving_default"))
    assert {found[name, "produced"].count for layer in cells for name in layer.kernels} == {10}


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_rows_that_a_mask_of_keras_leaves_out_do_not_count(tmp_path: Path, kind: str) -> None:
    keras = pytest.importorskip("tensorflow").keras
    model = keras.Sequential(
        [
            keras.layers.Input((6,), name="ids", dtype="int32"),
            keras.layers.Embedding(9, 4, mask_zero=True),
            getattr(keras.layers, kind)(5, return_sequences=True, use_cudnn=False),
            keras.layers.Dense(2),
        ]
    )
    model.export(str(tmp_path / "export"), verbose=False)
    checkpoint = open_checkpoint(tmp_path / "export")
    _, *cells, out = layers(checkpoint)
    ids = np.array([[1, 2, 3, 0, 0, 0], [4, 5, 0, 0, 0, 0], [1, 2, 3, 4, 5, 6]], "i4")
    found = measure(checkpoint, [{"ids": ids}], question=Question(signature="serving_default"))
    for name in (name for layer in cells for name in layer.kernels):
        assert found[name, "produced"].count == found[name, "consumed"].count == 11
    assert found[out.kernels[0], "produced"].count == 18
    # The two biases of a GRU are one variable, and are added at two places.
    (bias,) = {name for layer in cells for name in layer.biases}
    assert found[bias, "produced"].count == 11
    assert found[bias, "produced"].size == checkpoint[bias].size
