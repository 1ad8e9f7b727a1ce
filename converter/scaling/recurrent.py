"""Factors for the parts of recurrent kernels: what takes the input, the state, and each gate."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import NamedTuple

import numpy as np

from converter.checkpoint import Checkpoint
from converter.errors import InputError, PlanError
from converter.scaling.multiply import Factor
from converter.structure.axes.axis import Axis, Blocks, Term, term_size
from converter.structure.layers import Layer
from converter.structure.structure import Structure
from converter.variable import Array, Variable

_MOST_DENSE = 1024
_SUBSPACE = 8
_STEPS = 300

Stretch = tuple[int, int]
"""Where entries of an axis begin and end."""


class RecurrentKernel(NamedTuple):
    """A kernel of a recurrent layer.

    Attributes:
        name: the variable.
        taking: its axis of what it takes.
        making: its axis of what it makes.
        state: which entries of the first take the state of the layer.
        gates: which entries of the second make each gate, by its label; under "" where there are
            no gates that have labels.
        biases: the biases of the layer.
    """

    name: str
    taking: int
    making: int
    state: tuple[Stretch, ...]
    gates: Mapping[str, Stretch]
    biases: tuple[str, ...]


def recurrent_kernels(
    checkpoint: Checkpoint, structure: Structure, layers: Sequence[Layer]
) -> list[RecurrentKernel]:
    """Return the kernels of recurrent layers: by a graph, or by the gates that names tell.

    Args:
        checkpoint: the variables.
        structure: their axes.
        layers: of the graph; none where there is none.
    """
    if structure.findings is None:
        return list(_by_gates(checkpoint, structure))
    # One kernel may make the gates of several layers.
    state: dict[str, dict[Stretch, None]] = {}
    biases: dict[str, dict[str, None]] = {}
    for layer in layers:
        for name in layer.kernels if layer.kind == "recurrent" else ():
            rows = [(r.start, r.stop) for r in layer.state if r.kernel == name]
            state.setdefault(name, {}).update(dict.fromkeys(rows))
            biases.setdefault(name, {}).update(dict.fromkeys(layer.biases))
    found = (
        _kernel(checkpoint, structure, name, tuple(rows), tuple(biases[name]))
        for name, rows in state.items()
    )
    return [one for one in found if one is not None]


def _by_gates(checkpoint: Checkpoint, structure: Structure) -> Iterator[RecurrentKernel]:
    roles = checkpoint.roles()
    for name, axes in structure.axes.items():
        labelled = any(_gates(axis, structure.sizes).keys() - {""} for axis in axes)
        if roles[name].kind != "model" or len(axes) != 2 or not labelled:
            continue
        made = {
            w for axis in axes if _gates(axis, structure.sizes).keys() - {""} for w in axis.widths()
        }
        biases = tuple(
            other
            for other, found in structure.axes.items()
            if roles[other].kind == "model"
            and len(structure.uses.get(other, ())) == len(found)
            and any("shift" in u for uses in structure.uses[other] for u in uses.values())
            and any(
                _gates(a, structure.sizes).keys() - {""} and made & set(a.widths()) for a in found
            )
        )
        one = _kernel(checkpoint, structure, name, None, biases)
        if one is not None:
            yield one


def _kernel(
    checkpoint: Checkpoint,
    structure: Structure,
    name: str,
    state: tuple[Stretch, ...] | None,
    biases: tuple[str, ...],
) -> RecurrentKernel | None:
    """Return a kernel with its parts; None where its axes are not known.

    Args:
        checkpoint: the variables.
        structure: their axes.
        name: of the kernel.
        state: which entries take the state; None for those of the width that it makes.
        biases: of its layer.
    """
    axes, uses = structure.axes.get(name, ()), structure.uses.get(name, ())
    if len(axes) != 2 or len(uses) != 2 or name not in checkpoint:
        return None
    making = next(
        (n for n, found in enumerate(uses) if any("produce" in use for use in found.values())), None
    )
    if making is None:
        return None
    taking = 1 - making
    if state is None:
        made = set(axes[making].widths())
        state = tuple(
            (start, stop)
            for start, stop, term in _terms(axes[taking], structure.sizes)
            if made & set(Axis((term,)).widths())
        )
    gates = _gates(axes[making], structure.sizes)
    return RecurrentKernel(name, taking, making, state, gates, biases)


def _terms(axis: Axis, sizes: Mapping[str, int]) -> Iterator[tuple[int, int, Term]]:
    start = 0
    for term in axis.terms:
        stop = start + term_size(term, sizes)
        yield start, stop, term
        start = stop


def _gates(axis: Axis, sizes: Mapping[str, int]) -> dict[str, Stretch]:
    """Return which entries of an axis make each gate."""
    found: dict[str, Stretch] = {}
    for start, stop, term in _terms(axis, sizes):
        if not isinstance(term[0], Blocks):
            return {"": (0, axis.size(sizes))}
        labels = term[0].labels
        units = (stop - start) // len(labels)
        for number, label in enumerate(labels):
            found[label] = (start + number * units, start + (number + 1) * units)
    return found


def part_factors(kernel: RecurrentKernel, length: int, of_input: float, of_state: float) -> Factor:
    """Return the factor of a kernel by what it takes.

    Args:
        kernel: the kernel.
        length: of its axis of what it takes.
        of_input: the factor of what takes the input.
        of_state: the factor of what takes the state.
    """

    def values() -> Array:
        found = np.full(length, of_input)
        for start, stop in kernel.state:
            found[start:stop] = of_state
        return found

    return Factor(kernel.taking, values)


def gate_factors(
    axis: int, length: int, gates: Mapping[str, Stretch], numbers: Mapping[str, float]
) -> Factor:
    """Return the factor of a kernel or a bias by gates.

    Args:
        axis: of the gates.
        length: of that.
        gates: where each stands.
        numbers: the factors of some of them.
    """

    def values() -> Array:
        found = np.ones(length)
        for label, number in numbers.items():
            if label in gates:
                found[slice(*gates[label])] = number
        return found

    return Factor(axis, values)


def gates_of_bias(structure: Structure, name: str) -> tuple[int, dict[str, Stretch]] | None:
    """Return the axis of a bias that has gates, and where they stand; None for none."""
    for number, axis in enumerate(structure.axes.get(name, ())):
        gates = _gates(axis, structure.sizes)
        if "" not in gates and gates:
            return number, gates
    return None


def radius_factor(variable: Variable, kernel: RecurrentKernel, radius: float) -> Factor:
    """Return the factor with which each gate's matrix of the state has a spectral radius.

    Args:
        variable: the kernel.
        kernel: its parts.
        radius: the largest magnitude of the eigenvalues that each is to have.

    Raises:
        PlanError: the part that takes the state is not square.
    """
    if not kernel.state:
        raise PlanError(f"{kernel.name}: no part of it takes the state; choose another kernel")
    rows = sum(stop - start for start, stop in kernel.state)
    for label, (start, stop) in kernel.gates.items():
        if stop - start != rows:
            gate = f" of gate {label}" if label else ""
            raise PlanError(
                f"{kernel.name}: its part{gate} that takes the state is [{rows}, {stop - start}]; "
                f"only square matrices have eigenvalues"
            )

    @cache
    def values() -> Array:
        found = np.ones(variable.shape)
        for start, stop in kernel.gates.values():
            matrix = np.concatenate(
                [_part(variable, kernel, of, (start, stop)) for of in kernel.state]
            )
            if not np.isfinite(matrix).all():
                raise InputError(
                    f"{variable.name}: it holds NaN or infinities, and has no eigenvalues"
                )
            known = spectral_radius(matrix)
            for of in kernel.state:
                region = [slice(start, stop)] * 2
                region[kernel.taking] = slice(*of)
                found[tuple(region)] = radius / known if known else 1.0
        return found

    return Factor(0, values)


def _part(variable: Variable, kernel: RecurrentKernel, of: Stretch, gate: Stretch) -> Array:
    region = [slice(*gate)] * 2
    region[kernel.taking] = slice(*of)
    values = np.asarray(variable.read(tuple(region)), np.float64)
    return values if kernel.taking == 0 else values.T


def spectral_radius(matrix: Array) -> float:
    """Return the largest magnitude of the eigenvalues of a square matrix.

    Of a large one by orthogonal iteration in a small subspace, which finds a complex pair, too.

    References:
        Golub and Van Loan, Matrix computations, 7.3.
    """
    size = len(matrix)
    if not size:
        return 0.0
    if size <= _MOST_DENSE:
        return float(np.abs(np.linalg.eigvals(matrix)).max())
    basis, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(size, _SUBSPACE)))
    for _ in range(_STEPS):
        basis, _ = np.linalg.qr(matrix @ basis)
    return float(np.abs(np.linalg.eigvals(basis.T @ matrix @ basis)).max())
