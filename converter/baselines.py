"""What other models of the same size give: cut blindly, and with units that chance chooses.

A figure of a lossy conversion says little alone. That of tensors that are cut at their ends says
what knowing the gates and the layers is worth, and that of chance what the choice of units is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from converter.comparison import Likeness, compare, mean
from converter.forward.distributions import distribution
from converter.graph.written import Graph
from converter.running import Ran, Reference, Second, Side
from converter.variable import Variable

if TYPE_CHECKING:
    from converter.plan import Plan
    from converter.resize.exactness import Resizes
    from converter.resize.units import Units
    from converter.structure.structure import Structure

DRAWS = 3
"""Random choices of units, of the seeds 0, 1 and 2."""

Kind = Literal["blind", "random"]


@dataclass(frozen=True, slots=True)
class Baseline:
    """How like the first model others of one kind are, and how large their losses.

    Attributes:
        kind: `blind`: each tensor is cut at its end along each axis; `random`: the mean over
            models that keep other units by chance, the same ones in every block of every tensor.
        outputs: by tensor. What cannot be compared is not in it.
        losses: by tensor.
    """

    kind: Kind
    outputs: Mapping[str, Likeness]
    losses: Mapping[str, float]


class Other(NamedTuple):
    """A model of the new sizes: its variables, and what becomes of tensors in it."""

    variables: Mapping[str, Variable]
    resizes: Resizes


def baselines(plan: Plan, graph: Graph, reference: Reference) -> tuple[Baseline, ...]:
    """Run other models of the sizes of a plan on what was run before.

    Args:
        plan: gives widths another size.
        graph: that of its source, by its own names, at these sizes.
        reference: what came of the source.

    Raises:
        PlanError: a variable cannot be given its shape.
        RunError: the graph does not run with them.
    """
    from converter.resize.tensors import Tensors

    structure = plan.structure
    if structure is None:
        return ()
    cut = blind(plan, structure)
    tensors = Tensors([cut.resizes])
    side = Side(graph, plan.source, cut.variables)
    with Second(reference, side, tensors) as second:
        found = [_baseline("blind", [second.run(tensors)], reference)]
        runs = []
        for seed in range(DRAWS):
            other = drawn(plan, structure, seed)
            second.give(other.variables)
            runs.append(second.run(Tensors([other.resizes])))
        found.append(_baseline("random", runs, reference))
    return tuple(found)


def _baseline(kind: Kind, runs: list[Ran], reference: Reference) -> Baseline:
    graph = reference.forward.graph
    outputs: dict[str, list[Likeness]] = {}
    losses: dict[str, list[float]] = {}
    for ran in runs:
        for tensor, first, second in ran.pairs:
            compared = compare(str(tensor), first, second, distribution=distribution(graph, tensor))
            if compared.passed is not None:
                outputs.setdefault(compared.name, []).append(compared.likeness)
        for tensor, loss in ran.losses.items():
            losses.setdefault(str(tensor), []).append(loss)
    return Baseline(
        kind,
        {name: mean(found) for name, found in outputs.items()},
        {name: float(np.mean(found)) for name, found in losses.items()},
    )


def blind(plan: Plan, structure: Structure) -> Other:
    """Return the source with each tensor cut at its end, and zeros where one grows."""
    from converter.resize.units import Units

    units = {n: Units.first(structure.widths[n].size, size) for n, size in plan.sizes.items()}
    variables = {
        name: _cut(variable, plan.shape_in_graph(name)) for name, variable in plan.source.items()
    }
    return Other(variables, _resizes(structure, units))


def _cut(variable: Variable, shape: tuple[int, ...]) -> Variable:
    """Return the first entries of a variable along each axis; zeros where there are too few."""
    from converter.resize.chosen import choose
    from converter.resize.maps import AxisMap
    from converter.resize.units import Units
    from converter.structure.axes.axis import Axis

    if shape == variable.shape:
        return variable
    axis = Axis((("entries",),))
    return choose(
        variable,
        [
            AxisMap(axis, {"entries": old}, {"entries": Units.first(old, new)})
            for old, new in zip(variable.shape, shape, strict=True)
        ],
    )


def drawn(plan: Plan, structure: Structure, seed: int) -> Other:
    """Return the source with units that chance chooses, as `select --select-by random` does."""
    from converter.resize.exactness import is_looked_up
    from converter.resize.variables import Resizing

    roles = plan.source.roles()
    kept = plan.source.derive(v for n, v in plan.source.items() if roles[n].kind != "slot")
    units = {n: _units(plan, structure, n, size, seed) for n, size in plan.sizes.items()}
    resizes = _resizes(structure, units)
    looked_up = frozenset(name for name, w in structure.widths.items() if is_looked_up(w))
    made = Resizing(kept, structure, resizes.maps, looked_up).variables()
    return Other({variable.name: variable for variable in made}, resizes)


def _units(plan: Plan, structure: Structure, name: str, size: int, seed: int) -> Units:
    from converter.resize.coupled import Coupled
    from converter.resize.units import Units

    width = structure.widths[name]
    # What is looked up has its number from the outside: another word is no other choice.
    if size >= width.size or "lookup" in dict(width.touches):
        return Units.first(width.size, size)
    random = Coupled(plan.source, structure, name).random(seed)
    return Units(size, np.sort(random.permutation(width.size)[:size]))


def _resizes(structure: Structure, units: Mapping[str, Units]) -> Resizes:
    from converter.resize.exactness import Resizes, made_up
    from converter.resize.units import WidthMap

    def rescale(name: str) -> float:
        factors = structure.factors.get(name, ())
        return made_up(structure.widths[name], units[name].size, factors)

    maps = {name: WidthMap(u, u, rescale=rescale(name)) for name, u in units.items()}
    return Resizes((), {}, maps, structure)
