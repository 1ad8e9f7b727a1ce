"""A graph as nodes in the order of their data.

Calls of functions are replaced by what the function does, so that a graph has no other level.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from typing import TYPE_CHECKING

from converter.errors import InputError
from converter.graph.constants import Constant, read_constant, read_strings
from converter.graph.definition import Definition, read_definition
from converter.graph.functions import inline
from converter.graph.node import Node, Output, Shape
from converter.graph.ops import (
    ENTERS,
    EXITS,
    IDENTITIES,
    LOOP,
    MERGES,
    NEXT_ITERATION,
    SWITCHES,
    ops,
)

if TYPE_CHECKING:
    from converter.checkpoint import Checkpoint

_PUSHES = ops("StackPush StackPushV2")
_POPS = ops("StackPop StackPopV2")
# What the handle of a stack goes through.
_HANDS_ON = IDENTITIES | ENTERS | SWITCHES
_MAX_PASSED = 64


class OrderedGraph:
    """The nodes of a graph, each after those that it takes data from, loops aside.

    Attributes:
        definition: the graph as its file has it.
        path: the file.
        nodes: in the order of the data.
        by_name: the nodes by name.
        consumers: the nodes that take an output of each node.
        handed: what is handed to the branches of each condition that is a call, by its name.
        choosers: the tensor that decides what a node gives without being taken by it.
        turned: what the variable of a loop that was a function is after a turn, by the node that
            takes it into the loop.

    Raises:
        InputError: the graph is damaged.
    """

    def __init__(self, definition: Definition) -> None:
        self.definition = definition
        self.path = definition.path
        self._strings: dict[Node, list[str]] = {}
        nodes, self.handed = inline(definition.graph, str(self.path))
        self.by_name = {node.name: node for node in nodes}
        for node in nodes:
            node.inputs = tuple(self._inputs(node))
        self.nodes = _sorted(list(self.by_name.values()))
        for order, node in enumerate(self.nodes):
            node.order = order
        self.consumers: dict[Node, list[Node]] = {node: [] for node in self.nodes}
        for node in self.nodes:
            for source in dict.fromkeys(output.node for output in node.inputs):
                self.consumers[source].append(node)
        self.choosers = dict(self._choosers())
        self._decides: dict[Node, list[Node]] = {}
        for node, chooser in self.choosers.items():
            self._decides.setdefault(chooser.node, []).append(node)
        # A damaged graph may hold a loop of another arity.
        loops = (n.inputs for n in self.nodes if n.op == LOOP and len(n.inputs) == 2)
        self.turned = {before.node: after for before, after in loops}

    def __repr__(self) -> str:
        return f"<OrderedGraph {self.path}: {len(self.nodes)} nodes>"

    def _inputs(self, node: Node) -> Iterator[Output]:
        for name, port in node.sources:
            source = self.by_name.get(name)
            if source is None:
                raise InputError(
                    f"{self.path}: the node {node.name} takes {name}, which the graph lacks; "
                    "it is damaged"
                )
            yield Output(source, port)

    def _choosers(self) -> Iterator[tuple[Node, Output]]:
        """Yield the nodes that are chosen by what they do not take, with what chooses them.

        What has no inputs in a branch of TensorFlow 1 runs after the switch of its condition.
        """
        for node in self.nodes:
            if node.chooser is not None and node.chooser.node in self.by_name:
                yield node, Output(self.by_name[node.chooser.node], node.chooser.port)
                continue
            for name in node.controls:
                pivot = self.by_name.get(name)
                for _ in range(_MAX_PASSED):
                    if pivot is None or pivot.op not in IDENTITIES or not pivot.inputs:
                        break
                    pivot = pivot.inputs[0].node
                if pivot is not None and pivot.op in SWITCHES and len(pivot.inputs) == 2:
                    yield node, pivot.inputs[1]
                    break

    def users(self, node: Node) -> list[Node]:
        """Return the nodes that take an output of a node, and those that it decides."""
        return [*self.consumers[node], *self._decides.get(node, ())]

    def declared(self, node: Node, port: int) -> Shape | None:
        """Return the shape that the graph notes for an output; None where it notes no rank."""
        found = node.shape("_output_shapes", port)
        if found is None and port == 0 and "shape" in node.attributes:
            found = node.shape("shape")
            if node.op == "Placeholder" and not found:
                return found if self.definition.has_scalar_placeholders else None
        if found is None and "output_shapes" in node.attributes:
            found = node.shape("output_shapes", port)
        return found

    def constant(self, node: Node) -> Constant | None:
        """Return a constant; None where the node holds none that numbers can stand for."""
        return read_constant(node, self.path)

    def strings(self, node: Node) -> list[str]:
        """Return the texts that a constant holds; none where it is no such constant."""
        # Every variable of a large model is looked up in one list of all names.
        if node not in self._strings:
            self._strings[node] = read_strings(node, self.path)
        return self._strings[node]


def _sorted(nodes: list[Node]) -> list[Node]:
    """Order the nodes so that each stands after its inputs; what loops back is left aside."""
    pushes = _pushes(nodes)
    waiting = dict.fromkeys(nodes, 0)
    followers: dict[Node, list[Node]] = {node: [] for node in nodes}
    for node in nodes:
        stacked = pushes.get(_origin(node), ()) if node.op in _POPS else ()
        for source in (*(source for source, _ in _before(node)), *stacked):
            followers[source].append(node)
            waiting[node] += 1
    # As far as that goes in the order of the file, which is that in which the model was written.
    places = {node: place for place, node in enumerate(nodes)}
    ready = [place for place, node in enumerate(nodes) if not waiting[node]]
    found = []
    while ready:
        node = nodes[heapq.heappop(ready)]
        found.append(node)
        for follower in followers[node]:
            waiting[follower] -= 1
            if not waiting[follower]:
                heapq.heappush(ready, places[follower])
    if len(found) < len(nodes):
        done = set(found)
        found += [node for node in nodes if node not in done]
    return found


def _pushes(nodes: list[Node]) -> dict[Node, list[Node]]:
    """Return what is put on each stack, by the node that made the stack."""
    found: dict[Node, list[Node]] = {}
    for node in nodes:
        if node.op in _PUSHES:
            found.setdefault(_origin(node), []).append(node)
    return found


def _origin(node: Node) -> Node:
    """Return the node that made the handle that another one takes."""
    for _ in range(_MAX_PASSED):
        if not node.inputs:
            break
        node = node.inputs[0].node
        if node.op not in _HANDS_ON:
            break
    return node


def _before(node: Node) -> list[Output]:
    """Return what has to be known before a node is looked at.

    A loop begins without what loops back, and what comes out of it waits for its body.
    """
    if node.op in MERGES:
        return [output for output in node.inputs if output.node.op not in NEXT_ITERATION]
    if node.op in EXITS:
        merges = [o.node for switch in node.inputs for o in switch.node.inputs[:1]]
        back = [o for m in merges for o in m.inputs if o.node.op in NEXT_ITERATION]
        return [*node.inputs, *back]
    return list(node.inputs)


def read_ordered(checkpoint: Checkpoint) -> OrderedGraph | None:
    """Return the graph that belongs to a checkpoint, or None where there is none.

    Raises:
        InputError: its file cannot be read, or is damaged.
    """
    definition = read_definition(checkpoint)
    return None if definition is None else OrderedGraph(definition)
