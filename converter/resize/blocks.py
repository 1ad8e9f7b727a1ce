"""What the new entries of resized variables are made of."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from converter.checkpoint import Checkpoint
from converter.drawing import Block, fans
from converter.errors import PlanError
from converter.initializer import Zeros
from converter.initializers import Constant, Ones
from converter.resize.chosen import in_dtype
from converter.resize.maps import AxisMap
from converter.resize.units import Units, WidthMap
from converter.structure.axes.axis import Axis, Blocks, Use
from converter.structure.properties.newcomers import is_peephole
from converter.values import Values
from converter.variable import Region, Variable, regions, whole

_RUNS = 1 << 16
_AxisUses = Mapping[str, tuple[Use, ...]]


class _Run(NamedTuple):
    """A stretch of an axis whose entries belong to new units of a width."""

    place: slice
    width: str


class Filling:
    """Tells what new entries hold, and draws none of them.

    Args:
        checkpoint: the old variables.
        maps: what becomes of each width that changes.
        looked_up: the widths whose new entries are what new units are made of.
        template: a checkpoint of the new sizes, or None.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        maps: Mapping[str, WidthMap],
        looked_up: frozenset[str],
        template: Checkpoint | None,
    ) -> None:
        self._checkpoint = checkpoint
        self._maps = maps
        self._looked_up = looked_up
        self._template = template

    def number(
        self,
        variable: Variable,
        axes: Sequence[Axis],
        uses: Sequence[_AxisUses],
        of: str | None,
    ) -> float:
        """Return what entries hold that no initializer draws.

        Args:
            variable: the old one.
            axes: of the variable.
            uses: what each of them does with its widths.
            of: the variable that it is a copy or an average of; or None.

        Raises:
            PlanError: they would have to be drawn, and the variable holds no real numbers; or its
                dtype cannot hold the number that they are to be.
        """
        changed = [
            (name, used.get(name, ()))
            for axis, used in zip(axes, uses, strict=True)
            for name in axis.widths()
            if name in self._maps
        ]
        own = of or variable.name
        folds = [fold.number(own) for name, _ in changed if (fold := self._maps[name].fold)]
        if folded := [number for number in folds if number is not None]:
            return folded[0]
        biases = [self._maps[name].bias for name, used in changed if "shift" in used]
        if given := [bias for bias in biases if bias is not None]:
            in_dtype(variable, given[0])
            return given[0]
        found = {use for _, used in changed for use in used}
        if "variance" in found:
            return 1.0
        if "gain" in found and _is_vector(variable) and not is_peephole(variable.name):
            return 1.0
        for name, used in changed:
            fill = self._maps[name].fill
            if not self._is_drawn(variable, name, used):
                continue
            if isinstance(fill, (Constant, Ones)):
                number = fill.value if isinstance(fill, Constant) else 1.0
                in_dtype(variable, number)
                if not variable.dtype.is_float:
                    return number
            elif "produce" in used and not variable.dtype.is_float:
                raise PlanError(
                    f"{variable.name}: {fill} draws floats only, and it is {variable.dtype}; "
                    f"choose zeros, ones or a number"
                )
        return 0.0

    def blocks(
        self,
        variable: Variable,
        shape: Sequence[int],
        axes: Sequence[Axis],
        uses: Sequence[_AxisUses],
        sizes: Mapping[str, int],
        of: str | None,
    ) -> list[Block]:
        """Return the blocks of new entries that an initializer draws: those that make new units.

        Args:
            variable: the old one, of floats.
            shape: the new one.
            axes: of the variable.
            uses: what each of them does with its widths.
            sizes: the old sizes of all widths.
            of: the variable that it is a copy or an average of, whose values it gets; or None.
        """
        found = []
        rest: list[list[slice]] = []
        for number, (axis, used) in enumerate(zip(axes, uses, strict=True)):
            runs = list(self._runs(variable, axis, used, sizes))
            later = [[slice(0, size)] for size in shape[number + 1 :]]
            for k, run in enumerate(runs):
                fan = list(shape)
                fan[number] = _fan(axis, run.width, self._new(sizes))
                fan_in, fan_out = fans(variable.name, fan)
                fill = self._maps[run.width].fill
                for place, region in enumerate(itertools.product(*rest, [run.place], *later)):
                    label = f"{number}/{k}/{place}"
                    old = self._checkpoint[of] if of is not None else variable
                    values = Values(old, whole(old.shape))
                    template = self._of_template(variable, shape, of, region)
                    found.append(Block(label, region, fill, fan_in, fan_out, values, template))
            rest.append(_without([run.place for run in runs], shape[number]))
        return found

    def _is_drawn(self, variable: Variable, name: str, uses: Sequence[Use]) -> bool:
        fill = self._maps[name].fill
        if isinstance(fill, Zeros):
            return False
        if "consume" in uses:
            return name in self._looked_up
        if "produce" in uses:
            return True
        if "shift" in uses:
            return not fill.for_kernels and self._maps[name].bias is None
        return "gain" in uses and (not _is_vector(variable) or is_peephole(variable.name))

    def _of_template(
        self, variable: Variable, shape: Sequence[int], of: str | None, region: Region
    ) -> Values | None:
        template = self._template
        if template is None:
            return None
        other = template.get(variable.name) or (None if of is None else template.get(of))
        return Values(other, region) if other is not None and other.shape == tuple(shape) else None

    def _new(self, sizes: Mapping[str, int]) -> dict[str, int]:
        return {**sizes, **{name: m.size for name, m in self._maps.items()}}

    def _runs(
        self, variable: Variable, axis: Axis, uses: _AxisUses, sizes: Mapping[str, int]
    ) -> Iterator[_Run]:
        """Yield the stretches of the new axis that are drawn, in order.

        What is new in a width that is not drawn is zero, whatever else it is new in.
        """
        changed = [name for name in axis.widths() if name in self._maps]
        drawn = [n for n in changed if self._is_drawn(variable, n, uses.get(n, ()))]
        if not drawn:
            return
        order = [name for name in changed if name not in drawn] + drawn
        marks = [self._mark(axis, name, changed, sizes) for name in order]
        begin, owner = 0, -1
        for place, now in _owners(marks):
            if owner >= len(order) - len(drawn):
                yield _Run(slice(begin, place), order[owner])
            begin, owner = place, now
        if owner >= len(order) - len(drawn):
            yield _Run(slice(begin, marks[0].length), order[owner])

    def _mark(
        self, axis: Axis, name: str, changed: Sequence[str], sizes: Mapping[str, int]
    ) -> AxisMap:
        """Return a map of the axis in which nothing is new but in one width."""
        units = {}
        for other in changed:
            found = self._maps[other].produce
            size = self._maps[other].size
            units[other] = Units.first(size, size)
            if other == name and isinstance(found, Units):
                units[other] = found.plain()
        return AxisMap(axis, sizes, units)


def _owners(marks: Sequence[AxisMap]) -> Iterator[tuple[int, int]]:
    """Yield where on an axis another map is the first by which entries are new, and which.

    -1 is none of them.
    """
    length = marks[0].length
    stretches = [mark.runs for mark in marks]
    known = [runs for runs in stretches if runs is not None]
    parts: Iterable[slice]
    if len(known) == len(marks):
        # Nothing changes within a stretch: one entry tells, however long it is.
        starts = sorted({run.start for runs in known for run in runs})
        parts = (slice(start, start + 1) for start in starts)
    else:
        parts = (part for (part,) in regions((length,), _RUNS))
    last = -1
    for part in parts:
        owners = np.full(part.stop - part.start, -1)
        for place, mark in enumerate(marks):
            new = mark.entries(part.start, part.stop).old < 0
            owners[new & (owners < 0)] = place
        edges = np.flatnonzero(np.diff(owners, prepend=last))
        for edge in edges.tolist():
            last = int(owners[edge])
            yield part.start + edge, last


def _is_vector(variable: Variable) -> bool:
    return sum(size > 1 for size in variable.shape) < 2


def _fan(axis: Axis, name: str, sizes: Mapping[str, int]) -> int:
    """Return how many entries one output has along an axis: those of one block, of one summand."""
    for term in axis.terms:
        factors = [f for f in term if not isinstance(f, Blocks)]
        if any(f == name or (isinstance(f, Axis) and name in f.widths()) for f in factors):
            return Axis((tuple(factors),)).size(sizes)
    return axis.size(sizes)


def _without(runs: Sequence[slice], length: int) -> list[slice]:
    """Return the stretches of an axis that are in none of the runs."""
    found, begin = [], 0
    for run in sorted(runs, key=lambda r: r.start):
        if run.start > begin:
            found.append(slice(begin, run.start))
        begin = run.stop
    if begin < length:
        found.append(slice(begin, length))
    return found
