"""Tells the layers of a checkpoint from what its graph does with its variables."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from converter.graph.node import Node, Output, Tensor
from converter.graph.ops import BATCH_NORMS, BOOLS, CELLS, CONTRACTIONS, JOINS, ops
from converter.structure.axes.axis import Axis, Blocks
from converter.structure.called import called_now
from converter.structure.infer import structure_of
from converter.structure.layers.chains import (
    CONVOLUTIONS,
    TABLES,
    Chain,
    Chains,
    Part,
    UnitAxis,
)
from converter.structure.layers.layer import (
    Activation,
    Layer,
    LayerKind,
    Normalisation,
    Place,
    Rows,
    Units,
)
from converter.structure.layers.masks import in_loops
from converter.structure.layers.steps import Step
from converter.structure.layers.unread import turned
from converter.structure.structure import Structure
from converter.structure.tensors.analysis import Analysis
from converter.structure.tensors.atoms import size_of

if TYPE_CHECKING:
    from converter.checkpoint import Checkpoint

_CHOOSES = BOOLS | ops("ArgMax ArgMin Multinomial StatelessMultinomial Range")
_MIXES = CONTRACTIONS | ops("Softmax Sum Mean")
_ONE_HOT = ops("Reshape Cast Identity")
_MAX_PASSED = 8


def layers(checkpoint: Checkpoint) -> tuple[Layer, ...]:
    """Return the layers of a checkpoint in the order of the data.

    It is told once for a checkpoint. Variables have the names that they have now; those that are no
    more what the graph has keep the names that they have in it.

    Raises:
        InputError: it has no graph, or that is damaged, or it is that of another checkpoint.
        ConverterError: the structure cannot be told.
    """
    return checkpoint.once(
        (Layer, None),
        lambda: tuple(
            _renamed(layer, called_now(checkpoint)) for layer in _read(structure_of(checkpoint))
        ),
    )


def _renamed(layer: Layer, now: Mapping[str, str]) -> Layer:
    def called(name: str | None) -> str | None:
        return None if name is None else now.get(name, name)

    norm = layer.normalisation
    return replace(
        layer,
        kernels=tuple(now.get(name, name) for name in layer.kernels),
        biases=tuple(now.get(name, name) for name in layer.biases),
        normalisation=norm
        and replace(
            norm,
            gamma=called(norm.gamma),
            beta=called(norm.beta),
            mean=called(norm.mean),
            variance=called(norm.variance),
        ),
        state=tuple(
            rows._replace(kernel=now.get(rows.kernel, rows.kernel)) for rows in layer.state
        ),
    )


def chains_of(structure: Structure) -> list[Chain]:
    """Return what the variables make, in the order of the data.

    Raises:
        InputError: there is no graph.
    """
    gates = {
        name
        for name, axes in structure.axes.items()
        if any(isinstance(term[0], Blocks) for axis in axes for term in axis.terms)
    }
    analysis = structure.graph.findings.analysis
    return Chains(analysis, gates).find()


def _read(structure: Structure) -> tuple[Layer, ...]:
    groups: dict[tuple[object, ...], list[Chain]] = {}
    for chain in chains_of(structure):
        names = kernels_of(chain) or _normalising(chain)
        if names:
            # A table that is tied to an output is a kernel the other way round there.
            made = (part.axis for node, part in chain.parts if part.use == "produce")
            way = next(made, None) if chain.kernels else None
            groups.setdefault((*names, way), []).append(chain)
    return _Layers(structure, list(groups.values())).read()


def kernels_of(chain: Chain) -> tuple[str, ...]:
    """Return the variables that are the kernels of a chain."""
    own = set(chain.kernels)
    found = [p.variable for n, p in chain.parts if n in own and p.use in ("produce", "consume")]
    return tuple(dict.fromkeys(found))


def _normalising(chain: Chain) -> tuple[str, ...]:
    """Return the variables of a normalisation that stands by itself."""
    is_one = any(s.what == "normalise" for s in chain.steps) or any(
        part.use == "variance" for _, part in chain.parts
    )
    return tuple(dict.fromkeys(p.variable for _, p in chain.parts)) if is_one else ()


class _Layers:
    """Puts layers together, each of which is one or several chains of the same kernels."""

    def __init__(self, structure: Structure, groups: Sequence[Sequence[Chain]]) -> None:
        self._structure = structure
        self._analysis: Analysis = structure.graph.findings.analysis
        self._groups = groups
        self._loops = in_loops(self._analysis.graph)
        self._of_node = {
            node: index
            for index, chains in enumerate(groups)
            for chain in chains
            for node in chain.nodes
        }

    def read(self) -> tuple[Layer, ...]:
        self._sources = [
            tuple(sorted({i for chain in chains for i in self._before(_begins(chain))}))
            for chains in self._groups
        ]
        return tuple(self._layer(index, chains) for index, chains in enumerate(self._groups))

    def _before(self, outputs: Iterable[Output], without: frozenset[str] = frozenset()) -> set[int]:
        """Return the layers from which tensors are made, without other layers between."""
        found: set[int] = set()
        waiting = [output.node for output in outputs]
        seen = set(waiting)
        while waiting:
            node = waiting.pop()
            if node in self._of_node:
                found.add(self._of_node[node])
                continue
            if node.op in _CHOOSES or node.op in without:
                continue
            sources = [o.node for o in node.inputs if self._analysis.is_data(o)]
            sources += self._turned(node)
            waiting += [source for source in sources if source not in seen]
            seen.update(sources)
        return found

    def _turned(self, node: Node) -> Iterator[Node]:
        """Yield what becomes of a variable of a loop in the turn before, and what those are."""
        for source in (node, *(output.node for output in node.inputs)):
            loop = turned(self._analysis.graph, source)
            if loop is not None and loop.inputs:
                yield source
                yield loop.inputs[-1].node

    def _layer(self, index: int, chains: Sequence[Chain]) -> Layer:
        chain = chains[0]
        kernels = kernels_of(chain)
        norm = normalisation_of(self._analysis, chain)
        taken = {norm.gamma, norm.beta, norm.mean, norm.variance} if norm else set()
        biases = [
            part.variable
            for one in chains
            for node, part in one.parts
            if part.use in ("shift", "produce", "mean")
            and part.variable not in taken
            and (part.use == "shift" or node not in one.kernels)
        ]
        acts = [step for step in chain.steps if step.what == "activate"]
        is_homogeneous = all(step.is_homogeneous for step in acts)
        produced = self._produced(chain)
        state = tuple(dict.fromkeys(r for c in chains for r in self._state(index, c)))
        kind = self._kind(index, chains, kernels, state)
        return Layer(
            kind,
            kernels,
            tuple(dict.fromkeys(biases)),
            norm,
            Activation(acts[0].op, is_homogeneous) if acts else None,
            tuple(dict.fromkeys(node.name for node in chain.constants)),
            produced,
            tuple(produced.widths()),
            state if kind == "recurrent" else (),
            self._sources[index],
            tuple(_place(chain) for chain in chains),
        )

    def _kind(
        self, index: int, chains: Sequence[Chain], kernels: Sequence[str], state: Sequence[Rows]
    ) -> LayerKind:
        chain = chains[0]
        if not chain.kernels:
            return "normalisation"
        op = chain.kernels[0].op
        if op in TABLES or _is_one_hot(chain):
            return "embedding"
        if op in CELLS or self._has_gates(kernels):
            return "recurrent"
        # Unlike a cell, one that is applied again to what it made takes nothing else.
        has_more = len(kernels) > len(state) or any(row.start for row in state)
        is_loop = any(node in self._loops for c in chains for node in c.kernels)
        if state and index in self._sources[index] and (is_loop or has_more):
            return "recurrent"
        return "convolution" if op in CONVOLUTIONS else "dense"

    def _has_gates(self, kernels: Sequence[str]) -> bool:
        axes = self._structure.axes
        return any(
            isinstance(term[0], Blocks)
            for name in kernels
            for axis in axes.get(name, ())
            for term in axis.terms
        )

    def _produced(self, chain: Chain) -> Axis:
        for node, part in chain.parts:
            if node in chain.kernels and part.use == "produce" and node.op not in CONVOLUTIONS:
                axes = self._structure.axes.get(part.variable, ())
                if part.axis < len(axes):
                    return axes[part.axis]
        units = chain.linear
        # A vector that is summed with what it takes makes one number.
        return Axis(((1,),)) if units is None else self._structure.graph.write(units.atom)

    def _state(self, index: int, chain: Chain) -> Iterator[Rows]:
        if not chain.kernels:
            return
        for node, given in zip(chain.kernels, chain.inputs, strict=True):
            taken = next((p for n, p in chain.parts if n is node and p.use == "consume"), None)
            if taken is None:
                continue
            if given is None and node.op in CELLS:
                yield from self._state_of_cell(node, taken)
            elif given is not None and given.size is not None:
                yield from self._state_in(index, taken.variable, given)

    def _state_of_cell(self, node: Node, taken: Part) -> Iterator[Rows]:
        """What is one op takes its state behind all else."""
        rows = size_of(taken.atom)
        made = self._analysis.tensor(Output(node, 0)).axes
        units = size_of(made[-1]) if made else None
        if rows is not None and units is not None:
            yield Rows(taken.variable, rows - units, rows)

    def _state_in(self, index: int, name: str, given: UnitAxis) -> Iterator[Rows]:
        if self._is_state(index, given.output):
            yield Rows(name, 0, given.size or 0)
        elif given.output.node.op in JOINS:
            start = 0
            for output in given.output.node.inputs:
                axes = self._analysis.tensor(output).axes
                size = size_of(axes[given.axis]) if axes and len(axes) >= -given.axis else None
                if size is None:
                    continue
                if self._is_state(index, output):
                    yield Rows(name, start, start + size)
                start += size

    def _is_state(self, index: int, output: Output) -> bool:
        if output.node.op in JOINS:
            return False
        before = self._before([output], frozenset(_MIXES))
        # The state may be projected before it is taken again.
        return index in before or any(self._sources[other] == (index,) for other in before)


def _begins(chain: Chain) -> list[Output]:
    given = [units.output for units in chain.inputs if units is not None]
    return given or [output for node in chain.kernels for output in node.inputs]


def _place(chain: Chain) -> Place:
    return Place(
        tuple(_named(units) for units in chain.inputs) if chain.kernels else (),
        _named(chain.linear),
        _named(chain.finished),
    )


def _named(units: UnitAxis | None) -> Units | None:
    if units is None:
        return None
    return Units(tensor_of(units.output), units.axis, units.size)


def tensor_of(output: Output) -> Tensor:
    """Return the name of a tensor."""
    return Tensor(output.node.name, output.port)


def _is_one_hot(chain: Chain) -> bool:
    """Whether what a kernel takes only says which of its rows is meant."""
    given = chain.inputs[0]
    node = None if given is None else given.output.node
    for _ in range(_MAX_PASSED):
        if node is None or node.op not in _ONE_HOT or not node.inputs:
            break
        node = node.inputs[0].node
    return node is not None and node.op == "OneHot"


def normalisation_of(analysis: Analysis, chain: Chain) -> Normalisation | None:
    """Return how a chain is normalised; None where it is not."""
    roles = _by_step(chain)
    first = next((i for i, s in enumerate(chain.steps) if _normalises(s, roles[i])), None)
    if first is None:
        return None
    behind = [part for parts in roles[first:] for part in parts]

    def one(use: str) -> str | None:
        return next((part.variable for part in behind if part.use == use), None)

    steps = chain.steps[first:]
    fused = [node for step in steps for node in step.nodes if node.op in BATCH_NORMS]
    is_layer = any(step.is_over_units for step in steps)
    has_moments = one("variance") is not None
    return Normalisation(
        "layer" if is_layer else "batch",
        one("gain"),
        one("shift"),
        one("mean"),
        one("variance"),
        _epsilon(analysis, steps, fused),
        bool(fused),
        not is_layer and not has_moments,
    )


def _by_step(chain: Chain) -> list[list[Part]]:
    found: list[list[Part]] = []
    for step in chain.steps:
        found.append([part for node, part in chain.parts if node in step.nodes])
    return found


def _normalises(step: Step, parts: Sequence[Part]) -> bool:
    return step.what in ("normalise", "centre") or any(
        part.use in ("variance", "mean") for part in parts
    )


def _epsilon(analysis: Analysis, steps: Sequence[Step], fused: Sequence[Node]) -> float | None:
    if fused:
        value = fused[0].attributes.get("epsilon")
        return 1e-4 if value is None else float(value.f)
    seen: set[Node] = set()
    waiting = [node for step in steps for node in step.nodes]
    while waiting and len(seen) < _MAX_NODES:
        node = waiting.pop(0)
        if node in seen:
            continue
        seen.add(node)
        if node.op in ("Rsqrt", "Sqrt", "Pow") and node.inputs:
            added = node.inputs[0].node
            numbers = [analysis.tensor(output).number for output in added.inputs]
            return next((n for n in numbers if n is not None), None)
        waiting += [output.node for output in node.inputs if not analysis.is_data(output)]
    return None


_MAX_NODES = 256
