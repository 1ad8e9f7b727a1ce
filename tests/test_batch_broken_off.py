"""`convert batch` that is interrupted or killed, or whose processes die; and the run after it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from command_line import TIMES, tree
from fleet import make_fleet, times_of

from converter import open_checkpoint

pytestmark = pytest.mark.slow


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make_fleet(tmp_path / "in")


def _start(
    root: Path, out: Path, seconds: float, env: dict[str, str] | None = None
) -> subprocess.Popen[str]:
    plugin = root.parent / "times.py"
    plugin.write_text(TIMES)
    command = ["batch", root, "-o", out, "--jobs", 2, "--to", "tf"]
    command += ["--plugin", plugin, "--times-seconds", seconds]
    return subprocess.Popen(
        [sys.executable, "-m", "converter", *map(str, command)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=env,
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


def test_an_interruption_waits_for_no_job(root: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = _start(root, out, 600)
    _wait_until(lambda: _half_done(out), "half a result")
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=300)  # A single variable takes ten minutes.
    assert process.returncode == 130
    assert not out.exists()


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


def test_interrupted_while_processes_prepare(root: Path, tmp_path: Path) -> None:
    """Their first thread takes seconds to start here, as on a machine that is busy."""
    (tmp_path / "sitecustomize.py").write_text(
        "import threading, time\n"
        "start = threading.Thread.start\n"
        "def slow(self):\n"
        "    start(self)\n"
        "    if '_end_with_parent' in repr(self._target):\n"
        "        open(__file__ + '.reached', 'w').close()\n"
        "        time.sleep(600)\n"
        "threading.Thread.start = slow\n"
    )
    process = _start(root, tmp_path / "out", 0, {**os.environ, "PYTHONPATH": str(tmp_path)})
    _wait_until((tmp_path / "sitecustomize.py.reached").exists, "the processes")
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in stderr


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


def test_a_killed_worker_takes_nothing_along(root: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = _start(root, out, 0.02)
    _wait_until(lambda: _half_done(out), "half a result")
    os.kill(_workers(process.pid)[0], signal.SIGKILL)
    _check_result(root, out, process)


def test_ended_in_a_destructor(root: Path, tmp_path: Path) -> None:
    """Python drops what is raised there; the process ends all the same."""
    plugin = tmp_path / "dropping.py"
    plugin.write_text(
        TIMES.replace("time.sleep(self.seconds)", "Ends()").replace(
            "import time",
            "import os, signal\n"
            "class Ends:\n"
            "    def __del__(self):\n"
            "        os.kill(os.getpid(), signal.SIGTERM)\n"
            "        return None\n",
        )
    )
    command = [
        "batch",
        str(root / "a" / "lstm"),
        "-o",
        str(tmp_path / "out"),
        "--plugin",
        str(plugin),
    ]
    done = subprocess.run(
        [sys.executable, "-m", "converter", *command], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 5, done.stderr
    assert "its process died" in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


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
