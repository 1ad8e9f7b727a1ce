"""`convert diff`: how two checkpoints differ."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import click

from converter.checkpoint import Checkpoint, open_checkpoint
from converter.cli.output import counting, json_text
from converter.cli.text import say, shape, size
from converter.counted import count
from converter.difference import Comparison, compare
from converter.variable import Variable


@click.command()
@click.argument("a")
@click.argument("b")
@click.option("--no-verify-source", is_flag=True, help="Don't compare checksums of what is read.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def command(ctx: click.Context, a: str, b: str, no_verify_source: bool, as_json: bool) -> None:
    """Compare two checkpoints of any formats: names, shapes, dtypes, and every value.

    Values of one dtype are equal when their bits are. Between two dtypes the numbers are compared.

    \b
    Exit code: 0 if the checkpoints are equal, 1 if they differ.

    \b
    Keys of --json:
      a, b       {path, format}
      equal      number of variables that are equal
      variables  those that differ: {name, differences, a: {dtype, shape} or null, b, differing,
                 largest, at}; differences are "only in A", "only in B", "dtype", "shape",
                 "values"; differing is the number of elements, largest the largest absolute
                 difference, at its index
    """
    verify = not no_verify_source
    first, second = open_checkpoint(a, verify=verify), open_checkpoint(b, verify=verify)
    with counting("compared", _common_bytes(first, second)) as add:
        found = list(compare(_shown(first, second), _shown(second, first), progress=add))
    differing = [comparison for comparison in found if comparison.differences]
    if as_json:
        click.echo(json_text(_as_json(first, second, found)))
    else:
        say(f"A  {first.path}  {first.format}, {count(len(first), 'variable')}")
        say(f"B  {second.path}  {second.format}, {count(len(second), 'variable')}")
        for comparison in differing:
            say(_line(comparison))
        say(_summary(found, differing))
    if differing:
        ctx.exit(1)


def _shown(one: Checkpoint, other: Checkpoint) -> Mapping[str, Variable]:
    """Return what is to be compared: not an object graph that only one of the two formats has."""
    if (one.object_graph is None) == (other.object_graph is None):
        return one
    roles = one.roles()
    return {n: v for n, v in one.items() if roles[n].kind not in ("object_graph", "save_counter")}


def _common_bytes(a: Checkpoint, b: Checkpoint) -> int:
    return sum(v.nbytes + b[name].nbytes for name, v in a.items() if name in b)


def _line(found: Comparison) -> str:
    label = "+".join(found.differences)
    if found.a is None or found.b is None:
        held = found.a or found.b
        return f"{label:<11} {found.name}  {_described(held)}" if held else ""
    text = f"{label:<11} {found.name}  {_described(found.a)}"
    if found.differences != ("values",):
        text += f" / {_described(found.b)}"
    if not found.differing:
        return text + (": equal values" if found.differing == 0 else "")
    text += f": {found.differing:,} of {found.a.size:,} elements differ"
    if found.at is None:
        return text
    if found.largest is not None:
        text += f", by up to {found.largest:.6g}"
    return f"{text}, at {shape(found.at)} ({' / '.join(map(_value, found.values))})"


def _described(variable: Variable) -> str:
    return f"{variable.dtype} {shape(variable.shape)}"


def _value(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.9g}"
    text = str(value)
    return text if len(text) <= 40 else f"{text[:40]}..."


def _summary(found: list[Comparison], differing: list[Comparison]) -> str:
    if not differing:
        nbytes = sum(c.a.nbytes for c in found if c.a is not None)
        return f"equal: {count(len(found), 'variable')}, {size(nbytes)}"
    kinds = Counter("+".join(comparison.differences) for comparison in differing)
    parts = [f"{kind} {number:,}" for kind, number in kinds.items()]
    return f"different: {', '.join(parts)}; {count(len(found) - len(differing), 'variable')} equal"


def _as_json(first: Checkpoint, second: Checkpoint, found: list[Comparison]) -> dict[str, object]:
    return {
        "a": {"path": str(first.path), "format": first.format},
        "b": {"path": str(second.path), "format": second.format},
        "equal": sum(not comparison.differences for comparison in found),
        "variables": [
            {
                "name": comparison.name,
                "differences": list(comparison.differences),
                "a": _kind(comparison.a),
                "b": _kind(comparison.b),
                "differing": comparison.differing,
                "largest": comparison.largest,
                "at": comparison.at,
            }
            for comparison in found
            if comparison.differences
        ],
    }


def _kind(variable: Variable | None) -> dict[str, object] | None:
    return (
        None if variable is None else {"dtype": variable.dtype.name, "shape": list(variable.shape)}
    )
