"""Rules of normalisations that are one op."""

from __future__ import annotations

from collections.abc import Sequence

from converter.graph.node import Node
from converter.structure.axes.axis import Use
from converter.structure.tensors.analysis import Analysis, Rule, Tensor, for_ops
from converter.structure.tensors.atoms import Clash

_USES: tuple[Use, ...] = ("gain", "shift", "mean", "variance")
_MORE = 3


def batch(an: Analysis, node: Node, inputs: Sequence[Tensor]) -> list[Tensor]:
    """Normalise each channel over all else, by its own moments or by given ones."""
    x = inputs[0]
    if x.axes is None:
        raise Clash
    channel = 1 if node.text("data_format").startswith("NC") else len(x.axes) - 1
    width = x.axes[channel]
    for place, (tensor, use) in enumerate(zip(inputs[1:5], _USES, strict=True), 1):
        # Moments that are not used stand as an empty tensor.
        if tensor.axes and tensor.axes[0].size != 0:
            an.tie(width, tensor.axes[0], node)
            if an.is_weight(node.inputs[place]):
                an.use(tensor.origin(0), tensor.axes[0], use, node)
    an.touch("gain", [width], node)
    if _is_training(node):
        an.touch("variance", [a for p, a in enumerate(x.axes) if p != channel], node)
    moments = Tensor((width,))
    return [Tensor(x.axes), *[moments] * (2 + _MORE)]


def _is_training(node: Node) -> bool:
    value = node.attributes.get("is_training")
    return value is None or bool(value.b)


RULES: dict[str, Rule] = {
    **for_ops("FusedBatchNorm FusedBatchNormV2 FusedBatchNormV3", batch),
}
