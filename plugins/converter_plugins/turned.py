"""A normalised width turned into fewer directions, its gains and shifts moved to what consumes it.

The stream x of n units is normalised to z, of mean zero and n squares at most, and what consumes it
takes z g + b. With K (n, m) for the directions that stay and F (N, m) for a frame of orthonormal
columns, what makes the stream is multiplied with r K F', r = sqrt(N / n): then the variance over N
units is what it was over n, epsilon included, and the normalisation gives r F K' z. Its gain is
1 / r from now on, and what consumes it takes F K' diag(g).

Where a mean is taken off, K and F have columns of sum zero. Then the direction e of equal units is
free: the shift is e from now on, and what consumes it takes e b' on top.

References:
    Ashkboos et al., SliceGPT: compress large language models by deleting rows and columns, 2024.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache, partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from converter import Array, Coupled, Matrix, PlanError, WidthMap
from converter.names.fresh import COPIES
from converter_plugins.matrices import largest
from converter_plugins.repairs import damped, solved

if TYPE_CHECKING:
    from converter import Consumer
    from converter.structure.axes.axis import Turnable
    from converter_plugins.activations import Activations

# Below that share of the largest one, a gain lets nothing be told of what it multiplies.
_LEAST = 1e-6
_RIDGE = 1e-6


class _Norm(NamedTuple):
    """The variables of a normalisation: its gain and its shift, each or neither."""

    gain: str | None
    shift: str | None


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
    if width.turnable is None:
        raise PlanError(f"{width.name}: {_why_not(coupled)}; choose select, or truncate")
    if factors := coupled.structure.factors.get(width.name, ()):
        raise PlanError(
            f"{width.name}: {factors[0].node} multiplies with {factors[0].number:g}, which moves "
            f"with the number of its units, and nothing makes up for that; choose select"
        )
    known = [] if activations is None else activations.consumers(coupled, ("mean", "covariance"))
    fold = Turned(coupled, width.turnable, size, activations, tuple(known))
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


class _Moments(NamedTuple):
    """Of what a normalisation gives: the mean (n,), and the mean products (n, n)."""

    mean: Array
    squares: Array

    def products(self, *, is_centred: bool) -> Array:
        """Return the mean products, or the covariance."""
        return self.squares - np.outer(self.mean, self.mean) if is_centred else self.squares


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


class _Cached(NamedTuple):
    """Functions of a `Turned` that remember what they gave last."""

    told: Callable[[_Norm], _Told]
    of_values: Callable[[_Norm, _Norm], Array]
    of_gradients: Callable[[_Norm], Array]


@dataclass(frozen=True, eq=False)
class Turned:
    """A normalised width that is turned, and the `Fold` of what stands behind.

    Attributes:
        coupled: the width.
        turnable: what consumes it.
        size: how many units it will have.
        activations: statistics of what consumes it, or None.
        known: what these know of.
    """

    coupled: Coupled
    turnable: Turnable
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
        is_free = self.turnable.is_centred or bool(self._shifts)
        return centred_frame(self.size) if is_free else np.eye(self.size)

    @cached_property
    def directions(self) -> Array:
        """The directions (n, m) that stay."""
        size = self.coupled.size
        within = centred_frame(size) if self.turnable.is_centred else np.eye(size)
        squares = np.zeros((size, size))
        for norm in self._by_norm:
            squares += self._moments(norm).products(is_centred=norm.shift is not None)
        if self.activations is None:
            for rows in self.coupled.rows("produce"):
                squares += rows.T @ rows
        return within @ largest(within.T @ squares @ within, self.frame.shape[1])

    def number(self, variable: str) -> float | None:
        if variable in self._gains:
            return 1 / self.ratio
        return self.size**-0.5 if variable in self._shifts else None

    def matrices(self, variable: str, of: str) -> tuple[Matrix, Matrix] | None:
        norm = self._behind.get(of)
        if norm is None:
            return None
        held = _Norm(*(name and self._like(name, variable, of) for name in norm))
        shape = (self.coupled.size, self.size)
        return (
            Matrix(shape, partial(self._cached.of_gradients, held), is_held=False),
            Matrix(shape[::-1], partial(self._cached.of_values, norm, held), is_held=False),
        )

    def untold(self) -> list[str]:
        """Return what consumes the units and of which no statistics tell anything."""
        if self.activations is None:
            return []
        return [name for name, norm in self._behind.items() if norm not in self._by_norm]

    @cached_property
    def _behind(self) -> Mapping[str, _Norm]:
        return {one.variable: _Norm(one.gain, one.shift) for one in self.turnable.behind}

    @cached_property
    def _by_norm(self) -> Mapping[_Norm, list[Consumer]]:
        """What the statistics know of, by the normalisation that stands before it."""
        found: dict[_Norm, list[Consumer]] = {}
        for consumer in self.known:
            if (norm := self._behind.get(consumer.variable.name)) is not None:
                found.setdefault(norm, []).append(consumer)
        return found

    @cached_property
    def _gains(self) -> frozenset[str]:
        return frozenset(norm.gain for norm in self._behind.values() if norm.gain is not None)

    @cached_property
    def _shifts(self) -> frozenset[str]:
        return frozenset(norm.shift for norm in self._behind.values() if norm.shift is not None)

    @cached_property
    def _cached(self) -> _Cached:
        # What stands behind one normalisation mostly comes one after the other; all of it at once
        # may be more than there is memory.
        keep = lru_cache(maxsize=1)
        return _Cached(keep(self._told), keep(self._of_values), keep(self._of_gradients))

    def _of_values(self, norm: _Norm, held: _Norm) -> Array:
        """Return what a variable is mixed by that consumes the units: (N, n).

        Args:
            norm: the gain and the shift that stand before it.
            held: these, or the averages of them that an average of it goes with.
        """
        told = self._cached.told(norm)
        gain = self._read(held.gain, 1.0)
        found: Array = told.share * self.frame @ told.slopes.T * gain
        if norm.gain is None:
            found /= self.ratio
        if norm.shift is not None:
            rest = told.mean - told.slopes @ (self.directions.T @ told.mean)
            found += (self._read(held.shift, 0.0) + gain * rest) * self.size**-0.5
        return found

    def _of_gradients(self, held: _Norm) -> Array:
        """Return what gradients are turned by of what consumes the units: (n, N)."""
        gain = _inverse(self._read(held.gain, 1.0))
        found: Array = gain[:, None] * (self.directions @ self.frame.T)
        return found if held.gain is not None else found * self.ratio

    def _told(self, norm: _Norm) -> _Told:
        """Return what the directions that stay tell of the others, by the line that fits best."""
        kept = self.directions
        if norm not in self._by_norm:
            return _Told(kept, np.zeros(len(kept)), 1.0)
        moments = self._moments(norm)
        total = np.trace(moments.squares)
        left = np.trace(kept.T @ moments.squares @ kept)
        # What has no gain may be the stream itself, which nothing divides by its deviation.
        share = math.sqrt(left / total) if total > 0 and norm.gain is not None else 1.0
        # Only a shift can take the mean.
        mean = moments.mean * (norm.shift is not None)
        squares = moments.products(is_centred=norm.shift is not None)
        among = kept.T @ squares @ kept
        rest = squares @ kept - kept @ among
        subject = self._by_norm[norm][0].variable.name
        slopes = kept + solved(damped(among, _RIDGE), rest.T, subject, cure="").T
        return _Told(slopes, mean, share)

    def _moments(self, norm: _Norm) -> _Moments:
        """Return what a normalisation gives before its gain and shift, in the mean of consumers."""
        found = [one for consumer in self._by_norm[norm] for one in self._measured(consumer, norm)]
        return _Moments(*(np.mean(part, axis=0) for part in zip(*found, strict=True)))

    def _measured(self, consumer: Consumer, norm: _Norm) -> Iterator[_Moments]:
        assert self.activations is not None
        name = consumer.variable.name
        scale = _inverse(self._read(norm.gain, 1.0))
        shift = self._read(norm.shift, 0.0)
        means = self.activations.read(name, "mean")
        covariance = self.activations.moments(name, centred=True)
        for own in consumer.places:
            mean = scale * (means[own] - shift)
            squares = covariance[np.ix_(own, own)] * np.outer(scale, scale)
            yield _Moments(mean, squares + np.outer(mean, mean))

    def _like(self, name: str, variable: str, of: str) -> str:
        """Return a gain or a shift; for an average of what consumes it, the average of that kind.

        Args:
            name: of the gain or the shift.
            variable: what consumes the units, or belongs to that.
            of: what consumes them.
        """
        roles = self.coupled.checkpoint.roles()
        role = roles[variable]
        if variable == of or (role.kind == "slot" and role.slot not in COPIES):
            return name
        # What zero-debiasing keeps beside an average goes with the averages of the others.
        wanted = replace(role, of=name, slot=None if role.kind == "average" else role.slot)
        found = [other for other, own in roles.items() if own == wanted]
        same = name + variable.removeprefix(of)
        return same if same in found else next(iter(found), name)

    def _read(self, name: str | None, otherwise: float) -> Array:
        """Return the numbers of a gain or a shift; where there is none, what stands for it."""
        if name is None:
            return np.full(self.coupled.size, otherwise)
        values = self.coupled.checkpoint[name].read()
        return np.asarray(values, np.float64).reshape(-1)


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
