"""`convert prove`: whether two checkpoints compute the same, by running both."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from converter.checkpoint import open_checkpoint
from converter.cli.output import json_text, print_table
from converter.cli.question import question_of, question_options
from converter.cli.text import say, shape
from converter.proof import prove, prove_plan
from converter.proof_report import input_entries, judged_json, proof_json, refuse, verdict

if TYPE_CHECKING:
    from converter.comparison import Compared, Likeness
    from converter.forward.feeds import Feeds
    from converter.forward.find import Forward
    from converter.learning import Learning
    from converter.plan import Plan
    from converter.proof import Proof
    from converter.running import Question


_KINDS = {"blind": "cut blindly", "random": "random units"}


@click.command()
@click.argument("a")
@click.argument("b")
@question_options()
@click.option("--no-verify-source", is_flag=True, help="Don't compare checksums of what is read.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def command(
    ctx: click.Context, /, a: str, b: str, no_verify_source: bool, as_json: bool, **given: Any
) -> None:
    """Run two checkpoints on the same inputs, and compare what comes out.

    Each runs in its own graph, the .meta beside it or the frozen graph that it is; one without a
    graph runs in the other's. This needs TensorFlow: pip install 'ckpt-converter[tensorflow]'.
    `convert inspect --graph` shows inputs and outputs, and what --feed and --fetch may decide.

    \b
    convert prove model.ckpt-100 converted/model.safetensors
    convert prove old/ new/ --inputs batch.npz --fetch logits --tolerance 1e-3

    \b
    Exit code: 0 if every output is within the tolerance, 1 if not.

    \b
    Keys of --json:
      a, b       {path, format}
      graph      the file of the first graph
      inputs     [{name, dtype, shape, source, value}]; source is "given", "drawn" or "decided",
                 value is null unless it is a single number
      outputs    [{name, dtype, shape, largest, scale, error, multiple, nans, relative_error,
                 cosine, agreement, divergence, passed, note}]: the largest absolute difference, the
                 largest absolute value, the first as a part of the second, the multiple of A that B
                 is compared with (1 but where a plan promises one), how many are NaN in each,
                 the norm of the difference as a part of that of A, the cosine, the share of equal
                 argmax along the last axis, the divergence of the distribution of logits or
                 probabilities in nats (each null where there is none); passed is null for what
                 cannot be compared
      losses     [{name, before, after}] where labels are given
      tolerance, passed, notes
    """
    question = question_of(given)
    verify = not no_verify_source
    first, second = open_checkpoint(a, verify=verify), open_checkpoint(b, verify=verify)
    proof = prove(first, second, question)
    if as_json:
        paths = {
            side: {"path": str(checkpoint.path), "format": checkpoint.format}
            for side, checkpoint in (("a", first), ("b", second))
        }
        click.echo(json_text({**paths, **proof_json(proof)}))
    else:
        say(f"A  {first.path}  {first.format}")
        say(f"B  {second.path}  {second.format}")
        show(proof)
    if not proof.passed:
        ctx.exit(1)


def show(proof: Proof) -> None:
    """Print a proof for people."""
    show_inputs(proof.forward, proof.feeds)
    print_table(
        map(_row, proof.outputs),
        header=("output", "shape", "difference", "scale", "relative", "argmax", ""),
        right=(2, 3, 4, 5),
    )
    if proof.is_lossy or proof.baselines:
        show_likeness(proof)
    for loss in proof.losses:
        others = [
            f"; {_KINDS[b.kind]} {b.losses[loss.name]:.4g}"
            for b in proof.baselines
            if loss.name in b.losses
        ]
        say(f"loss    {loss.name}  {loss.before:.4g} -> {loss.after:.4g}{''.join(others)}")
    if proof.learning is not None:
        say(f"learn   {_learned(proof.learning)}")
    for note in proof.notes:
        say(f"note    {note}")
    say(verdict(proof))


def show_likeness(proof: Proof) -> None:
    """Print how like the first model the second is, beside others of its size."""
    rows = []
    for found in proof.outputs:
        if found.likeness.relative_error is None:
            continue
        rows.append((found.name, *_figures(found.likeness)))
        rows += [
            (f"  {_KINDS[baseline.kind]}", *_figures(baseline.outputs[found.name]))
            for baseline in proof.baselines
            if found.name in baseline.outputs
        ]
    if rows:
        header = ("likeness", "relative error", "cosine", "argmax", "divergence")
        print_table(rows, header=header, right=(1, 2, 3, 4))


def _figures(found: Likeness) -> tuple[str, ...]:
    formats = (".2g", ".4f", ".1%", ".2g")
    return tuple(
        "" if value is None else format(value, how)
        for value, how in zip(found, formats, strict=True)
    )


def _learned(learning: Learning) -> str:
    total = learning.total
    if not total.entries:
        return "nothing looked up a new entry, so none can have a gradient"
    first, second = total.first / total.entries, total.second / total.entries
    on = "drawn data" if learning.is_drawn else "the given data"
    return (
        f"of {total.entries:,} new entries {first:.1%} have a gradient at the first step of "
        f"training, {second:.1%} at the second, on {on}"
    )


def show_inputs(forward: Forward, feeds: Feeds) -> None:
    """Print what a graph was fed."""
    for entry in input_entries(forward, feeds):
        value = f" = {entry['value']}" if entry["value"] is not None else ""
        say(
            f"input   {entry['name']}  {entry['dtype']} {shape(entry['shape'])}{value}  "
            f"{entry['source']}"
        )


def _row(found: Compared) -> tuple[str, ...]:
    result = {True: "passes", False: "fails", None: "not compared"}[found.passed]
    times = f"{found.multiple:g} times the original's" if found.multiple != 1 else ""
    note = ": ".join(filter(None, (result, times, found.note)))
    if found.passed is None:
        return found.name, shape(found.shape), "", "", "", "", note
    if any(found.nans):
        note += f" ({found.nans[0]:,} and {found.nans[1]:,} NaN)"
    agreement = "" if found.likeness.agreement is None else f"{found.likeness.agreement:.1%}"
    if not found.is_float:
        part = f"{found.largest:,.0f} of {found.scale:,.0f}"
        return found.name, shape(found.shape), part, "", f"{found.error:.2g}", "", note
    return (
        found.name,
        shape(found.shape),
        f"{found.largest:.3g}",
        f"{found.scale:.3g}",
        f"{found.error:.2g}",
        agreement,
        note,
    )


@dataclass
class Check:
    """Proves an output before it is published; `convert ckpt --prove`.

    Attributes:
        plan: what is written.
        question: what is run.
        is_quiet: print nothing.
        as_json: print nothing, but a failed proof.
        proof: what came of it.
    """

    plan: Plan
    question: Question
    is_quiet: bool
    as_json: bool
    proof: Proof | None = None

    def report(self) -> dict[str, object]:
        """Return what the JSON of a conversion says of the proof."""
        return {"proof": judged_json(self.proof)} if self.proof is not None else {}

    def __call__(self, output: Path | None) -> None:
        """Run source and output, or what the plan would write where there is no output.

        Raises:
            ConverterError: they do not compute the same.
        """
        written = open_checkpoint(output) if output is not None else None
        self.proof = prove_plan(self.plan, written, self.question, is_judged=True)
        if self.as_json and not self.proof.passed:
            click.echo(json_text({"proof": judged_json(self.proof)}))
        elif not (self.as_json or self.is_quiet):
            show(self.proof)
        refuse(self.plan, self.proof, is_written=output is not None)


def check_of(plan: Plan, given: dict[str, Any]) -> Check:
    """Return the check that `--prove` and the options beside it ask for."""
    return Check(plan, question_of(given), given["quiet"], given["as_json"])
