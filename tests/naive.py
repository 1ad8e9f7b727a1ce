"""Activations as TensorFlow gives them: fetched, or dumped by its debugger in each turn of a loop.

Nothing of the converter has a part in it: the graph is imported by TensorFlow, restored by its own
saver, and run without rewriting.
"""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from converter.variable import Array

Turns = list[Array]


def dumped(
    prefix: str, fetches: Sequence[str], feeds: Mapping[str, Any], tensors: Collection[str]
) -> dict[str, Turns]:
    """Return what each tensor was in a run: one array for each time that it was computed.

    Args:
        prefix: of a checkpoint with its `.meta` beside it.
        fetches: up to where it is run.
        feeds: arrays by the names of tensors.
        tensors: what is dumped; nothing of what is not on the way.
    """
    import tensorflow as tf
    from tensorflow.core.protobuf import meta_graph_pb2
    from tensorflow.python.debug.lib import debug_data, debug_utils

    meta = meta_graph_pb2.MetaGraphDef()
    meta.ParseFromString(Path(f"{prefix}.meta").read_bytes())
    saver, definition = meta.saver_def, meta.graph_def
    for node in definition.node:
        node.device = ""
        # What TensorFlow 2 infers is another shape than what TensorFlow 1 wrote down.
        for key in ("_output_shapes", "_class"):
            node.attr.pop(key, None)
    wanted = [_of(name) for name in (*fetches, *tensors, saver.filename_tensor_name)]
    definition = tf.compat.v1.graph_util.extract_sub_graph(
        definition, sorted({*wanted, saver.restore_op_name})
    )
    config = tf.compat.v1.ConfigProto(inter_op_parallelism_threads=1)
    config.graph_options.rewrite_options.disable_meta_optimizer = True
    config.graph_options.optimizer_options.opt_level = -1
    options = tf.compat.v1.RunOptions(output_partition_graphs=True)
    told = tf.compat.v1.RunMetadata()
    with (
        tf.Graph().as_default() as graph,
        tempfile.TemporaryDirectory() as directory,
        tf.compat.v1.Session(graph=graph, config=config) as session,
    ):
        tf.import_graph_def(definition, name="")
        session.run(saver.restore_op_name, {saver.filename_tensor_name: prefix})
        given = {_full(name): np.asarray(value) for name, value in feeds.items()}
        found = {name: [given[_full(name)]] for name in tensors if _full(name) in given}
        alone = [name for name in tensors if name not in found and "/while/" not in name]
        values = session.run([_full(name) for name in alone], given)
        found |= {name: [value] for name, value in zip(alone, values, strict=True)}
        # What is computed in a loop cannot be fetched.
        asked = [name for name in tensors if name not in found]
        for name in asked:
            debug_utils.add_debug_tensor_watch(
                options, _of(name), _port(name), "DebugIdentity", [f"file://{directory}"]
            )
        if not asked:
            return found
        session.run(list(fetches), given, options=options, run_metadata=told)
        dump = debug_data.DebugDumpDir(directory, partition_graphs=told.partition_graphs)
        for name in asked:
            data = dump.watch_key_to_data(f"{_of(name)}:{_port(name)}:DebugIdentity")
            found[name] = [d.get_tensor() for d in sorted(data, key=lambda d: d.timestamp)]
    return found


def rows(turns: Turns, units: int, lengths: Array | None = None) -> Array:
    """Return the rows (observations, units) of a tensor.

    Its last axis is that of the units, but where it is the one channel of an image of these.

    Args:
        turns: the tensor in each turn.
        units: how many there are.
        lengths: of sequences, of which turn by turn takes a step; None where all rows count.
    """
    kept = [
        values if lengths is None else values[turn < lengths] for turn, values in enumerate(turns)
    ]
    last = -2 if units > 1 and {values.shape[-1] for values in kept} == {1} else -1
    assert {values.shape[last] for values in kept} == {units}
    return np.concatenate([values.reshape(-1, units) for values in kept]).astype(np.float64)


def _of(name: str) -> str:
    return name.partition(":")[0]


def _port(name: str) -> int:
    return int(name.partition(":")[2] or 0)


def _full(name: str) -> str:
    return f"{_of(name)}:{_port(name)}"
