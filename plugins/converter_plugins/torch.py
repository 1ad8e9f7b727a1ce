"""Gives layers the parameters that PyTorch's modules have for them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from converter import Strategy, hookimpl
from converter.conventions.convention import Convention
from converter.conventions.converted import Converted, Note, Refused

if TYPE_CHECKING:
    from converter.conventions.layers import Cell, Layer
    from converter.conventions.stacks import Place
    from converter.conventions.views import View

# The blocks of rows of nn.LSTM, nn.GRU and nn.RNN, in their order.
_ORDER = {"lstm": ("i", "f", "g", "o"), "gru": ("r", "z", "n"), "rnn": ("h",)}
_MODULES = {"lstm": "nn.LSTM", "gru": "nn.GRU", "rnn": "nn.RNN"}


@dataclass(frozen=True)
class Torch(Convention):
    """Turn the layers of TensorFlow and Keras into those of PyTorch.

    The names are those of a state_dict: the scope with dots, and `weight`, `bias`, `running_mean`
    and so on. Recurrent cells become nn.LSTM, nn.GRU or nn.RNN: the layers of a stack and the two
    directions one module where they can be one. What the code of a cell adds to the forget gate
    goes into its bias.

    Example:
        convert ckpt model.ckpt --plugin torch --drop optimizer -o model.safetensors
    """

    name: ClassVar[str] = "torch"

    def cells(self, cells: Sequence[Cell]) -> Iterable[Converted | Refused]:
        from converter.conventions.stacks import Place, stacks

        found: list[Converted | Refused] = []
        for root, members in stacks(cells).items():
            apart = _apart(members)
            if apart is None:
                found.append(_noted(_module(root, members), _direction(root, members[0][1])))
                continue
            for cell, place in members:
                reason = _refusal(cell)
                if reason is not None:
                    found.append(Refused(cell.members, f"{cell.scope}: {reason}"))
                    continue
                place = Place(cell.scope, backward=place.backward)
                one = _module(cell.scope, [(cell, place)])
                if len(members) > 1:
                    note = Note(cell.scope, f"it is a module of its own, since {apart}")
                    one = _noted(one, note)
                found.append(_noted(one, _direction(cell.scope, place)))
        return found

    def plain(self, layer: Layer) -> Converted | Refused:
        return Converted(
            layer.members,
            {_named(layer.scope, leaf): view for leaf, view in _parameters(layer).items()},
            tuple(_epsilon(layer)),
        )

    def spelt(self, name: str) -> str:
        return name.replace("/", ".")


def _noted(converted: Converted, note: Note | None) -> Converted:
    return converted._replace(notes=(*converted.notes, note)) if note else converted


def _direction(scope: str, place: Place) -> Note | None:
    """Say that a module has no backward direction, but goes backward."""
    is_turned = place.backward and not place.directions
    return Note(scope, "give it its sequences from their ends") if is_turned else None


def _named(scope: str, leaf: str) -> str:
    return f"{scope}/{leaf}".removeprefix("/")


def _refusal(cell: Cell) -> str | None:
    """Return why no module of PyTorch is such a cell."""
    if cell.refusal is not None:
        return cell.refusal
    if cell.peepholes:
        return "its gates look at the state of the cell, and nn.LSTM has no peepholes"
    if cell.window:
        return "PyTorch has no convolutional LSTM"
    if cell.projection is not None and cell.is_stepped:
        return (
            "an attention goes between its steps, and its output is projected: nn.LSTMCell has no "
            "projection"
        )
    if cell.projection is not None and cell.output_size >= cell.units:
        return (
            f"its {cell.units} units are projected to {cell.output_size}, and proj_size of nn.LSTM "
            f"has to be smaller"
        )
    if cell.kind == "gru" and cell.reset_after is None:
        return (
            "without a bias nothing tells whether it resets its state after the product, as nn.GRU "
            "does; say it with --torch-layer 'KERNEL=gru_reset_after'"
        )
    if cell.kind == "gru" and not cell.reset_after:
        return (
            "it resets its state before the product with the kernel, and nn.GRU resets after it: "
            "no weights make one of the other"
        )
    new = ("tanh", "relu") if cell.kind == "rnn" else ("tanh",)
    usual: dict[str, tuple[str, ...]] = {"gate": ("sigmoid",), "new": new}
    for what, allowed in usual.items():
        found = cell.activations.get(what, allowed[0])
        if found not in allowed:
            return f"it computes with {found}, and {_MODULES[cell.kind]} with {allowed[0]}"
    return None


def _apart(members: Sequence[tuple[Cell, Place]]) -> str | None:
    """Return why cells cannot be one module, as half a sentence; None where they can."""
    cells = [cell for cell, _ in members]
    if any(cell.is_stepped for cell in cells):
        return "an attention goes between its steps"
    if any(_refusal(cell) is not None for cell in cells):
        return "PyTorch has no module for one of them"
    places = [(place.number, place.backward) for _, place in members]
    both = members[0][1].directions
    layers = 1 + max(number for number, _ in places)
    ways = (False, True) if both else (members[0][1].backward,)
    wanted = [(number, backward) for number in range(layers) for backward in ways]
    if sorted(places) != wanted:
        if len(members) == 1:
            return "there is no other direction" if both else "the layers before it are missing"
        return "the layers of the stack are not all there, once each"
    if len({(cell.kind, cell.activations.get("new", "tanh")) for cell in cells}) > 1:
        return "they are of several kinds"
    if len({(cell.units, cell.output_size) for cell in cells}) > 1:
        return "the layers have different numbers of units"
    if len({bool(cell.biases) for cell in cells}) > 1:
        return "not all of them have a bias"
    if len({cell.projection is None for cell in cells}) > 1:
        return "not all of them are projected"
    wrappers = [wrapper for c, place in members if (wrapper := place.wrapper or c.wrapper)]
    if len(cells) > 1 and wrappers:
        return f"{wrappers[0]} stands between them"
    if layers > 1 and any(cell.is_skipped for cell in cells):
        return "what one takes is added to what it gives"
    for cell, place in members:
        before = cells[0].output_size * (2 if both else 1) if place.number else None
        if cell.input_size != (cells[0].input_size if before is None else before):
            return "a layer takes more than what the one before gives"
    return None


def _module(root: str, members: Sequence[tuple[Cell, Place]]) -> Converted:
    outputs: dict[str, View] = {}
    notes: list[Note] = []
    for cell, place in members:
        suffix = f"_l{place.number}" + ("_reverse" if place.backward and place.directions else "")
        suffix = "" if cell.is_stepped else suffix
        for leaf, view in _weights(cell).items():
            outputs[_named(root, leaf + suffix)] = view
        notes += [Note(cell.scope, text) for text in cell.notes]
    cell = members[0][0]
    said = []
    if (layers := 1 + max(place.number for _, place in members)) > 1:
        said.append(f"num_layers={layers}")
    if members[-1][1].backward and members[-1][1].directions:
        said.append("bidirectional=True")
    if cell.projection is not None:
        said.append(f"proj_size={cell.output_size}")
    if not cell.biases:
        said.append("bias=False")
    if cell.kind == "rnn" and cell.activations.get("new") == "relu":
        said.append("nonlinearity='relu'")
    call = ", ".join([str(cell.input_size), str(cell.units), *said])
    module = f"{_MODULES[cell.kind]}Cell" if cell.is_stepped else _MODULES[cell.kind]
    notes.append(Note(root.replace("/", "."), f"{module}({call})"))
    return Converted(
        tuple(name for one, _ in members for name in one.members), outputs, tuple(notes)
    )


def _weights(cell: Cell) -> dict[str, View]:
    """Return the parameters of one layer and direction, without their suffix."""
    from converter.conventions.views import Constant, joined, shifted, transposed

    order = _ORDER[cell.kind]
    views = {
        "weight_ih": transposed(joined([cell.inputs[gate] for gate in order], 1)),
        "weight_hh": transposed(joined([cell.states[gate] for gate in order], 1)),
    }
    if cell.biases:
        biases = dict(cell.biases)
        if cell.kind == "lstm":
            biases["f"] = shifted(biases["f"], cell.forget_bias or 0.0)
        views["bias_ih"] = joined([biases[gate] for gate in order], 0)
        states = [cell.state_biases.get(gate) for gate in order]
        if any(state is not None for state in states):
            views["bias_hh"] = joined(
                [
                    state or Constant(biases[gate].shape, 0.0, biases[gate])
                    for gate, state in zip(order, states, strict=True)
                ],
                0,
            )
        else:
            views["bias_hh"] = Constant(views["bias_ih"].shape, 0.0, views["bias_ih"])
    elif cell.kind == "lstm" and cell.forget_bias:
        zeros = {g: Constant((cell.units,), 0.0, cell.inputs[g]) for g in order}
        ones = Constant((cell.units,), cell.forget_bias, cell.inputs["f"])
        views["bias_ih"] = joined([ones if g == "f" else zeros[g] for g in order], 0)
        views["bias_hh"] = Constant((4 * cell.units,), 0.0, cell.inputs["i"])
    if cell.projection is not None:
        views["weight_hr"] = transposed(cell.projection)
    return views


def _epsilon(layer: Layer) -> Iterator[Note]:
    """Say what a normalisation has to be told: PyTorch has another default."""
    module = layer.scope.replace("/", ".")
    if layer.epsilon is not None:
        yield Note(module, f"give it eps={layer.epsilon:.7g}, which its graph has")
    elif layer.kind == "batch_norm":
        yield Note(module, "give it the eps of its code: by default 0.001, and 1e-05 in PyTorch")
    elif layer.kind == "layer_norm":
        text = "give it the eps of its code: by default 1e-12 in contrib, 0.001 in Keras, and 1e-05"
        yield Note(module, f"{text} in PyTorch")


def _parameters(layer: Layer) -> Mapping[str, View]:
    """Return the parameters of a module, by their names in it."""
    from converter.conventions.views import Constant, Count, reshaped, transposed

    if layer.kind == "embedding":
        return {"weight": layer.views["embeddings"]}
    if layer.kind in ("batch_norm", "layer_norm"):
        mean = layer.views.get("moving_mean") or layer.views["beta"]
        views = {
            "weight": layer.views.get("gamma") or Constant(mean.shape, 1.0, mean),
            "bias": layer.views.get("beta") or Constant(mean.shape, 0.0, mean),
        }
        if layer.kind == "batch_norm":
            views["running_mean"] = layer.views["moving_mean"]
            views["running_var"] = layer.views["moving_variance"]
            views["num_batches_tracked"] = Count(mean)
        return views
    kernel = layer.views["kernel"]
    count = len(kernel.shape)
    if layer.kind == "dense":
        weight = transposed(kernel)
    elif layer.kind == "dense_transposed":
        weight = kernel
    elif layer.kind == "depthwise":
        turned = transposed(kernel, (2, 3, 0, 1))
        inputs, each, *window = turned.shape
        weight = reshaped(turned, (inputs * each, 1, *window))
    else:
        weight = transposed(kernel, (count - 1, count - 2, *range(count - 2)))
    bias = {"bias": layer.views["bias"]} if "bias" in layer.views else {}
    return {"weight": weight, **bias}


@hookimpl
def converter_strategies() -> Iterable[type[Strategy]]:
    yield Torch
