"""What optimizers start their slots with.

References:
    tensorflow/python/training/*.py and tensorflow/contrib/opt of TensorFlow 1.15; keras/optimizers
    of Keras 2 and 3; tensorflow_addons/optimizers.
"""

from __future__ import annotations

from converter.names.optimizers import class_called

# Zeros would make the first update NaN (Adagrad) or several times too large (RMSProp).
_STARTS = {
    ("Adagrad", "accumulator"): 0.1,
    ("AdagradDA", "gradient_squared_accumulator"): 0.1,
    ("Ftrl", "accum"): 0.1,
    ("Ftrl", "accumulator"): 0.1,
    ("ProximalAdagrad", "accumulator"): 0.1,
    ("RegAdagrad", "accumulator"): 0.1,
    # TensorFlow 1's; the one of Keras is written RMSprop and starts with zeros.
    ("RMSProp", "rms"): 1.0,
    ("Yogi", "m"): 1e-6,
    ("Yogi", "v"): 1e-6,
}
_ZEROS = frozenset(
    [
        "accum",
        "accum_grad",
        "accum_update",
        "accum_var",
        "accumulated_delta_var",
        "accumulated_grad",
        "accumulator",
        "average_gradient",
        "c",
        "gbar",
        "grad_acc",
        "gradient_accumulator",
        "linear",
        "m",
        "mg",
        "momentum",
        "r",
        "rms",
        "u",
        "v",
        "vc",
        "velocity",
        "velocity_hat",
        "vhat",
        "vr",
    ]
)
COPIES = frozenset(["average", "slow"])
"""Slots that start as copies of their variable (moving averages, Lookahead)."""


def fresh_value(optimizer: str | None, slot: str | None) -> float | None:
    """Return the number that a fresh slot holds; None where no rule tells.

    Args:
        optimizer: as in `Role`; a name that somebody gave counts as the class that it tells.
        slot: as in `Role`.
    """
    known = class_called(optimizer)
    if (known, slot) in _STARTS:
        return _STARTS[known, slot or ""]
    # Shampoo's statistics of each axis.
    is_zero = slot in _ZEROS or (slot or "").startswith("Gbar_")
    return 0.0 if is_zero else None
