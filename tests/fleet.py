"""A directory of checkpoints for `convert batch`."""

from __future__ import annotations

import shutil
from pathlib import Path

from conftest import case

# By the directory below ROOT: the case, and what is written for it, without an ending.
VALID = {
    "a/lstm": ("tf14_v2_charlm_lstm_ema", ["model.ckpt-300"]),
    "a/rotation": (
        "tf14_v2_rotation",
        ["model.ckpt-12", "model.ckpt-16", "model.ckpt-20"],
    ),
    "b/frozen": ("tf115_frozen", ["frozen.pb"]),
    "b/saved": ("tf115_savedmodel", ["export/variables/variables"]),
    "b/sharded": ("tf10_v1_sharded", ["mlp.ckpt-25"]),
    "b/slash": ("tf115_v2_slash_prefix", ["experiment/model"]),
}
DONE = sorted(f"{directory}/{name}" for directory, (_, names) in VALID.items() for name in names)
"""What is written for all of them, without an ending."""


def make_fleet(root: Path) -> Path:
    """Copy good checkpoints, without their graphs."""
    for directory, (name, _) in VALID.items():
        copy_case(name, root / directory)
    return root


def copy_case(name: str, target: Path) -> None:
    shutil.copytree(
        case(name).directory, target, ignore=shutil.ignore_patterns("*.npz", "case.json", "*.meta")
    )


def times_of(directory: Path) -> dict[Path, int]:
    files = (path for path in directory.rglob("*") if path.is_file())
    return {path: path.stat().st_mtime_ns for path in files}
