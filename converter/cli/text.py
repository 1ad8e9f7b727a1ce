"""How the commands write sizes, shapes and progress."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence

import click

from converter.errors import UsageError, printable

_UNITS = ("B", "kB", "MB", "GB", "TB", "PB")


def size(nbytes: float) -> str:
    """Return a number of bytes in decimal units: `82.6 kB`."""
    unit = 0
    while abs(nbytes) >= 999.5 and unit < len(_UNITS) - 1:
        nbytes /= 1000
        unit += 1
    digits = 0 if unit == 0 or nbytes >= 99.95 else 1
    return f"{nbytes:.{digits}f} {_UNITS[unit]}"


def parse_size(text: str) -> int:
    """Return the bytes that `5GB`, `500MB` or `1000000` means; units are decimal.

    Raises:
        UsageError: it is no positive size.
    """
    number = text.strip().upper().removesuffix("B")
    factor = 1
    for power, letter in enumerate("KMGT", 1):
        if number.endswith(letter):
            number, factor = number[:-1], 1000**power
    try:
        nbytes = int(float(number) * factor)
    except (ValueError, OverflowError):
        nbytes = 0
    if nbytes <= 0:
        raise UsageError(f"--shard-size must be a size such as 5GB or 500MB, got {text!r}")
    return nbytes


def shape(sizes: Sequence[int]) -> str:
    """Return a shape as people write it: `[30522, 768]`."""
    return "[" + ", ".join(map(str, sizes)) + "]"


def say(line: str, *, err: bool = False) -> None:
    """Print one line, with what a terminal would act on escaped."""
    click.echo(printable(line), err=err)


class Progress:
    """Shows bytes, rate and remaining time on stderr, for what takes longer than a second.

    On a terminal one line is redrawn; elsewhere a plain line is printed every ten seconds.

    Args:
        what: what takes the time.
        write: writes a number of what is counted, where that is no bytes.
    """

    def __init__(self, what: str, write: Callable[[float], str] = size) -> None:
        self._what = printable(what)
        self._write = write
        self._terminal = sys.stderr.isatty()
        self._began = time.monotonic()
        self._next = self._began + 1
        self._drawn = False

    def __call__(self, done: int, total: int) -> None:
        """Take note of how much is done, and how much there is in all."""
        now = time.monotonic()
        if not done:
            self._began, self._next = now, now + 1
        if now < self._next:
            return
        self._next = now + (0.2 if self._terminal else 10)
        rate = done / (now - self._began)
        line = f"{self._what}: {self._write(done)} of {self._write(total)}"
        line += f" ({100 * done // max(total, 1)} %)"
        # What takes its time before it gives anything tells no rate.
        if 100 * done >= total and done:
            line += f", {self._write(rate)}/s, {(total - done) / rate:.0f} s left"
        self._drawn = True
        if self._terminal:
            click.echo(f"\r\x1b[K{line}", nl=False, err=True)
        else:
            click.echo(line, err=True)

    def close(self) -> None:
        """Clear the line."""
        if self._drawn and self._terminal:
            click.echo("\r\x1b[K", nl=False, err=True)
