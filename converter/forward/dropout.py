"""Finds dropout by its arithmetic, as every version of TensorFlow has written it out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from converter.graph.node import Node, Tensor
from converter.graph.ops import ADDS, SELECTS
from converter.graph.written import Graph

# random_uniform(lo, hi) scales and shifts what the op draws.
_SCALING = ADDS | {"Mul", "Sub"}
_STEPS = 8


@dataclass(frozen=True, slots=True)
class Dropout:
    """One dropout.

    Attributes:
        random: the node that draws.
        probability: what decides how much is dropped.
        keeps: whether that is the probability of keeping; otherwise of dropping.
        output: the tensor with the dropped values.
        value: the tensor that it was made from.
    """

    random: str
    probability: Tensor
    keeps: bool
    output: Tensor
    value: Tensor


def find_dropouts(graph: Graph) -> Iterator[Dropout]:
    """Yield the dropouts of a graph.

    Up to TensorFlow 1.12 it is `x / keep * floor(keep + random)`, from 1.13 on
    `x * (1 / (1 - rate)) * cast(random >= rate)`, later with a selection in place of the product.
    """
    for node in graph.nodes.values():
        if node.op in ("RandomUniform", "StatelessRandomUniform"):
            found = _dropout(graph, node)
            if found is not None:
                yield found


def _dropout(graph: Graph, random: Node) -> Dropout | None:
    for node in _drawn(graph, random):
        for user in graph.consumers.get(node.name, ()):
            others = [source for source in user.sources if source.node != node.name]
            if len(others) != 1:
                continue
            floors = [n for n in graph.consumers.get(user.name, ()) if n.op == "Floor"]
            if user.op in ADDS and floors:
                return _masked(graph, random, others[0], floors[0], keeps=True)
            if user.op in ("GreaterEqual", "Greater") and user.sources[0].node == node.name:
                return _masked(graph, random, others[0], user, keeps=False)
            if user.op in ("Less", "LessEqual") and user.sources[0].node == node.name:
                return _masked(graph, random, others[0], user, keeps=True)
    return None


def _drawn(graph: Graph, random: Node) -> Iterator[Node]:
    """Yield the op that draws, and what only scales it by constants."""
    waiting, steps = [random], 0
    while waiting and steps < _STEPS:
        node = waiting.pop(0)
        steps += 1
        yield node
        for user in graph.consumers.get(node.name, ()):
            others = [source for source in user.sources if source.node != node.name]
            if user.op in _SCALING and all(_is_range(graph, source) for source in others):
                waiting.append(user)


def _is_range(graph: Graph, source: Tensor) -> bool:
    """Tell whether a tensor is an end or the span of the range that random_uniform draws from."""
    if graph.constant(source) is None:
        node = graph.nodes.get(source.node)
        return (
            node is not None
            and node.op == "Sub"
            and all(graph.constant(part) is not None for part in node.sources)
        )
    name = source.node.rpartition("/")[2]
    return name in ("min", "max", "sub") or name.startswith("random_uniform")


def _masked(
    graph: Graph, random: Node, probability: Tensor, mask: Node, *, keeps: bool
) -> Dropout | None:
    """Return the dropout whose mask a node makes."""
    casts = [node for node in graph.consumers.get(mask.name, ()) if node.op == "Cast"]
    for source in (mask, *casts):
        for user in graph.consumers.get(source.name, ()):
            if user.op == "Mul" or (user.op in SELECTS and user.sources[0].node == source.name):
                others = [t for t in user.sources if t.node != source.name]
                if others:
                    value = _unscaled(graph, others[0], probability)
                    return Dropout(random.name, probability, keeps, Tensor(user.name), value)
    return None


def _unscaled(graph: Graph, scaled: Tensor, probability: Tensor) -> Tensor:
    """Return what was scaled up to make up for what is dropped."""
    node = graph.nodes.get(scaled.node)
    if node is None or len(node.sources) != 2:
        return scaled
    value, factor = node.sources
    if node.op in ("RealDiv", "Div"):
        return value if graph.origin(factor) == graph.origin(probability) else scaled
    if node.op != "Mul":
        return scaled
    constant = graph.constant(factor)
    maker = graph.nodes.get(factor.node)
    inverse = maker is not None and maker.op in ("RealDiv", "Reciprocal", "Inv")
    is_scale = constant is not None and constant.shape == () and float(constant) >= 1
    return value if inverse or is_scale else scaled
