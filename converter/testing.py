"""The contract of a strategy as a test, for the authors of plugins.

from converter.testing import check_resizer, check_strategy

def test_double() -> None:
    check_strategy(Double(factor=3.0))

def test_rotate() -> None:
    check_resizer(lambda resize: Rotate(resize=resize))
"""

from __future__ import annotations

import itertools
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO

import numpy as np

from converter.checkpoint import Checkpoint
from converter.dtype import BY_NAME, DType
from converter.errors import ConverterError
from converter.resizer import Resizer
from converter.strategy import Strategy, build, options, values_of
from converter.variable import Array, Region, Stored, Variable, regions, whole

NAME = "scope/variable"
"""The name of the variable in the checkpoints of `check_strategy`."""

SHAPES: tuple[tuple[int, ...], ...] = ((), (0, 4), (3,), (3, 4), (2, 3, 4))
DTYPES = ("float32", "float64", "float16", "bfloat16", "int64", "int8", "bool", "string")
LAYOUTS: Mapping[str, Callable[[Array], Array]] = {
    "C-ordered": lambda values: values.copy(order="C"),
    "Fortran-ordered": lambda values: values.copy(order="F"),
    "sliced": lambda values: np.repeat(values, 2, axis=-1)[..., ::2] if values.ndim else values,
    "reversed": lambda values: values[..., ::-1].copy()[..., ::-1] if values.ndim else values,
}


def check_strategy(strategy: Strategy | Callable[[Checkpoint], Strategy]) -> None:
    """Check that a strategy keeps the contract, on variables of many shapes, dtypes and layouts.

    Planning reads nothing; what is read has the planned shape and dtype; two runs give the same;
    the input is not modified; a region holds what the whole holds there; what is still `stored`
    somewhere has the values of those bytes; the options survive their way through a recipe. A
    strategy may refuse a variable, but not all of them.

    Args:
        strategy: the strategy, or what makes it for a checkpoint of one variable called `NAME`,
            where its options depend on the shape.

    Raises:
        AssertionError: it does not; the message says which variable it was and what happened.
    """
    refusals = []
    checked = 0
    if isinstance(strategy, Strategy):
        try:
            _check_options(strategy)
        except ConverterError as error:
            raise AssertionError(f"its options cannot be: {error}") from error
    with tempfile.NamedTemporaryFile(buffering=0) as file:
        for dtype, shape, layout in itertools.product(DTYPES, SHAPES, LAYOUTS):
            values = _values(BY_NAME[dtype], shape, layout)
            where = f"a {layout} {dtype} variable of shape {list(shape)}"
            try:
                _check_one(strategy, values, BY_NAME[dtype], file, where)
            except ConverterError as error:
                refusals.append(f"{where}: {error}")
            else:
                checked += 1
    if not checked:
        raise AssertionError(f"every variable was refused; {refusals[0]}")


def check_resizer(make: Callable[[Mapping[str, int]], Resizer]) -> None:
    """Check a resizing strategy on a small model, whose widths it is asked to grow and to cut.

    Everything that has a width gets the new size, slots and averages too; planning reads nothing;
    two runs and all regions give the same; the options survive their way through a recipe; and
    what the plan calls exact computes the same as before. A resizer may refuse a width or a size,
    but not all of them.

    Args:
        make: makes the strategy for what would be `--resize`: widths and their new sizes.

    Raises:
        AssertionError: it does not; the message says which width it was and what happened.
    """
    from converter import small_model

    refusals = []
    checked = 0
    for width, size in itertools.product(small_model.WIDTHS, small_model.SIZES):
        where = f"{width} of {small_model.WIDTHS[width]} units, made {size}"
        loaded: list[str] = []
        # One for each run: a checkpoint keeps what a strategy was asked to do with it.
        checkpoints = [small_model.checkpoint(loaded) for _ in range(2)]
        try:
            strategy = make({width: size})
            _check_options(strategy)
            results = [_resized(strategy, one, loaded, where) for one in checkpoints]
        except ConverterError as error:
            refusals.append(f"{where}: {error}")
            continue
        checked += 1
        first, second = results
        if not all(_same(first[n], second[n]) for n in first):
            raise AssertionError(f"{where}: a second run gave another result")
        for name, shape in small_model.shapes({width: size}).items():
            if name not in first or first[name].shape != shape:
                found = first[name].shape if name in first else None
                raise AssertionError(f"{where}: {name} is {found}, where {shape} is wanted")
        (resized,) = strategy.resizes(checkpoints[0]).widths
        difference = small_model.difference(first)
        if resized.verdict.exact and difference > small_model.TOLERANCE:
            raise AssertionError(
                f"{where}: it is called exact ({resized.verdict.why}), and the outputs differ by "
                f"{difference:.3g}"
            )
    if not checked:
        raise AssertionError(f"every width was refused; {refusals[0]}")


def _resized(
    strategy: Resizer, checkpoint: Checkpoint, loaded: list[str], where: str
) -> dict[str, Array]:
    loaded.clear()
    result = checkpoint.derive(strategy.apply(checkpoint))
    list(strategy.notes(checkpoint))
    strategy.resizes(checkpoint)
    if loaded:
        raise AssertionError(f"{where}: the plan read {loaded[0]}; read when values are asked for")
    return {name: _read(variable, where) for name, variable in result.items()}


def _values(dtype: DType, shape: tuple[int, ...], layout: str) -> Array:
    count = int(np.prod(shape))
    # Small numbers of both signs, zero among them, that every dtype holds exactly.
    numbers = (np.arange(count) * 7) % 11 - 5
    flat = (
        np.array([b"text %d" % n for n in numbers], object)
        if dtype.name == "string"
        else numbers.astype(dtype.numpy)
    )
    return LAYOUTS[layout](flat.reshape(shape))


def _check_one(
    strategy: Strategy | Callable[[Checkpoint], Strategy],
    values: Array,
    dtype: DType,
    file: IO[bytes],
    where: str,
) -> None:
    before = values.copy()
    loaded: list[Region] = []

    def load(region: Region) -> Array:
        loaded.append(region)
        return values[region or ...]

    stored = None
    if dtype.name != "string":
        stored = Stored(Path(file.name), file.tell(), file.write(values.tobytes()))
    variable = Variable(NAME, dtype, values.shape, load, (NAME,), stored)
    checkpoints = [Checkpoint([variable]) for _ in range(2)]
    if isinstance(strategy, Strategy):
        made = strategy
    else:
        made = strategy(checkpoints[0])
        _check_options(made)
    results = []
    for checkpoint in checkpoints:
        result = checkpoint.derive(made.apply(checkpoint))
        list(made.notes(checkpoint))
        if loaded:
            raise AssertionError(f"{where}: apply read values; load them when they are asked for")
        results.append({name: _read(variable, where) for name, variable in result.items()})
        loaded.clear()
    first, second = results
    if list(first) != list(second) or not all(_same(first[n], second[n]) for n in first):
        raise AssertionError(f"{where}: a second run gave another result")
    if not _same(values, before):
        raise AssertionError(f"{where}: the values of the source were modified")


def _read(variable: Variable, where: str) -> Array:
    """Return the values of a result, after comparing them with what its regions hold."""
    if not isinstance(variable.name, str) or not all(type(size) is int for size in variable.shape):
        raise AssertionError(f"{where}: {variable.name!r} {variable.shape!r} is no name and shape")
    try:
        values = variable.read()
        for region in _regions(variable):
            if not _same(variable.read(region), values[region or ...]):
                raise AssertionError(
                    f"{where}: {variable.name} holds something else when only {region} is read"
                )
    except ConverterError as error:
        raise AssertionError(f"{where}: refused only while values were read: {error}") from error
    # Strings are stored with their lengths.
    stored = variable.stored if variable.dtype.itemsize else None
    if stored is not None and _bytes_of(stored) != values.tobytes():
        raise AssertionError(
            f"{where}: {variable.name} is still `stored` as bytes that are not its values, and "
            "these would be written; make it with derive() or map()"
        )
    return values


def _bytes_of(stored: Stored) -> bytes:
    with stored.file.open("rb") as file:
        file.seek(stored.offset)
        return file.read(stored.size)


def _regions(variable: Variable) -> Iterator[Region]:
    yield from regions(variable.shape, 1)
    yield from regions(variable.shape, 5)
    for axis, size in enumerate(variable.shape):
        region = list(whole(variable.shape))
        region[axis] = slice(size // 2, size)
        yield tuple(region)


def _check_options(strategy: Strategy) -> None:
    options(type(strategy))
    values = values_of(strategy)
    again = build(type(strategy), json.loads(json.dumps(values)), strategy.name)
    if again != strategy:
        raise AssertionError(f"{strategy!r} became {again!r} on its way through a recipe")


def _same(one: Array, other: Array) -> bool:
    return (one.shape, one.dtype, _bytes(one)) == (other.shape, other.dtype, _bytes(other))


def _bytes(values: Array) -> object:
    # NaN is not equal to itself, but its bytes are.
    return values.tolist() if values.dtype.hasobject else values.tobytes()
