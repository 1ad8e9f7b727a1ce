"""Every statistic of real models, and what numpy makes of all activations at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from command_line import run
from conftest import case
from naive import dumped, rows

from converter import Measured, measure, open_checkpoint, read_measured, write_measured
from converter.activations.asked import Question
from converter.activations.file import STATISTICS, Key
from converter.activations.moments import Moments
from converter.activations.probes import probes
from converter.variable import Array

pytestmark = pytest.mark.slow

BATCHES = 40


class Drawn(NamedTuple):
    """A model on data like those that were recorded.

    Attributes:
        ended: the part of the names of tensors in loops that end with their sequences; None where
            there are no lengths.
        lengths: the input that holds them.
    """

    ended: str | None = None
    lengths: str = ""


MODELS = {
    "tf115_v2_convbn_ema": Drawn(),
    "tf012_v1_charlm_basiclstm": Drawn(),
    "tf012_v2_gru_seqlen": Drawn("RNN/while/", "lengths:0"),
    "tf14_v2_bidirectional": Drawn("/while/", "lengths:0"),
    "tf115_v2_keras_rnn": Drawn(),
    "tf14_v2_attention_bahdanau": Drawn("encoder/rnn/while/", "source_lengths:0"),
    "tf115_v2_bert_mini": Drawn(),
    "tf10_v2_partitioned": Drawn(),
}


def drawn(inputs: dict[str, Array], lengths: str) -> dict[str, Array]:
    """Return more rows of the same kind."""
    rng = np.random.default_rng(5)
    found = {}
    for name, x in inputs.items():
        shape = (len(x) * BATCHES, *x.shape[1:])
        steps = max(value.shape[1] for value in inputs.values() if value.ndim > 1)
        if name == lengths:
            found[name] = rng.integers(1, steps + 1, shape).astype(x.dtype)
        elif x.dtype.kind == "i":
            found[name] = rng.integers(x.min(), x.max() + 1, shape).astype(x.dtype)
        else:
            found[name] = (rng.standard_normal(shape) * x.std() + x.mean()).astype(x.dtype)
    return found


def naive(values: Array) -> dict[str, Array]:
    size = np.abs(values)
    return {
        "count": np.asarray(len(values)),
        "mean": values.mean(0),
        "mean_abs": size.mean(0),
        "std": values.std(0),
        "second_moment": (values**2).mean(0),
        "min": values.min(0),
        "max": values.max(0),
        "max_abs": size.max(0),
        "zeros": (values == 0).mean(0),
        "covariance": np.atleast_2d(np.cov(values.T, bias=True)),
    }


def compare(found: Moments, wanted: dict[str, Array], what: str, *, is_whole: bool) -> None:
    assert (found.covariance is not None) == is_whole, what
    for name in (*STATISTICS, "covariance") if is_whole else STATISTICS:
        values = getattr(found, name)
        assert values is not None, (what, name)
        scale = np.abs(wanted[name]).max() or 1.0
        assert np.abs(values - wanted[name]).max() <= 1e-5 * scale, (what, name)


def three_ways(
    path: str, data: dict[str, Array], question: Question, folder: Path, batches: int = BATCHES
) -> list[Measured]:
    """Measure in one batch, in many, and in two runs whose files are merged."""
    checkpoint = open_checkpoint(path)
    named = {name.removesuffix(":0"): values for name, values in data.items()}
    count = min(map(len, named.values())) // batches
    parts = [
        {name: values[at * count : (at + 1) * count] for name, values in named.items()}
        for at in range(batches)
    ]

    def of(some: list[dict[str, Array]]) -> Measured:
        return measure(checkpoint, some, covariance=["*"], question=question)

    files = [folder / f"{name}.safetensors" for name in ("a", "b", "both")]
    for file, some in zip(files[:2], (parts[:2], parts[2:]), strict=True):
        write_measured(file, of(some))
    outcome = run("stats", "--merge", *files[:2], "-o", files[2])
    assert outcome.exit_code == 0, outcome.output
    return [of([named]), of(parts), read_measured(files[2])]


def cut_apart(path: str) -> dict[Key, list[tuple[str, int]]]:
    """Return the tensors that have parts of the units of a variable, in their order, and sizes."""
    found: dict[Key, dict[int, tuple[str, int]]] = {}
    for probe in probes(open_checkpoint(path)):
        if probe.cut is not None:
            for key in probe.for_:
                found.setdefault(key, {})[probe.cut.start] = str(probe.tensor), probe.size
    return {key: [parts[start] for start in sorted(parts)] for key, parts in found.items()}


def check(
    ways: Sequence[Measured],
    rows_of: Callable[[str, int], Array],
    cuts: Mapping[Key, Sequence[tuple[str, int]]],
) -> None:
    """Compare with the rows of each tensor that count, by its name and its number of units."""
    for key, found in ways[0].items():
        tensors = ways[0].tensors[key]
        if key in cuts:
            assert set(tensors) == {tensor for tensor, _ in cuts[key]}
            values = np.concatenate([rows_of(*part) for part in cuts[key]], axis=1)
        else:
            values = np.concatenate([rows_of(tensor, found.size) for tensor in tensors])
        wanted = naive(values)
        for way in ways:
            compare(way[key], wanted, f"{key} {way}", is_whole=key not in cuts)
            assert way.tensors[key] == tensors


@pytest.mark.parametrize("name", MODELS)
def test_all_statistics_are_those_of_all_activations(name: str, tmp_path: Path) -> None:
    pytest.importorskip("tensorflow")
    recorded, model = case(name), MODELS[name]
    io = recorded.record["io"]
    with np.load(recorded.directory / "io.npz") as arrays:
        inputs = {entry["tensor"]: arrays[key] for key, entry in io["inputs"].items()}
    data = drawn(inputs, model.lengths)
    feeds = tuple(f"{key}={str(value).lower()}" for key, value in io["feeds"].items())
    ways = three_ways(recorded.path, data, Question(feeds), tmp_path)
    whole = ways[0]
    assert len(whole) > 4
    names = sorted({tensor for tensors in whole.tensors.values() for tensor in tensors})
    fetches = [entry["tensor"] for entry in io["outputs"].values()]
    turns = dumped(recorded.path, fetches, {**data, **io["feeds"]}, names)

    def counted(tensor: str, units: int) -> Array:
        ends = data[model.lengths] if model.ended and model.ended in tensor else None
        return rows(turns[tensor], units, ends)

    check(ways, counted, cut_apart(recorded.path))
