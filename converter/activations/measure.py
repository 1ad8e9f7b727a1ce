"""Runs a model on data, and gathers the moments of its activations on the way.

Threads add up what a batch gave before the next one is run, while it is in the processor's caches.
Small batches are held until there are enough values for each call to be worth it, large ones one at
a time, so that memory does not grow with the data.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from itertools import chain

import numpy as np

from converter.activations.asked import Question, asked
from converter.activations.file import Key, Measured
from converter.activations.moments import Accumulator, Moments
from converter.activations.parts import joined
from converter.activations.probes import LOOKED_UP, Found, Probe, find_probes
from converter.activations.run import Batch, Run, Taken
from converter.activations.sums import NotFiniteError
from converter.checkpoint import Checkpoint
from converter.counted import agree
from converter.errors import ConverterError, InputError, UsageError
from converter.forward.signature import check_callable
from converter.patterns import matching, texts
from converter.structure.layers.cuts import Cut
from converter.variable import Array

MAX_COVARIANCE = 8192
"""Units of which a covariance can be had: it takes 8 bytes for each pair of them."""

_FEW = 3
_ITEMS_TOGETHER = 1 << 18  # of a tensor, on average, that are added up at once
_MORE_TOGETHER = 8  # times as many batches as before are held at most
_LARGE_ITEMS = 1 << 12  # of a part, that are added up alone
_ITEMS_OF_THREAD = 1 << 17  # of a tensor, that threads add up sooner than they are handed it


def measure(
    checkpoint: Checkpoint,
    batches: Iterable[Batch | Array],
    *,
    probes: Sequence[Probe] | None = None,
    variables: str | Sequence[str] = (),
    covariance: str | Sequence[str] = (),
    question: Question | None = None,
) -> Measured:
    """Run a model on data and return the moments of its activations.

    Args:
        checkpoint: with a graph.
        batches: what the model is run on, one after the other; all with the same names. Of a model
            with one input, its array will do.
        probes: what is measured; None for what the structure of the graph tells.
        variables: globs of the variables that are wanted, or one alone; none for all.
        covariance: globs of the variables whose covariance is wanted, or one alone.
        question: what is run.

    Raises:
        InputError: there is no graph, a variable is missing, a file is damaged, or a batch has NaN.
        UsageError: TensorFlow is not installed; an input is missing or does not fit; a glob fits
            nothing; no activation can be measured; the data hold no rows.
        RunError: the graph does not run.
        ConverterError: an activation is NaN or infinite.
    """
    question = question or Question()
    _check_given(checkpoint, batches, question)
    variables = texts(variables, "measure: variables")
    covariance = texts(covariance, "measure: covariance")
    unmeasured: list[str] = []
    if probes is None:
        found = find_probes(checkpoint)
        probes = found.probes
        unmeasured = _unmeasured(found, variables)
        names = {name for probe in probes for name, _ in probe.for_}
        if unmeasured and not any(_fits(name, variables) for name in names):
            check_callable(checkpoint)
            raise UsageError(f"{checkpoint.path}: {unmeasured[0]}")
    probes = _wanted(probes, variables)
    if not probes:
        check_callable(checkpoint)
        raise UsageError(
            f"{checkpoint.path}: its graph does not tell where activations of its variables are"
        )
    covariant = _named(covariance, probes)
    pools = pools_of(probes, covariant)
    named = _by_name(checkpoint, batches, question)
    iterator = (batch for batch in named if not _is_empty(batch))
    first = next(iterator, None)
    if first is None:
        raise UsageError(f"{question.where}: it holds no data")
    with Run(checkpoint, first, probes, question) as run:
        count = gather(run, pools, chain((first,), iterator))
        notes = [*run.forward.notes, *unmeasured]
        measured = _measured(checkpoint, pools, run.reached, covariant, count, notes)
    if not measured:
        raise UsageError(f"{question.where}: {measured.notes[-1]}")
    return measured


def _check_given(
    checkpoint: Checkpoint, batches: Iterable[Batch | Array], question: Question
) -> None:
    """Refuse what types allow by mistake, or nobody looks at them."""
    if not isinstance(checkpoint, Checkpoint):
        raise UsageError(
            f"measure: a {type(checkpoint).__name__} is no checkpoint; open it (open_checkpoint, "
            "open_keras)"
        )
    is_one = isinstance(batches, Mapping | np.ndarray | str | os.PathLike)
    if is_one or not isinstance(batches, Iterable):
        raise UsageError(
            f"{question.where}: a {type(batches).__name__} is no series of batches; give several, "
            "or one in a list: [{'input': array}]"
        )


def _by_name(
    checkpoint: Checkpoint, batches: Iterable[Batch | Array], question: Question
) -> Iterator[Batch]:
    """Yield batches as arrays by the names of inputs.

    Raises:
        UsageError: a batch is neither that nor the array of the only input.
    """
    only: str | None = None
    for batch in batches:
        if isinstance(batch, Mapping):
            yield {str(name): _array(value, str(name), question) for name, value in batch.items()}
            continue
        if not isinstance(batch, np.ndarray):
            raise UsageError(
                f"{question.where}: a batch is a {type(batch).__name__}; it must be a dictionary "
                "from inputs to arrays"
            )
        if only is None:
            inputs = list(asked(checkpoint, question).inputs)
            if len(inputs) != 1:
                raise UsageError(
                    f"{question.where}: a batch is one array, and the model takes "
                    f"{', '.join(inputs) or 'nothing'}; give a dictionary from inputs to arrays"
                )
            (only,) = inputs
        yield {only: _array(batch, only, question)}


def _array(value: object, name: str, question: Question) -> Array:
    try:
        found = np.asarray(value)
    except (TypeError, ValueError, RuntimeError):
        found = np.asarray(None)
    is_text = found.dtype.kind == "O" and found.size and isinstance(found.flat[0], str | bytes)
    if found.dtype.kind == "O" and not is_text:
        what = "an array of objects" if found.shape else f"a {type(value).__name__}"
        raise UsageError(f"{question.where}: {name}: {what} is no array of numbers; give one")
    if found.dtype.kind in "fc" and (nans := int(np.count_nonzero(np.isnan(found)))):
        raise InputError(
            f"{question.where}: {name}: {nans} of {found.size} values of a batch "
            f"{agree(nans, 'is', 'are')} NaN; leave these rows out"
        )
    return found


def _is_empty(batch: Batch) -> bool:
    """Tell whether a batch has no rows."""
    sizes = {value.shape[0] for value in batch.values() if value.shape}
    return sizes == {0}


@dataclass(slots=True, eq=False)
class Pool:
    """What is measured for the same variables: one tensor, or one for each step of a cell.

    Attributes:
        for_: the variables, and their sides.
        accumulator: of all that was added.
        probes: the tensors.
    """

    for_: tuple[Key, ...]
    accumulator: Accumulator
    probes: list[Probe] = field(default_factory=list)

    @property
    def moments(self) -> Moments:
        """Those of all that was added."""
        return self.accumulator.moments

    def add(self, taken: Sequence[Taken]) -> None:
        """Add what a run gave.

        Raises:
            InputError: a tensor has no axis of so many units.
            ConverterError: a value is NaN or infinite.
        """
        rows = [one.rows() for one in taken]
        try:
            self.accumulator.add(_together(rows))
        except NotFiniteError as error:
            name, side = self.for_[0]
            source = next(t.probe for t, r in zip(taken, rows, strict=True) if _is_odd(r)).tensor
            raise ConverterError(
                f"{name}: its activations ({side}: {source}) are not finite: {error}; look at the "
                "data, or choose other variables"
            ) from None

    def is_last(self, checkpoint: Checkpoint) -> bool:
        """Whether these are the units of the last axis of a variable."""
        shapes = [checkpoint[name].shape for name, _ in self.for_ if name in checkpoint]
        return any(shape[-1:] == (self.moments.size,) for shape in shapes)


def _together(rows: Sequence[Array]) -> Sequence[Array]:
    """Put small parts together, as beginning with each of them takes its time."""
    if len(rows) == 1 or sum(part.size for part in rows) >= _LARGE_ITEMS * len(rows):
        return rows
    return [np.concatenate(rows)]


def _is_odd(rows: Array) -> bool:
    wide = rows.astype(np.float64)
    with np.errstate(over="ignore"):
        return not np.isfinite(wide * wide).all()


def _named(globs: Sequence[str], probes: Sequence[Probe]) -> set[str]:
    """Return the variables that globs choose of those that can be measured."""
    known = list(dict.fromkeys(name for probe in probes for name, _ in probe.for_))
    return {name for glob in globs for name in matching(glob, known, "measured variables")}


def _unmeasured(found: Found, globs: Sequence[str]) -> list[str]:
    """Say of which variables nothing can be measured, or of one side only, and why."""
    by_reason: dict[str, list[str]] = {}
    for (name, side), why in found.unmeasured.items():
        if why != LOOKED_UP and _fits(name, globs):
            by_reason.setdefault(why, []).append(f"{name} ({side})")
    return [f"not measured: {_few(names)}: {why}" for why, names in by_reason.items()]


def _fits(name: str, globs: Sequence[str]) -> bool:
    return not globs or any(fnmatchcase(name, glob) for glob in globs)


def _few(names: Sequence[str]) -> str:
    more = f" (and {len(names) - _FEW} more)" if len(names) > _FEW else ""
    return ", ".join(names[:_FEW]) + more


def _wanted(probes: Sequence[Probe], globs: Sequence[str]) -> list[Probe]:
    if not globs:
        return list(probes)
    names = _named(globs, probes)
    chosen = [tuple(key for key in probe.for_ if key[0] in names) for probe in probes]
    pairs = zip(probes, chosen, strict=True)
    return [replace(probe, for_=for_) for probe, for_ in pairs if for_]


def pools_of(probes: Sequence[Probe], covariance: Collection[str] = ()) -> list[Pool]:
    pools: dict[tuple[tuple[Key, ...], int, Cut | None], Pool] = {}
    for probe in probes:
        key = probe.for_, probe.size, probe.cut
        if key not in pools:
            chosen = [name for name, _ in probe.for_ if name in covariance and not probe.cut]
            if chosen and probe.size > MAX_COVARIANCE:
                raise UsageError(
                    f"{chosen[0]}: the covariance of {probe.size:,} units takes "
                    f"{probe.size**2 * 8 / 1e9:.1f} GB; choose variables of up to "
                    f"{MAX_COVARIANCE:,} (--covariance GLOB)"
                )
            moments = Moments.of(probe.size, covariance=bool(chosen))
            pools[key] = Pool(probe.for_, Accumulator(moments))
        pools[key].probes.append(probe)
    return list(pools.values())


def gather(run: Run, pools: Sequence[Pool], batches: Iterable[Batch]) -> int:
    """Run all batches, and add up what they give; return how many there were."""
    of = {id(probe): pool for pool in pools for probe in pool.probes}
    fetches = run.fetches(probe for pool in pools for probe in pool.probes)
    count = 0
    with ThreadPoolExecutor(os.cpu_count() or 1) as adding:
        waiting: list[list[Taken]] = []
        fed, allowed = 0, 0.0
        for batch in batches:
            waiting.append(run.take(batch, fetches))
            count += 1
            fed += sum(value.size for value in batch.values())
            if fed < allowed:
                continue
            items = _add(adding, of, run, waiting)
            # These tell how much may be fed until enough waits again, unless more of the graph is
            # run for others.
            allowed = fed * min(_ITEMS_TOGETHER * len(pools) / max(items, 1), _MORE_TOGETHER)
            waiting, fed = [], 0
        _add(adding, of, run, waiting)
    return count


def _add(
    adding: Executor, of: Mapping[int, Pool], run: Run, waiting: Sequence[Sequence[Taken]]
) -> int:
    """Add what was taken, and then what is in queues; return how many values there were."""
    items = _add_taken(adding, of, zip(*waiting, strict=True))
    for queue, held in run.held().items():
        items += sum(_add_taken(adding, of, taken) for taken in run.empty(queue, held))
    return items


def _add_taken(adding: Executor, of: Mapping[int, Pool], taken: Iterable[Sequence[Taken]]) -> int:
    """Add what was taken for each of some probes; return how many values there were."""
    items = largest = 0
    parts: dict[int, tuple[Pool, list[Taken]]] = {}
    for part in taken:
        sizes = [one.values.size for one in part]
        items += sum(sizes)
        largest = max(largest, *sizes)
        # Queues hold what is asked for in other calls, too.
        if (pool := of.get(id(part[0].probe))) is not None:
            parts.setdefault(id(pool), (pool, []))[1].extend(part)
    if largest < _ITEMS_OF_THREAD:
        for pool, whole in parts.values():
            pool.add(whole)
        return items
    # The largest first, so that no thread is left with it in the end.
    order = sorted(parts.values(), key=lambda one: -sum(t.values.size for t in one[1]))
    for future in [adding.submit(pool.add, whole) for pool, whole in order]:
        future.result()
    return items


def _whole(pools: Iterable[Pool], covariance: Collection[str]) -> tuple[list[Pool], list[str]]:
    """Put the parts of variables together, and say what there is to be known of them."""
    whole: list[Pool] = []
    parts: dict[tuple[Key, int], dict[Cut, Pool]] = {}
    notes: list[str] = []
    for pool in pools:
        cut = pool.probes[0].cut
        if cut is None:
            whole.append(pool)
            continue
        for key in pool.for_:
            of_key = parts.setdefault((key, cut.total), {})
            other = of_key.setdefault(cut, Pool((key,), Accumulator(Moments.of(cut.size))))
            other.moments.merge(pool.moments)
            other.probes += pool.probes
    for (key, _), cuts in parts.items():
        moments = joined({cut: pool.moments for cut, pool in cuts.items()})
        if isinstance(moments, str):
            notes.append(f"{key[0]} ({key[1]}): {moments}: left out")
            continue
        probes = [probe for cut in sorted(cuts) for probe in cuts[cut].probes]
        whole.append(Pool((key,), Accumulator(moments), probes))
        if key[0] in covariance:
            notes.append(
                f"{key[0]} ({key[1]}): no covariance: its units are in different tensors, "
                f"{_few([str(probe.tensor) for probe in whole[-1].probes])}"
            )
    return whole, notes


def _measured(
    checkpoint: Checkpoint,
    pools: Sequence[Pool],
    reached: Sequence[Probe],
    covariance: Collection[str],
    count: int,
    notes: Sequence[str],
) -> Measured:
    """Join what was measured for the same side of a variable in several places.

    A table that looks up rows can be a kernel the other way round elsewhere, whose units are its
    rows: its last axis goes first, and the rest is left out.
    """
    found: dict[Key, Moments] = {}
    tensors: dict[Key, dict[str, None]] = {}
    is_reached = {id(probe) for probe in reached}
    ran = [pool for pool in pools if pool.moments.count]
    run, odd = _whole(ran, covariance)
    notes = [*notes, *odd]
    has_none = {key for pool in run if pool.moments.products is None for key in pool.for_}
    for pool in sorted(run, key=lambda pool: not pool.is_last(checkpoint)):
        for key in pool.for_:
            part = pool.moments
            total = found.get(key)
            if total is None:
                wants = key[0] in covariance and key not in has_none
                total = found[key] = Moments.of(part.size, covariance=wants)
            if total.size != part.size:
                places = ", ".join(str(probe.tensor) for probe in pool.probes[:_FEW])
                notes = [
                    *notes,
                    f"{key[0]} ({key[1]}) has {part.size} units in {places}: left out",
                ]
                continue
            total.merge(part if total.products is not None else replace(part, products=None))
            names = [str(probe.tensor) for probe in pool.probes if id(probe) in is_reached]
            tensors.setdefault(key, {}).update(dict.fromkeys(names))
    notes = [*notes, *_not_run(pools, is_reached)]
    return Measured(
        found, {key: tuple(names) for key, names in tensors.items()}, count, tuple(notes)
    )


def _not_run(pools: Sequence[Pool], reached: Collection[int]) -> Iterator[str]:
    """Say what was not measured although it can be: sequences are empty, or it is not run."""
    known = {key for pool in pools if pool.moments.count for key in pool.for_}
    empty: dict[Key, None] = {}
    other: dict[Key, None] = {}
    for pool in pools:
        is_masked = any(p.mask is not None and id(p) in reached for p in pool.probes)
        for key in pool.for_:
            if key not in known:
                (empty if is_masked else other).setdefault(key)
    if empty:
        names = _few([f"{name} ({side})" for name, side in empty])
        yield f"not measured, as all sequences are empty: {names}; give data with longer ones"
    if other:
        names = _few([f"{name} ({side})" for name, side in other])
        yield f"not measured, as nothing of it was run: {names}; --fetch chooses what is run"
