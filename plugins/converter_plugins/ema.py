"""Decides between trained values and their moving averages."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from converter import PlanError, Strategy, hookimpl, option

if TYPE_CHECKING:
    from converter import Checkpoint, Variable

# TensorFlow's name for the average of a variable, which is also there when the variable is not.
_SUFFIX = "/ExponentialMovingAverage"


@dataclass(frozen=True)
class Ema(Strategy):
    """Use, keep or drop the moving averages of variables.

    With `use`, averages take the places and the names of their variables, whose trained values
    are left out; optimizer slots stay as they are. An average whose variable is not there gets
    that variable's name. What else belongs to the averaging is left out.

    Example:
        convert ckpt model.ckpt --ema use --drop optimizer -o out/
    """

    name: ClassVar[str] = "ema"
    ema: Literal["use", "keep", "drop"] = option(
        help="averages take the place of their variables, stay, or are left out",
    )

    def apply(self, checkpoint: Checkpoint) -> Iterable[Variable]:
        averages = _averages(checkpoint)
        if self.ema == "keep":
            return list(checkpoint.values())
        if self.ema == "use":
            return _used(checkpoint, averages)
        return [variable for name, variable in checkpoint.items() if name not in averages]

    def notes(self, checkpoint: Checkpoint) -> Iterable[str]:
        averages = _averages(checkpoint)
        if not averages:
            yield "no variable is a moving average"
        elif self.ema == "use" and any(_variable_of(n, checkpoint) in checkpoint for n in averages):
            yield "changes the outputs to those of the averages"


def _averages(checkpoint: Checkpoint) -> set[str]:
    return {name for name, role in checkpoint.roles().items() if role.kind == "average"}


def _used(checkpoint: Checkpoint, averages: set[str]) -> list[Variable]:
    """Return the variables with their averages in their places."""
    average_of: dict[str, str] = {}
    for name in averages:
        of = _variable_of(name, checkpoint)
        if of is None:
            continue
        if (other := average_of.setdefault(of, name)) != name:
            both = " and ".join(sorted((other, name)))
            raise PlanError(f"{of}: both {both} are averages of it; drop one before")
        if of in checkpoint and checkpoint[of].shape != checkpoint[name].shape:
            raise PlanError(
                f"{of}: it is {list(checkpoint[of].shape)}, and its average {name} is "
                f"{list(checkpoint[name].shape)}; resize both, or drop the average before"
            )
    if not average_of:
        raise PlanError("ema: no variable has a moving average that could be used; leave ema out")
    result = []
    for name, variable in checkpoint.items():
        if name in average_of:
            result.append(checkpoint[average_of[name]].rename(name))
        elif name not in averages:
            result.append(variable)
        elif (of := _variable_of(name, checkpoint)) is not None and of not in checkpoint:
            result.append(variable.rename(of))
    return result


def _variable_of(name: str, checkpoint: Checkpoint) -> str | None:
    """Return the variable whose place an average takes, or None if it takes none.

    None for what zero-debiasing keeps beside an average, and for averages of optimizer state.
    """
    role = checkpoint.roles()[name]
    if role.slot is not None or role.is_optimizer_state:
        return None
    return role.of or (name.removesuffix(_SUFFIX) if name.endswith(_SUFFIX) else None)


@hookimpl
def converter_strategies() -> Iterable[type[Strategy]]:
    yield Ema
