"""What is asked of widths on the command line; what cannot be is one line, and writes nothing."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from command_line import run, told, tree, values
from conftest import case
from safetensors.numpy import save_file

from converter import open_checkpoint


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty directory to work in, with a directory `out` that must stay as it is."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def shapes(path: str) -> dict[str, tuple[int, ...]]:
    return {name: variable.shape for name, variable in open_checkpoint(path).items()}


def template(changes: dict[str, tuple[int, ...]], lstm: str) -> str:
    """Write a template with the shapes of the model, but for some."""
    found = {n: s for n, s in shapes(lstm).items() if "/Adam" not in n and s}
    save_file({n: np.zeros(s, "f4") for n, s in (found | changes).items()}, "t.safetensors")
    return "t.safetensors"


@pytest.mark.parametrize(
    ("arguments", "exit_code", "message"),
    [
        ("--resize charlm/rnn/lstm_cel=45", 2, "pad: charlm/rnn/lstm_cel fits none of the 4 "
         "widths; did you mean 'charlm/rnn/lstm_cell'?"),
        ("--resize gru*=45", 2, "pad: gru* fits none of the 4 widths; they are charlm/embedding/"),
        ("--resize 31=45", 2, "pad: no width has 31 units; the nearest sizes are 8, 14, 30"),
        ("--resize lstm_cell=0", 2, "pad: lstm_cell=0: a width must have one unit at least"),
        ("--resize lstm_cell=many", 2, "--resize: 'lstm_cell' must be an integer, got 'many'"),
        ("--resize lstm_cell", 2, "--resize: must be WIDTH=SIZE, got 'lstm_cell'"),
        ("--resize lstm_cell=45 --resize 30=60", 2, "pad: charlm/rnn/lstm_cell is to have 45 units "
         "by lstm_cell and 60 by 30; ask for one of them"),
        ("--require-exact", 2, "pad: no sizes are given; use --resize WIDTH=SIZE, --like"),
        ("--resize lstm_cell=45 --layout none.toml", 2, "pad: none.toml: the layout cannot be "
         "read: No such file"),
        ("--resize lstm_cell=20", 4, "charlm/rnn/lstm_cell: pad cannot turn 30 units into 20; it "
         "only grows them (truncate cuts)"),
        ("--like none.ckpt", 3, "pad: no checkpoint at none.ckpt"),
    ],
)  # fmt: skip
def test_requests_that_cannot_be(
    lstm: str, place: Path, arguments: str, exit_code: int, message: str
) -> None:
    before = tree(place)
    found = told(
        run("ckpt", lstm, "--plugin", "pad", *arguments.split(), "-o", "out", "--to", "tf", "-f"),
        exit_code,
    )
    assert found.startswith(message)
    assert tree(place) == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        # 40 + 8 rows, and four gates of 41.
        ({"charlm/rnn/lstm_cell/kernel": (48, 164)}, "t.safetensors: charlm/rnn/lstm_cell/"),
        ({"charlm/rnn/lstm_cell/bias": (122,)}, "t.safetensors: charlm/rnn/lstm_cell/bias, axis "
         "0: no size of charlm/rnn/lstm_cell makes [i,j,f,o]*charlm/rnn/lstm_cell as long as 122; "
         "the template is of another model, or take --resize"),
        ({"charlm/softmax/bias": (14, 1)}, "t.safetensors: charlm/softmax/bias is [14, 1] there "
         "and [14] here; the template is of another model, or take --resize"),
    ],
)  # fmt: skip
def test_templates_that_cannot_be_reached(
    lstm: str, place: Path, changes: dict[str, tuple[int, ...]], message: str
) -> None:
    path = template(changes, lstm)
    before = tree(place)
    outcome = run("ckpt", lstm, "--plugin", "pad", "--like", path, "-o", "out", "--to", "tf", "-f")
    assert told(outcome, 4).startswith(message)
    assert tree(place) == before


def test_a_template_of_another_model_is_refused(lstm: str) -> None:
    """All that they share is the step."""
    other = case("tf10_v2_multilstm_adagrad").path
    message = told(run("ckpt", lstm, "--plugin", "pad", "--like", other), 4)
    assert message == (
        f"{other}: none of its {len(shapes(other))} variables is called as one of {lstm}; rename "
        f"them, or take another template"
    )


def test_a_template_gives_the_sizes_of_widths(lstm: str) -> None:
    """One variable of it tells the size, and all others follow."""
    path = template({"charlm/rnn/lstm_cell/bias": (180,)}, lstm)
    save_file({"charlm/rnn/lstm_cell/bias": np.zeros(180, "f4")}, path)
    arguments = ["--plugin", "pad", "--like", path, "-o", "grown", "--to", "tf"]
    assert run("ckpt", lstm, *arguments).exit_code == 0
    found = shapes("grown")
    assert found["charlm/rnn/lstm_cell/kernel"] == (53, 180)
    assert found["charlm/rnn/lstm_cell/kernel/Adam_1"] == (53, 180)
    assert found["charlm/softmax/kernel/ExponentialMovingAverage"] == (45, 14)


def test_what_no_graph_and_no_name_tells_is_refused() -> None:
    opaque = case("tf221_raw_dtypes").path
    assert told(run("ckpt", opaque, "--plugin", "pad", "--resize", "bfloat16=5"), 4) == (
        "bfloat16 cannot be resized: there is no graph, and no known name that tells what it is"
    )


def test_what_is_fed_cannot_be_resized() -> None:
    images = case("tf115_v2_convbn_ema").path
    message = told(run("ckpt", images, "--plugin", "pad", "--resize", "images=5"), 4)
    assert message.startswith("images cannot be resized: Placeholder")


def test_the_graph_of_another_checkpoint_is_refused(lstm: str, place: Path) -> None:
    shutil.copytree(Path(lstm).parent, "copy")
    other = case("tf14_v2_bidirectional")
    shutil.copy(f"{other.path}.meta", Path("copy", f"{Path(lstm).name}.meta"))
    before = tree(place)
    message = told(run("ckpt", "copy", "--plugin", "pad", "--resize", "30=45", "-o", "out"), 3)
    assert message.endswith("it is the graph of another checkpoint")
    assert tree(place) == before


def test_no_change_is_told(lstm: str) -> None:
    outcome = run("ckpt", lstm, "--plugin", "pad", "--resize", "lstm_cell=30")
    assert outcome.exit_code == 0
    assert (
        "note    pad: every width has the size that is asked for; nothing changes" in outcome.stdout
    )


def test_the_plan_tells_of_widths(lstm: str) -> None:
    arguments = ["ckpt", lstm, "--plugin", "pad", "--resize", "lstm_cell=45"]
    outcome = run(*arguments)
    lines = outcome.stdout.splitlines()
    width = "width   charlm/rnn/lstm_cell  30 -> 45  exact: what consumes the new units is zero"
    assert lines[1] == width
    assert lines[2].startswith("        dead to training: both sides of the new units are zero; ")
    kernel = "float32 [8 + 30, 4*30] -> [8 + 45, 4*45]"
    assert f"pad     charlm/rnn/lstm_cell/kernel/Adam_1  {kernel}" in lines
    (found,) = json.loads(run(*arguments, "--pad-fill", "ones", "--json").stdout)["widths"]
    assert found == {
        "name": "charlm/rnn/lstm_cell",
        "old": 30,
        "new": 45,
        "exact": True,
        "why": "what consumes the new units is zero",
        "dead": None,
    }


def test_a_layout_has_the_last_word(lstm: str) -> None:
    assert run("inspect", lstm, "--widths", "-o", "layout.toml").exit_code == 0
    text = Path("layout.toml").read_text()
    Path("layout.toml").write_text(re.sub(r"charlm/rnn/lstm_cell(?!/)", "units", text))
    arguments = ["--plugin", "pad", "--layout", "layout.toml", "--resize", "units=45"]
    assert run("ckpt", lstm, *arguments, "-o", "x.safetensors").exit_code == 0
    assert (
        run("ckpt", lstm, "--plugin", "pad", "--resize", "30=45", "-o", "y.safetensors").exit_code
        == 0
    )
    assert values("x.safetensors") == values("y.safetensors")


def test_the_same_command_gives_the_same_bytes(lstm: str) -> None:
    arguments = ["ckpt", lstm, "--plugin", "pad", "--resize", "30=45", "--pad-fill", "normal"]
    for output, seed in (("one", 0), ("two", 0), ("other", 1)):
        assert run(*arguments, "--to", "tf", "--seed", seed, "-o", output).exit_code == 0
    assert tree(Path("one")) == tree(Path("two"))
    assert values("one") != values("other")


def test_entries_that_get_other_numbers_are_told(lstm: str, place: Path) -> None:
    vocabulary = "charlm/embedding/vocabulary"
    chosen = run(
        "ckpt",
        lstm,
        "--plugin",
        "select",
        "--resize",
        f"{vocabulary}=10",
        "--json",
        "-o",
        place / "out.safetensors",
    )
    told = json.loads(chosen.stdout)
    units = told["result"]["units"]
    assert list(units) == [vocabulary]
    assert len(units[vocabulary]) == 10
    old, new = open_checkpoint(lstm), open_checkpoint(place / "out.safetensors")
    rows = old["charlm/embedding"].read()[units[vocabulary]]
    assert new["charlm/embedding"].read().tolist() == rows.tolist()
    assert told["notes"] == [
        f"select: {vocabulary}: the entries that stay are numbered anew, 0 to 9; what is written "
        "with --json tells in result.units which they were"
    ]
    cut = run("ckpt", lstm, "--plugin", "truncate", "--resize", f"{vocabulary}=10")
    assert f"note    truncate: {vocabulary}: the entries from 10 on are gone" in cut.stdout
    # Units that nobody counts from outside have no numbers.
    assert "note" not in run("ckpt", lstm, "--plugin", "select", "--resize", "lstm_cell=10").stdout


def test_what_a_glob_fits_and_stays_is_listed() -> None:
    bert = case("tf115_v2_bert_mini").path
    told = json.loads(run("ckpt", bert, "--plugin", "pad", "--resize", "*=128", "--json").stdout)
    assert set(told["held"]) == {"bert/embeddings/position_embeddings", "input_ids"}
    assert told["held"]["input_ids"] == "Placeholder input_ids brings it in from outside"


def test_an_unrelated_checkpoint_is_not_proposed(lstm: str, tmp_path: Path) -> None:
    shutil.copytree(case("tf14_v2_charlm_lstm_ema").directory, tmp_path / "charlm")
    flags = ("ckpt", lstm, "--plugin", "pad", "--like")
    assert "; there is " not in run(*flags, tmp_path / "nope").stderr
    near = f"; there is {tmp_path / 'charlm' / 'model.ckpt-300'}"
    assert near in run(*flags, tmp_path / "charml").stderr


def test_an_empty_graph_is_told_as_that(place: Path) -> None:
    copy = place / "copy"
    shutil.copytree(case("tf14_v2_charlm_lstm_ema").directory, copy)
    (copy / "model.ckpt-300.meta").write_bytes(b"")
    outcome = run("ckpt", copy, "--plugin", "pad", "--resize", "lstm_cell=45")
    assert outcome.exit_code == 3
    assert "model.ckpt-300.meta: the file is empty, and was to hold a graph" in outcome.stderr
