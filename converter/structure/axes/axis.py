"""Axes as expressions over widths: `features + units`, `[i,j,f,o]*units`, `7*7*(a + b)`.

An axis is a sum (pieces in order, one after the other) of products (row-major, the left factor
outermost). A factor is the name of a width, a fixed number, labelled blocks, or a sum in brackets,
which stands only where it cannot be multiplied out: `(a + b)*c` is `a*c + b*c`, and `c*(a + b)`
is not `c*a + c*b`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias, TypeVar, Union

from converter.errors import PlanError, UsageError, printable

Symmetry = Literal["free", "orthogonal", "scaling", "permutation", "bound", "opaque"]
"""Which changes of basis of a width leave the function as it is; `opaque` is not known."""

Use = Literal["produce", "consume", "shift", "gain", "mean", "variance"]
"""What an axis does with a width: the last four follow it, one number for each unit."""

USES: tuple[Use, ...] = ("produce", "consume", "shift", "gain", "mean", "variance")

Growth = Literal["any", "zero", "none"]
"""What makes new units may hold anything, has to be zero, or nothing keeps the outputs."""

Touch = Literal[
    # What leaves no change of basis: where it comes from, or what goes by its places.
    "choice",
    "constant",
    "cross entropy",
    "dynamic",
    "index",
    "input",
    "label",
    "lookup",
    "opaque",
    "output",
    "rest",
    "shown",
    "softmax",
    "unread",
    # What sizes that are no widths are of: windows, groups.
    "fixed",
    "spatial",
    # What goes unit by unit.
    "affine",
    "gain",
    "gated",
    "homogeneous",
    "nonlinear",
    "weight",
    # What goes over all units.
    "computed",
    "counted",
    "extreme",
    "mean",
    "norm",
    "paired",
    "product",
    "self paired",
    "square mean",
    "square sum",
    "sum",
    "variance",
    "weight norm",
    # What moves with the size, and what new units would make infinite.
    "pole",
    "scaled by size",
]
"""What an op between production and consumption does to a width."""

SINGLING: frozenset[Touch] = frozenset(
    [
        "choice",
        "constant",
        "counted",
        "dynamic",
        "index",
        "opaque",
        "product",
        "rest",
        "softmax",
        "unread",
    ]
)
"""What asks which units there are, or may: units more change it, be they zero or copies.

An output only has more entries then, beside the old ones."""

AVERAGING: frozenset[Touch] = frozenset(["mean", "square mean", "variance"])
"""What asks how units are on average: it stays as it is if each stands there as often."""

_NAME = re.compile(r"(?!\d+\Z)[A-Za-z0-9_.][A-Za-z0-9_.\-/]*")
_TOKEN = re.compile(
    r"\s*(?:([0-9]+)(?![A-Za-z0-9_.\-/])|([A-Za-z0-9_.][A-Za-z0-9_.\-/]*)|"
    r"\[([^\[\]]*)\]|([+*()]))"
)
_MAX_DEPTH = 16
_MAX_SIZE = 1 << 62


@dataclass(frozen=True, slots=True)
class Blocks:
    """A fixed number of blocks that have names, the gates of a cell: `[i,j,f,o]`."""

    labels: tuple[str, ...]

    def __str__(self) -> str:
        return f"[{','.join(self.labels)}]"


Factor: TypeAlias = Union[int, str, Blocks, "Axis"]
Term = tuple[Factor, ...]
_Number = TypeVar("_Number", int, float)


@dataclass(frozen=True, slots=True)
class Axis:
    """One axis of a variable.

    Attributes:
        terms: the pieces in order, each a product of factors, the outermost first. A string is
            the name of a width.
    """

    terms: tuple[Term, ...]

    @classmethod
    def parse(cls, text: str) -> Axis:
        """Read an axis as `str` writes it.

        Raises:
            UsageError: it is none, with the place.
        """
        return _Parser(text).parse()

    def __str__(self) -> str:
        return self.format(str)

    def format(self, write: Callable[[str], str]) -> str:
        """Return the notation, with what `write` makes of each width's name in its place."""
        return " + ".join("*".join(_written(f, write) for f in term) for term in self.terms) or "0"

    def shown(self, sizes: Mapping[str, int]) -> str:
        """Return the notation with sizes instead of names: `256 + 100`, `4*100`."""
        return Axis(
            tuple(
                tuple(len(f.labels) if isinstance(f, Blocks) else f for f in term)
                for term in self.terms
            )
        ).format(lambda name: str(sizes[name]))

    def widths(self) -> tuple[str, ...]:
        """Return the names of its widths, each once, in order."""
        return tuple(dict.fromkeys(self._names()))

    def _names(self) -> Iterator[str]:
        for term in self.terms:
            for factor in term:
                if isinstance(factor, str):
                    yield factor
                elif isinstance(factor, Axis):
                    yield from factor._names()

    def size(self, sizes: Mapping[str, _Number]) -> _Number:
        """Return the length of the axis where the widths have these sizes, which may be none."""
        return sum(term_size(term, sizes) for term in self.terms)

    def rename(self, names: Mapping[str, str]) -> Axis:
        """Return the axis over other names; those that are not in `names` stay."""

        def renamed(factor: Factor) -> Factor:
            if isinstance(factor, str):
                return names.get(factor, factor)
            return factor.rename(names) if isinstance(factor, Axis) else factor

        return Axis(tuple(tuple(renamed(f) for f in term) for term in self.terms))


class Normalised(NamedTuple):
    """How a width that is normalised can grow so that all that is behind gets what it got.

    Attributes:
        is_centred: whether what makes the width has to be centred, as a mean is taken off.
        before: the variables that make it in front of the normalisation.
    """

    is_centred: bool
    before: tuple[str, ...]


class Behind(NamedTuple):
    """A variable that consumes what a normalisation gives.

    Attributes:
        variable: its name.
        gain: the variable that the normalisation multiplies with, unit by unit; None for none.
        shift: the variable that it adds; None for none.
    """

    variable: str
    gain: str | None
    shift: str | None


class Turnable(NamedTuple):
    """How a width that is normalised can be turned so that all that is behind gets what it got.

    Nothing stands between its normalisations and what consumes it but a gain and a shift.

    Attributes:
        is_centred: whether what makes the width has to be centred, as a mean is taken off.
        behind: all that consumes it.
    """

    is_centred: bool
    behind: tuple[Behind, ...]


@dataclass(frozen=True, slots=True)
class Width:
    """A size that several axes share.

    Attributes:
        name: after what produces it.
        size: how many units it has.
        symmetry: which changes of basis are exact, by the ops between production and consumption.
        resizable: whether the graph allows another size at all.
        growth: what makes new units may hold `any` numbers, or has to be `zero`, if the outputs
            are not to change, and what takes them is zero; `none` where they change.
        stays_zero: whether units that are made of zeros reach all that consumes them as zeros, so
            that training never moves a unit that is zero on both sides.
        produced_by: the model variables that produce it; slots and averages follow theirs.
        consumed_by: the variables that contract with it or look up in it.
        followed_by: the variables that hold one number for each unit.
        why: what decides the class, for people.
        touches: every kind of op between production and consumption, and the first such op.
        normalised: how it can grow although its normalisation counts new units; None where that is
            not known, or where it is not normalised.
        turnable: how it can be turned although it is normalised; None where it cannot, where that
            is not known, or where it is not normalised.
    """

    name: str
    size: int
    symmetry: Symmetry
    resizable: bool
    growth: Growth
    produced_by: tuple[str, ...] = ()
    consumed_by: tuple[str, ...] = ()
    followed_by: tuple[str, ...] = ()
    why: str = ""
    touches: tuple[tuple[Touch, str], ...] = ()
    stays_zero: bool = False
    normalised: Normalised | None = None
    turnable: Turnable | None = None

    @property
    def exact(self) -> bool:
        """Whether units can be added so that the outputs do not change."""
        return self.growth != "none" or self.normalised is not None


class Equation(NamedTuple):
    """An axis whose length is known.

    Attributes:
        subject: what it is an axis of, for messages: `rnn/lstm_cell/kernel, axis 0`.
    """

    axis: Axis
    length: int
    subject: str


_ADVICE = "correct the axis or the sizes"


def solve(
    equations: Sequence[Equation], known: Mapping[str, int], advice: str = _ADVICE
) -> dict[str, int]:
    """Find the sizes of the widths for which all axes have their lengths.

    Args:
        equations: the axes and their lengths.
        known: sizes that are given.
        advice: what to do where no sizes are found.

    Returns:
        The sizes; a width that the lengths leave open (`a + b` of 100) is not among them.

    Raises:
        PlanError: no sizes do; it names the axis that cannot be.
    """
    sizes = dict(known)
    waiting = list(equations)
    while True:
        undecided = []
        for equation in waiting:
            unknown = [name for name in equation.axis.widths() if name not in sizes]
            if len(unknown) > 1:
                undecided.append(equation)
            elif unknown:
                sizes[unknown[0]] = _solve_one(equation, unknown[0], sizes, advice)
            else:
                _check(equation, sizes, advice)
        if len(undecided) == len(waiting):
            return sizes
        waiting = undecided


def check(equations: Iterable[Equation], sizes: Mapping[str, int], advice: str = _ADVICE) -> None:
    """Raise PlanError for the first axis that does not have its length at these sizes."""
    for equation in equations:
        _check(equation, sizes, advice)


def _check(equation: Equation, sizes: Mapping[str, int], advice: str) -> None:
    found = equation.axis.size(sizes)
    if found != equation.length:
        raise PlanError(
            f"{equation.subject}: {equation.axis} is {equation.axis.shown(sizes)} = {found}, "
            f"but its length is {equation.length}; {advice}"
        )


def _solve_one(equation: Equation, name: str, sizes: Mapping[str, int], advice: str) -> int:
    """Find the size of the one unknown width. The length grows with it, so halving finds it."""
    low, high = 0, equation.length
    while low < high:
        middle = (low + high) // 2
        if equation.axis.size({**sizes, name: middle}) < equation.length:
            low = middle + 1
        else:
            high = middle
    if low == 0 or equation.axis.size({**sizes, name: low}) != equation.length:
        given = equation.axis.format(lambda n: n if n == name else str(sizes[n]))
        raise PlanError(
            f"{equation.subject}: no size of {name} makes {given} as long as {equation.length}; "
            f"{advice}"
        )
    return low


def is_name(text: str) -> bool:
    """Whether a width can be called that."""
    return _NAME.fullmatch(text) is not None


def _written(factor: Factor, write: Callable[[str], str]) -> str:
    if isinstance(factor, Axis):
        return f"({factor.format(write)})"
    return write(factor) if isinstance(factor, str) else str(factor)


def term_size(term: Sequence[Factor], sizes: Mapping[str, _Number]) -> _Number:
    """Return the length of a product of factors where the widths have these sizes."""
    return math.prod(_size(factor, sizes) for factor in term)


def _size(factor: Factor, sizes: Mapping[str, _Number]) -> _Number:
    if isinstance(factor, int):
        return factor
    if isinstance(factor, str):
        return sizes[factor]
    return len(factor.labels) if isinstance(factor, Blocks) else factor.size(sizes)


class _Parser:
    """Reads one axis; brackets may be nested, though not without end."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0

    def parse(self) -> Axis:
        axis = self._sum(0)
        if self._text[self._at :].strip():
            raise self._wrong("+, * or the end")
        return axis

    def _sum(self, depth: int) -> Axis:
        terms = [self._product(depth)]
        while self._take("+"):
            terms.append(self._product(depth))
        return Axis(tuple(terms))

    def _product(self, depth: int) -> Term:
        factors = [self._factor(depth)]
        while self._take("*"):
            factors.append(self._factor(depth))
        return tuple(factors)

    def _factor(self, depth: int) -> Factor:
        match = _TOKEN.match(self._text, self._at)
        if match is None or match[4] not in (None, "("):
            raise self._wrong("a width, a number, [labels] or a bracket")
        if match[1] and (len(match[1]) > 19 or int(match[1]) > _MAX_SIZE):
            raise self._wrong("a smaller number")
        if match[4] and depth == _MAX_DEPTH:
            raise self._wrong("fewer brackets")
        labels = tuple(label.strip() for label in match[3].split(",")) if match[3] else ()
        if match[3] is not None and (not all(labels) or len(set(labels)) < max(1, len(labels))):
            raise self._wrong("labels that differ, such as [i,j,f,o]")
        self._at = match.end()
        if match[1]:
            return int(match[1])
        if match[2]:
            return match[2]
        if labels:
            return Blocks(labels)
        inner = self._sum(depth + 1)
        if not self._take(")"):
            raise self._wrong("a closing bracket")
        return inner

    def _take(self, sign: str) -> bool:
        match = _TOKEN.match(self._text, self._at)
        if match is None or match[4] != sign:
            return False
        self._at = match.end()
        return True

    def _wrong(self, wanted: str) -> UsageError:
        return UsageError(
            f"the axis '{printable(self._text)}': {wanted} must stand at character "
            f"{self._at + 1}; write it like 'features + units' or '[i,j,f,o]*units'"
        )
