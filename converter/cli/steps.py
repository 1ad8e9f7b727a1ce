"""The options of strategies on a command line: which there are, and the steps they make."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import click

from converter.cli.text import say
from converter.errors import ConverterError, UsageError
from converter.options import Option
from converter.recipe import Recipe, Step, merge, read_recipe
from converter.registry import DISABLED, Registry, load
from converter.strategy import Strategy, options

_WIDE = 30
"""Lists of choices that are longer would push all help to the right."""


@dataclass(frozen=True)
class _Flag:
    """A click option that stands for an option of one strategy, or of several that share it."""

    click_option: click.Option
    owners: tuple[str, ...]
    option: Option


class StrategyCommand(click.Command):
    """A command with the options of all strategies beside its own."""

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        return [*super().get_params(ctx), *(f.click_option for f in _flags(self, ctx))]

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        _registry(ctx, _plugin_choices(ctx, args))
        rest = super().parse_args(ctx, list(args))
        if not ctx.resilient_parsing:
            ctx.meta["converter.order"] = self.make_parser(ctx).parse_args(list(args))[2]
        return rest

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        groups: dict[str, list[tuple[str, str]]] = {}
        own = super().get_params(ctx)
        # Arguments, which stand in the usage line, have records too since click 8.2.
        flags = [p for p in own if isinstance(p, click.Option)]
        groups["Options"] = [r for p in flags if (r := p.get_help_record(ctx)) is not None]
        for flag in _flags(self, ctx):
            record = flag.click_option.get_help_record(ctx)
            if record is not None:
                *others, last = flag.owners
                title = f"Options of {', '.join(others)}{' and ' if others else ''}{last}"
                groups.setdefault(title, []).append(record)
        for title, records in groups.items():
            with formatter.section(title):
                formatter.write_dl(records)


def _plugin_choices(ctx: click.Context, args: Sequence[str]) -> list[str]:
    """Return the plugins that the command line and its recipe name, before it is parsed.

    Strategy files among them bring flags of their own.
    """
    paths = _values(args, "--recipe")
    recipe = recipe_of(ctx, paths[-1]) if paths else None
    steps = recipe.steps if recipe else ()
    return [*_values(args, "--plugin"), *(step.plugin for step in steps)]


def recipe_of(ctx: click.Context, path: str | None) -> Recipe | None:
    """Return the recipe of a command line, which is read once: it may be a pipe.

    Raises:
        UsageError: it is no recipe.
    """
    if path is None:
        return None
    known: dict[str, Recipe] = ctx.meta.setdefault("converter.recipes", {})
    if path not in known:
        known[path] = read_recipe(path)
    return known[path]


def _values(args: Sequence[str], flag: str) -> list[str]:
    apart = [value for name, value in itertools.pairwise(args) if name == flag]
    return apart + [a.removeprefix(f"{flag}=") for a in args if a.startswith(f"{flag}=")]


def _registry(ctx: click.Context, choices: Sequence[str] = ()) -> Registry:
    found: Registry | None = ctx.meta.get("converter.registry")
    if found is None:
        ctx.meta["converter.choices"] = tuple(choices)
        found = ctx.meta["converter.registry"] = load(choices)
        for broken in found.broken:
            say(f"Warning: {broken}", err=True)
    return found


def _flags(command: click.Command, ctx: click.Context) -> list[_Flag]:
    cached: list[_Flag] | None = ctx.meta.get("converter.flags")
    if cached is not None:
        return cached
    taken = {spelling for p in command.params for spelling in p.opts}
    flags: dict[str, _Flag] = {}
    for strategy in _registry(ctx).strategies.values():
        for option in options(strategy):
            if option.flag in taken:
                raise ConverterError(
                    f"plugin {strategy.name}: its option {option.flag} is one of the command "
                    f"itself; leave the plugin out with {DISABLED}={strategy.name}"
                )
            other = flags.get(option.flag)
            owners = (*other.owners, strategy.name) if other else (strategy.name,)
            click_option = other.click_option if other else _click_option(option)
            flags[option.flag] = _Flag(click_option, owners, option)
    ctx.meta["converter.flags"] = list(flags.values())
    return list(flags.values())


def _click_option(option: Option) -> click.Option:
    extra: dict[str, Any] = {"metavar": option.metavar or None, "multiple": option.multiple}
    spelling = option.flag
    if option.is_flag:
        extra = {"default": None}
        spelling += f"/--no-{option.flag[2:]}"
    elif option.choices:
        listed = f"[{'|'.join(option.choices)}]"
        extra["metavar"] = listed if len(listed) < _WIDE else option.metavar
    return click.Option([spelling, _dest(option)], help=option.help, **extra)


def _dest(option: Option) -> str:
    return option.flag[2:].replace("-", "_") + "__strategy"


def steps_of(ctx: click.Context, recipe: Recipe | None) -> tuple[Step, ...]:
    """Return the steps that the recipe and the command line together mean, in order.

    Raises:
        UsageError: an option was given whose strategy was not chosen.
    """
    chosen: dict[str, dict[str, object]] = {}
    values = dict(ctx.params)
    flags = {id(f.click_option): f for f in _flags(ctx.command, ctx)}
    plugins = iter(values["plugin"])
    registry = _registry(ctx)
    named: set[str] = set()
    for parameter in ctx.meta["converter.order"]:
        if parameter.name == "plugin":
            # A file that has initializers only is loaded, and there is nothing to apply.
            if registry.brings_no_strategy(choice := next(plugins)):
                continue
            name = registry.get(choice).name
            if name in named:
                raise UsageError(f"--plugin {name} is given twice; a recipe can have it twice")
            named.add(name)
            chosen.setdefault(name, {})
        elif (flag := flags.get(id(parameter))) and flag.option.selects:
            chosen.setdefault(flag.owners[0], {})
    given_steps = [
        step.named(registry)
        for step in (recipe.steps if recipe else ())
        if step.values or not registry.brings_no_strategy(step.plugin)
    ]
    in_recipe = [step.plugin for step in given_steps]
    for flag in flags.values():
        given = values.get(_dest(flag.option))
        if given is None or given == ():
            continue
        takers = [o for o in flag.owners if o in chosen or o in in_recipe]
        if not takers:
            owners = " or ".join(flag.owners)
            name = flag.owners[0] if len(flag.owners) == 1 else "NAME"
            raise UsageError(f"{flag.option.flag} is an option of {owners}; add --plugin {name}")
        for taker in takers:
            chosen.setdefault(taker, {})[flag.option.name] = flag.option.parse(given)
    replaced = {name: _replaced(registry, name, given) for name, given in chosen.items()}
    return merge(given_steps, list(chosen.items()), replaced)


def _replaced(registry: Registry, name: str, given: Mapping[str, object]) -> set[str]:
    """Return the options of a strategy that cannot be meant beside those that are given."""
    known = options(registry.get(name))
    # To switch one off leaves the others as they are.
    meant = {option for option, value in given.items() if value is not False}
    pairs = [(option.name, other) for option in known for other in option.instead_of]
    return {b for a, b in pairs if a in meant} | {a for a, b in pairs if b in meant}


def plugins_of(ctx: click.Context) -> tuple[str, ...]:
    """Return what the command line and its recipe call the plugins: names, and files to load."""
    choices: tuple[str, ...] = ctx.meta["converter.choices"]
    return choices


def strategies_of(ctx: click.Context, steps: Sequence[Step]) -> list[Strategy]:
    """Make the strategies of steps.

    Raises:
        UsageError: a plugin or an option is unknown, or a value is of another type.
    """
    registry = _registry(ctx)
    return [step.build(registry) for step in steps]
