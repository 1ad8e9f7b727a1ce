"""Makes widths smaller by keeping the units that matter most."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from converter import Resizer, UsageError, hookimpl, option

if TYPE_CHECKING:
    from converter import Array, Checkpoint, Coupled, Strategy, Width, WidthMap


@dataclass(frozen=True)
class Select(Resizer):
    """Keep the best units of widths, the same ones in every block of every variable.

    Units are chosen by the norm of all that belongs to them: what makes them and what takes them,
    in every variable that has the width. Or they are spread evenly, or drawn. Or, with a file of
    statistics (convert stats), by what they are on data: their mean absolute value, their
    deviation, these times the norm of what takes them (wanda, flap), or one after the other by how
    badly the rest makes up for them (obs, which needs covariances). They keep their order.

    The outputs change: what the units that go did is lost. With --select-repair what takes them is
    mended, in recurrent rows too: the biases behind take the means of what goes, and by least
    squares the units that stay take over what can be told from them.

    Example:
        convert ckpt model.ckpt --plugin select --resize 'rnn/*=96' -o out/

    References:
        Wen et al., Learning intrinsic sparse structures within long short-term memory, 2018 (the
        norm over all that is coupled); Xu et al., Initializing models with larger ones, 2024
        (evenly spread); Sun et al., A simple and effective pruning approach for large language
        models, 2024 (`wanda`); An et al., Fluctuation-based adaptive structured pruning for large
        language models, 2024 (`flap`, and `mean`); Hassibi and Stork, Second order derivatives for
        network pruning, 1993 (`obs`); He et al., Channel pruning for accelerating very deep neural
        networks, 2017 (`least-squares`).
    """

    name: ClassVar[str] = "select"
    by: Literal["norm", "uniform", "random", "mean-abs", "std", "wanda", "flap", "obs"] = option(
        "norm",
        help="what chooses the units: the norm of their entries, even spacing, chance, or a score "
        "by statistics",
    )
    statistics: Path | None = option(
        None, help="a file of statistics that convert stats wrote", metavar="FILE"
    )
    repair: Literal["none", "mean", "least-squares"] = option(
        "none",
        help="what makes up for units that go: nothing, their means, or what the others tell of "
        "them (needs covariances)",
    )
    ridge: float = option(
        1e-6, help="what obs and least-squares add to variances, as a share of their mean"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.ridge < math.inf:
            raise UsageError(f"ridge must be a positive number, got {self.ridge}")
        is_used = self.by not in ("norm", "uniform", "random") or self.repair != "none"
        if is_used and self.statistics is None:
            what = "repair" if self.repair != "none" else f"by {self.by}"
            raise UsageError(
                f"{what} needs statistics of the model on data; measure them (convert stats), and "
                f"give --select-statistics FILE"
            )
        if not is_used and self.statistics is not None:
            raise UsageError(
                f"nothing uses the statistics in {self.statistics}; choose a score (--select-by "
                f"obs) or a repair (--select-repair least-squares)"
            )

    def width_map(self, width: Width, size: int, coupled: Coupled) -> WidthMap:
        from converter import Units, WidthMap

        choices = {
            "norm": partial(_strongest, coupled, size),
            "uniform": partial(_evenly_spread, width.size, size),
            "random": partial(_drawn, coupled, size, self.seed),
        }
        if self.statistics is None:
            units = Units(size, choices[self.by])
            return WidthMap(units, units)
        from converter_plugins import scores
        from converter_plugins.activations import activations_of
        from converter_plugins.repairs import LeastSquares, Mean

        activations = activations_of(coupled.checkpoint, self.statistics)
        repairs = {
            "none": None,
            "mean": Mean(activations),
            "least-squares": LeastSquares(activations, self.ridge),
        }
        repair = repairs[self.repair]
        needs = (*scores.STATISTICS.get(self.by, ()), *(() if repair is None else repair.needs))
        consumers = activations.consumers(coupled, needs)
        if self.by == "obs":
            choices["obs"] = partial(scores.least_missed, activations, consumers, size, self.ridge)
        elif self.by in scores.STATISTICS:
            choices[self.by] = partial(scores.largest, self.by, activations, consumers, size)
        units = Units(size, choices[self.by])
        return WidthMap(units, units, repair=repair)

    def notes(self, checkpoint: Checkpoint) -> Iterable[str]:
        yield from super().notes(checkpoint)
        if self.statistics is not None and (self.by == "obs" or self.repair == "least-squares"):
            from converter_plugins.activations import activations_of

            request = self._request(checkpoint)
            activations = activations_of(checkpoint, self.statistics)
            yield from activations.scarce(request.structure, request.maps)

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
