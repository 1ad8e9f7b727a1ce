"""What is done to a tensor of units, step by step, as long as the units stay what they are.

A step is all that happens between a tensor and the next one through which everything goes that was
made of it: one op, the two branches of a condition, or the dozen ops of a normalisation or of an
activation function that is written out.
"""

from __future__ import annotations

import heapq
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Literal, NamedTuple

from converter.graph.node import Node, Output
from converter.graph.ops import (
    ACTIVATIONS,
    ADDS,
    BATCH_NORMS,
    BIAS_ADDS,
    BOOLS,
    DIVISIONS,
    LAYOUT,
    MERGES,
    RECIPROCALS,
    SELECTS,
    SHAPE_ONLY,
    SWITCHES,
    ops,
)
from converter.structure.layers.branches import entered
from converter.structure.tensors.analysis import Analysis, Axes
from converter.structure.tensors.atoms import Atom, find, terms
from converter.structure.tensors.flow import Kind

What = Literal["pass", "sum", "bias", "gain", "constant", "centre", "drop", "normalise", "activate"]
"""`pass`: it is the same; `sum`: what another kernel makes is added; `bias` and `gain`: variables
are added or multiplied, one number for each unit; `constant`: numbers are; `centre`: its mean is
taken off; `drop`: a dropout."""

# What a dilated convolution in parts ends with, and what hands on a function with its gradient.
_JOINING = MERGES | {"_Join"}
_MOVES = LAYOUT | SWITCHES | _JOINING | ops("BatchToSpaceND IdentityN")
_SUMS = ADDS | BIAS_ADDS | ops("Sub AddN")
_PRODUCTS = DIVISIONS | {"Mul"}
_ROOTS = ops("Sqrt Rsqrt Pow")
_MEANS = ops("Mean Sum")
_NORMALISES = _ROOTS | _MEANS | RECIPROCALS | ops("Square SquaredDifference Maximum Neg")
_HOMOGENEOUS = ops("Relu LeakyRelu Abs")
_EXTREMES = ops("Maximum Minimum")
_FUNCTIONS = ACTIVATIONS.keys() | SELECTS | _HOMOGENEOUS | ops("Gelu Swish Mish Atan Erfc")
_ENTRYWISE = (
    _FUNCTIONS
    | _ROOTS
    | RECIPROCALS
    | BOOLS
    | ops("""
    Square Neg Log Log1p Expm1 Sign Cosh Sinh Cos ClipByValue
    """)
)
_ALLOWED = _MOVES | _SUMS | _PRODUCTS | _NORMALISES | _ENTRYWISE | BATCH_NORMS
_DROPS = _MOVES | _PRODUCTS | SELECTS
_MAX_NODES = 64


class Step(NamedTuple):
    """What leads from one tensor of units to the next.

    Attributes:
        what: it does.
        nodes: that do it, in the order of the graph.
        before: the tensor that it takes.
        after: the tensor that it gives.
        axis: of the units in `after`.
        is_homogeneous: whether a positive factor can be taken out of it.
        is_over_units: of a normalisation: whether it goes over the units of a row, rather than over
            the rows for each unit.
    """

    what: What
    nodes: tuple[Node, ...]
    before: Output
    after: Output
    axis: int
    is_homogeneous: bool = True
    is_over_units: bool = False

    @property
    def op(self) -> str:
        """The op that makes it what it is; of what is written out, the first such one."""
        named = [node.op for node in self.nodes if node.op in _FUNCTIONS]
        return named[0] if named else self.nodes[0].op


def same_axis(a: Atom, b: Atom) -> bool:
    """Tell whether two axes are one, as far as that was found out."""
    return find(a) is find(b) or terms(a) == terms(b)


def place_of(atom: Atom, axes: Axes | None, like: int = -1) -> int | None:
    """Return which axis of a tensor is a given one, counted from the end; None where none is.

    Args:
        atom: the axis.
        axes: of the tensor; of one of unknown rank nothing is found.
        like: which one is taken of several.
    """
    found = [i - len(axes) for i, a in enumerate(axes) if same_axis(a, atom)] if axes else []
    return like if like in found else (found[0] if len(found) == 1 else None)


def takers(analysis: Analysis, output: Output) -> list[Node]:
    """Return the nodes on whose arithmetic the outputs of the graph depend that take a tensor."""
    return [
        node
        for node in analysis.graph.consumers[output.node]
        if node in analysis.flow.telling and node.op not in SHAPE_ONLY and output in node.inputs
    ]


def step_from(analysis: Analysis, before: Output, axis: int) -> Step | None:
    """Return what is done to a tensor next; None where its units do not stay what they are.

    Args:
        analysis: of the graph.
        before: the tensor.
        axis: of its units, counted from the end.
    """
    begin = takers(analysis, before)
    found = next(_until_one(analysis, before, begin, is_all=True), None)
    if found is None:
        step = _alike(analysis, before, axis)
    else:
        step = _told(analysis, *found, before, axis)
    if step is None or _is_in_branch(analysis, before.node, step.after.node):
        return None
    return step


def holds(analysis: Analysis, output: Output, atoms: Sequence[Atom]) -> bool:
    """Tell whether the last axes of a tensor are these."""
    axes = analysis.tensor(output).axes
    return (
        axes is not None
        and len(axes) >= len(atoms)
        and all(map(same_axis, axes[-len(atoms) :], atoms))
    )


def normalisation_from(
    analysis: Analysis, before: Output, axis: int, begin: Sequence[Node]
) -> Step | None:
    """Return the normalisation that begins with some of what takes a tensor; None for none.

    Args:
        analysis: of the graph.
        before: the tensor, which others may take, too.
        axis: of its units, counted from the end.
        begin: the nodes with which it begins.
    """
    for nodes, after in _until_one(analysis, before, begin, is_all=False):
        step = _told(analysis, nodes, after, before, axis)
        roles = [role for node in nodes for role in analysis.roles.get(node, ())]
        is_stored = any(role.use == "variance" for role in roles)
        if step is not None and (step.what == "normalise" or (step.what == "gain" and is_stored)):
            return step
        # What is centred first is scaled in the next step.
        if any(role.use == "mean" for role in roles) and step is not None and step.what == "bias":
            return step
        if step is not None and step.what not in ("pass", "centre"):
            break
    return None


def _alike(analysis: Analysis, before: Output, axis: int) -> Step | None:
    """Of several functions of one tensor that are the same, the first stands for all."""
    nodes = takers(analysis, before)
    is_same = len({node.op for node in nodes}) == 1 and all(len(n.inputs) == 1 for n in nodes)
    if not is_same or nodes[0].op not in _FUNCTIONS:
        return None
    return _told(analysis, nodes[:1], Output(nodes[0], 0), before, axis)


def _until_one(
    analysis: Analysis, before: Output, begin: Sequence[Node], *, is_all: bool
) -> Iterator[tuple[list[Node], Output]]:
    """Yield the nodes up to each tensor through which all goes that is made of a tensor.

    Args:
        analysis: of the graph.
        before: the tensor.
        begin: the nodes that take it with which this begins.
        is_all: whether nothing else may take it.
    """
    waiting: list[tuple[int, Node]] = []
    known: set[Node] = set()

    def add(nodes: Iterable[Node]) -> None:
        for node in nodes:
            if node not in known:
                known.add(node)
                heapq.heappush(waiting, (node.order, node))

    add(begin)
    beginning = frozenset(begin)
    inside: list[Node] = []
    given = {before} if is_all else set()
    while waiting and len(inside) < _MAX_NODES:
        _, node = heapq.heappop(waiting)
        if not _can_be_inside(analysis, node, {before.node, *inside}, before):
            return
        inside.append(node)
        ports = _ports_taken(analysis, node)
        for port in ports:
            add(takers(analysis, Output(node, port)))
        if len(ports) <= 1 and node.op not in SWITCHES:
            after = Output(node, ports[0] if ports else 0)
            others = given | {Output(n, p) for n in inside[:-1] for p in range(_PORTS)}
            is_last = not any(n in beginning or others.intersection(n.inputs) for _, n in waiting)
            if is_last and all(n is node or _ports_taken(analysis, n) for n in inside):
                yield list(inside), after


_PORTS = 4


def _ports_taken(analysis: Analysis, node: Node) -> list[int]:
    return [port for port in range(_PORTS) if takers(analysis, Output(node, port))]


def _can_be_inside(
    analysis: Analysis, node: Node, inside: Collection[Node], before: Output
) -> bool:
    """Tell whether a node makes something of the tensor alone, entry by entry or by means."""
    if node.op not in _ALLOWED or not node.inputs:
        return False
    for output in node.inputs:
        is_own = output == before or (output.node in inside and output.node is not before.node)
        # Behind another branch there is something else, be it a constant.
        if not is_own and (node.op in _JOINING or analysis.is_data(output)):
            return False
    if node.op != "_Join":
        return True
    # A Merge comes of Switches, which take what decides them.
    decided = analysis.graph.choosers.get(node)
    return decided is None or not analysis.is_data(decided)


def _is_in_branch(analysis: Analysis, before: Node, after: Node) -> bool:
    """Whether a node is not computed wherever one before it is, as data decide about it."""
    return any(analysis.is_data(decided) for decided in entered(analysis.graph, before, after))


def _told(
    analysis: Analysis, nodes: list[Node], after: Output, before: Output, axis: int
) -> Step | None:
    axes = analysis.tensor(before).axes
    if not axes or len(axes) < -axis:
        return None
    place = place_of(axes[axis], analysis.tensor(after).axes, axis)
    if place is None:
        return None
    found = {node.op for node in nodes}
    own = {before.node, *nodes}

    def step(what: What, **more: bool) -> Step:
        return Step(what, tuple(nodes), before, after, place, **more)

    if found & BATCH_NORMS or found & _MEANS:
        is_over_units = _is_over_units(analysis, nodes, before, axis)
        if found & BATCH_NORMS or found & _ROOTS:
            is_normal = found <= _MOVES | _SUMS | _PRODUCTS | _NORMALISES | BATCH_NORMS
            if not is_normal or not _are_alike(axes, analysis.tensor(after).axes):
                return None
            return step("normalise", is_over_units=is_over_units)
        is_centred = "Sub" in found and found <= _CENTRES
        return step("centre", is_over_units=is_over_units) if is_centred else None
    if found <= _MOVES:
        return step("pass")
    given = [o for n in nodes for o in n.inputs if o.node not in own]
    kinds = {analysis.kind(output) for output in given}
    if Kind.NOISE in kinds and found <= _DROPS:
        return step("drop")
    is_linear = found <= _MOVES | _SUMS | _PRODUCTS | {"Neg"} and not _multiplies_own(nodes, own)
    if is_linear:
        weighs = Kind.WEIGHT in kinds
        what: What = "constant" if not weighs else "bias" if found <= _MOVES | _SUMS else "gain"
        return step(what)
    if found & _FUNCTIONS and found <= _MOVES | _SUMS | _PRODUCTS | _ENTRYWISE:
        return step("activate", is_homogeneous=_is_homogeneous(analysis, nodes, own))
    return None


def _are_alike(before: Axes, after: Axes | None) -> bool:
    """Whether a tensor has the axes of another one: none was averaged away."""
    return after is not None and len(before) == len(after) and all(map(same_axis, before, after))


_CENTRES = _MOVES | _MEANS | ops("Sub")


def _multiplies_own(nodes: Iterable[Node], own: Collection[Node]) -> bool:
    return any(
        node.op in _PRODUCTS and sum(output.node in own for output in node.inputs[:2]) == 2
        for node in nodes
    )


def _is_homogeneous(analysis: Analysis, nodes: Iterable[Node], own: Collection[Node]) -> bool:
    for node in nodes:
        others = [output for output in node.inputs if output.node not in own]
        if node.op in _EXTREMES or node.op in _SUMS:
            if any(analysis.tensor(output).number != 0 for output in others):
                return False
        elif node.op in _PRODUCTS:
            if len(others) != 1 or (node.op != "Mul" and node.inputs[0].node not in own):
                return False
        elif node.op not in _HOMOGENEOUS | _MOVES | {"Neg"}:
            return False
    return True


def _is_over_units(analysis: Analysis, nodes: Iterable[Node], before: Output, axis: int) -> bool:
    """Tell whether what is averaged in a step has no units any more."""
    axes = analysis.tensor(before).axes or ()
    if len(axes) < -axis:
        return False
    atom = axes[axis]
    for node in nodes:
        taken = analysis.tensor(node.inputs[0]).axes
        if node.op in BATCH_NORMS and taken:
            channel = 1 if node.text("data_format").startswith("NC") else -1
            return not same_axis(taken[channel], atom)
        if node.op in _MEANS:
            made = analysis.tensor(Output(node, 0)).axes
            return place_of(atom, taken, axis) is not None and place_of(atom, made, axis) is None
    return False
