"""Makes widths smaller by keeping the units that matter most."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, ClassVar, Literal

from converter import Resizer, hookimpl, option

if TYPE_CHECKING:
    from converter import Array, Coupled, Strategy, Width, WidthMap


@dataclass(frozen=True)
class Select(Resizer):
    """Keep the best units of widths, the same ones in every block of every variable.

    Units are chosen by the norm of all that belongs to them: what makes them and what takes them,
    in every variable that has the width. Or they are spread evenly, or drawn. They keep their
    order. The outputs change: what the units that go did is lost.

    Example:
        convert ckpt model.ckpt --plugin select --resize 'rnn/*=96' -o out/

    References:
        Wen et al., Learning intrinsic sparse structures within long short-term memory, 2018 (the
        norm over all that is coupled); Xu et al., Initializing models with larger ones, 2024
        (evenly spread).
    """

    name: ClassVar[str] = "select"
    by: Literal["norm", "uniform", "random"] = option(
        "norm", help="what chooses the units: the norm of their entries, even spacing, or chance"
    )

    def width_map(self, width: Width, size: int, coupled: Coupled) -> WidthMap:
        from converter import Units, WidthMap

        choices = {
            "norm": partial(_strongest, coupled, size),
            "uniform": partial(_evenly_spread, width.size, size),
            "random": partial(_drawn, coupled, size, self.seed),
        }
        units = Units(size, choices[self.by])
        return WidthMap(units, units)

    def refusal(self, width: Width, size: int) -> str | None:
        return "it only makes them smaller (pad grows)" if size > width.size else None


def _strongest(coupled: Coupled, size: int) -> Array:
    import numpy as np

    # Not the statistics of a normalisation, whose size says nothing.
    squares = coupled.squares("produce", "consume", "shift", "gain")
    # Of units that are equal the first stays.
    order = np.argsort(-squares, kind="stable")
    return np.sort(order[:size])


def _evenly_spread(old: int, size: int) -> Array:
    import numpy as np

    if size and old % size == 0:
        return np.arange(size) * (old // size)
    return np.round(np.linspace(0, old - 1, size)).astype(np.int64)


def _drawn(coupled: Coupled, size: int, seed: int) -> Array:
    import numpy as np

    return np.sort(coupled.random(seed).permutation(coupled.size)[:size])


@hookimpl
def converter_strategies() -> Iterable[type[Strategy]]:
    yield Select
