"""What each op says about axes, in small models whose sizes are all equal."""

from __future__ import annotations

import os
import subprocess
import sys
from cProfile import Profile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from structure_maker import Model, N, told

from converter.graph.node import Output
from converter.names import Role
from converter.structure.tensors.flow import Kind
from converter.structure.tensors.rules import RULES


def test_dense_layers() -> None:
    m = Model()
    h = m.op("Tanh", m.dense(m.input(N, N), "a"))
    m.dense(m.op("Relu", m.dense(h, "b")), "c")
    assert m.axes() == {
        "a/w": "x, a | consume, produce",
        "a/b": "a | shift",
        "b/w": "a, b | consume, produce",
        "b/b": "b | shift",
        "c/w": "b, c | consume, produce",
        "c/b": "c | shift",
    }
    assert m.widths() == {
        "x": "bound fixed",
        "a": "permutation any",
        "b": "scaling any",
        "c": "bound any",
    }


def test_transposed_matrices_produce_by_rows() -> None:
    m = Model()
    h = m.op("MatMul", m.input(N, N), m.variable("a", N, N), transpose_b=True)
    m.op("MatMul", m.variable("b", N, N), h, transpose_a=True, transpose_b=True)
    assert m.axes() == {"a": "a, x | produce, consume", "b": "a, b | consume, produce"}


_SUMMED = """
from structure_maker import Model, N
m = Model()
def pair(*shape):
    number = len(m.definition.node)
    return m.op("Add", m.variable(f"a{number}", *shape), m.variable(f"b{number}", *shape))
x = m.input(5, N)
h = m.op("Mul", m.op("MatMul", x, pair(N, N)), pair(N))
m.op("MatMul", m.op("Relu", h), pair(N, N))
m.dense(m.op("Tanh", m.op("Mul", m.input(5, N, name="y"), pair(5, N))), "c")
m.dense(m.op("Relu", m.op("Add", m.input(5, N, name="z"), pair(5, N))), "d")
print(m.widths(), m.axes())
"""


def test_names_are_the_same_in_every_run() -> None:
    """Sets of texts have another order in each."""
    found = {
        subprocess.run(
            [sys.executable, "-c", _SUMMED],
            cwd=Path(__file__).parent,
            env={**os.environ, "PYTHONHASHSEED": str(seed)},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for seed in range(4)
    }
    assert len(found) == 1
    assert found.pop().count("scaling") == 2


def test_residual_stream_is_one_width() -> None:
    m = Model()
    h = m.dense(m.input(N, N), "in")
    for i in range(2):
        h = m.op("Add", h, m.dense(m.op("Relu", m.dense(h, f"up{i}")), f"down{i}"))
    m.dense(h, "out")
    axes = m.axes()
    assert axes["up1/w"] == "in, up1 | consume, produce"
    assert axes["down1/w"] == "up1, in | consume, produce"
    assert axes["down0/b"] == "in | shift"
    assert m.widths()["in"] == "free any"


def test_units_that_are_chosen_by_their_places() -> None:
    m = Model()
    h = m.op("Tanh", m.dense(m.input(N, N), "a"))
    size = m.op("GatherV2", m.op("Shape", h), m.constant(1), m.constant(0))
    places = m.op("Range", m.constant(0), size, m.constant(1))
    m.dense(m.op("SelectV2", m.op("Less", places, m.constant(3)), h, m.constant(0.0)), "b")
    assert m.widths()["a"] == "bound fixed"


def test_concatenation_and_split() -> None:
    m = Model()
    x = m.input(N, N)
    both = m.op("ConcatV2", m.dense(x, "a"), m.dense(x, "b"), m.constant(1))
    m.op("Split", m.constant(1), m.dense(both, "c", 2 * N, 2 * N), name="s", num_split=2)
    m.dense(m.op("Mul", m.op("Sigmoid", "s"), "s:1"), "out")
    assert m.axes()["c/w"] == "a + b, 2*c | consume, produce"
    assert m.axes()["c/b"] == "2*c | shift"


def test_a_split_makes_parts_of_one_length() -> None:
    m = Model()
    m.op("Split", m.constant(1), m.dense(m.input(N, N), "a", N, 2 * N), name="s", num_split=2)
    m.dense(m.op("Relu", "s"), "p")
    m.dense(m.op("Tanh", "s:1"), "q")
    m.op("Split", m.constant(1), m.dense(m.op("Relu", "s"), "b", N, 2 * N), name="t", num_split=2)
    m.dense(m.op("Mul", "t", "t:1"), "r")
    m.op("SplitV", m.dense("s", "c", N, 2 * N), m.constant([N, N]), m.constant(1), name="u")
    m.dense(m.op("Relu", "u"), "v")
    m.dense(m.op("Tanh", "u:1"), "w")
    # The parts of `t` are one width, and those of `u` can be cut anywhere.
    ((op, node, parts),) = m.structure().evens
    assert (op, node, [str(axis) for axis in parts]) == ("Split", "s", ["a", "a_1"])
    assert m.axes()["c/w"] == "a, c + c_1 | consume, produce"


def test_old_concatenation_and_pieces_of_given_sizes() -> None:
    m = Model()
    x = m.input(N, N)
    both = m.op("Concat", m.constant(1), m.dense(x, "a"), x)
    m.op("SplitV", m.dense(both, "c", 2 * N, 6), m.constant([2, 4]), m.constant(1), name="s")
    m.dense(m.op("Relu", "s"), "p", 2)
    m.dense(m.op("Relu", "s:1"), "q", 4)
    axes = m.axes()
    assert axes["c/w"] == "a + x, c + c_1 | consume, produce"
    assert axes["p/w"] == "c, p | consume, produce"
    assert axes["q/w"] == "c_1, q | consume, produce"


def test_reshape_to_heads_and_back() -> None:
    m = Model()
    h = m.dense(m.input(N, N), "a", N, 8)
    h = m.op("Reshape", h, m.constant([-1, 2, 4]))
    h = m.op("Transpose", h, m.constant([1, 0, 2]))
    h = m.op("Reshape", m.op("Transpose", h, m.constant([1, 0, 2])), m.constant([N, 8]))
    m.dense(h, "out", 8)
    assert m.axes()["a/w"] == "x, a/groups*a | consume, produce"
    assert m.axes()["out/w"] == "a/groups*a, out | consume, produce"


def test_a_transpose_between_reshapes_turns_the_product() -> None:
    m = Model()
    h = m.op("Reshape", m.dense(m.input(N, N), "a", N, 16), m.constant([-1, 4, 4]))
    h = m.op("Reshape", m.op("Transpose", h, m.constant([0, 2, 1])), m.constant([-1, 16]))
    m.dense(h, "out", 16)
    assert m.axes()["a/b"] == "a/groups*a/groups_1 | shift"
    assert m.axes()["out/w"] == "a/groups_1*a/groups, out | consume, produce"


def test_reshape_by_the_shape_of_something_else() -> None:
    m = Model()
    x = m.input(-1, -1, N)
    shape = m.op("Shape", x)
    one = m.constant([1])
    begin, end = m.constant([0]), m.constant([1])
    batch = m.op("StridedSlice", shape, begin, one, one, shrink_axis_mask=1)
    time = m.op("StridedSlice", shape, end, m.constant([2]), one, shrink_axis_mask=1)
    flat = m.dense(m.op("Reshape", x, m.constant([-1, N])), "a")
    whole = m.op("Reshape", flat, m.op("Pack", batch, time, m.constant(N)))
    m.op("BatchMatMul", whole, m.op("Relu", whole), adj_y=True)
    assert m.axes() == {"a/w": "x, a | consume, produce", "a/b": "a | shift"}


def convolution(m: Model, x: str, name: str, *shape: int, **more: object) -> str:
    attributes: dict[str, Any] = {"strides": [1, 1, 1, 1], "padding": "SAME", **more}
    return m.op("Conv2D", x, m.variable(name, *shape), **attributes)


def test_convolutions_and_flattening() -> None:
    m = Model()
    h = convolution(m, m.input(2, N, N, N), "c/w", 3, 3, N, N, strides=[1, 2, 2, 1])
    h = m.op("Relu", m.op("BiasAdd", h, m.variable("c/b", N)))
    h = m.op("MaxPool", h, ksize=[1, 2, 2, 1], strides=[1, 2, 2, 1], padding="VALID")
    other = convolution(m, h, "d/w", 1, 1, N, N)
    both = m.op("ConcatV2", h, other, m.constant(3))
    m.dense(m.op("Reshape", both, m.constant([-1, 8])), "out", 8)
    assert m.axes() == {
        "c/w": "3, 3, x, c | -, -, consume, produce",
        "c/b": "c | shift",
        "d/w": "1, 1, c, d | -, -, consume, produce",
        "out/w": "c + d, out | consume, produce",
        "out/b": "out | shift",
    }
    assert m.widths()["c"] == "scaling any"


def test_a_concatenation_inside_a_flattening() -> None:
    m = Model()
    x = m.input(2, N, N, 3)
    both = m.op(
        "ConcatV2",
        convolution(m, x, "c", 3, 3, 3, N),
        convolution(m, x, "d", 3, 3, 3, N),
        m.constant(3),
    )
    m.dense(m.op("Reshape", both, m.constant([-1, N * N * 2 * N])), "out", N * N * 2 * N)
    assert m.axes()["out/w"] == "16*(c + d), out | consume, produce"


def test_channels_first() -> None:
    m = Model()
    x = m.input(2, N, N, N)
    h = convolution(
        m, x, "c/w", 3, 3, N, N, strides=[1, 1, 1, 1], data_format="NCHW", padding="SAME"
    )
    h = m.op("BiasAdd", h, m.variable("c/b", N), data_format="NCHW")
    m.dense(m.op("Reshape", h, m.constant([2, N * N * N])), "out", N * N * N)
    assert m.axes()["c/b"] == "c | shift"
    assert m.axes()["out/w"] == "c*16, out | consume, produce"


def test_depthwise_and_separable_convolutions() -> None:
    m = Model()
    h = convolution(m, m.input(2, N, N, 3), "c", 3, 3, 3, N)
    h = m.op(
        "DepthwiseConv2dNative",
        h,
        m.variable("s/depthwise_kernel", 3, 3, N, 2),
        strides=[1, 1, 1, 1],
        padding="SAME",
    )
    h = convolution(m, h, "s/pointwise_kernel", 1, 1, 2 * N, N)
    convolution(m, h, "out", 1, 1, N, 3)
    axes = m.axes()
    assert axes["s/depthwise_kernel"] == "3, 3, c, s | -, -, gain, produce"
    assert axes["s/pointwise_kernel"] == "1, 1, c*s, s_1 | -, -, consume, produce"


def test_transposed_convolution() -> None:
    m = Model()
    m.op(
        "Conv2DBackpropInput",
        m.constant([2, 8, 8, N]),
        m.variable("up", 3, 3, N, N),
        m.input(2, N, N, N),
        strides=[1, 2, 2, 1],
        padding="SAME",
        name="h",
    )
    convolution(m, m.op("Relu", "h"), "out", 3, 3, N, 3)
    assert m.axes()["up"] == "3, 3, up, x | -, -, produce, consume"


def test_grouped_convolution() -> None:
    m = Model()
    h = convolution(m, m.input(2, N, N, 3), "c", 1, 1, 3, 2 * N)
    h = convolution(m, h, "g", 3, 3, N, 6)
    convolution(m, h, "out", 1, 1, 6, 3)
    axes = m.axes()
    assert axes["g"] == "3, 3, c, 2*g | -, -, consume, produce"
    assert axes["c"] == "1, 1, x, 2*c | -, -, consume, produce"
    assert axes["out"] == "1, 1, 2*g, out | -, -, consume, produce"


def test_a_window_that_covers_an_axis_consumes_it() -> None:
    m = Model()
    h = m.dense(m.op("Reshape", m.input(2, N, 3), m.constant([-1, 3])), "a", 3)
    h = m.op("Reshape", h, m.constant([2, N, N, 1]))
    h = convolution(m, h, "c", 2, N, 1, 3, padding="VALID")
    convolution(m, h, "out", 1, 1, 3, 2)
    assert m.axes()["c"] == "2, a, 1, c | -, consume, -, produce"


@pytest.mark.parametrize("op", ["FusedBatchNorm", "FusedBatchNormV3"])
def test_fused_batch_normalisation(op: str) -> None:
    m = Model()
    h = convolution(m, m.input(2, N, N, 3), "c", 3, 3, 3, N)
    names = ("gamma", "beta", "moving_mean", "moving_variance")
    h = m.op(op, h, *(m.variable(f"bn/{name}", N) for name in names), is_training=False)
    convolution(m, m.op("Relu", h), "out", 1, 1, N, 3)
    axes = m.axes()
    assert [axes[f"bn/{name}"] for name in names] == [
        "c | gain",
        "c | shift",
        "c | mean",
        "c | variance",
    ]
    assert m.widths()["c"] == "scaling any"


def test_written_out_batch_normalisation() -> None:
    m = Model()
    h = m.dense(m.input(N, N), "a")
    variance = m.op("Add", m.variable("variance", N), m.constant(0.001))
    scale = m.op("Mul", m.op("Rsqrt", variance), m.variable("gamma", N))
    shift = m.op("Sub", m.variable("beta", N), m.op("Mul", m.variable("mean", N), scale))
    m.dense(m.op("Relu", m.op("Add", m.op("Mul", h, scale), shift)), "out")
    axes = m.axes()
    assert axes["variance"] == "a | variance"
    assert axes["gamma"] == "a | gain"
    assert axes["beta"] == "a | shift"
    assert axes["mean"] == "a | mean"
    assert m.widths()["a"] == "scaling any"


def normalised(m: Model, h: str, mean: bool) -> str:
    last = m.constant([-1])
    if mean:
        centre = m.op("Mean", h, last, keep_dims=True)
        square = m.op("SquaredDifference", h, centre)
        h = m.op("Sub", h, centre)
    else:
        square = m.op("Square", h)
    variance = m.op("Mean", square, last, keep_dims=True)
    scale = m.op("Rsqrt", m.op("Add", variance, m.constant(1e-6)))
    return m.op("Mul", m.op("Mul", h, scale), m.variable("gamma", N))


def test_layer_normalisation() -> None:
    m = Model()
    m.dense(normalised(m, m.dense(m.input(N, N), "a"), True), "out")
    assert m.axes()["gamma"] == "a | gain"
    assert m.widths()["a"] == "permutation none"
    assert "normalises by mean and variance" in m.structure().widths["a"].why


def test_normalisation_by_the_mean_square() -> None:
    m = Model()
    m.dense(normalised(m, m.dense(m.input(N, N), "a"), False), "out")
    assert m.widths()["a"] == "orthogonal none"


def test_normalisation_to_length_one() -> None:
    m = Model()
    h = m.dense(m.input(N, N), "a")
    length = m.op("Sum", m.op("Square", h), m.constant([1]), keep_dims=True)
    m.dense(m.op("Mul", h, m.op("Rsqrt", length)), "out")
    assert m.widths()["a"] == "orthogonal zero"


@pytest.mark.parametrize(("epsilon", "growth"), [(1e-6, "any"), (0.0, "none")])
def test_normalised_weights(epsilon: float, growth: str) -> None:
    m = Model()
    v = m.variable("v", N, N)
    squares = m.op("Sum", m.op("Square", v), m.constant([0]))
    norm = m.op("Rsqrt", m.op("Add", squares, m.constant(epsilon)))
    w = m.op("Mul", m.op("Mul", v, norm), m.variable("g", N))
    h = m.op("MatMul", m.dense(m.input(N, N), "a"), w)
    m.dense(h, "out")
    assert m.axes()["v"] == "a, v | consume, produce"
    assert m.axes()["g"] == "v | gain"
    # A column of zeros has no direction.
    assert m.widths()["v"] == f"permutation {growth}"


def test_lookups() -> None:
    m = Model()
    ids = m.input(2, N, dtype="int32", name="ids")
    h = m.op("GatherV2", m.variable("table", N, N), ids, m.constant(0))
    one_hot = m.op("OneHot", ids, m.constant(N), m.constant(1.0), m.constant(0.0), axis=-1)
    flat = m.op("Reshape", one_hot, m.constant([-1, N]))
    kinds = m.op("MatMul", flat, m.variable("kinds", N, N))
    both = m.op("Add", m.op("Reshape", h, m.constant([-1, N])), kinds)
    m.dense(both, "out")
    axes = m.axes()
    assert axes["table"] == "table/vocabulary, table | consume, produce"
    assert axes["kinds"] == "kinds/vocabulary, table | consume, produce"
    assert m.widths() == {
        "table/vocabulary": "bound any",
        "table": "free any",
        "kinds/vocabulary": "bound any",
        "out": "bound any",
    }


def test_partitioned_lookup() -> None:
    m = Model()
    table = m.op("ConcatV2", m.variable("a", 2, N), m.variable("b", 3, N), m.constant(0))
    m.dense(m.op("Gather", table, m.input(3, dtype="int32")), "out")
    assert m.axes()["a"] == "a/vocabulary, a | consume, produce"
    assert m.axes()["b"] == "b/vocabulary, a | consume, produce"


def test_tied_embedding_produces_and_consumes() -> None:
    m = Model()
    table = m.variable("table", 6, N)
    h = m.op("Gather", table, m.input(3, dtype="int32"))
    m.op("MatMul", m.op("Relu", h), table, transpose_b=True)
    axes = m.axes()["table"]
    assert axes == "table/vocabulary, table | consume produce, produce consume"
    assert m.widths()["table/vocabulary"] == "bound any"


def attention(m: Model, relu: bool = False) -> None:
    x = m.op("Reshape", m.input(2, N, N), m.constant([-1, N]))

    def heads(name: str) -> str:
        h = m.op("Reshape", m.dense(x, name), m.constant([2, N, 2, 2]))
        return m.op("Transpose", h, m.constant([0, 2, 1, 3]))

    queries, keys = heads("q"), heads("k")
    keys = m.op("Relu", keys) if relu else keys
    scores = m.op("BatchMatMulV2", queries, keys, adj_y=True)
    scores = m.op("Mul", scores, m.constant(2**-0.5))
    mixed = m.op("BatchMatMulV2", m.op("Softmax", scores), heads("v"))
    mixed = m.op("Transpose", mixed, m.constant([0, 2, 1, 3]))
    m.dense(m.op("Reshape", mixed, m.constant([-1, N])), "out")


def test_attention_has_heads_and_what_keys_hold_is_consumed() -> None:
    m = Model()
    attention(m)
    axes = m.axes()
    assert axes["q/w"] == "x, q/heads*q/head_size | consume, produce"
    assert axes["k/w"] == "x, q/heads*q/head_size | consume, produce / consume"
    assert axes["k/b"] == "q/heads*q/head_size | shift / consume"
    assert axes["v/w"] == "x, q/heads*v/head_size | consume, produce"
    assert axes["out/w"] == "q/heads*v/head_size, out | consume, produce"
    assert m.widths()["q/heads"] == "permutation any"
    assert m.widths()["q/head_size"] == "free any"
    (factor,) = m.structure().factors["q/head_size"]
    assert (factor.power, round(factor.number, 6)) == (-0.5, 0.707107)


def test_what_is_not_linear_up_to_a_pairing_does_not_consume() -> None:
    m = Model()
    attention(m, relu=True)
    axes = m.axes()
    assert axes["k/w"] == "x, q/heads*k/head_size | consume, produce"
    assert axes["q/w"] == "x, q/heads*k/head_size | consume, produce / consume"


def test_einsum() -> None:
    m = Model()
    h = m.op("Einsum", m.input(2, N, N), m.variable("q", N, 2, N), equation="btd,dhk->bthk")
    m.op("Einsum", m.op("Relu", h), m.variable("o", 2, N, N), equation="bthk,hkd->btd")
    assert m.axes() == {
        "q": "x, q, q_1 | consume, produce, produce",
        "o": "q, q_1, o | consume, consume, produce",
    }


def test_a_product_that_is_summed_consumes() -> None:
    m = Model()
    h = m.op("Tanh", m.dense(m.input(N, N), "a"))
    m.op("Sum", m.op("Mul", m.variable("v", N), h), m.constant([1]))
    assert m.axes()["v"] == "a | consume"
    assert m.widths()["a"] == "permutation any"


def test_two_outputs_of_cells_that_are_contracted() -> None:
    m = Model()
    x = m.input(N, N)
    a, b = (m.op("Tanh", m.dense(x, name)) for name in "ab")
    m.op("Sum", m.op("Mul", a, b), m.constant([1]))
    assert m.widths()["a"] == "permutation zero"
    m = Model()
    x = m.input(N, N)
    a, b = (m.op("Sigmoid", m.dense(x, name)) for name in "ab")
    m.op("Sum", m.op("Mul", a, b), m.constant([1]))
    assert m.widths()["a"] == "permutation none"


def lstm(m: Model, x: str, h: str, c: str, name: str) -> tuple[str, str]:
    rows = m.op("ConcatV2", x, h, m.constant(1))
    s = f"{name}/split"
    m.op("Split", m.constant(1), m.dense(rows, name, 2 * N, 4 * N), name=s, num_split=4)
    forget = m.op("Sigmoid", m.op("Add", f"{s}:2", m.constant(1.0)))
    new = m.op("Mul", m.op("Sigmoid", s), m.op("Tanh", f"{s}:1"))
    c = m.op("Add", m.op("Mul", forget, c), new)
    return m.op("Mul", m.op("Sigmoid", f"{s}:3"), m.op("Tanh", c)), c


def test_a_loop_ties_the_state_to_itself() -> None:
    m = Model()
    x = m.op("Enter", m.input(N, N), frame_name="loop")
    zeros = m.op("Fill", m.constant([N, N]), m.constant(0.0))
    for state in "hc":
        m.op("Enter", zeros, name=f"enter_{state}", frame_name="loop")
        m.op("Merge", f"enter_{state}", f"next_{state}", name=f"merge_{state}")
        m.op("Switch", f"merge_{state}", "go", name=f"switch_{state}")
    m.op("LoopCond", m.constant(True), name="go")
    h, c = lstm(m, x, "switch_h:1", "switch_c:1", "cell")
    m.op("NextIteration", h, name="next_h")
    m.op("NextIteration", c, name="next_c")
    m.dense(m.op("Exit", "switch_h"), "out")
    axes = m.axes()
    assert axes["cell/w"] == "x + cell, [i,j,f,o]*cell | consume, produce"
    assert axes["cell/b"] == "[i,j,f,o]*cell | shift"
    assert m.widths()["cell"] == "permutation any"


def test_the_gates_of_a_coupled_cell_are_not_those_of_a_gru() -> None:
    """It takes one minus its forget gate as well, but nothing resets its new input."""
    m = Model()
    state = m.placeholder("state", "float32", (3, N))
    rows = m.op("ConcatV2", m.input(3, N), state, m.constant(1))
    m.op("Split", m.constant(1), m.dense(rows, "cell", 2 * N, 3 * N), name="s", num_split=3)
    forget, out = m.op("Sigmoid", "s:1"), m.op("Sigmoid", "s:2")
    new = m.op("Mul", m.op("Sub", m.constant(1.0), forget), m.op("Tanh", "s"))
    c = m.op("Add", m.op("Mul", forget, state), new)
    m.dense(m.op("Mul", m.op("Tanh", c), out), "out")
    assert m.axes()["cell/b"] == "3*cell | shift"


def test_tensor_arrays_hold_one_kind_of_tensor() -> None:
    m = Model()
    handle = m.op("TensorArrayV3", m.constant(N), name="array")
    h = m.dense(m.input(N, N), "a")
    flow = m.op("TensorArrayWriteV3", handle, m.constant(0), h, "array:1")
    stacked = m.op("TensorArrayGatherV3", handle, m.constant([0]), flow, shape=(1, N, N))
    m.dense(m.op("Reshape", stacked, m.constant([-1, N])), "out")
    assert m.axes()["out/w"] == "a, out | consume, produce"


@pytest.mark.parametrize(
    ("op", "labels"),
    [("LSTMBlockCell", "i,j,f,o"), ("BlockLSTM", "i,j,f,o"), ("BlockLSTMV2", "i,f,c,o")],
)
def test_lstm_block_cells(op: str, labels: str) -> None:
    m = Model()
    is_block = op.startswith("Block")
    x = m.input(*((5,) if is_block else ()), 3, N)
    zeros = m.op("Fill", m.constant([3, N]), m.constant(0.0))
    first = [m.constant(5)] if is_block else []
    peepholes = [m.variable(f"cell/{name}", N) for name in ("wci", "wcf", "wco")]
    m.op(
        op,
        *first,
        x,
        zeros,
        zeros,
        m.variable("cell/w", 2 * N, 4 * N),
        *peepholes,
        m.variable("cell/b", 4 * N),
        name="h",
        use_peephole=True,
    )
    m.dense(m.op("Reshape", "h:6", m.constant([-1, N])), "out")
    axes = m.axes()
    assert axes["cell/w"] == f"x + cell, [{labels}]*cell | consume, produce"
    assert axes["cell/b"] == f"[{labels}]*cell | shift"
    assert axes["cell/wcf"] == "cell | gain"
    assert axes["out/w"] == "cell, out | consume, produce"
    assert m.widths()["cell"] == "permutation any"


def test_gru_block_cell() -> None:
    m = Model()
    zeros = m.op("Fill", m.constant([3, N]), m.constant(0.0))
    m.op(
        "GRUBlockCell",
        m.input(3, N),
        zeros,
        m.variable("cell/w_ru", 2 * N, 2 * N),
        m.variable("cell/w_c", 2 * N, N),
        m.variable("cell/b_ru", 2 * N),
        m.variable("cell/b_c", N),
        name="h",
    )
    m.dense("h:3", "out")
    axes = m.axes()
    assert axes["cell/w_ru"] == "x + cell, [r,u]*cell | consume, produce"
    assert axes["cell/w_c"] == "x + cell, cell | consume, produce"
    assert axes["cell/b_ru"] == "[r,u]*cell | shift"


def test_an_unknown_op_makes_what_it_touches_opaque() -> None:
    m = Model()
    h = m.op("SomebodysOp", m.dense(m.input(N, N), "a"), name="odd", shape=(N, N))
    m.dense(m.op("Relu", m.dense(h, "b")), "out")
    structure = m.structure()
    assert {f"{found.name} {found.op} {found.node}" for found in structure.opaque} == {
        "a SomebodysOp odd",
        "b/inputs SomebodysOp odd",
    }
    assert structure.graph.findings.analysis.unknown == {"SomebodysOp": 1}
    assert not structure.widths["a"].resizable
    assert not structure.widths["a"].exact
    assert structure.widths["b"].resizable


def test_an_unknown_op_behind_the_outputs_only_binds() -> None:
    m = Model()
    logits = m.dense(m.op("Relu", m.dense(m.input(N, N), "a")), "b")
    m.op("Softmax", logits)
    m.op("SomebodysLoss", logits, shape=())
    assert m.widths()["a"] == "scaling any"
    assert m.widths()["b"].startswith("bound")


def test_sizes_that_contradict_are_told() -> None:
    m = Model()
    h = m.op("MatMul", m.input(N, 5), m.variable("w", N, N), name="wrong")
    m.dense(h, "out")
    structure = m.structure()
    assert structure.conflicts == ("MatMul wrong: the lengths 5 and 4 stand opposite",)
    assert structure.widths["w/inputs"].symmetry == "opaque"


def test_a_permutation_that_is_not_known_makes_opaque() -> None:
    m = Model()
    order = m.placeholder("order", "int32", (2,))
    m.dense(m.op("Transpose", m.dense(m.input(N, N), "a"), order), "out")
    assert m.structure().widths["a"].symmetry == "opaque"


def test_a_part_of_a_table_is_a_width_of_its_own() -> None:
    m = Model()
    table = m.variable("positions", 6, N)
    part = m.op("Slice", table, m.constant([0, 0]), m.constant([N, -1]))
    m.dense(m.op("Add", m.dense(m.input(N, N), "a"), part), "out")
    axes = m.axes()["positions"]
    assert axes == "x + positions, a | shift / , produce"
    assert m.widths()["positions"] == "bound fixed"


def test_slices_of_a_variable_are_pieces_of_its_axis() -> None:
    m = Model()
    w = m.variable("w", 2 * N, N)
    zero, half, end = m.constant([0, 0]), m.constant([N, 0]), m.constant([2 * N, 0])
    one = m.constant([1, 1])
    first = m.op("StridedSlice", w, zero, half, one, end_mask=2, begin_mask=2)
    second = m.op("StridedSlice", w, half, end, one, end_mask=2, begin_mask=2)
    h = m.op("Relu", m.op("MatMul", m.input(N, N), first))
    m.op("MatMul", h, second)
    assert m.axes()["w"] == "x + w, w | consume, produce"


def test_dropout_changes_no_class() -> None:
    m = Model()
    h = m.dense(m.input(N, N), "a")
    keep = m.placeholder("keep", "float32", ())
    noise = m.op("RandomUniform", m.op("Shape", h))
    mask = m.op("Floor", m.op("Add", keep, noise))
    m.dense(m.op("Mul", m.op("RealDiv", h, keep), mask), "out")
    assert m.widths()["a"] == "free any"


def test_noise_for_each_unit_does_not_bind() -> None:
    m = Model()
    noise = m.op("RandomStandardNormal", m.constant([N, N]))
    h = m.op("Add", m.dense(m.input(N, N), "a"), m.op("Mul", noise, m.constant(0.1)))
    m.dense(h, "out")
    assert m.widths()["a"] == "permutation any"


def test_a_constant_for_each_unit_binds() -> None:
    m = Model()
    h = m.dense(m.input(N, N), "a")
    m.dense(m.op("Mul", h, m.constant([1.0, 2.0, 3.0, 4.0])), "out")
    assert m.widths()["a"] == "bound fixed"
    m = Model()
    h = m.dense(m.input(N, N), "a")
    m.dense(m.op("Mul", h, m.constant([2.0, 2.0, 2.0, 2.0])), "out")
    assert m.widths()["a"] == "free any"


def test_outputs_bind_only_what_nothing_else_is_made_of() -> None:
    m = Model()
    h = m.op("Relu", m.dense(m.input(N, N), "a"))
    m.op("Identity", h, name="features")
    m.dense(h, "out", N, 1)
    assert m.widths()["a"] == "scaling any"


def test_widths_that_only_lead_to_each_other_are_outputs() -> None:
    m = Model()
    first = m.op("Tanh", m.dense(m.input(N, N), "a"))
    inner = m.op("Tanh", m.dense(first, "b"))
    m.op("Add", first, m.op("MatMul", inner, m.variable("back/w", N, N)))
    widths = m.structure().widths.values()
    shown = [w.consumed_by for w in widths if "output" in dict(w.touches)]
    assert shown == [("b/w",)]


def test_work_grows_with_the_number_of_outputs_and_no_faster() -> None:
    def calls(outputs: int) -> int:
        m = Model()
        h = m.op("Tanh", m.dense(m.input(2, N), "h"))
        for number in range(outputs):
            m.dense(h, f"out_{number}")
        profile = Profile()
        profile.runcall(m.structure)
        return sum(entry.callcount for entry in profile.getstats())

    assert calls(160) < 5 * calls(40)


def test_a_state_that_is_fed_can_grow() -> None:
    m = Model()
    state = m.placeholder("state", "float32", (3, N))
    h, _ = lstm(m, m.input(3, N), state, state, "cell")
    m.dense(h, "out")
    assert m.widths()["cell"] == "permutation any"
    assert m.axes()["cell/w"] == "x + cell, [i,j,f,o]*cell | consume, produce"


def test_rules_are_of_ops() -> None:
    assert len(RULES) > 300
    assert all(name.isidentifier() for name in RULES)


def test_slots_that_only_the_ops_tell_follow_their_variable() -> None:
    m = Model()
    m.dense(m.dense(m.input(N, N), "a"), "out")
    number = m.constant(0.1)
    m.op("ApplyMomentum", "a/w", m.variable("velocity_of_a", N, N), number, "a/w", number)
    found = m.structure()
    assert found.follows["velocity_of_a"] == Role("slot", "a/w", "momentum", "Momentum")
    assert found.axes["velocity_of_a"] == found.axes["a/w"]
    assert found.uses["velocity_of_a"] == found.uses["a/w"]


def test_a_gain_of_the_zeros_that_a_state_begins_with() -> None:
    m = Model()
    x = m.dense(m.input(N, N), "a")
    w = m.variable("w", N)
    states = {
        "made": m.constant(np.zeros((N, N), "f4")),
        "filled": m.op("Fill", m.op("Shape", x), m.constant(np.float32(0))),
        "like": m.op("Reshape", m.op("ZerosLike", x), m.op("Shape", x)),
    }
    for name, state in states.items():
        x = m.op("Add", x, m.op("Mul", w, state, name=name))
    # A penalty that is switched off is no state, nor is what is multiplied with other numbers.
    m.op("Mul", m.constant(np.float32(0)), m.op("L2Loss", w, shape=()), name="penalty", shape=())
    m.op("Mul", m.constant(np.ones((N, N), "f4")), w, name="ones")
    m.dense(x, "out")
    found = m.structure()
    graph = found.graph.findings.analysis
    kinds = {name: graph.kind(Output(graph.graph.by_name[name], 0)) for name in (*states, "ones")}
    assert kinds == {**dict.fromkeys(states, Kind.DATA), "ones": Kind.WEIGHT}
    assert graph.kind(Output(graph.graph.by_name["penalty"], 0)) is Kind.WEIGHT
    assert told(found, "w") == "a | gain"


def test_a_split_that_lacks_its_axis() -> None:
    m = Model()
    zeros = m.op("Split", m.constant(np.zeros((N, N))), name="s", num_split=2)
    m.op("MatMul", m.input(N, N), m.op("Mul", m.variable("w", N, N), zeros))
    assert set(m.axes()) == {"w"}
