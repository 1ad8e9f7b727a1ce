"""The built-in initializers.

References:
    tensorflow/python/ops/init_ops.py of TensorFlow 1.15, whose distributions these are;
    Glorot and Bengio, Understanding the difficulty of training deep feedforward neural networks,
    2010; He et al., Delving deep into rectifiers, 2015; LeCun et al., Efficient backprop, 1998;
    Saxe et al., Exact solutions to the nonlinear dynamics of learning, 2013 (orthogonal);
    Le, Jaitly and Hinton, A simple way to initialize recurrent networks, 2015 (identity);
    Sussillo and Abbott, Random walk initialization, 2014 (uniform_unit_scaling).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, TypeAlias

import numpy as np

from converter.errors import UsageError
from converter.initializer import Initializer, Zeros
from converter.options import option
from converter.variable import Array

if TYPE_CHECKING:
    from converter.values import Values

Shape = tuple[int, ...]
Stream: TypeAlias = "np.random.Generator"

CUT_STD = 0.87962566103423978
"""The standard deviation of a standard normal that is cut off at 2: what TensorFlow divides by."""


def _cut_normal(rng: Stream, shape: Shape) -> Array:
    """Return standard normal numbers; those beyond 2 are drawn again until none is."""
    values = rng.standard_normal(shape)
    flat = values.reshape(-1)
    beyond = np.flatnonzero(np.abs(flat) > 2)
    while beyond.size:
        flat[beyond] = rng.standard_normal(beyond.size)
        beyond = beyond[np.abs(flat[beyond]) > 2]
    return values


def _at_least(initializer: Initializer, field: str, least: float) -> None:
    if (value := getattr(initializer, field)) < least:
        raise UsageError(f"{initializer.name}: {field} must be {least:g} or more, got {value:g}")


@dataclass(frozen=True)
class Ones(Initializer):
    """Ones."""

    name: ClassVar[str] = "ones"
    for_kernels: ClassVar[bool] = False

    def __call__(self, rng: Stream, shape: Shape, *_: object) -> Array:
        return np.ones(shape)


@dataclass(frozen=True)
class Constant(Initializer):
    """One number everywhere."""

    name: ClassVar[str] = "constant"
    for_kernels: ClassVar[bool] = False
    value: float = option(help="the number")

    def __call__(self, rng: Stream, shape: Shape, *_: object) -> Array:
        return np.full(shape, self.value)


@dataclass(frozen=True)
class Normal(Initializer):
    """Normal numbers."""

    name: ClassVar[str] = "normal"
    mean: float = option(0.0, help="their mean")
    stddev: float = option(0.05, help="their standard deviation")

    def __post_init__(self) -> None:
        super().__post_init__()
        _at_least(self, "stddev", 0)

    def __call__(self, rng: Stream, shape: Shape, *_: object) -> Array:
        return self.mean + self.stddev * rng.standard_normal(shape)


@dataclass(frozen=True)
class TruncatedNormal(Initializer):
    """Normal numbers, none of them further than two standard deviations from the mean.

    What is further is drawn again, as in TensorFlow: the standard deviation of the result is 0.88
    times the one that is given.
    """

    name: ClassVar[str] = "truncated_normal"
    mean: float = option(0.0, help="their mean")
    stddev: float = option(0.05, help="their standard deviation before the cut")

    def __post_init__(self) -> None:
        super().__post_init__()
        _at_least(self, "stddev", 0)

    def __call__(self, rng: Stream, shape: Shape, *_: object) -> Array:
        return self.mean + self.stddev * _cut_normal(rng, shape)


@dataclass(frozen=True)
class Uniform(Initializer):
    """Numbers that are equally likely between two bounds."""

    name: ClassVar[str] = "uniform"
    minval: float = option(-0.05, help="the lower bound")
    maxval: float = option(0.05, help="the upper bound")

    def __post_init__(self) -> None:
        super().__post_init__()
        _at_least(self, "maxval", self.minval)

    def __call__(self, rng: Stream, shape: Shape, *_: object) -> Array:
        return self.minval + (self.maxval - self.minval) * rng.random(shape)


@dataclass(frozen=True)
class VarianceScaling(Initializer):
    """Numbers of variance scale / fan.

    `truncated_normal` (also called `normal`) is corrected for what the cut takes away from the
    variance, as in TensorFlow 1.15; 1.4 did not do so yet.
    """

    name: ClassVar[str] = "variance_scaling"
    scale: float = option(1.0, help="the variance times the fan; more than 0")
    mode: Literal["fan_in", "fan_out", "fan_avg"] = option("fan_in", help="which fan")
    distribution: Literal["truncated_normal", "untruncated_normal", "normal", "uniform"] = option(
        "truncated_normal", help="what is drawn"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.scale <= 0:
            raise UsageError(f"{self.name}: scale must be more than 0, got {self.scale:g}")

    def __call__(self, rng: Stream, shape: Shape, fan_in: int, fan_out: int, *_: object) -> Array:
        fan = {"fan_in": fan_in, "fan_out": fan_out, "fan_avg": (fan_in + fan_out) / 2}[self.mode]
        std = math.sqrt(self.scale / max(1.0, fan))
        if self.distribution == "uniform":
            return math.sqrt(3.0) * std * (2 * rng.random(shape) - 1)
        if self.distribution == "untruncated_normal":
            return std * rng.standard_normal(shape)
        return std / CUT_STD * _cut_normal(rng, shape)


@dataclass(frozen=True)
class _Scaled(Initializer):
    """A variance scaling under a name of its own."""

    scaling: ClassVar[VarianceScaling]

    def __call__(self, rng: Stream, shape: Shape, fan_in: int, fan_out: int, *_: object) -> Array:
        return self.scaling(rng, shape, fan_in, fan_out)


@dataclass(frozen=True)
class GlorotUniform(_Scaled):
    """Uniform up to sqrt(6 / (fan_in + fan_out)): what TensorFlow starts variables with."""

    name: ClassVar[str] = "glorot_uniform"
    scaling: ClassVar[VarianceScaling] = VarianceScaling(1.0, "fan_avg", "uniform")


@dataclass(frozen=True)
class GlorotNormal(_Scaled):
    """Truncated normal of variance 2 / (fan_in + fan_out)."""

    name: ClassVar[str] = "glorot_normal"
    scaling: ClassVar[VarianceScaling] = VarianceScaling(1.0, "fan_avg", "truncated_normal")


@dataclass(frozen=True)
class HeUniform(_Scaled):
    """Uniform up to sqrt(6 / fan_in), for ReLU."""

    name: ClassVar[str] = "he_uniform"
    scaling: ClassVar[VarianceScaling] = VarianceScaling(2.0, "fan_in", "uniform")


@dataclass(frozen=True)
class HeNormal(_Scaled):
    """Truncated normal of variance 2 / fan_in, for ReLU."""

    name: ClassVar[str] = "he_normal"
    scaling: ClassVar[VarianceScaling] = VarianceScaling(2.0, "fan_in", "truncated_normal")


@dataclass(frozen=True)
class LecunUniform(_Scaled):
    """Uniform up to sqrt(3 / fan_in), for tanh and SELU."""

    name: ClassVar[str] = "lecun_uniform"
    scaling: ClassVar[VarianceScaling] = VarianceScaling(1.0, "fan_in", "uniform")


@dataclass(frozen=True)
class LecunNormal(_Scaled):
    """Truncated normal of variance 1 / fan_in, for tanh and SELU."""

    name: ClassVar[str] = "lecun_normal"
    scaling: ClassVar[VarianceScaling] = VarianceScaling(1.0, "fan_in", "truncated_normal")


@dataclass(frozen=True)
class UniformUnitScaling(Initializer):
    """Uniform up to factor * sqrt(3 / fan_in): what TensorFlow started variables with before 1.0.

    The factor is 1 where what follows is linear, about 1.43 for ReLU and 1.15 for tanh.
    """

    name: ClassVar[str] = "uniform_unit_scaling"
    factor: float = option(1.0, help="what the bound is multiplied by")

    def __call__(self, rng: Stream, shape: Shape, fan_in: int, *_: object) -> Array:
        # TensorFlow takes the product of all sizes but the last here, so 1 for a vector.
        inputs = fan_in if len(shape) > 1 else 1
        limit = self.factor * math.sqrt(3.0 / max(1, inputs))
        return limit * (2 * rng.random(shape) - 1)


@dataclass(frozen=True)
class Orthogonal(Initializer):
    """A random matrix with orthonormal columns, or rows where there are fewer of them.

    Axes before the last count as one, as in TensorFlow: the rows.
    """

    name: ClassVar[str] = "orthogonal"
    whole: ClassVar[bool] = True
    gain: float = option(1.0, help="what the matrix is multiplied by")

    def refusal(self, shape: Shape) -> str | None:
        return None if len(shape) > 1 else "only a matrix is orthogonal"

    def __call__(self, rng: Stream, shape: Shape, *_: object) -> Array:
        rows, columns = math.prod(shape[:-1]), shape[-1]
        q, r = np.linalg.qr(rng.standard_normal((max(rows, columns), min(rows, columns))))
        # Without the signs the distribution is not uniform over orthogonal matrices.
        q *= np.where(np.diagonal(r) < 0, -1.0, 1.0)
        return self.gain * (q if rows >= columns else q.T).reshape(shape)


@dataclass(frozen=True)
class Identity(Initializer):
    """The identity matrix: ones on the diagonal, zeros elsewhere."""

    name: ClassVar[str] = "identity"
    whole: ClassVar[bool] = True
    gain: float = option(1.0, help="what stands on the diagonal")

    def refusal(self, shape: Shape) -> str | None:
        return None if len(shape) == 2 else "only a matrix of two axes has a diagonal"

    def __call__(self, rng: Stream, shape: Shape, *_: object) -> Array:
        rows, columns = shape
        return self.gain * np.eye(rows, columns)


@dataclass(frozen=True)
class Match(Initializer):
    """Normal numbers of the mean and the standard deviation that the old values have."""

    name: ClassVar[str] = "match"
    for_kernels: ClassVar[bool] = False
    needs: ClassVar[Literal["old", "template"] | None] = "old"

    def __call__(
        self,
        rng: Stream,
        shape: Shape,
        fan_in: int,
        fan_out: int,
        old: Values | None,
        *_: object,
    ) -> Array:
        assert old is not None
        return old.mean + old.std * rng.standard_normal(shape)


@dataclass(frozen=True)
class Template(Initializer):
    """The values of the template, such as a freshly initialised checkpoint of the same model."""

    name: ClassVar[str] = "template"
    for_kernels: ClassVar[bool] = False
    needs: ClassVar[Literal["old", "template"] | None] = "template"

    def __call__(
        self,
        rng: Stream,
        shape: Shape,
        fan_in: int,
        fan_out: int,
        old: Values | None,
        template: Values | None,
        /,
    ) -> Array:
        assert template is not None
        return template.read()


BUILT_IN: Mapping[str, type[Initializer]] = {
    initializer.name: initializer
    for initializer in (
        Constant,
        GlorotNormal,
        GlorotUniform,
        HeNormal,
        HeUniform,
        Identity,
        LecunNormal,
        LecunUniform,
        Match,
        Normal,
        Ones,
        Orthogonal,
        Template,
        TruncatedNormal,
        Uniform,
        UniformUnitScaling,
        VarianceScaling,
        Zeros,
    )
}
"""The initializers that need no plugin, by name."""
