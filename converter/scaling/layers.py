"""Factors for layers that are chosen by their kind, and for parts of recurrent kernels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

from converter.checkpoint import Checkpoint
from converter.errors import PlanError, UsageError
from converter.patterns import matching
from converter.scaling.kinds import UNCHANGED, Biases, Scaled, scaled_kinds
from converter.scaling.multiply import Factor
from converter.scaling.recurrent import (
    RecurrentKernel,
    gate_factors,
    gates_of_bias,
    part_factors,
    radius_factor,
    recurrent_kernels,
)
from converter.structure.infer import structure_of
from converter.structure.layers import layers
from converter.structure.structure import Structure


class Wanted(Protocol):
    """Which layers and parts are to be multiplied, and by what."""

    @property
    def kind(self) -> Mapping[str, float]:
        """The factor of each kind of layer."""

    @property
    def biases(self) -> Biases:
        """What becomes of the biases of these."""

    @property
    def input_to_hidden(self) -> Mapping[str, float]:
        """The factor of what takes the input, by a glob over recurrent kernels."""

    @property
    def hidden_to_hidden(self) -> Mapping[str, float]:
        """The factor of what takes the state, by a glob over recurrent kernels."""

    @property
    def spectral_radius(self) -> Mapping[str, float]:
        """The radius that each gate of what takes the state is to have, by a glob."""

    @property
    def gate(self) -> Mapping[str, float]:
        """The factor of each gate, by its label."""


def scaled_layers(checkpoint: Checkpoint, wanted: Wanted) -> Scaled:
    """Return what becomes of the variables of the layers that are wanted.

    Raises:
        UsageError, PlanError: there is no such layer, kernel or gate, or it cannot be.
        InputError: kinds of layers are asked for, and there is no graph that would tell them.
    """
    structure = structure_of(checkpoint)
    known = layers(checkpoint) if wanted.kind or structure.findings is not None else ()
    scaled = Scaled({}, {}, True, (), {})
    if wanted.kind:
        scaled = scaled_kinds(checkpoint, structure, known, wanted.kind, wanted.biases)
    parts = wanted.input_to_hidden, wanted.hidden_to_hidden, wanted.spectral_radius, wanted.gate
    if not any(parts):
        return scaled
    kernels = recurrent_kernels(checkpoint, structure, known)
    if not kernels:
        raise PlanError(f"{checkpoint.path}: no recurrent kernel is known; scale by names")
    factors = {name: list(found) for name, found in scaled.factors.items()}
    for name, factor in _of_parts(checkpoint, structure, kernels, wanted):
        factors.setdefault(name, []).append(factor)
    numbers = [*parts[0].values(), *parts[1].values(), *parts[3].values()]
    if not wanted.spectral_radius and all(number == 1 for number in numbers):
        return scaled if wanted.kind else scaled._replace(notes=(UNCHANGED,))
    notes = [note for note in scaled.notes if not note.startswith(("keeps", "changes"))]
    notes.append(
        f"changes the outputs: recurrent layers are not homogeneous; recurrent kernels: "
        f"{len(kernels)}, such as {kernels[0].name}"
    )
    notes += [
        f"the eigenvalues of what takes the state in {name} reach {radius:g} then, in each gate"
        for name, radius in _chosen(
            wanted.spectral_radius, [kernel for kernel in kernels if kernel.state]
        ).items()
    ]
    return Scaled(factors, scaled.replaced, False, tuple(notes), {})


def _chosen(values: Mapping[str, float], kernels: Sequence[RecurrentKernel]) -> dict[str, float]:
    names = [kernel.name for kernel in kernels]
    found: dict[str, float] = {}
    for glob, value in values.items():
        for name in matching(glob, names, "recurrent kernels"):
            found.setdefault(name, value)
    return found


def _of_parts(
    checkpoint: Checkpoint,
    structure: Structure,
    kernels: Sequence[RecurrentKernel],
    wanted: Wanted,
) -> Iterator[tuple[str, Factor]]:
    inputs = _chosen(wanted.input_to_hidden, kernels)
    states = _chosen(wanted.hidden_to_hidden, kernels)
    radii = _chosen(wanted.spectral_radius, kernels)
    if both := next((name for name in states if name in radii), None):
        raise UsageError(f"{both}: it has a factor and a spectral radius; give one of them")
    _check_gates(kernels, wanted.gate)
    biases: dict[str, None] = {}
    for kernel in kernels:
        variable = checkpoint[kernel.name]
        if kernel.name in inputs or kernel.name in states:
            of_input, of_state = inputs.get(kernel.name, 1.0), states.get(kernel.name, 1.0)
            if kernel.name in states and not kernel.state and kernel.name not in inputs:
                continue
            length = variable.shape[kernel.taking]
            yield kernel.name, part_factors(kernel, length, of_input, of_state)
        # A glob may fit kernels of inputs as well; a name is meant.
        if kernel.name in radii and (kernel.state or kernel.name in wanted.spectral_radius):
            yield kernel.name, radius_factor(variable, kernel, radii[kernel.name])
        if wanted.gate.keys() & kernel.gates.keys():
            length = variable.shape[kernel.making]
            yield kernel.name, gate_factors(kernel.making, length, kernel.gates, wanted.gate)
        biases |= dict.fromkeys(kernel.biases)
    if wanted.biases == "scaled" and wanted.gate:
        yield from _of_biases(checkpoint, structure, biases, wanted.gate)


def _of_biases(
    checkpoint: Checkpoint,
    structure: Structure,
    biases: Mapping[str, None],
    numbers: Mapping[str, float],
) -> Iterator[tuple[str, Factor]]:
    for name in biases:
        found = gates_of_bias(structure, name)
        if found is None or not numbers.keys() & found[1].keys():
            continue
        axis, gates = found
        yield name, gate_factors(axis, checkpoint[name].shape[axis], gates, numbers)


def _check_gates(kernels: Sequence[RecurrentKernel], wanted: Mapping[str, float]) -> None:
    known = dict.fromkeys(label for kernel in kernels for label in kernel.gates if label)
    for label in wanted:
        if label not in known:
            raise UsageError(
                f"no recurrent kernel has a gate {label!r}; "
                + (f"they are {', '.join(known)}" if known else "there are none")
            )
