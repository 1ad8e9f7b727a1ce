"""The command line: errors in one line, exit codes, plugins and recipes."""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import converter_plugins
import numpy as np
import pytest
from command_line import TIMES, run, told, values
from conftest import case

import converter
from converter import Checkpoint, Variable, open_checkpoint
from converter.pipeline import run as run_plan
from converter.plan import make_plan
from converter.target import parse_target

COMMANDS = ["ckpt", "inspect", "diff", "prove", "batch", "plugins", "recipes"]


# -- help, and what is shown ----------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [[], *([command] for command in COMMANDS)], ids=str)
@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help(arguments: list[str], flag: str) -> None:
    outcome = run(*arguments, flag)
    assert outcome.exit_code == 0
    assert outcome.stderr == ""
    assert "Usage: " in outcome.stdout
    # Every option says what it does: none stands alone on its line, with nothing below it.
    lines = [*outcome.stdout.splitlines(), ""]
    for line, following in itertools.pairwise(lines):
        if re.match(r"  (-|--)\S", line):
            assert re.search(r"\S  +\S", line.strip()) or following.startswith("      "), line
    assert all(command in outcome.stdout for command in COMMANDS if not arguments)


def test_version() -> None:
    outcome = run("--version")
    assert outcome.exit_code == 0
    assert re.fullmatch(r"convert, version \d+\.\d+\.\d+\S*\n", outcome.stdout)


def test_help_groups_the_options_of_strategies() -> None:
    shown = run("ckpt", "--help").stdout
    assert "[PATH]\n" in shown.splitlines(keepends=True)[0]
    assert shown.count("[PATH]") == 1
    _, groups = shown.split("Options:\n")[0], re.findall(r"^Options of (.*):$", shown, re.M)
    assert groups == [
        *("activation-scale", "bert", "cast", "drop"),
        "duplicate, pad, project, select and truncate",
        *("duplicate, equalize, pad, project, select and truncate", "duplicate"),
        *("ema", "equalize", "eras", "fold-batchnorm", "gates", "keep", "keras", "map", "names"),
        *(
            "pad",
            "paths",
            "project",
            "recalibrate-batchnorm",
            "reinit",
            "rename",
            "scale",
            "scope",
            "select",
            "tf1",
            "torch",
        ),
    ]
    assert shown.count("--like ") == 1


def imported_by(*arguments: str) -> set[str]:
    """Return the modules that a command has imported when it ends."""
    code = (
        "import sys; from converter.cli import cli\n"
        "cli.main(sys.argv[1:], standalone_mode=False)\n"
        "print(*sys.modules)"
    )
    shown = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True
    ).stdout
    return set(shown.splitlines()[-1].split())


# What most of the time goes to where it is imported.
SLOW = {
    *("cramjam", "google", "google_crc32c", "ml_dtypes", "multiprocessing", "numpy", "rich"),
    *("safetensors", "tensorflow"),
}


def test_help_imports_what_strategies_declare_and_nothing_that_works() -> None:
    imported = imported_by("ckpt", "--help")
    assert not imported & SLOW
    packages = (
        *("conventions", "formats", "forward", "names", "regraph", "resize", "structure"),
        *("checkpoint", "dtype", "initializers", "pipeline", "plan", "session", "variable"),
    )
    assert {m for m in imported if m.startswith(tuple(f"converter.{p}" for p in packages))} == {
        # What strategies are derived from.
        *("converter.conventions", "converter.conventions.converted"),
        *("converter.conventions.convention", "converter.resizer"),
        # Types and checks of options, without numpy or long tables of patterns.
        *("converter.names", "converter.names.cells", "converter.names.follow"),
        *("converter.names.gates", "converter.names.role"),
    }
    strategies = {
        entry.value
        for entry in entry_points(group="converter")
        if entry.value.startswith("converter_plugins.")
    }
    assert {m for m in imported if m.startswith("converter_plugins.")} == strategies


def test_tensorflow_is_imported_in_one_room() -> None:
    importing = re.compile(r"^\s*(?:import|from) tensorflow\b", re.MULTILINE)
    package = Path(converter.__file__).parent
    found = {
        str(path.relative_to(package))
        for directory in (package, Path(converter_plugins.__file__).parent)
        for path in directory.rglob("*.py")
        if importing.search(path.read_text())
    }
    assert found
    assert {Path(name).parent.name for name in found} == {"session"}


def test_help_of_all_commands_imports_no_plugins() -> None:
    imported = imported_by("--help")
    assert not imported & {*SLOW, "importlib.metadata", "pluggy"}
    assert {m for m in imported if m.startswith("converter.")} == {
        *("converter.cli", "converter.errors"),
    }


def test_path_means_ckpt(lstm: str) -> None:
    outcome = run(lstm)
    assert outcome.exit_code == 0
    assert outcome.stdout == run("ckpt", lstm).stdout
    assert "nothing was written; -o OUT writes it" in outcome.stdout


def test_current_directory_is_the_default(lstm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(lstm).parent)
    outcome = run("ckpt", "--drop", "optimizer")
    assert outcome.exit_code == 0
    assert "model.ckpt-300 (TensorFlow V2): 23 variables, 83.6 kB, 50 %" in outcome.stdout
    assert "drop    10 optimizer slots, 2 beta powers left out, 41.8 kB" in outcome.stdout


@pytest.mark.parametrize("flags", [[], ["-n"], ["--dry-run", "--json"], ["-n", "-q"]], ids=str)
def test_nothing_is_written_unless_asked(flags: list[str], tmp_path: Path, lstm: str) -> None:
    output = ["-o", tmp_path / "out"] if flags else []
    outcome = run("ckpt", lstm, *output, *flags)
    assert outcome.exit_code == 0
    assert list(tmp_path.iterdir()) == []
    assert ("-q" in flags) is (outcome.stdout == "")


def test_dry_run_refuses_what_the_run_would(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(b"")
    source = case("tf221_raw_dtypes").path
    line = told(run("ckpt", source, "-n", "-o", tmp_path / "new.safetensors"), 4)
    assert "--sidecar" in line
    line = told(run("ckpt", source, "-n", "--sidecar", "-o", tmp_path / "x.safetensors"), 4)
    assert line.endswith("exists; use --force to replace it, or choose another output")
    assert run("ckpt", source, "-nf", "--sidecar", "-o", tmp_path / "x.safetensors").exit_code == 0
    assert (tmp_path / "x.safetensors").read_bytes() == b""


def test_quiet_is_quiet(tmp_path: Path, lstm: str) -> None:
    outcome = run("ckpt", lstm, "-q", "-o", tmp_path / "x.safetensors")
    assert (outcome.exit_code, outcome.output) == (0, "")
    assert values(tmp_path / "x.safetensors") == values(lstm)


def test_verbose_lists_everything(lstm: str) -> None:
    shown = run("ckpt", lstm, "-v", "--drop", "slots").stdout
    for name in open_checkpoint(lstm):
        assert len(re.findall(rf"^\w+ +{re.escape(name)}  ", shown, re.M)) == 1, name
    assert "drop    charlm/embedding/Adam  float32 [14, 8]: left out" in shown


def test_json(tmp_path: Path, lstm: str) -> None:
    output = tmp_path / "x.safetensors"
    outcome = run("ckpt", lstm, "--json", "-o", output, "--cast", "float16", "--drop", "optimizer")
    assert outcome.exit_code == 0
    told_ = json.loads(outcome.stdout)
    assert told_["source"] == lstm
    assert told_["output"] == str(output)
    assert (told_["format"], told_["to"]) == ("TensorFlow V2", "safetensors")
    by_name = {variable["name"]: variable for variable in told_["variables"]}
    assert by_name["charlm/embedding"] == {
        "name": "charlm/embedding",
        "dtype": "float16",
        "shape": [14, 8],
        "bytes": 224,
        "role": "model",
        "sources": ["charlm/embedding"],
        "steps": ["cast"],
    }
    assert set(told_["dropped"].values()) == {"drop"}
    assert told_["dropped"].keys() == open_checkpoint(lstm).keys() - by_name.keys()
    assert (told_["sidecar"], told_["undecided"], told_["left_out"]) == ([], {}, {})
    assert told_["notes"] == []
    result = told_["result"]
    assert result["files"] == [str(output)]
    assert result["bytes"] == output.stat().st_size
    assert result["verified"] is True
    assert result["counts"] == {}
    assert result["seconds"] > 0


# -- errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "exit_code", "parts"),
    [
        (["ckpt", "LSTM", "--plugin", "pda"], 2, ["'pda'", "did you mean 'pad'?"]),
        (
            ["ckpt", "LSTM", "--pad-fill", "3"],
            2,
            ["--pad-fill is an option of pad; add --plugin pad"],
        ),
        (["ckpt", "LSTM", "--plugin", "pad"], 2, ["pad: no sizes are given", "--like", "--shape"]),
        (["ckpt", "LSTM", "--cast", "flota16"], 2, ["--cast", "did you mean 'float16'?"]),
        (["ckpt", "LSTM", "--drop", "charlm/embeding"], 2, ["charlm/embeding", "charlm/embedding"]),
        (["ckpt", "LSTM", "--to", "safetensor"], 2, ["did you mean 'safetensors'?"]),
        (["ckpt", "LSTM", "-o", "x.safetensors", "--to", "tf"], 2, ["the ending says"]),
        (["ckpt", "LSTM", "-o", "x", "--shard-size", "5 apples"], 2, ["--shard-size", "5GB"]),
        (["ckpt", "LSTM", "--recipe", "missing.toml"], 2, ["missing.toml"]),
        (["ckpt", "LSTM", "--plugin", "./missing.py"], 2, ["./missing.py"]),
        (["ckpt", "LSTM", "--plugin", "drop"], 2, ["drop is missing", "--drop GLOB"]),
        (["ckpt", "LSTM", "--scale", "charlm/*"], 2, ["--scale", "GLOB=FACTOR"]),
        (["ckpt", "LSTM", "--scale", "charlm/*=fast"], 2, ["--scale", "a number", "'fast'"]),
        (["ckpt", "missing"], 3, ["no checkpoint at missing"]),
        (["inspect", "missing"], 3, ["no checkpoint at missing"]),
        (["diff", "LSTM", "missing"], 3, ["no checkpoint at missing"]),
        (["batch", "missing", "-o", "out"], 3, ["missing: not a directory"]),
        (["batch", "LSTM"], 2, ["batch needs ROOT and -o OUT"]),
        (["plugins", "pda"], 2, ["did you mean 'pad'?"]),
        (["inspekt"], 2, ["'inspekt' is no command", "did you mean 'inspect'?"]),
        (["runs/model.ckpt-100"], 3, ["no checkpoint at runs/model.ckpt-100"]),
        (["ckpt", "LSTM", "-o", "LSTM.index"], 4, ["belongs to the source"]),
        (["ckpt", "LSTM", "--rename", "charlm/.*=x"], 4, ["x: both charlm/embedding", " and "]),
        (["ckpt", "LSTM", "--drop", "*"], 4, ["no variable is left"]),
    ],
    ids=lambda part: " ".join(part) if isinstance(part, list) else str(part),
)
def test_errors_are_one_line(
    arguments: list[str],
    exit_code: int,
    parts: list[str],
    tmp_path: Path,
    lstm: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    line = told(run(*(a.replace("LSTM", lstm) for a in arguments)), exit_code)
    for part in parts:
        assert part in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "arguments",
    [["ckpt", "--pad-fil", "3"], ["ckpt", "a", "b"], ["diff", "a"], ["--nope"], ["ckpt", "-o"]],
    ids=" ".join,
)
def test_usage_of_click(arguments: list[str]) -> None:
    outcome = run(*arguments)
    assert outcome.exit_code == 2
    assert outcome.stderr.splitlines()[-1].startswith("Error: ")
    if "--pad-fil" in arguments:
        assert "--pad-fill" in outcome.stderr


def test_a_bug_keeps_its_traceback(tmp_path: Path, lstm: str) -> None:
    """What goes wrong in a plugin is told; what goes wrong in us is not dressed up."""
    (tmp_path / "bad.py").write_text(
        TIMES.replace("time.sleep(self.seconds)", "raise ZeroDivisionError('oh')")
    )
    line = told(run("ckpt", lstm, "--plugin", tmp_path / "bad.py", "-o", tmp_path / "out"), 1)
    assert "beta1_power" in line
    assert "ZeroDivisionError: oh" in line
    assert {file.name for file in tmp_path.iterdir()} - {"__pycache__"} == {"bad.py"}


def test_names_are_escaped(tmp_path: Path) -> None:
    # Not `\x1b[31m`, which click itself takes away off a terminal.
    names = ["\x1bcreset", "a\nb", "bell\a", "\u202eleft", "b\udcff"]
    variables = [Variable.from_array(name, np.zeros(2, np.float32)) for name in names]
    target = parse_target(tmp_path / "odd.index", name="odd", to="tf")
    run_plan(make_plan(Checkpoint(variables), [], target))
    for arguments in (
        ["ckpt", tmp_path / "odd", "-v"],
        ["inspect", tmp_path / "odd", "-v"],
        ["diff", tmp_path / "odd", case("tf115_v2_slash_prefix").path],
        ["ckpt", tmp_path / "odd", "--rename", "(?s).*=one"],
        ["ckpt", tmp_path / "odd", "-v", "--drop", "*bell*"],
        ["ckpt", tmp_path / "odd", "-o", tmp_path / "x.safetensors"],
        ["batch", tmp_path, "-n", "-o", tmp_path / "out"],
    ):
        outcome = run(*arguments)
        assert outcome.exit_code in (0, 1, 4), outcome.output
        assert len(outcome.stderr.splitlines()) <= 1
        shown = outcome.output.replace("\n", "")
        assert all(character.isprintable() for character in shown), repr(shown)
    shown = run("inspect", tmp_path / "odd", "-v").stdout
    assert r"\x1bcreset" in shown
    assert r"a\nb" in shown
    assert r"b\udcff" in shown


# -- strategies -----------------------------------------------------------------------------------


def test_order_is_that_of_the_command_line(lstm: str) -> None:
    first = ["--rename", r"charlm/(.*)=\1"]
    second = ["--plugin", "pad", "--shape", "embedding*=20,8"]
    shown = json.loads(run("ckpt", lstm, *first, *second, "--json").stdout)
    shapes = {variable["name"]: variable["shape"] for variable in shown["variables"]}
    steps = {variable["name"]: variable["steps"] for variable in shown["variables"]}
    assert shapes["embedding"] == [20, 8]
    assert steps["embedding"] == ["rename", "pad"]
    # The other way round there is nothing of that name yet.
    line = told(run("ckpt", lstm, *second, *first), 2)
    assert "'embedding*' fits none" in line
    third = ["--plugin", "pad", "--shape", "charlm/embedding*=20,8"]
    shown = json.loads(run("ckpt", lstm, *third, *first, "--json").stdout)
    steps = {variable["name"]: variable["steps"] for variable in shown["variables"]}
    assert steps["embedding"] == ["pad", "rename"]


def test_single_file_with_flags_of_its_own(times: Path, tmp_path: Path, lstm: str) -> None:
    output = tmp_path / "x.safetensors"
    outcome = run("ckpt", lstm, "--plugin", times, "--times-factor", "3", "-o", output)
    assert outcome.exit_code == 0, outcome.output
    before, after = open_checkpoint(lstm), open_checkpoint(output)
    for name in before:
        factor = 3 if before[name].dtype.is_float else 1
        np.testing.assert_array_equal(after[name].read(), before[name].read() * factor)
    shown = run("ckpt", "--plugin", times, "--help").stdout
    assert "Options of times:" in shown
    assert "--times-factor NUMBER" in shown
    assert "Multiply what is a float, slowly" in run("plugins", times).stdout
    line = told(run("ckpt", lstm, "--plugin", f"{times}:other"), 2)
    assert f"choose one of its strategies, {times}:times" in line


def _distribution(site: Path, name: str, module: str, source: str) -> None:
    """Install a plugin as pip would leave it."""
    info = site / f"{name}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[converter]\n{name} = {module}\n")
    (site / f"{module}.py").write_text(source)


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("import no_such_library\n", "ModuleNotFoundError: No module named 'no_such_library'"),
        ("raise SystemExit(3)\n", "SystemExit: 3"),
        ("x = 1\n", "it has no hook"),
        ("def f(:\n", "SyntaxError"),
    ],
)
def test_a_broken_plugin_costs_one_line(
    source: str, reason: str, tmp_path: Path, lstm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = f"broken_{abs(hash(source))}"
    _distribution(tmp_path / "site", "broken", module, source)
    monkeypatch.syspath_prepend(tmp_path / "site")
    commands: list[list[object]] = [["plugins"], ["ckpt", lstm, "-o", tmp_path / "out"]]
    for number, arguments in enumerate(commands):
        outcome = run(*arguments)
        assert outcome.exit_code == 0, outcome.output
        (line,) = outcome.stderr.splitlines()
        assert line.startswith("Warning: plugin broken (broken 1.0): ")
        assert reason in line
        assert ("pad" if number == 0 else "wrote") in outcome.stdout
    line = told(run("plugins", "broken"), 2)
    assert reason in line
    monkeypatch.setenv("CONVERTER_DISABLED_PLUGINS", "other, broken")
    assert run("plugins").stderr == ""


def test_an_installed_plugin(tmp_path: Path, lstm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _distribution(tmp_path / "site", "ckpt-times", "ckpt_times_plugin", TIMES)
    monkeypatch.syspath_prepend(tmp_path / "site")
    assert re.search(
        r"^times +Multiply what is a float, slowly +\(ckpt-times 1\.0\)$",
        run("plugins").stdout,
        re.M,
    )
    shown = json.loads(run("ckpt", lstm, "--plugin", "times", "--json").stdout)
    steps = {variable["name"]: variable["steps"] for variable in shown["variables"]}
    assert steps["charlm/embedding"] == ["times"]
    assert steps["global_step"] == []
    monkeypatch.setenv("CONVERTER_DISABLED_PLUGINS", "ckpt-times")
    assert "no plugin named 'times'" in told(run("ckpt", lstm, "--plugin", "times"), 2)


def test_two_of_one_name(tmp_path: Path, lstm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    source = TIMES.replace('"times"', '"pad"')
    _distribution(tmp_path / "site", "mypad", "ckpt_mypad_plugin", source)
    monkeypatch.syspath_prepend(tmp_path / "site")
    line = told(run("ckpt", lstm), 2)
    assert "strategy 'pad' comes from both plugin mypad (mypad 1.0) and plugin pad (" in line
    assert "CONVERTER_DISABLED_PLUGINS=" in line
    monkeypatch.setenv("CONVERTER_DISABLED_PLUGINS", "pad")
    assert "(mypad 1.0)" in run("plugins").stdout


def test_built_in_plugins_can_be_disabled(lstm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONVERTER_DISABLED_PLUGINS", "pad,scale")
    shown = run("plugins").stdout
    strategies, _, _ = shown.partition("\n\n")
    assert [line.split()[0] for line in strategies.splitlines()] == [
        *("activation-scale", "bert", "cast", "drop", "duplicate", "ema", "equalize", "eras"),
        "fold-batchnorm",
        *(
            "gates",
            "keep",
            "keras",
            "map",
            "names",
            "paths",
            "project",
            "recalibrate-batchnorm",
            "reinit",
            "rename",
            "scope",
            "select",
            "tf1",
            "torch",
        ),
        *("truncate",),
    ]
    assert run("ckpt", lstm, "--scale", "*=2").exit_code == 2


# -- recipes --------------------------------------------------------------------------------------

RECIPE = """
source = "{source}"
output = "out/"
to = "tf"

[[step]]
plugin = "drop"
drop = ["optimizer"]

[[step]]
plugin = "scale"
scale = {{ "charlm/embedding" = 0.5 }}
"""


EITHER = """
from __future__ import annotations
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar
from converter import Strategy, UsageError, hookimpl, option

@dataclass(frozen=True)
class Either(Strategy):
    '''Take a factor or a file.'''

    name: ClassVar[str] = "either"
    factor: float | None = option(None, help="a factor")
    file: Path | None = option(None, help="a file", instead_of=("factor",))
    keep: bool = option(False, help="keep it", instead_of=("factor", "file"))

    def __post_init__(self):
        super().__post_init__()
        if (self.factor is not None) + (self.file is not None) + self.keep != 1:
            raise UsageError("one of them")

    def notes(self, checkpoint):
        yield f"factor {self.factor} file {self.file and self.file.name} keep {self.keep}"

@hookimpl
def converter_strategies():
    return [Either]
"""


@pytest.fixture
def recipe(tmp_path: Path, lstm: str) -> Path:
    shutil.copytree(Path(lstm).parent, tmp_path / "in")
    file = tmp_path / "recipe.toml"
    file.write_text(RECIPE.format(source="in/model.ckpt-300"))
    return file


def test_a_recipe_says_it_all(recipe: Path, lstm: str) -> None:
    outcome = run("ckpt", "--recipe", recipe)
    assert outcome.exit_code == 0, outcome.output
    written = open_checkpoint(recipe.parent / "out" / "model.ckpt-300")
    assert "charlm/embedding/Adam" not in written
    before = open_checkpoint(lstm)["charlm/embedding"].read()
    np.testing.assert_array_equal(written["charlm/embedding"].read(), before * np.float32(0.5))


@pytest.mark.skipif(not Path("/dev/fd").is_dir(), reason="pipes have no path here")
def test_a_recipe_can_be_a_pipe(lstm: str) -> None:
    """`--recipe <(...)`: what was read from it is not there a second time."""
    end, start = os.pipe()
    os.write(start, b'[[step]]\nplugin = "drop"\ndrop = "optimizer"\n')
    os.close(start)
    outcome = run("ckpt", lstm, "--recipe", f"/dev/fd/{end}", "--json")
    os.close(end)
    assert outcome.exit_code == 0, outcome.output
    names = [variable["name"] for variable in json.loads(outcome.stdout)["variables"]]
    assert names
    assert not [name for name in names if "Adam" in name]


def test_flags_win_over_the_recipe(recipe: Path, tmp_path: Path, lstm: str) -> None:
    other = case("tf012_v2_gru_seqlen").path
    output = tmp_path / "other.safetensors"
    outcome = run("ckpt", other, "--recipe", recipe, "-o", output, "--to", "safetensors",
                  "--scale", "*Bias*=3", "--drop", "slots", "--json")  # fmt: skip
    assert outcome.exit_code == 0, outcome.output
    shown = json.loads(outcome.stdout)
    assert (shown["source"], shown["output"]) == (other, str(output))
    steps = {variable["name"]: variable["steps"] for variable in shown["variables"]}
    assert "beta1_power" not in shown["dropped"]
    assert any(step == ["scale"] for step in steps.values())
    assert set(shown["dropped"].values()) == {"drop"}
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("held", "flags", "message"),
    [
        ("factor = 3.0", ["--either-file", "b.npz"], "factor None file b.npz keep False"),
        ('file = "a.npz"', ["--either-file", "b.npz"], "factor None file b.npz keep False"),
        ('file = "a.npz"', ["--either-factor", "5"], "factor 5.0 file None keep False"),
        ("factor = 3.0", ["--either-keep"], "factor None file None keep True"),
        ("keep = true", ["--either-factor", "5"], "factor 5.0 file None keep False"),
        ("factor = 3.0", ["--no-either-keep"], "factor 3.0 file None keep False"),
    ],
)
def test_an_option_takes_the_place_of_those_that_it_excludes(
    tmp_path: Path, lstm: str, held: str, flags: list[str], message: str
) -> None:
    (tmp_path / "either.py").write_text(EITHER)
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(f'[[step]]\nplugin = "./either.py"\n{held}\n')
    outcome = run("ckpt", lstm, "--recipe", recipe, *flags)
    assert f"note    either: {message}" in outcome.stdout
    outcome = run("ckpt", lstm, "--recipe", recipe, "--either-factor", 5, "--either-file", "b.npz")
    assert "one of them" in told(outcome, 2)


def test_a_plugin_file_of_a_recipe(recipe: Path, times: Path, lstm: str) -> None:
    """Its path is relative to the recipe, and its flags are there."""
    recipe.write_text(recipe.read_text() + '[[step]]\nplugin = "./times.py"\nfactor = 4.0\n')
    outcome = run("ckpt", "--recipe", recipe, "--times-factor", "8", "--json")
    assert outcome.exit_code == 0, outcome.output
    after = open_checkpoint(recipe.parent / "out")["charlm/softmax/bias"].read()
    before = open_checkpoint(lstm)["charlm/softmax/bias"].read()
    np.testing.assert_array_equal(after, before * np.float32(8))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("source =", "sorce =", "a recipe has no key 'sorce'; did you mean 'source'?"),
        ("scale = {", "scael = {", "step 2 (scale): scale has no option 'scael'; did you mean"),
        ('"drop"\ndrop', '"dorp"\ndrop', "step 1 (dorp): no plugin named 'dorp'; did you mean"),
        ('["optimizer"]', "[3]", "step 1 (drop): drop must be a text, got 3"),
        ("0.5", '"half"', "step 2 (scale): scale 'charlm/embedding' must be a number, got 'half'"),
        ('to = "tf"', 'to = "ft"', "to must be tf or safetensors, got 'ft'"),
        ('to = "tf"', "to = ", ":4: "),
        (
            "source =",
            "shard_size = -5\nsource =",
            "shard_size must be a size such as '5GB', got -5",
        ),
    ],
)
def test_mistakes_in_a_recipe(recipe: Path, old: str, new: str, message: str) -> None:
    text = recipe.read_text()
    assert old in text
    recipe.write_text(text.replace(old, new))
    line = told(run("ckpt", "--recipe", recipe), 2)
    assert line.startswith(str(recipe))
    assert message in line
    assert not (recipe.parent / "out").exists()
