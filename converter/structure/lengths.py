"""Where the sizes of widths stand in a graph: what a graph of other sizes has to say instead."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from converter.structure.atoms import Atom, Clash
from converter.structure.axis import Axis
from converter.structure.graph import Node, Output
from converter.structure.infer import Structure

_SHAPED = ("shape", "element_shape")


@dataclass(frozen=True)
class Lengths:
    """What in a graph moves with the widths.

    Attributes:
        integers: of each constant of integers, the axes whose lengths its entries are, by place.
        arrays: the axes of each constant that has a width itself.
        shapes: the axes of each attribute `shape` or `element_shape`, by node and attribute; what
            is no width is a number, 0 where that is not known.
        torn: constants of which one entry is the length of axes that can change differently.
    """

    integers: Mapping[str, Mapping[int, Axis]]
    arrays: Mapping[str, tuple[Axis, ...]]
    shapes: Mapping[tuple[str, str], tuple[Axis, ...]]
    torn: Mapping[str, tuple[Axis, ...]]


def lengths(structure: Structure) -> Lengths:
    """Find all that moves with the widths, gradients, optimizers and initialisers included."""
    analysis = structure.graph.findings.analysis
    analysis.run(analysis.graph.nodes)
    integers: dict[str, dict[int, Axis]] = {}
    torn: dict[str, tuple[Axis, ...]] = {}
    for demand in analysis.demands:
        axis = _written(structure, demand.atom)
        if demand.cell.constant is None or axis is None or not axis.widths():
            continue
        name, place = demand.cell.constant
        known = integers.setdefault(name, {}).setdefault(place, axis)
        if known != axis:
            torn[name] = (known, axis)
    arrays: dict[str, tuple[Axis, ...]] = {}
    shapes: dict[tuple[str, str], tuple[Axis, ...]] = {}
    for node in analysis.graph.nodes:
        if node.op == "Const":
            axes = _axes(structure, node)
            if axes is not None:
                arrays[node.name] = axes
        for key in _SHAPED:
            if key in node.attributes and (axes := _axes(structure, node)) is not None:
                # What gathers notes the shape of one tensor, and gives out several.
                is_gathered = node.op.startswith("TensorArrayGather")
                shapes[node.name, key] = axes[1:] if is_gathered else axes
    return Lengths(integers, arrays, shapes, torn)


def _axes(structure: Structure, node: Node) -> tuple[Axis, ...] | None:
    """Return the axes of what a node makes or holds, if there is a width in them."""
    tensor = structure.graph.findings.analysis.tensor(Output(node, 0))
    atoms = tensor.element.axes if tensor.element is not None else tensor.axes
    axes = [_written(structure, atom) for atom in atoms or ()]
    found = tuple(axis for axis in axes if axis is not None)
    if len(found) < len(axes) or not any(axis.widths() for axis in found):
        return None
    return found


def _written(structure: Structure, atom: Atom) -> Axis | None:
    try:
        return structure.graph.write(atom)
    except Clash:
        return None
