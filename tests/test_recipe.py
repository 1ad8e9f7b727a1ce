"""Recipes: what a TOML file says, what is refused, and how flags change it."""

from __future__ import annotations

from pathlib import Path

import pytest
from converter_plugins.drop import Drop
from converter_plugins.pad import Pad

from converter.errors import UsageError
from converter.initializers import Constant
from converter.recipe import Recipe, Step, merge, read_recipe
from converter.registry import load

FULL = """
source = "model.ckpt-100"
output = "out/"
to = "tf"
shard_size = "5GB"
sidecar = true

[[step]]
plugin = "drop"
drop = ["*/Adam*", "beta?_power"]

[[step]]
plugin = "pad"
like = "templates/large.ckpt"
shape = { "rnn/*" = [160, 640], 'a=b' = [] }
fill = 1
"""


def write(directory: Path, text: str) -> Path:
    path = directory / "recipe.toml"
    path.write_text(text)
    return path


def test_a_recipe_says_it_all(tmp_path: Path) -> None:
    path = write(tmp_path, FULL)
    recipe = read_recipe(path)
    assert recipe.source == str(tmp_path / "model.ckpt-100")
    assert recipe.output == f"{tmp_path}/out/"
    assert (recipe.to, recipe.shard_size, recipe.sidecar) == ("tf", "5GB", True)
    registry = load()
    assert [step.build(registry) for step in recipe.steps] == [
        Drop(drop=("*/Adam*", "beta?_power")),
        Pad(
            like=tmp_path / "templates/large.ckpt",
            shape={"rnn/*": (160, 640), "a=b": ()},
            fill=Constant(1.0),
        ),
    ]


def test_an_empty_recipe_leaves_all_to_the_command_line(tmp_path: Path) -> None:
    assert read_recipe(write(tmp_path, "")) == Recipe()


def test_absolute_paths_stay(tmp_path: Path) -> None:
    assert read_recipe(write(tmp_path, 'source = "/models/a/"')).source == "/models/a/"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sourc = 'x'", "{path}: a recipe has no key 'sourc'; did you mean 'source'?"),
        ("steps = []", "{path}: a recipe has no key 'steps'; did you mean 'step'?"),
        ("zzz = 1", "{path}: a recipe has no key 'zzz'; it can have source, output, to, shard_"),
        ("source = 1", "{path}: source must be a path, got 1"),
        ("sidecar = 'yes'", "{path}: sidecar must be true or false, got 'yes'"),
        ("shard_size = true", "{path}: shard_size must be a size such as '5GB', got True"),
        ("shard_size = -5", "{path}: shard_size must be a size such as '5GB', got -5"),
        ("shard_size = 0", "{path}: shard_size must be a size such as '5GB', got 0"),
        (r'source = "a\u0000b"', r"{path}: source must be a path, got 'a\x00b'"),
        (r'output = "a\u0000b"', r"{path}: output must be a path, got 'a\x00b'"),
        ("to = 'safetensor'", "{path}: to must be tf or safetensors, got 'safetensor'; did you"),
        ("step = 1", "{path}: step must be a list of tables; write [[step]] above each"),
        ("[step]\nplugin = 'pad'", "{path}: step must be a list of tables"),
        ("[[step]]\nfill = 1", "{path}: step 1: plugin must name a strategy, got None"),
        ("a = 1\nb = = 2", "{path}:2: invalid value"),
        ("a = 1\na = 2\n", "{path}:2: cannot overwrite a value"),
        ("a = " + "[" * 5000, "{path}"),
    ],
)
def test_what_no_recipe_has_is_refused_in_one_line(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(UsageError) as caught:
        read_recipe(path)
    assert str(caught.value).startswith(message.format(path=path))
    assert "\n" not in str(caught.value)


def test_unreadable_recipes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"none\.toml: the recipe cannot be read: No such file"):
        read_recipe(tmp_path / "none.toml")
    path = tmp_path / "latin.toml"
    path.write_bytes(b"source = '\xe9'")
    with pytest.raises(UsageError, match=r"latin\.toml: byte 10 is no UTF-8"):
        read_recipe(path)


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ("plugin = 'pda'", "step 1 (pda): no plugin named 'pda'; did you mean 'pad'?"),
        ("plugin = 'pad'\nfil = 1", "step 1 (pad): pad has no option 'fil'; did you mean 'fill'?"),
        ("plugin = 'pad'\nfill = 'one'", "step 1 (pad): fill must be an initializer, got 'one'"),
        ("plugin = 'pad'", "step 1 (pad): no sizes are given; use --resize WIDTH=SIZE, --like"),
        ("plugin = 'cast'", "step 1 (cast): cast is missing; give --cast DTYPE, or cast in"),
    ],
)
def test_steps_are_checked_where_they_are_built(tmp_path: Path, step: str, message: str) -> None:
    path = write(tmp_path, f"[[step]]\n{step}")
    with pytest.raises(UsageError) as caught:
        read_recipe(path).steps[0].build(load())
    assert str(caught.value).startswith(f"{path}: {message}")


def test_a_strategy_file_lies_beside_the_recipe(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from dataclasses import dataclass\n"
        "from typing import ClassVar\n"
        "from converter import Strategy\n"
        "@dataclass(frozen=True)\n"
        "class Mine(Strategy):\n"
        '    """Do nothing."""\n'
        '    name: ClassVar[str] = "mine"\n'
    )
    recipe = read_recipe(write(tmp_path, "[[step]]\nplugin = './mine.py'"))
    (step,) = recipe.steps
    assert step.plugin == str(tmp_path / "mine.py")
    registry = load([step.plugin])
    assert step.named(registry).plugin == "mine"
    assert step.build(registry).name == "mine"


def steps(*plugins: str) -> list[Step]:
    return [Step(p, {"a": 1, "b": 2}, f"r.toml: step {n} ({p})") for n, p in enumerate(plugins)]


def test_flags_win_over_the_recipe_and_other_plugins_come_after() -> None:
    merged = merge(steps("pad", "drop"), [("cast", {"x": 1}), ("pad", {"b": 3}), ("drop", {})])
    assert [(step.plugin, dict(step.values), step.where) for step in merged] == [
        ("pad", {"a": 1, "b": 3}, "r.toml: step 0 (pad)"),
        ("drop", {"a": 1, "b": 2}, "r.toml: step 1 (drop)"),
        ("cast", {"x": 1}, "cast"),
    ]


def test_without_a_recipe_the_order_is_that_of_the_command_line() -> None:
    assert [s.plugin for s in merge((), [("b", {}), ("a", {})])] == ["b", "a"]


def test_flags_for_one_of_several_steps_are_refused() -> None:
    with pytest.raises(UsageError, match=r"^pad has 2 steps in the recipe, and flags cannot tell"):
        merge(steps("pad", "drop", "pad"), [("pad", {})])


def test_a_plugin_that_is_chosen_twice_is_refused() -> None:
    with pytest.raises(UsageError, match=r"^--plugin pad is given twice; a recipe can have it"):
        merge((), [("pad", {}), ("pad", {})])
