"""What each resizing strategy does to the units."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from click.testing import CliRunner
from conftest import DATA, slow
from converter_plugins.drop import Drop
from converter_plugins.duplicate import Duplicate
from converter_plugins.pad import Pad
from converter_plugins.project import Project
from converter_plugins.rename import Rename
from converter_plugins.select import Select
from converter_plugins.truncate import Truncate
from nets import (
    LIVE,
    STRATEGIES,
    N,
    Net,
    batch_norm,
    embedding,
    hidden,
    softmax,
    tied,
)
from safetensors.numpy import save_file

from converter import (
    Array,
    Checkpoint,
    Coupled,
    Initializer,
    InputError,
    PlanError,
    Resizer,
    Strategy,
    UsageError,
    Variable,
    Width,
    WidthMap,
    open_checkpoint,
)
from converter.cli import cli
from converter.initializer import parse_initializer
from converter.initializers import BUILT_IN
from converter.plan import make_plan
from converter.structure.structure import as_known
from converter.testing import NAME, check_strategy


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


@pytest.mark.parametrize("fill", [parse_initializer("zeros", BUILT_IN), LIVE])
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
    source = Checkpoint([watched(v) for v in made.values()], known=as_known(net.told(made)))
    resizer = STRATEGIES[strategy](resize={"h": 4 if strategy == "select" else 9})
    resizer.resizes(source)
    variables = list(resizer.apply(source))
    assert read == []
    for variable in variables:
        variable.read()
    assert {"h", "out/w"} <= set(read)


def test_a_plan_asks_once_what_becomes_of_a_width() -> None:
    asked = []

    @dataclass(frozen=True)
    class Counting(Truncate):
        """Note what is asked."""

        name: ClassVar[str] = "counting"

        def width_map(self, width: Width, size: int, coupled: Coupled) -> WidthMap:
            asked.append((width.name, size))
            return super().width_map(width, size, coupled)

    net = Net()
    hidden("Tanh")(net)
    source = net.checkpoint()
    plan = make_plan(source, [Counting(resize={"h": 4})])
    assert [width.name for width in plan.resized[0].widths] == ["h"]
    assert asked == [("h", 4)]
    make_plan(source, [Counting(resize={"h": 5})])
    assert asked == [("h", 4), ("h", 5)]


def sized(make: Callable[..., Resizer], size: Callable[[int], int]) -> Callable[..., Resizer]:
    return lambda c: make(shape={NAME: tuple(size(n) if n else 0 for n in c[NAME].shape)})


@pytest.mark.parametrize(
    "make",
    [
        sized(Select, lambda n: n - 1),
        slow(sized(partial(Select, by="random"), lambda n: n - 1)),
        sized(Duplicate, lambda n: n + 1),
        slow(sized(partial(Duplicate, noise=0.1), lambda n: n + 1)),
        sized(partial(Project, lossy=True), lambda n: n + 1),
        slow(sized(partial(Project, lossy=True, by="pca"), lambda n: max(1, n - 1))),
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


def test_the_graph_is_resized_though_variables_were_left_out_and_renamed() -> None:
    source = open_checkpoint(DATA / "tf14_v2_charlm_lstm_ema")
    wanted = {"charlm/rnn/lstm_cell": 45}
    alone = make_plan(source, [Pad(resize=wanted)]).resized_graph()
    before: list[Strategy] = [Drop(drop=("optimizer",)), Rename(rename={"charlm/(.*)": r"x/\1"})]
    plan = make_plan(source, [*before, Pad(resize=wanted)])
    assert {"x/embedding", "x/rnn/lstm_cell/kernel"} <= {v.name for v in plan.variables}
    assert plan.resized_graph() == alone
    assert plan.shape_in_graph("charlm/rnn/lstm_cell/kernel") == (8 + 45, 180)
    assert plan.shape_in_graph("charlm/rnn/lstm_cell/kernel/Adam") == (8 + 45, 180)
    assert plan.shape_in_graph("beta1_power") == ()


def test_parts_of_a_split_stay_equally_long() -> None:
    net = Net()
    both = net.dense(net.x(4), "h", 4, 2 * N)
    net.op("Split", net.constant(1), both, name="parts", num_split=2)
    for part, act in (("parts", "Relu"), ("parts:1", "Tanh")):
        net.dense(net.op(act, part), f"{act}/out", N, 3)
    checkpoint = net.checkpoint()
    for size in (9, 3):
        strategy = Pad if size > N else Truncate
        with pytest.raises(PlanError) as error:
            strategy(resize={"h_1": size}).resizes(checkpoint)
        assert str(error.value) == (
            f"h_1: Split parts makes parts of one length, and h would have {N}, h_1 would have "
            f"{size} entries; resize h and h_1 so that they are equally long"
        )
        found = strategy(resize={"h": size, "h_1": size}).resizes(checkpoint)
        assert found.sizes == {"h": size, "h_1": size}
