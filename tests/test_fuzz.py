"""Damaged files: nothing but InputError and PlanError, in little time and memory.

`python tests/fuzz_long.py` goes on for longer; what it or a test finds is shown again by the
command that the failure prints.
"""

from __future__ import annotations

from collections import Counter

import pytest
from fuzzing import check
from mutants import AREAS, Mutant

FEW, MANY = 30, 510


@pytest.mark.slow
@pytest.mark.parametrize("area", AREAS)
def test_mutants(area: str) -> None:
    outcomes = Counter(check(Mutant(area, number)) for number in range(FEW))
    # The damage reaches the parser, and is not so heavy that it all ends at the first byte.
    assert outcomes["InputError"] >= 2
    assert outcomes["InputError"] <= FEW - 2


@pytest.mark.slow
@pytest.mark.parametrize("area", AREAS)
def test_many_mutants(area: str) -> None:
    for number in range(FEW, FEW + MANY):
        check(Mutant(area, number))
