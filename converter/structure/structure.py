"""What is known of the widths of a checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

from converter.errors import InputError
from converter.names import Role
from converter.structure.axes.axis import Axis, Use, Width

if TYPE_CHECKING:
    from converter.structure.tensors.atoms import Atom
    from converter.structure.tensors.run import Findings


class Opaque(NamedTuple):
    """A width of which an op that is not known hides what it is tied to.

    Attributes:
        name: the width.
        op: the op, which is that of the variable itself where nothing reads it.
        node: the node.
    """

    name: str
    op: str
    node: str


class SizeFactor(NamedTuple):
    """A constant of the graph that has to move with a width.

    Attributes:
        node: the node that multiplies with it.
        number: its value.
        power: the power of the width's size that it is.
        is_of_products: whether all that is made of the width are contractions of two tensors, each
            of them scaled by such a factor.
    """

    node: str
    number: float
    power: float
    is_of_products: bool = False


class EvenParts(NamedTuple):
    """An op that cuts an axis into parts which have to stay equally long.

    Attributes:
        op: the op.
        node: the node.
        parts: the axes that it makes, each once; they hold different widths.
    """

    op: str
    node: str
    parts: tuple[Axis, ...]


class OfGraph(NamedTuple):
    """What only a graph tells: `Structure.findings` and `Structure.write`."""

    findings: Findings
    write: Callable[[Atom], Axis]


@dataclass(frozen=True)
class Structure:
    """Which axes share a width.

    Attributes:
        widths: by name, in the order of the graph.
        axes: the axes of every variable of the checkpoint, slots and averages included.
        uses: what each axis of a variable does with its widths, in the order of the axes.
        opaque: the widths that cannot be resized, as it is not known what they are tied to.
        factors: the constants that move with a width, by its name.
        follows: the role of each slot and average of another variable, those included that only
            the ops tell which apply gradients.
        conflicts: ops that make two axes of different length one, for people.
        findings: all that the graph says, for what has to be told of its other tensors; None
            where no graph was read.
        write: gives the expression of any axis in the findings; what is no width is a number,
            0 where that is not known, and a slice of an axis that is stored in slices has a name.
            None where there are no findings.
        evens: what has to stay equally long, though the widths in it differ.
        root: what this was made from: the structure of the checkpoint as it was opened, where
            strategies renamed or left out variables since. None where this is it.
        called: by the name of a width, the one that it would have by the names that its variables
            have now, where strategies renamed them.
        of: the path of the checkpoint, for errors.
    """

    widths: Mapping[str, Width]
    axes: Mapping[str, tuple[Axis, ...]]
    uses: Mapping[str, tuple[Mapping[str, tuple[Use, ...]], ...]]
    opaque: tuple[Opaque, ...]
    factors: Mapping[str, tuple[SizeFactor, ...]]
    follows: Mapping[str, Role]
    conflicts: tuple[str, ...]
    findings: Findings | None
    write: Callable[[Atom], Axis] | None
    evens: tuple[EvenParts, ...] = ()
    root: Structure | None = None
    called: Mapping[str, str] = field(default_factory=dict)
    of: str = "the checkpoint"

    @property
    def graph(self) -> OfGraph:
        """The findings, for what cannot do without a graph.

        Raises:
            InputError: no graph was read.
        """
        if self.findings is None or self.write is None:
            raise InputError(without_graph(self.of))
        return OfGraph(self.findings, self.write)

    @cached_property
    def sizes(self) -> Mapping[str, int]:
        """The size of each width."""
        return {name: width.size for name, width in self.widths.items()}


def without_graph(of: str, reason: str = "nothing else tells what stands around variables") -> str:
    """Return the error of what cannot do without a graph, and why it cannot."""
    return (
        f"{of}: it has no graph, and {reason}; put the .meta file that was saved with it beside "
        "it, or give the graph of another checkpoint of the model (--graph-from)"
    )


def as_known(structure: Structure) -> dict[Hashable, object]:
    """Return a structure in the form in which a `Checkpoint` is given what is known of it."""
    return {(Structure, None): structure}
