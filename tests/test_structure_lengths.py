"""What in a graph moves with the widths: constants, shapes, gradients and initialisers."""

from __future__ import annotations

from typing import Any

import pytest
from conftest import VALID, Case, case
from structure_maker import Model, N

from converter import open_checkpoint
from converter.graph.ordered import OrderedGraph
from converter.structure.infer import infer
from converter.structure.lengths import Lengths, lengths


def of(case: Case) -> Lengths:
    return lengths(infer(open_checkpoint(case.path)))


def plain(found: Any) -> dict[int, str]:
    return {place: str(axis) for place, axis in found.items()}


def test_every_integer_of_a_language_model() -> None:
    found = of(case("tf14_v2_charlm_lstm_ema"))
    units, rows = "charlm/rnn/lstm_cell", "charlm/embedding + charlm/rnn/lstm_cell"
    assert {name: plain(entries) for name, entries in found.integers.items()} == {
        "charlm/embedding/Initializer/random_uniform/shape": {
            0: "charlm/embedding/vocabulary",
            1: "charlm/embedding",
        },
        "charlm/rnn/LSTMCellZeroState/Const": {0: units},
        "charlm/rnn/LSTMCellZeroState/Const_2": {0: units},
        "charlm/rnn/lstm_cell/kernel/Initializer/random_uniform/shape": {0: rows, 1: f"4*{units}"},
        "charlm/softmax/kernel/Initializer/random_uniform/shape": {0: units, 1: "charlm/softmax"},
        "charlm/softmax/Tensordot/Reshape_1/shape": {0: units, 1: "charlm/softmax"},
        "charlm/softmax/Tensordot/Const_2": {0: "charlm/softmax"},
        "gradients/charlm/softmax/Tensordot/Reshape_1_grad/Shape": {0: units, 1: "charlm/softmax"},
        "gradients/charlm/embedding_lookup_grad/Shape": {1: "charlm/embedding"},
    }
    assert found.torn == {}


def test_arrays_and_shapes_of_a_language_model() -> None:
    found = of(case("tf14_v2_charlm_lstm_ema"))
    accumulated = "gradients/charlm/rnn/while/rnn/lstm_cell/MatMul/Enter_grad/b_acc"
    assert [str(axis) for axis in found.arrays[accumulated]] == [
        "charlm/embedding + charlm/rnn/lstm_cell",
        "4*charlm/rnn/lstm_cell",
    ]
    assert [str(a) for a in found.shapes["charlm/rnn/lstm_cell/kernel/Adam_1", "shape"]] == [
        "charlm/embedding + charlm/rnn/lstm_cell",
        "4*charlm/rnn/lstm_cell",
    ]
    gathered = "charlm/rnn/TensorArrayStack/TensorArrayGatherV3"
    assert [str(a) for a in found.shapes[gathered, "element_shape"]] == [
        "0",
        "charlm/rnn/lstm_cell",
    ]


@pytest.mark.parametrize(
    "name",
    [
        "tf012_v1_charlm_basiclstm",
        "tf10_v2_gatewise_lstm",
        "tf115_v2_bert_mini",
        "tf115_v2_convbn_ema",
        "tf115_v2_lstmblockfused",
        "tf14_v1_partitioned",
    ],
)
def test_no_integer_that_a_shape_is_made_of_is_missed(name: str) -> None:
    structure = infer(open_checkpoint(case(name).path))
    sizes = {
        axis.size(structure.sizes)
        for axes in structure.axes.values()
        for axis in axes
        if axis.widths() and axis.size(structure.sizes) > 8
    }
    graph = structure.graph.findings.analysis.graph
    found = lengths(structure).integers
    missed = {
        (node.name, place)
        for node, value in _integers(graph)
        for place, entry in enumerate(value)
        if entry in sizes and place not in found.get(node.name, {}) and _is_read(graph, node)
    }
    # The vocabulary of gradients that are sparse, and what a Pack of old makes for nobody.
    assert {
        place for place in missed if "lookup" not in place[0] and "pack" not in place[0]
    } == set()


def _integers(graph: OrderedGraph) -> Any:
    for node in graph.nodes:
        found = graph.constant(node)
        if found is not None and found.is_whole and found.values and "save" not in node.name:
            yield node, found.values


def _is_read(graph: OrderedGraph, node: Any) -> bool:
    return any(graph.consumers[consumer] for consumer in graph.consumers[node])


@pytest.mark.parametrize("case", VALID, ids=lambda case: case.name)
def test_gradients_contradict_nothing(case: Case) -> None:
    checkpoint = open_checkpoint(case.path)
    if checkpoint.meta is None:
        return
    structure = infer(checkpoint)
    before = {
        n: list(map(structure.graph.write, a)) for n, a in structure.graph.findings.axes.items()
    }
    found = lengths(structure)
    assert found.torn == {}
    assert structure.graph.findings.analysis.conflicts == []
    roles = checkpoint.roles()
    for name, axes in structure.graph.findings.axes.items():
        if roles[name].kind == "model":
            assert list(map(structure.graph.write, axes)) == before[name], name


def test_a_constant_that_two_widths_share_is_torn() -> None:
    m = Model()
    shape = m.constant([N, N], name="both")
    x = m.input(N, N)
    a, b = m.dense(x, "a"), m.dense(x, "b")
    m.dense(m.op("Add", a, m.op("Reshape", a, shape)), "c")
    m.dense(m.op("Add", b, m.op("Reshape", b, shape)), "d")
    found = lengths(m.structure())
    assert {key: list(map(str, axes)) for key, axes in found.torn.items()} == {
        ("both", 1): ["a", "b"]
    }
