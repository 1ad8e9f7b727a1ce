"""Cuts trained language models by what their units do on data, and tells what each way costs.

    python benchmarks/mending.py [DIRECTORY] > table.md

The units of the recurrent cells of the models of `shrinking.py` are cut to three quarters and to
half, chosen by each score of `select`, and what takes them is mended in each way. Their statistics
are measured on the text on which the cross-entropy is. The result is a Markdown table.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from converter_plugins.select import Select
from recorded import DATA, Recorded, Running, tensorflow
from shrinking import batches, cells, characters_of, loss, losses, models

from converter import convert, measure, open_checkpoint, write_measured
from converter.resize.exactness import Resizes

SCORES = ("norm", "mean-abs", "std", "wanda", "flap", "obs")
REPAIRS = ("none", "mean", "least-squares")


def measured(recorded: Recorded, place: Path) -> Path:
    """Return a file of what units are on the text."""
    characters = characters_of(recorded)
    data = ({**recorded.inputs, characters: x} for x, _ in batches(recorded))
    found = measure(open_checkpoint(recorded.source), data, covariance=["*"])
    return write_measured(place / "statistics.safetensors", found)


def mended(
    tf: Any, recorded: Recorded, sizes: Mapping[str, int], statistics: Path, place: Path
) -> Iterator[tuple[str, list[float]]]:
    """Yield each repair, and what it costs to choose units by each of the scores."""

    def written(**options: Any) -> tuple[Path, Sequence[Resizes]]:
        if options["by"] != "norm" or options["repair"] != "none":
            options["statistics"] = statistics
        strategy = Select(resize=sizes, **options)
        result = convert(
            recorded.source, place / "cut", [strategy], to="tf", sync=False, force=True
        )
        (index,) = [path for path in result.files if path.suffix == ".index"]
        return index.with_suffix(""), result.plan.resized

    prefix, _ = written(by="norm", repair="none")
    with Running(tf, prefix) as running:
        for repair in REPAIRS:
            found = []
            for by in SCORES:
                prefix, chosen = written(by=by, repair=repair)
                running.restore(prefix)
                found.append(loss(running, recorded, chosen))
            yield repair, found


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("directory", type=Path, nargs="?", default=DATA)
    directory = parser.parse_args().directory
    tf = tensorflow()
    print(f"| model | units | `truncate` | repair | {' | '.join(f'`{by}`' for by in SCORES)} |")
    print(f"| --- | --- | --- | --- {'| --- ' * len(SCORES)}|")
    for recorded in models(directory):
        widths = cells(open_checkpoint(recorded.source))
        with tempfile.TemporaryDirectory() as place, Running(tf, recorded.source) as running:
            old = loss(running, recorded)
            statistics = measured(recorded, Path(place))
            for share in (3 / 4, 1 / 2):
                sizes = {w.name: math.ceil(share * w.size) for w in widths}
                units = ", ".join(f"{w.size} to {sizes[w.name]}" for w in widths)
                first = losses(tf, recorded, sizes, Path(place), draws=0)["truncate"]
                start = f"| {recorded.name}: {old:.2f} | {units} | {first:.2f} "
                for repair, costs in mended(tf, recorded, sizes, statistics, Path(place)):
                    numbers = " | ".join(f"{cost:.2f}" for cost in costs)
                    print(f"{start}| `{repair}` | {numbers} |", flush=True)
                    start = "| | | "


if __name__ == "__main__":
    main()
