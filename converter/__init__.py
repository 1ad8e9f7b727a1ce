"""Convert TensorFlow checkpoints, variable by variable, without TensorFlow.

The whole job is `convert(source, output, strategies)`; `open_checkpoint(path)` gives the variables.
A plugin needs `Strategy` or `Initializer`, `option`, `hookimpl` and the errors.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from converter.activations.file import Measured, merged, read_measured, write_measured
    from converter.activations.keras import open_keras
    from converter.activations.measure import measure
    from converter.activations.moments import Moments
    from converter.checkpoint import Checkpoint, open_checkpoint
    from converter.dtype import DType
    from converter.errors import ConverterError, InputError, PlanError, UsageError
    from converter.hookspecs import hookimpl
    from converter.initializer import Initializer
    from converter.names import Role
    from converter.options import option
    from converter.patterns import by_name, matching, select
    from converter.pipeline import Result, convert
    from converter.resize.coupled import Consumer, Coupled
    from converter.resize.units import Fold, Matrix, Mending, Repair, Units, WidthMap
    from converter.resizer import Resizer
    from converter.strategy import Beside, Strategy
    from converter.structure.axes.axis import Width
    from converter.variable import Array, Region, Stored, Variable, shape_of

__version__ = "0.1.0"

__all__ = [
    "Array",
    "Beside",
    "Checkpoint",
    "Consumer",
    "ConverterError",
    "Coupled",
    "DType",
    "Fold",
    "Initializer",
    "InputError",
    "Matrix",
    "Measured",
    "Mending",
    "Moments",
    "PlanError",
    "Region",
    "Repair",
    "Resizer",
    "Result",
    "Role",
    "Stored",
    "Strategy",
    "Units",
    "UsageError",
    "Variable",
    "Width",
    "WidthMap",
    "__version__",
    "by_name",
    "convert",
    "hookimpl",
    "matching",
    "measure",
    "merged",
    "open_checkpoint",
    "open_keras",
    "option",
    "read_measured",
    "select",
    "shape_of",
    "write_measured",
]

_HOMES = {
    "activations.file": ("Measured", "merged", "read_measured", "write_measured"),
    "activations.keras": ("open_keras",),
    "activations.measure": ("measure",),
    "activations.moments": ("Moments",),
    "checkpoint": ("Checkpoint", "open_checkpoint"),
    "dtype": ("DType",),
    "errors": ("ConverterError", "InputError", "PlanError", "UsageError"),
    "hookspecs": ("hookimpl",),
    "initializer": ("Initializer",),
    "names": ("Role",),
    "options": ("option",),
    "patterns": ("by_name", "matching", "select"),
    "pipeline": ("Result", "convert"),
    "resize.coupled": ("Consumer", "Coupled"),
    "resize.units": ("Fold", "Matrix", "Mending", "Repair", "Units", "WidthMap"),
    "resizer": ("Resizer",),
    "strategy": ("Beside", "Strategy"),
    "structure.axes.axis": ("Width",),
    "variable": ("Array", "Region", "Stored", "Variable", "shape_of"),
}


def __getattr__(name: str) -> object:
    # Each public name brings its module when it is first used: a command starts with what it
    # needs, and `import converter` costs nothing.
    for module, public in _HOMES.items():
        if name in public:
            value = getattr(importlib.import_module(f"converter.{module}"), name)
            globals()[name] = value
            return value
    raise AttributeError(f"module 'converter' has no attribute {name!r}")
