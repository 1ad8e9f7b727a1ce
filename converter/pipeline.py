"""Carries out a plan: streams the variables, reads the output back, and publishes it."""

from __future__ import annotations

import json
import os
import reprlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from converter.checkpoint import Checkpoint, open_checkpoint
from converter.dtype import STRING
from converter.errors import ConverterError, InputError, UsageError
from converter.formats import Contents
from converter.formats.stream import Output, crc32c, crc32c_of_range
from converter.plan import Plan, make_plan
from converter.publish import clean, publish, staging
from converter.strategy import Strategy
from converter.target import Target, parse_target
from converter.variable import Variable

Progress = Callable[[int, int], None]
"""Called with the bytes that are done and the bytes in all, of writing and reading back."""


@dataclass(frozen=True)
class Result:
    """What a conversion did.

    Attributes:
        plan: what was to be done.
        output: what to open: the file, the index of its shards, or the prefix.
        files: what was written.
        nbytes: size of the files.
        seconds: how long it took.
        writing_seconds: how much of that values were written and verified, without what strategies
            had to find out before, and what a check took after.
        counts: what the strategies counted while values passed, by variable.
        found: what they found out on the way, one line each.
        verified: whether the output was read back and compared.
    """

    plan: Plan
    output: Path
    files: tuple[Path, ...]
    nbytes: int
    seconds: float
    writing_seconds: float
    counts: Mapping[str, Mapping[str, int]]
    found: tuple[str, ...]
    verified: bool


def convert(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    strategies: Strategy | Sequence[Strategy] = (),
    *,
    to: str | None = None,
    shard_size: int | None = None,
    sidecar: bool = False,
    graph_from: str | os.PathLike[str] | None = None,
    force: bool = False,
    verify_source: bool = True,
    verify_output: bool = True,
    sync: bool = True,
    progress: Progress | None = None,
) -> Result:
    """Convert a checkpoint: the whole job in one call.

    The source is never written. The output appears complete or not at all.

    Args:
        source: whatever `open_checkpoint` takes.
        output: `x.safetensors` is that file, `x.index` the TensorFlow checkpoint `x`, anything
            else a directory, with a `model.safetensors` or (`to="tf"`) a TensorFlow checkpoint
            under the source's own name in it.
        strategies: applied in order, each to the result of the one before; or one alone.
        to: `safetensors` or `tf`; None for what the ending of `output` says, or safetensors.
        shard_size: bytes of the variables in one file. None: safetensors in a directory are
            sharded above 5 GB, everything else is one file.
        sidecar: keep what safetensors cannot hold (strings, complex128 ...) in a TensorFlow V2
            checkpoint `NAME.sidecar` beside the output.
        graph_from: as `open_checkpoint` takes it.
        force: replace an output that exists.
        verify_source: compare what is read with the checksums that the source records.
        verify_output: read the output back and compare it with what was meant.
        sync: wait until the disk has everything.
        progress: called with the bytes that are done and the bytes in all.

    Raises:
        UsageError: an option cannot be meant.
        InputError: the source is unreadable or damaged.
        PlanError: the plan is refused.
        ConverterError: the work broke off, or the output is not what was meant.
    """
    if isinstance(source, Checkpoint):
        raise UsageError(
            f"{source.path}: convert takes the path of a checkpoint, and this is an open one; give "
            "its path, or save the model first (model.save, model.export)"
        )
    strategies = _several(strategies)
    checkpoint = open_checkpoint(source, verify=verify_source, graph_from=graph_from)
    target = parse_target(output, name=checkpoint.name, to=to, shard_size=shard_size)
    plan = make_plan(checkpoint, strategies, target, sidecar=sidecar)
    return run(
        plan,
        force=force,
        verify_source=verify_source,
        verify_output=verify_output,
        sync=sync,
        progress=progress,
    )


def _several(given: Any) -> tuple[Strategy, ...]:
    """Return strategies as a series of them; a text would be one of letters."""
    is_series = isinstance(given, Iterable) and not isinstance(given, str)
    items: tuple[Any, ...] = tuple(given) if is_series else (given,)
    if odd := [item for item in items if not isinstance(item, Strategy)]:
        raise UsageError(
            f"convert: strategies must be objects such as Drop(...), got {reprlib.repr(odd[0])}"
        )
    return items


def run(
    plan: Plan,
    *,
    force: bool = False,
    verify_source: bool = True,
    verify_output: bool = True,
    sync: bool = True,
    progress: Progress | None = None,
    record: Mapping[str, object] | None = None,
    check: Callable[[Path], None] | None = None,
) -> Result:
    """Carry out a plan that has a target. Arguments and errors are those of `convert`.

    Args:
        check: called with the output before it is published; where it raises, nothing is.
        record: what to remember of how the output was made, as JSON; it is published with the
            output, with the names and sizes of the files added. None for nothing.
    """
    target = plan.target
    if target is None:
        raise ConverterError(f"{plan.source.path}: the plan has no target")
    for variable in (*plan.variables, *plan.sidecar):
        variable.counts.clear()  # An earlier run of the same plan has left its own.
    clean(target.directory)
    plan.refuse(force=force)
    began = time.monotonic()
    plan.prepare()
    prepared, checking = time.monotonic(), 0.0
    report = _Report(progress, plan.nbytes * (2 if verify_output else 1))
    report.add(0)

    # TensorFlow's index wants the checksums in any case.
    checksum = verify_output or target.format == "tf" or bool(plan.sidecar)

    def open_output(path: Path) -> Output:
        return Output(path, verify=verify_source, checksum=checksum, sync=sync, progress=report.add)

    try:
        with staging(target.directory) as stage:
            checksums = _write(plan, target, stage, open_output)
            if verify_output:
                _verify(plan, checksums, _read_back(target, stage), report)
            found = plan.findings()
            sizes = {path.name: path.stat().st_size for path in sorted(stage.iterdir())}
            files = list(sizes)
            if record is not None:
                files.append(target.record.name)
                _write_record(stage / files[-1], record, sizes, open_output)
            outputs = target.outputs(files)
            if check is not None:
                checking = -time.monotonic()
                check(stage / outputs.commit)
                checking += time.monotonic()
            publish(stage, outputs, force=force, sync=sync)
    except OSError as error:
        name = error.filename2 or error.filename or target.directory
        raise ConverterError(f"{name}: {error.strerror}; nothing was published") from error
    return Result(
        plan,
        target.opened(files),
        tuple(target.directory / name for name in files),
        sum(sizes.values()),
        time.monotonic() - began,
        time.monotonic() - prepared - checking,
        _counts(plan),
        found,
        verify_output,
    )


class _Report:
    """Adds up bytes for a progress display."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self._progress = progress
        self._total = total
        self._done = 0

    def add(self, count: int) -> None:
        self._done += count
        if self._progress is not None:
            # Headers and strings are not in the total.
            self._progress(min(self._done, self._total), self._total)


def _write(
    plan: Plan, target: Target, stage: Path, open_output: Callable[[Path], Output]
) -> Mapping[str, int | None]:
    """Write the files of a plan into a directory; return the checksums of its variables."""
    return target.write(
        stage,
        plan.variables,
        plan.sidecar,
        meta=plan.meta,
        metadata=plan.metadata,
        files=plan.files,
        open_output=open_output,
    )


def _read_back(target: Target, stage: Path) -> list[Contents]:
    try:
        return target.read_back(stage)
    except InputError as error:
        raise _bug("the output", f"cannot be read back ({error})") from error


def _write_record(
    path: Path,
    record: Mapping[str, object],
    sizes: Mapping[str, int],
    open_output: Callable[[Path], Output],
) -> None:
    with open_output(path) as output:
        output.write(json.dumps({**record, "files": sizes}, indent=1, sort_keys=True).encode())


def _verify(
    plan: Plan,
    checksums: Mapping[str, int | None],
    contents: Sequence[Contents],
    report: _Report,
) -> None:
    """Raise ConverterError where the output is not what was meant."""
    written = {v.name: v for part in contents for v in part.variables}
    for variable in (*plan.variables, *plan.sidecar):
        found = written.pop(variable.name, None)
        if found is None:
            raise _bug(variable.name, "is missing from the output")
        if (found.dtype, found.shape) != (variable.dtype, variable.shape):
            was = f"{found.dtype} {list(found.shape)}"
            raise _bug(variable.name, f"is {was}, not {variable.dtype} {list(variable.shape)}")
        if not _is_equal(found, variable, checksums.get(variable.name)):
            raise _bug(variable.name, "has other values than were meant")
        report.add(found.nbytes)
    if written:
        raise _bug(next(iter(written)), "is in the output, and was not meant to be")


def _is_equal(found: Variable, meant: Variable, checksum: int | None) -> bool:
    try:
        if found.stored is None or checksum is None:
            if meant.dtype is STRING:
                return bool((found.read() == meant.read()).all())
            pairs = zip(found.blocks(), meant.blocks(), strict=True)
            return all(crc32c(a) == crc32c(b) for a, b in pairs)
        stored = found.stored
        return crc32c_of_range(stored.file, stored.offset, stored.size) == checksum
    except InputError as error:
        raise _bug(meant.name, f"cannot be read back ({error})") from error


def _bug(name: str, what: str) -> ConverterError:
    return ConverterError(
        f"{name} {what}; nothing was published. The disk is failing, or this is a bug to report"
    )


def _counts(plan: Plan) -> dict[str, Mapping[str, int]]:
    return {v.name: v.counts for v in (*plan.variables, *plan.sidecar) if v.counts}
