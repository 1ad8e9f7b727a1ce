"""gates: what is gate by gate becomes one kernel, and again gate by gate; gates are reordered."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from conftest import DATA, case
from converter_plugins.gates import Gates

from converter import Array, Checkpoint, PlanError, UsageError, Variable, open_checkpoint
from converter.names.gates import letter_of, read_order
from converter.testing import NAME, check_strategy

GATEWISE = DATA / "tf10_v2_gatewise_lstm"
NAMES = "input_gate,memory_cell,forget_gate,output_gate"
BACK = Gates("split", order=NAMES, pattern="LSTMcell/{gate}/{part}", bias_rows=True)


def checkpoint(values: Mapping[str, Any]) -> Checkpoint:
    return Checkpoint(Variable.from_array(n, np.asarray(v, "f4")) for n, v in values.items())


def apply(strategy: Gates, source: Checkpoint) -> Checkpoint:
    return source.derive(strategy.apply(source))


def values(strategy: Gates, source: Checkpoint) -> dict[str, Any]:
    return {n: v.read().tolist() for n, v in apply(strategy, source).items()}


def error(strategy: Gates, source: Checkpoint) -> str:
    with pytest.raises((PlanError, UsageError)) as caught:
        list(strategy.apply(source))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def cell(gates: str = "ijfo", scope: str = "m/", *, rows: int = 1) -> dict[str, Any]:
    """Return one unit of an LSTM, with a number of its own for each gate."""
    found: dict[str, Any] = {}
    for number, gate in enumerate(gates, 1):
        found[f"{scope}{gate}/wx"] = [[number]] * rows
        found[f"{scope}{gate}/wt"] = [[-number]]
        found[f"{scope}{gate}/bi"] = [number * 10]
    return found


class TestReal:
    """A hand-written LSTM of TensorFlow 1.0, whose code adds nothing to the forget gate."""

    @pytest.mark.parametrize(("forget_bias", "added"), [(None, 0.0), (1.0, 1.0), (0.5, 0.5)])
    def test_the_fused_cell_of_tensorflow_gives_the_recorded_outputs(
        self, forget_bias: float | None, added: float
    ) -> None:
        source = open_checkpoint(case(GATEWISE.name).path)
        result = apply(Gates("join", forget_bias=forget_bias), source)
        recorded = np.load(GATEWISE / "io.npz")
        record = json.loads((GATEWISE / "case.json").read_text())["rnn"][0]["check"]
        outputs, c, h = run_lstm(
            result["LSTMcell/kernel"].read(),
            result["LSTMcell/bias"].read(),
            recorded[record["x"]],
            (recorded[record["c0"]], recorded[record["h0"]]),
            forget_bias=added,
        )
        assert np.abs(outputs - recorded[record["out"]]).max() < 1e-5
        assert np.abs(c - recorded[record["c"]]).max() < 1e-5
        assert np.abs(h - recorded[record["h"]]).max() < 1e-5

    def test_it_comes_back_byte_for_byte(self) -> None:
        source = open_checkpoint(case(GATEWISE.name).path)
        there = apply(Gates("join"), source)
        assert len(there) == len(source) - 30
        back = apply(BACK, there)
        assert set(back) == set(source)
        for name, variable in back.items():
            assert variable.shape == source[name].shape
            assert variable.read().tobytes() == source[name].read().tobytes()

    def test_what_no_checkpoint_tells_is_said(self) -> None:
        source = open_checkpoint(case(GATEWISE.name).path)
        forget, rows = Gates("join").notes(source)
        assert forget.startswith("the biases of forget gates keep their values: what code adds")
        assert rows == (
            "biases such as LSTMcell/input_gate/bi are [1, units]; split makes them so again with "
            "--gates-bias-rows"
        )
        assert list(Gates("join", forget_bias=1).notes(source)) == [rows]


def run_lstm(
    kernel: Array, bias: Array, x: Array, state: tuple[Array, Array], *, forget_bias: float
) -> tuple[Array, Array, Array]:
    """Run the LSTM cell of TensorFlow 1 over x `[batch, time, inputs]`."""

    def sigmoid(value: Array) -> Array:
        return np.asarray(1 / (1 + np.exp(-value)))

    c, h = state
    outputs = []
    for step in range(x.shape[1]):
        gates = np.concatenate([x[:, step], h], 1) @ kernel + bias
        i, j, f, o = np.split(gates, 4, 1)
        c = c * sigmoid(f + forget_bias) + sigmoid(i) * np.tanh(j)
        h = np.tanh(c) * sigmoid(o)
        outputs.append(h)
    return np.stack(outputs, 1), c, h


class TestJoin:
    def test_columns_are_in_the_order_and_rows_are_inputs_then_state(self) -> None:
        source = checkpoint({**cell(rows=2), "w": 0})
        assert values(Gates("join", order="ifco"), source) == {
            "m/kernel": [[1, 3, 2, 4], [1, 3, 2, 4], [-1, -3, -2, -4]],
            "m/bias": [10, 30, 20, 40],
            "w": 0,
        }

    def test_any_pattern_can_be_given(self) -> None:
        names = {"enc/W_i": [[1]], "enc/U_i": [[2]], "enc/b_i": [3], "enc/W_f": [[4]]}
        source = checkpoint({**names, "enc/U_f": [[5]], "enc/b_f": [6], "enc/W_x": [[7]]})
        parts = {"W+U": "kernel", "b": "bias"}
        strategy = Gates("join", order="fi", pattern="enc/{part}_{gate}", parts=parts)
        assert values(strategy, source) == {
            "enc/kernel": [[4, 1], [5, 2]],
            "enc/bias": [6, 3],
            "enc/W_x": [[7]],
        }

    def test_gates_of_any_name_are_put_in_order_by_their_names(self) -> None:
        source = checkpoint({"m/alpha/w": [[1]], "m/beta/w": [[2]]})
        strategy = Gates("join", order="beta,alpha", parts={"w": "kernel"})
        assert values(strategy, source) == {"m/kernel": [[2, 1]]}

    def test_cells_are_told_by_their_scopes(self) -> None:
        source = checkpoint({**cell(scope=""), **cell(scope="a/b/")})
        assert list(values(Gates("join"), source)) == ["kernel", "bias", "a/b/kernel", "a/b/bias"]
        names = list(values(Gates("join", only=("a/*",)), source))
        assert names == [*cell(scope=""), "a/b/kernel", "a/b/bias"]
        source = checkpoint({"i/wx": [[1]]})
        assert error(Gates("join"), source).startswith("the cell: of its gates (i) none is 'j'")

    def test_slots_and_averages_are_joined_alike(self) -> None:
        found = cell()
        for name in list(found):
            for number, slot in enumerate(("Adam", "ExponentialMovingAverage"), 1):
                found[f"{name}/{slot}"] = np.array(found[name]) + 100 * number
        result = values(Gates("join", forget_bias=1), checkpoint(found))
        assert result["m/kernel/Adam"] == [[101, 102, 103, 104], [99, 98, 97, 96]]
        # Of the averages, too, and of no slot, the forget bias is taken off.
        assert result["m/bias"] == [10, 20, 29, 40]
        assert result["m/bias/Adam"] == [110, 120, 130, 140]
        assert result["m/bias/ExponentialMovingAverage"] == [210, 220, 229, 240]

    def test_a_slot_that_some_lack_is_refused(self) -> None:
        source = checkpoint({**cell(), "m/i/wx/Adam": [[1]]})
        assert error(Gates("join"), source) == (
            "m/j/wx: it has no slot such as m/i/wx/Adam, with which that would be joined; drop "
            "these slots before"
        )

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            (
                {"m/f/wt": None},
                "m: m/f/wt is missing, and m/i/wx is there; rename it, or give other --gates-parts",
            ),
            (
                {"m/f/wx": [[1, 2]]},
                "m/kernel: its gates have several numbers of units: m/i/wx [1, 1], m/j/wx [1, 1], "
                "m/f/wx [1, 2], m/o/wx [1, 1]",
            ),
            (
                {f"m/f/{part}": None for part in ("wx", "wt", "bi")},
                "m: of its gates (i, j, o) none is 'f'; give the order by their names: "
                "--gates-order a,b,c,d",
            ),
            (
                {"m/c/wx": [[1]]},
                "m: of its gates (i, j, f, o, c) both j and c can be 'g'; give the order by their "
                "names: --gates-order a,b,c,d",
            ),
        ],
    )
    def test_cells_that_are_not_whole_are_refused(self, change: dict[str, Any], said: str) -> None:
        found = {n: v for n, v in {**cell(), **change}.items() if v is not None}
        order = "igfo" if "m/c/wx" in change else "ijfo"
        assert error(Gates("join", order=order), checkpoint(found)) == said

    def test_nothing_to_join_is_refused(self) -> None:
        assert error(Gates("join"), checkpoint({"a/b": 1})) == (
            "gates: no variables are called as */{gate}/{part} says, with the parts wx+wt, bi; "
            "give another --gates-pattern, --gates-parts or --gates-only"
        )

    def test_kernels_are_read_in_parts(self) -> None:
        rng = np.random.default_rng(0)
        pieces = {
            f"m/{g}/{p}": rng.random((n, 3)) for g in "ijfo" for p, n in (("wx", 5), ("wt", 3))
        }
        kernel = apply(Gates("join"), checkpoint(pieces))["m/kernel"]
        whole = kernel.read()
        assert whole.shape == (8, 12)
        assert np.array_equal(kernel.read((slice(4, 6), slice(2, 10))), whole[4:6, 2:10])
        assert kernel.read((slice(4, 4), slice(0, 12))).shape == (0, 12)


class TestSplit:
    def test_it_undoes_a_join(self) -> None:
        source = checkpoint(cell(rows=2))
        there = apply(Gates("join", order="ifco", forget_bias=0.5), source)
        for only, pattern in ((("m",), "*/{gate}/{part}"), ((), "m/{gate}/{part}")):
            back = Gates("split", order="i,f,j,o", pattern=pattern, only=only, forget_bias=0.5)
            assert values(back, there) == {n: v.read().tolist() for n, v in source.items()}

    def test_slots_and_averages_are_split_alike(self) -> None:
        found = {"m/bias": [1, 2]}
        for number, slot in enumerate(("Adam", "ExponentialMovingAverage"), 1):
            found[f"m/bias/{slot}"] = [10 * number, 20 * number]
        strategy = Gates(
            "split", order="if", pattern="m/{gate}/{part}", forget_bias=0.5, bias_rows=True
        )
        assert values(strategy, checkpoint(found)) == {
            "m/i/bi": [[1]],
            "m/f/bi": [[2.5]],
            "m/i/bi/Adam": [[10]],
            "m/f/bi/Adam": [[20]],
            "m/i/bi/ExponentialMovingAverage": [[20]],
            "m/f/bi/ExponentialMovingAverage": [[40.5]],
        }

    def test_shapes_that_cannot_be_are_refused(self) -> None:
        strategy = Gates("split", pattern="m/{gate}/{part}")
        source = checkpoint({"m/kernel": np.zeros((2, 10))})
        assert error(strategy, source) == (
            "m/kernel: it is [2, 10], and cannot be of 4 gates with 2 parts of rows; give another "
            "--gates-order or fewer parts"
        )
        for name, shape in (("kernel", [2, 8]), ("kernel", [8]), ("bias", [1, 4]), ("bias", [])):
            source = checkpoint({f"m/{name}": np.zeros(shape)})
            for one in (strategy, replace(strategy, forget_bias=1.0)):
                assert f"it is {shape}, and cannot be of 4 gates" in error(one, source)

    def test_it_has_to_be_said_of_what(self) -> None:
        with pytest.raises(UsageError, match=r"^split has to know the cells: give their scopes"):
            Gates("split")
        source = checkpoint({"n/kernel": np.zeros((2, 4))})
        assert error(Gates("split", pattern="m/{gate}/{part}"), source).startswith(
            "gates: no cell that is chosen has the variables kernel, bias; give another"
        )


class TestReorder:
    def test_kernels_that_names_tell_are_reordered_with_their_slots(self) -> None:
        names = {"r/lstm_cell/kernel": [[1, 2, 3, 4]] * 2, "r/lstm_cell/bias": [1, 2, 3, 4]}
        slots = {f"{name}/Adam": np.array(value) * 10 for name, value in names.items()}
        source = checkpoint({**names, **slots, "r/lstm_cell/w_f_diag": [7], "d/kernel": [[1, 2]]})
        assert values(Gates("reorder", order="ifco", forget_bias=1), source) == {
            "r/lstm_cell/kernel": [[1, 3, 2, 4]] * 2,
            "r/lstm_cell/bias": [1, 4, 2, 4],
            "r/lstm_cell/kernel/Adam": [[10, 30, 20, 40]] * 2,
            "r/lstm_cell/bias/Adam": [10, 30, 20, 40],
            "r/lstm_cell/w_f_diag": [7],
            "d/kernel": [[1, 2]],
        }

    def test_averages_get_the_forget_bias_and_no_slot(self) -> None:
        names = {"lstm_cell/kernel": [[1, 2, 3, 4]] * 2, "lstm_cell/bias": [1, 2, 3, 4]}
        average = "lstm_cell/bias/ExponentialMovingAverage"
        source = checkpoint({**names, average: [5, 6, 7, 8], f"{average}/biased": [9, 10, 11, 12]})
        result = values(Gates("reorder", order="fijo", forget_bias=1), source)
        assert result[average] == [8, 5, 6, 8]
        assert result[f"{average}/biased"] == [11, 9, 10, 12]

    def test_what_no_checkpoint_tells_is_said(self) -> None:
        source = checkpoint({"lstm_cell/kernel": [[1, 2, 3, 4]] * 2})
        (note,) = Gates("reorder").notes(source)
        assert note.startswith("biases keep their values: what code adds to the forget gate")
        assert list(Gates("reorder", forget_bias=1).notes(source)) == []
        assert list(Gates("reorder", order="ru").notes(source)) == []

    def test_gates_of_any_name_are_reordered_by_their_names(self) -> None:
        strategy = Gates("reorder", order="one,two", old="two,one", only=("w",))
        assert values(strategy, checkpoint({"w": [1, 2]})) == {"w": [2, 1]}

    def test_keras_is_known_too(self) -> None:
        leaves = {
            "kernel": [[1, 2, 3, 4]],
            "recurrent_kernel": [[1, 2, 3, 4]],
            "bias": [1, 2, 3, 4],
        }
        source = checkpoint({f"lstm/{leaf}": value for leaf, value in leaves.items()})
        moved = values(Gates("reorder"), source)
        assert moved == {
            "lstm/kernel": [[1, 3, 2, 4]],
            "lstm/recurrent_kernel": [[1, 3, 2, 4]],
            "lstm/bias": [1, 3, 2, 4],
        }

    def test_others_are_named_with_their_order(self) -> None:
        source = checkpoint({"a/w": [[1, 2, 3, 4, 5, 6]], "b": [1, 2]})
        strategy = Gates("reorder", order="zrh", old="rzn", only=("a/*",))
        assert values(strategy, source) == {"a/w": [[3, 4, 1, 2, 5, 6]], "b": [1, 2]}
        with pytest.raises(UsageError, match=r"say of which: --gates-only"):
            list(Gates("reorder", old="rzh").apply(source))

    def test_what_has_other_gates_stays(self) -> None:
        source = checkpoint({"gru_cell/gates/kernel": [[1, 2]] * 2})
        assert error(Gates("reorder"), source) == (
            "gates: no variable is known to hold the gates i, j, f, o; say which ones do "
            "(--gates-only), and in which order (--gates-old)"
        )

    def test_axes_that_gates_cannot_share_are_refused(self) -> None:
        source = checkpoint({"a": [1, 2, 3]})
        assert error(Gates("reorder", order="fi", old="if", only=("a",)), source) == (
            "a: its last axis is 3, which 2 gates cannot share; choose others with --gates-only"
        )


class TestOptions:
    @pytest.mark.parametrize(
        ("name", "letter"),
        [
            ("input_gate", "i"),
            ("Forget", "f"),
            ("memory_cell", "j"),
            ("new_input", "j"),
            ("out", "o"),
            ("z", "u"),
            ("reset_gate", "r"),
            ("attention", None),
        ],
    )
    def test_gates_are_known_by_their_names(self, name: str, letter: str | None) -> None:
        assert letter_of(name) == letter

    @pytest.mark.parametrize("order", ["", "iifo", "ijf?", "i,,f", "cg", "input,in"])
    def test_what_is_no_order_is_refused(self, order: str) -> None:
        with pytest.raises(UsageError, match=r"is no order of gates"):
            read_order(order)

    @pytest.mark.parametrize(
        ("options", "said"),
        [
            ({"pattern": "*/{gate}"}, "'*/{gate}' is no pattern of gates: it needs one {part}"),
            (
                {"pattern": "a*/{gate}/{part}"},
                "'a*/{gate}/{part}' is no pattern of gates: one `*` can stand first",
            ),
            ({"parts": {"a+": "x"}}, "parts must be such as 'wx+wt=kernel'"),
            ({"forget_bias": float("nan")}, "forget_bias must be finite, got nan"),
            (
                {"gates": "split", "only": ("a",), "parts": {"a+b+c": "x"}},
                "the rows of a kernel are split into two parts at most",
            ),
        ],
    )
    def test_what_cannot_be_meant_is_refused(self, options: dict[str, Any], said: str) -> None:
        with pytest.raises(UsageError) as caught:
            Gates(**{"gates": "join", **options})
        assert str(caught.value) == said

    def test_the_contract_is_kept(self) -> None:
        scope, _, leaf = NAME.partition("/")
        check_strategy(Gates("reorder", order="fi", old="if", only=(NAME,)))
        pattern = f"{scope}/{{gate}}/{{part}}"
        check_strategy(Gates("split", order="fi", pattern=pattern, parts={"w": leaf}))
        check_strategy(Gates("join", order="c", pattern="s{gate}ope/{part}", parts={leaf: "k"}))
