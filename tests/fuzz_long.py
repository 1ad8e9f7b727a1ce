"""Fuzz the readers for as long as one likes: `python tests/fuzz_long.py [AREA] [--count N]`.

Prints each failure with the command that shows it again; `--keep DIR` leaves the mutant there.
"""

from __future__ import annotations

import argparse
import sys
import time
import traceback
from collections import Counter
from pathlib import Path

from fuzzing import check
from mutants import AREAS, Mutant


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("area", nargs="?", choices=[*AREAS, "all"], default="all")
    parser.add_argument("--first", type=int, default=0, help="number of the first mutant")
    parser.add_argument("--count", type=int, default=10_000, help="mutants of each area")
    parser.add_argument("--only", type=int, help="one mutant, with a traceback")
    parser.add_argument("--keep", type=Path, help="write the files of that mutant here")
    given = parser.parse_args()
    areas = list(AREAS) if given.area == "all" else [given.area]
    if given.only is not None:
        if given.keep:
            print(Mutant(areas[0], given.only).build(given.keep))
        print(check(Mutant(areas[0], given.only)))
        return 0
    failures = 0
    for area in areas:
        began = time.monotonic()
        outcomes: Counter[str] = Counter()
        for number in range(given.first, given.first + given.count):
            try:
                outcomes[check(Mutant(area, number))] += 1
            except AssertionError as error:
                failures += 1
                outcomes["FAILED"] += 1
                if outcomes["FAILED"] <= 20:
                    text = f"{area} {number}: {_last_line(error)}\n{error}"
                    print(text.encode("ascii", "backslashreplace").decode(), flush=True)
        seconds = time.monotonic() - began
        print(f"{area}: {dict(outcomes)} in {seconds:.0f} s", flush=True)
    return 1 if failures else 0


def _last_line(error: BaseException) -> str:
    frames = traceback.extract_tb((error.__cause__ or error).__traceback__)
    return f"{frames[-1].filename}:{frames[-1].lineno}"


if __name__ == "__main__":
    sys.exit(main())
