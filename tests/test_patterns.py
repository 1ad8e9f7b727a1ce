"""Globs over names that are made to cost much, and how texts are given."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import pytest

from converter.activations.asked import Question as Asked
from converter.errors import UsageError
from converter.patterns import matching, texts
from converter.running import Question


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


def test_one_text_alone_is_no_series_of_letters() -> None:
    assert texts("*/kernel", "variables") == ("*/kernel",)
    assert texts(["a", "b"], "variables") == ("a", "b")
    assert Asked(feeds="x=3", fetches="out") == Asked(feeds=("x=3",), fetches=("out",))  # type: ignore[arg-type]
    proven = Question("x.npz", "x=3", "out")  # type: ignore[arg-type]
    assert proven == Question(Path("x.npz"), ("x=3",), ("out",))
    for odd in (3, [3], [None, "x"]):
        with pytest.raises(UsageError, match=r"^variables must be texts, got (3|None)$"):
            texts(odd, "variables")  # type: ignore[arg-type]
