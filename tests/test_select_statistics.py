"""Units chosen, mixed and mended by what they are on data: against numpy."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from conftest import DATA
from converter_plugins.project import Project
from converter_plugins.rename import Rename
from converter_plugins.select import Select
from nets import N, Net, embedding, hidden, tied
from safetensors.numpy import save_file

from converter import (
    Array,
    Checkpoint,
    ConverterError,
    InputError,
    PlanError,
    Units,
    UsageError,
    open_checkpoint,
)
from converter.structure.infer import structure_of

ROWS = 40


def statistics(**seen: Array) -> dict[str, Array]:
    """Return what a file says of the rows that variables consume."""
    found: dict[str, Array] = {}
    for name, rows in seen.items():
        of = {
            "mean": rows.mean(0),
            "mean_abs": np.abs(rows).mean(0),
            "std": rows.std(0),
            "covariance": np.cov(rows.T, bias=True),
        }
        found |= {f"{name}/consumed/{key}": values for key, values in of.items()}
    return found


def saved(directory: Path, values: Mapping[str, Array]) -> Path:
    path = directory / "stats.safetensors"
    save_file({name: np.asarray(array, order="C") for name, array in values.items()}, path)
    return path


def relu_net() -> tuple[Net, Array]:
    """Return a net of one hidden layer, and what its units are on its data."""
    net = Net()
    hidden("Relu")(net)
    net.feeds["x"] = net.rng.normal(size=(ROWS, 4))
    return net, units_of(net)


def units_of(net: Net) -> Array:
    found: Array = np.maximum(net.feeds["x"] @ net.values["h/w"] + net.values["h/b"], 0)
    return found


def selected(strategy: Select, checkpoint: Checkpoint) -> dict[str, Array]:
    return {v.name: v.read() for v in strategy.apply(checkpoint)}


def kept_of(net: Net, result: Mapping[str, Array]) -> list[int]:
    return [int(np.flatnonzero(net.values["h/b"] == b)[0]) for b in result["h/b"]]


def missed(rows: Array, kernel: Array, gone: list[int]) -> float:
    """Return the squared error of the best linear stand-in for some units, by what takes them."""
    kept = np.setdiff1d(np.arange(rows.shape[1]), gone)
    known = np.column_stack([np.ones(len(rows)), rows[:, kept]])
    line = np.linalg.lstsq(known, rows[:, gone], rcond=None)[0]
    return float(np.square((rows[:, gone] - known @ line) @ kernel[gone]).mean(0).sum())


def surgeon(rows: Array, kernel: Array, size: int) -> list[int]:
    gone: list[int] = []
    while rows.shape[1] - len(gone) > size:
        left = [unit for unit in range(rows.shape[1]) if unit not in gone]
        gone.append(min(left, key=lambda unit: missed(rows, kernel, [*gone, unit])))
    return sorted(set(range(rows.shape[1])) - set(gone))


def best(scores: Array, size: int) -> list[int]:
    return sorted(np.argsort(-scores)[:size].tolist())


SCORES: dict[str, Callable[[Array, Array, int], list[int]]] = {
    "mean-abs": lambda rows, _, size: best(np.abs(rows).mean(0), size),
    "std": lambda rows, _, size: best(rows.std(0), size),
    "wanda": lambda rows, kernel, size: best(
        np.sqrt(np.square(rows).mean(0)) * np.linalg.norm(kernel, axis=1), size
    ),
    "flap": lambda rows, kernel, size: best(rows.std(0) * np.linalg.norm(kernel, axis=1), size),
    "obs": surgeon,
}


@pytest.mark.parametrize("by", SCORES)
def test_scores_choose_what_their_formulas_say(by: str, tmp_path: Path) -> None:
    chosen = set()
    for seed in range(4):
        net = Net(seed)
        hidden("Relu")(net)
        net.feeds["x"] = net.rng.normal(size=(ROWS, 4))
        rows = units_of(net)
        path = saved(tmp_path, statistics(**{"out/w": rows}))
        for size in (2, 4):
            strategy = Select(resize={"h": size}, by=by, statistics=path, ridge=1e-10)  # type: ignore[arg-type]
            found = kept_of(net, selected(strategy, net.checkpoint()))
            assert found == SCORES[by](rows, net.values["out/w"], size)
            chosen.add(tuple(found))
    assert len(chosen) > 4


def test_scores_add_up_over_all_that_consumes_a_unit(tmp_path: Path) -> None:
    net = Net()
    h = net.op("Tanh", net.dense(net.x(4), "h", 4, N))
    net.op("Add", net.dense(h, "out", N, 3), net.dense(h, "more", N, 3))
    net.values["out/w"][:] = 1
    net.values["more/w"][:] = 1
    net.values["more/w"][2] = 9
    # What the one consumes is unlike what the other does, as states differ from outputs.
    ones = np.ones(N)
    found = {f"{k}/w/consumed/mean": 0 * ones for k in ("out", "more")}
    found["out/w/consumed/std"] = np.array([1, 5, 1, 1, 2, 1.0])
    found["more/w/consumed/std"] = np.array([1, 1, 2, 1, 1, 1.0])
    path = saved(tmp_path, found)
    strategy = Select(resize={"h": 3}, by="wanda", statistics=path)
    assert kept_of(net, selected(strategy, net.checkpoint())) == [1, 2, 4]


def test_least_squares_keeps_what_the_others_tell(tmp_path: Path) -> None:
    net, _ = relu_net()
    # Half of unit 1, and a constant.
    for name in ("h/w", "h/b"):
        net.values[name][..., 4] = 0.5 * net.values[name][..., 1]
    net.values["h/w"][:, 5] = 0
    net.values["h/b"][5] = 0.7
    path = saved(tmp_path, statistics(**{"out/w": units_of(net)}))
    make = {"resize": {"h": 4}, "by": "obs", "statistics": path, "ridge": 1e-12}
    before = net.run(net.values)
    result = selected(Select(**make, repair="least-squares"), net.checkpoint())  # type: ignore[arg-type]
    assert {1, 4} & set(kept_of(net, result)) != {1, 4}
    assert result["out/w"].shape == (4, 3)
    np.testing.assert_allclose(net.run(result), before, atol=1e-8)
    bare = selected(Select(**make), net.checkpoint())  # type: ignore[arg-type]
    assert np.abs(net.run(bare) - before).max() > 0.1


def test_means_of_constants_go_into_the_bias(tmp_path: Path) -> None:
    net, _ = relu_net()
    net.values["h/w"][:, [2, 5]] = 0
    net.values["h/b"][[2, 5]] = 0.7, 0.3
    path = saved(tmp_path, statistics(**{"out/w": units_of(net)}))
    strategy = Select(resize={"h": 4}, by="std", statistics=path, repair="mean")
    result = selected(strategy, net.checkpoint())
    np.testing.assert_array_equal(result["out/w"], net.values["out/w"][[0, 1, 3, 4]])
    np.testing.assert_allclose(net.run(result), net.run(net.values), atol=1e-12)


@pytest.mark.parametrize("repair", ["mean", "least-squares"])
def test_a_head_of_one_unit_has_a_bias_too(repair: str, tmp_path: Path) -> None:
    net = Net()
    net.dense(net.op("Relu", net.dense(net.x(4), "h", 4, N)), "out", N, 1)
    net.values["h/w"][:, [2, 5]] = 0
    net.values["h/b"][[2, 5]] = 0.7, 0.3
    path = saved(tmp_path, statistics(**{"out/w": units_of(net)}))
    strategy = Select(resize={"h": 4}, by="std", statistics=path, repair=repair)  # type: ignore[arg-type]
    checkpoint = net.checkpoint()
    result = selected(strategy, checkpoint)
    assert np.abs(result["out/b"] - net.values["out/b"]).max() > 0.01
    np.testing.assert_allclose(net.run(result), net.run(net.values), atol=1e-8)
    assert not any("no bias" in note for note in strategy.notes(checkpoint))


def test_means_are_taken_off_that_of_a_batch_normalisation(tmp_path: Path) -> None:
    net = Net()
    h = net.op("Relu", net.dense(net.x(4), "h", 4, N))
    net.values["variance"] = net.rng.uniform(0.5, 2, 3)
    y = net.op("MatMul", h, net.variable("out/w", N, 3))
    scale = net.op("Rsqrt", net.op("Add", net.variable("variance", 3), net.constant(1e-3)))
    shift = net.op("Sub", net.variable("beta", 3), net.op("Mul", net.variable("mean", 3), scale))
    net.op("Relu", net.op("Add", net.op("Mul", y, scale), shift))
    net.values["h/w"][:, [2, 5]] = 0
    net.values["h/b"][[2, 5]] = 0.7, 0.3
    path = saved(tmp_path, statistics(**{"out/w": units_of(net)}))
    strategy = Select(resize={"h": 4}, by="std", statistics=path, repair="mean")
    result = selected(strategy, net.checkpoint())
    np.testing.assert_allclose(net.run(result), net.run(net.values), atol=1e-12)
    assert np.abs(result["mean"] - net.values["mean"]).max() > 0.1


def test_without_a_bias_the_line_goes_through_zero(tmp_path: Path) -> None:
    net = Net()
    h = net.op("Relu", net.dense(net.x(4), "h", 4, N))
    net.op("MatMul", h, net.variable("out/w", N, 3))
    net.feeds["x"] = net.rng.normal(size=(ROWS, 4))
    rows = units_of(net)
    path = saved(tmp_path, statistics(**{"out/w": rows}))
    strategy = Select(
        resize={"h": 4}, by="uniform", statistics=path, repair="least-squares", ridge=1e-12
    )
    checkpoint = net.checkpoint()
    kept, gone = [0, 2, 3, 5], [1, 4]
    line = np.linalg.lstsq(rows[:, kept], rows[:, gone], rcond=None)[0]
    kernel = net.values["out/w"]
    expected = kernel[kept] + line @ kernel[gone]
    np.testing.assert_allclose(selected(strategy, checkpoint)["out/w"], expected, atol=1e-8)
    assert "out/w: no bias alone stands behind it to take the mean of the units that go" in list(
        strategy.notes(checkpoint)
    )


def mended(kernel: Array, axis: int, kept: list[int], rows: Array) -> tuple[Array, Array]:
    """Return a kernel and the constant for its bias, by a fit of the rows themselves."""
    gone = np.setdiff1d(np.arange(rows.shape[1]), kept)
    known = np.column_stack([np.ones(len(rows)), rows[:, kept]])
    line = np.linalg.lstsq(known, rows[:, gone], rcond=None)[0]
    lost = np.take(kernel, gone, axis)
    total = np.take(kernel, kept, axis) + np.moveaxis(
        np.tensordot(line[1:], lost, (1, axis)), 0, axis
    )
    constant = np.tensordot(line[0], lost, (0, axis))
    return total, constant.reshape(-1, constant.shape[-1]).sum(0)


def model_of(case: str) -> Checkpoint:
    return open_checkpoint(DATA / case)


def resized(
    source: Checkpoint, sizes: Mapping[str, int], seen: Mapping[str, Array], directory: Path
) -> dict[str, Array]:
    strategy = Select(
        resize=sizes,
        by="uniform",
        statistics=saved(directory, statistics(**seen)),
        repair="least-squares",
        ridge=1e-12,
    )
    return selected(strategy, source)


def spread(old: int, size: int) -> list[int]:
    return [round(unit) for unit in np.linspace(0, old - 1, size).tolist()]


def test_every_tap_of_a_convolution_is_mended(tmp_path: Path) -> None:
    source = model_of("tf115_v2_convbn_ema")
    rng = np.random.default_rng(0)
    rows = rng.normal(1, 1, (ROWS, 6)) @ rng.normal(size=(6, 6))
    result = resized(source, {"conv1": 4}, {"conv2/kernel": rows}, tmp_path)
    kernel, constant = mended(source["conv2/kernel"].read(), 2, spread(6, 4), rows)
    assert kernel.shape == (3, 3, 4, 8)
    np.testing.assert_allclose(result["conv2/kernel"], kernel, rtol=1e-5, atol=1e-6)
    bias = source["conv2/bias"].read() + constant
    np.testing.assert_allclose(result["conv2/bias"], bias, rtol=1e-5, atol=1e-6)


def sentences(channels: int = 1, *, rank: int = N) -> tuple[Checkpoint, dict[str, Array]]:
    """Return a classifier of texts whose filters are as wide as its embeddings, and its values."""
    m = Net()
    m.values["table"] = m.rng.normal(size=(8, rank)) @ m.rng.normal(size=(rank, N))
    table = m.variable("table", 8, N)
    words = [
        m.op("Gather", table, m.input(-1, 9, name=f"x{k}", dtype="int32")) for k in range(channels)
    ]
    image = m.op("Pack", *words, axis=3) if channels > 1 else None
    image = image or m.op("ExpandDims", words[0], m.constant(-1))
    kernel = m.variable("w", 3, N, channels, 5)
    y = m.op("Conv2D", image, kernel, padding="VALID", strides=[1, 1, 1, 1])
    m.op("Relu", m.op("BiasAdd", y, m.variable("b", 5)))
    return m.checkpoint(), m.values


def test_embeddings_that_filters_cover_whole_are_chosen_and_mended(tmp_path: Path) -> None:
    checkpoint, values = sentences()
    rows = values["table"]
    path = saved(tmp_path, statistics(w=rows))
    # All places of the filter, and all that it makes, are as one matrix to an entry of a row.
    kernel = np.moveaxis(values["w"], 1, 0)
    for by, choose in SCORES.items():
        strategy = Select(
            resize={"table": 4},
            by=by,  # type: ignore[arg-type]
            statistics=path,
            repair="least-squares",
            ridge=1e-12,
        )
        result = selected(strategy, checkpoint)
        kept = choose(rows, kernel.reshape(N, -1), 4)
        np.testing.assert_array_equal(result["table"], rows[:, kept])
        expected, constant = mended(values["w"], 1, kept, rows)
        np.testing.assert_allclose(result["w"], expected, atol=1e-6)
        np.testing.assert_allclose(result["b"], values["b"] + constant, atol=1e-6)


def test_components_of_embeddings_that_filters_cover_whole(tmp_path: Path) -> None:
    checkpoint, values = sentences(rank=3)
    path = saved(tmp_path, statistics(w=values["table"]))
    strategy = Project(resize={"table": 4}, by="pca", statistics=path)
    result = {v.name: v.read() for v in strategy.apply(checkpoint)}
    np.testing.assert_allclose(
        np.einsum("ve,tecn->vtcn", result["table"], result["w"]),
        np.einsum("ve,tecn->vtcn", values["table"], values["w"]),
        atol=1e-8,
    )


def test_statistics_of_channels_do_not_choose_embeddings(tmp_path: Path) -> None:
    checkpoint, _ = sentences(2)
    path = saved(tmp_path, statistics(w=np.ones((5, 2))))
    strategy = Select(resize={"table": 4}, by="wanda", statistics=path)
    with pytest.raises(PlanError, match=r"is \[2\] in .*: of another of its axes, and no more can"):
        selected(strategy, checkpoint)


def test_two_widths_on_one_axis_are_mended_together(tmp_path: Path) -> None:
    source = model_of("tf10_v2_multilstm_adagrad")
    first, second = (f"rnn/multi_rnn_cell/cell_{k}/basic_lstm_cell" for k in (0, 1))
    rng = np.random.default_rng(0)
    rows = {
        f"{first}/weights": rng.normal(size=(99, 35)),
        f"{second}/weights": rng.normal(1, 2, (99, 45)) @ rng.normal(size=(45, 45)),
        "softmax/w": rng.normal(size=(99, 19)),
    }
    result = resized(source, {first: 18, second: 13}, rows, tmp_path)
    name = f"{second}/weights"
    kept, states = spread(26, 18), spread(19, 13)
    kernel, constant = mended(
        source[name].read(), 0, [*kept, *(26 + unit for unit in states)], rows[name]
    )
    columns = [19 * gate + unit for gate in range(4) for unit in states]
    assert result[name].shape == (31, 52)
    np.testing.assert_allclose(result[name], kernel[:, columns], rtol=1e-4, atol=1e-5)
    bias = source[f"{second}/biases"].read() + constant
    np.testing.assert_allclose(result[f"{second}/biases"], bias[columns], rtol=1e-4, atol=1e-5)
    # Embedded words are consumed as well, and they stay: what units of the state tell of others
    # does not have to be told by the state alone.
    name = f"{first}/weights"
    kernel, _ = mended(
        source[name].read(), 0, [*range(9), *(9 + unit for unit in kept)], rows[name]
    )
    columns = [26 * gate + unit for gate in range(4) for unit in kept]
    np.testing.assert_allclose(result[name], kernel[:, columns], rtol=1e-4, atol=1e-5)
    slot = source[f"{second}/weights/Adagrad"].read()
    places = [*kept, *(26 + unit for unit in states)]
    columns = [19 * gate + unit for gate in range(4) for unit in states]
    np.testing.assert_array_equal(
        result[f"{second}/weights/Adagrad"], slot[np.ix_(places, columns)]
    )


CELL = "charlm/rnn/lstm_cell"
NAMES = (
    "charlm/embedding",
    f"{CELL}/kernel",
    f"{CELL}/bias",
    "charlm/softmax/kernel",
    "charlm/softmax/bias",
)


def run(values: Mapping[str, Array], end: str = "") -> tuple[Array, Array, Array]:
    """Return the logits of the recorded text, and what the kernels of cell and output consume."""
    record = json.loads((DATA / "tf14_v2_charlm_lstm_ema" / "case.json").read_text())
    table, kernel, bias, output, constant = (values[n + end].astype("f8") for n in NAMES)
    h = c = np.zeros(len(bias) // 4)
    taken, states = [], []
    for letter in record["text"]:
        taken.append(np.concatenate([table[record["vocabulary"].index(letter)], h]))
        i, j, f, o = np.split(taken[-1] @ kernel + bias, 4)
        c = c / (1 + np.exp(-f - 1)) + np.tanh(j) / (1 + np.exp(-i))
        h = np.tanh(c) / (1 + np.exp(-o))
        states.append(h)
    return np.array(states) @ output + constant, np.array(taken), np.array(states)


def test_recurrent_rows_take_over_what_copies_gave(tmp_path: Path) -> None:
    source = model_of("tf14_v2_charlm_lstm_ema")
    values = {name: v.read().copy() for name, v in source.items()}
    for end in ("", "/ExponentialMovingAverage"):
        gates = np.arange(0, 120, 30)
        # Unit 7 makes what unit 3 makes, though others take it otherwise.
        values[f"{CELL}/kernel{end}"][:, gates + 7] = values[f"{CELL}/kernel{end}"][:, gates + 3]
        values[f"{CELL}/bias{end}"][gates + 7] = values[f"{CELL}/bias{end}"][gates + 3]
    changed = source.derive(v.derive(partial(values[n].__getitem__)) for n, v in source.items())
    logits, taken, states = run(values)
    path = saved(tmp_path, statistics(**{NAMES[1]: taken, NAMES[3]: states}))
    strategy = Select(
        resize={CELL: 29}, by="obs", statistics=path, repair="least-squares", ridge=1e-12
    )
    units = strategy.resizes(changed).maps[CELL].produce
    assert isinstance(units, Units)
    assert set(range(30)) - set(units.index) in ({3}, {7})
    result = selected(strategy, changed)
    np.testing.assert_allclose(run(result)[0], logits, atol=1e-4 * np.abs(logits).max())
    # The average of the model is mended as the model is.
    before = run(values, "/ExponentialMovingAverage")[0]
    after = run(result, "/ExponentialMovingAverage")[0]
    np.testing.assert_allclose(after, before, atol=1e-4 * np.abs(before).max())


def test_mended_language_models_keep_far_more(tmp_path: Path) -> None:
    source = model_of("tf14_v2_charlm_lstm_ema")
    record = json.loads((DATA / "tf14_v2_charlm_lstm_ema" / "case.json").read_text())
    wanted = np.array([record["vocabulary"].index(letter) for letter in record["text"]])

    def loss(values: Mapping[str, Array]) -> float:
        logits = run(values)[0][:-1]
        likely = logits - np.log(np.exp(logits).sum(1, keepdims=True))
        return float(-likely[np.arange(len(likely)), wanted[1:]].mean())

    values = {name: v.read().copy() for name, v in source.items()}
    _, taken, states = run(values)
    path = saved(tmp_path, statistics(**{NAMES[1]: taken, NAMES[3]: states}))
    sizes = {CELL: 22}
    whole = loss(values)
    bare = loss(selected(Select(resize=sizes, statistics=path, by="flap"), source)) - whole
    means = Select(resize=sizes, statistics=path, by="flap", repair="mean")
    assert loss(selected(means, source)) - whole < bare
    lines = Select(resize=sizes, statistics=path, by="obs", repair="least-squares")
    assert loss(selected(lines, source)) - whole < 0.2 * bare


def test_planning_reads_no_values(tmp_path: Path) -> None:
    net, rows = relu_net()
    found = statistics(**{"out/w": rows})
    found["out/w/consumed/mean"][0] = np.nan
    path = saved(tmp_path, found)
    strategy = Select(resize={"h": 3}, by="obs", statistics=path, repair="least-squares")
    checkpoint = net.checkpoint()
    assert {v.name: v.shape for v in strategy.apply(checkpoint)}["out/w"] == (3, 3)
    assert list(strategy.notes(checkpoint)) == []
    with pytest.raises(InputError, match="mean of what out/w consumes has NaN or infinities"):
        selected(strategy, net.checkpoint())


SCARCE = (
    "out/w: the covariance of the 6 units that it consumes is of {} observations, which is too few "
    "to tell all of them apart; measure more data (convert stats)"
)


@pytest.mark.parametrize(
    ("options", "needs_covariance"),
    [
        ({"by": "obs"}, True),
        ({"by": "uniform", "repair": "least-squares"}, True),
        ({"by": "std", "repair": "mean"}, False),
    ],
)
@pytest.mark.parametrize(("count", "is_scarce"), [(4, True), (6, True), (7, False), (None, False)])
def test_covariances_of_few_observations_are_told(
    options: dict[str, str],
    needs_covariance: bool,
    count: int | None,
    is_scarce: bool,
    tmp_path: Path,
) -> None:
    net, rows = relu_net()
    found = statistics(**{"out/w": rows[:count]})
    if count is not None:
        found["out/w/consumed/count"] = np.array(count)
    strategy = Select(resize={"h": 3}, statistics=saved(tmp_path, found), **options)  # type: ignore[arg-type]
    told = [SCARCE.format(count)] if needs_covariance and is_scarce else []
    assert list(strategy.notes(net.checkpoint())) == told


def test_principal_components_of_few_observations_are_told(tmp_path: Path) -> None:
    net = Net()
    embedding(net)
    found = statistics(**{"out/w": words(net)[:5]})
    found["out/w/consumed/count"] = np.array(5)
    strategy = Project(resize={"h": 3}, by="pca", statistics=saved(tmp_path, found))
    assert SCARCE.format(5) in list(strategy.notes(net.checkpoint()))


def test_statistics_are_found_by_the_old_name(tmp_path: Path) -> None:
    source = model_of("tf14_v2_charlm_lstm_ema")
    values = {name: v.read() for name, v in source.items()}
    _, taken, states = run(values)
    path = saved(tmp_path, statistics(**{NAMES[1]: taken, NAMES[3]: states}))
    renamed = source.derive(Rename(rename={"charlm/(.*)": r"lm/\1"}).apply(source))
    make = {"by": "flap", "statistics": path, "repair": "least-squares"}
    expected = selected(Select(resize={CELL: 20}, **make), source)  # type: ignore[arg-type]
    cell = CELL.replace("charlm", "lm")
    found = selected(Select(resize={cell: 20}, **make), renamed)  # type: ignore[arg-type]
    for name in NAMES:
        np.testing.assert_array_equal(found[name.replace("charlm", "lm")], expected[name])


def test_what_is_not_measured_is_left_and_said(tmp_path: Path) -> None:
    net = Net()
    h = net.op("Tanh", net.dense(net.x(4), "h", 4, N))
    net.op("Add", net.dense(h, "out", N, 3), net.dense(h, "more", N, 3))
    rows = np.random.default_rng(0).normal(size=(ROWS, N))
    path = saved(tmp_path, statistics(**{"out/w": rows}))
    strategy = Select(resize={"h": 3}, by="uniform", statistics=path, repair="least-squares")
    checkpoint = net.checkpoint()
    assert list(strategy.notes(checkpoint)) == [
        "more/w: the statistics say nothing of what it consumes; it is not mended"
    ]
    result = selected(strategy, checkpoint)
    np.testing.assert_array_equal(result["more/w"], net.values["more/w"][[0, 2, 4]])
    assert np.abs(result["out/w"] - net.values["out/w"][[0, 2, 4]]).max() > 0.01


def test_slots_of_mended_variables_are_said_to_keep_what_they_have(tmp_path: Path) -> None:
    source = model_of("tf14_v2_charlm_lstm_ema")
    found = {
        name: np.random.default_rng(0).normal(size=(99, source[name].shape[0]))
        for name in (NAMES[1], NAMES[3])
    }
    path = saved(tmp_path, statistics(**found))
    strategy = Select(resize={CELL: 20}, by="uniform", statistics=path, repair="mean")
    slots = [n for n, r in source.roles().items() if r.kind == "slot" and r.of in NAMES[2::2]]
    assert len(slots) > 1
    assert list(strategy.notes(source)) == [
        f"{len(slots)} of the slots belong to mended variables, and stay as they are for the units "
        f"that stay: no rule mends gradients"
    ]


def test_ftrl_computes_what_is_mended_again(tmp_path: Path) -> None:
    net, rows = relu_net()
    constants = [net.constant(value) for value in (0.05, 0.01, 0.002, -0.5)]
    for name, shape in (("out/w", (N, 3)), ("out/b", (3,))):
        slots = [net.variable(f"{name}/Ftrl{end}", *shape) for end in ("", "_1")]
        net.values[f"{name}/Ftrl"] = net.rng.uniform(0.5, 1, shape)
        gradient = net.input(*shape, name=f"{name}/gradient")
        net.op("ApplyFtrl", name, *slots, gradient, *constants)
    path = saved(tmp_path, statistics(**{"out/w": rows}))
    strategy = Select(resize={"h": 4}, by="obs", statistics=path, repair="least-squares")
    result = selected(strategy, net.checkpoint())
    for name in ("out/w", "out/b"):
        linear, accumulator = result[f"{name}/Ftrl_1"], result[f"{name}/Ftrl"]
        # TensorFlow's formula, with a gradient of zero.
        quadratic = np.sqrt(accumulator) / 0.05 + 2 * 0.002
        again = np.where(abs(linear) > 0.01, (np.sign(linear) * 0.01 - linear) / quadratic, 0)
        np.testing.assert_allclose(again, result[name], rtol=1e-6)
    assert np.abs(result["out/b"] - net.values["out/b"]).max() > 0.01


@pytest.mark.parametrize("dtype", ["f2", "f4"])
def test_regions_of_what_is_mended_are_parts_of_the_whole(dtype: str, tmp_path: Path) -> None:
    net, rows = relu_net()
    path = saved(tmp_path, statistics(**{"out/w": rows}))
    net.values = {name: values.astype(dtype) for name, values in net.values.items()}
    strategy = Select(resize={"h": 4}, by="flap", statistics=path, repair="least-squares")
    found = {v.name: v for v in strategy.apply(net.checkpoint())}
    whole = found["out/w"].read()
    assert whole.dtype == dtype
    np.testing.assert_array_equal(found["out/w"].read((slice(1, 3), slice(2, 3))), whole[1:3, 2:])
    bias = found["out/b"].read((slice(1, 2),))
    assert bias.dtype == dtype
    np.testing.assert_array_equal(bias, found["out/b"].read()[1:2])


def test_models_without_a_graph_are_mended_by_names(tmp_path: Path) -> None:
    source = model_of("tf221_obj_tfkeras_charlm")
    rng = np.random.default_rng(0)
    names = ["lstm/lstm_cell/recurrent_kernel", "softmax/kernel"]
    width, size = "lstm/lstm_cell", source[names[0]].shape[0]
    rows = {name: rng.normal(1, 1, (99, size)) @ rng.normal(size=(size, size)) for name in names}
    result = resized(source, {width: size - 5}, rows, tmp_path)
    kept = spread(size, size - 5)
    kernel, constant = mended(source[names[1]].read(), 0, kept, rows[names[1]])
    np.testing.assert_allclose(result[names[1]], kernel, rtol=1e-4, atol=1e-5)
    bias = source["softmax/bias"].read() + constant
    np.testing.assert_allclose(result["softmax/bias"], bias, rtol=1e-4, atol=1e-5)
    kernel, constant = mended(source[names[0]].read(), 0, kept, rows[names[0]])
    columns = [size * gate + unit for gate in range(4) for unit in kept]
    np.testing.assert_allclose(result[names[0]], kernel[:, columns], rtol=1e-4, atol=1e-5)
    bias = source["lstm/lstm_cell/bias"].read() + constant
    np.testing.assert_allclose(result["lstm/lstm_cell/bias"], bias[columns], rtol=1e-4, atol=1e-5)


def damaged(key: str, change: Callable[[Array], Array]) -> Callable[[dict[str, Array]], None]:
    def make(found: dict[str, Array]) -> None:
        found[f"out/w/consumed/{key}"] = change(found[f"out/w/consumed/{key}"])

    return make


REFUSED: dict[str, tuple[Callable[[dict[str, Array]], None], type[ConverterError], str]] = {
    "no covariance": (
        lambda found: found.__delitem__("out/w/consumed/covariance"),
        PlanError,
        r"^out/w: .*stats.safetensors has no covariance of what it consumes; measure it \(convert "
        r"stats MODEL --data FILE --covariance 'out/w' -o stats.safetensors\)$",
    ),
    "another size": (
        damaged("mean", lambda values: values[:4]),
        PlanError,
        r"^out/w: the mean of what it consumes is \[4\] in .*stats.safetensors, and here it "
        r"consumes 6; measure this checkpoint$",
    ),
    "another shape": (
        damaged("covariance", lambda values: values[:4]),
        PlanError,
        r"^out/w: the covariance of what it consumes is \[4, 6\] in",
    ),
    "integers": (
        damaged("mean", lambda values: values.astype(np.int64)),
        PlanError,
        "^out/w: the mean of what it consumes is int64 in .*; it must be floats$",
    ),
    "infinite": (
        damaged("covariance", lambda values: values / 0),
        InputError,
        "the covariance of what out/w consumes has NaN or infinities; measure it again$",
    ),
    "lopsided": (
        damaged("covariance", lambda values: values + np.triu(values, 1)),
        InputError,
        "the covariance of what out/w consumes is none: it is not symmetric",
    ),
    "no covariance at all": (
        damaged("covariance", lambda values: np.ones_like(values) - 0.5 * np.eye(N)),
        InputError,
        r"^out/w: the covariance of what it consumes is none, as some combination .*"
        r"\(--select-ridge\)$",
    ),
}


@pytest.mark.filterwarnings("ignore:divide by zero")
@pytest.mark.parametrize("what", REFUSED)
@pytest.mark.parametrize("by", ["uniform", "obs"])
def test_statistics_that_do_not_serve_are_refused(what: str, by: str, tmp_path: Path) -> None:
    net, rows = relu_net()
    found = statistics(**{"out/w": rows})
    damage, error, message = REFUSED[what]
    damage(found)
    strategy = Select(
        resize={"h": 3},
        by=by,  # type: ignore[arg-type]
        statistics=saved(tmp_path, found),
        repair="least-squares",
    )
    checkpoint = net.checkpoint()
    if error is PlanError:
        with pytest.raises(error, match=message):
            strategy.apply(checkpoint)
    else:
        with pytest.raises(error, match=message):
            selected(strategy, checkpoint)


def test_negative_deviations_are_refused(tmp_path: Path) -> None:
    net, rows = relu_net()
    found = statistics(**{"out/w": rows})
    found["out/w/consumed/std"] *= -1
    strategy = Select(resize={"h": 3}, by="std", statistics=saved(tmp_path, found))
    with pytest.raises(InputError, match="std of what out/w consumes has negative numbers"):
        selected(strategy, net.checkpoint())


def test_files_about_something_else_are_refused(tmp_path: Path) -> None:
    net, rows = relu_net()
    path = saved(tmp_path, statistics(**{"ouch/w": rows}))
    strategy = Select(resize={"h": 3}, by="std", statistics=path)
    with pytest.raises(UsageError, match=r"none of its statistics .*, such as 'ouch/w'; did you"):
        strategy.apply(net.checkpoint())
    saved(tmp_path, {"w": rows})
    with pytest.raises(UsageError, match="it has no key VARIABLE/STATISTIC; convert stats makes"):
        strategy.apply(net.checkpoint())
    saved(tmp_path, {"h/w/mean_abs": rows[0]})
    with pytest.raises(PlanError, match=r"^h: .* says nothing of what out/w consumes; measure it"):
        strategy.apply(net.checkpoint())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"by": "obs"}, "^by obs needs statistics of the model on data; measure them"),
        ({"repair": "mean"}, "^repair needs statistics of the model on data; measure them"),
        ({"statistics": Path("x")}, "^nothing uses the statistics in x; choose a score"),
        ({"ridge": 0.0}, "^ridge must be a positive number, got 0.0$"),
    ],
)
def test_options_that_do_not_fit_are_refused(options: Mapping[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Select(resize={"h": 3}, **options)  # type: ignore[arg-type]


def test_flattened_maps_are_chosen_by_all_their_places(tmp_path: Path) -> None:
    """A unit that stands in several places goes from all of them at once."""
    net = Net()
    h = net.op("Tanh", net.dense(net.x(4), "h", 4, N))
    net.dense(net.op("ConcatV2", h, h, net.constant(-1)), "out", 2 * N, 3)
    rows = np.random.default_rng(3).normal(size=(99, 2 * N)) @ np.random.default_rng(4).normal(
        size=(2 * N, 2 * N)
    )
    assert structure_of(net.checkpoint()).axes["out/w"][0].widths() == ("h",)
    path = saved(tmp_path, statistics(**{"out/w": rows}))
    strategy = Select(resize={"h": 4}, by="obs", statistics=path, ridge=1e-12)
    found = kept_of(net, selected(strategy, net.checkpoint()))
    gone: list[int] = []
    kernel = net.values["out/w"]
    for _ in range(2):
        left = [unit for unit in range(N) if unit not in gone]

        def cost(unit: int) -> float:
            units = [*gone, unit]
            return missed(rows, kernel, [*units, *(N + u for u in units)])

        gone.append(min(left, key=cost))
    assert found == sorted(set(range(N)) - set(gone))


def words(net: Net) -> Array:
    """Let all words that are looked up be of three dimensions, and the others large elsewhere."""
    directions = np.linalg.qr(net.rng.normal(size=(N, N)))[0]
    table = net.rng.normal(size=(7, N)) * [3, 2, 1, 0, 0, 0]
    table[[3, 4, 6], 3:] = 9
    net.values["h"] = table @ directions.T
    rows: Array = net.values["h"][net.feeds["ids"]]
    return rows


def test_principal_components_are_those_of_activations(tmp_path: Path) -> None:
    net = Net()
    embedding(net)
    rows = words(net) + 0
    path = saved(tmp_path, statistics(**{"out/w": rows}))
    checkpoint = net.checkpoint()
    before = net.run(net.values)
    strategy = Project(resize={"h": 3}, by="pca", statistics=path)
    result = {v.name: v.read() for v in strategy.apply(checkpoint)}
    assert result["h"].shape == (7, 3)
    np.testing.assert_allclose(net.run(result), before, atol=1e-10)
    by_table = {v.name: v.read() for v in Project(resize={"h": 3}, by="pca").apply(checkpoint)}
    assert np.abs(net.run(by_table) - before).max() > 0.1


def test_principal_components_need_covariances_of_what_is_consumed(tmp_path: Path) -> None:
    net = Net()
    embedding(net)
    found = statistics(**{"out/w": words(net)})
    del found["out/w/consumed/covariance"]
    strategy = Project(resize={"h": 3}, by="pca", statistics=saved(tmp_path, found))
    with pytest.raises(
        PlanError, match=r"^out/w: .* has no covariance of what it consumes; measure"
    ):
        strategy.apply(net.checkpoint())
    with pytest.raises(UsageError, match=r"^nothing uses the statistics in x; choose principal"):
        Project(resize={"h": 3}, statistics=Path("x"))


def test_what_makes_and_takes_units_at_once_has_no_statistics_of_them(tmp_path: Path) -> None:
    """A statistic of what a table is multiplied with may be as long as its other axis."""
    net = Net()
    tied(net)
    path = saved(tmp_path, statistics(h=words(net)))
    with pytest.raises(PlanError, match=r"^h: no variable consumes its units on an axis that does"):
        Select(resize={"h": 3}, by="std", statistics=path).apply(net.checkpoint())


def test_what_nothing_consumes_cannot_be_measured(tmp_path: Path) -> None:
    net = Net()
    net.dense(net.op("Gather", net.variable("h", 7, N), net.ids()), "out", N, 3)
    path = saved(tmp_path, statistics(**{"out/w": words(net)}))
    project = Project(resize={"out": 2}, by="pca", statistics=path, lossy=True)
    for strategy in (project, Select(resize={"out": 2}, by="std", statistics=path)):
        with pytest.raises(PlanError, match=r"^out: no variable consumes .*; choose by something"):
            strategy.apply(net.checkpoint())
