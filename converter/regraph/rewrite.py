"""Rewrites the graph of a checkpoint for other sizes of its widths.

Only what carries a size is touched: shapes in attributes, integers that become shapes, constants
that have a width themselves, factors that are a root of a size, and where the slices of
partitioned variables lie. Everything else stays as it is, with what we do not know of.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from converter.allocation import without_collections
from converter.checkpoint import Checkpoint
from converter.errors import InputError, PlanError, UsageError, did_you_mean, printable
from converter.formats.messages import message
from converter.graph.definition import Definition, names_by_key, read_definition
from converter.graph.node import Node, tensor, text_of
from converter.graph.ops import RESTORES, SAVES, UNSLICED
from converter.graph.ordered import OrderedGraph
from converter.graph.slices import read_slice
from converter.regraph.factors import Rescaled, changes
from converter.regraph.matrices import turned
from converter.regraph.sizes import Sizes
from converter.regraph.slices import Slices, specification
from converter.regraph.tensors import MAX_ENTRIES, Constant
from converter.structure.lengths import Lengths, lengths
from converter.structure.tensors.run import analyse
from converter.structure.tensors.variables import Binding, bind

if TYPE_CHECKING:
    from converter.structure.axes.axis import Axis
    from converter.structure.structure import Structure

_SHAPED = (b"shape", b"element_shape", b"element_shape_except0")
_SLICED = (SAVES | RESTORES) - UNSLICED


@dataclass(frozen=True)
class Regraphed:
    """The graph of a resized model.

    Attributes:
        meta: the serialized MetaGraphDef.
        notes: what could not be rewritten, or only by a guess, each by name in one line.
        unresolved: the nodes that may not compute what they should; none where all is well.
        rescaled: the factors that moved with a width, such as the `1 / sqrt(head size)` of an
            attention. What they multiply becomes larger or smaller by `after / before`. So the
            outputs stay as they are only where something linear is multiplied with
            `before / after`: of an attention, what consumes the width.
    """

    meta: bytes
    notes: tuple[str, ...]
    unresolved: tuple[str, ...]
    rescaled: tuple[Rescaled, ...]


@without_collections()
def regraph(source: Checkpoint, structure: Structure, sizes: Mapping[str, int]) -> Regraphed:
    """Return the graph of a checkpoint as its own code would build it at other sizes.

    Args:
        source: a checkpoint of TensorFlow 1 with its `.meta`, or in a SavedModel.
        structure: what `infer` tells of it.
        sizes: the new size of every width that changes.

    Raises:
        UsageError: there is no such width.
        PlanError: a size is none, or the variables are constants of the graph.
        InputError: the graph is damaged.
    """
    _check(structure, sizes)
    found = read_definition(source)
    if found is None:
        raise PlanError(
            f"{source.path}: there is no graph beside it; leave the graph out (--to safetensors)"
        )
    meta = found.meta
    if meta is None:
        meta = message("MetaGraphDef")(graph_def=found.graph)
    rewriter = _Rewriter(str(found.path), source, structure, sizes)
    rewriter.rewrite(meta)
    rewriter.check(meta)
    return Regraphed(
        bytes(meta.SerializeToString()),
        tuple(rewriter.notes),
        tuple(dict.fromkeys(rewriter.unresolved)),
        tuple(rewriter.rescaled),
    )


def _check(structure: Structure, sizes: Mapping[str, int]) -> None:
    for name, size in sizes.items():
        if name not in structure.widths:
            raise UsageError(
                f"there is no width {name!r}{did_you_mean(name, structure.widths)}; "
                "convert inspect --widths lists them"
            )
        if size < 1:
            raise PlanError(f"{name}: a width cannot be {size}; give it at least 1 unit")


class _Rewriter:
    """Rewrites one graph."""

    def __init__(
        self, path: str, source: Checkpoint, structure: Structure, sizes: Mapping[str, int]
    ) -> None:
        self._path = path
        self._source = source
        self._structure = structure
        self._graph: OrderedGraph = structure.graph.findings.analysis.graph
        self._found: Lengths = lengths(structure)
        self._sizes = Sizes(structure.sizes, {**structure.sizes, **sizes}, self._found.parts)
        self._bound: dict[Node, Binding] = bind(self._graph, source)
        self._slices = Slices(self._bound, structure.axes, self._found, self._sizes)
        self._names = names_by_key(source)
        self._calls: dict[tuple[str, str], list[str]] = {}
        for node in self._graph.nodes:
            if node.origin is not None:
                self._calls.setdefault(node.origin, []).append(node.name)
        self._turned = turned(self._graph, self._found, self._sizes)
        self._constants: dict[str, dict[int, float]] = {}
        self.notes: list[str] = []
        self.unresolved: list[str] = []
        self.rescaled: list[Rescaled] = []

    def rewrite(self, meta: Any) -> None:
        """Change a MetaGraphDef in place."""
        self._rescale()
        specifications = self._specifications()
        for node in meta.graph_def.node:
            _keep_shape(node)
            name = text_of(node.name)
            self._rewrite_node(name, node)
            if name in specifications:
                self._move(name, node, specifications[name])
        for function in meta.graph_def.library.function:
            self._rewrite_function(function)
        self._redefine(meta)
        self._resign(meta)

    def _note(self, node: str, text: str) -> None:
        self.notes.append(f"{printable(node)}: {text}")
        self.unresolved.append(node)

    def check(self, meta: Any) -> None:
        """Look at the new graph as at any other: what contradicts in it was missed."""
        analysis = self._structure.graph.findings.analysis
        known = {conflict.node.name for conflict in analysis.conflicts}
        graph = OrderedGraph(Definition(self._graph.path, meta.graph_def, meta))
        try:
            found = analyse(graph, self._resized()).analysis
        except InputError as error:
            self._note(str(self._path), str(error))
            return
        found.run(graph.nodes)
        for node, (a, b), what in found.conflicts:
            if node.name not in known:
                self._note(node.name, f"the {what} {a} and {b} stand opposite in the new graph")

    def _resized(self) -> Checkpoint:
        """Return the variables as they are in the new graph, without values."""
        variables = []
        for name, variable in self._source.items():
            axes = self._structure.axes[name]
            shape = tuple(self._sizes.lengths(axis)[1] for axis in axes)
            variables.append(replace(variable, shape=shape, stored=None))
        return Checkpoint(
            variables,
            path=self._source.path,
            format=self._source.format,
            stored_keys=self._source.stored_keys,
            graph_from=self._source.graph_from,
        )

    def _rescale(self) -> None:
        for change in changes(self._structure, self._sizes):
            if isinstance(change, Rescaled):
                self._note(
                    change.node,
                    f"its factor {change.before:g} is a root of {change.width}, and it stays, "
                    f"where {change.after:g} would be right",
                )
                continue
            self.rescaled.append(change.factor)
            if change.constant is not None:
                self._constants.setdefault(change.constant, {})[change.place] = change.value

    def _rewrite_node(self, name: str, node: Any) -> None:
        """Rewrite a node that has a name in the graph as it was read, without calls."""
        _forget(node.attr, b"_output_shapes")
        self._reshape(name, node)
        if node.op == b"Const" and not self._hold(name, node):
            self._recast(name, node)

    def _hold(self, name: str, node: Any) -> bool:
        """Reshape the constant that stands in the place of a variable of a frozen graph.

        Its values come from the checkpoint whenever it runs.
        """
        shape = self._axes(name, "") if self._graph.by_name.get(name) in self._bound else None
        entry = next((entry for entry in node.attr if entry.key == b"value"), None)
        if shape is None or entry is None:
            return False
        constant = Constant(entry.value.tensor, f"{self._path}: the constant {name}")
        lengths = tuple(self._sizes.lengths(axis)[1] for axis in shape)
        if lengths != constant.shape:
            entry.value.tensor = constant.empty(lengths)
        return True

    def _rewrite_function(self, function: Any) -> None:
        """Rewrite the body of a function, which has to be the same for all of its calls."""
        _forget(function.attr, b"_input_shapes")
        for argument in function.arg_attr:
            _forget(argument.value.attr, b"_output_shapes")
        for node in function.node_def:
            key = (text_of(function.signature.name), text_of(node.name))
            before = bytes(node.SerializeToString())
            found: dict[bytes, str] = {}
            for name in self._calls.get(key, [key[1]]):
                copy = message("NodeDef").FromString(before)
                self._rewrite_node(name, copy)
                found.setdefault(bytes(copy.SerializeToString()), name)
            node.ParseFromString(next(iter(found)))
            if len(found) > 1:
                self._note(key[1], f"calls of {key[0]} want different sizes of it")

    def _specifications(self) -> dict[str, list[str]]:
        """Return the keys that each constant of slices is about."""
        found: dict[str, list[str]] = {}
        for node in self._graph.nodes:
            if node.op in _SLICED and len(node.inputs) > 2:
                slices = node.inputs[2].node
                if any(self._graph.strings(slices)):
                    found.setdefault(slices.name, self._graph.strings(node.inputs[1].node))
        return found

    def _reshape(self, name: str, node: Any) -> None:
        """Rewrite the shapes in the attributes of a node."""
        for entry in node.attr:
            if entry.key in _SHAPED:
                axes = self._axes(name, entry.key.decode())
                if axes is not None:
                    self._resize(entry.value.shape, axes)
            elif entry.key == b"output_shapes":
                for port, shape in enumerate(entry.value.list.shape):
                    self._resize(shape, self._axes_of_output(name, port) or ())

    def _axes_of_output(self, name: str, port: int) -> Sequence[Axis] | None:
        """Return the axes of an output; of a call that was replaced, those of what stands there."""
        for left in (f"{name}/_loop_{port}", f"{name}/_join_{port}"):
            if left in self._graph.by_name:
                return self._found.axes(left, 0)
        return self._found.axes(name, port)

    def _axes(self, name: str, key: str) -> Sequence[Axis] | None:
        node = self._graph.by_name.get(name)
        binding = self._bound.get(node) if node is not None else None
        if binding is not None and binding.slice is None:
            return self._structure.axes[binding.name]
        return self._found.shapes.get((name, key))

    def _resize(self, shape: Any, axes: Sequence[Axis]) -> None:
        if len(shape.dim) == len(axes):
            for dim, axis in zip(shape.dim, axes, strict=True):
                size = self._sizes.resized(axis, dim.size)
                if size is not None:
                    dim.size = size

    def _move(self, name: str, node: Any, keys: Sequence[str]) -> None:
        """Rewrite the slices that a saver takes of the keys."""
        for entry in node.attr:
            if entry.key == b"value":
                constant = Constant(entry.value.tensor, f"{self._path}: the constant {name}")
                entry.value.tensor = self._moved(constant, keys)

    def _recast(self, name: str, node: Any) -> None:
        """Rewrite the value of a constant."""
        value = next((entry.value for entry in node.attr if entry.key == b"value"), None)
        if value is None:
            return
        subject = f"{self._path}: the constant {name}"
        if name in self._constants:
            value.tensor = Constant(value.tensor, subject).with_entries(self._constants[name])
        if name in self._found.integers:
            self._recount(name, value, subject)
        if name in self._found.arrays:
            self._regrow(name, value, subject)
        if name in self._turned:
            constant = Constant(value.tensor, subject)
            value.tensor = constant.with_entries({0: constant.entry(1), 1: constant.entry(0)})
            self.notes.append(
                f"{printable(self._turned[name])}: what it makes is wider than high now, so the "
                "initial values that are made of it are no longer orthogonal"
            )

    def _recount(self, name: str, value: Any, subject: str) -> None:
        constant = Constant(value.tensor, subject)
        entries: dict[int, float] = {}
        for place, axis in self._found.integers[name].items():
            present = constant.entry(place)
            after = None if present is None else self._sizes.resized(axis, round(present))
            self._check_torn(name, place)
            if after is not None:
                entries[place] = after
        if entries:
            value.tensor = constant.with_entries(entries)

    def _check_torn(self, name: str, place: int) -> None:
        axes = self._found.torn.get((name, place), {})
        found = {self._sizes.lengths(axis)[1]: axis for axis in axes}
        if len(found) > 1:
            told = " and ".join(f"{axis} = {size}" for size, axis in found.items())
            self._note(name, f"its entry {place} is the size of {told}, which are not equal now")

    def _regrow(self, name: str, value: Any, subject: str) -> None:
        axes = self._found.arrays[name]
        changed = [not self._sizes.changed.isdisjoint(axis.widths()) for axis in axes]
        constant = Constant(value.tensor, subject)
        if not any(changed) or len(axes) != len(constant.shape):
            return
        lengths = [self._sizes.lengths(axis) for axis in axes]
        if tuple(before for before, _ in lengths) != constant.shape:
            return
        grown = constant.filled([after for _, after in lengths])
        if grown is None:
            if math.prod(after for _, after in lengths) > MAX_ENTRIES:
                raise PlanError(
                    f"{subject} would have {[after for _, after in lengths]} entries, more than a "
                    "graph can hold; choose a smaller size, or leave the graph out (--to "
                    "safetensors)"
                )
            pairs = list(zip(axes, changed, strict=True))
            grown = constant.taken([self._sizes.places(a) if c else None for a, c in pairs])
            is_alike = constant.is_alike([self._sizes.alike(a) if c else None for a, c in pairs])
            widths = dict.fromkeys(w for axis in axes for w in axis.widths())
            named = ", ".join(width for width in widths if width in self._sizes.changed)
            if grown is None:
                self._note(name, f"it has {named}, and its values cannot be told, so it stays")
            elif not is_alike:
                self._note(
                    name, f"the units of {named} differ in it, and new ones are as the last one"
                )
        if grown is not None:
            value.tensor = grown

    def _moved(self, constant: Constant, keys: Sequence[str]) -> bytes:
        """Rewrite which slices a saver takes."""
        values = () if constant.values is None else constant.values.flat
        texts = [text.decode("utf-8", "replace") for text in values]
        entries: dict[int, Any] = {}
        for place, (key, text) in enumerate(zip(keys, texts, strict=False)):
            name = self._names.get(key, key)
            if text and (moved := self._slices.moved(name, read_slice(text))) is not None:
                entries[place] = specification(moved).encode()
            elif text:
                self._note(key, f"no node holds its slice {text}, which stays")
        return constant.with_entries(entries)

    def _redefine(self, meta: Any) -> None:
        """Rewrite the slices that collections say variables are."""
        for entry in meta.collection_def:
            members = entry.value.bytes_list.value
            for place, member in enumerate(members):
                definition = self._redefined(member)
                if definition is not None:
                    members[place] = definition

    def _redefined(self, member: bytes) -> bytes | None:
        """Return the VariableDef of a slice as it is now; None for anything else."""
        from google.protobuf.message import DecodeError

        try:
            definition = message("VariableDef").FromString(member)
        except DecodeError:
            return None
        info = definition.save_slice_info_def
        node = self._graph.by_name.get(tensor(text_of(definition.variable_name)).node)
        binding = self._bound.get(node) if node is not None else None
        if binding is None or not info.full_shape:
            return None
        moved = self._slices.moved(binding.name, binding.slice)
        if moved is None:
            return None
        info.full_shape[:] = moved.full
        info.var_offset[:] = moved.offset
        info.var_shape[:] = moved.shape
        return bytes(definition.SerializeToString())

    def _resign(self, meta: Any) -> None:
        """Rewrite the shapes of signatures."""
        for entry in meta.signature_def:
            for told in (*entry.value.inputs, *entry.value.outputs):
                axes = self._found.axes(*tensor(text_of(told.value.name)))
                self._resize(told.value.tensor_shape, axes or ())


def _keep_shape(node: Any) -> None:
    """Give a placeholder the shape that it noted nowhere else, as was usual before 1.4."""
    if node.op != b"Placeholder":
        return
    attributes = {entry.key: entry.value for entry in node.attr}
    if {b"shape", b"_output_shapes"} <= attributes.keys():
        noted = attributes[b"_output_shapes"].list.shape
        told = attributes[b"shape"].shape
        if not told.dim and len(noted) == 1 and not noted[0].unknown_rank:
            told.CopyFrom(noted[0])


def _forget(attributes: Any, key: bytes) -> None:
    """Remove an attribute that holds shapes which TensorFlow noted as a hint only."""
    for place in range(len(attributes) - 1, -1, -1):
        if attributes[place].key == key:
            del attributes[place]
