"""The gates of recurrent cells: which block of a kernel is which, by what becomes of it.

In an LSTM the candidate is multiplied with the input gate, the sum of that and the old cell times
the forget gate is the new cell, and the output gate is what is left. In a GRU one minus the update
gate is computed. A cell that does anything else has blocks without names.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence

from converter.graph.node import Node, Output
from converter.graph.ops import (
    ACTIVATIONS,
    ADDS,
    BIAS_ADDS,
    JOINS,
    LAYOUT,
    MATMULS,
    MERGES,
    READS,
    RESHAPES,
    SLICES,
    SPLITS,
    SWITCHES,
    ops,
)
from converter.structure.properties.facts import Facts, Place
from converter.structure.tensors.analysis import Analysis
from converter.structure.tensors.atoms import Product, size_of

_OPS: Mapping[str, tuple[str, ...]] = {
    "BlockLSTM": ("i", "j", "f", "o"),
    "LSTMBlockCell": ("i", "j", "f", "o"),
    "BlockLSTMV2": ("i", "f", "c", "o"),
    "GRUBlockCell": ("r", "u"),
}
# What leads on within one turn of a loop.
_PASSING = (
    READS | LAYOUT | SWITCHES | MERGES | JOINS | MATMULS | ADDS | BIAS_ADDS | ops("Sub Mul RealDiv")
)
_READING = READS | RESHAPES | JOINS | ops("Unpack")
_MAX_NODES = 400

Blocks = dict[int, Output]


def labels_of(
    analysis: Analysis, facts: Iterable[Facts], products: Mapping[Place, Sequence[Product]]
) -> dict[Place, Sequence[str]]:
    """Name the blocks of the axes that are made of two to four equal ones."""
    users: dict[Place, dict[Node, None]] = {}
    for fact in facts:
        for place, uses in fact.uses.items():
            if "consume" not in uses:
                users.setdefault(place, {}).update(dict.fromkeys(uses.values()))
    known: dict[tuple[Output, ...], Sequence[str]] = {}
    found: dict[Place, Sequence[str]] = {}
    for place, nodes in users.items():
        count = _count(products[place])
        if count is None:
            continue
        for node in nodes:
            if node.op in _OPS:
                found[place] = _OPS[node.op]
                break
            labels = _labels(analysis, node, place, count, known)
            if labels:
                found[place] = labels
                break
    return found


def _count(terms: Sequence[Product]) -> int | None:
    """Return how many equal blocks an axis is made of."""
    if len(terms) == 1 and len(terms[0]) == 2:
        return size_of(terms[0][0])
    same = len(terms) in (2, 3, 4) and all(term == terms[0] for term in terms)
    return len(terms) if same else None


def _labels(
    analysis: Analysis,
    user: Node,
    place: Place,
    count: int,
    known: dict[tuple[Output, ...], Sequence[str]],
) -> Sequence[str]:
    for blocks, is_active in _cuts(analysis, user, place, count):
        key = tuple(blocks[i] for i in range(count))
        if key not in known:
            known[key] = _name(analysis, blocks, is_active)
        if known[key]:
            return known[key]
    return ()


def _cuts(
    analysis: Analysis, user: Node, place: Place, count: int
) -> Iterator[tuple[Blocks, bool]]:
    """Yield the ways in which blocks are cut, and whether that is behind their activation."""
    variables = [
        node
        for node, tensor in analysis.variables.items()
        if tensor.origins and any(o[:2] == place for axis in tensor.origins for o in axis)
    ]
    for starts, passing in ((variables, _READING), ([user], _PASSING | ACTIVATIONS.keys())):
        slices: Blocks = {}
        for node, is_active in _forward(analysis, starts, passing):
            if node.op in SPLITS and _outputs(node) == count:
                yield {i: Output(node, i) for i in range(count)}, is_active
            elif node.op in SLICES:
                block = _block(analysis, node, count)
                if block is not None:
                    slices.setdefault(block, Output(node, 0))
        if len(slices) == count:
            yield slices, False


def _outputs(node: Node) -> int:
    return node.integer("num_split") or node.integer("num_splits")


def _block(analysis: Analysis, node: Node, count: int) -> int | None:
    """Return which block of its last axis a slice takes."""
    before, after = analysis.tensor(node.inputs[0]), analysis.tensor(Output(node, 0))
    begins = analysis.tensor(node.inputs[1]).values
    if not before.axes or not after.axes or not begins or len(begins) != len(before.axes):
        return None
    whole, part = size_of(before.axes[-1]), size_of(after.axes[-1])
    if not whole or not part or part * count != whole:
        return None
    masked = node.op == "StridedSlice" and node.integer("begin_mask") >> (len(begins) - 1) & 1
    begin = 0 if masked else begins[-1]
    return begin // part if begin % part == 0 else None


def _forward(
    analysis: Analysis, starts: Iterable[Node], passing: frozenset[str]
) -> list[tuple[Node, bool]]:
    """Return the nodes that tensors reach through some ops, and whether an activation is one."""
    found = dict.fromkeys(starts, False)
    waiting = deque(found)
    while waiting and len(found) < _MAX_NODES:
        node = waiting.popleft()
        for consumer in analysis.graph.consumers[node]:
            if consumer in found or consumer not in analysis.flow.telling:
                continue
            found[consumer] = found[node] or consumer.op in ACTIVATIONS
            if consumer.op in passing:
                waiting.append(consumer)
    return list(found.items())


def _name(analysis: Analysis, blocks: Blocks, is_active: bool) -> Sequence[str]:
    activations = {
        i: output if is_active else _activation(analysis, output) for i, output in blocks.items()
    }
    return _lstm(analysis, activations) if len(blocks) == 4 else _gru(analysis, activations)


def _activation(analysis: Analysis, block: Output) -> Output | None:
    """Return what the first nonlinear op behind a block gives; of hard sigmoids the last."""
    waiting, seen = deque([block]), {block.node}
    while waiting and len(seen) < _MAX_NODES:
        for consumer in _consumers(analysis, waiting.popleft(), *_PASSING, *ACTIVATIONS):
            if consumer in seen:
                continue
            seen.add(consumer)
            if consumer.op in ACTIVATIONS:
                return _last(analysis, consumer)
            waiting.append(Output(consumer, 0))
    return None


def _last(analysis: Analysis, node: Node) -> Output:
    while True:
        telling = [c for c in analysis.graph.consumers[node] if c in analysis.flow.telling]
        if len(telling) != 1 or telling[0].op not in ("Maximum", "Minimum"):
            return Output(node, 0)
        node = telling[0]


def _lstm(analysis: Analysis, activations: Mapping[int, Output | None]) -> Sequence[str]:
    gates = {output: i for i, output in activations.items() if output is not None}
    if len(gates) != 4:
        return ()
    for a in gates:
        for both in _consumers(analysis, a, "Mul"):
            other = next((o for o in both.inputs if o != a), None)
            if other not in gates or other is None:
                continue
            for total in _consumers(analysis, Output(both, 0), *ADDS):
                forget = _gate_in(total, both, gates)
                if forget is not None:
                    return _ordered(gates[a], gates[other], forget, gates)
    return ()


def _ordered(a: int, b: int, forget: int, gates: Mapping[Output, int]) -> Sequence[str]:
    ops = {i: output.node.op for output, i in gates.items()}
    # The gates have one activation, and the candidate has another.
    candidates = [i for i in (a, b) if ops[i] != ops[forget]]
    if len(candidates) != 1 or forget in (a, b):
        return ()
    candidate = candidates[0]
    found = {forget: "f", candidate: "c" if candidate == 2 else "j"}
    found[a if candidate == b else b] = "i"
    return [found.get(i, "o") for i in range(4)]


def _gate_in(total: Node, but: Node, gates: Mapping[Output, int]) -> int | None:
    """Return the gate of the other product in a sum."""
    for product, _ in total.inputs:
        if product is not but and product.op == "Mul":
            found = [gates[output] for output in product.inputs if output in gates]
            if len(found) == 1:
                return found[0]
    return None


def _gru(analysis: Analysis, activations: Mapping[int, Output | None]) -> Sequence[str]:
    gates = {i: output for i, output in activations.items() if output is not None}
    updates = [i for i, output in gates.items() if list(_consumers(analysis, output, "Sub"))]
    if len(updates) != 1 or len(gates) != len(activations):
        return ()
    update = updates[0]
    if len(activations) == 2:
        return ["u" if i == update else "r" for i in range(2)]
    rest = [i for i in gates if i != update and gates[i].node.op == gates[update].node.op]
    if len(rest) != 1 or len(gates) != 3:
        return ()
    candidate = next(i for i in gates if i not in (update, rest[0]))
    # A coupled LSTM has three gates as well, and its output gate comes behind the new input.
    made_of = _forward(analysis, [gates[rest[0]].node], _PASSING | {"Mul"})
    if gates[candidate].node not in dict(made_of):
        return ()
    return ["z" if i == update else "r" if i == rest[0] else "h" for i in range(3)]


def _consumers(analysis: Analysis, output: Output, *ops: str) -> Iterator[Node]:
    for consumer in analysis.graph.consumers[output.node]:
        if consumer.op in ops and consumer in analysis.flow.telling and output in consumer.inputs:
            yield consumer
