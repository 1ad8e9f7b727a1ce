"""Where a cell stands among others: its stack, its number, its direction, by its scope."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

from converter.structure.axes.axis import Axis
from converter.structure.cells.layer import Layer, joined

_STACKS = ("multirnncell", "stackbidirectionalrnn", "stackrnn")
_NUMBERED = re.compile(r"(?:cell_?|Cell|Layer)([0-9]{1,6})")
_DIRECTION = re.compile(r"(.*?)_?(fw|bw|FW|BW|forward|backward)(_.+)?")
_BOTH = re.compile(r"bidirectional(_rnn)?(_\d+)?|BiRNN(_\d+)?")

_LAST_NUMBER = re.compile(r"(.*?)_?([0-9]{1,6})(|/[^0-9]*)", re.DOTALL)
_MAX_LENGTH = 500


class Position(NamedTuple):
    """Where a cell stands.

    Attributes:
        root: the scope of all cells that belong together.
        number: in its stack, 0 for the one that comes first.
        direction: `fw`, `bw`, or nothing.
        is_outer: whether each layer of the stack goes in both directions.
        is_stacked: whether a number was in the scope.
    """

    root: str
    number: int = 0
    direction: str = ""
    is_outer: bool = False
    is_stacked: bool = False


def position(scope: str) -> Position:
    components = scope.split("/")
    number, direction, at_number, at_direction = 0, "", len(components), len(components)
    for i, component in enumerate(components[:-1]):
        above = components[i - 1] if i else ""
        plain = re.sub(r"_\d+$", "", above).lower().replace("_", "")
        match = _NUMBERED.fullmatch(component)
        if match and plain in _STACKS and at_number == len(components):
            number, at_number = int(match[1]), i
        match = _DIRECTION.fullmatch(component)
        is_one = match and (_BOTH.fullmatch(above) or _BOTH.fullmatch(match[1]))
        if match and is_one and at_direction == len(components):
            direction = "fw" if match[2].lower().startswith("f") else "bw"
            at_direction = i
    match = _DIRECTION.fullmatch(components[-1])
    if not direction and match and len(components) > 1 and _BOTH.fullmatch(components[-2]):
        direction, at_direction = ("fw" if match[2].startswith("f") else "bw"), len(components) - 1
    first = min(at_number, at_direction)
    root = "/".join(components[:first]) if first < len(components) else scope
    return Position(
        root,
        number,
        direction,
        is_outer=at_number < at_direction < len(components),
        is_stacked=at_number < len(components),
    )


class Stacks:
    """The cells of a checkpoint by where they stand."""

    def __init__(self, layers: Iterable[Layer]) -> None:
        self.at: dict[str, Position] = {}
        self._layers: dict[tuple[str, str, int], list[Layer]] = {}
        self.roots: dict[str, list[Layer]] = {}
        for layer in layers:
            if layer.kind != "cell":
                continue
            where = position(layer.scope)
            self.at[layer.scope] = where
            self._layers.setdefault((where.root, where.direction, where.number), []).append(layer)
            self.roots.setdefault(where.root, []).append(layer)

    def _one(self, root: str, direction: str, number: int) -> Layer | None:
        found = self._layers.get((root, direction, number), [])
        return found[0] if len(found) == 1 else None

    def before(self, layer: Layer) -> Axis | None:
        """Return what the layer before gives; None for the first, or where that is not known."""
        where = self.at[layer.scope]
        if not where.number:
            return None
        directions = ("fw", "bw") if where.is_outer else (where.direction,)
        found = [self._one(where.root, d, where.number - 1) for d in directions]
        outputs = [one.output if one is not None else None for one in found]
        return None if None in outputs else joined(outputs)

    def top(self, root: str) -> Axis | None:
        """Return what the last layer gives, in both directions; None where that is not known."""
        tops: dict[str, Layer] = {}
        for layer in self.roots[root]:
            where = self.at[layer.scope]
            if self._one(root, where.direction, where.number) is None:
                return None
            known = tops.setdefault(where.direction, layer)
            if self.at[known.scope].number < where.number:
                tops[where.direction] = layer
        if "fw" in tops or "bw" in tops:
            if set(tops) != {"fw", "bw"}:
                return None
            outputs = [tops["fw"].output, tops["bw"].output]
        else:
            outputs = [layer.output for layer in tops.values()]
        return None if None in outputs else joined(outputs)

    def firsts(self, root: str) -> list[Layer]:
        """Return the layers that take what comes into a stack."""
        return [layer for layer in self.roots[root] if self.at[layer.scope].number == 0]

    def is_alone(self, layer: Layer) -> bool:
        """Whether a cell that is numbered is the only one: all of a stack may be that one."""
        where = self.at.get(layer.scope)
        return (
            where is not None
            and where.is_stacked
            and not where.number
            and (self._one(where.root, where.direction, 1) is None)
        )


def numbered(scope: str) -> tuple[str, int]:
    """Return a scope without its last number, and the number: `conv2d` is 0, `conv2d_1` is 1."""
    match = _LAST_NUMBER.fullmatch(scope) if len(scope) <= _MAX_LENGTH else None
    return (f"{match[1]}#{match[3]}", int(match[2])) if match else (f"{scope}#", 0)
