"""Converted layers compute in Keras and in PyTorch what the recorded models computed."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from converter_plugins.keras import Keras
from converter_plugins.torch import Torch

from converter import PlanError, Result, convert, open_checkpoint
from converter.variable import Array

pytestmark = pytest.mark.slow

DATA = Path(__file__).parent / "data"
TOLERANCE = 1e-5


class Recorded:
    """A recorded recurrent layer."""

    def __init__(self, name: str, number: int) -> None:
        self.directory = DATA / name
        case: dict[str, Any] = json.loads((self.directory / "case.json").read_text())
        keys = ("variables_prefix", "prefix", "graph_def")
        found = [case[key] for key in keys if case.get(key)]
        self.path = self.directory / found[0]
        self.rnn: dict[str, Any] = case["rnn"][number]
        self.layers: list[dict[str, Any]] = case["rnn"]
        self.io = np.load(self.directory / "io.npz")

    def array(self, what: str) -> Array | None:
        """Return a recorded array of the layer, batch first: its input `x`, its output `out` ..."""
        name = self.rnn["check"].get(what)
        if name is None:
            return None
        if name.startswith("embed:"):
            _, table, ids = name.split(":")
            # In an object checkpoint variables have other names than keys.
            table = "embedding/embeddings" if "ATTRIBUTES" in table else table
            found: Array = open_checkpoint(self.path)[table].read()[self.io[ids]]
            return found
        values: Array = self.io[name]
        return values.swapaxes(0, 1) if self.rnn.get("time_major") and values.ndim == 3 else values

    @property
    def variables(self) -> set[str]:
        """The variables of the layer, under the names that they are opened with."""
        names = set(self.rnn["variables"].values())
        if any("ATTRIBUTES" in name for name in names):
            names = {f"lstm/lstm_cell/{leaf}" for leaf in self.rnn["variables"]}
        return names

    def converted(self, result: Result) -> dict[str, Array]:
        """Return what a conversion made of the layer, by the last part of the names."""
        output = open_checkpoint(result.files[0])
        found = {}
        for change in result.plan.changes:
            if {s.name for s in change.sources} & self.variables:
                leaf = re.split(r"[/.]", change.variable.name)[-1]
                found[leaf] = output[change.variable.name].read()
        return found


def _all(name: str) -> list[tuple[str, int]]:
    case = json.loads((DATA / name / "case.json").read_text())
    return [(name, i) for i, rnn in enumerate(case.get("rnn") or ()) if "check" in rnn]


# No reader for Keras files; what runs gate by gate has no cell to be recognised by.
LSTMS = [
    case
    for name in (
        "tf012_v1_charlm_basiclstm",
        "tf115_frozen",
        "tf14_v2_attention_bahdanau",
        "tf14_v2_charlm_lstm_ema",
        "tf221_obj_tfkeras_charlm",
    )
    for case in _all(name)
] + [("tf14_v2_bidirectional", 0), ("tf10_v2_multilstm_adagrad", 0)]
GRUS = [("tf012_v2_gru_seqlen", 0), ("tf115_savedmodel", 0), ("tf14_v2_bidirectional", 1)]


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


def run_torch(weights: dict[str, Array], kind: str, x: Array, **options: Any) -> list[Array]:
    """Run a module of PyTorch; return its outputs at all steps, then its last states."""
    torch = pytest.importorskip("torch")
    hidden = weights["weight_hh_l0"].shape[0] // {"lstm": 4, "gru": 3, "rnn": 1}[kind]
    make = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU, "rnn": torch.nn.RNN}[kind]
    module = make(x.shape[-1], hidden, batch_first=True, **options)
    module.load_state_dict(
        {name: torch.from_numpy(value.copy()) for name, value in weights.items()}
    )
    with torch.no_grad():
        outputs, states = module(torch.from_numpy(x.copy()))
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


@pytest.mark.parametrize(("name", "number"), LSTMS)
@pytest.mark.parametrize("framework", ["keras", "torch"])
def test_lstm(name: str, number: int, framework: str, tmp_path: Path) -> None:
    case = Recorded(name, number)
    strategy = Keras(rest="keep") if framework == "keras" else Torch(rest="keep")
    result = convert(case.path, tmp_path / "x.safetensors", [strategy])
    weights = case.converted(result)
    x = case.array("x")
    assert x is not None
    run = run_keras if framework == "keras" else run_torch
    outputs, h, c = run(weights, "lstm", x)
    lengths = case.array("lengths")
    if case.array("out") is not None:
        assert_same(masked(outputs, lengths), case.array("out"))
    if lengths is None:
        for state, what in ((h, "h"), (c, "c")):
            if case.array(what) is not None:
                assert_same(state, case.array(what))


@pytest.mark.parametrize(("name", "number"), GRUS)
def test_gru_of_tensorflow_runs_in_keras(name: str, number: int, tmp_path: Path) -> None:
    case = Recorded(name, number)
    result = convert(case.path, tmp_path / "x.safetensors", [Keras(rest="keep")])
    weights = case.converted(result)
    x, lengths, start = case.array("x"), case.array("lengths"), case.array("h0")
    assert x is not None
    if case.rnn.get("direction") == "backward":
        assert lengths is not None
        x = reversed_sequences(x, lengths)
    initial = None if start is None else [start]
    outputs, _ = run_keras(weights, "gru", x, initial, reset_after=False)
    outputs = masked(outputs, lengths)
    if case.rnn.get("direction") == "backward":
        assert lengths is not None
        outputs = reversed_sequences(outputs, lengths)
    assert_same(outputs, case.array("out"))


@pytest.mark.parametrize(("name", "number"), GRUS)
def test_gru_of_tensorflow_is_none_of_pytorch(name: str, number: int, tmp_path: Path) -> None:
    case = Recorded(name, number)
    with pytest.raises(PlanError, match="resets its state before the product") as raised:
        convert(case.path, tmp_path / "x.safetensors", [Torch()])
    assert "--torch-rest keep or drop" in str(raised.value)
