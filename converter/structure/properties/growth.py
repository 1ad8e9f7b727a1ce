"""Whether units can be added to a width so that nothing else changes, and what they may hold.

Where everything that takes a width contracts it with a variable, the variable's new entries are
zero, and what makes the new units may be anything. Where something sums over the width by itself,
or contracts it with data, the new units have to be zero there: they are if what makes them is, and
if what stands between keeps a zero a zero.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from collections.abc import Set as AbstractSet

from converter.graph.node import Node, Output
from converter.graph.ops import VARIABLES, ops
from converter.structure.axes.axis import AVERAGING, SINGLING, Growth, Touch
from converter.structure.properties.facts import Facts, Place
from converter.structure.tensors.analysis import Analysis
from converter.structure.tensors.atoms import Atom, find, leaves
from converter.structure.tensors.flow import Kind

NEVER: frozenset[Touch] = SINGLING | AVERAGING | {"extreme"}
"""These see units that are zero, too."""

_SUMS: tuple[Touch, ...] = ("sum", "square sum", "norm", "self paired")

_KEEPS = ops("""
    Identity RefIdentity ReadVariableOp Reshape Transpose ExpandDims Squeeze ConcatV2 Concat Split
    SplitV Slice
    StridedSlice Pack Unpack Tile Pad BroadcastTo Gather GatherV2 Sum Mean Max Min AvgPool MaxPool
    DepthwiseConv2dNative Cast Neg Enter RefEnter Exit RefExit Switch RefSwitch Merge RefMerge
    NextIteration StopGradient Select SelectV2 AddN ReverseSequence ReverseV2 Reverse Cumsum
    TensorArrayV3 TensorArrayV2 TensorArrayWriteV3 TensorArrayWriteV2 TensorArrayReadV3
    TensorArrayReadV2 TensorArrayScatterV3 TensorArrayScatterV2 TensorArrayGatherV3
    TensorArrayGatherV2 TensorListFromTensor TensorListSetItem TensorListGetItem TensorListStack
    TensorListReserve Fill ZerosLike Placeholder PlaceholderWithDefault _Join _Loop _Return
    Relu LeakyRelu Abs Tanh Elu Selu Relu6 Softsign Erf Sin Sinh Asinh Atan Sign Square Sqrt Round
    Floor Ceil Rint Expm1 Log1p FusedBatchNorm FusedBatchNormV2 FusedBatchNormV3 BlockLSTM
    BlockLSTMV2 LSTMBlockCell GRUBlockCell SquaredDifference Maximum Minimum Const EnsureShape
    DynamicStitch DynamicPartition SegmentSum UnsortedSegmentSum SpaceToBatchND BatchToSpaceND
    ResizeBilinear ResizeNearestNeighbor
    """)
# What has a pole at zero, and in which of its operands.
_POLES = {
    **dict.fromkeys(ops("RealDiv Div"), 1),
    **dict.fromkeys(ops("Reciprocal Inv Log Rsqrt"), 0),
}
_BATCH_NORMS = ops("FusedBatchNorm FusedBatchNormV2 FusedBatchNormV3")
_ADDS = ops("Add AddV2 Sub BiasAdd")
_CONTRACTS = ops("MatMul BatchMatMul BatchMatMulV2 BatchMatMulV3 Einsum")


class Carriers:
    """Which nodes give out tensors that have a width, once nothing is tied any more."""

    def __init__(self, analysis: Analysis) -> None:
        self._by_atom: dict[Atom, set[Node]] = {}
        known: dict[Atom, list[Atom]] = {}
        for node, tensors in analysis.tensors.items():
            for tensor in tensors:
                axes = tensor.element.axes if tensor.element is not None else tensor.axes
                for root in map(find, axes or ()):
                    if root not in known:
                        known[root] = leaves(root)
                    for atom in known[root]:
                        self._by_atom.setdefault(atom, set()).add(node)

    def of(self, atom: Atom) -> AbstractSet[Node]:
        """Return the nodes of a width."""
        return self._by_atom.get(atom, frozenset())


def growth(analysis: Analysis, fact: Facts, carriers: Carriers) -> Growth:
    """Tell how a width can be grown."""
    touches = fact.touches
    if not NEVER.isdisjoint(touches):
        return "none"
    normed = "weight norm" in touches and not _is_only_consumed(analysis, fact)
    if not normed and all(what not in touches for what in _SUMS):
        return "any"
    zeros = _Zeros(analysis, fact, carriers)
    for node, what in _sums(analysis, fact.atom):
        operands = node.inputs if what == "self paired" else node.inputs[:1]
        found = [zeros.is_zero(output) for output in operands]
        if not (any(found) if what == "self paired" else all(found)):
            return "none"
    return "zero"


def stays_zero(analysis: Analysis, fact: Facts, carriers: Carriers) -> bool:
    """Tell whether units that are made of zeros reach all that consumes them as zeros.

    Then neither side gets a gradient if both are zero: a unit that is zero in what makes it and in
    what takes it is dead to training.
    """
    if "lookup" in fact.touches or "sum" in fact.touches or not fact.by_use("consume"):
        return False
    zeros = _Zeros(analysis, fact, carriers)
    for found in fact.uses.values():
        if (node := found.get("consume")) is None:
            continue
        taken = [output for output in node.inputs if zeros.is_carrier(output)]
        data = [o for o in taken if not analysis.tensor(o).origins]
        if any(not zeros.is_zero(output) for output in data):
            return False
    return True


def mark_poles(analysis: Analysis, fact: Facts, carriers: Carriers) -> None:
    """Mark what gives infinities for units that are zero: nothing takes these off again.

    They are told apart by when: `pole` if what makes the units is zero, `constant pole` where it
    is not made, but follows, so that it is zero whatever makes the units.
    """
    ways: tuple[tuple[Touch, _Zeros], ...] = (
        ("pole", _Zeros(analysis, fact, carriers)),
        ("constant pole", _Zeros(analysis, fact, carriers, made=False)),
    )
    for node in analysis.events:
        place = _POLES.get(node.op)
        if place is None or place >= len(node.inputs):
            continue
        for what, zeros in ways:
            if zeros.is_zero(node.inputs[place]):
                fact.touches.setdefault(what, node)


def _sums(analysis: Analysis, atom: Atom) -> Iterable[tuple[Node, Touch]]:
    for node, events in analysis.events.items():
        for event in events:
            if event.what in _SUMS and atom in leaves(event.atom):
                yield node, event.what


def _is_only_consumed(analysis: Analysis, fact: Facts) -> bool:
    """Whether the variables whose norm is taken over a width do nothing but consume it."""
    for node, events in analysis.events.items():
        if not any(e.what == "weight norm" and fact.atom in leaves(e.atom) for e in events):
            continue
        tensor = analysis.tensor(node.inputs[0])
        for axis, atom in enumerate(tensor.axes or ()):
            if fact.atom not in leaves(atom):
                continue
            for origin in tensor.origin(axis):
                uses = fact.uses.get(Place(origin.variable, origin.axis), {})
                if set(uses) != {"consume"}:
                    return False
    return True


class _Zeros:
    """Which tensors are zero in the new units of a width, if what makes these is zero.

    Args:
        made: whether it is; if not, what is zero then is so by itself.
    """

    def __init__(
        self, analysis: Analysis, fact: Facts, carriers: Carriers, *, made: bool = True
    ) -> None:
        self._analysis = analysis
        self._fact = fact
        self._made = made
        self._carriers = carriers.of(fact.atom)
        # All are taken to be zero until one is seen not to be: so a loop's state may be.
        self._others: set[Node] = set()
        waiting = list(self._carriers)
        while waiting:
            node = waiting.pop()
            if node in self._others or self._stays_zero(node):
                continue
            self._others.add(node)
            waiting += [c for c in analysis.graph.consumers[node] if c in self._carriers]

    def is_carrier(self, output: Output) -> bool:
        return output.node in self._carriers

    def is_zero(self, output: Output) -> bool:
        return output.node in self._carriers and output.node not in self._others

    def _stays_zero(self, node: Node) -> bool:
        if node.op in VARIABLES or node in self._analysis.variables:
            return self._is_filled_with_zeros(node)
        if any(role.use == "produce" for role in self._analysis.roles.get(node, ())):
            return self._made
        inputs = node.inputs
        if node.op in _BATCH_NORMS:
            # Scale and variance divide and multiply; training mode has no mean of its own.
            inputs = tuple(inputs[k] for k in (0, 2, 3) if k < len(inputs))
        taken = [o for o in inputs if o.node in self._carriers]
        zero = [self.is_zero(output) for output in taken]
        if node.op == "Mul" or node.op in _CONTRACTS:
            return any(zero)
        if node.op in ("RealDiv", "Div"):
            return self.is_zero(node.inputs[0]) and node.inputs[1].node not in self._carriers
        if node.op in _ADDS:
            return all(zero) and all(self._adds_nothing(o) for o in node.inputs if o not in taken)
        if node.op == "Const":
            return self._analysis.tensor(Output(node, 0)).number == 0
        return node.op in _KEEPS and all(zero)

    def _adds_nothing(self, output: Output) -> bool:
        return self._analysis.tensor(output).number == 0

    def _is_filled_with_zeros(self, node: Node) -> bool:
        """Whether new entries of a variable are zero: all but what scales."""
        if self._analysis.flow.kinds[node] is not Kind.WEIGHT:
            return False
        names = self._names(node)
        uses = {
            use
            for place, found in self._fact.uses.items()
            if place.variable in names
            for use in found
        }
        return uses.isdisjoint(("gain", "variance")) and (self._made or "produce" not in uses)

    def _names(self, node: Node) -> Collection[str]:
        origins = self._analysis.variables[node].origins or ()
        return {origin.variable for axis in origins for origin in axis}
