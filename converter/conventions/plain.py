"""Layers without a state among variables, by what a graph does with them and by their names."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import get_args

from converter.conventions.layers import Kind, Layer
from converter.conventions.views import View, Whole
from converter.names.layers import BIAS_OF, EMBEDDING, TRANSPOSED

Shapes = Mapping[str, tuple[int, ...]]

_KERNEL = re.compile(
    r"(|.+_)(depthwise_kernel|depthwise_weights|pointwise_kernel|pointwise_weights|kernel|"
    r"output_weights|weights?|w|W|Matrix)(|_?[0-9]+)",
    re.DOTALL,
)
_SEPARABLE = {
    "depthwise_kernel": "depthwise",
    "depthwise_weights": "depthwise",
    "pointwise_kernel": "pointwise",
    "pointwise_weights": "pointwise",
}
_TABLE = re.compile(r"embeddings?|table|weights?|w|W|matrix", re.I)
_NORM = ("gamma", "beta")
_STATISTICS = ("moving_mean", "moving_variance")
_LAYER_NORM = re.compile(r"layer_?norm(alization)?(_\d+)?|ln(_.+)?", re.I | re.DOTALL)
_CONVOLUTION = re.compile(r"conv|cnn|filter", re.I)
_KIND_OF: Mapping[str, Kind] = {kind: kind for kind in get_args(Kind)}


@dataclass(frozen=True)
class Told:
    """What a graph says of variables.

    Attributes:
        kinds: what is computed with a kernel or a table.
        others: what is taken by ops that say nothing of its layer.
        biases: the bias that is added to what is computed with a kernel, by the kernel.
        norms: the variables of batch normalisations, each by the names that Keras has for them.
        epsilons: what they add to the variance, by the variable of the mean.
    """

    kinds: Mapping[str, Kind] = field(default_factory=dict)
    others: frozenset[str] = frozenset()
    biases: Mapping[str, str] = field(default_factory=dict)
    norms: tuple[Mapping[str, str], ...] = ()
    epsilons: Mapping[str, float] = field(default_factory=dict)


def layers(shapes: Shapes, told: Told, declared: Mapping[str, str]) -> Iterator[Layer]:
    """Yield the layers among variables that no cell has.

    Args:
        shapes: of the variables.
        told: what the graph says.
        declared: the kind of some variables, which are kernels or tables.
    """
    taken: set[str] = set()
    for layer in (
        *_told_norms(shapes, told),
        *_norms(shapes),
        *_kernels(shapes, told, declared),
    ):
        if taken.isdisjoint(layer.members):
            taken.update(layer.members)
            yield layer


def _views(members: Mapping[str, str], shapes: Shapes) -> dict[str, View]:
    return {leaf: Whole(name, shapes[name]) for leaf, name in members.items()}


def _told_norms(shapes: Shapes, told: Told) -> Iterator[Layer]:
    for members in told.norms:
        if all(name in shapes for name in members.values()):
            first = next(iter(members.values()))
            scopes = {name.rpartition("/")[0] for name in members.values()}
            scope = scopes.pop() if len(scopes) == 1 else first
            yield Layer(
                scope or first,
                "batch_norm",
                tuple(members.values()),
                _views(members, shapes),
                told.epsilons.get(members["moving_mean"]),
            )


def _norms(shapes: Shapes) -> Iterator[Layer]:
    """Yield normalisations: of a batch where it keeps statistics, else of a layer."""
    scopes: dict[str, dict[str, str]] = {}
    for name in shapes:
        scope, _, leaf = name.rpartition("/")
        if leaf in (*_NORM, *_STATISTICS):
            scopes.setdefault(scope, {})[leaf] = name
    for scope, members in scopes.items():
        sizes = {shapes[name] for name in members.values()}
        is_batch = all(leaf in members for leaf in _STATISTICS)
        is_layer = _LAYER_NORM.fullmatch(scope.rpartition("/")[2]) is not None
        if len(sizes) != 1 or not (is_batch or (is_layer and set(members) == set(_NORM))):
            continue
        kind: Kind = "batch_norm" if is_batch else "layer_norm"
        name = scope or ("batch_normalization" if is_batch else "layer_normalization")
        yield Layer(name, kind, tuple(members.values()), _views(members, shapes))


def _kernels(shapes: Shapes, told: Told, declared: Mapping[str, str]) -> Iterator[Layer]:
    for name, shape in shapes.items():
        scope, _, leaf = name.rpartition("/")
        match = _KERNEL.fullmatch(leaf)
        kind = _kind(name, shape, match, told, declared)
        if kind is None or not _fits(kind, shape):
            continue
        if kind == "embedding":
            yield Layer(_table_scope(name), kind, (name,), {"embeddings": Whole(name, shape)})
            continue
        members = {"kernel": name}
        bias = _bias(name, match, kind, shapes, told)
        if bias is not None:
            members["bias"] = bias
        called = name
        if match is not None:
            called = _called(scope, match, name)
        yield Layer(called, kind, tuple(members.values()), _views(members, shapes))


def _kind(
    name: str,
    shape: tuple[int, ...],
    match: re.Match[str] | None,
    told: Told,
    declared: Mapping[str, str],
) -> Kind | None:
    if name in declared:
        return _KIND_OF.get(declared[name])
    if name in told.kinds:
        return told.kinds[name]
    scope, _, leaf = name.rpartition("/")
    opener = scope.rpartition("/")[2]
    if len(shape) == 2 and (
        EMBEDDING.fullmatch(leaf) or (EMBEDDING.fullmatch(opener) and _TABLE.fullmatch(leaf))
    ):
        return "embedding"
    if match is None:
        return None
    if len(shape) == 2:
        return "dense_transposed" if match[2] == "output_weights" else "dense"
    if match[2] in ("depthwise_kernel", "depthwise_weights"):
        return "depthwise"
    # Elsewhere three axes may be those of the heads of an attention.
    is_sure = len(shape) > 3 or _CONVOLUTION.search(scope) or match[2] in _SEPARABLE
    if is_sure and name not in told.others and match[2] in ("kernel", "weights", *_SEPARABLE):
        return "conv_transpose" if TRANSPOSED.search(scope) else "conv"
    return None


def _fits(kind: str, shape: tuple[int, ...]) -> bool:
    if kind in ("dense", "dense_transposed", "embedding"):
        return len(shape) == 2
    return len(shape) == 4 if kind == "depthwise" else 3 <= len(shape) <= 5


def outputs(kind: str, shape: tuple[int, ...]) -> int:
    """Return how many outputs a layer with such a kernel has."""
    if kind == "depthwise":
        return shape[-1] * shape[-2]
    return shape[-2] if kind in ("conv_transpose", "dense_transposed") else shape[-1]


def _bias(
    name: str, match: re.Match[str] | None, kind: str, shapes: Shapes, told: Told
) -> str | None:
    wanted = [(outputs(kind, shapes[name]),)]
    if (found := told.biases.get(name)) is not None and shapes.get(found) in wanted:
        return found
    if match is None:
        return None
    scope, _, _ = name.rpartition("/")
    start = f"{scope}/" if scope else ""
    for leaf in BIAS_OF[match[2]]:
        beside = f"{start}{match[1]}{leaf}{match[3]}"
        if shapes.get(beside) in wanted:
            # A separable convolution has one bias, which comes last.
            pointwise = (
                beside != name
                and match[2].startswith("depthwise")
                and any(
                    f"{start}{match[1]}{other}{match[3]}" in shapes
                    for other in ("pointwise_kernel", "pointwise_weights")
                )
            )
            return None if pointwise else beside
    return None


def _called(scope: str, match: re.Match[str], name: str) -> str:
    """Name a layer: `softmax` of `softmax_w`, `w1` of `w1`, and else after its scope."""
    last = _SEPARABLE.get(match[2], "")
    if match[1]:
        last = "/".join(filter(None, (match[1].rstrip("_") + match[3], last)))
    elif match[3]:
        return name
    return "/".join(filter(None, (scope, last))) or name


def _table_scope(name: str) -> str:
    """Name a lookup table: `words` of `words/embeddings`, and else after the variable."""
    scope, _, leaf = name.rpartition("/")
    return scope if scope and leaf != "embedding" and _TABLE.fullmatch(leaf) else name
