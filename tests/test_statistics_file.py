"""The file of statistics: what is written is read, merging is as one run, damage is told."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from command_line import run as run_command
from command_line import told
from converter_plugins.statistics import read_mean_abs
from safetensors.numpy import load_file, save_file

from converter import (
    InputError,
    Measured,
    Moments,
    PlanError,
    UsageError,
    merged,
    open_checkpoint,
    read_measured,
    write_measured,
)
from converter.activations.file import Key, merged_files
from converter.variable import Array

KEY: Key = ("net/kernel", "produced")
TAKEN: Key = ("net/kernel", "consumed")
RNG = np.random.default_rng(0)
ROWS = RNG.standard_normal((90, 3))


def measured(rows: Array, *, covariance: bool = False) -> Measured:
    found = Moments.of(3, covariance=covariance)
    found.add(rows)
    taken = Moments.of(3)
    taken.add(rows**2)
    return Measured({KEY: found, TAKEN: taken}, {KEY: ("net/Relu", "net/Relu_1")}, 2)


def same(a: Measured, b: Measured) -> None:
    assert sorted(a) == sorted(b)
    for key in a:
        for name in ("mean", "mean_abs", "std", "min", "max", "zeros", "second_moment"):
            assert np.allclose(getattr(a[key], name), getattr(b[key], name), rtol=1e-12), name
        assert a[key].count == b[key].count
        one, other = a[key].covariance, b[key].covariance
        assert (one is None) == (other is None)
        if one is not None and other is not None:
            assert np.allclose(one, other, rtol=1e-9, atol=1e-15)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    before = measured(ROWS, covariance=True)
    path = write_measured(tmp_path / "stats.safetensors", before)
    after = read_measured(path)
    same(before, after)
    assert after.tensors == {KEY: ("net/Relu", "net/Relu_1")}
    assert after.batches == 2
    entries = load_file(path)
    assert entries["net/kernel/count"].dtype == np.int64
    assert entries["net/kernel/covariance"].shape == (3, 3)
    for name in ("mean", "mean_abs", "std", "second_moment", "min", "max", "max_abs", "zeros"):
        for prefix in ("net/kernel", "net/kernel/consumed"):
            assert entries[f"{prefix}/{name}"].dtype == np.float64
            assert entries[f"{prefix}/{name}"].shape == (3,)
    assert np.allclose(entries["net/kernel/max_abs"], np.abs(ROWS).max(0))


def test_scale_reads_it(tmp_path: Path) -> None:
    save_file({"net/kernel": np.ones((2, 3), "f4")}, tmp_path / "model.safetensors")
    path = write_measured(tmp_path / "stats.safetensors", measured(ROWS))
    found = read_mean_abs(path, open_checkpoint(tmp_path / "model.safetensors"))
    assert np.allclose(found["net/kernel"], np.abs(ROWS).mean(0))


def test_merging_is_as_one_run(tmp_path: Path) -> None:
    parts = [measured(part, covariance=True) for part in np.split(ROWS, [13, 40])]
    paths = [write_measured(tmp_path / f"{n}.safetensors", p) for n, p in enumerate(parts)]
    first, second, third = map(read_measured, paths)
    found = merged(merged(first, second), third)
    same(found, measured(ROWS, covariance=True))
    assert found.batches == 6
    assert found.tensors == first.tensors


def test_what_only_one_of_them_has_measured_is_kept() -> None:
    alone = Measured({TAKEN: measured(ROWS)[TAKEN]}, {}, 1)
    found = merged(measured(ROWS), alone)
    assert found[TAKEN].count == 180
    assert found[KEY].count == 90
    # A side alone of a variable is of the same model.
    assert found.notes == ()


def test_what_has_nothing_in_common_is_told(tmp_path: Path) -> None:
    other = Measured({("lm/kernel", "produced"): measured(ROWS)[KEY]}, {}, 1)
    parts = {"a": measured(ROWS), "b": measured(ROWS), "c": other}
    paths = {n: write_measured(tmp_path / f"{n}.safetensors", p) for n, p in parts.items()}
    told = (
        "{}: no variable of it, such as lm/kernel, is in {}, such as net/kernel, so nothing was "
        "added up; if they are of two models, leave one out"
    )
    found = merged_files([paths["a"], paths["c"]])
    assert found.notes == (told.format(paths["c"], paths["a"]),)
    assert {key: found[key].count for key in found} == {
        KEY: 90,
        TAKEN: 90,
        ("lm/kernel", "produced"): 90,
    }
    assert merged_files(paths.values()).notes == (told.format(paths["c"], "those before it"),)
    outcome = run_command("stats", "--merge", paths["a"], paths["c"])
    assert outcome.exit_code == 0, outcome.output
    assert f"note    {found.notes[0]}" in outcome.output.splitlines()


def test_what_cannot_be_merged_names_the_file(tmp_path: Path) -> None:
    rows = {"a": ROWS, "b": ROWS[:40], "c": ROWS[40:]}
    for name, part in rows.items():
        write_measured(tmp_path / f"{name}.safetensors", measured(part, covariance=name == "a"))
    path = [tmp_path / f"{name}.safetensors" for name in rows]
    for order, said in {
        (0, 1): f"{path[1]}: no covariance of it, which {path[0]} has;",
        (1, 0): f"{path[1]}: no covariance of it, which {path[0]} has;",
        (1, 2, 0): f"those before it: no covariance of it, which {path[0]} has;",
    }.items():
        with pytest.raises(UsageError) as caught:
            merged_files(path[place] for place in order)
        assert str(caught.value).startswith(f"net/kernel: {said}")
    with pytest.raises(UsageError, match="net/kernel: number 2: no covariance of it, which number"):
        merged(measured(ROWS, covariance=True), measured(ROWS))
    other = Measured({KEY: Moments.of(5)}, {}, 1)
    with pytest.raises(UsageError, match="number 1 has 3 units of it, and number 2 has 5;"):
        merged(measured(ROWS), other)


def test_an_output_that_exists(tmp_path: Path) -> None:
    path = write_measured(tmp_path / "stats.safetensors", measured(ROWS))
    with pytest.raises(PlanError, match=r"stats.safetensors exists; use --force"):
        write_measured(path, measured(ROWS))
    write_measured(path, measured(ROWS[:4]), force=True)
    assert read_measured(path)[KEY].count == 4
    assert [p.name for p in tmp_path.iterdir()] == ["stats.safetensors"]
    with pytest.raises(UsageError, match=r"a file of statistics is NAME.safetensors"):
        write_measured(tmp_path / "stats.npz", measured(ROWS))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda e: e.pop("net/kernel/std"), "net/kernel: it has no std; to be merged"),
        (lambda e: e.update({"net/kernel/std": np.ones(4)}), r"float64 \[4\]; it must be numbers"),
        (lambda e: e.update({"net/kernel/mean": np.ones(())}), r"mean is \[\]; it must be"),
        (lambda e: e.update({"net/kernel/mean": np.zeros(0)}), r"mean is \[0\]; it must be"),
        (lambda e: e.update({"net/kernel/std": np.full(3, 1e200)}), "std has values beyond 1e"),
        (lambda e: e.update({"net/kernel/max": np.full(3, np.nan)}), "has infinities or NaN"),
        (lambda e: e.update({"net/kernel/count": np.array(0)}), "count is 0, no number of"),
        (lambda e: e.update({"net/kernel/count": np.array(1.5)}), "count is 1.5, no"),
        (lambda e: e.update({"net/kernel/std": -np.ones(3)}), "has values below 0"),
        (lambda e: e.update({"net/kernel/max": np.full(3, -99.0)}), "its min exceeds its max"),
        (lambda e: e.update({"net/kernel/zeros": np.full(3, 2.0)}), "its zeros exceed 1"),
        (lambda e: e.clear() or e.update({"a": np.ones(3)}), "it is no file of statistics"),
    ],
)
def test_damaged_files(
    tmp_path: Path, change: Callable[[dict[str, Array]], object], said: str
) -> None:
    path = write_measured(tmp_path / "stats.safetensors", measured(ROWS))
    entries = load_file(path)
    change(entries)
    save_file(entries, path)
    with pytest.raises(InputError, match=said):
        read_measured(path)


@pytest.mark.parametrize("text", ["[", "[1]", '{"net/kernel": 3}', "[" * 100_000])
def test_metadata_that_says_something_else(tmp_path: Path, text: str) -> None:
    path = write_measured(tmp_path / "stats.safetensors", measured(ROWS))
    save_file(load_file(path), path, {"tensors": text, "batches": "9" * 5000})
    found = read_measured(path)
    assert found.tensors == {}
    assert found.batches is None


def test_what_is_no_file_of_statistics(tmp_path: Path) -> None:
    write_measured(tmp_path / "a.safetensors", measured(ROWS))
    whole = (tmp_path / "a.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[:300])
    (tmp_path / "short.safetensors").write_bytes(whole[:5])
    (tmp_path / "inside.safetensors").mkdir()
    np.savez(tmp_path / "x.npz", x=ROWS)
    os.mkfifo(tmp_path / "pipe.safetensors")
    no_file = "it is no file of statistics, which is NAME.safetensors"
    for name, said in {
        "gone.safetensors": "there is no such file",
        "gone/a.safetensors": "there is no such file",
        "inside.safetensors": "it is a directory, and no file of statistics",
        "x.npz": no_file,
        "pipe.safetensors": no_file,
        "cut.safetensors": "the file is cut short",
        "short.safetensors": "5 bytes are too short",
    }.items():
        for paths in ((name, "a.safetensors"), ("a.safetensors", name)):
            outcome = run_command("stats", "--merge", *(tmp_path / path for path in paths))
            message = told(outcome, 3)
            assert message.startswith(f"{tmp_path / name}: ")
            assert said in message
    with pytest.raises(InputError, match=r"gone.safetensors: there is no such file$"):
        read_measured(tmp_path / "gone.safetensors")
    scale = ["--plugin", "scale", "--scale-statistics", tmp_path / "gone.safetensors"]
    outcome = run_command("ckpt", tmp_path / "a.safetensors", *scale)
    assert told(outcome, 3).endswith("gone.safetensors: there is no such file")
