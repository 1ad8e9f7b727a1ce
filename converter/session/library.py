"""TensorFlow itself, and what it says."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
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


def line_of(error: Exception) -> str:
    """Return what an error of TensorFlow says is wrong, without where and the stack."""
    text = _WHERE.sub("", getattr(error, "message", None) or str(error))
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    nodes = [number for number, line in enumerate(lines) if line.startswith("Node: ")]
    # "Graph execution error:", where each node was made, its name, and then what is wrong.
    lines = lines[nodes[-1] + 1 :] if nodes and nodes[-1] + 1 < len(lines) else lines
    return lines[0][:300] if lines else type(error).__name__
