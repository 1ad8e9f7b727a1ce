"""Measures the stored moments of batch normalisations again."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from converter import Strategy, UsageError, hookimpl, option
from converter.measuring import Measuring

if TYPE_CHECKING:
    from converter import Checkpoint, Variable
    from converter.scaling.recalibrate import Recalibrated


@dataclass(frozen=True)
class RecalibrateBatchnorm(Measuring):
    """Give batch normalisations the moments of data.

    Moving means and variances become those of what is normalised, over all data, each measured
    behind others that have theirs already. As in training a fused op stores the variance that is
    estimated (divided by one less than was counted), and any other one that of the data. That mends
    what other changes of the weights have made of the statistics.

    Example:
        convert ckpt m.ckpt --plugin recalibrate-batchnorm --recalibrate-batchnorm-data x.npz -o out
    """

    name: ClassVar[str] = "recalibrate-batchnorm"
    only: tuple[str, ...] = option(
        (), help="only the normalisations with these variables", metavar="GLOB"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.data:
            raise UsageError("data are needed; give --recalibrate-batchnorm-data x.npz")

    def apply(self, checkpoint: Checkpoint) -> Iterable[Variable]:
        return self._recalibrated(checkpoint).variables()

    def notes(self, checkpoint: Checkpoint) -> Iterable[str]:
        return self._recalibrated(checkpoint).notes()

    def prepare(self, checkpoint: Checkpoint) -> None:
        self._recalibrated(checkpoint).find()

    def findings(self, checkpoint: Checkpoint) -> Iterable[str]:
        return self._recalibrated(checkpoint).findings()

    def _recalibrated(self, checkpoint: Checkpoint) -> Recalibrated:
        def find() -> Recalibrated:
            from converter.scaling.recalibrate import Recalibrated

            return Recalibrated(checkpoint, self.what_to_run(), self.only)

        return checkpoint.once((RecalibrateBatchnorm, self), find)


@hookimpl
def converter_strategies() -> Iterable[type[Strategy]]:
    yield RecalibrateBatchnorm
