"""Cuts trained language models in many ways to the same size, and tells what each costs.

    python benchmarks/shrinking.py [DIRECTORY] > table.md

For every language model of DIRECTORY (those with a `text` and a `vocabulary` in their `case.json`,
as in tests/data) the units of its recurrent cells are cut to two thirds and to half, and the
cross-entropy of the next character is measured on the text. The result is a Markdown table.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from converter_plugins.select import Select
from converter_plugins.truncate import Truncate
from recorded import DATA, Recorded, Running, cases, tensorflow

from converter import Array, Checkpoint, Resizer, Width, convert, open_checkpoint
from converter.resize.exactness import Resizes
from converter.resize.tensors import Tensors
from converter.structure.infer import structure_of

DRAWS = 10


def models(directory: Path) -> Iterator[Recorded]:
    """Yield the language models of a directory."""
    for recorded in cases(directory, "*"):
        if {"text", "vocabulary"} <= recorded.record.keys():
            yield recorded


def cells(checkpoint: Checkpoint) -> list[Width]:
    """Return the widths of recurrent cells: each is made in several blocks, and takes itself."""
    return [
        width
        for width in structure_of(checkpoint).widths.values()
        if width.resizable
        and width.symmetry == "permutation"
        and set(width.produced_by) & set(width.consumed_by)
    ]


def batches(recorded: Recorded) -> Iterator[tuple[Array, Array]]:
    """Yield windows of the model's text in the shape that was recorded, and what comes next."""
    text, vocabulary = recorded.record["text"], recorded.record["vocabulary"]
    x = recorded.inputs[characters_of(recorded)]
    rows, columns = x.shape[:2]
    while len(text) < rows * columns + 1:
        text += text
    ids = np.array([vocabulary.index(character) for character in text])
    windows = [ids[start : start + columns + 1] for start in range(0, len(ids) - columns, columns)]
    for start in range(0, len(windows) - rows + 1, rows):
        batch = np.array(windows[start : start + rows])
        given = batch[:, :-1] if x.ndim == 2 else np.eye(len(vocabulary))[batch[:, :-1]]
        yield given.astype(x.dtype), batch[:, 1:]


def characters_of(recorded: Recorded) -> str:
    """Return the input that takes characters, as numbers or one-hot."""
    size = len(recorded.record["vocabulary"])
    return next(
        name
        for name, value in recorded.inputs.items()
        if (value.ndim == 2 and value.dtype.kind == "i")
        or (value.ndim == 3 and value.shape[-1] == size)
    )


def loss(running: Running, recorded: Recorded, resized: Sequence[Resizes] = ()) -> float:
    """Return the mean cross-entropy of the next character, in nats."""
    tensors = Tensors(resized)
    state = {n: tensors.fed(n.partition(":")[0], 0, v) for n, v in recorded.inputs.items()}
    outputs = recorded.record["io"]["outputs"]
    logits = next(entry["tensor"] for key, entry in outputs.items() if "logits" in key)
    found = []
    for x, y in batches(recorded):
        feeds = {**state, characters_of(recorded): x}
        scores = running.run(feeds, [logits])[logits].astype(np.float64).reshape(*y.shape, -1)
        scores -= scores.max(axis=-1, keepdims=True)
        likely = scores - np.log(np.exp(scores).sum(axis=-1, keepdims=True))
        found.append(-np.take_along_axis(likely, y[..., None], axis=-1).mean())
    return float(np.mean(found))


def losses(
    tf: Any, recorded: Recorded, sizes: Mapping[str, int], place: Path, draws: int = DRAWS
) -> dict[str, float]:
    """Return what each way of cutting costs."""

    def written(strategy: Resizer, name: str) -> tuple[Path, Sequence[Resizes]]:
        result = convert(recorded.source, place / name, [strategy], to="tf", sync=False, force=True)
        (index,) = [path for path in result.files if path.suffix == ".index"]
        return index.with_suffix(""), result.plan.resized

    prefix, first = written(Truncate(resize=sizes), "truncate")
    shapes = {_literal(name): v.shape for name, v in open_checkpoint(prefix).items()}
    found: dict[str, float] = {}
    with Running(tf, prefix) as running:
        found["truncate"] = loss(running, recorded, first)
        # The same graph takes whatever has its shapes.
        running.restore(written(Truncate(shape=shapes), "blind")[0])
        found["blind"] = loss(running, recorded, first)
        prefix, chosen = written(Select(resize=sizes), "select")
        running.restore(prefix)
        found["select"] = loss(running, recorded, chosen)
        drawn = []
        for seed in range(draws):
            prefix, chosen = written(Select(resize=sizes, by="random", seed=seed), "random")
            running.restore(prefix)
            drawn.append(loss(running, recorded, chosen))
    if not drawn:
        return found
    return found | {"mean": float(np.mean(drawn)), "least": min(drawn), "most": max(drawn)}


def _literal(name: str) -> str:
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("directory", type=Path, nargs="?", default=DATA)
    given = parser.parse_args()
    tf = tensorflow()
    print("| model | units | as it was | cut blindly | `truncate` | `select` | random | chance |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for recorded in models(given.directory):
        checkpoint = open_checkpoint(recorded.source)
        with tempfile.TemporaryDirectory() as place, Running(tf, recorded.source) as running:
            old = loss(running, recorded)
            for share in (2 / 3, 1 / 2):
                sizes = {w.name: math.ceil(share * w.size) for w in cells(checkpoint)}
                units = ", ".join(f"{w.size} to {sizes[w.name]}" for w in cells(checkpoint))
                found = losses(tf, recorded, sizes, Path(place))
                random = f"{found['mean']:.2f} ({found['least']:.2f} to {found['most']:.2f})"
                chance = math.log(len(recorded.record["vocabulary"]))
                print(
                    f"| {recorded.name} | {units} | {old:.2f} | {found['blind']:.2f} | "
                    f"{found['truncate']:.2f} | {found['select']:.2f} | {random} | {chance:.2f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
