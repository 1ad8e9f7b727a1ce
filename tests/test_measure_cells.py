"""Cells whose gates are in several tensors, or in none, measured and computed with numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from conftest import case
from test_measure import check, sigmoid

from converter import Checkpoint, open_checkpoint
from converter.activations.measure import measure
from converter.activations.probes import find_probes
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
    assert "first/kernel (produced): 36 of its 48 units were run: left out" in found.notes
    halves = [
        p for p in find_probes(checkpoint).probes if p.tensor.node != "second/while/BiasAdd_2"
    ]
    # What is run twice for one part has twice as many observations.
    again = [p for p in halves if p.cut is not None and p.cut.start == 0]
    twice = measure(checkpoint, [batch], probes=[*find_probes(checkpoint).probes, *again])
    why = "first/bias (produced): its parts have 24 to 48 observations each: left out"
    assert why in twice.notes
