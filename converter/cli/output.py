"""Tables, JSON and progress, as the commands print them."""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence

import click

from converter.cli.text import Progress
from converter.errors import printable


def print_table(
    rows: Iterable[Sequence[str]], *, header: Sequence[str], right: Sequence[int] = ()
) -> None:
    """Print rows in aligned columns, cut nowhere: names are there to be copied and searched.

    Args:
        rows: of as many cells as the header.
        header: what stands above the columns, in bold on a terminal that likes it.
        right: the columns that are aligned on the right.
    """
    lines = [[printable(cell) for cell in row] for row in (header, *rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for number, line in enumerate(lines):
        cells = [
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        text = "  ".join(cells).rstrip()
        is_bold = number == 0 and "NO_COLOR" not in os.environ  # which click does not look at
        click.echo(click.style(text, bold=True) if is_bold else text)


def json_text(data: object) -> str:
    """Return JSON, in which numbers that it has no notation for stand as text: `"nan"`, `"inf"`."""
    return json.dumps(_strict(data), indent=2)


def _strict(data: object) -> object:
    if isinstance(data, dict):
        return {key: _strict(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_strict(value) for value in data]
    return str(data) if isinstance(data, float) and not math.isfinite(data) else data


@contextlib.contextmanager
def counting(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show progress while the body calls what it gets with the bytes of each piece."""
    progress = Progress(what)
    done = 0

    def add(count: int) -> None:
        nonlocal done
        done += count
        progress(done, total)

    try:
        yield add
    finally:
        progress.close()
