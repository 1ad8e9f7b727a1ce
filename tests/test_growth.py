"""What adding units changes: what they hold wherever something is summed, counted or divided."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from structure_maker import Model, N

from converter.structure.axes.axis import Width

Build = Callable[[Model, str], str]
"""Makes something of the units of `a`, which has an axis for them and one of examples."""


def width_of(build: Build, name: str = "a", rows: int = N) -> Width:
    """Return a width of a model: a layer, what is made of it, and a layer that takes that."""
    m = Model()
    h = m.dense(m.input(3, N), "a")
    m.dense(build(m, h), "out", rows, 5)
    return m.structure().widths[name]


def grows(build: Build, rows: int = N) -> str:
    found = width_of(build, rows=rows)
    return found.growth if found.resizable else "fixed"


def touched(build: Build, rows: int = N) -> set[str]:
    return set(dict(width_of(build, rows=rows).touches))


def summed(m: Model, x: str, op: str = "Sum") -> str:
    return m.op(op, x, m.constant([1]), keep_dims=True)


@pytest.mark.parametrize(
    ("ops", "growth"),
    [
        ("Tanh", "any"),
        ("Exp", "any"),
        ("Sqrt", "zero"),
        ("Abs Sqrt", "any"),
        ("Asin", "zero"),
        ("Log1p", "zero"),
        ("Log", "none"),
        ("Abs Log", "none"),
        ("Exp Log", "any"),
        ("Softplus Reciprocal", "any"),
        ("Relu Reciprocal", "none"),
        ("Cosh Reciprocal", "any"),
        ("Rsqrt", "none"),
        ("Acosh", "none"),
        ("Sigmoid Log", "any"),
        ("Sigmoid Neg Log1p", "zero"),
        ("Lgamma", "none"),
        ("Digamma", "none"),
        ("Elu Atanh", "zero"),
        ("Tan", "any"),
    ],
)
def test_functions_of_units_have_to_be_numbers(ops: str, growth: str) -> None:
    def build(m: Model, x: str) -> str:
        for op in ops.split():
            x = m.op(op, x)
        return x

    assert grows(build) == growth


@pytest.mark.parametrize(
    ("ops", "growth"),
    [("Exp", "any"), ("Abs", "any"), ("Abs Rsqrt", "none"), ("Reciprocal", "none")],
)
def test_functions_of_variables_have_to_be_numbers(ops: str, growth: str) -> None:
    def build(m: Model, x: str) -> str:
        g = m.variable("g", N)
        for op in ops.split():
            g = m.op(op, g)
        return m.op("Mul", x, g)

    assert grows(build) == growth
    if growth == "none":
        assert "pole" in touched(build)


@pytest.mark.parametrize(
    ("op", "number", "growth"),
    [
        ("Pow", 2.0, "any"),
        ("Pow", 1.5, "zero"),
        ("Pow", -1.0, "none"),
        ("Pow", 0.0, "any"),
        ("RealDiv", 2.0, "any"),
        ("FloorMod", 0.5, "any"),
        ("Maximum", 0.1, "any"),
    ],
)
def test_functions_of_units_and_a_number(op: str, number: float, growth: str) -> None:
    assert grows(lambda m, x: m.op(op, x, m.constant(number))) == growth


@pytest.mark.parametrize(
    ("op", "growth"),
    [("RealDiv", "none"), ("FloorMod", "none"), ("DivNoNan", "any"), ("Atan2", "any")],
)
def test_units_that_divide(op: str, growth: str) -> None:
    assert grows(lambda m, x: m.op(op, m.dense(x, "b"), x)) == growth


def test_what_is_chosen_where_there_is_a_pole() -> None:
    def build(m: Model, x: str, is_safe: bool) -> str:
        is_zero = m.op("Equal", x, m.constant(0.0))
        zeros, poles = m.op("ZerosLike", x), m.op("Log", m.op("Abs", x))
        return m.op("Select", is_zero, *((zeros, poles) if is_safe else (poles, zeros)))

    assert grows(lambda m, x: build(m, x, True)) == "zero"
    assert grows(lambda m, x: build(m, x, False)) == "none"


@pytest.mark.parametrize(
    ("op", "what", "growth"),
    [
        ("Sum", "Tanh", "zero"),
        ("Sum", "Exp", "none"),
        ("Mean", "Tanh", "none"),
        ("Prod", "Tanh", "none"),
        ("Max", "Tanh", "none"),
        ("Max", "Relu", "zero"),
        ("Max", "Square", "zero"),
        ("Max", "Sigmoid", "none"),
        ("Min", "Relu", "none"),
    ],
)
def test_reductions_of_units(op: str, what: str, growth: str) -> None:
    assert grows(lambda m, x: summed(m, m.op(what, x), op), 1) == growth


def test_a_sum_of_what_is_filled_with_a_number() -> None:
    def build(m: Model, x: str, number: float) -> str:
        shape = m.op("Shape", x)
        return summed(m, m.op("Relu", m.op("Add", x, m.op("Fill", shape, m.constant(number)))))

    assert grows(lambda m, x: build(m, x, 0.0), 1) == "zero"
    assert grows(lambda m, x: build(m, x, 0.5), 1) == "none"


def test_products_and_sums_of_differences_count_copies() -> None:
    assert "product" in touched(lambda m, x: summed(m, x, "Prod"), 1)
    other = touched(lambda m, x: summed(m, m.op("SquaredDifference", x, m.op("Tanh", x))), 1)
    assert "sum" in other
    assert "variance" not in other


def test_only_the_axis_that_is_summed_is_asked() -> None:
    """Of products of all pairs of units, each unit gets what all new ones hold."""

    def build(m: Model, x: str) -> str:
        x = m.op("Tanh", x)
        left, right = (m.op("ExpandDims", x, m.constant(axis)) for axis in (2, 1))
        return m.op("Sum", m.op("Mul", left, right), m.constant([2]))

    assert grows(build) == "zero"


def test_the_share_that_is_left_of_one_is_an_average() -> None:
    def build(m: Model, x: str) -> str:
        rest = m.op("Sub", m.constant(float(N)), summed(m, m.op("Sign", x)))
        return m.op("RealDiv", rest, m.constant(float(N)))

    assert "mean" in touched(build, 1)


@pytest.mark.parametrize("number", ["size", "length", "ones", "range"])
def test_what_computes_with_the_number_of_units_sees_new_ones(number: str) -> None:
    def build(m: Model, x: str) -> str:
        shape = m.op("Shape", x)
        length = m.op(
            "StridedSlice",
            shape,
            m.constant([1]),
            m.constant([2]),
            m.constant([1]),
            shrink_axis_mask=1,
        )
        if number == "size":
            found = m.op("Cast", m.op("Size", x))
        elif number == "length":
            found = m.op("Rsqrt", m.op("Cast", length))
        elif number == "ones":
            found = m.op("Sum", m.op("OnesLike", x), m.constant([0, 1]))
        else:
            numbers = m.op("Range", m.constant(0), length, m.constant(1))
            found = m.op("Cast", m.op("Sum", numbers, m.constant([0])))
        return m.op("Mul", x, found)

    assert grows(build) == "none"
    assert "counted" in touched(build)


def test_a_shape_that_only_shapes_counts_nothing() -> None:
    def build(m: Model, x: str) -> str:
        return m.op("Reshape", m.op("Reshape", x, m.constant([-1])), m.op("Shape", x))

    assert grows(build) == "any"


def single(consumer: str = "", trained: bool = False) -> str:
    """Return how the units grow whose share of zeros is told."""
    m = Model()
    h = m.dense(m.input(3, N), "a")
    m.dense(h, "out", N, 5)
    zeros = m.op("Cast", m.op("Equal", h, m.constant(0.0)))
    mean = m.op("Mean", zeros, m.constant([0, 1]), name="told", shape=())
    if consumer:
        m.op(consumer, m.strings("told"), mean)
    if trained:
        m.op("Fill", m.constant([3, N]), m.constant(1.0), name="gradients/told_grad/Fill")
    return m.structure().widths["a"].growth


def test_a_number_that_nothing_follows_is_an_output() -> None:
    assert single() == "none"
    assert single("ScalarSummary") == "any"
    assert single(trained=True) == "any"


@pytest.mark.parametrize(
    ("make", "is_linear"),
    [
        (lambda m, w: w, True),
        (lambda m, w: m.op("Neg", w), True),
        (lambda m, w: m.op("Mul", w, m.variable("s")), True),
        (lambda m, w: m.op("RealDiv", m.op("Square", w), m.op("Abs", w)), False),
        (lambda m, w: m.op("Softplus", w), False),
        (lambda m, w: m.op("Mul", w, w), False),
        (lambda m, w: m.op("Add", w, m.constant(1.0)), False),
        (lambda m, w: m.op("Add", w, m.variable("c", N)), False),
        (lambda m, w: m.op("Maximum", w, m.constant(0.0)), False),
    ],
    ids=range(9),
)
def test_only_what_is_linear_can_be_shared_out(
    make: Callable[[Model, str], str], is_linear: bool
) -> None:
    m = Model()
    h = m.op("Tanh", m.dense(m.input(3, N), "a"))
    m.op("MatMul", h, make(m, m.variable("w", N, N)))
    found = m.structure().widths["a"]
    assert ("computed" not in dict(found.touches)) == is_linear


def test_what_takes_new_units_by_a_function_of_zero() -> None:
    def taken(op: str) -> str:
        m = Model()
        h = m.op("Tanh", m.dense(m.input(3, N), "a"))
        m.op("MatMul", h, m.op(op, m.variable("w", N, N)))
        return m.structure().widths["a"].growth

    assert taken("Tanh") == "any"
    # New units that are zero are taken whatever by.
    assert taken("Exp") == "zero"
    assert taken("Reciprocal") == "none"


def test_a_softmax_over_variables_counts_units() -> None:
    def build(m: Model, x: str) -> str:
        return m.op("Mul", x, m.op("Softmax", m.variable("g", N)))

    assert grows(build) == "none"


@pytest.mark.parametrize(
    ("build", "what"),
    [
        (lambda m, x: m.op("FakeQuantWithMinMaxArgs", x), "nonlinear"),
        (lambda m, x: m.op("Add", x, m.constant([[1.0], [2.0], [3.0]])), "affine"),
        (lambda m, x: m.op("Mul", x, m.op("Mul", m.variable("g", N), _counts(m))), "constant"),
        (lambda m, x: m.op("Add", x, m.op("Add", m.variable("g", N), _counts(m))), "constant"),
        (lambda m, x: m.op("Add", x, m.op("Square", m.variable("g", N))), "weight"),
        (lambda m, x: m.op("ArgMax", x, m.constant(0)), "nonlinear"),
        (lambda m, x: m.op("InTopK", x, m.constant([0, 1, 2])), "choice"),
        (lambda m, x: _grouped(m, x), "index"),
    ],
    ids=["rounded", "by rows", "times", "plus", "function", "largest", "among", "grouped"],
)
def test_what_mixed_units_would_change_is_told(build: Build, what: str) -> None:
    m = Model()
    h = m.dense(m.input(3, N), "a")
    m.op("Identity", build(m, h))
    assert what in dict(m.structure().widths["a"].touches)


def _grouped(m: Model, x: str) -> str:
    turned = m.op("Transpose", x, m.constant([1, 0]))
    return m.op("SegmentSum", turned, m.constant([0, 0, 1, 1]))


def _counts(m: Model) -> str:
    return m.constant([float(k) for k in range(N)])


def test_ones_beside_units_cannot_be_mixed() -> None:
    def build(m: Model, x: str) -> str:
        return m.op("ConcatV2", x, m.op("OnesLike", x), m.constant(1))

    assert "affine" in touched(build, 2 * N)


def test_units_against_ones_are_summed() -> None:
    def build(m: Model, x: str) -> str:
        return m.op("MatMul", x, m.op("Fill", m.constant([N, 1]), m.constant(1.0)))

    assert "sum" in touched(build, 1)


def test_how_many_axes_there_are_is_no_width() -> None:
    m = Model()
    h = m.dense(m.input(3, N), "a")
    sizes = m.op("ExpandDims", m.op("Cast", m.op("Shape", h)), m.constant(0))
    m.op("Add", m.dense(h, "b"), m.op("MatMul", sizes, m.variable("w", 2, N)))
    assert [w.size for w in m.structure().widths.values()] == [N, N, N]


def test_a_table_that_is_summed_up_gets_rows_of_zeros() -> None:
    m = Model()
    table = m.variable("table", 6, N)
    rows = m.op("Gather", table, m.input(3, dtype="int32"))
    total = m.op("Sum", m.op("Square", table), m.constant([0, 1]))
    m.dense(m.op("Mul", rows, total), "out")
    assert m.structure().widths["table/vocabulary"].growth == "zero"


def test_what_divides_is_not_made_for_a_pairing() -> None:
    m = Model()
    x = m.input(3, N)
    query, key = m.op("Tanh", m.dense(x, "q")), m.dense(x, "k")
    one = m.op("MatMul", query, m.op("RealDiv", m.constant(1.0), key), transpose_b=True)
    m.op("Identity", one)
    assert "self paired" in dict(m.structure().widths["q"].touches)


def test_new_zeros_that_are_summed_or_looked_up_learn() -> None:
    def dies(build: Build, name: str = "a") -> bool:
        return width_of(build, name).stays_zero

    def beside_sum(m: Model, x: str) -> str:
        h = m.op("Tanh", x)
        m.dense(summed(m, h), "other", 1)
        return h

    assert dies(lambda m, x: m.op("Tanh", x))
    assert not dies(lambda m, x: m.op("Cosh", x))
    assert not dies(beside_sum)
    m = Model()
    m.dense(m.op("Gather", m.variable("table", 6, N), m.input(3, dtype="int32")), "out")
    assert not m.structure().widths["table/vocabulary"].stays_zero


def test_zeros_stay_zero_in_a_depthwise_convolution() -> None:
    m = Model()
    h = m.op("Conv2D", m.input(3, 5, 5, N), m.variable("a/w", 1, 1, N, N))
    h = m.op("DepthwiseConv2dNative", h, m.variable("depth/w", 3, 3, N, 1))
    m.op("Conv2D", h, m.variable("out/w", 1, 1, N, N))
    widths = m.structure().widths
    assert widths["a"].stays_zero


def test_of_two_matrices_of_variables_the_second_consumes() -> None:
    m = Model()
    first = m.op("Tanh", m.variable("first", N, N))
    both = m.op("MatMul", first, m.variable("second", N, N))
    m.op("MatMul", m.input(3, N), both)
    (inner,) = (w for w in m.structure().widths.values() if "second" in w.consumed_by)
    assert "computed" not in dict(inner.touches)


def test_new_variances_are_one() -> None:
    def build(m: Model, x: str) -> str:
        centred = m.op("Sub", x, m.variable("mean", N))
        return m.op("Mul", centred, m.op("Rsqrt", m.variable("variance", N)))

    assert grows(build) == "any"


@pytest.mark.parametrize(("name", "growth"), [("gain", "any"), ("w_f_diag", "none")])
def test_new_gains_are_one_but_those_of_peepholes(name: str, growth: str) -> None:
    def build(m: Model, x: str) -> str:
        return m.op("Log", m.op("Mul", m.op("Sigmoid", x), m.variable(name, N)))

    assert grows(build) == growth
