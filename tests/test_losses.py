"""Losses, gradients and distributions are found in graphs, without running them."""

from __future__ import annotations

import pytest
from conftest import case
from graph_maker import Maker

from converter import open_checkpoint
from converter.forward.distributions import distribution
from converter.forward.losses import find_losses, gradients_of
from converter.forward.variables import variables_of
from converter.graph.node import Tensor
from converter.graph.written import Graph, read_graph

LOSSES = {
    "tf012_v1_charlm_basiclstm": "Mean",
    # There the optimizer is no op, and the sum of two losses leaves no trace in the gradients.
    "tf115_v2_bert_mini": "add",
    "tf115_v2_convbn_ema": "sparse_softmax_cross_entropy_loss/value",
    # A loop whose arrays are told by numbers.
    "tf115_v2_keras_rnn": "Mean",
    "tf14_v2_attention_bahdanau": "Mean",
    "tf14_v2_charlm_lstm_ema": "Mean",
}


def graph_of(name: str) -> tuple[Graph, list[str]]:
    checkpoint = open_checkpoint(case(name).path)
    graph = read_graph(checkpoint)
    assert graph is not None
    return graph, list(variables_of(graph, set(checkpoint)))


@pytest.mark.parametrize(("name", "loss"), LOSSES.items())
def test_the_loss_of_real_graphs_is_found(name: str, loss: str) -> None:
    graph, variables = graph_of(name)
    assert find_losses(graph, variables) == [Tensor(loss)]


def model(*, is_trained: bool) -> Graph:
    """Return a classifier with its loss, what is told of it, and its accuracy."""
    maker = Maker()
    x = maker.placeholder("x", "float32", (-1, 4))
    y = maker.placeholder("y", "int64", (-1,))
    w = maker.op("VariableV2", name="w", dtype="float32", shape=(4, 3))
    logits = maker.op("MatMul", x, w, name="logits", T="float32", shape=(-1, 3))
    flat = maker.op("Reshape", logits, maker.constant([-1, 3]), T="float32", shape=(-1, 3))
    xent = maker.op(
        "SparseSoftmaxCrossEntropyWithLogits", flat, y, name="xent", T="float32", shape=(-1,)
    )
    axes = maker.constant([0])
    loss = maker.op("Mean", xent, axes, name="loss", T="float32", shape=())
    maker.op("Exp", loss, name="perplexity", T="float32", shape=())
    choice = maker.op("ArgMax", logits, maker.constant(1), T="float32", shape=(-1,))
    right = maker.op("Equal", choice, y, T="int64", shape=(-1,))
    hits = maker.op("Cast", right, SrcT="bool", DstT="float32", shape=(-1,))
    maker.op("Mean", hits, axes, name="accuracy", T="float32", shape=())
    probabilities = maker.op("Softmax", logits, T="float32", name="p", shape=(-1, 3))
    maker.op("Transpose", logits, maker.constant([1, 0]), T="float32", name="t", shape=(3, -1))
    maker.op("Identity", probabilities, T="float32", name="same", shape=(-1, 3))
    if is_trained:
        maker.op("Fill", axes, loss, name="gradients/loss_grad/Fill", T="float32", shape=(-1,))
    return maker.graph()


def test_a_loss_is_what_the_gradients_are_of() -> None:
    assert find_losses(model(is_trained=True), ["w"]) == [Tensor("loss")]
    # Without gradients the last number that weights change smoothly; an accuracy is none.
    assert find_losses(model(is_trained=False), ["w"]) == [Tensor("perplexity")]
    assert find_losses(model(is_trained=True), []) == []


def test_distributions_are_told_by_the_softmax() -> None:
    graph = model(is_trained=True)
    told = {n: distribution(graph, Tensor(n)) for n in ("logits", "p", "same", "t", "xent", "x")}
    assert told == {
        "logits": "logits",
        "p": "probabilities",
        "same": "probabilities",
        "t": None,
        "xent": None,
        "x": None,
    }


def test_each_optimizer_gets_its_gradient_in_its_own_place() -> None:
    maker = Maker()
    names = ("adam", "momentum", "ftrl", "sparse", "scattered", "slot")
    for name in names:
        maker.op("VariableV2", name=name, dtype="float32", shape=(4, 3))
    g = maker.op("Abs", "adam", name="g", T="float32", shape=(4, 3))
    rows = maker.placeholder("rows", "int32", (-1,))
    n = maker.constant(0.5, "n")
    maker.op("ApplyAdam", "adam", "slot", "slot", n, n, n, n, n, n, g, T="float32")
    maker.op("ApplyMomentum", "momentum", "slot", n, g, n, T="float32")
    maker.op("ApplyFtrl", "ftrl", "slot", "slot", g, n, n, n, n, T="float32")
    maker.op("SparseApplyAdagrad", "sparse", "slot", n, g, rows, T="float32")
    # Adam of rows adds to its slot, behind another update of that.
    decayed = maker.op("Assign", "slot", g, T="float32")
    maker.op("ScatterAdd", decayed, rows, g, T="float32")
    found = {x.variable: x[1:] for x in gradients_of(maker.graph(), {"slot": "scattered"})}
    whole = (Tensor("g"), None)
    assert found == {
        "adam": whole,
        "momentum": whole,
        "ftrl": whole,
        "sparse": (Tensor("g"), Tensor("rows")),
        "scattered": (Tensor("g"), Tensor("rows")),
    }


def test_what_a_damaged_graph_lacks_is_no_distribution() -> None:
    maker = Maker()
    maker.op("Reshape", name="alone", T="float32", shape=(-1, 3))
    maker.op("Identity", "gone", name="of_nothing", T="float32", shape=(-1, 3))
    maker.op("ApplyMomentum", "gone", "gone", "gone", T="float32")
    graph = maker.graph()
    for name in ("alone", "of_nothing", "gone"):
        assert distribution(graph, Tensor(name)) is None
    assert gradients_of(graph, {}) == []
    assert find_losses(graph, ["gone", "alone"]) == []
