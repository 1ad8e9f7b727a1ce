"""Shared by all tests: where the real checkpoints are, and what was recorded about them."""

from __future__ import annotations

import functools
import hashlib
import importlib
import json
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest
from command_line import TIMES

from converter import Checkpoint, Variable, open_checkpoint
from converter.registry import load
from converter.structure.infer import infer
from converter.structure.structure import Structure

DATA = Path(__file__).parent / "data"

# For the programs that tests start: numpy would make threads that they have no use for.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


@dataclass(frozen=True)
class Case:
    """A real checkpoint with its recorded contents; tests/data/README.md tells the fields."""

    directory: Path
    record: dict[str, Any]

    @property
    def name(self) -> str:
        return self.directory.name

    @property
    def path(self) -> str:
        """What people would pass: the prefix, the frozen graph, or the SavedModel directory."""
        return str(self.directory / (self.record.get("graph_def") or self.record["prefix"]))

    def variables(self) -> dict[str, dict[str, Any]]:
        return {v["name"]: v for v in self.record["variables"]}


def all_cases() -> Iterator[Case]:
    for file in sorted(DATA.glob("*/case.json")):
        yield Case(file.parent, json.loads(file.read_text()))


CASES = [case for case in all_cases() if case.record["format"] != "keras"]
VALID = [case for case in CASES if case.record["damaged"] is False]
DAMAGED = [case for case in CASES if case.record["damaged"] is not False]


def case(name: str) -> Case:
    return next(case for case in all_cases() if case.name == name)


@functools.cache
def _structure(path: str) -> tuple[Checkpoint, Structure]:
    checkpoint = open_checkpoint(path)
    return checkpoint, infer(checkpoint)


registry = functools.cache(load)
"""The installed plugins, loaded once."""


def structure_of(case: Case) -> tuple[Checkpoint, Structure]:
    """Return a checkpoint and its structure, which all tests share: nobody may change them."""
    return _structure(case.path)


def digest(variable: Variable) -> str | list[str]:
    """Return the SHA-256 of the bytes, or the strings as hex: what `case.json` records."""
    values = variable.read()
    if variable.dtype.name == "string":
        return [value.hex() for value in values.ravel()]
    return hashlib.sha256(np.asarray(values, order="C").tobytes()).hexdigest()


def expected(record: dict[str, Any]) -> str | list[str]:
    recorded: str | list[str] = record["sha256"] or record["strings_hex"]
    return recorded


def slow(value: Any) -> Any:
    """Return a parameter of a test that is slow, of which another one runs always."""
    return pytest.param(value, marks=pytest.mark.slow)


def needed(name: str) -> Any:
    """Import what only some tests need; without it they are skipped, but not where CI runs."""
    try:
        return importlib.import_module(name)
    except ImportError:
        if os.environ.get("CI"):
            raise
        return pytest.skip(f"{name} is not installed")


@pytest.fixture
def must_end() -> Iterator[None]:
    """A watchdog for input that is made to take for ever: linear work ends in a second or two."""

    def bark(number: int, frame: FrameType | None) -> None:
        raise TimeoutError("still at work after two minutes")

    before = signal.signal(signal.SIGALRM, bark)
    signal.alarm(120)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def lstm() -> str:
    """A character language model by TensorFlow 1.4: LSTM, Adam slots, moving averages."""
    return case("tf14_v2_charlm_lstm_ema").path


@pytest.fixture
def times(tmp_path: Path) -> Path:
    file = tmp_path / "times.py"
    file.write_text(TIMES)
    return file


@pytest.fixture(params=["frames", "functions"])
def flow(request: pytest.FixtureRequest, tf: Any) -> Iterator[str]:
    """Control flow of both kinds: with loop frames as in TensorFlow 1, and in functions.

    Args:
        request: which of them.
        tf: TensorFlow 1, a fixture of the module.
    """
    was = tf.control_flow_v2_enabled()
    (tf.enable_control_flow_v2 if request.param == "functions" else tf.disable_control_flow_v2)()
    yield request.param
    (tf.enable_control_flow_v2 if was else tf.disable_control_flow_v2)()
