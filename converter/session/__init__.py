"""Runs a checkpoint's own graph. The only room that imports TensorFlow."""

from converter.session.keras import Written, write_keras
from converter.session.library import can_run, op_definition, take_fastest_kernels
from converter.session.queues import Queue
from converter.session.session import Rewrite, RunError, Session, dtypes_of

__all__ = [
    "Queue",
    "Rewrite",
    "RunError",
    "Session",
    "Written",
    "can_run",
    "dtypes_of",
    "op_definition",
    "take_fastest_kernels",
    "write_keras",
]
