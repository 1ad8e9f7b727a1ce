"""Whether a normalised width can be turned: what stands between its normalisations and consumers.

A layer normalisation commutes with a rotation of what it takes, where that stays centred; its gain
and its shift do not, and belong to what consumes them then. So each tensor is followed from what
produces the width to what consumes it: is it a gain times what turns with the width, plus a share
of a shift? Anything else, such as a nonlinear function, sees single units.

References:
    Ashkboos et al., SliceGPT, 2024.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

from converter.graph.node import Node, Output
from converter.graph.ops import (
    ADDS,
    BIAS_ADDS,
    CONTRACTIONS,
    JOINS,
    LOOKUPS,
    MERGES,
    MOVES,
    QUOTIENTS,
    SELECTS,
    SLICES,
    SPLITS,
    STACKS,
    ops,
)
from converter.structure.axes.axis import Behind
from converter.structure.properties.facts import Facts
from converter.structure.tensors.analysis import Analysis
from converter.structure.tensors.atoms import Atom, leaves, size_of
from converter.structure.tensors.flow import Kind

_SUMS = ADDS | BIAS_ADDS | ops("AddN Sub")
_PRODUCTS = QUOTIENTS | {"Mul"}
_CONTRACTS = CONTRACTIONS | ops("Conv2D")
_HANDS_ON = MOVES | SLICES | SPLITS | LOOKUPS | JOINS | STACKS | ops("GatherNd Tile Neg")


class _UnclearError(Exception):
    """Something sees single units, or it cannot be told what it sees."""


class _Form(NamedTuple):
    """What a tensor is.

    Attributes:
        what: `units`: a gain times what turns with the width, plus a share of a shift; `gain`: a
            gain times a number for each row; `square`: of units, entry by entry; `mean`: of units;
            `number`: what does not change, and has not the width.
        gain: the variable; None for none.
        shift: the variable; None for none.
    """

    what: Literal["units", "gain", "square", "mean", "number"]
    gain: str | None = None
    shift: str | None = None


_NUMBER = _Form("number")
_UNITS = _Form("units")


def behind(analysis: Analysis, fact: Facts, before: Sequence[str]) -> tuple[Behind, ...]:
    """Tell which gain and shift stand before each variable that consumes a normalised width.

    Args:
        analysis: of the graph.
        fact: what is known of the width, of which all that makes it goes into normalisations by
            linear ops alone.
        before: the variables that make it.

    Returns:
        All that consumes it; nothing where the width cannot be turned.
    """
    turning = _Turning(analysis, fact, frozenset(before))
    try:
        turning.run()
    except (_UnclearError, IndexError):
        return ()
    found = tuple(Behind(name, gain, shift) for name, (gain, shift) in turning.consumers.items())
    return found if set(turning.consumers) == set(fact.by_use("consume")) else ()


class _Turning:
    """Follows a width from what produces it to what consumes it.

    Attributes:
        consumers: by name, the gain and the shift of what each of them consumes.
    """

    def __init__(self, analysis: Analysis, fact: Facts, before: frozenset[str]) -> None:
        self.consumers: dict[str, tuple[str | None, str | None]] = {}
        self._analysis = analysis
        self._fact = fact
        self._before = before
        self._forms: dict[Node, _Form] = {}

    def run(self) -> None:
        """Follow it.

        Raises:
            _UnclearError: it cannot be turned.
        """
        flow = self._analysis.flow
        for node in self._analysis.graph.nodes:
            if node in flow.telling and flow.kinds[node] is Kind.DATA and self._is_met(node):
                self._forms[node] = self._visit(node)
        # A loop was entered before its end was known.
        for node, form in self._forms.items():
            if node.op in MERGES and any(self._of(o) != form for o in self._carriers(node)):
                raise _UnclearError
        if any(self._carries(Output(node, 0)) for node in flow.outputs):
            raise _UnclearError

    def _is_met(self, node: Node) -> bool:
        return (
            self._carries(Output(node, 0))
            or bool(self._carriers(node))
            or any(self._forms.get(o.node, _NUMBER).what == "mean" for o in node.inputs)
        )

    def _visit(self, node: Node) -> _Form:
        if node.op in _CONTRACTS or (node.op in LOOKUPS and self._roles(node)):
            return self._contracted(node)
        forms = [self._of(output) for output in node.inputs]
        if node.op in _SUMS:
            return self._sum(node)
        if node.op in _PRODUCTS:
            return self._product(node, forms)
        if node.op in ("Mean", "Sum"):
            return self._reduced(node, forms[0])
        if node.op in ("Square", "SquaredDifference"):
            # A mean that is taken off leaves what turns.
            if forms[0] == _UNITS and forms[-1].what in ("units", "mean"):
                return _squared(forms)
            raise _UnclearError
        if node.op in SELECTS or node.op in _HANDS_ON:
            return self._handed_on(node)
        raise _UnclearError

    def _contracted(self, node: Node) -> _Form:
        for output in self._carriers(node):
            form = self._of(output)
            if self._analysis.is_weight(output):
                continue
            if form.what != "units":
                raise _UnclearError
            for name in self._roles(node, "consume"):
                pair = form.gain, form.shift
                if self.consumers.setdefault(name, pair) != pair:
                    raise _UnclearError
        if not self._carries(Output(node, 0)):
            return _NUMBER
        if "produce" not in {r.use for r in self._analysis.roles.get(node, ())}:
            raise _UnclearError
        return _UNITS

    def _sum(self, node: Node) -> _Form:
        weights = [o for o in self._carriers(node) if self._analysis.is_weight(o)]
        forms = [self._of(o) for o in node.inputs if o not in weights]
        if not self._carries(Output(node, 0)):
            # A mean plus anything is no mean.
            if any(form.what == "mean" for form in forms):
                raise _UnclearError
            return _NUMBER
        units = [form for form in forms if form.what == "units"]
        means = [form for form in forms if form.what == "mean"]
        gains = {form.gain for form in units}
        if len(units) + len(means) != len(forms) or len(gains) != 1 or (means and gains != {None}):
            raise _UnclearError
        shifts = {form.shift for form in units} - {None}
        behind = [o for o in weights if not self._is_before(o)]
        shifts |= {self._name(o) for o in behind}
        if len(shifts) > 1 or (node.op == "Sub" and node.inputs[1] in behind):
            raise _UnclearError
        return _Form("units", gains.pop(), shifts.pop() if shifts else None)

    def _product(self, node: Node, forms: Sequence[_Form]) -> _Form:
        first, second = forms[:2]
        weights = [self._analysis.is_weight(o) and self._carries(o) for o in node.inputs]
        if any(self._is_constant(output) for output in node.inputs):
            raise _UnclearError
        if node.op == "Mul" and node.inputs[0] == node.inputs[1]:
            if first != _UNITS:
                raise _UnclearError
            return _Form("square")
        if node.op != "Mul":
            if second != _NUMBER or weights[1]:
                raise _UnclearError
            return _Form("gain", self._name(node.inputs[0])) if weights[0] else first
        if any(weights):
            place = weights.index(True)
            first, second = forms[1 - place], _Form("gain", self._name(node.inputs[place]))
        if second == _NUMBER:
            first, second = second, first
        if first == _NUMBER:
            return second
        if first.what == "gain":
            first, second = second, first
        # Times a gain, the mean that will be taken off is as wide as the units are.
        if second.what != "gain" or first not in (_UNITS, _Form("mean")):
            raise _UnclearError
        return _Form("units", second.gain)

    def _reduced(self, node: Node, form: _Form) -> _Form:
        is_over = self._carries(node.inputs[0]) and not self._carries(Output(node, 0))
        if not is_over:
            return form
        if form.what == "square":
            return _NUMBER
        if form != _UNITS or node.op != "Mean":
            raise _UnclearError
        return _Form("mean")

    def _handed_on(self, node: Node) -> _Form:
        """Return what all are that are handed on, in whatever shape; zeros are anything."""
        carriers = [o for o in self._carriers(node) if self._analysis.tensor(o).number != 0]
        if any(self._analysis.kind(o) < Kind.DATA for o in carriers):
            raise _UnclearError
        found = {self._of(o) for o in carriers if o.node in self._forms}
        found |= {f for o in node.inputs if (f := self._of(o)).what == "mean"}
        if len(found) != 1:
            raise _UnclearError
        return found.pop()

    def _of(self, output: Output) -> _Form:
        return self._forms.get(output.node, _NUMBER)

    def _is_before(self, output: Output) -> bool:
        """Whether a tensor is made of variables that make the width, which all turn."""
        tensor = self._analysis.tensor(output)
        found = {
            o.variable
            for axis, atom in enumerate(tensor.axes or ())
            if self._is_in(atom)
            for o in tensor.origin(axis)
        }
        return bool(found) and found <= self._before

    def _is_constant(self, output: Output) -> bool:
        """Whether a tensor holds constants that are others for each unit; chance is none."""
        is_one = self._analysis.tensor(output).number is not None
        return self._analysis.kind(output) is Kind.CONSTANT and self._carries(output) and not is_one

    def _name(self, output: Output) -> str:
        """Return the variable whose value, one number for each unit, a tensor is.

        Raises:
            _UnclearError: it is something else.
        """
        tensor = self._analysis.tensor(output)
        names: set[str] = set()
        for axis, atom in enumerate(tensor.axes or ()):
            if self._is_in(atom):
                names |= {o.variable for o in tensor.origin(axis) if not o.how}
                if any(o.how for o in tensor.origin(axis)):
                    raise _UnclearError
            elif size_of(atom) != 1:
                raise _UnclearError
        if len(names) != 1:
            raise _UnclearError
        return names.pop()

    def _roles(self, node: Node, *uses: str) -> list[str]:
        """Return the variables whose axes a node uses for the width."""
        return [
            role.origin.variable
            for role in self._analysis.roles.get(node, ())
            if (not uses or role.use in uses) and self._is_in(role.atom)
        ]

    def _carriers(self, node: Node) -> list[Output]:
        return [output for output in node.inputs if self._carries(output)]

    def _carries(self, output: Output) -> bool:
        tensor = self._analysis.tensor(output)
        axes = (tensor.element.axes if tensor.element else tensor.axes) or ()
        return any(self._is_in(atom) for atom in axes)

    def _is_in(self, atom: Atom) -> bool:
        return self._fact.atom in leaves(atom)


def _squared(forms: Sequence[_Form]) -> _Form:
    if any(form.gain or form.shift for form in forms):
        raise _UnclearError
    return _Form("square")
