"""Recurrent cells by their names: those of TensorFlow 0.12 to 1.15, Keras', hand-written ones."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from converter.names.cells import (
    BIASES,
    BY_PLAIN_NAME,
    CANDIDATE_BIASES,
    CANDIDATE_KERNELS,
    CANDIDATE_PARTS,
    GATE_BIASES,
    GATE_KERNELS,
    GRU_GATES,
    KERAS_GATES,
    KERNELS,
    NEWEST,
    NORMS,
    PEEPHOLES,
    PROJECTIONS,
    Cell,
    plain,
)
from converter.structure.cells.layer import (
    Known,
    Layer,
    Names,
    Shapes,
    blocks,
    consumed,
    joined,
    one,
    produced,
    scaled,
    shifted,
    still,
)

_NAS = "NASCell"
_SPLIT = ("kernel", "recurrent_kernel", "bias")
_ROLES = {
    **dict.fromkeys(["wx", "w_x", "Wx", "W_x"], "x"),
    **dict.fromkeys(["wt", "wh", "w_h", "u", "Wt", "Wh", "W_h", "U"], "h"),
    **dict.fromkeys(["bi", "b", "bias", "biases", "B"], "bias"),
}
_GATE = re.compile(r"(.+?)_?(gate|cell|state)|candidate|new", re.IGNORECASE)


def family_of(component: str) -> Cell | None:
    """Return which cell a component of a scope is called after, of those whose axes are known."""
    cell = BY_PLAIN_NAME.get(plain(component))
    return cell if cell is not None and (cell.columns or cell.name == _NAS) else None


def cells(shapes: Shapes, names: Names) -> Iterator[Layer]:
    """Yield the cells among variables; what a name promises and shapes do not keep is none."""
    members: dict[str, dict[str, str]] = {}
    keras = []
    for name in shapes:
        components = name.split("/")
        found = [i for i, component in enumerate(components[:-1]) if family_of(component)]
        if found:
            scope = "/".join(components[: found[-1] + 1])
            leaf = "/".join(components[found[-1] + 1 :]).lower()
            members.setdefault(scope, {})[leaf] = name
        if components[-1] == "recurrent_kernel":
            keras.append("/".join(components[:-1]))
    for scope in keras:
        start = f"{scope}/" if scope else ""
        members[scope] = {leaf: start + leaf for leaf in _SPLIT if start + leaf in shapes}
    for scope, leaves in members.items():
        layer = _Cell(scope, leaves, shapes, names).told()
        if layer is not None:
            yield layer
    yield from _gatewise(shapes, names)


class _Cell:
    """The variables of one cell, by what stands behind its scope."""

    def __init__(self, scope: str, leaves: Mapping[str, str], shapes: Shapes, names: Names) -> None:
        self._leaves = dict(leaves)
        self._shapes = shapes
        self._names = names
        self._family = family_of(scope.rpartition("/")[2])
        self._layer = Layer(scope, "cell")

    def told(self) -> Layer | None:
        """Return the layer; None where a variable is left over, or has another shape."""
        if "recurrent_kernel" in self._leaves:
            found = self._keras()
        elif self._family is not None and self._family.columns == GRU_GATES:
            found = self._gru()
        else:
            found = self._family is not None and self._one_kernel(self._family)
        return self._layer if found and not self._leaves else None

    def _take(self, leaves: Sequence[str]) -> str | None:
        return next((self._leaves.pop(leaf) for leaf in leaves if leaf in self._leaves), None)

    def _vectors(self, leaves: Sequence[str], size: int, count: int = 1) -> list[str] | None:
        """Take all vectors of these names; None where one has another size."""
        found = [self._leaves.pop(leaf) for leaf in leaves if leaf in self._leaves]
        return found if all(self._shapes[name] == (count * size,) for name in found) else None

    def _units(self, size: int, *, why: str = "", normed: bool = False) -> str:
        what = self._layer.scope.rpartition("/")[2] or "the cell"
        known = Known("permutation", "any", why or f"the gates of {what} are nonlinear")
        if normed:
            known = Known("permutation", "none", f"{what} normalises by mean and variance over it")
        return self._width(self._layer.scope, size, known)

    def _width(self, wanted: str, size: int, known: Known) -> str:
        name = self._names.new(wanted)
        self._layer.sizes[name] = size
        self._layer.known[name] = known
        return name

    def _takes(self, size: int, variable: str, axis: int) -> str | None:
        """Note the width that comes from elsewhere."""
        if size:
            name = self._names.new(f"{self._layer.scope}/inputs")
            self._layer.sizes[name] = size
            self._layer.inputs, self._layer.slot = name, (variable, axis)
        return self._layer.inputs

    def _one_kernel(self, family: Cell) -> bool:
        kernel, bias = self._take(KERNELS), self._take(BIASES)
        projection = self._take(PROJECTIONS)
        shape = self._shapes.get(kernel or "", ())
        count = family.columns if isinstance(family.columns, int) else len(family.columns)
        if kernel is None or not count or len(shape) < 2 or shape[-1] % count or not shape[-1]:
            return False
        size = shape[-1] // count
        gains = self._vectors(PEEPHOLES, size)
        is_normed = any(names[NEWEST] in NORMS for names in family.leaves)
        norms = self._vectors(NORMS, size) if is_normed else []
        if gains is None or norms is None or (bias and self._shapes[bias] != (shape[-1],)):
            return False
        output = size
        if projection:
            if len(self._shapes[projection]) != 2 or self._shapes[projection][0] != size:
                return False
            output = self._shapes[projection][1]
        if shape[-2] < output:
            return False
        units = back = self._units(size, normed=is_normed)
        if projection:
            known = Known("permutation", "any", f"what takes {projection} is in no name")
            back = self._width(f"{self._layer.scope}/projection", output, known)
            self._layer.inner.add(units)
            self._layer.tell(projection, consumed(one(units)), produced(one(back)))
        rows = joined((self._takes(shape[-2] - output, kernel, len(shape) - 2), back))
        columns = blocks(family.columns, units)
        self._layer.tell(kernel, *map(still, shape[:-2]), consumed(rows), produced(columns))
        if bias:
            self._layer.tell(bias, shifted(columns))
        for name in (*gains, *norms):
            self._layer.tell(name, shifted(one(units)) if "beta" in name else scaled(one(units)))
        self._layer.output = back
        return True

    def _gru(self) -> bool:
        gates, gate_bias = (
            self._take(GATE_KERNELS),
            self._take(GATE_BIASES),
        )
        if gates is None or len(self._shapes[gates]) != 2:
            return False
        rows, columns = self._shapes[gates]
        size = columns // 2
        candidate = self._take(CANDIDATE_KERNELS)
        parts = [self._take((f"{part}/kernel",)) for part in CANDIDATE_PARTS]
        biases = self._vectors(
            (*CANDIDATE_BIASES, *(f"{part}/bias" for part in CANDIDATE_PARTS)), size
        )
        wanted = {
            candidate: (rows, size),
            parts[0]: (rows - size, size),
            parts[1]: (size, size),
        }
        if (
            columns != 2 * size
            or not 0 < size <= rows
            or biases is None
            or (candidate is None) == (None in parts)
            or (gate_bias and self._shapes[gate_bias] != (columns,))
            or any(self._shapes[name] != shape for name, shape in wanted.items() if name)
        ):
            return False
        units = self._units(size)
        inputs = self._takes(rows - size, gates, 0)
        self._layer.tell(
            gates, consumed(joined((inputs, units))), produced(blocks(GRU_GATES, units))
        )
        if gate_bias:
            self._layer.tell(gate_bias, shifted(blocks(GRU_GATES, units)))
        for name, axis in (
            (candidate, joined((inputs, units))),
            (parts[0], joined((inputs,))),
            (parts[1], one(units)),
        ):
            if name:
                self._layer.tell(name, consumed(axis), produced(one(units)))
        for name in biases:
            self._layer.tell(name, shifted(one(units)))
        self._layer.output = units
        return True

    def _keras(self) -> bool:
        kernel, recurrent = self._take(("kernel",)), self._take(("recurrent_kernel",))
        bias = self._take(("bias",))
        if kernel is None or recurrent is None:
            return False
        shape, back = self._shapes[kernel], self._shapes[recurrent]
        if len(shape) < 2 or len(back) != len(shape) or not back[-2] or back[-1] % back[-2]:
            return False
        size, count = back[-2], back[-1] // back[-2]
        is_nas = self._family is not None and self._family.name == _NAS
        labels = 8 if is_nas and count == 8 else KERAS_GATES.get(count)
        with_bias = [(count * size,), (2, count * size)] if count == 3 else [(count * size,)]
        if labels is None or shape[-1] != back[-1] or not shape[-2]:
            return False
        if bias and self._shapes[bias] not in with_bias:
            return False
        units = self._units(size)
        columns = blocks(labels, units)
        inputs = joined((self._takes(shape[-2], kernel, len(shape) - 2),))
        self._layer.tell(kernel, *map(still, shape[:-2]), consumed(inputs), produced(columns))
        self._layer.tell(recurrent, *map(still, back[:-2]), consumed(one(units)), produced(columns))
        if bias:
            outer = map(still, self._shapes[bias][:-1])
            self._layer.tell(bias, *outer, shifted(columns))
        self._layer.output = units
        return True


def _gatewise(shapes: Shapes, names: Names) -> Iterator[Layer]:
    """Yield the cells that have a scope for each gate: `cell/input_gate/wx`, `wt`, `bi`."""
    parents: dict[str, dict[str, list[str]]] = {}
    for name in shapes:
        parent, _, rest = name.rpartition("/")
        above, _, gate = parent.rpartition("/")
        if _GATE.fullmatch(gate):
            parents.setdefault(above, {}).setdefault(gate, []).append(rest)
    for scope, gates in parents.items():
        start = f"{scope}/" if scope else ""
        leaves = [{_ROLES.get(leaf): leaf for leaf in found} for found in gates.values()]
        if len(gates) not in (3, 4) or any(set(one) != {"x", "h", "bias"} for one in leaves):
            continue
        by_gate = [
            {role: f"{start}{gate}/{leaf}" for role, leaf in found.items()}
            for gate, found in zip(gates, leaves, strict=True)
        ]
        layer = _of_gates(scope, by_gate, shapes, names)
        if layer is not None:
            yield layer


def _of_gates(
    scope: str, gates: Sequence[Mapping[str | None, str]], shapes: Shapes, names: Names
) -> Layer | None:
    size = shapes[gates[0]["h"]][-1] if shapes[gates[0]["h"]] else 0
    rows = shapes[gates[0]["x"]][:1]
    if not size or not rows:
        return None
    wanted: dict[str, Sequence[tuple[int, ...]]] = {
        "x": [(*rows, size)],
        "h": [(size, size)],
        "bias": [(size,), (1, size)],
    }
    if any(shapes[gate[role]] not in wanted[role] for gate in gates for role in wanted):
        return None
    layer = Layer(scope, "cell")
    units, inputs = names.new(scope or "cell"), names.new(f"{scope or 'cell'}/inputs")
    layer.sizes = {units: size, inputs: rows[0]}
    what = scope.rpartition("/")[2] or "the cell"
    layer.known[units] = Known("permutation", "any", f"the gates of {what} are nonlinear")
    for gate in gates:
        layer.tell(gate["x"], consumed(one(inputs)), produced(one(units)))
        layer.tell(gate["h"], consumed(one(units)), produced(one(units)))
        layer.tell(gate["bias"], *map(still, shapes[gate["bias"]][:-1]), shifted(one(units)))
    layer.output, layer.inputs, layer.slot = units, inputs, (gates[0]["x"], 0)
    return layer
