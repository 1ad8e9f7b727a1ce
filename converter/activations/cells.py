"""What cells that are one op take and make, which no tensor of the graph holds.

Such an op takes the input and the state apart, and gives its gates as they are activated. What its
kernel is multiplied with, and what that makes, is computed again beside it. These tensors are
called by the name of the op and by their own: `lstm_cell/BlockLSTM:gates`, as no other tensor is.
So is what tells the steps that count, where the graph does that in a branch that is not always run.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

from converter.graph.node import Node, Tensor
from converter.structure.axes.axis import Use

TAKEN = "taken"
"""The input and the state that the kernel is multiplied with."""

GATES = "gates"
"""What the kernel makes of it, with the bias, before it is activated: (steps * batch, units)."""

RESET = "reset"
"""The input and the state behind the reset gate, which the kernel of the candidate takes."""

LIVES = "lives"
"""Whether a sequence has not ended, (steps, batch)."""

LONGER = re.compile(r"longer_(\d{1,9})")
"""Beside lengths of sequences: whether one is longer than so many steps, (batch,)."""

PEEPHOLES = ("peephole_i", "peephole_f", "peephole_o")
"""What is added to a gate of the cell's state."""

_CANDIDATE = 2
_LSTM = {
    0: (TAKEN, GATES),
    **{1 + number: ("", name) for number, name in enumerate(PEEPHOLES)},
    4: ("", GATES),
}
_GRU = {2: (TAKEN, GATES), 3: (RESET, _CANDIDATE), 4: ("", GATES), 5: ("", _CANDIDATE)}
_KERNELS: Mapping[str, int] = {"LSTMBlockCell": 3, "BlockLSTM": 4, "BlockLSTMV2": 4}
INT32, INT64, BOOL = 3, 9, 10


def tensors_of(node: Node, place: int, use: Use) -> Tensor | None:
    """Return the tensor in which the units of a variable are that a cell takes.

    Args:
        node: the cell.
        place: which of its inputs the variable is.
        use: what is asked: what it consumes, or anything else for what it makes.
    """
    first = _KERNELS.get(node.op)
    names = _GRU.get(place) if first is None else _LSTM.get(place - first)
    if names is None:
        return None
    found = names[0 if use == "consume" else 1]
    if isinstance(found, int):
        return Tensor(node.name, found)
    return Tensor(f"{node.name}:{found}") if found else None


def lives_of(node: Node) -> Tensor | None:
    """Return what says which steps of a cell count; None of what is one step only."""
    return Tensor(f"{node.name}:{LIVES}") if node.op.startswith("BlockLSTM") else None


def longer_than(lengths: Tensor, step: int) -> Tensor:
    """Return what says which sequences go on behind a step."""
    return Tensor(f"{lengths.node}:longer_{step}")


def cell_of(source: Tensor) -> Tensor:
    """Return the cell beside which a tensor is computed; any other tensor as it is."""
    name, colon, _ = source.node.partition(":")
    return Tensor(name) if colon else source


class Graph(NamedTuple):
    """How nodes are put into a graph.

    Attributes:
        add: adds a node of an op that takes these tensors, with attributes, numbers or the numbers
            of dtypes, and returns its first output.
        constant: adds integers of a dtype, or one.
        lengths: gives what a tensor is the largest of, and the dtype of that; None where it is of
            nothing.
    """

    add: Callable[[str, Sequence[bytes], Mapping[str, int]], bytes]
    constant: Callable[[Sequence[int] | int, int], bytes]
    lengths: Callable[[bytes], tuple[bytes, int] | None]


class Cell(NamedTuple):
    """A cell in a graph.

    Attributes:
        op: what it is.
        inputs: what it takes.
        outputs: what it gives.
        dtype: TensorFlow's number of the dtype of both.
    """

    op: str
    inputs: Sequence[bytes]
    outputs: Sequence[bytes]
    dtype: int


class Beside:
    """What is computed beside a cell, each tensor once.

    Args:
        graph: puts nodes beside it.
        cell: which.

    Raises:
        IndexError: the cell lacks inputs.
    """

    def __init__(self, graph: Graph, cell: Cell) -> None:
        self._graph = graph
        self._cell = cell
        self._made: dict[str, bytes] = {}
        self._makers: Mapping[str, Callable[[], bytes]] = {
            TAKEN: self._taken,
            GATES: self._gates,
            RESET: self._reset,
            LIVES: self._lives,
            **{name: partial(self._peephole, number) for number, name in enumerate(PEEPHOLES)},
        }
        self._is_gru = cell.op not in _KERNELS
        self._has_steps = cell.op.startswith("BlockLSTM")
        # Before the kernel stand the state and the output of the step before, but for a GRU.
        kernel = 2 if self._is_gru else _KERNELS[cell.op]
        self._kernel = cell.inputs[kernel]
        self._bias = cell.inputs[kernel + (2 if self._is_gru else 4)]
        self._peepholes = cell.inputs[kernel + 1 : kernel + 4]
        self._x = cell.inputs[int(self._has_steps)]
        self._h, self._c = cell.inputs[kernel - 1], cell.inputs[kernel - 2]

    def tensor(self, what: str) -> tuple[bytes, int]:
        """Return a tensor, and TensorFlow's number of its dtype.

        Raises:
            KeyError: there is no such tensor.
            IndexError: the cell lacks inputs.
        """
        if what not in self._made:
            self._made[what] = self._makers[what]()
        return self._made[what], BOOL if what == LIVES else self._cell.dtype

    def _taken(self) -> bytes:
        return self._beside(self._x, self._before(self._h, 6))

    def _gates(self) -> bytes:
        taken, _ = self.tensor(TAKEN)
        if self._has_steps:
            # One product of all steps takes a third of the time of one for each.
            sizes = self._add("Shape", self._kernel, out_type=INT32)
            ends = [self._graph.constant([number], INT32) for number in (0, 1, 1)]
            rows = self._graph.add("StridedSlice", [sizes, *ends], {"T": INT32, "Index": INT32})
            ends = [self._graph.constant([-1], INT32), rows, self._graph.constant(0, INT32)]
            flat = self._graph.add("ConcatV2", ends, {"T": INT32, "N": 2, "Tidx": INT32})
            taken = self._add("Reshape", taken, flat, Tshape=INT32)
        return self._add("BiasAdd", self._add("MatMul", taken, self._kernel), self._bias)

    def _reset(self) -> bytes:
        return self._beside(self._x, self._add("Mul", self._cell.outputs[0], self._h))

    def _peephole(self, number: int) -> bytes:
        state = self._cell.outputs[1] if number == 2 else self._before(self._c, 1)
        return self._add("Mul", state, self._peepholes[number])

    def _lives(self) -> bytes:
        """Compare the number of each step with the lengths, or with the largest of them."""
        graph, constant = self._graph, self._graph.constant
        dtype = {"T": self._cell.dtype, "out_type": INT64}
        shape = graph.add("Shape", [self._x], dtype)
        index = {"T": INT64, "Index": INT32}
        ends = [constant([n], INT32) for n in range(3)]
        picked = [shape, ends[0], ends[1], ends[1]]
        count = graph.add("StridedSlice", picked, {**index, "shrink_axis_mask": 1})
        rows = graph.add("StridedSlice", [shape, ends[0], ends[2], ends[1]], index)
        numbers = [constant(0, INT64), count, constant(1, INT64)]
        steps = graph.add("Range", numbers, {"Tidx": INT64})
        sizes = {"T": INT64, "Tdim": INT32}
        steps = graph.add("ExpandDims", [steps, constant(1, INT32)], sizes)
        limit = self._cell.inputs[0]
        if (lengths := graph.lengths(limit)) is not None:
            limit = graph.add("Cast", lengths[:1], {"SrcT": lengths[1], "DstT": INT64})
        lives = graph.add("Less", [steps, limit], {"T": INT64})
        return graph.add("BroadcastTo", [lives, rows], {"T": BOOL, "Tidx": INT64})

    def _add(self, op: str, *inputs: bytes, **more: int) -> bytes:
        return self._graph.add(op, inputs, {"T": self._cell.dtype, **more})

    def _beside(self, *parts: bytes) -> bytes:
        axis = self._graph.constant(-1, INT32)
        return self._add("ConcatV2", *parts, axis, N=len(parts), Tidx=INT32)

    def _before(self, first: bytes, port: int) -> bytes:
        """Return what a state was before each step."""
        if not self._has_steps:
            return first
        zero = self._graph.constant(0, INT32)
        first = self._add("ExpandDims", first, zero, Tdim=INT32)
        every = [first, self._cell.outputs[port], zero]
        joined = self._add("ConcatV2", *every, N=2, Tidx=INT32)
        ends = [self._graph.constant([number], INT32) for number in (0, -1, 1)]
        return self._add("StridedSlice", joined, *ends, Index=INT32, begin_mask=1)
