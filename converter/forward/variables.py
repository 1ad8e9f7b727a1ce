"""Which variable of a checkpoint feeds which variable of its graph, as the savers say.

A key is not the name of its variable: savers take dicts, averages are restored in the place of
what they average, and the parts of a partitioned variable are slices of one key.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

from converter.dtype import DType
from converter.errors import InputError
from converter.formats.messages import message
from converter.graph.definition import Definition
from converter.graph.node import Node, Tensor, text_of, texts
from converter.graph.ops import (
    ASSIGNS,
    CALLS,
    DEQUEUES,
    PLACEHOLDERS,
    RANDOM,
    RESTORES,
    SAVES,
    UNSLICED,
    VARIABLES,
    is_effect,
)
from converter.graph.slices import read_slice
from converter.graph.written import Graph
from converter.variable import Array, Region, Variable, whole


@dataclass(frozen=True, slots=True)
class Held:
    """Where the value of a variable of a graph is in its checkpoint.

    Attributes:
        key: the checkpoint's variable.
        region: the part of it, for a part of a partitioned variable; None for all.
    """

    key: str
    region: Region | None = None

    def shape(self, whole_shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of the part of a variable of `whole_shape`."""
        if self.region is None:
            return whole_shape
        return tuple(part.stop - part.start for part in self.region)

    def read(self, variable: Variable) -> Array:
        """Return the value."""
        return variable.read(self.region if self.region is not None else whole(variable.shape))


def variables_of(graph: Graph, keys: Collection[str]) -> dict[str, Held]:
    """Return where the checkpoint has each variable of its graph, by the name of its node.

    What no saver mentions is there under its own name, or not at all. In a frozen graph the
    constants that the checkpoint lists are the variables.

    Args:
        graph: the graph.
        keys: the names of the checkpoint's variables.
    """
    held = {name: Held(name) for name, node in graph.nodes.items() if node.op in VARIABLES}
    if not held and graph.definition.meta is None:
        # What was written down in a loop is no variable, and nothing from outside can replace it.
        return {
            name: Held(name) for name in keys if name in graph.nodes and not graph.frames.get(name)
        }
    found: dict[str, Held] = {}
    for mentioned in (_saved, _restored, _restored_in_functions):
        if len(found) < len(held):
            for name, mention in mentioned(graph):
                key = graph.names.get(mention.key, mention.key)
                if key in keys:
                    found.setdefault(name, Held(key, mention.region))
    return {name: found.get(name, own) for name, own in held.items()}


def initial_values(graph: Graph, names: Collection[str]) -> dict[str, Tensor]:
    """Return what variables begin with, where that is the same whenever it is computed.

    Savers are often told to leave out what does not change: tables of positions, masks.

    Args:
        graph: the graph.
        names: the nodes of the variables.
    """
    found: dict[str, Tensor] = {}
    for node in graph.nodes.values():
        if node.op in ASSIGNS and len(node.sources) > 1:
            name = _variable(graph, node.sources[0])
            if name is not None and name in names and name not in found:
                needed = (graph.nodes[n].op for n in graph.ancestors([node.sources[1]]))
                if not any(_is_uncertain(op) for op in needed):
                    found[name] = node.sources[1]
    return found


def _is_uncertain(op: str) -> bool:
    """Tell whether what an op gives is not said by the graph alone."""
    return op in RANDOM | VARIABLES | PLACEHOLDERS | DEQUEUES | RESTORES or is_effect(op)


def check_shape(graph: Graph, name: str, where: Held, variable: Variable) -> DType | None:
    """Check that a value fits a variable of the graph, and return the dtype that it must have.

    Raises:
        InputError: it does not, so the graph is not this checkpoint's.
    """
    node = graph.nodes[name]
    wanted = graph.variable_shape(node)
    shape = where.shape(variable.shape)
    fits = wanted is None or (
        len(wanted) == len(shape) and all(a in (-1, b) for a, b in zip(wanted, shape, strict=True))
    )
    if where.region is not None:
        ends = zip(where.region, variable.shape, strict=False)
        fits &= len(where.region) == len(variable.shape) and all(s.stop <= n for s, n in ends)
    if not fits:
        raise InputError(
            f"{graph.path}: its variable {name} is {_sizes(wanted)}, and {where.key} of the "
            f"checkpoint is {_sizes(variable.shape)}; it is the graph of another checkpoint"
        )
    return node.dtype("dtype") or variable.dtype


def _sizes(shape: tuple[int, ...] | None) -> str:
    return "of unknown rank" if shape is None else f"[{', '.join(map(str, shape))}]"


def _current_first(graph: Graph, nodes: list[Node]) -> list[Node]:
    """Put the nodes of the saver that wrote the checkpoint before those of others."""
    meta = graph.definition.meta
    scope = text_of(meta.saver_def.save_tensor_name).rpartition("/")[0] if meta is not None else ""
    return sorted(nodes, key=lambda node: not node.name.startswith(f"{scope}/"))


def _saved(graph: Graph) -> Iterator[tuple[str, Held]]:
    saves = [node for node in graph.nodes.values() if node.op in SAVES]
    for node in _current_first(graph, saves):
        names, slices = _keys(graph, node)
        first = 2 if node.op in UNSLICED else 3
        for index, source in enumerate(node.sources[first:]):
            variable = _variable(graph, source)
            if variable is not None and index < len(names):
                spec = slices[index] if index < len(slices) else ""
                yield variable, Held(names[index], _region(spec))


def _restored(graph: Graph) -> Iterator[tuple[str, Held]]:
    assigns = [n for n in graph.nodes.values() if n.op in ASSIGNS and len(n.sources) > 1]
    # One node restores many variables.
    said: dict[str, tuple[list[str], list[str]]] = {}
    for node in _current_first(graph, assigns):
        source = graph.origin(node.sources[1])
        restore = graph.nodes.get(source.node)
        variable = _variable(graph, node.sources[0])
        if restore is None or variable is None or restore.op not in RESTORES:
            continue
        if restore.name not in said:
            said[restore.name] = _keys(graph, restore)
        names, slices = said[restore.name]
        if source.port < len(names):
            spec = slices[source.port] if source.port < len(slices) else ""
            yield variable, Held(names[source.port], _region(spec))


def _restored_in_functions(graph: Graph) -> Iterator[tuple[str, Held]]:
    """Yield what the function of a TensorFlow 2 export restores, by the nodes that it is given."""
    for call in graph.nodes.values():
        said = call.attributes.get("f") if call.op in CALLS else None
        function = graph.functions.get(text_of(said.func.name)) if said is not None else None
        if function is None or not any(node.op == b"RestoreV2" for node in function.node_def):
            continue
        arguments = list(texts(argument.name for argument in function.signature.input_arg))
        given = dict(zip(arguments, call.sources, strict=False))
        for argument, held in _restored(_body(graph, function, arguments)):
            variable = _variable(graph, given[argument]) if argument in given else None
            if variable is not None:
                yield variable, held


def _body(graph: Graph, function: Any, arguments: list[str]) -> Graph:
    """Return the body of a function as a graph, with variables for what it is given."""
    definition = message("GraphDef")()
    for argument in arguments:
        definition.node.add(name=argument.encode(), op=b"VarHandleOp")
    for node in function.node_def:
        copy = definition.node.add(name=node.name, op=node.op, attr=node.attr)
        for data in node.input:
            # What is `RestoreV2:tensors:3` here is `RestoreV2:3` in a graph.
            name, *rest = data.split(b":")
            copy.input.append(b":".join([name, *rest[-1:]]))
    return Graph(Definition(graph.path, definition))


def _keys(graph: Graph, node: Node) -> tuple[list[str], list[str]]:
    """Return the keys that a saver stores or restores, and the slices of them that it takes."""
    return _strings(graph, node, 1), [] if node.op in UNSLICED else _strings(graph, node, 2)


def _strings(graph: Graph, node: Node, at: int) -> list[str]:
    if at >= len(node.sources):
        return []
    value = graph.constant(node.sources[at])
    if value is None or not value.dtype.hasobject:
        return []
    return list(texts(value.reshape(-1).tolist()))


def _variable(graph: Graph, source: Tensor) -> str | None:
    node = graph.nodes.get(graph.origin(source).node)
    return node.name if node is not None and node.op in VARIABLES else None


def _region(spec: str) -> Region | None:
    """Return the region that a saver takes; None for all of it, or where the shape decides."""
    try:
        part = read_slice(spec)
    except InputError:
        return None
    if part is None:
        return None
    pairs = zip(part.offset, part.shape, strict=True)
    return tuple(slice(begin, begin + size) for begin, size in pairs)
