"""Structures hold on the running graph: real ones, and models whose sizes are all equal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import VALID, Case
from permuted import Model
from structure_maker import told

from converter import open_checkpoint
from converter.structure.infer import Structure, infer

pytestmark = pytest.mark.slow

N = 6
TOLERANCE = 1e-5
RECORDED = [
    case for case in VALID if case.record.get("io") and case.record["format"] in ("V1", "V2")
]


@pytest.fixture(scope="module")
def tf() -> Any:
    return pytest.importorskip("tensorflow").compat.v1


def hold(model: Model) -> list[str]:
    """Test every width that is not bound; return what was tested."""
    tested = []
    for width in model.structure.widths.values():
        if width.symmetry not in ("bound", "opaque"):
            assert model.permutation_error(width.name) < TOLERANCE, width.name
            tested.append(width.name)
        is_looked_up = any(what == "lookup" for what, _ in width.touches)
        if width.resizable and width.growth == "any" and not is_looked_up:
            assert model.growth_error(width.name, width.size // 2) < TOLERANCE, width.name
    return tested


@pytest.mark.parametrize("case", RECORDED, ids=lambda case: case.name)
def test_widths_hold_on_the_running_graph(tf: Any, case: Case) -> None:
    io = case.record["io"]
    arrays = np.load(case.directory / io["file"])
    feeds = {e["tensor"]: arrays[name] for name, e in io["inputs"].items()} | io["feeds"]
    checkpoint = open_checkpoint(case.path)
    structure = infer(checkpoint)
    fetches = [entry["tensor"] for entry in io["outputs"].values()]
    model = Model(checkpoint, structure, feeds, fetches)
    try:
        hold(model)
    finally:
        model.close()


def test_a_member_that_is_left_out_is_seen(tf: Any) -> None:
    case = next(case for case in VALID if case.name == "tf14_v2_charlm_lstm_ema")
    arrays = np.load(case.directory / "io.npz")
    checkpoint = open_checkpoint(case.path)
    structure = infer(checkpoint)
    model = Model(checkpoint, structure, {"x:0": arrays["in_x"]}, ["charlm/softmax/BiasAdd:0"])
    for name in ("charlm/rnn/lstm_cell/bias", "charlm/softmax/kernel"):
        axes = structure.axes[name]
        structure.axes[name] = tuple(type(axis)(((0,),)) for axis in axes)  # type: ignore[index]
        assert model.permutation_error("charlm/rnn/lstm_cell") > 1e-4, name
        structure.axes[name] = axes  # type: ignore[index]
    assert model.permutation_error("charlm/rnn/lstm_cell") < TOLERANCE
    model.close()


Build = Callable[["Maker"], list[Any]]


class Maker:
    """Builds models with TensorFlow; every size is N."""

    def __init__(self, tf: Any) -> None:
        self.tf = tf
        self.feeds: dict[str, Any] = {}
        self._noise = np.random.default_rng(2)

    def input(self, *shape: int) -> Any:
        found = self.tf.placeholder("float32", shape, "x")
        self.feeds[found.name] = self._noise.normal(size=shape).astype("f4")
        return found

    def ids(self, *shape: int) -> Any:
        found = self.tf.placeholder("int32", shape, "ids")
        self.feeds[found.name] = self._noise.integers(0, N, shape)
        return found

    def variable(self, name: str, *shape: int) -> Any:
        return self.tf.get_variable(
            name, shape, "float32", self.tf.random_normal_initializer(stddev=0.5)
        )

    def dense(self, x: Any, name: str, columns: int = N, act: Any = None) -> Any:
        with self.tf.variable_scope(name):
            kernel = self.variable("kernel", int(x.shape[-1]), columns)
            product = self.tf.tensordot(x, kernel, [[len(x.shape) - 1], [0]])
            found = product + self.variable("bias", columns)
        return act(found) if act else found


@pytest.fixture
def build(tf: Any, tmp_path: Path) -> Iterator[Callable[[Build], tuple[Structure, list[str]]]]:
    """Build a model, train it one step, save it, and test its widths."""
    models = []

    def run(make: Build) -> tuple[Structure, list[str]]:
        with tf.Graph().as_default():
            maker = Maker(tf)
            outputs = make(maker)
            loss = sum(tf.reduce_mean(tf.square(output)) for output in outputs)
            train = tf.train.AdamOptimizer(1e-3).minimize(loss)
            with tf.Session() as session:
                session.run(tf.global_variables_initializer())
                session.run(train, maker.feeds)
                tf.train.Saver().save(session, str(tmp_path / "model"))
        checkpoint = open_checkpoint(tmp_path / "model")
        structure = infer(checkpoint)
        assert structure.conflicts == ()
        assert structure.opaque == ()
        models.append(Model(checkpoint, structure, maker.feeds, [o.name for o in outputs]))
        return structure, hold(models[-1])

    yield run
    for model in models:
        model.close()


def test_transformer_with_fused_projections(build: Any) -> None:
    def make(m: Maker) -> list[Any]:
        tf = m.tf
        ids = m.ids(N, N)
        table = m.variable("embedding", N, N)
        x = tf.gather(table, ids) * np.float32(N**0.5) + m.variable("positions", N, N)

        def norm(h: Any, name: str) -> Any:
            mean, variance = tf.nn.moments(h, [-1], keepdims=True)
            beta, gamma = m.variable(f"{name}/beta", N), m.variable(f"{name}/gamma", N)
            return tf.nn.batch_normalization(h, mean, variance, beta, gamma, 1e-6)

        qkv = tf.reshape(m.dense(norm(x, "n1"), "qkv", 3 * N), [N, N, 3, 2, N // 2])
        q, k, v = tf.unstack(qkv, axis=2)
        scores = tf.einsum("bthd,bshd->bhts", q, k) * np.float32((N // 2) ** -0.5)
        mixed = tf.einsum("bhts,bshd->bthd", tf.nn.softmax(scores), v)
        x = x + m.dense(tf.reshape(mixed, [N, N, N]), "o")
        x = x + m.dense(m.dense(norm(x, "n2"), "up", N, tf.nn.relu), "down")
        return [tf.tensordot(norm(x, "n3"), table, [[2], [1]])]

    structure, tested = build(make)
    assert told(structure, "qkv/kernel") == (
        "embedding, 3*qkv/heads*qkv/head_size | consume, produce"
    )
    assert told(structure, "o/kernel") == "qkv/heads*qkv/head_size, embedding | consume, produce"
    assert told(structure, "up/kernel") == "embedding, up | consume, produce"
    assert told(structure, "n3/gamma") == "embedding | gain"
    assert told(structure, "embedding") == (
        "embedding/vocabulary, embedding | consume produce, produce consume"
    )
    assert told(structure, "embedding/Adam") == told(structure, "embedding")
    assert structure.widths["qkv/head_size"].growth == "zero"
    assert set(tested) == {"embedding", "qkv/heads", "qkv/head_size", "up"}


def test_unrolled_lstms_in_both_directions(build: Any) -> None:
    def make(m: Maker) -> list[Any]:
        tf = m.tf
        steps = tf.unstack(m.input(N, N, N), axis=1)

        def cell(steps: list[Any], name: str) -> list[Any]:
            h, c, found = tf.zeros([N, N]), tf.zeros([N, N]), []
            kernel, bias = (
                m.variable(f"{name}/kernel", 2 * N, 4 * N),
                m.variable(f"{name}/bias", 4 * N),
            )
            for x in steps:
                gates = tf.matmul(tf.concat([x, h], 1), kernel) + bias
                i, j, f, o = tf.split(gates, 4, axis=1)
                c = c * tf.sigmoid(f + 1) + tf.sigmoid(i) * tf.tanh(j)
                h = tf.tanh(c) * tf.sigmoid(o)
                found.append(h)
            return found

        both = [
            tf.concat([a, b], 1)
            for a, b in zip(cell(steps, "fw"), cell(steps[::-1], "bw")[::-1], strict=True)
        ]
        summed = [
            a + b
            for a, b in zip(
                cell(both_in(m, both), "fw2"), cell(both_in(m, both), "bw2"), strict=True
            )
        ]
        return [m.dense(summed[-1], "out")]

    def both_in(m: Maker, both: list[Any]) -> list[Any]:
        with m.tf.variable_scope("mix", reuse=m.tf.AUTO_REUSE):
            kernel = m.variable("kernel", 2 * N, N)
        return [m.tf.matmul(x, kernel) for x in both]

    structure, tested = build(make)
    assert told(structure, "fw/kernel") == "x + fw, [i,j,f,o]*fw | consume, produce"
    assert told(structure, "bw/bias") == "[i,j,f,o]*bw | shift"
    assert told(structure, "mix/kernel") == "fw + bw, mix | consume, produce"
    assert told(structure, "fw2/kernel") == "mix + fw2, [i,j,f,o]*fw2 | consume, produce"
    assert told(structure, "bw2/kernel") == "mix + fw2, [i,j,f,o]*fw2 | consume, produce"
    assert set(tested) == {"fw", "bw", "mix", "fw2"}


@pytest.mark.parametrize("version", [1, 2])
def test_loops_of_both_versions(tf: Any, build: Any, version: int) -> None:
    def make(m: Maker) -> list[Any]:
        tf = m.tf
        x = m.input(N, N, N)
        kernel, bias = m.variable("cell/kernel", 2 * N, N), m.variable("cell/bias", N)

        def body(i: Any, h: Any, found: Any) -> Any:
            h = tf.tanh(tf.matmul(tf.concat([x[:, i], h], 1), kernel) + bias)
            return i + 1, h, found.write(i, h)

        start = (0, tf.zeros([N, N]), tf.TensorArray("float32", N, element_shape=[N, N]))
        _, _, found = tf.while_loop(lambda i, *_: i < N, body, start)
        hidden = tf.transpose(found.stack(), [1, 0, 2])
        return [m.dense(hidden, "out")]

    was = tf.control_flow_v2_enabled()
    (tf.enable_control_flow_v2 if version == 2 else tf.disable_control_flow_v2)()
    try:
        structure, tested = build(make)
    finally:
        (tf.enable_control_flow_v2 if was else tf.disable_control_flow_v2)()
    assert told(structure, "cell/kernel") == "x + cell, cell | consume, produce"
    assert told(structure, "out/kernel") == "cell, out | consume, produce"
    assert tested == ["cell"]


def test_convolutions(build: Any) -> None:
    def make(m: Maker) -> list[Any]:
        tf = m.tf

        def convolve(h: Any, name: str, size: int, columns: int = N) -> Any:
            kernel = m.variable(f"{name}/kernel", size, size, int(h.shape[-1]), columns)
            return tf.nn.conv2d(h, kernel, [1, 1, 1, 1], "SAME")

        h = tf.nn.relu(convolve(m.input(N, N, N, N), "first", 3))
        h = tf.nn.relu(h + convolve(tf.nn.relu(convolve(h, "a", 3)), "b", 3))
        h = tf.nn.max_pool(h, [1, 2, 2, 1], [1, 2, 2, 1], "VALID")
        h = tf.nn.depthwise_conv2d(h, m.variable("d/w", 3, 3, N, 2), [1, 1, 1, 1], "SAME")
        h = tf.nn.relu6(convolve(h, "p", 1))
        both = tf.concat([h, convolve(h, "q", 3)], 3)
        squeezed = m.dense(m.dense(tf.reduce_mean(both, [1, 2]), "s1"), "s2", 2 * N, tf.sigmoid)
        both = both * squeezed[:, None, None, :]
        flat = tf.reshape(both, [-1, N // 2 * (N // 2) * 2 * N])
        return [m.dense(m.dense(flat, "fc", N, tf.nn.relu), "out")]

    structure, tested = build(make)
    assert told(structure, "first/kernel") == "3, 3, x, first | -, -, consume, produce"
    assert told(structure, "b/kernel") == "3, 3, a, first | -, -, consume, produce"
    assert told(structure, "d/w") == "3, 3, first, d | -, -, gain, produce"
    assert told(structure, "p/kernel") == "1, 1, first*d, p | -, -, consume, produce"
    assert told(structure, "s1/kernel") == "p + q, s1 | consume, produce"
    assert told(structure, "s2/kernel") == "s1, p + q | consume, produce"
    assert told(structure, "fc/kernel") == "9*(p + q), fc | consume, produce"
    assert set(tested) == {"first", "a", "d", "p", "q", "s1", "fc"}


def test_partitions_and_lookups(build: Any) -> None:
    def make(m: Maker) -> list[Any]:
        tf = m.tf
        ids = m.ids(N, N)
        with tf.variable_scope("emb", partitioner=tf.fixed_size_partitioner(3)):
            table = m.variable("table", N, N)
        with tf.variable_scope("fc", partitioner=tf.fixed_size_partitioner(2, axis=1)):
            kernel = tf.convert_to_tensor(m.variable("w", N, N))
        x = tf.reshape(tf.nn.embedding_lookup(table, ids), [-1, N])
        return [m.dense(tf.nn.relu(tf.matmul(x, kernel)), "out")]

    structure, tested = build(make)
    assert told(structure, "emb/table") == "emb/vocabulary, emb | consume, produce"
    assert told(structure, "fc/w") == "emb, fc | consume, produce"
    assert told(structure, "fc/w/Adam") == "emb, fc | consume, produce"
    assert told(structure, "out/kernel") == "fc, out | consume, produce"
    assert tested == ["emb", "fc"]
