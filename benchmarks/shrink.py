"""Losses of language models whose recurrent cell is made smaller, in a table for the documents.

    python benchmarks/shrink.py

Runs the trained character models of the tests in numpy, on the text that they were trained with.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

import numpy as np
from converter_plugins.select import Select
from converter_plugins.truncate import Truncate

from converter import Array, Checkpoint, Strategy, open_checkpoint
from converter.structure.infer import structure_of

DATA = Path(__file__).parent.parent / "tests" / "data"
# Embedding, kernel and bias of the cell, kernel and bias of the output.
MODELS = {
    "tf14_v2_charlm_lstm_ema": (
        "charlm/rnn/lstm_cell",
        (
            "charlm/embedding",
            "charlm/rnn/lstm_cell/kernel",
            "charlm/rnn/lstm_cell/bias",
            "charlm/softmax/kernel",
            "charlm/softmax/bias",
        ),
    ),
    "tf012_v1_charlm_basiclstm": (
        "RNN/BasicLSTMCell",
        (
            "embedding",
            "RNN/BasicLSTMCell/Linear/Matrix",
            "RNN/BasicLSTMCell/Linear/Bias",
            "softmax/w",
            "softmax/b",
        ),
    ),
}
SHARES = (0.9, 0.8, 0.67, 0.5)
DRAWS = 10
ROUNDS = 3


def main() -> None:
    print("| model, units | cut at the ends | `truncate` | `uniform` | `random`, ten | `select` |")
    print("| --- | --- | --- | --- | --- | --- |")
    for case, (width, names) in MODELS.items():
        source = open_checkpoint(DATA / case)
        record = json.loads((DATA / case / "case.json").read_text())
        ids = [record["vocabulary"].index(letter) for letter in record["text"] * ROUNDS]
        old = structure_of(source).widths[width].size
        print(f"| {case}, {old}: {_loss(source, names, ids):.3f} | | | | | |")
        for size in (round(share * old) for share in SHARES):
            losses = {
                key: np.array([_loss(_kept(source, s), names, ids) for s in strategies])
                for key, strategies in _strategies(source, width, names, size).items()
            }
            cells = [
                f"{found.mean():.3f}" + (f" ± {found.std():.3f}" if len(found) > 1 else "")
                for found in losses.values()
            ]
            print(f"| {size} | {' | '.join(cells)} |")


def _strategies(
    source: Checkpoint, width: str, names: tuple[str, ...], size: int
) -> Mapping[str, list[Strategy]]:
    embedding, kernel, bias, output, _ = names
    rows = source[embedding].shape[1] + size
    cut = {kernel: (rows, 4 * size), bias: (4 * size,), output: (size, source[output].shape[1])}
    wanted = {width: size}
    return {
        "cut": [Truncate(shape=cut)],
        "truncate": [Truncate(resize=wanted)],
        "uniform": [Select(resize=wanted, by="uniform")],
        "random": [Select(resize=wanted, by="random", seed=seed) for seed in range(DRAWS)],
        "select": [Select(resize=wanted)],
    }


def _kept(source: Checkpoint, strategy: Strategy) -> Checkpoint:
    # A cut variable fits neither its slots nor its averages.
    roles = source.roles()
    model = source.derive(v for n, v in source.items() if roles[n].kind == "model")
    return model.derive(strategy.apply(model))


def _loss(checkpoint: Checkpoint, names: tuple[str, ...], ids: list[int]) -> float:
    """Return the mean loss in nats of each character after the ones before it."""
    embedding, kernel, bias, output, output_bias = (
        checkpoint[name].read().astype(np.float64) for name in names
    )
    hidden = cell = np.zeros(len(bias) // 4)
    total = 0.0
    for now, then in pairwise(ids):
        i, j, f, o = np.split(np.concatenate([embedding[now], hidden]) @ kernel + bias, 4)
        cell = _sigmoid(f + 1) * cell + _sigmoid(i) * np.tanh(j)
        hidden = _sigmoid(o) * np.tanh(cell)
        logits = hidden @ output + output_bias
        top = logits.max()
        total += float(top + np.log(np.exp(logits - top).sum()) - logits[then])
    return total / (len(ids) - 1)


def _sigmoid(x: Array) -> Array:
    found: Array = 1 / (1 + np.exp(-x))
    return found


if __name__ == "__main__":
    main()
