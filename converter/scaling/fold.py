"""Batch normalisations that are moved into the kernels before them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from converter.checkpoint import Checkpoint
from converter.errors import PlanError
from converter.names import Role
from converter.resize import slots
from converter.rounding import round_to
from converter.scaling.multiply import Factor, along, multiply, times
from converter.structure.structure import Structure
from converter.variable import Array, Region, Variable

# Of 1 - epsilon and of what is added to it, in float32.
_ROUNDING = 1e-5


class Foldable(NamedTuple):
    """A batch normalisation that takes what kernels make, and nothing else does.

    Attributes:
        kernels: the variables, each with the first axis of the units.
        bias: what is added in front of the normalisation, or None.
        gamma, beta: the variables, or None.
        mean, variance: the variables.
        epsilon: what is added to the variance.
        is_behind: whether an activation function stands between that a positive factor can be
            taken out of; the offset stays behind it.
    """

    kernels: tuple[tuple[str, int], ...]
    bias: str | None
    gamma: str | None
    beta: str | None
    mean: str
    variance: str
    epsilon: float
    is_behind: bool

    @property
    def vectors(self) -> tuple[str, ...]:
        """The variables with one number for each unit."""
        found = (self.bias, self.gamma, self.beta, self.mean, self.variance)
        return tuple(name for name in found if name is not None)


@dataclass(frozen=True, eq=False)
class _Values:
    """What becomes of one normalisation; all numbers are float64 of shape (units,).

    Attributes:
        of: the normalisation.
        read: gives what a variable, or its average, holds.
    """

    of: Foldable
    read: Callable[[str], Array]

    @cached_property
    def scale(self) -> Array:
        """The factor of what is normalised."""
        root = np.sqrt(self.read(self.of.variance) + self.of.epsilon)
        gamma = 1.0 if self.of.gamma is None else self.read(self.of.gamma)
        found: Array = gamma / root
        return found

    @cached_property
    def kernel(self) -> Array:
        """The factor of the kernel."""
        if not self.of.is_behind:
            return self.scale
        # No factor but a positive one goes through; without any, the gain is what stops the unit.
        found: Array = np.where(self.scale == 0, 1.0, np.abs(self.scale))
        return found

    def factor(self) -> Array:
        """Return the factor of the kernel, for what calls for it."""
        return self.kernel

    def vector(self, name: str) -> Array:
        """Return what a variable with one number for each unit holds in the end."""
        of = self.of
        ones = np.ones_like(self.scale)
        if name == of.variance:
            # The graph adds the epsilon still.
            return ones - of.epsilon
        if name == of.gamma:
            return np.sign(self.scale) if of.is_behind else ones
        if of.is_behind:
            return self._behind(name)
        if name == (of.bias or of.beta):
            return self._shift
        return -self._shift if name == of.mean and not (of.bias or of.beta) else 0 * ones

    def _behind(self, name: str) -> Array:
        of = self.of
        if name == of.bias:
            return self.read(name) * self.kernel
        if of.beta is None:
            return self.read(of.mean) * self.kernel
        if name == of.beta:
            shifted: Array = self.read(name) - self.scale * self.read(of.mean)
            return shifted
        return np.zeros_like(self.scale)

    @cached_property
    def _shift(self) -> Array:
        bias = 0.0 if self.of.bias is None else self.read(self.of.bias)
        beta = 0.0 if self.of.beta is None else self.read(self.of.beta)
        found: Array = beta + (bias - self.read(self.of.mean)) * self.scale
        return found


def folded(
    checkpoint: Checkpoint, structure: Structure, foldable: Sequence[Foldable]
) -> Iterator[Variable]:
    """Give all variables, with normalisations in the kernels before them.

    The normalisations stay in the graph, as ones that do nothing. Averages are folded with the
    averages, and slots of kernels and biases follow their gradients.

    Raises:
        PlanError: some of the variables of one normalisation have averages and others, which would
            need them, have none; or a slot has no rule.
    """
    roles = {
        name: role if role.of is not None else structure.follows.get(name, role)
        for name, role in checkpoint.roles().items()
    }
    factors: dict[str, list[Factor]] = {}
    replaced: dict[str, Variable] = {}
    for one in foldable:
        values = _Values(one, _reader(checkpoint, {}))
        for name, axis in one.kernels:
            factors[name] = [along(checkpoint[name], axis, values.factor)]
        if one.bias is not None:
            factors[one.bias] = [along(checkpoint[one.bias], 0, values.factor)]
        replaced |= _vectors(checkpoint, values, {})
        for averages in _averages(checkpoint, roles, one):
            own = _Values(one, _reader(checkpoint, averages))
            replaced |= _vectors(checkpoint, own, averages)
            for name, axis in one.kernels:
                average = checkpoint[averages[name]]
                factor = along(average, axis, own.factor)
                replaced[average.name] = times(average, [factor])
    _check_slots(roles, replaced)
    found = multiply(checkpoint, factors, is_kept=True, follows=structure.follows)
    return (replaced.get(variable.name, variable) for variable in found)


def scale_of(checkpoint: Checkpoint, one: Foldable) -> Array:
    """Return the factor that a normalisation comes to, of each unit: float64 of shape (n,)."""
    scale: Array = _Values(one, _reader(checkpoint, {})).scale
    return scale


def does_nothing(checkpoint: Checkpoint, one: Foldable) -> bool:
    """Whether a normalisation multiplies by no more than a sign, as one that was folded."""
    scale = np.abs(scale_of(checkpoint, one))
    return bool(np.all((scale == 0) | (np.abs(scale - 1) < _ROUNDING)))


def _reader(checkpoint: Checkpoint, averages: Mapping[str, str]) -> Callable[[str], Array]:
    def read(name: str) -> Array:
        variable = checkpoint[averages.get(name, name)]
        return np.asarray(variable.read(), np.float64).reshape(-1)

    return read


def _vectors(
    checkpoint: Checkpoint, values: _Values, averages: Mapping[str, str]
) -> Iterator[tuple[str, Variable]]:
    for name in values.of.vectors:
        if not averages or name in averages:
            variable = checkpoint[averages.get(name, name)]
            yield variable.name, _holding(variable, values, name)


def _holding(variable: Variable, values: _Values, name: str) -> Variable:
    def load(region: Region) -> Array:
        found = values.vector(name).reshape(variable.shape)[region]
        return round_to(found, variable.dtype, variable.counts)

    return variable.derive(load)


def _averages(
    checkpoint: Checkpoint, roles: Mapping[str, Role], one: Foldable
) -> Iterator[dict[str, str]]:
    """Yield the averages of the variables of a normalisation, by variable, where it has any."""
    found: dict[str, str] = {}
    names = {name for name, _ in one.kernels} | set(one.vectors)
    for name, role in roles.items():
        is_average = role.kind == "average" and role.optimizer is None and role.slot is None
        is_copy = role.kind == "slot" and slots.holds_values(role)
        if role.of in names and (is_average or is_copy):
            if checkpoint[name].shape != checkpoint[role.of].shape:
                continue
            if other := found.get(role.of):
                raise PlanError(
                    f"{role.of}: both {other} and {name} are averages of it; drop one before"
                )
            found[role.of] = name
    if not found:
        return
    shift = (one.beta if one.is_behind else one.bias or one.beta) or one.mean
    needed = [*(name for name, _ in one.kernels), *filter(None, (one.bias,)), shift]
    if lacking := next((name for name in needed if name not in found), None):
        has = next(iter(found))
        raise PlanError(
            f"{lacking}: it has no average, and {has} beside it has {found[has]}, which cannot be "
            f"folded without; drop the averages before (--drop averages), or use them (--ema use)"
        )
    yield found


def _check_slots(roles: Mapping[str, Role], replaced: Mapping[str, Variable]) -> None:
    for name, role in roles.items():
        if slots.is_linear(role) and role.of in replaced:
            raise PlanError(
                f"{name}: Ftrl computes {role.of} from it, and that changes; drop the slots before "
                f"(--drop slots)"
            )
