"""Axes whose lengths are only known when a graph runs, beside widths that are."""

from __future__ import annotations

from pathlib import Path

import pytest
from structure_maker import Model, N

from converter.formats.messages import message
from converter.graph.definition import Definition
from converter.graph.ordered import OrderedGraph
from converter.structure.lengths import lengths
from converter.structure.tensors.flow import Flow

BEAMS = 3


def batch_of(m: Model, x: str) -> str:
    """Return how long the first axis of a tensor is."""
    zero, one = m.constant([0]), m.constant([1])
    return m.op("StridedSlice", m.op("Shape", x), zero, one, one, shrink_axis_mask=1)


def test_padding_by_a_number_that_is_computed_leaves_the_other_axes() -> None:
    m = Model()
    x = m.input(1, -1, N)
    h = m.op("Reshape", m.dense(m.op("Reshape", x, m.constant([-1, N])), "a"), m.op("Shape", x))
    missing = m.op("FloorMod", batch_of(m, x), m.constant(2))
    rows = m.op("Pack", m.constant(0), missing)
    none = m.constant([0, 0])
    padded = m.op("Pad", h, m.op("Pack", none, rows, none))
    m.dense(m.op("Reshape", padded, m.constant([-1, N])), "b")
    assert m.axes()["b/w"] == "a, b | consume, produce"
    assert m.widths()["a"] == "free any"


def test_rows_that_are_packed_along_another_axis_are_no_paddings() -> None:
    m = Model()
    h = m.op("Reshape", m.dense(m.input(N, N), "a"), m.constant([N, N]))
    turned = m.op("Pack", m.constant([0, 0]), m.constant([0, 1]), axis=1)
    m.dense(m.op("Pad", h, turned), "b", N)
    # As [[0, 0], [0, 1]] it would add to the columns; as columns it adds to the last axis too.
    assert m.widths()["a"] == "opaque fixed"


def test_the_first_axes_are_joined_where_their_lengths_are_multiplied() -> None:
    m = Model()
    x = m.input(-1, BEAMS, N)
    batch = batch_of(m, x)
    flat = m.dense(m.op("Reshape", x, m.constant([-1, N])), "a")
    beams = m.op("Reshape", flat, m.op("Pack", batch, m.constant(BEAMS), m.constant(N)))
    many = m.op("Mul", batch, m.constant(BEAMS))
    m.dense(m.op("Reshape", beams, m.op("Pack", many, m.constant(-1))), "b")
    assert m.axes()["b/w"] == "a, b | consume, produce"
    assert m.widths()["a"] == "free any"


def test_another_number_joins_nothing() -> None:
    m = Model()
    x = m.input(-1, BEAMS, N)
    batch = batch_of(m, x)
    flat = m.dense(m.op("Reshape", x, m.constant([-1, N])), "a")
    beams = m.op("Reshape", flat, m.op("Pack", batch, m.constant(BEAMS), m.constant(N)))
    many = m.op("Mul", batch, m.constant(2))
    m.dense(m.op("Reshape", beams, m.op("Pack", many, m.constant(-1))), "b")
    assert m.widths()["a"] == "opaque fixed"


def test_branches_of_different_lengths_contradict_nothing() -> None:
    m = Model()
    x = m.input(N, N)
    wide = m.dense(x, "wide", N, 2 * N)
    m.op("Softmax", m.op("Merge", m.dense(x, "narrow"), wide))
    assert m.structure().conflicts == ()
    assert m.widths() == {"x": "bound fixed", "wide": "bound fixed", "narrow": "bound fixed"}


def test_what_branches_leave_for_gradients_holds_nothing() -> None:
    m = Model()
    h = m.dense(m.input(N, N), "a")
    m.op("OptionalFromValue", m.op("NotEqual", h, m.constant(0.0)))
    m.dense(m.op("Relu", h), "b")
    assert m.widths()["a"] == "permutation any"


def test_what_is_taken_out_again_is_what_was_put_in() -> None:
    m = Model()
    left = m.op("OptionalFromValue", m.dense(m.input(N, N), "a"))
    held = m.op("_Join", m.op("OptionalNone"), left)
    m.dense(m.op("OptionalGetValue", held), "b")
    assert m.axes()["b/w"] == "a, b | consume, produce"


def test_a_size_that_is_asserted_moves_with_its_width() -> None:
    m = Model()
    h = m.dense(m.input(-1, N), "a")
    wanted = m.constant([7, N], name="wanted")
    is_alike = m.op("All", m.op("Equal", m.op("Shape", h), wanted), m.constant([0]))
    m.op("Assert", is_alike, m.op("Shape", h))
    m.dense(h, "b")
    found = lengths(m.structure())
    assert {place: str(axis) for place, axis in found.integers["wanted"].items()} == {1: "a"}


def test_a_size_that_is_only_compared_stays() -> None:
    m = Model()
    h = m.dense(m.input(-1, N), "a")
    m.op("Equal", m.op("Shape", h), m.constant([7, N], name="wanted"))
    m.dense(h, "b")
    assert "wanted" not in lengths(m.structure()).integers


def test_a_state_that_is_asserted_to_be_as_long_is_the_same_width() -> None:
    m = Model()
    h = m.dense(m.input(-1, N), "a")
    m.op("Fill", m.constant([2, N], name="dims"), m.constant(0.0), name="zeros")
    alike = m.op("Equal", m.op("Shape", h), m.op("Shape", "zeros"))
    m.op("Assert", m.op("All", alike, m.constant([0])), m.op("Shape", h))
    m.dense(h, "b")
    assert str(lengths(m.structure()).integers["dims"][1]) == "a"


def test_zeros_in_another_shape_are_as_long_as_those_that_they_are_made_of() -> None:
    m = Model()
    h = m.dense(m.input(-1, N), "a")
    zeros = m.op("Fill", m.constant([2, N], name="dims"), m.constant(0.0))
    two, end, one = m.constant([1]), m.constant([2]), m.constant([1])
    rest = m.op("StridedSlice", m.op("Shape", zeros), two, end, one)
    parts = m.op("ConcatV2", m.constant([1, -1]), rest, m.constant(0))
    m.dense(m.op("Add", h, m.op("Reshape", zeros, parts)), "b")
    assert str(lengths(m.structure()).integers["dims"][1]) == "a"


@pytest.mark.parametrize(("signed", "is_output"), [("out", False), ("share", True), ("gone", True)])
def test_a_number_that_an_export_does_not_name_is_no_output(signed: str, is_output: bool) -> None:
    m = Model()
    h = m.op("Relu", m.dense(m.input(N, N), "a"))
    m.op("MatMul", h, m.variable("b", N, N), name="out")
    m.op(
        "Mean", m.op("Cast", m.op("Greater", h, m.constant(0.0))), m.constant([0, 1]), name="share"
    )
    # What noted it in a summary was left out of the export.
    m.definition.node[-1].attr.add(key=b"_output_shapes").value.list.shape.add()
    meta = message("MetaGraphDef")(graph_def=m.definition)
    entry = meta.signature_def.add(key=b"serving_default")
    entry.value.outputs.add(key=b"y").value.name = f"{signed}:0".encode()
    graph = OrderedGraph(Definition(Path("made.pb"), meta.graph_def, meta))
    flow = Flow(graph, [graph.by_name["a/w"], graph.by_name["a/b"], graph.by_name["b"]])
    assert (graph.by_name["share"] in flow.looked_at) == is_output
