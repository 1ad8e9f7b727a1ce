"""Cells that are computed once before their loop, to see what they give, and thrown away."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from copy import copy
from dataclasses import replace

from converter.graph.node import Node
from converter.graph.ops import ENTERS, SHAPE_ONLY
from converter.structure.layers.masks import in_loops
from converter.structure.tensors.analysis import Analysis

_ENTERS = ENTERS | {"_Loop"}


def without_trials(analysis: Analysis) -> Analysis:
    """Return an analysis that leaves out what Keras computes to learn the shape of a cell's output.

    It takes the first of what the loop goes through, and the state that the loop begins with, and
    nothing but its shape is looked at. Its variables are those of the loop.
    """
    looping = in_loops(analysis.graph)
    roles = analysis.roles
    inside = {role.origin.variable for node in looping for role in roles.get(node, ())}
    entering = {
        output
        for node in analysis.graph.nodes
        if node.op in _ENTERS
        for output in node.inputs
        if not analysis.is_weight(output)
    }
    tried: set[Node] = set()
    for node in analysis.flow.telling:
        taken = {role.origin.variable for role in roles.get(node, ())}
        if node not in looping and taken and taken <= inside and entering.intersection(node.inputs):
            tried |= _all_behind(analysis, node, inside)
    tried -= looping
    if not tried:
        return analysis
    _add_what_is_before(analysis, tried)
    flow = copy(analysis.flow)
    flow.telling = flow.telling - tried
    return replace(
        analysis, flow=flow, roles={node: r for node, r in roles.items() if node not in tried}
    )


def _all_behind(analysis: Analysis, begin: Node, inside: Collection[str]) -> set[Node]:
    """Return what is made of what a node gives; nothing where that is more than a cell."""
    found = {begin}
    waiting = [begin]
    while waiting:
        for node in _takers(analysis, waiting.pop()):
            variables = {role.origin.variable for role in analysis.roles.get(node, ())}
            if node.op in _ENTERS or not variables <= set(inside):
                return set()
            if node not in found:
                found.add(node)
                waiting.append(node)
    return found


def _add_what_is_before(analysis: Analysis, tried: set[Node]) -> None:
    """Add what nothing else is made of."""
    waiting = _sources(tried)
    while waiting:
        node = waiting.pop()
        if node in tried or node not in analysis.flow.telling:
            continue
        after = _takers(analysis, node)
        if after and tried.issuperset(after):
            tried.add(node)
            waiting += _sources([node])


def _sources(nodes: Iterable[Node]) -> list[Node]:
    return [output.node for node in nodes for output in node.inputs]


def _takers(analysis: Analysis, node: Node) -> list[Node]:
    telling = analysis.flow.telling
    return [c for c in analysis.graph.consumers[node] if c in telling and c.op not in SHAPE_ONLY]
