"""Calls of functions, replaced by the nodes of the functions.

A call leaves a node of its own name behind, of one of three kinds that are no ops of TensorFlow:
`_Join` gives out what either branch of a condition gives; `_Loop` takes one variable of a loop as
it comes in, and as it is after a turn, and gives it out. `_Return` gives out each of its inputs; it
is left out where something takes these, which then takes them from where they come.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from converter.errors import InputError

_LEFT = frozenset({"_Return", "_Join", "_Loop"})
_MAX_NODES = 1 << 20
_MAX_DEPTH = 24

_CALLS = frozenset({"PartitionedCall", "StatefulPartitionedCall"})
_BRANCHES = frozenset({"If", "StatelessIf", "Case", "StatelessCase"})
_LOOPS = frozenset({"While", "StatelessWhile"})

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


class Raw(NamedTuple):
    """A node as it is written: inputs are texts such as `name:1`.

    Attributes:
        origin: the function that it was written in, and its name there; None for the graph.
    """

    name: str
    op: str
    inputs: tuple[str, ...]
    attributes: Mapping[str, Any]
    depth: int = 0
    origin: tuple[str, str] | None = None


def inline(definition: Any, subject: str) -> list[Raw]:
    """Return the nodes of a GraphDef with all calls replaced.

    Raises:
        InputError: two nodes have one name, or the functions call each other without end.
    """
    functions = {function.signature.name: function for function in definition.library.function}
    found: list[Raw] = []
    names: set[str] = set()
    # A graph names the same few attributes and ops in every node.
    text = functools.cache(_text)
    waiting = [_raw(node, text) for node in definition.node]
    waiting.reverse()
    while waiting:
        raw = waiting.pop()
        if raw.name in names:
            raise InputError(f"{subject}: two nodes are named {raw.name}; it is damaged")
        names.add(raw.name)
        bodies = _bodies(raw, functions)
        if not bodies:
            found.append(raw)
            continue
        if raw.depth == _MAX_DEPTH or len(found) + len(waiting) > _MAX_NODES:
            raise InputError(f"{subject}: its functions call each other without end; it is damaged")
        for new in _replaced(raw, bodies):
            if new.op in _LEFT:
                found.append(new)
                names.add(new.name)
            else:
                waiting.append(new)
    return _without_returns(found)


def _without_returns(raws: list[Raw]) -> list[Raw]:
    """Take what calls return from where it comes, and leave out the calls that are taken from."""
    returns = {raw.name: raw.inputs for raw in raws if raw.op == "_Return"}
    if not returns:
        return raws
    taken: set[str] = set()

    def source(text: str) -> str:
        # Calls may be nested in each other's results, though not in circles for long.
        for _ in range(_MAX_DEPTH + 1):
            name, colon, port = text.rpartition(":")
            name, port = (name, port) if colon and port.isdecimal() else (text, "0")
            if name not in returns or len(port) > 6 or int(port) >= len(returns[name]):
                break
            taken.add(name)
            text = returns[name][int(port)]
        return text

    found = [raw._replace(inputs=tuple(map(source, raw.inputs))) for raw in raws]
    return [raw for raw in found if raw.name not in taken]


def _text(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")


def _raw(node: Any, text: Callable[[bytes], str] = _text) -> Raw:
    return Raw(
        _text(node.name),
        text(node.op),
        tuple([_text(i) for i in node.input if not i.startswith(b"^")]),
        {text(entry.key): entry.value for entry in node.attr},
    )


def _bodies(raw: Raw, functions: Mapping[bytes, Any]) -> list[Any]:
    """Return the functions that a node calls; none where they are not in the graph."""
    if raw.op in _CALLS:
        names = [raw.attributes["f"].func.name] if "f" in raw.attributes else []
    elif raw.op in _LOOPS:
        names = [raw.attributes["body"].func.name] if "body" in raw.attributes else []
    elif raw.op in ("If", "StatelessIf"):
        keys = ("then_branch", "else_branch")
        names = [raw.attributes[key].func.name for key in keys if key in raw.attributes]
    elif raw.op in _BRANCHES and "branches" in raw.attributes:
        names = [function.name for function in raw.attributes["branches"].list.func]
    else:
        # TensorFlow 1 calls a function by an op of the function's name.
        names = [raw.op.encode("utf-8", "surrogateescape")] if functions else []
    bodies = [functions[name] for name in names if name in functions]
    return bodies if len(bodies) == len(names) else []


def _replaced(call: Raw, bodies: list[Any]) -> Iterator[Raw]:
    if call.op in _LOOPS:
        arguments = [f"{call.name}/_turn_{i}" for i in range(len(call.inputs))]
        for name, source in zip(arguments, call.inputs, strict=True):
            yield Raw(name, "Identity", (source,), {}, call.depth + 1)
        returned = yield from _body(call, bodies[0], "", arguments)
        joined = []
        for i, (before, after) in enumerate(zip(arguments, returned, strict=False)):
            joined.append(f"{call.name}/_loop_{i}")
            yield Raw(joined[-1], "_Loop", (before, after), {}, call.depth + 1)
        yield Raw(call.name, "_Return", tuple(joined), call.attributes, call.depth)
    elif call.op in _BRANCHES:
        results = []
        for number, body in enumerate(bodies):
            results.append((yield from _body(call, body, f"_branch_{number}/", call.inputs[1:])))
        count = min(map(len, results))
        for i in range(count):
            sources = tuple(result[i] for result in results)
            yield Raw(f"{call.name}/_join_{i}", "_Join", sources, {}, call.depth + 1)
        joined = [f"{call.name}/_join_{i}" for i in range(count)]
        yield Raw(call.name, "_Return", tuple(joined), call.attributes, call.depth)
    else:
        returned = yield from _body(call, bodies[0], "", call.inputs)
        yield Raw(call.name, "_Return", tuple(returned), call.attributes, call.depth)


def _body(call: Raw, body: Any, inner: str, arguments: Iterable[str]) -> Any:
    """Yield the nodes of a function's body; return what the function returns."""
    scope = f"{call.name}/{inner}"
    given = {_text(a.name): v for a, v in zip(body.signature.input_arg, arguments, strict=False)}
    ops = {_text(node.name): _text(node.op) for node in body.node_def}

    def resolve(text: str) -> str:
        name, _, rest = text.partition(":")
        if name in given:
            return given[name]
        output, _, index = rest.partition(":")
        ports = _PORTS.get(ops.get(name, ""), ())
        port = ports.index(output) if output in ports else 0
        return f"{scope}{name}:{port + (int(index) if index.isdecimal() and len(index) < 7 else 0)}"

    for node in body.node_def:
        raw = _raw(node)
        inputs = tuple(resolve(text) for text in raw.inputs)
        origin = (_text(body.signature.name), raw.name)
        yield Raw(scope + raw.name, raw.op, inputs, raw.attributes, call.depth + 1, origin)
    returned = {_text(entry.key): _text(entry.value) for entry in body.ret}
    outputs = [_text(argument.name) for argument in body.signature.output_arg]
    return [resolve(returned[name]) for name in outputs if name in returned]
