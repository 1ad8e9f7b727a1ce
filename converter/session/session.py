"""A graph with values, ready to be run.

Of a TF1 graph nothing old is needed: it is cut down to what the outputs need, imported, and its
variables are given the values that our readers read.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
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
from converter.session.calls import Calls
from converter.session.library import line_of, tensorflow
from converter.session.queues import Emptying, Masked, Queue
from converter.variable import Array, Variable

_MAX_THREADS = 4


class RunError(ConverterError):
    """The graph does not run with what it was fed."""


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
        self._errors: type[Exception] = tf.errors.OpError
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
            self._emptying = {queue.name: Emptying(tf, queue) for queue in queues}
        self._found: dict[Tensor, Any] = {}
        self._wanted: dict[tuple[Tensor, ...], tuple[list[Tensor], list[Any]]] = {}
        self._session, self._calls, self._little = self._open(tf)
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
        outputs, taken = self._taken(also)
        given = {**self._feeds, **feeds}
        values = {self._tensor(Tensor(self._pruned.fed[t])): v for t, v in given.items()}
        found = self._called(lambda: self._calls.run(taken, values))
        return dict(zip(outputs, map(np.asarray, found), strict=True))

    def draw_again(self) -> None:
        """Let the next run draw the random numbers that the first one drew."""
        if self._forward.random and not self._is_fresh:
            self._reopen()

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
                    f"{losses[0]}: {line_of(error)}"
                ) from None
        # Loops and branches that are functions give out more now than a session knows that ran.
        self._reopen()
        return [_gradient(*pair) for pair in zip(names, found, strict=True) if pair[1] is not None]

    def held(self) -> dict[str, int]:
        """Return how many elements each queue of the rewritten graph holds, by their names."""
        sizes = [one.size for one in self._emptying.values()]
        found = dict(
            zip(self._emptying, self._called(partial(self._little.run, sizes, {})), strict=True)
        )
        for name, one in self._emptying.items():
            if found[name] and not one.is_made:
                first = self._run(one.first, {})
                with self._graph.as_default():
                    one.make(tensorflow(), first)
        return {name: int(size) for name, size in found.items()}

    def dequeue(self, name: str, count: int) -> Iterator[list[list[Masked]]]:
        """Take what a queue of the rewritten graph holds, some elements at a time.

        Args:
            name: of the queue.
            count: how many elements are taken; it holds as many.

        Yields:
            What was in each place of the elements.

        Raises:
            RunError: what is in the queue is not as the queue says.
        """
        one = self._emptying[name]
        for taking in one.steps(count):
            values = self._called(partial(self._little.run, taking.fetches, {}))
            yield taking.places(values)

    def _taken(self, also: Sequence[Tensor]) -> tuple[list[Tensor], list[Any]]:
        """Return the outputs and what else is wanted, and TensorFlow's tensors of these."""
        key = tuple(also)
        if key not in self._wanted:
            outputs = [*(output.tensor for output in self._forward.outputs), *also]
            taken = [self._tensor(self._forward.instead.get(t, t)) for t in outputs]
            self._wanted[key] = outputs, taken
        return self._wanted[key]

    def _start_again(self, *, draw_again: bool) -> None:
        """Set back what the last run changed: states, and what random numbers come next."""
        if draw_again:
            self.draw_again()
        if not self._is_fresh:
            self._assign(self._pruned.changed)

    def _reopen(self) -> None:
        self._session.close()
        self._session, self._calls, self._little = self._open(tensorflow())
        self._initialize()
        self._is_fresh = True

    def _open(self, tf: Any) -> tuple[Any, Calls, Calls]:
        """Return a session, its runs of the model, and its runs of little."""
        session = tf.compat.v1.Session(graph=self._graph, config=_config(tf))
        return session, Calls(session), Calls(session, in_caller=True)

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
                f"graph: {line_of(error)}; choose what to compute (--fetch)"
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
        self._assign(self._assigns)

    def _assign(self, names: Iterable[str]) -> None:
        """Give variables the values that they begin with."""
        for name in names:
            if name not in self._assigns:
                continue
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
        try:
            return compute()
        except (self._errors, ValueError, TypeError) as error:
            raise RunError(
                f"{self._forward.graph.path}: it does not run: {line_of(error)}"
            ) from None


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
