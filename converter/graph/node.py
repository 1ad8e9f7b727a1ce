"""One operation of a graph, its attributes, and the names of tensors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from converter.dtype import BY_TENSORFLOW, DType

_HANDLES = frozenset({20, 21})  # resource, variant
_MAX_DIGITS = 6

Shape = tuple[int | None, ...]
"""The sizes of a tensor, None where one is not known."""


class Tensor(NamedTuple):
    """The name of one output of a node, which people write `name` or `name:1`."""

    node: str
    port: int = 0

    def __str__(self) -> str:
        return f"{self.node}:{self.port}" if self.port else self.node


def tensor(text: str) -> Tensor:
    """Return what `name`, `name:0` or `name:1` means."""
    name, colon, port = text.rpartition(":")
    if colon and port.isdecimal() and len(port) <= _MAX_DIGITS:
        return Tensor(name, int(port))
    return Tensor(text)


class Output(NamedTuple):
    """One output of a node, in a graph whose nodes know each other."""

    node: Node
    port: int


class Node:
    """One operation.

    Attributes:
        name: the name; what a call brought in has the name of the call before its own.
        op: the kind of operation.
        sources: the tensors that it takes, by name.
        controls: the nodes that run before it, by name.
        chooser: the tensor that decides which branch of a condition it gives out, or how often a
            loop is gone round; None where it takes all that decides what it gives.
        attributes: the AttrValues by name.
        origin: the function that it was written in, and its name there; None for the graph.
        inputs: what `sources` name, in an ordered graph; there and nowhere else.
        order: its place in an ordered graph.
    """

    __slots__ = (
        "attributes",
        "chooser",
        "controls",
        "inputs",
        "name",
        "op",
        "order",
        "origin",
        "sources",
    )

    def __init__(
        self,
        name: str,
        op: str,
        sources: tuple[Tensor, ...],
        attributes: Mapping[str, Any],
        origin: tuple[str, str] | None = None,
        controls: tuple[str, ...] = (),
        chooser: Tensor | None = None,
    ) -> None:
        self.name = name
        self.op = op
        self.sources = sources
        self.controls = controls
        self.chooser = chooser
        self.attributes = attributes
        self.origin = origin
        self.inputs: tuple[Output, ...] = ()
        self.order = -1

    def __repr__(self) -> str:
        return f"<{self.op} {self.name}>"

    def integer(self, key: str, default: int = 0) -> int:
        """Return an attribute that is a number, or a truth."""
        value = self.attributes.get(key)
        return default if value is None else int(value.i or value.b)

    def integers(self, key: str) -> list[int]:
        """Return an attribute that is a list of numbers."""
        value = self.attributes.get(key)
        return [] if value is None else list(value.list.i)

    def text(self, key: str, default: str = "") -> str:
        """Return an attribute that is a text."""
        value = self.attributes.get(key)
        return default if value is None else text_of(value.s)

    def dtype(self, key: str, index: int | None = None) -> DType | None:
        """Return an attribute that is a dtype, or one of a list; None where it says none.

        References to a dtype are that dtype.
        """
        value = self.attributes.get(key)
        if value is None:
            return None
        if index is None:
            return dtype_of(value.type)
        listed = value.list.type
        return dtype_of(listed[index]) if index < len(listed) else None

    def shape(self, key: str, index: int | None = None) -> Shape | None:
        """Return an attribute that is a shape, or one of a list of shapes; None for no rank."""
        value = self.attributes.get(key)
        if value is None:
            return None
        if index is None:
            return shape_of(value.shape)
        listed = value.list.shape
        return shape_of(listed[index]) if index < len(listed) else None

    def is_handle(self, port: int) -> bool:
        """Whether an output is a handle: what it stands for has another shape than itself."""
        for key in ("T", "dtype", "Tout"):
            value = self.attributes.get(key)
            if value is not None:
                listed = value.list.type
                return (listed[port] if port < len(listed) else value.type) in _HANDLES
        return False


def read_node(message: Any) -> Node:
    """Return the node that a NodeDef tells of."""
    sources: list[Tensor] = []
    controls: list[str] = []
    for data in message.input:
        if data.startswith(b"^"):
            controls.append(text_of(data[1:]))
        else:
            sources.append(tensor(text_of(data)))
    attributes = {text_of(entry.key): entry.value for entry in message.attr}
    return Node(
        text_of(message.name),
        text_of(message.op),
        tuple(sources),
        attributes,
        None,
        tuple(controls),
    )


def text_of(data: bytes) -> str:
    """Return a name or a text of a graph, whatever bytes are in it."""
    return data.decode("utf-8", "surrogateescape")


def texts(values: Iterable[bytes]) -> Iterator[str]:
    """Yield the names or texts of a graph."""
    return map(text_of, values)


def encoded(name: str) -> bytes:
    """Return the bytes of what `text_of` returned."""
    return name.encode("utf-8", "surrogateescape")


def shape_of(message: Any) -> Shape | None:
    """Return the sizes of a TensorShapeProto; None where not even the rank is known."""
    if message.unknown_rank:
        return None
    return tuple(dim.size if dim.size >= 0 else None for dim in message.dim)


def dtype_of(number: int) -> DType | None:
    """Return the dtype of TensorFlow's number; of a reference to it, too."""
    return BY_TENSORFLOW.get(number - 100 if number > 100 else number)
