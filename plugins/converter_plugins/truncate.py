"""Cuts variables at the end of their axes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from converter import Role, Strategy, Variable, hookimpl
from converter_plugins.shapes import ToShapes


@dataclass(frozen=True)
class Truncate(ToShapes):
    """Cut variables at the end of their axes, to a template's shapes or explicit ones.

    Example:
        convert ckpt model.ckpt --plugin truncate --like small.ckpt -o out/
    """

    name: ClassVar[str] = "truncate"

    def resize(self, variable: Variable, shape: tuple[int, ...], role: Role) -> Variable:
        # What is left has the places that it had.
        return variable.derive(variable.load, shape=shape)

    def refusal(self, old: int, new: int) -> str | None:
        return "it only cuts axes (pad grows them)" if new > old else None


@hookimpl
def converter_strategies() -> Iterable[type[Strategy]]:
    yield Truncate
