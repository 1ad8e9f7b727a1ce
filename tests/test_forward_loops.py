"""Outputs and losses of graphs by TensorFlow whose loops and branches are frames, or functions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from converter import open_checkpoint
from converter.cli import cli
from converter.forward.find import find_forward
from converter.forward.losses import find_losses
from converter.forward.outputs import find_outputs
from converter.forward.variables import variables_of
from converter.graph.definition import Definition
from converter.graph.written import Graph, read_graph

pytestmark = pytest.mark.slow

WORDS, STEPS = 11, 7


@pytest.fixture(scope="module")
def tf() -> Any:
    return pytest.importorskip("tensorflow").compat.v1


class Cell:
    """A recurrent cell as TensorFlow takes it."""

    output_size = state_size = 6

    def __init__(self, tf: Any) -> None:
        self.tf = tf

    def zero_state(self, batch: Any, dtype: Any) -> Any:
        return self.tf.zeros([batch, 6], dtype)

    def __call__(self, x: Any, h: Any, scope: Any = None) -> tuple[Any, Any]:
        with self.tf.variable_scope("cell"):
            w = self.tf.get_variable("w", [10, 6])
        new = self.tf.tanh(self.tf.matmul(self.tf.concat([x, h], 1), w))
        return new, new


def saved(tf: Any, directory: Path, build: Callable[[], Any], *, is_trained: bool = True) -> None:
    """Save a graph, with an optimizer of what `build` returns."""
    with tf.Graph().as_default(), tf.Session() as session:
        tf.set_random_seed(1)
        loss = build()
        if is_trained:
            optimizer = tf.train.AdamOptimizer()
            gradients, variables = zip(*optimizer.compute_gradients(loss), strict=True)
            clipped, _ = tf.clip_by_global_norm(gradients, 5.0)
            optimizer.apply_gradients(zip(clipped, variables, strict=True))
        session.run(tf.global_variables_initializer())
        tf.train.Saver().save(session, str(directory / "model.ckpt"))


def found(directory: Path) -> tuple[list[str], list[str]]:
    """Return the outputs and the losses of a saved graph."""
    checkpoint = open_checkpoint(directory)
    graph = read_graph(checkpoint)
    assert graph is not None
    keys = set(checkpoint)
    losses = find_losses(graph, set(variables_of(graph, keys)))
    outputs = find_forward(graph, keys).outputs
    return [str(output.tensor) for output in outputs], [str(loss) for loss in losses]


def language(tf: Any) -> Any:
    x = tf.placeholder(tf.int32, [None, None], "x")
    y = tf.placeholder(tf.int32, [None, None], "y")
    lengths = tf.placeholder(tf.int32, [None], "lengths")
    words = tf.nn.embedding_lookup(tf.get_variable("words", [WORDS, 4]), x)
    hidden, _ = tf.nn.dynamic_rnn(Cell(tf), words, lengths, dtype=tf.float32)
    flat = tf.matmul(tf.reshape(hidden, [-1, 6]), tf.get_variable("softmax", [6, WORDS]))
    logits = tf.reshape(flat, [tf.shape(x)[0], -1, WORDS], name="logits")
    entropy = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=y, logits=logits)
    mask = tf.sequence_mask(lengths, tf.shape(x)[1], dtype=tf.float32)
    return tf.identity(tf.reduce_sum(entropy * mask) / tf.reduce_sum(mask), "loss")


def turns(tf: Any, loss: str) -> Any:
    """Make a loop that takes a tensor around unchanged, beside the one that it computes."""
    x = tf.placeholder(tf.float32, [None, 4], "x")
    y = tf.placeholder(tf.float32, [None, 3], "y")
    memory = tf.tanh(tf.matmul(x, tf.get_variable("w", [4, 5])))
    u = tf.get_variable("u", [5, 5])

    def body(i: Any, same: Any, h: Any) -> tuple[Any, Any, Any]:
        passed = tf.identity(same) if loss == "loop" else same
        return i + 1, passed, tf.tanh(tf.matmul(h, u) + same)

    _, same, last = tf.while_loop(lambda i, *_: i < 3, body, [0, memory, tf.zeros_like(memory)])
    if loss == "named":
        tf.identity(same, "kept")
    out = tf.matmul(last, tf.get_variable("v", [5, 3]), name="out")
    if loss == "loop":

        def add(i: Any, total: Any) -> tuple[Any, Any]:
            return i + 1, total + tf.reduce_mean(tf.square(out[:, i] - y[:, i]))

        return tf.identity(tf.while_loop(lambda i, _: i < 3, add, [0, 0.0])[1], "loss")
    if loss == "branch":
        is_robust = tf.placeholder_with_default(False, [], "is_robust")
        ways = [lambda: tf.reduce_mean(tf.abs(out - y)), lambda: tf.reduce_mean((out - y) ** 2)]
        return tf.multiply(tf.cond(is_robust, *ways), 2.0, name="loss")
    return tf.reduce_mean(tf.square(out - y), name="loss")


@pytest.mark.parametrize("is_trained", [True, False])
def test_a_recurrent_network(tf: Any, tmp_path: Path, flow: str, is_trained: bool) -> None:
    saved(tf, tmp_path, lambda: language(tf), is_trained=is_trained)
    # Only what the loop computes: not the kernel, the lengths and the zeros that it takes.
    state = "rnn/while/Exit_3" if flow == "frames" else "rnn/while/Identity_4"
    assert found(tmp_path) == ([state, "logits"], ["loss"])


def test_a_loss_that_only_lists_lead_to(tf: Any, tmp_path: Path, flow: str) -> None:
    def build() -> Any:
        x = tf.placeholder(tf.float32, [None, STEPS, 4], "x")
        y = tf.placeholder(tf.float32, [None, STEPS, 6], "y")
        hidden, _ = tf.nn.dynamic_rnn(Cell(tf), x, dtype=tf.float32)
        return tf.reduce_mean(tf.square(hidden - y), name="loss")

    saved(tf, tmp_path, build)
    assert found(tmp_path)[1] == ["loss"]


@pytest.mark.parametrize("loss", ["plain", "loop", "branch"])
def test_what_comes_around_unchanged_is_no_output(
    tf: Any, tmp_path: Path, flow: str, loss: str
) -> None:
    saved(tf, tmp_path, lambda: turns(tf, loss))
    assert found(tmp_path) == (["out"], ["loss"])


def test_what_comes_around_unchanged_is_one_by_another_name(
    tf: Any, tmp_path: Path, flow: str
) -> None:
    saved(tf, tmp_path, lambda: turns(tf, "named"))
    assert found(tmp_path) == (["kept", "out"], ["loss"])


def test_a_loop_without_its_identities(tf: Any, tmp_path: Path) -> None:
    saved(tf, tmp_path, lambda: turns(tf, "plain"), is_trained=False)
    checkpoint = open_checkpoint(tmp_path)
    graph = read_graph(checkpoint)
    assert graph is not None
    definition = graph.definition.graph
    given = b"while/Identity"
    kept = [node for node in definition.node if not node.name.startswith(given)]
    kept = [node for node in kept if not any(name.startswith(given) for name in node.input)]
    del definition.node[:]
    definition.node.extend(kept)
    cut = Graph(Definition(graph.path, definition))
    outputs = find_outputs(cut, set(variables_of(cut, set(checkpoint))))
    # Before it are counters, and what comes around unchanged.
    assert [str(output.tensor) for output in outputs] == ["while:4"]


def test_a_proof_tells_the_loss(tf: Any, tmp_path: Path, flow: str) -> None:
    saved(tf, tmp_path, lambda: language(tf))
    draw = np.random.default_rng(0)
    text = draw.integers(0, WORDS, (5, STEPS + 1), dtype="i4")
    data: dict[str, Any] = {
        "x": text[:, :-1],
        "y": text[:, 1:],
        "lengths": np.array([7, 3, 1, 5, 2], "i4"),
    }
    np.savez(tmp_path / "data.npz", **data)
    cut = ["ckpt", tmp_path, "--keep", "model", "--plugin", "truncate", "--resize", "cell=4"]
    cut += ["--prove", "--tolerance", "10", "--fetch", "logits"]

    def run(*arguments: Any) -> str:
        result = CliRunner().invoke(cli, list(map(str, arguments)))
        assert result.exit_code == 0, result.output
        return result.output

    told = run(*cut, "--inputs", tmp_path / "data.npz")
    (line,) = [line for line in told.splitlines() if line.startswith("loss ")]
    with tf.Graph().as_default(), tf.Session() as session:
        tf.train.import_meta_graph(str(tmp_path / "model.ckpt.meta")).restore(
            session, str(tmp_path / "model.ckpt")
        )
        wanted = session.run("loss:0", {f"{name}:0": value for name, value in data.items()})
    assert line.startswith(f"loss    loss  {wanted:.4g} -> ")
    assert "input   y  int32 [5, 7]  given" in told.splitlines()
    assert "the loss loss is not compared: that of drawn data says nothing; give x, y" in run(*cut)


def test_a_width_that_a_loop_takes_can_be_equalised(tf: Any, tmp_path: Path, flow: str) -> None:
    saved(tf, tmp_path, lambda: language(tf))
    equalise = ["--plugin", "equalize", "--equalize-widths", "words", "--keep", "model"]
    result = CliRunner().invoke(cli, ["ckpt", str(tmp_path), *equalise, "--prove"])
    assert result.exit_code == 0, result.output
    assert "passed  2 outputs" in result.output


def test_new_entries_behind_functions_learn(tf: Any, tmp_path: Path) -> None:
    saved(tf, tmp_path, lambda: turns(tf, "branch"), is_trained=False)
    grow = ["--plugin", "pad", "--resize", "w=9", "--pad-fill", "glorot_uniform", "--prove"]
    result = CliRunner().invoke(cli, ["ckpt", str(tmp_path), *grow])
    assert result.exit_code == 0, result.output
    assert "100.0% at the second, on drawn data" in result.output
