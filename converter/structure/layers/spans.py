"""Units that several axes hold together, as those of attention: `[heads, size]` of a bias."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

from converter.graph.node import Node, Output
from converter.structure.layers.chains import CONVOLUTIONS, TABLES, Chain, Part
from converter.structure.layers.steps import holds, same_axis, step_from
from converter.structure.tensors.analysis import Analysis
from converter.structure.tensors.atoms import Atom, find, leaves

_MAX_STEPS = 64


# What a variable does to units whose values it does not contract.
_ENTRYWISE = ("produce", "shift", "gain")


class Span(NamedTuple):
    """A tensor of which the last axes hold units.

    Attributes:
        output: the tensor.
        size: how many units there are.
    """

    output: Output
    size: int


def produced_by_kernels(chains: Iterable[Chain]) -> set[Atom]:
    """Return what the axes are made of that kernels produce."""
    return {
        leaf
        for chain in chains
        for node, part in chain.parts
        if node in chain.kernels and part.use == "produce"
        for leaf in _made_of(part.atom)
    }


def span_of(
    analysis: Analysis,
    chain: Chain,
    node: Node,
    part: Part,
    shape: Sequence[int],
    produced: Collection[Atom],
) -> Span | None:
    """Return where the units are that several axes of a variable make, or take, together.

    Args:
        analysis: of the graph.
        chain: in which the variable is.
        node: that takes it.
        part: one of the axes.
        shape: of the variable.
        produced: what `produced_by_kernels` gave: an axis of steps or places is no unit's.

    Returns:
        None where one axis holds them, or where they do not stand last, in their order.
    """
    axes = _together(chain, node, part, shape)
    if len(axes) < 2 or not (node in chain.kernels or _is_produced(axes.values(), produced)):
        return None
    atoms, size = list(axes.values()), math.prod(shape[axis] for axis in axes)
    if part.use == "consume":
        given = [o for o in node.inputs if analysis.is_data(o) and holds(analysis, o, atoms)]
        return Span(given[0], size) if len(given) == 1 else None
    output = Output(node, 0)
    if not holds(analysis, output, atoms):
        return None
    return Span(_finished(analysis, output, atoms), size)


def _together(chain: Chain, node: Node, part: Part, shape: Sequence[int]) -> dict[int, Atom]:
    """Return the axes of a variable that an op takes in the same way, in their order."""
    is_kernel = node in chain.kernels
    if node.op in CONVOLUTIONS | TABLES or (is_kernel and part.use not in ("produce", "consume")):
        return {}
    uses = (part.use,) if is_kernel else _ENTRYWISE
    if part.use not in uses:
        return {}
    own = [p for n, p in chain.parts if n is node and p.variable == part.variable]
    atoms = {p.axis: p.atom for p in own if p.use in uses and shape[p.axis] > 1}
    others = [a for a in range(len(shape)) if shape[a] > 1 and a not in atoms]
    # What is taken as one axis is one already, and one row of several is none of these.
    is_one = any(same_axis(a, b) for a in atoms.values() for b in atoms.values() if a is not b)
    if is_one or len(set(map(id, atoms.values()))) < len(atoms) or (others and not is_kernel):
        return {}
    return dict(sorted(atoms.items()))


def _is_produced(atoms: Iterable[Atom], produced: Collection[Atom]) -> bool:
    return all(leaf in produced for atom in atoms for leaf in _made_of(atom))


def _made_of(atom: Atom) -> Sequence[Atom]:
    """Return what an axis is made of: itself, where that is nothing but single entries."""
    return leaves(atom) or [find(atom)]


def _finished(analysis: Analysis, output: Output, atoms: Sequence[Atom]) -> Output:
    """Go on behind what keeps these axes: biases, constants, one activation function."""
    found, is_activated = output, False
    for _ in range(_MAX_STEPS):
        step = step_from(analysis, output, -1)
        if step is None or is_activated or not holds(analysis, step.after, atoms):
            break
        output = step.after
        is_activated = step.what == "activate"
        if step.what not in ("pass", "centre", "drop"):
            found = output
    return found
