"""The signatures of an exported model: what its inputs and outputs are called from outside."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from converter.errors import UsageError, did_you_mean
from converter.graph.node import tensor, texts
from converter.graph.written import Graph


@dataclass(frozen=True, slots=True)
class Signature:
    """A signature of an exported model.

    Attributes:
        inputs: the tensor of each input, by its name.
        outputs: the tensors of its outputs.
    """

    inputs: Mapping[str, str]
    outputs: tuple[str, ...]


def signature_of(graph: Graph, name: str | None) -> Signature | None:
    """Return a signature by its name; None where no name is given and there is not one alone.

    Raises:
        UsageError: the graph has no such signature.
    """
    found = _signatures(graph)
    if name is None:
        return next(iter(found.values())) if len(found) == 1 else None
    if name not in found:
        listed = f"; it has {', '.join(found)}" if found else "; leave it out (--signature)"
        near = did_you_mean(name, found) or listed
        raise UsageError(f"{graph.path}: it has no signature {name!r}{near}")
    return found[name]


def _signatures(graph: Graph) -> dict[str, Signature]:
    meta = graph.definition.meta
    found = {}
    for entry in meta.signature_def if meta is not None else ():
        outputs = list(_tensors(graph, entry.value.outputs).values())
        # What initialises an exported model has a signature too, of an operation.
        if outputs:
            (name,) = texts([entry.key])
            inputs = _tensors(graph, entry.value.inputs)
            found[name] = Signature(inputs, tuple(dict.fromkeys(outputs)))
    return found


def _tensors(graph: Graph, entries: Any) -> dict[str, str]:
    found = {}
    for entry in entries:
        name, source = texts([entry.key, entry.value.name])
        if ":" in source and tensor(source).node in graph.nodes and "__saved_model" not in name:
            found[name] = str(tensor(source))
    return found
