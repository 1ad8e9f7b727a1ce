"""The built wheel in a clean environment, away from the sources, with a third-party plugin."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import numpy as np
import pytest

from converter import __version__, open_checkpoint
from converter.registry import DISABLED

ROOT = Path(__file__).parent.parent
CHARLM = ROOT / "samples" / "charlm"
SAMPLE = ROOT / "samples" / "converter-double"

# Nothing is left in the sources.
PYTEST = ("python", "-B", "-m", "pytest", "-p", "no:cacheprovider")

pytestmark = pytest.mark.slow


class Environment:
    """A virtual environment in which the wheel is installed."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        venv.create(directory, with_pip=True)

    def run(self, program: str, *arguments: str | Path, **variables: str) -> str:
        """Run one of the environment's programs there, and return what it prints on stdout."""
        ours = ("PYTHON", "PYTEST", "CONVERTER_")
        kept = {name: v for name, v in os.environ.items() if not name.startswith(ours)}
        result = subprocess.run(
            [self.directory / "bin" / program, *arguments],
            cwd=self.directory,
            env=kept | variables,
            capture_output=True,
            text=True,
        )
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stdout

    def plugins(self, **variables: str) -> dict[str, str]:
        """Return who brought each strategy, by the name of the strategy."""
        listed = json.loads(self.run("convert", "plugins", "--json", **variables))
        assert listed["broken"] == []
        return {plugin["name"]: plugin["origin"] for plugin in listed["plugins"]}


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "build", "--wheel", "--outdir", str(directory), str(ROOT)]
    subprocess.run(build, check=True, stdout=subprocess.PIPE)
    (built,) = directory.glob("*.whl")
    return built


@pytest.fixture(scope="session")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    environment = Environment(tmp_path_factory.mktemp("environment"))
    environment.run("pip", "install", "--quiet", wheel)
    return environment


@pytest.fixture(scope="session")
def with_sample(environment: Environment) -> Environment:
    """The same environment, once the sample plugin is there too."""
    assert "double" not in environment.plugins()
    environment.run("pip", "install", "--quiet", f"{SAMPLE}[test]")
    return environment


def test_the_wheel_holds_the_two_packages(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    information = f"ckpt_converter-{__version__}.dist-info"
    roots = {name.partition("/")[0] for name in names}
    assert roots == {"converter", "converter_plugins", information}
    assert {"converter/py.typed", f"{information}/licenses/LICENSE"} <= set(names)


def test_it_can_be_called_in_three_ways(environment: Environment) -> None:
    version = f"convert, version {__version__}\n"
    assert environment.run("convert", "--version") == version
    assert environment.run("ckpt-converter", "--version") == version
    assert environment.run("python", "-m", "converter", "--version") == version
    home = environment.run("python", "-c", "import converter; print(converter.__file__)")
    assert Path(home).is_relative_to(environment.directory)


def test_it_converts_where_there_is_no_tensorflow(environment: Environment) -> None:
    assert "tensorflow" not in environment.run("pip", "list")
    environment.run("convert", "ckpt", CHARLM, "--drop", "optimizer", "-o", "charlm.safetensors")
    source = open_checkpoint(CHARLM)
    written = open_checkpoint(environment.directory / "charlm.safetensors")
    roles = source.roles()
    assert set(written) == {name for name in source if not roles[name].is_optimizer_state}
    assert all(np.array_equal(written[name].read(), source[name].read()) for name in written)


@pytest.mark.parametrize("arguments", [["--help"], ["ckpt", "--help"], ["inspect", CHARLM]])
def test_tensorflow_is_not_imported_where_there_is_one(arguments: list[str | Path]) -> None:
    command = [sys.executable, "-X", "importtime", "-m", "converter", *arguments]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    imported = {line.rpartition("|")[2].strip() for line in result.stderr.splitlines()}
    assert "converter" in imported
    assert not {name for name in imported if name.partition(".")[0] in ("tensorflow", "keras")}


def test_an_installed_plugin_is_listed_and_used(with_sample: Environment) -> None:
    assert with_sample.plugins()["double"] == "ckpt-converter-double 1.0"
    with_sample.run(
        *("convert", "ckpt", CHARLM, "--plugin", "double", "--double-factor", "3"),
        *("-o", "tripled.safetensors"),
    )
    written = open_checkpoint(with_sample.directory / "tripled.safetensors")
    source = open_checkpoint(CHARLM)
    name = "charlm/rnn/lstm_cell/kernel"
    assert np.array_equal(written[name].read(), 3 * source[name].read())
    assert np.array_equal(written["global_step"].read(), source["global_step"].read())


def test_an_installed_plugin_can_be_disabled(with_sample: Environment) -> None:
    left = with_sample.plugins(**{DISABLED: "double,scale"})
    assert set(with_sample.plugins()) - set(left) == {"double", "scale"}


def test_the_tests_of_the_sample_pass(with_sample: Environment) -> None:
    assert "2 passed" in with_sample.run(*PYTEST, SAMPLE)
