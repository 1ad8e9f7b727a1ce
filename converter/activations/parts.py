"""Puts together what was measured of a variable's units in several tensors, one part in each."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import fields

import numpy as np

from converter.activations.moments import Moments
from converter.structure.layers.cuts import Cut


def are_whole(cuts: Collection[Cut]) -> bool:
    """Whether parts make up all units, each once."""
    end = 0
    for cut in sorted(cuts):
        if cut.start != end:
            return False
        end += cut.size
    return {cut.total for cut in cuts} == {end}


def joined(parts: Mapping[Cut, Moments]) -> Moments | str:
    """Return the moments of all units, without a covariance, or why they cannot be told.

    What is between units of two parts was not measured, as these are in different tensors.

    Args:
        parts: which units, and their moments; all of one total.
    """
    ordered = sorted(parts)
    (total,) = {cut.total for cut in ordered}
    if not are_whole(ordered):
        return f"{sum(cut.size for cut in ordered)} of its {total} units ran"
    counts = sorted({moments.count for moments in parts.values()})
    if len(counts) > 1:
        return f"its parts have {counts[0]:,} to {counts[-1]:,} observations each"
    result = Moments.of(total)
    for field in fields(Moments):
        values = [getattr(parts[cut], field.name) for cut in ordered]
        if all(isinstance(value, np.ndarray) and value.ndim == 1 for value in values):
            setattr(result, field.name, np.concatenate(values))
    result.count = counts[0]
    return result
