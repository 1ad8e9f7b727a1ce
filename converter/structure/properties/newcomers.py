"""What the entries of new units hold in every tensor of a graph, by what makes the units.

The numbers are followed as ranges, from variables to whatever takes the width. A loop is entered
with what is known, and gone round until nothing changes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Mapping, Sequence

from converter.graph.node import Node, Output
from converter.graph.ops import (
    ARRAY_MOVES,
    ARRAYS,
    BATCH_NORMS,
    CONTRACTIONS,
    JOINS,
    LOOKUPS,
    LSTM_BLOCKS,
    MATMULS,
    MOVES,
    QUOTIENTS,
    REPEATS,
    REVERSES,
    SLICES,
    SPLITS,
    STACKS,
    VARIABLES,
    ops,
)
from converter.structure.axes.axis import Touch
from converter.structure.properties.facts import Facts, Place
from converter.structure.properties.ranges import ANY, ONE, UNKNOWN, ZERO, Range, of_op
from converter.structure.tensors.analysis import Analysis, Tensor
from converter.structure.tensors.atoms import Atom, leaves
from converter.structure.tensors.flow import Kind

# What gives out some of what it takes, or numbers between these.
_MOVES = (
    MOVES
    | JOINS
    | SPLITS
    | SLICES
    | STACKS
    | REPEATS
    | LOOKUPS
    | REVERSES
    | ARRAYS
    | ARRAY_MOVES
    | ops("""
    ReadVariableOp Print TensorListFromTensor TensorListSetItem TensorListGetItem TensorListStack
    TensorListReserve DynamicStitch ParallelDynamicStitch DynamicPartition SpaceToBatchND
    BatchToSpaceND ResizeNearestNeighbor ResizeBilinear MaxPool MaxPoolV2 MaxPool3D AvgPool
    AvgPool3D Max Min Mean
    """)
)
_ADDS_UP = ops("""
    Sum SegmentSum UnsortedSegmentSum SparseSegmentSum SparseSegmentMean SparseSegmentSqrtN Cumsum
    EuclideanNorm
    """)
_REPEATS = REPEATS | LOOKUPS
_PADS = ops("Pad PadV2 MirrorPad")
PRODUCTS = CONTRACTIONS | ops("""
    SparseMatMul Conv2D Conv3D Conv2DBackpropInput Conv3DBackpropInputV2 DepthwiseConv2dNative
    SparseTensorDenseMatMul
    """)
_CELLS = LSTM_BLOCKS | ops("GRUBlockCell")
_DIVISIONS = QUOTIENTS | ops("FloorDiv FloorMod Mod")
# Nobody looks up what is new.
_TABLES = LOOKUPS | ops("""
    GatherNd ResourceGatherNd SparseTensorDenseMatMul SparseSegmentSum SparseSegmentMean
    SparseSegmentSqrtN
    """)
OVER_ALL: frozenset[Touch] = frozenset(
    ["paired", "self paired", "sum", "square sum", "norm", "weight norm", "extreme"]
)
"""What is one number of all units."""
# After so many changes a number grows for ever, as a sum does in a loop.
_MOST_CHANGES = 4
_MAX_DEPTH = 64
# Gains that multiply a state inside of gates: a new one starts as kernels do, not as 1.
_PEEPHOLES = ("_diag", "_peephole", "peephole")


class Carriers:
    """Which nodes give out a tensor with an axis of each leaf, and which sum over it.

    Found once for all widths.
    """

    def __init__(self, analysis: Analysis) -> None:
        self._found: dict[Atom, dict[Node, None]] = {}
        self._takers: dict[Atom, dict[Node, None]] = {}
        self._sums: dict[Atom, dict[tuple[Node, Output], list[int]]] = {}
        self._known: dict[int, list[Atom]] = {}
        self.turns: dict[Node, list[Node]] = {}
        """What takes a node into a loop's next turn."""
        for before, after in analysis.graph.turned.items():
            self.turns.setdefault(after.node, []).append(before)
        for node, tensors in analysis.tensors.items():
            for tensor in tensors:
                axes = tensor.element.axes if tensor.element is not None else tensor.axes
                for atom in axes or ():
                    for leaf in self.leaves(atom):
                        self._found.setdefault(leaf, {})[node] = None
            if node.op in PRODUCTS and node in analysis.flow.telling:
                self._add_sums(analysis, node)

        for node, roles in analysis.roles.items():
            if node.op not in _TABLES:
                self._add_takers(node, (role.atom for role in roles if role.use == "consume"))
        for node, events in analysis.events.items():
            self._add_takers(node, (event.atom for event in events if event.what in OVER_ALL))

    def _add_takers(self, node: Node, atoms: Iterable[Atom]) -> None:
        for atom in atoms:
            for leaf in self.leaves(atom):
                self._takers.setdefault(leaf, {})[node] = None

    def _add_sums(self, analysis: Analysis, node: Node) -> None:
        for output in node.inputs:
            for axis in contracted(analysis, node, output):
                for leaf in self.leaves((analysis.tensor(output).axes or ())[axis]):
                    self._sums.setdefault(leaf, {}).setdefault((node, output), []).append(axis)
                    self._takers.setdefault(leaf, {})[node] = None

    def leaves(self, atom: Atom) -> list[Atom]:
        """Return the leaves that an axis is made of."""
        if id(atom) not in self._known:
            self._known[id(atom)] = leaves(atom)
        return self._known[id(atom)]

    def of(self, atom: Atom) -> Collection[Node]:
        """Return the nodes of a leaf, in the order of the graph."""
        return self._found.get(atom, {}).keys()

    def takers(self, atom: Atom) -> Collection[Node]:
        """Return the nodes that sum over a leaf, or take the largest of it."""
        return self._takers.get(atom, {}).keys()

    def sums(self, atom: Atom) -> Mapping[tuple[Node, Output], Sequence[int]]:
        """Return the products that sum over a leaf: by operand, over which of its axes."""
        return self._sums.get(atom, {})


class Newcomers:
    """What new units of a width hold.

    Args:
        analysis: of the graph.
        fact: what is known of the width.
        carriers: which nodes have the width.
        made: what variables that make units hold for new ones.
        old: whether it is asked for the units that are there, of which only that is known.
    """

    def __init__(
        self,
        analysis: Analysis,
        fact: Facts,
        carriers: Carriers,
        made: Range,
        *,
        old: bool = False,
    ) -> None:
        self._analysis = analysis
        self._fact = fact
        self._made = made
        self._old = old
        self._weights: dict[tuple[Node, frozenset[Place] | None], Range] = {}
        self._carriers = carriers.of(fact.atom)
        self._after = analysis.graph.turned
        self._turns = carriers.turns
        self._found: dict[Node, Range] = {}
        self.poles: dict[Node, None] = {}
        """The nodes that may give infinities or NaN, though they take none."""
        self._follow()

    def of(self, output: Output, without: Collection[int] = ()) -> Range | None:
        """Return what a tensor holds for new units; None where it has not the width.

        Args:
            output: the tensor.
            without: axes of which new entries are left aside.
        """
        if output.node not in self._carriers:
            return None
        tensor = self._analysis.tensor(output)
        axes = [a for a in self.axes(output) if a not in without]
        if not axes and (without or tensor.element is None):
            return None
        if self._analysis.flow.kinds[output.node] is not Kind.WEIGHT:
            return self._found.get(output.node, UNKNOWN)
        if tensor.origins is None:
            return self._weight(output.node, None)
        places = {Place(o.variable, o.axis) for axis in axes for o in tensor.origins[axis]}
        return self._weight(output.node, frozenset(places))

    def axes(self, output: Output) -> list[int]:
        """Return which axes of a tensor are made of the width."""
        axes = self._analysis.tensor(output).axes or ()
        return [k for k, atom in enumerate(axes) if self._fact.atom in leaves(atom)]

    def _follow(self) -> None:
        kinds, consumers = self._analysis.flow.kinds, self._analysis.graph.consumers
        nodes = [n for n in self._carriers if kinds[n] is not Kind.WEIGHT]
        waiting, queued = deque(nodes), set(nodes)
        changes: dict[Node, int] = {}
        while waiting:
            node = waiting.popleft()
            queued.discard(node)
            new = self._made_by(node)
            if new is None:
                continue
            known = self._found.get(node)
            joined = new if known is None else known.joined(new)
            if joined == known:
                continue
            changes[node] = changes.get(node, 0) + 1
            if changes[node] > _MOST_CHANGES:
                joined = ANY if joined.is_finite else UNKNOWN
            self._found[node] = joined
            for consumer in (*consumers[node], *self._turns.get(node, ())):
                is_followed = consumer in self._carriers and kinds[consumer] is not Kind.WEIGHT
                if is_followed and consumer not in queued:
                    queued.add(consumer)
                    waiting.append(consumer)

    def _made_by(self, node: Node) -> Range | None:
        """Return what a node gives for new units; None while what it takes is not known."""
        if node in self._analysis.variables or node.op in VARIABLES:
            return self._held(None, node)
        taken = self._taken(node)
        waiting = [
            o
            for o in taken
            if self._analysis.flow.kinds[o.node] is not Kind.WEIGHT and o.node not in self._found
        ]
        if waiting and (node.op not in _MOVES or len(waiting) == len(taken)):
            return None
        if (number := self._analysis.tensor(Output(node, 0)).number) is not None:
            return Range(number, number)
        if not taken and node.op not in _MOVES:
            return self._brought(node)
        turned = [self._after[node]] if node in self._after else []
        known = [o for o in (*node.inputs, *turned) if o not in waiting]
        return self._computed(node, {o: self._input(node, o) for o in known})

    def _brought(self, node: Node) -> Range:
        """Return what a node holds for new units that takes nothing of the width."""
        if self._analysis.flow.kinds[node] is not Kind.DATA:
            return ANY
        # Nobody names a new entry yet; and a state that is fed is what came out of it before.
        return ZERO if node.op == "OneHot" else self._made

    def _taken(self, node: Node) -> list[Output]:
        turned = [self._after[node]] if node in self._after else []
        return [o for o in (*node.inputs, *turned) if o.node in self._carriers]

    def _input(self, node: Node, output: Output) -> Range | None:
        return self.of(output, contracted(self._analysis, node, output))

    def _computed(self, node: Node, operands: Mapping[Output, Range | None]) -> Range:
        """Return what a node makes of what it takes; None stands for what has not the width."""
        taken = [r for r in operands.values() if r is not None]
        if node.op in PRODUCTS:
            if not all(r.is_finite for r in taken):
                return self._pole(node, taken)
            decides = any if self._is_of_shared(node) else all
            return ZERO if taken and decides(r.is_zero for r in taken) else ANY
        if node.op in _CELLS:
            finite = all(r.is_finite for r in taken)
            return ZERO if all(r.is_zero for r in taken) else ANY if finite else UNKNOWN
        if node.op in BATCH_NORMS:
            return self._normalised(node, operands)
        if node.op in _REPEATS and not any(self.axes(output) for output in node.inputs):
            # New ones are old ones once more.
            return ANY
        if node.op in _MOVES:
            return _join(taken)
        if node.op in _PADS:
            return _join([*taken, ZERO])
        if node.op in _ADDS_UP:
            return _multiple(_join(taken))
        if node.op in ("Softmax", "LogSoftmax"):
            is_finite = all(r.is_finite for r in taken)
            return Range(0.0, 1.0) if is_finite and node.op == "Softmax" else _any(taken)
        if node.op in ("Prod", "Cumprod", "SegmentMean"):
            return ZERO if all(r.is_zero for r in taken) else _any(taken)
        ranges = {o: self._other(o) if r is None else r for o, r in operands.items()}
        if node.op in _DIVISIONS and len(node.inputs) == 2 and node.inputs[1] in operands:
            divisor = node.inputs[1]
            if operands[divisor] is None and self._analysis.tensor(divisor).number is None:
                # What old units are divided by is not zero.
                return ZERO if taken and all(r.is_zero for r in taken) else _any(taken)
        found = of_op(node, [ranges[o] for o in node.inputs if o in ranges])
        if found is None or not found.is_finite:
            return self._pole(node, taken)
        return found

    def _is_of_shared(self, node: Node) -> bool:
        """Whether what is new in one operand of a product meets what is new in the other."""
        if node.op == "DepthwiseConv2dNative":
            return True
        sides = [self.axes(output) for output in node.inputs[:2]]
        ranks = [len(self._analysis.tensor(output).axes or ()) for output in node.inputs[:2]]
        return node.op.startswith("BatchMatMul") and all(
            bool(axes) and max(axes) < rank - 2 for axes, rank in zip(sides, ranks, strict=True)
        )

    def _pole(self, node: Node, taken: Iterable[Range]) -> Range:
        if all(r.is_finite for r in taken):
            self.poles[node] = None
        return UNKNOWN

    def _other(self, output: Output) -> Range:
        """Return what a tensor without the width may hold: what it held, which was finite."""
        number = self._analysis.tensor(output).number
        return ANY if number is None else Range(number, number)

    def _normalised(self, node: Node, operands: Mapping[Output, Range | None]) -> Range:
        x, _, shift, *moments = [operands.get(output) for output in node.inputs]
        if not all(r is None or r.is_finite for r in operands.values()):
            return UNKNOWN
        if len(moments) > 1 and (variance := moments[1]) is not None and variance.low < 0:
            return self._pole(node, ())
        parts = [x, shift, *moments[:1]]
        return ZERO if all(part is None or part.is_zero for part in parts) else ANY

    def _weight(self, node: Node, places: frozenset[Place] | None, depth: int = 0) -> Range:
        """Return what a tensor made of variables holds where it is new along some of their axes.

        Args:
            node: what makes it.
            places: the axes; None for all that have the width.
            depth: how many nodes were passed on the way.
        """
        key = node, places
        if key not in self._weights:
            # A loop of variables alone would end up here again.
            self._weights[key] = UNKNOWN
            self._weights[key] = self._weight_of(node, places, depth)
        return self._weights[key]

    def _weight_of(self, node: Node, places: frozenset[Place] | None, depth: int) -> Range:
        if node in self._analysis.variables or node.op in VARIABLES:
            return self._held(places, node)
        number = self._analysis.tensor(Output(node, 0)).number
        if number is not None:
            return Range(number, number)
        if depth > _MAX_DEPTH:
            return UNKNOWN
        operands: dict[Output, Range | None] = {}
        for output in node.inputs:
            kind = self._analysis.flow.kinds[output.node]
            operands[output] = None
            if output.node in self._carriers and self._is_new(output, places):
                known = kind is Kind.WEIGHT
                found = self._found.get(output.node)
                if known:
                    found = self._weight(output.node, self._shared(output, places), depth + 1)
                elif found is None:
                    found = self._made_by(output.node)
                operands[output] = found or ZERO
        return self._computed(node, operands)

    def _shared(self, output: Output, places: frozenset[Place] | None) -> frozenset[Place] | None:
        return None if self._analysis.tensor(output).origins is None else places

    def _is_new(self, output: Output, places: frozenset[Place] | None) -> bool:
        origins = self._analysis.tensor(output).origins
        if places is None or origins is None:
            return bool(self.axes(output))
        return any(Place(o.variable, o.axis) in places for axis in origins for o in axis)

    def _held(self, places: frozenset[Place] | None, node: Node) -> Range:
        """Return what new entries of a variable are."""
        if self._old:
            return ANY
        tensor = self._analysis.variables.get(node, Tensor(None))
        own = {Place(o.variable, o.axis) for axis in tensor.origins or () for o in axis}
        own = {place for place in own if places is None or place in places}
        every = {Place(o.variable, o.axis) for axis in tensor.origins or () for o in axis}
        uses = {use for place in every for use in self._fact.uses.get(place, ())}
        if "variance" in uses:
            return ONE
        if "gain" in uses and sum(atom.size != 1 for atom in tensor.axes or ()) < 2:
            return self._made if any(is_peephole(place.variable) for place in every) else ONE
        return _join([self._filled(set(self._fact.uses.get(place, ()))) for place in own] or [ZERO])

    def _filled(self, uses: Collection[str]) -> Range:
        if "consume" in uses:
            is_lookup = "lookup" in self._fact.touches and not self._fact.by_use("produce")
            return self._made if is_lookup else ZERO
        return self._made if {"produce", "shift", "gain"}.intersection(uses) else ZERO


def is_peephole(variable: str) -> bool:
    """Whether the gains of a variable are of a peephole, of which new ones are not 1."""
    return variable.lower().rpartition("/")[2].endswith(_PEEPHOLES)


def reduced(analysis: Analysis, node: Node) -> list[int]:
    """Return which axes of its first input a reduction takes away; none where that is not known."""
    rank = len(analysis.tensor(node.inputs[0]).axes or ())
    if node.op == "L2Loss":
        return list(range(rank))
    values = analysis.tensor(node.inputs[1]).values if len(node.inputs) > 1 else None
    return sorted({value % rank for value in values or () if -rank <= value < rank})


def contracted(analysis: Analysis, node: Node, output: Output) -> list[int]:
    """Return over which axes of an input a node sums, of those that tell what it makes."""
    axes = analysis.tensor(output).axes
    if axes is None or node.op not in PRODUCTS:
        return []
    rank, place = len(axes), node.inputs.index(output)
    # What a damaged graph contracts may have too few axes for that.
    return [axis for axis in _contracted(node, place, rank) if 0 <= axis < rank]


def _contracted(node: Node, place: int, rank: int) -> list[int]:
    if node.op in MATMULS or node.op == "SparseMatMul":
        keys = ("transpose_a", "adj_x") if place == 0 else ("transpose_b", "adj_y")
        is_turned = any(node.integer(key) for key in keys)
        return [rank - 1 if (place == 0) != is_turned else rank - 2]
    if node.op == "Einsum":
        return _summed_by_equation(node, place, rank)
    if node.op in ("Conv2D", "Conv3D"):
        # A window that covers an axis whole sums over it; any other slides over no width.
        return list(range(1, rank)) if place == 0 else list(range(rank - 1))
    if node.op in ("Conv2DBackpropInput", "Conv3DBackpropInputV2"):
        channel = 1 if node.text("data_format").startswith("NC") else rank - 1
        return [channel] if place == 2 else [rank - 1]
    return []


def _summed_by_equation(node: Node, place: int, rank: int) -> list[int]:
    terms, _, result = node.text("equation").replace(" ", "").partition("->")
    labels = terms.split(",")
    if place >= len(labels):
        return []
    before, dots, after = labels[place].partition("...")
    found = [k for k, label in enumerate(before) if label not in result]
    start = rank - len(after)
    return found + [start + k for k, label in enumerate(after) if dots and label not in result]


def _join(ranges: Collection[Range]) -> Range:
    found: Range | None = None
    for other in ranges:
        found = other if found is None else found.joined(other)
    return ZERO if found is None else found


def _multiple(x: Range) -> Range:
    """Return the range of sums of such numbers."""
    low = 0.0 if x.low >= 0 else -float("inf")
    high = 0.0 if x.high <= 0 else float("inf")
    return Range(low, high, x.is_finite)


def _any(ranges: Iterable[Range]) -> Range:
    return ANY if all(r.is_finite for r in ranges) else UNKNOWN
