"""Draws new values for blocks of variables, region by region, whatever the order."""

from __future__ import annotations

import hashlib
import itertools
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from converter.errors import ConverterError, InputError, PlanError
from converter.initializer import Initializer
from converter.rounding import round_to
from converter.values import PIECE, Values
from converter.variable import Array, Region, Variable, shape_of, shifted, whole

LARGEST_WHOLE = 1 << 24
"""Entries of the largest block of an initializer that needs the whole of it at once."""


@dataclass(frozen=True, slots=True)
class Block:
    """A part of a variable that is drawn by itself: a gate of a kernel, or all of it.

    Attributes:
        label: its name in the random stream, which other blocks of the variable do not have.
        region: where it lies.
        initializer: what draws it.
        fan_in: how many inputs there are to an entry's output.
        fan_out: how many outputs there are to an entry's input.
        old: the values that the initializer may look at; None where there are none.
        template: those of the user's template; None without.
    """

    label: str
    region: Region
    initializer: Initializer
    fan_in: int
    fan_out: int
    old: Values | None = None
    template: Values | None = None


def fans(name: str, shape: Sequence[int]) -> tuple[int, int]:
    """Return fan in and fan out of a variable, or of a block of that shape in it.

    Axes before the last two are those of a convolution's window, `[height, width, in, out]`. A
    transposed convolution has `[height, width, out, in]`, and a depthwise one `[height, width,
    channels, multiplier]`, of which an output sees one channel only; the name tells. A vector has
    its size for both, as in TensorFlow.
    """
    if len(shape) < 2:
        return (shape[0], shape[0]) if shape else (1, 1)
    window = math.prod(shape[:-2])
    *_, scope, leaf = ("", *name.split("/"))
    leaf = re.sub(r"_\d+$", "", leaf)
    is_depthwise = leaf == "kernel" and "depthwise_conv" in scope
    if is_depthwise or leaf in ("depthwise_kernel", "depthwise_weights"):
        return window, window * shape[-1]
    if leaf in ("kernel", "weights") and re.search(r"(?i)conv\dd_?transpose", scope):
        return window * shape[-1], window * shape[-2]
    return window * shape[-2], window * shape[-1]


class Drawing:
    """Draws blocks of variables from one seed.

    Every piece of a block has a stream of its own, keyed by seed, variable, block and the number of
    the piece: neither the order of variables nor the regions that are asked for change a value.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        # What initializers that need a whole block gave, for one variable at a time.
        self._held: dict[str, Array] = {}
        self._held_for = ""

    def redraw(
        self, variable: Variable, blocks: Sequence[Block], *, stream: str | None = None
    ) -> Variable:
        """Return a variable whose blocks are drawn anew; elsewhere it keeps its values.

        Args:
            variable: of real numbers.
            blocks: parts of it that do not overlap.
            stream: the name that keys the streams; by default the variable's. What has the same
                blocks under the same key gets the same values.

        Raises:
            PlanError: an initializer cannot draw a block.
        """
        for block in blocks:
            _check(variable, block)
        key = variable.name if stream is None else stream

        def load(region: Region) -> Array:
            parts = [(b, part) for b in blocks if (part := _common(region, b.region)) is not None]
            drawn = sum(math.prod(shape_of(part)) for _, part in parts)
            if drawn == math.prod(shape_of(region)):
                values = np.empty(shape_of(region), variable.dtype.numpy)
            else:
                values = variable.load(region).copy()
            for block, part in parts:
                for piece, entries in self._drawn(variable, block, _relative(part, block), key):
                    at = _relative_to(shifted(piece, block.region), region)
                    values[at or ...] = round_to(entries, variable.dtype, variable.counts)
            return values

        return variable.derive(load)

    def _drawn(
        self, variable: Variable, block: Block, region: Region, key: str
    ) -> Iterator[tuple[Region, Array]]:
        """Yield the values of a region of a block, piece by piece, with where they are in it."""
        shape = shape_of(block.region)
        if block.initializer.whole:
            if self._held_for != key:
                self._held, self._held_for = {}, key
            if block.label not in self._held:
                self._held[block.label] = self._draw(variable, block, whole(shape), key, 0)
            yield region, self._held[block.label][region or ...]
            return
        for number, piece in _pieces(shape, region):
            values = self._draw(variable, block, piece, key, number)
            part = _common(piece, region)
            if part is not None:
                yield part, values[_relative_to(part, piece) or ...]

    def _draw(
        self, variable: Variable, block: Block, piece: Region, key: str, number: int
    ) -> Array:
        initializer, shape = block.initializer, shape_of(piece)
        try:
            values = initializer(
                random_stream(self._seed, key, block.label, number),
                shape,
                block.fan_in,
                block.fan_out,
                block.old and block.old.at(piece),
                block.template and block.template.at(piece),
            )
            found = np.asarray(values, np.float64)
        except InputError:
            raise
        except ConverterError as error:
            raise ConverterError(f"{variable.name}: {initializer.name}: {error}") from None
        # Whatever somebody's initializer raises is to be told with the variable it was about.
        except Exception as error:
            raise ConverterError(
                f"{variable.name}: the initializer {initializer.name} raised "
                f"{type(error).__name__}: {' '.join(str(error).split())}"
            ) from error
        if found.shape != shape or not np.isfinite(found).all():
            gave = "NaN or infinities" if found.shape == shape else list(found.shape)
            raise ConverterError(
                f"{variable.name}: the initializer {initializer.name} gave {gave}, where finite "
                f"values {list(shape)} are expected; this is a bug of it"
            )
        return found


def _check(variable: Variable, block: Block) -> None:
    """Raise PlanError where an initializer cannot draw a block of a variable."""
    initializer, shape = block.initializer, shape_of(block.region)
    subject = f"{variable.name}: {initializer.name}"
    if not variable.dtype.is_float:
        raise PlanError(
            f"{variable.name}: new values are drawn for floats only, and it is {variable.dtype}; "
            f"choose others"
        )
    if reason := initializer.refusal(shape):
        raise PlanError(f"{subject} cannot draw {list(shape)}; {reason}")
    missing = {"old": block.old, "template": block.template}.get(initializer.needs or "", block)
    if missing is None:
        raise PlanError(f"{subject} has no {initializer.needs} values for it; choose another")
    if initializer.whole and math.prod(shape) > LARGEST_WHOLE:
        raise PlanError(
            f"{subject} needs a block as a whole, and {list(shape)} has more than "
            f"{LARGEST_WHOLE:,} entries; choose one that streams, such as glorot_uniform"
        )


def random_stream(seed: int, key: str, label: str, number: int = 0) -> np.random.Generator:
    """Return the stream of one piece of a block, or of whatever else has a name.

    Bits of Philox are the same on every platform and in every numpy; the counter leaves each piece
    2**128 of them.
    """
    text = b"\0".join(t.encode("utf-8", "surrogateescape") for t in (str(seed), key, label))
    digest = np.frombuffer(hashlib.sha256(text).digest()[:16], "<u8").astype(np.uint64)
    counter = np.array([0, 0, number, 0], np.uint64)
    return np.random.Generator(np.random.Philox(key=digest, counter=counter))


def _pieces(shape: Sequence[int], region: Region) -> Iterator[tuple[int, Region]]:
    """Yield number and region of the pieces of a block that a region of it touches.

    The pieces are those of `regions(shape, PIECE)`, without walking all of them.
    """
    inner = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    cut = next((axis for axis, size in enumerate(inner) if size <= PIECE), len(shape))
    if any(s.start >= s.stop for s in region):
        return
    if cut == len(shape):
        yield 0, whole(shape)
        return
    step = max(1, PIECE // max(1, inner[cut]))
    along = -(-shape[cut] // step)
    at, tail = region[cut], whole(shape[cut + 1 :])
    for outer in itertools.product(*(range(s.start, s.stop) for s in region[:cut])):
        first = 0
        for index, size in zip(outer, shape, strict=False):
            first = first * size + index
        head = tuple(slice(index, index + 1) for index in outer)
        for k in range(at.start // step, -(-at.stop // step)):
            stop = min((k + 1) * step, shape[cut])
            yield first * along + k, (*head, slice(k * step, stop), *tail)


def _common(one: Region, other: Region) -> Region | None:
    """Return the region that two regions share; None where that is empty."""
    pairs = zip(one, other, strict=True)
    found = tuple(slice(max(a.start, b.start), min(a.stop, b.stop)) for a, b in pairs)
    return None if any(s.start >= s.stop for s in found) else found


def _relative_to(region: Region, origin: Region) -> Region:
    """Return a region of the variable as seen from the start of another."""
    pairs = zip(region, origin, strict=True)
    return tuple(slice(s.start - o.start, s.stop - o.start) for s, o in pairs)


def _relative(region: Region, block: Block) -> Region:
    return _relative_to(region, block.region)
