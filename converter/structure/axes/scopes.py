"""The layer that a variable is of, by its name."""

from __future__ import annotations

import re

# The last words of names that say what a variable does in its layer, and not which layer it is.
_PLAIN = re.compile(
    r"(depthwise_|pointwise_|recurrent_|input_)?(kernels?|weights?|filters?|matrix)|embeddings|"
    r"w|u|b|v|bias(es)?|gamma|beta|alpha|scale|offset|W_\d+|B|var|linear|weight_[iho]+|wx|wt|wh|"
    r"moving_(mean|variance)|w_[ifo]_diag|table|params?|[wb]_(ru?|c)",
    re.IGNORECASE,
)


def scope_of(name: str) -> str:
    """Return the layer of a variable: its name without the word that says what it does there."""
    scope, _, last = name.rpartition("/")
    while scope and _PLAIN.fullmatch(last):
        name = scope
        scope, _, last = name.rpartition("/")
    return name
