"""Whether a model computes the same with its widths resized, and whether new units can learn."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from converter.initializer import Zeros
from converter.resize.units import Units, WidthMap
from converter.structure.axes.axis import AVERAGING, SINGLING, Touch, Width
from converter.structure.structure import SizeFactor, Structure

# What is not the same with some units twice, though their shares add up to one.
_COUNTING: frozenset[Touch] = SINGLING | {
    "computed",
    "input",
    "norm",
    "self paired",
    "square sum",
    "sum",
    "weight norm",
}
_SEEN = _COUNTING | AVERAGING
_TOLERANCE = 1e-9
_SCALED = ("free", "scaling")
# What is done to a width that is contracted with itself, and to no other.
_PAIRED: frozenset[Touch] = frozenset({"paired", "scaled by size", "self paired"})


class Verdict(NamedTuple):
    """What is known of a width that changes, before anything runs.

    Attributes:
        exact: whether the outputs stay what they are, up to rounding; of one that has more entries
            then, the old ones.
        why: if not, why not; else what it rests on. Half a sentence.
    """

    exact: bool
    why: str


@dataclass(frozen=True, slots=True)
class Resized:
    """A width that a strategy changes.

    Attributes:
        name: the width.
        old: how many units it had.
        new: how many it will have.
        verdict: whether the outputs stay what they are.
        dead: why training would never use the new units, and what would cure it; None where it
            does, or where there are no new units.
    """

    name: str
    old: int
    new: int
    verdict: Verdict
    dead: str | None


class Reshaped(NamedTuple):
    """A variable that a strategy gives another shape.

    Attributes:
        sources: the variables of the opened checkpoint that it is made from.
        old: its shape over the sizes of its widths, `[256 + 100, 4*100]`.
        new: the same at the new sizes, `[256 + 160, 4*160]`.
    """

    sources: tuple[str, ...]
    old: str
    new: str


class Resizes(NamedTuple):
    """What a strategy does to the widths of a checkpoint.

    Attributes:
        widths: those that change.
        shapes: of each variable that changes.
        maps: what becomes of each width that changes.
        structure: that they are widths of; None where the shape of a variable was given.
        held: the widths that a request fits and that stay, as they cannot be resized, with the
            reason.
    """

    widths: tuple[Resized, ...]
    shapes: Mapping[str, Reshaped]
    maps: Mapping[str, WidthMap]
    structure: Structure | None
    held: Mapping[str, str] = {}

    @property
    def sizes(self) -> dict[str, int]:
        """The new size of each width that changes."""
        return {width.name: width.new for width in self.widths}


def is_looked_up(width: Width) -> bool:
    """Whether a width is only looked up in, so that nothing sums over it: an input vocabulary."""
    return "lookup" in dict(width.touches) and not width.produced_by


def renumbered(resizes: Resizes) -> Iterator[str]:
    """Tell of entries that get other numbers, or none: of words that are looked up, of classes."""
    known = {} if resizes.structure is None else resizes.structure.widths
    for changed in resizes.widths:
        width = known.get(changed.name)
        produce = resizes.maps[changed.name].produce
        if width is None or changed.new >= changed.old or not isinstance(produce, Units):
            continue
        if dict(width.touches).keys().isdisjoint(("lookup", "softmax", "output")):
            continue
        if produce.kept is not None:
            yield f"{changed.name}: the entries from {changed.new} on are gone; the others stay"
        else:
            yield (
                f"{changed.name}: the entries that stay are numbered anew, 0 to "
                f"{changed.new - 1}; what is written with --json tells in result.units which they "
                "were"
            )


def judge(
    width: Width, width_map: WidthMap, factors: Sequence[SizeFactor], *, tied: bool
) -> Verdict:
    """Tell whether a map of a width is exact.

    Args:
        width: the old width.
        width_map: what becomes of it.
        factors: the constants of the graph that move with its size.
        tied: whether one axis produces and consumes it.
    """
    if width_map.size < width.size:
        gone = width.size - width_map.size
        if width_map.fold is not None:
            are = "direction is" if gone == 1 else "directions are"
            return Verdict(
                False, f"{gone} {are} left out; what consumes it takes on its gains and shifts"
            )
        mended = "" if width_map.repair is None else "; what takes them is mended"
        return Verdict(False, _removed(gone) + mended)
    produce, consume = width_map.produce, width_map.consume
    if not isinstance(produce, Units) or not isinstance(consume, Units):
        verdict = _judge_matrices(width, width_map, tied=tied)
    else:
        verdict = _judge_units(width, width_map, produce, consume, tied=tied)
    if verdict.exact and (moved := _unmatched(width, width_map, factors)):
        return Verdict(False, moved)
    return verdict


def _judge_units(
    width: Width, width_map: WidthMap, produce: Units, consume: Units, *, tied: bool
) -> Verdict:
    taken = produce.taken(width.size)
    if taken.removed:
        return Verdict(False, _removed(taken.removed))
    if width_map.noise:
        return Verdict(False, "noise is added to the copies")
    touches = dict(width.touches)
    if taken.most > 1 and is_looked_up(width) and touches.keys().isdisjoint(_SEEN):
        return Verdict(True, "what was looked up stays in its place")
    if produce.is_weighted or consume.is_weighted or taken.most > 1:
        index = produce.index
        scales, shares = (
            np.ones(u.size) if u.weight is None else u.weight for u in (produce, consume)
        )
        totals = np.bincount(index[index >= 0], (scales * shares)[index >= 0], width.size)
        if not np.allclose(totals, 1, atol=_TOLERANCE):
            return Verdict(False, "the shares of the copies do not add up to 1")
        if not np.allclose(scales, 1) and width.symmetry not in _SCALED:
            return Verdict(False, f"its units are scaled: {width.why}")
    if taken.most > 1:
        if tied:
            return Verdict(False, "one variable produces and consumes it, so copies count twice")
        # Whoever feeds a state feeds copies of it, too.
        counting = _COUNTING - {"input"} if width.produced_by else _COUNTING
        if what := next((t for t in touches if t in counting), None):
            return Verdict(False, f"{touches[what]} sees each of the copies")
        averaged = next((t for t in touches if t in AVERAGING), None)
        if averaged and not taken.even:
            return Verdict(False, f"{touches[averaged]} averages over it; copy every unit as often")
        if averaged and taken.new:
            return Verdict(False, f"{touches[averaged]} averages over it, new units included")
        return Verdict(True, _shown(touches) or "the shares of the copies add up to 1")
    if not taken.new:
        return Verdict(True, "its units stay")
    if width.normalised is not None and _is_made_up(width, width_map):
        return Verdict(
            True, "what makes it is scaled by the new units that its normalisation counts"
        )
    if is_looked_up(width) and width.growth == "any":
        return Verdict(True, "nothing that was looked up before is a new one")
    zero = width_map.gain == 1 and isinstance(width_map.fill, Zeros) and not width_map.bias
    if width.growth == "any" or (width.growth == "zero" and zero):
        return Verdict(True, _shown(touches) or "what consumes the new units is zero")
    if averaged := next((t for t in touches if t in AVERAGING), None):
        return Verdict(False, f"{touches[averaged]} averages over it, new units included")
    if "counted" in touches:
        return Verdict(False, f"{touches['counted']} computes with the number of its units")
    if "pole" in touches:
        return Verdict(False, f"{touches['pole']} may give infinities or NaN for new units")
    if width.growth == "zero":
        return Verdict(False, f"new units would have to be zero: {width.why}")
    return Verdict(False, width.why)


def _removed(number: int) -> str:
    return f"{number} of its units {'is' if number == 1 else 'are'} removed"


def _shown(touches: Mapping[Touch, str]) -> str | None:
    """Return what an output that has more entries keeps; None where the width is an inner one."""
    if "cross entropy" in touches:
        return f"for the old entries of the outputs; {touches['cross entropy']} counts the new ones"
    if "output" in touches:
        return f"for the old entries of {touches['output']}, which is an output"
    return None


def _is_made_up(width: Width, width_map: WidthMap) -> bool:
    """Whether a normalised width gives what it gave, with new units that are zero."""
    assert width.normalised is not None
    scale = (width_map.size / width.size) ** 0.5
    return (
        isinstance(width_map.fill, Zeros)
        and bool(np.isclose(width_map.rescale, scale, rtol=1e-6))
        and bool(np.isclose(width_map.gain * scale, 1, rtol=1e-6))
        and width_map.is_centred >= width.normalised.is_centred
    )


def _judge_matrices(width: Width, width_map: WidthMap, *, tied: bool) -> Verdict:
    produce, consume = width_map.produce, width_map.consume
    if isinstance(produce, Units) or isinstance(consume, Units):
        return Verdict(False, "it is mixed on one side only")
    if not np.allclose(produce.values @ consume.values, np.eye(width.size), atol=1e-6):
        return Verdict(False, "what consumes it does not undo what produces it")
    if tied and not np.allclose(produce.values, consume.values.T, atol=1e-6):
        return Verdict(False, "one variable produces and consumes it, and the two maps differ")
    counted = dict(width.touches).get("counted")
    if counted and width_map.size != width.size:
        return Verdict(False, f"{counted} computes with the number of its units")
    if shown := dict(width.touches).get("shown"):
        return Verdict(False, f"{shown} is an output in which its units would be mixed")
    if width.symmetry == "free":
        return Verdict(True, "only linear ops touch it, and the maps undo each other")
    return Verdict(False, f"its units are mixed: {width.why}")


def made_up(width: Width, size: int, factors: Sequence[SizeFactor]) -> float:
    """Return what makes up for the constants that move with a width, if all that makes it has it.

    Queries and keys are contracted, and the product is divided by the square root of the head size.
    The queries take on what the constant loses; where one variable makes both, each of them takes
    the root of it. Where a constant stands elsewhere, 1.

    Args:
        width: the old width.
        size: the new size.
        factors: the constants.
    """
    powers = {factor.power for factor in factors if factor.is_of_products}
    if len(powers) != 1 or not all(factor.is_of_products for factor in factors):
        return 1.0
    sides = _sides_made(width)
    return float((size / width.size) ** (-powers.pop() / sides)) if sides else 1.0


def _sides_made(width: Width) -> int:
    """Return how many sides of each product over a width grow with what makes it; 0 if unknown."""
    touches = {what for what, _ in width.touches}
    if "self paired" in touches:
        return 2 if width.symmetry == "orthogonal" and touches <= _PAIRED else 0
    return 1 if width.symmetry == "free" else 0


def _unmatched(width: Width, width_map: WidthMap, factors: Sequence[SizeFactor]) -> str | None:
    """Return which constant moves with the size and is not made up for, in words."""
    for factor in factors:
        wanted = (width_map.size / width.size) ** -factor.power
        gained = width_map.rescale ** max(1, _sides_made(width))
        if not factor.is_of_products or not np.isclose(gained, wanted, rtol=1e-6):
            return (
                f"{factor.node} multiplies with {factor.number:g}, which is "
                f"{width.size}**{factor.power:g} and moves with it, and nothing makes up for that"
            )
    return None


def dead(width: Width, width_map: WidthMap, *, is_filled: bool) -> str | None:
    """Tell why training would never move the new units; None where it does.

    Args:
        width: the old width.
        width_map: what becomes of it.
        is_filled: whether a variable makes the units that does not consume them on the same axis:
            the others get zeros, whatever the fill.
    """
    if not isinstance(width_map.produce, Units) or width_map.size <= width.size:
        return None
    if not width_map.produce.taken(width.size).new:
        return None
    needed = "both sides of the new units are zero, as they have to be here"
    if width.normalised is not None and _is_made_up(width, width_map):
        # The mean that is taken off gives every unit a gradient.
        return None if width.normalised.is_centred else needed
    if not width.stays_zero or (is_filled and not isinstance(width_map.fill, Zeros)):
        return None
    if width.growth == "zero" or not is_filled:
        return needed
    return (
        "both sides of the new units are zero; give them a fill such as --pad-fill glorot_uniform"
    )
