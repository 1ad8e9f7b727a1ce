"""What the plan says of the outputs and gradients of small models, and what becomes of them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
from nets import (
    LIVE,
    MODELS,
    STRATEGIES,
    N,
    Net,
    outcome,
    the_width,
)

from converter import (
    Array,
    Coupled,
    Matrix,
    Resizer,
    Units,
    Width,
    WidthMap,
)
from converter.resize.exactness import judge
from converter.structure.axes.axis import Symmetry, Touch
from converter.structure.infer import structure_of
from converter.structure.structure import Structure

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
        ("one projection", "pad", 9, ZERO),
        ("one projection", "live", 9, ZERO),
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
        *(
            (
                model,
                "pad",
                9,
                f"Mul multiplies with {N**-0.5:g}, which is 6**-0.5 and moves with it, and "
                f"nothing makes up for that",
            )
            for model in ("one projection and keys", "deep queries", "one deep projection")
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
    name = the_width(structure_of(checkpoint))
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
    assert judged("embedding", kept, 5) == (False, "1 of its units is removed")
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
    structure = structure_of(checkpoint)
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


def told(produce: Units | Matrix, consume: Units | Matrix, width: Width) -> tuple[bool, str]:
    return judge(width, WidthMap(produce, consume), (), tied=False)


def touched(what: Touch, symmetry: Symmetry = "permutation", produced_by: str = "a") -> Width:
    made = (produced_by,) if produced_by else ()
    return Width("a", 2, symmetry, True, "any", made, touches=((what, f"Op {what}"),))


def test_copies_of_what_is_fed_are_exact_where_it_is_a_state() -> None:
    index = np.array([0, 1, 0])
    units = Units(3, index), Units(3, index, np.array([0.5, 1, 0.5]))
    assert told(*units, touched("input")) == (True, SHARED)
    outside = touched("input", produced_by="")
    assert told(*units, outside) == (False, "Op input sees each of the copies")


def test_an_average_counts_new_units_beside_copies() -> None:
    index = np.array([0, 1, 0, 1, -1])
    units = Units(5, index), Units(5, index, np.array([0.5, 0.5, 0.5, 0.5, 0]))
    why = "Op square mean averages over it, new units included"
    assert told(*units, touched("square mean")) == (False, why)


def test_mixed_units_that_are_seen_or_counted_are_not_exact() -> None:
    wide = np.eye(2, 3)
    square = np.array([[0.0, 1], [1, 0]])
    more, same = ((Matrix.of(m), Matrix.of(m.T)) for m in (wide, square))
    assert told(*more, touched("affine", "free")) == (True, LINEAR)
    counted = touched("counted", "free")
    assert told(*more, counted) == (False, "Op counted computes with the number of its units")
    assert told(*same, counted) == (True, LINEAR)
    shown = (False, "Op shown is an output in which its units would be mixed")
    assert told(*same, touched("shown", "free")) == shown
