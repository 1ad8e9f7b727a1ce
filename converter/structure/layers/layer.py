"""What a layer is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

from converter.graph.node import Tensor
from converter.structure.axes.axis import Axis

LayerKind = Literal["convolution", "dense", "recurrent", "embedding", "normalisation"]
"""What the kernel does; a normalisation that stands behind no kernel is a layer by itself."""


class Units(NamedTuple):
    """A tensor whose values are the activations of units.

    Attributes:
        tensor: which; a node of a function's body has the names of the calls before its own.
        axis: of the units, counted from the end.
        size: how many there are; None where that is not known.
    """

    tensor: Tensor
    axis: int
    size: int | None


@dataclass(frozen=True, slots=True)
class Normalisation:
    """How the output of a layer is normalised.

    Attributes:
        over: `batch` where each unit is normalised by its own moments, `layer` where each row is.
        gamma, beta, mean, variance: the variables; None where it has none.
        epsilon: what is added to the variance; None where that is not written down.
        is_fused: whether it is one op.
        is_training: whether it takes the moments of the batch that it is given.
    """

    over: Literal["batch", "layer"]
    gamma: str | None
    beta: str | None
    mean: str | None
    variance: str | None
    epsilon: float | None
    is_fused: bool
    is_training: bool


class Activation(NamedTuple):
    """The activation function behind a layer.

    Attributes:
        op: the op; of one that is written out, the one that makes it nonlinear.
        is_homogeneous: whether a positive factor can be taken out of it, as of Relu.
    """

    op: str
    is_homogeneous: bool


@dataclass(frozen=True, slots=True)
class Place:
    """Where the graph applies a layer: once, or several times where it is shared or unrolled.

    Attributes:
        inputs: what each of the kernels takes, in their order; None where that is no tensor.
        linear: what the kernels make, without bias; of a normalisation by itself what it takes.
            None where it is no tensor of the graph.
        finished: what comes of it behind bias, normalisation and activation function.
    """

    inputs: tuple[Units | None, ...]
    linear: Units | None
    finished: Units | None


class Rows(NamedTuple):
    """Rows of a kernel: which, and from where to where."""

    kernel: str
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Layer:
    """A kernel with its bias, its normalisation and the activation function behind it.

    Attributes:
        kind: what the kernel does.
        kernels: the variables; several where the sum of what they make is one output, such as
            those for the input and the state of a cell. None of a normalisation by itself.
        biases: what is added to that.
        normalisation: None where there is none.
        activation: None where there is none, or where the units are the gates of a cell, which
            have several.
        constants: the nodes by which numbers are added or multiplied on the way, if there are any.
        produced: the units, as an expression over widths, `[i,j,f,o]*units`.
        widths: the names of these widths.
        state: of a recurrent layer the rows of its kernels that take its own state.
        sources: the layers that it takes from, by their places among all, itself included.
        places: where it is applied.
    """

    kind: LayerKind
    kernels: tuple[str, ...]
    biases: tuple[str, ...]
    normalisation: Normalisation | None
    activation: Activation | None
    constants: tuple[str, ...]
    produced: Axis
    widths: tuple[str, ...]
    state: tuple[Rows, ...]
    sources: tuple[int, ...]
    places: tuple[Place, ...]
