"""Rules of ops that contract: products of matrices and convolutions.

What is contracted consumes a width, what a variable gives to the result produces one.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from converter.graph.node import Node, Output
from converter.structure.axes.axis import Touch, Use
from converter.structure.tensors.analysis import (
    NO_ORIGIN,
    Analysis,
    Axes,
    Origin,
    Pairing,
    Rule,
    Tensor,
    for_ops,
)
from converter.structure.tensors.atoms import ONE, Atom, Clash, find, leaf, product, size_of
from converter.structure.tensors.flow import Kind
from converter.structure.tensors.rules.integers import sized_axes

_EQUATION = re.compile(r"([A-Za-z.]*),([A-Za-z.]*)->([A-Za-z.]*)")


def contract(
    an: Analysis, node: Node, x: tuple[Tensor, int], y: tuple[Tensor, int], places: tuple[int, int]
) -> None:
    """Sum over an axis of each of two inputs.

    Args:
        an: the analysis.
        node: the node that does it.
        x: the first tensor, and its axis.
        y: the second.
        places: which inputs of the node they are.
    """
    a, b = _axis(x), _axis(y)
    an.tie(a, b, node)
    left, right = node.inputs[places[0]], node.inputs[places[1]]
    for (tensor, axis), own, other in ((x, left, right), (y, right, left)):
        if an.is_weight(own) and not an.is_weight(other):
            _use(an, node, tensor, axis, "consume")
    if an.is_weight(left) and an.is_weight(right):
        _use(an, node, x[0], x[1], "produce")
        _use(an, node, y[0], y[1], "consume")
    elif an.is_data(left) and an.is_data(right):
        an.touch("paired", [a], node)
        an.pairings.append(Pairing(node, a, left, right))
    else:
        _contract_constant(an, node, a, (x[0], left), (y[0], right))


def _contract_constant(an: Analysis, node: Node, atom: Atom, *sides: tuple[Tensor, Output]) -> None:
    """Sum over an axis against numbers that are no variable and no data."""
    for (tensor, own), (_, other) in (sides, sides[::-1]):
        if an.kind(own) < Kind.WEIGHT and an.kind(other) >= Kind.WEIGHT and tensor.number != 0:
            if tensor.number is None:
                an.touch("constant", [atom], node)
            else:
                an.touch("sum" if an.is_data(other) else "affine", [atom], node)


def produce(an: Analysis, node: Node, tensor: Tensor, axis: int, place: int) -> None:
    """Note that a variable gives an axis to the result of a contraction."""
    if an.is_weight(node.inputs[place]):
        _use(an, node, tensor, axis, "produce")


def _axis(pair: tuple[Tensor, int]) -> Atom:
    axes = pair[0].axes
    if axes is None:
        raise Clash
    return axes[pair[1]]


def _use(an: Analysis, node: Node, tensor: Tensor, axis: int, what: Use) -> None:
    """Note the role; of a vector that scales the rows or columns of a matrix, its own."""
    if tensor.axes is None:
        return
    atom = tensor.axes[axis]
    for origin in sorted(tensor.origin(axis)):
        if origin.how in ("norm", "variance"):
            an.touch("weight", [atom], node)
            continue
        is_vector = origin.how == "factor" and origin.variable not in an.matrices
        if is_vector:
            an.use([origin], atom, "gain", node)
        elif what == "produce":
            an.use([origin], atom, "produce", node)
        else:
            an.use([origin], atom, "consume", node)


def matmul(an: Analysis, node: Node, inputs: Sequence[Tensor]) -> Tensor:
    """Multiply matrices, of which either may be transposed; leading axes are a batch."""
    x, y = inputs[:2]
    if x.axes is None or y.axes is None:
        return _of_unknown(an, node, inputs)
    x_across = node.integer("transpose_a") or node.integer("adj_x")
    y_across = node.integer("transpose_b") or node.integer("adj_y")
    x_rows, x_inner = (-1, -2) if x_across else (-2, -1)
    y_inner, y_columns = (-1, -2) if y_across else (-2, -1)
    if min(len(x.axes), len(y.axes)) < 2:
        raise Clash
    contract(an, node, (x, x_inner), (y, y_inner), (0, 1))
    batch = an.broadcast([Tensor(x.axes[:-2]), Tensor(y.axes[:-2])], node) or ()
    if an.is_data(node.inputs[0]) and an.is_data(node.inputs[1]):
        an.touch("gated", batch, node)
    axes = (*batch, x.axes[x_rows], y.axes[y_columns])
    _give(an, node, x, x_rows, y, y_columns)
    origins = None
    if x.origins is not None or y.origins is not None:
        rows, columns = x.origin(x_rows), y.origin(y_columns)
        origins = (*(NO_ORIGIN for _ in batch), rows, columns)
    return Tensor(axes, origins=origins)


def _give(an: Analysis, node: Node, x: Tensor, rows: int, y: Tensor, columns: int) -> None:
    """Of two variables the result is one too; what it does to data is told where it meets it."""
    if not (an.is_weight(node.inputs[0]) and an.is_weight(node.inputs[1])):
        produce(an, node, x, rows, 0)
        produce(an, node, y, columns, 1)


def _of_unknown(an: Analysis, node: Node, inputs: Sequence[Tensor]) -> Tensor:
    """A product with a tensor of unknown rank still says what the other one consumes."""
    for tensor in inputs:
        for atom in tensor.axes or ():
            an.opaque(atom, node)
    return Tensor(None)


def einsum(an: Analysis, node: Node, inputs: Sequence[Tensor]) -> Tensor:
    """Contract as an equation says."""
    match = _EQUATION.fullmatch(node.text("equation").replace(" ", ""))
    if match is None or len(inputs) != 2:
        raise Clash
    terms = [_letters(match[place + 1], tensor) for place, tensor in enumerate(inputs)]
    result = match[3]
    dots = "".join(label for label in terms[0] + terms[1] if label.isdigit())
    ellipsis = "".join(sorted(set(dots), reverse=True))
    wanted = list(result.replace("...", ellipsis))
    found: dict[str, Atom] = {}
    origins: dict[str, frozenset[Origin]] = {}
    for place, (labels, tensor) in enumerate(zip(terms, inputs, strict=True)):
        for axis, label in enumerate(labels):
            _einsum_axis(an, node, (place, axis, label), terms, inputs, wanted)
            atom = (tensor.axes or ())[axis]
            if label not in found or find(found[label]) is ONE:
                found[label] = atom
            elif find(atom) is not ONE and (label not in terms[1 - place] or label in wanted):
                an.tie(found[label], atom, node)
            origins[label] = origins.get(label, NO_ORIGIN) | tensor.origin(axis)
    is_weight = any(tensor.origins is not None for tensor in inputs)
    return Tensor(
        tuple(found[label] for label in wanted),
        origins=tuple(origins[label] for label in wanted) if is_weight else None,
    )


def _letters(term: str, tensor: Tensor) -> list[str]:
    """Return one label for each axis; those of an ellipsis are numbered from the right."""
    if tensor.axes is None:
        raise Clash
    before, dots, after = term.partition("...")
    hidden = len(tensor.axes) - len(before) - len(after)
    if hidden < 0 or hidden > 9 or (hidden and not dots):
        raise Clash
    return [*before, *(str(i) for i in range(hidden - 1, -1, -1)), *after]


def _einsum_axis(
    an: Analysis,
    node: Node,
    at: tuple[int, int, str],
    terms: Sequence[Sequence[str]],
    inputs: Sequence[Tensor],
    wanted: Sequence[str],
) -> None:
    place, axis, label = at
    other = terms[1 - place]
    if label not in other:
        if label not in wanted:
            an.touch("sum", [_axis((inputs[place], axis))], node)
        elif not all(map(an.is_weight, node.inputs)):
            produce(an, node, inputs[place], axis, place)
    elif label not in wanted:
        if place == 0:
            right = list(other).index(label)
            contract(an, node, (inputs[0], axis), (inputs[1], right), (0, 1))
    elif an.is_weight(node.inputs[place]) and an.is_data(node.inputs[1 - place]):
        # It stands in both and in the result: one matrix for each.
        an.touch("gain", [_axis((inputs[place], axis))], node)
        an.use(inputs[place].origin(axis), _axis((inputs[place], axis)), "gain", node)


def _layout(node: Node, rank: int) -> tuple[int, list[int]]:
    """Return the channel axis and the spatial ones of a feature map."""
    if node.text("data_format").startswith("NC"):
        return 1, list(range(2, rank))
    return rank - 1, list(range(1, rank - 1))


def _numbered(node: Node, key: str, rank: int, spatial: Sequence[int]) -> list[int]:
    """Return what an attribute says for each spatial axis; 1 where it says nothing."""
    given = node.integers(key)
    return [given[axis] if len(given) == rank else 1 for axis in spatial]


def _covered(
    size: int | None, kernel: int | None, node: Node, stride: int, step: int
) -> int | None:
    """Return the length of an axis after a window went over it."""
    if size is None or stride < 1:
        return None
    if node.text("padding") == "SAME":
        return -(-size // stride)
    if kernel is None or node.text("padding") != "VALID":
        return None
    return max(0, -(-(size - (kernel - 1) * step) // stride))


def convolution(an: Analysis, node: Node, inputs: Sequence[Tensor]) -> Tensor:
    """Convolve: the filter is [..., in, out], with fewer in channels where there are groups."""
    x, kernel = inputs
    if x.axes is None or kernel.axes is None or len(x.axes) != len(kernel.axes):
        raise Clash
    rank = len(x.axes)
    channel, spatial = _layout(node, rank)
    axes = list(x.axes)
    outputs = kernel.axes[-1]
    groups = _groups(x.axes[channel], kernel.axes[-2])
    if groups is ONE:
        contract(an, node, (x, channel), (kernel, rank - 2), (0, 1))
    else:
        an.tie(x.axes[channel], product((groups, kernel.axes[-2])), node)
        _use(an, node, kernel, rank - 2, "consume")
        size = size_of(outputs)
        within = None if size is None else size // (size_of(groups) or 1)
        an.tie(outputs, product((groups, leaf(within))), node)
        an.touch("fixed", [groups], node)
    produce(an, node, kernel, rank - 1, 1)
    axes[channel] = outputs
    spatial = _cover(an, node, axes, spatial, kernel)
    _slide(an, node, axes, spatial, [kernel.axes[_filter_axis(node, a)] for a in spatial])
    return Tensor(tuple(axes))


def _filter_axis(node: Node, axis: int) -> int:
    """Return the axis of the filter that goes over an axis of the feature map."""
    return axis - (2 if node.text("data_format").startswith("NC") else 1)


def _cover(
    an: Analysis, node: Node, axes: list[Atom], spatial: Sequence[int], kernel: Tensor
) -> list[int]:
    """Contract over the axes that the filter covers whole; return those that it slides over."""
    left = []
    for axis in spatial:
        atom, place = axes[axis], _filter_axis(node, axis)
        size = size_of(atom)
        window = kernel.axes[place] if kernel.axes else ONE
        if node.text("padding") != "VALID" or size in (None, 1) or size != size_of(window):
            left.append(axis)
            continue
        an.tie(atom, window, node)
        if an.is_weight(node.inputs[1]):
            _use(an, node, kernel, place, "consume")
        axes[axis] = ONE
    return left


def _groups(channel: Atom, within: Atom) -> Atom:
    """Return the axis of the groups: one, unless the channels are a multiple of the filter's."""
    size, inner = size_of(channel), size_of(within)
    if not size or not inner or size == inner or size % inner:
        return ONE
    return leaf(size // inner)


def _slide(
    an: Analysis, node: Node, axes: list[Atom], spatial: Sequence[int], window: Sequence[Atom]
) -> None:
    """Give the spatial axes their new lengths."""
    rank = len(axes)
    strides = _numbered(node, "strides", rank, spatial)
    steps = _numbered(node, "dilations", rank, spatial)
    an.touch("spatial", [*(axes[axis] for axis in spatial), *window], node)
    for axis, atom, stride, step in zip(spatial, window, strides, steps, strict=True):
        size = _covered(size_of(axes[axis]), size_of(atom), node, stride, step)
        axes[axis] = Atom(None) if size is None else leaf(size)
        an.touch("spatial", [axes[axis]], node)


def depthwise(an: Analysis, node: Node, inputs: Sequence[Tensor]) -> Tensor:
    """Convolve each channel by itself: the filter is [h, w, channels, multiplier]."""
    x, kernel = inputs
    if x.axes is None or kernel.axes is None or len(x.axes) != 4 or len(kernel.axes) != 4:
        raise Clash
    channel, spatial = _layout(node, 4)
    axes = list(x.axes)
    an.tie(axes[channel], kernel.axes[2], node)
    an.touch("gain", [axes[channel]], node)
    an.use(kernel.origin(2), kernel.axes[2], "gain", node)
    produce(an, node, kernel, 3, 1)
    axes[channel] = product((kernel.axes[2], kernel.axes[3]))
    spatial = _cover(an, node, axes, spatial, kernel)
    _slide(an, node, axes, spatial, [kernel.axes[_filter_axis(node, a)] for a in spatial])
    return Tensor(tuple(axes))


def transposed(an: Analysis, node: Node, inputs: Sequence[Tensor]) -> Tensor:
    """Convolve backwards: the filter is [..., out, in]."""
    sizes, kernel, x = inputs
    if x.axes is None or kernel.axes is None or len(x.axes) != len(kernel.axes):
        raise Clash
    rank = len(x.axes)
    channel, spatial = _layout(node, rank)
    contract(an, node, (x, channel), (kernel, rank - 1), (2, 1))
    produce(an, node, kernel, rank - 2, 1)
    wanted = sized_axes(an, node, sizes)
    axes = list(x.axes)
    axes[channel] = kernel.axes[-2]
    an.touch("spatial", [*(axes[axis] for axis in spatial), *kernel.axes[: rank - 2]], node)
    if wanted is not None and len(wanted) == rank:
        an.tie(axes[channel], wanted[channel], node)
        for axis in spatial:
            axes[axis] = wanted[axis]
        an.touch("spatial", [axes[axis] for axis in spatial], node)
    else:
        for axis in spatial:
            axes[axis] = Atom(None)
    return Tensor(tuple(axes))


def pooling(what: Touch | None) -> Rule:
    """Return the rule of a pooling, which does `what` to the channels."""

    def rule(an: Analysis, node: Node, inputs: Sequence[Tensor]) -> list[Tensor]:
        x = inputs[0]
        if x.axes is None:
            raise Clash
        rank = len(x.axes)
        channel, spatial = _layout(node, rank)
        windows = node.integers("ksize")
        if len(inputs) > 1 and inputs[1].values:
            windows = inputs[1].values
        if len(windows) != rank or windows[channel] != 1:
            raise Clash
        axes: Axes = x.axes
        changed = list(axes)
        _slide(an, node, changed, spatial, [leaf(windows[axis]) for axis in spatial])
        if what is not None:
            an.touch(what, [axes[channel]], node)
        found = Tensor(tuple(changed))
        return [found, found]

    return rule


def resized(an: Analysis, node: Node, inputs: Sequence[Tensor]) -> Tensor:
    """Scale an image."""
    x, sizes = inputs
    if x.axes is None or len(x.axes) != 4:
        raise Clash
    height, width = Atom(None), Atom(None)
    if sizes.cells is not None and len(sizes.cells) == 2:
        height, width = (an.sized(cell, node) for cell in sizes.cells)
    an.touch("spatial", [x.axes[1], x.axes[2], height, width], node)
    return Tensor((x.axes[0], height, width, x.axes[3]))


def depth_to_space(an: Analysis, node: Node, inputs: Sequence[Tensor]) -> Tensor:
    """Move blocks of channels into space, or back."""
    x = inputs[0]
    if x.axes is None or len(x.axes) != 4 or node.text("data_format", "NHWC") != "NHWC":
        raise Clash
    block = node.integer("block_size")
    squared = leaf(block * block)
    sizes = [size_of(x.axes[axis]) for axis in (1, 2)]
    if node.op == "SpaceToDepth":
        new = [None if size is None else size // block for size in sizes]
        channel = product((squared, x.axes[3]))
    else:
        new = [None if size is None else size * block for size in sizes]
        size = size_of(x.axes[3])
        channel = leaf(None if size is None else size // (block * block))
        an.tie(x.axes[3], product((squared, channel)), node)
    height, width = (Atom(None) if size is None else leaf(size) for size in new)
    an.touch("fixed", [squared], node)
    an.touch("spatial", [x.axes[1], x.axes[2], height, width], node)
    return Tensor((x.axes[0], height, width, channel))


def space_to_batch(an: Analysis, node: Node, inputs: Sequence[Tensor]) -> Tensor:
    """Move space into the batch, or back, as dilated convolutions do."""
    x, blocks = inputs[:2]
    count = size_of(blocks.axes[0]) if blocks.axes else None
    if x.axes is None or count is None or count >= len(x.axes):
        raise Clash
    fresh = tuple(Atom(None) for _ in range(count + 1))
    an.touch("spatial", x.axes[1 : count + 1], node)
    return Tensor((*fresh, *x.axes[count + 1 :]))


RULES: dict[str, Rule] = {
    **for_ops("MatMul BatchMatMul BatchMatMulV2 BatchMatMulV3 SparseMatMul", matmul),
    "Einsum": einsum,
    **for_ops("Conv2D Conv3D", convolution),
    "DepthwiseConv2dNative": depthwise,
    **for_ops("Conv2DBackpropInput Conv3DBackpropInputV2", transposed),
    **for_ops("MaxPool MaxPoolV2 MaxPool3D MaxPoolWithArgmax", pooling("homogeneous")),
    **for_ops("AvgPool AvgPool3D", pooling(None)),
    **for_ops("ResizeBilinear ResizeNearestNeighbor ResizeBicubic ResizeArea", resized),
    **for_ops("DepthToSpace SpaceToDepth", depth_to_space),
    **for_ops("SpaceToBatchND BatchToSpaceND", space_to_batch),
}
