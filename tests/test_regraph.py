"""Graphs of other sizes: what is rewritten in the protobuf, what stays, and what is named."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from structure_maker import Model

from converter import Checkpoint, Variable
from converter.errors import PlanError, UsageError
from converter.formats.messages import message
from converter.regraph import Regraphed, regraph
from converter.structure.infer import infer

UNITS, OUT, BATCH = 6, 3, 5


class Saved:
    """A model that was saved, and its graph at other sizes."""

    def __init__(self, model: Model, directory: Path, *, has_hints: bool = False) -> None:
        self.meta = message("MetaGraphDef")(graph_def=model.definition)
        self._model = model
        self._path = directory / "model.meta"
        for node in self.meta.graph_def.node:
            # The maker notes shapes as a hint; here they are attributes, as TensorFlow has them.
            attributes = {entry.key: entry for entry in node.attr}
            hint = attributes.get(b"_output_shapes")
            if hint is not None and not has_hints:
                if node.op in (b"VariableV2", b"Placeholder"):
                    told = node.attr.add(key=b"shape").value.shape
                    told.CopyFrom(hint.value.list.shape[0])
                node.attr.remove(hint)

    def width(self, size: int) -> str:
        """Return the one width of a size."""
        widths = infer(self.checkpoint()).widths
        (name,) = (name for name, width in widths.items() if width.size == size)
        return name

    def checkpoint(self) -> Checkpoint:
        self._path.write_bytes(self.meta.SerializeToString())
        return Checkpoint(
            [Variable.from_array(n, np.zeros(s, "f4")) for n, s in self._model.shapes.items()],
            path=self._path.with_suffix(""),
            meta=self._path,
            format="TensorFlow V2",
        )

    def regraphed(self, **sizes: int) -> Regraphed:
        checkpoint = self.checkpoint()
        return regraph(checkpoint, infer(checkpoint), sizes)

    def nodes(self, **sizes: int) -> dict[str, Any]:
        """Return the nodes of the new graph by name; nothing must have been left over."""
        found = self.regraphed(**sizes)
        assert found.notes == found.unresolved == ()
        return nodes_of(found)


def nodes_of(found: Regraphed) -> dict[str, Any]:
    meta = message("MetaGraphDef").FromString(found.meta)
    return {node.name.decode(): node for node in meta.graph_def.node}


def attribute(node: Any, key: str) -> Any:
    return next(entry.value for entry in node.attr if entry.key == key.encode())


def shape(node: Any, key: str = "shape") -> list[int]:
    return [dim.size for dim in attribute(node, key).shape.dim]


def proto(node: Any) -> Any:
    return message("TensorProto").FromString(attribute(node, "value").tensor)


def values(node: Any, dtype: str = "i4") -> list[float]:
    tensor = proto(node)
    found: list[float] = np.frombuffer(tensor.tensor_content, dtype).tolist()
    return found


@pytest.fixture
def model() -> Model:
    """A hidden layer `a` between an input and an output."""
    m = Model()
    a = m.op("Tanh", m.dense(m.input(BATCH, 2), "a", 2, UNITS), name="hidden")
    m.dense(a, "out", UNITS, OUT)
    return m


def test_shapes_of_variables_and_their_slots(model: Model, tmp_path: Path) -> None:
    for slot, of in (("a/w/Adam", (2, UNITS)), ("out/w/Adam", (UNITS, OUT))):
        model.variable(slot, *of)
    nodes = Saved(model, tmp_path).nodes(a=9)
    assert shape(nodes["a/w"]) == shape(nodes["a/w/Adam"]) == [2, 9]
    assert shape(nodes["a/b"]) == [9]
    assert shape(nodes["out/w"]) == shape(nodes["out/w/Adam"]) == [9, OUT]
    assert shape(nodes["out/b"]) == [OUT]
    assert shape(nodes["x"]) == [BATCH, 2]


def test_nothing_else_changes(model: Model, tmp_path: Path) -> None:
    node = model.definition.node[0]
    node.device = b"/job:worker"
    node.attr.add(key=b"_class").value.list.s.append(b"loc:@a/w")
    # What we know no field for: experimental_debug_info of a node, the ops of a meta graph.
    node.MergeFromString(b"\x32\x04\x0a\x02hi")
    saved = Saved(model, tmp_path)
    saved.meta.meta_info_def.stripped_op_list = b"\x0a\x00"
    saved.meta.MergeFromString(b"\x62\x03abc")
    before = saved.meta.SerializeToString()
    assert saved.regraphed().meta == before
    after = nodes_of(saved.regraphed(a=9))
    for old in saved.meta.graph_def.node:
        if old.name not in (b"a/w", b"a/b", b"out/w", b"a/w/read", b"a/b/read", b"out/w/read"):
            assert after[old.name.decode()] == old
    assert b"\x62\x03abc" in saved.regraphed(a=9).meta
    assert after["x"].SerializeToString().endswith(b"\x32\x04\x0a\x02hi")


def test_hints_are_dropped_but_for_the_shapes_of_placeholders(tmp_path: Path) -> None:
    m = Model()
    m.definition.versions.producer = 21
    x = m.op("Placeholder", name="x", dtype="float32", shape=(-1, 2))
    m.definition.node[-1].attr.add(key=b"shape").value.shape.SetInParent()
    hidden = m.op("Tanh", m.dense(x, "a", 2, UNITS), shape=(-1, UNITS))
    m.dense(hidden, "out", UNITS, OUT)
    nodes = Saved(m, tmp_path, has_hints=True).nodes(a=9)
    assert shape(nodes["x"]) == [-1, 2]
    keys = [entry.key for node in nodes.values() for entry in node.attr]
    assert b"_output_shapes" not in keys


def test_integers_entry_by_entry(tmp_path: Path) -> None:
    m = Model()
    a = m.dense(m.input(-1, 2), "a", 2, UNITS)
    wanted = m.constant([-1, UNITS], name="wanted")
    batch = m.op("StridedSlice", m.op("Shape", "x"), *map(m.constant, ([0], [1], [1])))
    m.definition.node[-1].attr.add(key=b"shrink_axis_mask").value.i = 1
    packed = m.op("Pack", batch, m.constant(UNITS, name="packed"))
    zeros = m.op("Fill", packed, m.constant(0.0))
    m.dense(m.op("Add", m.op("Reshape", a, wanted), zeros), "out", UNITS, OUT)
    nodes = Saved(m, tmp_path).nodes(a=9)
    assert values(nodes["wanted"]) == [-1, 9]
    assert values(nodes["packed"]) == [9]
    assert list(proto(nodes["packed"]).tensor_shape.dim) == []


def test_bounds_of_slices(tmp_path: Path) -> None:
    m = Model()
    gates = m.dense(m.input(BATCH, 2), "gates", 2, 2 * UNITS)
    ones = m.constant([1, 1])
    bounds = [
        (m.constant([0, start], name=f"begin_{i}"), m.constant([BATCH, stop], name=f"end_{i}"))
        for i, (start, stop) in enumerate([(0, UNITS), (UNITS, 2 * UNITS), (-UNITS, 2 * UNITS)])
    ]
    first, second, last = (m.op("StridedSlice", gates, *pair, ones) for pair in bounds)
    size = m.constant([-1, UNITS], name="size")
    more = m.op("Slice", gates, m.constant([0, UNITS], name="begin"), size)
    joined = m.op("AddN", first, second, last, more)
    m.dense(m.op("Tanh", joined), "out", UNITS, OUT)
    saved = Saved(m, tmp_path)
    nodes = saved.nodes(**{saved.width(UNITS): 9})
    found = {n: values(nodes[n]) for n in nodes if n.startswith(("begin", "end", "size"))}
    assert found == {
        "begin_0": [0, 0],
        "end_0": [BATCH, 9],
        "begin_1": [0, 9],
        "end_1": [BATCH, 18],
        "begin_2": [0, -9],
        "end_2": [BATCH, 18],
        "begin": [0, 9],
        "size": [-1, 9],
    }


def test_constants_that_have_the_width_grow_as_they_go_on(model: Model, tmp_path: Path) -> None:
    def initial(name: str, value: Any) -> None:
        model.op("Assign", name, model.constant(value, name=f"{name}/initial"))

    initial("a/w", np.full((2, UNITS), 0.5))
    initial("a/b", np.zeros(UNITS))
    initial("out/w", np.ones((UNITS, OUT)) * np.arange(OUT))
    nodes = Saved(model, tmp_path).nodes(a=9)
    assert list(proto(nodes["a/w/initial"]).float_val) == [0.5]
    assert [dim.size for dim in proto(nodes["a/w/initial"]).tensor_shape.dim] == [2, 9]
    assert list(proto(nodes["a/b/initial"]).float_val) == [0.0]
    assert values(nodes["out/w/initial"], "f4") == list(range(OUT)) * 9
    smaller = Saved(model, tmp_path).nodes(a=4)
    assert values(smaller["out/w/initial"], "f4") == list(range(OUT)) * 4


def test_constants_grow_gate_by_gate(tmp_path: Path) -> None:
    m = Model()
    x = m.dense(m.input(BATCH, 2), "gates", 2, 2 * UNITS)
    first, second = (
        m.op("Slice", x, m.constant([0, at]), m.constant([BATCH, UNITS])) for at in (0, UNITS)
    )
    m.dense(m.op("Mul", m.op("Sigmoid", first), m.op("Tanh", second)), "out", UNITS, OUT)
    biases = np.repeat([1.0, 0.0], UNITS)
    m.op("Assign", "gates/b", m.constant(biases, name="initial"))
    saved = Saved(m, tmp_path)
    assert values(saved.nodes(**{saved.width(UNITS): 8})["initial"], "f4") == [1.0] * 8 + [0.0] * 8


def test_constants_that_differ_from_unit_to_unit_are_named(model: Model, tmp_path: Path) -> None:
    model.op("Assign", "a/b", model.constant(np.arange(float(UNITS)), name="initial"))
    found = Saved(model, tmp_path).regraphed(a=9)
    assert found.unresolved == ("initial",)
    assert found.notes == (
        "initial: the units of a differ in it, and new ones are as the last one",
    )
    assert values(nodes_of(found)["initial"], "f4") == [0, 1, 2, 3, 4, 5, 5, 5, 5]


def test_one_value_for_many_entries_stays_one(tmp_path: Path) -> None:
    m = Model()
    a = m.op("Tanh", m.dense(m.input(BATCH, 2), "a", 2, 1 << 40))
    m.dense(a, "out", 1 << 40, OUT)
    m.shapes = {}
    tensor = message("TensorProto")(dtype=1, float_val=[0.25])
    for size in (2, 1 << 40):
        tensor.tensor_shape.dim.add(size=size)
    m.op("Const", name="initial")
    m.definition.node[-1].attr.add(key=b"value").value.tensor = tensor.SerializeToString()
    m.op("Assign", "a/w", "initial")
    checkpoint = Saved(m, tmp_path).checkpoint()
    huge = {"a/w": (2, 1 << 40), "a/b": (1 << 40,), "out/w": (1 << 40, OUT), "out/b": (OUT,)}
    variables = [Variable.from_array(n, np.zeros(1, "f4")) for n in huge]
    checkpoint = Checkpoint(
        [_with_shape(v, huge[v.name]) for v in variables],
        path=checkpoint.path,
        meta=checkpoint.meta,
    )
    found = regraph(checkpoint, infer(checkpoint), {"a": 1 << 41})
    grown = proto(nodes_of(found)["initial"])
    assert list(grown.float_val) == [0.25]
    assert [dim.size for dim in grown.tensor_shape.dim] == [2, 1 << 41]


def _with_shape(variable: Variable, shape: tuple[int, ...]) -> Variable:
    return Variable(variable.name, variable.dtype, shape, variable.load)


HEAD = 16


@pytest.mark.parametrize(
    ("op", "number", "wanted"),
    [
        ("Mul", HEAD**-0.5, 36**-0.5),
        ("RealDiv", HEAD**0.5, 36**0.5),
        ("Mul", -(HEAD**-0.5), -(36**-0.5)),
    ],
)
def test_scale_factors_move_with_the_head_size(
    op: str, number: float, wanted: float, tmp_path: Path
) -> None:
    m = attention()
    scores = m.op("MatMul", "q/add", "k/add", transpose_b=True)
    scale(m, scores, op, m.constant(number, name="scale"))
    found = Saved(m, tmp_path).regraphed(q=36)
    assert values(nodes_of(found)["scale"], "f4") == [np.float32(wanted)]
    (factor,) = found.rescaled
    assert factor[:2] == ("q", "scaled")
    assert factor.before == pytest.approx(np.sign(number) * 0.25)
    assert factor.after == pytest.approx(np.sign(number) / 6)
    assert found.notes == ()


def test_a_factor_that_is_worked_out_from_the_size(tmp_path: Path) -> None:
    m = attention()
    size = m.op("Cast", m.constant(HEAD, name="size"))
    scores = m.op("MatMul", "q/add", "k/add", transpose_b=True)
    scale(m, scores, "Mul", m.op("Rsqrt", size))
    found = Saved(m, tmp_path).regraphed(q=36)
    assert values(nodes_of(found)["size"]) == [36]
    assert found.rescaled[0].after == pytest.approx(1 / 6)


def test_a_factor_that_follows_a_shape_is_told(tmp_path: Path) -> None:
    m = attention()
    last = m.op("StridedSlice", m.op("Shape", "q/add"), *map(m.constant, ([1], [2], [1])))
    m.definition.node[-1].attr.add(key=b"shrink_axis_mask").value.i = 1
    scores = m.op("MatMul", "q/add", "k/add", transpose_b=True)
    scale(m, scores, "RealDiv", m.op("Sqrt", m.op("Cast", last)))
    found = Saved(m, tmp_path).regraphed(q=36)
    assert [factor[:3] for factor in found.rescaled] == [("q", "scaled", 0.25)]
    assert found.rescaled[0].after == pytest.approx(1 / 6)
    assert found.notes == ()


def test_a_factor_that_something_else_takes_stays_and_is_named(tmp_path: Path) -> None:
    m = attention()
    number = m.constant(0.25, name="scale")
    scores = m.op("MatMul", m.op("Add", "q/add", number), "k/add", transpose_b=True)
    scale(m, scores, "Mul", number)
    found = Saved(m, tmp_path).regraphed(q=36)
    assert values(nodes_of(found)["scale"], "f4") == [0.25]
    assert found.unresolved == ("scaled",)
    assert found.notes == (
        "scaled: its factor 0.25 is a root of q, and it stays, where 0.166667 would be right",
    )


def test_a_slope_that_happens_to_be_a_root_stays(tmp_path: Path) -> None:
    m = Model()
    a = m.dense(m.input(BATCH, 2), "a", 2, 100)
    slope = m.op("Mul", a, m.constant(0.1, name="slope"))
    m.dense(m.op("Maximum", a, slope), "out", 100, OUT)
    found = Saved(m, tmp_path).regraphed(a=150)
    assert values(nodes_of(found)["slope"], "f4") == [np.float32(0.1)]
    assert found.rescaled == ()


def attention() -> Model:
    """Queries and keys of one width; the caller contracts them."""
    m = Model()
    x = m.input(BATCH, 2)
    for name in ("q", "k"):
        m.op("Identity", m.dense(x, name, 2, HEAD), name=f"{name}/add")
    return m


def scale(m: Model, scores: str, op: str, number: str) -> None:
    m.dense(m.op("Softmax", m.op(op, scores, number, name="scaled")), "out", BATCH, OUT)


def save(m: Model, keys: Mapping[str, tuple[str, str]]) -> None:
    """Save variables: by node the key and the slice."""
    names = m.strings(*(key for key, _ in keys.values()))
    m.strings(*(text for _, text in keys.values()))
    m.definition.node[-1].name = b"save/slices"
    m.op("SaveV2", m.strings("prefix"), names, "save/slices", *keys, name="save/SaveV2")


def test_slices_of_partitioned_variables(tmp_path: Path) -> None:
    m = Model()
    x = m.input(BATCH, 2)
    parts = [m.variable(f"a/w/part_{i}", 2, size) for i, size in enumerate((4, 3))]
    whole = m.op("ConcatV2", *parts, m.constant(1))
    hidden = m.op("Tanh", m.op("BiasAdd", m.op("MatMul", x, whole), m.variable("a/b", 7)))
    m.dense(hidden, "out", 7, OUT)
    del m.shapes["a/w/part_0"], m.shapes["a/w/part_1"]
    m.shapes["a/w"] = (2, 7)
    save(
        m,
        {
            "a/w/part_0": ("a/w", "2 7 0,2:0,4"),
            "a/w/part_1": ("a/w", "2 7 0,2:4,3"),
            "a/b": ("a/b", "7 0,7"),
            "out/w": ("out/w", ""),
        },
    )
    definition = message("VariableDef")(variable_name=b"a/w/part_1:0")
    info = definition.save_slice_info_def
    info.full_name = b"a/w"
    info.full_shape.extend([2, 7])
    info.var_offset.extend([0, 4])
    info.var_shape.extend([2, 3])
    saved = Saved(m, tmp_path)
    collection = saved.meta.collection_def.add(key=b"variables").value.bytes_list
    collection.value.append(definition.SerializeToString())
    saved.meta.collection_def.add(key=b"other").value.bytes_list.value.append(b"\xff")
    found = saved.regraphed(**{saved.width(7): 12})
    assert found.notes == ()
    nodes = nodes_of(found)
    assert shape(nodes["a/w/part_0"]) == shape(nodes["a/w/part_1"]) == [2, 6]
    assert list(proto(nodes["save/slices"]).string_val) == [
        b"2 12 0,2:0,6",
        b"2 12 0,2:6,6",
        b"12 0,12",
        b"",
    ]
    meta = message("MetaGraphDef").FromString(found.meta)
    (member,), (other,) = (c.value.bytes_list.value for c in meta.collection_def)
    info = message("VariableDef").FromString(member).save_slice_info_def
    assert (list(info.full_shape), list(info.var_offset), list(info.var_shape)) == (
        [2, 12],
        [0, 6],
        [2, 6],
    )
    assert other == b"\xff"


def test_a_slice_that_no_node_holds_stays_and_is_named(model: Model, tmp_path: Path) -> None:
    save(model, {"hidden": ("a/b", f"{UNITS} 0,2")})
    found = Saved(model, tmp_path).regraphed(a=9)
    assert found.notes == (f"a/b: no node holds its slice {UNITS} 0,2, which stays",)
    assert list(proto(nodes_of(found)["save/slices"]).string_val) == [b"6 0,2"]


def test_a_constant_that_two_widths_share_is_named(tmp_path: Path) -> None:
    m = Model()
    both = m.constant([BATCH, UNITS], name="both")
    x = m.input(BATCH, 2)
    for name in ("a", "b"):
        m.dense(m.op("Reshape", m.dense(x, name, 2, UNITS), both), f"{name}_out", UNITS, OUT)
    found = Saved(m, tmp_path).regraphed(a=9)
    assert "both" in found.unresolved
    assert "both: its entry 1 is the size of a = 9 and b = 6, which are not equal now" in (
        found.notes
    )
    assert Saved(m, tmp_path).regraphed(a=9, b=9).notes == ()


def test_what_is_worked_out_from_numbers_is_found_by_looking_again(tmp_path: Path) -> None:
    m = Model()
    a = m.op("Tanh", m.dense(m.input(BATCH, 2), "a", 2, UNITS))
    half = m.constant(UNITS // 2)
    wanted = m.op("Pack", m.constant(BATCH), m.op("Add", half, half))
    reshaped = m.op("Reshape", a, wanted, name="reshaped")
    m.dense(reshaped, "out", UNITS, OUT)
    found = Saved(m, tmp_path).regraphed(a=9)
    assert "reshaped" in found.unresolved
    assert "reshaped: the lengths 9 and 6 stand opposite in the new graph" in found.notes


def test_what_contradicted_before_is_not_told_again(model: Model, tmp_path: Path) -> None:
    model.op("Add", "hidden", model.input(BATCH, 5, name="y"), name="broken")
    saved = Saved(model, tmp_path)
    assert "broken" in infer(saved.checkpoint()).conflicts[0]
    assert saved.regraphed(a=9).notes == ()


def function(name: bytes, size: int) -> Any:
    """A function that reshapes what it gets to `size` columns."""
    body = message("FunctionDef")()
    body.signature.name = name
    body.signature.input_arg.add(name=b"x")
    body.signature.output_arg.add(name=b"y")
    inner = Model()
    inner.constant([BATCH, size], name="wanted")
    inner.op("Reshape", "x", "wanted:output:0", name="reshaped")
    body.node_def.extend(inner.definition.node)
    body.ret.add(key=b"y", value=b"reshaped:output:0")
    body.attr.add(key=b"_input_shapes").value.list.shape.add()
    return body


def call(m: Model, x: str, name: bytes) -> str:
    text = m.op("PartitionedCall", x)
    m.definition.node[-1].attr.add(key=b"f").value.func.name = name
    return text


def test_bodies_of_functions(tmp_path: Path) -> None:
    m = Model()
    x = m.input(BATCH, 2)
    for name in ("a", "b"):
        hidden = m.op("Tanh", m.dense(x, name, 2, UNITS))
        m.dense(call(m, hidden, b"reshape"), f"{name}_out", UNITS, OUT)
    m.definition.library.function.append(function(b"reshape", UNITS))
    saved = Saved(m, tmp_path)
    both = saved.regraphed(a=9, b=9)
    assert both.notes == ()
    body = message("MetaGraphDef").FromString(both.meta).graph_def.library.function[0]
    assert values(body.node_def[0]) == [BATCH, 9]
    assert len(body.attr) == 0
    one = saved.regraphed(a=9)
    assert "wanted: calls of reshape want different sizes of it" in one.notes


def test_numbers_that_sums_are_divided_by(tmp_path: Path) -> None:
    m = Model()
    a = m.op("Tanh", m.dense(m.input(BATCH, 2), "a", 2, UNITS))
    total = m.op("Sum", a, m.constant([1]))
    m.definition.node[-1].attr.add(key=b"keep_dims").value.b = True
    one = m.op("RealDiv", total, m.constant(float(UNITS), name="count"))
    two = m.op("Mul", total, m.op("Reciprocal", m.constant(float(UNITS), name="inverse")))
    repeated = m.op("Tile", total, m.constant([1, UNITS], name="times"))
    three = m.op("RealDiv", repeated, m.constant(float(UNITS), name="gradient"))
    other = m.op("RealDiv", a, m.constant(float(UNITS), name="other"))
    m.dense(m.op("AddN", m.op("Sub", m.op("Sub", other, one), two), three), "out", UNITS, OUT)
    nodes = Saved(m, tmp_path).nodes(a=9)
    found = {n: values(nodes[n], "f4") for n in ("count", "inverse", "gradient", "other")}
    assert found == {"count": [9], "inverse": [9], "gradient": [9], "other": [UNITS]}
    assert values(nodes["times"]) == [1, 9]


@pytest.mark.parametrize(("grown", "drawn"), [(2, [3, 2]), (9, [9, 3])])
def test_random_matrices_stay_as_high_as_wide(grown: int, drawn: list[int], tmp_path: Path) -> None:
    m = Model()
    m.dense(m.op("Tanh", m.dense(m.input(BATCH, 3), "a", 3, 2)), "out", 2, OUT)
    noise = m.op("RandomStandardNormal", m.constant([3, 2], name="drawn"))
    m.op("Qr", m.op("Mul", noise, m.constant(1.0)), name="qr")
    signs = m.op("Sign", m.op("DiagPart", "qr:1"))
    q = m.op("Mul", "qr", signs)
    m.op("Assign", "a/w", m.op("Reshape", q, m.constant([3, 2], name="wanted")))
    found = Saved(m, tmp_path).regraphed(a=grown)
    nodes = nodes_of(found)
    assert values(nodes["drawn"]) == drawn
    assert values(nodes["wanted"]) == [3, grown]
    assert found.unresolved == ()
    assert len(found.notes) == (grown > 3)
    assert all(note.startswith("qr: what it makes is wider than high") for note in found.notes)


def test_rows_of_a_gradient_and_their_numbers(tmp_path: Path) -> None:
    m = Model()
    table = m.variable("table", 20, UNITS)
    found = m.op("Gather", table, m.placeholder("ids", "int32", (BATCH,)))
    m.dense(m.op("Tanh", found), "out", UNITS, OUT)
    every = m.op("Range", m.constant(0), m.constant(20, name="limit"), m.constant(1))
    numbers = m.op("ConcatV2", every, "ids", m.constant(0))
    rows = m.op("ConcatV2", table, found, m.constant(0), name="gradients/rows")
    m.op("ScatterSub", "table", numbers, rows)
    saved = Saved(m, tmp_path)
    nodes = saved.nodes(**{saved.width(20): 31})
    assert values(nodes["limit"]) == [31]


def test_signatures(model: Model, tmp_path: Path) -> None:
    saved = Saved(model, tmp_path)
    signature = saved.meta.signature_def.add(key=b"serve").value
    outputs = {b"hidden:0": (-1, UNITS), b"x:0": (BATCH, 2), b"nothing": (UNITS,)}
    for name, sizes in outputs.items():
        told = signature.outputs.add(key=name).value
        told.name = name
        for size in sizes:
            told.tensor_shape.dim.add(size=size)
    meta = message("MetaGraphDef").FromString(saved.regraphed(a=9).meta)
    found = {
        o.value.name: [dim.size for dim in o.value.tensor_shape.dim]
        for o in meta.signature_def[0].value.outputs
    }
    assert found == {b"hidden:0": [-1, 9], b"x:0": [BATCH, 2], b"nothing": [UNITS]}


def test_widths_that_cannot_be(model: Model, tmp_path: Path) -> None:
    saved = Saved(model, tmp_path)
    with pytest.raises(UsageError, match=r"there is no width 'ab'; did you mean 'a'\?; convert"):
        saved.regraphed(ab=9)
    with pytest.raises(PlanError, match="a: a width cannot be 0; give it at least 1 unit"):
        saved.regraphed(a=0)


def test_what_no_constant_can_hold_is_refused(tmp_path: Path) -> None:
    m = Model()
    a = m.dense(m.input(-1, 2), "a", 2, 2 * UNITS)
    m.op("Reshape", a, m.constant([-1, 2, UNITS], name="wanted"), name="parts")
    m.dense(m.op("Reshape", "parts", m.constant([-1, UNITS])), "out", UNITS, OUT)
    saved = Saved(m, tmp_path)
    with pytest.raises(PlanError, match=r"wanted is int32, which cannot hold 1000000000000; choo"):
        saved.regraphed(**{saved.width(UNITS): 10**12})


def test_constants_that_would_be_huge_are_refused(model: Model, tmp_path: Path) -> None:
    model.op("Assign", "a/b", model.constant(np.arange(float(UNITS)), name="initial"))
    with pytest.raises(PlanError, match=r"initial would have \[1000000000\] entries, more than a "):
        Saved(model, tmp_path).regraphed(a=10**9)


def test_what_has_no_graph_is_refused(model: Model, tmp_path: Path) -> None:
    checkpoint = Saved(model, tmp_path).checkpoint()
    structure = infer(checkpoint)
    bare = Checkpoint(checkpoint.values(), path=checkpoint.path)
    with pytest.raises(PlanError, match=r"model: there is no graph beside it; leave the graph"):
        regraph(bare, structure, {"a": 9})
