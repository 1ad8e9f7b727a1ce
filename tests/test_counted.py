"""Numbers in sentences."""

from __future__ import annotations

from converter.counted import agree, count


def test_one_and_more() -> None:
    assert [count(n, "variable") for n in (0, 1, 1234)] == [
        "0 variables",
        "1 variable",
        "1,234 variables",
    ]
    assert [agree(n, "is", "are") for n in (0, 1, 2)] == ["are", "is", "are"]
