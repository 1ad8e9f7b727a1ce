"""How far what one model gives is from what another one gives."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from converter.variable import Array

TOLERANCE = 1e-5
"""Of the scale of an output: what float32 loses when it adds in another order."""

Distribution = Literal["logits", "probabilities"]
"""What a softmax is taken of along the last axis, or has been."""


class Likeness(NamedTuple):
    """How much an output is like that of another model; None for what does not say anything of it.

    Attributes:
        relative_error: the norm of the difference over the norm of the first; infinite where only
            one of two values is finite.
        cosine: of the angle between both, all entries together.
        agreement: the share of positions whose largest entry along the last axis is the same.
        divergence: of the second's distribution from the first's (Kullback and Leibler's), in nats,
            the mean over all positions; of an output that is one.
    """

    relative_error: float | None = None
    cosine: float | None = None
    agreement: float | None = None
    divergence: float | None = None


UNKNOWN = Likeness()


@dataclass(frozen=True, slots=True)
class Compared:
    """One output of two models.

    Attributes:
        name: the tensor.
        dtype: numpy's name of its dtype.
        shape: of the first.
        largest: the largest absolute difference; infinite where only one is NaN, or infinite. Of
            what is no float, the number of elements that differ.
        scale: the largest finite absolute value of the first. Of what is no float, the number of
            elements.
        nans: how many values are NaN, in the first and in the second.
        likeness: how much the second is like the first, all entries together.
        passed: whether it is within the tolerance; None where it cannot be compared.
        note: what else is to be said.
        multiple: of the first, with which the second is compared.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    largest: float
    scale: float
    nans: tuple[int, int]
    likeness: Likeness
    passed: bool | None
    note: str = ""
    multiple: float = 1.0

    @property
    def is_float(self) -> bool:
        """Whether it is compared by differences, and not by counting."""
        return "float" in self.dtype or "complex" in self.dtype

    @property
    def error(self) -> float:
        """The largest difference as a part of the scale."""
        if self.largest == 0:
            return 0.0
        return self.largest / self.scale if self.scale else float("inf")


def compare(
    name: str,
    a: Array,
    b: Array,
    tolerance: float = TOLERANCE,
    distribution: Distribution | None = None,
    multiple: float = 1.0,
) -> Compared:
    """Compare what two models give for one output.

    NaN is equal to NaN and an infinity to itself, but an output of nothing else fails: it would
    prove nothing.

    Args:
        name: of the output.
        a: what the first gives.
        b: what the second gives.
        tolerance: the largest difference that passes, as a part of the scale.
        distribution: which the last axis is one of, if it is.
        multiple: of `a`, which `b` is to be, if these are floats.
    """
    dtype, shape = str(a.dtype), a.shape
    if a.shape != b.shape:
        note = f"{list(a.shape)} and {list(b.shape)}"
        return Compared(name, dtype, shape, np.inf, 0.0, (0, 0), UNKNOWN, None, note)
    if a.size == 0:
        return Compared(name, dtype, shape, 0.0, 0.0, (0, 0), UNKNOWN, None, "empty")
    if not is_float(a) or not is_float(b):
        differing = int(np.count_nonzero(a != b))
        passed = differing <= tolerance * a.size
        scale = float(a.size)
        return Compared(name, dtype, shape, float(differing), scale, (0, 0), UNKNOWN, passed)
    x, y = wide(a) * multiple, wide(b)
    nans = int(np.isnan(x).sum()), int(np.isnan(y).sum())
    finite = np.isfinite(x)
    scale = float(np.abs(x[finite]).max(initial=0))
    largest = _largest(x, y)
    passed = bool(largest <= tolerance * scale) and bool(finite.any())
    note = "" if finite.any() else "no finite value"
    if finite.all() and scale == 0:
        note = "zeros only"
    found = likeness(x, y, distribution)
    return Compared(name, dtype, shape, largest, scale, nans, found, passed, note, multiple)


def is_float(values: Array) -> bool:
    """Whether these are real or complex numbers."""
    # By name: bfloat16 is no float to numpy.
    return "float" in values.dtype.name or "complex" in values.dtype.name


def wide(values: Array) -> Array:
    """Return floats in the dtype that they are compared in."""
    return values.astype(np.complex128 if values.dtype.kind == "c" else np.float64)


def likeness(x: Array, y: Array, distribution: Distribution | None = None) -> Likeness:
    """Return how much `y` is like `x`: float64 or complex128 of one shape, not empty."""
    same = _same(x, y)
    error, cosine = _apart(x, y, same)
    has_choice = x.ndim > 1 and x.shape[-1] > 1 and x.dtype.kind != "c"
    agreement = float((x.argmax(-1) == y.argmax(-1)).mean()) if has_choice else None
    divergence = None
    if distribution is not None and has_choice:
        divergence = _divergence(x, y, same, distribution)
    return Likeness(error, cosine, agreement, divergence)


def mean(found: Iterable[Likeness]) -> Likeness:
    """Return the mean of each figure, over those that have it."""
    columns = zip(*found, strict=True)
    known = ([value for value in column if value is not None] for column in columns)
    return Likeness(*(float(np.mean(values)) if values else None for values in known))


def _same(x: Array, y: Array) -> Array:
    # Of scalars numpy gives a number, which has no entries to be set.
    return np.asarray((x == y) | (np.isnan(x) & np.isnan(y)))


def _largest(x: Array, y: Array) -> float:
    with np.errstate(invalid="ignore", over="ignore"):
        differences = np.asarray(np.abs(x - y))
    differences[_same(x, y)] = 0
    differences[np.isnan(differences)] = np.inf
    return float(differences.max())


def _apart(x: Array, y: Array, same: Array) -> tuple[float, float | None]:
    """Return the relative error and the cosine, of what is finite in both."""
    if same.all():
        return 0.0, 1.0
    finite = np.isfinite(x) & np.isfinite(y)
    if not (finite | same).all():
        return float("inf"), None
    x, y = x[finite], y[finite]
    # Squares of large numbers are infinite.
    x, y = x / (np.abs(x).max() or 1.0), y / (np.abs(x).max() or 1.0)
    first, second = float(np.linalg.norm(x)), float(np.linalg.norm(y))
    error = float(np.linalg.norm(x - y)) / first if first else float("inf")
    if not first or not second:
        return error, None
    return error, float(np.clip(np.vdot(x, y).real / first / second, -1, 1))


def _divergence(x: Array, y: Array, same: Array, kind: Distribution) -> float:
    with np.errstate(all="ignore"):
        p, q = _logarithms(x, kind), _logarithms(y, kind)
        likely = np.exp(p)
        terms = np.where(likely > 0, likely * (p - q), 0.0)
        # NaN stays NaN here, and rounding can make less than nothing.
        found = np.maximum(np.where(np.isnan(p), np.nan, terms).sum(axis=-1), 0.0)
    found = np.where(np.isnan(found), np.inf, found)
    return float(np.where(same.all(axis=-1), 0.0, found).mean())


def _logarithms(values: Array, kind: Distribution) -> Array:
    """Return the logarithms of probabilities that sum to 1."""
    if kind == "probabilities":
        # Some classes may be compared only.
        found: Array = np.log(values) - np.log(values.sum(axis=-1, keepdims=True))
    else:
        values = values - values.max(axis=-1, keepdims=True)
        found = values - np.log(np.exp(values).sum(axis=-1, keepdims=True))
    return found
