"""Slices of a partitioned variable: whether they tile it, and its regions put together of them."""

from __future__ import annotations

import math
import secrets
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from converter.errors import InputError
from converter.variable import Array, Region, shape_of

_PRIME = (1 << 61) - 1


def check_tiling(
    name: str, shape: Sequence[int], extents: Sequence[Region], file: Path | str
) -> None:
    """Check that slices cover a variable, and every element of it once.

    The time is linear in the number of slices, whatever their tiling.

    Args:
        name: the variable, for messages.
        shape: its full shape.
        extents: the region of each slice in the full variable, in any order.
        file: what to blame.

    Raises:
        InputError: a slice reaches outside of the variable, slices overlap, or they leave gaps.
    """
    for extent in extents:
        check_extent(name, shape, extent, file)
    held, total = sum(math.prod(shape_of(extent)) for extent in extents), math.prod(shape)
    if held < total:
        fault = f"leave gaps: they hold {held} of {total} elements"
    elif held > total:
        fault = f"overlap: they hold {held} elements of {total}"
    elif len(extents) > 1 and not _adds_up(shape, extents):
        fault = "overlap, and leave gaps elsewhere"
    else:
        return
    raise InputError(
        f"{file}: the slices of {name} {list(shape)} {fault}; leave it out (--drop), or find a "
        "better copy"
    )


def check_extent(name: str, shape: Sequence[int], extent: Region, file: Path | str) -> None:
    """Check that a slice lies within its variable.

    Raises:
        InputError: it has another rank, or reaches outside.
    """
    inside = len(extent) == len(shape) and all(
        0 <= s.start <= s.stop <= size for s, size in zip(extent, shape, strict=True)
    )
    if not inside:
        raise InputError(
            f"{file}: a slice of {name} {list(shape)} is [{notation(extent)}], which reaches "
            f"outside of it; the file is damaged"
        )


def notation(region: Region) -> str:
    """Return a region as people write it: `0:3, 5:7`."""
    return ", ".join(f"{s.start}:{s.stop}" for s in region)


def _adds_up(shape: Sequence[int], extents: Sequence[Region]) -> bool:
    # Boxes tile a box if and only if their volumes add up to its volume whatever the lengths of
    # the grid cells between their edges. The difference of both sides is a multilinear polynomial
    # in these lengths, so that one random choice of them modulo a prime tells, but for a chance
    # of rank / 2**61 (Schwartz and Zippel). Sorting and sweeping would be exact, and quadratic
    # for slices that somebody chose to make it so.
    places: list[defaultdict[int, int]] = [
        defaultdict(lambda: secrets.randbelow(_PRIME)) for _ in shape
    ]

    def volume(edges: Sequence[tuple[int, int]]) -> int:
        product = 1
        for place, (start, stop) in zip(places, edges, strict=True):
            product = product * (place[stop] - place[start]) % _PRIME
        return product

    parts = sum(volume([(s.start, s.stop) for s in extent]) for extent in extents)
    return parts % _PRIME == volume([(0, size) for size in shape])


def assemble(
    region: Region,
    dtype: np.dtype[np.generic],
    pieces: Sequence[tuple[Region, Callable[[Region], Array]]],
) -> Array:
    """Return a region of a variable, put together of the pieces that it touches.

    Args:
        region: what is wanted, in the coordinates of the full variable.
        dtype: of the elements.
        pieces: the region of each piece in the full variable, and what loads a region of the
            piece in the piece's own coordinates. They tile the variable.
    """
    values: Array | None = None
    for extent, load in pieces:
        shared = _intersection(extent, region)
        if shared is None:
            continue
        loaded = load(_relative(shared, extent))
        if shared == region:
            return loaded
        if values is None:
            values = np.empty(shape_of(region), dtype)
        values[_relative(shared, region)] = loaded
    return np.empty(shape_of(region), dtype) if values is None else values


def _intersection(a: Region, b: Region) -> Region | None:
    shared = []
    for one, other in zip(a, b, strict=True):
        start, stop = max(one.start, other.start), min(one.stop, other.stop)
        if start >= stop:
            return None
        shared.append(slice(start, stop))
    return tuple(shared)


def _relative(region: Region, origin: Region) -> Region:
    return tuple(
        slice(r.start - o.start, r.stop - o.start) for r, o in zip(region, origin, strict=True)
    )
