"""Fused kernels and biases, and the pieces that they are made of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from converter import Array, Checkpoint, PlanError, Region, Role, Variable
from converter.blocks import block, concatenated
from converter.names.follow import following


@dataclass(frozen=True)
class Fused:
    """A variable of all gates of a cell, and its pieces; either are in the checkpoint.

    Attributes:
        name: of the fused variable, a kernel `[rows, gates * units]` or a bias `[gates * units]`.
        pieces: their names, by rows from top to bottom, then by gate in the order of the columns.
        forget: the place of the forget gate, of a bias that its code adds something to.
        is_bias: whether a piece is `[units]`, or `[1, units]`.
    """

    name: str
    pieces: tuple[tuple[str, ...], ...]
    forget: int | None
    is_bias: bool

    @property
    def all_pieces(self) -> list[str]:
        """The names of all pieces."""
        return [name for row in self.pieces for name in row]

    def joined(self, checkpoint: Checkpoint, forget_bias: float) -> Variable:
        """Return the fused variable, of whose forget gate the code adds `forget_bias` now.

        Raises:
            PlanError: the shapes or dtypes of the pieces don't fit.
        """
        self._check_units(checkpoint)
        axis = len(checkpoint[self.pieces[0][0]].shape) - 1
        rows = [
            concatenated(self.name, [checkpoint[piece] for piece in row], axis)
            for row in self.pieces
        ]
        fused = _flat(rows[0]) if self.is_bias else concatenated(self.name, rows, 0)
        return self._shifted(fused, -forget_bias, len(self.pieces[0]))

    def split(self, checkpoint: Checkpoint, forget_bias: float, *, rows: bool) -> list[Variable]:
        """Return the pieces, the forget gate's bias with what the fused code added to it.

        Args:
            checkpoint: that holds the fused variable.
            forget_bias: what the code of the fused cell added.
            rows: give biases the shape `[1, units]`.

        Raises:
            PlanError: the fused variable has another shape than its name tells.
        """
        count = len(self.pieces[0])
        fused = checkpoint[self.name]
        units, rest = divmod(fused.shape[-1] if fused.shape else 0, count)
        heights = self._heights(fused, units)
        if rest or not units or min(heights) < 1:
            raise PlanError(
                f"{self.name}: it is {list(fused.shape)}, and cannot be of {count} gates "
                f"with {len(self.pieces)} parts of rows; give another --gates-order or fewer parts"
            )
        fused = self._shifted(fused, forget_bias, count)
        found = []
        start = 0
        for row, height in zip(self.pieces, heights, strict=True):
            part = fused if self.is_bias else block(self.name, fused, 0, start, start + height)
            for place, name in enumerate(row):
                axis = len(part.shape) - 1
                piece = block(name, part, axis, place * units, (place + 1) * units)
                found.append(_row(piece) if self.is_bias and rows else piece)
            start += height
        return found

    def _heights(self, fused: Variable, units: int) -> list[int]:
        """Return how many rows each part has: the state as many as units, the inputs the rest."""
        if self.is_bias:
            return [1] if len(fused.shape) == 1 else [0]
        if len(fused.shape) != 2:
            return [0] * len(self.pieces)
        rows = fused.shape[0]
        return [rows] if len(self.pieces) == 1 else [rows - units, units]

    def _check_units(self, checkpoint: Checkpoint) -> None:
        shapes = {name: checkpoint[name].shape for name in self.all_pieces}
        units = {shape[-1] if shape else None for shape in shapes.values()}
        ranks = {len(shape) for shape in shapes.values()}
        if len(units) > 1 or len(ranks) > 1 or (self.is_bias and max(ranks) > 2):
            told = ", ".join(f"{name} {list(shape)}" for name, shape in list(shapes.items())[:4])
            raise PlanError(f"{self.name}: its gates have several numbers of units: {told}")

    def _shifted(self, variable: Variable, amount: float, count: int) -> Variable:
        """Return a bias with something added to its forget gate."""
        if self.forget is None or not amount:
            return variable
        units = variable.shape[-1] // count
        return shifted(variable, self.forget * units, (self.forget + 1) * units, amount)


def shifted(variable: Variable, start: int, stop: int, amount: float) -> Variable:
    """Return a variable with a number added to a part of its last axis."""

    def load(region: Region) -> Array:
        values = variable.read(region)
        places = np.arange(region[-1].start, region[-1].stop)
        chosen = (places >= start) & (places < stop)
        return np.where(chosen, values + values.dtype.type(amount), values)

    return variable.derive(load)


def with_slots(checkpoint: Checkpoint, fused: Sequence[Fused], *, join: bool) -> list[Fused]:
    """Return fused variables with their slots and averages, which are laid out alike.

    Raises:
        PlanError: a piece lacks a slot that another has, or one has another shape.
    """
    below: dict[str, list[str]] = {}
    roles = checkpoint.roles()
    for name, role in roles.items():
        if role.of is not None:
            below.setdefault(role.of, []).append(name)
    found = list(fused)
    for one in found:
        found += (
            _slots_of_pieces(one, checkpoint, below, roles)
            if join
            else _slots_of_fused(one, checkpoint, below, roles)
        )
    return found


def _slots_of_pieces(
    fused: Fused,
    checkpoint: Checkpoint,
    below: Mapping[str, Sequence[str]],
    roles: Mapping[str, Role],
) -> Iterator[Fused]:
    slots: dict[str, dict[str, str]] = {}
    for piece in fused.all_pieces:
        for slot in below.get(piece, ()):
            _check_shape(checkpoint, slot, piece)
            new = following(slot, piece, fused.name)
            if new is None:
                raise PlanError(
                    f"{slot}: its name does not hold that of {piece}, which is joined; drop it "
                    f"before"
                )
            slots.setdefault(new, {})[piece] = slot
    for new, by_piece in slots.items():
        lacking = [piece for piece in fused.all_pieces if piece not in by_piece]
        if lacking:
            some = next(iter(by_piece.values()))
            raise PlanError(
                f"{lacking[0]}: it has no slot such as {some}, with which that would be joined; "
                f"drop these slots before"
            )
        pieces = tuple(tuple(by_piece[piece] for piece in row) for row in fused.pieces)
        is_value = _is_value(roles[pieces[0][0]])
        yield replace(fused, name=new, pieces=pieces, forget=fused.forget if is_value else None)


def _slots_of_fused(
    fused: Fused,
    checkpoint: Checkpoint,
    below: Mapping[str, Sequence[str]],
    roles: Mapping[str, Role],
) -> Iterator[Fused]:
    for slot in below.get(fused.name, ()):
        _check_shape(checkpoint, slot, fused.name)
        names = [[following(slot, fused.name, piece) for piece in row] for row in fused.pieces]
        pieces = tuple(tuple(name for name in row if name is not None) for row in names)
        if any(None in row for row in names):
            raise PlanError(
                f"{slot}: its name does not hold that of {fused.name}, which is split; drop it "
                f"before"
            )
        forget = fused.forget if _is_value(roles[slot]) else None
        yield replace(fused, name=slot, pieces=pieces, forget=forget)


def _is_value(role: Role) -> bool:
    """Whether something is measured as its variable is: an average, and no slot."""
    return role.kind == "average" and role.slot is None and role.optimizer is None


def _check_shape(checkpoint: Checkpoint, slot: str, of: str) -> None:
    if checkpoint[slot].shape != checkpoint[of].shape:
        raise PlanError(
            f"{slot}: it is {list(checkpoint[slot].shape)} where {of} is "
            f"{list(checkpoint[of].shape)}, and does not go along; drop it before"
        )


def _flat(variable: Variable) -> Variable:
    """Return `[1, n]` as `[n]`."""
    if len(variable.shape) == 1:
        return variable
    return variable.derive(
        lambda region: variable.read((slice(0, 1), *region))[0], shape=variable.shape[1:]
    )


def _row(variable: Variable) -> Variable:
    """Return `[n]` as `[1, n]`."""
    # A region can be empty along the new axis.
    return variable.derive(
        lambda region: variable.read(region[1:])[None][region[0]], shape=(1, *variable.shape)
    )
