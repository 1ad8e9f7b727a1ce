"""Which widths a request is about: a name, a glob, or the size that they have."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

from converter.errors import PlanError, UsageError, printable
from converter.patterns import matching, nearest
from converter.structure.axis import Width
from converter.structure.structure import Structure

_FEW = 8


class Chosen(NamedTuple):
    """What requests come to.

    Attributes:
        sizes: the new size of every width that was asked for, in the order of the structure.
        notes: which widths a request fits and leaves as they are, one line each.
    """

    sizes: dict[str, int]
    notes: tuple[str, ...]


def choose(structure: Structure, requests: Mapping[str, int]) -> Chosen:
    """Return the new sizes that are asked for.

    Args:
        structure: whose widths there are.
        requests: the new size, by the name of a width or the end of it, a glob over names (see
            `converter.patterns`), or the size that widths have now. The last two pass over the
            widths that cannot be resized, where there are others.

    Raises:
        UsageError: a request fits no width, two of them want one width to have different sizes,
            or a size is none.
        PlanError: no width that a request fits can be resized.
    """
    wanted: dict[str, tuple[int, str]] = {}
    notes = []
    for request, size in requests.items():
        if size < 1:
            raise UsageError(f"{_shown(request)}={size}: a width must have one unit at least")
        fitting = _fitting(structure, request)
        resizable = [width for width in fitting if width.resizable]
        held = [width for width in fitting if not width.resizable]
        if not resizable:
            raise PlanError(_refusal(request, held))
        if held:
            few = ", ".join(f"{width.name} ({width.why})" for width in held[:_FEW])
            more = f" and {len(held) - _FEW} more" if len(held) > _FEW else ""
            notes.append(f"{_shown(request)}: cannot be resized, and stay: {few}{more}")
        for width in resizable:
            known, by = wanted.setdefault(width.name, (size, request))
            if known != size:
                raise UsageError(
                    f"{width.name} is to have {known} units by {_shown(by)} and {size} by "
                    f"{_shown(request)}; ask for one of them"
                )
    sizes = {name: wanted[name][0] for name in structure.widths if name in wanted}
    return Chosen(sizes, tuple(notes))


def _fitting(structure: Structure, request: str) -> list[Width]:
    widths = structure.widths
    if request in widths:
        return [widths[request]]
    if not widths:
        raise UsageError(f"{_shown(request)}: there are no widths that could be resized")
    if re.fullmatch(r"[0-9]+", request):
        # Not by number: who knows how long these digits are.
        found = [width for width in widths.values() if str(width.size) == request.lstrip("0")]
        if not found:
            sizes = sorted({width.size for width in widths.values()})
            sizes = sorted(sizes, key=lambda size: abs(size - int(request[:18])))[:_FEW]
            raise UsageError(
                f"no width has {_shown(request)} units; the nearest sizes are "
                f"{', '.join(map(str, sorted(sizes)))}"
            )
        return found
    # The end of a name is enough: `lstm_cell` for `model/rnn/lstm_cell`.
    if found := [width for name, width in widths.items() if name.endswith(f"/{request}")]:
        return found
    try:
        return [widths[name] for name in matching(request, widths)]
    except UsageError:
        closest = nearest(request, widths)
        if not closest and len(widths) <= _FEW:
            closest = f"; they are {', '.join(widths)}"
        closest = closest or "; convert inspect --widths lists them"
        raise UsageError(
            f"{_shown(request)} fits none of the {len(widths)} widths{closest}"
        ) from None


def _refusal(request: str, held: list[Width]) -> str:
    if len(held) == 1:
        return f"{held[0].name} cannot be resized: {held[0].why}"
    few = ", ".join(f"{width.name} ({width.why})" for width in held[:_FEW])
    more = f" and {len(held) - _FEW} more" if len(held) > _FEW else ""
    return f"{_shown(request)} fits nothing that can be resized: {few}{more}"


def _shown(request: str) -> str:
    return printable(request if len(request) <= 200 else f"{request[:197]}...")
