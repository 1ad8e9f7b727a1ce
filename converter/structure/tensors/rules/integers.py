"""Rules of ops that make and carry the integers that become shapes.

An integer is kept with the axis whose length it is, so that what a shape is made of is known even
where its value is not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from converter.graph.node import Node
from converter.structure.tensors.analysis import Analysis, Cell, Rule, Tensor, for_ops, whole
from converter.structure.tensors.atoms import Atom, Clash, leaf, product, size_of

_MAX_CELLS = 256


def axes_of(tensor: Tensor, rank: int) -> list[int]:
    """Return the axes that a tensor of integers names.

    Raises:
        Clash: they are not known, or there are no such axes.
    """
    values = tensor.values
    if values is None or any(not -rank <= value < rank for value in values):
        raise Clash
    return sorted({value % rank for value in values})


def constant(an: Analysis, node: Node, inputs: Sequence[Tensor]) -> Tensor:
    """A constant of the graph."""
    found = an.graph.constant(node)
    if found is None:
        return Tensor(an.fresh(an.graph.declared(node, 0)))
    axes = an.fresh(found.shape)
    values = found.values
    if values is None:
        return Tensor(axes)
    cells = None
    if found.is_whole and len(values) <= _MAX_CELLS:
        cells = tuple(Cell(int(v), None, (node.name, i)) for i, v in enumerate(values))
    first = values[0] if values else 0
    is_uniform = all(value == first for value in values) and math.isfinite(first)
    return Tensor(axes, cells, float(first) if is_uniform else None)


def shape(an: Analysis, node: Node, inputs: Sequence[Tensor]) -> list[Tensor]:
    """The shapes of the inputs."""
    found = []
    for tensor in inputs:
        if tensor.axes is None:
            found.append(Tensor((Atom(None),)))
        else:
            cells = tuple(Cell(size_of(atom), atom) for atom in tensor.axes)
            # How many axes there are is no width, even where a shape is computed with.
            axis = leaf(len(cells))
            an.touch("fixed", [axis], node)
            found.append(Tensor((axis,), cells))
    return found


def size(an: Analysis, node: Node, inputs: Sequence[Tensor]) -> Tensor:
    """How many entries a tensor has."""
    axes = inputs[0].axes
    if axes is None:
        return Tensor(())
    return Tensor((), (Cell(whole(axes), product(axes)),))


def rank(an: Analysis, node: Node, inputs: Sequence[Tensor]) -> Tensor:
    """How many axes a tensor has."""
    axes = inputs[0].axes
    return Tensor((), None if axes is None else (Cell(len(axes)),))


def numbers(an: Analysis, node: Node, inputs: Sequence[Tensor]) -> Tensor:
    """Numbers from one to another."""
    bounds = [tensor.values for tensor in inputs]
    known = [bound[0] for bound in bounds if bound]
    start, limit, delta = (tensor.cells for tensor in inputs)
    axis = None
    if start and limit and delta and start[0].value == 0 and delta[0].value == 1:
        axis = an.sized(limit[0], node)
    if len(known) == 3 and known[2] and abs((known[1] - known[0]) // known[2]) <= _MAX_CELLS:
        cells = tuple(Cell(value) for value in range(*known))
        return Tensor((leaf(len(cells)) if axis is None else axis,), cells)
    return Tensor((Atom(None) if axis is None else axis,))


def filled(an: Analysis, node: Node, inputs: Sequence[Tensor]) -> Tensor:
    """One value everywhere."""
    dims, value = inputs
    number = value.number
    if number is None and value.values:
        number = float(value.values[0])
    cells = None
    if dims.values is not None and value.cells and math.prod(dims.values) <= _MAX_CELLS:
        cells = value.cells * max(0, math.prod(dims.values))
    return Tensor(sized_axes(an, node, dims), cells, number)


def sized_axes(an: Analysis, node: Node, dims: Tensor) -> tuple[Atom, ...] | None:
    """Return axes that are as long as a tensor of integers says."""
    if dims.cells is not None:
        return tuple(an.sized(cell, node) for cell in dims.cells)
    if dims.axes is not None and len(dims.axes) == 1:
        count = size_of(dims.axes[0])
        if count is not None and count <= _MAX_CELLS:
            return tuple(Atom(None) for _ in range(count))
    return None


def like(an: Analysis, node: Node, inputs: Sequence[Tensor]) -> Tensor:
    """Zeros or ones of the shape of another tensor."""
    return Tensor(inputs[0].axes, number=float(node.op == "OnesLike"))


def random(an: Analysis, node: Node, inputs: Sequence[Tensor]) -> Tensor:
    """Random numbers of a given shape."""
    return Tensor(sized_axes(an, node, inputs[0]))


def difference(an: Analysis, node: Node, inputs: Sequence[Tensor]) -> list[Tensor]:
    """What of one list is not in another."""
    x, y = (tensor.values for tensor in inputs)
    if x is None or y is None:
        return [Tensor((Atom(None),)), Tensor((Atom(None),))]
    left = [(place, value) for place, value in enumerate(x) if value not in y]
    axis = leaf(len(left))
    return [
        Tensor((axis,), tuple(Cell(value) for _, value in left)),
        Tensor((axis,), tuple(Cell(place) for place, _ in left)),
    ]


def inverse(an: Analysis, node: Node, inputs: Sequence[Tensor]) -> Tensor:
    """The inverse of a permutation."""
    values = inputs[0].values
    if values is None or sorted(values) != list(range(len(values))):
        return Tensor(inputs[0].axes)
    return Tensor(inputs[0].axes, tuple(Cell(values.index(i)) for i in range(len(values))))


def broadcast_shape(an: Analysis, node: Node, inputs: Sequence[Tensor]) -> Tensor:
    """The shape that two shapes are broadcast to."""
    x, y = (tensor.cells for tensor in inputs)
    if x is None or y is None:
        return Tensor((Atom(None),))
    length = max(len(x), len(y))
    one = Cell(1)
    pairs = zip((one,) * (length - len(x)) + x, (one,) * (length - len(y)) + y, strict=True)
    cells = tuple(b if a.value == 1 else a for a, b in pairs)
    return Tensor((leaf(length),), cells)


RULES: dict[str, Rule] = {
    "Const": constant,
    "Shape": shape,
    "ShapeN": shape,
    "VariableShape": shape,
    "Size": size,
    "Rank": rank,
    "Range": numbers,
    "Fill": filled,
    "ZerosLike": like,
    "OnesLike": like,
    "ListDiff": difference,
    "InvertPermutation": inverse,
    "BroadcastArgs": broadcast_shape,
    **for_ops(
        """RandomUniform RandomStandardNormal TruncatedNormal RandomUniformInt
        StatelessRandomUniform StatelessRandomNormal StatelessTruncatedNormal
        StatelessRandomUniformV2 StatelessRandomNormalV2 ParameterizedTruncatedNormal
        Empty""",
        random,
    ),
}
