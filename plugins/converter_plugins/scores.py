"""How much units matter on data: what `select` chooses by, given statistics.

References:
    Sun et al., A simple and effective pruning approach for large language models, 2024 (`wanda`);
    An et al., Fluctuation-based adaptive structured pruning for large language models, 2024
    (`flap`); Hassibi and Stork, Second order derivatives for network pruning: optimal brain
    surgeon, 1993 (`obs`, here with the error of what consumes the units in place of the loss).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from converter import Array
from converter_plugins.repairs import damped, solved

if TYPE_CHECKING:
    from converter.resize.coupled import Consumer
    from converter_plugins.activations import Activations

Score = Callable[["Activations", "Consumer"], Array]

STATISTICS: Mapping[str, tuple[str, ...]] = {
    "mean-abs": ("mean_abs",),
    "std": ("std",),
    "wanda": ("mean", "std"),
    "flap": ("std",),
    "obs": ("mean", "covariance"),
}
"""What has to be known of each consumer."""


def largest(by: str, activations: Activations, consumers: list[Consumer], size: int) -> Array:
    """Return the units whose score is largest, in order: int64 of shape (size,).

    Args:
        by: a key of `STATISTICS` but `obs`.
        activations: the statistics.
        consumers: what consumes the units.
        size: how many.
    """
    score = _SCORES[by]
    total = np.sum(
        [score(activations, consumer)[consumer.places].sum(0) for consumer in consumers], 0
    )
    # Of units that are equal the first stays.
    order = np.argsort(-total, kind="stable")
    found: Array = np.sort(order[:size])
    return found


def _mean_abs(activations: Activations, consumer: Consumer) -> Array:
    return activations.read(consumer.variable.name, "mean_abs") / len(consumer.places)


def _std(activations: Activations, consumer: Consumer) -> Array:
    return activations.read(consumer.variable.name, "std") / len(consumer.places)


def _wanda(activations: Activations, consumer: Consumer) -> Array:
    name = consumer.variable.name
    mean, std = activations.read(name, "mean"), activations.read(name, "std")
    found: Array = (mean**2 + std**2) * consumer.squares()
    return found


def _flap(activations: Activations, consumer: Consumer) -> Array:
    found: Array = activations.read(consumer.variable.name, "std") ** 2 * consumer.squares()
    return found


_SCORES: Mapping[str, Score] = {
    "mean-abs": _mean_abs,
    "std": _std,
    "wanda": _wanda,
    "flap": _flap,
}


def least_missed(
    activations: Activations, consumers: list[Consumer], size: int, ridge: float
) -> Array:
    """Return the units that are left when, one after the other, those go that are missed least.

    Missed is what no combination of the other entries makes up for, by what consumes it.

    Args:
        activations: the statistics.
        consumers: what consumes the units.
        size: how many stay.
        ridge: what is added to each variance, as a share of their mean.
    """
    surgeons = [_Surgeon.of(activations, consumer, ridge) for consumer in consumers]
    left = np.arange(surgeons[0].places.shape[1])
    while len(left) > size:
        missed = np.sum([surgeon.missed(left) for surgeon in surgeons], axis=0)
        # Of units that are equal the first stays.
        place = len(left) - 1 - int(np.argmin(missed[::-1]))
        for surgeon in surgeons:
            surgeon.remove(left[place])
        left = np.delete(left, place)
    return left


@dataclass(eq=False)
class _Surgeon:
    """What one variable makes of its entries, while some of them are removed.

    Attributes:
        places: where the units stand: (times, units).
        inverse: of the products of the entries that are left, (length, length).
        gram: the products of the rows of the variable, which take over what is removed.
    """

    places: Array
    inverse: Array
    gram: Array

    @classmethod
    def of(cls, activations: Activations, consumer: Consumer, ridge: float) -> _Surgeon:
        name = consumer.variable.name
        products = damped(activations.moments(name, centred=consumer.has_bias), ridge)
        inverse = solved(products, np.eye(len(products)), name)
        return cls(consumer.places, inverse, consumer.gram())

    def missed(self, units: Array) -> Array:
        """Return what would be missed of each of some units, were it the only one to go."""
        if len(self.places) == 1:
            (own,) = self.places[:, units]
            found: Array = self.gram[own, own] / self.inverse[own, own]
            return found
        own = self.places[:, units].T
        rows, columns = own[:, :, None], own[:, None, :]
        apart = np.linalg.solve(self.inverse[rows, columns], self.gram[rows, columns])
        missed: Array = np.trace(apart, axis1=1, axis2=2)
        return missed

    def remove(self, unit: int) -> None:
        """Remove a unit, and let all others take over what they can."""
        own = self.places[:, unit]
        taken = np.linalg.solve(self.inverse[np.ix_(own, own)], self.inverse[own]).T
        self.gram -= taken @ self.gram[own]
        self.gram -= self.gram[:, own] @ taken.T
        self.inverse -= taken @ self.inverse[own]
