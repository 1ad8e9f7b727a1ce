"""Lines of nodes, each computed from the one before: where one of them is run, all are."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence


def lines(
    inputs: Mapping[str, Sequence[str]], chosen: Collection[str], turning: Collection[str]
) -> list[list[str]]:
    """Cover nodes of one graph by few lines.

    Args:
        inputs: of each node, the nodes that it takes something of.
        chosen: the nodes to cover.
        turning: nodes that what follows need not be run with, as control flow passes through them.

    Returns:
        The nodes in the order in which they are computed; each that turns is alone.
    """
    found: list[list[str]] = []
    known = set(chosen)
    # The line on which each node is or that leads to it, and how long that was there.
    on: dict[str, tuple[int, int]] = {}
    for name in _ordered(inputs, chosen, turning):
        if name in turning:
            found.append([name])
            continue
        before = [on[source] for source in inputs.get(name, ()) if source in on]
        # What another branch has gone on with does not lead here.
        last = next((place for place in before if len(found[place[0]]) == place[1]), None)
        if name in known:
            number = len(found) if last is None else last[0]
            if last is None:
                found.append([])
            found[number].append(name)
            last = number, len(found[number])
        if last is not None:
            on[name] = last
    return [line for line in found if line[0] in known]


def _ordered(
    inputs: Mapping[str, Sequence[str]], chosen: Collection[str], turning: Collection[str]
) -> Iterator[str]:
    """Yield nodes and what they are computed from, that first; of what turns only itself."""
    seen: set[str] = set()
    for wanted in chosen:
        waiting = [(wanted, False)]
        while waiting:
            name, is_ready = waiting.pop()
            if is_ready:
                yield name
            elif name not in seen:
                seen.add(name)
                waiting.append((name, True))
                if name not in turning:
                    waiting += [(source, False) for source in inputs.get(name, ())]
