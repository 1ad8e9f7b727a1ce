"""Which nodes of a graph matter: what runs forward, on what, and what comes of it.

A `.meta` file holds the model, its gradients, the optimizer, saving, initialising, summaries and
metrics in one graph. Only what runs forward says how the variables hang together; and of that,
what leads to nothing but a loss says nothing about what the outputs are sensitive to.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from enum import IntEnum

from converter.dtype import BOOL
from converter.graph.node import Node, tensor, text_of
from converter.graph.ops import (
    ADDS,
    COMPARING,
    CONTRACTIONS,
    DEQUEUES,
    DIVISIONS,
    EXITS,
    LOOP,
    MERGES,
    NEXT_ITERATION,
    NOISE,
    PASSING,
    PLACEHOLDERS,
    RECIPROCALS,
    RESHAPES,
    RESTORED,
    RESTORES,
    SAME,
    SAVES,
    SELECTS,
    SHAPE_ONLY,
    SLICES,
    SPLITS,
    SWITCHES,
    UPDATES,
    VARIABLES,
    is_effect,
    is_watching,
    ops,
)
from converter.graph.ordered import OrderedGraph

# What holds a value from one op to the next. A temporary one is in no checkpoint.
_STATES = VARIABLES | {"TemporaryVariable"}
# What data begin with: besides what can be fed, what makes a handle or parses what was fed.
_SOURCES = DEQUEUES | ops("""
    OneShotIterator IteratorGetNextAsOptional TFRecordReader TFRecordReaderV2 ParseExample
    ParseExampleV2 ParseExampleDataset ParseExampleDatasetV2 _Arg
    """)
# What savers do besides writing.
_SAVERS = RESTORES | ops("ShardedFilename ShardedFilespec")
_BACKWARD = re.compile(r"(^|/)gradients?(_\d+)?/|(^|/)gradients(_\d+)?$")
_GRADIENT_OF = re.compile(r"(?:^|/)gradients?(?:_\d+)?/(.+?)_grad/")
_GRADIENT_OP = re.compile(r"[A-Z]\w*[a-z0-9]Grad(V\d)?")
_LOOP_STATE = EXITS | SWITCHES | MERGES


class Kind(IntEnum):
    """What a tensor is made of; of two, the greater is what comes of both."""

    CONSTANT = 0
    NOISE = 1
    WEIGHT = 2
    DATA = 3


class Flow:
    """What the nodes of a graph are for.

    Attributes:
        forward: neither gradients nor effects.
        kinds: of what each node's outputs are made.
        wanted: the forward nodes that something comes of: an output, a loss, or a variable.
        inner: the nodes from which one gets to an output, or to a variable that is used further on.
        telling: the nodes to whose exact arithmetic the outputs are sensitive: besides the inner
            ones what is made of the last of these, which may be an output that only a loss takes.
            What a loss takes from further inside, or from variables, is none of them; what a single
            number takes that nothing follows, and that nobody trains by, is.
        looked_at: those of them that come before an output, and not before a loss alone.
        outputs: the nodes whose tensors are looked at from outside.
        averaged: what a batch normalisation averages in training, by the merge or the select that
            chooses it.
        updates: what writes a value that was computed into a variable: moving averages, states.
    """

    def __init__(self, graph: OrderedGraph, variables: Iterable[Node]) -> None:
        self._graph = graph
        backward = self._backward()
        self.forward = {node for node in graph.nodes if node not in backward and not is_aside(node)}
        self.settings = {
            node for node in graph.nodes if node.op in PLACEHOLDERS and self._is_setting(node)
        }
        self.averaged = {
            node: source
            for node in graph.nodes
            if (source := self._averaged_beside_variable(node)) is not None
        }
        self.kinds = self._kinds(set(variables))
        sinks = [node for node in self.forward if self._is_sink(node)]
        self.updates = [
            node
            for node in graph.nodes
            if node.op in UPDATES
            and node not in backward
            and len(node.inputs) > 1
            and self.kinds[node.inputs[1].node] >= Kind.WEIGHT
            and not self._is_restored(node)
        ]
        values = [node.inputs[1].node for node in self.updates]
        self.wanted = self._ancestors([*sinks, *values])
        seen = [node for node in sinks if not self._is_written(node)]
        mixing = [node for node in self._ancestors(seen) if self._is_mixing(node)]
        large = [node for node in seen if not self._is_scalar(node)]
        self.inner = self._ancestors([*large, *mixing], self.averaged)
        self._signed = self._signed_outputs()
        trained = {m[1] for node in backward if (m := _GRADIENT_OF.search(node.name))}
        single = [node for node in seen if self._is_single_output(node, trained)]
        self.looked_at = self._ancestors([*self.inner, *single], self.averaged)
        self.telling = self.looked_at | self._ancestors(self._last(seen), self.averaged)
        self.outputs = [
            node
            for node in graph.nodes
            if node in self.telling
            and self.kinds[node] is Kind.DATA
            and not _is_loop_state(node)
            and not self._is_scalar(node)
            and not self._is_written(node)
            and not any(c in self.telling for c in graph.consumers[node])
        ]

    def _signed_outputs(self) -> set[str]:
        """Return the nodes that signatures give out; none where these were calls of functions."""
        meta = self._graph.definition.meta
        signatures = meta.signature_def if meta is not None else ()
        found = {
            tensor(text_of(told.value.name)).node
            for entry in signatures
            for told in entry.value.outputs
        }
        return found if found <= self._graph.by_name.keys() else set()

    def _is_single_output(self, node: Node, trained: Collection[str]) -> bool:
        """Whether a number is an output: nothing takes it, and it is not of what is trained by.

        An export says what its outputs are; what only summaries took that it left out is none.
        """
        if self._signed and node.name not in self._signed:
            return False
        if self.kinds[node] is not Kind.DATA or self._graph.consumers[node]:
            return False
        numbers = _reached(
            [node] if self._is_scalar(node) else [],
            lambda current: [s for s, _ in current.inputs if self._is_scalar(s)],
        )
        return bool(numbers) and all(number.name not in trained for number in numbers)

    def _last(self, sinks: Iterable[Node]) -> set[Node]:
        """Return what is made of the last inner tensors, as long as it is no single number."""
        needed = {
            node
            for node in self._ancestors(sinks)
            if self.kinds[node] is Kind.DATA and not self._is_scalar(node)
        }
        taken = {output for node in self.inner for output in node.inputs}
        first = [
            node
            for node in needed - self.inner
            if any(
                output.node in self.inner
                and self.kinds[output.node] is Kind.DATA
                and output not in taken
                for output in node.inputs
            )
        ]
        consumers = self._graph.consumers
        return _reached(first, lambda node: needed.intersection(consumers[node]))

    def _backward(self) -> set[Node]:
        """Return the gradients, and all that is made of them."""
        begin = [
            node
            for node in self._graph.nodes
            if _BACKWARD.search(node.name) or _GRADIENT_OP.fullmatch(node.op)
        ]
        return _reached(begin, lambda node: self._graph.consumers[node])

    def _is_setting(self, node: Node) -> bool:
        """Whether a placeholder is a number that people set, such as what dropout keeps.

        Many never said its shape; then it is one where it is used as only a number is.
        """
        shape = self._graph.declared(node, 0)
        if shape is not None or node.inputs:
            return shape == ()
        if node.dtype("dtype") is BOOL:
            return True
        waiting, seen = [node], {node}
        while waiting:
            for consumer in self._graph.consumers[waiting.pop()]:
                if consumer in seen or consumer not in self.forward:
                    continue
                seen.add(consumer)
                if consumer.op in _PASSES_NUMBERS:
                    waiting.append(consumer)
                elif consumer.op not in _TAKES_NUMBERS:
                    return False
        return True

    def _averaged_beside_variable(self, node: Node) -> Node | None:
        """Return what a merge takes while training, if it takes a variable's vector else."""
        if node.op in MERGES | {"_Join"} and len(node.inputs) == 2:
            sources = given = [output.node for output in node.inputs]
        elif node.op in SELECTS and len(node.inputs) == 3 and self._is_flag(node.inputs[0].node):
            given = [output.node for output in node.inputs[1:]]
            sources = [_reshaped(source) for source in given]
        else:
            return None
        held = [self._is_read(source) for source in sources]
        if sorted(held) != [False, True]:
            return None
        shape = self._graph.declared(sources[held.index(True)], 0)
        return given[held.index(False)] if shape is not None and len(shape) == 1 else None

    def _is_flag(self, node: Node) -> bool:
        """Whether a node is one bool for all, whatever the shape that it was given."""
        source = _reshaped(node)
        return source in self.settings or self._graph.declared(source, 0) == ()

    def _kinds(self, variables: set[Node]) -> dict[Node, Kind]:
        kinds = dict.fromkeys(self._graph.nodes, Kind.CONSTANT)
        waiting: list[tuple[Node, Kind]] = []
        for node in self._graph.nodes:
            if node in variables or node.op in _STATES:
                waiting.append((node, Kind.WEIGHT))
            elif node.op in _SOURCES or (node.op in PLACEHOLDERS and node not in self.settings):
                waiting.append((node, Kind.DATA))
            elif node.op in NOISE:
                waiting.append((node, Kind.NOISE))
        while waiting:
            self._spread(waiting, kinds)
            # What variables make of numbers that are drawn, or of a state of zeros, is data.
            waiting = [
                (node, Kind.DATA)
                for node, kind in kinds.items()
                if kind is Kind.WEIGHT
                and (
                    (node.op in _CONTRACTIONS and not _all_weights(node, kinds))
                    or (node.op == "Mul" and any(self._is_first_state(s) for s, _ in node.inputs))
                )
            ]
        return kinds

    def _is_first_state(self, node: Node) -> bool:
        """Whether a node gives what a state begins with: a tensor of zeros.

        A number that is zero is none: a penalty may be multiplied with it.
        """
        for _ in range(_MAX_PASSED):
            if node.op not in _KEEPS_ZEROS or not node.inputs:
                break
            node = node.inputs[-1 if node.op == "Split" else 0].node
        if node.op == "ZerosLike":
            return not self._is_scalar(node)
        is_filled = node.op == "Fill" and len(node.inputs) > 1
        held = self._graph.constant(node.inputs[1].node if is_filled else node)
        if held is None or not held.values or any(held.values):
            return False
        return not self._is_scalar(node) if is_filled else bool(held.shape)

    def _spread(self, waiting: list[tuple[Node, Kind]], kinds: dict[Node, Kind]) -> None:
        while waiting:
            node, kind = waiting.pop()
            if kinds[node] >= kind:
                continue
            kinds[node] = kind
            for consumer in self._graph.consumers[node]:
                is_noise = consumer.op in NOISE and kind is not Kind.NOISE
                if _is_condition(node, consumer):
                    continue
                if self.averaged.get(consumer) is node:
                    continue
                if consumer.op == LOOP and kinds[consumer.inputs[0].node] < kind:
                    # What a turn gives is what the next one takes.
                    waiting.append((consumer.inputs[0].node, kind))
                if (
                    kinds[consumer] < kind
                    and not is_noise
                    and consumer.op not in SHAPE_ONLY
                    and consumer not in self.settings
                    and not is_aside(consumer)
                ):
                    waiting.append((consumer, kind))

    def _is_sink(self, node: Node) -> bool:
        kind = self.kinds[node]
        if kind < Kind.WEIGHT or any(c in self.forward for c in self._graph.consumers[node]):
            return False
        if node.op in _STATES or node.op in NEXT_ITERATION:
            return False
        return kind is Kind.DATA or not self._is_read(node)

    def _is_written(self, node: Node) -> bool:
        """Whether a variable or a queue takes the value of a node."""
        return any(
            is_aside(c) and not is_watching(c.op) and c.op not in SAVES
            for c in self._graph.consumers[node]
        )

    def _is_read(self, node: Node) -> bool:
        """Whether a node gives out a variable as it is, which nobody looks at."""
        for _ in range(16):
            if node.op in _STATES or node.op == "Const":
                return True
            if node.op not in PASSING or not node.inputs:
                return False
            node = node.inputs[0].node
        return False

    def _is_restored(self, node: Node) -> bool:
        """Whether an assignment restores a variable."""
        source = node.inputs[1].node
        for _ in range(4):
            if source.op in RESTORES:
                return True
            if source.op not in RESTORED or not source.inputs:
                return False
            source = source.inputs[0].node
        return False

    def _is_mixing(self, node: Node) -> bool:
        """Whether a node takes data and a variable that is an array."""
        if self.kinds[node] is not Kind.DATA:
            return False
        return any(
            self.kinds[source] is Kind.WEIGHT and not self._is_scalar(source)
            for source, _ in node.inputs
        )

    def _is_scalar(self, node: Node) -> bool:
        return self._graph.declared(node, 0) == ()

    def _aside(self, node: Node) -> list[Node]:
        """Return what tells what a node gives without being taken by it."""
        found = (self._graph.choosers.get(node), self._graph.turned.get(node))
        return [output.node for output in found if output is not None]

    def _ancestors(
        self, nodes: Iterable[Node], without: Mapping[Node, Node] | None = None
    ) -> set[Node]:
        """Return forward nodes and all that they need, but for one input each of some."""
        left = without or {}
        return _reached(
            nodes,
            lambda node: (
                [
                    source
                    for source, _ in node.inputs
                    if source in self.forward and left.get(node) is not source
                ]
                + [source for source in self._aside(node) if source in self.forward]
            ),
        )


_CONTRACTIONS = CONTRACTIONS | ops("Conv2D Conv3D Conv2DBackpropInput")
_KEEPS_ZEROS = SAME | RESHAPES | SLICES | SPLITS | SWITCHES | ops("Transpose Cast Tile")
_MAX_PASSED = 16


def _all_weights(node: Node, kinds: Mapping[Node, Kind]) -> bool:
    operands = node.inputs[1:] if node.op.endswith("BackpropInput") else node.inputs[:2]
    return all(kinds[source] is Kind.WEIGHT for source, _ in operands)


def _is_condition(node: Node, consumer: Node) -> bool:
    """Whether a node only decides which way another one's data go."""
    return consumer.op in SWITCHES and all(
        port for port, (source, _) in enumerate(consumer.inputs) if source is node
    )


def _reshaped(node: Node) -> Node:
    """Return what a node gives in another shape."""
    for _ in range(16):
        if node.op not in RESHAPES or not node.inputs:
            break
        node = node.inputs[0].node
    return node


def _is_loop_state(node: Node) -> bool:
    """Whether a node hands the state of a loop around, which nobody can look at or asked for."""
    return node.op in _LOOP_STATE or (node.op == "Identity" and node.inputs[0].node.op in SWITCHES)


_PASSES_NUMBERS = PASSING | RECIPROCALS | ops("Cast Neg Const")
_TAKES_NUMBERS = (
    ADDS
    | DIVISIONS
    | COMPARING
    | MERGES
    | SELECTS
    | ops("Sub Mul Maximum Minimum Equal Pow RandomUniform LogicalAnd LogicalOr LogicalNot")
)


def is_aside(node: Node) -> bool:
    """Whether a node stands beside what is computed: it changes a state, saves, or looks on."""
    op = node.op
    # What Print prints goes on.
    return is_effect(op) or op in _SAVERS or (is_watching(op) and op != "Print")


def _reached(begin: Iterable[Node], following: Callable[[Node], Iterable[Node]]) -> set[Node]:
    found = set(begin)
    waiting = list(found)
    while waiting:
        for node in following(waiting.pop()):
            if node not in found:
                found.add(node)
                waiting.append(node)
    return found
