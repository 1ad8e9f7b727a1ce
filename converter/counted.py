"""Numbers in sentences: one thing, or several."""

from __future__ import annotations


def count(number: int, noun: str) -> str:
    """Return `1 variable`, `2 variables`."""
    return f"{number:,} " + agree(number, noun, f"{noun}s")


def agree(number: int, one: str, more: str) -> str:
    """Return what is said of one thing, or what is said of more or none."""
    return one if number == 1 else more
