"""What a path on the command line can be."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import pytest
from command_line import run, told, values
from conftest import all_cases, case

from converter import convert, open_checkpoint


def _name(path: Path | str) -> str:
    shown = json.loads(run("inspect", path, "--json").stdout)
    found: str = shown["path"]
    return found


def test_spellings_of_a_bundle(lstm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = Path(lstm).parent
    for ending in ("", ".index", ".data-00000-of-00001", ".meta"):
        assert _name(lstm + ending) == lstm
    for spelling in (directory, f"{directory}/", directory / "checkpoint"):
        assert _name(spelling) == lstm
    monkeypatch.chdir(directory)
    for spelling in ("model.ckpt-300", "./model.ckpt-300", ".", "checkpoint"):
        assert _name(spelling) in ("model.ckpt-300", "./model.ckpt-300")


def test_spellings_of_v1() -> None:
    (plain,) = {case("tf012_v1_charlm_basiclstm").path}
    assert _name(plain) == _name(Path(plain).parent) == _name(f"{plain}.meta") == plain
    sharded = Path(case("tf10_v1_sharded").path).parent / "mlp.ckpt-25"
    for ending in ("", "-00000-of-00002", "-00001-of-00002", "-?????-of-00002", ".meta"):
        assert _name(f"{sharded}{ending}") == str(sharded)
    assert _name(sharded.parent) == str(sharded)
    assert len(open_checkpoint(sharded)) == 9


def test_spellings_of_others(tmp_path: Path, lstm: str) -> None:
    saved = Path(case("tf115_savedmodel").path)
    prefix = str(saved / "variables" / "variables")
    for spelling in (saved, saved / "saved_model.pb", prefix, f"{prefix}.index"):
        assert _name(spelling) == prefix
    frozen = case("tf115_frozen").path
    assert _name(frozen) == _name(Path(frozen).parent) == frozen
    single, sharded = tmp_path / "single", tmp_path / "sharded"
    convert(lstm, single)
    convert(lstm, sharded, shard_size=20_000)
    assert _name(single) == _name(single / "model.safetensors")
    assert _name(sharded) == str(sharded / "model.safetensors.index.json")
    assert values(sharded) == values(sharded / "model.safetensors.index.json") == values(lstm)
    some = open_checkpoint(min(sharded.glob("model-00001-of-*.safetensors")))
    assert 0 < len(some) < 23


def test_newest_of_several(tmp_path: Path) -> None:
    source = Path(case("tf14_v2_rotation").path).parent
    names = sorted(file.stem for file in source.glob("*.index"))
    state = (source / "checkpoint").read_text()
    current = re.search(r'^model_checkpoint_path: "(.*)"$', state, re.M)
    assert current is not None
    assert Path(_name(source)).name == Path(current[1]).name
    # Moved, and the state names a place that is gone: what lies here counts.
    moved = tmp_path / "moved"
    shutil.copytree(source, moved)
    for where in ("/gone/run/", "../elsewhere/", ""):
        text = re.sub(r'"(?:.*/)?([^/]*)"', rf'"{where}\1"', state)
        (moved / "checkpoint").write_text(text)
        assert _name(moved) == str(moved / Path(current[1]).name)
    # One that is not there any more: the one before it.
    for file in moved.glob(f"{Path(current[1]).name}.*"):
        file.unlink()
    assert _name(moved) != str(moved / Path(current[1]).name)
    # Without a state file: the highest step, whatever its time.
    (moved / "checkpoint").unlink()
    left = [name for name in names if name != Path(current[1]).name]
    by_step = max(left, key=lambda name: int(name.rpartition("-")[2]))
    for name in left:
        os.utime(moved / f"{name}.index", (10**9, 10**9 + (name != by_step)))
    assert _name(moved) == str(moved / by_step)


def test_glob_characters_are_literal(tmp_path: Path) -> None:
    source = Path(case("tf012_v2_gru_seqlen").path)
    for name in ("a[b]*?.ckpt", "a[b]*?.ckpt-7", "{x}", "~", "$HOME", "%41"):
        for ending in (".index", ".data-00000-of-00001"):
            shutil.copy(f"{source}{ending}", tmp_path / f"{name}{ending}")
        assert _name(tmp_path / name) == str(tmp_path / name)
    # The pattern would fit it, but that is another checkpoint.
    assert run("inspect", tmp_path / "a[b]*?.ckpt-*").exit_code == 3
    v1 = Path(case("tf10_v1_sharded").path).parent
    for number in range(2):
        shard = f"mlp.ckpt-25-0000{number}-of-00002"
        shutil.copy(v1 / shard, tmp_path / shard.replace("mlp", "m[l]p*"))
    found = tmp_path / "m[l]p*.ckpt-25"
    assert _name(found) == _name(f"{found}-?????-of-00002") == str(found)


def test_prefix_that_ends_in_a_slash(tmp_path: Path) -> None:
    slash = case("tf115_v2_slash_prefix")
    prefix = f"{slash.directory}/{slash.record['prefix']}"
    assert prefix.endswith("/")
    expected = {"linear/kernel", "linear/bias"}
    for spelling in (prefix, f"{prefix}.index", prefix.rstrip("/")):
        shown = json.loads(run("inspect", spelling, "--json").stdout)
        assert expected <= {variable["name"] for variable in shown["variables"]}
    outcome = run("ckpt", prefix, "-o", tmp_path / "out", "--to", "tf")
    assert outcome.exit_code == 0, outcome.output
    assert values(tmp_path / "out") == values(prefix)


@pytest.mark.parametrize(
    "case_", [c for c in all_cases() if c.record["format"] == "keras"], ids=str
)
def test_keras_files(case_: object) -> None:
    path = getattr(case_, "path", "")
    assert "Keras" in told(run("ckpt", path), 3)
