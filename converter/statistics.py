"""The values of variables in figures, and how they moved over the steps of a run."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from converter.checkpoint import Checkpoint, open_checkpoint
from converter.location import find
from converter.variable import Array, Variable

_BLOCK_ITEMS = 1 << 18  # the arithmetic takes several times eight bytes for each
_STEP = re.compile(r"(?s)(.*)-([0-9]{1,18})")

Progress = Callable[[int], None]
"""Called with the number of bytes of each block that was read."""


def _ignore(count: int) -> None:
    pass


@dataclass(frozen=True, slots=True)
class Statistics:
    """The values of a variable in figures, in float64; of complex numbers, their magnitudes.

    Attributes:
        nans: elements that are no number.
        infinities: elements that are infinite.
        zeros: elements that are zero.
        minimum: of the finite elements, as all that follow; None where there are none.
        norm: the square root of the sum of squares.
    """

    size: int
    nans: int
    infinities: int
    zeros: int
    minimum: float | int | None
    maximum: float | int | None
    mean: float | None
    deviation: float | None
    norm: float


@dataclass(slots=True)
class _Moments:
    size: int = 0
    nans: int = 0
    infinities: int = 0
    zeros: int = 0
    extremes: list[float | int] = field(default_factory=list)
    count: int = 0
    mean: float = 0.0
    spread: float = 0.0  # the sum of squared deviations from the mean
    squares: float = 0.0

    def add(self, values: Array) -> None:
        """Take in more values, as flat int64, uint64 or float64."""
        self.size += values.size
        self.zeros += int(np.count_nonzero(values == 0))
        if values.dtype == np.float64:
            finite = np.isfinite(values)
            if not finite.all():
                nans = int(np.count_nonzero(np.isnan(values)))
                self.nans += nans
                self.infinities += values.size - int(np.count_nonzero(finite)) - nans
                values = values[finite]
        if not values.size:
            return
        self.extremes = [
            min([*self.extremes, values.min().item()]),
            max([*self.extremes, values.max().item()]),
        ]
        values = values.astype(np.float64, copy=False)
        # Chan, Golub and LeVeque, Updating formulae and a pairwise algorithm for computing
        # sample variances, 1979.
        count, mean = self.count + values.size, float(values.mean())
        shift = mean - self.mean
        self.spread += _squares(values - mean) + shift * shift * self.count * values.size / count
        self.mean += shift * values.size / count
        self.squares += _squares(values)
        self.count = count


def statistics(variable: Variable, *, progress: Progress = _ignore) -> Statistics | None:
    """Read a variable block by block and return its statistics; None where it holds no numbers."""
    if not variable.dtype.itemsize:
        return None
    moments = _Moments()
    with np.errstate(over="ignore", invalid="ignore"):
        for block in _numbers(variable, progress):
            moments.add(np.abs(block) if block.dtype == np.complex128 else block)
    low, high = moments.extremes or (None, None)
    return Statistics(
        moments.size,
        moments.nans,
        moments.infinities,
        moments.zeros,
        low,
        high,
        moments.mean if moments.count else None,
        math.sqrt(moments.spread / moments.count) if moments.count else None,
        math.sqrt(moments.squares),
    )


@dataclass(frozen=True, slots=True)
class Movement:
    """The norm of a variable in each of several checkpoints.

    Attributes:
        name: the variable.
        norms: one for each checkpoint; None where it is missing, or holds no numbers.
        distance: norm of the difference between its first and its last values; None where
            there is one only, or the shape changed.
    """

    name: str
    norms: tuple[float | None, ...]
    distance: float | None


def movements(
    checkpoints: Sequence[Mapping[str, Variable]], *, progress: Progress = _ignore
) -> Iterator[Movement]:
    """Yield the norms of every variable that holds numbers, over checkpoints in their order."""
    for name in dict.fromkeys(name for checkpoint in checkpoints for name in checkpoint):
        found = [checkpoint.get(name) for checkpoint in checkpoints]
        held = [v for v in found if v is not None and v.dtype.is_number]
        if held:
            norms = tuple(
                norm(v, progress=progress) if v is not None and v.dtype.is_number else None
                for v in found
            )
            yield Movement(name, norms, distance(held[0], held[-1]) if held[1:] else None)


def norm(variable: Variable, *, progress: Progress = _ignore) -> float:
    """Return the square root of the sum of squares of a variable's values, in float64."""
    with np.errstate(over="ignore", invalid="ignore"):
        return math.sqrt(sum(_squares(_inexact(block)) for block in _numbers(variable, progress)))


def distance(a: Variable, b: Variable) -> float | None:
    """Return the norm of the difference between two variables; None if their shapes differ."""
    if a.shape != b.shape:
        return None
    with np.errstate(over="ignore", invalid="ignore"):
        pairs = zip(_numbers(a, _ignore), _numbers(b, _ignore), strict=True)
        return math.sqrt(sum(_squares(_inexact(one) - _inexact(other)) for one, other in pairs))


def _numbers(variable: Variable, progress: Progress) -> Iterator[Array]:
    for block in variable.blocks(_BLOCK_ITEMS * variable.dtype.itemsize):
        yield block.reshape(-1).astype(variable.dtype.wide)
        progress(block.nbytes)


def _inexact(values: Array) -> Array:
    return values if values.dtype == np.complex128 else values.astype(np.float64, copy=False)


def _squares(values: Array) -> float:
    # Not by BLAS: its threads wait for each other longer than so short a sum takes.
    return float(np.square(np.abs(values)).sum())


def open_run(path: str | os.PathLike[str], *, verify: bool = True) -> list[Checkpoint]:
    """Open a checkpoint or, given a directory, all checkpoints of its run, in order of steps.

    The run is the one of the checkpoint that `open_checkpoint` would open there: all whose names
    differ from its name in the step only.

    Raises:
        InputError: there is none, or one is damaged.
    """
    current = open_checkpoint(path, verify=verify)
    run = _STEP.fullmatch(current.name)
    if run is None or not Path(path).is_dir():
        return [current]
    steps = {
        int(match[2]): location.path
        for location in find(Path(path), deep=False)
        if (match := _STEP.fullmatch(location.name)) and match[1] == run[1]
    }
    return [open_checkpoint(steps[step], verify=verify) for step in sorted(steps)] or [current]
