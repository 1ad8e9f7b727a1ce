"""The forward part of a graph: what its outputs need, and what was decided about it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain

from converter.dtype import STRING
from converter.errors import UsageError
from converter.forward.dropout import Dropout, find_dropouts
from converter.forward.inputs import UNTOLD, Input, describe_all, probability_root
from converter.forward.outputs import Output, find_outputs, sources_of
from converter.forward.signature import Signature, check_signed, signature_of
from converter.forward.variables import Held, initial_values, variables_of
from converter.graph.functions import called_nodes
from converter.graph.node import Node, Tensor, encoded, tensor
from converter.graph.ops import (
    BATCH_NORMS,
    CALLS,
    EXITS,
    FILLS,
    MERGES,
    RANDOM,
    RESTORES,
    SWITCHES,
    TABLES,
)
from converter.graph.written import Graph
from converter.variable import Array

_DECIDED = ("flag", "keep", "rate")
# Each costs a walk over the graph.
_MAX_FLAGS = 16
_MAX_OUTPUTS = 64


@dataclass(frozen=True)
class Forward:
    """What is run of a graph.

    Attributes:
        graph: the whole of it.
        outputs: what comes out.
        inputs: what the outputs need from outside.
        variables: where the values of the variables that they need are, by node.
        initial: what those of them begin with that the checkpoint does not have.
        fills: the operations that fill the lookup tables that they need.
        bypassed: dropouts whose probability is a constant of the graph, which are left out.
        random: the nodes that draw random numbers which the outputs depend on.
        notes: what could not be decided, or is to be known, one line each.
    """

    graph: Graph
    outputs: tuple[Output, ...]
    inputs: tuple[Input, ...]
    variables: Mapping[str, Held]
    initial: Mapping[str, Tensor]
    fills: tuple[str, ...]
    bypassed: tuple[Dropout, ...]
    random: tuple[str, ...]
    notes: tuple[str, ...]

    @cached_property
    def instead(self) -> Mapping[Tensor, Tensor]:
        """What is taken in the place of dropped values."""
        return {dropout.output: dropout.value for dropout in self.bypassed}

    def open_inputs(self, given: Collection[Tensor]) -> list[Input]:
        """Return the inputs that nothing decides, and that are not among those that are given."""
        return [
            found
            for found in self.inputs
            if found.tensor not in given and found.value is None and found.kind != "default"
        ]


def find_forward(
    graph: Graph,
    keys: Collection[str],
    *,
    fetches: Sequence[str] = (),
    fed: Collection[str] = (),
    values: Mapping[Tensor, Array] | None = None,
    can_run: Callable[[str], bool] | None = None,
    signature: Signature | None = None,
    flags: str = "--",
) -> Forward:
    """Find what of a graph is the model, for inference.

    Args:
        graph: the graph of a checkpoint.
        keys: the names of the checkpoint's variables.
        fetches: the tensors that somebody wants; none for what looks like outputs.
        fed: the tensors that somebody gives values for.
        values: what is known of those values; the notes are about the branches that they take.
        can_run: tells of an op whether it can be run; None for all of them.
        signature: of an exported model; None for the one that nobody needs to choose.
        flags: what the names of the options begin with that say what is run.

    Raises:
        UsageError: a tensor does not exist or cannot be fetched; no output is found.
        InputError: the graph is damaged.
    """
    tensors = [graph.expect(name) for name in fed]
    given = {tensor: (values or {}).get(tensor) for tensor in tensors}
    signature = signature or signature_of(graph)
    return _Finder(graph, keys, given, can_run, signature, flags).find(fetches)


class _Finder:
    def __init__(
        self,
        graph: Graph,
        keys: Collection[str],
        fed: Mapping[Tensor, Array | None],
        can_run: Callable[[str], bool] | None,
        signature: Signature | None,
        flags: str,
    ) -> None:
        self.graph = graph
        self.keys = keys
        self.held = variables_of(graph, keys)
        self.fed = frozenset(fed)
        self.dropouts = list(find_dropouts(graph))
        self.sources = describe_all(graph, sources_of(graph), self.dropouts)
        for name, source in signature.inputs.items() if signature is not None else ():
            if (found := self.sources.get(tensor(source))) is not None:
                self.sources[found.tensor] = replace(found, called=name)
        self._can_run = can_run
        self._signature = signature
        self._flags = flags
        self._functions = {encoded(name): body for name, body in graph.functions.items()}
        self._known: dict[str, Node | None] = {}
        untold = [found for found in self.sources.values() if found.why == UNTOLD]
        for found in untold if len(untold) <= _MAX_FLAGS else ():
            self.sources[found.tensor] = self._told(found)
        decided = {s: i.value for s, i in self.sources.items() if i.kind == "flag"}
        unfed = {s: bool(v) for s, v in decided.items() if s not in fed}
        self._dead = _dead(graph, unfed)
        told = {s: bool(v) for s, v in fed.items() if v is not None and _is_flag(v)}
        # Other values can follow in other runs: what is run does not depend on these.
        self._untaken = _dead(graph, unfed | told) if told else self._dead
        self._notes: list[str] = []

    def find(self, fetches: Sequence[str]) -> Forward:
        bypassed = self._bypassed()
        self._instead = {dropout.output: dropout.value for dropout in bypassed}
        outputs = self._outputs(fetches)
        needed = self._needed([output.tensor for output in outputs])
        inputs = [i for i in self.sources.values() if self._is_needed(i, needed, outputs)]
        bypassed = [d for d in bypassed if d.output.node in needed or d.value.node in needed]
        random = self._random(needed)
        variables = {name: where for name, where in self.held.items() if name in needed}
        absent = [name for name, where in variables.items() if where.key not in self.keys]
        initial = initial_values(self.graph, absent) if absent else {}
        self._note(inputs, bypassed, random, needed)
        self._note_absent(absent, initial)
        fills = self._fills(needed)
        return Forward(
            self.graph,
            tuple(outputs),
            tuple(inputs),
            variables,
            initial,
            fills,
            tuple(bypassed),
            tuple(random),
            tuple(self._notes),
        )

    def _told(self, found: Input) -> Input:
        """Tell a training flag by what happens when it is set: something is drawn at random."""
        drawing = {node.name for node in self.graph.nodes.values() if node.op in RANDOM}
        off, on = (drawing - _dead(self.graph, {found.tensor: flag}) for flag in (False, True))
        if off == on:
            return found
        if off < on:
            return replace(found, why="training flag: numbers are drawn where it is true")
        if on < off:
            return replace(
                found, why="inference flag: numbers are drawn where it is false", value=True
            )
        return found

    def _needed(self, tensors: Sequence[Tensor]) -> set[str]:
        given = {s for s, i in self.sources.items() if i.kind != "default"} | self.fed
        return self.graph.ancestors(tensors, given=given, instead=self._instead)

    def _is_needed(self, found: Input, needed: set[str], outputs: Sequence[Output]) -> bool:
        source = found.tensor
        taken = any(
            source in user.sources and user.name in needed
            for user in self.graph.consumers.get(source.node, ())
        )
        return taken or any(output.tensor == source for output in outputs)

    def _outputs(self, fetches: Sequence[str]) -> list[Output]:
        if fetches:
            wanted = [Output(self.graph.expect(name), "chosen") for name in fetches]
            for name, output in zip(fetches, wanted, strict=True):
                self._check_fetch(name, output.tensor)
            return wanted
        ignored = [s for s, i in self.sources.items() if i.kind in _DECIDED]
        check_signed(self.graph)
        found = find_outputs(self.graph, set(self.held), ignored, self._signature)
        if len(found) > _MAX_OUTPUTS:
            found.sort(key=lambda output: output.why == "nothing follows")
            of = f"of {len(found)} outputs {_MAX_OUTPUTS} are taken"
            self._notes.append(f"{of}; {self._flags}fetch chooses others")
            found = found[:_MAX_OUTPUTS]
        usable = [output for output in found if self._can_compute(output)]
        if not usable:
            raise UsageError(
                f"{self.graph.path}: "
                + (
                    "none of its outputs can be run"
                    if found
                    else "nothing in it looks like an output"
                )
                + "".join(f"; {note}" for note in self._notes[:1])
                + f"; say what to compute ({self._flags}fetch NAME)"
            )
        return usable

    def _check_fetch(self, name: str, source: Tensor) -> None:
        node = self.graph.nodes[source.node]
        frame = self.graph.frames.get(source.node)
        if frame is not None and node.op not in EXITS:
            leaving = [n.name for n in self.graph.nodes.values() if n.op in EXITS]
            near = [n for n in leaving if n.startswith(frame.rpartition("/")[0])][:4]
            raise UsageError(
                f"{name}: it is computed inside the loop {frame}, and cannot be fetched; "
                f"fetch what leaves the loop{': ' if near else ''}{', '.join(near)}"
            )
        unknown = self._unknown(source)
        if unknown is not None:
            raise UsageError(
                f"{name}: {_cannot(unknown)}; feed what it computes ({self._flags}feed)"
            )

    def _can_compute(self, output: Output) -> bool:
        unknown = self._unknown(output.tensor)
        if unknown is None:
            return True
        self._notes.append(f"{output.tensor} is left out: {_cannot(unknown)}")
        return False

    def _unknown(self, source: Tensor) -> Node | None:
        """Return a node that a tensor needs, in functions too, whose op cannot be run."""
        if self._can_run is None:
            return None
        nodes = (self.graph.nodes[name] for name in sorted(self._needed([source])))
        return next((unknown for n in nodes if (unknown := self._unknown_in(n)) is not None), None)

    def _unknown_in(self, node: Node) -> Node | None:
        if node.name not in self._known:
            nodes = chain((node,), called_nodes(node, self._functions))
            self._known[node.name] = next((n for n in nodes if not self._runs(n.op)), None)
        return self._known[node.name]

    def _runs(self, op: str) -> bool:
        return self._can_run is None or op in self.graph.functions or self._can_run(op)

    def _bypassed(self) -> list[Dropout]:
        """Return the dropouts that nothing turns off but to leave them out."""
        found = []
        for dropout in self.dropouts:
            root, _ = probability_root(self.graph, dropout)
            controlled = root in self.sources or root in self.fed or dropout.probability in self.fed
            if not controlled and dropout.random not in self._dead:
                found.append(dropout)
        return found

    def _random(self, needed: set[str]) -> list[str]:
        drawing = needed - self._dead - {dropout.random for dropout in self.dropouts}
        return [
            name for name, node in self.graph.nodes.items() if node.op in RANDOM and name in drawing
        ]

    def _fills(self, needed: set[str]) -> tuple[str, ...]:
        """Return the operations that fill the tables among the needed nodes."""
        tables = {name for name in needed if TABLES.fullmatch(self.graph.nodes[name].op)}
        found: dict[str, set[str]] = {}
        for node in self.graph.nodes.values() if tables else ():
            of = tables & {self.graph.origin(source).node for source in node.sources}
            if of and self._is_filling(node):
                found[node.name] = of
        for name in sorted(tables.difference(*found.values())):
            self._notes.append(f"{name} is a lookup table that nothing fills, and is empty")
        return tuple(found)

    def _is_filling(self, node: Node) -> bool:
        """Whether a node fills tables, or calls what does; not so with what a saver restores."""
        if FILLS.fullmatch(node.op):
            return True
        if node.op not in CALLS:
            return False
        called = {inner.op for inner in called_nodes(node, self._functions)}
        return any(map(FILLS.fullmatch, called)) and RESTORES.isdisjoint(called)

    def _note_absent(self, absent: Sequence[str], initial: Mapping[str, Tensor]) -> None:
        for name in absent[:3]:
            more = _more(absent, name)
            known = "it has its initial value" if name in initial else "it cannot run without"
            self._notes.append(f"{name}{more} is not in the checkpoint; {known}")

    def _note(
        self,
        inputs: Sequence[Input],
        bypassed: Sequence[Dropout],
        random: Sequence[str],
        needed: set[str],
    ) -> None:
        decides = f"{self._flags}feed decides"
        for found in inputs:
            if found.tensor in self.fed:
                continue
            if found.why == UNTOLD:
                self._notes.append(f"{found.name}: {found.why}, and fed False; {decides}")
            elif found.kind in ("number", "size") and found.dtype is not STRING:
                what = "becomes a size" if found.kind == "size" else "nothing tells what it is"
                self._notes.append(f"{found.name}: a single number, {what}; {decides}")
        bypassed = [dropout for dropout in bypassed if dropout.random not in self._untaken]
        for dropout in bypassed[:3]:
            value = self.graph.constant(dropout.probability)
            said = f" {float(value):g}" if value is not None and value.shape == () else ""
            what = "keep probability" if dropout.keeps else "rate"
            more = _more(bypassed, dropout)
            self._notes.append(
                f"{dropout.output}{more} drops at random, with a {what}{said} that the graph "
                "holds; it is left out"
            )
        random = [name for name in random if name not in self._untaken]
        for name in random[:3]:
            more = _more(random, name)
            self._notes.append(f"{name}{more} draws random numbers, from a fixed seed here")
        training = list(_batch_normalised(self.graph, needed - self._untaken))
        if training:
            more = f" (and {len(training) - 1} more)" if len(training) > 1 else ""
            self._notes.append(f"{training[0]}{more} normalises by the batch, as in training")


def _more(all_of_them: Sequence[object], shown: object) -> str:
    """Return how many more there are, after the third."""
    is_last = len(all_of_them) > 3 and shown is all_of_them[2]
    return f" (and {len(all_of_them) - 3} more)" if is_last else ""


def _cannot(node: Node) -> str:
    return f"it needs {node.name}, and TensorFlow has no op {node.op} any more"


def _batch_normalised(graph: Graph, names: set[str]) -> Iterator[str]:
    for name, node in graph.nodes.items():
        if name in names and node.op in BATCH_NORMS and node.integer("is_training", 1):
            yield name


def _dead(graph: Graph, decided: Mapping[Tensor, bool]) -> set[str]:
    """Return the nodes in the branches that are not taken."""
    after: dict[str, list[Node]] = {}
    for node in graph.nodes.values():
        for name in node.controls:
            after.setdefault(name, []).append(node)
    dead: set[str] = set()
    cut: set[Tensor] = set()
    waiting: list[Node] = []
    for node in graph.nodes.values():
        if node.op in SWITCHES and len(node.sources) == 2:
            taken = _truth(graph, node.sources[1], decided)
            if taken is not None:
                cut.add(Tensor(node.name, int(not taken)))
                waiting += graph.consumers.get(node.name, ())
    while waiting:
        node = waiting.pop()
        gone = [source in cut or source.node in dead for source in node.sources]
        is_dead = all(gone) if node.op in MERGES else any(gone)
        if node.name in dead or not (is_dead or any(name in dead for name in node.controls)):
            continue
        dead.add(node.name)
        waiting += graph.consumers.get(node.name, ())
        waiting += after.get(node.name, ())
    return dead


def _truth(graph: Graph, source: Tensor, decided: Mapping[Tensor, bool]) -> bool | None:
    negated = False
    for _ in range(len(graph.nodes)):
        source = graph.origin(source)
        node = graph.nodes.get(source.node)
        if source in decided:
            return decided[source] != negated
        if node is None or node.op != "LogicalNot" or not node.sources:
            break
        source, negated = node.sources[0], not negated
    value = graph.constant(source)
    return bool(value) != negated if value is not None and _is_flag(value) else None


def _is_flag(value: Array) -> bool:
    return value.shape == () and value.dtype == bool
