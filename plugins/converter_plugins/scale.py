"""Multiplies variables by factors, or divides them by statistics."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from converter import PlanError, Strategy, UsageError, by_name, hookimpl, option

if TYPE_CHECKING:
    import numpy as np

    from converter import Array, Checkpoint, Region, Variable


@dataclass(frozen=True)
class Scale(Strategy):
    """Multiply float variables by a factor, or by the inverse of an activation statistic.

    With statistics, a variable of shape (..., units) becomes value / max(mean_abs, floor), where
    `VARIABLE/mean_abs` is one number, or one for each unit. Where a variable has a factor and a
    statistic, both apply. Dtypes are kept.

    Example:
        convert ckpt model.ckpt --scale 'decoder/logits/*=0.5' -o out/
    """

    name: ClassVar[str] = "scale"
    scale: Mapping[str, float] = option(
        {}, help="multiply the variables that a glob fits by a factor", metavar="GLOB=FACTOR"
    )
    statistics: Path | None = option(
        None,
        help="divide by the statistics of this file (.npz, safetensors; VARIABLE/mean_abs)",
        metavar="FILE",
    )
    floor: float = option(1e-6, help="what smaller statistics count as, so that none divides by 0")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.scale and self.statistics is None:
            raise UsageError(
                "factors or statistics are needed; give --scale 'GLOB=FACTOR' or "
                "--scale-statistics FILE"
            )
        for glob, factor in self.scale.items():
            if not math.isfinite(factor):
                raise UsageError(f"scale {glob!r}: the factor must be finite, got {factor}")
        if not 0 < self.floor < math.inf:
            raise UsageError(f"floor must be a positive number, got {self.floor}")

    def apply(self, checkpoint: Checkpoint) -> Iterable[Variable]:
        import numpy as np

        factors: dict[str, np.ndarray[Any, Any]] = {
            name: np.asarray(factor, np.float64)
            for name, factor in by_name(self.scale, checkpoint).items()
        }
        for name, mean_abs in self._mean_abs(checkpoint).items():
            factors[name] = factors.get(name, 1.0) / np.maximum(mean_abs, self.floor)
        for name, variable in checkpoint.items():
            if name not in factors:
                yield variable
                continue
            if not variable.dtype.is_float:
                raise PlanError(
                    f"{name}: scale changes floats only, and it is {variable.dtype}; choose others"
                )
            yield _scaled(variable, factors[name])

    def notes(self, checkpoint: Checkpoint) -> Iterable[str]:
        floored = {
            name: number
            for name, mean_abs in self._mean_abs(checkpoint).items()
            if (number := int((mean_abs < self.floor).sum()))
        }
        if floored:
            yield (
                f"{sum(floored.values())} statistics of {len(floored)} variables, such as "
                f"{next(iter(floored))}, are below the floor {self.floor:g}, and count as it"
            )

    def _mean_abs(self, checkpoint: Checkpoint) -> Mapping[str, np.ndarray[Any, Any]]:
        if self.statistics is None:
            return {}
        from converter_plugins.statistics import read_mean_abs

        return read_mean_abs(self.statistics, checkpoint)


def _scaled(variable: Variable, factor: np.ndarray[Any, Any]) -> Variable:
    """Multiply by a factor of shape () or (size of the last axis,)."""
    import numpy as np

    from converter.rounding import round_to

    def load(region: Region) -> Array:
        values = variable.load(region)
        # numpy's warning would say a second time that values overflow.
        with np.errstate(over="ignore", invalid="ignore"):
            # In float64 whatever the dtype: a product in float32 is rounded so coarsely that
            # rounding it again misses the nearest float16 or bfloat16 now and then.
            products = values.astype(np.float64)
            products *= factor[region[-1]] if factor.ndim else factor
        return round_to(products, variable.dtype, variable.counts, before=values)

    return variable.derive(load)


@hookimpl
def converter_strategies() -> Iterable[type[Strategy]]:
    yield Scale
