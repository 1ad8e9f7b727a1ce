"""What has to hold when somebody opens a damaged checkpoint.

It is opened, read, shown and converted, and nothing but InputError and PlanError may come of it,
within a time and an amount of memory.
"""

from __future__ import annotations

import contextlib
import json
import resource
import shutil
import signal
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType

from click.testing import CliRunner
from mutants import Mutant

from converter import (
    Checkpoint,
    ConverterError,
    InputError,
    PlanError,
    Variable,
    convert,
    open_checkpoint,
)
from converter.cli import cli, report
from converter.errors import printable
from converter.plan import make_plan
from converter.target import parse_target

SECONDS = 5
"""What one mutant may take; they take milliseconds."""

FREE_BYTES = 24 << 20
FACTOR = 60
"""What may be allocated at a time: so much, and so many times the size of the files.

A string of one byte becomes a `bytes` object and some integers.
"""

_ADDRESS_SPACE = 512 << 20
_READ_BYTES = 16 << 20
_CONVERTED_BYTES = 1 << 20


class Slow(BaseException):
    """A mutant took too long."""


def check(mutant: Mutant) -> str:
    """Return what became of a mutant: `opened`, or the error in one word.

    Raises:
        AssertionError: something else happened than may; it says how to see it again.
    """
    with TemporaryDirectory() as directory:
        place = Path(directory, "in")
        path = mutant.build(place)
        size = sum(file.stat().st_size for file in place.rglob("*") if file.is_file())
        tracing = tracemalloc.is_tracing()
        if not tracing:
            tracemalloc.start()
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        try:
            with time_limit(SECONDS), memory_limit():
                outcome = examine(path, Path(directory, "out"), mutant.number)
        except (Exception, Slow) as error:
            raise AssertionError(
                f"{type(error).__name__}: {error}\n"
                f"again: python tests/fuzz_long.py {mutant.area} --only {mutant.number}"
            ) from error
        finally:
            peak = tracemalloc.get_traced_memory()[1] - before
            if not tracing:
                tracemalloc.stop()
        allowed = FREE_BYTES + FACTOR * size
        assert peak <= allowed, (
            f"{peak} bytes were allocated for files of {size}; {allowed} are allowed\n"
            f"again: python tests/fuzz_long.py {mutant.area} --only {mutant.number}"
        )
        return outcome


def examine(path: Path, output: Path, number: int) -> str:
    """Do with a checkpoint what people do, and say what became of it."""
    try:
        checkpoint = open_checkpoint(path, verify=number % 8 > 1)
    except InputError as error:
        return _told(error)
    checkpoint.roles()
    assert checkpoint.step is None or isinstance(checkpoint.step, int)
    if number % 16 == 5:
        shown = CliRunner().invoke(cli, ["inspect", str(path), "--verbose"])
        if shown.exit_code not in (0, InputError.exit_code):
            raise shown.exception or AssertionError(shown.output)
    readable = [v for v in checkpoint.values() if _is_readable(checkpoint, v)]
    outcome = "opened" if len(readable) == len(checkpoint) else "opened in part"
    for to, name in (("tf", "out"), ("safetensors", "out/x.safetensors")):
        target = parse_target(output.parent / name, name=checkpoint.name, to=to)
        try:
            plan = make_plan(checkpoint, [], target, sidecar=True)
            list(report.plan_lines(plan, verbose=True))
            json.dumps(report.as_json(plan, None))
            plan.refuse()
        except (InputError, PlanError) as error:
            _told(error)
            continue
        if plan.nbytes <= _CONVERTED_BYTES and number % 4 == 1:
            _convert(path, output.parent / name, to, verify=number % 8 > 1)
    return outcome


def _convert(path: Path, output: Path, to: str, *, verify: bool) -> None:
    before = _listing(output.parent)
    try:
        convert(path, output, to=to, sidecar=True, verify_source=verify, sync=False)
    except (InputError, PlanError) as error:
        _told(error)
    except ConverterError as error:
        # A variant is opaque until it is to be written.
        if "cannot be written as variant" not in str(error):
            raise
    else:
        shutil.rmtree(output if output.is_dir() else output.parent)
    assert _listing(output.parent) == before, "a conversion left something behind"


def _listing(directory: Path) -> set[Path]:
    return set(directory.iterdir()) if directory.exists() else set()


def _is_readable(checkpoint: Checkpoint, variable: Variable) -> bool:
    try:
        checkpoint.check([variable.name])
        taken = 0
        # A splat of a graph may be as large as it likes.
        for block in variable.blocks():
            taken += block.nbytes
            if taken > _READ_BYTES:
                return True
    except InputError as error:
        _told(error)
        return False
    if variable.dtype.itemsize:
        assert taken == variable.nbytes, f"{taken} of {variable.nbytes} bytes of {variable.name}"
    return True


def _told(error: ConverterError) -> str:
    # Names stand in messages as they are; the command line escapes them.
    text = printable(str(error))
    assert 10 < len(text) < 100_000, f"no message for people: {text[:1000]}"
    return type(error).__name__


@contextlib.contextmanager
def memory_limit() -> Iterator[None]:
    """Make allocations fail that tracemalloc does not see: of protobuf, of snappy, mapped files."""
    with open("/proc/self/statm", encoding="ascii") as file:  # noqa: PTH123
        used = int(file.read().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + _ADDRESS_SPACE, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise Slow in the body when it takes more of the processor's time."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise Slow(f"more than {seconds} seconds")

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
