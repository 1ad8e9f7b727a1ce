"""The errors whose message is for the user, each with the exit code of the command line.

ConverterError (1: a check failed, or the work broke off)
    UsageError (2: an option, a name or a recipe that cannot be meant; a missing extra)
    InputError (3: the input is unreadable or damaged)
    PlanError (4: what was asked for is refused, and nothing has been written)
        NothingToDoError (of many checkpoints no failure: there is nothing to do for a strategy)

A message is one line: subject, what is wrong with the values, what to do next. Anything else
that is raised is a bug, and keeps its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class ConverterError(Exception):
    """A check failed or the work broke off; the message says why."""

    exit_code = 1


class UsageError(ConverterError):
    """An option, a name or a recipe cannot be meant."""

    exit_code = 2


class InputError(ConverterError):
    """The input is no checkpoint, or it is damaged."""

    exit_code = 3


class PlanError(ConverterError):
    """The plan is refused: names collide, sizes cannot be, the output exists."""

    exit_code = 4


class NothingToDoError(PlanError):
    """A strategy finds nothing in a checkpoint that it could do anything with.

    Who asks for it is told; of many checkpoints this one is converted without it.
    """


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return `; did you mean 'NEAREST'?`, or nothing where no known name is near."""
    nearest = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {nearest[0]!r}?" if nearest else ""


def printable(name: str) -> str:
    """Escape what a terminal would act on or cannot show: controls, surrogates, line breaks."""
    if name.isprintable():
        return name
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode("ascii")
        for c in name
    )
