"""Which node of a graph is which variable of the checkpoint.

The key of a variable need not be the name of its node: a Saver takes any names. What saves and
restores says it. A partitioned variable is one key and several nodes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, NamedTuple

from converter.errors import InputError
from converter.graph.definition import names_by_key
from converter.graph.node import Node, Output, tensor, text_of
from converter.graph.ops import ASSIGNS, READS, RESTORED, RESTORES, SAVES, UNSLICED, VARIABLES
from converter.graph.ordered import OrderedGraph
from converter.graph.slices import Slice, read_slice
from converter.structure.called import called_in_graph

if TYPE_CHECKING:
    from converter.checkpoint import Checkpoint

_MAX_PASSED = 64
_PART = re.compile(r"/part_\d+\Z")


class Binding(NamedTuple):
    """Which variable a node is.

    Attributes:
        name: the variable's name in the checkpoint.
        slice: which part of it, or None for all of it.
    """

    name: str
    slice: Slice | None


class _Said(NamedTuple):
    key: str
    spec: str
    node: Node


def as_opened(checkpoint: Checkpoint) -> tuple[Checkpoint, dict[str, str]]:
    """Return what strategies have renamed under the names that it had, which its graph knows.

    Returns:
        The variables under the old names, and the names that they have now by these.
    """
    now: dict[str, str] = {}
    for name, olds in called_in_graph(checkpoint).items():
        now.setdefault(olds[0] if len(olds) == 1 else name, name)
    for name in checkpoint:
        now.setdefault(name, name)
    return checkpoint.derive(checkpoint[name].rename(was) for was, name in now.items()), now


def variable_of(node: Node) -> str:
    """Return the name of the variable that a node is, or is a part of."""
    return _PART.sub("", node.name)


def bind(graph: OrderedGraph, checkpoint: Checkpoint) -> dict[Node, Binding]:
    """Find the variable of each variable node.

    Nodes that the checkpoint does not hold are left out.

    Raises:
        InputError: the graph is not that of the checkpoint.
    """
    if checkpoint.is_frozen:
        found = {name: graph.by_name.get(name) for name in checkpoint}
        return {node: Binding(name, None) for name, node in found.items() if node is not None}
    names = names_by_key(checkpoint)
    bound: dict[Node, Binding] = {}
    for said in _said(graph):
        name = names.get(said.key, said.key)
        if name in checkpoint and said.node not in bound:
            bound[said.node] = Binding(name, read_slice(said.spec))
    taken = {binding.name for binding in bound.values()}
    for node in graph.nodes:
        if node.op in VARIABLES and node not in bound:
            for key in (node.name, node.text("shared_name")):
                name = names.get(key, key)
                if name in checkpoint and name not in taken:
                    bound[node] = Binding(name, None)
                    break
    _check(graph, checkpoint, bound)
    return bound


def _check(graph: OrderedGraph, checkpoint: Checkpoint, bound: Mapping[Node, Binding]) -> None:
    roles = checkpoint.roles()
    names = {binding.name for binding in bound.values()}
    # A step or a name that everybody takes proves nothing.
    told = [n for n in names if roles[n].kind not in ("step", "beta_power") and checkpoint[n].shape]
    shaped = [n for n, v in checkpoint.items() if roles[n].kind == "model" and v.shape]
    if checkpoint and not told and (shaped or not bound):
        raise InputError(
            f"{graph.path}: none of its variables is in {checkpoint.path}; "
            "it is the graph of another checkpoint"
        )
    for node, (name, part) in bound.items():
        shape = graph.declared(node, 0) if node.op != "VarHandleOp" else node.shape("shape")
        held = checkpoint[name].shape
        wanted = part.shape if part else held
        if part is not None and part.full != held:
            shape, wanted = part.full, held
        if shape is not None and (
            len(shape) != len(wanted)
            or any(a not in (None, b) for a, b in zip(shape, wanted, strict=True))
        ):
            sizes = ", ".join("?" if size is None else str(size) for size in shape)
            raise InputError(
                f"{graph.path}: {name} is [{sizes}] in the graph and {list(wanted)} in "
                f"{checkpoint.path}; it is the graph of another checkpoint"
            )


def _said(graph: OrderedGraph) -> Iterator[_Said]:
    """Yield what the graph says of keys: of the current Saver, of the others, of collections."""
    current: list[_Said] = []
    others: list[_Said] = []
    meta = graph.definition.meta
    scope = text_of(meta.saver_def.filename_tensor_name) if meta is not None else ""
    prefix = scope.rpartition("/")[0] + "/"
    for node in graph.nodes:
        said = list(_saves(graph, node)) or list(_restores(graph, node))
        (current if node.name.startswith(prefix) else others).extend(said)
    yield from current
    yield from others
    for definition in graph.definition.collected("variables", "VariableDef"):
        name = tensor(text_of(definition.variable_name)).node
        info = definition.save_slice_info_def
        if name in graph.by_name and info.full_shape:
            pairs = zip(info.var_offset, info.var_shape, strict=False)
            spec = f"{' '.join(map(str, info.full_shape))} {':'.join(f'{a},{b}' for a, b in pairs)}"
            yield _Said(text_of(info.full_name), spec, graph.by_name[name])


def _saves(graph: OrderedGraph, node: Node) -> Iterator[_Said]:
    if node.op in SAVES and len(node.inputs) > 2:
        first = 2 if node.op in UNSLICED else 3
        keys = _strings(graph, node.inputs[1])
        specs = _strings(graph, node.inputs[2]) if first == 3 else [""] * len(keys)
        for key, spec, output in zip(keys, specs, node.inputs[first:], strict=False):
            variable = _variable(output)
            if variable is not None:
                yield _Said(key, spec, variable)


def _restores(graph: OrderedGraph, node: Node) -> Iterator[_Said]:
    if node.op not in ASSIGNS or len(node.inputs) < 2:
        return
    variable = _variable(node.inputs[0])
    value = node.inputs[1]
    for _ in range(_MAX_PASSED):
        if value.node.op not in RESTORED or not value.node.inputs:
            break
        value = value.node.inputs[0]
    restore = value.node
    if variable is None or restore.op not in RESTORES:
        return
    keys = _strings(graph, restore.inputs[1]) if len(restore.inputs) > 1 else []
    specs = _strings(graph, restore.inputs[2]) if len(restore.inputs) > 2 else [""] * len(keys)
    if value.port < min(len(keys), len(specs)):
        yield _Said(keys[value.port], specs[value.port], variable)


def _strings(graph: OrderedGraph, output: Output) -> list[str]:
    return graph.strings(output.node)


def _variable(output: Output) -> Node | None:
    """Follow what is read of a variable back to it."""
    node = output.node
    for _ in range(_MAX_PASSED):
        if node.op in VARIABLES:
            return node
        if not node.inputs or (node.op not in READS and node.op != "Cast"):
            return None
        node = node.inputs[0].node
    return None


def parts(bound: Mapping[Node, Binding]) -> dict[str, list[Node]]:
    """Return the nodes of each variable; those of a partitioned one in order."""
    nodes: dict[str, list[Node]] = {}
    for node, binding in bound.items():
        nodes.setdefault(binding.name, []).append(node)

    def place(node: Node) -> tuple[int, ...]:
        part = bound[node].slice
        return part.offset if part else ()

    return {name: sorted(found, key=place) for name, found in nodes.items()}
