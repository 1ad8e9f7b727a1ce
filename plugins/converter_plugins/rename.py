"""Renames variables by regular expressions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from converter import PlanError, Strategy, expressions, hookimpl, option
from converter.names.follow import followers, left_behind, told_left

if TYPE_CHECKING:
    from converter import Checkpoint, Variable


@dataclass(frozen=True)
class Rename(Strategy):
    """Rename the variables that a regular expression fits from their first to their last letter.

    Of several expressions the first that fits a name is taken. `\\1` or `\\g<1>` in the replacement
    is the text of the first group. Slots and averages that no expression fits follow their
    variable where its name is a part of theirs. In an object checkpoint a name is not always where
    TensorFlow 2 looks for a variable; `paths` moves that.

    On the command line PATTERN=REPLACEMENT is split at the last `=`; a replacement with a `=` in
    it needs a recipe.

    Example:
        convert ckpt model.ckpt --rename 'bert/(.*)=encoder/\\1' -o out/
    """

    name: ClassVar[str] = "rename"
    rename: Mapping[str, str] = option(
        help=r"rename what a regular expression fits as a whole; `\1` is its first group",
        metavar="PATTERN=REPLACEMENT",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        expressions.check(self.rename, "drop leaves variables out")

    def apply(self, checkpoint: Checkpoint) -> Iterable[Variable]:
        renamed, pattern_of = self._by_patterns(checkpoint)
        renamed |= followers(checkpoint.roles(), renamed)
        taken: dict[str, str] = {}
        for old in checkpoint:
            new = renamed.get(old, old)
            if (other := taken.setdefault(new, old)) != old:
                both = " and ".join(_described(name, pattern_of) for name in (other, old))
                raise PlanError(f"{new}: both {both} would have this name; change a pattern")
        return [
            variable.rename(renamed[name]) if name in renamed else variable
            for name, variable in checkpoint.items()
        ]

    def _by_patterns(self, checkpoint: Checkpoint) -> tuple[dict[str, str], dict[str, str]]:
        """Return the new name of each variable that a pattern fits, and the pattern."""
        found = expressions.replaced(self.rename, checkpoint)
        return (
            {name: new for name, (new, _) in found.items()},
            {name: pattern for name, (_, pattern) in found.items()},
        )

    def notes(self, checkpoint: Checkpoint) -> Iterable[str]:
        renamed, _ = self._by_patterns(checkpoint)
        renamed |= followers(checkpoint.roles(), renamed)
        if left := left_behind(checkpoint.roles(), renamed):
            yield told_left(left)


def _described(name: str, pattern_of: Mapping[str, str]) -> str:
    return f"{name} (by {pattern_of[name]!r})" if name in pattern_of else name


@hookimpl
def converter_strategies() -> Iterable[type[Strategy]]:
    yield Rename
