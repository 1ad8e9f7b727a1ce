"""What is compiled works, too, where it cannot be kept for the next time."""

from __future__ import annotations

import importlib

import numpy as np
import pytest


def test_where_no_directory_can_be_written_to(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    caching = pytest.importorskip("numba.core.caching")
    compiled = importlib.import_module("converter.activations.compiled")
    with monkeypatch.context() as patch:
        patch.setattr(caching.FunctionCache._impl_class, "_locator_classes", [])
        with pytest.raises(RuntimeError, match="no locator available"):
            caching.FunctionCache(lambda: None)
        add = importlib.reload(compiled).add
    importlib.reload(compiled)
    rows = np.random.default_rng(0).standard_normal((11, 3))
    sums, low, high, zero = np.zeros((3, 3)), np.ones(3), np.zeros(3), np.zeros(3, np.int32)
    add(rows, np.zeros(3), sums, low, high, zero)
    assert np.allclose(sums, [rows.sum(0), (rows**2).sum(0), np.abs(rows).sum(0)])
    assert (low == rows.min(0)).all()
    assert (high == rows.max(0)).all()
