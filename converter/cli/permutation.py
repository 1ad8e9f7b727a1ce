"""How the permutation test of widths is told: `convert inspect --widths --test`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import get_args

from converter.cli.prove import show_inputs
from converter.cli.text import say
from converter.counted import count
from converter.permutation import Member, PermutationTest, Result, Trial
from converter.proof_report import input_entries, on_which
from converter.structure.structure import Structure

_FEW = 3


def show_test(test: PermutationTest, structure: Structure) -> None:
    """Print on what widths were tested, what is to be said of each, and what came of it."""
    say("")
    show_inputs(test.forward, test.feeds)
    for output in test.forward.outputs:
        say(f"output  {output.tensor}")
    for trial in test.trials.values():
        for line in _about(trial, structure):
            say(f"note    {line}")
    for note in test.notes:
        say(f"note    {note}")
    say(verdict(test))


def verdict(test: PermutationTest) -> str:
    """Return what a test says, in one line."""
    results = Counter(trial.result for trial in test.trials.values())
    parts = ", ".join(
        f"{results[result]:,} {result}" for result in get_args(Result) if results[result]
    )
    how = f"within {test.tolerance:.2g} of the scale, {on_which(test.feeds)}"
    word = "passed" if test.passed else "failed"
    return f"{word}  {count(len(test.trials), 'width')}: {parts or 'none'}; {how}"


def _about(trial: Trial, structure: Structure) -> Iterator[str]:
    """Yield what is to be said of a width."""
    width = structure.widths[trial.name]
    if trial.result in ("refuted", "unseen"):
        yield f"{trial.name} is {trial.result}: {trial.why}"
    if trial.but_for:
        yield f"{trial.name}: they stay when {_listed(trial.but_for)} is left as it is"
    if trial.result == "tested" and width.symmetry in ("bound", "opaque") and not trial.moved:
        yield f"{trial.name} is {width.symmetry}, and yet its units can be permuted on these inputs"
    if trial.result == "tested" and trial.invariant:
        yield f"{trial.name}: nothing tells in which order {_listed(trial.invariant)} stands"
    if trial.together and trial.name < min(trial.together):
        yield from _joined((trial.name, *trial.together), structure)


def _joined(names: Sequence[str], structure: Structure) -> Iterator[str]:
    """Say which widths are one, and which lines of a layout file say it."""
    first, *others = sorted(names, key=list(structure.widths).index)
    yield (
        f"{', '.join(others)} and {first} are bound together: permuted alike the outputs stay; "
        f"write {first} for {', '.join(others)} in a layout file (-o):"
    )
    renamed = dict.fromkeys(others, first)
    for name, axes in structure.axes.items():
        if name in structure.follows:
            continue
        if any(other in axis.widths() for axis in axes for other in others):
            written = ", ".join(f'"{axis.rename(renamed)}"' for axis in axes)
            yield f'  [variables."{name}"] axes = [{written}]'


def _listed(members: Sequence[Member]) -> str:
    more = f" (and {len(members) - _FEW} more)" if len(members) > _FEW else ""
    return "; ".join(map(str, members[:_FEW])) + more


def show_trial(trial: Trial) -> None:
    """Print all that came of permuting one width."""
    facts = [] if trial.error is None else [f"the outputs move by {trial.error:.2g}"]
    if trial.control is not None:
        facts.append(f"with one axis left as it is by {trial.control:.2g} at least")
    say(f"  {trial.result:<11} {', '.join(facts) or trial.why}")
    for name in trial.moved:
        say(f"  with        {name}")
    for words, members in (("not needed", trial.unread), ("not seen", trial.invariant)):
        for member in members:
            say(f"  {words:<11} {member}")


def trial_json(trial: Trial) -> dict[str, object]:
    """Return what came of permuting one width as plain data."""
    return {
        "result": trial.result,
        "error": trial.error,
        "control": trial.control,
        "with": list(trial.moved),
        "unread": _pairs(trial.unread),
        "invariant": _pairs(trial.invariant),
        "but_for": _pairs(trial.but_for),
        "together": list(trial.together),
        "why": trial.why,
    }


def _pairs(members: Sequence[Member]) -> list[list[object]]:
    return [[member.name, member.axis] for member in members]


def test_json(test: PermutationTest) -> dict[str, object]:
    """Return on what widths were tested as plain data."""
    return {
        "inputs": list(input_entries(test.forward, test.feeds)),
        "outputs": [{"name": str(o.tensor), "why": o.why} for o in test.forward.outputs],
        "tolerance": test.tolerance,
        "passed": test.passed,
        "notes": list(test.notes),
    }
