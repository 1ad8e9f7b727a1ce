"""Nodes of a GraphDef as its messages: what they give, which functions they call and with what.

A call can be made to hand over one more tensor.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from converter.graph.node import text_of
from converter.graph.ops import CALLS

# The first thing that these take says which branch is taken.
_BRANCHING = re.compile(rb"^(?:Stateless)?(?:If|Case)$")
# What lets TensorFlow run something else than a function itself.
_ELSEWHERE = (b"_XlaMustCompile", b"api_implements", b"api_preferred_device")


def outputs_of(node: Any, definition: Any) -> Iterator[tuple[str, int, int, int]]:
    """Yield the outputs of a node: argument, number in it, number in all, and dtype.

    Args:
        node: which.
        definition: the OpDef of its op; None for one that TensorFlow does not know.
    """
    if definition is None:
        return
    given = {text_of(entry.key): entry.value for entry in node.attr}
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


def handed_over(node: Any) -> list[bytes]:
    """Return what a call hands to a function."""
    tensors = [text for text in node.input if not text.startswith(b"^")]
    return tensors[len(_BRANCHING.findall(node.op)) :]


def called(node: Any) -> list[Any]:
    """Return the attributes of a node that name functions: one, or one for each branch."""
    by_key = {text_of(entry.key): entry.value for entry in node.attr}
    if text_of(node.op) in CALLS and "f" in by_key:
        return [by_key["f"].func]
    if "branches" in by_key:
        return list(by_key["branches"].list.func)
    # The condition of a loop is computed from what its body gives.
    keys = [key for key in ("body", "then_branch", "else_branch") if key in by_key]
    return [by_key[key].func for key in keys]


def free_name(name: bytes, taken: Collection[bytes]) -> bytes:
    """Return a name of which there is none yet."""
    number = 0
    while (new := b"%s__measured_%d" % (name, number)) in taken:
        number += 1
    return new


def copied(library: Any, name: bytes) -> Any:
    """Add a copy of a function to a library, under a name of its own."""
    functions = {function.signature.name: function for function in library.function}
    copy = library.function.add()
    copy.CopyFrom(functions[name])
    copy.signature.name = free_name(name, functions)
    run_as_written(copy)
    return copy


def run_as_written(message: Any) -> None:
    """Let a function, or the node that calls it, be run itself.

    XLA, which would compile it, has no queues; and of functions that implement the same, as those
    that recurrent layers of Keras 2 have for each device, TensorFlow runs any.
    """
    for entry in [entry for entry in message.attr if entry.key in _ELSEWHERE]:
        message.attr.remove(entry)


def hand_over(node: Any, functions: Sequence[Any], text: bytes, dtype: int) -> None:
    """Let a call hand one more tensor to the functions that it calls.

    Args:
        node: the call, which is of no loop.
        functions: all that it calls, and that nothing else calls.
        text: how the tensor is taken where the call is.
        dtype: TensorFlow's number of its dtype.
    """
    tensors = [taken for taken in node.input if not taken.startswith(b"^")]
    controls = list(node.input)[len(tensors) :]
    del node.input[:]
    node.input.extend([*tensors, text, *controls])
    for entry in node.attr:
        if entry.key == b"Tin":
            entry.value.list.type.append(dtype)
    for function in functions:
        names = {each.name for each in (*function.node_def, *function.signature.input_arg)}
        function.signature.input_arg.add(name=free_name(b"mask", names), type=dtype)


def leads_to(nodes: Mapping[str, Any], begin: str, text: bytes) -> bool:
    """Whether a node has a part in a tensor beside it."""
    waiting, seen = [_node_of(text)], {_node_of(text)}
    while waiting:
        name = waiting.pop()
        if name == begin:
            return True
        before = {_node_of(taken) for taken in nodes[name].input} if name in nodes else set()
        waiting += before - seen
        seen |= before
    return False


def _node_of(text: bytes) -> str:
    return text_of(text.removeprefix(b"^").partition(b":")[0])
