"""Rules of ops that move entries around without computing with them."""

from __future__ import annotations

from collections.abc import Sequence

from converter.graph.node import Node
from converter.structure.tensors.analysis import (
    NO_ORIGIN,
    Analysis,
    Axes,
    Cell,
    Conflict,
    Even,
    Origin,
    Origins,
    Rule,
    Tensor,
    for_ops,
    joined,
    whole,
)
from converter.structure.tensors.atoms import (
    ONE,
    Atom,
    Clash,
    concat,
    cut,
    find,
    leaf,
    product,
    size_of,
)
from converter.structure.tensors.flow import Kind
from converter.structure.tensors.rules.integers import axes_of, sized_axes

_MAX_CELLS = 256


class _Side:
    """The axes on one side of a reshape that are not matched yet, and where they come from."""

    def __init__(self, axes: Sequence[Atom], places: Sequence[int]) -> None:
        self.axes = list(axes)
        self.places = list(places)

    def take(self, end: int) -> tuple[Atom, int]:
        return self.axes.pop(end), self.places.pop(end)


def reshape(an: Analysis, node: Node, inputs: Sequence[Tensor]) -> Tensor:
    """Read the entries, in the same order, as a tensor of another shape."""
    x, target = inputs[:2]
    axes = _wanted(an, node, target)
    if x.axes is None or axes is None:
        for atom in x.axes or ():
            an.opaque(atom, node)
        return Tensor(axes, x.cells, x.number)
    if x.number is not None and x.origins is None and not an.is_data(node.inputs[0]):
        # The same number everywhere: which entry becomes which does not matter.
        an.lengthen(target, axes)
        return Tensor(axes, x.cells, x.number)
    axes = _named(axes, target)
    left = _Side(*_large(x.axes))
    right = _Side(*_large(axes))
    groups: list[tuple[list[int], list[int]]] = []
    _match_first(an, node, left, right, target, groups)
    for end in (-1, 0):
        _match(an, node, left, right, end, groups)
    if left.axes and right.axes:
        an.tie(product(left.axes), product(right.axes), node)
        groups.append((left.places, right.places))
    an.lengthen(target, axes)
    origins = _regrouped(x.origins, groups, len(axes))
    return Tensor(axes, x.cells, x.number, origins, x.element)


def _wanted(an: Analysis, node: Node, target: Tensor) -> Axes | None:
    """Return new axes of the sizes that a reshape asks for."""
    declared = an.graph.declared(node, 0)
    if target.cells is None:
        return an.fresh(declared) or sized_axes(an, node, target)
    found = []
    for place, cell in enumerate(target.cells):
        size = None if cell.value == -1 else cell.value
        if size is None and declared is not None and len(declared) == len(target.cells):
            size = declared[place]
        found.append(an.demand(cell, leaf(size), node))
    return tuple(found)


def _named(axes: Axes, target: Tensor) -> Axes:
    """Put the axis whose length was asked for in the place of one of unknown length."""
    if target.cells is None:
        return axes
    return tuple(
        cell.atom if cell.atom is not None and size_of(atom) is None else atom
        for atom, cell in zip(axes, target.cells, strict=True)
    )


def _large(axes: Sequence[Atom]) -> tuple[list[Atom], list[int]]:
    pairs = [(atom, place) for place, atom in enumerate(axes) if size_of(atom) != 1]
    return [atom for atom, _ in pairs], [place for _, place in pairs]


def _match_first(
    an: Analysis,
    node: Node,
    left: _Side,
    right: _Side,
    target: Tensor,
    groups: list[tuple[list[int], list[int]]],
) -> None:
    """Match the first axis where the first ones were multiplied to get its length."""
    multiple = target.cells[0].multiple if target.cells else None
    if multiple is None or not right.places or right.places[0] != 0:
        return
    known, count, met = 1, 0, False
    for atom in left.axes:
        count += 1
        size = size_of(atom)
        if size is not None:
            known *= size
        elif met or find(atom) is not find(multiple[0]):
            return
        else:
            met = True
        if met and known == multiple[1]:
            break
    else:
        return
    taken = [left.take(0) for _ in range(count)]
    atom, place = right.take(0)
    an.tie(product([atom for atom, _ in taken]), atom, node)
    groups.append(([place for _, place in taken], [place]))


def _match(
    an: Analysis,
    node: Node,
    left: _Side,
    right: _Side,
    end: int,
    groups: list[tuple[list[int], list[int]]],
) -> None:
    """Match axes from one end for as long as their sizes say which are which."""
    while left.axes and right.axes:
        a, b = left.axes[end], right.axes[end]
        size_a, size_b = size_of(a), size_of(b)
        if find(a) is find(b) or (size_a is not None and size_a == size_b):
            an.tie(a, b, node)
            groups.append(([left.take(end)[1]], [right.take(end)[1]]))
            continue
        counts = _group(left, right, end)
        if counts is None:
            return
        taken = [left.take(end) for _ in range(counts[0])]
        given = [right.take(end) for _ in range(counts[1])]
        if end == -1:
            taken.reverse()
            given.reverse()
        an.tie(product(a for a, _ in taken), product(b for b, _ in given), node)
        groups.append(([place for _, place in taken], [place for _, place in given]))


def _group(left: _Side, right: _Side, end: int) -> tuple[int, int] | None:
    """Return how many axes of each side have the same number of entries together."""
    totals, counts = [1, 1], [0, 0]
    sides = (left, right)
    which = 0
    while True:
        if counts[which] == len(sides[which].axes):
            return None
        at = counts[which] if end == 0 else -1 - counts[which]
        size = size_of(sides[which].axes[at])
        if not size:
            return None
        totals[which] *= size
        counts[which] += 1
        if totals[0] == totals[1]:
            return counts[0], counts[1]
        which = int(totals[0] > totals[1])


def _regrouped(
    origins: Origins | None, groups: Sequence[tuple[Sequence[int], Sequence[int]]], rank: int
) -> Origins | None:
    if origins is None:
        return None
    found: list[frozenset[Origin]] = [NO_ORIGIN] * rank
    for taken, given in groups:
        joint = joined(origins[place] for place in taken)
        for place in given:
            found[place] = joint
    return tuple(found)


def transpose(an: Analysis, node: Node, inputs: Sequence[Tensor]) -> Tensor:
    """Order the axes anew."""
    x, order = inputs
    if x.axes is None:
        return Tensor(None)
    values = order.values
    if values is None and len(x.axes) > 1:
        raise Clash
    places = [value % len(x.axes) for value in values or range(len(x.axes))]
    if sorted(places) != list(range(len(x.axes))):
        raise Clash
    origins = x.origins and tuple(x.origins[place] for place in places)
    return Tensor(tuple(x.axes[place] for place in places), number=x.number, origins=origins)


def expand(an: Analysis, node: Node, inputs: Sequence[Tensor]) -> Tensor:
    """Insert an axis of one entry."""
    x = inputs[0]
    if x.axes is None:
        return Tensor(None)
    rank = len(x.axes) + 1
    place = axes_of(inputs[1], rank)[0]
    origins = x.origins and (*x.origins[:place], NO_ORIGIN, *x.origins[place:])
    axes = (*x.axes[:place], ONE, *x.axes[place:])
    return Tensor(axes, x.cells, x.number, origins)


def squeeze(an: Analysis, node: Node, inputs: Sequence[Tensor]) -> Tensor:
    """Take away axes of one entry."""
    x = inputs[0]
    if x.axes is None:
        return Tensor(None)
    named = node.integers("squeeze_dims") or node.integers("axis")
    rank = len(x.axes)
    if named:
        gone = {value % rank for value in named if -rank <= value < rank}
        for place in gone:
            an.tie(x.axes[place], ONE, node)
    else:
        gone = {place for place, atom in enumerate(x.axes) if size_of(atom) == 1}
        if any(size_of(atom) is None for atom in x.axes):
            declared = an.graph.declared(node, 0)
            if declared is None or len(declared) != rank - len(gone):
                raise Clash
    kept = [place for place in range(rank) if place not in gone]
    origins = x.origins and tuple(x.origins[place] for place in kept)
    return Tensor(tuple(x.axes[place] for place in kept), x.cells, x.number, origins)


def concatenate(an: Analysis, node: Node, inputs: Sequence[Tensor]) -> Tensor:
    """Join tensors along an axis."""
    values, axis = (inputs[1:], inputs[0]) if node.op == "Concat" else (inputs[:-1], inputs[-1])
    ranks = {len(tensor.axes) for tensor in values if tensor.axes is not None}
    if len(ranks) != 1:
        raise Clash
    rank = ranks.pop()
    place = axes_of(axis, rank)[0]
    known = [tensor.axes or (Atom(None),) * rank for tensor in values]
    axes = []
    for number in range(rank):
        pieces = [axes_[number] for axes_ in known]
        if number == place:
            axes.append(concat(pieces))
            continue
        for piece in pieces[1:]:
            an.tie(pieces[0], piece, node)
        axes.append(pieces[0])
    outputs = node.inputs[1:] if node.op == "Concat" else node.inputs[:-1]
    for output, tensor in zip(outputs, values, strict=True):
        if an.kind(output) < Kind.WEIGHT and tensor.number != 0:
            # What stands beside data is no data that could be mixed.
            an.touch("affine" if tensor.number is not None else "constant", tensor.axes or (), node)
    cells = _joined_cells(values) if rank == 1 else _joined_rows(values, axes[:place])
    return Tensor(tuple(axes), cells, _same(values), _joint(values, rank))


def _joined_cells(values: Sequence[Tensor]) -> tuple[Cell, ...] | None:
    """Join integers; what is not known, such as the size of a batch, hides the others not."""
    found: list[Cell] = []
    for tensor in values:
        count = size_of(tensor.axes[0]) if tensor.axes else None
        if tensor.cells is not None:
            found += tensor.cells
        elif count is None or count > _MAX_CELLS:
            return None
        else:
            found += [Cell()] * count
    is_known = any(tensor.cells is not None for tensor in values)
    return tuple(found) if is_known and len(found) <= _MAX_CELLS else None


def _joined_rows(values: Sequence[Tensor], outer: Sequence[Atom]) -> tuple[Cell, ...] | None:
    """Join the rows of tables of integers, such as those of how much is padded."""
    count = whole(outer)
    tables = [tensor.cells for tensor in values if tensor.cells is not None]
    length = sum(map(len, tables))
    if not count or len(tables) != len(values) or length > _MAX_CELLS:
        return None
    if any(len(table) % count for table in tables):
        return None
    found: list[Cell] = []
    for row in range(count):
        for table in tables:
            each = len(table) // count
            found += table[row * each : (row + 1) * each]
    return tuple(found)


def _same(values: Sequence[Tensor]) -> float | None:
    numbers = {tensor.number for tensor in values}
    return numbers.pop() if len(numbers) == 1 else None


def _joint(values: Sequence[Tensor], rank: int) -> Origins | None:
    if all(tensor.origins is None for tensor in values):
        return None
    return tuple(joined(tensor.origin(axis) for tensor in values) for axis in range(rank))


def split(an: Analysis, node: Node, inputs: Sequence[Tensor]) -> list[Tensor]:
    """Cut a tensor into pieces of one axis."""
    if node.op == "Split":
        axis, x, sizes = inputs[0], inputs[1], None
    else:
        x, sizes, axis = inputs[:3]
    if x.axes is None:
        raise Clash
    place = axes_of(axis, len(x.axes))[0]
    whole = x.axes[place]
    total = size_of(whole)
    count = node.integer("num_split") or node.integer("num_outputs") or node.integer("num_splits")
    lengths: list[int] | None
    if sizes is None:
        lengths = None if total is None or count < 1 else [total // count] * min(count, total)
    else:
        lengths = sizes.values
        if lengths is not None and -1 in lengths and total is not None:
            rest = total - sum(length for length in lengths if length != -1)
            lengths = [rest if length == -1 else length for length in lengths]
    if lengths is None or total is None:
        raise Clash
    if sum(lengths) != total:
        an.conflicts.append(Conflict(node, (sum(lengths), total)))
        raise Clash
    pieces = _cut(whole, lengths)
    if sizes is None:
        an.evens.append(Even(node, tuple(pieces)))
    if sizes is not None and sizes.cells is not None:
        for cell, piece in zip(sizes.cells, pieces, strict=True):
            an.demand(cell, piece, node)
    return [
        Tensor((*x.axes[:place], piece, *x.axes[place + 1 :]), None, x.number, x.origins)
        for piece in pieces
    ]


def _cut(axis: Atom, lengths: Sequence[int]) -> list[Atom]:
    """Cut an axis into pieces of the given lengths."""
    places, at = [], 0
    for length in lengths[:-1]:
        at += length
        places.append(at)
    return cut(axis, *places)


def unpack(an: Analysis, node: Node, inputs: Sequence[Tensor]) -> list[Tensor]:
    """Give each entry of an axis by itself."""
    x = inputs[0]
    if x.axes is None:
        raise Clash
    rank = len(x.axes)
    axis = node.integer("axis") % rank
    an.touch("index", [x.axes[axis]], node)
    axes = x.axes[:axis] + x.axes[axis + 1 :]
    origins = x.origins and x.origins[:axis] + x.origins[axis + 1 :]
    count = node.integer("num")
    if x.cells is not None and rank == 1 and len(x.cells) == count:
        return [Tensor(axes, (cell,)) for cell in x.cells]
    return [Tensor(axes, None, x.number, origins)] * min(count, 1 << 16)


def pack(an: Analysis, node: Node, inputs: Sequence[Tensor]) -> Tensor:
    """Stack tensors along a new axis."""
    axes = an.tie_all(inputs, node)
    if axes is None:
        return Tensor(None)
    axis = node.integer("axis") % (len(axes) + 1)
    new = leaf(len(inputs))
    an.touch("index", [new], node)
    cells = None
    if not axes and len(inputs) <= _MAX_CELLS:
        cells = tuple(tensor.cells[0] if tensor.cells else Cell() for tensor in inputs)
    elif axis == 0 and sum(len(tensor.cells or ()) for tensor in inputs) <= _MAX_CELLS:
        # Rows, such as those of how much is padded before and after each axis.
        rows = [tensor.cells for tensor in inputs if tensor.cells is not None]
        cells = tuple(cell for row in rows for cell in row) if len(rows) == len(inputs) else None
    origins = _joint(inputs, len(axes))
    if origins is not None:
        origins = (*origins[:axis], NO_ORIGIN, *origins[axis:])
    return Tensor((*axes[:axis], new, *axes[axis:]), cells, _same(inputs), origins)


def tile(an: Analysis, node: Node, inputs: Sequence[Tensor]) -> Tensor:
    """Repeat a tensor along its axes."""
    x, counts = inputs
    if x.axes is None or counts.cells is None or len(counts.cells) != len(x.axes):
        raise Clash
    axes = []
    for atom, cell in zip(x.axes, counts.cells, strict=True):
        if cell.value == 1:
            axes.append(atom)
        elif find(atom) is ONE:
            axes.append(an.sized(cell, node))
        elif cell.value is None and cell.atom is None:
            raise Clash
        else:
            times = cell.atom if cell.atom is not None else leaf(cell.value)
            if cell.atom is None:
                # How often is written down, and no width.
                an.touch("fixed", [times], node)
            axes.append(product((times, atom)))
    return Tensor(tuple(axes), None, x.number, x.origins)


def broadcast_to(an: Analysis, node: Node, inputs: Sequence[Tensor]) -> Tensor:
    """Repeat what is one entry until it has a given shape."""
    x, shape = inputs
    wanted = sized_axes(an, node, shape)
    if x.axes is None or wanted is None or len(wanted) < len(x.axes):
        raise Clash
    axes = list(wanted)
    for place in range(1, len(x.axes) + 1):
        if find(x.axes[-place]) is not ONE:
            axes[-place] = x.axes[-place]
    origins = x.origins and (*(NO_ORIGIN,) * (len(axes) - len(x.axes)), *x.origins)
    return Tensor(tuple(axes), None, x.number, origins)


def diagonal(an: Analysis, node: Node, inputs: Sequence[Tensor]) -> Tensor:
    """Look at the place of each entry in a matrix."""
    x = inputs[0]
    if x.axes is None:
        raise Clash
    an.touch("index", x.axes[-2:], node)
    return Tensor(x.axes, origins=x.origins)


def one_hot(an: Analysis, node: Node, inputs: Sequence[Tensor]) -> Tensor:
    """Make a vector of each index, with a one in its place."""
    indices, depth = inputs[:2]
    if indices.axes is None:
        return Tensor(None)
    new = an.sized(depth.cells[0], node) if depth.cells else Atom(None)
    an.touch("lookup", [new], node)
    axis = node.integer("axis", -1) % (len(indices.axes) + 1)
    return Tensor((*indices.axes[:axis], new, *indices.axes[axis:]))


def where(an: Analysis, node: Node, inputs: Sequence[Tensor]) -> Tensor:
    """List the places of what is not zero."""
    axes = inputs[0].axes
    if axes is None:
        return Tensor((Atom(None), Atom(None)))
    an.touch("index", axes, node)
    return Tensor((Atom(None), leaf(len(axes))))


RULES: dict[str, Rule] = {
    "Reshape": reshape,
    **for_ops("Transpose ConjugateTranspose", transpose),
    "ExpandDims": expand,
    "Squeeze": squeeze,
    **for_ops("Concat ConcatV2", concatenate),
    **for_ops("Split SplitV", split),
    "Unpack": unpack,
    **for_ops("Pack ParallelConcat", pack),
    "Tile": tile,
    "BroadcastTo": broadcast_to,
    **for_ops("MatrixBandPart MatrixSetDiag", diagonal),
    "OneHot": one_hot,
    "Where": where,
}
