"""Moves batch normalisations into the kernels before them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from converter import NothingToDoError, PlanError, Strategy, hookimpl, option

if TYPE_CHECKING:
    from converter import Checkpoint, Variable
    from converter.scaling.fold import Foldable
    from converter.scaling.normed import Left

_FEW = 3


@dataclass(frozen=True)
class FoldBatchnorm(Strategy):
    """Move batch normalisations into the kernels before them; the outputs in inference stay.

    A kernel takes the factor of its normalisation, gamma / sqrt(variance + epsilon), and its bias,
    or else beta, takes the offset. The normalisation stays in the graph and does nothing there:
    gamma 1, beta 0, mean 0, variance 1 - epsilon. Where a ReLU stands between, the factor moves
    and the offset stays behind. Averages are folded as their variables are.

    Training goes on from there in another way: it normalises by the moments of each batch.

    Example:
        convert ckpt model.ckpt --plugin fold-batchnorm -o out/
    """

    name: ClassVar[str] = "fold-batchnorm"
    only: tuple[str, ...] = option(
        (),
        help="only the normalisations in these scopes; one that cannot be folded is refused",
        metavar="GLOB",
    )

    def apply(self, checkpoint: Checkpoint) -> Iterable[Variable]:
        from converter.scaling.fold import folded
        from converter.structure.infer import structure_of

        chosen, _ = self._chosen(checkpoint)
        return folded(checkpoint, structure_of(checkpoint), list(chosen.values()))

    def notes(self, checkpoint: Checkpoint) -> Iterable[str]:
        chosen, left = self._chosen(checkpoint)
        more = f" and {len(chosen) - _FEW} more" if len(chosen) > _FEW else ""
        yield (
            f"keeps the outputs in inference; normalisations that are folded: "
            f"{', '.join(list(chosen)[:_FEW])}{more}"
        )
        for name, reason in left[:_FEW]:
            yield f"{name} stays: {reason}"
        if len(left) > _FEW:
            yield f"{len(left) - _FEW} more stay; --fold-batchnorm-only NAME tells why"

    def _chosen(self, checkpoint: Checkpoint) -> tuple[dict[str, Foldable], tuple[Left, ...]]:
        from converter.forward.signature import check_callable
        from converter.patterns import matching
        from converter.scaling.normed import foldable
        from converter.structure.infer import structure_of

        found, left = foldable(checkpoint, structure_of(checkpoint))
        reasons = dict(left)
        scopes = (*found, *reasons)
        if self.only and scopes:
            wanted = {
                name
                for glob in self.only
                for name in matching(glob, scopes, "batch normalisations")
            }
            if name := next((name for name in scopes if name in wanted & reasons.keys()), None):
                raise PlanError(f"{name}: it cannot be folded: {reasons[name]}; choose others")
            return {name: one for name, one in found.items() if name in wanted}, ()
        if not found:
            if not left:
                check_callable(checkpoint)
            what = "; ".join(f"{name}: {reason}" for name, reason in left[:_FEW])
            raise NothingToDoError(
                f"{checkpoint.path}: no batch normalisation can be folded"
                + (f" ({what})" if what else ": there is none")
            )
        return found, left


@hookimpl
def converter_strategies() -> Iterable[type[Strategy]]:
    yield FoldBatchnorm
