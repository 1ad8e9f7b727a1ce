"""Runs a model with the units of one width changed everywhere, as its structure says."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from converter import Checkpoint
from converter.forward.find import find_forward
from converter.forward.graph import Tensor, read_graph, tensor
from converter.session import Session, dtypes_of
from converter.structure.axis import Axis, Blocks
from converter.structure.graph import Output
from converter.structure.infer import Structure
from converter.structure.variables import bind
from converter.variable import Array

Choose = Callable[[str, int], Array]


def expand(axis: Axis, choose: Choose, sizes: Mapping[str, int], join: Any) -> Array:
    """Write an axis out entry by entry; `choose` gives the entries of a width."""
    pieces: list[Array] = []
    start = 0
    for term in axis.terms:
        entries = np.zeros(1, int)
        for factor in term:
            if isinstance(factor, str):
                inner = choose(factor, sizes[factor])
            elif isinstance(factor, Axis):
                inner = expand(factor, choose, sizes, join)
            else:
                inner = choose("", len(factor.labels) if isinstance(factor, Blocks) else factor)
            entries = join(entries[:, None], inner[None, :], len(inner)).ravel()
        pieces.append(entries + start if join is _index else entries)
        start += len(entries)
    return np.concatenate(pieces)


def _index(outer: Array, inner: Array, size: int) -> Array:
    return outer * size + inner


def _mask(outer: Array, inner: Array, size: int) -> Array:
    return outer | inner


def permuted(
    values: Array, axes: Sequence[Axis], order: Mapping[str, Array], sizes: Mapping[str, int]
) -> Array:
    """Return the values with the units of some widths in another order."""

    def choose(name: str, size: int) -> Array:
        return order.get(name, np.arange(size))

    for number, axis in enumerate(axes):
        if not order.keys().isdisjoint(axis.widths()):
            values = np.take(values, expand(axis, choose, sizes, _index), axis=number)
    return values


class Model:
    """A checkpoint's own graph, to be run with other values of its variables."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        structure: Structure,
        feeds: Mapping[str, Any],
        fetches: Sequence[str],
    ) -> None:
        graph = read_graph(checkpoint)
        assert graph is not None
        self.structure = structure
        self.feeds = {tensor(name): np.asarray(value) for name, value in feeds.items()}
        forward = find_forward(graph, set(checkpoint), fetches=list(fetches), fed=list(feeds))
        self._session = Session(forward, checkpoint, dtypes_of(forward, self.feeds))
        nodes = bind(structure.graph.findings.analysis.graph, checkpoint)
        self._nodes = {n.name: b for n, b in nodes.items() if n.name in forward.variables}
        noise = np.random.default_rng(0)
        roles = checkpoint.roles()
        self.values = {}
        for name in dict.fromkeys(binding.name for binding in self._nodes.values()):
            values = checkpoint[name].read()
            if values.dtype.kind == "f" and "var" not in name and roles[name].kind == "model":
                # Zeros and ones would look the same in every order.
                values = values + noise.normal(0, 0.1, values.shape).astype(values.dtype)
            self.values[name] = values

    def close(self) -> None:
        self._session.__exit__(None, None, None)

    def run(
        self, values: Mapping[str, Array], feeds: Mapping[Tensor, Array]
    ) -> dict[Tensor, Array]:
        for node, (name, part) in self._nodes.items():
            array = values[name]
            if part is not None:
                spans = zip(part.offset, part.shape, strict=True)
                array = array[tuple(slice(start, start + size) for start, size in spans)]
            self._session.assign(node, array)
        return self._session.run(feeds)

    def axes_of(self, source: Tensor) -> list[Axis]:
        """Return the axes of any tensor of the graph."""
        analysis = self.structure.graph.findings.analysis
        found = analysis.tensor(Output(analysis.graph.by_name[source.node], source.port))
        return [self.structure.graph.write(atom) for atom in found.axes or ()]

    def permutation_error(self, width: str) -> float:
        """Return how far the outputs move when the units of a width are permuted everywhere."""
        sizes = self.structure.sizes
        order = {width: np.roll(np.arange(sizes[width])[::-1], 1)}
        values = {
            name: permuted(array, self.structure.axes[name], order, sizes)
            for name, array in self.values.items()
        }
        feeds = {t: self._permuted(t, v, order) for t, v in self.feeds.items()}
        before, after = self.run(self.values, self.feeds), self.run(values, feeds)
        return max(_error(self._permuted(t, array, order), after[t]) for t, array in before.items())

    def _permuted(self, source: Tensor, values: Array, order: Mapping[str, Array]) -> Array:
        (width,) = order
        axes = [axis if width in axis.widths() else Axis(((0,),)) for axis in self.axes_of(source)]
        return permuted(values, axes, order, self.structure.sizes)

    def growth_error(self, width: str, unit: int) -> float:
        """Return how far the outputs move with what makes a unit, if what takes it is zero.

        That is what happens to a new unit. An output that has the width itself is not looked at.
        """
        noise = np.random.default_rng(1)
        without, other = dict(self.values), dict(self.values)
        for name, array in self.values.items():
            taken, made = np.zeros(array.shape, bool), np.zeros(array.shape, bool)
            for number, axis in enumerate(self.structure.axes[name]):
                if width not in axis.widths():
                    continue
                place = [1] * array.ndim
                place[number] = -1
                mask = self._mask(axis, width, unit).reshape(place)
                consumes = "consume" in self.structure.uses[name][number][width]
                taken, made = taken | (mask & consumes), made | (mask & (not consumes))
            without[name] = np.where(taken, 0, array).astype(array.dtype)
            drawn = np.abs(noise.normal(1, 0.5, array.shape))
            other[name] = np.where(made & ~taken, drawn, without[name]).astype(array.dtype)
        before, after = self.run(without, self.feeds), self.run(other, self.feeds)
        return max(
            (
                _error(array, after[t])
                for t, array in before.items()
                if not any(width in axis.widths() for axis in self.axes_of(t))
            ),
            default=0.0,
        )

    def _mask(self, axis: Axis, width: str, unit: int) -> Array:
        def choose(name: str, size: int) -> Array:
            return (np.arange(size) == unit if name == width else np.zeros(size, bool)).astype(int)

        return expand(axis, choose, self.structure.sizes, _mask).astype(bool)


def _error(a: Array, b: Array) -> float:
    if a.dtype.kind != "f":
        return float(np.count_nonzero(a != b))
    return float(np.abs(a - b).max() / max(float(np.abs(a).max()), 1e-12))
