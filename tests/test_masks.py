"""What says which rows of an unrolled cell count, where a mask keeps its state by arithmetic."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from structure_maker import Model, N

from converter.graph.node import Output
from converter.structure.layers.masks import Mask, Masks

STEPS = 2


class Cell(Model):
    """A cell of `STEPS` steps; the products with its kernel are `made_0`, `made_1`.

    Args:
        update: makes the state of the number of a step, what is new, and the state before it.
    """

    def __init__(self, update: Callable[[Cell, int, str, str], str]) -> None:
        super().__init__()
        self.x = self.input(-1, STEPS, N)
        self.one = self.constant(1.0)
        kernel = self.variable("w", 2 * N, N)
        h = self.op("Slice", self.x, self.constant([0, 0, 0]), self.constant([-1, 1, N]))
        h = self.op("Squeeze", h, squeeze_dims=[1])
        for number in range(STEPS):
            taken = self.op("ConcatV2", self.step(self.x, number), h, self.constant(1))
            made = self.op("MatMul", taken, kernel, name=f"made_{number}")
            h = update(self, number, self.op("Tanh", made), h)
        self.op("MatMul", h, self.variable("head", N, N), name="out")

    def step(self, x: str, number: int) -> str:
        """Return a step of (batch, steps, ..)."""
        places = [self.constant([0, place]) for place in (number, number + 1)]
        ends = [*places, self.constant([1, 1])]
        return self.op("StridedSlice", x, *ends, begin_mask=1, end_mask=1, shrink_axis_mask=2)

    def column(self, x: str) -> str:
        return self.op("ExpandDims", x, self.constant(1))

    def lengths(self) -> str:
        """Return an input, which is made once."""
        known = [node.name for node in self.definition.node]
        return "lengths" if b"lengths" in known else self.input(-1, name="lengths", dtype="int32")

    def bits(self, number: int, op: str = "Greater") -> str:
        """Return whether sequences go on, as floats (batch, 1)."""
        lives = self.op(op, self.lengths(), self.constant(number), name=f"{op}_{number}")
        return self.column(self.op("Cast", lives, SrcT="bool", DstT="float32"))

    def fed(self, number: int) -> str:
        return self.column(self.step(self.input(-1, STEPS, name=f"fed_{number}"), number))

    def keep(self, m: str, new: str, old: str, rest: str = "") -> str:
        rest = rest or self.op("Sub", self.one, m)
        return self.op("Add", self.op("Mul", m, new), self.op("Mul", rest, old))

    def masks(self) -> list[Mask | None]:
        """Return the mask of each step."""
        analysis = self.structure().graph.findings.analysis
        masks = Masks(analysis)
        nodes = [analysis.graph.by_name[f"made_{number}"] for number in range(STEPS)]
        return [masks.of(Output(node, 0), is_unrolled=True) for node in nodes]


def source(mask: Mask | None) -> str:
    """Return the node that a mask is made of."""
    assert mask is not None
    node = mask.output.node
    while node.op in ("ExpandDims", "Cast", "StridedSlice", "Sub", "Squeeze"):
        node = next(o.node for o in node.inputs if o.node.op != "Const")
    return node.name


def ended(m: Cell, number: int, new: str, old: str) -> str:
    done = m.bits(number, "LessEqual")
    return m.keep(m.op("Sub", m.one, done), new, old, done)


def step_on(m: Cell, number: int, new: str, old: str) -> str:
    step = m.op("Mul", m.op("Sub", new, old), m.bits(number))
    return m.op("AddV2", old, step)


def step_off(m: Cell, number: int, new: str, old: str) -> str:
    return m.op("Sub", old, m.op("Mul", m.bits(number), m.op("Sub", old, new)))


def tiled(m: Cell, number: int, new: str, old: str) -> str:
    return m.keep(m.op("Tile", m.bits(number), m.constant([1, N])), new, old)


def indexed(m: Cell, number: int, new: str, old: str) -> str:
    """As `m[:, None]`, which is computed anew for what is left of it."""
    none = m.constant([0, 0])

    def column() -> str:
        lives = m.op("Greater", m.lengths(), m.constant(number))
        floats = m.op("Cast", lives, SrcT="bool", DstT="float32")
        ends = [none, none, m.constant([1, 1])]
        return m.op("StridedSlice", floats, *ends, begin_mask=1, end_mask=1, new_axis_mask=2)

    return m.keep(column(), new, old, m.op("Sub", m.one, column()))


def rest_indexed(m: Cell, number: int, new: str, old: str) -> str:
    """As `m[:, None]` and `(1 - m)[:, None]`."""
    lives = m.op("Greater", m.lengths(), m.constant(number), name=f"Greater_{number}")
    bits = m.op("Cast", lives, SrcT="bool", DstT="float32")
    none = m.constant([0, 0])
    ends = [none, none, m.constant([1, 1])]
    both = [
        m.op("StridedSlice", each, *ends, begin_mask=1, end_mask=1, new_axis_mask=2)
        for each in (bits, m.op("Sub", m.one, bits))
    ]
    return m.keep(both[0], new, old, both[1])


def put_out(m: Cell, number: int, new: str, old: str) -> str:
    """What is put out is zero where the state is kept."""
    bits = m.bits(number)
    m.op("Neg", m.op("Mul", new, bits))
    return m.keep(bits, new, old)


def opposite(m: Cell, number: int, new: str, old: str) -> str:
    """Each factor is a comparison of its own."""
    return m.keep(m.bits(number), new, old, m.bits(number, "LessEqual"))


def anew(m: Cell, number: int, new: str, old: str) -> str:
    """Lengths are computed for each comparison."""
    compared = [
        m.op(op, m.op("Add", m.lengths(), m.constant(1)), m.constant(number))
        for op in ("Greater", "LessEqual")
    ]
    both = [m.op("Cast", each, SrcT="bool", DstT="float32") for each in compared]
    return m.keep(m.column(both[0]), new, old, m.column(both[1]))


def negated(m: Cell, number: int, new: str, old: str) -> str:
    lives = m.op("Greater", m.lengths(), m.constant(number), name=f"Greater_{number}")
    both = [m.op("Cast", b, SrcT="bool") for b in (lives, m.op("LogicalNot", lives))]
    return m.keep(m.column(both[0]), new, old, m.column(both[1]))


def of_integers(m: Cell, number: int, new: str, old: str) -> str:
    lives = m.op("Greater", m.lengths(), m.constant(number), name=f"Greater_{number}")
    both = [
        m.op("Cast", m.op("Cast", b, SrcT="bool", DstT="int32"), SrcT="int32", DstT="float32")
        for b in (lives, m.op("LogicalNot", lives))
    ]
    return m.keep(m.column(both[0]), new, old, m.column(both[1]))


def spread(m: Cell, number: int, new: str, old: str) -> str:
    bits = m.bits(number)
    return m.keep(m.op("Mul", bits, m.constant([[1.0] * N])), new, old)


def attended(m: Cell, number: int, new: str, old: str) -> str:
    """What is new is compared with other tensors of its own row."""
    scores = m.op("Einsum", m.input(-1, 4, N, name=f"keys_{number}"), new, equation="bkn,bn->bk")
    most = m.op("Max", scores, m.constant(1), keep_dims=True)
    return m.keep(m.bits(number), m.op("Add", new, most), old)


def ended_fed(m: Cell, number: int, new: str, old: str) -> str:
    done = m.fed(number)
    return m.keep(m.op("Sub", m.one, done), new, old, done)


def sized(m: Cell, number: int, new: str, old: str) -> str:
    """Nothing is taken of what is learned but how large it is."""
    gate = m.op("MatMul", m.step(m.x, number), m.variable(f"gate_{number}", N, 1))
    return m.keep(m.op("Add", m.bits(number), m.op("ZerosLike", gate), shape=(-1, 1)), new, old)


FOUND = {
    "bits": lambda m, number, new, old: m.keep(m.bits(number), new, old),
    "ended": ended,
    "step_on": step_on,
    "step_off": step_off,
    "tiled": tiled,
    "indexed": indexed,
    "rest_indexed": rest_indexed,
    "put_out": put_out,
    "opposite": opposite,
    "anew": anew,
    "negated": negated,
    "of_integers": of_integers,
    "spread": spread,
    "attended": attended,
    "ended_fed": ended_fed,
    "sized": sized,
    "fed": lambda m, number, new, old: m.keep(m.fed(number), new, old),
}


@pytest.mark.parametrize("form", FOUND)
def test_a_factor_that_all_units_share_is_a_mask(form: str) -> None:
    found = Cell(FOUND[form]).masks()
    names = {"fed": "fed_{}", "ended_fed": "fed_{}", "ended": "LessEqual_{}"}
    if form not in ("indexed", "sized", "anew"):
        name = names.get(form, "Greater_{}")
        assert [source(mask) for mask in found] == [name.format(n) for n in range(STEPS)]
    assert all(mask is not None and mask.step is None and mask.keeps for mask in found)


def learned(m: Cell, number: int, new: str, old: str) -> str:
    gate = m.op("MatMul", m.step(m.x, number), m.variable(f"gate_{number}", N, 1))
    return m.keep(m.op("Sigmoid", gate), new, old)


def of_the_state(m: Cell, number: int, new: str, old: str) -> str:
    most = m.op("Max", new, m.constant(1), keep_dims=True)
    return m.keep(m.op("Cast", m.op("Greater", most, m.one), SrcT="bool"), new, old)


def drawn(m: Cell, number: int, new: str, old: str) -> str:
    fed = m.fed(number)
    noise = m.op("RandomUniform", m.op("Shape", fed), shape=(-1, 1))
    return m.keep(m.op("Mul", fed, m.op("Floor", noise)), new, old)


def of_units(m: Cell, number: int, new: str, old: str) -> str:
    return m.keep(m.input(1, N, name=f"units_{number}"), new, old)


def of_each_unit(m: Cell, number: int, new: str, old: str) -> str:
    return m.keep(m.input(-1, N, name=f"each_{number}"), new, old)


def of_all(m: Cell, number: int, new: str, old: str) -> str:
    return m.keep(m.input(name=f"all_{number}"), new, old)


def of_one(m: Cell, number: int, new: str, old: str) -> str:
    return m.keep(m.input(1, 1, name=f"one_{number}"), new, old)


def fixed(m: Cell, number: int, new: str, old: str) -> str:
    return m.keep(m.constant([[0.5]] * N), new, old)


def aligned(m: Cell, number: int, new: str, old: str) -> str:
    """As many numbers as there are rows, which meet units."""
    return m.keep(m.op("Max", m.step(m.x, number), m.constant(1)), new, old)


def reversed_rows(m: Cell, number: int, new: str, old: str) -> str:
    bits, ends = m.op("Squeeze", m.bits(number), squeeze_dims=[1]), m.constant([0, 0])
    taken = [bits, ends, ends, m.constant([-1, 1])]
    rest = m.op("StridedSlice", *taken, begin_mask=1, end_mask=1, new_axis_mask=2)
    return m.keep(m.column(bits), new, old, m.op("Sub", m.one, rest))


def rounded(m: Cell, number: int, new: str, old: str) -> str:
    fed = m.fed(number)
    whole = m.op("Cast", fed, SrcT="float32", DstT="int32")
    floats = m.op("Cast", whole, SrcT="int32", DstT="float32")
    return m.keep(floats, new, old, m.op("Sub", m.one, fed))


def other_step(m: Cell, number: int, new: str, old: str) -> str:
    """What is taken off is not what it is added to."""
    other = m.op("Neg", m.step(m.x, 1 - number))
    return m.op("Add", old, m.op("Mul", m.bits(number), m.op("Sub", new, other)))


def step_to(m: Cell, number: int, new: str, old: str) -> str:
    """What is new is not made of what it is put instead of."""
    other = m.op("Neg", m.step(m.x, 1 - number))
    return m.op("Add", other, m.op("Mul", m.bits(number), m.op("Sub", new, other)))


def raw(m: Cell, number: int, new: str, old: str) -> str:
    """What is new is put out as it is."""
    m.op("Neg", new)
    return m.keep(m.bits(number), new, old)


def by_two(m: Cell, number: int, new: str, old: str) -> str:
    m.op("Neg", m.op("Mul", new, m.fed(number)))
    return m.keep(m.bits(number), new, old)


def no_state(m: Cell, number: int, new: str, old: str) -> str:
    """It is put together with what it is not made of."""
    return m.keep(m.bits(number), new, m.op("Neg", m.step(m.x, 1 - number)))


def unlike(m: Cell, number: int, new: str, old: str) -> str:
    """Nothing says that the two factors are one together."""
    return m.keep(m.bits(number), new, old, m.fed(number))


def zeros(m: Cell, number: int, new: str, old: str) -> str:
    """A weight, by which no state is kept."""
    return m.op("Mul", new, m.bits(number))


def mixed(m: Cell, number: int, new: str, old: str) -> str:
    others = m.input(-1, -1, name=f"others_{number}")
    return m.keep(m.bits(number), m.op("MatMul", others, new), old)


def averaged(m: Cell, number: int, new: str, old: str) -> str:
    """Each row takes something of all."""
    mean = m.op("Mean", new, m.constant(0), keep_dims=True)
    return m.keep(m.bits(number), m.op("Sub", new, mean), old)


def alike(m: Cell, number: int, new: str, old: str) -> str:
    """Each row takes how like others are to it."""
    likeness = m.op("MatMul", new, new, transpose_b=True)
    most = m.op("Max", likeness, m.constant(1), keep_dims=True)
    return m.keep(m.bits(number), m.op("Sub", new, most), old)


def turned(m: Cell, number: int, new: str, old: str) -> str:
    """Rows are in another order than their masks."""
    ends = [m.constant([0]), m.constant([0]), m.constant([-1])]
    other = m.op("StridedSlice", new, *ends, begin_mask=1, end_mask=1)
    return m.keep(m.bits(number), m.op("Sub", new, other), old)


def added_up(m: Cell, number: int, new: str, old: str) -> str:
    sums = m.op("UnsortedSegmentSum", new, m.lengths(), m.constant(3), shape=(-1, N))
    return m.keep(m.bits(number), m.op("Sub", new, sums), old)


def alike_by_einsum(m: Cell, number: int, new: str, old: str) -> str:
    likeness = m.op("Einsum", new, new, equation="ab,cb->ac", N=2)
    most = m.op("Max", likeness, m.constant(1), keep_dims=True)
    return m.keep(m.bits(number), m.op("Sub", new, most), old)


@pytest.mark.parametrize(
    "update",
    [
        turned,
        added_up,
        alike_by_einsum,
        alike,
        averaged,
        learned,
        of_the_state,
        drawn,
        of_units,
        of_each_unit,
        of_all,
        of_one,
        fixed,
        aligned,
        reversed_rows,
        rounded,
        other_step,
        step_to,
        raw,
        by_two,
        no_state,
        unlike,
        zeros,
        mixed,
    ],
)
def test_other_factors_are_none(update: Callable[[Cell, int, str, str], str]) -> None:
    assert Cell(update).masks() == [None] * STEPS


def test_a_weight_is_none_where_a_state_is_kept_by_something_else() -> None:
    def update(m: Cell, number: int, new: str, old: str) -> str:
        if number:
            return m.op("Mul", new, m.fed(number))
        return m.keep(m.bits(number), new, old)

    first, second = Cell(update).masks()
    assert (source(first), second) == ("Greater_0", None)


def test_what_a_choice_aligns_with_units_is_no_mask() -> None:
    """SelectV2 aligns from the right; Select takes a vector for the rows."""

    def update(op: str) -> Callable[[Cell, int, str, str], str]:
        def choose(m: Cell, number: int, new: str, old: str) -> str:
            return m.op(op, m.input(N, name=f"chosen_{number}", dtype="bool"), new, old)

        return choose

    assert Cell(update("SelectV2")).masks() == [None] * STEPS
    assert [source(mask) for mask in Cell(update("Select")).masks()] == ["chosen_0", "chosen_1"]
