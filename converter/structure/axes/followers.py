"""Slots and averages, which have the axes of the variable that they belong to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from converter.structure.axes.axis import Axis, Use

if TYPE_CHECKING:
    from converter.checkpoint import Checkpoint
    from converter.names import Role

Axes = tuple[Axis, ...]
Uses = tuple[Mapping[str, tuple[Use, ...]], ...]


def follows(role: Role, checkpoint: Checkpoint) -> bool:
    """Whether a variable is a slot or an average of another one, whose axes it has."""
    return role.kind in ("slot", "average") and role.of is not None and role.of in checkpoint


def with_followers(
    axes: Mapping[str, Axes],
    uses: Mapping[str, Uses],
    checkpoint: Checkpoint,
    roles: Mapping[str, Role],
) -> tuple[dict[str, Axes], dict[str, Uses]]:
    """Return the axes and uses of every variable of a checkpoint.

    Args:
        axes: of the variables that have their own; a follower among them keeps what is said.
        uses: of the same.
        checkpoint: those that are left have no widths, or follow.
        roles: of all.
    """
    found: dict[str, Axes] = {}
    used: dict[str, Uses] = {}
    for name, variable in checkpoint.items():
        found[name] = axes.get(name) or tuple(Axis(((size,),)) for size in variable.shape)
        used[name] = uses.get(name) or tuple({} for _ in variable.shape)
    for name, variable in checkpoint.items():
        of = roles[name].of or ""
        if name not in axes and follows(roles[name], checkpoint):
            kept = kept_axes(variable.shape, checkpoint[of].shape, roles[name].slot)
            if kept is not None:
                found[name] = tuple(found[of][axis] for axis in kept)
                used[name] = tuple(used[of][axis] for axis in kept)
    return found, used


def kept_axes(shape: Sequence[int], of: Sequence[int], slot: str | None) -> list[int] | None:
    """Return which axes of its variable a slot has: all, or all but one where it is factored."""
    if tuple(shape) == tuple(of):
        return list(range(len(of)))
    if len(shape) != len(of) - 1:
        return None
    if slot not in ("vr", "r", "vc", "c"):
        return None
    last = len(of) - 1
    usual = last if slot in ("vr", "r") else last - 1
    # Mesh TensorFlow averages over the larger axis, wherever that is.
    for gone in (usual, *(axis for axis in range(last + 1) if axis != usual)):
        kept = [axis for axis in range(last + 1) if axis != gone]
        if [of[axis] for axis in kept] == list(shape):
            return kept
    return None
