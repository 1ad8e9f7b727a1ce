"""Cuts a graph down to what its outputs need, so that a new TensorFlow takes it."""

from __future__ import annotations

import zlib
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from converter.dtype import DType
from converter.errors import UsageError
from converter.formats.messages import message
from converter.forward.find import Forward
from converter.graph.functions import inline
from converter.graph.node import Tensor, encoded, text_of
from converter.graph.ops import GENERATORS, INLINED, PASSING, PLACEHOLDERS, RANDOM, is_effect
from converter.graph.written import Graph

# Hints that are wrong once a part of the graph is gone: shapes, colocation, the TPU's cluster.
_DROPPED = frozenset({"_output_shapes", "_class", "_tpu_replicate", "_XlaCompile"})
_HANDING = PASSING | INLINED
_ONE_OUTPUT = PLACEHOLDERS | {"Const"}


class Pruned(NamedTuple):
    """A graph that can be imported.

    Attributes:
        definition: the serialized GraphDef.
        fed: the placeholder in the place of each tensor that is fed.
        nodes: the names of its nodes.
        changed: the variables that running it may change.
    """

    definition: bytes
    fed: Mapping[Tensor, str]
    nodes: frozenset[str]
    changed: frozenset[str]


def prune(forward: Forward, fed: Mapping[Tensor, DType]) -> Pruned:
    """Keep what the outputs need, with placeholders for what is fed.

    Control edges stay, as they place constants in loops and branches; but not those from what
    changes a state, which inference does not want.

    Args:
        forward: the forward part.
        fed: the tensors that will be fed, with their dtypes.

    Raises:
        UsageError: an output is fed.
    """
    graph, instead = forward.graph, forward.instead
    outputs = [output.tensor for output in forward.outputs]
    for output in outputs:
        if output in fed:
            raise UsageError(f"{output}: it is fed, so fetching it tells nothing")
    fills = [Tensor(name) for name in forward.fills]
    wanted = [*outputs, *forward.initial.values(), *fills]
    needed = graph.ancestors(wanted, given=fed, instead=instead)
    placeholders = _placeholders(graph, fed)
    definition = message("GraphDef")()
    definition.versions.CopyFrom(graph.definition.graph.versions)
    for source, name in placeholders.items():
        definition.node.append(_placeholder(name, fed[source]))
    kept = needed - set(placeholders.values())
    names = kept | set(placeholders.values())
    for name in graph.nodes:
        if name in kept:
            definition.node.append(_copy(graph, name, placeholders, instead, names))
    for function in _functions(graph, definition.node):
        definition.library.function.append(function)
    changed = _changed(definition, forward.fills, str(graph.path)) & set(forward.variables)
    return Pruned(definition.SerializeToString(), placeholders, frozenset(names), changed)


def _changed(definition: Any, fills: Collection[str], subject: str) -> frozenset[str]:
    """Return the nodes that what changes a state takes, in functions too; of a variable its own."""
    listed = (definition.node, *(function.node_def for function in definition.library.function))
    if not any(_changes(text_of(node.op)) for nodes in listed for node in nodes):
        return frozenset()
    nodes = {node.name: node for node in inline(definition, subject).nodes}
    found: set[str] = set()
    for node in nodes.values():
        if not _changes(node.op) or node.name in fills:
            continue
        seen: set[str] = set()
        waiting = [source.node for source in node.sources]
        while waiting:
            name = waiting.pop()
            if name not in seen:
                seen.add(name)
                taken = nodes[name].sources if name in nodes and nodes[name].op in _HANDING else ()
                waiting += [source.node for source in taken]
        found |= seen
    return frozenset(found)


def _changes(op: str) -> bool:
    return op in GENERATORS or is_effect(op)


def _placeholders(graph: Graph, fed: Mapping[Tensor, DType]) -> dict[Tensor, str]:
    names = {}
    for source in fed:
        name = source.node
        if graph.nodes[name].op not in _ONE_OUTPUT:
            name = f"fed/{source.node}_{source.port}"
            while name in graph.nodes:
                name += "_"
        names[source] = name
    return names


def _placeholder(name: str, dtype: DType) -> Any:
    node = message("NodeDef")(name=name.encode(), op=b"Placeholder")
    entry = node.attr.add(key=b"dtype")
    entry.value.type = dtype.tensorflow
    entry = node.attr.add(key=b"shape")
    entry.value.shape.unknown_rank = True
    return node


def _copy(
    graph: Graph,
    name: str,
    placeholders: Mapping[Tensor, str],
    instead: Mapping[Tensor, Tensor],
    names: set[str],
) -> Any:
    node = graph.nodes[name]
    copy = message("NodeDef")(name=encoded(name), op=encoded(node.op))
    for source in node.sources:
        taken = instead.get(source, source)
        text = placeholders.get(taken) or str(taken)
        copy.input.append(encoded(text))
    for control in node.controls:
        if control in names:
            copy.input.append(b"^" + encoded(control))
    for key, value in node.attributes.items():
        if key not in _DROPPED:
            copy.attr.add(key=encoded(key)).value.CopyFrom(value)
    if node.op in RANDOM and not node.op.startswith("Stateless"):
        # One stream for each name: two models draw the same numbers.
        for seeded, seed in ((b"seed", 1), (b"seed2", 1 + zlib.crc32(copy.name))):
            said = next((entry for entry in copy.attr if entry.key == seeded), None)
            (said or copy.attr.add(key=seeded)).value.i = seed
    return copy


def _functions(graph: Graph, nodes: Any) -> list[Any]:
    """Return the functions that nodes call, and those that these call."""
    library = {f.signature.name: f for f in graph.definition.graph.library.function}
    found: dict[bytes, Any] = {}
    waiting = [*nodes] if library else []
    while waiting:
        node = waiting.pop()
        values = [entry.value for entry in node.attr]
        called = [node.op, *(value.func.name for value in values)]
        called += [function.name for value in values for function in value.list.func]
        for name in called:
            if name in library and name not in found:
                found[name] = library[name]
                waiting += library[name].node_def
    return list(found.values())
