"""Slots and averages under a name that somebody chose: `AdamOptimizer(name="foo")`."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from converter.names.evidence import is_state, owner, unnumbered
from converter.names.leaf import numbered_slots
from converter.names.optimizers import class_of
from converter.names.role import Role
from converter.variable import Variable

_AVERAGE_HINT = re.compile(r"average|shadow|polyak|(^|_)(ema|avg|swa)($|_)", re.IGNORECASE)
# An Adam of a name that tells nothing is known by having slots of nearly all variables.
_COVERAGE = 0.9
_PAIR = [0, 1]


# The variable that is meant, and the number and name of each that lies below it.
_Below = tuple[str, list[tuple[int, str]]]
# By what stands before the last component.
_Family = dict[str, _Below]


def by_family(
    variables: Mapping[str, Variable], names: Iterable[str], found: Mapping[str, Role]
) -> dict[str, Role]:
    """Give roles to what lies below variables, in the same way below several of them.

    `AdamOptimizer(name="foo")` has the slots `w/foo` and `w/foo_1`. Every variable of that last
    component must lie below one of its own shape. Then it is an average where the name says so,
    and a slot where the name tells a known optimizer. Of a name like `foo`, only the beta powers
    of an Adam that has no slots otherwise tell it from a model's `w/head` and `w/head_1`.

    Args:
        names: those that have no role yet.
        found: the roles of others.
    """
    names = [name for name in names if is_state(variables[name])]
    families = _families(variables, names)
    others = len(names) - sum(len(b) for family in families.values() for _, b in family.values())
    given: dict[str, Role] = {}
    nameless: dict[str, _Family] = {}
    for base, family in families.items():
        if len(family) < min(2, others):
            continue
        known = class_of(base)
        if _AVERAGE_HINT.search(base):
            given |= {n: Role("average", of) for of, below in family.values() for _, n in below}
        elif known is not None:
            given |= _slots(variables, base, family, known)
        else:
            nameless[base] = family
    left = [name for name in names if name not in given]
    for base in _adams(nameless, left, {**found, **given}):
        given |= _slots(variables, base, nameless[base], "Adam")
    return given


def _slots(
    variables: Mapping[str, Variable], base: str, family: _Family, known: str
) -> dict[str, Role]:
    roles: dict[str, Role] = {}
    for stem, (_, below) in family.items():
        roles |= numbered_slots(variables, stem, base, below, known)
    return roles


def _adams(
    families: Mapping[str, _Family], names: Sequence[str], found: Mapping[str, Role]
) -> list[str]:
    """Return the families that are the slots of an Adam under a name that somebody chose.

    An Adam leaves beta powers, a pair of slots for each variable, and no variable without. Where
    another optimizer may have left the beta powers, or there are more such pairs than beta powers,
    nothing tells which they are, and none is taken for slots.

    Args:
        families: those that have no role yet.
        names: all that have none.
        found: the roles of the others.
    """
    powers = sum(
        role.kind == "beta_power" and unnumbered(name.rpartition("/")[2])[0] == "beta1_power"
        for name, role in found.items()
    )
    if any(role.kind == "slot" and role.slot in ("m", "v") for role in found.values()):
        return []
    pairs = [
        base
        for base, family in families.items()
        if all([number for number, _ in below] == _PAIR for _, below in family.values())
    ]
    slots = {n for base in pairs for _, below in families[base].values() for _, n in below}
    owners = {of for base in pairs for of, _ in families[base].values()}
    is_all = len(owners) >= _COVERAGE * sum(name not in slots for name in names)
    return pairs if len(pairs) <= powers and is_all else []


def _families(variables: Mapping[str, Variable], names: Iterable[str]) -> dict[str, _Family]:
    """Return the last components all of whose variables lie below one of their own shape.

    The result is by last component, without its number, and by what stands before it.
    """
    families: defaultdict[str, _Family] = defaultdict(dict)
    refused = set()
    bases: dict[str, tuple[str, int]] = {}
    for name in names:
        stem, _, leaf = name.rpartition("/")
        if leaf not in bases:
            bases[leaf] = unnumbered(leaf)
        base, index = bases[leaf]
        if not base or base in refused:
            continue
        shape = variables[name].shape
        if stem not in families[base]:
            of = owner(variables, stem, shape.__eq__)
            if of is not None:
                families[base][stem] = of, []
        below = families[base].get(stem)
        if below is None or variables[below[0]].shape != shape:
            refused.add(base)
            del families[base]
        else:
            below[1].append((index, name))
    for family in families.values():
        for _, numbered in family.values():
            numbered.sort()
    return families
