"""Numbers that are lengths of axes, and that no shape is made of.

By some sums are divided: how many entries a mean is taken over, and its gradient; they are floats
as often as not. Others are the shapes of operands, which only tell where a gradient is summed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from converter.graph.node import Node, Output
from converter.graph.ops import (
    ADDS,
    DIVISIONS,
    ENTERS,
    IDENTITIES,
    MOVES,
    NOISE,
    RECIPROCALS,
    REPEATS,
    RESHAPES,
    SLICES,
    ops,
)
from converter.structure.properties.newcomers import reduced
from converter.structure.tensors.analysis import Analysis, whole
from converter.structure.tensors.atoms import ONE, Atom, find, leaves, product, size_of
from converter.structure.tensors.flow import Kind

_MAX_STEPS = 32
_MAX_ROUNDS = 16
_NONE: frozenset[Atom] = frozenset()
# Which inputs say how long axes are: they tell nothing where these are followed as such.
_SIZED: Mapping[str, tuple[int, ...]] = {
    **dict.fromkeys(NOISE | ops("Fill Conv2DBackpropInput Conv3DBackpropInputV2"), (0,)),
    **dict.fromkeys(REPEATS | ops("OneHot SplitV SparseToDense"), (1,)),
    **dict.fromkeys(ops("UnsortedSegmentSum ScatterNd"), (2,)),
    **dict.fromkeys(SLICES, (1, 2)),
}
# Which inputs tell only in what shape entries are, or what shape those of a list have.
_SHAPING: Mapping[str, tuple[int, ...]] = {
    **dict.fromkeys(ops("TensorListReserve EmptyTensorList"), (0,)),
    **dict.fromkeys(ops("Reshape TensorListFromTensor TensorListStack TensorListPopBack"), (1,)),
    **dict.fromkeys(ops("TensorListGetItem TensorListGather"), (2,)),
}
_SUMS = ADDS | ops("Sub")
_SHIFTS = _SUMS | MOVES | ops("Neg")
_COMPUTES = (
    IDENTITIES
    | ENTERS
    | RESHAPES
    | DIVISIONS
    | RECIPROCALS
    | ops("Cast FloorDiv Prod Maximum Const")
)


def counts(analysis: Analysis) -> Iterator[tuple[str, int, Atom]]:
    """Yield where constants say over how many entries is summed.

    Returns:
        The constant's name, the place in it, and the axis of which it is the length.
    """
    for node, place, summed, total in _divisions(analysis):
        yield from _constants(analysis, node.inputs[place].node, summed, total)


def mark_averages(analysis: Analysis) -> None:
    """Mark what is averaged by a sum that is divided by how many there are, or what is left of it.

    So is the share of zeros, where it is 1 less that of all else.
    """
    for node, _, summed, _ in _divisions(analysis, is_shifted=True):
        analysis.touch("mean", summed, node)


def mark_lengths(analysis: Analysis) -> None:
    """Mark what is computed with as a number: the length of an axis, whatever made it one.

    A number that only says how long an axis is to be is none of these where that axis is followed
    as the one of which it is the length. One that decides a branch, or the turns of a loop, is.
    """
    kinds, lengths = analysis.flow.kinds, _lengths(analysis)
    for node in analysis.graph.nodes:
        if node in analysis.flow.telling and kinds[node] is not Kind.CONSTANT:
            analysis.touch("counted", dict.fromkeys(_taken(analysis, node, lengths)), node)


def _lengths(analysis: Analysis) -> Mapping[Output, frozenset[Atom]]:
    """Return the leaves on whose lengths the values of each constant tensor depend."""
    flow = analysis.flow
    nodes = [n for n in analysis.graph.nodes if n in flow.telling]
    ports: dict[Node, dict[Output, None]] = {}
    for node in nodes:
        for _, output in _telling(analysis, node):
            if flow.kinds[output.node] is Kind.CONSTANT:
                ports.setdefault(output.node, {})[output] = None
    found: dict[Output, frozenset[Atom]] = {}
    for _ in range(_MAX_ROUNDS):
        is_new = False
        for node in nodes:
            for output in ports.get(node, ()):
                new = frozenset(_depends(analysis, output, found))
                if new != found.get(output, _NONE):
                    found[output] = new
                    is_new = True
        # What a turn of a loop gives is taken by the next one.
        if not is_new:
            break
    return found


def _depends(
    analysis: Analysis, output: Output, lengths: Mapping[Output, frozenset[Atom]]
) -> Iterator[Atom]:
    """Yield the leaves on whose lengths a constant tensor depends, as far as others are known."""
    node, cells = output.node, analysis.tensor(output).cells or ()
    for cell in cells:
        if cell.atom is not None:
            yield from leaves(cell.atom)
    if cells and all(cell.atom is not None for cell in cells):
        return
    if node.op in ("Sum", "Prod", "Mean") and node.inputs:
        summed = analysis.tensor(node.inputs[0])
        if summed.number != 0 and (node.op != "Mean" or summed.number is None):
            for axis in reduced(analysis, node):
                yield from leaves((summed.axes or ())[axis])
    yield from _taken(analysis, node, lengths)


def _taken(
    analysis: Analysis, node: Node, lengths: Mapping[Output, frozenset[Atom]]
) -> Iterator[Atom]:
    """Yield the leaves on whose lengths it depends what a node makes of what it takes."""
    sized = _SIZED.get(node.op, ())
    for place, output in _telling(analysis, node):
        found = lengths.get(output, _NONE)
        if found and place in sized and _are_lengths(analysis, output):
            axes = (a for tensor in analysis.tensors.get(node, ()) for a in tensor.axes or ())
            found -= {leaf for atom in axes for leaf in leaves(atom)}
        yield from found


def _are_lengths(analysis: Analysis, output: Output) -> bool:
    """Whether integers are lengths of axes, or written down, and nothing computed of these."""
    cells = analysis.tensor(output).cells or ()
    return all(cell.atom is not None or cell.constant is not None for cell in cells)


def _telling(analysis: Analysis, node: Node) -> Iterator[tuple[int, Output]]:
    """Yield what tells what entries a node gives, by its place; -1 for what is no input."""
    shaping = _SHAPING.get(node.op, ())
    for place, output in enumerate(node.inputs):
        if place not in shaping:
            yield place, output
    for aside in (analysis.graph.turned, analysis.graph.choosers):
        if node in aside:
            yield -1, aside[node]


def _divisions(
    analysis: Analysis, *, is_shifted: bool = False
) -> Iterator[tuple[Node, int, list[Atom], int]]:
    """Yield what divides by how many entries were summed.

    Args:
        analysis: of the graph.
        is_shifted: whether a constant may have been added to the sum, or the sum taken off one.

    Returns:
        The node, which of its inputs the number is, the axes that were summed, and the number.
    """
    for node in analysis.graph.nodes:
        if len(node.inputs) != 2 or not (node.op in DIVISIONS or node.op == "Mul"):
            continue
        for place in (1,) if node.op in DIVISIONS else (0, 1):
            number = _number(analysis, node.inputs[place])
            divided = node.inputs[1 - place].node if number else None
            if divided is not None and is_shifted:
                divided = _unshifted(analysis, divided)
            summed = None if divided is None else _summed(analysis, divided)
            if number is None or summed is None:
                continue
            count = number if node.op in DIVISIONS else 1 / number
            total = whole(summed)
            if total and total > 1 and math.isclose(count, total, rel_tol=1e-6):
                yield node, place, summed, total


def operands(analysis: Analysis) -> Iterator[tuple[str, int, Atom]]:
    """Yield where constants say the shapes of operands that were broadcast.

    Returns:
        The constant's name, the place in it, and the axis of which it is the length.
    """
    for node in analysis.graph.nodes:
        if node.op != "BroadcastGradientArgs":
            continue
        sums = [c for c in analysis.graph.consumers[node] if c.op == "Sum"]
        axes = analysis.tensor(sums[0].inputs[0]).axes if sums else None
        for output in node.inputs if axes else ():
            cells = analysis.tensor(output).cells or ()
            for cell, atom in zip(reversed(cells), reversed(axes or ()), strict=False):
                if cell.constant is not None and cell.value == size_of(atom):
                    yield (*cell.constant, atom)


def _number(analysis: Analysis, output: Output) -> float | None:
    """Return the number that a scalar is."""
    tensor = analysis.tensor(output)
    if tensor.number is None and tensor.axes == () and tensor.values:
        return float(tensor.values[0]) or None
    return tensor.number or None


def _unshifted(analysis: Analysis, node: Node) -> Node:
    """Return what a constant was added to, or which was taken off one."""
    for _ in range(_MAX_STEPS):
        moving = [o for o in node.inputs if analysis.kind(o) is not Kind.CONSTANT]
        if node.op not in _SHIFTS or not moving or (len(moving) > 1 and node.op in _SUMS):
            break
        node = moving[0].node
    return node


def _summed(analysis: Analysis, node: Node) -> list[Atom] | None:
    """Return the axes over which a tensor was summed, or, of a gradient, is repeated."""
    for _ in range(_MAX_STEPS):
        if node.op == "Sum" or node.op in REPEATS:
            break
        if node.op not in MOVES or not node.inputs:
            return None
        node = node.inputs[0].node
    if (node.op != "Sum" and node.op not in REPEATS) or len(node.inputs) < 2:
        return None
    taken, given = analysis.tensor(node.inputs[0]).axes, analysis.tensor(Output(node, 0)).axes
    if taken is None or given is None:
        return None
    if node.op == "Sum":
        gone = analysis.tensor(node.inputs[1]).values
        if gone is None or any(not -len(taken) <= axis < len(taken) for axis in gone):
            return None
        return [taken[axis] for axis in gone]
    new = given[len(given) - len(taken) :]
    pairs = zip(new, taken, strict=True)
    return [a for a, b in pairs if find(b) is ONE and find(a) is not ONE]


def _constants(
    analysis: Analysis, node: Node, summed: list[Atom], total: int
) -> Iterator[tuple[str, int, Atom]]:
    """Find where a number comes from: it is written down, or made of written shapes."""
    waiting, seen = [node], {node}
    found = []
    while waiting and len(seen) < _MAX_STEPS:
        current = waiting.pop()
        if current.op not in _COMPUTES:
            return
        if current.op == "Const":
            found.append(current)
        for source, _ in current.inputs:
            if source not in seen:
                seen.add(source)
                waiting.append(source)
    for constant in found:
        tensor = analysis.tensor(Output(constant, 0))
        if _number(analysis, Output(constant, 0)) == total:
            yield constant.name, 0, product(summed)
            return
        for atom in summed:
            # The shape of what is summed: the axis is the one of its length.
            places = [i for i, n in enumerate(tensor.values or ()) if n == size_of(atom)]
            if len(places) == 1:
                yield constant.name, places[0], atom
