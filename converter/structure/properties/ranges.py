"""Between which numbers the entries of a tensor lie: what an op makes of that.

What comes of numbers too large or too small for a float is left aside: the old units have it too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from converter.graph.node import Node
from converter.graph.ops import ADDS, BIAS_ADDS, QUOTIENTS, SELECTS, ops

_INF = math.inf
_LEAST = 1e-38


class Range(NamedTuple):
    """From where to where numbers lie.

    Attributes:
        low: none is smaller.
        high: none is larger.
        is_finite: whether none is infinite or NaN.
    """

    low: float
    high: float
    is_finite: bool = True

    @property
    def is_zero(self) -> bool:
        """Whether all are zero."""
        return self == ZERO

    def joined(self, other: Range) -> Range:
        """Return the range of what is in either."""
        finite = self.is_finite and other.is_finite
        return Range(min(self.low, other.low), max(self.high, other.high), finite)


ZERO = Range(0.0, 0.0)
ONE = Range(1.0, 1.0)
ANY = Range(-_INF, _INF)
UNKNOWN = Range(-_INF, _INF, is_finite=False)
_TRUTH = Range(0.0, 1.0)

_Unary = Callable[[Range], Range]
_Binary = Callable[[Range, Range], Range]


def of_op(node: Node, operands: Sequence[Range]) -> Range | None:
    """Return the range of what an op makes entry by entry; None where it is no such op."""
    unary, binary = _UNARY.get(node.op), _BINARY.get(node.op)
    if unary is not None and len(operands) == 1:
        return unary(operands[0]) if operands[0].is_finite else UNKNOWN
    if binary is not None and len(operands) == 2:
        if node.op not in _ANY_OPERANDS and not all(r.is_finite for r in operands):
            return UNKNOWN
        return binary(*operands)
    if node.op in SELECTS and len(operands) == 3:
        return _select(*operands)
    if node.op in _ROUNDS and operands:
        # The range is moved so that zero is one of the numbers that are left.
        return ZERO if operands[0].is_zero else ANY if operands[0].is_finite else UNKNOWN
    if node.op in _MANY:
        found = ZERO
        for operand in operands:
            found = _add(found, operand)
        return found
    return None


def _rising(function: Callable[[float], float], low: float = -_INF, high: float = _INF) -> _Unary:
    """Return what a function makes of ranges that never falls, and is one from `low` to `high`."""

    def apply(x: Range) -> Range:
        if x.low < low or x.high > high:
            return UNKNOWN
        least, most = _at(function, x.low), _at(function, x.high)
        return UNKNOWN if least is None or most is None else Range(least, most)

    return apply


def _falling(function: Callable[[float], float], low: float = -_INF, high: float = _INF) -> _Unary:
    rising = _rising(lambda number: -function(number), low, high)
    return lambda x: _negative(rising(x))


def _at(function: Callable[[float], float], number: float) -> float | None:
    """Return a value of a function; None where it has a pole."""
    try:
        found = function(number)
    except OverflowError:
        return math.copysign(_INF, number)
    except (ValueError, ZeroDivisionError):
        return None
    is_pole = math.isnan(found) or (math.isinf(found) and math.isfinite(number))
    return None if is_pole else found


def _even(function: Callable[[float], float]) -> _Unary:
    """Return what a function makes of ranges that rises with the distance from zero."""
    rising = _rising(function)

    def apply(x: Range) -> Range:
        near = 0.0 if x.low <= 0 <= x.high else min(abs(x.low), abs(x.high))
        return rising(Range(near, max(abs(x.low), abs(x.high))))

    return apply


def _within(low: float, high: float, at_zero: float | None = None) -> _Unary:
    """Return what makes numbers of a range of its own, whatever it takes."""
    zero = Range(low, high) if at_zero is None else Range(at_zero, at_zero)
    return lambda x: zero if x.is_zero else Range(low, high)


def _negative(x: Range) -> Range:
    return Range(-x.high + 0.0, -x.low + 0.0, x.is_finite)


def _reciprocal(x: Range) -> Range:
    if x.low <= 0 <= x.high:
        return UNKNOWN
    return Range(1 / x.high, 1 / x.low)


def _of_positive(x: Range) -> Range:
    return ANY if x.low > 0 else UNKNOWN


def _sigmoid(number: float) -> float:
    found = 1 / (1 + math.exp(-abs(number)))
    return found if number >= 0 else max(1 - found, _LEAST)


def _softplus(number: float) -> float:
    return max(number, 0.0) + max(math.log1p(math.exp(-abs(number))), _LEAST)


def _exp(number: float) -> float:
    return max(math.exp(number), _LEAST)


def _relu(number: float) -> float:
    return max(number, 0.0)


def _whole(function: Callable[[float], float]) -> Callable[[float], float]:
    return lambda number: number if math.isinf(number) else float(function(number))


def _add(x: Range, y: Range) -> Range:
    return Range(x.low + y.low, x.high + y.high, x.is_finite and y.is_finite)


def _subtract(x: Range, y: Range) -> Range:
    return _add(x, _negative(y))


def _multiply(x: Range, y: Range) -> Range:
    # Nothing times something, however large, is nothing.
    ends = [0.0 if 0 in (a, b) else a * b for a in x[:2] for b in y[:2]]
    return Range(min(ends), max(ends))


def _divide(x: Range, y: Range) -> Range:
    other = _reciprocal(y)
    return _multiply(x, other) if other.is_finite else UNKNOWN


def _divide_or_nothing(x: Range, y: Range) -> Range:
    """Divide, where what is divided by zero is zero."""
    if x.is_zero or y.is_zero:
        return ZERO
    return ANY if y.low <= 0 <= y.high else _divide(x, y)


def _remainder(x: Range, y: Range) -> Range:
    if y.low <= 0 <= y.high:
        return UNKNOWN
    most = max(abs(y.low), abs(y.high))
    return ZERO if x.is_zero else Range(-most, most)


def _multiply_or_nothing(x: Range, y: Range) -> Range:
    """Multiply, where zero as the second is stronger than infinities."""
    if y.is_zero:
        return ZERO
    return _multiply(x, y) if x.is_finite and y.is_finite else UNKNOWN


def _power(x: Range, y: Range) -> Range:
    if y.low != y.high or not math.isfinite(y.low):
        return ANY if x.low > 0 else UNKNOWN
    exponent = y.low
    if exponent == 0:
        return ONE
    if exponent == int(exponent) and exponent > 0:
        rising = exponent % 2 == 1

        def power(number: float) -> float:
            return float(number**exponent)

        return _rising(power)(x) if rising else _even(power)(x)
    if exponent > 0:
        return _rising(lambda number: float(number**exponent), low=0.0)(x)
    if x.low > 0:
        return Range(0.0 if x.high == _INF else float(x.high**exponent), float(x.low**exponent))
    return ANY if x.high < 0 and exponent == int(exponent) else UNKNOWN


def _larger(x: Range, y: Range) -> Range:
    return Range(max(x.low, y.low), max(x.high, y.high))


def _smaller(x: Range, y: Range) -> Range:
    return Range(min(x.low, y.low), min(x.high, y.high))


def _less(x: Range, y: Range) -> Range:
    if not (x.is_finite and y.is_finite):
        return _TRUTH
    if x.high < y.low:
        return ONE
    return ZERO if x.low >= y.high else _TRUTH


def _less_or_equal(x: Range, y: Range) -> Range:
    return _subtract(ONE, _less(y, x)) if x.is_finite and y.is_finite else _TRUTH


def _equal(x: Range, y: Range) -> Range:
    if not (x.is_finite and y.is_finite):
        return _TRUTH
    if x.high < y.low or y.high < x.low:
        return ZERO
    return ONE if x.low == x.high == y.low == y.high else _TRUTH


def _select(condition: Range, x: Range, y: Range) -> Range:
    if condition == ONE:
        return x
    return y if condition.is_zero else x.joined(y)


_UNARY: Mapping[str, _Unary] = {
    "Neg": _negative,
    "Abs": _even(lambda number: number),
    "Square": _even(lambda number: number * number),
    "Cosh": _even(math.cosh),
    "Relu": _rising(_relu),
    # Slopes are positive in every model that was seen; of a negative one the sign is another.
    "LeakyRelu": lambda x: ZERO if x.is_zero else ANY,
    "Relu6": _rising(lambda number: min(max(number, 0.0), 6.0)),
    "Elu": _rising(lambda number: number if number > 0 else math.expm1(number)),
    "Selu": lambda x: ZERO if x.is_zero else ANY,
    "Tanh": _rising(math.tanh),
    "Sigmoid": _rising(_sigmoid),
    "Softplus": _rising(_softplus),
    "Softsign": _within(-1.0, 1.0, 0.0),
    "Exp": _rising(_exp),
    "Expm1": _rising(math.expm1),
    "Erf": _rising(math.erf),
    "Erfc": _falling(math.erfc),
    "Sinh": _rising(math.sinh),
    "Asinh": _rising(math.asinh),
    "Atan": _rising(math.atan),
    "Sin": _within(-1.0, 1.0, 0.0),
    "Cos": _within(-1.0, 1.0, 1.0),
    "Tan": lambda x: ZERO if x.is_zero else ANY,
    "Sign": _rising(lambda number: (number > 0) - (number < 0)),
    "Floor": _rising(_whole(math.floor)),
    "Ceil": _rising(_whole(math.ceil)),
    "Round": _rising(_whole(round)),
    "Rint": _rising(_whole(round)),
    "Sqrt": _rising(math.sqrt, low=0.0),
    "Log": _rising(math.log, low=0.0),
    "Log1p": _rising(math.log1p, low=-1.0),
    "Rsqrt": _falling(lambda number: 1 / math.sqrt(number), low=0.0),
    "Reciprocal": _reciprocal,
    "Inv": _reciprocal,
    "Asin": _rising(math.asin, -1.0, 1.0),
    "Acos": _falling(math.acos, -1.0, 1.0),
    "Acosh": _rising(math.acosh, low=1.0),
    "Atanh": _rising(math.atanh, -1.0, 1.0),
    "BesselI0e": _within(0.0, 1.0, 1.0),
    "BesselI1e": _within(-1.0, 1.0, 0.0),
    "Lgamma": _of_positive,
    "Digamma": _of_positive,
    "LogicalNot": lambda x: _subtract(ONE, x),
    **dict.fromkeys(ops("IsNan IsInf IsFinite"), _within(0.0, 1.0)),
    **dict.fromkeys(ops("Gelu Swish Mish"), lambda x: ZERO if x.is_zero else ANY),
}
_BINARY: Mapping[str, _Binary] = {
    **dict.fromkeys(ADDS | BIAS_ADDS, _add),
    "Sub": _subtract,
    "Mul": _multiply,
    **dict.fromkeys(QUOTIENTS, _divide),
    **dict.fromkeys(ops("DivNoNan Xdivy"), _divide_or_nothing),
    "MulNoNan": _multiply_or_nothing,
    **dict.fromkeys(ops("FloorMod Mod TruncateMod"), _remainder),
    **dict.fromkeys(
        ops("FloorDiv TruncateDiv"), lambda x, y: ANY if _divide(x, y).is_finite else UNKNOWN
    ),
    "Pow": _power,
    "Maximum": _larger,
    "Minimum": _smaller,
    "SquaredDifference": lambda x, y: _UNARY["Square"](_subtract(x, y)),
    "Atan2": lambda x, y: ZERO if x.is_zero and y.low >= 0 else Range(-math.pi, math.pi),
    "Xlogy": lambda x, y: ZERO if x.is_zero else ANY if y.low > 0 else UNKNOWN,
    "Less": _less,
    "Greater": lambda x, y: _less(y, x),
    "LessEqual": _less_or_equal,
    "GreaterEqual": lambda x, y: _less_or_equal(y, x),
    "Equal": _equal,
    "NotEqual": lambda x, y: _subtract(ONE, _equal(x, y)),
    **dict.fromkeys(ops("LogicalAnd LogicalOr ApproximateEqual"), lambda x, y: _TRUTH),
}
_ANY_OPERANDS = ops("Less Greater LessEqual GreaterEqual Equal NotEqual MulNoNan")
_MANY = ops("AddN AccumulateNV2")
_ROUNDS = ops("""
    FakeQuantWithMinMaxArgs FakeQuantWithMinMaxVars QuantizeAndDequantizeV2
    QuantizeAndDequantizeV3
    """)
