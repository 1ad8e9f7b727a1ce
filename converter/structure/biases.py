"""Which variable is added to what another one gives: the bias behind a kernel.

Or which is taken off: the moving mean of a batch normalisation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple

from converter.graph.node import Node, Output
from converter.graph.ops import (
    ADDS,
    BATCH_NORMS,
    BIAS_ADDS,
    CELLS,
    EXITS,
    JOINS,
    LAYOUT,
    MATMULS,
    PASSING,
    SHAPE_ONLY,
    SLICES,
    SPLITS,
    ops,
)
from converter.names.layers import BIAS_OF
from converter.structure.axes.axis import Axis
from converter.structure.called import called_now
from converter.structure.tensors.flow import Kind

if TYPE_CHECKING:
    from converter.checkpoint import Checkpoint
    from converter.structure.structure import Structure
    from converter.structure.tensors.run import Findings

_SUMS = ADDS | BIAS_ADDS | ops("AddN")
# Each output is a sum over all entries of the kernel. Not so where a convolution is transposed.
_CONTRACTS = MATMULS | ops("Conv1D Conv2D Conv3D Einsum")
# A constant that is added in a turn of a loop and carried on would be added in every turn.
_HANDS_ON = (
    LAYOUT
    | PASSING
    | EXITS
    | ops("_Return SpaceToBatchND BatchToSpaceND SpaceToBatch BatchToSpace")
)
_GIVES = _HANDS_ON | JOINS
_ONE = Axis(((1,),))
_BIASES = frozenset(name for names in BIAS_OF.values() for name in names)
_MATRIX = 2
_MAX_NODES = 1024
_MEAN = 3
_Added = tuple[str, int]
_SUFFIX = "/.ATTRIBUTES/VARIABLE_VALUE"


class Bias(NamedTuple):
    """The variable that is added behind a kernel.

    Attributes:
        name: of the variable.
        axes: the axes of the kernel that it has; any other of its own has one entry. None of a
            kernel that makes one unit.
        sign: -1 where it is taken off: the mean of a batch normalisation; else 1.
    """

    name: str
    axes: tuple[int, ...]
    sign: int = 1


def bias_of(structure: Structure, checkpoint: Checkpoint, name: str, axis: int) -> Bias | None:
    """Return what is added to what a kernel gives; None where no single variable always is.

    A constant in what the kernel consumes can then be moved into the bias.

    Args:
        structure: of the checkpoint; without a graph names tell.
        checkpoint: the variables.
        name: the kernel.
        axis: along which it contracts.
    """

    def fits(other: str | None) -> bool:
        return (
            other is not None
            and other in structure.axes
            and _common(structure, name, other, axis) is not None
        )

    found: set[_Added] | None = None
    if structure.findings is not None:
        # The graph knows variables by the names that they had.
        called = called_now(checkpoint)
        was = next((old for old, new in called.items() if new == name), name)
        behind = _behind(structure.findings, was, lambda other: fits(called.get(other)))
        found = None if behind is None else {(called[other], sign) for other, sign in behind}
    if found is None:
        found = {(other, 1) for other in _beside(structure, checkpoint, name) if fits(other)}
    if len(found) != 1:
        return None
    ((bias, sign),) = found
    is_value = checkpoint.roles()[bias].kind in ("model", "batch_statistic")
    if not is_value or not checkpoint[bias].dtype.is_float:
        return None
    axes = _common(structure, name, bias, axis)
    return None if axes is None else Bias(bias, axes, sign)


def _common(structure: Structure, name: str, other: str, consumed: int) -> tuple[int, ...] | None:
    """Return which axes of a kernel its bias has; None where it has others, too, or too few."""
    kernel, bias = structure.axes[name], structure.axes[other]
    found: list[int] = []
    rest = [number for number in range(len(kernel)) if number != consumed]
    for axis in reversed(bias):
        if axis == _ONE:
            continue
        while rest and kernel[rest[-1]] != axis:
            rest.pop()
        if not rest:
            return None
        found.append(rest.pop())
    if found or _makes_one(structure, name, consumed):
        return tuple(reversed(found))
    return None


def _makes_one(structure: Structure, name: str, consumed: int) -> bool:
    """Tell whether a kernel makes a single unit: an axis of one entry, which is no width."""
    kernel, uses = structure.axes[name], structure.uses.get(name, ())
    is_one = [axis == _ONE for axis in kernel]
    if consumed == len(kernel) - 1 or len(kernel) == _MATRIX:
        return all(one or number == consumed for number, one in enumerate(is_one))
    # The others are of what it consumes, too, or of the window of a convolution.
    made = (use for used in uses for use in used.values())
    return is_one[-1] and not any("produce" in use for use in made)


def _beside(structure: Structure, checkpoint: Checkpoint, name: str) -> Iterator[str]:
    """Yield what shifts the same units, and stands in the same scope; betas of norms aside."""
    scope = name.removesuffix(_SUFFIX).rpartition("/")[0]
    for other, uses in structure.uses.items():
        above, _, leaf = other.removesuffix(_SUFFIX).rpartition("/")
        is_shift = any("shift" in used for axis in uses for used in axis.values())
        if leaf in _BIASES and all(axis == _ONE for axis in structure.axes.get(other, ())):
            # One unit is no width that anything could be said of.
            is_shift = True
        if above != scope or other == name or not is_shift or leaf.lower().startswith("beta"):
            continue
        if other in checkpoint and checkpoint.roles()[other].kind == "model":
            yield other


def _behind(findings: Findings, name: str, fits: Callable[[str], bool]) -> set[_Added] | None:
    """Return what is added behind every contraction of a kernel, and nowhere else.

    None where the kernel is cut into gates, each of which goes its own way.

    Args:
        findings: of the graph.
        name: the kernel.
        fits: tells of a variable whether it has the axes of a bias of the kernel.
    """
    walk = _Walk(findings, fits)
    contractions = walk.takers(name)
    if contractions and all(node.op in SPLITS | SLICES for node in contractions):
        return None
    if not contractions or not all(node.op in _CONTRACTS | CELLS for node in contractions):
        return set()
    places = [walk.added(node) for node in contractions]
    biases = {added for found in places for added, _ in found}
    sums = [node for found in places for _, node in found]
    # Each contraction has a sum of its own, and the bias is in no other.
    if len(biases) != 1 or len(sums) != len(contractions) or len(set(sums)) != len(sums):
        return set()
    ((bias, _),) = biases
    return biases if set(walk.takers(bias)) == set(sums) else set()


def _computing(findings: Findings) -> set[Node]:
    """Return the nodes that outputs come from by way of data: no averages, no decay of weights."""
    flow = findings.analysis.flow
    graph = findings.analysis.graph
    found: set[Node] = set()
    for node in reversed(graph.nodes):
        if node in flow.telling and (
            flow.kinds[node] is Kind.DATA or not found.isdisjoint(graph.consumers[node])
        ):
            found.add(node)
    return found


class _Walk:
    """Follows tensors forward, as far as they are only handed on and added to."""

    def __init__(self, findings: Findings, fits: Callable[[str], bool]) -> None:
        self._fits = fits
        self._nodes = findings.nodes
        self._graph = findings.analysis.graph
        self._computing = _computing(findings)
        self._holders = {node: name for name, nodes in findings.nodes.items() for node in nodes}

    def added(self, contraction: Node) -> set[tuple[_Added, Node]]:
        """Return the variables that are added to what a contraction gives, and where.

        Nothing where what is not shifted yet is taken by anything else.
        """
        if contraction.op in CELLS:
            held = (self._held(source) for source in contraction.inputs)
            return {((bias, 1), contraction) for bias in held if bias is not None}
        found: set[tuple[_Added, Node]] = set()
        waiting, seen = [contraction], {contraction}
        while waiting:
            node = waiting.pop()
            users = self._users(node)
            if not users or len(seen) > _MAX_NODES:
                return set()
            for user in users:
                here = self._added_in(user, node)
                if here is None:
                    return set()
                found |= here
                if not here and user not in seen and user.op not in BATCH_NORMS:
                    seen.add(user)
                    waiting.append(user)
        return found

    def _added_in(self, user: Node, node: Node) -> set[tuple[_Added, Node]] | None:
        """Return what an op adds to what a node gives; None where it does anything else to it."""
        others = [source for source in user.inputs if source.node is not node]
        if user.op in _SUMS:
            held = (self._held(source) for source in others)
            return {((bias, 1), user) for bias in held if bias is not None}
        if user.op in BATCH_NORMS and user.inputs[0].node is node and len(user.inputs) > _MEAN:
            mean = self._held(user.inputs[_MEAN])
            if mean is not None:
                return {((mean, -1), user)}
            # It takes off the mean of the batch, whatever that is.
            return set() if user.integer("is_training", default=1) else None
        if user.op == "Mul" and len(others) == 1:
            return self._normalised(user, others[0].node)
        return set() if user.op in _HANDS_ON else None

    def _normalised(self, scaled: Node, scale: Node) -> set[tuple[_Added, Node]] | None:
        """Return the mean in x * scale + (beta - mean * scale), as TensorFlow writes it out."""
        users = self._users(scaled)
        if len(users) != 1 or users[0].op not in ADDS:
            return None
        shifts = [source.node for source in users[0].inputs if source.node is not scaled]
        if len(shifts) != 1 or shifts[0].op != "Sub":
            return None
        product = shifts[0].inputs[1].node
        factors = [source for source in product.inputs if source.node is not scale]
        if product.op != "Mul" or len(factors) != 1:
            return None
        mean = self._held(factors[0])
        return None if mean is None else {((mean, -1), product)}

    def takers(self, name: str) -> list[Node]:
        """Return the ops that take a variable, as it is or laid out in another way."""
        found: dict[Node, None] = {}
        waiting, seen = list(self._nodes.get(name, ())), set(self._nodes.get(name, ()))
        while waiting and len(seen) <= _MAX_NODES:
            for user in self._users(waiting.pop()):
                if user.op not in _GIVES:
                    found[user] = None
                elif user not in seen:
                    seen.add(user)
                    waiting.append(user)
        return list(found)

    def _users(self, node: Node) -> list[Node]:
        return [
            user
            for user in self._graph.consumers[node]
            if user in self._computing and user.op not in SHAPE_ONLY
        ]

    def _held(self, source: Output) -> str | None:
        """Return the bias whose value a tensor is, in slices or not; None where it is none."""
        waiting, found = [source.node], set[str]()
        for _ in range(_MAX_NODES):
            if not waiting:
                break
            node = waiting.pop()
            if node in self._holders:
                found.add(self._holders[node])
            elif node.op in JOINS:
                waiting += [o.node for o in node.inputs if o.node.op != "Const"]
            elif node.op in _HANDS_ON and node.inputs:
                waiting.append(node.inputs[0].node)
            else:
                return None
        if len(found) != 1 or waiting:
            return None
        (name,) = found
        return name if self._fits(name) else None
