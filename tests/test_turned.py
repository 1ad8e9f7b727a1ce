"""Normalised widths in principal directions: gains and shifts go into what consumes them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from converter_plugins.project import Project
from nets import MODELS, N, Net
from test_select_statistics import saved, statistics

from converter import Array, Checkpoint, InputError, PlanError, Strategy
from converter.structure.axes.axis import Behind
from converter.structure.infer import structure_of

ROWS = 40
WRITERS = ("h", "a/out/w", "a/out/b", "b/out/w", "b/out/b")
READERS = ("a/in/w", "b/in/w", "out/w")
END = "/ExponentialMovingAverage"


def plane(rank: int, *, is_centred: bool = True, seed: int = 5) -> Array:
    """Return what takes the units to some directions among them."""
    found = np.random.default_rng(seed).normal(size=(N, rank))
    columns = np.linalg.qr(found - found.mean(0) if is_centred else found)[0]
    product: Array = columns @ columns.T
    return product


def flattened(net: Net, rank: int, *, is_centred: bool = True) -> None:
    """Let all that makes the stream be of few directions; means of it are anything."""
    onto = plane(rank, is_centred=is_centred)
    for name in WRITERS:
        values = net.values[name] @ onto
        mean = net.rng.normal(size=(*values.shape[:-1], 1))
        net.values[name] = values + mean if is_centred else values


def stream(model: str, rank: int) -> Net:
    net = Net()
    net_of(net, model)
    flattened(net, rank, is_centred=model != "rms norm")
    return net


def net_of(net: Net, model: str) -> None:
    MODELS[model](net)
    net.feeds["ids"] = net.rng.integers(0, 7, ROWS)


def measured(net: Net, *readers: str) -> dict[str, Array]:
    return statistics(**{name: net.consumed(name) for name in readers})


def turned(strategy: Strategy, checkpoint: Checkpoint) -> dict[str, Array]:
    return {v.name: v.read() for v in strategy.apply(checkpoint)}


def change(net: Net, values: Mapping[str, Array]) -> float:
    before = net.run(net.values)
    return float(np.abs(net.run(values) - before).max() / np.abs(before).max())


MODELS_AND_SIZES = [
    ("norm", 4, 3),
    ("norm", 5, 4),
    ("norm written out", 3, 2),
    ("rms norm", 4, 4),
    ("rms norm", 3, 3),
]


@pytest.mark.parametrize("by", ["table", "statistics"])
@pytest.mark.parametrize(("model", "size", "rank"), MODELS_AND_SIZES)
def test_a_stream_of_few_directions_keeps_the_outputs(
    model: str, size: int, rank: int, by: str, tmp_path: Path
) -> None:
    net = stream(model, rank)
    path = saved(tmp_path, measured(net, *READERS)) if by == "statistics" else None
    values = turned(Project(resize={"h": size}, by="pca", statistics=path), net.checkpoint())
    assert values["h"].shape == (7, size)
    assert change(net, values) < 1e-7
    # One direction less is one too few.
    values = turned(Project(resize={"h": size - 1}, by="pca", statistics=path), net.checkpoint())
    assert change(net, values) > 1e-3


def test_gains_and_shifts_are_the_same_for_all_units() -> None:
    net = stream("norm", 3)
    values = turned(Project(resize={"h": 4}, by="pca"), net.checkpoint())
    for name in ("a", "b", "last"):
        np.testing.assert_allclose(values[f"{name}/gamma"], np.full(4, (6 / 4) ** 0.5))
        np.testing.assert_allclose(values[f"{name}/beta"], np.full(4, 0.5))
    assert abs(values["h"].sum(1)).max() < 1e-12


def test_statistics_of_some_consumers_will_do(tmp_path: Path) -> None:
    net = stream("norm", 3)
    path = saved(tmp_path, measured(net, "b/in/w"))
    strategy = Project(resize={"h": 4}, by="pca", statistics=path)
    checkpoint = net.checkpoint()
    assert change(net, turned(strategy, checkpoint)) < 1e-7
    assert list(strategy.notes(checkpoint)) == [
        "a/in/w (and 1 more): the statistics say nothing of what it consumes, so nothing makes up "
        "for the directions that go"
    ]


def test_what_stays_tells_what_goes_by_the_line_that_fits_best(tmp_path: Path) -> None:
    net = Net()
    net_of(net, "norm")
    path = saved(tmp_path, measured(net, *READERS))
    values = turned(Project(resize={"h": 4}, by="pca", statistics=path), net.checkpoint())
    ratio = (4 / 6) ** 0.5
    turn = np.linalg.lstsq(net.values["h"], values["h"], rcond=None)[0] / ratio
    turn -= turn.mean(0)
    for norm, reader in zip(["a", "b", "last"], READERS, strict=True):
        rows = net.consumed(reader)
        z = (rows - net.values[f"{norm}/beta"]) / net.values[f"{norm}/gamma"]
        t = z @ turn
        share = (np.square(t).sum() / np.square(z).sum()) ** 0.5
        known = np.column_stack([t, np.ones(ROWS)])
        line = np.linalg.lstsq(known, rows, rcond=None)[0]
        found = (t / share + 0.5) @ values[reader]
        np.testing.assert_allclose(found, known @ line @ net.values[reader], atol=1e-4)
    by_table = turned(Project(resize={"h": 4}, by="pca"), net.checkpoint())
    assert change(net, values) < 0.7 * change(net, by_table)


def one_norm(
    *, gain: bool = True, shift: bool = True, centred: bool = True, between: str = ""
) -> Net:
    """Return a table, its normalisation, and what consumes that."""
    m = Net()
    x = m.op("Gather", m.variable("h", 7, N), m.ids())
    axis = m.constant(-1)
    if centred:
        x = m.op("Sub", x, m.op("Mean", x, axis, keep_dims=True))
    squares = m.op("Mean", m.op("Square", x), axis, keep_dims=True)
    y = m.op("Mul", x, m.op("Rsqrt", m.op("Add", squares, m.constant(1e-2))))
    if gain:
        y = m.op("Mul", y, m.variable("g", N))
    if shift:
        y = m.op("Add", y, m.variable("s", N))
    if between:
        y = m.op(between, y)
    m.dense(y, "out", N, 3)
    m.feeds["ids"] = m.rng.integers(0, 7, ROWS)
    return m


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("shift", [True, False])
@pytest.mark.parametrize("gain", [True, False])
def test_gain_and_shift_may_be_missing(
    gain: bool, shift: bool, centred: bool, tmp_path: Path
) -> None:
    net = one_norm(gain=gain, shift=shift, centred=centred)
    size = 4
    rank = size - (centred or shift)
    net.values["h"] = net.values["h"] @ plane(rank, is_centred=centred)
    path = saved(tmp_path, measured(net, "out/w"))
    for file in (None, path):
        strategy = Project(resize={"h": size}, by="pca", statistics=file)
        assert change(net, turned(strategy, net.checkpoint())) < 1e-7
        assert {"g", "s"} & turned(strategy, net.checkpoint()).keys() == (
            {"g"} if gain else set()
        ) | ({"s"} if shift else set())


def test_a_shift_takes_the_mean_of_what_goes(tmp_path: Path) -> None:
    """Of four directions three vary, and the fourth is the same in all rows."""
    net = one_norm()
    columns = np.linalg.qr(np.column_stack([np.ones(N), net.rng.normal(size=(N, 4))]))[0][:, 1:]
    around = net.rng.normal(size=(7, 3))
    around -= around[:5].mean(0)
    net.feeds["ids"] = np.arange(5)
    around /= np.linalg.norm(around, axis=1, keepdims=True)
    # So large that epsilon is nothing.
    net.values["h"] = 1e4 * np.column_stack([around, 0.5 * np.ones(7)]) @ columns.T
    path = saved(tmp_path, measured(net, "out/w"))
    values = turned(Project(resize={"h": 4}, by="pca", statistics=path), net.checkpoint())
    assert change(net, values) < 1e-6
    plain = turned(Project(resize={"h": 4}, by="pca"), net.checkpoint())
    assert change(net, plain) > 0.1


def test_averages_take_the_averages_of_gains_and_shifts() -> None:
    net, other = stream("norm", 3), stream("norm", 3)
    for name in other.values:
        if name not in WRITERS:
            other.values[name] = other.values[name] + other.rng.normal(size=other.shapes[name])
    averages = {f"{name}{END}": values for name, values in other.values.items()}
    values = turned(Project(resize={"h": 4}, by="pca"), net.checkpoint(**averages))
    of_averages = {n.removesuffix(END): v for n, v in values.items() if n.endswith(END)}
    assert change(net, values) < 1e-7
    assert change(other, of_averages) < 1e-7


def test_averages_of_consumers_alone_go_with_the_gains_that_there_are() -> None:
    net = stream("norm", 3)
    averages = {f"out/w{END}": 2 * net.values["out/w"]}
    values = turned(Project(resize={"h": 4}, by="pca"), net.checkpoint(**averages))
    np.testing.assert_allclose(values[f"out/w{END}"], 2 * values["out/w"])


def test_slots_turn_and_those_of_gains_start_afresh() -> None:
    net = stream("norm", 3)
    slots: dict[str, Array] = {}
    for name, old in net.values.items():
        slots[f"{name}/Adam"] = np.asarray(net.rng.normal(size=old.shape))
        slots[f"{name}/Adam_1"] = np.asarray(net.rng.uniform(1, 2, size=old.shape))
    values = turned(Project(resize={"h": 4}, by="pca"), net.checkpoint(**slots))
    ratio = (4 / 6) ** 0.5
    turn = np.linalg.lstsq(net.values["h"], values["h"], rcond=None)[0] / ratio
    turn -= turn.mean(0)
    for name in WRITERS:
        np.testing.assert_allclose(values[f"{name}/Adam"], slots[f"{name}/Adam"] @ turn / ratio)
        np.testing.assert_allclose(
            values[f"{name}/Adam_1"], slots[f"{name}/Adam_1"] @ turn**2 / ratio**2
        )
    for norm, name in zip(["a", "b", "last"], READERS, strict=True):
        back = turn.T / net.values[f"{norm}/gamma"]
        np.testing.assert_allclose(values[f"{name}/Adam"], back @ slots[f"{name}/Adam"])
        np.testing.assert_allclose(values[f"{name}/Adam_1"], back**2 @ slots[f"{name}/Adam_1"])
        for vector in ("gamma", "beta"):
            assert (values[f"{norm}/{vector}/Adam"] == 0).all()
            np.testing.assert_allclose(
                values[f"{norm}/{vector}/Adam_1"],
                np.full(4, np.median(slots[f"{norm}/{vector}/Adam_1"])),
            )


def test_slots_of_what_no_gain_stands_before() -> None:
    net = one_norm(gain=False, shift=False)
    net.values["h"] = net.values["h"] @ plane(3)
    slots: dict[str, Array] = {"out/w/Momentum": np.asarray(net.rng.normal(size=(N, 3)))}
    values = turned(Project(resize={"h": 4}, by="pca"), net.checkpoint(**slots))
    turn = np.linalg.lstsq(net.values["h"], values["h"], rcond=None)[0]
    turn -= turn.mean(0)
    np.testing.assert_allclose(values["out/w/Momentum"], turn.T @ slots["out/w/Momentum"])


def test_ftrl_computes_again_what_is_turned() -> None:
    net = stream("norm", 3)
    constants = [net.constant(value) for value in (0.05, 0.01, 0.002, -0.5)]
    names = ("h", "a/in/w", "a/gamma", "a/beta")
    for name in names:
        shape = net.shapes[name]
        slots = [net.variable(f"{name}/Ftrl{end}", *shape) for end in ("", "_1")]
        net.values[f"{name}/Ftrl"] = net.rng.uniform(0.5, 1, shape)
        gradient = net.input(*shape, name=f"{name}/gradient")
        net.op("ApplyFtrl", name, *slots, gradient, *constants)
    values = turned(Project(resize={"h": 4}, by="pca"), net.checkpoint())
    for name in names:
        linear, accumulator = values[f"{name}/Ftrl_1"], values[f"{name}/Ftrl"]
        # TensorFlow's formula, with a gradient of zero.
        quadratic = np.sqrt(accumulator) / 0.05 + 2 * 0.002
        again = np.where(abs(linear) > 0.01, (np.sign(linear) * 0.01 - linear) / quadratic, 0)
        np.testing.assert_allclose(again, values[name], rtol=1e-6)


def test_averages_of_several_kinds_go_with_their_own() -> None:
    net = stream("norm", 3)
    averages: dict[str, Array] = {}
    for name, old in net.values.items():
        averages[f"{name}{END}"] = old
        averages[f"{name}{END}_1"] = 2 * old
    values = turned(Project(resize={"h": 4}, by="pca"), net.checkpoint(**averages))
    for name in READERS:
        np.testing.assert_allclose(values[f"{name}{END}"], values[name], atol=1e-12)
        np.testing.assert_allclose(values[f"{name}{END}_1"], 4 * values[name], atol=1e-12)


def test_a_kernel_may_consume_and_make_the_stream() -> None:
    m = Net()
    x = m.op("Gather", m.variable("h", 7, N), m.ids())

    def norm(x: str, name: str) -> str:
        squares = m.op("Mean", m.op("Square", x), m.constant(-1), keep_dims=True)
        root = m.op("Rsqrt", m.op("Add", squares, m.constant(1e-2)))
        return m.op("Mul", m.op("Mul", x, root), m.variable(name, N))

    x = m.op("Add", x, m.op("MatMul", norm(x, "g"), m.variable("w", N, N)))
    m.dense(norm(x, "last"), "out", N, 3)
    assert behind(m) == (Behind("w", "g", None), Behind("out/w", "last", None))
    onto = plane(4, is_centred=False)
    m.values |= {"h": m.values["h"] @ onto, "w": m.values["w"] @ onto}
    assert change(m, turned(Project(resize={"h": 4}, by="pca"), m.checkpoint())) < 1e-7


def test_a_gain_of_zero_tells_nothing_of_its_unit(tmp_path: Path) -> None:
    net = stream("norm", 3)
    net.values["a/gamma"][2] = 0
    net.values["a/gamma"][4] = 1e-30
    path = saved(tmp_path, measured(net, *READERS))
    values = turned(Project(resize={"h": 4}, by="pca", statistics=path), net.checkpoint())
    assert change(net, values) < 0.1
    slots: dict[str, Array] = {"a/in/w/Adam": np.ones((N, 5))}
    values = turned(Project(resize={"h": 4}, by="pca"), net.checkpoint(**slots))
    assert np.abs(values["a/in/w/Adam"]).max() < 1e3


def behind(net: Net) -> tuple[Behind, ...] | None:
    found = structure_of(net.checkpoint()).widths["h"].turnable
    return found and found.behind


@pytest.mark.parametrize("model", ["norm", "norm written out", "rms norm"])
def test_what_stands_behind_normalisations_is_told(model: str) -> None:
    net = Net()
    net_of(net, model)
    shift = None if model == "rms norm" else "{}/beta"
    assert behind(net) == tuple(
        Behind(reader, f"{norm}/gamma", shift and shift.format(norm))
        for norm, reader in zip(["a", "b", "last"], READERS, strict=True)
    )


def test_nothing_stands_behind_where_single_units_are_seen() -> None:
    assert behind(one_norm()) == (Behind("out/w", "g", "s"),)
    for net in (one_norm(between="Tanh"), one_norm(between="Square")):
        assert behind(net) is None


def added(m: Net, y: str) -> None:
    """Let the sum of what two normalisations give be consumed."""
    other = m.op("Mul", y, m.constant(2.0))
    m.dense(m.op("Add", m.op("Mul", other, m.variable("more", N)), y), "end", N, 3)


def twice(m: Net, y: str) -> None:
    """Consume in two places with one kernel what has other gains."""
    kernel = m.variable("end/w", N, 3)
    other = m.op("Mul", y, m.variable("more", N))
    m.op("Add", m.op("MatMul", y, kernel), m.op("MatMul", other, kernel))


def constant(m: Net, y: str) -> None:
    m.dense(m.op("Add", y, m.constant(0.5)), "end", N, 3)


def shown(m: Net, y: str) -> None:
    m.dense(y, "end", N, 3)
    m.op("Identity", y, name="features")


def shifted(m: Net, y: str) -> None:
    m.dense(m.op("Sub", m.variable("from", N), m.op("Neg", y)), "end", N, 3)


def taken_off(m: Net, y: str) -> None:
    m.dense(m.op("Sub", y, m.variable("off", N)), "end", N, 3)


def again(m: Net, y: str) -> None:
    m.dense(m.op("Mul", y, m.variable("more", N)), "end", N, 3)


def squared(m: Net, y: str) -> None:
    stream = next(n.input[0].decode() for n in m.definition.node if n.op == b"Square")
    m.dense(m.op("Square", stream), "end", N, 3)


def averaged(m: Net, y: str) -> None:
    """Consume the mean of the stream, times a gain."""
    stream = next(n.input[0].decode() for n in m.definition.node if n.op == b"Square")
    mean = m.op("Mean", stream, m.constant(-1), keep_dims=True)
    m.dense(m.op("Mul", mean, m.variable("more", N)), "end", N, 3)


def stacked(m: Net, y: str) -> None:
    """Consume rows with one gain and rows with another."""
    (plain,) = (n.input[0].decode() for n in m.definition.node if n.name.decode() == y)
    other = m.op("Mul", plain, m.variable("more", N))
    m.dense(m.op("ConcatV2", y, other, m.constant(0)), "end", N, 3)


def weighed_before(op: str, m: Net, y: str) -> None:
    """Normalise what a gain multiplies."""
    stream = next(n.input[0].decode() for n in m.definition.node if n.op == b"Square")
    x = m.op("Mul", stream, m.variable("more", N))
    squares = m.op("Square", x) if op == "Square" else m.op("Mul", x, x)
    root = m.op("Rsqrt", m.op("Mean", squares, m.constant(-1), keep_dims=True))
    m.dense(m.op("Mul", x, root), "end", N, 3)


OTHERS: dict[str, Callable[[Net, str], None]] = {
    "sum": added,
    "twice": twice,
    "constant": constant,
    "output": shown,
    "minus": taken_off,
    "again": again,
    "squares": squared,
    "mean": averaged,
    "rows": stacked,
    "squares before": partial(weighed_before, "Square"),
    "products before": partial(weighed_before, "Mul"),
}


@pytest.mark.parametrize("other", OTHERS)
def test_other_consumers_keep_a_width_from_being_turned(other: str) -> None:
    net = one_norm(shift=False, centred=False)
    y = next(n.input[0].decode() for n in net.definition.node if n.op == b"MatMul")
    OTHERS[other](net, y)
    assert behind(net) is None
    strategy = Project(resize={"h": 4}, by="pca")
    with pytest.raises(PlanError, match=r"^h: (mixed units ruin it|project cannot)"):
        turned(strategy, net.checkpoint())


def test_a_shift_may_stand_first() -> None:
    net = one_norm(shift=False)
    y = next(n.input[0].decode() for n in net.definition.node if n.op == b"MatMul")
    shifted(net, y)
    assert behind(net) == (Behind("out/w", "g", None), Behind("end/w", "g", "from"))
    net.values["h"] = net.values["h"] @ plane(3)
    assert change(net, turned(Project(resize={"h": 4}, by="pca"), net.checkpoint())) < 1e-7


def test_a_gain_may_be_divided_by_the_deviation_and_rows_be_masked() -> None:
    m = Net()
    m.feeds["mask"] = m.rng.uniform(1, 2, size=(ROWS, 1))
    x = m.op("Gather", m.variable("h", 7, N), m.ids())
    x = m.op("Mul", x, m.input(ROWS, 1, name="mask"))
    x = m.op("Add", x, m.variable("from", N))
    squares = m.op("Mean", m.op("Mul", x, x), m.constant(-1), keep_dims=True)
    deviation = m.op("Sqrt", m.op("Add", squares, m.constant(1e-2)))
    y = m.op("Mul", x, m.op("RealDiv", m.variable("g", N), deviation))
    m.dense(m.op("Add", m.op("Neg", y), y), "none", N, 3)
    m.dense(m.op("Mul", m.op("RealDiv", y, m.constant(2.0)), "mask"), "out", N, 3)
    m.feeds["ids"] = m.rng.integers(0, 7, ROWS)
    assert behind(m) == (Behind("none/w", "g", None), Behind("out/w", "g", None))
    for name in ("h", "from"):
        m.values[name] = m.values[name] @ plane(4, is_centred=False)
    assert change(m, turned(Project(resize={"h": 4}, by="pca"), m.checkpoint())) < 1e-7


def test_biased_averages_go_with_averages() -> None:
    net = stream("norm", 3)
    averages: dict[str, Array] = {}
    for name, old in net.values.items():
        averages[f"{name}{END}"] = old + np.asarray(net.rng.normal(size=old.shape))
        averages[f"{name}{END}/biased"] = averages[f"{name}{END}"] / 2
        averages[f"{name}{END}/local_step"] = np.asarray(3.0)
    values = turned(Project(resize={"h": 4}, by="pca"), net.checkpoint(**averages))
    for name in READERS:
        np.testing.assert_allclose(values[f"{name}{END}/biased"], values[f"{name}{END}"] / 2)


REFUSED = {
    "norm and tied": r"^h: h makes its units and takes them behind a normalisation, whose gain no "
    r"rotation of a tied table can take on; choose select, or truncate$",
    "post norm": r"^h: mixed units ruin it: they are normalised, and not all that is made of them "
    r"is consumed right behind one normalisation, its gain and its shift; choose select",
}


@pytest.mark.parametrize("model", REFUSED)
def test_other_normalised_widths_are_refused(model: str) -> None:
    net = Net()
    MODELS[model](net)
    with pytest.raises(PlanError, match=REFUSED[model]):
        Project(resize={"h": 4}, by="pca").apply(net.checkpoint())


def test_a_stream_scaled_by_the_root_of_its_size_is_refused() -> None:
    m = Net()
    x = m.op("Mul", m.op("Gather", m.variable("h", 7, N), m.ids()), m.constant(N**0.5))
    squares = m.op("Mean", m.op("Square", x), m.constant(-1), keep_dims=True)
    m.dense(m.op("Mul", x, m.op("Rsqrt", squares)), "out", N, 3)
    assert structure_of(m.checkpoint()).widths["h"].turnable is not None
    with pytest.raises(PlanError, match=r"^h: Mul_6 multiplies with 2.44949, which moves with"):
        Project(resize={"h": 4}, by="pca").apply(m.checkpoint())


def test_one_unit_of_a_stream_that_is_centred_says_nothing(tmp_path: Path) -> None:
    net = stream("norm", 3)
    path = saved(tmp_path, measured(net, *READERS))
    for file in (None, path):
        strategy = Project(resize={"h": 1}, by="pca", statistics=file)
        values = turned(strategy, net.checkpoint())
        assert (values["h"] == 0).all()
        assert np.ptp(net.run(values), axis=0).max() == 0


def test_the_plan_says_what_goes() -> None:
    checkpoint = stream("norm", 3).checkpoint()
    for size, which in ((4, "2 directions are"), (5, "1 direction is")):
        (plan,) = Project(resize={"h": size}, by="pca").resizes(checkpoint).widths
        assert plan.verdict == (
            False,
            f"{which} left out; what consumes it takes on its gains and shifts",
        )


def test_it_only_makes_them_smaller() -> None:
    net = stream("norm", 3)
    with pytest.raises(PlanError, match="principal components are fewer than the units"):
        Project(resize={"h": 8}, by="pca").apply(net.checkpoint())


def damaged(values: dict[str, Array], how: Callable[[Array], Array]) -> dict[str, Array]:
    key = "a/in/w/consumed/covariance"
    return {**values, key: how(values[key])}


def test_statistics_that_are_none_are_told(tmp_path: Path) -> None:
    net = stream("norm", 3)
    values = measured(net, *READERS)
    strategy = partial(Project, resize={"h": 4}, by="pca")
    odd = damaged(values, lambda v: np.eye(N) + 5 * (1 - np.eye(N)))
    with pytest.raises(InputError, match=r"^a/in/w: the covariance .* none.*measure it again$"):
        turned(strategy(statistics=saved(tmp_path, odd)), net.checkpoint())
    del values["b/in/w/consumed/covariance"]
    with pytest.raises(PlanError, match=r"^b/in/w: .* has no covariance of what it consumes"):
        strategy(statistics=saved(tmp_path, values)).apply(net.checkpoint())
