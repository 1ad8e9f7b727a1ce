"""Cuts widths at their end."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from converter import Resizer, hookimpl

if TYPE_CHECKING:
    from converter import Coupled, Strategy, Width, WidthMap


@dataclass(frozen=True)
class Truncate(Resizer):
    """Keep the first units of widths, in every block of every variable.

    The outputs change, unless the model was trained to be cut. `select` chooses the units.

    Example:
        convert ckpt model.ckpt --plugin truncate --like small.ckpt -o out/
    """

    name: ClassVar[str] = "truncate"

    def width_map(self, width: Width, size: int, coupled: Coupled) -> WidthMap:
        from converter import Units, WidthMap

        units = Units.first(width.size, size)
        return WidthMap(units, units)

    def refusal(self, width: Width, size: int) -> str | None:
        return "it only cuts them (pad grows)" if size > width.size else None


@hookimpl
def converter_strategies() -> Iterable[type[Strategy]]:
    yield Truncate
