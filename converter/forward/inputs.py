"""What the inputs of a graph are for, as far as the graph tells it, and values that suit them."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Literal

from converter.dtype import DType
from converter.forward.dropout import Dropout
from converter.graph.node import Node, Tensor
from converter.graph.ops import (
    ADDS,
    ARRAY_MOVES,
    COMPARING,
    IFS,
    JOINS,
    LOOKUPS,
    MOVES,
    REPEATS,
    REVERSES,
    SELECTS,
    SLICES,
    SPLITS,
    STACKS,
    SWITCHES,
    ops,
)
from converter.graph.written import Graph

# What passes indices on, or takes some of them.
_CARRYING = (
    MOVES
    | JOINS
    | SPLITS
    | SLICES
    | STACKS
    | REPEATS
    | REVERSES
    | SELECTS
    | ARRAY_MOVES
    | ops("Unique UniqueV2 Minimum Maximum Where Pad PadV2 DynamicPartition")
)
_PARTITIONING = ops("FloorMod Mod FloorDiv Div")
# What makes a shape, or a number of steps, of a number.
_SIZING = ops("Pack Fill Reshape Range Tile Slice RandomUniform BroadcastTo TensorArrayV3")

UNTOLD = "its name does not tell: taken for a training flag"

Kind = Literal["data", "ids", "lengths", "flag", "keep", "rate", "size", "number", "default"]

_TRAINING = re.compile(
    r"(^|[_/])(is_?)?(train(ing)?(_phase|_mode)?|phase(_train)?|learning_phase)(_|$|\d)"
)
_INFERENCE = re.compile(
    r"(^|[_/])(is_?)?(infer(ence|ring)?|predict(ing|ion)?|test(ing)?|eval(uat(e|ing|ion))?)(_|$|\d)"
)
_KEEP = re.compile(r"keep_?prob|prob_?keep|dropout_?keep|keep_?rate")
_RATE = re.compile(r"drop(out)?_?(rate|prob)|prob_?drop")

_MAX_SOURCES = 200
_MAX_VISITED = 20_000
_MAX_STEPS = 16


@dataclass(frozen=True, slots=True)
class Input:
    """One tensor that a graph gets from outside.

    Attributes:
        tensor: which.
        dtype: its dtype, or None where the graph does not tell it.
        shape: its shape, with -1 for sizes and None for a rank that are not fixed.
        kind: what it is for: `data`; `ids`, which look something up; `lengths` of sequences;
            a `flag`; the probability to `keep` or the `rate` to drop at; a `size`; another
            `number`; or `default`, which brings its own value.
        value: what inference wants, where that is decided.
        low: the least value of ids.
        limit: what ids stay below; None where nothing limits them.
        why: what told it.
        called: what the signature that is meant calls it; empty where none does.
    """

    tensor: Tensor
    dtype: DType | None
    shape: tuple[int, ...] | None
    kind: Kind
    why: str = ""
    value: float | bool | None = None
    low: int = 0
    limit: int | None = None
    called: str = ""

    @property
    def name(self) -> str:
        """The name under which values are given for it."""
        return self.called or str(self.tensor)


def describe_all(
    graph: Graph, sources: Collection[Tensor], dropouts: Collection[Dropout]
) -> dict[Tensor, Input]:
    """Tell what inputs are for; of very many, only what needs no walk over the graph."""
    if len(sources) <= _MAX_SOURCES:
        return {source: describe(graph, source, dropouts) for source in sources}
    kind: Kind = "data"
    return {s: Input(s, graph.dtype(s), graph.shape(s), kind) for s in sources}


def describe(graph: Graph, source: Tensor, dropouts: Collection[Dropout] = ()) -> Input:
    """Tell what an input is for.

    Args:
        graph: the graph.
        source: the input.
        dropouts: the dropouts of the graph.
    """
    dtype, shape = graph.dtype(source), graph.shape(source)
    node = graph.nodes[source.node]
    is_scalar = shape == ()
    uses = _follow(graph, source)
    found = Input(source, dtype, shape, "data")
    name = dtype.name if dtype is not None else ""
    if name == "bool" and (is_scalar or uses.is_branch):
        return _flag(found, source.node)
    if name.startswith(("float", "bfloat")) and (is_scalar or shape is None):
        decided = _probability(graph, found, dropouts)
        if decided is not None:
            return decided
    if node.op == "PlaceholderWithDefault":
        return _derive(found, "default", "it brings its own value")
    if name.startswith(("int", "uint")):
        if is_scalar and _TRAINING.search(source.node.lower()):
            return _flag(found, source.node)
        return _integers(found, uses, is_scalar=is_scalar)
    if is_scalar:
        return _derive(found, "number", "nothing tells what it is")
    return found


def _derive(found: Input, kind: Kind, why: str, value: float | bool | None = None) -> Input:
    return Input(found.tensor, found.dtype, found.shape, kind, why, value)


def _flag(found: Input, name: str) -> Input:
    name = name.lower()
    if _TRAINING.search(name):
        return _derive(found, "flag", "training flag by its name", False)
    if _INFERENCE.search(name):
        return _derive(found, "flag", "inference flag by its name", True)
    return _derive(found, "flag", UNTOLD, False)


def _probability(graph: Graph, found: Input, dropouts: Iterable[Dropout]) -> Input | None:
    for dropout in dropouts:
        root, keeps = probability_root(graph, dropout)
        if root == found.tensor:
            return _kept(found, keeps, "decides a dropout")
    name = found.tensor.node.lower()
    if found.shape == () and _KEEP.search(name):
        return _kept(found, True, "by its name")
    if found.shape == () and _RATE.search(name):
        return _kept(found, False, "by its name")
    return None


def _kept(found: Input, keeps: bool, why: str) -> Input:
    if keeps:
        return _derive(found, "keep", f"keep probability: {why}", 1.0)
    return _derive(found, "rate", f"dropout rate: {why}", 0.0)


def probability_root(graph: Graph, dropout: Dropout) -> tuple[Tensor, bool]:
    """Return where the probability of a dropout comes from, and whether it is that of keeping."""
    source, keeps = graph.origin(dropout.probability), dropout.keeps
    # In a damaged graph they may be taken off one in a circle.
    for _ in range(_MAX_STEPS):
        node = graph.nodes.get(source.node)
        if node is None or node.op != "Sub" or len(node.sources) != 2:
            break
        one = graph.constant(node.sources[0])
        if one is None or one.shape != () or one.dtype.kind not in "iuf" or float(one) != 1:
            break
        source, keeps = graph.origin(node.sources[1]), not keeps
    return source, keeps


@dataclass(slots=True)
class _Uses:
    """What becomes of an input's values.

    Attributes:
        limits: sizes of what they look up, less what was added before.
        lows: the least values that do not become negative before.
        parts: the rows of the parts of partitioned tables.
        is_branch: a branch is taken by them.
        is_length: sequences end by them.
        is_size: they become a shape.
    """

    limits: list[int] = field(default_factory=list)
    lows: list[int] = field(default_factory=list)
    parts: dict[str, int] = field(default_factory=dict)
    is_branch: bool = False
    is_length: bool = False
    is_size: bool = False


def _follow(graph: Graph, source: Tensor) -> _Uses:
    uses = _Uses()
    waiting: list[tuple[Tensor, int, bool]] = [(source, 0, False)]
    seen = {source}
    while waiting and len(seen) < _MAX_VISITED:
        now, offset, parted = waiting.pop()
        for user in graph.consumers.get(now.node, ()):
            if now not in user.sources:
                continue
            if _note(graph, user, now, offset, parted, uses):
                continue
            added = _added(graph, user, now)
            partitions = user.op in _PARTITIONING and user.sources[0] == now
            if added is None and not partitions and user.op not in _CARRYING:
                continue
            for result in _results(graph, user):
                if result not in seen:
                    seen.add(result)
                    parts = parted or user.op == "DynamicPartition"
                    waiting.append((result, offset + (added or 0), parts))
    return uses


def _results(graph: Graph, node: Node) -> set[Tensor]:
    users = graph.consumers.get(node.name, ())
    return {part for user in users for part in user.sources if part.node == node.name}


def _note(graph: Graph, user: Node, now: Tensor, offset: int, parted: bool, uses: _Uses) -> bool:
    """Take note of a use that ends the walk; tell whether it does."""
    place = user.sources.index(now)
    if user.op in LOOKUPS and place == 1:
        rows = _rows(graph, user)
        if rows is not None and parted:
            uses.parts[str(user.sources[0])] = rows
        elif rows is not None:
            uses.limits.append(rows - offset)
            uses.lows.append(-offset)
        return True
    if user.op == "OneHot" and place == 0:
        depth = _integer(graph, user, 1)
        if depth is not None:
            uses.limits.append(depth - offset)
            uses.lows.append(-offset)
        return True
    if user.op in ("ReverseSequence", "CTCLoss") and place > 0:
        uses.is_length = True
        return True
    if user.op in COMPARING:
        uses.is_length = True
        return True
    if user.op in SWITCHES and place == 1:
        uses.is_branch = True
        return True
    if user.op in IFS and place == 0:
        uses.is_branch = True
        return True
    if user.op in _SIZING and (place > 0 or user.op in ("Pack", "Fill", "RandomUniform")):
        uses.is_size = True
    return False


def _integer(graph: Graph, node: Node, place: int) -> int | None:
    """Return the first integer of a constant that a node takes; None where it takes none there."""
    value = graph.constant(node.sources[place]) if place < len(node.sources) else None
    if value is None or value.dtype.kind not in "iu" or not value.size:
        return None
    return int(value.reshape(-1)[0])


def _rows(graph: Graph, lookup: Node) -> int | None:
    """Return the size of the axis in which a lookup looks."""
    at = _integer(graph, lookup, 2) or 0
    rows = _size(graph, lookup.sources[0], at)
    if rows is not None or at != 0:
        return rows
    return _joined_rows(graph, lookup.sources[0])


def _size(graph: Graph, table: Tensor, axis: int) -> int | None:
    origin = graph.origin(table)
    node = graph.nodes.get(origin.node)
    shape = graph.shape(table) or graph.shape(origin)
    if node is not None and node.op == "VarHandleOp":
        shape = graph.variable_shape(node)
    if not shape or not -len(shape) <= axis < len(shape) or shape[axis] < 1:
        return None
    return shape[axis]


def _joined_rows(graph: Graph, table: Tensor) -> int | None:
    """Return how many rows are joined: a frozen graph notes no shape of a table with padding.

    Rows that are cut off from a table, which is done to put others in their place, are counted off.
    """
    node = graph.nodes.get(graph.origin(table).node)
    if node is None or node.op != "ConcatV2" or len(node.sources) < 2:
        return None
    if _integer(graph, node, len(node.sources) - 1) != 0:
        return None
    parts = [_part_rows(graph, part) for part in node.sources[:-1]]
    known = [rows for rows in parts if rows is not None]
    return sum(known) if len(known) == len(parts) else None


def _part_rows(graph: Graph, part: Tensor) -> int | None:
    rows = _size(graph, part, 0)
    node = graph.nodes.get(part.node)
    if rows is not None or node is None or node.op != "StridedSlice" or not node.sources:
        return rows
    rows = _size(graph, node.sources[0], 0)
    begin, end, stride = (_integer(graph, node, place) for place in (1, 2, 3))
    if rows is None or begin is None or end is None or stride != 1:
        return None
    if any(node.integer(f"{mask}_mask") & 1 for mask in ("ellipsis", "new_axis", "shrink_axis")):
        return None
    first = None if node.integer("begin_mask") & 1 else begin
    last = None if node.integer("end_mask") & 1 else end
    return len(range(rows)[first:last]) or None


def _added(graph: Graph, user: Node, now: Tensor) -> int | None:
    """Return the constant that an op adds, or None where it does something else."""
    if user.op not in ADDS | {"Sub"} or len(user.sources) != 2:
        return None
    other = user.sources[1] if user.sources[0] == now else user.sources[0]
    value = graph.constant(other)
    if value is None or value.shape != () or value.dtype.kind not in "iu":
        return None
    if user.op == "Sub":
        return -int(value) if user.sources[0] == now else None
    return int(value)


def _integers(found: Input, uses: _Uses, *, is_scalar: bool) -> Input:
    limits = [*uses.limits, *([sum(uses.parts.values())] if uses.parts else [])]
    if limits:
        low, limit = max([0, *uses.lows]), min(limits)
        if low < limit:
            why = f"looks up one of {limit}"
            return Input(found.tensor, found.dtype, found.shape, "ids", why, None, low, limit)
    if is_scalar:
        kind: Kind = "size" if uses.is_size or uses.is_length else "number"
        return _derive(found, kind, "becomes a size" if kind == "size" else "nothing tells")
    if uses.is_length:
        return _derive(found, "lengths", "sequences end by it")
    return _derive(found, "data", "nothing limits its values")
