"""What a graph says of layers: what is computed with which variable, and what a cell adds."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from converter.conventions.layers import Cell, Kind
from converter.conventions.plain import Told
from converter.errors import InputError
from converter.graph.node import Node, Output
from converter.graph.ops import (
    ACTIVATIONS,
    ADDS,
    BATCH_NORMS,
    BIAS_ADDS,
    COMPARING,
    JOINS,
    LSTM_BLOCKS,
    MATMULS,
    MERGES,
    PASSING,
    QUOTIENTS,
    RESHAPES,
    SLICES,
    SPLITS,
    ops,
)
from converter.graph.ordered import OrderedGraph, read_ordered
from converter.structure.tensors.flow import Flow
from converter.structure.tensors.variables import as_opened, bind, variable_of

if TYPE_CHECKING:
    from converter.checkpoint import Checkpoint

_ORDER = "its graph has its gates in another order than its name says"
_MAX_NODES = 400
_MAX_GATES = 4
_PASSES = PASSING | MERGES | {"Cast"}
_BROADCASTS = ADDS | BIAS_ADDS
_KINDS: Mapping[tuple[str, int], Kind] = {
    ("Conv2D", 1): "conv",
    ("Conv3D", 1): "conv",
    ("Conv2DBackpropInput", 1): "conv_transpose",
    ("Conv3DBackpropInputV2", 1): "conv_transpose",
    ("DepthwiseConv2dNative", 1): "depthwise",
    ("Gather", 0): "embedding",
    ("GatherV2", 0): "embedding",
    ("ResourceGather", 0): "embedding",
}
_NORM_LEAVES = ((1, "gamma"), (2, "beta"), (3, "moving_mean"), (4, "moving_variance"))
_BEHIND = _PASSES | _BROADCASTS | RESHAPES | ops("Sub Mul RealDiv")
_CUTS = SPLITS | SLICES
_SCALES = QUOTIENTS | {"Mul"}
_MIXES = ADDS | {"Mul"}
_MASKS = COMPARING | ops("Floor Const")


@dataclass(frozen=True)
class OfCell:
    """What a graph says of a cell.

    Attributes:
        forget_bias: what it adds to its forget gate; None where that is not seen.
        activations: what its gates go through, by `gate`, and what is new, by `new`.
        clip: at which number it cuts its state or its output; 0 where it does not.
        odd: what of it is not as its name says, as half a sentence; None where all is.
        is_skipped: whether what it takes is also mixed into what it gives.
    """

    forget_bias: float | None = None
    activations: Mapping[str, str] = field(default_factory=dict)
    clip: float = 0.0
    odd: str | None = None
    is_skipped: bool = False


class Seen:
    """What the graph of a checkpoint says of its variables.

    Args:
        graph: the graph.
        checkpoint: the variables under the names that the graph's savers have for them.
        now: the names that they have now, by these.
    """

    def __init__(self, graph: OrderedGraph, checkpoint: Checkpoint, now: Mapping[str, str]) -> None:
        self._graph = graph
        bound = bind(graph, checkpoint)
        self._forward = Flow(graph, bound).forward
        self._held: dict[Node, str] = {}
        self._nodes: dict[str, list[Node]] = {}
        for node, binding in bound.items():
            self._nodes.setdefault(now[binding.name], []).append(node)
            if binding.slice is None:
                self._held[node] = now[binding.name]

    def called(self, name: str) -> str | None:
        """Return the name that the graph has for a variable; None where it has none.

        A key that is the name of a variable is that one, though others may start from it, too.
        """
        names = [variable_of(node) for node in self._nodes.get(name, ())]
        return name if name in names else next(iter(names), None)

    def told(self, names: Iterable[str]) -> Told:
        """Return what is computed with the variables of these names."""
        kinds: dict[str, Kind] = {}
        biases: dict[str, str] = {}
        others: set[str] = set()
        uses = {name: list(self._uses(name)) for name in names}
        for name, taken in uses.items():
            found = {kind for node, port in taken if (kind := _kind(node, port))}
            # A table that is tied to logits lies as a table does, whichever way it is multiplied.
            if found and found <= {"embedding", "dense_transposed"}:
                kinds[name] = "embedding" if "embedding" in found else "dense_transposed"
            elif len(found) == 1:
                kinds[name] = found.pop()
            elif taken:
                others.add(name)
            for node, port in taken:
                if node.op in _BROADCASTS and (kernel := self._kernel_of(node, port)) is not None:
                    biases.setdefault(kernel, name)
        norms = dict(self._norms())
        epsilons = {
            held["moving_mean"]: value.f
            for node, held in norms.items()
            if (value := node.attributes.get("epsilon")) is not None
        }
        return Told(kinds, frozenset(others), biases, tuple(norms.values()), epsilons)

    def ops_of(self, name: str) -> frozenset[str]:
        """Return the ops that take a variable, and those that pass it on to them."""
        waiting = list(self._nodes.get(name, ()))
        seen = set(waiting)
        found = set()
        while waiting and len(seen) < _MAX_NODES:
            for consumer in self._graph.consumers[waiting.pop()]:
                if consumer in self._forward and consumer not in seen:
                    seen.add(consumer)
                    found.add(consumer.op)
                    if self._passes(consumer):
                        waiting.append(consumer)
        return frozenset(found)

    def cell(self, cell: Cell) -> OfCell:
        """Return what is seen of a cell."""
        return replace(self._cell(cell), is_skipped=self._is_skipped(cell))

    def is_lstm(self, cell: Cell) -> bool:
        """Return whether the graph computes an LSTM with what may be one by its shapes."""
        found = self._cell(cell)
        return any(True for _ in self._taken(cell)) and bool(found.activations) and not found.odd

    def _cell(self, cell: Cell) -> OfCell:
        for name in cell.members:
            for node, _ in self._uses(name):
                if node.op in LSTM_BLOCKS:
                    value = node.attributes.get("forget_bias")
                    clip = node.attributes.get("cell_clip")
                    # The op of the second version adds none; of the first, the default is one.
                    bias = 0.0 if node.op == "BlockLSTMV2" else 1.0 if value is None else value.f
                    return OfCell(
                        bias if math.isfinite(bias) else None,
                        {"gate": "sigmoid", "new": "tanh"},
                        max(0.0, clip.f) if clip is not None else 0.0,
                    )
        return self._of_blocks(cell)

    def _taken(self, cell: Cell) -> Iterator[Output]:
        """Yield what a cell takes beside its state: the first part of what its kernel multiplies.

        References:
            rnn_cell_impl.py of TensorFlow 1, `_Linear`: concat([inputs, state], 1) times kernel.
        """
        for name in cell.members:
            for node, port in self._uses(name):
                if node.op in LSTM_BLOCKS:
                    place = 0 if node.op == "LSTMBlockCell" else 1
                    yield from node.inputs[place : place + 1]
                elif node.op in MATMULS and port == 1:
                    joint = self._origin(node.inputs[0])
                    parts = joint.inputs[1:] if joint.op == "Concat" else joint.inputs[:-1]
                    if joint.op in JOINS and len(parts) == 2:
                        yield parts[0]

    def _is_skipped(self, cell: Cell) -> bool:
        for start in self._taken(cell):
            chain = [start]
            while len(chain) < _MAX_NODES and (before := self._undropped(chain[-1])) is not None:
                chain.append(before)
            own = {output.node for output in chain}
            for output in chain:
                if any(n.op in _MIXES and n not in own for n in self._consumers(output)):
                    return True
        return False

    def _undropped(self, output: Output) -> Output | None:
        """Return what a dropout, or what only passes it on, made a tensor of; None for others."""
        node = output.node
        if not node.inputs:
            return None
        if self._passes(node):
            return node.inputs[0]
        if node.op not in _SCALES:
            return None
        if node.op != "Mul":
            return node.inputs[0]
        scaled = [one for one in node.inputs if not self._is_mask(self._origin(one))]
        return scaled[0] if len(scaled) == 1 else None

    def _is_mask(self, node: Node) -> bool:
        """Whether a dropout multiplies with it: its mask, or the inverse of what it keeps."""
        if node.op in QUOTIENTS and node.inputs:
            node = self._origin(node.inputs[0])
        return node.op in _MASKS

    def _uses(self, name: str) -> Iterator[tuple[Node, int]]:
        """Yield what takes a variable, and as which of its inputs."""
        waiting = list(self._nodes.get(name, ()))
        seen = set(waiting)
        while waiting and len(seen) < _MAX_NODES:
            node = waiting.pop()
            for consumer in self._graph.consumers[node]:
                if consumer not in self._forward:
                    continue
                if self._passes(consumer) or self._joins(consumer, name):
                    if consumer not in seen:
                        if consumer.op in JOINS:
                            self._held[consumer] = name
                        seen.add(consumer)
                        waiting.append(consumer)
                    continue
                for port, output in enumerate(consumer.inputs):
                    if output.node is node:
                        yield consumer, port

    def _passes(self, node: Node) -> bool:
        """Whether a node gives on what it takes, but for axes of one entry.

        A product over several axes reshapes and transposes its kernel, mostly to what it was.
        """
        if node.op in _PASSES or node.op in ("ExpandDims", "Squeeze"):
            return True
        if node.op not in ("Reshape", "Transpose") or not node.inputs:
            return False
        shape = self._graph.declared(node, 0)
        before = self._graph.declared(*node.inputs[0])
        if shape is None or shape != before or None in shape:
            return False
        return node.op == "Reshape" or len(set(shape)) == len(shape)

    def _joins(self, node: Node, name: str) -> bool:
        """Whether a node joins the parts of a partitioned variable."""
        if node.op not in JOINS or len(self._nodes.get(name, ())) < 2:
            return False
        parts = [self._origin(output) for output in node.inputs]
        return sum(part in self._nodes[name] for part in parts) == len(self._nodes[name])

    def _origin(self, output: Output) -> Node:
        """Return the node behind all that only passes a value on."""
        node = output.node
        for _ in range(_MAX_NODES):
            if not node.inputs or not self._passes(node):
                break
            node = node.inputs[0].node
        return node

    def _kernel_of(self, node: Node, port: int) -> str | None:
        """Return the kernel of the layer that a bias is added to."""
        source = node.inputs[1 - port].node if len(node.inputs) == 2 else None
        for _ in range(_MAX_NODES):
            if source is None or not source.inputs:
                return None
            if source.op in MATMULS or (source.op, 1) in _KINDS:
                if len(source.inputs) < 2:
                    return None
                return self._held.get(self._origin(source.inputs[1]))
            if source.op not in _PASSES and source.op not in ("Reshape", "Squeeze"):
                return None
            source = source.inputs[0].node
        return None

    def _norms(self) -> Iterator[tuple[Node, Mapping[str, str]]]:
        for node in self._graph.nodes:
            if node.op in BATCH_NORMS and node in self._forward and len(node.inputs) > 4:
                held = {
                    leaf: self._held.get(self._origin(node.inputs[port]))
                    for port, leaf in _NORM_LEAVES
                }
                found = {leaf: name for leaf, name in held.items() if name is not None}
                if "moving_mean" in found and "moving_variance" in found:
                    yield node, found

    def _of_blocks(self, cell: Cell) -> OfCell:
        """Follow the blocks of a cell to what they go through."""
        if cell.source != "tf1":
            return self._of_keras(cell)
        if cell.is_gatewise:
            return self._of_gates(cell)
        blocks = {i: t for block, i in self._blocks(cell) if (t := self._through(block))}
        if cell.kind == "lstm" and set(blocks) == set(range(4)):
            gates = {blocks[i].activation for i in (0, 2, 3)}
            new = blocks[1].activation
            told = {"gate": gates.pop(), "new": new} if len(gates) == 1 else {}
            return OfCell(
                blocks[2].added, told, self._clip(cell, blocks[2].node), None if told else _ORDER
            )
        activations: dict[str, str] = {}
        if cell.kind == "gru" and len(found := {t.activation for t in blocks.values()}) == 1:
            activations["gate"] = found.pop()
        if cell.kind in ("gru", "rnn"):
            name = next(iter(cell.inputs["n" if cell.kind == "gru" else "h"].sources))
            for node, _ in self._uses(name):
                if node.op in MATMULS and (through := self._through(Output(node, 0))) is not None:
                    activations.setdefault("new", through.activation)
        return OfCell(None, activations)

    def _of_gates(self, cell: Cell) -> OfCell:
        """Follow the products of the gates of a cell that has a matrix for each."""
        found: dict[str, _Through] = {}
        states = {use for view in cell.states.values() for use in self._uses(view.sources[0])}
        if any(_kind(*use) == "dense_transposed" for use in states):
            return OfCell(odd="its graph multiplies its matrices from the other side")
        for gate, view in cell.inputs.items():
            for node, _ in self._uses(view.sources[0]):
                if node.op in MATMULS and (through := self._through(Output(node, 0))) is not None:
                    found.setdefault(gate, through)
        if set(found) != set(cell.inputs):
            return OfCell()
        gates = {found[gate].activation for gate in "ifo"}
        told = {"gate": gates.pop(), "new": found["g"].activation} if len(gates) == 1 else {}
        return OfCell(
            found["f"].added, told, self._clip(cell, found["f"].node), None if told else _ORDER
        )

    def _clip(self, cell: Cell, forget: Node) -> float:
        """Return at which number a cell cuts its state, or what is projected of its output."""
        starts = [
            Output(total, 0)
            for product in self._consumers(Output(forget, 0))
            if product.op == "Mul"
            for total in self._consumers(Output(product, 0))
            if total.op in ADDS
        ]
        if cell.projection is not None:
            uses = self._uses(cell.projection.sources[0])
            starts += [Output(node, 0) for node, _ in uses if node.op in MATMULS]
        for start in starts:
            for node in self._consumers(start):
                if node.op in ("Minimum", "Maximum", "ClipByValue"):
                    return abs(self._other(node, start) or 1.0)
        return 0.0

    def _of_keras(self, cell: Cell) -> OfCell:
        """Return the activations of a Keras layer, of which the most frequent is that of gates."""
        names = {
            s for gates in (cell.inputs, cell.states) for v in gates.values() for s in v.sources
        }
        found: list[str] = []
        for name in sorted(names):
            for node, _ in self._uses(name):
                starts = [Output(node, 0)]
                if node.op in _CUTS:
                    starts = [Output(node, port) for port in range(4)]
                for start in starts:
                    for after in self._after(start):
                        if (through := self._through(after)) is not None:
                            found.append(through.activation)
        gates = [one for one in found if "sigmoid" in one]
        new = [one for one in found if one == "tanh"]
        if cell.kind == "rnn":
            return OfCell(None, {"new": found[0]} if found else {})
        told = {"gate": gates[0]} if gates and len(set(gates)) == 1 else {}
        return OfCell(None, {**told, **({"new": "tanh"} if new else {})})

    def _after(self, start: Output) -> list[Output]:
        """Return the products behind a block of a kernel, or the blocks behind a product."""
        if start.node.op in MATMULS:
            split = self._split_behind(start)
            return [Output(n, p) for n, p in split] if split else [start]
        return [Output(node, 0) for node in self._consumers(start) if node.op in MATMULS]

    def _blocks(self, cell: Cell) -> Iterator[tuple[Output, int]]:
        """Yield the blocks of a cell's product with its kernel, and which each is."""
        for name in cell.members:
            for node, _ in self._uses(name):
                if node.op in MATMULS or node.op == "Conv2D":
                    for source, port in self._split_behind(Output(node, 0)):
                        yield Output(source, port), port

    def _split_behind(self, start: Output) -> list[tuple[Node, int]]:
        waiting, seen = [start.node], {start.node}
        while waiting and len(seen) < _MAX_NODES:
            for consumer in self._graph.consumers[waiting.pop()]:
                if consumer in seen or consumer not in self._forward:
                    continue
                count = consumer.integer("num_split")
                if consumer.op in SPLITS and 1 < count <= _MAX_GATES:
                    return [(consumer, port) for port in range(count)]
                if consumer.op in _BEHIND:
                    seen.add(consumer)
                    waiting.append(consumer)
        return []

    def _consumers(self, output: Output) -> list[Node]:
        return [
            node
            for node in self._graph.consumers[output.node]
            if output in node.inputs and node in self._forward
        ]

    def _through(self, start: Output) -> _Through | None:
        """Return the first activation behind a tensor, and the constant that is added before."""
        waiting: list[tuple[Output, float]] = [(start, 0.0)]
        seen = {start.node}
        while waiting and len(seen) < _MAX_NODES:
            output, added = waiting.pop(0)
            for node in self._consumers(output):
                if node in seen:
                    continue
                seen.add(node)
                if node.op in ACTIVATIONS:
                    return _Through(node, ACTIVATIONS[node.op], added)
                if node.op in _BEHIND:
                    if node.op in ("Mul", "RealDiv") and self._other(node, output) is None:
                        continue
                    more = self._other(node, output) if node.op in ADDS else None
                    waiting.append((Output(node, 0), added + (more or 0.0)))
        return None

    def _other(self, node: Node, output: Output) -> float | None:
        """Return the number that a node takes besides a tensor; None where it takes none."""
        others = [one for one in node.inputs if one != output]
        if not others:
            return None
        found = self._graph.constant(self._origin(others[0]))
        if found is None or found.values is None or len(set(found.values)) != 1:
            return None
        number = float(found.values[0])
        return number if math.isfinite(number) else None


@dataclass(frozen=True)
class _Through:
    node: Node
    activation: str
    added: float


def _kind(node: Node, port: int) -> Kind | None:
    if node.op in MATMULS:
        turned = [
            bool(node.integer(f"transpose_{side}") or node.integer(f"adj_{'xy'['ab'.index(side)]}"))
            for side in "ab"
        ]
        # On the left its rows are the outputs.
        is_turned = turned[1] if port == 1 else not turned[0]
        return "dense_transposed" if is_turned else "dense"
    return _KINDS.get((node.op, port))


def look(checkpoint: Checkpoint) -> tuple[Seen | None, str | None]:
    """Read the graph of a checkpoint, whatever strategies have made of its variables.

    Returns:
        What it says, or None without one that can be used; and why one cannot be used, or None.
    """
    try:
        graph = read_ordered(checkpoint)
        if graph is None:
            return None, None
        known, now = as_opened(checkpoint)
        return Seen(graph, known, now), None
    except InputError as error:
        return None, f"the graph is not used: {error}"
