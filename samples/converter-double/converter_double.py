"""Multiplies float variables."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from converter import Strategy, Variable, hookimpl, option


@dataclass(frozen=True)
class Double(Strategy):
    """Multiply every float variable by a factor."""

    name: ClassVar[str] = "double"
    factor: float = option(2.0, help="what to multiply by")

    def convert(self, variable: Variable) -> Iterable[Variable]:
        if variable.dtype.is_float:
            # In the variable's own type, which numpy would otherwise widen where it is bfloat16.
            variable = variable.map(lambda values: values * values.dtype.type(self.factor))
        yield variable


@hookimpl
def converter_strategies() -> Iterable[type[Strategy]]:
    yield Double
