"""Rules of ops that work entry by entry."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence

from converter.graph.node import Node, Output
from converter.graph.ops import DIVISIONS, PASSING, ops
from converter.structure.axes.axis import Touch, Use
from converter.structure.tensors.analysis import (
    NO_ORIGIN,
    Analysis,
    Origin,
    Origins,
    Rule,
    Tensor,
    for_ops,
)
from converter.structure.tensors.atoms import ONE, Atom, Clash, find, unify
from converter.structure.tensors.flow import Kind
from converter.structure.tensors.rules.arithmetic import computed

LINEAR = "Neg"
HOMOGENEOUS = "Relu LeakyRelu Abs"
NONLINEAR = """Tanh Sigmoid Softplus Softsign Elu Selu Relu6 Exp Expm1 Log Log1p Sin Cos Tan Asin
    Acos Atan Sinh Cosh Asinh Acosh Atanh Erf Erfc Erfinv Lgamma Digamma Floor Ceil Round Rint Sign
    Square Reciprocal Inv Sqrt Rsqrt IsNan IsInf IsFinite LogicalNot ComplexAbs Gelu Swish
    Invert Bucketize BesselI0e BesselI1e Mish HardSigmoid"""
SUMS = "Add AddV2 Sub"
PRODUCTS = "Mul RealDiv Div DivNoNan MulNoNan Xdivy"
EXTREMES = "Maximum Minimum"
OTHERS = """Pow SquaredDifference FloorDiv FloorMod Mod TruncateDiv TruncateMod Atan2 Xlogy Zeta
    Igamma Igammac Polygamma Equal NotEqual Less LessEqual Greater GreaterEqual LogicalAnd LogicalOr
    ApproximateEqual BitwiseAnd BitwiseOr BitwiseXor LeftShift RightShift NextAfter Complex"""

_ROOTS = frozenset({"Sqrt", "Rsqrt", "Pow"})
_DIVISIONS = DIVISIONS | {"Xdivy"}

_NUMBERS: dict[str, Callable[..., float]] = {
    "Neg": lambda a: -a,
    "Sqrt": math.sqrt,
    "Rsqrt": lambda a: 1 / math.sqrt(a),
    "Square": lambda a: a * a,
    "Reciprocal": lambda a: 1 / a,
    "Inv": lambda a: 1 / a,
    "Exp": math.exp,
    "Log": math.log,
    "Add": lambda a, b: a + b,
    "AddV2": lambda a, b: a + b,
    "Sub": lambda a, b: a - b,
    "Mul": lambda a, b: a * b,
    "RealDiv": lambda a, b: a / b,
    "Div": lambda a, b: a / b,
    "Pow": lambda a, b: float(a**b),
    "Maximum": max,
    "Minimum": min,
}
_MAX_STEPS = 8
# What makes one truth of several.
_JOINING = PASSING | ops("All LogicalAnd LogicalOr")


def unary(what: Touch | None) -> Rule:
    """Return the rule of a function of one tensor, which does `what` to each axis."""

    def rule(an: Analysis, node: Node, inputs: Sequence[Tensor]) -> Tensor:
        (x,) = inputs
        kind = an.kind(node.inputs[0])
        if what and kind is Kind.DATA:
            an.touch(what, x.axes or (), node)
        elif what and kind is Kind.WEIGHT and node.op not in _ROOTS and x.origins is None:
            an.touch("weight", x.axes or (), node)
        return Tensor(x.axes, computed(node, inputs), _number(node, inputs), _through(node, x))

    return rule


def _through(node: Node, x: Tensor) -> Origins | None:
    """Say where the axes of a function of variables come from."""
    if x.origins is None or node.op == "Neg":
        return x.origins
    how = "variance" if node.op in _ROOTS else "norm"
    return tuple(frozenset(o._replace(how=o.how or how) for o in origin) for origin in x.origins)


def addition(an: Analysis, node: Node, inputs: Sequence[Tensor]) -> Tensor:
    """Add or subtract: linear in data, a shift by a variable."""
    x, y = inputs
    axes = an.broadcast((x, y), node)
    kinds = [an.kind(output) for output in node.inputs]
    if Kind.DATA in kinds:
        for tensor, kind in zip(inputs, kinds, strict=True):
            if kind is Kind.WEIGHT:
                _addend(an, node, tensor)
            elif kind is Kind.NOISE:
                # It is drawn alike for each unit.
                an.touch("affine", axes or (), node)
            elif kind < Kind.WEIGHT and tensor.number != 0:
                _constant(an, node, tensor, axes or ())
    else:
        _mark_constants(an, node, inputs, kinds)
    return Tensor(axes, computed(node, inputs), _number(node, inputs), _origins(inputs, axes))


def _addend(an: Analysis, node: Node, tensor: Tensor) -> None:
    large = [atom for atom in tensor.axes or () if find(atom) is not ONE]
    for axis, atom in enumerate(tensor.axes or ()):
        if tensor.origins is None or any(o.how == "norm" for o in tensor.origins[axis]):
            an.touch("weight", [atom], node)
        for origin in sorted(tensor.origin(axis)):
            use: Use = "produce" if len(large) > 1 and atom is large[-1] else "shift"
            if origin.how == "factor":
                use = "mean"
            if origin.how in ("", "factor"):
                an.use([origin], atom, use, node)


def _constant(an: Analysis, node: Node, tensor: Tensor, axes: Sequence[Atom]) -> None:
    """Note that a constant is added: the same one everywhere, or each unit its own."""
    if tensor.number is not None or not tensor.axes:
        an.touch("affine", axes, node)
    else:
        an.touch("constant", tensor.axes, node)
        an.touch("affine", _alone(axes, tensor), node)


def _mark_constants(
    an: Analysis, node: Node, inputs: Sequence[Tensor], kinds: Sequence[Kind]
) -> None:
    """Note where a variable meets a constant that differs from entry to entry."""
    for tensor, kind in zip(inputs, kinds, strict=True):
        if kind is Kind.CONSTANT and Kind.WEIGHT in kinds and tensor.number is None:
            an.touch("constant", tensor.axes or (), node)


def _alone(axes: Sequence[Atom], tensor: Tensor) -> list[Atom]:
    """Return the axes of a result along which an operand is the same everywhere."""
    own = [ONE] * (len(axes) - len(tensor.axes or ())) + list(tensor.axes or ())
    return [atom for atom, other in zip(axes, own, strict=True) if find(other) is ONE]


def multiplication(an: Analysis, node: Node, inputs: Sequence[Tensor]) -> Tensor:
    """Multiply or divide: a gate where both are data, a gain where one is a variable."""
    x, y = inputs
    axes = an.broadcast((x, y), node)
    kinds = [an.kind(output) for output in node.inputs]
    # So is what a variable makes of the zeros that a state begins with.
    if an.is_data(Output(node, 0)):
        _multiply_data(an, node, inputs, kinds, axes or ())
    else:
        _mark_constants(an, node, inputs, kinds)
    origins = _origins(inputs, axes)
    if Kind.DATA not in kinds and kinds.count(Kind.WEIGHT) == 2 and origins is not None:
        _scale_variable(an, node, inputs)
        origins = tuple(
            frozenset(o if o.how else o._replace(how="factor") for o in axis) for axis in origins
        )
    return Tensor(axes, computed(node, inputs), _number(node, inputs), origins)


def _multiply_data(
    an: Analysis, node: Node, inputs: Sequence[Tensor], kinds: Sequence[Kind], axes: Sequence[Atom]
) -> None:
    if kinds.count(Kind.DATA) == 2:
        an.touch("gated", _shared(inputs), node)
    for place, (tensor, kind) in enumerate(zip(inputs, kinds, strict=True)):
        is_divisor = place == 1 and node.op in _DIVISIONS
        if kind is Kind.DATA and is_divisor:
            an.touch("nonlinear", tensor.axes or (), node)
        elif kind is Kind.WEIGHT:
            an.touch("gain", tensor.axes or (), node)
            for axis, atom in enumerate(tensor.axes or ()):
                for origin in sorted(tensor.origin(axis)):
                    use: Use = "variance" if origin.how == "variance" else "gain"
                    if origin.how != "norm":
                        an.use([origin], atom, use, node)
        elif kind is Kind.CONSTANT and tensor.number is not None:
            number = 1 / tensor.number if is_divisor and tensor.number else tensor.number
            an.scale(node, number, node.inputs[1 - place])
        elif kind is Kind.CONSTANT and tensor.axes:
            an.touch("constant", tensor.axes, node)


def _scale_variable(an: Analysis, node: Node, inputs: Sequence[Tensor]) -> None:
    """Of a variable that is scaled by its own norm, the units cannot be mixed or scaled."""
    places = {id(atom) for atom in _shared(inputs)}
    axes = inputs[0].axes or ()
    is_norm = any(
        origin.how == "norm"
        for tensor in inputs
        for axis in range(len(tensor.axes or ()))
        for origin in tensor.origin(axis)
    )
    an.touch("weight" if is_norm else "gain", [a for a in axes if id(a) in places], node)


def _shared(inputs: Sequence[Tensor]) -> list[Atom]:
    """Return the axes that both of two tensors have, so that each unit meets another."""
    pairs = zip(reversed(inputs[0].axes or ()), reversed(inputs[1].axes or ()), strict=False)
    return [a for a, b in pairs if find(a) is not ONE and find(b) is not ONE]


def extreme(an: Analysis, node: Node, inputs: Sequence[Tensor]) -> Tensor:
    """Take the larger or smaller: of data or against zero a positive factor can be taken out."""
    x, y = inputs
    axes = an.broadcast((x, y), node)
    kinds = [an.kind(output) for output in node.inputs]
    if Kind.DATA in kinds:
        is_scalable = all(
            kind is Kind.DATA or tensor.number == 0
            for tensor, kind in zip(inputs, kinds, strict=True)
        )
        an.touch("homogeneous" if is_scalable else "nonlinear", axes or (), node)
        _follow(an, node, inputs)
    return Tensor(axes, computed(node, inputs), _number(node, inputs))


def other(an: Analysis, node: Node, inputs: Sequence[Tensor]) -> Tensor:
    """Do to two tensors what no change of basis but a permutation survives."""
    x, y = inputs
    axes = an.broadcast((x, y), node)
    if node.op == "Equal":
        _expect(an, node, inputs)
    origins = None
    if any(an.is_data(output) for output in node.inputs):
        an.touch("nonlinear", axes or (), node)
        _follow(an, node, inputs)
    elif node.op == "Pow":
        joint = _origins(inputs, axes)
        origins = joint and _through(node, Tensor(axes, origins=joint))
    return Tensor(axes, computed(node, inputs), _number(node, inputs), origins)


def _expect(an: Analysis, node: Node, inputs: Sequence[Tensor]) -> None:
    """Take what is asserted to be equal to a length for that length."""
    if not _is_asserted(an, node):
        return
    for one, two in zip(inputs[0].cells or (), inputs[1].cells or (), strict=False):
        if one.value is None or one.value != two.value:
            continue
        if one.atom is not None and two.atom is not None:
            with contextlib.suppress(Clash):
                unify(one.atom, two.atom)
        for known, cell in ((one, two), (two, one)):
            if known.atom is not None and cell.atom is None:
                an.demand(cell, known.atom, node)


def _is_asserted(an: Analysis, node: Node) -> bool:
    """Whether a graph breaks off where a comparison is not true."""
    for _ in range(_MAX_STEPS):
        consumers = an.graph.consumers[node]
        if any(consumer.op == "Assert" for consumer in consumers):
            return True
        following = [consumer for consumer in consumers if consumer.op in _JOINING]
        if not following:
            return False
        node = following[0]
    return False


def _follow(an: Analysis, node: Node, inputs: Sequence[Tensor]) -> None:
    for tensor in inputs:
        for axis, atom in enumerate(tensor.axes or ()):
            an.use((o for o in tensor.origin(axis) if o.how != "norm"), atom, "shift", node)


def _origins(inputs: Sequence[Tensor], axes: Sequence[Atom] | None) -> Origins | None:
    """Join the origins of tensors that were aligned from the right."""
    if axes is None or all(tensor.origins is None for tensor in inputs):
        return None
    found: list[frozenset[Origin]] = [NO_ORIGIN] * len(axes)
    for tensor in inputs:
        if tensor.origins is not None and tensor.axes is not None:
            for place in range(1, len(tensor.axes) + 1):
                if place <= len(axes) and find(tensor.axes[-place]) is not ONE:
                    found[-place] |= tensor.origins[-place]
    return tuple(found)


def all_alike(an: Analysis, node: Node, inputs: Sequence[Tensor]) -> Tensor:
    """Add tensors of one shape."""
    axes = an.tie_all(inputs, node)
    for output, tensor in zip(node.inputs, inputs, strict=True):
        if an.is_weight(output) and any(map(an.is_data, node.inputs)):
            _addend(an, node, tensor)
    return Tensor(axes, origins=_origins(inputs, axes))


def bias(an: Analysis, node: Node, inputs: Sequence[Tensor]) -> Tensor:
    """Add one number to each channel."""
    x, b = inputs
    if x.axes is None or b.axes is None:
        return Tensor(x.axes)
    channel = 1 if node.text("data_format") == "NCHW" else -1
    an.tie(x.axes[channel], b.axes[0], node)
    if an.is_data(node.inputs[0]) and an.is_weight(node.inputs[1]):
        _addend(an, node, b)
    elif an.is_data(node.inputs[0]) and b.number != 0 and not an.is_data(node.inputs[1]):
        _constant(an, node, b, b.axes)
    return x if not an.is_weight(node.inputs[0]) else Tensor(x.axes, origins=x.origins)


def select(an: Analysis, node: Node, inputs: Sequence[Tensor]) -> Tensor:
    """Choose between two tensors, entry by entry, or row by row in the old op."""
    condition, x, y = inputs
    if node.op == "Select":
        axes = an.tie_all((x, y), node)
        if condition.axes and axes and len(condition.axes) < len(axes):
            an.tie(condition.axes[0], axes[0], node)
        elif condition.axes and axes:
            an.tie_all((condition, x), node)
    else:
        axes = an.broadcast(inputs, node)
    if an.is_data(node.inputs[0]) and condition.axes is not None and condition.axes:
        # What is chosen by rows leaves the other axes alone.
        an.touch("nonlinear", [a for a in condition.axes if find(a) is not ONE], node)
    elif an.kind(node.inputs[0]) is Kind.CONSTANT and condition.number is None:
        an.touch("constant", condition.axes or (), node)
    for place, tensor in enumerate((x, y), 1):
        if node in an.flow.averaged:
            continue
        if an.is_weight(node.inputs[place]) and any(map(an.is_data, node.inputs)):
            _addend(an, node, tensor)
    number = x.number if x.number == y.number else None
    return Tensor(axes, number=number, origins=_origins((x, y), axes))


def cast(an: Analysis, node: Node, inputs: Sequence[Tensor]) -> Tensor:
    """Change the dtype."""
    x = inputs[0]
    number = x.number
    if number is None and x.axes == () and x.values:
        number = float(x.values[0])
    return Tensor(x.axes, x.cells, number, x.origins, x.element)


def identity(an: Analysis, node: Node, inputs: Sequence[Tensor]) -> Tensor:
    """Give the tensor on as it is; what a loop begins with is but the first of its values."""
    x = inputs[0]
    if (x.number is not None or x.cells is not None) and _is_turned(an, node):
        return Tensor(x.axes, origins=x.origins, element=x.element)
    return x


def _is_turned(an: Analysis, node: Node) -> bool:
    """Whether a node takes a variable into a loop that is another one after a turn."""
    turned = an.graph.turned.get(node)
    if turned is None:
        return False
    after = turned.node
    while after.op == "Identity" and after is not node:
        after = after.inputs[0].node
    return after is not node


def quantised(an: Analysis, node: Node, inputs: Sequence[Tensor]) -> Tensor:
    """Round to a few numbers between two that are given."""
    x = inputs[0]
    if node.op.startswith("QuantizeAndDequantize") and not node.integer("range_given"):
        raise Clash
    if an.is_data(node.inputs[0]):
        an.touch("nonlinear", x.axes or (), node)
    elif an.is_weight(node.inputs[0]):
        an.touch("weight", x.axes or (), node)
    return Tensor(x.axes, origins=x.origins)


def _number(node: Node, inputs: Sequence[Tensor]) -> float | None:
    function = _NUMBERS.get(node.op)
    numbers = [tensor.number for tensor in inputs if tensor.number is not None]
    if function is None or len(numbers) != len(inputs):
        return None
    try:
        found = float(function(*numbers))
    except (ArithmeticError, ValueError, TypeError):
        return None
    return found if math.isfinite(found) else None


RULES: dict[str, Rule] = {
    **for_ops(LINEAR, unary(None)),
    **for_ops(HOMOGENEOUS, unary("homogeneous")),
    **for_ops(NONLINEAR, unary("nonlinear")),
    **for_ops(SUMS, addition),
    **for_ops(PRODUCTS, multiplication),
    **for_ops(EXTREMES, extreme),
    **for_ops(OTHERS, other),
    **for_ops("AddN AccumulateNV2", all_alike),
    **for_ops("BiasAdd BiasAddV1", bias),
    **for_ops("Select SelectV2", select),
    **for_ops("Cast Bitcast", cast),
    **for_ops(
        """QuantizeAndDequantizeV2 QuantizeAndDequantizeV3 FakeQuantWithMinMaxArgs
        FakeQuantWithMinMaxVars""",
        quantised,
    ),
    **for_ops(
        """Identity RefIdentity StopGradient PreventGradient Snapshot CheckNumerics Print
        ReadVariableOp Enter RefEnter Exit RefExit NextIteration
        RefNextIteration EnsureShape LoopCond DeepCopy CopyHost Copy
        CheckNumericsV2 DebugIdentity OptimizationBarrier""",
        identity,
    ),
}
