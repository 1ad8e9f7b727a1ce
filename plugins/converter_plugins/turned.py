"""A normalised width turned into fewer directions, its gains and shifts moved to what consumes it.

The stream x of n units is normalised to z, of mean zero and n squares at most, and what consumes it
takes z g + b. With K (n, m) for the directions that stay and F (N, m) for a frame of orthonormal
columns, what makes the stream is multiplied with r K F', r = sqrt(N / n): then the variance over N
units is what it was over n, epsilon included, and the normalisation gives r F K' z. Its gain is 1 / r
from now on, and what consumes it takes F K' diag(g).

Where a mean is taken off, K and F have columns of sum zero. Then the direction e of equal units is
free: the shift is e from now on, and what consumes it takes e b' on top.

References:
    Ashkboos et al., SliceGPT: compress large language models by deleting rows and columns, 2024.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from converter import Array, Coupled, Matrix, PlanError, WidthMap
from converter_plugins.matrices import largest

if TYPE_CHECKING:
    from converter import Consumer
    from converter.structure.axes.axis import Behind, Normalised
    from converter_plugins.activations import Activations

# Below that share of the largest one, a gain lets nothing be told of what it multiplies.
_LEAST = 1e-6
_RIDGE = 1e-6
_Norm = tuple[str | None, str | None]


def turned(coupled: Coupled, size: int, activations: Activations | None) -> WidthMap:
    """Return what becomes of a normalised width that is to have fewer units.

    Args:
        coupled: the width.
        size: how many units it is to have.
        activations: by which the directions are chosen; None for what makes the units.

    Raises:
        PlanError: it cannot be turned, or the statistics say nothing of what consumes it.
    """
    width = coupled.structure.widths[coupled.width]
    normalised = width.normalised
    if normalised is None or not normalised.behind:
        raise PlanError(f"{width.name}: {_why_not(coupled)}; choose select, or truncate")
    if factors := coupled.structure.factors.get(width.name, ()):
        raise PlanError(
            f"{width.name}: {factors[0].node} multiplies with {factors[0].number:g}, which moves "
            f"with the number of its units, and nothing makes up for that; choose select"
        )
    known = [] if activations is None else activations.consumers(coupled, ("mean", "covariance"))
    fold = Turned(coupled, normalised, size, activations, tuple(known))
    produce = Matrix((width.size, size), lambda: fold.directions @ fold.frame.T)
    return WidthMap(produce, produce.T, rescale=fold.ratio, fold=fold)


def _why_not(coupled: Coupled) -> str:
    """Return what keeps a normalised width from being turned, as half a sentence."""
    for name, uses in coupled.structure.uses.items():
        if any({"produce", "consume"} <= set(used.get(coupled.width, ())) for used in uses):
            return (
                f"{name} makes its units and takes them behind a normalisation, whose gain no "
                f"rotation of a tied table can take on"
            )
    width = coupled.structure.widths[coupled.width]
    if "nonlinear" in dict(width.touches):
        return f"mixed units ruin it: {width.why}"
    return (
        "mixed units ruin it: they are normalised, and not all that is made of them is consumed "
        "right behind one normalisation, its gain and its shift"
    )


class _Told(NamedTuple):
    """What is told of what a normalisation gives, from the directions that stay.

    It is `mean + (t * share - mean @ directions) @ slopes.T` of what the new one gives, t.

    Attributes:
        slopes: (n, m).
        mean: (n,).
        share: of the deviation, which the new normalisation makes up for.
    """

    slopes: Array
    mean: Array
    share: float


@dataclass(frozen=True, eq=False)
class Turned:
    """A normalised width that is turned, and the `Fold` of what stands behind.

    Attributes:
        coupled: the width.
        normalised: what makes it and what consumes it.
        size: how many units it will have.
        activations: statistics of what consumes it, or None.
        known: what these know of.
    """

    coupled: Coupled
    normalised: Normalised
    size: int
    activations: Activations | None
    known: tuple[Consumer, ...]

    @property
    def ratio(self) -> float:
        """The factor of what makes the units."""
        return math.sqrt(self.size / self.coupled.size)

    @cached_property
    def frame(self) -> Array:
        """Orthonormal columns (N, m), of sum zero where one direction has to be free."""
        is_free = self.normalised.is_centred or bool(self._shifts)
        return centred_frame(self.size) if is_free else np.eye(self.size)

    @cached_property
    def directions(self) -> Array:
        """The directions (n, m) that stay."""
        size = self.coupled.size
        within = centred_frame(size) if self.normalised.is_centred else np.eye(size)
        squares = sum((m.squares for m in self._moments.values()), np.zeros((size, size)))
        if self.activations is None:
            for rows in self.coupled.rows("produce"):
                squares += rows.T @ rows
        return within @ largest(within.T @ squares @ within, self.frame.shape[1])

    def number(self, variable: str) -> float | None:
        if variable in self._gains:
            return 1 / self.ratio
        return self.size**-0.5 if variable in self._shifts else None

    def matrices(self, variable: str, of: str) -> tuple[Matrix, Matrix] | None:
        one = self._behind.get(of)
        if one is None:
            return None
        shape = (self.coupled.size, self.size)
        gain = partial(self._read, one.gain, variable, of, 1.0)
        shift = partial(self._read, one.shift, variable, of, 0.0)
        return (
            Matrix(shape, partial(self._of_gradients, one, gain)),
            Matrix(shape[::-1], partial(self._of_values, one, gain, shift)),
        )

    @cached_property
    def _behind(self) -> Mapping[str, Behind]:
        return {one.variable: one for one in self.normalised.behind}

    @cached_property
    def _gains(self) -> frozenset[str]:
        return frozenset(one.gain for one in self.normalised.behind if one.gain is not None)

    @cached_property
    def _shifts(self) -> frozenset[str]:
        return frozenset(one.shift for one in self.normalised.behind if one.shift is not None)

    def _of_values(
        self, one: Behind, gain: Callable[[], Array], shift: Callable[[], Array]
    ) -> Array:
        told = self._told(one)
        found: Array = told.share * self.frame @ told.slopes.T * gain()
        if one.gain is None:
            found /= self.ratio
        if one.shift is not None:
            rest = told.mean - told.slopes @ (self.directions.T @ told.mean)
            found += (shift() + gain() * rest) * self.size**-0.5
        return found

    def _of_gradients(self, one: Behind, gain: Callable[[], Array]) -> Array:
        found: Array = _inverse(gain())[:, None] * (self.directions @ self.frame.T)
        return found if one.gain is not None else found * self.ratio

    def _told(self, one: Behind) -> _Told:
        """Return what the directions that stay tell of the others, by the line that fits best."""
        moments = self._moments.get((one.gain, one.shift))
        kept = self.directions
        if moments is None:
            return _Told(kept, np.zeros(len(kept)), 1.0)
        squares = moments.squares
        total = np.trace(squares)
        share = math.sqrt(np.trace(kept.T @ squares @ kept) / total) if total > 0 else 1.0
        mean = moments.mean if one.shift is not None else np.zeros(len(kept))
        squares = squares - np.outer(mean, mean)
        among = kept.T @ squares @ kept
        damped = among + _RIDGE * (np.trace(among) / len(among) or 1.0) * np.eye(len(among))
        rest = squares @ kept - kept @ among
        return _Told(kept + np.linalg.solve(damped, rest.T).T, mean, share)

    @cached_property
    def _moments(self) -> Mapping[_Norm, _Moments]:
        """What the normalisations give before gain and shift, in the mean over consumers."""
        found: dict[_Norm, list[_Moments]] = {}
        for consumer in self.known:
            one = self._behind.get(consumer.variable.name)
            if one is not None:
                found.setdefault((one.gain, one.shift), []).extend(self._measured(consumer, one))
        return {
            norm: _Moments(*(np.mean(part, axis=0) for part in zip(*several, strict=True)))
            for norm, several in found.items()
        }

    def _measured(self, consumer: Consumer, one: Behind) -> Iterator[_Moments]:
        assert self.activations is not None
        name = consumer.variable.name
        scale = _inverse(self._read(one.gain, name, name, 1.0))
        means = self.activations.read(name, "mean")
        covariance = self.activations.moments(name, centred=True)
        for own in consumer.places:
            mean = scale * (means[own] - self._read(one.shift, name, name, 0.0))
            squares = covariance[np.ix_(own, own)] * np.outer(scale, scale)
            yield _Moments(mean, squares + np.outer(mean, mean))

    def _read(self, name: str | None, variable: str, of: str, otherwise: float) -> Array:
        """Return a gain or a shift; of an average of what consumes it, the average.

        Args:
            name: of the gain or the shift.
            variable: what consumes the units, or an average of that.
            of: the variable that it is or belongs to.
            otherwise: what stands for one that is not there.
        """
        if name is None:
            return np.full(self.coupled.size, otherwise)
        checkpoint = self.coupled.checkpoint
        roles = checkpoint.roles()
        found = checkpoint[name]
        if variable != of and variable in roles:
            role = roles[variable]
            like = [n for n, r in roles.items() if r.of == name and r.kind == role.kind]
            like = [n for n in like if roles[n].slot == role.slot]
            same = name + variable.removeprefix(of)
            if like and role.kind in ("average", "slot"):
                found = checkpoint[same if same in like else like[0]]
        return np.asarray(found.read(), np.float64).reshape(-1)


class _Moments(NamedTuple):
    """Of what a normalisation gives: the mean (n,), and the mean products (n, n)."""

    mean: Array
    squares: Array


def centred_frame(size: int) -> Array:
    """Return orthonormal columns (size, size - 1), each of sum zero: those of Helmert."""
    found = np.zeros((size, size - 1))
    for column in range(size - 1):
        found[: column + 1, column] = 1
        found[column + 1, column] = -(column + 1)
        found[:, column] /= math.sqrt((column + 1) * (column + 2))
    return found


def _inverse(gain: Array) -> Array:
    least = _LEAST * np.abs(gain).max(initial=0)
    found: Array = np.divide(1, gain, out=np.zeros_like(gain), where=np.abs(gain) > least)
    return found
