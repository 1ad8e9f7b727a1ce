"""The object graph of a TensorFlow 2 checkpoint, for the variables that strategies made of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from converter.checkpoint import Checkpoint
from converter.dtype import STRING
from converter.errors import printable
from converter.formats import OBJECT_GRAPH_KEY
from converter.formats.object_places import Placed, follow
from converter.formats.object_rewrite import Rewritten, rewrite
from converter.variable import Variable

_SHOWN = 3
_COUNTER = "save_counter"


@dataclass(frozen=True, slots=True)
class Regrouped:
    """The object graph of an output.

    Attributes:
        variables: the variables of the output under their keys, the graph last.
        notes: what became of the objects, each in one line.
    """

    variables: tuple[Variable, ...]
    notes: tuple[str, ...]


def regroup(source: Checkpoint, result: Checkpoint) -> Regrouped | None:
    """Return the object graph of a source for what strategies made of its variables.

    It is None where there is none: the source is no object checkpoint, or the graph was dropped.

    Args:
        source: an opened checkpoint.
        result: what strategies made of it.

    Raises:
        PlanError: two variables would have one place.
    """
    if source.object_graph is None or not any(_is_graph(source, name) for name in result):
        return None
    variables = [v for name, v in result.items() if not _is_graph(source, name)]
    stored = [key for keys in source.stored_keys.values() for key in keys]
    found = rewrite(
        source.object_graph,
        [key for key in stored if key != OBJECT_GRAPH_KEY],
        list(_placed(source, variables)),
        str(source.path),
    )
    stored_variables = [v.rename(key) for v in variables for key in found.keys[v.name]]
    # An array of objects: numpy's own texts lose zero bytes at their end.
    data = np.array(found.data, object)
    graph = Variable.from_array(OBJECT_GRAPH_KEY, data, dtype=STRING)
    notes = list(_notes(found))
    if _COUNTER in source.stored_keys and not any(_COUNTER in v.sources for v in variables):
        notes.append(
            f"without {_COUNTER}, Checkpoint.read restores the output, and Checkpoint.restore "
            f"finds it incomplete; --keep {_COUNTER} keeps it"
        )
    return Regrouped((*stored_variables, graph), tuple(notes))


def _is_graph(source: Checkpoint, name: str) -> bool:
    """Return whether a variable is the object graph itself."""
    return source.stored_keys.get(name) == (OBJECT_GRAPH_KEY,) and name == OBJECT_GRAPH_KEY


def _placed(source: Checkpoint, variables: list[Variable]) -> Iterator[Placed]:
    """Yield which object each variable of the output is.

    It is the one of its own name, if the source has that: an average in the place of its variable
    takes its place. Else it is the one that it was made from, if it was made from one alone.
    """
    taken = {v.name for v in variables if v.name in source}
    for variable in variables:
        known = [s for s in variable.sources if s in source.stored_keys]
        first = known[0] if known else None
        own: str | None = variable.name
        if variable.name not in source:
            own = first if len(variable.sources) == 1 and first not in taken else None
            if own is not None:
                taken.add(own)
        if own is None:
            yield _new(source, variable, known)
            continue
        path, named = _new_path(source, variable), own != variable.name
        if source[own].path is None:
            yield Placed(variable.name, source.stored_keys[own], path=path or variable.name)
        else:
            yield Placed(
                variable.name,
                source.stored_keys[own],
                path=path,
                full_name=variable.name if named else None,
                old_name=own if named else None,
            )


def _new_path(source: Checkpoint, variable: Variable) -> str | None:
    """Return the path that a strategy gave to a variable; None where none did."""
    given = {source[s].path for s in variable.sources if s in source}
    return None if variable.path in given else variable.path


def _new(source: Checkpoint, variable: Variable, known: list[str]) -> Placed:
    """Return where a variable that is made from others is to be: it ends as they do."""
    path: str | None = variable.name
    if known:
        like = source[known[0]]
        if like.path is not None:
            path = follow(known[0], variable.name, like.path)
    return Placed(
        variable.name,
        (),
        tuple(source.stored_keys[name][0] for name in known),
        _new_path(source, variable) or path,
        variable.name,
    )


def _notes(found: Rewritten) -> Iterator[str]:
    for old, new in found.moved[:_SHOWN]:
        yield f"the object {printable(old)} moves to {printable(new) or 'the root'}"
    if len(found.moved) > _SHOWN:
        yield f"{len(found.moved) - _SHOWN} more objects move"
    paths = list(found.also.values())
    if paths:
        yield f"found under both paths, old and new: {_some(paths)}"
    if found.homeless:
        yield (
            f"no object stands for {_some(found.homeless)}: TensorFlow 2 finds them by these "
            f"names, and not from an object"
        )
    for name, shown in list(found.shown.items())[:_SHOWN]:
        yield f"{printable(name)} is shown as {printable(shown)} in the output"


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(map(printable, names[:_SHOWN])) + more
