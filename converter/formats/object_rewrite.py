"""TensorFlow 2's object graph, rewritten for variables that moved, changed their names, or went.

What restores a checkpoint walks the edges of the graph, by the local names of its own objects, and
reads what the attributes that it arrives at have as their keys. So a variable moves with its edges;
the keys follow, because TensorFlow makes them of the paths, and people read them.

References:
    tensorflow/core/protobuf/trackable_object_graph.proto;
    tensorflow/python/checkpoint: restore.py, checkpoint.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from converter.errors import PlanError
from converter.formats.object_edges import Edges, Path
from converter.formats.object_graph import SLOT, VALUE, path_of, shown_names
from converter.formats.object_places import Key, Placed, Places, also, follow


@dataclass(frozen=True, slots=True)
class Rewritten:
    """A graph for the variables of the output.

    Attributes:
        data: the graph.
        keys: what each variable is to be stored under, by name.
        moved: old and new path of every object that moved, but not of what it holds.
        also: a second path under which a variable with a new name is found, by its name.
        homeless: names of variables that no object of the graph stands for.
        shown: what variables are shown as, where it is not their name.
    """

    data: bytes
    keys: Mapping[str, tuple[str, ...]]
    moved: tuple[tuple[str, str], ...]
    also: Mapping[str, str]
    homeless: tuple[str, ...]
    shown: Mapping[str, str]


def rewrite(
    data: bytes, stored: Iterable[str], placed: Sequence[Placed], subject: str
) -> Rewritten:
    """Return the object graph of a source for the variables of an output.

    What none of `placed` takes goes, and so does every object that led to nothing else.

    Args:
        data: the graph of the source.
        stored: the keys of the source.
        placed: the variables of the output, no two with one key.
        subject: begins the message of an error about the graph.

    Raises:
        PlanError: two variables would have one place.
        InputError: the graph is damaged.
    """
    edges = Edges(data, stored, subject)
    taken = {key for one in placed for key in one.keys}
    edges.forget([key for key in edges.owners if key not in taken])
    places = Places(edges, placed)
    moved = places.move()
    renamed = {key: places.key(key) for one in placed for key in one.keys}
    keys = {one.name: tuple(renamed[key] for key in one.keys) for one in placed if one.keys}
    keys |= _make_new(edges, places, placed)
    homeless = tuple(one.name for one in placed if one.name not in keys)
    keys |= {name: (name,) for name in homeless}
    _refuse_repeated(keys)
    second = {}
    for one in placed:
        owned = [key for key in one.keys if key in edges.owners]
        full_name = one.full_name
        if owned and full_name is None and one.path == one.name:
            was = edges.owners[owned[0]][1].full_name
            full_name = follow(path_of(owned[0]), one.name, was)
        for key in owned if full_name is not None else ():
            edges.owners[key][1].full_name = full_name
        if owned and one.old_name is not None:
            path = also(edges, places.path(owned[0]), one.old_name, one.name)
            if path is not None:
                second[one.name] = path
    shown = _show(edges, keys, placed)
    return Rewritten(edges.serialize(renamed), keys, moved, second, homeless, shown)


def _refuse_repeated(keys: Mapping[str, tuple[str, ...]]) -> None:
    owners: dict[str, str] = {}
    for name, several in keys.items():
        for key in several:
            if (other := owners.setdefault(key, name)) != name:
                raise PlanError(
                    f"{path_of(key)}: both {other} and {name} would have this path; choose "
                    f"another for one of them"
                )


def _make_new(edges: Edges, places: Places, placed: Sequence[Placed]) -> dict[str, tuple[str, ...]]:
    """Make objects for the variables that take none, where there is a place; return their keys."""
    made: dict[str, tuple[int, Path]] = {}
    for one in placed:
        for key in one.keys:
            path = places.path(key)
            if key in edges.owners and path is not None:
                made[key] = edges.owners[key][0], path
    keys: dict[str, tuple[str, ...]] = {}
    new = [one for one in placed if not one.keys and _is_utf8(one.name)]
    for one in new:
        path = tuple(one.path.split("/")) if one.path else ()
        if not _slots(edges, one) and SLOT not in path and edges.is_free(path):
            key = str(Key(path))
            number = edges.make(path, key, one.full_name or one.name)
            made |= dict.fromkeys(one.like, (number, path))
            keys[one.name] = (key,)
    by_object = {number: key for key, (number, _) in edges.owners.items()}
    for one in new:
        records = _slots(edges, one)
        optimizers = {optimizer for optimizer, _ in records}
        slots = {record.slot_name for _, record in records}
        of = {made.get(by_object.get(r.original_variable_node_id, "")) for _, r in records}
        parts = Key.parse(one.like[0]) if records else Key(())
        if len(optimizers) == len(slots) == len(of) == 1 and parts.optimizer is not None:
            variable = of.pop()
            if variable is None:
                continue
            key = str(Key(variable[1], places.now(parts.optimizer), parts.slot))
            number = edges.make((), key, one.full_name or one.name)
            edges.record(optimizers.pop(), variable[0], slots.pop(), number)
            keys[one.name] = (key,)
    return keys


def _slots(edges: Edges, one: Placed) -> list[tuple[int, Any]]:
    """Return the records of the slots that a variable is made from; none if not only of those."""
    owners = [edges.owners[key][0] for key in one.like if key in edges.owners]
    records = [edges.records[number] for number in owners if number in edges.records]
    return records if len(records) == len(one.like) else []


def _is_utf8(name: str) -> bool:
    # Texts in the graph are; keys are any bytes.
    return not any("\ud800" <= letter <= "\udfff" for letter in name)


def _show(
    edges: Edges, keys: Mapping[str, tuple[str, ...]], placed: Sequence[Placed]
) -> dict[str, str]:
    """Give a variable its name where a reader would show another; return where that won't do.

    A name that several variables had may be left to one of them: then that would be shown in
    place of its path.
    """
    paths = {keys[one.name][0]: path_of(keys[one.name][0]) for one in placed}
    given = {
        keys[one.name][0]: edges.owners[one.keys[0]][1].full_name
        if one.keys and one.keys[0] in edges.owners
        else one.full_name or one.name
        for one in placed
    }
    shown = shown_names(paths, given)
    for one in placed:
        key = keys[one.name][0]
        owners = [edges.owners[old][1] for old in one.keys if old in edges.owners]
        if shown[key] != one.name and owners and owners[0].name == VALUE:
            given[key] = one.name
            for attribute in owners:
                attribute.full_name = one.name
    shown = shown_names(paths, given)
    return {
        one.name: shown[keys[one.name][0]] for one in placed if shown[keys[one.name][0]] != one.name
    }
