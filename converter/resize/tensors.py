"""Tensors that go into a model, or come out of it, before and after its widths change."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from converter.graph.node import Output
from converter.resize.chosen import choose
from converter.resize.dense import multiply
from converter.resize.exactness import Resizes
from converter.resize.maps import AxisMap, panels
from converter.resize.units import Units
from converter.structure.axes.axis import Axis
from converter.structure.structure import Structure
from converter.structure.tensors.atoms import Clash
from converter.variable import Array, Variable


class Tensors:
    """What tensors of a graph are once its widths have changed.

    Args:
        resized: the steps, in order.
    """

    def __init__(self, resized: Sequence[Resizes]) -> None:
        self._steps = [step for step in resized if step.structure is not None]
        structure = self._steps[0].structure if self._steps else None
        self._structure: Structure | None = structure
        found = structure.findings if structure is not None else None
        self._nodes = found.analysis.graph.by_name if found is not None else {}

    def fed(self, node: str, port: int, values: Array) -> Array:
        """Return what is to be fed instead: new units of a state are zero, copies are alike."""
        axes = self._axes(node, port, values.shape)
        if axes is None:
            return values
        for step in self._steps:
            assert step.structure is not None
            sizes = step.structure.sizes
            variable = Variable.from_array(node, values)
            for number, axis in enumerate(axes):
                for name in axis.widths():
                    produce = step.maps[name].produce if name in step.maps else None
                    if produce is not None and not isinstance(produce, Units):
                        cut = panels(axis, sizes, {name: produce})
                        variable = multiply(variable, number, cut)
            maps = [self._map(axis, step) for axis in axes]
            values = choose(variable, maps).read()
        return values

    def common(self, node: str, port: int, first: Array, second: Array) -> tuple[Array, Array]:
        """Return the entries of two outputs that are to be the same: those of the old units."""
        axes = self._axes(node, port, first.shape)
        if axes is None or first.shape == second.shape:
            return first, second
        for number, axis in enumerate(axes):
            old = np.arange(first.shape[number])
            for step in self._steps:
                found = self._map(axis, step)
                if found is not None:
                    taken = found.entries(0, found.length).old
                    old = np.where(taken < 0, -1, old[taken])
            if len(old) != second.shape[number]:
                return first, second
            kept = np.flatnonzero(old >= 0)
            first = np.take(first, old[kept], axis=number)
            second = np.take(second, kept, axis=number)
        return first, second

    def _map(self, axis: Axis, step: Resizes) -> AxisMap | None:
        assert step.structure is not None
        units = {name: step.maps[name].produce for name in axis.widths() if name in step.maps}
        chosen = {name: found for name, found in units.items() if isinstance(found, Units)}
        if not chosen:
            return None
        dense = {name: step.maps[name].size for name in units if name not in chosen}
        plain = {name: Units(u.size, u.index) for name, u in chosen.items()}
        return AxisMap(axis, {**step.structure.sizes, **dense}, plain)

    def _axes(self, node: str, port: int, shape: tuple[int, ...]) -> list[Axis] | None:
        """Return the axes of a tensor, where a width among them changes; None elsewhere."""
        if self._structure is None or node not in self._nodes:
            return None
        graph = self._structure.graph
        tensor = graph.findings.analysis.tensor(Output(self._nodes[node], port))
        if tensor.axes is None or len(tensor.axes) != len(shape):
            return None
        found = []
        for atom, size in zip(tensor.axes, shape, strict=True):
            try:
                axis = graph.write(atom)
            except Clash:
                return None
            # What is no width, such as a batch, is as long as it happens to be.
            known = axis.widths() and axis.size(self._structure.sizes) == size
            found.append(axis if known else Axis(((size,),)))
        changed = {name for step in self._steps for name in step.maps}
        return found if any(changed & set(axis.widths()) for axis in found) else None
