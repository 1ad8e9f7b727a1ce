"""A graph as its file has it: nodes that name each other."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

from converter.dtype import BOOL, INT32, DType
from converter.errors import InputError, UsageError, did_you_mean
from converter.graph.constants import read_array, read_shape
from converter.graph.definition import (
    Definition,
    definition_of,
    names_by_key,
    read_definition,
)
from converter.graph.node import Node, Shape, Tensor, dtype_of, read_node, tensor, text_of
from converter.graph.ops import (
    BOOLS,
    DEQUEUES,
    ENTERS,
    EXITS,
    PASSING,
    PLACEHOLDERS,
    UPDATES,
    VARIABLES,
    WHILES,
    is_effect,
)
from converter.variable import Array

if TYPE_CHECKING:
    from converter.checkpoint import Checkpoint

_MAX_PASSED = 64
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


class Graph:
    """The nodes of a graph.

    Attributes:
        definition: the graph as its file has it.
        path: the file.
        nodes: by name.
        names: what the checkpoint calls the variable of a key, where that is not the key.

    Raises:
        InputError: the graph is damaged.
    """

    def __init__(self, definition: Definition, names: Mapping[str, str] | None = None) -> None:
        self.definition = definition
        self.path = definition.path
        self.names = names or {}
        self.nodes: dict[str, Node] = {}
        for message in definition.graph.node:
            node = read_node(message)
            if self.nodes.setdefault(node.name, node) is not node:
                raise InputError(f"{self.path}: two nodes are named {node.name}; it is damaged")

    def __repr__(self) -> str:
        return f"<Graph {self.path}: {len(self.nodes)} nodes>"

    @cached_property
    def functions(self) -> Mapping[str, Any]:
        """The functions that its nodes call, as FunctionDefs."""
        return {text_of(f.signature.name): f for f in self.definition.graph.library.function}

    @cached_property
    def consumers(self) -> Mapping[str, tuple[Node, ...]]:
        """The nodes that take an output of each node, control edges not counted."""
        found: dict[str, list[Node]] = {}
        for node in self.nodes.values():
            for name in dict.fromkeys(source.node for source in node.sources):
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
            frames[node.name] = node.text("frame_name", node.name)
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
        return _sizes(self._noted_shape(node, source.port))

    def variable_shape(self, node: Node) -> tuple[int, ...] | None:
        """Return the shape of the variable that a node holds: of a handle, not its own shape."""
        if node.op == "VarHandleOp":
            return _sizes(node.shape("shape"))
        return self.shape(Tensor(node.name))

    def _noted_shape(self, node: Node, port: int) -> Shape | None:
        noted = node.attributes.get("_output_shapes")
        if noted is not None and port < len(noted.list.shape):
            return node.shape("_output_shapes", port)
        if port == 0 and node.op in VARIABLES | PLACEHOLDERS:
            said = node.shape("shape")
            is_unsaid = said == () and not self.definition.has_scalar_placeholders
            return None if node.op == "Placeholder" and is_unsaid else said
        if node.op == "Const" and (shape := read_shape(node, self.path)) is not None:
            return shape
        if node.op not in DEQUEUES:
            return None
        listed = (node.shape(key, port) for key in ("output_shapes", "shapes"))
        return next((shape for shape in listed if shape is not None), None)

    def dtype(self, source: Tensor) -> DType | None:
        """Return the dtype of a tensor as far as its node tells it."""
        node = self.nodes.get(source.node)
        if node is None:
            return None
        if node.op in BOOLS:
            return BOOL
        if node.op.startswith("TopK") and source.port == 1:
            return INT32
        for key in _LISTS:
            listed = node.dtype(key, source.port) if node.op in DEQUEUES else None
            if listed is not None:
                return listed
        if node.op in _DTYPE_OF:
            default = {"ArgMax": 9, "ArgMin": 9, "Shape": 3, "Size": 3}.get(node.op, 0)
            return node.dtype(_DTYPE_OF[node.op]) or dtype_of(default)
        return node.dtype("dtype") or node.dtype("T") or _called_dtype(node, source.port)

    def constant(self, source: Tensor) -> Array | None:
        """Return the value of a constant of moderate size, or None for everything else."""
        node = self.nodes.get(self.origin(source).node)
        return None if node is None else read_array(node, self.path)

    def origin(self, source: Tensor) -> Tensor:
        """Follow a tensor back through what passes it on unchanged."""
        for _ in range(_MAX_PASSED):
            node = self.nodes.get(source.node)
            if node is None or node.op not in PASSING or not node.sources:
                break
            source = node.sources[0]
        return source

    def ancestors(
        self,
        sources: Iterable[Tensor],
        *,
        given: Collection[Tensor] = (),
        instead: Mapping[Tensor, Tensor] | None = None,
    ) -> set[str]:
        """Return the nodes that tensors need. What only orders side effects is not among them.

        What is written into a variable before it is read is needed.

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
            taken = [instead.get(source, source) for source in node.sources]
            waiting += [source.node for source in taken if source not in given]
            waiting += [c for c in node.controls if not self._is_effect(c) or self._reads(node, c)]
        return found

    def _is_effect(self, name: str) -> bool:
        node = self.nodes.get(name)
        return node is not None and is_effect(node.op)

    def _reads(self, node: Node, name: str) -> bool:
        """Whether a node reads what another one has written into the same variable."""
        writer = self.nodes[name]
        if node.op != "ReadVariableOp" or writer.op not in UPDATES:
            return False
        taken = [self.origin(n.sources[0]) for n in (node, writer) if n.sources]
        return len(taken) == 2 and taken[0] == taken[1]

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
    definition = read_definition(checkpoint)
    return None if definition is None else Graph(definition, names_by_key(checkpoint))


def graph_of(checkpoint: Checkpoint, meta: bytes) -> Graph:
    """Return a graph that was rewritten for a checkpoint: the bytes of a MetaGraphDef."""
    path = checkpoint.graph_file or checkpoint.path
    definition = definition_of(path, meta, "what was rewritten of it")
    if checkpoint.is_frozen:
        definition = definition._replace(meta=None)
    return Graph(definition, names_by_key(checkpoint))


def _called_dtype(node: Node, port: int) -> DType | None:
    """Return the dtype of an output of what calls functions, or passes several tensors on."""
    return node.dtype("T" if node.op in WHILES | {"IdentityN"} else "Tout", port)


def _sizes(shape: Shape | None) -> tuple[int, ...] | None:
    return None if shape is None else tuple(-1 if size is None else size for size in shape)
