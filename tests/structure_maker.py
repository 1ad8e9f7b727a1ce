"""Makes small models node by node, and tells their structure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from graph_maker import Maker

from converter import Checkpoint, Variable
from converter.graph.definition import Definition
from converter.graph.ordered import OrderedGraph
from converter.structure.infer import infer_from
from converter.structure.structure import Structure

N = 4
"""Every size of the models, so that sizes tell nothing."""


class Model(Maker):
    """A graph with its checkpoint; every method returns the name of the tensor that it makes."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: dict[str, tuple[int, ...]] = {}

    def op(
        self,
        op: str,
        *inputs: str,
        name: str = "",
        shape: tuple[int, ...] | None = None,
        **attributes: Any,
    ) -> str:
        lists = {key: value for key, value in attributes.items() if isinstance(value, list)}
        rest = {key: value for key, value in attributes.items() if key not in lists}
        name = super().op(op, *inputs, name=name, shape=shape, **rest)
        for key, value in lists.items():
            self.definition.node[-1].attr.add(key=key.encode()).value.list.i.extend(value)
        return name

    def variable(self, name: str, *shape: int) -> str:
        self.shapes[name] = shape
        return super().variable(name, *shape)

    def input(self, *shape: int, name: str = "x", dtype: str = "float32") -> str:
        return self.placeholder(name, dtype, shape)

    def dense(self, x: str, name: str, rows: int = N, columns: int = N) -> str:
        """Multiply with `name/w` and add `name/b`; no shapes are noted."""
        product = self.op("MatMul", x, self.variable(f"{name}/w", rows, columns))
        return self.op("BiasAdd", product, self.variable(f"{name}/b", columns))

    def structure(self) -> Structure:
        variables = [Variable.from_array(n, np.zeros(s, "f4")) for n, s in self.shapes.items()]
        return infer_from(
            OrderedGraph(Definition(Path("made.meta"), self.definition)),
            Checkpoint(variables, path=Path("made")),
        )

    def axes(self) -> dict[str, str]:
        """Return the axes of each variable, with its uses: `x, units | consume, produce`."""
        found = self.structure()
        assert found.conflicts == ()
        return {name: told(found, name) for name in self.shapes}

    def widths(self) -> dict[str, str]:
        """Return the class of each width, and how it grows."""
        found = self.structure()
        return {
            width.name: f"{width.symmetry} {width.growth if width.resizable else 'fixed'}"
            for width in found.widths.values()
        }


def told(structure: Structure, name: str) -> str:
    uses = [
        " / ".join(dict.fromkeys(" ".join(use) for use in found.values())) or "-"
        for found in structure.uses[name]
    ]
    return f"{', '.join(map(str, structure.axes[name]))} | {', '.join(uses)}"
