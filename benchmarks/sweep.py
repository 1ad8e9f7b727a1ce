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
exact run as a part of the scale, and the loss of the first and the last training step.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")

from converter_plugins.duplicate import Duplicate
from converter_plugins.pad import Pad

from converter import Array, Checkpoint, ConverterError, Resizer, Result, convert, open_checkpoint
from converter.initializers import GlorotUniform
from converter.proof import TOLERANCE, compare
from converter.resize.exactness import is_looked_up
from converter.resize.maps import places_of
from converter.resize.tensors import Tensors

DATA = Path(__file__).parents[1] / "tests" / "data"


class Way(NamedTuple):
    """A way of growing widths: what it is called, and the strategy for new sizes."""

    name: str
    make: Any


WAYS = (
    Way("zeros", lambda sizes: Pad(resize=sizes)),
    Way("random", lambda sizes: Pad(resize=sizes, fill=GlorotUniform())),
    Way("copies", lambda sizes: Duplicate(resize=sizes)),
)


class Recorded(NamedTuple):
    """What a case was fed, and what it gave, by the names of tensors."""

    inputs: dict[str, Array]
    outputs: dict[str, Array]


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


def cases(directory: Path, only: str) -> Iterator[tuple[str, Path, Recorded]]:
    """Yield name, checkpoint and records of the cases that have a graph and records."""
    for file in sorted(directory.glob("*/case.json")):
        record = json.loads(file.read_text())
        io = record.get("io")
        prefix = file.parent / str(record.get("prefix"))
        found = not record.get("damaged") and io and fnmatch.fnmatch(file.parent.name, only)
        if not found or not list(file.parent.glob("**/*.meta")):
            continue
        arrays = np.load(file.parent / io["file"])
        inputs = {entry["tensor"]: arrays[key] for key, entry in io["inputs"].items()}
        inputs |= {name: np.asarray(value) for name, value in io["feeds"].items()}
        outputs = {
            entry["tensor"]: arrays[key]
            for kind in ("outputs", "states")
            for key, entry in io[kind].items()
        }
        yield file.parent.name, prefix, Recorded(inputs, outputs)


def known_share(checkpoint: Checkpoint) -> float:
    """Return the share of the model's parameters of which no axis is opaque."""
    structure = checkpoint.structure()
    opaque = {name for name, width in structure.widths.items() if width.symmetry == "opaque"}
    known = total = 0
    for name, role in checkpoint.roles().items():
        if role.kind not in ("model", "batch_statistic") or name in structure.follows:
            continue
        size = checkpoint[name].size
        total += size
        if not any(opaque & set(axis.widths()) for axis in structure.axes[name]):
            known += size
    return known / max(1, total)


class Running:
    """A written checkpoint in TensorFlow, by its own graph and Saver."""

    def __init__(self, tf: Any, prefix: Path) -> None:
        self.tf = tf
        self._graph = tf.Graph()
        with self._graph.as_default():
            self._saver = tf.train.import_meta_graph(f"{prefix}.meta", clear_devices=True)
            self.session = tf.Session(graph=self._graph)
            self._saver.restore(self.session, str(prefix))

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *_: object) -> None:
        self.session.close()

    def run(self, inputs: Mapping[str, Array], fetches: Sequence[str]) -> dict[str, Array]:
        """Return what tensors are."""
        return dict(zip(fetches, self.session.run(list(fetches), dict(inputs)), strict=True))

    def train(self, inputs: Mapping[str, Array], steps: int) -> list[float] | None:
        """Take training steps; return the losses (none where no loss is found), or None without."""
        operations = self._graph.get_collection("train_op")
        if not operations:
            return None
        losses = list(self._losses())
        found: list[float] = []
        # Whether inputs are batch-major or time-major tells how many labels there are.
        for first in (0, 1):
            feeds = {**inputs, **self._rest(operations, inputs, first)}
            try:
                for _ in range(steps):
                    _, values = self.session.run([operations, losses], feeds)
                    found += [float(value) for value in values]
            except self.tf.errors.InvalidArgumentError:
                if first:
                    raise
                continue
            break
        return found

    def _losses(self) -> Iterator[Any]:
        """Yield the numbers that gradients start from."""
        names = [op.name for op in self._graph.get_operations()]
        scopes = {
            match[1]
            for name in names
            if (match := re.search(r"gradients(?:_\d+)?/(.+)_grad/", name))
        }
        for op in self._graph.get_operations():
            if op.name not in scopes or len(op.outputs) != 1 or op.outputs[0].shape.rank != 0:
                continue
            if op._get_control_flow_context() is not None:
                continue
            if not any(consumer.name in scopes for consumer in op.outputs[0].consumers()):
                yield op.outputs[0]

    def values(self, place: Path) -> dict[str, Array]:
        """Save all variables, and return what our reader finds."""
        with self._graph.as_default():
            self._saver.save(self.session, str(place / "trained"), write_meta_graph=False)
        saved = open_checkpoint(place / "trained")
        return {name: v.read() for name, v in saved.items() if v.dtype.is_number}

    def _rest(
        self, operations: Sequence[Any], inputs: Mapping[str, Array], first: int
    ) -> dict[str, Array]:
        """Return something for the placeholders that only training needs: labels, mostly."""
        seen: set[Any] = set()
        waiting = [getattr(operation, "op", operation) for operation in operations]
        while waiting:
            operation = waiting.pop()
            if operation in seen:
                continue
            seen.add(operation)
            waiting += [tensor.op for tensor in operation.inputs] + list(operation.control_inputs)
        found = {}
        noise = np.random.default_rng(0)
        sizes = sorted((array.shape for array in inputs.values()), key=len, reverse=True)
        for operation in seen:
            if operation.type != "Placeholder" or f"{operation.name}:0" in inputs:
                continue
            tensor = operation.outputs[0]
            shape = [
                size if size is not None else next((s[k] for s in sizes if len(s) > k), 1)
                for k, size in enumerate(tensor.shape.as_list() if tensor.shape.rank else [], first)
            ]
            if tensor.dtype.is_bool:
                found[tensor.name] = np.zeros(shape, bool)
            elif tensor.dtype.is_integer:
                found[tensor.name] = noise.integers(0, 2, shape)
            elif not shape:
                # A keep probability.
                found[tensor.name] = np.ones(())
            else:
                found[tensor.name] = noise.random(shape)
        return found


def written(source: Path, place: Path, strategy: Resizer) -> tuple[Result, Path]:
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
    new = structure.sizes | resizes.sizes
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
    tf: Any, source: Path, recorded: Recorded, steps: int, scratch: Path, verbose: bool
) -> dict[str, Tally]:
    """Grow the widths of a model in every way; return what came of each."""
    checkpoint = open_checkpoint(source)
    sizes = {
        name: width.size for name, width in checkpoint.structure().widths.items() if width.resizable
    }
    tallies = {}
    for way in WAYS:
        tally = tallies[way.name] = Tally()
        grown = {
            name: 2 * size if way.name == "copies" else max(size + 1, size * 3 // 2)
            for name, size in sizes.items()
        }
        exact = {}
        for name, size in grown.items():
            if _tried(tf, source, recorded, way, {name: size}, name, tally, scratch):
                exact[name] = size
        if len(exact) > 1:
            _tried(tf, source, recorded, way, exact, "all exact", tally, scratch)
        trains = way.name != "copies"
        _tried(tf, source, recorded, way, grown, "all", tally, scratch, steps if trains else 0)
        if verbose:
            print(f"    {way.name}: {tally}", file=sys.stderr)
    return tallies


def _tried(
    tf: Any,
    source: Path,
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
        result, prefix = written(source, scratch / "out", way.make(request))
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
    import tensorflow.compat.v1 as tf

    tf.disable_eager_execution()
    tf.logging.set_verbosity(tf.logging.ERROR)
    print(f"{'case':36} {'known':>6} {'way':7} {'exact':>5} {'other':>5} {'worst':>8}  training")
    wrong: list[str] = []
    for name, source, recorded in cases(given.directory, given.only):
        with tempfile.TemporaryDirectory() as scratch:
            try:
                share = known_share(open_checkpoint(source))
                found = sweep(tf, source, recorded, given.steps, Path(scratch), given.verbose)
            except ConverterError as error:
                wrong.append(f"{name}: {error}")
                continue
        if share < 0.95:
            wrong.append(f"{name}: only {share:.0%} of its parameters are known")
        for way, tally in found.items():
            spared = f"({tally.spared})" if tally.spared else ""
            print(
                f"{name:36} {share:6.1%} {way:7} {tally.exact:5} {tally.inexact:4}{spared:>3} "
                f"{tally.worst:8.1e}  {tally.trained}",
                flush=True,
            )
            wrong += [f"{name}: {line}" for line in tally.wrong]
    for line in wrong:
        print(line)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
