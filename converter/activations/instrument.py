"""Makes tensors inside loops, conditions and functions reachable, where they cannot be fetched.

They are put into queues on their way. A queue is made where its tensors are, after them, so that it
is in the same iteration of the same loop; and what takes the last of them waits until they are in
the queue. What is dead in a branch stays dead, and loops stay as they are.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from converter.activations.cells import BOOL, INT32, LONGER, Beside, Cell, Graph
from converter.activations.lines import lines
from converter.activations.nodes import (
    called,
    copied,
    hand_over,
    handed_over,
    leads_to,
    outputs_of,
    run_as_written,
)
from converter.errors import InputError
from converter.formats.messages import message, parse
from converter.graph.node import Tensor
from converter.graph.ops import CONTROL_FLOW, ENTERS, PASSING, ops

_MAX_DEPTH = 24
_BRANCH = re.compile(r"_branch_(\d{1,5})/")
_OWN = re.compile(r"_(turn|loop|join)_(\d{1,5})")
_GIVEN = re.compile(r"_given_(\d{1,5})")
# The output of an op that is named otherwise than most are.
_OUTPUTS = {"MatMul": b"product", "Mul": b"z", "Less": b"z", "Cast": b"y"}
_HANDING = PASSING | ops("Cast ToInt64")
_MAX_PASSED = 8


@dataclass(frozen=True, slots=True)
class Tap:
    """A tensor that is put into a queue.

    Attributes:
        tensor: which; the calls before its own name lead into functions.
        mask: a tensor beside it of bools or numbers, or None: whether it is not zero is put into
            the queue with it.
    """

    tensor: Tensor
    mask: Tensor | None


@dataclass(frozen=True, slots=True)
class Filled:
    """A queue that the rewritten graph fills with several tensors at once.

    Attributes:
        name: its shared name.
        dtypes: TensorFlow's number of the dtype of each of them.
        places: which of them is a tap's, by the number of the tap.
        is_masked: whether the last of them is the mask of all others.
    """

    name: str
    dtypes: tuple[int, ...]
    places: Mapping[int, int]
    is_masked: bool


def instrument(
    definition: bytes, taps: Sequence[Tap], op_definition: Callable[[str], Any], subject: str
) -> tuple[bytes, list[Filled]]:
    """Put tensors of a graph into queues.

    Args:
        definition: a serialized GraphDef.
        taps: what is put into queues; what the graph lacks is passed over, and so is what is masked
            by something that cannot be seen where it is.
        op_definition: gives the OpDef of an op, None where there is none.
        subject: the subject of errors.

    Returns:
        The serialized GraphDef, and its queues. Tensors share one that are computed from each
        other, as each queue takes its time in each turn of a loop.

    Raises:
        InputError: a tensor cannot be put into a queue.
    """
    graph = parse("GraphDef", definition, subject)
    root = _Scope(graph.node, None, graph.library, op_definition)
    found: dict[tuple[_Scope, _Mask | None], dict[int, _Place]] = {}
    for number, tap in enumerate(taps):
        place = _located(root, tap.tensor)
        mask = (
            None if tap.mask is None or place is None else _seen_from(place.scope, root, tap.mask)
        )
        if place is not None and (tap.mask is None or mask is not None):
            found.setdefault((place.scope, mask), {})[number] = place
    queues: list[Filled] = []
    for (scope, mask), places in found.items():
        for together in scope.together(places):
            queues.append(scope.fill(f"measured/{len(queues)}", together, mask))
    for scope in root.all():
        scope.rewire()
    return graph.SerializeToString(), queues


_Mask = tuple[bytes, int]
"""What says which rows count, and TensorFlow's number of its dtype."""


class _HiddenError(Exception):
    """What a tensor has to be computed of cannot be seen from where it is."""


class _Scope:
    """The nodes of a graph, or of the copy of a function for one call of it.

    Attributes:
        nodes: by name.
        caller: the scope and the node in it that calls the function; None for a graph.
    """

    def __init__(
        self,
        nodes: Any,
        function: Any,
        library: Any,
        op_definition: Callable[[str], Any],
        caller: tuple[_Scope, str] | None = None,
    ) -> None:
        self.caller = caller
        self._list = nodes
        self._function = function
        self._library = library
        self._op_definition = op_definition
        self.nodes: dict[str, Any] = {_text(node.name): node for node in nodes}
        self._inner: dict[tuple[str, int], _Scope] = {}
        # What is taken instead of a tensor, by its text; and what awaits it that follows what ran.
        self._instead: dict[bytes, bytes] = {}
        self._awaited: dict[bytes, list[bytes]] = {}
        self._own: set[bytes] = set()
        # What is computed beside cells, by their names.
        self._beside: dict[str, Beside] = {}
        self._constants: dict[tuple[object, ...], bytes] = {}
        self._bools: dict[_Mask, bytes] = {}

    def all(self) -> Iterator[_Scope]:
        """Yield this and all functions that were copied for it."""
        yield self
        for inner in self._inner.values():
            yield from inner.all()

    def called(self, name: str) -> list[bytes]:
        """Return the functions of the graph that a node calls."""
        node = self.nodes[name]
        known = {f.signature.name for f in self._library.function}
        return [f for f in (attr.name for attr in called(node)) if f in known] or (
            [node.op] if node.op in known else []
        )

    def inside(self, name: str, number: int) -> _Scope:
        """Return the function that a node calls, copied so that no other node calls it."""
        if (name, number) not in self._inner:
            node = self.nodes[name]
            old = self.called(name)[number]
            copy = copied(self._library, old)
            functions = called(node)
            if functions:
                functions[number].name = copy.signature.name
            else:
                node.op = copy.signature.name
            run_as_written(node)
            scope = _Scope(copy.node_def, copy, self._library, self._op_definition, (self, name))
            self._inner[name, number] = scope
        return self._inner[name, number]

    def reference(self, name: str, port: int) -> tuple[bytes, int]:
        """Return the text by which a tensor is taken here, and TensorFlow's number of its dtype."""
        node = self.nodes[name]
        definition = self._op_definition(_text(node.op))
        for argument, index, flat, dtype in outputs_of(node, definition):
            if flat == port:
                if self._function is None:
                    return node.name + (b":%d" % port if port else b""), dtype
                return b":".join([node.name, argument.encode(), b"%d" % index]), dtype
        raise InputError(f"{name}: it has no output {port} that could be measured")

    def argument(self, number: int) -> tuple[bytes, int] | None:
        """Return an argument of the function as `reference` does; None where it has none."""
        arguments = self._function.signature.input_arg if self._function is not None else ()
        if not 0 <= number < len(arguments):
            return None
        return arguments[number].name, arguments[number].type

    def handed(self, text: bytes, dtype: int) -> bytes | None:
        """Return how the function takes a tensor that is beside its call, which hands it over.

        None where that may be another tensor, or is made of what the function gives.
        """
        assert self.caller is not None
        outer, name = self.caller
        node = outer.nodes[name]
        # What a loop takes is another value in the next turn.
        if b"While" in node.op:
            return None
        if text not in handed_over(node):
            if leads_to(outer.nodes, name, text):
                return None
            count = len(outer.called(name))
            functions = [outer.inside(name, number)._function for number in range(count)]
            hand_over(node, functions, text, dtype)
        argument = self.argument(handed_over(node).index(text))
        return None if argument is None else argument[0]

    def together(self, places: Mapping[int, _Place]) -> list[dict[int, _Place]]:
        """Group tensors by what is run together, in the order in which they are computed."""
        alone = {name for name, node in self.nodes.items() if _text(node.op) in CONTROL_FLOW}
        by_name: dict[str, dict[int, _Place]] = {}
        for number, place in places.items():
            name = _text(self._ran(place.passing[0] if place.passing else place.text))
            if place.passing or name not in self.nodes:
                alone.add(name)
            by_name.setdefault(name, {})[number] = place
        inputs = {
            name: [_text(text.partition(b":")[0]) for text in node.input if text[:1] != b"^"]
            for name, node in self.nodes.items()
        }
        return [
            {number: place for name in line for number, place in by_name[name].items()}
            for line in lines(inputs, by_name, alone)
        ]

    def _ran(self, text: bytes) -> bytes:
        """Return what is run where a tensor is: its node, or of control flow one output of it."""
        name = text.partition(b":")[0]
        node = self.nodes.get(_text(name))
        return text if node is not None and _text(node.op) in CONTROL_FLOW else name

    def fill(self, queue: str, places: Mapping[int, _Place], mask: _Mask | None) -> Filled:
        """Put tensors that are run together into a queue, the last of them computed last."""
        texts = list(dict.fromkeys(place.text for place in places.values()))
        dtypes = {place.text: place.dtype for place in places.values()}
        values, types = list(texts), [dtypes[text] for text in texts]
        if mask is not None:
            values, types = [*values, self._as_bools(mask)], [*types, BOOL]
        *_, last = places.values()
        ran = self._ran(last.passing[0] if last.passing else last.text)
        # What is computed beside a cell has to be there before anything takes what the cell gives.
        passing = next((place.passing for place in places.values() if place.passing), None) or [
            text for text in texts if self._ran(text) == ran
        ]
        put = self._add(queue.encode(), b"Stage", values)
        _set(put, "dtypes", types=types)
        _set(put, "capacity", i=0)
        _set(put, "memory_limit", i=0)
        _set(put, "container", s=b"")
        _set(put, "shared_name", s=queue.encode())
        for text in passing:
            if text not in self._instead:
                identity = self._add(put.name + b"/passed", b"Identity", [text])
                _set(identity, "T", type=dtypes.get(text, last.dtype))
                self._instead[text] = self._output(identity, b"output")
        self._awaited.setdefault(ran, []).append(b"^" + put.name)
        return Filled(
            queue,
            tuple(types),
            {number: texts.index(place.text) for number, place in places.items()},
            mask is not None,
        )

    def _as_bools(self, mask: _Mask) -> bytes:
        """Return for which rows a mask is not zero."""
        text, dtype = mask
        if dtype == BOOL:
            return text
        if mask not in self._bools:
            prefix = text.partition(b":")[0] + b"/counts"
            self._bools[mask] = self._operation(
                prefix, "Cast", [text], {"SrcT": dtype, "DstT": BOOL}
            )
        return self._bools[mask]

    def _longer(self, name: str, step: int) -> _Place:
        """Return which of the sequences are longer whose lengths a node gives."""
        text, dtype = self.reference(name, 0)
        prefix = self.nodes[name].name + b"/longer"
        taken = [self._constant(prefix, step, dtype, [b"^" + self.nodes[name].name]), text]
        return _Place(self, self._operation(prefix, "Less", taken, {"T": dtype}), BOOL)

    def computed(self, name: str, what: str) -> _Place:
        """Return a tensor that is computed beside a cell, or beside lengths of sequences.

        Raises:
            InputError: the cell is none, or lacks inputs.
        """
        if (longer := LONGER.fullmatch(what)) is not None:
            return self._longer(name, int(longer[1]))
        node = self.nodes[name]
        dtype = next((entry.value.type for entry in node.attr if entry.key == b"T"), 0)
        ports = outputs_of(node, self._op_definition(_text(node.op)))
        outputs = [self.reference(name, flat)[0] for _, _, flat, _ in ports]
        try:
            if name not in self._beside:
                inputs = [text for text in node.input if not text.startswith(b"^")]
                prefix = node.name + b"/measured"
                graph = Graph(
                    lambda op, taken, attributes: self._operation(prefix, op, taken, attributes),
                    lambda values, kind: self._constant(prefix, values, kind, [b"^" + node.name]),
                    self._largest_of,
                )
                self._beside[name] = Beside(graph, Cell(_text(node.op), inputs, outputs, dtype))
            text, kind = self._beside[name].tensor(what)
        except (KeyError, IndexError):
            raise InputError(
                f"{name}: {what}: a {_text(node.op)} with {len(node.input)} inputs has no such "
                "tensor; the graph is damaged"
            ) from None
        return _Place(self, text, kind, tuple(outputs))

    def _operation(
        self, prefix: bytes, op: str, taken: Sequence[bytes], attributes: Mapping[str, int]
    ) -> bytes:
        node = self._add(prefix + b"/" + op.encode(), op.encode(), taken)
        for key, number in attributes.items():
            if key == "N" or key.endswith("_mask"):
                _set(node, key, i=number)
            else:
                _set(node, key, type=number)
        return self._output(node, _OUTPUTS.get(op, b"output"))

    def _constant(
        self, prefix: bytes, values: Sequence[int] | int, dtype: int, after: Sequence[bytes]
    ) -> bytes:
        """Return integers; where nothing has to tell where a node is, they come after nothing."""
        listed = (values,) if isinstance(values, int) else tuple(values)
        key = prefix, isinstance(values, int), listed, dtype
        if key in self._constants:
            return self._constants[key]
        held = message("TensorProto")(dtype=dtype)
        (held.int_val if dtype == INT32 else held.int64_val).extend(listed)
        held.tensor_shape.SetInParent()
        if not isinstance(values, int):
            held.tensor_shape.dim.add(size=len(listed))
        node = self._add(prefix + b"/Const", b"Const", after if self._function is None else ())
        _set(node, "dtype", type=dtype)
        _set(node, "value", tensor=held.SerializeToString())
        return self._constants.setdefault(key, self._output(node, b"output"))

    def _largest_of(self, text: bytes) -> tuple[bytes, int] | None:
        """Return what a number is the maximum of, and the dtype of that; None where it is none.

        Raises:
            _HiddenError: that is outside of the loop or the function that this is in.
        """
        scope, is_here = self, True
        for _ in range(_MAX_PASSED):
            name = text.partition(b":")[0]
            node = scope.nodes.get(_text(name))
            if node is None and scope.caller is not None:
                outer, call = scope.caller
                arguments = [argument.name for argument in scope._function.signature.input_arg]
                given = handed_over(outer.nodes[call])
                if name not in arguments or arguments.index(name) >= len(given):
                    break
                scope, text, is_here = outer, given[arguments.index(name)], False
                continue
            if node is None or not node.input:
                break
            text = node.input[0]
            if node.op == b"Max" and is_here:
                return text, next((entry.value.type for entry in node.attr if entry.key == b"T"), 0)
            if node.op == b"Max":
                raise _HiddenError
            is_here = is_here and _text(node.op) not in ENTERS
            if _text(node.op) not in _HANDING:
                break
        return None

    def _output(self, node: Any, argument: bytes) -> bytes:
        """Return the text by which the only output of a node is taken here."""
        text: bytes = node.name
        return text if self._function is None else text + b":" + argument + b":0"

    def _add(self, name: bytes, op: bytes, inputs: Sequence[bytes]) -> Any:
        while _text(name) in self.nodes:
            name += b"_"
        node = self._list.add(name=name, op=op, input=list(inputs))
        self.nodes[_text(name)] = node
        self._own.add(name)
        return node

    def rewire(self) -> None:
        """Let whatever takes a tensor that is put into a queue wait until it is there."""
        for text, passed in self._instead.items():
            identity = self.nodes[_text(passed.partition(b":")[0])]
            identity.input.extend(self._awaited[self._ran(text)])
        for node in self._list:
            if node.name in self._own:
                continue
            awaited: list[bytes] = []
            for number, text in enumerate(node.input):
                if text in self._instead:
                    node.input[number] = self._instead[text]
                else:
                    # Of several outputs another one may be all that is taken.
                    awaited += self._awaited.get(self._ran(text), ())
            node.input.extend(dict.fromkeys(awaited))
        for entry in self._function.ret if self._function is not None else ():
            entry.value = self._instead.get(entry.value, entry.value)


@dataclass(frozen=True, slots=True, eq=False)
class _Place:
    """Where a tensor is.

    Attributes:
        scope: the graph, or the function.
        text: by which it is taken there.
        dtype: TensorFlow's number of it.
        passing: what waits for it, of what is computed beside a cell: all that the cell gives.
    """

    scope: _Scope
    text: bytes
    dtype: int
    passing: tuple[bytes, ...] = ()


def _located(root: _Scope, source: Tensor) -> _Place | None:
    """Return where a tensor is, whose name may begin with the calls that lead into functions.

    What a loop or a condition gives has a node of its own in the structure: `_loop_0`, `_join_0`;
    and so has what a loop takes: `_turn_0`. What a branch takes has a name: `_given_0`.
    """
    waiting = [(root, source.node, 0)]
    while waiting:
        scope, rest, depth = waiting.pop()
        if rest in scope.nodes:
            return _Place(scope, *scope.reference(rest, source.port))
        if (given := _GIVEN.fullmatch(rest)) is not None:
            argument = scope.argument(int(given[1]))
            return None if argument is None else _Place(scope, *argument)
        cell, colon, what = rest.partition(":")
        if colon and cell in scope.nodes:
            try:
                return scope.computed(cell, what)
            except _HiddenError:
                return None
        parts = rest.split("/")
        for cut in range(1, len(parts)):
            call, inner = "/".join(parts[:cut]), "/".join(parts[cut:])
            functions = scope.called(call) if call in scope.nodes and depth < _MAX_DEPTH else []
            if not functions:
                continue
            if (own := _OWN.fullmatch(inner)) is not None:
                if own[1] != "turn":
                    return _Place(scope, *scope.reference(call, int(own[2])))
                argument = scope.inside(call, 0).argument(int(own[2]))
                return None if argument is None else _Place(scope.inside(call, 0), *argument)
            number = 0
            if (branch := _BRANCH.match(inner)) is not None:
                number, inner = int(branch[1]), inner[branch.end() :]
            if number < len(functions):
                waiting.append((scope.inside(call, number), inner, depth + 1))
    return None


def _seen_from(scope: _Scope, root: _Scope, source: Tensor) -> _Mask | None:
    """Return how a mask is taken in a scope: its own, or what a call hands to it."""
    place = _located(root, source)
    if place is None:
        return None
    way = []
    while scope is not place.scope:
        if scope.caller is None:
            return None
        way.append(scope)
        scope = scope.caller[0]
    text = place.text
    for inner in reversed(way):
        handed = inner.handed(text, place.dtype)
        if handed is None:
            return None
        text = handed
    return text, place.dtype


def _set(node: Any, key: str, *, types: Sequence[int] | None = None, **value: Any) -> None:
    entry = node.attr.add(key=key.encode())
    if types is None:
        for field, given in value.items():
            setattr(entry.value, field, given)
    else:
        entry.value.list.SetInParent()
        entry.value.list.type.extend(types)


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")
