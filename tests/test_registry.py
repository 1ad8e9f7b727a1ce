"""Plugins: installed ones, files, broken ones, and two that want the same."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from converter.errors import UsageError
from converter.registry import Registry, is_file, load

BUILT_IN = [
    *("cast", "drop", "ema", "keep", "keras", "pad", "reinit", "rename", "scale", "tf1", "torch"),
    "truncate",
]

STRATEGY = '''
from __future__ import annotations
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar
from converter import Strategy, hookimpl, option

@dataclass(frozen=True)
class {title}(Strategy):
    """Do nothing, under the name {name}."""

    name: ClassVar[str] = "{name}"
    {fields}
'''
HOOK = """
@hookimpl
def converter_strategies() -> Iterable[type[Strategy]]:
    yield {title}
"""


def source(name: str, fields: str = "", *, hook: bool = True) -> str:
    """Return the text of a plugin module with one strategy."""
    text = STRATEGY + (HOOK if hook else "")
    return text.format(name=name, title=name.title().replace("-", ""), fields=fields)


class Site:
    """A directory on sys.path, with packages that look installed."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def install(self, plugin: str, text: str | None, *, version: str = "1.0") -> None:
        """Install a distribution `PLUGIN-dist` with an entry point and its module."""
        module = f"installed_{plugin.replace('-', '_')}_{self.path.name.replace('-', '_')}"
        info = self.path / f"{plugin.replace('-', '_')}_dist-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {plugin}-dist\nVersion: {version}\n"
        )
        (info / "entry_points.txt").write_text(f"[converter]\n{plugin} = {module}\n")
        if text is not None:
            (self.path / f"{module}.py").write_text(text)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    monkeypatch.syspath_prepend(tmp_path)
    return Site(tmp_path)


def broken(registry: Registry) -> list[str]:
    return [str(plugin) for plugin in registry.broken]


def test_the_built_in_strategies_come_through_their_entry_points() -> None:
    registry = load()
    assert [name for name in registry.strategies if name in BUILT_IN] == BUILT_IN
    for name in BUILT_IN:
        assert registry.get(name).__module__ == f"converter_plugins.{name}"
        assert registry.plugins[name].name == name
        assert registry.origin(name).startswith("ckpt-converter ")


def test_an_installed_plugin_is_found(site: Site) -> None:
    site.install("mine", source("mine"), version="2.3")
    registry = load()
    assert registry.get("mine").name == "mine"
    assert registry.origin("mine") == "mine-dist 2.3"
    assert broken(registry) == []


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (None, "ModuleNotFoundError: No module named 'installed_mine_"),
        ("1 +", "SyntaxError: invalid syntax"),
        ("raise ValueError('two\\nlines')", "ValueError: two lines"),
        ("import sys; sys.exit(3)", "SystemExit: 3"),
        ("", "it has no hook; decorate converter_strategies with @hookimpl"),
        (source("mine", hook=False), "it has no hook"),
        (source("mine", "bad: set[str] = None"), "Mine.bad: an option cannot be set[str]"),
        (source("mine").replace("(frozen=True)", "()"), "Mine: a strategy is a frozen dataclass"),
        (source("mine").replace('"mine"', '"My"'), "Mine: the name 'My' must be"),
        (source("mine").replace("yield Mine", "yield Mine()"), "gave an instance of Mine; give"),
        (source("mine").replace("yield Mine", "yield int"), "gave <class 'int'>, which is no"),
        (source("mine").replace("yield Mine", "yield 1 / 0"), "ZeroDivisionError: division by"),
        (source("mine").replace("strategies()", "strategies(x)"), "PluginValidationError:"),
        (source("mine").replace("strategies()", "strategeis()"), "PluginValidationError:"),
    ],
)
def test_a_broken_plugin_costs_one_line(site: Site, text: str | None, error: str) -> None:
    site.install("lost", None)
    site.install("mine", text)
    site.install("other", source("other"))
    registry = load()
    assert "other" in registry.strategies
    assert "mine" not in registry.strategies
    _, line = broken(registry)
    assert line.startswith("plugin mine (mine-dist 1.0): ")
    assert error in line
    assert "\n" not in line
    with pytest.raises(UsageError, match=r"^no plugin named 'mine': plugin mine \(mine-dist"):
        registry.get("mine")


def test_plugins_are_left_out_by_the_environment(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.install("mine", source("mine"))
    site.install("other", "raise ValueError")
    monkeypatch.setenv("CONVERTER_DISABLED_PLUGINS", "other, mine,pad")
    registry = load()
    assert broken(registry) == []
    assert [name for name in registry.strategies if name in BUILT_IN] == sorted(
        set(BUILT_IN) - {"pad"}
    )
    assert "mine" not in registry.strategies


def test_two_strategies_of_one_name_are_refused_naming_both(site: Site) -> None:
    site.install("one", source("same"))
    site.install("two", source("same"))
    with pytest.raises(UsageError) as caught:
        load()
    assert str(caught.value) == (
        "strategy 'same' comes from both plugin one (one-dist 1.0) and plugin two (two-dist 1.0); "
        "leave one out with CONVERTER_DISABLED_PLUGINS=two"
    )


def test_two_flags_of_one_spelling_are_refused(site: Site) -> None:
    site.install("one", source("one", 'two_three: int = option(1, help="x")'))
    site.install("other", source("one-two", 'three: int = option(1, help="x")'))
    with pytest.raises(UsageError, match=r"flag --one-two-three comes from both plugin one .* and"):
        load()


def test_shared_flags_must_take_the_same_values(site: Site) -> None:
    site.install("one", source("one", 'zap: int = option(1, help="x", shared=True)'))
    site.install("two", source("two", 'zap: int = option(1, help="x", shared=True)'))
    assert {"one", "two"} <= set(load().strategies)
    site.install("six", source("six", 'zap: str = option("", help="x", shared=True)'))
    with pytest.raises(UsageError, match=r"flag --zap comes from both"):
        load()


def test_unknown_names_get_the_nearest_one() -> None:
    with pytest.raises(UsageError, match=r"^no plugin named 'trunctae'; did you mean 'truncate'?"):
        load().get("trunctae")
    with pytest.raises(UsageError, match=r"^no plugin named 'zzz'; `convert plugins` lists them$"):
        load().get("zzz")


@pytest.mark.parametrize("hook", [True, False])
def test_a_file_is_a_plugin(tmp_path: Path, hook: bool) -> None:
    path = str(tmp_path / "my strategy.py")
    Path(path).write_text(source("mine", hook=hook))
    registry = load(["pad", path])
    assert registry.get(path).name == "mine"
    assert registry.get(f"{path}:mine") is registry.get("mine")
    assert registry.origin("mine") == path


def test_a_hook_in_a_file_says_what_counts(tmp_path: Path) -> None:
    path = str(tmp_path / "mine.py")
    second = source("other", hook=False).replace("from __future__ import annotations", "")
    Path(path).write_text(source("mine") + second)
    assert load([path]).get(path).name == "mine"


def test_a_file_with_several_strategies_needs_a_choice(tmp_path: Path) -> None:
    path = str(tmp_path / "two.py")
    second = source("other", hook=False).replace("from __future__ import annotations", "")
    Path(path).write_text(source("one", hook=False) + second)
    registry = load([path])
    with pytest.raises(UsageError) as caught:
        registry.get(path)
    assert str(caught.value) == (
        f"{path}: choose one of its strategies, {path}:one or {path}:other"
    )
    with pytest.raises(UsageError, match=r":zzz: choose one of its strategies"):
        registry.get(f"{path}:zzz")
    assert load([f"{path}:other"]).get(f"{path}:other").name == "other"


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (None, "no plugin file {path}"),
        ("1 +", "{path}: SyntaxError: invalid syntax"),
        ("import nowhere", "{path}: ModuleNotFoundError: No module named 'nowhere'"),
    ],
)
def test_a_file_that_cannot_be_loaded_is_an_error(
    tmp_path: Path, text: str | None, error: str
) -> None:
    path = tmp_path / "mine.py"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UsageError) as caught:
        load([str(path)])
    assert str(caught.value).startswith(error.format(path=path))
    assert "\n" not in str(caught.value)


def test_a_file_takes_the_place_of_what_is_installed(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(source("pad", hook=False))
    registry = load([str(path)])
    assert registry.origin("pad") == str(path)
    assert registry.get("pad").__module__.endswith("mine.py")
    other = tmp_path / "other.py"
    other.write_text(source("pad", hook=False))
    with pytest.raises(UsageError, match=r"'pad' comes from both .*mine\.py and .*other\.py"):
        load([str(path), str(other)])


def test_a_file_without_strategies_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "empty.py"
    path.write_text("from converter import Strategy\n")
    with pytest.raises(UsageError, match=r"empty\.py has no strategy$"):
        load([str(path)]).get(str(path))


def test_a_file_must_have_been_loaded() -> None:
    with pytest.raises(UsageError, match=r"^\./mine\.py: this file was not among those that were"):
        load().get("./mine.py")


def test_files_are_told_from_names() -> None:
    assert is_file("./mine.py")
    assert is_file("mine.py:name")
    assert not is_file("pad")
    assert not is_file("./pad")


def test_the_example_of_the_hook_reference_works(tmp_path: Path) -> None:
    spec = importlib.util.find_spec("converter.hookspecs")
    assert spec is not None
    assert spec.origin is not None
    text = Path(spec.origin).read_text().replace('\\"', '"')
    example = text.partition("converter_double.py`:\n")[2].partition("\nand `pyproject.toml`")[0]
    path = tmp_path / "converter_double.py"
    path.write_text("\n".join(line[4:] for line in example.splitlines()))
    assert load([str(path)]).get(str(path)).name == "double"


INITIALIZER = '''
from __future__ import annotations
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar
import numpy as np
from converter import Initializer, hookimpl, option

@dataclass(frozen=True)
class Own(Initializer):
    """Sevens."""

    name: ClassVar[str] = "{name}"
    times: int = option(1, help="x")

    def __call__(self, rng, shape, fan_in, fan_out, old, template):
        return np.full(shape, 7 * self.times)

@hookimpl
def converter_initializers() -> Iterable[type[Initializer]]:
    yield Own
'''


def test_an_installed_plugin_brings_an_initializer(site: Site) -> None:
    site.install("mine", INITIALIZER.format(name="sevens"))
    registry = load()
    assert broken(registry) == []
    assert registry.initializers["sevens"].name == "sevens"
    assert registry.origin_of_initializer("sevens") == "mine-dist 1.0"
    assert registry.origin_of_initializer("normal") == "built in"
    assert list(registry.initializers) == sorted(registry.initializers)
    assert "mine" not in registry.strategies


def test_a_plugin_brings_both(site: Site) -> None:
    second = source("mine").replace("from __future__ import annotations", "")
    site.install("mine", INITIALIZER.format(name="sevens") + second)
    registry = load()
    assert broken(registry) == []
    assert "sevens" in registry.initializers
    assert "mine" in registry.strategies


def test_two_initializers_of_one_name_are_refused_naming_both(site: Site) -> None:
    site.install("one", INITIALIZER.format(name="same"))
    site.install("two", INITIALIZER.format(name="same"))
    with pytest.raises(UsageError) as caught:
        load()
    assert str(caught.value) == (
        "initializer 'same' comes from both plugin one (one-dist 1.0) and plugin two (two-dist "
        "1.0); leave one out with CONVERTER_DISABLED_PLUGINS=two"
    )


def test_a_built_in_initializer_cannot_be_replaced(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.install("mine", INITIALIZER.format(name="normal"))
    with pytest.raises(UsageError) as caught:
        load()
    assert str(caught.value) == (
        "initializer 'normal' comes from both converter itself and plugin mine (mine-dist 1.0); "
        "leave one out with CONVERTER_DISABLED_PLUGINS=mine"
    )
    monkeypatch.setenv("CONVERTER_DISABLED_PLUGINS", "mine")
    (tmp_path / "mine.py").write_text(INITIALIZER.format(name="zeros"))
    with pytest.raises(UsageError, match=r"both converter itself and .*mine\.py; rename one$"):
        load([str(tmp_path / "mine.py")])


@pytest.mark.parametrize(
    ("before", "after", "error"),
    [
        ('"sevens"', '"Sevens"', "Own: the name 'Sevens' must be lower case letters and digits"),
        ("(frozen=True)", "()", "Own: an initializer is a frozen dataclass"),
        ("yield Own", "yield Own()", "converter_initializers gave an instance of Own; give the"),
        ("yield Own", "yield int", "converter_initializers gave <class 'int'>, which is no Init"),
        ("def __call__", "def draw", "Own: it draws nothing; define __call__"),
        ("times: int = option(1", "times: list[int] = option(1", "Own.times: an option cannot be"),
        ('    """Sevens."""\n', "", "Own: it has no docstring"),
    ],
)
def test_a_broken_initializer_costs_one_line(
    site: Site, before: str, after: str, error: str
) -> None:
    site.install("mine", INITIALIZER.format(name="sevens").replace(before, after))
    registry = load()
    assert "sevens" not in registry.initializers
    (line,) = broken(registry)
    assert line.startswith(f"plugin mine (mine-dist 1.0): {error}")
    assert "\n" not in line


@pytest.mark.parametrize("hook", [True, False])
def test_a_file_brings_initializers(tmp_path: Path, hook: bool) -> None:
    text = INITIALIZER.format(name="sevens")
    path = str(tmp_path / "mine.py")
    Path(path).write_text(text if hook else text.partition("@hookimpl")[0])
    registry = load([path])
    assert registry.initializers["sevens"].__module__.endswith("mine.py")
    assert registry.origin_of_initializer("sevens") == path
    assert registry.brings_no_strategy(path)
    assert not registry.brings_no_strategy("pad")
    with pytest.raises(UsageError, match=r"mine\.py has no strategy$"):
        registry.get(path)
