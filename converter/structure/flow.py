"""Which nodes of a graph matter: what runs forward, on what, and what comes of it.

A `.meta` file holds the model, its gradients, the optimizer, saving, initialising, summaries and
metrics in one graph. Only what runs forward says how the variables hang together; and of that,
what leads to nothing but a loss says nothing about what the outputs are sensitive to.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from enum import IntEnum

from converter.structure.graph import NEXT_ITERATION, Graph, Node, ops

VARIABLES = frozenset(
    {"Variable", "VariableV2", "VarHandleOp", "AutoReloadVariable", "TemporaryVariable"}
)
PLACEHOLDERS = frozenset({"Placeholder", "PlaceholderV2", "PlaceholderWithDefault"})
READS = frozenset(
    {"Identity", "RefIdentity", "ReadVariableOp", "Enter", "RefEnter", "Snapshot", "StopGradient"}
)
"""What gives a variable on as it is."""

_SOURCES = re.compile(
    r"Iterator(FromStringHandle)?GetNext(Sync|AsOptional)?|OneShotIterator|"
    r"(Padding|Random|Priority|FIFO)?Queue(Dequeue).*|QueueDequeue.*|Reader(Read|Work).*|"
    r"Unstage|InfeedDequeue.*|(Eager)?PyFunc(Stateless)?|TFRecordReader.*|ParseExample.*|_Arg"
)
_NOISE = re.compile(
    r"(Stateless)?(Random(Uniform|StandardNormal|UniformInt|Normal|Gamma|Poisson).*|"
    r"TruncatedNormal.*|ParameterizedTruncatedNormal)"
)
# What tells of a tensor nothing but its shape.
_SHAPES = re.compile(
    r"Shape(N)?|Size|Rank|ZerosLike|OnesLike|BroadcastGradientArgs|TensorArraySize(V\d)?|"
    r"TensorListLength|VariableShape|VarIsInitializedOp|IsVariableInitialized|ConcatOffset"
)
_EFFECT = re.compile(
    r"(Resource)?(Sparse)?Apply[A-Z].*|(Ref)?Assign.*|"
    r"(Resource)?Scatter(Add|Sub|Mul|Div|Min|Max|Update)|"
    r"(Resource)?ScatterNd(Add|Sub|Update|Max|Min)|Resource(StridedSliceAssign)|StridedSliceAssign|"
    r"Save(V2|Slices)?|Restore(V2|Slice)?|ShardedFile.*|MergeV2Checkpoints|Queue(Enqueue|Close).*|"
    r".*Summary(V2)?|Write(File|.*Summary.*)|Stage|PrintV2|Assert|NoOp|OutfeedEnqueue.*|"
    r"(Resource)?CountUpTo|(Lookup|Initialize)Table.*(Import|Export|Insert|V2)|Accumulator.*|"
    r"ConditionalAccumulator|TensorArrayClose.*|Barrier.*|DisableCopyOnRead|_Send|_HostSend"
)
# Their names look as if they changed something.
_NO_EFFECT = frozenset({"LookupTableFindV2", "LookupTableSizeV2"})
_BACKWARD = re.compile(r"(^|/)gradients?(_\d+)?/|(^|/)gradients(_\d+)?$")
_GRADIENT_OP = re.compile(r"[A-Z]\w*[a-z0-9]Grad(V\d)?")
_LOOP_STATE = frozenset({"Exit", "RefExit", "Switch", "RefSwitch", "Merge", "RefMerge"})


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
            What a loss takes from further inside, or from variables, is none of them.
        outputs: the nodes whose tensors are looked at from outside.
        updates: what writes a value that was computed into a variable: moving averages, states.
    """

    def __init__(self, graph: Graph, variables: Iterable[Node]) -> None:
        self._graph = graph
        # There are far fewer ops than nodes.
        names = {node.op for node in graph.nodes}
        self._noise = {name for name in names if _NOISE.fullmatch(name)}
        effects = {name for name in names if _is_effect(name)}
        # What takes a tensor, and of which nothing is made of its values.
        self._ends = effects | {name for name in names if _SHAPES.fullmatch(name)}
        assignments = {name for name in names if _ASSIGNMENT.fullmatch(name)}
        backward = self._backward()
        self.forward = {
            node for node in graph.nodes if node not in backward and node.op not in effects
        }
        self.settings = {
            node for node in graph.nodes if node.op in PLACEHOLDERS and self._is_setting(node)
        }
        # What a batch normalisation averages while it is trained, by the merge that chooses it.
        self._averaged = {
            node: source
            for node in graph.nodes
            if (source := self._averaged_beside_variable(node)) is not None
        }
        self.kinds = self._kinds(set(variables))
        sinks = [node for node in self.forward if self._is_sink(node)]
        self.updates = [
            node
            for node in graph.nodes
            if node.op in assignments
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
        self.inner = self._ancestors([*large, *mixing], self._averaged)
        self.telling = self._ancestors([*self.inner, *self._last(seen)], self._averaged)
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
        names = {node.op for node in self._graph.nodes}
        gradients = {name for name in names if _GRADIENT_OP.fullmatch(name)}
        begin = [
            node
            for node in self._graph.nodes
            if node.op in gradients or _BACKWARD.search(node.name)
        ]
        return _reached(begin, lambda node: self._graph.consumers[node])

    def _is_setting(self, node: Node) -> bool:
        """Whether a placeholder is a number that people set, such as what dropout keeps.

        Many never said its shape; then it is one where it is used as only a number is.
        """
        shape = self._graph.declared(node, 0)
        if shape is not None or node.inputs:
            return shape == ()
        if node.kind("dtype") == _BOOL:
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
        if node.op not in ("Merge", "RefMerge", "_Join") or len(node.inputs) != 2:
            return None
        sources = [output.node for output in node.inputs]
        held = [self._is_read(source) for source in sources]
        if sorted(held) != [False, True]:
            return None
        shape = self._graph.declared(sources[held.index(True)], 0)
        return sources[held.index(False)] if shape is not None and len(shape) == 1 else None

    def _kinds(self, variables: set[Node]) -> dict[Node, Kind]:
        kinds = dict.fromkeys(self._graph.nodes, Kind.CONSTANT)
        sources = {name for name in {n.op for n in self._graph.nodes} if _SOURCES.fullmatch(name)}
        waiting: list[tuple[Node, Kind]] = []
        for node in self._graph.nodes:
            if node in variables or node.op in VARIABLES:
                waiting.append((node, Kind.WEIGHT))
            elif (node.op in PLACEHOLDERS and node not in self.settings) or node.op in sources:
                waiting.append((node, Kind.DATA))
            elif node.op in self._noise:
                waiting.append((node, Kind.NOISE))
        while waiting:
            self._spread(waiting, kinds)
            # What variables make of numbers that are drawn, or of a state of zeros, is data.
            waiting = [
                (node, Kind.DATA)
                for node, kind in kinds.items()
                if kind is Kind.WEIGHT
                and node.op in _CONTRACTIONS
                and not _all_weights(node, kinds)
            ]
        return kinds

    def _spread(self, waiting: list[tuple[Node, Kind]], kinds: dict[Node, Kind]) -> None:
        while waiting:
            node, kind = waiting.pop()
            if kinds[node] >= kind:
                continue
            kinds[node] = kind
            for consumer in self._graph.consumers[node]:
                if (
                    kinds[consumer] < kind
                    and consumer.op not in self._ends
                    and (kind is Kind.NOISE or consumer.op not in self._noise)
                    and consumer not in self.settings
                    and not _is_condition(node, consumer)
                    and self._averaged.get(consumer) is not node
                ):
                    waiting.append((consumer, kind))

    def _is_sink(self, node: Node) -> bool:
        kind = self.kinds[node]
        if kind < Kind.WEIGHT or any(c in self.forward for c in self._graph.consumers[node]):
            return False
        if node.op in VARIABLES or node.op in NEXT_ITERATION:
            return False
        return kind is Kind.DATA or not self._is_read(node)

    def _is_written(self, node: Node) -> bool:
        """Whether a variable or a queue takes the value of a node."""
        return any(
            is_effect(c) and not _LOOKED_AT.fullmatch(c.op) for c in self._graph.consumers[node]
        )

    def _is_read(self, node: Node) -> bool:
        """Whether a node gives out a variable as it is, which nobody looks at."""
        for _ in range(16):
            if node.op in VARIABLES or node.op == "Const":
                return True
            is_switch = node.op in ("Switch", "RefSwitch")
            if not (node.op in READS or is_switch) or not node.inputs:
                return False
            node = node.inputs[0].node
        return False

    def _is_restored(self, node: Node) -> bool:
        """Whether an assignment restores a variable."""
        source = node.inputs[1].node
        for _ in range(4):
            if source.op.startswith("Restore"):
                return True
            if source.op not in ("Identity", "Reshape", "Cast") or not source.inputs:
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

    def _ancestors(
        self, nodes: Iterable[Node], without: Mapping[Node, Node] | None = None
    ) -> set[Node]:
        """Return forward nodes and all that they need, but for one input each of some."""
        left = without or {}
        return _reached(
            nodes,
            lambda node: [
                source
                for source, _ in node.inputs
                if source in self.forward and left.get(node) is not source
            ],
        )


_CONTRACTIONS = ops(
    "MatMul BatchMatMul BatchMatMulV2 BatchMatMulV3 Einsum Conv2D Conv3D Conv2DBackpropInput"
)


def _all_weights(node: Node, kinds: Mapping[Node, Kind]) -> bool:
    operands = node.inputs[1:] if node.op.endswith("BackpropInput") else node.inputs[:2]
    return all(kinds[source] is Kind.WEIGHT for source, _ in operands)


_ASSIGNMENT = re.compile(r"Assign(Add|Sub)?(VariableOp)?")
_LOOKED_AT = re.compile(r".*Summary(V2)?|Assert|PrintV2|NoOp|Save.*")
_BOOL = 10


def _is_condition(node: Node, consumer: Node) -> bool:
    """Whether a node only decides which way another one's data go."""
    return consumer.op in ("Switch", "RefSwitch") and all(
        port for port, (source, _) in enumerate(consumer.inputs) if source is node
    )


def _is_loop_state(node: Node) -> bool:
    """Whether a node hands the state of a loop around, which nobody can look at or asked for."""
    return node.op in _LOOP_STATE or (
        node.op == "Identity" and node.inputs[0].node.op in ("Switch", "RefSwitch")
    )


_PASSES_NUMBERS = frozenset(
    {"Identity", "Enter", "RefEnter", "Cast", "Neg", "Reciprocal", "Inv", "Const", "Switch"}
)
_TAKES_NUMBERS = ops("""
    Add AddV2 Sub Mul RealDiv Div Maximum Minimum Less LessEqual Greater GreaterEqual Equal Pow
    Merge Select SelectV2 RandomUniform LogicalAnd LogicalOr LogicalNot
    """)


def is_effect(node: Node) -> bool:
    """Whether a node changes a state or writes something, rather than to compute."""
    return _is_effect(node.op)


def _is_effect(op: str) -> bool:
    return op not in _NO_EFFECT and _EFFECT.fullmatch(op) is not None


def _reached(begin: Iterable[Node], following: Callable[[Node], Iterable[Node]]) -> set[Node]:
    found = set(begin)
    waiting = list(found)
    while waiting:
        for node in following(waiting.pop()):
            if node not in found:
                found.add(node)
                waiting.append(node)
    return found
