"""Builds models with TensorFlow whose sizes are all equal, so that sizes tell nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from converter.proof import Question

N = 6
"""Every size."""

Build = Callable[["Maker"], list[Any]]


class Maker:
    """Makes layers in the default graph; every size is N.

    Attributes:
        feeds: what to feed, by the names of placeholders.
    """

    def __init__(self, tf: Any, seed: int = 2) -> None:
        self.tf = tf
        self.feeds: dict[str, Any] = {}
        self._noise = np.random.default_rng(seed)

    def input(self, *shape: int) -> Any:
        found = self.tf.placeholder("float32", shape, "x")
        self.feeds[found.name] = self._noise.normal(size=shape).astype("f4")
        return found

    def ids(self, *shape: int) -> Any:
        found = self.tf.placeholder("int32", shape, "ids")
        self.feeds[found.name] = self._noise.integers(0, N, shape)
        return found

    def variable(self, name: str, *shape: int) -> Any:
        return self.tf.get_variable(
            name, shape, "float32", self.tf.random_normal_initializer(stddev=0.5)
        )

    def dense(self, x: Any, name: str, columns: int = N, act: Any = None) -> Any:
        with self.tf.variable_scope(name):
            kernel = self.variable("kernel", int(x.shape[-1]), columns)
            product = self.tf.tensordot(x, kernel, [[len(x.shape) - 1], [0]])
            found = product + self.variable("bias", columns)
        return act(found) if act else found


def save(tf: Any, make: Build, path: Path, *, train: bool = True) -> tuple[Maker, list[str]]:
    """Build a model, train it one step with Adam, and save it.

    Returns:
        What made it, and the names of its outputs.
    """
    with tf.Graph().as_default():
        tf.set_random_seed(1)
        maker = Maker(tf)
        outputs = make(maker)
        step = tf.no_op()
        if train:
            loss = sum(tf.reduce_mean(tf.square(output)) for output in outputs)
            step = tf.train.AdamOptimizer(1e-3).minimize(loss)
        with tf.Session() as session:
            session.run(tf.global_variables_initializer())
            session.run(step, maker.feeds)
            tf.train.Saver().save(session, str(path))
    return maker, [output.name for output in outputs]


def asked(feeds: Mapping[str, Any], outputs: Sequence[str], path: Path) -> Question:
    """Return what to run of a model, whose inputs, by placeholder name, are written to a file."""
    # Typed so that names are not taken for the options of savez.
    arrays: dict[str, Any] = {name.removesuffix(":0"): value for name, value in feeds.items()}
    np.savez(path, **arrays)
    return Question(inputs=path, fetches=tuple(outputs))
