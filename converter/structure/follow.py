"""The structure of what strategies made of a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from converter.structure.axes.axis import Axis, Behind, Turnable, Width
from converter.structure.axes.scopes import scope_of
from converter.structure.structure import Structure

if TYPE_CHECKING:
    from converter.checkpoint import Checkpoint, Origin


def follow(structure: Structure, origin: Origin, derived: Checkpoint) -> Structure:
    """Return the structure of variables that were made of others.

    What has the shape that its origin has, at the new sizes, has its axes too, under whatever name.
    All else has no axes that are known.

    Args:
        structure: of what they were made from.
        origin: the variables that they were made from, and the new sizes of widths.
        derived: the variables.
    """
    widths = {
        name: replace(width, size=origin.sizes.get(name, width.size))
        for name, width in structure.widths.items()
    }
    new = {name: width.size for name, width in widths.items()}
    by_source = {source: name for name, v in origin.checkpoint.items() for source in v.sources}
    names: dict[str, str] = {}
    axes: dict[str, tuple[Axis, ...]] = {}
    for name, variable in derived.items():
        olds = {by_source[s] for s in variable.sources if s in by_source}
        old = olds.pop() if len(olds) == 1 else None
        found = structure.axes.get(old) if old is not None else None
        if found is None or tuple(axis.size(new) for axis in found) != variable.shape:
            continue
        assert old is not None
        axes[name] = found
        names.setdefault(old, name)
    uses = {name: structure.uses[old] for old, name in names.items() if old in structure.uses}
    for name, role in origin.checkpoint.roles().items():
        if role.kind == "average" and role.of is not None and name in names:
            # It stands for its variable where that has gone.
            names.setdefault(role.of, names[name])

    def renamed(variables: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(names[name] for name in variables if name in names)

    return replace(
        structure,
        widths={
            name: replace(
                width,
                produced_by=renamed(width.produced_by),
                consumed_by=renamed(width.consumed_by),
                followed_by=renamed(width.followed_by),
                normalised=width.normalised
                and width.normalised._replace(before=renamed(width.normalised.before)),
                turnable=width.turnable and _renamed(width.turnable, names),
            )
            for name, width in widths.items()
        },
        axes=axes,
        uses=uses,
        root=structure.root or structure,
        called={name: _called(name, width, structure, names) for name, width in widths.items()},
        follows={
            names[name]: replace(role, of=names[role.of])
            for name, role in structure.follows.items()
            if name in names and role.of in names and names[name] != names[role.of]
        },
    )


def _renamed(turnable: Turnable, names: Mapping[str, str]) -> Turnable | None:
    """Return what is known of a width by the new names of its variables; None without these."""
    if not all(name is None or name in names for one in turnable.behind for name in one):
        return None
    return Turnable(
        turnable.is_centred,
        tuple(
            Behind(
                names[one.variable],
                one.gain and names[one.gain],
                one.shift and names[one.shift],
            )
            for one in turnable.behind
        ),
    )


def _called(name: str, width: Width, structure: Structure, names: Mapping[str, str]) -> str:
    """Return what a width would be called by the new names of its variables.

    Args:
        name: of the width.
        width: with the old names of its variables.
        structure: with the name that it has by these.
        names: the new name of each variable, by the old one.
    """
    known = structure.called.get(name, name)
    for old in (*width.produced_by, *width.consumed_by, *width.followed_by):
        new = names.get(old, old)
        if new == old:
            continue
        for before, after in ((scope_of(old), scope_of(new)), _apart(old, new)):
            if before and f"{known}/".startswith(f"{before}/"):
                return after + known[len(before) :]
    return known


def _apart(old: str, new: str) -> tuple[str, str]:
    """Return two names without the words at their ends that are the same."""
    first, second = old.split("/"), new.split("/")
    while len(first) > 1 and len(second) > 1 and first[-1] == second[-1]:
        first.pop()
        second.pop()
    return "/".join(first), "/".join(second)
