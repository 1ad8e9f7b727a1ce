"""Which part of a partitioned variable each of its nodes holds, at other sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from converter.regraph.sizes import Sizes
from converter.structure.axis import Axis
from converter.structure.graph import Graph, Node
from converter.structure.variables import Binding, Slice

if TYPE_CHECKING:
    from converter.structure.lengths import Lengths

Spans = Mapping[tuple[int, int], tuple[int, int]]
"""The start and length of each slice along an axis, by what they were."""


class Slices:
    """The slices of all partitioned variables, before and after.

    Args:
        bound: the binding of each variable node.
        found: what moves with the widths.
        sizes: of all widths.
    """

    def __init__(self, bound: Mapping[Node, Binding], found: Lengths, sizes: Sizes) -> None:
        lengths: dict[str, list[dict[tuple[int, int], int]]] = {}
        for node, (name, part) in bound.items():
            if part is None:
                continue
            axes = found.shapes.get((node.name, "shape"), ())
            ranges = lengths.setdefault(name, [{} for _ in part.shape])
            for axis, span in enumerate(zip(part.offset, part.shape, strict=True)):
                new = sizes.resized(axes[axis], span[1]) if axis < len(axes) else None
                ranges[axis][span] = span[1] if new is None else new
        self._spans = {name: [_placed(r) for r in ranges] for name, ranges in lengths.items()}

    def __len__(self) -> int:
        return len(self._spans)

    def __contains__(self, name: str) -> bool:
        return name in self._spans

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the new shape of a whole variable."""
        return tuple(
            max(start + length for start, length in spans.values()) for spans in self._spans[name]
        )

    def moved(self, name: str, part: Slice) -> Slice | None:
        """Return where a slice of a variable lies now; None where no node holds it."""
        spans = self._spans[name]
        if len(spans) != len(part.shape):
            return None
        found = [
            known.get(span)
            for known, span in zip(spans, zip(part.offset, part.shape, strict=True), strict=True)
        ]
        known = [span for span in found if span is not None]
        if len(known) < len(found):
            return None
        offset, shape = tuple(s[0] for s in known), tuple(s[1] for s in known)
        return Slice(self.shape(name), offset, shape)


def _placed(ranges: Mapping[tuple[int, int], int]) -> dict[tuple[int, int], tuple[int, int]]:
    found, start = {}, 0
    for span in sorted(ranges):
        found[span] = (start, ranges[span])
        start += ranges[span]
    return found


def specification(part: Slice) -> str:
    """Write a slice as savers take it: `48 20 0,48:0,10`."""
    extents = ":".join(
        "-" if (start, length) == (0, size) else f"{start},{length}"
        for size, start, length in zip(part.full, part.offset, part.shape, strict=True)
    )
    return f"{' '.join(map(str, part.full))} {extents}"
