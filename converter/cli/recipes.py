"""`convert recipes`: the recipes that come with the package."""

from __future__ import annotations

import json

import click

from converter.cli.text import say
from converter.errors import UsageError, did_you_mean


@click.command()
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print them as JSON.")
def command(name: str | None, as_json: bool) -> None:
    """List the recipes that come with the package, or print the one called NAME.

    `--recipe NAME` uses one. To change it, print it into a file of your own.
    """
    from converter.recipe import read_recipe, shipped_recipes

    shipped = shipped_recipes()
    if name is not None and name not in shipped:
        near = did_you_mean(name, shipped) or f"; there are {', '.join(shipped)}"
        raise UsageError(f"no recipe {name!r}{near}")
    if name is not None and not as_json:
        click.echo(shipped[name].read_text(encoding="utf-8"), nl=False)
        return
    rows = [
        {"name": each, "summary": recipe.summary, "plugins": [step.plugin for step in recipe.steps]}
        for each, path in shipped.items()
        if name in (None, each)
        for recipe in [read_recipe(path)]
    ]
    if as_json:
        click.echo(json.dumps({"recipes": rows}, indent=2))
        return
    width = max(map(len, shipped))
    for row in rows:
        say(f"{str(row['name']).ljust(width)}  {row['summary']}")
