"""A model of two layers that resizing strategies are tried on: y = W2 tanh(W1 (x A) + b).

Its widths: `features`, which only linear ops touch, and `units`, behind a nonlinearity.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from converter.checkpoint import Checkpoint
from converter.dtype import BY_NAME
from converter.names import Role
from converter.structure.axes.axis import Axis, Symmetry, Use, Width
from converter.structure.structure import Structure, as_known
from converter.variable import Array, Region, Variable

WIDTHS: Mapping[str, int] = {"features": 4, "units": 6}
"""The widths that can be resized, and how many units they have."""

SIZES = (2, 3, 5, 8, 9, 12)
"""The sizes that are tried."""

TOLERANCE = 1e-5
_INPUTS, _OUTPUTS = 3, 2
_AXES: Mapping[str, tuple[str, ...]] = {
    "projection": (f"{_INPUTS}", "features"),
    "dense/kernel": ("features", "units"),
    "dense/bias": ("units",),
    "readout": ("units", f"{_OUTPUTS}"),
}
_PRODUCE: tuple[Use, ...] = ("produce",)
_CONSUME: tuple[Use, ...] = ("consume",)
_SHIFT: tuple[Use, ...] = ("shift",)
_USES: Mapping[str, tuple[Mapping[str, tuple[Use, ...]], ...]] = {
    "projection": ({}, {"features": _PRODUCE}),
    "dense/kernel": ({"features": _CONSUME}, {"units": _PRODUCE}),
    "dense/bias": ({"units": _SHIFT},),
    "readout": ({"units": _CONSUME}, {}),
}
_CLASSES: Mapping[str, Symmetry] = {"features": "free", "units": "permutation"}
_FOLLOWERS = {
    "Adam": Role("slot", None, "m", "Adam"),
    "Adam_1": Role("slot", None, "v", "Adam"),
    "ExponentialMovingAverage": Role("average"),
}


def checkpoint(loaded: list[str]) -> Checkpoint:
    """Return the model with Adam's slots and averages; `loaded` gets the names of what is read."""
    roles = {name: Role("model") for name in _AXES}
    for name in _AXES:
        for leaf, role in _FOLLOWERS.items():
            roles[f"{name}/{leaf}"] = Role(role.kind, name, role.slot, role.optimizer)
    variables = [_variable(name, shape, loaded) for name, shape in shapes({}).items()]
    return Checkpoint(variables, roles=lambda found: roles, known=as_known(_structure(roles)))


def shapes(sizes: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
    """Return the shape of every variable where some widths have other sizes."""
    found = {}
    for name, axes in _AXES.items():
        shape = tuple(Axis.parse(axis).size({**WIDTHS, **sizes}) for axis in axes)
        found[name] = shape
        found |= {f"{name}/{leaf}": shape for leaf in _FOLLOWERS}
    return found


def difference(values: Mapping[str, Array]) -> float:
    """Return how far the outputs are from those of the model, as a part of their scale."""
    before = _outputs({name: _values(name, shape) for name, shape in shapes({}).items()})
    return float(np.abs(_outputs(values) - before).max() / np.abs(before).max())


def _outputs(values: Mapping[str, Array]) -> Array:
    a, kernel, bias, readout = (np.asarray(values[name], np.float64) for name in _AXES)
    x = np.cos(np.arange(5 * _INPUTS)).reshape(5, _INPUTS)
    outputs: Array = np.tanh(x @ a @ kernel + bias) @ readout
    return outputs


def _values(name: str, shape: tuple[int, ...]) -> Array:
    start = sum(map(ord, name))
    numbers = np.sin(start + 1.7 * np.arange(math.prod(shape))).reshape(shape)
    # Second moments are positive.
    if name.endswith("Adam_1"):
        numbers = np.square(numbers)
    values: Array = numbers.astype(np.float32)
    return values


def _variable(name: str, shape: tuple[int, ...], loaded: list[str]) -> Variable:
    values = _values(name, shape)

    def load(region: Region) -> Array:
        loaded.append(name)
        found: Array = values[region]
        return found

    return Variable(name, BY_NAME["float32"], shape, load, (name,))


def _structure(roles: Mapping[str, Role]) -> Structure:
    widths = {
        name: Width(
            name,
            size,
            _CLASSES[name],
            resizable=True,
            growth="any",
            produced_by=tuple(n for n, used in _USES.items() if _has(used, name, "produce")),
            consumed_by=tuple(n for n, used in _USES.items() if _has(used, name, "consume")),
            why="only linear ops touch it" if name == "features" else "Tanh is nonlinear",
            touches=() if name == "features" else (("affine", "BiasAdd"), ("nonlinear", "Tanh")),
            stays_zero=True,
        )
        for name, size in WIDTHS.items()
    }
    own = {name: role.of or name for name, role in roles.items()}
    axes = {name: tuple(map(Axis.parse, _AXES[of])) for name, of in own.items()}
    uses = {name: _USES[of] for name, of in own.items()}
    follows = {name: role for name, role in roles.items() if role.of is not None}
    return Structure(widths, axes, uses, (), {}, follows, (), None, None)


def _has(uses: tuple[Mapping[str, tuple[Use, ...]], ...], name: str, use: Use) -> bool:
    return any(use in used.get(name, ()) for used in uses)
