"""Recorded models, and TensorFlow to run what has become of them."""

from __future__ import annotations

import fnmatch
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from converter import Array, open_checkpoint

DATA = Path(__file__).parents[1] / "tests" / "data"


def tensorflow() -> Any:
    """Return TensorFlow as it was before 2, and quiet."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    # These kernels round differently from the ones that the models were trained with.
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    import tensorflow.compat.v1 as tf

    tf.disable_eager_execution()
    tf.logging.set_verbosity(tf.logging.ERROR)
    return tf


class Recorded(NamedTuple):
    """A model with what it was fed, and what it gave, by the names of tensors.

    Attributes:
        name: of the case.
        source: the path of the checkpoint.
        inputs: what it was fed.
        outputs: what it gave.
        record: all of its `case.json`.
    """

    name: str
    source: str
    inputs: dict[str, Array]
    outputs: dict[str, Array]
    record: dict[str, Any]


def cases(directory: Path, only: str) -> Iterator[Recorded]:
    """Yield the cases of a directory that have a graph and records."""
    for file in sorted(directory.glob("*/case.json")):
        record = json.loads(file.read_text())
        io = record.get("io")
        # Not a Path: a prefix may end in a slash.
        prefix = f"{file.parent}/{record.get('prefix')}"
        found = not record.get("damaged") and io and fnmatch.fnmatch(file.parent.name, only)
        if not found or not list(file.parent.glob("**/*.meta")):
            continue
        arrays = np.load(file.parent / io["file"])
        inputs = {entry["tensor"]: arrays[key] for key, entry in io["inputs"].items()}
        inputs |= {name: np.asarray(value) for name, value in io["feeds"].items()}
        outputs = {
            entry["tensor"]: arrays[key]
            for kind in ("outputs", "states")
            for key, entry in io[kind].items()
        }
        yield Recorded(file.parent.name, prefix, inputs, outputs, record)


class Running:
    """A written checkpoint in TensorFlow, by its own graph and Saver."""

    def __init__(self, tf: Any, prefix: str | Path) -> None:
        self.tf = tf
        self._graph = tf.Graph()
        with self._graph.as_default():
            # The shards of TensorFlow V1 are told by a pattern.
            file = Path(f"{re.sub(r'-[?]+-of-[0-9]+$', '', str(prefix))}.meta")
            meta = tf.MetaGraphDef.FromString(file.read_bytes())
            for node in meta.graph_def.node:
                # A hint only, and those of some old graphs TensorFlow refuses.
                node.attr.pop("_output_shapes", None)
            self._saver = tf.train.import_meta_graph(meta, clear_devices=True)
            # What waits for a queue that nothing fills would wait for ever.
            patience = tf.ConfigProto(operation_timeout_in_ms=30_000)
            self.session = tf.Session(graph=self._graph, config=patience)
            self._saver.restore(self.session, str(prefix))

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *_: object) -> None:
        self.session.close()

    def restore(self, prefix: Path) -> None:
        """Take the values of another checkpoint."""
        self._saver.restore(self.session, str(prefix))

    def run(self, inputs: Mapping[str, Array], fetches: Sequence[str]) -> dict[str, Array]:
        """Return what tensors are."""
        return dict(zip(fetches, self.session.run(list(fetches), dict(inputs)), strict=True))

    def train(self, inputs: Mapping[str, Array], steps: int) -> list[float] | None:
        """Take training steps; return the losses (none where no loss is found), or None without."""
        operations = self._graph.get_collection("train_op")
        if not operations:
            return None
        losses = list(self._losses())
        found: list[float] = []
        # Whether inputs are batch-major or time-major tells how many labels there are.
        for first in (0, 1):
            feeds = {**inputs, **self._rest(operations, inputs, first)}
            try:
                for _ in range(steps):
                    _, values = self.session.run([operations, losses], feeds)
                    found += [float(value) for value in values]
            except self.tf.errors.InvalidArgumentError:
                if first:
                    raise
                continue
            break
        return found

    def _losses(self) -> Iterator[Any]:
        """Yield the numbers that gradients start from."""
        names = [op.name for op in self._graph.get_operations()]
        scopes = {
            match[1]
            for name in names
            if (match := re.search(r"gradients(?:_\d+)?/(.+)_grad/", name))
        }
        for op in self._graph.get_operations():
            if op.name not in scopes or len(op.outputs) != 1 or op.outputs[0].shape.rank != 0:
                continue
            if op._get_control_flow_context() is not None:
                continue
            if not any(consumer.name in scopes for consumer in op.outputs[0].consumers()):
                yield op.outputs[0]

    def values(self, place: Path) -> dict[str, Array]:
        """Save all variables, and return what our reader finds."""
        with self._graph.as_default():
            self._saver.save(self.session, str(place / "trained"), write_meta_graph=False)
        saved = open_checkpoint(place / "trained")
        return {name: v.read() for name, v in saved.items() if v.dtype.is_number}

    def _rest(
        self, operations: Sequence[Any], inputs: Mapping[str, Array], first: int
    ) -> dict[str, Array]:
        """Return something for the placeholders that only training needs: labels, mostly."""
        seen: set[Any] = set()
        waiting = [getattr(operation, "op", operation) for operation in operations]
        while waiting:
            operation = waiting.pop()
            if operation in seen:
                continue
            seen.add(operation)
            waiting += [tensor.op for tensor in operation.inputs] + list(operation.control_inputs)
        found = {}
        noise = np.random.default_rng(0)
        sizes = sorted((array.shape for array in inputs.values()), key=len, reverse=True)
        for operation in seen:
            if operation.type != "Placeholder" or f"{operation.name}:0" in inputs:
                continue
            tensor = operation.outputs[0]
            shape = [
                size if size is not None else next((s[k] for s in sizes if len(s) > k), 1)
                for k, size in enumerate(tensor.shape.as_list() if tensor.shape.rank else [], first)
            ]
            if tensor.dtype.is_bool:
                found[tensor.name] = np.zeros(shape, bool)
            elif tensor.dtype.is_integer:
                found[tensor.name] = noise.integers(0, 2, shape)
            elif not shape:
                # A keep probability.
                found[tensor.name] = np.ones(())
            else:
                found[tensor.name] = noise.random(shape)
        return found
