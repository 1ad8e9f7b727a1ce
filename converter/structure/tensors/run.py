"""From a checkpoint and its graph to what all ops say about the axes of its variables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from converter.graph.node import Node
from converter.graph.ordered import OrderedGraph
from converter.structure.tensors.analysis import Analysis, Origin, Tensor
from converter.structure.tensors.atoms import Atom, Clash, Whole, leaf
from converter.structure.tensors.flow import Flow
from converter.structure.tensors.rules import RULES
from converter.structure.tensors.variables import Binding, bind, parts

if TYPE_CHECKING:
    from converter.checkpoint import Checkpoint


class Findings(NamedTuple):
    """What was found, and the axes of the variables that it is about.

    Attributes:
        axes: the axes of every variable that the graph holds, by its name.
        nodes: the nodes of each of these variables.
    """

    analysis: Analysis
    axes: Mapping[str, tuple[Atom, ...]]
    nodes: Mapping[str, Sequence[Node]]


def analyse(graph: OrderedGraph, checkpoint: Checkpoint) -> Findings:
    """Apply the rules to all that runs forward.

    Raises:
        InputError: the graph is not that of the checkpoint.
    """
    bound = bind(graph, checkpoint)
    nodes = parts(bound)
    axes: dict[str, tuple[Atom, ...]] = {}
    tensors: dict[Node, Tensor] = {}
    wholes: list[tuple[Whole, Node]] = []
    for name, members in nodes.items():
        shape = checkpoint[name].shape
        if bound[members[0]].slice is None:
            axes[name] = tuple(leaf(size) for size in shape)
            found = [axes[name]] * len(members)
        else:
            axes[name], found, sliced = _sliced(name, shape, [bound[node] for node in members])
            wholes += [(whole, members[0]) for whole in sliced]
        for node, atoms in zip(members, found, strict=True):
            origins = tuple(frozenset((Origin(name, axis),)) for axis in range(len(atoms)))
            tensors[node] = Tensor(atoms, origins=origins)
    matrices = frozenset(n for n in nodes if sum(size > 1 for size in checkpoint[n].shape) > 1)
    flow = Flow(graph, bound)
    analysis = Analysis(graph, flow, RULES, tensors, matrices, [whole for whole, _ in wholes])
    analysis.run(node for node in graph.nodes if node in flow.wanted)
    for node in flow.updates:
        target, value = (analysis.tensor(output) for output in node.inputs[:2])
        try:
            analysis.tie_all((target, value), node)
        except Clash:
            continue
    for whole, node in wholes:
        try:
            whole.settle()
        except Clash:
            for atom in (whole.full, *whole.parts):
                analysis.opaque(atom, node)
    return Findings(analysis, axes, nodes)


def _sliced(
    name: str, shape: Sequence[int], bindings: Sequence[Binding]
) -> tuple[tuple[Atom, ...], list[tuple[Atom, ...]], list[Whole]]:
    """Return the axes of a partitioned variable, those of its slices, and which are sliced."""
    wholes: list[Whole] = []
    slices = [binding.slice for binding in bindings if binding.slice is not None]
    full: list[Atom] = []
    by_slice: list[list[Atom]] = [[] for _ in slices]
    for axis, size in enumerate(shape):
        ranges = sorted({(s.offset[axis], s.shape[axis]) for s in slices})
        ends = [begin + length for begin, length in ranges]
        tiles = [begin for begin, _ in ranges] == [0, *ends[:-1]] and ends[-1] == size
        if tiles and len(ranges) > 1:
            whole = Whole([length for _, length in ranges], f"{name}, axis {axis}")
            wholes.append(whole)
            full.append(whole.full)
            atoms = dict(zip(ranges, whole.parts, strict=True))
        else:
            full.append(leaf(size))
            atoms = {r: full[-1] if r == (0, size) else leaf(r[1]) for r in ranges}
        for place, part in enumerate(slices):
            by_slice[place].append(atoms[part.offset[axis], part.shape[axis]])
    return tuple(full), [tuple(atoms) for atoms in by_slice], wholes
