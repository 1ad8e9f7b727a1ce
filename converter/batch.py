"""Converts every checkpoint below a directory, in a pool of processes, and remembers what is done.

Beside each output lies its record: which files it was made from, how, and by which versions. A
later run skips an output whose record still matches, so a run that broke off simply goes on.
"""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import os
import re
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field, replace
from multiprocessing.connection import wait as wait_for_any
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Literal

from converter.allocation import keep_freed_memory
from converter.checkpoint import open_checkpoint
from converter.errors import ConverterError, InputError, PlanError
from converter.location import Location, find
from converter.pipeline import run
from converter.plan import Plan, make_plan
from converter.publish import STATE, clean, make_parents, staged_bytes, staging
from converter.recipe import Step
from converter.registry import Registry, load
from converter.strategy import Strategy
from converter.target import Format, Target, state_with

if TYPE_CHECKING:
    from converter.running import Question

Status = Literal["done", "skipped", "failed"]

_SECONDS_TO_CLEAN_UP = 5
_SECONDS_BETWEEN_LOOKS = 0.5


@dataclass(frozen=True, slots=True)
class Job:
    """One checkpoint to convert.

    Attributes:
        source: its prefix or file.
        target: where the result goes.
    """

    source: str
    target: Target


@dataclass(frozen=True, slots=True)
class Settings:
    """What is the same for all jobs; what is not described here is as in `converter.convert`.

    Attributes:
        steps: the strategies, by name.
        graph_from: the checkpoint whose graph those have that have none of their own.
        plugins: the plugins as they were named: files among them are loaded.
        question: what of each checkpoint is run before its output is published, which it is not
            where source and output do not compute the same; None to run nothing.
    """

    steps: tuple[Step, ...] = ()
    plugins: tuple[str, ...] = ()
    question: Question | None = None
    graph_from: str | None = None
    sidecar: bool = False
    force: bool = False
    verify_source: bool = True
    verify_output: bool = True
    sync: bool = True


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one job.

    Attributes:
        job: the job.
        status: `done`, `skipped` (the output is there, and its record matches), or `failed`.
        error: why it failed, in one line.
        nbytes: size of the files that were written.
        counts: what the strategies counted, by variable.
        found: what they found out on the way, one line each.
        widths: the widths that change, as plain data: those of `Plan.width_entries`.
        resized: how many variables of the output have another size for it.
        idle: the strategies that found nothing to do in it, by name, with the reason.
        proof: what came of running source and output, as plain data; None where nothing ran.
        seconds: how long it took.
        writing_seconds: how much of that values were written, as `Result` has it.
    """

    job: Job
    status: Status
    error: str = ""
    nbytes: int = 0
    counts: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    found: tuple[str, ...] = ()
    widths: Sequence[Mapping[str, Any]] = ()
    resized: int = 0
    idle: Mapping[str, str] = field(default_factory=dict)
    proof: Mapping[str, Any] | None = None
    seconds: float = 0.0
    writing_seconds: float = 0.0

    @property
    def exact(self) -> bool | None:
        """Whether the outputs of the model stay what they are; None where no width changes."""
        return all(width["exact"] for width in self.widths) if self.widths else None


Watch = Callable[[Sequence[Job]], None]
"""Called now and then with the jobs that are running."""


def find_jobs(
    root: Path, output: Path, *, to: Format = "safetensors", shard_size: int | None = None
) -> list[Job]:
    """Return a job for every checkpoint below `root`, in the order of paths.

    The output of `root/a/model.ckpt-1` is `output/a/model.ckpt-1.safetensors`, or the TensorFlow
    checkpoint `output/a/model.ckpt-1`. What lies below `output` is not looked at.

    Raises:
        InputError: `root` is no directory, or there is no checkpoint below it.
        PlanError: `output` is `root`.
    """
    if not root.is_dir():
        raise InputError(f"{root}: not a directory; batch converts every checkpoint below one")
    if output.exists() and output.samefile(root):
        raise PlanError(f"{output}: output and input must differ; choose another directory")
    inside = output.resolve()
    jobs = []
    for location in find(root):
        if not location.directory.resolve().is_relative_to(inside):
            jobs.append(_job(location, root, output, to, shard_size))
    if not jobs:
        raise InputError(f"{root}: no checkpoint below it")
    return jobs


def _job(location: Location, root: Path, output: Path, to: Format, shard_size: int | None) -> Job:
    directory = output / location.directory.relative_to(root)
    name = location.name
    if location.kind == "frozen":
        name = Path(location.path).name
    return Job(location.path, Target(directory, name, to, shard_size, state=False))


def run_batch(
    jobs: Sequence[Job],
    settings: Settings,
    *,
    processes: int = 1,
    report: Callable[[Outcome], None] = lambda outcome: None,
    watch: Watch = lambda jobs: None,
) -> list[Outcome]:
    """Convert all jobs and go on after failures.

    Args:
        jobs: what to convert.
        settings: how.
        processes: how many at a time, each in a process of its own.
        report: called with each outcome as it comes.
        watch: called now and then with the jobs that are running.

    Returns:
        The outcomes in the order of the jobs.
    """
    outcomes: dict[Job, Outcome] = {}
    todo: deque[Job] = deque()
    taken: dict[Path, Job] = {}
    for job in jobs:
        other = taken.setdefault(job.target.path, job)
        if other is job:
            todo.append(job)
        else:
            error = f"{other.source} has the same output, {job.target.path}; rename one"
            outcomes[job] = Outcome(job, "failed", error)
            report(outcomes[job])
    with (
        _directories(jobs),
        contextlib.closing(_in_pools(todo, settings, processes, watch)) as converted,
    ):
        for outcome in converted:
            outcomes[outcome.job] = outcome
            report(outcome)
        _write_states(outcomes.values())
    return [outcomes[job] for job in jobs]


def bytes_so_far(jobs: Iterable[Job]) -> int:
    """Return how much of running jobs has been written."""
    return sum(staged_bytes(directory) for directory in {job.target.directory for job in jobs})


@contextlib.contextmanager
def _directories(jobs: Iterable[Job]) -> Iterator[None]:
    """Make the directories of outputs, and take away those in which nothing was published."""
    directories = dict.fromkeys(job.target.directory for job in jobs)
    made: list[Path] = []
    try:
        for directory in directories:
            made += make_parents(directory)
            # What a run that was killed had completed is skipped now.
            clean(directory)
        yield
    finally:
        for directory in directories:
            # Processes may have died.
            clean(directory)
        for path in sorted(made, key=lambda path: len(path.parts), reverse=True):
            with contextlib.suppress(OSError):
                path.rmdir()


def _in_pools(
    todo: deque[Job], settings: Settings, processes: int, watch: Watch
) -> Generator[Outcome, None, None]:
    """Yield the outcomes as they come; a process that dies takes no other job along."""
    suspects: list[Job] = []
    while todo:
        running: dict[Future[Outcome], Job] = {}
        with _pool(min(processes, len(todo))) as pool:
            try:
                while todo or running:
                    while todo and len(running) < processes:
                        running[_submit(pool, todo[0], settings)] = todo[0]
                        todo.popleft()
                    done = wait(running, _SECONDS_BETWEEN_LOOKS, FIRST_COMPLETED).done
                    watch([job for future, job in running.items() if future not in done])
                    for future in done:
                        yield future.result()
                        del running[future]
            except BrokenProcessPool:
                suspects += running.values()
    for job in suspects:
        with _pool(1) as pool:
            try:
                yield _submit(pool, job, settings).result()
            except BrokenProcessPool:
                yield Outcome(job, "failed", "its process died; is there enough memory?")


@contextlib.contextmanager
def _pool(processes: int) -> Iterator[ProcessPoolExecutor]:
    # Not fork: a strategy may have loaded libraries with threads, TensorFlow for one.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, context, initializer=_prepare) as pool:
        try:
            yield pool
        except BaseException:
            for child in multiprocessing.active_children():
                child.terminate()
            # Leaving waits for them, and so for what they clean up.
            raise


def _submit(pool: ProcessPoolExecutor, job: Job, settings: Settings) -> Future[Outcome]:
    # A process that this starts inherits the mask: Ctrl-C, which a terminal sends to all, is not
    # told in the midst of its imports.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        return pool.submit(_convert, job, settings)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _prepare() -> None:
    keep_freed_memory()
    sys.unraisablehook = _end_in_callback
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is None:
        return
    wait_for_any([parent.sentinel])
    # Nobody will ever give this process another job, or tell it that there are no more.
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_SECONDS_TO_CLEAN_UP)
    os._exit(1)


def _convert(job: Job, settings: Settings) -> Outcome:
    """Convert one checkpoint; what is half done is cleaned up when the parent ends this process."""
    try:
        # Between the jobs there is nothing to clean up, and the pool's own code would print a
        # SystemExit, or take it for a result: there the signal ends the process by itself.
        signal.signal(signal.SIGTERM, _stop)
        try:
            return convert_job(job, settings)
        finally:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
    except SystemExit:
        # The pool would take this for a result, and give this process the next job.
        os._exit(1)


def _stop(number: int, frame: FrameType | None) -> None:
    # Said again, it ends the process at once; what is left then is the parent's to clean.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    raise SystemExit(1)


def _end_in_callback(unraisable: sys.UnraisableHookArgs) -> None:
    # Python drops what is raised in a destructor, say, or as it takes away the lock of an import.
    if isinstance(unraisable.exc_value, SystemExit):
        os._exit(1)
    sys.__unraisablehook__(unraisable)


def convert_job(job: Job, settings: Settings) -> Outcome:
    """Convert one checkpoint, unless its output is there and was made the same way."""
    told: dict[str, Any] = {}
    try:
        return _converted(job, settings, told)
    except ConverterError as error:
        return Outcome(job, "failed", str(error), **told)
    # The others go on, whatever it is; here it is told with its kind.
    except Exception as error:
        return Outcome(job, "failed", f"{type(error).__name__}: {error}", **told)


def _converted(job: Job, settings: Settings, told: dict[str, Any]) -> Outcome:
    """Convert one checkpoint; what is known of the plan and the proof goes into `told`."""
    from converter.record import known_of, record_of, told_in

    # The state file is written at the end, for all checkpoints of the directory.
    if (obstacle := replace(job.target, state=True).obstacle()) is not None:
        return Outcome(job, "failed", obstacle)
    registry = _registry(settings.plugins)
    strategies = [step.build(registry) for step in settings.steps]
    record = record_of(
        job.source,
        job.target,
        strategies,
        registry,
        sidecar=settings.sidecar,
        question=settings.question,
        graph_from=settings.graph_from,
    )
    known = known_of(job.target, record, force=settings.force)
    if known is not None:
        return Outcome(job, "skipped", **told_in(known))
    plan = _planned(job, settings, strategies)
    told |= _told(plan)
    check = None
    if settings.question is not None:
        check = functools.partial(_prove, plan, settings.question, told)
    result = run(
        plan,
        force=settings.force,
        verify_source=settings.verify_source,
        verify_output=settings.verify_output,
        sync=settings.sync,
        record={**record.made, "prove": record.proven, **_told(plan)},
        check=check,
    )
    told |= {"seconds": result.seconds, "writing_seconds": result.writing_seconds}
    return Outcome(job, "done", "", result.nbytes, result.counts, result.found, **told)


def plan_job(job: Job, settings: Settings) -> Outcome:
    """Tell what would become of one checkpoint, and write nothing.

    Returns:
        An outcome that is `done` where the plan can be carried out.
    """
    told: dict[str, Any] = {}
    try:
        registry = _registry(settings.plugins)
        strategies = [step.build(registry) for step in settings.steps]
        plan = _planned(job, settings, strategies)
        told |= _told(plan)
        plan.refuse(force=True)
        if settings.question is not None:
            _prove(plan, settings.question, told, None)
    except ConverterError as error:
        return Outcome(job, "failed", str(error), **told)
    return Outcome(job, "done", **told)


def _planned(job: Job, settings: Settings, strategies: Sequence[Strategy]) -> Plan:
    checkpoint = open_checkpoint(job.source, verify=settings.verify_source)
    if settings.graph_from is not None and checkpoint.graph_file is None:
        checkpoint = open_checkpoint(
            job.source, verify=settings.verify_source, graph_from=settings.graph_from
        )
    return make_plan(checkpoint, strategies, job.target, sidecar=settings.sidecar, may_idle=True)


def _told(plan: Plan) -> dict[str, Any]:
    return {
        "widths": plan.width_entries(),
        "resized": plan.resized_variables,
        "idle": dict(plan.idle),
    }


def _prove(plan: Plan, question: Question, told: dict[str, Any], output: Path | None) -> None:
    """Run the source of a plan and its output; raise where they do not compute the same."""
    from converter.proof import prove_plan
    from converter.proof_report import proof_json, refuse

    written = None if output is None else open_checkpoint(output)
    proof = prove_plan(plan, written, question)
    told["proof"] = proof_json(proof)
    refuse(plan, proof, is_written=output is not None)


@functools.cache
def _registry(plugins: tuple[str, ...]) -> Registry:
    return load(plugins)


def _write_states(outcomes: Iterable[Outcome]) -> None:
    """Give each directory of TensorFlow checkpoints a state file that names all of them."""
    groups: dict[Path, list[str]] = {}
    for outcome in outcomes:
        target = outcome.job.target
        if target.format == "tf" and outcome.status != "failed":
            groups.setdefault(target.directory, []).append(target.name)
    for directory, names in groups.items():
        with staging(directory) as stage:
            text = state_with(directory, sorted(names, key=_natural))
            try:
                (stage / STATE).write_text(text)
                (stage / STATE).replace(directory / STATE)
            except OSError as error:
                raise ConverterError(f"{directory / STATE}: {error.strerror}") from error


def _natural(name: str) -> list[tuple[int, str]]:
    """Return a key that sorts `model.ckpt-9` before `model.ckpt-10`."""
    parts = re.split(r"(\d+)", name)
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts]


def processes_by_default() -> int:
    """Return how many processes run where nobody says: as many as there are processors."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
