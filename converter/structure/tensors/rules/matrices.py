"""Rules of ops that look at the last two axes as a matrix, as orthogonal initialisers do."""

from __future__ import annotations

from collections.abc import Sequence

from converter.graph.node import Node
from converter.structure.tensors.analysis import Analysis, Axes, Rule, Tensor, for_ops
from converter.structure.tensors.atoms import Atom, Clash, size_of


def _matrix(tensor: Tensor) -> tuple[Axes, Atom, Atom]:
    axes = tensor.axes
    if axes is None or len(axes) < 2:
        raise Clash
    return axes[:-2], axes[-2], axes[-1]


def _smaller(rows: Atom, columns: Atom) -> Atom:
    sizes = size_of(rows), size_of(columns)
    if sizes[0] is None or sizes[1] is None:
        return Atom(None)
    return columns if sizes[1] <= sizes[0] else rows


def decomposed(an: Analysis, node: Node, inputs: Sequence[Tensor]) -> list[Tensor]:
    """Write a matrix as a product of others, which meet in the smaller of its sizes."""
    batch, rows, columns = _matrix(inputs[0])
    an.touch("nonlinear", (rows, columns), node)
    inner = _smaller(rows, columns)
    is_full = bool(node.integer("full_matrices"))
    left = (*batch, rows, rows if is_full else inner)
    if node.op == "Qr":
        return [Tensor(left), Tensor((*batch, rows if is_full else inner, columns))]
    right = (*batch, columns, columns if is_full else inner)
    return [Tensor((*batch, inner)), Tensor(left), Tensor(right)]


def diagonal_of(an: Analysis, node: Node, inputs: Sequence[Tensor]) -> Tensor:
    """Take the diagonal of a matrix."""
    batch, rows, columns = _matrix(inputs[0])
    an.touch("index", (rows, columns), node)
    return Tensor((*batch, _smaller(rows, columns)))


def on_diagonal(an: Analysis, node: Node, inputs: Sequence[Tensor]) -> Tensor:
    """Make a matrix that is zero but for its diagonal."""
    axes = inputs[0].axes
    if not axes or (node.op == "Diag" and len(axes) > 1):
        raise Clash
    an.touch("index", axes[-1:], node)
    return Tensor((*axes, axes[-1]))


def inverted(an: Analysis, node: Node, inputs: Sequence[Tensor]) -> Tensor:
    """Make a matrix of a square one."""
    batch, rows, columns = _matrix(inputs[0])
    an.tie(rows, columns, node)
    an.touch("nonlinear", (rows, columns), node)
    return Tensor((*batch, rows, columns))


RULES: dict[str, Rule] = {
    **for_ops("Qr Svd", decomposed),
    **for_ops("DiagPart MatrixDiagPart", diagonal_of),
    **for_ops("Diag MatrixDiag", on_diagonal),
    **for_ops("MatrixInverse Cholesky", inverted),
}
