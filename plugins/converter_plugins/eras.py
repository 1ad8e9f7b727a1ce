"""Brings the recurrent names of one TensorFlow 1 to those of another."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from converter import PlanError, Strategy, UsageError, by_name, hookimpl, matching, option
from converter.counted import count
from converter.names.cells import Era
from converter.names.follow import followers, following, left_behind, root_of, told_left

if TYPE_CHECKING:
    from converter import Checkpoint, Variable
    from converter.conventions.layers import Cell
    from converter.names.eras import EraNames, Sharded

Kind = Literal[
    "BasicRNNCell",
    "BasicLSTMCell",
    "LSTMCell",
    "LSTMBlockCell",
    "LSTMBlockFusedCell",
    "LayerNormBasicLSTMCell",
    "GRUCell",
    "GRUBlockCellV2",
    "ConvLSTMCell",
    "dynamic",
    "static",
    "own",
]
_BLOCK = re.compile(r"(?P<scope>(?:.*/)?lstm_cell(?:_\d+)?)/(?:kernel|weights)", re.DOTALL)
_STACK = re.compile(
    r"(?P<scope>(?:.*/)?StackRNN)/Layer\d+/BiRNN/[FB]W/.*(?:Matrix|W_0|W)", re.DOTALL
)
_BLOCK_OP = "LSTMBlockCell"


@dataclass(frozen=True)
class Eras(Strategy):
    """Bring the names of recurrent cells to those of another TensorFlow 1.

    The cells and wrappers of TensorFlow were renamed in 1.0 and 1.2, some later, and so were the
    scopes that `dynamic_rnn` and the like open. Everything in a scope goes along with it, slots and
    averages with their variables. Shards of rows (`W_0`, `W_1`) are joined, or made again. What
    names cannot tell is decided as is most common, and said in the plan.

    Example:
        convert ckpt model.ckpt --eras 1.15 --to tf -o out/
    """

    name: ClassVar[str] = "eras"
    eras: Era = option(
        help="the first release that has the wanted names: 1.2 is for 1.2 to 1.4, 1.15 for later"
    )
    kind: Mapping[str, Kind] = option(
        {},
        help="what made the scopes that a glob fits, where names don't tell: the class of a cell, "
        "a dynamic or a static stack of layers, or your own code",
        metavar="GLOB=KIND",
    )
    shards: Mapping[str, int] = option(
        {},
        help="in how many shards of rows 0.12 keeps the kernels that a glob fits",
        metavar="GLOB=COUNT",
    )
    bare_slots: bool = option(
        False, help="take off the scopes of optimizers before the names of slots, as for 0.12"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for glob, shards in self.shards.items():
            if shards < 1:
                raise UsageError(f"{glob!r} cannot be in {shards} shards; give at least 1")

    def apply(self, checkpoint: Checkpoint) -> Iterable[Variable]:
        found = self._names(checkpoint)
        roles = checkpoint.roles()
        renamed = self._with_slots(checkpoint, found)
        joined = {shard: group.shards for group in found.joined for shard in group.shards}
        split = {shard.name: shard for shard in found.split}
        olds: defaultdict[str, list[str]] = defaultdict(list)
        for name in checkpoint:
            olds[renamed.get(name, name)].append(name)
        result: list[Variable] = []
        for new, names in olds.items():
            variable = checkpoint[names[0]]
            root = root_of(roles, names[0])
            if len(names) > 1:
                result.append(_joined(checkpoint, new, names, joined))
            elif root in split:
                result += _split(checkpoint, variable, split[root], renamed)
            else:
                result.append(variable if new == variable.name else variable.rename(new))
        return result

    def notes(self, checkpoint: Checkpoint) -> Iterable[str]:
        from converter.names.eras import era_of

        names = _of_model(checkpoint)
        era = era_of(checkpoint, names)
        found = self._names(checkpoint)
        if era is None and not found.renamed:
            yield "no variable has the name of a recurrent cell of TensorFlow 1"
            yield from _other_keys(checkpoint, names)
            return
        yield from found.notes
        if self.eras == "0.12":
            yield from _basic(_told(checkpoint, names, self.eras), self.kind)
        for shard in found.joined:
            yield (
                f"{shard.name} is joined from {count(len(shard.shards), 'shard')}; --eras 0.12 "
                f"--eras-shards '{shard.name}={len(shard.shards)}' makes them again"
            )
        yield from _left(checkpoint, found.renamed | followers(checkpoint.roles(), found.renamed))
        if era is not None and era.eras and self.eras not in era.eras:
            if not self.bare_slots and "0.12" in era.eras:
                yield from _scoped(checkpoint)
            yield from _changed(checkpoint, found, era.eras[0])

    def _names(self, checkpoint: Checkpoint) -> EraNames:
        from converter.names.eras import names_in

        names = _of_model(checkpoint)
        scopes = _scopes(names)
        classes: dict[str, str] = {}
        for glob, kind in self.kind.items():
            for scope in matching(glob, scopes, "scopes"):
                classes.setdefault(scope, kind)
        for scope, told in _told(checkpoint, names, self.eras).items():
            classes.setdefault(scope, told)
        shards = _partitioned(checkpoint) | by_name(self.shards, names)
        return names_in(self.eras, checkpoint, names, classes=classes, shards=shards)

    def _with_slots(self, checkpoint: Checkpoint, found: EraNames) -> dict[str, str]:
        """Return the new names with those of slots and averages."""
        roles = checkpoint.roles()
        renamed = found.renamed | followers(roles, found.renamed)
        for name, role in roles.items() if self.bare_slots else ():
            if role.kind == "slot" and role.of is not None:
                of = renamed.get(role.of, role.of)
                _, inner, rest = renamed.get(name, name).partition(f"/{of}/")
                if inner:
                    renamed[name] = f"{of}/{rest}"
        return renamed


def _told(checkpoint: Checkpoint, names: Sequence[str], era: Era) -> dict[str, Kind]:
    """Return what a graph tells of scopes whose names don't tell what they are in an era."""
    blocks, stacks = _scopes_of(_BLOCK, names), _scopes_of(_STACK, names)
    own = dict(_unnamed(checkpoint, names))
    blocks, stacks = blocks if era == "0.12" else {}, stacks if era in ("1.2", "1.15") else {}
    if not blocks and not stacks and not own:
        return {}
    # Imported where a graph is read: a command is to start at once.
    from converter.conventions.graph import look
    from converter.graph.ops import ENTERS, INLINED, LSTM_BLOCKS, WHILES

    seen, _ = look(checkpoint)
    if seen is None:
        return {}
    kinds: dict[str, Kind] = {}
    for name, scope in blocks.items():
        if taken := seen.ops_of(name):
            kinds[scope] = "LSTMBlockCell" if _BLOCK_OP in taken else "LSTMCell"
    for name, scope in stacks.items():
        if taken := seen.ops_of(name):
            kinds[scope] = "dynamic" if taken & (ENTERS | WHILES | INLINED) else "static"
    for name, cell in own.items():
        if seen.is_lstm(cell):
            is_fused = bool(seen.ops_of(name) & LSTM_BLOCKS - {_BLOCK_OP})
            is_other = cell.projection is not None or cell.peepholes or name.endswith("/W_0")
            other: Kind = "LSTMCell" if is_other else "BasicLSTMCell"
            kinds[cell.scope] = "LSTMBlockFusedCell" if is_fused else other
    return kinds


def _basic(told: Mapping[str, Kind], kinds: Mapping[str, Kind]) -> Iterable[str]:
    """Say which cells could also be of another class, whose variables 0.12 called otherwise."""
    for scope, kind in told.items():
        if kind == "BasicLSTMCell" and scope not in kinds:
            yield (
                f"{scope} is taken for BasicLSTMCell; if it is LSTMCell, say --eras-kind "
                f"'{scope}=LSTMCell'"
            )


def _other_keys(checkpoint: Checkpoint, names: Sequence[str]) -> Iterable[str]:
    """Say which cell the graph has that is stored under keys of its own."""
    from converter.conventions.cells import of_cell
    from converter.conventions.graph import look

    seen, _ = look(checkpoint)
    called = {name: seen.called(name) for name in names} if seen else {}
    other = [(name, own) for name, own in called.items() if own and of_cell(own)]
    if other:
        name, own = other[0]
        yield f"{name} is {own} in the graph; --names graph before gives it that name"


def _scopes_of(pattern: re.Pattern[str], names: Iterable[str]) -> dict[str, str]:
    return {name: match["scope"] for name in names if (match := pattern.fullmatch(name))}


def _unnamed(checkpoint: Checkpoint, names: Sequence[str]) -> Iterable[tuple[str, Cell]]:
    """Return what may be an LSTM in a scope that the code named, by the name of its kernel."""
    from converter.conventions.cells import unnamed

    return unnamed({name: checkpoint[name].shape for name in names}, {})


def _of_model(checkpoint: Checkpoint) -> list[str]:
    return [name for name, role in checkpoint.roles().items() if role.kind == "model"]


def _scopes(names: Iterable[str]) -> list[str]:
    """Return all scopes that names stand in."""
    from converter.names.evidence import MAX_DEPTH

    found: dict[str, None] = {}
    for name in names:
        parts = name.split("/", MAX_DEPTH)
        for depth in range(1, len(parts)):
            found["/".join(parts[:depth])] = None
    return list(found)


def _partitioned(checkpoint: Checkpoint) -> dict[str, int]:
    """Return in how many slices of rows the checkpoint holds the variables that it has in such."""
    found = {}
    for name, regions in checkpoint.partitions.items():
        rows = {(region[0].start, region[0].stop) for region in regions if region}
        if name in checkpoint and len(rows) == len(regions) > 1:
            found[name] = len(regions)
    return found


def _left(checkpoint: Checkpoint, renamed: Mapping[str, str]) -> Iterable[str]:
    if left := left_behind(checkpoint.roles(), renamed):
        yield told_left(left)


def _scoped(checkpoint: Checkpoint) -> Iterable[str]:
    scoped = [
        name
        for name, role in checkpoint.roles().items()
        if role.kind == "slot" and role.of and name.partition(f"/{role.of}/")[1]
    ]
    if scoped:
        yield (
            f"{count(len(scoped), 'slot')} in the scope of an optimizer, such as {scoped[0]}: 0.12 "
            f"put them there for a name scope, later releases only for a variable scope; "
            f"--eras-bare-slots takes it off"
        )


def _changed(checkpoint: Checkpoint, found: EraNames, era: Era) -> Iterable[str]:
    """Say which names would be others if the new ones were brought back."""
    from converter.names.eras import names_in

    joined = {shard.name for shard in found.joined}
    split = {shard.name for shard in found.split}
    before = {
        found.renamed.get(name, name): name for name in _of_model(checkpoint) if name not in split
    }
    variables = {new: checkpoint[old].rename(new) for new, old in before.items()}
    again = names_in(era, variables, list(variables), classes={}, shards={}).renamed
    wrong = [
        (new, back)
        for new, old in before.items()
        if new not in joined and (back := again.get(new, new)) != old
    ]
    if wrong:
        new, back = wrong[0]
        yield (
            f"{len(wrong)} names tell less than the old ones: --eras {era} would make {back} of "
            f"{new}, and not {before[new]}"
        )


def _joined(
    checkpoint: Checkpoint,
    new: str,
    olds: Sequence[str],
    shards: Mapping[str, tuple[str, ...]],
) -> Variable:
    """Return what all the `olds` become that would have one name: shards are joined."""
    from converter.blocks import concatenated

    roots = {root_of(checkpoint.roles(), old): old for old in olds}
    order = next((shards[root] for root in roots if root in shards), ())
    if sorted(order) != sorted(roots) or len(roots) != len(olds):
        raise PlanError(
            f"{new}: both {olds[0]} and {olds[1]} would have this name; rename or drop one before"
        )
    for root, old in roots.items():
        if checkpoint[old].shape != checkpoint[root].shape:
            raise PlanError(
                f"{old}: it is {list(checkpoint[old].shape)} where its variable is "
                f"{list(checkpoint[root].shape)}, a shard that is joined; drop it before"
            )
    return concatenated(new, [checkpoint[roots[root]] for root in order], 0)


def _split(
    checkpoint: Checkpoint, variable: Variable, sharded: Sharded, renamed: Mapping[str, str]
) -> list[Variable]:
    """Return the shards of a variable, or of a slot of it."""
    from converter.blocks import block, even_sizes

    whole = checkpoint[sharded.name]
    if variable.shape != whole.shape:
        raise PlanError(
            f"{variable.name}: it is {list(variable.shape)} where its variable is "
            f"{list(whole.shape)}, which is made into shards; drop it before"
        )
    if len(sharded.shards) > whole.shape[0]:
        raise PlanError(
            f"{whole.name}: its {whole.shape[0]} rows cannot be in {len(sharded.shards)} shards; "
            f"give fewer"
        )
    parts = []
    start = 0
    for shard, size in zip(
        sharded.shards, even_sizes(whole.shape[0], len(sharded.shards)), strict=True
    ):
        name = renamed.get(variable.name, variable.name)
        name = following(name, renamed[sharded.name], shard) or name
        parts.append(block(name, variable, 0, start, start + size))
        start += size
    return parts


@hookimpl
def converter_strategies() -> Iterable[type[Strategy]]:
    yield Eras
