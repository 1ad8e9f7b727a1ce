"""Roles that names alone tell."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from converter.names.keras import by_scope
from converter.names.leaf import by_leaf
from converter.names.role import MODEL, Role
from converter.names.self_named import by_family
from converter.variable import Variable


def roles(variables: Mapping[str, Variable]) -> dict[str, Role]:
    """Return the role of every variable, in the order of the variables."""
    found, rest = by_leaf(variables)
    found |= by_scope(variables, rest, found)
    found |= by_family(variables, [name for name in rest if name not in found], found)
    for name, role in found.items():
        if role.kind == "beta_power":
            found[name] = replace(role, optimizer=_owner_of_beta_powers(found.values()))
        elif role.kind == "average" and role.of in found and found[role.of].is_optimizer_state:
            found[name] = replace(role, optimizer=found[role.of].optimizer)
    return {name: found.get(name, MODEL) for name in variables}


def _owner_of_beta_powers(found: Iterable[Role]) -> str:
    names = {role.optimizer for role in found if role.slot == "v"}
    only = names.pop() if len(names) == 1 else None
    return only or "Adam"
