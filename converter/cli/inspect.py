"""`convert inspect`: what is in a checkpoint."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any, cast

import click
import numpy as np

from converter.checkpoint import Checkpoint, open_checkpoint
from converter.cli.output import counting, json_text, print_table
from converter.cli.question import graph_option, question_of, question_options
from converter.cli.text import say, shape, size
from converter.counted import count
from converter.dtype import STRING, VARIANT
from converter.errors import UsageError, did_you_mean
from converter.inspection import Summary, Total, summarise
from converter.names.cells import ERAS
from converter.names.eras import EraCount, era_of
from converter.names.hints import hints_of
from converter.variable import Array, Variable

_FEW = 60
_COLUMNS = 6


@click.command()
@click.argument("path", default=".")
@click.option(
    "--variable",
    "names",
    metavar="NAME",
    multiple=True,
    help="Statistics of this variable, and a corner of its values.",
)
@click.option(
    "--norms",
    is_flag=True,
    help="The norm of every variable; of a directory, for all steps of its run.",
)
@click.option("--graph", is_flag=True, help="What goes into its graph, and what comes out.")
@click.option("--widths", is_flag=True, help="Which axes of the variables share a width.")
@click.option(
    "--test", is_flag=True, help="With --widths: permute each on the running graph (TensorFlow)."
)
@question_options(
    inputs="With --test: inputs by name, an .npz, or an .npy. [default: drawn]",
    feed="With --graph or --test: feed a tensor: a number, true, false, or a list.",
    fetch="With --graph or --test: this tensor, rather than what looks like outputs.",
    tolerance="With --test: the difference that passes, as a part of the scale. [default: 1e-05]",
)
@click.option(
    "-o",
    "--output",
    metavar="FILE",
    help="With --widths: write them as a layout, to read and edit.",
)
@click.option(
    "--layout",
    metavar="FILE",
    help="With --widths: what you say of axes and widths, before the graph and names.",
)
@graph_option
@click.option("--no-verify-source", is_flag=True, help="Don't compare checksums of what is read.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("-v", "--verbose", is_flag=True, help="List every variable, however many.")
@click.pass_context
def command(
    ctx: click.Context,
    /,
    path: str,
    names: tuple[str, ...],
    norms: bool,
    graph: bool,
    widths: bool,
    test: bool,
    output: str | None,
    layout: str | None,
    graph_from: str | None,
    no_verify_source: bool,
    as_json: bool,
    verbose: bool,
    **given: Any,
) -> None:
    """Show the variables of a checkpoint by scope: counts, sizes, dtypes, and what they are for.

    PATH is a prefix, any of its files, or a directory. Small checkpoints are listed variable by
    variable.

    \b
    Keys of --json:
      path, format, step, files, metadata
      variables  [{name, dtype, shape, bytes, role, of, slot, optimizer, slices}]
                 with --variable those named, and also statistics {size, nans, infinities, zeros,
                 minimum, maximum, mean, deviation, norm} (null for strings) and corner
      totals     {variables, elements, bytes, dtypes: {NAME: variables},
                 roles: {ROLE: {variables, elements, bytes}}}
      era        {eras: [release], cells, spelt: {RELEASE: cells}, flag} of the recurrent names of
                 TensorFlow 1: the releases that have all of them, and what brings them to the
                 newest (null: they are); null where there are none
      hints      [{text, flag}]: what else the names tell, and what makes something of it
    With --norms: steps [{path, step}], norms [{name, norms: [one for each step], distance}].
    With --graph:
      graph, nodes, tensorflow, notes, random
      inputs     [{name, dtype, shape, kind, value, limit, why}]: kind is data, ids, lengths, flag,
                 keep, rate, size, number or default; a size of -1 is open, a shape of null too
      outputs    [{name, dtype, shape, why}]
      variables  {NODE: the checkpoint's variable}, those that the outputs need
    With --widths:
      widths     [{name, size, class, resizable, exact, produced_by, consumed_by, followed_by, why}]
      variables  {NAME: [one axis each, over the widths]}, slots and averages too
      opaque     [{name, op, node}]: the widths of which an op that is not known hides the rest
      even       [{op, node, axes}]: axes over different widths that have to stay equally long
    With --test, where the exit code is 1 if a width is refuted, also:
      widths     tested: {result, error, control, with, unread, invariant, but_for, together, why}
      inputs, outputs, tolerance, passed, notes
    """
    if graph_from is not None and not (graph or widths):
        raise UsageError("--graph-from is about the graph; add --graph or --widths")
    _check_one({"--variable": names, "--norms": norms, "--graph": graph, "--widths": widths})
    _check(given, graph=graph, widths=widths, test=test, output=output, layout=layout)
    if norms:
        _show_norms(path, verify=not no_verify_source, as_json=as_json)
        return
    checkpoint = open_checkpoint(path, verify=not no_verify_source, graph_from=graph_from)
    if widths:
        from converter.cli.widths import show_widths

        question = question_of(given) if test else None
        if not show_widths(checkpoint, output, layout, question, as_json=as_json, verbose=verbose):
            ctx.exit(1)
        return
    if graph:
        from converter.cli.graph import show_graph

        show_graph(checkpoint, given["feeds"], given["fetches"], as_json=as_json)
        return
    _show_checkpoint(checkpoint, names, as_json=as_json, verbose=verbose)
    # Last, so that what is there can be seen even where some of it is missing.
    checkpoint.check(names or checkpoint)


def _show_checkpoint(
    checkpoint: Checkpoint, names: tuple[str, ...], *, as_json: bool, verbose: bool
) -> None:
    for name in names:
        if name not in checkpoint:
            raise UsageError(
                f"{checkpoint.path}: has no variable {name!r}{did_you_mean(name, checkpoint)}"
            )
    if as_json:
        click.echo(json_text(_as_json(checkpoint, names)))
    elif names:
        for name in names:
            _show_variable(checkpoint, checkpoint[name])
    else:
        _show(checkpoint, verbose=verbose)


def _check_one(shown: dict[str, object]) -> None:
    """Refuse several options of which each says what is shown."""
    asked = [option for option, value in shown.items() if value]
    if len(asked) > 1:
        raise UsageError(f"{' and '.join(asked)} show different things; ask for one at a time")


def _check(
    given: dict[str, Any],
    *,
    graph: bool,
    widths: bool,
    test: bool,
    output: str | None,
    layout: str | None,
) -> None:
    """Refuse options that are about nothing that is shown."""
    if layout is not None and not widths:
        raise UsageError("--layout is about the widths; add --widths")
    if output is not None and not widths:
        raise UsageError("-o is where the widths are written; add --widths")
    if test and not widths:
        raise UsageError("--test is about the widths; add --widths")
    if not test and (given["inputs"] is not None or given["tolerance"] is not None):
        raise UsageError("--inputs and --tolerance are about the test; add --widths --test")
    if not (test or graph) and (given["feeds"] or given["fetches"]):
        raise UsageError("--feed and --fetch are about the graph; add --graph, or --widths --test")


def _show(checkpoint: Checkpoint, *, verbose: bool) -> None:
    summary = summarise(checkpoint)
    say(_headline(checkpoint, summary.total))
    click.echo()
    if verbose or len(checkpoint) <= _FEW:
        _list(checkpoint)
    else:
        _list_scopes(summary)
    if len(summary.roles) > 1:
        click.echo()
        print_table(
            ((_words(kind), *_figures(total)) for kind, total in summary.roles.items()),
            header=("role", "variables", "elements", "size"),
            right=(1, 2, 3),
        )
    era = era_of(checkpoint, _of_model(checkpoint))
    told = [_era_text(era)] if era is not None else []
    told += [hint.text for hint in hints_of(_of_model(checkpoint))]
    if told:
        click.echo()
    for line in told:
        say(line)
    if summary.mixed_floats:
        click.echo()
        say(f"float dtypes are mixed: {'; '.join(_floats(summary.mixed_floats))}")


def _era_text(era: EraCount) -> str:
    """Say which releases have the recurrent names: `TensorFlow 1.2 to 1.15`."""
    if era.eras:
        spelt = " to ".join(dict.fromkeys((era.eras[0], era.eras[-1])))
    else:
        spelt = ", ".join(f"{release} ({cells})" for release, cells in era.spelt.items())
    flag = _era_flag(era)
    return f"recurrent names of TensorFlow {spelt}" + (
        f"; {flag} brings them to the newest" if flag else ""
    )


def _era_flag(era: EraCount) -> str | None:
    return None if ERAS[-1] in era.eras else f"--eras {ERAS[-1]}"


def _headline(checkpoint: Checkpoint, total: Total) -> str:
    facts = [checkpoint.format]
    if checkpoint.step is not None:
        facts.append(f"step {checkpoint.step:,}")
    shards = [file for file in checkpoint.files if not file.name.endswith((".index", ".json"))]
    if len(shards) > 1:
        facts.append(count(len(shards), "shard"))
    facts.append(count(total.variables, "variable"))
    if checkpoint.partitions:
        slices = sum(map(len, checkpoint.partitions.values()))
        facts.append(f"{len(checkpoint.partitions):,} of them in {count(slices, 'slice')}")
    facts.append(size(total.nbytes))
    return f"{checkpoint.path}  {', '.join(facts)}"


def _of_model(checkpoint: Checkpoint) -> list[str]:
    return [name for name, role in checkpoint.roles().items() if role.kind == "model"]


def _list(checkpoint: Checkpoint) -> None:
    has_paths = any(v.path for v in checkpoint.values())
    print_table(
        (
            (
                *(v.name, v.dtype.name, shape(v.shape), _size(v), _use(checkpoint, v.name)),
                *([v.path or v.name] if has_paths else []),
            )
            for v in checkpoint.values()
        ),
        header=("variable", "dtype", "shape", "size", "role", *(["path"] if has_paths else [])),
        right=(3,),
    )


def _list_scopes(summary: Summary) -> None:
    print_table(
        (
            (
                scope.name or "(none)",
                *_figures(scope.model),
                ", ".join(scope.dtypes),
                ", ".join(count(n, _words(kind)) for kind, n in scope.others.items()),
            )
            for scope in summary.scopes
        ),
        header=("scope", "variables", "elements", "size", "dtype", "beside the model"),
        right=(1, 2, 3),
    )


def _figures(total: Total) -> tuple[str, str, str]:
    return f"{total.variables:,}", f"{total.elements:,}", size(total.nbytes)


def _words(kind: str) -> str:
    return "optimizer variable" if kind == "optimizer" else kind.replace("_", " ")


def _size(variable: Variable) -> str:
    # How long strings are is not known before they are read.
    return size(variable.nbytes) if variable.dtype.itemsize or variable.nbytes else "-"


def _use(checkpoint: Checkpoint, name: str) -> str:
    """Say what a variable is for: `slot Adam/m`, `average of x`, `model, 3 slices`."""
    role = checkpoint.roles()[name]
    text = _words(role.kind)
    made_by = "/".join(filter(None, (role.optimizer, role.slot)))
    if made_by:
        text += f" {made_by}"
    if role.of is not None and not name.startswith(f"{role.of}/"):
        text += f" of {role.of}"
    if name in checkpoint.partitions:
        text += f", {count(len(checkpoint.partitions[name]), 'slice')}"
    return text


def _floats(mixed: dict[str, list[str]]) -> Iterator[str]:
    for dtype, names in mixed.items():
        few = f" ({', '.join(names)})" if len(names) <= 3 else ""
        yield f"{count(len(names), 'variable')} {dtype}{few}"


def _show_variable(checkpoint: Checkpoint, variable: Variable) -> None:
    from converter.statistics import statistics

    with counting(variable.name, variable.nbytes) as add:
        found = statistics(variable, progress=add)
    facts = {
        "dtype": variable.dtype.name,
        "shape": shape(variable.shape),
        "size": _size(variable),
        "role": _use(checkpoint, variable.name),
        **({"path": variable.path} if variable.path else {}),
    }
    if found is not None:
        facts["elements"] = f"{found.size:,}"
        for what, number in asdict(found).items():
            if what in ("zeros", "nans", "infinities"):
                facts[what] = f"{number:,}" + (f" ({number / found.size:.1%})" if number else "")
            elif what != "size" and number is not None:
                facts[what] = f"{number:.6g}"
    say(variable.name)
    for what, text in facts.items():
        say(f"  {what:<11}{text}")
    corner = _corner(variable)
    if corner is not None:
        say(
            f"  values [{', '.join(f'0:{n}' for n in corner.shape)}]" if corner.shape else "  value"
        )
        for line in np.array2string(corner, precision=6).splitlines():
            say(f"    {line}")


def _corner(variable: Variable) -> Array | None:
    """Return the first entries of the last two axes; None where there is nothing to show."""
    if variable.dtype is VARIANT or not variable.size:
        return None
    most = [1] * (len(variable.shape) - 2) + [4, 6]
    sizes = zip(reversed(variable.shape), reversed(most), strict=False)
    values = variable.read(tuple(reversed([slice(0, min(pair)) for pair in sizes])))
    if variable.dtype is STRING:
        texts = [value.decode("utf-8", "backslashreplace") for value in values.reshape(-1)]
        return cast("Array", np.array(texts, object).reshape(values.shape))
    return values if variable.dtype.name == "bool" else values.astype(variable.dtype.wide)


def _as_json(checkpoint: Checkpoint, names: Sequence[str]) -> dict[str, object]:
    from converter.statistics import statistics

    summary = summarise(checkpoint)
    variables = []
    for name in names or checkpoint:
        entry = _entry(checkpoint, checkpoint[name])
        if names:
            found, corner = statistics(checkpoint[name]), _corner(checkpoint[name])
            entry["statistics"] = asdict(found) if found else None
            entry["corner"] = None if corner is None else _plain(corner)
        variables.append(entry)
    total = summary.total
    era = era_of(checkpoint, _of_model(checkpoint))
    return {
        "path": str(checkpoint.path),
        "format": checkpoint.format,
        "step": checkpoint.step,
        "files": [str(file) for file in checkpoint.files],
        "metadata": dict(checkpoint.metadata),
        "variables": variables,
        "totals": {
            "variables": total.variables,
            "elements": total.elements,
            "bytes": total.nbytes,
            "dtypes": dict(summary.dtypes),
            "roles": {
                kind: {"variables": t.variables, "elements": t.elements, "bytes": t.nbytes}
                for kind, t in summary.roles.items()
            },
        },
        "era": None
        if era is None
        else {
            "eras": era.eras,
            "cells": era.cells,
            "spelt": era.spelt,
            "flag": _era_flag(era),
        },
        "hints": [hint._asdict() for hint in hints_of(_of_model(checkpoint))],
    }


def _entry(checkpoint: Checkpoint, variable: Variable) -> dict[str, Any]:
    role = checkpoint.roles()[variable.name]
    return {
        "name": variable.name,
        "dtype": variable.dtype.name,
        "shape": list(variable.shape),
        "bytes": variable.nbytes,
        "role": role.kind,
        "of": role.of,
        "slot": role.slot,
        "optimizer": role.optimizer,
        "slices": len(checkpoint.partitions.get(variable.name, ())),
        "path": variable.path,
    }


def _plain(values: Array) -> object:
    if values.dtype == np.complex128:
        return values.astype(str).tolist()
    return values.tolist()


def _show_norms(path: str, *, verify: bool, as_json: bool) -> None:
    from converter.statistics import movements, open_run

    steps = open_run(path, verify=verify)
    if len(steps) > _COLUMNS and not as_json:
        chosen = [round(i * (len(steps) - 1) / (_COLUMNS - 1)) for i in range(_COLUMNS)]
        say(f"{len(steps)} steps, of which {_COLUMNS} are shown; --json gives all", err=True)
        steps = [steps[i] for i in chosen]
    held = [v for step in steps for v in step.values() if v.dtype.is_number]
    with counting("norms", sum(v.nbytes for v in held)) as add:
        found = list(movements(steps, progress=add))
    if as_json:
        document = {
            "steps": [{"path": str(step.path), "step": step.step} for step in steps],
            "norms": [asdict(movement) for movement in found],
        }
        click.echo(json_text(document))
        return
    titles = [step.name if step.step is None else f"step {step.step:,}" for step in steps]
    moved = ["moved by"] if len(steps) > 1 else []
    print_table(
        ((m.name, *map(_number, (*m.norms, *([m.distance] if moved else [])))) for m in found),
        header=("norm of variable", *titles, *moved),
        right=range(1, len(steps) + 2),
    )


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"
