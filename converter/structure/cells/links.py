"""Which layer takes what another one gives, where names tell it and sizes agree in one way."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import combinations

from converter.structure.axes.axis import Axis
from converter.structure.cells.layer import Layer, one
from converter.structure.cells.stacks import Stacks, numbered

_OUTPUT = re.compile(
    r"(.*_)?(softmax|logits?|outputs?|out|head|predictions?|classifier|classes|readout)(_layer)?",
    re.IGNORECASE | re.DOTALL,
)
_WRAPPER = re.compile(r"output_projection_wrapper(_\d+)?")
_NORM = re.compile(r"(.*/)?(batch_norm(alization)?|bn|BatchNorm)(_?\d+)?", re.DOTALL)
_MAX_SUMS = 64


def is_output(layer: Layer) -> bool:
    """Whether a layer is by its name the last one."""
    return layer.kind == "dense" and _OUTPUT.fullmatch(layer.scope.rpartition("/")[2]) is not None


class Links:
    """What layers take.

    Attributes:
        taken: what the inputs of a layer are, by the name of that width.
    """

    def __init__(self, layers: Sequence[Layer], known: Mapping[str, Axis]) -> None:
        """Find the links.

        Args:
            layers: all of them.
            known: what inputs are by declaration.
        """
        self.layers = layers
        self.stacks = Stacks(layers)
        self.taken: dict[str, Axis] = dict(known)
        self._sizes = {name: size for layer in layers for name, size in layer.sizes.items()}
        self._stacked()
        self._wrapped()
        self._chained()
        self._normed()
        self._looked_up()
        self._put_out()

    def _link(self, layer: Layer, axis: Axis | None) -> None:
        """Note what a layer takes, if its size is that."""
        if axis is None or layer.inputs is None or layer.inputs in self.taken:
            return
        if axis.size(self._sizes) == layer.input_size:
            self.taken[layer.inputs] = axis

    def used(self) -> set[str]:
        """Return the widths that a layer takes."""
        return {name for axis in self.taken.values() for name in axis.widths()}

    def _stacked(self) -> None:
        for layer in self.layers:
            if layer.kind == "cell":
                self._link(layer, self.stacks.before(layer))
        for root in self.stacks.roots:
            # What goes in both directions takes one input.
            firsts = [layer for layer in self.stacks.firsts(root) if layer.inputs]
            if len({layer.input_size for layer in firsts}) == 1:
                for layer in firsts[1:]:
                    if firsts[0].inputs is not None:
                        self._link(layer, one(firsts[0].inputs))

    def _wrapped(self) -> None:
        for layer in self.layers:
            if layer.kind != "dense" or not _WRAPPER.fullmatch(layer.scope.rpartition("/")[2]):
                continue
            inside = [root for root in self.stacks.roots if root.startswith(f"{layer.scope}/")]
            if len(inside) == 1:
                self._link(layer, self.stacks.top(inside[0]))

    def _chained(self) -> None:
        """Link layers that are numbered, where no other layer gives as much."""
        plain = [layer for layer in self.layers if layer.kind == "dense"]
        sizes = Counter(layer.output_size for layer in self.layers if layer.output)
        by_place: dict[tuple[str, int], list[Layer]] = {}
        for layer in plain:
            by_place.setdefault(numbered(layer.scope), []).append(layer)
        for (base, number), found in by_place.items():
            before = by_place.get((base, number - 1), [])
            given = before[0].output if len(found) == len(before) == 1 else None
            if given is not None and sizes[before[0].output_size] == 1:
                self._link(found[0], one(given))

    def _normed(self) -> None:
        """Link a batch normalisation to the layer that it is in, or that has its number."""
        dense = [layer for layer in self.layers if layer.kind == "dense" and layer.output]
        sizes = Counter(layer.output_size for layer in self.layers if layer.output)
        scopes = {layer.scope: layer for layer in dense}
        by_number: dict[int, list[Layer]] = {}
        for layer in dense:
            by_number.setdefault(numbered(layer.scope)[1], []).append(layer)
        for layer in self.layers:
            if layer.kind != "norm":
                continue
            above = scopes.get(layer.scope.rpartition("/")[0])
            if above is not None and above.output is not None:
                self._link(layer, one(above.output))
            if not _NORM.fullmatch(layer.scope):
                continue
            near = by_number.get(numbered(layer.scope)[1], [])
            found = [other for other in near if other.output_size == layer.input_size]
            if len(found) == 1 and sizes[layer.input_size] == 1 and found[0].output is not None:
                self._link(layer, one(found[0].output))

    def _looked_up(self) -> None:
        """Link the only table of a size to the stacks of cells that take as much."""
        tables = {layer.output for layer in self.layers if layer.kind == "embedding"}
        given = self._given()
        for root in self.stacks.roots:
            top = self.stacks.top(root)
            for layer in self.stacks.firsts(root):
                # What a stack gives is not what it takes.
                near = given.get(layer.input_size, [])[:3]
                fits = [axis for axis in near if axis != top]
                if (
                    len(fits) == 1
                    and len(fits[0].terms) == 1
                    and tables.issuperset(fits[0].widths())
                ):
                    self._link(layer, fits[0])

    def _put_out(self) -> None:
        """Link the layers that are called outputs to the only thing of their size."""
        inner = self.used()
        given = self._given()
        tops = [self.stacks.top(root) for root in self.stacks.roots]
        for layer in self.layers:
            if not is_output(layer):
                continue
            fits = [a for a in given.get(layer.input_size, ()) if inner.isdisjoint(a.widths())]
            # The order of a sum is that of both directions, or in no name.
            if len(fits) == 1 and (len(fits[0].terms) == 1 or fits[0] in tops):
                self._link(layer, fits[0])

    def _given(self) -> dict[int, list[Axis]]:
        """Return by size what can be taken, alone and in pairs."""
        alone = [
            one(layer.output)
            for layer in self.layers
            if layer.output and layer.kind != "cell" and not is_output(layer)
        ]
        tops = [self.stacks.top(root) for root in self.stacks.roots]
        alone += [top for top in tops if top is not None]
        pairs = combinations(alone, 2) if len(alone) <= _MAX_SUMS else ()
        found: dict[int, list[Axis]] = {}
        for axis in (*alone, *(Axis((*a.terms, *b.terms)) for a, b in pairs)):
            found.setdefault(axis.size(self._sizes), []).append(axis)
        return found
