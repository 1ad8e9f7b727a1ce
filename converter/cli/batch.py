"""`convert batch`: convert every checkpoint below a directory."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from converter.cli.output import json_text
from converter.cli.question import graph_option, question_of, question_options, wants_proof
from converter.cli.steps import (
    StrategyCommand,
    plugins_of,
    recipe_of,
    steps_of,
    strategies_of,
)
from converter.cli.text import parse_size, say, size
from converter.counted import count
from converter.errors import UsageError

if TYPE_CHECKING:
    from converter.batch import Job, Outcome, Settings


@click.command(cls=StrategyCommand)
@click.argument("root", required=False)
@click.option("-o", "--output", metavar="OUT", help="The directory of the results.")
@click.option("--to", metavar="[safetensors|tf]", help="What to write. [default: safetensors]")
@click.option(
    "--plugin",
    multiple=True,
    metavar="NAME",
    help="A strategy to apply, in order; or a file, ./mine.py. `convert plugins` lists them.",
)
@click.option(
    "--recipe", metavar="FILE", help="A TOML file that says it all, or the name of a shipped one."
)
@click.option("-j", "--jobs", type=click.IntRange(1), help="Processes. [default: one a processor]")
@click.option("--shard-size", metavar="SIZE", help="Bytes in one file. [default: one file]")
@click.option(
    "--sidecar/--no-sidecar",
    default=None,
    help="Keep what safetensors cannot hold (strings ...) in a TensorFlow checkpoint beside it.",
)
@click.option(
    "--prove", is_flag=True, help="Run source and output, and publish only what computes the same."
)
@question_options()
@graph_option
@click.option("-n", "--dry-run", is_flag=True, help="List what would be converted, write nothing.")
@click.option("-f", "--force", is_flag=True, help="Replace outputs that exist.")
@click.option("--no-verify-source", is_flag=True, help="Don't compare checksums of the sources.")
@click.option("--no-verify-output", is_flag=True, help="Don't read the outputs back.")
@click.option("--no-sync", is_flag=True, help="Don't wait until the disk has everything.")
@click.option("--json", "as_json", is_flag=True, help="Print the outcomes as JSON.")
@click.option("-q", "--quiet", is_flag=True, help="Print errors and the summary only.")
@click.pass_context
def command(ctx: click.Context, /, **given: Any) -> None:
    """Convert every checkpoint below ROOT to OUT/<its path below ROOT>.safetensors.

    What failed is told at the end, and the others are done all the same. What was done is
    recorded beside each output: a second run skips it, so a run that broke off simply goes on.

    \b
    convert batch old-models/ -o new-models/ --drop optimizer --jobs 8
    convert batch run/ -o wide/ --to tf --plugin pad --resize lstm_cell=256 --prove
    """
    from converter.batch import Watch, processes_by_default, run_batch

    jobs, settings = _given_jobs(ctx, given)
    if given["dry_run"]:
        _dry_run(ctx, jobs, settings, given)
        return
    began = time.monotonic()
    finished: list[Outcome] = []

    progress = _Progress(finished, len(jobs))

    def tell(outcome: Outcome) -> None:
        finished.append(outcome)
        if not given["quiet"]:
            progress.clear()
            line = f"[{len(finished)}/{len(jobs)}] {outcome.status} {outcome.job.source}"
            say(line + _became(outcome), err=True)

    processes = given["jobs"] or processes_by_default()
    watch: Watch = (lambda running: None) if given["quiet"] else progress
    try:
        outcomes = run_batch(jobs, settings, processes=processes, report=tell, watch=watch)
    finally:
        progress.clear()
    seconds = time.monotonic() - began
    if given["as_json"]:
        click.echo(json_text(_as_json(outcomes, seconds)))
    else:
        for line in _summary(outcomes, seconds):
            say(line)
    if any(outcome.status == "failed" for outcome in outcomes):
        ctx.exit(5)


def _given_jobs(ctx: click.Context, given: dict[str, Any]) -> tuple[list[Job], Settings]:
    """Return what the command line and its recipe mean: the jobs, and how they are done."""
    from converter.batch import Settings, find_jobs
    from converter.target import parse_target

    recipe = recipe_of(ctx, given["recipe"])
    steps = steps_of(ctx, recipe)
    strategies_of(ctx, steps)  # What is wrong with them is wrong for all: told before the first.
    root = given["root"] or (recipe and recipe.source)
    output = given["output"] or (recipe and recipe.output)
    if not root or not output:
        raise UsageError("batch needs ROOT and -o OUT (or source and output in the recipe)")
    to = given["to"] or (recipe and recipe.to) or "safetensors"
    shard_size = given["shard_size"] or (recipe.shard_size if recipe else None)
    if shard_size is not None:
        shard_size = parse_size(str(shard_size))
    sidecar = given["sidecar"]
    if sidecar is None:
        sidecar = bool(recipe and recipe.sidecar)
    question = question_of(given) if wants_proof(given) else None
    target = parse_target(Path(output) / "any", name="any", to=to)
    jobs = find_jobs(Path(root), Path(output), to=target.format, shard_size=shard_size)
    return jobs, Settings(
        steps=steps,
        plugins=plugins_of(ctx),
        question=question,
        graph_from=given["graph_from"] or (recipe.graph_from if recipe else None),
        sidecar=sidecar,
        force=given["force"],
        verify_source=not given["no_verify_source"],
        verify_output=not given["no_verify_output"],
        sync=not given["no_sync"],
    )


def _dry_run(
    ctx: click.Context, jobs: Sequence[Job], settings: Settings, given: dict[str, Any]
) -> None:
    """List the jobs, and what becomes of the widths of each where a strategy resizes."""
    from converter.batch import Outcome, plan_job
    from converter.resizer import Resizer

    resizes = any(isinstance(s, Resizer) for s in strategies_of(ctx, settings.steps))
    is_planned = resizes or settings.question is not None
    rows: list[dict[str, object]] = []
    failed = False
    for job in jobs:
        outcome = plan_job(job, settings) if is_planned else Outcome(job, "done")
        failed |= outcome.status == "failed"
        row: dict[str, object] = {"source": job.source, "output": str(job.target.path)}
        if is_planned:
            row |= {"error": outcome.error, **_widths_json(outcome)}
        rows.append(row)
        if not given["as_json"]:
            say(f"{job.source} -> {job.target.path}{_became(outcome)}")
    if given["as_json"]:
        click.echo(json_text({"checkpoints": rows}))
    if failed:
        ctx.exit(5)


def _became(outcome: Outcome) -> str:
    """Return what is to be said of an outcome behind its name."""
    if outcome.error:
        return f": {_beside(outcome, outcome.error)}"
    said = []
    if outcome.exact is not None:
        said = [f"{count(outcome.resized, 'variable')} resized", _exactness(outcome)]
    for name, why in outcome.idle.items():
        said.append(f"nothing to do for {name} ({_beside(outcome, why)})")
    if outcome.proof is not None:
        said.append("proven")
    return f": {', '.join(said)}" if said else ""


def _beside(outcome: Outcome, reason: str) -> str:
    """Return a reason as it is said behind the checkpoint, which it names as its subject, too."""
    source = outcome.job.source
    for subject in (source, str(Path(source))):
        reason = reason.replace(f"{subject}: ", "", 1)
    return reason


def _exactness(outcome: Outcome) -> str:
    if outcome.exact:
        return "exact"
    inexact = [width for width in outcome.widths if not width["exact"]]
    first = inexact[0]
    more = f", and {len(inexact) - 1} more" if len(inexact) > 1 else ""
    return f"not exact ({first['name']} {first['old']} -> {first['new']}: {first['why']}{more})"


class _Progress:
    """Shows what is written while no job ends, at intervals as those of one conversion."""

    def __init__(self, finished: Sequence[Outcome], jobs: int) -> None:
        self._finished = finished
        self._jobs = jobs
        self._terminal = sys.stderr.isatty()
        self._began = time.monotonic()
        self._next = self._began + 1
        self._drawn = False

    def __call__(self, running: Sequence[Job]) -> None:
        from converter.batch import bytes_so_far

        now = time.monotonic()
        if now < self._next or not running:
            return
        self._next = now + (1 if self._terminal else 10)
        nbytes = bytes_so_far(running) + sum(outcome.nbytes for outcome in self._finished)
        line = (
            f"[{len(self._finished)}/{self._jobs}] {len(running)} running, {size(nbytes)} "
            f"written, {size(_rate(nbytes, now - self._began, self._finished))}/s"
        )
        self._drawn = self._terminal
        click.echo(f"\r\x1b[K{line}" if self._terminal else line, nl=not self._terminal, err=True)

    def clear(self) -> None:
        """Clear the line."""
        if self._drawn:
            click.echo("\r\x1b[K", nl=False, err=True)
            self._drawn = False


def _rate(nbytes: float, seconds: float, outcomes: Sequence[Outcome]) -> float:
    """Return the bytes of a second in which values were written, as far as outcomes tell it.

    What strategies had to find out before takes its share of all processes, and so does a proof.
    """
    total = sum(outcome.seconds for outcome in outcomes)
    writing = sum(outcome.writing_seconds for outcome in outcomes)
    return nbytes / max(seconds * (writing / total if total else 1), 1e-9)


def _summary(outcomes: Sequence[Outcome], seconds: float) -> Iterator[str]:
    for outcome in outcomes:
        for name, counts in outcome.counts.items():
            for what, number in counts.items():
                yield f"warning {outcome.job.source}: {name}: {number:,} {what}"
        for line in outcome.found:
            yield f"found   {outcome.job.source}: {line}"
    for outcome in outcomes:
        if outcome.status == "failed":
            yield f"failed  {outcome.job.source}: {_beside(outcome, outcome.error)}"
    resized = [outcome for outcome in outcomes if outcome.exact is not None]
    if resized:
        exact = sum(bool(outcome.exact) for outcome in resized)
        yield (
            f"resized {count(len(resized), 'checkpoint')}: {exact:,} exact, "
            f"{len(resized) - exact:,} not exact"
        )
    idle = [outcome for outcome in outcomes if outcome.idle]
    if idle:
        names = ", ".join(dict.fromkeys(name for outcome in idle for name in outcome.idle))
        many = count(len(idle), "checkpoint")
        yield f"idle    {many} with nothing to do for {names}, converted without"
    for status in ("done", "skipped", "failed"):
        some = [outcome for outcome in outcomes if outcome.status == status]
        line = f"{status.ljust(7)} {count(len(some), 'checkpoint')}"
        if status == "done":
            nbytes = sum(outcome.nbytes for outcome in some)
            line += f", {size(nbytes)} in {seconds:.1f} s, {size(_rate(nbytes, seconds, some))}/s"
        yield line


def _as_json(outcomes: Sequence[Outcome], seconds: float) -> dict[str, object]:
    return {
        "seconds": seconds,
        "checkpoints": [
            {
                "source": outcome.job.source,
                "output": str(outcome.job.target.path),
                "status": outcome.status,
                "error": outcome.error,
                "bytes": outcome.nbytes,
                "counts": {name: dict(counts) for name, counts in outcome.counts.items()},
                "found": list(outcome.found),
                "idle": dict(outcome.idle),
                **_widths_json(outcome),
            }
            for outcome in outcomes
        ],
    }


def _widths_json(outcome: Outcome) -> dict[str, object]:
    return {
        "exact": outcome.exact,
        "resized": outcome.resized,
        "widths": list(outcome.widths),
        "proof": outcome.proof,
    }
