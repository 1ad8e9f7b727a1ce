"""Keras models as graphs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from converter.errors import UsageError
from converter.session.library import line_of, tensorflow


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

    if not callable(model) or not hasattr(model, "variables"):
        raise UsageError(
            f"open_keras: a {type(model).__name__} is no Keras model; give the model itself "
            "(tf.keras.models.load_model)"
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
        raise UsageError(f"{name}: it cannot be traced: {line_of(error)}") from None
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
