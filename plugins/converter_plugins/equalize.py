"""Evens out the ranges of weights between layers, unit by unit."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from converter import (
    InputError,
    NothingToDoError,
    PlanError,
    Strategy,
    UsageError,
    hookimpl,
    option,
)
from converter.counted import agree, count

if TYPE_CHECKING:
    from converter import Checkpoint, ConverterError, Variable
    from converter.scaling.equal import Equalised
    from converter.structure.structure import Structure

_FEW = 3


@dataclass(frozen=True)
class Equalize(Strategy):
    """Give what makes each unit and what takes it equal ranges; the outputs stay.

    All that produces a unit is multiplied by a positive factor, and all that consumes it is divided
    by that, so that the largest entries of both sides are equal. Widths are gone through until all
    are settled. That keeps the outputs where only linear ops and ReLU-like ones touch a width; no
    other one is changed. A batch normalisation takes the factors in its gains and offsets.

    Example:
        convert ckpt model.ckpt --plugin equalize -o out/

    References:
        Nagel et al., Data-free quantization through weight equalization and bias correction, 2019.
    """

    name: ClassVar[str] = "equalize"
    widths: tuple[str, ...] = option(
        (),
        help="only these widths, by name or glob; one that does not allow it is refused",
        metavar="WIDTH",
    )
    limit: float = option(1e6, help="the largest factor of a unit, and one over the smallest")
    layout: Path | None = option(
        None, help="which axes share a width, as inspect --widths -o writes it", shared=True
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 < self.limit < math.inf:
            raise UsageError(f"limit must be a number above 1, got {self.limit}")

    def apply(self, checkpoint: Checkpoint) -> Iterable[Variable]:
        from converter.scaling.multiply import multiply

        structure = self._structure(checkpoint)
        chosen, _ = self._chosen(checkpoint, structure)
        factors = self._equalised(checkpoint, structure, chosen).factors()
        return multiply(checkpoint, factors, is_kept=True, follows=structure.follows)

    def notes(self, checkpoint: Checkpoint) -> Iterable[str]:
        structure = self._structure(checkpoint)
        chosen, left = self._chosen(checkpoint, structure)
        few = ", ".join(chosen[:_FEW]) + (f" and {len(chosen) - _FEW} more" * (len(chosen) > _FEW))
        kept = self._equalised(checkpoint, structure, chosen).kept
        yield f"{kept}; widths that are equalised: {few}"
        for name, reason in left[:_FEW]:
            yield f"{name} stays: {reason}"
        if len(left) > _FEW:
            more = count(len(left) - _FEW, "more width")
            stay = agree(len(left) - _FEW, "stays", "stay")
            yield f"{more} {stay}; --equalize-widths NAME tells why"

    def _equalised(
        self, checkpoint: Checkpoint, structure: Structure, chosen: Sequence[str]
    ) -> Equalised:
        from converter.scaling.equal import Equalised
        from converter.scaling.normed import normed

        kernels = normed(checkpoint, structure)
        return Equalised(checkpoint, structure, chosen, kernels, self.limit)

    def _structure(self, checkpoint: Checkpoint) -> Structure:
        from converter.structure.infer import structure_of
        from converter.structure.layout import read_layout

        return structure_of(checkpoint, None if self.layout is None else read_layout(self.layout))

    def _chosen(
        self, checkpoint: Checkpoint, structure: Structure
    ) -> tuple[list[str], list[tuple[str, str]]]:
        """Return the widths that are equalised, and those that are not, with the reason."""
        from converter.scaling.widths import refusal
        from converter.structure.choose import named

        wanted = dict.fromkeys(
            width.name for request in self.widths for width in named(structure, request)
        )
        chosen, left = [], []
        for width in structure.widths.values():
            if wanted and width.name not in wanted:
                continue
            reason = refusal(structure, checkpoint, width)
            if reason is None:
                chosen.append(width.name)
                continue
            if width.name in wanted:
                raise PlanError(
                    f"{width.name}: equalize would change the outputs: {reason}; choose another "
                    f"width"
                )
            if width.produced_by and width.consumed_by:
                # What comes from outside, and outputs, nobody expects to be scaled.
                left.append((width.name, reason))
        if not chosen:
            raise _nothing(checkpoint, structure, left)
        return chosen, left


def _nothing(
    checkpoint: Checkpoint, structure: Structure, left: Sequence[tuple[str, str]]
) -> ConverterError:
    """Return the error of a checkpoint none of whose widths can be equalised."""
    from converter.structure.structure import without_graph

    name, reason = left[0] if left else (str(checkpoint.path), "it has no inner widths")
    more = f" (and {len(left) - 1} more)" if len(left) > 1 else ""
    if structure.findings is None:
        why = f" ({name}{more}: {reason})" if left else ""
        return InputError(
            without_graph(
                str(checkpoint.path), f"names alone tell of no width that allows factors{why}"
            )
        )
    # What an op hides could be equalised for all that is known.
    is_known = all(structure.widths[name].symmetry != "opaque" for name, _ in left)
    kind = NothingToDoError if is_known else PlanError
    return kind(f"{name}{more}: no factors of its units keep the outputs: {reason}")


@hookimpl
def converter_strategies() -> Iterable[type[Strategy]]:
    yield Equalize
