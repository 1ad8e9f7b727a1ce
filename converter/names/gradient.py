"""How optimizer slots follow the gradients of their variable.

A change of variables turns gradients by the transpose of what turns the values: if new values are
shared out among copies, so that each has a share of the effect, its gradient is that share too.

References:
    Chen et al., Staged training for transformer language models, 2022 (moments of duplicated
    variables); tensorflow/python/training/*.py and tensorflow/contrib/opt of TensorFlow 1.15;
    keras/optimizers of Keras 2 and 3; tensor2tensor/utils/adafactor.py.
"""

from __future__ import annotations

from converter.names.optimizers import class_called

# Sums and averages of gradients, of their squares, and what is measured in the variable's units.
_FIRST = frozenset(
    [
        "accum_grad",
        "average_gradient",
        "gbar",
        "grad_acc",
        "gradient_accumulator",
        "m",
        "mg",
        "u",
    ]
)
_SECOND = frozenset(
    [
        "accumulator",
        "c",
        "g2",
        "gradient_squared_accumulator",
        "r",
        "rms",
        "v",
        "vc",
        "velocity_hat",
        "vhat",
        "vr",
    ]
)
_UPDATES = frozenset(["accum_update", "accum_var", "accumulated_delta_var", "average", "slow"])

# What means something else in each optimizer.
_OF = {
    ("AccumGrad", "accum"): 1,
    ("Adadelta", "accum"): 2,
    ("Adadelta", "accum_grad"): 2,
    ("Adadelta", "accumulated_grad"): 2,
    ("Ftrl", "accum"): 2,
    ("Ftrl", "linear"): 1,
    # The sizes of its updates do not depend on those of gradients.
    ("RMSProp", "momentum"): 0,
    ("RMSprop", "momentum"): 0,
    # Of Keras 3, whose Adam has moments called so; its SGD has a momentum alone.
    ("Adam", "velocity"): 2,
    ("AdamW", "velocity"): 2,
    ("LazyAdam", "velocity"): 2,
    ("Nadam", "velocity"): 2,
    ("RMSprop", "velocity"): 2,
    ("Lamb", "velocity"): 2,
}
FACTORED = frozenset(["vr", "vc", "r", "c"])
"""Second moments averaged along one axis, which they lack (Adafactor)."""


def gradient_power(optimizer: str | None, slot: str | None) -> int | None:
    """Return the power of the gradient that a slot holds; None where no rule tells.

    1 for sums and averages of gradients, 2 for those of their squares, 0 for what is measured as
    the variable is.

    Args:
        optimizer: as in `Role`; a name that somebody gave counts as the class that it tells.
        slot: as in `Role`.
    """
    known = class_called(optimizer)
    if (known, slot or "") in _OF:
        return _OF[known, slot or ""]
    if slot == "momentum":
        return 1
    for power, slots in enumerate((_UPDATES, _FIRST, _SECOND)):
        if slot in slots:
            return power
    return None
