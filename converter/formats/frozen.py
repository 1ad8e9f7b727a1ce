"""The variables of a frozen TensorFlow graph: a binary GraphDef whose variables are constants.

Freezing leaves a constant in the place of each variable. Every array of floats, complex or
quantised numbers counts as one, whatever reads it: optimisers remove what stood in between, and of
some variables only. Normalisation means and the like count too; better one too many than one lost.

Scalars, integers, strings and booleans are shapes, axes and factors mostly. They count where what
read a variable is still there: an Identity `NAME/read` of TensorFlow 1, `.../ReadVariableOp` of
resource variables, or a constant that one of these was folded into. Where nothing counts, every
constant does.

References:
    tensorflow/core/framework: graph.proto, node_def.proto, attr_value.proto;
    tensorflow/python/framework: graph_util_impl.py, convert_to_constants.py.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from converter.errors import InputError
from converter.formats import Contents
from converter.formats.messages import is_text_graph
from converter.formats.region import DataFile
from converter.formats.tensor_proto import TensorProto, Values, walk
from converter.formats.wire import BYTES, VARINT, Field, Source
from converter.variable import Array, Region, Stored, Variable

_PASSING = {"Identity", "Enter", "RefEnter", "Switch", "RefSwitch", "_SwitchN"}
_VARIABLES = {"Variable", "VariableV2", "VarHandleOp", "AutoReloadVariable"}

_READ = re.compile(r"(^|/)ReadVariableOp(_\d+)?$")
# What an optimiser makes of a constant and its Identity keeps the name of the Identity.
_FOLDED = re.compile(r"(^|/)(read|ReadVariableOp(_\d+)?)(/resource)?(/_\d+__cf__\d+)?$")

# Values hold a window of what they decoded, so that not those of all constants are kept.
_OPEN_VALUES = 16


@dataclass(slots=True)
class _Graph:
    """What of a graph tells the variables from other constants.

    Attributes:
        constants: the value of each constant, by name.
        passing: what passes its first input on: that input, by the name of the node.
        reads: what is read as a variable.
        variables: the nodes that are variables still.
        names: of all nodes.
        taken: what nodes take, and the first node that takes each.
    """

    constants: dict[str, Field] = field(default_factory=dict)
    passing: dict[str, str] = field(default_factory=dict)
    reads: list[str] = field(default_factory=list)
    variables: list[str] = field(default_factory=list)
    names: set[str] = field(default_factory=set)
    taken: dict[str, str] = field(default_factory=dict)


def read(path: Path) -> Contents:
    """Read the names, shapes and dtypes of the variables of a frozen graph.

    Raises:
        InputError: the file is no binary GraphDef, is damaged, or has no constants.
    """
    file = DataFile(path)
    _check_kind(path, file)
    graph = _read_graph(Source(file.read, file.size, str(path)))
    protos = _choose(path, graph)

    @lru_cache(maxsize=_OPEN_VALUES)
    def values(name: str) -> Values:
        proto = protos[name]
        if proto.dtype is None or proto.dtype.numpy is None:
            raise InputError(f"{path}: {name}: its dtype is none that a checkpoint can hold")
        return Values(proto, proto.dtype, proto.shape, repeat=True)

    def check(names: Iterable[str]) -> None:
        for name in names:
            values(name).check()

    variables = tuple(_variable(path, name, values) for name in protos)
    return Contents("TensorFlow frozen graph", variables, (path,), check=check)


def _variable(path: Path, name: str, values: Callable[[str], Values]) -> Variable:
    def load(region: Region) -> Array:
        return values(name).load(region)

    found = values(name)
    stored = found.raw and Stored(path, found.raw.start, found.raw.size)
    return Variable(name, found.dtype, found.shape, load, (name,), stored)


def _check_kind(path: Path, file: DataFile) -> None:
    """Refuse what people take for a frozen graph, and say what to open instead."""
    if is_text_graph(file.read(0, min(file.size, 4096))):
        raise InputError(
            f"{path}: this graph is text, and only binary ones are read; "
            "write it with as_text=False"
        )
    for entry in Source(file.read, file.size, f"{path}, read as a GraphDef").message():
        if entry.number == 1 and entry.kind == VARINT:
            raise InputError(
                f"{path}: this is the graph of a SavedModel; open the directory that it lies in"
            )
        if (entry.number == 3 and entry.kind == BYTES) or entry.number in (6, 7):
            raise InputError(
                f"{path}: this is the .meta file of a checkpoint, which has no values; "
                "open the checkpoint beside it"
            )


def _read_graph(source: Source) -> _Graph:
    graph = _Graph()
    for entry in source.message():
        if entry.number == 1:
            _add_node(graph, entry)
    # There are no checksums; a node that is gone may have been a variable.
    for name, taker in graph.taken.items():
        if name not in graph.names:
            raise InputError(
                f"{source.subject}: the node {taker} takes {name}, which the graph lacks; "
                "it is damaged"
            )
    return graph


def _add_node(graph: _Graph, node: Field) -> None:
    name = op = ""
    inputs: list[str] = []
    attributes: list[Field] = []
    for entry in node.message():
        if entry.number == 1:
            name = entry.text()
        elif entry.number == 2:
            op = entry.text()
        elif entry.number == 3:
            text = entry.text()
            taken = text.removeprefix("^").split(":")[0]
            graph.taken.setdefault(taken, name)
            if not text.startswith("^"):
                inputs.append(taken)
        elif entry.number == 5:
            attributes.append(entry)
    if not op or not op.isprintable():
        raise InputError(f"{node.source.subject}: the node {name} has no op; it is damaged")
    graph.names.add(name)
    if op == "Const":
        if name in graph.constants:
            raise InputError(f"{node.source.subject}: two nodes are named {name}; it is damaged")
        graph.constants[name] = _tensor(node, name, attributes)
    elif op in _VARIABLES:
        graph.variables.append(name)
    elif op in _PASSING and inputs:
        graph.passing[name] = inputs[0]
        if op == "Identity" and (name == f"{inputs[0]}/read" or _READ.search(name)):
            graph.reads.append(inputs[0])


def _tensor(node: Field, name: str, attributes: list[Field]) -> Field:
    for attribute in attributes:
        parts = {entry.number: entry for entry in attribute.message()}
        if 1 in parts and 2 in parts and parts[1].text() == "value":
            for entry in parts[2].message():
                if entry.number == 8:
                    return entry
    raise InputError(f"{node.source.subject}: the constant {name} has no value; it is damaged")


def _choose(path: Path, graph: _Graph) -> dict[str, TensorProto]:
    """Return the constants that are variables, by name, in stored order."""
    reads = _trace(graph, graph.reads)
    reads |= {name for name in graph.constants if _FOLDED.search(name)}
    if not reads and graph.variables:
        raise InputError(
            f"{path}: the graph is not frozen: its {len(graph.variables)} variables, "
            f"{graph.variables[0]} among them, have their values in a checkpoint; open that"
        )
    if not graph.constants:
        raise InputError(f"{path}: the graph has no constants, so no variables")
    protos = {name: walk(message) for name, message in graph.constants.items()}
    chosen = {n: proto for n, proto in protos.items() if n in reads or _is_float_array(proto)}
    return chosen or protos


def _is_float_array(proto: TensorProto) -> bool:
    dtype = proto.dtype
    return (
        len(proto.shape) > 0
        and dtype is not None
        and (dtype.is_float or dtype.name.startswith(("complex", "q")))
    )


def _trace(graph: _Graph, names: Iterable[str]) -> set[str]:
    """Return the constants that reach any of the named nodes unchanged."""
    found: set[str] = set()
    waiting, seen = list(names), set[str]()
    while waiting:
        name = waiting.pop()
        if name in graph.constants:
            found.add(name)
        elif name in graph.passing and name not in seen:
            seen.add(name)
            waiting.append(graph.passing[name])
    return found
