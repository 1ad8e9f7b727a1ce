"""Recipes: a TOML file that says what a conversion is, and how flags change it."""

from __future__ import annotations

import os
import reprlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from converter.errors import UsageError, did_you_mean
from converter.registry import Registry, is_file
from converter.strategy import Strategy, build
from converter.toml import read_toml

_FORMATS = ("tf", "safetensors")


@dataclass(frozen=True)
class Step:
    """One strategy to apply.

    Attributes:
        plugin: name of the strategy, or a strategy file.
        values: its options by name, not yet checked.
        where: the subject of errors: `recipe.toml: step 1 (pad)`, or `pad` for flags.
        directory: what relative paths among the values start from.
    """

    plugin: str
    values: Mapping[str, object]
    where: str
    directory: Path = Path()

    def named(self, registry: Registry) -> Step:
        """Return the step with the strategy's own name where it names a file.

        Raises:
            UsageError: there is no such plugin.
        """
        return replace(self, plugin=self._strategy(registry).name)

    def build(self, registry: Registry) -> Strategy:
        """Make the strategy.

        Raises:
            UsageError: there is no such plugin or option; a value is missing or of another type.
        """
        strategy = self._strategy(registry)
        return build(strategy, self.values, self.where, self.directory, registry.initializers)

    def _strategy(self, registry: Registry) -> type[Strategy]:
        try:
            return registry.get(self.plugin)
        except UsageError as error:
            raise UsageError(f"{self.where}: {error}") from None


@dataclass(frozen=True)
class Recipe:
    """What a recipe file says; None where it leaves a matter to the command line.

    Every path in it is relative to the directory of the file; here they are ready for use.

    Attributes:
        source: the checkpoint to convert.
        output: where the result goes; a `/` at its end is kept.
        to: `tf` or `safetensors`.
        shard_size: bytes of one file, as a number or a text such as `5GB`.
        graph_from: the checkpoint whose graph the source has.
        sidecar: whether what the output cannot hold goes beside it.
        summary: half a sentence on what it does.
        steps: the strategies, in order.
    """

    source: str | None = None
    output: str | None = None
    to: str | None = None
    shard_size: int | str | None = None
    graph_from: str | None = None
    sidecar: bool | None = None
    summary: str | None = None
    steps: tuple[Step, ...] = ()


def shipped_recipes() -> dict[str, Path]:
    """Return the recipes that come with the package, by name."""
    directory = Path(__file__).with_name("recipes")
    return {path.stem: path for path in sorted(directory.glob("*.toml"))}


def read_recipe(path: str | os.PathLike[str]) -> Recipe:
    """Read a recipe file, or one that comes with the package.

    Args:
        path: a file, or the name of a shipped recipe where there is no file of that name.

    Raises:
        UsageError: it cannot be read, is no TOML, or has keys or values that no recipe has.
    """
    path = _found(path)
    return _recipe(read_toml(path, "recipe"), path)


def _found(path: str | os.PathLike[str]) -> Path:
    file, shipped = Path(path), shipped_recipes()
    name = os.fspath(path)
    if file.exists() or file.name != name or name.endswith(".toml"):
        return file
    if name not in shipped:
        near = did_you_mean(name, shipped) or f"; the package brings {', '.join(shipped)}"
        raise UsageError(f"{name}: no such file, and no such recipe{near}")
    return shipped[name]


def _recipe(table: Mapping[str, object], path: Path) -> Recipe:
    values: dict[str, object] = {}
    for key, value in table.items():
        if key == "step":
            values["steps"] = _steps(value, path)
            continue
        if key not in _KEYS:
            known = (*_KEYS, "step")
            near = did_you_mean(key, known) or f"; it can have {', '.join(known)}"
            raise UsageError(f"{path}: a recipe has no key {key!r}{near}")
        types, words = _KEYS[key]
        # By identity: a bool is an int to isinstance.
        if type(value) not in types or not _is_possible(value):
            raise UsageError(f"{path}: {key} must be {words}, got {reprlib.repr(value)}")
        values[key] = value
    to = values.get("to")
    if to is not None and to not in _FORMATS:
        near = did_you_mean(str(to), _FORMATS)
        raise UsageError(f"{path}: to must be tf or safetensors, got {to!r}{near}")
    for key in ("source", "output", "graph_from"):
        if key in values:
            # Not a Path: that would lose a `/` at the end, which says "a directory".
            values[key] = os.path.join(path.parent, str(values[key]))  # noqa: PTH118
    return Recipe(**values)  # type: ignore[arg-type]  # checked against _KEYS


def _is_possible(value: object) -> bool:
    if isinstance(value, str):
        return "\0" not in value
    return isinstance(value, bool) or not isinstance(value, int) or value > 0


_KEYS: Mapping[str, tuple[tuple[type, ...], str]] = {
    "source": ((str,), "a path"),
    "output": ((str,), "a path"),
    "to": ((str,), "tf or safetensors"),
    "shard_size": ((int, str), "a size such as '5GB'"),
    "graph_from": ((str,), "a path"),
    "sidecar": ((bool,), "true or false"),
    "summary": ((str,), "a text"),
}


def _steps(value: object, path: Path) -> tuple[Step, ...]:
    if not isinstance(value, list) or not all(isinstance(step, dict) for step in value):
        raise UsageError(f"{path}: step must be a list of tables; write [[step]] above each")
    steps = []
    for number, table in enumerate(value, 1):
        where = f"{path}: step {number}"
        plugin = table.get("plugin")
        if not isinstance(plugin, str):
            raise UsageError(f"{where}: plugin must name a strategy, got {reprlib.repr(plugin)}")
        where += f" ({plugin})"
        if is_file(plugin):
            plugin = str(path.parent / plugin)
        values = {key: item for key, item in table.items() if key != "plugin"}
        steps.append(Step(plugin, values, where, path.parent))
    return tuple(steps)


def merge(
    steps: Iterable[Step],
    chosen: Sequence[tuple[str, Mapping[str, object]]],
    replaced: Mapping[str, Collection[str]] | None = None,
) -> tuple[Step, ...]:
    """Return the steps of a recipe with what the command line says, which wins.

    Args:
        steps: of the recipe, with names of strategies (`Step.named`).
        chosen: names of strategies with the options that flags give them, as `Option.parse`
            returns them, in the order of the command line. The options of a strategy that occurs
            once in the recipe replace those there; other strategies come after the recipe's.
        replaced: by the names of strategies, the options that are left out of the recipe, as others
            stand in their place.

    Raises:
        UsageError: a strategy is chosen twice, or has several steps in the recipe, so that it is
            open which one the flags mean.
    """
    merged = list(steps)
    count = len(merged)
    for name, values in chosen:
        places = [place for place, step in enumerate(merged) if step.plugin == name]
        if not places:
            merged.append(Step(name, values, name))
            continue
        if places[-1] >= count:
            raise UsageError(f"--plugin {name} is given twice; a recipe can have it several times")
        if len(places) > 1:
            raise UsageError(
                f"{name} has {len(places)} steps in the recipe, and flags cannot tell which one "
                f"they mean; change the recipe"
            )
        step = merged[places[0]]
        gone = (replaced or {}).get(name, ())
        kept = {key: value for key, value in step.values.items() if key not in gone}
        merged[places[0]] = replace(step, values={**kept, **values})
    return tuple(merged)
