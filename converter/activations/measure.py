"""Runs a model on data, and gathers the moments of its activations on the way.

TensorFlow runs a batch while a thread adds up the one before. No more than two batches are held, so
that memory does not grow with the data.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np

from converter.activations.file import Key, Measured
from converter.activations.instrument import Tap, instrument
from converter.activations.moments import Moments, NotFiniteError
from converter.activations.probes import Probe
from converter.activations.reach import Reach
from converter.checkpoint import Checkpoint
from converter.errors import ConverterError, InputError, UsageError
from converter.forward.feeds import complete, given_values, parse_feed
from converter.forward.find import Forward, find_forward
from converter.forward.graph import Tensor, read_graph
from converter.patterns import matching
from converter.variable import Array

if TYPE_CHECKING:
    from converter.session import Queue, Session

Batch = Mapping[str, Array]
"""Values of inputs by the names of placeholders."""

MAX_COVARIANCE = 8192
"""Units of which a covariance can be had: it takes 8 bytes for each pair of them."""

_FEW = 3


def measure(
    checkpoint: Checkpoint,
    batches: Iterable[Batch],
    *,
    probes: Sequence[Probe] | None = None,
    variables: Sequence[str] = (),
    covariance: Sequence[str] = (),
    feeds: Sequence[str] = (),
    fetches: Sequence[str] = (),
    where: str = "the data",
) -> Measured:
    """Run a model on data and return the moments of its activations.

    Args:
        checkpoint: with a graph.
        batches: what the model is run on, one after the other; all with the same names.
        probes: what is measured; None for what the structure of the graph tells.
        variables: globs of the variables that are wanted; none for all.
        covariance: globs of the variables whose covariance is wanted.
        feeds: `NAME=VALUE`, for tensors that are fed the same in every batch.
        fetches: up to where the graph is run; none for what looks like its outputs.
        where: the subject of errors about the data.

    Raises:
        InputError: there is no graph, a variable is missing, or a file is damaged.
        UsageError: TensorFlow is not installed; an input is missing or does not fit; a glob fits
            nothing; no activation can be measured.
        RunError: the graph does not run.
        ConverterError: an activation is NaN or infinite.
    """
    if probes is None:
        from converter.activations.probes import probes as told

        probes = told(checkpoint)
    probes = _wanted(probes, variables)
    if not probes:
        raise UsageError(
            f"{checkpoint.path}: its graph does not tell where activations of its variables are"
        )
    covariant = _named(covariance, probes)
    pools = _pools(probes, covariant)
    iterator = iter(batches)
    first = next(iterator, None)
    if first is None:
        raise UsageError(f"{where}: it holds no data")
    with _Run(checkpoint, first, pools, feeds, fetches, where) as run:
        count = _gather(run, pools, chain((first,), iterator))
        return _measured(pools, run.reached, covariant, count, run.forward.notes)


@dataclass(frozen=True, slots=True, eq=False)
class _Taken:
    """What one run gave for a probe.

    Attributes:
        probe: which.
        values: of its tensor, or the rows (observations, units) that count of it.
        mask: bools: which rows count; None for all.
        axis: of the units.
    """

    probe: Probe
    values: Array
    mask: Array | None
    axis: int

    def rows(self) -> Array:
        """Return the rows (observations, units) that count.

        Raises:
            InputError: the tensor has no axis of so many units.
        """
        shape, probe = self.values.shape, self.probe
        if not -len(shape) <= self.axis < len(shape) or shape[self.axis] != probe.size:
            raise InputError(
                f"{probe.tensor}: it is {list(shape)}, and axis {self.axis} of it was to hold the "
                f"{probe.size} units of {probe.for_[0][0]}"
            )
        rows = np.moveaxis(self.values, self.axis, -1)
        if self.mask is not None:
            rows = rows[self.mask.reshape(-1) if self.mask.size == len(rows) else self.mask]
        return rows.reshape(-1, probe.size)


@dataclass(slots=True, eq=False)
class _Pool:
    """What is measured for the same variables: one tensor, or one for each step of a cell.

    Attributes:
        for_: the variables, and their sides.
        moments: of all that was added.
        probes: the tensors.
    """

    for_: tuple[Key, ...]
    moments: Moments
    probes: list[Probe] = field(default_factory=list)

    def add(self, taken: Sequence[_Taken]) -> None:
        """Add what a run gave.

        Raises:
            InputError: a tensor has no axis of so many units.
            ConverterError: a value is NaN or infinite.
        """
        rows = [one.rows() for one in taken]
        try:
            self.moments.add(rows[0] if len(rows) == 1 else np.concatenate(rows))
        except NotFiniteError as error:
            name, side = self.for_[0]
            source = next(t.probe for t, r in zip(taken, rows, strict=True) if _is_odd(r)).tensor
            raise ConverterError(
                f"{name}: its activations ({side}: {source}) are not finite: {error}; look at the "
                "data, or measure other variables (--variable GLOB)"
            ) from None


def _is_odd(rows: Array) -> bool:
    wide = rows.astype(np.float64)
    with np.errstate(over="ignore"):
        return not np.isfinite(wide * wide).all()


def _named(globs: Sequence[str], probes: Sequence[Probe]) -> set[str]:
    """Return the variables that globs choose of those that can be measured."""
    known = list(dict.fromkeys(name for probe in probes for name, _ in probe.for_))
    return {name for glob in globs for name in matching(glob, known, "measured variables")}


def _wanted(probes: Sequence[Probe], globs: Sequence[str]) -> list[Probe]:
    if not globs:
        return list(probes)
    names = _named(globs, probes)
    chosen = [tuple(key for key in probe.for_ if key[0] in names) for probe in probes]
    pairs = zip(probes, chosen, strict=True)
    return [replace(probe, for_=for_) for probe, for_ in pairs if for_]


def _pools(probes: Sequence[Probe], covariance: Collection[str]) -> list[_Pool]:
    pools: dict[tuple[tuple[Key, ...], int], _Pool] = {}
    for probe in probes:
        key = probe.for_, probe.size
        if key not in pools:
            chosen = [name for name, _ in probe.for_ if name in covariance]
            if chosen and probe.size > MAX_COVARIANCE:
                raise UsageError(
                    f"{chosen[0]}: the covariance of {probe.size:,} units takes "
                    f"{probe.size**2 * 8 / 1e9:.1f} GB; choose variables of up to "
                    f"{MAX_COVARIANCE:,} (--covariance GLOB)"
                )
            pools[key] = _Pool(probe.for_, Moments.of(probe.size, covariance=bool(chosen)))
        pools[key].probes.append(probe)
    return list(pools.values())


class _Run:
    """A session, and what is taken from it.

    It is a context manager, which frees what it holds.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        first: Batch,
        pools: Sequence[_Pool],
        feeds: Sequence[str],
        fetches: Sequence[str],
        where: str,
    ) -> None:
        from converter.session import Session, can_run, dtypes_of

        graph = read_graph(checkpoint)
        if graph is None:
            raise InputError(
                f"{checkpoint.path}: it has no graph (.meta, .pb) in which it could be run"
            )
        self._graph = graph
        self._where = where
        self._names = frozenset(first)
        self._constant = given_values(graph, dict(map(parse_feed, feeds)), "--feed")
        given = self._given(first)
        self.forward = find_forward(
            graph, set(checkpoint), fetches=fetches, fed=list(map(str, given)), can_run=can_run()
        )
        self._decided = _decided(self.forward, given, where)
        values = {**self._decided, **given}
        self._probes = [probe for pool in pools for probe in pool.probes]
        self._queues = {id(probe): f"measured/{n}" for n, probe in enumerate(self._probes)}
        reach = Reach(graph)
        self._caught = [p for p in self._probes if not self._can_fetch(reach, p)]
        self.session: Session = Session(
            self.forward, checkpoint, dtypes_of(self.forward, values), rewrite=self._rewrite
        )
        caught = set(map(id, self._caught))
        self._fetched = [p for p in self._probes if self._is_run(p) and id(p) not in caught]
        self.reached = [*self._fetched, *(p for p in self._caught if id(p) in self._filled)]

    def __enter__(self) -> _Run:
        return self

    def __exit__(self, *_: object) -> None:
        self.session.close()

    def values_of(self, batch: Batch) -> dict[Tensor, Array]:
        """Return what a batch feeds, with all that is fed beside it.

        Raises:
            UsageError: its names are others than those of the first batch; a value does not fit.
        """
        if self._names != frozenset(batch):
            odd = sorted(self._names ^ frozenset(batch))[0]
            raise UsageError(f"{self._where}: {odd} is in some batches, and not in all")
        return {**self._decided, **self._given(batch)}

    def run(self, values: Mapping[Tensor, Array]) -> list[_Taken]:
        """Run a batch, and return what it gave for the probes that are reached."""
        sources = [self._taken(probe.tensor) for probe in self._fetched]
        sources += [self._taken(probe.mask) for probe in self._fetched if probe.mask is not None]
        also = [source for source in dict.fromkeys(sources) if source not in values]
        found = {**self.session.run(values, also, draw_again=False), **values}
        queues = self.session.empty() if self._filled else {}
        taken = []
        for probe in self._fetched:
            mask = None
            if probe.mask is not None:
                mask = found[self._taken(probe.mask)].astype(bool) == probe.keeps
            taken.append(_Taken(probe, found[self._taken(probe.tensor)], mask, probe.axis))
        caught = [probe for probe in self._caught if id(probe) in self._filled]
        return taken + [_Taken(p, queues[self._queues[id(p)]], None, -1) for p in caught]

    def _given(self, batch: Batch) -> dict[Tensor, Array]:
        return {**given_values(self._graph, batch, self._where), **self._constant}

    def _taken(self, source: Tensor) -> Tensor:
        return self.forward.instead.get(source, source)

    def _is_run(self, probe: Probe) -> bool:
        nodes = self.session.nodes
        sources = [probe.tensor] if probe.mask is None else [probe.tensor, probe.mask]
        return all(self._taken(source).node in nodes for source in sources)

    def _can_fetch(self, reach: Reach, probe: Probe) -> bool:
        sources = [probe.tensor] if probe.mask is None else [probe.tensor, probe.mask]
        return all(reach.can_fetch(self._taken(source)) for source in sources)

    def _rewrite(self, definition: bytes) -> tuple[bytes, list[Queue]]:
        from converter.session import Queue, op_definition

        taps = [
            Tap(
                self._queues[id(probe)],
                self._taken(probe.tensor),
                None if probe.mask is None else self._taken(probe.mask),
            )
            for probe in self._caught
        ]
        subject = str(self._graph.path)
        changed, dtypes = instrument(definition, taps, op_definition, subject)
        filled = [probe for probe in self._caught if self._queues[id(probe)] in dtypes]
        self._filled = {id(probe) for probe in filled}
        queues = [
            Queue(
                name := self._queues[id(probe)],
                dtypes[name],
                probe.axis,
                probe.size,
                None if probe.mask is None else probe.keeps,
            )
            for probe in filled
        ]
        return changed, queues


def _decided(forward: Forward, given: Mapping[Tensor, Array], where: str) -> dict[Tensor, Array]:
    """Return what inference wants of the inputs that nobody gives.

    Raises:
        UsageError: an input is neither given nor decided: nothing is drawn to be measured.
    """
    missing = [
        found
        for found in forward.inputs
        if found.tensor not in given and found.value is None and found.kind != "default"
    ]
    if missing:
        names = ", ".join(str(found.tensor) for found in missing[:_FEW])
        more = f" (and {len(missing) - _FEW} more)" if len(missing) > _FEW else ""
        raise UsageError(
            f"{where}: it has no values for {names}{more}, which the model needs; add them to the "
            "data, or feed them (--feed NAME=VALUE)"
        )
    values = next(complete(forward, given, 0)).values
    return {source: value for source, value in values.items() if source not in given}


def _gather(run: _Run, pools: Sequence[_Pool], batches: Iterable[Batch]) -> int:
    """Run all batches, and add what they give while the next one runs; return how many."""
    of_probe = {id(probe): pool for pool in pools for probe in pool.probes}

    def add(taken: Sequence[_Taken]) -> None:
        by_pool: dict[int, list[_Taken]] = {}
        for one in taken:
            by_pool.setdefault(id(of_probe[id(one.probe)]), []).append(one)
        for parts in by_pool.values():
            of_probe[id(parts[0].probe)].add(parts)

    count = 0
    with ThreadPoolExecutor(1) as adding:
        before: Future[None] | None = None
        for batch in batches:
            taken = run.run(run.values_of(batch))
            if before is not None:
                before.result()
            before = adding.submit(add, taken)
            count += 1
        if before is not None:
            before.result()
    return count


def _measured(
    pools: Sequence[_Pool],
    reached: Sequence[Probe],
    covariance: Collection[str],
    count: int,
    notes: Sequence[str],
) -> Measured:
    """Join what was measured for the same side of a variable in several places."""
    found: dict[Key, Moments] = {}
    tensors: dict[Key, dict[str, None]] = {}
    is_reached = {id(probe) for probe in reached}
    for pool in pools:
        for key in pool.for_ if pool.moments.count else ():
            total = found.get(key)
            if total is None:
                wants = key[0] in covariance
                total = found[key] = Moments.of(pool.moments.size, covariance=wants)
            if total.size != pool.moments.size:
                raise ConverterError(
                    f"{key[0]}: its activations ({key[1]}) have {total.size} units in one place, "
                    f"and {pool.moments.size} in another"
                )
            part = pool.moments
            total.merge(part if total.products is not None else replace(part, products=None))
            names = [str(probe.tensor) for probe in pool.probes if id(probe) in is_reached]
            tensors.setdefault(key, {}).update(dict.fromkeys(names))
    wanted = dict.fromkeys(key for pool in pools for key in pool.for_)
    missing = [f"{name} ({side})" for name, side in wanted if (name, side) not in found]
    if missing:
        more = f" (and {len(missing) - _FEW} more)" if len(missing) > _FEW else ""
        notes = [
            *notes,
            f"not measured, as nothing of it was run: {', '.join(missing[:_FEW])}{more}; --fetch "
            "chooses what is run",
        ]
    return Measured(
        found, {key: tuple(names) for key, names in tensors.items()}, count, tuple(notes)
    )
