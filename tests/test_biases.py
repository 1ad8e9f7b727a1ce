"""Which bias stands behind a kernel, so that a constant can be moved into it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from conftest import DATA
from structure_maker import Model, N

from converter import Checkpoint, Variable, open_checkpoint
from converter.graph.definition import Definition
from converter.graph.ordered import OrderedGraph
from converter.structure.biases import bias_of
from converter.structure.infer import infer_from, structure_of

LSTM = "decoder/decoder/attention_wrapper/basic_lstm_cell"
FOUND: dict[str, dict[str, str | None]] = {
    "tf012_v1_charlm_basiclstm": {
        "RNN/BasicLSTMCell/Linear/Matrix": "RNN/BasicLSTMCell/Linear/Bias"
    },
    "tf012_v2_gru_seqlen": {
        "RNN/GRUCell/Gates/Linear/Matrix": "RNN/GRUCell/Gates/Linear/Bias",
        "RNN/GRUCell/Candidate/Linear/Matrix": "RNN/GRUCell/Candidate/Linear/Bias",
    },
    "tf012_v2_lstm_peephole": {
        "encoder/RNN/LSTMCell/W_0": "encoder/RNN/LSTMCell/B",
        "readout": None,
    },
    # Both kernels of a gate have one bias.
    "tf10_v2_gatewise_lstm": {
        "LSTMcell/input_gate/wx": "LSTMcell/input_gate/bi",
        "LSTMcell/input_gate/wt": "LSTMcell/input_gate/bi",
        "w": "b",
    },
    "tf115_v2_bert_mini": {
        "bert/encoder/layer_1/output/dense/kernel": "bert/encoder/layer_1/output/dense/bias",
        "bert/encoder/layer_1/attention/self/value/kernel": (
            "bert/encoder/layer_1/attention/self/value/bias"
        ),
        # It is stored the other way round.
        "cls/seq_relationship/output_weights": "cls/seq_relationship/output_bias",
        "bert/embeddings/token_type_embeddings": None,
    },
    # Behind the first one stands a normalisation, which takes off a mean.
    "tf115_v2_convbn_ema": {"conv1/kernel": "bn1/moving_mean", "conv2/kernel": "conv2/bias"},
    # Cut into gates in the graph; and a bias of two rows, one for each kernel.
    "tf115_v2_keras_rnn": {
        "first/kernel": "first/bias",
        "first/recurrent_kernel": "first/bias",
        "second/recurrent_kernel": None,
    },
    "tf115_v2_lstmblockfused": {"lstm_fused_cell/kernel": "lstm_fused_cell/bias"},
    "tf14_v2_attention_bahdanau": {f"{LSTM}/kernel": f"{LSTM}/bias"},
    # No graph: names tell.
    "tf221_obj_tfkeras_charlm": {
        "lstm/lstm_cell/recurrent_kernel": "lstm/lstm_cell/bias",
        "softmax/kernel": "softmax/bias",
    },
}


@pytest.mark.parametrize("case", FOUND)
def test_biases_of_real_models(case: str) -> None:
    checkpoint = open_checkpoint(DATA / case)
    structure = structure_of(checkpoint)
    for name, wanted in FOUND[case].items():
        (axis,) = (
            number
            for number, used in enumerate(structure.uses[name])
            if any("consume" in uses for uses in used.values())
        )
        found = bias_of(structure, checkpoint, name, axis)
        assert (found and found.name) == wanted, name
        if found is not None:
            assert found.axes == (len(structure.axes[name]) - 1 if axis != 1 else 0,)
            assert found.sign == (-1 if wanted == "bn1/moving_mean" else 1)


def product(m: Model, x: str, name: str) -> str:
    return m.op("MatMul", x, m.variable(name, N, N))


def added(m: Model, x: str, name: str = "b") -> str:
    return m.op("BiasAdd", x, m.variable(name, N))


def plain(m: Model) -> None:
    added(m, product(m, m.input(N, N), "w"))


def summed_first(m: Model) -> None:
    x = m.input(N, N)
    added(m, m.op("Identity", m.op("Add", product(m, x, "w"), product(m, x, "v"))))


def seen_before(m: Model) -> None:
    y = product(m, m.input(N, N), "w")
    m.op("Add", added(m, y), m.op("Tanh", y))


def seen_by_its_shape(m: Model) -> None:
    y = product(m, m.input(N, N), "w")
    m.op("Reshape", added(m, y), m.op("Shape", y))


def scaled_first(m: Model) -> None:
    y = product(m, m.input(N, N), "w")
    added(m, m.op("Mul", y, m.variable("gain", N)))


def of_two(m: Model) -> None:
    x = m.input(N, N)
    bias = m.variable("b", N)
    y = m.op("Tanh", m.op("BiasAdd", product(m, x, "w"), bias))
    m.op("BiasAdd", product(m, y, "v"), bias)


def shared(m: Model) -> None:
    kernel, bias = m.variable("w", N, N), m.variable("b", N)
    y = m.op("Tanh", m.op("BiasAdd", m.op("MatMul", m.input(N, N), kernel), bias))
    m.op("BiasAdd", m.op("MatMul", y, kernel), bias)


def twice_in_one(m: Model) -> None:
    kernel, x = m.variable("w", N, N), m.input(N, N)
    y = m.op("MatMul", m.op("Tanh", x), kernel)
    added(m, m.op("Add", m.op("MatMul", x, kernel), y))


def once_without(m: Model) -> None:
    kernel, x = m.variable("w", N, N), m.input(N, N)
    y = added(m, m.op("MatMul", x, kernel))
    m.op("MatMul", m.op("Tanh", y), kernel)


def two_in_a_row(m: Model) -> None:
    added(m, added(m, product(m, m.input(N, N), "w")), "c")


def otherwise_too(m: Model) -> None:
    kernel = m.variable("w", N, N)
    y = added(m, m.op("MatMul", m.input(N, N), kernel))
    m.op("Add", y, m.op("Tanh", kernel))


def of_one_unit(m: Model) -> None:
    m.op("BiasAdd", m.op("MatMul", m.input(N, N), m.variable("w", N, 1)), m.variable("b", 1))


def one_number_for_all_units(m: Model) -> None:
    m.op("Add", product(m, m.input(N, N), "w"), m.variable("b", 1))


def of_one_unit_in_every_place(m: Model) -> None:
    y = m.op("Conv2D", m.input(-1, 5, 5, N), m.variable("w", 3, 3, N, 1), strides=[1, 1, 1, 1])
    m.op("BiasAdd", y, m.variable("b", 1))


def one_number_for_all_channels(m: Model) -> None:
    y = m.op("Conv2D", m.input(-1, 5, 5, N), m.variable("w", 3, 3, N, 6), strides=[1, 1, 1, 1])
    m.op("Add", y, m.variable("b", 1))


def of_one_unit_the_other_way_round(m: Model) -> None:
    y = m.op("MatMul", m.input(N, N), m.variable("w", 1, N), transpose_b=True)
    m.op("BiasAdd", y, m.variable("b", 1))


def one_number_for_all_heads(m: Model) -> None:
    y = m.op("Einsum", m.input(N, N), m.variable("w", 6, N, 1), equation="nd,hdo->nho")
    m.op("Add", y, m.variable("b", 1))


def one_number_for_all_heads_in_the_middle(m: Model) -> None:
    y = m.op("Einsum", m.input(N, N), m.variable("w", N, 6, 1), equation="nd,dho->nho")
    m.op("Add", y, m.variable("b", 1))


def normalised(m: Model) -> None:
    scale = m.op("Mul", m.variable("gamma", N), m.op("Rsqrt", m.variable("variance", N)))
    shift = m.op("Sub", m.variable("beta", N), m.op("Mul", m.variable("mean", N), scale))
    m.op("Add", m.op("Mul", product(m, m.input(N, N), "w"), scale), shift)


def normalised_otherwise(m: Model) -> None:
    shift = m.op("Mul", m.variable("mean", N), m.variable("other", N))
    shift = m.op("Sub", m.variable("beta", N), shift)
    m.op("Add", m.op("Mul", product(m, m.input(N, N), "w"), m.variable("gamma", N)), shift)


def normalised_behind(m: Model) -> None:
    scale = m.variable("gamma", N)
    shift = m.op("Sub", m.variable("beta", N), m.op("Mul", m.variable("mean", N), scale))
    y = m.op("Relu", product(m, m.input(N, N), "w"))
    m.op("Add", m.op("Mul", y, scale), shift)


@pytest.mark.parametrize(
    ("make", "wanted"),
    [
        (plain, "b"),
        (summed_first, "b"),
        (seen_before, None),
        (seen_by_its_shape, "b"),
        (scaled_first, None),
        (of_two, None),
        (shared, "b"),
        (twice_in_one, None),
        (once_without, None),
        # The first takes it.
        (two_in_a_row, "b"),
        (otherwise_too, None),
        (of_one_unit, "b"),
        (one_number_for_all_units, None),
        (normalised, "mean"),
        (normalised_otherwise, None),
        (normalised_behind, None),
    ],
)
def test_a_bias_stands_behind_every_product_and_nowhere_else(
    make: Callable[[Model], None], wanted: str | None
) -> None:
    model = Model()
    make(model)
    variables = [Variable.from_array(n, np.zeros(s, "f4")) for n, s in model.shapes.items()]
    checkpoint = Checkpoint(variables)
    structure = infer_from(
        OrderedGraph(Definition(DATA / "made.meta", model.definition)), checkpoint
    )
    found = bias_of(structure, checkpoint, "w", 0)
    assert (found and found.name) == wanted


def test_names_tell_the_bias_of_one_unit() -> None:
    shapes = {"out/kernel": (5, 1), "out/bias": (1,), "two/kernel": (5, 2), "two/scale": (1,)}
    checkpoint = Checkpoint([Variable.from_array(n, np.zeros(s, "f4")) for n, s in shapes.items()])
    structure = structure_of(checkpoint)
    assert structure.findings is None
    assert bias_of(structure, checkpoint, "out/kernel", 0) == ("out/bias", (), 1)
    assert bias_of(structure, checkpoint, "two/kernel", 0) is None


@pytest.mark.parametrize(
    ("make", "axis", "has_bias"),
    [
        (of_one_unit_in_every_place, 2, True),
        (one_number_for_all_channels, 2, False),
        (of_one_unit_the_other_way_round, 1, True),
        (one_number_for_all_heads, 1, False),
        (one_number_for_all_heads_in_the_middle, 0, False),
    ],
)
def test_one_number_is_the_bias_of_one_unit_alone(
    make: Callable[[Model], None], axis: int, has_bias: bool
) -> None:
    model = Model()
    make(model)
    variables = [Variable.from_array(n, np.zeros(s, "f4")) for n, s in model.shapes.items()]
    checkpoint = Checkpoint(variables)
    graph = OrderedGraph(Definition(DATA / "made.meta", model.definition))
    found = bias_of(infer_from(graph, checkpoint), checkpoint, "w", axis)
    assert found == (("b", (), 1) if has_bias else None)
