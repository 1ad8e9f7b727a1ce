"""Which part of a partitioned variable each of its nodes holds, at other sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from converter.graph.node import Node
from converter.graph.slices import Slice
from converter.regraph.sizes import Sizes
from converter.structure.axes.axis import Axis
from converter.structure.tensors.variables import Binding

if TYPE_CHECKING:
    from converter.structure.lengths import Lengths


class Slices:
    """The slices of all partitioned variables, before and after.

    Args:
        bound: the binding of each variable node.
        axes: of the variables that are no slices, by name.
        found: what moves with the widths.
        sizes: of all widths.
    """

    def __init__(
        self,
        bound: Mapping[Node, Binding],
        axes: Mapping[str, Sequence[Axis]],
        found: Lengths,
        sizes: Sizes,
    ) -> None:
        self._shapes = {
            name: tuple(sizes.lengths(axis)[1] for axis in axes[name])
            for name, part in bound.values()
            if part is None and name in axes
        }
        lengths: dict[str, list[dict[tuple[int, int], int]]] = {}
        for node, (name, part) in bound.items():
            if part is None:
                continue
            told = found.shapes.get((node.name, "shape"), ())
            ranges = lengths.setdefault(name, [{} for _ in part.shape])
            for axis, span in enumerate(zip(part.offset, part.shape, strict=True)):
                new = sizes.resized(told[axis], span[1]) if axis < len(told) else None
                ranges[axis][span] = span[1] if new is None else new
        self._spans = {name: [_placed(r) for r in ranges] for name, ranges in lengths.items()}

    def moved(self, name: str, part: Slice | None) -> Slice | None:
        """Return where a slice of a variable lies now.

        Args:
            name: the variable.
            part: the slice; None for the whole variable.

        Returns:
            None where no node holds it.
        """
        if part is None:
            shape = self._shapes.get(name)
            return None if shape is None else Slice(shape, (0,) * len(shape), shape)
        spans = self._spans.get(name, [])
        if len(spans) != len(part.shape):
            return None
        found = [
            known.get(span)
            for known, span in zip(spans, zip(part.offset, part.shape, strict=True), strict=True)
        ]
        known = [span for span in found if span is not None]
        if len(known) < len(found):
            return None
        full = tuple(max(start + length for start, length in axis.values()) for axis in spans)
        return Slice(full, tuple(start for start, _ in known), tuple(n for _, n in known))


def _placed(ranges: Mapping[tuple[int, int], int]) -> dict[tuple[int, int], tuple[int, int]]:
    found, start = {}, 0
    for span in sorted(ranges):
        found[span] = (start, ranges[span])
        start += ranges[span]
    return found


def specification(part: Slice) -> str:
    """Write a slice as savers take it: `48 20 0,48:0,10`."""
    extents = ":".join(f"{a},{b}" for a, b in zip(part.offset, part.shape, strict=True))
    return f"{' '.join(map(str, part.full))} {extents}"
