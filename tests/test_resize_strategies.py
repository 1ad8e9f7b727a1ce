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
from click.testing import CliRunner
from conftest import DATA
from converter_plugins.duplicate import Duplicate
from converter_plugins.pad import Pad
from converter_plugins.project import Project
from converter_plugins.select import Select
from converter_plugins.truncate import Truncate
from safetensors.numpy import save_file
from structure_maker import Model

from converter import (
    Array,
    Checkpoint,
    Coupled,
    Initializer,
    InputError,
    Matrix,
    PlanError,
    Resizer,
    Units,
    UsageError,
    Variable,
    Width,
    WidthMap,
)
from converter.cli import cli
from converter.initializer import parse_initializer
from converter.resize.exactness import Resized
from converter.structure.graph import Graph, Node
from converter.structure.infer import Structure, infer_from
from converter.testing import NAME, check_strategy

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


def odd(what: str) -> Callable[[Net], None]:
    """Make a normalised stream with something odd about it."""

    def make(m: Net) -> None:
        axis = m.constant(-1)

        def mean(y: str) -> str:
            return m.op("Mean", y, axis, keep_dims=True)

        x = m.op("Gather", m.variable("h", 7, N), m.ids())
        other = m.dense(m.op("Gather", m.variable("other", 7, 3), "ids"), "more", 3, N)
        x = m.op("Add", x, other)
        if what == "shifted":
            x = m.op("Add", x, m.constant(0.5))
        elif what == "nonlinear":
            x = m.op("Tanh", x)
        elif what == "scaled":
            x = m.op("Mul", m.op("Neg", x), m.constant(3.0))
        elif what == "gain before":
            x = m.op("Mul", x, m.variable("before", N))
        elif what == "consumed raw":
            other = m.dense(x, "raw", N, N)
        elif what == "by position":
            x = m.op(
                "Mul",
                x,
                m.op("Sum", m.op("Gather", m.variable("g", 7, 1), "ids"), axis, keep_dims=True),
            )
        middle = mean(other if what == "mean of another" else x)
        centred = m.op("Sub", x, middle)
        variance = mean(m.op("Square", centred))
        if what == "variance of all":
            variance = mean(m.op("Square", x))
        root = m.op("Rsqrt", m.op("Add", variance, m.constant(1e-2)))
        if what == "variance alone":
            root = m.op("Add", variance, m.constant(1e-2))
        y = m.op("Mul", centred, root)
        if what != "no gain":
            y = m.op("Mul", y, m.variable("gamma", N))
        if what == "two gains":
            y = m.op("Mul", y, m.variable("gamma2", N))
        if what == "relu behind":
            y = m.op("Relu", y)
        if what == "added again":
            y = m.op("Add", y, x)
        if what == "beta":
            y = m.op("Add", y, m.variable("beta", N))
        if what == "beta before, too":
            y = m.op("Add", y, "more/b/read")
        if what == "mean behind":
            y = m.op("Sub", y, mean(y))
        if what == "consumed raw":
            m.op("Add", m.dense(y, "out", N, 3), m.dense(other, "out2", N, 3))
        elif what == "mean used":
            m.op("Add", m.dense(y, "out", N, 3), m.dense(middle, "out2", 1, 3))
        else:
            m.dense(y, "out", N, 3)

    return make


SAME = ["plain", "beta", "relu behind", "scaled", "by position", "variance alone"]
CHANGED = [
    "added again",
    "beta before, too",
    "consumed raw",
    "gain before",
    "mean behind",
    "mean of another",
    "mean used",
    "no gain",
    "nonlinear",
    "shifted",
    "two gains",
    "variance of all",
]


@pytest.mark.parametrize("what", [*SAME, *CHANGED])
def test_only_what_stands_behind_its_normalisation_grows(
    what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(MODELS, "odd", odd(what))
    found = outcome("odd", "pad", 9)
    assert found.plan.verdict.exact == (what in SAME), found.plan
    assert (found.error < 1e-12) == (what in SAME)


def test_noise_parts_copies_and_averages_get_the_same() -> None:
    net = Net()
    hidden("Tanh")(net)
    averages = {f"{n}/ExponentialMovingAverage": v + 1 for n, v in net.values.items()}
    source = net.checkpoint(**averages)
    plain = values(Duplicate(resize={"h": 15}), source)
    noisy = values(Duplicate(resize={"h": 15}, noise=0.25), source)
    other = values(Duplicate(resize={"h": 15}, noise=0.25, seed=1), source)
    for name in ("h/w", "h/b"):
        noise = noisy[name] - plain[name]
        assert (noise[..., :N] == 0).all()
        assert (noise[..., N:] != 0).all()
        assert np.abs(noise[..., N:] - (other[name] - plain[name])[..., N:]).max() > 1e-3
        average = f"{name}/ExponentialMovingAverage"
        np.testing.assert_allclose(noisy[average] - plain[average], noise, atol=1e-12)
    ratio = (noisy["h/w"] - plain["h/w"])[:, N:].std() / net.values["h/w"].std()
    assert ratio == pytest.approx(0.25, rel=0.3)
    # What takes the copies, and what does not have them, gets none.
    for name in ("out/w", "out/b"):
        np.testing.assert_array_equal(noisy[name], plain[name], err_msg=name)


def test_noise_is_measured_by_what_the_variable_holds() -> None:
    rng = np.random.default_rng(0)
    source = Checkpoint([Variable.from_array("w", rng.normal(5, 3, (40, 50)))])
    result = values(Duplicate(shape={"w": (40, 100)}, noise=0.01), source)["w"]
    assert (result[:, 50:] - result[:, :50]).std() == pytest.approx(0.03, rel=0.1)


def test_new_outputs_get_a_bias_that_keeps_them_out() -> None:
    net = Net()
    softmax(net)
    source = net.checkpoint()
    wanted = Pad(resize={"h": 9}, fill=LIVE, output_bias=-1e4)
    result = values(wanted, source)
    np.testing.assert_array_equal(result["h/b"], [*net.values["h/b"], -1e4, -1e4, -1e4])
    np.testing.assert_allclose(net.run(result)[:, :N], net.run(net.values), atol=1e-15)
    assert (net.run(result)[:, N:] == 0).all()
    assert list(wanted.notes(source)) == []
    (note,) = Pad(resize={"h": 9}).notes(source)
    assert note == (
        "h: new outputs count in a softmax, zeros too; --pad-output-bias -1e4 keeps them out, "
        "--pad-fill match makes them like the old ones"
    )
    zeros = values(Pad(resize={"h": 9}), source)
    assert net.run(zeros)[:, N:].sum(axis=1).min() > 0.05


def test_outputs_without_a_bias_cannot_have_another() -> None:
    net = Net()
    tied(net)
    with pytest.raises(PlanError, match=r"^h/vocabulary: these outputs have no bias; leave out"):
        Pad(resize={"h/vocabulary": 9}, output_bias=-1e4).resizes(net.checkpoint())
    # It is about outputs only.
    inner = Net()
    hidden("Tanh")(inner)
    result = values(Pad(resize={"h": 9}, output_bias=-1e4), inner.checkpoint())
    assert (result["h/b"][N:] == 0).all()


@pytest.mark.parametrize(
    ("resizer", "message"),
    [
        (
            Select(resize={"h": 9}),
            "h: select cannot turn 6 units into 9; it only makes them smaller (pad grows)",
        ),
        (
            Duplicate(resize={"h": 4}),
            "h: duplicate cannot turn 6 units into 4; it only grows them (select makes them "
            "smaller)",
        ),
        (
            Project(resize={"h": 9}),
            "h: project cannot turn 6 units into 9; mixed units ruin it: Tanh Tanh_8 is "
            "nonlinear; choose another strategy, or lose what it does (--project-lossy)",
        ),
        (
            Project(resize={"h": 9}, by="pca", lossy=True),
            "h: project cannot turn 6 units into 9; principal components are fewer than the "
            "units; choose another matrix to grow it",
        ),
        (
            Project(resize={"h": 1 << 26}, lossy=True),
            "h: project cannot turn 6 units into 67108864; its matrix would have more than "
            "134,217,728 entries; choose pad or select",
        ),
        (
            Duplicate(resize={"h": 10**12}),
            "h: duplicate cannot turn 6 units into 1000000000000; it copies to 16,777,216 units at "
            "most; choose pad",
        ),
    ],
)
def test_what_a_strategy_cannot_do(resizer: Resizer, message: str) -> None:
    net = Net()
    hidden("Tanh")(net)
    with pytest.raises(PlanError) as caught:
        resizer.resizes(net.checkpoint())
    assert str(caught.value) == message


@pytest.mark.parametrize("fill", [parse_initializer("zeros"), LIVE])
def test_huge_sizes_are_planned_at_once_or_refused(fill: Initializer) -> None:
    net = Net()
    hidden("Tanh")(net)
    resized = {v.name: v for v in Pad(resize={"h": 10**12}, fill=fill).apply(net.checkpoint())}
    old = net.values["h/w"].shape
    assert resized["h/w"].shape == (old[0], 10**12)
    part = resized["h/w"].read(tuple(slice(0, size) for size in old))
    np.testing.assert_array_equal(part, net.values["h/w"])
    for size in (10**18, 10**20):
        with pytest.raises(
            PlanError, match=r"^h/w: it would be \[4, 10+\], which is more than any"
        ):
            list(Pad(resize={"h": size}, fill=fill).apply(net.checkpoint()))


def test_options_that_cannot_be() -> None:
    with pytest.raises(UsageError, match=r"^noise must be 0 or a positive number, got -0.1$"):
        Duplicate(resize={"h": 9}, noise=-0.1)
    with pytest.raises(UsageError, match=r"^transposed is about the matrix of a file; give"):
        Project(resize={"h": 9}, transposed=True)


def test_a_gain_cannot_be_mixed() -> None:
    net = Net()
    batch_norm(net)
    with pytest.raises(PlanError, match=r"^variance: it holds one factor for each unit of h, w"):
        values(Project(resize={"h": 9}, lossy=True), net.checkpoint())


def test_require_exact_refuses_what_is_not() -> None:
    net = Net()
    hidden("Tanh")(net)
    with pytest.raises(PlanError, match=r"^h: 6 to 4 units is not exact: 2 of its units are rem"):
        list(Select(resize={"h": 4}, require_exact=True).apply(net.checkpoint()))
    assert list(Duplicate(resize={"h": 9}, require_exact=True).apply(net.checkpoint()))


@pytest.mark.parametrize("strategy", ["select", "duplicate", "noisy", "pad", "project"])
def test_planning_reads_nothing(strategy: str) -> None:
    net = Net()
    embedding(net)
    read = []

    def watched(variable: Variable) -> Variable:
        def load(region: Any) -> Array:
            read.append(variable.name)
            return variable.load(region)

        return variable.derive(load)

    made = net.checkpoint()
    source = Checkpoint([watched(v) for v in made.values()], structure=lambda c, _: net.told(c))
    resizer = STRATEGIES[strategy](resize={"h": 4 if strategy == "select" else 9})
    resizer.resizes(source)
    variables = list(resizer.apply(source))
    assert read == []
    for variable in variables:
        variable.read()
    assert {"h", "out/w"} <= set(read)


def sized(make: Callable[..., Resizer], size: Callable[[int], int]) -> Callable[..., Resizer]:
    return lambda c: make(shape={NAME: tuple(size(n) if n else 0 for n in c[NAME].shape)})


@pytest.mark.parametrize(
    "make",
    [
        sized(Select, lambda n: n - 1),
        sized(partial(Select, by="random"), lambda n: n - 1),
        sized(Duplicate, lambda n: n + 1),
        sized(partial(Duplicate, noise=0.1), lambda n: n + 1),
        sized(partial(Project, lossy=True), lambda n: n + 1),
        sized(partial(Project, lossy=True, by="pca"), lambda n: max(1, n - 1)),
    ],
    ids=["select", "drawn", "duplicate", "noisy", "project", "pca"],
)
def test_the_contract_of_a_strategy(make: Callable[[Checkpoint], Resizer]) -> None:
    check_strategy(make)


def test_what_is_dense_streams_through_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("converter.resize.dense.BLOCK_BYTES", 64)
    rng = np.random.default_rng(0)
    array = rng.normal(size=(6, 5, 7)).astype("f4")
    source = Checkpoint([Variable.from_array("w", array)])
    (variable,) = Project(shape={"w": (9, 5, 7)}, lossy=True).apply(source)
    parts = [variable.read((slice(k, k + 1), slice(2, 4), slice(0, 7))) for k in range(9)]
    matrix = np.linalg.lstsq(array.reshape(6, -1).T, variable.read().reshape(9, -1).T, rcond=None)
    np.testing.assert_allclose(matrix[0] @ matrix[0].T, np.eye(6), atol=1e-5)
    np.testing.assert_array_equal(np.concatenate(parts), variable.read()[:, 2:4])


ROTATION = np.linalg.qr(np.random.default_rng(7).normal(size=(9, 9)))[0][:N]


def saved(path: Path, produce: Array, consume: Array | None = None, prefix: str = "") -> Path:
    arrays = {f"{prefix}produce": produce}
    if consume is not None:
        arrays[f"{prefix}consume"] = consume
    if path.suffix == ".npy":
        np.save(path, produce)
    elif path.suffix == ".npz":
        np.savez(path, **arrays)  # type: ignore[arg-type]  # its stubs are wrong
    else:
        save_file({n: np.asarray(a, order="C") for n, a in arrays.items()}, path)
    return path


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".safetensors"])
@pytest.mark.parametrize("transposed", [False, True])
def test_matrices_come_from_files(tmp_path: Path, suffix: str, transposed: bool) -> None:
    net = Net()
    embedding(net)
    produce = np.random.default_rng(0).normal(size=(N, 9))
    path = saved(tmp_path / f"p{suffix}", np.asfortranarray(produce.T if transposed else produce))
    resizer = Project(resize={"h": 9}, matrix=path, transposed=transposed)
    (plan,) = resizer.resizes(net.checkpoint()).widths
    assert plan.verdict.exact
    result = values(resizer, net.checkpoint())
    np.testing.assert_allclose(result["h"], net.values["h"] @ produce, atol=1e-12)
    np.testing.assert_allclose(net.run(result), net.run(net.values), atol=1e-12)


@pytest.mark.parametrize("prefix", ["", "h/"])
@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_both_matrices_come_from_a_file(tmp_path: Path, suffix: str, prefix: str) -> None:
    net = Net()
    embedding(net)
    path = saved(tmp_path / f"p{suffix}", ROTATION, 2 * ROTATION.T, prefix)
    resizer = Project(resize={"h": 9}, matrix=path)
    (plan,) = resizer.resizes(net.checkpoint()).widths
    assert plan.verdict == (False, "what consumes it does not undo what produces it")
    result = values(resizer, net.checkpoint())
    np.testing.assert_allclose(result["out/w"], 2 * ROTATION.T @ net.values["out/w"], atol=1e-12)


def test_matrices_that_cannot_be(tmp_path: Path) -> None:
    net = Net()
    embedding(net)

    def error(path: Path, **options: Any) -> str:
        with pytest.raises((PlanError, InputError)) as caught:
            Project(resize={"h": 9}, matrix=path, **options).resizes(net.checkpoint())
        return str(caught.value).replace(str(tmp_path), "")

    p = saved(tmp_path / "p.npy", ROTATION)
    assert error(p, transposed=True) == (
        "/p.npy: it is [6, 9] where [9, 6] is needed; leave out --project-transposed"
    )
    t = saved(tmp_path / "t.npz", ROTATION.T)
    assert error(t) == (
        "/t.npz: produce is [9, 6] where [6, 9] is needed; use --project-transposed"
    )
    small = saved(tmp_path / "small.npy", ROTATION[:, :5])
    assert error(small) == "/small.npy: it is [6, 5] where [6, 9] is needed; give it that shape"
    nan = saved(tmp_path / "nan.npy", ROTATION * np.nan)
    assert error(nan) == "/nan.npy: it has NaN or infinities, which no matrix can have"
    np.savez(tmp_path / "names.npz", matrix=ROTATION)
    assert error(tmp_path / "names.npz") == (
        "/names.npz: it has neither produce nor h/produce; name the matrix so"
    )
    (tmp_path / "cut.npy").write_bytes(p.read_bytes()[:-8])
    assert error(tmp_path / "cut.npy") == (
        "/cut.npy: it is no readable .npy file ([6, 9] of float64 is not what it holds)"
    )
    (tmp_path / "no.npz").write_bytes(b"PK")
    assert error(tmp_path / "no.npz").startswith("/no.npz: it is no readable .npz file (")
    header = p.read_bytes().replace(b"(6, 9)", b"(6, 9" + b"0" * 12 + b")")
    (tmp_path / "vast.npy").write_bytes(header)
    assert error(tmp_path / "vast.npy").startswith("/vast.npy: it is no readable .npy file (")
    wide = save_wide(tmp_path / "wide.safetensors")
    assert error(wide) == (
        "/wide.safetensors: produce is float32 [6, 9, 1], where numbers [6, 9] are needed"
    )
    assert error(tmp_path / "missing.npy").startswith("/missing.npy: it is no readable .npy file")
    np.save(tmp_path / "text.npy", np.array([["a"]]))
    assert error(tmp_path / "text.npy") == (
        "/text.npy: it is no readable .npy file (<U1 is no number)"
    )


def save_wide(path: Path) -> Path:
    save_file({"produce": np.zeros((N, 9, 1), "f4")}, path)
    return path


OUTWARD = '''
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from converter import Resizer, Units, WidthMap, hookimpl, option


@dataclass(frozen=True)
class Mirror(Resizer):
    """Grow widths by the last units in reverse, which share what they did."""

    name: ClassVar[str] = "mirror"
    share: float = option(0.25, help="what the copies do")

    def width_map(self, width, size, coupled):
        index = np.concatenate([np.arange(width.size), np.arange(width.size)[::-1]])[:size]
        copied = index >= 2 * width.size - size
        shares = np.where(copied, 1 - self.share, 1.0)
        shares[width.size:] = self.share
        return WidthMap(Units(size, index), Units(size, index, shares))

    def refusal(self, width, size):
        return "there are no more units to mirror" if size > 2 * width.size else None


@hookimpl
def converter_strategies():
    yield Mirror
'''


def test_a_third_party_writes_one_function(tmp_path: Path) -> None:
    plugin = tmp_path / "mirror.py"
    plugin.write_text(OUTWARD)
    source = str(DATA / "tf14_v2_charlm_lstm_ema")
    command = ["ckpt", source, "--plugin", str(plugin), "--resize", "30=40"]
    found = CliRunner().invoke(cli, [*command, "--mirror-share", "0.4"])
    assert found.exit_code == 0, found.output
    assert "30 -> 40  exact: the shares of the copies add up to 1\n" in found.stdout
    assert "bias/Adam  float32 [4*30] -> [4*40]\n" in found.stdout
    refused = CliRunner().invoke(cli, [*command[:-1], "30=61"])
    assert refused.exit_code == 4
    assert refused.stderr.splitlines()[-1] == (
        "Error: charlm/rnn/lstm_cell: mirror cannot turn 30 units into 61; there are no more units "
        "to mirror"
    )
