"""Steps of cells that stand beside their loops, and count for nothing.

Keras in TensorFlow 1 applies a cell once outside of its loop, only to see what shapes it gives. No
other layer takes what that gives, but as part of a graph it is computed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

from converter.graph.node import Node
from converter.graph.ops import ARRAY_MOVES, ENTERS, LOOKUPS, SHAPE_ONLY, SLICES, ops
from converter.structure.layers.chains import Chain
from converter.structure.layers.masks import in_loops
from converter.structure.tensors.analysis import Analysis

_PICKS = SLICES | LOOKUPS
# What takes a tensor into a loop, or to where a loop takes its entries from.
_ONE_BY_ONE = ARRAY_MOVES | ENTERS | ops("TensorListFromTensor")


def without_trials(analysis: Analysis, chains: Sequence[Chain]) -> list[Chain]:
    """Return the chains without those of steps that stand beside a loop.

    Such a step takes each variable as often as one turn of the loop, of which there are several
    where a cell is shared, and the first entry of what the loop takes one by one. What takes from
    the loop, or gives to a loop or to a layer that has none, is none.
    """
    loops = in_loops(analysis.graph)
    inside: dict[str, Counter[str]] = {}
    apart: list[Chain] = []
    for chain in chains:
        names = {loops[node] for node in chain.nodes if node in loops}
        for name in names:
            inside.setdefault(name, Counter()).update(_variables(chain))
        if not names:
            apart.append(chain)
    turning = {variable for turn in inside.values() for variable in turn}
    beside = [chain for chain in apart if _variables(chain) and _variables(chain) <= turning]
    if not beside:
        return list(chains)
    own = {node: chain for chain in chains for node in chain.nodes}
    trials = [chain for chain in beside if _is_for_nothing(analysis, chain, own, loops, turning)]
    taken = Counter(variable for chain in trials for variable in _variables(chain))
    turned = sum(inside.values(), Counter())
    first = [_variables(chain) for chain in trials if _is_first(analysis, chain, own)]
    left_out: set[str] = set()
    for turn in inside.values():
        is_first = any(turn.keys() >= names for names in first)
        if is_first and all(taken[variable] == turned[variable] for variable in turn):
            left_out |= turn.keys()
    dropped = {id(chain) for chain in trials if _variables(chain) <= left_out}
    return [chain for chain in chains if id(chain) not in dropped]


def _is_for_nothing(
    analysis: Analysis,
    chain: Chain,
    own: Mapping[Node, Chain],
    loops: Collection[Node],
    turning: Collection[str],
) -> bool:
    """Whether a chain outside of loops gives nothing to others, and takes nothing of its loop."""

    def following(node: Node) -> list[Node]:
        return [n for n in analysis.graph.consumers[node] if n.op not in SHAPE_ONLY]

    after = _reached(chain.nodes, following, loops)
    taken = {name for node in after if node in own for name in _variables(own[node])}
    if any(node in loops for node in after) or not taken <= set(turning):
        return False
    before = _reached(chain.nodes, lambda node: [o.node for o in node.inputs], ())
    names = _variables(chain)
    return not any(n in loops and n in own and names & _variables(own[n]) for n in before)


def _is_first(analysis: Analysis, chain: Chain, own: Collection[Node]) -> bool:
    """Whether a chain takes one entry of what a loop takes one by one, or a state of zeros."""
    taken = ([o for o in n.inputs if not analysis.is_weight(o)] for n in chain.kernels)
    if any(given and not any(map(analysis.is_data, given)) for given in taken):
        return True
    before = _reached(chain.kernels, lambda node: [o.node for o in node.inputs], own)
    sources = [node.inputs[0].node for node in before if node.op in _PICKS and node.inputs]
    return any(user.op in _ONE_BY_ONE for s in sources for user in analysis.graph.consumers[s])


def _variables(chain: Chain) -> set[str]:
    return {part.variable for _, part in chain.parts}


def _reached(
    begin: Iterable[Node], following: Callable[[Node], Iterable[Node]], stop: Collection[Node]
) -> set[Node]:
    """Return all nodes that are reached; what follows those of `stop` is left out."""
    found = set(begin)
    waiting = list(found)
    while waiting:
        new = {node for node in following(waiting.pop()) if node not in found}
        found |= new
        waiting += [node for node in new if node not in stop]
    return found
