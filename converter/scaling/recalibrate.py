"""The moments that batch normalisations store, measured again on data."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, partial
from typing import NamedTuple

import numpy as np

from converter.activations.data import Data
from converter.activations.moments import Moments
from converter.activations.probes import Probe, find_probes
from converter.checkpoint import Checkpoint
from converter.counted import agree, count
from converter.errors import ConverterError, NothingToDoError, PlanError
from converter.forward.signature import check_callable
from converter.patterns import matching
from converter.rounding import round_to
from converter.scaling.activation import Left
from converter.scaling.running import Named, Running
from converter.structure.infer import structure_of
from converter.structure.layers import Layer, layers
from converter.variable import Array, Region, Variable

_FEW = 3
_LEAST = 2


class _Stored(NamedTuple):
    """A batch normalisation with moments that are stored.

    Attributes:
        mean, variance: the variables.
        is_unbiased: whether the variance is stored as an estimate, by one less than was counted.
        depth: how many others it stands behind, at most.
        probes: the tensors that it normalises.
    """

    mean: str
    variance: str
    is_unbiased: bool
    depth: int
    probes: tuple[Probe, ...]


class _Found(NamedTuple):
    """What was measured for a normalisation: float64 of shape (units,), None where nothing was.

    Attributes:
        mean: of what is normalised.
        variance: that of a population, by which training divides.
        stored: the variance as training stores it.
        told: what to say of it.
    """

    mean: Array
    variance: Array
    stored: Array
    told: str


class Recalibrated:
    """The variables of a checkpoint with batch normalisations that have moments of data.

    Each takes what those before it give with the new moments, as it is in training: they are
    measured by their depth. Making one of these runs nothing; the model is run when the first
    values are asked for.

    Args:
        checkpoint: the variables.
        data: what is measured on.
        only: globs of the variables whose normalisations are meant; none for all.

    Raises:
        InputError: there is no graph, or a file is damaged.
        PlanError: there is no such normalisation, or one that is meant stores no moments.
        UsageError: data are missing; a glob fits nothing.
    """

    def __init__(self, checkpoint: Checkpoint, data: Data, only: Sequence[str]) -> None:
        self._named = Named(checkpoint)
        self._checkpoint = self._named.checkpoint
        self._norms, self._left = _choose(self._checkpoint, only)
        self._data = data.open(self._checkpoint)

    def variables(self) -> Iterator[Variable]:
        """Give all variables, under the names that they have now."""
        return self._named.renamed(self._variables())

    def _variables(self) -> Iterator[Variable]:
        replaced: dict[str, Callable[[], Array | None]] = {}
        for index, norm in enumerate(self._norms):
            replaced[norm.mean] = partial(self._moment, index, "mean")
            replaced[norm.variance] = partial(self._moment, index, "stored")
        roles = self._checkpoint.roles()
        for name, variable in self._checkpoint.items():
            role = roles[name]
            of = role.of if role.kind == "average" and role.slot is None else None
            values = replaced.get(name) or (replaced.get(of) if of is not None else None)
            yield variable if values is None else _holding(variable, values)

    def notes(self) -> Iterator[str]:
        """Say what will be done."""
        depths = len({norm.depth for norm in self._norms})
        yield (
            f"changes the outputs: {count(len(self._norms), 'batch normalisation')} will have the "
            f"moments of the data, which {agree(depths, 'is', 'are')} run {count(depths, 'time')}"
        )
        for name, reason in self._left[:_FEW]:
            yield f"{self._named.called(name)} stays: {reason}"
        if len(self._left) > _FEW:
            yield f"{len(self._left) - _FEW} more stay"

    def find(self) -> None:
        """Run the model, where it was not run yet.

        Raises:
            RunError: the graph does not run.
            ConverterError: an activation is NaN or infinite, or the data say too little.
        """
        _ = self._found

    def findings(self) -> Iterator[str]:
        """Say what was found, if anything was asked for."""
        if "_found" not in vars(self):
            return
        found, notes = self._found
        yield from notes
        for norm, one in zip(self._norms, found, strict=True):
            told = "nothing of it was run; it stays" if one is None else one.told
            yield f"{self._named.called(norm.mean)}: {told}"

    def _moment(self, index: int, which: str) -> Array | None:
        found = self._found[0][index]
        values: Array | None = None if found is None else getattr(found, which)
        return values

    @cached_property
    def _found(self) -> tuple[tuple[_Found | None, ...], tuple[str, ...]]:
        found: list[_Found | None] = [None] * len(self._norms)
        probes = [probe for norm in self._norms for probe in norm.probes]
        with Running(self._checkpoint, self._data, probes) as running:
            for depth in sorted({norm.depth for norm in self._norms}):
                level = [i for i, norm in enumerate(self._norms) if norm.depth == depth]
                measured = running.measure([self._norms[i].probes for i in level])
                new: dict[str, Variable] = {}
                for index, moments in zip(level, measured, strict=True):
                    if moments.count:
                        norm = self._norms[index]
                        one = found[index] = self._of(norm, moments)
                        # Training divides by the variance of the batch, whatever it stores.
                        new[norm.mean] = self._as(norm.mean, one.mean)
                        new[norm.variance] = self._as(norm.variance, one.variance)
                running.assign(new)
            return tuple(found), running.notes

    def _as(self, name: str, values: Array) -> Variable:
        return Variable.from_array(name, values.reshape(self._checkpoint[name].shape))

    def _of(self, norm: _Stored, moments: Moments) -> _Found:
        if moments.count < _LEAST:
            raise ConverterError(
                f"{self._named.called(norm.variance)}: the data give {moments.count} observation "
                f"of each unit, and a variance needs {_LEAST} or more; give more rows"
            )
        variance = moments.squares / moments.count
        stored = moments.squares / (moments.count - 1) if norm.is_unbiased else variance
        return _Found(moments.mean, variance, stored, self._told(norm, moments, stored))

    def _told(self, norm: _Stored, moments: Moments, stored: Array) -> str:
        mean, before = (
            np.asarray(self._checkpoint[name].read(), np.float64).reshape(-1)
            for name in (norm.mean, norm.variance)
        )
        deviation = np.sqrt(np.maximum(before, np.finfo(np.float32).tiny))
        moved = float((np.abs(moments.mean - mean) / deviation).max(initial=0.0))
        ratios = stored / deviation**2
        dead = int(np.count_nonzero(moments.squares == 0))
        told = (
            f"moved by up to {moved:.4g} deviations, variances are {ratios.min(initial=np.inf):.4g}"
            f"..{ratios.max(initial=0.0):.4g} of what they were, of {moments.count:,} observations"
        )
        if dead:
            told += (
                f"; {dead} of {count(len(mean), 'unit')} never {agree(dead, 'changes', 'change')}: "
                "a variance of 0, and what differs is divided by the root of the epsilon alone; "
                "give more data"
            )
        return told


def _holding(variable: Variable, values: Callable[[], Array | None]) -> Variable:
    def load(region: Region) -> Array:
        found = values()
        if found is None:
            return variable.load(region)
        return round_to(found.reshape(variable.shape)[region], variable.dtype, variable.counts)

    return variable.derive(load)


def _choose(checkpoint: Checkpoint, only: Sequence[str]) -> tuple[list[_Stored], list[Left]]:
    structure = structure_of(checkpoint)
    known = layers(checkpoint)
    probes = find_probes(checkpoint, structure).probes
    norms = [
        (index, layer)
        for index, layer in enumerate(known)
        if layer.normalisation is not None and layer.normalisation.over == "batch"
    ]
    if not norms:
        check_callable(checkpoint)
        raise NothingToDoError(f"{checkpoint.path}: it has no batch normalisation")
    names = {index: _names(layer) for index, layer in norms}
    meant = set(names)
    if only:
        every = [name for own in names.values() for name in own]
        wanted = {n for glob in only for n in matching(glob, every, "variables of normalisations")}
        meant = {index for index, own in names.items() if wanted & set(own)}
    found: dict[str, _Stored] = {}
    left: list[Left] = []
    depths: list[int] = []
    for index, layer in enumerate(known):
        before = [s for s in layer.sources if s < index]
        depths.append(max((depths[s] + (s in meant) for s in before), default=0))
        if index not in meant:
            continue
        one = _stored(checkpoint, layer, depths[index], probes)
        if isinstance(one, _Stored):
            found.setdefault(one.mean, one)
        else:
            left.append(one)
    if left and (only or not found):
        more = f" (and {len(left) - 1} more)" if len(left) > 1 else ""
        kind = PlanError if only else NothingToDoError
        raise kind(f"{left[0].name}{more}: it cannot be recalibrated: {left[0].reason}")
    return list(found.values()), left


def _names(layer: Layer) -> tuple[str, ...]:
    norm = layer.normalisation
    assert norm is not None
    own = norm.mean, norm.variance, norm.gamma, norm.beta
    return tuple(name for name in own if name is not None) or layer.kernels[:1]


def _stored(
    checkpoint: Checkpoint, layer: Layer, depth: int, probes: Sequence[Probe]
) -> _Stored | Left:
    """Return how a normalisation is recalibrated, or why it is not."""
    norm = layer.normalisation
    assert norm is not None
    name = next(iter(_names(layer)), "a batch normalisation")
    if norm.mean is None or norm.variance is None:
        return Left(name, "the graph takes the moments of each batch, and stores none")
    for own in (norm.mean, norm.variance):
        if own not in checkpoint:
            return Left(name, f"{own} is not here")
        if not checkpoint[own].dtype.is_float:
            return Left(name, f"{own} is {checkpoint[own].dtype}")
    size = checkpoint[norm.mean].size
    key = norm.mean, "produced"
    taken = tuple(probe for probe in probes if key in probe.for_ and probe.size == size)
    if not taken:
        return Left(name, "it is not known which tensor it normalises")
    return _Stored(norm.mean, norm.variance, norm.is_fused, depth, taken)
