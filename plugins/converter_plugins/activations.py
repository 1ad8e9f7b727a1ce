"""Statistics of what units are on data, from a file that `convert stats` writes."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from converter import Array, Checkpoint, InputError, PlanError, UsageError, open_checkpoint
from converter.patterns import nearest
from converter.structure.called import called_in_graph

if TYPE_CHECKING:
    from converter import Consumer, Coupled
    from converter.structure.structure import Structure

_CONSUMED = "/consumed"
_NEVER_NEGATIVE = frozenset(["mean_abs", "std"])
_SLACK = 1e-6
_MATRIX = 2


def activations_of(checkpoint: Checkpoint, path: Path) -> Activations:
    """Open a file of statistics for a checkpoint; its values are read when they are asked for.

    Raises:
        UsageError: there is no such file, or it is about none of the variables.
        InputError: it is unreadable or damaged.
    """
    # Once for all widths.
    return checkpoint.once((Activations, path), lambda: _opened(checkpoint, path))


def _opened(checkpoint: Checkpoint, path: Path) -> Activations:
    entries = open_checkpoint(path)
    names = dict.fromkeys(
        key.rpartition("/")[0].removesuffix(_CONSUMED) for key in entries if "/" in key
    )
    called = called_in_graph(checkpoint)
    here = {old for name, olds in called.items() for old in (name, *olds)}
    if here.isdisjoint(names):
        first = next(iter(names), None)
        raise UsageError(
            f"{path}: it has no key VARIABLE/STATISTIC; convert stats makes such files"
            if first is None
            else f"{path}: none of its statistics is of a variable that is here, such as "
            f"{first!r}{nearest(first, checkpoint)}"
        )
    return Activations(path, checkpoint, entries)


@dataclass(frozen=True, eq=False)
class Activations:
    """What a file says of the units that variables consume and produce.

    Attributes:
        path: of the file.
        checkpoint: the variables.
        entries: of the file.
    """

    path: Path
    checkpoint: Checkpoint
    entries: Checkpoint

    def knows(self, variable: str) -> bool:
        """Tell whether it says anything of what a variable consumes."""
        return f"{self._called(variable)}{_CONSUMED}/mean" in self.entries

    def consumers(self, coupled: Coupled, statistics: Sequence[str]) -> list[Consumer]:
        """Return what consumes the units of a width, as far as the file knows of it.

        Args:
            coupled: the width.
            statistics: what it has to tell of each. No value is read.

        Raises:
            PlanError: it knows of none of them, or lacks a statistic, or it is of another size.
        """
        every = list(coupled.consumers())
        found = [c for c in every if self.knows(c.variable.name)]
        if not found:
            if not every:
                raise PlanError(
                    f"{coupled.width}: no variable consumes its units on an axis that does not "
                    f"make them, so no statistics tell of them; choose by something else"
                )
            raise PlanError(
                f"{coupled.width}: {self.path} says nothing of what {every[0].variable.name} "
                f"consumes; measure it (convert stats), or choose by something else"
            )
        for consumer in found:
            for statistic in statistics:
                self.check(consumer.variable.name, statistic, consumer.length)
        return found

    def check(self, variable: str, statistic: str, length: int) -> None:
        """Raise PlanError where a statistic of what a variable consumes is missing or misfits."""
        entry = self.entries.get(self._key(variable, statistic))
        if entry is None:
            more = f" --covariance '{variable}'" if statistic == "covariance" else ""
            raise PlanError(
                f"{variable}: {self.path} has no {statistic} of what it consumes; measure it "
                f"(convert stats MODEL --data FILE{more} -o {self.path.name})"
            )
        wanted = (length, length) if statistic == "covariance" else (length,)
        if entry.shape != wanted and entry.shape == (self._together(variable, length),):
            raise PlanError(
                f"{variable}: the {statistic} of what it consumes is {list(entry.shape)} in "
                f"{self.path}: of several axes together, and this width is one of them; choose by "
                "something else"
            )
        if entry.shape != wanted and self._is_of_another(variable, entry.shape):
            raise PlanError(
                f"{variable}: the {statistic} of what it consumes is {list(entry.shape)} in "
                f"{self.path}: of another of its axes, and no more can be measured; choose by "
                "something else"
            )
        if entry.shape != wanted:
            raise PlanError(
                f"{variable}: the {statistic} of what it consumes is {list(entry.shape)} in "
                f"{self.path}, and here it consumes {length}; measure this checkpoint"
            )
        if not entry.dtype.is_float:
            raise PlanError(
                f"{variable}: the {statistic} of what it consumes is {entry.dtype} in {self.path}; "
                f"it must be floats"
            )

    def scarce(self, structure: Structure, widths: Collection[str]) -> Iterator[str]:
        """Say which covariances are singular, as there are no more observations than units.

        Args:
            structure: the axes of the variables.
            widths: the covariances are those of what consumes their units.
        """
        found: list[tuple[str, int, int]] = []
        for name, uses in structure.uses.items():
            if not any("consume" in used.get(width, ()) for used in uses for width in widths):
                continue
            covariance = self.entries.get(self._key(name, "covariance"))
            count = self._count(name)
            if covariance is not None and count is not None and count <= covariance.shape[0]:
                found.append((name, covariance.shape[0], count))
        if found:
            name, units, count = found[0]
            more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
            yield (
                f"{name}{more}: the covariance of the {units} units that it consumes is of {count} "
                f"observations, which is too few to tell all of them apart; measure more data "
                f"(convert stats)"
            )

    def _count(self, variable: str) -> int | None:
        """Return the observations of what a variable consumes; None where the file tells none."""
        entry = self.entries.get(self._key(variable, "count"))
        if entry is None or entry.shape or not entry.dtype.is_number:
            return None
        count = entry.read()
        return int(count) if count.dtype.kind in "iu" else None

    def _together(self, variable: str, length: int) -> int:
        """Return the size of the first axes of a variable, if one of them is of a length."""
        shape = self.checkpoint[variable].shape if variable in self.checkpoint else ()
        return math.prod(shape[:-1]) if length in shape[:-1] else length

    def _is_of_another(self, variable: str, shape: tuple[int, ...]) -> bool:
        """Tell whether a statistic has the length of another axis that a variable contracts."""
        sizes = self.checkpoint[variable].shape if variable in self.checkpoint else ()
        return len(sizes) > _MATRIX and set(shape) <= set(sizes[:-1])

    def read(self, variable: str, statistic: str) -> Array:
        """Return a statistic of what a variable consumes, which was checked: float64.

        Raises:
            InputError: it has NaN or infinities, or numbers that no such statistic has.
        """
        values = self.entries[self._key(variable, statistic)].read().astype(np.float64)
        subject = f"{self.path}: the {statistic} of what {variable} consumes"
        if not np.isfinite(values).all():
            raise InputError(f"{subject} has NaN or infinities; measure it again")
        if statistic in _NEVER_NEGATIVE and (values < 0).any():
            raise InputError(f"{subject} has negative numbers; measure it again")
        if statistic == "covariance":
            variances = np.diagonal(values)
            scale = np.sqrt(np.abs(np.outer(variances, variances)))
            if (variances < 0).any() or (np.abs(values - values.T) > _SLACK * scale).any():
                raise InputError(
                    f"{subject} is none: it is not symmetric, or has negative variances"
                )
            values = (values + values.T) / 2
        return values

    def moments(self, variable: str, *, centred: bool) -> Array:
        """Return the products of what a variable consumes, in the mean, by pairs of entries.

        Args:
            variable: its name.
            centred: whether the means are taken off: then it is the covariance.
        """
        covariance = self.read(variable, "covariance")
        if centred:
            return covariance
        mean = self.read(variable, "mean")
        found: Array = covariance + np.outer(mean, mean)
        return found

    def _key(self, variable: str, statistic: str) -> str:
        return f"{self._called(variable)}{_CONSUMED}/{statistic}"

    def _called(self, variable: str) -> str:
        """Return what the file calls a variable, which may have been renamed since."""
        if f"{variable}{_CONSUMED}/mean" in self.entries or variable not in self.checkpoint:
            return variable
        olds = called_in_graph(self.checkpoint)[variable]
        return olds[0] if len(olds) == 1 else variable
