"""A layer that names and shapes tell."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from converter.structure.axes.axis import Axis, Blocks, Growth, Symmetry, Term, Use, is_name
from converter.structure.axes.followers import Axes, Uses

Shapes = Mapping[str, tuple[int, ...]]
Kind = Literal["cell", "dense", "embedding", "norm", "other"]
Told = tuple[Axis, tuple[Use, ...]]
"""An axis, and what it does with its widths."""

_ODD = re.compile(r"[^A-Za-z0-9_.\-/]")


class Known(NamedTuple):
    """What a name tells of a width of its layer."""

    symmetry: Symmetry
    growth: Growth
    why: str
    resizable: bool = True


@dataclass
class Layer:
    """A layer that names and shapes tell.

    Attributes:
        scope: where its variables are.
        kind: what it is.
        axes: of its variables.
        uses: of its variables.
        sizes: of its widths.
        known: what its name tells of its widths.
        output: the width that others may take; None where there is none.
        inputs: the width that comes from elsewhere; None where there is none.
        slot: the variable and the axis of it that takes the inputs.
        inner: widths that nothing outside the layer can take.
    """

    scope: str
    kind: Kind
    axes: dict[str, Axes] = field(default_factory=dict)
    uses: dict[str, Uses] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    known: dict[str, Known] = field(default_factory=dict)
    output: str | None = None
    inputs: str | None = None
    slot: tuple[str, int] = ("", 0)
    inner: set[str] = field(default_factory=set)

    def tell(self, variable: str, *told: Told) -> None:
        self.axes[variable] = tuple(axis for axis, _ in told)
        self.uses[variable] = tuple(dict.fromkeys(axis.widths(), uses) for axis, uses in told)

    @property
    def input_size(self) -> int:
        return self.sizes[self.inputs] if self.inputs is not None else 0

    @property
    def output_size(self) -> int:
        return self.sizes[self.output] if self.output is not None else 0


class Names:
    """Names of widths, every one given once."""

    def __init__(self) -> None:
        self._taken: set[str] = set()
        self._counts: dict[str, int] = {}

    def new(self, wanted: str) -> str:
        base = _ODD.sub("_", wanted)
        base = name = base if is_name(base) else f"_{base}"
        while name in self._taken:
            self._counts[base] = self._counts.get(base, 0) + 1
            name = f"{base}_{self._counts[base]}"
        self._taken.add(name)
        return name


def one(width: str) -> Axis:
    return Axis(((width,),))


def fixed(size: int) -> Axis:
    return Axis(((size,),))


def blocks(labels: Sequence[str] | int, width: str) -> Axis:
    """Return an axis of blocks, with labels or only counted."""
    if isinstance(labels, int):
        return Axis(((labels, width),)) if labels != 1 else one(width)
    return Axis(((Blocks(tuple(labels)), width),))


def joined(widths: Iterable[str | None]) -> Axis:
    terms: list[Term] = [(width,) for width in widths if width is not None]
    return Axis(tuple(terms))


def consumed(axis: Axis) -> Told:
    return axis, ("consume",)


def produced(axis: Axis) -> Told:
    return axis, ("produce",)


def shifted(axis: Axis) -> Told:
    return axis, ("shift",)


def scaled(axis: Axis) -> Told:
    return axis, ("gain",)


def still(size: int) -> Told:
    return fixed(size), ()
