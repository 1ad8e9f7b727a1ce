"""Gives layers the variables that Keras has for them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from converter import Strategy, hookimpl
from converter.conventions.convention import Convention
from converter.conventions.converted import Converted, Note, Refused

if TYPE_CHECKING:
    from converter.conventions.layers import Cell, Layer
    from converter.conventions.views import View


@dataclass(frozen=True)
class Keras(Convention):
    """Turn the layers of TensorFlow 1 into those of Keras.

    A recurrent cell becomes `kernel`, `recurrent_kernel` and `bias` in its scope, in the order of
    Keras, the same for Keras 2 and 3, and what its code adds to the forget gate goes into the bias.
    A GRU that resets its state after the product has a bias of two rows. Dense layers and
    convolutions get the names `kernel` and `bias`; their values stay as they are.

    Example:
        convert ckpt model.ckpt --plugin keras -o keras.safetensors
    """

    name: ClassVar[str] = "keras"

    def cells(self, cells: Sequence[Cell]) -> Iterable[Converted | Refused]:
        return [_cell(cell) for cell in cells]

    def plain(self, layer: Layer) -> Converted | Refused:
        start = f"{layer.scope}/"
        if layer.kind == "dense_transposed":
            from converter.conventions.views import transposed

            views = dict(layer.views) | {"kernel": transposed(layer.views["kernel"])}
        else:
            views = dict(layer.views)
        return Converted(layer.members, {start + leaf: view for leaf, view in views.items()})


def _cell(cell: Cell) -> Converted | Refused:
    if cell.source == "keras":
        return Converted(cell.members, cell.own, tuple(_activations(cell)))
    refusal = cell.refusal
    if cell.peepholes:
        refusal = "its gates look at the state of the cell, and a Keras LSTM has no peepholes"
    elif cell.projection is not None:
        refusal = "its output is projected, and a Keras LSTM has no projection"
    if refusal is not None:
        return Refused(cell.members, f"{cell.scope}: {refusal}")
    notes = [*(Note(cell.scope, text) for text in cell.notes), *_activations(cell)]
    if cell.kind == "gru":
        notes.append(Note(cell.scope, f"it is a GRU with reset_after={cell.reset_after}"))
    start = f"{cell.scope}/" if cell.scope else ""
    outputs = {start + leaf: view for leaf, view in _views(cell).items()}
    return Converted(cell.members, outputs, tuple(notes))


def _activations(cell: Cell) -> Iterator[Note]:
    """Say what a layer of Keras has to be told, where it is not what it is by default."""
    for what, usual in (("gate", "sigmoid"), ("new", "tanh")):
        found = cell.activations.get(what, usual)
        if found == "hard_sigmoid":
            yield Note(
                cell.scope,
                "its gates compute clip(0.2 * x + 0.5, 0, 1), which Keras 2 calls hard_sigmoid and "
                "Keras 3 does not: give that function as recurrent_activation",
            )
        elif found != usual:
            option = "recurrent_activation" if what == "gate" else "activation"
            yield Note(cell.scope, f"it computes with {found}; say {option}={found!r} to Keras")


def _views(cell: Cell) -> dict[str, View]:
    from converter.conventions.cells import KERAS_GATES
    from converter.conventions.views import Constant, added, joined, reshaped, shifted

    order = KERAS_GATES[cell.kind]
    views = {
        "kernel": joined([cell.inputs[gate] for gate in order], -1),
        "recurrent_kernel": joined([cell.states[gate] for gate in order], -1),
    }
    if not cell.biases:
        return views
    biases = dict(cell.biases)
    if cell.kind == "lstm":
        biases = {gate: added(bias, cell.state_biases.get(gate)) for gate, bias in biases.items()}
        biases["f"] = shifted(biases["f"], cell.forget_bias or 0.0)
    bias = joined([biases[gate] for gate in order], 0)
    if cell.reset_after:
        second = [
            cell.state_biases.get(gate) or Constant(biases[gate].shape, 0.0, biases[gate])
            for gate in order
        ]
        rows = [reshaped(row, (1, *row.shape)) for row in (bias, joined(second, 0))]
        bias = joined(rows, 0)
    views["bias"] = bias
    return views


@hookimpl
def converter_strategies() -> Iterable[type[Strategy]]:
    yield Keras
