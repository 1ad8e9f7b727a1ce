"""The rows that a recurrent cell throws away, as their sequences have ended before."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from functools import cached_property
from typing import NamedTuple

from converter.graph.node import Node, Output
from converter.graph.ops import (
    CELLS,
    COMPARING,
    ENTERS,
    EXITS,
    LOOKUPS,
    MERGES,
    NEXT_ITERATION,
    REVERSES,
    SAME,
    SELECTS,
    SWITCHES,
    ops,
)
from converter.graph.ordered import OrderedGraph
from converter.structure.layers.factors import WIDENS, Factors, Rows
from converter.structure.layers.steps import same_axis, takers
from converter.structure.tensors.analysis import Analysis
from converter.structure.tensors.atoms import size_of

_ENDS = EXITS | NEXT_ITERATION | ENTERS | ops("_Loop")
_KEEPS = ops("""
    TensorArrayWrite TensorArrayWriteV2 TensorArrayWriteV3 TensorListSetItem TensorListPushBack
    """)
# Says of each length that it is not above a step: in which order it takes both.
_ENDED = {"LessEqual": 1, "GreaterEqual": -1}
# What mixes rows, or gives them out in another order.
_MIXES = (
    LOOKUPS
    | REVERSES
    | ops("""
    GatherNd RandomShuffle Roll Cumsum Cumprod SegmentSum SegmentMean SegmentMax SegmentMin
    UnsortedSegmentSum UnsortedSegmentMax UnsortedSegmentMin UnsortedSegmentProd
    """)
)
_MAX_NODES = 4096
_MAX_OF_CELL = 512
_MAX_PASSED = 16


class Mask(NamedTuple):
    """What says which rows count.

    Attributes:
        output: a bool or a number for each row, or with `step` the length of each sequence.
        keeps: whether those count for which it is not zero, or those for which it is.
        step: the number of the step, beyond which sequences have to go on; None where bools tell.
    """

    output: Output
    keeps: bool
    step: int | None = None


class Masks:
    """Tells by what rows of tensors are thrown away.

    Args:
        analysis: of the graph.
    """

    def __init__(self, analysis: Analysis) -> None:
        self._analysis = analysis
        self._factors = Factors(analysis)

    @cached_property
    def is_any(self) -> bool:
        """Whether anything of the graph is chosen or kept row by row."""
        return (
            any(
                node.op in SELECTS and node.inputs and self._by_row(node) is not None
                for node in self._analysis.flow.telling
            )
            or self._factors.is_any
        )

    def of(self, begin: Output, *, is_unrolled: bool = False) -> Mask | None:
        """Return by what rows of a tensor are thrown away; None where all count.

        Args:
            begin: a tensor that a cell makes in a step; of a cell that is one op any of its own.
            is_unrolled: whether there is no loop; then nothing farther than a cell goes is looked
                at.
        """
        graph, telling = self._analysis.graph, self._analysis.flow.telling
        found: dict[Hashable, Mask] = {}
        is_product = is_mixed = False
        waiting = [begin]
        if begin.node.op in CELLS:
            waiting = self._given(begin.node)
        seen = set(waiting)
        most = _MAX_OF_CELL if is_unrolled else _MAX_NODES
        while waiting and len(seen) < most:
            output = waiting.pop()
            nodes = takers(self._analysis, output)
            if not nodes and telling.isdisjoint(graph.consumers[output.node]):
                # It is looked at from outside.
                return None
            for node in nodes:
                if node.op in _ENDS or node.op in _KEEPS:
                    # It is kept as it is, or handed on to the next turn.
                    return None
                rows = self._factors.rows_of(node, output)
                mask = self._chosen(node, output) if rows is None else Mask(*rows)
                is_product = is_product or rows is not None
                if mask is not None:
                    found.setdefault(self._said(mask), mask)
                    if len(found) > 1:
                        return None
                    continue
                is_mixed = is_mixed or self._mixes(node, output)
                # In their order, so that of masks that are the same it is always one.
                given = [taken for taken in self._given(node) if taken not in seen]
                seen.update(given)
                waiting += given
        if waiting or len(found) != 1:
            return None
        if is_product and (is_mixed or not self._are_by_row(seen)):
            return None
        return next(iter(found.values()))

    def _mixes(self, node: Node, output: Output) -> bool:
        """Whether a node makes rows of others than the same ones of a tensor."""
        if node.op == "MatMul":
            return output in node.inputs[1:] or bool(node.integer("transpose_a"))
        if node.op == "Einsum":
            taken, _, made = node.text("equation").partition("->")
            pairs = zip(node.inputs, taken.split(","), strict=False)
            return any(term[:1] != made[:1] for given, term in pairs if given == output)
        if node.op == "StridedSlice" and node.inputs[0] == output:
            strides = self._analysis.tensor(node.inputs[-1]).values
            return not strides or strides[0] != 1
        return node.op in _MIXES

    def _said(self, mask: Mask) -> Hashable:
        """Return what a mask is told by: old cells compare the lengths anew for each tensor."""
        return self._factors.said(Rows(*mask[:2])) if mask.step is None else mask

    def _are_by_row(self, outputs: Iterable[Output]) -> bool:
        """Whether tensors have one first axis, so that a row of one is made of that of another."""
        axes = [self._analysis.tensor(output).axes for output in outputs]
        first = axes[0][0] if axes and axes[0] else None
        return first is not None and all(a and same_axis(a[0], first) for a in axes)

    def _given(self, node: Node) -> list[Output]:
        """Return the outputs of a node, up to the last one that is taken."""
        consumers = self._analysis.graph.consumers[node]
        taken = [o.port for c in consumers for o in c.inputs if o.node is node]
        return [Output(node, port) for port in range(max(taken, default=0) + 1)]

    def _chosen(self, node: Node, output: Output) -> Mask | None:
        mask = self._chosen_by(node, output) or self._chosen_beside(node, output)
        return None if mask is None else self._outside(mask)

    def _chosen_by(self, node: Node, output: Output) -> Mask | None:
        """Return the mask of a choice, row by row, of a tensor or what was there before it."""
        if node.op not in SELECTS or len(node.inputs) != 3:
            return None
        own = _origin(output)
        is_own = [_origin(given) == own for given in node.inputs[1:]]
        condition = self._by_row(node)
        return None if condition is None or sum(is_own) != 1 else Mask(condition, is_own[0])

    def _chosen_beside(self, node: Node, output: Output) -> Mask | None:
        """Return that of a choice that is left out in a branch, as no sequence has ended yet."""
        if node.op not in MERGES and node.op != "_Join":
            return None
        for given in node.inputs:
            mask = self._chosen_by(_origin(given).node, output)
            if mask is not None and _origin(mask.output).node.op in COMPARING:
                return mask
        return None

    def _outside(self, mask: Mask) -> Mask:
        """Return what a mask is made of where that is done in a branch, which may not be taken."""
        compare = mask.output.node
        if compare.op not in _ENDED or mask.keeps:
            return mask
        lengths, step = compare.inputs[:: _ENDED[compare.op]]
        steps, outer = self._analysis.tensor(step).values, _origin(lengths)
        if lengths.node.op not in SWITCHES or not steps or outer.port:
            return mask
        return Mask(outer, True, steps[0])

    def _by_row(self, node: Node) -> Output | None:
        """Return the bools that the condition of a choice repeats for each unit."""
        condition, found = node.inputs[0], None
        axes = self._analysis.tensor(condition).axes
        made = self._analysis.tensor(Output(node, 0)).axes
        if node.op == "SelectV2" and axes and made and len(axes) != len(made):
            # It is aligned with the last axes, which are units.
            return None
        first = axes[0] if axes else None
        for _ in range(_MAX_PASSED):
            axes = self._analysis.tensor(condition).axes
            if first is None or not axes or not same_axis(axes[0], first):
                break
            if all(size_of(atom) == 1 for atom in axes[1:]):
                found = condition
            if condition.node.op not in WIDENS or not condition.node.inputs:
                break
            if self._factors.is_turned(condition.node):
                break
            condition = condition.node.inputs[0]
        return found


def _origin(output: Output) -> Output:
    """Return what a tensor is before it was handed on, into branches too."""
    for _ in range(_MAX_PASSED):
        if output.node.op not in SAME | SWITCHES or not output.node.inputs:
            break
        output = output.node.inputs[0]
    return output


def in_loops(graph: OrderedGraph) -> set[Node]:
    """Return the nodes that a loop runs in each turn, as far as they lead to the next one."""
    found: set[Node] = set()
    for node in graph.nodes:
        if node.op in NEXT_ITERATION:
            scope = ""
        elif node.op == "_Loop":
            scope = node.name.rpartition("/")[0] + "/"
        else:
            continue
        waiting = [output.node for output in node.inputs[-1:]]
        while waiting:
            source = waiting.pop()
            if source in found or source.op in ENTERS or not source.name.startswith(scope):
                continue
            found.add(source)
            waiting += [output.node for output in source.inputs]
    return found
