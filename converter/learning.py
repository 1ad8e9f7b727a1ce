"""Whether training moves what is new in a grown model: the gradients of its graph tell."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from converter.errors import InputError
from converter.forward.find import Forward, find_forward
from converter.forward.losses import Gradient, gradients_of
from converter.forward.variables import Held, variables_of
from converter.graph.node import Tensor
from converter.running import Reference, Side, start
from converter.variable import Array

if TYPE_CHECKING:
    from converter.plan import Plan
    from converter.session import Session
    from converter.structure.axes.axis import Axis

_RATE = 0.01
"""The norm of the step, as a part of that of the variables."""


class Learned(NamedTuple):
    """The new entries of some variables, and how many of them have a gradient.

    Attributes:
        name: the variable of the source; empty for all of them.
        entries: how many new entries there are.
        first: how many have a gradient at the first step of training.
        second: how many at the second, after one of gradient descent.
    """

    name: str
    entries: int
    first: int
    second: int


@dataclass(frozen=True, slots=True)
class Learning:
    """Which of the new entries of a grown model training moves.

    Attributes:
        variables: those that have new entries. Rows of a table that nothing looked up are left out.
        is_drawn: whether some of the data were drawn.
    """

    variables: tuple[Learned, ...]
    is_drawn: bool

    @property
    def total(self) -> Learned:
        """All new entries."""
        columns = list(zip(*self.variables, strict=True))
        return Learned("", *(sum(column) for column in columns[1:]))


class _Part(NamedTuple):
    """The gradient of one node of the graph: of a variable, or of a part of one."""

    gradient: Gradient
    held: Held
    new: Array | None


def learning(plan: Plan, side: Side, reference: Reference) -> Learning | None:
    """Take two steps of training with a grown model, in its graph at the new sizes.

    The gradients are those that the graph's optimizer gets, or of its loss, with dropout as it is
    in training, on what the source was fed; labels that nobody gave are drawn.

    Args:
        plan: adds units.
        side: the result, in the source's graph at the new sizes and by its names.
        reference: what came of the source.

    Returns:
        None where no variable has new entries.

    Raises:
        InputError: the graph has no loss, or none that depends on new entries.
        UsageError: the gradients cannot be run.
        RunError: they do not run.
    """
    from converter.resize.tensors import Tensors
    from converter.session import can_run

    fresh = dict(_fresh(plan))
    if not fresh:
        return None
    held = variables_of(side.graph, side.keys)
    trained = _parts(plan, held, gradients_of(side.graph, _follows(plan, held)), fresh)
    is_told = any(part.new is not None for part in trained)
    # A graph at other sizes notes no shapes, by which a loss could be told.
    wanted = _tensors(trained) if is_told else list(reference.known)
    if not wanted:
        raise InputError(f"{side.graph.path}: it has no loss whose gradients could be looked at")
    if not is_told and side.graph.ancestors(wanted) & side.graph.frames.keys():
        raise InputError(
            f"{side.graph.path}: {wanted[0]} is computed in a loop, whose gradients are not in it"
        )
    forward = find_forward(
        side.graph,
        side.keys,
        fetches=list(map(str, wanted)),
        fed=reference.fed,
        can_run=can_run(),
    )
    # Gradients are those of the graph with its dropout.
    forward = replace(forward, bypassed=())
    tensors = Tensors(plan.resized)
    given = {
        source: tensors.fed(*source, value)
        for source, value in reference.feeds.values.items()
        if source.node in side.graph.nodes
    }
    session, feeds, found = start(forward, side.values(forward), given, reference.question.seed)
    with session:
        if not is_told:
            trained = _parts(plan, held, session.gradients(reference.known), fresh)
            found = session.run(feeds.values, _tensors(trained))
        first = [_seen(part, found) for part in trained]
        _step(session, forward, side, trained, found)
        found = session.run(feeds.values, _tensors(trained))
        second = [_seen(part, found) for part in trained]
    if not any(part.new is not None for part in trained):
        raise InputError(f"{side.graph.path}: its loss depends on no variable with new entries")
    is_drawn = bool(reference.feeds.drawn or feeds.drawn)
    return Learning(tuple(_learned(trained, first, second)), is_drawn)


def _tensors(parts: Sequence[_Part]) -> list[Tensor]:
    """Return the tensors in which gradients are, each once."""
    found = (source for part in parts for source in part.gradient[1:] if source is not None)
    return list(dict.fromkeys(found))


def _parts(
    plan: Plan,
    held: Mapping[str, Held],
    gradients: Iterable[Gradient],
    fresh: Mapping[str, Sequence[Array]],
) -> list[_Part]:
    parts = []
    for gradient in gradients:
        where = held.get(gradient.variable)
        if where is None or where.key not in plan.source:
            continue
        new = None
        if where.key in fresh:
            new = _is_new(fresh[where.key])
            new = new if where.region is None else new[where.region]
        parts.append(_Part(gradient, where, new))
    return parts


def _follows(plan: Plan, held: Mapping[str, Held]) -> dict[str, str]:
    """Return the node of the variable that the node of each slot belongs to."""
    roles = plan.source.roles()
    nodes = {(where.key, str(where.region)): name for name, where in held.items()}
    found = {}
    for name, where in held.items():
        role = roles.get(where.key)
        if role is not None and role.kind == "slot" and role.of is not None:
            of = nodes.get((role.of, str(where.region)))
            if of is not None:
                found[name] = of
    return found


def _fresh(plan: Plan) -> Iterator[tuple[str, list[Array]]]:
    """Yield the variables that have new entries, with which are new along each axis."""
    structure = plan.structure
    if structure is None:
        return
    grown = {w.name for resizes in plan.resized for w in resizes.widths if w.new > w.old}
    for name, axes in structure.axes.items():
        if name in plan.source and any(not grown.isdisjoint(axis.widths()) for axis in axes):
            marks = [_new_along(plan, axis, structure.sizes) for axis in axes]
            if any(mark.any() for mark in marks):
                yield name, marks


def _new_along(plan: Plan, axis: Axis, sizes: Mapping[str, int]) -> Array:
    """Return which entries of an axis belong to units that are new, or copies of old ones."""
    from converter.resize.maps import AxisMap
    from converter.resize.noise import copies
    from converter.resize.units import Units

    found = np.zeros(axis.size(sizes), bool)
    for resizes in plan.resized:
        made = {w: resizes.maps[w].produce for w in axis.widths() if w in resizes.maps}
        chosen = {w: m for w, m in made.items() if isinstance(m, Units)}
        units = {w: Units(m.size, np.where(copies(m), -1, m.index)) for w, m in chosen.items()}
        after = {**sizes, **resizes.sizes}
        mixed = {w: resizes.sizes[w] for w in made if w not in units}
        if units:
            axis_map = AxisMap(axis, {**sizes, **mixed}, units)
            old = axis_map.entries(0, axis_map.length).old
            found = (old < 0) | found[np.maximum(old, 0)]
        elif mixed:
            found = np.zeros(axis.size(after), bool)
        sizes = after
    return found


def _is_new(marks: Sequence[Array]) -> Array:
    """Return which entries of a variable are new along any axis."""
    found = np.zeros([len(mark) for mark in marks], bool)
    for number, mark in enumerate(marks):
        found |= mark.reshape([-1 if k == number else 1 for k in range(found.ndim)])
    return found


def _dense(part: _Part, found: Mapping[Tensor, Array], shape: tuple[int, ...]) -> Array:
    """Return the gradient of all entries: float64, zeros in rows that it is not of.

    Raises:
        InputError: it is no gradient of such a variable.
    """
    gradient = part.gradient
    values = found[gradient.values].astype(np.float64)
    rows = None if gradient.rows is None else found[gradient.rows].reshape(-1)
    wanted = shape if rows is None else (len(rows), *shape[1:])
    is_within = rows is None or not rows.size or (rows.min() >= 0 and rows.max() < shape[0])
    if values.size != math.prod(wanted) or not is_within:
        raise InputError(
            f"{gradient.values}: it is {list(values.shape)}, and no gradient of "
            f"{gradient.variable}, which is {list(shape)}"
        )
    if rows is None:
        return values.reshape(shape)
    dense = np.zeros(shape)
    np.add.at(dense, rows, values.reshape(wanted))
    return dense


def _seen(part: _Part, found: Mapping[Tensor, Array]) -> tuple[int, int]:
    """Return how many new entries there are, and how many of them have a gradient."""
    if part.new is None:
        return 0, 0
    gradient = _dense(part, found, part.new.shape)
    counted = part.new
    if part.gradient.rows is not None:
        looked_up = np.zeros(len(counted), bool)
        looked_up[found[part.gradient.rows].reshape(-1)] = True
        counted = counted & looked_up.reshape(-1, *[1] * (counted.ndim - 1))
    moved = counted & np.isfinite(gradient) & (gradient != 0)
    return int(counted.sum()), int(moved.sum())


def _step(
    session: Session,
    forward: Forward,
    side: Side,
    parts: Sequence[_Part],
    found: Mapping[Tensor, Array],
) -> None:
    """Take a small step of gradient descent."""
    variables = side.values(forward)
    assignable = set(session.variables)
    changed: dict[str, tuple[Array, Array]] = {}
    for part in parts:
        if part.gradient.variable in assignable and part.held.key in variables:
            value = part.held.read(variables[part.held.key]).astype(np.float64)
            changed[part.gradient.variable] = value, _dense(part, found, value.shape)
    length = np.sqrt(sum(float(np.square(value).sum()) for value, _ in changed.values()))
    slope = np.sqrt(sum(float(np.square(gradient).sum()) for _, gradient in changed.values()))
    rate = _RATE * length / slope if slope else 0.0
    for name, (value, gradient) in changed.items():
        session.assign(name, value - rate * gradient)


def _learned(
    parts: Sequence[_Part], first: Sequence[tuple[int, int]], second: Sequence[tuple[int, int]]
) -> Iterator[Learned]:
    """Yield what is to be said of each variable, its parts together."""
    names = dict.fromkeys(part.held.key for part in parts if part.new is not None)
    for name in names:
        own = [number for number, part in enumerate(parts) if part.held.key == name]
        yield Learned(
            name,
            sum(first[number][0] for number in own),
            sum(first[number][1] for number in own),
            sum(second[number][1] for number in own),
        )
