"""Runs recurrent layers in Keras and in PyTorch, with the variables that were made for them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from converter.variable import Array

TOLERANCE = 1e-5


def run_keras(
    weights: dict[str, Array], kind: str, x: Array, initial: Any = None, **options: Any
) -> list[Array]:
    """Run a Keras layer; return its outputs at all steps, then its last states."""
    keras = pytest.importorskip("keras")

    units = weights["recurrent_kernel"].shape[-2]
    make = {"lstm": keras.layers.LSTM, "gru": keras.layers.GRU, "rnn": keras.layers.SimpleRNN}[kind]
    layer = make(
        units, return_sequences=True, return_state=True, use_bias="bias" in weights, **options
    )
    layer.build(x.shape)
    order = [weights[leaf] for leaf in ("kernel", "recurrent_kernel", "bias") if leaf in weights]
    layer.set_weights(order)
    return [np.asarray(value) for value in layer(x, initial_state=initial)]


def run_torch(
    weights: dict[str, Array], kind: str, x: Array, initial: Any = None, **options: Any
) -> list[Array]:
    """Run a module of PyTorch; return its outputs at all steps, then its last states."""
    torch = pytest.importorskip("torch")
    hidden = weights["weight_hh_l0"].shape[0] // {"lstm": 4, "gru": 3, "rnn": 1}[kind]
    make = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU, "rnn": torch.nn.RNN}[kind]
    module = make(x.shape[-1], hidden, batch_first=True, **options)
    module.load_state_dict(
        {name: torch.from_numpy(value.copy()) for name, value in weights.items()}
    )
    with torch.no_grad():
        given = None if initial is None else tuple(torch.from_numpy(v[None]) for v in initial)
        outputs, states = module(torch.from_numpy(x.copy()), given)
    last = states if kind == "lstm" else (states,)
    return [outputs.numpy(), *(state[-1].numpy() for state in last)]


def assert_same(given: Array, wanted: Array | None) -> None:
    assert wanted is not None
    assert np.abs(given - wanted).max() <= TOLERANCE * max(1.0, np.abs(wanted).max())


def reversed_sequences(values: Array, lengths: Array) -> Array:
    """Return each sequence from its end to its begin, as ReverseSequence does."""
    turned: Array = values.copy()
    for row, length in enumerate(lengths):
        turned[row, :length] = values[row, :length][::-1]
    return turned


def masked(values: Array, lengths: Array | None) -> Array:
    """Return outputs with zeros behind the end of each sequence, as TensorFlow 1 gives them."""
    if lengths is None:
        return values
    kept: Array = values * (np.arange(values.shape[1])[None, :, None] < lengths[:, None, None])
    return kept
