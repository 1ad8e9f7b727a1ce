"""Layers, and where their activations are: of real graphs, and of what was made for it."""

from __future__ import annotations

import contextlib
import random
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import case as case_of
from conftest import slow
from structure_maker import Model, N
from test_forward_fuzz import mutate

from converter import Checkpoint, Variable, open_checkpoint
from converter.activations.probes import Found, find_probes
from converter.errors import ConverterError, InputError
from converter.formats.messages import parse
from converter.graph.definition import Definition
from converter.graph.ordered import OrderedGraph
from converter.structure.infer import infer_from, structure_of
from converter.structure.layers import Layer, layers
from converter.structure.structure import as_known


class Net(Model):
    """A graph whose layers are told; every size is N."""

    def checkpoint(self) -> Checkpoint:
        held = [Variable.from_array(n, np.zeros(s, "f4")) for n, s in self.shapes.items()]
        graph = OrderedGraph(Definition(Path("made.meta"), self.definition))
        plain = Checkpoint(held, path=Path("made"))
        return Checkpoint(held, path=Path("made"), known=as_known(infer_from(graph, plain)))

    def layers(self) -> tuple[Layer, ...]:
        return layers(self.checkpoint())

    def found(self) -> Found:
        return find_probes(self.checkpoint())

    def images(self, *, first: bool = False) -> str:
        return self.input(-1, N, 5, 5) if first else self.input(-1, 5, 5, N)

    def convolve(self, x: str, name: str, op: str = "Conv2D", layout: str = "NHWC") -> str:
        kernel = self.variable(f"{name}/w", 3, 3, N, N)
        more: dict[str, Any] = {"data_format": layout, "padding": "SAME", "strides": [1, 1, 1, 1]}
        return self.op(op, x, kernel, **more)

    def norm(self, x: str, name: str, layout: str = "NHWC") -> str:
        rest = [self.variable(f"{name}/{part}", N) for part in ("gamma", "beta", "mean", "var")]
        more: dict[str, Any] = {"data_format": layout, "is_training": False}
        return self.op("FusedBatchNormV3", x, *rest, **more)

    def unfused(self, x: str, name: str, *, chosen: bool = False) -> str:
        """Normalise by stored moments as `tf.nn.batch_normalization` does.

        Where they are `chosen`, a placeholder says whether by those of the batch, as in
        `tf.layers` of TensorFlow 1.3 and 1.4.
        """
        gamma, beta, mean, variance = (
            self.variable(f"{name}/{part}", N) for part in ("gamma", "beta", "mean", "var")
        )
        if chosen:
            axes = self.constant(np.array([0], "i4"))
            own = self.op("Mean", x, axes, keep_dims=True)
            squared = self.op("SquaredDifference", x, self.op("StopGradient", own))
            spread = self.op("Mean", squared, axes, keep_dims=True)
            mean, variance = self.choose(own, mean), self.choose(spread, variance)
        raised = self.op("Add", variance, self.constant(np.float32(1e-3)))
        scale = self.op("Mul", self.op("Rsqrt", raised), gamma)
        shift = self.op("Sub", beta, self.op("Mul", mean, scale))
        return self.op("Add", self.op("Mul", x, scale), shift)

    def choose(self, own: str, stored: str) -> str:
        first = self.constant(np.array(0, "i4"))
        flag = self.placeholder(f"training_{len(self.definition.node)}", "bool", ())
        flag = self.op("Reshape", flag, self.constant(np.array([1], "i4")))
        own = self.op("ExpandDims", self.op("Squeeze", own, squeeze_dims=[0]), first)
        found = self.op("Select", flag, own, self.op("ExpandDims", stored, first))
        return self.op("Squeeze", found, squeeze_dims=[0])

    def layer_norm(self, x: str, name: str, axis: int = -1) -> str:
        axes = self.constant(np.array([axis], "i4"))
        mean = self.op("Mean", x, axes, keep_dims=True)
        squared = self.op("SquaredDifference", x, self.op("StopGradient", mean))
        raised = self.op(
            "Add", self.op("Mean", squared, axes, keep_dims=True), self.constant(np.float32(1e-5))
        )
        scale = self.op("Mul", self.op("Rsqrt", raised), self.variable(f"{name}/gamma", N))
        shift = self.op("Sub", self.variable(f"{name}/beta", N), self.op("Mul", mean, scale))
        return self.op("Add", self.op("Mul", x, scale), shift)


def told(found: Found) -> dict[str, str]:
    """Return `tensor[axis] of size` for each side of a variable."""
    by_key: dict[str, list[str]] = {}
    for probe in found.probes:
        for name, side in probe.for_:
            text = f"{probe.tensor}[{probe.axis}] of {probe.size}"
            by_key.setdefault(f"{name} {side}", []).append(text)
    return {key: ", ".join(texts) for key, texts in by_key.items()}


def case(name: str) -> Checkpoint:
    return open_checkpoint(case_of(name).path)


# -- layers that feed forward -------------------------------------------------------------------


def test_dense_layer_with_bias_and_activation() -> None:
    m = Net()
    linear = m.op("MatMul", m.input(-1, N), m.variable("h/w", N, N), name="linear")
    hidden = m.op("Relu", m.op("BiasAdd", linear, m.variable("h/b", N)), name="relu")
    m.dense(hidden, "out")
    first, last = m.layers()
    assert (first.kind, first.kernels, first.biases) == ("dense", ("h/w",), ("h/b",))
    assert first.activation == ("Relu", True)
    assert (first.widths, first.sources, last.sources) == (("h",), (), (0,))
    assert last.activation is None
    (place,) = first.places
    assert place.inputs == ((("x", 0), -1, N),)
    assert place.linear == (("linear", 0), -1, N)
    assert place.finished == (("relu", 0), -1, N)
    found = told(m.found())
    assert found["h/w produced"] == found["h/b produced"] == "relu[-1] of 4"
    assert found["out/w consumed"] == "relu[-1] of 4"
    assert found["h/w consumed"] == "x[-1] of 4"


@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
@pytest.mark.parametrize("op", ["Conv2D", "DepthwiseConv2dNative"])
def test_convolution_normalised_and_activated(layout: str, op: str) -> None:
    m = Net()
    x = m.images(first=layout == "NCHW")
    shape = (3, 3, N, 1) if op != "Conv2D" else (3, 3, N, N)
    kernel = m.variable("c/w", *shape)
    c = m.op(op, x, kernel, data_format=layout, padding="SAME", strides=[1, 1, 1, 1], name="conv")
    biased = m.op("BiasAdd", c, m.variable("c/b", N), data_format=layout, name="biased")
    m.op("Relu6", m.norm(biased, "n", layout), name="act")
    (layer,) = m.layers()
    assert (layer.kind, layer.biases, layer.activation) == (
        "convolution",
        ("c/b",),
        ("Relu6", False),
    )
    norm = layer.normalisation
    assert norm is not None
    assert (norm.over, norm.is_fused, norm.is_training) == ("batch", True, False)
    assert (norm.gamma, norm.beta, norm.mean, norm.variance) == (
        "n/gamma",
        "n/beta",
        "n/mean",
        "n/var",
    )
    axis = -3 if layout == "NCHW" else -1
    found = told(m.found())
    assert found["c/w consumed"] == f"x[{axis}] of 4"
    for name in ("c/w", "c/b", "n/gamma", "n/beta"):
        assert found[f"{name} produced"] == f"act[{axis}] of 4"
    # What the moving moments are those of.
    for name in ("n/mean", "n/var"):
        assert found[f"{name} produced"] == f"biased[{axis}] of 4"
    assert m.found().unmeasured == {}


def test_multiplier_of_a_depthwise_convolution() -> None:
    m = Net()
    kernel = m.variable("d/w", 3, 3, N, 2)
    more: dict[str, Any] = {"data_format": "NHWC", "padding": "SAME", "strides": [1, 1, 1, 1]}
    d = m.op("DepthwiseConv2dNative", m.images(), kernel, **more)
    m.op("BiasAdd", d, m.variable("d/b", 2 * N), name="out")
    found = told(m.found())
    assert found == {
        "d/w consumed": "x[-1] of 4",
        "d/w produced": "out[-1] of 8",
        "d/b produced": "out[-1] of 8",
    }


def test_grouped_convolution() -> None:
    m = Net()
    kernel = m.variable("w", 3, 3, N, 6)
    strides: dict[str, Any] = {"padding": "SAME", "strides": [1, 1, 1, 1]}
    m.op("Conv2D", m.input(-1, 5, 5, 2 * N), kernel, name="conv", **strides)
    found = told(m.found())
    assert found == {"w consumed": "x[-1] of 8", "w produced": "conv[-1] of 6"}


def sentences(m: Net, channels: int = 1, length: int = 9, rows: int = 3, places: int = 5) -> None:
    """Look words up, and convolve them as an image with a filter as wide as an embedding."""
    table = m.variable("table", 8, places)
    rest = [
        m.op("Gather", table, m.input(-1, length, name=f"x{k}", dtype="int32"))
        for k in range(channels)
    ]
    x = m.op("Pack", *rest, axis=3) if channels > 1 else ""
    x = x or m.op("ExpandDims", rest[0], m.constant(np.array(-1, "i4")), name="image")
    kernel = m.variable("w", rows, places, channels, N)
    y = m.op("Conv2D", x, kernel, padding="VALID", strides=[1, 1, 1, 1])
    m.op("Relu", m.op("BiasAdd", y, m.variable("b", N)), name="out")


# As long as it is wide, and covered whole in both directions.
@pytest.mark.parametrize(("length", "rows"), [(9, 3), (9, 9), (5, 5)])
def test_a_filter_as_wide_as_embeddings_consumes_them(length: int, rows: int) -> None:
    m = Net()
    sentences(m, length=length, rows=rows)
    found = told(m.found())
    assert found["w consumed"] == "image[-2] of 5"
    assert found["w produced"] == found["b produced"] == "out[-1] of 4"
    (_, layer) = m.layers()
    assert layer.places[0].inputs == ((("image", 0), -2, 5),)


def test_places_that_are_cut_apart_are_no_units() -> None:
    m = Net()
    words = m.op("Gather", m.variable("table", 8, N), m.input(-1, 5, dtype="int32"))
    x = m.op("Add", words, m.variable("places", 5, N), name="sum")
    # Cut between the units of one place, so that each place is by itself.
    flat = m.op("Reshape", x, m.constant(np.array([-1, 5 * N], "i4")))
    begin, size = (m.constant(np.array(values, "i4")) for values in ([0, 0], [-1, N + 2]))
    m.op("Tanh", m.op("Slice", flat, begin, size))
    assert told(m.found())["places produced"] == "sum[-1] of 4"


def test_several_channels_of_embeddings_are_the_units() -> None:
    m = Net()
    sentences(m, channels=2)
    assert told(m.found())["w consumed"].endswith("[-1] of 2")


def test_an_image_that_is_covered_whole_has_channels() -> None:
    m = Net()
    kernel = m.variable("w", 5, 5, 1, N)
    m.op("Conv2D", m.input(-1, 5, 5, 1), kernel, padding="VALID", strides=[1, 1, 1, 1])
    assert told(m.found())["w consumed"] == "x[-1] of 1"


def test_dilated_convolution_of_parts_of_space() -> None:
    m = Net()
    blocks, pads = m.constant(np.array([2, 2], "i4")), m.constant(np.zeros((2, 2), "i4"))
    cut = m.op("SpaceToBatchND", m.images(), blocks, pads)
    joined = m.op("BatchToSpaceND", m.convolve(cut, "c"), blocks, pads)
    m.op("Relu", m.op("BiasAdd", joined, m.variable("c/b", N)), name="out")
    (layer,) = m.layers()
    assert (layer.kernels, layer.biases, layer.activation) == (("c/w",), ("c/b",), ("Relu", True))
    assert told(m.found()) == {
        "c/w consumed": "x[-1] of 4",
        "c/w produced": "out[-1] of 4",
        "c/b produced": "out[-1] of 4",
    }


def test_averages_that_were_saved_as_the_model() -> None:
    m = Net()
    average = "ExponentialMovingAverage"
    product = m.op("MatMul", m.input(-1, N), m.variable(f"w/{average}", N, 3))
    m.op("BiasAdd", product, m.variable(f"b/{average}", 3), name="out")
    assert m.checkpoint().roles()[f"w/{average}"].kind == "average"
    assert told(m.found()) == {
        f"w/{average} consumed": "x[-1] of 4",
        f"w/{average} produced": "out[-1] of 3",
        f"b/{average} produced": "out[-1] of 3",
    }


def test_transposed_convolution() -> None:
    m = Net()
    kernel = m.variable("t/w", 3, 3, 6, N)
    sizes = m.constant(np.array([2, 10, 10, 6], "i4"))
    more: dict[str, Any] = {"data_format": "NHWC", "padding": "SAME", "strides": [1, 2, 2, 1]}
    t = m.op("Conv2DBackpropInput", sizes, kernel, m.input(2, 5, 5, N), **more)
    m.op("Tanh", m.op("BiasAdd", t, m.variable("t/b", 6)), name="out")
    (layer,) = m.layers()
    assert (layer.kind, layer.activation) == ("convolution", ("Tanh", False))
    assert told(m.found()) == {
        "t/w consumed": "x[-1] of 4",
        "t/w produced": "out[-1] of 6",
        "t/b produced": "out[-1] of 6",
    }


def test_separable_convolution_is_two_layers() -> None:
    m = Net()
    more: dict[str, Any] = {"data_format": "NHWC", "padding": "SAME", "strides": [1, 1, 1, 1]}
    d = m.op("DepthwiseConv2dNative", m.images(), m.variable("d/w", 3, 3, N, 1), **more)
    p = m.op("Conv2D", d, m.variable("p/w", 1, 1, N, N), **more)
    m.op("Relu", m.op("BiasAdd", p, m.variable("p/b", N)), name="act")
    first, second = m.layers()
    assert (first.kind, first.kernels, first.activation) == ("convolution", ("d/w",), None)
    assert (second.kernels, second.sources) == (("p/w",), (0,))


@pytest.mark.parametrize("chosen", [False, True])
def test_normalisation_that_is_written_out(chosen: bool) -> None:
    m = Net()
    x = m.op("MatMul", m.input(-1, N), m.variable("w", N, N), name="linear")
    m.op("Relu", m.unfused(x, "n", chosen=chosen), name="act")
    (layer,) = m.layers()
    norm = layer.normalisation
    assert norm is not None
    assert (norm.over, norm.is_fused, norm.is_training) == ("batch", False, False)
    assert norm.epsilon == pytest.approx(1e-3)
    assert (norm.gamma, norm.beta, norm.mean, norm.variance) == (
        "n/gamma",
        "n/beta",
        "n/mean",
        "n/var",
    )
    assert layer.biases == ()
    found = told(m.found())
    assert {found[f"{n} produced"] for n in ("w", "n/gamma", "n/beta")} == {"act[-1] of 4"}
    assert {found[f"{n} produced"] for n in ("n/mean", "n/var")} == {"linear[-1] of 4"}


@pytest.mark.parametrize("axis", [-1, 0])
def test_normalisation_by_moments_of_the_data(axis: int) -> None:
    m = Net()
    linear = m.op("MatMul", m.input(7, N), m.variable("w", N, N))
    m.op("Elu", m.layer_norm(linear, "n", axis), name="act")
    (layer,) = m.layers()
    norm = layer.normalisation
    assert norm is not None
    assert norm.over == ("layer" if axis == -1 else "batch")
    assert (norm.gamma, norm.beta, norm.mean) == ("n/gamma", "n/beta", None)
    assert norm.is_training is (axis == 0)
    assert norm.epsilon == pytest.approx(1e-5)
    assert layer.activation == ("Elu", False)
    assert told(m.found())["w produced"] == "act[-1] of 4"


def test_normalisation_behind_an_activation_is_a_layer_by_itself() -> None:
    m = Net()
    c = m.op("Relu", m.convolve(m.images(), "c"), name="act")
    m.convolve(m.norm(c, "n"), "d")
    first, norm, last = m.layers()
    assert (first.normalisation, first.activation) == (None, ("Relu", True))
    assert (norm.kind, norm.kernels, norm.sources, last.sources) == (
        "normalisation",
        (),
        (0,),
        (1,),
    )
    found = told(m.found())
    assert found["c/w produced"] == found["n/var produced"] == "act[-1] of 4"
    assert found["n/gamma produced"] == found["d/w consumed"]


@pytest.mark.parametrize("kind", ["norm", "unfused", "layer_norm"])
def test_normalisation_of_a_stream_that_goes_on(kind: str) -> None:
    m = Net()
    x = m.op("MatMul", m.input(7, N), m.variable("w", N, N), name="stream")
    inner = m.op("Relu", getattr(m, kind)(x, "n"), name="act")
    m.op("Add", x, m.op("MatMul", inner, m.variable("v", N, N)))
    first, norm, last = m.layers()
    assert (first.normalisation, first.activation) == (None, None)
    assert (norm.kind, norm.sources, last.sources) == ("normalisation", (0,), (1,))
    assert norm.activation == ("Relu", True)
    assert norm.normalisation is not None
    assert (norm.normalisation.gamma, norm.normalisation.beta) == ("n/gamma", "n/beta")
    assert norm.places[0].linear == (("stream", 0), -1, N)
    found = told(m.found())
    assert found["w produced"] == "stream[-1] of 4"
    assert found["n/gamma produced"] == found["n/beta produced"] == "act[-1] of 4"
    if kind != "layer_norm":
        assert found["n/mean produced"] == found["n/var produced"] == "stream[-1] of 4"


@pytest.mark.parametrize("is_shared", [False, True])
def test_branches_of_a_condition_that_normalise(is_shared: bool) -> None:
    m = Net()
    x = m.op("Relu", m.convolve(m.images(), "c"), name="stream")
    training = m.placeholder("training", "bool", ())
    gamma, beta = m.variable("n/gamma", N), m.variable("n/beta", N)
    moments = m.variable("n/mean", N), m.variable("n/var", N)
    empty = m.constant(np.zeros(0, "f4"))
    more: dict[str, Any] = {"data_format": "NHWC"}
    now = m.op("Switch", x, training)
    stored = m.op("Switch", x, training)
    a = m.op("FusedBatchNormV3", f"{now}:1", gamma, beta, empty, empty, is_training=True, **more)
    b = m.op("FusedBatchNormV3", stored, gamma, beta, *moments, is_training=False, **more)
    found = m.op("Relu", m.op("Merge", b, a), name="act")
    if is_shared:
        found = m.op("Add", found, x)
    m.convolve(found, "d")
    layers = m.layers()
    assert [layer.kind for layer in layers] == ["convolution", "normalisation", "convolution"]
    norm = layers[1].normalisation
    assert norm is not None
    assert (norm.mean, norm.variance, norm.is_training) == ("n/mean", "n/var", False)
    found_at = told(m.found())
    assert found_at["n/gamma produced"] == found_at["n/beta produced"] == "act[-1] of 4"
    assert found_at["n/mean produced"] == found_at["n/var produced"] == "stream[-1] of 4"


def test_two_normalisations_of_one_stream() -> None:
    m = Net()
    x = m.op("Relu", m.input(7, N), name="stream")
    m.op("Add", m.layer_norm(x, "a"), m.layer_norm(x, "b"))
    first, second = m.layers()
    assert first.normalisation is not None
    assert second.normalisation is not None
    assert (first.normalisation.gamma, second.normalisation.gamma) == ("a/gamma", "b/gamma")


def test_mean_over_space_is_no_part_of_a_layer() -> None:
    m = Net()
    c = m.convolve(m.images(), "c")
    pooled = m.op("Mean", c, m.constant(np.array([1, 2], "i4")), name="pooled")
    m.dense(m.norm(pooled, "n"), "out")
    first, norm, _ = m.layers()
    assert first.normalisation is None
    assert norm.places[0].linear == (("pooled", 0), -1, N)


def gelu(m: Net, x: str) -> str:
    half = m.op("Mul", m.constant(np.float32(0.5)), x)
    erf = m.op("Erf", m.op("RealDiv", x, m.constant(np.float32(2**0.5))))
    return m.op("Mul", half, m.op("Add", m.constant(np.float32(1)), erf), name="act")


def swish(m: Net, x: str) -> str:
    return m.op("Mul", x, m.op("Sigmoid", x), name="act")


def swish_with_its_gradient(m: Net, x: str) -> str:
    """As `tf.nn.swish` of TensorFlow 1.15 and after it writes it."""
    both = m.op("Mul", x, m.op("Sigmoid", x))
    node = m.op("IdentityN", both, x, name="act")
    m.definition.node[-1].attr.add(key=b"T").value.list.type.extend([1, 1])
    return node


def leaky(m: Net, x: str) -> str:
    return m.op("Maximum", x, m.op("Mul", x, m.constant(np.float32(0.2))), name="act")


def clipped(m: Net, x: str) -> str:
    low = m.op("Minimum", x, m.constant(np.float32(1)))
    return m.op("Maximum", low, m.constant(np.float32(0)), name="act")


def prelu(m: Net, x: str) -> str:
    negative = m.op("Mul", m.op("Sub", x, m.op("Abs", x)), m.variable("alpha", N))
    return m.op("Add", m.op("Relu", x), negative, name="act")


@pytest.mark.parametrize(
    ("function", "op", "is_homogeneous"),
    [
        (gelu, "Erf", False),
        (swish, "Sigmoid", False),
        (swish_with_its_gradient, "Sigmoid", False),
        (leaky, "Maximum", True),
        (clipped, "Minimum", False),
        (prelu, "Abs", True),
    ],
)
def test_activation_that_is_written_out(function: Any, op: str, is_homogeneous: bool) -> None:
    m = Net()
    m.dense(function(m, m.dense(m.input(-1, N), "h")), "out")
    first, _ = m.layers()
    assert first.activation is not None
    assert first.activation.op in (op, "Relu")
    assert first.activation.is_homogeneous is is_homogeneous
    assert told(m.found())["h/w produced"] == "act[-1] of 4"


def test_inference_dropout_is_passed() -> None:
    m = Net()
    h = m.dense(m.input(-1, N), "h")
    noise = m.op("Floor", m.op("RandomUniform", m.op("Shape", h), dtype="float32"))
    scaled = m.op("RealDiv", h, m.constant(np.float32(0.5)))
    m.dense(m.op("Relu", m.op("Mul", scaled, noise), name="act"), "out")
    dropped = m.op("Mul", m.op("Identity", m.dense("act", "g"), name="same"), noise)
    m.op("Softmax", dropped)
    found = told(m.found())
    assert found["h/w produced"] == "act[-1] of 4"
    # What nothing follows but a dropout was finished before.
    assert found["g/w produced"].startswith("BiasAdd")


def test_layer_ends_before_what_brings_in_another_activation() -> None:
    m = Net()
    x = m.op("Relu", m.dense(m.input(-1, N), "a"), name="stream")
    branch = m.dense(m.op("Relu", m.dense(x, "b"), name="inner"), "c")
    m.dense(m.op("Relu", m.op("Add", x, branch)), "out")
    found = told(m.found())
    assert found["a/w produced"] == "stream[-1] of 4"
    assert found["b/w produced"] == "inner[-1] of 4"
    assert found["c/w produced"] == found["c/b produced"]
    assert found["c/w produced"].startswith("BiasAdd")
    assert [layer.sources for layer in m.layers()] == [(), (0,), (1,), (0, 2)]


def test_sum_of_two_products_is_one_layer() -> None:
    m = Net()
    a = m.op("MatMul", m.input(-1, N), m.variable("a", N, N))
    b = m.op("MatMul", m.input(-1, N, name="y"), m.variable("b", N, N))
    m.op("Tanh", m.op("BiasAdd", m.op("Add", a, b), m.variable("bias", N)), name="act")
    (layer,) = m.layers()
    assert (layer.kernels, layer.biases) == (("a", "b"), ("bias",))
    found = told(m.found())
    assert {found[f"{name} produced"] for name in ("a", "b", "bias")} == {"act[-1] of 4"}
    assert (found["a consumed"], found["b consumed"]) == ("x[-1] of 4", "y[-1] of 4")


def test_output_that_goes_two_ways_is_finished_there() -> None:
    m = Net()
    h = m.dense(m.input(-1, N), "h")
    m.dense(m.op("Relu", h), "a")
    m.dense(m.op("Tanh", h), "b")
    assert told(m.found())["h/w produced"].startswith("BiasAdd")


def test_output_that_goes_the_same_way_twice_goes_on() -> None:
    m = Net()
    h = m.dense(m.input(-1, N), "h")
    m.dense(m.op("Relu", h, name="act"), "a")
    m.dense(m.op("Relu", h), "b")
    assert told(m.found())["h/w produced"] == "act[-1] of 4"


def test_units_that_are_reshaped_away_end_a_layer() -> None:
    m = Net()
    h = m.dense(m.input(6, N), "h")
    cut = m.op("Reshape", h, m.constant(np.array([6, 2, 2], "i4")))
    m.op("Tanh", cut)
    assert told(m.found())["h/w produced"].startswith("BiasAdd")


def test_shared_layer_has_several_places() -> None:
    m = Net()
    kernel = m.variable("w", N, N)
    a = m.op("Relu", m.op("MatMul", m.input(-1, N), kernel), name="a")
    b = m.op("Relu", m.op("MatMul", m.input(-1, N, name="y"), kernel), name="b")
    m.op("MatMul", m.op("Sub", a, b), m.variable("out", N, N))
    shared, out = m.layers()
    assert (shared.kind, len(shared.places), out.sources) == ("dense", 2, (0,))
    found = told(m.found())
    assert found["w produced"] == "a[-1] of 4, b[-1] of 4"
    assert found["w consumed"] == "x[-1] of 4, y[-1] of 4"


def test_layer_that_is_applied_again_is_not_recurrent() -> None:
    m = Net()
    kernel = m.variable("w", N, N)
    a = m.op("Relu", m.op("MatMul", m.input(-1, N), kernel))
    m.op("Relu", m.op("MatMul", a, kernel))
    (layer,) = m.layers()
    assert (layer.kind, layer.sources, layer.state) == ("dense", (0,), ())


def test_rows_that_are_looked_up() -> None:
    m = Net()
    table = m.variable("table", 9, N)
    rows = m.op("GatherV2", table, m.input(-1, dtype="int32"), m.constant(np.int32(0)), name="rows")
    m.dense(m.op("Mul", rows, m.constant(np.float32(2))), "out")
    first, last = m.layers()
    assert (first.kind, first.kernels, last.sources) == ("embedding", ("table",), (0,))
    found = m.found()
    assert told(found)["table produced"] == "rows[-1] of 4"
    assert found.unmeasured == {("table", "consumed"): "its rows are looked up by their numbers"}


def test_table_that_is_tied_to_the_outputs() -> None:
    m = Net()
    table = m.variable("table", 9, N)
    rows = m.op("GatherV2", table, m.input(-1, dtype="int32"), m.constant(np.int32(0)), name="rows")
    hidden = m.op("Tanh", m.dense(rows, "h"), name="act")
    m.op("MatMul", hidden, table, transpose_b=True, name="logits")
    assert [layer.kind for layer in m.layers()] == ["embedding", "dense", "dense"]
    found = told(m.found())
    assert found["table produced"] == "rows[-1] of 4"
    assert found["table consumed"] == "act[-1] of 4"


def test_kernel_that_is_taken_in_parts() -> None:
    m = Net()
    halves = m.op("Split", m.constant(np.int32(1)), m.variable("w", N, 2 * N), num_split=2)
    a = m.op("Tanh", m.op("MatMul", m.input(-1, N), halves), name="tanh")
    m.op("MatMul", a, f"{halves}:1", name="out")
    produced = [p for p in m.found().probes if ("w", "produced") in p.for_]
    assert [(str(p.tensor), p.cut) for p in produced] == [
        ("tanh", (0, N, 2 * N)),
        ("out", (N, N, 2 * N)),
    ]
    assert m.found().unmeasured == {}


def pieces(m: Net, way: str, whole: str, rank: int) -> list[str]:
    """Cut the last axis of a tensor into three; return the parts."""
    axis = m.constant(np.int32(rank - 1))
    if way == "Split":
        cut = m.op("Split", axis, whole, num_split=3)
        return [f"{cut}:{port}" for port in range(3)]
    if way == "SplitV":
        cut = m.op("SplitV", whole, m.constant(np.array([N, -1, N], "i4")), axis, num_split=3)
        return [f"{cut}:{port}" for port in range(3)]
    if way == "Transpose":
        turn = m.constant(np.arange(rank)[::-1].astype("i4"))
        cut = m.op("Split", m.constant(np.int32(0)), m.op("Transpose", whole, turn), num_split=3)
        return [m.op("Transpose", f"{cut}:{port}", turn) for port in range(3)]
    begins = [m.constant(np.array([0] * (rank - 1) + [gate * N], "i4")) for gate in range(3)]
    if way == "Slice":
        lengths = m.constant(np.array([-1] * (rank - 1) + [N], "i4"))
        return [m.op("Slice", whole, begin, lengths) for begin in begins]
    found = []
    for gate in range(3):
        ends = m.constant(np.array([0, (gate + 1) * N - 3 * N], "i4"))
        masks: dict[str, Any] = {"ellipsis_mask": 1, "end_mask": 2 * (gate == 2)}
        begin = m.constant(np.array([0, gate * N], "i4"))
        strides = m.constant(np.array([1, 1], "i4"))
        found.append(m.op("StridedSlice", whole, begin, ends, strides, **masks))
    return found


@pytest.mark.parametrize("way", ["Split", "SplitV", "Transpose", "Slice", "StridedSlice"])
def test_gates_that_are_cut_from_the_kernel(way: str) -> None:
    """They are measured as what is cut apart behind it; of a bias with two rows one is taken."""
    m = Net()
    x, state = m.input(-1, N), m.input(-1, N, name="state")
    kernels = [pieces(m, way, m.variable(name, N, 3 * N), 2) for name in "wu"]
    rows = m.op("Unpack", m.variable("b", 2, 3 * N), num=2, axis=0)
    bias = pieces(m, way, f"{rows}:1", 1)
    gates = []
    for i in range(3):
        made = m.op("BiasAdd", m.op("MatMul", x, kernels[0][i]), bias[i])
        made = m.op("Add", made, m.op("MatMul", state, kernels[1][i]), name=f"gate{i}")
        made = m.op("Mul", made, m.constant(np.float32(0.2)))
        made = m.op("Maximum", made, m.constant(np.float32(0)))
        gates.append(m.op("Minimum", made, m.constant(np.float32(1))))
    m.op("Add", m.op("Mul", gates[0], gates[1]), gates[2])
    found = m.found()
    assert found.unmeasured == {}
    cuts = {
        (name, str(probe.tensor)): probe.cut
        for probe in found.probes
        for name, side in probe.for_
        if side == "produced"
    }
    each = range(3)
    assert cuts == {
        **{(name, f"gate{i}"): (i * N, N, 3 * N) for name in "wu" for i in each},
        **{("b", f"gate{i}"): ((3 + i) * N, N, 6 * N) for i in each},
    }
    assert [layer.activation for layer in m.layers()] == [None]


def test_sum_of_two_products_without_a_bias() -> None:
    m = Net()
    first = m.op("MatMul", m.input(-1, N), m.variable("w", N, 3 * N))
    second = m.op("MatMul", m.input(-1, N, name="state"), m.variable("u", N, 3 * N))
    m.op("Split", m.constant(np.int32(1)), m.op("Add", first, second, name="sum"), num_split=3)
    found = told(m.found())
    assert found["w produced"] == found["u produced"] == "sum[-1] of 12"


def test_axes_that_are_taken_as_one() -> None:
    m = Net()
    kernel = m.op("Reshape", m.variable("w", N, 2, 3), m.constant(np.array([N, 6], "i4")))
    m.op("MatMul", m.input(-1, N), kernel, name="out")
    assert told(m.found()) == {"w consumed": "x[-1] of 4", "w produced": "out[-1] of 6"}
    assert m.found().unmeasured == {}


def test_axes_that_are_made_at_once_are_measured_where_they_stand_together() -> None:
    m = Net()
    m.op("Einsum", m.input(-1, N), m.variable("w", N, 2, 3), equation="ab,bcd->acd", name="out")
    assert [(str(p.tensor), p.axis, p.size) for p in m.found().probes if p.for_ == MADE] == [
        ("out", -1, 6)
    ]
    for result in ("cad", "adc"):
        m = Net()
        x, w = m.input(-1, N), m.variable("w", N, 2, 3)
        m.op("Einsum", x, w, equation=f"ab,bcd->{result}", name="out")
        assert m.found().unmeasured == {("w", "produced"): "it produces 2 axes at once in out"}


MADE = (("w", "produced"),)


def test_variables_that_nothing_takes() -> None:
    m = Net()
    m.dense(m.input(-1, N), "h")
    m.variable("unused", N)
    m.variable("number")
    assert m.found().unmeasured == {
        ("unused", "produced"): "nothing that the graph computes forward takes it",
        ("number", "produced"): "one number alone is of no unit",
    }


# -- recurrent layers, and those of real graphs -------------------------------------------------


def test_cell_with_its_state_in_one_kernel() -> None:
    (table, cell, out) = layers(case("tf14_v2_charlm_lstm_ema"))
    assert (table.kind, cell.kind, out.kind) == ("embedding", "recurrent", "dense")
    assert cell.kernels == ("charlm/rnn/lstm_cell/kernel",)
    assert str(cell.produced) == "[i,j,f,o]*charlm/rnn/lstm_cell"
    assert [tuple(rows) for rows in cell.state] == [("charlm/rnn/lstm_cell/kernel", 8, 38)]
    assert (cell.sources, out.sources) == ((0, 1), (1,))
    found = told(find_probes(case("tf14_v2_charlm_lstm_ema")))
    inside = "charlm/rnn/while/rnn/lstm_cell"
    assert found["charlm/rnn/lstm_cell/kernel produced"] == f"{inside}/BiasAdd[-1] of 120"
    assert found["charlm/rnn/lstm_cell/kernel consumed"] == f"{inside}/concat[-1] of 38"


def test_gates_are_finished_before_they_are_activated() -> None:
    checkpoint = case("tf012_v2_gru_seqlen")
    gates, candidate, _ = layers(checkpoint)
    assert (gates.activation, candidate.activation) == (None, ("Tanh", False))
    inside = "RNN/while/GRUCell"
    found = told(find_probes(checkpoint))
    assert found["RNN/GRUCell/Gates/Linear/Matrix produced"] == f"{inside}/Gates/add[-1] of 36"
    assert (
        found["RNN/GRUCell/Candidate/Linear/Bias produced"] == f"{inside}/Candidate/Tanh[-1] of 18"
    )
    # What stands behind the end of a sequence is thrown away, on both sides.
    masks = {
        name: (str(probe.mask), probe.keeps)
        for probe in find_probes(checkpoint).probes
        for name, _ in probe.for_
        if probe.mask is not None
    }
    assert set(masks) == {
        f"RNN/GRUCell/{part}/Linear/{name}"
        for part, name in product(("Gates", "Candidate"), ("Matrix", "Bias"))
    }
    assert set(masks.values()) == {("RNN/while/GreaterEqual", False)}


def test_attention_around_a_cell() -> None:
    checkpoint = case("tf14_v2_attention_bahdanau")
    found = layers(checkpoint)
    assert [layer.kind for layer in found] == [
        "embedding",
        "recurrent",
        "dense",
        "recurrent",
        *["dense"] * 4,
    ]
    decoder = found[3]
    # The embedding, what was attended to, and then the state.
    assert [tuple(rows)[1:] for rows in decoder.state] == [(16, 30)]
    (vector,) = (layer for layer in found if layer.kernels[0].endswith("attention_v"))
    assert vector.places[0].linear is None
    wrapper = "decoder/decoder/while/BasicDecoderStep/decoder/attention_wrapper"
    finished = {layer.kernels[0].rpartition("/")[0]: layer.places[0].finished for layer in found}
    attended = finished["decoder/decoder/attention_wrapper/attention_layer"]
    assert attended == ((f"{wrapper}/attention_layer/MatMul", 0), -1, 10)


def test_cell_whose_gates_are_normalised() -> None:
    found = layers(case("tf14_v2_layernorm_lstm"))
    cell, *norms, _ = found
    assert (cell.kind, [layer.kind for layer in norms]) == ("recurrent", ["normalisation"] * 5)
    gates = {
        layer.normalisation.gamma.rpartition("/")[0].rpartition("/")[2]: layer.activation
        for layer in norms
        if layer.normalisation is not None and layer.normalisation.gamma is not None
    }
    assert {gate: function and function.op for gate, function in gates.items()} == {
        "input": "Sigmoid",
        "transform": "Tanh",
        "forget": "Sigmoid",
        "output": "Sigmoid",
        "state": None,
    }
    # The forget gate has a number added to it.
    assert [len(layer.constants) for layer in norms] == [0, 0, 1, 0, 0]


def test_cell_that_is_one_op() -> None:
    checkpoint = case("tf115_v2_lstmblockfused")
    cell, _ = layers(checkpoint)
    assert (cell.kind, cell.places[0].finished) == ("recurrent", None)
    assert [tuple(rows) for rows in cell.state] == [("lstm_fused_cell/kernel", 7, 22)]
    found = find_probes(checkpoint)
    assert found.unmeasured == {}
    op = "lstm_fused_cell/BlockLSTM"
    assert told(found) == {
        "lstm_fused_cell/kernel consumed": f"{op}:taken[-1] of 22",
        "lstm_fused_cell/kernel produced": f"{op}:gates[-1] of 60",
        "lstm_fused_cell/bias produced": f"{op}:gates[-1] of 60",
        **{f"lstm_fused_cell/w_{g}_diag produced": f"{op}:peephole_{g}[-1] of 15" for g in "ifo"},
        "head/kernel consumed": "strided_slice[-1] of 15",
        "head/kernel produced": "head/BiasAdd[-1] of 2",
        "head/bias produced": "head/BiasAdd[-1] of 2",
    }
    assert {str(p.mask) for p in found.probes if p.mask is not None} == {f"{op}:lives"}


def test_cell_whose_gates_have_a_kernel_each() -> None:
    checkpoint = case("tf10_v2_gatewise_lstm")
    *gates, _ = layers(checkpoint)
    assert [len(layer.places) for layer in gates] == [6] * 4
    assert [layer.kernels for layer in gates] == [
        (f"LSTMcell/{gate}/wx", f"LSTMcell/{gate}/wt")
        for gate in ("input_gate", "forget_gate", "memory_cell", "output_gate")
    ]
    assert {layer.kind for layer in gates} == {"recurrent"}
    assert [tuple(layer.state[0])[1:] for layer in gates] == [(0, 20)] * 4
    found = told(find_probes(checkpoint))
    assert found["LSTMcell/memory_cell/bi produced"].startswith("Tanh[-1] of 20, Tanh_2[-1] of 20")


def test_transformer() -> None:
    checkpoint = case("tf115_v2_bert_mini")
    found = layers(checkpoint)
    by_kernel = {layer.kernels[0]: layer for layer in found if layer.kernels}
    inner = by_kernel["bert/encoder/layer_0/intermediate/dense/kernel"]
    assert (inner.activation, inner.normalisation) == (("Tanh", False), None)
    norms = [layer for layer in found if layer.kind == "normalisation"]
    assert len(norms) == 6
    assert {norm.normalisation.over for norm in norms if norm.normalisation} == {"layer"}
    # What is normalised is the sum of what came before and what was made of it.
    assert norms[1].sources == (2, 6)
    told_at = told(find_probes(checkpoint))
    layer = "bert/encoder/layer_0"
    assert told_at[f"{layer}/intermediate/dense/bias produced"] == (
        f"{layer}/intermediate/dense/mul_3[-1] of 64"
    )
    assert told_at[f"{layer}/attention/self/query/kernel produced"] == (
        f"{layer}/attention/self/query/BiasAdd[-1] of 32"
    )
    assert told_at["bert/embeddings/position_embeddings produced"] == (
        "bert/embeddings/add_1[-1] of 32"
    )
    assert set(find_probes(checkpoint).unmeasured) == {
        ("bert/embeddings/token_type_embeddings", "consumed")
    }


def test_functions_of_an_exported_module() -> None:
    found = layers(case("tf221_savedmodel_module"))
    assert [layer.kernels[0] for layer in found] == [
        "layers/0/w",
        "alias/w",
        "heads/log_var/w",
        "heads/mean/w",
    ]
    assert [layer.activation for layer in found[:2]] == [("Erfc", False)] * 2
    assert len(found[1].places) == 2


# Every variable of these is measured on each side that it has.
ALL_MEASURED = [
    "tf012_v1_charlm_basiclstm",
    "tf012_v2_gru_seqlen",
    "tf012_v2_lstm_peephole",
    "tf10_v1_sharded",
    "tf10_v2_multilstm_adagrad",
    "tf10_v2_partitioned",
    "tf115_v2_convbn_ema",
    "tf115_v2_keras_rnn",
    "tf115_v2_sharded",
    "tf14_v1_partitioned",
    "tf14_v2_bidirectional",
    "tf14_v2_charlm_lstm_ema",
    "tf14_v2_layernorm_lstm",
    "tf14_v2_rotation",
]


@pytest.mark.parametrize("name", ALL_MEASURED)
def test_every_variable_of_the_model_is_measured(name: str) -> None:
    checkpoint = case(name)
    found = find_probes(checkpoint)
    looked_up = "its rows are looked up by their numbers"
    why = {key: text for key, text in found.unmeasured.items() if text != looked_up}
    assert why == {}
    structure = structure_of(checkpoint)
    measured = {variable for probe in found.probes for variable, _ in probe.for_}
    assert measured == {
        variable
        for variable in structure.graph.findings.axes
        if checkpoint.roles()[variable].kind in ("model", "batch_statistic")
        and checkpoint[variable].shape
        and variable not in structure.follows
    }
    for probe in found.probes:
        for variable, _ in probe.for_:
            units = probe.cut.total if probe.cut else probe.size
            assert units in (*checkpoint[variable].shape, checkpoint[variable].size), variable


@pytest.mark.parametrize("seed", [0, *map(slow, (1, 2))])
@pytest.mark.parametrize(
    "name",
    [
        "tf012_v2_gru_seqlen",
        "tf14_v2_attention_bahdanau",
        "tf115_v2_keras_rnn",
        "tf115_v2_lstmblockfused",
    ],
)
def test_mutated_graphs(name: str, seed: int) -> None:
    checkpoint = case(name)
    assert checkpoint.meta is not None
    data = checkpoint.meta.read_bytes()
    rng = random.Random(f"{name} {seed}")
    for changes in (1, 5, 30, 200):
        meta = parse("MetaGraphDef", data, "it")
        for _ in range(changes):
            mutate(meta.graph_def.node, rng)
        with contextlib.suppress(ConverterError):
            graph = OrderedGraph(Definition(Path("mutated.meta"), meta.graph_def, meta))
            known = as_known(infer_from(graph, checkpoint))
            held = [variable for _, variable in checkpoint.items()]
            mutated = Checkpoint(held, path=Path("mutated"), known=known)
            layers(mutated)
            find_probes(mutated)


def test_without_a_graph_nothing_is_told() -> None:
    with pytest.raises(InputError, match="no graph"):
        layers(case("tf221_obj_module"))
