"""Converts variables to another dtype."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from converter import ConverterError, PlanError, Strategy, UsageError, hookimpl, option, select

if TYPE_CHECKING:
    from converter import Array, Checkpoint, DType, Variable

# Spelt here, so that --help imports no numpy. All but float4, which has neither infinity nor NaN,
# so that nobody would learn what overflowed.
_FLOATS = (
    *("float32", "float64", "bfloat16", "float16", "float8_e5m2", "float8_e4m3fn"),
    *("float8_e4m3fnuz", "float8_e4m3b11fnuz", "float8_e5m2fnuz"),
)
_INTEGERS = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")


@dataclass(frozen=True)
class Cast(Strategy):
    """Convert floating-point variables, or the chosen ones, to another dtype.

    Values are rounded to nearest; those beyond the range become infinity, and are counted in the
    report. Integers change only where `only` chooses them: to other integers they must fit, and
    those that a float dtype rounds are counted, too. Floats never become integers.

    Example:
        convert ckpt model.ckpt --cast bfloat16 -o out/
    """

    name: ClassVar[str] = "cast"
    cast: str = option(
        help="convert floating-point variables to this dtype",
        metavar="DTYPE",
        choices=(*_FLOATS, *_INTEGERS),
    )
    only: tuple[str, ...] = option(
        (),
        help="convert the variables that a glob fits or of a role such as `model`, integers too",
        metavar="GLOB",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.cast in _INTEGERS and not self.only:
            raise UsageError(f"{self.cast} is for integers; say which ones (--cast-only GLOB)")

    def apply(self, checkpoint: Checkpoint) -> Iterable[Variable]:
        from converter.dtype import BY_NAME

        dtype = BY_NAME[self.cast]
        chosen = {name for pattern in self.only for name in select(pattern, checkpoint)}
        for name, variable in checkpoint.items():
            concerned = name in chosen if self.only else variable.dtype.is_float
            yield _cast(variable, dtype) if concerned and variable.dtype != dtype else variable


def _cast(variable: Variable, dtype: DType) -> Variable:
    old = variable.dtype
    refused = f"{variable.name}: cast does not turn {old} into {dtype}"
    if old.is_float and not dtype.is_float:
        raise PlanError(f"{refused}; choose a float dtype")
    if not old.is_float and old.name not in (*_INTEGERS, "bool"):
        raise PlanError(f"{refused}; narrow --cast-only")
    if dtype.is_float:
        from converter.rounding import round_to

        return variable.map(lambda values: round_to(values, dtype, variable.counts), dtype=dtype)
    bits = 8 * dtype.itemsize
    low, high = (
        (0, 2**bits) if dtype.name.startswith("u") else (-(2 ** (bits - 1)), 2 ** (bits - 1))
    )

    def fitting(values: Array) -> Array:
        for extreme in (int(values.min()), int(values.max())) if values.size else ():
            if not low <= extreme < high:
                raise ConverterError(
                    f"{variable.name}: {extreme} does not fit {dtype}; choose a wider one"
                )
        return values.astype(dtype.numpy)

    return variable.map(fitting, dtype=dtype)


@hookimpl
def converter_strategies() -> Iterable[type[Strategy]]:
    yield Cast
