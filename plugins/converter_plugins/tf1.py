"""Gives recurrent layers the variables that TensorFlow 1 has for them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from converter import Strategy, hookimpl, option, select
from converter.conventions.convention import Convention
from converter.conventions.converted import Converted, Note, Refused

if TYPE_CHECKING:
    from converter import Checkpoint, Variable
    from converter.conventions.layers import Cell, Layer
    from converter.conventions.views import View

_CELLS = {"lstm": "lstm_cell", "gru": "gru_cell", "rnn": "basic_rnn_cell"}
_KERAS_CELL = re.compile(r"((?:.*/)?)(simple_rnn_cell|gru_cell)((?:_\d+)?)", re.DOTALL)
# Before TensorFlow 1.0 scopes were called after the classes; what they held had other names too.
_OLD_LEAVES: Mapping[str, tuple[str, str]] = {
    "BasicRNNCell": ("Linear/Matrix", "Linear/Bias"),
    "BasicLSTMCell": ("Linear/Matrix", "Linear/Bias"),
    "LSTMCell": ("W_0", "B"),
    "LSTMBlockCell": ("W", "b"),
    "LSTMBlockFusedCell": ("W_0", "B"),
}
# It kept its own names until the cells of blocks got those of the others.
_OLD_BLOCK = {
    "gates/kernel": "w_ru",
    "gates/bias": "b_ru",
    "candidate/kernel": "w_c",
    "candidate/bias": "b_c",
}


@dataclass(frozen=True)
class Tf1(Convention):
    """Turn the recurrent layers of Keras into cells of TensorFlow 1.

    An LSTM becomes the kernel and the bias of an LSTMCell, a GRU those of a GRUCell or, where it
    resets its state after the product, of a CudnnCompatibleGRUCell, a SimpleRNN a BasicRNNCell.
    The forget bias that the code of the cell adds, 1 unless told otherwise, is taken out of the
    bias. All other variables stay as they are. The object graph of TensorFlow 2 is left out: it
    knows no such cells, and TensorFlow 1 restores by name.

    Example:
        convert ckpt keras.safetensors --plugin tf1 --to tf -o cells/
    """

    name: ClassVar[str] = "tf1"
    rest: Literal["refuse", "keep", "drop"] = option(
        "keep", help="what becomes of variables that are of no layer that is known"
    )

    def apply(self, checkpoint: Checkpoint) -> Iterable[Variable]:
        of_objects = set(select("bookkeeping", checkpoint))
        return [v for v in super().apply(checkpoint) if v.name not in of_objects]

    def cells(self, cells: Sequence[Cell]) -> Iterable[Converted | Refused]:
        return [_cell(cell) for cell in cells]

    def plain(self, layer: Layer) -> Converted | Refused:
        views = layer.views.values()
        return Converted(layer.members, {name: view for view in views for name in view.sources})


def _cell(cell: Cell) -> Converted | Refused:
    from converter.conventions.cells import FAMILIES, family_of

    if cell.source == "tf1":
        return Converted(cell.members, cell.own)
    refusal = cell.refusal
    gate = cell.activations.get("gate", "sigmoid")
    if cell.kind == "gru" and cell.reset_after is None:
        refusal = (
            "without a bias nothing tells whether it resets its state after the product; say it "
            "with --tf1-layer 'KERNEL=gru' or 'KERNEL=gru_reset_after'"
        )
    elif cell.kind != "rnn" and gate != "sigmoid":
        refusal = f"its gates compute with {gate}, and those of TensorFlow 1 with sigmoid"
    if refusal is not None:
        return Refused(cell.members, f"{cell.scope}: {refusal}")
    scope = _scope(cell)
    last = scope.rpartition("/")[2]
    notes = [Note(scope, text) for text in _activation(cell)]
    if cell.kind == "gru":
        views = _gru(cell)
        if last == "GRUBlockCell":
            views = {_OLD_BLOCK[leaf]: view for leaf, view in views.items()}
        return Converted(cell.members, _under(scope, views), tuple(notes))
    leaves = ("kernel", "biases" if cell.window else "bias")
    forget = 0.0
    if cell.kind == "lstm":
        family = FAMILIES.get(family_of(last) or "")
        adds = family is None or family.adds_forget_bias
        forget = cell.forget_bias if cell.forget_bias is not None else 1.0 if adds else 0.0
        if forget and cell.forget_bias is None:
            text = (
                f"its bias is made for code that adds a forget bias of {forget:g}, the default of "
                f"TensorFlow 1 (--tf1-forget-bias says another)"
            )
            notes.append(Note(scope, text))
    outputs = _fused(cell, _OLD_LEAVES.get(last, leaves), forget)
    return Converted(cell.members, _under(scope, outputs), tuple(notes))


def _activation(cell: Cell) -> list[str]:
    found = cell.activations.get("new", "tanh")
    return [] if found == "tanh" else [f"it computes with {found}; say activation to the cell"]


def _under(scope: str, views: Mapping[str, View]) -> dict[str, View]:
    return {f"{scope}/{leaf}": view for leaf, view in views.items()}


def _scope(cell: Cell) -> str:
    """Return the scope of the cell: its own where it is called after one, else one in it."""
    from converter.conventions.cells import FAMILIES, family_of

    wanted = _CELLS[cell.kind]
    if cell.reset_after:
        wanted = "cudnn_compatible_gru_cell"
    scope, last = cell.scope, cell.scope.rpartition("/")[2]
    family = FAMILIES.get(family_of(last) or "")
    if family is not None and family.kind == cell.kind:
        is_after = "cudnncompatible" in (family_of(last) or "")
        if cell.kind != "gru" or is_after == bool(cell.reset_after):
            return scope
    if match := _KERAS_CELL.fullmatch(scope):
        return f"{match[1]}{wanted}{match[3]}"
    return f"{scope}/{wanted}".removeprefix("/")


def _fused(cell: Cell, leaves: tuple[str, str], forget: float) -> dict[str, View]:
    """Return one kernel, of rows for the inputs and the state, and a bias."""
    from converter.conventions.cells import TF_GATES
    from converter.conventions.views import Constant, added, joined, shifted

    order = TF_GATES[cell.kind]
    rows = [joined([gates[gate] for gate in order], -1) for gates in (cell.inputs, cell.states)]
    biases: dict[str, View] = {
        gate: added(cell.biases[gate], cell.state_biases.get(gate))
        if cell.biases
        else Constant((cell.units,), 0.0, cell.inputs[gate])
        for gate in order
    }
    if cell.kind == "lstm":
        biases["f"] = shifted(biases["f"], -forget)
    kernel, bias = leaves
    return {kernel: joined(rows, -2), bias: joined([biases[gate] for gate in order], 0)}


def _gru(cell: Cell) -> dict[str, View]:
    """Return a kernel of the two gates, and one or two of the candidate."""
    from converter.conventions.views import Constant, added, joined

    both = ("r", "z")
    rows = [joined([gates[gate] for gate in both], 1) for gates in (cell.inputs, cell.states)]
    zeros: View = Constant((cell.units,), 0.0, cell.inputs["n"])
    biases = [
        added(cell.biases[gate], cell.state_biases.get(gate)) if cell.biases else zeros
        for gate in both
    ]
    new = cell.biases.get("n", zeros)
    views = {"gates/kernel": joined(rows, 0), "gates/bias": joined(biases, 0)}
    if cell.reset_after:
        return views | {
            "candidate/input_projection/kernel": cell.inputs["n"],
            "candidate/input_projection/bias": new,
            "candidate/hidden_projection/kernel": cell.states["n"],
            "candidate/hidden_projection/bias": cell.state_biases.get("n", zeros),
        }
    return views | {
        "candidate/kernel": joined([cell.inputs["n"], cell.states["n"]], 0),
        "candidate/bias": new,
    }


@hookimpl
def converter_strategies() -> Iterable[type[Strategy]]:
    yield Tf1
