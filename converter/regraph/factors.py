"""Factors of a graph that are a power of a width's size, and the constants that they come from."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

from converter.graph.node import Node, Output
from converter.graph.ops import DIVISIONS, LOOKUPS, MOVES, SIZES, SLICES
from converter.regraph.sizes import Sizes
from converter.structure.structure import SizeFactor, Structure
from converter.structure.tensors.analysis import Analysis

_MAX_STEPS = 64
_PICKS = SLICES | LOOKUPS


class Rescaled(NamedTuple):
    """A factor of the graph that is a power of a width's size, and moves with it.

    Attributes:
        width: the width.
        node: the node that multiplies with it, or divides by it.
        before: the factor.
        after: what it becomes.
    """

    width: str
    node: str
    before: float
    after: float


class Change(NamedTuple):
    """What a factor comes from.

    Attributes:
        factor: the factor.
        constant: the constant that has to change, or None where the graph works it out from a
            shape.
        value: what the entry of the constant becomes.
        place: of the entry.
    """

    factor: Rescaled
    constant: str | None
    value: float
    place: int = 0


def changes(structure: Structure, sizes: Sizes) -> Iterator[Change | Rescaled]:
    """Yield what has to change for each factor of a width that changes.

    A factor that comes from something that cannot be changed is yielded alone.
    """
    analysis = structure.graph.findings.analysis
    for name, factors in structure.factors.items():
        if name not in sizes.changed:
            continue
        before, after = sizes.before[name], sizes.after[name]
        for factor in factors:
            node = analysis.graph.by_name[factor.node]
            number = factor.number * (after / before) ** factor.power
            found = Rescaled(name, node.name, factor.number, number)
            origin = _origin(analysis, node, before)
            if origin is None:
                entry = _entry(analysis, node, before)
                yield found if entry is None else Change(found, entry[0], after, entry[1])
            elif origin.op in SIZES:
                yield Change(found, None, 0)
            else:
                value = _value(analysis, origin)
                if value == before:
                    yield Change(found, origin.name, after)
                else:
                    power = -1 if _divides(node, factor, value) else 1
                    yield Change(found, origin.name, value * (number / factor.number) ** power)


def _value(analysis: Analysis, constant: Node) -> float:
    """Return the number that a constant is; 0 where it is none."""
    held = analysis.tensor(Output(constant, 0))
    return held.number if held.number is not None else float((held.values or [0])[0])


def _divides(node: Node, factor: SizeFactor, value: float) -> bool:
    return node.op in DIVISIONS and math.isclose(1 / value, factor.number, rel_tol=1e-6)


def _origin(analysis: Analysis, node: Node, size: int) -> Node | None:
    """Return the constant, or the op that tells a size, that a factor comes from."""
    scalars = [o for o in node.inputs if analysis.tensor(o).number is not None]
    if len(scalars) != 1:
        return None
    direct = scalars[0].node
    for _ in range(_MAX_STEPS):
        if direct.op not in MOVES or not direct.inputs:
            break
        direct = direct.inputs[0].node
    if direct.op == "Const":
        return direct if _value(analysis, direct) and _is_own(analysis, direct, node) else None
    # Worked out in the graph: of a size that is told, or of one that is written down.
    sources = list(_sources(scalars[0].node))
    told = [source for source in sources if source.op in SIZES]
    if told:
        return told[0]
    written = [
        source for source in sources if source.op == "Const" and _value(analysis, source) == size
    ]
    return written[0] if len(written) == 1 and _is_own(analysis, written[0], node) else None


def _entry(analysis: Analysis, node: Node, size: int) -> tuple[str, int] | None:
    """Return the constant, and the place in it, that holds the size that a factor is made of.

    TensorFlow writes down the shapes that it knows when it builds a graph.
    """
    scalars = [o for o in node.inputs if analysis.tensor(o).number is not None]
    picked = []
    for source in _sources(scalars[0].node) if len(scalars) == 1 else ():
        cells = analysis.tensor(Output(source, 0)).cells or ()
        if source.op in _PICKS and len(cells) == 1 and cells[0].constant is not None:
            picked.append((source, cells[0]))
    if len(picked) != 1 or picked[0][1].value != size or picked[0][1].constant is None:
        return None
    entry = picked[0][1].constant
    for taker in analysis.graph.consumers[analysis.graph.by_name[entry[0]]]:
        if taker not in analysis.flow.forward:
            continue
        given = analysis.tensor(Output(taker, 0)).cells
        if given is None:
            return None
        if any(cell.constant == entry for cell in given) and not _is_own(analysis, taker, node):
            return None
    return entry


def _sources(node: Node) -> Iterator[Node]:
    waiting, seen = [node], {node}
    for _ in range(_MAX_STEPS):
        if not waiting:
            return
        current = waiting.pop()
        yield current
        if current.op in SIZES:
            continue
        for source, _ in current.inputs:
            if source not in seen:
                seen.add(source)
                waiting.append(source)


def _is_own(analysis: Analysis, constant: Node, node: Node) -> bool:
    """Whether nothing else that runs forward takes a constant."""
    waiting, seen = [constant], {constant}
    while waiting:
        for consumer in analysis.graph.consumers[waiting.pop()]:
            if consumer is node or consumer in seen or consumer not in analysis.flow.forward:
                continue
            if analysis.tensor(Output(consumer, 0)).number is None:
                return False
            seen.add(consumer)
            waiting.append(consumer)
    return True
