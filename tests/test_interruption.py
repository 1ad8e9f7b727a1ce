"""Ctrl-C or a failing disk at any change of the file system: the output is absent or complete.

Here the process goes on, and cleans up after itself; test_publish.py kills it.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from command_line import tree, values
from conftest import case

from converter import ConverterError, InputError, convert

pytestmark = pytest.mark.slow

CHANGES = ("rename", "replace", "link", "unlink", "mkdir", "rmdir", "fsync", "open")


class Stepper:
    """Lets some changes of the file system pass, and raises in the place of, or after, the next."""

    def __init__(self, steps: int, error: BaseException, *, after: bool) -> None:
        self.left = steps
        self.error = error
        self.after = after
        self.raised = False

    def wrap(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*arguments: Any, **named: Any) -> Any:
            self.left -= 1
            strikes = self.left < 0 and not self.raised
            if strikes and not self.after:
                self.raised = True
                raise self.error
            result = function(*arguments, **named)
            if strikes:
                self.raised = True
                raise self.error
            return result

        return wrapper


def _found(path: Path) -> dict[str, bytes] | None:
    try:
        return values(path)
    except InputError:
        return None


@pytest.fixture(params=["out/model.safetensors", "out sharded", "out tf", "out tf sharded"])
def kind(request: pytest.FixtureRequest) -> tuple[str, str, int | None]:
    output, *words = str(request.param).split()
    sharded = "sharded" in words
    return output, "tf" if "tf" in words else "safetensors", 4000 if sharded else None


def _errors() -> Iterator[tuple[str, BaseException, bool]]:
    yield "Ctrl-C before", KeyboardInterrupt(), False
    yield "Ctrl-C after", KeyboardInterrupt(), True
    yield "no space", OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), False


@pytest.mark.parametrize(
    ("error", "after"),
    [pytest.param(error, after, id=name) for name, error, after in _errors()],
)
@pytest.mark.parametrize("before", ["absent", "empty directory", "other output"])
def test_at_any_change(
    kind: tuple[str, str, int | None],
    before: str,
    error: BaseException,
    after: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    output, to, shard_size = kind
    old_source = case("tf012_v2_lstm_peephole").path
    new_source = case("tf012_v2_gru_seqlen").path
    old, new = values(old_source), values(new_source)
    fresh = tmp_path / "fresh"
    convert(new_source, fresh / output, to=to, shard_size=shard_size, sync=False)
    expected = tree(fresh)
    steps = 0
    while True:
        place = tmp_path / str(steps)
        place.mkdir()
        target = place / output
        if before == "empty directory":
            (place / "out").mkdir()
        elif before == "other output" and to == "safetensors":
            convert(old_source, target, shard_size=3000 if shard_size else None, sync=False)
        elif before == "other output":
            other = place / "out" / "gru.index"
            convert(old_source, other, shard_size=shard_size and 1000, sync=False)
        force = before == "other output"
        stepper = Stepper(steps, error, after=after)
        with monkeypatch.context() as patched:
            for name in CHANGES:
                patched.setattr(os, name, stepper.wrap(getattr(os, name)))
            raised: BaseException | None = None
            try:
                convert(new_source, target, to=to, shard_size=shard_size, force=force)
            except (KeyboardInterrupt, ConverterError) as caught:
                raised = caught
        found = _found(target)
        assert found in ([new, old] if force else [new, None]), steps
        if isinstance(raised, ConverterError):
            assert found != new, f"{raised}: at {steps}"
        if not stepper.raised:
            assert tree(place) == expected
            break
        # What was not there is not in the way of the next run, which needs no --force.
        again = force or found == new
        convert(new_source, target, to=to, shard_size=shard_size, force=again, sync=False)
        assert tree(place) == expected, steps
        steps += 1
    assert steps > 8
