"""What goes wrong: damaged sources, disks that fail, and strategies that are not right."""

from __future__ import annotations

import functools
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from command_line import values
from conftest import case
from converter_plugins.drop import Drop
from converter_plugins.keep import Keep

from converter import (
    Array,
    Checkpoint,
    ConverterError,
    InputError,
    Region,
    Strategy,
    UsageError,
    Variable,
    convert,
    open_checkpoint,
)
from converter.cli import report
from converter.dtype import BY_NAME


def test_flipped_byte(tmp_path: Path) -> None:
    source = case("bad_flipped_data_byte").path
    for to in ("tf", "safetensors"):
        with pytest.raises(InputError, match="checksum") as caught:
            convert(source, tmp_path / "out", to=to)
        assert caught.value.exit_code == 3
        assert list(tmp_path.iterdir()) == []
        # The bytes that are there are copied as they are, and recorded with their own checksums.
        convert(source, tmp_path / "out", to=to, verify_source=False)
        damaged = {n: v.read().tobytes() for n, v in open_checkpoint(source, verify=False).items()}
        assert values(tmp_path / "out") == damaged
        shutil.rmtree(tmp_path / "out")


@dataclass(frozen=True)
class Does(Strategy):
    """Do what a function does."""

    name: ClassVar[str] = "does"
    apply_: Callable[[Checkpoint], Any]

    def apply(self, checkpoint: Checkpoint) -> Iterable[Variable]:
        given: Iterable[Variable] = self.apply_(checkpoint)
        return given


def _spoils(directory: Path, ending: str, change: Callable[[Path], None]) -> Does:
    """Return a strategy that does something to the file that is being written.

    A strategy runs in the middle of the writing: as good a place as any for a disk to fail in.
    """

    def apply(checkpoint: Checkpoint) -> Iterator[Variable]:
        big = np.arange(1 << 19, dtype=np.float32)
        yield Variable("a", BY_NAME["float32"], big.shape, lambda region: big[region])

        def load(region: Region) -> Array:
            for file in directory.rglob(f"*{ending}"):
                # What was handed on is written by a thread, while the next piece is loaded.
                while file.stat().st_size < big.nbytes // 2:
                    time.sleep(0.01)
                change(file)
            return np.zeros(2, np.float32)

        yield Variable("b", BY_NAME["float32"], (2,), load)

    return Does(apply)


def _flip(file: Path) -> None:
    with file.open("r+b") as opened:
        opened.seek(4096)
        byte = opened.read(1)[0]
        opened.seek(4096)
        opened.write(bytes([byte ^ 1]))


def _zero(file: Path) -> None:
    with file.open("r+b") as opened:
        opened.write(bytes(4))


@pytest.mark.parametrize(
    ("to", "ending", "change", "message"),
    [
        ("tf", ".data-00000-of-00001", _flip, "a has other values than were meant"),
        ("safetensors", ".safetensors", _flip, "a has other values than were meant"),
        ("safetensors", ".safetensors", _zero, "cannot be read back"),
    ],
)
def test_output_is_not_trusted(
    to: str, ending: str, change: Callable[[Path], None], message: str, tmp_path: Path, lstm: str
) -> None:
    output = tmp_path / "out"
    with pytest.raises(ConverterError, match=message) as caught:
        convert(lstm, output, [_spoils(tmp_path, ending, change)], to=to)
    assert caught.value.exit_code == 1
    assert "nothing was published" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def _wrong_shape(checkpoint: Checkpoint) -> Iterator[Variable]:
    for variable in checkpoint.values():
        yield variable.derive(lambda region: np.zeros((3, 5), np.float32), shape=(2, 5))


def _wrong_dtype(checkpoint: Checkpoint) -> Iterator[Variable]:
    for variable in checkpoint.values():
        yield variable.map(lambda values: values.astype(np.float64))


def _two_alike(checkpoint: Checkpoint) -> Iterator[Variable]:
    for variable in checkpoint.values():
        yield variable.rename("same")


def _loads_a_list(checkpoint: Checkpoint) -> Iterator[Variable]:
    for variable in checkpoint.values():
        yield variable.derive(lambda region: [1.0, 2.0])  # type: ignore[arg-type, return-value]


def _raises(checkpoint: Checkpoint) -> Iterator[Variable]:
    yield from list(checkpoint.values())[:1]
    raise KeyError("no such thing")


class Noisy(Strategy):
    name: ClassVar[str] = "noisy"

    def notes(self, checkpoint: Checkpoint) -> Iterable[str]:
        raise OSError("no such notes")


def test_notes_that_raise_are_told_too(tmp_path: Path, lstm: str) -> None:
    with pytest.raises(ConverterError, match="noisy: the strategy raised OSError: no such notes"):
        convert(lstm, tmp_path / "out", [Noisy()])


@pytest.mark.parametrize("shard_size", [0, -1])
def test_shards_have_a_size(shard_size: int, tmp_path: Path, lstm: str) -> None:
    with pytest.raises(UsageError, match="must be a positive number of bytes"):
        convert(lstm, tmp_path / "out", shard_size=shard_size)
    assert list(tmp_path.iterdir()) == []


def _raises_later(checkpoint: Checkpoint) -> Iterator[Variable]:
    def load(region: Region) -> Array:
        return np.ones(3) @ np.ones(4)

    for variable in checkpoint.values():
        yield variable.derive(load)


@pytest.mark.parametrize(
    ("apply", "parts"),
    [
        (_wrong_shape, ["float32 [3, 5] was loaded where the plan says float32 [2, 5]"]),
        (_wrong_dtype, ["charlm/embedding: float64 ", "where the plan says float32"]),
        (_loads_a_list, ["float64 [2] was loaded"]),
        (
            _two_alike,
            ["same: two variables", "charlm/embedding", "charlm/rnn/lstm_cell/bias"],
        ),
        (_raises, ["does", "KeyError", "no such thing"]),
        (_raises_later, ["charlm/embedding", "ValueError"]),
        (lambda checkpoint: list(checkpoint), ["does", "str", "Variable is expected"]),
        (lambda checkpoint: None, ["does", "TypeError"]),
        (lambda checkpoint: [None], ["does", "NoneType"]),
    ],
    ids=["shape", "dtype", "list", "alike", "raises", "raises later", "names", "nothing", "none"],
)
def test_what_a_strategy_does_wrong_is_told(
    apply: Callable[[Checkpoint], Any], parts: list[str], tmp_path: Path, lstm: str
) -> None:
    keep = Keep(("charlm/embedding", "charlm/rnn/lstm_cell/bias"))
    for to in ("tf", "safetensors"):
        with pytest.raises(ConverterError) as caught:
            convert(lstm, tmp_path / "out", [keep, Does(apply)], to=to)
        for part in parts:
            assert part in str(caught.value)
        assert "\n" not in str(caught.value)
        assert list(tmp_path.iterdir()) == []


def test_variables_of_another_checkpoint(tmp_path: Path, lstm: str) -> None:
    """A strategy may take variables from elsewhere, and the next one may drop them again."""
    other = open_checkpoint(case("tf012_v2_gru_seqlen").path)

    def merge(checkpoint: Checkpoint) -> Iterator[Variable]:
        yield from checkpoint.values()
        yield from (v for v in other.values() if v.name not in checkpoint)

    foreign = sorted(set(other) - set(open_checkpoint(lstm)))
    result = convert(lstm, tmp_path / "out", [Does(merge), Drop((foreign[0],))], to="tf")
    assert set(open_checkpoint(tmp_path / "out")) == {*open_checkpoint(lstm), *foreign[1:]}
    assert list(report.plan_lines(result.plan))


def test_values_that_are_not_those_stored_are_a_bug_of_the_strategy(
    tmp_path: Path, lstm: str
) -> None:
    def negated(checkpoint: Checkpoint) -> Iterator[Variable]:
        for variable in checkpoint.values():
            yield replace(variable, load=functools.partial(_negative, variable))

    with pytest.raises(ConverterError, match="still `stored` as the old one"):
        convert(lstm, tmp_path / "out", [Does(negated)])


def _negative(variable: Variable, region: Region) -> Array:
    negative: Array = -variable.load(region)
    return negative
