"""`convert plugins`: which strategies there are, and what each one takes."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from converter.cli.text import say

if TYPE_CHECKING:
    from converter.strategy import Strategy


@click.command()
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print them as JSON.")
def command(name: str | None, as_json: bool) -> None:
    """List the strategies of all plugins, or explain the one called NAME.

    NAME can be a file, ./mine.py.
    """
    from converter.registry import Registry, load
    from converter.strategy import options, summary

    registry: Registry = load([name] if name else [])
    chosen: list[type[Strategy]] = (
        [registry.get(name)] if name else list(registry.strategies.values())
    )
    if as_json:
        rows = [
            {
                "name": s.name,
                "summary": summary(s),
                "origin": registry.origin(s.name),
                "options": [
                    {"name": o.name, "flag": o.flag, "help": o.help, "repeatable": o.multiple}
                    for o in options(s)
                ],
            }
            for s in chosen
        ]
        click.echo(
            json.dumps({"plugins": rows, "broken": list(map(str, registry.broken))}, indent=2)
        )
    elif name:
        for line in _explained(chosen[0], registry.origin(chosen[0].name)):
            say(line)
    else:
        width = max((len(s.name) for s in chosen), default=0)
        for s in chosen:
            origin = registry.origin(s.name)
            say(f"{s.name.ljust(width)}  {summary(s)}  ({origin})")
    for broken in registry.broken:
        say(f"Warning: {broken}", err=True)


def _explained(strategy: type[Strategy], origin: str) -> Iterator[str]:
    from converter.strategy import options

    yield f"{strategy.name}  ({origin})"
    yield ""
    yield from inspect.cleandoc(strategy.__doc__ or "").splitlines()
    own = options(strategy)
    if own:
        yield ""
        yield "Options:"
    for option in own:
        value = f" {option.metavar}" if option.metavar else ""
        if option.choices:
            value = f" [{'|'.join(option.choices)}]"
        again = " (repeatable)" if option.multiple else ""
        yield f"  {option.flag}{value}{again}"
        yield f"      {option.help}"
        yield f"      in a recipe: {option.name}"
