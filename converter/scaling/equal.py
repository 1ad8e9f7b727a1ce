"""Factors with which what produces each unit of a width reaches as far as what consumes it.

References:
    Nagel et al., Data-free quantization through weight equalization and bias correction, 2019.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from typing import NamedTuple

import numpy as np

from converter.checkpoint import Checkpoint
from converter.resize.maps import places_of
from converter.scaling.multiply import Factor
from converter.scaling.widths import OnAxis, axes_with, factor_on, power
from converter.structure.layers import layers
from converter.structure.structure import Structure
from converter.variable import BLOCK_BYTES, Array, regions

_MAX_PASSES = 100
_SETTLED = 1e-4


class Normed(NamedTuple):
    """A kernel behind which each unit is normalised by moments that are stored.

    Attributes:
        kernel: the variable.
        scale: the factor of the kernel's entries that the normalisation comes to.
        gain: the variable with its gains, which takes the factors of units, so that the same is
            normalised; None where it has none, and the kernel takes them.
        before: what stands in front of the gain.
        is_folded: tells whether the normalisation does nothing, as the kernel has taken it. Then
            the kernel takes the factors, too.
    """

    kernel: str
    scale: Factor
    gain: str | None
    before: tuple[str, ...]
    is_folded: Callable[[], bool]


class Equalised:
    """What becomes of all variables so that both sides of widths have equal ranges, unit by unit.

    The range is the largest entry of what produces a unit, and of what consumes it: of the kernels
    as they act, normalisations included. Making one of these reads no values; the factors are found
    when the first of them is asked for.

    Args:
        checkpoint: the variables.
        structure: their axes.
        widths: of which units are equalised; `widths.refusal` has nothing against them.
        normed: the kernels that are normalised.
        limit: the largest factor, and one over the smallest.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        structure: Structure,
        widths: Sequence[str],
        normed: Sequence[Normed] = (),
        limit: float = 1e6,
    ) -> None:
        self._checkpoint = checkpoint
        self._structure = structure
        self._on = {width: list(axes_with(structure, checkpoint, width)) for width in widths}
        self._scales = {n.kernel: n.scale for n in normed}
        # By width, too: a depthwise kernel hands on the units of one, and produces another.
        self._gains: dict[tuple[str, str], Normed] = {}
        self._before: dict[tuple[str, str], Normed] = {}
        for one in normed:
            if one.gain is None:
                continue
            for width in self._produced_by(one.kernel):
                self._gains[width, one.gain] = one
                self._before |= {(width, name): one for name in one.before}
        self._limit = limit

    def _produced_by(self, kernel: str) -> list[str]:
        return [
            width
            for width, places in self._on.items()
            if any(on.variable == kernel and "produce" in on.uses for on in places)
        ]

    @property
    def kept(self) -> str:
        """What stays: outputs in inference alone where stored moments of batches take factors.

        Trained on, such a normalisation divides its batch by the deviation that the factors made.
        """
        roles = self._checkpoint.roles()
        means = {name for name, role in roles.items() if role.kind == "batch_statistic"}
        if self._structure.findings is not None:
            norms = (layer.normalisation for layer in layers(self._checkpoint))
            means |= {norm.mean for norm in norms if norm is not None and norm.mean is not None}
        is_inference = any(
            on.variable in means and power(on.uses) and (width, on.variable) not in self._before
            for width, places in self._on.items()
            for on in places
        )
        return "keeps the outputs in inference" if is_inference else "keeps the outputs"

    def factors(self) -> dict[str, list[Factor]]:
        """Return the factors of each variable that has any."""
        found: dict[str, list[Factor]] = {}
        for width, places in self._on.items():
            for on in places:
                is_gain = (width, on.variable) in self._gains
                if exponent := 1 if is_gain else power(on.uses):
                    values = partial(self._of, width, on.variable, exponent)
                    factor = factor_on(self._structure, on, width, values, exponent)
                    found.setdefault(on.variable, []).append(factor)
        return found

    def _of(self, width: str, variable: str, exponent: int) -> Array:
        """Return the factors of units as a variable takes them."""
        units = self.units[width]
        if exponent < 0:
            return units
        at = (width, variable)
        if at in self._gains:
            is_taken = not self._gains[at].is_folded()
        else:
            is_taken = at not in self._before or self._before[at].is_folded()
        return units if is_taken else np.ones_like(units)

    @cached_property
    def units(self) -> Mapping[str, Array]:
        """The factor of each unit, by width: float64 of shape (n,)."""
        units = {width: np.ones(self._structure.sizes[width]) for width in self._on}
        for _ in range(_MAX_PASSES):
            moved = 0.0
            for width, before in units.items():
                made, taken = self._reach(width, units, 1), self._reach(width, units, -1)
                # What no weight leads to or from has no range to share.
                known = (made > 0) & (taken > 0) & np.isfinite(made) & np.isfinite(taken)
                wanted = np.sqrt(np.where(known, taken, 1.0)) / np.sqrt(np.where(known, made, 1.0))
                new = np.clip(before * wanted, 1 / self._limit, self._limit)
                moved = max(moved, float(np.abs(np.log(new / before)).max(initial=0.0)))
                units[width] = new
            if moved < _SETTLED:
                break
        return units

    def _reach(self, width: str, units: Mapping[str, Array], side: int) -> Array:
        """Return the largest entry of each unit on one side, with the factors found so far.

        Args:
            width: the width.
            units: the factors.
            side: 1 for what produces it, -1 for what consumes it.
        """
        found = np.zeros(self._structure.sizes[width])
        for on in self._kernels(width, "produce" if side > 0 else "consume"):
            largest = self._largest(on, units)
            places = places_of(on.axis, self._structure.sizes, width)
            found = np.maximum(found, largest[places].max(axis=0, initial=0.0))
        return found

    def _kernels(self, width: str, use: str) -> list[OnAxis]:
        """Return what makes or takes a width; biases count where there is nothing else."""
        all_of_them = [on for on in self._on[width] if use in on.uses]
        kernels = [on for on in all_of_them if len(self._structure.axes[on.variable]) > 1]
        return kernels or all_of_them

    def _largest(self, on: OnAxis, units: Mapping[str, Array]) -> Array:
        """Return the largest entry of a kernel, as it acts, for each place on an axis."""
        variable = self._checkpoint[on.variable]
        factors = list(self._acting(on.variable, units))
        largest = np.zeros(variable.shape[on.number])
        others = tuple(k for k in range(len(variable.shape)) if k != on.number)
        for region in regions(variable.shape, BLOCK_BYTES // variable.dtype.itemsize):
            values = np.abs(np.asarray(variable.read(region), np.float64))
            for factor in factors:
                values *= factor.at(region)
            part = region[on.number]
            largest[part] = np.maximum(largest[part], values.max(axis=others, initial=0.0))
        return largest

    def _acting(self, name: str, units: Mapping[str, Array]) -> Iterator[Factor]:
        if name in self._scales:
            yield self._scales[name]
        for width, places in self._on.items():
            for on in places:
                if on.variable == name and (exponent := power(on.uses)):
                    values: Callable[[], Array] = partial(units.__getitem__, width)
                    yield factor_on(self._structure, on, width, values, exponent)
