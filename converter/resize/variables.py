"""The maps of widths applied to all variables, slots and averages of a checkpoint."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from converter.checkpoint import Checkpoint
from converter.drawing import Drawing
from converter.errors import PlanError
from converter.names import Role
from converter.resize import slots
from converter.resize.blocks import Filling
from converter.resize.chosen import choose, new_entries
from converter.resize.dense import multiply
from converter.resize.maps import AxisMap, panels
from converter.resize.mending import Mended, Repairs
from converter.resize.noise import Noise, add_noise, copies
from converter.resize.taking import of_both, of_gradients, of_values, plain
from converter.resize.units import Matrix, UnitMap, Units, WidthMap
from converter.structure.axes.axis import Axis, Use
from converter.structure.structure import Structure
from converter.variable import Array, Region, Variable, shape_of

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
        repairs: what is mended where units are removed; None for nothing.
    """

    checkpoint: Checkpoint
    structure: Structure
    maps: Mapping[str, WidthMap]
    looked_up: frozenset[str] = frozenset()
    template: Checkpoint | None = None
    seed: int = 0
    repairs: Repairs | None = None

    def variables(self) -> Iterator[Variable]:
        """Give the variables of the result, in the order of the checkpoint.

        Raises:
            PlanError: a slot has no rule, or a matrix would act where none can.
        """
        drawing = Drawing(self.seed)
        for name, variable in self.checkpoint.items():
            axes = self.structure.axes.get(name, ())
            role = self._role(name)
            if any(not self.maps.keys().isdisjoint(axis.widths()) for axis in axes):
                yield self._resized(variable, drawing)
                continue
            shifted = self._with_linear(self._shifted(variable, role), role, (), drawing)
            yield self._thinned(variable, shifted, role)

    def shape_of(self, name: str) -> tuple[int, ...]:
        """Return the shape that a variable will have."""
        axes = self.structure.axes.get(name)
        if axes is None:
            return self.checkpoint[name].shape
        return tuple(axis.size(self._new) for axis in axes)

    @cached_property
    def _new(self) -> Mapping[str, int]:
        return {**self.structure.sizes, **{name: m.size for name, m in self.maps.items()}}

    def _role(self, name: str) -> Role:
        role = self.checkpoint.roles()[name]
        # A slot that only the graph tells is a model variable by its name.
        return role if role.of is not None else self.structure.follows.get(name, role)

    def _resized(self, variable: Variable, drawing: Drawing) -> Variable:
        role = self._role(variable.name)
        axes = self.structure.axes[variable.name]
        uses = self._uses(variable.name, role)
        maps = self._maps(variable.name, role, axes, uses)
        result = self._shifted(variable, role)
        for number, found in enumerate(maps):
            matrices = {n: m for n, m in found.items() if isinstance(m, Matrix)}
            result = self._multiplied(result, number, axes[number], matrices, uses[number])
        chosen = [self._chosen(axis, found) for axis, found in zip(axes, maps, strict=True)]
        mended = self._mended(variable.name, role)
        if mended is not None and mended.repair.mixes:
            result = mended.consumer(result)
            chosen[mended.axis] = None
        if not slots.holds_values(role):
            result = choose(result, chosen, slots.fresh_entries(variable, role))
            result = self._with_linear(result, role, chosen, drawing)
            return self._thinned(variable, result, role)
        filling = Filling(self.checkpoint, self.maps, self.looked_up, self.template)
        filled = filling.number(variable, axes, uses, role.of)
        result = choose(result, chosen, filled)
        if not variable.dtype.is_float:
            return result
        of = role.of if role.of in self.checkpoint else None
        shape = self.shape_of(variable.name)
        key = of or variable.name
        if blocks := filling.blocks(variable, shape, axes, uses, self._sizes, of):
            result = drawing.redraw(result, blocks, stream=key)
        if noises := list(self._noises(axes, uses)):
            result = add_noise(result, noises, self.checkpoint[key], drawing, key)
        return result

    def _mended(self, name: str, role: Role) -> Mended | None:
        """Return how a variable is mended, or an average of it; None for all others."""
        if self.repairs is None or not slots.holds_values(role):
            return None
        return self.repairs.mended.get(role.of or name)

    def _shifted(self, variable: Variable, role: Role) -> Variable:
        """Return a bias with what is constant of units that go; any other variable as it is."""
        if self.repairs is None or not slots.holds_values(role):
            return variable
        return self.repairs.shifted(variable, role.of or variable.name)

    def _noises(self, axes: Sequence[Axis], uses: Sequence[_AxisUses]) -> Iterator[Noise]:
        for number, (axis, used) in enumerate(zip(axes, uses, strict=True)):
            for name in axis.widths():
                width_map = self.maps.get(name)
                if width_map is None or not width_map.noise:
                    continue
                produce = width_map.produce
                makes = not {"produce", "shift"}.isdisjoint(used.get(name, ()))
                if makes and isinstance(produce, Units):
                    yield Noise(number, self._copied(axis, name, produce), width_map.noise)

    def _copied(self, axis: Axis, name: str, produce: Units) -> AxisMap:
        """Return a map by which the entries of an axis are new that belong to copies of units."""
        units = {n: Units.first(m.size, m.size) for n, m in self.maps.items()}
        units[name] = Units(produce.size, lambda: np.where(copies(produce), -1, 0))
        return AxisMap(axis, self._sizes, units)

    @property
    def _sizes(self) -> Mapping[str, int]:
        return self.structure.sizes

    def _uses(self, name: str, role: Role) -> Sequence[_AxisUses]:
        """Return what the axes of a variable do; those of a slot do what its variable's do."""
        axes = self.structure.axes[name]
        uses = self.structure.uses.get(name)
        if uses is None and role.of is not None:
            uses = self.structure.uses.get(role.of)
            lost = slots.lost_axis(len(axes), len(uses or ()), role)
            if uses is not None and lost is not None:
                uses = (*uses[:lost], *uses[lost + 1 :])
        return uses if uses is not None and len(uses) == len(axes) else ({},) * len(axes)

    def _maps(
        self, name: str, role: Role, axes: Sequence[Axis], uses: Sequence[_AxisUses]
    ) -> list[dict[str, UnitMap]]:
        """Return how each axis takes the units of the widths that change."""
        power = None if slots.holds_values(role) else slots.power_of(name, role)

        own = role.of if role.kind in ("slot", "average") and role.of else name

        def taken(width: str, used: Sequence[Use]) -> UnitMap:
            width_map = self.maps[width]
            normalised = self.structure.widths[width].normalised
            if normalised is not None and own not in normalised.before:
                # What stands behind a normalisation gets what it got.
                width_map = replace(width_map, rescale=1.0, is_centred=False)
            if width_map.fold is not None:
                if width_map.fold.number(own) is not None:
                    return Units(width_map.size, lambda: np.full(width_map.size, -1))
                pair = width_map.fold.matrices(name, own)
                if pair is not None and "consume" in used:
                    width_map = replace(width_map, produce=pair[0], consume=pair[1])
            if "consume" in used and width in self.looked_up:
                # Nothing sums over its copies.
                return plain(of_values(width_map, self._sizes[width], used))
            if power is None:
                return of_values(width_map, self._sizes[width], used)
            if slots.is_linear(role):
                return of_both(width_map, self._sizes[width], used)
            return of_gradients(width_map, used, power)

        found = []
        for axis, used in zip(axes, uses, strict=True):
            names = [width for width in axis.widths() if width in self.maps]
            found.append({n: taken(n, used.get(n, ())) for n in names})
        return found

    def _chosen(self, axis: Axis, maps: Mapping[str, UnitMap]) -> AxisMap | None:
        units = {n: m for n, m in maps.items() if isinstance(m, Units)}
        if not units:
            return None
        dense = {n: self.maps[n].size for n in maps if n not in units}
        return AxisMap(axis, {**self._sizes, **dense} if dense else self._sizes, units)

    def _multiplied(
        self,
        variable: Variable,
        number: int,
        axis: Axis,
        matrices: Mapping[str, Matrix],
        uses: _AxisUses,
    ) -> Variable:
        sizes = self._sizes
        for name, matrix in matrices.items():
            if not {"gain", "variance"}.isdisjoint(uses.get(name, ())):
                raise PlanError(
                    f"{variable.name}: it holds one factor for each unit of {name}, which no "
                    f"matrix can mix; choose a strategy that keeps units as they are"
                )
            try:
                cut = panels(axis, sizes, {name: matrix})
            except ValueError:
                raise PlanError(
                    f"{variable.name}: {axis} holds {name} where no matrix can act on it; choose a "
                    f"strategy that keeps units as they are"
                ) from None
            variable = multiply(variable, number, cut)
            sizes = {**sizes, name: self.maps[name].size}
        return variable

    def _thinned(self, variable: Variable, result: Variable, role: Role) -> Variable:
        """Return a slot whose averages are over an axis of another length; any other as it is."""
        if role.kind != "slot" or role.of is None or role.of not in self.structure.axes:
            return result
        uses = self._uses(role.of, self._role(role.of))
        maps = {
            name: of_gradients(self.maps[name], used, 2)
            for axis_uses in uses
            for name, used in axis_uses.items()
            if name in self.maps
        }
        factor = slots.thinned(self.structure, variable.name, role, maps, self._new)
        return result if factor is None else slots.multiplied(result, factor)

    def _with_linear(
        self,
        slot: Variable,
        role: Role,
        chosen: Sequence[AxisMap | None],
        drawing: Drawing,
    ) -> Variable:
        """Return a slot of which Ftrl makes its variable again, new entries included."""
        of = role.of
        if not slots.is_linear(role) or of is None or of not in self.checkpoint:
            return slot
        roles = self.checkpoint.roles()
        accumulators = (
            name
            for name, other in roles.items()
            if other.of == of and other.slot in ("accum", "accumulator")
        )
        accumulator = next(accumulators, None)
        is_mended = self.repairs is not None and self.repairs.changes(of)
        is_mended |= any(
            self.maps[width].fold is not None
            for axis in self.structure.axes.get(of, ())
            for width in axis.widths()
            if width in self.maps
        )
        if not is_mended and not self._is_filled(of):
            return slot
        constants = slots.ftrl_of(self.structure, of)
        if accumulator is None or constants is None:
            raise PlanError(
                f"{slot.name}: Ftrl computes {of} from it, and the learning rate is in no constant "
                f"of a graph, so that {'what is mended' if is_mended else 'new units'} would be "
                f"lost; {'do not mend' if is_mended else 'fill with zeros'}, or drop the slots "
                f"before (--drop slots)"
            )
        return slots.recomputed(
            slot,
            self._resized(self.checkpoint[of], drawing),
            self._resized(self.checkpoint[accumulator], drawing),
            constants,
            _everywhere if is_mended else new_entries(chosen),
        )

    def _is_filled(self, name: str) -> bool:
        """Whether new entries of a variable hold anything but zeros."""
        variable = self.checkpoint[name]
        axes, uses = self.structure.axes[name], self._uses(name, self._role(name))
        filling = Filling(self.checkpoint, self.maps, self.looked_up, self.template)
        if filling.number(variable, axes, uses, None):
            return True
        blocks = filling.blocks(variable, self.shape_of(name), axes, uses, self._sizes, None)
        return bool(blocks)


def _everywhere(region: Region) -> Array:
    return np.ones(shape_of(region), np.bool_)
