"""Rules of ops that sum, average, normalise or choose along an axis."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from converter.graph.node import Node
from converter.graph.ops import ops
from converter.structure.axes.axis import Touch
from converter.structure.tensors.analysis import Analysis, Cell, Pairing, Rule, Tensor, for_ops
from converter.structure.tensors.atoms import ONE, Atom, Clash, product
from converter.structure.tensors.flow import Kind
from converter.structure.tensors.rules.integers import axes_of

_FOLDS: dict[str, Callable[[list[int]], int]] = {
    "Sum": sum,
    "Max": max,
    "Min": min,
    "All": min,
    "Any": max,
}
_LINEAR = ops("Sum Mean")
_KINDS: Mapping[str, Touch] = {
    "Sum": "sum",
    "Mean": "mean",
    "EuclideanNorm": "norm",
    "Prod": "product",
}


def reduce(an: Analysis, node: Node, inputs: Sequence[Tensor]) -> Tensor:
    """Reduce some axes to one number."""
    x = inputs[0]
    if x.axes is None:
        return Tensor(None)
    reduced = axes_of(inputs[1], len(x.axes))
    gone = [x.axes[axis] for axis in reduced]
    if an.is_data(node.inputs[0]):
        _tell(an, node, gone)
        if node.op not in _LINEAR and any(atom is not ONE for atom in gone):
            others = [atom for axis, atom in enumerate(x.axes) if axis not in reduced]
            an.touch("nonlinear" if node.op == "Prod" else "homogeneous", others, node)
    elif an.is_weight(node.inputs[0]):
        an.touch("weight norm", gone, node)
    keep = node.integer("keep_dims") or node.integer("keepdims")
    kept = [axis for axis in range(len(x.axes)) if keep or axis not in reduced]
    axes = tuple(ONE if axis in reduced else x.axes[axis] for axis in kept)
    origins = None
    if x.origins is not None:
        origins = tuple(
            frozenset(o._replace(how=o.how or "norm") for o in x.origins[axis])
            if axis not in reduced
            else frozenset()
            for axis in kept
        )
    return Tensor(axes, _cells(node, x), x.number if not gone else None, origins)


def _tell(an: Analysis, node: Node, gone: Sequence[Atom]) -> None:
    """Say what a reduction does to the axes that it takes away."""
    source = node.inputs[0].node
    telling = [c for c in an.graph.consumers[source] if c in an.flow.telling]
    is_only_summed = all(c.op in ("Sum", "Mean") for c in telling)
    if node.op in ("Sum", "Mean") and is_only_summed:
        if source.op in ("Square", "SquaredDifference"):
            an.retract(source, gone)
            what: Touch
            if source.op == "Square":
                what = "square sum" if node.op == "Sum" else "square mean"
            else:
                what = "sum" if node.op == "Sum" else "variance"
            an.touch(what, gone, node)
            return
        if source.op == "Mul" and node.op == "Sum":
            _contract(an, node, source, gone)
            return
    an.touch(_KINDS.get(node.op, "extreme"), gone, node)


def _contract(an: Analysis, node: Node, source: Node, gone: Sequence[Atom]) -> None:
    """A product that is summed is a contraction: a variable in it consumes."""
    roles = an.retract(source, gone)
    for role in roles:
        an.use([role.origin], role.atom, "consume", node)
    left, right = source.inputs
    if left == right:
        an.touch("square sum", gone, node)
    elif an.is_data(left) and an.is_data(right):
        an.touch("paired", gone, node)
        an.pairings.extend(Pairing(source, atom, left, right) for atom in gone if atom is not ONE)
    elif not roles:
        an.touch("sum", gone, node)


def _cells(node: Node, x: Tensor) -> tuple[Cell, ...] | None:
    if x.cells is None or len(x.axes or ()) > 1:
        return None
    values = x.values
    if node.op == "Prod":
        atoms = [_sized(cell) for cell in x.cells]
        value = None
        if values is not None:
            value = 1
            for number in values:
                value *= number
        known = [atom for atom in atoms if atom is not None]
        return (Cell(value, product(known) if len(known) == len(atoms) else None),)
    if values and node.op in _FOLDS:
        return (Cell(_FOLDS[node.op](values)),)
    return None


def _sized(cell: Cell) -> Atom | None:
    return cell.atom if cell.atom is not None or cell.value != 1 else ONE


def softmax(an: Analysis, node: Node, inputs: Sequence[Tensor]) -> Tensor:
    """Normalise along the last axis."""
    x = inputs[0]
    if x.axes is not None and an.kind(node.inputs[0]) >= Kind.WEIGHT:
        an.touch("softmax", x.axes[-1:], node)
        an.touch("nonlinear" if an.is_data(node.inputs[0]) else "weight", x.axes[:-1], node)
    return Tensor(x.axes)


def cross_entropy(an: Analysis, node: Node, inputs: Sequence[Tensor]) -> list[Tensor]:
    """Compare logits with labels: both classes are the same ones."""
    logits, labels = inputs
    if logits.axes is None:
        return [Tensor(None), Tensor(None)]
    if node.op.startswith("Sparse"):
        if labels.axes:
            an.tie(logits.axes[0], labels.axes[0], node)
    elif labels.axes is not None:
        an.broadcast((logits, labels), node)
    what: Touch = "softmax" if node in an.flow.looked_at else "cross entropy"
    an.touch(what, logits.axes[-1:], node)
    return [Tensor(logits.axes[:-1]), logits]


def choose(an: Analysis, node: Node, inputs: Sequence[Tensor]) -> Tensor:
    """Give the place of the largest entry along an axis."""
    x = inputs[0]
    if x.axes is None:
        return Tensor(None)
    axis = axes_of(inputs[1], len(x.axes))[0]
    an.touch("choice", [x.axes[axis]], node)
    rest = x.axes[:axis] + x.axes[axis + 1 :]
    an.touch("nonlinear", rest, node)
    return Tensor(rest)


def top(an: Analysis, node: Node, inputs: Sequence[Tensor]) -> list[Tensor]:
    """Give the largest entries of the last axis, and their places."""
    x = inputs[0]
    if x.axes is None:
        return [Tensor(None), Tensor(None)]
    an.touch("choice", x.axes[-1:], node)
    an.touch("nonlinear", x.axes[:-1], node)
    count = inputs[1].cells if len(inputs) > 1 else None
    last = an.sized(count[0], node) if count else Atom(node.integer("k") or None)
    an.touch("index", [last], node)
    found = Tensor((*x.axes[:-1], last))
    return [found, found]


def among_top(an: Analysis, node: Node, inputs: Sequence[Tensor]) -> Tensor:
    """Tell whether a wanted entry is one of the largest ones of the last axis."""
    x = inputs[0]
    if x.axes is None:
        return Tensor(None)
    an.touch("choice", x.axes[-1:], node)
    return Tensor(x.axes[:1])


def ordered(an: Analysis, node: Node, inputs: Sequence[Tensor]) -> Tensor:
    """Do what depends on the order of an axis: cumulate, reverse."""
    x = inputs[0]
    if x.axes is None:
        return x
    if node.op == "ReverseSequence":
        axes = [node.integer("seq_dim")]
        batch = node.integer("batch_dim")
        if inputs[1].axes:
            an.tie(x.axes[batch], inputs[1].axes[0], node)
    elif node.op == "Reverse":
        values = inputs[1].values
        if values is None:
            raise Clash
        axes = [axis for axis, is_reversed in enumerate(values) if is_reversed]
    else:
        axes = axes_of(inputs[1], len(x.axes))
    an.touch("index", [x.axes[axis] for axis in axes], node)
    return Tensor(x.axes, origins=x.origins)


def local_response(an: Analysis, node: Node, inputs: Sequence[Tensor]) -> Tensor:
    """Normalise over neighbouring channels."""
    if inputs[0].axes is not None:
        an.touch("index", inputs[0].axes[-1:], node)
    return inputs[0]


def loss(an: Analysis, node: Node, inputs: Sequence[Tensor]) -> Tensor:
    """Sum the squares of everything."""
    if an.is_data(node.inputs[0]):
        an.touch("square sum", inputs[0].axes or (), node)
    return Tensor(())


def segments(an: Analysis, node: Node, inputs: Sequence[Tensor]) -> Tensor:
    """Combine rows by the group that each is of."""
    data = inputs[0]
    if data.axes is None:
        return Tensor(None)
    first: Atom = Atom(None)
    if node.op.startswith("Unsorted"):
        count = inputs[2].cells
        first = an.sized(count[0], node) if count else first
        rank = len(inputs[1].axes) if inputs[1].axes is not None else 1
        for a, b in zip(data.axes, inputs[1].axes or (), strict=False):
            an.tie(a, b, node)
        an.touch("index", data.axes[:rank], node)
        return Tensor((first, *data.axes[rank:]))
    an.touch("index", data.axes[:1], node)
    if node.op.startswith("Sparse") and an.is_weight(node.inputs[0]):
        an.use(data.origin(0), data.axes[0], "consume", node)
        for axis in range(1, len(data.axes)):
            an.use(data.origin(axis), data.axes[axis], "produce", node)
    return Tensor((first, *data.axes[1:]))


RULES: dict[str, Rule] = {
    **for_ops("Sum Mean Max Min Prod All Any EuclideanNorm", reduce),
    **for_ops("Softmax LogSoftmax SparseSoftmax", softmax),
    **for_ops("SoftmaxCrossEntropyWithLogits SparseSoftmaxCrossEntropyWithLogits", cross_entropy),
    **for_ops("ArgMax ArgMin", choose),
    **for_ops("TopK TopKV2", top),
    **for_ops("InTopK InTopKV2", among_top),
    **for_ops("Cumsum Cumprod Reverse ReverseV2 ReverseSequence CumulativeLogsumexp", ordered),
    "LRN": local_response,
    "L2Loss": loss,
    **for_ops(
        """SegmentSum SegmentMean SegmentMax SegmentMin SegmentProd UnsortedSegmentSum
        UnsortedSegmentMax UnsortedSegmentMin UnsortedSegmentProd SparseSegmentSum
        SparseSegmentMean SparseSegmentSqrtN""",
        segments,
    ),
}
