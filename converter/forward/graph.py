"""The graph of a checkpoint as nodes: from a `.meta` file, a SavedModel or a frozen GraphDef."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from converter.checkpoint import Checkpoint
from converter.dtype import BY_TENSORFLOW, DType
from converter.errors import InputError, UsageError, did_you_mean
from converter.formats.messages import parse
from converter.formats.tensor_proto import Values, walk
from converter.formats.wire import BYTES, Field, Source
from converter.forward.ops import (
    BOOLS,
    DEQUEUES,
    ENTERS,
    EXITS,
    PASSING,
    PLACEHOLDERS,
    VARIABLES,
    is_effect,
)
from converter.variable import Array, whole

_MAX_CONSTANT = 1 << 16
_MAX_PASSED = 64
_MAX_BYTES = 1 << 31  # protobuf's own limit
# Before this version an empty shape of a placeholder meant that it was not known.
_SCALAR_PLACEHOLDERS = 22
# Where an op has no attribute that says its dtype, or has several: the attribute or the dtype.
_DTYPE_OF = {
    "ArgMax": "output_type",
    "ArgMin": "output_type",
    "Shape": "out_type",
    "Size": "out_type",
    "Cast": "DstT",
    "Gather": "Tparams",
    "GatherV2": "Tparams",
    "GatherNd": "Tparams",
    "Range": "Tidx",
}
_LISTS = ("output_types", "component_types", "dtypes", "Tdense", "Tout")


class Tensor(NamedTuple):
    """One output of a node, which people write `name` or `name:1`."""

    node: str
    port: int = 0

    def __str__(self) -> str:
        return f"{self.node}:{self.port}" if self.port else self.node


def tensor(text: str) -> Tensor:
    """Return what `name`, `name:0` or `name:1` means."""
    name, colon, index = text.rpartition(":")
    if colon and index.isdigit() and len(index) < 6:
        return Tensor(name, int(index))
    return Tensor(text)


@dataclass(frozen=True, slots=True, eq=False)
class Node:
    """One operation.

    Attributes:
        name: its name.
        op: the kind of operation.
        inputs: the tensors that it takes.
        controls: the nodes that run before it.
        message: its NodeDef.
    """

    name: str
    op: str
    inputs: tuple[Tensor, ...]
    controls: tuple[str, ...]
    message: Any

    def attribute(self, key: str) -> Any:
        """Return the AttrValue of a key, or None."""
        wanted = key.encode()
        return next((a.value for a in self.message.attr if a.key == wanted), None)

    def dtype(self, key: str) -> DType | None:
        """Return the dtype that an attribute says; references to a dtype are that dtype."""
        value = self.attribute(key)
        return None if value is None else _dtype(value.type)


class Graph:
    """The nodes of a graph.

    Attributes:
        path: the file that it was read from.
        nodes: by name.
        definition: the GraphDef.
        meta: the MetaGraphDef around it, or None for a frozen graph.
        names: what the checkpoint calls the variable of a key, where that is not the key.
    """

    def __init__(
        self,
        path: Path,
        definition: Any,
        meta: Any = None,
        names: Mapping[str, str] | None = None,
    ) -> None:
        self.path = path
        self.names = names or {}
        self.definition = definition
        self.meta = meta
        self.nodes: dict[str, Node] = {}
        for message in definition.node:
            node = _node(message)
            if self.nodes.setdefault(node.name, node) is not node:
                raise InputError(f"{path}: two nodes are named {node.name}; it is damaged")

    def __repr__(self) -> str:
        return f"<Graph {self.path}: {len(self.nodes)} nodes>"

    @property
    def tensorflow(self) -> str:
        """The version of TensorFlow that wrote it, as far as it says."""
        info = self.meta.meta_info_def.tensorflow_version if self.meta is not None else b""
        return _text(info)

    @cached_property
    def functions(self) -> Mapping[str, Any]:
        """The functions that its nodes call, as FunctionDefs."""
        return {_text(f.signature.name): f for f in self.definition.library.function}

    @cached_property
    def consumers(self) -> Mapping[str, tuple[Node, ...]]:
        """The nodes that take an output of each node, control edges not counted."""
        found: dict[str, list[Node]] = {}
        for node in self.nodes.values():
            for name in dict.fromkeys(source.node for source in node.inputs):
                found.setdefault(name, []).append(node)
        return {name: tuple(nodes) for name, nodes in found.items()}

    @cached_property
    def frames(self) -> Mapping[str, str]:
        """The loop that each node of a loop is in; nodes outside are not listed."""
        frames: dict[str, str] = {}
        outer: dict[str, str] = {"": ""}
        waiting = [node for node in self.nodes.values() if node.op in ENTERS]
        # A constant is in the loop that it is controlled from.
        after: dict[str, list[Node]] = {}
        for node in self.nodes.values():
            for name in node.controls:
                after.setdefault(name, []).append(node)
        # An Enter of an inner loop takes what is in the outer one, which may come later.
        for node in waiting:
            value = node.attribute("frame_name")
            frames[node.name] = _text(value.s) if value is not None else node.name
        while waiting:
            node = waiting.pop()
            frame = frames[node.name]
            for consumer in (*self.consumers.get(node.name, ()), *after.get(node.name, ())):
                inside = outer.get(frame, "") if node.op in EXITS else frame
                if consumer.op in ENTERS:
                    outer.setdefault(frames[consumer.name], inside)
                elif inside and consumer.name not in frames:
                    frames[consumer.name] = inside
                    waiting.append(consumer)
        return frames

    def shape(self, source: Tensor) -> tuple[int, ...] | None:
        """Return the shape that the graph notes for a tensor, -1 where a size is not known.

        None where not even the rank is.
        """
        node = self.nodes.get(source.node)
        if node is None:
            return None
        noted = node.attribute("_output_shapes")
        if noted is not None and source.port < len(noted.list.shape):
            return _shape(noted.list.shape[source.port])
        if source.port == 0 and node.op in VARIABLES | PLACEHOLDERS:
            said = node.attribute("shape")
            legacy = self.definition.versions.producer < _SCALAR_PLACEHOLDERS
            if said is None or (node.op == "Placeholder" and legacy and not said.shape.dim):
                return None
            return _shape(said.shape)
        if node.op == "Const" and (value := node.attribute("value")) is not None:
            return walk(_field(value.tensor, self.path, node.name)).shape
        return self._listed_shape(node, source.port)

    def _listed_shape(self, node: Node, index: int) -> tuple[int, ...] | None:
        for key in ("output_shapes", "shapes"):
            listed = node.attribute(key)
            if node.op in DEQUEUES and listed is not None and index < len(listed.list.shape):
                return _shape(listed.list.shape[index])
        return None

    def dtype(self, source: Tensor) -> DType | None:
        """Return the dtype of a tensor as far as its node tells it."""
        node = self.nodes.get(source.node)
        if node is None:
            return None
        if node.op in BOOLS:
            return BY_TENSORFLOW[10]
        if node.op.startswith("TopK") and source.port == 1:
            return BY_TENSORFLOW[3]
        for key in _LISTS:
            value = node.attribute(key)
            if node.op in DEQUEUES and value is not None and source.port < len(value.list.type):
                return _dtype(value.list.type[source.port])
        if node.op in _DTYPE_OF:
            default = {"ArgMax": 9, "ArgMin": 9, "Shape": 3, "Size": 3}.get(node.op, 0)
            return node.dtype(_DTYPE_OF[node.op]) or _dtype(default)
        return node.dtype("dtype") or node.dtype("T")

    def constant(self, source: Tensor) -> Array | None:
        """Return the value of a constant of moderate size, or None for everything else."""
        node = self.nodes.get(self.origin(source).node)
        value = node.attribute("value") if node is not None and node.op == "Const" else None
        if node is None or value is None:
            return None
        proto = walk(_field(value.tensor, self.path, node.name))
        if proto.dtype is None or proto.dtype.numpy is None:
            return None
        if math.prod(proto.shape) > _MAX_CONSTANT:
            return None
        return Values(proto, proto.dtype, proto.shape, repeat=True).load(whole(proto.shape))

    def origin(self, source: Tensor) -> Tensor:
        """Follow a tensor back through what passes it on unchanged."""
        for _ in range(_MAX_PASSED):
            node = self.nodes.get(source.node)
            if node is None or node.op not in PASSING or not node.inputs:
                break
            source = node.inputs[0]
        return source

    def ancestors(
        self,
        sources: Iterable[Tensor],
        *,
        given: Collection[Tensor] = (),
        instead: Mapping[Tensor, Tensor] | None = None,
    ) -> set[str]:
        """Return the nodes that tensors need. What only orders side effects is not among them.

        Args:
            sources: the tensors.
            given: tensors whose values are given, behind which nothing is needed.
            instead: tensors that are replaced by others wherever they are taken.

        Raises:
            InputError: a node that is needed is missing.
        """
        instead = instead or {}
        found: set[str] = set()
        waiting = [instead.get(s, s).node for s in sources if instead.get(s, s) not in given]
        while waiting:
            name = waiting.pop()
            if name in found:
                continue
            node = self.nodes.get(name)
            if node is None:
                raise InputError(f"{self.path}: the graph lacks the node {name}; it is damaged")
            found.add(name)
            taken = [instead.get(source, source) for source in node.inputs]
            waiting += [source.node for source in taken if source not in given]
            waiting += [c for c in node.controls if not self._is_effect(c)]
        return found

    def _is_effect(self, name: str) -> bool:
        node = self.nodes.get(name)
        return node is not None and is_effect(node.op)

    def expect(self, text: str) -> Tensor:
        """Return the tensor that a user names.

        Raises:
            UsageError: there is none.
        """
        found = tensor(text)
        if found.node not in self.nodes:
            near = did_you_mean(found.node, self.nodes)
            raise UsageError(f"{self.path}: the graph has no tensor {text!r}{near}")
        return found


def read_graph(checkpoint: Checkpoint) -> Graph | None:
    """Return the graph that belongs to a checkpoint, or None where there is none.

    Raises:
        InputError: the file is damaged.
    """
    names = {key: name for name, keys in checkpoint.stored_keys.items() for key in keys}
    if checkpoint.meta is not None:
        meta = parse("MetaGraphDef", _bytes(checkpoint.meta), f"{checkpoint.meta}: it")
        return Graph(checkpoint.meta, meta.graph_def, meta, names)
    if "frozen" in checkpoint.format:
        path = checkpoint.files[0]
        return Graph(path, parse("GraphDef", _bytes(path), f"{path}: it"))
    exported = checkpoint.path.parent.parent / "saved_model.pb"
    if checkpoint.path.parent.name == "variables" and exported.is_file():
        model = parse("SavedModel", _bytes(exported), f"{exported}: it")
        # The one to serve, where there are several (train, eval).
        graphs = sorted(model.meta_graphs, key=lambda g: b"serve" not in g.meta_info_def.tags)
        return Graph(exported, graphs[0].graph_def, graphs[0], names) if graphs else None
    return None


def graph_of(checkpoint: Checkpoint, meta: bytes) -> Graph:
    """Return a graph that was rewritten for a checkpoint: the bytes of a MetaGraphDef."""
    path = checkpoint.meta or checkpoint.path
    names = {key: name for name, keys in checkpoint.stored_keys.items() for key in keys}
    definition = parse("MetaGraphDef", meta, f"{path}: what was rewritten of it")
    return Graph(path, definition.graph_def, definition, names)


def _bytes(path: Path) -> bytes:
    try:
        if path.stat().st_size >= _MAX_BYTES:
            raise InputError(f"{path}: it is larger than a graph can be (2 GiB); it is damaged")
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: the file cannot be read ({error.strerror})") from None
    if _TEXT.match(data):
        raise InputError(
            f"{path}: this graph is text, and only binary ones are read; write it with "
            "as_text=False"
        )
    return data


_TEXT = re.compile(
    rb"\s*(#[^\n]*\n\s*)*(node|library|versions?|graph_def|meta_info_def|meta_graphs|"
    rb"saved_model_schema_version)\s*[:{]"
)


def _node(message: Any) -> Node:
    inputs, controls = [], []
    for data in message.input:
        text = _text(data)
        if text.startswith("^"):
            controls.append(text[1:])
        else:
            inputs.append(tensor(text))
    return Node(_text(message.name), _text(message.op), tuple(inputs), tuple(controls), message)


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def texts(values: Iterable[bytes]) -> Iterator[str]:
    """Yield bytes of a graph as texts."""
    return map(_text, values)


def _dtype(number: int) -> DType | None:
    return BY_TENSORFLOW.get(number - 100 if number > 100 else number)


def _shape(message: Any) -> tuple[int, ...] | None:
    if message.unknown_rank:
        return None
    return tuple(dim.size for dim in message.dim)


def _field(data: bytes, path: Path, name: str) -> Field:
    source = Source(
        lambda start, size: data[start : start + size], len(data), f"{path}: constant {name}"
    )
    return Field(source, 0, BYTES, 0, 0, len(data))
