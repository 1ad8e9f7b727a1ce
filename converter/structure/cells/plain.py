"""Layers without a loop by their names: dense, convolution, normalisation, embedding."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from converter.names.layers import BIAS_OF, EMBEDDING, TRANSPOSED
from converter.structure.axes.scopes import scope_of
from converter.structure.cells.layer import (
    Known,
    Layer,
    Names,
    Shapes,
    consumed,
    one,
    produced,
    scaled,
    shifted,
    still,
)

_MATRIX = re.compile(r"(|.+_)(kernel|weights?|w|W)(|_?[0-9]+)", re.DOTALL)
# Others are added to these tables, or they are none.
_ADDED = re.compile(r"pos|type|segment", re.I)
_TABLE = re.compile(r"embeddings|table|weights?|w|matrix", re.I)
_STATISTICS = {
    "gamma": "gain",
    "beta": "shift",
    "moving_mean": "mean",
    "moving_variance": "variance",
}


def plain_layers(shapes: Shapes, statistics: Sequence[str], names: Names) -> Iterator[Layer]:
    """Yield the layers among variables.

    Args:
        shapes: of the variables that no cell has.
        statistics: which of them are the statistics of a batch normalisation.
        names: where widths get their names.
    """
    told: set[str] = set()
    for name in shapes:
        layer = _embedding(name, shapes, names) or _matrix(name, shapes, names)
        if layer is not None:
            told.update(layer.axes)
            yield layer
    scopes = dict.fromkeys(name.rpartition("/")[0] for name in statistics)
    for scope in scopes:
        layer = _batch_norm(scope, shapes, names)
        if layer is not None and told.isdisjoint(layer.axes):
            yield layer


def _embedding(name: str, shapes: Shapes, names: Names) -> Layer | None:
    """Recognise a lookup table: `embedding`, `words/embeddings`, `embedding/table`."""
    scope, _, leaf = name.rpartition("/")
    opener = scope.rpartition("/")[2]
    is_table = EMBEDDING.fullmatch(leaf) or (EMBEDDING.fullmatch(opener) and _TABLE.fullmatch(leaf))
    if not is_table or len(shapes[name]) != 2 or _ADDED.search(f"{opener}/{leaf}"):
        return None
    if not all(shapes[name]):
        return None
    layer = Layer(scope_of(name), "embedding")
    vocabulary = names.new(f"{layer.scope}/vocabulary")
    features = names.new(layer.scope)
    layer.sizes = dict(zip((vocabulary, features), shapes[name], strict=True))
    layer.known[vocabulary] = Known("bound", "any", f"its entries are looked up in {name}")
    layer.known[features] = Known("permutation", "any", f"what stands behind {name} is in no name")
    layer.tell(name, consumed(one(vocabulary)), produced(one(features)))
    layer.output = features
    return layer


def _matrix(name: str, shapes: Shapes, names: Names) -> Layer | None:
    """Recognise a dense layer or a convolution: `[..., in, out]` with a bias of `[out]`."""
    scope, _, leaf = name.rpartition("/")
    shape = shapes[name]
    match = _MATRIX.fullmatch(leaf)
    if match is None or not 2 <= len(shape) <= 5 or not all(shape):
        return None
    beside = f"{scope}/" * bool(scope) + match[1] + BIAS_OF[match[2]][0] + match[3]
    bias = beside if beside in shapes else None
    is_transposed = len(shape) > 2 and TRANSPOSED.search(scope) is not None
    into, out = (shape[-1], shape[-2]) if is_transposed else (shape[-2], shape[-1])
    # Without a bias, or as a square, it may stand the other way where somebody wrote it by hand.
    if (bias is None or into == out) and match[2] not in ("kernel", "weights"):
        return None
    if bias is not None and shapes[bias] != (out,):
        return None
    layer = Layer(_called(scope, match[1], match[3], name), "dense")
    if out > 1:
        layer.output = names.new(layer.scope)
        layer.sizes[layer.output] = out
        why = f"what stands behind {name} is in no name"
        layer.known[layer.output] = Known("permutation", "none", why)
    if into > 1:
        layer.inputs = names.new(f"{layer.scope}/inputs")
        layer.sizes[layer.inputs] = into
        layer.slot = name, len(shape) - (1 if is_transposed else 2)
    axes = [
        consumed(one(layer.inputs)) if layer.inputs else still(1),
        produced(one(layer.output)) if layer.output else still(1),
    ]
    layer.tell(name, *map(still, shape[:-2]), *(reversed(axes) if is_transposed else axes))
    if bias is not None:
        layer.tell(bias, shifted(one(layer.output)) if layer.output else still(1))
    return layer


def _called(scope: str, before: str, number: str, name: str) -> str:
    """Name a layer: `softmax` of `softmax_w`, `w1` of `w1`, and else after its scope."""
    if before:
        return "/".join(filter(None, (scope, before.rstrip("_") + number)))
    return name if number else scope_of(name)


def _batch_norm(scope: str, shapes: Shapes, names: Names) -> Layer | None:
    start = f"{scope}/" if scope else ""
    found = {leaf: start + leaf for leaf in _STATISTICS if start + leaf in shapes}
    sizes = {shapes[name] for name in found.values()}
    if "moving_mean" not in found or len(sizes) != 1 or len(shape := sizes.pop()) != 1:
        return None
    if shape[0] < 2:
        return None
    layer = Layer(scope or "batch_normalization", "norm")
    layer.inputs = names.new(f"{layer.scope}/inputs")
    layer.sizes[layer.inputs] = shape[0]
    layer.slot = next(iter(found.values())), 0
    width = one(layer.inputs)
    for leaf, name in found.items():
        if leaf in ("gamma", "beta"):
            layer.tell(name, scaled(width) if leaf == "gamma" else shifted(width))
        else:
            layer.tell(name, (width, ("mean",) if leaf == "moving_mean" else ("variance",)))
    return layer
