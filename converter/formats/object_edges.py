"""The objects of a TensorFlow 2 checkpoint as a graph that can change.

References:
    tensorflow/core/protobuf/trackable_object_graph.proto;
    tensorflow/python/checkpoint/util.py (add_checkpoint_values_check).
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from converter.formats import messages, object_graph
from converter.formats.object_graph import VALUE

Path = tuple[str, ...]
"""The local names from the root to an object."""

# What a table adds to its key, `-values`, is short.
_MAX_SUFFIX = 64
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
        owners: the object and its attribute (the message) behind each stored key; keys without an
            object are not in it.
        records: the optimizer and the record of each slot of the source, by its object.

    Raises:
        InputError: the graph is damaged.
    """

    def __init__(self, data: bytes, stored: Iterable[str], subject: str) -> None:
        self.nodes: list[Any] = list(object_graph.parse(data, subject).nodes)
        self._count = len(self.nodes)
        self.children = [{c.local_name: c.node_id for c in node.children} for node in self.nodes]
        self._values = [{a.name for a in node.attributes} for node in self.nodes]
        self.owners = self._owners(set(stored))
        self._slots = [list(node.slot_variables) for node in self.nodes]
        self.records = {
            record.slot_variable_node_id: (number, record)
            for number, records in enumerate(self._slots)
            for record in records
        }
        self._merged: dict[int, int] = {}
        self._led = self._leading()

    def _owners(self, stored: set[str]) -> dict[str, tuple[int, Any]]:
        owners: dict[str, tuple[int, Any]] = {}
        prefixes: dict[str, tuple[int, Any]] = {}
        for number, node in enumerate(self.nodes):
            for attribute in node.attributes:
                where = owners if attribute.checkpoint_key in stored else prefixes
                where.setdefault(attribute.checkpoint_key, (number, attribute))
        # A table has `x/.ATTRIBUTES/table`, and stored are `x/.ATTRIBUTES/table-keys`, `-values`.
        for key in stored - owners.keys() if prefixes else ():
            shortest = max(key.rfind("/"), len(key) - _MAX_SUFFIX)
            for end in range(len(key) - 1, shortest, -1):
                if key[:end] in prefixes:
                    owners[key] = prefixes[key[:end]]
                    break
        return owners

    # -- changes -----------------------------------------------------------------------------------

    def forget(self, keys: Iterable[str]) -> None:
        """Take away what is stored under these keys, and the records of slots that are gone."""
        for number, attribute in map(self.owners.__getitem__, keys):
            self._values[number].discard(attribute.name)
        for number, slots in enumerate(self._slots):
            self._slots[number] = [s for s in slots if self._has_value(s.slot_variable_node_id)]

    def _has_value(self, number: int) -> bool:
        return bool(self._values[number])

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
        self._values.append(set())
        return len(self.nodes) - 1

    def detach(self, path: Path) -> None:
        """Take away the edge that a path ends with."""
        parent = self.walk(path[:-1])
        if parent is not None:
            self.children[parent].pop(path[-1], None)

    def unalias(self, path: Path, child: int, names: re.Pattern[str]) -> None:
        """Take away those edges from the object at a path to another whose names match."""
        parent = self.walk(path)
        if parent is not None:
            children = self.children[parent]
            for name in [n for n, c in children.items() if c == child and names.fullmatch(n)]:
                del children[name]

    def attach(self, number: int, path: Path) -> Path | None:
        """Put an object at a path, and make those above it.

        Objects of which neither has a value become one; at the empty path that is the root.

        Returns:
            The path at which another object is in the way; None where none is.
        """
        parent = 0
        if not path:
            # One more edge to the object, for the time that it takes to become the root.
            path, self.children[0][_ROOT] = (_ROOT,), 0
        for name in path[:-1]:
            if name not in self.children[parent]:
                self.children[parent][name] = self.add()
            parent = self._one(self.children[parent][name])
        pairs = [(parent, path, number)]
        while pairs:
            parent, path, number = pairs.pop()
            parent, name, number = self._one(parent), path[-1], self._one(number)
            there = self._one(self.children[parent].get(name, number))
            if there == number or self._is_void(there):
                self.children[parent][name] = number
            elif self._is_held(there) or self._is_held(number):
                return tuple(name for name in path if name != _ROOT)
            else:
                self._merged[number] = there
                pairs += [
                    (there, (*path, name), child) for name, child in self.children[number].items()
                ]
        self.children[0].pop(_ROOT, None)
        return None

    def make(self, path: Path, key: str, full_name: str) -> int:
        """Make a variable; an empty path leaves it without an edge to it."""
        number = self.add()
        self.nodes[number].attributes.add(name=VALUE, full_name=full_name, checkpoint_key=key)
        self._values[number].add(VALUE)
        if path:
            self.attach(number, path)
        return number

    def record(self, optimizer: int, of: int, name: str, slot: int) -> None:
        """Make an object a slot of a variable."""
        record = messages.message("SlotVariableReference")(
            original_variable_node_id=of, slot_name=name, slot_variable_node_id=slot
        )
        self._slots[optimizer].append(record)

    def release(self, slots: Collection[int]) -> None:
        """Make objects slots no longer."""
        for number, records in enumerate(self._slots):
            self._slots[number] = [r for r in records if r.slot_variable_node_id not in slots]

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
        changed = self._led ^ leading
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
                if attribute.name in self._values[number]:
                    node.attributes.add().CopyFrom(attribute)
                    # A new object has its new key already, which may be the old one of another.
                    if number < self._count:
                        key = attribute.checkpoint_key
                        key = prefixes.get(key) or keys.get(key, key)
                        node.attributes[-1].checkpoint_key = key
            for record in self._slots[number]:
                slot = node.slot_variables.add()
                slot.CopyFrom(record)
                slot.original_variable_node_id = numbers[record.original_variable_node_id]
                slot.slot_variable_node_id = numbers[record.slot_variable_node_id]
            if node.HasField("has_checkpoint_values") or number in changed:
                node.has_checkpoint_values.value = number in leading
        data: bytes = graph.SerializeToString(deterministic=True)
        return data

    def _prefixes(self, keys: Mapping[str, str]) -> dict[str, str]:
        """Return what attributes have as their keys whose values are stored under longer ones."""
        found = {}
        for old, new in keys.items():
            if old == new or old not in self.owners:
                continue
            prefix = self.owners[old][1].checkpoint_key
            rest = old.removeprefix(prefix)
            if rest and new.endswith(rest):
                found[prefix] = new.removesuffix(rest)
        return found
