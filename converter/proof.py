"""The proof that two checkpoints compute the same: both run on the same inputs, and are compared.

TensorFlow is not imported here, but by `converter.session` when the graphs run.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from converter.checkpoint import Checkpoint
from converter.errors import InputError, PlanError, UsageError
from converter.forward.feeds import Feeds, complete, given_values, parse_feed, read_inputs
from converter.forward.find import Forward, find_forward
from converter.graph.node import Tensor, tensor
from converter.graph.written import Graph, graph_of, read_graph
from converter.variable import Array, Variable

if TYPE_CHECKING:
    from converter.plan import Plan
    from converter.resize.exactness import Resizes
    from converter.resize.tensors import Tensors
    from converter.session import RunError, Session

_FEW = 4

TOLERANCE = 1e-5
"""Of the scale of an output: what float32 loses when it adds in another order."""


@dataclass(frozen=True, slots=True)
class Question:
    """What is to be run, and what counts as the same.

    Attributes:
        inputs: an `.npz` file with inputs by the names of placeholders; None to draw them.
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


@dataclass(frozen=True, slots=True)
class Compared:
    """One output of two models.

    Attributes:
        name: the tensor.
        dtype: numpy's name of its dtype.
        shape: of the first.
        largest: the largest absolute difference; infinite where only one is NaN, or infinite. Of
            what is no float, the number of elements that differ.
        scale: the largest finite absolute value of the first. Of what is no float, the number of
            elements.
        nans: how many values are NaN, in the first and in the second.
        agreement: the share of positions whose largest entry along the last axis is the same;
            None where there is no such axis.
        passed: whether it is within the tolerance; None where it cannot be compared.
        note: what else is to be said.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    largest: float
    scale: float
    nans: tuple[int, int]
    agreement: float | None
    passed: bool | None
    note: str = ""

    @property
    def is_float(self) -> bool:
        """Whether it is compared by differences, and not by counting."""
        return "float" in self.dtype or "complex" in self.dtype

    @property
    def error(self) -> float:
        """The largest difference as a part of the scale."""
        if self.largest == 0:
            return 0.0
        return self.largest / self.scale if self.scale else float("inf")


@dataclass(frozen=True)
class Proof:
    """What a comparison of two models says.

    Attributes:
        forward: what was run of the first.
        feeds: what both were fed.
        outputs: one comparison for each output.
        tolerance: what passed, as a part of the scale.
        notes: what else is to be known.
    """

    forward: Forward
    feeds: Feeds
    outputs: tuple[Compared, ...]
    tolerance: float
    notes: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Whether something was compared, and all of it is within the tolerance."""
        results = {found.passed for found in self.outputs}
        return True in results and False not in results


def compare(name: str, a: Array, b: Array, tolerance: float = TOLERANCE) -> Compared:
    """Compare what two models give for one output.

    NaN is equal to NaN and an infinity to itself, but an output of nothing else fails: it would
    prove nothing.
    """
    dtype, shape = str(a.dtype), a.shape
    if a.shape != b.shape:
        note = f"{list(a.shape)} and {list(b.shape)}"
        return Compared(name, dtype, shape, np.inf, 0.0, (0, 0), None, None, note)
    if a.size == 0:
        return Compared(name, dtype, shape, 0.0, 0.0, (0, 0), None, None, "empty")
    if not _is_float(a) or not _is_float(b):
        differing = int(np.count_nonzero(a != b))
        passed = differing <= tolerance * a.size
        return Compared(name, dtype, shape, float(differing), float(a.size), (0, 0), None, passed)
    x, y = _wide(a), _wide(b)
    nans = int(np.isnan(x).sum()), int(np.isnan(y).sum())
    finite = np.isfinite(x)
    scale = float(np.abs(x[finite]).max(initial=0))
    largest = _largest(x, y)
    passed = bool(largest <= tolerance * scale) and bool(finite.any())
    note = "" if finite.any() else "no finite value"
    if finite.all() and scale == 0:
        note = "zeros only"
    return Compared(name, dtype, shape, largest, scale, nans, _agreement(x, y), passed, note)


def _is_float(values: Array) -> bool:
    # By name: bfloat16 is no float to numpy.
    return "float" in values.dtype.name or "complex" in values.dtype.name


def _wide(values: Array) -> Array:
    return values.astype(np.complex128 if values.dtype.kind == "c" else np.float64)


def _largest(x: Array, y: Array) -> float:
    with np.errstate(invalid="ignore", over="ignore"):
        # Of scalars numpy gives a number, which has no entries to be set.
        differences = np.asarray(np.abs(x - y))
    differences[(x == y) | (np.isnan(x) & np.isnan(y))] = 0
    differences[np.isnan(differences)] = np.inf
    return float(differences.max())


def _agreement(x: Array, y: Array) -> float | None:
    if x.ndim < 2 or x.shape[-1] < 2 or x.dtype.kind == "c":
        return None
    return float((x.argmax(-1) == y.argmax(-1)).mean())


def prove(a: Checkpoint, b: Checkpoint, question: Question | None = None) -> Proof:
    """Run two checkpoints on the same inputs and compare their outputs.

    Each runs in its own graph; one that has none runs in the other's.

    Raises:
        InputError: neither has a graph, a variable is missing, or a file is damaged.
        UsageError: TensorFlow is not installed; a feed, a fetch or an input does not fit.
        RunError: the graph does not run.
    """
    first, second = read_graph(a), read_graph(b)
    if first is None and second is None:
        raise InputError(
            f"{a.path}: neither it nor {b.path} has a graph (.meta, .pb) in which it could be run"
        )
    from converter.resize.between import between
    from converter.resize.tensors import Tensors

    question = question or Question()
    one, other = _Side(first or _given(second), a, a), _Side(second or _given(first), b, b)
    tries = between(a, b) if first is not None else ()
    if not tries:
        return _prove(one, other, question)
    if second is None:
        other = replace(other, graph=_graph_at(a, tries[0]))
    proofs = (_prove(one, other, question, Tensors([resizes])) for resizes in tries)
    proof = next(proofs)
    # Of copies that are fed, too, the first proof knows nothing.
    later = [] if proof.passed else [found for found in proofs if found.passed]
    proof = later[0] if later else proof
    sizes = ", ".join(f"{w.name} {w.old} -> {w.new}" for w in tries[0].widths[:_FEW])
    more = f" and {len(tries[0].widths) - _FEW} more" if len(tries[0].widths) > _FEW else ""
    what = "copies of the old ones" if later else "zero where they are fed"
    new = f", and new ones are {what}" if any(w.new > w.old for w in tries[0].widths) else ""
    note = f"other sizes: {sizes}{more}; the first units are compared{new}"
    return replace(proof, notes=(note, *proof.notes))


def prove_plan(plan: Plan, output: Checkpoint | None, question: Question | None = None) -> Proof:
    """Run the source of a plan and what becomes of it on the same inputs.

    An output with a graph of its own runs in that; another in the source's, at the new sizes
    where widths changed, if every variable that the graph needs is in it under some name.

    Args:
        plan: what is written.
        output: what was written; None to take the values from the plan, before anything is.
        question: what is to be run.

    Raises:
        PlanError: the output cannot run in the source's graph.
        InputError: the source has no graph, or a file is damaged.
        UsageError: TensorFlow is not installed; a feed, a fetch or an input does not fit.
        RunError: the graph does not run.
    """
    source = plan.source
    graph = read_graph(source)
    if graph is None:
        raise InputError(
            f"{source.path}: it has no graph (.meta, .pb) in which it could be run; leave out "
            "--prove"
        )
    own = read_graph(output) if output is not None else None
    question = question or Question()
    tensors = None
    if plan.resized:
        from converter.resize.tensors import Tensors

        tensors = Tensors(plan.resized)
    first = _Side(graph, source, source)
    if own is not None and output is not None:
        return _prove(first, _Side(own, output, output), question, tensors)
    held = plan.result if output is None else output
    resized = _resized_graph(plan)
    runs_in = graph if resized is None else graph_of(source, resized)
    return _prove(first, _Side(runs_in, source, held, plan), question, tensors)


def _graph_at(source: Checkpoint, resizes: Resizes) -> Graph:
    """Return the graph of a checkpoint at other sizes."""
    from converter.regraph import regraph

    assert resizes.structure is not None
    return graph_of(source, regraph(source, resizes.structure, resizes.sizes).meta)


def _resized_graph(plan: Plan) -> bytes | None:
    try:
        return plan.resized_graph()
    except PlanError as error:
        raise PlanError(
            f"{plan.source.path}: its graph cannot be given the new sizes, so nothing could run "
            f"the output ({error}); leave out --prove"
        ) from None


def _given(graph: Graph | None) -> Graph:
    assert graph is not None
    return graph


@dataclass(frozen=True)
class _Side:
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


def _prove(a: _Side, b: _Side, question: Question, tensors: Tensors | None = None) -> Proof:
    from converter.session import can_run

    given = given_by(a.graph, question)
    fed = [str(source) for source in given]
    runs = can_run()
    forward = find_forward(a.graph, a.keys, fetches=question.fetches, fed=fed, can_run=runs)
    feeds, outputs = _first_run(forward, a.values(forward), given, question.seed)
    notes = list(forward.notes)
    names = [str(output.tensor) for output in forward.outputs]
    if b.graph is not a.graph:
        missing = [name for name in names if tensor(name).node not in b.graph.nodes]
        if missing and question.fetches:
            b.graph.expect(missing[0])
        notes += [f"{name} is not in the second graph" for name in missing]
        names = [name for name in names if name not in missing]
    if not names:
        raise UsageError(
            f"{b.graph.path}: it has none of the outputs of {a.graph.path}; name what both have "
            "(--fetch NAME), if they are one model"
        )
    others = find_forward(b.graph, b.keys, fetches=names, fed=fed, can_run=runs)
    notes += [note for note in others.notes if note not in notes]
    values = _same(others, feeds, tensors)
    if tensors is not None:
        # Of another size, other numbers would be drawn from the same seed.
        noise = {s: outputs[s] for s in _noise(forward) if s.node in b.graph.nodes}
        values |= {s: tensors.fed(*s, v) for s, v in noise.items()}
    found = _run(others, b.values(others), values)
    compared = []
    for name, output in zip(names, others.outputs, strict=True):
        pair = outputs[output.tensor], found[output.tensor]
        if tensors is not None:
            pair = tensors.common(*output.tensor, *pair)
        compared.append(compare(name, *pair, question.tolerance))
    if question.fetches:
        # What somebody asked for by name is not passed over.
        compared = [replace(c, passed=False) if c.passed is None else c for c in compared]
    return Proof(forward, feeds, tuple(compared), question.tolerance, tuple(notes))


def _noise(forward: Forward) -> list[Tensor]:
    """Return the random numbers that the outputs depend on, as far as they can be looked at."""
    return [Tensor(name) for name in forward.random if name not in forward.graph.frames]


def given_by(graph: Graph, question: Question) -> dict[Tensor, Array]:
    """Return the values that a question gives, by tensor.

    Raises:
        UsageError: a tensor does not exist, or has another dtype or shape.
        InputError: the file of inputs cannot be read.
    """
    given: dict[Tensor, Array] = {}
    if question.inputs is not None:
        given |= given_values(graph, read_inputs(question.inputs), str(question.inputs))
    return given | given_values(graph, dict(map(parse_feed, question.feeds)), "--feed")


def _first_run(
    forward: Forward, variables: Mapping[str, Variable], given: Mapping[Tensor, Array], seed: int
) -> tuple[Feeds, dict[Tensor, Array]]:
    session, feeds, outputs = start(forward, variables, given, seed)
    with session:
        return feeds, outputs


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
                failed = failed or _explained(error, feeds)
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
    floats = [output for output in outputs.values() if _is_float(output)]
    return any((np.abs(np.nan_to_num(_wide(o))) > 0).any() for o in floats) or not floats


def _explained(error: RunError, feeds: Feeds) -> RunError:
    drawn = ", ".join(str(source) for source in feeds.drawn)
    if not drawn:
        return error
    return type(error)(
        f"{error}; drawn were {drawn}: give inputs (--inputs x.npz), or choose what to compute "
        "(--fetch NAME)"
    )


def _same(forward: Forward, feeds: Feeds, tensors: Tensors | None) -> dict[Tensor, Array]:
    """Return what the second graph is fed: the same, and what it alone has decided."""
    values = {s: v for s, v in feeds.values.items() if s.node in forward.graph.nodes}
    if tensors is not None:
        values = {s: tensors.fed(s.node, s.port, v) for s, v in values.items()}
    missing = [
        found.tensor
        for found in forward.inputs
        if found.tensor not in values and found.value is None and found.kind != "default"
    ]
    if missing:
        raise UsageError(
            f"{forward.graph.path}: it needs {missing[0]}, which the first graph does not have; "
            "feed it (--feed)"
        )
    return dict(next(complete(forward, values, 0)).values)


def _run(
    forward: Forward, variables: Mapping[str, Variable], values: Mapping[Tensor, Array]
) -> dict[Tensor, Array]:
    from converter.session import Session, dtypes_of

    with Session(forward, variables, dtypes_of(forward, values)) as session:
        return session.run(values)
