"""A model that is run batch by batch, and what each run gives for the probes."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from converter.activations.asked import Question, asked
from converter.activations.cells import cell_of
from converter.activations.instrument import Tap, instrument
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


@dataclass(frozen=True, slots=True, eq=False)
class Taken:
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
            InputError: the tensor has no axis of so many units.
        """
        probe = self.probe
        values = _flat(self.values, self.axis, probe.size)
        shape = values.shape
        if not -len(shape) <= self.axis < len(shape) or shape[self.axis] != probe.size:
            raise InputError(
                f"{probe.tensor}: it is {list(shape)}, and axis {self.axis} of it was to hold the "
                f"{probe.size} units of {probe.for_[0][0]}"
            )
        rows = np.moveaxis(values, self.axis, -1)
        if self.mask is not None:
            rows = rows[self.mask.reshape(-1) if self.mask.size == len(rows) else self.mask]
        return rows.reshape(-1, probe.size)


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
        queue: the queue that they go through; empty where they are fetched.
    """

    probe: Probe
    tensor: Tensor
    mask: Tensor | None
    queue: str

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return (self.tensor,) if self.mask is None else (self.tensor, self.mask)


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
        self._where = question.where
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
        self._queued = [source for source in sources if source.queue]
        dtypes = dtypes_of(self.forward, {**self._decided, **given})
        self._session = Session(self.forward, checkpoint, dtypes, rewrite=self._rewrite)
        nodes = self._session.nodes
        self._fetched = [
            s
            for s in sources
            if not s.queue and all(t in dtypes or t.node in nodes for t in s.tensors)
        ]
        wanted = dict.fromkeys(tensor for source in self._fetched for tensor in source.tensors)
        self._also = [tensor for tensor in wanted if tensor not in dtypes]
        self.reached = [source.probe for source in (*self._fetched, *self._queued)]

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

    def take(self, batch: Batch, wanted: Collection[Probe] | None = None) -> list[Taken]:
        """Run a batch, and return what it gave for the probes that can be fetched.

        What the others gave stays in queues until they are emptied.

        Args:
            batch: the values.
            wanted: the probes that are taken of these; None for all.

        Raises:
            UsageError: its names are others than those of the first batch; a value does not fit.
            RunError: the graph does not run with it.
        """
        from converter.session import RunError

        if self._names != frozenset(batch):
            odd = sorted(self._names ^ frozenset(batch))[0]
            raise UsageError(f"{self._where}: {odd} is in some batches, and not in all")
        values = {**self._decided, **self._model.given(batch)}
        fetched = _of(wanted, self._fetched)
        tensors = {tensor for source in fetched for tensor in source.tensors}
        also = [tensor for tensor in self._also if tensor in tensors]
        try:
            found = {**self._session.run(values, also, draw_again=False), **values}
        except RunError as error:
            raise RunError(
                f"{error}; it was fed {self._where}: look at these, or run less of the graph "
                "(--fetch NAME)"
            ) from None
        taken = []
        for source in fetched:
            probe, mask = source.probe, None
            if source.mask is not None:
                mask = found[source.mask].astype(bool) == probe.keeps
            taken.append(Taken(probe, found[source.tensor], probe.axis, mask))
        return taken

    def held(self) -> Mapping[str, int]:
        """Return how many tensors are in each queue: what the batches so far gave."""
        return self._session.held() if self._queued else {}

    def empty(
        self, held: Mapping[str, int], wanted: Collection[Probe] | None = None
    ) -> list[Taken]:
        """Take what is in the queues of the other probes; another thread may run a batch meanwhile.

        Args:
            held: how many tensors are taken of each queue.
            wanted: the probes that are taken of these; None for all.

        Raises:
            RunError: what is in a queue is not as the queue says.
        """
        return [
            Taken(s.probe, self._session.dequeue(s.queue, held[s.queue]), -1)
            for s in _of(wanted, self._queued)
        ]

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
            source = _Source(probe, tensor, mask, "")
            if not all(map(reach.can_fetch, source.tensors)):
                source = _Source(probe, tensor, mask, f"measured/{len(found)}")
            found.append(source)
        return found

    def _rewrite(self, definition: bytes) -> tuple[bytes, list[Queue]]:
        from converter.session import Queue, op_definition

        taps = [
            Tap(s.queue, s.tensor, s.mask, s.probe.size if s.probe.axis == -1 else None)
            for s in self._queued
        ]
        subject = str(self._graph.path)
        changed, dtypes = instrument(definition, taps, op_definition, subject)
        self._queued = [source for source in self._queued if source.queue in dtypes]
        queues = []
        for source in self._queued:
            probe = source.probe
            keeps = None if source.mask is None else probe.keeps
            queues.append(Queue(source.queue, dtypes[source.queue], probe.axis, probe.size, keeps))
        return changed, queues


def _of(wanted: Collection[Probe] | None, sources: Sequence[_Source]) -> Sequence[_Source]:
    if wanted is None:
        return sources
    chosen = {id(probe) for probe in wanted}
    return [source for source in sources if id(source.probe) in chosen]
