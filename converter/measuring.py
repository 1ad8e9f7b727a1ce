"""The options of strategies that run a model on data."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from converter.errors import UsageError
from converter.strategy import Strategy, option

if TYPE_CHECKING:
    from converter.activations.data import Data


@dataclass(frozen=True)
class Measuring(Strategy):
    """Run the model on data, and measure it."""

    data: tuple[Path, ...] = option(
        (), help="run the model on an .npz, .npy, or directory of them", metavar="PATH"
    )
    batch_size: int | None = option(
        None, help="rows that run at once", metavar="N", instead_of=("whole_files",)
    )
    whole_files: bool = option(False, help="each file is one batch, whatever its rows")
    feed: tuple[str, ...] = option(
        (), help="feed a tensor the same in every batch", metavar="NAME=VALUE"
    )
    fetch: tuple[str, ...] = option((), help="run up to this tensor", metavar="NAME")
    signature: str | None = option(
        None, help="the signature of an exported model to run", metavar="NAME"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.batch_size is not None and self.batch_size < 1:
            raise UsageError(f"batch_size must be positive, got {self.batch_size}")
        if self.batch_size is not None and self.whole_files:
            raise UsageError(
                "whole_files runs each file at once, so batch_size means nothing; leave one out"
            )

    def what_to_run(self) -> Data:
        """Return the data, and what of the model is run on them."""
        from converter.activations.asked import Question
        from converter.activations.data import Data

        where = ", ".join(map(str, self.data))
        question = Question(self.feed, self.fetch, self.signature, where, f"--{self.name}-")
        return Data(self.data, self.batch_size, self.whole_files, question)
