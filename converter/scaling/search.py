"""Looks for the factors that bring statistics to a target, from one measurement to the next."""

from __future__ import annotations

import numpy as np

from converter.variable import Array

PROMISED = 0.01
"""How far from the target, as a share of it, a statistic may be in the end."""

# A part of what is promised, as what is measured later may move it again.
_SETTLED = 0.002
_LEAST_RESPONSE = 0.1
_SLOPES = (0.25, 4.0)
_LARGEST_STEP = 4.0  # of the logarithm
_TINY = np.finfo(np.float64).tiny


class Search:
    """The factors of one layer: one number, or one for each unit.

    The logarithm of the statistic is taken for a rising function of that of the factor: of slope 1
    at first, as it is where the layer is homogeneous, and of the slope that was measured then
    (secants, and bisection where these leave what is known to enclose the target).

    Args:
        target: of the statistic.
        floor: what has less is dead, and stays as it is.
        is_proportional: whether the statistic is a multiple of the factor.

    Attributes:
        before: the statistic at first; None while nothing was measured.
        after: as it was measured last.
        dead: which are below the floor.
        is_done: which need no other factor.
        is_stuck: which no factor brings to the target; they stay as they were.
        nearest: of these, what was nearest to the target of all that was measured.
    """

    def __init__(self, target: float, floor: float, *, is_proportional: bool) -> None:
        self._target = target
        self._floor = floor
        self._is_proportional = is_proportional
        self.before: Array | None = None
        self.after: Array = np.asarray(np.nan)
        self.dead: Array = np.asarray(False)
        self.is_done: Array = np.asarray(False)
        self.is_stuck: Array = np.asarray(False)
        self.nearest: Array = np.asarray(np.nan)
        self._x: Array = np.asarray(0.0)
        self.again()

    @property
    def factors(self) -> Array:
        """The factors to be tried next, or found in the end: float64."""
        return np.exp(self._x)

    @property
    def is_off(self) -> bool:
        """Whether one that can be brought to the target is further off than promised."""
        off = np.abs(self.after / self._target - 1) > PROMISED
        return bool((off & ~self.dead & ~self.is_stuck).any())

    def again(self) -> None:
        """Forget what was measured, as other layers have changed; the factors stay."""
        self._low, self._high = np.asarray(-np.inf), np.asarray(np.inf)
        self._best, self._nearest = self._x, np.asarray(np.inf)
        self._last: tuple[Array, Array] | None = None
        self._is_idle: Array = np.asarray(False)
        self.is_done = self.dead | self.is_stuck

    def see(self, values: Array) -> None:
        """Take note of statistics, and look for nothing."""
        if self.before is None:
            self.before = values
            self.dead = values < self._floor
            self._x = np.zeros(values.shape)
            self.is_done = self.is_stuck = np.zeros(values.shape, bool)
            self.nearest = values
            self.again()
        self.after = values

    def tell(self, values: Array) -> None:
        """Take statistics that were measured with the factors, and choose the next ones."""
        self.see(values)
        if self._last is None:
            # Others may have been scaled so that no data reach a unit any more.
            self.dead = self.dead | (values < self._floor)
            self.is_done = self.is_done | self.dead
        x, y = self._x, np.log(np.maximum(values, _TINY) / self._target)
        is_nearer = np.abs(y) < self._nearest
        self._best = np.where(is_nearer, x, self._best)
        self._nearest = np.where(is_nearer, np.abs(y), self._nearest)
        self.nearest = np.where(is_nearer & ~self.is_stuck, values, self.nearest)
        self._low = np.where(y < 0, np.maximum(self._low, x), self._low)
        self._high = np.where(y > 0, np.minimum(self._high, x), self._high)
        is_there = np.abs(y) < _SETTLED
        slope = self._slope(x, y)
        is_enclosed = np.isfinite(self._low) & np.isfinite(self._high)
        is_free = ~self.is_done & ~is_there
        is_idle = is_free & ~is_enclosed & (slope < _LEAST_RESPONSE)
        # Once may be due to others, in a loop.
        stuck = is_idle & self._is_idle
        self._is_idle = is_idle
        self.is_stuck = self.is_stuck | stuck
        largest = np.inf if self._is_proportional else _LARGEST_STEP
        following = x + np.clip(-y / np.clip(slope, *_SLOPES), -largest, largest)
        is_out = is_enclosed & ((following <= self._low) | (following >= self._high))
        if is_out.any():
            following = np.where(is_out, (self._low + self._high) / 2, following)
        self._last = x, y
        # Where nothing moves any more, a factor is as large or small as the steps happened to be.
        self._x = np.where(is_free & ~stuck, following, np.where(stuck, 0.0, x))
        self.is_done = self.is_done | is_there | stuck
        if self._is_proportional:
            self.is_done = np.ones_like(self.is_done)

    def settle(self) -> None:
        """Take the nearest that was found, where nothing better was."""
        self._x = np.where(self.is_done, self._x, self._best)

    def give_up(self) -> None:
        """Leave what is further off than promised as it was at first."""
        off = np.abs(self.after / self._target - 1) > PROMISED
        self.is_stuck = self.is_stuck | (off & ~self.dead)
        self._x = np.where(self.is_stuck, 0.0, self._x)
        self.is_done = self.is_done | self.is_stuck

    def _slope(self, x: Array, y: Array) -> Array:
        if self._last is None:
            return np.ones(y.shape)
        moved = x - self._last[0]
        with np.errstate(divide="ignore", invalid="ignore"):
            found: Array = np.where(np.abs(moved) > _SETTLED, (y - self._last[1]) / moved, 1.0)
        return found
