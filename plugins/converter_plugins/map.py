"""Gives the variables of a whole model the names and layouts of another framework, by rules."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from converter import Beside, PlanError, Strategy, UsageError, expressions, hookimpl, option
from converter.counted import agree, count
from converter.errors import printable

if TYPE_CHECKING:
    from converter import Array, Checkpoint, Region, Variable


@dataclass(frozen=True)
class Map(Strategy):
    """Rename all variables by rules, transposing where a rule says so; none is left over.

    A rule is a regular expression that fits a name from its first to its last letter; the first
    that fits is taken, those of `map` before those of `transpose`. Rules that fit nothing are no
    error: not every checkpoint has every layer. A variable that no rule fits is one.

    Example:
        convert ckpt model.ckpt --recipe mine.toml --map-rest drop -o out/
    """

    name: ClassVar[str] = "map"
    map: Mapping[str, str] = option(
        {}, help="rename what a regular expression fits as a whole", metavar="PATTERN=REPLACEMENT"
    )
    transpose: Mapping[str, str] = option(
        {},
        help="the same, for matrices whose rows become columns",
        metavar="PATTERN=REPLACEMENT",
    )
    rest: Literal["refuse", "keep", "drop"] = option(
        "refuse", help="what becomes of variables that no rule fits"
    )
    format: str = option(
        "", help="whose names and layouts these are, for the metadata of safetensors: `pt`"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        expressions.check({**self.map, **self.transpose}, "drop leaves variables out")
        if twice := self.map.keys() & self.transpose.keys():
            raise UsageError(f"{min(twice)!r} is a rule of both map and transpose")

    def apply(self, checkpoint: Checkpoint) -> Iterable[Variable]:
        rules = {**self.map, **self.transpose}
        found = expressions.replaced(rules, checkpoint, is_strict=False)
        rest = [name for name in checkpoint if name not in found]
        if rest and self.rest == "refuse":
            more = f" (and {len(rest) - 1} more)" if len(rest) > 1 else ""
            raise PlanError(
                f"{printable(rest[0])}{more}: no rule fits; the nearest is "
                f"{expressions.nearest_of(rest[0], rules)!r}; add one, or say what becomes of the "
                f"rest (--map-rest keep or drop)"
            )
        taken: dict[str, str] = {}
        for name in checkpoint if self.rest != "drop" else found:
            new = found[name][0] if name in found else name
            if (other := taken.setdefault(new, name)) != name:
                raise PlanError(
                    f"{printable(new)}: both {printable(other)} and {printable(name)} would have "
                    f"this name; drop one of them first"
                )
        for name, variable in checkpoint.items():
            if name in found:
                new, pattern = found[name]
                turned = _transposed(variable) if pattern in self.transpose else variable
                yield turned.rename(new)
            elif self.rest == "keep":
                yield variable

    def notes(self, checkpoint: Checkpoint) -> Iterable[str]:
        rules = {**self.map, **self.transpose}
        found = expressions.replaced(rules, checkpoint, is_strict=False)
        turned = [name for name, (_, pattern) in found.items() if pattern in self.transpose]
        if turned:
            yield agree(
                len(turned), "1 matrix is transposed", f"{len(turned):,} matrices are transposed"
            )
        kept = [name for name in checkpoint if name not in found]
        if kept and self.rest == "keep":
            stay = agree(len(kept), "stays as it is", "stay as they are")
            yield f"{count(len(kept), 'variable')} that no rule fits {stay}, such as {kept[0]}"

    def beside(self, checkpoint: Checkpoint) -> Beside | None:
        return Beside({"format": self.format}) if self.format else None


def _transposed(variable: Variable) -> Variable:
    if len(variable.shape) != 2:
        raise PlanError(
            f"{printable(variable.name)}: it has the shape {list(variable.shape)}, and a rule "
            f"transposes it, which takes two axes"
        )
    load = variable.load

    def turned(region: Region) -> Array:
        columns: Array = load((region[1], region[0])).T
        return columns

    return variable.derive(turned, shape=variable.shape[::-1])


@hookimpl
def converter_strategies() -> Iterable[type[Strategy]]:
    yield Map
