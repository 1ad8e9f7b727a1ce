"""Runs a checkpoint's own graph. The only room that imports TensorFlow."""

from converter.session.keras import Frozen, freeze
from converter.session.library import can_run, op_definition
from converter.session.queues import Queue
from converter.session.session import Rewrite, RunError, Session, dtypes_of

__all__ = [
    "Frozen",
    "Queue",
    "Rewrite",
    "RunError",
    "Session",
    "can_run",
    "dtypes_of",
    "freeze",
    "op_definition",
]
