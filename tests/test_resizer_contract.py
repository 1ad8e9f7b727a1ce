"""Every resizing strategy keeps the contract, and the contract is told where it is broken."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
from converter_plugins.duplicate import Duplicate
from converter_plugins.pad import Pad
from converter_plugins.project import Project
from converter_plugins.select import Select
from converter_plugins.truncate import Truncate

from converter import Coupled, PlanError, Resizer, Units, Width, WidthMap
from converter.initializers import GlorotUniform
from converter.testing import check_resizer


def test_the_built_in_ones() -> None:
    check_resizer(lambda resize: Pad(resize=resize))
    check_resizer(lambda resize: Pad(resize=resize, fill=GlorotUniform()))
    check_resizer(lambda resize: Truncate(resize=resize))
    check_resizer(lambda resize: Duplicate(resize=resize))
    check_resizer(lambda resize: Duplicate(resize=resize, noise=0.1))
    check_resizer(lambda resize: Select(resize=resize))
    check_resizer(lambda resize: Select(resize=resize, by="random"))
    for by in ("orthonormal", "gaussian", "pca"):
        check_resizer(lambda resize, by=by: Project(resize=resize, by=by))  # type: ignore[misc]


@dataclass(frozen=True)
class Broken(Resizer):
    """Do it wrong."""

    name: ClassVar[str] = "broken"
    how: str = ""

    def width_map(self, width: Width, size: int, coupled: Coupled) -> WidthMap:
        first = Units.first(width.size, size)
        if self.how == "reads":
            coupled.squares()
        if self.how == "small":
            first = Units.first(width.size, size + 1)
        if self.how == "chance":
            rng = np.random.default_rng()
            return WidthMap(first, Units(size, first.index, rng.random(size)))
        if self.how == "one side":
            backwards = Units(size, np.where(first.index < 0, -1, first.index[::-1]))
            return WidthMap(first, backwards)
        if self.how == "refuses":
            raise PlanError("no")
        return WidthMap(first, first)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("reads", r"^features of 4 units, made 2: the plan read projection; read when values"),
        (
            "small",
            r"^every width was refused; features of 4 units, made 2: broken: width_map gave 3",
        ),
        ("chance", r"^features of 4 units, made 2: a second run gave another result"),
        ("one side", r"^features of 4 units, made 5: it is called exact \(.*\), and the outputs"),
        ("refuses", r"^every width was refused; features of 4 units, made 2: no"),
    ],
)
def test_what_is_broken_is_told(how: str, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_resizer(lambda resize: Broken(resize=resize, how=how))
