"""Proofs: what counts as the same, what becomes of an output that is not, and what is said."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from click.testing import CliRunner, Result
from conftest import case
from test_session import X, dense, made

from converter import convert, open_checkpoint
from converter.cli import cli
from converter.comparison import Compared, compare

INF, NAN = np.inf, np.nan
CHARLM = case("tf14_v2_charlm_lstm_ema")
PAD = ("--plugin", "pad", "--shape", "charlm/embedding=16,8")


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, list(map(str, arguments)))


def compared(a: object, b: object, tolerance: float = 1e-5) -> Compared:
    return compare("y", np.asarray(a), np.asarray(b), tolerance)


def test_differences_are_measured_by_the_scale() -> None:
    found = compared([1.0, -200.0], [1.001, -200.0])
    assert found.largest == pytest.approx(0.001)
    assert found.scale == 200
    assert found.error == pytest.approx(5e-6)
    assert found.passed is True
    assert compared([1.0, -200.0], [1.003, -200.0]).passed is False


def test_scalars_are_compared_as_all_else() -> None:
    assert compared(2.0, 2.0).passed is True
    assert compared(2.0, 3.0).error == 0.5
    assert compared(NAN, 3.0).passed is False
    assert compared([1.0, -200.0], [1.003, -200.0], 1e-4).passed is True
    assert compared([1.0, 2.0], [1.0, 2.0], 0).passed is True


def test_a_multiple_of_the_first_is_what_counts() -> None:
    a = np.array([[1.0, -200.0]])
    found = compare("y", a, a / 4, multiple=0.25)
    assert (found.passed, found.scale, found.multiple) == (True, 50, 0.25)
    assert found.likeness.relative_error == 0
    assert compare("y", a, a / 4, multiple=0.2).passed is False
    # What is decided is no multiple.
    assert compare("y", np.array([3]), np.array([3]), multiple=0.25).passed is True


def test_nan_and_infinity() -> None:
    assert compared([1.0, NAN, -INF], [1.0, NAN, -INF]).passed is True
    assert compared([1.0, NAN], [1.0, NAN]).nans == (1, 1)
    found = compared([1.0, 2.0], [1.0, NAN])
    assert (found.largest, found.passed, found.nans) == (INF, False, (0, 1))
    assert compared([1.0, INF], [1.0, -INF]).passed is False
    assert compared([1.0, INF], [1.0, 5.0]).passed is False
    # It proves nothing that two models give NaN.
    found = compared([NAN, NAN], [NAN, NAN])
    assert (found.passed, found.note) == (False, "no finite value")


def test_zeros() -> None:
    found = compared([0.0, 0.0], [0.0, 0.0])
    assert (found.passed, found.error, found.note) == (True, 0.0, "zeros only")
    found = compared([0.0, 0.0], [0.0, 1e-9])
    assert (found.passed, found.error) == (False, INF)


def test_what_is_no_float_is_counted() -> None:
    found = compared([1, 2, 3, 4], [1, 2, 3, 5], 0.3)
    assert (found.largest, found.scale, found.error, found.passed) == (1, 4, 0.25, True)
    assert compared([1, 2, 3, 4], [1, 2, 3, 5]).passed is False
    assert compared([True, False], [True, True]).largest == 1
    strings = np.array([b"a", b"b"], object)
    assert compare("y", strings, strings.copy()).passed is True


def test_agreement_of_the_largest_entry() -> None:
    a = np.array([[0.1, 0.9], [0.6, 0.4]])
    assert compared(a, a).likeness.agreement == 1
    assert compared(a, a[:, ::-1]).likeness.agreement == 0
    assert compared(a, [[0.1, 0.9], [0.4, 0.6]]).likeness.agreement == 0.5
    assert compared([1.0, 2.0], [1.0, 2.0]).likeness.agreement is None
    assert compared([[1.0], [2.0]], [[1.0], [2.0]]).likeness.agreement is None


def test_what_cannot_be_compared() -> None:
    found = compared(np.zeros((2, 3)), np.zeros((2, 4)))
    assert (found.passed, found.note) == (None, "[2, 3] and [2, 4]")
    assert compared(np.zeros((0, 3)), np.zeros((0, 3))).passed is None


def test_small_floats() -> None:
    a = np.array([1.0, 2.0], ml_dtypes.bfloat16)
    assert compare("y", a, a).passed is True
    assert compare("y", a, a + a).largest == 2


def test_without_tensorflow_one_line_says_what_to_install() -> None:
    script = (
        "import sys; sys.modules['tensorflow'] = None; from converter.cli import main; "
        f"sys.argv = ['convert', 'prove', {CHARLM.path!r}, {CHARLM.path!r}]; main()"
    )
    outcome = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert outcome.returncode == 2
    (line,) = outcome.stderr.splitlines()
    assert "pip install 'ckpt-converter[tensorflow]'" in line


def test_options_of_a_proof_need_one() -> None:
    for option in ("--inputs", "--feed", "--fetch", "--tolerance"):
        outcome = run("ckpt", CHARLM.path, option, "1")
        assert outcome.exit_code == 2
        assert outcome.stderr == f"Error: {option} is about the proof; add --prove\n"
    outcome = run("prove", CHARLM.path, CHARLM.path, "--tolerance", "-1")
    assert outcome.exit_code == 2
    assert "--tolerance must be 0 or more, got -1" in outcome.stderr


def test_without_a_graph_nothing_is_proven(tmp_path: Path) -> None:
    path = case("tf221_raw_dtypes").path
    outcome = run("prove", path, path)
    assert outcome.exit_code == 3
    assert "neither it nor" in outcome.stderr
    outcome = run("ckpt", path, "--prove", "-o", tmp_path / "out", "--to", "tf")
    assert outcome.exit_code == 3
    assert "it has no graph" in outcome.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    path = tmp_path / "inputs.npz"
    arrays: dict[str, Any] = {"x:0": np.load(CHARLM.directory / "io.npz")["in_x"]}
    np.savez(path, **arrays)
    return path


@pytest.mark.slow
@pytest.mark.parametrize(("value", "told"), [("true", 1), ("false", 0)])
@pytest.mark.parametrize("command", [("prove",), ("inspect", "--widths", "--test")])
def test_notes_are_about_the_branch_that_a_fed_flag_takes(
    command: tuple[str, ...], value: str, told: int
) -> None:
    path = case("tf115_v2_convbn_ema").path
    paths = (path, path) if command[0] == "prove" else (path,)
    outcome = run(*command, *paths, "--feed", f"is_training={value}")
    assert outcome.exit_code == 0, outcome.output
    assert outcome.output.count("normalises by the batch, as in training") == told


@pytest.mark.slow
def test_a_copy_is_proven(tmp_path: Path, inputs: Path) -> None:
    convert(CHARLM.path, tmp_path / "copy.safetensors")
    outcome = run("prove", CHARLM.path, tmp_path / "copy.safetensors", "--inputs", inputs, "--json")
    assert outcome.exit_code == 0, outcome.output
    document = json.loads(outcome.stdout)
    assert document["passed"] is True
    assert document["b"] == {"path": str(tmp_path / "copy.safetensors"), "format": "safetensors"}
    (entry,) = document["inputs"]
    assert (entry["name"], entry["shape"], entry["source"]) == ("x", [2, 25], "given")
    logits = document["outputs"][-1]
    recorded = np.load(CHARLM.directory / "io.npz")["out_logits"]
    assert logits["name"] == "charlm/softmax/BiasAdd"
    assert logits["shape"] == list(recorded.shape)
    assert logits["scale"] == pytest.approx(np.abs(recorded).max(), rel=1e-5)
    assert (logits["largest"], logits["error"], logits["agreement"]) == (0, 0, 1)
    np.save(tmp_path / "x.npy", np.load(inputs)["x:0"])
    alone = ("--inputs", tmp_path / "x.npy")
    outcome = run("prove", CHARLM.path, tmp_path / "copy.safetensors", *alone, "--json")
    assert json.loads(outcome.stdout)["outputs"][-1] == logits
    # The other way round it runs in the second's graph.
    outcome = run("prove", tmp_path / "copy.safetensors", CHARLM.path)
    assert outcome.exit_code == 0
    assert "passed  3 outputs within 1e-05 of the scale, on drawn inputs" in outcome.stdout


@pytest.mark.slow
def test_two_steps_differ() -> None:
    some = case("tf14_v2_rotation")
    prefix = some.path.removesuffix("-20")
    outcome = run("prove", f"{prefix}-12", f"{prefix}-20", "--json")
    assert outcome.exit_code == 1
    (output,) = json.loads(outcome.stdout)["outputs"]
    assert output["passed"] is False
    assert 0 < output["error"] < 1


@pytest.mark.slow
def test_what_passes_is_published(tmp_path: Path) -> None:
    output = tmp_path / "half.safetensors"
    outcome = run(
        *("ckpt", CHARLM.path, "--cast", "float16", "--drop", "optimizer", "-o", output),
        *("--prove", "--tolerance", "1e-2", "--json"),
    )
    assert outcome.exit_code == 0, outcome.output
    document = json.loads(outcome.stdout)
    assert document["proof"]["passed"] is True
    assert document["result"]["files"] == [str(output)]
    errors = [found["error"] for found in document["proof"]["outputs"]]
    assert all(1e-5 < error < 1e-2 for error in errors)
    assert open_checkpoint(output)["charlm/embedding"].dtype.name == "float16"


@pytest.mark.slow
def test_what_fails_is_not_published(tmp_path: Path) -> None:
    output = tmp_path / "out"
    outcome = run("ckpt", CHARLM.path, "--cast", "float16", "-o", output, "--to", "tf", "--prove")
    assert outcome.exit_code == 1
    (line,) = outcome.stderr.splitlines()
    assert line.endswith("is not within 1e-05 of the scale; nothing was published")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_plan_is_proven_without_an_output() -> None:
    outcome = run("ckpt", CHARLM.path, "--ema", "use", "--prove")
    assert outcome.exit_code == 1
    assert "charlm/softmax/BiasAdd   [8, 8, 14]" in outcome.stdout
    assert "fails" in outcome.stdout
    outcome = run("ckpt", CHARLM.path, "--drop", "optimizer", "--prove", "-q")
    assert (outcome.exit_code, outcome.stdout) == (0, "")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "changing"),
    [(("--ema", "use"), "ema"), (("--ema", "use", "--scale", "*softmax*=2"), "ema, scale")],
)
def test_what_the_plan_says_to_change_the_outputs_is_named(
    options: tuple[str, ...], changing: str
) -> None:
    outcome = run("ckpt", CHARLM.path, *options, "--drop", "optimizer", "--prove", "-q")
    assert outcome.exit_code == 1
    assert outcome.stderr.endswith(
        f" is not within 1e-05 of the scale. The plan says that they change ({changing}): do that "
        "in a command of its own, without --prove, or say how far they may (--tolerance)\n"
    )


@pytest.mark.slow
def test_averages_in_the_place_of_variables_are_found_through_a_rename() -> None:
    plain = run("ckpt", CHARLM.path, "--ema", "use", "--prove", "--json", "--tolerance", "1")
    renamed = run(
        *("ckpt", CHARLM.path, "--ema", "use", "--rename", "charlm/(.*)=m/\\1"),
        *("--prove", "--json", "--tolerance", "1"),
    )
    assert renamed.exit_code == 0, renamed.output
    outputs = json.loads(plain.stdout)["proof"]["outputs"]
    assert outputs == json.loads(renamed.stdout)["proof"]["outputs"]
    assert outputs[-1]["error"] > 1e-3


@pytest.mark.slow
def test_outputs_are_proven_through_renames(tmp_path: Path) -> None:
    outcome = run(
        *("ckpt", CHARLM.path, "--rename", "charlm/(.*)=m/\\1", "-o", tmp_path / "out"),
        *("--to", "tf", "--prove"),
    )
    assert outcome.exit_code == 0, outcome.output
    assert "m/embedding" in open_checkpoint(tmp_path / "out")


@pytest.mark.slow
def test_variables_that_trade_names_are_told_apart() -> None:
    some = case("tf115_v2_bert_mini")
    first, second = (f"bert/encoder/layer_{i}/attention/self/query/kernel" for i in range(2))
    rename = ["--rename", f"^{first}$={second}", "--rename", f"^{second}$={first}"]
    outcome = run("ckpt", some.path, *rename, "--prove")
    assert outcome.exit_code == 0, outcome.output


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--drop", "charlm/embedding"], "charlm/embedding: the graph of"),
        (
            ["--drop", "*/Adam*", "--drop", "averages", *PAD],
            "charlm/embedding: it is [14, 8] in the graph of",
        ),
    ],
)
def test_what_the_graph_cannot_run_is_refused(options: list[str], message: str) -> None:
    outcome = run("ckpt", CHARLM.path, *options, "--prove")
    assert outcome.exit_code == 4, outcome.output
    assert outcome.stderr.splitlines()[-1].startswith(f"Error: {message}")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--feed", "x=3"], 2, "--feed: x: [] is given, and the graph takes [?, ?]"),
        (["--feed", "z=3"], 2, "--feed: z: the graph has no such tensor; its inputs are x, y"),
        (["--inputs", "gone.npz"], 2, "gone.npz: there is no such file or directory"),
        (["--inputs", __file__], 2, "data are .npz or .npy files"),
        (["--inputs", "."], 2, "it is a directory, and one file is run"),
        (["--fetch", "logit"], 2, "the graph has no tensor 'logit'"),
        (["--fetch", "charlm/rnn/while/Identity"], 2, "computed inside the loop"),
    ],
)
def test_what_cannot_be_asked(options: list[str], code: int, message: str) -> None:
    outcome = run("prove", CHARLM.path, CHARLM.path, *options)
    assert outcome.exit_code == code, outcome.output
    (line,) = outcome.stderr.splitlines()
    assert message in line


@pytest.mark.slow
def test_hidden_states_of_another_width_are_passed_over_unless_asked_for(tmp_path: Path) -> None:
    tf = pytest.importorskip("tensorflow").compat.v1
    for width in (2, 3):
        with tf.Graph().as_default(), tf.Session() as session:
            x = tf.placeholder(tf.float32, [None, 4], "x")
            w = tf.get_variable("w", [4, 3], initializer=tf.ones_initializer())
            hidden = tf.matmul(x, w[:, :width], name="hidden")
            tf.reduce_sum(tf.matmul(x, w), 1, keepdims=True, name="out")
            tf.identity(hidden, name="state")
            session.run(tf.global_variables_initializer())
            tf.train.Saver().save(session, str(tmp_path / str(width)))
    paths = tmp_path / "2", tmp_path / "3"
    outcome = run("prove", *paths, "--json")
    assert outcome.exit_code == 0, outcome.output
    found = {o["name"]: (o["passed"], o["note"]) for o in json.loads(outcome.stdout)["outputs"]}
    assert found == {"out": (True, ""), "state": (None, "[8, 2] and [8, 3]")}
    assert run("prove", *paths, "--fetch", "state", "--fetch", "out").exit_code == 1


@pytest.mark.slow
def test_an_output_that_is_no_multiple_names_those_that_are(tmp_path: Path) -> None:
    tf = pytest.importorskip("tensorflow").compat.v1

    def build() -> None:
        x = tf.placeholder(tf.float32, [None, 6], "x")
        tf.nn.softmax(tf.identity(dense(tf, x, 3, "a"), "logits"), name="probabilities")

    made(tf, tmp_path, build, feeds={"x": X}, fetches=["probabilities"])
    scale = ("--plugin", "scale", "--scale-kind", "dense=0.5", "--scale-biases", "power", "--prove")
    outcome = run("ckpt", tmp_path, *scale)
    assert outcome.exit_code == 1, outcome.output
    advice = "The plan says that it is no multiple, as others are: compare these alone (--fetch "
    assert f"probabilities is not within 1e-05 of the scale. {advice}" in outcome.stderr
    name = outcome.stderr.rstrip().rpartition("--fetch ")[2].removesuffix(")")
    assert run("ckpt", tmp_path, *scale, "--fetch", name).exit_code == 0
    assert run("ckpt", tmp_path, *scale, "--fetch", "probabilities").exit_code == 1


@pytest.mark.slow
def test_what_is_fed_is_no_output() -> None:
    path = case("tf14_v2_rotation").path
    fed = ["--feed", "out/BiasAdd=[[1, 2]]", "--fetch", "out/BiasAdd"]
    outcome = run("prove", path, path, *fed)
    assert outcome.exit_code == 2
    assert "out/BiasAdd: it is fed, so fetching it tells nothing" in outcome.stderr


@pytest.mark.slow
def test_any_tensor_can_be_fed() -> None:
    some = case("tf14_v2_rotation")
    forward_name = "out/MatMul"
    outcome = run(
        *("prove", some.path, some.path, "--feed", f"{forward_name}=[[1.0, 2.0]]", "--json")
    )
    assert outcome.exit_code == 0, outcome.output
    document = json.loads(outcome.stdout)
    bias = open_checkpoint(some.path)["out/bias"].read()
    assert document["inputs"] == []
    assert document["outputs"][0]["scale"] == pytest.approx(
        np.abs(bias + np.array([1, 2])).max(), rel=1e-5
    )
