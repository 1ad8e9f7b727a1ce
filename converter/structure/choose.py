"""Which widths a request is about: a name, a glob, or the size that they have."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Collection, Mapping
from difflib import get_close_matches
from typing import NamedTuple

from converter.errors import PlanError, UsageError, printable
from converter.patterns import matching, scopes
from converter.structure.axes.axis import Width
from converter.structure.structure import Structure

_FEW = 8
_MAX_COMPARED = 2000
_FEW_TOLD = 2


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
        fitting = named(structure, request)
        resizable = [width for width in fitting if width.resizable]
        rest = [width for width in fitting if not width.resizable]
        if not resizable:
            raise PlanError(_refusal(request, rest))
        if rest:
            notes.append(f"{_shown(request)}: {_staying(rest)}")
        for width in resizable:
            known, by = wanted.setdefault(width.name, (size, request))
            if known != size:
                raise UsageError(
                    f"{width.name} is to have {known} units by {_shown(by)} and {size} by "
                    f"{_shown(request)}; ask for one of them"
                )
    sizes = {name: wanted[name][0] for name in structure.widths if name in wanted}
    return Chosen(sizes, tuple(notes))


def held(structure: Structure, requests: Mapping[str, int]) -> dict[str, str]:
    """Return what holds each width that requests fit and that cannot be resized, by its name."""
    return {
        width.name: width.why
        for request in requests
        for width in named(structure, request)
        if not width.resizable
    }


def named(structure: Structure, request: str) -> list[Width]:
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
    chosen = _named(request, widths)
    if not chosen:
        # By what its variables are called now, too: of a plan people see both.
        now: dict[str, list[str]] = {}
        for name, called in structure.called.items():
            now.setdefault(called, []).append(name)
        names = _named(request, now)
        chosen = [name for name in widths if any(name in now[called] for called in names)]
    if not chosen:
        raise UsageError(
            f"{_shown(request)} fits none of the {len(widths)} widths{_meant(structure, request)}"
        )
    return [widths[name] for name in chosen]


def _named(request: str, names: Collection[str]) -> list[str]:
    """Return the names that a request fits: as a whole, by their ends, or as a glob."""
    if request in names:
        return [request]
    # The end of a name is enough: `lstm_cell` for `model/rnn/lstm_cell`.
    if found := [name for name in names if name.endswith(f"/{request}")]:
        return found
    try:
        return matching(request, names)
    except UsageError:
        return []


def _meant(structure: Structure, request: str) -> str:
    """Return what may be meant by a request that fits no width: one, or those of variables."""
    widths = {**structure.widths, **dict.fromkeys(structure.called.values())}
    variables = [name for name in structure.axes if name not in structure.follows]
    if held := _held_by(structure, variables, request):
        what = "it is a variable" if request in structure.axes else "it fits variables"
        return f"; {what}, with the widths {held}"
    # No globs: what else they fit would be resized with what is meant.
    known = [*widths, *scopes(request, variables), *variables]
    for near in get_close_matches(request, known[:_MAX_COMPARED], n=1):
        if near in widths:
            return f"; did you mean {near!r}?"
        if held := _held_by(structure, variables, near):
            return f"; did you mean a width of {near}: {held}?"
    if len(structure.widths) <= _FEW:
        return f"; they are {', '.join(structure.widths)}"
    return "; convert inspect --widths lists them"


def _held_by(structure: Structure, variables: Collection[str], request: str) -> str:
    """Return the widths that variables have which a name, a scope or a glob fits, with sizes."""
    chosen = [n for n in variables if n == request or n.startswith(f"{request}/")]
    with contextlib.suppress(UsageError):
        chosen = chosen or matching(request, variables)
    found = dict.fromkeys(
        width for name in chosen for axis in structure.axes[name] for width in axis.widths()
    )
    few = [f"{name} ({structure.widths[name].size})" for name in list(found)[:_FEW]]
    return ", ".join(few) + (f" and {len(found) - _FEW} more" if len(found) > _FEW else "")


def _staying(held: list[Width]) -> str:
    if len(held) <= _FEW_TOLD:
        told = ", ".join(f"{width.name} ({width.why})" for width in held)
        return f"cannot be resized, and stay: {told}"
    names = ", ".join(width.name for width in held[:_FEW_TOLD])
    return (
        f"{len(held)} of these cannot be resized, and stay: {names} and {len(held) - _FEW_TOLD} "
        f"more; --json tells why"
    )


def _refusal(request: str, held: list[Width]) -> str:
    if len(held) == 1:
        return f"{held[0].name} cannot be resized: {held[0].why}{_next_step(held[0])}"
    few = ", ".join(f"{width.name} ({width.why})" for width in held[:_FEW])
    more = f" and {len(held) - _FEW} more" if len(held) > _FEW else ""
    return f"{_shown(request)} fits nothing that can be resized: {few}{more}"


def _next_step(width: Width) -> str:
    """Return what can be done about a width of which no op reads the entries, as of positions."""
    variables = (*width.produced_by, *width.consumed_by, *width.followed_by)
    if "rest" not in dict(width.touches) or not variables:
        return ""
    return (
        f", so the graph does not tell what more of them would be; "
        f"--shape '{variables[0]}=SIZES' resizes this variable alone"
    )


def _shown(request: str) -> str:
    return printable(request if len(request) <= 200 else f"{request[:197]}...")
