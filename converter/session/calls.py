"""Runs of a session that repeat: what is fed and fetched is looked up once.

`Session.run` looks each of them up in each run, which takes longer than a small model does where
many tensors are fetched. What Keras of TensorFlow 1 used instead is not public, but still there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
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
        self._made: dict[tuple[int | None, ...], _Call] = {}

    def run(self, fetches: Sequence[Any], feeds: Mapping[Any, Array]) -> list[Array]:
        """Return the values of tensors, as `Session.run` does.

        Args:
            fetches: tensors.
            feeds: a value for each tensor that is fed.

        Raises:
            ValueError: a value has not the shape of its tensor.
            tensorflow.errors.OpError: they cannot be computed.
        """
        # Each call keeps its tensors, so that no others get their numbers.
        key = (*map(id, fetches), None, *map(id, feeds))
        call = self._made.get(key)
        if call is None:
            call = self._made[key] = _Call(self._session, fetches, list(feeds), self._in_caller)
        return call.run(feeds.values())


class _Call:
    """One set of tensors that are fed, and one of those that are fetched."""

    def __init__(
        self, session: Any, fetches: Sequence[Any], feeds: Sequence[Any], in_caller: bool
    ) -> None:
        self._tensors = fetches, feeds
        self._feeds = [_Feed(tensor) for tensor in feeds]
        names = [tensor.name for tensor in fetches]
        wanted = list(dict.fromkeys(names))
        self._places = None if wanted == names else [wanted.index(name) for name in names]
        fed = [tensor.name for tensor in feeds]
        make = getattr(session, "_make_callable_from_options", None)
        options = _options(in_caller)
        self._made: Callable[..., list[Array]]
        if make is None or not set(wanted).isdisjoint(fed):
            self._places = None
            self._made = lambda *given: session.run(
                fetches, dict(zip(feeds, given, strict=True)), options
            )
        else:
            self._made = make(_callable(wanted, fed, options))

    def run(self, values: Iterable[Array]) -> list[Array]:
        given = [feed.fitting(value) for feed, value in zip(self._feeds, values, strict=True)]
        found = self._made(*given)
        return found if self._places is None else [found[place] for place in self._places]


class _Feed:
    """What a tensor takes."""

    def __init__(self, tensor: Any) -> None:
        self._name = tensor.name
        self._sizes = None if tensor.shape.rank is None else tensor.shape.as_list()
        self._dtype = np.dtype(tensor.dtype.as_numpy_dtype)

    def fitting(self, value: Array) -> Array:
        """Return a value as it is fed.

        Raises:
            ValueError: it has another shape.
        """
        found = np.asarray(value, self._dtype)
        wanted, sizes = self._sizes, found.shape
        if wanted is not None and (
            len(sizes) != len(wanted)
            or any(w not in (None, size) for w, size in zip(wanted, sizes, strict=True))
        ):
            raise ValueError(f"{self._name} takes {wanted}, and was fed {list(sizes)}")
        return found


def _callable(fetches: Sequence[str], feeds: Sequence[str], options: Any) -> Any:
    tensorflow()
    from tensorflow.core.protobuf import config_pb2

    return config_pb2.CallableOptions(fetch=fetches, feed=feeds, run_options=options)


def _options(in_caller: bool) -> Any:
    return tensorflow().compat.v1.RunOptions(inter_op_thread_pool=-1 if in_caller else 0)
