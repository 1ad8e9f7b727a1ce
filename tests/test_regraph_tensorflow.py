"""Resized graphs in TensorFlow: they import, restore, compute the same, and train the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import VALID, Case
from resized import Resizing, run, write

from converter import open_checkpoint
from converter.regraph import regraph
from converter.structure.infer import infer

pytestmark = pytest.mark.slow

TOLERANCE = 1e-5
RECORDED = [
    case for case in VALID if case.record.get("io") and case.record["format"] in ("V1", "V2")
]
# New units of a sigmoid are 0.5 and learn; Adam takes other steps where a scale factor moved.
LEARNING = ("tf14_v1_partitioned", "tf115_v2_bert_mini")


@pytest.fixture(scope="module")
def tf() -> Any:
    return pytest.importorskip("tensorflow").compat.v1


def resized(case: Case, directory: Path, tf: Any, *, only_exact: bool) -> float:
    """Grow widths by half with zeros; return how far the outputs are from those of the source.

    What they are after ten training steps has to be the same too, if new units stay dead.
    """
    io = case.record["io"]
    arrays = np.load(case.directory / io["file"])
    feeds = {e["tensor"]: arrays[name] for name, e in io["inputs"].items()} | io["feeds"]
    fetches = [entry["tensor"] for entry in io["outputs"].values()]
    checkpoint = open_checkpoint(case.path)
    structure = infer(checkpoint)
    sizes = {
        width.name: max(width.size + 1, width.size * 3 // 2)
        for width in structure.widths.values()
        if width.resizable and (width.exact or not only_exact)
    }
    found = regraph(checkpoint, structure, sizes)
    assert found.notes == ()
    same = regraph(checkpoint, structure, {})
    old = run(tf, write(directory / "old", list(checkpoint.values()), same.meta), feeds, fetches)
    resizing = Resizing(checkpoint, structure, sizes)
    prefix = write(directory / "new", resizing.variables(found), found.meta)
    grown = {t: resizing.grown(np.asarray(v), resizing.axes_of(t)) for t, v in feeds.items()}
    new = run(tf, prefix, grown, fetches)
    assert new.is_finite
    errors = []
    for tensor, a, b, trained_a, trained_b in zip(
        fetches, old.before, new.before, old.after, new.after, strict=True
    ):
        axes = resizing.axes_of(tensor)
        errors.append(_error(a, resizing.cut(b, axes)))
        if only_exact and case.name not in LEARNING:
            assert _error(trained_a, resizing.cut(trained_b, axes)) < 100 * TOLERANCE, tensor
    return max(errors)


def _error(a: Any, b: Any) -> float:
    if a.dtype.kind != "f":
        return float((a != b).mean())
    return float(np.abs(a - b).max() / max(float(np.abs(a).max()), 1e-12))


@pytest.mark.parametrize("case", RECORDED, ids=lambda case: case.name)
def test_a_grown_model_computes_and_trains_as_before(tf: Any, case: Case, tmp_path: Path) -> None:
    assert resized(case, tmp_path, tf, only_exact=True) < TOLERANCE


@pytest.mark.parametrize("case", RECORDED, ids=lambda case: case.name)
def test_every_width_at_once(tf: Any, case: Case, tmp_path: Path) -> None:
    assert np.isfinite(resized(case, tmp_path, tf, only_exact=False))
