"""What functions compute, and nothing reads."""

from __future__ import annotations

from copy import copy
from dataclasses import replace

from converter.graph.node import Node
from converter.graph.ops import SHAPE_ONLY, ops
from converter.graph.ordered import OrderedGraph
from converter.structure.tensors.analysis import Analysis

_HANDS_OUT = ops("_Join _Loop")


def turned(graph: OrderedGraph, node: Node) -> Node | None:
    """Return what hands out the variable of a loop that a node takes in; None for other nodes.

    Loops that are functions have no edge from the end of a turn to the next.
    """
    call, turn, number = node.name.rpartition("/_turn_")
    return graph.by_name.get(f"{call}/_loop_{number}") if turn else None


def without_unread(analysis: Analysis) -> Analysis:
    """Return an analysis that leaves out what functions compute, and do not return.

    In a graph it could be an output; in a function nobody can look at it, and it is not run. What
    a function hands out for gradients alone is none either.
    """
    telling = analysis.flow.telling
    inside = {node for node in telling if node.origin is not None or node.op in _HANDS_OUT}
    waiting = [node for node in telling if node not in inside]
    for node in waiting:
        again = turned(analysis.graph, node)
        sources = [o.node for o in node.inputs] if node.op not in SHAPE_ONLY else []
        for source in sources if again is None else (*sources, again):
            if source in inside:
                inside.discard(source)
                waiting.append(source)
    if not inside:
        return analysis
    flow = copy(analysis.flow)
    flow.telling = telling - inside
    roles = {node: found for node, found in analysis.roles.items() if node not in inside}
    return replace(analysis, flow=flow, roles=roles)
