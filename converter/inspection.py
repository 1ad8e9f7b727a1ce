"""What is in a checkpoint, by scope and by role: sums for which no value is read."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

from converter.checkpoint import Checkpoint
from converter.names import Kind, Role
from converter.names.evidence import MAX_DEPTH
from converter.variable import Variable

_MODEL_KINDS = ("model", "batch_statistic")


@dataclass(slots=True)
class Total:
    """How many variables, elements and bytes."""

    variables: int = 0
    elements: int = 0
    nbytes: int = 0

    def add(self, variable: Variable) -> None:
        """Count one more."""
        self.variables += 1
        self.elements += variable.size
        self.nbytes += variable.nbytes


@dataclass(frozen=True, slots=True)
class Scope:
    """The variables of one scope, or of several that differ in their numbers only.

    Attributes:
        name: `bert/encoder/layer_{0..11}`; empty for variables outside of all scopes.
        model: variables of the model, batch statistics included.
        others: how many there are of each other kind. A slot or an average counts in the scope
            of the variable that it belongs to.
        dtypes: those of the model's variables, or of the others where there are none.
    """

    name: str
    model: Total
    others: Counter[Kind]
    dtypes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Summary:
    """What a checkpoint holds.

    Attributes:
        total: all variables.
        roles: the same by kind, the model first.
        dtypes: the number of variables of each dtype.
        scopes: in the order in which they occur.
        mixed_floats: where float dtypes are mixed, the variables of each; else empty.
    """

    total: Total
    roles: dict[Kind, Total]
    dtypes: Counter[str]
    scopes: tuple[Scope, ...]
    mixed_floats: dict[str, list[str]]


def summarise(checkpoint: Checkpoint, *, max_scopes: int = 40) -> Summary:
    """Add up the variables of a checkpoint; nothing is read.

    Args:
        checkpoint: what to look at.
        max_scopes: scopes are merged until there are no more than this, if that can be: those
            that differ in numbers first, then the deepest.
    """
    total, by_role, dtypes = Total(), defaultdict[Kind, Total](Total), Counter[str]()
    floats = defaultdict[str, list[str]](list)
    roles = checkpoint.roles()
    for name, variable in checkpoint.items():
        total.add(variable)
        by_role[roles[name].kind].add(variable)
        dtypes[variable.dtype.name] += 1
        if variable.dtype.is_float:
            floats[variable.dtype.name].append(name)
    return Summary(
        total,
        {kind: by_role[kind] for kind in get_args(Kind) if kind in by_role},
        dtypes,
        tuple(_scopes(checkpoint, roles, max_scopes)),
        dict(floats) if len(floats) > 1 else {},
    )


def _scopes(checkpoint: Checkpoint, roles: Mapping[str, Role], max_scopes: int) -> Iterator[Scope]:
    separator = "/" if any("/" in name for name in checkpoint) else "."
    homes = {name: (roles[name].of or name).rpartition(separator)[0] for name in checkpoint}
    labels = _labels(dict.fromkeys(homes.values()), separator, max_scopes)
    groups = defaultdict[str, list[Variable]](list)
    for name, home in homes.items():
        groups[labels[home]].append(checkpoint[name])
    for label, variables in groups.items():
        model, others = Total(), Counter[Kind]()
        for variable in variables:
            kind = roles[variable.name].kind
            if kind in _MODEL_KINDS:
                model.add(variable)
            else:
                others[kind] += 1
        kept = [v for v in variables if roles[v.name].kind in _MODEL_KINDS] or variables
        yield Scope(label, model, others, tuple(dict.fromkeys(v.dtype.name for v in kept)))


def _labels(scopes: Iterable[str], separator: str, limit: int) -> dict[str, str]:
    """Return the name of the group of each scope, for at most `limit` groups if possible."""
    scopes = list(scopes)
    labels = {scope: scope for scope in scopes}
    deepest = max((scope.count(separator) + 1 for scope in scopes), default=0)
    for depth in (deepest, *range(min(deepest - 1, MAX_DEPTH), 0, -1)):
        cut = {scope: separator.join(scope.split(separator, depth)[:depth]) for scope in scopes}
        merged = _merge_numbers(dict.fromkeys(cut.values()))
        for labels in (cut, {scope: merged[cut[scope]] for scope in scopes}):
            if len(set(labels.values())) <= limit:
                return labels
    return labels


def _merge_numbers(scopes: Iterable[str]) -> dict[str, str]:
    """Give scopes that differ in their numbers only one name: `layer_{0..11}`."""
    groups = defaultdict[tuple[str, ...], list[list[str]]](list)
    scopes = {scope: re.split(r"([0-9]+)", scope) for scope in scopes}
    for parts in scopes.values():
        groups[tuple(parts[::2])].append(parts)
    names = {
        literals: "".join(_spread(column) for column in zip(*members, strict=True))
        for literals, members in groups.items()
    }
    return {scope: names[tuple(parts[::2])] for scope, parts in scopes.items()}


def _spread(column: Sequence[str]) -> str:
    texts = sorted(set(column), key=lambda text: (len(text), text))
    if len(texts) == 1:
        return texts[0]
    if len(texts) == 2:
        return "{" + ",".join(texts) + "}"
    # What stands in a name may have more digits than Python makes a number of.
    if len(texts[-1]) < 10 and int(texts[-1]) - int(texts[0]) == len(texts) - 1:
        return "{" + f"{texts[0]}..{texts[-1]}" + "}"
    return "*"
