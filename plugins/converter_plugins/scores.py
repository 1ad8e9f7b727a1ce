"""How much units matter on data: what `select` chooses by, given statistics.

References:
    Sun et al., A simple and effective pruning approach for large language models, 2024 (`wanda`);
    An et al., Fluctuation-based adaptive structured pruning for large language models, 2024
    (`flap`); Hassibi and Stork, Second order derivatives for network pruning: optimal brain
    surgeon, 1993 (`obs`, here with the error of what consumes the units in place of the loss).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np

from converter import Array
from converter_plugins.repairs import damped, solved

if TYPE_CHECKING:
    from converter import Consumer
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
    surgeons = [_Surgeon.of(activations, consumer, size, ridge) for consumer in consumers]
    left = np.arange(consumers[0].places.shape[1])
    while len(left) > size:
        missed = np.sum([surgeon.missed(left) for surgeon in surgeons], axis=0)
        # Of units that are equal the first stays.
        place = len(left) - 1 - int(np.argmin(missed[::-1]))
        for surgeon in surgeons:
            surgeon.remove(left[place])
        left = np.delete(left, place)
    return left


class _Surgeon:
    """What one variable makes of its entries, while some of them are removed.

    With each the inverse of the products loses T R' and the Gram matrix T H' + H T'. These are kept
    apart, as only the rows of the next unit and the blocks of all on the diagonal are needed.

    Args:
        places: where the units stand: (times, units).
        inverse: of the products of the entries, (length, length).
        gram: the products of the rows of the variable, which take over what is removed.
        removed: how many units will be.
    """

    def __init__(self, places: Array, inverse: Array, gram: Array, removed: int) -> None:
        self._own = places.T
        self._inverse, self._gram = inverse, gram
        rows, columns = self._own[:, :, None], self._own[:, None, :]
        self._inverse_blocks = inverse[rows, columns]
        self._gram_blocks = gram[rows, columns]
        shape = (removed * len(places), len(inverse))
        self._t, self._r, self._h = np.empty(shape), np.empty(shape), np.empty(shape)
        self._count = 0

    @classmethod
    def of(cls, activations: Activations, consumer: Consumer, size: int, ridge: float) -> _Surgeon:
        """Begin with all units of a variable, of which `size` are to stay."""
        name = consumer.variable.name
        products = damped(activations.moments(name, centred=consumer.has_bias), ridge)
        inverse = solved(products, np.eye(len(products)), name)
        places = consumer.places
        return cls(places, inverse, consumer.gram(), places.shape[1] - size)

    def missed(self, units: Array) -> Array:
        """Return what would be missed of each of some units, were it the only one to go."""
        inverse, gram = self._inverse_blocks[units], self._gram_blocks[units]
        if self._own.shape[1] == 1:
            found: Array = gram[:, 0, 0] / inverse[:, 0, 0]
            return found
        missed: Array = np.trace(np.linalg.solve(inverse, gram), axis1=1, axis2=2)
        return missed

    def remove(self, unit: int) -> None:
        """Remove a unit, and let all others take over what they can."""
        own, count = self._own[unit], self._count
        t, r, h = self._t[:count], self._r[:count], self._h[:count]
        rows = self._inverse[own] - t[:, own].T @ r
        crossed = self._gram[own] - h[:, own].T @ t - t[:, own].T @ h
        taken = np.linalg.solve(rows[:, own], rows)
        halved = crossed - crossed[:, own] @ taken / 2
        new = slice(count, count + len(own))
        self._t[new], self._r[new], self._h[new] = taken, rows, halved
        self._count += len(own)
        t, r, h = (values[:, self._own] for values in (taken, rows, halved))
        self._inverse_blocks -= np.einsum("kua,kub->uab", t, r)
        cross = np.einsum("kua,kub->uab", t, h)
        self._gram_blocks -= cross + cross.transpose(0, 2, 1)
