"""Roles in the scope that a Keras optimizer opens: `training/Adam/w/m`, `adam/net_w_momentum`."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from converter.names.evidence import MAX_DEPTH, is_state, scope_of, unnumbered
from converter.names.optimizers import (
    HYPERPARAMETERS,
    KERAS_OPTIMIZERS,
    KERAS_SLOTS,
    STEPS,
    keras_optimizer,
    keras_slot_fits,
)
from converter.names.role import Role
from converter.variable import Variable

_NAMELESS = re.compile(r"(Variable|m|v|vhat)(_\d+)?")
_MAX_WORDS = max(slot.count("_") for slot in KERAS_SLOTS) + 1


class _Opened(NamedTuple):
    """A scope that an optimizer opens: `training/Adam` in `training/Adam/w/m`.

    Attributes:
        scope: up to the optimizer, `training/Adam`.
        component: the last of it, `Adam`.
        optimizer: the optimizer's name.
    """

    scope: str
    component: str
    optimizer: str


def by_scope(
    variables: Mapping[str, Variable], names: Iterable[str], known: Mapping[str, Role]
) -> dict[str, Role]:
    """Give roles to what lies in the scope of a Keras optimizer.

    The scope alone proves nothing, since anybody may call a scope `Adam`: a slot needs its
    variable, and then, or where the scope holds a step, the rest of the scope follows.
    """
    found: dict[str, Role] = {}
    proven = _proven(known)
    opens = {scope.rpartition("/")[2]: True for scope in proven}
    flat: dict[str, list[str]] = {}
    direct = []
    for name in names:
        for opened in _openings(name, opens):
            if opened.scope == scope_of(name):
                direct.append((name, opened))
                flat = flat or _flattened(variables)
            role = _keras_slot(variables, name, opened, flat)
            if role is not None:
                found[name] = role
                proven.add(opened.scope)
                break
    components = {scope.rpartition("/")[2] for scope in proven}
    for name, opened in direct:
        # A scope of another name with a step in it may be somebody's training loop.
        is_keras = unnumbered(opened.component)[0] in KERAS_OPTIMIZERS
        # What Keras called its slots before it put the variable's name into theirs.
        is_nameless = opened.component in components and _NAMELESS.fullmatch(name.split("/")[-1])
        if name not in found and is_keras and (opened.scope in proven or is_nameless):
            found[name] = Role("optimizer", optimizer=opened.optimizer)
    return found


def _proven(known: Mapping[str, Role]) -> set[str]:
    """Return the scopes that hold the step or the hyperparameters of an optimizer."""
    proven = set()
    for name, role in known.items():
        if role.kind not in ("step", "optimizer"):
            continue
        scope, _, leaf = name.rpartition("/")
        opener = unnumbered(scope.rpartition("/")[2])[0]
        is_step = leaf in STEPS and opener in KERAS_OPTIMIZERS
        if scope and (is_step or leaf in HYPERPARAMETERS):
            proven.add(scope)
    return proven


def _openings(name: str, opens: dict[str, bool]) -> list[_Opened]:
    """Return the scopes around a name that an optimizer opens.

    Args:
        opens: whether a component does; filled as components are met.
    """
    found = []
    parts = name.split("/", MAX_DEPTH)
    parts.pop()
    for depth, part in enumerate(parts):
        if part not in opens:
            opens[part] = unnumbered(part)[0] in KERAS_OPTIMIZERS
        if opens[part]:
            found.append(_Opened("/".join(parts[: depth + 1]), part, keras_optimizer(part)))
    return found


def _flattened(variables: Mapping[str, Variable]) -> dict[str, list[str]]:
    flat = defaultdict(list)
    for name in variables:
        flat[name.replace("/", "_")].append(name)
    return flat


def _keras_slot(
    variables: Mapping[str, Variable], name: str, opened: _Opened, flat: Mapping[str, list[str]]
) -> Role | None:
    variable = variables[name]
    if not is_state(variable):
        return None
    for slot, candidates in _keras_slots(name, opened, flat):
        owners = [
            of
            for of in candidates
            if of in variables and keras_slot_fits(slot, variable.shape, variables[of].shape)
        ]
        if len(owners) == 1:
            return role_of_slot(slot, owners[0], opened.optimizer)
    return None


def role_of_slot(slot: str | None, of: str | None, optimizer: str | None) -> Role:
    return Role("average", of) if slot == "average" else Role("slot", of, slot, optimizer)


def _keras_slots(
    name: str, opened: _Opened, flat: Mapping[str, list[str]]
) -> Iterator[tuple[str, list[str]]]:
    """Yield which slot a name can be, and of which variables."""
    inner = name[len(opened.scope) + 1 :]
    first, _, after = inner.partition("/")
    before, _, last = inner.rpartition("/")
    if before and last in KERAS_SLOTS:
        yield last, [before]
    if after and first in KERAS_SLOTS:
        yield first, [after]
    if not after:
        if last in KERAS_SLOTS:
            # The embeddings of TPUs: the slots of `table` are `table/Adam/m` and `table/Adam/v`.
            yield last, [opened.scope.rpartition("/")[0]]
        words = last.split("_")
        for count in range(1, min(len(words), _MAX_WORDS + 1)):
            slot = "_".join(words[-count:])
            if slot in KERAS_SLOTS:
                yield slot, flat.get("_".join(words[:-count]), [])
