"""The contract that every strategy keeps, and what this one computes."""

from __future__ import annotations

from converter import Variable
from converter.testing import check_strategy
from converter_double import Double


def test_double_keeps_the_contract() -> None:
    check_strategy(Double(factor=3.0))


def test_floats_are_multiplied_and_nothing_else() -> None:
    kernel = Variable.from_array("kernel", [0.5, -1.0])
    step = Variable.from_array("step", 7)
    assert [v.read().tolist() for v in Double().convert(kernel)] == [[1.0, -2.0]]
    assert list(Double().convert(step)) == [step]
