"""Gives variables the names that they have in the graph."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from converter import PlanError, Strategy, hookimpl, option
from converter.counted import agree, count
from converter.names.follow import followers

if TYPE_CHECKING:
    from converter import Checkpoint, Variable


@dataclass(frozen=True)
class Names(Strategy):
    """Name variables as the graph does, where a Saver stored them under other keys.

    A Saver that was made of a dict stores variables under the keys of the dict. The graph beside
    the checkpoint tells which variable each key is of. A key that is the name of another variable
    stays; slots and averages that the graph does not know follow their variables.

    Example:
        convert ckpt model.ckpt --names graph -o out/
    """

    name: ClassVar[str] = "names"
    names: Literal["graph"] = option(help="where the names come from: the graph beside the source")

    def apply(self, checkpoint: Checkpoint) -> Iterable[Variable]:
        renamed = _in_graph(checkpoint)
        renamed |= followers(checkpoint.roles(), renamed)
        taken: dict[str, str] = {}
        for name in checkpoint:
            new = renamed.get(name, name)
            if (other := taken.setdefault(new, name)) != name:
                raise PlanError(
                    f"{new}: both {other} and {name} would have this name, which the graph gives "
                    f"them; drop one before, or use rename"
                )
        return [
            variable.rename(renamed[name]) if renamed.get(name, name) != name else variable
            for name, variable in checkpoint.items()
        ]

    def notes(self, checkpoint: Checkpoint) -> Iterable[str]:
        renamed = _in_graph(checkpoint)
        if all(name == new for name, new in renamed.items()):
            yield "all variables are stored under the names that the graph has for them"
        known = renamed | followers(checkpoint.roles(), renamed)
        left = [name for name in checkpoint if name not in known]
        if left:
            are = agree(len(left), "is not in the graph and stays", "are not in the graph and stay")
            yield f"{count(len(left), 'variable')} {are}, such as {left[0]}"


def _in_graph(checkpoint: Checkpoint) -> dict[str, str]:
    """Return the name in the graph of each variable that it has."""
    from converter.graph.ops import VARIABLES
    from converter.graph.ordered import read_ordered
    from converter.structure.tensors.variables import as_opened, bind, variable_of

    graph = read_ordered(checkpoint)
    if graph is None:
        raise PlanError(
            f"{checkpoint.path}: there is no graph beside it (a .meta file), which would tell the "
            f"names; use rename"
        )
    own = {variable_of(node) for node in graph.nodes if node.op in VARIABLES}
    found: dict[str, str] = {}
    opened, now = as_opened(checkpoint)
    for node, (key, _) in bind(graph, opened).items():
        # A key that is a variable's name is that variable, though others may start from it, too.
        found.setdefault(now[key], key if key in own else variable_of(node))
    return found


@hookimpl
def converter_strategies() -> Iterable[type[Strategy]]:
    yield Names
