"""Roles that the last component of a name tells: `w/Adam_1`, `global_step`, `bn/moving_mean`."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import NamedTuple

from converter.dtype import STRING
from converter.formats import OBJECT_GRAPH_KEY
from converter.names.evidence import is_count, is_scalar, is_state, owner, unnumbered
from converter.names.optimizers import (
    HYPERPARAMETERS,
    KERAS_OPTIMIZERS,
    NAMED_SLOTS,
    SLOTS,
    STEPS,
    SUFFIXED_SLOTS,
    slot_fits,
    slot_names,
    suffixed_slot_fits,
)
from converter.names.role import Role
from converter.variable import Variable

BATCH_STATISTICS = frozenset(
    [
        "moving_mean",
        "moving_stddev",
        "moving_var",
        "moving_variance",
        "pop_mean",
        "pop_var",
        "pop_variance",
        "renorm_mean",
        "renorm_mean_weight",
        "renorm_stddev",
        "renorm_stddev_weight",
        "running_mean",
        "running_var",
        "running_variance",
    ]
)
_AVERAGE = "ExponentialMovingAverage"
_TRAINING_SCOPE = re.compile(r"train|optim", re.IGNORECASE)
_CONFIGURATION = "OBJECT_CONFIG_JSON"
_GGT = ("grad_buffer", "moment1", "flat_grad")
_LOSS_SCALE = frozenset(
    ["bad_steps", "current_loss_scale", "dynamic_scale", "good_steps", "loss_scale", "step_counter"]
)


class _Leaf(NamedTuple):
    """A name, split at its last slash, and without the number at its end.

    Attributes:
        name: the whole name.
        scope: all before the last slash.
        base: the last component, without `_1`.
        number: the number; 0 where there is none.
    """

    name: str
    scope: str
    base: str
    number: int

    def beside(self, leaf: str) -> str:
        """Return the name of another last component in the same scope."""
        return f"{self.scope}/{leaf}" if self.scope else leaf

    def sibling(self, base: str) -> str:
        """Return the name of another base in the same scope, with the same number."""
        return self.beside(f"{base}_{self.number}" if self.number else base)


def by_leaf(variables: Mapping[str, Variable]) -> tuple[dict[str, Role], list[str]]:
    """Give roles by the last component of the names; also return the names that are left over."""
    found: dict[str, Role] = {}
    rest = []
    numbered: defaultdict[tuple[str, str], list[tuple[int, str]]] = defaultdict(list)
    kinds: dict[str, tuple[str, int, bool, _Rule | None]] = {}
    for name, variable in variables.items():
        scope, _, leaf = name.rpartition("/")
        if leaf not in kinds:
            base, index = unnumbered(leaf)
            kinds[leaf] = base, index, base in SLOTS, _rule_of(leaf, base)
        base, index, is_numbered, rule = kinds[leaf]
        if is_numbered and is_state(variable):
            numbered[scope, base].append((index, name))
        elif rule is None:
            rest.append(name)
        else:
            role = rule(variables, _Leaf(name, scope, base, index))
            if role is None:
                rest.append(name)
            else:
                found[name] = role
    for (stem, optimizer), members in numbered.items():
        slots = numbered_slots(variables, stem, optimizer, sorted(members))
        found |= slots
        rest += [name for _, name in members if name not in slots]
    return found, rest


def numbered_slots(
    variables: Mapping[str, Variable],
    stem: str,
    optimizer: str,
    members: list[tuple[int, str]],
    known: str | None = None,
) -> dict[str, Role]:
    """Return the roles of `stem/Adam`, `stem/Adam_1` ... as far as they are slots.

    Args:
        members: number and name of each, ascending.
        known: the entry of `SLOTS` that the optimizer is one of; by default its own.
    """
    known = known or optimizer
    fits = slot_fits(known)
    sized = [(index, name, variables[name].shape) for index, name in members]
    of = owner(variables, stem, lambda shape: any(fits(s, shape) for _, _, s in sized))
    if of is None:
        return {}
    shape = variables[of].shape
    indices, names, shapes = zip(*[slot for slot in sized if fits(slot[2], shape)], strict=True)
    slots = slot_names(known, indices, shapes, shape)
    return {
        name: Role("slot", of, slot, optimizer) for name, slot in zip(names, slots, strict=True)
    }


_Rule = Callable[[Mapping[str, Variable], _Leaf], Role | None]


def _step(variables: Mapping[str, Variable], leaf: _Leaf) -> Role | None:
    variable = variables[leaf.name]
    if leaf.base == "global_step":
        # GGT keeps its own as a float, and so do some hand-written ones.
        return Role("step") if is_scalar(variable) else None
    if not is_count(variable):
        return None
    opener = leaf.scope.rpartition("/")[2]
    is_step = (
        not leaf.scope
        or _TRAINING_SCOPE.search(opener)
        or unnumbered(opener)[0] in KERAS_OPTIMIZERS
        or is_scalar(variables.get(leaf.beside("learning_rate")))
        or is_scalar(variables.get(leaf.beside("_learning_rate")))
    )
    return Role("step") if is_step else None


def _step_of_its_own(variables: Mapping[str, Variable], leaf: _Leaf) -> Role | None:
    is_step = not leaf.scope and not leaf.number and is_count(variables[leaf.name])
    return Role("step") if is_step else None


def _beta_power(variables: Mapping[str, Variable], leaf: _Leaf) -> Role | None:
    return Role("beta_power") if is_scalar(variables[leaf.name]) else None


def _hyperparameter(variables: Mapping[str, Variable], leaf: _Leaf) -> Role | None:
    """Recognise what stands beside the step of an optimizer."""
    if not is_scalar(variables[leaf.name]):
        return None
    opener = unnumbered(leaf.scope.rpartition("/")[2])[0]
    beside = {base for base in STEPS if is_count(variables.get(leaf.beside(base)))}
    if opener in KERAS_OPTIMIZERS and not beside:
        # Somebody gave the optimizer a step of his own.
        others = HYPERPARAMETERS - {leaf.base}
        beside = {base for base in others if is_scalar(variables.get(leaf.beside(base)))}
    # Keras 2.11 and later have `iteration` and `learning_rate` in no scope, and nothing else.
    if not beside or (not leaf.scope and leaf.base != "learning_rate"):
        return None
    return Role("optimizer", optimizer=KERAS_OPTIMIZERS.get(opener, opener) or None)


def _statistic(variables: Mapping[str, Variable], leaf: _Leaf) -> Role | None:
    return Role("batch_statistic") if is_state(variables[leaf.name]) else None


def _statistic_of_tensorpack(variables: Mapping[str, Variable], leaf: _Leaf) -> Role | None:
    is_statistic = leaf.scope.rpartition("/")[2] in ("mean", "variance")
    return Role("batch_statistic") if is_statistic and is_state(variables[leaf.name]) else None


def _average(variables: Mapping[str, Variable], leaf: _Leaf) -> Role | None:
    shape = variables[leaf.name].shape
    return Role("average", owner(variables, leaf.scope, lambda of: of == shape))


def _debias(variables: Mapping[str, Variable], leaf: _Leaf) -> Role | None:
    """Recognise what zero-debiasing keeps below an average or a moving statistic."""
    stem, _, last = leaf.scope.rpartition("/")
    averaged = unnumbered(last)[0]
    if averaged in BATCH_STATISTICS:
        return Role("batch_statistic")
    if averaged != _AVERAGE:
        return None
    shape = variables[leaf.name].shape
    of = owner(variables, stem, lambda of: of == shape or leaf.base == "local_step")
    return Role("average", of, leaf.base)


def _named_slot(variables: Mapping[str, Variable], leaf: _Leaf) -> Role | None:
    optimizer, slot = NAMED_SLOTS[leaf.base]
    variable = variables[leaf.name]
    of = owner(variables, leaf.scope, lambda of: of == variable.shape)
    return Role("slot", of, slot, optimizer) if of is not None and is_state(variable) else None


def _suffixed_slot(variables: Mapping[str, Variable], leaf: _Leaf) -> Role | None:
    suffix, slot = next(pair for pair in SUFFIXED_SLOTS.items() if leaf.name.endswith(pair[0]))
    variable, of = variables[leaf.name], leaf.name.removesuffix(suffix)
    if of not in variables or not suffixed_slot_fits(slot, variable.shape, variables[of].shape):
        return None
    return Role("slot", of, slot, "Adafactor") if is_state(variable) else None


def _table(variables: Mapping[str, Variable], leaf: _Leaf) -> Role | None:
    """Recognise the keys and values of a lookup table: as many of the one as of the other."""
    table, _, _ = leaf.name.rpartition("-")
    keys, values = variables.get(f"{table}-keys"), variables.get(f"{table}-values")
    if keys is None or values is None or not keys.shape or keys.shape[:1] != values.shape[:1]:
        return None
    return None if is_state(keys) else Role("table")


def _ggt(variables: Mapping[str, Variable], leaf: _Leaf) -> Role | None:
    """Recognise the buffers of GGT, which holds the gradients of all variables end to end."""
    shapes = [getattr(variables.get(leaf.sibling(base)), "shape", ()) for base in _GGT]
    buffer, moment, gradient = shapes
    is_ggt = len(buffer) == 2 and buffer[1:] == moment == gradient
    return Role("optimizer", optimizer="GGT") if is_ggt else None


def _loss_scale(variables: Mapping[str, Variable], leaf: _Leaf) -> Role | None:
    """Recognise the state of a loss scale, of which there are always two variables together."""
    scalars = [base for base in _LOSS_SCALE if is_scalar(variables.get(leaf.sibling(base)))]
    if leaf.base not in scalars or len(scalars) < 2:
        return None
    opener = unnumbered(leaf.scope.rpartition("/")[2])[0]
    return Role("optimizer", optimizer=KERAS_OPTIMIZERS.get(opener))


def _bookkeeping(variables: Mapping[str, Variable], leaf: _Leaf) -> Role | None:
    variable = variables[leaf.name]
    if leaf.name == "save_counter" and is_count(variable):
        return Role("save_counter")
    # Beside the graph, early Keras 2 keeps the configuration of each object.
    is_graph = leaf.name == OBJECT_GRAPH_KEY or leaf.base == _CONFIGURATION
    return Role("object_graph") if is_graph and variable.dtype is STRING else None


_RULES: dict[str, _Rule] = {
    "EMA": _statistic_of_tensorpack,
    _AVERAGE: _average,
    _CONFIGURATION: _bookkeeping,
    OBJECT_GRAPH_KEY: _bookkeeping,
    "beta1_power": _beta_power,
    "beta2_power": _beta_power,
    "biased": _debias,
    "global_step": _step,
    "local_step": _debias,
    "save_counter": _bookkeeping,
    "step": _step_of_its_own,
    "train_step": _step_of_its_own,
    **dict.fromkeys(BATCH_STATISTICS, _statistic),
    **dict.fromkeys(_GGT, _ggt),
    **dict.fromkeys(_LOSS_SCALE, _loss_scale),
    **dict.fromkeys(HYPERPARAMETERS, _hyperparameter),
    **dict.fromkeys(NAMED_SLOTS, _named_slot),
    **dict.fromkeys(STEPS, _step),
}


def _rule_of(leaf: str, base: str) -> _Rule | None:
    if base in _RULES:
        return _RULES[base]
    if leaf.endswith(("-keys", "-values")):
        return _table
    return _suffixed_slot if leaf.endswith(tuple(SUFFIXED_SLOTS)) else None
