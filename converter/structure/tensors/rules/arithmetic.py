"""Computing with integers of which some are the lengths of axes: what a shape is made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from converter.graph.node import Node
from converter.structure.tensors.analysis import Cell, Tensor
from converter.structure.tensors.atoms import Atom, concat, find, product

_INTEGERS: dict[str, Callable[..., int]] = {
    "Neg": lambda a: -a,
    "Add": lambda a, b: a + b,
    "AddV2": lambda a, b: a + b,
    "Sub": lambda a, b: a - b,
    "Mul": lambda a, b: a * b,
    "FloorDiv": lambda a, b: a // b,
    "Div": lambda a, b: a // b,
    "RealDiv": lambda a, b: a // b,
    "FloorMod": lambda a, b: a % b,
    "Maximum": max,
    "Minimum": min,
    "Equal": lambda a, b: int(a == b),
    "NotEqual": lambda a, b: int(a != b),
    "Less": lambda a, b: int(a < b),
    "LessEqual": lambda a, b: int(a <= b),
    "Greater": lambda a, b: int(a > b),
    "GreaterEqual": lambda a, b: int(a >= b),
}
_SAME = frozenset({"Maximum", "Minimum", "FloorDiv"})
# The operand on one side that leaves that of the other side as it is.
_RIGHT = {"Add": 0, "AddV2": 0, "Sub": 0, "Mul": 1, "FloorDiv": 1, "Div": 1, "RealDiv": 1}
_LEFT = {"Add": 0, "AddV2": 0, "Mul": 1}
_MAX_CELLS = 64
_MAX_TAKEN = 4
_LARGE = 1 << 62


def computed(node: Node, inputs: Sequence[Tensor]) -> tuple[Cell, ...] | None:
    """Compute with integers, of which some are the lengths of axes."""
    function = _INTEGERS.get(node.op)
    tables = [tensor.cells for tensor in inputs if tensor.cells is not None]
    if function is None or len(tables) != len(inputs):
        return None
    length = max(map(len, tables))
    if length > _MAX_CELLS or any(len(table) not in (1, length) for table in tables):
        return None
    rows = zip(*(table * length if len(table) == 1 else table for table in tables), strict=True)
    return tuple(_cell(node.op, function, row) for row in rows)


def _cell(op: str, function: Callable[..., int], row: tuple[Cell, ...]) -> Cell:
    values = [cell.value for cell in row if cell.value is not None]
    value = None
    if len(values) == len(row):
        try:
            value = int(function(*values))
        except (ArithmeticError, ValueError):
            value = None
        if value is not None and abs(value) > _LARGE:
            value = None
    if (same := _unchanged(op, row)) is not None:
        return same
    if len(row) == 2 and value is None and op in _SAME:
        return _of_lengths(op, row[0], row[1])
    return Cell(value, _length(op, row), None, _multiple(op, row), _rest(op, row))


def _unchanged(op: str, row: tuple[Cell, ...]) -> Cell | None:
    """Return the operand that an operation gives out as it is: `n // 1`, `max(n, 1)`, `0 + n`."""
    if len(row) != 2:
        return None
    for (a, b), neutral in ((row, _RIGHT.get(op)), (row[::-1], _LEFT.get(op))):
        if b.value == neutral and neutral is not None:
            return a
        # An axis has at least one entry wherever somebody asks for the larger of two.
        if op == "Maximum" and b.value in (0, 1) and (a.value is None or a.value >= b.value):
            return a
    return None


def _of_lengths(op: str, a: Cell, b: Cell) -> Cell:
    """Compute with lengths that are not known, as far as that can be done."""
    is_same = a.atom is not None and b.atom is not None and find(a.atom) is find(b.atom)
    if op == "FloorDiv":
        return Cell(1) if is_same else Cell()
    return a if is_same else Cell()


def _multiple(op: str, row: tuple[Cell, ...]) -> tuple[Atom, int] | None:
    """Return of which axis of unknown length a product with a number is how many times it."""
    if op != "Mul" or len(row) != 2:
        return None
    for a, b in (row, row[::-1]):
        if a.atom is not None and a.value is None and b.atom is None and b.value is not None:
            return a.atom, b.value
    return None


def _rest(op: str, row: tuple[Cell, ...]) -> tuple[Cell, ...]:
    """Return what a difference was taken of, and what was taken off it."""
    if op != "Sub" or len(row) != 2:
        return ()
    whole, taken = row
    found = (*(whole.rest or (whole,)), taken)
    return found if len(found) <= _MAX_TAKEN else ()


def _length(op: str, row: tuple[Cell, ...]) -> Atom | None:
    """Return the axis whose length a sum or product of lengths is."""
    if op in ("Add", "AddV2", "Mul") and all(cell.atom is not None for cell in row):
        atoms = [cell.atom for cell in row if cell.atom is not None]
        return product(atoms) if op == "Mul" else concat(atoms)
    return None
