"""Grows widths: old units keep their places, new ones come behind them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from converter import (
    Coupled,
    Initializer,
    Resizer,
    Strategy,
    Units,
    Width,
    WidthMap,
    hookimpl,
    option,
)
from converter.resize.maps import ZEROS


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
    fill: Initializer = option(ZEROS, help="what makes the new units: zeros, glorot_uniform, ...")

    def width_map(self, width: Width, size: int, coupled: Coupled) -> WidthMap:
        units = Units.first(width.size, size)
        if width.normalised is not None:
            # Zeros count in its mean squares, which what makes the width makes up for.
            scale = math.sqrt(size / width.size)
            centred = width.normalised.is_centred
            return WidthMap(units, units, gain=1 / scale, rescale=scale, is_centred=centred)
        # Where new units have to be zero to change nothing, nothing else is drawn.
        fill = ZEROS if width.growth == "zero" else self.fill
        return WidthMap(units, units, fill)

    def refusal(self, width: Width, size: int) -> str | None:
        return "it only grows them (truncate cuts)" if size < width.size else None


@hookimpl
def converter_strategies() -> Iterable[type[Strategy]]:
    yield Pad
