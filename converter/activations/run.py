"""A model that is run batch by batch, and what each run gives for the probes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from converter.activations.asked import Question, asked
from converter.activations.cells import cell_of
from converter.activations.instrument import Filled, Tap, instrument
from converter.activations.probes import Probe
from converter.activations.reach import Reach
from converter.checkpoint import Checkpoint
from converter.closing import Closing
from converter.errors import InputError, UsageError
from converter.forward.find import Forward
from converter.graph.node import Tensor
from converter.variable import Array, Variable

if TYPE_CHECKING:
    from converter.session import Queue

Batch = Mapping[str, Array]
"""Values of inputs by the names of placeholders."""


class Taken(NamedTuple):
    """What one run gave for a probe.

    Attributes:
        probe: which.
        values: of its tensor, or the rows (observations, units) of it that count.
        axis: of the units.
        mask: bools: which rows count; None for all.
    """

    probe: Probe
    values: Array
    axis: int
    mask: Array | None = None

    def rows(self) -> Array:
        """Return the rows (observations, units) that count.

        Raises:
            InputError: the tensor has no axis of so many units, or its mask is of other rows.
        """
        probe = self.probe
        values, shape = self.values, self.values.shape
        if self.mask is None and self.axis == -1 and shape[-1:] == (probe.size,) and probe.size:
            return values.reshape(-1, probe.size)
        if not values.size:
            return np.zeros((0, probe.size), values.dtype)
        values = _flat(values, self.axis, probe.size)
        shape = values.shape
        if not -len(shape) <= self.axis < len(shape) or shape[self.axis] != probe.size:
            raise InputError(
                f"{probe.tensor}: it is {list(shape)}, and axis {self.axis} of it was to hold the "
                f"{probe.size} units of {probe.for_[0][0]}"
            )
        if self.axis not in (-1, len(shape) - 1):
            values = np.moveaxis(values, self.axis, -1)
        rows = values.reshape(-1, probe.size)
        if self.mask is None or not len(rows) or self.mask.all():
            return rows
        # It is for the first axes, and stands for all rows behind them.
        mask = self.mask.reshape(-1)
        times, rest = divmod(len(rows), mask.size)
        if rest:
            raise InputError(
                f"{probe.tensor}: it has {len(rows)} rows, and {probe.mask} tells of {mask.size} "
                "of them whether they count"
            )
        return rows.compress(mask if times == 1 else np.repeat(mask, times), axis=0)


def _flat(values: Array, axis: int, size: int) -> Array:
    """Put the last axes together that hold units, where several do."""
    shape = values.shape
    for first in range(len(shape) - 2, 0, -1) if axis == -1 and shape[-1:] != (size,) else ():
        if math.prod(shape[first:]) == size:
            return values.reshape(*shape[:first], size)
    return values


@dataclass(frozen=True, slots=True)
class _Source:
    """Where the values of a probe come from.

    Attributes:
        tensor: which tensor is taken for it, after what inference leaves out.
        mask: the same for its mask.
        is_fetched: whether they are fetched; else they go through a queue.
    """

    probe: Probe
    tensor: Tensor
    mask: Tensor | None
    is_fetched: bool

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return (self.tensor,) if self.mask is None else (self.tensor, self.mask)


class Fetches(NamedTuple):
    """What is fetched in a run.

    Attributes:
        sources: where the probes are that are taken.
        tensors: what is computed for them.
    """

    sources: Sequence[_Source]
    tensors: Sequence[Tensor]


class Run(Closing):
    """A model in one session, with probes in it.

    It is a context manager, which frees what it holds.

    Args:
        checkpoint: with a graph.
        first: the first batch, with which all others have to agree.
        probes: what is taken.
        question: what is run.

    Attributes:
        forward: what is run of the graph.
        reached: those of the probes that are run.
        queues: those of them that go through each queue, by its name.

    Raises:
        InputError: there is no graph, a variable is missing, or a file is damaged.
        UsageError: TensorFlow is not installed; an input is missing or does not fit.
    """

    def __init__(
        self, checkpoint: Checkpoint, first: Batch, probes: Sequence[Probe], question: Question
    ) -> None:
        from converter.session import Session, dtypes_of

        self._model = asked(checkpoint, question)
        self._graph = self._model.graph
        self._where, self._flags = question.where, question.flags
        self._names = frozenset(first)
        given = self._model.given(first)
        self.forward: Forward = self._model.forward(given)
        self._model.check_complete(self.forward, given, question.where)
        self._decided = {
            found.tensor: np.asarray(found.value, found.dtype.numpy if found.dtype else None)
            for found in self.forward.inputs
            if found.value is not None and found.tensor not in given
        }
        sources = self._sources(probes)
        self._filled: dict[str, tuple[Filled, list[_Source]]] = {}
        dtypes = dtypes_of(self.forward, {**self._decided, **given})
        queued = [source for source in sources if not source.is_fetched]
        self._session = Session(
            self.forward, checkpoint, dtypes, rewrite=lambda graph: self._rewrite(graph, queued)
        )
        nodes = self._session.nodes
        self._fetched = [
            s
            for s in sources
            if s.is_fetched and all(t in dtypes or t.node in nodes for t in s.tensors)
        ]
        self._fed = frozenset(dtypes)
        self._all = self._fetches(self._fetched)
        self.queues = {
            name: [sources[number].probe for number in filled.places]
            for name, (filled, sources) in self._filled.items()
        }
        self.reached = [source.probe for source in self._fetched]
        self.reached += [probe for probes in self.queues.values() for probe in probes]

    def close(self) -> None:
        """Free what it holds."""
        self._session.close()

    def assign(self, variables: Mapping[str, Variable]) -> None:
        """Give variables of the graph other values, which the next batches are run with.

        Args:
            variables: by the names that they have in the checkpoint; the graph may not run all.
        """
        known = set(self._session.variables)
        for node, where in self.forward.variables.items():
            if where.key in variables and node in known:
                self._session.assign(node, where.read(variables[where.key]))

    def draw_again(self) -> None:
        """Let the next batch draw the random numbers that the first one drew; queues are empty."""
        self._session.draw_again()

    def fetches(self, probes: Iterable[Probe]) -> Fetches:
        """Return what is fetched for some of the probes."""
        chosen = {id(probe) for probe in probes}
        return self._fetches([source for source in self._fetched if id(source.probe) in chosen])

    def take(self, batch: Batch, fetches: Fetches | None = None) -> list[Taken]:
        """Run a batch, and return what it gave for the probes that can be fetched.

        What the others gave stays in queues until they are emptied.

        Args:
            batch: the values.
            fetches: what is fetched; None for all.

        Raises:
            UsageError: its names are others than those of the first batch; a value does not fit.
            RunError: the graph does not run with it.
        """
        from converter.session import RunError

        if self._names != frozenset(batch):
            odd = sorted(self._names ^ frozenset(batch))[0]
            raise UsageError(f"{self._where}: {odd} is in some batches, and not in all")
        values = {**self._decided, **self._model.given(batch)}
        fetches = fetches or self._all
        try:
            found = {**self._session.run(values, fetches.tensors, draw_again=False), **values}
        except RunError as error:
            raise RunError(
                f"{error}; it was fed {self._where}: look at these, or run less of the graph "
                f"({self._flags}fetch NAME)"
            ) from None
        return [
            _taken(s.probe, found[s.tensor], None if s.mask is None else found[s.mask])
            for s in fetches.sources
        ]

    def held(self) -> Mapping[str, int]:
        """Return how many elements are in each queue: what the batches so far gave."""
        return self._session.held() if self.queues else {}

    def empty(self, queue: str, count: int) -> Iterator[list[list[Taken]]]:
        """Take elements of a queue, and yield for some at a time what they have for each probe.

        Args:
            queue: its name.
            count: how many are taken; it holds as many.

        Raises:
            RunError: what is in the queue is not as the queue says.
        """
        filled, sources = self._filled[queue]
        for places in self._session.dequeue(queue, count):
            yield [
                [_taken(sources[number].probe, *masked) for masked in places[place]]
                for number, place in filled.places.items()
            ]

    def _fetches(self, sources: Sequence[_Source]) -> Fetches:
        tensors = dict.fromkeys(tensor for source in sources for tensor in source.tensors)
        return Fetches(sources, [tensor for tensor in tensors if tensor not in self._fed])

    def _sources(self, probes: Sequence[Probe]) -> list[_Source]:
        reach, instead = Reach(self._graph), self.forward.instead
        found: list[_Source] = []
        for probe in probes:
            tensor = instead.get(probe.tensor, probe.tensor)
            mask = None
            if probe.mask is not None:
                mask = reach.beside(instead.get(probe.mask, probe.mask), cell_of(tensor))
                if mask is None:
                    continue
            tensors = (tensor,) if mask is None else (tensor, mask)
            found.append(_Source(probe, tensor, mask, all(map(reach.can_fetch, tensors))))
        return found

    def _rewrite(
        self, definition: bytes, sources: Sequence[_Source]
    ) -> tuple[bytes, Sequence[Queue]]:
        from converter.session import op_definition

        taps = [Tap(source.tensor, source.mask) for source in sources]
        changed, filled = instrument(definition, taps, op_definition, str(self._graph.path))
        self._filled = {one.name: (one, list(sources)) for one in filled}
        return changed, [_queue(one, [source.probe for source in sources]) for one in filled]


def _taken(probe: Probe, values: Array, mask: Array | None) -> Taken:
    counts = None if mask is None else mask.astype(bool, copy=False) == probe.keeps
    return Taken(probe, values, probe.axis, counts)


def _queue(filled: Filled, probes: Sequence[Probe]) -> Queue:
    from converter.session import Queue

    columns: list[int | None] = [None] * (len(filled.dtypes) - filled.is_masked)
    for number, place in filled.places.items():
        columns[place] = probes[number].size if probes[number].axis == -1 else None
    return Queue(filled.name, filled.dtypes, columns, filled.is_masked)
