"""The rows that a recurrent loop throws away, as their sequences have ended before."""

from __future__ import annotations

from typing import NamedTuple

from converter.graph.node import Node, Output
from converter.graph.ops import ENTERS, EXITS, NEXT_ITERATION, REPEATS, RESHAPES, SAME, SELECTS, ops
from converter.graph.ordered import OrderedGraph
from converter.structure.layers.steps import takers
from converter.structure.tensors.analysis import Analysis
from converter.structure.tensors.atoms import size_of

_ENDS = EXITS | NEXT_ITERATION | ENTERS | ops("_Loop")
_KEEPS = ops("""
    TensorArrayWrite TensorArrayWriteV2 TensorArrayWriteV3 TensorListSetItem TensorListPushBack
    """)
_WIDENS = SAME | RESHAPES | REPEATS
_MAX_NODES = 4096
_MAX_PASSED = 16


class Mask(NamedTuple):
    """What says which rows count.

    Attributes:
        output: a bool for each row.
        keeps: which of the two counts.
    """

    output: Output
    keeps: bool


def mask_of(analysis: Analysis, begin: Output) -> Mask | None:
    """Return by what rows of a tensor are thrown away; None where all count.

    Args:
        analysis: of the graph.
        begin: a tensor that a loop makes in each turn.
    """
    found: dict[object, Mask] = {}
    waiting, seen = [begin], {begin}
    while waiting and len(seen) < _MAX_NODES:
        output = waiting.pop()
        for node in takers(analysis, output):
            if node.op in _ENDS or node.op in _KEEPS:
                # It is kept as it is, or handed on to the next turn.
                return None
            mask = _chosen_by(analysis, node, output)
            if mask is not None:
                condition = mask.output.node
                # Old cells compare the lengths anew for each tensor.
                said = (condition.op, condition.inputs, mask.output.port, mask.keeps)
                found.setdefault(said, mask)
                continue
            given = {Output(node, port) for port in range(_ports(analysis, node))} - seen
            seen |= given
            waiting += given
    return next(iter(found.values())) if len(found) == 1 and not waiting else None


def _ports(analysis: Analysis, node: Node) -> int:
    taken = [o.port for c in analysis.graph.consumers[node] for o in c.inputs if o.node is node]
    return max(taken, default=0) + 1


def _chosen_by(analysis: Analysis, node: Node, output: Output) -> Mask | None:
    """Return the mask of a choice, row by row, between a tensor and what was there before it."""
    if node.op not in SELECTS or len(node.inputs) != 3 or output not in node.inputs[1:]:
        return None
    condition = _by_row(analysis, node.inputs[0])
    if condition is None or node.inputs[1] == node.inputs[2]:
        return None
    return Mask(condition, node.inputs[1] == output)


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
