"""Moves the objects of a TensorFlow 2 checkpoint."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from converter import PlanError, Strategy, expressions, hookimpl, option

if TYPE_CHECKING:
    from converter import Checkpoint, Variable


@dataclass(frozen=True)
class Paths(Strategy):
    """Move variables of an object checkpoint to other paths, where a model of now looks for them.

    A regular expression fits a path from its first to its last letter; of several the first that
    fits is taken. Names that are no paths stay as they are. `convert inspect` shows both.

    Example:
        convert ckpt ckpt-100 --paths 'net/(.*)=encoder/\\1' --to tf -o out/
    """

    name: ClassVar[str] = "paths"
    paths: Mapping[str, str] = option(
        help=r"move what a regular expression fits as a whole; `\1` is its first group",
        metavar="PATTERN=REPLACEMENT",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        expressions.check(self.paths, "drop leaves variables out")

    def apply(self, checkpoint: Checkpoint) -> Iterable[Variable]:
        if checkpoint.object_graph is None:
            raise PlanError(
                f"{checkpoint.path}: it is no object checkpoint, and has no paths; use --rename"
            )
        old = {v.path or name: name for name, v in checkpoint.items()}
        found = expressions.replaced(self.paths, old, "paths")
        moved = {old[path]: new for path, (new, _) in found.items()}
        taken: dict[str, str] = {}
        for path, name in old.items():
            new = moved.get(name, path)
            if (other := taken.setdefault(new, path)) != path:
                raise PlanError(f"{new}: both {other} and {path} would have this path")
        return [_moved(v, moved[name]) if name in moved else v for name, v in checkpoint.items()]


def _moved(variable: Variable, path: str) -> Variable:
    return variable.rename(path) if variable.path is None else replace(variable, path=path)


@hookimpl
def converter_strategies() -> Iterable[type[Strategy]]:
    yield Paths
