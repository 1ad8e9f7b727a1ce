"""Applies a convention to a checkpoint: layers, their averages and slots, and what is left."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol

from converter.conventions import plain
from converter.conventions.cells import cells, family_of, of_cell, unnamed
from converter.conventions.converted import Converted, Refused
from converter.conventions.graph import OfCell, Seen, look
from converter.conventions.layers import Cell, Unmapped
from converter.conventions.views import Taken
from converter.counted import agree
from converter.errors import PlanError
from converter.patterns import by_name

if TYPE_CHECKING:
    from converter.checkpoint import Checkpoint
    from converter.conventions.layers import Layer
    from converter.names import Role
    from converter.variable import Variable

_MODEL = ("model", "batch_statistic")
_FOLLOWERS = ("slot", "average")
_FEW = 3


class _Follower(NamedTuple):
    """A slot or an average of a variable.

    Attributes:
        name: its name.
        role: what it is.
    """

    name: str
    role: Role


class _Family(NamedTuple):
    """What slots of one kind are named by: before and after the name of their variable."""

    before: str
    after: str


class Layouts(Protocol):
    """What a framework has for layers: a `Convention` without what it does with checkpoints."""

    @property
    def name(self) -> str:
        """What its flags begin with."""

    def cells(self, cells: Sequence[Cell]) -> Iterable[Converted | Refused]:
        """Return what becomes of recurrent cells."""

    def plain(self, layer: Layer) -> Converted | Refused:
        """Return what becomes of a layer without a state."""

    def spelt(self, name: str) -> str:
        """Return how it writes a name."""


class Said(NamedTuple):
    """What the user says of the variables: the options of a `Convention`.

    Attributes:
        rest: what becomes of variables that are of no layer.
        layer: which layer it is whose kernel or table a glob fits.
        forget_bias: what cells add to their forget gate, by a glob for their kernel.
    """

    rest: Literal["refuse", "keep", "drop"]
    layer: Mapping[str, str]
    forget_bias: Mapping[str, float]


class Mapped:
    """The layouts of a framework, applied to a checkpoint.

    Args:
        layouts: what is to come out.
        said: what the user says.
        checkpoint: the variables.

    Raises:
        PlanError: a variable is of no layer that the convention has, and `rest` refuses that.
        UsageError: an option fits no variable.
    """

    def __init__(self, layouts: Layouts, said: Said, checkpoint: Checkpoint) -> None:
        self._layouts = layouts
        self._said = said
        self._checkpoint = checkpoint
        self._roles = checkpoint.roles()
        self._notes: list[str] = []
        self._shared: dict[str, list[str]] = {}
        self._left: dict[str, str] = {}
        self._made: dict[str, list[Variable]] = {}
        self._taken: set[str] = set()
        self._places = {name: place for place, name in enumerate(checkpoint)}
        self._lost: list[str] = []
        shapes = {
            name: variable.shape
            for name, variable in checkpoint.items()
            if self._roles[name].kind in _MODEL and variable.dtype.is_number
        }
        declared = dict(by_name(said.layer, shapes)) if said.layer else {}
        forget = by_name(said.forget_bias, shapes) if said.forget_bias else {}
        seen, unused = look(checkpoint)
        self._notes += [unused] if unused else []
        self._followers = self._all_followers()
        told = plain.Told() if seen is None else seen.told(shapes)
        found: list[Cell] = []
        if seen is not None:
            maybe = unnamed(shapes, declared, told.biases)
            declared |= {name: "lstm" for name, cell in maybe if seen.is_lstm(cell)}
        for one in cells(shapes, declared, told.biases):
            if isinstance(one, Unmapped):
                self._left |= dict.fromkeys(one.members, f"{_scope(one)}: {one.reason}")
            else:
                found.append(self._told(one, seen, forget))
        self._cells(found)
        if seen is not None:
            self._left |= dict(self._misnamed(seen, shapes, declared))
        rest = {
            name: shape
            for name, shape in shapes.items()
            if name not in self._taken and name not in self._left and declared.get(name) != "keep"
        }
        for layer in plain.layers(rest, told, declared):
            self._add(layouts.plain(layer))
        self._rest(declared)

    def variables(self) -> list[Variable]:
        """Return the variables of the result, in the order of what they are made of."""
        found: list[Variable] = []
        for name, variable in self._checkpoint.items():
            found += self._made.get(name, ())
            if name not in self._taken:
                found.append(self._called(variable, name))
        return found

    def notes(self) -> list[str]:
        """Return what a user should know."""
        found = [f"{_few(layers)}: {text}" for text, layers in self._shared.items()]
        if self._lost:
            lost = agree(
                len(self._lost),
                "1 slot or average is left out",
                f"{len(self._lost):,} slots and averages are left out",
            )
            found.append(f"{lost}, as the new layout has no such state: {_few(self._lost)}")
        return [*found, *self._notes]

    def _told(self, cell: Cell, seen: Seen | None, forget: Mapping[str, float]) -> Cell:
        """Add to a cell what the graph and the user say."""
        found = OfCell() if seen is None else seen.cell(cell)
        bias = next((forget[name] for name in cell.members if name in forget), None)
        notes = list(cell.notes)
        if cell.kind == "lstm" and cell.source == "tf1" and bias is None:
            bias = found.forget_bias
            if bias is None and cell.forget_bias is not None:
                bias = cell.forget_bias
                notes.append(
                    f"no graph says which forget bias its code adds; {bias:g} is "
                    f"taken, the default (--{self._layouts.name}-forget-bias says another)"
                )
        refusal = cell.refusal
        if found.clip:
            refusal = f"it cuts its state or output at {found.clip:g}, which no other layer does"
        refusal = found.odd or refusal
        return replace(
            cell,
            forget_bias=cell.forget_bias if bias is None else bias,
            activations=found.activations,
            is_skipped=found.is_skipped,
            refusal=refusal,
            notes=tuple(notes),
        )

    def _misnamed(
        self, seen: Seen, shapes: Iterable[str], declared: Container[str]
    ) -> Iterator[tuple[str, str]]:
        """Yield what is of a cell by its name in the graph, and of a plain layer by its own."""
        for name in shapes:
            called = seen.called(name)
            if name in self._taken or name in declared or called is None:
                continue
            if of_cell(called) and not of_cell(name):
                yield (
                    name,
                    f"{name}: its graph calls it {called}, of a recurrent cell, which its own name "
                    f"does not tell; --names graph before renames it",
                )

    def _cells(self, found: list[Cell]) -> None:
        for result in self._layouts.cells(found):
            self._add(result)

    def _add(self, result: Converted | Refused) -> None:
        if isinstance(result, Refused):
            self._left |= dict.fromkeys(result.members, result.reason)
            return
        for layer, text in result.notes:
            self._shared.setdefault(text, []).append(layer)
        self._taken.update(result.members)
        for name, view in result.outputs.items():
            made = view.make(Taken(self._checkpoint.get, is_model=True))
            if made is None:
                both = " and ".join(view.sources)
                raise PlanError(f"{name}: {both} have different dtypes; cast one of them before")
            self._put(made, name, view.sources)
        used: set[str] = set()
        for family, followers in self._families(result.members).items():
            taken = _taken({of: self._checkpoint[f.name] for of, f in followers.items()}, followers)
            for name, view in result.outputs.items():
                made = view.make(taken)
                if made is not None:
                    held = [followers[of].name for of in view.sources]
                    used.update(held)
                    self._put(made, f"{family.before}{name}{family.after}", held)
        every = [f.name for of in result.members for f in self._followers.get(of, ())]
        self._taken.update(every)
        self._lost += [name for name in every if name not in used]

    def _put(self, variable: Variable, name: str, sources: Iterable[str]) -> None:
        """Write a variable under a name, in the place of the first that it is made of."""
        place = min(sources, key=self._places.__getitem__)
        self._made.setdefault(place, []).append(self._called(variable, name))

    def _called(self, variable: Variable, name: str) -> Variable:
        name = self._layouts.spelt(name)
        return variable if variable.name == name else variable.rename(name)

    def _all_followers(self) -> dict[str, list[_Follower]]:
        """Return the slots and averages of each variable."""
        found: dict[str, list[_Follower]] = {}
        for name, role in self._roles.items():
            if role.kind in _FOLLOWERS and role.of is not None:
                found.setdefault(role.of, []).append(_Follower(name, role))
        return found

    def _families(self, members: tuple[str, ...]) -> dict[_Family, dict[str, _Follower]]:
        """Return the slots and averages of some variables by how they are named."""
        found: dict[_Family, dict[str, _Follower]] = {}
        for of in members:
            for follower in self._followers.get(of, ()):
                before, middle, after = f"/{follower.name}/".partition(f"/{of}/")
                if follower.role.kind == "average" and follower.role.slot is not None:
                    continue
                if middle:
                    start = f"{before}/".removeprefix("/")
                    family = _Family(start, f"/{after}".removesuffix("/"))
                    found.setdefault(family, {})[of] = follower
        return found

    def _rest(self, declared: Mapping[str, str]) -> None:
        """Decide about what is of no layer."""
        left = [
            name
            for name in self._checkpoint
            if name not in self._taken
            and self._roles[name].kind in _MODEL
            and declared.get(name) != "keep"
        ]
        copies = [name for name in left if name.rpartition("/")[2] == "opaque_kernel"]
        if copies and any("cudnn" in name and name not in left for name in self._taken):
            self._leave_out(copies, "holds again what the kernels and biases beside it hold")
            left = [name for name in left if name not in copies]
        if not left:
            return
        rest = self._said.rest
        if rest == "refuse":
            count = len(left) - 1
            more = f" (and {count} more variable{'s' * (count > 1)})" if count else ""
            option = f"--{self._layouts.name}-rest"
            # The bias of what is not known is not what has to be said.
            ranks = {name: len(self._checkpoint[name].shape) for name in left}
            first = max(left, key=lambda name: (name in self._left, ranks[name]))
            raise PlanError(f"{self._reason(first)}{more}; {option} keep or drop says what to do")
        if rest == "drop":
            self._leave_out(left, "of no layer that it has")
        for name in left:
            if name in self._left:
                reason = f"{self._left[name]}; {'kept as it is' if rest == 'keep' else 'left out'}"
                if reason not in self._notes:
                    self._notes.append(reason)
        if rest == "keep":
            self._notes.append(f"kept as it is, of no layer that it has: {_few(left)}")

    def _leave_out(self, names: list[str], why: str) -> None:
        self._taken.update(names)
        for name in names:
            self._taken.update(follower.name for follower in self._followers.get(name, ()))
        self._notes.append(f"left out, {why}: {_few(names)}")

    def _reason(self, name: str) -> str:
        """Say why a variable is of no layer, and which is nearest."""
        if name in self._left:
            return self._left[name]
        shape = self._checkpoint[name].shape
        nearest = {
            2: "dense: a matrix called kernel, weights or w",
            3: "conv: a kernel of 3 to 5 axes called kernel or weights",
            4: "conv: a kernel of 3 to 5 axes called kernel or weights",
            5: "conv: a kernel of 3 to 5 axes called kernel or weights",
        }.get(len(shape), "the bias of a kernel beside it, which has as many outputs")
        kind = {2: "dense"}.get(len(shape), "conv" if 3 <= len(shape) <= 5 else "keep")
        return (
            f"{name} {list(shape)}: nothing tells which layer it is of; the nearest is {nearest}; "
            f"--{self._layouts.name}-layer '{name}={kind}' says that it is that"
            if kind != "keep"
            else f"{name} {list(shape)}: nothing tells which layer it is of; the nearest is "
            f"{nearest}; --{self._layouts.name}-layer '{name}=keep' keeps it"
        )


def _taken(variables: Mapping[str, Variable], followers: Mapping[str, _Follower]) -> Taken:
    roles = [role for _, role in followers.values()]
    return Taken(
        variables.get,
        is_slot=any(role.kind == "slot" for role in roles),
        # FTRL keeps the value itself in it, times what it has summed.
        follows_values=any(role.slot == "linear" for role in roles),
    )


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:_FEW]) + (f" and {len(names) - _FEW} more" if names[_FEW:] else "")


def _scope(one: Unmapped) -> str:
    """Return what variables have in common, for messages."""
    components = one.members[0].split("/")
    places = [i for i, c in enumerate(components[:-1]) if family_of(c)]
    return "/".join(components[: places[-1] + 1]) if places else one.members[0]
