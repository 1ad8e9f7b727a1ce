"""Graphs as their files have them: names of tensors, nodes, constants, and what ops do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from graph_maker import Maker

from converter import Checkpoint, InputError
from converter.dtype import BY_NAME
from converter.formats.messages import message
from converter.graph.definition import Definition, read_definition
from converter.graph.node import Output, Tensor, read_node, tensor
from converter.graph.ops import is_effect, is_watching
from converter.graph.ordered import OrderedGraph
from converter.graph.slices import Slice, read_slice
from converter.graph.written import Graph, read_graph


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a/b", Tensor("a/b")),
        ("a:0", Tensor("a")),
        ("a:12", Tensor("a", 12)),
        ("a:b:1", Tensor("a:b", 1)),
        ("a:", Tensor("a:")),
        ("a:-1", Tensor("a:-1")),
        # A digit, and no number.
        ("a:²", Tensor("a:²")),
        # Longer numbers are no ports, and may be very long.
        ("a:999999", Tensor("a", 999999)),
        ("a:1000000", Tensor("a:1000000")),
    ],
)
def test_names_of_tensors(text: str, found: Tensor) -> None:
    assert tensor(text) == found
    assert tensor(str(found)) == found


def test_nodes_are_read_with_controls_and_attributes() -> None:
    definition = message("NodeDef")(name=b"n", op=b"Odd\xff", input=[b"a:1", b"^c", b"b"])
    definition.attr.add(key=b"T").value.type = 101
    definition.attr.add(key=b"Tout").value.list.type.extend([3, 10])
    shape = definition.attr.add(key=b"shape").value.shape
    shape.dim.add(size=-1)
    shape.dim.add(size=4)
    definition.attr.add(key=b"shapes").value.list.shape.add(unknown_rank=True)
    definition.attr.add(key=b"flag").value.b = True

    node = read_node(definition)

    assert (node.name, node.op) == ("n", "Odd\udcff")
    assert node.sources == (Tensor("a", 1), Tensor("b"))
    assert node.controls == ("c",)
    assert node.dtype("T") is BY_NAME["float32"]
    assert [node.dtype("Tout", port) for port in range(3)] == [
        BY_NAME["int32"],
        BY_NAME["bool"],
        None,
    ]
    assert node.shape("shape") == (None, 4)
    assert node.shape("shapes", 0) is None
    assert node.shape("shapes", 1) is None
    assert (node.integer("flag"), node.integer("other", 7)) == (1, 7)


@pytest.mark.parametrize(
    ("op", "key"),
    [("StatefulPartitionedCall", "Tout"), ("If", "Tout"), ("While", "T"), ("IdentityN", "T")],
)
def test_outputs_of_what_calls_functions_have_a_dtype_each(op: str, key: str) -> None:
    definition = message("GraphDef")()
    call = definition.node.add(name=b"call", op=op.encode())
    call.attr.add(key=key.encode()).value.list.type.extend([3, 10])
    graph = Graph(Definition(Path("g.pb"), definition))
    found = [graph.dtype(Tensor("call", port)) for port in range(3)]
    assert found == [BY_NAME["int32"], BY_NAME["bool"], None]


def test_the_two_views_of_a_graph_have_the_same_nodes() -> None:
    maker = Maker()
    x = maker.placeholder("x", "float32", (2, 3))
    maker.dense(x, "a", 3, 4)
    written = maker.graph()
    ordered = OrderedGraph(Definition(written.path, maker.definition))

    assert {node.name: node.op for node in ordered.nodes} == {
        name: node.op for name, node in written.nodes.items()
    }
    product = ordered.by_name["a/add"].inputs[0]
    assert product == Output(ordered.by_name[written.nodes["a/add"].sources[0].node], 0)
    assert written.shape(Tensor("a/add")) == (-1, 4)
    assert ordered.declared(ordered.by_name["a/add"], 0) == (None, 4)


@pytest.mark.parametrize("value", [[[1.5, 2], [3, 4]], [1, 2, 3], 7])
def test_a_constant_is_the_same_as_numbers_and_as_an_array(value: Any) -> None:
    maker = Maker()
    name = maker.constant(value)
    written = maker.graph()
    ordered = OrderedGraph(written.definition)

    array, constant = written.constant(Tensor(name)), ordered.constant(ordered.by_name[name])

    np.testing.assert_array_equal(array, np.array(value))
    assert constant is not None
    assert array is not None
    assert constant.shape == array.shape == np.shape(value)
    assert constant.values == tuple(array.reshape(-1).tolist())
    assert written.constant(Tensor("elsewhere")) is None


def _checkpoint(path: Path) -> Checkpoint:
    return Checkpoint([], path=path, meta=path)


def test_a_graph_of_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.meta"
    path.write_text('graph_def {\n  node {\n    name: "x"\n')
    with pytest.raises(InputError, match="is text, and only binary ones are read"):
        read_definition(_checkpoint(path))


def test_a_graph_larger_than_protobuf_allows_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "model.meta"
    with path.open("wb") as file:
        file.truncate(1 << 31)
    with pytest.raises(InputError, match=r"larger than a graph can be \(2 GiB\)"):
        read_definition(_checkpoint(path))


def test_the_graph_to_serve_is_read_of_an_export(tmp_path: Path) -> None:
    model = message("SavedModel")()
    for tag, name in ((b"train", b"a"), (b"serve", b"b")):
        graph = model.meta_graphs.add()
        graph.meta_info_def.tags.append(tag)
        graph.graph_def.node.add(name=name, op=b"NoOp")
    (tmp_path / "saved_model.pb").write_bytes(model.SerializeToString())

    found = read_graph(Checkpoint([], path=tmp_path / "variables" / "variables"))

    assert found is not None
    assert list(found.nodes) == ["b"]


def test_collections_are_read_and_damage_in_them_is_told() -> None:
    meta = message("MetaGraphDef")()
    for key, member in ((b"other", b"\xff"), (b"variables", b"\x0a\x01v")):
        meta.collection_def.add(key=key).value.bytes_list.value.append(member)
    definition = Definition(Path("made.meta"), meta.graph_def, meta)

    found = definition.collected("variables", "VariableDef")
    assert [variable.variable_name for variable in found] == [b"v"]
    with pytest.raises(InputError, match=r"made\.meta: its collection other is damaged"):
        list(definition.collected("other", "VariableDef"))
    assert list(Definition(Path("made.pb"), meta.graph_def).collected("other", "VariableDef")) == []


@pytest.mark.parametrize(
    ("spec", "found"),
    [
        ("", None),
        ("48 20 0,48:0,20", None),
        ("48 20 -:-", None),
        ("48 20 -:5,10", Slice((48, 20), (0, 5), (48, 10))),
        ("7 7,0", Slice((7,), (7,), (0,))),
    ],
)
def test_slices_of_savers(spec: str, found: Slice | None) -> None:
    assert read_slice(spec) == found


@pytest.mark.parametrize(
    "spec", ["7 4,4", "7 -1,2", "7 0", "7 0,1,2", "7 0,1:0,1", "x 0,1", "7 8,0"]
)
def test_what_is_no_slice_is_told(spec: str) -> None:
    with pytest.raises(InputError, match=f"saves a slice '{spec}', which is none"):
        read_slice(spec)


EFFECTS = """
    AssignVariableOp AssignAdd ApplyAdam ResourceSparseApplyFtrl ScatterUpdate ResourceScatterNdAdd
    ResourceStridedSliceAssign SaveV2 MergeV2Checkpoints QueueEnqueueV2 ScalarSummary WriteFile
    InitializeTable LookupTableInsertV2 ConditionalAccumulator TensorArrayCloseV3 CountUpTo
    DisableCopyOnRead PrintV2
    """
NO_EFFECTS = """
    ScatterNd TensorScatterUpdate LookupTableFind LookupTableSizeV2 AccumulateNV2 StridedSlice
    RestoreV2 QueueDequeueV2 TensorArrayReadV3 Print NoOp MatMul
    """


def test_what_changes_a_state_or_writes() -> None:
    assert [op for op in EFFECTS.split() if not is_effect(op)] == []
    assert [op for op in NO_EFFECTS.split() if is_effect(op)] == []
    assert [op for op in (EFFECTS + NO_EFFECTS).split() if is_watching(op)] == [
        "ScalarSummary",
        "PrintV2",
        "Print",
        "NoOp",
    ]
