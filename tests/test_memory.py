"""A variable of any size and shape passes through little memory."""

from __future__ import annotations

import ctypes
import mmap
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from converter import Array, Checkpoint, Region, Variable, shape_of
from converter.dtype import BY_NAME
from converter.pipeline import run
from converter.plan import make_plan
from converter.target import parse_target

pytestmark = pytest.mark.slow

MEGABYTES = 600
LIMIT_MB = 150

# Of this process alone: the maximum that getrusage tells is inherited from the one that started it.
MEASURED = """
import sys
from converter.cli import cli
cli.main(sys.argv[1:], standalone_mode=False)
with open("/proc/self/status") as status:
    print(next(line for line in status if line.startswith("VmHWM")).split()[1])
"""


def _values(region: Region) -> Array:
    return np.full(shape_of(region), 1.5, np.float32)


@pytest.fixture(scope="module", params=["[1, n]", "[n, 3]"])
def source(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Path, tuple[int, int]]]:
    count = MEGABYTES * 250_000
    shape = (1, count) if request.param == "[1, n]" else (count // 3, 3)
    directory = tmp_path_factory.mktemp("large")
    large = Variable("large", BY_NAME["float32"], shape, _values)
    small = Variable.from_array("small", np.zeros(3, np.float32))
    target = parse_target(directory, name="source", to="tf")
    run(make_plan(Checkpoint([large, small]), [], target), sync=False, verify_output=False)
    yield directory, shape
    shutil.rmtree(directory)


@pytest.mark.parametrize("to", ["tf", "safetensors"])
@pytest.mark.parametrize("step", ["copy", "pad", "cast", "scale", "reinit"])
def test_peak_is_bounded(
    source: tuple[Path, tuple[int, int]], step: str, to: str, tmp_path: Path
) -> None:
    directory, (rows, columns) = source
    options = {
        "copy": [],
        "pad": ["--plugin", "pad", "--shape", f"large={rows + 1},{columns + 1}"],
        "cast": ["--cast", "bfloat16"],
        "scale": ["--scale", "large=2"],
        "reinit": ["--reinit", "large=glorot_uniform"],
    }[step]
    command = [sys.executable, "-c", MEASURED, "ckpt", str(directory), *options, "--no-sync", "-q"]
    try:
        done = subprocess.run(
            [*command, "-o", str(tmp_path / "out"), "--to", to],
            check=True,
            capture_output=True,
            text=True,
        )
    finally:
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
    assert int(done.stdout) / 1024 < LIMIT_MB, f"{int(done.stdout) // 1024} MB"


FAULTS = """
import resource, sys
from converter.cli import cli
cli.main(sys.argv[1:], standalone_mode=False)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="the C library is not glibc")
def test_blocks_use_the_memory_of_those_before_them(tmp_path: Path) -> None:
    faults = []
    for count in (2, 12):
        directory = tmp_path / str(count)
        variables = [
            Variable(f"layer_{k}/{name}", BY_NAME["float32"], (768, columns), _values)
            for k in range(count)
            for name, columns in (("key", 768), ("dense", 3072))
        ]
        target = parse_target(directory, name="source", to="tf")
        run(make_plan(Checkpoint(variables), [], target), sync=False, verify_output=False)
        grown = ["--plugin", "pad", "--shape", "*/key=845,845", "--shape", "*/dense=845,3380"]
        command = [sys.executable, "-c", FAULTS, "ckpt", str(directory), *grown, "--no-sync", "-q"]
        done = subprocess.run(
            [*command, "-o", str(directory / "out")], check=True, capture_output=True, text=True
        )
        faults.append(int(done.stdout))
    few, many = faults
    more_pages = 10 * 845 * (845 + 3380) * 4 // mmap.PAGESIZE
    assert many - few < more_pages / 10, f"{few} faults, {many} faults of {more_pages} more pages"
