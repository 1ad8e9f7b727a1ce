"""Scales layers by what they give on data."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from converter import Strategy, UsageError, hookimpl, option
from converter.measuring import Measuring

if TYPE_CHECKING:
    from converter import Checkpoint, Variable
    from converter.scaling.targets import Targeted


@dataclass(frozen=True)
class ActivationScale(Measuring):
    """Scale layers so that what they give on data has the same mean magnitude, or deviation.

    A layer's kernels and biases, or the gains and offsets of its normalisation, are multiplied, so
    that what it gives where it is finished comes to the target: the mean over its units of their
    mean absolute values (mean-abs), or the root mean square of their standard deviations (std); per
    unit each of them does. The methods: sequential measures each layer with those before it scaled;
    once divides all by what one pass has measured; paired divides what takes a width by what its
    units are multiplied by, so that the outputs stay.

    Example:
        convert ckpt model.ckpt --plugin activation-scale --activation-scale-data x.npz -o out/

    References:
        Mishkin and Matas, All you need is a good init, 2016.
    """

    name: ClassVar[str] = "activation-scale"
    statistics: Path | None = option(
        None,
        help="take what convert stats has measured, and run nothing",
        metavar="FILE",
        instead_of=("data",),
    )
    target: float = option(1.0, help="what each layer is to give")
    of: Literal["mean-abs", "std"] = option("mean-abs", help="of what")
    per: Literal["variable", "unit"] = option(
        "variable", help="whether a layer has one factor, or each of its units"
    )
    method: Literal["once", "sequential", "paired"] = option(
        "sequential", help="one pass, layer by layer, or so that the outputs stay"
    )
    floor: float = option(1e-6, help="units that give less are dead: they stay, and are counted")
    only: tuple[str, ...] = option(
        (),
        help="only the layers of these variables; one that cannot be scaled is refused",
        metavar="GLOB",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if bool(self.data) == (self.statistics is not None):
            raise UsageError(
                "data or statistics are needed, and not both; give --activation-scale-data x.npz "
                "or --activation-scale-statistics FILE"
            )
        if self.statistics is not None and self.method == "sequential":
            raise UsageError(
                "sequential measures each layer anew, which a file of statistics cannot; give "
                "data, or the method once or paired"
            )
        for name in ("target", "floor"):
            if not 0 < getattr(self, name) < math.inf:
                raise UsageError(f"{name} must be a positive number, got {getattr(self, name)}")

    def apply(self, checkpoint: Checkpoint) -> Iterable[Variable]:
        return self._targeted(checkpoint).variables()

    def notes(self, checkpoint: Checkpoint) -> Iterable[str]:
        return self._targeted(checkpoint).notes()

    def prepare(self, checkpoint: Checkpoint) -> None:
        self._targeted(checkpoint).find()

    def findings(self, checkpoint: Checkpoint) -> Iterable[str]:
        return self._targeted(checkpoint).findings()

    def _targeted(self, checkpoint: Checkpoint) -> Targeted:
        def find() -> Targeted:
            from converter.scaling.activation import Wanted
            from converter.scaling.targets import Targeted

            wanted = Wanted(self.target, self.of, self.per, self.floor, self.only)
            source = self.statistics or self.what_to_run()
            return Targeted(checkpoint, wanted, self.method, source)

        return checkpoint.once((ActivationScale, self), find)


@hookimpl
def converter_strategies() -> Iterable[type[Strategy]]:
    yield ActivationScale
