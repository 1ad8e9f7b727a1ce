"""A graph as nodes in the order of their data: a `.meta` file, a SavedModel or a frozen GraphDef.

Calls of functions are replaced by what the function does, so that a graph has no other level.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from converter.dtype import BY_TENSORFLOW
from converter.errors import InputError
from converter.formats.messages import message, parse
from converter.structure.functions import Raw, inline

if TYPE_CHECKING:
    from converter.checkpoint import Checkpoint

_MAX_BYTES = 1 << 31  # protobuf's own limit
_MAX_VALUES = 4096
_FIELDS = {
    "float32": "float_val",
    "float64": "double_val",
    "int64": "int64_val",
    "bool": "bool_val",
}
# A shape without axes meant that the shape of a placeholder is not known, before this version.
_SCALAR_PLACEHOLDERS = 22


def ops(names: str) -> frozenset[str]:
    """Return the ops that are named, with spaces between them."""
    return frozenset(names.split())


NEXT_ITERATION = frozenset({"NextIteration", "RefNextIteration"})
LOOP = "_Loop"
"""What gives out a variable of a loop that was a function; it takes it before and after a turn."""
_HANDLES = frozenset({20, 21})  # resource, variant
_PUSHES = ops("StackPush StackPushV2")
_POPS = ops("StackPop StackPopV2")
_HANDS_ON = ops("Enter RefEnter Identity RefIdentity Switch RefSwitch")
_MAX_PASSED = 64
_MERGES = frozenset({"Merge", "RefMerge"})
_EXITS = frozenset({"Exit", "RefExit"})


class Output(NamedTuple):
    """One output of a node."""

    node: Node
    port: int


class Node:
    """One operation.

    Attributes:
        name: the name; what a call brought in has the name of the call before its own.
        op: the kind of operation.
        inputs: the tensors that it takes; control inputs are left out.
        attributes: the AttrValues by name.
        order: its place in the order of the data.
        origin: the function that it was written in, and its name there; None for the graph.
    """

    __slots__ = ("attributes", "inputs", "name", "op", "order", "origin")

    def __init__(
        self,
        name: str,
        op: str,
        attributes: Mapping[str, Any],
        origin: tuple[str, str] | None = None,
    ) -> None:
        self.name = name
        self.op = op
        self.attributes = attributes
        self.inputs: tuple[Output, ...] = ()
        self.order = -1
        self.origin = origin

    def __repr__(self) -> str:
        return f"<{self.op} {self.name}>"

    def integer(self, key: str, default: int = 0) -> int:
        """Return an attribute that is a number, or a truth."""
        value = self.attributes.get(key)
        return default if value is None else int(value.i or value.b)

    def text(self, key: str, default: str = "") -> str:
        """Return an attribute that is a text."""
        value = self.attributes.get(key)
        return default if value is None else value.s.decode("utf-8", "replace")

    def integers(self, key: str) -> list[int]:
        """Return an attribute that is a list of numbers."""
        value = self.attributes.get(key)
        return [] if value is None else list(value.list.i)

    def is_handle(self, port: int) -> bool:
        """Whether an output is a handle: what it stands for has another shape than itself."""
        for key in ("T", "dtype", "Tout"):
            value = self.attributes.get(key)
            if value is not None:
                listed = value.list.type
                return (listed[port] if port < len(listed) else value.type) in _HANDLES
        return False

    def kind(self, key: str) -> int:
        """Return an attribute that is a dtype, by TensorFlow's number for it."""
        value = self.attributes.get(key)
        return 0 if value is None else value.type % 100

    def shape(self, key: str, index: int | None = None) -> tuple[int | None, ...] | None:
        """Return an attribute that is a shape, or one of a list of shapes; None for no rank."""
        value = self.attributes.get(key)
        if value is None:
            return None
        if index is None:
            return _shape(value.shape)
        shapes = value.list.shape
        return _shape(shapes[index]) if index < len(shapes) else None


class Constant(NamedTuple):
    """A constant: its shape, and its values in the order of memory where they are few.

    Attributes:
        is_whole: whether its values are integers or truths.
    """

    shape: tuple[int, ...]
    values: tuple[float, ...] | None
    is_whole: bool = False


class Graph:
    """The nodes of a graph, each after those that it takes data from, loops aside.

    Attributes:
        path: the file that it was read from.
        nodes: in the order of the data.
        by_name: the nodes by name.
        producer: the version of graphs that it was written with.
        saver: the SaverDef, or None.
        collections: the serialized members of each collection.
        tensorflow: the version of TensorFlow that wrote it, as far as it says.
    """

    def __init__(self, path: Path, definition: Any, meta: Any = None) -> None:
        self.path = path
        self.producer: int = definition.versions.producer
        self.saver = meta.saver_def if meta is not None else None
        self.collections: dict[str, list[bytes]] = {}
        self._strings: dict[Node, list[str]] = {}
        self.tensorflow = ""
        if meta is not None:
            self.tensorflow = meta.meta_info_def.tensorflow_version.decode("utf-8", "replace")
            self.collections = {
                entry.key.decode("utf-8", "replace"): list(entry.value.bytes_list.value)
                for entry in meta.collection_def
            }
        raws = inline(definition, str(path))
        self.by_name = {
            raw.name: Node(raw.name, raw.op, raw.attributes, raw.origin) for raw in raws
        }
        for raw in raws:
            self.by_name[raw.name].inputs = tuple(self._inputs(raw))
        self.nodes = _sorted(list(self.by_name.values()))
        for order, node in enumerate(self.nodes):
            node.order = order
        self.consumers: dict[Node, list[Node]] = {node: [] for node in self.nodes}
        for node in self.nodes:
            for source in dict.fromkeys(output.node for output in node.inputs):
                self.consumers[source].append(node)

    def __repr__(self) -> str:
        return f"<Graph {self.path}: {len(self.nodes)} nodes>"

    def _inputs(self, raw: Raw) -> Iterator[Output]:
        for text in raw.inputs:
            name, port = _parsed(text)
            node = self.by_name.get(name)
            if node is None:
                raise InputError(
                    f"{self.path}: the node {raw.name} takes {name}, which the graph lacks; "
                    "it is damaged"
                )
            yield Output(node, port)

    def declared(self, node: Node, port: int) -> tuple[int | None, ...] | None:
        """Return the shape that the graph notes for an output; None where it notes no rank."""
        found = node.shape("_output_shapes", port)
        if found is None and port == 0 and "shape" in node.attributes:
            found = node.shape("shape")
            if node.op == "Placeholder" and not found and self.producer < _SCALAR_PLACEHOLDERS:
                return None
        if found is None and "output_shapes" in node.attributes:
            found = node.shape("output_shapes", port)
        return found

    def constant(self, node: Node) -> Constant | None:
        """Return a constant; None where the node holds none that numbers can stand for."""
        value = node.attributes.get("value")
        if node.op != "Const" or value is None:
            return None
        return _constant(value.tensor, f"{self.path}: the constant {node.name}")

    def strings(self, node: Node) -> list[str]:
        """Return the texts that a constant holds; none where it is no such constant."""
        # Every variable of a large model is looked up in one list of all names.
        if node not in self._strings:
            self._strings[node] = self._read_strings(node)
        return self._strings[node]

    def _read_strings(self, node: Node) -> list[str]:
        value = node.attributes.get("value")
        if node.op != "Const" or value is None:
            return []
        proto = parse("TensorProto", value.tensor, f"{self.path}: the constant {node.name}")
        return [text.decode("utf-8", "surrogateescape") for text in proto.string_val]


def _parsed(text: str) -> tuple[str, int]:
    name, colon, port = text.rpartition(":")
    return (name, int(port)) if colon and port.isdecimal() and len(port) < 7 else (text, 0)


def _shape(shape: Any) -> tuple[int | None, ...] | None:
    if shape.unknown_rank:
        return None
    return tuple(dim.size if dim.size >= 0 else None for dim in shape.dim)


def _constant(data: bytes, subject: str) -> Constant | None:
    """Decode a TensorProto of which the values are wanted only where they are few."""
    if len(data) > 16 * _MAX_VALUES:
        head = parse("TensorHead", data, subject)
        shape = _shape(head.tensor_shape)
        return None if shape is None or None in shape else Constant(_known(shape), None)
    proto = parse("TensorProto", data, subject)
    shape = _shape(proto.tensor_shape)
    dtype = BY_TENSORFLOW.get(proto.dtype)
    if shape is None or None in shape:
        return None
    sizes = _known(shape)
    count = math.prod(sizes)
    if dtype is None or not dtype.is_number or count > _MAX_VALUES or "complex" in dtype.name:
        return Constant(sizes, None)
    if proto.tensor_content:
        if dtype.numpy is None or len(proto.tensor_content) != count * dtype.itemsize:
            return Constant(sizes, None)
        values = np.frombuffer(proto.tensor_content, dtype.numpy).astype(dtype.wide).tolist()
    elif proto.half_val:
        values = (
            np.array(proto.half_val, "<u2").view(dtype.numpy or "<f2").astype(dtype.wide).tolist()
        )
    else:
        values = list(getattr(proto, _FIELDS.get(dtype.name, "int_val")))
    if len(values) > count:
        return Constant(sizes, None)
    # TensorFlow leaves out what repeats the last value, and zeros altogether.
    values = (*values, *(values[-1:] or [0]) * (count - len(values)))
    return Constant(sizes, values, "int" in dtype.name or dtype.name == "bool")


def _known(shape: Sequence[int | None]) -> tuple[int, ...]:
    return tuple(size or 0 for size in shape)


def _sorted(nodes: list[Node]) -> list[Node]:
    """Order the nodes so that each stands after its inputs; what loops back is left aside."""
    pushes = _pushes(nodes)
    waiting = dict.fromkeys(nodes, 0)
    followers: dict[Node, list[Node]] = {node: [] for node in nodes}
    for node in nodes:
        stacked = pushes.get(_origin(node), ()) if node.op in _POPS else ()
        for source in (*(source for source, _ in _before(node)), *stacked):
            followers[source].append(node)
            waiting[node] += 1
    # As far as that goes in the order of the file, which is that in which the model was written.
    places = {node: place for place, node in enumerate(nodes)}
    ready = [place for place, node in enumerate(nodes) if not waiting[node]]
    found = []
    while ready:
        node = nodes[heapq.heappop(ready)]
        found.append(node)
        for follower in followers[node]:
            waiting[follower] -= 1
            if not waiting[follower]:
                heapq.heappush(ready, places[follower])
    if len(found) < len(nodes):
        done = set(found)
        found += [node for node in nodes if node not in done]
    return found


def _pushes(nodes: list[Node]) -> dict[Node, list[Node]]:
    """Return what is put on each stack, by the node that made the stack."""
    found: dict[Node, list[Node]] = {}
    for node in nodes:
        if node.op in _PUSHES:
            found.setdefault(_origin(node), []).append(node)
    return found


def _origin(node: Node) -> Node:
    """Return the node that made the handle that another one takes."""
    for _ in range(_MAX_PASSED):
        if not node.inputs:
            break
        node = node.inputs[0].node
        if node.op not in _HANDS_ON:
            break
    return node


def _before(node: Node) -> list[Output]:
    """Return what has to be known before a node is looked at.

    A loop begins without what loops back, and what comes out of it waits for its body.
    """
    if node.op in _MERGES:
        return [output for output in node.inputs if output.node.op not in NEXT_ITERATION]
    if node.op in _EXITS:
        merges = [o.node for switch in node.inputs for o in switch.node.inputs[:1]]
        back = [o for m in merges for o in m.inputs if o.node.op in NEXT_ITERATION]
        return [*node.inputs, *back]
    return list(node.inputs)


def read_graph(checkpoint: Checkpoint) -> Graph | None:
    """Return the graph that belongs to a checkpoint, or None where there is none.

    Raises:
        InputError: its file cannot be read, or is damaged.
    """
    found = read_definition(checkpoint)
    if found is None:
        return None
    path, definition = found
    if "frozen" in checkpoint.format:
        return Graph(path, definition)
    return Graph(path, definition.graph_def, definition)


def read_definition(checkpoint: Checkpoint) -> tuple[Path, Any] | None:
    """Return the file and the MetaGraphDef that belong to a checkpoint; None without one.

    Of a frozen graph it is the GraphDef.

    Raises:
        InputError: the file cannot be read, or is damaged.
    """
    if checkpoint.meta is not None:
        return checkpoint.meta, _parse("MetaGraphDef", checkpoint.meta)
    if "frozen" in checkpoint.format:
        return checkpoint.files[0], _parse("GraphDef", checkpoint.files[0])
    exported = checkpoint.path.parent.parent / "saved_model.pb"
    if checkpoint.path.parent.name == "variables" and exported.is_file():
        graphs = sorted(_parse("SavedModel", exported).meta_graphs, key=_is_for_training)
        return (exported, graphs[0]) if graphs else None
    return None


def _is_for_training(meta: Any) -> bool:
    return b"serve" not in meta.meta_info_def.tags


def _parse(name: str, path: Path) -> Any:
    try:
        if path.stat().st_size >= _MAX_BYTES:
            raise InputError(f"{path}: it is larger than a graph can be (2 GiB); it is damaged")
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: the file cannot be read ({error.strerror})") from None
    return parse(name, data, f"{path}: it")


def variables_of(graph: Graph, collection: str) -> Iterator[Any]:
    """Yield the VariableDefs of a collection."""
    make: Callable[[bytes], Any] = message("VariableDef").FromString
    from google.protobuf.message import DecodeError

    for member in graph.collections.get(collection, ()):
        try:
            yield make(member)
        except DecodeError:
            raise InputError(f"{graph.path}: its collection {collection} is damaged") from None
