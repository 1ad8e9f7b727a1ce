"""A Keras model in memory as a checkpoint with a graph."""

from __future__ import annotations

import tempfile
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from converter.checkpoint import Checkpoint, open_checkpoint


def open_keras(model: Any, inputs: Sequence[Any] | None = None) -> Checkpoint:
    """Return a Keras model as a checkpoint that can be run and measured.

    The model is traced for inference; its variables have the names that Keras gives them, and the
    values of this moment. The graph is in a temporary file for as long as the checkpoint lives.

    Args:
        model: of Keras 3 on TensorFlow, or of tf_keras.
        inputs: a `tf.TensorSpec` for each input, for a model that does not know its inputs; None
            to ask the model.

    Raises:
        UsageError: TensorFlow is not installed, the model does not know its inputs, or it cannot
            be traced.
    """
    from converter.session import freeze

    frozen = freeze(model, inputs)
    directory = tempfile.TemporaryDirectory(prefix="ckpt-converter-")
    path = Path(directory.name) / f"{frozen.name}.pb"
    path.write_bytes(frozen.definition)
    opened = open_checkpoint(path)
    # Other constants of the model look like variables in a frozen graph.
    variables = [opened[name] for name in frozen.variables if name in opened]
    checkpoint = Checkpoint(
        variables,
        # What errors are about is the model, and not where its graph lies for now.
        path=Path(frozen.name),
        name=frozen.name,
        format=opened.format,
        files=opened.files,
    )
    weakref.finalize(checkpoint, directory.cleanup)
    return checkpoint
