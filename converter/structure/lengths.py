"""Where the sizes of widths stand in a graph: what a graph of other sizes has to say instead."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from converter.graph.node import Node, Output
from converter.structure.axes.axis import Axis
from converter.structure.properties.counts import counts, operands
from converter.structure.structure import Structure
from converter.structure.tensors.analysis import Analysis
from converter.structure.tensors.atoms import Atom, Clash, find, unify

_SHAPED = ("shape", "element_shape", "element_shape_except0")


class Part(NamedTuple):
    """A slice of an axis that is stored in slices.

    Attributes:
        axis: all of it.
        sizes: of all slices, in order.
        place: which of them it is.
    """

    axis: Axis
    sizes: tuple[int, ...]
    place: int


@dataclass(frozen=True)
class Lengths:
    """What in a graph moves with the widths.

    Attributes:
        integers: of each constant, the axes whose lengths its entries are, by place: integers that
            become shapes, and numbers by which sums are divided.
        arrays: the axes of each constant that has a width itself.
        shapes: the axes of each attribute `shape` or `element_shape`, by node and attribute; what
            is no width is a number, 0 where that is not known.
        torn: where one entry of a constant is the length of axes that can change differently:
            these axes, and the nodes that take it as such.
        parts: the slices of partitioned variables, by the names that stand for them in an axis.
        axes: gives the axes of an output of a node, if there is a width in them.
    """

    integers: Mapping[str, Mapping[int, Axis]]
    arrays: Mapping[str, tuple[Axis, ...]]
    shapes: Mapping[tuple[str, str], tuple[Axis, ...]]
    torn: Mapping[tuple[str, int], Mapping[Axis, tuple[str, ...]]]
    parts: Mapping[str, Part]
    axes: Callable[[str, int], tuple[Axis, ...] | None]


def lengths(structure: Structure) -> Lengths:
    """Find all that moves with the widths, gradients, optimizers and initialisers included."""
    analysis = structure.graph.findings.analysis
    analysis.run(analysis.graph.nodes)
    _tie_followers(structure)
    axes = _Axes(structure)
    integers: dict[str, dict[int, Axis]] = {}
    takers: dict[tuple[str, int], dict[Axis, list[str]]] = {}
    for cell, atom, node in analysis.demands:
        if cell.constant is None:
            continue
        axis = axes.written(atom)
        if axis is not None and axis.widths():
            name, place = cell.constant
            integers.setdefault(name, {}).setdefault(place, axis)
            takers.setdefault(cell.constant, {}).setdefault(axis, []).append(node.name)
    for name, place, atom in (*counts(analysis), *operands(analysis)):
        axis = axes.written(atom)
        if axis is not None and axis.widths():
            integers.setdefault(name, {}).setdefault(place, axis)
    return Lengths(
        integers,
        {
            node.name: found
            for node in analysis.graph.nodes
            if node.op == "Const" and (found := axes.of(node)) is not None
        },
        _shapes(analysis, axes),
        {
            key: {axis: tuple(dict.fromkeys(nodes)) for axis, nodes in found.items()}
            for key, found in takers.items()
            if len(found) > 1
        },
        axes.parts(),
        axes.named,
    )


def _tie_followers(structure: Structure) -> None:
    """Slots and averages have the axes of their variable, whatever applies the gradients."""
    known = structure.graph.findings.axes
    for name, role in structure.follows.items():
        variable = role.of or ""
        own, of = known.get(name, ()), known.get(variable, ())
        if len(own) == len(of):
            for a, b in zip(own, of, strict=True):
                with contextlib.suppress(Clash):
                    unify(a, b)


class _Axes:
    """Writes axes, each once."""

    def __init__(self, structure: Structure) -> None:
        self._structure = structure
        self._analysis = structure.graph.findings.analysis
        self._written: dict[Atom, Axis | None] = {}

    def written(self, atom: Atom) -> Axis | None:
        """Return an axis; None where it cannot be told."""
        root = find(atom)
        if root not in self._written:
            try:
                self._written[root] = self._structure.graph.write(root)
            except Clash:
                self._written[root] = None
        return self._written[root]

    def of(self, node: Node, port: int = 0) -> tuple[Axis, ...] | None:
        """Return the axes of what a node makes or holds, if there is a width in them."""
        tensor = self._analysis.tensor(Output(node, port))
        atoms = tensor.element.axes if tensor.element is not None else tensor.axes
        axes = [self.written(atom) for atom in atoms or ()]
        found = tuple(axis for axis in axes if axis is not None)
        if len(found) < len(axes) or not any(axis.widths() for axis in found):
            return None
        return found

    def named(self, name: str, port: int) -> tuple[Axis, ...] | None:
        """Return the axes of an output of a node that is named, if there is a width in them."""
        node = self._analysis.graph.by_name.get(name)
        return None if node is None else self.of(node, port)

    def parts(self) -> dict[str, Part]:
        """Return the slices of the axes that are one all the same."""
        found: dict[str, Part] = {}
        for whole in self._analysis.wholes:
            axis = self.written(whole.full)
            if whole.is_whole and axis is not None:
                sizes = tuple(part.size or 0 for part in whole.parts)
                for place, part in enumerate(whole.parts):
                    if part.piece is not None:
                        found[part.piece.name] = Part(axis, sizes, place)
        return found


def _shapes(analysis: Analysis, axes: _Axes) -> dict[tuple[str, str], tuple[Axis, ...]]:
    """Return the axes that attributes tell the lengths of."""
    shapes: dict[tuple[str, str], tuple[Axis, ...]] = {}
    for node in analysis.graph.nodes:
        for key in _SHAPED:
            if key in node.attributes and (found := axes.of(node)) is not None:
                # What gathers notes the shape of one tensor, and gives out several.
                is_gathered = node.op.startswith(("TensorArrayGather", "TensorArrayConcat"))
                shapes[node.name, key] = found[1:] if is_gathered else found
    return shapes
