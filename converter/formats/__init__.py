"""Bytes on disk to variables and back: one module per format, and nothing above it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from converter.variable import Region, Variable

OBJECT_GRAPH_KEY = "_CHECKPOINTABLE_OBJECT_GRAPH"
"""The key under which TensorFlow 2 stores what its keys mean: the object graph, a string scalar."""


def _nothing_to_check(names: Iterable[str]) -> None:
    pass


@dataclass(frozen=True)
class Contents:
    """What a reader found.

    Attributes:
        format: what it is, for people: `TensorFlow V2`, `safetensors` ...
        variables: the variables under the names that the file has for them.
        files: every file that was or may be read.
        partitions: the regions of the slices of each partitioned variable, in stored order.
        check: raises InputError for the first of the named variables whose bytes are not all
            there, by sizes only; reading finds what sizes cannot tell.
        metadata: free text that the file carries (the `__metadata__` of safetensors).
    """

    format: str
    variables: tuple[Variable, ...]
    files: tuple[Path, ...]
    partitions: Mapping[str, tuple[Region, ...]] = field(default_factory=dict)
    check: Callable[[Iterable[str]], None] = _nothing_to_check
    metadata: Mapping[str, str] = field(default_factory=dict)
