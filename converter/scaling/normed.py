"""Which batch normalisations take what one kernel makes, and nothing else does."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache, partial
from typing import NamedTuple

import numpy as np

from converter.checkpoint import Checkpoint
from converter.graph.node import Node, Output
from converter.graph.ops import ADDS, BIAS_ADDS, ops
from converter.scaling.equal import Normed
from converter.scaling.fold import Foldable, does_nothing, scale_of
from converter.scaling.multiply import along
from converter.structure.axes.axis import Use
from converter.structure.called import called_now
from converter.structure.layers.chains import DEPTHWISE, Chain
from converter.structure.layers.layer import Normalisation
from converter.structure.layers.read import chains_of, normalisation_of
from converter.structure.layers.steps import Step, takers
from converter.structure.properties.classes import named
from converter.structure.structure import Structure
from converter.variable import Array

_SUMS = ADDS | BIAS_ADDS | ops("AddN Sub Mul")
_MOMENTS = ops("Mean Sum SquaredDifference Square")
_LINEAR = ops("Conv1D Conv2D Conv3D Conv2DBackpropInput Conv3DBackpropInputV2 MatMul") | DEPTHWISE


class Left(NamedTuple):
    """A batch normalisation that stays.

    Attributes:
        name: its scope.
        reason: half a sentence.
    """

    name: str
    reason: str


def foldable(
    checkpoint: Checkpoint, structure: Structure
) -> tuple[dict[str, Foldable], tuple[Left, ...]]:
    """Find the batch normalisations that can be moved into kernels, and those that cannot.

    Returns:
        The first by their scopes, in the order of the graph, and the others.

    Raises:
        InputError: there is no graph.
    """
    # With the structure, so that no other one can have its id while the checkpoint knows it.
    return checkpoint.once(
        (Foldable, id(structure)), lambda: (structure, _Finder(checkpoint, structure).find())
    )[1]


def normed(checkpoint: Checkpoint, structure: Structure) -> list[Normed]:
    """Return the kernels that are normalised; none where there is no graph."""
    if structure.findings is None:
        return []
    found = []
    for one in foldable(checkpoint, structure)[0].values():
        others = tuple(name for name in one.vectors if name not in (one.gamma, one.beta))
        before = (*(name for name, _ in one.kernels), *others)
        is_folded = cache(partial(does_nothing, checkpoint, one))
        for name, axis in one.kernels:
            scale = along(checkpoint[name], axis, partial(_reach, checkpoint, one))
            found.append(Normed(name, scale, one.gamma, before, is_folded))
    return found


def _reach(checkpoint: Checkpoint, one: Foldable) -> Array:
    found: Array = np.abs(scale_of(checkpoint, one))
    return found


class _Finder:
    """Looks through the layers of a graph."""

    def __init__(self, checkpoint: Checkpoint, structure: Structure) -> None:
        self._checkpoint = checkpoint
        self._structure = structure

    def find(self) -> tuple[dict[str, Foldable], tuple[Left, ...]]:
        self._analysis = self._structure.graph.findings.analysis
        self._chains = chains_of(self._structure)
        self._now = called_now(self._checkpoint)
        found: dict[str, Foldable | str] = {}
        for chain in self._chains:
            norm = normalisation_of(self._analysis, chain)
            if norm is None or norm.over != "batch":
                continue
            scope = self._scope(chain, norm)
            one = self._of_chain(chain, norm)
            # Where a layer is applied several times, all have to agree.
            if found.setdefault(scope, one) != one:
                found[scope] = "it stands in several places, behind different kernels"
        names = [n for f in found.values() if isinstance(f, Foldable) for n in _names(f)]
        return (
            {s: f for s, f in found.items() if isinstance(f, Foldable) and _is_once(f, names)},
            tuple(
                Left(s, f if isinstance(f, str) else "another normalisation has its variables, too")
                for s, f in found.items()
                if isinstance(f, str) or not _is_once(f, names)
            ),
        )

    def _scope(self, chain: Chain, norm: Normalisation) -> str:
        uses = self._vectors(chain)
        order: tuple[Use, ...] = ("gain", "shift", "mean", "variance")
        known = (*(uses.get(use) for use in order), norm.gamma, norm.beta, norm.variance)
        name = next(filter(None, known), chain.steps[0].nodes[0].name)
        return name.rpartition("/")[0] or name

    def _vectors(self, chain: Chain) -> dict[Use, str]:
        """Return the variables of a normalisation by what they do."""
        first = self._first(chain)
        nodes = {node for step in chain.steps[first:] for node in step.nodes}
        found: dict[Use, str] = {}
        for node, part in chain.parts:
            if node not in nodes:
                continue
            uses = self._structure.uses.get(self._now.get(part.variable, part.variable), ())
            settled = {use for used in uses for some in used.values() for use in some}
            if len(settled) == 1 and (use := settled.pop()) in ("gain", "mean", "variance"):
                found.setdefault(use, part.variable)
            elif part.use == "shift":
                found.setdefault("shift", part.variable)
            elif part.use not in found and not settled:
                found[part.use] = part.variable
        return found

    def _first(self, chain: Chain) -> int:
        """Return the place of the first step of the normalisation."""
        for place, step in enumerate(chain.steps):
            uses = {p.use for node, p in chain.parts if node in step.nodes}
            if step.what in ("normalise", "centre") or uses & {"variance", "mean"}:
                return place
        return len(chain.steps)

    def _of_chain(self, chain: Chain, norm: Normalisation) -> Foldable | str:
        """Return how a normalisation is folded, or why it is not."""
        vectors = self._vectors(chain)
        mean, variance = vectors.get("mean"), vectors.get("variance")
        if mean is None or variance is None:
            return "it takes the moments of each batch"
        if norm.epsilon is None or not 0 <= norm.epsilon < 1:
            return "what it adds to the variance is not written in the graph"
        before = self._before(chain)
        if isinstance(before, str):
            return before
        if node := adding_itself(chain):
            return f"{named(node)} adds what it takes to what it gives"
        kernels, biases, is_behind = before
        bias = biases[0] if biases else None
        found = Foldable(
            tuple((self._now.get(name, name), axis) for name, axis in kernels),
            self._renamed(bias),
            self._renamed(vectors.get("gain")),
            self._renamed(vectors.get("shift")),
            self._now.get(mean, mean),
            self._now.get(variance, variance),
            norm.epsilon,
            is_behind,
        )
        return self._wrong(found, kernels, biases) or found

    def _renamed(self, name: str | None) -> str | None:
        return None if name is None else self._now.get(name, name)

    def _wrong(
        self, one: Foldable, kernels: Sequence[tuple[str, int]], biases: Sequence[str]
    ) -> str | None:
        if len(biases) > 1:
            return f"{biases[0]} and {biases[1]} are both added before it"
        for name in _names(one):
            if name not in self._checkpoint:
                return f"{name} is not here"
            if not self._checkpoint[name].dtype.is_float:
                return f"{name} is {self._checkpoint[name].dtype}"
        sizes = {self._checkpoint[name].size for name in one.vectors}
        if len(sizes) > 1:
            return "its variables have different sizes"
        own = {name for name, _ in kernels} | set(biases)
        for other in self._chains:
            parts = {part.variable for node, part in other.parts}
            if own & parts and not self._is_before(other, one):
                return f"{sorted(own & parts)[0]} makes something else, too"
        return None

    def _is_before(self, chain: Chain, one: Foldable) -> bool:
        """Whether a chain is one of those that the normalisation takes."""
        return any(
            self._now.get(part.variable, part.variable) in (one.variance, one.mean)
            for c in (chain, *self._behind(chain))
            for _, part in c.parts
        )

    def _behind(self, chain: Chain) -> Iterator[Chain]:
        """Yield the chains that begin with what one ends with."""
        end = chain.finished
        for other in self._chains:
            if end and not other.kernels and other.linear and other.linear.output == end.output:
                yield other

    def _before(self, chain: Chain) -> tuple[list[tuple[str, int]], list[str], bool] | str:
        """Return the kernels and biases in front of a normalisation, or why there are none."""
        first = self._first(chain)
        if chain.kernels:
            return self._linear(chain, first)
        makers = [c for c in self._chains if c.kernels and chain in self._behind(c)]
        if len(makers) != 1:
            return "no one kernel makes what it takes"
        assert chain.linear is not None
        own = set(chain.nodes)
        if any(node not in own for node in takers(self._analysis, chain.linear.output)):
            return "what it takes is taken by something else, too"
        (maker,) = makers
        return self._linear(maker, len(maker.steps))

    def _linear(
        self, chain: Chain, stop: int
    ) -> tuple[list[tuple[str, int]], list[str], bool] | str:
        is_behind = False
        for step in chain.steps[:stop]:
            if step.what == "activate" and step.is_homogeneous:
                is_behind = True
            elif step.what not in ("pass", "sum", "bias") or (is_behind and step.what == "bias"):
                return f"{named(_of_op(step))} stands before it"
        kernels: dict[str, int] = {}
        for node in chain.kernels:
            if node.op not in _LINEAR:
                return f"{named(node)} makes what it takes"
            made = [
                (part.variable, len(self._checkpoint[self._now[part.variable]].shape) - 2)
                if node.op in DEPTHWISE
                else (part.variable, part.axis)
                for n, part in chain.parts
                if n is node and part.variable in self._now and _makes(node.op, part.use)
            ]
            if len(set(made)) != 1:
                return f"{named(node)} makes what it takes from several variables"
            kernels[made[0][0]] = made[0][1]
        steps = {node for step in chain.steps[:stop] for node in step.nodes}
        biases = [part.variable for node, part in chain.parts if node in steps]
        return list(kernels.items()), list(dict.fromkeys(biases)), is_behind


def _of_op(step: Step) -> Node:
    """Return the node that makes a step what it is."""
    return next((node for node in step.nodes if node.op == step.op), step.nodes[0])


def adding_itself(chain: Chain) -> Node | None:
    """Return the node that adds something to itself on a second way around the normalisation.

    Its moments are made of it, too, and are no such way.
    """
    begin = chain.linear.output if chain.linear is not None else None
    carrying: set[Output | Node] = set() if begin is None else {begin}
    for step in chain.steps:
        for node in step.nodes:
            carries = [o for o in node.inputs if o in carrying or o.node in carrying]
            if len(carries) > 1 and node.op in _SUMS:
                return node
            if carries and node.op not in _MOMENTS:
                carrying.add(node)
    return None


def _makes(op: str, use: Use) -> bool:
    return op in DEPTHWISE or use == "produce"


def _names(one: Foldable) -> Iterator[str]:
    yield from (name for name, _ in one.kernels)
    yield from one.vectors


def _is_once(one: Foldable, names: Iterable[str]) -> bool:
    counts: Mapping[str, int] = {name: list(names).count(name) for name in _names(one)}
    return all(count == 1 for count in counts.values())
