"""What becomes of variables where layers are scaled to a target, and what was found on the way."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from converter.activations.data import Data, Opened
from converter.activations.file import Measured, read_measured
from converter.activations.moments import Moments
from converter.checkpoint import Checkpoint
from converter.counted import agree, count
from converter.errors import PlanError
from converter.resize.maps import places_of
from converter.scaling.activation import (
    Chosen,
    Left,
    Sequential,
    Wanted,
    choose,
    factors_of,
    inverse,
    is_at,
    measured_in,
    measured_once,
)
from converter.scaling.equal import Equalised, Normed
from converter.scaling.multiply import multiply
from converter.scaling.normed import normed
from converter.scaling.outputs import bending
from converter.scaling.running import Named
from converter.scaling.search import PROMISED
from converter.scaling.widths import refusal
from converter.structure.infer import structure_of
from converter.structure.structure import Structure
from converter.variable import Array, Variable

Method = Literal["once", "sequential", "paired"]

_FEW = 3


class Outcome(NamedTuple):
    """What was found of a layer.

    Attributes:
        name: its first variable.
        before: the statistic at first; NaN where nothing of the layer was run.
        after: in the end; None where it was not measured again.
        factors: by which what it gives is multiplied.
        dead: which are below the floor.
        nearest: what was nearest to the target of all that was measured; None without a search.
        is_empty: whether it takes empty sequences alone, so that no row counts.
    """

    name: str
    before: Array
    after: Array | None
    factors: Array
    dead: Array
    nearest: Array | None = None
    is_empty: bool = False


@dataclass
class _Found:
    outcomes: tuple[Outcome, ...]
    notes: tuple[str, ...]


class Targeted:
    """The variables of a checkpoint with layers scaled to a target.

    Making one of these runs nothing; the model is run when the first values are asked for.

    Args:
        checkpoint: the variables.
        wanted: what the layers are to give.
        method: how they are scaled.
        source: what is measured on, or a file of what was measured.

    Raises:
        InputError: there is no graph, or a file is damaged.
        PlanError: a layer that is meant cannot be scaled, or none can.
        UsageError: data or statistics are missing, or say nothing of a layer.
    """

    def __init__(
        self, checkpoint: Checkpoint, wanted: Wanted, method: Method, source: Data | Path
    ) -> None:
        self._named = Named(checkpoint)
        self._checkpoint = self._named.checkpoint
        self._structure = structure_of(self._checkpoint)
        self._wanted = wanted
        self._method = method
        chosen, left = choose(self._checkpoint, self._structure, wanted.only)
        self._widths: dict[str, list[int]] = {}
        if method == "paired":
            chosen, unpaired = _pairable(self._checkpoint, self._structure, chosen, wanted)
            left += unpaired
            for index, one in enumerate(chosen):
                for width in one.layer.widths:
                    self._widths.setdefault(width, []).append(index)
        self._chosen = chosen
        self._left = left
        self._source = source.open(self._checkpoint) if isinstance(source, Data) else source
        if isinstance(self._source, Path):
            # What is known already is told, and refused, with the plan.
            self._moments(self._source)

    @cached_property
    def _paired(self) -> Equalised:
        kernels = normed(self._checkpoint, self._structure)
        widths = list(self._widths)
        return _Paired(self._checkpoint, self._structure, widths, kernels, lambda: self._of_width)

    def variables(self) -> Iterator[Variable]:
        """Give all variables, under the names that they have now."""
        if self._method == "paired":
            factors = self._paired.factors()
        else:
            factors = factors_of(
                self._checkpoint,
                self._structure,
                self._chosen,
                lambda index: self._found.outcomes[index].factors,
            )
        return self._named.renamed(
            multiply(
                self._checkpoint,
                factors,
                is_kept=self._method == "paired",
                follows=self._structure.follows,
            )
        )

    def notes(self) -> Iterator[str]:
        """Say what will be done."""
        if self._method == "paired":
            yield (
                f"{self._paired.kept}: what takes {', '.join(self._widths)} is divided by what "
                "they are multiplied by"
            )
        elif self._method == "sequential":
            yield "changes the outputs: each layer is measured with those before it scaled"
        else:
            yield (
                "changes the outputs: each layer is divided by what it gives now, and takes what "
                "those before it give then, so that the factors compound"
            )
            called = self._named.called
            yield from bending((called(one.name), one.layer.activation) for one in self._chosen)
        for name, reason in self._left[:_FEW]:
            yield f"the layer of {self._named.called(name)} stays: {reason}"
        if len(self._left) > _FEW:
            more = len(self._left) - _FEW
            stay = f"{count(more, 'more layer')} {agree(more, 'stays', 'stay')}"
            yield f"{stay}; --activation-scale-only GLOB tells why"
        for width, made in self._widths.items():
            if len(made) > 1:
                yield f"{width} is made by {len(made)} layers, whose mean is brought to the target"

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
        yield from self._found.notes
        for index, outcome in enumerate(self._found.outcomes):
            if self._widths:
                # What others made is multiplied by the same.
                outcome = outcome._replace(factors=self._in_units(index))
            yield f"{self._named.called(outcome.name)}: {_told(outcome, self._wanted)}"

    @cached_property
    def _found(self) -> _Found:
        if self._method == "sequential" and isinstance(self._source, Opened):
            search = Sequential(self._checkpoint, self._structure, self._chosen, self._wanted)
            notes = search.find(self._source)
            pairs = zip(self._chosen, search.searches, strict=True)
            outcomes = [
                Outcome(c.name, np.asarray(np.nan), None, np.ones(()), s.dead)
                if s.before is None
                else Outcome(c.name, s.before, s.after, s.factors, s.dead, s.nearest)
                for c, s in pairs
            ]
            empty = search.empty
        else:
            measured, notes, empty = self._moments(self._source)
            found = [inverse(moments, self._wanted) for moments in measured]
            outcomes = [
                Outcome(c.name, before, None, factors, dead)
                for c, (before, dead, factors) in zip(self._chosen, found, strict=True)
            ]
        for index in empty:
            outcomes[index] = outcomes[index]._replace(is_empty=True)
        return _Found(tuple(outcomes), notes)

    def _moments(
        self, source: Opened | Path
    ) -> tuple[list[Moments], tuple[str, ...], frozenset[int]]:
        if isinstance(source, Opened):
            return measured_once(self._checkpoint, source, self._chosen)
        measured: Measured = self._checkpoint.once(
            (Measured, source), lambda: read_measured(source)
        )
        return [measured_in(measured, one, str(source)) for one in self._chosen], (), frozenset()

    @property
    def _of_width(self) -> Mapping[str, Array]:
        """The factor of each unit of the widths that are paired."""
        sizes = self._structure.sizes
        found: dict[str, Array] = {}
        for width, made in self._widths.items():
            statistics = []
            for index in made:
                outcome, axis = self._found.outcomes[index], self._chosen[index].layer.produced
                places = places_of(axis, sizes, width)
                spread = np.broadcast_to(outcome.before, (axis.size(sizes),))
                statistics.append(spread[places].mean(axis=0))
            known = [s for s in statistics if np.isfinite(s).all()]
            mean = np.mean(known, axis=0) if known else np.zeros(sizes[width])
            dead = mean < self._wanted.floor
            found[width] = np.where(dead, 1.0, self._wanted.target / np.where(dead, 1.0, mean))
        return found

    def _in_units(self, index: int) -> Array:
        """Return the factors of what a layer gives: one number where all are the same."""
        axis, sizes = self._chosen[index].layer.produced, self._structure.sizes
        found = np.ones(axis.size(sizes))
        for width in axis.widths():
            found[places_of(axis, sizes, width)] = self._of_width[width]
        is_one = self._found.outcomes[index].dead.ndim == 0
        return found[:1].reshape(()) if is_one and (found == found[:1]).all() else found


class _Paired(Equalised):
    """Units that are multiplied by factors of somebody's, and divided where they are taken.

    Args:
        checkpoint: the variables.
        structure: their axes.
        widths: whose units.
        normed: the kernels that are normalised.
        find: gives the factors of the units by width, when the first values are asked for.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        structure: Structure,
        widths: Sequence[str],
        normed: Sequence[Normed],
        find: Callable[[], Mapping[str, Array]],
    ) -> None:
        super().__init__(checkpoint, structure, widths, normed)
        self._find = find

    @cached_property
    def units(self) -> Mapping[str, Array]:
        return self._find()


def _pairable(
    checkpoint: Checkpoint, structure: Structure, chosen: Sequence[Chosen], wanted: Wanted
) -> tuple[list[Chosen], list[Left]]:
    """Return the layers whose units what takes them can be divided by, and the others."""
    found: list[Chosen] = []
    left: list[Left] = []
    for one in chosen:
        reason = "its units have no width that is known" if not one.layer.widths else None
        for width in one.layer.widths:
            why = refusal(structure, checkpoint, structure.widths[width])
            reason = reason or (why and f"{width}: {why}")
        if reason is None:
            found.append(one)
        else:
            left.append(Left(one.name, reason))
    if left and (wanted.only or not found):
        more = f" (and {len(left) - 1} more)" if len(left) > 1 else ""
        raise PlanError(
            f"{left[0].name}{more}: nothing can undo a factor of what its layer gives: "
            f"{left[0].reason}; choose others (--activation-scale-only GLOB), or another method"
        )
    return found, left


def _told(outcome: Outcome, wanted: Wanted) -> str:
    """Say what was found of a layer."""
    word = {"mean-abs": "mean |a|", "std": "std"}[wanted.of]
    if np.isnan(outcome.before).all() and outcome.is_empty:
        return "all sequences of the data are empty; it stays (give data with longer ones)"
    if np.isnan(outcome.before).all():
        return (
            "nothing of it was run, or some of its units more often than others; it stays "
            "(--activation-scale-fetch chooses what is run)"
        )
    dead = int(np.count_nonzero(outcome.dead))
    if dead == outcome.dead.size:
        return f"{word} is {_range(outcome.before)}, below the floor {wanted.floor:g}; it stays"
    lives = ~outcome.dead
    told = f"{word} {_range(outcome.before[lives])}"
    if outcome.after is not None:
        told += f" -> {_range(outcome.after[lives])}"
    told += f", times {_range(outcome.factors[np.broadcast_to(lives, outcome.factors.shape)])}"
    if dead:
        told += (
            f"; {dead} of {count(outcome.dead.size, 'unit')} {agree(dead, 'is', 'are')} below the "
            f"floor {wanted.floor:g} and {agree(dead, 'stays', 'stay')}"
        )
    if outcome.after is None:
        return told
    is_off = ~is_at(outcome.after, wanted.target) & lives
    if is_off.any():
        of = f" of {count(int(np.count_nonzero(is_off)), 'unit')}" if outcome.dead.ndim else ""
        told += f"; no factor{of} was found that brings it to {wanted.target:g}"
        if outcome.nearest is not None:
            told += f" (the nearest was {_range(outcome.nearest[is_off])}); left as it was"
            before, after = outcome.before[is_off], outcome.after[is_off]
            if not np.allclose(after, before, rtol=PROMISED, atol=0):
                told += f", and gives {_range(after)} behind layers that were scaled"
    return told


def _range(values: Array) -> str:
    low, high = float(np.min(values)), float(np.max(values))
    return f"{low:.4g}" if low == high else f"{low:.4g}..{high:.4g}"
