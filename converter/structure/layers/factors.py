"""The rows that a cell throws away as it multiplies them with zeros: masks that are arithmetic.

`m * new + (1 - m) * old` and `old + m * (new - old)` keep an older state where m is zero. A gate
looks the same. What tells a mask is that all units share it, and that nothing that was learned, and
nothing that is drawn, has a part in it.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from functools import cached_property
from itertools import product
from typing import NamedTuple

from converter.dtype import BOOL
from converter.graph.node import Node, Output
from converter.graph.ops import (
    ADDS,
    BOOLS,
    CONTROL_FLOW,
    LOOP,
    RANDOM,
    REPEATS,
    RESHAPES,
    SAME,
    SHAPE_ONLY,
    SLICES,
    SWITCHES,
    VARIABLES,
    ops,
)
from converter.structure.layers.steps import same_axis
from converter.structure.tensors.analysis import Analysis, Axes
from converter.structure.tensors.atoms import size_of
from converter.structure.tensors.flow import Kind

WIDENS = SAME | RESHAPES | REPEATS
"""What makes of a number for each row one for each of its units, and back."""

_SUMS = ADDS | ops("AddN Sub")
_HANDED_ON = SAME | SWITCHES
# What gives out some of what it takes.
_PICKS = WIDENS | SLICES | ops("Transpose Unpack")
# The opposites of comparisons.
_OPPOSITES = {"GreaterEqual": "Less", "Greater": "LessEqual"}
_MAX_PASSED = 16
_MAX_OF_CELL = 4096
_MAX_DEPTH = 6
_MAX_INPUTS = 4


class Rows(NamedTuple):
    """What says which rows are something: those for which it is not zero, or those for which it is.

    Attributes:
        output: bools or numbers, one for each row.
        is_nonzero: which of the two.
    """

    output: Output
    is_nonzero: bool


class Factors:
    """Tells what in a graph is multiplied with zeros where a sequence has ended.

    Args:
        analysis: of the graph.
    """

    def __init__(self, analysis: Analysis) -> None:
        self._analysis = analysis

    @property
    def is_any(self) -> bool:
        """Whether a state is kept anywhere by arithmetic."""
        return bool(self._masks)

    def rows_of(self, node: Node, output: Output) -> Rows | None:
        """Return which rows of a tensor a node does not multiply with zero.

        Args:
            node: it takes the tensor.
            output: the tensor.

        Returns:
            Which rows; None where it multiplies with nothing by which a state is kept.
        """
        if node.op != "Mul" or not self._masks:
            return None
        rows = self._factor(node, output)
        return rows if rows is not None and self.said(rows) in self._masks else None

    def said(self, rows: Rows) -> Hashable:
        """Return what rows are told by, which is equal where that is computed several times."""
        last = self._last(rows.output)
        base = Rows(last.output, last.is_nonzero == rows.is_nonzero) if last else rows
        node = base.output.node
        if node.op in _OPPOSITES:
            inputs = tuple(self._expression(given, _MAX_DEPTH) for given in node.inputs)
            return (_OPPOSITES[node.op], 0, inputs), not base.is_nonzero
        if node.op in _OPPOSITES.values():
            inputs = tuple(self._expression(given, _MAX_DEPTH) for given in node.inputs)
            return (node.op, 0, inputs), base.is_nonzero
        return self._expression(base.output, _MAX_DEPTH), base.is_nonzero

    @cached_property
    def _masks(self) -> frozenset[Hashable]:
        """What tells the rows for which a state is made anew, wherever one is kept else."""
        found: set[Hashable] = set()
        flow = self._analysis.flow
        for node in flow.telling:
            if node.op in _SUMS and len(node.inputs) == 2 and flow.kinds[node] is Kind.DATA:
                rows = [*self._of_sum(node), *self._of_step(node)]
                found.update(self.said(each) for each in rows if self._is_given(each))
        return frozenset(found)

    def _is_given(self, rows: Rows) -> bool:
        """Whether rows are told by data or numbers of steps, and by nothing that was learned."""
        last = self._last(rows.output) or rows
        is_of_data = self._analysis.kind(last.output) is Kind.DATA or last.output.node.op in BOOLS
        return is_of_data and rows.output not in self._learned

    def _of_sum(self, node: Node) -> Iterator[Rows]:
        """Yield what `m` is of `m * new + (1 - m) * old`."""
        products = [self._product(given) for given in node.inputs]
        for made, kept in (products, products[::-1]):
            if made is None or kept is None or node.op == "Sub":
                continue
            for value, state in product(made.inputs, kept.inputs):
                rows, factor = self._factor(made, value), _other(kept, state)
                if rows is None or factor is None or not self._are_opposite(rows, factor):
                    continue
                if self._is_computed_from(value, state):
                    yield rows

    def _of_step(self, node: Node) -> Iterator[Rows]:
        """Yield what `m` is of `old + m * (new - old)`, or of `old - m * (old - new)`."""
        is_taken = node.op == "Sub"
        for old, step in (node.inputs, node.inputs[::-1])[: 1 if is_taken else 2]:
            scaled = self._product(step)
            for value in scaled.inputs if scaled is not None else ():
                difference = self._source(value).node
                rows = self._factor(scaled, value) if difference.op == "Sub" and scaled else None
                if rows is None or len(difference.inputs) != 2:
                    continue
                new, before = difference.inputs[:: -1 if is_taken else 1]
                is_same = self._source(before) == self._source(old)
                if is_same and self._is_computed_from(new, old):
                    yield rows

    def _product(self, output: Output) -> Node | None:
        """Return the product that a tensor is."""
        if output.node.op in _HANDED_ON:
            output = self._source(output)
        return output.node if output.node.op == "Mul" else None

    def _factor(self, node: Node, output: Output) -> Rows | None:
        """Return for which rows a product does not multiply a tensor with zero."""
        analysis, factor = self._analysis, _other(node, output)
        axes = analysis.tensor(output).axes
        taken = None if factor is None else analysis.tensor(factor).axes
        if factor is None or not axes or not taken or len(axes) != len(taken):
            return None
        return next(self._told(factor), None) if same_axis(axes[0], taken[0]) else None

    def _told(self, factor: Output) -> Iterator[Rows]:
        """Yield the rows for which a factor is not zero, by what it is made of, step by step."""
        analysis, is_nonzero = self._analysis, True
        axes = analysis.tensor(factor).axes
        first = axes[0] if axes else None
        for _ in range(_MAX_PASSED):
            axes = analysis.tensor(factor).axes
            if first is None or not axes or not same_axis(axes[0], first):
                return
            if _is_row(axes):
                yield Rows(factor, is_nonzero)
            further = self._before(factor)
            if further is None:
                return
            factor, is_nonzero = further.output, is_nonzero == further.is_nonzero

    def _last(self, factor: Output) -> Rows | None:
        """Return the rows for which a factor is not zero, by the first that it is made of."""
        *_, found = [None, *self._told(factor)]
        return found

    def _before(self, factor: Output) -> Rows | None:
        """Return what is zero where a factor is, or where it is not."""
        node = factor.node
        if self._widens(node) or (node.op == "Cast" and _keeps_zeros(node)):
            return Rows(node.inputs[0], True)
        if node.op == "LogicalNot" or (node.op == "Sub" and self._is_opposite(node)):
            return Rows(node.inputs[-1], False)
        other = self._scaled(node)
        return None if other is None else Rows(other, True)

    def _widens(self, node: Node) -> bool:
        """Whether a node gives out all that it takes, in as many axes or others."""
        if node.op != "StridedSlice" or len(node.inputs) != 4:
            return node.op in WIDENS and bool(node.inputs) and not self.is_turned(node)
        # It is `x[:, None]`.
        strides = self._analysis.tensor(node.inputs[3]).values
        added = node.integer("new_axis_mask")
        whole = node.integer("begin_mask") & node.integer("end_mask")
        rest = node.integer("shrink_axis_mask") | node.integer("ellipsis_mask")
        if not strides or any(stride != 1 for stride in strides) or rest:
            return False
        return all((added | whole) >> place & 1 for place in range(len(strides)))

    def _chain(self, output: Output) -> list[Output]:
        """Return a tensor, and what it was before it was handed on in a turn of a loop."""
        found = [output]
        while len(found) < _MAX_PASSED and output.node.op in _HANDED_ON:
            if not output.node.inputs or self.is_turned(output.node):
                break
            output = output.node.inputs[0]
            found.append(output)
        return found

    def _source(self, output: Output) -> Output:
        return self._chain(output)[-1]

    def is_turned(self, node: Node) -> bool:
        """Whether a node is what each turn of a loop takes from the one before."""
        return node in self._analysis.graph.turned

    def _scaled(self, node: Node) -> Output | None:
        """Return what a node multiplies with a number that is not zero."""
        if node.op != "Mul" or len(node.inputs) != 2:
            return None
        numbers = [self._analysis.tensor(given).number for given in node.inputs]
        found = [given for given, n in zip(node.inputs, numbers[::-1], strict=True) if n]
        return found[0] if found else None

    def _is_opposite(self, node: Node) -> bool:
        """Whether a node takes what is zero or one from one."""
        is_from_one = len(node.inputs) == 2 and self._analysis.tensor(node.inputs[0]).number == 1
        return is_from_one and self._is_bit(node.inputs[1])

    def _is_bit(self, output: Output) -> bool:
        """Whether a tensor holds nothing but zeros and ones."""
        for _ in range(_MAX_PASSED):
            node = output.node
            if node.op in BOOLS or (node.op == "Cast" and node.dtype("SrcT") is BOOL):
                return True
            is_turned_round = node.op == "Sub" and self._analysis.tensor(node.inputs[0]).number == 1
            if is_turned_round or (node.op in _PICKS and node.inputs and not self.is_turned(node)):
                output = node.inputs[-1 if is_turned_round else 0]
            else:
                break
        return False

    def _are_opposite(self, made: Rows, kept: Output) -> bool:
        """Whether a factor is one minus what tells some rows."""
        told, (output, is_nonzero) = self._last(kept), made
        if told is not None and self.said(told) == self.said(Rows(output, not is_nonzero)):
            return True
        of_kept, of_made = self._from_one(kept), self._from_one(output)
        if of_kept is not None and (rest := self._last(of_kept)) is not None:
            return self.said(rest) == self.said(made)
        if of_made is not None and told is not None and (rest := self._last(of_made)) is not None:
            return is_nonzero and self.said(rest) == self.said(told)
        return False

    def _from_one(self, output: Output) -> Output | None:
        """Return what a tensor is taken from one."""
        for _ in range(_MAX_PASSED):
            node = output.node
            if node.op == "Sub" and self._analysis.tensor(node.inputs[0]).number == 1:
                return node.inputs[1]
            if not self._widens(node):
                break
            output = node.inputs[0]
        return None

    def _is_computed_from(self, new: Output, old: Output) -> bool:
        """Whether a state comes of the one before."""
        before = set(self._chain(old))
        first = min(output.node.order for output in before)
        waiting, seen = [new], {new}
        while waiting and len(seen) < _MAX_OF_CELL:
            output = waiting.pop()
            if output in before:
                return True
            given = {o for o in output.node.inputs if o.node.order >= first} - seen
            seen |= given
            waiting += given
        return False

    def _expression(self, output: Output, depth: int) -> Hashable:
        """Return how a tensor is computed: the same for those that are computed alike."""
        for _ in range(_MAX_PASSED):
            if output.node.op not in SAME or not output.node.inputs or self.is_turned(output.node):
                break
            output = output.node.inputs[0]
        known, node = self._analysis.tensor(output), output.node
        if known.number is not None:
            return known.number
        if known.values is not None:
            return tuple(known.values)
        if not depth or not 0 < len(node.inputs) <= _MAX_INPUTS or node.op in CONTROL_FLOW | RANDOM:
            return output
        attributes = tuple(
            (key, value.SerializeToString())
            for key, value in sorted(node.attributes.items())
            if not key.startswith("_")
        )
        inputs = tuple(self._expression(given, depth - 1) for given in node.inputs)
        return (node.op, output.port, attributes, inputs)

    @cached_property
    def _learned(self) -> frozenset[Output]:
        """What variables or chance have a part in, beyond shapes and which way things go."""
        graph, variables = self._analysis.graph, self._analysis.variables
        consumers = graph.consumers

        def given(node: Node) -> set[Output]:
            return {o for taker in consumers[node] for o in taker.inputs if o.node is node}

        begin = VARIABLES | RANDOM
        nodes = {node for node in graph.nodes if node.op in begin or node in variables}
        found = {output for node in nodes for output in given(node)}
        waiting = list(found)
        while waiting:
            output = waiting.pop()
            for node in consumers[output.node]:
                places = [place for place, taken in enumerate(node.inputs) if taken == output]
                is_told = node.op in SHAPE_ONLY or (node.op in SWITCHES and 0 not in places)
                if not places or is_told or node in nodes:
                    continue
                if node.op == "_Return":
                    more = {Output(node, place) for place in places}
                else:
                    nodes.add(node)
                    more = given(node)
                    # What a turn gives is what the next one takes.
                    more |= given(node.inputs[0].node) if node.op == LOOP else set()
                waiting += more - found
                found |= more
        return frozenset(found)


def _is_row(axes: Axes) -> bool:
    return all(size_of(atom) == 1 for atom in axes[1:])


def _other(node: Node, output: Output) -> Output | None:
    """Return what a product multiplies a tensor with."""
    others = [given for given in node.inputs if given != output]
    return others[0] if len(node.inputs) == 2 and len(others) == 1 else None


def _keeps_zeros(node: Node) -> bool:
    """Whether a cast makes zeros of zeros alone."""
    taken, given = (
        found.numpy.kind if found is not None and found.numpy is not None else ""
        for found in (node.dtype("SrcT"), node.dtype("DstT"))
    )
    return "b" in (taken, given) or (taken in ("i", "u") and given == "f")
