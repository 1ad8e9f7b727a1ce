"""Where a cell stands among others, by its scope: its place in a stack, and its direction."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

from converter.conventions.layers import Cell

_STACKS = ("multirnncell", "stackbidirectionalrnn", "stackrnn")
_NUMBERED = re.compile(r"(?:cell_?|Cell|Layer)([0-9]{1,6})")
_BOTH = re.compile(r"bidirectional(_rnn)?(_\d+)?|BiRNN(_\d+)?")
_DIRECTION = re.compile(r"fw|bw|FW|BW|forward(_.+)?|backward(_.+)?")
_OF_BIRNN = re.compile(r"(BiRNN)_(FW|BW)")


class Place(NamedTuple):
    """Where a cell stands.

    Attributes:
        root: the scope of all cells that belong together.
        number: its place in a stack, 0 for the one that comes first.
        backward: whether it goes through its sequence from the end.
        directions: whether there is one for each direction.
    """

    root: str
    number: int = 0
    backward: bool = False
    directions: bool = False


def place_of(scope: str) -> Place:
    """Return where the cell of a scope stands.

    Where each direction has a stack of its own, the directions are apart: the second layer of one
    takes nothing of the other.
    """
    components = scope.split("/")
    stack = direction = len(components)
    backward = False
    number = 0
    for i, component in enumerate(components):
        above = components[i - 1] if i else ""
        match = _NUMBERED.fullmatch(component)
        plain = re.sub(r"_\d+$", "", above).lower().replace("_", "")
        if match and plain in _STACKS:
            stack, number = i, int(match[1])
        joint = _OF_BIRNN.fullmatch(component)
        if joint or (_DIRECTION.fullmatch(component) and _BOTH.fullmatch(above)):
            direction = i
            backward = (joint[2] if joint else component).lower().startswith("b")
    if direction < stack < len(components):
        return Place("/".join(components[:stack]), number, backward)
    first = min(stack, direction)
    root = components[:first] if first < len(components) else components
    if direction == first < len(components) and (joint := _OF_BIRNN.fullmatch(components[first])):
        root = [*root, joint[1]]
    return Place("/".join(root), number, backward, direction < len(components))


def stacks(cells: Iterable[Cell]) -> dict[str, list[tuple[Cell, Place]]]:
    """Return the cells by the scope of all that belong together, in the order of their layers."""
    found: dict[str, list[tuple[Cell, Place]]] = {}
    for cell in cells:
        place = place_of(cell.scope)
        found.setdefault(place.root, []).append((cell, place))
    for members in found.values():
        members.sort(key=lambda member: (member[1].number, member[1].backward))
    return found
