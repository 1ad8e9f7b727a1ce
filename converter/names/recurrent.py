"""Finds the recurrent cells of TensorFlow 1 in the names of a checkpoint."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from converter.names.cells import (
    CELLS,
    DECODER,
    DECODER_MARK,
    EARLIER,
    EARLIER_SCOPES,
    ERAS,
    LINEAR,
    NEWEST,
    NUMBER,
    OLDEST,
    Cell,
    Names,
)
from converter.names.evidence import MAX_DEPTH, unnumbered
from converter.variable import Variable

_MAX_BELOW = 3
"""How many components stand below the scope of a cell at most."""
_DIGITS = re.compile(r"(?<=[A-Za-z_])\d{1,4}(?![A-Za-z0-9])")
_ALL = frozenset(range(len(ERAS)))


@dataclass(frozen=True, slots=True)
class Leaf:
    """A variable of a cell.

    Attributes:
        name: in the checkpoint.
        names: what each era called it, below the scope of its cell; `#` is the number.
        number: what stands for `#`; None where none does.
    """

    name: str
    names: Names
    number: int | None

    def spelt(self, era: int) -> str | None:
        """Return what an era called it; None where it had none."""
        text = self.names[era]
        return text and text.replace(NUMBER, str(self.number))


@dataclass(frozen=True)
class Found:
    """A cell, or a wrapper, in the names of a checkpoint.

    Attributes:
        path: its scope.
        cell: what it is.
        eras: those that spelt all of its names so; empty where they are of several.
        number: what stands behind the name of its scope, `_1`.
        leaves: its variables, as far as they are known.
        others: what else it could be, by its names.
    """

    path: str
    cell: Cell
    eras: frozenset[int]
    number: str
    leaves: tuple[Leaf, ...]
    others: tuple[Cell, ...] = ()

    def scope(self, era: int) -> str | None:
        """Return the last component of its scope in an era; None where the era had no such cell."""
        if not self.cell.scopes:
            return self.path.rpartition("/")[2]
        name = self.cell.scopes[era]
        return name and name + self.number


def find_cells(
    variables: Mapping[str, Variable],
    names: Iterable[str],
    classes: Mapping[str, str] | None = None,
) -> dict[str, Found]:
    """Return the cells in the names of a checkpoint, by their scope, outer ones first.

    Args:
        variables: all of them.
        names: those of the model.
        classes: the class of a cell whose scope and variables are also another's, by its scope.
    """
    known = dict(classes or {})
    names = list(names)
    below, decoders = _below(names)
    found = {}
    for path in sorted(below, key=lambda path: path.count("/")):
        cells = [DECODER] if path in decoders else _candidates(path)
        chosen = known.get(path)
        cells = [cell for cell in cells if cell.name == chosen] or cells
        read = [r for r in (_read(path, c, below[path], variables) for c in cells) if r is not None]
        if read:
            count = len(read[0].leaves)
            others = tuple(other.cell for other in read[1:] if len(other.leaves) == count)
            found[path] = replace(read[0], others=others)
    taken = {leaf.name for cell in found.values() for leaf in cell.leaves}
    rest = [name for name in names if name not in taken and name.count("/") <= MAX_DEPTH]
    for cell in _in_own_scopes(rest, variables, known):
        found.setdefault(cell.path, cell)
    return _settled(found)


def _in_own_scopes(
    names: Iterable[str], variables: Mapping[str, Variable], known: Mapping[str, str]
) -> Iterator[Found]:
    """Yield cells in scopes that the code named: a cell that is called itself can be given one.

    A GRU and an LSTM with peepholes are known by their variables, and a cell with one kernel in
    0.12 by those of its linear function. What any other is has to be said.
    """
    scopes: defaultdict[str, list[str]] = defaultdict(list)
    for name in names:
        parts = name.split("/")
        for depth in range(max(1, len(parts) - _MAX_BELOW), len(parts)):
            scopes["/".join(parts[:depth])].append(name)
    taken: set[str] = set()
    for path in sorted(scopes, key=lambda path: path.count("/")):
        below = [name for name in scopes[path] if name not in taken]
        wanted = [_OWN[known[path]]] if known.get(path) in _OWN else _TOLD_BY_LEAVES
        for cell in wanted if known.get(path) in (None, *_OWN) else ():
            read = _read(path, cell, below, variables)
            is_told = cell.name == known.get(path)
            if read is not None and (is_told or _is_like(read, variables)):
                taken.update(leaf.name for leaf in read.leaves)
                yield read
                break


def _is_like(found: Found, variables: Mapping[str, Variable]) -> bool:
    """Return whether what names make of a scope fits the shapes of its variables."""
    shapes = {leaf.names[NEWEST]: variables[leaf.name].shape for leaf in found.leaves}
    if found.cell is LINEAR:
        return found.eras == {OLDEST} and len(shapes.get("kernel", ())) == 2
    if found.cell.name == "LSTMCell":
        kernel = shapes.get("kernel", ())
        units = {shapes[leaf] for leaf in _PEEPHOLES if leaf in shapes}
        return bool(found.eras) and len(kernel) == 2 and units == {(kernel[1] // 4,)}
    gates, candidate = shapes.get("gates/kernel", ()), shapes.get("candidate/kernel", ())
    is_gru = len(gates) == len(candidate) == 2 and bool(found.eras)
    return is_gru and gates == (candidate[0], 2 * candidate[1]) and candidate[0] > candidate[1]


def _below(names: Iterable[str]) -> tuple[dict[str, list[str]], set[str]]:
    """Return what lies below each scope that may be a cell's, and the scopes of decoders."""
    split = [(name, name.split("/")) for name in names if name.count("/") <= MAX_DEPTH]
    decoders = {"/".join(parts[:-1]) for _, parts in split if parts[-1] == DECODER_MARK}
    below: defaultdict[str, list[str]] = defaultdict(list)
    for name, parts in split:
        for depth in range(1, len(parts)):
            path = "/".join(parts[:depth])
            if path in decoders or unnumbered(parts[depth - 1])[0] in _BY_SCOPE:
                below[path].append(name)
    return dict(below), decoders


def _candidates(path: str) -> list[Cell]:
    return _BY_SCOPE.get(unnumbered(path.rpartition("/")[2])[0], [])


def _read(
    path: str, cell: Cell, names: Iterable[str], variables: Mapping[str, Variable]
) -> Found | None:
    """Return a scope as that of a cell; None where it holds no variable of the cell's."""
    last = path.rpartition("/")[2]
    base = unnumbered(last)[0]
    is_numbered = base in cell.scopes
    spelling = _ALL if not cell.scopes else _eras(cell.scopes, base if is_numbered else last)
    names = list(names)
    leaves, eras = [], spelling
    for name in names:
        below = name[len(path) + 1 :]
        read = _leaf(name, EARLIER.get(below, below) if base in EARLIER_SCOPES else below, cell)
        if read is not None:
            leaf, spelt = read
            leaves.append(leaf)
            eras &= spelt
    kernels = [len(variables[leaf.name].shape) for leaf in leaves if "kernel" in leaf.names]
    if cell.leaves and (not leaves or not spelling):
        return None
    if cell.rank is not None and cell.rank not in kernels:
        return None
    if f"{path}/recurrent_kernel" in names and cell.name != "NASCell":
        # Keras calls its cells as TensorFlow does.
        return None
    return Found(path, cell, eras, last[len(base) :] if is_numbered else "", tuple(leaves))


def _leaf(name: str, below: str, cell: Cell) -> tuple[Leaf, frozenset[int]] | None:
    table = _LEAVES[cell.name]
    digits = _DIGITS.search(below)
    number = int(digits[0]) if digits else None
    row = table.get(below)
    if row is not None:
        return Leaf(name, row, None), _eras(row, below)
    pattern = _DIGITS.sub(NUMBER, below)
    row = table.get(pattern)
    # A number with zeros before it would come back without them.
    if row is None or number is None or below != pattern.replace(NUMBER, str(number)):
        return None
    return Leaf(name, row, number), _eras(row, pattern)


def _eras(names: Names, spelling: str) -> frozenset[int]:
    return frozenset(era for era, name in enumerate(names) if name == spelling)


def _settled(found: dict[str, Found]) -> dict[str, Found]:
    """Decide whether what was called the same in 0.12 and later is of 0.12: as the others are."""
    is_old = any(cell.eras == {OLDEST} for cell in found.values())
    is_newer = any(cell.eras and OLDEST not in cell.eras for cell in found.values())
    settled = {}
    for path, cell in found.items():
        eras = cell.eras
        if OLDEST in eras and len(eras) > 1:
            scopes = path.split("/")
            old = is_old if is_old != is_newer else bool({"RNN", "MultiRNNCell"} & {*scopes})
            eras = eras & {OLDEST} if old else eras - {OLDEST}
        settled[path] = replace(cell, eras=eras)
    return settled


def _by_scope() -> dict[str, list[Cell]]:
    table: defaultdict[str, list[Cell]] = defaultdict(list)
    for cell in CELLS:
        for scope in dict.fromkeys(cell.scopes):
            if scope is not None:
                table[scope].append(cell)
    return dict(table)


_BY_SCOPE = _by_scope()
_LEAVES: dict[str, dict[str, Names]] = {
    cell.name: {spelling: row for row in cell.leaves for spelling in row if spelling is not None}
    for cell in (*CELLS, DECODER, LINEAR)
}
_PEEPHOLES = ("w_f_diag", "w_i_diag", "w_o_diag")
_OWN = {cell.name: replace(cell, scopes=(), rank=None) for cell in CELLS if not cell.place}
_TOLD_BY_LEAVES = [_OWN["GRUCell"], _OWN["LSTMCell"], LINEAR]
