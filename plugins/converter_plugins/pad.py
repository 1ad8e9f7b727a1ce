"""Grows variables at the end of their axes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from converter import (
    Array,
    DType,
    PlanError,
    Region,
    Role,
    Strategy,
    Variable,
    hookimpl,
    option,
    shape_of,
)
from converter.names.fresh import fresh_value
from converter_plugins.shapes import ToShapes


@dataclass(frozen=True)
class Pad(ToShapes):
    """Grow variables at the end of their axes, to a template's shapes or explicit ones.

    Old values keep their places; new entries hold the fill. New entries of optimizer slots hold
    what a fresh slot holds: zero, or what Adagrad, FTRL and RMSProp start with.

    Example:
        convert ckpt model.ckpt --plugin pad --shape 'embedding*=30592,768' -o out/
    """

    name: ClassVar[str] = "pad"
    fill: float = option(0.0, help="what new entries hold, but for optimizer slots")

    def resize(self, variable: Variable, shape: tuple[int, ...], role: Role) -> Variable:
        fill = self.fill
        if role.kind == "slot":
            fill = fresh_value(role.optimizer, role.slot) or 0.0
        filling = _in_dtype(variable, fill)

        def load(region: Region) -> Array:
            inner = tuple(
                slice(s.start, min(s.stop, size))
                for s, size in zip(region, variable.shape, strict=True)
            )
            if inner == region:
                return variable.load(region)
            values = np.full(shape_of(region), filling)
            if all(s.start < s.stop for s in inner):
                values[tuple(slice(0, s.stop - s.start) for s in inner)] = variable.load(inner)
            return values

        return variable.derive(load, shape=shape)

    def refusal(self, old: int, new: int) -> str | None:
        return "it only grows axes (truncate cuts them)" if new < old else None


def _in_dtype(variable: Variable, fill: float) -> np.ndarray[Any, Any]:
    """Return the fill as an array of shape () of the variable's dtype."""
    dtype: DType = variable.dtype
    if not dtype.itemsize:
        raise PlanError(
            f"{variable.name}: pad cannot grow {dtype} variables; it fills with numbers"
        )
    with np.errstate(all="ignore"):
        filling = np.asarray(fill, np.float64).astype(dtype.numpy)
        held = np.isfinite(filling) == np.isfinite(fill) if dtype.is_float else filling == fill
    if not held:
        raise PlanError(f"{variable.name}: {dtype} cannot hold the fill {fill:g}; choose another")
    return filling


@hookimpl
def converter_strategies() -> Iterable[type[Strategy]]:
    yield Pad
