"""What names and shapes say about each other."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from converter.dtype import BY_NAME
from converter.names.optimizers import Shape
from converter.variable import Variable

MAX_DEPTH = 64
"""Deeper nesting is no scope that anybody wrote, and walking it would take quadratic time."""

Fits = Callable[[Shape], bool]

_NUMBERED = re.compile(r"(.+)_([1-9]\d{0,8})", re.DOTALL)
_REAL_OR_COMPLEX = {name for name in BY_NAME if "float" in name or "complex" in name}


def scope_of(name: str, depth: int | None = None) -> str:
    """Return the scope that a name stands in, or the first `depth` levels of it.

    `a/b/kernel` stands in `a/b`, which is `a` at depth 1; `kernel` stands in no scope, ``.
    """
    scope = name.rpartition("/")[0]
    return scope if depth is None else "/".join(scope.split("/", depth)[:depth])


def unnumbered(leaf: str) -> tuple[str, int]:
    """Split `Adam_1` into `Adam` and 1; `Adam` has the number 0."""
    match = _NUMBERED.fullmatch(leaf)
    return (match[1], int(match[2])) if match else (leaf, 0)


def owner(variables: Mapping[str, Variable], stem: str, fits: Fits) -> str | None:
    """Return the variable named `stem`, whatever scopes stand before its name.

    A slot that is made in a scope carries it before the name of its variable:
    `outer/train/outer/w/Adam` is one of `outer/w`. The longest name wins.
    """
    tail = stem
    for _ in range(MAX_DEPTH):
        variable = variables.get(tail)
        if tail and variable is not None and fits(variable.shape):
            return tail
        _, slash, tail = tail.partition("/")
        if not slash:
            break
    return _of_partition(variables, stem, fits)


def _of_partition(variables: Mapping[str, Variable], stem: str, fits: Fits) -> str | None:
    """Return the partitioned variable that TensorFlow 1 made a mangled slot name of.

    It cuts as many characters from the front of the slot's name as the name of the part has,
    which is the wrong place where the slot is made in a scope: the slot of the part `w/part_0`,
    made in `train`, is stored as `w/art_0/Adagrad`, and `dnn/w/t_0/Adagrad` comes from `dnn`.

    References:
        tensorflow/python/training/slot_creator.py, _create_slot_var.
    """
    if not stem[-1:].isdigit():
        return None
    end = len(stem)
    for _ in range(MAX_DEPTH):
        end = stem.rfind("/", 0, end)
        if end < 0:
            return None
        name = stem[:end]
        variable = variables.get(name)
        if variable is not None and fits(variable.shape):
            part, left = f"{name}/part_", stem[end + 1 :].rstrip("0123456789")
            return name if part.endswith(left) or left.endswith(part) else None
    return None


def is_scalar(variable: Variable | None) -> bool:
    return variable is not None and variable.shape == () and variable.dtype.is_number


def is_count(variable: Variable | None) -> bool:
    return is_scalar(variable) and variable is not None and "int" in variable.dtype.name


def is_state(variable: Variable) -> bool:
    """Whether an optimizer could have written it: real or complex numbers."""
    return variable.dtype.name in _REAL_OR_COMPLEX
