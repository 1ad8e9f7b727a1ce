"""From variables to files and back: whatever they are, however a strategy lays them out."""

from __future__ import annotations

import functools
import itertools
import math
import shutil
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import ClassVar

import numpy as np
import pytest
from conftest import case
from converter_plugins.cast import Cast
from converter_plugins.drop import Drop
from converter_plugins.keep import Keep
from converter_plugins.rename import Rename
from converter_plugins.scale import Scale
from hypothesis import given, settings
from hypothesis import strategies as st

from converter import (
    Array,
    Checkpoint,
    PlanError,
    Region,
    Strategy,
    UsageError,
    Variable,
    convert,
    open_checkpoint,
)
from converter.cli.report import result_lines
from converter.dtype import BY_NAME, DType
from converter.pipeline import run
from converter.plan import make_plan
from converter.target import parse_target
from converter.variable import regions

DTYPES = [dtype for dtype in BY_NAME.values() if dtype.numpy is not None]
SHAPES: list[tuple[int, ...]] = [
    *((), (0,), (1,), (7,), (1, 9), (9, 1), (2, 0, 3), (3, 4), (2, 3, 4), (1, 1, 1, 2)),
]
LAYOUTS: dict[str, Callable[[Array], Array]] = {
    "C": lambda values: values.copy(order="C"),
    "Fortran": lambda values: values.copy(order="F"),
    "transposed": lambda values: values.T.copy(order="C").T,
    "reversed": lambda values: np.flip(np.flip(values).copy()) if values.ndim else values,
    "sliced": lambda values: np.repeat(values, 2, axis=-1)[..., ::2] if values.ndim else values,
    "offset": lambda values: np.concatenate([values[:1], values])[1:] if values.ndim else values,
}
NAMES = (
    st.text(min_size=1, max_size=12)
    | st.sampled_from(["a/b", "a//b", "/a", "a/", ".", "..", "../x", "*", "[a-z]", "a?b", "a\n"])
    | st.sampled_from(["ß", "変数", "x" * 3000, "\0", "\x1b[31m", "a:0", "C:\\x", "__metadata__"])
    | st.binary(min_size=1, max_size=6).map(lambda raw: raw.decode("utf-8", "surrogateescape"))
)


def values_of(dtype: DType, shape: tuple[int, ...], seed: int) -> Array:
    count = math.prod(shape)
    rng = np.random.default_rng(seed)
    if dtype.name == "string":
        flat = np.empty(count, object)
        flat[:] = [rng.bytes(int(n)) for n in rng.integers(0, 200, count)]
        return flat.reshape(shape)
    assert dtype.numpy is not None
    if dtype.name == "bool":
        return rng.integers(0, 2, shape).astype(bool)
    if dtype.name in ("int4", "uint4", "int2", "uint2", "float4_e2m1fn"):
        return rng.integers(0, 2, shape).astype(dtype.numpy)
    return np.frombuffer(rng.bytes(count * dtype.itemsize), dtype.numpy).reshape(shape)


@st.composite
def variables(draw: st.DrawFn) -> Variable:
    dtype = draw(st.sampled_from(DTYPES))
    shape = draw(st.sampled_from(SHAPES))
    layout = LAYOUTS[draw(st.sampled_from(sorted(LAYOUTS)))]
    values = layout(values_of(dtype, shape, draw(st.integers(0, 999))))
    name = draw(NAMES)
    return Variable(name, dtype, shape, lambda region: values[region or ...])


def bits(variable: Variable) -> tuple[str, tuple[int, ...], object]:
    """Return all that there is to compare of a variable; NaN is equal to itself."""
    values = variable.read()
    held = values.tolist() if variable.dtype.name == "string" else values.tobytes()
    return variable.dtype.name, variable.shape, held


def everything(checkpoint: Iterable[Variable]) -> dict[str, object]:
    return {variable.name: bits(variable) for variable in checkpoint}


def write(
    variables_: Iterable[Variable], output: Path, to: str, shard_size: int | None = None
) -> None:
    target = parse_target(output, name="model", to=to, shard_size=shard_size)
    plan = make_plan(Checkpoint(variables_), [], target, sidecar=True)
    run(plan, sync=False)


def read_all(output: Path) -> dict[str, object]:
    """Return what is in an output, and in the sidecar that is opened with it."""
    return everything(open_checkpoint(output).values())


@settings(max_examples=150, deadline=None)
@given(
    found=st.lists(variables(), min_size=1, max_size=6, unique_by=lambda v: v.name),
    to=st.sampled_from(["tf", "safetensors"]),
    shard_size=st.sampled_from([None, 1, 100]),
)
def test_any_variables_come_back(found: list[Variable], to: str, shard_size: int | None) -> None:
    # safetensors alone would hold nothing.
    found.append(Variable.from_array("always held", np.arange(3, dtype=np.int16)))
    with TemporaryDirectory() as directory:
        output = Path(directory, "out")
        try:
            write(found, output, to, shard_size)
        except PlanError as error:
            # Surrogates that stand for no byte are no name for TensorFlow, or its sidecar.
            if all(_is_encodable(v.name) for v in found) or output.exists():
                raise
            assert any(repr(v.name) in str(error) for v in found)  # noqa: PT017
            return
        assert read_all(output) == everything(found)
        if shard_size == 1 and to == "tf":
            shards = [file for file in output.iterdir() if ".data-" in file.name]
            assert len(shards) >= sum(v.nbytes > 0 for v in found)


def _is_encodable(name: str) -> bool:
    try:
        name.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return False
    return True


@pytest.mark.parametrize("to", ["tf", "safetensors"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_of_what_a_strategy_gives(layout: str, to: str, tmp_path: Path) -> None:
    meant = {}
    for number, (dtype, shape) in enumerate(itertools.product(DTYPES, SHAPES)):
        values = LAYOUTS[layout](values_of(dtype, shape, number))
        load = functools.partial(_part, values)
        meant[f"v{number}"] = Variable(f"v{number}", dtype, shape, load)
    write(meant.values(), tmp_path / "out", to)
    assert read_all(tmp_path / "out") == {
        name: (v.dtype.name, v.shape, _plain(v)) for name, v in meant.items()
    }


def _part(values: Array, region: Region) -> Array:
    part: Array = values[region or ...]
    return part


def _plain(variable: Variable) -> object:
    """Return the values without `Variable.read`, which is what is tested."""
    values = variable.load(tuple(slice(0, size) for size in variable.shape))
    return values.tolist() if variable.dtype.name == "string" else values.tobytes("C")


@pytest.mark.parametrize("max_items", [1, 5, 24, 10_000])
@pytest.mark.parametrize("shape", [*SHAPES, (1, 50), (50, 1), (3, 1, 17), (0, 5), (5, 4, 3, 2)])
def test_regions_tile_in_c_order(shape: tuple[int, ...], max_items: int) -> None:
    numbers = np.arange(math.prod(shape)).reshape(shape)
    parts = [numbers[region or ...].ravel() for region in regions(shape, max_items)]
    assert all(0 < part.size <= max_items for part in parts)
    assert np.concatenate([*parts, np.empty(0, int)]).tolist() == numbers.ravel().tolist()


@settings(max_examples=40, deadline=None)
@given(
    found=st.lists(variables(), min_size=1, max_size=5, unique_by=lambda v: v.name),
    shard_size=st.sampled_from([None, 60]),
)
def test_there_and_back_gives_the_same_files(found: list[Variable], shard_size: int | None) -> None:
    found = [v for v in found if v.dtype.safetensors and v.name.isascii()]
    found = [v for v in found if v.name != "__metadata__"]
    found.append(Variable.from_array("always held", np.arange(3, dtype=np.int16)))
    with TemporaryDirectory() as directory:
        a, b, c = (Path(directory, name) for name in "abc")
        write(found, a, "tf", shard_size)
        convert(a, b, shard_size=shard_size, sync=False)
        convert(b, c, to="tf", shard_size=shard_size, sync=False)
        assert _files(a) == _files(c)


def _files(directory: Path) -> dict[str, bytes]:
    return {f.name: f.read_bytes() for f in directory.iterdir() if f.name != "checkpoint"}


# -- what an output cannot hold -------------------------------------------------------------------


UNHELD = {"string", "complex128", "int4", "uint4"}


def test_nothing_is_lost_silently(tmp_path: Path) -> None:
    source = case("tf221_raw_dtypes").path
    with pytest.raises(PlanError, match="--drop") as caught:
        convert(source, tmp_path / "out")
    assert caught.value.exit_code == 4
    assert "(and 3 more)" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_sidecar_holds_exactly_the_rest(tmp_path: Path) -> None:
    source = case("tf221_raw_dtypes").path
    convert(source, tmp_path / "out", sidecar=True)
    held = everything(open_checkpoint(tmp_path / "out").values())
    beside = everything(open_checkpoint(tmp_path / "out" / "model.sidecar").values())
    assert set(beside) == UNHELD
    assert held | beside == everything(open_checkpoint(source).values())
    # The sidecar is no checkpoint of its own for those who look for one in the directory.
    assert set(open_checkpoint(tmp_path / "out")) == set(held)


def test_dropping_decides(tmp_path: Path) -> None:
    source = case("tf221_raw_dtypes").path
    result = convert(source, tmp_path / "out", [Drop(tuple(UNHELD))])
    assert result.plan.dropped == dict.fromkeys(UNHELD, "drop")
    assert set(open_checkpoint(tmp_path / "out")) == set(open_checkpoint(source)) - UNHELD
    assert {file.name for file in result.files} == {"model.safetensors"}


def test_tensorflow_holds_everything(tmp_path: Path) -> None:
    source = case("tf221_raw_dtypes").path
    convert(source, tmp_path / "out", to="tf")
    assert read_all(tmp_path / "out") == everything(open_checkpoint(source).values())


def test_empty_names_are_no_names_for_tensorflow(tmp_path: Path) -> None:
    variable = Variable.from_array("", np.arange(3))
    target = parse_target(tmp_path / "out", name="model", to="tf")
    plan = make_plan(Checkpoint([variable]), [], target)
    with pytest.raises(PlanError, match="no empty names"):
        run(plan)
    assert list(tmp_path.iterdir()) == []


def test_nothing_left_is_refused(tmp_path: Path, lstm: str) -> None:
    with pytest.raises(PlanError, match="no variable is left"):
        convert(lstm, tmp_path / "out", [Drop(("*",))])
    assert list(tmp_path.iterdir()) == []


# -- what goes along ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("strategies", "is_carried"),
    [
        ([], True),
        ([Scale({"charlm/*": 0.5})], True),
        ([Cast("float16")], False),
        ([Drop(("step",))], False),
        ([Rename({"global_step": "s"}), Rename({"s": "global_step"})], True),
    ],
    ids=["copy", "scale", "cast", "drop", "there and back"],
)
def test_graph_goes_along_while_it_fits(
    strategies: list[Strategy], is_carried: bool, tmp_path: Path
) -> None:
    source = Path(case("tf14_v2_charlm_lstm_ema").path)
    result = convert(source, tmp_path / "out", strategies, to="tf")
    written = {file.name for file in (tmp_path / "out").iterdir()}
    assert (f"{source.name}.meta" in written) is is_carried
    assert set(result.files) == set((tmp_path / "out").iterdir())
    if is_carried:
        meta = (tmp_path / "out" / f"{source.name}.meta").read_bytes()
        assert meta == source.with_name(f"{source.name}.meta").read_bytes()
        assert not any(".meta" in note for note in result.plan.notes)
    else:
        (note,) = result.plan.notes
        assert note.startswith(f"{source.name}.meta is left out")


def test_graph_is_of_no_use_to_safetensors(tmp_path: Path, lstm: str) -> None:
    result = convert(lstm, tmp_path / "out")
    assert [file.name for file in result.files] == ["model.safetensors"]
    assert result.plan.meta is None


def test_object_checkpoint_keeps_its_keys_and_graph(tmp_path: Path) -> None:
    source = case("tf221_obj_module").path
    convert(source, tmp_path / "out", [Scale({"net/*": 0.5, "momentum/*": 0.5})], to="tf")
    from converter.formats import bundle

    before = bundle.read(Path(f"{source}.index")).variables
    after = bundle.read(tmp_path / "out" / "tower-30.index").variables
    assert [v.name for v in after] == [v.name for v in before]
    graphs = [
        next(v for v in found if v.name == "_CHECKPOINTABLE_OBJECT_GRAPH").read().item()
        for found in (before, after)
    ]
    assert graphs[0] == graphs[1]
    scaled = {v.name: v.read() for v in after}
    key = "net/layers/0/w/.ATTRIBUTES/VARIABLE_VALUE"
    original = next(v for v in before if v.name == key).read()
    np.testing.assert_array_equal(scaled[key], original * np.float32(0.5))


def test_object_checkpoint_without_its_graph_is_name_based(tmp_path: Path) -> None:
    source = open_checkpoint(case("tf221_obj_tfkeras_charlm").path)
    dropped = Drop(("optimizer", "bookkeeping"))
    convert(source.path, tmp_path / "out", [dropped], to="tf")
    written = open_checkpoint(tmp_path / "out")
    assert written.object_graph is None
    assert not any(".ATTRIBUTES" in name for name in written)
    kept = {name for name, role in source.roles().items() if not role.is_optimizer_state}
    kept -= {name for name, role in source.roles().items() if role.kind == "object_graph"}
    assert set(written) == kept


def test_object_graph_follows_what_is_left(tmp_path: Path) -> None:
    source = open_checkpoint(case("tf221_obj_tfkeras_charlm").path)
    result = convert(source.path, tmp_path / "out", [Keep(("model",))], to="tf")
    written = open_checkpoint(tmp_path / "out")
    kept = {name for name, role in source.roles().items() if role.kind == "model"}
    assert set(written) == {*kept, "_CHECKPOINTABLE_OBJECT_GRAPH"}
    assert {name: written.stored_keys[name] for name in kept} == {
        name: source.stored_keys[name] for name in kept
    }
    assert not result.plan.left_out


# -- and besides -----------------------------------------------------------------------------------


def test_progress_ends_where_it_should(tmp_path: Path, lstm: str) -> None:
    seen: list[tuple[int, int]] = []

    def progress(done: int, total: int) -> None:
        seen.append((done, total))

    for to, verify in itertools.product(("tf", "safetensors"), (True, False)):
        seen.clear()
        output = tmp_path / f"{to}{verify}"
        result = convert(lstm, output, to=to, verify_output=verify, progress=progress)
        total = result.plan.nbytes * (2 if verify else 1)
        assert seen[-1] == (total, total)
        assert sorted(seen) == seen
        assert result.verified is verify


def test_what_is_found_out_before_is_no_time_of_writing(tmp_path: Path, lstm: str) -> None:
    told: list[object] = []

    @dataclass(frozen=True)
    class Slow(Strategy):
        """Take its time before anything is written."""

        name: ClassVar[str] = "slow"

        def prepare(self, checkpoint: Checkpoint) -> None:
            told.append(len(checkpoint))
            time.sleep(0.3)

    result = convert(
        lstm,
        tmp_path / "x.safetensors",
        [Drop(drop=("optimizer",)), Slow()],
        progress=lambda done, total: told.append((done, total)),
    )
    total = 2 * result.plan.nbytes
    assert told[:2] == [len(result.plan.result), (0, total)]
    assert told[-1] == (total, total)
    assert result.seconds - result.writing_seconds >= 0.3
    checked = run(result.plan, force=True, check=lambda output: time.sleep(0.3))
    assert checked.seconds - checked.writing_seconds >= 0.6
    shown = list(result_lines(replace(result, nbytes=6_000, seconds=9.0, writing_seconds=3.0)))
    assert shown[-1].endswith(", 2.0 kB/s)")


def test_counts_are_those_of_one_pass(tmp_path: Path) -> None:
    """Strings are compared by reading twice; nothing else is counted twice."""
    values = np.array([1e300, 1.0, -1e300])
    source = tmp_path / "source"
    write([Variable.from_array("v", values)], source, "tf")
    result = convert(source, tmp_path / "out", [Cast("float32")])
    assert result.counts == {"v": {"overflowed to infinity": 2}}
    assert open_checkpoint(tmp_path / "out")["v"].read().tolist() == [np.inf, 1.0, -np.inf]


def test_output_named_like_the_source(tmp_path: Path) -> None:
    """Odd prefixes survive: blanks, brackets, a slash at the end."""
    odd = case("tf115_v2_odd_names").path
    convert(odd, tmp_path / "out", to="tf")
    name = Path(odd).name
    assert (tmp_path / "out" / f"{name}.index").exists()
    assert set(open_checkpoint(tmp_path / "out" / name)) == set(open_checkpoint(odd))
    slash = case("tf115_v2_slash_prefix").path
    convert(slash, tmp_path / "slash", to="tf")
    assert set(open_checkpoint(tmp_path / "slash")) == set(open_checkpoint(slash))


def test_the_way_back_brings_the_sidecar(tmp_path: Path) -> None:
    source = case("tf115_v2_odd_names").path
    convert(source, tmp_path / "x.safetensors", sidecar=True)
    convert(tmp_path / "x.safetensors", tmp_path / "back", to="tf")
    assert everything(open_checkpoint(tmp_path / "back").values()) == everything(
        open_checkpoint(source).values()
    )


def test_the_source_of_a_v1_checkpoint_is_never_hidden_or_replaced(tmp_path: Path) -> None:
    source = case("tf012_v1_charlm_basiclstm")
    for file in source.directory.glob("charlm.ckpt-300*"):
        shutil.copy(file, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(PlanError, match="belongs to the source"):
        convert(tmp_path / "charlm.ckpt-300", tmp_path, to="tf", force=True)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_roles_forget_a_variable_that_has_gone() -> None:
    """`x` takes the name of `w` after that is gone: the slots of the old `w` are not its own."""
    names_ = ("w", "w/Adam", "w/Adam_1", "x")
    opened = Checkpoint(
        replace(Variable.from_array(name, np.zeros(3, "f4")), sources=(name,)) for name in names_
    )
    without = opened.derive(v for v in opened.values() if v.name != "w")
    renamed = without.derive(v.rename("w") if v.name == "x" else v for v in without.values())
    assert renamed.roles()["w/Adam"].kind == "slot"
    assert renamed.roles()["w/Adam"].of is None
    assert renamed.roles()["w"].kind == "model"


def test_roles_of_pieces_know_their_own() -> None:
    """What was split of one has one source: names tell which slot is of which piece."""
    names_ = ("w", "w/Adam", "w/Adam_1")
    opened = Checkpoint(
        replace(Variable.from_array(name, np.zeros(3, "f4")), sources=(name,)) for name in names_
    )
    split = opened.derive(
        v.rename(v.name.replace("w", piece)) for v in opened.values() for piece in ("a", "b")
    )
    assert [role.of for role in split.roles().values()] == [None, None, "a", "b", "a", "b"]
    renamed = split.derive(v.rename(v.name.replace("b", "c")) for v in split.values())
    assert [renamed.roles()[name].of for name in ("a/Adam", "c/Adam")] == ["a", "c"]
    without = split.derive(v for v in split.values() if v.name != "a")
    assert [without.roles()[name].of for name in ("a/Adam", "b/Adam")] == [None, "b"]


def test_one_strategy_alone_is_a_series_of_one(tmp_path: Path) -> None:
    source = case("tf14_v2_charlm_lstm_ema").path
    result = convert(source, tmp_path / "x.safetensors", Keep(keep=("model",)))
    assert len(result.plan.variables) == 5
    for odd in ("keep", ["keep"], Keep, [Keep]):
        with pytest.raises(UsageError, match=r"objects such as Drop\(...\), got .*[Kk]eep"):
            convert(source, tmp_path / "y.safetensors", odd)  # type: ignore[arg-type]
