"""`convert batch`: many checkpoints, whatever becomes of some of them, and of the run itself."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from conftest import case
from converter_plugins.scale import Scale
from test_cli import TIMES

from converter import convert, open_checkpoint
from converter.cli import cli

# By the directory below ROOT: the case, and what is written for it, without an ending.
VALID = {
    "a/lstm": ("tf14_v2_charlm_lstm_ema", ["model.ckpt-300"]),
    "a/rotation": (
        "tf14_v2_rotation",
        ["model.ckpt-12", "model.ckpt-16", "model.ckpt-20"],
    ),
    "b/frozen": ("tf115_frozen", ["frozen.pb"]),
    "b/saved": ("tf115_savedmodel", ["export/variables/variables"]),
    "b/sharded": ("tf10_v1_sharded", ["mlp.ckpt-25"]),
    "b/slash": ("tf115_v2_slash_prefix", ["experiment/model"]),
}
DAMAGED = {
    "a/flipped": ("bad_flipped_data_byte", "checksum"),
    "b/cut": ("bad_v1_truncated", None),
    "b/missing": ("bad_missing_shard", "the file is missing"),
    "strings": ("tf221_raw_dtypes", "--sidecar"),
}
DONE = sorted(f"{directory}/{name}" for directory, (_, names) in VALID.items() for name in names)
FAILED = ["a/flipped/gru", "b/missing/sharded.ckpt-25", "b/v1/mlp.ckpt-25", "strings/raw"]


def batch(*arguments: object) -> Result:
    return CliRunner().invoke(cli, ["batch", *map(str, arguments)])


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A tree of good checkpoints, without their graphs."""
    for directory, (name, _) in VALID.items():
        _copy(name, tmp_path / "in" / directory)
    return tmp_path / "in"


@pytest.fixture
def mixed(root: Path) -> Path:
    """With damaged ones among them, and some that safetensors cannot hold."""
    for directory, (name, _) in DAMAGED.items():
        _copy(name, root / directory)
    _copy("tf10_v1_sharded", root / "b" / "v1")
    (root / "b" / "v1" / "mlp.ckpt-25-00001-of-00002").unlink()
    (root / "notes.txt").write_text("mine")
    return root


def _copy(name: str, target: Path) -> None:
    shutil.copytree(
        case(name).directory, target, ignore=shutil.ignore_patterns("*.npz", "case.json", "*.meta")
    )


def tree(directory: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


def times_of(directory: Path) -> dict[Path, int]:
    files = (path for path in directory.rglob("*") if path.is_file())
    return {path: path.stat().st_mtime_ns for path in files}


def values(path: Path | str) -> dict[str, bytes]:
    return {name: v.read().tobytes() for name, v in open_checkpoint(path).items()}


def test_good_and_bad(mixed: Path, tmp_path: Path) -> None:
    before = tree(mixed)
    out = tmp_path / "out"
    outcome = batch(mixed, "-o", out, "--jobs", 2)
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
                assert message is not None
                assert message in error
    assert "mlp.ckpt-25-00001-of-00002 is missing" in failed[str(mixed / "b/v1/mlp.ckpt-25")]
    total = sum(len(data) for name, data in tree(out).items() if name.endswith(".safetensors"))
    assert re.fullmatch(r"done    8 checkpoints, [\d.]+ kB in [\d.]+ s, [\d.]+ k?B/s", lines[-3])
    assert f"{total / 1000:.0f} kB" in lines[-3]
    assert lines[-2:] == ["skipped 0 checkpoints", "failed  4 checkpoints"]
    told = outcome.stderr.splitlines()
    assert len(told) == 12
    assert re.match(r"\[1/12\] (done|failed) ", told[0])
    assert told[-1].startswith("[12/12] ")


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
    _copy(name, target)


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
        ([], None, ["--cast", "float16"]),
        (["--scale", "hidden/*=2"], None, ["--scale", "hidden/*=3"]),
        (["--recipe", "recipe.toml"], _touch_template, None),
        (["--plugin", "times.py"], _change_plugin, None),
        ([], _change_source, None),
        ([], _change_shard, None),
        ([], None, ["--shard-size", "300B"]),
        ([], None, ["--sidecar"]),
    ],
    ids=["step", "value", "template", "plugin", "source", "shard", "size", "sidecar"],
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


# -- runs that end early --------------------------------------------------------------------------


def _start(root: Path, out: Path, seconds: float) -> subprocess.Popen[str]:
    plugin = root.parent / "times.py"
    plugin.write_text(TIMES)
    command = ["batch", root, "-o", out, "--jobs", 2, "--to", "tf"]
    command += ["--plugin", plugin, "--times-seconds", seconds]
    return subprocess.Popen(
        [sys.executable, "-m", "converter", *map(str, command)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _wait_until(condition: Callable[[], object], what: str) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end, f"waited in vain: {what}"
        time.sleep(0.01)


def _workers(parent: int) -> list[int]:
    try:
        found = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
        return [int(pid) for pid in found if b"spawn_main" in _command(int(pid))]
    except OSError:
        return []


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def _half_done(out: Path) -> list[Path]:
    return [path for path in out.rglob(".ckpt-converter-*/*.data-*") if path.exists()]


def _check_result(root: Path, out: Path, again: subprocess.Popen[str]) -> None:
    """The second run has finished what the first one began, and nothing else is there."""
    _, stderr = again.communicate(timeout=120)
    assert again.returncode == 0, stderr
    assert not list(out.rglob(".*"))
    fresh = root.parent / "fresh"
    process = _start(root, fresh, 0)
    process.communicate(timeout=120)
    records = {name for name in tree(out) if name.endswith(".conversion.json")}
    assert len(records) == 8
    found, expected = tree(out), tree(fresh)
    assert found.keys() == expected.keys()
    # The records tell how long each variable took, which differs.
    assert {n: d for n, d in found.items() if n not in records} == {
        n: d for n, d in expected.items() if n not in records
    }


@pytest.mark.slow
def test_interrupted(root: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = _start(root, out, 0.02)
    _wait_until(lambda: list(out.rglob("*.conversion.json")), "a result")
    _wait_until(lambda: _half_done(out), "half a result")
    workers = _workers(process.pid)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert stderr.splitlines()[-1].startswith("Error: interrupted; what is done stays")
    assert "Traceback" not in stderr
    assert not any(b"spawn_main" in _command(pid) for pid in workers)
    assert not list(out.rglob(".*"))
    for index in out.rglob("*.index"):
        checkpoint = open_checkpoint(str(index))
        assert all(variable.read().size for variable in checkpoint.values())
    assert not any(path.is_dir() and not any(path.iterdir()) for path in out.rglob("*"))
    done = times_of(out)
    again = _start(root, out, 0.02)
    _check_result(root, out, again)
    now = times_of(out)
    assert all(now[path] == time_ for path, time_ in done.items() if path.suffix == ".index")


@pytest.mark.slow
def test_an_interruption_waits_for_no_job(root: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = _start(root, out, 600)
    _wait_until(lambda: _half_done(out), "half a result")
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=300)  # A single variable takes ten minutes.
    assert process.returncode == 130
    assert not out.exists()


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0.1, 0.2, 0.6])
def test_interrupted_from_a_terminal(seconds: float, root: Path, tmp_path: Path) -> None:
    """It sends the signal to all processes, to those that have just been started too."""
    out = tmp_path / "out"
    process = _start(root, out, 0.1)
    _wait_until(lambda: len(_workers(process.pid)) == 2, "the workers")
    time.sleep(seconds)
    for worker in _workers(process.pid):
        os.kill(worker, signal.SIGINT)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Error" not in stderr.replace("Error: interrupted; what is done stays", "")
    assert "Traceback" not in stderr
    assert not list(out.rglob(".*"))


@pytest.mark.slow
def test_killed(root: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = _start(root, out, 0.02)
    _wait_until(lambda: _half_done(out), "half a result")
    workers = _workers(process.pid)
    assert workers
    process.kill()
    process.communicate(timeout=60)
    _wait_until(
        lambda: not any(b"spawn_main" in _command(pid) for pid in workers), "the workers' end"
    )
    _check_result(root, out, _start(root, out, 0.02))


@pytest.mark.slow
def test_a_killed_worker_takes_nothing_along(root: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = _start(root, out, 0.02)
    _wait_until(lambda: _half_done(out), "half a result")
    os.kill(_workers(process.pid)[0], signal.SIGKILL)
    _check_result(root, out, process)


@pytest.mark.slow
def test_a_job_that_always_dies(root: Path, tmp_path: Path) -> None:
    """It is told as what failed; the others are done."""
    plugin = tmp_path / "deadly.py"
    plugin.write_text(
        TIMES.replace("time.sleep(self.seconds)", "import os, signal").replace(
            "return values * values.dtype.type(self.factor)",
            "variable.name == 'charlm/embedding' and os.kill(os.getpid(), signal.SIGKILL)\n"
            "            return values",
        )
    )
    out = tmp_path / "out"
    done = subprocess.run(
        [
            *(sys.executable, "-m", "converter", "batch", str(root), "-o", str(out)),
            *("-j2", "--json", "--plugin", str(plugin)),
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 5, done.stderr
    shown = json.loads(done.stdout)["checkpoints"]
    (failed,) = [one for one in shown if one["status"] == "failed"]
    assert failed["source"] == str(root / "a/lstm/model.ckpt-300")
    assert failed["error"] == "its process died; is there enough memory?"
    # What another process had just finished when this one took the pool down is found done.
    assert sum(one["status"] in ("done", "skipped") for one in shown) == 7
    assert not list(out.rglob(".*"))
