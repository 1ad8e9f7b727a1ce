"""Variables along an axis of which a matrix acts: projections, and whatever mixes units."""

from __future__ import annotations

import math
import mmap
import tempfile
from collections.abc import Sequence
from functools import cached_property

import numpy as np

from converter.errors import PlanError
from converter.resize.maps import Panel
from converter.rounding import round_to
from converter.variable import BLOCK_BYTES, Array, Region, Variable, regions, shape_of, whole


def multiply(variable: Variable, axis: int, panels: Sequence[Panel]) -> Variable:
    """Return a variable that matrices act on along an axis.

    A region needs all old entries along that axis. So where regions lie across it (rows of a
    kernel whose rows are mixed), the result is computed once, column by column, into a scratch
    file, and read from there.

    Raises:
        PlanError: the variable holds no real numbers.
    """
    if not variable.dtype.is_float:
        raise PlanError(
            f"{variable.name}: a matrix acts on floats only, and it is {variable.dtype}; drop it, "
            f"or choose a strategy that keeps units as they are"
        )
    length = panels[-1].new.stop
    shape = tuple(length if k == axis else size for k, size in enumerate(variable.shape))
    tiles = _Tiles(variable, axis, panels, shape)
    # Entries before the axis: a region that has one of each at a time is local.
    is_local = math.prod(variable.shape[axis:]) * variable.dtype.itemsize <= BLOCK_BYTES

    def load(region: Region) -> Array:
        trailing = zip(region[axis:], whole(shape)[axis:], strict=True)
        return tiles.load(region, through_file=not is_local and any(s != t for s, t in trailing))

    return variable.derive(load, shape=shape)


def _product(variable: Variable, axis: int, panels: Sequence[Panel], region: Region) -> Array:
    """Compute a region of the result that is whole along the axis."""
    pieces = []
    for panel in panels:
        values = variable.load((*region[:axis], panel.old, *region[axis + 1 :]))
        if panel.matrix is None:
            pieces.append(values)
            continue
        rows = np.moveaxis(np.asarray(values, np.float64), axis, -1)
        blocks = rows.reshape(*rows.shape[:-1], panel.outer, panel.matrix.shape[0], panel.inner)
        turned = np.einsum("...nk,nm->...mk", blocks, panel.matrix.values, optimize=True)
        flat = turned.reshape(*rows.shape[:-1], -1)
        pieces.append(round_to(np.moveaxis(flat, -1, axis), variable.dtype, variable.counts))
    if not pieces:
        return np.empty(shape_of(region), variable.dtype.numpy)
    return np.concatenate(pieces, axis=axis)


class _Tiles:
    """The result, computed in tiles that do not depend on what is asked for.

    How a product is rounded depends on the shapes of its operands.
    """

    def __init__(
        self, variable: Variable, axis: int, panels: Sequence[Panel], shape: tuple[int, ...]
    ) -> None:
        self._variable = variable
        self._axis = axis
        self._panels = panels
        self._shape = shape
        self._held: tuple[int, Array] | None = None
        self._values: Array | None = None

    @cached_property
    def _places(self) -> list[Region]:
        """The tiles: whole along the axis."""
        axis, shape = self._axis, self._shape
        longest = max(shape[axis], self._variable.shape[axis])
        across = [1 if k == axis else size for k, size in enumerate(shape)]
        items = max(1, 4 * BLOCK_BYTES // (longest * self._variable.dtype.itemsize))
        return [
            (*part[:axis], slice(0, shape[axis]), *part[axis + 1 :])
            for part in regions(across, items)
        ]

    def load(self, region: Region, *, through_file: bool) -> Array:
        """Return a region; through a file if it takes a little of many tiles."""
        if through_file:
            if self._values is None:
                self._values = self._computed()
            return np.array(self._values[region])
        values = np.empty(shape_of(region), self._variable.dtype.numpy)
        for number, place in enumerate(self._places):
            pairs = list(zip(place, region, strict=True))
            common = [slice(max(a.start, b.start), min(a.stop, b.stop)) for a, b in pairs]
            if any(s.start >= s.stop for s in common):
                continue
            held = self._held
            if held is None or held[0] != number:
                held = self._held = number, self._product(place)
            values[_within(common, region)] = held[1][_within(common, place)]
        return values

    def _product(self, place: Region) -> Array:
        return _product(self._variable, self._axis, self._panels, place)

    def _computed(self) -> Array:
        variable = self._variable
        with tempfile.TemporaryFile() as file:
            size = math.prod(self._shape) * variable.dtype.itemsize
            file.truncate(size)
            memory = mmap.mmap(file.fileno(), size)
        values = np.frombuffer(memory, variable.dtype.numpy).reshape(self._shape)
        for place in self._places:
            values[place] = self._product(place)
            # What is in the file need not stay in memory.
            if hasattr(memory, "madvise"):
                memory.madvise(mmap.MADV_DONTNEED)
        return values


def _within(region: Sequence[slice], origin: Region) -> Region:
    """Return a region as seen from the start of another."""
    pairs = zip(region, origin, strict=True)
    return tuple(slice(s.start - o.start, s.stop - o.start) for s, o in pairs)
