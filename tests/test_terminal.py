"""The program as a process: signals, progress, terminals and pipes."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import pytest
from command_line import run
from conftest import case

from converter.cli.text import Progress


def _start(*arguments: object, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "converter", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, **environment},
        text=True,
    )


def _wait_for(condition: Iterable[object], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not any(condition):
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.02)


def test_progress_tells_no_time_before_a_hundredth_is_done(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = iter([0.0, 6.0, 20.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(now))
    progress = Progress("m")
    progress(24, 14_700)
    progress(200, 14_700)
    assert capsys.readouterr().err.splitlines() == [
        "m: 24 B of 14.7 kB (0 %)",
        "m: 200 B of 14.7 kB (1 %), 10 B/s, 1450 s left",
    ]


def test_progress_counts_from_the_first_byte(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = iter([0.0, 300.0, 320.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(now))
    progress = Progress("m")
    progress(0, 14_700)
    progress(200, 14_700)
    assert capsys.readouterr().err.splitlines() == [
        "m: 200 B of 14.7 kB (1 %), 10 B/s, 1450 s left",
    ]


@pytest.mark.slow
@pytest.mark.parametrize("to", ["tf", "safetensors"])
def test_interrupted(times: Path, to: str, tmp_path: Path, lstm: str) -> None:
    output = tmp_path / "a" / "b"
    process = _start("ckpt", lstm, "--plugin", times, "--times-seconds", "0.3",
                     "-o", output, "--to", to)  # fmt: skip
    end = time.monotonic() + 30
    while not list(tmp_path.rglob("*.safetensors" if to == "safetensors" else "*.data-*")):
        assert time.monotonic() < end
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=30)
    assert process.returncode == 130
    assert stderr.splitlines()[-1] == "Error: interrupted; nothing was published"
    assert "Traceback" not in stderr
    assert "wrote" not in stdout
    assert {path.name for path in tmp_path.iterdir()} - {"__pycache__"} == {"times.py"}


@pytest.mark.slow
def test_progress_is_plain_lines_off_a_terminal(times: Path, tmp_path: Path, lstm: str) -> None:
    process = _start("ckpt", lstm, "--plugin", times, "--times-seconds", "0.1",
                     "-o", tmp_path / "x.safetensors")  # fmt: skip
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 0
    lines = stderr.splitlines()
    assert lines
    for line in lines:
        assert re.fullmatch(
            r"model\.ckpt-300: [\d.]+ k?B of 167 kB \(\d+ %\)(, [\d.]+ k?B/s, \d+ s left)?", line
        )
    assert "\x1b" not in stdout + stderr
    assert "\r" not in stdout + stderr


@pytest.mark.slow
def test_progress_is_one_line_on_a_terminal(times: Path, tmp_path: Path, lstm: str) -> None:
    import pty

    parent, child = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "converter", "ckpt", lstm, "--plugin", str(times),
         "--times-seconds", "0.1", "-o", str(tmp_path / "x.safetensors")],
        stdout=subprocess.DEVNULL, stderr=child, env={**os.environ, "NO_COLOR": "1"},
    )  # fmt: skip
    os.close(child)
    shown = b""
    while True:
        try:
            data = os.read(parent, 4096)
        except OSError:
            break
        if not data:
            break
        shown += data
    os.close(parent)
    assert process.wait(timeout=60) == 0
    assert shown.count(b"\r\x1b[K") > 3
    assert b"\n" not in shown
    assert shown.endswith(b"\r\x1b[K")
    assert b"\x1b[1m" not in shown
    assert b"\x1b[3" not in shown


@pytest.mark.slow
def test_progress_escapes_names(times: Path, tmp_path: Path) -> None:
    name = "a\x1bc\udcff"
    for ending in ("index", "data-00000-of-00001"):
        source = case("tf115_v2_slash_prefix").directory / "experiment" / f".{ending}"
        shutil.copy(source, tmp_path / f"{name}.{ending}")
    process = _start("ckpt", tmp_path / name, "--plugin", times, "--times-seconds", "0.7",
                     "-o", tmp_path / "x.safetensors")  # fmt: skip
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 0, stderr
    assert stderr.startswith(r"a\x1bc\udcff: ")
    assert "\x1b" not in stdout


@pytest.mark.slow
def test_bold_is_for_terminals_that_like_it(lstm: str) -> None:
    import pty

    for environment, is_bold in (({}, True), ({"NO_COLOR": "1"}, False)):
        parent, child = pty.openpty()
        subprocess.run(
            [sys.executable, "-m", "converter", "inspect", lstm],
            stdout=child,
            check=True,
            env={**{k: v for k, v in os.environ.items() if k != "NO_COLOR"}, **environment},
        )
        os.close(child)
        shown = os.read(parent, 65536)
        os.close(parent)
        assert (b"\x1b[1m" in shown) is is_bold
    assert "\x1b" not in run("inspect", lstm).stdout


def test_fast_work_shows_no_progress(tmp_path: Path, lstm: str) -> None:
    assert run("ckpt", lstm, "-o", tmp_path / "out").stderr == ""


@pytest.mark.slow
def test_the_reader_of_our_output_goes_away(lstm: str) -> None:
    command = f"{sys.executable} -m converter ckpt {lstm} -v | head -1"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True)
    assert done.stdout.startswith("read ")
    assert done.stderr == ""
