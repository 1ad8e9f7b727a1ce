"""What becomes of a layer in the convention of another framework."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from converter.conventions.views import View


class Note(NamedTuple):
    """What is to be known of a layer; layers with the same note share one line.

    Attributes:
        layer: the scope of the layer, or the module.
        text: a sentence without a full stop.
    """

    layer: str
    text: str


class Converted(NamedTuple):
    """What becomes of a layer.

    Attributes:
        members: the variables that it is made of.
        outputs: what it has in the new convention, by name.
        notes: what is to be known of it.
    """

    members: tuple[str, ...]
    outputs: Mapping[str, View]
    notes: tuple[Note, ...] = ()


class Refused(NamedTuple):
    """A layer that the convention cannot hold.

    Attributes:
        members: the variables that it is made of.
        reason: why, as a sentence that begins with the layer.
    """

    members: tuple[str, ...]
    reason: str
