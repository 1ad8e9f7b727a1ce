"""Structures hold on the running graph: real ones, and models whose sizes are all equal."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import VALID, Case
from converter_plugins.pad import Pad
from growth import growth_error
from model_maker import Build, Maker, N, asked, save
from structure_maker import told

from converter import Checkpoint, open_checkpoint
from converter.model import Model
from converter.permutation import PermutationTest, permute
from converter.plan import make_plan
from converter.proof import Question
from converter.structure.infer import infer
from converter.structure.structure import Structure

pytestmark = pytest.mark.slow

TOLERANCE = 1e-5
RECORDED = [
    case
    for case in VALID
    if case.record.get("io") and all("tensor" in e for e in case.record["io"]["inputs"].values())
]
# The softmax does not see what is added to all of its entries.
INVARIANT = {
    "tf115_v2_bert_mini": {
        f"bert/encoder/layer_{number}/attention/self/key/bias" for number in range(2)
    },
}
# Where the places of the entries count: what is looked up in, and the steps of sequences.
OTHERS = {
    "tf012_v1_charlm_basiclstm": {"embedding/vocabulary": "bound"},
    "tf10_v2_multilstm_adagrad": {"embedding/vocabulary": "bound"},
    "tf10_v2_partitioned": {"emb/vocabulary": "bound"},
    "tf115_v2_bert_mini": {
        "input_ids": "bound",
        "bert/embeddings/position_embeddings": "unseen",
        "bert/embeddings/token_type_embeddings/vocabulary": "bound",
        "bert/embeddings/word_embeddings/vocabulary": "bound",
    },
    "tf14_v2_attention_bahdanau": {"embedding/vocabulary": "bound"},
    "tf14_v2_charlm_lstm_ema": {"charlm/embedding/vocabulary": "bound"},
}


@pytest.fixture(scope="module")
def tf() -> Any:
    return pytest.importorskip("tensorflow").compat.v1


def hold(checkpoint: Checkpoint, structure: Structure, question: Question) -> PermutationTest:
    """Test every width: none is refuted, and the new units of a width change nothing."""
    test = permute(checkpoint, structure, question)
    assert test.passed
    with Model(checkpoint, question) as model:
        for width in structure.widths.values():
            is_looked_up = any(what == "lookup" for what, _ in width.touches)
            if width.resizable and width.growth == "any" and not is_looked_up:
                error = growth_error(model, structure, width.name, width.size // 2)
                assert error < TOLERANCE, width.name
    return test


def recorded(case: Case, path: Path) -> Question:
    """Return what was recorded of a case as what to run; the inputs are written to a file."""
    io = case.record["io"]
    arrays = np.load(case.directory / io["file"])
    names = {name: entry["tensor"].removesuffix(":0") for name, entry in io["inputs"].items()}
    np.savez(path, **{tensor: arrays[name] for name, tensor in names.items()})
    return Question(
        path,
        tuple(f"{name}={json.dumps(value)}" for name, value in io["feeds"].items()),
        tuple(entry["tensor"] for entry in io["outputs"].values()),
    )


@pytest.mark.parametrize("case", RECORDED, ids=lambda case: case.name)
def test_widths_hold_on_the_running_graph(tf: Any, case: Case, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(case.path)
    structure = infer(checkpoint)
    test = hold(checkpoint, structure, recorded(case, tmp_path / "inputs.npz"))
    for name, width in structure.widths.items():
        trial = test.trials[name]
        if width.symmetry != "bound":
            assert trial.result == "tested", name
        if trial.result == "tested":
            assert trial.error is not None
            assert trial.error < TOLERANCE, name
            # Every axis that was left out was seen, but for those that change nothing.
            assert trial.control is not None
            assert trial.control > 1e-4, name
            known = INVARIANT.get(case.name, set())
            assert {member.name for member in trial.invariant} <= known, name
            assert trial.unread == ()
            assert trial.together == ()
    others = {n: t.result for n, t in test.trials.items() if t.result != "tested"}
    assert others == OTHERS.get(case.name, {})


@pytest.fixture
def build(tf: Any, tmp_path: Path) -> Callable[[Build], tuple[Structure, list[str]]]:
    """Build a model, train it one step, save it, and test its widths."""

    def run(make: Build) -> tuple[Structure, list[str]]:
        maker, outputs = save(tf, make, tmp_path / "model")
        checkpoint = open_checkpoint(tmp_path / "model")
        structure = infer(checkpoint)
        assert structure.conflicts == ()
        assert structure.opaque == ()
        test = hold(checkpoint, structure, asked(maker.feeds, outputs, tmp_path / "inputs.npz"))
        inner = [w.name for w in structure.widths.values() if w.symmetry != "bound"]
        return structure, [name for name in inner if test.trials[name].result == "tested"]

    return run


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


def test_equal_parts_of_what_holds_a_slice_of_a_partitioned_variable(
    tf: Any, tmp_path: Path
) -> None:
    """A slice is no width, so that nothing can be asked of its length."""

    def make(m: Maker) -> list[Any]:
        x = m.input(4, N)
        with tf.variable_scope("fc", partitioner=tf.fixed_size_partitioner(2, axis=1)):
            first, _ = m.variable("w", N, 2 * N)
        both = tf.concat([tf.matmul(x, first), tf.matmul(x, m.variable("z", N, N))], 1)
        one, other = tf.split(both, 2, axis=1)
        h = tf.nn.relu(m.dense(x, "h"))
        return [tf.concat([tf.tanh(one), tf.sigmoid(other), m.dense(h, "out")], 1)]

    save(tf, make, tmp_path / "m", train=False)
    checkpoint = open_checkpoint(tmp_path / "m")
    assert infer(checkpoint).evens == ()
    assert make_plan(checkpoint, [Pad(resize={"h": N + 2})]).is_exact


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
