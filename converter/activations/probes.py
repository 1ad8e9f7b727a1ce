"""The tensors whose values are activations: which are measured, and for which variables."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from converter.forward.graph import Tensor

Side = Literal["produced", "consumed"]


@dataclass(frozen=True, slots=True)
class Probe:
    """A tensor whose values are the activations of units.

    Attributes:
        tensor: which. A node of a function's body has the names of the calls before its own, as
            `converter.structure` names it.
        axis: of the units; negative ones are counted from the end.
        size: how many units there are.
        mask: a bool tensor [batch] of the same frame, which says what rows count; None for all.
        keeps: the value of the mask for which a row counts.
        for_: the variables, and their sides, that it is measured for.
    """

    tensor: Tensor
    axis: int
    size: int
    mask: Tensor | None
    keeps: bool
    for_: tuple[tuple[str, Side], ...]
