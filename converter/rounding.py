"""Values in another dtype, and how many of them it could not hold."""

from __future__ import annotations

import numpy as np

from converter.dtype import DType
from converter.variable import Array


def round_to(values: Array, dtype: DType, counts: dict[str, int]) -> Array:
    """Return numbers rounded to the nearest that a float dtype holds; what overflows is counted."""
    assert dtype.numpy is not None
    # numpy's warning would say a second time that values overflow.
    with np.errstate(over="ignore", invalid="ignore"):
        rounded = values.astype(dtype.numpy)
    count_overflows(values, rounded, counts)
    return rounded


def count_overflows(before: Array, after: Array, counts: dict[str, int]) -> None:
    """Count the elements that were finite and are not any more.

    They are `overflowed to infinity`, or `to NaN` in a dtype without infinities.
    """
    lost = ~np.isfinite(after)
    if not lost.any():
        return
    lost &= np.isfinite(before)
    for what, where in (("infinity", np.isinf(after)), ("NaN", np.isnan(after))):
        if number := int((lost & where).sum()):
            label = f"overflowed to {what}"
            counts[label] = counts.get(label, 0) + number
