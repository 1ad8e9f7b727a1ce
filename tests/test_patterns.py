"""Globs over names that are made to cost much."""

from __future__ import annotations

import tracemalloc

import pytest

from converter.errors import UsageError
from converter.patterns import matching


@pytest.mark.usefixtures("must_end")
def test_deep_names_are_not_kept_at_every_depth() -> None:
    names = ["a/" * 20_000 + "w", "encoder/layer/w"]
    tracemalloc.start()
    try:
        for glob in ("encoder/lyaer/*", "a/" * 5_000 + "x"):
            with pytest.raises(UsageError, match="fits none of the 2 variables"):
                matching(glob, names)
        with pytest.raises(UsageError, match=r"did you mean 'encoder/layer/[*]'"):
            matching("encoder/lyaer/*", names)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 8 << 20
