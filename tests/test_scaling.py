"""Units and layers that are scaled: factors, what follows them, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import case
from converter_plugins.equalize import Equalize
from converter_plugins.fold_batchnorm import FoldBatchnorm
from converter_plugins.scale import Scale
from nets import MODELS, N, Net

from converter import (
    Array,
    Checkpoint,
    PlanError,
    Strategy,
    UsageError,
    Variable,
    open_checkpoint,
)
from converter.errors import InputError
from converter.plan import make_plan
from converter.scaling.kinds import Biases
from converter.scaling.multiply import Factor, multiply, one_number
from converter.scaling.outputs import of_output
from converter.scaling.recurrent import spectral_radius
from converter.structure.infer import structure_of
from converter.structure.layers import layers

EXACT = 1e-9  # epsilons are float32


def made(net: Net, strategy: Strategy, **more: Any) -> dict[str, Array]:
    return {v.name: v.read() for v in strategy.apply(net.checkpoint(**more))}


def error(net: Net, values: dict[str, Array]) -> float:
    before, after = net.run(net.values), net.run(values)
    return float(np.abs(after - before).max() / np.abs(before).max())


def of(make: Callable[[Net], None] | str) -> Net:
    net = Net()
    (MODELS[make] if isinstance(make, str) else make)(net)
    return net


# --- factors ---


def test_what_follows_a_factor() -> None:
    values = np.arange(1.0, 7).reshape(2, 3)
    names = ("w", "w/Adam", "w/Adam_1", "w/ExponentialMovingAverage", "w/Adagrad", "other")
    checkpoint = Checkpoint(Variable.from_array(name, values) for name in names)
    factors = {"w": [Factor(1, lambda: np.array([2.0, -4.0, 0.0])), one_number(0.5)]}
    kept = {v.name: v.read() for v in multiply(checkpoint, factors, is_kept=True)}
    scale = np.array([1.0, -2.0, 0.0])
    assert np.array_equal(kept["w"], values * scale)
    assert np.array_equal(kept["w/ExponentialMovingAverage"], values * scale)
    # What has no effect any more has no gradient: nothing can be told of it.
    inverse = np.array([1.0, -0.5, 2.0])
    assert np.array_equal(kept["w/Adam"], values * inverse)
    assert np.array_equal(kept["w/Adam_1"], values * inverse**2)
    assert np.array_equal(kept["other"], values)
    changed = {v.name: v.read() for v in multiply(checkpoint, factors, is_kept=False)}
    assert np.array_equal(changed["w/ExponentialMovingAverage"], values * scale)
    assert np.array_equal(changed["w/Adam"], values)


def test_factored_slots_average_over_the_axis_that_they_lack() -> None:
    shapes = {"w": (2, 3), "w_slot_vr": (2,), "w_slot_vc": (3,)}
    checkpoint = Checkpoint(Variable.from_array(n, np.ones(s)) for n, s in shapes.items())
    assert checkpoint.roles()["w_slot_vr"].slot == "vr"
    factors = {"w": [Factor(1, lambda: np.array([1.0, 2.0, 0.5]))]}
    found = {v.name: v.read() for v in multiply(checkpoint, factors, is_kept=True)}
    assert np.allclose(found["w_slot_vc"], [1, 0.25, 4])
    assert np.allclose(found["w_slot_vr"], np.mean([1, 0.25, 4]))


def test_only_floats_are_multiplied() -> None:
    checkpoint = Checkpoint([Variable.from_array("n", np.arange(3))])
    with pytest.raises(PlanError, match="n: only floats can be multiplied, and it is int64"):
        list(multiply(checkpoint, {"n": [one_number(2)]}, is_kept=False))


# --- equalize ---


def ranges(values: dict[str, Array]) -> tuple[Array, Array]:
    return np.abs(values["h/w"]).max(axis=0), np.abs(values["out/w"]).max(axis=1)


def test_both_sides_get_one_range() -> None:
    net = of("relu")
    values = made(net, Equalize())
    first, second = ranges(values)
    assert np.allclose(first, second)
    r1, r2 = ranges(net.values)
    assert np.allclose(first, np.sqrt(r1 * r2))
    s = np.sqrt(r1 * r2) / r2
    assert np.allclose(values["h/b"], net.values["h/b"] / s)
    assert error(net, values) < EXACT


def test_slots_and_averages_follow_the_units() -> None:
    net = of("relu")
    slot, average = net.rng.normal(size=(2, 4, N))
    more = {"h/w/Adam": slot, "h/w/Adam_1": slot**2, "h/w/ExponentialMovingAverage": average}
    more |= {"out/w/Momentum": np.ones((N, 3))}
    values = made(net, Equalize(), **more)
    factor = values["h/w"] / net.values["h/w"]
    assert np.allclose(values["h/w/Adam"], slot / factor)
    assert np.allclose(values["h/w/Adam_1"], slot**2 / factor**2)
    assert np.allclose(values["h/w/ExponentialMovingAverage"], average * factor)
    assert np.allclose(values["out/w/Momentum"], factor[0][:, None])


def test_averages_that_were_saved_as_the_model() -> None:
    average = "ExponentialMovingAverage"

    def saved(m: Net) -> None:
        h = m.op("MatMul", m.x(4), m.variable(f"h/{average}", 4, N))
        m.op("MatMul", m.op("Relu", h), m.variable(f"out/{average}", N, 3))

    net = of(saved)
    values = made(net, Equalize())
    made_, taken = np.abs(values[f"h/{average}"]), np.abs(values[f"out/{average}"])
    assert np.allclose(made_.max(axis=0), taken.max(axis=1))
    assert error(net, values) < EXACT


def chain(net: Net) -> None:
    x = net.x(4)
    for name, rows, columns in (("a", 4, 5), ("b", 5, 7), ("c", 7, 3)):
        x = net.dense(net.op("Relu", x) if name != "a" else x, name, rows, columns)


def test_chains_settle() -> None:
    net = of(chain)
    values = made(net, Equalize())
    for one, other in (("a", "b"), ("b", "c")):
        made_, taken = (
            np.abs(values[f"{one}/w"]).max(axis=0),
            np.abs(values[f"{other}/w"]).max(axis=1),
        )
        assert np.allclose(made_, taken, rtol=1e-3)
    assert error(net, values) < EXACT


def test_of_several_consumers_the_largest_counts() -> None:
    def two(m: Net) -> None:
        h = m.op("Relu", m.dense(m.x(4), "h", 4, N))
        m.op("Add", m.dense(h, "one", N, 3), m.dense(h, "two", N, 3))

    net = of(two)
    net.values["two/w"] *= 100
    values = made(net, Equalize())
    assert np.allclose(np.abs(values["h/w"]).max(axis=0), np.abs(values["two/w"]).max(axis=1))
    assert error(net, values) < EXACT


def test_dead_units_and_the_limit() -> None:
    net = of("relu")
    net.values["h/w"][:, 0] = 0
    net.values["h/w"][:, 1] *= 1e-9
    values = made(net, Equalize(limit=8))
    factor = values["h/b"] / net.values["h/b"]
    assert factor[0] == 1
    assert factor[1] == pytest.approx(8)
    assert (factor >= 1 / 8).all()
    assert error(net, values) < EXACT


def test_a_normalisation_takes_the_factors_in_its_gains() -> None:
    net = of("batch norm")
    values = made(net, Equalize())
    assert error(net, values) < EXACT
    for name in ("h/w", "h/b", "mean", "variance"):
        assert np.array_equal(values[name], net.values[name]), name
    factor = values["gamma"] / net.values["gamma"]
    assert not np.allclose(factor, 1)
    assert np.allclose(values["beta"], net.values["beta"] * factor)
    assert np.allclose(values["out/w"] * factor[:, None], net.values["out/w"])
    scale = np.abs(values["gamma"]) / np.sqrt(values["variance"] + 1e-3)
    assert np.allclose(np.abs(values["h/w"]).max(axis=0) * scale, ranges(values)[1])


def test_what_normalises_a_batch_keeps_outputs_in_training_by_its_gain() -> None:
    def without_gain(m: Net) -> None:
        x = m.dense(m.x(4), "h", 4, N)
        m.values["variance"] = m.rng.uniform(0.5, 2, N)
        scale = m.op("Rsqrt", m.op("Add", m.variable("variance", N), m.constant(1e-3)))
        shift = m.op("Sub", m.variable("beta", N), m.op("Mul", m.variable("mean", N), scale))
        m.dense(m.op("Relu", m.op("Add", m.op("Mul", x, scale), shift)), "out", N, 3)

    kept, *_ = Equalize().notes(of("batch norm").checkpoint())
    assert kept == "keeps the outputs; widths that are equalised: h"
    net = of(without_gain)
    kept, *_ = Equalize().notes(net.checkpoint())
    assert kept == "keeps the outputs in inference; widths that are equalised: h"
    assert error(net, made(net, Equalize())) < EXACT


def test_what_is_folded_already_is_equalised_in_its_kernel() -> None:
    net = of("batch norm")
    start = net.values
    net.values = made(net, FoldBatchnorm())
    folded_first = made(net, Equalize())
    assert np.array_equal(folded_first["gamma"], np.ones(N))
    assert error(net, folded_first) < EXACT
    net.values = start
    net.values = made(net, Equalize())
    folded_last = made(net, FoldBatchnorm())
    for name, value in folded_last.items():
        assert np.allclose(value, folded_first[name], atol=1e-6), name


@pytest.mark.parametrize("name", ["tanh", "tied"])
def test_what_would_change_the_outputs_is_refused(name: str) -> None:
    net = of(name)
    with pytest.raises(PlanError, match=r"h.* no factors of its units keep the outputs: "):
        list(Equalize().apply(net.checkpoint()))


def test_one_width_is_refused_by_name_and_reason() -> None:
    def both(m: Net) -> None:
        h = m.op("Tanh", m.dense(m.x(4), "h", 4, N))
        m.dense(m.op("Relu", m.dense(h, "i", N, 7)), "out", 7, 3)

    net = of(both)
    with pytest.raises(PlanError, match=r"h: equalize would change the outputs: Tanh .* nonlinear"):
        list(Equalize(widths=("h",)).apply(net.checkpoint()))
    with pytest.raises(UsageError, match="z fits none of the 4 widths"):
        list(Equalize(widths=("z",)).apply(net.checkpoint()))
    values = made(net, Equalize(widths=("i",)))
    assert np.array_equal(values["h/b"], net.values["h/b"])
    notes = list(Equalize().notes(net.checkpoint()))
    assert notes[0] == "keeps the outputs; widths that are equalised: i"
    assert any("h stays: Tanh" in note for note in notes)


def test_units_that_are_an_output_stay() -> None:
    def shown(m: Net) -> None:
        h = m.op("Relu", m.dense(m.x(4), "h", 4, N))
        m.op("Identity", h)
        m.dense(h, "out", N, 3)

    net = of(shown)
    with pytest.raises(PlanError, match=r"keep the outputs: Identity.* is an output"):
        list(Equalize().apply(net.checkpoint()))


# --- fold-batchnorm ---


def test_a_normalisation_is_folded() -> None:
    net = of("batch norm")
    values = made(net, FoldBatchnorm())
    assert error(net, values) < EXACT
    v = net.values
    factor = v["gamma"] / np.sqrt(v["variance"] + 1e-3)
    assert np.allclose(values["h/w"], v["h/w"] * factor)
    assert np.allclose(values["h/b"], v["beta"] + (v["h/b"] - v["mean"]) * factor)
    assert values["gamma"].tolist() == [1] * N
    assert values["beta"].tolist() == values["mean"].tolist() == [0] * N
    assert np.allclose(values["variance"], 1 - 1e-3)


def test_averages_are_folded_with_averages() -> None:
    net = of("batch norm")
    shadow = {n: net.rng.normal(size=net.values[n].shape) for n in ("h/w", "h/b", "gamma", "beta")}
    more = {f"{name}/ExponentialMovingAverage": value for name, value in shadow.items()}
    values = made(net, FoldBatchnorm(), **more)
    averages = {
        name: values.get(f"{name}/ExponentialMovingAverage", value)
        for name, value in values.items()
        if not name.endswith("Average")
    }
    started: dict[str, Any] = {**net.values, **shadow}
    before = net.run(started)
    assert np.allclose(net.run(averages), before)
    assert error(net, values) < EXACT
    with pytest.raises(PlanError, match="h/w: it has no average, and gamma beside it has"):
        made(net, FoldBatchnorm(), **{"gamma/ExponentialMovingAverage": shadow["gamma"]})


def test_slots_of_a_folded_kernel_follow_its_gradients() -> None:
    net = of("batch norm")
    values = made(net, FoldBatchnorm(), **{"h/w/Adam": np.ones((4, N))})
    assert np.allclose(values["h/w/Adam"], net.values["h/w"] / values["h/w"])
    ftrl = {"h/b/Ftrl": np.ones(N), "h/b/Ftrl_1": np.ones(N)}
    with pytest.raises(PlanError, match="h/b/Ftrl_1: Ftrl computes h/b from it"):
        made(net, FoldBatchnorm(), **ftrl)


def normalised(m: Net, x: str, *, gamma: bool = True, beta: bool = True) -> str:
    m.values["variance"] = m.rng.uniform(0.5, 2, N)
    scale = m.op("Rsqrt", m.op("Add", m.variable("variance", N), m.constant(1e-3)))
    scale = m.op("Mul", scale, m.variable("gamma", N)) if gamma else scale
    shift = m.op("Mul", m.variable("mean", N), scale)
    shift = m.op("Sub", m.variable("beta", N), shift) if beta else m.op("Neg", shift)
    return m.op("Add", m.op("Mul", x, scale), shift)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("gamma", [True, False])
@pytest.mark.parametrize("beta", [True, False])
@pytest.mark.parametrize("relu", [True, False])
def test_every_set_of_variables_is_folded(
    *, bias: bool, gamma: bool, beta: bool, relu: bool
) -> None:
    def make(m: Net) -> None:
        x = m.op("MatMul", m.x(4), m.variable("h/w", 4, N))
        x = m.op("BiasAdd", x, m.variable("h/b", N)) if bias else x
        x = m.op("Relu", x) if relu else x
        m.dense(m.op("Relu", normalised(m, x, gamma=gamma, beta=beta)), "out", N, 3)

    net = of(make)
    if gamma:
        net.values["gamma"][:2] = [0, -1.5]
    values = made(net, FoldBatchnorm())
    assert error(net, values) < EXACT
    assert not np.allclose(values["h/w"], net.values["h/w"])
    assert np.allclose(values["variance"], 1 - 1e-3)
    if gamma:
        assert set(np.abs(values["gamma"])) <= {0, 1}


def test_what_cannot_be_folded_is_told_by_name() -> None:
    def before(m: Net) -> None:
        x = normalised(m, m.x(N))
        m.dense(m.op("Relu", x), "out", N, 3)

    def branched(m: Net) -> None:
        h = m.dense(m.x(4), "h", 4, N)
        m.dense(m.op("Add", normalised(m, h), h), "out", N, 3)

    def behind_tanh(m: Net) -> None:
        h = m.op("Tanh", m.dense(m.x(4), "h", 4, N))
        m.dense(normalised(m, h), "out", N, 3)

    for make, reason in (
        (before, "no one kernel makes what it takes"),
        (branched, "Add.* adds what it takes to what it gives"),
        (behind_tanh, "Tanh .* stands before it"),
    ):
        with pytest.raises(PlanError, match=f"no batch normalisation can be folded .*{reason}"):
            list(FoldBatchnorm().apply(of(make).checkpoint()))
    with pytest.raises(PlanError, match="gamma: it cannot be folded: no one kernel"):
        list(FoldBatchnorm(only=("gam*",)).apply(of(before).checkpoint()))
    with pytest.raises(PlanError, match="folded: there is none"):
        list(FoldBatchnorm().apply(of("relu").checkpoint()))
    with pytest.raises(InputError, match=r"put the \.meta file"):
        list(FoldBatchnorm().apply(Checkpoint([Variable.from_array("w", np.ones((2, 2)))])))


# --- scale ---


def test_the_power_keeps_a_multiple() -> None:
    net = of(chain)
    values = made(net, Scale(kind={"dense": 0.5}, biases="power"))
    assert np.allclose(net.run(values), net.run(net.values) / 8)
    for power, name in enumerate("abc", 1):
        assert np.allclose(values[f"{name}/w"], net.values[f"{name}/w"] / 2)
        assert np.allclose(values[f"{name}/b"], net.values[f"{name}/b"] / 2**power)
    scale = Scale(kind={"dense": 0.5}, biases="power")
    assert list(scale.notes(net.checkpoint())) == ["multiplies outputs: BiasAdd_21 by 0.125"]


def test_biases_are_left_or_scaled() -> None:
    net = of(chain)
    left, scaled = (
        made(net, Scale(kind={"dense": 0.5}, biases=biases)) for biases in ("left", "scaled")
    )
    assert np.array_equal(left["b/b"], net.values["b/b"])
    assert np.array_equal(scaled["b/b"], net.values["b/b"] / 2)
    assert np.array_equal(left["b/w"], net.values["b/w"] / 2)
    (note,) = Scale(kind={"dense": 0.5}).notes(net.checkpoint())
    assert note == "changes the outputs; --scale-biases power keeps multiples of them"


@pytest.mark.parametrize("name", ["tanh", "norm", "attention"])
def test_a_network_that_is_no_multiple_is_refused(name: str) -> None:
    scale = Scale(kind={"dense": 0.5}, biases="power")
    with pytest.raises(PlanError, match="the network is no multiple of what it was"):
        list(scale.apply(of(name).checkpoint()))
    list(Scale(kind={"dense": 0.5}).apply(of(name).checkpoint()))


def test_sums_of_different_multiples_are_refused() -> None:
    def residual(m: Net) -> None:
        table = m.op("Gather", m.variable("t", 7, N), m.ids())
        m.dense(m.op("Add", table, m.dense(table, "h", N, N)), "out", N, 3)

    net = of(residual)
    with pytest.raises(
        PlanError, match=r"out/w: the network is no multiple.* Add\w+ takes 0\.5 and 1 times"
    ):
        made(net, Scale(kind={"dense": 0.5}, biases="power"))
    values = made(net, Scale(kind={"embedding": 0.5}, biases="power"))
    assert np.allclose(net.run(values), net.run(net.values) / 2)
    assert np.array_equal(values["h/b"], net.values["h/b"] / 2)


def test_what_is_added_to_its_own_normalisation_is_no_multiple() -> None:
    def branched(m: Net) -> None:
        h = m.dense(m.x(4), "h", 4, N)
        m.dense(m.op("Add", normalised(m, h), h), "out", N, 3)

    net = of(branched)
    with pytest.raises(PlanError, match="no multiple of what it was"):
        made(net, Scale(kind={"dense": 0.5}, scale={"out/*": 2.0}, biases="power"))
    (note, *_) = Scale(kind={"dense": 0.5}, scale={"out/*": 2.0}).notes(net.checkpoint())
    assert note.startswith("changes the outputs")


@pytest.mark.parametrize("biases", ["left", "scaled", "power"])
@pytest.mark.parametrize("factor", [0.5, 3.0])
def test_batch_statistics_follow(biases: Biases, factor: float) -> None:
    net = of("batch norm")
    kernel = net.values["h/w"].copy()
    average = net.rng.uniform(0.5, 2, N)
    # The last layer, whose input is not multiplied, has its factor undone.
    scale = Scale(kind={"dense": factor}, biases=biases, scale={"out/*": 1 / factor})
    values = made(net, scale, **{"variance/ExponentialMovingAverage": average})
    if biases == "left":
        values["out/b"] = net.values["out/b"]
    assert np.allclose(values["h/w"], kernel * factor)
    variance = factor**2 * (net.values["variance"] + 1e-3) - 1e-3
    assert np.allclose(values["variance"], variance)
    followed = values.pop("variance/ExponentialMovingAverage")
    assert np.allclose(followed, factor**2 * (average + 1e-3) - 1e-3)
    if biases != "left":
        assert np.allclose(values["mean"], net.values["mean"] * factor)
    if biases == "power":
        assert np.allclose(values["out/b"], net.values["out/b"])
    assert error(net, values) < EXACT
    notes = list(Scale(kind={"dense": factor}, biases=biases).notes(net.checkpoint()))
    least = "; those below 0.003 cannot far enough, and become 0" if factor < 1 else ""
    assert notes[-1] == (
        f"batch statistics follow, with the epsilons that are added to variances{least}"
    )


def test_variances_that_cannot_follow_become_zero() -> None:
    net = of("batch norm")
    net.values["variance"][:2] = [2.9e-3, 3.1e-3]
    found = {v.name: v for v in Scale(kind={"dense": 0.5}).apply(net.checkpoint())}["variance"]
    values = found.read()
    assert values[0] == 0
    assert 0 < values[1] < 1e-4
    assert dict(found.counts) == {"would be less than 0, and are 0": 1}


def test_variances_without_an_epsilon_follow_alone() -> None:
    def bare(m: Net) -> None:
        m.values["variance"] = m.rng.uniform(0.5, 2, N)
        h = m.op("MatMul", m.x(4), m.variable("h/w", 4, N))
        scale = m.op("Mul", m.op("Rsqrt", m.variable("variance", N)), m.variable("gamma", N))
        shift = m.op("Mul", m.variable("mean", N), scale)
        shift = m.op("Sub", m.variable("beta", N), shift)
        m.op("Tanh", m.op("Add", m.op("Mul", h, scale), shift))

    net = of(bare)
    scale = Scale(kind={"dense": 0.5})
    values = made(net, scale)
    assert np.allclose(values["variance"], net.values["variance"] / 4)
    assert error(net, values) < EXACT
    first, last = scale.notes(net.checkpoint())
    assert first == "keeps the outputs in inference"
    assert last.endswith("each unit is off by about 1.5*epsilon/variance of itself")


def test_what_a_normalisation_turns_round_is_not_kept() -> None:
    def only(m: Net) -> None:
        m.op("Tanh", normalised(m, m.op("MatMul", m.x(4), m.variable("h/w", 4, N))))

    net = of(only)
    kept, turned = (next(iter(Scale(kind={"dense": f}).notes(net.checkpoint()))) for f in (2, -2))
    assert kept == "keeps the outputs in inference"
    assert turned.startswith("changes the outputs")
    assert error(net, made(net, Scale(kind={"dense": -2.0}))) > 0.1


def test_a_factor_of_one_changes_nothing() -> None:
    net = of("relu")
    same = "keeps the outputs: a factor of 1 changes nothing"
    named = Scale(scale={"h/*": 1.0})
    plan = make_plan(net.checkpoint(), [named])
    assert [change.steps for change in plan.changes] == [()] * 4
    assert plan.notes == (f"scale: {same}",)
    assert list(Scale(kind={"dense": 1.0}).notes(net.checkpoint())) == [same]
    assert list(Scale(gate={"f": 1.0}).notes(cell())) == [same]
    before = cell()
    assert [v is before[v.name] for v in Scale(gate={"f": 1.0}).apply(before)] == [True, True]
    both = Scale(kind={"dense": 0.5}, scale={"h/*": 1.0})
    assert [n.split(";")[0] for n in both.notes(net.checkpoint())] == ["changes the outputs"]


def test_factors_that_cancel_out() -> None:
    def ratio(m: Net) -> None:
        x = m.x(4)
        parts = [m.op("MatMul", x, m.variable(name, 4, 3)) for name in ("h/w", "g/w")]
        m.op("Tanh", m.op("RealDiv", *parts))

    net = of(ratio)
    scale = Scale(kind={"dense": 0.5}, biases="power")
    assert list(scale.notes(net.checkpoint())) == [
        "keeps the outputs: what they come from undoes the factors"
    ]
    assert error(net, made(net, scale)) < EXACT


def test_a_plan_promises_the_multiples_of_tensors() -> None:
    net = of(chain)
    half, twice = (Scale(kind={"dense": f}, biases="power") for f in (0.5, 2.0))
    source = net.checkpoint()
    promised = make_plan(source, [half]).multiples()
    assert sorted(set(promised.values())) == [0.125, 0.25, 0.5]
    assert promised["BiasAdd_21"] == 0.125
    assert set(make_plan(source, [half, twice]).multiples().values()) == {1.0}
    left = Scale(kind={"dense": 0.5})
    named = Scale(kind={"dense": 0.5}, biases="power", scale={"a/w": 2.0})
    for other in (left, named):
        assert make_plan(source, [other]).multiples() == {}


def lstm(m: Net) -> None:
    """One step of gates that are told by names alone."""
    m.values |= {
        "rnn/lstm_cell/kernel": m.rng.normal(size=(3 + N, 4 * N)),
        "rnn/lstm_cell/bias": m.rng.normal(size=4 * N),
    }


def cell(**more: Array) -> Checkpoint:
    net = of(lstm)
    return Checkpoint(
        [Variable.from_array(n, v) for n, v in {**net.values, **more}.items()], path=Path("c")
    )


def scaled(**options: object) -> tuple[Array, Array]:
    """Return the factors of the kernel and the bias."""
    before = cell()
    after = {v.name: v.read() for v in Scale(**options).apply(before)}  # type: ignore[arg-type]
    names = ("rnn/lstm_cell/kernel", "rnn/lstm_cell/bias")
    return tuple(after[n] / before[n].read() for n in names)  # type: ignore[return-value]


def test_input_and_state_have_factors_of_their_own() -> None:
    kernel, bias = scaled(input_to_hidden={"*": 0.5}, hidden_to_hidden={"rnn/*": 0.25})
    assert np.allclose(kernel[:3], 0.5)
    assert np.allclose(kernel[3:], 0.25)
    assert np.allclose(bias, 1)


def test_a_gate_is_scaled_by_its_label() -> None:
    kernel, bias = scaled(gate={"f": 0.5}, biases="scaled")
    expected = np.repeat([1, 1, 0.5, 1], N)
    assert np.allclose(kernel, expected)
    assert np.allclose(bias, expected)
    assert np.allclose(scaled(gate={"f": 0.5})[1], 1)
    with pytest.raises(UsageError, match="no recurrent kernel has a gate 'z'; they are i, j, f, o"):
        scaled(gate={"z": 0.5})


def test_every_gate_gets_the_spectral_radius() -> None:
    before = cell()
    after = {v.name: v.read() for v in Scale(spectral_radius={"*": 0.9}).apply(before)}
    kernel = after["rnn/lstm_cell/kernel"]
    assert np.array_equal(kernel[:3], before["rnn/lstm_cell/kernel"].read()[:3])
    for gate in np.split(kernel[3:], 4, axis=1):
        assert np.abs(np.linalg.eigvals(gate)).max() == pytest.approx(0.9)
    (note, told) = Scale(spectral_radius={"*": 0.9}).notes(before)
    assert note.startswith("changes the outputs")
    assert "reach 0.9" in told
    with pytest.raises(UsageError, match="a factor and a spectral radius"):
        scaled(spectral_radius={"*": 0.9}, hidden_to_hidden={"*": 2.0})
    bad = cell(**{"rnn/lstm_cell/kernel": np.full((3 + N, 4 * N), np.nan)})
    (variable, _) = Scale(spectral_radius={"*": 0.9}).apply(bad)
    with pytest.raises(InputError, match="NaN or infinities, and has no eigenvalues"):
        variable.read()


@pytest.mark.parametrize(
    ("name", "inputs", "states"),
    [
        # Two kernels; those of the GRU make its gates and its candidate, apart from one another.
        ("tf115_v2_keras_rnn", {"first/kernel": 5, "second/kernel": 12}, {"first": 0, "second": 0}),
        ("tf012_v2_gru_seqlen", {"RNN/GRUCell/Gates/Linear/Matrix": 7}, {"RNN": 7}),
        ("tf10_v2_gatewise_lstm", {"LSTMcell/forget_gate/wx": 7}, {"LSTMcell/forget_gate": 0}),
    ],
)
def test_parts_of_kernels_are_told_by_the_graph(
    name: str, inputs: dict[str, int], states: dict[str, int]
) -> None:
    source = open_checkpoint(case(name).path)
    scale = Scale(input_to_hidden={"*": 0.5}, spectral_radius={"*": 0.8})
    after = {v.name: v for v in scale.apply(source)}
    for kernel, rows in inputs.items():
        assert np.allclose(after[kernel].read()[:rows], source[kernel].read()[:rows] / 2)
    for scope, first in states.items():
        (kernel, *_) = (
            n
            for n, v in after.items()
            if n.startswith(scope)
            and n.endswith(("recurrent_kernel", "Gates/Linear/Matrix", "wt"))
            and source.roles()[n].kind == "model"
        )
        matrix = after[kernel].read()[first:]
        for gate in np.split(matrix, matrix.shape[1] // len(matrix), axis=1):
            assert np.abs(np.linalg.eigvals(gate)).max() == pytest.approx(0.8, rel=1e-5)


def test_large_matrices_have_their_radius_by_iteration(monkeypatch: pytest.MonkeyPatch) -> None:
    from converter.scaling import recurrent

    rng = np.random.default_rng(1)
    # A pair of complex eigenvalues is the largest.
    matrix = rng.normal(size=(60, 60)) / 60**0.5
    matrix[:2] = matrix[:, :2] = 0
    matrix[:2, :2] = [[1.2, 1.0], [-1.0, 1.2]]
    exact = np.abs(np.linalg.eigvals(matrix)).max()
    monkeypatch.setattr(recurrent, "_MOST_DENSE", 10)
    assert spectral_radius(matrix) == pytest.approx(exact, rel=1e-6)
    assert spectral_radius(np.zeros((20, 20))) == 0


def test_what_cannot_be_scaled() -> None:
    for options, words in (
        ({"kind": {"pooling": 1.0}}, "kind 'pooling': it must be one of convolution, dense"),
        ({"kind": {"dense": float("nan")}}, "kind 'dense': the factor must be finite"),
        ({"kind": {"dense": -1.0}, "biases": "power"}, "only positive factors"),
        ({"scale": {"*": 1.0}, "biases": "power"}, "power is about kinds"),
        ({"spectral_radius": {"*": -1.0}}, "cannot be negative"),
        ({}, "factors or statistics are needed"),
    ):
        with pytest.raises(UsageError, match=words):
            Scale(**options)
    net = of("relu")
    with pytest.raises(PlanError, match="no layer is convolution; they are dense"):
        made(net, Scale(kind={"convolution": 1.0}))
    with pytest.raises(PlanError, match="no recurrent kernel is known"):
        made(net, Scale(hidden_to_hidden={"*": 1.0}))


def test_the_output_of_a_layer_is_multiplied() -> None:
    for name, number in (("relu", 0), ("batch norm", 0), ("tanh", 1)):
        net = of(name)
        checkpoint = net.checkpoint()
        structure = structure_of(checkpoint)
        layer = layers(checkpoint)[number]
        size = checkpoint[layer.kernels[0]].shape[-1]
        units = np.linspace(0.5, 2, size)
        factors = of_output(checkpoint, structure, layer, partial(np.asarray, units))
        found = {n: [f] for n, f in factors.items()}
        values = {v.name: v.read() for v in multiply(checkpoint, found, is_kept=False)}
        if number == 0:
            values["out/w"] = values["out/w"] / units[:, None]
            assert error(net, values) < EXACT
        else:
            assert np.allclose(net.run(values), net.run(net.values) * units)
