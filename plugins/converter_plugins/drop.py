"""Leaves out the chosen variables."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from converter import Strategy, UsageError, hookimpl, option, select
from converter.counted import agree

if TYPE_CHECKING:
    from converter import Checkpoint, Variable


@dataclass(frozen=True)
class Drop(Strategy):
    """Leave out the variables that a glob or a word chooses.

    In a glob, `*` is any text, also with `/` in it. The words are `optimizer` (all that only an
    optimizer needs: slots, beta powers, hyperparameters), `slots`, `averages`, `step`, `tables`,
    `batch_statistics`, `bookkeeping` and `model` (with its batch statistics).

    Example:
        convert ckpt model.ckpt --drop optimizer --drop 'cls/*' -o out/
    """

    name: ClassVar[str] = "drop"
    drop: tuple[str, ...] = option(
        help="leave out the variables that a glob fits, or of a role such as `optimizer`",
        metavar="GLOB",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.drop:
            raise UsageError("at least one glob or word is needed")

    def apply(self, checkpoint: Checkpoint) -> Iterable[Variable]:
        chosen = self._chosen(checkpoint)
        return [variable for name, variable in checkpoint.items() if name not in chosen]

    def notes(self, checkpoint: Checkpoint) -> Iterable[str]:
        for pattern in self.drop:
            if not select(pattern, checkpoint):
                yield f"no variable is of the role {pattern}"
        chosen = self._chosen(checkpoint)
        roles = checkpoint.roles()
        left = [name for name in checkpoint if name not in chosen and roles[name].of in chosen]
        if left:
            stay = agree(
                len(left),
                "1 slot or average stays without its variable",
                f"{len(left):,} slots and averages stay without their variables",
            )
            yield f"{stay}, such as {left[0]}; drop them by name, or with slots and averages"

    def _chosen(self, checkpoint: Checkpoint) -> set[str]:
        return {name for pattern in self.drop for name in select(pattern, checkpoint)}


@hookimpl
def converter_strategies() -> Iterable[type[Strategy]]:
    yield Drop
