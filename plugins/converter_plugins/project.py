"""Gives widths another size by matrices that mix their units."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from converter import PlanError, Resizer, UsageError, hookimpl, option

if TYPE_CHECKING:
    from converter import Array, Checkpoint, Coupled, Strategy, Width, WidthMap

_LARGEST = 1 << 27


@dataclass(frozen=True)
class Project(Resizer):
    """Give widths another size by a matrix: random, from principal components, or from a file.

    What makes the units is multiplied with a matrix, and what takes them with one that undoes it.
    That is exact where a width grows and only linear ops touch it: embeddings, projections, the
    heads of an attention. Where something nonlinear does, or a gate, mixed units are ruinous, and
    such widths are refused. A normalised stream is turned into principal components, and what
    consumes it takes on its gains and shifts. Optimizer slots are turned as gradients are.

    Example:
        convert ckpt model.ckpt --plugin project --resize embedding=96 -o out/

    References:
        Stewart, The efficient generation of random orthogonal matrices, 1980 (`orthonormal`: by QR
        with positive diagonal); Johnson and Lindenstrauss, Extensions of Lipschitz mappings, 1984
        (`gaussian`: of variance 1/N, undone by its pseudo-inverse); Ashkboos et al., SliceGPT, 2024
        (principal components of activations).
    """

    name: ClassVar[str] = "project"
    by: Literal["orthonormal", "gaussian", "pca"] = option(
        "orthonormal",
        help="the matrix: random with orthonormal rows or columns, random numbers of variance 1/N, "
        "or the principal components of what makes the units",
    )
    statistics: Path | None = option(
        None,
        help="a file of statistics that convert stats wrote: pca is of what the units are on data",
        metavar="FILE",
    )
    matrix: Path | None = option(
        None,
        help="a file with the matrix [old, new] instead (.npy, or .npz and .safetensors with "
        "`produce` and perhaps `consume`)",
        metavar="FILE",
    )
    transposed: bool = option(False, help="the matrices of the file are transposed: [new, old]")
    lossy: bool = option(False, help="mix units also where something nonlinear takes them")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.matrix is None and self.transposed:
            raise UsageError("transposed is about the matrix of a file; give --project-matrix FILE")
        if self.statistics is not None and (self.by != "pca" or self.matrix is not None):
            raise UsageError(
                f"nothing uses the statistics in {self.statistics}; choose principal components "
                f"(--project-by pca), and no matrix of a file"
            )

    def width_map(self, width: Width, size: int, coupled: Coupled) -> WidthMap:
        from converter import Matrix, WidthMap
        from converter_plugins import matrices

        shape = (width.size, size)
        if self.matrix is not None:
            given = matrices.read_matrices(
                self.matrix, width.name, shape, transposed=self.transposed
            )
            produce = Matrix.of(given.produce)
            if given.consume is not None:
                return WidthMap(produce, Matrix.of(given.consume))
            return WidthMap(produce, matrices.undoing(produce))
        activations = None
        if self.statistics is not None:
            from converter_plugins.activations import activations_of

            activations = activations_of(coupled.checkpoint, self.statistics)
        if self.by == "pca" and self._is_turned(width):
            from converter_plugins.turned import turned

            return turned(coupled, size, activations)
        if activations is not None:
            consumers = activations.consumers(coupled, ("mean", "covariance"))
            produce = Matrix(shape, partial(matrices.components, activations, consumers, size))
            return WidthMap(produce, produce.T)
        if self.by == "pca" and not (width.produced_by or coupled.structure.findings is None):
            raise PlanError(
                f"{width.name}: no variable makes its units, so they have no principal components; "
                f"choose another matrix (--project-by orthonormal)"
            )
        if self.by == "gaussian":
            produce = Matrix(shape, partial(matrices.gaussian, coupled, self.seed, shape))
            return WidthMap(produce, matrices.undoing(produce))
        make: Mapping[str, Callable[[], Array]] = {
            "orthonormal": partial(matrices.orthonormal, coupled, self.seed, shape),
            "pca": partial(matrices.principal, coupled, size),
        }
        produce = Matrix(shape, make[self.by])
        return WidthMap(produce, produce.T)

    def notes(self, checkpoint: Checkpoint) -> Iterable[str]:
        from converter_plugins.turned import Turned

        yield from super().notes(checkpoint)
        if self.statistics is not None:
            from converter_plugins.activations import activations_of

            request = self._request(checkpoint)
            activations = activations_of(checkpoint, self.statistics)
            yield from activations.scarce(request.structure, request.maps)
        folds = [width_map.fold for width_map in self.resizes(checkpoint).maps.values()]
        for fold in folds:
            if isinstance(fold, Turned) and (names := fold.untold()):
                more = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
                yield (
                    f"{names[0]}{more}: the statistics say nothing of what it consumes, so nothing "
                    f"makes up for the directions that go"
                )

    def refusal(self, width: Width, size: int) -> str | None:
        if width.size * size > _LARGEST:
            return f"its matrix would have more than {_LARGEST:,} entries; choose pad or select"
        if self.by == "pca" and self.matrix is None and size > width.size:
            return "principal components are fewer than the units; choose another matrix to grow it"
        if self.by == "pca" and self.matrix is None and self._is_turned(width):
            return None
        if width.symmetry not in ("free", "orthogonal") and not self.lossy:
            return (
                f"mixed units ruin it: {width.why}; choose another strategy, or lose what it does "
                f"(--project-lossy)"
            )
        return None

    def _is_turned(self, width: Width) -> bool:
        """Whether a width is normalised and can be turned, or has to be told why it cannot."""
        from converter.structure.axes.axis import AVERAGING

        touches = dict(width.touches)
        is_mixed = width.symmetry in ("free", "orthogonal") and "gain" not in touches
        is_told = not AVERAGING.isdisjoint(touches) and not is_mixed and not self.lossy
        return width.turnable is not None or is_told


@hookimpl
def converter_strategies() -> Iterable[type[Strategy]]:
    yield Project
