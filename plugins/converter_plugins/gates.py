"""Joins what a cell holds gate by gate into fused kernels, splits and reorders these."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from converter import PlanError, Strategy, UsageError, hookimpl, matching, option
from converter.names.follow import root_of
from converter.names.gates import GatePattern, letter_of, ordered, read_order

if TYPE_CHECKING:
    from converter import Checkpoint, Variable
    from converter_plugins.fusion import Fused

_PARTS = {"wx+wt": "kernel", "bi": "bias"}
_FORGET = (
    "what code adds to the forget gate (1 in TensorFlow's cells, 0 in most others) is in no "
    "checkpoint; --gates-forget-bias says what the fused cell adds and the other doesn't"
)


@dataclass(frozen=True)
class Gates(Strategy):
    """Join the variables of gates into fused kernels, split such, or reorder their gates.

    `join` makes one kernel `[inputs + state, gates * units]` and one bias of what the scopes of the
    gates hold: `cell/input_gate/wx`, `cell/input_gate/wt`, `cell/input_gate/bi`. `split` is the way
    back. `reorder` moves the gates of kernels and biases. Slots and averages go along.

    TensorFlow's LSTM cells add 1 to the forget gate, which is in no checkpoint. Hand-written cells
    often don't: `forget_bias` takes it off the bias where gates are joined, adds it where they are
    split, and where they are reordered.

    Example:
        convert ckpt m.ckpt --gates join --gates-order ijfo --gates-forget-bias 1 --to tf -o out/
    """

    name: ClassVar[str] = "gates"
    gates: Literal["join", "split", "reorder"] = option(help="what to do")
    order: str = option(
        "ijfo",
        help="the order of the gates in fused kernels: letters (i, j or c or g, f, o, r, u or z), "
        "or their own names with commas between",
        metavar="ORDER",
    )
    old: str | None = option(
        None, help="the order before, where names don't tell it, for reorder", metavar="ORDER"
    )
    pattern: str = option(
        "*/{gate}/{part}",
        help="how the variables of gates are called; `*` is any scope",
        metavar="PATTERN",
    )
    parts: Mapping[str, str] = option(
        _PARTS,
        help="what is joined to what: first the kernel, its rows from top to bottom with `+` "
        "between, then the biases",
        metavar="PART+PART=NAME",
    )
    only: tuple[str, ...] = option(
        (), help="the scopes of the cells, or for reorder the variables", metavar="GLOB"
    )
    forget_bias: float | None = option(
        None, help="what the code of the fused cell adds to the forget gate and the other doesn't"
    )
    bias_rows: bool = option(False, help="split biases into [1, units] and not [units]")

    def __post_init__(self) -> None:
        super().__post_init__()
        read_order(self.order)
        if self.old is not None:
            read_order(self.old)
        GatePattern(self.pattern)
        if not self.parts or any(not part for key in self.parts for part in key.split("+")):
            raise UsageError("parts must be such as 'wx+wt=kernel'")
        if self.forget_bias is not None and not math.isfinite(self.forget_bias):
            raise UsageError(f"forget_bias must be finite, got {self.forget_bias}")
        if self.gates == "split" and not (self.only or GatePattern(self.pattern).is_of_one_cell):
            raise UsageError(
                "split has to know the cells: give their scopes (--gates-only), or a pattern "
                "without `*`"
            )
        if any(key.count("+") > 1 for key in self.parts) and self.gates == "split":
            raise UsageError("the rows of a kernel are split into two parts at most")

    def apply(self, checkpoint: Checkpoint) -> Iterable[Variable]:
        if self.gates == "reorder":
            return self._reordered(checkpoint)
        from converter_plugins.fusion import with_slots

        join = self.gates == "join"
        fused = with_slots(checkpoint, self._fused(checkpoint), join=join)
        home = {name: one for one in fused for name in (one.all_pieces if join else [one.name])}
        added = self.forget_bias or 0.0
        result: list[Variable] = []
        done: set[str] = set()
        for name, variable in checkpoint.items():
            one = home.get(name)
            if one is None:
                result.append(variable)
            elif one.name not in done:
                done.add(one.name)
                if join:
                    result.append(one.joined(checkpoint, added))
                else:
                    result += one.split(checkpoint, added, rows=self.bias_rows)
        return result

    def notes(self, checkpoint: Checkpoint) -> Iterable[str]:
        if self.gates == "reorder":
            if self.forget_bias is None and "f" in map(letter_of, read_order(self.order)):
                yield f"biases keep their values: {_FORGET}"
            return
        fused = self._fused(checkpoint)
        if self.forget_bias is None and any(one.forget is not None for one in fused):
            yield f"the biases of forget gates keep their values: {_FORGET}"
        if self.gates == "join":
            pairs = [one.all_pieces[0] for one in fused if one.is_bias]
            rows = [piece for piece in pairs if len(checkpoint[piece].shape) == 2]
            if rows:
                yield (
                    f"biases such as {rows[0]} are [1, units]; split makes them so again with "
                    f"--gates-bias-rows"
                )

    def _fused(self, checkpoint: Checkpoint) -> list[Fused]:
        names = [n for n, role in checkpoint.roles().items() if role.kind == "model"]
        find = self._joins if self.gates == "join" else self._splits
        found = list(find(checkpoint, names))
        if not found:
            what = (
                f"no variables are called as {self.pattern} says, with the parts "
                f"{', '.join(self.parts)}"
                if self.gates == "join"
                else f"no cell that is chosen has the variables {', '.join(self.parts.values())}"
            )
            raise PlanError(
                f"gates: {what}; give another --gates-pattern, --gates-parts or --gates-only"
            )
        return found

    def _joins(self, checkpoint: Checkpoint, names: list[str]) -> Iterator[Fused]:
        pattern, order = GatePattern(self.pattern), read_order(self.order)
        parts = {part for key in self.parts for part in key.split("+")}
        cells = pattern.match(names, parts)
        if self.only:
            chosen = {c for glob in self.only for c in matching(glob, cells, "cells")}
            cells = {cell: pieces for cell, pieces in cells.items() if cell in chosen}
        for cell, pieces in cells.items():
            subject = pattern.fused(cell, "").rstrip("/") or "the cell"
            found = [gate for gate, _ in pieces]
            if not {letter_of(g) or g for g in found} & {letter_of(g) or g for g in order}:
                continue
            gates = ordered(order, found, subject)
            for place, (key, name) in enumerate(self.parts.items()):
                rows = key.split("+")
                wanted = [(gate, row) for row in rows for gate in gates]
                lacking = [pair for pair in wanted if pair not in pieces]
                if len(lacking) == len(wanted):
                    continue
                if lacking:
                    raise PlanError(
                        f"{subject}: {pattern.piece(cell, *lacking[0])} is missing, and "
                        f"{pieces[next(p for p in wanted if p in pieces)]} is there; rename it, or "
                        f"give other --gates-parts"
                    )
                grid = tuple(tuple(pieces[gate, row] for gate in gates) for row in rows)
                yield _named(pattern.fused(cell, name), grid, gates, is_bias=place > 0)

    def _splits(self, checkpoint: Checkpoint, names: list[str]) -> Iterator[Fused]:
        pattern, gates = GatePattern(self.pattern), read_order(self.order)
        scopes = dict.fromkeys(name.rpartition("/")[0] for name in names)
        cells = dict.fromkeys(c for glob in self.only for c in matching(glob, scopes, "scopes"))
        for cell in cells or [""]:
            for place, (key, name) in enumerate(self.parts.items()):
                fused = pattern.fused(cell, name)
                if fused not in checkpoint:
                    continue
                rows = key.split("+")
                grid = tuple(
                    tuple(pattern.piece(cell, gate, row) for gate in gates) for row in rows
                )
                yield _named(fused, grid, gates, is_bias=place > 0)

    def _reordered(self, checkpoint: Checkpoint) -> list[Variable]:
        order = [letter_of(gate) or gate for gate in read_order(self.order)]
        olds = dict(self._orders(checkpoint))
        roles = checkpoint.roles()
        result, count = [], 0
        for name, variable in checkpoint.items():
            root = root_of(roles, name)
            old = [letter_of(gate) or gate for gate in olds.get(root, ())]
            is_alike = bool(variable.shape) and variable.shape[-1:] == checkpoint[root].shape[-1:]
            if not old or sorted(old) != sorted(order) or not is_alike:
                result.append(variable)
                continue
            count += 1
            role = roles[name]
            is_value = name == root or (role.kind == "average" and role.slot is None)
            result.append(self._moved(variable, old, order, is_value=is_value))
        if not count:
            raise PlanError(
                f"gates: no variable is known to hold the gates {', '.join(order)}; say which "
                f"ones do (--gates-only), and in which order (--gates-old)"
            )
        return result

    def _orders(self, checkpoint: Checkpoint) -> Iterator[tuple[str, Sequence[str]]]:
        """Yield the variables that hold all gates, with the order in which they do."""
        names = [n for n, role in checkpoint.roles().items() if role.kind == "model"]
        if self.only:
            names = list(dict.fromkeys(n for g in self.only for n in matching(g, names)))
        if self.old is not None:
            if not self.only:
                raise UsageError("old says the order of some variables; say of which: --gates-only")
            yield from ((name, read_order(self.old)) for name in names)
            return
        from converter_plugins.kernels import kernel_of

        biases: defaultdict[str, list[str]] = defaultdict(list)
        for name in names:
            scope, _, leaf = name.rpartition("/")
            if leaf.lower().startswith("b"):
                biases[scope].append(name)
        for name in names:
            kernel = kernel_of(name, checkpoint)
            if kernel is None:
                continue
            yield name, kernel.gates
            columns = checkpoint[name].shape[-1:]
            for bias in biases.get(name.rpartition("/")[0], ()):
                if checkpoint[bias].shape[-1:] == columns:
                    yield bias, kernel.gates

    def _moved(
        self, variable: Variable, old: Sequence[str], order: Sequence[str], *, is_value: bool
    ) -> Variable:
        from converter.blocks import block, concatenated
        from converter_plugins.fusion import shifted

        units, rest = divmod(variable.shape[-1], len(order))
        if rest:
            raise PlanError(
                f"{variable.name}: its last axis is {variable.shape[-1]}, which {len(order)} gates "
                f"cannot share; choose others with --gates-only"
            )
        axis = len(variable.shape) - 1
        if list(old) != list(order):
            blocks = [old.index(gate) * units for gate in order]
            pieces = [block(variable.name, variable, axis, at, at + units) for at in blocks]
            variable = concatenated(variable.name, pieces, axis)
        if self.forget_bias and is_value and axis == 0 and "f" in order:
            at = list(order).index("f") * units
            variable = shifted(variable, at, at + units, self.forget_bias)
        return variable


def _named(
    name: str, grid: tuple[tuple[str, ...], ...], gates: Sequence[str], *, is_bias: bool
) -> Fused:
    from converter_plugins.fusion import Fused

    letters = [letter_of(gate) for gate in gates]
    forget = letters.index("f") if is_bias and "f" in letters else None
    return Fused(name, grid, forget, is_bias)


@hookimpl
def converter_strategies() -> Iterable[type[Strategy]]:
    yield Gates
