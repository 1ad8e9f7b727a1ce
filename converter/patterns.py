"""How variables are chosen: by globs over their names, and by words for what they are."""

from __future__ import annotations

import re
import reprlib
from collections.abc import Callable, Iterable, Mapping
from fnmatch import translate
from typing import TYPE_CHECKING, TypeVar

from converter.errors import UsageError, did_you_mean
from converter.names import Role

if TYPE_CHECKING:
    from converter.checkpoint import Checkpoint

V = TypeVar("V")

# Nobody mistypes a longer scope; to keep all that a deep name stands in takes quadratic space.
_MAX_LENGTH = 1000

WORDS: Mapping[str, Callable[[Role], bool]] = {
    "model": lambda role: role.kind in ("model", "batch_statistic"),
    "batch_statistics": lambda role: role.kind == "batch_statistic",
    "optimizer": lambda role: role.is_optimizer_state,
    "slots": lambda role: role.kind == "slot",
    "averages": lambda role: role.kind == "average",
    "step": lambda role: role.kind == "step",
    "tables": lambda role: role.kind == "table",
    "bookkeeping": lambda role: role.kind in ("save_counter", "object_graph"),
}
"""Words that choose variables by their role. `optimizer` is all that only an optimizer needs."""


def texts(given: str | Iterable[str], what: str) -> tuple[str, ...]:
    """Return the texts of an argument; one text alone is one of them, and no series of letters.

    Args:
        given: the texts, such as globs.
        what: the name of the argument, for the message.

    Raises:
        UsageError: it holds what is no text.
    """
    items = (given,) if isinstance(given, str) or not isinstance(given, Iterable) else tuple(given)
    if odd := [item for item in items if not isinstance(item, str)]:
        raise UsageError(f"{what} must be texts, got {reprlib.repr(odd[0])}")
    return items


def matching(glob: str, names: Iterable[str], what: str = "variables") -> list[str]:
    """Return the names that a glob fits, in their order.

    `*` is any text, also with `/` in it, `?` one character, `[abc]` one of these, `[!abc]` any
    other; everything else is itself, and case matters. `[*]` is a star.

    Args:
        glob: the glob.
        names: where it is looked for.
        what: what they are the names of, for the message.

    Raises:
        UsageError: it fits none of them.
    """
    names = list(names)
    fits = re.compile(translate(glob)).match
    found = [name for name in names if fits(name)]
    if not found:
        raise UsageError(f"{glob!r} fits none of the {len(names)} {what}{nearest(glob, names)}")
    return found


def by_name(values: Mapping[str, V], names: Iterable[str]) -> dict[str, V]:
    """Return the value of each name: that of the first glob that fits it.

    Args:
        values: value by glob.
        names: the variables' names. Those that no glob fits are left out of the result.

    Raises:
        UsageError: a glob fits no name.
    """
    names = list(names)
    found: dict[str, V] = {}
    for glob, value in values.items():
        for name in matching(glob, names):
            found.setdefault(name, value)
    return found


def select(pattern: str, checkpoint: Checkpoint) -> list[str]:
    """Return the names of the variables that a word of `WORDS` or a glob chooses.

    A word also chooses a variable of that very name. No variable has to be of the role that a
    word means: the result is empty then.

    Raises:
        UsageError: a glob fits no variable.
    """
    is_meant = WORDS.get(pattern)
    if is_meant is None:
        try:
            return matching(pattern, checkpoint)
        except UsageError as error:
            if word := did_you_mean(pattern, WORDS):
                raise UsageError(f"{pattern!r} is no role, and fits no variable{word}") from None
            raise error from None
    roles = checkpoint.roles()
    return [name for name in checkpoint if is_meant(roles[name]) or name == pattern]


def nearest(pattern: str, names: Iterable[str], rest: str = "*") -> str:
    """Return `; did you mean ...?` with the nearest name or scope (`encoder/*`).

    Args:
        pattern: what somebody wrote.
        names: what it was to fit.
        rest: what fits all names in a scope, where patterns are no globs.
    """
    known = dict.fromkeys(names)
    known |= dict.fromkeys(f"{scope}/{rest}" for scope in scopes(pattern, known))
    return did_you_mean(pattern, known)


def scopes(pattern: str, names: Iterable[str]) -> dict[str, None]:
    """Return the scopes in which names stand, each once, but those that are too long to be meant.

    Args:
        pattern: what somebody wrote.
        names: the names.
    """
    # Of what is longer, not half is like the pattern.
    longest = min(3 * len(pattern), _MAX_LENGTH)
    found: dict[str, None] = {}
    for name in names:
        scope = name[:longest]
        while "/" in scope:
            scope = scope.rpartition("/")[0]
            found[scope] = None
    return found
