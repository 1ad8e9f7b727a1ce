"""The scripts that measure what resizing does to models say what they should."""

from __future__ import annotations

import math
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import case

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]


def run(script: str, *arguments: str | Path) -> tuple[int, list[str]]:
    """Return the exit code of a script and the lines that it prints."""
    command = [sys.executable, ROOT / "benchmarks" / script, *arguments]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.stdout, done.stderr
    return done.returncode, done.stdout.splitlines()


def rows(lines: list[str]) -> list[list[str]]:
    """Return the cells of the Markdown tables among lines."""
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line[:1] == "|"]


def test_a_sweep_tells_models_that_stay_from_one_whose_outputs_are_others(tmp_path: Path) -> None:
    source = case("tf14_v2_rotation")
    shutil.copytree(source.directory, tmp_path / "as_it_was")
    spoilt = shutil.copytree(source.directory, tmp_path / "spoilt")
    io = source.record["io"]
    outputs = set(io["outputs"]) | set(io["states"])
    arrays = np.load(source.directory / io["file"])
    changed = {key: arrays[key] + (0.1 if key in outputs else 0) for key in arrays}
    (spoilt / io["file"]).unlink()
    np.savez(spoilt / io["file"], **changed)
    code, (_, *lines, last) = run("sweep.py", tmp_path, "--steps", "2")
    found = {tuple(line.split()[:3]): line.split()[3:] for line in lines if line[0] != " "}
    wrong = [line for line in lines if line[0] == " "]
    assert list(found) == [
        (name, "100.0%", way)
        for name in ("as_it_was", "spoilt")
        for way in ("zeros", "random", "copies")
    ]
    for (name, _, way), (exact, others, worst, *trained) in found.items():
        # Its hidden units and its outputs, alone and at once: all but what it is fed.
        assert (exact, others[0]) == ("4", "0")
        assert (float(worst) < 1e-5) == (name == "as_it_was")
        assert [math.isfinite(float(loss)) for loss in trained if loss != "to"] == (
            [] if way == "copies" else [True, True]
        )
    pattern = r"    (zeros|random|copies) .+: \S+ differs by [\d.]+, and is called exact"
    assert [bool(re.fullmatch(pattern, line)) for line in wrong] == [True] * 12
    assert (code, last) == (1, "12 failures")


def test_the_table_of_losses_in_numpy_is_the_documented_one() -> None:
    code, lines = run("shrink.py")
    assert code == 0
    documented = (ROOT / "docs" / "resize.md").read_text().splitlines()
    start = documented.index(lines[0])
    assert_alike(rows(lines), rows(documented[start : start + len(lines)]), 0.002)


def test_the_table_of_losses_is_the_documented_one(tmp_path: Path) -> None:
    name = "tf10_v2_gatewise_lstm"
    (tmp_path / name).symlink_to(case(name).directory)
    code, lines = run("shrinking.py", tmp_path)
    assert code == 0
    documented = rows((ROOT / "docs" / "shrinking.md").read_text().splitlines())
    wanted = [*documented[:2], *(row for row in documented if row[0] == name)]
    assert len(wanted) == 4
    # The kernels of other processors round differently.
    assert_alike(rows(lines), wanted, 0.02)


def test_principal_directions_of_a_stream_cost_least() -> None:
    code, lines = run("streams.py", "--units", "16", "--steps", "250")
    assert code == 0
    (head, _, *found) = rows(lines)
    documented = rows((ROOT / "docs" / "shrinking.md").read_text().splitlines())
    assert head in documented
    assert [row[:2] for row in found] == [
        [name, f"16 to {units}"]
        for name in ("layer normalisation", "by root mean squares")
        for units in (12, 8)
    ]
    for name, _, *costs in found:
        before, *after = map(float, costs)
        truncated, *others, turned = (cost - before for cost in after)
        assert turned < (0.5 if name == "layer normalisation" else 0.75) * truncated
        if name == "layer normalisation":
            assert turned < min(others)


def assert_alike(found: list[list[str]], wanted: list[list[str]], tolerance: float) -> None:
    """Compare tables: the texts, and the numbers within a tolerance."""
    number = re.compile(r"\d+\.\d+")
    assert [[number.sub("#", cell) for cell in row] for row in found] == [
        [number.sub("#", cell) for cell in row] for row in wanted
    ]
    np.testing.assert_allclose(
        [float(text) for row in found for cell in row for text in number.findall(cell)],
        [float(text) for row in wanted for cell in row for text in number.findall(cell)],
        atol=tolerance,
    )
