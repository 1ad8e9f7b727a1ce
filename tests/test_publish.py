"""Output is absent or complete, whenever the process is killed, and the next run works."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import case

from converter import Checkpoint, ConverterError, InputError, PlanError, convert, open_checkpoint
from converter import publish as publishing
from converter.formats.state import read_state
from converter.publish import Outputs, clean, publish, staging

# Each change of the file system is announced, and waits until the parent lets it pass.
STEPPED = """
import os, sys
def stepped(function):
    def wrapper(*args, **kwargs):
        print(function.__name__, flush=True)
        sys.stdin.readline()
        return function(*args, **kwargs)
    return wrapper
for name in ("rename", "replace", "link", "unlink", "mkdir", "rmdir", "fsync"):
    setattr(os, name, stepped(getattr(os, name)))
from converter import convert
source, output, to, force, shard_size = sys.argv[1:]
convert(source, output, to=to, force=force == "force", shard_size=int(shard_size) or None)
"""


def _killed_after(steps: int, arguments: list[str]) -> bool:
    """Let a conversion make some changes of the file system, and kill it; False if it ended."""
    process = subprocess.Popen(
        [sys.executable, "-c", STEPPED, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        for _ in range(steps):
            if not process.stdout.readline():
                return False
            process.stdin.write("\n")
            process.stdin.flush()
        return bool(process.stdout.readline())
    finally:
        process.kill()
        process.communicate()


def _values(checkpoint: Checkpoint) -> dict[str, bytes]:
    return {name: variable.read().tobytes() for name, variable in checkpoint.items()}


def _found(path: Path) -> dict[str, bytes] | None:
    """Return what a reader finds, or None where it finds nothing."""
    try:
        checkpoint = open_checkpoint(path)
    except InputError:
        return None
    checkpoint.check(checkpoint)
    return _values(checkpoint)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("output", "to", "shard_size"),
    [
        ("out/model.safetensors", "safetensors", 0),
        ("out", "safetensors", 4000),
        ("out", "tf", 0),
        ("out", "tf", 4000),
    ],
)
@pytest.mark.parametrize("before", ["absent", "empty directory", "other output"])
def test_killed_at_any_point(
    output: str, to: str, shard_size: int, before: str, tmp_path: Path
) -> None:
    old_source = case("tf012_v2_lstm_peephole").path
    new_source = case("tf012_v2_gru_seqlen").path
    new = _values(open_checkpoint(new_source))
    old = _values(open_checkpoint(old_source))
    force = "force" if before == "other output" else "no"
    killed, steps = True, 0
    while killed:
        place = tmp_path / str(steps)
        place.mkdir()
        target = place / output
        if before == "empty directory":
            (place / "out").mkdir()
        elif before == "other output" and to == "safetensors":
            # More shards than the new one, so that some would be left over.
            convert(old_source, target, shard_size=3000 if shard_size else None)
        elif before == "other output":
            convert(
                old_source, place / "out" / "gru.index", shard_size=1000 if shard_size else None
            )
        arguments = [new_source, str(target), to, force, str(shard_size)]
        killed = _killed_after(steps, arguments)
        expected = [new, None, old] if before == "other output" else [new, None]
        assert _found(target) in expected, f"killed after {steps} changes"
        if killed and before == "other output":
            # What was gone is replaced at last; nothing is lost for good.
            clean(place / "out")
            assert _found(target) in [new, old], f"killed after {steps} changes"
        if killed:
            complete = _found(target) == new
            convert(
                new_source,
                target,
                to=to,
                force=complete or force == "force",
                shard_size=shard_size or None,
            )
        assert _found(target) == new
        fresh = tmp_path / f"fresh{steps}"
        convert(new_source, fresh / output, to=to, shard_size=shard_size or None)
        assert _tree(place) == _tree(fresh)
        steps += 1
    assert steps > 5


def _tree(directory: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file()
    }


def test_exception_leaves_nothing(tmp_path: Path, lstm: str) -> None:
    from collections.abc import Iterable
    from dataclasses import dataclass
    from typing import ClassVar

    from converter import Array, Region, Strategy, Variable

    @dataclass(frozen=True)
    class Fails(Strategy):
        """Fail in the last variable."""

        name: ClassVar[str] = "fails"

        def apply(self, checkpoint: Checkpoint) -> Iterable[Variable]:
            *first, last = checkpoint.values()
            yield from first

            def load(region: Region) -> Array:
                raise ValueError("no such luck")

            yield last.derive(load)

    with pytest.raises(ConverterError, match="no such luck"):
        convert(lstm, tmp_path / "a" / "b" / "out", [Fails()], to="tf")
    assert list(tmp_path.iterdir()) == []


def test_existing_output_is_refused_and_kept(tmp_path: Path, lstm: str) -> None:
    target = tmp_path / "x.safetensors"
    target.write_bytes(b"precious")
    with pytest.raises(PlanError, match="exists; use --force"):
        convert(lstm, target)
    assert target.read_bytes() == b"precious"
    convert(lstm, target, force=True)
    assert len(open_checkpoint(target)) == len(open_checkpoint(lstm))
    assert [path.name for path in tmp_path.iterdir()] == ["x.safetensors"]


def test_other_files_of_the_directory_are_left_alone(tmp_path: Path, lstm: str) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    convert(lstm, tmp_path, to="tf")
    convert(lstm, tmp_path, to="tf", force=True)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_state_file_names_all_outputs_but_none_beside_the_source(tmp_path: Path) -> None:
    first, second = case("tf012_v2_gru_seqlen").path, case("tf012_v2_lstm_peephole").path
    convert(first, tmp_path, to="tf")
    convert(second, tmp_path, to="tf")
    state = (tmp_path / "checkpoint").read_text()
    assert state == (
        'model_checkpoint_path: "peephole.ckpt-60"\n'
        'all_model_checkpoint_paths: "gru"\n'
        'all_model_checkpoint_paths: "peephole.ckpt-60"\n'
    )
    result = convert(tmp_path / "gru", tmp_path / "copy.index")
    assert (tmp_path / "checkpoint").read_text() == state
    assert any("belongs to the source" in note for note in result.plan.notes)
    assert len(open_checkpoint(tmp_path / "copy")) == len(open_checkpoint(first))


def test_source_is_never_the_output(tmp_path: Path, lstm: str) -> None:
    convert(lstm, tmp_path, to="tf")
    before = _tree(tmp_path)
    for output in (tmp_path, tmp_path / ".." / tmp_path.name):
        with pytest.raises(PlanError, match="never written"):
            convert(tmp_path, output, to="tf", force=True)
    assert _tree(tmp_path) == before


def test_a_run_in_progress_is_not_cleaned_up(tmp_path: Path, lstm: str) -> None:
    with staging(tmp_path) as busy:
        (busy / "half").write_bytes(b"x")
        clean(tmp_path)
        convert(lstm, tmp_path / "x.safetensors")
        assert (busy / "half").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["x.safetensors"]


def test_what_appeared_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    outputs = Outputs(tmp_path, ("a", "b"), "b")
    with staging(tmp_path) as stage:
        for name in outputs.files:
            (stage / name).write_text("new")
        (tmp_path / "b").write_text("theirs")
        with pytest.raises(PlanError, match="exists by now"):
            publish(stage, outputs)
    assert (tmp_path / "b").read_text() == "theirs"
    assert not (tmp_path / "a").exists()


def _journal(directory: Path, **said: object) -> dict[str, object]:
    """Return a journal that tells the truth about the files of a directory."""
    known = {}
    for path in directory.iterdir():
        status = path.lstat()
        known[path.name] = (status.st_ino, status.st_size, status.st_mtime_ns)
    keys = ("files", "shared", "markers", "obsolete")
    journal: dict[str, object] = {"commit": "m.index", "old": known, **dict.fromkeys(keys, ())}
    journal["files"] = {"m.index": known["m.index"]}
    return journal | {"shared": {}} | said


@pytest.mark.parametrize("linked", [False, True], ids=["directory", "link"])
@pytest.mark.parametrize(
    "said",
    [
        {"files": [], "shared": ["train.py"], "obsolete": ["notes.txt"], "commit": "nope"},
        {"files": ["m.index", "m.data-00000-of-00001"], "shared": [], "obsolete": []},
        {"obsolete": ["notes.txt"]},
        {"markers": ["gone.index"], "obsolete": ["m.data-00000-of-00001", "m.meta"]},
        {"obsolete": ["m.meta"], "old": {"m.meta": [1, 2, 3]}},
        {"obsolete": ["m.data-00000-of-00001"], "old": {"m.data-00000-of-00001": [1, 2, 3]}},
        {"obsolete": ["m.data-00000-of-00001"], "old": {}},
        {"shared": {"train.py": [1, 2, 3]}},
        {"files": {"m.index": None}},
        {"commit": "../m.index", "files": {"../m.index": [1, 2, 3]}},
        {"commit": "m\0.index", "files": {"m\0.index": [1, 2, 3]}},
        {"commit": "\ud800.index", "files": {"\ud800.index": [1, 2, 3]}},
        "[" * 200_000,
        "1" * 10_000,
        "",
        b"\xff",
    ],
    ids=range(16),
)
def test_journal_of_somebody_else_is_not_believed(
    said: dict[str, object] | str | bytes, linked: bool, tmp_path: Path, lstm: str
) -> None:
    place, stage = tmp_path / "place", tmp_path / "place" / ".ckpt-converter-zz"
    for directory in (place, place / "m.meta", place / "subdirectory"):
        directory.mkdir()
    for name in ("notes.txt", "train.py", "m.data-00000-of-00001", "m.index"):
        (place / name).write_text("mine")
    journal = said
    if isinstance(said, dict):
        journal = json.dumps(_journal(place, **said))
    before = _tree(place)
    home = tmp_path / "elsewhere" if linked else stage
    home.mkdir()
    (home / "train.py").write_text("theirs")
    data = journal if isinstance(journal, bytes) else str(journal).encode()
    (home / "journal.json").write_bytes(data)
    if linked:
        stage.symlink_to(home)
    convert(lstm, place / "x.safetensors", sync=False)
    after = _tree(place)
    del after["x.safetensors"]
    assert {name: after[name] for name in before} == before
    assert (place / "m.meta").is_dir()
    assert (home / "journal.json").exists() == linked


def test_what_was_saved_since_a_run_was_killed_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The killed run had its output complete, and some files of the one before to remove."""
    source, place = case("tf012_v2_gru_seqlen").path, tmp_path / "place"
    convert(source, place, to="tf", shard_size=4000)
    training = _tree(place)
    with monkeypatch.context() as patched:
        patched.setattr(publishing, "_tidy", _interrupt)
        with pytest.raises(KeyboardInterrupt):
            convert(source, place, to="tf", force=True)
    assert any(path.name == "journal.json" for path in place.rglob("*"))
    for path in place.glob("gru.*"):
        path.unlink()
    for name, data in training.items():
        (place / name).write_bytes(data)
    convert(source, place / "other.safetensors")
    assert {name: data for name, data in _tree(place).items() if "other" not in name} == training


def _interrupt(*arguments: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("output", ["tf", "safetensors"])
def test_interrupted_between_the_old_output_and_the_new(
    output: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = case("tf012_v2_lstm_peephole").path, case("tf012_v2_gru_seqlen").path
    place = tmp_path / "place"
    path = place / ("gru.index" if output == "tf" else "model.safetensors.index.json")
    target = path if output == "tf" else place
    convert(old, target, shard_size=3000)

    def interrupt(source: Path, target: Path, *, replace: bool) -> None:
        with monkeypatch.context() as patched:
            patched.setattr(publishing, "_move", move)
            assert not path.exists()
            calls.append(target)
            if len(calls) == 1:
                raise KeyboardInterrupt
            move(source, target, replace=replace)

    move, calls = publishing._move, list[Path]()
    monkeypatch.setattr(publishing, "_move", interrupt)
    with pytest.raises(KeyboardInterrupt):
        convert(new, target, shard_size=4000, force=True)
    assert _found(path) == _values(open_checkpoint(new))
    convert(new, tmp_path / "fresh" / (path.name if output == "tf" else ""), shard_size=4000)
    assert _tree(place) == _tree(tmp_path / "fresh")


def test_error_after_the_output_is_there_is_none(
    tmp_path: Path, lstm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> None:
        raise OSError(errno.EIO, "no such luck")

    monkeypatch.setattr(publishing, "_tidy", fail)
    assert convert(lstm, tmp_path, to="tf").output.with_suffix(".index")
    assert len(open_checkpoint(tmp_path)) == len(open_checkpoint(lstm))


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("what", ["notes", "directory", "dangling link"])
def test_what_is_no_state_file_is_not_replaced(
    what: str, force: bool, tmp_path: Path, lstm: str
) -> None:
    state = tmp_path / "checkpoint"
    if what == "notes":
        state.write_text("my notes")
    elif what == "directory":
        state.mkdir()
    else:
        state.symlink_to("nowhere")
    with pytest.raises(PlanError, match="checkpoint is no state file of TensorFlow's; move it"):
        convert(lstm, tmp_path, to="tf", force=force)
    assert list(tmp_path.iterdir()) == [state]
    if what == "notes":
        assert state.read_text() == "my notes"
    convert(lstm, tmp_path / "x.safetensors")


def test_directory_in_the_place_of_a_file(tmp_path: Path, lstm: str) -> None:
    convert(lstm, tmp_path / "model.index")
    (tmp_path / "model.data-00000-of-00007").mkdir()
    before = _tree(tmp_path)
    with pytest.raises(PlanError, match="is a directory; move it away"):
        convert(lstm, tmp_path / "model.index", force=True)
    assert _tree(tmp_path) == before


def test_state_file_keeps_whatever_it_named(tmp_path: Path, lstm: str) -> None:
    """TensorFlow 1 has written absolute paths, and names of V1 checkpoints and of their shards."""
    names = [f"{tmp_path}/absolute", "v1", "v1-s-?????-of-00002", "plain", "gone", "/gone", ""]
    for name in ("absolute.index", "v1", "v1-s-00001-of-00002", "plain-00000-of-00001", "gonex"):
        (tmp_path / name).write_text("")
    lines = ['model_checkpoint_path: "v1"', *(f'all_model_checkpoint_paths: "{n}"' for n in names)]
    (tmp_path / "checkpoint").write_text("\n".join(lines))
    convert(lstm, tmp_path / "new.index")
    kept = ["absolute", "v1-s-?????-of-00002", "plain", "v1", "new"]
    assert read_state(tmp_path / "checkpoint") == kept


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small tmpfs needs root")
def test_full_disk(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("no right to mount a tmpfs here")
    try:
        source = case("tf115_v2_bert_mini").path
        for to in ("tf", "safetensors"):
            with pytest.raises(ConverterError, match="No space left") as caught:
                convert(source, disk / "out", to=to)
            assert caught.value.exit_code == 1
            assert list(disk.iterdir()) == []
        small = case("tf115_v2_slash_prefix").path
        convert(small, disk / "out", to="tf")
        assert np.prod(open_checkpoint(disk / "out")["linear/kernel"].shape) == 30
    finally:
        subprocess.run(["umount", str(disk)], check=True)
