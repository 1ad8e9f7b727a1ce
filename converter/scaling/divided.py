"""Layers that are divided by what was measured of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from converter.activations.file import Measured, read_measured
from converter.checkpoint import Checkpoint
from converter.counted import agree, count
from converter.errors import PlanError, UsageError
from converter.patterns import nearest
from converter.scaling.multiply import Factor, along
from converter.scaling.outputs import bending, of_output
from converter.structure.infer import structure_of
from converter.structure.layers import Activation, layers
from converter.variable import Array, Variable

_FEW = 3
_GAINS = ("gamma",)
_OFFSETS = ("beta",)
_STATISTICS = ("moving_mean", "moving_variance", "running_mean", "running_var")


class Divided(NamedTuple):
    """What becomes of the variables of layers that are divided.

    Attributes:
        factors: by variable.
        notes: what a user should know.
    """

    factors: Mapping[str, Sequence[Factor]]
    notes: tuple[str, ...]


class _Layer(NamedTuple):
    """Variables that make the same units.

    Attributes:
        names: what was measured of the first of them counts for all.
        factors: gives the factor of each variable that is multiplied.
        activation: the function behind it; None for none, or where it is not known.
    """

    names: tuple[str, ...]
    factors: Callable[[Callable[[], Array]], Mapping[str, Factor]]
    activation: Activation | None = None


def divided(checkpoint: Checkpoint, path: Path, floor: float) -> Divided:
    """Return what becomes of layers that are divided by the mean of |a| of each of their units.

    Each layer is divided once: where it is finished behind a normalisation with gains, by these.

    Args:
        checkpoint: the variables.
        path: a file of statistics, as `convert stats` writes it.
        floor: units that give less are dead, and stay.

    Raises:
        UsageError: the file is about none of the variables.
        PlanError: no layer can be divided; or there is no graph, and moments are stored.
        InputError: the file is unreadable or damaged.
    """
    measured = read_measured(path)
    names = [name for name, side in measured if side == "produced"]
    if not any(name in checkpoint for name in names):
        first = next(iter(names), None)
        raise UsageError(
            f"{path}: nothing in it is about what a variable produces"
            if first is None
            else f"{path}: none of its {len(names)} statistics is of a variable that is here, such "
            f"as {first!r}{nearest(first, checkpoint)}"
        )
    factors: dict[str, list[Factor]] = {}
    left: list[str] = []
    functions: list[tuple[str, Activation | None]] = []
    dead = units = 0
    for layer in _layers(checkpoint, measured):
        known = [name for name in layer.names if (name, "produced") in measured]
        if not known:
            continue
        mean_abs = measured[known[0], "produced"].mean_abs
        try:
            found = layer.factors(_constant(_inverse(mean_abs, floor)))
            _check(checkpoint, found, mean_abs.size, factors)
        except PlanError as error:
            left.append(str(error))
            continue
        functions.append((known[0], layer.activation))
        dead += int((mean_abs < floor).sum())
        units += mean_abs.size
        factors |= {name: [factor] for name, factor in found.items()}
    if not factors:
        why = f": {left[0]}" if left else ""
        raise PlanError(f"{path}: it is about no layer that can be divided{why}")
    notes = (*_told(dead, units, floor), *bending(functions), *_told_left(left))
    return Divided(factors, notes)


def _told(dead: int, units: int, floor: float) -> Iterator[str]:
    yield (
        "changes the outputs: each layer is divided by what it gave, and takes what those before "
        "it give then, so that the factors compound; activation-scale brings each to a target"
    )
    if dead:
        are, stay = agree(dead, "is", "are"), agree(dead, "stays", "stay")
        yield f"{dead} of {count(units, 'unit')} {are} below the floor {floor:g}, and {stay}"


def _told_left(left: Sequence[str]) -> Iterator[str]:
    yield from (f"a layer stays: {reason}" for reason in left[:_FEW])
    if len(left) > _FEW:
        more = len(left) - _FEW
        yield f"{count(more, 'more layer')} {agree(more, 'stays', 'stay')}"


def _inverse(mean_abs: Array, floor: float) -> Array:
    is_dead = mean_abs < floor
    found: Array = np.where(is_dead, 1.0, 1.0 / np.where(is_dead, 1.0, mean_abs))
    return found


def _constant(values: Array) -> Callable[[], Array]:
    return lambda: values


def _check(
    checkpoint: Checkpoint, found: Mapping[str, Factor], size: int, taken: Iterable[str]
) -> None:
    """Raise PlanError where a layer cannot be divided."""
    for name, factor in found.items():
        variable = checkpoint[name]
        if name in taken:
            raise PlanError(f"{name}: it is in another layer, too, which is divided")
        if not variable.dtype.is_float:
            raise PlanError(f"{name}: only floats are divided, and it is {variable.dtype}")
        along_ = variable.shape[factor.axis :]
        if size != along_[0] and size != np.prod(along_):
            raise PlanError(
                f"{name}: it is {list(variable.shape)}, and what was measured has "
                f"{count(size, 'unit')}"
            )


def _layers(checkpoint: Checkpoint, measured: Measured) -> Iterator[_Layer]:
    structure = structure_of(checkpoint)
    if structure.findings is None:
        yield from _by_tensors(checkpoint, measured)
        return
    for layer in layers(checkpoint):
        norm = layer.normalisation
        own = () if norm is None else (norm.gamma, norm.beta)
        named = (*layer.kernels, *layer.biases, *(name for name in own if name is not None))
        if named and all(name in checkpoint for name in named):
            yield _Layer(named, partial(of_output, checkpoint, structure, layer), layer.activation)


def _by_tensors(checkpoint: Checkpoint, measured: Measured) -> Iterator[_Layer]:
    """Yield what was measured in the same tensors: without a graph, no more tells of layers."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for name, side in measured:
        if side == "consumed" or name not in checkpoint:
            continue
        if _leaf(name) in _STATISTICS:
            raise PlanError(
                f"{name}: only a graph tells which layer it is of, and there is none; convert the "
                f"checkpoint with its graph (--to tf), or name variables (--scale GLOB=FACTOR)"
            )
        groups.setdefault(measured.tensors.get((name, side), (name,)), []).append(name)
    for names in groups.values():
        gains = [name for name in names if _leaf(name) in _GAINS]
        chosen = [n for n in names if _leaf(n) in (*_GAINS, *_OFFSETS)] if gains else names
        kernels_first = sorted(names, key=lambda name: -len(checkpoint[name].shape))
        yield _Layer(tuple(kernels_first), partial(_by_sizes, checkpoint, chosen))


def _leaf(name: str) -> str:
    return name.rpartition("/")[2].rpartition(".")[2]


def _by_sizes(
    checkpoint: Checkpoint, names: Sequence[str], values: Callable[[], Array]
) -> Mapping[str, Factor]:
    return {name: _by_size(checkpoint[name], values) for name in names}


def _by_size(variable: Variable, values: Callable[[], Array]) -> Factor:
    """Return the factor along the last axis that has as many entries as there are units."""
    size = values().size
    for axis in reversed(range(len(variable.shape))):
        if variable.shape[axis] == size:
            return along(variable, axis, values)
    raise PlanError(
        f"{variable.name}: it is {list(variable.shape)}, and what was measured has "
        f"{count(size, 'unit')}; only a graph tells where they are"
    )
