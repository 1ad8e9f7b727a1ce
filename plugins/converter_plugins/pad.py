"""Grows widths: old units keep their places, new ones come behind them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from converter import Initializer, PlanError, Resizer, hookimpl, option
from converter.initializer import Zeros

if TYPE_CHECKING:
    from converter import Checkpoint, Coupled, Strategy, Width, WidthMap


@dataclass(frozen=True)
class Pad(Resizer):
    """Grow widths at their end; what consumes the new units is zero.

    The old units keep their places in every block of every variable, so the outputs stay what they
    are wherever zeros can do that; the plan says where they cannot. What makes the new units holds
    the fill. With zeros on both sides training never moves them; any other fill is as exact, and
    learns. New entries of optimizer slots hold what a fresh slot holds.

    Example:
        convert ckpt model.ckpt --plugin pad --resize 'rnn/*=192' --pad-fill glorot_uniform -o out/
    """

    name: ClassVar[str] = "pad"
    fill: Initializer = option(Zeros(), help="what makes the new units: zeros, glorot_uniform, ...")
    output_bias: float | None = option(
        None, help="the biases of new outputs: -1e4 keeps new classes or words out of a softmax"
    )

    def width_map(self, width: Width, size: int, coupled: Coupled) -> WidthMap:
        from converter import Units, WidthMap

        units = Units.first(width.size, size)
        if width.normalised is not None:
            # Zeros count in its mean squares, which what makes the width makes up for.
            scale = math.sqrt(size / width.size)
            centred = width.normalised.is_centred
            return WidthMap(units, units, gain=1 / scale, rescale=scale, is_centred=centred)
        # Where new units have to be zero to change nothing, nothing else is drawn.
        fill = Zeros() if width.growth == "zero" else self.fill
        bias = self.output_bias if _is_output(width) else None
        if bias is not None and not width.followed_by:
            raise PlanError(
                f"{width.name}: these outputs have no bias; leave out --pad-output-bias, and "
                f"choose what makes new ones with --pad-fill"
            )
        return WidthMap(units, units, fill, bias)

    def notes(self, checkpoint: Checkpoint) -> Iterable[str]:
        yield from super().notes(checkpoint)
        resizes = self.resizes(checkpoint)
        known = {} if resizes.structure is None else resizes.structure.widths
        for resized in resizes.widths:
            if (
                self.output_bias is None
                and resized.name in known
                and _is_output(known[resized.name])
            ):
                is_told = "softmax" in dict(known[resized.name].touches)
                what = (
                    "count in a softmax" if is_told else "would count in a softmax, if one follows"
                )
                yield (
                    f"{resized.name}: new outputs {what}, zeros too; --pad-output-bias -1e4 keeps "
                    f"them out, --pad-fill match makes them like the old ones"
                )

    def refusal(self, width: Width, size: int) -> str | None:
        return "it only grows them (truncate cuts)" if size < width.size else None


def _is_output(width: Width) -> bool:
    touches = dict(width.touches)
    outside = {"cross entropy", "output", "softmax"}
    return bool(width.produced_by) and not outside.isdisjoint(touches)


@hookimpl
def converter_strategies() -> Iterable[type[Strategy]]:
    yield Pad
