"""TensorFlow 2's object graph: which variable each stored key is, and what an optimizer owns.

TensorFlow 2 files a tensor under the path on which it found it first, which is no name: Keras 3
has the weights of a model under `optimizer/_trainable_variables/7`. The graph of the objects is
stored beside them, and knows the names that the variables were given.

References:
    tensorflow/core/protobuf/trackable_object_graph.proto;
    tensorflow/python/trackable/trackable_utils.py (how keys are made of paths).
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict, deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from converter.errors import InputError
from converter.formats import messages
from converter.variable import Variable

MAX_BYTES = 64 << 20
"""A larger graph is refused: 100,000 variables take half of that, and parsing takes 40 times it."""

VALUE = "VARIABLE_VALUE"
"""The attribute that the value of a variable is."""

ATTRIBUTES = ".ATTRIBUTES/"
"""What comes between the path of an object and one of its attributes in a key."""

SLOT = ".OPTIMIZER_SLOT"
"""What comes between the path of a variable, and optimizer and name of a slot of it, in a key."""

_STEPS = frozenset(["_iterations", "iter", "iteration", "iterations"])
_HYPERPARAMETERS = frozenset(["_learning_rate", "decay", "learning_rate", "lr", "momentum", "rho"])
_VARIABLES = "_variables"
_TRAINABLE = "_trainable_variables"
_MAX_PATH = 64


@dataclass(frozen=True, slots=True)
class State:
    """What an optimizer owns.

    Attributes:
        optimizer: the path of the optimizer from the root, `optimizer` mostly.
        local_name: what the optimizer calls a scalar of its own: `_iterations`, `beta1_power`.
        slot: which slot it is, where the graph records it as one: `m`, `momentum`.
        listed: which slot the name of a list of the optimizer tells: `velocity` in `_velocities`.
        of: the key of the variable that the slot belongs to, where the graph tells.
    """

    optimizer: str
    local_name: str | None = None
    slot: str | None = None
    listed: str | None = None
    of: str | None = None


@dataclass(frozen=True, slots=True)
class Entry:
    """What is stored under one key.

    Attributes:
        key: the key.
        name: the name to show, no two alike: the full name where no other variable has it, else
            the path.
        path: the local names from the root, joined by slashes; an attribute other than the value
            of a variable is the last of them.
        full_name: the name that the variable was given; empty where it was given none.
        state: what it is to the optimizer that owns it; None where none does.
    """

    key: str
    name: str
    path: str
    full_name: str = ""
    state: State | None = None


@dataclass(frozen=True, slots=True)
class Objects:
    """What the keys of an object checkpoint are.

    Attributes:
        entries: one for each variable to show, in the order of the keys.
        duplicates: the keys that hold another copy of an entry, each with the key of that entry.
    """

    entries: tuple[Entry, ...]
    duplicates: Mapping[str, str]


@dataclass(slots=True)
class _Node:
    """An object.

    Attributes:
        children: other objects by local name.
        elements: the children in order, if the object is a list and nothing else.
        attributes: full name and key by attribute.
        slots: the variable, the name of the slot, and the slot.
    """

    children: dict[str, int]
    elements: list[int]
    attributes: dict[str, tuple[str, str]]
    slots: list[tuple[int, str, int]]

    @property
    def key(self) -> str | None:
        """The key of the value, if the object is a variable."""
        return self.attributes[VALUE][1] if VALUE in self.attributes else None


def read(data: bytes, variables: Mapping[str, Variable], subject: str) -> Objects:
    """Return what the keys of a checkpoint are.

    Args:
        data: the object graph, which is the value of `OBJECT_GRAPH_KEY`.
        variables: everything that the checkpoint stores, by key.
        subject: begins the message of every error: the file.

    Raises:
        InputError: the graph is damaged.
    """
    nodes = [_node(message) for message in parse(data, subject).nodes]
    duplicates = _duplicates(nodes, variables)
    full_names: dict[str, str] = {}
    for node in nodes:
        for full_name, key in node.attributes.values():
            if full_name:
                full_names.setdefault(key, full_name)
    states = _states(nodes, variables)
    paths = {key: path_of(key) for key in variables if key not in duplicates}
    names = shown_names(paths, full_names)
    entries = [
        Entry(key, names[key], path, full_names.get(key, ""), states.get(key))
        for key, path in paths.items()
    ]
    return Objects(tuple(entries), duplicates)


def parse(data: bytes, subject: str) -> Any:
    """Return a graph as a message whose references are all good.

    Raises:
        InputError: the graph is damaged, or too large; it begins with `subject`.
    """
    if len(data) > MAX_BYTES:
        raise InputError(
            f"{subject}: its object graph has {len(data)} bytes, over the limit of {MAX_BYTES}"
        )
    graph = messages.parse("TrackableObjectGraph", data, f"{subject}: its object graph")
    count = len(graph.nodes)
    for number, node in enumerate(graph.nodes):
        ends = [child.node_id for child in node.children]
        for slot in node.slot_variables:
            ends += [slot.original_variable_node_id, slot.slot_variable_node_id]
        for end in ends:
            if not 0 <= end < count:
                raise InputError(
                    f"{subject}: its object graph is damaged: object {number} refers to object "
                    f"{end}, and there are {count}"
                )
    return graph


def _node(message: Any) -> _Node:
    children = {child.local_name: child.node_id for child in message.children}
    indices = [str(index) for index in range(len(children))] if "0" in children else []
    is_list = all(index in children for index in indices)
    return _Node(
        children,
        [children[index] for index in indices] if is_list else [],
        {found.name: (found.full_name, found.checkpoint_key) for found in message.attributes},
        [
            (slot.original_variable_node_id, slot.slot_name, slot.slot_variable_node_id)
            for slot in message.slot_variables
        ],
    )


# -- names ----------------------------------------------------------------------------------------


def path_of(key: str) -> str:
    """Return the path that a key was made of, `model/dense/kernel`."""
    path, _, attribute = key.rpartition(ATTRIBUTES)
    path = unescaped(path.removesuffix("/"))
    if attribute == VALUE:
        return path
    return f"{path}/{attribute}" if path else attribute


def unescaped(text: str) -> str:
    """Return a local name, or several with slashes between, as people write it."""
    return _ESCAPED.sub(lambda match: "/" if match[1] == "S" else ".", text)


def escaped(local_name: str) -> str:
    """Return a local name as it stands in keys."""
    return local_name.replace(".", "..").replace("/", ".S")


_ESCAPED = re.compile(r"\.([.S])")


def shown_names(paths: Mapping[str, str], full_names: Mapping[str, str]) -> dict[str, str]:
    """Return the name of each key: the full name, or the path, or the key if that is taken too."""
    counts = Counter(full_names[key] for key in paths if key in full_names)
    taken = set(paths.values()) | set(paths)
    names = {}
    for key, path in paths.items():
        full_name = full_names.get(key, "")
        is_free = counts[full_name] == 1 and full_name not in taken
        names[key] = full_name if is_free else path or key
    # A path can be another's, since a local name may hold slashes. A key is nobody else's.
    repeated = _repeated(names)
    names = {key: key if name in repeated else name for key, name in names.items()}
    return {key: key for key in names} if _repeated(names) else names


def _repeated(names: Mapping[str, str]) -> set[str]:
    return {name for name, count in Counter(names.values()).items() if count > 1}


def _duplicates(nodes: list[_Node], variables: Mapping[str, Variable]) -> dict[str, str]:
    """Return the copies that Keras 3 exports: `_all_variables` repeats `variables` as a whole.

    Two lists of equal variables are none: momentum and velocity begin as the same zeros. So it
    takes these two names, and a partner of the same name, shape and bytes for every element.
    """
    root = nodes[0].children if nodes else {}
    first, second = root.get("variables"), root.get("_all_variables")
    if first is None or second is None:
        return {}
    kept = [nodes[number] for number in nodes[first].elements]
    copies = [nodes[number] for number in nodes[second].elements]
    if len(kept) != len(copies):
        return {}
    partners: defaultdict[object, deque[str]] = defaultdict(deque)
    for node in kept:
        partners[_content(node, variables)].append(node.key or "")
    pairs = {}
    for node in copies:
        content = _content(node, variables)
        if content is None or not partners[content]:
            return {}
        pairs[node.key or ""] = partners[content].popleft()
    return {} if set(pairs) & set(pairs.values()) else pairs


def _content(node: _Node, variables: Mapping[str, Variable]) -> object:
    """Return what two copies of a variable have in common, or None where that is not known."""
    full_name, key = node.attributes.get(VALUE, ("", ""))
    variable = variables.get(key)
    if not full_name or variable is None or variable.stored is None:
        return None
    crc32c = variable.stored.crc32c
    return None if crc32c is None else (full_name, variable.dtype.name, variable.shape, crc32c)


# -- optimizers -----------------------------------------------------------------------------------


def _states(nodes: list[_Node], variables: Mapping[str, Variable]) -> dict[str, State]:
    """Return what optimizers own, by key.

    TensorFlow 1 optimizers and Keras up to 2.10 record slots; later Keras has lists of variables.
    """
    states: dict[str, State] = {}
    optimizers = [number for number in range(len(nodes)) if _is_optimizer(nodes, number)]
    if not optimizers:
        return states
    parents = _walk(nodes, frozenset())
    # What is found without an optimizer is not the optimizer's. What one has looked at, the next
    # does not: a graph may be made so that all of them see all of it.
    seen = {*_walk(nodes, frozenset(optimizers)), *optimizers}
    for number in optimizers:
        path = _path_of(number, parents)
        for key, state in [
            *_direct(nodes, number, path, variables),
            *_recorded(nodes, number, path),
            *_listed(nodes, number, path, seen),
        ]:
            states.setdefault(key, state)
    return states


def _is_optimizer(nodes: list[_Node], number: int) -> bool:
    node = nodes[number]
    if node.slots:
        return True
    variables = {name for name, child in node.children.items() if VALUE in nodes[child].attributes}
    if not (variables & _STEPS and variables & _HYPERPARAMETERS):
        return False
    # The root may be a Checkpoint that has a model beside `iterations` and `learning_rate`.
    return number > 0 or _VARIABLES in node.children


def _walk(nodes: list[_Node], closed: frozenset[int]) -> dict[int, tuple[int, str]]:
    """Walk the graph from the root, breadth first, without entering closed objects.

    Returns:
        By object the parent on the shortest path, and its name there; of the root, -1.
    """
    parents = {0: (-1, "")}
    queue = deque([0])
    while queue:
        number = queue.popleft()
        if number in closed:
            continue
        for name, child in nodes[number].children.items():
            if child not in parents:
                parents[child] = number, name
                queue.append(child)
    return parents


def _path_of(number: int, parents: Mapping[int, tuple[int, str]]) -> str:
    """Return the path of an object, or the last components of a very long one."""
    names: list[str] = []
    while parents.get(number, (-1, ""))[0] >= 0 and len(names) < _MAX_PATH:
        number, name = parents[number]
        names.append(name)
    return "/".join(reversed(names))


def _direct(
    nodes: list[_Node], number: int, path: str, variables: Mapping[str, Variable]
) -> Iterator[tuple[str, State]]:
    """Yield the optimizer's own scalars: its step, hyperparameters and beta powers."""
    node = nodes[number]
    is_certain = node.slots or _VARIABLES in node.children
    for name, child in node.children.items():
        key = nodes[child].key
        if not is_certain and name not in _STEPS | _HYPERPARAMETERS:
            # It may be somebody's training loop, with scalars of all kinds.
            continue
        if key is not None and key in variables and variables[key].shape == ():
            yield key, State(path, local_name=name)


def _recorded(nodes: list[_Node], number: int, path: str) -> Iterator[tuple[str, State]]:
    """Yield the slots that the graph records as such."""
    for of, slot, variable in nodes[number].slots:
        key = nodes[variable].key
        if key is not None:
            yield key, State(path, slot=slot, of=nodes[of].key)


def _listed(
    nodes: list[_Node], number: int, path: str, seen: set[int]
) -> Iterator[tuple[str, State]]:
    """Yield what lies in the lists of the optimizer, and is nobody else's.

    Args:
        seen: objects that are not to be looked at; those that are found are added.
    """
    children = nodes[number].children
    if _VARIABLES not in children:
        return
    trainable: list[int] = []
    if _TRAINABLE in children and children[_TRAINABLE] not in seen:
        trainable = nodes[children[_TRAINABLE]].elements
        seen.update([children[_TRAINABLE], *trainable])
    queue = deque(children.values())
    for name, child in children.items():
        if name == _VARIABLES or child in seen or not nodes[child].elements:
            continue
        seen.add(child)
        elements = nodes[child].elements
        queue.extend(elements)
        for index, element in enumerate(elements):
            key = nodes[element].key
            if key is not None and element not in seen:
                of = nodes[trainable[index]].key if len(elements) == len(trainable) else None
                yield key, State(path, listed=_slot_of(name), of=of)
    while queue:
        element = queue.popleft()
        if element in seen:
            continue
        seen.add(element)
        queue.extend(nodes[element].children.values())
        key = nodes[element].key
        if key is not None:
            yield key, State(path)


def _slot_of(list_name: str) -> str:
    """Return the slot that a list of Keras holds: `_velocities` has a velocity for each variable.

    `_model_variables_moving_average` is an average.
    """
    name = list_name.strip("_")
    if "moving_average" in name:
        return "average"
    if name.endswith("ies"):
        return f"{name[:-3]}y"
    return name.removesuffix("s")
