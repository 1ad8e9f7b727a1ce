"""Variables times factors, and the slots and averages that follow them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from converter.checkpoint import Checkpoint
from converter.errors import PlanError
from converter.names import Role
from converter.resize import slots
from converter.rounding import round_to
from converter.variable import Array, Region, Variable


class Factor(NamedTuple):
    """What the entries of a variable are multiplied by.

    Attributes:
        axis: the first axis that it goes along.
        values: gives float64 of the shape of that axis, of several from it on, or of () for one
            number. Called when the first values of a variable are asked for.
    """

    axis: int
    values: Callable[[], Array]

    def at(self, region: Region) -> Array:
        """Return the factors of a region, in a shape that broadcasts to it."""
        values = self.values()
        found = np.asarray(values[region[self.axis : self.axis + values.ndim]])
        return found.reshape((*found.shape, *[1] * (len(region) - self.axis - values.ndim)))


Factors = Mapping[str, Sequence[Factor]]
"""By variable; the product of all of them counts."""


def one_number(number: float) -> Factor:
    """Return the factor that all entries share."""
    return Factor(0, lambda: np.asarray(number, np.float64))


def along(variable: Variable, axis: int, values: Callable[[], Array]) -> Factor:
    """Return the factor of a variable by units.

    Args:
        variable: the variable.
        axis: the first one that the units go along: a depthwise kernel has one for channels and one
            for multipliers.
        values: gives float64 of shape (units,), or of () for one number.
    """
    shape = variable.shape[axis:]

    def spread() -> Array:
        found = values()
        is_split = found.ndim == 1 and found.size != shape[0]
        return found.reshape(shape) if is_split else found

    return Factor(axis, spread)


def times(variable: Variable, factors: Sequence[Factor]) -> Variable:
    """Return a float variable times factors, rounded once."""
    if not factors:
        return variable

    def load(region: Region) -> Array:
        values = variable.load(region)
        # numpy's warning would say a second time that values overflow.
        with np.errstate(over="ignore", invalid="ignore"):
            # In float64 whatever the dtype: what is rounded twice misses the nearest now and then.
            products = values.astype(np.float64)
            for factor in factors:
                products *= factor.at(region)
        return round_to(products, variable.dtype, variable.counts, before=values)

    return variable.derive(load)


def multiply(
    checkpoint: Checkpoint,
    factors: Factors,
    *,
    is_kept: bool,
    follows: Mapping[str, Role] | None = None,
) -> Iterator[Variable]:
    """Give all variables, some times factors, with the slots and averages that follow these.

    Averages are multiplied as their variables are. Gradients of a variable that is multiplied and
    whose effect is divided again are divided by its factors, and so are the slots that hold them;
    where the effect is another one, so are the gradients, and slots stay what they are.

    Args:
        checkpoint: the variables.
        factors: of some of them, which hold floats.
        is_kept: whether the model computes what it did.
        follows: the roles of slots and averages that their names do not tell.

    Raises:
        PlanError: a variable holds no floats, or a slot has no rule.
    """
    roles = checkpoint.roles()
    for name, variable in checkpoint.items():
        if name in factors:
            if not variable.dtype.is_float:
                raise PlanError(
                    f"{name}: only floats can be multiplied, and it is {variable.dtype}; choose "
                    f"others"
                )
            yield times(variable, factors[name])
            continue
        role = roles[name]
        if role.of is None and follows is not None:
            role = follows.get(name, role)
        of = role.of
        if of is None or of not in factors or not variable.dtype.is_float:
            yield variable
            continue
        yield times(variable, following(variable, role, checkpoint[of], factors[of], is_kept))


def following(
    variable: Variable, role: Role, of: Variable, factors: Sequence[Factor], is_kept: bool
) -> Sequence[Factor]:
    """Return the factors of a slot or an average of a variable that has these.

    Args:
        variable: the slot or the average.
        role: what it is.
        of: its variable.
        factors: of that.
        is_kept: whether the model computes what it did.

    Raises:
        PlanError: no rule tells.
    """
    if slots.holds_values(role):
        is_value = role.optimizer is None or role.kind == "slot"
        return factors if is_value and variable.shape == of.shape else ()
    if slots.is_linear(role):
        # Ftrl computes its variable from it, divided by the root of the sum of squared gradients.
        return () if is_kept else factors
    if not is_kept:
        return ()
    power = slots.power_of(variable.name, role)
    if power == 0:
        return ()
    return [
        found
        for factor in factors
        if (found := _of_gradients(variable, role, of, factor, power)) is not None
    ]


def _of_gradients(
    variable: Variable, role: Role, of: Variable, factor: Factor, power: int
) -> Factor | None:
    def inverse() -> Array:
        values = factor.values()
        # What is multiplied by zero has no gradient any more, and had none that would tell.
        known = np.where(values == 0, 1.0, values)
        result: Array = known**-power
        return result

    if variable.shape == of.shape:
        return Factor(factor.axis, inverse)
    lost = slots.lost_axis(len(variable.shape), len(of.shape), role)
    kept = None if lost is None else (*of.shape[:lost], *of.shape[lost + 1 :])
    if kept != variable.shape:
        # Zero-debiasing, counters: what has a shape of its own holds none of the entries.
        if variable.shape in ((), (1,)):
            return None
        raise PlanError(
            f"{variable.name}: it is {list(variable.shape)} beside {of.name} of {list(of.shape)}, "
            f"which is scaled, and no rule tells how it follows; drop it before (--drop slots)"
        )
    assert lost is not None

    def averaged() -> Array:
        values = inverse()
        along = lost - factor.axis
        return values.mean(axis=along) if 0 <= along < values.ndim else values

    return Factor(factor.axis - (lost < factor.axis), averaged)
