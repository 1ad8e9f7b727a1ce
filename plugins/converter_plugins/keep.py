"""Keeps the chosen variables and leaves out the rest."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from converter import Strategy, UsageError, hookimpl, option, select

if TYPE_CHECKING:
    from converter import Checkpoint, Variable

_OF_OBJECTS = ("object_graph", "save_counter")


@dataclass(frozen=True)
class Keep(Strategy):
    """Keep the variables that a glob or a word chooses, and no others.

    In a glob, `*` is any text, also with `/` in it. The words are `model` (with its batch
    statistics), `batch_statistics`, `optimizer` (all that only an optimizer needs), `slots`,
    `averages`, `step`, `tables` and `bookkeeping`. The object graph of TensorFlow 2, which says
    what the variables are, is kept in any case and shrinks with them, and so is the save counter
    beside it, without which `tf.train.Checkpoint.restore` finds a checkpoint incomplete.

    Example:
        convert ckpt model.ckpt --keep model --keep step -o out/
    """

    name: ClassVar[str] = "keep"
    keep: tuple[str, ...] = option(
        help="keep only the variables that a glob fits, or of a role such as `model`",
        metavar="GLOB",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.keep:
            raise UsageError("at least one glob or word is needed")

    def apply(self, checkpoint: Checkpoint) -> Iterable[Variable]:
        from converter.formats import OBJECT_GRAPH_KEY

        chosen = {name for pattern in self.keep for name in select(pattern, checkpoint)}
        if OBJECT_GRAPH_KEY in checkpoint:
            chosen.update(n for n, r in checkpoint.roles().items() if r.kind in _OF_OBJECTS)
        return [v for name, v in checkpoint.items() if name in chosen]

    def notes(self, checkpoint: Checkpoint) -> Iterable[str]:
        for pattern in self.keep:
            if not select(pattern, checkpoint):
                yield f"no variable is of the role {pattern}"


@hookimpl
def converter_strategies() -> Iterable[type[Strategy]]:
    yield Keep
