"""Convention: what strategies are that give layers the variables that another framework has."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from converter.errors import UsageError, did_you_mean
from converter.options import option
from converter.strategy import Strategy

if TYPE_CHECKING:
    from converter.checkpoint import Checkpoint
    from converter.conventions.converted import Converted, Refused
    from converter.conventions.layers import Cell, Layer
    from converter.conventions.mapping import Mapped
    from converter.variable import Variable

KINDS = (
    "dense",
    "dense_transposed",
    "conv",
    "conv_transpose",
    "depthwise",
    "embedding",
    "lstm",
    "gru",
    "gru_reset_after",
    "rnn",
    "keep",
)
"""What a variable can be declared to be."""


@dataclass(frozen=True)
class Convention(Strategy, ABC):
    """Gives layers the variables that a framework has for them.

    A convention says in `cells` and `layer` what it has for a layer, of which the views are told
    in the words of no framework. All else is done here: layers are found, averages and slots
    follow, and what is no part of a layer that is known is not left out in silence.
    """

    rest: Literal["refuse", "keep", "drop"] = option(
        "refuse", help="what becomes of variables that are of no layer it has"
    )
    layer: Mapping[str, str] = option(
        {},
        help="which layer it is whose kernel or table a glob fits: 'readout=dense'",
        metavar="GLOB=KIND",
    )
    forget_bias: Mapping[str, float] = option(
        {},
        help="what LSTM cells add to their forget gate when they run, by a glob for their kernel",
        metavar="GLOB=NUMBER",
    )

    def __post_init__(self) -> None:
        for glob, kind in self.layer.items():
            if kind not in KINDS:
                near = did_you_mean(kind, KINDS) or f"; it can be {', '.join(KINDS)}"
                raise UsageError(f"layer {glob!r}: there is no kind {kind!r}{near}")

    @abstractmethod
    def cells(self, cells: Sequence[Cell]) -> Iterable[Converted | Refused]:
        """Return what becomes of recurrent cells; one for each, or one for several together."""

    @abstractmethod
    def plain(self, layer: Layer) -> Converted | Refused:
        """Return what becomes of a layer without a state."""

    def spelt(self, name: str) -> str:
        """Return how the convention writes a name, whose scopes have slashes between them."""
        return name

    def apply(self, checkpoint: Checkpoint) -> Iterable[Variable]:
        return self._mapped(checkpoint).variables()

    def notes(self, checkpoint: Checkpoint) -> Iterable[str]:
        return self._mapped(checkpoint).notes()

    def _mapped(self, checkpoint: Checkpoint) -> Mapped:
        # Imported where something is converted: a command is to start at once.
        from converter.conventions.mapping import Mapped, Said

        # A plan asks for the variables and for the notes. What is mapped holds the strategy, so
        # that no other one can have its id while the checkpoint knows it.
        return checkpoint.once(
            (Mapped, id(self)),
            lambda: Mapped(self, Said(self.rest, self.layer, self.forget_bias), checkpoint),
        )
