"""A traced function of TensorFlow 2 as a checkpoint: a graph with variables, and their values."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from converter.formats.messages import parse
from converter.graph.functions import inline
from converter.graph.ops import PASSING
from converter.session.library import tensorflow

_SIGNATURE = "serving_default"
_NOT_IN_NAMES = re.compile(r"^[^A-Za-z0-9.]+|[^A-Za-z0-9_.\\/-]")


def write_traced(
    concrete: Any, inputs: Sequence[str], paths: Mapping[int, str], prefix: Path
) -> list[str]:
    """Write a function, with the values that its variables hold now.

    They stay variables, which it can assign to. Lookup tables are filled with what they hold.

    Args:
        concrete: the function, which takes and gives tensors.
        inputs: the names of its inputs.
        paths: the names of variables by the identity of their handles; others keep their own.
        prefix: of the files: those of a checkpoint, and its `.meta` file.

    Returns:
        The names of the variables, in the order of `paths`.

    Raises:
        TypeError: it takes something from outside that is no variable, table or array, or gives
            nothing.
    """
    tf = tensorflow()
    definition = concrete.graph.as_graph_def()
    for node in definition.node:
        # What stands for what comes from outside is replaced.
        node.attr.pop("_class", None)
    held = {id(variable.handle): variable for variable in concrete.graph.variables}
    outside = {id(outer): (outer, inner.op.name) for outer, inner in concrete.graph.captures}
    order = [handle for handle in dict.fromkeys([*paths, *held]) if handle in held]
    taken = {handle: outside.pop(handle)[1] for handle in order if handle in outside}
    dtypes = _looked_up(definition) if outside else {}
    contents = {inner: _contents(tf, outer, inner, dtypes) for outer, inner in outside.values()}
    if not concrete.outputs:
        raise TypeError("it gives no tensors")
    variables: dict[str, Any] = {}
    nodes: dict[str, Any] = {}
    with tf.Graph().as_default() as graph:
        for handle, inner in taken.items():
            variable = held[handle]
            nodes[inner] = _variable(tf, paths.get(handle) or variable.name, variable)
            variables[nodes[inner].op.name] = variable
        for inner, parts in contents.items():
            nodes[inner] = _constant(tf, inner, parts)
        ends = [*concrete.inputs[: len(inputs)], *concrete.outputs]
        ends = _import(tf, definition, nodes, [tensor.name for tensor in ends])
    meta = tf.compat.v1.MetaGraphDef(graph_def=_cut_down(tf, graph, [*ends, *nodes.values()]))
    meta.meta_info_def.tensorflow_version = tf.__version__
    signature = meta.signature_def[_SIGNATURE]
    for name, tensor in zip(inputs, ends, strict=False):
        signature.inputs[name].CopyFrom(_described(tensor))
    for number, tensor in enumerate(ends[len(inputs) :]):
        signature.outputs[f"output_{number}"].CopyFrom(_described(tensor))
    prefix.with_name(f"{prefix.name}.meta").write_bytes(meta.SerializeToString())
    if variables:
        values = [variable.read_value() for variable in variables.values()]
        slices = [""] * len(variables)
        tf.raw_ops.SaveV2(
            prefix=str(prefix),
            tensor_names=list(variables),
            shape_and_slices=slices,
            tensors=values,
        )
    return list(variables)


def _variable(tf: Any, name: str, variable: Any) -> Any:
    name = _NOT_IN_NAMES.sub("_", name.partition(":")[0]).lstrip("_")
    # Two states of a layer may have one name.
    name = tf.compat.v1.get_default_graph().unique_name(name, mark_as_used=False)
    return tf.raw_ops.VarHandleOp(
        dtype=variable.dtype, shape=variable.shape, shared_name=name, name=name
    )


def _looked_up(definition: Any) -> dict[str, tuple[int, int]]:
    """Return the dtypes of the keys and values of tables, which their handles do not say."""
    graph = parse("GraphDef", definition.SerializeToString(), "what was traced")
    nodes = {node.name: node for node in inline(graph, "what was traced").nodes}
    found = {}
    for node in nodes.values():
        if node.op != "LookupTableFindV2" or not node.sources:
            continue
        name = node.sources[0].node
        while name in nodes and nodes[name].op in PASSING and nodes[name].sources:
            name = nodes[name].sources[0].node
        found[name] = (node.attributes["Tin"].type, node.attributes["Tout"].type)
    return found


def _contents(
    tf: Any, outer: Any, name: str, dtypes: Mapping[str, tuple[int, int]]
) -> tuple[Any, ...]:
    """Return an array that a function takes from outside; of a lookup table keys and values.

    Raises:
        TypeError: it is neither.
    """
    if outer.dtype not in (tf.resource, tf.variant):
        return (outer,)
    if name in dtypes:
        of_keys, of_values = dtypes[name]
        found = tf.raw_ops.LookupTableExportV2(table_handle=outer, Tkeys=of_keys, Tvalues=of_values)
        if found.values.shape.rank == 1:
            return tuple(found)
    raise TypeError(f"{name} comes from outside of it, and is no variable and no lookup table")


def _constant(tf: Any, name: str, contents: Sequence[Any]) -> Any:
    """Add an array, or a lookup table that is filled."""
    if len(contents) == 1:
        return tf.constant(contents[0].numpy(), contents[0].dtype, name=name)
    keys, values = (tf.constant(of.numpy(), of.dtype, name=f"{name}/of") for of in contents)
    table = tf.raw_ops.HashTableV2(
        key_dtype=keys.dtype, value_dtype=values.dtype, shared_name=name, name=name
    )
    tf.raw_ops.InitializeTableV2(table_handle=table, keys=keys, values=values, name=f"{name}/fill")
    return table


def _import(tf: Any, definition: Any, nodes: Mapping[str, Any], wanted: Sequence[str]) -> list[Any]:
    """Add a graph, with nodes in the place of its placeholders for what comes from outside.

    Args:
        definition: the GraphDef, which is changed.
        nodes: by the names of the placeholders.
        wanted: the names of tensors in it.

    Returns:
        These tensors.
    """
    kept = [node for node in definition.node if node.name not in nodes]
    del definition.node[:]
    definition.node.extend(kept)
    used = {text.removeprefix("^").partition(":")[0] for node in kept for text in node.input}
    given = {f"{name}:0": node for name, node in nodes.items() if name in used}
    found: list[Any] = tf.graph_util.import_graph_def(definition, given, list(wanted), name="")
    return found


def _cut_down(tf: Any, graph: Any, ends: Sequence[Any]) -> Any:
    """Return a GraphDef without what Keras computes to learn shapes alone."""
    names = {tensor.op.name for tensor in ends}
    names |= {op.name for op in graph.get_operations() if op.type == "InitializeTableV2"}
    definition = graph.as_graph_def(add_shapes=True)
    return tf.compat.v1.graph_util.extract_sub_graph(definition, sorted(names))


def _described(tensor: Any) -> Any:
    from tensorflow.core.protobuf import meta_graph_pb2

    return meta_graph_pb2.TensorInfo(
        name=tensor.name, dtype=tensor.dtype.as_datatype_enum, tensor_shape=tensor.shape.as_proto()
    )
