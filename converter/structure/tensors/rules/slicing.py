"""Rules of ops that take a part of a tensor: slices and lookups."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from converter.graph.node import Node, Output
from converter.structure.tensors.analysis import (
    NO_ORIGIN,
    Analysis,
    Cell,
    Origin,
    Rule,
    Tensor,
    for_ops,
)
from converter.structure.tensors.atoms import ONE, Atom, Clash, concat, cut, find, leaf, size_of
from converter.structure.tensors.rules.integers import axes_of

_MAX_DEALING = 64


class _Step(NamedTuple):
    """What a strided slice does next: pass an axis by, insert one, pick an entry, take a range."""

    what: str
    begin: Cell = Cell(0)
    end: Cell | None = None
    stride: int = 1


def strided(an: Analysis, node: Node, inputs: Sequence[Tensor]) -> Tensor:
    """Take a slice as Python writes it."""
    x = inputs[0]
    if x.axes is None:
        return _of_unknown(an, node)
    steps = _steps(node, inputs, len(x.axes))
    axes: list[Atom] = []
    origins: list[frozenset[Origin]] = []
    place = 0
    for step in steps:
        if step.what == "new":
            axes.append(ONE)
            origins.append(NO_ORIGIN)
            continue
        atom = x.axes[place]
        if step.what == "pick":
            an.touch("index", [atom], node)
        else:
            axes.append(atom if step.what == "pass" else _range(an, node, atom, step))
            origins.append(x.origin(place))
        place += 1
    cells = None
    if x.cells is not None and len(x.axes) == 1 and len(steps) == 1:
        cells = _cells(x.cells, steps[0])
    number = x.number
    return Tensor(tuple(axes), cells, number, tuple(origins) if x.origins is not None else None)


def _of_unknown(an: Analysis, node: Node) -> Tensor:
    # One element of a shape, of which nothing is known: a number all the same.
    if node.integer("shrink_axis_mask") == 1 and an.graph.declared(node, 0) is None:
        return Tensor(None)
    return Tensor(an.fresh(an.graph.declared(node, 0)))


def _steps(node: Node, inputs: Sequence[Tensor], rank: int) -> list[_Step]:
    begin, end, strides = (tensor.cells for tensor in inputs[1:4])
    given = next((c for c in (begin, end, strides) if c is not None), None)
    if given is None and inputs[1].axes:
        length = size_of(inputs[1].axes[0])
        given = None if length is None or length > 64 else (Cell(),) * length
    if given is None:
        raise Clash
    count = len(given)
    nothing = (Cell(),) * count
    begin, end = begin or nothing, end or nothing
    steps = strides or nothing
    masks = {
        key: node.integer(f"{key}_mask")
        for key in ("begin", "end", "ellipsis", "new_axis", "shrink_axis")
    }
    found: list[_Step] = []
    inserted = bin(masks["new_axis"]).count("1")
    for i in range(count):
        if masks["ellipsis"] >> i & 1:
            found += [_Step("pass")] * max(0, rank - (count - 1 - inserted))
        elif masks["new_axis"] >> i & 1:
            found.append(_Step("new"))
        elif masks["shrink_axis"] >> i & 1:
            found.append(_Step("pick", begin[i]))
        else:
            stride = steps[i].value
            found.append(
                _Step(
                    "range",
                    Cell(0) if masks["begin"] >> i & 1 else begin[i],
                    None if masks["end"] >> i & 1 else end[i],
                    0 if stride is None else stride,
                )
            )
    consumed = sum(step.what != "new" for step in found)
    if consumed > rank:
        raise Clash
    return found + [_Step("pass")] * (rank - consumed)


def _range(an: Analysis, node: Node, atom: Atom, step: _Step) -> Atom:
    """Return what a range of an axis is: all of it, a piece, or entries whose places count."""
    size = size_of(atom)
    begin = step.begin.value
    end = size if step.end is None else step.end.value
    if step.stride == 1 and begin == 0 and (step.end is None or _reaches(end, size)):
        return atom if step.end is None or end != size else an.demand(step.end, atom, node)
    is_own = step.end is not None and step.end.atom and find(step.end.atom) is find(atom)
    if step.stride == 1 and begin == 0 and is_own:
        return atom
    if step.stride == 1 and begin is not None and end is not None and size is not None:
        start, stop = (value + size if value < 0 else value for value in (begin, end))
        start, stop = max(0, min(start, size)), max(0, min(stop, size))
        if (start, stop) == (0, size):
            return atom
        before, middle, after = _pieces(an, atom, start, max(start, stop))
        an.demand(step.begin, before if begin >= 0 else concat((middle, after)), node)
        if step.end is not None and end == stop:
            an.demand(step.end, concat((before, middle)), node)
        elif step.end is not None and end < 0:
            an.demand(step.end, after, node)
        return middle
    an.touch("index", [atom], node)
    if step.stride == 1 and begin == 0 and step.end is not None:
        return an.sized(step.end, node) if (end or 0) >= 0 else Atom(None)
    if size is not None and step.stride and step.end is None and begin == 0:
        found = leaf(-(-size // abs(step.stride)))
        an.touch("index", [found], node)
        return found
    return Atom(None)


def _pieces(an: Analysis, atom: Atom, start: int, stop: int) -> tuple[Atom, Atom, Atom]:
    """Return what of an axis lies before a range, in it, and behind it."""
    if part := an.piece(atom, start, stop):
        parts = part.piece.whole.parts if part.piece is not None else ()
        at = parts.index(part)
        return concat(parts[:at]), part, concat(parts[at + 1 :])
    before, middle, after = cut(atom, start, stop)
    return before, middle, after


def _reaches(end: int | None, size: int | None) -> bool:
    return end is not None and size is not None and end >= size


def _cells(cells: tuple[Cell, ...], step: _Step) -> tuple[Cell, ...] | None:
    begin = step.begin.value
    end = len(cells) if step.end is None else step.end.value
    if step.what == "pick":
        if begin is None or not -len(cells) <= begin < len(cells):
            return None
        return (cells[begin],)
    if step.what == "pass":
        return cells
    if step.what == "new" or begin is None or end is None or not step.stride:
        return None
    if step.stride < 0:
        return cells[:: step.stride] if step.end is None and begin in (0, -1) else None
    return cells[begin : end : step.stride]


def sliced(an: Analysis, node: Node, inputs: Sequence[Tensor]) -> Tensor:
    """Take a range of each axis: where it begins, and how long it is."""
    x, begin, length = inputs
    if x.axes is None:
        return Tensor(an.fresh(an.graph.declared(node, 0)))
    rank = len(x.axes)
    begins = begin.cells or (Cell(),) * rank
    lengths = length.cells or (Cell(),) * rank
    if len(begins) != rank or len(lengths) != rank:
        raise Clash
    axes = tuple(
        _part(an, node, atom, start, count)
        for atom, start, count in zip(x.axes, begins, lengths, strict=True)
    )
    cells = None
    if x.cells is not None and rank == 1 and begins[0].value is not None:
        count = lengths[0].value
        if count is not None:
            stop = None if count == -1 else begins[0].value + count
            cells = x.cells[begins[0].value : stop]
    return Tensor(axes, cells, x.number, x.origins)


def _part(an: Analysis, node: Node, atom: Atom, begin: Cell, length: Cell) -> Atom:
    size = size_of(atom)
    if begin.value == 0 and (length.value == -1 or (size is not None and length.value == size)):
        return atom if length.value == -1 else an.demand(length, atom, node)
    if begin.value == 0 and length.atom is not None and find(length.atom) is find(atom):
        return atom
    if begin.value is not None and length.value is not None and size is not None:
        stop = size if length.value == -1 else begin.value + length.value
        if not 0 <= begin.value <= stop <= size:
            raise Clash
        before, middle, _ = _pieces(an, atom, begin.value, stop)
        an.demand(begin, before, node)
        return an.demand(length, middle, node)
    an.touch("index", [atom], node)
    return Atom(None) if length.value == -1 else an.sized(length, node)


def gather(an: Analysis, node: Node, inputs: Sequence[Tensor]) -> Tensor:
    """Look up rows by their numbers."""
    x, indices = inputs[:2]
    if x.axes is None or indices.axes is None:
        for atom in x.axes or ():
            an.opaque(atom, node)
        return Tensor(None)
    batch = node.integer("batch_dims")
    axis = axes_of(inputs[2], len(x.axes))[0] if len(inputs) > 2 else 0
    if batch < 0 or batch > min(axis, len(indices.axes)):
        raise Clash
    for place in range(batch):
        an.tie(x.axes[place], indices.axes[place], node)
    is_table = an.is_weight(node.inputs[0])
    an.touch("lookup" if is_table else "index", [x.axes[axis]], node)
    origins = None
    if is_table and not an.is_weight(node.inputs[1]):
        an.use(x.origin(axis), x.axes[axis], "consume", node)
        for place, atom in enumerate(x.axes):
            if place != axis and an.is_data(node.inputs[1]):
                an.use(x.origin(place), atom, "produce", node)
    if is_table and len(node.inputs[1].node.inputs) > 1:
        _deal(an, node, x.axes[axis])
    middle = indices.axes[batch:]
    if not an.is_data(node.inputs[1]):
        # The numbers are written down: each entry is another row, and nobody has told a new one's.
        an.touch("index", middle, node)
    axes = (*x.axes[:axis], *middle, *x.axes[axis + 1 :])
    if x.origins is not None and not an.is_data(node.inputs[1]):
        origins = (*x.origins[:axis], *(NO_ORIGIN for _ in middle), *x.origins[axis + 1 :])
    return Tensor(axes, _looked_up(x, indices), x.number, origins)


def _deal(an: Analysis, node: Node, rows: Atom) -> None:
    """Look up in one slice of a table, by numbers that were dealt out to all slices.

    Where they are dealt out by ranges, somebody has to say how long the whole table is. Else
    neighbours lie in different slices, and rows cannot be added at the end.
    """
    piece = find(rows).piece
    if piece is None or node.inputs[1].node.op != "DynamicPartition":
        return
    total, by_range = size_of(piece.whole.full), False
    waiting = [node.inputs[1].node]
    seen: set[Node] = set()
    while waiting and len(seen) < _MAX_DEALING:
        current = waiting.pop()
        if current in seen:
            continue
        seen.add(current)
        cells = an.tensor(Output(current, 0)).cells or ()
        if current.op == "Const" and len(cells) == 1 and cells[0].value == total:
            an.demand(cells[0], piece.whole.full, node)
            by_range = True
        if current.op == "Shape" and an.is_weight(current.inputs[0]):
            by_range = True
        waiting += [source for source, _ in current.inputs]
    if not by_range:
        an.touch("index", [piece.whole.full], node)


def _looked_up(x: Tensor, indices: Tensor) -> tuple[Cell, ...] | None:
    places = indices.values
    if x.cells is None or places is None or len(x.axes or ()) != 1:
        return None
    if any(not 0 <= place < len(x.cells) for place in places):
        return None
    return tuple(x.cells[place] for place in places)


def gather_nd(an: Analysis, node: Node, inputs: Sequence[Tensor]) -> Tensor:
    """Look up entries by their coordinates."""
    x, indices = inputs
    if x.axes is None or not indices.axes:
        raise Clash
    depth = size_of(indices.axes[-1])
    if depth is None or depth > len(x.axes):
        raise Clash
    is_table = an.is_weight(node.inputs[0])
    an.touch("lookup" if is_table else "index", x.axes[:depth], node)
    if is_table:
        for place, atom in enumerate(x.axes):
            an.use(x.origin(place), atom, "consume" if place < depth else "produce", node)
    return Tensor((*indices.axes[:-1], *x.axes[depth:]))


def scatter_nd(an: Analysis, node: Node, inputs: Sequence[Tensor]) -> Tensor:
    """Add entries to zeros, at given coordinates."""
    indices, updates, shape = inputs
    if not indices.axes or updates.axes is None or shape.cells is None:
        raise Clash
    depth = size_of(indices.axes[-1])
    if depth is None or depth > len(shape.cells):
        raise Clash
    axes = [an.sized(cell, node) for cell in shape.cells]
    rest = updates.axes[len(indices.axes) - 1 :]
    for own, other in zip(axes[depth:], rest, strict=True):
        an.tie(own, other, node)
    an.touch("index", axes[:depth], node)
    return Tensor(tuple(axes))


def partition(an: Analysis, node: Node, inputs: Sequence[Tensor]) -> list[Tensor]:
    """Sort rows into several tensors by a number that each has."""
    data, groups = inputs
    if data.axes is None or groups.axes is None:
        raise Clash
    rest = data.axes[len(groups.axes) :]
    an.touch("index", data.axes[: len(groups.axes)], node)
    count = node.integer("num_partitions")
    return [Tensor((Atom(None), *rest)) for _ in range(min(count, 1 << 16))]


def stitch(an: Analysis, node: Node, inputs: Sequence[Tensor]) -> Tensor:
    """Put rows of several tensors in the places that are given for each."""
    count = len(inputs) // 2
    rests = []
    for indices, data in zip(inputs[:count], inputs[count:], strict=True):
        if indices.axes is not None and data.axes is not None:
            rests.append(Tensor(data.axes[len(indices.axes) :], origins=None))
    rest = an.tie_all(rests, node)
    if rest is None:
        raise Clash
    cells = _stitched(inputs[:count], inputs[count:]) if not rest else None
    return Tensor((Atom(None) if cells is None else leaf(len(cells)), *rest), cells)


def _stitched(places: Sequence[Tensor], parts: Sequence[Tensor]) -> tuple[Cell, ...] | None:
    """Put integers in their places: so the gradient of a reduction makes a shape."""
    found: dict[int, Cell] = {}
    for indices, data in zip(places, parts, strict=True):
        if indices.values is None or data.cells is None or len(data.cells) != len(indices.values):
            return None
        found.update(zip(indices.values, data.cells, strict=True))
    if sorted(found) != list(range(len(found))):
        return None
    return tuple(found[place] for place in range(len(found)))


def unique(an: Analysis, node: Node, inputs: Sequence[Tensor]) -> list[Tensor]:
    """List the different entries, and for each entry which of these it is."""
    x = inputs[0]
    if x.axes is None:
        return [Tensor((Atom(None),))] * 2
    an.touch("index", x.axes, node)
    fresh = Tensor((Atom(None),))
    return [fresh, Tensor(x.axes), fresh]


RULES: dict[str, Rule] = {
    "StridedSlice": strided,
    "Slice": sliced,
    **for_ops("Gather GatherV2 ResourceGather", gather),
    **for_ops("GatherNd ResourceGatherNd", gather_nd),
    "ScatterNd": scatter_nd,
    "DynamicPartition": partition,
    **for_ops("DynamicStitch ParallelDynamicStitch", stitch),
    **for_ops("Unique UniqueV2 UniqueWithCounts", unique),
}
