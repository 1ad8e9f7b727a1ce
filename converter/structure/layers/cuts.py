"""Which entries of a variable an op takes that takes a part of it, such as one gate of a cell."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from types import EllipsisType
from typing import NamedTuple

import numpy as np

from converter.graph.node import Node, Output
from converter.graph.ops import PASSING, RESHAPES, SLICES, SPLITS, ops
from converter.structure.tensors.analysis import Analysis, Role
from converter.structure.tensors.atoms import Atom, Clash, size_of, terms
from converter.variable import Array

_SAME = PASSING | ops("Cast")
_CUTS = _SAME | RESHAPES | SPLITS | SLICES | ops("Transpose Unpack")
_MAX_PASSED = 32
_MAX_RANK = 16
_MAX_SIZE = 1 << 22


class Cut(NamedTuple):
    """A part of the units that a variable has in one axis, or in several that count as one.

    Attributes:
        start: the first of them.
        size: how many they are.
        total: how many the variable has.
    """

    start: int
    size: int
    total: int


def whole_axes(analysis: Analysis) -> dict[tuple[str, int], Atom]:
    """Return the axes of variables; of those that are stored in slices, the longest slice."""
    found: dict[tuple[str, int], Atom] = {}
    for tensor in analysis.variables.values():
        for atom, origins in zip(tensor.axes or (), tensor.origins or (), strict=False):
            for variable, axis, _ in origins:
                known = found.setdefault((variable, axis), atom)
                if (size_of(known) or 0) < (size_of(atom) or 0):
                    found[variable, axis] = atom
    return found


def takes_blocks(
    analysis: Analysis, nodes: Iterable[Node], axes: Mapping[tuple[str, int], Atom]
) -> bool:
    """Whether kernels are parts of axes of which several have the same units, as gates do.

    Args:
        analysis: of the graph.
        nodes: that take the kernels.
        axes: of all variables.
    """
    roles = (role for node in nodes for role in analysis.roles.get(node, ()))
    return any(role.use == "produce" and _is_block(role, axes) for role in roles)


def _is_block(role: Role, axes: Mapping[tuple[str, int], Atom]) -> bool:
    whole = axes.get(role.origin[:2])
    if whole is None or (size_of(role.atom) or 0) >= (size_of(whole) or 0):
        return False
    try:
        parts = terms(whole)
    except Clash:
        return False
    counts = Counter(parts)
    return all(len(part) > 1 or counts[part] > 1 for part in parts)


def places_of(analysis: Analysis, node: Node, variable: str) -> list[int]:
    """Return which inputs of a node are a variable, or a part of it."""
    ways = (_way(analysis, output, variable) for output in node.inputs)
    return [place for place, way in enumerate(ways) if way is not None]


def cut_of(
    analysis: Analysis, node: Node, variable: str, shape: Sequence[int], axis: int
) -> Cut | None:
    """Return what a node takes of an axis of a variable; None where that is no single piece.

    Of a vector that is a row of a variable, all rows count as one axis.

    Args:
        analysis: of the graph.
        node: what takes the variable.
        variable: its name.
        shape: its shape.
        axis: the axis.
    """
    taken = next(filter(None, (_taken(analysis, o, variable, shape) for o in node.inputs)), None)
    if taken is None:
        return None
    rows = [place for place, of in enumerate(taken) if len(of) == 1 < shape[place]]
    start, total = 0, 1
    for place in (*(row for row in rows if row < axis), axis):
        start = start * shape[place] + taken[place].start
        total *= shape[place]
    return Cut(start, len(taken[axis]), total)


def _taken(
    analysis: Analysis, output: Output, variable: str, shape: Sequence[int]
) -> list[range] | None:
    """Return what a tensor is of each axis of a variable; None where it is no part of it."""
    way = _way(analysis, output, variable)
    is_small = max(shape, default=0) <= _MAX_SIZE and math.prod(shape) < 1 << 62
    if way is None or len(shape) > _MAX_RANK or not is_small:
        return None
    # Each of these says of each entry where it lies along one axis: in the memory of that axis.
    places = [
        np.broadcast_to(
            np.arange(size).reshape([-1 if i == axis else 1 for i in range(len(shape))]), shape
        )
        for axis, size in enumerate(shape)
    ]
    for step in way:
        try:
            places = [_after(analysis, step, place) for place in places]
        except (ValueError, IndexError, TypeError, ZeroDivisionError):
            return None
    found = [_along(place) for place in places]
    return None if None in found else [along for along in found if along is not None]


def _way(analysis: Analysis, output: Output, variable: str) -> list[Output] | None:
    """Return the ops through which a variable comes to be a tensor, in their order."""
    found: list[Output] = []
    for _ in range(_MAX_PASSED):
        node = output.node
        if node in analysis.variables:
            origins = analysis.variables[node].origins or ()
            is_it = any(origin.variable == variable for axis in origins for origin in axis)
            return found[::-1] if is_it else None
        if node.op not in _CUTS or not node.inputs:
            return None
        found.append(output)
        output = node.inputs[1 if node.op == "Split" and len(node.inputs) > 1 else 0]
    return None


def _after(analysis: Analysis, step: Output, x: Array) -> Array:
    """Return what an op makes of an array.

    Raises:
        ValueError, IndexError, TypeError, ZeroDivisionError: it does not do this to such an array,
            or it is not known what it does.
    """
    node, port = step
    if node.op in _SAME:
        return x
    if node.op in RESHAPES:
        return _reshaped(analysis, step, x)
    if node.op == "Unpack":
        part: Array = np.moveaxis(x, node.integer("axis"), 0)[port]
        return part
    if node.op == "Transpose":
        return np.transpose(x, _numbers(analysis, node, 1))
    if node.op in SPLITS:
        return _split(analysis, step, x)
    begins = _numbers(analysis, node, 1)
    if node.op == "Slice":
        pairs = zip(begins, _numbers(analysis, node, 2), strict=True)
        return x[tuple(slice(b, None if n < 0 else b + n) for b, n in pairs)]
    return x[_index(node, begins, _numbers(analysis, node, 2), _numbers(analysis, node, 3))]


def _numbers(analysis: Analysis, node: Node, place: int) -> list[int]:
    found = analysis.tensor(node.inputs[place]).values
    if found is None:
        raise ValueError(f"{node.name}: its input {place} is not known")
    return found


def _split(analysis: Analysis, step: Output, x: Array) -> Array:
    node, port = step
    is_even = node.op == "Split"
    axis = _numbers(analysis, node, 0 if is_even else 2)[0]
    size = x.shape[axis]
    if is_even:
        sizes = [size // node.integer("num_split")] * (port + 1)
    else:
        sizes = _numbers(analysis, node, 1)
        rest = size - sum(size for size in sizes if size >= 0)
        sizes = [rest if size < 0 else size for size in sizes]
    start = sum(sizes[:port])
    return np.moveaxis(np.moveaxis(x, axis, 0)[start : start + sizes[port]], 0, axis)


def _index(
    node: Node, begins: Sequence[int], ends: Sequence[int], strides: Sequence[int]
) -> tuple[int | slice | EllipsisType | None, ...]:
    """Return a strided slice as Python writes it."""
    found: list[int | slice | EllipsisType | None] = []
    for place, (begin, end, stride) in enumerate(zip(begins, ends, strides, strict=True)):
        is_masked = {
            key: node.integer(f"{key}_mask") >> place & 1
            for key in ("begin", "end", "ellipsis", "new_axis", "shrink_axis")
        }
        if is_masked["ellipsis"]:
            found.append(...)
        elif is_masked["new_axis"]:
            found.append(None)
        elif is_masked["shrink_axis"]:
            found.append(begin)
        else:
            first = None if is_masked["begin"] else begin
            found.append(slice(first, None if is_masked["end"] else end, stride))
    return tuple(found)


def _reshaped(analysis: Analysis, step: Output, x: Array) -> Array:
    """Take axes of one entry away, and put others in."""
    sizes = [size_of(atom) for atom in analysis.tensor(step).axes or ()]
    x = x.squeeze()
    if [size for size in sizes if size != 1] != list(x.shape):
        raise ValueError
    return x[tuple(None if size == 1 else slice(None) for size in sizes)]


def _along(place: Array) -> range | None:
    """Return what the entries of an array count from and to along one of its axes."""
    if not place.size:
        return None
    varies = [i for i, size in enumerate(place.shape) if size > 1 and place.strides[i]]
    first = int(place[(0,) * place.ndim])
    if not varies:
        return range(first, first + 1)
    if len(varies) > 1 or place.strides[varies[0]] != place.itemsize:
        return None
    return range(first, first + place.shape[varies[0]])
