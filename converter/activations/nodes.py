"""Nodes of a graph or of a function, as its file has them: messages that are read and changed."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from converter.graph.node import text_of
from converter.graph.ops import CALLS

# The first thing that these take says which branch is taken.
_BRANCHING = re.compile(rb"^(?:Stateless)?(?:If|Case)$")


def given_to(node: Any) -> list[bytes]:
    """Return what a call hands to a function."""
    return list(node.input)[len(_BRANCHING.findall(node.op)) :]


def called_by(node: Any) -> list[Any]:
    """Return the attributes of a node that name functions: one, or one for each branch."""
    by_key = {text_of(entry.key): entry.value for entry in node.attr}
    if text_of(node.op) in CALLS and "f" in by_key:
        return [by_key["f"].func]
    if "branches" in by_key:
        return list(by_key["branches"].list.func)
    # The condition of a loop is computed from what its body gives.
    keys = [key for key in ("body", "then_branch", "else_branch") if key in by_key]
    return [by_key[key].func for key in keys]


def outputs_of(node: Any, definition: Any) -> Iterator[tuple[str, int, int, int]]:
    """Yield the outputs of a node: argument, number in it, number in all, and dtype."""
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


def set_attribute(node: Any, key: str, *, types: Sequence[int] | None = None, **value: Any) -> None:
    """Add an attribute to a node.

    Args:
        node: the node, which lacks it.
        key: its name.
        types: a list of dtypes, by TensorFlow's numbers; None for a value.
        value: the field of an AttrValue, and what is in it.
    """
    entry = node.attr.add(key=key.encode())
    if types is None:
        for field, given in value.items():
            setattr(entry.value, field, given)
    else:
        entry.value.list.SetInParent()
        entry.value.list.type.extend(types)


def free_name(name: bytes, taken: set[bytes]) -> bytes:
    """Return a name for a copy of a function that no other one has."""
    number = 0
    while (new := b"%s__measured_%d" % (name, number)) in taken:
        number += 1
    return new


def remove_attribute(message: Any, key: bytes) -> None:
    """Take an attribute from a node or a function, if it has it."""
    for entry in [entry for entry in message.attr if entry.key == key]:
        message.attr.remove(entry)
