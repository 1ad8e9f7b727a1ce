"""The tensors whose values are activations: which are measured, and for which variables."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from converter.checkpoint import Checkpoint
from converter.errors import InputError
from converter.forward.variables import variables_of
from converter.graph.node import Node, Output, Tensor
from converter.graph.ordered import OrderedGraph, read_ordered
from converter.graph.written import Graph, read_graph

Side = Literal["produced", "consumed"]


@dataclass(frozen=True, slots=True)
class Probe:
    """A tensor whose values are the activations of units.

    Attributes:
        tensor: which. A node of a function's body has the names of the calls before its own, as
            `converter.structure` names it.
        axis: of the units; negative ones are counted from the end.
        size: how many units there are.
        mask: a bool tensor [batch] of the same frame, which says what rows count; None for all.
        keeps: the value of the mask for which a row counts.
        for_: the variables, and their sides, that it is measured for.
    """

    tensor: Tensor
    axis: int
    size: int
    mask: Tensor | None
    keeps: bool
    for_: tuple[tuple[str, Side], ...]


_CONTRACTIONS = {
    "MatMul": 1,
    "BatchMatMul": 1,
    "BatchMatMulV2": 1,
    "Conv1D": 1,
    "Conv2D": 1,
    "Conv3D": 1,
}
_LOOKUPS = frozenset({"Gather", "GatherV2", "ResourceGather"})
_PER_UNIT = frozenset({"BiasAdd", "Add", "AddV2"}) | {
    f"FusedBatchNorm{version}" for version in ("", "V2", "V3")
}
_ACTIVATIONS = frozenset(
    {"Relu", "Relu6", "LeakyRelu", "Elu", "Selu", "Tanh", "Sigmoid", "Softplus", "Identity"}
)
_PASSING = frozenset({"Identity", "Enter", "RefEnter", "Switch", "RefSwitch", "ReadVariableOp"})
_MAX_PASSED = 64


def probes(checkpoint: Checkpoint) -> tuple[Probe, ...]:
    """Return what is to be measured for the variables that contractions and lookups take.

    Args:
        checkpoint: with a graph.

    Raises:
        InputError: it has no graph, or that is damaged.
    """
    graph, structure = read_graph(checkpoint), read_ordered(checkpoint)
    if graph is None or structure is None:
        raise InputError(
            f"{checkpoint.path}: it has no graph (.meta, .pb) in which it could be run"
        )
    return tuple(_Finder(checkpoint, graph, structure).find())


class _Finder:
    def __init__(self, checkpoint: Checkpoint, graph: Graph, structure: OrderedGraph) -> None:
        self._checkpoint = checkpoint
        self._held = variables_of(graph, set(checkpoint))
        self._nodes = structure.nodes
        self._after: dict[str, list[Node]] = {}
        for node in structure.nodes:
            for name in dict.fromkeys(source.node.name for source in node.inputs):
                self._after.setdefault(name, []).append(node)

    def find(self) -> Iterator[Probe]:
        found: dict[tuple[Tensor, int], list[tuple[str, Side]]] = {}
        for node in self._nodes:
            place = _CONTRACTIONS.get(node.op, 0 if node.op in _LOOKUPS else None)
            if place is None or len(node.inputs) < 2:
                continue
            name = self._variable(node.inputs[place])
            if name is None or len(self._checkpoint[name].shape) < 2:
                continue
            shape = self._checkpoint[name].shape
            rows, columns = shape[-2:]
            if node.integer("transpose_b") or node.integer("adj_y"):
                rows, columns = columns, rows
            end, others = self._end(node)
            for_ = found.setdefault((end, columns), [])
            for_ += [(name, "produced"), *((other, "produced") for other in others)]
            if node.op in _CONTRACTIONS:
                data = node.inputs[1 - place]
                taken = Tensor(data.node.name, data.port)
                found.setdefault((taken, rows), []).append((name, "consumed"))
        for (source, size), for_ in found.items():
            yield Probe(source, -1, size, None, False, tuple(dict.fromkeys(for_)))

    def _variable(self, source: Output) -> str | None:
        for _ in range(_MAX_PASSED):
            if source.node.name in self._held:
                held = self._held[source.node.name]
                return held.key if held.region is None and held.key in self._checkpoint else None
            if source.node.op not in _PASSING or not source.node.inputs:
                break
            source = source.node.inputs[0]
        return None

    def _end(self, node: Node) -> tuple[Tensor, list[str]]:
        """Return where the output of a layer is finished, and what else it takes until there."""
        others = []
        for _ in range(_MAX_PASSED):
            users = self._after.get(node.name, [])
            if len(users) != 1 or any(source.port for source in users[0].inputs[:1]):
                break
            (user,) = users
            rest = [source for source in user.inputs if source.node is not node]
            names = [self._variable(source) for source in rest]
            if user.op in _PER_UNIT and rest and all(names):
                others += [name for name in names if name is not None]
            elif user.op not in _ACTIVATIONS:
                break
            node = user
        return Tensor(node.name), others
