"""Layers in the words of no framework: which view is which gate's, which axis is which."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from converter.conventions.views import View

Recurrence = Literal["lstm", "gru", "rnn"]
Kind = Literal[
    "dense",
    "dense_transposed",
    "conv",
    "conv_transpose",
    "depthwise",
    "embedding",
    "batch_norm",
    "layer_norm",
]

GATES: Mapping[Recurrence, tuple[str, ...]] = {
    "lstm": ("i", "f", "g", "o"),
    "gru": ("r", "z", "n"),
    "rnn": ("h",),
}
"""The gates of a cell: input, forget, new and output; reset, update and new."""

Gates = Mapping[str, View]


@dataclass(frozen=True)
class Cell:
    """A recurrent cell, gate by gate.

    Its matrices have a row for each input and a column for each unit, and may have the axes of a
    window before these.

    Attributes:
        scope: where it is.
        kind: what it computes.
        own: its variables as they are, by name.
        inputs: the matrix that each gate's inputs are multiplied with.
        states: the same of the state, or of what is projected of it.
        biases: empty where there are none.
        state_biases: a second bias, of what the state is multiplied to; empty where it has none.
        projection: what the output is projected with, or None: a row for each unit.
        peepholes: whether gates look at the state of the cell.
        reset_after: of a GRU, whether the state is reset after it was multiplied; None where
            nothing tells.
        forget_bias: what its code adds to the forget gate when it runs, besides the bias; None
            where its code adds none, or nobody said it.
        source: which convention it is of: `cudnn` is that of CuDNNLSTM and CuDNNGRU of Keras.
        activations: what the gates and the new values go through, by the names of ops, as far as
            a graph says it: `sigmoid`, `tanh`.
        refusal: why no other convention can have it, as half a sentence; or None.
        notes: what is to be known of it.
        is_gatewise: whether each gate has variables of its own.
        is_stepped: whether an attention goes between its steps: what it takes depends on what it
            gave before.
        wrapper: the scope of a wrapper with variables that stands beside the cell, as before 1.2,
            and projects or looks up what it takes or gives; empty for none.
        is_skipped: whether what it takes is also added to what it gives, or gated with it, as
            ResidualWrapper and HighwayWrapper do.
    """

    scope: str
    kind: Recurrence
    own: Gates
    inputs: Gates = field(default_factory=dict)
    states: Gates = field(default_factory=dict)
    biases: Gates = field(default_factory=dict)
    state_biases: Gates = field(default_factory=dict)
    projection: View | None = None
    peepholes: bool = False
    reset_after: bool | None = None
    forget_bias: float | None = None
    source: Literal["tf1", "keras", "cudnn"] = "tf1"
    activations: Mapping[str, str] = field(default_factory=dict)
    refusal: str | None = None
    notes: tuple[str, ...] = ()
    is_gatewise: bool = False
    is_stepped: bool = False
    wrapper: str = ""
    is_skipped: bool = False

    @property
    def members(self) -> tuple[str, ...]:
        """The variables that are its own."""
        return tuple(self.own)

    @property
    def units(self) -> int:
        """How many units it has."""
        return self.inputs[GATES[self.kind][0]].shape[-1]

    @property
    def input_size(self) -> int:
        """How many inputs it takes."""
        return self.inputs[GATES[self.kind][0]].shape[-2]

    @property
    def output_size(self) -> int:
        """How many outputs it gives, which are its state."""
        return self.units if self.projection is None else self.projection.shape[1]

    @property
    def window(self) -> int:
        """How many axes of a window its matrices have: 0 where it is no convolution."""
        return len(self.inputs[GATES[self.kind][0]].shape) - 2


@dataclass(frozen=True)
class Layer:
    """A layer without a state.

    Attributes:
        scope: what it is called: the scope of its variables, or the variable itself.
        kind: what it computes.
        members: the variables that are its own.
        views: what it has, by the names that Keras has for it: `kernel`, `bias`, `gamma`,
            `beta`, `moving_mean`, `moving_variance`, `embeddings`. The axes of a kernel are those
            of TensorFlow, but of `dense_transposed`, whose are turned around.
        epsilon: of a normalisation, what the graph adds to the variance; None where nobody said it.
    """

    scope: str
    kind: Kind
    members: tuple[str, ...]
    views: Mapping[str, View]
    epsilon: float | None = None


@dataclass(frozen=True)
class Unmapped:
    """Variables that are known, and that no layer of another framework can hold.

    Attributes:
        members: the variables.
        reason: why, as half a sentence.
        copy_of: the scope of the layer that holds the same values, where there is one: then
            nothing is lost by leaving them out.
    """

    members: tuple[str, ...]
    reason: str
    copy_of: str | None = None
