"""What layers without a state call their variables, in TensorFlow 1 and by hand."""

from __future__ import annotations

import re
from collections.abc import Mapping

BIAS_OF: Mapping[str, tuple[str, ...]] = {
    "kernel": ("bias",),
    "weights": ("biases", "bias"),
    "weight": ("bias",),
    "output_weights": ("output_bias",),
    "depthwise_kernel": ("bias",),
    "depthwise_weights": ("biases",),
    "pointwise_kernel": ("bias",),
    "pointwise_weights": ("biases",),
    "w": ("b",),
    "W": ("b", "B"),
    "Matrix": ("Bias",),
}
"""What stands beside a kernel of a name as its bias, the usual one first."""

TRANSPOSED = re.compile(r"transpose|deconv|upconv", re.I)
"""A scope of a convolution whose kernel has its inputs and outputs the other way around."""

EMBEDDING = re.compile(r"emb|(.*_)?embed(ding)?s?(_(table|matrix|weights?|lookup|w))?", re.I)
"""A lookup table, or the scope of one."""
