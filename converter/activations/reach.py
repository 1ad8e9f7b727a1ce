"""Which tensors of a graph can be fetched: those that are computed in every run, and once."""

from __future__ import annotations

from collections.abc import Iterator

from converter.graph.node import Node, Tensor
from converter.graph.ops import ENTERS, EXITS, MERGES, NEXT_ITERATION, SWITCHES
from converter.graph.written import Graph

_HANDING = SWITCHES | {"Identity"}
_MAX_PASSED = 64
# A condition: what decides a Switch, which output of it, and the loop that it is in.
_Condition = tuple[Tensor, int, str]
_Conditions = frozenset[_Condition]


class Reach:
    """Tells of the nodes of a graph whether they can be fetched.

    Args:
        graph: with the functions that its nodes call not put in their places.
    """

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._outer = {
            graph.frames[node.name]: self._frame(node.sources[0].node)
            for node in graph.nodes.values()
            if node.op in ENTERS and node.sources
        }
        self._conditions: dict[str, _Conditions] = {}

    def can_fetch(self, source: Tensor) -> bool:
        """Tell whether a tensor is computed in every run, and not in a loop nor in a function."""
        node = self._graph.nodes.get(source.node)
        if node is None:
            return False
        frame = self._frame(source.node)
        if node.op in EXITS:
            frame = self._outer.get(frame, "")
        return not frame and not self._of_tensor(source)

    def beside(self, source: Tensor, other: Tensor) -> Tensor | None:
        """Return what a tensor is before it was handed on to a branch, so that it can be had
        wherever another one can; None where that is not to be found.
        """
        wanted = self._of_tensor(other)
        for _ in range(_MAX_PASSED):
            node = self._graph.nodes.get(source.node)
            if node is None or self._of_tensor(source) <= wanted:
                break
            if node.op not in _HANDING or not node.sources:
                return None
            source = node.sources[0]
        same = source.node not in self._graph.nodes or other.node not in self._graph.nodes
        return source if same or self._frame(source.node) == self._frame(other.node) else None

    def _frame(self, name: str) -> str:
        return self._graph.frames.get(name, "")

    def _of_tensor(self, source: Tensor) -> _Conditions:
        if source.node not in self._conditions:
            self._find(source.node)
        found = self._conditions.get(source.node, frozenset())
        node = self._graph.nodes.get(source.node)
        if node is not None and node.op in SWITCHES and len(node.sources) == 2:
            decided = self._graph.origin(node.sources[1])
            found |= {(decided, source.port, self._frame(source.node))}
        return found

    def _find(self, name: str) -> None:
        """Find under what conditions a node is computed, and all before it."""
        waiting = [name]
        entered: set[str] = set()
        while waiting:
            node = self._graph.nodes.get(waiting[-1])
            if node is None or node.name in self._conditions:
                waiting.pop()
                continue
            before = [b for b in _before(self._graph, node) if b not in self._conditions]
            before = [b for b in before if b in self._graph.nodes]
            if before and node.name not in entered:
                entered.add(node.name)
                waiting += before
                continue
            waiting.pop()
            self._conditions[node.name] = self._of_node(node)

    def _of_node(self, node: Node) -> _Conditions:
        taken = [self._known(source) for source in node.sources if not self._turns(source)]
        if node.op in MERGES:
            # One of them comes: what all have in common holds.
            found = frozenset.intersection(*taken) if taken else frozenset()
        else:
            found = frozenset().union(*taken)
        if node.op in EXITS:
            frame = self._frame(node.name)
            found = frozenset(c for c in found if c[2] != frame)
        controls = [self._conditions.get(name, frozenset()) for name in node.controls]
        return found.union(*controls)

    def _known(self, source: Tensor) -> _Conditions:
        # A damaged graph may have circles; what is in them is not known yet.
        return self._of_tensor(source) if source.node in self._conditions else frozenset()

    def _turns(self, source: Tensor) -> bool:
        node = self._graph.nodes.get(source.node)
        return node is not None and node.op in NEXT_ITERATION


def _before(graph: Graph, node: Node) -> Iterator[str]:
    for source in node.sources:
        before = graph.nodes.get(source.node)
        if before is not None and before.op not in NEXT_ITERATION:
            yield source.node
    yield from node.controls
