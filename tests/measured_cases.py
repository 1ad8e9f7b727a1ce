"""Models with recorded inputs, as files of data for what is measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from conftest import DATA

from converter import Array


def case(name: str, tmp_path: Path) -> tuple[Path, dict[str, Array], tuple[str, ...]]:
    """Return a model, a file of its data made beside the output, and what is fed."""
    directory = DATA / name
    io = json.loads((directory / "case.json").read_text())["io"]
    arrays = np.load(directory / "io.npz")
    batch = {entry["tensor"]: arrays[key] for key, entry in io["inputs"].items()}
    named: dict[str, Any] = batch
    np.savez(tmp_path / "x.npz", **named)
    feeds = tuple(f"{key}={json.dumps(value)}" for key, value in io["feeds"].items())
    return next(directory.glob("*.index")), batch, feeds
