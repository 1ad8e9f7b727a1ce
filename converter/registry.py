"""Which strategies and initializers there are, and who brought them."""

from __future__ import annotations

import importlib.util
import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, TypeVar, cast

import pluggy

from converter import hookspecs
from converter.errors import ConverterError, UsageError, did_you_mean
from converter.initializer import Initializer, arguments
from converter.options import Option
from converter.strategy import Strategy, options

if TYPE_CHECKING:
    from importlib.metadata import Distribution, EntryPoint

T = TypeVar("T")

GROUP = "converter"
DISABLED = "CONVERTER_DISABLED_PLUGINS"
"""Environment variable with the names of plugins that are not loaded, separated by commas."""

_FILE = re.compile(r"(?s)(?P<path>.*\.py)(?::(?P<name>[^:/\\]+))?")


@dataclass(frozen=True, slots=True)
class Plugin:
    """What brings strategies or initializers: an installed package's entry point, or a file.

    Attributes:
        name: the entry point's name, or the file as it was given.
        distribution: the installed package; None for a file.
    """

    name: str
    distribution: Distribution | None = None

    @property
    def origin(self) -> str:
        """Distribution and version, `ckpt-converter 0.1.0`, or the file."""
        if self.distribution is None:
            return self.name
        return f"{self.distribution.name} {self.distribution.version}"

    def __str__(self) -> str:
        if self.distribution is None:
            return self.name
        return f"plugin {self.name} ({self.origin})"


@dataclass(frozen=True, slots=True)
class Broken:
    """A plugin that could not be loaded, and why, in one line."""

    plugin: Plugin
    error: str

    def __str__(self) -> str:
        return f"{self.plugin}: {self.error}"


@dataclass(frozen=True)
class Registry:
    """The strategies and initializers of all plugins that were loaded.

    Attributes:
        strategies: strategy by name, sorted.
        plugins: who brought it, by the same names.
        broken: the plugins that could not be loaded.
        files: the names of the strategies of each file, by the file as it was given.
        brought: the initializers that are not built in, by name, with who brought them.
    """

    strategies: Mapping[str, type[Strategy]]
    plugins: Mapping[str, Plugin]
    broken: tuple[Broken, ...] = ()
    files: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    brought: Mapping[str, tuple[type[Initializer], Plugin]] = field(default_factory=dict)

    @property
    def initializers(self) -> Mapping[str, type[Initializer]]:
        """All initializers by name, sorted, the built-in ones included."""
        from converter.initializers import BUILT_IN

        own = {name: initializer for name, (initializer, _) in self.brought.items()}
        return dict(sorted((own | dict(BUILT_IN)).items()))

    def brings_no_strategy(self, choice: str) -> bool:
        """Whether a choice is a file that was loaded and has initializers only."""
        match = _FILE.fullmatch(choice)
        path = match["path"] if match and match["name"] is None else None
        return self.files.get(path or "") == () and any(
            plugin.name == path for _, plugin in self.brought.values()
        )

    def get(self, choice: str) -> type[Strategy]:
        """Return the strategy of a name, or of a file: `./mine.py`, `./mine.py:name`.

        Raises:
            UsageError: no plugin has it; a file has several and the choice does not say which.
        """
        return self.strategies[self._name(choice)]

    def origin(self, name: str) -> str:
        """Return who brought a strategy: distribution and version, or the file."""
        return self.plugins[name].origin

    def origin_of_initializer(self, name: str) -> str:
        """Return who brought an initializer: distribution and version, the file, or `built in`."""
        return self.brought[name][1].origin if name in self.brought else "built in"

    def _name(self, choice: str) -> str:
        match = _FILE.fullmatch(choice)
        if not match:
            if choice in self.strategies:
                return choice
            for broken in self.broken:
                if broken.plugin.name == choice:
                    raise UsageError(f"no plugin named {choice!r}: {broken}")
            known = did_you_mean(choice, self.strategies) or "; `convert plugins` lists them"
            raise UsageError(f"no plugin named {choice!r}{known}")
        path, wanted = match["path"], match["name"]
        if path not in self.files:
            raise UsageError(f"{path}: this file was not among those that were loaded")
        names = self.files[path]
        if wanted is None and len(names) == 1:
            return names[0]
        if wanted in names:
            return wanted
        if not names:
            raise UsageError(f"{path} has no strategy")
        spelt = " or ".join(f"{path}:{name}" for name in names)
        raise UsageError(f"{choice}: choose one of its strategies, {spelt}")


def is_file(choice: str) -> bool:
    """Whether a `--plugin` names a file (`./mine.py`, `./mine.py:name`) and no installed plugin."""
    return _FILE.fullmatch(choice) is not None


def load(choices: Iterable[str] = ()) -> Registry:
    """Load the installed plugins, and the files among the given choices of `--plugin`.

    A plugin that cannot be loaded is in `broken` of the result.

    Raises:
        UsageError: a file cannot be loaded; two plugins have a strategy of one name, or flags
            that differ and are spelt the same.
    """
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    found: list[tuple[Plugin, _Provided]] = []
    broken = []
    for plugin, entry in _entry_points():
        try:
            found.append((plugin, _provided(manager, plugin, entry.load())))
        # Whatever somebody's module raises, an exit included, must not take the program along.
        except (Exception, SystemExit) as error:
            broken.append(Broken(plugin, _one_line(error)))
    files: dict[str, tuple[str, ...]] = {}
    for path in dict.fromkeys(m["path"] for m in map(_FILE.fullmatch, choices) if m):
        provided = _load_file(manager, path)
        files[path] = tuple(strategy.name for strategy in provided.strategies)
        found.append((Plugin(path), provided))
    strategies = _unique(
        "strategy", [(p, s.name, s) for p, given in found for s in given.strategies]
    )
    brought = _unique(
        "initializer", [(p, i.name, i) for p, given in found for i in given.initializers]
    )
    if brought:
        _check_built_in(brought)
    plugins = {name: plugin for name, (_, plugin) in strategies.items()}
    by_name = {name: strategy for name, (strategy, _) in sorted(strategies.items())}
    _check_flags(by_name, plugins)
    return Registry(by_name, plugins, tuple(broken), files, brought)


@dataclass(frozen=True, slots=True)
class _Provided:
    """What one plugin brings."""

    strategies: Sequence[type[Strategy]]
    initializers: Sequence[type[Initializer]]


def _unique(
    what: str, found: Iterable[tuple[Plugin, str, type[T]]]
) -> dict[str, tuple[type[T], Plugin]]:
    by_name: dict[str, tuple[type[T], Plugin]] = {}
    for plugin, name, given in found:
        other = by_name[name][1] if name in by_name else None
        # A file that somebody names takes the place of what is installed.
        if other is not None and (plugin.distribution or not other.distribution):
            raise _conflict(f"{what} {name!r}", other, plugin)
        by_name[name] = given, plugin
    return by_name


def _check_built_in(brought: Mapping[str, tuple[type[Initializer], Plugin]]) -> None:
    from converter.initializers import BUILT_IN

    for name, (_, plugin) in brought.items():
        if name in BUILT_IN:
            raise _conflict(f"initializer {name!r}", "converter itself", plugin)


def _entry_points() -> list[tuple[Plugin, EntryPoint]]:
    # A fifth of the time that `--help` takes, and most commands need no plugins.
    from importlib.metadata import entry_points

    disabled = {name.strip() for name in os.environ.get(DISABLED, "").split(",")}
    return [
        (Plugin(entry.name, entry.dist), entry)
        for entry in sorted(entry_points(group=GROUP), key=lambda e: e.name)
        if entry.name not in disabled
    ]


def _provided(manager: pluggy.PluginManager, plugin: Plugin, module: object) -> _Provided:
    """Return what a plugin's hooks give, all of it well declared."""
    if manager.register(module, plugin.name) is None:
        raise ConverterError("it is registered already")
    try:
        manager.check_pending()
    except pluggy.PluginValidationError:
        manager.unregister(module)
        raise
    strategies = _given(manager.hook.converter_strategies, module)
    initializers = _given(manager.hook.converter_initializers, module)
    if strategies is None and initializers is None:
        raise ConverterError("it has no hook; decorate converter_strategies with @hookimpl")
    return _Provided(
        [_checked(given) for given in strategies or ()],
        [_checked_initializer(given) for given in initializers or ()],
    )


def _given(hook: pluggy.HookCaller, module: object) -> Iterable[object] | None:
    """Return what one plugin's hook gives; None where it does not have it."""
    implementation = next((i for i in hook.get_hookimpls() if i.plugin is module), None)
    return cast("Iterable[object]", implementation.function()) if implementation else None


def _checked(strategy: object) -> type[Strategy]:
    _check_class(strategy, Strategy, "converter_strategies")
    options(cast("type[Strategy]", strategy))
    return cast("type[Strategy]", strategy)


def _checked_initializer(initializer: object) -> type[Initializer]:
    _check_class(initializer, Initializer, "converter_initializers")
    arguments(cast("type[Initializer]", initializer))
    return cast("type[Initializer]", initializer)


def _check_class(given: object, wanted: type, hook: str) -> None:
    if isinstance(given, wanted):
        raise ConverterError(
            f"{hook} gave an instance of {type(given).__qualname__}; give the class"
        )
    if not isinstance(given, type) or not issubclass(given, wanted):
        raise ConverterError(f"{hook} gave {given!r}, which is no {wanted.__name__}")


def _load_file(manager: pluggy.PluginManager, path: str) -> _Provided:
    """Return what a file brings: what its hooks give, or else what it defines."""
    module = _empty_module(path)
    try:
        assert module.__spec__ is not None
        assert module.__spec__.loader is not None
        module.__spec__.loader.exec_module(module)
        if any(
            hasattr(module, hook) for hook in ("converter_strategies", "converter_initializers")
        ):
            return _provided(manager, Plugin(path), module)
        return _Provided(
            [_checked(strategy) for strategy in _defined(module, Strategy)],
            [_checked_initializer(given) for given in _defined(module, Initializer)],
        )
    # As for an installed plugin, but this one was asked for.
    except (Exception, SystemExit) as error:
        raise UsageError(f"{path}: {_one_line(error)}") from error


def _empty_module(path: str) -> ModuleType:
    where = Path(path).resolve()
    # Dataclasses look their module up by its name.
    name = f"{hookspecs.PROJECT} plugin {where}"
    specification = importlib.util.spec_from_file_location(name, where)
    if not where.is_file() or specification is None or specification.loader is None:
        raise UsageError(f"no plugin file {path}")
    module = importlib.util.module_from_spec(specification)
    sys.modules[name] = module
    return module


def _defined(module: ModuleType, wanted: type[T]) -> list[type[T]]:
    return [
        value
        for value in vars(module).values()
        if isinstance(value, type)
        and issubclass(value, wanted)
        and value.__module__ == module.__name__
    ]


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, ConverterError) else f"{type(error).__name__}: {text}"


def _check_flags(strategies: Mapping[str, type[Strategy]], plugins: Mapping[str, Plugin]) -> None:
    """Refuse two flags of one spelling, unless both are shared and take the same values."""
    seen: dict[str, tuple[str, Option]] = {}
    for name, strategy in strategies.items():
        for option in options(strategy):
            owner, first = seen.setdefault(option.flag, (name, option))
            if owner == name:
                continue
            if not (option.shared and first.shared) or (option.kind, option.container) != (
                first.kind,
                first.container,
            ):
                raise _conflict(f"flag {option.flag}", plugins[owner], plugins[name])


def _conflict(what: str, one: Plugin | str, other: Plugin) -> UsageError:
    leave_out = [p.name for p in (other, one) if isinstance(p, Plugin) and p.distribution]
    advice = f"leave one out with {DISABLED}={leave_out[0]}" if leave_out else "rename one"
    return UsageError(f"{what} comes from both {one} and {other}; {advice}")
