"""What a resizing strategy is asked to do with a checkpoint, and what becomes of it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple, Protocol

from converter.checkpoint import Checkpoint, open_checkpoint
from converter.errors import ConverterError, PlanError, printable
from converter.patterns import by_name
from converter.resize.coupled import Coupled
from converter.resize.exactness import (
    Reshaped,
    Resized,
    Resizes,
    Verdict,
    dead,
    is_looked_up,
    judge,
    made_up,
)
from converter.resize.mending import Repairs
from converter.resize.units import Units, WidthMap
from converter.resize.variables import Resizing
from converter.structure.axes.axis import Axis, Use, Width
from converter.structure.axes.followers import kept_axes
from converter.structure.choose import choose, held
from converter.structure.infer import structure_of
from converter.structure.layout import read_layout
from converter.structure.structure import Structure
from converter.structure.template import sizes_like
from converter.variable import Variable

Shape = tuple[int, ...]
_MOST_BYTES = (1 << 62) - 1


class Method(Protocol):
    """How widths get other sizes: a `Resizer` without what it does with checkpoints."""

    @property
    def name(self) -> str:
        """The subject of errors."""

    def width_map(self, width: Width, size: int, coupled: Coupled) -> WidthMap:
        """Return what becomes of a width."""

    def refusal(self, width: Width, size: int) -> str | None:
        """Return why a width cannot get a size; None where it can."""


class Wanted(NamedTuple):
    """Which sizes are wanted, and of what: the options of a `Resizer`.

    Attributes:
        resize: the new size of the widths that a name, a glob or the old size chooses.
        like: a checkpoint whose shapes are wanted; None for none.
        shape: the shape of the variables that a glob fits.
        layout: the file that says which axes share a width; None to tell it from the checkpoint.
        seed: of what is drawn.
    """

    resize: Mapping[str, int]
    like: Path | None
    shape: Mapping[str, Shape]
    layout: Path | None
    seed: int


class Request:
    """What a resizing strategy is asked to do with a checkpoint. Making one reads no values.

    Args:
        method: how widths get other sizes.
        wanted: which sizes.
        checkpoint: the variables.

    Attributes:
        structure: of the checkpoint, with widths of their own for the shapes that are given.
        maps: what becomes of each width that changes.
        notes: what the user should know of.

    Raises:
        UsageError, PlanError: what is asked for cannot be.
    """

    def __init__(self, method: Method, wanted: Wanted, checkpoint: Checkpoint) -> None:
        self._method = method
        self._wanted = wanted
        self._checkpoint = checkpoint
        self._template = None if wanted.like is None else open_checkpoint(wanted.like)
        self._shapes = by_name(wanted.shape, checkpoint)
        self.structure = _with_shapes(self._known_structure(), checkpoint, self._shapes)
        self._held: Mapping[str, str] = {}
        sizes, self.notes = self._sizes()
        _check_evens(self.structure, sizes)
        self.maps = {name: self._map(name, size) for name, size in sizes.items()}
        self._repairs = Repairs(checkpoint, self.structure, self.maps)
        self.notes = (*self.notes, *self._repairs.notes())

    def variables(self, *, require_exact: bool) -> Iterator[Variable]:
        """Give the variables of the result.

        Raises:
            PlanError: a variable cannot be resized; or the outputs would change, and must not.
        """
        if require_exact:
            for change in self.resizes().widths:
                if not change.verdict.exact:
                    raise PlanError(
                        f"{change.name}: {change.old} to {change.new} units is not exact: "
                        f"{change.verdict.why}; choose another width, or leave out --require-exact"
                    )
        looked_up = {name for name, w in self.structure.widths.items() if is_looked_up(w)}
        resizing = Resizing(
            self._checkpoint,
            self.structure,
            self.maps,
            frozenset(looked_up),
            self._template,
            self._wanted.seed,
            self._repairs,
        )
        _check_sizes(self._checkpoint, resizing)
        _check_companions(self._checkpoint, resizing)
        return resizing.variables()

    def resizes(self) -> Resizes:
        """Return what happens to each width that changes, and to the shapes of variables."""
        found = []
        tied, made_apart = _tied(self.structure), _made_apart(self.structure)
        for name, width_map in self.maps.items():
            width = self.structure.widths[name]
            factors = tuple(self.structure.factors.get(name, ()))
            verdict = judge(width, width_map, factors, tied=name in tied)
            of = (*width.produced_by, *width.consumed_by, *width.followed_by)
            if apart := next((n for n in of if n in self._shapes), None):
                verdict = Verdict(False, f"{apart} has a shape of its own")
            dies = dead(width, width_map, is_filled=name in made_apart)
            found.append(Resized(name, width.size, width_map.size, verdict, dies))
        old = self.structure.sizes
        new = {**old, **{width.name: width.new for width in found}}
        shapes = {
            name: Reshaped(
                self._checkpoint[name].sources,
                _shown(axes, old),
                _shown(axes, new),
            )
            for name, axes in self.structure.axes.items()
            if any(not self.maps.keys().isdisjoint(axis.widths()) for axis in axes)
        }
        structure = None if self._shapes else self.structure
        return Resizes(tuple(found), shapes, self.maps, structure, self._held)

    def _known_structure(self) -> Structure:
        if self._template is None and not self._wanted.resize:
            # Nothing has to be known of the model where every shape is given.
            return Structure({}, {}, {}, (), {}, {}, (), None, None)
        path = self._wanted.layout
        return structure_of(self._checkpoint, None if path is None else read_layout(path))

    def _sizes(self) -> tuple[dict[str, int], tuple[str, ...]]:
        sizes: dict[str, int] = {}
        notes: tuple[str, ...] = ()
        if self._template is not None:
            sizes = sizes_like(self.structure, self._checkpoint, self._template)
        if self._wanted.resize:
            chosen = choose(self.structure, self._wanted.resize)
            sizes |= chosen.sizes
            notes = chosen.notes
            self._held = held(self.structure, self._wanted.resize)
        for name, shape in self._shapes.items():
            old = self._checkpoint[name].shape
            if len(shape) != len(old):
                raise PlanError(
                    f"{name}: {self._method.name} cannot turn {list(old)} into {list(shape)}; "
                    f"the number of axes differs"
                )
            sizes |= {f"{name}[{k}]": size for k, size in enumerate(shape)}
        widths = self.structure.widths
        changed = {n: size for n, size in sizes.items() if size != widths[n].size}
        if not changed:
            notes = (*notes, "every width has the size that is asked for; nothing changes")
        return changed, notes

    def _map(self, name: str, size: int) -> WidthMap:
        width = self.structure.widths[name]
        if reason := self._method.refusal(width, size):
            raise PlanError(
                f"{name}: {self._method.name} cannot turn {width.size} units into {size}; {reason}"
            )
        coupled = Coupled(self._checkpoint, self.structure, name)
        width_map = self._method.width_map(width, size, coupled)
        if not isinstance(width_map, WidthMap) or width_map.size != size:
            gave = f"{width_map.size} units" if isinstance(width_map, WidthMap) else width_map
            raise ConverterError(
                f"{self._method.name}: width_map gave {gave} for {name}, where a WidthMap of "
                f"{size} units is expected; this is a bug of the strategy"
            )
        for units in (width_map.produce, width_map.consume):
            if isinstance(units, Units):
                units.old = width.size
        factor = made_up(width, size, self.structure.factors.get(name, ()))
        # A resizer that knows of the factor has its own way.
        return replace(width_map, rescale=factor) if width_map.rescale == 1 else width_map


def _shown(axes: Sequence[Axis], sizes: Mapping[str, int]) -> str:
    return f"[{', '.join(axis.shown(sizes) for axis in axes)}]"


def _tied(structure: Structure) -> frozenset[str]:
    """Return the widths that one axis both produces and consumes."""
    return frozenset(name for name, found in _used(structure) if {"produce", "consume"} <= found)


def _made_apart(structure: Structure) -> frozenset[str]:
    """Return the widths that an axis produces which does not consume them, too."""
    return frozenset(
        name for name, found in _used(structure) if "produce" in found and "consume" not in found
    )


def _used(structure: Structure) -> Iterator[tuple[str, set[Use]]]:
    """Yield what each axis of a variable does with each of its widths."""
    for uses in structure.uses.values():
        for used in uses:
            for name, found in used.items():
                yield name, set(found)


def _with_shapes(
    structure: Structure, checkpoint: Checkpoint, declared: Mapping[str, Shape]
) -> Structure:
    """Return a structure in which every axis of some variables is a width of its own."""
    if not declared:
        return structure
    widths = dict(structure.widths)
    axes = dict(structure.axes)
    uses = dict(structure.uses)
    followers: dict[str, list[tuple[str, str | None]]] = {}
    for other, role in checkpoint.roles().items():
        if role.of is not None and other not in declared:
            followers.setdefault(role.of, []).append((other, role.slot))
    for name in declared:
        shape = checkpoint[name].shape
        named = tuple(f"{name}[{k}]" for k in range(len(shape)))
        for width, size in zip(named, shape, strict=True):
            widths[width] = Width(
                width,
                size,
                "bound",
                resizable=True,
                growth="none",
                why="its shape is given, and nothing follows",
                produced_by=(name,),
            )
        own = tuple(Axis(((width,),)) for width in named)
        used: tuple[Use, ...] = ("produce",)
        axes[name] = own
        uses[name] = tuple({width: used} for width in named)
        for other, slot in followers.get(name, ()):
            kept = kept_axes(checkpoint[other].shape, shape, slot)
            if kept is not None:
                axes[other] = tuple(own[axis] for axis in kept)
                uses[other] = tuple(uses[name][axis] for axis in kept)
    return replace(structure, widths=widths, axes=axes, uses=uses)


def _check_evens(structure: Structure, sizes: Mapping[str, int]) -> None:
    """Refuse sizes at which an op would have to cut an axis into parts of different lengths."""
    new = {**structure.sizes, **sizes}
    for op, node, parts in structure.evens:
        lengths = [axis.size(new) for axis in parts]
        held = dict.fromkeys(name for axis in parts for name in axis.widths())
        changed = [name for name in held if name in sizes]
        if len(set(lengths)) == 1 or not changed:
            continue
        # What stands in all of them, such as the number of heads, does not set them apart.
        apart = [n for n in held if any(n not in axis.widths() for axis in parts)] or list(held)
        told = ", ".join(f"{axis} would have {n}" for axis, n in zip(parts, lengths, strict=True))
        raise PlanError(
            f"{changed[0]}: {op} {printable(node)} makes parts of one length, and {told} "
            f"entries; resize {' and '.join(apart)} so that they are equally long"
        )


def _check_sizes(checkpoint: Checkpoint, resizing: Resizing) -> None:
    """Refuse variables of which neither a file nor an index could hold the entries."""
    for name, variable in checkpoint.items():
        shape = resizing.shape_of(name)
        if max(shape, default=0) > _MOST_BYTES or (
            math.prod(shape) * max(1, variable.dtype.itemsize) > _MOST_BYTES
        ):
            raise PlanError(
                f"{name}: it would be {list(shape)}, which is more than any file can hold; choose "
                "a smaller size"
            )


def _check_companions(checkpoint: Checkpoint, resizing: Resizing) -> None:
    """Refuse to leave a slot or an average that does not fit its variable any more.

    A training run that restores it would fail, or worse, not fail.
    """
    for name, role in checkpoint.roles().items():
        if role.of is None or role.of not in checkpoint:
            continue
        own, new = checkpoint[name].shape, resizing.shape_of(name)
        of_old, of_new = checkpoint[role.of].shape, resizing.shape_of(role.of)
        if (own, of_old) == (new, of_new) or (own == of_old and new == of_new):
            continue
        # Factored and matrix-like slots (Adafactor, Shampoo) have sizes of single axes.
        if own != of_old and set(new) <= {1, *of_new}:
            continue
        kind, word = ("average", "averages") if role.kind == "average" else ("slot", "slots")
        sizes = ",".join(map(str, of_new))
        raise PlanError(
            f"{name}: as the {kind} of {role.of} it would be {list(new)} beside {list(of_new)}; "
            f"resize it too (--shape '{name}={sizes}'), or drop it before (--drop {word})"
        )
