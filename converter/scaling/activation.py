"""Layers that are scaled until what they give has a mean absolute value, or a deviation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, NamedTuple

import numpy as np

from converter.activations.cells import cell_of
from converter.activations.data import Opened
from converter.activations.file import Key, Measured
from converter.activations.moments import Moments
from converter.activations.parts import are_whole
from converter.activations.probes import Found, Probe, find_probes
from converter.checkpoint import Checkpoint
from converter.errors import PlanError, UsageError
from converter.forward.signature import check_callable
from converter.graph.ops import CELLS
from converter.patterns import matching
from converter.scaling.multiply import Factor, times
from converter.scaling.outputs import of_output
from converter.scaling.running import Running
from converter.scaling.search import PROMISED, Search
from converter.structure.layers import Layer, layers
from converter.structure.structure import Structure
from converter.variable import Array

Of = Literal["mean-abs", "std"]
Per = Literal["variable", "unit"]

_APART = "it is added to, or multiplied with, what is of no layer, and no kernel makes it"
_MAX_ROUNDS = 8
_MAX_TURNS = 12


@dataclass(frozen=True)
class Wanted:
    """What layers are to give.

    Attributes:
        target: of the statistic.
        of: the statistic.
        per: whether a layer has one factor, or each of its units.
        floor: what has a smaller statistic is dead, and stays.
        only: globs of the variables whose layers are meant; none for all.
    """

    target: float
    of: Of
    per: Per
    floor: float
    only: tuple[str, ...]

    def statistic(self, moments: Moments) -> Array:
        """Return the statistic: of shape (), or one for each unit."""
        if self.of == "mean-abs":
            found = moments.mean_abs
            return found if self.per == "unit" else np.asarray(found.mean())
        found = moments.std
        return found if self.per == "unit" else np.asarray(np.sqrt(np.mean(found**2)))


class Chosen(NamedTuple):
    """A layer that is scaled.

    Attributes:
        name: its first variable.
        layer: what it is.
        depth: how many others it stands behind, at most.
        variables: those that are multiplied.
        probes: the tensors in which it is finished.
        more: what tells it from another layer of this variable, behind its name.
    """

    name: str
    layer: Layer
    depth: int
    variables: tuple[str, ...]
    probes: tuple[Probe, ...]
    more: str = ""


class Left(NamedTuple):
    """A layer that stays.

    Attributes:
        name: its first variable.
        reason: half a sentence.
        more: what tells it from another layer of this variable, behind its name.
        is_layer: not so where a variable is in no layer.
    """

    name: str
    reason: str
    more: str = ""
    is_layer: bool = True


def names_of(layer: Layer) -> tuple[str, ...]:
    """Return the variables of a layer, kernels first."""
    norm = layer.normalisation
    own = () if norm is None else (norm.gamma, norm.beta, norm.mean, norm.variance)
    return (*layer.kernels, *layer.biases, *(name for name in own if name is not None))


def choose(
    checkpoint: Checkpoint, structure: Structure, only: Sequence[str]
) -> tuple[list[Chosen], list[Left]]:
    """Return the layers that can be scaled, in the order of the data, and those that cannot.

    Args:
        checkpoint: the variables, under the names of the graph.
        structure: their axes.
        only: globs of the variables whose layers are meant; none for all.

    Raises:
        InputError: there is no graph.
        PlanError: a layer that is meant cannot be scaled, or none can.
        UsageError: a glob fits no variable of a layer.
    """
    known = layers(checkpoint)
    named: set[str] = set()
    meant = {index for index, layer in enumerate(known) if not only and names_of(layer)}
    variables = {name: index for index, layer in enumerate(known) for name in names_of(layer)[::-1]}
    probes, unmeasured = find_probes(checkpoint, structure)
    made = (name for probe in probes for name, side in probe.for_ if side == "produced")
    apart = dict.fromkeys(name for name in made if name not in variables)
    for glob in only:
        found = matching(glob, [*variables, *apart], "variables of layers")
        meant |= {i for i, layer in enumerate(known) if set(found) & set(names_of(layer)[:1])}
        meant |= {variables[name] for name in found if name in variables}
        named |= {name for name in found if name in apart}
    left = [Left(name, _APART, is_layer=False) for name in apart if not only or name in named]
    firsts = Counter(name for layer in known for name in names_of(layer)[:1])
    chosen: list[Chosen] = []
    depths: list[int] = []
    taken: set[str] = set()
    for index, layer in enumerate(known):
        before = [s for s in layer.sources if s < index]
        depths.append(max((depths[s] + (s in meant) for s in before), default=0))
        if index not in meant:
            continue
        for part, own in _parts(structure, layer, tuple(_own(structure, layer, probes))):
            name = names_of(part)[0]
            reason, scaled = _scaled(checkpoint, structure, part, taken)
            reason = reason or _unfinished(structure, part, own, Found(probes, unmeasured))
            more = _way(part) if firsts[name] > 1 else ""
            if reason is not None:
                left.append(Left(name, reason, more))
                continue
            taken |= set(scaled)
            chosen.append(Chosen(name, part, depths[index], scaled, own, more))
    # A glob may fit what is in no layer beside what is meant.
    wrong = [one for one in left if one.is_layer or one.name in only or not chosen]
    if wrong and (only or not chosen):
        first = wrong[0].name + wrong[0].more
        more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        of = "its layer" if wrong[0].is_layer else "it"
        raise PlanError(
            f"{first}{more}: {of} cannot be scaled: {wrong[0].reason}; choose others "
            f"(--activation-scale-only GLOB), or multiply it by a number (--scale GLOB=NUMBER)"
        )
    if not chosen:
        check_callable(checkpoint)
        raise PlanError(f"{checkpoint.path}: its graph tells no layers")
    return chosen, left


def _way(layer: Layer) -> str:
    """Tell the uses of a variable apart of which several layers are made, by what each makes."""
    return f" (which makes {', '.join(layer.widths)})" if layer.widths else f" ({layer.kind})"


def _own(structure: Structure, layer: Layer, probes: Iterable[Probe]) -> Iterator[Probe]:
    """Yield the probes of the tensors in which a layer is finished."""
    finished = {place.finished.tensor for place in layer.places if place.finished is not None}
    for probe in probes:
        # What a cell that is one op makes is no place that the graph has a tensor for.
        is_made = any((kernel, "produced") in probe.for_ for kernel in layer.kernels)
        if probe.tensor in finished or (is_made and _is_of_cell(structure, probe)):
            yield probe


def _is_of_cell(structure: Structure, probe: Probe) -> bool:
    """Whether what is measured is made by a cell that is one op."""
    node = structure.graph.findings.analysis.graph.by_name.get(cell_of(probe.tensor).node)
    return node is not None and node.op in CELLS


def _parts(
    structure: Structure, layer: Layer, own: tuple[Probe, ...]
) -> Iterator[tuple[Layer, tuple[Probe, ...]]]:
    """Yield the layers that a layer consists of, with their probes: it alone, but of a cell.

    One that is an op may have several kernels that make tensors of their own: those of a GRU make
    gates and its candidate.
    """
    made: dict[frozenset[str], list[Probe]] = {}
    for probe in own:
        if _is_of_cell(structure, probe):
            names = frozenset(name for name, side in probe.for_ if side == "produced")
            made.setdefault(names, []).append(probe)
    kernels = [[kernel for kernel in layer.kernels if kernel in names] for names in made]
    if len(made) < 2 or sorted(k for of in kernels for k in of) != sorted(layer.kernels):
        yield layer, own
        return
    for (names, probes), own_kernels in zip(made.items(), kernels, strict=True):
        axis = structure.axes[own_kernels[0]][-1]
        part = replace(
            layer,
            kernels=tuple(own_kernels),
            biases=tuple(name for name in layer.biases if name in names),
            produced=axis,
            widths=tuple(axis.widths()),
        )
        yield part, tuple(probes)


def _unfinished(
    structure: Structure, layer: Layer, own: Sequence[Probe], known: Found
) -> str | None:
    """Return why a layer is finished in no tensor that can be measured and scaled, or None.

    Args:
        structure: the axes.
        layer: the layer.
        own: the probes of the tensors in which it is known to be finished.
        known: all probes, and why there is none.
    """
    cuts = {probe.cut for probe in own if probe.cut is not None}
    if cuts and not (are_whole(cuts) and all(probe.cut for probe in own)):
        tensors = list(dict.fromkeys(str(probe.tensor) for probe in own))
        return f"only some of its units are in {' and '.join(tensors[:2])}"
    if len({probe.total for probe in own}) == 1:
        return None
    for name in names_of(layer):
        if why := known.unmeasured.get((name, "produced")):
            return why
        made = [axis for uses in structure.uses.get(name, ()) for axis in _made(uses)]
        if len(made) > 1:
            return f"it makes units of several axes, {', '.join(made)}"
    return "it is not known in which tensor it is finished"


def _made(uses: Mapping[str, Sequence[str]]) -> Iterator[str]:
    """Yield the widths that an axis makes units of."""
    yield from (width for width, use in uses.items() if "produce" in use)


def _scaled(
    checkpoint: Checkpoint, structure: Structure, layer: Layer, taken: Collection[str]
) -> tuple[str | None, tuple[str, ...]]:
    """Return why a layer cannot be scaled, or None, and the variables that would be."""
    for name in names_of(layer):
        if name not in checkpoint:
            return f"{name} is not here", ()
    try:
        scaled = tuple(of_output(checkpoint, structure, layer, lambda: np.ones(())))
    except PlanError as error:
        return str(error), ()
    for name in scaled:
        if name in taken:
            return f"{name} is in another layer, too, which is scaled", ()
        if not checkpoint[name].dtype.is_float:
            return f"{name} is {checkpoint[name].dtype}", ()
    return None, scaled


def measured_in(measured: Measured, chosen: Chosen, subject: str) -> Moments:
    """Return what a file of statistics says of what a layer gives.

    Raises:
        UsageError: it says nothing.
    """
    keys: list[Key] = [(name, "produced") for name in names_of(chosen.layer)]
    size = chosen.probes[0].total
    found = next((measured[k] for k in keys if k in measured and measured[k].size == size), None)
    if found is None:
        raise UsageError(
            f"{subject}: it has no statistics of {chosen.name} with {size} units; measure it "
            f"(convert stats), or choose others (--activation-scale-only GLOB)"
        )
    return found


def measured_once(
    checkpoint: Checkpoint, data: Opened, chosen: Sequence[Chosen]
) -> tuple[list[Moments], tuple[str, ...], frozenset[int]]:
    """Run the model once on all data.

    Returns:
        The moments of what layers give, what is to be said of the data, and the places of the
        layers that take empty sequences alone.
    """
    with Running(checkpoint, data, [p for one in chosen for p in one.probes]) as running:
        found = running.measure([one.probes for one in chosen])
        without = [index for index, moments in enumerate(found) if not moments.count]
        return found, running.notes, _empty(running, chosen, without)


def _empty(running: Running, chosen: Sequence[Chosen], without: Iterable[int]) -> frozenset[int]:
    """Return which of the layers that were not measured take empty sequences alone."""
    return frozenset(index for index in without if running.is_empty(chosen[index].probes))


def inverse(moments: Moments, wanted: Wanted) -> tuple[Array, Array, Array]:
    """Return a statistic, which of it is dead, and the factors that bring it to the target."""
    if not moments.count:
        return np.asarray(np.nan), np.asarray(False), np.ones(())
    statistic = wanted.statistic(moments)
    dead = statistic < wanted.floor
    return statistic, dead, np.where(dead, 1.0, wanted.target / np.where(dead, 1.0, statistic))


def factors_of(
    checkpoint: Checkpoint,
    structure: Structure,
    chosen: Sequence[Chosen],
    values: Callable[[int], Array],
) -> dict[str, list[Factor]]:
    """Return the factors of variables, by those of what layers give.

    Args:
        checkpoint: the variables.
        structure: their axes.
        chosen: the layers.
        values: gives the factors of a layer by its place among these.
    """
    found: dict[str, list[Factor]] = {}
    for index, one in enumerate(chosen):
        for name, factor in of_output(
            checkpoint, structure, one.layer, partial(values, index)
        ).items():
            found.setdefault(name, []).append(factor)
    return found


class Sequential:
    """Finds the factors of layers, each measured with those before it scaled.

    Layers of the same depth are measured together. Where a layer takes what is made of itself, or
    its activation function is not homogeneous, it is measured again until it is there; and all of
    them are gone through again where what came later has moved one.

    References:
        Mishkin and Matas, All you need is a good init, 2016.

    Args:
        checkpoint: the variables, under the names of the graph.
        structure: their axes.
        chosen: the layers.
        wanted: what they are to give.

    Attributes:
        searches: what was found of each layer.
        empty: the places of the layers that take empty sequences alone.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        structure: Structure,
        chosen: Sequence[Chosen],
        wanted: Wanted,
    ) -> None:
        self._checkpoint = checkpoint
        self._chosen = chosen
        self._wanted = wanted
        self.searches = [
            Search(wanted.target, wanted.floor, is_proportional=_is_proportional(one.layer))
            for one in chosen
        ]
        self._factors = factors_of(
            checkpoint, structure, chosen, lambda index: self.searches[index].factors
        )
        self.empty: frozenset[int] = frozenset()

    def find(self, data: Opened) -> tuple[str, ...]:
        """Run the model until all layers are there, or are known not to get there.

        Returns:
            What is to be said of the data.
        """
        every = list(range(len(self._chosen)))
        with Running(self._checkpoint, data, [p for c in self._chosen for p in c.probes]) as run:
            self._see(run, every)
            without = [index for index in every if self.searches[index].before is None]
            self.empty = _empty(run, self._chosen, without)
            self._rounds(run, every)
            # What is left as it was moves what stands behind it.
            for _ in range(_MAX_ROUNDS):
                off = self._off()
                if not off:
                    break
                for index in off:
                    self.searches[index].give_up()
                self._assign(run, off)
                self._see(run, every)
                self._rounds(run, self._off())
            return run.notes

    def _rounds(self, run: Running, first: Sequence[int]) -> None:
        """Settle layers by their depth, until all are there or rounds are used up."""
        for number in range(_MAX_ROUNDS):
            off = self._off()
            if not off:
                break
            for level in self._levels(off if number else first):
                self._settle(run, level)
            self._see(run, range(len(self._chosen)))

    def _off(self) -> list[int]:
        return [index for index, search in enumerate(self.searches) if search.is_off]

    def _levels(self, wanted: Sequence[int]) -> Iterator[list[int]]:
        """Yield the layers of each depth that has one which is wanted."""
        for depth in sorted({self._chosen[index].depth for index in wanted}):
            yield [i for i, one in enumerate(self._chosen) if one.depth == depth]

    def _settle(self, run: Running, level: Sequence[int]) -> None:
        for index in level:
            self.searches[index].again()
        waiting = [i for i in level if not self.searches[i].is_done.all()]
        for _ in range(_MAX_TURNS):
            if not waiting:
                break
            # What is not run is never found.
            found = dict(self._measured(run, waiting))
            for index, statistic in found.items():
                self.searches[index].tell(statistic)
            self._assign(run, list(found))
            waiting = [i for i in found if not self.searches[i].is_done.all()]
        for index in waiting:
            self.searches[index].settle()
        self._assign(run, waiting)

    def _see(self, run: Running, level: Sequence[int]) -> None:
        for index, statistic in self._measured(run, level):
            self.searches[index].see(statistic)

    def _measured(self, run: Running, level: Sequence[int]) -> Iterator[tuple[int, Array]]:
        groups = [self._chosen[index].probes for index in level]
        for index, moments in zip(level, run.measure(groups), strict=True):
            # What was not run has no statistic, and stays.
            if moments.count:
                yield index, self._wanted.statistic(moments)

    def _assign(self, run: Running, level: Sequence[int]) -> None:
        run.assign(
            {
                name: times(self._checkpoint[name], self._factors[name])
                for index in level
                for name in self._chosen[index].variables
            }
        )


def _is_proportional(layer: Layer) -> bool:
    is_homogeneous = layer.activation is None or layer.activation.is_homogeneous
    return is_homogeneous and layer.kind != "recurrent"


def is_at(statistic: Array, target: float) -> Array:
    """Tell which statistics are as near to the target as is promised."""
    found: Array = np.abs(statistic / target - 1) <= PROMISED
    return found
