"""How two checkpoints differ, of whatever formats they are, read block by block."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from converter.dtype import STRING, VARIANT, DType
from converter.rounding import subtract
from converter.variable import Array, Variable, regions, whole

_BLOCK_ITEMS = 1 << 18  # where they differ, the arithmetic takes several times eight bytes for each

Progress = Callable[[int], None]
"""Called with the number of bytes of each block that was read, of both sides together."""


def _ignore(count: int) -> None:
    pass


@dataclass(frozen=True, slots=True)
class Comparison:
    """One name in two checkpoints.

    Attributes:
        name: the name.
        a: the variable of the first checkpoint; None where it has none.
        b: the variable of the second.
        differing: the number of elements that differ; None where they could not be compared.
            Elements of one dtype are equal when their bits are, those of two dtypes when their
            values are (NaN equals NaN then).
        largest: the largest absolute difference; infinite where one side is NaN or infinite;
            None for what is no number, and where nothing differs.
        at: index of the first element with the largest difference, or of the first that differs;
            None where nothing does, and for variants.
        values: the values there, as Python has them: numbers, booleans or bytes.
    """

    name: str
    a: Variable | None
    b: Variable | None
    differing: int | None = None
    largest: float | None = None
    at: tuple[int, ...] | None = None
    values: tuple[object, ...] = ()

    @property
    def differences(self) -> tuple[str, ...]:
        """What differs: `only in A`, `only in B`, or any of `dtype`, `shape`, `values`."""
        if self.a is None or self.b is None:
            return ("only in A",) if self.b is None else ("only in B",)
        found = {
            "dtype": self.a.dtype is not self.b.dtype,
            "shape": self.a.shape != self.b.shape,
            "values": bool(self.differing),
        }
        return tuple(what for what, differs in found.items() if differs)


def compare(
    a: Mapping[str, Variable], b: Mapping[str, Variable], *, progress: Progress = _ignore
) -> Iterator[Comparison]:
    """Compare the variables of two checkpoints, equal ones included.

    Yields:
        One comparison for each name: those of `a` in its order, then those that only `b` has.

    Raises:
        InputError: a value cannot be read, or differs from the checksum that its file records.
    """
    for name in dict.fromkeys(itertools.chain(a, b)):
        one, other = a.get(name), b.get(name)
        if one is None or other is None:
            yield Comparison(name, one, other)
        else:
            yield _compare(one, other, progress)


def _compare(a: Variable, b: Variable, progress: Progress) -> Comparison:
    if a.dtype is VARIANT and b.dtype is VARIANT:
        # Opaque bytes, whose number of elements says nothing.
        return Comparison(a.name, a, b, int(a.read().tobytes() != b.read().tobytes()))
    numeric = a.dtype.itemsize and b.dtype.itemsize
    if a.shape != b.shape or not (numeric or a.dtype is b.dtype):
        return Comparison(a.name, a, b)
    result = Comparison(a.name, a, b, 0)
    for region in regions(a.shape, _BLOCK_ITEMS) if numeric else [whole(a.shape)]:
        one, other = a.read(region), b.read(region)
        progress(one.nbytes + other.nbytes)
        count, worst, largest = _compare_blocks(a, one.reshape(-1), b, other.reshape(-1))
        if count:
            result = replace(result, differing=(result.differing or 0) + count)
        if count and (result.at is None or (largest or 0) > (result.largest or 0)):
            inside = np.unravel_index(worst, one.shape)
            at = tuple(part.start + int(i) for part, i in zip(region, inside, strict=True))
            values = (_value(a.dtype, one[inside]), _value(b.dtype, other[inside]))
            result = replace(result, largest=largest, at=at, values=values)
    return result


def _compare_blocks(
    a: Variable, a_values: Array, b: Variable, b_values: Array
) -> tuple[int, int, float | None]:
    """Return how many elements differ, the place of the worst one, and its difference."""
    if a.dtype is b.dtype:
        places = np.flatnonzero(_bits_differ(a_values, b_values))
    else:
        wide = a_values.astype(a.dtype.wide), b_values.astype(b.dtype.wide)
        places = np.flatnonzero(_values_differ(*wide))
    if not places.size:
        return 0, 0, None
    if not (a.dtype.is_number and b.dtype.is_number):
        return places.size, int(places[0]), None
    distances = _distances(
        a_values[places].astype(a.dtype.wide), b_values[places].astype(b.dtype.wide)
    )
    return places.size, int(places[distances.argmax()]), float(distances.max())


def _value(dtype: DType, value: Any) -> object:
    if dtype is STRING:
        return value
    return value.astype(dtype.wide if dtype.is_number else bool).item()


def _bits_differ(a: Array, b: Array) -> Array:
    """Tell of each element whether it differs; for equal arrays False alone will do."""
    if a.dtype.hasobject:
        return np.array([one != other for one, other in zip(a, b, strict=True)], bool)
    x, y = a.view(np.uint8), b.view(np.uint8)
    if np.array_equal(x, y):
        return np.zeros(1, bool)
    differs: Array = (x != y).reshape(a.size, -1).any(axis=1)
    return differs


def _values_differ(a: Array, b: Array) -> Array:
    differs: Array
    if a.dtype != b.dtype and (a.dtype.kind in "iu" or b.dtype.kind in "iu"):
        # numpy would compare in float64, where 2**53 and 2**53 + 1 are equal.
        with np.errstate(invalid="ignore"):
            differs = subtract(a, b) != 0
    else:
        differs = (a != b) & ~(np.isnan(a) & np.isnan(b))
    return differs


def _distances(a: Array, b: Array) -> Array:
    """Return the absolute differences of elements of wide types, as float64 without NaN."""
    with np.errstate(over="ignore", invalid="ignore"):
        distances: Array = np.abs(subtract(a, b))
    distances[np.isnan(distances)] = np.inf
    distances[np.isnan(a) & np.isnan(b)] = 0
    return distances
