"""Variables along an axis of which a matrix acts: projections, and whatever mixes units."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence

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
    scratch = _Scratch(variable, axis, panels, shape)
    # Entries before the axis: a region that has one of each at a time is local.
    is_local = math.prod(variable.shape[axis:]) * variable.dtype.itemsize <= BLOCK_BYTES

    def load(region: Region) -> Array:
        if is_local or all(s == t for s, t in zip(region[axis:], whole(shape)[axis:], strict=True)):
            return _product(variable, axis, panels, region)
        return scratch.load(region)

    return variable.derive(load, shape=shape)


def _product(variable: Variable, axis: int, panels: Sequence[Panel], region: Region) -> Array:
    """Compute a region of the result."""
    wanted = region[axis]
    pieces = []
    for panel in panels:
        start, stop = max(wanted.start, panel.new.start), min(wanted.stop, panel.new.stop)
        if start >= stop:
            continue
        within = slice(start - panel.new.start, stop - panel.new.start)
        if panel.matrix is None:
            old = slice(panel.old.start + within.start, panel.old.start + within.stop)
            pieces.append(variable.load((*region[:axis], old, *region[axis + 1 :])))
            continue
        values = variable.load((*region[:axis], panel.old, *region[axis + 1 :]))
        rows = np.moveaxis(np.asarray(values, np.float64), axis, -1)
        blocks = rows.reshape(*rows.shape[:-1], panel.outer, panel.matrix.shape[0], panel.inner)
        turned = np.einsum("...nk,nm->...mk", blocks, panel.matrix.values, optimize=True)
        flat = turned.reshape(*rows.shape[:-1], -1)[..., within]
        pieces.append(round_to(np.moveaxis(flat, -1, axis), variable.dtype, variable.counts))
    return np.concatenate(pieces, axis=axis) if pieces else np.empty(shape_of(region))


class _Scratch:
    """The whole result in a temporary file, computed when the first region is asked for."""

    def __init__(
        self, variable: Variable, axis: int, panels: Sequence[Panel], shape: tuple[int, ...]
    ) -> None:
        self._variable = variable
        self._axis = axis
        self._panels = panels
        self._shape = shape
        self._values: Array | None = None

    def load(self, region: Region) -> Array:
        if self._values is None:
            self._values = self._computed()
        return np.array(self._values[region])

    def _computed(self) -> Array:
        variable, axis = self._variable, self._axis
        assert variable.dtype.numpy is not None
        with tempfile.TemporaryFile() as file:
            values = np.memmap(file, variable.dtype.numpy, "w+", shape=self._shape)
        longest = max(self._shape[axis], variable.shape[axis])
        across = [1 if k == axis else size for k, size in enumerate(self._shape)]
        items = max(1, 4 * BLOCK_BYTES // (longest * variable.dtype.itemsize))
        for part in regions(across, items):
            place = (*part[:axis], slice(0, self._shape[axis]), *part[axis + 1 :])
            values[place] = _product(variable, axis, self._panels, place)
        return values
