"""Models as TensorFlow 1 builds them compute in PyTorch and in Keras what they computed there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from converter_plugins.keras import Keras
from converter_plugins.torch import Torch
from frameworks import assert_same, masked, reversed_sequences, run_keras, run_torch

from converter import Checkpoint, PlanError, open_checkpoint
from converter.plan import make_plan
from converter.variable import Array

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*is deprecated"),
    pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN"),
]
DRAW = np.random.default_rng(7)
X = DRAW.uniform(-1, 1, (3, 5, 4)).astype("f4")
LENGTHS = np.array([3, 5, 1])
Weights = dict[str, Array]


@pytest.fixture(scope="module")
def tf() -> Iterator[Any]:
    """Give TensorFlow as its first version was, whose loops are ops of their own."""
    v1 = pytest.importorskip("tensorflow").compat.v1
    was = v1.control_flow_v2_enabled()
    v1.disable_control_flow_v2()
    yield v1
    if was:
        v1.enable_control_flow_v2()


@pytest.fixture(scope="module")
def cells() -> Any:
    return pytest.importorskip("tensorflow.python.keras.layers.legacy_rnn.rnn_cell_impl")


@contextmanager
def model(tf: Any, path: Path, keys: str = "") -> Iterator[list[Any]]:
    """Save what is built within, with drawn values; the list gives the output and gets its values.

    Args:
        tf: TensorFlow 1.
        path: where the checkpoint goes, with its graph.
        keys: the start of the keys that stand for names where the Saver is made of a dict.
    """
    given: list[Any] = []
    with tf.Graph().as_default(), tf.Session() as session:
        yield given
        variables = tf.global_variables()
        session.run(tf.global_variables_initializer())
        for variable in variables:
            values = DRAW.uniform(-0.6, 0.6, variable.shape.as_list())
            variable.load(values.astype("f4"), session)
        saved = {f"{keys}{k}": v for k, v in enumerate(variables)} if keys else None
        tf.train.Saver(saved).save(session, str(path / "model.ckpt"))
        given[:] = [session.run(given[0])]


def converted(path: Path, strategy: Keras | Torch) -> tuple[Weights, tuple[str, ...]]:
    plan = make_plan(open_checkpoint(path), [strategy])
    return {name: variable.read() for name, variable in plan.result.items()}, plan.notes


def of_scope(weights: Weights, scope: str) -> Weights:
    return {n.removeprefix(scope): v for n, v in weights.items() if n.startswith(scope)}


def packed(module: Any, x: Array) -> Array:
    """Run a module over sequences of several lengths."""
    torch = pytest.importorskip("torch")
    rnn = torch.nn.utils.rnn
    options = {"batch_first": True}
    sequences = rnn.pack_padded_sequence(
        torch.from_numpy(x), torch.from_numpy(LENGTHS), enforce_sorted=False, **options
    )
    with torch.no_grad():
        outputs: Array = rnn.pad_packed_sequence(module(sequences)[0], **options)[0].numpy()
    return outputs


def loaded(make: Callable[..., Any], *sizes: int, weights: Weights, **options: Any) -> Any:
    torch = pytest.importorskip("torch")
    module = make(*sizes, batch_first=True, **options)
    module.load_state_dict({n: torch.from_numpy(v.copy()) for n, v in weights.items()})
    return module


def test_layers_whose_inputs_are_added_to_their_outputs(
    tf: Any, cells: Any, tmp_path: Path
) -> None:
    with model(tf, tmp_path) as given:
        parts = [cells.BasicLSTMCell(4), *(cells.BasicLSTMCell(4) for _ in range(2))]
        parts[1:] = [cells.ResidualWrapper(cell) for cell in parts[1:]]
        given.append(tf.nn.dynamic_rnn(cells.MultiRNNCell(parts), X, dtype="float32")[0])
    for strategy, run, separator in ((Torch(), run_torch, "."), (Keras(), run_keras, "/")):
        weights, _ = converted(tmp_path, strategy)
        outputs = X
        for layer in range(3):
            scope = f"rnn/multi_rnn_cell/cell_{layer}/basic_lstm_cell/".replace("/", separator)
            after = run(of_scope(weights, scope), "lstm", outputs)[0]
            outputs = after + outputs if layer else after
        assert_same(outputs, given[0])


def test_both_directions_of_a_projected_cell(tf: Any, cells: Any, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    with model(tf, tmp_path) as given, tf.variable_scope("enc"):
        both = [cells.LSTMCell(6, num_proj=3, forget_bias=bias) for bias in (0.5, 2.0)]
        outputs, _ = tf.nn.bidirectional_dynamic_rnn(
            *both, X, sequence_length=LENGTHS, dtype="float32"
        )
        given.append(tf.concat(outputs, 2))
    weights, notes = converted(tmp_path, Torch())
    assert notes == (
        "torch: enc.bidirectional_rnn: nn.LSTM(4, 6, bidirectional=True, proj_size=3)",
    )
    own = of_scope(weights, "enc.bidirectional_rnn.")
    module = loaded(torch.nn.LSTM, 4, 6, weights=own, proj_size=3, bidirectional=True)
    assert_same(packed(module, X), given[0])
    with pytest.raises(PlanError, match="a Keras LSTM has no projection"):
        converted(tmp_path, Keras())


def test_peepholes_are_refused_by_both(tf: Any, cells: Any, tmp_path: Path) -> None:
    with model(tf, tmp_path) as given:
        cell = cells.LSTMCell(6, use_peepholes=True, num_proj=4)
        given.append(tf.nn.dynamic_rnn(cell, X, dtype="float32")[0])
    for strategy in (Torch(), Keras()):
        with pytest.raises(PlanError, match="its gates look at the state of the cell"):
            converted(tmp_path, strategy)


def test_cells_in_scopes_of_their_own(tf: Any, cells: Any, tmp_path: Path) -> None:
    """They are called step by step, each with a scope that says nothing of its class."""
    with model(tf, tmp_path) as given:
        first, second = cells.BasicLSTMCell(6, forget_bias=0.3), cells.GRUCell(5)
        states = [cell.zero_state(len(X), "float32") for cell in (first, second)]
        steps = []
        for x in np.moveaxis(X, 1, 0):
            output, states[0] = first(tf.constant(x), states[0], scope="reader")
            output, states[1] = second(output, states[1], scope="writer")
            steps.append(output)
        given.append(tf.stack(steps, 1))
    weights, _ = converted(tmp_path, Keras())
    read = run_keras(of_scope(weights, "reader/"), "lstm", X)[0]
    written = run_keras(of_scope(weights, "writer/"), "gru", read, reset_after=False)[0]
    assert_same(written, given[0])
    # What PyTorch has no counterpart of stays.
    weights, _ = converted(tmp_path, Torch(rest="keep"))
    assert_same(run_torch(of_scope(weights, "reader."), "lstm", X)[0], read)


def test_a_stack_of_bidirectional_layers(tf: Any, cells: Any, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    with model(tf, tmp_path) as given, tf.variable_scope("stack_bidirectional_rnn"):
        outputs = X
        for layer in range(2):
            with tf.variable_scope(f"cell_{layer}"):
                both = [cells.LSTMCell(5), cells.LSTMCell(5)]
                halves, _ = tf.nn.bidirectional_dynamic_rnn(
                    *both, outputs, sequence_length=LENGTHS, dtype="float32"
                )
            outputs = tf.concat(halves, 2)
        given.append(outputs)
    weights, _ = converted(tmp_path, Torch())
    own = of_scope(weights, "stack_bidirectional_rnn.")
    module = loaded(torch.nn.LSTM, 4, 5, weights=own, num_layers=2, bidirectional=True)
    assert_same(packed(module, X), given[0])
    weights, _ = converted(tmp_path, Keras())
    outputs = X
    for layer in range(2):
        start = f"stack_bidirectional_rnn/cell_{layer}/bidirectional_rnn/"
        forward = run_keras(of_scope(weights, f"{start}fw/lstm_cell/"), "lstm", outputs)[0]
        turned = reversed_sequences(outputs, LENGTHS)
        backward = run_keras(of_scope(weights, f"{start}bw/lstm_cell/"), "lstm", turned)[0]
        joint = np.concatenate([forward, reversed_sequences(backward, LENGTHS)], -1)
        outputs = masked(joint, LENGTHS)
    assert_same(outputs, given[0])


@pytest.mark.parametrize("keys", ["", "v"])
def test_slices_and_other_keys(keys: str, tf: Any, cells: Any, tmp_path: Path) -> None:
    """A partitioned kernel, and one that a Saver of a dict stored under a key of its own."""
    halves = None if keys else tf.fixed_size_partitioner(2)
    with (
        model(tf, tmp_path, keys) as given,
        tf.variable_scope("lm", partitioner=halves, use_resource=False),
    ):
        outputs, _ = tf.nn.dynamic_rnn(cells.LSTMCell(6, forget_bias=0.7), X, dtype="float32")
        given.append(outputs)
    source: Checkpoint = open_checkpoint(tmp_path)
    assert bool(source.partitions) != bool(keys)
    scopes = {"torch": f"{keys}0." if keys else "lm.rnn.lstm_cell."}
    scopes["keras"] = scopes["torch"].replace(".", "/")
    weights, _ = converted(tmp_path, Torch())
    assert_same(run_torch(of_scope(weights, scopes["torch"]), "lstm", X)[0], given[0])
    weights, _ = converted(tmp_path, Keras())
    assert_same(run_keras(of_scope(weights, scopes["keras"]), "lstm", X)[0], given[0])
