"""The tensors whose values are activations: which are measured, and for which variables."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

from converter.activations.cells import lives_of, longer_than, tensors_of
from converter.checkpoint import Checkpoint
from converter.graph.node import Node, Output, Tensor
from converter.graph.ops import CELLS
from converter.structure.infer import structure_of
from converter.structure.layers.branches import as_taken
from converter.structure.layers.chains import (
    CONVOLUTIONS,
    TABLES,
    Chain,
    Part,
    UnitAxis,
)
from converter.structure.layers.cuts import Cut, cut_of, places_of
from converter.structure.layers.masks import Mask, Masks, in_loops
from converter.structure.layers.read import chains_of, tensor_of
from converter.structure.layers.spans import produced_by_kernels, span_of
from converter.structure.layers.steps import same_axis
from converter.structure.structure import Structure

Side = Literal["produced", "consumed"]
Key = tuple[str, Side]

LOOKED_UP = "its rows are looked up by their numbers"
"""Why nothing that a table takes is measured: there are no activations."""


@dataclass(frozen=True, slots=True)
class Probe:
    """A tensor whose values are the activations of units.

    Attributes:
        tensor: which. A node of a function's body has the names of the calls before its own, as
            `converter.structure` names it; what is computed beside a cell that is one op has the
            names of `converter.activations.cells`.
        axis: of the units; negative ones are counted from the end. Several axes may hold them
            together, of which this is the last.
        size: how many units there are.
        mask: a tensor [batch] of the same frame, of bools or numbers, which says what rows count;
            None for all.
        keeps: whether a row counts where the mask is not zero, or where it is.
        for_: the variables, and their sides, that it is measured for.
        cut: which of their units these are; None for all.
    """

    tensor: Tensor
    axis: int
    size: int
    mask: Tensor | None
    keeps: bool
    for_: tuple[tuple[str, Side], ...]
    cut: Cut | None = None

    @property
    def total(self) -> int:
        """How many units there are with those of other tensors that are cut from the same axis."""
        return self.size if self.cut is None else self.cut.total


_NUMBERS = ("int", "uint", "bool")


class Found(NamedTuple):
    """What can be measured, and what cannot.

    Attributes:
        probes: the tensors.
        unmeasured: why there is no tensor for a side of a variable. What nothing is made of, and
            what takes nothing, is not listed for that side.
    """

    probes: tuple[Probe, ...]
    unmeasured: Mapping[Key, str]


def probes(checkpoint: Checkpoint, structure: Structure | None = None) -> tuple[Probe, ...]:
    """Return the tensors in which the activations around the variables of a checkpoint are.

    Raises:
        InputError: it has no graph, or that is damaged.
        ConverterError: the structure cannot be told.
    """
    return find_probes(checkpoint, structure).probes


def find_probes(checkpoint: Checkpoint, structure: Structure | None = None) -> Found:
    """Return what can be measured, and why the rest cannot.

    Raises:
        InputError: the checkpoint has no graph, or that is damaged.
        ConverterError: the structure cannot be told.
    """
    structure = structure or structure_of(checkpoint)
    return _Finder(checkpoint, structure).find()


class _Rows(NamedTuple):
    """What says which rows count: those for which it is not zero, or else those for which it is."""

    mask: Tensor
    keeps: bool


class _Place(NamedTuple):
    """Where something is measured: all of a probe but what it is measured for."""

    tensor: Tensor
    axis: int
    size: int
    rows: _Rows | None
    cut: Cut | None


class _Finder:
    def __init__(self, checkpoint: Checkpoint, structure: Structure) -> None:
        self._analysis = structure.graph.findings.analysis
        roles = checkpoint.roles()
        self._chains = chains_of(structure)
        # An average whose variable is not there was saved to be the model.
        taken = {part.variable for chain in self._chains for _, part in chain.parts}
        self._shapes = {
            name: checkpoint[name].shape
            for name in checkpoint
            if name not in structure.follows
            and (
                roles[name].kind in ("model", "batch_statistic")
                or (roles[name].kind == "average" and name in taken)
            )
        }
        # Seeds and counters are no layer's, and nobody misses them.
        self._numbers = {n for n in checkpoint if checkpoint[n].dtype.name.startswith(_NUMBERS)}
        self._why: dict[Key, str] = {}
        self._axes: dict[Key, int] = {}
        self._found: dict[_Place, dict[Key, None]] = {}
        self._rows_of: dict[Output, _Rows | None] = {}
        self._loops = in_loops(self._analysis.graph)
        self._masks = Masks(self._analysis)

    def find(self) -> Found:
        self._produced = produced_by_kernels(self._chains)
        self._uses = Counter(name for chain in self._chains for name in _variables(chain))
        for chain in self._chains:
            rows = self._rows(chain)
            for node, part in chain.parts:
                if part.variable in self._shapes:
                    self._take(chain, node, part, rows)
        found = tuple(
            Probe(
                place.tensor,
                place.axis,
                place.size,
                None if place.rows is None else place.rows.mask,
                place.rows is not None and place.rows.keeps,
                tuple(keys),
                place.cut,
            )
            for place, keys in self._found.items()
        )
        return Found(found, dict(self._unmeasured({key for probe in found for key in probe.for_})))

    def _rows(self, chain: Chain) -> _Rows | None:
        begin = chain.linear.output if chain.linear is not None else None
        if chain.kernels and chain.kernels[0].op in CELLS:
            lives = lives_of(chain.kernels[0])
            if lives is not None:
                return _Rows(lives, keeps=True)
            begin = Output(chain.kernels[0], 0)
        if begin is None or not (begin.node in self._loops or self._is_unrolled(chain)):
            return None
        if begin not in self._rows_of:
            is_unrolled = begin.node not in self._loops
            found = self._masks.of(begin, is_unrolled=is_unrolled)
            self._rows_of[begin] = found and _Rows(_mask(found), found.keeps)
        return self._rows_of[begin]

    def _is_unrolled(self, chain: Chain) -> bool:
        """Whether a variable is taken in several places, and rows are chosen somewhere."""
        is_shared = any(self._uses[name] > 1 for name in _variables(chain))
        return is_shared and self._masks.is_any

    def _take(self, chain: Chain, node: Node, part: Part, rows: _Rows | None) -> None:
        is_kernel = node in chain.kernels
        shape = self._shapes[part.variable]
        span = span_of(self._analysis, chain, node, part, shape, self._produced)
        if span is not None:
            key: Key = part.variable, "consumed" if part.use == "consume" else "produced"
            source = tensor_of(span.output)
            if part.use == "consume":
                source = as_taken(self._analysis.graph, node, source)
            place = _Place(source, -1, span.size, rows, None)
            self._found.setdefault(place, {})[key] = None
        elif node.op in CELLS:
            self._take_cell(chain, node, part, rows)
        elif part.use == "consume" or (is_kernel and part.use == "gain"):
            self._take_input(chain, node, part, rows)
        elif part.use in ("mean", "variance"):
            self._add(chain.normalised, part, "produced", rows, chain, node)
        else:
            self._add(chain.finished, part, "produced", rows, chain, node)

    def _take_cell(self, chain: Chain, node: Node, part: Part, rows: _Rows | None) -> None:
        side: Side = "consumed" if part.use == "consume" else "produced"
        places = places_of(self._analysis, node, part.variable)
        found = [tensors_of(node, place, part.use) for place in places]
        size = self._shapes[part.variable][part.axis]
        if len(found) != 1 or found[0] is None:
            self._why.setdefault((part.variable, side), chain.why)
            return
        place = _Place(found[0], -1, size, rows, None)
        self._found.setdefault(place, {})[part.variable, side] = None

    def _take_input(self, chain: Chain, node: Node, part: Part, rows: _Rows | None) -> None:
        key: Key = (part.variable, "consumed")
        if node.op in TABLES:
            self._why.setdefault(key, LOOKED_UP)
        elif node in chain.kernels:
            given = chain.inputs[chain.kernels.index(node)]
            self._add(given, part, "consumed", rows, chain, node)

    def _add(
        self,
        units: UnitAxis | None,
        part: Part,
        side: Side,
        rows: _Rows | None,
        chain: Chain,
        node: Node,
    ) -> None:
        key: Key = (part.variable, side)
        if units is None or units.size is None:
            self._why.setdefault(key, chain.why or f"{node.name} ({node.op}) has no axis for it")
            return
        length = self._length(chain, node, part)
        is_wider = _is_wider(node, part, units.size, length)
        if not is_wider and not same_axis(units.atom, part.atom):
            return
        cut = None
        if self._is_one_of_several(chain, node, part) or (not is_wider and length != units.size):
            shape = self._shapes[part.variable]
            cut = cut_of(self._analysis, node, part.variable, shape, part.axis)
            if cut is None or cut.size != units.size:
                why = f"{node.name} ({node.op}) takes {units.size} of {length}"
                self._why.setdefault(key, why)
                return
        if self._axes.setdefault(key, part.axis) != part.axis:
            # A table that is tied to an output is a kernel the other way round there.
            return
        # What normalises in both branches of a condition takes what is outside of them.
        finished = chain.finished
        at = node if side == "consumed" or finished is None else finished.output.node
        source = as_taken(self._analysis.graph, at, tensor_of(units.output))
        place = _Place(source, units.axis, units.size, rows, cut)
        self._found.setdefault(place, {})[key] = None

    def _length(self, chain: Chain, node: Node, part: Part) -> int:
        """Return how long what a part is of is, which may be several axes that are taken as one."""
        shape = self._shapes[part.variable]
        axes = sorted({p.axis for n, p in chain.parts if n is node and p[::2] == part[::2]})
        if axes == list(range(axes[0], axes[-1] + 1)):
            together = [p for n, p in chain.parts if n is node and p.variable == part.variable]
            if all(p.atom is part.atom for p in together if p.axis in axes):
                return math.prod(shape[axis] for axis in axes)
        return shape[part.axis]

    def _is_one_of_several(self, chain: Chain, node: Node, part: Part) -> bool:
        """Whether a vector is one row of a variable, such as one of the two biases of a GRU."""
        taken = {p.axis for n, p in chain.parts if n is node and p.variable == part.variable}
        shape = self._shapes[part.variable]
        is_vector = part.use in ("shift", "gain") and node not in chain.kernels
        return is_vector and any(size > 1 and axis not in taken for axis, size in enumerate(shape))

    def _unmeasured(self, found: set[Key]) -> Iterator[tuple[Key, str]]:
        roles = self._analysis.roles.values()
        taken = {role.origin.variable for at_node in roles for role in at_node}
        for name in self._shapes:
            sides: tuple[Side, ...] = ("produced", "consumed")
            for side in sides:
                if (name, side) not in found and (name, side) in self._why:
                    yield (name, side), self._why[name, side]
            if not any((name, side) in found or (name, side) in self._why for side in sides):
                why = "nothing that the graph computes forward takes it"
                if not self._shapes[name]:
                    why = "one number alone is of no unit"
                elif name in taken:
                    why = "it is not clear which tensor it makes"
                elif name in self._numbers:
                    continue
                yield (name, "produced"), why


def _mask(found: Mask) -> Tensor:
    given = tensor_of(found.output)
    return given if found.step is None else longer_than(given, found.step)


def _variables(chain: Chain) -> set[str]:
    return {part.variable for _, part in chain.parts}


def _is_wider(node: Node, part: Part, size: int, length: int) -> bool:
    """Whether there are more channels than the kernel of a convolution has entries for.

    A depthwise kernel `[.., channels, multiplier]` makes several of each, and the groups of a
    grouped convolution share a kernel that is as deep as one of them.
    """
    if node.op == "DepthwiseConv2dNative":
        return part.use == "produce"
    return node.op in CONVOLUTIONS and part.use == "consume" and not size % length and size > length
