"""Converted layers compute in Keras and in PyTorch what the recorded models computed."""

from __future__ import annotations

import json
import re
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference_cells
from converter_plugins.drop import Drop
from converter_plugins.keras import Keras
from converter_plugins.torch import Torch
from frameworks import assert_same, masked, reversed_sequences, run_keras, run_torch

from converter import Checkpoint, PlanError, Result, Strategy, convert, open_checkpoint
from converter.variable import Array, Variable

pytestmark = pytest.mark.slow

DATA = Path(__file__).parent / "data"


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


# There is no reader for Keras files.
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


@pytest.mark.parametrize("framework", ["keras", "torch"])
def test_an_lstm_that_was_written_gate_by_gate(framework: str, tmp_path: Path) -> None:
    case = Recorded("tf10_v2_gatewise_lstm", 0)
    strategy = Keras() if framework == "keras" else Torch()
    weights = case.converted(convert(case.path, tmp_path / "x.safetensors", [strategy]))
    x, h, c = (case.array(what) for what in ("x", "h0", "c0"))
    assert x is not None
    if framework == "keras":
        outputs, *states = run_keras(weights, "lstm", x, [h, c])
    else:
        outputs, *states = run_torch(weights, "lstm", x, [h, c])
    assert_same(outputs, case.array("out"))
    assert_same(states[0], case.array("h"))
    assert_same(states[1], case.array("c"))


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


# --- cells of which there is no recorded one, against numpy ---

X = np.random.default_rng(1).standard_normal((3, 7, 5)).astype("f4")
UNITS = 4


def drawn(shapes: dict[str, tuple[int, ...]]) -> dict[str, Array]:
    generator = np.random.default_rng(2)
    return {name: generator.standard_normal(s).astype("f4") for name, s in shapes.items()}


def made(arrays: dict[str, Array], strategy: Strategy) -> dict[str, Array]:
    """Return what a strategy makes of variables, by the last part of the names."""
    named = [Variable.from_array(name, values) for name, values in arrays.items()]
    source = Checkpoint(replace(v, sources=(v.name,)) for v in named)
    return {re.split(r"[/.]", v.name)[-1]: v.read() for v in strategy.apply(source)}


def fused(scope: str, count: int, outputs: int = UNITS) -> dict[str, Array]:
    columns = count * UNITS
    return drawn({f"{scope}/kernel": (5 + outputs, columns), f"{scope}/bias": (columns,)})


def test_a_basic_rnn_runs_in_both() -> None:
    arrays = fused("basic_rnn_cell", 1)
    kernel, bias = arrays.values()
    wanted = reference_cells.rnn(X, kernel, bias)
    assert_same(run_keras(made(arrays, Keras()), "rnn", X)[0], wanted)
    assert_same(run_torch(made(arrays, Torch()), "rnn", X)[0], wanted)


@pytest.mark.parametrize("forget", [0.0, 1.0, 0.3])
def test_an_lstm_with_any_forget_bias_runs_in_both(forget: float) -> None:
    arrays = fused("lstm_cell", 4)
    kernel, bias = arrays.values()
    wanted = reference_cells.lstm(X, kernel, bias, forget)
    given = {"lstm_cell/kernel": forget}
    assert_same(run_keras(made(arrays, Keras(forget_bias=given)), "lstm", X)[0], wanted)
    assert_same(run_torch(made(arrays, Torch(forget_bias=given)), "lstm", X)[0], wanted)


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
def test_a_projected_lstm_runs_in_pytorch() -> None:
    arrays = fused("lstm_cell", 4, outputs=3) | drawn({"lstm_cell/projection/kernel": (UNITS, 3)})
    kernel, bias, projection = arrays.values()
    wanted = reference_cells.lstm(X, kernel, bias, 1.0, projection)
    assert_same(run_torch(made(arrays, Torch()), "lstm", X, proj_size=3)[0], wanted)


def test_a_gru_that_resets_after_the_product_runs_in_both() -> None:
    scope = "cudnn_compatible_gru_cell"
    parts = {
        f"{scope}/candidate/{part}_projection/{leaf}": shape
        for part, size in (("input", 5), ("hidden", UNITS))
        for leaf, shape in (("kernel", (size, UNITS)), ("bias", (UNITS,)))
    }
    gates = {f"{scope}/gates/kernel": (5 + UNITS, 2 * UNITS), f"{scope}/gates/bias": (2 * UNITS,)}
    arrays = drawn({**gates, **parts})
    inner = {name.removeprefix(f"{scope}/candidate/"): arrays[name] for name in parts}
    kernel, bias = (arrays[name] for name in gates)
    wanted = reference_cells.gru_after(X, kernel, bias, inner)
    keras = made(arrays, Keras())
    assert_same(run_keras(keras, "gru", X, reset_after=True)[0], wanted)
    assert_same(run_torch(made(arrays, Torch()), "gru", X)[0], wanted)
    # What Keras holds goes to PyTorch as well.
    assert_same(
        run_torch(made({f"gru/{n}": v for n, v in keras.items()}, Torch()), "gru", X)[0], wanted
    )


def test_layers_and_directions_run_as_one_module() -> None:
    torch = pytest.importorskip("torch")
    start = "stack_bidirectional_rnn"
    arrays: dict[str, Array] = {}
    wanted = X
    for number in range(2):
        outputs = []
        for way in ("fw", "bw"):
            scope = f"{start}/cell_{number}/bidirectional_rnn/{way}/lstm_cell"
            size = wanted.shape[-1]
            shapes = {f"{scope}/kernel": (size + UNITS, 4 * UNITS), f"{scope}/bias": (4 * UNITS,)}
            own = {name: values * (number + 1) / 2 for name, values in drawn(shapes).items()}
            own = {name: values if way == "fw" else -values for name, values in own.items()}
            arrays |= own
            turn = slice(None, None, 1 if way == "fw" else -1)
            kernel, bias = own.values()
            outputs.append(reference_cells.lstm(wanted[:, turn], kernel, bias, 1.0)[:, turn])
        wanted = np.concatenate(outputs, -1)
    weights = made(arrays, Torch())
    module = torch.nn.LSTM(5, UNITS, num_layers=2, bidirectional=True, batch_first=True)
    module.load_state_dict({n: torch.from_numpy(v.copy()) for n, v in weights.items()})
    with torch.no_grad():
        assert_same(module(torch.from_numpy(X))[0].numpy(), wanted)


def test_a_layer_of_keras_runs_in_pytorch(tmp_path: Path) -> None:
    case = Recorded("tf115_v2_keras_rnn", 1)
    strategies = [Torch(rest="keep")]
    with pytest.raises(PlanError, match="first: it computes with hard_sigmoid"):
        convert(case.path, tmp_path / "x.safetensors", [Torch()])
    result = convert(case.path, tmp_path / "x.safetensors", strategies)
    x = case.array("x")
    assert x is not None
    outputs, state = run_torch(case.converted(result), "gru", x)
    assert_same(outputs, case.array("out"))
    assert_same(state, case.array("h"))


def test_an_old_layer_of_keras_runs_with_the_function_that_the_plan_tells(tmp_path: Path) -> None:
    case = Recorded("tf115_v2_keras_rnn", 0)
    result = convert(case.path, tmp_path / "x.safetensors", [Keras()])
    (note,) = result.plan.notes
    assert "clip(0.2 * x + 0.5, 0, 1)" in note
    x = case.array("x")
    assert x is not None
    keras = pytest.importorskip("keras")

    def gate(value: Any) -> Any:
        return keras.ops.clip(0.2 * value + 0.5, 0, 1)

    weights = case.converted(result)
    outputs, h, c = run_keras(weights, "lstm", x, recurrent_activation=gate)
    assert_same(outputs, case.array("out"))
    assert_same(h, case.array("h"))
    assert_same(c, case.array("c"))


def test_convolutions_and_normalisations_run_in_pytorch(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    nn = torch.nn
    directory = DATA / "tf115_v2_convbn_ema"
    steps = [Drop(drop=("slots", "averages", "step")), Torch()]
    result = convert(directory, tmp_path / "x.safetensors", steps)
    assert result.plan.notes == ("torch: bn1, bn2: give it eps=0.001, which its graph has",)
    layers = {
        "conv1": nn.Conv2d(2, 6, 3, padding="same", bias=False),
        "bn1": nn.BatchNorm2d(6, eps=0.001),
        "relu": nn.ReLU(),
        "pool": nn.MaxPool2d(2),
        "conv2": nn.Conv2d(6, 8, 3, stride=2),
        "bn2": nn.BatchNorm2d(8, eps=0.001),
        "relu2": nn.ReLU(),
        "flat": nn.Flatten(),
        "logits": nn.Linear(8, 4),
    }
    model = nn.Sequential(OrderedDict(layers)).eval()
    output = open_checkpoint(result.files[0])
    model.load_state_dict({n: torch.from_numpy(v.read().copy()) for n, v in output.items()})
    io = np.load(directory / "io.npz")
    with torch.no_grad():
        logits = model(torch.from_numpy(io["in_images"].transpose(0, 3, 1, 2).copy()))
    assert_same(logits.numpy(), io["out_logits"])


def test_a_language_model_runs_in_pytorch_from_its_safetensors(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    nn = torch.nn
    directory = DATA / "tf14_v2_charlm_lstm_ema"
    steps = [Drop(drop=("optimizer", "averages", "step")), Torch()]
    output = open_checkpoint(convert(directory, tmp_path / "x.safetensors", steps).files[0])
    embedding, softmax = nn.Embedding(14, 8), nn.Linear(30, 14)
    lstm = nn.LSTM(8, 30, batch_first=True)
    rnn = nn.ModuleDict({"lstm_cell": lstm})
    model = nn.ModuleDict({"embedding": embedding, "rnn": rnn, "softmax": softmax})
    weights = {n: torch.from_numpy(v.read().copy()) for n, v in output.items()}
    nn.ModuleDict({"charlm": model}).load_state_dict(weights)
    io = np.load(directory / "io.npz")
    with torch.no_grad():
        logits = softmax(lstm(embedding(torch.from_numpy(io["in_x"]).long()))[0])
    assert_same(logits.numpy(), io["out_logits"])
