"""The values that a block has already, for what draws new ones."""

from __future__ import annotations

import math

import numpy as np

from converter.errors import ConverterError
from converter.variable import Array, Region, Variable, regions, shape_of, shifted

PIECE = 1 << 15
"""Entries of a block that are drawn at a time, from one stream. Another number, other values."""

_Moments = tuple[float, float]


class Values:
    """The values that a block has already: its old ones, or those of a template.

    Args:
        variable: where they are.
        block: the region of the block there.
    """

    def __init__(self, variable: Variable, block: Region) -> None:
        self._variable = variable
        self._block = block
        self._moments: _Moments | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the block, which other than in `reinit` need not be that of the new one."""
        return shape_of(self._block)

    @property
    def mean(self) -> float:
        """The mean of the whole block; it is streamed when one asks."""
        return self._found()[0]

    @property
    def std(self) -> float:
        """The standard deviation of the whole block: the square root of the mean square."""
        return self._found()[1]

    def read(self, piece: Region | None = None) -> Array:
        """Return the values in float64: those of a region of the block, or all for None."""
        within = self._block if piece is None else shifted(piece, self._block)
        return np.asarray(self._variable.read(within), np.float64)

    def _found(self) -> _Moments:
        if self._moments is None:
            self._moments = _moments(self)
        return self._moments

    def at(self, piece: Region) -> Values:
        """Return what an initializer gets that draws one piece: `read()` is the piece then."""
        return _Piece(self, piece)


class _Piece(Values):
    def __init__(self, block: Values, piece: Region) -> None:
        super().__init__(block._variable, block._block)
        self._whole = block
        self._piece = piece

    def read(self, piece: Region | None = None) -> Array:
        return self._whole.read(self._piece if piece is None else piece)

    def _found(self) -> _Moments:
        return self._whole._found()


def _moments(values: Values) -> _Moments:
    """Return mean and standard deviation of a block, piece by piece.

    References:
        Chan, Golub and LeVeque, Updating formulae and a pairwise algorithm for computing sample
        variances, 1979.
    """
    count, mean, squares = 0, 0.0, 0.0
    for piece in regions(values.shape, PIECE):
        part = values.read(piece)
        if not np.isfinite(part).all():
            raise ConverterError("the old values have NaN or infinities, which no mean can match")
        more, difference = count + part.size, float(part.mean()) - mean
        squares += float(((part - part.mean()) ** 2).sum())
        squares += difference**2 * count * part.size / more
        mean += difference * part.size / more
        count = more
    return mean, math.sqrt(squares / max(count, 1))
