"""The signatures of an exported model: what its inputs and outputs are called from outside."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from converter.errors import UsageError, did_you_mean
from converter.graph.node import Node, Tensor, tensor, text_of, texts
from converter.graph.written import Graph, read_graph

if TYPE_CHECKING:
    from converter.checkpoint import Checkpoint

_DEFAULT = "serving_default"


@dataclass(frozen=True, slots=True)
class Signature:
    """A signature of an exported model.

    Attributes:
        name: of the signature.
        inputs: the tensor of each input, by its name.
        outputs: the tensor of each output, by its name.
    """

    name: str
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]


def signature_of(
    graph: Graph, name: str | None = None, flag: str = "--signature"
) -> Signature | None:
    """Return a signature by its name.

    Where no name is given it is the only one, or the one to serve by default where all of them call
    one function with the same inputs, as in exports of Keras 3; else None.

    Args:
        graph: the graph.
        name: of the signature; None for what nobody needs to choose.
        flag: the option that gives the name, for errors.

    Raises:
        UsageError: the graph has no such signature.
    """
    found = signatures(graph)
    if name is None:
        computed = {_computed(graph, signature) for signature in found.values()}
        first = next(iter(found.values()), None)
        return found.get(_DEFAULT, first) if len(computed) == 1 else None
    if name not in found:
        check_signed(graph)
        listed = f"; it has {', '.join(found)}" if found else f"; leave it out ({flag})"
        near = did_you_mean(name, found) or listed
        raise UsageError(f"{graph.path}: it has no signature {name!r}{near}")
    return found[name]


class Counterparts(NamedTuple):
    """What the signatures of two exports call the same, whatever the tensors are called.

    Attributes:
        inputs: those of the second for each tensor that the first calls an input; none where the
            second has no such input.
        outputs: the same of outputs.
    """

    inputs: Mapping[Tensor, tuple[Tensor, ...]]
    outputs: Mapping[Tensor, tuple[Tensor, ...]]


def counterparts(first: Graph, second: Graph) -> Counterparts:
    """Match what two graphs take and give by signatures: nothing where one of them has none.

    Names of tensors say nothing of exports: they number the calls and sort the outputs. Where each
    signature has but one more input or output, that is the same one, as Keras numbers layers anew.
    """
    ones, others = signatures(first), signatures(second)
    pairs = [(ones[name], others[name]) for name in ones if name in others]
    one, other = signature_of(first), signature_of(second)
    if one is not None and other is not None:
        pairs = [(one, other)]
    return Counterparts(
        _matched((a.inputs, b.inputs) for a, b in pairs),
        _matched((a.outputs, b.outputs) for a, b in pairs),
    )


def _matched(
    pairs: Iterable[tuple[Mapping[str, str], Mapping[str, str]]],
) -> dict[Tensor, tuple[Tensor, ...]]:
    found: dict[Tensor, dict[Tensor, None]] = {}
    for ones, others in pairs:
        left = [name for name in ones if name not in others]
        right = [name for name in others if name not in ones]
        same = dict(zip(left, right, strict=True)) if len(left) == len(right) == 1 else {}
        for name, source in ones.items():
            targets = found.setdefault(tensor(source), {})
            target = others.get(same.get(name, name))
            if target is not None:
                targets[tensor(target)] = None
    return {source: tuple(targets) for source, targets in found.items()}


def called_inputs(graph: Graph) -> Mapping[str, str]:
    """Return the tensors of inputs by the names of the signature that nobody needs to choose."""
    signed = signature_of(graph)
    return {} if signed is None else signed.inputs


def check_signed(graph: Graph) -> None:
    """Refuse an export of TensorFlow 2 without signatures: only these call its functions.

    Raises:
        UsageError: it is one.
    """
    meta = graph.definition.meta
    if meta is not None and meta.object_graph_def and not signatures(graph):
        raise UsageError(
            f"{graph.path}: it was exported without signatures, so nothing in its graph runs the "
            "model; export it again with one (tf.saved_model.save(..., signatures=...))"
        )


def check_callable(checkpoint: Checkpoint) -> None:
    """Refuse what `check_signed` refuses, if the checkpoint has a graph.

    Raises:
        UsageError: it is an export without signatures.
    """
    graph = read_graph(checkpoint)
    if graph is not None:
        check_signed(graph)


def _computed(graph: Graph, signature: Signature) -> Hashable:
    """Return what is the same of two signatures that compute the same, whatever they are called."""
    names = {source: name for name, source in signature.inputs.items()}
    found = []
    for output in map(tensor, dict.fromkeys(signature.outputs.values())):
        node = graph.nodes[output.node]
        body = graph.functions.get(_function(node))
        taken = tuple(names.get(str(source), str(source)) for source in node.sources)
        does: Hashable = node.name if body is None else _written(body)
        found.append((does, taken, output.port))
    return tuple(sorted(signature.inputs)), tuple(found)


def _function(node: Node) -> str:
    return text_of(node.attributes["f"].func.name) if "f" in node.attributes else ""


def _written(body: Any) -> Hashable:
    """Return what a function does, but for its own name. Those of others that it calls are told."""
    nodes = [
        (
            node.name,
            node.op,
            tuple(node.input),
            tuple(sorted((entry.key, entry.value.SerializeToString()) for entry in node.attr)),
        )
        for node in body.node_def
    ]
    arguments = [argument.name for argument in body.signature.input_arg]
    returned = {entry.key: entry.value for entry in body.ret}
    outputs = [returned.get(argument.name) for argument in body.signature.output_arg]
    return tuple(nodes), tuple(arguments), tuple(outputs)


def signatures(graph: Graph) -> dict[str, Signature]:
    """Return the signatures of a graph that give tensors, by their names."""
    meta = graph.definition.meta
    found = {}
    for entry in meta.signature_def if meta is not None else ():
        outputs = _tensors(graph, entry.value.outputs)
        # What initialises an exported model has a signature too, of an operation.
        if outputs:
            (name,) = texts([entry.key])
            found[name] = Signature(name, _tensors(graph, entry.value.inputs), outputs)
    return found


def _tensors(graph: Graph, entries: Any) -> dict[str, str]:
    found = {}
    for entry in entries:
        name, source = texts([entry.key, entry.value.name])
        if ":" in source and tensor(source).node in graph.nodes and "__saved_model" not in name:
            found[name] = str(tensor(source))
    return found
