"""Two models on the same inputs: the first is run once, and the second as often as one likes.

TensorFlow is not imported here, but by `converter.session` when the graphs run.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from converter.activations.data import read_inputs
from converter.closing import Closing
from converter.comparison import TOLERANCE, is_float, wide
from converter.errors import PlanError, UsageError
from converter.forward.feeds import Feeds, complete, given_values, parse_feeds
from converter.forward.find import Forward, find_forward
from converter.forward.losses import find_losses
from converter.forward.signature import Counterparts, counterparts
from converter.forward.variables import variables_of
from converter.graph.node import Tensor, tensor
from converter.graph.written import Graph
from converter.patterns import texts
from converter.variable import Array, Variable

if TYPE_CHECKING:
    from converter.plan import Plan
    from converter.resize.tensors import Tensors
    from converter.session import RunError, Session

# What would have to be drawn where nobody gives it.
_DATA = ("data", "ids", "lengths")


@dataclass(frozen=True, slots=True)
class Question:
    """What is to be run, and what counts as the same.

    Attributes:
        inputs: an `.npz` file with inputs by the names of placeholders, or an `.npy` file with the
            only one; None to draw them.
        feeds: `NAME=VALUE`, for any tensor.
        fetches: the tensors to compare; none for what looks like outputs.
        tolerance: the largest difference that passes, as a part of the scale.
        seed: of the inputs that are drawn.
    """

    inputs: Path | None = None
    feeds: tuple[str, ...] = ()
    fetches: tuple[str, ...] = ()
    tolerance: float = TOLERANCE
    seed: int = 0

    def __post_init__(self) -> None:
        if self.inputs is not None:
            object.__setattr__(self, "inputs", Path(self.inputs))
        object.__setattr__(self, "feeds", texts(self.feeds, "feeds"))
        object.__setattr__(self, "fetches", texts(self.fetches, "fetches"))


@dataclass(frozen=True)
class Side:
    """A graph, and where its values come from.

    Attributes:
        graph: in which it runs.
        keys: the names that the graph knows.
        variables: the values.
        plan: what gave them other names; None where they have those that the graph knows.
    """

    graph: Graph
    keys: Collection[str]
    variables: Mapping[str, Variable]
    plan: Plan | None = None

    def values(self, forward: Forward) -> dict[str, Variable]:
        """Return the variables that a graph needs, by the keys that it knows."""
        keys = dict.fromkeys(held.key for held in forward.variables.values())
        if self.plan is None:
            return {key: self.variables[key] for key in keys if key in self.variables}
        return {key: _renamed(self.plan, key, self.variables) for key in keys if key in self.keys}


class Reference(NamedTuple):
    """The first of two models, and what came of running it.

    Attributes:
        side: the model.
        question: what was to be run.
        forward: what was run.
        feeds: what it was fed.
        outputs: what came out.
        known: the losses that the graph has.
        losses: those of them that were run, and stand among what came out.
        noise: the random numbers that were drawn on the way.
        fed: the tensors that somebody gave values for.
        unsaid: why nothing is said of a loss that the graph has; empty where there is nothing to
            be said, or something is.
    """

    side: Side
    question: Question
    forward: Forward
    feeds: Feeds
    outputs: Mapping[Tensor, Array]
    known: tuple[Tensor, ...]
    losses: tuple[Tensor, ...]
    noise: tuple[Tensor, ...]
    fed: tuple[str, ...]
    unsaid: str = ""


class Pair(NamedTuple):
    """What two models give for one output: what is to be the same of it."""

    tensor: Tensor
    first: Array
    second: Array


class Ran(NamedTuple):
    """What a second model gave.

    Attributes:
        pairs: its outputs, beside those of the first.
        losses: its losses, by tensor.
    """

    pairs: tuple[Pair, ...]
    losses: Mapping[Tensor, float]


def first_run(side: Side, question: Question) -> Reference:
    """Run the first of two models.

    Its losses are run along with it, if all data that they need are given.

    Raises:
        InputError: a variable is missing, or a file is damaged.
        UsageError: TensorFlow is not installed; a feed, a fetch or an input does not fit.
        RunError: the graph does not run.
    """
    from converter.session import can_run

    given = given_by(side.graph, side.keys, question)
    fed = tuple(str(source) for source in given)
    runs = can_run()
    forward = find_forward(
        side.graph, side.keys, fetches=question.fetches, fed=fed, values=given, can_run=runs
    )
    names = [str(output.tensor) for output in forward.outputs]
    known = find_losses(side.graph, set(variables_of(side.graph, side.keys)))
    losses = [loss for loss in known if str(loss) not in names]
    unsaid = ""
    if losses:
        try:
            wanted = [*names, *map(str, losses)]
            both = find_forward(side.graph, side.keys, fetches=wanted, fed=fed, can_run=runs)
            missing = [i.name for i in both.inputs if i.kind in _DATA and i.tensor not in given]
            if missing:
                unsaid = (
                    f"that of drawn data says nothing; give {', '.join(missing[:4])} "
                    "(--inputs or --feed)"
                )
            else:
                forward = replace(both, notes=forward.notes)
        except UsageError as error:
            unsaid = str(error)
    measured = () if unsaid else tuple(losses)
    unsaid = unsaid and f"the loss {losses[0]} is not compared: {unsaid}"
    session, feeds, outputs = start(forward, side.values(forward), given, question.seed)
    session.close()
    noise = tuple(_noise(forward))
    return Reference(
        side, question, forward, feeds, outputs, tuple(known), measured, noise, fed, unsaid
    )


class Second(Closing):
    """A model that is fed what another one was, and gives what that gave.

    It is a context manager, which frees what it holds.

    Args:
        reference: the other one.
        side: the model.
        tensors: what becomes of tensors as widths changed; None where none did.

    Attributes:
        forward: what is run.
        notes: what is to be known.

    Raises:
        InputError: a variable is missing, or a file is damaged.
        UsageError: TensorFlow cannot import the graph; it has none of the outputs.
        PlanError: the graph needs a variable that is gone, or has another shape.
    """

    def __init__(self, reference: Reference, side: Side, tensors: Tensors | None) -> None:
        from converter.session import Session, can_run, dtypes_of

        self._reference = reference
        names = [output.tensor for output in reference.forward.outputs]
        self.notes: list[str] = []
        self._matched = Counterparts({}, {})
        if side.graph is not reference.side.graph:
            self._matched = counterparts(reference.side.graph, side.graph)
        self._names = [
            (name, other)
            for name in names
            for other in self._others(name)
            if other.node in side.graph.nodes
        ]
        known = {name for name, _ in self._names}
        missing = [name for name in names if name not in known]
        if missing and reference.question.fetches:
            side.graph.expect(str(missing[0]))
        has_none = "the signature of the second has no such output" if self._matched.outputs else ""
        self.notes += [f"{name}: {has_none or 'it is not in the second graph'}" for name in missing]
        if not known - set(reference.losses):
            raise UsageError(
                f"{side.graph.path}: it has none of the outputs of {reference.side.graph.path}; "
                "name what both have (--fetch NAME), if they are one model"
            )
        self.forward = find_forward(
            side.graph,
            side.keys,
            fetches=[str(other) for other in dict.fromkeys(other for _, other in self._names)],
            fed=[str(s) for name in reference.fed for s in self._inputs(tensor(name))],
            values={s: v for name, v in reference.feeds.values.items() for s in self._inputs(name)},
            can_run=can_run(),
        )
        fed = dtypes_of(self.forward, self._fed(tensors))
        self._session = Session(self.forward, side.values(self.forward), fed)

    def close(self) -> None:
        self._session.close()

    def give(self, variables: Mapping[str, Variable]) -> None:
        """Give the variables of the graph other values of the same shapes, by their keys."""
        for node in self._session.variables:
            held = self.forward.variables[node]
            if held.key in variables:
                self._session.assign(node, held.read(variables[held.key]))

    def run(self, tensors: Tensors | None) -> Ran:
        """Run it.

        Args:
            tensors: what becomes of tensors as widths changed; None where none did.

        Raises:
            RunError: the graph does not run.
        """
        reference = self._reference
        found = self._session.run(self._fed(tensors))
        pairs, losses = [], {}
        for name, other in self._names:
            if name in reference.losses:
                losses[name] = number_of(found[other])
                continue
            pair = reference.outputs[name], found[other]
            pairs.append(Pair(name, *(tensors.common(*name, *pair) if tensors else pair)))
        return Ran(tuple(pairs), losses)

    def _others(self, name: Tensor) -> tuple[Tensor, ...]:
        """Return what of the second graph an output of the first is."""
        found = self._matched.outputs.get(name, (name,))
        # Named by somebody, it is meant in both, whatever the signatures have.
        return found or ((name,) if self._reference.question.fetches else ())

    def _inputs(self, name: Tensor) -> tuple[Tensor, ...]:
        """Return what of the second graph a tensor of the first is, as an input."""
        return self._matched.inputs.get(name) or (name,)

    def _fed(self, tensors: Tensors | None) -> dict[Tensor, Array]:
        reference = self._reference
        values = _same(self.forward, reference.feeds, tensors, self._inputs)
        if tensors is not None:
            # Of another size, other numbers would be drawn from the same seed.
            noise = [s for s in reference.noise if s.node in self.forward.graph.nodes]
            values |= {s: tensors.fed(*s, reference.outputs[s]) for s in noise}
        return values


def _renamed(plan: Plan, key: str, variables: Mapping[str, Variable]) -> Variable:
    """Return what a variable of the source has become.

    Raises:
        PlanError: it is gone, or its shape is another.
    """
    result, roles = plan.result, plan.source.roles()
    found = [v for v in result.values() if key in v.sources]
    if not found and key in result:
        # Other values have taken its place: its moving average, for instance.
        found = [result[key]]
    if not found:
        averages = {name for name, role in roles.items() if role.of == key}
        averages = {name for name in averages if roles[name].kind == "average"}
        kinds = result.roles()
        found = [v for v in result.values() if averages & set(v.sources)]
        found = [v for v in found if kinds[v.name].kind != "average"]
    shape = plan.shape_in_graph(key)
    found.sort(key=lambda v: (v.shape != shape, v.name != key))
    if not found or found[0].name not in variables:
        raise PlanError(
            f"{key}: the graph of {plan.source.path} needs it to run, and the output does not "
            "have it; keep it, or leave out --prove"
        )
    if found[0].shape != shape:
        raise PlanError(
            f"{key}: it is {list(shape)} in the graph of {plan.source.path}, "
            f"which cannot run the output, where {found[0].name} is {list(found[0].shape)}; "
            "leave out --prove"
        )
    return variables[found[0].name]


def number_of(loss: Array) -> float:
    """Return the value of a loss."""
    return float(wide(loss).mean())


def _noise(forward: Forward) -> list[Tensor]:
    """Return the random numbers that the outputs depend on, as far as they can be looked at."""
    return [Tensor(name) for name in forward.random if name not in forward.graph.frames]


def given_by(graph: Graph, keys: Collection[str], question: Question) -> dict[Tensor, Array]:
    """Return the values that a question gives, by tensor.

    Args:
        graph: the graph.
        keys: the names of the checkpoint's variables.
        question: what is run.

    Raises:
        UsageError: a tensor does not exist, or has another dtype or shape; the file of inputs is
            missing, or does not tell which input it is for.
        InputError: the file of inputs is damaged, or has NaN in it.
    """
    fed = given_values(graph, parse_feeds(question.feeds), "--feed")
    if question.inputs is None:
        return fed

    def inputs() -> list[str]:
        names = list(map(str, fed))
        forward = find_forward(graph, keys, fetches=question.fetches, fed=names, values=fed)
        return [found.name for found in forward.open_inputs(fed)]

    arrays = read_inputs(question.inputs, inputs)
    return given_values(graph, arrays, str(question.inputs)) | fed


def start(
    forward: Forward, variables: Mapping[str, Variable], given: Mapping[Tensor, Array], seed: int
) -> tuple[Session, Feeds, dict[Tensor, Array]]:
    """Run with what is given, and with drawn inputs of the first size with which it runs.

    Returns:
        The session, which is the caller's to close; what it was fed, and the outputs.

    Raises:
        InputError: a variable is missing, or a file is damaged.
        UsageError: TensorFlow is not installed; nothing can be drawn for an input.
        RunError: the graph does not run.
    """
    from converter.session import RunError, Session, dtypes_of

    tries = complete(forward, given, seed)
    first = next(tries)
    session = Session(forward, variables, dtypes_of(forward, first.values))
    failed: RunError | None = None
    empty: tuple[Feeds, dict[Tensor, Array]] | None = None
    try:
        for feeds in chain((first,), tries):
            try:
                outputs = session.run(feeds.values, _noise(forward))
            except RunError as error:
                # What was tried first suits best, and so does what is said of it.
                failed = failed or _explained(error, forward, feeds)
                continue
            if not feeds.drawn or _say_something(outputs):
                return session, feeds, outputs
            # Of pictures that are too small nothing may be left.
            empty = empty or (feeds, outputs)
    except BaseException:
        session.close()
        raise
    if empty is None:
        session.close()
        assert failed is not None
        raise failed
    return session, *empty


def _say_something(outputs: Mapping[Tensor, Array]) -> bool:
    """Whether outputs have an entry that is neither zero nor NaN, choices left aside."""
    floats = [output for output in outputs.values() if is_float(output)]
    return any((np.abs(np.nan_to_num(wide(o))) > 0).any() for o in floats) or not floats


def _explained(error: RunError, forward: Forward, feeds: Feeds) -> RunError:
    drawn = ", ".join(found.name for found in forward.inputs if found.tensor in feeds.drawn)
    if not drawn:
        return error
    return type(error)(
        f"{error}; drawn were {drawn}: give inputs (--inputs x.npz), or choose what to compute "
        "(--fetch NAME)"
    )


def _same(
    forward: Forward,
    feeds: Feeds,
    tensors: Tensors | None,
    inputs: Callable[[Tensor], Iterable[Tensor]],
) -> dict[Tensor, Array]:
    """Return what the second graph is fed: the same, and what it alone has decided."""
    values = {}
    for source, value in feeds.values.items():
        for target in inputs(source):
            if target.node in forward.graph.nodes:
                values[target] = tensors.fed(*source, value) if tensors is not None else value
    missing = [
        found.name
        for found in forward.inputs
        if found.tensor not in values and found.value is None and found.kind != "default"
    ]
    if missing:
        raise UsageError(
            f"{forward.graph.path}: it needs {missing[0]}, which the first graph does not have; "
            "feed it (--feed)"
        )
    return dict(next(complete(forward, values, 0)).values)
