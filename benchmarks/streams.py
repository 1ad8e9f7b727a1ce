"""Narrows the stream of trained transformers in several ways, and tells what each costs.

    python benchmarks/streams.py [--units 48] [--steps 1500] > table.md

Two small language models that normalise before each layer, one by mean and variance and one by root
mean squares, learn a text: the license of this project. Then their streams are cut to three
quarters and to half, and the cross-entropy of the next character is measured on the text. The
result is a Markdown table.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from converter_plugins.project import Project
from converter_plugins.select import Select
from converter_plugins.truncate import Truncate
from recorded import Running, tensorflow

from converter import Array, Resizer, convert, measure, open_checkpoint, write_measured

TEXT = (Path(__file__).parents[1] / "LICENSE").read_text()
LETTERS = "".join(sorted(set(TEXT)))
WINDOW, LAYERS, HEADS, ROWS = 32, 2, 4, 32
KINDS = {"norm": "layer normalisation", "rms": "by root mean squares"}


class Transformer:
    """A transformer that normalises before each layer.

    Args:
        tf: TensorFlow.
        kind: `norm` or `rms`.
        units: of its stream.
    """

    def __init__(self, tf: Any, kind: str, units: int) -> None:
        self.tf = tf
        self._kind = kind
        self._units = units
        self.graph = tf.Graph()
        with self.graph.as_default():
            tf.set_random_seed(1)
            self.x = tf.placeholder("int32", [None, WINDOW], "x")
            self.y = tf.placeholder("int32", [None, WINDOW], "y")
            labels = {"labels": self.y, "logits": self._logits()}
            costs = tf.nn.sparse_softmax_cross_entropy_with_logits(**labels)
            self.loss = tf.reduce_mean(costs, name="loss")
            self.rate = tf.placeholder_with_default(0.0, [])
            self.train = tf.train.AdamOptimizer(self.rate).minimize(self.loss)

    def taught(self, steps: int, path: Path) -> Path:
        """Teach it the text and save it."""
        rng = np.random.default_rng(0)
        ids = numbers()
        with self.graph.as_default(), self.tf.Session() as session:
            session.run(self.tf.global_variables_initializer())
            for step in range(steps):
                at = rng.integers(0, len(ids) - WINDOW - 1, ROWS)[:, None] + np.arange(WINDOW)
                rate = 5e-3 * min(1, step / 50) * (1 - step / steps)
                feeds = {self.x: ids[at], self.y: ids[at + 1], self.rate: rate}
                session.run(self.train, feeds)
            return Path(self.tf.train.Saver().save(session, str(path)))

    def _logits(self) -> Any:
        tf = self.tf
        table = self._variable("embedding", len(LETTERS), self._units)
        x = tf.nn.embedding_lookup(table, self.x) + self._variable("places", WINDOW, self._units)
        for layer in range(LAYERS):
            with tf.variable_scope(f"layer_{layer}"):
                x += self._dense(self._attention(self._norm(x, "first")), "mixed", self._units)
                inner = self._dense(self._norm(x, "second"), "inner", 2 * self._units)
                x += self._dense(tf.nn.relu(inner), "outer", self._units)
        return self._dense(self._norm(x, "last"), "logits", len(LETTERS))

    def _attention(self, x: Any) -> Any:
        tf, size = self.tf, self._units // HEADS

        def heads(name: str) -> Any:
            split = tf.reshape(self._dense(x, name, HEADS * size), [-1, WINDOW, HEADS, size])
            return tf.transpose(split, [0, 2, 1, 3])

        scores = tf.matmul(heads("query"), heads("key"), transpose_b=True) * size**-0.5
        scores += np.float32(1e9) * (np.tri(WINDOW, dtype="f4") - 1)
        mixed = tf.transpose(tf.matmul(tf.nn.softmax(scores), heads("value")), [0, 2, 1, 3])
        return tf.reshape(mixed, [-1, WINDOW, HEADS * size])

    def _norm(self, x: Any, name: str) -> Any:
        tf = self.tf
        with tf.variable_scope(name):
            gain = tf.get_variable("gamma", [self._units], initializer=tf.ones_initializer())
            if self._kind == "rms":
                squares = tf.reduce_mean(tf.square(x), -1, keepdims=True)
                return x * tf.math.rsqrt(squares + 1e-5) * gain
            shift = tf.get_variable("beta", [self._units], initializer=tf.zeros_initializer())
            mean, variance = tf.nn.moments(x, [-1], keepdims=True)
            return tf.nn.batch_normalization(x, mean, variance, shift, gain, 1e-5)

    def _dense(self, x: Any, name: str, columns: int) -> Any:
        with self.tf.variable_scope(name):
            kernel = self._variable("kernel", int(x.shape[-1]), columns)
            zeros = self.tf.zeros_initializer()
            bias = self.tf.get_variable("bias", [columns], initializer=zeros)
            return self.tf.tensordot(x, kernel, 1) + bias

    def _variable(self, name: str, *shape: int) -> Any:
        glorot = self.tf.glorot_uniform_initializer()
        return self.tf.get_variable(name, shape, initializer=glorot)


def numbers() -> Array:
    """Return the text in numbers."""
    return np.array([LETTERS.index(letter) for letter in TEXT])


def windows() -> tuple[Array, Array]:
    """Return all of the text in windows, and what comes next."""
    ids = numbers()
    at = np.arange(0, len(ids) - WINDOW, WINDOW)[:, None] + np.arange(WINDOW)
    return ids[at], ids[at + 1]


def loss(running: Running) -> float:
    """Return the cross-entropy on the text."""
    x, y = windows()
    return float(running.run({"x:0": x, "y:0": y}, ["loss:0"])["loss:0"])


def costs(tf: Any, source: Path, units: int, place: Path) -> Iterator[tuple[str, float]]:
    """Yield each way of narrowing the stream, and the loss behind it."""
    data = [{"x": windows()[0]}]
    measured = measure(open_checkpoint(source), data, covariance=["*"])
    statistics = write_measured(place / "statistics.safetensors", measured, force=True)
    resize = {"embedding": units}
    repaired: dict[str, Any] = {"repair": "least-squares", "statistics": statistics}
    ways: dict[str, Callable[[], Resizer]] = {
        "`truncate`": lambda: Truncate(resize=resize),
        "`select`": lambda: Select(resize=resize),
        "`select`, `wanda`, mended": lambda: Select(resize=resize, by="wanda", **repaired),
        "`select`, `obs`, mended": lambda: Select(resize=resize, by="obs", **repaired),
        "`pca` of what makes it": lambda: Project(resize=resize, by="pca"),
        "`pca`": lambda: Project(resize=resize, by="pca", statistics=statistics),
    }
    for name, make in ways.items():
        result = convert(source, place / "cut", [make()], to="tf", sync=False, force=True)
        (index,) = [path for path in result.files if path.suffix == ".index"]
        with Running(tf, index.with_suffix("")) as running:
            yield name, loss(running)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--units", type=int, default=48)
    parser.add_argument("--steps", type=int, default=1500)
    given = parser.parse_args()
    tf = tensorflow()
    is_begun = False
    for kind, name in KINDS.items():
        with tempfile.TemporaryDirectory() as directory:
            place = Path(directory)
            source = Transformer(tf, kind, given.units).taught(given.steps, place / "model")
            with Running(tf, source) as running:
                old = loss(running)
            for units in (given.units * 3 // 4, given.units // 2):
                found = dict(costs(tf, source, units, place))
                if not is_begun:
                    print(f"| model | units | as it was | {' | '.join(found)} |")
                    print(f"| --- | --- | --- {'| --- ' * len(found)}|")
                    is_begun = True
                cells = " | ".join(f"{cost:.2f}" for cost in found.values())
                print(f"| {name} | {given.units} to {units} | {old:.2f} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
