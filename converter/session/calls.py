"""Runs of a session that repeat: what is fed and fetched is looked up once.

`Session.run` looks each of them up in each run, which takes longer than a small model does where
many tensors are fetched. What Keras of TensorFlow 1 used instead is not public, but still there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from converter.session.library import tensorflow
from converter.variable import Array


class Calls:
    """Runs tensors of a session.

    Args:
        session: of TensorFlow.
        in_caller: compute in the thread that calls, as handing over to another takes longer than
            little does.
    """

    def __init__(self, session: Any, *, in_caller: bool = False) -> None:
        self._session = session
        self._in_caller = in_caller
        self._made: dict[tuple[tuple[str, ...], ...], Callable[..., list[Array]]] = {}

    def run(self, fetches: Sequence[Any], feeds: Mapping[Any, Array]) -> list[Array]:
        """Return the values of tensors, as `Session.run` does.

        Args:
            fetches: tensors.
            feeds: a value for each tensor that is fed.

        Raises:
            ValueError: a value has not the shape of its tensor.
            tensorflow.errors.OpError: they cannot be computed.
        """
        wanted = tuple(dict.fromkeys(tensor.name for tensor in fetches))
        fed = tuple(tensor.name for tensor in feeds)
        make = getattr(self._session, "_make_callable_from_options", None)
        if make is None or not set(wanted).isdisjoint(fed):
            values: list[Array] = self._session.run(fetches, feeds, _options(self._in_caller))
            return values
        if (wanted, fed) not in self._made:
            self._made[wanted, fed] = make(self._callable(wanted, fed))
        given = [_fitting(tensor, value) for tensor, value in feeds.items()]
        found = dict(zip(wanted, self._made[wanted, fed](*given), strict=True))
        return [found[tensor.name] for tensor in fetches]

    def _callable(self, fetches: Sequence[str], feeds: Sequence[str]) -> Any:
        tensorflow()
        from tensorflow.core.protobuf import config_pb2

        options = _options(self._in_caller)
        return config_pb2.CallableOptions(fetch=fetches, feed=feeds, run_options=options)


def _options(in_caller: bool) -> Any:
    return tensorflow().compat.v1.RunOptions(inter_op_thread_pool=-1 if in_caller else 0)


def _fitting(tensor: Any, value: Array) -> Array:
    found = np.asarray(value, tensor.dtype.as_numpy_dtype)
    if not tensor.shape.is_compatible_with(found.shape):
        raise ValueError(
            f"{tensor.name} takes {list(tensor.shape)}, and was fed {list(found.shape)}"
        )
    return found
