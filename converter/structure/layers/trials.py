"""Cells that are computed once before their loop, to see what they give, and thrown away."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from copy import copy
from dataclasses import replace

from converter.graph.node import Node, Output
from converter.graph.ops import (
    ARRAY_MOVES,
    ENTERS,
    IDENTITIES,
    LAYOUT,
    LOOKUPS,
    MERGES,
    QUOTIENTS,
    REVERSES,
    SELECTS,
    SHAPE_ONLY,
    SLICES,
    SWITCHES,
    ops,
)
from converter.structure.layers.masks import in_loops
from converter.structure.tensors.analysis import Analysis

_ENTERS = ENTERS | {"_Loop"}
_PICKS = SLICES | LOOKUPS
# What takes a tensor into a loop, or to where a loop takes its entries from.
_ONE_BY_ONE = ARRAY_MOVES | _ENTERS | ops("TensorListFromTensor")
_DROPS = LAYOUT | SWITCHES | MERGES | SELECTS | QUOTIENTS | ops("Mul")
_MAX_NODES = 1024
_MAX_STEPS = 64


def without_trials(analysis: Analysis) -> Analysis:
    """Return an analysis that leaves out what Keras computes to learn the shape of a cell's output.

    It takes the first of what the loop goes through, and the state that the loop begins with, and
    nothing but its shape is looked at. Its variables are those of the loop. What takes no such
    first entry is none: a network can be computed once, and in a loop again.
    """
    looping = in_loops(analysis.graph)
    roles = analysis.roles
    inside = {role.origin.variable for node in looping for role in roles.get(node, ())}
    entering = {
        _before_turns(output)
        for node in analysis.graph.nodes
        if node.op in _ENTERS
        for output in node.inputs
        if not analysis.is_weight(output)
    }
    tried: set[Node] = set()
    for node in analysis.flow.telling:
        taken = {role.origin.variable for role in roles.get(node, ())}
        is_apart = node not in looping and taken and taken <= inside
        if is_apart and _comes_from(analysis, node, entering):
            behind = _all_behind(analysis, node, inside)
            tried |= behind if _takes_first(analysis, behind) else set()
    tried -= looping
    if not tried:
        return analysis
    _add_what_is_before(analysis, tried)
    flow = copy(analysis.flow)
    flow.telling = flow.telling - tried
    return replace(
        analysis, flow=flow, roles={node: r for node, r in roles.items() if node not in tried}
    )


def _before_turns(output: Output) -> Output:
    """Return what a loop begins with, where a node stands for what each of its turns takes."""
    node = output.node
    return node.inputs[0] if node.op in IDENTITIES and len(node.inputs) == 1 else output


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


def _comes_from(analysis: Analysis, node: Node, states: Collection[Output]) -> bool:
    """Whether a node takes one of some tensors, as it is or through a dropout."""
    waiting = [output for output in node.inputs if not analysis.is_weight(output)]
    seen = set(waiting)
    while waiting and len(seen) < _MAX_STEPS:
        output = waiting.pop()
        if output in states:
            return True
        if output.node.op in _DROPS:
            new = {o for o in output.node.inputs if not analysis.is_weight(o)} - seen
            seen |= new
            waiting += new
    return False


def _takes_first(analysis: Analysis, nodes: Iterable[Node]) -> bool:
    """Whether nodes are made of one entry of a tensor whose entries a loop takes one by one."""
    waiting = list(nodes)
    seen = set(waiting)
    while waiting and len(seen) < _MAX_NODES:
        node = waiting.pop()
        if node.op in _PICKS and node.inputs and _is_given(analysis, node.inputs[0].node):
            return True
        before = {o.node for o in node.inputs if analysis.is_data(o)} - seen
        seen |= before
        waiting += before
    return False


def _is_given(analysis: Analysis, node: Node) -> bool:
    """Whether a loop takes the entries of what a node gives, from either end."""
    users = list(analysis.graph.consumers[node])
    for user in [user for user in users if user.op in REVERSES]:
        users += analysis.graph.consumers[user]
    return any(user.op in _ONE_BY_ONE for user in users)


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
