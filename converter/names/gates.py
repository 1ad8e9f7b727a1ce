"""Names of the gates of recurrent cells, and patterns of variables that are gate by gate."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from converter.errors import PlanError, UsageError, printable

_WORDS = {
    "i": ("in", "ingate", "input", "inputgate", "inpgate", "ig", "igate"),
    "j": (
        *("c", "g", "cand", "candidate", "candidategate", "cell", "cellgate", "cellinput"),
        *("gg", "inputmodulation", "memory", "memorycell", "modulation", "new", "newinput"),
        *("newmemory", "newgate", "ggate", "transform", "cellstate", "state", "h", "n"),
    ),
    "f": ("forget", "forgetgate", "fg", "fgate"),
    "o": ("out", "outgate", "output", "outputgate", "og", "ogate"),
    "r": ("reset", "resetgate", "rg"),
    "u": ("z", "update", "updategate", "ug", "zg"),
}
_LETTER_OF = {word: letter for letter, words in _WORDS.items() for word in (letter, *words)}

_PARTS = {
    **dict.fromkeys(["wx", "w_x"], "x"),
    **dict.fromkeys(["wt", "wh", "w_t", "w_h", "u"], "h"),
    **dict.fromkeys(["bi", "b", "bias", "biases"], "bias"),
}


def letter_of(gate: str) -> str | None:
    """Return what a gate is by its name: i, j (the new values), f, o, r or u; None if unknown."""
    return _LETTER_OF.get(re.sub(r"[^a-z]", "", gate.lower()))


def read_order(text: str) -> tuple[str, ...]:
    """Read the order of gates: `ifco`, in letters, or `input_gate,forget_gate`, by their names.

    Raises:
        UsageError: it is none.
    """
    gates = tuple(part.strip() for part in text.split(",")) if "," in text else tuple(text)
    if not gates or "" in gates or len({letter_of(g) or g for g in gates}) < len(gates):
        raise UsageError(f"{text!r} is no order of gates; write letters, ijfo, or names: a,b,c,d")
    if "," not in text:
        for letter in gates:
            if letter_of(letter) is None:
                raise UsageError(
                    f"{text!r} is no order of gates: there is no gate {letter!r}; write names with "
                    f"commas between"
                )
    return gates


def ordered(order: Sequence[str], gates: Iterable[str], subject: str) -> list[str]:
    """Return gates, by their own names, in an order.

    A gate of the order is the one of its name, else the one that its letter tells.

    Raises:
        PlanError: one of them is missing, or several are meant.
    """
    gates = list(dict.fromkeys(gates))
    found = []
    for wanted in order:
        letter = letter_of(wanted)
        exact = [gate for gate in gates if gate == wanted]
        fits = exact or [gate for gate in gates if letter and letter_of(gate) == letter]
        if len(fits) != 1:
            what = f"both {' and '.join(fits[:2])} can be" if fits else "none is"
            raise PlanError(
                f"{printable(subject)}: of its gates ({', '.join(map(printable, gates[:6]))}) "
                f"{what} {wanted!r}; give the order by their names: --gates-order a,b,c,d"
            )
        found += fits
    return found


def by_gates(names: Iterable[str]) -> dict[str, dict[str, dict[str, str]]]:
    """Return what LSTMs hold that have a scope for each gate: `cell/input_gate/wx`, `wt`, `bi`.

    Returns:
        By the scope of the cell, the letter of the gate (i, j, f and o) and the part (`x` and `h`,
        which the inputs and the state are multiplied with, and `bias`), the variable.
    """
    cells: dict[str, dict[str, dict[str, str]]] = {}
    for name in names:
        above, _, leaf = name.rpartition("/")
        part = _PARTS.get(leaf.lower())
        if part is not None:
            cell, _, gate = above.rpartition("/")
            cells.setdefault(cell, {}).setdefault(gate, {})[part] = name
    found = {}
    for cell, gates in cells.items():
        full = [(gate, parts) for gate, parts in gates.items() if {"x", "h"} <= parts.keys()]
        held = {letter: parts for gate, parts in full if (letter := letter_of(gate))}
        # Two scopes that may both be of one gate tell nothing.
        if set(held) == set("ijfo") and len(full) == len(held):
            found[cell] = held
    return found


@dataclass(frozen=True, slots=True)
class GatePattern:
    """How the variables of gates are called: `*/{gate}/{part}`.

    `*` is the scope of the cell, or no scope where a `/` follows it; `{gate}` and `{part}` are any
    text without a `/`.

    Attributes:
        text: the pattern.
    """

    text: str

    def __post_init__(self) -> None:
        for field in ("{gate}", "{part}"):
            if self.text.count(field) != 1:
                raise UsageError(f"{self.text!r} is no pattern of gates: it needs one {field}")
        if self.text.count("*") > 1 or "*" in self.text[1:]:
            raise UsageError(f"{self.text!r} is no pattern of gates: one `*` can stand first")

    @property
    def is_of_one_cell(self) -> bool:
        """Whether it names the scope of its cell."""
        return "*" not in self.text

    def match(self, names: Iterable[str], parts: Iterable[str]) -> dict[str, Pieces]:
        """Return the pieces of each cell, by gate and part; cells are told by their scopes."""
        text = re.escape(self.text).replace(r"\{gate\}", r"(?P<gate>[^/]+)")
        known = "|".join(sorted(map(re.escape, parts), key=len, reverse=True))
        text = text.replace(r"\{part\}", f"(?P<part>{known})")
        text = re.sub(r"^\\\*/", r"(?:(?P<scope>.+)/)?", text)
        text = re.sub(r"^\\\*", r"(?P<scope>.*)", text)
        fits = re.compile(text, re.DOTALL).fullmatch
        cells: dict[str, Pieces] = {}
        for name in names:
            match = fits(name)
            if match is not None:
                scope = match.groupdict().get("scope") or ""
                cells.setdefault(scope, {})[match["gate"], match["part"]] = name
        return cells

    def piece(self, scope: str, gate: str, part: str) -> str:
        """Return the name of a part of a gate."""
        return self._scoped(self.text, scope).replace("{gate}", gate).replace("{part}", part)

    def fused(self, scope: str, part: str) -> str:
        """Return the name of a part that holds all gates: without the gate."""
        text = re.sub(r"\{gate\}[/_.-]|[/_.-]\{gate\}|\{gate\}", "", self.text, count=1)
        return self._scoped(text, scope).replace("{part}", part)

    def _scoped(self, text: str, scope: str) -> str:
        if text.startswith("*/") and not scope:
            return text[2:]
        return f"{scope}{text[1:]}" if text.startswith("*") else text


Pieces = dict[tuple[str, str], str]
"""The names of variables by gate and part."""
