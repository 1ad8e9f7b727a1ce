"""Makes tensors inside loops, conditions and functions reachable, where they cannot be fetched.

Each is put into a queue on its way. The queue is made where the tensor is, after it, so that it is
in the same iteration of the same loop; and what takes the tensor waits until it is in the queue.
What is dead in a branch stays dead, and loops stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from converter.errors import InputError
from converter.formats.messages import parse
from converter.forward.graph import Tensor
from converter.forward.ops import CALLS

BOOL = 10
_MAX_DEPTH = 24
_BRANCH = "_branch_"


@dataclass(frozen=True, slots=True)
class Tap:
    """A tensor that is put into a queue.

    Attributes:
        queue: the shared name of the queue.
        tensor: which; the calls before its own name lead into functions.
        mask: a bool tensor beside it that is put into the queue with it, or None.
    """

    queue: str
    tensor: Tensor
    mask: Tensor | None


def instrument(
    definition: bytes, taps: Sequence[Tap], op_definition: Callable[[str], Any], subject: str
) -> tuple[bytes, dict[str, int]]:
    """Put tensors of a graph into queues.

    Args:
        definition: a serialized GraphDef.
        taps: what is put into queues; what the graph lacks is passed over.
        op_definition: gives the OpDef of an op, None where there is none.
        subject: the subject of errors.

    Returns:
        The serialized GraphDef, and TensorFlow's number of the dtype in each queue.

    Raises:
        InputError: a tensor cannot be put into a queue.
    """
    graph = parse("GraphDef", definition, subject)
    root = _Scope(graph.node, None, graph.library, op_definition)
    dtypes: dict[str, int] = {}
    for tap in taps:
        found = _located(root, tap.tensor.node)
        if found is None:
            continue
        scope, name = found
        mask = None
        if tap.mask is not None:
            beside = _located(root, tap.mask.node)
            if beside is None or beside[0] is not scope:
                raise InputError(
                    f"{subject}: {tap.mask}, which masks {tap.tensor}, is not beside it"
                )
            mask = scope.reference(beside[1], tap.mask.port)[0]
        dtypes[tap.queue] = scope.tap(tap.queue, name, tap.tensor.port, mask)
    for scope in root.all():
        scope.rewire()
    return graph.SerializeToString(), dtypes


class _Scope:
    """The nodes of a graph, or of the copy of a function for one call of it.

    Attributes:
        nodes: by name.
    """

    def __init__(
        self, nodes: Any, function: Any, library: Any, op_definition: Callable[[str], Any]
    ) -> None:
        self._list = nodes
        self._function = function
        self._library = library
        self._op_definition = op_definition
        self.nodes: dict[str, Any] = {_text(node.name): node for node in nodes}
        self._inner: dict[tuple[str, int], _Scope] = {}
        # What is taken instead of a tensor, by its text; and what whatever follows a node awaits.
        self._instead: dict[bytes, bytes] = {}
        self._awaited: dict[bytes, list[bytes]] = {}
        self._own: set[bytes] = set()

    def all(self) -> Iterator[_Scope]:
        """Yield this and all functions that were copied for it."""
        yield self
        for inner in self._inner.values():
            yield from inner.all()

    def called(self, name: str) -> list[bytes]:
        """Return the functions of the graph that a node calls."""
        node = self.nodes[name]
        known = {f.signature.name for f in self._library.function}
        return [f for f in (attr.name for attr in _called(node)) if f in known] or (
            [node.op] if node.op in known else []
        )

    def inside(self, name: str, number: int) -> _Scope:
        """Return the function that a node calls, copied so that no other node calls it."""
        if (name, number) not in self._inner:
            node = self.nodes[name]
            old = self.called(name)[number]
            new = _free(old, {f.signature.name for f in self._library.function})
            original = next(f for f in self._library.function if f.signature.name == old)
            copy = self._library.function.add()
            copy.CopyFrom(original)
            copy.signature.name = new
            functions = _called(node)
            if functions:
                functions[number].name = new
            else:
                node.op = new
            scope = _Scope(copy.node_def, copy, self._library, self._op_definition)
            self._inner[name, number] = scope
        return self._inner[name, number]

    def reference(self, name: str, port: int) -> tuple[bytes, int]:
        """Return the text by which a tensor is taken here, and TensorFlow's number of its dtype."""
        node = self.nodes[name]
        definition = self._op_definition(_text(node.op))
        for argument, index, flat, dtype in _outputs(node, definition):
            if flat == port:
                if self._function is None:
                    return node.name + (b":%d" % port if port else b""), dtype
                return b":".join([node.name, argument.encode(), b"%d" % index]), dtype
        raise InputError(f"{name}: it has no output {port} that could be measured")

    def tap(self, queue: str, name: str, port: int, mask: bytes | None) -> int:
        """Put a tensor into a queue; return TensorFlow's number of its dtype."""
        source, dtype = self.reference(name, port)
        types = [dtype] if mask is None else [dtype, BOOL]
        suffix = b"" if self._function is None else b":handle:0"
        place = queue.encode()
        held = self._add(place, b"FIFOQueueV2", [b"^" + self.nodes[name].name])
        _set(held, "component_types", types=types)
        _set(held, "shapes", types=[])
        _set(held, "capacity", i=-1)
        _set(held, "container", s=b"")
        _set(held, "shared_name", s=queue.encode())
        values = [source] if mask is None else [source, mask]
        put = self._add(place + b"/put", b"QueueEnqueueV2", [held.name + suffix, *values])
        _set(put, "Tcomponents", types=types)
        _set(put, "timeout_ms", i=-1)
        passed = self._instead.get(source)
        if passed is None:
            identity = self._add(place + b"/passed", b"Identity", [source])
            _set(identity, "T", type=dtype)
            out = b"" if self._function is None else b":output:0"
            passed = self._instead[source] = identity.name + out
        identity = self.nodes[_text(passed.partition(b":")[0])]
        identity.input.append(b"^" + put.name)
        self._awaited.setdefault(self.nodes[name].name, []).append(b"^" + put.name)
        return dtype

    def _add(self, name: bytes, op: bytes, inputs: Sequence[bytes]) -> Any:
        while _text(name) in self.nodes:
            name += b"_"
        node = self._list.add(name=name, op=op, input=list(inputs))
        self.nodes[_text(name)] = node
        self._own.add(name)
        return node

    def rewire(self) -> None:
        """Let whatever takes a tensor that is put into a queue wait until it is there."""
        for node in self._list:
            if node.name in self._own:
                continue
            awaited: list[bytes] = []
            for number, text in enumerate(node.input):
                if text in self._instead:
                    node.input[number] = self._instead[text]
                else:
                    # Of several outputs another one may be all that is taken.
                    awaited += self._awaited.get(text.partition(b":")[0], ())
            node.input.extend(dict.fromkeys(awaited))
        for entry in self._function.ret if self._function is not None else ():
            entry.value = self._instead.get(entry.value, entry.value)


def _located(root: _Scope, name: str) -> tuple[_Scope, str] | None:
    """Return where a node is, whose name may begin with the calls that lead into functions."""
    waiting = [(root, name, 0)]
    while waiting:
        scope, rest, depth = waiting.pop()
        if rest in scope.nodes:
            return scope, rest
        parts = rest.split("/")
        for cut in range(1, len(parts)):
            call, inner = "/".join(parts[:cut]), "/".join(parts[cut:])
            functions = scope.called(call) if call in scope.nodes and depth < _MAX_DEPTH else []
            number = 0
            if len(functions) > 1 and inner.startswith(_BRANCH):
                branch, _, inner = inner.removeprefix(_BRANCH).partition("/")
                number = int(branch) if branch.isdecimal() and len(branch) < 6 else len(functions)
            if number < len(functions):
                waiting.append((scope.inside(call, number), inner, depth + 1))
    return None


def _called(node: Any) -> list[Any]:
    """Return the attributes of a node that name functions: one, or one for each branch."""
    by_key = {_text(entry.key): entry.value for entry in node.attr}
    if _text(node.op) in CALLS and "f" in by_key:
        return [by_key["f"].func]
    if "branches" in by_key:
        return list(by_key["branches"].list.func)
    # The condition of a loop is computed from what its body gives.
    keys = [key for key in ("body", "then_branch", "else_branch") if key in by_key]
    return [by_key[key].func for key in keys]


def _outputs(node: Any, definition: Any) -> Iterator[tuple[str, int, int, int]]:
    """Yield the outputs of a node: argument, number in it, number in all, and dtype."""
    if definition is None:
        return
    given = {_text(entry.key): entry.value for entry in node.attr}
    defaults = {attr.name: attr.default_value for attr in definition.attr}
    flat = 0
    for argument in definition.output_arg:
        if argument.type_list_attr:
            listed = given.get(argument.type_list_attr) or defaults[argument.type_list_attr]
            dtypes = list(listed.list.type)
        else:
            dtype = argument.type
            if argument.type_attr:
                dtype = (given.get(argument.type_attr) or defaults[argument.type_attr]).type
            count = 1
            if argument.number_attr:
                count = (given.get(argument.number_attr) or defaults[argument.number_attr]).i
            dtypes = [dtype] * count
        for index, dtype in enumerate(dtypes):
            yield argument.name, index, flat, dtype % 100
            flat += 1


def _set(node: Any, key: str, *, types: Sequence[int] | None = None, **value: Any) -> None:
    entry = node.attr.add(key=key.encode())
    if types is None:
        for field, given in value.items():
            setattr(entry.value, field, given)
    else:
        entry.value.list.SetInParent()
        entry.value.list.type.extend(types)


def _free(name: bytes, taken: set[bytes]) -> bytes:
    number = 0
    while (new := b"%s__measured_%d" % (name, number)) in taken:
        number += 1
    return new


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")
