"""`convert ckpt`: convert one checkpoint."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from converter.cli.question import graph_option, question_options, wants_proof
from converter.cli.steps import StrategyCommand, recipe_of, steps_of, strategies_of
from converter.cli.text import Progress, parse_size, say
from converter.errors import UsageError

if TYPE_CHECKING:
    from converter.plan import Plan


@click.command(
    cls=StrategyCommand,
    epilog="Without -o the plan is shown and nothing is written.",
)
@click.argument("path", required=False)
@click.option("-o", "--output", metavar="OUT", help="x.safetensors, x.index, or a directory.")
@click.option("--to", metavar="[safetensors|tf]", help="What to write. [default: as OUT says]")
@click.option(
    "--plugin",
    multiple=True,
    metavar="NAME",
    help="A strategy to apply, in order; or a file, ./mine.py. `convert plugins` lists them.",
)
@click.option(
    "--recipe", metavar="FILE", help="A TOML file that says it all, or the name of a shipped one."
)
@click.option(
    "--shard-size", metavar="SIZE", help="Bytes in one file. [default: 5GB in a directory]"
)
@click.option(
    "--sidecar/--no-sidecar",
    default=None,
    help="Keep what safetensors cannot hold (strings ...) in a TensorFlow checkpoint beside it.",
)
@click.option(
    "--prove", is_flag=True, help="Run source and output, and publish only what computes the same."
)
@question_options()
@graph_option
@click.option("-n", "--dry-run", is_flag=True, help="Show the plan, write nothing.")
@click.option("-f", "--force", is_flag=True, help="Replace an output that exists.")
@click.option("--no-verify-source", is_flag=True, help="Don't compare checksums of the source.")
@click.option("--no-verify-output", is_flag=True, help="Don't read the output back.")
@click.option("--no-sync", is_flag=True, help="Don't wait until the disk has everything.")
@click.option("--json", "as_json", is_flag=True, help="Print the plan and the result as JSON.")
@click.option("-q", "--quiet", is_flag=True, help="Print errors only.")
@click.option("-v", "--verbose", is_flag=True, help="Print every variable.")
@click.pass_context
def command(ctx: click.Context, /, **given: Any) -> None:
    """Convert a checkpoint: rename, filter, cast, resize; to safetensors or TensorFlow.

    PATH is a prefix, any of its files, or a directory; the current one by default.

    \b
    convert ckpt run/ --drop optimizer -o model.safetensors
    convert ckpt model.ckpt-100 --rename 'model/(.*)=\\1' -o out/ --to tf
    convert ckpt model.ckpt-100 --plugin pad --shape 'embedding=16,8' -n
    convert ckpt model.ckpt-100 --cast float16 --prove --tolerance 1e-2
    """

    from converter.allocation import keep_freed_memory
    from converter.cli import report
    from converter.cli.output import json_text
    from converter.pipeline import run

    keep_freed_memory()
    plan = _planned(ctx, given)
    check = None
    if wants_proof(given):
        from converter.cli.prove import check_of

        check = check_of(plan, given)
    is_shown = not (given["quiet"] or given["as_json"])
    for line in report.plan_lines(plan, verbose=given["verbose"]) if is_shown else ():
        say(line)
    if plan.target is None or given["dry_run"]:
        if check is not None:
            plan.refuse(force=given["force"])
            check(None)
        if given["as_json"]:
            proof = check.report() if check is not None else {}
            click.echo(json_text({**report.as_json(plan, None), **proof}))
        plan.refuse(force=given["force"])
        if is_shown:
            say("nothing was written" + ("" if plan.target else "; -o OUT writes it"))
        return
    progress = None if given["quiet"] else Progress(plan.source.name)
    try:
        result = run(
            plan,
            force=given["force"],
            verify_source=not given["no_verify_source"],
            verify_output=not given["no_verify_output"],
            sync=not given["no_sync"],
            progress=progress,
            check=check,
        )
    finally:
        if progress is not None:
            progress.close()
    if given["as_json"]:
        proof = check.report() if check is not None else {}
        click.echo(json_text({**report.as_json(plan, result), **proof}))
    for line in report.result_lines(result) if is_shown else ():
        say(line)


def _planned(ctx: click.Context, given: dict[str, Any]) -> Plan:
    """Return the plan that the command line and its recipe mean."""
    from converter.checkpoint import open_checkpoint
    from converter.plan import make_plan
    from converter.target import parse_target

    recipe = recipe_of(ctx, given["recipe"])
    steps = steps_of(ctx, recipe)
    strategies = strategies_of(ctx, steps)
    source = given["path"] or (recipe and recipe.source) or "."
    if given["output"] == "":
        raise UsageError("-o is empty: is a variable of the shell unset?")
    output = given["output"] or (recipe and recipe.output)
    to = given["to"] or (recipe.to if recipe else None)
    shard_size = given["shard_size"] or (recipe.shard_size if recipe else None)
    sidecar = given["sidecar"]
    if sidecar is None:
        sidecar = bool(recipe and recipe.sidecar)
    if shard_size is not None:
        shard_size = parse_size(str(shard_size))
    graph_from = given["graph_from"] or (recipe.graph_from if recipe else None)
    checkpoint = open_checkpoint(
        source, verify=not given["no_verify_source"], graph_from=graph_from
    )
    target = None
    if output:
        target = parse_target(output, name=checkpoint.name, to=to, shard_size=shard_size)
    elif to not in (None, "safetensors", "tf"):
        parse_target("", name="", to=to)
    return make_plan(checkpoint, strategies, target, sidecar=sidecar)
