"""What variables make: from the op that takes a kernel to the tensor in which that is finished."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from converter.graph.node import Node, Output
from converter.graph.ops import (
    BATCH_NORMS,
    CELLS,
    CONTRACTIONS,
    LOOKUPS,
    MATMULS,
    SLICES,
    SPLITS,
    SWITCHES,
    ops,
)
from converter.structure.axes.axis import Use
from converter.structure.layers.cuts import takes_blocks, whole_axes
from converter.structure.layers.parted import parted_from
from converter.structure.layers.steps import (
    Step,
    holds,
    normalisation_from,
    place_of,
    same_axis,
    step_from,
    takers,
)
from converter.structure.layers.trials import without_trials
from converter.structure.layers.unread import without_unread
from converter.structure.tensors.analysis import Analysis, Axes, Role
from converter.structure.tensors.atoms import Atom, leaves, size_of

TRANSPOSED = ops("Conv2DBackpropInput Conv3DBackpropInputV2")
DEPTHWISE = ops("DepthwiseConv2dNative")
CONVOLUTIONS = ops("Conv1D Conv2D Conv3D") | DEPTHWISE | TRANSPOSED
TABLES = LOOKUPS | ops("GatherNd")
_KERNELS = CONTRACTIONS | CONVOLUTIONS | CELLS | TABLES | ops("Sum")
_EXTREMES = ("Maximum", "Minimum")
_MAX_STEPS = 64
_MAX_DEPTH = 16


class UnitAxis(NamedTuple):
    """A tensor of which an axis holds units.

    Attributes:
        output: the tensor.
        axis: which, counted from the end.
        atom: the axis.
    """

    output: Output
    axis: int
    atom: Atom

    @property
    def size(self) -> int | None:
        """How many units there are, as far as that is known."""
        return size_of(self.atom)


class Part(NamedTuple):
    """An axis of a variable, and what of it an op takes."""

    variable: str
    axis: int
    use: Use
    atom: Atom


@dataclass
class Chain:
    """What begins with kernels, a normalisation or a vector, and is finished in one tensor.

    Attributes:
        kernels: the nodes that contract, convolve or look up; several where these are summed.
        inputs: what each of these takes of data; None where that is no tensor of the graph.
        linear: what they make; of what has no kernel, what it takes. None where that is no tensor.
        steps: what is done to it.
        parts: what is taken of variables on the way, in order.
        why: why there is no tensor of it.
    """

    kernels: list[Node]
    inputs: list[UnitAxis | None]
    linear: UnitAxis | None
    steps: list[Step] = field(default_factory=list)
    parts: list[tuple[Node, Part]] = field(default_factory=list)
    why: str = ""

    @property
    def finished(self) -> UnitAxis | None:
        """The tensor in which it is finished."""
        if not self.steps or self.linear is None:
            return self.linear
        return UnitAxis(self.steps[-1].after, self.steps[-1].axis, self.linear.atom)

    @property
    def normalised(self) -> UnitAxis | None:
        """The tensor that its normalisation takes."""
        variables = {n for n, part in self.parts if part.use in ("mean", "variance")}
        for step in self.steps:
            if step.what == "normalise" or variables.intersection(step.nodes):
                axis = self.linear.axis if self.linear is not None else -1
                before = [s.axis for s in self.steps if s.after == step.before]
                axis = before[0] if before else axis
                return (
                    None if self.linear is None else UnitAxis(step.before, axis, self.linear.atom)
                )
        return None

    @property
    def constants(self) -> Iterator[Node]:
        """The nodes that add or multiply numbers on the way."""
        for step in self.steps:
            if step.what == "constant":
                yield from step.nodes

    @property
    def nodes(self) -> Iterator[Node]:
        """Every node that it goes through."""
        yield from self.kernels
        for step in self.steps:
            yield from step.nodes


class Chains:
    """Finds the chains of a graph, each node of which is in one chain at most.

    Args:
        analysis: of the graph.
        gates: the variables with an axis that holds the gates of a cell.
    """

    def __init__(self, analysis: Analysis, gates: Collection[str]) -> None:
        self._analysis = without_trials(without_unread(analysis))
        self._gates = gates
        self._whole = whole_axes(analysis)
        self._made = {
            leaf
            for roles in analysis.roles.values()
            for role in roles
            if role.use == "produce"
            for leaf in leaves(role.atom)
        }
        self._taken: dict[Node, Chain] = {}

    def find(self) -> list[Chain]:
        """Return the chains in the order of the data."""
        found = list(self._of_kernels())
        found += self._of_normalisations()
        found += self._of_vectors()
        return sorted(found, key=lambda chain: min(node.order for node in chain.nodes))

    def _of_kernels(self) -> Iterator[Chain]:
        for node in self._with_roles():
            if node not in self._taken and _can_be_kernel(node):
                chain = self._begun(node)
                if chain is not None:
                    yield self._ended(chain)

    def _with_roles(self) -> Iterator[Node]:
        """Yield the nodes that bring variables and data together."""
        for node in self._analysis.graph.nodes:
            if self._analysis.roles.get(node) and self._analysis.is_data(Output(node, 0)):
                yield node

    def _begun(self, node: Node) -> Chain | None:
        roles = self._analysis.roles[node]
        produced = [role for role in roles if role.use == "produce"]
        consumed = [role for role in roles if role.use in ("consume", "gain")]
        if node.op in CELLS:
            return Chain([node], [None], None, why=f"{node.op} holds all of the cell")
        if not produced and not consumed:
            return None
        chain = Chain([node], [_taken_by(self._analysis, node, consumed, self._made)], None)
        atoms = _different(role.atom for role in produced)
        if len(atoms) == 1:
            chain.linear = _made_by(self._analysis, node, atoms[0])
        elif len(atoms) > 1:
            chain.why = f"it produces {len(atoms)} axes at once in {node.name}"
        return chain

    def _ended(self, chain: Chain) -> Chain:
        if chain.linear is not None and chain.kernels[0].op not in TABLES:
            self._follow(chain, chain.linear)
        return self._closed(chain)

    def _closed(self, chain: Chain) -> Chain:
        for node in chain.nodes:
            self._taken[node] = chain
            chain.parts += _parts(node, self._analysis.roles.get(node, ()))
        # A gain is in what the mean is multiplied with, too.
        gains = {part.variable for _, part in chain.parts if part.use == "gain"}
        chain.parts = [
            (node, part)
            for node, part in chain.parts
            if part.use != "mean" or part.variable not in gains
        ]
        return chain

    def _follow(self, chain: Chain, units: UnitAxis) -> None:
        at, axis = units.output, units.axis
        held: Sequence[Atom] = ()
        for _ in range(_MAX_STEPS):
            step = step_from(self._analysis, at, axis)
            if step is None:
                step = self._summed(chain, at, axis)
            if step is None and not held and (parted := parted_from(self._analysis, at, axis)):
                step, held = parted
            if step is None or self._taken.keys() & set(step.nodes):
                break
            if held and not holds(self._analysis, step.after, held):
                break
            last = chain.steps[-1] if chain.steps else None
            if last is not None and last.what == "activate" and not _is_clip(last, step):
                break
            chain.steps.append(step)
            at, axis = step.after, step.axis
        self._trim(chain)

    def _trim(self, chain: Chain) -> None:
        """Leave out what belongs to something else that follows."""
        steps = chain.steps
        if takes_blocks(self._analysis, chain.kernels, self._whole):
            while steps and steps[-1].what in ("activate", "constant", "pass"):
                steps.pop()
        if steps and steps[-1].what == "activate" and self._is_split(chain):
            steps.pop()
        is_dropped = False
        while steps:
            what = steps[-1].what
            # What is dropped is scaled before, by what is 1 where nothing is.
            if what not in ("pass", "centre", "drop") and not (is_dropped and what == "constant"):
                break
            is_dropped = what == "drop"
            steps.pop()

    def _is_split(self, chain: Chain) -> bool:
        """Whether the gates of a cell are activated at once, and cut apart then."""
        names = {r.origin.variable for n in chain.kernels for r in self._analysis.roles.get(n, ())}
        if not names & set(self._gates):
            return False
        after = takers(self._analysis, chain.steps[-1].after)
        return bool(after) and all(node.op in SPLITS | SLICES for node in after)

    def _summed(self, chain: Chain, at: Output, axis: int) -> Step | None:
        """Go on behind the sum of what several kernels make, which are one layer."""
        nodes = takers(self._analysis, at)
        if len(nodes) != 1 or nodes[0].op not in _SUMS or _has_more(chain):
            return None
        axes = self._analysis.tensor(at).axes
        own = Chain(chain.kernels, chain.inputs, chain.linear, chain.steps)
        found = []
        for output in nodes[0].inputs:
            other = own if output == at else self._raw(output, _MAX_DEPTH)
            if other is None or not _are_alike(axes, self._analysis.tensor(output).axes):
                return None
            found.append(other)
        chain.kernels = [node for other in found for node in other.kernels]
        chain.inputs = [units for other in found for units in other.inputs]
        chain.steps = [step for other in found for step in other.steps]
        chain.linear = found[0].linear
        return Step("sum", (nodes[0],), at, Output(nodes[0], 0), axis)

    def _raw(self, output: Output, depth: int) -> Chain | None:
        """Return the kernels of which a tensor is made, if it is made of nothing but biases else.

        And if nothing but its sum takes it.
        """
        steps: list[Step] = []
        for _ in range(_MAX_STEPS):
            node = output.node
            if len(takers(self._analysis, output)) != 1 or node in self._taken:
                return None
            is_kernel = _can_be_kernel(node) and node.op not in TABLES
            if is_kernel and self._analysis.roles.get(node):
                chain = self._begun(node)
                if chain is None or chain.linear is None or node.op == "Sum":
                    return None
                chain.steps = steps
                return chain
            data = [o for o in node.inputs if self._analysis.is_data(o)]
            if node.op in _SUMS and len(data) == 2 and depth:
                return self._raw_sum(node, data, steps, depth - 1)
            if len(data) != 1:
                return None
            axes = self._analysis.tensor(data[0]).axes
            step = step_from(self._analysis, data[0], -1) if axes else None
            if step is None or step.after != output or step.what not in ("pass", "bias"):
                return None
            steps.insert(0, step)
            output = data[0]
        return None

    def _raw_sum(
        self, node: Node, data: Sequence[Output], steps: list[Step], depth: int
    ) -> Chain | None:
        first, second = (self._raw(output, depth) for output in data)
        if first is None or second is None:
            return None
        own = Step("sum", (node,), data[0], Output(node, 0), -1)
        return Chain(
            first.kernels + second.kernels,
            first.inputs + second.inputs,
            first.linear,
            [*first.steps, *second.steps, own, *steps],
        )

    def _of_normalisations(self) -> Iterator[Chain]:
        """Yield what normalises something that no kernel made just before."""
        analysis = self._analysis
        for node in analysis.graph.nodes:
            if node not in analysis.flow.telling or not analysis.is_data(Output(node, 0)):
                continue
            for output in dict.fromkeys(
                o for c in analysis.graph.consumers[node] for o in c.inputs if o.node is node
            ):
                yield from self._normalising(output)

    def _normalising(self, before: Output) -> Iterator[Chain]:
        """Yield the normalisations of one tensor, which others may take as it is."""
        axes = self._analysis.tensor(before).axes
        after = [node for node in takers(self._analysis, before) if node.op in _NORMALISING]
        for first in after if axes else ():
            # The branches of a condition, one of which is for training, normalise each.
            same = [node for node in after if node.op == first.op]
            is_branching = first.op in SWITCHES | BATCH_NORMS
            units = _channels(first, before, axes or ())
            for begin in (same, [first]) if is_branching else ([first], same, after):
                if any(node in self._taken for node in begin):
                    continue
                step = normalisation_from(self._analysis, before, units.axis, begin)
                if step is None or self._taken.keys() & set(step.nodes):
                    continue
                chain = Chain([], [units], units, [step])
                self._follow(chain, UnitAxis(step.after, step.axis, units.atom))
                roles = [r for node in chain.nodes for r in self._analysis.roles.get(node, ())]
                if roles:
                    yield self._closed(chain)
                    break

    def _of_vectors(self) -> Iterator[Chain]:
        """Yield what variables do by themselves: what is added, or multiplied unit by unit."""
        for node in self._with_roles():
            if node in self._taken:
                continue
            output = Output(node, 0)
            axes = self._analysis.tensor(output).axes
            # What has several axes gives each unit a number by the last of them.
            for role in sorted(self._analysis.roles[node], key=lambda r: r.use != "produce"):
                axis = place_of(role.atom, axes)
                if axis is not None:
                    units = UnitAxis(output, axis, role.atom)
                    chain = Chain([], [], units)
                    self._follow(chain, units)
                    chain.steps.insert(0, Step("bias", (node,), output, output, axis))
                    yield self._closed(chain)
                    break


_SUMS = ops("Add AddV2 AddN")
_NORMALISING = BATCH_NORMS | ops("Mean Square SquaredDifference Mul Sub Switch RefSwitch Reshape")


def _can_be_kernel(node: Node) -> bool:
    """Whether an op takes kernels, and has all inputs that it needs."""
    return node.op in _KERNELS and len(node.inputs) > (2 if node.op in TRANSPOSED else 1)


def _is_clip(first: Step, second: Step) -> bool:
    """Whether a function is cut off at both sides, by one op each."""
    return second.what == "activate" and first.op in _EXTREMES and second.op in _EXTREMES


def _has_more(chain: Chain) -> bool:
    """Whether something was done that no sum of kernels has before it."""
    return any(step.what not in ("pass", "sum", "bias") for step in chain.steps)


def _are_alike(a: Sequence[Atom] | None, b: Sequence[Atom] | None) -> bool:
    if a is None or b is None or len(a) != len(b):
        return a is None and b is None
    return all(size_of(x) == size_of(y) for x, y in zip(a, b, strict=True))


def _parts(node: Node, roles: Iterable[Role]) -> Iterator[tuple[Node, Part]]:
    for role in sorted(roles, key=lambda role: role.origin):
        if role.origin.how != "norm":
            yield node, Part(role.origin.variable, role.origin.axis, role.use, role.atom)


def _different(atoms: Iterable[Atom]) -> list[Atom]:
    found: list[Atom] = []
    for atom in atoms:
        if not any(same_axis(atom, other) for other in found):
            found.append(atom)
    return found


def _data_of(analysis: Analysis, node: Node) -> Output | None:
    """Return what a kernel is applied to."""
    source = node
    if node.op == "Sum":
        source = node.inputs[0].node
    found = [o for o in source.inputs if analysis.is_data(o)]
    # What a recurrence begins with may be a constant.
    found = found or [o for o in source.inputs[:2] if not analysis.is_weight(o)]
    if source.op in TRANSPOSED:
        found = [source.inputs[2]]
    elif source.op in CONVOLUTIONS:
        found = [source.inputs[0]]
    return found[0] if len(found) == 1 else None


def _taken_by(
    analysis: Analysis, node: Node, roles: Sequence[Role], made: Collection[Atom]
) -> UnitAxis | None:
    """Return the tensor that a kernel contracts, if it contracts one axis of it.

    Args:
        analysis: of the graph.
        node: that takes the kernel.
        roles: what it consumes of that.
        made: what the axes are made of that variables produce.
    """
    data = _data_of(analysis, node)
    if data is None or node.op in TABLES or not roles:
        return None
    axes = analysis.tensor(data).axes
    if node.op in CONVOLUTIONS:
        if not axes:
            return None
        channels = _channels(node, data, axes)
        covered = _covered(data, axes, channels, roles, made)
        return covered or _before_dilation(analysis, channels)
    atoms = _different(role.atom for role in roles if role.use == "consume")
    if len(atoms) != 1:
        return None
    (atom,) = atoms
    axis = place_of(atom, axes, _contracted(node, data))
    return None if axis is None else UnitAxis(data, axis, atom)


def _covered(
    data: Output, axes: Axes, channels: UnitAxis, roles: Sequence[Role], made: Collection[Atom]
) -> UnitAxis | None:
    """Return the axis of places that a convolution covers whole, if that is the units' one.

    So where embeddings are an image with one channel: the filter is as wide as they are. Of two
    axes that it covers whole those are the units that a variable makes.
    """
    if channels.size != 1:
        return None
    consumed = [role.atom for role in roles if role.use == "consume"]
    found = [
        UnitAxis(data, index - len(axes), atom)
        for index, atom in enumerate(axes)
        if size_of(atom) != 1 and any(same_axis(atom, other) for other in consumed)
    ]
    if len(found) > 1:
        found = [units for units in found if any(leaf in made for leaf in leaves(units.atom))]
    return found[0] if len(found) == 1 else None


def _before_dilation(analysis: Analysis, units: UnitAxis) -> UnitAxis:
    """Return what a dilated convolution takes, which old versions write as one of parts of space.

    Between the cutting and it, one in one dimension gets another one.
    """
    node = units.output.node
    if node.op == "ExpandDims":
        node = node.inputs[0].node
    if node.op != "SpaceToBatchND":
        return units
    axes = analysis.tensor(node.inputs[0]).axes
    place = place_of(units.atom, axes, units.axis)
    return units if place is None else UnitAxis(node.inputs[0], place, units.atom)


def _channels(node: Node, output: Output, axes: Axes) -> UnitAxis:
    axis = 1 - len(axes) if node.text("data_format").startswith("NC") else -1
    return UnitAxis(output, axis, axes[axis])


def _contracted(node: Node, data: Output) -> int:
    """Return which axis of its data a product of matrices sums over."""
    if node.op not in MATMULS:
        return -1
    is_left = node.inputs[0] == data
    across = ("transpose_a", "adj_x") if is_left else ("transpose_b", "adj_y")
    return -1 if is_left != any(node.integer(key) for key in across) else -2


def _made_by(analysis: Analysis, node: Node, atom: Atom) -> UnitAxis | None:
    output = Output(node, 0)
    axes = analysis.tensor(output).axes
    if node.op in CONVOLUTIONS and axes:
        return _channels(node, output, axes)
    like = -1
    if node.op in MATMULS and analysis.is_weight(node.inputs[0]):
        like = -2
    place = place_of(atom, axes, like)
    return None if place is None else UnitAxis(output, place, atom)
