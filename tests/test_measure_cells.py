"""Cells whose gates are in several tensors, or in none, measured and computed with numpy."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from conftest import case
from test_measure import check, sigmoid
from test_session import made

from converter import Checkpoint, Measured, open_checkpoint
from converter.activations.measure import measure
from converter.activations.probes import Side, find_probes
from converter.variable import Array

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def tf() -> Any:
    return pytest.importorskip("tensorflow").compat.v1


def recorded(name: str) -> tuple[Checkpoint, dict[str, Array]]:
    """Return a checkpoint, and the inputs that its author recorded."""
    found = case(name)
    with np.load(found.directory / "io.npz") as arrays:
        inputs = found.record["io"]["inputs"].items()
        return open_checkpoint(found.path), {e["tensor"]: arrays[key] for key, e in inputs}


def values(checkpoint: Checkpoint, *names: str) -> list[Array]:
    return [checkpoint[name].read().astype("f8") for name in names]


def hard_sigmoid(x: Array) -> Array:
    return np.clip(0.2 * x + 0.5, 0, 1)


# -- gates that are cut from the kernel ---------------------------------------------------------


def keras_lstm(x: Array, kernel: Array, recurrent: Array, bias: Array) -> tuple[Array, Array]:
    """Return the gates before they are activated, and the states that they are made of."""
    h = c = np.zeros((len(x), len(recurrent)))
    gates, states = [], []
    for step in range(x.shape[1]):
        states.append(h)
        gates.append(x[:, step] @ kernel + h @ recurrent + bias)
        i, f, j, o = np.split(gates[-1], 4, 1)
        c = hard_sigmoid(f) * c + hard_sigmoid(i) * np.tanh(j)
        h = hard_sigmoid(o) * np.tanh(c)
    return np.stack(gates, 1), np.stack([*states, h], 1)


def keras_gru(x: Array, kernel: Array, recurrent: Array, bias: Array) -> tuple[Array, Array]:
    """Return what the kernels make: the sum of both, but for the candidate."""
    h = np.zeros((len(x), len(recurrent)))
    units = len(recurrent)
    of_input, of_state = [], []
    for step in range(x.shape[1]):
        a, b = x[:, step] @ kernel + bias[0], h @ recurrent + bias[1]
        both = (a + b)[:, : 2 * units]
        of_input.append(np.concatenate([both, a[:, 2 * units :]], 1))
        of_state.append(np.concatenate([both, b[:, 2 * units :]], 1))
        z, r = np.split(sigmoid(both), 2, 1)
        h = z * h + (1 - z) * np.tanh(a[:, 2 * units :] + r * b[:, 2 * units :])
    return np.stack(of_input, 1), np.stack(of_state, 1)


def test_gates_that_keras_cuts_from_the_kernels() -> None:
    checkpoint, batch = recorded("tf115_v2_keras_rnn")
    parts = [{"x:0": part} for part in np.array_split(batch["x:0"], 3)]
    found = measure(checkpoint, parts, covariance=["first/*"])
    first = values(checkpoint, *(f"first/{n}" for n in ("kernel", "recurrent_kernel", "bias")))
    gates, states = keras_lstm(batch["x:0"], *first)
    for name in ("kernel", "recurrent_kernel", "bias"):
        check(found[f"first/{name}", "produced"], gates)
    check(found["first/kernel", "consumed"], batch["x:0"])
    check(found["first/recurrent_kernel", "consumed"], states[:, :-1])
    second = values(checkpoint, *(f"second/{n}" for n in ("kernel", "recurrent_kernel", "bias")))
    of_input, of_state = keras_gru(states[:, 1:], *second)
    check(found["second/kernel", "produced"], of_input)
    check(found["second/recurrent_kernel", "produced"], of_state)
    # Its two rows are measured one after the other.
    check(found["second/bias", "produced"], np.concatenate([of_input, of_state], 2))
    inside = "first/while/add"
    assert found.tensors["first/kernel", "produced"] == (
        inside,
        f"{inside}_2",
        f"{inside}_4",
        f"{inside}_6",
    )


def test_what_is_between_units_of_several_tensors_is_not_known() -> None:
    checkpoint, batch = recorded("tf115_v2_keras_rnn")
    found = measure(checkpoint, [batch], covariance=["first/recurrent_kernel"])
    assert found["first/recurrent_kernel", "consumed"].covariance is not None
    assert found["first/recurrent_kernel", "produced"].covariance is None
    (note,) = found.notes
    assert note.startswith(
        "first/recurrent_kernel (produced): no covariance: its units are in different tensors, "
        "first/while/add, first/while/add_2"
    )


def test_parts_of_which_some_are_not_run() -> None:
    checkpoint, batch = recorded("tf115_v2_keras_rnn")
    probes = [p for p in find_probes(checkpoint).probes if p.cut is None or p.cut.start != 12]
    found = measure(checkpoint, [batch], probes=probes)
    assert ("first/kernel", "produced") not in found
    assert "first/kernel (produced): 36 of its 48 units ran: left out" in found.notes
    halves = [
        p for p in find_probes(checkpoint).probes if p.tensor.node != "second/while/BiasAdd_2"
    ]
    # What is run twice for one part has twice as many observations.
    again = [p for p in halves if p.cut is not None and p.cut.start == 0]
    twice = measure(checkpoint, [batch], probes=[*find_probes(checkpoint).probes, *again])
    why = "first/bias (produced): its parts have 24 to 48 observations each: left out"
    assert why in twice.notes


# -- cells that are one op ----------------------------------------------------------------------

UNITS = 5
STEPS = np.random.default_rng(2).standard_normal((7, 6, 4)).astype("f4")
LENGTHS = np.array([2, 5, 3, 5, 0, 4], "i4")


class Lstm(NamedTuple):
    """The variables of an LSTM, and the order of its gates; its steps come first.

    Attributes:
        order: of input gate, candidate, forget gate and output gate in the kernel.
        forget: what is added to the forget gate.
        clip: beyond which the state is cut off; 0 for nowhere.
    """

    kernel: Array
    bias: Array
    peepholes: Array | None = None
    order: str = "icfo"
    forget: float = 1
    clip: float = 0

    def run(self, x: Array, lengths: Array | None = None) -> dict[str, Array]:
        """Return what it takes and makes at the steps of the sequences that go on."""
        h = c = np.zeros((x.shape[1], len(self.bias) // 4))
        peepholes = np.zeros((3, h.shape[1])) if self.peepholes is None else self.peepholes
        found: dict[str, list[Array]] = {}
        for step in range(len(x)):
            lives = np.full(len(h), True) if lengths is None else step < lengths
            taken = np.concatenate([x[step], h], 1)
            gates = taken @ self.kernel + self.bias
            gate = dict(zip(self.order, np.split(gates, 4, 1), strict=True))
            i = sigmoid(gate["i"] + c * peepholes[0])
            f = sigmoid(gate["f"] + c * peepholes[1] + self.forget)
            after = f * c + i * np.tanh(gate["c"])
            after = np.clip(after, -self.clip, self.clip) if self.clip else after
            new = sigmoid(gate["o"] + after * peepholes[2]) * np.tanh(after)
            made = {"taken": taken, "gates": gates, "i": c * peepholes[0], "f": c * peepholes[1]}
            for name, rows in {**made, "o": after * peepholes[2], "h": new}.items():
                found.setdefault(name, []).append(rows[lives])
            h, c = (np.where(lives[:, None], a, b) for a, b in ((new, h), (after, c)))
        return {name: np.concatenate(rows) for name, rows in found.items()}


def check_lstm(found: Measured, made: dict[str, Array], names: dict[str, str]) -> None:
    check(found[names["kernel"], "consumed"], made["taken"])
    check(found[names["kernel"], "produced"], made["gates"])
    check(found[names["bias"], "produced"], made["gates"])
    for gate in set(names) & set("ifo"):
        check(found[names[gate], "produced"], made[gate])


def test_a_recorded_cell_that_is_one_op() -> None:
    checkpoint, batch = recorded("tf115_v2_lstmblockfused")
    cell = "lstm_fused_cell"
    peepholes = [f"{cell}/w_{gate}_diag" for gate in "ifo"]
    kernel, bias, *rest = values(checkpoint, f"{cell}/kernel", f"{cell}/bias", *peepholes)
    made = Lstm(kernel, bias, np.stack(rest)).run(batch["x_time_major:0"])
    with np.load(case("tf115_v2_lstmblockfused").directory / "io.npz") as arrays:
        wanted = arrays["out_rnn"]
    assert np.abs(made["h"] - wanted.reshape(made["h"].shape)).max() < 1e-6
    found = measure(checkpoint, [batch, batch], covariance=[f"{cell}/kernel"])
    names = {"kernel": f"{cell}/kernel", "bias": f"{cell}/bias"}
    twice = {name: np.concatenate([rows, rows]) for name, rows in made.items()}
    check_lstm(found, twice, {**names, **dict(zip("ifo", peepholes, strict=True))})
    sides: list[tuple[Side, Array]] = [("consumed", made["taken"]), ("produced", made["gates"])]
    for side, rows in sides:
        covariance = found[f"{cell}/kernel", side].covariance
        assert covariance is not None
        assert np.abs(covariance - np.cov(rows.T, bias=True)).max() <= 1e-6
    assert found.tensors[f"{cell}/kernel", "consumed"] == (f"{cell}/BlockLSTM:taken",)
    assert found.notes == ()


def some(tf: Any, name: str, *shape: int) -> Any:
    return tf.get_variable(name, shape, initializer=tf.random_normal_initializer(0, 0.7, seed=1))


@pytest.mark.parametrize(
    ("flow", "place"),
    [("frames", "outside"), ("frames", "branch"), ("functions", "branch")],
    indirect=["flow"],
)
@pytest.mark.parametrize("lengths", [None, LENGTHS])
@pytest.mark.parametrize("op", ["BlockLSTM", "BlockLSTMV2"])
def test_all_steps_in_one_op(
    tf: Any, tmp_path: Path, flow: str, op: str, lengths: Array | None, place: str
) -> None:
    names = ("i", "f", "o")

    def build() -> None:
        x = tf.placeholder(tf.float32, [None, 6, 4], "x")
        said = tf.placeholder_with_default(LENGTHS, [6], "lengths")
        kernel, bias = some(tf, "kernel", 9, 20), some(tf, "bias", 20)
        peepholes = dict(
            zip(("wci", "wcf", "wco"), (some(tf, n, UNITS) for n in names), strict=True)
        )
        last = tf.shape(x)[0] if lengths is None else tf.reduce_max(said)

        def cell() -> Any:
            zeros = tf.zeros([6, UNITS])
            given = {} if op.endswith("V2") else {"forget_bias": 0.5}
            return getattr(tf.raw_ops, op)(
                seq_len_max=tf.cast(last, tf.int64),
                x=x,
                cs_prev=zeros,
                h_prev=zeros,
                w=kernel,
                b=bias,
                **peepholes,
                cell_clip=0.9,
                use_peephole=True,
                **given,
            ).h

        is_there = tf.reduce_max(x) > -9
        h = (
            cell()
            if place == "outside"
            else tf.cond(is_there, cell, lambda: x[:, :, :1] + tf.zeros([UNITS]))
        )
        tf.matmul(h[-1], some(tf, "head", UNITS, 2), name="out")

    made(tf, tmp_path, build, feeds={"x": STEPS, "lengths": LENGTHS}, fetches=["out"])
    checkpoint = open_checkpoint(tmp_path)
    kernel, bias, *peepholes = values(checkpoint, "kernel", "bias", *names)
    order, forget = ("icfo", 0.5) if op == "BlockLSTM" else ("ifco", 0)
    lstm = Lstm(kernel, bias, np.stack(peepholes), order, forget, 0.9)
    found = measure(checkpoint, [{"x": STEPS, "lengths": LENGTHS}])
    if flow == "functions" and lengths is not None:
        # They stand outside of the function: what is behind their ends must not be counted.
        assert {name for name, _ in found} == {"head"}
        assert found.notes[-1].startswith("not measured, as nothing of it was run: bias (produced)")
        return
    every = ("kernel", "bias", *names)
    check_lstm(found, lstm.run(STEPS, lengths), dict(zip(every, every, strict=True)))


class BlockCell:
    """A recurrent cell that is one op, as TensorFlow takes it."""

    output_size = UNITS

    def __init__(self, tf: Any, op: str) -> None:
        self.tf, self.op = tf, op
        self.state_size = (UNITS, UNITS) if op == "LSTMBlockCell" else UNITS

    def zero_state(self, batch: Any, dtype: Any) -> Any:
        zeros = self.tf.zeros([batch, UNITS], dtype)
        return (zeros, zeros) if self.op == "LSTMBlockCell" else zeros

    def get_initial_state(
        self, inputs: Any = None, batch_size: Any = None, dtype: Any = None
    ) -> Any:
        size = self.tf.shape(inputs)[0] if inputs is not None else batch_size
        return self.zero_state(size, dtype)

    def __call__(self, x: Any, state: Any, scope: Any = None) -> tuple[Any, Any]:
        tf = self.tf
        with tf.variable_scope("cell", reuse=tf.AUTO_REUSE):
            if self.op == "LSTMBlockCell":
                kernel, bias = some(tf, "kernel", 9, 20), some(tf, "bias", 20)
                zeros = tf.zeros([UNITS])
                found = tf.raw_ops.LSTMBlockCell(
                    x=x, cs_prev=state[0], h_prev=state[1], w=kernel, b=bias,
                    wci=zeros, wcf=zeros, wco=zeros,
                )  # fmt: skip
                return found.h, (found.cs, found.h)
            found = tf.raw_ops.GRUBlockCell(
                x=x, h_prev=state, w_ru=some(tf, "gates/w", 9, 10), b_ru=some(tf, "gates/b", 10),
                w_c=some(tf, "candidate/w", 9, 5), b_c=some(tf, "candidate/b", 5),
            )  # fmt: skip
            return found.h, found.h


def gru(x: Array, weights: Sequence[Array], lengths: Array) -> dict[str, Array]:
    """Return what a GRU takes and makes at the steps of the sequences that go on."""
    kernel, bias, of_candidate, its_bias = weights
    h = np.zeros((x.shape[1], UNITS))
    found: dict[str, list[Array]] = {}
    for step in range(len(x)):
        lives = step < lengths
        taken = np.concatenate([x[step], h], 1)
        gates = taken @ kernel + bias
        r, u = np.split(sigmoid(gates), 2, 1)
        reset = np.concatenate([x[step], r * h], 1)
        new = np.tanh(reset @ of_candidate + its_bias)
        for name, rows in {"taken": taken, "gates": gates, "reset": reset, "new": new}.items():
            found.setdefault(name, []).append(rows[lives])
        h = np.where(lives[:, None], u * h + (1 - u) * new, h)
    return {name: np.concatenate(rows) for name, rows in found.items()}


@pytest.mark.parametrize("loop", ["dynamic", "static"])
@pytest.mark.parametrize("op", ["LSTMBlockCell", "GRUBlockCell"])
def test_a_step_in_one_op(tf: Any, tmp_path: Path, flow: str, op: str, loop: str) -> None:
    def build() -> None:
        x = tf.placeholder(tf.float32, [7, 6, 4], "x")
        said = tf.placeholder(tf.int32, [6], "lengths")
        cell = BlockCell(tf, op)
        if loop == "static":
            steps, _ = tf.nn.static_rnn(cell, tf.unstack(x), dtype=tf.float32, sequence_length=said)
        else:
            steps, _ = tf.nn.dynamic_rnn(
                cell, x, dtype=tf.float32, sequence_length=said, time_major=True
            )
        tf.matmul(steps[-1], some(tf, "head", UNITS, 2), name="out")

    feeds = {"x": STEPS, "lengths": LENGTHS}
    made(tf, tmp_path, build, feeds=feeds, fetches=["out"])
    checkpoint = open_checkpoint(tmp_path)
    found = measure(checkpoint, [feeds])
    (first, *_) = (name for name in checkpoint if "cell/" in name)
    scope = first.partition("cell/")[0] + "cell/"
    if op == "LSTMBlockCell":
        kernel, bias = values(checkpoint, f"{scope}kernel", f"{scope}bias")
        names = {"kernel": f"{scope}kernel", "bias": f"{scope}bias"}
        check_lstm(found, Lstm(kernel, bias).run(STEPS, LENGTHS), names)
        return
    weights = [f"{scope}{n}" for n in ("gates/w", "gates/b", "candidate/w", "candidate/b")]
    rows = gru(STEPS, values(checkpoint, *weights), LENGTHS)
    check(found[weights[0], "consumed"], rows["taken"])
    check(found[weights[2], "consumed"], rows["reset"])
    for name, what in zip(weights, ("gates", "gates", "new", "new"), strict=True):
        check(found[name, "produced"], rows[what])


@pytest.mark.parametrize("flow", ["frames"], indirect=True)
def test_lengths_that_are_compared_in_a_branch(tf: Any, tmp_path: Path, flow: str) -> None:
    """TensorFlow 1.0 to 1.4 unroll in this way, each tensor with a comparison of its own."""

    def build() -> None:
        x = tf.placeholder(tf.float32, [7, 6, 4], "x")
        lengths = tf.placeholder(tf.int32, [6], "lengths")
        kernel = some(tf, "kernel", 9, UNITS)
        shortest, longest = tf.reduce_min(lengths), tf.reduce_max(lengths)
        h = output = zeros = tf.zeros([6, UNITS])

        def step(number: int, h: Any) -> Any:
            new = tf.tanh(tf.matmul(tf.concat([x[number], h], 1), kernel))

            def some_end() -> list[Any]:
                return [tf.where(lengths <= number, old, new) for old in (h, zeros)]

            return tf.cond(number < shortest, lambda: [new, new], some_end)

        for number in range(7):
            h, output = tf.cond(
                number >= longest,
                lambda h=h: [h, zeros],
                lambda number=number, h=h: step(number, h),
            )
        tf.matmul(h + output, some(tf, "head", UNITS, 2), name="out")

    lengths = np.array([2, 5, 3, 5, 2, 4], "i4")
    feeds = {"x": STEPS, "lengths": lengths}
    made(tf, tmp_path, build, feeds=feeds, fetches=["out"])
    checkpoint = open_checkpoint(tmp_path)
    found = measure(checkpoint, [feeds])
    (kernel,) = values(checkpoint, "kernel")
    h, taken, new = np.zeros((6, UNITS)), [], []
    for number in range(7):
        lives = number < lengths
        taken.append(np.concatenate([STEPS[number], h], 1)[lives])
        new.append(np.tanh(taken[-1] @ kernel))
        h[lives] = new[-1]
    check(found["kernel", "consumed"], np.concatenate(taken))
    check(found["kernel", "produced"], np.concatenate(new))
    masks = {str(probe.mask) for probe in find_probes(checkpoint).probes if probe.mask is not None}
    assert masks == {f"lengths:longer_{number}" for number in range(7)}


# -- steps beside loops -------------------------------------------------------------------------


@pytest.mark.parametrize("flow", ["frames"], indirect=True)
@pytest.mark.parametrize("is_shared", [False, True])
def test_a_step_for_nothing_does_not_count(
    tf: Any, tmp_path: Path, flow: str, is_shared: bool
) -> None:
    """Keras in TensorFlow 1 sees from one what a cell gives, before it makes the loop."""

    def build() -> None:
        x = tf.placeholder(tf.float32, [7, 6, 4], "x")
        kernel, recurrent = some(tf, "kernel", 4, UNITS), some(tf, "recurrent", UNITS, UNITS)

        def step(given: Any, h: Any) -> Any:
            return tf.tanh(tf.matmul(given, kernel) + tf.matmul(h, recurrent))

        def layer(x: Any) -> Any:
            first = tf.zeros([6, UNITS])
            seen = step(x[0], first)

            def turn(number: Any, h: Any) -> Any:
                return number + 1, step(x[number], h) + tf.zeros_like(seen)

            return tf.while_loop(lambda number, _: number < 7, turn, [0, first])[1]

        h = layer(x) + layer(-x) if is_shared else layer(x)
        tf.matmul(h, some(tf, "head", UNITS, 2), name="out")

    made(tf, tmp_path, build, feeds={"x": STEPS}, fetches=["out"])
    checkpoint = open_checkpoint(tmp_path)
    found = measure(checkpoint, [{"x": STEPS}])
    kernel, recurrent = values(checkpoint, "kernel", "recurrent")
    rows = []
    for x in (STEPS, -STEPS)[: 1 + is_shared]:
        h = np.zeros((6, UNITS))
        for given in x:
            h = np.tanh(given @ kernel + h @ recurrent)
            rows.append(h)
    for name in ("kernel", "recurrent"):
        check(found[name, "produced"], np.concatenate(rows))


@pytest.mark.parametrize("flow", ["frames"], indirect=True)
def test_an_output_that_a_loop_computes_too_counts(tf: Any, tmp_path: Path, flow: str) -> None:
    """A model that is trained on all steps at once, and draws one after the other."""

    def build() -> None:
        x = tf.placeholder(tf.float32, [6, 4], "x")
        kernel, head = some(tf, "kernel", 4, UNITS), some(tf, "head", UNITS, 4)
        hidden = tf.tanh(tf.matmul(x, kernel))
        tf.matmul(hidden, head, name="logits")

        def turn(number: Any, given: Any) -> Any:
            return number + 1, tf.matmul(tf.matmul(given, kernel), head)

        tf.identity(tf.while_loop(lambda number, _: number < 3, turn, [0, x])[1], "drawn")

    made(tf, tmp_path, build, feeds={"x": STEPS[0]}, fetches=["drawn"])
    tensors = [str(probe.tensor) for probe in find_probes(open_checkpoint(tmp_path)).probes]
    assert "logits" in tensors
