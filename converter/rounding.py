"""Values in another dtype, how many of them it could not hold, and differences across dtypes."""

from __future__ import annotations

import numpy as np

from converter.dtype import DType
from converter.variable import Array, regions

_PIECE_ITEMS = 1 << 16  # exact arithmetic takes several times eight bytes for each


def round_to(
    values: Array, dtype: DType, counts: dict[str, int], *, before: Array | None = None
) -> Array:
    """Return numbers rounded to the nearest that a float dtype holds, ties to even.

    Args:
        values: numbers of any dtype but complex ones.
        dtype: the float dtype.
        counts: gets the number of the elements that were finite and are not any more
            (`overflowed to infinity`, or `to NaN` in a dtype without infinities), and of the
            integers that became others (`rounded to another integer`).
        before: what `values` were computed from, element by element, where an overflow is to
            count from there.
    """
    assert dtype.numpy is not None
    rounded = np.empty(values.shape, dtype.numpy)
    for region in regions(values.shape, _PIECE_ITEMS):
        # For a scalar `...`: it stays an array of shape ().
        place = region or ...
        rounded[place] = _nearest(values[place], dtype)
        _count(values[place] if before is None else before[place], rounded[place], counts)
    return rounded


def subtract(a: Array, b: Array) -> Array:
    """Return a - b in float64 or complex128, exact where it is small: 0 only between equals.

    Args:
        a: int64, uint64, float64 or complex128, as `DType.wide` says.
        b: one of them, too.
    """
    (a_high, a_low), (b_high, b_low) = _split(a), _split(b)
    difference: Array = (a_high - b_high) + (a_low - b_low)
    return difference


def _wide(values: Array) -> Array:
    # Of numpy's own types, whose kinds are to be trusted.
    return values.astype(f"{values.dtype.kind}8")


def _split(values: Array) -> tuple[Array, Array]:
    """Return two parts that float64 holds exactly, of equal signs, and whose sum the values are."""
    if values.dtype.kind not in "iu":
        return values, np.zeros((), np.float64)
    low = np.fmod(values, 2048)
    return (values - low).astype(np.float64), low.astype(np.float64)


def _nearest(values: Array, dtype: DType) -> Array:
    # ml_dtypes rounds to float32 first, which makes ties of what is none.
    if dtype.name not in ("float16", "float32", "float64") and not np.can_cast(
        values.dtype, np.float32
    ):
        values = _rounded_to_odd(values)
    # numpy's warning would say a second time that values overflow.
    with np.errstate(over="ignore", invalid="ignore"):
        rounded: Array = values.astype(dtype.numpy)
    return rounded


def _rounded_to_odd(values: Array) -> Array:
    """Return float32 from which rounding to fewer bits gives what it gives from the values.

    What float32 does not hold becomes the one of its two neighbours whose last bit is 1, so that
    it is never a tie, and on the right side of every tie.

    References:
        Boldo, Melquiond: Emulation of FMA and correctly rounded sums: proved algorithms using
        rounding to odd (IEEE Transactions on Computers, 2008).
    """
    exact = _wide(values)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        near = exact.astype(np.float32)
        # Of (near - exact): its sign, which is that of 0 only where they are equal.
        error = subtract(near.astype(np.float64), exact)
    inexact = np.isfinite(near) & (error != 0)
    away = inexact & ((error > 0) == (near > 0)) & (near != 0)
    bits = near.view(np.uint32)
    bits -= away.astype(np.uint32)
    bits |= inexact.astype(np.uint32)
    return near


def _count(before: Array, after: Array, counts: dict[str, int]) -> None:
    finite = np.isfinite(after)
    found: dict[str, Array] = {}
    if not finite.all():
        lost = np.isfinite(before) & ~finite
        found["overflowed to infinity"] = lost & np.isinf(after)
        found["overflowed to NaN"] = lost & np.isnan(after)
    if np.issubdtype(before.dtype, np.integer):
        with np.errstate(invalid="ignore"):
            changed = subtract(after.astype(np.float64), _wide(before)) != 0
        found["rounded to another integer"] = finite & changed
    for what, where in found.items():
        if number := int(where.sum()):
            counts[what] = counts.get(what, 0) + number
