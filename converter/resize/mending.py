"""Consumers of units that are removed, mended so that those that stay make up for them.

What a kernel consumes is x, and the units D of it go. What they gave is told from those that stay:
x_D is about s_D + x_K R. So the rows of K take R times those of D as well, and what is constant,
s_D times those of D, goes into the bias that is added behind the kernel.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from converter.checkpoint import Checkpoint
from converter.errors import ConverterError
from converter.resize import slots
from converter.resize.dense import multiply
from converter.resize.exactness import is_looked_up
from converter.resize.maps import AxisMap, Panel
from converter.resize.units import Matrix, Mending, Repair, Units, WidthMap
from converter.rounding import round_to
from converter.structure.biases import Bias, bias_of
from converter.structure.structure import Structure
from converter.variable import BLOCK_BYTES, Array, Region, Variable, regions


@dataclass(frozen=True, eq=False)
class Mended:
    """A variable that consumes units of which some are removed.

    Attributes:
        name: of the variable; its averages and copies are mended as it is.
        axis: along which it consumes them.
        chosen: what stays of that axis.
        bias: what takes what is constant; None where nothing does.
        repair: tells how.
    """

    name: str
    axis: int
    chosen: AxisMap
    bias: Bias | None
    repair: Repair

    @cached_property
    def mending(self) -> Mending:
        """How it is mended; asked for when the first values are."""
        kept = self.chosen.entries(0, self.chosen.length).old
        return self.repair.mending(
            self.name, self.chosen.old_length, kept, has_bias=self.bias is not None
        )

    def consumer(self, variable: Variable) -> Variable:
        """Return the variable, or an average of it, with the entries that stay, which took over
        what the others did.
        """
        old, new = self.chosen.old_length, self.chosen.length

        def values() -> Array:
            found = self.mending.matrix
            if found is None:
                raise ConverterError(
                    f"{self.name}: a repair that mixes gave no matrix; this is a bug of the "
                    f"strategy that made it"
                )
            turned: Array = found.T
            return turned

        panel = Panel(slice(0, old), slice(0, new), 1, 1, Matrix((old, new), values))
        return multiply(variable, self.axis, [panel])

    def constant(self, variable: Variable) -> Array:
        """Return what is to be added to the bias behind it, by the values of the variable."""
        assert self.bias is not None
        shift = self.mending.shift
        kept = self.bias.axes
        total = np.zeros([variable.shape[axis] for axis in kept])
        items = BLOCK_BYTES // variable.dtype.itemsize
        for region in regions(variable.shape, items):
            here = shift[region[self.axis]]
            if not here.any():
                continue
            values = np.asarray(variable.load(region), np.float64)
            weighed = values * here.reshape(
                [-1 if k == self.axis else 1 for k in range(values.ndim)]
            )
            other = tuple(k for k in range(values.ndim) if k not in kept)
            total[tuple(region[axis] for axis in kept)] += weighed.sum(axis=other)
        return self.bias.sign * total


class Repairs:
    """Which variables are mended, and which biases take what is constant. Reads no values.

    Args:
        checkpoint: the variables.
        structure: their axes.
        maps: what becomes of each width that changes.
    """

    def __init__(
        self, checkpoint: Checkpoint, structure: Structure, maps: Mapping[str, WidthMap]
    ) -> None:
        self._checkpoint = checkpoint
        self._structure = structure
        self._maps = maps
        self._tied: list[str] = []
        self._unknown: list[str] = []
        self.mended: Mapping[str, Mended] = {m.name: m for m in self._found()}
        """By the name of the variable."""
        self._by_bias: dict[str, list[Mended]] = {}
        for mended in self.mended.values():
            if mended.bias is not None:
                self._by_bias.setdefault(mended.bias.name, []).append(mended)

    def changes(self, name: str) -> bool:
        """Tell whether the values of a variable are others than those that stay."""
        mended = self.mended.get(name)
        return (mended is not None and mended.repair.mixes) or name in self._by_bias

    def shifted(self, bias: Variable, of: str) -> Variable:
        """Return a bias, or an average of one, with what is constant in what its kernels consume.

        Args:
            bias: before any of its units is removed.
            of: the name of the variable that it is, or an average of.
        """
        kernels = self._by_bias.get(of, [])
        if not kernels:
            return bias
        # An average of a bias goes with that of the kernel.
        end = bias.name.removeprefix(of)
        sources = [self._checkpoint.get(m.name + end, self._checkpoint[m.name]) for m in kernels]
        held: list[Array] = []

        def load(region: Region) -> Array:
            values = bias.load(region)
            if not held:
                found = [m.constant(v) for m, v in zip(kernels, sources, strict=True)]
                held.append(np.sum([array.reshape(bias.shape) for array in found], axis=0))
            wide = np.asarray(values, np.float64) + held[0][region]
            return round_to(wide, bias.dtype, bias.counts)

        return bias.derive(load)

    def notes(self) -> Iterator[str]:
        """Tell what is left as it is."""
        without = [name for name, mended in self.mended.items() if mended.bias is None]
        for names, why in (
            (self._tied, "it makes units and takes them on one axis, so it is not mended"),
            (self._unknown, "the statistics say nothing of what it consumes; it is not mended"),
            (without, "no bias alone stands behind it to take the mean of the units that go"),
        ):
            if names:
                more = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
                yield f"{names[0]}{more}: {why}"
        roles = self._checkpoint.roles().values()
        kept = sum(
            1
            for role in roles
            if role.kind == "slot"
            and role.of is not None
            and self.changes(role.of)
            and not slots.holds_values(role)
        )
        if kept:
            yield (
                f"{kept} of the slots belong to mended variables, and stay as they are for the "
                f"units that stay: no rule mends gradients"
            )

    def _found(self) -> Iterator[Mended]:
        widths = self._structure.widths
        repairs = {
            name: width_map.repair
            for name, width_map in self._maps.items()
            if width_map.repair is not None and not is_looked_up(widths[name])
        }
        if not repairs:
            return
        roles = self._checkpoint.roles()
        for name, uses in self._structure.uses.items():
            if name not in self._checkpoint or roles[name].kind != "model":
                continue
            places = [
                (number, width)
                for number, used in enumerate(uses)
                for width, found in used.items()
                if width in repairs and "consume" in found
            ]
            if not places:
                continue
            number, width = places[0]
            is_apart = all(k == number and set(uses[k][w]) == {"consume"} for k, w in places)
            if not is_apart:
                self._tied.append(name)
            elif not repairs[width].knows(name):
                self._unknown.append(name)
            else:
                bias = bias_of(self._structure, self._checkpoint, name, number)
                yield Mended(name, number, self._chosen(name, number), bias, repairs[width])

    def _chosen(self, name: str, number: int) -> AxisMap:
        axis = self._structure.axes[name][number]
        units = {
            width: found
            for width in axis.widths()
            if width in self._maps and isinstance(found := self._maps[width].consume, Units)
        }
        return AxisMap(axis, self._structure.sizes, units)
