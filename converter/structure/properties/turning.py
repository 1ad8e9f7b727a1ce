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
            `deviation`: a number for each row that is made of squares; `number`: any other.
        gain: the variable; None for none.
        shift: the variable; None for none.
        is_raw: of units: whether they are made by linear ops from what produces them.
    """

    what: Literal["units", "gain", "square", "mean", "deviation", "number"]
    gain: str | None = None
    shift: str | None = None
    is_raw: bool = False

    @property
    def is_plain(self) -> bool:
        """Whether it turns with the width, and no more."""
        return self.what == "units" and self.gain is None and self.shift is None


_NUMBER = _Form("number")
_DEVIATION = _Form("deviation")
_NUMBERS = (_NUMBER, _DEVIATION)
_MEAN = _Form("mean")
_SQUARE = _Form("square")
_RAW = _Form("units", is_raw=True)


def behind(analysis: Analysis, fact: Facts, *, is_centred: bool) -> tuple[Behind, ...]:
    """Tell which gain and shift stand before each variable that consumes a normalised width.

    Args:
        analysis: of the graph.
        fact: what is known of the width, of which all that makes it goes into normalisations by
            linear ops alone.
        is_centred: whether what makes it is centred.

    Returns:
        All that consumes it; nothing where the width cannot be turned.
    """
    turning = _Turning(analysis, fact, is_centred=is_centred)
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

    def __init__(self, analysis: Analysis, fact: Facts, *, is_centred: bool) -> None:
        self.consumers: dict[str, tuple[str | None, str | None]] = {}
        self._analysis = analysis
        self._fact = fact
        self._centred = is_centred
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
            or any(self._of(o) in (_MEAN, _DEVIATION) for o in node.inputs)
        )

    def _visit(self, node: Node) -> _Form:
        if node.op in _CONTRACTS or (node.op in LOOKUPS and self._roles(node)):
            return self._contracted(node)
        forms = [self._of(output) for output in node.inputs]
        has_width = self._carries(Output(node, 0)) or bool(self._carriers(node))
        if not has_width and _MEAN not in forms:
            return _DEVIATION
        if node.op in _SUMS:
            return self._sum(node)
        if node.op in _PRODUCTS:
            return self._product(node, forms)
        if node.op in ("Mean", "Sum"):
            return self._reduced(node, forms[0])
        if node.op in ("Square", "SquaredDifference"):
            # A mean that is taken off leaves what turns.
            if forms[0].is_plain and (forms[-1].is_plain or forms[-1] == _MEAN):
                return _SQUARE
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
        if not self._roles(node, "produce"):
            raise _UnclearError
        return _RAW

    def _sum(self, node: Node) -> _Form:
        weights = [o for o in self._carriers(node) if self._analysis.is_weight(o)]
        forms = [self._of(o) for o in node.inputs if o not in weights]
        if not self._carries(Output(node, 0)):
            # A mean plus anything is no mean.
            raise _UnclearError
        if all(form == _RAW for form in forms):
            return _RAW
        units = [form for form in forms if form.what == "units"]
        means = [form for form in forms if form.what == "mean"]
        gains = {form.gain for form in units}
        if len(units) + len(means) != len(forms) or len(gains) != 1:
            raise _UnclearError
        shifts = {form.shift for form in units} - {None}
        shifts |= {self._name(output) for output in weights}
        if len(shifts) > 1 or (node.op == "Sub" and node.inputs[1] in weights):
            raise _UnclearError
        return _Form("units", gains.pop(), shifts.pop() if shifts else None)

    def _product(self, node: Node, forms: Sequence[_Form]) -> _Form:
        first, second = forms[:2]
        weights = [self._analysis.is_weight(o) and self._carries(o) for o in node.inputs]
        if node.op == "Mul" and node.inputs[0] == node.inputs[1]:
            if not first.is_plain:
                raise _UnclearError
            return _SQUARE
        if node.op != "Mul":
            if second not in _NUMBERS or weights[1]:
                raise _UnclearError
            if weights[0]:
                return _Form("gain", self._name(node.inputs[0]))
            return _times(first, second)
        if any(weights):
            place = weights.index(True)
            first, second = forms[1 - place], _Form("gain", self._name(node.inputs[place]))
        for form, other in ((first, second), (second, first)):
            if other in _NUMBERS:
                return _times(form, other)
        if first.what == "gain":
            first, second = second, first
        # Times a gain, the mean that will be taken off is as wide as the units are.
        if second.what != "gain" or not (first.is_plain or first == _MEAN):
            raise _UnclearError
        return _Form("units", second.gain)

    def _reduced(self, node: Node, form: _Form) -> _Form:
        is_over = self._carries(node.inputs[0]) and not self._carries(Output(node, 0))
        if not is_over:
            return form
        if form == _SQUARE:
            return _DEVIATION
        if not form.is_plain or node.op != "Mean" or not self._centred:
            raise _UnclearError
        return _MEAN

    def _handed_on(self, node: Node) -> _Form:
        """Return what all are that are handed on, in whatever shape; zeros are anything."""
        carriers = [o for o in self._carriers(node) if self._analysis.tensor(o).number != 0]
        found = {self._of(o) for o in carriers if o.node in self._forms}
        found |= {f for o in node.inputs if (f := self._of(o)).what == "mean"}
        if len(found) != 1:
            raise _UnclearError
        return found.pop()

    def _of(self, output: Output) -> _Form:
        return self._forms.get(output.node, _NUMBER)

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


def _times(form: _Form, number: _Form) -> _Form:
    """Return what a tensor is times a number for each row, or divided by it."""
    return form._replace(is_raw=form.is_raw and number == _NUMBER)
