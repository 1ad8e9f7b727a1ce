"""The documents tell the truth: their commands are run, and what they list is all there is."""

from __future__ import annotations

import dataclasses
import doctest
import inspect
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import numpy as np
import pytest
from click.testing import CliRunner
from conftest import DATA, registry

import converter
from converter import ConverterError, hookspecs, open_checkpoint
from converter.cli import cli
from converter.dtype import BY_NAME
from converter.patterns import WORDS
from converter.recipe import Recipe
from converter.registry import DISABLED
from converter.strategy import options, summary

ROOT = Path(__file__).parent.parent
DOCUMENTS = ["README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]
BUILT_IN = [
    *("activation-scale", "bert", "cast", "drop", "duplicate", "ema", "equalize", "eras"),
    *("fold-batchnorm", "gates", "keep", "keras", "map"),
    *("names", "pad", "paths", "project", "recalibrate-batchnorm", "reinit", "rename"),
    *("scale", "scope", "select"),
    *("tf1", "torch", "truncate"),
]

# The two commands that set up all. The first goes on with a command of ours, which is run.
INSTALL = "pip install . && "
TESTS = "pip install -e '.[test]' && python -m pytest -n 2"

BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
FILE = re.compile(r"This is `(\S+)`:\n\n```\w+\n(.*?)^```$", re.DOTALL | re.MULTILINE)
ENDED = "--- ended with "
# Objects whose keys are names of variables, dtypes and the like.
BY_SOME_NAME = {
    "era.spelt",
    "dropped",
    "held",
    "undecided",
    "left_out",
    "metadata",
    "result.counts",
    "result.units",
    "checkpoints[].counts",
    "checkpoints[].idle",
    "totals.dtypes",
    "variables",
}


def text_of(document: str) -> str:
    return (ROOT / document).read_text()


def blocks(document: str, language: str) -> list[str]:
    return [m[2] for m in BLOCK.finditer(text_of(document)) if m[1] == language]


def section(document: str, heading: str) -> str:
    """Return what stands under a heading, up to the next one of its level."""
    level = heading.partition(" ")[0]
    found = re.search(
        rf"^{re.escape(heading)}\n(.*?)(?=^#{{1,{len(level)}}} |\Z)",
        text_of(document),
        re.DOTALL | re.MULTILINE,
    )
    assert found, f"{document} has no {heading!r}"
    return found[1]


def first_cells(text: str, title: str) -> list[str]:
    """Return the first cells of the tables whose first column has a title."""
    tables = re.findall(rf"^\| {title} \|.*\n\|.*\n((?:\|.*\n)+)", text, re.MULTILINE)
    return [row.split(" | ")[0].lstrip("| ") for table in tables for row in table.splitlines()]


def coded(cells: list[str]) -> list[str]:
    return [word for cell in cells for word in re.findall(r"`([^`]*)`", cell)]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with the samples, as the clone has them, to work in."""
    shutil.copytree(ROOT / "samples", tmp_path / "samples")
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "data").symlink_to(DATA)
    monkeypatch.chdir(tmp_path)
    # What the documents say to install may be installed.
    monkeypatch.setenv(DISABLED, "double")
    return tmp_path


# --- what is shown ---


def commands_and_outputs(document: str) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    for block in blocks(document, "console"):
        assert block.startswith("$ ")
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, _, output = part.partition("\n")
            if command != TESTS:
                found.append((command.removeprefix(INSTALL), output))
    return found


def run_in_shell(commands: list[str], place: Path) -> Iterator[tuple[str, int]]:
    """Run commands one after the other in one shell; give what each printed, and its exit code."""
    programs = place / ".bin"
    programs.mkdir(exist_ok=True)
    (programs / "convert").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m converter "$@"\n')
    (programs / "convert").chmod(0o755)
    script = "status=0\n"
    for command in commands:
        script += f"(exit $status)\n{command}\nstatus=$?\necho '{ENDED}'$status\n"
    environment = os.environ | {"PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"}
    shell = subprocess.run(
        ["bash", "-c", script],
        cwd=place,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=True,
    )
    for printed, code in re.findall(rf"(.*?){ENDED}(\d+)\n", shell.stdout, re.DOTALL):
        yield printed, int(code)


def run_here(commands: list[str], place: Path) -> Iterator[tuple[str, int]]:
    """The same, but `convert` is called in this process, wherever a command is that and no more."""
    code = 0
    for command in commands:
        # The signs of a shell are words of their own, unless they are quoted.
        words = list(shlex.shlex(command, posix=True, punctuation_chars=True))
        if command == "echo $?":
            printed, code = f"{code}\n", 0
        elif words[0] == "convert" and not any(
            word and set(word) <= set("();<>|&") for word in words
        ):
            outcome = CliRunner().invoke(cli, shlex.split(command)[1:], prog_name="convert")
            assert isinstance(outcome.exception, SystemExit | None), outcome.exception
            printed, code = outcome.output, outcome.exit_code
        else:
            ((printed, code),) = run_in_shell([command], place)
        yield printed, code


def steady(output: str) -> str:
    """Replace what is a machine's own: rates, durations, rounding, our version, progress."""
    output = re.sub(
        r"(?m)^(\[\d+/\d+\] \d+ running, .*|.*: .* of .* \(\d+ %\)(, .* s left)?)\n", "", output
    )
    output = re.sub(r"\d+(\.\d+)? [kMGT]?B/s", "RATE", output)
    # What float32 rounds goes by how many threads add.
    output = re.sub(r" *\b\d+(\.\d+)?e-(0[5-9]|1\d)\b", " TINY", output)
    output = re.sub(r"ckpt-converter \d+\.\d+\.\d+", "ckpt-converter VERSION", output)
    return re.sub(r"in \d+\.\d s", "in TIME", output)


def _is_run(document: str) -> bool:
    """Whether one of the commands runs a graph, for which TensorFlow is started."""
    runs = r"^\$ .*(\bprove\b|\bconvert stats\b|--test\b|-scale-data\b|-batchnorm-data\b)"
    return any(re.search(runs, block, re.M) for block in blocks(document, "console"))


SHOWN = [document for document in DOCUMENTS if blocks(document, "console")]


@pytest.mark.parametrize("document", [d for d in SHOWN if not _is_run(d)])
def test_commands_print_what_is_shown(document: str, place: Path) -> None:
    check_commands(document, place, run_here)


@pytest.mark.slow
@pytest.mark.parametrize("document", SHOWN)
def test_commands_print_what_is_shown_in_a_shell(document: str, place: Path) -> None:
    check_commands(document, place, run_in_shell)


def check_commands(
    document: str, place: Path, run: Callable[[list[str], Path], Iterator[tuple[str, int]]]
) -> None:
    for name, text in FILE.findall(text_of(document)):
        (place / name).write_text(text)
    shown = commands_and_outputs(document)
    commands = [command for command, _ in shown]
    ran = list(run(commands, place))
    assert len(ran) == len(commands)
    for number, (command, output) in enumerate(shown):
        printed, code = ran[number]
        assert steady(printed) == steady(output), command
        # A failure is shown as one.
        assert code == 0 or commands[number + 1] == "echo $?", command


@pytest.mark.parametrize("document", ["README.md", "docs/jobs.md", "docs/python.md"])
def test_programs_print_what_is_shown(document: str, place: Path) -> None:
    sessions = [block for block in blocks(document, "python") if block.startswith(">>>")]
    test = doctest.DocTestParser().get_doctest("\n".join(sessions), {}, document, document, 0)
    assert test.examples
    assert doctest.DocTestRunner().run(test).failed == 0


def test_two_commands_set_up_all() -> None:
    first_screen = text_of("README.md").split("\n## ")[0]
    assert f"$ {INSTALL}convert ckpt samples/charlm " in first_screen
    assert f"$ {TESTS}\n" in first_screen
    assert TESTS in (ROOT / ".ci" / "run").read_text().replace(" -q", "")


def test_the_plugin_in_the_readme_is_the_sample() -> None:
    (shown,) = (b for b in blocks("README.md", "python") if "class Double" in b)
    assert shown in text_of("samples/converter-double/converter_double.py")


def test_the_sample_recipe_uses_averages_and_grows_the_vocabulary(place: Path) -> None:
    for output in ("one", "two"):
        arguments = ["ckpt", "--recipe", "samples/recipe.toml", "--to", "tf", "-o", output]
        assert CliRunner().invoke(cli, arguments).exit_code == 0
    before, after = open_checkpoint("samples/charlm"), open_checkpoint("one")
    assert [name for name in before if name.count("/") == name.count("/Exp")] == [
        *("beta1_power", "beta2_power", "global_step")
    ]
    for name, variable in after.items():
        old = name.replace("woodchuck", "charlm") + "/ExponentialMovingAverage"
        averages = before[old].read()
        corner = tuple(slice(0, size) for size in averages.shape)
        assert np.array_equal(variable.read()[corner], averages)
    assert {name: v.shape for name, v in after.items() if 16 in v.shape} == {
        "woodchuck/embedding": (16, 8),
        "woodchuck/softmax/bias": (16,),
        "woodchuck/softmax/kernel": (30, 16),
    }
    assert after["woodchuck/softmax/bias"].read()[14:].tolist() == [-20, -20]
    assert not after["woodchuck/softmax/kernel"].read()[:, 14:].any()
    # The same source and options give the same bytes.
    files = sorted(path.name for path in Path("one").iterdir())
    assert all(Path("one", f).read_bytes() == Path("two", f).read_bytes() for f in files)


# --- what is listed ---


def own_options(command: click.Command) -> set[str]:
    return {
        spelling
        for parameter in command.params
        if isinstance(parameter, click.Option)
        for spelling in (*parameter.opts, *parameter.secondary_opts)
    }


def command_named(name: str) -> click.Command:
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    return command


COMMANDS = cli.list_commands(click.Context(cli))


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_of_a_command_is_documented(name: str) -> None:
    table = coded(first_cells(section("docs/cli.md", f"## convert {name}"), "option"))
    documented = {word.split(" ")[0] for word in table}
    assert documented == own_options(command_named(name))


@pytest.mark.parametrize("name", BUILT_IN)
def test_every_option_of_a_built_in_plugin_is_documented(name: str) -> None:
    text = section("docs/plugins.md", f"### {name}")
    if issubclass(registry().get(name), converter.Resizer):
        text += section("docs/plugins.md", "### Widths of another size")
    for option in options(registry().get(name)):
        assert f"`{option.flag}" in text
        assert option.name in text


def test_no_other_options_are_mentioned() -> None:
    known = {"--help", "--version"}
    for name in COMMANDS:
        known |= own_options(command_named(name))
    for strategy in map(registry().get, BUILT_IN):
        known |= {option.flag for option in options(strategy)}
    examples = re.compile(r"--(no-)?(mine|double|average)-[a-z]+")
    for document in DOCUMENTS:
        mentioned = set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", text_of(document)))
        assert {m for m in mentioned if not examples.fullmatch(m)} <= known, document


def test_the_readme_tells_what_each_built_in_plugin_does() -> None:
    table = re.findall(r"^\| `([a-z0-9-]+)` \| (.*?) \|", text_of("README.md"), re.MULTILINE)
    assert table == [(name, summary(registry().get(name))) for name in BUILT_IN]


def test_every_hook_has_its_signature_as_a_heading() -> None:
    hooks = [f for f in vars(hookspecs).values() if hasattr(f, f"{hookspecs.PROJECT}_spec")]
    headings = re.findall(r"^### `(.*)`$", section("docs/plugins.md", "## Hooks"), re.MULTILINE)
    # Annotations that are not evaluated stand in quotes.
    spelt = [f"{hook.__name__}{inspect.signature(hook)}".replace("'", "") for hook in hooks]
    assert headings == spelt


def test_every_exit_code_is_documented() -> None:
    told = re.findall(r"\b(\d+) [a-z]", (cli.help or "").partition("Exit codes:")[2])
    errors: list[type[ConverterError]] = [ConverterError, *ConverterError.__subclasses__()]
    assert set(map(int, told)) == {0, 5, 130, *(error.exit_code for error in errors)}
    for document in ("README.md", "docs/cli.md"):
        assert first_cells(section(document, "## Exit codes"), "code") == told


def test_every_environment_variable_is_documented() -> None:
    lines = [
        line
        for directory in ("converter", "plugins")
        for path in (ROOT / directory).rglob("*.py")
        for line in path.read_text().splitlines()
        if "environ" in line
    ]
    read = {name for line in lines for name in re.findall(r'"([A-Z][A-Z_]+)"', line)}
    assert set(coded(first_cells(text_of("docs/cli.md"), "variable"))) == {DISABLED, *read}


def keys(value: object, path: str = "") -> Iterator[str]:
    """Yield the keys of a document, each with those above it: `variables[].name`."""
    if isinstance(value, dict) and path not in BY_SOME_NAME:
        for key, item in value.items():
            name = "ROLE" if path == "totals.roles" else key
            yield from keys(item, f"{path}.{name}" if path else name)
    elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
        for item in value:
            yield from keys(item, f"{path}[]")
    else:
        yield path


# Between them they print every key that there is.
JSON: dict[str, list[list[str]]] = {
    "ckpt": [
        ["tf221_raw_dtypes", "--sidecar", "--cast", "float16", "-o", "OUT/x.safetensors"],
        ["tf14_v2_charlm_lstm_ema", "--plugin", "pad", "--resize", "lstm_cell=31"],
    ],
    "inspect": [
        ["tf10_v2_gatewise_lstm"],
        ["tf10_v2_partitioned"],
        ["tf14_v2_charlm_lstm_ema", "--variable", "charlm/embedding"],
        ["tf14_v2_rotation", "--norms"],
        ["tf14_v2_charlm_lstm_ema", "--graph"],
        ["tf14_v2_charlm_lstm_ema", "--widths", "--test"],
        ["tf012_v1_dtypes", "--widths"],
    ],
    "diff": [["tf14_v2_charlm_lstm_ema", "tf10_v2_partitioned"]],
    "prove": [["tf14_v2_charlm_lstm_ema"] * 2 + ["--feed", "x=[[1,2]]", "--feed", "y=[[2,3]]"]],
    "stats": [["../../samples/charlm", "--data", "../../samples/charlm.npz"]],
    "batch": [["tf14_v2_rotation", "-o", "OUT/batch", "--jobs", "1"]],
    "plugins": [[]],
    "recipes": [[]],
}


def runs_a_graph(arguments: list[str]) -> bool:
    return "--test" in arguments or arguments in [*JSON["prove"], *JSON["stats"]]


def printed_keys(name: str, rows: list[list[str]], output: Path) -> set[str]:
    """Return the keys that a command prints as JSON, called with each row of arguments."""
    printed: set[str] = set()
    for arguments in rows:
        given = [argument.replace("OUT", str(output)) for argument in arguments]
        result = CliRunner().invoke(cli, [name, *given, "--json"])
        assert result.exit_code in (0, 1), result.output
        printed.update(keys(json.loads(result.stdout)))
    # An object can be null, and a list of objects empty.
    printed -= {key for key in printed if any(k.startswith(f"{key}.") for k in printed)}
    lists = {key for key in printed if any(k.startswith(f"{key}[].") for k in printed)}
    return printed - (lists - BY_SOME_NAME)


def documented_keys(name: str) -> set[str]:
    return set(coded(first_cells(section("docs/cli.md", f"## convert {name}"), "key")))


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(n, marks=[pytest.mark.slow] if any(map(runs_a_graph, JSON[n])) else [])
        for n in COMMANDS
    ],
)
def test_every_json_key_is_documented(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(DATA)
    assert documented_keys(name) == printed_keys(name, JSON[name], tmp_path)


def test_inspect_prints_no_other_json_keys(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(DATA)
    rows = [row for row in JSON["inspect"] if not runs_a_graph(row)]
    assert printed_keys("inspect", rows, tmp_path) <= documented_keys("inspect")


@pytest.mark.slow
def test_every_key_of_a_judged_proof_is_documented(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorflow")
    monkeypatch.chdir(DATA)
    labels = ["--feed", "x=[[1,2]]", "--feed", "y=[[2,3]]", "--prove", "--json"]
    printed: set[str] = set()
    for change in (["truncate", "lstm_cell=20"], ["pad", "lstm_cell=31"]):
        steps = ["--plugin", change[0], "--resize", change[1], "--tolerance", "9"]
        result = CliRunner().invoke(cli, ["ckpt", "tf14_v2_charlm_lstm_ema", *steps, *labels])
        assert result.exit_code == 0, result.output
        printed.update(keys(json.loads(result.stdout)["proof"]))
    printed = {key for key in printed if re.match(r"(baselines|learning)[.\[]", key)}
    printed -= {key for key in printed if any(k.startswith(f"{key}[].") for k in printed)}
    assert set(coded(first_cells(section("docs/prove.md", "### As JSON"), "key"))) == printed


def test_every_key_of_a_recipe_is_documented() -> None:
    fields = [field.name for field in dataclasses.fields(Recipe)]
    documented = coded(first_cells(text_of("docs/recipes.md"), "key"))
    assert documented == [name.replace("steps", "step") for name in fields]


def test_every_word_that_chooses_variables_is_documented() -> None:
    words = section("docs/plugins.md", "## The built-in plugins").partition("###")[0]
    assert set(WORDS) <= set(re.findall(r"`([a-z_]+)`", words))


def test_formats_lists_the_dtypes_that_safetensors_lack() -> None:
    listed = section("docs/formats.md", "### What an output cannot hold").partition("names")[0]
    lacking = {dtype.name for dtype in BY_NAME.values() if dtype.safetensors is None}
    assert set(re.findall(r"`(\w+)`", listed)) == lacking


def test_formats_tells_by_which_tensorflow_the_checkpoints_of_the_tests_are() -> None:
    told = re.search(r"TensorFlow ([\d., and]+)\s+wrote", text_of("docs/formats.md"))
    assert told
    records = [json.loads(path.read_text()) for path in DATA.glob("*/case.json")]
    versions = {record["tf_version"].rpartition(".")[0] for record in records}
    assert set(re.findall(r"\d+\.\d+", told[1])) == versions


def test_every_public_name_is_documented() -> None:
    assert converter.__all__ == sorted(converter.__all__)
    table = section("docs/python.md", "# Python")
    assert sorted(coded(first_cells(table, "name"))) == converter.__all__
    for name in converter.__all__:
        public = getattr(converter, name)
        if inspect.isclass(public) or inspect.isfunction(public):
            assert inspect.getdoc(public), name


@pytest.mark.parametrize("document", [*DOCUMENTS, "samples/README.md"])
def test_links_lead_somewhere(document: str) -> None:
    for path, anchor in re.findall(r"\]\(([^)#:]*)#?([^)]*)\)", text_of(document)):
        target = (ROOT / document).parent / path if path else ROOT / document
        assert target.exists(), path
        if anchor:
            headings = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE)
            assert anchor in {heading.lower().replace(" ", "-") for heading in headings}
