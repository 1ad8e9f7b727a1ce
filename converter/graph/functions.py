"""Calls of functions, replaced by the nodes of the functions.

A call leaves a node of its own name behind, of one of three kinds that are no ops of TensorFlow:
`_Join` gives out what either branch of a condition gives; `_Loop` takes one variable of a loop as
it comes in, and as it is after a turn, and gives it out. `_Return` gives out each of its inputs; it
is left out where something takes these, which then takes them from where they come. What a
condition and its branches take has no nodes of its own, and is noted beside these.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from converter.errors import InputError
from converter.graph.node import Node, Tensor, encoded, read_node, tensor, text_of
from converter.graph.ops import CALLS, CASES, IFS, INLINED, WHILES

_MAX_NODES = 1 << 20
_MAX_DEPTH = 24

# At which port an output begins that is called by its name, where it is not the first one.
_PORTS: Mapping[str, tuple[str, ...]] = {
    "BlockLSTM": ("i", "cs", "f", "o", "ci", "co", "h"),
    "BlockLSTMV2": ("i", "cs", "f", "o", "ci", "co", "h"),
    "CudnnRNN": ("output", "output_h", "output_c", "reserve_space"),
    "CudnnRNNV2": ("output", "output_h", "output_c", "reserve_space", "host_reserved"),
    "CudnnRNNV3": ("output", "output_h", "output_c", "reserve_space", "host_reserved"),
    "FusedBatchNorm": ("y", "batch_mean", "batch_variance"),
    "FusedBatchNormV2": ("y", "batch_mean", "batch_variance"),
    "FusedBatchNormV3": ("y", "batch_mean", "batch_variance"),
    "GRUBlockCell": ("r", "u", "c", "h"),
    "LSTMBlockCell": ("i", "cs", "f", "o", "ci", "co", "h"),
    "Merge": ("output", "value_index"),
    "SoftmaxCrossEntropyWithLogits": ("loss", "backprop"),
    "SparseSoftmaxCrossEntropyWithLogits": ("loss", "backprop"),
    "Switch": ("output_false", "output_true"),
    "TensorArrayV3": ("handle", "flow"),
    "TensorListPopBack": ("output_handle", "tensor"),
    "TopKV2": ("values", "indices"),
    "Unique": ("y", "idx"),
    "UniqueV2": ("y", "idx"),
}


class Inlined(NamedTuple):
    """The nodes of a graph without calls.

    Attributes:
        nodes: what is left.
        handed: by the name of each condition the tensors that its branches are handed.
    """

    nodes: list[Node]
    handed: Mapping[str, tuple[Tensor, ...]]


def inline(definition: Any, subject: str) -> Inlined:
    """Return the nodes of a GraphDef with all calls replaced.

    Raises:
        InputError: two nodes have one name, or the functions call each other without end.
    """
    functions = {function.signature.name: function for function in definition.library.function}
    found: list[Node] = []
    names: set[str] = set()
    handed: dict[str, tuple[Tensor, ...]] = {}
    waiting = [(read_node(message), 0) for message in definition.node]
    waiting.reverse()
    while waiting:
        node, depth = waiting.pop()
        if node.name in names:
            raise InputError(f"{subject}: two nodes are named {node.name}; it is damaged")
        names.add(node.name)
        bodies = _bodies(node, functions)
        if not bodies:
            found.append(node)
            continue
        if depth == _MAX_DEPTH or len(found) + len(waiting) > _MAX_NODES:
            raise InputError(f"{subject}: its functions call each other without end; it is damaged")
        if node.op in IFS | CASES:
            handed[node.name] = node.sources[1:]
        for new in _replaced(node, bodies):
            if new.op in INLINED:
                found.append(new)
                names.add(new.name)
            else:
                waiting.append((new, depth + 1))
    return _without_returns(found, handed)


def called_nodes(node: Node, functions: Mapping[bytes, Any]) -> Iterator[Node]:
    """Yield the nodes of all functions that a node calls, and that these call, each once.

    Args:
        node: the node.
        functions: those of the graph, by name.
    """
    waiting, seen = [node], set()
    while waiting:
        for body in _bodies(waiting.pop(), functions):
            if body.signature.name in seen:
                continue
            seen.add(body.signature.name)
            for message in body.node_def:
                waiting.append(read_node(message))
                yield waiting[-1]


def _without_returns(nodes: list[Node], handed: Mapping[str, tuple[Tensor, ...]]) -> Inlined:
    """Take what calls return from where it comes, and leave out the calls that are taken from."""
    returns = {node.name: node.sources for node in nodes if node.op == "_Return"}
    if not returns:
        return Inlined(nodes, handed)
    taken: set[str] = set()

    def source(given: Tensor) -> Tensor:
        # Calls may be nested in each other's results, though not in circles for long.
        for _ in range(_MAX_DEPTH + 1):
            if given.node not in returns or given.port >= len(returns[given.node]):
                break
            taken.add(given.node)
            given = returns[given.node][given.port]
        return given

    for node in nodes:
        node.sources = tuple(map(source, node.sources))
        if node.chooser is not None:
            node.chooser = source(node.chooser)
    handed = {name: tuple(map(source, sources)) for name, sources in handed.items()}
    return Inlined([node for node in nodes if node.name not in taken], handed)


def _bodies(node: Node, functions: Mapping[bytes, Any]) -> list[Any]:
    """Return the functions that a node calls; none where they are not in the graph."""
    if node.op in CALLS:
        names = [node.attributes["f"].func.name] if "f" in node.attributes else []
    elif node.op in WHILES:
        keys = ("body", "cond") if "body" in node.attributes else ()
        names = [node.attributes[key].func.name for key in keys if key in node.attributes]
    elif node.op in IFS:
        keys = ("then_branch", "else_branch")
        names = [node.attributes[key].func.name for key in keys if key in node.attributes]
    elif node.op in CASES and "branches" in node.attributes:
        names = [function.name for function in node.attributes["branches"].list.func]
    else:
        # TensorFlow 1 calls a function by an op of the function's name.
        names = [encoded(node.op)] if functions else []
    bodies = [functions[name] for name in names if name in functions]
    return bodies if len(bodies) == len(names) else []


def _replaced(call: Node, bodies: list[Any]) -> Iterator[Node]:
    if call.op in WHILES:
        arguments = [Tensor(f"{call.name}/_turn_{i}") for i in range(len(call.sources))]
        for argument, source in zip(arguments, call.sources, strict=True):
            yield Node(argument.node, "Identity", (source,), {})
        returned = yield from _body(bodies[0], f"{call.name}/", arguments)
        goes_on = yield from _chooser(call, bodies[1:], arguments)
        joined = []
        for i, (before, after) in enumerate(zip(arguments, returned, strict=False)):
            joined.append(Tensor(f"{call.name}/_loop_{i}"))
            yield Node(joined[-1].node, "_Loop", (before, after), {}, chooser=goes_on)
    elif call.op in IFS | CASES:
        chooser = next(iter(call.sources), None)
        results = []
        for number, body in enumerate(bodies):
            scope = f"{call.name}/_branch_{number}/"
            results.append((yield from _body(body, scope, call.sources[1:])))
        joined = []
        for i, sources in enumerate(zip(*results, strict=False)):
            joined.append(Tensor(f"{call.name}/_join_{i}"))
            yield Node(joined[-1].node, "_Join", sources, {}, chooser=chooser)
    else:
        joined = yield from _body(bodies[0], f"{call.name}/", call.sources)
    yield Node(call.name, "_Return", tuple(joined), call.attributes)


def _chooser(
    call: Node, conditions: list[Any], arguments: Iterable[Tensor]
) -> Generator[Node, None, Tensor | None]:
    """Yield the nodes of a loop's condition; return what says whether it goes on."""
    for condition in conditions:
        returned = yield from _body(condition, f"{call.name}/_condition/", arguments)
        return next(iter(returned), None)
    return None


def _body(
    body: Any, scope: str, arguments: Iterable[Tensor]
) -> Generator[Node, None, list[Tensor]]:
    """Yield the nodes of a function's body; return what the function returns."""
    given = {text_of(a.name): v for a, v in zip(body.signature.input_arg, arguments, strict=False)}
    ops = {text_of(node.name): text_of(node.op) for node in body.node_def}

    def resolve(inside: Tensor) -> Tensor:
        """Return what `name:output:1` is outside of the function, where outputs have no names."""
        name, _, output = inside.node.partition(":")
        if name in given:
            return given[name]
        ports = _PORTS.get(ops.get(name, ""), ())
        first = ports.index(output) if output in ports else 0
        return Tensor(scope + name, first + inside.port)

    origin = text_of(body.signature.name)
    for message in body.node_def:
        node = read_node(message)
        node.sources = tuple(map(resolve, node.sources))
        node.controls = tuple(scope + name for name in node.controls)
        node.origin = (origin, node.name)
        node.name = scope + node.name
        yield node
    returned = {text_of(entry.key): tensor(text_of(entry.value)) for entry in body.ret}
    outputs = [text_of(argument.name) for argument in body.signature.output_arg]
    return [resolve(returned[name]) for name in outputs if name in returned]
