"""BERT by its names, which tell all of it but the number of heads."""

from __future__ import annotations

import re
from collections.abc import Iterator

from converter.structure.axes.axis import Use
from converter.structure.cells.layer import (
    Known,
    Layer,
    Names,
    Shapes,
    Told,
    consumed,
    one,
    produced,
    scaled,
    shifted,
)

_QUERY = re.compile(r"(.*/|)encoder/layer_0/attention/self/query/kernel", re.DOTALL)
_HEADS = "how many heads share it is in no name; declare it as heads*head_size in a layout file"
_STREAM = "a layer normalisation counts it"


def berts(shapes: Shapes, names: Names) -> Iterator[Layer]:
    """Yield the BERT models among variables, each as one layer."""
    for name in shapes:
        match = _QUERY.fullmatch(name)
        if match and len(shapes[name]) == 2:
            layer = _Bert(match[1], shapes, names).told()
            if layer is not None:
                yield layer


class _Bert:
    def __init__(self, prefix: str, shapes: Shapes, names: Names) -> None:
        self._prefix = prefix
        self._shapes = shapes
        self._names = names
        self._layer = Layer(f"{prefix}embeddings", "other")
        self._fits = True

    def told(self) -> Layer | None:
        """Return the layer; None where a variable has a shape that it cannot have."""
        size = self._shapes[f"{self._prefix}encoder/layer_0/attention/self/query/kernel"][0]
        stream = self._width("embeddings", size, Known("permutation", "none", _STREAM))
        self._layer.output = stream
        vocabulary = self._embeddings(stream)
        number = 0
        while f"{self._prefix}encoder/layer_{number}/attention/self/query/kernel" in self._shapes:
            self._block(f"encoder/layer_{number}", stream)
            number += 1
        self._heads(stream, vocabulary)
        return self._layer if self._fits else None

    def _width(self, scope: str, size: int, known: Known) -> str:
        name = self._names.new(f"{self._prefix}{scope}")
        self._layer.sizes[name] = size
        self._layer.known[name] = known
        return name

    def _size(self, name: str, axis: int) -> int:
        shape = self._shapes.get(f"{self._prefix}{name}", ())
        return shape[axis] if axis < len(shape) else 0

    def _put(self, name: str, *told: Told, outside: bool = False) -> None:
        """Tell a variable, if it is there."""
        name = name if outside else f"{self._prefix}{name}"
        if name in self._shapes:
            self._layer.tell(name, *told)
            sizes = tuple(axis.size(self._layer.sizes) for axis, _ in told)
            self._fits = self._fits and sizes == self._shapes[name]

    def _norm(self, scope: str, stream: str, *, outside: bool = False) -> None:
        self._put(f"{scope}/LayerNorm/gamma", scaled(one(stream)), outside=outside)
        self._put(f"{scope}/LayerNorm/beta", shifted(one(stream)), outside=outside)

    def _dense(self, scope: str, into: str, out: str, *, outside: bool = False) -> None:
        self._put(f"{scope}/kernel", consumed(one(into)), produced(one(out)), outside=outside)
        self._put(f"{scope}/bias", shifted(one(out)), outside=outside)

    def _embeddings(self, stream: str) -> str | None:
        vocabulary = None
        for table, kind, why in (
            ("word_embeddings", "vocabulary", "its entries are looked up"),
            ("token_type_embeddings", "vocabulary", "its entries are looked up"),
            ("position_embeddings", "positions", "its entries are positions"),
        ):
            name = f"embeddings/{table}"
            size = self._size(name, 0)
            if not size:
                continue
            known = Known("bound", "any", why)
            if kind == "positions":
                known = Known("bound", "none", why, resizable=False)
            rows = self._width(f"{name}/{kind}", size, known)
            self._layer.inner.add(rows)
            self._put(name, consumed(one(rows)), produced(one(stream)))
            if table == "word_embeddings":
                vocabulary = rows
        self._norm("embeddings", stream)
        return vocabulary

    def _block(self, scope: str, stream: str) -> None:
        attention = f"{scope}/attention/self"
        bound = Known("bound", "none", _HEADS, resizable=False)
        keys = self._width(f"{attention}/query", self._size(f"{attention}/query/kernel", 1), bound)
        values = self._width(
            f"{attention}/value", self._size(f"{attention}/value/kernel", 1), bound
        )
        inner = self._width(
            f"{scope}/intermediate/dense",
            self._size(f"{scope}/intermediate/dense/kernel", 1),
            Known("permutation", "any", "a GELU stands behind it"),
        )
        self._layer.inner.update((keys, values, inner))
        self._dense(f"{attention}/query", stream, keys)
        self._put(f"{attention}/key/kernel", consumed(one(stream)), consumed(one(keys)))
        self._put(f"{attention}/key/bias", consumed(one(keys)))
        self._dense(f"{attention}/value", stream, values)
        self._dense(f"{scope}/attention/output/dense", values, stream)
        self._norm(f"{scope}/attention/output", stream)
        self._dense(f"{scope}/intermediate/dense", stream, inner)
        self._dense(f"{scope}/output/dense", inner, stream)
        self._norm(f"{scope}/output", stream)

    def _heads(self, stream: str, vocabulary: str | None) -> None:
        """Tell the pooler, and the heads of pre-training."""
        size = self._size("pooler/dense/kernel", 1)
        relation = "cls/seq_relationship/output_weights"
        pooled = None
        if size:
            taken = relation in self._shapes
            why = "a tanh stands behind it" if taken else "what takes it is in no name"
            growth = Known("permutation", "any" if taken else "none", why)
            pooled = self._width("pooler/dense", size, growth)
            self._layer.inner.update({pooled} if taken else ())
            self._dense("pooler/dense", stream, pooled)
        if self._prefix != "bert/":
            return
        self._dense("cls/predictions/transform/dense", stream, stream, outside=True)
        self._norm("cls/predictions/transform", stream, outside=True)
        if vocabulary and "cls/predictions/output_bias" in self._shapes:
            self._put("cls/predictions/output_bias", shifted(one(vocabulary)), outside=True)
            words = f"{self._prefix}embeddings/word_embeddings"
            both: tuple[Use, ...] = ("consume", "produce")
            self._layer.tell(words, (one(vocabulary), both), (one(stream), both))
            why = "its entries are looked up, and are the logits of predictions"
            self._layer.known[vocabulary] = Known("bound", "none", why)
        if pooled and relation in self._shapes:
            shape = self._shapes[relation]
            labels = self._names.new("cls/seq_relationship")
            self._layer.sizes[labels] = shape[0] if shape else 0
            self._layer.known[labels] = Known("bound", "none", "these are logits")
            self._layer.inner.add(labels)
            self._put(relation, produced(one(labels)), consumed(one(pooled)), outside=True)
            bias = "cls/seq_relationship/output_bias"
            self._put(bias, shifted(one(labels)), outside=True)
