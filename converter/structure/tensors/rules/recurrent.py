"""Rules of loops, of what carries tensors through them, and of cells that are one op."""

from __future__ import annotations

from collections.abc import Sequence

from converter.graph.node import Node
from converter.graph.ops import MERGES
from converter.structure.tensors.analysis import (
    NO_ORIGIN,
    Analysis,
    Axes,
    Element,
    Origins,
    Rule,
    Tensor,
    for_ops,
)
from converter.structure.tensors.atoms import (
    ONE,
    Atom,
    Clash,
    concat,
    leaf,
    product,
    size_of,
    unify,
)

_GATES = 4


def merge(an: Analysis, node: Node, inputs: Sequence[Tensor]) -> list[Tensor]:
    """Give on whichever input there is: all of them are the same tensor.

    What loops back has not been looked at yet; `turn` ties it.
    """
    known = [
        tensor
        for tensor, output in zip(inputs, node.inputs, strict=True)
        if output.node in an.tensors
    ]
    return [_one_of(an, node, known or list(inputs)), Tensor(())]


def _one_of(an: Analysis, node: Node, tensors: Sequence[Tensor]) -> Tensor:
    handles = [tensor for tensor in tensors if tensor.element is not None]
    if handles:
        # One of them may hold nothing yet, or never.
        handles.sort(key=lambda tensor: tensor.element is None or tensor.element.axes is None)
        return handles[0]
    if len(tensors) == 1:
        # In a loop the first value is but one of many.
        only = tensors[0]
        is_loop = len(node.inputs) > 1
        return Tensor(only.axes, origins=only.origins) if is_loop else only
    axes = _either_long(an, node, tensors)
    return Tensor(axes, origins=_either(tensors, axes))


def _either_long(an: Analysis, node: Node, tensors: Sequence[Tensor]) -> Axes | None:
    """Tie the axes of tensors; what is longer in one than in another has no length for certain."""
    known = [tensor.axes for tensor in tensors if tensor.axes is not None]
    if len({len(axes) for axes in known}) > 1:
        raise Clash
    found: list[Atom] = []
    for atoms in zip(*known, strict=True):
        sizes = {size_of(atom) for atom in atoms} - {None}
        if len(sizes) > 1:
            an.touch("dynamic", atoms, node)
            found.append(Atom(None))
        else:
            found.append((an.tie_all([Tensor((atom,)) for atom in atoms], node) or (atoms[0],))[0])
    return tuple(found) if known else None


def _either(tensors: Sequence[Tensor], axes: Axes | None) -> Origins | None:
    if axes is None or all(tensor.origins is None for tensor in tensors):
        return None
    return tuple(
        NO_ORIGIN.union(*(tensor.origin(axis) for tensor in tensors)) for axis in range(len(axes))
    )


def turn(an: Analysis, node: Node, inputs: Sequence[Tensor]) -> Tensor:
    """End a turn of a loop: what a loop's variable becomes is what it was."""
    after = inputs[0]
    for consumer in an.graph.consumers[node]:
        before = an.tensors.get(consumer)
        if consumer.op in MERGES and before:
            _same(an, node, before[0], after)
    return after


def _same(an: Analysis, node: Node, before: Tensor, after: Tensor) -> None:
    if before.axes is None or after.axes is None or before.element is not None:
        return
    if len(before.axes) != len(after.axes):
        raise Clash
    for a, b in zip(before.axes, after.axes, strict=True):
        # An axis that grows from turn to turn is none that a variable has.
        if size_of(a) is not None and size_of(b) is not None:
            an.tie(a, b, node)
        elif size_of(a) == size_of(b) or a.size is None:
            _tie_open(an, a, b, node)


def _tie_open(an: Analysis, a: Atom, b: Atom, node: Node) -> None:
    try:
        unify(a, b)
    except Clash:
        an.touch("dynamic", (a, b), node)


def switch(an: Analysis, node: Node, inputs: Sequence[Tensor]) -> list[Tensor]:
    """Give a tensor on to one of two sides."""
    return [inputs[0], inputs[0]]


def returned(an: Analysis, node: Node, inputs: Sequence[Tensor]) -> list[Tensor]:
    """Give out each input."""
    return list(inputs)


def join(an: Analysis, node: Node, inputs: Sequence[Tensor]) -> Tensor:
    """Give out what either branch of a condition gives."""
    return _one_of(an, node, inputs)


def loop(an: Analysis, node: Node, inputs: Sequence[Tensor]) -> Tensor:
    """Give out a variable of a loop, which is the same before and after a turn."""
    before, after = inputs
    _same(an, node, before, after)
    if before.axes is not None and before.element is None:
        return Tensor(before.axes, origins=_either(inputs, before.axes))
    return after


def array(an: Analysis, node: Node, inputs: Sequence[Tensor]) -> list[Tensor]:
    """Make a TensorArray."""
    element = Element()
    shape = node.shape("element_shape")
    if shape is not None and "element_shape" in node.attributes and shape:
        element.axes = an.fresh(shape)
    handle = Tensor((), element=element)
    return [handle, Tensor((), element=element)]


def _element(inputs: Sequence[Tensor]) -> Element:
    found = next((tensor.element for tensor in inputs if tensor.element is not None), None)
    if found is None:
        raise Clash
    return found


def _store(an: Analysis, node: Node, element: Element, axes: Axes | None) -> None:
    """Say that a TensorArray holds tensors of these axes."""
    if axes is None:
        return
    if element.axes is None:
        element.axes = axes
    else:
        an.tie_all((Tensor(element.axes), Tensor(axes)), node)


def _held(an: Analysis, node: Node, element: Element, skip: int) -> Axes | None:
    """Return the axes of what is held; of an array that is not filled yet as they are noted."""
    if element.axes is None:
        declared = an.graph.declared(node, 0)
        element.axes = an.fresh(declared[skip:]) if declared is not None else None
    return element.axes


def write(an: Analysis, node: Node, inputs: Sequence[Tensor]) -> Tensor:
    """Put one tensor into an array; what comes out stands for the array."""
    element = _element(inputs)
    _store(an, node, element, inputs[2].axes)
    return Tensor((), element=element)


def read(an: Analysis, node: Node, inputs: Sequence[Tensor]) -> Tensor:
    """Take one tensor out of an array, or out of a list by its place."""
    held = _held(an, node, _element(inputs), 0)
    if node.op == "TensorListGetItem" and len(inputs) > 2:
        _tell(an, node, inputs[2], held)
    return Tensor(held)


def _tell(an: Analysis, node: Node, shape: Tensor, axes: Axes | None) -> None:
    """Say that integers are the shape of the tensors in a list; -1 is not known."""
    if shape.axes and shape.cells is not None and axes is not None:
        for cell, atom in zip(shape.cells, axes, strict=False):
            an.demand(cell, atom, node)


def scatter(an: Analysis, node: Node, inputs: Sequence[Tensor]) -> Tensor:
    """Put each entry of the first axis into an array."""
    element = _element(inputs)
    value = inputs[1] if node.op in _UNPACKING else inputs[2]
    _store(an, node, element, value.axes[1:] if value.axes else None)
    return Tensor((), element=element)


def stack(an: Analysis, node: Node, inputs: Sequence[Tensor]) -> Tensor:
    """Take all tensors out of an array, along a new axis."""
    held = _held(an, node, _element(inputs), 1)
    return Tensor(None if held is None else (Atom(None), *held))


def flatten(an: Analysis, node: Node, inputs: Sequence[Tensor]) -> list[Tensor]:
    """Take all tensors out of an array, one behind the other."""
    element = _element(inputs)
    held = _held(an, node, element, 0)
    lengths = Tensor((Atom(None),))
    return [Tensor(None if not held else (Atom(None), *held[1:])), lengths]


def distribute(an: Analysis, node: Node, inputs: Sequence[Tensor]) -> Tensor:
    """Cut a tensor into pieces of the first axis and put these into an array."""
    element = _element(inputs)
    axes = inputs[1].axes
    _store(an, node, element, (Atom(None), *axes[1:]) if axes else None)
    return Tensor((), element=element)


def list_from(an: Analysis, node: Node, inputs: Sequence[Tensor]) -> Tensor:
    """Make a list of the entries of the first axis."""
    element = Element()
    if inputs[0].axes:
        element.axes = inputs[0].axes[1:]
        _tell(an, node, inputs[1], element.axes)
    return Tensor((), element=element)


def new_list(an: Analysis, node: Node, inputs: Sequence[Tensor]) -> Tensor:
    """Make a list, of which the shape of its tensors may be known."""
    element = Element()
    cells = inputs[0].cells
    if cells is not None and inputs[0].axes:
        element.axes = tuple(Atom(None) if c.value == -1 else an.sized(c, node) for c in cells)
    return Tensor((), element=element)


def list_put(an: Analysis, node: Node, inputs: Sequence[Tensor]) -> Tensor:
    """Put a tensor into a list."""
    element = _element(inputs)
    _store(an, node, element, inputs[-1 if node.op == "TensorListPushBack" else 2].axes)
    return Tensor((), element=element)


def list_pop(an: Analysis, node: Node, inputs: Sequence[Tensor]) -> list[Tensor]:
    """Take the last tensor off a list."""
    element = _element(inputs)
    _tell(an, node, inputs[1], element.axes)
    return [Tensor((), element=element), Tensor(element.axes)]


def list_stack(an: Analysis, node: Node, inputs: Sequence[Tensor]) -> Tensor:
    """Take all tensors out of a list, along a new axis."""
    held = _held(an, node, _element(inputs), 1)
    _tell(an, node, inputs[1], held)
    return Tensor(None if held is None else (Atom(None), *held))


def optional(an: Analysis, node: Node, inputs: Sequence[Tensor]) -> Tensor:
    """Hold one tensor, or none: what a branch of a condition leaves for the gradients."""
    if len(inputs) > 1:
        raise Clash
    element = Element()
    element.axes = inputs[0].axes if inputs else None
    return Tensor((), element=element)


def taken_out(an: Analysis, node: Node, inputs: Sequence[Tensor]) -> Tensor:
    """Take the tensor out of what holds one or none."""
    shape = node.shape("output_shapes", 0)
    return Tensor(_held(an, node, _element(inputs), 0) or an.fresh(shape))


def lstm_cell(an: Analysis, node: Node, inputs: Sequence[Tensor]) -> list[Tensor]:
    """One step of an LSTM, or all: the kernel is [features + units, gates*units]."""
    is_block = node.op.startswith("BlockLSTM")
    x, c, h, kernel, *peepholes, bias = inputs[1:] if is_block else inputs
    first = 4 if is_block else 3
    if x.axes is None or kernel.axes is None:
        raise Clash
    units = _units(kernel, c, h, _GATES)
    gates = leaf(_GATES)
    an.touch("fixed", [gates], node)
    _recur(an, node, x, kernel, units, gates, first)
    an.tie(bias.axes[0] if bias.axes else leaf(None), product((gates, units)), node)
    an.use(bias.origin(0), (bias.axes or (units,))[0], "shift", node)
    for state in (c, h):
        if state.axes:
            an.tie(state.axes[-1], units, node)
            an.tie(state.axes[0], x.axes[-2], node)
    if node.integer("use_peephole"):
        for peephole in peepholes:
            if peephole.axes:
                an.tie(peephole.axes[0], units, node)
                an.use(peephole.origin(0), peephole.axes[0], "gain", node)
    an.touch("nonlinear", [units], node)
    return [Tensor((*x.axes[:-1], units))] * 7


def _units(kernel: Tensor, c: Tensor, h: Tensor, gates: int) -> Atom:
    for state in (h, c):
        if state.axes and size_of(state.axes[-1]) is not None:
            return state.axes[-1]
    columns = size_of(kernel.axes[1]) if kernel.axes and len(kernel.axes) == 2 else None
    if columns is None or columns % gates:
        raise Clash
    return leaf(columns // gates)


def _recur(
    an: Analysis, node: Node, x: Tensor, kernel: Tensor, units: Atom, gates: Atom, place: int
) -> None:
    """Multiply the input and the state with a kernel that has a block of columns for each gate."""
    if x.axes is None or kernel.axes is None:
        raise Clash
    rows, columns = kernel.axes
    an.tie(rows, concat((x.axes[-1], units)), node)
    an.tie(columns, product((gates, units)), node)
    if an.is_weight(node.inputs[place]):
        an.use(kernel.origin(0), rows, "consume", node)
        an.use(kernel.origin(1), columns, "produce", node)


def gru_cell(an: Analysis, node: Node, inputs: Sequence[Tensor]) -> list[Tensor]:
    """One step of a GRU, with its two gates in one kernel and the candidate in another."""
    x, h, gates, candidate, gates_bias, candidate_bias = inputs
    if x.axes is None or candidate.axes is None:
        raise Clash
    units = candidate.axes[1]
    if h.axes:
        an.tie(h.axes[-1], units, node)
    both = leaf(2)
    an.touch("fixed", [both], node)
    _recur(an, node, x, gates, units, both, 2)
    _recur(an, node, x, candidate, units, ONE, 3)
    for bias, count in ((gates_bias, both), (candidate_bias, ONE)):
        if bias.axes:
            an.tie(bias.axes[0], product((count, units)), node)
            an.use(bias.origin(0), bias.axes[0], "shift", node)
    an.touch("nonlinear", [units], node)
    found = Tensor((x.axes[0], units))
    return [found] * 4


_UNPACKING = frozenset({"TensorArrayUnpack"})

RULES: dict[str, Rule] = {
    **for_ops("Merge RefMerge", merge),
    **for_ops("NextIteration RefNextIteration", turn),
    **for_ops("Switch RefSwitch", switch),
    **for_ops("_Return IdentityN", returned),
    "_Join": join,
    "_Loop": loop,
    **for_ops("TensorArray TensorArrayV2 TensorArrayV3", array),
    **for_ops("TensorArrayWrite TensorArrayWriteV2 TensorArrayWriteV3", write),
    **for_ops("TensorArrayRead TensorArrayReadV2 TensorArrayReadV3", read),
    **for_ops(
        "TensorArrayScatter TensorArrayScatterV2 TensorArrayScatterV3 TensorArrayUnpack", scatter
    ),
    **for_ops("TensorArrayGather TensorArrayGatherV2 TensorArrayGatherV3 TensorArrayPack", stack),
    **for_ops("TensorArrayConcat TensorArrayConcatV2 TensorArrayConcatV3", flatten),
    **for_ops("TensorArraySplit TensorArraySplitV2 TensorArraySplitV3", distribute),
    **for_ops("TensorListFromTensor", list_from),
    **for_ops("TensorListReserve EmptyTensorList", new_list),
    **for_ops("TensorListSetItem TensorListPushBack", list_put),
    **for_ops("OptionalFromValue OptionalNone", optional),
    "OptionalGetValue": taken_out,
    "TensorListGetItem": read,
    "TensorListPopBack": list_pop,
    "TensorListStack": list_stack,
    **for_ops("LSTMBlockCell BlockLSTM BlockLSTMV2", lstm_cell),
    "GRUBlockCell": gru_cell,
}
