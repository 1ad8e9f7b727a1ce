"""`convert plugins`: which strategies and initializers there are, and what each one takes."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import click

from converter.cli.text import say

if TYPE_CHECKING:
    from converter.initializer import Initializer
    from converter.registry import Registry
    from converter.strategy import Strategy


@click.command()
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print them as JSON.")
def command(name: str | None, as_json: bool) -> None:
    """List the strategies and initializers of all plugins, or explain the one called NAME.

    NAME can be a file, ./mine.py.
    """
    from converter.registry import load

    registry = load([name] if name else [])
    strategies, initializers = _chosen(registry, name)
    if as_json:
        rows = {
            "plugins": [_strategy_row(s, registry) for s in strategies],
            "initializers": [_initializer_row(i, registry) for i in initializers],
            "broken": list(map(str, registry.broken)),
        }
        click.echo(json.dumps(rows, indent=2))
    elif name and not registry.brings_no_strategy(name):
        for strategy in strategies:
            for line in _explained(strategy, registry.origin(strategy.name)):
                say(line)
        for initializer in initializers:
            for line in _explained_initializer(initializer, registry):
                say(line)
    else:
        for line in _listed(registry, strategies, initializers):
            say(line)
    for broken in registry.broken:
        say(f"Warning: {broken}", err=True)


def _chosen(
    registry: Registry, name: str | None
) -> tuple[list[type[Strategy]], list[type[Initializer]]]:
    if name is None:
        return list(registry.strategies.values()), list(registry.initializers.values())
    if registry.brings_no_strategy(name):
        return [], [i for i, plugin in registry.brought.values() if plugin.name == name]
    if name in registry.initializers and name not in registry.strategies:
        return [], [registry.initializers[name]]
    return [registry.get(name)], []


def _strategy_row(strategy: type[Strategy], registry: Registry) -> dict[str, object]:
    from converter.strategy import options, summary

    return {
        "name": strategy.name,
        "summary": summary(strategy),
        "origin": registry.origin(strategy.name),
        "options": [
            {"name": o.name, "flag": o.flag, "help": o.help, "repeatable": o.multiple}
            for o in options(strategy)
        ],
    }


def _initializer_row(initializer: type[Initializer], registry: Registry) -> dict[str, object]:
    from converter.initializer import arguments, explanation, signature

    return {
        "name": initializer.name,
        "summary": explanation(initializer)[0].removesuffix("."),
        "origin": registry.origin_of_initializer(initializer.name),
        "signature": signature(initializer),
        "arguments": [{"name": a.name, "help": a.help} for a in arguments(initializer)],
    }


def _listed(
    registry: Registry,
    strategies: Sequence[type[Strategy]],
    initializers: Sequence[type[Initializer]],
) -> Iterator[str]:
    rows = [_strategy_row(s, registry) for s in strategies]
    yield from _table([(str(r["name"]), str(r["summary"]), str(r["origin"])) for r in rows])
    if rows and initializers:
        yield ""
        yield "Initializers:"
    rows = [_initializer_row(i, registry) for i in initializers]
    yield from _table([(str(r["name"]), str(r["summary"]), str(r["origin"])) for r in rows])


def _table(rows: Sequence[tuple[str, str, str]]) -> Iterator[str]:
    width = max((len(name) for name, _, _ in rows), default=0)
    for name, summary, origin in rows:
        yield f"{name.ljust(width)}  {summary}  ({origin})"


def _explained_initializer(initializer: type[Initializer], registry: Registry) -> Iterator[str]:
    from converter.initializer import arguments, explanation, signature

    yield f"{signature(initializer)}  ({registry.origin_of_initializer(initializer.name)})"
    yield ""
    yield from explanation(initializer)
    own = arguments(initializer)
    if own:
        yield ""
        yield "Arguments:"
    for argument in own:
        choices = f" [{', '.join(argument.choices)}]" if argument.choices else ""
        yield f"  {argument.name}"
        yield f"      {argument.help}{choices}"


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
