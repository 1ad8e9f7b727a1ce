"""Whether a normalised width can grow: all that is made of it stands behind its normalisation.

And whether it can be turned.

A layer normalisation counts new units, even where they are zero. But if everything that makes the
width goes into the normalisation by linear ops alone, it can be centred (its mean over the width is
zero then, with new zeros and without), and be multiplied by sqrt(N / n), so that the mean of its
squares over N units is what it was over n. The gain behind takes sqrt(n / N), and what consumes the
width gets what it got. A normalisation by the root mean square needs no centring.

To tell that, each tensor is followed: what of the old one is it, once the variables have changed?

References:
    Wang et al., LEMON: lossless model expansion, 2024; Ashkboos et al., SliceGPT, 2024 (centring of
    what writes to a stream); Gesmundo and Maile, Composable function-preserving expansions for
    transformer architectures, 2023 (gains of a normalisation by root mean squares).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from converter.graph.node import Node, Output
from converter.graph.ops import (
    ADDS,
    BIAS_ADDS,
    COMPARING,
    CONTRACTIONS,
    JOINS,
    LOOKUPS,
    MERGES,
    MOVES,
    QUOTIENTS,
    SLICES,
    SPLITS,
    ops,
)
from converter.structure.axes.axis import AVERAGING, SINGLING, Normalised, Touch, Turnable
from converter.structure.properties.facts import Facts, Place
from converter.structure.properties.turning import behind
from converter.structure.tensors.analysis import Analysis
from converter.structure.tensors.atoms import Atom, find, leaves
from converter.structure.tensors.flow import Kind

# What sees the places of units, or single ones, whatever stands before it.
_HINDERS: frozenset[Touch] = SINGLING | {
    "extreme",
    "cross entropy",
    "input",
    "label",
    "norm",
    "output",
    "paired",
    "self paired",
    "sum",
    "weight norm",
}

_MERGES = MERGES | ops("_Loop _Join")
_TAKES = SLICES | SPLITS | LOOKUPS | ops("GatherNd Tile Unpack")
_JOINS = JOINS | ops("Pack")
_SUMS = ADDS | BIAS_ADDS | ops("AddN Sub")
_DIFFERENCES = ops("Sub SquaredDifference")
_CONTRACTS = CONTRACTIONS | ops("Conv2D")
_CUTS = COMPARING | ops("Floor")
_MAX_SOURCES = 256
# Of a power of the ratio they make another one: twice it, half of it, minus it.
_POWERS = {"Square": 2.0, "Sqrt": 0.5, "Rsqrt": -0.5, "Reciprocal": -1.0, "Inv": -1.0}
_KEEP_ZERO = ops("Relu LeakyRelu Abs Tanh Elu Selu Relu6 Softsign Erf Sin Sign Expm1 Log1p")
_ENTRYWISE = _KEEP_ZERO | ops("Sigmoid Softplus Exp Gelu Swish Cos Floor Ceil Round Rint")


class _UnclearError(Exception):
    """What becomes of a tensor cannot be told, or is not what it was."""


@dataclass(frozen=True)
class _State:
    """What a tensor becomes, by what it was.

    It becomes r**(half / 2) * (old + times * mean * factor) with r = N / n; new units of it are
    zero, or are anything.

    Attributes:
        half: the power of r, in halves.
        times: how many times the mean over the width of `base` is added.
        base: whose mean that is.
        factor: what it is multiplied with.
        is_zero: whether new units are zero; where the tensor has not the width, whether it is all.
        is_raw: whether it is made by linear ops from what produces the width.
    """

    half: int = 0
    times: int = 0
    base: Output | None = None
    factor: tuple[Output, ...] = ()
    is_zero: bool = False
    is_raw: bool = False


_SAME = _State()


def normalised(analysis: Analysis, fact: Facts) -> Normalised | None:
    """Tell how a normalised width can grow; None where it cannot, or where that is not clear."""
    return next(
        (
            Normalised(is_centred, tuple(before))
            for is_centred, before in _ways(analysis, fact, is_scaled=True)
        ),
        None,
    )


def turnable(analysis: Analysis, fact: Facts) -> Turnable | None:
    """Tell how a normalised width can be turned; None where it cannot, or that is not clear."""
    for is_centred, _ in _ways(analysis, fact, is_scaled=False):
        if found := behind(analysis, fact, is_centred=is_centred):
            return Turnable(is_centred, found)
    return None


def _ways(
    analysis: Analysis, fact: Facts, *, is_scaled: bool
) -> Iterator[tuple[bool, Collection[str]]]:
    """Yield whether a width has to be centred, and what makes it, for each way that can be told."""
    touches = fact.touches
    if AVERAGING.isdisjoint(touches) or not _HINDERS.isdisjoint(touches):
        return
    for is_centred in (False, True):
        following = _Following(analysis, fact, is_centred=is_centred, is_scaled=is_scaled)
        try:
            following.run()
        except (_UnclearError, IndexError):
            continue
        yield is_centred, following.before


class _Following:
    """Follows a width from what produces it to what consumes it.

    Args:
        analysis: of the graph.
        fact: what is known of the width.
        is_centred: whether what makes it is centred.
        is_scaled: whether what is consumed has to be what it was; else it may be multiplied with
            a power of the ratio, which what consumes it makes up for.

    Attributes:
        before: the variables that make it in front of the normalisation.
    """

    def __init__(
        self, analysis: Analysis, fact: Facts, *, is_centred: bool, is_scaled: bool
    ) -> None:
        self.before: dict[str, None] = {}
        self._behind: set[str] = set()
        self._analysis = analysis
        self._fact = fact
        self._centred = is_centred
        self._scaled = is_scaled
        self._states: dict[Node, _State] = {}

    def run(self) -> None:
        """Follow it.

        Raises:
            _UnclearError: something gets another value than it got.
        """
        flow = self._analysis.flow
        for node in self._analysis.graph.nodes:
            if node in flow.telling and flow.kinds[node] is Kind.DATA:
                state = self._visit(node)
                if state is not None:
                    self._states[node] = state
        # A loop was entered before its end was known.
        for node, state in self._states.items():
            if node.op in _MERGES:
                states = [self._of(o) for o in node.inputs if self._carries(o)]
                if not all(other.is_raw for other in (state, *states)):
                    self._agree([state, *states])
        if self._behind & self.before.keys() or not self.before:
            raise _UnclearError
        if any(_differs(self._of(Output(node, 0))) for node in flow.outputs):
            raise _UnclearError

    def _visit(self, node: Node) -> _State | None:
        """Return what a node gives; None where it is what it was, and has not the width."""
        uses = {r.use for r in self._analysis.roles.get(node, ()) if self._is_in(r.atom)}
        followed = [o for o in node.inputs if o.node in self._states]
        if not (uses or followed or self._carries(Output(node, 0))):
            return None
        if node.op in _CONTRACTS or (node.op in LOOKUPS and uses):
            return self._contracted(node, uses)
        if node.op in _SUMS or node.op == "SquaredDifference":
            return self._sum(node)
        if node.op == "Mul" or node.op in QUOTIENTS:
            return self._product(node)
        if node.op in ("Mean", "Sum", "Max", "Min"):
            return self._reduced(node)
        if node.op in _POWERS:
            return _raised(self._of(node.inputs[0]), _POWERS[node.op])
        if node.op in ("Select", "SelectV2"):
            return self._selected(node)
        if node.op in MOVES:
            return self._passed(node)
        if node.op in _TAKES or node.op in _JOINS:
            return self._taken(node)
        states = [self._of(output) for output in node.inputs]
        if node.op == "Neg":
            raw = states[0].is_raw
            return self._raw(Output(node, 0)) if raw else replace(states[0], times=-states[0].times)
        if any(_differs(state) for state in states):
            raise _UnclearError
        if not self._carries(Output(node, 0)):
            return _SAME if followed else None
        if node.op in _ENTRYWISE:
            return _State(is_zero=states[0].is_zero and node.op in _KEEP_ZERO)
        raise _UnclearError

    def _selected(self, node: Node) -> _State:
        """Of a dropout: zeros where its mask says so."""
        mask, kept, zeros = node.inputs
        if not self._is_mask(mask) or self._analysis.tensor(zeros).number != 0:
            raise _UnclearError
        return self._masked(mask, kept, node)

    def _masked(self, mask: Output, kept: Output, node: Node) -> _State:
        """Without its mean a tensor is not the same behind a dropout that stays."""
        state = self._of(kept)
        if state.times and not self._can_be_off(mask):
            raise _UnclearError
        return self._raw(Output(node, 0)) if state.is_raw else state

    def _is_mask(self, output: Output) -> bool:
        return self._analysis.flow.kinds[output.node] is Kind.NOISE and any(
            node.op in _CUTS for node in self._sources(output)
        )

    def _can_be_off(self, mask: Output) -> bool:
        settings = self._analysis.flow.settings
        return any(node in settings for node in self._sources(mask))

    def _sources(self, output: Output) -> list[Node]:
        """Return the nodes of constants and random numbers that a tensor is made of."""
        found = [output.node]
        kinds = self._analysis.flow.kinds
        for node in found:
            # Not beyond a shape, which is a constant whatever it is of.
            sources = (o.node for o in node.inputs if kinds[o.node] <= Kind.NOISE)
            found += [source for source in sources if source not in found]
            if len(found) > _MAX_SOURCES:
                raise _UnclearError
        return found

    def _contracted(self, node: Node, uses: Collection[str]) -> _State | None:
        """A product with variables: what it takes has to be what it was."""
        for output in node.inputs:
            if self._is_weight(output):
                continue
            state = self._of(output)
            if state.times or (state.half and self._scaled):
                raise _UnclearError
            if self._carries(output) and "consume" not in uses:
                raise _UnclearError
        if "produce" not in uses:
            if self._carries(Output(node, 0)):
                raise _UnclearError
            return _SAME
        for output in node.inputs:
            if self._is_weight(output):
                self._mark_before(output)
        return self._raw(Output(node, 0))

    def _sum(self, node: Node) -> _State:
        """Add or subtract, of which all have to be the same power of the ratio."""
        data = [o for o in node.inputs if not self._is_weight(o)]
        states = [self._of(output) for output in data]
        weights = [o for o in node.inputs if self._is_weight(o) and self._carries(o)]
        is_difference = node.op in _DIFFERENCES
        if states and all(state.is_raw for state in states) and node.op != "SquaredDifference":
            for output in weights:
                self._mark_before(output)
            others = len(node.inputs) - len(data) - len(weights)
            if others:
                raise _UnclearError
            return self._raw(Output(node, 0))
        for output in weights:
            self._mark_behind(output)
        found = [self._of(output) for output in node.inputs]
        if weights and data and not self._scaled:
            half = states[0].half
            found = [
                replace(state, half=half) if output in weights else state
                for output, state in zip(node.inputs, found, strict=True)
            ]
        state = found[0]
        for number, other in enumerate(found[1:]):
            state = _added(state, other, -1 if is_difference and number == 0 else 1)
        if node.op == "SquaredDifference":
            state = _raised(state, 2.0)
        return replace(state, is_raw=False)

    def _product(self, node: Node) -> _State:
        first, second = node.inputs[:2]
        a, b = self._of(first), self._of(second)
        divides = node.op in QUOTIENTS
        for mask, kept in ((first, second), (second, first)):
            if self._is_mask(mask):
                return self._masked(mask, kept, node)
        if a.is_raw and not self._carries(second) and not _differs(b):
            return self._raw(Output(node, 0))
        if b.is_raw and not self._carries(first) and not _differs(a) and not divides:
            return self._raw(Output(node, 0))
        if (a.times and b.times) or (divides and b.times):
            raise _UnclearError
        mean, other = (a, second) if a.times else (b, first)
        return _State(
            a.half - b.half if divides else a.half + b.half,
            mean.times,
            mean.base,
            (*mean.factor, self._canonical(other)) if mean.times else (),
            is_zero=a.is_zero or (b.is_zero and not divides),
        )

    def _reduced(self, node: Node) -> _State | None:
        source = node.inputs[0]
        state = self._of(source)
        before, after = (self._analysis.tensor(o).axes or () for o in (source, Output(node, 0)))
        if not self._carries(source):
            if _differs(state):
                raise _UnclearError
            return _SAME
        if self._carries(Output(node, 0)):
            if state.is_raw and node.op in ("Mean", "Sum"):
                return self._raw(Output(node, 0))
            if _differs(state):
                raise _UnclearError
            return state
        kept = {find(atom) for atom in after}
        gone = [atom for atom in before if find(atom) not in kept and atom.size != 1]
        if len(gone) != 1 or find(gone[0]) is not self._fact.atom or node.op not in ("Mean", "Sum"):
            raise _UnclearError
        if state.times:
            if not state.is_raw or node.op == "Sum":
                raise _UnclearError
            return replace(state, is_raw=False, is_zero=True)
        if not state.is_zero:
            raise _UnclearError
        return _State(state.half - (2 if node.op == "Mean" else 0))

    def _passed(self, node: Node) -> _State | None:
        """Hand on, with other axes."""
        carriers = [o for o in node.inputs if o.node in self._states]
        if not carriers:
            # The way round a loop comes later.
            if node.op in _MERGES:
                return None
            raise _UnclearError
        if node.op not in _MERGES and len(carriers) > 1:
            raise _UnclearError
        states = [self._of(output) for output in carriers]
        if node.op in _MERGES and all(state.is_raw for state in states):
            return self._raw(Output(node, 0))
        return self._agree(states)

    def _taken(self, node: Node) -> _State | None:
        """Take some entries of other axes, or put several together: means are of these then."""
        joined = [o for o in node.inputs if self._carries(o)] if node.op in _JOINS else []
        states = [self._of(output) for output in joined or node.inputs[:1]]
        if all(state.is_raw for state in states):
            return self._raw(Output(node, 0))
        if any(_differs(state) for state in states):
            raise _UnclearError
        return self._agree(states)

    def _agree(self, states: Sequence[_State]) -> _State:
        first = states[0]
        for state in states[1:]:
            if replace(state, is_zero=False) != replace(first, is_zero=False):
                raise _UnclearError
        return replace(first, is_zero=all(state.is_zero for state in states))

    def _raw(self, output: Output) -> _State:
        if self._centred:
            return _State(1, -1, output, is_zero=True, is_raw=True)
        return _State(1, is_zero=True, is_raw=True)

    def _of(self, output: Output) -> _State:
        """Return what becomes of a tensor.

        Raises:
            _UnclearError: it is made of variables in a way that does not tell.
        """
        if output.node in self._states:
            return self._states[output.node]
        if not self._carries(output):
            return _SAME
        if self._is_weight(output):
            axes = enumerate(self._analysis.tensor(output).axes or ())
            uses = [self._uses(output, axis) for axis, atom in axes if self._is_in(atom)]
            self._names(output)
            if uses == [{"gain"}]:
                return _State(-1)
            if uses == [{"shift"}]:
                return _State(is_zero=True)
        elif self._analysis.tensor(output).number == 0:
            return _State(is_zero=True)
        raise _UnclearError

    def _mark_before(self, output: Output) -> None:
        tensor = self._analysis.tensor(output)
        for axis, atom in enumerate(tensor.axes or ()):
            uses = self._uses(output, axis) if self._is_in(atom) else {"produce"}
            if not (uses <= {"produce", "shift"} or uses == {"consume"}):
                raise _UnclearError
        self.before.update(dict.fromkeys(self._names(output)))

    def _mark_behind(self, output: Output) -> None:
        self._behind.update(self._names(output))

    def _names(self, output: Output) -> list[str]:
        """Return the variables that make a tensor, as they are."""
        tensor = self._analysis.tensor(output)
        found: dict[str, None] = {}
        for axis, atom in enumerate(tensor.axes or ()):
            if self._is_in(atom):
                if any(origin.how for origin in tensor.origin(axis)) or not tensor.origin(axis):
                    raise _UnclearError
                found.update(dict.fromkeys(sorted(o.variable for o in tensor.origin(axis))))
        return list(found)

    def _uses(self, output: Output, axis: int) -> set[str]:
        origins = self._analysis.tensor(output).origin(axis)
        places = (Place(origin.variable, origin.axis) for origin in origins)
        found: set[str] = {use for place in places for use in self._fact.uses.get(place, ())}
        return found or {"unclear"}

    def _canonical(self, output: Output) -> Output:
        node = output.node
        while node.op in MOVES and len(node.inputs) == 1:
            output = node.inputs[0]
            node = output.node
        return output

    def _is_weight(self, output: Output) -> bool:
        return self._analysis.flow.kinds[output.node] is Kind.WEIGHT

    def _carries(self, output: Output) -> bool:
        tensor = self._analysis.tensor(output)
        axes: Iterable[Atom] = (tensor.element.axes if tensor.element else tensor.axes) or ()
        return any(self._is_in(atom) for atom in axes)

    def _is_in(self, atom: Atom) -> bool:
        return self._fact.atom in leaves(atom)


def _differs(state: _State) -> bool:
    return bool(state.half or state.times)


def _added(a: _State, b: _State, sign: int) -> _State:
    if a.half != b.half:
        raise _UnclearError
    if a.times and b.times and (a.base, a.factor) != (b.base, b.factor):
        raise _UnclearError
    times = a.times + sign * b.times
    mean = a if a.times else b
    is_zero = a.is_zero and b.is_zero
    if not times:
        return _State(a.half, is_zero=is_zero)
    return _State(a.half, times, mean.base, mean.factor, is_zero=is_zero)


def _raised(state: _State, power: float) -> _State:
    half = state.half * power
    if state.times or half != int(half):
        raise _UnclearError
    return _State(int(half), is_zero=state.is_zero and power > 0)
