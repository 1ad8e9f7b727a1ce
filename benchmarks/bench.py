"""Measures the speed and memory of conversions: one run, one table, contenders taking turns.

    python benchmarks/bench.py --disk DIR --tmpfs DIR [--rounds 5] [--gib 2] [--only PART]

DIR are empty directories on a real disk and in a tmpfs; 20 GB on the disk, 8 GB in the tmpfs.
`--gib` is the size of the checkpoint that is converted; PART is starts, disk, tmpfs,
memory or stats. Needs the test dependencies (TensorFlow and safetensors are contenders). Every
contender is a process of its own and ends with an fsync of its output; ratios are of medians.
"""

from __future__ import annotations

import argparse
import os
import re
import resource
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from measuring import ratios

from converter import Array, Region, Variable
from converter.dtype import BY_NAME
from converter.formats import bundle
from converter.formats.stream import Output

CONVERT = [sys.executable, "-m", "converter"]
SAMPLE = Path(__file__).parents[1] / "samples" / "charlm" / "model.ckpt-300"
SCRIPT = """
import os, sys, time
import tensorflow as tf
from safetensors.numpy import save_file
began = time.perf_counter()
reader = tf.train.load_checkpoint(sys.argv[1])
tensors = {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}
save_file(tensors, sys.argv[2])
with open(sys.argv[2], "rb") as file:
    os.fsync(file.fileno())
print(time.perf_counter() - began)
"""
LISTING = """
import sys, time
if sys.argv[1] == "tensorflow":
    import tensorflow as tf
    call = lambda: tf.train.list_variables(sys.argv[2])
else:
    from converter import open_checkpoint
    call = lambda: [(v.name, list(v.shape)) for v in open_checkpoint(sys.argv[2]).values()]
began = time.perf_counter()
assert len(call()) == 20_000
print(time.perf_counter() - began)
"""


@dataclass(frozen=True)
class Contender:
    """A command, and the output that is removed before each run."""

    command: Sequence[str]
    output: Path | None = None
    then: Sequence[str] = ()
    own_clock: bool = False

    def run(self) -> float:
        if self.output is not None:
            shutil.rmtree(self.output, ignore_errors=True)
            self.output.unlink(missing_ok=True) if self.output.exists() else None
        os.sync()
        began = time.perf_counter()
        done = subprocess.run(self.command, check=True, capture_output=True, text=True)
        if self.then:
            subprocess.run(self.then, check=True)
        seconds = time.perf_counter() - began
        return float(done.stdout.split()[-1]) if self.own_clock else seconds


def compare(contenders: dict[str, Contender], rounds: int) -> dict[str, float]:
    """Return the median seconds of each, run in turn after one round to warm up."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(rounds + 1):
        for name, contender in contenders.items():
            seconds = contender.run()
            if turn:
                times[name].append(seconds)
    return {name: statistics.median(values) for name, values in times.items()}


def bert_like(nbytes: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield names and shapes in the mix of sizes of a BERT, `nbytes` of float32 in all."""
    hidden, left, layer = 768, nbytes // 4, 0
    yield "bert/embeddings/word_embeddings", (30522, hidden)
    left -= 30522 * hidden
    while left > 0:
        scope = f"bert/encoder/layer_{layer}"
        for name, shape in (
            ("attention/self/query/kernel", (hidden, hidden)),
            ("attention/self/query/bias", (hidden,)),
            ("attention/self/key/kernel", (hidden, hidden)),
            ("attention/self/key/bias", (hidden,)),
            ("attention/output/dense/kernel", (hidden, hidden)),
            ("attention/output/LayerNorm/gamma", (hidden,)),
            ("intermediate/dense/kernel", (hidden, 4 * hidden)),
            ("intermediate/dense/bias", (4 * hidden,)),
            ("output/dense/kernel", (4 * hidden, hidden)),
        ):
            yield f"{scope}/{name}", shape
            left -= int(np.prod(shape))
        layer += 1


def make(prefix: Path, shapes: Sequence[tuple[str, tuple[int, ...]]], *, data: bool = True) -> Path:
    """Write a checkpoint of pseudo-random values; without `data`, only its index stays."""
    prefix.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(0).standard_normal(1 << 20, np.float32)

    def load(region: Region) -> Array:
        shape = tuple(s.stop - s.start for s in region)
        return np.resize(noise, shape)

    variables = [Variable(name, BY_NAME["float32"], shape, load) for name, shape in shapes]
    bundle.write(prefix, variables, open_output=Output)
    if not data:
        for file in prefix.parent.glob(f"{prefix.name}.data-*"):
            os.truncate(file, 0)
    return prefix


def peak_memory(command: Sequence[str]) -> float:
    """Return the maximum resident set size of a process in MB (10**6 bytes)."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
        os.write(write, str(peak).encode())
        os._exit(0)
    os.close(write)
    kibibytes = int(os.read(read, 100))
    os.close(read)
    os.waitpid(child, 0)
    return kibibytes * 1024 / 1e6


class Table:
    """Prints one line a figure, as it comes."""

    def __init__(self) -> None:
        print(f"{'figure':66} {'ours':>9} {'other':>9} {'ratio':>7} {'bar':>7}", flush=True)

    def row(
        self, what: str, ours: float, other: float | None, bar: str, *, inverse: bool = False
    ) -> None:
        ratio = "" if other is None else f"{(other / ours if inverse else ours / other):.2f}"
        told = "" if other is None else f"{other:.3f}"
        print(f"{what:66} {ours:9.3f} {told:>9} {ratio:>7} {bar:>7}", flush=True)


def _any_layer(name: str) -> str:
    return re.sub(r"layer_\d+", "layer_*", name)


def conversions(table: Table, place: Path, label: str, gibibytes: float, rounds: int) -> None:
    """V2 to safetensors, and pad, against cp and against the usual script."""
    shapes = list(bert_like(int(gibibytes * 2**30)))
    source = make(place / "source" / "model.ckpt", shapes)
    data = f"{source}.data-00000-of-00001"
    grown = {_any_layer(name): [-(-size * 11 // 10) for size in shape] for name, shape in shapes}
    given = [f"--shape={glob}={','.join(map(str, shape))}" for glob, shape in grown.items()]
    out = {name: place / name for name in ("cp", "ours", "script", "verified", "pad", "cp_pad")}
    ours = [*CONVERT, "ckpt", str(source), "--quiet", "-o"]
    fast = "--no-verify-output"
    cp = ["cp", "--reflink=never"]
    first = compare(
        {
            "cp": Contender([*cp, data, str(out["cp"])], out["cp"], ["sync", str(out["cp"])]),
            "ours": Contender(
                [*ours, f"{out['ours']}.safetensors", fast], Path(f"{out['ours']}.safetensors")
            ),
            "verified": Contender(
                [*ours, f"{out['verified']}.safetensors"], Path(f"{out['verified']}.safetensors")
            ),
            "script": Contender(
                [sys.executable, "-c", SCRIPT, str(source), str(out["script"])], out["script"]
            ),
        },
        rounds,
    )
    bars = ("1.3", "3") if label == "disk" else ("1.6", "4")
    table.row(f"{label}: V2 to safetensors / cp", first["ours"], first["cp"], bars[0])
    table.row(
        f"{label}: times faster than load_checkpoint + save_file",
        first["ours"],
        first["script"],
        bars[1],
        inverse=True,
    )
    table.row(
        f"{label}: the same with the output read back / without",
        first["verified"],
        first["ours"],
        "",
    )
    for name in ("cp", "script"):
        out[name].unlink()
    for name in ("ours", "verified"):
        Path(f"{out[name]}.safetensors").unlink()
    padded = Path(f"{out['pad']}.safetensors")
    pad = Contender([*ours, str(padded), fast, "--plugin", "pad", *given], padded)
    pad.run()
    reference = place / "reference.safetensors"
    padded.rename(reference)
    second = compare(
        {
            "cp": Contender(
                [*cp, str(reference), str(out["cp_pad"])],
                out["cp_pad"],
                ["sync", str(out["cp_pad"])],
            ),
            "pad": pad,
        },
        rounds,
    )
    table.row(
        f"{label}: pad of all axes by 10 % / cp of the output",
        second["pad"],
        second["cp"],
        "2.0" if label == "disk" else "3.0",
    )
    shutil.rmtree(place)


def memory(table: Table, place: Path) -> None:
    """Peak resident memory, which must not depend on the size of anything."""
    giant = 2**30
    cases: dict[str, list[tuple[str, tuple[int, ...]]]] = {
        "2 GiB, BERT-like": list(bert_like(2 * giant)),
        "6 GiB, BERT-like": list(bert_like(6 * giant)),
        "one variable of 4 GiB, [1048576, 1024]": [("x", (1 << 20, 1024))],
        "one variable of 4 GiB, [1, n]": [("x", (1, 1 << 30))],
    }
    for name, shapes in cases.items():
        source = make(place / "source" / "model.ckpt", shapes)
        command = [*CONVERT, "ckpt", str(source), "--quiet", "--no-sync", "-o"]
        target = place / "out.safetensors"
        peak = peak_memory([*command, str(target)])
        table.row(f"peak memory in MB: {name}", peak, None, "150")
        target.unlink()
        grown = ",".join(str(-(-size * 11 // 10)) for size in shapes[0][1])
        if len(shapes) == 1:
            peak = peak_memory([*command, str(target), "--plugin", "pad", "--shape", f"x={grown}"])
            table.row(f"peak memory in MB: {name}, padded by 10 %", peak, None, "150")
        shutil.rmtree(place)


def starts(table: Table, place: Path, rounds: int) -> None:
    """How long the commands take that do little."""
    shapes = [(f"scope_{i // 100}/layer_{i}/kernel", (2, 2)) for i in range(20_000)]
    index = make(place / "many" / "model.ckpt", shapes)
    python = sys.executable
    few = compare(
        {
            "bare": Contender([python, "-c", "import numpy, click"]),
            "help": Contender([*CONVERT, "--help"]),
            "ckpt": Contender([*CONVERT, "ckpt", "--help"]),
            "inspect": Contender([*CONVERT, "inspect", str(SAMPLE)]),
            "ours": Contender([python, "-c", LISTING, "ours", str(index)], own_clock=True),
            "tensorflow": Contender(
                [python, "-c", LISTING, "tensorflow", str(index)], own_clock=True
            ),
        },
        max(rounds, 9),
    )
    what = "python -c 'import numpy, click'"
    table.row(f"convert --help / {what}", few["help"], few["bare"], "1.7")
    table.row(f"convert ckpt --help / {what}", few["ckpt"], few["bare"], "1.7")
    table.row(f"convert inspect SAMPLE / {what}", few["inspect"], few["bare"], "2.2")
    table.row(
        "20,000 variables listed / tf.train.list_variables", few["ours"], few["tensorflow"], "3"
    )
    shutil.rmtree(place)


def measuring(table: Table, place: Path, rounds: int) -> None:
    """How long a model takes that is measured, beside only running it."""
    place.mkdir(parents=True)
    for name, _, _, ratio in ratios(rounds, place):
        table.row(f"measured / Session.run: {name}", ratio, 1.0, "1.5")
    shutil.rmtree(place)


def main() -> None:
    """Make the checkpoints, run the contenders, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--disk", type=Path, required=True, help="a directory on a disk")
    parser.add_argument("--tmpfs", type=Path, required=True, help="a directory in a tmpfs")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--gib", type=float, default=2.0, help="size of the checkpoint")
    parser.add_argument("--only", choices=("starts", "disk", "tmpfs", "memory", "stats"))
    given = parser.parse_args()
    parts: dict[str, Callable[[Table], None]] = {
        "starts": lambda t: starts(t, given.disk / "starts", given.rounds),
        "disk": lambda t: conversions(t, given.disk / "bench", "disk", given.gib, given.rounds),
        "tmpfs": lambda t: conversions(t, given.tmpfs / "bench", "tmpfs", given.gib, given.rounds),
        "memory": lambda t: memory(t, given.disk / "memory"),
        "stats": lambda t: measuring(t, given.disk / "stats", given.rounds),
    }
    table = Table()
    for name, part in parts.items():
        if given.only in (None, name):
            part(table)


if __name__ == "__main__":
    main()
