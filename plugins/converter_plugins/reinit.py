"""Draws variables anew, gate by gate where a recurrent kernel has gates."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from converter import Initializer, Strategy, UsageError, hookimpl, option

if TYPE_CHECKING:
    from converter import Checkpoint, Variable
    from converter_plugins.redraw import Redraw


@dataclass(frozen=True)
class Reinit(Strategy):
    """Draw variables anew from an initializer, or the parts of recurrent kernels.

    The columns of a recurrent kernel are drawn gate by gate, with the fans of one gate; its rows
    apart where the inputs or the state have an initializer of their own. Where a glob takes in a
    whole layer, kernels are drawn, and biases, gains and statistics start as TensorFlow's layers
    start them. Slots of what is drawn start afresh, moving averages get the new values, steps and
    beta powers stay. The same seed gives the same values, whatever else is converted.

    Example:
        convert ckpt model.ckpt --reinit '*softmax/*=glorot_uniform' -o out/ --to tf
    """

    name: ClassVar[str] = "reinit"
    reinit: Mapping[str, Initializer] = option(
        {},
        help="draw the variables that a glob or a word chooses: 'w=normal(stddev=0.1)'",
        metavar="GLOB=INITIALIZER",
    )
    input: Mapping[str, Initializer] = option(
        {},
        help="draw the input-to-hidden part of recurrent kernels",
        metavar="GLOB=INITIALIZER",
    )
    hidden: Mapping[str, Initializer] = option(
        {},
        help="draw the hidden-to-hidden part of recurrent kernels",
        metavar="GLOB=INITIALIZER",
    )
    units: Mapping[str, int] = option(
        {},
        help="the units of recurrent kernels that their names do not tell",
        metavar="GLOB=UNITS",
    )
    template: Path | None = option(
        None, help="a checkpoint of the same model, for the initializer `template`", metavar="PATH"
    )
    seed: int = option(0, help="another one gives other values")

    def __post_init__(self) -> None:
        super().__post_init__()
        given = (*self.reinit.values(), *self.input.values(), *self.hidden.values())
        if not given:
            raise UsageError("nothing is to be drawn; give --reinit 'GLOB=INITIALIZER'")
        if self.template is None and (needy := [i for i in given if i.needs == "template"]):
            raise UsageError(f"{needy[0].name} takes values of a template; give --reinit-template")
        for glob, units in self.units.items():
            if units < 1:
                raise UsageError(f"units {glob!r} must be 1 or more, got {units}")

    def apply(self, checkpoint: Checkpoint) -> Iterable[Variable]:
        return self._redraw(checkpoint).variables(self.seed)

    def notes(self, checkpoint: Checkpoint) -> Iterable[str]:
        return self._redraw(checkpoint).notes()

    def _redraw(self, checkpoint: Checkpoint) -> Redraw:
        # Imported where something is drawn: a command is to start at once.
        from converter_plugins.redraw import Redraw

        return Redraw(checkpoint, self.reinit, self.input, self.hidden, self.units, self.template)


@hookimpl
def converter_strategies() -> Iterable[type[Strategy]]:
    yield Reinit
