"""What makes up for units that `select` removes: their mean, or what the others tell of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from converter import Array, InputError, Mending

if TYPE_CHECKING:
    from converter_plugins.activations import Activations


@dataclass(frozen=True, eq=False)
class Mean:
    """Puts the mean of what goes into the bias behind."""

    activations: Activations
    mixes: ClassVar[bool] = False
    needs: ClassVar[tuple[str, ...]] = ("mean",)

    def knows(self, variable: str) -> bool:
        return self.activations.knows(variable)

    def mending(self, variable: str, length: int, kept: Array, *, has_bias: bool) -> Mending:
        shift = self.activations.read(variable, "mean")
        shift[kept] = 0
        return Mending(None, shift)


@dataclass(frozen=True, eq=False)
class LeastSquares:
    """Tells what goes from what stays, by the line that fits best.

    Attributes:
        activations: the statistics.
        ridge: what is added to each variance, as a share of their mean.
    """

    activations: Activations
    ridge: float
    mixes: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ("mean", "covariance")

    def knows(self, variable: str) -> bool:
        return self.activations.knows(variable)

    def mending(self, variable: str, length: int, kept: Array, *, has_bias: bool) -> Mending:
        gone = np.setdiff1d(np.arange(length), kept)
        # Without a bias nothing takes a constant: the line goes through zero.
        products = self.activations.moments(variable, centred=has_bias)
        among = damped(products[np.ix_(kept, kept)], self.ridge)
        told = solved(among, products[np.ix_(kept, gone)], variable)
        matrix = np.zeros((len(kept), length))
        matrix[np.arange(len(kept)), kept] = 1
        matrix[:, gone] = told
        shift = np.zeros(length)
        if has_bias:
            mean = self.activations.read(variable, "mean")
            shift[gone] = mean[gone] - mean[kept] @ told
        return Mending(matrix, shift)


def damped(products: Array, ridge: float) -> Array:
    """Return a matrix of products with a share of the mean of its diagonal added to that."""
    mean = float(np.diagonal(products).mean()) if len(products) else 0.0
    # Of units that are all zero nothing follows, whatever is added.
    found: Array = products + (ridge * mean or 1.0) * np.eye(len(products))
    return found


def solved(
    matrix: Array,
    right: Array,
    variable: str,
    cure: str = ", or add more to the variances (--select-ridge)",
) -> Array:
    """Return what a positive definite matrix has to be multiplied with to give another one.

    Args:
        matrix: of covariances, damped.
        right: the product.
        variable: that consumes what has them.
        cure: what else helps but measuring again.

    Raises:
        InputError: it is not positive definite.
    """
    try:
        np.linalg.cholesky(matrix)
        found: Array = np.linalg.solve(matrix, right)
    except np.linalg.LinAlgError:
        raise InputError(
            f"{variable}: the covariance of what it consumes is none, as some combination of its "
            f"units would have a negative variance; measure it again{cure}"
        ) from None
    return found
