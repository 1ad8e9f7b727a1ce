"""Finds the loss of a graph, and the gradients that its optimizer gets."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

from converter.dtype import VARIANT
from converter.forward.outputs import after_updates, sources_of
from converter.graph.node import Node, Tensor
from converter.graph.ops import ADDS, CONTROL_FLOW, SAME, SHAPE_ONLY, is_effect, is_watching, ops
from converter.graph.written import Graph

_GRADIENT_OF = re.compile(r"(?:.*/)?gradients(?:_\d+)?/(.+?)_grad/.*")
_APPLIES = re.compile(r"(Resource)?(Sparse)?Apply[A-Z]\w*")
_SCATTERS = re.compile(r"(Resource)?Scatter(Add|Sub)")
# Their gradient is the fourth input. That of all others is the last, or before its indices.
_FOURTH = re.compile(r"Momentum|Ftrl|AdagradDA")
# What makes one loss of several, and may leave no trace in the gradients.
_SUMS = ADDS | SAME | ops("AddN")
_MOST = 8
_MAX_STEPS = 16


class Gradient(NamedTuple):
    """What an optimizer gets for a variable.

    Attributes:
        variable: its node.
        values: the gradient, up to a factor.
        rows: the numbers of the rows that it is of, where it is not of all; else None.
    """

    variable: str
    values: Tensor
    rows: Tensor | None


def find_losses(graph: Graph, variables: Collection[str]) -> list[Tensor]:
    """Return the single numbers that training makes small: those that the gradients are of.

    Where the graph has no gradients: the last numbers that variables change smoothly, so that an
    accuracy is none, and that data go into.

    Args:
        graph: the graph.
        variables: the nodes that hold the values of variables.
    """
    gone = after_updates(graph)
    trained = {m[1] for m in map(_GRADIENT_OF.fullmatch, graph.nodes) if m is not None}
    smooth = _reached(graph, variables, gone, is_smooth=True)
    data = _reached(graph, {source.node for source in sources_of(graph)}, gone)
    numbers = {
        name
        for name in smooth & data
        if name not in graph.frames and _is_number(graph, graph.nodes[name])
    }
    numbers = _with_sums(graph, numbers & trained, numbers) or numbers
    before = {source.node for name in numbers for source in graph.nodes[name].sources}
    earlier = _reached(graph, before, gone, above=True)
    return [Tensor(name) for name in graph.nodes if name in numbers - earlier][:_MOST]


def gradients_of(graph: Graph, follows: Mapping[str, str]) -> list[Gradient]:
    """Return what the optimizers of a graph get, one gradient for each variable.

    Args:
        graph: the graph.
        follows: the node of the variable that the node of a slot belongs to.
    """
    found: dict[str, Gradient] = {}
    for node in graph.nodes.values():
        gradient = _applied(graph, node) or _scattered(graph, node, follows)
        if gradient is not None:
            found.setdefault(gradient.variable, gradient)
    return list(found.values())


def _applied(graph: Graph, node: Node) -> Gradient | None:
    if not _APPLIES.fullmatch(node.op) or len(node.sources) < 3:
        return None
    variable = _variable(graph, node.sources[0])
    is_sparse = "Sparse" in node.op
    place = 3 if _FOURTH.search(node.op) else len(node.sources) - 1 - is_sparse
    if place + is_sparse >= len(node.sources):
        return None
    rows = node.sources[place + 1] if is_sparse else None
    return Gradient(variable, node.sources[place], rows)


def _scattered(graph: Graph, node: Node, follows: Mapping[str, str]) -> Gradient | None:
    """Return the gradient of rows that is added to a variable, or to its slot of a first moment."""
    if not _SCATTERS.fullmatch(node.op) or len(node.sources) != 3:
        return None
    held = _variable(graph, node.sources[0])
    return Gradient(follows.get(held, held), node.sources[2], node.sources[1])


def _variable(graph: Graph, source: Tensor) -> str:
    """Return the node of a variable that an update takes, maybe behind another update."""
    for _ in range(_MAX_STEPS):
        source = graph.origin(source)
        node = graph.nodes.get(source.node)
        if node is None or not is_effect(node.op) or not node.sources:
            break
        source = node.sources[0]
    return source.node


def _with_sums(graph: Graph, losses: set[str], numbers: Collection[str]) -> set[str]:
    """Return losses and what only adds them up."""
    found, waiting = set(losses), list(losses)
    while waiting:
        for user in graph.consumers.get(waiting.pop(), ()):
            if user.op in _SUMS and user.name in numbers and user.name not in found:
                found.add(user.name)
                waiting.append(user.name)
    return found


def _is_number(graph: Graph, node: Node) -> bool:
    dtype = graph.dtype(Tensor(node.name))
    if dtype is None or not dtype.is_float or graph.shape(Tensor(node.name)) != ():
        return False
    # An array of tensors is told by a number, too.
    return (
        node.op not in CONTROL_FLOW
        and not re.match("TensorArray", node.op)
        and (not is_watching(node.op))
    )


def _reached(
    graph: Graph,
    first: Iterable[str],
    gone: Collection[str],
    *,
    is_smooth: bool = False,
    above: bool = False,
) -> set[str]:
    """Return the nodes that are computed from others, these included.

    Args:
        graph: the graph.
        first: the others.
        gone: the nodes that are not gone through.
        is_smooth: go through floats alone.
        above: return what the others are computed from instead.
    """
    found = {name for name in first if name in graph.nodes}
    waiting = list(found)
    while waiting:
        name = waiting.pop()
        node = graph.nodes[name]
        near: Iterable[Node] = graph.consumers.get(name, ())
        if above:
            near = [graph.nodes[s.node] for s in node.sources if s.node in graph.nodes]
        for other in near:
            if other.name in found or other.name in gone or other.op in SHAPE_ONLY:
                continue
            taken = (source for source in other.sources if source.node == name)
            if is_smooth and not any(_is_smooth(graph, source) for source in taken):
                continue
            found.add(other.name)
            waiting.append(other.name)
    return found


def _is_smooth(graph: Graph, source: Tensor) -> bool:
    """Tell whether a tensor holds floats, or a list of tensors, as far as the graph tells."""
    dtype = graph.dtype(source)
    return dtype is None or dtype.is_float or dtype is VARIANT
