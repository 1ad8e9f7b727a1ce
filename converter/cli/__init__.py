"""The command line: one module per command. It parses, calls, prints, and decides nothing."""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path
from typing import Any

import click

from converter.errors import ConverterError, UsageError, did_you_mean, printable

# Here, so that `--help` imports none of them.
_COMMANDS = {
    "ckpt": "Convert a checkpoint through plugins.",
    "inspect": "Show what is in a checkpoint.",
    "diff": "Compare two checkpoints of any formats.",
    "prove": "Run two checkpoints on the same inputs, and compare what comes out.",
    "stats": "Run a model on data, and show the statistics of its activations.",
    "batch": "Convert every checkpoint below a directory.",
    "plugins": "List the strategies, or explain one.",
    "recipes": "List the recipes that come with the package, or print one.",
}


def _failure(message: str, exit_code: int) -> click.ClickException:
    """Return an error whose message is for the user, with its exit code."""
    failure = click.ClickException(message)
    failure.exit_code = exit_code  # type: ignore[misc]  # click declares it for the class
    return failure


class _Commands(click.Group):
    """Imports a command when it is wanted; a first word that names a checkpoint means `ckpt`."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in _COMMANDS:
            return None
        module = importlib.import_module(f"converter.cli.{name}")
        command: click.Command = module.command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(_COMMANDS.items()))

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        own = {spelling for parameter in self.get_params(ctx) for spelling in parameter.opts}
        if args and args[0].startswith("-") and args[0] not in own:
            args = ["ckpt", *args]
        return super().parse_args(ctx, args)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] not in _COMMANDS:
            if not _is_checkpoint(args[0]):
                near = did_you_mean(args[0], _COMMANDS) or "; `convert --help` lists them"
                raise UsageError(f"{args[0]!r} is no command, and no checkpoint{near}")
            args = ["ckpt", *args]
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except ConverterError as error:
            raise _failure(printable(str(error)), error.exit_code) from error
        except BrokenPipeError:
            raise
        except OSError as error:
            message = f"{error.filename or 'the system'}: {error.strerror}"
            raise _failure(printable(message), 1) from error
        except KeyboardInterrupt:
            is_batch = ctx.invoked_subcommand == "batch"
            left = (
                "what is done stays, and a second run goes on"
                if is_batch
                else "nothing was published"
            )
            raise _failure(f"interrupted; {left}", 130) from None


def _is_checkpoint(word: str) -> bool:
    from converter.location import locate

    try:
        locate(word)
    except ConverterError:
        # Damage and near misses are better told by ckpt than by "no command".
        return os.path.lexists(word) or not word.isalpha()
    return True


@click.group(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(None, "-V", "--version", package_name="ckpt-converter", prog_name="convert")
def cli() -> None:
    """Convert TensorFlow checkpoints of any version, variable by variable, without TensorFlow.

    \b
    convert inspect PATH                            what is in it
    convert ckpt PATH -o model.safetensors          convert it
    convert ckpt PATH --drop optimizer --plugin pad --shape 'embedding=16,8' -o out/ --to tf

    PATH is a prefix, any of its files, or a directory. The word ckpt can be left out.

    \b
    Exit codes: 0 done; 1 a check failed, or the work broke off; 2 usage; 3 the input is
    unreadable or damaged; 4 refused (the output exists, names collide, sizes cannot be);
    5 some of a batch failed; 130 interrupted.
    """


def main() -> None:
    """Run the command line: the console scripts `convert` and `ckpt-converter`."""
    try:
        cli.main(prog_name=_program())
    except BrokenPipeError:
        # The reader of our output has gone; what it did not want is no failure of ours.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


def _program() -> str:
    name = Path(sys.argv[0]).name
    return "python -m converter" if name == "__main__.py" else name
