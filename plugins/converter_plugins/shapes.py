"""Resizing in the plain meaning: axes grow or are cut at their end, and nothing follows."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from converter import (
    Checkpoint,
    PlanError,
    Role,
    Strategy,
    UsageError,
    Variable,
    by_name,
    open_checkpoint,
    option,
)
from converter.patterns import nearest

Shape = tuple[int, ...]


@dataclass(frozen=True)
class ToShapes(Strategy, ABC):
    """Give variables the shapes of a template or explicit ones."""

    like: Path | None = option(
        None,
        help="a checkpoint whose shapes are wanted, variable by variable",
        metavar="TEMPLATE",
        shared=True,
    )
    shape: Mapping[str, tuple[int, ...]] = option(
        {},
        help="the wanted shape of the variables that a glob fits; wins over --like",
        metavar="GLOB=SIZES",
        shared=True,
    )

    def __post_init__(self) -> None:
        if self.like is None and not self.shape:
            raise UsageError("no shapes are given; use --like TEMPLATE or --shape 'GLOB=SIZES'")
        for glob, sizes in self.shape.items():
            if min(sizes, default=0) < 0:
                raise UsageError(f"shape {glob!r}: sizes cannot be negative, got {list(sizes)}")

    def apply(self, checkpoint: Checkpoint) -> Iterable[Variable]:
        wanted = self._wanted(checkpoint)
        changed = [name for name, v in checkpoint.items() if v.shape != wanted[name]]
        for name in changed:
            self._check(checkpoint[name], wanted[name])
        _check_companions(checkpoint, wanted)
        roles = checkpoint.roles()
        for name, variable in checkpoint.items():
            shape = wanted[name]
            if shape == variable.shape:
                yield variable
            else:
                yield self.resize(variable, shape, roles[name])

    @abstractmethod
    def resize(self, variable: Variable, shape: Shape, role: Role) -> Variable:
        """Return the variable in a shape of the same rank that differs from its own."""

    @abstractmethod
    def refusal(self, old: int, new: int) -> str | None:
        """Return why an axis cannot go from one size to another, or None where it can."""

    def _wanted(self, checkpoint: Checkpoint) -> dict[str, Shape]:
        """Return the wanted shape of every variable, which is its own where nothing says more."""
        wanted = {name: variable.shape for name, variable in checkpoint.items()}
        if self.like is not None:
            template = open_checkpoint(self.like)
            common = [name for name in wanted if name in template]
            if not common:
                first = next(iter(wanted), "")
                raise UsageError(
                    f"{self.like}: the template has none of the {len(wanted)} variables, such as "
                    f"{first!r}{nearest(first, template)}"
                )
            wanted |= {name: template[name].shape for name in common}
        return wanted | by_name(self.shape, checkpoint)

    def _check(self, variable: Variable, shape: Shape) -> None:
        turned = f"{self.name} cannot turn {list(variable.shape)} into {list(shape)}"
        if variable.dtype.name == "variant":
            raise PlanError(f"{variable.name}: {turned}; the bytes of a variant are opaque")
        if len(shape) != len(variable.shape):
            raise PlanError(f"{variable.name}: {turned}; the number of axes differs")
        for old, new in zip(variable.shape, shape, strict=True):
            if old != new and (reason := self.refusal(old, new)):
                raise PlanError(f"{variable.name}: {turned}; {reason}")


def _check_companions(checkpoint: Checkpoint, wanted: Mapping[str, Shape]) -> None:
    """Refuse to leave a slot or an average that does not fit its variable any more.

    A training run that restores it would fail, or worse, not fail.
    """
    for name, role in checkpoint.roles().items():
        if role.of is None or role.of not in checkpoint:
            continue
        own, old = checkpoint[name].shape, checkpoint[role.of].shape
        if not _fits((own, wanted[name]), (old, wanted[role.of])):
            kind, word = ("average", "averages") if role.kind == "average" else ("slot", "slots")
            sizes = ",".join(map(str, wanted[role.of]))
            raise PlanError(
                f"{name}: as the {kind} of {role.of} it would be {list(wanted[name])} beside "
                f"{list(wanted[role.of])}; resize it too (--shape '{name}={sizes}'), or drop it "
                f"before (--drop {word})"
            )


def _fits(slot: tuple[Shape, Shape], variable: tuple[Shape, Shape]) -> bool:
    """Whether a slot fits its variable after both went from one shape to another."""
    (own_old, own_new), (old, new) = slot, variable
    if own_old == own_new and old == new:
        return True
    if own_old == old:
        return own_new == new
    # Factored and matrix-like slots (Adafactor, Shampoo) have sizes of single axes.
    return set(own_new) <= {1, *new}
