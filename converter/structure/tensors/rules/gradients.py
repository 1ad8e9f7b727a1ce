"""Rules of the ops that gradients and optimizers are made of.

They say nothing that the forward ops have not said; they are needed where a graph is rewritten for
other sizes, since the integers in its gradients have to follow.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from converter.graph.node import Node
from converter.structure.tensors.analysis import Analysis, Cell, Element, Rule, Tensor, for_ops
from converter.structure.tensors.atoms import Clash, find, leaf
from converter.structure.tensors.rules.elementwise import all_alike
from converter.structure.tensors.rules.integers import axes_of, sized_axes
from converter.structure.tensors.rules.slicing import strided


def bias(an: Analysis, node: Node, inputs: Sequence[Tensor]) -> Tensor:
    """Sum over all but the channels."""
    x = inputs[0]
    if x.axes is None:
        return Tensor(None)
    return Tensor((x.axes[1 if node.text("data_format") == "NCHW" else -1],))


def broadcast_axes(an: Analysis, node: Node, inputs: Sequence[Tensor]) -> list[Tensor]:
    """Tell over which axes the gradients of two operands are summed."""
    x, y = (tensor.cells for tensor in inputs)
    if x is None or y is None:
        return [Tensor((leaf(None),)), Tensor((leaf(None),))]
    rank = max(len(x), len(y))
    one = (Cell(1),)
    pairs = list(zip(one * (rank - len(x)) + x, one * (rank - len(y)) + y, strict=True))
    found: list[list[int]] = [[], []]
    for place, (a, b) in enumerate(pairs):
        if _are_equal(a, b):
            continue
        # Of unknown sizes one may be 1 when the graph runs.
        if None in (a.value, b.value) and 1 not in (a.value, b.value):
            return [Tensor((leaf(None),)), Tensor((leaf(None),))]
        if a.value == 1:
            found[0].append(place)
        if b.value == 1:
            found[1].append(place)
    return [Tensor((leaf(len(f)),), tuple(Cell(place) for place in f)) for f in found]


def _are_equal(a: Cell, b: Cell) -> bool:
    if a.atom is not None and b.atom is not None and find(a.atom) is find(b.atom):
        return True
    return a.value is not None and a.value == b.value and a.value != 1


def offsets(an: Analysis, node: Node, inputs: Sequence[Tensor]) -> list[Tensor]:
    """Tell where each piece of a concatenation begins."""
    rank = len(inputs[1].cells or ())
    axis = axes_of(inputs[0], rank)[0] if rank else 0
    found = []
    at: int | None = 0
    for tensor in inputs[1:]:
        cells = tensor.cells
        begin = tuple(Cell(at if place == axis else 0) for place in range(rank))
        found.append(Tensor(tensor.axes, begin))
        size = cells[axis].value if cells is not None and len(cells) == rank else None
        at = None if at is None or size is None else at + size
    return found


def stack(an: Analysis, node: Node, inputs: Sequence[Tensor]) -> Tensor:
    """Make a stack, which carries values from a loop to its gradient."""
    return Tensor((), element=Element())


def push(an: Analysis, node: Node, inputs: Sequence[Tensor]) -> Tensor:
    """Put a tensor on a stack and give it on."""
    handle, value = inputs
    element = handle.element
    if element is not None and value.axes is not None:
        if element.axes is None:
            element.axes, element.held = value.axes, value
        else:
            element.held = None
            an.tie_all((Tensor(element.axes), value), node)
    return value


def pop(an: Analysis, node: Node, inputs: Sequence[Tensor]) -> Tensor:
    """Take a tensor off a stack."""
    element = inputs[0].element
    if element is None:
        return Tensor(None)
    return Tensor(element.axes, element.held.cells if element.held is not None else None)


def array(an: Analysis, node: Node, inputs: Sequence[Tensor]) -> list[Tensor]:
    """Make the TensorArray of the gradients of another one, whose tensors are like them."""
    return [inputs[0], inputs[0]]


def batch_normalisation(an: Analysis, node: Node, inputs: Sequence[Tensor]) -> list[Tensor]:
    """Give the gradients of the input, of gamma and of beta."""
    dy, x, scale = inputs[:3]
    axes = an.tie_all((dy, x), node)
    moment = Tensor(scale.axes or None)
    empty = Tensor((leaf(None),))
    return [Tensor(axes), moment, moment, empty, empty]


def filter_of_convolution(an: Analysis, node: Node, inputs: Sequence[Tensor]) -> Tensor:
    """Give the gradient of a filter, whose shape is told."""
    x, sizes, dy = inputs
    axes = sized_axes(an, node, sizes)
    if axes is None or x.axes is None or dy.axes is None or len(axes) < 3:
        raise Clash
    channel = 1 if node.text("data_format").startswith("NC") else len(x.axes) - 1
    if node.op.startswith("Depthwise"):
        an.tie(axes[2], x.axes[channel], node)
    else:
        an.tie(axes[-2], x.axes[channel], node)
        an.tie(axes[-1], dy.axes[channel], node)
    return Tensor(axes)


def input_of_depthwise(an: Analysis, node: Node, inputs: Sequence[Tensor]) -> Tensor:
    """Give the gradient of the input of a depthwise convolution, whose shape is told."""
    sizes, kernel, dy = inputs
    axes = sized_axes(an, node, sizes)
    if axes is None or kernel.axes is None or dy.axes is None:
        raise Clash
    channel = 1 if node.text("data_format").startswith("NC") else len(axes) - 1
    an.tie(axes[channel], kernel.axes[2], node)
    return Tensor(axes)


def like_first(an: Analysis, node: Node, inputs: Sequence[Tensor]) -> Tensor:
    """Give the gradient of the first input."""
    return Tensor(inputs[0].axes)


def like_second(an: Analysis, node: Node, inputs: Sequence[Tensor]) -> Tensor:
    """Give the gradient of the second input."""
    return Tensor(inputs[1].axes)


def average_pooling(an: Analysis, node: Node, inputs: Sequence[Tensor]) -> Tensor:
    """Give the gradient of an input whose shape is told."""
    sizes, dy = inputs
    axes = sized_axes(an, node, sizes)
    if axes is None or dy.axes is None or len(axes) != len(dy.axes):
        raise Clash
    channel = 1 if node.text("data_format").startswith("NC") else len(axes) - 1
    an.tie(axes[channel], dy.axes[channel], node)
    return Tensor(axes)


def slice_of(an: Analysis, node: Node, inputs: Sequence[Tensor]) -> Tensor:
    """Put a gradient into zeros of a given shape: where it goes is told as in a slice."""
    axes = sized_axes(an, node, inputs[0])
    whole = Tensor(axes)
    if axes is not None:
        an.tie_all((strided(an, node, (whole, *inputs[1:4])), inputs[4]), node)
    return whole


def lstm_block(an: Analysis, node: Node, inputs: Sequence[Tensor]) -> list[Tensor]:
    """Give the gradients of x, the states, the kernel, the peepholes and the bias."""
    return [Tensor(tensor.axes) for tensor in inputs[1:9]]


def apply_gradient(an: Analysis, node: Node, inputs: Sequence[Tensor]) -> Tensor:
    """Change a variable by its gradient: slots and gradient are like it."""
    variable = inputs[0]
    if not variable.axes:
        return variable
    is_sparse = "Sparse" in node.op
    for tensor in inputs[1:]:
        if tensor.axes is not None and len(tensor.axes) == len(variable.axes):
            pairs = zip(variable.axes, tensor.axes, strict=True)
            for axis, (a, b) in enumerate(pairs):
                if axis or not is_sparse:
                    an.tie(a, b, node)
    if is_sparse:
        _tie_rows(an, node, inputs[1:])
    return variable


def _tie_rows(an: Analysis, node: Node, inputs: Sequence[Tensor]) -> None:
    """Some rows of a gradient, and behind it the numbers of these rows, are equally many."""
    for gradient, numbers in itertools.pairwise(inputs):
        if gradient.axes and numbers.axes is not None and len(numbers.axes) == 1:
            an.tie(gradient.axes[0], numbers.axes[0], node)


def assign(an: Analysis, node: Node, inputs: Sequence[Tensor]) -> Tensor:
    """Give a variable a value of its shape."""
    variable, value = inputs
    if variable.axes is not None and value.axes is not None:
        if len(variable.axes) != len(value.axes):
            raise Clash
        an.tie_all((variable, value), node)
    return variable


def scatter(an: Analysis, node: Node, inputs: Sequence[Tensor]) -> Tensor:
    """Change some rows of a variable."""
    variable, indices, updates = inputs
    if variable.axes and indices.axes is not None and updates.axes is not None:
        for a, b in zip(indices.axes, updates.axes, strict=False):
            an.tie(a, b, node)
        rows = updates.axes[len(indices.axes) :]
        for a, b in zip(variable.axes[1:], rows, strict=False):
            an.tie(a, b, node)
    return variable


def nothing(an: Analysis, node: Node, inputs: Sequence[Tensor]) -> list[Tensor]:
    """Do what has no result that a shape could be told of."""
    return []


RULES: dict[str, Rule] = {
    **for_ops(
        """TanhGrad SigmoidGrad ReluGrad Relu6Grad EluGrad SeluGrad SoftplusGrad SoftsignGrad
        RsqrtGrad SqrtGrad ReciprocalGrad InvGrad LeakyReluGrad""",
        all_alike,
    ),
    "BiasAddGrad": bias,
    "BroadcastGradientArgs": broadcast_axes,
    "ConcatOffset": offsets,
    **for_ops("Stack StackV2", stack),
    **for_ops("StackPush StackPushV2", push),
    **for_ops("StackPop StackPopV2", pop),
    **for_ops("TensorArrayGrad TensorArrayGradV2 TensorArrayGradV3", array),
    **for_ops("FusedBatchNormGrad FusedBatchNormGradV2 FusedBatchNormGradV3", batch_normalisation),
    **for_ops(
        """Conv2DBackpropFilter Conv3DBackpropFilterV2
        DepthwiseConv2dNativeBackpropFilter""",
        filter_of_convolution,
    ),
    "DepthwiseConv2dNativeBackpropInput": input_of_depthwise,
    **for_ops("MaxPoolGrad MaxPoolGradV2 MaxPool3DGrad LRNGrad", like_first),
    **for_ops("ResizeBilinearGrad ResizeBicubicGrad", like_second),
    **for_ops("AvgPoolGrad AvgPool3DGrad", average_pooling),
    "StridedSliceGrad": slice_of,
    "BlockLSTMGrad": lstm_block,
    **for_ops(
        """ApplyAdadelta ApplyAdagrad ApplyAdagradDA ApplyAdam ApplyAdaMax ApplyAddSign
        ApplyCenteredRMSProp ApplyFtrl ApplyFtrlV2 ApplyGradientDescent ApplyMomentum
        ApplyPowerSign ApplyProximalAdagrad ApplyProximalGradientDescent ApplyRMSProp
        SparseApplyAdadelta SparseApplyAdagrad SparseApplyAdagradDA SparseApplyCenteredRMSProp
        SparseApplyFtrl SparseApplyFtrlV2 SparseApplyMomentum SparseApplyProximalAdagrad
        SparseApplyProximalGradientDescent SparseApplyRMSProp
        ResourceApplyAdadelta ResourceApplyAdagrad ResourceApplyAdagradDA ResourceApplyAdam
        ResourceApplyAdaMax ResourceApplyAddSign ResourceApplyCenteredRMSProp ResourceApplyFtrl
        ResourceApplyFtrlV2 ResourceApplyGradientDescent ResourceApplyKerasMomentum
        ResourceApplyMomentum ResourceApplyPowerSign ResourceApplyProximalAdagrad
        ResourceApplyRMSProp ResourceSparseApplyAdagrad ResourceSparseApplyFtrl
        ResourceSparseApplyKerasMomentum ResourceSparseApplyMomentum
        ResourceSparseApplyRMSProp ResourceApplyAdamWithAmsgrad ResourceApplyAdagradV2
        ResourceSparseApplyAdagradV2""",
        apply_gradient,
    ),
    **for_ops(
        """Assign AssignAdd AssignSub AssignVariableOp AssignAddVariableOp
        AssignSubVariableOp""",
        assign,
    ),
    **for_ops(
        """ScatterAdd ScatterSub ScatterUpdate ScatterMul ScatterDiv ResourceScatterAdd
        ResourceScatterSub ResourceScatterUpdate""",
        scatter,
    ),
    **for_ops(
        """NoOp Assert Save SaveV2 SaveSlices Restore RestoreV2 RestoreSlice ShardedFilename
        ShardedFilespec MergeV2Checkpoints DisableCopyOnRead ScalarSummary HistogramSummary
        MergeSummary ImageSummary AudioSummary TensorSummary TensorSummaryV2 WriteScalarSummary
        CountUpTo""",
        nothing,
    ),
}
