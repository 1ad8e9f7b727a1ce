"""Small models that numpy runs, and what strategies make of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from converter_plugins.duplicate import Duplicate
from converter_plugins.pad import Pad
from converter_plugins.project import Project
from converter_plugins.select import Select
from converter_plugins.truncate import Truncate
from structure_maker import Model

from converter import (
    Array,
    Checkpoint,
    Resizer,
    Variable,
)
from converter.graph.definition import Definition
from converter.graph.node import Node
from converter.graph.ordered import OrderedGraph
from converter.initializer import parse_initializer
from converter.initializers import BUILT_IN
from converter.resize.exactness import Resized
from converter.structure.infer import infer_from, structure_of
from converter.structure.structure import Structure, as_known

N = 6
LIVE = parse_initializer("normal(stddev=0.5)", BUILT_IN)

OPS: dict[str, Callable[..., Any]] = {
    "Identity": lambda _, x: x,
    "MatMul": lambda n, x, y: x @ (y.T if flag(n, "transpose_b") else y),
    "BiasAdd": lambda _, x, y: x + y,
    "Add": lambda _, x, y: x + y,
    "Sub": lambda _, x, y: x - y,
    "Mul": lambda _, x, y: x * y,
    "RealDiv": lambda _, x, y: x / y,
    "Neg": lambda _, x: -x,
    "Tanh": lambda _, x: np.tanh(x),
    "Relu": lambda _, x: np.maximum(x, 0),
    "Square": lambda _, x: x * x,
    "Sqrt": lambda _, x: np.sqrt(x),
    "Rsqrt": lambda _, x: 1 / np.sqrt(x),
    "SquaredDifference": lambda _, x, y: (x - y) ** 2,
    "Mean": lambda n, x, axis: x.mean(int(axis), keepdims=flag(n, "keep_dims")),
    "Sum": lambda n, x, axis: x.sum(int(axis), keepdims=flag(n, "keep_dims")),
    "Gather": lambda _, x, ids: x[ids],
    "Softmax": lambda _, x: np.exp(x) / np.exp(x).sum(-1, keepdims=True),
}


def flag(node: Node, name: str) -> bool:
    return name in node.attributes and bool(node.attributes[name].b)


class Net(Model):
    """A model with values, which numpy runs."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.rng = np.random.default_rng(seed)
        self.values: dict[str, Array] = {}
        self.held: dict[str, Array] = {}
        self.feeds: dict[str, Array] = {}
        self._graph: OrderedGraph | None = None

    def variable(self, name: str, *shape: int) -> str:
        self.values.setdefault(name, self.rng.normal(0, 0.6, shape))
        return super().variable(name, *shape)

    def constant(self, value: Any, name: str = "") -> str:
        name = super().constant(value, name)
        self.held[name] = np.asarray(value)
        return name

    def x(self, columns: int = N) -> str:
        self.feeds["x"] = self.rng.normal(size=(5, columns))
        return self.input(5, columns)

    def ids(self) -> str:
        self.feeds["ids"] = np.array([2, 0, 1, 2, 5])
        return self.input(5, name="ids", dtype="int32")

    def checkpoint(self, **more: Array) -> Checkpoint:
        variables = [Variable.from_array(n, v) for n, v in {**self.values, **more}.items()]
        known = as_known(self.told(Checkpoint(variables)))
        return Checkpoint(variables, path=Path("made"), known=known)

    def told(self, checkpoint: Checkpoint) -> Structure:
        return infer_from(OrderedGraph(Definition(Path("made.meta"), self.definition)), checkpoint)

    def run(self, values: Mapping[str, Array]) -> Array:
        """Return the output of the last node."""
        last = self.definition.node[-1].name.decode()
        return np.asarray(next(v for node, v in self._run(values).items() if node.name == last))

    def consumed(self, variable: str) -> Array:
        """Return what is multiplied with a variable, in rows."""
        found = self._run(self.values)
        products = (node for node in found if node.op == "MatMul")
        held = (variable, f"{variable}/read")
        node = next(n for n in products if n.inputs[1].node.name in held)
        return np.asarray(found[node.inputs[0].node])

    def _run(self, values: Mapping[str, Array]) -> dict[Node, Any]:
        found: dict[Node, Any] = {}
        graph = self._graph = self._graph or OrderedGraph(
            Definition(Path("made.meta"), self.definition)
        )
        known = {**values, **self.feeds, **self.held}
        for node in graph.nodes:
            if node.name in known:
                found[node] = known[node.name]
            else:
                found[node] = OPS[node.op](node, *(found[o.node] for o in node.inputs))
        return found


def hidden(act: str) -> Callable[[Net], None]:
    def make(m: Net) -> None:
        h = m.op(act, m.dense(m.x(4), "h", 4, N))
        m.dense(h, "out", N, 3)

    return make


def embedding(m: Net) -> None:
    m.dense(m.op("Gather", m.variable("h", 7, N), m.ids()), "out", N, 3)


def normed(kind: str, *, post: bool = False, tied: bool = False) -> Callable[[Net], None]:
    """Make a residual network: two layers behind normalisations, and an output."""

    def norm(m: Net, x: str, name: str) -> str:
        axis = m.constant(-1)
        gamma = m.variable(f"{name}/gamma", N)

        def mean(y: str) -> str:
            return m.op("Mean", y, axis, keep_dims=True)

        epsilon = m.constant(1e-2)
        if kind == "rms":
            root = m.op("Rsqrt", m.op("Add", mean(m.op("Square", x)), epsilon))
            return m.op("Mul", m.op("Mul", x, root), gamma)
        beta = m.variable(f"{name}/beta", N)
        middle = mean(x)
        if kind == "written":
            centred = m.op("Sub", x, middle)
            deviation = m.op("Sqrt", m.op("Add", mean(m.op("Square", centred)), epsilon))
            return m.op("Add", m.op("Mul", m.op("RealDiv", centred, deviation), gamma), beta)
        variance = mean(m.op("SquaredDifference", x, middle))
        scale = m.op("Mul", m.op("Rsqrt", m.op("Add", variance, epsilon)), gamma)
        shift = m.op("Sub", beta, m.op("Mul", middle, scale))
        return m.op("Add", m.op("Mul", x, scale), shift)

    def make(m: Net) -> None:
        table = m.variable("h", 7, N)
        x = m.op("Gather", table, m.ids())
        for layer in ("a", "b"):
            y = norm(m, x, layer)
            inner = m.op("Relu", m.dense(y, f"{layer}/in", N, 5))
            x = m.op("Add", y if post else x, m.dense(inner, f"{layer}/out", 5, N))
        y = norm(m, x, "last")
        if tied:
            m.op("MatMul", y, table, transpose_b=True)
        else:
            m.dense(y, "out", N, 3)

    return make


def attention(
    power: float = -0.5, *, shared: bool = False, keyed: bool = False, deep: bool = False
) -> Callable[[Net], None]:
    """Make an attention.

    Args:
        power: of the head size, by which scores are multiplied.
        shared: whether its queries are its keys, too.
        keyed: whether there are other keys beside these.
        deep: whether a layer of its own is added to the queries.
    """

    def make(m: Net) -> None:
        x = m.x(4)
        query = m.dense(x, "h", 4, N)
        if deep:
            query = m.op("Add", query, m.dense(query, "more", N, N))
        key = query if shared else m.dense(x, "k", 4, N)
        scores = m.op("MatMul", query, key, transpose_b=True)
        scaled = m.op("Mul", scores, m.constant(N**power))
        if keyed:
            others = m.op("MatMul", query, m.dense(x, "l", 4, N), transpose_b=True)
            scaled = m.op("Add", scaled, m.op("Mul", others, m.constant(N**power)))
        weights = m.op("Softmax", scaled)
        m.dense(m.op("MatMul", weights, m.dense(x, "v", 4, 3)), "out", 3, 2)

    return make


def softmax(m: Net) -> None:
    m.op("Softmax", m.dense(m.x(4), "h", 4, N))


def tied(m: Net) -> None:
    table = m.variable("h", 7, N)
    m.op("MatMul", m.op("Gather", table, m.ids()), table, transpose_b=True)


def batch_norm(m: Net) -> None:
    x = m.dense(m.x(4), "h", 4, N)
    m.values["variance"] = m.rng.uniform(0.5, 2, N)
    scale = m.op("Rsqrt", m.op("Add", m.variable("variance", N), m.constant(1e-3)))
    scale = m.op("Mul", scale, m.variable("gamma", N))
    shift = m.op("Sub", m.variable("beta", N), m.op("Mul", m.variable("mean", N), scale))
    m.dense(m.op("Relu", m.op("Add", m.op("Mul", x, scale), shift)), "out", N, 3)


def summed(m: Net) -> None:
    m.op("Sum", m.op("Tanh", m.dense(m.x(4), "h", 4, N)), m.constant(-1), keep_dims=True)
    m.dense(m.definition.node[-1].name.decode(), "out", 1, 2)


def the_width(structure: Structure) -> str:
    return next(n for n, w in structure.widths.items() if w.size == N and n[0] == "h")


@dataclass
class Outcome:
    """What a strategy did to a net: its outputs before and after, and what the plan said."""

    before: Array
    after: Array
    plan: Resized
    values: dict[str, Array]

    @property
    def error(self) -> float:
        after = self.after[tuple(slice(size) for size in self.before.shape)]
        return float(np.abs(after - self.before).max() / np.abs(self.before).max())


def outcome(model: str, strategy: str, size: int) -> Outcome:
    net = Net()
    MODELS[model](net)
    checkpoint = net.checkpoint()
    name = the_width(structure_of(checkpoint))
    resizer = STRATEGIES[strategy](resize={name: size})
    (plan,) = resizer.resizes(checkpoint).widths
    values = {v.name: v.read() for v in resizer.apply(checkpoint)}
    factors = structure_of(checkpoint).factors.get(name, ())
    before = net.run(net.values)
    for factor in factors:
        # A graph that is built at the new size.
        for text, held in net.held.items():
            if np.isclose(held, factor.number):
                net.held[text] = np.asarray(size**factor.power)
    return Outcome(before, net.run(values), plan, values)


MODELS: dict[str, Callable[[Net], None]] = {
    "attention": attention(),
    "attention by size": attention(-1.0),
    "batch norm": batch_norm,
    "embedding": embedding,
    "one projection": attention(shared=True),
    "one projection and keys": attention(shared=True, keyed=True),
    "deep queries": attention(deep=True),
    "one deep projection": attention(shared=True, deep=True),
    "post norm": normed("fused", post=True),
    "norm": normed("fused"),
    "norm and tied": normed("fused", tied=True),
    "norm written out": normed("written"),
    "relu": hidden("Relu"),
    "rms norm": normed("rms"),
    "softmax": softmax,
    "summed": summed,
    "tanh": hidden("Tanh"),
    "tied": tied,
}
STRATEGIES: dict[str, Callable[..., Resizer]] = {
    "duplicate": Duplicate,
    "even": partial(Duplicate, shares="even"),
    "gaussian": partial(Project, by="gaussian"),
    "live": partial(Pad, fill=LIVE),
    "lossy": partial(Project, lossy=True),
    "noisy": partial(Duplicate, noise=0.1),
    "pad": Pad,
    "project": Project,
    "select": Select,
    "truncate": Truncate,
}
