"""Writes small graphs node by node, without TensorFlow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from converter.formats.messages import message
from converter.graph.definition import Definition
from converter.graph.written import Graph

NUMBERS = {"float32": 1, "int32": 3, "string": 7, "int64": 9, "bool": 10}


class Maker:
    """Adds nodes to a GraphDef; each method returns the name of the tensor that it makes."""

    def __init__(self, producer: int = 134) -> None:
        self.definition = message("GraphDef")()
        self.definition.versions.producer = producer
        self._count = 0

    def op(
        self,
        op: str,
        *inputs: str,
        name: str = "",
        shape: tuple[int, ...] | None = None,
        **attributes: Any,
    ) -> str:
        """Add a node; `shape` is what it notes of its first output."""
        self._count += 1
        name = name or f"{op}_{self._count}"
        node = self.definition.node.add(name=name.encode(), op=op.encode())
        node.input.extend(text.encode() for text in inputs)
        for key, value in attributes.items():
            entry = node.attr.add(key=key.encode()).value
            if isinstance(value, bool):
                entry.b = value
            elif isinstance(value, int):
                entry.i = value
            elif value in NUMBERS:
                entry.type = NUMBERS[value]
            elif isinstance(value, str):
                entry.s = value.encode()
            else:
                _fill(entry.shape, value)
        if shape is not None:
            noted = node.attr.add(key=b"_output_shapes").value
            _fill(noted.list.shape.add(), shape)
        return name

    def placeholder(self, name: str, dtype: str, shape: tuple[int, ...]) -> str:
        return self.op("Placeholder", name=name, dtype=dtype, shape=shape)

    def constant(self, value: Any, name: str = "") -> str:
        array = np.asarray(value)
        array = array.astype({"f": "f4", "i": "i4"}.get(array.dtype.kind, array.dtype))
        kind = {"float32": 1, "int32": 3, "bool": 10}[array.dtype.name]
        text = self.op("Const", name=name)
        tensor = message("TensorProto")(dtype=kind, tensor_content=array.tobytes())
        _fill(tensor.tensor_shape, array.shape)
        self.definition.node[-1].attr.add(key=b"value").value.tensor = tensor.SerializeToString()
        return text

    def strings(self, *values: str) -> str:
        text = self.op("Const")
        tensor = message("TensorProto")(dtype=7, string_val=[value.encode() for value in values])
        _fill(tensor.tensor_shape, (len(values),))
        self.definition.node[-1].attr.add(key=b"value").value.tensor = tensor.SerializeToString()
        return text

    def variable(self, name: str, *shape: int) -> str:
        """Add a variable of TensorFlow 1; what is returned reads it."""
        self.op("VariableV2", name=name, dtype="float32", shape=shape)
        return self.op("Identity", name, name=f"{name}/read", shape=shape)

    def dense(self, x: str, name: str, rows: int, columns: int) -> str:
        product = self.op("MatMul", x, self.variable(f"{name}/w", rows, columns))
        bias = self.variable(f"{name}/b", columns)
        return self.op("Add", product, bias, name=f"{name}/add", T="float32", shape=(-1, columns))

    def graph(self) -> Graph:
        return Graph(Definition(Path("made.meta"), self.definition, message("MetaGraphDef")()))


def _fill(shape: Any, sizes: tuple[int, ...]) -> None:
    for size in sizes:
        shape.dim.add(size=size)
