"""How the optimizers of TensorFlow's eras name what they keep.

Three ways of naming the slots of a variable `w`:

    TensorFlow 1        w/Adam, w/Adam_1            the slots in order, numbered
    Keras to 2.10       Adam/w/m, Adam/w/v          the optimizer as a scope around
    Keras 2.11 to 2.21  Adam/m/w, Adam/v/w
    Keras 3             adam/net_w_momentum         of the variable net/w

References:
    tensorflow/python/training/*.py and tensorflow/contrib/opt of TensorFlow 0.12 to 1.15;
    keras/optimizers of Keras 2 and 3; tensor2tensor/utils/{adafactor,multistep_optimizer}.py;
    mesh_tensorflow/optimize.py; google-research/bert optimization.py; tensorpack AccumGrad.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

Shape = tuple[int, ...]

_ADAM = ("m", "v")
_ADAM_OF_SEVERAL_STEPS = ("m", "v", "grad_acc")
_RMSPROP = ("rms", "momentum")
_RMSPROP_CENTRED = ("rms", "mg", "momentum")

SLOTS: dict[str, tuple[str, ...]] = {
    "AccumGrad": ("accum",),
    "Adadelta": ("accum", "accum_update"),
    "Adafactor": ("m", "vr", "vc", "v"),
    "Adagrad": ("accumulator",),
    "AdagradDA": ("gradient_accumulator", "gradient_squared_accumulator"),
    "AdaMax": _ADAM,
    "Adam": _ADAM,
    "AdamW": _ADAM,
    "AddSignOptimizer": ("m",),
    "Ftrl": ("accum", "linear"),
    "LARSOptimizer": ("momentum",),
    "Momentum": ("momentum",),
    "MomentumW": ("momentum",),
    "PowerSignOptimizer": ("m",),
    "ProximalAdagrad": ("accumulator",),
    "RegAdagrad": ("accumulator",),
    "RMSProp": _RMSPROP,
    "Shampoo": ("gbar",),
    "ShampooW": ("gbar",),
}
"""The slots of TensorFlow 1's optimizers under their default names, in the order of creation."""

NAMED_SLOTS = {
    "adam_m": ("AdamWeightDecayOptimizer", "m"),
    "adam_v": ("AdamWeightDecayOptimizer", "v"),
}
"""Slots that carry a name of their own below the variable: optimizer and slot (BERT, ALBERT)."""

SUFFIXED_SLOTS = {"_slot_m": "m", "_slot_v": "v", "_slot_vr": "vr", "_slot_vc": "vc"}
"""Slots that end the variable's own name (mesh TensorFlow's Adafactor, in T5)."""

HYPERPARAMETERS = frozenset(
    [
        "_learning_rate",
        "beta",
        "beta_1",
        "beta_2",
        "decay",
        "epsilon",
        "initial_decay",
        "l1_regularization_strength",
        "l2_regularization_strength",
        "learning_rate",
        "learning_rate_power",
        "lr",
        "momentum",
        "momentum_cache",
        "rho",
        "total_steps",
        "warmup_proportion",
        "weight_decay",
    ]
)
STEPS = frozenset(["_iterations", "iter", "iteration", "iterations"])
"""The step counters of Keras optimizers, in their scope, or by their path."""

_KERAS = [
    "AdaBelief",
    "Adadelta",
    "Adafactor",
    "Adagrad",
    "Adam",
    "AdamW",
    "AdamWeightDecay",
    "Adamax",
    "COCOB",
    "ConditionalGradient",
    "Ftrl",
    "LAMB",
    "LARS",
    "Lamb",
    "LazyAdam",
    "Lion",
    "Lookahead",
    "LossScaleOptimizer",
    "MovingAverage",
    "Muon",
    "Nadam",
    "NovoGrad",
    "ProximalAdagrad",
    "RMSprop",
    "RectifiedAdam",
    "SGD",
    "SGDW",
    "SWA",
    "ScheduleFreeAdamW",
    "TFOptimizer",
    "Yogi",
]

KERAS_SLOTS = frozenset(
    [
        "accum_grad",
        "accum_var",
        "accumulated_delta_var",
        "accumulated_grad",
        "accumulator",
        "average",
        "average_gradient",
        "c",
        "g2",
        "gradient_accumulator",
        "linear",
        "m",
        "mg",
        "momentum",
        "norm",
        "r",
        "rms",
        "slow",
        "u",
        "v",
        "velocity",
        "velocity_hat",
        "vhat",
    ]
)
_FACTORED = frozenset(["r", "c"])

# What a name that somebody gave an optimizer says of its class. Longer stems come first.
_STEMS = {
    "adagradda": "AdagradDA",
    "proximaladagrad": "ProximalAdagrad",
    "adagrad": "Adagrad",
    "adadelta": "Adadelta",
    "adamax": "AdaMax",
    "adam": "Adam",
    "rmsprop": "RMSProp",
    "ftrl": "Ftrl",
    "momentum": "Momentum",
    "nesterov": "Momentum",
}


def _snake_case(name: str) -> str:
    """Return the scope that Keras 3 makes of a class name: `RMSprop` gives `rm_sprop`."""
    words = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", name)
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", words).lower()


KERAS_OPTIMIZERS = {_snake_case(name): name for name in _KERAS} | {name: name for name in _KERAS}
"""Class names of Keras optimizers by the scope that they open, in Keras 2 and in Keras 3."""


def keras_optimizer(component: str) -> str:
    """Return the class of a Keras optimizer from its scope: `adam_1` gives `Adam`.

    A scope that no known class opens is its own answer.
    """
    return KERAS_OPTIMIZERS.get(re.sub(r"_\d+$", "", component), component)


def class_of(name: str) -> str | None:
    """Return the TensorFlow 1 optimizer that a self-chosen name tells: `D_AdamOptimizer`, `Adam`.

    None where the name tells none.
    """
    plain = name.replace("_", "").lower()
    return next((known for stem, known in _STEMS.items() if stem in plain), None)


def class_called(name: str | None) -> str:
    """Return the optimizer of a role: a name that somebody gave counts as the class it tells."""
    known = name or ""
    if known in SLOTS or known in KERAS_OPTIMIZERS.values():
        return known
    return class_of(known) or known


def slots_of_op(op: str) -> tuple[str | None, tuple[str, ...]]:
    """Return the optimizer and the slots that an op which applies gradients takes, in order.

    `ResourceApplyAdam` is `Adam`, and takes m and v behind the variable.
    """
    match = re.fullmatch(r"(?:Resource)?(?:Sparse)?Apply([A-Z][A-Za-z]*?)(?:V2)?", op)
    name = match[1] if match else ""
    if name == "CenteredRMSProp":
        return "RMSProp", ("mg", "rms", "momentum")
    name = {
        "AddSign": "AddSignOptimizer",
        "KerasMomentum": "Momentum",
        "PowerSign": "PowerSignOptimizer",
    }.get(name, name)
    return (name, SLOTS[name]) if name in SLOTS else (None, ())


def slot_fits(optimizer: str) -> Callable[[Shape, Shape], bool]:
    """Return whether a slot of a shape can belong to a variable of a shape, for an optimizer."""
    return _FITS.get(optimizer, _fits_whole)


def suffixed_slot_fits(slot: str, shape: Shape, of: Shape) -> bool:
    """Return whether a slot of `SUFFIXED_SLOTS` has a shape that fits its variable's."""
    return _misses_one_axis(shape, of) if slot in ("vr", "vc") else shape == of


def keras_slot_fits(slot: str, shape: Shape, of: Shape) -> bool:
    """Return whether a Keras slot has a shape that fits its variable's."""
    if slot not in _FACTORED:
        return shape == of
    # Keras makes a scalar dummy where it does not factor.
    return _misses_one_axis(shape, of) or shape == ()


def slot_names(
    optimizer: str, indices: Sequence[int], shapes: Sequence[Shape], of: Shape
) -> list[str | None]:
    """Return which slot each of a variable's numbered slots is.

    Several optimizers of one name on one variable number on: the second Adam has `Adam_2` and
    `Adam_3`.

    Args:
        optimizer: a name in `SLOTS`.
        indices: the number of each, ascending; 0 for the one without.
        shapes: the shape of each.
        of: the shape of the variable.
    """
    if optimizer in ("Shampoo", "ShampooW"):
        return _shampoo_names(shapes, of)
    if optimizer == "Adafactor":
        return _adafactor_names(shapes, of)
    slots: Sequence[str] = SLOTS[optimizer]
    count = len(indices)
    if optimizer == "RMSProp" and count % 3 == 0:
        slots = _RMSPROP_CENTRED
    elif optimizer == "RMSProp" and count > 1 and count % 2:
        # A centred one and plain ones, in an order that nothing tells.
        return ["rms", *[None] * (count - 1)]
    elif optimizer == "Adam" and count == 3:
        slots = _ADAM_OF_SEVERAL_STEPS
    # Eager TensorFlow numbers on from graph to graph: RMSProp_2, RMSProp_3, RMSProp_4 are one set.
    is_set = count % len(slots) == 0 and indices[-1] - indices[0] == count - 1
    first = indices[0] if is_set else 0
    return [slots[(index - first) % len(slots)] for index in indices]


def _fits_whole(shape: Shape, of: Shape) -> bool:
    return shape == of


def _fits_factored(shape: Shape, of: Shape) -> bool:
    return shape == of or _misses_one_axis(shape, of)


def _misses_one_axis(shape: Shape, of: Shape) -> bool:
    if len(shape) != len(of) - 1:
        return False
    axis = next((i for i, size in enumerate(shape) if size != of[i]), len(shape))
    return shape[axis:] == of[axis + 1 :]


def _fits_matrix(shape: Shape, of: Shape) -> bool:
    return shape == of or (len(shape) in (1, 2) and len(set(shape)) == 1 and shape[0] in of)


_FITS = {"Adafactor": _fits_factored, "Shampoo": _fits_matrix, "ShampooW": _fits_matrix}


def _adafactor_names(shapes: Sequence[Shape], of: Shape) -> list[str | None]:
    """Name the slots of tensor2tensor's Adafactor: m if asked for, then vr and vc, or else v."""
    factors = iter(["vr", "vc"] * len(shapes))
    whole = iter(["m"] if len(shapes) > 1 else [])
    return [next(whole, "v") if shape == of else next(factors) for shape in shapes]


def _shampoo_names(shapes: Sequence[Shape], of: Shape) -> list[str | None]:
    """Name the slots of Shampoo: gbar, then Gbar_i for each axis, or H_i and Gbar_i.

    H_i is kept with `svd_interval` above 1, for the axes that are not too large for a matrix; a
    larger axis has a vector Gbar_i.
    """
    for has_roots in (False, True):
        names = _shampoo_pattern(shapes, of, has_roots=has_roots)
        if names is not None:
            return [*names]
    return [None] * len(shapes)


def _shampoo_pattern(shapes: Sequence[Shape], of: Shape, *, has_roots: bool) -> list[str] | None:
    names = []
    rest = iter(shapes)
    for shape in rest:
        if shape != of:
            return None
        names.append("gbar")
        for axis, size in enumerate(of):
            found = next(rest, None)
            if has_roots and found == (size, size):
                names.append(f"H_{axis}")
                found = next(rest, None)
                if found != (size, size):
                    return None
            if found not in ((size, size), (size,)):
                return None
            names.append(f"Gbar_{axis}")
    return names
