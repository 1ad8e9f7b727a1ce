"""Steps that a mask throws away by arithmetic, measured in TensorFlow and computed in numpy."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from test_session import made

from converter import measure, open_checkpoint
from converter.activations.asked import Question
from converter.variable import Array

pytestmark = pytest.mark.slow

UNITS, STEPS, BATCH = 5, 7, 6
RNG = np.random.default_rng(3)
X = RNG.standard_normal((BATCH, STEPS, 3)).astype("f4")
LENGTHS = np.array([7, 3, 5, 1, 2, 4], "i4")
BITS = (np.arange(STEPS) < LENGTHS[:, None]).astype("f4")
# What is fed need not be zeros and ones: a row counts that has any part in the state.
PARTS = BITS * RNG.uniform(0.2, 1, BITS.shape).astype("f4")
ALL = np.ones_like(BITS)

Rows = dict[tuple[str, str], Any]
States = tuple[Any, ...]


@pytest.fixture(scope="module", autouse=True)
def tf() -> Any:
    return pytest.importorskip("tensorflow").compat.v1


class Numpy(NamedTuple):
    """The functions of TensorFlow that cells take."""

    tanh: Callable[[Any], Any] = np.tanh
    matmul: Callable[[Any, Any], Any] = np.matmul
    concat: Callable[[Any, int], Any] = np.concatenate
    split: Callable[[Any, int, int], Any] = np.split
    where: Callable[[Any, Any, Any], Any] = np.where

    @staticmethod
    def sigmoid(x: Any) -> Any:
        return 1 / (1 + np.exp(-x))


def rnn(o: Any, w: Mapping[str, Any], x: Any, state: States) -> tuple[States, Rows]:
    taken = o.concat([x, state[0]], 1)
    new = o.tanh(o.matmul(taken, w["w"]))
    return (new,), {("w", "consumed"): taken, ("w", "produced"): new}


def lstm(o: Any, w: Mapping[str, Any], x: Any, state: States) -> tuple[States, Rows]:
    c, h = state
    taken = o.concat([x, h], 1)
    gates = o.matmul(taken, w["k"])
    i, j, f, g = o.split(gates, 4, 1)
    c = o.sigmoid(f) * c + o.sigmoid(i) * o.tanh(j)
    return (c, o.sigmoid(g) * o.tanh(c)), {("k", "consumed"): taken, ("k", "produced"): gates}


def gru(o: Any, w: Mapping[str, Any], x: Any, state: States) -> tuple[States, Rows]:
    (h,) = state
    taken = o.concat([x, h], 1)
    gates = o.matmul(taken, w["g"])
    r, u = (o.sigmoid(gate) for gate in o.split(gates, 2, 1))
    reset = o.concat([x, r * h], 1)
    new = o.tanh(o.matmul(reset, w["c"]))
    rows = {("g", "consumed"): taken, ("g", "produced"): gates}
    return (u * h + (1 - u) * new,), {
        **rows,
        ("c", "consumed"): reset,
        ("c", "produced"): new,
    }


def one_gate(o: Any, w: Mapping[str, Any], x: Any, state: States) -> tuple[States, Rows]:
    """A gate that all units share, and that is learned."""
    new, rows = rnn(o, w, x, state)
    gate = o.sigmoid(o.matmul(x, w["s"]))
    return (gate * new[0] + (1 - gate) * state[0],), rows


def by_state(o: Any, w: Mapping[str, Any], x: Any, state: States) -> tuple[States, Rows]:
    """A factor of zeros and ones that the state before tells."""
    new, rows = rnn(o, w, x, state)
    sums = o.matmul(state[0], np.ones((UNITS, 1), "f4"))
    m = o.where(sums >= 0, sums * 0 + 1, sums * 0)
    return (m * new[0] + (1 - m) * state[0],), rows


WEIGHTS: dict[Any, dict[str, int]] = {
    rnn: {"w": UNITS},
    lstm: {"k": 4 * UNITS},
    gru: {"g": 2 * UNITS, "c": UNITS},
    one_gate: {"w": UNITS, "s": 1},
    by_state: {"w": UNITS},
}
FORMS: dict[str, Callable[[Any, Any, Any], Any]] = {
    "sum": lambda m, new, old: m * new + (1 - m) * old,
    "turned": lambda m, new, old: old * (1.0 - m) + new * m,
    "step": lambda m, new, old: old + m * (new - old),
    "none": lambda m, new, old: new,
}


def bits(tf: Any, step: Any) -> Any:
    return tf.expand_dims(tf.cast(step < at(tf, "lengths"), tf.float32), 1)


def bits_of_all(tf: Any, step: Any) -> Any:
    return tf.sequence_mask(at(tf, "lengths"), STEPS, tf.float32)[:, step][:, None]


def ended(tf: Any, step: Any) -> Any:
    return 1.0 - tf.cast((step >= at(tf, "lengths"))[:, None], tf.float32)


def tiled(tf: Any, step: Any) -> Any:
    return tf.tile(bits(tf, step), [1, UNITS])


def fed(tf: Any, step: Any) -> Any:
    return tf.expand_dims(at(tf, "fed")[:, step], 1)


def at(tf: Any, name: str) -> Any:
    graph = tf.get_default_graph()
    while hasattr(graph, "outer_graph"):
        graph = graph.outer_graph
    return graph.get_tensor_by_name(f"{name}:0")


class Model(NamedTuple):
    """What a model is built of: a mask for each step, and the form of what it does to a state."""

    cell: Any = rnn
    mask: Callable[[Any, Any], Any] = bits
    form: str = "sum"
    values: Array = BITS

    def step(self, tf: Any, w: Mapping[str, Any], number: Any, x: Any, state: States) -> States:
        new, _ = self.cell(tf, w, x, state)
        if self.form == "none":
            return tuple(new)
        m = self.mask(tf, number)
        return tuple(FORMS[self.form](m, *pair) for pair in zip(new, state, strict=True))

    def first(self, tf: Any, x: Any) -> States:
        return (tf.zeros([tf.shape(x)[0], UNITS]),) * (1 + (self.cell is lstm))

    def inputs(self, tf: Any) -> tuple[Any, dict[str, Any]]:
        x = tf.placeholder(tf.float32, [None, STEPS, 3], "x")
        tf.placeholder(tf.int32, [None], "lengths")
        tf.placeholder(tf.float32, [None, STEPS], "fed")
        drawn = tf.random_normal_initializer(0, 0.7, seed=1)
        rows = {"s": 3}
        return x, {
            name: tf.get_variable(name, [rows.get(name, 3 + UNITS), size], initializer=drawn)
            for name, size in WEIGHTS[self.cell].items()
        }

    def rows(self, checkpoint: Any, counts: Array) -> Rows:
        """Return what counts of all that the cell takes and makes."""
        w = {name: checkpoint[name].read().astype("f8") for name in WEIGHTS[self.cell]}
        state: States = (np.zeros((BATCH, UNITS)),) * (1 + (self.cell is lstm))
        found: dict[tuple[str, str], list[Array]] = {}
        for number in range(STEPS):
            new, rows = self.cell(Numpy(), w, X[:, number].astype("f8"), state)
            m = self.values[:, number, None].astype("f8")
            state = tuple(FORMS[self.form](m, *pair) for pair in zip(new, state, strict=True))
            for key, values in rows.items():
                found.setdefault(key, []).append(values[counts[:, number] != 0])
        return {key: np.concatenate(values) for key, values in found.items()}

    def check(self, tf: Any, path: Path, build: Callable[[], Any], counts: Array) -> None:
        """Compare all statistics with those of the rows that count."""
        feeds = {"x": X, "lengths": LENGTHS, "fed": self.values}
        made(tf, path, build, feeds=feeds, fetches=["out"])
        checkpoint = open_checkpoint(path)
        graph_feeds: Sequence[dict[str, Array]] = [
            {name: values[part] for name, values in feeds.items()}
            for part in (slice(0, 4), slice(4, None))
        ]
        found = measure(checkpoint, graph_feeds)
        for (name, side), rows in self.rows(checkpoint, counts).items():
            moments = found[name, "consumed" if side == "consumed" else "produced"]
            assert moments.count == len(rows), (name, side)
            for given, wanted in (
                (moments.mean, rows.mean(0)),
                (moments.mean_abs, np.abs(rows).mean(0)),
                (moments.std, rows.std(0)),
                (moments.min, rows.min(0)),
                (moments.max, rows.max(0)),
            ):
                assert np.abs(given - wanted).max() <= 1e-5 * np.abs(wanted).max()


def finish(tf: Any, output: Any) -> None:
    head = tf.get_variable("head", [UNITS, 2], initializer=tf.glorot_normal_initializer(2))
    tf.matmul(output, head, name="out")


def looped(tf: Any, model: Model) -> Callable[[], None]:
    def build() -> None:
        x, w = model.inputs(tf)

        def turn(number: Any, *state: Any) -> tuple[Any, ...]:
            return number + 1, *model.step(tf, w, number, x[:, number], state)

        first = (tf.constant(0), *model.first(tf, x))
        finish(tf, tf.while_loop(lambda number, *_: number < STEPS, turn, first)[-1])

    return build


def unrolled(tf: Any, model: Model) -> Callable[[], None]:
    def build() -> None:
        x, w = model.inputs(tf)
        state = model.first(tf, x)
        for number in range(STEPS):
            state = model.step(tf, w, number, x[:, number], state)
        finish(tf, state[-1])

    return build


def scanned(tf: Any, model: Model) -> Callable[[], None]:
    def build() -> None:
        x, w = model.inputs(tf)
        masks = tf.expand_dims(tf.transpose(at(tf, "fed")), 2)

        def turn(state: States, given: tuple[Any, Any]) -> States:
            inner = model._replace(mask=lambda tf, step: given[1])
            return inner.step(tf, w, 0, given[0], tuple(state))

        steps = tf.transpose(x, [1, 0, 2]), masks
        finish(tf, tf.scan(turn, steps, initializer=model.first(tf, x))[-1][-1])

    return build


MODELS = [
    Model(lstm, bits, "sum"),
    Model(gru, bits, "step"),
    Model(rnn, bits_of_all, "turned"),
    Model(lstm, ended, "turned"),
    Model(gru, tiled, "sum"),
    Model(lstm, fed, "step", PARTS),
]


def named(model: Model) -> str:
    return f"{model.cell.__name__}-{model.mask.__name__}-{model.form}"


@pytest.mark.parametrize("model", MODELS, ids=named)
def test_a_loop(tf: Any, tmp_path: Path, flow: str, model: Model) -> None:
    model.check(tf, tmp_path, looped(tf, model), model.values)


@pytest.mark.parametrize("flow", ["frames"], indirect=True)
@pytest.mark.parametrize("model", MODELS[-3:], ids=named)
def test_an_unrolled_cell(tf: Any, tmp_path: Path, flow: str, model: Model) -> None:
    model.check(tf, tmp_path, unrolled(tf, model), model.values)


def test_a_scan_of_inputs_and_masks(tf: Any, tmp_path: Path, flow: str) -> None:
    model = MODELS[-1]
    model.check(tf, tmp_path, scanned(tf, model), model.values)


@pytest.mark.parametrize("cell", [gru, one_gate, by_state])
@pytest.mark.parametrize("how", [looped, unrolled])
def test_gates_are_no_masks(
    tf: Any, tmp_path: Path, flow: str, cell: Any, how: Callable[[Any, Model], Callable[[], None]]
) -> None:
    model = Model(cell, form="none")
    model.check(tf, tmp_path, how(tf, model), ALL)


@pytest.mark.parametrize("is_masked", [False, True])
def test_outputs_of_all_steps(tf: Any, tmp_path: Path, flow: str, is_masked: bool) -> None:
    """What is handed out of a loop as it is counts, whatever becomes of it there."""
    model = Model(gru)

    def build() -> None:
        x, w = model.inputs(tf)

        def turn(number: Any, array: Any, h: Any) -> tuple[Any, ...]:
            (new,), _ = gru(tf, w, x[:, number], (h,))
            m = bits(tf, number)
            array = array.write(number, m * new if is_masked else new)
            return number + 1, array, m * new + (1 - m) * h

        first = (tf.constant(0), tf.TensorArray(tf.float32, STEPS), *model.first(tf, x))
        _, array, h = tf.while_loop(lambda number, *_: number < STEPS, turn, first)
        outputs = tf.transpose(array.stack(), [1, 0, 2])
        outputs.set_shape([None, STEPS, UNITS])
        outputs *= tf.sequence_mask(at(tf, "lengths"), STEPS, tf.float32)[:, :, None]
        finish(tf, tf.reduce_sum(outputs, 1) + h)

    model.check(tf, tmp_path, build, BITS if is_masked else ALL)


@pytest.mark.parametrize("where", ["call", "branch"])
def test_a_mask_beside_a_function(tmp_path: Path, where: str) -> None:
    """What is masked is made in a function that does not take the mask."""
    tf = pytest.importorskip("tensorflow")

    class Module(tf.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            self.w = tf.Variable(RNG.standard_normal((3 + UNITS, UNITS)).astype("f4"), name="w")

        def new(self, x: Any, h: Any) -> Any:
            return tf.tanh(tf.concat([x, h], 1) @ self.w)

        def run(self, x: Any, m: Any) -> dict[str, Any]:
            h = tf.zeros([tf.shape(x)[0], UNITS])
            call = tf.function(self.new)
            for step in tf.range(STEPS):
                taken = x[:, step]
                if where == "call":
                    new = call(taken, h)
                else:
                    new = tf.cond(step < 99, lambda t=taken, h=h: self.new(t, h), lambda h=h: h)
                rest = m[:, step][:, None]
                h = rest * new + (1 - rest) * h
            return {"out": h}

    module = Module()
    specs = [tf.TensorSpec([None, STEPS, 3], name="x"), tf.TensorSpec([None, STEPS], name="m")]
    run = tf.function(module.run, input_signature=specs)
    tf.saved_model.save(module, str(tmp_path), signatures=run)
    checkpoint = open_checkpoint(tmp_path)
    (name,) = (name for name in checkpoint if checkpoint[name].shape == (3 + UNITS, UNITS))
    batch = {"x": X, "m": PARTS}
    found = measure(checkpoint, [batch], question=Question(signature="serving_default"))
    w, h, rows = checkpoint[name].read().astype("f8"), np.zeros((BATCH, UNITS)), []
    for number in range(STEPS):
        new = np.tanh(np.concatenate([X[:, number], h], 1) @ w)
        m = PARTS[:, number, None].astype("f8")
        rows.append(new[m[:, 0] != 0])
        h = m * new + (1 - m) * h
    wanted = np.concatenate(rows)
    assert found[name, "produced"].count == found[name, "consumed"].count == len(wanted)
    assert np.abs(found[name, "produced"].mean - wanted.mean(0)).max() <= 1e-6
    assert found.notes == ()
