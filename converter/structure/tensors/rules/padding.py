"""Rules of ops that put entries before and behind others: padding, and gradients of slices."""

from __future__ import annotations

from collections.abc import Sequence

from converter.graph.node import Node
from converter.structure.tensors.analysis import Analysis, Cell, Conflict, Rule, Tensor, for_ops
from converter.structure.tensors.atoms import Atom, Clash, concat, find, leaf, size_of


def pad(an: Analysis, node: Node, inputs: Sequence[Tensor]) -> Tensor:
    """Add entries before and after."""
    x, amounts = inputs[:2]
    if x.axes is None or amounts.cells is None or len(amounts.cells) != 2 * len(x.axes):
        raise Clash
    axes = []
    for place, atom in enumerate(x.axes):
        before, after = amounts.cells[2 * place : 2 * place + 2]
        if (restored := _restored(an, node, atom, before, after)) is not None:
            axes.append(restored)
        elif before.value == 0 and after.value == 0:
            axes.append(atom)
        elif min(before.value or 0, after.value or 0) < 0:
            an.conflicts.append(Conflict(node, (before.value or 0, after.value or 0)))
            raise Clash
        elif before.value is None or after.value is None or node.op == "MirrorPad":
            an.touch("spatial", [atom], node)
            axes.append(Atom(None))
        elif size_of(atom) is None:
            axes.append(Atom(None))
        else:
            added = [an.demand(cell, leaf(cell.value), node) for cell in (before, after)]
            axes.append(concat((added[0], atom, added[1])))
    return Tensor(tuple(axes))


def _restored(an: Analysis, node: Node, atom: Atom, before: Cell, after: Cell) -> Atom | None:
    """Return the axis that a gradient of a slice is padded to; None where nothing tells it.

    It is as long as what was sliced: behind the slice are `whole - slice - before` entries.
    """
    length, *taken = after.rest or (before,)
    size = size_of(atom)
    parts = [c for c in taken if _is_length(c, atom)]
    begins = [c.value for c in taken if not parts or c is not parts[0]] or [0]
    if not parts or begins != [before.value]:
        return None
    an.demand(parts[0], atom, node)
    if size is None or after.value is None or after.value < 0:
        return length.atom
    if before.value == after.value == 0:
        return an.demand(length, atom, node)
    begin = an.demand(before, leaf(before.value), node)
    found = an.demand(length, concat((begin, atom, leaf(after.value))), node)
    if length.atom is not None:
        an.tie(found, length.atom, node)
    return found


def _is_length(cell: Cell, atom: Atom) -> bool:
    if cell.atom is not None and find(cell.atom) is find(atom):
        return True
    return cell.value is not None and cell.value == size_of(atom)


RULES: dict[str, Rule] = for_ops("Pad PadV2 MirrorPad", pad)
