"""Object checkpoints made by hand: the graph and the keys that TensorFlow gives to objects."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from converter import Variable
from converter.dtype import BY_NAME, STRING
from converter.formats import OBJECT_GRAPH_KEY as KEY
from converter.formats import messages
from converter.variable import Array, Region, Stored

VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"


@dataclass(eq=False)
class Object:
    """An object to be stored: a variable if it has a shape."""

    children: Mapping[str, Object] = field(default_factory=dict)
    name: str = ""
    shape: tuple[int, ...] | None = None
    dtype: str = "float32"
    crc32c: int = 7
    slots: list[tuple[Object, str, Object]] = field(default_factory=list)
    attributes: Mapping[str, str] = field(default_factory=dict)


def var(name: str = "Variable", shape: tuple[int, ...] = (3, 4), dtype: str = "float32") -> Object:
    return Object(name=name, shape=shape, dtype=dtype)


def count(name: str = "Variable") -> Object:
    return var(name, (), "int64")


def scalar(name: str = "Variable") -> Object:
    return var(name, ())


def listed(*objects: Object) -> Object:
    return Object({str(index): element for index, element in enumerate(objects)})


def unread(region: Region) -> Array:
    raise AssertionError("nothing is to be read")


def stored(root: Object) -> tuple[bytes, dict[str, Variable]]:
    """Return the graph and the variables by key, as TensorFlow files them: by shortest path."""
    numbers, paths = {root: 0}, {root: ""}
    queue = deque([root])
    while queue:
        parent = queue.popleft()
        for name, child in parent.children.items():
            if child not in numbers:
                escaped = name.replace(".", "..").replace("/", ".S")
                numbers[child] = len(numbers)
                paths[child] = f"{paths[parent]}/{escaped}".removeprefix("/")
                queue.append(child)
        for of, slot, variable in parent.slots:
            if variable not in numbers:
                numbers[variable] = len(numbers)
                paths[variable] = f"{paths[of]}/.OPTIMIZER_SLOT/{paths[parent]}/{slot}"
    graph = messages.message("TrackableObjectGraph")()
    variables = {KEY: Variable(KEY, STRING, (), unread)}
    for thing in numbers:
        node = graph.nodes.add()
        for name, child in thing.children.items():
            node.children.add(node_id=numbers[child], local_name=name)
        for of, slot, variable in thing.slots:
            node.slot_variables.add(
                original_variable_node_id=numbers[of],
                slot_name=slot,
                slot_variable_node_id=numbers[variable],
            )
        if thing.shape is not None:
            key = paths[thing] + VALUE
            node.attributes.add(name="VARIABLE_VALUE", full_name=thing.name, checkpoint_key=key)
            bytes_on_disk = Stored(Path("x"), 0, 0, thing.crc32c)
            variables[key] = Variable(
                key, BY_NAME[thing.dtype], thing.shape, unread, stored=bytes_on_disk
            )
        for name, dtype in thing.attributes.items():
            key = f"{paths[thing]}/.ATTRIBUTES/{name}"
            variables[key] = Variable(key, BY_NAME[dtype], (5,), unread)
    return graph.SerializeToString(), variables
