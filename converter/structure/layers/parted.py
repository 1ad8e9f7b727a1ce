"""Units of one axis that are parted into several before their bias is added, as heads are."""

from __future__ import annotations

from math import prod
from typing import NamedTuple

from converter.graph.node import Output
from converter.graph.ops import ADDS
from converter.structure.layers.steps import Step, same_axis, takers
from converter.structure.tensors.analysis import Analysis, Axes
from converter.structure.tensors.atoms import Atom, size_of
from converter.structure.tensors.flow import Kind


class Parted(NamedTuple):
    """A bias of units in several axes.

    Attributes:
        step: what adds it, and parts the units before.
        axes: the axes that hold the units behind it, the last of the tensor.
    """

    step: Step
    axes: tuple[Atom, ...]


def parted_from(analysis: Analysis, before: Output, axis: int) -> Parted | None:
    """Return the bias of units that are parted into several axes before it is added.

    So Keras 3 makes the heads of attention: a product of matrices, whose last axis becomes
    `[heads, size]`, and a bias of this shape.

    Args:
        analysis: of the graph.
        before: the tensor.
        axis: of its units, counted from the end.
    """
    parting = takers(analysis, before)
    adding = takers(analysis, Output(parting[0], 0)) if len(parting) == 1 else []
    if len(adding) != 1 or parting[0].op != "Reshape" or adding[0].op not in ADDS or axis != -1:
        return None
    whole, parts = (analysis.tensor(o).axes or () for o in (before, Output(parting[0], 0)))
    lead = len(whole) - 1
    held = parts[lead:]
    biases = [output for output in adding[0].inputs if output.node is not parting[0]]
    if len(biases) != 1 or analysis.kind(biases[0]) is not Kind.WEIGHT or len(held) < 2:
        return None
    is_kept = all(map(same_axis, whole[:lead], parts))
    sizes = _sizes(held)
    if not is_kept or sizes != _sizes(analysis.tensor(biases[0]).axes or ()):
        return None
    if None in sizes or prod(filter(None, sizes)) != size_of(whole[-1]):
        return None
    return Parted(Step("bias", (parting[0], adding[0]), before, Output(adding[0], 0), -1), held)


def _sizes(axes: Axes) -> list[int | None]:
    return [size_of(atom) for atom in axes]
