"""`convert inspect --widths`: which axes of a checkpoint's variables share a width."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from converter.checkpoint import Checkpoint
from converter.cli.output import json_text, print_table
from converter.cli.permutation import show_test, show_trial, test_json, trial_json
from converter.cli.text import Progress, say
from converter.counted import count
from converter.structure.axes.axis import Width
from converter.structure.infer import structure_of
from converter.structure.layout import layout_text, read_layout, write_layout
from converter.structure.structure import Structure

if TYPE_CHECKING:
    from converter.permutation import PermutationTest
    from converter.running import Question

_FEW = 60


def show_widths(
    checkpoint: Checkpoint,
    output: str | None,
    layout: str | None,
    question: Question | None,
    *,
    as_json: bool,
    verbose: bool,
) -> bool:
    """Print the widths of a checkpoint, or write them as a layout file.

    Args:
        checkpoint: the checkpoint.
        output: the layout file to write.
        layout: a layout file to read, which goes before the graph and names.
        question: on what they are tested; None not to test them.
        as_json: print JSON.
        verbose: list the variables of each width, and all variables.

    Returns:
        Whether no width is refuted.

    Raises:
        InputError: the graph is not that of the checkpoint; a test is wanted, and there is none.
        PlanError: the layout file exists, or lengths contradict the layout.
        UsageError: the layout is none, or is of another checkpoint; a test is wanted, and
            TensorFlow is not installed, or an input does not fit.
        RunError: the graph does not run.
    """
    structure = structure_of(checkpoint, read_layout(Path(layout)) if layout is not None else None)
    test = None if question is None else _test(checkpoint, structure, question)
    names = _told(checkpoint)
    if output is not None:
        title = f"Which axes share a width in {checkpoint.path}"
        write_layout(Path(output), layout_text(structure, names, title))
        say(f"wrote {output} ({count(len(structure.widths), 'width')})", err=as_json)
    if as_json:
        click.echo(json_text(_as_json(structure, test)))
    elif output is None:
        _show(checkpoint, structure, names, test, verbose=verbose)
    if test is not None and not as_json:
        show_test(test, structure)
    return test is None or test.passed


def _test(checkpoint: Checkpoint, structure: Structure, question: Question) -> PermutationTest:
    from converter.permutation import permute

    progress = Progress("permuting", lambda number: f"{number:.3g}")
    try:
        return permute(checkpoint, structure, question, progress=progress)
    finally:
        progress.close()


def _told(checkpoint: Checkpoint) -> list[str]:
    """Return the variables that have axes of their own: no slots, averages or numbers."""
    roles = checkpoint.roles()
    return [
        name
        for name, variable in checkpoint.items()
        if variable.shape
        and not (roles[name].kind in ("slot", "average") and roles[name].of is not None)
    ]


def _as_json(structure: Structure, test: PermutationTest | None) -> dict[str, object]:
    entries = [_entry(width) for width in structure.widths.values()]
    document: dict[str, object] = {
        "widths": entries,
        "variables": {name: [str(a) for a in axes] for name, axes in structure.axes.items()},
        "opaque": [
            {"name": found.name, "op": found.op, "node": found.node} for found in structure.opaque
        ],
        "even": [
            {"op": op, "node": node, "axes": [str(axis) for axis in parts]}
            for op, node, parts in structure.evens
        ],
    }
    if test is not None:
        for entry, trial in zip(entries, test.trials.values(), strict=True):
            entry["tested"] = trial_json(trial)
        document |= test_json(test)
    return document


def _entry(width: Width) -> dict[str, object]:
    return {
        "name": width.name,
        "size": width.size,
        "class": width.symmetry,
        "resizable": width.resizable,
        "exact": width.exact,
        "produced_by": list(width.produced_by),
        "consumed_by": list(width.consumed_by),
        "followed_by": list(width.followed_by),
        "why": width.why,
    }


def _show(
    checkpoint: Checkpoint,
    structure: Structure,
    names: list[str],
    test: PermutationTest | None,
    *,
    verbose: bool,
) -> None:
    found = f"{count(len(structure.widths), 'width')} in {count(len(names), 'variable')}"
    if structure.findings is None:
        # The file that people forget to copy.
        meta = (
            "" if checkpoint.format.startswith("safetensors") else f" (no {checkpoint.path}.meta)"
        )
        say(f"{checkpoint.path}  by names, without a graph{meta}: {found}")
    else:
        graph = structure.findings.analysis.graph
        say(f"{graph.path}  {count(len(graph.nodes), 'node')}, {found}")
    click.echo()
    if structure.widths:
        print_table(
            (_row(width, test) for width in structure.widths.values()),
            header=(
                "width",
                "size",
                "class",
                "grows",
                *(("test",) if test is not None else ()),
                "produced",
                "consumed",
                "followed",
                "because",
            ),
            right=(1, 4, 5, 6) if test is None else (1, 5, 6, 7),
        )
    if verbose:
        for width in structure.widths.values():
            _show_members(width)
            if test is not None:
                show_trial(test.trials[width.name])
    if verbose or len(names) <= _FEW:
        click.echo()
        print_table(
            (
                (name, ", ".join(map(str, structure.axes[name])), _shape(checkpoint, name))
                for name in names
            ),
            header=("variable", "axes", "shape"),
        )
    for line in _notes(structure):
        say(line)


def _row(width: Width, test: PermutationTest | None) -> tuple[str, ...]:
    grows = "exact" if width.exact and width.resizable else "yes" if width.resizable else "no"
    return (
        width.name,
        str(width.size),
        width.symmetry,
        grows,
        *((test.trials[width.name].result,) if test is not None else ()),
        *(str(len(m)) for m in (width.produced_by, width.consumed_by, width.followed_by)),
        width.why,
    )


def _show_members(width: Width) -> None:
    click.echo()
    say(f"{width.name}  {width.size}, {width.symmetry}")
    for words, members in (
        ("produced by", width.produced_by),
        ("consumed by", width.consumed_by),
        ("followed by", width.followed_by),
    ):
        for name in members:
            say(f"  {words:<11} {name}")


def _shape(checkpoint: Checkpoint, name: str) -> str:
    return "[" + ", ".join(map(str, checkpoint[name].shape)) + "]"


def _notes(structure: Structure) -> Iterator[str]:
    """Yield what could not be told, behind an empty line."""
    lines = [
        f"opaque  {found.name}: {structure.widths[found.name].why}; it may be tied to anything"
        for found in structure.opaque
    ]
    lines += [f"note    {conflict}" for conflict in structure.conflicts]
    lines += [
        f"note    {op} {node} makes parts of one length, so {' and '.join(map(str, parts))} stay "
        "equally long"
        for op, node, parts in structure.evens
    ]
    for name, factors in structure.factors.items():
        lines += [
            f"note    {factor.node} multiplies with {factor.number:.6g}, which is the size of "
            f"{name} to the power of {factor.power:g}"
            for factor in factors
        ]
    if lines:
        yield ""
        yield from lines
