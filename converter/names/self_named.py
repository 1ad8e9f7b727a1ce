"""Slots and averages under a name that somebody chose: `AdamOptimizer(name="foo")`."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping

from converter.names.evidence import is_state, owner, unnumbered
from converter.names.leaf import numbered_slots
from converter.names.optimizers import class_of
from converter.names.role import Role
from converter.variable import Variable

_AVERAGE_HINT = re.compile(r"average|shadow|polyak|(^|_)(ema|avg|swa)($|_)", re.IGNORECASE)
# An optimizer of a name that tells nothing is known by having slots of nearly all variables.
_COVERAGE = 0.9


# The variable that is meant, and the number and name of each that lies below it.
_Below = tuple[str, list[tuple[int, str]]]


def by_family(
    variables: Mapping[str, Variable], names: Iterable[str], found: Mapping[str, Role]
) -> dict[str, Role]:
    """Give roles to what lies below variables, in the same way below several of them.

    `AdamOptimizer(name="foo")` has the slots `w/foo` and `w/foo_1`. Every variable of that last
    component must lie below one of its own shape. Then it is an average where the name says so,
    and a slot where the name tells a known optimizer, where each variable has several, or where
    nearly all variables have one. Which slot it is, a name like `foo` tells only beside beta
    powers that no other optimizer can have left.

    Args:
        names: those that have no role yet.
        found: the roles of others.
    """
    names = [name for name in names if is_state(variables[name])]
    families = _families(variables, names)
    others = len(names) - sum(len(b) for family in families.values() for _, b in family.values())
    powers = sum(role.kind == "beta_power" for role in found.values())
    has_adam = any(role.slot == "v" for role in found.values())
    given: dict[str, Role] = {}
    for base, family in families.items():
        if len(family) < min(2, others):
            continue
        has_several = all(len(numbered) > 1 for _, numbered in family.values())
        is_common = len(family) >= _COVERAGE * others and "mask" not in base.lower()
        known = class_of(base)
        if known is None and has_several and powers > 2 * has_adam:
            known = "Adam"
        if _AVERAGE_HINT.search(base):
            roles = {n: Role("average", of) for of, below in family.values() for _, n in below}
        elif known is not None:
            roles = {}
            for stem, (_, below) in family.items():
                roles |= numbered_slots(variables, stem, base, below, known)
        elif has_several or is_common:
            roles = {
                n: Role("slot", of, None, base) for of, below in family.values() for _, n in below
            }
        else:
            continue
        given |= roles
    return given


def _families(
    variables: Mapping[str, Variable], names: Iterable[str]
) -> dict[str, dict[str, _Below]]:
    """Return the last components all of whose variables lie below one of their own shape.

    The result is by last component, without its number, and by what stands before it.
    """
    families: defaultdict[str, dict[str, _Below]] = defaultdict(dict)
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
