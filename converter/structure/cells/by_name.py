"""The axes of variables by their names and shapes, without a graph."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from converter.structure.axes.axis import Axis, Blocks, Width
from converter.structure.axes.followers import Axes, Uses, follows
from converter.structure.axes.scopes import scope_of
from converter.structure.cells.bert import berts
from converter.structure.cells.layer import Known, Layer, Names, Shapes, fixed, one
from converter.structure.cells.links import Links
from converter.structure.cells.plain import plain_layers
from converter.structure.cells.recurrent import cells
from converter.structure.cells.verdicts import Slot, taken_axis, verdicts
from converter.structure.declare import (
    Merged,
    holders_of,
    merge,
    overridden,
    substituted,
    with_members,
)

if TYPE_CHECKING:
    from converter.checkpoint import Checkpoint
    from converter.names import Role
    from converter.structure.layout import Layout

_OPAQUE = Known(
    "opaque", "none", "there is no graph, and no known name that tells what it is", resizable=False
)
_MODEL = ("model", "batch_statistic")


class ByName(NamedTuple):
    """What names tell.

    Attributes:
        axes: of the variables that have their own.
        uses: of the same.
        widths: by name.
    """

    axes: dict[str, Axes]
    uses: dict[str, Uses]
    widths: dict[str, Width]


def by_name(
    checkpoint: Checkpoint, roles: Mapping[str, Role], layout: Layout | None = None
) -> ByName:
    """Tell the axes of variables from names and shapes, and from a layout if there is one.

    Raises:
        PlanError: lengths contradict the layout.
        UsageError: the layout is of another checkpoint, or leaves something open.
    """
    names = Names()
    layers, rest = _layers(checkpoint, roles, names)
    axes = {name: found for layer in layers for name, found in layer.axes.items()}
    uses = {name: found for layer in layers for name, found in layer.uses.items()}
    sizes = {name: size for layer in layers for name, size in layer.sizes.items()}
    known = {name: found for layer in layers for name, found in layer.known.items()}
    unknown: dict[str, Slot] = {}
    for name in rest:
        found = []
        for number, size in enumerate(checkpoint[name].shape):
            found.append(one(names.new(scope_of(name))) if size > 1 else fixed(size))
            for width in found[-1].widths():
                sizes[width], known[width] = size, _OPAQUE
                unknown[width] = Slot(name, number, size)
        axes[name] = tuple(found)
        uses[name] = tuple(dict.fromkeys(axis.widths(), ()) for axis in found)
    merged = Merged(axes, uses, {}, {}, sizes)
    declared: dict[str, Axis] = {}
    if layout is not None:
        merged = merge(axes, uses, sizes, checkpoint, layout)
        declared = _declared(layers, merged)
    links = Links(layers, declared)
    merged = _linked(merged, links, declared)
    own = [n for n in checkpoint if n in merged.axes and not follows(roles[n], checkpoint)]
    present = dict.fromkeys(w for n in own for a in merged.axes[n] for w in a.widths())
    consumers = _consumers(merged)
    slots = [slot for width, slot in unknown.items() if width in present]
    known.update(verdicts(links, slots, consumers, merged.axes))
    widths = {}
    holders = holders_of(own, merged)
    for name in present:
        told = _width(name, merged.sizes[name], known.get(name), layout)
        told = with_members(told, holders[name])
        widths[name] = told if layout is None else overridden(told, layout)
    return ByName(merged.axes, merged.uses, widths)


def labels_by_name(
    checkpoint: Checkpoint, roles: Mapping[str, Role]
) -> Iterator[tuple[str, int, Blocks]]:
    """Yield the axes whose blocks names tell: the variable, the number of the axis, the blocks."""
    shapes = _shapes(checkpoint, roles)
    for layer in cells(shapes, Names()):
        for name, axes in layer.axes.items():
            for number, axis in enumerate(axes):
                outer = axis.terms[0][0]
                if isinstance(outer, Blocks):
                    yield name, number, outer


def _shapes(checkpoint: Checkpoint, roles: Mapping[str, Role]) -> Shapes:
    return {
        name: variable.shape
        for name, variable in checkpoint.items()
        if variable.shape
        and (roles[name].kind in _MODEL or roles[name].kind in ("slot", "average"))
        and not follows(roles[name], checkpoint)
    }


def _layers(
    checkpoint: Checkpoint, roles: Mapping[str, Role], names: Names
) -> tuple[list[Layer], list[str]]:
    """Return the layers, and the variables that are of none."""
    shapes = dict(_shapes(checkpoint, roles))
    found: list[Layer] = []

    def put(layers: Iterable[Layer]) -> None:
        for layer in layers:
            if all(name in shapes for name in layer.axes):
                found.append(layer)
                for name in layer.axes:
                    del shapes[name]

    put(list(berts(shapes, names)))
    put(list(cells(shapes, names)))
    statistics = [name for name in shapes if roles[name].kind == "batch_statistic"]
    put(list(plain_layers(shapes, statistics, names)))
    return found, list(shapes)


def _declared(layers: Sequence[Layer], merged: Merged) -> dict[str, Axis]:
    """Give layers the names that a layout has for their widths; return what it says they take."""
    declared: dict[str, Axis] = {}
    for layer in layers:
        for width in (*layer.sizes,):
            is_now = merged.renamed.get(width)
            if width not in merged.written or is_now == one(width):
                continue
            if width == layer.inputs:
                if is_now is not None:
                    declared[width] = is_now
                else:
                    layer.inputs = None
                continue
            name = is_now.widths()[0] if is_now and is_now == one(is_now.widths()[0]) else None
            _rename(layer, width, name)
    return declared


def _rename(layer: Layer, width: str, name: str | None) -> None:
    """Rename a width of a layer; None where it is none any more."""
    if layer.output == width:
        layer.output = name
    size, known = layer.sizes.pop(width), layer.known.pop(width, None)
    is_inner = width in layer.inner
    layer.inner.discard(width)
    if name is not None:
        layer.sizes[name] = size
        if known is not None:
            layer.known[name] = known
        layer.inner.update({name} if is_inner else ())


def _linked(merged: Merged, links: Links, declared: Mapping[str, Axis]) -> Merged:
    """Put what is linked in the place of the inputs."""
    renamed = {
        inputs: taken_axis(axis, links.taken)
        for inputs, axis in links.taken.items()
        if inputs not in declared
    }
    axes = {n: tuple(substituted(a, renamed) for a in found) for n, found in merged.axes.items()}
    uses: dict[str, Uses] = {
        name: tuple(
            {w: used for inputs, used in found.items() for w in _now(inputs, renamed)}
            for found in per_axis
        )
        for name, per_axis in merged.uses.items()
    }
    return merged._replace(axes=axes, uses=uses)


def _now(width: str, renamed: Mapping[str, Axis]) -> tuple[str, ...]:
    return renamed[width].widths() if width in renamed else (width,)


def _consumers(merged: Merged) -> dict[str, list[str]]:
    """Return the variables that take each width."""
    found: dict[str, list[str]] = {}
    for variable, per_axis in merged.uses.items():
        for used in per_axis:
            for name, uses in used.items():
                if "consume" in uses:
                    found.setdefault(name, []).append(variable)
    return found


def _width(name: str, size: int, known: Known | None, layout: Layout | None) -> Width:
    if known is None:
        by = layout.path if layout is not None else "names"
        return Width(name, size, "permutation", True, "none", why=f"declared in {by}")
    return Width(name, size, known.symmetry, known.resizable, known.growth, why=known.why)
