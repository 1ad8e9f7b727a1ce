"""The permutation test: whether the axes that a structure says share a width do.

The units of a width are put in another order everywhere where the structure says that they are,
and the graph runs: the outputs must stay. That a wrong structure would have been seen is tested
too: with one axis left as it was, the outputs must move.

TensorFlow is not imported here, but by `converter.session` when the graph runs.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from converter.checkpoint import Checkpoint
from converter.forward.feeds import Feeds
from converter.forward.find import Forward
from converter.graph.node import Output, Tensor
from converter.model import (
    Model,
    Outputs,
    Values,
    difference,
    is_float,
    jittered,
    noisy,
    rounded,
)
from converter.running import Question
from converter.structure.axes.axis import Axis, Width
from converter.structure.axes.entries import entries
from converter.structure.structure import Structure
from converter.structure.tensors.atoms import Clash
from converter.variable import Array

if TYPE_CHECKING:
    from converter.session import RunError

Result = Literal["tested", "refuted", "bound", "unseen"]

# Of the scale of an output: what an axis that stands in a wrong order moves at least.
SEEN = 1e-4
# How much more than the rounding of the values the rounding of the sums may be.
_ROUNDING = 10
# With a tolerance above this part of the scale nothing could be told.
_BLURRED = 0.1
# Noise with which an axis is looked for that was not seen, as parts of the largest value.
_STRONG = (0.5, 10.0, 1000.0)
_MAX_JOINT = 1000


class Member(NamedTuple):
    """One axis that has a width.

    Attributes:
        name: the variable, or the tensor that is fed.
        axis: its number.
        is_fed: whether it is a tensor.
    """

    name: str
    axis: int
    is_fed: bool = False

    def __str__(self) -> str:
        return f"{self.name}, axis {self.axis}"


@dataclass(frozen=True, slots=True)
class Trial:
    """What came of permuting one width.

    Attributes:
        name: the width.
        result: `tested`: the outputs stayed; `refuted`: they moved, although the class of the width
            says that they stay; `bound`: they moved, as the class says; `unseen`: they would not
            move if the structure were wrong either.
        error: how far the outputs moved, as a part of their scale; None where nothing was run.
        control: how far they move when one axis is left out, where that is least, of those
            where it is seen; None where it is of none.
        moved: inputs and outputs that have the width, and were permuted too.
        unread: the axes of variables that the outputs do not need.
        invariant: the axes without which the outputs stay as well, so that they are not tested.
        but_for: the axes with which the outputs move, and without which they stay.
        together: the widths that are one with this, as the outputs stay when they are permuted
            together.
        why: what is to be said of the result; nothing where it was tested.
    """

    name: str
    result: Result
    error: float | None = None
    control: float | None = None
    moved: tuple[str, ...] = ()
    unread: tuple[Member, ...] = ()
    invariant: tuple[Member, ...] = ()
    but_for: tuple[Member, ...] = ()
    together: tuple[str, ...] = ()
    why: str = ""


@dataclass(frozen=True)
class PermutationTest:
    """What the test says of every width.

    Attributes:
        forward: what was run.
        feeds: what it was fed.
        trials: by the name of the width.
        tolerance: what passed, as a part of the scale.
        notes: what else is to be known.
    """

    forward: Forward
    feeds: Feeds
    trials: Mapping[str, Trial]
    tolerance: float
    notes: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Whether no width is refuted."""
        return all(trial.result != "refuted" for trial in self.trials.values())


def permute(
    checkpoint: Checkpoint,
    structure: Structure,
    question: Question | None = None,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> PermutationTest:
    """Test the widths of a structure on the graph of its checkpoint.

    Args:
        checkpoint: with its graph.
        structure: of the checkpoint.
        question: what is run, and on what.
        progress: is told how many runs are done, and how many there are about.

    Raises:
        InputError: there is no graph, a variable is missing, or a file is damaged.
        UsageError: TensorFlow is not installed; a feed, a fetch or an input does not fit.
        RunError: the graph does not run, or its outputs tell nothing.
    """
    question = question or Question()
    with Model(checkpoint, question) as model:
        return _Tester(model, structure, question.tolerance, progress).test()


class _Tester:
    """Runs one model with its widths permuted."""

    def __init__(
        self,
        model: Model,
        structure: Structure,
        tolerance: float,
        progress: Callable[[int, int], None] | None,
    ) -> None:
        self._model = model
        self._precision = model.precision()
        self._structure = structure
        self._sizes = structure.sizes
        self._progress = progress
        self._runs = 0
        self._positive = {
            name
            for name in model.values
            if any("variance" in use for uses in structure.uses[name] for use in uses.values())
        }
        self._values: Values = jittered(model.values, positive=self._positive)
        self._axes = {
            source: axes_of(structure, source)
            for source in (*model.feeds.values, *(o.tensor for o in model.forward.outputs))
        }
        self._members = {name: list(self._find_members(name)) for name in structure.widths}
        # Averages are read in the place of their variables.
        read = {_owner(structure, name) for name in model.values}
        self._unread = [n for n in structure.axes if n not in structure.follows and n not in read]
        self._total = 2 + sum(1 + len(members) for members in self._members.values())
        if progress is not None:
            progress(0, self._total)
        self._outputs = self._run(self._values)
        error = self._rounding(self._values, self._outputs)
        if not _ROUNDING * error < _BLURRED:
            raise _telling_nothing(model.forward, error)
        self._tolerance = max(tolerance, _ROUNDING * error)

    def test(self) -> PermutationTest:
        """Test every width, and those that fail in pairs."""
        trials = {name: self._try(width) for name, width in self._structure.widths.items()}
        notes = list(self._model.forward.notes)
        failed = [trial.name for trial in trials.values() if trial.result in ("refuted", "bound")]
        for names in self._joined(failed):
            for name in names:
                others = tuple(other for other in names if other != name)
                trials[name] = replace(trials[name], together=others)
        return PermutationTest(
            self._model.forward, self._model.feeds, trials, self._tolerance, tuple(notes)
        )

    def _rounding(self, values: Values, outputs: Outputs) -> float:
        """Return how far rounding alone moves the outputs; NaN if they are nowhere finite."""
        return difference(outputs, self._run(rounded(values, self._precision)))

    def _run(self, values: Values, feeds: Mapping[Tensor, Array] | None = None) -> Outputs:
        self._runs += 1
        if self._progress is not None:
            self._progress(self._runs, max(self._total, self._runs))
        return self._model.run(values, feeds)

    def _find_members(self, width: str) -> Iterator[Member]:
        for name in self._model.values:
            for number, axis in enumerate(self._structure.axes[name]):
                if width in axis.widths():
                    yield Member(name, number)
        for source, value in self._model.feeds.values.items():
            for number, axis in enumerate(self._axes[source]):
                if width in axis.widths() and axis.size(self._sizes) == value.shape[number]:
                    yield Member(str(source), number, is_fed=True)

    def _try(self, width: Width) -> Trial:
        members = self._members[width.name]
        unread = tuple(
            Member(name, number)
            for name in self._unread
            for number, axis in enumerate(self._structure.axes[name])
            if width.name in axis.widths()
        )
        if not members or width.size < 2:
            why = "one unit has no other order" if members else "the outputs do not need it"
            return Trial(width.name, "unseen", unread=unread, why=why)
        orders = {width.name: cycle(width.name, width.size)}
        error = self._error(orders, self._values, self._outputs)
        moved = tuple(self._moved(width.name))
        trial = Trial(width.name, "unseen", error, None, moved, unread)
        if error > self._tolerance:
            trial = self._failed(trial, error)
            if trial.result == "refuted" and len(members) > 1:
                controls = self._controls(orders, members, self._values, self._outputs)
                but_for = tuple(m for m, found in controls.items() if found <= self._tolerance)
                trial = replace(trial, but_for=but_for)
            return trial
        return self._controlled(trial, orders, members)

    def _controlled(
        self, trial: Trial, orders: Mapping[str, Array], members: Sequence[Member]
    ) -> Trial:
        """Tell of a width that passes whether the test would have seen it if it should not."""
        controls = self._controls(orders, members, self._values, self._outputs)
        seen = {member: found for member, found in controls.items() if found > self._seen}
        for part in _STRONG:
            blind = [member for member in members if member not in seen]
            names = {m.name for m in blind if not m.is_fed and is_float(self._values[m.name])}
            if not names:
                break
            values = {**self._values, **{name: self._noisy(name, part) for name in names}}
            outputs = self._run(values)
            limit = max(self._seen, 10 * _ROUNDING * self._rounding(values, outputs))
            if not limit < _BLURRED:
                break
            error = self._error(orders, values, outputs)
            if error > limit:
                return self._failed(trial, error)
            controls = self._controls(orders, blind, values, outputs)
            seen |= {member: found for member, found in controls.items() if found > limit}
        invariant = tuple(member for member in members if member not in seen)
        if not seen:
            why = "the outputs stay in a wrong order, too"
            return replace(trial, invariant=invariant, why=why)
        control = min(seen.values())
        return replace(trial, result="tested", control=control, invariant=invariant)

    def _noisy(self, name: str, part: float) -> Array:
        return noisy(name, self._values[name], part, positive=name in self._positive)

    def _failed(self, trial: Trial, error: float) -> Trial:
        why = f"the outputs move by {error:.2g} of their scale"
        result: Result = "refuted"
        if self._structure.widths[trial.name].symmetry in ("bound", "opaque"):
            result = "bound"
        elif random := self._model.forward.random:
            result = "unseen"
            why += f", but {random[0]} draws other random numbers for each unit"
        return replace(trial, result=result, error=error, why=why)

    @property
    def _seen(self) -> float:
        return max(SEEN, 10 * self._tolerance)

    def _controls(
        self,
        orders: Mapping[str, Array],
        members: Sequence[Member],
        values: Values,
        outputs: Outputs,
    ) -> dict[Member, float]:
        """Return how far the outputs move with each axis left as it was."""
        return {m: self._error(orders, values, outputs, left_out={m}) for m in members}

    def _error(
        self,
        orders: Mapping[str, Array],
        values: Values,
        outputs: Outputs,
        left_out: Collection[Member] = (),
    ) -> float:
        """Return how far the outputs move when widths are permuted everywhere."""
        changed = {**values}
        feeds = dict(self._model.feeds.values)
        wanted = dict(outputs)
        members = [m for name in orders for m in self._members[name] if m not in left_out]
        axes: dict[tuple[str, bool], set[int]] = {}
        for member in members:
            axes.setdefault((member.name, member.is_fed), set()).add(member.axis)
        by_name = {str(source): source for source in feeds}
        for (name, is_fed), numbers in axes.items():
            if is_fed:
                source = by_name[name]
                feeds[source] = self._ordered(feeds[source], self._axes[source], orders, numbers)
            else:
                own = self._structure.axes[name]
                changed[name] = self._ordered(values[name], own, orders, numbers)
        for source, value in outputs.items():
            wanted[source] = self._ordered(value, self._axes[source], orders)
        return difference(wanted, self._run(changed, feeds))

    def _ordered(
        self,
        values: Array,
        axes: Sequence[Axis],
        orders: Mapping[str, Array],
        numbers: Collection[int] | None = None,
    ) -> Array:
        """Return values with the units of widths in other orders along some axes."""
        for number, axis in enumerate(axes):
            if numbers is not None and number not in numbers:
                continue
            if orders.keys().isdisjoint(axis.widths()) or number >= values.ndim:
                continue
            if axis.size(self._sizes) == values.shape[number]:
                values = np.take(values, entries(axis, orders, self._sizes), axis=number)
        return values

    def _moved(self, width: str) -> Iterator[str]:
        for member in self._members[width]:
            if member.is_fed:
                yield member.name
        for source, value in self._outputs.items():
            axes = zip(self._axes[source], value.shape, strict=False)
            if any(width in a.widths() and a.size(self._sizes) == n for a, n in axes):
                yield str(source)

    def _joined(self, failed: Sequence[str]) -> Iterator[tuple[str, ...]]:
        """Yield the widths that are one, of those that fail by themselves."""
        by_size: dict[int, list[str]] = {}
        for name in failed:
            by_size.setdefault(self._sizes[name], []).append(name)
        tests = 0
        for size, names in by_size.items():
            order = cycle(names[0], size)
            # The smallest groups come first: together, two of them stay as well.
            for count in range(2, len(names) + 1):
                for group in combinations(list(names), count):
                    if not set(names).issuperset(group):
                        continue
                    if tests == _MAX_JOINT:
                        return
                    tests += 1
                    error = self._error(dict.fromkeys(group, order), self._values, self._outputs)
                    if error <= self._tolerance:
                        names = [name for name in names if name not in group]
                        yield group


def _telling_nothing(forward: Forward, error: float) -> RunError:
    from converter.session import RunError

    said = "they are not finite" if np.isnan(error) else f"they move by {error:.2g} of their scale"
    return RunError(
        f"{forward.graph.path}: its outputs tell nothing about widths: {said} when the values are "
        "rounded; give inputs (--inputs x.npz), or choose what to compute (--fetch NAME)"
    )


def cycle(name: str, size: int) -> Array:
    """Return an order in which no unit stays: a single cycle, drawn by the name of the width."""
    rng = np.random.default_rng(zlib.crc32(name.encode("utf-8", "surrogateescape")))
    drawn = rng.permutation(size)
    order = np.empty(size, np.int64)
    order[drawn] = np.roll(drawn, -1)
    return order


def axes_of(structure: Structure, source: Tensor) -> tuple[Axis, ...]:
    """Return the axes of a tensor of the graph; none where they are not known."""
    if structure.findings is None:
        return ()
    analysis, write = structure.graph.findings.analysis, structure.graph.write
    node = analysis.graph.by_name.get(source.node)
    if node is None:
        return ()
    try:
        return tuple(map(write, analysis.tensor(Output(node, source.port)).axes or ()))
    except Clash:
        return ()


def _owner(structure: Structure, name: str) -> str:
    """Return the variable that a slot or an average belongs to; any other is its own."""
    role = structure.follows.get(name)
    return name if role is None or role.of is None else role.of
