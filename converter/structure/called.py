"""What the variables that strategies made are called in the graph."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from converter.checkpoint import Checkpoint


def opened(checkpoint: Checkpoint) -> Checkpoint:
    """Return the checkpoint that strategies made one of, which its graph is of."""
    while checkpoint.origin is not None:
        checkpoint = checkpoint.origin.checkpoint
    return checkpoint


def called_in_graph(checkpoint: Checkpoint) -> dict[str, tuple[str, ...]]:
    """Return the variables of the graph that each variable was made of, by its name now.

    An average that took the place of its variable is what that was. What was made of nothing that
    was opened has its own name.
    """
    return checkpoint.once(called_in_graph, lambda: _called_in_graph(checkpoint))


def _called_in_graph(checkpoint: Checkpoint) -> dict[str, tuple[str, ...]]:
    source = opened(checkpoint)
    if source is checkpoint:
        return {name: (name,) for name in checkpoint}
    held = {old for variable in checkpoint.values() for old in variable.sources}
    now = checkpoint.roles()
    places = {
        average: role.of
        for average, role in source.roles().items()
        if role.kind == "average" and role.slot is None and role.of and role.of not in held
    }
    found: dict[str, tuple[str, ...]] = {}
    for name, variable in checkpoint.items():
        olds = [old for old in variable.sources if old in source]
        if now[name].kind != "average":
            olds = [places.get(old, old) for old in olds]
        found[name] = tuple(dict.fromkeys(olds)) or (name,)
    return found


def called_now(checkpoint: Checkpoint) -> dict[str, str]:
    """Return what the variables of the graph are called now, by their names in the graph.

    Those that were cut into several, or put together with others, are left out.
    """
    return checkpoint.once(called_now, lambda: _called_now(checkpoint))


def _called_now(checkpoint: Checkpoint) -> dict[str, str]:
    made: dict[str, list[str]] = {}
    called = called_in_graph(checkpoint)
    for name, olds in called.items():
        for old in olds:
            made.setdefault(old, []).append(name)
    return {
        old: names[0]
        for old, names in made.items()
        if len(names) == 1 and called[names[0]] == (old,)
    }
