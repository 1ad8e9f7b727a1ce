"""Renames scopes, takes a part of a model, and fills up the rest from another checkpoint."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from converter import PlanError, Strategy, UsageError, hookimpl, option
from converter.counted import agree, count
from converter.names.follow import followers, left_behind, told_left
from converter.patterns import nearest

if TYPE_CHECKING:
    from converter import Checkpoint, Variable
    from converter.names import Role


@dataclass(frozen=True)
class Scope(Strategy):
    """Rename scopes, take only a part, and fill the rest from a template.

    `old/=new/` renames a scope, `old/=` takes it off, `=new/` puts all of the model into one. Where
    several fit, the longest is taken. Slots and averages follow their variables, also where the
    scope of an optimizer stands before: `Adam/old/w/m`, `train/old/w/Adam`. A scope that stays can
    be named as well, to take it along: `old/=old/`.

    Example:
        convert ckpt lm.ckpt --scope lm/rnn/=encoder/ --scope-only --scope-fill new.ckpt -o out/
    """

    name: ClassVar[str] = "scope"
    scope: Mapping[str, str] = option(
        help="rename a scope; an empty right side takes it off, an empty left one puts it on",
        metavar="OLD/=NEW/",
        empty=True,
    )
    only: bool = option(False, help="leave out what is in none of these scopes")
    fill: Path | None = option(
        None, help="a checkpoint from which variables come that the result would lack"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.scope:
            raise UsageError("at least one scope is needed")
        given: set[str] = set()
        for old, new in self.scope.items():
            for side in (old, new):
                if "//" in side or side.startswith("/"):
                    raise UsageError(
                        f"{side!r} is no scope; write it as in the names of variables: 'a/b/'"
                    )
            if _plain(old) in given:
                raise UsageError(f"{old!r} is given twice")
            given.add(_plain(old))

    def apply(self, checkpoint: Checkpoint) -> Iterable[Variable]:
        renamed = self._renamed(checkpoint)
        template = self._template()
        taken: dict[str, str] = {}
        result = []
        for name, variable in checkpoint.items():
            if self.only and name not in renamed:
                continue
            new = renamed.get(name, name)
            if (other := taken.setdefault(new, name)) != name:
                raise PlanError(
                    f"{new}: both {other} and {name} would have this name; rename or drop one "
                    f"before"
                )
            if template is not None and new in template:
                _check_fits(variable, template[new], template)
            result.append(variable if new == name else variable.rename(new))
        if template is not None:
            result += _filling(template, taken)
        return result

    def notes(self, checkpoint: Checkpoint) -> Iterable[str]:
        renamed = self._renamed(checkpoint)
        left = left_behind(checkpoint.roles(), renamed)
        if left and not self.only:
            yield told_left(left)
        template = self._template()
        if template is not None:
            yield from self._filled(checkpoint, renamed, template)

    def _template(self) -> Checkpoint | None:
        from converter import open_checkpoint

        return None if self.fill is None else open_checkpoint(self.fill)

    def _filled(
        self, checkpoint: Checkpoint, renamed: Mapping[str, str], template: Checkpoint
    ) -> Iterator[str]:
        names = [renamed.get(n, n) for n in checkpoint if not self.only or n in renamed]
        held = set(names)
        missing = [name for name in template if name not in held]
        come = agree(len(missing), "comes", "come")
        yield f"{count(len(missing), 'variable')} {come} from {template.path}"
        more = [name for name in names if name not in template]
        if more:
            are = agree(len(more), "is", "are")
            yield f"{count(len(more), 'variable')} {are} none of {template.path}, such as {more[0]}"

    def _renamed(self, checkpoint: Checkpoint) -> dict[str, str]:
        """Return the name of each variable that is in one of the scopes, and of its slots."""
        scopes = {_plain(old): _plain(new) for old, new in self.scope.items()}
        roles = checkpoint.roles()
        found = {}
        fitting = set()
        for name, role in roles.items():
            old = _scope_of(name, role, scopes)
            if old is not None:
                fitting.add(old)
                found[name] = _moved(name, old, scopes[old])
        for old in scopes:
            if old and old not in fitting:
                raise UsageError(
                    f"'{old}/' is the scope of none of the {len(checkpoint)} variables"
                    f"{nearest(f'{old}/*', checkpoint)}"
                )
        slots = {name for name, role in roles.items() if role.of in found}
        own = {name: new for name, new in found.items() if name not in slots}
        follow = followers(roles, own)
        for name in slots & follow.keys():
            follow[name] = _followed(name, roles[name], follow[name], scopes)
        return {**found, **follow}


def _plain(scope: str) -> str:
    return scope.removesuffix("/")


# What no scope of a model holds, unless it is named in full.
_OUTSIDE = frozenset(["step", "beta_power", "optimizer", "save_counter", "object_graph"])


def _scope_of(name: str, role: Role, scopes: Mapping[str, str]) -> str | None:
    """Return the longest of the scopes that a variable is in."""
    fits = [scope for scope in scopes if scope and name.startswith(f"{scope}/")]
    if fits:
        return max(fits, key=len)
    is_slot = role.of is not None or role.kind == "slot"
    return "" if "" in scopes and role.kind not in _OUTSIDE and not is_slot else None


def _moved(name: str, old: str, new: str) -> str:
    rest = name[len(old) + 1 :] if old else name
    return f"{new}/{rest}" if new else rest


def _followed(name: str, role: Role, new: str, scopes: Mapping[str, str]) -> str:
    """Return the name of a slot that follows its variable, and may stand in a scope itself."""
    front, found, _ = f"/{name}/".partition(f"/{role.of}/")
    if not found or not front:
        return new
    front = front[1:]
    fits = [scope for scope in scopes if scope and f"{front}/".startswith(f"{scope}/")]
    if not fits:
        return new
    old = max(fits, key=len)
    moved = _moved(f"{front}/", old, scopes[old])
    return moved + new[len(front) + 1 :]


def _check_fits(variable: Variable, wanted: Variable, template: Checkpoint) -> None:
    if (variable.shape, variable.dtype) != (wanted.shape, wanted.dtype):
        raise PlanError(
            f"{variable.name}: it is {variable.dtype} {list(variable.shape)}, and {wanted.name} of "
            f"{template.path} is {wanted.dtype} {list(wanted.shape)}; resize, cast or drop it "
            f"before"
        )


def _filling(template: Checkpoint, taken: Mapping[str, str]) -> list[Variable]:
    missing = [name for name in template if name not in taken]
    template.check(missing)
    # They are made from none of the source, which may hold others of these names.
    return [replace(template[name], sources=()) for name in missing]


@hookimpl
def converter_strategies() -> Iterable[type[Strategy]]:
    yield Scope
