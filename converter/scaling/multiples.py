"""By what each tensor is multiplied where kernels are, as far as the graph is homogeneous."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from converter.errors import PlanError
from converter.graph.node import Node, Output, Tensor
from converter.graph.ops import (
    ADDS,
    ARRAY_MOVES,
    BIAS_ADDS,
    CONTRACTIONS,
    DIVISIONS,
    JOINS,
    MOVES,
    REPEATS,
    REVERSES,
    SELECTS,
    SHAPE_ONLY,
    SLICES,
    SPLITS,
    STACKS,
    ops,
)
from converter.scaling.normed import adding_itself
from converter.structure.layers import Layer
from converter.structure.layers.chains import Chain
from converter.structure.layers.read import chains_of, kernels_of, tensor_of
from converter.structure.properties.classes import named
from converter.structure.structure import Structure

_SUMS = ADDS | BIAS_ADDS | ops("AddN Sub Maximum Minimum")
_PLACED = MOVES | JOINS | STACKS | SELECTS | SPLITS | SLICES | REPEATS | REVERSES | ARRAY_MOVES
_ALIKE = (
    _SUMS
    | _PLACED
    | ops("""
    Relu LeakyRelu Abs Neg Mean Sum Max Min MaxPool MaxPoolV2 AvgPool MaxPool3D AvgPool3D Pad
    DepthToSpace SpaceToDepth BatchToSpace BatchToSpaceND SpaceToBatch SpaceToBatchND Gather
    GatherV2 GatherNd ResizeBilinear ResizeNearestNeighbor Where
    """)
)
_CHOICES = SHAPE_ONLY | ops("ArgMax ArgMin")
_POWERS: Mapping[str, float] = {"Square": 2, "Sqrt": 0.5, "Rsqrt": -0.5}
_TOLERANCE = 1e-9


class NoMultiple(NamedTuple):
    """What makes that a tensor is no multiple of what it was.

    Attributes:
        why: half a sentence.
    """

    why: str


_Multiple = float | NoMultiple


class Multiples(NamedTuple):
    """By what tensors are multiplied.

    Attributes:
        linear: for each layer what its kernels make, biases included; 1 where that is not known to
            be anything else.
        outputs: the outputs, by the names of their nodes.
        tensors: whatever is another multiple than 1, by the names of nodes.
    """

    linear: tuple[float, ...]
    outputs: Mapping[str, float | NoMultiple]
    tensors: Mapping[str, float]


def multiples(
    structure: Structure,
    layers: Sequence[Layer],
    own: Sequence[float],
    outputs: Sequence[Tensor],
    now: Mapping[str, str],
) -> Multiples:
    """Follow factors of kernels through a graph.

    Args:
        structure: of a model with a graph.
        layers: of it.
        own: the factor of the kernels of each layer, positive. Biases are taken to be multiplied by
            what is made where they are added, and moments of batches likewise.
        outputs: of the model; none for what nothing follows in the graph.
        now: what layers call the variables of the graph, by their names in it.

    Raises:
        PlanError: something that a variable takes is no multiple of what it was.
    """
    return _Following(structure, layers, own, now).find(outputs)


class _Following:
    def __init__(
        self,
        structure: Structure,
        layers: Sequence[Layer],
        own: Sequence[float],
        now: Mapping[str, str],
    ) -> None:
        self._analysis = structure.graph.findings.analysis
        self._own = own
        self._chains = chains_of(structure)
        self._by_node = {node: chain for chain in self._chains for node in chain.nodes}
        self._layer_of = {id(c): _layer_of(c, layers, now) for c in self._chains}
        self._names = [(*layer.kernels, *layer.biases) for layer in layers]
        self._known: dict[Node, _Multiple] = {}
        self._later: list[tuple[Node, Output]] = []
        self._linear: dict[int, float] = {}
        self._between: dict[Node, float] = {}

    def find(self, outputs: Sequence[Tensor]) -> Multiples:
        flow = self._analysis.flow
        for node in self._analysis.graph.nodes:
            if node not in flow.telling or not self._analysis.is_data(Output(node, 0)):
                continue
            chain = self._by_node.get(node)
            if chain is None:
                self._known[node] = self._of_node(node)
            elif node is _last(chain):
                self._known[node] = self._of_chain(chain)
        for node, output in self._later:
            before, after = self._known.get(node, 1.0), self._known.get(output.node, 1.0)
            if not _are_one((before, after)):
                raise _refused(node.name, f"it goes round in {output.node.name}, more each time")
        linear = tuple(self._linear.get(index, 1.0) for index in range(len(self._own)))
        by_name = self._analysis.graph.by_name
        nodes = [by_name[t.node] for t in outputs if t.node in by_name] or flow.outputs
        found = {node.name: self._known[node] for node in nodes if node in self._known}
        numbers = {n.name: m for n, m in self._known.items() if isinstance(m, float) and m != 1}
        numbers |= {node.name: number for node, number in self._between.items()}
        return Multiples(linear, found, numbers)

    def _given(self, node: Node, inside: frozenset[Node] = frozenset()) -> list[_Multiple]:
        """Return the multiples of the data that a node takes; later ones are looked at later."""
        found: list[_Multiple] = []
        for output in node.inputs:
            if output.node in inside or not self._analysis.is_data(output):
                continue
            if output.node in self._known:
                found.append(self._known[output.node])
            elif output.node.order >= node.order or output.node in self._by_node:
                self._later.append((node, output))
        return found

    def _of_chain(self, chain: Chain) -> _Multiple:
        inside = frozenset(chain.nodes)
        given = [m for node in chain.nodes for m in self._given(node, inside)]
        index = self._layer_of[id(chain)]
        name = self._name(chain, index)
        broken = next((m for m in given if isinstance(m, NoMultiple)), None)
        if broken is not None:
            raise _refused(name, broken.why)
        if not _are_one(given):
            raise _refused(name, f"it takes {_told(given)} times what it did")
        own = 1.0 if index is None else self._own[index]
        linear = own * _first(given)
        if linear == 1:
            return 1.0
        if index is None:
            raise _refused(name, "it is in no layer that is known")
        if not math.isclose(self._linear.setdefault(index, linear), linear, rel_tol=_TOLERANCE):
            raise _refused(name, "it stands in several places, behind different multiples")
        return self._behind(chain, linear)

    def _behind(self, chain: Chain, linear: float) -> _Multiple:
        """Return what comes out of a chain whose kernels make a multiple."""
        if chain.linear is None:
            return NoMultiple(f"{named(chain.kernels[0])} gives no multiple")
        normalised = {n for n, p in chain.parts if p.use in ("mean", "variance")}
        self._between |= dict.fromkeys(chain.kernels, linear)
        for step in chain.steps:
            if step.what in ("normalise", "centre") or normalised & set(step.nodes):
                node = adding_itself(chain)
                return 1.0 if node is None else NoMultiple(f"{named(node)} gives no multiple")
            adds = step.what == "constant" and any(node.op in _SUMS for node in step.nodes)
            if adds or (step.what == "activate" and not step.is_homogeneous):
                return NoMultiple(f"{step.op} {step.nodes[0].name} gives no multiple")
            self._between[step.after.node] = linear
        return linear

    def _name(self, chain: Chain, index: int | None) -> str:
        names = self._names[index] if index is not None else ()
        return (*names, *(part.variable for _, part in chain.parts), _last(chain).name)[0]

    def _of_node(self, node: Node) -> _Multiple:
        given = self._given(node)
        if all(m == 1 for m in given) or node.op in _CHOICES:
            return 1.0
        broken = next((m for m in given if isinstance(m, NoMultiple)), None)
        if broken is not None:
            return broken
        numbers = [m for m in given if isinstance(m, float)]
        if node.op in _ALIKE and not _are_one(numbers):
            return NoMultiple(f"{named(node)} takes {_told(numbers)} times what it did")
        found = self._number(node, numbers)
        return NoMultiple(f"{named(node)} gives no multiple") if found is None else found

    def _number(self, node: Node, numbers: Sequence[float]) -> float | None:
        """Return the multiple of what a node gives; None where it gives none."""
        if node.op in _ALIKE:
            return None if self._adds_more(node) else numbers[0]
        if any(self._analysis.is_weight(output) for output in node.inputs) and node.op != "Mul":
            return None
        if node.op == "Mul" or node.op in CONTRACTIONS:
            return math.prod(numbers)
        if node.op in DIVISIONS:
            first = numbers[0] if self._analysis.is_data(node.inputs[0]) else 1.0
            second = numbers[-1] if self._analysis.is_data(node.inputs[1]) else 1.0
            return first / second
        return numbers[0] ** _POWERS[node.op] if node.op in _POWERS else None

    def _adds_more(self, node: Node) -> bool:
        """Whether a node adds what is not multiplied, or puts it beside what is."""
        if node.op not in _SUMS | JOINS | SELECTS:
            return False
        others = [o for o in node.inputs if not self._analysis.is_data(o)]
        if node.op in JOINS:
            others = [o for o in others if o != node.inputs[0 if node.op == "Concat" else -1]]
        if node.op in SELECTS:
            others = [o for o in others if o != node.inputs[0]]
        return any(self._analysis.tensor(output).number != 0 for output in others)


def _layer_of(chain: Chain, layers: Sequence[Layer], now: Mapping[str, str]) -> int | None:
    """Return the number of the layer that a chain is a place of; None where it is of none."""
    linear = None if chain.linear is None else tensor_of(chain.linear.output)
    kernels = tuple(now.get(name, name) for name in kernels_of(chain))
    for index, layer in enumerate(layers):
        if layer.kernels != kernels:
            continue
        places = {None if p.linear is None else p.linear.tensor for p in layer.places}
        if linear in places:
            return index
    return None


def _last(chain: Chain) -> Node:
    finished = chain.finished
    if chain.steps and finished is not None:
        return finished.output.node
    return max(chain.nodes, key=lambda node: node.order)


def _are_one(given: Sequence[_Multiple]) -> bool:
    numbers = [m for m in given if isinstance(m, float)]
    is_close = all(math.isclose(m, numbers[0], rel_tol=_TOLERANCE) for m in numbers)
    return len(numbers) == len(given) and is_close


def _told(given: Sequence[_Multiple]) -> str:
    return " and ".join(sorted({f"{m:g}" for m in given if isinstance(m, float)}))


def _first(given: Sequence[_Multiple]) -> float:
    return next((m for m in given if isinstance(m, float)), 1.0)


def _refused(name: str, why: str) -> PlanError:
    return PlanError(
        f"{name}: the network is no multiple of what it was: {why}; use --scale-biases scaled or "
        f"left"
    )
