"""What each op of TensorFlow says about the axes that it touches: one short rule for each.

An op without a rule ties nothing, and what it touches is opaque.
"""

from __future__ import annotations

from collections.abc import Mapping

from converter.structure.tensors.analysis import Rule
from converter.structure.tensors.rules import (
    contraction,
    elementwise,
    gradients,
    integers,
    matrices,
    normalisation,
    padding,
    recurrent,
    reduction,
    shaping,
    slicing,
    sources,
)

RULES: Mapping[str, Rule] = {
    **elementwise.RULES,
    **gradients.RULES,
    **integers.RULES,
    **matrices.RULES,
    **sources.RULES,
    **contraction.RULES,
    **normalisation.RULES,
    **padding.RULES,
    **recurrent.RULES,
    **reduction.RULES,
    **shaping.RULES,
    **slicing.RULES,
}
