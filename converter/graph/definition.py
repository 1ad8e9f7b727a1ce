"""The file with the graph of a checkpoint: a `.meta`, a SavedModel or a frozen GraphDef."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from converter.errors import InputError
from converter.formats.messages import is_text_graph, parse, parser
from converter.graph.node import text_of

if TYPE_CHECKING:
    from converter.checkpoint import Checkpoint

_MAX_BYTES = 1 << 31  # protobuf's own limit
# Before this version an empty shape of a placeholder meant that it was not known.
_SCALAR_PLACEHOLDERS = 22


class Definition(NamedTuple):
    """A graph as its file has it.

    Attributes:
        path: the file.
        graph: the GraphDef.
        meta: the MetaGraphDef around it; None for a frozen graph.
    """

    path: Path
    graph: Any
    meta: Any = None

    @property
    def tensorflow(self) -> str:
        """The version of TensorFlow that wrote it, as far as it says."""
        return text_of(self.meta.meta_info_def.tensorflow_version) if self.meta is not None else ""

    @property
    def has_scalar_placeholders(self) -> bool:
        """Whether the empty shape of a placeholder is that of a scalar, and not of anything."""
        return bool(self.graph.versions.producer >= _SCALAR_PLACEHOLDERS)

    def collected(self, collection: str, name: str) -> Iterator[Any]:
        """Yield the members of a collection, which are messages `name`.

        Raises:
            InputError: one is not.
        """
        read = parser(name, f"{self.path}: ")
        for entry in self.meta.collection_def if self.meta is not None else ():
            if text_of(entry.key) == collection:
                for member in entry.value.bytes_list.value:
                    yield read(member, f"its collection {collection}")


def read_definition(checkpoint: Checkpoint) -> Definition | None:
    """Return the graph that belongs to a checkpoint, or None where there is none.

    Raises:
        InputError: the file cannot be read, is text, or is damaged.
    """
    if checkpoint.graph_from is not None:
        return read_definition(checkpoint.graph_from)
    if checkpoint.meta is not None:
        path = checkpoint.path if checkpoint.is_in_memory else checkpoint.meta
        return definition_of(path, _bytes(checkpoint.meta), "it")
    if checkpoint.is_frozen:
        path = checkpoint.path
        return Definition(path, parse("GraphDef", _bytes(checkpoint.files[0]), f"{path}: it"))
    if (exported := checkpoint.exported) is not None:
        model = parse("SavedModel", _bytes(exported), f"{exported}: it")
        graphs = sorted(model.meta_graphs, key=_is_for_training)
        return Definition(exported, graphs[0].graph_def, graphs[0]) if graphs else None
    return None


def names_by_key(checkpoint: Checkpoint) -> dict[str, str]:
    """Return the names of the variables of a graph that have other keys in its checkpoint."""
    stored = (checkpoint.graph_from or checkpoint).stored_keys
    return {key: name for name, keys in stored.items() for key in keys}


def definition_of(path: Path, meta: bytes, subject: str) -> Definition:
    """Return the graph that a serialized MetaGraphDef holds.

    Raises:
        InputError: it is damaged; the message says so of `subject`.
    """
    message = parse("MetaGraphDef", meta, f"{path}: {subject}")
    return Definition(path, message.graph_def, message)


def _is_for_training(meta: Any) -> bool:
    """Whether a graph of an export is another one than that to serve, where there are several."""
    return b"serve" not in meta.meta_info_def.tags


def _bytes(path: Path) -> bytes:
    try:
        if path.stat().st_size >= _MAX_BYTES:
            raise InputError(f"{path}: it is larger than a graph can be (2 GiB); it is damaged")
        data = path.read_bytes()
        if not data:
            raise InputError(f"{path}: the file is empty, and was to hold a graph; remove it")
    except OSError as error:
        raise InputError(f"{path}: the file cannot be read ({error.strerror})") from None
    if is_text_graph(data):
        raise InputError(
            f"{path}: this graph is text, and only binary ones are read; write it with "
            "as_text=False"
        )
    return data
