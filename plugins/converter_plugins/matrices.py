"""The matrices of `project`: drawn, computed from what makes the units, or read from files."""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.lib import format as npy

from converter import Array, Coupled, InputError, Matrix, PlanError, open_checkpoint

if TYPE_CHECKING:
    from converter import Consumer
    from converter_plugins.activations import Activations

_UNREADABLE = (OSError, ValueError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)
_HEADER_BYTES = 1 << 14


def gaussian(coupled: Coupled, seed: int, shape: tuple[int, int]) -> Array:
    """Return random numbers of variance 1/N, independent of one another."""
    return coupled.random(seed).normal(0, shape[1] ** -0.5, shape)


def orthonormal(coupled: Coupled, seed: int, shape: tuple[int, int]) -> Array:
    """Return a matrix with orthonormal rows or columns, whichever are fewer, drawn evenly."""
    tall = (max(shape), min(shape))
    q, r = np.linalg.qr(coupled.random(seed).standard_normal(tall))
    # Without it the signs would not be those of chance.
    q *= np.where(np.diagonal(r) < 0, -1, 1)
    found: Array = q if shape == tall else q.T
    return found


def principal(coupled: Coupled, size: int) -> Array:
    """Return the directions (n, size) in which what makes the units is largest, by its squares."""
    squares = np.zeros((coupled.size, coupled.size))
    for rows in coupled.rows("produce"):
        squares += rows.T @ rows
    return largest(squares, size)


def components(activations: Activations, consumers: Sequence[Consumer], size: int) -> Array:
    """Return the directions (n, size) in which units are largest on data, by their squares.

    Means count, as no bias takes them. What is consumed in several places counts in each.

    Args:
        activations: the statistics.
        consumers: what consumes the units.
        size: how many directions.
    """
    squares = np.sum(
        [
            products[np.ix_(own, own)]
            for consumer in consumers
            for products in (activations.moments(consumer.variable.name, centred=False),)
            for own in consumer.places
        ],
        axis=0,
    )
    return largest(squares, size)


def largest(squares: Array, size: int) -> Array:
    """Return the eigenvectors (n, size) of the largest eigenvalues of a symmetric matrix."""
    _, directions = np.linalg.eigh(squares)
    found: Array = directions[:, ::-1][:, :size].copy()
    # Of a direction and its opposite the one whose largest entry is positive.
    signs = np.sign(found[np.abs(found).argmax(axis=0), np.arange(size)])
    found *= signs
    return found


def undoing(produce: Matrix) -> Matrix:
    """Return the pseudo-inverse."""
    old, new = produce.shape
    return Matrix((new, old), lambda: np.linalg.pinv(produce.values))


class Matrices(NamedTuple):
    """What a file says of one width.

    Attributes:
        produce: (old, new).
        consume: (new, old); None where the file has none.
    """

    produce: Array
    consume: Array | None


def read_matrices(path: Path, width: str, shape: tuple[int, int], *, transposed: bool) -> Matrices:
    """Return the matrices of a width.

    Args:
        path: `.npy` with one matrix; or `.npz`, or whatever `open_checkpoint` takes, with `produce`
            and perhaps `consume`, or `WIDTH/produce` and `WIDTH/consume` for each of several.
        width: its name.
        shape: the old and the new size.
        transposed: whether the file holds them the other way round.

    Raises:
        InputError: the file is unreadable or damaged.
        PlanError: it has no matrix of that width, or one of another shape.
    """
    if path.suffix == ".npy":
        return Matrices(_oriented(path, "it", _npy(path, shape), shape, transposed), None)
    found = _entries(path, width, shape)
    if "produce" not in found:
        raise PlanError(f"{path}: it has neither produce nor {width}/produce; name the matrix so")
    back = (shape[1], shape[0])
    consume = found.get("consume")
    return Matrices(
        _oriented(path, "produce", found["produce"], shape, transposed),
        None if consume is None else _oriented(path, "consume", consume, back, transposed),
    )


def _oriented(
    path: Path, key: str, values: Array, shape: tuple[int, int], transposed: bool
) -> Array:
    wanted = shape[::-1] if transposed else shape
    if values.shape != wanted:
        advice = "give it that shape"
        if values.shape == wanted[::-1]:
            advice = f"{'leave out' if transposed else 'use'} --project-transposed"
        raise PlanError(
            f"{path}: {key} is {list(values.shape)} where {list(wanted)} is needed; {advice}"
        )
    if not np.isfinite(values).all():
        raise PlanError(f"{path}: {key} has NaN or infinities, which no matrix can have")
    return values.T if transposed else values


def _entries(path: Path, width: str, shape: tuple[int, int]) -> Mapping[str, Array]:
    """Return what the file has for the width, by `produce` and `consume`."""
    if path.suffix == ".npz":
        keys = set(_members(path))
    else:
        checkpoint = open_checkpoint(path)
        keys = set(checkpoint)
    found = {}
    for use in ("produce", "consume"):
        key = next((k for k in (f"{width}/{use}", use) if k in keys), None)
        if key is None:
            continue
        if path.suffix == ".npz":
            found[use] = _member(path, key, shape)
        else:
            variable = checkpoint[key]
            if not variable.dtype.is_float or sorted(variable.shape) != sorted(shape):
                raise PlanError(
                    f"{path}: {key} is {variable.dtype} {list(variable.shape)}, where numbers "
                    f"{list(shape)} are needed"
                )
            found[use] = variable.read().astype(np.float64)
    return found


def _members(path: Path) -> Iterator[str]:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except _UNREADABLE as error:
        raise InputError(f"{path}: it is no readable .npz file ({error})") from None
    return (name.removesuffix(".npy") for name in names)


def _member(path: Path, key: str, shape: tuple[int, int]) -> Array:
    try:
        with zipfile.ZipFile(path) as archive, archive.open(f"{key}.npy") as file:
            # No more than the matrix can have: what a header claims is not believed.
            data = file.read(_most_bytes(shape) + 1)
        return _array(data)
    except _UNREADABLE as error:
        raise InputError(f"{path}: {key} cannot be read ({error})") from None


def _npy(path: Path, shape: tuple[int, int]) -> Array:
    try:
        with path.open("rb") as file:
            return _array(file.read(_most_bytes(shape) + 1))
    except _UNREADABLE as error:
        why = getattr(error, "strerror", None) or error
        raise InputError(f"{path}: it is no readable .npy file ({why})") from None


def _most_bytes(shape: tuple[int, int]) -> int:
    return _HEADER_BYTES + 16 * shape[0] * shape[1]


def _array(data: bytes) -> Array:
    """Return the array that the bytes of an .npy file hold, in float64."""
    file = io.BytesIO(data)
    version = npy.read_magic(file)
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    sizes, by_columns, dtype = read(file)
    if dtype.kind not in "fiu" or dtype.itemsize > 8:
        raise ValueError(f"{dtype} is no number")
    rest = data[file.tell() :]
    if len(sizes) != 2 or len(rest) != sizes[0] * sizes[1] * dtype.itemsize:
        raise ValueError(f"{list(sizes)} of {dtype} is not what it holds")
    values = np.frombuffer(rest, dtype)
    return values.reshape(sizes, order="F" if by_columns else "C").astype(np.float64)
