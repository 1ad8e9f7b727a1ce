"""What an output of a batch was made from, and how: the record that lies beside it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from converter.checkpoint import graph_lender, open_checkpoint
from converter.errors import ConverterError, PlanError
from converter.initializer import Initializer
from converter.location import locate
from converter.registry import Registry
from converter.running import Question
from converter.strategy import Strategy, options
from converter.target import Target

_SMALL_BYTES = 1 << 20
# Their checksums are taken whatever their size.
_HASHED = (".index", ".meta")
# What stands in a record beside what the output depends on.
_FOUND = ("files", "idle", "prove", "resized", "widths")


@dataclass(frozen=True, slots=True)
class Record:
    """What an output depends on: two equal records mean equal outputs.

    Attributes:
        made: as JSON: the source, the steps, and the versions of what carries them out.
        proven: how the output was compared with its source before it was published; None where it
            was not.
    """

    made: Mapping[str, object]
    proven: Mapping[str, object] | None


def record_of(
    source: str,
    target: Target,
    strategies: Sequence[Strategy],
    registry: Registry,
    *,
    sidecar: bool,
    question: Question | None,
    graph_from: str | None = None,
) -> Record:
    """Return the record of a conversion.

    Raises:
        InputError: a file of the source cannot be found, or what its graph is from.
    """
    steps = [
        {
            "plugin": strategy.name,
            "origin": _identified(_path_or_text(registry.origin(strategy.name))),
            "values": {
                option.name: _identified(getattr(strategy, option.name))
                for option in options(type(strategy))
            },
        }
        for strategy in strategies
    ]
    made = {
        "converter": version("ckpt-converter"),
        "source": {file.name: _identity(file) for file in _files(source)},
        "steps": steps,
        "initializers": {
            name: _identified(_path_or_text(plugin.origin))
            for name, (_, plugin) in registry.brought.items()
        },
        "to": target.format,
        "shard_size": target.shard_size,
        "sidecar": sidecar,
    }
    if graph_from is not None:
        graph = graph_lender(graph_from).graph_file
        made["graph"] = {} if graph is None else {str(graph): _identity(graph)}
    return Record(made, None if question is None else _proven(question))


def _proven(question: Question) -> dict[str, object]:
    return {
        "inputs": _identified(question.inputs),
        "feeds": list(question.feeds),
        "fetches": list(question.fetches),
        "tolerance": question.tolerance,
        "seed": question.seed,
    }


def _path_or_text(origin: str) -> Path | str:
    return Path(origin) if origin.endswith(".py") else origin


def _files(source: str) -> list[Path]:
    """Return the files that a conversion may read: the values, and the graph beside them."""
    location = locate(source)
    # The index of several shards tells nothing of what is in them.
    shards = location.kind == "safetensors"
    files = list(open_checkpoint(source).files if shards else location.files)
    if location.meta is not None:
        files.append(location.meta)
    exported = location.directory.parent / "saved_model.pb"
    if location.directory.name == "variables" and exported.is_file():
        files.append(exported)
    return files


def _identity(file: Path) -> dict[str, object]:
    """Return what tells one content of a file from another, without reading large ones.

    An index holds the checksums of all values, so its own checksum stands for them; of other
    large files, size and time of change have to do.
    """
    stat = file.stat()
    if file.suffix in _HASHED or stat.st_size <= _SMALL_BYTES:
        return {"sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
    return {"size": stat.st_size, "mtime_ns": stat.st_mtime_ns}


def _identified(value: object) -> object:
    """Return an option's value as JSON, with the identity of the file that a path names."""
    if isinstance(value, Path):
        with contextlib.suppress(ConverterError, OSError):
            files = locate(os.fspath(value)).files if not value.is_file() else (value,)
            return {str(value): {file.name: _identity(file) for file in files}}
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): _identified(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_identified(item) for item in value]
    return str(value) if isinstance(value, Initializer) else value


def known_of(target: Target, record: Record, *, force: bool) -> dict[str, Any] | None:
    """Return the record of an output that is there and was made as it would be made now.

    None where there is none, or where it is to be replaced.

    Raises:
        PlanError: it was made otherwise, or not proven, and nobody says that it is to be replaced.
    """
    try:
        known = json.loads(target.record.read_bytes())
        there = {name: (target.directory / name).stat().st_size for name in known["files"]}
        made = {key: value for key, value in known.items() if key not in _FOUND}
        is_there = there == known["files"]
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return None
    is_same = made == json.loads(json.dumps(record.made)) and is_there
    # What was proven once is as good where nobody asks.
    is_proven = record.proven in (None, known.get("prove"))
    if is_same and is_proven:
        return dict(known)
    if not force:
        how = (
            "was not proven like this"
            if is_same
            else "was made from another source or in another way"
        )
        raise PlanError(
            f"{target.path} {how}, which {target.record.name} tells; use --force to make it again"
        )
    return None


def told_in(known: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a record remembers of widths and of strategies with nothing to do.

    As far as it is what was written there once.
    """
    widths, resized, idle = known.get("widths"), known.get("resized"), known.get("idle", {})
    keys = {"name", "old", "new", "exact", "why"}
    if not isinstance(widths, list) or not isinstance(resized, int) or not isinstance(idle, dict):
        return {}
    if not all(isinstance(width, dict) and keys <= width.keys() for width in widths):
        return {}
    return {
        "widths": widths,
        "resized": resized,
        "idle": {name: str(why) for name, why in idle.items()},
    }
