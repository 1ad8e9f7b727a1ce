"""Tensors of a loop that are staged together: how they are grouped, masked and taken as rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_measure import check, names_of, probe
from test_measure_cells import BlockCell, Lstm, check_lstm, some, values
from test_session import made

from converter import InputError, open_checkpoint
from converter.activations.measure import measure
from converter.activations.run import Taken
from converter.variable import Array

pytestmark = pytest.mark.slow

TURNS = 3


@pytest.fixture(scope="module", autouse=True)
def tf() -> Any:
    return pytest.importorskip("tensorflow").compat.v1


def some_rows(count: int, beside: int, seed: int) -> dict[str, Array]:
    """Return (count, beside, 4) values, and how long as many sequences are."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((count, beside, 4)).astype("f4")
    return {"x": x, "lengths": rng.integers(0, TURNS + 1, count).astype("i4")}


# Of the last, the first element has as many rows as the mask, and later ones have more.
@pytest.mark.parametrize(
    ("count", "beside"),
    [(6, (3, 3)), (6, (3, 2, 7)), (6, (1, 1)), (6, (1, 4)), (6, (300, 3)), (1200, (1, 1))],
)
def test_a_mask_of_the_first_axis(
    tf: Any, tmp_path: Path, flow: str, count: int, beside: tuple[int, ...]
) -> None:
    def build() -> None:
        x = tf.placeholder(tf.float32, [count, None, 4], "x")
        lengths = tf.placeholder(tf.int32, [count], "lengths")
        w = tf.get_variable("w", [4, 4], initializer=tf.glorot_normal_initializer(1))

        def body(i: Any, h: Any, lengths: Any, w: Any) -> tuple[Any, ...]:
            lives = tf.less(i, lengths, "lives")
            rows = tf.matmul(tf.reshape(h, [-1, 4]), w, name="rows")
            cube = tf.tanh(tf.reshape(rows, tf.shape(h)), name="cube")
            first = tf.transpose(cube, [0, 2, 1], name="first")
            h = tf.transpose(tf.nn.relu(first), [0, 2, 1])
            # What decides has to be beside them.
            return i + 1, h + 0 * tf.reduce_sum(tf.cast(lives, tf.float32)), lengths, w

        tf.identity(tf.while_loop(lambda i, *_: i < TURNS, body, [0, x, lengths, w])[1], "out")

    batches = [some_rows(count, one, number) for number, one in enumerate(beside)]
    made(tf, tmp_path, build, feeds=batches[0], fetches=["out"])
    checkpoint = open_checkpoint(tmp_path)
    ((rows,), (cube,), (first,), (lives,)) = (
        names_of(tmp_path, op, part)
        for op, part in (
            ("MatMul", "rows"), ("Tanh", "cube"), ("Transpose", "first"), ("Less", "lives")
        )
    )  # fmt: skip
    probes = [
        probe(rows, 4, "rows", mask=lives, keeps=True),
        probe(cube, 4, "cube", mask=lives, keeps=True),
        probe(first, 4, "first", axis=1, mask=lives, keeps=True),
        probe(cube, 4, "all"),
    ]
    # Together, and each in a queue of its own.
    several = [measure(checkpoint, batches * 4, probes=of) for of in (probes, *zip(probes))]
    w = checkpoint["w"].read().astype("f8")
    wanted: dict[str, list[Array]] = {name: [] for name in ("rows", "cube", "first", "all")}
    for batch in batches * 4:
        h = batch["x"].astype("f8")
        for turn in range(TURNS):
            lives_now = turn < batch["lengths"]
            wanted["rows"].append((h @ w)[lives_now].reshape(-1, 4))
            h = np.tanh(h @ w)
            for name in ("cube", "first"):
                wanted[name].append(h[lives_now].reshape(-1, 4))
            wanted["all"].append(h.reshape(-1, 4))
            h = np.maximum(h, 0)
    for found in several:
        for name, _ in found:
            check(found[name, "produced"], np.concatenate(wanted[name]))
    assert [len(found) for found in several] == [4, 1, 1, 1, 1]


def test_a_mask_of_other_rows_is_refused() -> None:
    taken = Taken(probe("x", 2, "w", mask="lives"), np.ones((6, 2)), -1, np.arange(4) > 1)
    with pytest.raises(InputError, match="x: it has 6 rows, and lives tells of 4 of them"):
        taken.rows()


@pytest.mark.parametrize("flow", ["frames"], indirect=True)
def test_both_outputs_of_a_switch(tf: Any, tmp_path: Path, flow: str) -> None:
    def build() -> None:
        x = tf.placeholder(tf.float32, [5, 3], "x")
        w = tf.get_variable("w", [3, 3], initializer=tf.glorot_normal_initializer(1))

        def body(i: Any, h: Any) -> tuple[Any, Any]:
            data, pred = tf.matmul(h, w), tf.equal(i % 2, 0)
            no, yes = tf.raw_ops.Switch(data=data, pred=pred, name="both")
            h = tf.raw_ops.Merge(inputs=[tf.tanh(no), tf.sigmoid(yes)])
            return i + 1, tf.reshape(h.output, [5, 3])

        tf.identity(tf.while_loop(lambda i, _: i < 5, body, [0, x])[1], "out")

    x = np.random.default_rng(0).standard_normal((5, 3)).astype("f4")
    made(tf, tmp_path, build, feeds={"x": x}, fetches=["out"])
    checkpoint = open_checkpoint(tmp_path)
    (name,) = names_of(tmp_path, "Switch", "both")
    probes = [probe(name, 3, "no"), probe(f"{name}:1", 3, "yes")]
    found = measure(checkpoint, [{"x": x}], probes=probes)
    w, h, taken = checkpoint["w"].read().astype("f8"), x.astype("f8"), []
    for turn in range(5):
        taken.append(h @ w)
        h = np.tanh(taken[-1]) if turn % 2 else 1 / (1 + np.exp(-taken[-1]))
    check(found["no", "produced"], np.concatenate(taken[1::2]))
    check(found["yes", "produced"], np.concatenate(taken[::2]))


def test_a_layer_behind_a_cell_that_is_one_op(tf: Any, tmp_path: Path, flow: str) -> None:
    class Behind(BlockCell):
        def __call__(self, x: Any, state: Any, scope: Any = None) -> tuple[Any, Any]:
            h, state = super().__call__(x, state, scope)
            with tf.variable_scope("behind", reuse=tf.AUTO_REUSE):
                return tf.tanh(tf.matmul(h, some(tf, "w", 5, 5))), state

    def build() -> None:
        x = tf.placeholder(tf.float32, [7, 6, 4], "x")
        steps, _ = tf.nn.dynamic_rnn(
            Behind(tf, "LSTMBlockCell"), x, dtype=tf.float32, time_major=True
        )
        tf.identity(steps, name="out")

    x = np.random.default_rng(0).standard_normal((7, 6, 4)).astype("f4")
    wanted = made(tf, tmp_path, build, feeds={"x": x}, fetches=["out"])["out"]
    checkpoint = open_checkpoint(tmp_path)
    names = {
        part: next(n for n in checkpoint if n.endswith(f"cell/{part}"))
        for part in ("kernel", "bias")
    }
    found = measure(checkpoint, [{"x": x}])
    kernel, bias = values(checkpoint, *names.values())
    check_lstm(found, Lstm(kernel, bias).run(x, None), names)
    (behind,) = (name for name in checkpoint if name.endswith("behind/w"))
    assert np.abs(np.arctanh(wanted.astype("f8")).reshape(-1, 5).mean(0)).max() > 0
    check(found[behind, "produced"], wanted)
