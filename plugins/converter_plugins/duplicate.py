"""Grows widths by copies of their units."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, ClassVar, Literal

from converter import Resizer, UsageError, hookimpl, option

if TYPE_CHECKING:
    from converter import Array, Coupled, Strategy, Width, WidthMap

# Every unit has its share, and these are held in memory.
_LARGEST = 1 << 24


@dataclass(frozen=True)
class Duplicate(Resizer):
    """Grow widths by copies of their units, which share what the originals did.

    New units are copies of the first, the second and so on, round and round; the old ones stay in
    their places. What makes a unit is copied; what takes it is shared out among its copies, in
    shares that add up to 1. So the outputs stay what they are, but where a normalisation averages
    over the width: there every unit has to be copied equally often, to a multiple of the size.

    Shares that are equal give copies the same gradients for ever, so by default they differ.

    Example:
        convert ckpt model.ckpt --plugin duplicate --resize 'rnn/*=192' -o out/

    References:
        Chen, Goodfellow and Shlens, Net2Net: accelerating learning via knowledge transfer, 2016;
        Wang et al., LEMON: lossless model expansion, 2024 (uneven shares).
    """

    name: ClassVar[str] = "duplicate"
    shares: Literal["uneven", "even"] = option(
        "uneven", help="what each copy does of the original: different shares, or equal ones"
    )
    noise: float = option(
        0.0,
        help="how far copies are from the original, in standard deviations of their variable; "
        "0.01 is a start",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.noise < math.inf:
            raise UsageError(f"noise must be 0 or a positive number, got {self.noise}")

    def width_map(self, width: Width, size: int, coupled: Coupled) -> WidthMap:
        from converter import Units, WidthMap

        produce = Units(size, partial(_copied, width.size, size))
        seed = self.seed if self.shares == "uneven" else None
        shares = partial(_shares, coupled, size, seed)
        return WidthMap(produce, Units(size, lambda: produce.index, shares), noise=self.noise)

    def refusal(self, width: Width, size: int) -> str | None:
        if size < width.size:
            return "it only grows them (select makes them smaller)"
        if size > _LARGEST:
            return f"it copies to {_LARGEST:,} units at most; choose pad"
        return "there is no unit to copy" if not width.size else None


def _copied(old: int, size: int) -> Array:
    import numpy as np

    return np.arange(size) % old


def _shares(coupled: Coupled, size: int, seed: int | None) -> Array:
    """Return the share of each unit of its original: float64 of shape (size,).

    Args:
        coupled: the width.
        size: how many units there are to be.
        seed: of uneven shares; None for even ones.
    """
    import numpy as np

    old = coupled.size
    rounds = -(-size // old)
    # One row for each round of copies; the last may be incomplete.
    held = (np.arange(rounds * old) < size).reshape(rounds, old)
    parts = np.ones((rounds, old))
    if seed is not None:
        random = coupled.random(seed)
        steps = np.tile(np.arange(rounds, dtype=np.float64)[:, None], (1, old))
        # Half a step of chance, so that no two copies come to the same share.
        parts += random.permuted(steps + random.uniform(0, 0.5, steps.shape), axis=0) / rounds
    parts *= held
    shares: Array = (parts / parts.sum(axis=0)).reshape(-1)[:size]
    return shares


@hookimpl
def converter_strategies() -> Iterable[type[Strategy]]:
    yield Duplicate
