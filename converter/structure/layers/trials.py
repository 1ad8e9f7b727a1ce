"""Steps of cells that stand beside their loops, and count for nothing.

Keras in TensorFlow 1 applies a cell once outside of its loop, only to see what shapes it gives. No
other layer takes what that gives, but as part of a graph it is computed.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence

from converter.graph.node import Node
from converter.graph.ops import SHAPE_ONLY
from converter.structure.layers.chains import Chain
from converter.structure.layers.masks import in_loops
from converter.structure.tensors.analysis import Analysis


def without_trials(analysis: Analysis, chains: Sequence[Chain]) -> list[Chain]:
    """Return the chains without those of steps that stand beside a loop of the same variables.

    What takes from that loop, or gives to a loop or to a layer that has none, is no such step.
    """
    loops = in_loops(analysis.graph)
    own = {node: chain for chain in chains for node in chain.nodes}
    turning = {name for chain in chains if _is_in(chain, loops) for name in _variables(chain)}
    trials: set[int] = set()

    def following(node: Node) -> list[Node]:
        return [n for n in analysis.graph.consumers[node] if n.op not in SHAPE_ONLY]

    for chain in chains:
        names = _variables(chain)
        if not names or not names <= turning or _is_in(chain, loops):
            continue
        after = _reached(chain.nodes, following, loops)
        taken = {name for node in after if node in own for name in _variables(own[node])}
        if loops.intersection(after) or not taken <= turning:
            continue
        before = _reached(chain.nodes, lambda node: [o.node for o in node.inputs], ())
        if not any(n in loops and n in own and names & _variables(own[n]) for n in before):
            trials.add(id(chain))
    return [chain for chain in chains if id(chain) not in trials]


def _is_in(chain: Chain, loops: Collection[Node]) -> bool:
    return any(node in loops for node in chain.nodes)


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
