"""Factors for the units of widths: what produces one times it, and what consumes one by it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import NamedTuple

import numpy as np

from converter.checkpoint import Checkpoint
from converter.errors import ConverterError
from converter.forward.find import find_forward
from converter.graph.node import Tensor
from converter.graph.written import read_graph
from converter.permutation import axes_of
from converter.resize.maps import places_of
from converter.scaling.multiply import Factor
from converter.structure.axes.axis import Axis, Touch, Use, Width
from converter.structure.called import opened
from converter.structure.structure import Structure
from converter.variable import Array

_POWERS: Mapping[Use, int] = {
    "produce": 1,
    "shift": 1,
    "mean": 1,
    # Moments that are divided by, and gains, hand on what they get: (s*x - s*mean) / deviation.
    "gain": 0,
    "variance": 0,
    "consume": -1,
}
_OUTSIDE: Mapping[Touch, str] = {"shown": "is an output", "input": "brings it in from outside"}


class OnAxis(NamedTuple):
    """An axis of a variable that holds the units of a width.

    Attributes:
        variable: its name.
        number: of the axis.
        axis: the expression.
        uses: what it does with the units.
    """

    variable: str
    number: int
    axis: Axis
    uses: tuple[Use, ...]


def axes_with(structure: Structure, checkpoint: Checkpoint, width: str) -> Iterator[OnAxis]:
    """Yield the axes of variables of the model that hold a width; slots and averages follow."""
    roles = checkpoint.roles()
    for name, axes in structure.axes.items():
        # An average whose variable is not there was saved to be the model.
        is_model = roles[name].kind in ("model", "batch_statistic", "average")
        if not is_model or name in structure.follows:
            continue
        used = structure.uses.get(name, ({},) * len(axes))
        for number, (axis, uses) in enumerate(zip(axes, used, strict=True)):
            if width in axis.widths():
                yield OnAxis(name, number, axis, tuple(uses.get(width, ())))


def shown(structure: Structure, checkpoint: Checkpoint) -> dict[str, str]:
    """Return the widths of outputs, whatever else is made of them: an output of each, by name."""
    return {
        width: str(tensor)
        for tensor in outputs_of(structure, checkpoint)
        for axis in axes_of(structure, tensor)
        for width in axis.widths()
    }


def outputs_of(structure: Structure, checkpoint: Checkpoint) -> tuple[Tensor, ...]:
    """Return the outputs of a model in inference; none where no graph tells them."""
    # With the structure, so that no other one can have its id while the checkpoint knows it.
    return checkpoint.once(
        (Tensor, id(structure)), lambda: (structure, _outputs(structure, checkpoint))
    )[1]


def _outputs(structure: Structure, checkpoint: Checkpoint) -> tuple[Tensor, ...]:
    # The graph has the names that the variables had.
    checkpoint = opened(checkpoint)
    graph = None if structure.findings is None else read_graph(checkpoint)
    if graph is None:
        return ()
    try:
        outputs = find_forward(graph, set(checkpoint)).outputs
    except ConverterError:
        # Without an output that looks like one there is none to be changed.
        return ()
    return tuple(output.tensor for output in outputs)


def refusal(structure: Structure, checkpoint: Checkpoint, width: Width) -> str | None:
    """Return why no positive factors of its units leave the model as it is; None where they do."""
    if width.symmetry not in ("free", "scaling"):
        return width.why
    touches = dict(width.touches)
    for what, words in _OUTSIDE.items():
        if node := touches.get(what):
            return f"{node} {words}"
    if output := shown(structure, checkpoint).get(width.name):
        return f"{output} is an output"
    if not width.produced_by:
        return "no variable produces it"
    if not width.consumed_by:
        return "no variable consumes it"
    for on in axes_with(structure, checkpoint, width.name):
        if {"produce", "consume"} <= set(on.uses):
            return f"{on.variable} both produces and consumes it"
        if not on.uses:
            return f"it is not known what {on.variable} does with it"
        if not checkpoint[on.variable].dtype.is_float:
            return f"{on.variable} is {checkpoint[on.variable].dtype}"
    return None


def power(uses: tuple[Use, ...]) -> int:
    """Return the power of the factor of a unit that an axis is multiplied by."""
    if "produce" in uses:
        return 1
    return next((_POWERS[use] for use in ("consume", "variance", "gain", *uses) if use in uses), 0)


def on_axis(
    axis: Axis, sizes: Mapping[str, int], width: str, values: Callable[[], Array], power: int
) -> Callable[[], Array]:
    """Return what gives the factor of each entry of an axis, by those of the units of a width."""
    return partial(_spread, axis, sizes, width, values, power)


def _spread(
    axis: Axis, sizes: Mapping[str, int], width: str, values: Callable[[], Array], power: int
) -> Array:
    found = np.ones(axis.size(sizes))
    found[places_of(axis, sizes, width)] = values() ** power
    return found


def factor_on(
    structure: Structure, on: OnAxis, width: str, values: Callable[[], Array], power: int
) -> Factor:
    """Return the factor of a variable along an axis that holds a width."""
    return Factor(on.number, on_axis(on.axis, structure.sizes, width, values, power))
