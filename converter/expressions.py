"""Regular expressions that give names new ones; each fits from the first letter to the last."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from difflib import SequenceMatcher
from fnmatch import fnmatchcase

from converter.errors import UsageError
from converter.patterns import nearest


def check(replacements: Mapping[str, str], advice: str) -> None:
    """Raise UsageError where an expression is none, or has no replacement.

    Args:
        replacements: the replacement by the expression.
        advice: what to do instead of replacing a name by nothing.
    """
    if not replacements:
        raise UsageError("at least one pattern is needed")
    for pattern, replacement in replacements.items():
        try:
            re.compile(pattern)
        except (re.error, RecursionError, OverflowError) as error:
            raise UsageError(f"{pattern!r} is no regular expression: {error}") from None
        if not replacement:
            raise UsageError(f"{pattern!r} has no replacement; {advice}")


def replaced(
    replacements: Mapping[str, str],
    names: Collection[str],
    what: str = "variables",
    *,
    is_strict: bool = True,
) -> dict[str, tuple[str, str]]:
    """Return what each name that an expression fits becomes, and the expression: the first one.

    Args:
        replacements: the replacement by the expression; `\\1` is the text of the first group.
        names: the names; those that no expression fits are not in the result.
        what: what the names are names of.
        is_strict: an expression has to fit a name.

    Raises:
        UsageError: an expression fits no name though it has to, or a replacement is none for it.
    """
    found: dict[str, tuple[str, str]] = {}
    for pattern, replacement in replacements.items():
        matches = [match for match in map(re.compile(pattern).fullmatch, names) if match]
        if not matches and is_strict:
            raise UsageError(
                f"{pattern!r} fits none of the {len(names)} {what}{_advice(pattern, names)}"
            )
        for match in matches:
            if match.string in found:
                continue
            try:
                found[match.string] = match.expand(replacement), pattern
            except (re.error, IndexError) as error:
                raise UsageError(
                    f"{replacement!r} is no replacement for {pattern!r}: {error}"
                ) from None
    return found


def _advice(pattern: str, names: Collection[str]) -> str:
    if "*" in pattern and any(fnmatchcase(name, pattern) for name in names):
        meant = "(.*)".join(map(re.escape, pattern.split("*")))
        return f"; it is a regular expression, where any text is '.*': '{meant}'"
    return nearest(pattern, names, "(.*)")


def nearest_of(name: str, patterns: Iterable[str]) -> str:
    """Return the regular expression that is most like a name, of at least one."""
    return max(patterns, key=lambda pattern: SequenceMatcher(None, pattern, name).ratio())
