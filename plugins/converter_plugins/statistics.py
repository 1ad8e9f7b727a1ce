"""Reads files of activation statistics: what `scale` divides by."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from converter import (
    Array,
    Checkpoint,
    InputError,
    PlanError,
    Region,
    UsageError,
    Variable,
    open_checkpoint,
)
from converter.dtype import BY_NUMPY
from converter.formats.npz import Header, read_headers
from converter.patterns import nearest

_SUFFIX = "/mean_abs"


def read_mean_abs(path: Path, checkpoint: Checkpoint) -> dict[str, Array]:
    """Return the mean absolute value of each variable that the file has one for.

    Args:
        path: `.npz`, or whatever `open_checkpoint` takes, with keys `VARIABLE/mean_abs`.
        checkpoint: the variables.

    Returns:
        By variable name, an array of shape () or (size of the variable's last axis,), of finite
        numbers that are not negative.

    Raises:
        UsageError: the file is about none of the variables.
        PlanError: a statistic has another shape or is no such number.
        InputError: the file is unreadable or damaged.
    """
    is_npz = path.suffix == ".npz"
    entries = Checkpoint(_npz(path), path=path) if is_npz else open_checkpoint(path)
    about = {key.removesuffix(_SUFFIX): key for key in entries if key.endswith(_SUFFIX)}
    found = [name for name in about if name in checkpoint]
    if not found:
        first = next(iter(about), None)
        raise UsageError(
            f"{path}: it has no key VARIABLE{_SUFFIX}"
            if first is None
            else f"{path}: none of its {len(about)} statistics is of a variable that is here, such "
            f"as {first!r}{nearest(first, checkpoint)}"
        )
    return {name: _checked(path, entries[about[name]], checkpoint[name]) for name in found}


def _checked(path: Path, entry: Variable, variable: Variable) -> Array:
    wanted = ((), variable.shape[-1:])
    if entry.shape not in wanted:
        raise PlanError(
            f"{variable.name}: its statistic in {path} is {list(entry.shape)}; it must be [] or "
            f"{list(wanted[1])}, the last axis"
        )
    if not entry.dtype.is_number or entry.dtype.name.startswith("complex"):
        raise PlanError(f"{variable.name}: its statistic in {path} is {entry.dtype}, no number")
    values = entry.read().astype(np.float64)
    if not np.isfinite(values).all() or (values < 0).any():
        raise PlanError(
            f"{variable.name}: its statistic in {path} has negative numbers, infinities or NaN; a "
            f"mean of absolute values cannot"
        )
    return values


def _npz(path: Path) -> Iterator[Variable]:
    """Give the statistics in an `.npz` file: only their headers are read."""
    for name, header in read_headers(path, lambda name: name.endswith(_SUFFIX)).items():
        known = BY_NUMPY.get(header.dtype.newbyteorder("<"))
        if known is None:
            raise InputError(f"{path}: {name} is {header.dtype}, and must be numbers")
        yield Variable(name, known, header.shape, _loader(header))


def _loader(header: Header) -> Callable[[Region], Array]:
    def load(region: Region) -> Array:
        return header.read().astype(header.dtype.newbyteorder("<"))[region or ...]

    return load
