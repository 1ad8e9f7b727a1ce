"""The options that say what of a graph is run, and what passes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from converter.errors import UsageError

if TYPE_CHECKING:
    from converter.running import Question

_INPUTS = "Inputs by name, an .npz; or a single one, .npy. [default: drawn]"
_FEED = "Feed a tensor: a number, true, false, or a list."
_FETCH = "Compare this tensor, rather than what looks like outputs."
_TOLERANCE = "The difference that passes, as a part of the scale. [default: 1e-05]"

Command = Callable[..., None]

graph_option = click.option(
    "--graph-from",
    metavar="PATH",
    help="The checkpoint of the same model, or its .meta, whose graph one without a graph has.",
)
"""Adds the option that says where the graph of a checkpoint is that has none."""


def question_options(
    *, inputs: str = _INPUTS, feed: str = _FEED, fetch: str = _FETCH, tolerance: str = _TOLERANCE
) -> Callable[[Command], Command]:
    """Return what adds the options that say what is run, and what passes.

    Args:
        inputs, feed, fetch, tolerance: what each is for.
    """
    options = [
        click.option("--inputs", metavar="FILE", help=inputs),
        click.option("--feed", "feeds", metavar="NAME=VALUE", multiple=True, help=feed),
        click.option("--fetch", "fetches", metavar="NAME", multiple=True, help=fetch),
        click.option("--tolerance", metavar="PART", type=float, help=tolerance),
    ]

    def add(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return add


def question_of(given: dict[str, Any]) -> Question:
    """Return what the options of `question_options` mean.

    Raises:
        UsageError: the tolerance is negative or no number.
    """
    from converter.comparison import TOLERANCE
    from converter.running import Question

    tolerance = TOLERANCE if given["tolerance"] is None else given["tolerance"]
    if not tolerance >= 0:
        raise UsageError(f"--tolerance must be 0 or more, got {tolerance:g}")
    return Question(
        Path(given["inputs"]) if given["inputs"] else None,
        given["feeds"],
        given["fetches"],
        tolerance,
    )


def wants_proof(given: dict[str, Any]) -> bool:
    """Tell whether `--prove` is given.

    Raises:
        UsageError: it is not, but an option that belongs to it.
    """
    flags = {"inputs": "inputs", "feeds": "feed", "fetches": "fetch", "tolerance": "tolerance"}
    for name, flag in flags.items():
        if given[name] not in (None, ()) and not given["prove"]:
            raise UsageError(f"--{flag} is about the proof; add --prove")
    return bool(given["prove"])
