"""A variable: a lazy, named array. Making, renaming or mapping one reads nothing."""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from converter.dtype import BY_NUMPY, VARIANT, DType
from converter.errors import ConverterError

if TYPE_CHECKING:
    import numpy.typing as npt

Array = np.ndarray[Any, np.dtype[Any]]
Region = tuple[slice, ...]
"""One slice for each axis, with explicit start and stop and step 1 (or None)."""

BLOCK_BYTES = 2 << 20
"""How much of a variable is held at a time while it streams."""


class Stored(NamedTuple):
    """Where the bytes of a value lie, C-ordered and little-endian, exactly as they are meant.

    Attributes:
        file: the file that holds them.
        offset: first byte in the file.
        size: number of bytes.
        crc32c: CRC-32C of the bytes (not masked), where the source records one.
    """

    file: Path
    offset: int
    size: int
    crc32c: int | None = None


class Counts(dict[str, int]):
    """Numbers of events by what happened; of what did not happen, 0."""

    def __missing__(self, what: str) -> int:
        return 0


@dataclass(frozen=True, slots=True)
class Variable:
    """A named array whose values are loaded when they are asked for, region by region.

    Attributes:
        name: the name; bytes that are no UTF-8 stand as surrogate escapes.
        dtype: the element type.
        shape: the size of each axis; `()` for a scalar.
        load: gives the values of a region as an array of `dtype.numpy` and of the region's
            shape, in any memory layout, which must not change afterwards: it is written while
            the next one loads. Strings are an object array of `bytes`. A variant gives
            its opaque bytes, uint8 of shape (n,), whatever the region.
        sources: names of the variables of the opened checkpoint that it was made from.
        stored: the bytes on disk, as long as they are exactly the value; None otherwise.
        counts: what loading found worth reporting, filled while the values are loaded
            (`{"overflowed to infinity": 3}`).
        path: where an object checkpoint has it, `net/dense/kernel`, if that is not its name; None
            everywhere else.
    """

    name: str
    dtype: DType
    shape: tuple[int, ...]
    load: Callable[[Region], Array]
    sources: tuple[str, ...] = ()
    stored: Stored | None = None
    counts: Counts = field(default_factory=Counts, compare=False, repr=False)
    path: str | None = None

    @classmethod
    def from_array(cls, name: str, array: npt.ArrayLike, *, dtype: DType | None = None) -> Variable:
        """Make a variable of values in memory; `dtype` where numpy's type does not tell it."""
        values = np.asarray(array)
        if values.dtype.kind == "S" and not isinstance(array, np.ndarray):
            # numpy's own bytes lose the zeros at their end.
            values = np.asarray(array, object)
        if values.dtype.kind in "SU":
            values = np.array(
                [v.encode() if isinstance(v, str) else v for v in values.ravel().tolist()], object
            ).reshape(values.shape)
        found = dtype or BY_NUMPY.get(values.dtype.newbyteorder("<"))
        if found is None:
            raise ConverterError(f"{name}: TensorFlow has no dtype for numpy's {values.dtype}")
        values = values.astype(found.numpy, copy=False)
        # For a scalar `...`: it stays an array of shape ().
        return cls(name, found, values.shape, lambda region: values[region or ...])

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the value; 0 for strings, whose size is not known before they are read."""
        if self.dtype.itemsize:
            return self.size * self.dtype.itemsize
        return self.stored.size if self.stored else 0

    def read(self, region: Region | None = None) -> Array:
        """Return the values of a region (of all, for None) as a C-ordered array.

        Raises:
            InputError: the stored bytes are missing or damaged.
            ConverterError: what was loaded does not have the declared shape or dtype.
        """
        region = whole(self.shape) if region is None else region
        try:
            values = np.asarray(self.load(region))
        except ConverterError:
            raise
        # Whatever somebody's strategy raises is to be told with the variable that it was about.
        except Exception as error:
            raise ConverterError(
                f"{self.name}: loading it raised {type(error).__name__}: {error}"
            ) from error
        if self.dtype is VARIANT:
            return values
        shape = shape_of(region)
        if values.shape != shape or values.dtype != self.dtype.numpy:
            raise ConverterError(
                f"{self.name}: {values.dtype} {list(values.shape)} was loaded where the plan says "
                f"{self.dtype} {list(shape)}; this is a bug of the strategy that made it"
            )
        # asarray, not ascontiguousarray: the latter makes shape () into (1,).
        return np.asarray(values, order="C")

    def blocks(self, max_bytes: int = BLOCK_BYTES) -> Iterator[Array]:
        """Yield the values in the order of their bytes, in arrays of at most `max_bytes` each.

        Strings and variants come whole.
        """
        if not self.dtype.itemsize:
            yield self.read()
            return
        for region in regions(self.shape, max(1, max_bytes // self.dtype.itemsize)):
            yield self.read(region)

    def rename(self, name: str) -> Variable:
        """Return the same values under another name."""
        return replace(self, name=name)

    def derive(
        self,
        load: Callable[[Region], Array],
        *,
        shape: Sequence[int] | None = None,
        dtype: DType | None = None,
    ) -> Variable:
        """Return a variable of the same name and sources with other values.

        `load` must not read before it is called. None keeps the shape or dtype.
        """
        return replace(
            self,
            load=load,
            # Sizes may be numpy's, which JSON cannot write.
            shape=self.shape if shape is None else tuple(map(operator.index, shape)),
            dtype=dtype or self.dtype,
            stored=None,
        )

    def map(self, function: Callable[[Array], Array], *, dtype: DType | None = None) -> Variable:
        """Return a variable whose values are `function` of these, element by element."""
        load = self.load
        return self.derive(lambda region: function(load(region)), dtype=dtype)


def whole(shape: Sequence[int]) -> Region:
    """Return the region that covers all of `shape`."""
    return tuple(slice(0, size) for size in shape)


def shape_of(region: Region) -> tuple[int, ...]:
    """Return the shape of a region."""
    return tuple(s.stop - s.start for s in region)


def shifted(region: Region, block: Region) -> Region:
    """Return where a region of a block lies in the variable that has the block."""
    pairs = zip(region, block, strict=True)
    return tuple(slice(s.start + b.start, s.stop + b.start) for s, b in pairs)


def regions(shape: Sequence[int], max_items: int) -> Iterator[Region]:
    """Yield regions of at most `max_items` elements that tile `shape` in C order.

    Each region is one contiguous run of the C-ordered elements, whatever the shape: `[1, n]` is
    cut along its last axis.
    """
    inner = list(itertools.accumulate(reversed(shape), lambda a, b: a * b, initial=1))[::-1]
    # The cut axis is the first one of which a single index fits: those before it are walked one
    # index at a time, those after it are taken whole.
    cut = next((axis for axis, size in enumerate(inner[1:]) if size <= max_items), len(shape))
    if math.prod(shape) <= max_items or cut == len(shape):
        if math.prod(shape):
            yield whole(shape)
        return
    step = max(1, max_items // max(1, inner[cut + 1]))
    tail = whole(shape[cut + 1 :])
    for outer in itertools.product(*(range(size) for size in shape[:cut])):
        head = tuple(slice(i, i + 1) for i in outer)
        for start in range(0, shape[cut], step):
            yield (*head, slice(start, min(start + step, shape[cut])), *tail)
