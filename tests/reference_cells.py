"""The cells of TensorFlow 1 in numpy, after rnn_cell_impl.py and contrib/rnn of 1.15."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from converter.variable import Array

Step = Callable[[Array, Array, Array], tuple[Array, Array]]


def sigmoid(x: Array) -> Array:
    value: Array = 1 / (1 + np.exp(-x))
    return value


def run(x: Array, units: int, outputs: int, step: Step) -> Array:
    """Run a cell over (batch, time, features) from zeros; `step` takes input, output, state."""
    h, c = np.zeros((len(x), outputs)), np.zeros((len(x), units))
    found = []
    for time in range(x.shape[1]):
        h, c = step(x[:, time].astype("f8"), h, c)
        found.append(h)
    return np.stack(found, 1)


def lstm(
    x: Array, kernel: Array, bias: Array, forget: float, projection: Array | None = None
) -> Array:
    """BasicLSTMCell, LSTMCell: rows are inputs and outputs, columns i, j, f, o."""
    units = kernel.shape[1] // 4

    def step(x: Array, h: Array, c: Array) -> tuple[Array, Array]:
        i, j, f, o = np.split(np.concatenate([x, h], 1) @ kernel + bias, 4, 1)
        c = c * sigmoid(f + forget) + sigmoid(i) * np.tanh(j)
        h = np.tanh(c) * sigmoid(o)
        return (h if projection is None else h @ projection), c

    return run(x, units, units if projection is None else projection.shape[1], step)


def gru(x: Array, gates: Array, gate_bias: Array, candidate: Array, bias: Array) -> Array:
    """GRUCell: gates r and u; the state is reset before the product."""
    units = candidate.shape[1]

    def step(x: Array, h: Array, c: Array) -> tuple[Array, Array]:
        r, u = np.split(sigmoid(np.concatenate([x, h], 1) @ gates + gate_bias), 2, 1)
        new = np.tanh(np.concatenate([x, r * h], 1) @ candidate + bias)
        return u * h + (1 - u) * new, c

    return run(x, units, units, step)


def gru_after(x: Array, gates: Array, gate_bias: Array, parts: Mapping[str, Array]) -> Array:
    """CudnnCompatibleGRUCell: the state is reset after the product."""
    units = gates.shape[1] // 2

    def step(x: Array, h: Array, c: Array) -> tuple[Array, Array]:
        r, u = np.split(sigmoid(np.concatenate([x, h], 1) @ gates + gate_bias), 2, 1)
        hidden = h @ parts["hidden_projection/kernel"] + parts["hidden_projection/bias"]
        new = np.tanh(
            x @ parts["input_projection/kernel"] + parts["input_projection/bias"] + r * hidden
        )
        return (1 - u) * new + u * h, c

    return run(x, units, units, step)


def rnn(x: Array, kernel: Array, bias: Array) -> Array:
    """BasicRNNCell."""
    units = kernel.shape[1]

    def step(x: Array, h: Array, c: Array) -> tuple[Array, Array]:
        return np.tanh(np.concatenate([x, h], 1) @ kernel + bias), c

    return run(x, units, units, step)
