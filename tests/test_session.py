"""Graphs of every version run with our values, and give what was recorded."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Case, case
from test_forward import RECORDED, chosen, forward_of

from converter import ConverterError, InputError, UsageError, open_checkpoint
from converter.forward.feeds import complete, given_values
from converter.forward.find import find_forward
from converter.graph.node import Tensor, tensor
from converter.graph.written import read_graph
from converter.proof import Proof, Question, prove
from converter.session import RunError, Session, can_run, dtypes_of
from converter.variable import Array

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def tf() -> Any:
    return pytest.importorskip("tensorflow").compat.v1


def run(path: str | Path, feeds: dict[str, Any], fetches: list[str]) -> dict[str, Array]:
    checkpoint = open_checkpoint(path)
    graph = read_graph(checkpoint)
    assert graph is not None
    given = given_values(graph, {name: np.asarray(v) for name, v in feeds.items()}, "test")
    forward = find_forward(
        graph, set(checkpoint), fetches=fetches, fed=list(feeds), can_run=can_run()
    )
    values = next(complete(forward, given, 0)).values
    with Session(forward, checkpoint, dtypes_of(forward, values)) as session:
        return {str(source): value for source, value in session.run(values).items()}


@pytest.mark.parametrize("case", RECORDED, ids=lambda case: case.name)
def test_it_gives_what_was_recorded(case: Case) -> None:
    io = case.record["io"]
    arrays = np.load(case.directory / io["file"])
    feeds = {entry["tensor"]: arrays[name] for name, entry in io["inputs"].items()} | io["feeds"]
    wanted = {
        str(tensor(entry["tensor"])): arrays[name]
        for name, entry in {**io["outputs"], **io["states"]}.items()
    }
    found = run(case.path, feeds, list(wanted))
    for name, values in wanted.items():
        assert found[name].shape == values.shape
        assert np.abs(found[name] - values).max() <= 1e-5 * np.abs(values).max(), name


@pytest.mark.parametrize("case", RECORDED, ids=lambda case: case.name)
def test_it_runs_on_drawn_inputs(case: Case) -> None:
    checkpoint = open_checkpoint(case.path)
    proof = prove(checkpoint, checkpoint)
    assert proof.passed
    assert {found.name for found in proof.outputs} == chosen(forward_of(case))
    assert all(found.largest == 0 for found in proof.outputs)
    assert any(found.scale > 0.1 for found in proof.outputs)


def made(
    tf: Any, directory: Path, build: Callable[[], Any], *, feeds: dict[str, Any], fetches: list[str]
) -> dict[str, Array]:
    """Save a model that `build` makes, and return what it gives; `build` may return a Saver."""
    graph = tf.Graph()
    with graph.as_default():
        tf.set_random_seed(1)
        saver = build() or tf.train.Saver()
        with tf.Session() as session:
            session.run([tf.global_variables_initializer(), tf.tables_initializer()])
            saver.save(session, str(directory / "model"))
            values = session.run([f"{name}:0" for name in fetches], _ports(feeds))
    return dict(zip(fetches, values, strict=True))


def _ports(feeds: dict[str, Any]) -> dict[str, Any]:
    return {f"{name}:0" if ":" not in name else name: value for name, value in feeds.items()}


def same(directory: Path, feeds: dict[str, Any], wanted: dict[str, Array]) -> Proof:
    """Check that the model gives what it gave, and return the proof with itself."""
    found = run(directory, feeds, list(wanted))
    for name, values in wanted.items():
        assert np.abs(found[name] - values).max() <= 1e-5 * np.abs(values).max(), name
    checkpoint = open_checkpoint(directory)
    return prove(checkpoint, checkpoint)


def dense(tf: Any, x: Any, size: int, name: str) -> Any:
    with tf.variable_scope(name):
        w = tf.get_variable("w", [int(x.shape[-1]), size])
        b = tf.get_variable("b", [size], initializer=tf.ones_initializer())
        return tf.add(tf.matmul(x, w), b, name="add")


X = np.random.default_rng(0).standard_normal((3, 6)).astype("f4")


def test_variables_that_no_saver_keeps_have_their_initial_value(tf: Any, tmp_path: Path) -> None:
    def build() -> Any:
        x = tf.placeholder(tf.float32, [None, 6], "x")
        positions = tf.constant_initializer(np.arange(6))
        table = tf.get_variable("table", [6], initializer=positions, trainable=False)
        dense(tf, x + table, 3, "a")
        return tf.train.Saver(tf.trainable_variables())

    wanted = made(tf, tmp_path, build, feeds={"x": X}, fetches=["a/add"])
    proof = same(tmp_path, {"x": X}, wanted)
    assert proof.passed
    assert proof.notes == ("table is not in the checkpoint; it has its initial value",)


def test_variables_that_are_missing_are_told(tf: Any, tmp_path: Path) -> None:
    def build() -> Any:
        dense(tf, tf.placeholder(tf.float32, [None, 6], "x"), 3, "a")
        return tf.train.Saver([v for v in tf.global_variables() if v.op.name == "a/b"])

    made(tf, tmp_path, build, feeds={"x": X}, fetches=["a/add"])
    with pytest.raises(InputError, match=r"a/w is needed, and the checkpoint has no a/w"):
        run(tmp_path, {"x": X}, ["a/add"])


def test_lookup_tables_are_filled(tf: Any, tmp_path: Path) -> None:
    def build() -> None:
        words = tf.placeholder(tf.string, [None], "words")
        keys = tf.lookup.KeyValueTensorInitializer(["a", "b"], tf.constant([0, 2], tf.int64))
        table = tf.lookup.StaticHashTable(keys, 1)
        rows = tf.get_variable("rows", [3, 2])
        tf.nn.embedding_lookup(rows, table.lookup(words), name="out")

    words = np.array([b"b", b"?", b"a"], object)
    wanted = made(tf, tmp_path, build, feeds={"words": words}, fetches=["out/Identity"])
    found = run(tmp_path, {"words": words}, ["out/Identity"])
    assert (found["out/Identity"] == wanted["out/Identity"]).all()
    checkpoint = open_checkpoint(tmp_path)
    with pytest.raises(UsageError, match="words: it takes strings"):
        prove(checkpoint, checkpoint)


def test_pipelines_are_fed_in_their_place(tf: Any, tmp_path: Path) -> None:
    def build() -> None:
        data = tf.data.Dataset.from_tensor_slices((np.zeros((9, 6), "f4"), np.zeros(9, "i4")))
        x, y = tf.data.make_one_shot_iterator(data.batch(3)).get_next()
        logits = dense(tf, x, 3, "a")
        loss = tf.losses.sparse_softmax_cross_entropy(y, logits)
        tf.train.GradientDescentOptimizer(0.1).minimize(loss)

    feeds = {"IteratorGetNext": X}
    wanted = made(tf, tmp_path, build, feeds=feeds, fetches=["a/add"])
    proof = same(tmp_path, feeds, wanted)
    assert [str(found.tensor) for found in proof.forward.inputs] == ["IteratorGetNext"]
    assert [found.name for found in proof.outputs] == ["a/add"]


def test_control_flow_in_functions(tf: Any, tmp_path: Path) -> None:
    def build() -> None:
        x = tf.placeholder(tf.float32, [None, 6], "x")
        w = tf.get_variable("w", [6, 6], use_resource=True)
        _, out = tf.while_loop(
            lambda i, _: i < 3, lambda i, h: (i + 1, tf.tanh(tf.matmul(h, w))), [0, x]
        )
        tf.identity(out, "out")

    tf.enable_control_flow_v2()
    try:
        wanted = made(tf, tmp_path, build, feeds={"x": X}, fetches=["out"])
    finally:
        tf.disable_control_flow_v2()
    assert same(tmp_path, {"x": X}, wanted).passed


def test_averages_are_run_where_the_graph_restores_them(tf: Any, tmp_path: Path) -> None:
    def build() -> Any:
        dense(tf, tf.placeholder(tf.float32, [None, 6], "x"), 3, "a")
        return tf.train.Saver(tf.train.ExponentialMovingAverage(0.9).variables_to_restore())

    wanted = made(tf, tmp_path, build, feeds={"x": X}, fetches=["a/add"])
    assert set(open_checkpoint(tmp_path)) == {
        "a/w/ExponentialMovingAverage",
        "a/b/ExponentialMovingAverage",
    }
    assert same(tmp_path, {"x": X}, wanted).passed


def test_states_are_not_moved_by_running(tf: Any, tmp_path: Path) -> None:
    def build() -> None:
        x = tf.placeholder(tf.float32, [3, 6], "x")
        state = tf.get_variable("state", [3, 6], trainable=False, use_resource=False)
        # The output takes the value that the update gives.
        tf.identity(tf.tanh(dense(tf, tf.assign_add(state, x), 6, "a")), "out")

    wanted = made(tf, tmp_path, build, feeds={"x": X}, fetches=["out"])
    checkpoint = open_checkpoint(tmp_path)
    graph = read_graph(checkpoint)
    assert graph is not None
    forward = find_forward(graph, set(checkpoint), fetches=["out"])
    feeds = {Tensor("x"): X}
    with Session(forward, checkpoint, dtypes_of(forward, feeds)) as session:
        first, second = (session.run(feeds)[Tensor("out")] for _ in range(2))
    assert (first == second).all()
    # What was saved is the state before the recorded run.
    assert np.abs(first - wanted["out"]).max() <= 1e-6


def test_random_numbers_are_the_same_for_both(tf: Any, tmp_path: Path) -> None:
    def build() -> None:
        hidden = dense(tf, tf.placeholder(tf.float32, [None, 6], "x"), 6, "a")
        tf.add(hidden, tf.random_normal(tf.shape(hidden)), name="out")

    made(tf, tmp_path, build, feeds={"x": X}, fetches=["out"])
    checkpoint = open_checkpoint(tmp_path)
    proof = prove(checkpoint, checkpoint)
    assert proof.passed
    assert proof.notes[0].endswith("draws random numbers, from a fixed seed here")


def test_another_value_can_be_assigned() -> None:
    some = case("tf14_v2_rotation")
    checkpoint = open_checkpoint(some.path)
    forward = forward_of(some)
    feeds = next(complete(forward, {}, 0)).values
    with Session(forward, checkpoint, dtypes_of(forward, feeds)) as session:
        (before,) = session.run(feeds).values()
        bias = checkpoint["out/bias"].read()
        session.assign("out/bias", (bias + 1).astype("f8"))
        (after,) = session.run(feeds).values()
        assert np.allclose(after, before + 1, atol=1e-6)
        session.assign("out/bias", bias)
        (again,) = session.run(feeds).values()
    assert (again == before).all()


def test_constants_of_a_frozen_graph_can_be_assigned() -> None:
    some = case("tf115_frozen")
    checkpoint = open_checkpoint(some.path)
    forward = forward_of(some, fetches=["pred"])
    feeds = next(complete(forward, {}, 0)).values
    name = next(name for name in forward.variables if name.endswith("bias"))
    with Session(forward, checkpoint, dtypes_of(forward, feeds)) as session:
        (before,) = session.run(feeds).values()
        session.assign(name, checkpoint[name].read() + 1)
        (after,) = session.run(feeds).values()
    assert np.abs(after - before).max() > 0.01


def test_what_does_not_run_is_one_line() -> None:
    checkpoint = open_checkpoint(case("tf14_v2_bidirectional").path)
    question = Question(feeds=("lengths=[3, 99]",))
    with pytest.raises(RunError) as caught:
        prove(checkpoint, checkpoint, question)
    assert "\n" not in str(caught.value)
    assert "it does not run: " in str(caught.value)
    assert "drawn were x: give inputs (--inputs x.npz)" in str(caught.value)


@pytest.mark.parametrize("fetch", ["charlm/rnn/while/Exit_2:7", "train/nothing"])
def test_outputs_that_are_not_there(fetch: str) -> None:
    checkpoint = open_checkpoint(case("tf14_v2_charlm_lstm_ema").path)
    with pytest.raises(ConverterError, match=r"has no (such output|tensor)"):
        prove(checkpoint, checkpoint, Question(fetches=(fetch,)))


def test_tensorflow_is_quiet() -> None:
    path = case("tf14_v2_charlm_lstm_ema").path
    environment = {k: v for k, v in os.environ.items() if not k.startswith("TF_")}
    outcome = subprocess.run(
        [sys.executable, "-m", "converter", "prove", path, path],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert outcome.returncode == 0
    assert outcome.stderr == ""


def test_an_export_of_tensorflow_2() -> None:
    some = case("tf221_savedmodel_module")
    arrays = np.load(some.directory / "io.npz")
    graph = read_graph(open_checkpoint(some.path))
    assert graph is not None
    signed = {output.why: str(output.tensor) for output in forward_of(some).outputs}
    found = run(some.path, {"serving_default_x": arrays["in_x"]}, list(signed.values()))
    for name in ("mean", "log_var"):
        values = found[signed[f"signature serving_default/{name}"]]
        assert np.abs(values - arrays[f"out_{name}"]).max() <= 1e-6


def test_an_export_whose_variables_have_one_name(tmp_path: Path) -> None:
    import tensorflow as tf

    module = tf.Module()
    module.layers = [tf.Variable(np.full((6, 6), i + 1, "f4"), name="w") for i in range(3)]

    def call(x: Any) -> Any:
        for w in module.layers:
            x = tf.tanh(x @ w * 0.05)
        return {"y": x}

    spec = tf.TensorSpec([None, 6], tf.float32, name="x")
    module.call = tf.function(call, input_signature=[spec])
    tf.saved_model.save(module, str(tmp_path / "export"))
    wanted = module.call(tf.constant(X))["y"].numpy()
    found = run(tmp_path / "export", {"serving_default_x": X}, ["StatefulPartitionedCall"])
    assert np.abs(found["StatefulPartitionedCall"] - wanted).max() <= 1e-6


def test_constants_in_the_loop_of_a_frozen_graph(tf: Any, tmp_path: Path) -> None:
    def build() -> None:
        x = tf.placeholder(tf.float32, [None, 2], "x")
        w = tf.constant(np.array([[0.5, -1], [0.25, 2]], "f4"), name="w")

        def turn(i: Any, h: Any) -> tuple[Any, Any]:
            return i + 1, tf.tanh(tf.matmul(h, w)) + tf.constant(np.array([1, -1], "f4"), name="b")

        tf.identity(tf.while_loop(lambda i, _: i < 3, turn, [0, x])[1], "out")

    was = tf.control_flow_v2_enabled()
    tf.disable_control_flow_v2()
    try:
        with tf.Graph().as_default() as graph:
            build()
    finally:
        (tf.enable_control_flow_v2 if was else tf.disable_control_flow_v2)()
    file = tmp_path / "frozen.pb"
    file.write_bytes(graph.as_graph_def().SerializeToString())
    assert set(open_checkpoint(file)) == {"w", "while/b"}
    x = np.array([[0.1, 0.2], [-1, 3]], "f4")
    h = x.astype("f8")
    for _ in range(3):
        h = np.tanh(h @ np.array([[0.5, -1], [0.25, 2]])) + np.array([1, -1])
    assert np.abs(run(file, {"x": x}, ["out"])["out"] - h).max() <= 1e-6
