"""What the tests of the command line share."""

from __future__ import annotations

from pathlib import Path

from click.testing import CliRunner, Result

from converter import open_checkpoint
from converter.cli import cli

TIMES = """
from __future__ import annotations
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar
from converter import Strategy, Variable, hookimpl, option

@dataclass(frozen=True)
class Times(Strategy):
    '''Multiply what is a float, slowly.'''

    name: ClassVar[str] = "times"
    factor: float = option(2.0, help="what to multiply by")
    seconds: float = option(0.0, help="how long each variable takes")

    def convert(self, variable: Variable) -> Iterable[Variable]:
        def slowly(values):
            time.sleep(self.seconds)
            return values * values.dtype.type(self.factor)
        yield variable.map(slowly) if variable.dtype.is_float else variable

@hookimpl
def converter_strategies():
    return [Times]
"""
"""A strategy file: `--plugin ./times.py --times-factor 3 --times-seconds 0.1`."""


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


def told(outcome: Result, exit_code: int) -> str:
    """Return the one line of an error."""
    assert outcome.exit_code == exit_code, outcome.output
    assert isinstance(outcome.exception, SystemExit), outcome.exception
    (line,) = outcome.stderr.splitlines()
    assert line.startswith("Error: ")
    return line.removeprefix("Error: ")


def values(path: Path | str) -> dict[str, bytes]:
    return {name: v.read().tobytes() for name, v in open_checkpoint(path).items()}


def tree(directory: Path) -> dict[str, bytes]:
    """Return the contents of all files below a directory."""
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }
