"""Roles in an object checkpoint, whose graph tells what an optimizer owns."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from converter.names.by_name import roles
from converter.names.evidence import is_state
from converter.names.keras import role_of_slot
from converter.names.optimizers import KERAS_SLOTS, STEPS
from converter.names.role import MODEL, Kind, Role
from converter.variable import Variable

if TYPE_CHECKING:
    from converter.formats.object_graph import Entry, State

_BETA_POWERS = frozenset(["beta1_power", "beta2_power"])
# Keras 2 gives the row and the column factors of Adafactor the same names, where it makes dummies.
_FACTORS = frozenset(["r", "c"])
# As many variables of one name are compared, for each slot that one of them may have.
_MAX_MODELS = 100
_TOLD_BY_PATH = frozenset(["batch_statistic", "optimizer", "save_counter", "step", "table"])
# Lists that somebody keeps beside a model, Sonnet's optimizers among them.
_SLOT_LISTS = frozenset(
    [
        "accumulated_momentum",
        "accumulator",
        "accumulators",
        "m",
        "mg",
        "mom",
        "momentum",
        "momentums",
        "ms",
        "rms",
        "v",
        "velocities",
        "velocity",
    ]
)


def object_roles(entries: Iterable[Entry], variables: Mapping[str, Variable]) -> dict[str, Role]:
    """Return the role of every variable of an object checkpoint.

    The graph decides what an optimizer owns and which slot is whose, as far as it tells; the names
    that the variables were given tell the rest, then their paths.

    Args:
        entries: what the object graph says of the variables.
        variables: the variables by the names of the entries.
    """
    entries = [entry for entry in entries if entry.name in variables]
    names = {entry.key: entry.name for entry in entries}
    labelled = _Labelled(entries, variables)
    by_path = roles({entry.path: variables[entry.name] for entry in entries})
    found = {}
    for entry in entries:
        role = labelled.role(entry)
        if entry.state is not None:
            role = _owned(entry.state, role, names)
        elif role is MODEL and by_path[entry.path].kind in _TOLD_BY_PATH:
            role = by_path[entry.path]
        found[entry.name] = role
    found |= _listed_slots([e for e in entries if found[e.name] is MODEL], variables)
    found |= _named_optimizers(entries, found)
    return {name: found.get(name, MODEL) for name in variables}


class _Labelled:
    """Variables by the names that they were given, of which several may have one."""

    def __init__(self, entries: Iterable[Entry], variables: Mapping[str, Variable]) -> None:
        self._variables = variables
        self._entries: defaultdict[str, list[Entry]] = defaultdict(list)
        for entry in entries:
            self._entries[entry.full_name or entry.path].append(entry)
        firsts = {label: alike[0].name for label, alike in self._entries.items()}
        self._roles = roles({label: variables[name] for label, name in firsts.items()})

    def role(self, entry: Entry) -> Role:
        """Return the role that the name of a variable tells."""
        label = entry.full_name or entry.path
        role, first = self._roles[label], self._entries[label][0]
        if self._variables[entry.name].shape != self._variables[first.name].shape:
            return MODEL
        if role.of is not None:
            of = self._find(role.of, entry)
            return role if of == role.of else replace(role, of=of)
        if role is MODEL and entry.state is not None and entry.state.listed is not None:
            # Keras 2 leaves out its own scope where it scales the loss: `m/dense/kernel`.
            slot, _, label = label.partition("/")
            of = self._find(label, entry) if slot in KERAS_SLOTS else None
            return role_of_slot(slot, of, None) if of is not None else MODEL
        return role

    def _find(self, label: str, slot: Entry) -> str | None:
        """Return the variable of a given name that a slot belongs to, if there is only one.

        Of several models, each with an optimizer of its own, it is in the one of the optimizer.
        """
        alike = self._entries.get(label, [])
        if 1 < len(alike) <= _MAX_MODELS and slot.state is not None:
            model = slot.state.optimizer.rpartition("/")[0]
            alike = [entry for entry in alike if entry.path.startswith(f"{model}/")]
        return alike[0].name if len(alike) == 1 else None


def _owned(state: State, told: Role, names: Mapping[str, str]) -> Role:
    """Return the role of what an optimizer owns.

    Args:
        told: the role that its name tells.
        names: the name of each key.
    """
    of = names.get(state.of) if state.of is not None else None
    if state.local_name is not None:
        if state.local_name in STEPS:
            return Role("step")
        kind: Kind = "beta_power" if state.local_name in _BETA_POWERS else "optimizer"
        return Role(kind, optimizer=told.optimizer)
    if state.slot is not None:
        return role_of_slot(state.slot, of, told.optimizer)
    if told.kind == "slot":
        slot = state.listed if state.listed in _FACTORS else told.slot
        return Role("slot", told.of or of, slot, told.optimizer)
    if told.kind == "average":
        return Role("average", told.of or of)
    if state.listed is not None:
        return role_of_slot(state.listed, of, told.optimizer)
    return Role("optimizer", optimizer=told.optimizer)


def _listed_slots(entries: Iterable[Entry], variables: Mapping[str, Variable]) -> dict[str, Role]:
    """Return the slots in lists that somebody keeps by hand: `momentum/0`, `momentum/1` ...

    Such a list has a variable of the same shape for each that is trained.
    """
    lists: defaultdict[str, list[str]] = defaultdict(list)
    shapes: Counter[tuple[int, ...]] = Counter()
    for entry in entries:
        parent, _, index = entry.path.rpartition("/")
        if not is_state(variables[entry.name]):
            continue
        if index.isdigit() and parent.rpartition("/")[2] in _SLOT_LISTS:
            lists[parent].append(entry.name)
        else:
            shapes[variables[entry.name].shape] += 1
    found: dict[str, Role] = {}
    for parent, names in lists.items():
        listed = Counter(variables[name].shape for name in names)
        if len(names) > 1 and listed <= shapes:
            slot = parent.rpartition("/")[2]
            found |= {name: Role("slot", slot=slot) for name in names}
    return found


def _named_optimizers(entries: Iterable[Entry], found: Mapping[str, Role]) -> dict[str, Role]:
    """Return the roles of optimizer state, with a name for those optimizers that told none.

    It is the one that most slots of the same optimizer tell, or else its path.
    """
    owned = [entry for entry in entries if entry.state and found[entry.name].is_optimizer_state]
    told: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for entry in owned:
        role = found[entry.name]
        if entry.state and role.kind == "slot" and role.optimizer is not None:
            told[entry.state.optimizer][role.optimizer] += 1
    named = {}
    for entry in owned:
        role, path = found[entry.name], entry.state.optimizer if entry.state else ""
        common = told[path].most_common(1)
        name = common[0][0] if common else role.optimizer or path or None
        if role.kind != "slot" or role.optimizer is None:
            named[entry.name] = replace(role, optimizer=name)
    return named
