"""Tensors as a branch of a condition has them, which are there only where it is taken.

A branch that is a function has its own names for what it is handed. No node of the structure has
them, as what takes it is taken to take what is outside.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from converter.graph.node import Node, Output, Tensor
from converter.graph.ordered import OrderedGraph

_BRANCH = re.compile(r"/_branch_\d{1,5}/")


def as_taken(graph: OrderedGraph, node: Node, source: Tensor) -> Tensor:
    """Return a tensor as a node has it: `cond/_branch_0/_given_1` of what its branch is handed.

    Args:
        graph: of both.
        node: it takes the tensor.
        source: the tensor, which may be made where the node is, or outside of some branches.
    """
    for call, branch in _branches(node):
        handed = graph.handed.get(call, ())
        if source in handed:
            return Tensor(f"{branch}_given_{handed.index(source)}")
    return source


def entered(graph: OrderedGraph, before: Node, after: Node) -> Iterator[Output]:
    """Yield what decides about the branches that a node is in, and another one is not."""
    for call, branch in _branches(after):
        if before.name.startswith(branch):
            break
        # What gives nothing out has no join, and nothing in it counts.
        joined = graph.by_name.get(f"{call}/_join_0")
        if joined is not None and joined in graph.choosers:
            yield graph.choosers[joined]


def _branches(node: Node) -> Iterator[tuple[str, str]]:
    """Yield the conditions that a node is under, and the branches, inner ones first."""
    for found in reversed(list(_BRANCH.finditer(node.name))):
        yield node.name[: found.start()], node.name[: found.end()]
