"""The proof that two checkpoints compute the same: both run on the same inputs, and are compared.

TensorFlow is not imported here, but by `converter.session` when the graphs run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

from converter.baselines import Baseline, baselines
from converter.checkpoint import Checkpoint
from converter.comparison import TOLERANCE, Compared, compare
from converter.errors import ConverterError, InputError, PlanError
from converter.forward.distributions import distribution
from converter.forward.feeds import Feeds
from converter.forward.find import Forward
from converter.graph.written import Graph, graph_of, read_graph
from converter.learning import Learning, learning
from converter.running import Question, Reference, Second, Side, first_run, number_of
from converter.variable import Variable

if TYPE_CHECKING:
    from converter.plan import Plan
    from converter.resize.exactness import Resizes
    from converter.resize.tensors import Tensors

__all__ = ["Compared", "Loss", "Proof", "Question", "compare", "prove", "prove_plan"]

_FEW = 4


class Loss(NamedTuple):
    """A loss of two models on the labels that were given.

    Attributes:
        name: the tensor.
        before: of the first.
        after: of the second.
    """

    name: str
    before: float
    after: float


@dataclass(frozen=True)
class Proof:
    """What a comparison of two models says.

    Attributes:
        forward: what was run of the first.
        feeds: what both were fed.
        outputs: one comparison for each output.
        tolerance: what passed, as a part of the scale.
        notes: what else is to be known.
        losses: the losses of both, where labels were given.
        baselines: how like the first other models of the same size would be, where a plan takes
            units away and does not claim that nothing is lost.
        learning: which of the new entries training moves, where a plan adds units; else None.
    """

    forward: Forward
    feeds: Feeds
    outputs: tuple[Compared, ...]
    tolerance: float
    notes: tuple[str, ...]
    losses: tuple[Loss, ...] = ()
    baselines: tuple[Baseline, ...] = ()
    learning: Learning | None = None

    @property
    def passed(self) -> bool:
        """Whether something was compared, and all of it is within the tolerance."""
        results = {found.passed for found in self.outputs}
        return True in results and False not in results

    @property
    def is_lossy(self) -> bool:
        """Whether an output is further from the other one than rounding takes it."""
        return any(map(_is_lossy, self.outputs))


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
    one, other = Side(first or _given(second), a, a), Side(second or _given(first), b, b)
    tries = between(a, b) if first is not None else ()
    if not tries:
        return _prove(first_run(one, question), other)
    if second is None:
        other = replace(other, graph=_graph_at(a, tries[0]))
    reference = first_run(one, question)
    proofs = (_prove(reference, other, Tensors([resizes])) for resizes in tries)
    proof = next(proofs)
    # Of copies that are fed, too, the first proof knows nothing.
    later = None if proof.passed else next((found for found in proofs if found.passed), None)
    proof = later or proof
    sizes = ", ".join(f"{w.name} {w.old} -> {w.new}" for w in tries[0].widths[:_FEW])
    more = f" and {len(tries[0].widths) - _FEW} more" if len(tries[0].widths) > _FEW else ""
    what = "copies of the old ones" if later else "zero where they are fed"
    new = f", and new ones are {what}" if any(w.new > w.old for w in tries[0].widths) else ""
    note = f"other sizes: {sizes}{more}; the first units are compared{new}"
    return replace(proof, notes=(note, *proof.notes))


def prove_plan(
    plan: Plan,
    output: Checkpoint | None,
    question: Question | None = None,
    *,
    is_judged: bool = False,
) -> Proof:
    """Run the source of a plan and what becomes of it on the same inputs.

    An output with a graph of its own runs in that; another in the source's, at the new sizes
    where widths changed, if every variable that the graph needs is in it under some name.

    Args:
        plan: what is written.
        output: what was written; None to take the values from the plan, before anything is.
        question: what is to be run.
        is_judged: also run other models of the same size where units are taken away, and look
            whether training moves new entries. What cannot be run is told in the notes.

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
    tensors = None
    if plan.resized:
        from converter.resize.tensors import Tensors

        tensors = Tensors(plan.resized)
    held: Mapping[str, Variable] = plan.result if output is None else output
    if own is not None and output is not None:
        second = Side(own, output, output)
    else:
        second = Side(_graph_of_result(plan, graph), source, held, plan)
    reference = first_run(Side(graph, source, source), question or Question())
    proof = _prove(reference, second, tensors, plan.multiples())
    if not is_judged:
        return proof
    named = second if second.plan is not None else None
    return _judged(plan, proof, reference, named, held)


def _graph_at(source: Checkpoint, resizes: Resizes) -> Graph:
    """Return the graph of a checkpoint at other sizes."""
    from converter.regraph import regraph

    assert resizes.structure is not None
    return graph_of(source, regraph(source, resizes.structure, resizes.sizes).meta)


def _graph_of_result(plan: Plan, graph: Graph) -> Graph:
    """Return the graph of the source, by its own names, at the sizes of the result."""
    try:
        resized = plan.resized_graph()
    except PlanError as error:
        raise PlanError(
            f"{plan.source.path}: its graph cannot be given the new sizes, so nothing could run "
            f"the output ({error}); leave out --prove"
        ) from None
    return graph if resized is None else graph_of(plan.source, resized)


def _given(graph: Graph | None) -> Graph:
    assert graph is not None
    return graph


def _judged(
    plan: Plan,
    proof: Proof,
    reference: Reference,
    second: Side | None,
    held: Mapping[str, Variable],
) -> Proof:
    """Return a proof with what others of the same size would give, and what training would do."""
    widths = [width for resizes in plan.resized for width in resizes.widths]
    is_cut = not plan.is_exact and any(width.new < width.old for width in widths)
    grows = any(width.new > width.old for width in widths)
    notes = list(proof.notes)
    try:
        if second is None and (is_cut or grows):
            graph = _graph_of_result(plan, reference.forward.graph)
            second = Side(graph, plan.source, held, plan)
        if second is not None and is_cut:
            proof = replace(proof, baselines=baselines(plan, second.graph, reference))
    except ConverterError as error:
        notes.append(f"no other choice of units was run: {error}")
    try:
        if second is not None and grows:
            proof = replace(proof, learning=learning(plan, second, reference))
    except ConverterError as error:
        notes.append(f"whether new entries learn was not seen: {error}")
    return replace(proof, notes=tuple(notes))


def _prove(
    reference: Reference,
    side: Side,
    tensors: Tensors | None = None,
    multiples: Mapping[str, float] = MappingProxyType({}),
) -> Proof:
    question, graph = reference.question, reference.forward.graph
    with Second(reference, side, tensors) as second:
        ran = second.run(tensors)
        notes = [*reference.forward.notes, *second.notes]
        notes += [note for note in second.forward.notes if note not in notes]
    compared = [
        compare(
            str(name),
            a,
            b,
            question.tolerance,
            distribution(graph, name),
            multiples.get(name.node, 1.0),
        )
        for name, a, b in ran.pairs
    ]
    if question.fetches:
        # What somebody asked for by name is not passed over.
        compared = [replace(c, passed=False) if c.passed is None else c for c in compared]
    losses = tuple(
        Loss(str(name), number_of(reference.outputs[name]), after)
        for name, after in ran.losses.items()
    )
    outputs = tuple(compared)
    if reference.unsaid and any(map(_is_lossy, outputs)):
        notes.append(reference.unsaid)
    return Proof(
        reference.forward, reference.feeds, outputs, question.tolerance, tuple(notes), losses
    )


def _is_lossy(compared: Compared) -> bool:
    return compared.passed is not None and not compared.error <= TOLERANCE
