"""The rows that a recurrent cell throws away, as their sequences have ended before."""

from __future__ import annotations

from typing import NamedTuple

from converter.graph.node import Node, Output
from converter.graph.ops import (
    CELLS,
    COMPARING,
    ENTERS,
    EXITS,
    MERGES,
    NEXT_ITERATION,
    REPEATS,
    RESHAPES,
    SAME,
    SELECTS,
    SWITCHES,
    ops,
)
from converter.graph.ordered import OrderedGraph
from converter.structure.layers.steps import takers
from converter.structure.tensors.analysis import Analysis
from converter.structure.tensors.atoms import size_of

_ENDS = EXITS | NEXT_ITERATION | ENTERS | ops("_Loop")
_KEEPS = ops("""
    TensorArrayWrite TensorArrayWriteV2 TensorArrayWriteV3 TensorListSetItem TensorListPushBack
    """)
_WIDENS = SAME | RESHAPES | REPEATS
# Says of each length that it is not above a step: in which order it takes both.
_ENDED = {"LessEqual": 1, "GreaterEqual": -1}
_MAX_NODES = 4096
_MAX_OF_CELL = 512
_MAX_PASSED = 16


class Mask(NamedTuple):
    """What says which rows count.

    Attributes:
        output: a bool for each row, or with `step` the length of each sequence.
        keeps: which of the two counts.
        step: the number of the step, beyond which sequences have to go on; None where bools tell.
    """

    output: Output
    keeps: bool
    step: int | None = None


def mask_of(analysis: Analysis, begin: Output, *, is_unrolled: bool = False) -> Mask | None:
    """Return by what rows of a tensor are thrown away; None where all count.

    Args:
        analysis: of the graph.
        begin: a tensor that a cell makes in a step; of a cell that is one op any of its own.
        is_unrolled: whether there is no loop; then nothing farther than a cell goes is looked at.
    """
    found: dict[object, Mask] = {}
    waiting = [begin]
    if begin.node.op in CELLS:
        waiting = [Output(begin.node, port) for port in range(_ports(analysis, begin.node))]
    seen = set(waiting)
    most = _MAX_OF_CELL if is_unrolled else _MAX_NODES
    while waiting and len(seen) < most:
        output = waiting.pop()
        for node in takers(analysis, output):
            if node.op in _ENDS or node.op in _KEEPS:
                # It is kept as it is, or handed on to the next turn.
                return None
            mask = _chosen_by(analysis, node, output) or _chosen_beside(analysis, node, output)
            if mask is not None:
                mask = _outside(analysis, mask)
                condition = mask.output.node
                # Old cells compare the lengths anew for each tensor.
                said: object = (condition.op, condition.inputs, mask.output.port, mask.keeps)
                found.setdefault(said if mask.step is None else mask, mask)
                if len(found) > 1:
                    return None
                continue
            given = {Output(node, port) for port in range(_ports(analysis, node))} - seen
            seen |= given
            waiting += given
    return next(iter(found.values())) if len(found) == 1 and not waiting else None


def _ports(analysis: Analysis, node: Node) -> int:
    taken = [o.port for c in analysis.graph.consumers[node] for o in c.inputs if o.node is node]
    return max(taken, default=0) + 1


def has_choices(analysis: Analysis) -> bool:
    """Tell whether anything of a graph is chosen row by row."""
    return any(
        node.op in SELECTS and node.inputs and _by_row(analysis, node.inputs[0]) is not None
        for node in analysis.flow.telling
    )


def _chosen_by(analysis: Analysis, node: Node, output: Output) -> Mask | None:
    """Return the mask of a choice, row by row, between a tensor and what was there before it."""
    if node.op not in SELECTS or len(node.inputs) != 3:
        return None
    own = _origin(output)
    is_own = [_origin(given) == own for given in node.inputs[1:]]
    condition = _by_row(analysis, node.inputs[0])
    return None if condition is None or sum(is_own) != 1 else Mask(condition, is_own[0])


def _chosen_beside(analysis: Analysis, node: Node, output: Output) -> Mask | None:
    """Return the mask of a choice that is left out in a branch, as no sequence has ended yet."""
    if node.op not in MERGES and node.op != "_Join":
        return None
    for given in node.inputs:
        mask = _chosen_by(analysis, _origin(given).node, output)
        if mask is not None and _origin(mask.output).node.op in COMPARING:
            return mask
    return None


def _outside(analysis: Analysis, mask: Mask) -> Mask:
    """Return what a mask is computed of where that is done in a branch, which may not be taken."""
    compare = mask.output.node
    if compare.op not in _ENDED or mask.keeps:
        return mask
    lengths, step = compare.inputs[:: _ENDED[compare.op]]
    steps, outer = analysis.tensor(step).values, _origin(lengths)
    if lengths.node.op not in SWITCHES or not steps or outer.port:
        return mask
    return Mask(outer, True, steps[0])


def _origin(output: Output) -> Output:
    """Return what a tensor is before it was handed on, into branches too."""
    for _ in range(_MAX_PASSED):
        if output.node.op not in SAME | SWITCHES or not output.node.inputs:
            break
        output = output.node.inputs[0]
    return output


def _by_row(analysis: Analysis, condition: Output) -> Output | None:
    """Return the bools that a condition repeats for each unit."""
    found = None
    for _ in range(_MAX_PASSED):
        axes = analysis.tensor(condition).axes
        if axes and all(size_of(atom) == 1 for atom in axes[1:]):
            found = condition
        if condition.node.op not in _WIDENS or not condition.node.inputs:
            break
        condition = condition.node.inputs[0]
    return found


def in_loops(graph: OrderedGraph) -> set[Node]:
    """Return the nodes that a loop runs in each turn, as far as they lead to the next one."""
    found: set[Node] = set()
    for node in graph.nodes:
        if node.op in NEXT_ITERATION:
            scope = ""
        elif node.op == "_Loop":
            scope = node.name.rpartition("/")[0] + "/"
        else:
            continue
        waiting = [output.node for output in node.inputs[-1:]]
        while waiting:
            source = waiting.pop()
            if source in found or source.op in ENTERS or not source.name.startswith(scope):
                continue
            found.add(source)
            waiting += [output.node for output in source.inputs]
    return found
