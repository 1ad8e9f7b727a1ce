"""What a loop only hands through: it comes out as it went in."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from converter.graph.node import Node, Tensor, encoded, tensor, text_of
from converter.graph.ops import EXITS, IDENTITIES, MERGES, NEXT_ITERATION, WHILES
from converter.graph.written import Graph

_MAX_STEPS = 16


def handed_through(graph: Graph) -> set[Tensor]:
    """Return what leaves a loop as it came in: what the loop takes from outside.

    A loop that is a function gives that out too, and has an Identity for each of its outputs.
    """
    found: set[Tensor] = set()
    functions = {encoded(name): body for name, body in graph.functions.items()}
    unchanged: dict[bytes, set[int]] = {}
    for node in graph.nodes.values():
        if node.op in WHILES and "body" in node.attributes:
            name = node.attributes["body"].func.name
            if name in functions and name not in unchanged:
                unchanged[name] = set(_unchanged(functions[name]))
            given = {Tensor(node.name, port) for port in unchanged.get(name, ())}
            found |= given
            for user in graph.consumers.get(node.name, ()):
                if user.op in IDENTITIES and user.sources[0] in given:
                    found.add(Tensor(user.name))
        elif node.op in EXITS and _comes_around(graph, node):
            found.add(Tensor(node.name))
    return found


def _unchanged(body: Any) -> Iterator[int]:
    """Yield the numbers of the arguments that the body of a loop returns as they are."""
    nodes: Mapping[bytes, Any] = {node.name: node for node in body.node_def}
    returned = {entry.key: text_of(entry.value) for entry in body.ret}
    outputs = [argument.name for argument in body.signature.output_arg]
    for number, argument in enumerate(body.signature.input_arg[: len(outputs)]):
        name = encoded(tensor(returned.get(outputs[number], "")).node.partition(":")[0])
        for _ in range(_MAX_STEPS):
            node = nodes.get(name)
            if node is None or text_of(node.op) not in IDENTITIES or not node.input:
                break
            name = node.input[0].partition(b":")[0]
        if name == argument.name:
            yield number


def _comes_around(graph: Graph, leaving: Node) -> bool:
    """Tell whether a turn of the loop gives on what it got, where a tensor leaves a loop."""
    merge = graph.nodes.get(graph.origin(leaving.sources[0]).node) if leaving.sources else None
    if merge is None or merge.op not in MERGES:
        return False
    around = [graph.nodes.get(source.node) for source in merge.sources]
    turns = [node for node in around if node is not None and node.op in NEXT_ITERATION]
    return bool(turns) and all(
        node.sources and graph.origin(node.sources[0]).node == merge.name for node in turns
    )
