"""`convert stats`: the statistics of a running model, measured on data."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np

from converter.checkpoint import open_checkpoint
from converter.cli.output import json_text, print_table
from converter.cli.question import graph_option
from converter.cli.text import Progress, say, size
from converter.counted import count
from converter.errors import UsageError

if TYPE_CHECKING:
    from converter.activations.data import Opened
    from converter.activations.file import Key, Measured
    from converter.activations.moments import Moments
    from converter.activations.run import Batch


@click.command()
@click.argument("paths", nargs=-1)
@click.option("--data", metavar="PATH", multiple=True, help="An .npz, .npy, or directory of them.")
@click.option("--batch-size", metavar="N", type=click.IntRange(1), help="Rows that run at once.")
@click.option("--whole-files", is_flag=True, help="Each file is one batch, whatever its rows.")
@click.option("--variable", "variables", metavar="GLOB", multiple=True, help="Measure only these.")
@click.option("--covariance", metavar="GLOB", multiple=True, help="Measure their covariance, too.")
@click.option(
    "--feed",
    "feeds",
    metavar="NAME=VALUE",
    multiple=True,
    help="Feed a tensor the same in every batch: a number, true, false, or a list.",
)
@click.option(
    "--fetch",
    "fetches",
    metavar="NAME",
    multiple=True,
    help="Run up to this tensor, rather than to what looks like outputs.",
)
@click.option("--signature", metavar="NAME", help="The signature of an exported model to run.")
@graph_option
@click.option("--merge", is_flag=True, help="Merge files of statistics, which PATHS are then.")
@click.option("-o", "--output", metavar="FILE", help="Write them to NAME.safetensors.")
@click.option("-f", "--force", is_flag=True, help="Replace an output that exists.")
@click.option("--no-verify-source", is_flag=True, help="Don't compare checksums of what is read.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(
    paths: tuple[str, ...], merge: bool, output: str | None, as_json: bool, **given: Any
) -> None:
    """Run a model on data, and show the statistics of its activations.

    For each variable they are measured where its layer is finished (produced), and in what it takes
    (consumed), for each unit. Arrays are named as placeholders, or as a signature names its inputs;
    their first axis is the batch. This needs TensorFlow: pip install 'ckpt-converter[tensorflow]'.

    \b
    convert stats model.ckpt-100 --data x.npz
    convert stats exported/ --data batches/ --signature serving_default -o stats.safetensors
    convert stats --merge a.safetensors b.safetensors -o both.safetensors

    \b
    Keys of --json:
      batches     how many were run; null where a merged file does not say it
      statistics  [{variable, side, tensors, units, dead, count, mean, mean_abs, std,
                  second_moment, min, max, max_abs, zeros}]: side is "produced" or "consumed", dead
                  counts the units that are always zero, count the observations; what follows is a
                  list with a number for each unit
      notes       what else is to be known
      output      the file that was written, or null
    """
    from converter.activations.file import output_path, write_measured

    force = given.pop("force")
    if output is not None:
        output_path(output, force=force)
    measured = _merge(paths, given) if merge else _measure(paths, given)
    if output is not None:
        write_measured(output, measured, force=force)
    if as_json:
        click.echo(json_text(_as_json(measured, output)))
        return
    if output is None:
        _show(measured)
    for note in measured.notes:
        say(f"note    {note}")
    batches = "" if measured.batches is None else f", {measured.batches:,} batches"
    if measured.batches == 1:
        batches = ", 1 batch"
    if output is not None:
        names = {name for name, _ in measured}
        written = size(Path(output).stat().st_size)
        say(f"wrote   {output} ({written}: {count(len(names), 'variable')}{batches})")
    else:
        say(f"measured  {count(len({n for n, _ in measured}), 'variable')}{batches}")


def _merge(paths: Sequence[str], given: dict[str, Any]) -> Measured:
    from converter.activations.file import merged_files

    for key, value in given.items():
        if value:
            name = {"feeds": "feed", "fetches": "fetch", "variables": "variable"}.get(key, key)
            raise UsageError(f"--merge runs nothing, so --{name.replace('_', '-')} means nothing")
    if len(paths) < 2:
        raise UsageError("--merge takes two files of statistics, or more")
    return merged_files(paths)


def _measure(paths: Sequence[str], given: dict[str, Any]) -> Measured:
    from converter.activations.asked import Question
    from converter.activations.data import Data
    from converter.activations.measure import measure
    from converter.session import take_fastest_kernels

    if len(paths) > 1:
        raise UsageError(f"one model is run, and {len(paths)} are given; --merge merges files")
    if given["whole_files"] and given["batch_size"]:
        raise UsageError(
            "--whole-files runs each file at once, so --batch-size means nothing; leave one out"
        )
    if not all(given["data"] or [""]):
        raise UsageError("there is no data to run it on; give some (--data x.npz)")
    # Statistics are compared with nothing that was recorded.
    take_fastest_kernels()
    checkpoint = open_checkpoint(
        paths[0] if paths else ".",
        verify=not given["no_verify_source"],
        graph_from=given["graph_from"],
    )
    question = Question(
        tuple(given["feeds"]), tuple(given["fetches"]), given["signature"], ", ".join(given["data"])
    )
    data = Data(
        tuple(map(Path, given["data"])), given["batch_size"], given["whole_files"], question
    )
    with contextlib.closing(Progress("looked through", _rows)) as progress:
        opened = data.open(checkpoint, progress)
    measured = measure(
        checkpoint,
        _told(opened),
        variables=given["variables"],
        covariance=given["covariance"],
        question=question,
    )
    measured.notes += opened.notes
    return measured


def _told(data: Opened) -> Iterator[Batch]:
    """Yield the batches of data, and show how many rows are done."""
    done = 0
    with contextlib.closing(Progress("measured", _rows)) as progress:
        for batch in data.batches():
            progress(done, data.total)
            yield batch
            done += max((len(value) for value in batch.values() if value.shape), default=1)


def _rows(number: float) -> str:
    return f"{number:,.0f} rows"


def _show(measured: Measured) -> None:
    """Print a table: the variables that were measured in the same tensors share a line."""
    groups: dict[tuple[str, tuple[str, ...]], list[Key]] = {}
    for key in measured:
        groups.setdefault((key[1], measured.tensors.get(key, (key[0],))), []).append(key)
    print_table(
        (_row(measured, keys) for keys in groups.values()),
        header=("variable", "side", "tensor", "units", "mean |x|", "std", "zeros", "dead"),
        right=(3, 4, 5, 6, 7),
    )


def _row(measured: Measured, keys: Sequence[Key]) -> tuple[str, ...]:
    moments, tensors = measured[keys[0]], measured.tensors.get(keys[0], ())
    more = f" (and {len(keys) - 1} more)" if len(keys) > 1 else ""
    places = f" (and {len(tensors) - 1} more)" if len(tensors) > 1 else ""
    deviation = float(np.sqrt(np.mean(moments.std**2)))
    return (
        f"{keys[0][0]}{more}",
        keys[0][1],
        f"{tensors[0]}{places}" if tensors else "",
        f"{moments.size:,}",
        f"{moments.mean_abs.mean():.4g}",
        f"{deviation:.4g}",
        f"{moments.zeros.mean():.1%}",
        f"{_dead(moments):,}",
    )


def _dead(moments: Moments) -> int:
    return int(np.count_nonzero(moments.zero == moments.count))


def _as_json(measured: Measured, output: str | None) -> dict[str, object]:
    from converter.activations.file import statistics_of

    statistics = []
    for key, moments in measured.items():
        values = statistics_of(moments)
        values.pop("covariance", None)
        statistics.append(
            {
                "variable": key[0],
                "side": key[1],
                "tensors": list(measured.tensors.get(key, ())),
                "units": moments.size,
                "dead": _dead(moments),
                **{name: value.tolist() for name, value in values.items()},
            }
        )
    return {
        "batches": measured.batches,
        "statistics": statistics,
        "notes": list(measured.notes),
        "output": output,
    }
