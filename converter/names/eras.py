"""Recurrent names of one era of TensorFlow 1 as those of another.

What is renamed is the tree of scopes: everything within a scope goes along with it.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from converter.counted import count
from converter.errors import PlanError, printable
from converter.names.cells import (
    DIRECTIONS,
    ERAS,
    LINEAR,
    NESTED,
    NEWEST,
    NUMBER,
    OLDEST,
    Era,
)
from converter.names.evidence import MAX_DEPTH
from converter.names.recurrent import Found, find_cells
from converter.variable import Variable

OWN = "own"
"""The class of a scope that the model's code named, and TensorFlow did not."""
STATIC = "static"
"""The class of a stack of static bidirectional layers, which 1.2 gave one scope less."""

_OUTPUT = "OutputProjectionWrapper"
_LAYERS = ("MultiRNNCell", "multi_rnn_cell")


class Sharded(NamedTuple):
    """Variables of 0.12 that are the rows of one variable from 1.0 on.

    Attributes:
        name: of that variable.
        shards: their names, in order.
    """

    name: str
    shards: tuple[str, ...]


@dataclass(frozen=True)
class EraNames:
    """The names that another era has for the variables of a model.

    Attributes:
        renamed: the new name of each variable that gets one.
        joined: the variables of shards; their names are in `renamed` too.
        notes: what could not be known.
    """

    renamed: dict[str, str]
    joined: tuple[Sharded, ...]
    split: tuple[Sharded, ...]
    notes: tuple[str, ...]


class EraCount(NamedTuple):
    """Which era recurrent names are of.

    Attributes:
        eras: all that spelt them so; empty where they are of several.
        cells: how many cells and wrappers there are.
        spelt: how many of them are spelt as in each era.
    """

    eras: tuple[Era, ...]
    cells: int
    spelt: dict[Era, int]


def era_of(variables: Mapping[str, Variable], names: list[str]) -> EraCount | None:
    """Return which era the recurrent names of a model are of; None where there are none."""
    found = [f for f in find_cells(variables, names).values() if f.eras]
    if not found:
        return None
    common = frozenset.intersection(*(cell.eras for cell in found))
    spelt = Counter(era for cell in found for era in cell.eras)
    return EraCount(
        tuple(ERAS[era] for era in sorted(common)),
        len(found),
        {ERAS[era]: spelt[era] for era in sorted(spelt)},
    )


def names_in(
    era: Era,
    variables: Mapping[str, Variable],
    names: list[str],
    *,
    classes: Mapping[str, str],
    shards: Mapping[str, int],
) -> EraNames:
    """Return what the variables of a model are called in an era.

    Args:
        era: one of `ERAS`.
        variables: all of them.
        names: those of the model.
        classes: what made a scope, where names don't tell: the class of a cell, `OWN` or `STATIC`.
        shards: of how many slices of rows the partitioned variables are.

    Raises:
        PlanError: a shard is missing.
    """
    return _Renaming(ERAS.index(era), variables, names, classes, shards).result()


@dataclass
class _Renaming:
    target: int
    variables: Mapping[str, Variable]
    names: list[str]
    classes: Mapping[str, str]
    shards: Mapping[str, int]
    scopes: dict[str, str] = field(default_factory=dict)
    parents: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    doubts: dict[tuple[str, str], list[str]] = field(default_factory=dict)

    def result(self) -> EraNames:
        self.found = find_cells(self.variables, self.names, self.classes)
        self.directories = self._directories()
        for path, cell in self.found.items():
            self._rename_cell(path, cell)
            self._rename_around(path, OLDEST in cell.eras)
        self._move_wrapped()
        leaves, joined, split = self._leaves()
        places: dict[str, str] = {}
        renamed = {}
        for name in self.names:
            if name.count("/") > MAX_DEPTH:
                continue
            scope, _, last = name.rpartition("/")
            path, leaf = leaves.get(name, (scope, last))
            new = _join(self._place(path, places), leaf)
            if new != name:
                renamed[name] = new
        joined = tuple(Sharded(renamed[s.shards[0]], s.shards) for s in joined)
        split = tuple(
            Sharded(s.name, tuple(_join(self._place(s.shards[0], places), x) for x in s.shards[1:]))
            for s in split
        )
        self._note_unknown()
        return EraNames(renamed, joined, split, tuple(self.notes))

    def _directories(self) -> set[str]:
        """Return all scopes that a cell stands in."""
        scopes = set()
        for path in self.found:
            while path:
                path = path.rpartition("/")[0]
                scopes.add(path)
        return scopes

    def _rename_cell(self, path: str, cell: Found) -> None:
        for other in cell.others:
            names = {found.scopes[self.target] for found in (cell.cell, other)}
            if self.target not in cell.eras and len(names - {None}) > 1:
                self.doubts.setdefault((cell.cell.name, other.name), []).append(path)
        new = cell.scope(self.target)
        if new is None:
            self.notes.append(
                f"{path} stays: TensorFlow {ERAS[self.target]} had no {cell.cell.name}"
            )
        elif new != path.rpartition("/")[2]:
            self.scopes[path] = new

    def _rename_around(self, path: str, is_old: bool) -> None:
        """Rename the scopes around a cell that TensorFlow named."""
        if is_old == (self.target == OLDEST) or self.found[path].scope(self.target) is None:
            return
        if not self.found[path].cell.scopes:
            return
        path = path.rpartition("/")[0]
        while path:
            parent, _, last = path.rpartition("/")
            outer = parent.rpartition("/")[2]
            if outer in _LAYERS and (number := _numbered(last, "cell")):
                self._rename(parent, {"MultiRNNCell": "multi_rnn_cell"}, is_old)
                self._rename(path, {f"Cell{number}": f"cell_{number}"}, is_old)
                path = parent.rpartition("/")[0]
            elif path in self.found and self.found[path].cell.scopes:
                path = parent
            else:
                break
        if self.classes.get(path) == OWN or path in self.found:
            return
        self._rename(path, {"RNN": "rnn"}, is_old)
        self._rename_directions(path, is_old)

    def _rename(self, path: str, names: Mapping[str, str], is_old: bool) -> None:
        """Rename a scope by the names of 0.12 and the newer ones for them."""
        last = path.rpartition("/")[2]
        table = names if is_old else {new: old for old, new in names.items()}
        if last in table:
            self.scopes[path] = table[last]

    def _rename_directions(self, path: str, is_old: bool) -> None:
        parent, _, last = path.rpartition("/")
        outer = parent.rpartition("/")[2]
        if is_old and last in ("BiRNN_FW", "BiRNN_BW"):
            self.scopes[path] = f"bidirectional_rnn/{DIRECTIONS[last[-2:]]}"
            return
        table = DIRECTIONS if is_old else {new: old for old, new in DIRECTIONS.items()}
        other = next((name for name in table if name != last), "")
        has_other = _join(parent, other) in self.directories
        if last not in table or (outer not in ("BiRNN", "bidirectional_rnn") and not has_other):
            return
        self._rename(path, DIRECTIONS, is_old)
        self._rename(parent, {"BiRNN": "bidirectional_rnn"}, is_old)
        self._rename_stack(parent, is_old)

    def _rename_stack(self, path: str, is_old: bool) -> None:
        """Rename the layers of a stack of bidirectional layers, of which `path` is one."""
        layer, _, last = path.rpartition("/")
        has_scope = last in ("BiRNN", "bidirectional_rnn")
        layer = layer if has_scope else path
        stack, _, numbered = layer.rpartition("/")
        number = _numbered(numbered, "layer" if is_old else "cell")
        if not number or (not has_scope and not stack.endswith("stack_bidirectional_rnn")):
            return
        self._rename(layer, {f"Layer{number}": f"cell_{number}"}, is_old)
        self._rename(stack, {"StackRNN": "stack_bidirectional_rnn"}, is_old)
        if not has_scope:
            # What the static functions have one scope less of from 1.2 on.
            self.scopes[layer] = f"Layer{number}/BiRNN"
        elif is_old and self.classes.get(stack) == STATIC:
            self.scopes[path] = ""
        elif is_old and self.target >= NESTED and number == "0" and stack not in self.classes:
            text = (
                f"{stack} is taken for stack_bidirectional_dynamic_rnn; if its function is the "
                f"static one, say --eras-kind '{stack}=static'"
            )
            if text not in self.notes:
                self.notes.append(text)

    def _move_wrapped(self) -> None:
        """Move cells into the scopes of their wrappers, or out of them."""
        inside: defaultdict[str, list[str]] = defaultdict(list)
        wrappers: defaultdict[str, list[str]] = defaultdict(list)
        for path, cell in self.found.items():
            parent = path.rpartition("/")[0]
            (wrappers if cell.cell.place == "around" else inside)[parent].append(path)
            layers, _, layer = parent.rpartition("/")
            above, _, last = layers.rpartition("/")
            if last in _LAYERS and _numbered(layer, "cell") and layers not in inside[above]:
                inside[above].append(layers)
        for parent, members in wrappers.items():
            if self.target < NESTED:
                self._move_out(members, inside, wrappers)
            else:
                self._move_in(parent, members, inside, wrappers)

    def _move_out(
        self,
        members: list[str],
        inside: Mapping[str, list[str]],
        wrappers: Mapping[str, list[str]],
    ) -> None:
        for wrapper in members:
            for inner in (*inside.get(wrapper, ()), *wrappers.get(wrapper, ())):
                self.parents[inner] = self._unwrapped(wrapper.rpartition("/")[0])

    def _unwrapped(self, path: str) -> str:
        while path in self.found and self.found[path].cell.place == "around":
            path = path.rpartition("/")[0]
        return path

    def _move_in(
        self,
        parent: str,
        members: list[str],
        inside: Mapping[str, list[str]],
        wrappers: Mapping[str, list[str]],
    ) -> None:
        empty = [m for m in members if not inside.get(m) and not wrappers.get(m)]
        cells = inside.get(parent, [])
        if not empty:
            return
        if len(cells) != 1:
            what = f"any of {len(cells)} cells" if cells else "a cell that is not known"
            self.notes.append(
                f"{empty[0]} may be around {what}, which from 1.2 on has to be in its scope; "
                f"move it by scope or rename"
            )
            return
        # An output projection is applied last in all that TensorFlow itself builds.
        order = sorted(empty, key=lambda path: self.found[path].cell.name != _OUTPUT)
        if len(order) > 1:
            names = " around ".join(path.rpartition("/")[2] for path in order)
            self.notes.append(
                f"{parent}: which wrapper is the outer one is not known; it is taken for {names}"
            )
        for outer, inner in zip(order, [*order[1:], cells[0]], strict=True):
            self.parents[inner] = outer

    def _leaves(
        self,
    ) -> tuple[dict[str, tuple[str, str]], tuple[Sharded, ...], tuple[Sharded, ...]]:
        """Return scope and new name below it of each known variable, and the shards."""
        leaves: dict[str, tuple[str, str]] = {}
        shards: dict[tuple[str, str], dict[int, str]] = {}
        split = []
        for path, cell in self.found.items():
            for leaf in cell.leaves:
                new = leaf.spelt(self.target)
                if new is None or cell.scope(self.target) is None:
                    leaves[leaf.name] = (path, leaf.name[len(path) + 1 :])
                    continue
                old = leaf.names[OLDEST] or ""
                is_sharded = NUMBER in old and NUMBER not in (leaf.names[NEWEST] or "")
                if is_sharded and leaf.number is None and self.target == OLDEST:
                    count = self.shards.get(leaf.name, 1)
                    new = old.replace(NUMBER, "0")
                    if count > 1:
                        parts = (old.replace(NUMBER, str(k)) for k in range(count))
                        split.append(Sharded(leaf.name, (path, *parts)))
                elif is_sharded and leaf.number is not None and self.target != OLDEST:
                    shards.setdefault((path, new), {})[leaf.number] = leaf.name
                leaves[leaf.name] = (path, new)
        return leaves, tuple(self._joined(shards)), tuple(split)

    def _joined(self, shards: Mapping[tuple[str, str], Mapping[int, str]]) -> Iterator[Sharded]:
        for by_number in shards.values():
            numbers = sorted(by_number)
            if numbers != list(range(len(numbers))):
                missing = next(n for n in range(len(numbers) + 1) if n not in by_number)
                raise PlanError(
                    f"{printable(by_number[numbers[-1]])}: it is a shard of rows, and number "
                    f"{missing} of them is missing; rename it, or leave its cell out"
                )
            if len(numbers) > 1:
                yield Sharded("", tuple(by_number[number] for number in numbers))

    def _place(self, path: str, places: dict[str, str]) -> str:
        """Return where a scope is in the new era."""
        if not path:
            return ""
        if path not in places:
            parent, _, last = path.rpartition("/")
            parent = self.parents.get(path, parent)
            places[path] = _join(self._place(parent, places), self.scopes.get(path, last))
        return places[path]

    def _note_unknown(self) -> None:
        """Note what looks like the names of an era, and is in no cell."""
        for (taken, other), paths in self.doubts.items():
            which = f"{paths[0]} (and {len(paths) - 1} more)" if len(paths) > 1 else paths[0]
            self.notes.append(
                f"{which} is taken for {taken}; if it is {other}, say --eras-kind "
                f"'{paths[0]}={other}'"
            )
        linear = [path for path, cell in self.found.items() if cell.cell is LINEAR]
        if linear and self.target != OLDEST:
            self.notes.append(
                f"linear layers in scopes of their own are taken for TensorFlow's: {len(linear)}, "
                f"such as {linear[0]}; if the code has its own, say --eras-kind '{linear[0]}=own'"
            )
        wrapped = [n for n in self.names if "/attention_wrapper/" in f"/{n}"]
        if wrapped and self.target < NESTED:
            self.notes.append(
                f"{count(len(wrapped), 'variable')} of an AttentionWrapper, which came with 1.2, "
                f"such as {wrapped[0]}"
            )
        bare = [n for n in self.names if n.rpartition("/")[2] == "attention_r"]
        if bare and self.target >= NESTED:
            self.notes.append(
                f"{bare[0]} is of the DynamicAttentionWrapper of 1.1, which computes something "
                f"else than the AttentionWrapper of 1.2; its variables stay"
            )
        ones = [p for p, new in self.scopes.items() if new == "rnn"]
        if ones:
            self.notes.append(
                f"{ones[0]} becomes rnn, TensorFlow's own name for it; if the code names it, say "
                f"--eras-kind '{ones[0]}=own'"
            )


def _join(*parts: str) -> str:
    return "/".join(part for part in parts if part)


def _numbered(name: str, word: str) -> str:
    """Return the number of `Cell3`, `cell_3` or `Layer3`; empty for anything else."""
    number = name[len(word) :].removeprefix("_")
    fits = name[: len(word)].lower() == word and number.isascii() and number.isdigit()
    return number if fits and len(number) < 10 and str(int(number)) == number else ""
