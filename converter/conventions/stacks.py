"""Where a cell stands among others, by its scope: its place in a stack, and its direction."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from converter.conventions.layers import Cell

_STACKS = ("multirnncell", "stackbidirectionalrnn", "stackrnn")
_NUMBERED = re.compile(r"(?:cell_?|Cell|Layer)([0-9]{1,6})")
_BOTH = re.compile(r"bidirectional(_rnn)?(_\d+)?|BiRNN(_\d+)?")
_DIRECTION = re.compile(r"fw|bw|FW|BW|forward(_.+)?|backward(_.+)?")
_WAYS = (("fw", "bw"), ("FW", "BW"), ("forward_", "backward_"))
_KERAS = re.compile(r"bidirectional(_\d+)?")
_COUNTED = re.compile(r"(.+?)(?:_([0-9]{1,6}))?")
_OF_BIRNN = re.compile(r"(BiRNN)_(FW|BW)")
_OPENED = ("rnn",)
_NOTHING: Mapping[str, Collection[str]] = MappingProxyType({})


class Place(NamedTuple):
    """Where a cell stands.

    Attributes:
        root: the scope of all cells that belong together.
        number: its place in a stack, 0 for the one that comes first.
        backward: whether it goes through its sequence from the end.
        directions: whether there is one for each direction.
        wrapper: the scope of a wrapper within the root that the cell stands in; empty for none.
    """

    root: str
    number: int = 0
    backward: bool = False
    directions: bool = False
    wrapper: str = ""


def place_of(scope: str, inner: Mapping[str, Collection[str]] = _NOTHING) -> Place:
    """Return where the cell of a scope stands.

    Where each direction has a stack of its own, the directions are apart: the second layer of one
    takes nothing of the other.

    Args:
        scope: of the cell.
        inner: the scopes in each scope that cells stand in. Directions in a scope that is called
            after none (`encoder/fw`) are told by each other.
    """
    components = scope.split("/")
    stack = direction = len(components)
    backward = False
    number = 0
    for i, component in enumerate(components):
        above = components[i - 1] if i else ""
        match = _NUMBERED.fullmatch(component)
        if match and _plain(above) in _STACKS:
            stack, number = i, int(match[1])
        joint = _OF_BIRNN.fullmatch(component)
        others = inner.get("/".join(components[:i]), ())
        is_told = _BOTH.fullmatch(above) or _turned(component) in others
        if joint or (_DIRECTION.fullmatch(component) and is_told):
            direction = i
            backward = (joint[2] if joint else component).lower().startswith("b")
        elif _KERAS.fullmatch(above) and (second := _is_second(component, others)) is not None:
            direction, backward = i, second
    if direction < stack < len(components):
        root = "/".join(components[:stack])
        return Place(root, number, backward, wrapper=_wrapper(components, stack))
    first = min(stack, direction)
    top = components[:first] if first < len(components) else components
    if direction == first < len(components) and (joint := _OF_BIRNN.fullmatch(components[first])):
        top = [*top, joint[1]]
    both = direction < len(components)
    return Place("/".join(top), number, backward, both, _wrapper(components, first))


def _turned(component: str) -> str | None:
    """Return what the other direction is called; None where a scope is called after none."""
    for ways in _WAYS:
        for way, other in (ways, ways[::-1]):
            if component == way or (way.endswith("_") and component.startswith(way)):
                return other + component[len(way) :]
    return None


def _is_second(component: str, others: Collection[str]) -> bool | None:
    """Return whether a layer is the second of two that are told by their numbers; None for none.

    References:
        tensorflow/python/keras/_impl/keras/layers/wrappers.py of 1.4, whose Bidirectional makes the
        layers `lstm` and `lstm_1`, the one that goes forward first.
    """
    counted = [_COUNTED.fullmatch(other) for other in (component, *others)]
    numbers = {match[0]: int(match[2] or 0) for match in counted if match is not None}
    stems = {match[1] for match in counted if match is not None}
    if len(numbers) != 2 or len(stems) != 1:
        return None
    return numbers[component] == max(numbers.values())


def _plain(component: str) -> str:
    return re.sub(r"_\d+$", "", component).lower().replace("_", "")


def _wrapper(components: Sequence[str], start: int) -> str:
    """Return the first scope between a place and the cell that no stack and no direction opens."""
    for component in components[start:-1]:
        is_opened = _plain(component) in (*_STACKS, *_OPENED) or _BOTH.fullmatch(component)
        is_place = _NUMBERED.fullmatch(component) or _DIRECTION.fullmatch(component)
        if not is_opened and not is_place and not _OF_BIRNN.fullmatch(component):
            return component
    return ""


def stacks(cells: Iterable[Cell]) -> dict[str, list[tuple[Cell, Place]]]:
    """Return the cells by the scope of all that belong together, in the order of their layers."""
    cells = list(cells)
    inner = _scopes(cells)
    found: dict[str, list[tuple[Cell, Place]]] = {}
    for cell in cells:
        place = place_of(cell.scope, inner)
        found.setdefault(place.root, []).append((cell, place))
    for members in found.values():
        members.sort(key=lambda member: (member[1].number, member[1].backward))
    return found


def _scopes(cells: Iterable[Cell]) -> dict[str, dict[str, None]]:
    """Return the scopes in each scope that cells stand in."""
    found: dict[str, dict[str, None]] = {}
    for cell in cells:
        scope = cell.scope
        while scope:
            scope, _, last = scope.rpartition("/")
            if last in found.setdefault(scope, {}):
                break
            found[scope][last] = None
    return found
