"""What is known of each tensor of a graph, and what the ops say about its axes."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from converter.graph.node import Node, Output
from converter.graph.ordered import OrderedGraph
from converter.structure.axes.axis import Touch, Use
from converter.structure.tensors.atoms import ONE, Atom, Clash, Whole, find, leaf, size_of, unify
from converter.structure.tensors.flow import Flow, Kind

Axes = tuple[Atom, ...]


class Origin(NamedTuple):
    """Which axis of which variable an axis of a tensor made of variables is.

    Attributes:
        how: `` as it is; `factor`: multiplied with another variable; `variance`: after a root;
            `norm`: something that was computed of it.
    """

    variable: str
    axis: int
    how: str = ""


Origins = tuple[frozenset[Origin], ...]
NO_ORIGIN: frozenset[Origin] = frozenset()


class Cell(NamedTuple):
    """One integer of a tensor: its value and of which axis it is the length, as far as known.

    Attributes:
        constant: the constant that it comes from, unchanged, and its place in there.
        multiple: an axis of unknown length, and how many times that it is.
        rest: what it is a difference of: an integer, and those that were taken off it.
    """

    value: int | None = None
    atom: Atom | None = None
    constant: tuple[str, int] | None = None
    multiple: tuple[Atom, int] | None = None
    rest: tuple[Cell, ...] = ()


class Element:
    """The tensors that a TensorArray, a list or a stack holds, which are all alike.

    Attributes:
        axes: of each of them; None while nothing is known.
        held: the one tensor that was put in, where it is but one.
    """

    def __init__(self) -> None:
        self.axes: Axes | None = None
        self.held: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Tensor:
    """What is known of one output of a node.

    Attributes:
        axes: None where not even their number is known.
        cells: the values of a small tensor of integers, in the order of memory.
        number: the value of all entries, where it is one number.
        origins: for what is made of variables alone: where each axis comes from.
        element: for the handle of a TensorArray or list: what it holds.
    """

    axes: Axes | None
    cells: tuple[Cell, ...] | None = None
    number: float | None = None
    origins: Origins | None = None
    element: Element | None = None

    @property
    def values(self) -> list[int] | None:
        """The integers, where all are known."""
        if self.cells is None:
            return None
        found = [cell.value for cell in self.cells if cell.value is not None]
        return found if len(found) == len(self.cells) else None

    def origin(self, axis: int) -> frozenset[Origin]:
        """Return where an axis comes from."""
        return self.origins[axis] if self.origins is not None else NO_ORIGIN


class Event(NamedTuple):
    """An op did something to an axis."""

    what: Touch
    atom: Atom
    node: Node


class Role(NamedTuple):
    """An op used an axis of a variable; `atom` is what of it was used, and `node` did it."""

    origin: Origin
    atom: Atom
    use: Use
    node: Node


class Conflict(NamedTuple):
    """Two axes that an op makes one have different lengths, or two tensors another rank."""

    node: Node
    sizes: tuple[int, int]
    what: str = "lengths"


class Demand(NamedTuple):
    """An integer became the length of an axis."""

    cell: Cell
    atom: Atom
    node: Node


class Even(NamedTuple):
    """An op cut an axis into parts that are equally long, whatever its length."""

    node: Node
    parts: tuple[Atom, ...]


class Scale(NamedTuple):
    """A tensor was multiplied with a constant; `number` is the factor."""

    node: Node
    number: float
    operand: Output


class Pairing(NamedTuple):
    """Two tensors of data were contracted over an axis; `node` took them."""

    node: Node
    atom: Atom
    left: Output
    right: Output


Rule = Callable[["Analysis", Node, Sequence[Tensor]], "Tensor | Sequence[Tensor]"]


def for_ops(names: str, rule: Rule) -> dict[str, Rule]:
    """Return one rule for several ops, which are named with spaces between them."""
    return dict.fromkeys(names.split(), rule)


@dataclass
class Analysis:
    """Walks the nodes of a graph in order and applies to each the rule of its op.

    Attributes:
        graph: the graph.
        flow: what its nodes are for.
        rules: the rule of each op.
        variables: the tensors of the variable nodes, given beforehand.
        matrices: the variables that have more than one axis of more than one entry.
        wholes: the axes of partitioned variables.
        tensors: what is known of the outputs of each node that was visited.
        events, roles, conflicts, demands, evens, scales, pairings: what the ops said.
        unknown: ops without a rule that stand in the way, and how often.
    """

    graph: OrderedGraph
    flow: Flow
    rules: Mapping[str, Rule] = field(repr=False)
    variables: Mapping[Node, Tensor]
    matrices: frozenset[str]
    wholes: Sequence[Whole] = ()
    tensors: dict[Node, list[Tensor]] = field(default_factory=dict)
    events: dict[Node, list[Event]] = field(default_factory=dict)
    roles: dict[Node, list[Role]] = field(default_factory=dict)
    conflicts: list[Conflict] = field(default_factory=list)
    demands: list[Demand] = field(default_factory=list)
    evens: list[Even] = field(default_factory=list)
    scales: list[Scale] = field(default_factory=list)
    pairings: list[Pairing] = field(default_factory=list)
    unknown: dict[str, int] = field(default_factory=dict)
    _maybe: list[tuple[Atom, Atom, Node]] = field(default_factory=list)

    def run(self, nodes: Iterable[Node]) -> None:
        """Visit the nodes, which must be in the order of the graph."""
        for node in nodes:
            if node not in self.tensors:
                self.tensors[node] = self._visit(node)
        self._decide()

    def _visit(self, node: Node) -> list[Tensor]:
        if node in self.variables:
            return [self.variables[node]]
        inputs = [self.tensor(output) for output in node.inputs]
        rule = self.rules.get(node.op)
        if rule is None:
            return self._opaque(node, inputs)
        try:
            result = rule(self, node, inputs)
        # An op that lacks inputs, or has too few axes, is one that we do not know.
        except (Clash, IndexError, ValueError, ZeroDivisionError):
            return self._opaque(node, inputs)
        found = [result] if isinstance(result, Tensor) else list(result)
        return [self._agreed(node, port, tensor) for port, tensor in enumerate(found)]

    def tensor(self, output: Output) -> Tensor:
        """Return what is known of a tensor; nothing but its shape, where it was not visited."""
        found = self.tensors.get(output.node)
        if found is not None and output.port < len(found):
            return found[output.port]
        if output.node in self.variables:
            return self.variables[output.node]
        fresh = Tensor(self.fresh(self.graph.declared(output.node, output.port)))
        if found is not None:
            found += [Tensor(None)] * (output.port - len(found)) + [fresh]
        return fresh

    def _opaque(self, node: Node, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Know nothing of an op: nothing that it touches can be told to be the same or another."""
        ports = {
            output.port
            for consumer in self.graph.consumers[node]
            for output in consumer.inputs
            if output.node is node
        }
        shapes = [self.graph.declared(node, port) for port in range(max(ports, default=0) + 1)]
        outputs = [Tensor(self.fresh(shape)) for shape in shapes]
        touched = [a for t in (*inputs, *outputs) for a in t.axes or () if a is not ONE]
        if touched:
            self.unknown[node.op] = self.unknown.get(node.op, 0) + 1
        for atom in touched:
            self.opaque(atom, node)
        return outputs

    def _agreed(self, node: Node, port: int, tensor: Tensor) -> Tensor:
        """Compare what a rule found with the shape that the graph notes."""
        if tensor.origins is not None and self.flow.kinds[node] is not Kind.WEIGHT:
            tensor = Tensor(tensor.axes, tensor.cells, tensor.number, None, tensor.element)
        shape = self.graph.declared(node, port)
        if shape is None or tensor.element is not None or node.is_handle(port):
            return tensor
        if tensor.axes is None:
            return Tensor(self.fresh(shape), tensor.cells, tensor.number)
        if len(shape) != len(tensor.axes):
            self.conflicts.append(Conflict(node, (len(tensor.axes), len(shape)), "ranks"))
            fresh = Tensor(self.fresh(shape))
            for atom in (*tensor.axes, *(fresh.axes or ())):
                self.opaque(atom, node)
            return fresh
        for atom, size in zip(tensor.axes, shape, strict=True):
            known = size_of(atom)
            if size is not None and known != size:
                self.tie(atom, leaf(size), node)
        return tensor

    def fresh(self, shape: Sequence[int | None] | None) -> Axes | None:
        """Return new axes of the given sizes."""
        return None if shape is None else tuple(leaf(size) for size in shape)

    def tie(self, a: Atom, b: Atom, node: Node) -> None:
        """Say that two axes are the same one. Where they cannot be, both become opaque."""
        try:
            unify(a, b)
        except Clash as clash:
            if clash.sizes is not None:
                self.conflicts.append(Conflict(node, clash.sizes))
            self.opaque(a, node)
            self.opaque(b, node)

    def tie_all(self, tensors: Iterable[Tensor], node: Node) -> Axes | None:
        """Say that tensors have the same axes, and return these."""
        found: Axes | None = None
        for tensor in tensors:
            if tensor.axes is None:
                continue
            if found is None:
                found = tensor.axes
            elif len(found) != len(tensor.axes):
                raise Clash
            else:
                for a, b in zip(found, tensor.axes, strict=True):
                    self.tie(a, b, node)
        return found

    def broadcast(self, tensors: Sequence[Tensor], node: Node) -> Axes | None:
        """Align axes from the right, tie what meets, and return the axes of the result."""
        known = [tensor.axes for tensor in tensors if tensor.axes is not None]
        if len(known) < len(tensors):
            shape = self.graph.declared(node, 0)
            if shape is None:
                self._hidden(tensors, node)
                return None
            known.append(self.fresh(shape) or ())
        rank = max((len(axes) for axes in known), default=0)
        found = []
        for place in range(-rank, 0):
            meeting = [axes[place] for axes in known if len(axes) >= -place]
            found.append(self._meet([atom for atom in meeting if find(atom) is not ONE], node))
        return tuple(found)

    def _hidden(self, tensors: Sequence[Tensor], node: Node) -> None:
        """What meets a tensor of unknown shape may be tied to anything."""
        for tensor in tensors:
            for atom in tensor.axes or ():
                self.opaque(atom, node)

    def _meet(self, atoms: Sequence[Atom], node: Node) -> Atom:
        sized = [atom for atom in atoms if size_of(atom) is not None]
        open_ones = [atom for atom in atoms if size_of(atom) is None]
        for group in (sized, open_ones):
            for atom in group[1:]:
                self.tie(group[0], atom, node)
        if sized:
            # An axis of unknown size may be one entry, which is broadcast.
            self._maybe += [(atom, sized[0], node) for atom in open_ones]
        return (sized or open_ones or [ONE])[0]

    def _decide(self) -> None:
        """Tie what met an axis whose size was unknown, and is known by now."""
        for unknown, atom, node in self._maybe:
            size = size_of(unknown)
            if size is None:
                self.touch("dynamic", [atom], node)
            elif size != 1:
                self.tie(unknown, atom, node)
        self._maybe.clear()

    def touch(self, what: Touch, atoms: Iterable[Atom], node: Node) -> None:
        """Note what an op did to axes, where the outputs are sensitive to it."""
        if node in self.flow.telling:
            found = [Event(what, atom, node) for atom in atoms if atom is not ONE]
            self.events.setdefault(node, []).extend(found)

    def opaque(self, atom: Atom, node: Node) -> None:
        """Note that what an op did to an axis cannot be told."""
        if atom is not ONE:
            what: Touch = "opaque" if node in self.flow.inner else "unread"
            self.events.setdefault(node, []).append(Event(what, atom, node))

    def use(self, origins: Iterable[Origin], atom: Atom, use: Use, node: Node) -> None:
        """Note how an axis of variables was used."""
        # Sorted, since the order of a set is another one in every run.
        found = [Role(origin, atom, use, node) for origin in sorted(origins)]
        if found and node in self.flow.telling:
            self.roles.setdefault(node, []).extend(found)

    def retract(self, node: Node, atoms: Iterable[Atom]) -> list[Role]:
        """Take back what a node said of axes over which its result is only summed.

        Returns:
            The roles that were taken back.
        """
        summed = {find(atom) for atom in atoms}
        self.events[node] = [e for e in self.events.get(node, ()) if find(e.atom) not in summed]
        roles = self.roles.get(node, [])
        self.roles[node] = [role for role in roles if find(role.atom) not in summed]
        return [role for role in roles if find(role.atom) in summed]

    def scale(self, node: Node, number: float, operand: Output) -> None:
        """Note that a tensor was multiplied with a constant."""
        if node in self.flow.telling and number != 1:
            self.scales.append(Scale(node, number, operand))

    def demand(self, cell: Cell, atom: Atom, node: Node) -> Atom:
        """Make an integer the length of an axis, and return the axis."""
        self.demands.append(Demand(cell, atom, node))
        return atom

    def sized(self, cell: Cell, node: Node) -> Atom:
        """Return an axis that is as long as an integer says."""
        return self.demand(cell, cell.atom if cell.atom is not None else leaf(cell.value), node)

    def lengthen(self, sizes: Tensor, axes: Sequence[Atom]) -> None:
        """Say that axes are as long as integers say which are the lengths of others.

        Such axes have to stay equally long, so they are one; what they cannot share, they need not.
        """
        for cell, atom in zip(sizes.cells or (), axes, strict=False):
            if cell.atom is not None:
                with contextlib.suppress(Clash):
                    unify(atom, cell.atom)

    def piece(self, atom: Atom, start: int, stop: int) -> Atom | None:
        """Return the slice of a partitioned variable that a part of an axis is, if it is one."""
        for whole in self.wholes:
            if find(whole.full) is find(atom):
                at = 0
                for part in whole.parts:
                    if at == start and at + (part.size or 0) == stop:
                        return part
                    at += part.size or 0
        return None

    def kind(self, output: Output) -> Kind:
        """Return of what a tensor is made."""
        return self.flow.kinds[output.node]

    def is_weight(self, output: Output) -> bool:
        return self.kind(output) is Kind.WEIGHT

    def is_data(self, output: Output) -> bool:
        return self.kind(output) is Kind.DATA


def whole(axes: Sequence[Atom]) -> int | None:
    """Return how many entries a tensor has."""
    sizes = [size_of(atom) for atom in axes]
    known = [size for size in sizes if size is not None]
    return math.prod(known) if len(known) == len(sizes) else None


def joined(origins: Iterable[frozenset[Origin]]) -> frozenset[Origin]:
    """Return all of several origins."""
    return frozenset().union(*origins)
