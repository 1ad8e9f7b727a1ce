"""A model that is run on the same data again and again, while its variables change.

Strategies before may have renamed what the graph calls otherwise: it is run under the names of the
graph, and what comes of it is called as they left it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from converter.activations.data import Opened
from converter.activations.measure import Pool, gather
from converter.activations.moments import Accumulator, Moments
from converter.activations.parts import joined
from converter.activations.probes import Probe
from converter.activations.run import Run
from converter.checkpoint import Checkpoint
from converter.closing import Closing
from converter.errors import PlanError
from converter.structure.called import called_in_graph, opened
from converter.structure.layers.cuts import Cut
from converter.variable import Variable


class Named(Mapping[str, Variable]):
    """A checkpoint with the names that the graph has for its variables.

    Attributes:
        checkpoint: under these names.

    Args:
        checkpoint: what strategies made.

    Raises:
        PlanError: a variable has another shape than in the graph, or is made of several.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        source = opened(checkpoint)
        self._given = checkpoint
        self._now: dict[str, str] = {}
        for name, olds in called_in_graph(checkpoint).items():
            variable = checkpoint[name]
            if len(olds) > 1:
                raise _elsewhere(f"{name}: it is made of {len(olds)} variables")
            (old,) = olds
            if old in source and source[old].shape != variable.shape:
                raise _elsewhere(
                    f"{name}: it is {list(variable.shape)}, and {list(source[old].shape)}"
                )
            if self._now.setdefault(old, name) != name:
                raise _elsewhere(f"{self._now[old]} and {name} are made of {old}")
        self.checkpoint = checkpoint
        if any(old != name for old, name in self._now.items()):
            pairs = self._now.items()
            self.checkpoint = source.derive(checkpoint[name].rename(old) for old, name in pairs)

    def __getitem__(self, name: str) -> Variable:
        return self.checkpoint[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.checkpoint)

    def __len__(self) -> int:
        return len(self.checkpoint)

    def called(self, name: str) -> str:
        """Return what a variable of the graph is called now."""
        return self._now.get(name, name)

    def renamed(self, variables: Iterable[Variable]) -> Iterator[Variable]:
        """Give variables under the names that they have now; what did not change is what it was."""
        for variable in variables:
            now = self.called(variable.name)
            if variable is self.checkpoint.get(variable.name):
                yield self._given[now]
            else:
                yield variable if now == variable.name else variable.rename(now)


def _elsewhere(what: str) -> PlanError:
    return PlanError(
        f"{what} in the graph, which is to be run on data; write it with its graph first (--to "
        "tf), and do this to the output in a second command"
    )


class Running(Closing):
    """A model in one session, ready to be run on all data.

    It is a context manager, which frees what it holds.

    Args:
        checkpoint: with a graph, under its names.
        data: what it is run on.
        probes: all that will be measured.

    Attributes:
        passes: how often it was run on all data.

    Raises:
        InputError: a variable is missing, or a file is damaged.
        UsageError: TensorFlow is not installed; an input is missing or does not fit.
    """

    def __init__(self, checkpoint: Checkpoint, data: Opened, probes: Sequence[Probe]) -> None:
        self._data = data
        first = next(data.batches())
        self._run = Run(checkpoint, first, probes, data.question)
        self.passes = 0

    @property
    def notes(self) -> tuple[str, ...]:
        """What is to be said of the data and of what is run, one line each."""
        return (*self._data.notes, *self._run.forward.notes)

    def is_empty(self, probes: Sequence[Probe]) -> bool:
        """Whether all rows of these lie behind the ends of sequences, where nothing was measured.

        Else nothing of them is run.
        """
        reached = {id(probe) for probe in self._run.reached}
        return any(probe.mask is not None and id(probe) in reached for probe in probes)

    def close(self) -> None:
        """Free what it holds."""
        self._run.close()

    def assign(self, variables: Mapping[str, Variable]) -> None:
        """Give variables other values."""
        self._run.assign(variables)

    def measure(self, groups: Sequence[Sequence[Probe]]) -> list[Moments]:
        """Run all data, and return the moments of each group of probes.

        Their count is 0 where nothing of it was run, or of parts of the same units not all equally
        often.

        Raises:
            RunError: the graph does not run.
            ConverterError: an activation is NaN or infinite.
        """
        pools = [_pools(probes) for probes in groups]
        # Noise that is another one would be taken for what a layer gives.
        self._run.draw_again()
        gather(
            self._run, [pool for parts in pools for pool in parts.values()], self._data.batches()
        )
        self.passes += 1
        return [_moments(parts) for parts in pools]


def _pools(probes: Sequence[Probe]) -> dict[Cut | None, Pool]:
    """Return what a group of probes is added up in, by the part of the units that it is."""
    found: dict[Cut | None, Pool] = {}
    for probe in probes:
        moments = Moments.of(probe.size)
        pool = found.setdefault(probe.cut, Pool(probe.for_, Accumulator(moments)))
        pool.probes.append(probe)
    return found


def _moments(parts: Mapping[Cut | None, Pool]) -> Moments:
    cuts = {cut: pool.moments for cut, pool in parts.items() if cut is not None}
    if not cuts:
        (pool,) = parts.values()
        return pool.moments
    found = joined(cuts)
    return Moments.of(next(iter(cuts)).total) if isinstance(found, str) else found
