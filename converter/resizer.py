"""Resizer: what strategies are that give widths another size."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from converter.errors import UsageError
from converter.options import option
from converter.strategy import Strategy

if TYPE_CHECKING:
    from converter.checkpoint import Checkpoint
    from converter.resize.coupled import Coupled
    from converter.resize.exactness import Resizes
    from converter.resize.request import Request
    from converter.resize.units import WidthMap
    from converter.structure.axes.axis import Width
    from converter.variable import Variable


@dataclass(frozen=True)
class Resizer(Strategy, ABC):
    """Gives widths another size, on every axis that has them.

    A resizing strategy says in `width_map` what becomes of the units of one width. All else is done
    here: the map is applied to every axis of every variable, gate by gate, and to slots and
    averages by their own rules.

        @dataclass(frozen=True)
        class Reverse(Resizer):
            \"\"\"Keep the last units.\"\"\"

            name: ClassVar[str] = "reverse"

            def width_map(self, width, size, coupled):
                units = Units(size, np.arange(width.size)[-size:])
                return WidthMap(units, units)

            def refusal(self, width, size):
                return "it only makes widths smaller" if size > width.size else None
    """

    resize: Mapping[str, int] = option(
        {},
        help="the new size of the widths that a name, a glob or the old size chooses",
        metavar="WIDTH=SIZE",
        shared=True,
    )
    like: Path | None = option(
        None, help="a checkpoint whose shapes are wanted", metavar="TEMPLATE", shared=True
    )
    shape: Mapping[str, tuple[int, ...]] = option(
        {},
        help="the wanted shape of the variables that a glob fits, in which nothing else follows",
        metavar="GLOB=SIZES",
        shared=True,
    )
    layout: Path | None = option(
        None, help="which axes share a width, as inspect --widths -o writes it", shared=True
    )
    require_exact: bool = option(
        False, help="refuse what does not keep the outputs as they are", shared=True
    )
    seed: int = option(0, help="of what is drawn; another one gives other values", shared=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.like is None and not self.shape and not self.resize:
            raise UsageError(
                "no sizes are given; use --resize WIDTH=SIZE, --like TEMPLATE or "
                "--shape 'GLOB=SIZES'"
            )
        for glob, sizes in self.shape.items():
            if min(sizes, default=0) < 0:
                raise UsageError(f"shape {glob!r}: sizes cannot be negative, got {list(sizes)}")

    @abstractmethod
    def width_map(self, width: Width, size: int, coupled: Coupled) -> WidthMap:
        """Return what becomes of a width.

        Args:
            width: the width.
            size: how many units it is to have; another number than it has.
            coupled: what the variables hold for its units. Reading is for the functions that
                `Units` takes, which are called when values are asked for.

        Raises:
            PlanError: it cannot be done.
        """

    def refusal(self, width: Width, size: int) -> str | None:
        """Return why a width cannot get a size, as half a sentence; None where it can."""
        return None

    def apply(self, checkpoint: Checkpoint) -> Iterable[Variable]:
        return self._request(checkpoint).variables(require_exact=self.require_exact)

    def resizes(self, checkpoint: Checkpoint) -> Resizes:
        return self._request(checkpoint).resizes()

    def notes(self, checkpoint: Checkpoint) -> Iterable[str]:
        from converter.resize.exactness import renumbered

        request = self._request(checkpoint)
        return (*request.notes, *renumbered(request.resizes()))

    def _request(self, checkpoint: Checkpoint) -> Request:
        # Imported where something is resized: a command is to start at once.
        from converter.resize.request import Request, Wanted

        # A plan asks for the variables, the widths and the notes. The request holds the strategy,
        # so that no other one can have its id while the checkpoint knows it.
        return checkpoint.once(
            (Request, id(self)),
            lambda: Request(
                self,
                Wanted(self.resize, self.like, self.shape, self.layout, self.seed),
                checkpoint,
            ),
        )
