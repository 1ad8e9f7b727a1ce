"""Resizes models by zeros, runs them from their new graph, and trains them in it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from converter import Checkpoint, Variable
from converter.formats import bundle
from converter.formats.stream import Output
from converter.graph import node
from converter.regraph import Regraphed
from converter.structure.axes.axis import Axis
from converter.structure.axes.entries import entries
from converter.structure.structure import Structure
from converter.variable import Array

_ASSIGNS = re.compile(r"Assign(Add|Sub)?(VariableOp)?")
_APPLIES = re.compile(r"(Resource)?(Sparse)?Apply[A-Z].*|(Resource)?Scatter(Sub|Add)")
# Slots that an optimizer divides by the root of, which must not be zero.
_SUMS_OF_SQUARES = re.compile(r".*/(Adagrad|RMSProp|Ftrl)")


def places(axis: Axis, old: Mapping[str, int], new: Mapping[str, int]) -> Array:
    """Return for each new entry of an axis the old one, and -1 for one that is new."""
    units = {n: np.arange(new[n]) for n in axis.widths()}
    return entries(axis, {n: np.where(u < old[n], u, -1) for n, u in units.items()}, old)


class Resizing:
    """New sizes of the widths of a checkpoint; new entries are zero."""

    def __init__(self, checkpoint: Checkpoint, structure: Structure, sizes: Mapping[str, int]):
        self.checkpoint = checkpoint
        self.structure = structure
        self.sizes = {**structure.sizes, **sizes}

    def grown(self, values: Array, axes: Sequence[Axis], fill: float = 0) -> Array:
        for number, axis in enumerate(axes):
            index = places(axis, self.structure.sizes, self.sizes)
            is_width = axis.size(self.structure.sizes) == values.shape[number]
            if is_width and not np.array_equal(index, np.arange(values.shape[number])):
                values = np.take(values, np.maximum(index, 0), number)
                np.moveaxis(values, number, -1)[..., index < 0] = fill
        return values

    def cut(self, values: Array, axes: Sequence[Axis]) -> Array:
        """Return the old entries of what the resized model made."""
        for number, axis in enumerate(axes):
            index = places(axis, self.structure.sizes, self.sizes)
            if len(index) == values.shape[number]:
                values = np.take(values, np.flatnonzero(index >= 0), number)
        return values

    def variables(self, found: Regraphed) -> list[Variable]:
        roles = self.checkpoint.roles()
        variables = []
        for name, variable in self.checkpoint.items():
            uses = [use for axis in self.structure.uses[name] for u in axis.values() for use in u]
            is_scale = variable.read().ndim == 1 and {"gain", "variance"} & set(uses)
            fill = float(bool(is_scale) or _SUMS_OF_SQUARES.fullmatch(name) is not None)
            values = self.grown(variable.read(), self.structure.axes[name], fill)
            for factor in found.rescaled:
                by_axis = [u.get(factor.width, ()) for u in self.structure.uses[name]]
                if roles[name].kind == "model" and any("consume" in u for u in by_axis):
                    values = (values * (factor.before / factor.after)).astype(values.dtype)
            variables.append(Variable.from_array(name, values))
        return variables

    def axes_of(self, tensor: str) -> list[Axis]:
        analysis, write = self.structure.graph.findings.analysis, self.structure.graph.write
        name, _, port = tensor.rpartition(":")
        found = analysis.tensor(node.Output(analysis.graph.by_name[name], int(port)))
        return [write(atom) for atom in found.axes or ()]


class Result(NamedTuple):
    """Outputs before and after training, and whether all variables are finite then."""

    before: list[Array]
    after: list[Array]
    is_finite: bool


def write(directory: Path, variables: Sequence[Variable], meta: bytes) -> str:
    directory.mkdir()
    bundle.write(directory / "model", variables, open_output=Output)
    (directory / "model.meta").write_bytes(meta)
    return str(directory / "model")


def run(tf: Any, prefix: str, feeds: Mapping[str, Array], fetches: Sequence[str]) -> Result:
    """Import a graph, restore its variables, run it, train ten steps, and run it again."""
    with tf.Graph().as_default() as built:
        saver = tf.train.import_meta_graph(f"{prefix}.meta", clear_devices=True)
        with tf.Session(config=tf.ConfigProto(device_count={"GPU": 0})) as session:
            saver.restore(session, prefix)
            before = session.run(list(fetches), feeds)
            steps = training(built)
            every = {**labels(built, steps, feeds), **feeds}
            for _ in range(10):
                session.run(steps, every)
            after = session.run(list(fetches), feeds)
            kept = session.run(built.get_collection("variables"))
    return Result(before, after, all(np.isfinite(v).all() for v in kept if v.dtype.kind == "f"))


def training(built: Any) -> list[Any]:
    """Return what applies gradients; BERT's optimizer only assigns."""
    found = [op for op in built.get_operations() if _APPLIES.fullmatch(op.type)]
    if found:
        return found
    initial = {variable.initializer.name for variable in built.get_collection("variables")}
    return [
        op
        for op in built.get_operations()
        if _ASSIGNS.fullmatch(op.type) and op.name not in initial and "save" not in op.name
    ]


def labels(built: Any, steps: Sequence[Any], feeds: Mapping[str, Array]) -> dict[str, Array]:
    """Make up what training is fed besides the inputs, of the sizes that these leave open."""
    seen: set[Any] = set()
    waiting = list(steps)
    while waiting:
        op = waiting.pop()
        if op not in seen:
            seen.add(op)
            waiting += [tensor.op for tensor in op.inputs] + list(op.control_inputs)
    fed = [(built.get_tensor_by_name(name).shape.as_list(), v) for name, v in feeds.items()]
    open_ones = [[n for n, m in zip(np.shape(v), s, strict=True) if m is None] for s, v in fed]
    longest = max(open_ones, key=len)
    found = {}
    for tensor in (op.outputs[0] for op in seen if op.type == "Placeholder"):
        sizes = iter(longest)
        shape = [next(sizes) if size is None else size for size in tensor.shape.as_list()]
        dtype = np.dtype(tensor.dtype.as_numpy_dtype)
        found[tensor.name] = np.full(shape, 0.5 if dtype.kind == "f" else 0, dtype)
    return found
