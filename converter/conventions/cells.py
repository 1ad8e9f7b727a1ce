"""Recurrent cells among variables, by their names: TensorFlow 0.12 to 1.15 and Keras.

References:
    tensorflow/python/ops/rnn_cell_impl.py and tensorflow/contrib/rnn of 0.12 to 1.15;
    tensorflow/contrib/cudnn_rnn/python/ops/cudnn_rnn_ops.py of 1.15;
    tensorflow/python/keras/saving/hdf5_format.py of 1.15, _convert_rnn_weights.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import NamedTuple

from converter.conventions.gatewise import gatewise_cells
from converter.conventions.layers import GATES, Cell, Gates, Recurrence, Unmapped
from converter.conventions.views import (
    View,
    Whole,
    joined,
    part,
    reshaped,
    split,
    transposed,
)
from converter.names.cells import (
    BIASES,
    BY_PLAIN_NAME,
    CANDIDATE_BIASES,
    CANDIDATE_KERNELS,
    CANDIDATE_PARTS,
    GATE_BIASES,
    GATE_KERNELS,
    GRU_GATES,
    KERNELS,
    LSTM_GATES,
    NORMS,
    PEEPHOLES,
    PROJECTIONS,
    plain,
)
from converter.names.cells import KERAS_GATES as KERAS_COLUMNS
from converter.names.cells import Cell as Known

Shapes = Mapping[str, tuple[int, ...]]


class Family(NamedTuple):
    """The cells of one name.

    Attributes:
        kind: what they compute.
        adds_forget_bias: whether their code adds a forget bias when it runs.
        refusal: why no other framework has it, or None.
    """

    kind: Recurrence
    adds_forget_bias: bool = False
    refusal: str | None = None


_REFUSED = {"CoupledInputForgetGateLSTMCell": "its input gate is one minus its forget gate"}
_KINDS: Mapping[tuple[str, ...] | int, Recurrence] = {
    LSTM_GATES: "lstm",
    GRU_GATES: "gru",
    1: "rnn",
}


def _family(cell: Known) -> Family | None:
    refusal = _REFUSED.get(cell.name)
    kind = _KINDS.get(cell.columns, "lstm" if refusal else None)
    return None if kind is None else Family(kind, cell.adds_forget_bias, refusal)


FAMILIES: Mapping[str, Family] = {
    name: family for name, cell in BY_PLAIN_NAME.items() if (family := _family(cell)) is not None
}
"""By the last component of the scope, in small letters and without underscores and number."""
# What else is in the name of a cell, whichever cell it is.
_OTHER_CELLS = ("lstm", "gru", "rnn", "sru", "nas", "grid")
_NO_CELLS = ("multirnncell",)
# What a wrapper of one of these names, or a decoder with such a variable, gives to its cell depends
# on what the cell gave the step before.
_ATTENTIONS = ("attentionwrapper", "attentioncellwrapper", "dynamicattentionwrapper")
_ATTENTION = "AttnW_0"
_WRAPPERS = ("inputprojectionwrapper", "outputprojectionwrapper", "embeddingwrapper")
# What the gates of frameworks are called here.
_GATE_OF: Mapping[Recurrence, Mapping[str, str]] = {
    "lstm": {"j": "g", "c": "g"},
    "gru": {"u": "z", "h": "n"},
    "rnn": {},
}


def _order(kind: Recurrence, columns: tuple[str, ...] | int) -> tuple[str, ...]:
    if isinstance(columns, int):
        return GATES[kind]
    return tuple(_GATE_OF[kind].get(label, label) for label in columns)


TF_GATES: Mapping[Recurrence, tuple[str, ...]] = {
    "lstm": _order("lstm", LSTM_GATES),
    "rnn": GATES["rnn"],
}
"""The blocks of columns of TensorFlow 1, in their order."""

_KERAS_KINDS: Mapping[int, Recurrence] = {1: "rnn", 3: "gru", 4: "lstm"}
KERAS_GATES: Mapping[Recurrence, tuple[str, ...]] = {
    kind: _order(kind, KERAS_COLUMNS[count]) for count, kind in _KERAS_KINDS.items()
}
"""The blocks of columns of Keras, in their order."""

_GRU_LEAF = re.compile(
    r"(?P<scope>.+)/(?P<leaf>(gates|candidate)/([^/]+|(linear|input_projection|hidden_projection)/"
    r"[^/]+))",
    re.DOTALL | re.IGNORECASE,
)
_KERAS = re.compile(r"(?P<scope>(?:.*/)?)recurrent_kernel(?P<number>(_\d+)?)", re.DOTALL)


def family_of(component: str) -> str | None:
    """Return which cell a component of a scope is called after, or None."""
    name = plain(component)
    is_other = name.endswith(("cell", "cellv2")) and any(kind in name for kind in _OTHER_CELLS)
    is_cell = name in BY_PLAIN_NAME or (is_other and name not in _NO_CELLS)
    return name if is_cell else None


def cells(
    shapes: Shapes, declared: Mapping[str, str], biases: Mapping[str, str] | None = None
) -> Iterator[Cell | Unmapped]:
    """Yield the cells among variables, and what looks like one and is none that is known.

    Args:
        shapes: of the variables of the model.
        declared: the kind of some variables, which are kernels: `lstm`, `gru`, `rnn`,
            `gru_reset_after`.
        biases: the biases of kernels, as far as a graph tells them.
    """
    decoders = {n.rpartition("/")[0] for n in shapes if n.rpartition("/")[2] == _ATTENTION}
    wrappers = dict(_wrappers(shapes))
    for found in _cells(shapes, declared, biases or {}):
        if isinstance(found, Cell):
            wrapper = wrappers.get(found.scope.rpartition("/")[0], "")
            is_stepped = _is_stepped(found.scope, decoders)
            yield replace(found, wrapper=wrapper, is_stepped=is_stepped)
        else:
            yield found


def _wrappers(names: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yield the wrappers of cells that have variables, by the scope that they stand in."""
    for name in names:
        components = name.split("/")
        for i, component in enumerate(components[:-1]):
            if plain(component) in _WRAPPERS:
                yield "/".join(components[:i]), component


def unnamed(
    shapes: Shapes, declared: Mapping[str, str], biases: Mapping[str, str] | None = None
) -> Iterator[tuple[str, Cell]]:
    """Yield what may be the kernels of LSTMs in scopes that are called after no cell.

    Args:
        shapes: of the variables of the model.
        declared: the kind of some variables.
        biases: the bias that is added to what is computed with a kernel, where a graph tells it:
            such a kernel can have any name.

    Yields:
        The name of the kernel, and the cell that it would be of.
    """
    biases = biases or {}
    for name, shape in shapes.items():
        is_told = name in declared or of_cell(name)
        is_called = name.rpartition("/")[2].lower() in (*KERNELS, "matrix")
        if is_told or not (is_called or name in biases) or len(shape) != 2 or shape[1] < 4:
            continue
        for found in _declared_cells(shapes, {name: "lstm"}, biases):
            if isinstance(found, Cell) and found.biases:
                yield name, found


def of_cell(name: str) -> bool:
    """Whether a name stands in a scope that is called after a cell."""
    return any(family_of(component) for component in name.split("/")[:-1])


def _is_stepped(scope: str, decoders: Container[str]) -> bool:
    """Return whether an attention goes between the steps of the cell of a scope."""
    while scope:
        scope, _, last = scope.rpartition("/")
        if scope in decoders or plain(last) in _ATTENTIONS:
            return True
    return False


def _cells(
    shapes: Shapes, declared: Mapping[str, str], biases: Mapping[str, str]
) -> Iterator[Cell | Unmapped]:
    taken: set[str] = set()
    for found in (
        *_keras_cells(shapes, declared),
        *_declared_cells(shapes, declared, biases),
        *gatewise_cells(shapes),
    ):
        taken.update(found.members)
        yield found
    scopes: dict[str, dict[str, str]] = {}
    for name in shapes:
        components = name.split("/")
        places = [i for i, c in enumerate(components[:-1]) if family_of(c)]
        if places and name not in taken:
            scope = "/".join(components[: places[-1] + 1])
            leaf = "/".join(components[places[-1] + 1 :]).lower()
            scopes.setdefault(scope, {})[leaf] = name
    for scope, leaves in scopes.items():
        yield _cell(scope, leaves, shapes)
    taken.update(name for leaves in scopes.values() for name in leaves.values())
    yield from _unnamed_grus({n: shape for n, shape in shapes.items() if n not in taken})


def _unnamed_grus(shapes: Shapes) -> Iterator[Cell]:
    """Yield GRUs in scopes that are called after no cell: `enc/gates/kernel`, `enc/candidate/`."""
    scopes: dict[str, dict[str, str]] = {}
    for name in shapes:
        match = _GRU_LEAF.fullmatch(name)
        if match is not None:
            scopes.setdefault(match["scope"], {})[match["leaf"].lower()] = name
    for scope, leaves in scopes.items():
        found = _Reader(scope, leaves, shapes).gru()
        if isinstance(found, Cell):
            yield found


def _declared_cells(
    shapes: Shapes, declared: Mapping[str, str], biases: Mapping[str, str]
) -> Iterator[Cell | Unmapped]:
    for name, kind in declared.items():
        scope, _, leaf = name.rpartition("/")
        start = f"{scope}/" if scope else ""
        if kind not in ("lstm", "rnn") or f"{start}recurrent_kernel" in shapes:
            continue
        members = {leaf.lower(): name}
        beside = (bias for leaf in BIASES for bias in (leaf, leaf.title()))
        members |= {bias.lower(): start + bias for bias in beside if start + bias in shapes}
        if leaf.lower() not in (*KERNELS, "matrix"):
            # Several of them may stand in one scope: it is called after the kernel itself.
            scope = name
            if len(members) == 1 and biases.get(name) in shapes:
                members[BIASES[0]] = biases[name]
        reader = _Reader(scope.removesuffix("/Linear"), members, shapes)
        yield reader.fused(Family("lstm" if kind == "lstm" else "rnn"), first=leaf.lower())


def _cell(scope: str, leaves: Mapping[str, str], shapes: Shapes) -> Cell | Unmapped:
    name = family_of(scope.rpartition("/")[2]) or ""
    family = FAMILIES.get(name)
    reader = _Reader(scope, leaves, shapes)
    if family is None:
        return reader.unmapped("no other framework has such a cell")
    if family.refusal is not None:
        return reader.unmapped(f"{family.refusal}, which no other framework has")
    if family.kind == "gru":
        return reader.gru()
    return reader.fused(family)


class _Reader:
    """Reads the variables of one cell of TensorFlow, by what stands behind its scope."""

    def __init__(self, scope: str, leaves: Mapping[str, str], shapes: Shapes) -> None:
        self._scope = scope
        self._left = dict(leaves)
        self._own = {name: Whole(name, shapes[name]) for name in leaves.values()}
        self._shapes = shapes

    def unmapped(self, reason: str) -> Unmapped:
        return Unmapped(tuple(self._own), reason)

    def _odd(self, name: str) -> Unmapped:
        return self.unmapped(f"{name} {list(self._shapes[name])} is no part of such a cell")

    def _take(self, *leaves: str) -> View | None:
        for leaf in leaves:
            if leaf in self._left:
                name = self._left.pop(leaf)
                return Whole(name, self._shapes[name])
        return None

    def _shards(self, first: View | None, stem: str) -> View | None:
        """Return a matrix with the shards `W_1`, `W_2` ... that 0.12 made of its rows."""
        views = [] if first is None else [first]
        while views and (another := self._take(f"{stem}_{len(views)}")) is not None:
            if len(another.shape) != 2 or another.shape[1:] != views[0].shape[1:]:
                return None
            views.append(another)
        return joined(views, 0) if views else None

    def _missing(self, what: str) -> Unmapped:
        return self.unmapped(f"it has no {what}")

    def fused(self, family: Family, *, first: str = "kernel") -> Cell | Unmapped:
        """Read a cell with one kernel: rows of inputs and state, columns of gates."""
        order = TF_GATES[family.kind]
        kernel, bias = self._shards(self._take(first, *KERNELS), "w"), self._take(*BIASES)
        projection = self._shards(self._take(*PROJECTIONS), "w_p")
        peepholes = [view for leaf in PEEPHOLES if (view := self._take(leaf)) is not None]
        norms = [view for leaf in NORMS if (view := self._take(leaf)) is not None]
        if self._left:
            return self._odd(next(iter(self._left.values())))
        if kernel is None or len(kernel.shape) < 2:
            return self._missing("kernel")
        columns, rows = kernel.shape[-1], kernel.shape[-2]
        units = columns // len(order)
        if norms:
            return self.unmapped(
                "it normalises each gate over its units, which no layer of Keras or PyTorch does"
            )
        if projection is not None and (len(projection.shape) != 2 or projection.shape[0] != units):
            return self._odd(projection.sources[0])
        back = units if projection is None else projection.shape[-1]
        if not 0 < back < rows or columns % len(order):
            return self._odd(kernel.sources[0])
        if bias is not None and bias.shape != (columns,):
            return self._odd(bias.sources[0])
        return Cell(
            self._scope,
            family.kind,
            self._own,
            _gates(part(kernel, -2, 0, rows - back), order),
            _gates(part(kernel, -2, rows - back, rows), order),
            _gates(bias, order),
            projection=projection,
            peepholes=bool(peepholes),
            forget_bias=1.0 if family.adds_forget_bias else None,
        )

    def gru(self) -> Cell | Unmapped:
        """Read a GRU: a kernel of two gates, and another of the candidate."""
        gates, gate_bias = self._take(*GATE_KERNELS), self._take(*GATE_BIASES)
        new, bias = self._take(*CANDIDATE_KERNELS), self._take(*CANDIDATE_BIASES)
        parts = [self._take(f"{part}/kernel") for part in CANDIDATE_PARTS]
        biases = [self._take(f"{part}/bias") for part in CANDIDATE_PARTS]
        if self._left:
            return self._odd(next(iter(self._left.values())))
        if gates is None or len(gates.shape) != 2:
            return self._missing("kernel of its gates")
        rows, units = gates.shape[0], gates.shape[1] // 2
        size = rows - units
        if new is not None and new.shape != (rows, units):
            return self._odd(new.sources[0])
        if new is not None:
            parts = [part(new, 0, 0, size), part(new, 0, size, rows)] if size > 0 else [None]
            biases = [bias, None]
        inputs, states = parts[0], parts[-1]
        if inputs is None or states is None or size <= 0:
            return self._missing("kernel of its candidate")
        for view, shape in (
            (gates, (rows, 2 * units)),
            (inputs, (size, units)),
            (states, (units, units)),
            (gate_bias, (2 * units,)),
            *((one, (units,)) for one in biases),
        ):
            if view is not None and view.shape != shape:
                return self._odd(view.sources[0])
        if (gate_bias is None) != (biases[0] is None):
            return self._missing("bias of its gates or of its candidate")
        after = new is None
        if after and (biases[0] is None) != (biases[1] is None):
            return self._missing("second bias of its candidate")
        both = _gates(gate_bias, ("r", "z"))
        return Cell(
            self._scope,
            "gru",
            self._own,
            {**_gates(part(gates, 0, 0, size), ("r", "z")), "n": inputs},
            {**_gates(part(gates, 0, size, rows), ("r", "z")), "n": states},
            {**both, "n": biases[0]} if biases[0] is not None else {},
            {"n": biases[1]} if after and biases[1] is not None else {},
            reset_after=after,
        )


def _gates(view: View | None, order: tuple[str, ...]) -> Gates:
    """Return the blocks of columns of a matrix, or of a bias, by their gates."""
    if view is None:
        return {}
    return dict(zip(order, split(view, -1, len(order)), strict=True))


def _keras_cells(shapes: Shapes, declared: Mapping[str, str]) -> Iterator[Cell | Unmapped]:
    """Yield the recurrent layers of Keras: a kernel, and a `recurrent_kernel` beside it."""
    for name in shapes:
        match = _KERAS.fullmatch(name)
        if match is None or plain(match["scope"].rstrip("/").rpartition("/")[2]) == "nascell":
            continue
        start, number = match["scope"], match["number"]
        members = {
            leaf: full
            for leaf in ("kernel", "recurrent_kernel", "bias")
            if (full := f"{start}{leaf}{number}") in shapes
        }
        scope = start.rstrip("/") + number
        if "kernel" not in members:
            yield Unmapped((name,), "it has no kernel for its inputs")
            continue
        yield _keras_cell(scope, members, shapes, declared.get(members["kernel"], ""))


def _keras_cell(
    scope: str, members: Mapping[str, str], shapes: Shapes, declared: str
) -> Cell | Unmapped:
    views = {leaf: Whole(name, shapes[name]) for leaf, name in members.items()}
    kernel, recurrent, bias = views["kernel"], views["recurrent_kernel"], views.get("bias")
    own = tuple(members.values())
    back = recurrent.shape
    if len(back) < 2 or not back[-2] or back[-1] % back[-2] or len(kernel.shape) != len(back):
        return Unmapped(own, f"{members['recurrent_kernel']} {list(back)} is no recurrent kernel")
    units, count = back[-2], back[-1] // back[-2]
    kind = _KERAS_KINDS.get(count)
    if kind is None or kernel.shape[-1] != back[-1]:
        return Unmapped(own, f"a cell of {count} blocks of {units} is none that is known")
    order = KERAS_GATES[kind]
    shape = bias.shape if bias is not None else ()
    biases: Gates = {}
    state_biases: Gates = {}
    inputs: View = kernel
    states: View = recurrent
    after: bool | None = None
    if bias is not None and shape == (2 * count * units,) and kind != "rnn":
        inputs, states = _from_cudnn(kernel, count), _from_cudnn(recurrent, count, square=True)
        biases, state_biases = (_gates(half, order) for half in split(bias, 0, 2))
        after = True
    elif bias is not None and shape == (2, count * units) and kind == "gru":
        rows = [reshaped(row, (count * units,)) for row in split(bias, 0, 2)]
        biases, state_biases = (_gates(row, order) for row in rows)
        after = True
    elif bias is not None and shape == (count * units,):
        biases, after = _gates(bias, order), False
    elif bias is not None:
        return Unmapped(own, f"{members['bias']} {list(shape)} is no bias of it")
    elif kind == "gru":
        after = {"gru": False, "gru_reset_after": True}.get(declared)
    return Cell(
        scope,
        kind,
        {view.name: view for view in views.values()},
        _gates(inputs, order),
        _gates(states, order),
        biases,
        state_biases,
        reset_after=after if kind == "gru" else None,
        source="cudnn" if inputs is not kernel else "keras",
    )


def _from_cudnn(kernel: View, count: int, *, square: bool = False) -> View:
    """Return the kernel of a CuDNNLSTM or CuDNNGRU as other layers have it.

    Each of its blocks holds the matrix turned around, in the order of memory.
    """
    blocks = []
    for block in split(kernel, 1, count):
        rows, columns = block.shape
        turned = block if square else reshaped(block, (columns, rows))
        blocks.append(transposed(turned))
    return joined(blocks, 1)
