"""TensorFlow itself, and what it says."""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Callable, Iterator
from typing import Any

from converter.errors import UsageError

_WHERE = re.compile(r"\{\{(function_)?node [^}]*\}\}\s*")


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
        with _unheard():
            import tensorflow as tf
    except ImportError as error:
        raise UsageError(
            f"running a graph needs TensorFlow, which is not installed ({error}); "
            "pip install 'ckpt-converter[tensorflow]'"
        ) from None
    tf.get_logger().setLevel("ERROR")
    return tf


@contextlib.contextmanager
def _unheard() -> Iterator[None]:
    """Drop what is written to standard error by what has not read yet how much it is to say."""
    with contextlib.ExitStack() as stack:
        is_to_say_nothing = os.environ["TF_CPP_MIN_LOG_LEVEL"] == "3"
        if is_to_say_nothing and "tensorflow" not in sys.modules:
            with contextlib.suppress(OSError):  # It may be closed.
                kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
                for descriptor in (kept, nowhere):
                    stack.callback(os.close, descriptor)
                os.dup2(nowhere, 2)
                stack.callback(os.dup2, kept, 2)
        yield


def take_fastest_kernels() -> None:
    """Let TensorFlow choose its kernels, which it does once in a process, when it is imported.

    Else those are taken that round as the ones did that old models were trained with.
    """
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")


def can_run() -> Callable[[str], bool]:
    """Return what tells of an op whether this TensorFlow has it."""
    tensorflow()
    return lambda op: op_definition(op) is not None


def op_definition(op: str) -> Any:
    """Return the OpDef of an op, or None where this TensorFlow does not have it."""
    tensorflow()
    from tensorflow.python.framework import op_def_registry

    return op_def_registry.get(op)


def line_of(error: Exception) -> str:
    """Return what an error of TensorFlow says is wrong, without where and the stack."""
    text = _WHERE.sub("", getattr(error, "message", None) or str(error))
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    nodes = [number for number, line in enumerate(lines) if line.startswith("Node: ")]
    # "Graph execution error:", where each node was made, its name, and then what is wrong.
    lines = lines[nodes[-1] + 1 :] if nodes and nodes[-1] + 1 < len(lines) else lines
    return lines[0][:300] if lines else type(error).__name__
