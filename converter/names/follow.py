"""What slots and averages are called where their variables are renamed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from converter.counted import agree
from converter.names.role import Role

_MAX_STEPS = 4
"""An average of a slot follows the slot, which follows its variable."""


def followers(roles: Mapping[str, Role], renamed: Mapping[str, str]) -> dict[str, str]:
    """Return new names for the slots and averages of renamed variables.

    They follow where the name of their variable is a part of theirs, once: `w/Adam`,
    `train/w/Adam`, `Adam/w/m`, `w_slot_m`.

    Args:
        roles: of all variables.
        renamed: new names by old ones; what has one already is in none of the result.
    """
    known = dict(renamed)
    for _ in range(_MAX_STEPS):
        found = {}
        for name, role in roles.items():
            if name not in known and role.of is not None and role.of in known:
                new = following(name, role.of, known[role.of])
                if new is not None:
                    found[name] = new
        if not found:
            break
        known |= found
    return {name: new for name, new in known.items() if name not in renamed}


def left_behind(roles: Mapping[str, Role], renamed: Mapping[str, str]) -> list[str]:
    """Return the slots and averages that keep their names where their variables get others."""
    return [
        name
        for name, role in roles.items()
        if role.of is not None and renamed.get(role.of, role.of) != role.of and name not in renamed
    ]


def told_left(left: Sequence[str]) -> str:
    """Say which slots and averages keep their names where their variables get others."""
    kept = agree(
        len(left),
        "1 slot or average keeps a name that doesn't hold its variable's",
        f"{len(left):,} slots and averages keep names that don't hold their variable's",
    )
    return f"{kept}, such as {left[0]}; rename them by a pattern"


def following(name: str, of: str, new: str) -> str | None:
    """Return the name of a slot of a variable that gets another one; None where it has no part.

    Args:
        name: of the slot.
        of: the variable.
        new: its new name.
    """
    if name.startswith(of):
        return new + name.removeprefix(of)
    if f"/{name}/".count(f"/{of}/") == 1:
        return f"/{name}/".replace(f"/{of}/", f"/{new}/")[1:-1]
    return None


def root_of(roles: Mapping[str, Role], name: str) -> str:
    """Return the variable that a slot, or an average of a slot, belongs to in the end."""
    for _ in range(_MAX_STEPS):
        of = roles[name].of
        if of is None or of not in roles:
            break
        name = of
    return name
