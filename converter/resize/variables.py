"""The maps of widths applied to all variables, slots and averages of a checkpoint."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from converter.checkpoint import Checkpoint
from converter.drawing import Block, Drawing, Values, fans
from converter.errors import PlanError
from converter.initializers import Zeros
from converter.names import Role
from converter.names.fresh import fresh_value
from converter.names.gradient import FACTORED, gradient_power
from converter.resize.chosen import choose
from converter.resize.dense import multiply
from converter.resize.maps import AxisMap, Matrix, UnitMap, Units, WidthMap, panels
from converter.resize.noise import Noise, add_noise, copies
from converter.structure.axis import Axis, Use
from converter.structure.infer import Structure
from converter.variable import Array, Region, Variable, regions, whole

_SAMPLE = 1 << 18
_RUNS = 1 << 16
_AxisUses = Mapping[str, tuple[Use, ...]]


@dataclass(frozen=True)
class Resizing:
    """What becomes of a checkpoint whose widths change.

    Attributes:
        checkpoint: the variables, and what they are for.
        structure: their axes.
        maps: what becomes of each width that changes.
        looked_up: the widths that are only looked up in: new entries are what new units are made
            of, as nothing but a lookup of them finds them.
        template: a checkpoint of the new sizes that initializers may look at, or None.
        seed: of what is drawn.
    """

    checkpoint: Checkpoint
    structure: Structure
    maps: Mapping[str, WidthMap]
    looked_up: frozenset[str] = frozenset()
    template: Checkpoint | None = None
    seed: int = 0

    def variables(self) -> Iterator[Variable]:
        """Give the variables of the result, in the order of the checkpoint.

        Raises:
            PlanError: a slot has no rule, or a matrix would act where none can.
        """
        drawing = Drawing(self.seed)
        roles = self.checkpoint.roles()
        for name, variable in self.checkpoint.items():
            axes = self.structure.axes.get(name, ())
            if any(not self.maps.keys().isdisjoint(axis.widths()) for axis in axes):
                yield self._resized(variable, roles[name], drawing)
            else:
                yield variable

    def shape_of(self, name: str) -> tuple[int, ...]:
        """Return the shape that a variable will have."""
        axes = self.structure.axes.get(name)
        if axes is None:
            return self.checkpoint[name].shape
        return tuple(axis.size(self._new) for axis in axes)

    @property
    def _new(self) -> dict[str, int]:
        return self.structure.sizes | {name: m.size for name, m in self.maps.items()}

    def _resized(self, variable: Variable, role: Role, drawing: Drawing) -> Variable:
        axes = self.structure.axes[variable.name]
        uses = _uses(self.structure, variable.name, role)
        power = self._power(variable.name, role)
        weighted = self._weighted(variable.name, role, power)
        sizes = self.structure.sizes
        result = variable
        for number, maps in enumerate(weighted):
            matrices = {n: m for n, m in maps.items() if isinstance(m, Matrix)}
            if matrices:
                result = self._multiplied(result, number, axes[number], matrices, uses[number])
        chosen: list[AxisMap | None] = []
        for axis, maps in zip(axes, weighted, strict=True):
            units = {n: m for n, m in maps.items() if isinstance(m, Units)}
            dense = {n: self.maps[n].size for n in maps if n not in units}
            chosen.append(AxisMap(axis, sizes | dense, units) if units else None)
        result = choose(result, chosen, self._fill(variable, role, axes, uses))
        if factor := self._factor(variable, role, axes):
            result = result.map(partial(_times, factor=factor))
        if power is None:
            key = role.of if role.kind == "average" and role.of else variable.name
            blocks = list(self._blocks(variable, axes, uses))
            if blocks:
                result = drawing.redraw(result, blocks, stream=key)
            if variable.dtype.is_float and (noises := list(self._noises(axes, uses))):
                result = add_noise(result, noises, self.checkpoint.get(key, variable), drawing, key)
        return result

    def _noises(self, axes: Sequence[Axis], uses: Sequence[_AxisUses]) -> Iterator[Noise]:
        for number, (axis, used) in enumerate(zip(axes, uses, strict=True)):
            for name in axis.widths():
                width_map = self.maps.get(name)
                if width_map is None or not width_map.noise:
                    continue
                produce = width_map.produce
                makes = not {"produce", "shift"}.isdisjoint(used.get(name, ()))
                if makes and isinstance(produce, Units):
                    marked = self._marked(axis, name, partial(copies, produce))
                    yield Noise(number, marked, width_map.noise)

    def _marked(self, axis: Axis, name: str, marks: Callable[[], Array]) -> AxisMap:
        """Return a map by which the entries of an axis are new that belong to marked units.

        Args:
            axis: over the new sizes.
            name: the width.
            marks: says of each of its new units whether it is marked.
        """
        units = {
            n: Units(m.size, partial(np.zeros, m.size, np.int64)) for n, m in self.maps.items()
        }
        units[name] = Units(self.maps[name].size, lambda: np.where(marks(), -1, 0))
        return AxisMap(axis, self.structure.sizes, units)

    def _power(self, name: str, role: Role) -> int | None:
        """Return the power of the gradient that a slot holds; None for what holds values."""
        if not _follows_gradients(role):
            return None
        power = gradient_power(role.optimizer, role.slot)
        if power is None:
            raise PlanError(
                f"{name}: nothing is known of how {role.slot or name.rpartition('/')[2]!r} of "
                f"{role.optimizer or 'this optimizer'} follows gradients, and its variable is "
                f"resized; drop it before (--drop '{name}'), or all of its kind (--drop slots)"
            )
        return power

    def _weighted(self, name: str, role: Role, power: int | None) -> list[dict[str, UnitMap]]:
        """Return how each axis takes the units of the widths that change."""
        own = role.of if role.kind in ("slot", "average") and role.of else name
        found = []
        uses = _uses(self.structure, name, role)
        for axis, used in zip(self.structure.axes[name], uses, strict=True):
            names = [n for n in axis.widths() if n in self.maps]
            found.append({n: self._map(own, n, used.get(n, ()), power) for n in names})
        return found

    def _map(self, variable: str, name: str, uses: Sequence[Use], power: int | None) -> UnitMap:
        """Return how an axis takes the units of a width, by what it does with it.

        Args:
            variable: the variable, of which a slot is.
            name: the width.
            uses: what the axis does with the width.
            power: of the gradient, for a slot; None for values.
        """
        width_map, width = self.maps[name], self.structure.widths[name]
        consumes = "consume" in uses and "produce" not in uses
        gains = not consumes and "gain" in uses
        if consumes and name in self.looked_up:
            # Nothing sums over its copies.
            return _plain(_transposed(width_map.consume))
        if consumes:
            turned = _transposed(width_map.consume) if power is None else width_map.produce
            return _to_power(turned, 1 if power is None else power)
        if power == 0:
            return _plain(width_map.produce)
        behind = width.normalised is not None and variable not in width.normalised.before
        factor = width_map.gain if gains else 1.0 if behind else width_map.rescale
        if power is not None:
            return _scaled(_to_power(_transposed(width_map.consume), power), factor**-power)
        if "variance" in uses:
            return _scaled(_to_power(width_map.produce, 2), factor**2)
        if gains:
            return _scaled(_plain(width_map.produce), factor)
        if width_map.is_centred and not behind:
            return _centred(width.size, width_map.produce, factor)
        return _scaled(width_map.produce, factor)

    def _multiplied(
        self,
        variable: Variable,
        number: int,
        axis: Axis,
        matrices: Mapping[str, Matrix],
        uses: _AxisUses,
    ) -> Variable:
        for name in matrices:
            if not {"gain", "variance"}.isdisjoint(uses.get(name, ())):
                raise PlanError(
                    f"{variable.name}: it holds one factor for each unit of {name}, which no "
                    f"matrix can mix; choose a strategy that keeps units as they are"
                )
        sizes = self.structure.sizes
        for name in matrices:
            one = {name: matrices[name]}
            try:
                cut = panels(axis, sizes, one)
            except ValueError:
                raise PlanError(
                    f"{variable.name}: {axis} holds {name} where no matrix can act on it; choose a "
                    f"strategy that keeps units as they are"
                ) from None
            variable = multiply(variable, number, cut)
            sizes = sizes | {name: self.maps[name].size}
        return variable

    def _fill(
        self,
        variable: Variable,
        role: Role,
        axes: Sequence[Axis],
        uses: Sequence[_AxisUses],
    ) -> float | Callable[[], float]:
        """Return what entries hold that no initializer draws."""
        if _follows_gradients(role):
            fresh = fresh_value(role.optimizer, role.slot) or 0.0
            if fresh or gradient_power(role.optimizer, role.slot) != 2:
                return fresh
            # A second moment of zero makes the first steps of new entries several times too large.
            return _Median(variable)
        using = [
            (name, use)
            for axis, used in zip(axes, uses, strict=True)
            for name in axis.widths()
            if name in self.maps
            for use in used.get(name, ())
        ]
        if using and (biases := [self.maps[n].bias for n, use in using if use == "shift"]):
            return biases[0] or 0.0
        found = {use for _, use in using}
        is_vector = sum(size > 1 for size in variable.shape) < 2
        return 1.0 if "variance" in found or ("gain" in found and is_vector) else 0.0

    def _factor(self, variable: Variable, role: Role, axes: Sequence[Axis]) -> float | None:
        """Return the factor of what is averaged along an axis that new zeros make longer."""
        if role.slot not in FACTORED or role.of is None or role.of not in self.structure.axes:
            return None
        lost = list(self.structure.axes[role.of])
        for axis in axes:
            if axis in lost:
                lost.remove(axis)
        old = [axis.size(self.structure.sizes) for axis in lost]
        new = [axis.size(self._new) for axis in lost]
        factor = float(np.prod(old)) / max(1.0, float(np.prod(new)))
        return factor if factor < 1 else None

    def _blocks(
        self, variable: Variable, axes: Sequence[Axis], uses: Sequence[_AxisUses]
    ) -> Iterator[Block]:
        """Yield the blocks of new entries that an initializer draws: those that make new units."""
        shape = self.shape_of(variable.name)
        rest: list[list[slice]] = []
        for number, (axis, used) in enumerate(zip(axes, uses, strict=True)):
            runs = []
            for name in axis.widths():
                width_map = self.maps.get(name)
                if width_map is None or isinstance(width_map.fill, Zeros):
                    continue
                if self._is_drawn(variable, name, used.get(name, ()), width_map):
                    runs += [(run, width_map) for run in self._new_runs(axis, name)]
            for k, (run, width_map) in enumerate(sorted(runs, key=lambda r: r[0].start)):
                later = [[slice(0, size)] for size in shape[number + 1 :]]
                for place, before in enumerate(itertools.product(*rest, [run], *later)):
                    region: Region = tuple(before)
                    yield self._block(variable, f"{number}/{k}/{place}", region, width_map, number)
            rest.append(_without([run for run, _ in runs], shape[number]))

    def _is_drawn(
        self, variable: Variable, name: str, uses: Sequence[Use], width_map: WidthMap
    ) -> bool:
        if "consume" in uses:
            return name in self.looked_up
        is_vector = sum(size > 1 for size in variable.shape) < 2
        if "produce" in uses:
            return True
        if "shift" in uses:
            return not width_map.fill.for_kernels and width_map.bias is None
        return "gain" in uses and not is_vector

    def _new_runs(self, axis: Axis, name: str) -> Iterator[slice]:
        """Yield the stretches of the new axis whose entries belong to new units of one width."""
        produce = self.maps[name].produce
        if not isinstance(produce, Units):
            return
        axis_map = self._marked(axis, name, lambda: produce.index < 0)
        begin = None
        for (part,) in regions((axis_map.length,), _RUNS):
            new = axis_map.entries(part.start, part.stop).old < 0
            edges = np.flatnonzero(np.diff(new, prepend=begin is not None))
            for edge in (part.start + edges).tolist():
                if begin is None:
                    begin = edge
                else:
                    yield slice(begin, edge)
                    begin = None
        if begin is not None:
            yield slice(begin, axis_map.length)

    def _block(
        self, variable: Variable, label: str, region: Region, width_map: WidthMap, number: int
    ) -> Block:
        shape = list(self.shape_of(variable.name))
        shape[number] = min(shape[number], width_map.size)
        fan_in, fan_out = fans(variable.name, shape)
        other = None if self.template is None else self.template.get(variable.name)
        return Block(
            label,
            region,
            width_map.fill,
            fan_in,
            fan_out,
            Values(variable, whole(variable.shape)),
            None if other is None else Values(other, region),
        )


def _follows_gradients(role: Role) -> bool:
    return role.kind == "slot" or (role.optimizer is not None and role.kind != "average")


class _Median:
    """The median of a variable's first values."""

    def __init__(self, variable: Variable) -> None:
        self._variable = variable
        self._found: float | None = None

    def __call__(self) -> float:
        if self._found is None:
            first = next(self._variable.blocks(_SAMPLE), None)
            self._found = 0.0 if first is None else float(np.median(np.asarray(first, np.float64)))
        return self._found if np.isfinite(self._found) else 0.0


def _times(values: Array, factor: float) -> Array:
    found: Array = values * values.dtype.type(factor)
    return found


def _uses(structure: Structure, name: str, role: Role) -> tuple[_AxisUses, ...]:
    """Return what the axes of a variable do; those of a slot do what its variable's do."""
    own = structure.axes[name]
    of = role.of if role.kind in ("slot", "average") else None
    if of is None or of not in structure.axes:
        return tuple(structure.uses.get(name, ({},) * len(own)))
    candidates = list(zip(structure.axes[of], structure.uses.get(of, ()), strict=False))
    found = []
    for axis in own:
        place = next((k for k, (other, _) in enumerate(candidates) if other == axis), None)
        found.append({} if place is None else candidates[place][1])
        if place is not None:
            # A factored slot lacks an axis: what is left stands in order.
            candidates = candidates[place + 1 :]
    return tuple(found)


def _centred(old: int, produce: UnitMap, factor: float) -> Matrix:
    """Return the matrix that takes off the mean over the old units before they are chosen."""

    def values() -> Array:
        if isinstance(produce, Matrix):
            chosen = produce.values
        else:
            chosen = (np.arange(old)[:, None] == produce.index).astype(np.float64)
        centred: Array = factor * (chosen - chosen.mean(axis=0))
        return centred

    return Matrix((old, produce.size if isinstance(produce, Units) else produce.shape[1]), values)


def _transposed(unit_map: UnitMap) -> UnitMap:
    return unit_map if isinstance(unit_map, Units) else unit_map.T


def _plain(unit_map: UnitMap) -> UnitMap:
    """Return the choice of units without its weights."""
    return Units(unit_map.size, lambda: unit_map.index) if isinstance(unit_map, Units) else unit_map


def _scaled(unit_map: UnitMap, factor: float) -> UnitMap:
    if factor == 1:
        return unit_map
    if not isinstance(unit_map, Units):
        return unit_map.map(lambda values: factor * values)
    return Units(
        unit_map.size,
        lambda: unit_map.index,
        lambda: (
            factor * (1.0 if unit_map.weight is None else unit_map.weight) * np.ones(unit_map.size)
        ),
    )


def _to_power(unit_map: UnitMap, power: int) -> UnitMap:
    if power == 1:
        return unit_map
    if not isinstance(unit_map, Units):
        return unit_map.map(lambda values: values**power)
    if not unit_map.is_weighted:
        return unit_map
    return Units(unit_map.size, lambda: unit_map.index, lambda: unit_map.weight**power)  # type: ignore[operator]


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
