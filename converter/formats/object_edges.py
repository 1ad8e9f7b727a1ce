"""The objects of a TensorFlow 2 checkpoint as a graph that can change.

References:
    tensorflow/core/protobuf/trackable_object_graph.proto;
    tensorflow/python/checkpoint/util.py (add_checkpoint_values_check).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from converter.formats import messages, object_graph
from converter.formats.object_graph import VALUE

Path = tuple[str, ...]
"""The local names from the root to an object."""

# No text of a graph holds half a surrogate pair.
_ROOT = "\ud800"


class Edges:
    """The objects of a graph, and what changes about them.

    Args:
        data: the graph.
        stored: the keys of the checkpoint.
        subject: begins the message of every error: the file.

    Attributes:
        nodes: the messages; those of new objects are made here.
        children: the edges of each object by local name.
        owners: the object and its attribute behind each stored key; keys without an object are
            not in it.
        records: the optimizer and the record of each slot of the source, by its object.

    Raises:
        InputError: the graph is damaged.
    """

    def __init__(self, data: bytes, stored: Iterable[str], subject: str) -> None:
        self.nodes: list[Any] = list(object_graph.parse(data, subject).nodes)
        self._count = len(self.nodes)
        self.children = [{c.local_name: c.node_id for c in node.children} for node in self.nodes]
        self.owners = self._owners(sorted(stored))
        self._slots = [list(node.slot_variables) for node in self.nodes]
        self.records = {
            record.slot_variable_node_id: (number, record)
            for number, records in enumerate(self._slots)
            for record in records
        }
        self._gone: set[tuple[int, str]] = set()
        self._merged: dict[int, int] = {}
        self._led = self._leading()

    def _owners(self, stored: list[str]) -> dict[str, tuple[int, str]]:
        known = set(stored)
        owners: dict[str, tuple[int, str]] = {}
        prefixes: dict[str, tuple[int, str]] = {}
        for number, node in enumerate(self.nodes):
            for attribute in node.attributes:
                where = owners if attribute.checkpoint_key in known else prefixes
                where.setdefault(attribute.checkpoint_key, (number, attribute.name))
        # A table has `x/.ATTRIBUTES/table`, and stored are `x/.ATTRIBUTES/table-keys`, `-values`.
        for key in stored:
            slash = key.rfind("/")
            for end in range(len(key) - 1, slash, -1) if key not in owners else ():
                if key[:end] in prefixes:
                    owners[key] = prefixes[key[:end]]
                    break
        return owners

    # -- changes -----------------------------------------------------------------------------------

    def forget(self, keys: Iterable[str]) -> None:
        """Take away what is stored under these keys, and the records of slots that are gone."""
        self._gone |= {self.owners[key] for key in keys}
        for number, slots in enumerate(self._slots):
            self._slots[number] = [s for s in slots if self._has_value(s.slot_variable_node_id)]

    def _has_value(self, number: int) -> bool:
        return any((number, a.name) not in self._gone for a in self.nodes[number].attributes)

    def _is_held(self, number: int) -> bool:
        return self._has_value(number) or bool(self._slots[number])

    def walk(self, path: Path) -> int | None:
        """Return the object at a path; None where there is none."""
        number = 0
        for name in path:
            child = self.children[number].get(name)
            if child is None:
                return None
            number = self._one(child)
        return number

    def _one(self, number: int) -> int:
        """Return the object that an object has become one with, or itself."""
        while number in self._merged:
            number = self._merged[number]
        return number

    def is_free(self, path: Path) -> bool:
        """Return whether a variable could stand at a path."""
        number = self.walk(path)
        return bool(path) and (number is None or self._is_void(number))

    def _is_void(self, number: int) -> bool:
        return not (self._is_held(number) or self.children[number])

    def add(self) -> int:
        """Return a new object."""
        self.nodes.append(messages.message("TrackableObject")())
        self.children.append({})
        self._slots.append([])
        return len(self.nodes) - 1

    def detach(self, path: Path) -> None:
        """Take away the edge that a path ends with."""
        parent = self.walk(path[:-1])
        if parent is not None:
            self.children[parent].pop(path[-1], None)

    def attach(self, number: int, path: Path) -> bool:
        """Put an object at a path, and make those above it; return False if another is there.

        Objects of which neither has a value become one; at the empty path that is the root.
        """
        parent = 0
        if not path:
            # One more edge to the object, for the time that it takes to become the root.
            path, self.children[0][_ROOT] = (_ROOT,), 0
        for name in path[:-1]:
            if name not in self.children[parent]:
                self.children[parent][name] = self.add()
            parent = self._one(self.children[parent][name])
        pairs = [(parent, path[-1], number)]
        while pairs:
            parent, name, number = pairs.pop()
            parent, number = self._one(parent), self._one(number)
            there = self._one(self.children[parent].get(name, number))
            if there == number or self._is_void(there):
                self.children[parent][name] = number
            elif self._is_held(there) or self._is_held(number):
                return False
            else:
                self._merged[number] = there
                pairs += [(there, *edge) for edge in self.children[number].items()]
        self.children[0].pop(_ROOT, None)
        return True

    def make(self, path: Path, key: str, full_name: str) -> int:
        """Make a variable; an empty path leaves it without an edge to it."""
        number = self.add()
        self.nodes[number].attributes.add(name=VALUE, full_name=full_name, checkpoint_key=key)
        if path:
            self.attach(number, path)
        return number

    def name(self, key: str, full_name: str) -> None:
        """Give the variable that is stored under a key another name."""
        number, name = self.owners[key]
        for attribute in self.nodes[number].attributes:
            if attribute.name == name:
                attribute.full_name = full_name

    def full_name(self, key: str) -> str:
        """Return the name of the variable that is stored under a key."""
        number, name = self.owners[key]
        names = [a.full_name for a in self.nodes[number].attributes if a.name == name]
        return names[0] if names else ""

    def record(self, optimizer: int, of: int, name: str, slot: int) -> None:
        """Make an object a slot of a variable."""
        record = messages.message("SlotVariableReference")(
            original_variable_node_id=of, slot_name=name, slot_variable_node_id=slot
        )
        self._slots[optimizer].append(record)

    def release(self, slot: int) -> None:
        """Make an object a slot no longer."""
        for number, records in enumerate(self._slots):
            self._slots[number] = [r for r in records if r.slot_variable_node_id != slot]

    # -- what is left ------------------------------------------------------------------------------

    def _leading(self) -> set[int]:
        """Return the objects that have a value, or lead to one."""
        holders: defaultdict[int, list[int]] = defaultdict(list)
        for number, children in enumerate(self.children):
            for child in children.values():
                holders[child].append(number)
        # Without its variable nobody knows whose a slot is.
        found = {r.original_variable_node_id for records in self._slots for r in records}
        for number, node in enumerate(self.nodes):
            if self._is_held(number) or node.HasField("registered_saver"):
                found.add(number)
        queue = list(found)
        while queue:
            for number in holders[queue.pop()]:
                if number not in found:
                    found.add(number)
                    queue.append(number)
        return found

    def _kept(self, gone: set[int]) -> list[int]:
        """Return the objects that stay, the root first, in the order of the source."""
        kept, queue = {0}, [0]
        while queue:
            number = queue.pop()
            ends = list(self.children[number].values())
            for record in self._slots[number]:
                ends += [record.original_variable_node_id, record.slot_variable_node_id]
            for end in ends:
                if end not in kept and end not in gone:
                    kept.add(end)
                    queue.append(end)
        return sorted(kept)

    def serialize(self, keys: Mapping[str, str]) -> bytes:
        """Return the graph without the objects that led to values, and lead to none now.

        Args:
            keys: the new key of each stored one that stays.
        """
        for children in self.children:
            children.update({name: self._one(child) for name, child in children.items()})
        leading = self._leading()
        kept = self._kept(self._led - leading)
        numbers = {old: new for new, old in enumerate(kept)}
        prefixes = self._prefixes(keys)
        graph = messages.message("TrackableObjectGraph")()
        for number in kept:
            node = graph.nodes.add()
            node.CopyFrom(self.nodes[number])
            del node.children[:], node.attributes[:], node.slot_variables[:]
            for name, child in self.children[number].items():
                if child in numbers:
                    node.children.add(node_id=numbers[child], local_name=name)
            for attribute in self.nodes[number].attributes:
                if (number, attribute.name) not in self._gone:
                    node.attributes.add().CopyFrom(attribute)
                    # A new object has its new key already, which may be the old one of another.
                    if number < self._count:
                        key = attribute.checkpoint_key
                        key = prefixes.get((number, attribute.name)) or keys.get(key, key)
                        node.attributes[-1].checkpoint_key = key
            for record in self._slots[number]:
                slot = node.slot_variables.add()
                slot.CopyFrom(record)
                slot.original_variable_node_id = numbers[record.original_variable_node_id]
                slot.slot_variable_node_id = numbers[record.slot_variable_node_id]
            if node.HasField("has_checkpoint_values") or number in self._led ^ leading:
                node.has_checkpoint_values.value = number in leading
        data: bytes = graph.SerializeToString(deterministic=True)
        return data

    def _prefixes(self, keys: Mapping[str, str]) -> dict[tuple[int, str], str]:
        """Return the new key of each attribute whose values are stored under longer ones."""
        found = {}
        for old, new in keys.items():
            if old == new or old not in self.owners:
                continue
            number, name = self.owners[old]
            for attribute in self.nodes[number].attributes:
                rest = old.removeprefix(attribute.checkpoint_key)
                if attribute.name == name and rest not in ("", old) and new.endswith(rest):
                    found[number, name] = new.removesuffix(rest)
        return found
