"""Keras models as graphs."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from converter.errors import UsageError
from converter.session.library import line_of, tensorflow
from converter.session.traced import write_traced

_STYLE = re.compile(r"\x1b\[\d*m")
_CALLING = "Exception encountered when calling"

Inputs = Mapping[str, Any] | Sequence[Any] | None
"""TensorSpecs in the structure in which a model takes them; None to ask the model."""


@dataclass(frozen=True, slots=True)
class Written:
    """A Keras model as a checkpoint with a graph.

    Attributes:
        name: of the model.
        prefix: of the files.
        variables: the names of its variables, in their order.
    """

    name: str
    prefix: Path
    variables: tuple[str, ...]


def write_keras(model: Any, inputs: Inputs, directory: Path) -> Written:
    """Trace a Keras model for inference, and write it as a checkpoint with a graph.

    Args:
        model: the model.
        inputs: what it is called with.
        directory: to write into.

    Raises:
        UsageError: TensorFlow is not installed, the model does not know its inputs, has no
            variables, or cannot be traced.
    """
    tf = tensorflow()
    # Of a model of tf_keras that has none yet it is an error to ask for them.
    if not callable(model) or "variables" not in dir(model):
        raise UsageError(
            f"open_keras: a {type(model).__name__} is no Keras model; give the model itself "
            "(tf.keras.models.load_model)"
        )
    name = str(getattr(model, "name", "model"))
    structure = inputs if inputs is not None else _known_inputs(tf, model)
    if structure is None or not tf.nest.flatten(structure):
        raise UsageError(
            f"{name}: it does not know its inputs yet; call it once, or give them "
            "(inputs=[tf.TensorSpec(...)])"
        )
    try:
        specs = _specs(tf, structure)
        concrete = _concrete(tf, model, structure, specs)
        prefix = directory / "model"
        names = write_traced(concrete, [spec.name for spec in specs], _paths(model), prefix)
    except (ValueError, TypeError, NotImplementedError, tf.errors.OpError) as error:
        raise UsageError(f"{name}: it cannot be traced: {_line_of(error)}") from None
    if not names:
        raise UsageError(f"{name}: it runs without any variable; there is nothing to measure")
    return Written(name, prefix, tuple(names))


def _line_of(error: Exception) -> str:
    """Return what is wrong, without the layers that Keras tells in bold that it was in."""
    lines = _STYLE.sub("", str(error)).splitlines()
    said = [line for line in lines if line.strip() and not line.startswith(_CALLING)]
    is_of_keras = bool(lines) and lines[0].startswith(_CALLING)
    return line_of(ValueError(said[0])) if is_of_keras and said else line_of(error)


def _known_inputs(tf: Any, model: Any) -> Any:
    """Return what a model says it is called with: tensors or specs of Keras; None if nothing."""
    for name in ("input", "inputs"):
        try:
            known = getattr(model, name, None)
        except (ValueError, AttributeError):  # Keras raises these where there is none, or several.
            continue
        if known is not None and tf.nest.flatten(known):
            return known
    if callable(said := getattr(model, "save_spec", None)):  # tf_keras, once it was called.
        args: Sequence[Any] = (said() or ((), {}))[0]
        return args[0] if len(args) == 1 else None
    built: Mapping[str, Any] = getattr(model, "get_build_config", dict)() or {}
    return _shaped(tf, built.get("input_shape"), getattr(model, "input_dtype", None) or "float32")


def _shaped(tf: Any, shapes: Any, dtype: str) -> Any:
    """Return a TensorSpec in the place of each shape, with any number of rows."""
    if isinstance(shapes, Mapping):
        return {name: _shaped(tf, shape, dtype) for name, shape in shapes.items()}
    if not shapes:
        return None
    if all(size is None or isinstance(size, int) for size in shapes):
        return tf.TensorSpec((None, *shapes[1:]), dtype)
    return [_shaped(tf, shape, dtype) for shape in shapes]


def _specs(tf: Any, structure: Any) -> list[Any]:
    """Return a TensorSpec with a name for each input."""
    keys = sorted(structure) if isinstance(structure, Mapping) else []
    specs = []
    for number, one in enumerate(tf.nest.flatten(structure)):
        kind = getattr(one, "type_spec", one)
        is_other = isinstance(kind, tf.TypeSpec) and not isinstance(kind, tf.TensorSpec)
        if is_other or getattr(one, "sparse", False) or not hasattr(one, "dtype"):
            raise TypeError(f"its input {number} is {kind}, and only dense tensors are taken")
        name = (getattr(one, "name", None) or "").partition(":")[0]
        name = name or (keys[number] if number < len(keys) else f"input_{number}")
        specs.append(tf.TensorSpec(tuple(one.shape), one.dtype, name))
    return specs


def _concrete(tf: Any, model: Any, structure: Any, specs: Sequence[Any]) -> Any:
    """Return a model as a function for inference, of tensors alone."""
    alone = isinstance(structure, Sequence) and len(structure) == 1
    parameters = inspect.signature(getattr(model, "call", model)).parameters.values()
    is_told = any(p.name == "training" or p.kind is p.VAR_KEYWORD for p in parameters)
    told = {"training": False} if is_told else {}

    def call(*given: Any) -> Any:
        taken = given[0] if alone else tf.nest.pack_sequence_as(structure, list(given))
        return model(taken, **told)

    return tf.function(call, autograph=False).get_concrete_function(*specs)


def _paths(model: Any) -> dict[int, str]:
    """Return what Keras calls each variable of a model, by the identity of its handle."""
    found: dict[int, str] = {}
    for variable in model.variables:
        held = getattr(variable, "value", variable)
        held = held if hasattr(held, "handle") else variable
        if not hasattr(held, "handle"):  # What tf_keras has in the place of a vocabulary.
            continue
        path = getattr(variable, "path", None) or variable.name.partition(":")[0]
        found.setdefault(id(held.handle), path)
    return found
