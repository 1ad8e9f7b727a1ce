"""What becomes of the outputs of small models, and what the plan says of that before."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from converter_plugins.duplicate import Duplicate
from converter_plugins.pad import Pad
from converter_plugins.project import Project
from converter_plugins.select import Select
from converter_plugins.truncate import Truncate
from structure_maker import Model

from converter import (
    Array,
    Checkpoint,
    Coupled,
    Matrix,
    Resizer,
    Units,
    Variable,
    Width,
    WidthMap,
)
from converter.initializer import parse_initializer
from converter.resize.exactness import Resized
from converter.structure.graph import Graph, Node
from converter.structure.infer import Structure, infer_from

N = 6
LIVE = parse_initializer("normal(stddev=0.5)")

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
        self._graph: Graph | None = None

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
        return Checkpoint(variables, path=Path("made"), structure=lambda c, _: self.told(c))

    def told(self, checkpoint: Checkpoint) -> Structure:
        return infer_from(Graph(Path("made.meta"), self.definition), checkpoint)

    def run(self, values: Mapping[str, Array]) -> Array:
        """Return the output of the last node."""
        found: dict[Node, Any] = {}
        graph = self._graph = self._graph or Graph(Path("made.meta"), self.definition)
        known = {**values, **self.feeds, **self.held}
        for node in graph.nodes:
            if node.name in known:
                found[node] = known[node.name]
            else:
                found[node] = OPS[node.op](node, *(found[o.node] for o in node.inputs))
        last = graph.by_name[self.definition.node[-1].name.decode()]
        return np.asarray(found[last])


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


def attention(power: float = -0.5, *, shared: bool = False) -> Callable[[Net], None]:
    def make(m: Net) -> None:
        x = m.x(4)
        query = m.dense(x, "h", 4, N)
        key = query if shared else m.dense(x, "k", 4, N)
        scores = m.op("MatMul", query, key, transpose_b=True)
        scaled = m.op("Mul", scores, m.constant(N**power))
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
    name = the_width(checkpoint.structure())
    resizer = STRATEGIES[strategy](resize={name: size})
    (plan,) = resizer.resizes(checkpoint).widths
    values = {v.name: v.read() for v in resizer.apply(checkpoint)}
    factors = checkpoint.structure().factors.get(name, ())
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

ZERO = "what consumes the new units is zero"
SHARED = "the shares of the copies add up to 1"
MADE_UP = "what makes it is scaled by the new units that its normalisation counts"
LINEAR = "only linear ops touch it, and the maps undo each other"


@pytest.mark.parametrize(
    ("model", "strategy", "size", "why"),
    [
        ("tanh", "pad", 9, ZERO),
        ("tanh", "live", 9, ZERO),
        ("relu", "live", 9, ZERO),
        ("tanh", "duplicate", 9, SHARED),
        ("relu", "even", 20, SHARED),
        ("embedding", "live", 9, ZERO),
        ("embedding", "duplicate", 7, SHARED),
        ("embedding", "project", 9, LINEAR),
        ("embedding", "gaussian", 9, LINEAR),
        ("batch norm", "live", 9, ZERO),
        ("batch norm", "duplicate", 9, SHARED),
        ("norm", "pad", 9, MADE_UP),
        ("norm written out", "pad", 9, MADE_UP),
        ("rms norm", "pad", 9, MADE_UP),
        ("norm", "live", 7, MADE_UP),
        ("norm", "duplicate", 12, SHARED),
        ("post norm", "duplicate", 18, SHARED),
        ("rms norm", "duplicate", 12, SHARED),
        ("attention", "pad", 9, ZERO),
        ("attention", "live", 9, ZERO),
        ("attention", "duplicate", 10, SHARED),
        ("attention", "project", 9, LINEAR),
        ("attention by size", "live", 9, ZERO),
        ("tied", "pad", 9, ZERO),
        ("summed", "pad", 9, "what consumes the new units is zero"),
    ],
)
def test_what_is_called_exact_is(model: str, strategy: str, size: int, why: str) -> None:
    found = outcome(model, strategy, size)
    assert found.error < 1e-12
    assert found.plan.verdict == (True, why)


@pytest.mark.parametrize(
    ("model", "strategy", "size", "why"),
    [
        ("tanh", "lossy", 9, "its units are mixed: Tanh Tanh is nonlinear"),
        ("norm", "duplicate", 9, "Mean Mean averages over it; copy every unit as often"),
        ("rms norm", "duplicate", 9, "Mean Mean averages over it; copy every unit as often"),
        ("post norm", "pad", 9, "Mean Mean averages over it, new units included"),
        ("norm and tied", "pad", 9, "Mean Mean averages over it, new units included"),
        (
            "tied",
            "duplicate",
            9,
            "one variable produces and consumes it, so copies count twice",
        ),
        ("summed", "duplicate", 9, "Sum Sum sees each of the copies"),
        (
            "one projection",
            "pad",
            9,
            f"Mul multiplies with {N**-0.5:g}, which is 6**-0.5 and moves with it, and "
            f"nothing makes up for that",
        ),
    ],
)
def test_what_is_not_exact_says_why(model: str, strategy: str, size: int, why: str) -> None:
    found = outcome(model, strategy, size)
    assert found.error > 1e-3
    exact, said = found.plan.verdict
    # Nodes are numbered.
    assert (exact, re.sub(r"([a-z])_[0-9]+", r"\1", said)) == (False, why)


def judged(model: str, make: Callable[[Width, int], WidthMap], size: int = 9) -> tuple[bool, str]:
    @dataclass(frozen=True)
    class Anything(Resizer):
        """What somebody else may write."""

        name: ClassVar[str] = "anything"

        def width_map(self, width: Width, size: int, coupled: Coupled) -> WidthMap:
            return make(width, size)

    net = Net()
    MODELS[model](net)
    checkpoint = net.checkpoint()
    name = the_width(checkpoint.structure())
    (plan,) = Anything(resize={name: size}).resizes(checkpoint).widths
    exact, why = plan.verdict
    return exact, re.sub(r"([a-z])_[0-9]+", r"\1", why)


def test_what_a_third_party_gets_wrong_is_not_called_exact() -> None:
    rng = np.random.default_rng(0)
    wide = rng.normal(size=(N, 9))
    square = np.linalg.qr(rng.normal(size=(9, 9)))[0][:N]

    def twice(width: Width, size: int) -> WidthMap:
        units = Units(size, np.arange(size) % width.size)
        return WidthMap(units, units)

    def lost(width: Width, size: int) -> WidthMap:
        units = Units(size, np.zeros(size, int))
        return WidthMap(units, units)

    def noisy(width: Width, size: int) -> WidthMap:
        return WidthMap(Units.first(N, size), Units.first(N, size), noise=0.1)

    def mixed(produce: Array, consume: Array) -> Callable[[Width, int], WidthMap]:
        return lambda width, size: WidthMap(Matrix.of(produce), Matrix.of(consume))

    def half(width: Width, size: int) -> WidthMap:
        return WidthMap(Matrix.of(wide), Units.first(N, size))

    def plain(width: Width, size: int) -> WidthMap:
        return WidthMap(Units.first(N, size), Units.first(N, size))

    def filled(width: Width, size: int) -> WidthMap:
        return WidthMap(Units.first(N, size), Units.first(N, size), LIVE)

    def kept(width: Width, size: int) -> WidthMap:
        produce = np.eye(N)
        return WidthMap(Matrix.of(produce[:, :5]), Matrix.of(produce[:5]))

    assert judged("tanh", twice) == (False, "the shares of the copies do not add up to 1")
    assert judged("tanh", lost) == (False, "5 of its units are removed")
    assert judged("tanh", noisy) == (False, "noise is added to the copies")
    assert judged("tanh", plain, 4) == (False, "2 of its units are removed")
    assert judged("embedding", kept, 5) == (False, "1 of its units are removed")
    assert judged("embedding", half) == (False, "it is mixed on one side only")
    undone = (False, "what consumes it does not undo what produces it")
    assert judged("embedding", mixed(wide, wide.T)) == undone
    differ = (False, "one variable produces and consumes it, and the two maps differ")
    assert judged("tied", mixed(wide, np.linalg.pinv(wide))) == differ
    assert judged("tied", mixed(square, square.T)) == (True, LINEAR)
    assert judged("relu", mixed(square, square.T)) == (
        False,
        "its units are mixed: Relu Relu is positively homogeneous",
    )
    # What is tied gets zeros, whatever the fill.
    assert judged("tied", filled) == (True, ZERO)
    needed = (False, "new units would have to be zero: Tanh Tanh is nonlinear")
    assert judged("summed", filled) == needed
    assert judged("norm", plain) == (False, "Mean Mean averages over it, new units included")
    assert judged("softmax", plain) == (False, "Softmax Softmax normalises over it")


@pytest.mark.parametrize(
    ("model", "strategy", "dead"),
    [
        (
            "tanh",
            "pad",
            "both sides of the new units are zero; give them a fill such as --pad-fill",
        ),
        ("tanh", "live", None),
        ("tanh", "duplicate", None),
        ("tied", "live", "both sides of the new units are zero, as they have to be here"),
        ("rms norm", "pad", "both sides of the new units are zero, as they have to be here"),
        ("norm", "pad", None),
    ],
)
def test_new_units_that_training_never_moves_are_told(
    model: str, strategy: str, dead: str | None
) -> None:
    found = outcome(model, strategy, 9).plan.dead
    if dead is None:
        assert found is None
    else:
        assert found is not None
        assert found.startswith(dead)


def loss(net: Net, values: Mapping[str, Array]) -> float:
    found = net.run(values)
    # Of the old outputs, so that it is the same before and after.
    weights = np.random.default_rng(5).normal(size=(7, 9))[: found.shape[0], : found.shape[1]]
    return float((np.tanh(found) * weights).sum())


def gradients(net: Net, values: Mapping[str, Array]) -> dict[str, Array]:
    """Return the gradients of a loss, by central differences."""
    found = {}
    step = 1e-5
    for name, value in values.items():
        gradient = np.zeros(value.size)
        for place in range(value.size):
            ends = []
            for sign in (1, -1):
                moved = value.astype(np.float64).copy()
                moved.flat[place] += sign * step
                ends.append(loss(net, {**values, name: moved}))
            gradient[place] = (ends[0] - ends[1]) / (2 * step)
        found[name] = gradient.reshape(value.shape)
    return found


STATISTICS = ("mean", "variance")


def slots_after(
    model: str, strategy: str, size: int
) -> tuple[dict[str, Array], dict[str, Array], dict[str, Array], Structure]:
    """Return the true new gradients, and the slots that are to hold them and their squares."""
    net = Net()
    MODELS[model](net)
    trained = {n: v for n, v in net.values.items() if n not in STATISTICS}
    old = gradients(net, net.values)
    slots = {f"{n}/Adam": old[n] for n in trained}
    slots |= {f"{n}/Adam_1": old[n] ** 2 for n in trained}
    powers = {"beta1_power": np.array(0.9), "beta2_power": np.array(0.999)}
    checkpoint = net.checkpoint(**slots, **powers)
    structure = checkpoint.structure()
    name = the_width(structure)
    resizer = STRATEGIES[strategy](resize={name: size})
    result = {v.name: v.read() for v in resizer.apply(checkpoint)}
    for factor in structure.factors.get(name, ()):
        for text, held in net.held.items():
            if np.isclose(held, factor.number):
                net.held[text] = np.asarray(size**factor.power)
    new = gradients(net, {n: result[n] for n in net.values})
    first = {n: result[f"{n}/Adam"] for n in trained}
    second = {n: result[f"{n}/Adam_1"] for n in trained}
    return {n: new[n] for n in trained}, first, second, structure


@pytest.mark.parametrize(
    ("model", "size"),
    [("tanh", 9), ("batch norm", 14), ("embedding", 9), ("attention", 9)],
)
def test_slots_of_copies_are_what_their_gradients_are(model: str, size: int) -> None:
    new, first, second, _ = slots_after(model, "duplicate", size)
    for name, gradient in new.items():
        np.testing.assert_allclose(first[name], gradient, atol=1e-7, err_msg=name)
        np.testing.assert_allclose(second[name], gradient**2, atol=1e-7, err_msg=name)


def test_slots_of_copies_behind_a_mean() -> None:
    # A mean goes back to all units alike, whatever their shares.
    new, first, second, _ = slots_after("norm", "even", 12)
    for name, gradient in new.items():
        np.testing.assert_allclose(first[name], gradient, atol=1e-7, err_msg=name)
        np.testing.assert_allclose(second[name], gradient**2, atol=1e-7, err_msg=name)


def test_slots_of_old_units_behind_a_mean() -> None:
    # Of the old gradients nothing tells what the mean over them took off.
    new, first, _, structure = slots_after("norm", "pad", 9)
    for name, gradient in new.items():
        place = tuple(slice(axis.size(structure.sizes)) for axis in structure.axes[name])
        left = gradient[place] - first[name][place]
        if name in ("h", "a/out/w", "b/out/w"):
            assert np.abs(left).max() > 1e-3
            left -= left.mean(axis=-1, keepdims=True)
        if name in ("a/out/b", "b/out/b"):
            left -= left.mean()
        np.testing.assert_allclose(left, 0, atol=1e-7, err_msg=name)


@pytest.mark.parametrize("model", ["tanh", "batch norm", "attention", "rms norm"])
def test_slots_of_old_units_stay_what_their_gradients_are(model: str) -> None:
    new, first, second, structure = slots_after(model, "live", 9)
    for name, gradient in new.items():
        place = tuple(slice(axis.size(structure.sizes)) for axis in structure.axes[name])
        np.testing.assert_allclose(first[name][place], gradient[place], atol=1e-7, err_msg=name)
        np.testing.assert_allclose(
            second[name][place], gradient[place] ** 2, atol=1e-7, err_msg=name
        )


@pytest.mark.parametrize("strategy", ["project", "gaussian"])
def test_slots_are_turned_as_gradients_are(strategy: str) -> None:
    new, first, second, _ = slots_after("embedding", strategy, 9)
    for name, gradient in new.items():
        np.testing.assert_allclose(first[name], gradient, atol=1e-7, err_msg=name)
        assert (second[name] >= 0).all()
        # Of squares only the sum can be told, and that if the matrix keeps lengths.
        if strategy == "project":
            np.testing.assert_allclose(second[name].sum(), (gradient**2).sum(), rtol=1e-6)


@pytest.mark.parametrize(
    ("model", "strategy", "moves"),
    [
        ("tanh", "pad", False),
        ("tanh", "live", True),
        ("tanh", "duplicate", True),
        ("tied", "live", False),
        ("rms norm", "pad", False),
        ("norm", "pad", True),
    ],
)
def test_new_units_move_where_the_plan_says_so(model: str, strategy: str, moves: bool) -> None:
    new, _, _, structure = slots_after(model, strategy, 9)
    largest = 0.0
    for name, gradient in new.items():
        place = tuple(slice(axis.size(structure.sizes)) for axis in structure.axes[name])
        gradient[place] = 0
        largest = max(largest, float(np.abs(gradient).max()))
    assert (largest > 1e-4) == moves
    assert (outcome(model, strategy, 9).plan.dead is None) == moves
    if not moves:
        assert largest < 1e-9


def test_copies_part_by_their_shares() -> None:
    new, *_ = slots_after("tanh", "duplicate", 12)
    shares = new["h/w"][:, :N] / new["h/w"][:, N:]
    assert (np.abs(np.log(shares)) > 0.1).all()
    new, *_ = slots_after("tanh", "even", 12)
    np.testing.assert_allclose(new["h/w"][:, :N], new["h/w"][:, N:], atol=1e-9)


def values(strategy: Resizer, source: Checkpoint) -> dict[str, Array]:
    return {v.name: v.read() for v in strategy.apply(source)}


def test_shares_add_up_and_differ() -> None:
    for seed, size in [(0, 7), (1, 12), (2, 21)]:
        net = Net()
        hidden("Tanh")(net)
        result = values(Duplicate(resize={"h": size}, seed=seed), net.checkpoint())
        shares = (result["out/w"] / net.values["out/w"][np.arange(size) % N])[:, 0]
        for unit in range(N):
            mine = np.sort(shares[unit::N])
            assert mine.sum() == pytest.approx(1)
            assert (mine > 0.5 / len(mine)).all()
            assert (np.diff(mine) > 0.02 / len(mine)).all()


def test_select_keeps_the_units_that_are_large_everywhere() -> None:
    net = Net()
    batch_norm(net)
    for name, factor in [("h/w", 0.1), ("out/w", 0.1), ("gamma", 0.1), ("beta", 0.1)]:
        net.values[name] = net.values[name] * factor
    net.values["h/w"][:, 4] = 3
    net.values["out/w"][1] = -3
    net.values["gamma"][2] = 2
    # Statistics say nothing, however large.
    net.values["variance"][0] = 1e6
    net.values["mean"][5] = 1e6
    result = values(Select(resize={"h": 3}), net.checkpoint())
    for name in ("gamma", "beta", "mean", "variance"):
        np.testing.assert_array_equal(result[name], net.values[name][[1, 2, 4]], err_msg=name)
    np.testing.assert_array_equal(result["h/w"], net.values["h/w"][:, [1, 2, 4]])
    np.testing.assert_array_equal(result["out/w"], net.values["out/w"][[1, 2, 4]])
    np.testing.assert_array_equal(result["out/b"], net.values["out/b"])


@pytest.mark.parametrize(("size", "kept"), [(3, [0, 2, 4]), (4, [0, 2, 3, 5]), (1, [0])])
def test_select_spreads_units_evenly(size: int, kept: list[int]) -> None:
    net = Net()
    hidden("Tanh")(net)
    result = values(Select(resize={"h": size}, by="uniform"), net.checkpoint())
    np.testing.assert_array_equal(result["h/w"], net.values["h/w"][:, kept])


def test_select_draws_units_by_the_seed() -> None:
    net = Net()
    hidden("Tanh")(net)
    found = set()
    for seed in range(20):
        result = values(Select(resize={"h": 3}, by="random", seed=seed), net.checkpoint())
        again = values(Select(resize={"h": 3}, by="random", seed=seed), net.checkpoint())
        np.testing.assert_array_equal(result["h/w"], again["h/w"])
        kept = [int(np.flatnonzero(net.values["h/b"] == b)[0]) for b in result["h/b"]]
        assert kept == sorted(set(kept))
        found.add(tuple(kept))
    assert len(found) > 5


def test_projections_are_what_they_are_called() -> None:
    identity = Net()
    identity.values["h"] = np.vstack([np.eye(N), np.zeros((1, N))])
    embedding(identity)
    p = values(Project(resize={"h": 9}), identity.checkpoint())["h"][:N]
    np.testing.assert_allclose(p @ p.T, np.eye(N), atol=1e-12)
    other = values(Project(resize={"h": 9}, seed=1), identity.checkpoint())["h"][:N]
    assert np.abs(other - p).max() > 0.1
    g = values(Project(resize={"h": 900}, by="gaussian"), identity.checkpoint())["h"][:N]
    assert g.std() == pytest.approx(900**-0.5, rel=0.03)
    small = values(Project(resize={"h": 4}), identity.checkpoint())["h"][:N]
    np.testing.assert_allclose(small.T @ small, np.eye(4), atol=1e-12)


def test_principal_components_keep_what_is_largest() -> None:
    net = Net()
    embedding(net)
    rng = np.random.default_rng(1)
    directions = np.linalg.qr(rng.normal(size=(N, N)))[0]
    net.values["h"] = (rng.normal(size=(7, N)) * [3, 2, 1, 0, 0, 0]) @ directions.T
    checkpoint = net.checkpoint()
    result = values(Project(resize={"h": 3}, by="pca"), checkpoint)
    # The table has three dimensions, so nothing is lost.
    np.testing.assert_allclose(net.run(result), net.run(net.values), atol=1e-12)
    np.testing.assert_allclose(
        np.linalg.norm(result["h"], axis=0) ** 2,
        np.linalg.svd(net.values["h"])[1][:3] ** 2,
        rtol=1e-9,
    )
