"""A checkpoint's own graph in one session, to be run again with other values of its variables."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np

from converter.checkpoint import Checkpoint
from converter.closing import Closing
from converter.comparison import compare
from converter.errors import InputError
from converter.forward.find import find_forward
from converter.forward.variables import Held
from converter.graph.node import Tensor
from converter.graph.ops import DRAWS
from converter.graph.written import read_graph
from converter.running import Question, given_by, start
from converter.variable import Array

Values = Mapping[str, Array]
"""Values of variables, by their names in the checkpoint."""

# Neighbours along an axis that differ by less, as a part of the largest, would look the same.
_ALIKE = 0.01
# Values that are nowhere larger are as good as zeros.
_TINY = 1e-3
_JITTER = 0.1


class Model(Closing):
    """The forward part of a checkpoint's graph, with inputs that are given or drawn.

    Noise that the graph adds is drawn once, and fed from then on.

    It is a context manager, which frees what it holds.

    Attributes:
        forward: what is run.
        feeds: what it is fed.
        values: of each variable that is run, as the checkpoint has them.

    Raises:
        InputError: there is no graph, a variable is missing, or a file is damaged.
        UsageError: TensorFlow is not installed; a feed, a fetch or an input does not fit.
        RunError: the graph does not run.
    """

    def __init__(self, checkpoint: Checkpoint, question: Question) -> None:
        from converter.session import Session, can_run, dtypes_of

        graph = read_graph(checkpoint)
        if graph is None:
            raise InputError(
                f"{checkpoint.path}: it has no graph (.meta, .pb) in which it could be run; give "
                "that of another checkpoint (--graph-from)"
            )
        runs = can_run()
        given = given_by(graph, set(checkpoint), question)
        fed = [str(source) for source in given]
        self.forward = find_forward(
            graph, set(checkpoint), fetches=question.fetches, fed=fed, values=given, can_run=runs
        )
        fetches = [str(output.tensor) for output in self.forward.outputs]
        noise = [
            Tensor(name)
            for name in self.forward.random
            if graph.nodes[name].op in DRAWS and name not in graph.frames
        ]
        wanted = self.forward
        if noise:
            names = [str(source) for source in noise]
            wanted = find_forward(
                graph, set(checkpoint), fetches=[*fetches, *names], fed=fed, can_run=runs
            )
        self._session, self.feeds, outputs = start(wanted, checkpoint, given, question.seed)
        if noise:
            self._session.close()
            fed += names
            self.forward = find_forward(
                graph, set(checkpoint), fetches=fetches, fed=fed, values=given, can_run=runs
            )
            values = {**self.feeds.values, **{source: outputs[source] for source in noise}}
            self.feeds = replace(self.feeds, values=values)
            self._session = Session(self.forward, checkpoint, dtypes_of(self.forward, values))
        self._held: dict[str, Held] = {
            node: self.forward.variables[node]
            for node in self._session.variables
            if self.forward.variables[node].key in checkpoint
        }
        keys = dict.fromkeys(held.key for held in self._held.values())
        self.values: Values = {key: checkpoint[key].read() for key in keys}
        self._assigned = dict(self.values)

    def close(self) -> None:
        self._session.close()

    def precision(self) -> float:
        """Return the precision of the coarsest numbers that it computes with."""
        graph = self.forward.graph
        outputs = [output.tensor for output in self.forward.outputs]
        needed = graph.ancestors(outputs, given=self.feeds.values, instead=self.forward.instead)
        dtypes = {graph.dtype(Tensor(name)) for name in needed}
        return max(
            (precision_of(d.numpy) for d in dtypes if d and d.is_float and d.numpy), default=0.0
        )

    def run(self, values: Values, feeds: Mapping[Tensor, Array] | None = None) -> Outputs:
        """Compute the outputs with these values.

        Args:
            values: as many as in `values`, of the same shapes. An array must not change after it
                was given: it is not assigned again.
            feeds: what is fed instead; all of them.

        Raises:
            RunError: the graph does not run with these.
        """
        changed = {name for name, value in values.items() if value is not self._assigned[name]}
        for node, held in self._held.items():
            if held.key in changed:
                value = values[held.key]
                self._session.assign(node, value if held.region is None else value[held.region])
        self._assigned |= values
        return self._session.run(self.feeds.values if feeds is None else feeds)


Outputs = dict[Tensor, Array]


def difference(a: Outputs, b: Outputs) -> float:
    """Return the largest difference of all outputs, each as a part of its scale.

    What is chosen (integers) is compared only where nothing is computed: the choice between two
    of almost the same size goes by how their last digits were rounded. What has no finite value
    in the first says nothing.
    """
    compared = [compare(str(source), a[source], b[source]) for source in a]
    told = [c for c in compared if c.passed is not None and c.note != "no finite value"]
    floats = [c for c in told if c.is_float]
    return max((c.error for c in floats or told), default=np.nan)


def jittered(values: Values, *, positive: Iterable[str] = ()) -> dict[str, Array]:
    """Return the values with a little noise in those that are the same all along an axis, or tiny.

    Zeros and ones as they are made look the same in every order, so that they could not be seen to
    stand in a wrong one.

    Args:
        values: floats; what is of another dtype stays.
        positive: the variables that must not be negative.
    """
    above = set(positive)
    return {
        name: noisy(name, array, _JITTER, positive=name in above) if _is_alike(array) else array
        for name, array in values.items()
    }


def noisy(name: str, values: Array, part: float, *, positive: bool = False) -> Array:
    """Return the values with noise, which depends on the name alone.

    Args:
        name: of the variable.
        values: floats.
        part: how large the noise is at most, as a part of the largest value, or of 1 if that is
            tiny.
        positive: whether to add nothing but positive noise.
    """
    wide = values.astype(np.float64)
    largest = np.abs(wide[np.isfinite(wide)]).max(initial=0.0)
    largest = largest if largest > _TINY else 1.0
    rng = np.random.default_rng(zlib.crc32(name.encode("utf-8", "surrogateescape")))
    noise = rng.uniform(-part, part, wide.shape) * largest
    return (wide + (np.abs(noise) if positive else noise)).astype(values.dtype)


def is_float(values: Array) -> bool:
    """Whether these are real numbers; bfloat16 is none to numpy."""
    return "float" in values.dtype.name


def rounded(values: Values, precision: float) -> dict[str, Array]:
    """Return the values with the error that rounding them once more would make.

    Args:
        values: of variables.
        precision: at what part of a number it is rounded at least.
    """
    found = {}
    for name, array in values.items():
        found[name] = array
        if is_float(array):
            last = max(precision, precision_of(array.dtype)) / 2
            rng = np.random.default_rng(zlib.crc32(name.encode("utf-8", "surrogateescape")))
            wide = array.astype(np.float64)
            found[name] = (wide * (1 + rng.uniform(-last, last, wide.shape))).astype(array.dtype)
    return found


def precision_of(dtype: np.dtype[Any]) -> float:
    """Return how far the next number after 1 is from it."""
    return float(ml_dtypes.finfo(dtype).eps)  # type: ignore[no-untyped-call]  # it has no types


def _is_alike(values: Array) -> bool:
    """Whether at least half of the neighbours along some axis are nearly the same, or all tiny."""
    if not is_float(values) or not values.size:
        return False
    with np.errstate(invalid="ignore", over="ignore"):
        wide = values.astype(np.float32 if values.dtype.itemsize <= 4 else np.float64)
        largest = float(np.abs(wide).max())
        if largest <= _TINY:
            return True
        for axis in range(wide.ndim):
            if wide.shape[axis] > 1:
                others = tuple(n for n in range(wide.ndim) if n != axis)
                apart = np.abs(np.diff(wide, axis=axis)).max(axis=others)
                if np.count_nonzero(apart <= _ALIKE * largest) * 2 >= apart.size:
                    return True
    return False
