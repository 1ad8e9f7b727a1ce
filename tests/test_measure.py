"""Activations of real graphs, measured on the way and compared with what is computed naively."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import case
from test_session import made

from converter import Checkpoint, ConverterError, InputError, UsageError, open_checkpoint
from converter.activations.file import Measured
from converter.activations.measure import measure
from converter.activations.moments import Moments
from converter.activations.probes import Probe, Side
from converter.forward.graph import tensor
from converter.variable import Array

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def tf() -> Any:
    return pytest.importorskip("tensorflow").compat.v1


def probe(
    name: str,
    size: int,
    variable: str,
    side: Side = "produced",
    *,
    axis: int = -1,
    mask: str | None = None,
    keeps: bool = False,
) -> Probe:
    masked = None if mask is None else tensor(mask)
    return Probe(tensor(name), axis, size, masked, keeps, ((variable, side),))


def check(found: Moments, rows: Array, rtol: float = 1e-5) -> None:
    """Compare with the moments of (observations, units) that were computed in another way."""
    wide = rows.reshape(-1, found.size).astype(np.float64)
    scale = np.abs(wide).max()
    assert found.count == len(wide)
    for name, wanted in {
        "mean": wide.mean(0),
        "mean_abs": np.abs(wide).mean(0),
        "std": wide.std(0),
        "second_moment": (wide**2).mean(0),
        "min": wide.min(0),
        "max": wide.max(0),
    }.items():
        assert np.abs(getattr(found, name) - wanted).max() <= rtol * scale, name
    assert (found.zeros == (wide == 0).mean(0)).all()


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def lstm(x: Array, kernel: Array, bias: Array) -> tuple[Array, Array]:
    """Return what TensorFlow's LSTMCell takes, and its gates before they are activated."""
    units = bias.size // 4
    h = c = np.zeros((len(x), units))
    taken, gates = [], []
    for step in range(x.shape[1]):
        taken.append(np.concatenate([x[:, step], h], 1))
        gates.append(taken[-1] @ kernel + bias)
        i, j, f, o = np.split(gates[-1], 4, 1)
        c = sigmoid(f + 1) * c + sigmoid(i) * np.tanh(j)
        h = sigmoid(o) * np.tanh(c)
    return np.stack(taken), np.stack(gates)


CELL = "charlm/rnn/lstm_cell"
INSIDE = "charlm/rnn/while/rnn/lstm_cell"
CHARLM = [
    probe(f"{INSIDE}/BiasAdd", 120, f"{CELL}/kernel"),
    probe(f"{INSIDE}/concat", 38, f"{CELL}/kernel", "consumed"),
    probe("charlm/embedding_lookup", 8, "charlm/embedding"),
    probe("charlm/softmax/BiasAdd", 14, "charlm/softmax/kernel"),
]


def charlm() -> tuple[Checkpoint, Array, dict[tuple[str, Side], Array]]:
    checkpoint = open_checkpoint(case("tf14_v2_charlm_lstm_ema").path)
    ids = np.random.default_rng(0).integers(0, 14, (40, 9)).astype("i4")
    rows = checkpoint["charlm/embedding"].read()[ids]
    kernel, bias = (checkpoint[f"{CELL}/{n}"].read().astype("f8") for n in ("kernel", "bias"))
    taken, gates = lstm(rows, kernel, bias)
    wanted: dict[tuple[str, Side], Array] = {
        (f"{CELL}/kernel", "produced"): gates,
        (f"{CELL}/kernel", "consumed"): taken,
        ("charlm/embedding", "produced"): rows,
    }
    return checkpoint, ids, wanted


def test_inside_a_loop_however_the_data_are_cut() -> None:
    checkpoint, ids, wanted = charlm()
    runs = [
        measure(checkpoint, [{"x": ids}], probes=CHARLM),
        measure(checkpoint, ({"x": part} for part in np.array_split(ids, 17)), probes=CHARLM),
    ]
    for found in runs:
        assert set(found) == {*wanted, ("charlm/softmax/kernel", "produced")}
        for key, rows in wanted.items():
            check(found[key], rows)
        assert found.notes == ()
    assert [found.batches for found in runs] == [1, 17]
    assert runs[0].tensors[f"{CELL}/kernel", "consumed"] == (f"{INSIDE}/concat",)
    for key in runs[0]:
        for name in ("mean", "std", "mean_abs"):
            one, other = (getattr(found[key], name) for found in runs)
            assert np.abs(one - other).max() <= 1e-6 * np.abs(one).max()


def test_what_is_wanted_alone_and_its_covariance() -> None:
    checkpoint, ids, wanted = charlm()
    found = measure(
        checkpoint,
        [{"x": ids[:20]}, {"x": ids[20:]}],
        probes=CHARLM,
        variables=["*kernel"],
        covariance=["*lstm_cell*"],
    )
    assert {name for name, _ in found} == {f"{CELL}/kernel", "charlm/softmax/kernel"}
    rows = wanted[f"{CELL}/kernel", "consumed"].reshape(-1, 38)
    covariance = found[f"{CELL}/kernel", "consumed"].covariance
    assert covariance is not None
    assert np.abs(covariance - np.cov(rows.T, bias=True)).max() <= 1e-6
    assert found["charlm/softmax/kernel", "produced"].covariance is None


def test_steps_behind_the_end_of_a_sequence_do_not_count() -> None:
    some = case("tf012_v2_gru_seqlen")
    arrays = np.load(some.directory / "io.npz")
    checkpoint = open_checkpoint(some.path)
    x, h, lengths = (arrays[f"in_{name}"] for name in ("x", "h0", "lengths"))
    gates, candidate = (
        [
            checkpoint[f"RNN/GRUCell/{part}/Linear/{name}"].read().astype("f8")
            for name in ("Matrix", "Bias")
        ]
        for part in ("Gates", "Candidate")
    )
    taken, made_of = [], []
    for step in range(x.shape[1]):
        lives = step < lengths
        both = np.concatenate([x[:, step], h], 1)
        r, u = np.split(sigmoid(both @ gates[0] + gates[1]), 2, 1)
        new = np.tanh(np.concatenate([x[:, step], r * h], 1) @ candidate[0] + candidate[1])
        taken.append(both[lives])
        made_of.append(new[lives])
        h = np.where(lives[:, None], u * h + (1 - u) * new, h)
    assert min(lengths) < x.shape[1]
    inside = "RNN/while/GRUCell"
    over = "RNN/while/GreaterEqual"
    name = "RNN/GRUCell/Candidate/Linear/Matrix"
    gate = "RNN/GRUCell/Gates/Linear/Matrix"
    probes = [
        probe(f"{inside}/Candidate/Tanh", 18, name, mask=over),
        probe(f"{inside}/Gates/Linear/concat", 25, gate, "consumed", mask=over),
    ]
    feeds = {"x": x, "h0": arrays["in_h0"], "lengths": lengths}
    found = measure(checkpoint, [feeds], probes=probes)
    check(found[name, "produced"], np.concatenate(made_of))
    check(found[gate, "consumed"], np.concatenate(taken))
