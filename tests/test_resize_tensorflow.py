"""Resized checkpoints in TensorFlow, in graphs that the model's own code builds at the new size."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from converter_plugins.duplicate import Duplicate
from converter_plugins.pad import Pad
from converter_plugins.project import Project

from converter import Array, Resizer, Units, convert, open_checkpoint
from converter.initializer import parse_initializer
from converter.initializers import BUILT_IN
from converter.resize.maps import AxisMap
from converter.structure.axes.axis import Axis
from converter.structure.infer import structure_of
from converter.structure.structure import Structure

pytestmark = pytest.mark.slow

LIVE = parse_initializer("glorot_uniform", BUILT_IN)
SIZES = {"stream": 8, "units": 6, "projected": 5, "head": 4, "channels": 6, "inner": 7}
HEADS = 2
WORDS = 11
STATISTICS = ("conv/mean", "conv/variance")


@pytest.fixture(scope="module")
def tf() -> Any:
    return pytest.importorskip("tensorflow").compat.v1


class Net:
    """A model of several kinds of layers, whose widths have the sizes that are given."""

    def __init__(self, tf: Any, sizes: Mapping[str, int]) -> None:
        self.tf = tf
        self.sizes = sizes
        self.noise = np.random.default_rng(3)
        self.graph = tf.Graph()
        with self.graph.as_default():
            self.ids = tf.placeholder("int32", [None, 4], "ids")
            self.logits = self.forward()
            weights = np.random.default_rng(4).normal(size=WORDS).astype("f4")
            self.loss = tf.reduce_mean(tf.tanh(self.logits) * weights)
            # Without a step the slots are of the gradients of the values that are saved.
            self.train = tf.train.AdamOptimizer(0.0).minimize(self.loss)
            self.variables = tf.trainable_variables()
            self.gradients = tf.gradients(self.loss, self.variables)
            self.saver = tf.train.Saver()
            self.session = tf.Session()

    def variable(self, name: str, *shape: int, mean: float = 0.0) -> Any:
        values = mean + self.noise.normal(0, 0.5 if mean == 0 else 0.1, shape)
        return self.tf.get_variable(name, initializer=values.astype("f4"))

    def dense(self, x: Any, name: str, columns: int) -> Any:
        with self.tf.variable_scope(name):
            kernel = self.variable("kernel", int(x.shape[-1]), columns)
            return self.tf.tensordot(x, kernel, 1) + self.variable("bias", columns)

    def norm(self, x: Any, name: str) -> Any:
        with self.tf.variable_scope(name):
            mean, variance = self.tf.nn.moments(x, [-1], keepdims=True)
            size = int(x.shape[-1])
            beta, gamma = self.variable("beta", size), self.variable("gamma", size, mean=1.0)
            return self.tf.nn.batch_normalization(x, mean, variance, beta, gamma, 1e-3)

    def attention(self, x: Any) -> Any:
        tf, head = self.tf, self.sizes["head"]

        def heads(name: str, size: int) -> Any:
            return tf.transpose(
                tf.reshape(self.dense(x, name, HEADS * size), [-1, 4, HEADS, size]), [0, 2, 1, 3]
            )

        query, key, value = heads("query", head), heads("key", head), heads("value", 3)
        scores = tf.matmul(query, key, transpose_b=True) * np.float32(head**-0.5)
        mixed = tf.matmul(tf.nn.softmax(scores), value)
        return tf.reshape(tf.transpose(mixed, [0, 2, 1, 3]), [-1, 4, HEADS * 3])

    def recurrent(self, x: Any) -> Any:
        """An LSTM with peepholes and a projection, unrolled."""
        tf, units, projected = self.tf, self.sizes["units"], self.sizes["projected"]
        with tf.variable_scope("lstm"):
            kernel = self.variable("kernel", int(x.shape[-1]) + projected, 4 * units)
            bias = self.variable("bias", 4 * units)
            peep = [self.variable(f"w_{gate}_diag", units) for gate in "ifo"]
            projection = self.variable("projection", units, projected)
            c = tf.zeros([tf.shape(x)[0], units])
            m = tf.zeros([tf.shape(x)[0], projected])
            for step in tf.unstack(x, axis=1):
                i, j, f, o = tf.split(tf.matmul(tf.concat([step, m], 1), kernel) + bias, 4, axis=1)
                c = tf.sigmoid(f + 1.0 + peep[1] * c) * c + tf.sigmoid(i + peep[0] * c) * tf.tanh(j)
                m = tf.matmul(tf.sigmoid(o + peep[2] * c) * tf.tanh(c), projection)
            return m

    def convolved(self, x: Any) -> Any:
        """Two convolutions with a batch normalisation between, at inference."""
        tf, channels = self.tf, self.sizes["channels"]
        with tf.variable_scope("conv"):
            first = self.variable("first", 1, 3, int(x.shape[-1]), channels)
            y = tf.nn.conv2d(tf.expand_dims(x, 1), first, [1, 1, 1, 1], "SAME")
            mean, beta = self.variable("mean", channels), self.variable("beta", channels)
            variance = self.variable("variance", channels, mean=1.0)
            gamma = self.variable("gamma", channels, mean=1.0)
            y = tf.nn.relu(tf.nn.batch_normalization(y, mean, variance, beta, gamma, 1e-3))
            second = self.variable("second", 1, 3, channels, 5)
            return tf.reduce_mean(tf.nn.conv2d(y, second, [1, 1, 1, 1], "SAME"), [1, 2])

    def forward(self) -> Any:
        tf, stream = self.tf, self.sizes["stream"]
        x = tf.gather(self.variable("stream", WORDS, stream), self.ids)
        x = x + self.variable("positions", 4, stream)
        x = x + self.dense(self.attention(self.norm(x, "norm_a")), "mixed", stream)
        inner = tf.nn.relu(self.dense(self.norm(x, "norm_b"), "inner", self.sizes["inner"]))
        x = x + self.dense(inner, "outer", stream)
        y = self.norm(x, "norm_c")
        joined = tf.concat([self.recurrent(y), self.convolved(y)], 1)
        return tf.identity(self.dense(joined, "out", WORDS), name="logits")

    def run(self, *wanted: Any) -> list[Any]:
        ids = np.random.default_rng(1).integers(0, WORDS, [6, 4])
        found: list[Any] = self.session.run(list(wanted), {self.ids: ids})
        return found


@pytest.fixture(scope="module")
def saved(tf: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Net, Path]]:
    net = Net(tf, SIZES)
    path = tmp_path_factory.mktemp("net") / "model"
    with net.graph.as_default():
        net.session.run(tf.global_variables_initializer())
        net.run(net.train)
        net.saver.save(net.session, str(path))
    yield net, path
    net.session.close()


def live(**options: Any) -> Resizer:
    return Pad(fill=LIVE, **options)


def even(**options: Any) -> Resizer:
    return Duplicate(shares="even", **options)


# What code calls each width, and the tool.
NAMES = {
    "stream": "stream",
    "units": "lstm",
    "projected": "lstm/projection",
    "head": "query/head_size",
    "channels": "conv/first",
}
CASES: dict[str, tuple[Callable[..., Resizer], dict[str, int]]] = {
    "pad a stream": (Pad, {"stream": 12}),
    "copy a stream": (even, {"stream": 16}),
    "pad": (Pad, {"units": 9, "channels": 8}),
    "fill": (live, {"units": 9, "projected": 7, "head": 6, "channels": 9}),
    "copy": (Duplicate, {"units": 15, "projected": 7, "head": 6, "channels": 10}),
    "turn": (Project, {"projected": 8, "head": 6}),
}


@pytest.mark.parametrize("case", CASES)
def test_outputs_gradients_and_slots_at_the_new_size(
    tf: Any, saved: tuple[Net, Path], tmp_path: Path, case: str
) -> None:
    net, path = saved
    make, sizes = CASES[case]
    named = {NAMES[of]: size for of, size in sizes.items()}
    (before,) = net.run(net.logits)
    strategy = make(resize=named)
    source = open_checkpoint(path)
    plans = strategy.resizes(source).widths
    assert {plan.name for plan in plans if plan.verdict.exact} == set(named)
    convert(path, tmp_path / "new", [strategy], to="tf")
    wider = Net(tf, {**SIZES, **sizes})
    with wider.graph.as_default():
        wider.saver.restore(wider.session, str(tmp_path / "new" / "model"))
    (after,) = wider.run(wider.logits)
    assert np.abs(after - before).max() < 1e-5 * np.abs(before).max()

    gradients = [dense(g) for g in wider.run(*wider.gradients)]
    wider.session.close()
    result = open_checkpoint(tmp_path / "new" / "model")
    structure = structure_of(source)
    stream = structure.widths["stream"].normalised
    # What a mean over the width takes off is not known of new units.
    spread = stream.before if make is Pad and stream is not None and "stream" in sizes else ()
    moved = 0.0
    scale = max(float(np.abs(gradient).max()) for gradient in gradients)
    for variable, gradient in zip((v.op.name for v in wider.variables), gradients, strict=True):
        first = result[f"{variable}/Adam"].read()
        second = result[f"{variable}/Adam_1"].read()
        new = np.ones(gradient.shape, bool)
        if make in (Pad, live):
            new[np.ix_(*(old_places(a, structure, named) for a in structure.axes[variable]))] = 0
            moved = max(moved, float(np.abs(gradient[new]).max(initial=0)))
            assert (first[new] == 0).all()
        kept = ~new if make in (Pad, live) else new
        if variable in spread or variable in STATISTICS:
            continue
        np.testing.assert_allclose(
            first[kept], 0.1 * gradient[kept], rtol=1e-3, atol=2e-6 * scale, err_msg=variable
        )
        if make is not Project:
            np.testing.assert_allclose(
                second[kept],
                0.001 * gradient[kept] ** 2,
                rtol=2e-3,
                atol=1e-8 * scale**2,
                err_msg=variable,
            )
    if make in (Pad, live):
        assert {plan.dead is None for plan in plans} == {moved > 0}


def old_places(axis: Axis, structure: Structure, sizes: Mapping[str, int]) -> Array:
    units = {name: Units.first(structure.sizes[name], size) for name, size in sizes.items()}
    found = AxisMap(axis, structure.sizes, units)
    return np.flatnonzero(found.entries(0, found.length).old >= 0)


def dense(gradient: Any) -> Array:
    if not hasattr(gradient, "indices"):
        return np.asarray(gradient)
    found = np.zeros(gradient.dense_shape)
    np.add.at(found, gradient.indices, gradient.values)
    return found
