"""Finds what people would call the outputs of a graph, and which of its inputs are labels.

A training graph holds its model, the loss, the gradients, the optimizer and the savers. Forward is
what depends on data and on variables, and neither on gradients nor on an update. Labels are the
inputs that never meet a variable. An output is the last tensor that is no scalar and depends on
no label: nothing follows it, or what follows compares it with labels or with the data again.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

from converter.dtype import VARIANT
from converter.forward.loops import handed_through
from converter.forward.signature import Signature, signatures
from converter.graph.node import Node, Tensor
from converter.graph.node import tensor as tensor_of
from converter.graph.ops import (
    ADDS,
    DEQUEUES,
    EXITS,
    LAYOUT,
    NEXT_ITERATION,
    PLACEHOLDERS,
    SHAPE_ONLY,
    SWITCHES,
    is_effect,
    is_watching,
    ops,
)
from converter.graph.written import Graph

_GRADIENTS = re.compile(r"(^|/)gradients(_\d+)?/")
# What a loop hands to its gradient, and takes from the gradient's scope at the beginning.
_ACCUMULATORS = ops("EmptyTensorList TensorListReserve Const")
# What is made of logits.
_DECISIONS = ops("Softmax LogSoftmax Sigmoid ArgMax TopK TopKV2")
# Of what a loss does to a prediction: that after which nothing is a prediction any more, and all
# that it does before labels come in, with a constant beside it.
_ONLY_LOSS = ops("Log Square Pow")
_LOSS = _ONLY_LOSS | ADDS | ops("Neg Minimum Maximum Sub Mul")
# Each source costs a walk over the graph.
_MAX_SOURCES = 200
_MAX_STEPS = 16


@dataclass(frozen=True, slots=True)
class Output:
    """A tensor that people would call an output.

    Attributes:
        tensor: which.
        why: what makes it one.
    """

    tensor: Tensor
    why: str


def sources_of(graph: Graph) -> list[Tensor]:
    """Return what a graph gets from outside: placeholders, and what comes out of its pipelines."""
    found = []
    for node in graph.nodes.values():
        if node.op in PLACEHOLDERS:
            found.append(Tensor(node.name))
        elif node.op in DEQUEUES:
            used = {t for user in graph.consumers.get(node.name, ()) for t in user.sources}
            found += sorted(t for t in used if t.node == node.name)
    return found


def after_updates(graph: Graph) -> set[str]:
    """Return the gradients, the updates, and what is computed from either."""
    first = [
        node.name
        for node in graph.nodes.values()
        if is_effect(node.op) or (_GRADIENTS.search(node.name) and node.op not in _ACCUMULATORS)
    ]
    found, waiting = set(first), first
    while waiting:
        for user in graph.consumers.get(waiting.pop(), ()):
            if user.name not in found:
                found.add(user.name)
                waiting.append(user.name)
    return found


def find_outputs(
    graph: Graph,
    variables: Collection[str],
    ignored: Collection[Tensor] = (),
    signature: Signature | None = None,
) -> list[Output]:
    """Return the outputs of a graph, in the order of its nodes.

    Args:
        graph: the graph.
        variables: the nodes that hold the values of variables.
        ignored: sources that carry no data: training flags, probabilities.
        signature: the signature of an exported model that is meant; None for all of them.
    """
    signed = _signed(signatures(graph).values() if signature is None else [signature])
    if signed:
        return signed
    search = _Search(graph, variables, ignored)
    return search.outputs() or search.last_uses()


def _signed(signatures: Iterable[Signature]) -> list[Output]:
    """Return the outputs that signatures of an exported model name."""
    found: dict[Tensor, str] = {}
    for signature in signatures:
        for name, source in signature.outputs.items():
            found.setdefault(tensor_of(source), f"signature {signature.name}/{name}")
    return [Output(source, why) for source, why in found.items()]


class _Search:
    """What depends on data, on variables and on labels."""

    def __init__(
        self, graph: Graph, variables: Collection[str], ignored: Collection[Tensor]
    ) -> None:
        self.graph = graph
        self._after = after_updates(graph)
        self._handed = handed_through(graph)
        self._labelled: set[str] = set()
        self._before = self._before_updates()
        left_out = set(ignored)
        sources = [source for source in sources_of(graph) if source not in left_out]
        weights = [Tensor(name) for name in variables]
        self._weights = self._reached(weights)
        self._data = self._reached(sources) if sources else self._weights
        self._meeting = {
            name for name in self._data - self._before if self._meets_variable(graph.nodes[name])
        }
        self._labelled = self._find_labelled(sources)
        # Metrics are updated with predictions, which are none the less.
        self._before = self._before_updates()

    def outputs(self) -> list[Output]:
        compared: dict[Tensor, Node] = {}
        found: dict[Tensor, str] = {}
        for node in self._candidates():
            for user in self._comparing(node):
                for source in user.sources:
                    if source.node == node.name and self.graph.shape(source) != ():
                        compared[self._before_loss(source, user)] = user
            if not self._users(node):
                for source in self._tensors(node):
                    found[source] = "nothing follows"
        for source, user in compared.items():
            if not self._is_part_of_loss(source, user, compared):
                found[source] = "compared with what is wanted"
        return self._with_decided(found)

    def last_uses(self) -> list[Output]:
        """Return the last tensors that are computed with variables, whatever follows them."""
        earlier: set[str] = set()
        waiting = [part.node for name in self._meeting for part in self.graph.nodes[name].sources]
        while waiting:
            name = waiting.pop()
            if name in self._data and name not in earlier:
                earlier.add(name)
                waiting += [part.node for part in self.graph.nodes[name].sources]
        last = self._meeting - earlier - set(self.graph.frames)
        return self._ordered({Tensor(name): "the last use of a variable" for name in last})

    def _with_decided(self, found: dict[Tensor, str]) -> list[Output]:
        """Add what was decided about: the logits of a softmax say more than their softmax."""
        waiting = list(found)
        while waiting:
            source = waiting.pop()
            decided = self._decided(source)
            if decided is not None and decided not in found:
                found[decided] = f"before {source}"
                waiting.append(decided)
        return self._ordered(found)

    def _ordered(self, found: Mapping[Tensor, str]) -> list[Output]:
        place = {name: number for number, name in enumerate(self.graph.nodes)}
        ordered = sorted(found, key=lambda source: (place[source.node], source.port))
        return [Output(source, found[source]) for source in ordered]

    def _before_updates(self) -> set[str]:
        """Return what is computed for updates alone, with the updates and what follows them."""
        found = set(self._after)
        effects = {name for name in found if is_effect(self.graph.nodes[name].op)}
        waiting = [source.node for name in effects for source in self.graph.nodes[name].sources]
        while waiting:
            name = waiting.pop()
            if name in found or name not in self.graph.nodes:
                continue
            users = [u.name for u in self.graph.consumers[name] if not is_watching(u.op)]
            # Gradients take part of everything, and that tells nothing.
            users = [user for user in users if user not in self._after or user in effects]
            if users and all(user in found and user not in self._labelled for user in users):
                found.add(name)
                waiting += [source.node for source in self.graph.nodes[name].sources]
        return found

    def _reached(self, sources: Iterable[Tensor]) -> set[str]:
        """Return the nodes that are computed from the values of tensors."""
        wanted = set(sources)
        found: set[str] = {source.node for source in wanted if source.node in self.graph.nodes}
        waiting = []
        for name in found:
            for user in self.graph.consumers.get(name, ()):
                if wanted & set(user.sources):
                    waiting.append(user)
        while waiting:
            node = waiting.pop()
            if node.name in found or node.op in SHAPE_ONLY or node.name in self._after:
                continue
            # What decides a branch is not in the values that it gets.
            if node.op in SWITCHES and node.sources[0].node not in found:
                continue
            found.add(node.name)
            waiting += self.graph.consumers.get(node.name, ())
        return found

    def _meets_variable(self, node: Node) -> bool:
        return any(
            source.node in self._weights
            and source.node not in self._data
            and (self.graph.shape(source) != () or self._is_handle(source))
            for source in node.sources
        )

    def _is_handle(self, source: Tensor) -> bool:
        """Tell whether a tensor is a variable itself, of whatever shape, and not its value."""
        node = self.graph.nodes.get(self.graph.origin(source).node)
        return node is not None and node.op == "VarHandleOp"

    def _find_labelled(self, sources: list[Tensor]) -> set[str]:
        """Return what is computed from labels."""
        found: set[str] = set()
        for source in sources if len(sources) <= _MAX_SOURCES else ():
            if self.graph.shape(source) != ():
                reached = self._reached([source])
                if not reached & self._meeting:
                    found |= reached
        return found

    def _candidates(self) -> Iterator[Node]:
        frames = self.graph.frames
        names = (self._weights & self._data) - self._before - self._labelled
        # Of several losses the last one counts, so the order must be that of the graph.
        for name, node in self.graph.nodes.items():
            if name not in names:
                continue
            if (name not in frames or node.op in EXITS) and not is_watching(node.op):
                yield node

    def _tensors(self, node: Node) -> list[Tensor]:
        """Return the tensors of a node that it computes, and that are no scalars."""
        noted = node.attributes.get("_output_shapes")
        count = len(noted.list.shape) if noted is not None else 1
        found = [Tensor(node.name, index) for index in range(count)]
        return [
            source
            for source in found
            if self.graph.shape(source) != ()
            and self.graph.dtype(source) is not VARIANT
            and source not in self._handed
        ]

    def _users(self, node: Node) -> list[Node]:
        """Return what takes the values of a node, apart from gradients, updates and summaries."""
        return [
            user
            for user in self.graph.consumers.get(node.name, ())
            if user.name not in self._before
            and user.op not in SHAPE_ONLY
            and not is_watching(user.op)
        ]

    def _followers(self, node: Node) -> list[Node]:
        """Return what goes on from a node, without labels; out of a loop where it is in one."""
        if node.op in NEXT_ITERATION:
            return self._exits.get(self.graph.frames.get(node.name, ""), [])
        return [user for user in self._users(node) if user.name not in self._labelled]

    @cached_property
    def _exits(self) -> dict[str, list[Node]]:
        found: dict[str, list[Node]] = {}
        for node in self.graph.nodes.values():
            if node.op in EXITS and node.sources:
                frame = self.graph.frames.get(node.sources[0].node, "")
                found.setdefault(frame, []).append(node)
        return found

    @cached_property
    def _leading(self) -> set[str]:
        """The nodes that lead to an output, or are one."""
        candidates = {node.name for node in self._candidates()}
        leading: set[str] = set()
        for node in self._from_last():
            followers = self._followers(node)
            if any(user.name in leading for user in followers):
                leading.add(node.name)
            elif node.name in candidates and self._tensors(node):
                users = self._users(node)
                if not users or any(self._compares(node, user) for user in users):
                    leading.add(node.name)
        return leading

    def _from_last(self) -> Iterator[Node]:
        """Yield the nodes so that each comes after those that follow it; loops are not followed."""
        done: set[str] = set()
        for start in self.graph.nodes:
            stack = [(self.graph.nodes[start], False)] if start in self._data else []
            while stack:
                node, is_ready = stack.pop()
                if is_ready:
                    yield node
                elif node.name not in done:
                    done.add(node.name)
                    stack.append((node, True))
                    stack += [(user, False) for user in self._followers(node)]

    def _comparing(self, node: Node) -> list[Node]:
        return [
            user
            for user in self._users(node)
            if user.name not in self._leading and self._compares(node, user)
        ]

    def _compares(self, node: Node, user: Node) -> bool:
        """Tell whether a loss begins here: with labels, or with data that no variable has met."""
        if user.name in self._labelled:
            return True
        return any(
            source.node != node.name
            and source.node in self._data
            and source.node not in self._weights
            and self.graph.shape(source) != ()
            for source in user.sources
        )

    def _before_loss(self, source: Tensor, user: Node) -> Tensor:
        """Return what a loss was given, before a branch, and before its layout or logarithm."""
        first = source
        for _ in range(_MAX_STEPS):
            node = self.graph.nodes[source.node]
            # What a branch gets is there in that alone.
            if node.op in SWITCHES:
                source = node.sources[0]
                continue
            inside = _shares_scope(node, user)
            # The Python function of this loss flattens first, in old versions outside its scope.
            is_flat = source == first and node.op == "Reshape" and "CrossEntropy" in user.op
            is_layout = node.op in LAYOUT and (inside or is_flat)
            parts = [part for part in node.sources if part.node in self._weights & self._data]
            others = [part for part in node.sources if part not in parts]
            is_loss = node.op in _LOSS and all(
                self.graph.constant(part) is not None for part in others
            )
            is_loss = is_loss and (inside or node.op in _ONLY_LOSS)
            if len(parts) != 1 or not (is_layout or is_loss):
                break
            source = parts[0]
        return source

    def _is_part_of_loss(self, source: Tensor, user: Node, compared: Collection[Tensor]) -> bool:
        """Tell whether a tensor of a loss's scope is computed from another that is compared.

        A sigmoid cross entropy is written out: labels meet the logits, and what is made of them.
        """
        waiting, seen = [source], {source}
        while waiting and len(seen) < _MAX_STEPS:
            part = waiting.pop()
            if part != source and part in compared:
                continue
            node = self.graph.nodes[part.node]
            if not _shares_scope(node, user):
                return False
            for before in node.sources:
                if before.node in self._weights & self._data and before not in seen:
                    seen.add(before)
                    waiting.append(before)
        return not waiting and len(seen) > 1

    def _decided(self, source: Tensor) -> Tensor | None:
        """Return the logits behind a softmax or an argmax that is an output."""
        for _ in range(_MAX_STEPS):
            node = self.graph.nodes[source.node]
            if node.op in _DECISIONS or node.op in LAYOUT:
                source = node.sources[0]
                is_computed = source.node in self._weights & self._data
                if not is_computed or source.node in self._labelled | set(self.graph.frames):
                    return None
                if node.op in _DECISIONS:
                    return source
            else:
                break
        return None


def _shares_scope(node: Node, user: Node) -> bool:
    """Tell whether two nodes are in one scope; the last op of a scope may have its very name."""
    scope = node.name.rpartition("/")[0]
    return scope != "" and scope in (user.name, user.name.rpartition("/")[0])
