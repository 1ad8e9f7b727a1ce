"""What the variables of a model hold for the units of a width: to choose or mix units by."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from converter.variable import BLOCK_BYTES, Array, Region, Variable, regions, whole

if TYPE_CHECKING:
    from converter.checkpoint import Checkpoint
    from converter.structure.axes.axis import Axis, Use
    from converter.structure.structure import Structure


@dataclass(frozen=True)
class Consumer:
    """A variable of the model that consumes the units of a width.

    Attributes:
        variable: which.
        axis: along which it consumes them.
        places: where the units stand on that axis: int64 of shape (times, units).
        has_bias: whether a bias behind it can take what is constant in what it consumes.
    """

    variable: Variable
    axis: int
    places: Array
    has_bias: bool

    @property
    def length(self) -> int:
        """How many entries the axis has, those of other widths included."""
        return self.variable.shape[self.axis]

    def gram(self) -> Array:
        """Return the products of all entries of the axis with each other: float64 (length, length).

        They are summed over all else that the variable has.
        """
        total = np.zeros((self.length, self.length))
        for region in _whole_along(self.variable, self.axis):
            values = np.asarray(self.variable.read(region), np.float64)
            lines = np.moveaxis(values, self.axis, 0).reshape(self.length, -1)
            total += lines @ lines.T
        return total

    def squares(self) -> Array:
        """Return the sum of the squares of each entry of the axis: float64 (length,)."""
        return _squares(self.variable, self.axis)


@dataclass(frozen=True)
class Coupled:
    """The entries of all variables of the model that belong to the units of one width.

    Slots and averages are not among them. Nothing is read before a method is called.

    Attributes:
        checkpoint: the variables.
        structure: their axes.
        width: the name of the width.
    """

    checkpoint: Checkpoint
    structure: Structure
    width: str

    @property
    def size(self) -> int:
        """How many units there are."""
        return self.structure.widths[self.width].size

    def random(self, seed: int) -> np.random.Generator:
        """Return a stream of chance of its own, which depends on the seed and its name alone."""
        # Imported where something is drawn: plugins are to load at once.
        from converter.drawing import random_stream

        return random_stream(seed, self.width, "units")

    def squares(self, *uses: Use) -> Array:
        """Return the sum of the squares of all entries of each unit: float64 of shape (n,).

        Args:
            uses: which axes count; all for none.
        """
        total = np.zeros(self.size)
        for variable, number, places in self._places(uses):
            total += _squares(variable, number)[places].sum(axis=0)
        return total

    def consumers(self) -> Iterator[Consumer]:
        """Yield the variables of the model that consume the units. It reads no values.

        Those are not among them that make the units on the same axis, as queries and keys do.
        """
        from converter.structure.biases import bias_of

        for variable, number, places in self._places(("consume",)):
            used = self.structure.uses.get(variable.name, ())
            if used and set(used[number].get(self.width, ())) == {"consume"}:
                bias = bias_of(self.structure, self.checkpoint, variable.name, number)
                yield Consumer(variable, number, places, bias is not None)

    def rows(self, *uses: Use) -> Iterator[Array]:
        """Yield all entries as rows: float64 of shape (m, n), a column for each unit.

        Args:
            uses: which axes count; all for none.
        """
        for variable, number, places in self._places(uses):
            for region in _whole_along(variable, number):
                values = np.asarray(variable.read(region), np.float64)
                lines = np.moveaxis(values, number, -1)
                for one in places:
                    yield lines[..., one].reshape(-1, self.size)

    def _places(self, uses: tuple[Use, ...]) -> Iterator[tuple[Variable, int, Array]]:
        roles = self.checkpoint.roles()
        for name, axes in self.structure.axes.items():
            variable = self.checkpoint[name]
            if roles[name].kind not in ("model", "batch_statistic") or not variable.dtype.is_float:
                continue
            used = self.structure.uses.get(name, ({},) * len(axes))
            for number, axis in enumerate(axes):
                found = used[number].get(self.width, ())
                # What an axis does that nothing is known of may be any of them.
                wanted = not uses or not found or not set(uses).isdisjoint(found)
                if self.width in axis.widths() and wanted:
                    yield variable, number, self._on(axis)

    def _on(self, axis: Axis) -> Array:
        from converter.resize.maps import places_of

        return places_of(axis, self.structure.sizes, self.width)


def _squares(variable: Variable, number: int) -> Array:
    """Return the sum of the squares of each entry of an axis."""
    sums = np.zeros(variable.shape[number])
    for region in regions(variable.shape, BLOCK_BYTES // variable.dtype.itemsize):
        values = np.asarray(variable.read(region), np.float64)
        other = tuple(k for k in range(values.ndim) if k != number)
        sums[region[number]] += np.square(values).sum(axis=other)
    return sums


def _whole_along(variable: Variable, number: int) -> Iterator[Region]:
    """Yield regions that are whole along one axis."""
    shape = variable.shape
    across = [1 if k == number else size for k, size in enumerate(shape)]
    items = max(1, BLOCK_BYTES // (variable.dtype.itemsize * max(1, shape[number])))
    for part in regions(across, items):
        yield (*part[:number], whole(shape)[number], *part[number + 1 :])
