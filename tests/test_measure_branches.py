"""Activations in branches, of which only those that are taken count, computed with numpy."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
from test_session import made

from converter import Checkpoint, Measured, open_checkpoint
from converter.activations.measure import measure
from converter.activations.probes import Side
from converter.variable import Array

tf = pytest.importorskip("tensorflow")
v1 = tf.compat.v1

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", name="tf")
def tensorflow_1() -> Any:
    return v1


RNG = np.random.default_rng(0)
ABOVE = np.abs(RNG.standard_normal((5, 3))).astype("f4")
BELOW = -ABOVE[:4]
BATCHES = (ABOVE, BELOW, 3 * ABOVE, 3 * BELOW)
W, V, U, T = (RNG.standard_normal((3, 3)).astype("f4") for _ in range(4))
HEADS = RNG.standard_normal((3, 2, 4)).astype("f4")
TAKES_HEADS = RNG.standard_normal((2, 4, 3)).astype("f4")
GAIN, SHIFT, MEAN = (RNG.standard_normal(3).astype("f4") for _ in range(3))
VARIANCE = np.abs(GAIN) + 0.5
HELD: Mapping[str, Array] = {
    "w": W,
    "v": V,
    "u": U,
    "t": T,
    "heads": HEADS,
    "takes": TAKES_HEADS,
    "gain": GAIN,
    "shift": SHIFT,
    "mean": MEAN,
    "variance": VARIANCE,
}

Rows = dict[tuple[str, Side], list[Array]]


class Model(tf.Module):  # type: ignore[misc, name-defined]
    def __init__(self, run: Callable[[Any, Any], Any]) -> None:
        for name, value in HELD.items():
            setattr(self, name, tf.Variable(value, name=name))
        self._run = run

    @tf.function(input_signature=[tf.TensorSpec([None, 3], name="x")])  # type: ignore[untyped-decorator]
    def run(self, x: Any) -> dict[str, Any]:
        return {"out": self._run(self, x)}


def measured(tmp_path: Path, run: Callable[[Any, Any], Any]) -> tuple[Checkpoint, Measured]:
    model = Model(run)
    tf.saved_model.save(model, str(tmp_path), signatures={"run": model.run})
    checkpoint = open_checkpoint(tmp_path)
    return checkpoint, measure(checkpoint, [{"x": batch} for batch in BATCHES])


def check(found: Measured, rows: Callable[[Array], Rows]) -> None:
    """Compare with the rows of each batch; of sides of which there are none nothing is measured."""
    names = {name.split("/")[0]: name for name, _ in found}
    wanted: Rows = {}
    for batch in BATCHES:
        for key, values in rows(batch.astype("f8")).items():
            wanted.setdefault(key, []).extend(values)
    for (name, side), values in wanted.items():
        if not values:
            assert (names.get(name, name), side) not in found
            continue
        every = np.concatenate(values)
        moments = found[names[name], side]
        every = every.reshape(-1, moments.size)
        assert moments.count == len(every), (name, side)
        assert np.abs(moments.mean - every.mean(0)).max() <= 1e-5 * np.abs(every).max()
        assert np.abs(moments.max - every.max(0)).max() <= 1e-5 * np.abs(every).max()


def relu(x: Array) -> Array:
    return np.maximum(x, 0)


def is_above(x: Any) -> Any:
    return tf.reduce_sum(x) > 0


def is_large(x: Any) -> Any:
    return tf.reduce_max(tf.abs(x)) > 3


def large(x: Array) -> bool:
    return bool(np.abs(x).max() > 3)


def when(condition: bool, *values: Array) -> list[Array]:
    return list(values) if condition else []


class Case(NamedTuple):
    run: Callable[[Any, Any], Any]
    rows: Callable[[Array], Rows]


def one_each(m: Any, x: Any) -> Any:
    return tf.cond(is_above(x), lambda: tf.nn.relu(x @ m.w), lambda: tf.nn.relu(x @ m.v))


def shared(m: Any, x: Any) -> Any:
    """The same variable in both branches, beside another in each, and outside."""

    def above() -> Any:
        return tf.nn.relu(x @ m.w) @ m.u

    return tf.cond(is_above(x), above, lambda: tf.nn.relu(x @ m.v) + x @ m.w) + x @ m.t


def nested(m: Any, x: Any) -> Any:
    inner = tf.function(
        lambda h: tf.cond(is_large(h), lambda: tf.tanh(h @ m.w), lambda: tf.tanh(h @ m.v))
    )
    outer = tf.function(lambda h: tf.cond(is_above(h), lambda: inner(h), lambda: tf.tanh(h @ m.u)))
    return outer(tf.function(lambda h: h / 2)(x))


def in_a_loop(m: Any, x: Any) -> Any:
    def turn(i: Any, h: Any) -> Any:
        def odd() -> Any:
            return tf.tanh(h @ m.v) + tf.cond(is_above(x), lambda: x @ m.u, lambda: x)

        return i + 1, tf.cond(tf.equal(i % 2, 0), lambda: tf.tanh(h @ m.w), odd)

    return tf.while_loop(lambda i, _: i < 4, turn, [tf.constant(0), x])[1]


def rows_in_a_loop(x: Array) -> Rows:
    found: Rows = {("u", "consumed"): when(x.sum() > 0, x, x)}
    h = x
    for turn in range(4):
        found.setdefault(("v" if turn % 2 else "w", "consumed"), []).append(h)
        h = np.tanh(h @ (V if turn % 2 else W))
        found.setdefault(("v" if turn % 2 else "w", "produced"), []).append(h)
        if turn % 2:
            h = h + (x @ U if x.sum() > 0 else x)
    return found


def three(m: Any, x: Any) -> Any:
    which = tf.cast(is_large(x), tf.int32) + tf.cast(is_above(x), tf.int32)
    return tf.switch_case(
        which, [lambda: tf.nn.relu(x @ m.w), lambda: x @ m.v, lambda: tf.nn.relu(x @ m.w) @ m.u]
    )


def rows_of_three(x: Array) -> Rows:
    which = int(large(x)) + int(x.sum() > 0)
    return {
        ("w", "consumed"): when(which != 1, x),
        ("w", "produced"): when(which != 1, relu(x @ W)),
        ("v", "consumed"): when(which == 1, x),
        ("u", "consumed"): when(which == 2, relu(x @ W)),
        ("u", "produced"): when(which == 2, relu(x @ W) @ U),
    }


def heads(m: Any, x: Any) -> Any:
    h = tf.einsum("bi,ihd->bhd", x, m.heads)
    return tf.cond(is_above(x), lambda: tf.einsum("bhd,hdo->bo", h, m.takes), lambda: x)


def or_zeros(m: Any, x: Any) -> Any:
    """What a branch makes, or a constant, is one tensor behind it."""
    return tf.nn.relu(tf.cond(is_above(x), lambda: x @ m.w, lambda: tf.zeros_like(x))) @ m.u


def in_a_branch_alone(m: Any, x: Any) -> Any:
    """What is made outside is activated, biased and normalised inside."""
    h = x @ m.w
    of_h = tf.cond(is_above(x), lambda: tf.nn.relu(h) * m.gain, lambda: x)
    y = x @ m.v

    def normed() -> Any:
        new = tf.nn.batch_normalization(y, m.mean, m.variance, m.shift, None, 1e-3)
        return tf.nn.relu(new) @ m.u

    return of_h + tf.cond(is_above(x), normed, lambda: y)


def with_a_bias(m: Any, x: Any) -> Any:
    h = x @ m.w
    return tf.cond(is_above(x), lambda: h + m.shift, lambda: h) @ m.u


def rows_in_a_branch_alone(x: Array) -> Rows:
    y, above = x @ V, bool(x.sum() > 0)
    normed = relu((y - MEAN) / np.sqrt(VARIANCE + 1e-3) + SHIFT)
    return {
        ("w", "produced"): [x @ W],
        ("gain", "produced"): when(above, relu(x @ W) * GAIN),
        ("v", "produced"): [y],
        ("mean", "produced"): when(above, y),
        ("variance", "produced"): when(above, y),
        ("shift", "produced"): when(above, normed),
        ("u", "consumed"): when(above, normed),
    }


CASES: Mapping[str, Case] = {
    "one variable each": Case(
        one_each,
        lambda x: {
            ("w", "consumed"): when(x.sum() > 0, x),
            ("w", "produced"): when(x.sum() > 0, relu(x @ W)),
            ("v", "consumed"): when(x.sum() < 0, x),
            ("v", "produced"): when(x.sum() < 0, relu(x @ V)),
        },
    ),
    "shared variables": Case(
        shared,
        lambda x: {
            ("w", "consumed"): [x],
            ("w", "produced"): [relu(x @ W) if x.sum() > 0 else x @ W],
            ("v", "consumed"): when(x.sum() < 0, x),
            ("u", "consumed"): when(x.sum() > 0, relu(x @ W)),
            ("t", "consumed"): [x],
        },
    ),
    "nested, in functions": Case(
        nested,
        lambda x: {
            ("w", "consumed"): when(x.sum() > 0 and large(x / 2), x / 2),
            ("w", "produced"): when(x.sum() > 0 and large(x / 2), np.tanh(x / 2 @ W)),
            ("v", "consumed"): when(x.sum() > 0 and not large(x / 2), x / 2),
            ("u", "consumed"): when(x.sum() < 0, x / 2),
        },
    ),
    "in a loop": Case(in_a_loop, rows_in_a_loop),
    "three branches": Case(three, rows_of_three),
    "units of several axes": Case(
        heads,
        lambda x: {
            ("heads", "consumed"): [x],
            ("takes", "consumed"): when(x.sum() > 0, x @ HEADS.reshape(3, 8)),
        },
    ),
    "a constant beside": Case(
        or_zeros,
        lambda x: {
            ("w", "consumed"): when(x.sum() > 0, x),
            ("w", "produced"): when(x.sum() > 0, x @ W),
            ("u", "consumed"): [relu(x @ W) if x.sum() > 0 else 0 * x],
        },
    ),
    "a bias in one branch": Case(
        with_a_bias,
        lambda x: {
            ("w", "produced"): [x @ W],
            ("shift", "produced"): when(x.sum() > 0, x @ W + SHIFT),
        },
    ),
    "in a branch alone": Case(in_a_branch_alone, rows_in_a_branch_alone),
}


@pytest.mark.parametrize("name", CASES)
def test_only_what_is_taken_counts(tmp_path: Path, name: str) -> None:
    _, found = measured(tmp_path, CASES[name].run)
    check(found, CASES[name].rows)


@pytest.mark.parametrize("name", CASES)
def test_only_what_is_taken_counts_in_a_graph(tmp_path: Path, flow: str, name: str) -> None:
    def build() -> None:
        x = v1.placeholder(v1.float32, [None, 3], "x")
        held = {key: v1.get_variable(key, initializer=value) for key, value in HELD.items()}
        v1.identity(CASES[name].run(SimpleNamespace(**held), x), "out")

    made(v1, tmp_path, build, feeds={"x": ABOVE}, fetches=["out"])
    found = measure(open_checkpoint(tmp_path), [{"x": batch} for batch in BATCHES])
    check(found, CASES[name].rows)


def test_a_branch_that_is_never_taken_is_named(tmp_path: Path) -> None:
    model = Model(one_each)
    tf.saved_model.save(model, str(tmp_path), signatures={"run": model.run})
    found = measure(open_checkpoint(tmp_path), [{"x": ABOVE}])
    assert {name[:1] for name, _ in found} == {"w"}
    assert "nothing of it was run: v (consumed), v (produced)" in found.notes[-1]
    (tensor,) = found.tensors["w", "consumed"]
    assert "/cond/_branch_0/_given_" in tensor


def test_what_two_branches_normalise_is_measured_before_them(tmp_path: Path, flow: str) -> None:
    """In training, too, when the branch that takes the moving moments is not run."""

    def build() -> None:
        x = v1.placeholder(v1.float32, [None, 3], "x")
        is_training = v1.placeholder(v1.bool, [], "is_training")
        m = {key: v1.get_variable(key, initializer=value) for key, value in HELD.items()}
        h = x @ m["w"]

        def normed(mean: Any, variance: Any) -> Any:
            return tf.nn.batch_normalization(h, mean, variance, m["shift"], m["gain"], 1e-3)

        new = tf.cond(
            is_training,
            lambda: normed(*tf.nn.moments(h, 0)),
            lambda: normed(m["mean"], m["variance"]),
        )
        v1.identity(v1.nn.relu(new), "out")

    feeds = {"x": ABOVE, "is_training": True}
    made(v1, tmp_path, build, feeds=feeds, fetches=["out"])
    batches = [{"x": batch, "is_training": np.array(True)} for batch in BATCHES]
    found = measure(open_checkpoint(tmp_path), batches)
    check(found, lambda x: {("mean", "produced"): [x @ W]})
    assert found["gain", "produced"].count == found["w", "produced"].count == 18


# -- an unrolled cell, each step of which may be a branch ------------------------------------------


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


@pytest.mark.parametrize("has_branches", [False, True])
def test_peepholes_of_the_zeros_that_a_state_begins_with(
    tmp_path: Path, flow: str, has_branches: bool
) -> None:
    def build() -> None:
        x = v1.placeholder(v1.float32, [None, 3], "x")
        m = {key: v1.get_variable(key, initializer=value) for key, value in HELD.items()}
        h = c = v1.zeros([v1.shape(x)[0], 3])
        for step in range(3):
            taken = (h, c)

            def cell(h: Any = h, c: Any = c) -> Any:
                gate = v1.sigmoid((x + h) @ m["w"] + c * m["gain"])
                new = gate * c + v1.tanh((x + h) @ m["v"])
                return gate * new, new

            if has_branches:
                is_run = is_above(x * (2 - step))
                h, c = v1.cond(is_run, cell, lambda taken=taken: tuple(map(v1.identity, taken)))
            else:
                h, c = cell()
        v1.identity(h @ m["u"], "out")

    def rows(x: Array) -> Rows:
        found: Rows = {("gain", "produced"): []}
        h = c = np.zeros_like(x)
        for step in range(3):
            if has_branches and (x * (2 - step)).sum() <= 0:
                continue
            found["gain", "produced"].append(c * GAIN)
            gate = sigmoid((x + h) @ W + c * GAIN)
            c = gate * c + np.tanh((x + h) @ V)
            h = gate * c
        return found

    made(v1, tmp_path, build, feeds={"x": ABOVE}, fetches=["out"])
    check(measure(open_checkpoint(tmp_path), [{"x": batch} for batch in BATCHES]), rows)
