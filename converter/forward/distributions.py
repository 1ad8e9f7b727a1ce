"""Which outputs are distributions: logits that a softmax takes, or what it gives."""

from __future__ import annotations

from converter.comparison import Distribution
from converter.graph.node import Node, Tensor
from converter.graph.ops import RESHAPES, SAME, ops
from converter.graph.written import Graph

_GIVES: dict[str, Distribution] = {"Softmax": "probabilities", "LogSoftmax": "logits"}
# What takes logits as its first input.
_TAKES = ops("""
    Softmax LogSoftmax SoftmaxCrossEntropyWithLogits SparseSoftmaxCrossEntropyWithLogits
    CTCLoss CTCLossV2 Multinomial StatelessMultinomial
    """)
_KEEPING = SAME | RESHAPES | ops("Cast")
_MAX_STEPS = 16


def distribution(graph: Graph, source: Tensor) -> Distribution | None:
    """Return what of a distribution a tensor is along its last axis; None where it is none."""
    made = source
    for _ in range(_MAX_STEPS):
        node = graph.nodes.get(made.node)
        if node is None:
            break
        if node.op in _GIVES:
            return _GIVES[node.op]
        if _is_taken(graph, made):
            return "logits"
        if node.op not in _KEEPING or not node.sources:
            break
        if not _is_last_kept(graph, made, node.sources[0]):
            break
        made = node.sources[0]
    return None


def _is_taken(graph: Graph, source: Tensor) -> bool:
    waiting, seen = [source], {source}
    while waiting and len(seen) < _MAX_STEPS:
        now = waiting.pop()
        for user in graph.consumers.get(now.node, ()):
            if user.sources[0] != now:
                continue
            if user.op in _TAKES:
                return True
            after = Tensor(user.name)
            if _goes_on(graph, user, now) and after not in seen:
                seen.add(after)
                waiting.append(after)
    return False


def _goes_on(graph: Graph, user: Node, now: Tensor) -> bool:
    return user.op in _KEEPING and _is_last_kept(graph, Tensor(user.name), now)


def _is_last_kept(graph: Graph, one: Tensor, other: Tensor) -> bool:
    """Tell whether two tensors have a last axis of one size, as far as the graph notes it."""
    first, second = graph.shape(one), graph.shape(other)
    if not first or not second:
        return first is None or second is None
    return first[-1] == second[-1] or -1 in (first[-1], second[-1])
