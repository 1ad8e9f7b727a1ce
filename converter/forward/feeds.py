"""The values that a graph is fed: from a file, from the command line, or drawn."""

from __future__ import annotations

import json
import math
import reprlib
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from converter.dtype import BY_NUMPY, STRING, DType
from converter.errors import UsageError, did_you_mean
from converter.forward.find import Forward
from converter.forward.inputs import Input
from converter.forward.signature import called_inputs, check_signed
from converter.graph.node import Node, Tensor, text_of
from converter.graph.ops import CALLS, RESTORES, SAVES
from converter.graph.written import Graph
from converter.variable import Array

_BATCH = 8
SIZES = (_BATCH, 32, 64, 224, 1)
"""What is tried for sizes that a graph leaves open, until it runs."""

_MAX_DRAWN = 1 << 26
_MAX_LISTED = 8
_MAX_FOLLOWED = 10_000


@dataclass(frozen=True)
class Feeds:
    """What a graph is fed.

    Attributes:
        values: by tensor.
        given: the tensors for which a user gave values.
        drawn: the tensors whose values were drawn, as nobody gave any.
    """

    values: Mapping[Tensor, Array]
    given: frozenset[Tensor]
    drawn: tuple[Tensor, ...]


def parse_feed(text: str, flag: str = "--feed") -> tuple[str, Array]:
    """Return the name and the value of `NAME=VALUE`; VALUE is a number, true, false, or a list.

    Args:
        text: what a user gives.
        flag: the option that gives it, for errors.

    Raises:
        UsageError: it is none of these.
    """
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise UsageError(f"{flag} must be NAME=VALUE, got {reprlib.repr(text)}")
    lowered = value.strip().lower()
    try:
        parsed = json.loads(lowered if lowered in ("true", "false") else value)
        array = np.asarray(parsed)
    except (ValueError, RecursionError):
        raise UsageError(
            f"{flag} {name}: the value must be a number, true, false, or a list of such, "
            f"got {reprlib.repr(value)}"
        ) from None
    if array.dtype.kind not in "biuf":
        raise UsageError(f"{flag} {name}: the value must be numbers, got {reprlib.repr(value)}")
    return name.removesuffix(":0"), array


def parse_feeds(texts: Iterable[str], flag: str = "--feed") -> dict[str, Array]:
    """Return the values of several `NAME=VALUE`, by name. Arguments are those of `parse_feed`.

    Raises:
        UsageError: one is none of what `parse_feed` takes, or a name is given twice.
    """
    found: dict[str, Array] = {}
    for name, value in (parse_feed(text, flag) for text in texts):
        if name in found:
            raise UsageError(f"{flag} {name}: it is given twice; leave one")
        found[name] = value
    return found


def given_values(
    graph: Graph, given: Mapping[str, Array], where: str, called: Mapping[str, str] | None = None
) -> dict[Tensor, Array]:
    """Return what a user gives, by tensor, in the dtype that the graph has.

    Args:
        graph: the graph.
        given: values by the names of tensors.
        where: the subject of errors: a file, or `--feed`.
        called: tensors by names that they are given under instead, those of a signature; None for
            the signature that nobody needs to choose.

    Raises:
        UsageError: a tensor does not exist, is given twice, or has another dtype or shape.
    """
    values: dict[Tensor, Array] = {}
    called = called_inputs(graph) if called is None else called
    for name, value in given.items():
        source = given_tensor(graph, name, where, called)
        if source in values:
            raise UsageError(f"{where}: {name} is given twice, by other names of it; leave one")
        check_given(graph, source, value.shape, value.dtype, f"{where}: {name}")
        values[source] = _cast(graph, source, value, f"{where}: {name}")
    return values


def given_tensor(
    graph: Graph, name: str, where: str, called: Mapping[str, str] | None = None
) -> Tensor:
    """Return the tensor that a user gives a value for. Arguments are those of `given_values`.

    Raises:
        UsageError: there is none.
    """
    called = called_inputs(graph) if called is None else called
    try:
        return graph.expect(called.get(name, name))
    except UsageError:
        check_signed(graph)
        names = list(called) or _inputs(graph)
        listed = f"; its inputs are {', '.join(names[:_MAX_LISTED])}" if names else ""
        near = did_you_mean(name, names) or listed
        raise UsageError(f"{where}: {name}: the graph has no such tensor{near}") from None


def check_given(
    graph: Graph, source: Tensor, shape: Sequence[int], dtype: np.dtype[Any], where: str
) -> None:
    """Raise UsageError where a tensor takes no values of a shape and a dtype."""
    wanted = graph.shape(source)
    if wanted is not None and not _fits(shape, wanted):
        raise UsageError(f"{where}: {list(shape)} is given, and the graph takes {_sizes(wanted)}")
    known = graph.dtype(source)
    if known is None or known.numpy is None or known is STRING:
        return
    kinds = "biufc" if known.name.startswith("complex") else "biuf"
    # What numpy does not know itself, such as bfloat16, is of the kind V.
    if not (dtype.kind in kinds or (dtype.kind == "V" and dtype in BY_NUMPY)):
        raise _other_dtype(where, dtype, known)


def _other_dtype(where: str, dtype: np.dtype[Any], known: DType) -> UsageError:
    return UsageError(
        f"{where}: {dtype} values are given that are not {known}, which the graph takes"
    )


def _inputs(graph: Graph) -> list[str]:
    """Return the placeholders that something takes, without those of the names of files to save."""
    found = [node for node in graph.nodes.values() if node.op.startswith("Placeholder")]
    taken = [node for node in found if node.name in graph.consumers]
    return [node.name for node in taken if not _is_of_saver(graph, node)]


def _is_of_saver(graph: Graph, node: Node) -> bool:
    if graph.dtype(Tensor(node.name)) is not STRING:
        return False
    waiting, seen = [node], {node.name}
    while waiting and len(seen) < _MAX_FOLLOWED:
        now = waiting.pop()
        for user in graph.consumers.get(now.name, ()):
            if user.op in SAVES | RESTORES or _calls_saver(graph, user):
                return True
            if user.name not in seen:
                seen.add(user.name)
                waiting.append(user)
    return False


def _calls_saver(graph: Graph, call: Node) -> bool:
    said = call.attributes.get("f") if call.op in CALLS else None
    body = graph.functions.get(text_of(said.func.name)) if said is not None else None
    return body is not None and any(text_of(n.op) in SAVES | RESTORES for n in body.node_def)


def _cast(graph: Graph, source: Tensor, value: Array, where: str) -> Array:
    dtype = graph.dtype(source)
    if dtype is STRING:
        texts = [v if isinstance(v, bytes) else str(v).encode() for v in value.reshape(-1).tolist()]
        strings = np.empty(value.shape, object)
        strings.reshape(-1)[:] = texts
        return strings
    if dtype is None or dtype.numpy is None or value.dtype == dtype.numpy:
        # TensorFlow hands on the memory that it is fed, which the caller may fill anew.
        return np.array(value)
    with np.errstate(invalid="ignore"):
        # What has no such value, as infinity has no integer, is found right behind.
        cast: Array = value.astype(dtype.numpy)
    if not (dtype.is_float or dtype.name.startswith("complex") or bool((cast == value).all())):
        raise _other_dtype(where, value.dtype, dtype)
    return cast


def _fits(shape: Sequence[int], wanted: Sequence[int]) -> bool:
    return len(shape) == len(wanted) and all(
        w in (-1, n) for n, w in zip(shape, wanted, strict=True)
    )


def _sizes(shape: Sequence[int]) -> str:
    return "[" + ", ".join("?" if size < 0 else str(size) for size in shape) + "]"


def complete(forward: Forward, given: Mapping[Tensor, Array], seed: int) -> Iterator[Feeds]:
    """Yield what to feed, the inputs that are not given drawn: one try for each of SIZES.

    Floats are drawn from the normal distribution, indices from what they look up, lengths up to
    the size of the sequences; other integers are 0 or 1, booleans true. The numbers depend on the
    seed and on the name of the input.

    Args:
        forward: what is run.
        given: values that a user gives.
        seed: of the numbers that are drawn.

    Raises:
        UsageError: nothing can be drawn for an input.
    """
    decided = {
        found.tensor: np.asarray(found.value, found.dtype.numpy if found.dtype else None)
        for found in forward.inputs
        if found.value is not None and found.tensor not in given
    }
    open_inputs = forward.open_inputs(given)
    for first, size in _tries(forward, open_inputs, given):
        drawn = _draw(open_inputs, first, size, forward, given, seed)
        yield Feeds({**given, **decided, **drawn}, frozenset(given), tuple(drawn))


def _tries(
    forward: Forward, inputs: Sequence[Input], given: Mapping[Tensor, Array]
) -> list[tuple[int, int]]:
    """Return sizes to try where the graph leaves them open: of first axes, and of others."""
    is_open = any(found.shape is None or -1 in found.shape for found in inputs)
    if not is_open and all(found.kind not in ("size", "number") for found in inputs):
        return [(_BATCH, _BATCH)]
    # What is given, or fixed by the graph, says how many there are of the rest.
    shapes = [value.shape for t, value in given.items() if _is_data(forward, t)]
    shapes += [found.shape for found in forward.inputs if found.shape is not None]
    firsts = dict.fromkeys(shape[0] for shape in shapes if shape and shape[0] > 0)
    tries = [(first, size) for first in firsts for size in (_BATCH, first)]
    # One size for all fits whether the batch comes first or the steps do.
    return list(dict.fromkeys([*tries, *((size, size) for size in SIZES)]))


def _is_data(forward: Forward, source: Tensor) -> bool:
    return any(found.tensor == source for found in forward.inputs)


def _draw(
    inputs: Sequence[Input],
    first: int,
    size: int,
    forward: Forward,
    given: Mapping[Tensor, Array],
    seed: int,
) -> dict[Tensor, Array]:
    shapes = {found.tensor: _shape(found, first, size, forward.graph) for found in inputs}
    known = [value.shape for t, value in given.items() if _is_data(forward, t)]
    longest = [min(shape[:2]) for shape in (*shapes.values(), *known) if len(shape) > 1]
    drawn = {}
    for found in inputs:
        rng = np.random.default_rng(
            [seed, zlib.crc32(str(found.tensor).encode("utf-8", "replace"))]
        )
        limit = first if found.kind in ("size", "number") else min(longest, default=size)
        drawn[found.tensor] = _values(found, shapes[found.tensor], limit, rng)
    return drawn


def _shape(found: Input, first: int, size: int, graph: Graph) -> tuple[int, ...]:
    if found.dtype is STRING:
        raise UsageError(
            f"{found.name}: it takes strings, and none can be drawn; give some (--inputs x.npz)"
        )
    if found.dtype is None or found.dtype.numpy is None:
        raise UsageError(f"{found.name}: its dtype is not known; give values (--inputs x.npz)")
    wanted = found.shape if found.shape is not None else _needed_shape(found, graph)
    if wanted is None:
        raise UsageError(
            f"{found.name}: the graph does not tell its shape; give values (--inputs x.npz)"
        )
    # A batch of large pictures would be needlessly much.
    first = first if len(wanted) < 4 else min(first, _BATCH)
    shape = tuple(n if n >= 0 else first if axis == 0 else size for axis, n in enumerate(wanted))
    # Zeros do not make it small: numpy multiplies the other axes too.
    if math.prod(n or 1 for n in shape) > _MAX_DRAWN:
        raise UsageError(
            f"{found.name}: {_sizes(shape)} is too much to be drawn; give values (--inputs x.npz)"
        )
    return shape


def _needed_shape(found: Input, graph: Graph) -> tuple[int, ...] | None:
    """Return the shape that what takes an input of unknown rank needs."""
    if found.kind == "ids":
        return (-1, -1)
    if found.kind in ("size", "number"):
        return ()
    for user in graph.consumers.get(found.tensor.node, ()):
        if user.op in ("MatMul", "Conv2D", "Conv1D", "Conv3D") and user.sources[0] == found.tensor:
            kernel = graph.shape(user.sources[1])
            if kernel is not None and len(kernel) >= 2 and kernel[-2] > 0:
                return (*[-1] * (len(kernel) - 1), kernel[-2])
    return None


def _values(found: Input, shape: tuple[int, ...], longest: int, rng: np.random.Generator) -> Array:
    assert found.dtype is not None
    assert found.dtype.numpy is not None
    dtype: DType = found.dtype
    if found.kind in ("size", "number") and not dtype.is_float:
        return np.asarray(longest, dtype.numpy)
    if found.kind == "number":
        return np.asarray(1, dtype.numpy)
    if found.kind == "ids" and found.limit is not None:
        return rng.integers(found.low, found.limit, shape).astype(dtype.numpy)
    if found.kind == "lengths":
        lengths = rng.integers(min(1, longest), longest, shape, endpoint=True)
        # One of full length: some graphs count their steps by the longest.
        lengths.reshape(-1)[:1] = longest
        return lengths.astype(dtype.numpy)
    if dtype.name == "bool":
        return np.ones(shape, bool)
    if dtype.is_float or dtype.name.startswith("complex"):
        return rng.standard_normal(shape).astype(dtype.numpy)
    return rng.integers(0, 2, shape).astype(dtype.numpy)
