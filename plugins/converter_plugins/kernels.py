"""Recurrent kernels that names tell: which columns are which gate, which rows are the state.

References:
    The cells of TensorFlow 0.12 to 1.15 (rnn_cell_impl.py, contrib/rnn) and the layers of Keras.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass

from converter import Region, Variable
from converter.names.cells import (
    CELLS,
    GRU_GATES,
    KERAS_GATES,
    LSTM_GATES,
    NEWEST,
    NUMBER,
    Cell,
    Names,
)

Shape = Sequence[int]


@dataclass(frozen=True, slots=True)
class Kernel:
    """A recurrent kernel: rows are inputs, then state; columns are gates of equal size.

    Attributes:
        gates: what the blocks of columns are called, in order.
        state: how many of the rows, which are the last but one axis, are for the state; None where
            the rows lie in several variables.
    """

    gates: tuple[str, ...]
    state: int | None


# What the table of cells has no variables for, or no cells.
_MORE: Sequence[tuple[str, tuple[str, ...]]] = (
    (r"(layer_norm_lstm_cell|weight_norm_lstm_cell)/(kernel|weights)", LSTM_GATES),
    (r"LayerNormBasicLSTMCell/weights", LSTM_GATES),
    (r"(coupled_input_forget_gate_lstm_cell|CoupledInputForgetGateLSTMCell)/W_0", ("j", "f", "o")),
    (r"GRUBlockCell/w_r", ("r", "u")),
    (r"phased_lstm_cell/mask_gates/(kernel|weights)", ("i", "f")),
    (r"phased_lstm_cell/(new_input|output_gate)/(kernel|weights)", ("c",)),
)
# The blocks of columns that have no names in the table of cells.
_UNNAMED = {1: ("h",), 2: ("g", "c")}
_KERAS_GATES = {
    count: gates if isinstance(gates, tuple) else _UNNAMED[count]
    for count, gates in KERAS_GATES.items()
}


def _gates_in(cell: Cell, leaf: str | None) -> tuple[str, ...]:
    """Return the gates in a variable of a cell, by what the last release called it."""
    if leaf in ("candidate/kernel", "w_c"):
        return ("c",)
    if leaf not in ("kernel", "gates/kernel", "w_ru"):
        return ()
    return cell.columns if isinstance(cell.columns, tuple) else _UNNAMED.get(cell.columns, ())


def _spelt(cell: Cell, row: Names) -> Iterator[str]:
    """Yield what each release called a variable of a cell, with the scope of the cell."""
    for scope, leaf in zip(cell.scopes, row, strict=True):
        if scope and leaf:
            yield f"{scope}/{leaf.replace(NUMBER, '0')}"


def _numbered(pattern: str) -> str:
    """Return a pattern of names in any scope, of layers that may have a number.

    Layers of one kind in one scope are numbered, in whichever part of the name has it.
    """
    return r"(?:.*/)?(?:" + pattern.replace("/", r"(?:_\d+)?/") + r")(?:_\d+)?"


_FUSED: Mapping[str, tuple[str, ...]] = {
    **{
        name: gates
        for cell in CELLS
        for row in cell.leaves
        if (gates := _gates_in(cell, row[NEWEST]))
        for name in _spelt(cell, row)
    },
    **dict(_MORE),
}
_TABLE = tuple((re.compile(_numbered(pattern)), gates) for pattern, gates in _FUSED.items())
_INPUTS_ONLY = re.compile(r"(.*/)?cudnn_compatible_gru_cell(_\d+)?/candidate/input_projection/\w+")
_STATE_ONLY = re.compile(r"(.*/)?cudnn_compatible_gru_cell(_\d+)?/candidate/hidden_projection/\w+")
_KERAS = re.compile(r"(?P<scope>(?:.*/)?)(?P<leaf>kernel|recurrent_kernel|bias)(?P<number>(_\d+)?)")

# A matrix for the inputs and one for the state, under one scope.
_PAIRS = (("wx", "wt"), ("wx", "wh"), ("Wx", "Wh"), ("w_x", "w_h"), ("W_x", "W_h"))


def kernel_of(name: str, variables: Mapping[str, Variable]) -> Kernel | None:
    """Return how a variable is laid out as a recurrent kernel; None where its name tells none."""
    shape = variables[name].shape
    if len(shape) < 2:
        return None
    if (keras := _keras(name, variables)) is not None:
        leaf, units, gates = keras
        return None if leaf == "bias" else Kernel(gates, units if leaf != "kernel" else 0)
    if _INPUTS_ONLY.fullmatch(name) or _STATE_ONLY.fullmatch(name):
        return Kernel(("c",), shape[-2] if _STATE_ONLY.fullmatch(name) else 0)
    if (pair := _paired(name, variables)) is not None:
        return pair
    for pattern, gates in _TABLE:
        if pattern.fullmatch(name) and shape[-1] % len(gates) == 0:
            return Kernel(gates, _state(name, shape[-1] // len(gates), variables))
    return None


def _state(name: str, units: int, variables: Mapping[str, Variable]) -> int | None:
    """Return how many rows of a fused kernel are for the state: the units, or their projection."""
    scope, _, leaf = name.rpartition("/")
    if leaf == "W_0" and f"{scope}/W_1" in variables:
        return None
    for projection in ("projection/kernel", "projection/weights", "W_P_0"):
        found = variables.get(f"{scope}/{projection}")
        if found is not None and len(found.shape) == 2:
            units = found.shape[1]
    return units if units < variables[name].shape[-2] else None


def _keras(name: str, variables: Mapping[str, Variable]) -> tuple[str, int, tuple[str, ...]] | None:
    """Return leaf, units and gates of a variable of a recurrent Keras layer."""
    match = _KERAS.fullmatch(name)
    if match is None:
        return None
    recurrent = variables.get(f"{match['scope']}recurrent_kernel{match['number']}")
    if recurrent is None or len(recurrent.shape) < 2 or not recurrent.shape[-2]:
        return None
    units, columns = recurrent.shape[-2:]
    if columns % units or (match["leaf"] == "kernel" and variables[name].shape[-1] != columns):
        return None
    count = columns // units
    gates = _KERAS_GATES.get(count, tuple(str(k) for k in range(count)))
    return match["leaf"], units, gates


def _paired(name: str, variables: Mapping[str, Variable]) -> Kernel | None:
    scope, slash, leaf = name.rpartition("/")
    for inputs, state in _PAIRS:
        other = variables.get(scope + slash + (state if leaf == inputs else inputs))
        if leaf in (inputs, state) and other is not None:
            shape = variables[name].shape
            if len(other.shape) == 2 and other.shape[1] == shape[-1]:
                return Kernel(("",), shape[-2] if leaf == state else 0)
    return None


def _biases(is_wanted: Callable[[Cell], bool], leaves: Container[str | None]) -> str:
    """Return a pattern of the biases of some cells, by what the last release called them."""
    names = (
        name
        for cell in CELLS
        if is_wanted(cell)
        for row in cell.leaves
        if row[NEWEST] in leaves
        for name in _spelt(cell, row)
    )
    return "|".join(dict.fromkeys(names))


# GRUs start with their gates open; GRUBlockCell called the bias b_r before 0.12.
_ONE_BIASES = re.compile(
    _numbered(
        _biases(lambda cell: cell.columns == GRU_GATES, ("gates/bias", "b_ru"))
        + "|GRUBlockCell/b_r"
    )
)
_LSTM_BIAS = re.compile(
    _numbered(
        _biases(lambda cell: cell.adds_forget_bias, ("bias", "biases"))
        + "|(?:layer_norm_lstm_cell|weight_norm_lstm_cell)/bias"
        + "|(?:coupled_input_forget_gate_lstm_cell|CoupledInputForgetGateLSTMCell)/B"
    )
)
_BIAS = re.compile(r"(?i)(.*_)?(bias|biases|beta|b)(_?\d+)?|b[ijfocruzh]|b_\w+")
_GAIN = re.compile(r"(.*_)?gamma(_\d+)?|scale(_\d+)?")


def adds_forget_bias(name: str, variables: Mapping[str, Variable]) -> bool:
    """Whether a variable is the bias of a TensorFlow LSTM, whose code adds the forget bias."""
    return _LSTM_BIAS.fullmatch(name) is not None and _keras(name, variables) is None


def start_of(
    name: str, variables: Mapping[str, Variable], *, is_statistic: bool
) -> list[tuple[str, Region, float]] | None:
    """Return what TensorFlow's layers start a bias, a gain or a statistic with.

    Returns:
        Label, region and number of each block; None where the variable is none of these.
    """
    shape = variables[name].shape
    everything = tuple(slice(0, size) for size in shape)
    leaf = name.rpartition("/")[2]
    if is_statistic:
        is_one = re.search(r"var|stddev", leaf) and "mean" not in leaf
        return [("", everything, 1.0 if is_one else 0.0)]
    keras = _keras(name, variables)
    if keras is not None and keras[0] == "bias":
        return _keras_bias(shape, keras[1], len(keras[2]))
    if sum(size != 1 for size in shape) > 1:
        return None
    if _ONE_BIASES.fullmatch(name) or _GAIN.fullmatch(leaf):
        return [("", everything, 1.0)]
    return [("", everything, 0.0)] if _BIAS.fullmatch(leaf) else None


def _keras_bias(shape: Shape, units: int, gates: int) -> list[tuple[str, Region, float]]:
    """Return the start of a Keras bias: zeros, but ones for an LSTM's forget gate."""
    zeros = tuple(slice(0, size) for size in shape)
    # The cuDNN layers have a bias for the inputs and one for the state, which holds the ones.
    at = {4 * units: units, 8 * units: 5 * units}.get(shape[0]) if len(shape) == 1 else None
    if gates != 4 or at is None:
        return [("", zeros, 0.0)]
    return [
        ("before", (slice(0, at),), 0.0),
        ("f", (slice(at, at + units),), 1.0),
        ("after", (slice(at + units, shape[0]),), 0.0),
    ]
