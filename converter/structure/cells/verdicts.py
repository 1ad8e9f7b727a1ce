"""What may be done to the widths that names tell, with nothing hidden that a graph would show."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import NamedTuple

from converter.structure.axes.axis import Axis
from converter.structure.axes.followers import Axes
from converter.structure.cells.layer import Known, Layer
from converter.structure.cells.links import Links, is_output

_FEW = 3


class Slot(NamedTuple):
    """An axis of which no name tells what it takes.

    Attributes:
        variable: whose axis it is.
        number: of the axis.
        size: its length, or that of the part that is not known.
        layer: the layer that takes it; None where the variable is of none.
    """

    variable: str
    number: int
    size: int
    layer: Layer | None = None

    def __str__(self) -> str:
        return f"{self.variable}, axis {self.number} ({self.size})"


def verdicts(
    links: Links,
    unknown: Sequence[Slot],
    consumers: Mapping[str, Sequence[str]],
    axes: Mapping[str, Axes],
) -> dict[str, Known]:
    """Return what is known of each width of the layers.

    Args:
        links: the layers, and what they take of one another.
        unknown: the axes of variables that are of no layer.
        consumers: the variables that take each width.
        axes: of all variables, for what is asked of people.
    """
    return _Verdicts(links, unknown, consumers, axes).told()


class _Verdicts:
    def __init__(
        self,
        links: Links,
        unknown: Sequence[Slot],
        consumers: Mapping[str, Sequence[str]],
        axes: Mapping[str, Axes],
    ) -> None:
        self._axes = axes
        self._links = links
        self._consumers = consumers
        self._open = [
            Slot(*layer.slot, layer.input_size, layer)
            for layer in links.layers
            if layer.inputs is not None and layer.inputs not in links.taken
        ]
        self._slots = sorted((*unknown, *self._open), key=lambda slot: -slot.size)
        self._lengths = {slot.size: slot for slot in reversed(unknown)}
        self._takers: dict[str, list[Layer]] = {}
        for layer in links.layers:
            for name in links.taken[layer.inputs].widths() if layer.inputs in links.taken else ():
                self._takers.setdefault(name, []).append(layer)
        self._behind: dict[str, set[str]] = {}
        self._outputs: dict[int, list[Layer]] = {}
        self._untaken: dict[int, list[Layer]] = {}
        self._states: dict[int, dict[str, list[str]]] = {}
        self._gather()

    def _gather(self) -> None:
        """Gather what may be a state or be added to one, by its size."""
        stacks = self._links.stacks
        sizes = {n: size for layer in self._links.layers for n, size in layer.sizes.items()}
        for layer in self._links.layers:
            if layer.output is not None and not is_output(layer):
                self._outputs.setdefault(layer.output_size, []).append(layer)
                if not self._is_taken(layer, layer.output):
                    self._untaken.setdefault(layer.output_size, []).append(layer)
            for name, size in layer.sizes.items() if layer.kind == "cell" else ():
                if name != layer.inputs:
                    root = stacks.at[layer.scope].root
                    self._states.setdefault(size, {}).setdefault(root, []).append(name)
        self._sums = {}
        for root in stacks.roots:
            top = stacks.top(root)
            if top is not None and len(top.terms) > 1:
                self._sums[root] = top.size(sizes)
                by_root = self._states.setdefault(self._sums[root], {})
                by_root.setdefault(root, []).append(str(top))

    def told(self) -> dict[str, Known]:
        found: dict[str, Known] = {}
        for layer in self._links.layers:
            for width, known in layer.known.items():
                found[width] = self._judged(layer, width, known)
        for slot in self._open:
            if slot.layer is not None and slot.layer.inputs is not None:
                found[slot.layer.inputs] = self._outside(slot)
        return found

    def _judged(self, layer: Layer, width: str, known: Known) -> Known:
        size = layer.sizes[width]
        others = list(islice(self._others(layer, width, size), _FEW + 1))
        ties = list(islice(self._ties(layer, width, size), _FEW))
        if others:
            few = ", ".join(map(str, others[:_FEW])) + (" or others" if others[_FEW:] else "")
            return _held(
                known,
                f"no name tells whether {few} takes it; if so, say it in a layout file: "
                f"{self._declaration(others[0], width, size)}",
            )
        if ties:
            return _held(
                known,
                f"no name tells whether it is the same as {' or '.join(ties[:_FEW])}; give both "
                "one name in a layout file, or say resizable = true",
            )
        if self._is_taken(layer, width):
            return known._replace(why=known.why + self._added(layer, width, size))
        if is_output(layer):
            return Known("bound", "none", f"{layer.scope} is an output by its name")
        if layer.kind == "cell" or layer.kind == "other":
            return known._replace(growth="none", why="no variable takes it, so it is an output")
        return _held(
            known,
            "no name tells what takes it; say it in a layout file, or resizable = true if it is an "
            "output",
        )

    def _declaration(self, slot: Slot, width: str, size: int) -> str:
        """Write the lines of a layout that let a slot take a width."""
        axes = [str(axis) for axis in self._axes[slot.variable]]
        held = self._axes[slot.variable][slot.number].widths()
        if slot.layer is None:
            axes[slot.number] = width if slot.size == size else f"{width} + ..."
        else:
            is_now = width if slot.size == size else f"{width} + ..."
            axes[slot.number] = " + ".join(
                is_now if name == slot.layer.inputs else name for name in held
            )
        return f"[variables.{json.dumps(slot.variable)}] axes = {json.dumps(axes)}"

    def _is_taken(self, layer: Layer, width: str) -> bool:
        if width != layer.output:
            return True
        own = layer.axes if layer.kind != "other" else ()
        return any(name not in own for name in self._consumers.get(width, ()))

    def _added(self, layer: Layer, width: str, size: int) -> str:
        """Say what a residual connection could add to what a cell gives: as much comes in."""
        axis = self._links.taken.get(layer.inputs or "")
        if (
            axis is None
            or layer.kind != "cell"
            or layer.input_size != size
            or width != layer.output
        ):
            return ""
        return f"; a residual connection to {axis} would be in no name"

    def _others(self, layer: Layer, width: str, size: int) -> Iterator[Slot]:
        """Yield what may hold a width that no name ties to it, alone or beside others."""
        if width in layer.inner or is_output(layer):
            return
        if width != layer.output:
            # The entries of a table: what holds as many may be one thing for each.
            yield from (self._lengths[n] for n in (size,) if n in self._lengths)
            return
        for slot in self._slots:
            if slot.size < size:
                return
            if slot.layer is None:
                yield slot
            elif slot.layer is layer:
                if slot.size == size and self._links.stacks.is_alone(layer):
                    yield slot
            elif layer.scope not in self._reached(slot.layer) or "attention" in slot.layer.scope:
                yield slot

    def _reached(self, layer: Layer) -> set[str]:
        """Return the scopes of the layers behind one."""
        if layer.scope not in self._behind:
            found: set[str] = set()
            waiting = [layer]
            while waiting:
                for other in self._takers.get(waiting.pop().output or "", ()):
                    if other.scope not in found:
                        found.add(other.scope)
                        waiting.append(other)
            self._behind[layer.scope] = found
        return self._behind[layer.scope]

    def _ties(self, layer: Layer, width: str, size: int) -> Iterator[str]:
        """Yield what may be the same as a width.

        A cell may begin in the state in which another one ends, and what nothing takes may be
        added to something, or be such a state.
        """
        if layer.kind == "cell" and width != layer.inputs:
            root = self._links.stacks.at[layer.scope].root
            wanted = {size, self._sums.get(root, size)}
            for length in wanted:
                for other_root, names in self._states.get(length, {}).items():
                    yield from names if other_root != root else ()
        if width != layer.output or is_output(layer):
            return
        others = self._untaken if self._is_taken(layer, width) else self._outputs
        for other in others.get(size, ()):
            if other is not layer and other.output is not None:
                yield other.output

    def _outside(self, slot: Slot) -> Known:
        candidates = list(islice(self._makers(slot), _FEW + 1))
        if not candidates:
            why = f"no variable that names tell makes what {slot.variable} takes"
        else:
            few = ", ".join(candidates[:_FEW]) + (" or others" if candidates[_FEW:] else "")
            why = f"no name tells what {slot} takes; it may hold {few}: say it in a layout file"
        return Known("bound", "none", why, resizable=False)

    def _makers(self, slot: Slot) -> Iterator[str]:
        """Yield what may be in a slot, the largest first."""
        for size in sorted(self._outputs, reverse=True):
            if size > slot.size:
                continue
            for other in self._outputs[size]:
                if slot.layer is None or other is slot.layer:
                    continue
                if other.scope not in self._reached(slot.layer):
                    yield f"{other.output} ({size})"


def _held(known: Known, why: str) -> Known:
    return Known(known.symmetry, "none", why, resizable=False)


def taken_axis(axis: Axis, taken: Mapping[str, Axis]) -> Axis:
    """Follow links to the end: the inputs of both directions are one, and may be linked too."""
    seen: set[str] = set()
    while len(axis.terms) == 1 and len(axis.terms[0]) == 1:
        name = axis.terms[0][0]
        if not isinstance(name, str) or name not in taken or name in seen:
            break
        seen.add(name)
        axis = taken[name]
    return axis
