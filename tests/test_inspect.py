"""What `convert inspect` tells, and the sums and statistics behind it."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest
from click.testing import CliRunner, Result
from conftest import case
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from converter.checkpoint import Checkpoint
from converter.cli import cli
from converter.dtype import BY_NAME, VARIANT
from converter.formats import bundle, safetensors
from converter.formats.stream import Output
from converter.inspection import summarise
from converter.statistics import Statistics, distance, movements, norm, statistics
from converter.variable import Variable

F4 = np.dtype("f4")


def variable(name: str, array: npt.ArrayLike) -> Variable:
    return Variable.from_array(name, np.asarray(array))


def zeros(*names: str, dtype: npt.DTypeLike = F4) -> Checkpoint:
    return Checkpoint([variable(name, np.zeros((2, 3), dtype)) for name in names])


def inspect(*args: str | Path) -> Result:
    return CliRunner().invoke(cli, ["inspect", *map(str, args)])


def write_tf(prefix: Path, variables: list[Variable]) -> Path:
    bundle.write(prefix, variables, open_output=Output)
    return prefix


def write_safetensors(directory: Path, variables: list[Variable]) -> Path:
    layout = safetensors.layout(variables, "model")
    safetensors.write(directory, layout, open_output=Output)
    return directory / "model.safetensors"


# --- sums by scope ---


def test_scopes_in_their_order_with_slots_where_their_variable_is() -> None:
    variables = zeros("rnn/kernel", "rnn/kernel/Adam", "rnn/kernel/Adam_1", "head/w").values()
    powers = [variable(name, np.float32(0.9)) for name in ("beta1_power", "beta2_power")]
    summary = summarise(Checkpoint([*variables, *powers]))
    assert [(s.name, s.model.variables, dict(s.others)) for s in summary.scopes] == [
        ("rnn", 1, {"slot": 2}),
        ("head", 1, {}),
        ("", 0, {"beta_power": 2}),
    ]
    assert summary.total.variables == 6
    assert summary.total.elements == 26
    assert summary.total.nbytes == 104
    assert {kind: total.variables for kind, total in summary.roles.items()} == {
        "model": 2,
        "slot": 2,
        "beta_power": 2,
    }


def test_scopes_that_differ_in_numbers_are_merged_only_where_there_are_many() -> None:
    names = [f"bert/layer_{i}/{part}/w" for i in range(12) for part in ("query", "key")]
    few = summarise(zeros(*names), max_scopes=24)
    assert [s.name for s in few.scopes][:2] == ["bert/layer_0/query", "bert/layer_0/key"]
    many = summarise(zeros(*names), max_scopes=23)
    assert [(s.name, s.model.variables) for s in many.scopes] == [
        ("bert/layer_{0..11}/query", 12),
        ("bert/layer_{0..11}/key", 12),
    ]
    assert [s.name for s in summarise(zeros(*names), max_scopes=1).scopes] == ["bert/layer_{0..11}"]


@pytest.mark.parametrize(
    ("numbers", "label"),
    [
        (["1", "3"], "{1,3}"),
        (["9", "10", "11"], "{9..11}"),
        (["1", "2", "4"], "*"),
        (["1", "2", "9" * 5000], "*"),
    ],
)
def test_merged_numbers(numbers: list[str], label: str) -> None:
    summary = summarise(zeros(*(f"a_{n}/b/w" for n in numbers)), max_scopes=1)
    assert [s.name for s in summary.scopes] == [f"a_{label}/b"]


@pytest.mark.usefixtures("must_end")
def test_deep_scopes_are_merged_in_time() -> None:
    deep = [f"{first}/" + "b/" * 20_000 + "w" for first in range(50)]
    assert [scope.name.partition("/")[0] for scope in summarise(zeros(*deep)).scopes] == ["{0..49}"]
    few = summarise(zeros(*deep[:2])).scopes
    assert [scope.name for scope in few] == [name.rpartition("/")[0] for name in deep[:2]]
    different = ["x" * k + "/b" * 20_000 + "/w" for k in range(1, 51)]
    assert len(summarise(zeros(*different)).scopes) == 50


def test_scopes_of_names_with_dots() -> None:
    summary = summarise(zeros("encoder.layer.0.weight", "encoder.layer.0.bias", "head.weight"))
    assert [s.name for s in summary.scopes] == ["encoder.layer.0", "head"]


def test_mixed_floats() -> None:
    half = variable("b", np.zeros(2, ml_dtypes.bfloat16))
    step = variable("global_step", np.int64(3))
    assert summarise(Checkpoint([variable("a", np.zeros(2, "f4")), step])).mixed_floats == {}
    mixed = summarise(Checkpoint([variable("a", np.zeros(2, "f4")), half, step])).mixed_floats
    assert mixed == {"float32": ["a"], "bfloat16": ["b"]}


def test_nothing_to_sum() -> None:
    assert summarise(Checkpoint([])).scopes == ()


# --- statistics ---


@pytest.mark.parametrize("name", [d.name for d in BY_NAME.values() if d.itemsize])
def test_statistics_of_every_dtype(name: str) -> None:
    dtype = BY_NAME[name]
    assert dtype.numpy is not None
    values = np.array([[0, 1, 1], [1, 0, 1]]).astype(dtype.numpy)
    found = statistics(Variable.from_array("x", values, dtype=dtype))
    assert found is not None
    assert (found.size, found.zeros, found.minimum, found.maximum) == (6, 2, 0, 1)
    assert found.mean == pytest.approx(2 / 3)
    assert found.deviation == pytest.approx(math.sqrt(2) / 3)
    assert found.norm == pytest.approx(2)


def test_statistics_over_many_blocks() -> None:
    values = np.random.default_rng(0).normal(1e3, 1, (3, 300_000))
    found = statistics(variable("x", values))
    assert found is not None
    assert found.mean == pytest.approx(values.mean(), rel=1e-12)
    assert found.deviation == pytest.approx(values.std(), rel=1e-9)
    assert found.norm == pytest.approx(np.linalg.norm(values), rel=1e-12)
    assert (found.minimum, found.maximum) == (values.min(), values.max())


# Beyond these the sum of squares is infinite, as it is in numpy.
_FLOATS = st.floats(-1e150, 1e150) | st.sampled_from([np.nan, np.inf, -np.inf])


@given(hnp.arrays("f8", hnp.array_shapes(min_dims=0, min_side=0, max_dims=3), elements=_FLOATS))
def test_statistics_are_of_the_finite_elements(values: npt.NDArray[np.float64]) -> None:
    found = statistics(variable("x", values))
    assert found is not None
    finite = values[np.isfinite(values)]
    assert found.size == values.size
    assert found.nans == np.isnan(values).sum()
    assert found.infinities == np.isinf(values).sum()
    assert found.zeros == (values == 0).sum()
    if not finite.size:
        assert (found.minimum, found.maximum, found.mean, found.deviation) == (None,) * 4
        return
    assert (found.minimum, found.maximum) == (finite.min(), finite.max())
    with np.errstate(over="ignore", invalid="ignore"):
        assert found.mean == pytest.approx(finite.mean(), nan_ok=True)


def test_extremes_of_integers_are_exact() -> None:
    large = [2**63, 2**64 - 1]
    found = statistics(variable("x", np.array(large, "u8")))
    assert found is not None
    assert [found.minimum, found.maximum] == large


def test_complex_numbers_count_by_their_magnitude() -> None:
    found = statistics(variable("x", np.array([3 + 4j, 0, complex("nan")], "c8")))
    assert found == Statistics(3, 1, 0, 1, 0.0, 5.0, 2.5, 2.5, 5.0)


def test_strings_and_variants_have_no_statistics() -> None:
    assert statistics(variable("x", np.array([b"a", b"b"], object))) is None
    opaque = Variable("x", VARIANT, (), lambda region: np.zeros(4, np.uint8))
    assert statistics(opaque) is None


def test_progress_counts_bytes() -> None:
    counts: list[int] = []
    statistics(variable("x", np.zeros(600_000, "f2")), progress=counts.append)
    assert sum(counts) == 1_200_000
    assert len(counts) > 1


# --- movement ---


def test_movements_over_steps() -> None:
    first = Checkpoint([variable("w", [3.0, 4.0]), variable("old", [1.0]), variable("s", [b"x"])])
    second = Checkpoint([variable("w", [3.0, 16.0]), variable("new", [2.0])])
    third = Checkpoint([variable("w", [[1.0], [0.0]]), variable("new", [5.0])])
    found = {m.name: (m.norms, m.distance) for m in movements([first, second])}
    assert found == {
        "w": ((5.0, math.hypot(3, 16)), 12.0),
        "old": ((1.0, None), None),
        "new": ((None, 2.0), None),
    }
    assert {m.name: m.distance for m in movements([second, third])} == {"w": None, "new": 3.0}


def test_distance_of_unsigned_and_complex_numbers() -> None:
    a, b = variable("x", np.array([1], "u8")), variable("x", np.array([3], "u8"))
    assert distance(a, b) == 2
    assert norm(variable("x", np.array([3 + 4j], "c8"))) == 5
    assert math.isnan(norm(variable("x", np.array([np.nan], "f4"))))


# --- the command ---


@pytest.fixture
def small(tmp_path: Path) -> Path:
    return write_tf(
        tmp_path / "model.ckpt-100",
        [
            variable("beta1_power", np.float32(0.9)),
            variable("global_step", np.int64(100)),
            variable("rnn/kernel", np.arange(24, dtype="f4").reshape(4, 6)),
            variable("rnn/kernel/Adam", np.zeros((4, 6), "f4")),
            variable("rnn/kernel/Adam_1", np.ones((4, 6), "f4")),
            variable("words", np.array([b"caf\xc3\xa9", b"\xff\x1b[31m"], object)),
        ],
    )


def test_small_checkpoints_are_listed(small: Path) -> None:
    result = inspect(small)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0].startswith(f"{small}  TensorFlow V2, step 100, 6 variables, ")
    words = [line.split(maxsplit=2)[0] for line in lines if line.startswith(("rnn", "words"))]
    assert words == ["rnn/kernel", "rnn/kernel/Adam", "rnn/kernel/Adam_1", "words"]
    row = next(line for line in lines if line.startswith("rnn/kernel/Adam "))
    assert row.split(maxsplit=2)[1] == "float32"
    assert "[4, 6]" in row
    assert row.endswith("slot Adam/m")
    assert "\x1b" not in result.stdout
    assert ["slot", "2", "48", "192", "B"] in [line.split() for line in lines]


def test_names_are_never_cut(tmp_path: Path) -> None:
    name = "/".join(["scope" * 20] * 5)
    path = write_safetensors(tmp_path, [variable(name, [1.0])])
    assert name in inspect(path).stdout


def test_names_cannot_act_on_the_terminal(tmp_path: Path) -> None:
    path = write_safetensors(tmp_path, [variable("a\x1b[31m\n", [1.0])])
    stdout = inspect(path).stdout
    assert "\x1b" not in stdout
    assert "a\\x1b[31m\\n" in stdout


def test_large_checkpoints_by_scope(tmp_path: Path) -> None:
    names = [f"net/layer_{i}/{part}" for i in range(50) for part in ("kernel", "bias")]
    path = write_safetensors(tmp_path, [variable(name, np.zeros(2, "f4")) for name in names])
    stdout = inspect(path).stdout
    row = next(line for line in stdout.splitlines() if line.startswith("net/"))
    assert row.split() == ["net/layer_{0..49}", "100", "200", "800", "B", "float32"]
    assert "net/layer_7/kernel" not in stdout
    assert all(name in inspect(path, "-v").stdout for name in names)


def test_slices_of_large_checkpoints_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"v{i}" for i in range(70)]
    halves = ((slice(0, 1),), (slice(1, 2),))
    arrays = [variable(name, np.zeros(2, "f4")) for name in names]
    for partitions, text in [
        ({"v3": halves, "v5": halves}, "70 variables, 2 of them in 4 slices, 560 B"),
        ({}, "70 variables, 560 B"),
    ]:
        checkpoint = Checkpoint(arrays, partitions=partitions)
        monkeypatch.setattr("converter.cli.inspect.open_checkpoint", lambda *_, **__: checkpoint)  # noqa: B023
        assert inspect("c").stdout.splitlines()[0].endswith(text)


def test_mixed_floats_are_pointed_out(tmp_path: Path) -> None:
    few = variable("odd", np.zeros(2, ml_dtypes.bfloat16))
    path = write_safetensors(tmp_path, [few, *(variable(n, np.zeros(2, "f4")) for n in "abcd")])
    expected = "float dtypes are mixed: 4 variables float32; 1 variable bfloat16 (odd)"
    assert sorted(expected[24:].split("; ")) == sorted(
        inspect(path).stdout.splitlines()[-1][24:].split("; ")
    )


@pytest.mark.parametrize(
    ("name", "flag", "text"),
    [
        (
            "tf10_v2_gatewise_lstm",
            "--gates join",
            "an LSTM with a scope for each gate: LSTMcell; --gates join makes it the fused kernel "
            "and bias of TensorFlow's cells",
        ),
        (
            "tf115_v2_bert_mini",
            "--recipe bert-hf",
            "a BERT of google-research; --recipe bert-hf makes it one of transformers",
        ),
    ],
)
def test_hints_name_what_makes_something_of_a_model(name: str, flag: str, text: str) -> None:
    assert inspect(case(name).path).stdout.splitlines()[-1] == text
    document = json.loads(inspect(case(name).path, "--json").stdout)
    assert document["hints"] == [{"text": text, "flag": flag}]


def test_json(small: Path) -> None:
    document = json.loads(inspect(small, "--json").stdout)
    assert list(document) == [
        *("path", "format", "step", "files", "metadata", "variables", "totals", "era", "hints")
    ]
    assert document["path"] == str(small)
    assert document["format"] == "TensorFlow V2"
    assert document["step"] == 100
    assert [Path(file).name for file in document["files"]] == [
        "model.ckpt-100.index",
        "model.ckpt-100.data-00000-of-00001",
    ]
    entries = {entry["name"]: entry for entry in document["variables"]}
    assert entries["rnn/kernel/Adam_1"] == {
        "name": "rnn/kernel/Adam_1",
        "dtype": "float32",
        "shape": [4, 6],
        "bytes": 96,
        "role": "slot",
        "of": "rnn/kernel",
        "slot": "v",
        "optimizer": "Adam",
        "slices": 0,
        "path": None,
    }
    totals = document["totals"]
    assert totals["variables"] == 6
    assert totals["elements"] == 76
    assert totals["dtypes"] == {"float32": 4, "int64": 1, "string": 1}
    assert totals["roles"]["slot"] == {"variables": 2, "elements": 48, "bytes": 192}


def test_variable(small: Path) -> None:
    stdout = inspect(small, "--variable", "rnn/kernel", "--variable", "words").stdout
    lines = stdout.partition("words")[0].splitlines()
    facts = dict(line.split(maxsplit=1) for line in lines if line.startswith("  "))
    assert facts["mean"] == "11.5"
    assert facts["maximum"] == "23"
    assert facts["zeros"] == "1 (4.2%)"
    assert facts["norm"] == f"{np.linalg.norm(np.arange(24)):.6g}"
    assert "[18. 19. 20. 21. 22. 23.]" in stdout
    assert "café" in stdout
    assert "\x1b" not in stdout


def test_variable_as_json(small: Path) -> None:
    result = inspect(small, "--json", "--variable", "rnn/kernel", "--variable", "words")
    kernel, words = json.loads(result.stdout)["variables"]
    assert kernel["statistics"]["mean"] == 11.5
    assert kernel["corner"] == np.arange(24.0).reshape(4, 6).tolist()
    assert words["statistics"] is None
    assert words["corner"] == ["café", "\\xff\x1b[31m"]


def test_corner_of_many_axes(tmp_path: Path) -> None:
    values = np.arange(2 * 3 * 10 * 10, dtype="i4").reshape(2, 3, 10, 10)
    path = write_safetensors(tmp_path, [variable("x", values), variable("empty", np.zeros((0, 3)))])
    result = inspect(path, "--json", "--variable", "x", "--variable", "empty")
    x, empty = json.loads(result.stdout)["variables"]
    assert x["corner"] == values[:1, :1, :4, :6].tolist()
    assert (empty["corner"], empty["statistics"]["mean"]) == (None, None)


def test_json_holds_numbers_that_json_cannot(tmp_path: Path) -> None:
    path = write_safetensors(tmp_path, [variable("x", [np.nan, np.inf, 1.0, -np.inf])])
    (x,) = json.loads(inspect(path, "--json", "--variable", "x").stdout)["variables"]
    assert x["corner"] == ["nan", "inf", 1.0, "-inf"]


def test_unknown_variable(small: Path) -> None:
    result = inspect(small, "--variable", "rnn/kernl")
    assert result.exit_code == 2
    assert f"{small}: has no variable 'rnn/kernl'; did you mean 'rnn/kernel'?" in result.stderr


def test_damage_that_sizes_tell_is_told_after_the_table(small: Path) -> None:
    data = small.with_name(small.name + ".data-00000-of-00001")
    data.write_bytes(data.read_bytes()[:-30])
    result = inspect(small)
    assert result.exit_code == 3
    assert "rnn/kernel/Adam_1" in result.stdout
    assert str(data) in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_damaged_values_are_found_when_they_are_read(small: Path) -> None:
    data = small.with_name(small.name + ".data-00000-of-00001")
    content = bytearray(data.read_bytes())
    content[40] ^= 1
    data.write_bytes(content)
    assert inspect(small).exit_code == 0
    assert inspect(small, "--norms").exit_code == 3
    assert inspect(small, "--norms", "--no-verify-source").exit_code == 0


def test_norms_of_one_checkpoint(small: Path) -> None:
    lines = inspect(small, "--norms").stdout.splitlines()
    assert lines[0].split() == ["norm", "of", "variable", "step", "100"]
    norms = dict(map(str.split, lines[1:]))
    assert norms["rnn/kernel/Adam_1"] == "4.89898"
    assert "words" not in norms


def test_norms_over_the_steps_of_a_run(tmp_path: Path) -> None:
    for step in (5, 10, 100):
        write_tf(tmp_path / f"model-{step}", [variable("w", np.full(4, step, "f4"))])
    write_tf(tmp_path / "other-7", [variable("w", np.zeros(4, "f4"))])
    (tmp_path / "below").mkdir()
    write_tf(tmp_path / "below" / "model-200", [variable("w", np.zeros(4, "f4"))])
    (tmp_path / "checkpoint").write_text('model_checkpoint_path: "model-100"\n')
    lines = inspect(tmp_path, "--norms").stdout.splitlines()
    assert lines[0].split("  ") == ["norm of variable", "step 5", "step 10", "step 100", "moved by"]
    assert lines[1].split() == ["w", "10", "20", "200", "190"]
    document = json.loads(inspect(tmp_path, "--norms", "--json").stdout)
    assert [step["step"] for step in document["steps"]] == [5, 10, 100]
    assert document["norms"] == [{"name": "w", "norms": [10, 20, 200], "distance": 190}]
    single = inspect(tmp_path / "model-10", "--norms").stdout.splitlines()
    assert single[1].split() == ["w", "20"]


def test_norms_of_many_steps_are_thinned_out(tmp_path: Path) -> None:
    for step in range(1, 12):
        write_tf(tmp_path / f"model-{step}", [variable("w", np.full(4, step, "f4"))])
    (tmp_path / "checkpoint").write_text('model_checkpoint_path: "model-11"\n')
    result = inspect(tmp_path, "--norms")
    assert result.stdout.splitlines()[1].split() == ["w", *["2", "6", "10", "14", "18", "22", "20"]]
    assert "11 steps, of which 6 are shown" in result.stderr


def test_the_current_directory_is_the_default(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(small.parent)
    assert "6 variables" in inspect().stdout


def test_little_is_imported(small: Path) -> None:
    program = (
        "import sys; from converter.cli import cli\n"
        f"cli(['inspect', {str(small)!r}], standalone_mode=False)\n"
        "heavy = {'tensorflow', 'rich', 'safetensors'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)


def test_paths_of_an_object_checkpoint() -> None:
    path = case("tf221_obj_tfkeras_charlm").path
    listed = CliRunner().invoke(cli, ["inspect", path]).stdout
    assert re.search(r"^variable .* role .* path$", listed, re.MULTILINE)
    assert re.search(
        r"^softmax/kernel .* model  +model/layer_with_weights-2/kernel$", listed, re.MULTILINE
    )
    entries = json.loads(CliRunner().invoke(cli, ["inspect", path, "--json"]).stdout)["variables"]
    paths = {entry["name"]: entry["path"] for entry in entries}
    assert paths["softmax/kernel"] == "model/layer_with_weights-2/kernel"
    one = CliRunner().invoke(cli, ["inspect", path, "--variable", "iteration"]).stdout
    assert "  path       optimizer/_iterations\n" in one
