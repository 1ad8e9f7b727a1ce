"""The savers of a graph, rewritten for other keys: the names under which variables are stored."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from converter.checkpoint import Checkpoint
from converter.graph.definition import definition_of, read_definition
from converter.graph.node import encoded, text_of
from converter.graph.ops import RESTORES, SAVES
from converter.regraph.tensors import Constant


def with_keys(
    source: Checkpoint, keys: Mapping[str, str], rewritten: bytes | None = None
) -> tuple[bytes, list[str]] | None:
    """Return the graph of a checkpoint whose savers store and find variables under other keys.

    The nodes keep their names. So what `tf.train.import_meta_graph` returns restores the renamed
    checkpoint, and a Saver that is made afterwards does not.

    Args:
        source: a checkpoint of TensorFlow 1 with its `.meta`.
        keys: the new key by the old one, of all variables.
        rewritten: the graph at other sizes; None for the one that lies beside the checkpoint.

    Returns:
        The serialized MetaGraphDef, and the keys that none of its savers has; None where there is
        no graph, or no saver in it that has any.

    Raises:
        InputError: the graph is damaged.
    """
    found = read_definition(source)
    if found is None or found.meta is None:
        return None
    path, _, meta = found
    if rewritten is not None:
        meta = definition_of(path, rewritten, "what was rewritten of it").meta
    nodes = {node.name: node for node in meta.graph_def.node}
    named = {_constant(node.input[1]) for node in nodes.values() if _is_saver(node)}
    known: set[str] = set()
    for name in named:
        node = nodes.get(name)
        value = node and next((entry.value for entry in node.attr if entry.key == b"value"), None)
        if value is not None:
            value.tensor = _renamed(value.tensor, keys, known, f"{path}: the constant {name!r}")
    if not known:
        return None
    return bytes(meta.SerializeToString()), [key for key in keys if key not in known]


def _is_saver(node: Any) -> bool:
    return text_of(node.op) in SAVES | RESTORES and len(node.input) > 1


def _constant(tensor: bytes) -> bytes:
    """Return the node that gives a tensor."""
    return tensor.partition(b":")[0]


def _renamed(tensor: bytes, keys: Mapping[str, str], known: set[str], subject: str) -> bytes:
    """Return a list of keys with the new ones in their places, and note which were in it."""
    constant = Constant(tensor, subject)
    values = constant.values
    entries: dict[int, Any] = {}
    for place, value in enumerate([] if values is None else values.reshape(-1).tolist()):
        old = text_of(value) if isinstance(value, bytes) else None
        if old is not None and old in keys:
            known.add(old)
            if keys[old] != old:
                entries[place] = encoded(keys[old])
    return constant.with_entries(entries) if entries else tensor
