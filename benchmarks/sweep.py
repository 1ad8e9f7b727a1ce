"""Resizes every width of every model of a directory, and runs what comes out: one table.

    python benchmarks/sweep.py [DIRECTORY] [--only GLOB] [--steps 10] [--verbose]

DIRECTORY holds checkpoints with their `.meta`, each in a directory of its own with a `case.json`,
as tests/data does. Each width that can be resized is padded to one and a half times its size, with
zeros and with random production, and duplicated; then all that are exact alone at once, and all
that there are. What comes out is written as a TensorFlow checkpoint with its resized graph,
imported by TensorFlow, restored, and run on the recorded inputs: where the plan says exact, the
outputs must be what they were, within 1e-5 of their scale. Where there is a training op, ten steps
are taken: all stays finite, and new units move where the plan says that they are alive, and stay
where it says that they are dead. Needs the test dependencies.

The columns: the share of parameters that are understood, how many runs were called exact, how many
were not (and how many of these gave the old outputs all the same), the largest difference of an
exact run as a part of the scale, and the loss of the first and the last training step (nothing
where the model as it was could not be trained on what was recorded).
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from converter_plugins.duplicate import Duplicate
from converter_plugins.pad import Pad
from recorded import DATA, Recorded, Running, cases, tensorflow

from converter import Array, Checkpoint, ConverterError, Resizer, Result, convert, open_checkpoint
from converter.comparison import TOLERANCE, compare
from converter.initializers import GlorotUniform
from converter.resize.exactness import is_looked_up
from converter.resize.maps import places_of
from converter.resize.tensors import Tensors
from converter.structure.infer import structure_of


class Way(NamedTuple):
    """A way of growing widths: what it is called, and the strategy for new sizes."""

    name: str
    make: Any


WAYS = (
    Way("zeros", lambda sizes: Pad(resize=sizes)),
    Way("random", lambda sizes: Pad(resize=sizes, fill=GlorotUniform())),
    Way("copies", lambda sizes: Duplicate(resize=sizes)),
)


@dataclass
class Tally:
    """What came of one way of growing one model.

    Attributes:
        exact: runs that were called exact, and were.
        inexact: runs that were not called exact.
        spared: of these, how many gave the same outputs all the same.
        worst: the largest difference of an exact run, as a part of the scale.
        wrong: what went wrong, one line each.
    """

    exact: int = 0
    inexact: int = 0
    spared: int = 0
    worst: float = 0.0
    wrong: list[str] = field(default_factory=list)
    trained: str = ""


def known_share(checkpoint: Checkpoint) -> float:
    """Return the share of the model's parameters of which no axis is opaque."""
    structure = structure_of(checkpoint)
    opaque = {name for name, width in structure.widths.items() if width.symmetry == "opaque"}
    known = total = 0
    for name, role in checkpoint.roles().items():
        if role.kind not in ("model", "batch_statistic") or name in structure.follows:
            continue
        size = checkpoint[name].size
        total += size
        if not any(opaque & set(axis.widths()) for axis in structure.axes[name]):
            known += size
    return known / total if total else 1.0


def written(source: str | Path, place: Path, strategy: Resizer) -> tuple[Result, Path]:
    """Convert; return the result and the prefix of what was written."""
    result = convert(source, place, [strategy], to="tf", sync=False, force=True)
    (index,) = [path for path in result.files if path.suffix == ".index"]
    return result, index.with_suffix("")


def difference(running: Running, recorded: Recorded, result: Result) -> tuple[float, str]:
    """Return the largest difference of an output as a part of its scale, and which one it is."""
    tensors = Tensors(result.plan.resized)
    inputs = {name: tensors.fed(*_split(name), v) for name, v in recorded.inputs.items()}
    outputs = running.run(inputs, list(recorded.outputs))
    worst, which = 0.0, ""
    for name, before in recorded.outputs.items():
        first, second = tensors.common(*_split(name), before, outputs[name])
        found = compare(name, first, second, TOLERANCE)
        error = found.error if found.passed is not None else float("inf")
        if error >= worst:
            worst, which = error, name
    return worst, which


def _split(name: str) -> tuple[str, int]:
    node, _, port = name.partition(":")
    return node, int(port or 0)


def check_units(
    result: Result, before: Mapping[str, Array], after: Mapping[str, Array]
) -> Iterator[str]:
    """Yield where new units do not do in training what the plan says, and what is not finite."""
    for name, values in after.items():
        if np.issubdtype(values.dtype, np.floating) and not np.isfinite(values).all():
            yield f"{name} is not finite after training"
    (resizes,) = result.plan.resized
    structure = resizes.structure
    assert structure is not None
    new = {**structure.sizes, **resizes.sizes}
    for resized in resizes.widths:
        moved = 0.0
        for name, axes in structure.axes.items():
            if name in structure.follows or name not in after:
                continue
            for number, (axis, used) in enumerate(zip(axes, structure.uses[name], strict=True)):
                uses = used.get(resized.name, ())
                if not uses or {"mean", "variance", "gain"} & set(uses):
                    continue
                places = places_of(axis, new, resized.name)[:, resized.old :].ravel()
                change = np.abs(after[name].astype("f8") - before[name])
                moved = max(moved, float(np.take(change, places, axis=number).max(initial=0)))
        if resized.dead is not None and moved:
            yield f"{resized.name}: called dead, and its new units moved by {moved:.2g}"
        # New rows of a table move once they are looked up.
        is_seen = not is_looked_up(structure.widths[resized.name])
        if resized.dead is None and not moved and is_seen:
            yield f"{resized.name}: called alive, and its new units did not move"


def sweep(
    tf: Any, recorded: Recorded, steps: int, scratch: Path, verbose: bool
) -> dict[str, Tally]:
    """Grow the widths of a model in every way; return what came of each."""
    checkpoint = open_checkpoint(recorded.source)
    sizes = {
        name: width.size
        for name, width in structure_of(checkpoint).widths.items()
        if width.resizable
    }
    tallies = {}
    trains = _trains(tf, recorded)
    for way in WAYS:
        tally = tallies[way.name] = Tally()
        grown = {
            name: 2 * size if way.name == "copies" else max(size + 1, size * 3 // 2)
            for name, size in sizes.items()
        }
        exact = {}
        for name, size in grown.items():
            if _tried(tf, recorded, way, {name: size}, name, tally, scratch):
                exact[name] = size
        if len(exact) > 1:
            _tried(tf, recorded, way, exact, "all exact", tally, scratch)
        taken = steps if trains and way.name != "copies" else 0
        if grown:
            _tried(tf, recorded, way, grown, "all", tally, scratch, taken)
        if verbose:
            print(f"    {way.name}: {tally}", file=sys.stderr)
    return tallies


def _trains(tf: Any, recorded: Recorded) -> bool:
    """Whether the model takes a training step as it was, with what it can be fed here."""
    try:
        with Running(tf, recorded.source) as running:
            return running.train(recorded.inputs, 1) is not None
    except tf.errors.OpError:
        return False


def _tried(
    tf: Any,
    recorded: Recorded,
    way: Way,
    request: Mapping[str, int],
    what: str,
    tally: Tally,
    scratch: Path,
    steps: int = 0,
) -> bool:
    """Grow some widths, and count what came of it; return whether it is called exact."""
    try:
        result, prefix = written(recorded.source, scratch / "out", way.make(request))
        with Running(tf, prefix) as running:
            error, which = difference(running, recorded, result)
            _count(tally, result, error, f"{way.name} {what}: {which}")
            if steps:
                tally.trained = _train(running, recorded, result, steps, tally, scratch)
    except Exception as failure:  # whatever it is, the others go on
        told = " ".join(str(failure).split())[:300]
        tally.wrong.append(f"{way.name} {what}: {type(failure).__name__}: {told}")
        return False
    return result.plan.is_exact


def _count(tally: Tally, result: Result, error: float, what: str) -> None:
    if result.plan.is_exact:
        tally.exact += 1
        tally.worst = max(tally.worst, error)
        if not error <= TOLERANCE:
            tally.wrong.append(f"{what} differs by {error:.2g}, and is called exact")
    else:
        tally.inexact += 1
        tally.spared += error <= TOLERANCE


def _train(
    running: Running, recorded: Recorded, result: Result, steps: int, tally: Tally, scratch: Path
) -> str:
    tensors = Tensors(result.plan.resized)
    inputs = {name: tensors.fed(*_split(name), v) for name, v in recorded.inputs.items()}
    for name in list(inputs):
        if inputs[name].dtype == bool and inputs[name].shape == ():
            inputs[name] = np.ones((), bool)
    before = running.values(scratch)
    losses = running.train(inputs, steps)
    if losses is None:
        return "no op"
    wrong = list(check_units(result, before, running.values(scratch)))
    if not np.isfinite(losses).all():
        wrong.append(f"training: losses {losses}")
    tally.wrong += [f"training: {line}" for line in wrong]
    return f"{losses[0]:.3g} to {losses[-1]:.3g}" if losses else "finite"


def main() -> int:
    """Print one line for each case and way, and what went wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("directory", type=Path, nargs="?", default=DATA)
    parser.add_argument("--only", default="*", help="a glob over the names of cases")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--verbose", action="store_true")
    given = parser.parse_args()
    tf = tensorflow()
    print(f"{'case':36} {'known':>6} {'way':7} {'exact':>5} {'other':>5} {'worst':>8}  training")
    failures = 0
    for recorded in cases(given.directory, given.only):
        wrong: list[str] = []
        share, found = 1.0, {}
        with tempfile.TemporaryDirectory() as scratch:
            try:
                share = known_share(open_checkpoint(recorded.source))
                found = sweep(tf, recorded, given.steps, Path(scratch), given.verbose)
            except ConverterError as error:
                wrong.append(str(error))
        if share < 0.95:
            wrong.append(f"only {share:.0%} of its parameters are known")
        for way, tally in found.items():
            spared = f"({tally.spared})" if tally.spared else ""
            print(
                f"{recorded.name:36} {share:6.1%} {way:7} {tally.exact:5} "
                f"{tally.inexact:4}{spared:>3} {tally.worst:8.1e}  {tally.trained}"
            )
            wrong += tally.wrong
        for line in wrong:
            print(f"    {line}")
        sys.stdout.flush()
        failures += len(wrong)
    print(f"{failures} failures")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
