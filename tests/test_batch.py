"""`convert batch`: many checkpoints, whatever becomes of some of them, and of the run itself."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from command_line import TIMES, tree, values
from conftest import case
from converter_plugins.cast import Cast
from converter_plugins.scale import Scale
from fleet import DONE, VALID, copy_case, make_fleet, times_of

from converter import convert, open_checkpoint
from converter.batch import Job, Outcome, Settings, find_jobs, run_batch
from converter.cli import batch as command
from converter.cli import cli
from converter.publish import staging

pytestmark = pytest.mark.slow

DAMAGED = {
    "a/flipped": ("bad_flipped_data_byte", "checksum"),
    "b/cut": ("bad_v1_truncated", "whose end is missing"),
    "b/missing": ("bad_missing_shard", "the file is missing"),
    "strings": ("tf221_raw_dtypes", "--sidecar"),
}
FAILED = [
    "a/flipped/gru",
    "b/cut/sliced-20",
    "b/missing/sharded.ckpt-25",
    "b/v1/mlp.ckpt-25",
    "strings/raw",
]


def batch(*arguments: object, sync: bool = False) -> Result:
    flags = [] if sync else ["--no-sync"]
    return CliRunner().invoke(cli, ["batch", *map(str, arguments), *flags])


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make_fleet(tmp_path / "in")


@pytest.fixture
def mixed(root: Path) -> Path:
    """With damaged ones among them, and some that safetensors cannot hold."""
    for directory, (name, _) in DAMAGED.items():
        copy_case(name, root / directory)
    copy_case("tf10_v1_sharded", root / "b" / "v1")
    (root / "b" / "v1" / "mlp.ckpt-25-00001-of-00002").unlink()
    (root / "notes.txt").write_text("mine")
    return root


def test_good_and_bad(mixed: Path, tmp_path: Path) -> None:
    before = tree(mixed)
    out = tmp_path / "out"
    outcome = batch(mixed, "-o", out, "--jobs", 2, sync=True)
    assert outcome.exit_code == 5
    assert isinstance(outcome.exception, SystemExit)
    written = sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file())
    assert written == sorted(
        f"{name}{ending}" for name in DONE for ending in (".conversion.json", ".safetensors")
    )
    for directory, (name, names) in VALID.items():
        for output in names:
            found = values(out / directory / f"{output}.safetensors")
            source = case(name).directory / output.replace("experiment/model", "experiment/")
            assert found == values(source), output
    # No directory for what failed.
    assert not any(path.is_dir() and not any(path.iterdir()) for path in out.rglob("*"))
    assert tree(mixed) == before
    lines = outcome.stdout.splitlines()
    matches = [match for line in lines if (match := re.match(r"failed  (\S+): (.*)", line))]
    failed = {match[1]: match[2] for match in matches}
    assert sorted(failed) == [str(mixed / name) for name in FAILED]
    for directory, (_, message) in DAMAGED.items():
        for path, error in failed.items():
            if path.startswith(str(mixed / directory)):
                assert message in error
    assert "mlp.ckpt-25-00001-of-00002 is missing" in failed[str(mixed / "b/v1/mlp.ckpt-25")]
    total = sum(len(data) for name, data in tree(out).items() if name.endswith(".safetensors"))
    assert re.fullmatch(r"done    8 checkpoints, [\d.]+ kB in [\d.]+ s, [\d.]+ k?B/s", lines[-3])
    assert f"{total / 1000:.0f} kB" in lines[-3]
    assert lines[-2:] == ["skipped 0 checkpoints", "failed  5 checkpoints"]
    told = [line for line in outcome.stderr.splitlines() if " running, " not in line]
    assert len(told) == 13
    assert re.match(r"\[1/13\] (done|failed) ", told[0])
    assert told[-1].startswith("[13/13] ")


def test_second_run_skips(mixed: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert batch(mixed, "-o", out, "-j1", "-q").exit_code == 5
    before = times_of(out)
    for path in mixed.rglob("*"):
        os.utime(path)
    outcome = batch(mixed, "-o", out, "-j1", "--json")
    assert outcome.exit_code == 5
    assert times_of(out) == before
    shown = json.loads(outcome.stdout)
    assert set(shown) == {"seconds", "checkpoints"}
    statuses = {Path(one["source"]): one["status"] for one in shown["checkpoints"]}
    failed = {mixed / name for name in FAILED}
    assert statuses == {source: "failed" if source in failed else "skipped" for source in statuses}
    one = next(one for one in shown["checkpoints"] if one["status"] == "skipped")
    assert (one["error"], one["bytes"], one["counts"]) == ("", 0, {})
    assert Path(one["output"]).exists()
    # What was repaired is done by the next run, and nothing else.
    _copy_over("tf012_v2_gru_seqlen", mixed / "a" / "flipped")
    outcome = batch(mixed, "-o", out, "-j1", "--json")
    shown = json.loads(outcome.stdout)
    done = [one["source"] for one in shown["checkpoints"] if one["status"] == "done"]
    assert done == [str(mixed / "a/flipped/gru")]
    now = times_of(out)
    assert {path: now[path] for path in before} == before
    assert {path.name for path in now.keys() - before.keys()} == {
        "gru.safetensors",
        "gru.conversion.json",
    }


def _copy_over(name: str, target: Path) -> None:
    shutil.rmtree(target)
    copy_case(name, target)


def _touch_template(root: Path) -> None:
    template = root.parent / "template.safetensors"
    convert(case("tf10_v1_sharded").path, template, [Scale({"hidden/*": 2.0})], force=True)


def _change_plugin(root: Path) -> None:
    file = root.parent / "times.py"
    file.write_text(file.read_text().replace("2.0", "3.0"))


def _change_source(root: Path) -> None:
    other = case("tf012_v1_charlm_basiclstm")
    shutil.copy(other.path, root / "b" / "mlp")


def _change_shard(root: Path) -> None:
    (shard,) = (root / "st").glob("model-00001-of-*.safetensors")
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)


@pytest.mark.parametrize(
    ("flags", "change", "again"),
    [
        pytest.param([], None, ["--cast", "float16"], id="step"),
        *(
            pytest.param(*values, id=name, marks=pytest.mark.slow)
            for name, *values in (
                ("plugin", ["--plugin", "times.py"], _change_plugin, None),
                ("value", ["--scale", "hidden/*=2"], None, ["--scale", "hidden/*=3"]),
                ("template", ["--recipe", "recipe.toml"], _touch_template, None),
                ("source", [], _change_source, None),
                ("shard", [], _change_shard, None),
                ("size", [], None, ["--shard-size", "300B"]),
                ("sidecar", [], None, ["--sidecar"]),
            )
        ),
    ],
)
def test_what_would_be_made_otherwise_is_told(
    flags: list[str],
    change: Callable[[Path], None] | None,
    again: list[str] | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    root, out = tmp_path / "in", tmp_path / "out"
    monkeypatch.chdir(tmp_path)
    (root / "b").mkdir(parents=True)
    shutil.copy(case("tf012_v1_dtypes").path, root / "b" / "mlp")
    source = root / "b" / "mlp"
    convert(case("tf10_v1_sharded").path, root / "st", shard_size=700)
    if change is not _change_source:
        shutil.rmtree(root / "b")
        source = root / "st" / "model.safetensors.index.json"
    (tmp_path / "times.py").write_text(TIMES)
    (tmp_path / "recipe.toml").write_text(
        '[[step]]\nplugin = "pad"\nlike = "template.safetensors"\n'
    )
    convert(case("tf10_v1_sharded").path, tmp_path / "template.safetensors")
    arguments = [root, "-o", out, "-j1", "--json"]
    first = batch(*arguments, *flags, *(["--drop", "s*"] if change is _change_source else []))
    assert first.exit_code == 0 or change is _change_source, first.output
    if change is _change_source:
        flags = ["--to", "tf"]
        assert batch(*arguments, *flags).exit_code == 0
    before = tree(out)
    if change is not None:
        change(root)
    refused = batch(*arguments, *(flags if again is None else again))
    assert refused.exit_code == 5, refused.output
    told = {one["source"]: one for one in json.loads(refused.stdout)["checkpoints"]}
    assert told[str(source)]["status"] == "failed"
    assert "was made from another source or in another way" in told[str(source)]["error"]
    assert "--force" in told[str(source)]["error"]
    assert tree(out) == before
    forced = batch(*arguments, *(flags if again is None else again), "--force")
    assert forced.exit_code == 0, forced.output
    assert tree(out) != before
    assert batch(*arguments, *(flags if again is None else again)).exit_code == 0


def test_output_of_somebody_else_is_not_replaced(root: Path, tmp_path: Path) -> None:
    theirs = tmp_path / "out" / "b" / "sharded" / "mlp.ckpt-25.safetensors"
    theirs.parent.mkdir(parents=True)
    theirs.write_bytes(b"precious")
    outcome = batch(root, "-o", tmp_path / "out", "-j1", "-q")
    assert outcome.exit_code == 5
    assert f"{theirs} exists; use --force" in outcome.stdout
    assert "failed  1 checkpoint" in outcome.stdout
    assert theirs.read_bytes() == b"precious"


def test_damaged_output_is_made_again(root: Path, tmp_path: Path) -> None:
    """A record without its output, or with one of another size, is none."""
    out = tmp_path / "out"
    batch(root, "-o", out, "-j1")
    before = tree(out)
    victim = out / "b" / "sharded" / "mlp.ckpt-25.safetensors"
    victim.write_bytes(victim.read_bytes()[:-1])
    outcome = batch(root, "-o", out, "-j1", "--force")
    assert outcome.exit_code == 0
    assert "done    1 checkpoint," in outcome.stdout
    assert tree(out) == before


def test_to_tensorflow(root: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for number in (9, 100):
        for ending in ("index", "data-00000-of-00001"):
            shutil.copy(
                root / f"a/rotation/model.ckpt-20.{ending}",
                root / f"a/rotation/model.ckpt-{number}.{ending}",
            )
    outcome = batch(root, "-o", out, "--to", "tf", "-j", 2)
    assert outcome.exit_code == 0, outcome.output
    state = (out / "a" / "rotation" / "checkpoint").read_text()
    names = [f"model.ckpt-{step}" for step in (9, 12, 16, 20, 100)]
    assert state.splitlines() == [
        'model_checkpoint_path: "model.ckpt-100"',
        *(f'all_model_checkpoint_paths: "{name}"' for name in names),
    ]
    for name in DONE:
        assert (out / f"{name}.index").exists()
    assert values(out / "a" / "rotation") == values(root / "a" / "rotation" / "model.ckpt-20")
    before = times_of(out)
    (out / "a" / "rotation" / "checkpoint").unlink()
    outcome = batch(root, "-o", out, "--to", "tf", "-q")
    assert outcome.exit_code == 0
    assert (out / "a" / "rotation" / "checkpoint").read_text() == state
    changed = {path for path, time_ in times_of(out).items() if before.get(path) != time_}
    assert {path.name for path in changed} == {"checkpoint"}


def test_state_file_of_outputs(tmp_path: Path) -> None:
    """It keeps what it named before; and what is no state file is told, and not replaced."""
    root, out = tmp_path / "in", tmp_path / "out"
    for name in ("here", "there", "elsewhere"):
        copy_case("tf012_v2_gru_seqlen", root / name)
        (out / name).mkdir(parents=True)
    (out / "here" / "old.index").write_text("")
    (out / "here" / "checkpoint").write_text('model_checkpoint_path: "old"')
    (out / "there" / "checkpoint").write_text("my notes")
    (out / "elsewhere" / "checkpoint").mkdir()
    outcome = batch(root, "-o", out, "--to", "tf", "-j1")
    assert outcome.exit_code == 5
    assert "failed  2 checkpoints" in outcome.stdout
    assert f"{out / 'there' / 'checkpoint'} is no state file" in outcome.stdout
    assert f"{out / 'elsewhere' / 'checkpoint'} is no state file" in outcome.stdout
    assert [path.name for path in (out / "there").iterdir()] == ["checkpoint"]
    assert (out / "there" / "checkpoint").read_text() == "my notes"
    assert (out / "here" / "checkpoint").read_text().splitlines() == [
        'model_checkpoint_path: "gru"',
        'all_model_checkpoint_paths: "old"',
        'all_model_checkpoint_paths: "gru"',
    ]


def test_sidecars_are_no_checkpoints_of_their_own(mixed: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    assert batch(mixed / "strings", "-o", one, "--sidecar").exit_code == 0
    assert {path.name for path in one.iterdir()} == {
        "raw.safetensors",
        "raw.conversion.json",
        "raw.sidecar.index",
        "raw.sidecar.data-00000-of-00001",
    }
    outcome = batch(one, "-o", two, "-n")
    assert outcome.stdout == f"{one / 'raw.safetensors'} -> {two / 'raw.safetensors'}\n"


def test_dry_run(root: Path, tmp_path: Path) -> None:
    outcome = batch(root, "-o", tmp_path / "out", "--dry-run")
    assert outcome.exit_code == 0
    lines = outcome.stdout.splitlines()
    assert [line.split(" -> ")[1] for line in lines] == [
        str(tmp_path / "out" / f"{name}.safetensors") for name in DONE
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_output_below_the_root(root: Path) -> None:
    out = root / "converted"
    assert batch(root, "-o", out, "-j1", "-q").exit_code == 0
    before = times_of(out)
    outcome = batch(root, "-o", out, "-j1", "-q")
    assert outcome.exit_code == 0
    assert "skipped 8 checkpoints" in outcome.stdout
    assert times_of(out) == before


def test_output_is_not_the_root(root: Path) -> None:
    before = tree(root)
    for output in (root, root / "a" / ".."):
        outcome = batch(root, "-o", output)
        assert outcome.exit_code == 4
        (line,) = outcome.stderr.splitlines()
        assert line.endswith("output and input must differ; choose another directory")
    assert tree(root) == before


def test_two_with_one_output(root: Path, tmp_path: Path) -> None:
    convert(case("tf012_v2_gru_seqlen").path, root / "a" / "lstm" / "model.ckpt-300.safetensors")
    outcome = batch(root, "-o", tmp_path / "out", "-j1", "--json")
    assert outcome.exit_code == 5
    failed = [one for one in json.loads(outcome.stdout)["checkpoints"] if one["error"]]
    (one,) = failed
    prefix = str(root / "a" / "lstm" / "model.ckpt-300")
    assert one["source"] == f"{prefix}.safetensors"
    assert one["error"].startswith(f"{prefix} has the same output, ")
    assert values(one["output"]) == values(prefix)


def test_nothing_to_do(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    outcome = batch(tmp_path / "in", "-o", tmp_path / "out")
    assert outcome.exit_code == 3
    assert "no checkpoint below it" in outcome.stderr
    assert not (tmp_path / "out").exists()


def test_output_that_cannot_be_made(root: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    outcome = batch(root, "-o", tmp_path / "file" / "out")
    assert outcome.exit_code == 1
    assert isinstance(outcome.exception, SystemExit)
    (line,) = outcome.stderr.splitlines()
    assert line.startswith("Error: ")
    assert "Not a directory" in line


def test_mistakes_are_told_once(root: Path, tmp_path: Path) -> None:
    for flags, message in (
        (["--plugin", "pda"], "did you mean 'pad'?"),
        (["--scale", "*=fast"], "must be a number"),
        (["--pad-fill", "1"], "add --plugin pad"),
        (["--to", "ft"], "only safetensors and tf"),
    ):
        outcome = batch(root, "-o", tmp_path / "out", *flags)
        assert outcome.exit_code == 2
        (line,) = outcome.stderr.splitlines()
        assert message in line
    assert not (tmp_path / "out").exists()


def test_plugin_file(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "times.py").write_text(TIMES)
    monkeypatch.chdir(tmp_path)
    outcome = batch("in", "-o", "out", "--plugin", "./times.py", "--times-factor", 4, "-j", 2)
    assert outcome.exit_code == 0, outcome.output
    before = open_checkpoint(root / "a/lstm/model.ckpt-300")["charlm/embedding"].read()
    after = open_checkpoint(tmp_path / "out/a/lstm/model.ckpt-300.safetensors")["charlm/embedding"]
    np.testing.assert_array_equal(after.read(), before * np.float32(4))


def test_counts_are_shown(root: Path, tmp_path: Path) -> None:
    outcome = batch(
        *(root / "a" / "lstm", "-o", tmp_path / "out"),
        *("--scale", "charlm/embedding=1e30", "--cast", "float16", "-j1"),
    )
    assert outcome.exit_code == 0
    assert re.search(
        r"^warning \S+/model\.ckpt-300: charlm/embedding: \d+ overflowed to infinity$",
        outcome.stdout,
        re.MULTILINE,
    )


def test_bytes_of_running_jobs(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = find_jobs(root, tmp_path / "out")
    looks: list[Sequence[Job]] = []
    (outcome,) = run_batch(jobs[:1], Settings(sync=False), watch=looks.append)
    assert 0 < outcome.writing_seconds <= outcome.seconds
    assert looks
    assert all(job == jobs[0] for running in looks for job in running)
    clock = iter([100.0, 100.5, 102.0, 103.0, 113.0, 123.0])
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    progress = command._Progress([Outcome(jobs[1], "done", nbytes=1000)], 8)
    with staging(jobs[0].target.directory) as stage:
        (stage / "half").write_bytes(bytes(3000))
        for _ in range(4):
            progress(jobs[:1])
        # What took its time before or after is left out, as far as finished jobs tell it.
        slow = Outcome(jobs[1], "done", nbytes=1000, seconds=8.0, writing_seconds=2.0)
        progress._finished = [slow]
        progress(jobs[:1])
    monkeypatch.undo()
    assert capsys.readouterr().err.splitlines() == [
        "[1/8] 1 running, 4.0 kB written, 2.0 kB/s",
        "[1/8] 1 running, 4.0 kB written, 308 B/s",
        "[1/8] 1 running, 4.0 kB written, 696 B/s",
    ]
    line, *_ = command._summary([slow], 4.0)
    assert line == "done    1 checkpoint, 1.0 kB in 4.0 s, 1.0 kB/s"


def test_what_must_have_been_a_checkpoint_is_told(tmp_path: Path) -> None:
    root = tmp_path / "in"
    for name, pattern in (("bad_v1_truncated", "*"), ("tf012_v2_gru_seqlen", "gru.data*")):
        (root / name).mkdir(parents=True)
        for file in case(name).directory.glob(pattern):
            if file.name not in ("case.json", "io.npz"):
                shutil.copy(file, root / name)
    outcome = CliRunner().invoke(cli, ["batch", str(root), "-o", str(tmp_path / "out"), "-q"])
    assert outcome.exit_code == 5
    assert "sliced-20: looks like a TensorFlow V1 checkpoint whose end is missing" in outcome.stdout
    assert "gru.index, which is missing" in outcome.stdout
    assert "failed  2 checkpoints" in outcome.stdout


@pytest.fixture
def fleet(tmp_path: Path) -> Path:
    """Two models with their graphs, and one without widths of such names."""
    for name in ("tf14_v2_charlm_lstm_ema", "tf10_v2_multilstm_adagrad", "tf14_v2_rotation"):
        directory = case(name).directory
        ignored = shutil.ignore_patterns("*.npz", "case.json", "*-12*", "*-16*")
        shutil.copytree(directory, tmp_path / "fleet" / name, ignore=ignored)
    return tmp_path / "fleet"


GROW = ("--plugin", "duplicate", "--resize", "*lstm_cell=40", "--to", "tf", "-j1")
NOISE = ("--duplicate-noise", "0.1")


def test_a_resized_fleet_says_what_is_exact(fleet: Path, tmp_path: Path) -> None:
    grow = [*GROW, *NOISE, "--resize", "softmax=20"]
    dry = batch(fleet, "-o", tmp_path / "out", *grow, "-n", "--json")
    assert dry.exit_code == 5
    assert not (tmp_path / "out").exists()
    outcome = batch(fleet, "-o", tmp_path / "out", *grow, "--json")
    assert outcome.exit_code == 5
    lstm, charlm, rotation = json.loads(outcome.stdout)["checkpoints"]
    assert (lstm["exact"], lstm["resized"], len(lstm["widths"])) == (False, 12, 3)
    assert (charlm["exact"], charlm["resized"], charlm["proof"]) == (False, 16, None)
    assert [(w["name"], w["old"], w["new"], w["exact"]) for w in charlm["widths"]] == [
        ("charlm/rnn/lstm_cell", 30, 40, False),
        ("charlm/softmax", 14, 20, False),
    ]
    assert charlm["widths"][1]["why"] == "noise is added to the copies"
    assert (rotation["status"], rotation["exact"], rotation["widths"]) == ("failed", None, [])
    for planned, done in zip(
        json.loads(dry.stdout)["checkpoints"], (lstm, charlm, rotation), strict=True
    ):
        assert planned == {key: done[key] for key in planned}
    assert "charlm/rnn/lstm_cell 30 -> 40: noise is added" in outcome.stderr
    # What was done says the same, and what cannot be in a record is not believed.
    again = json.loads(batch(fleet, "-o", tmp_path / "out", *grow, "--json").stdout)["checkpoints"]
    assert [c["status"] for c in again] == ["skipped", "skipped", "failed"]
    assert [c["widths"] for c in again] == [lstm["widths"], charlm["widths"], []]
    record = tmp_path / "out/tf14_v2_charlm_lstm_ema/model.ckpt-300.conversion.json"
    for widths in (3, [1], [{"name": 1}]):
        record.write_text(json.dumps(json.loads(record.read_text()) | {"widths": widths}))
        told = batch(fleet, "-o", tmp_path / "out", *grow, "--json").stdout
        assert json.loads(told)["checkpoints"][1]["widths"] == []


def test_what_is_not_exact_fails_where_it_has_to_be(fleet: Path, tmp_path: Path) -> None:
    grow = [*GROW, *NOISE, "--require-exact"]
    shutil.rmtree(fleet / "tf14_v2_rotation")
    outcome = batch(fleet, "-o", tmp_path / "out", *grow)
    assert outcome.exit_code == 5
    assert re.search(
        r"^failed  \S+/model.ckpt-300: charlm/rnn/lstm_cell: 30 to 40 units is not exact",
        outcome.stdout,
        re.MULTILINE,
    )
    exact = batch(fleet, "-o", tmp_path / "out", *GROW, "--require-exact", "-q")
    assert exact.exit_code == 0, exact.output
    assert "resized 2 checkpoints: 2 exact, 0 not exact" in exact.stdout


def test_a_graph_that_appears_or_changes_is_noticed(fleet: Path, tmp_path: Path) -> None:
    source = fleet / "tf14_v2_charlm_lstm_ema"
    meta = source / "model.ckpt-300.meta"
    data = meta.read_bytes()
    meta.unlink()
    out = [source, "-o", tmp_path / "out", "--to", "tf", "-j1"]
    assert batch(*out).exit_code == 0
    assert batch(*out).exit_code == 0
    meta.write_bytes(data)
    noticed = batch(*out)
    assert noticed.exit_code == 5
    assert "was made from another source or in another way" in noticed.stdout
    assert batch(*out, "--force").exit_code == 0
    assert (tmp_path / "out" / meta.name).read_bytes() == data
    os.utime(meta)
    assert "skipped 1 checkpoint" in batch(*out).stdout
    meta.write_bytes(data + bytes([0x92, 0x03, 0]))
    assert batch(*out).exit_code == 5


@pytest.mark.slow
def test_a_fleet_is_proven(fleet: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorflow")
    shutil.rmtree(fleet / "tf14_v2_rotation")
    out = [fleet, "-o", tmp_path / "out", *GROW]
    outcome = batch(*out, "--prove", "--json")
    assert outcome.exit_code == 0, outcome.output
    for one in json.loads(outcome.stdout)["checkpoints"]:
        assert one["proof"]["passed"] is True
        assert all(output["passed"] for output in one["proof"]["outputs"])
    # What was proven is skipped, whether a proof is asked for or not; but not the reverse.
    assert "skipped 2 checkpoints" in batch(*out).stdout
    assert "skipped 2 checkpoints" in batch(*out, "--prove").stdout
    other = batch(*out, "--prove", "--tolerance", "1e-7")
    assert other.exit_code == 5
    assert "was not proven like this" in other.stdout
    # Values that were rounded are not those that the model was trained with.
    failing = batch(fleet, "-o", tmp_path / "half", "--cast", "float16", "--prove", "-j1", "--json")
    assert failing.exit_code == 5
    for one in json.loads(failing.stdout)["checkpoints"]:
        assert one["status"] == "failed"
        assert "the output does not compute the same" in one["error"]
        assert one["proof"]["passed"] is False
    assert not (tmp_path / "half").exists()


def test_options_of_the_proof_need_it(fleet: Path, tmp_path: Path) -> None:
    outcome = batch(fleet, "-o", tmp_path / "out", "--tolerance", "1e-3")
    assert outcome.exit_code == 2
    assert "add --prove" in outcome.stderr


# --- strategies that find nothing to do ---


@pytest.mark.parametrize("plugin", ["equalize", "fold-batchnorm"])
def test_nothing_to_do_is_no_failure(tmp_path: Path, plugin: str) -> None:
    root, out = tmp_path / "in", tmp_path / "out"
    for name in ("tf012_v2_gru_seqlen", "tf115_v2_convbn_ema"):
        shutil.copytree(case(name).directory, root / name)
    gru = str(root / "tf012_v2_gru_seqlen" / "gru")
    arguments = (root, "-o", out, "--plugin", plugin, "--cast", "float16", "-j1")
    for _ in range(2):  # What the record remembers is told again.
        outcome = batch(*arguments)
        assert outcome.exit_code == 0, outcome.output
        line = outcome.stdout.splitlines()[0]
        assert line == f"idle    1 checkpoint with nothing to do for {plugin}, converted without"
        (told,) = (line for line in outcome.stderr.splitlines() if "nothing to do" in line)
        assert f"{gru}: nothing to do for {plugin} (" in told
        shown = json.loads(batch(*arguments, "--json").stdout)["checkpoints"]
        idle = {one["source"]: list(one["idle"]) for one in shown}
        assert idle.pop(gru) == [plugin]
        assert list(idle.values()) == [[]]
    (written,) = out.rglob("gru.safetensors")
    convert(gru, tmp_path / "cast.safetensors", [Cast(cast="float16")])
    assert values(written) == values(tmp_path / "cast.safetensors")
    alone = CliRunner().invoke(cli, ["ckpt", gru, "--plugin", plugin])
    assert alone.exit_code == 4


WITHOUT_GRAPH = {
    "equalize": "names alone tell of no width that allows factors",
    "fold-batchnorm": "nothing else tells what stands around variables",
    "recalibrate-batchnorm": "nothing else tells what stands around variables",
}
PUT_ONE = (
    "; put the .meta file that was saved with it beside it, or give the graph of another "
    "checkpoint of the model (--graph-from)"
)


@pytest.mark.parametrize("plugin", WITHOUT_GRAPH)
@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("odd_snappy_index", ""),
        ("tf012_v2_gru_seqlen", " (RNN/GRUCell: the gates of GRUCell are nonlinear)"),
    ],
)
def test_what_has_no_graph_is_a_failure(
    tmp_path: Path, plugin: str, name: str, reason: str
) -> None:
    copy_case(name, tmp_path / "in")
    (job,) = find_jobs(tmp_path / "in", tmp_path / "out")
    np.savez(tmp_path / "x.npz", x=np.zeros((2, 2)))
    data = (f"--{plugin}-data", tmp_path / "x.npz") if plugin.startswith("recal") else ()
    why = WITHOUT_GRAPH[plugin] + (reason if plugin == "equalize" else "")
    outcome = batch(tmp_path / "in", "-o", tmp_path / "out", "--plugin", plugin, "-j1", *data)
    assert outcome.exit_code == 5
    assert "idle" not in outcome.stdout
    # The checkpoint is named once.
    error = f"it has no graph, and {why}{PUT_ONE}"
    line = f"{job.source}: {plugin}: {error}"
    assert outcome.stdout.splitlines()[0] == f"failed  {line}"
    assert f"[1/1] failed {line}" in outcome.stderr
    alone = CliRunner().invoke(cli, ["ckpt", job.source, "--plugin", plugin, *map(str, data)])
    assert alone.exit_code == 3
    assert alone.stderr == f"Error: {plugin}: {job.source}: {error}\n"


@pytest.mark.parametrize("plugin", ["equalize", "fold-batchnorm"])
def test_what_has_a_graph_that_tells_of_nothing_is_idle(tmp_path: Path, plugin: str) -> None:
    shutil.copytree(case("tf115_v2_slash_prefix").directory, tmp_path / "in")
    outcome = batch(tmp_path / "in", "-o", tmp_path / "out", "--plugin", plugin, "-j1")
    assert outcome.exit_code == 0, outcome.output
    (told,) = (line for line in outcome.stderr.splitlines() if "nothing to do" in line)
    assert f"experiment/: nothing to do for {plugin} (no " in told


def test_what_is_asked_for_by_name_is_a_failure(tmp_path: Path) -> None:
    shutil.copytree(case("tf012_v2_gru_seqlen").directory, tmp_path / "in")
    arguments = ("--plugin", "equalize", "--equalize-widths", "GRUCell", "-j1")
    outcome = batch(tmp_path / "in", "-o", tmp_path / "out", *arguments)
    assert outcome.exit_code == 5
    assert "equalize would change the outputs" in outcome.stdout
