"""Measures the stored moments of batch normalisations again."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from converter import Strategy, UsageError, hookimpl, option

if TYPE_CHECKING:
    from converter import Checkpoint, Variable
    from converter.scaling.recalibrate import Recalibrated


@dataclass(frozen=True)
class RecalibrateBatchnorm(Strategy):
    """Give batch normalisations the moments of data.

    Moving means and variances become those of what is normalised, over all data, each measured
    behind others that have theirs already. As in training a fused op stores the variance that is
    estimated (divided by one less than was counted), and any other one that of the data. That mends
    what other changes of the weights have made of the statistics.

    Example:
        convert ckpt m.ckpt --plugin recalibrate-batchnorm --recalibrate-batchnorm-data x.npz -o out
    """

    name: ClassVar[str] = "recalibrate-batchnorm"
    data: tuple[Path, ...] = option(
        (), help="run the model on an .npz, .npy, or directory of them", metavar="PATH"
    )
    only: tuple[str, ...] = option(
        (), help="only the normalisations with these variables", metavar="GLOB"
    )
    batch_size: int | None = option(None, help="rows that run at once", metavar="N")
    feed: tuple[str, ...] = option(
        (), help="feed a tensor the same in every batch", metavar="NAME=VALUE"
    )
    fetch: tuple[str, ...] = option((), help="run up to this tensor", metavar="NAME")
    signature: str | None = option(
        None, help="the signature of an exported model to run", metavar="NAME"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.data:
            raise UsageError("data are needed; give --recalibrate-batchnorm-data x.npz")
        if self.batch_size is not None and self.batch_size < 1:
            raise UsageError(f"batch_size must be positive, got {self.batch_size}")

    def apply(self, checkpoint: Checkpoint) -> Iterable[Variable]:
        return self._recalibrated(checkpoint).variables()

    def notes(self, checkpoint: Checkpoint) -> Iterable[str]:
        return self._recalibrated(checkpoint).notes()

    def findings(self, checkpoint: Checkpoint) -> Iterable[str]:
        return self._recalibrated(checkpoint).findings()

    def _recalibrated(self, checkpoint: Checkpoint) -> Recalibrated:
        def find() -> Recalibrated:
            from converter.activations.run import Question
            from converter.scaling.recalibrate import Recalibrated
            from converter.scaling.running import Data

            where = ", ".join(map(str, self.data))
            question = Question(self.feed, self.fetch, self.signature, where)
            return Recalibrated(checkpoint, Data(self.data, self.batch_size, question), self.only)

        return checkpoint.once((RecalibrateBatchnorm, self), find)


@hookimpl
def converter_strategies() -> Iterable[type[Strategy]]:
    yield RecalibrateBatchnorm
