"""`convert inspect --graph`: what goes into a checkpoint's graph, and what comes out."""

from __future__ import annotations

from collections.abc import Sequence

import click

from converter.checkpoint import Checkpoint
from converter.cli.output import json_text, print_table
from converter.cli.text import say
from converter.counted import count
from converter.errors import InputError
from converter.forward.feeds import given_tensor, parse_feeds
from converter.forward.find import Forward, find_forward
from converter.forward.inputs import Input
from converter.forward.outputs import Output
from converter.graph.written import read_graph


def show_graph(
    checkpoint: Checkpoint, feeds: Sequence[str], fetches: Sequence[str], *, as_json: bool
) -> None:
    """Print the forward part of the graph of a checkpoint.

    Raises:
        InputError: it has no graph, or that is damaged.
        UsageError: a feed or a fetch does not fit; nothing looks like an output.
    """
    graph = read_graph(checkpoint)
    if graph is None:
        raise InputError(
            f"{checkpoint.path}: it has no graph: no .meta lies beside it; give that of another "
            "checkpoint (--graph-from)"
        )
    given = parse_feeds(feeds).items()
    values = {given_tensor(graph, name, "--feed"): value for name, value in given}
    fed = list(map(str, values))
    forward = find_forward(graph, set(checkpoint), fetches=fetches, fed=fed, values=values)
    if as_json:
        click.echo(json_text(_as_json(forward)))
        return
    nodes = count(len(graph.nodes), "node")
    version = f", TensorFlow {graph.definition.tensorflow}" if graph.definition.tensorflow else ""
    variables = f"{count(len(forward.variables), 'variable')} of {len(checkpoint)} needed"
    say(f"{graph.path}  {nodes}{version}, {variables}")
    click.echo()
    if forward.inputs:
        print_table(
            (_input_row(found) for found in forward.inputs),
            header=("input", "dtype", "shape", "kind", ""),
        )
        click.echo()
    print_table(
        (_output_row(forward, found) for found in forward.outputs),
        header=("output", "dtype", "shape", ""),
    )
    if forward.notes:
        click.echo()
    for note in forward.notes:
        say(f"note    {note}")


def _sizes(shape: Sequence[int] | None) -> str:
    if shape is None:
        return "any"
    return "[" + ", ".join("?" if size < 0 else str(size) for size in shape) + "]"


def _input_row(found: Input) -> tuple[str, ...]:
    why = found.why if found.value is None else f"fed {found.value}: {found.why}"
    dtype = found.dtype.name if found.dtype else "?"
    return found.name, dtype, _sizes(found.shape), found.kind, why


def _output_row(forward: Forward, found: Output) -> tuple[str, ...]:
    dtype = forward.graph.dtype(found.tensor)
    shape = forward.graph.shape(found.tensor)
    return str(found.tensor), dtype.name if dtype else "?", _sizes(shape), found.why


def _as_json(forward: Forward) -> dict[str, object]:
    graph = forward.graph
    return {
        "graph": str(graph.path),
        "nodes": len(graph.nodes),
        "tensorflow": graph.definition.tensorflow or None,
        "inputs": [
            {
                "name": found.name,
                "dtype": found.dtype.name if found.dtype else None,
                "shape": None if found.shape is None else list(found.shape),
                "kind": found.kind,
                "value": found.value,
                "limit": found.limit,
                "why": found.why,
            }
            for found in forward.inputs
        ],
        "outputs": [
            {
                "name": str(found.tensor),
                "dtype": dtype.name if (dtype := graph.dtype(found.tensor)) else None,
                "shape": None if (shape := graph.shape(found.tensor)) is None else list(shape),
                "why": found.why,
            }
            for found in forward.outputs
        ],
        "variables": {name: held.key for name, held in forward.variables.items()},
        "random": list(forward.random),
        "notes": list(forward.notes),
    }
