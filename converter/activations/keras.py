"""A Keras model in memory as a checkpoint with a graph."""

from __future__ import annotations

import contextlib
import tempfile
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from converter.checkpoint import Checkpoint, open_checkpoint


def open_keras(model: Any, inputs: Mapping[str, Any] | Sequence[Any] | None = None) -> Checkpoint:
    """Return a Keras model as a checkpoint that can be run and measured.

    The model is traced for inference; its variables have the names that Keras gives them, and the
    values of this moment. What it assigns to, as the states of `stateful=True`, has these values
    again at the beginning of each batch. The graph is in temporary files for as long as the
    checkpoint lives.

    Args:
        model: of Keras 3 on TensorFlow, or of tf_keras.
        inputs: a `tf.TensorSpec` for each input, listed or by the names that the model has for
            them, for a model that does not know its inputs; None to ask the model.

    Raises:
        UsageError: TensorFlow is not installed, the model does not know its inputs, has no
            variables, or cannot be traced.
    """
    from converter.session import write_keras

    with contextlib.ExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="ckpt-converter-"))
        written = write_keras(model, inputs, Path(directory))
        opened = open_checkpoint(written.prefix)
        checkpoint = Checkpoint(
            [opened[name] for name in written.variables],
            path=Path(written.name),
            name=written.name,
            format=opened.format,
            files=opened.files,
            meta=opened.meta,
            is_in_memory=True,
        )
        weakref.finalize(checkpoint, stack.pop_all().close)
    return checkpoint
