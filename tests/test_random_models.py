"""Random small models: what was built is what is inferred, and it holds on the running graph."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from growth import growth_error
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from model_maker import Maker, asked, save

from converter import Checkpoint, open_checkpoint
from converter.model import Model
from converter.permutation import permute
from converter.proof import Question
from converter.structure.axes.axis import Axis, Blocks
from converter.structure.infer import infer
from converter.structure.structure import Structure

pytestmark = pytest.mark.slow

N = 4
"""Every size: of batches, of sequences, of images, of layers."""

Term = tuple[int, ...]
"""Widths by number; below 0 a size that is none."""

Axes = tuple[tuple[Term, ...], ...]


class Value(NamedTuple):
    """A tensor, and what its last axis is made of."""

    tensor: Any
    terms: tuple[Term, ...]

    @property
    def rank(self) -> int:
        return len(self.tensor.shape)


class Builder:
    """Draws layers one after the other, and knows which axes of variables share a width.

    Attributes:
        axes: of each variable, over widths by number.
    """

    def __init__(self, maker: Maker, data: st.DataObject) -> None:
        self.tf = maker.tf
        self.axes: dict[str, Axes] = {}
        self._maker = maker
        self._data = data
        self._widths: list[int] = []
        self._sizes: list[int] = []
        self._count = 0

    def build(self) -> list[Any]:
        """Return the outputs of a model."""
        rank = self.draw(st.sampled_from([2, 3, 4]))
        value = Value(self._maker.input(*[N] * rank), ((self.width(),),))
        earlier = [value]
        for _ in range(self.draw(st.integers(2, 4))):
            layers = {
                2: [self.dense, self.gate, self.halves, self.residual, self.turned],
                3: [self.recurrent, self.dense, self.residual, self.both_ways],
                4: [self.convolution, self.convolution, self.pooled, self.separable],
            }[value.rank]
            value = self.draw(st.sampled_from(layers))(value)
            value = self.draw(st.sampled_from([self.kept, self.layer_norm, self.batch_norm]))(value)
            value = self.activated(value)
            same = [
                other for other in earlier if other.tensor.shape[:-1] == value.tensor.shape[:-1]
            ]
            if same and self.draw(st.booleans()):
                value = self.joined(value, self.draw(st.sampled_from(same)))
            earlier.append(value)
        if value.rank > 2:
            ways = [self.mean, self.flat] if value.rank == 4 else [self.mean, self.last]
            value = self.draw(st.sampled_from(ways))(value)
        return [self.dense(value).tensor]

    def draw(self, strategy: st.SearchStrategy[Any]) -> Any:
        return self._data.draw(strategy)

    def width(self, size: int = N) -> int:
        self._widths.append(len(self._widths))
        self._sizes.append(size)
        return self._widths[-1]

    def tie(self, a: int, b: int) -> None:
        a, b = self._widths[a], self._widths[b]
        self._widths = [a if width == b else width for width in self._widths]

    def size(self, terms: tuple[Term, ...]) -> int:
        sizes = [[self._sizes[w] if w >= 0 else -w for w in term] for term in terms]
        return int(sum(np.prod(term) for term in sizes))

    def made(self, name: str, *axes: tuple[Term, ...], **given: Any) -> Any:
        """Make a variable with these axes."""
        self.axes[self.tf.get_variable_scope().name + "/" + name] = axes
        shape = [self.size(axis) for axis in axes]
        start = given.get("start") or self.tf.random_normal_initializer(stddev=0.5)
        return self.tf.get_variable(name, shape, "float32", start)

    def named(self) -> Any:
        self._count += 1
        return self.tf.variable_scope(f"layer{self._count}")

    # --- layers ---

    def dense(self, x: Value, *columns: Term) -> Value:
        terms = columns or ((self.width(),),)
        with self.named():
            kernel, bias = self.made("kernel", x.terms, terms), self.made("bias", terms)
            product = self.tf.tensordot(x.tensor, kernel, [[x.rank - 1], [0]])
            return Value(product + bias, terms)

    def gate(self, x: Value) -> Value:
        units = (self.width(),)
        both = self.dense(x, units, units).tensor
        a, b = self.tf.split(both, 2, axis=1)
        return Value(self.tf.sigmoid(a) * b, (units,))

    def halves(self, x: Value) -> Value:
        first, second = (self.width(),), (self.width(),)
        a, b = self.tf.split(self.dense(x, first, second).tensor, 2, axis=1)
        return Value(self.tf.concat([b, self.tf.nn.relu(a)], 1), (second, first))

    def residual(self, x: Value) -> Value:
        h = self.dense(x)
        y = self.dense(h, *x.terms)
        return Value(x.tensor + y.tensor, x.terms)

    def turned(self, x: Value) -> Value:
        """Units in two groups, of which the outer factor becomes the inner one."""
        groups, units = self.width(2), self.width()
        h = self.tf.reshape(self.dense(x, (groups, units)).tensor, [N, 2, N])
        h = self.tf.reshape(self.tf.transpose(h, [0, 2, 1]), [N, 2 * N])
        return Value(h, ((units, groups),))

    def recurrent(self, x: Value) -> Value:
        cell = Cell(self, x.terms, self.draw(st.booleans()))
        with self.named():
            outputs, _ = self.tf.nn.dynamic_rnn(cell, x.tensor, dtype="float32")
            return Value(outputs, (cell.units,))

    def both_ways(self, x: Value) -> Value:
        forth, back = (Cell(self, x.terms, self.draw(st.booleans())) for _ in range(2))
        with self.named():
            outputs, _ = self.tf.nn.bidirectional_dynamic_rnn(
                forth, back, x.tensor, dtype="float32"
            )
            return Value(self.tf.concat(outputs, 2), (forth.units, back.units))

    def convolution(self, x: Value) -> Value:
        units = (self.width(),)
        with self.named():
            kernel = self.made("kernel", ((-3,),), ((-3,),), x.terms, (units,))
            h = self.tf.nn.conv2d(x.tensor, kernel, [1, 1, 1, 1], "SAME")
            return Value(self.tf.nn.bias_add(h, self.made("bias", (units,))), (units,))

    def separable(self, x: Value) -> Value:
        with self.named():
            kernel = self.made("kernel", ((-3,),), ((-3,),), x.terms, ((-1,),))
            h = self.tf.nn.depthwise_conv2d(x.tensor, kernel, [1, 1, 1, 1], "SAME")
        return self.convolution(Value(h, x.terms))

    def pooled(self, x: Value) -> Value:
        if x.tensor.shape[1] < 2:
            return self.convolution(x)
        return Value(self.tf.nn.max_pool(x.tensor, 2, 2, "VALID"), x.terms)

    def kept(self, x: Value) -> Value:
        return x

    def layer_norm(self, x: Value) -> Value:
        tf = self.tf
        mean, variance = tf.nn.moments(x.tensor, [x.rank - 1], keepdims=True)
        with self.named():
            gamma = self.made("gamma", x.terms, start=tf.ones_initializer())
            beta = self.made("beta", x.terms, start=tf.zeros_initializer())
        normal = tf.nn.batch_normalization(x.tensor, mean, variance, beta, gamma, 1e-3)
        return Value(normal, x.terms)

    def batch_norm(self, x: Value) -> Value:
        tf = self.tf
        with self.named():
            names = ("gamma", "beta", "moving_mean", "moving_variance")
            starts = [tf.ones_initializer(), tf.zeros_initializer()] * 2
            starts[2:] = starts[3:1:-1]
            gamma, beta, mean, variance = (
                self.made(n, x.terms, start=start) for n, start in zip(names, starts, strict=True)
            )
        if x.rank == 4:
            normal, *_ = tf.nn.fused_batch_norm(
                x.tensor, gamma, beta, mean, variance, is_training=False
            )
            return Value(normal, x.terms)
        normal = tf.nn.batch_normalization(x.tensor, mean, variance, beta, gamma, 1e-3)
        return Value(normal, x.terms)

    def activated(self, x: Value) -> Value:
        nn = self.tf.nn
        function = self.draw(st.sampled_from([None, nn.relu, self.tf.tanh, nn.softplus]))
        return Value(function(x.tensor), x.terms) if function else x

    def joined(self, x: Value, other: Value) -> Value:
        """Put an earlier tensor behind this one, or add it where both are one width."""
        alone = len(x.terms) == len(other.terms) == len(x.terms[0]) == len(other.terms[0]) == 1
        if alone and self.draw(st.booleans()):
            self.tie(x.terms[0][0], other.terms[0][0])
            return Value(x.tensor + other.tensor, x.terms)
        joined = self.tf.concat([x.tensor, other.tensor], x.rank - 1)
        return Value(joined, x.terms + other.terms)

    def mean(self, x: Value) -> Value:
        return Value(self.tf.reduce_mean(x.tensor, list(range(1, x.rank - 1))), x.terms)

    def last(self, x: Value) -> Value:
        return Value(x.tensor[:, -1], x.terms)

    def flat(self, x: Value) -> Value:
        places = int(x.tensor.shape[1]) * int(x.tensor.shape[2])
        flat = self.tf.reshape(x.tensor, [N, places * self.size(x.terms)])
        return Value(flat, x.terms * places)

    def settled(self) -> dict[str, Axes]:
        """Return the axes over widths of which no two are one."""
        return {
            name: tuple(
                tuple(tuple(self._widths[w] if w >= 0 else w for w in term) for term in axis)
                for axis in axes
            )
            for name, axes in self.axes.items()
        }

    def entries(self, axis: tuple[Term, ...]) -> list[tuple[tuple[Any, int], ...]]:
        """Write an axis out: the widths and units of each entry."""
        return [
            entry
            for term in axis
            for entry in _product(
                [[(w, i) for i in range(self._sizes[w])] if w >= 0 else -w for w in term]
            )
        ]


class Cell:
    """An LSTM or a GRU as TensorFlow 1 writes it; `dynamic_rnn` takes whatever looks like one."""

    def __init__(self, builder: Builder, terms: tuple[Term, ...], is_gru: bool) -> None:
        self._builder = builder
        self._terms = terms
        self._is_gru = is_gru
        self.units: Term = (builder.width(),)
        self.output_size = N
        self.state_size = N if is_gru else (N, N)
        self.trainable = True

    def zero_state(self, batch_size: Any, dtype: Any) -> Any:
        zeros = self._builder.tf.zeros([batch_size, N], dtype)
        return zeros if self._is_gru else (zeros, zeros)

    def __call__(self, x: Any, state: Any, scope: Any = None) -> tuple[Any, Any]:
        return self._gru(x, state) if self._is_gru else self._lstm(x, *state)

    def _linear(self, name: str, x: Any, h: Any, count: int) -> Any:
        tf, columns = self._builder.tf, (self.units,) * count
        with tf.variable_scope(name):
            kernel = self._builder.made("kernel", (*self._terms, self.units), columns)
            return tf.matmul(tf.concat([x, h], 1), kernel) + self._builder.made("bias", columns)

    def _lstm(self, x: Any, c: Any, h: Any) -> tuple[Any, Any]:
        tf = self._builder.tf
        i, j, f, o = tf.split(self._linear("lstm_cell", x, h, 4), 4, axis=1)
        c = c * tf.sigmoid(f + 1) + tf.sigmoid(i) * tf.tanh(j)
        h = tf.tanh(c) * tf.sigmoid(o)
        return h, (c, h)

    def _gru(self, x: Any, h: Any) -> tuple[Any, Any]:
        tf = self._builder.tf
        r, u = tf.split(tf.sigmoid(self._linear("gates", x, h, 2)), 2, axis=1)
        h = u * h + (1 - u) * tf.tanh(self._linear("candidate", x, r * h, 1))
        return h, h


Entry = tuple[tuple[Any, int], ...]


def _product(factors: list[Any]) -> Iterator[Entry]:
    """Yield the entries of a product; a factor is a number, or the entries of a width or sum."""
    found: list[Entry] = [()]
    for factor in factors:
        if isinstance(factor, int):
            found = [entry for entry in found for _ in range(factor)]
        else:
            inner = [i if isinstance(i[0], tuple) else (i,) for i in factor]
            found = [(*entry, *i) for entry in found for i in inner]
    yield from found


def entries_of(axis: Axis, sizes: Mapping[str, int]) -> list[Entry]:
    """Write an axis out: the widths and units of each entry."""
    found: list[Entry] = []
    for term in axis.terms:
        factors: list[Any] = []
        for factor in term:
            if isinstance(factor, str):
                factors.append([(factor, i) for i in range(sizes[factor])])
            elif isinstance(factor, Axis):
                factors.append(entries_of(factor, sizes))
            else:
                factors.append(len(factor.labels) if isinstance(factor, Blocks) else factor)
        found.extend(_product(factors))
    return found


def agree(structure: Structure, builder: Builder) -> None:
    """Check that the axes are those that were built, whatever their widths are called."""
    names: dict[int, str] = {}
    for variable, axes in builder.settled().items():
        found = structure.axes[variable]
        assert len(found) == len(axes), variable
        for axis, built in zip(found, axes, strict=True):
            told = entries_of(axis, structure.sizes)
            wanted = builder.entries(built)
            assert len(told) == len(wanted), variable
            for a, b in zip(told, wanted, strict=True):
                assert [unit for _, unit in a] == [unit for _, unit in b], (variable, str(axis))
                for (name, _), (number, _) in zip(a, b, strict=True):
                    assert names.setdefault(number, name) == name, (variable, str(axis))
    assert len(set(names.values())) == len(names)


def hold(checkpoint: Checkpoint, structure: Structure, question: Question) -> None:
    """Check what a structure says on the running graph."""
    test = permute(checkpoint, structure, question)
    for name, width in structure.widths.items():
        trial = test.trials[name]
        # Inputs and outputs have the new order too.
        assert trial.result == "tested", (name, width.symmetry, trial)
    with Model(checkpoint, question) as model:
        for width in structure.widths.values():
            if width.resizable and width.growth == "any":
                error = growth_error(model, structure, width.name, width.size // 2)
                assert error < 1e-5, width.name


@pytest.fixture(scope="module")
def tf() -> Any:
    return pytest.importorskip("tensorflow").compat.v1


@contextmanager
def control_flow(tf: Any, version: int) -> Iterator[None]:
    was = tf.control_flow_v2_enabled()
    (tf.enable_control_flow_v2 if version == 2 else tf.disable_control_flow_v2)()
    yield
    (tf.enable_control_flow_v2 if was else tf.disable_control_flow_v2)()


@settings(
    derandomize=True,
    max_examples=24,
    deadline=None,
    # To look for a smaller model that fails takes minutes.
    phases=[Phase.generate],
    suppress_health_check=[HealthCheck.too_slow],
)
@given(data=st.data())
def test_what_was_built_is_told_and_holds(tf: Any, data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "model"
        builders: list[Builder] = []

        def make(maker: Maker) -> list[Any]:
            builders.append(Builder(maker, data))
            return builders[-1].build()

        with control_flow(tf, data.draw(st.sampled_from([1, 2]))):
            maker, outputs = save(tf, make, path)
        checkpoint = open_checkpoint(path)
        structure = infer(checkpoint)
        assert structure.conflicts == ()
        assert structure.opaque == ()
        agree(structure, builders[0])
        hold(checkpoint, structure, asked(maker.feeds, outputs, Path(directory) / "inputs.npz"))
