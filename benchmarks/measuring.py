"""Measures what statistics cost beside only running the model, as ratios paired in one run.

    python benchmarks/measuring.py [--rounds 5]

Models are made by TensorFlow: convolutions, a recurrent cell in a loop, one that is one op for all
steps, and attention. Each is run over the same batches in one process: by `Session.run` of
TensorFlow, by what statistics run models with, and with being measured, in turns.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from converter import Array, open_checkpoint
from converter.activations.asked import Question
from converter.activations.measure import gather, pools_of
from converter.activations.probes import probes
from converter.activations.run import Run

BATCHES = 12


def convolutional(tf: Any) -> dict[str, Array]:
    x = tf.placeholder(tf.float32, [None, 32, 32, 3], "x")
    h, rows = x, 3
    for number, size in enumerate((32, 64, 64)):
        kernel = tf.get_variable(f"conv{number}/kernel", [3, 3, rows, size])
        bias = tf.get_variable(f"conv{number}/bias", [size])
        h = tf.nn.relu(tf.nn.bias_add(tf.nn.conv2d(h, kernel, 1, "SAME"), bias))
        h, rows = tf.nn.max_pool2d(h, 2, 2, "SAME"), size
    head = tf.get_variable("head/kernel", [rows, 10])
    tf.matmul(tf.reduce_mean(h, [1, 2]), head, name="out")
    return {"x": np.random.default_rng(0).standard_normal((64, 32, 32, 3)).astype("f4")}


def recurrent(tf: Any) -> dict[str, Array]:
    units, features = 256, 128
    x = tf.placeholder(tf.float32, [None, 30, features], "x")
    kernel = tf.get_variable("lstm/kernel", [features + units, 4 * units])
    bias = tf.get_variable("lstm/bias", [4 * units])
    steps = tf.transpose(x, [1, 0, 2])

    def step(time: Any, h: Any, c: Any) -> tuple[Any, Any, Any]:
        taken = tf.concat([steps[time], h], 1)
        i, j, f, o = tf.split(tf.nn.bias_add(tf.matmul(taken, kernel), bias), 4, 1)
        c = tf.sigmoid(f + 1) * c + tf.sigmoid(i) * tf.tanh(j)
        return time + 1, tf.sigmoid(o) * tf.tanh(c), c

    zeros = tf.zeros([tf.shape(x)[0], units])
    _, h, _ = tf.while_loop(lambda time, *_: time < 30, step, [0, zeros, zeros])
    tf.matmul(h, tf.get_variable("head/kernel", [units, 10]), name="out")
    return {"x": np.random.default_rng(0).standard_normal((64, 30, features)).astype("f4")}


def fused(tf: Any) -> dict[str, Array]:
    units, features = 256, 128
    x = tf.placeholder(tf.float32, [30, 64, features], "x")
    kernel = tf.get_variable("lstm/kernel", [features + units, 4 * units])
    bias = tf.get_variable("lstm/bias", [4 * units])
    zeros, no_peephole = tf.zeros([64, units]), tf.zeros([units])
    cell = tf.raw_ops.BlockLSTMV2(
        seq_len_max=tf.constant(30, tf.int64),
        x=x,
        cs_prev=zeros,
        h_prev=zeros,
        w=kernel,
        wci=no_peephole,
        wcf=no_peephole,
        wco=no_peephole,
        b=bias,
    )
    tf.matmul(cell.h[-1], tf.get_variable("head/kernel", [units, 10]), name="out")
    return {"x": np.random.default_rng(0).standard_normal((30, 64, features)).astype("f4")}


def attention(tf: Any) -> dict[str, Array]:
    size, heads, steps = 256, 4, 64
    ids = tf.placeholder(tf.int32, [None, steps], "ids")
    h = tf.gather(tf.get_variable("embedding", [1000, size]), ids)
    h = tf.reshape(h, [-1, size])

    def dense(x: Any, name: str, units: int) -> Any:
        kernel = tf.get_variable(f"{name}/kernel", [int(x.shape[-1]), units])
        return tf.nn.bias_add(tf.matmul(x, kernel), tf.get_variable(f"{name}/bias", [units]))

    for layer in range(3):
        parts = [dense(h, f"layer{layer}/{n}", size) for n in ("query", "key", "value")]
        q, k, v = (
            tf.transpose(tf.reshape(part, [-1, steps, heads, size // heads]), [0, 2, 1, 3])
            for part in parts
        )
        weights = tf.nn.softmax(tf.matmul(q, k, transpose_b=True) / (size // heads) ** 0.5)
        mixed = tf.reshape(tf.transpose(tf.matmul(weights, v), [0, 2, 1, 3]), [-1, size])
        h = h + dense(mixed, f"layer{layer}/output", size)
        h = h + dense(
            tf.nn.relu(dense(h, f"layer{layer}/up", 4 * size)), f"layer{layer}/down", size
        )
    tf.identity(dense(h, "head", 20), "out")
    return {"ids": np.random.default_rng(0).integers(0, 1000, (32, steps)).astype("i4")}


MODELS: Mapping[str, Callable[[Any], dict[str, Array]]] = {
    "convolutional": convolutional,
    "recurrent": recurrent,
    "one op": fused,
    "attention": attention,
}


def made(directory: Path, build: Callable[[Any], dict[str, Array]]) -> dict[str, Array]:
    """Save a model; return a batch for it."""
    import tensorflow.compat.v1 as tf

    tf.disable_control_flow_v2()
    with tf.Graph().as_default(), tf.Session() as session:
        batch = build(tf)
        session.run(tf.global_variables_initializer())
        tf.train.Saver().save(session, str(directory / "model"))
    return batch


def seconds(place: Path, batch: dict[str, Array], rounds: int) -> Iterator[list[float]]:
    """Yield the seconds of the three ways to run a model, for each round."""
    import tensorflow.compat.v1 as tf

    checkpoint = open_checkpoint(place)
    found = probes(checkpoint)
    with (
        tf.Graph().as_default(),
        tf.Session() as plain,
        Run(checkpoint, batch, (), Question()) as alone,
        Run(checkpoint, batch, found, Question()) as measured,
    ):
        tf.train.import_meta_graph(f"{place / 'model'}.meta").restore(plain, str(place / "model"))
        feeds = {f"{name}:0": value for name, value in batch.items()}
        for number in range(rounds + 1):
            times = [time.perf_counter()]
            for _ in range(BATCHES):
                plain.run("out:0", feeds)
            times.append(time.perf_counter())
            for _ in range(BATCHES):
                alone.take(batch)
            times.append(time.perf_counter())
            gather(measured, pools_of(found), [batch] * BATCHES)
            times.append(time.perf_counter())
            # The first round makes what later ones have.
            if number:
                yield [float(taken) for taken in np.diff(times)]


def ratios(rounds: int, directory: Path) -> Iterator[tuple[str, float, float, float]]:
    """Yield of each model the seconds of a batch in TensorFlow, and the ratios to them here.

    Of running the model only, and of measuring it.
    """
    for name, build in MODELS.items():
        place = directory / name
        place.mkdir()
        found = list(seconds(place, made(place, build), rounds))
        plain = statistics.median(one[0] for one in found) / BATCHES
        alone, measured = (statistics.median(one[n] / one[0] for one in found) for n in (1, 2))
        yield name, plain, alone, measured


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as directory:
        for name, plain, alone, measured in ratios(rounds, Path(directory)):
            print(
                f"{name:<14} {plain * 1e3:6.1f} ms a batch in TensorFlow, {alone:.2f} times as "
                f"long run here, {measured:.2f} measured"
            )


if __name__ == "__main__":
    main()
