"""Runs a checkpoint's own graph. The only room that imports TensorFlow.

Of a TF1 graph nothing old is needed: it is cut down to what the outputs need, imported, and its
variables are given the values that our readers read.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
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
    return lambda op: op_definition(op) is not None


def op_definition(op: str) -> Any:
    """Return the OpDef of an op, or None where this TensorFlow does not have it."""
    tensorflow()
    from tensorflow.python.framework import op_def_registry

    return op_def_registry.get(op)


@dataclass(frozen=True, slots=True)
class Queue:
    """A queue that a rewritten graph puts the values of a tensor into.

    Attributes:
        name: its shared name.
        dtype: TensorFlow's number for the dtype of what is in it.
        axis: that holds the units.
        size: of this axis.
        keeps: the value for which a row counts of the mask that is put in with each tensor; None
            where there is no mask.
    """

    name: str
    dtype: int
    axis: int
    size: int
    keeps: bool | None


Rewrite = Callable[[bytes], tuple[bytes, Sequence[Queue]]]
"""Changes a serialized GraphDef before it is run, and says what queues it fills."""


class Session(Closing):
    """A graph with the values of a checkpoint's variables, ready to be run.

    It is a context manager, which frees what it holds.

    Args:
        forward: what is run of the graph.
        variables: the checkpoint's variables, by the keys that the graph's savers say.
        fed: the tensors that each run will be fed, with their dtypes.
        rewrite: changes the graph before it is run; None to run it as it is.

    Raises:
        InputError: the checkpoint lacks a variable, a shape is another, or the graph is damaged.
        UsageError: TensorFlow is not installed, or cannot import the graph.
    """

    def __init__(
        self,
        forward: Forward,
        variables: Mapping[str, Variable],
        fed: Mapping[Tensor, DType],
        *,
        rewrite: Rewrite | None = None,
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
        definition = self._pruned.definition
        queues: Sequence[Queue] = ()
        if rewrite is not None:
            definition, queues = rewrite(definition)
        self._graph = tf.Graph()
        with self._graph.as_default():
            self._import(tf, definition)
            self._assigns = self._make_assigns(tf)
            self._emptying = {queue.name: _emptying(tf, queue) for queue in queues}
        self._found: dict[Tensor, Any] = {}
        self._session, self._sizes = self._open(tf)
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

    @property
    def nodes(self) -> frozenset[str]:
        """The names of the nodes that are run."""
        return self._pruned.nodes

    def run(
        self,
        feeds: Mapping[Tensor, Array],
        also: Sequence[Tensor] = (),
        *,
        draw_again: bool = True,
    ) -> dict[Tensor, Array]:
        """Compute the outputs: the same for the same values, however often.

        Args:
            feeds: a value for each tensor that the session was made for.
            also: what is computed on the way, and is wanted too.
            draw_again: draw the same random numbers as the run before, and not the next ones.

        Raises:
            RunError: the graph does not run with these.
        """
        if not self._is_fresh:
            self._start_again(draw_again=draw_again)
        self._is_fresh = False
        outputs = [*(output.tensor for output in self._forward.outputs), *also]
        taken = [self._tensor(self._forward.instead.get(t, t)) for t in outputs]
        given = {**self._feeds, **feeds}
        values = {self._tensor(Tensor(self._pruned.fed[t])): v for t, v in given.items()}
        return dict(zip(outputs, map(np.asarray, self._run(taken, values)), strict=True))

    def gradients(self, losses: Sequence[Tensor]) -> list[Gradient]:
        """Add the gradients of losses, by all variables, to the graph, for `run` to give.

        Raises:
            UsageError: TensorFlow cannot tell them.
        """
        names = list(self._assigns)
        with self._graph.as_default():
            of, by = map(self._tensor, losses), [self._tensor(Tensor(name)) for name in names]
            try:
                found = tensorflow().compat.v1.gradients(list(of), by)
            # Loops of old graphs cannot be told, and what is raised differs by the op.
            except (LookupError, ValueError, TypeError, AttributeError) as error:
                raise UsageError(
                    f"{self._forward.graph.path}: TensorFlow cannot tell the gradients of "
                    f"{losses[0]}: {_line(error)}"
                ) from None
        return [_gradient(*pair) for pair in zip(names, found, strict=True) if pair[1] is not None]

    def held(self) -> dict[str, int]:
        """Return how many tensors each queue of the rewritten graph holds, by their names."""
        return dict(zip(self._emptying, self._called(self._sizes), strict=True))

    def dequeue(self, name: str, count: int) -> Array:
        """Take what a queue of the rewritten graph holds; other threads may fill it meanwhile.

        Args:
            name: of the queue.
            count: how many tensors are taken; it holds as many.

        Returns:
            An array (rows, units) in the order in which it was filled.

        Raises:
            RunError: what is in the queue is not as the queue says.
        """
        emptying = self._emptying[name]
        return _counted(
            emptying.queue,
            *self._run(emptying.taken, {emptying.count: np.asarray(count, np.int32)}),
        )

    def _start_again(self, *, draw_again: bool) -> None:
        """Set back what the last run changed: states, and what random numbers come next."""
        draw_again = draw_again and bool(self._forward.random)
        if draw_again:
            self._session.close()
            self._session, self._sizes = self._open(tensorflow())
        if draw_again or self._pruned.is_changing:
            self._initialize()

    def _open(self, tf: Any) -> tuple[Any, Callable[[], Any]]:
        """Return a session, and what tells the sizes of all queues in it."""
        session = tf.compat.v1.Session(graph=self._graph, config=_config(tf))
        return session, session.make_callable([one.size for one in self._emptying.values()])

    def _set(self, name: str, value: Array) -> None:
        operation, placeholder = self._assigns[name]
        value = value.astype(placeholder.dtype.as_numpy_dtype, copy=False)
        self._session.run(operation, {placeholder: value})

    def _tensor(self, source: Tensor) -> Any:
        if source not in self._found:
            try:
                found = self._graph.get_tensor_by_name(f"{source.node}:{source.port}")
            except (KeyError, ValueError):
                raise UsageError(
                    f"{source}: {source.node} has no such output; choose another (--fetch)"
                ) from None
            self._found[source] = found
        return self._found[source]

    def _import(self, tf: Any, serialized: bytes) -> None:
        definition = tf.compat.v1.GraphDef.FromString(serialized)
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
        return self._called(lambda: self._session.run(fetches, feeds))

    def _called(self, compute: Callable[[], list[Any]]) -> list[Any]:
        tf = tensorflow()
        try:
            return compute()
        except (tf.errors.OpError, ValueError, TypeError) as error:
            raise RunError(f"{self._forward.graph.path}: it does not run: {_line(error)}") from None


@dataclass(frozen=True, slots=True)
class Frozen:
    """A Keras model as a graph.

    Attributes:
        name: of the model.
        definition: the serialized GraphDef.
        variables: the names of the constants that stand for variables.
    """

    name: str
    definition: bytes
    variables: tuple[str, ...]


def freeze(model: Any, inputs: Sequence[Any] | None) -> Frozen:
    """Trace a Keras model for inference, its variables constants under the names of Keras.

    Args:
        model: the model.
        inputs: a TensorSpec for each input; None to ask the model.

    Raises:
        UsageError: TensorFlow is not installed, the model does not know its inputs, or it cannot
            be traced.
    """
    tf = tensorflow()
    from tensorflow.python.framework.convert_to_constants import (
        convert_variables_to_constants_v2,
    )

    name = str(getattr(model, "name", "model"))
    known = inputs if inputs is not None else getattr(model, "inputs", None)
    if not known:
        raise UsageError(
            f"{name}: it does not know its inputs yet; call it once, or give them "
            "(inputs=[tf.TensorSpec(...)])"
        )
    specs = [
        tf.TensorSpec(tuple(one.shape), one.dtype, (one.name or f"input_{i}").partition(":")[0])
        for i, one in enumerate(known)
    ]
    try:
        traced = tf.function(lambda *given: model(_as_asked(model, given), training=False))
        concrete = traced.get_concrete_function(*specs)
        definition = convert_variables_to_constants_v2(concrete).graph.as_graph_def()
    except (ValueError, TypeError, tf.errors.OpError) as error:
        raise UsageError(f"{name}: it cannot be traced: {_line(error)}") from None
    handles = {id(handle): inner.op.name for handle, inner in concrete.graph.captures}
    names: dict[str, str] = {}
    for variable in model.variables:
        held = getattr(variable, "value", variable)
        held = held if hasattr(held, "handle") else variable
        path = getattr(variable, "path", None) or variable.name.partition(":")[0]
        constant = handles.get(id(held.handle))
        if constant is not None:
            while path in names.values():
                path += "_"
            names[constant] = path
    _rename_nodes(definition, names)
    return Frozen(name, definition.SerializeToString(), tuple(names.values()))


def _as_asked(model: Any, given: Sequence[Any]) -> Any:
    return given[0] if len(given) == 1 else list(given)


def _rename_nodes(definition: Any, names: Mapping[str, str]) -> None:
    for node in definition.node:
        node.name = names.get(node.name, node.name)
        for number, text in enumerate(node.input):
            control = "^" if text.startswith("^") else ""
            source, colon, port = text.removeprefix("^").partition(":")
            if source in names:
                node.input[number] = f"{control}{names[source]}{colon}{port}"


def _gradient(name: str, found: Any) -> Gradient:
    rows = getattr(found, "indices", None)
    values = found if rows is None else found.values
    return Gradient(name, tensor(values.name), None if rows is None else tensor(rows.name))


def dtypes_of(forward: Forward, values: Mapping[Tensor, Array]) -> dict[Tensor, DType]:
    """Return the dtype in which each tensor is fed: its own, or that of its value."""
    tf = tensorflow()
    return {
        source: forward.graph.dtype(source)
        or BY_TENSORFLOW[tf.as_dtype(value.dtype).as_datatype_enum]
        for source, value in values.items()
    }


@dataclass(frozen=True, slots=True)
class _Emptying:
    """Tensors that empty a queue.

    Attributes:
        queue: which.
        size: how many tensors are in it.
        count: is fed with how many are taken.
        taken: their rows, how many of them count, and masks.
    """

    queue: Queue
    size: Any
    count: Any
    taken: Sequence[Any]


def _emptying(tf: Any, queue: Queue) -> _Emptying:
    types = [queue.dtype] if queue.axis != -1 else [queue.dtype, tf.int32]
    types += [] if queue.keeps is None else [tf.bool]
    count = tf.compat.v1.placeholder(tf.int32, [])
    if queue.axis != -1:
        handle = tf.raw_ops.FIFOQueueV2(component_types=types, shared_name=queue.name)
        taken = [_looping(tf, queue, handle, types, count)]
    else:
        handle = tf.raw_ops.PaddingFIFOQueueV2(
            component_types=types,
            shapes=[[None, queue.size], [2], [None]][: len(types)],
            shared_name=queue.name,
        )
        taken = tf.raw_ops.QueueDequeueManyV2(handle=handle, n=count, component_types=types)
    return _Emptying(queue, tf.raw_ops.QueueSizeV2(handle=handle), count, list(taken))


def _counted(
    queue: Queue, values: Array, shapes: Array | None = None, mask: Array | None = None
) -> Array:
    """Return the rows that count of what was in a queue, which is padded to the longest."""
    if shapes is None:
        return values
    rows = shapes[:, :1]
    if mask is None and (rows == values.shape[1]).all():
        return values.reshape(-1, queue.size)
    counts = np.arange(values.shape[1]) < rows
    if mask is not None and mask.shape[1]:
        # A mask is for the first axis, and stands for all rows behind it.
        counts &= np.repeat(mask == queue.keeps, values.shape[1] // mask.shape[1], axis=1)
    return values[counts]


def _looping(tf: Any, queue: Queue, handle: Any, types: Sequence[Any], count: Any) -> Any:
    """Make the tensor (rows, units) of as many tensors as a queue is to give, by a loop.

    The units are on another axis than the last, where rows would be padded.
    """

    def take(number: Any, taken: Any) -> tuple[Any, Any]:
        value, *mask = tf.raw_ops.QueueDequeueV2(handle=handle, component_types=types)
        if mask:
            counted = tf.reshape(tf.equal(mask[0], queue.keeps), [-1])
            value = tf.gather(value, tf.where(counted)[:, 0])
        rank = tf.rank(value)
        axis = tf.math.floormod(queue.axis, rank)
        order = [tf.range(axis), tf.range(axis + 1, rank), [axis]]
        value = tf.transpose(value, tf.concat(order, 0))
        return number + 1, taken.write(number + 1, tf.reshape(value, [-1, queue.size]))

    taken = tf.TensorArray(
        tf.as_dtype(queue.dtype),
        count + 1,
        element_shape=[None, queue.size],
        infer_shape=False,
        clear_after_read=False,
    )
    # Of no rows at all the concatenation would not know how long they are.
    taken = taken.write(0, tf.zeros([0, queue.size], queue.dtype))
    _, taken = tf.compat.v1.while_loop(
        lambda number, _: number < count, take, [0, taken], parallel_iterations=1
    )
    return taken.concat()


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
