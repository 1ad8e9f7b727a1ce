"""`convert batch`: convert every checkpoint below a directory."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from converter.cli.steps import StrategyCommand, plugins_of, steps_of, strategies_of
from converter.cli.text import count, parse_size, say, size
from converter.errors import UsageError

if TYPE_CHECKING:
    from converter.batch import Job, Outcome


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
    """
    from converter.batch import Settings, Watch, find_jobs, processes_by_default, run_batch
    from converter.recipe import read_recipe
    from converter.target import parse_target

    recipe = read_recipe(given["recipe"]) if given["recipe"] else None
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
    target = parse_target(Path(output) / "any", name="any", to=to)
    jobs = find_jobs(Path(root), Path(output), to=target.format, shard_size=shard_size)
    if given["dry_run"]:
        pairs = [(job.source, str(job.target.path)) for job in jobs]
        if given["as_json"]:
            rows = [{"source": source, "output": output} for source, output in pairs]
            click.echo(json.dumps({"checkpoints": rows}, indent=2))
        else:
            for pair in pairs:
                say(" -> ".join(pair))
        return
    settings = Settings(
        steps=steps,
        plugins=plugins_of(ctx),
        sidecar=sidecar,
        force=given["force"],
        verify_source=not given["no_verify_source"],
        verify_output=not given["no_verify_output"],
        sync=not given["no_sync"],
    )
    began = time.monotonic()
    finished: list[Outcome] = []

    progress = _Progress(finished, len(jobs))

    def tell(outcome: Outcome) -> None:
        finished.append(outcome)
        if not given["quiet"]:
            progress.clear()
            error = f": {outcome.error}" if outcome.error else ""
            say(
                f"[{len(finished)}/{len(jobs)}] {outcome.status} {outcome.job.source}{error}",
                err=True,
            )

    processes = given["jobs"] or processes_by_default()
    watch: Watch = (lambda running: None) if given["quiet"] else progress
    try:
        outcomes = run_batch(jobs, settings, processes=processes, report=tell, watch=watch)
    finally:
        progress.clear()
    seconds = time.monotonic() - began
    if given["as_json"]:
        click.echo(json.dumps(_as_json(outcomes, seconds), indent=2))
    else:
        for line in _summary(outcomes, seconds):
            say(line)
    if any(outcome.status == "failed" for outcome in outcomes):
        ctx.exit(5)


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
            f"written, {size(nbytes / (now - self._began))}/s"
        )
        self._drawn = self._terminal
        click.echo(f"\r\x1b[K{line}" if self._terminal else line, nl=not self._terminal, err=True)

    def clear(self) -> None:
        """Clear the line."""
        if self._drawn:
            click.echo("\r\x1b[K", nl=False, err=True)
            self._drawn = False


def _summary(outcomes: Sequence[Outcome], seconds: float) -> Iterator[str]:
    for outcome in outcomes:
        for name, counts in outcome.counts.items():
            for what, number in counts.items():
                yield f"warning {outcome.job.source}: {name}: {number:,} {what}"
    for outcome in outcomes:
        if outcome.status == "failed":
            yield f"failed  {outcome.job.source}: {outcome.error}"
    for status in ("done", "skipped", "failed"):
        some = [outcome for outcome in outcomes if outcome.status == status]
        line = f"{status.ljust(7)} {count(len(some), 'checkpoint')}"
        if status == "done":
            nbytes = sum(outcome.nbytes for outcome in some)
            line += f", {size(nbytes)} in {seconds:.1f} s, {size(nbytes / seconds)}/s"
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
            }
            for outcome in outcomes
        ],
    }
