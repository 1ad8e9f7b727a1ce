"""LSTMs that have a matrix of their own for each gate: `cell/input_gate/wx`, `wt`, `bi`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from converter.conventions.layers import Cell
from converter.conventions.views import View, Whole, reshaped
from converter.names.gates import by_gates

_GATE_OF = {"i": "i", "f": "f", "j": "g", "o": "o"}


def gatewise_cells(shapes: Mapping[str, tuple[int, ...]]) -> Iterator[Cell]:
    """Yield the LSTMs that have a scope for each gate, as far as their shapes fit.

    Args:
        shapes: of the variables of the model.
    """
    for scope, gates in by_gates(shapes).items():
        parts = {part for held in gates.values() for part in held}
        if any(set(held) != parts for held in gates.values()):
            continue
        views: dict[str, dict[str, View]] = {
            part: {
                _GATE_OF[letter]: Whole(held[part], shapes[held[part]])
                for letter, held in gates.items()
            }
            for part in parts
        }
        shape = views["x"]["i"].shape
        if len(shape) != 2 or not all(shape):
            continue
        units = shape[1]
        wanted: dict[str, list[tuple[int, ...]]] = {
            "x": [shape],
            "h": [(units, units)],
            "bias": [(units,), (1, units)],
        }
        if any(v.shape not in wanted[part] for part, held in views.items() for v in held.values()):
            continue
        biases = {g: reshaped(v, (units,)) for g, v in views.get("bias", {}).items()}
        own = {name: Whole(name, shapes[name]) for held in gates.values() for name in held.values()}
        yield Cell(scope, "lstm", own, views["x"], views["h"], biases, is_gatewise=True)
