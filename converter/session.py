"""Runs a checkpoint's own graph. The only room that imports TensorFlow.

Of a TF1 graph nothing old is needed: it is cut down to what the outputs need, imported, and its
variables are given the values that our readers read.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from converter.closing import Closing
from converter.dtype import BY_TENSORFLOW, DType
from converter.errors import ConverterError, InputError, UsageError
from converter.forward.find import Forward
from converter.forward.losses import Gradient
from converter.forward.prune import prune
from converter.forward.variables import Held, check_shape
from converter.graph.node import Tensor, tensor
from converter.variable import Array, Variable

_MAX_THREADS = 4


class RunError(ConverterError):
    """The graph does not run with what it was fed."""


def tensorflow() -> Any:
    """Return TensorFlow.

    Raises:
        UsageError: it is not installed.
    """
    # What TensorFlow says while it is imported tells nobody anything.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    # These kernels round differently from the ones that the model was trained with.
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    try:
        import tensorflow as tf
    except ImportError as error:
        raise UsageError(
            f"running a graph needs TensorFlow, which is not installed ({error}); "
            "pip install 'ckpt-converter[tensorflow]'"
        ) from None
    tf.get_logger().setLevel("ERROR")
    return tf


def can_run() -> Callable[[str], bool]:
    """Return what tells of an op whether this TensorFlow has it."""
    tensorflow()
    from tensorflow.python.framework import op_def_registry

    return lambda op: op_def_registry.get(op) is not None


class Session(Closing):
    """A graph with the values of a checkpoint's variables, ready to be run.

    It is a context manager, which frees what it holds.

    Args:
        forward: what is run of the graph.
        variables: the checkpoint's variables, by the keys that the graph's savers say.
        fed: the tensors that each run will be fed, with their dtypes.

    Raises:
        InputError: the checkpoint lacks a variable, a shape is another, or the graph is damaged.
        UsageError: TensorFlow is not installed, or cannot import the graph.
    """

    def __init__(
        self,
        forward: Forward,
        variables: Mapping[str, Variable],
        fed: Mapping[Tensor, DType],
    ) -> None:
        tf = tensorflow()
        self._forward = forward
        self._variables = variables
        # Constants of a frozen graph are replaced where other values are given.
        self._constants = {
            Tensor(name): where
            for name, where in forward.variables.items()
            if forward.graph.nodes[name].op == "Const"
        }
        dtypes = {t: forward.graph.dtype(t) for t in self._constants}
        known = {t: dtype for t, dtype in dtypes.items() if dtype is not None}
        self._pruned = prune(forward, {**known, **fed})
        self._graph = tf.Graph()
        with self._graph.as_default():
            self._import(tf)
            self._assigns = self._make_assigns(tf)
        self._session = self._open(tf)
        self._feeds = {t: self._read(t.node, where) for t, where in self._constants.items()}
        self._assigned: dict[str, Array] = {}
        self._initialize()
        self._is_fresh = True

    def close(self) -> None:
        """Free what it holds."""
        self._session.close()

    @property
    def variables(self) -> list[str]:
        """The nodes that can be assigned to: all of the forward part that are run."""
        return [*(constant.node for constant in self._constants), *self._assigns]

    def assign(self, name: str, value: Array) -> None:
        """Give a variable of the graph another value of the same shape.

        Args:
            name: the variable's node.
            value: in any dtype that can be cast to the variable's.
        """
        if Tensor(name) in self._constants:
            self._feeds[Tensor(name)] = value.astype(self._feeds[Tensor(name)].dtype)
            return
        self._assigned[name] = value
        self._set(name, value)

    def run(
        self, feeds: Mapping[Tensor, Array], also: Sequence[Tensor] = ()
    ) -> dict[Tensor, Array]:
        """Compute the outputs: the same for the same values, however often.

        Args:
            feeds: a value for each tensor that the session was made for.
            also: what is computed on the way, and is wanted too.

        Raises:
            RunError: the graph does not run with these.
        """
        if not self._is_fresh:
            self._start_again()
        self._is_fresh = False
        outputs = [*(output.tensor for output in self._forward.outputs), *also]
        taken = [self._tensor(self._forward.instead.get(t, t)) for t in outputs]
        given = {**self._feeds, **feeds}
        values = {self._tensor(Tensor(self._pruned.fed[t])): v for t, v in given.items()}
        return dict(zip(outputs, map(np.asarray, self._run(taken, values)), strict=True))

    def gradients(self, losses: Sequence[Tensor]) -> list[Gradient]:
        """Add to the graph the gradients of the sum of its losses, by all variables that are run.

        `run` gives their values where it is asked for their tensors, too.

        Raises:
            UsageError: TensorFlow cannot tell them.
        """
        tf = tensorflow()
        names = list(self._assigns)
        with self._graph.as_default():
            of = [self._tensor(loss) for loss in losses]
            by = [self._graph.get_tensor_by_name(f"{name}:0") for name in names]
            try:
                found = tf.compat.v1.gradients(of, by)
            # Loops of old graphs cannot be told, and what is raised then differs by the op.
            except (
                LookupError,
                ValueError,
                TypeError,
                AttributeError,
                NotImplementedError,
            ) as error:
                raise UsageError(
                    f"{self._forward.graph.path}: TensorFlow {tf.__version__} cannot tell the "
                    f"gradients of {losses[0]}: {_line(error)}"
                ) from None
        gradients = []
        for name, gradient in zip(names, found, strict=True):
            if isinstance(gradient, tf.IndexedSlices):
                values, rows = gradient.values.name, tensor(gradient.indices.name)
                gradients.append(Gradient(name, tensor(values), rows))
            elif gradient is not None:
                gradients.append(Gradient(name, tensor(gradient.name), None))
        return gradients

    def _start_again(self) -> None:
        """Set back what the last run changed: states, and what random numbers come next."""
        if self._forward.random:
            self._session.close()
            self._session = self._open(tensorflow())
        if self._forward.random or self._pruned.is_changing:
            self._initialize()

    def _open(self, tf: Any) -> Any:
        return tf.compat.v1.Session(graph=self._graph, config=_config(tf))

    def _set(self, name: str, value: Array) -> None:
        operation, placeholder = self._assigns[name]
        value = value.astype(placeholder.dtype.as_numpy_dtype, copy=False)
        self._session.run(operation, {placeholder: value})

    def _tensor(self, source: Tensor) -> Any:
        try:
            return self._graph.get_tensor_by_name(f"{source.node}:{source.port}")
        except (KeyError, ValueError):
            raise UsageError(
                f"{source}: {source.node} has no such output; choose another (--fetch)"
            ) from None

    def _import(self, tf: Any) -> None:
        definition = tf.compat.v1.GraphDef.FromString(self._pruned.definition)
        meta = self._forward.graph.definition.meta
        producer = None
        if meta is not None and meta.meta_info_def.stripped_op_list:
            from tensorflow.core.framework import op_def_pb2

            producer = op_def_pb2.OpList.FromString(meta.meta_info_def.stripped_op_list)
        try:
            tf.graph_util.import_graph_def(definition, name="", producer_op_list=producer)
        except (ValueError, TypeError, KeyError, tf.errors.OpError) as error:
            raise UsageError(
                f"{self._forward.graph.path}: TensorFlow {tf.__version__} cannot import the "
                f"graph: {_line(error)}; choose what to compute (--fetch)"
            ) from None

    def _make_assigns(self, tf: Any) -> dict[str, tuple[Any, Any]]:
        """Make, for each variable, the operation that gives it a value, and where that is fed."""
        made = {}
        for name in self._forward.variables:
            if Tensor(name) in self._constants or name not in self._pruned.nodes:
                continue
            variable = self._graph.get_tensor_by_name(f"{name}:0")
            node = self._graph.get_operation_by_name(name)
            placeholder = tf.compat.v1.placeholder(node.get_attr("dtype"))
            if variable.dtype == tf.resource:
                made[name] = tf.raw_ops.AssignVariableOp(resource=variable, value=placeholder)
            else:
                made[name] = tf.raw_ops.Assign(
                    ref=variable, value=placeholder, validate_shape=False
                ).op
            made[name] = (made[name], placeholder)
        return made

    def _initialize(self) -> None:
        # A table can depend on another, but then the graph has that fill it.
        for name in self._forward.fills:
            self._run([self._graph.get_operation_by_name(name)], {})
        for name in self._assigns:
            if name in self._assigned:
                value = self._assigned[name]
            elif name in self._forward.initial:
                (value,) = self._run([self._tensor(self._forward.initial[name])], {})
            else:
                value = self._read(name, self._forward.variables[name])
            self._set(name, value)

    def _read(self, name: str, where: Held) -> Array:
        graph = self._forward.graph
        variable = self._variables.get(where.key)
        if variable is None:
            raise InputError(
                f"{graph.path}: its variable {name} is needed, and the checkpoint has no "
                f"{where.key}"
            )
        dtype = check_shape(graph, name, where, variable)
        value = where.read(variable)
        if dtype is None or dtype.numpy is None or value.dtype == dtype.numpy:
            return value
        return value.astype(dtype.numpy)

    def _run(self, fetches: Sequence[Any], feeds: Mapping[Any, Array]) -> list[Any]:
        tf = tensorflow()
        try:
            values: list[Any] = self._session.run(fetches, feeds)
        except (tf.errors.OpError, ValueError, TypeError) as error:
            raise RunError(f"{self._forward.graph.path}: it does not run: {_line(error)}") from None
        return values


def dtypes_of(forward: Forward, values: Mapping[Tensor, Array]) -> dict[Tensor, DType]:
    """Return the dtype in which each tensor is fed: its own, or that of its value."""
    tf = tensorflow()
    return {
        source: forward.graph.dtype(source)
        or BY_TENSORFLOW[tf.as_dtype(value.dtype).as_datatype_enum]
        for source, value in values.items()
    }


def _config(tf: Any) -> Any:
    config = tf.compat.v1.ConfigProto(
        device_count={"GPU": 0},
        intra_op_parallelism_threads=min(_MAX_THREADS, os.cpu_count() or 1),
        inter_op_parallelism_threads=1,
        allow_soft_placement=True,
    )
    # Rewriting costs more than it brings for one run, and rounds differently.
    config.graph_options.rewrite_options.disable_meta_optimizer = True
    return config


def _line(error: Exception) -> str:
    """Return what an error of TensorFlow says is wrong, without where and the stack."""
    text = getattr(error, "message", None) or str(error)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    nodes = [number for number, line in enumerate(lines) if line.startswith("Node: ")]
    # "Graph execution error:", where each node was made, its name, and then what is wrong.
    lines = lines[nodes[-1] + 1 :] if nodes and nodes[-1] + 1 < len(lines) else lines
    return lines[0][:300] if lines else type(error).__name__
