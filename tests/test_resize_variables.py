"""The maps of widths applied to variables, slots and averages: every entry, against the rules."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from graph_maker import Maker

from converter import (
    Array,
    Checkpoint,
    PlanError,
    Region,
    Role,
    Units,
    Variable,
    Width,
    WidthMap,
)
from converter.dtype import BY_NAME, VARIANT
from converter.graph.definition import Definition
from converter.graph.ordered import OrderedGraph
from converter.initializer import parse_initializer
from converter.initializers import BUILT_IN
from converter.resize import dense
from converter.resize.chosen import choose
from converter.resize.maps import AxisMap, panels
from converter.resize.units import Matrix
from converter.resize.variables import Resizing
from converter.structure.axes.axis import Axis, Use
from converter.structure.infer import infer_from
from converter.structure.structure import Structure

SIZES = {"x": 3, "h": 4, "y": 2}
AXES = {
    "kernel": ("x + h", "[i,j,f,o]*h"),
    "bias": ("[i,j,f,o]*h",),
    "gamma": ("h",),
    "w_f_diag": ("h",),
    "variance": ("h",),
    "count": ("h",),
    "out": ("h", "y"),
}
USES: Mapping[str, Sequence[Mapping[str, tuple[Use, ...]]]] = {
    "kernel": ({"x": ("consume",), "h": ("consume",)}, {"h": ("produce",)}),
    "bias": ({"h": ("shift",)},),
    "gamma": ({"h": ("gain",)},),
    "w_f_diag": ({"h": ("gain",)},),
    "variance": ({"h": ("variance",)},),
    "count": ({"h": ("shift",)},),
    "out": ({"h": ("consume",)}, {"y": ("produce",)}),
}
NEW = slice(4, 6)


def structure(followers: Mapping[str, tuple[str, tuple[int, ...]]] | None = None) -> Structure:
    """Return a cell of four units with what it makes and takes.

    Args:
        followers: of slots and averages, their variable and which of its axes they have.
    """
    axes = {name: tuple(map(Axis.parse, texts)) for name, texts in AXES.items()}
    uses = {name: tuple(used) for name, used in USES.items()}
    for name, (of, kept) in (followers or {}).items():
        axes[name] = tuple(axes[of][number] for number in kept)
        uses[name] = tuple(uses[of][number] for number in kept)
    widths = {n: Width(n, size, "permutation", True, "any") for n, size in SIZES.items()}
    follows = {name: Role("slot", of) for name, (of, _) in (followers or {}).items()}
    return Structure(widths, axes, uses, (), {}, follows, (), None, None)


def ones_and_up(name: str, shape: tuple[int, ...]) -> Array:
    """Return numbers that differ, and are never 0."""
    start = 1 + sum(map(ord, name)) % 7
    return np.arange(start, start + math.prod(shape), dtype=np.float32).reshape(shape)


def checkpoint(
    of: Structure,
    arrays: Mapping[str, Array] | None = None,
    roles: Mapping[str, Role] | None = None,
) -> Checkpoint:
    """Return a checkpoint with the variables of a structure."""
    variables = []
    for name, axes in of.axes.items():
        shape = tuple(axis.size(SIZES) for axis in axes)
        dtype = np.int64 if name == "count" else np.float32
        array = (arrays or {}).get(name, ones_and_up(name, shape).astype(dtype))
        variables.append(Variable.from_array(name, array))
    known = {name: (roles or {}).get(name, Role("model")) for name in of.axes}
    return Checkpoint(variables, roles=lambda found: known)


def resized(
    maps: Mapping[str, WidthMap],
    followers: Mapping[str, tuple[str, tuple[int, ...]]] | None = None,
    roles: Mapping[str, Role] | None = None,
    arrays: Mapping[str, Array] | None = None,
    **more: Any,
) -> dict[str, Array]:
    of = structure(followers)
    resizing = Resizing(checkpoint(of, arrays, roles), of, maps, **more)
    found = {}
    for variable in resizing.variables():
        assert variable.shape == resizing.shape_of(variable.name)
        found[variable.name] = variable.read()
        # What is read by regions is what is read at once.
        blocks = [block.ravel() for block in variable.blocks(20)]
        np.testing.assert_array_equal(np.concatenate(blocks), found[variable.name].ravel())
    return found


def grown(size: int = 6, fill: str = "zeros") -> dict[str, WidthMap]:
    units = Units.first(4, size)
    return {"h": WidthMap(units, units, parse_initializer(fill, BUILT_IN))}


def duplicated(shares: Sequence[float] = (0.75, 1, 1, 1, 0.25)) -> dict[str, WidthMap]:
    """Return a map by which a fifth unit is a copy of the first."""
    index = np.array([0, 1, 2, 3, 0])
    return {"h": WidthMap(Units(5, index), Units(5, index, np.array(shares)))}


def gates(kernel: Array) -> Array:
    """Return a kernel as [rows, gates, units]."""
    return kernel.reshape(len(kernel), 4, -1)


def test_old_units_stay_in_every_gate_and_what_takes_new_ones_is_zero() -> None:
    found = resized(grown(fill="normal(stddev=1)"))
    old = gates(ones_and_up("kernel", (7, 16)))
    kernel = gates(found["kernel"])
    np.testing.assert_array_equal(kernel[:7, :, :4], old)
    assert not kernel[7:, :, :4].any()
    assert (kernel[:, :, NEW] != 0).all()
    np.testing.assert_array_equal(
        found["bias"].reshape(4, 6)[:, :4].ravel(), ones_and_up("bias", (16,))
    )
    assert not found["bias"].reshape(4, 6)[:, NEW].any()
    np.testing.assert_array_equal(found["out"][:4], ones_and_up("out", (4, 2)))
    assert not found["out"][4:].any()


def test_each_gate_has_numbers_of_its_own_and_the_fans_of_one_gate() -> None:
    of = structure()
    units = Units.first(4, 400)
    maps = {"h": WidthMap(units, units, parse_initializer("glorot_uniform", BUILT_IN))}
    (kernel,) = [v for v in Resizing(checkpoint(of), of, maps).variables() if v.name == "kernel"]
    new = gates(kernel.read())[:, :, 4:]
    # Inputs are all rows, outputs the units of one gate.
    limit = math.sqrt(6 / (403 + 400))
    for gate in range(4):
        assert 0.99 * limit < np.abs(new[:, gate]).max() <= limit
        assert new[:, gate].std() == pytest.approx(limit / math.sqrt(3), rel=0.01)
    correlation = np.corrcoef([new[:, gate].ravel() for gate in range(4)])
    assert np.abs(correlation - np.eye(4)).max() < 0.02


@pytest.mark.parametrize(
    ("name", "fill", "new"),
    [
        ("gamma", "zeros", 1), ("gamma", "constant(value=7)", 1), ("variance", "normal", 1),
        ("bias", "glorot_uniform", 0), ("bias", "constant(value=7)", 7), ("w_f_diag", "zeros", 0),
        ("w_f_diag", "constant(value=7)", 7), ("out", "constant(value=7)", 0),
        ("count", "glorot_uniform", 0), ("count", "constant(value=7)", 7), ("count", "ones", 1),
    ],
)  # fmt: skip
def test_what_new_entries_hold(name: str, fill: str, new: float) -> None:
    value = resized(grown(fill=fill))[name]
    along = value.reshape(4, 6)[:, NEW] if name == "bias" else value[NEW]
    assert (along == new).all()
    assert value.dtype == (np.int64 if name == "count" else np.float32)


def test_integers_that_would_have_to_be_drawn_are_refused() -> None:
    of = structure()
    uses: Any = {**of.uses, "count": ({"h": ("produce",)},)}
    of = Structure(of.widths, of.axes, uses, (), {}, {}, (), None, None)
    resizing = Resizing(checkpoint(of), of, grown(fill="uniform"))
    with pytest.raises(PlanError, match=r"^count: uniform draws floats only, and it is int64"):
        list(resizing.variables())


def test_the_same_seed_gives_the_same_values_whatever_else_is_resized() -> None:
    fill = "glorot_uniform"
    units = Units.first(2, 3)
    first = resized(grown(fill=fill))
    more = resized(
        {**grown(fill=fill), "y": WidthMap(units, units, parse_initializer(fill, BUILT_IN))}
    )
    np.testing.assert_array_equal(first["kernel"], more["kernel"], strict=True)
    assert (more["out"][:4, 2] != 0).all()
    other = resized(grown(fill=fill), seed=1)
    assert (gates(first["kernel"])[:, :, NEW] != gates(other["kernel"])[:, :, NEW]).all()
    np.testing.assert_array_equal(
        gates(first["kernel"])[:, :, :4], gates(other["kernel"])[:, :, :4]
    )


def test_rows_that_are_only_looked_up_are_drawn() -> None:
    found = resized(grown(fill="normal(stddev=1)"), looked_up=frozenset(["h"]))
    assert (found["out"][4:] != 0).all()


def test_averages_are_filled_as_their_variable_is() -> None:
    for fill in ("glorot_uniform", "match", "ones"):
        found = resized(
            grown(fill=fill),
            {"kernel/EMA": ("kernel", (0, 1)), "w/slow": ("kernel", (0, 1))},
            {"kernel/EMA": Role("average", "kernel"), "w/slow": Role("slot", "kernel", "slow")},
        )
        new = gates(found["kernel"])[:, :, NEW]
        assert (new != 0).all()
        np.testing.assert_array_equal(gates(found["kernel/EMA"])[:, :, NEW], new, strict=True)
        np.testing.assert_array_equal(gates(found["w/slow"])[:, :, NEW], new, strict=True)
        np.testing.assert_array_equal(
            gates(found["kernel/EMA"])[:7, :, :4], gates(ones_and_up("kernel/EMA", (7, 16)))
        )


def test_a_template_gives_values_where_it_has_the_new_shape() -> None:
    template = Checkpoint([Variable.from_array("kernel", np.full((9, 24), 5, "f4"))])
    arrays = resized(grown(fill="constant(value=1)"))
    with pytest.raises(PlanError, match=r"^bias: template has no template values for it"):
        resized(grown(fill="template"), template=template)
    full = Checkpoint(
        [Variable.from_array(n, np.full(a.shape, 5, "f4")) for n, a in arrays.items()]
    )
    found = resized(grown(fill="template"), template=full)
    assert (gates(found["kernel"])[:, :, NEW] == 5).all()
    wrong = Checkpoint([v if v.name != "kernel" else template["kernel"].rename("kernel").derive(
        template["kernel"].load, shape=(8, 24)) for v in full.values()])  # fmt: skip
    with pytest.raises(PlanError, match=r"^kernel: template has no template values for it"):
        resized(grown(fill="template"), template=wrong)


def test_products_of_two_grown_widths_are_drawn_once() -> None:
    axes = {"w": (Axis.parse("x"), Axis.parse("a*b"))}
    uses: Any = {"w": ({"x": ("consume",)}, {"a": ("produce",), "b": ("produce",)})}
    widths = {n: Width(n, s, "free", True, "any") for n, s in (("x", 2), ("a", 2), ("b", 3))}
    of = Structure(widths, axes, uses, (), {}, {}, (), None, None)
    source = Checkpoint([Variable.from_array("w", np.arange(1, 13, dtype="f4").reshape(2, 6))])
    drawn = parse_initializer("normal(stddev=1)", BUILT_IN)
    a, b = Units.first(2, 3), Units.first(3, 4)
    maps = {"a": WidthMap(a, a, drawn), "b": WidthMap(b, b, drawn)}
    (found,) = [v.read().reshape(2, 3, 4) for v in Resizing(source, of, maps).variables()]
    np.testing.assert_array_equal(found[:, :2, :3].ravel(), np.arange(1, 13))
    assert len(np.unique(found)) == found.size
    # What has to be zero in one of them is zero.
    maps["b"] = WidthMap(b, b)
    (found,) = [v.read().reshape(2, 3, 4) for v in Resizing(source, of, maps).variables()]
    assert not found[:, :, 3].any()
    assert (found[:, 2, :3] != 0).all()


# Slots: the optimizer, the slot, the power of gradients, and what a fresh one holds.
ADAM = [("Adam", "m", 1, 0.0), ("Adam", "v", 2, None), ("Adam", "vhat", 2, None)]
SLOTS = [
    *ADAM,
    ("Momentum", "momentum", 1, 0.0),
    ("Adagrad", "accumulator", 2, 0.1),
    ("RMSProp", "rms", 2, 1.0),
    ("RMSProp", "mg", 1, 0.0),
    ("RMSProp", "momentum", 0, 0.0),
    ("Adadelta", "accum", 2, 0.0),
    ("Adadelta", "accum_update", 0, 0.0),
    ("Ftrl", "accum", 2, 0.1),
    ("AdaMax", "m", 1, 0.0),
    ("AdaMax", "v", 2, None),
    ("AdagradDA", "gradient_accumulator", 1, 0.0),
    ("AdagradDA", "gradient_squared_accumulator", 2, 0.1),
    ("AccumGrad", "accum", 1, 0.0),
    ("AddSignOptimizer", "m", 1, 0.0),
    ("AdamWeightDecayOptimizer", "m", 1, 0.0),
    ("AdamWeightDecayOptimizer", "v", 2, None),
    ("LARSOptimizer", "momentum", 1, 0.0),
    # Of Keras 3.
    ("Adam", "momentum", 1, 0.0),
    ("Adam", "velocity", 2, None),
    ("SGD", "momentum", 1, 0.0),
    ("RMSprop", "velocity", 2, None),
]


@pytest.mark.parametrize(("optimizer", "slot", "power", "fresh"), SLOTS)
def test_slots_hold_what_fresh_ones_do(
    optimizer: str, slot: str, power: int, fresh: float | None
) -> None:
    """None is for the median: zero would make the first steps too large."""
    found = resized(
        grown(fill="ones"),
        {"kernel/S": ("kernel", (0, 1))},
        {"kernel/S": Role("slot", "kernel", slot, optimizer)},
    )["kernel/S"]
    old = ones_and_up("kernel/S", (7, 16))
    np.testing.assert_array_equal(gates(found)[:7, :, :4], gates(old))
    new = np.float32(np.median(old) if fresh is None else fresh)
    assert (gates(found)[:, :, NEW] == new).all()
    assert (gates(found)[7:] == new).all()


def test_a_median_that_is_no_number_starts_nothing() -> None:
    found = resized(
        grown(fill="ones"),
        {"kernel/S": ("kernel", (0, 1))},
        {"kernel/S": Role("slot", "kernel", "v", "Adam")},
        {"kernel/S": np.full((7, 16), np.nan, np.float32)},
    )["kernel/S"]
    assert (gates(found)[:, :, NEW] == 0).all()


@pytest.mark.parametrize(("optimizer", "slot", "power", "fresh"), SLOTS)
def test_slots_of_copies_follow_gradients(
    optimizer: str, slot: str, power: int, fresh: float | None
) -> None:
    """A copy's gradient is its share; what takes a share of a unit has the whole gradient."""
    found = resized(
        duplicated(),
        {"kernel/S": ("kernel", (0, 1)), "out/S": ("out", (0, 1)), "gamma/S": ("gamma", (0,))},
        {f"{of}/S": Role("slot", of, slot, optimizer) for of in ("kernel", "out", "gamma")},
    )
    shares = np.array([0.75, 1, 1, 1, 0.25]) ** power
    index = [0, 1, 2, 3, 0]
    old = gates(ones_and_up("kernel/S", (7, 16)))
    rows = [0, 1, 2, *(3 + np.array(index))]
    np.testing.assert_allclose(gates(found["kernel/S"]), old[rows][:, :, index] * shares)
    np.testing.assert_array_equal(found["out/S"], ones_and_up("out/S", (4, 2))[index])
    np.testing.assert_allclose(found["gamma/S"], ones_and_up("gamma/S", (4,))[index] * shares)


def test_weights_go_through_a_normalisation() -> None:
    weights = np.array([1, 2, 3, 4], np.float64)
    units = Units(4, np.arange(4), weights)
    maps = {"h": WidthMap(units, Units(4, np.arange(4), 1 / weights))}
    roles = {"gamma/S": Role("slot", "gamma", "v", "Adam")}
    counts = {"count": ones_and_up("count", (4,))}
    found = resized(maps, {"gamma/S": ("gamma", (0,))}, roles, counts)
    # By the deviation that it had, a weighted unit is normalised to as many times what it was.
    for name, factor in {"bias": np.tile(weights, 4), "variance": 1, "gamma": 1}.items():
        np.testing.assert_allclose(found[name], ones_and_up(name, found[name].shape) * factor)
    # So a gain takes as many times more, and what it gives counts for as many times less.
    np.testing.assert_allclose(found["gamma/S"], ones_and_up("gamma/S", (4,)))


def test_values_of_copies() -> None:
    found = resized(duplicated())
    index, shares = [0, 1, 2, 3, 0], np.array([0.75, 1, 1, 1, 0.25])
    np.testing.assert_array_equal(found["gamma"], ones_and_up("gamma", (4,))[index])
    np.testing.assert_array_equal(found["variance"], ones_and_up("variance", (4,))[index])
    np.testing.assert_allclose(found["out"], ones_and_up("out", (4, 2))[index] * shares[:, None])
    kernel = gates(ones_and_up("kernel", (7, 16)))[:, :, index]
    rows = [0, 1, 2, *(3 + np.array(index))]
    taken = np.concatenate([np.ones(3), shares])[:, None, None]
    np.testing.assert_allclose(gates(found["kernel"]), kernel[rows] * taken)


@pytest.mark.parametrize(
    ("role", "message"),
    [
        (Role("slot", "kernel", "zeta", "Adam"), r"'zeta' of Adam follows gradients"),
        (Role("slot", "kernel"), r"'S' of this optimizer follows gradients"),
        # Only the graph says that it is a slot.
        (Role("model"), r"'S' of this optimizer follows gradients"),
    ],
)
def test_unknown_slots_are_refused_by_name(role: Role, message: str) -> None:
    with pytest.raises(PlanError, match=rf"^kernel/S: nothing is known of how {message}, and its "):
        resized(grown(), {"kernel/S": ("kernel", (0, 1))}, {"kernel/S": role})


def test_factored_second_moments_give_the_same_estimate() -> None:
    """The product of the two averages over its mean is what old entries are divided by."""
    found = resized(
        grown(6),
        {"kernel/vr": ("kernel", (0,)), "kernel/vc": ("kernel", (1,))},
        {f"kernel/{s}": Role("slot", "kernel", s, "Adafactor") for s in ("vr", "vc")},
    )
    rows, columns = (ones_and_up(f"kernel/{s}", (n,)) for s, n in (("vr", 7), ("vc", 16)))
    np.testing.assert_allclose(found["kernel/vr"][:7], rows * 4 / 6)
    assert not found["kernel/vr"][7:].any()
    np.testing.assert_allclose(found["kernel/vc"].reshape(4, 6)[:, :4].ravel(), columns * 7 / 9)
    assert not found["kernel/vc"].reshape(4, 6)[:, NEW].any()
    before = np.outer(rows, columns) / rows.mean()
    after = np.outer(found["kernel/vr"], found["kernel/vc"]) / found["kernel/vr"].mean()
    np.testing.assert_allclose(gates(after)[:7, :, :4], gates(before), rtol=1e-6)


def test_a_factored_slot_whose_own_axis_stays_is_thinned_too() -> None:
    found = resized(
        grown(6),
        {"out/vr": ("out", (0,)), "out/vc": ("out", (1,))},
        {f"out/{s}": Role("slot", "out", s, "Adafactor") for s in ("vr", "vc")},
    )
    np.testing.assert_allclose(found["out/vc"], ones_and_up("out/vc", (2,)) * 4 / 6)
    np.testing.assert_array_equal(found["out/vr"][:4], ones_and_up("out/vr", (4,)))


def ftrl_graph(optimizer: str) -> OrderedGraph:
    graph = Maker()
    w = graph.variable("w", 3, 4)
    constants = [graph.constant(value) for value in (0.05, 0.01, 0.002)]
    rate = graph.op("Identity", constants[0])
    gradient = graph.placeholder("g", "float32", (3, 4))
    state = [graph.variable("w/Ftrl", 3, 4), graph.variable("w/Ftrl_1", 3, 4)]
    places = [graph.placeholder("ids", "int32", (3,))] if "Sparse" in optimizer else []
    shrinkage = [graph.constant(0.0)] if optimizer.endswith("V2") else []
    power = graph.constant(-0.5)
    graph.op(optimizer, w, *state, gradient, *places, rate, *constants[1:], *shrinkage, power)
    return OrderedGraph(Definition(Path("made.meta"), graph.definition))


@pytest.mark.parametrize("op", ["ApplyFtrl", "SparseApplyFtrl", "ApplyFtrlV2"])
def test_ftrl_computes_new_entries_again(op: str) -> None:
    """Ftrl makes the variable from its slots alone in every step."""
    rng = np.random.default_rng(0)
    arrays = {n: rng.uniform(0.5, 1, (3, 4)).astype("f4") for n in ("w", "w/Ftrl", "w/Ftrl_1")}
    source = Checkpoint([Variable.from_array(n, a) for n, a in arrays.items()], path=Path("made"))
    base = infer_from(ftrl_graph(op), source)
    (name,) = base.axes["w"][1].widths()
    uses: Any = {n: ({}, {name: ("produce",)}) for n in arrays}
    of = Structure(base.widths, base.axes, uses, (), {}, base.follows, (), base.findings, None)
    units = Units.first(4, 6)
    maps = {name: WidthMap(units, units, parse_initializer("normal(stddev=1)", BUILT_IN))}
    found = {v.name: v.read() for v in Resizing(source, of, maps).variables()}
    accumulator, linear = found["w/Ftrl"], found["w/Ftrl_1"]
    np.testing.assert_array_equal(linear[:, :4], arrays["w/Ftrl_1"])
    # TensorFlow's formula, with a gradient of zero.
    quadratic = np.sqrt(accumulator) / 0.05 + 2 * 0.002
    again = np.where(abs(linear) > 0.01, (np.sign(linear) * 0.01 - linear) / quadratic, 0)
    assert (found["w"][:, 4:] != 0).all()
    np.testing.assert_allclose(again[:, 4:], found["w"][:, 4:], rtol=1e-5)


def test_ftrl_without_a_known_rate_is_refused_where_units_would_be_lost() -> None:
    followers = {"kernel/F": ("kernel", (0, 1)), "kernel/F_1": ("kernel", (0, 1))}
    roles = {
        "kernel/F": Role("slot", "kernel", "accum", "Ftrl"),
        "kernel/F_1": Role("slot", "kernel", "linear", "Ftrl"),
    }
    with pytest.raises(PlanError, match=r"^kernel/F_1: Ftrl computes kernel from it, and the "):
        resized(grown(fill="ones"), followers, roles)
    found = resized(grown(), followers, roles)
    assert not gates(found["kernel/F_1"])[:, :, NEW].any()
    # A share of the value, and a share of the gradient: whichever of the two it is.
    copied = resized(duplicated(), followers, roles)
    shares = np.array([0.75, 1, 1, 1, 0.25])
    index = [0, 1, 2, 3, 0]
    rows = [0, 1, 2, *(3 + np.array(index))]
    taken = np.concatenate([np.ones(3), shares])[:, None, None]
    old = gates(ones_and_up("kernel/F_1", (7, 16)))[rows][:, :, index]
    np.testing.assert_allclose(gates(copied["kernel/F_1"]), old * taken * shares)


def test_a_rescaled_width_scales_what_makes_it() -> None:
    units = Units.first(4, 4)
    maps = {"h": WidthMap(units, units, rescale=3.0, gain=5.0)}
    roles = {f"{of}/S": Role("slot", of, "v", "Adam") for of in ("kernel", "out", "gamma")}
    followers = {f"{of}/S": (of, tuple(range(len(AXES[of])))) for of in ("kernel", "out", "gamma")}
    found = resized(maps, followers, roles, {"count": ones_and_up("count", (4,))})
    factors: dict[str, float] = {"kernel": 3, "bias": 3, "gamma": 5, "variance": 1, "out": 1}
    factors |= {"kernel/S": 1 / 9, "gamma/S": 1 / 25, "out/S": 1}
    for name, factor in factors.items():
        np.testing.assert_allclose(found[name], ones_and_up(name, found[name].shape) * factor, 1e-6)


def test_matrices_mix_what_makes_and_what_takes() -> None:
    rng = np.random.default_rng(0)
    produce, consume = rng.standard_normal((4, 6)), rng.standard_normal((6, 4))
    of = structure()
    kept = {n: of.axes[n] for n in ("kernel", "bias", "out")}
    of = Structure(of.widths, kept, of.uses, (), {}, {}, (), None, None)
    maps = {"h": WidthMap(Matrix.of(produce), Matrix.of(consume))}
    found = {v.name: v.read() for v in Resizing(checkpoint(of), of, maps).variables()}
    old = {name: ones_and_up(name, value.shape) for name, value in found.items()}
    bias = ones_and_up("bias", (16,)).reshape(4, 4) @ produce
    np.testing.assert_allclose(found["bias"].reshape(4, 6), bias, rtol=1e-5)
    np.testing.assert_allclose(found["out"], consume @ ones_and_up("out", (4, 2)), rtol=1e-5)
    kernel = gates(ones_and_up("kernel", (7, 16))) @ produce
    kernel = np.concatenate([kernel[:3], np.einsum("Nn,ngk->Ngk", consume, kernel[3:])])
    np.testing.assert_allclose(gates(found["kernel"]), kernel, rtol=1e-4)
    assert old["kernel"].shape == (9, 24)


def test_matrices_do_not_mix_what_holds_a_factor_for_each_unit() -> None:
    identity = Matrix.of(np.eye(4))
    with pytest.raises(
        PlanError, match=r"^gamma: it holds one factor for each unit of h, which no"
    ):
        resized({"h": WidthMap(identity, identity)})


class Counting:
    """A variable that counts what is read of it."""

    def __init__(self, *shape: int) -> None:
        self.read: list[Region] = []
        self.variable = Variable("x", BY_NAME["float32"], shape, self._load)

    def _load(self, region: Region) -> Array:
        self.read.append(region)
        places = np.meshgrid(*(np.arange(s.start, s.stop) for s in region), indexing="ij")
        numbers = np.sum([p * 1000**k for k, p in enumerate(reversed(places))], axis=0)
        return np.asarray(numbers, np.float32)

    @property
    def entries(self) -> int:
        return sum(math.prod(s.stop - s.start for s in region) for region in self.read)


def axis_map(text: str, sizes: Mapping[str, int], **units: Units) -> AxisMap:
    return AxisMap(Axis.parse(text), sizes, units)


def test_only_what_a_region_needs_is_read() -> None:
    source = Counting(1000, 1000)
    cut = axis_map("4*h", {"h": 250}, h=Units.first(250, 100))
    found = choose(source.variable, [None, cut])
    values = found.read((slice(10, 12), slice(90, 110)))
    np.testing.assert_array_equal(values[0], [*range(10090, 10100), *range(10250, 10260)])
    assert source.read == [(slice(10, 12), slice(90, 260))]


def test_what_lies_far_apart_is_read_apart() -> None:
    size = 4_000_000
    source = Counting(size)
    far = Units(3, np.array([size - 1, 0, size // 2]))
    found = choose(source.variable, [axis_map("h", {"h": size}, h=far)])
    assert found.read().tolist() == [np.float32(size - 1), 0, size / 2]
    assert source.entries == 3
    source.read.clear()
    cut = choose(source.variable, [axis_map("2*h", {"h": size // 2}, h=Units.first(size // 2, 10))])
    assert cut.read()[9:11].tolist() == [9, size / 2]
    assert source.entries == 20


def test_new_entries_alone_read_nothing() -> None:
    source = Counting(10, 4)
    found = choose(source.variable, [axis_map("h", {"h": 10}, h=Units.first(10, 20)), None], 7.0)
    assert (found.read((slice(12, 20), slice(0, 4))) == 7).all()
    assert not source.read


@pytest.mark.parametrize(
    "dtype", ["bfloat16", "float8_e4m3fn", "int4", "bool", "complex64", "int8"]
)
def test_every_dtype_of_numbers_is_chosen_from(dtype: str) -> None:
    array = np.array([1, 0, 1]).astype(BY_NAME[dtype].numpy)
    backwards = axis_map("h", {"h": 3}, h=Units(4, np.array([2, 1, -1, 0])))
    found = choose(Variable.from_array("x", array), [backwards], 1.0).read()
    np.testing.assert_array_equal(found, array[[2, 1, 0, 0]], strict=True)


def test_weights_round_once() -> None:
    array = np.array([1.0, 3.0]).astype(BY_NAME["bfloat16"].numpy)
    third = Units(3, np.array([0, 1, 1]), np.array([1, 1 / 3, 2 / 3]))
    found = choose(Variable.from_array("x", array), [axis_map("h", {"h": 2}, h=third)]).read()
    assert found.astype("f4").tolist() == [1, 1, 2]


def test_what_cannot_be_chosen_is_refused() -> None:
    texts = Variable.from_array("x", np.array(["a", "b"]))
    cut = axis_map("h", {"h": 2}, h=Units(1, np.array([1])))
    assert choose(texts, [cut]).read().tolist() == [b"b"]
    grow = axis_map("h", {"h": 2}, h=Units.first(2, 3))
    with pytest.raises(PlanError, match="x: string variables cannot grow"):
        choose(texts, [grow])
    with pytest.raises(PlanError, match="x: variant variables cannot be resized"):
        choose(Variable("x", VARIANT, (2,), texts.load), [cut])
    shares = axis_map("h", {"h": 2}, h=Units(2, np.array([0, 0]), np.array([0.5, 0.5])))
    with pytest.raises(PlanError, match="x: int64 values cannot be shared among copies"):
        choose(Variable.from_array("x", np.array([1, 2])), [shares])
    with pytest.raises(PlanError, match=r"x: int64 cannot hold the fill 0\.5; choose another"):
        choose(Variable.from_array("x", np.array([1, 2])), [grow], 0.5)


def test_a_matrix_across_large_rows_works_in_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dense, "BLOCK_BYTES", 400)
    source = Counting(12, 30)
    matrix = np.random.default_rng(0).standard_normal((5, 7))
    cut = panels(Axis.parse("2*h + 2"), {"h": 5}, {"h": Matrix.of(matrix)})
    found = dense.multiply(source.variable, 0, cut)
    old = source.variable.read()
    wanted = np.concatenate([matrix.T @ old[:5], matrix.T @ old[5:10], old[10:]])
    source.read.clear()
    rows = [found.read((slice(row, row + 1), slice(0, 30))) for row in range(16)]
    np.testing.assert_allclose(np.concatenate(rows), wanted, rtol=1e-5)
    # Once, and never more than a few columns at a time.
    assert source.entries == 12 * 30
    assert all(s[1].stop - s[1].start <= 33 for s in source.read)


def test_a_matrix_acts_on_floats_only() -> None:
    cut = panels(Axis.parse("h"), {"h": 2}, {"h": Matrix.of(np.eye(2))})
    with pytest.raises(PlanError, match="x: a matrix acts on floats only, and it is int64"):
        dense.multiply(Variable.from_array("x", np.array([1, 2])), 0, cut)
