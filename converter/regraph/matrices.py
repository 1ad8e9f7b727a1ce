"""Random matrices that initial values are made orthogonal by, where they become wider than high.

TensorFlow's initialiser decomposes a matrix that is at least as high as wide, and turns what comes
out where the variable is not. At other sizes its code may have written the other graph. Here the
matrix is turned, so that all shapes fit; the initial values are still random.
"""

from __future__ import annotations

from converter.graph.node import Node
from converter.graph.ops import ADDS, NOISE, SAME
from converter.graph.ordered import OrderedGraph
from converter.regraph.sizes import Sizes
from converter.structure.lengths import Lengths

_MAX_STEPS = 16
# What makes numbers that are drawn into those of a distribution.
_SCALES = SAME | ADDS | {"Mul"}


def turned(graph: OrderedGraph, found: Lengths, sizes: Sizes) -> dict[str, str]:
    """Return the constants whose two entries have to be swapped, with what decomposes."""
    swapped = {}
    for node in graph.nodes:
        if node.op not in ("Qr", "Svd") or not node.inputs:
            continue
        axes = found.axes(node.inputs[0].node.name, node.inputs[0].port)
        if axes is None or len(axes) != 2:
            continue
        (rows, new_rows), (columns, new_columns) = map(sizes.lengths, axes)
        was_high = rows > columns or (rows == columns and node.op == "Qr")
        shape = _shape(node.inputs[0].node)
        if shape is not None and new_rows != new_columns and was_high != (new_rows > new_columns):
            swapped[shape.name] = node.name
    return swapped


def _shape(node: Node) -> Node | None:
    """Return the constant that says the shape of what is drawn."""
    for _ in range(_MAX_STEPS):
        if node.op in NOISE and node.inputs:
            source = node.inputs[0].node
            return source if source.op == "Const" else None
        if node.op not in _SCALES or not node.inputs:
            return None
        node = node.inputs[0].node
    return None
