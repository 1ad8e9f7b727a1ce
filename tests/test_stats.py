"""`convert stats`: data from files, what is shown and written, and what is wrong."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import run, told
from conftest import case
from test_session import X, dense, made

from converter import InputError, UsageError, open_checkpoint, read_measured
from converter.activations.data import open_data, read_inputs

CHARLM = case("tf14_v2_charlm_lstm_ema").path
IDS = np.random.default_rng(0).integers(0, 14, (50, 6)).astype("i4")


@pytest.fixture
def tf() -> Any:
    return pytest.importorskip("tensorflow").compat.v1


def saved(path: Path, **arrays: Any) -> Path:
    np.savez(path, **arrays)
    return path


# --- data ---


def rows_of(paths: list[Path], size: int = 64, *, keep_rest: bool = True, **fixed: int) -> Any:
    files = open_data(paths)
    return [b for f in files for b in f.batches(f.rows(fixed), size, keep_rest=keep_rest)]


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_rows_are_read_as_they_are_needed(tmp_path: Path, save: Any, order: Any) -> None:
    x, y = np.arange(60.0).reshape(10, 2, 3), np.arange(10)
    save(tmp_path / "x.npz", x=np.array(x, order=order), y=y, rate=0.5)
    found = rows_of([tmp_path / "x.npz"], 4)
    assert [len(batch["y"]) for batch in found] == [4, 4, 2]
    assert (np.concatenate([batch["x"] for batch in found]) == x).all()
    assert (np.concatenate([batch["y"] for batch in found]) == y).all()
    assert [float(batch["rate"]) for batch in found] == [0.5] * 3
    assert len(rows_of([tmp_path / "x.npz"], 4, keep_rest=False)) == 2


def test_a_directory_in_the_order_of_its_names(tmp_path: Path) -> None:
    for name in ("b", "c", "a"):
        np.save(tmp_path / f"{name}.npy", np.full((3, 2), ord(name)))
    (tmp_path / "README").write_text("no data")
    found = rows_of([tmp_path])
    assert [chr(batch[""][0, 0]) for batch in found] == ["a", "b", "c"]


def test_what_has_one_row_beside_others_goes_with_every_batch(tmp_path: Path) -> None:
    path = saved(tmp_path / "x.npz", x=np.arange(5), rate=np.array([0.5]), flag=True)
    found = rows_of([path], 2)
    assert [batch["x"].tolist() for batch in found] == [[0, 1], [2, 3], [4]]
    assert [batch["rate"].tolist() for batch in found] == [[0.5]] * 3
    assert [bool(batch["flag"]) for batch in found] == [True] * 3
    path = saved(tmp_path / "y.npz", x=np.zeros((1, 4)), y=np.ones(1))
    (batch,) = rows_of([path], 2)
    assert batch["x"].shape == (1, 4)


def test_what_the_graph_fixes_goes_with_every_batch(tmp_path: Path) -> None:
    path = saved(tmp_path / "x.npz", x=np.arange(5), anchors=np.ones((3, 2)))
    found = rows_of([path], 2, anchors=3)
    assert [batch["anchors"].shape for batch in found] == [(3, 2)] * 3
    assert [len(batch["x"]) for batch in found] == [2, 2, 1]
    (batch,) = rows_of([path], 2, x=5, anchors=3, keep_rest=False)
    assert (batch["x"].shape, batch["anchors"].shape) == ((5,), (3, 2))
    path = saved(tmp_path / "y.npz", x=np.arange(6), state=np.arange(6))
    assert [b["state"].tolist() for b in rows_of([path], 3, x=3)] == [[0, 1, 2], [3, 4, 5]]


def test_arrays_of_other_rows_are_no_batch_unless_somebody_says_so(tmp_path: Path) -> None:
    path = saved(tmp_path / "x.npz", x=np.zeros((20, 4)), lengths=np.zeros(4))
    with pytest.raises(UsageError, match=r"the same number of rows \(x: 20, lengths: 4\), so it"):
        rows_of([path])
    (file,) = open_data([path])
    (batch,) = file.batches(None, 2, keep_rest=False)
    assert batch["x"].shape == (20, 4)


def test_files_of_inputs(tmp_path: Path) -> None:
    path, x = tmp_path / "x.npz", np.arange(3.0)
    named: dict[str, Any] = {"x:0": x, "rate": np.asarray(0.5)}
    np.savez(path, **named)
    found = read_inputs(path, lambda: pytest.fail("all arrays have names"))
    assert (found["x:0"].tolist(), found["rate"].shape) == ([0, 1, 2], ())
    np.save(tmp_path / "x.npy", x)
    assert read_inputs(tmp_path / "x.npy", lambda: ["ids"])["ids"].tolist() == [0, 1, 2]
    with pytest.raises(UsageError, match="one array without a name, and the model takes a, b; sa"):
        read_inputs(tmp_path / "x.npy", lambda: ["a", "b"])
    np.savez(path, x=np.array([1.0, np.nan, np.nan]))
    with pytest.raises(InputError, match="x: 2 of 3 values are NaN, the first of them in row 1"):
        read_inputs(path, list)
    for odd, said in ((tmp_path, "it is a directory"), (tmp_path / "gone.npz", "no such file")):
        with pytest.raises(UsageError, match=said):
            read_inputs(odd, list)


def damaged(tmp_path: Path, name: str) -> Path:
    path = saved(tmp_path / "x.npz", x=np.random.default_rng(0).standard_normal((99, 9)))
    if name == "cut":
        path.write_bytes(path.read_bytes()[:900])
    elif name == "no zip":
        path.write_bytes(b"nothing of the kind")
    elif name == "short":
        header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (9000000000, 4), }"
        header += b" " * (117 - len(header)) + b"\n"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("x.npy", b"\x93NUMPY\x01\x00\x76\x00" + header + bytes(64))
    elif name == "objects":
        np.savez(path, x=np.array([{}], object))
    elif name == "text":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("x.txt", "1 2 3")
    elif name == "empty":
        zipfile.ZipFile(path, "w").close()
    return path


@pytest.mark.parametrize("name", ["cut", "no zip", "short", "objects", "text", "empty"])
def test_damaged_data(tmp_path: Path, name: str) -> None:
    pytest.importorskip("tensorflow")
    outcome = run("stats", CHARLM, "--data", damaged(tmp_path, name))
    said = told(outcome, 3)
    assert "it is no readable .npz file (" in said
    if name == "objects":
        assert said.endswith(
            "(x.npy holds pickled objects, which are not read; save texts as "
            "np.array(texts, dtype='S'))"
        )


def header(shape: str, descr: str = "<f8", *, fortran: bool = False) -> bytes:
    text = f"{{'descr': '{descr}', 'fortran_order': {fortran}, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x02\x00" + len(text).to_bytes(4, "little") + text


@pytest.mark.usefixtures("must_end")
@pytest.mark.parametrize(
    ("shape", "fortran", "said"),
    [
        ("(100000000000000000, 0)", False, "x.npy: it is [100000000000000000, 0], so its rows"),
        ("(100000, 100000)", True, "x.npy: it is stored column by column, of which 80.0 GB are"),
        ("(" + "9" * 5000 + ",)", False, "it is no readable .npy file (it is no array of"),
        ("(" + "1, " * 70 + ")", False, "(it has 70 axes, and numpy knows 64)"),
        ("(-1, 2)", False, "it is no readable .npy file (it is no array of"),
    ],
)
def test_headers_that_claim_what_cannot_be(
    tmp_path: Path, shape: str, fortran: bool, said: str
) -> None:
    (tmp_path / "x.npy").write_bytes(header(shape, fortran=fortran) + bytes(64))
    with pytest.raises(InputError, match=re.escape(said)):
        open_data([tmp_path / "x.npy"])


@pytest.mark.usefixtures("must_end")
def test_what_is_no_regular_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.npz")
    with pytest.raises(InputError, match=r"x.npz: it is no regular file; data are .npz or"):
        open_data([tmp_path / "x.npz"])


def test_two_arrays_for_one_input(tmp_path: Path) -> None:
    path, array = tmp_path / "x.npz", header("(2,)") + bytes(16)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x", array)
        archive.writestr("x.npy", array)
    with pytest.raises(InputError, match="it has two arrays named x"):
        open_data([path])


# --- what is shown and written ---


@pytest.mark.slow
def test_table_json_file_and_merging(tmp_path: Path, tf: Any) -> None:
    data = saved(tmp_path / "x.npz", x=IDS)
    outcome = run("stats", CHARLM, "--data", data, "--batch-size", 20)
    assert outcome.exit_code == 0, outcome.output
    lines = outcome.stdout.splitlines()
    titles = ["variable", "side", "tensor", "units", "mean |x|", "std", "zeros", "dead"]
    assert [title.strip() for title in re.split("  +", lines[0])] == titles
    assert any("charlm/rnn/lstm_cell/kernel" in line and "consumed" in line for line in lines)
    assert lines[-1].endswith(", 3 batches")
    printed = json.loads(run("stats", CHARLM, "--data", data, "--json").stdout)
    rows = open_checkpoint(CHARLM)["charlm/embedding"].read()[IDS].reshape(-1, 8)
    (found,) = (s for s in printed["statistics"] if s["variable"] == "charlm/embedding")
    assert (found["side"], found["units"], found["count"], found["dead"]) == ("produced", 8, 300, 0)
    assert np.allclose(found["mean_abs"], np.abs(rows).mean(0), rtol=1e-5)
    assert np.allclose(found["std"], rows.std(0), rtol=1e-5)
    for name, part in {"a": IDS[:20], "b": IDS[20:], "all": IDS}.items():
        np.save(tmp_path / f"{name}.npy", part)
        arguments = ["--data", tmp_path / f"{name}.npy", "--covariance", "*embedding"]
        outcome = run("stats", CHARLM, *arguments, "-o", tmp_path / f"{name}.safetensors")
        assert outcome.exit_code == 0, outcome.output
    assert "wrote" in outcome.stdout
    files = [tmp_path / f"{name}.safetensors" for name in "ab"]
    outcome = run("stats", "--merge", *files, "-o", tmp_path / "both.safetensors")
    assert outcome.exit_code == 0, outcome.output
    both, whole = (read_measured(tmp_path / f"{n}.safetensors") for n in ("both", "all"))
    assert set(both) == set(whole)
    for key in whole:
        assert both[key].count == whole[key].count
        assert np.allclose(both[key].std, whole[key].std, rtol=1e-5)
    covariance = both["charlm/embedding", "produced"].covariance
    assert covariance is not None
    assert np.allclose(covariance, np.cov(rows.T, bias=True), atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "fed", "arguments"),
    [
        ("tf115_savedmodel", "x", ["--signature", "serving_default"]),
        ("tf221_savedmodel_module", "x", []),
        ("tf221_savedmodel_module", "x", ["--signature", "serving_default"]),
    ],
)
def test_exported_models_by_their_signature(
    tmp_path: Path, tf: Any, name: str, fed: str, arguments: list[str]
) -> None:
    some = case(name)
    arrays = np.load(some.directory / "io.npz")
    rows = next(arrays[key] for key in arrays if key.startswith("in_"))
    data = saved(tmp_path / "x.npz", **{fed: rows})
    outcome = run("stats", some.path, "--data", data, *arguments, "--json")
    assert outcome.exit_code == 0, outcome.output
    found = json.loads(outcome.stdout)
    outputs = {key: arrays[key] for key in arrays if not key.startswith("in_")}
    assert any(
        len(entry["mean"]) == value.shape[-1]
        and np.allclose(entry["mean"], value.reshape(-1, value.shape[-1]).mean(0), atol=1e-5)
        for entry in found["statistics"]
        for value in outputs.values()
    )
    near = run("stats", some.path, "--data", data, "--signature", "serving_defaul")
    assert "did you mean 'serving_default'?" in told(near, 2)


@pytest.mark.slow
def test_rows_that_the_graph_does_not_take_are_told(tmp_path: Path, tf: Any) -> None:
    def build() -> None:
        dense(tf, tf.placeholder(tf.float32, [4, 6], "x"), 3, "a")

    made(tf, tmp_path, build, feeds={"x": np.concatenate([X, X])[:4]}, fetches=["a/add"])
    data = saved(tmp_path / "x.npz", x=np.ones((10, 6), "f4"))
    outcome = run("stats", tmp_path, "--data", data)
    assert outcome.exit_code == 0, outcome.output
    few = saved(tmp_path / "few.npz", x=np.ones((3, 6), "f4"))
    assert "4 rows at once, and no file has as many" in told(
        run("stats", tmp_path, "--data", few), 2
    )
    assert "note    the graph takes 4 rows at once; 2 are left over" in outcome.stdout
    assert "2 batches" in outcome.stdout
    saved(data, x=np.ones((9, 6), "f4"))
    outcome = run("stats", tmp_path, "--data", data)
    assert "note    the graph takes 4 rows at once; 1 is left over" in outcome.stdout


@pytest.mark.slow
def test_what_the_graph_fixes_beside_data_does_not_cut_these(tmp_path: Path, tf: Any) -> None:
    def build() -> None:
        x = tf.placeholder(tf.float32, [None, 6], "x")
        table = tf.placeholder(tf.float32, [3, 6], "table")
        dense(tf, x + tf.reduce_sum(table, 0), 3, "a")

    ones = np.ones((3, 6), "f4")
    made(tf, tmp_path, build, feeds={"x": X, "table": ones}, fetches=["a/add"])
    data = saved(tmp_path / "x.npz", x=np.ones((100, 6), "f4"), table=ones)
    printed = json.loads(run("stats", tmp_path, "--data", data, "--json").stdout)
    assert (printed["batches"], printed["notes"]) == (2, [])
    assert {found["count"] for found in printed["statistics"]} == {100}


# --- what is wrong ---


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arrays", "code", "said"),
    [
        ({"z": IDS}, 2, "z: the graph has no such tensor; its inputs are x, y"),
        ({"y": IDS}, 2, "it has no values for x, which the model needs"),
        ({"x": IDS[0]}, 2, "x: [6] is given, and the graph takes [?, ?]"),
        ({"x": IDS + 0.5}, 2, "float64 values are given that are not int32"),
        (
            {"x": np.full((3, 4), np.nan)},
            3,
            "x: 12 of 12 values are NaN, the first of",
        ),
        ({"x": IDS + 99}, 1, "it does not run: indices"),
        ({"x": IDS[:0]}, 2, "it holds no data"),
        ({"x": IDS, "x:0": IDS}, 2, "x and x:0 are the same input; leave one"),
    ],
    ids=["name", "label", "rank", "dtype", "nan", "range", "empty", "twice"],
)
def test_data_that_do_not_fit(
    tmp_path: Path, tf: Any, arrays: dict[str, Any], code: int, said: str
) -> None:
    data = saved(tmp_path / "x.npz", **arrays)
    message = told(run("stats", CHARLM, "--data", data), code)
    assert said in message
    assert str(data) in message or code == 1


@pytest.mark.slow
def test_what_is_wrong_is_told_of_the_file_and_by_the_names_of_the_signature(
    tmp_path: Path, tf: Any
) -> None:
    some = case("tf221_savedmodel_module").path
    x = np.ones((9, 6), "f4")
    rows = np.where(np.arange(9)[:, None] == 7, np.nan, x)
    for arrays, said in (
        ({"y": x}, "b.npz: y: the graph has no such tensor; its inputs are x"),
        ({"x": x[:, :5]}, "b.npz: x: [9, 5] is given, and the graph takes [?, 6]"),
        ({"x": rows}, "b.npz: x: 6 of 54 values are NaN, the first of them in row 7; leave"),
        ({"x": x.astype("U4")}, "b.npz: x: <U4 values are given that are not float32"),
    ):
        files = [saved(tmp_path / "a.npz", x=x), saved(tmp_path / "b.npz", **arrays)]
        outcome = run("stats", some, "--data", files[0], "--data", files[1])
        assert said in told(outcome, 3 if "NaN" in said else 2)


@pytest.mark.slow
def test_files_that_do_not_go_together(tmp_path: Path, tf: Any) -> None:
    files = [saved(tmp_path / "a.npz", x=IDS, y=IDS), saved(tmp_path / "b.npz", x=IDS)]
    for order in ("ab", "ba"):
        paths = [part for name in order for part in ("--data", tmp_path / f"{name}.npz")]
        message = told(run("stats", CHARLM, *paths), 2)
        assert message.startswith(f"{files[1]}: it has no y, and {files[0]} has; all files")


@pytest.mark.slow
def test_an_array_without_a_name_goes_with_those_of_that_name(tmp_path: Path, tf: Any) -> None:
    x = np.arange(54, dtype="f4").reshape(9, 6)
    np.save(tmp_path / "a.npy", x)
    saved(tmp_path / "b.npz", x=x)
    out = tmp_path / "out.safetensors"
    some = case("tf221_savedmodel_module").path
    outcome = run("stats", some, "--data", tmp_path, "-o", out)
    assert outcome.exit_code == 0, outcome.output
    assert min(moments.count for moments in read_measured(out).values()) == 18


@pytest.mark.slow
def test_inputs_that_are_missing(tmp_path: Path, tf: Any) -> None:
    some = case("tf012_v2_gru_seqlen").path
    arrays = np.load(case("tf012_v2_gru_seqlen").directory / "io.npz")
    data = saved(tmp_path / "x.npz", x=arrays["in_x"])
    message = told(run("stats", some, "--data", data), 2)
    assert "it has no values for " in message
    assert "lengths" in message
    np.save(tmp_path / "x.npy", arrays["in_x"])
    message = told(run("stats", some, "--data", tmp_path / "x.npy"), 2)
    assert "it holds one array without a name, and the model takes " in message


@pytest.mark.slow
@pytest.mark.parametrize("how", ["feed", "data"])
@pytest.mark.parametrize(("value", "told_of"), [(True, 1), (False, 0)])
def test_notes_are_about_the_branch_that_is_run(
    tmp_path: Path, tf: Any, how: str, value: bool, told_of: int
) -> None:
    path = case("tf115_v2_convbn_ema").path
    arrays: dict[str, Any] = {"images": np.random.default_rng(0).random((4, 8, 8, 2), "f4")}
    arguments = ["--feed", f"is_training={str(value).lower()}"] if how == "feed" else []
    arrays |= {} if arguments else {"is_training": np.asarray(value)}
    data = saved(tmp_path / "x.npz", **arrays)
    outcome = run("stats", path, "--data", data, *arguments)
    assert outcome.exit_code == 0, outcome.output
    assert outcome.output.count("normalises by the batch, as in training") == told_of


@pytest.mark.slow
def test_activations_that_are_not_finite(tmp_path: Path, tf: Any) -> None:
    def build() -> None:
        x = tf.placeholder(tf.float32, [None, 6], "x")
        tf.identity(dense(tf, tf.log(x), 3, "a"), "out")

    made(tf, tmp_path, build, feeds={"x": X}, fetches=["out"])
    data = saved(tmp_path / "x.npz", x=np.array([[1, 2, 0, 3, 4, 5]], "f4"))
    message = told(run("stats", tmp_path, "--data", data), 1)
    assert message.startswith("a/")
    assert "activations" in message
    assert "are not finite: of " in message


@pytest.mark.slow
def test_an_op_that_tensorflow_has_lost_is_named(tmp_path: Path, tf: Any) -> None:
    def build() -> None:
        x = tf.placeholder(tf.float32, [None, 6], "x")
        tf.identity(dense(tf, tf.cosh(x), 3, "a"), "out")

    made(tf, tmp_path, build, feeds={"x": X}, fetches=["out"])
    meta = tmp_path / "model.meta"
    meta.write_bytes(meta.read_bytes().replace(b"\x12\x04Cosh", b"\x12\x04Lost"))
    data = saved(tmp_path / "x.npz", x=X)
    message = told(run("stats", tmp_path, "--data", data), 2)
    assert "TensorFlow has no op Lost any more" in message


def test_without_tensorflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    data = saved(tmp_path / "x.npz", x=IDS)
    message = told(run("stats", CHARLM, "--data", data), 2)
    assert "pip install 'ckpt-converter[tensorflow]'" in message


@pytest.mark.slow
def test_without_a_graph(tmp_path: Path, tf: Any) -> None:
    assert run("ckpt", CHARLM, "-o", tmp_path / "m.safetensors").exit_code == 0
    data = saved(tmp_path / "x.npz", x=IDS)
    message = told(run("stats", tmp_path / "m.safetensors", "--data", data), 3)
    assert "it has no graph (.meta, .pb) in which it could be run" in message


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ([CHARLM], 2, "there is no data to run it on"),
        ([CHARLM, "--data", ""], 2, "there is no data to run it on"),
        ([CHARLM, CHARLM, "--data", "x.npz"], 2, "one model is run, and 2 are given"),
        ([CHARLM, "--data", "nowhere.npz"], 2, "nowhere.npz: there is no such file"),
        ([CHARLM, "--data", __file__], 2, "data are .npz or .npy files"),
        (
            [CHARLM, "--data", "x", "--whole-files", "--batch-size", 8],
            2,
            "--whole-files runs each file at once, so --batch-size means nothing",
        ),
        (["--merge", "a.safetensors"], 2, "--merge takes two files of statistics"),
        (["--merge", "a", "b", "--data", "x"], 2, "--merge runs nothing, so --data means nothing"),
        (["--merge", CHARLM, CHARLM], 3, "it is no file of statistics"),
        ([CHARLM, "--data", "x", "-o", "x.npz"], 2, "a file of statistics is NAME.safetensors"),
        ([CHARLM, "--data", "x", "-o", "no/x.safetensors"], 2, "there is no directory no"),
    ],
    ids=str,
)
def test_usage(arguments: list[Any], code: int, said: str) -> None:
    pytest.importorskip("tensorflow")
    assert said in told(run("stats", *arguments), code)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "wanted"),
    [(["stats", CHARLM, "--data", "x.npz"], "1"), (["prove", CHARLM, CHARLM], "0")],
)
def test_which_kernels_tensorflow_chooses(tmp_path: Path, command: list[Any], wanted: str) -> None:
    pytest.importorskip("tensorflow")
    saved(tmp_path / "x.npz", x=IDS)
    code = (
        "import os, sys; from converter.cli import cli; cli(sys.argv[1:], standalone_mode=False);"
        "print('kernels', os.environ['TF_ENABLE_ONEDNN_OPTS'])"
    )
    outcome = subprocess.run(
        [sys.executable, "-c", code, *map(str, command)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={k: v for k, v in os.environ.items() if not k.startswith("TF_")},
        check=True,
    )
    assert outcome.stdout.splitlines()[-1] == f"kernels {wanted}"
    assert outcome.stderr == ""
