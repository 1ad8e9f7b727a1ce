"""What layers become in the conventions of Keras, PyTorch and TensorFlow 1."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from conftest import case
from converter_plugins.drop import Drop
from converter_plugins.ema import Ema
from converter_plugins.keras import Keras
from converter_plugins.names import Names
from converter_plugins.tf1 import Tf1
from converter_plugins.torch import Torch
from structure_maker import Model

from converter import (
    Checkpoint,
    PlanError,
    Strategy,
    UsageError,
    Variable,
    convert,
    open_checkpoint,
)
from converter.conventions.stacks import Place, place_of
from converter.conventions.views import (
    Taken,
    View,
    Whole,
    joined,
    part,
    reshaped,
    split,
    transposed,
)
from converter.formats.messages import message
from converter.plan import Plan, make_plan
from converter.testing import check_strategy
from converter.variable import Array, regions

X, U = 3, 2
"""Inputs and units of the cells."""


def checkpoint_of(arrays: Mapping[str, Array], meta: Path | None = None) -> Checkpoint:
    variables = []
    for name, values in arrays.items():
        variable = Variable.from_array(name, values)
        variables.append(variable.derive(variable.load))
    named = [Variable(v.name, v.dtype, v.shape, v.load, (v.name,)) for v in variables]
    return Checkpoint(named, path=Path("made"), meta=meta)


def drawn(shapes: Mapping[str, Sequence[int]], seed: int = 0) -> dict[str, Array]:
    generator = np.random.default_rng(seed)
    return {n: generator.standard_normal(tuple(s)).astype("f4") for n, s in shapes.items()}


def result_of(arrays: Mapping[str, Array], strategy: Strategy) -> dict[str, Array]:
    source = checkpoint_of(arrays)
    return {v.name: v.read() for v in strategy.apply(source)}


def plan_of(arrays: Mapping[str, Array], *strategies: Strategy) -> Plan:
    return make_plan(checkpoint_of(arrays), strategies)


LSTM = drawn({"rnn/lstm_cell/kernel": (X + U, 4 * U), "rnn/lstm_cell/bias": (4 * U,)})


# --- views ---


def check_view(view: View, wanted: Array, values: Array) -> None:
    made = view.make(Taken({"v": Variable.from_array("v", values)}.get))
    assert made is not None
    assert view.shape == made.shape == wanted.shape
    assert np.array_equal(made.read(), wanted)
    for region in (*regions(made.shape, 1), *regions(made.shape, 5)):
        assert np.array_equal(made.read(region), wanted[region])


VALUES = np.arange(2 * 3 * 4 * 6, dtype="f4").reshape(2, 3, 4, 6)
WHOLE = Whole("v", VALUES.shape)


@pytest.mark.parametrize(
    ("view", "wanted"),
    [
        (part(WHOLE, -1, 2, 5), VALUES[..., 2:5]),
        (transposed(WHOLE), VALUES.transpose()),
        (transposed(WHOLE, (3, 2, 0, 1)), VALUES.transpose(3, 2, 0, 1)),
        (joined(split(WHOLE, 3, 3)[::-1], 3), VALUES[..., [4, 5, 2, 3, 0, 1]]),
        (reshaped(WHOLE, (6, 24)), VALUES.reshape(6, 24)),
        (reshaped(WHOLE, (144,)), VALUES.reshape(144)),
        (
            reshaped(transposed(WHOLE, (2, 3, 0, 1)), (24, 1, 2, 3)),
            VALUES.transpose(2, 3, 0, 1).reshape(24, 1, 2, 3),
        ),
    ],
)
def test_views_give_every_region_of_what_numpy_gives(view: View, wanted: Array) -> None:
    check_view(view, wanted, VALUES)


def test_blocks_that_lie_together_are_read_at_once() -> None:
    assert joined(split(WHOLE, 3, 3), 3) is WHOLE
    i, j, f = split(WHOLE, 3, 3)
    assert joined([f, i, j], 3).shape == VALUES.shape
    loaded: list[object] = []
    source = Variable.from_array("v", VALUES)
    counting = source.derive(lambda region: (loaded.append(region), source.load(region))[1])  # type: ignore[func-returns-value]
    made = joined([f, i, j], 3).make(Taken({"v": counting}.get))
    assert made is not None
    assert np.array_equal(made.read(), VALUES[..., [4, 5, 0, 1, 2, 3]])
    assert len(loaded) == 2


# --- recurrent cells ---


def test_an_lstm_becomes_that_of_keras() -> None:
    found = result_of(LSTM, Keras())
    kernel, bias = LSTM["rnn/lstm_cell/kernel"], LSTM["rnn/lstm_cell/bias"]
    order = [0, 1, 4, 5, 2, 3, 6, 7]
    assert list(found) == [f"rnn/lstm_cell/{n}" for n in ("kernel", "recurrent_kernel", "bias")]
    assert np.array_equal(found["rnn/lstm_cell/kernel"], kernel[:X, order])
    assert np.array_equal(found["rnn/lstm_cell/recurrent_kernel"], kernel[X:, order])
    shift = np.array([0, 0, 1, 1, 0, 0, 0, 0], "f4")
    assert np.array_equal(found["rnn/lstm_cell/bias"], bias[order] + shift)


def test_an_lstm_becomes_that_of_pytorch() -> None:
    found = result_of(LSTM, Torch(forget_bias={"*lstm_cell/kernel": 0.25}))
    kernel, bias = LSTM["rnn/lstm_cell/kernel"], LSTM["rnn/lstm_cell/bias"]
    order = [0, 1, 4, 5, 2, 3, 6, 7]
    start = "rnn.lstm_cell."
    assert {name.removeprefix(start) for name in found} == {
        *("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
    }
    assert np.array_equal(found[f"{start}weight_ih_l0"], kernel[:X, order].T)
    assert np.array_equal(found[f"{start}weight_hh_l0"], kernel[X:, order].T)
    shift = np.array([0, 0, 0.25, 0.25, 0, 0, 0, 0], "f4")
    assert np.array_equal(found[f"{start}bias_ih_l0"], bias[order] + shift)
    assert not found[f"{start}bias_hh_l0"].any()


NAMES = {
    "BasicLSTMCell/Linear/{Matrix,Bias}": "lstm",
    "LSTMCell/{W_0,B}": "lstm",
    "LSTMBlockCell/{W,b}": "lstm",
    "LSTMBlockFusedCell/{W_0,B}": "lstm",
    "basic_lstm_cell/{weights,biases}": "lstm",
    "lstm_cell_3/{kernel,bias}": "lstm",
    "lstm_block_wrapper/{kernel,bias}": "lstm",
    "lstm_fused_cell/{kernel,bias}": "lstm",
    "layer_norm_basic_lstm_cell/{kernel,bias}": "lstm",
    "BasicRNNCell/Linear/{Matrix,Bias}": "rnn",
    "basic_rnn_cell/{kernel,bias}": "rnn",
}


def spelt(pattern: str) -> list[str]:
    scope, _, leaves = pattern.rpartition("/")
    return [f"a/{scope}/{leaf}" for leaf in leaves.strip("{}").split(",")]


@pytest.mark.parametrize(("pattern", "kind"), NAMES.items())
def test_cells_are_known_by_the_names_of_every_version(pattern: str, kind: str) -> None:
    count = {"lstm": 4, "rnn": 1}[kind]
    arrays = drawn(dict(zip(spelt(pattern), [(X + U, count * U), (count * U,)], strict=True)))
    scope = "a/" + pattern.split("/")[0]
    assert set(result_of(arrays, Keras())) == {
        f"{scope}/{leaf}" for leaf in ("kernel", "recurrent_kernel", "bias")
    }


@pytest.mark.parametrize(
    "pattern",
    [p for p in NAMES if not p.endswith("{weights,biases}")],
)
def test_values_and_names_come_back_from_keras(pattern: str) -> None:
    count = 1 if "rnn" in pattern.lower() else 4
    arrays = drawn(dict(zip(spelt(pattern), [(X + U, count * U), (count * U,)], strict=True)))
    none = {} if count == 1 else {"*": 0.0}
    there = result_of(arrays, Keras(forget_bias=none))
    back = result_of(there, Tf1(forget_bias=none))
    assert {n: v.tobytes() for n, v in back.items()} == {n: v.tobytes() for n, v in arrays.items()}


def test_the_forget_bias_is_taken_out_again() -> None:
    back = result_of(result_of(LSTM, Keras()), Tf1())
    assert np.allclose(back["rnn/lstm_cell/bias"], LSTM["rnn/lstm_cell/bias"], atol=1e-6)
    plan = plan_of(result_of(LSTM, Keras()), Tf1())
    assert "a forget bias of 1, the default" in plan.notes[0]


GRU = {
    "gru_cell/gates/kernel": (X + U, 2 * U),
    "gru_cell/gates/bias": (2 * U,),
    "gru_cell/candidate/kernel": (X + U, U),
    "gru_cell/candidate/bias": (U,),
}
BLOCK = {
    "GRUBlockCell/w_ru": (X + U, 2 * U),
    "GRUBlockCell/b_ru": (2 * U,),
    "GRUBlockCell/w_c": (X + U, U),
    "GRUBlockCell/b_c": (U,),
}
CUDNN_GRU = {
    "cudnn_compatible_gru_cell/gates/kernel": (X + U, 2 * U),
    "cudnn_compatible_gru_cell/gates/bias": (2 * U,),
    "cudnn_compatible_gru_cell/candidate/input_projection/kernel": (X, U),
    "cudnn_compatible_gru_cell/candidate/input_projection/bias": (U,),
    "cudnn_compatible_gru_cell/candidate/hidden_projection/kernel": (U, U),
    "cudnn_compatible_gru_cell/candidate/hidden_projection/bias": (U,),
}


@pytest.mark.parametrize(
    ("shapes", "bias"), [(GRU, (3 * U,)), (BLOCK, (3 * U,)), (CUDNN_GRU, (2, 3 * U))]
)
def test_a_gru_goes_to_keras_and_back(
    shapes: dict[str, tuple[int, ...]], bias: tuple[int, ...]
) -> None:
    arrays = drawn({f"a/{name}": shape for name, shape in shapes.items()})
    there = result_of(arrays, Keras())
    assert next(v.shape for n, v in there.items() if n.endswith("/bias")) == bias
    back = result_of(there, Tf1())
    assert {n: v.tobytes() for n, v in back.items()} == {n: v.tobytes() for n, v in arrays.items()}


def test_a_gru_that_resets_before_the_product_is_none_of_pytorch() -> None:
    with pytest.raises(PlanError, match=r"^gru_cell: it resets its state before the product"):
        plan_of(drawn(GRU), Torch())
    keras: dict[str, tuple[int, ...]] = {
        "gru/kernel": (X, 3 * U),
        "gru/recurrent_kernel": (U, 3 * U),
        "gru/bias": (3 * U,),
    }
    with pytest.raises(PlanError, match=r"^gru: it resets its state before the product"):
        plan_of(drawn(keras), Torch())
    del keras["gru/bias"]
    with pytest.raises(PlanError, match=r"^gru: without a bias nothing tells .*=gru_reset_after"):
        plan_of(drawn(keras), Torch())
    plan = plan_of(drawn(keras), Torch(layer={"gru/kernel": "gru_reset_after"}))
    assert plan.notes == ("torch: gru: nn.GRU(3, 2, bias=False)",)


def test_shards_of_a_kernel_are_joined() -> None:
    kernel = LSTM["rnn/lstm_cell/kernel"]
    shards = {"RNN/LSTMCell/W_0": kernel[:3], "RNN/LSTMCell/W_1": kernel[3:]}
    arrays = {**shards, "RNN/LSTMCell/B": LSTM["rnn/lstm_cell/bias"]}
    found = result_of(arrays, Keras())
    wanted = result_of(LSTM, Keras())
    assert [v.tobytes() for v in found.values()] == [v.tobytes() for v in wanted.values()]


def test_a_kernel_that_is_said_to_be_that_of_an_lstm_is() -> None:
    arrays = {"own/kernel": LSTM["rnn/lstm_cell/kernel"], "own/bias": LSTM["rnn/lstm_cell/bias"]}
    found = result_of(arrays, Torch(layer={"own/kernel": "lstm"}))
    wanted = result_of(LSTM, Torch(forget_bias={"*": 0.0}))
    assert [v.tobytes() for v in found.values()] == [v.tobytes() for v in wanted.values()]


def test_an_lstm_that_was_written_gate_by_gate() -> None:
    shapes = {"wx": (X, U), "wt": (U, U), "bi": (1, U)}
    gates = ("input_gate", "forget_gate", "memory_cell", "output_gate")
    arrays = drawn({f"own/{g}/{leaf}": s for g in gates for leaf, s in shapes.items()})
    found = result_of(arrays, Keras())
    for name, leaf in (("kernel", "wx"), ("recurrent_kernel", "wt"), ("bias", "bi")):
        wanted = np.concatenate([arrays[f"own/{g}/{leaf}"] for g in gates], 1)
        assert np.array_equal(found[f"own/{name}"].reshape(wanted.shape), wanted)
    arrays["own/input_gate/wx"] = arrays["own/input_gate/wx"][:1]
    with pytest.raises(PlanError, match="nothing tells which layer"):
        plan_of(arrays, Keras())


REFUSED = {
    "lstm_cell/w_f_diag": "its gates look at the state of the cell",
    "lstm_cell/projection/bias": "is no part of such a cell",
}


@pytest.mark.parametrize(("name", "reason"), REFUSED.items())
def test_cells_without_a_counterpart_are_refused_with_the_reason(name: str, reason: str) -> None:
    arrays = drawn({"lstm_cell/kernel": (X + U, 4 * U), "lstm_cell/bias": (4 * U,), name: (U,)})
    for strategy in (Keras(), Torch()):
        with pytest.raises(PlanError, match=f"^lstm_cell: .*{reason}.* more variable"):
            plan_of(arrays, strategy)
        kept = type(strategy)(rest="keep")
        plan = plan_of(arrays, kept)
        assert [v.shape for v in plan.variables] == [v.shape for v in arrays.values()]
        assert any(reason in note and note.endswith("kept as it is") for note in plan.notes)


@pytest.mark.parametrize(
    ("scope", "reason"),
    [
        ("coupled_input_forget_gate_lstm_cell", "its input gate is one minus its forget gate"),
        ("ugrnn_cell", "no other framework has such a cell"),
        ("my_own_lstm_cell", "no other framework has such a cell"),
    ],
)
def test_an_unknown_cell_is_no_dense_layer(scope: str, reason: str) -> None:
    arrays = drawn({f"{scope}/kernel": (4, 6), f"{scope}/bias": (6,)})
    with pytest.raises(PlanError, match=f"^{scope}: {reason}"):
        plan_of(arrays, Keras())


@pytest.mark.parametrize("scope", ["nas_rnn", "NASCell", "indy_lstm_cell"])
def test_a_cell_that_nobody_else_has_is_refused_under_each_of_its_names(scope: str) -> None:
    arrays = drawn({f"rnn/{scope}/weights": (X, 8 * U), f"rnn/{scope}/recurrent_weights": (U, 16)})
    with pytest.raises(PlanError, match=f"^rnn/{scope}: no other framework has such a cell"):
        plan_of(arrays, Torch())


def test_normalised_gates_are_refused() -> None:
    scope = "layer_norm_basic_lstm_cell"
    gates = ("input", "transform", "forget", "output", "state")
    shapes: dict[str, tuple[int, ...]] = {f"{scope}/{g}/gamma": (U,) for g in gates}
    shapes |= {f"{scope}/{g}/beta": (U,) for g in gates}
    shapes[f"{scope}/kernel"] = (X + U, 4 * U)
    with pytest.raises(PlanError, match="normalises each gate over its units"):
        plan_of(drawn(shapes), Torch())


def test_a_projected_lstm_goes_to_pytorch_only() -> None:
    arrays = drawn(
        {
            "lstm_cell/kernel": (X + 1, 4 * U),
            "lstm_cell/bias": (4 * U,),
            "lstm_cell/projection/kernel": (U, 1),
        }
    )
    found = result_of(arrays, Torch())
    assert np.array_equal(found["lstm_cell.weight_hr_l0"], arrays["lstm_cell/projection/kernel"].T)
    assert found["lstm_cell.weight_hh_l0"].shape == (4 * U, 1)
    with pytest.raises(PlanError, match="a Keras LSTM has no projection"):
        plan_of(arrays, Keras())


def test_cudnn_layers_of_keras_hold_their_blocks_turned_around() -> None:
    # The layout of hdf5_format.py in TensorFlow 1.15, written out.
    arrays = drawn({"l/kernel": (X, 4 * U), "l/recurrent_kernel": (U, 4 * U), "l/bias": (8 * U,)})
    found = result_of(arrays, Keras())
    blocks = [b.T.reshape(b.shape, order="F") for b in np.hsplit(arrays["l/kernel"], 4)]
    assert np.array_equal(found["l/kernel"], np.hstack(blocks))
    turned = [b.T for b in np.hsplit(arrays["l/recurrent_kernel"], 4)]
    assert np.array_equal(found["l/recurrent_kernel"], np.hstack(turned))
    assert np.array_equal(found["l/bias"], arrays["l/bias"][: 4 * U] + arrays["l/bias"][4 * U :])


def test_the_copy_that_cudnn_keeps_is_left_out_with_a_note() -> None:
    scope = "cudnn_lstm/rnn/multi_rnn_cell/cell_0/cudnn_compatible_lstm_cell"
    arrays = drawn(
        {
            f"{scope}/kernel": (X + U, 4 * U),
            f"{scope}/bias": (4 * U,),
            "cudnn_lstm/opaque_kernel": (72,),
        }
    )
    plan = plan_of(arrays, Torch())
    assert {v.name.rpartition(".")[0] for v in plan.variables} == {"cudnn_lstm.rnn.multi_rnn_cell"}
    assert any("cudnn_lstm/opaque_kernel" in note for note in plan.notes)
    # Its code adds nothing to the forget gate.
    assert np.array_equal(
        plan.result["cudnn_lstm.rnn.multi_rnn_cell.bias_ih_l0"].read()[2:4],
        arrays[f"{scope}/bias"][4:6],
    )
    alone = {"cudnn_lstm/opaque_kernel": arrays["cudnn_lstm/opaque_kernel"]}
    with pytest.raises(PlanError, match="opaque_kernel"):
        plan_of(alone, Torch())


# --- stacks and directions ---


@pytest.mark.parametrize(
    ("scope", "place"),
    [
        ("rnn/lstm_cell", Place("rnn/lstm_cell")),
        ("rnn/multi_rnn_cell/cell_1/lstm_cell", Place("rnn/multi_rnn_cell", 1)),
        ("RNN/MultiRNNCell/Cell2/LSTMCell", Place("RNN/MultiRNNCell", 2)),
        ("bidirectional_rnn/bw/lstm_cell", Place("bidirectional_rnn", 0, True, True)),
        ("e/BiRNN/FW/GRUCell", Place("e/BiRNN", 0, False, True)),
        ("e/BiRNN_BW/LSTMCell", Place("e/BiRNN", 0, True, True)),
        ("bidirectional/backward_lstm/lstm_cell", Place("bidirectional", 0, True, True)),
        (
            "stack_bidirectional_rnn/cell_1/bidirectional_rnn/bw/lstm_cell",
            Place("stack_bidirectional_rnn", 1, True, True),
        ),
        (
            "bidirectional_rnn/bw/multi_rnn_cell/cell_1/lstm_cell",
            Place("bidirectional_rnn/bw/multi_rnn_cell", 1, True),
        ),
        ("cell_3/lstm_cell", Place("cell_3/lstm_cell")),
    ],
)
def test_where_a_cell_stands(scope: str, place: Place) -> None:
    assert place_of(scope) == place


def test_directions_in_a_scope_of_your_own_are_told_by_each_other() -> None:
    inner = {"": ["bw", "enc"], "enc": ["fw", "bw"], "own": ["forward_gru_1", "backward_gru_1"]}
    assert place_of("enc/bw/lstm_cell", inner) == Place("enc", 0, True, True)
    assert place_of("enc/bw/lstm_cell") == Place("enc/bw/lstm_cell")
    assert place_of("bw/rnn/lstm_cell", inner) == Place("bw/rnn/lstm_cell")
    assert place_of("own/backward_gru_1", inner) == Place("own", 0, True, True)
    plan = plan_of(stack(("enc/fw/lstm_cell", X, U), ("enc/bw/lstm_cell", X, U)), Torch())
    assert "torch: enc: nn.LSTM(3, 2, bidirectional=True)" in plan.notes


def test_directions_of_keras_in_1_4_are_told_by_their_numbers() -> None:
    inner = {"m/bidirectional_1": ["gru_2", "gru"], "bidirectional": ["lstm", "gru_1"]}
    inner["own"] = ["gru", "gru_1"]
    assert place_of("m/bidirectional_1/gru_2", inner) == Place("m/bidirectional_1", 0, True, True)
    assert place_of("m/bidirectional_1/gru", inner) == Place("m/bidirectional_1", 0, False, True)
    assert place_of("bidirectional/gru_1", inner) == Place("bidirectional/gru_1")
    assert place_of("own/gru_1", inner) == Place("own/gru_1")


@pytest.mark.parametrize(
    ("scope", "wrapper"),
    [
        ("multi_rnn_cell/cell_0/attention_cell_wrapper/gru_cell", "attention_cell_wrapper"),
        ("bidirectional_rnn/fw/input_projection_wrapper/gru_cell", "input_projection_wrapper"),
        ("bidirectional_rnn/fw/multi_rnn_cell/cell_0/own/gru_cell", "own"),
        ("own/bidirectional_rnn/fw/gru_cell", ""),
    ],
)
def test_which_scope_stands_between_a_stack_and_its_cell(scope: str, wrapper: str) -> None:
    assert place_of(scope).wrapper == wrapper


def stack(*layers: tuple[str, int, int]) -> dict[str, Array]:
    """Return LSTM cells: scope, inputs, units."""
    shapes: dict[str, tuple[int, ...]] = {}
    for scope, inputs, units in layers:
        shapes |= {f"{scope}/kernel": (inputs + units, 4 * units), f"{scope}/bias": (4 * units,)}
    return drawn(shapes)


def test_layers_and_directions_are_one_module_where_they_can_be() -> None:
    start = "stack_bidirectional_rnn"
    layers = [
        (f"{start}/cell_{n}/bidirectional_rnn/{way}/lstm_cell", size, U)
        for n, size in enumerate((X, 2 * U))
        for way in ("fw", "bw")
    ]
    plan = plan_of(stack(*layers), Torch())
    assert {v.name for v in plan.variables} == {
        f"{start}.{kind}_{side}_l{n}{way}"
        for kind in ("weight", "bias")
        for side in ("ih", "hh")
        for n in (0, 1)
        for way in ("", "_reverse")
    }
    note = f"torch: {start}: nn.LSTM(3, 2, num_layers=2, bidirectional=True)"
    assert note in plan.notes


def test_layers_of_other_sizes_are_modules_of_their_own() -> None:
    layers = [
        ("multi_rnn_cell/cell_0/lstm_cell", X, U),
        ("multi_rnn_cell/cell_1/lstm_cell", U, 3),
    ]
    plan = plan_of(stack(*layers), Torch())
    assert {v.name.rpartition(".")[0] for v in plan.variables} == {
        "multi_rnn_cell.cell_0.lstm_cell",
        "multi_rnn_cell.cell_1.lstm_cell",
    }
    assert any("the layers have different numbers of units" in note for note in plan.notes)


def test_directions_with_stacks_of_their_own_are_apart() -> None:
    layers = [
        (f"bidirectional_rnn/{way}/multi_rnn_cell/cell_{n}/lstm_cell", size, U)
        for way in ("fw", "bw")
        for n, size in enumerate((X, U))
    ]
    plan = plan_of(stack(*layers), Torch())
    roots = {v.name.rpartition(".")[0] for v in plan.variables}
    assert roots == {f"bidirectional_rnn.{way}.multi_rnn_cell" for way in ("fw", "bw")}
    assert not any("_reverse" in v.name for v in plan.variables)
    turned = [note for note in plan.notes if "from their ends" in note]
    assert len(turned) == 1
    assert "/bw/" in turned[0]


@pytest.mark.parametrize(
    ("cell", "wrapper"),
    [
        ("input_projection_wrapper/lstm_cell", "input_projection_wrapper/kernel"),
        ("lstm_cell", "input_projection_wrapper/weights"),
        ("LSTMCell", "InputProjectionWrapper/Linear/Matrix"),
    ],
)
def test_what_a_wrapper_gives_to_each_direction_is_its_own(cell: str, wrapper: str) -> None:
    ways = [f"bidirectional_rnn/{way}" for way in ("fw", "bw")]
    arrays = stack(*((f"{way}/{cell}", X, U) for way in ways))
    arrays |= drawn({f"{way}/{wrapper}": (4, X) for way in ways})
    plan = plan_of(arrays, Torch(layer={"*/Matrix": "dense"} if "Matrix" in wrapper else {}))
    assert not any("_reverse" in v.name for v in plan.variables)
    component = wrapper.partition("/")[0]
    assert any(note.endswith(f"{component} stands between them") for note in plan.notes)


def test_a_projection_makes_layers_of_another_kind() -> None:
    scope = "multi_rnn_cell/cell_{}/lstm_cell"
    arrays = stack((scope.format(0), X, U), (scope.format(1), U, U))
    arrays |= drawn({f"{scope.format(1)}/projection/kernel": (U, U)})
    # nn.LSTM wants fewer outputs than units.
    with pytest.raises(PlanError, match="its 2 units are projected to 2, and proj_size"):
        plan_of(arrays, Torch())
    arrays = {n: v for n, v in arrays.items() if "cell_1" not in n}
    arrays |= drawn(
        {
            f"{scope.format(1)}/kernel": (2 * U, 4 * 4),
            f"{scope.format(1)}/bias": (4 * 4,),
            f"{scope.format(1)}/projection/kernel": (4, U),
        }
    )
    arrays |= drawn(
        {
            f"{scope.format(0)}/kernel": (X + U, 4 * 4),
            f"{scope.format(0)}/bias": (4 * 4,),
            f"{scope.format(0)}/projection/kernel": (4, U),
        }
    )
    both = plan_of(arrays, Torch()).notes
    assert "torch: multi_rnn_cell: nn.LSTM(3, 4, num_layers=2, proj_size=2)" in both
    arrays |= stack((scope.format(0), X, 4))
    del arrays[f"{scope.format(0)}/projection/kernel"]
    notes = plan_of(arrays, Torch()).notes
    assert "torch: multi_rnn_cell.cell_0.lstm_cell: nn.LSTM(3, 4)" in notes


@pytest.mark.parametrize(
    ("start", "extra"),
    [
        ("dec/attention_wrapper", {}),
        ("rnn/attention_cell_wrapper", {}),
        ("own", {"own/AttnW_0": (1, 1, U, U)}),
    ],
)
def test_cells_between_whose_steps_an_attention_goes_are_cells_of_pytorch(
    start: str, extra: dict[str, tuple[int, ...]]
) -> None:
    scopes = [f"{start}/multi_rnn_cell/cell_{n}/lstm_cell" for n in (0, 1)]
    arrays = stack((scopes[0], X, U), (scopes[1], U, U)) | drawn(extra)
    plan = plan_of(arrays, Torch(rest="drop"))
    dotted = [scope.replace("/", ".") for scope in scopes]
    assert {v.name for v in plan.variables} == {
        f"{scope}.{kind}_{side}"
        for scope in dotted
        for kind in ("weight", "bias")
        for side in ("ih", "hh")
    }
    assert f"torch: {dotted[0]}: nn.LSTMCell(3, 2)" in plan.notes
    assert any("an attention goes between its steps" in note for note in plan.notes)
    arrays |= drawn({f"{scopes[1]}/projection/kernel": (U, U)})
    with pytest.raises(PlanError, match=r"nn\.LSTMCell has no projection"):
        plan_of(arrays, Torch())


def test_what_stands_beside_cells_in_a_stack_is_a_layer() -> None:
    scope = "multi_rnn_cell/cell_0/output_projection_wrapper"
    arrays = stack((f"{scope}/lstm_cell", X, U))
    arrays |= drawn({f"{scope}/kernel": (U, 5), f"{scope}/bias": (5,)})
    dotted = scope.replace("/", ".")
    assert result_of(arrays, Torch())[f"{dotted}.weight"].shape == (5, U)


@pytest.mark.parametrize(
    "leaves",
    [
        ("gates/kernel", "gates/bias", "candidate/kernel", "candidate/bias"),
        ("gates/weights", "gates/biases", "candidate/weights", "candidate/biases"),
        (
            "Gates/Linear/Matrix",
            "Gates/Linear/Bias",
            "Candidate/Linear/Matrix",
            "Candidate/Linear/Bias",
        ),
    ],
)
def test_a_gru_in_a_scope_that_is_called_after_none_is_told_by_its_variables(
    leaves: tuple[str, ...],
) -> None:
    shapes = [(X + U, 2 * U), (2 * U,), (X + U, U), (U,)]
    named = drawn({f"gru_cell/{leaf}": s for leaf, s in zip(leaves, shapes, strict=True)})
    own = {n.replace("gru_cell", "top/own"): v for n, v in named.items()}
    found, wanted = result_of(own, Keras()), result_of(named, Keras())
    assert {n: v.tobytes() for n, v in found.items()} == {
        n.replace("gru_cell", "top/own"): v.tobytes() for n, v in wanted.items()
    }
    # Of other shapes they are two layers.
    arrays = drawn({"a/gates/kernel": (5, 4), "a/candidate/kernel": (7, 4)})
    assert set(result_of(arrays, Torch())) == {"a.gates.weight", "a.candidate.weight"}


# --- what the graph says ---


def cell_graph(forget: float | None, activation: str = "Tanh", clip: float = 0.0) -> Model:
    """Make one step of an LSTM, as the code of a cell builds it."""
    m = Model()
    kernel, bias = (
        m.variable("lstm_cell/kernel", X + U, 4 * U),
        m.variable("lstm_cell/bias", 4 * U),
    )
    both = m.op("ConcatV2", m.input(1, X), m.input(1, U, name="h"), m.constant(1))
    gates = m.op("BiasAdd", m.op("MatMul", both, kernel), bias)
    m.op("Split", m.constant(1), gates, name="s", num_split=4)
    f = "s:2" if forget is None else m.op("Add", "s:2", m.constant(forget))
    kept = m.op("Mul", m.input(1, U, name="c"), m.op("Sigmoid", f))
    added = m.op("Mul", m.op("Sigmoid", "s"), m.op(activation, "s:1"))
    c = m.op("Add", kept, added)
    if clip:
        c = m.op("Minimum", c, m.constant(clip))
    m.op("Mul", m.op("Tanh", c), m.op("Sigmoid", "s:3"), name="out")
    return m


def with_graph(m: Model, directory: Path) -> Checkpoint:
    meta = message("MetaGraphDef")()
    meta.graph_def.CopyFrom(m.definition)
    (directory / "x.meta").write_bytes(meta.SerializeToString())
    return checkpoint_of(drawn(m.shapes), directory / "x.meta")


@pytest.mark.parametrize("forget", [None, 0.3, 1.0])
def test_the_graph_tells_the_forget_bias(forget: float | None, tmp_path: Path) -> None:
    source = with_graph(cell_graph(forget), tmp_path)
    plan = make_plan(source, [Keras()])
    wanted = source["lstm_cell/bias"].read()[4:6] + np.float32(forget or 0.0)
    assert np.array_equal(plan.result["lstm_cell/bias"].read()[2:4], wanted)
    assert plan.notes == ()


def test_a_name_that_changed_before_is_still_found_in_the_graph(tmp_path: Path) -> None:
    source = with_graph(cell_graph(0.3), tmp_path)
    renamed = source.derive(v.rename(f"a/{n}") for n, v in source.items())
    plan = make_plan(renamed, [Keras()])
    wanted = source["lstm_cell/bias"].read()[4:6] + np.float32(0.3)
    assert np.array_equal(plan.result["a/lstm_cell/bias"].read()[2:4], wanted)


def test_without_a_graph_the_default_is_taken_with_a_warning() -> None:
    plan = plan_of(LSTM, Torch())
    assert plan.notes[0].startswith(
        "torch: rnn/lstm_cell: no graph says which forget bias its code adds; 1 is taken"
    )
    assert plan_of(LSTM, Torch(forget_bias={"*": 1.0})).notes == (
        "torch: rnn.lstm_cell: nn.LSTM(3, 2)",
    )


def test_what_the_graph_computes_otherwise_is_refused_or_told(tmp_path: Path) -> None:
    source = with_graph(cell_graph(1.0, activation="Relu"), tmp_path)
    with pytest.raises(PlanError, match=r"it computes with relu, and nn\.LSTM with tanh"):
        make_plan(source, [Torch()])
    assert make_plan(source, [Keras()]).notes == (
        "keras: lstm_cell: it computes with relu; say activation='relu' to Keras",
    )
    source = with_graph(cell_graph(1.0, clip=5.0), tmp_path)
    for strategy in (Keras(), Torch()):
        with pytest.raises(PlanError, match="it cuts its state or output at 5"):
            make_plan(source, [strategy])


def test_gates_in_another_order_than_the_name_says_are_refused(tmp_path: Path) -> None:
    m = cell_graph(None)
    for node in m.definition.node:
        for place, given in enumerate(node.input):
            other = {b"s:1": b"s:3", b"s:3": b"s:1"}.get(bytes(given))
            if other is not None:
                node.input[place] = other
    with pytest.raises(PlanError, match="gates in another order than its name says"):
        make_plan(with_graph(m, tmp_path), [Keras()])


@pytest.mark.parametrize("leaves", [("kernel", "bias"), ("Linear/Matrix", "Linear/Bias")])
def test_an_lstm_in_a_scope_that_is_called_after_none_is_told_by_the_graph(
    leaves: tuple[str, str], tmp_path: Path
) -> None:
    m = cell_graph(0.5)
    named = with_graph(m, tmp_path)
    own = {
        f"lstm_cell/{old}": f"top/own/{leaf}"
        for old, leaf in zip(("kernel", "bias"), leaves, strict=True)
    }
    renamed = named.derive(v.rename(own[n]) for n, v in named.items())
    wanted = make_plan(named, [Keras()]).result
    found = make_plan(renamed, [Keras()]).result
    assert {n: v.read().tobytes() for n, v in found.items()} == {
        n.replace("lstm_cell", "top/own"): v.read().tobytes() for n, v in wanted.items()
    }
    # Without the four gates behind it, it is none, whatever the graph calls it.
    for node in m.definition.node:
        if node.op == b"Split":
            node.op = b"Unpack"
    plain = with_graph(m, tmp_path)
    plain = plain.derive(v.rename(own[n]) for n, v in plain.items())
    assert "top/own/recurrent_kernel" not in make_plan(plain, [Keras(rest="keep")]).result


def test_under_any_keys_an_lstm_is_told_by_the_graph() -> None:
    source = open_checkpoint(case("tf14_v2_charlm_lstm_ema").path)
    model = [source[name] for name, role in source.roles().items() if role.kind == "model"]
    keys = {v.name: f"w/{number}" for number, v in enumerate(model)}
    by_name = make_plan(source.derive(model), [Torch()]).result
    plan = make_plan(source.derive(v.rename(keys[v.name]) for v in model), [Torch()])
    kernel = keys["charlm/rnn/lstm_cell/kernel"].replace("/", ".")
    for leaf in ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"):
        wanted = by_name[f"charlm.rnn.lstm_cell.{leaf}"].read()
        assert np.array_equal(plan.result[f"{kernel}.{leaf}"].read(), wanted)
    assert plan.notes == (f"torch: {kernel}: nn.LSTM(8, 30)",)


def test_under_other_keys_other_cells_are_no_dense_layers() -> None:
    source = open_checkpoint(case("tf012_v2_gru_seqlen").path)
    model = [source[name] for name, role in source.roles().items() if role.kind == "model"]
    renamed = source.derive(v.rename(f"w/{number}") for number, v in enumerate(model))
    first = f"w/{[v.name for v in model].index('RNN/GRUCell/Candidate/Linear/Matrix')}"
    with pytest.raises(PlanError) as caught:
        make_plan(renamed, [Keras()])
    assert str(caught.value) == (
        f"{first}: its graph calls it RNN/GRUCell/Candidate/Linear/Matrix, of a recurrent cell, "
        "which its own name does not tell; --names graph before renames it (and 3 more variables); "
        "--keras-rest keep or drop says what to do"
    )
    named = [Names("graph"), Keras()]
    assert "RNN/GRUCell/recurrent_kernel" in make_plan(renamed, named).result


def stacked(source: Checkpoint) -> Checkpoint:
    """Return a checkpoint with its cell as the first of a stack, and another one behind it."""
    start = "multi_rnn_cell/cell_{}/"
    first = [v.rename(start.format(0) + n) for n, v in source.items()]
    second = drawn({"lstm_cell/kernel": (2 * U, 4 * U), "lstm_cell/bias": (4 * U,)})
    return source.derive(
        [*first, *(Variable.from_array(start.format(1) + n, v) for n, v in second.items())]
    )


@pytest.mark.parametrize("op", ["Add", "Mul"])
@pytest.mark.parametrize("dropped", [False, True])
def test_layers_whose_inputs_are_added_to_their_outputs_are_apart(
    op: str, dropped: bool, tmp_path: Path
) -> None:
    m = cell_graph(1.0)
    joint = next(node for node in m.definition.node if node.op == b"ConcatV2")
    if dropped:
        mask = m.op("Floor", m.input(1, X, name="random"))
        scaled = m.op("RealDiv", "x", m.input(name="keep"))
        joint.input[0] = m.op("Mul", scaled, mask).encode()
    notes = make_plan(stacked(with_graph(m, tmp_path)), [Torch()]).notes
    assert "torch: multi_rnn_cell: nn.LSTM(3, 2, num_layers=2)" in notes
    m.op(op, "x", "out")
    notes = make_plan(stacked(with_graph(m, tmp_path)), [Torch()]).notes
    assert any("what one takes is added to what it gives" in note for note in notes)


# --- layers without a state ---


def test_matrices_are_turned_around_for_pytorch() -> None:
    arrays = drawn(
        {
            "d/kernel": (3, 2),
            "d/bias": (2,),
            "old_w": (3, 2),
            "old_b": (2,),
            "fc/weights": (3, 2),
            "c/kernel": (3, 3, 2, 5),
            "c/bias": (5,),
            "up/conv2d_transpose/kernel": (3, 3, 5, 2),
            "up/conv2d_transpose/bias": (5,),
            "s/depthwise_kernel": (3, 4, 2, 2),
            "s/pointwise_kernel": (1, 1, 4, 3),
            "s/bias": (3,),
            "emb/embeddings": (7, 4),
        }
    )
    found = result_of(arrays, Torch())
    wanted = {
        "d.weight": arrays["d/kernel"].T,
        "d.bias": arrays["d/bias"],
        "old.weight": arrays["old_w"].T,
        "old.bias": arrays["old_b"],
        "fc.weight": arrays["fc/weights"].T,
        "c.weight": arrays["c/kernel"].transpose(3, 2, 0, 1),
        "c.bias": arrays["c/bias"],
        "up.conv2d_transpose.weight": arrays["up/conv2d_transpose/kernel"].transpose(3, 2, 0, 1),
        "up.conv2d_transpose.bias": arrays["up/conv2d_transpose/bias"],
        "s.depthwise.weight": arrays["s/depthwise_kernel"]
        .transpose(2, 3, 0, 1)
        .reshape(4, 1, 3, 4),
        "s.pointwise.weight": arrays["s/pointwise_kernel"].transpose(3, 2, 0, 1),
        "s.pointwise.bias": arrays["s/bias"],
        "emb.weight": arrays["emb/embeddings"],
    }
    assert set(found) == set(wanted)
    for name, values in wanted.items():
        assert np.array_equal(found[name], values), name


def test_normalisations_have_all_that_pytorch_wants() -> None:
    leaves = ("beta", "moving_mean", "moving_variance")
    arrays = drawn({**{f"bn/{leaf}": (3,) for leaf in leaves}, "x/LayerNorm/gamma": (3,)})
    arrays["x/LayerNorm/beta"] = arrays["bn/beta"]
    found = result_of(arrays, Torch())
    assert found["bn.weight"].tolist() == [1, 1, 1]
    assert np.array_equal(found["bn.running_var"], arrays["bn/moving_variance"])
    assert np.array_equal(found["bn.running_mean"], arrays["bn/moving_mean"])
    assert found["bn.num_batches_tracked"].dtype == "int64"
    assert found["bn.num_batches_tracked"].shape == ()
    assert np.array_equal(found["x.LayerNorm.weight"], arrays["x/LayerNorm/gamma"])


def test_the_graph_says_what_a_name_does_not(tmp_path: Path) -> None:
    m = Model()
    x = m.input(2, 4)
    h = m.op("MatMul", x, m.variable("Variable", 4, 4))
    h = m.op("Relu", m.op("Add", h, m.variable("Variable_1", 4)))
    m.op("MatMul", h, m.variable("turned", 3, 4), transpose_b=True)
    rows = m.op("GatherV2", m.variable("lookup", 9, 4), m.input(2, name="ids", dtype="int32"))
    m.op("Relu", rows)
    source = with_graph(m, tmp_path)
    plan = make_plan(source, [Torch()])
    read = {name: source[name].read() for name in source}
    wanted = {
        "Variable.weight": read["Variable"].T,
        "Variable.bias": read["Variable_1"],
        "turned.weight": read["turned"],
        "lookup.weight": read["lookup"],
    }
    assert {v.name for v in plan.variables} == set(wanted)
    for name, values in wanted.items():
        assert np.array_equal(plan.result[name].read(), values), name


def test_three_axes_are_a_convolution_only_where_something_says_so() -> None:
    arrays = drawn({"conv1d/kernel": (3, 2, 5), "attention_output/kernel": (2, 3, 5)})
    assert set(result_of(arrays, Torch(rest="keep"))) == {
        "conv1d.weight",
        "attention_output.kernel",
    }
    with pytest.raises(PlanError, match=r"^attention_output/kernel \[2, 3, 5\]: .* is conv:"):
        plan_of(arrays, Torch())


def test_what_a_graph_does_not_multiply_is_no_convolution(tmp_path: Path) -> None:
    m = Model()
    product = m.op("Einsum", m.input(2, 4), m.variable("h/kernel", 2, 4, 5, 3))
    m.op("Relu", product)
    with pytest.raises(PlanError, match=r"^h/kernel"):
        make_plan(with_graph(m, tmp_path), [Torch()])


def test_a_kernel_that_a_product_over_several_axes_reshapes_is_told_by_the_graph() -> None:
    source = open_checkpoint(case("tf14_v2_charlm_lstm_ema").path)
    model = [v for n, v in source.items() if source.roles()[n].kind == "model"]
    new = {"charlm/softmax/kernel": "readout"}
    plan = make_plan(source.derive(v.rename(new.get(v.name, v.name)) for v in model), [Torch()])
    assert {"readout.weight", "readout.bias"} < set(plan.result)
    assert plan.notes == ("torch: charlm.rnn.lstm_cell: nn.LSTM(8, 30)",)


def test_averages_in_the_place_of_variables_are_found_in_the_graph() -> None:
    source = open_checkpoint(case("tf14_v2_charlm_lstm_ema").path)
    plan = make_plan(source, [Ema(ema="use"), Drop(drop=("optimizer", "step")), Torch()])
    assert plan.notes == (
        "ema: changes the outputs to those of the averages",
        "torch: charlm.rnn.lstm_cell: nn.LSTM(8, 30)",
    )
    average = source["charlm/rnn/lstm_cell/bias/ExponentialMovingAverage"].read()
    bias = plan.result["charlm.rnn.lstm_cell.bias_ih_l0"].read()
    assert np.array_equal(bias[30:60], average[60:90] + np.float32(1))


# --- what follows, and what is left ---


def test_averages_get_the_forget_bias_and_slots_do_not() -> None:
    bias = LSTM["rnn/lstm_cell/bias"]
    more = {
        "rnn/lstm_cell/bias/ExponentialMovingAverage": bias + 7,
        "rnn/lstm_cell/bias/Adam": bias + 3,
        "rnn/lstm_cell/bias/Adam_1": bias + 5,
        "rnn/lstm_cell/kernel/Adam": LSTM["rnn/lstm_cell/kernel"] + 3,
        "rnn/lstm_cell/kernel/Adam_1": LSTM["rnn/lstm_cell/kernel"] + 5,
    }
    found = result_of(LSTM | more, Torch())
    order = [0, 1, 4, 5, 2, 3, 6, 7]
    shift = np.array([0, 0, 1, 1, 0, 0, 0, 0], "f4")
    start = "rnn.lstm_cell.bias_ih_l0."
    assert np.array_equal(found[f"{start}Adam"], (bias + 3)[order])
    assert np.array_equal(found[f"{start}Adam_1"], (bias + 5)[order])
    assert np.array_equal(found[f"{start}ExponentialMovingAverage"], (bias + 7)[order] + shift)
    assert not found["rnn.lstm_cell.bias_hh_l0.ExponentialMovingAverage"].any()
    # A bias that is new has no state of an optimizer.
    assert "rnn.lstm_cell.bias_hh_l0.Adam" not in found
    assert found["rnn.lstm_cell.weight_hh_l0.Adam"].shape == (4 * U, U)


def test_slots_that_cannot_follow_are_left_out_with_a_note() -> None:
    arrays = LSTM | drawn({"rnn/lstm_cell/kernel_slot_vr": (X + U,)})
    arrays |= drawn({"rnn/lstm_cell/kernel_slot_vc": (4 * U,)})
    plan = plan_of(arrays, Keras(forget_bias={"*": 1.0}))
    assert not any("slot" in v.name for v in plan.variables)
    assert plan.notes == (
        "keras: 2 slots and averages are left out, as the new layout has no such state: "
        "rnn/lstm_cell/kernel_slot_vr, rnn/lstm_cell/kernel_slot_vc",
    )


def test_a_variable_of_no_layer_is_an_error_that_names_the_nearest_rule() -> None:
    arrays = drawn({"readout": (3, 2), "readout/Momentum": (3, 2), "d/kernel": (2, 2)})
    with pytest.raises(PlanError) as raised:
        plan_of(arrays, Torch())
    assert str(raised.value) == (
        "readout [3, 2]: nothing tells which layer it is of; the nearest is dense: a matrix called "
        "kernel, weights or w; --torch-layer 'readout=dense' says that it is that; --torch-rest "
        "keep or drop says what to do"
    )
    dense = plan_of(arrays, Torch(layer={"readout": "dense"}))
    names = {"readout.weight", "readout.weight.Momentum", "d.weight"}
    assert {v.name for v in dense.variables} == names
    kept = plan_of(arrays, Torch(rest="keep"))
    assert {v.name for v in kept.variables} == {"readout", "readout.Momentum", "d.weight"}
    assert kept.notes == ("torch: kept as it is, of no layer that it has: readout",)
    dropped = plan_of(arrays, Torch(rest="drop"))
    assert {v.name for v in dropped.variables} == {"d.weight"}
    assert set(dropped.dropped) == {"readout", "readout/Momentum"}
    alone = plan_of(arrays, Torch(layer={"readout": "keep"}))
    assert {v.name for v in alone.variables} == {"readout", "readout.Momentum", "d.weight"}


def test_two_layers_of_one_name_are_an_error() -> None:
    arrays = drawn({"a/b/kernel": (2, 3), "a.b/kernel": (2, 3)})
    with pytest.raises(PlanError, match=r"a\.b\.weight: two variables would have this name"):
        plan_of(arrays, Torch())


def test_steps_stay_and_kinds_are_checked() -> None:
    arrays = drawn({"d/kernel": (2, 3)}) | {"global_step": np.array(7)}
    assert result_of(arrays, Torch())["global_step"] == 7
    with pytest.raises(UsageError, match=r"there is no kind 'danse'; did you mean 'dense'\?"):
        Torch(layer={"d/kernel": "danse"})
    with pytest.raises(UsageError, match="'e/kernel' fits none"):
        plan_of(arrays, Torch(layer={"e/kernel": "dense"}))


@pytest.mark.parametrize(
    "shape", [(), (0,), (1,), (0, 0), (3, 0), (0, 4), (5, 7), (2, 0, 4), (1, 1)]
)
@pytest.mark.parametrize("strategy", [Keras, Torch, Tf1])
def test_shapes_that_no_layer_has_are_of_no_layer(
    strategy: type[Keras] | type[Torch] | type[Tf1], shape: tuple[int, ...]
) -> None:
    cells = [spelt(pattern) for pattern in NAMES]
    cells += [list(GRU), list(BLOCK), list(CUDNN_GRU)]
    cells += [["k/kernel", "k/recurrent_kernel", "k/bias"], ["LSTMCell/W_0", "LSTMCell/W_1"]]
    cells += [[f"g/{gate}/{leaf}" for gate in "ifgo" for leaf in ("wx", "wt", "b")]]
    cells += [["bn/moving_mean", "bn/moving_variance", "bn/gamma"], ["s/depthwise_kernel"]]
    for names in cells:
        for odd in names:
            arrays = {name: np.zeros(shape if name == odd else (2, 2), "f4") for name in names}
            plan = plan_of(arrays, strategy(rest="keep"))
            assert sum(v.read().size for v in plan.variables) >= 0
            assert {s for v in plan.variables for s in v.sources} == set(names)


@pytest.mark.parametrize("strategy", [Keras, Torch, Tf1])
def test_the_contract(strategy: type[Keras] | type[Torch] | type[Tf1]) -> None:
    check_strategy(strategy(rest="keep", layer={"*": "keep"}))
    check_strategy(strategy(rest="keep", layer={"*": "dense"}))


def test_what_keras_has_already_is_copied_as_it_is() -> None:
    source = open_checkpoint(case("tf221_obj_tfkeras_charlm").path)
    plan = make_plan(source, [Keras()])
    assert not any(change.steps for change in plan.changes)
    assert set(plan.result) == set(source)


def test_cells_of_tensorflow_1_are_stored_by_name(tmp_path: Path) -> None:
    """TensorFlow 1 looks for names among objects, where it finds an object graph."""
    source = case("tf221_obj_tfkeras_charlm").path
    convert(source, tmp_path / "x", [Drop(drop=("optimizer", "step")), Tf1()], to="tf")
    written = open_checkpoint(tmp_path / "x")
    assert written.object_graph is None
    assert set(written) == {
        "embedding/embeddings",
        "lstm/lstm_cell/bias",
        "lstm/lstm_cell/kernel",
        "softmax/bias",
        "softmax/kernel",
    }
    assert written["lstm/lstm_cell/kernel"].shape == (7 + 24, 4 * 24)
