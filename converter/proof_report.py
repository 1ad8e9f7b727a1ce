"""What a proof says: in a line, as plain data, and as the error that keeps an output back."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from converter.counted import count
from converter.errors import ConverterError
from converter.proof import Proof

if TYPE_CHECKING:
    from converter.baselines import Baseline
    from converter.forward.feeds import Feeds
    from converter.forward.find import Forward
    from converter.learning import Learning
    from converter.plan import Plan

_CHANGES = "changes the outputs"
"""How the note of a strategy begins that does."""


def verdict(proof: Proof) -> str:
    """Return what a proof says, in one line."""
    failed = [found.name for found in proof.outputs if found.passed is False]
    compared = sum(found.passed is not None for found in proof.outputs)
    within = f"within {proof.tolerance:g} of the scale"
    if failed:
        more = f" (and {len(failed) - 1} more)" if len(failed) > 1 else ""
        return f"failed  {failed[0]}{more} is not {within}"
    if not compared:
        return "failed  no output could be compared"
    return f"passed  {count(compared, 'output')} {within}, {on_which(proof.feeds)}"


def on_which(feeds: Feeds) -> str:
    """Say where inputs came from."""
    return "on drawn inputs" if feeds.drawn else "on the given inputs"


def refuse(plan: Plan, proof: Proof, *, is_written: bool) -> None:
    """Raise where an output does not compute what its source does.

    Args:
        plan: what is converted.
        proof: what came of running both.
        is_written: whether there is an output that will not be published.

    Raises:
        ConverterError: they do not compute the same.
    """
    if proof.passed:
        return
    how = "; nothing was published" if is_written else ""
    if not plan.is_exact:
        how += ". The plan says that they change: --tolerance says how far they may"
    elif kept := _promised(plan, proof):
        how += (
            ". The plan says that it is no multiple, as others are: compare these alone "
            f"({' '.join(f'--fetch {name}' for name in kept)})"
        )
    elif changing := _changing(plan):
        how += (
            f". The plan says that they change ({', '.join(changing)}): do that in a command of "
            "its own, without --prove, or say how far they may (--tolerance)"
        )
    raise ConverterError(
        f"{plan.source.path}: the output does not compute the same: "
        f"{verdict(proof).removeprefix('failed  ')}{how}"
    )


def _promised(plan: Plan, proof: Proof) -> list[str]:
    """Return the outputs that are what was promised, where the plan says that all others change."""
    failed = [found.name for found in proof.outputs if found.passed is False]
    told = [f": changes the output {name}: " for name in failed]
    if not all(any(text in note for note in plan.notes) for text in told):
        return []
    return [found.name for found in proof.outputs if found.passed]


def _changing(plan: Plan) -> list[str]:
    """Return the strategies whose notes say that the outputs change."""
    return [
        strategy.name
        for strategy, _ in plan.applied
        if any(note.startswith(f"{strategy.name}: {_CHANGES}") for note in plan.notes)
    ]


def input_entries(forward: Forward, feeds: Feeds) -> Iterator[dict[str, Any]]:
    """Yield what a graph was fed as plain data, input by input."""
    for found in forward.inputs:
        value = feeds.values.get(found.tensor)
        if value is None:
            continue
        source = "given"
        if found.tensor in feeds.drawn:
            source = "drawn"
        elif found.value is not None and found.tensor not in feeds.given:
            source = "decided"
        yield {
            "name": found.name,
            "dtype": found.dtype.name if found.dtype else str(value.dtype),
            "shape": list(value.shape),
            "source": source,
            "value": value.item() if value.shape == () and value.dtype.kind in "biuf" else None,
        }


def proof_json(proof: Proof) -> dict[str, object]:
    """Return a proof as plain data."""
    return {
        "graph": str(proof.forward.graph.path),
        "inputs": list(input_entries(proof.forward, proof.feeds)),
        "outputs": [
            {
                "name": found.name,
                "dtype": found.dtype,
                "shape": list(found.shape),
                "largest": found.largest,
                "scale": found.scale,
                "error": found.error,
                "multiple": found.multiple,
                "nans": list(found.nans),
                **found.likeness._asdict(),
                "passed": found.passed,
                "note": found.note,
            }
            for found in proof.outputs
        ],
        "losses": [loss._asdict() for loss in proof.losses],
        "tolerance": proof.tolerance,
        "passed": proof.passed,
        "notes": list(proof.notes),
    }


def judged_json(proof: Proof) -> dict[str, object]:
    """Return the proof of a plan as plain data, with other models of its size and what learns."""
    return {
        **proof_json(proof),
        "baselines": [_baseline_json(baseline) for baseline in proof.baselines],
        "learning": _learning_json(proof.learning) if proof.learning is not None else None,
    }


def _baseline_json(baseline: Baseline) -> dict[str, object]:
    return {
        "kind": baseline.kind,
        "outputs": [{"name": name, **f._asdict()} for name, f in baseline.outputs.items()],
        "losses": [{"name": name, "loss": loss} for name, loss in baseline.losses.items()],
    }


def _learning_json(learning: Learning) -> dict[str, object]:
    total = learning.total
    return {
        "entries": total.entries,
        "first": total.first,
        "second": total.second,
        "drawn": learning.is_drawn,
        "variables": [found._asdict() for found in learning.variables],
    }
