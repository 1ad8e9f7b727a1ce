"""reinit: which values are drawn anew, how, and what follows them."""

from __future__ import annotations

import json
import math
import shlex
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from conftest import VALID, Case, case, slow
from converter_plugins.kernels import Kernel, kernel_of
from converter_plugins.reinit import Reinit

from converter import (
    Array,
    Checkpoint,
    ConverterError,
    Initializer,
    Role,
    Variable,
    convert,
    open_checkpoint,
)
from converter.cli import cli
from converter.initializer import parse_initializer
from converter.initializers import BUILT_IN
from converter.names.fresh import fresh_value
from converter.names.optimizers import SLOTS
from converter.strategy import build, values_of
from converter.testing import check_strategy


def made(**given: Any) -> Reinit:
    """Build the strategy as a recipe does."""
    return build(Reinit, given, "reinit")


def checkpoint(arrays: Mapping[str, Any], roles: Mapping[str, Role] | None = None) -> Checkpoint:
    variables = [Variable.from_array(name, array) for name, array in arrays.items()]
    if roles is None:
        return Checkpoint(variables)
    return Checkpoint(
        variables, roles=lambda found: {n: roles.get(n, Role("model")) for n in found}
    )


def values(strategy: Reinit, source: Checkpoint) -> dict[str, Array]:
    return {name: v.read() for name, v in source.derive(strategy.apply(source)).items()}


def error(source: Checkpoint, **given: Any) -> str:
    with pytest.raises(ConverterError) as caught:
        list(made(**given).apply(source))
    assert "\n" not in str(caught.value)
    return f"{type(caught.value).__name__}: {caught.value}"


def changed(before: Checkpoint, after: Mapping[str, Array]) -> list[str]:
    return [n for n, v in before.items() if not np.array_equal(v.read(), after[n])]


def limit(array: Array) -> float:
    return float(np.abs(array).max())


LSTM = "rnn/lstm_cell/kernel"


def lstm_arrays(inputs: int = 40, units: int = 30) -> dict[str, Any]:
    return {
        LSTM: np.full((inputs + units, 4 * units), 9, "f4"),
        "rnn/lstm_cell/bias": np.full(4 * units, 9, "f4"),
    }


# --- what is drawn ---


def test_a_dense_layer_is_drawn_and_its_bias_starts_at_zero() -> None:
    source = checkpoint({
        "a/kernel": np.full((300, 200), 9, "f4"),
        "a/bias": np.full(200, 9, "f4"),
        "b/kernel": np.full((3, 2), 9, "f4"),
    })  # fmt: skip
    after = values(made(reinit={"a/*": "glorot_uniform"}), source)
    bound = math.sqrt(6 / 500)
    assert 0.99 * bound < limit(after["a/kernel"]) <= bound
    assert not after["a/bias"].any()
    assert (after["b/kernel"] == 9).all()


@pytest.mark.parametrize(
    ("text", "expected"), [("zeros", 0), ("ones", 1), ("0.5", 0.5), ("constant(value=2)", 2)]
)
def test_numbers_are_taken_as_they_stand(text: str, expected: float) -> None:
    source = checkpoint({"a/kernel": np.ones((3, 2), "f4") * 9, "a/gamma": np.ones(2, "f4") * 9})
    after = values(made(reinit={"a/*": text}), source)
    assert all((array == expected).all() for array in after.values())


def test_a_number_in_a_recipe_is_a_constant() -> None:
    source = checkpoint({"w": np.zeros((2, 3), "f4")})
    assert (values(made(reinit={"w": 0.5}), source)["w"] == 0.5).all()
    assert (values(made(reinit={"w": 3}), source)["w"] == 3).all()


def test_a_name_means_its_variable_as_it_stands() -> None:
    source = checkpoint({"a/bias": np.full(2000, 9, "f4"), "a/gamma": np.full(2000, 9, "f4")})
    after = values(made(reinit={"a/bias": "normal(stddev=2)", "*": "normal"}), source)
    assert abs(after["a/bias"].std() - 2) < 0.2
    assert (after["a/gamma"] == 1).all()


def test_layers_start_as_those_of_tensorflow() -> None:
    ones = {"bn/gamma", "bn/moving_variance", "gru_cell/gates/bias", "r/renorm_stddev"}
    zeros = {"bn/beta", "bn/moving_mean", "dense/bias", "b", "cell/bi", "w/biases", "r/renorm_mean"}
    arrays = {name: np.full((1, 5) if name == "cell/bi" else 5, 9, "f4") for name in ones | zeros}
    after = values(made(reinit={"*": "he_normal"}), checkpoint(arrays))
    assert {name for name, array in after.items() if (array == 1).all()} == ones
    assert {name for name, array in after.items() if not array.any()} == zeros


def test_the_first_glob_that_fits_is_taken() -> None:
    source = checkpoint({"a/w": np.zeros((2, 2), "f4"), "b/w": np.zeros((2, 2), "f4")})
    after = values(made(reinit={"a/*": 1, "*": 2}), source)
    assert (after["a/w"] == 1).all()
    assert (after["b/w"] == 2).all()


def test_match_keeps_mean_and_deviation_of_each_gate() -> None:
    rng = np.random.default_rng(0)
    gates = [rng.normal(mean, std, (300, 100)) for mean, std in ((0, 1), (1, 2), (-5, 0.1), (3, 0))]
    source = checkpoint({LSTM: np.concatenate(gates, axis=1).astype("f4")})
    after = np.split(values(made(reinit={"*": "match"}), source)[LSTM], 4, axis=1)
    for old, new in zip(gates, after, strict=True):
        assert abs(new.mean() - old.mean()) < 0.03 * max(old.std(), 1e-3)
        assert abs(new.std() - old.std()) < 0.03 * old.std() + 1e-6
        assert np.array_equal(old.astype("f4"), new) == (old.std() == 0)


def test_a_template_gives_its_values(tmp_path: Path) -> None:
    fresh = {"a": np.arange(6, dtype="f4").reshape(2, 3), "b": np.ones((2, 2), "f4")}
    convert_to(tmp_path / "fresh.safetensors", fresh)
    source = checkpoint({name: array * 0 for name, array in fresh.items()})
    strategy = made(reinit={"a": "template"}, template=str(tmp_path / "fresh.safetensors"))
    assert np.array_equal(values(strategy, source)["a"], fresh["a"])
    other = checkpoint({"a": np.zeros((3, 3), "f4"), "aa": np.zeros((2, 3), "f4")})
    given: Any = {"template": str(tmp_path / "fresh.safetensors")}
    assert error(other, reinit={"a": "template"}, **given) == (
        f"PlanError: a: it is [3, 3], and [2, 3] in the template {given['template']}; take a "
        f"template of the same sizes"
    )
    assert error(other, reinit={"aa": "template"}, **given).startswith(
        f"PlanError: aa: the template {given['template']} does not have it; did you mean 'a'?"
    )


def convert_to(path: Path, arrays: Mapping[str, Array]) -> None:
    from safetensors.numpy import save_file

    save_file(dict(arrays), path)


# --- recurrent kernels ---


def test_gates_have_the_fans_of_a_gate() -> None:
    source = checkpoint(lstm_arrays(256, 256))
    after = values(made(reinit={"*": "glorot_uniform"}), source)
    for gate in np.split(after[LSTM], 4, axis=1):
        # Of the kernel as one matrix it would be 0.0625.
        assert 0.0884 * 0.999 < limit(gate) <= math.sqrt(6 / 768)
    assert not after["rnn/lstm_cell/bias"].any()


def test_orthogonal_gates() -> None:
    after = values(made(reinit={LSTM: "orthogonal"}), checkpoint(lstm_arrays(0, 30)))
    for gate in np.split(after[LSTM], 4, axis=1):
        assert np.allclose(gate.T @ gate, np.eye(30), atol=1e-5)
    assert not np.allclose(after[LSTM][:, :30], after[LSTM][:, 30:60])


def test_inputs_and_state_have_initializers_of_their_own() -> None:
    source = checkpoint(lstm_arrays())
    strategy = made(
        input={"*lstm*": "uniform(minval=2, maxval=3)"}, hidden={LSTM: "orthogonal(gain=0.5)"}
    )
    after = values(strategy, source)
    inputs, state = after[LSTM][:40], after[LSTM][40:]
    assert (inputs >= 2).all()
    assert (inputs <= 3).all()
    for gate in np.split(state, 4, axis=1):
        assert np.allclose(gate.T @ gate, 0.25 * np.eye(30), atol=1e-5)
    assert changed(source, after) == [LSTM]


def test_one_part_alone_leaves_the_other() -> None:
    source = checkpoint(lstm_arrays())
    after = values(made(hidden={LSTM: "normal"}), source)
    assert (after[LSTM][:40] == 9).all()
    assert not (after[LSTM][40:] == 9).any()


def test_a_part_wins_over_the_whole_and_blocks_keep_their_streams() -> None:
    source = checkpoint(lstm_arrays())
    both = values(made(reinit={"*": "glorot_uniform"}, hidden={"*": "zeros"}), source)[LSTM]
    assert not both[40:].any()
    # The fans are those of the inputs of one gate.
    assert 0.98 * math.sqrt(6 / 70) < limit(both[:40]) <= math.sqrt(6 / 70)
    alone = values(made(input={LSTM: "glorot_uniform"}), source)[LSTM]
    assert np.array_equal(alone[:40], both[:40])


def test_units_are_told_where_names_do_not() -> None:
    source = checkpoint({"my/W": np.full((70, 120), 9, "f4"), "my/V": np.zeros((5, 5), "f4")})
    assert error(source, hidden={"my/*": "orthogonal"}) == (
        "PlanError: my/W: nothing tells which rows of [70, 120] are for the state; say its units "
        "(--reinit-units 'my/W=UNITS'), or choose a kernel"
    )
    strategy = made(hidden={"my/W": "orthogonal"}, units={"*W": 30})
    after = values(strategy, source)["my/W"]
    assert (after[:40] == 9).all()
    for gate in np.split(after[40:], 4, axis=1):
        assert np.allclose(gate.T @ gate, np.eye(30), atol=1e-5)
    assert error(source, reinit={"my/W": "normal"}, units={"*W": 50}) == (
        "PlanError: my/W: [70, 120] is no kernel of 50 units; its columns would be a multiple of "
        "them, and its rows as many or more"
    )


def test_rows_in_several_variables_are_refused() -> None:
    arrays = {f"RNN/LSTMCell/W_{k}": np.zeros((30, 40), "f4") for k in range(2)}
    assert error(checkpoint(arrays), hidden={"*W_0": "normal"}).startswith(
        "PlanError: RNN/LSTMCell/W_0: the rows of its state lie in several variables"
    )
    after = values(made(reinit={"*": "lecun_uniform"}), checkpoint(arrays))
    assert 0.98 * math.sqrt(3 / 30) < limit(after["RNN/LSTMCell/W_0"]) <= math.sqrt(3 / 30)


def known(**shapes: tuple[int, ...]) -> dict[str, Variable]:
    return {n: Variable.from_array(n, np.zeros(s, "f4")) for n, s in shapes.items()}


@pytest.mark.parametrize(
    ("shapes", "expected"),
    [
        ({"rnn/basic_lstm_cell/kernel": (12, 32)}, ("ijfo", 8)),
        ({"rnn/basic_lstm_cell_1/weights": (12, 32)}, ("ijfo", 8)),
        ({"RNN/MultiRNNCell/Cell0/BasicLSTMCell/Linear/Matrix": (12, 32)}, ("ijfo", 8)),
        ({"BiRNN/FW/LSTMCell/W_0": (12, 32)}, ("ijfo", 8)),
        ({"lstm_cell/kernel": (9, 32), "lstm_cell/projection/kernel": (8, 5)}, ("ijfo", 5)),
        ({"LSTMCell/W_0": (9, 32), "LSTMCell/W_P_0": (8, 5)}, ("ijfo", 5)),
        ({"a/layer_norm_basic_lstm_cell/kernel": (12, 32)}, ("ijfo", 8)),
        ({"lstm_fused_cell/kernel": (12, 32)}, ("ijfo", 8)),
        ({"rnn/gru_cell/gates/kernel": (12, 16)}, ("ru", 8)),
        ({"rnn/gru_cell/candidate/weights": (12, 8)}, ("c", 8)),
        ({"RNN/GRUCell/Gates/Linear/Matrix": (12, 16)}, ("ru", 8)),
        ({"GRUBlockCell/w_ru": (12, 16)}, ("ru", 8)),
        ({"GRUBlockCell/w_r": (12, 16)}, ("ru", 8)),
        ({"gru_cell/w_c": (12, 8)}, ("c", 8)),
        ({"rnn/basic_rnn_cell/kernel": (12, 8)}, ("h", 8)),
        ({"coupled_input_forget_gate_lstm_cell/W_0": (12, 24)}, ("jfo", 8)),
        ({"rnn/conv_2d_lstm_cell/kernel": (3, 3, 12, 32)}, ("ijfo", 8)),
        ({"rnn/conv_lstm_cell/kernel": (3, 3, 12, 32)}, ("ijfo", 8)),
        ({"cudnn_compatible_gru_cell/candidate/input_projection/kernel": (5, 8)}, ("c", 0)),
        ({"cudnn_compatible_gru_cell/candidate/hidden_projection/kernel": (8, 8)}, ("c", 8)),
        ({"x/kernel": (5, 32), "x/recurrent_kernel": (8, 32)}, ("ifco", 0)),
        ({"x/recurrent_kernel": (8, 32), "x/kernel": (5, 32)}, ("ifco", 8)),
        ({"kernel_1": (5, 24), "recurrent_kernel_1": (8, 24)}, ("zrh", 0)),
        ({"lstm_cell/kernel": (5, 32), "lstm_cell/recurrent_kernel": (8, 32)}, ("ifco", 0)),
        ({"c/kernel": (3, 3, 5, 32), "c/recurrent_kernel": (3, 3, 8, 32)}, ("ifco", 0)),
        ({"nas_cell/kernel": (5, 64), "nas_cell/recurrent_kernel": (8, 64)}, ("01234567", 0)),
        ({"L/input_gate/wx": (5, 8), "L/input_gate/wt": (8, 8)}, ("", 0)),
        ({"L/input_gate/wt": (8, 8), "L/input_gate/wx": (5, 8)}, ("", 8)),
        ({"dense/kernel": (12, 32)}, None),
        ({"my_lstm_cell/kernel": (12, 32)}, None),
        ({"lstm_cell/kernel": (12, 30)}, None),
        ({"lstm_cell/bias": (32,)}, None),
        ({"lstm_cell/projection/kernel": (8, 5)}, None),
        ({"x/kernel": (5, 30), "x/recurrent_kernel": (8, 32)}, None),
        ({"x/kernel": (5, 0), "x/recurrent_kernel": (0, 0)}, None),
    ],
)  # fmt: skip
def test_kernels_by_name(
    shapes: dict[str, tuple[int, ...]], expected: tuple[str, int] | None
) -> None:
    kernel = Kernel(tuple(expected[0]) or ("",), expected[1]) if expected else None
    assert kernel_of(next(iter(shapes)), known(**shapes)) == kernel


@pytest.mark.parametrize(
    "recorded", [c for c in VALID if c.record.get("rnn")], ids=lambda c: c.name
)
def test_recorded_kernels_are_found(recorded: Case) -> None:
    """What the corpus records of its cells is what their names tell."""
    source = open_checkpoint(recorded.path)
    # The names of objects are other ones than the recorded keys.
    if recorded.record["format"] == "object":
        return
    found = 0
    for layer in recorded.record["rnn"]:
        for role, name in layer.get("variables", {}).items():
            if name not in source or "kernel" not in role or "projection" in role:
                continue
            kernel = kernel_of(name, source)
            rows, columns = source[name].shape[-2:]
            assert kernel is not None, name
            assert kernel.state is not None
            assert columns == len(kernel.gates) * layer["units"], name
            assert rows - kernel.state in (0, layer["input_size"]) or "attention" in name, name
            found += 1
    assert found or recorded.name == "tf10_v2_gatewise_lstm"


def test_keras_stores_the_forget_bias() -> None:
    shapes = {"l/kernel": (5, 16), "l/recurrent_kernel": (4, 16), "l/bias": (16,)}
    arrays = {name: np.full(shape, 9, "f4") for name, shape in shapes.items()}
    strategy = made(reinit={"l/*": "glorot_uniform"})
    after = values(strategy, checkpoint(arrays))
    assert after["l/bias"].tolist() == [0] * 4 + [1] * 4 + [0] * 8
    cudnn = checkpoint({**arrays, "l/bias": np.full(32, 9, "f4")})
    assert values(strategy, cudnn)["l/bias"].tolist() == [0] * 20 + [1] * 4 + [0] * 8
    assert list(made(reinit={"l/bias": "zeros"}).notes(checkpoint(arrays))) == [
        "l/bias: TensorFlow's own layer starts it, or one gate of it, with 1, and it gets zeros"
    ]


def test_the_biases_of_a_gru() -> None:
    arrays: dict[str, Array] = {
        "g/kernel": np.full((5, 12), 9, "f4"),
        "g/recurrent_kernel": np.full((4, 12), 9, "f4"),
        "g/bias": np.full((2, 12), 9, "f4"),
        "rnn/gru_cell/gates/bias": np.full(8, 9, "f4"),
        "rnn/gru_cell/candidate/bias": np.full(4, 9, "f4"),
    }
    after = values(made(reinit={"*": "glorot_uniform"}), checkpoint(arrays))
    assert not after["g/bias"].any()
    assert (after["rnn/gru_cell/gates/bias"] == 1).all()
    assert not after["rnn/gru_cell/candidate/bias"].any()
    assert list(made(reinit={"rnn/gru_cell/gates/bias": 0}).notes(checkpoint(arrays))) == [
        "rnn/gru_cell/gates/bias: TensorFlow's own layer starts it, or one gate of it, with 1, and "
        "it gets constant(value=0)"
    ]
    assert list(made(reinit={"rnn/gru_cell/gates/bias": "ones"}).notes(checkpoint(arrays))) == []
    gains = checkpoint({"a/gamma": np.ones(3, "f4"), "b/gamma": np.ones(3, "f4")})
    (note,) = made(reinit={"*": "zeros"}).notes(gains)
    assert note.startswith("a/gamma (and 1 more): TensorFlow's own layer starts it")


def test_the_forget_bias_of_tensorflow_is_in_the_code() -> None:
    (note,) = made(reinit={"rnn/lstm_cell/bias": "zeros"}).notes(checkpoint(lstm_arrays()))
    assert note.startswith("rnn/lstm_cell/bias: the cell adds its forget bias, 1 unless the code")


# --- what follows ---


def test_slots_start_afresh_and_averages_get_the_new_values() -> None:
    source = open_checkpoint(case("tf14_v2_charlm_lstm_ema").path)
    strategy = made(reinit={"charlm/softmax/*": "glorot_uniform"})
    after = values(strategy, source)
    kernel, bias = "charlm/softmax/kernel", "charlm/softmax/bias"
    assert set(changed(source, after)) == {
        name for name in source if name.startswith("charlm/softmax/")
    }
    assert np.array_equal(after[f"{kernel}/ExponentialMovingAverage"], after[kernel])
    assert after[kernel].any()
    for name in (kernel, bias):
        assert not after[f"{name}/Adam"].any()
        assert not after[f"{name}/Adam_1"].any()
    assert not after[bias].any()
    notes = list(strategy.notes(source))
    assert "4 slots start afresh; beta1_power, beta2_power, global_step stay" in notes


@pytest.mark.parametrize(
    ("optimizer", "slot", "start"),
    [
        ("Adagrad", "accumulator", 0.1),
        ("Ftrl", "accum", 0.1),
        ("Ftrl", "linear", 0.0),
        ("RMSProp", "rms", 1.0),
        ("RMSProp", "mg", 0.0),
        ("RMSprop", "rms", 0.0),
        ("Momentum", "momentum", 0.0),
        ("Adam", "v", 0.0),
        ("Adam", "vhat", 0.0),
        ("Adadelta", "accum", 0.0),
        ("AdagradDA", "gradient_squared_accumulator", 0.1),
        ("AdagradDA", "gradient_accumulator", 0.0),
        ("Shampoo", "Gbar_0", 0.0),
        ("D_AdagradOptimizer", "accumulator", 0.1),
        ("my_rmsprop", "rms", 1.0),
        ("Yogi", "v", 1e-6),
    ],
)
def test_fresh_slots(optimizer: str, slot: str, start: float) -> None:
    assert fresh_value(optimizer, slot) == start
    roles = {"w/slot": Role("slot", "w", slot, optimizer)}
    arrays = {"w": np.full((4, 3), 9, "f4"), "w/slot": np.full((4, 3), 9, "f4")}
    after = values(made(reinit={"w": "normal"}), checkpoint(arrays, roles))
    assert np.array_equal(after["w/slot"], np.full((4, 3), start, "f4"))


@pytest.mark.parametrize("optimizer", SLOTS)
def test_every_slot_of_tensorflow_has_a_start(optimizer: str) -> None:
    assert all(fresh_value(optimizer, slot) is not None for slot in SLOTS[optimizer])


def test_a_slot_without_a_rule_is_refused_by_name() -> None:
    arrays = {"w": np.zeros((4, 3), "f4"), "w/z": np.zeros((4, 3), "f4")}
    roles = {"w/z": Role("slot", "w", "z", "Strange")}
    assert error(checkpoint(arrays, roles), reinit={"w": "normal"}) == (
        "PlanError: w/z: no rule tells what a fresh slot z of Strange holds; leave it out before "
        "(--drop 'w/z')"
    )


def test_slots_of_other_shapes() -> None:
    shapes = {"w": (4, 3), "w/vr": (4,), "w/vc": (3,), "w/H_0": (4, 4), "w/Gbar_0": (4, 4)}
    arrays = {name: np.full(shape, 9, "f4") for name, shape in shapes.items()}
    arrays["w/slow"] = arrays["w"]
    roles = {
        "w/vr": Role("slot", "w", "vr", "Adafactor"),
        "w/vc": Role("slot", "w", "vc", "Adafactor"),
        "w/H_0": Role("slot", "w", "H_0", "Shampoo"),
        "w/Gbar_0": Role("slot", "w", "Gbar_0", "Shampoo"),
        "w/slow": Role("slot", "w", "slow", "Lookahead"),
    }
    after = values(made(reinit={"w": "normal"}), checkpoint(arrays, roles))
    assert not any(after[n].any() for n in ("w/vr", "w/vc", "w/Gbar_0"))
    assert np.array_equal(after["w/H_0"], np.eye(4))
    assert np.array_equal(after["w/slow"], after["w"])


def test_slots_follow_the_part_that_is_drawn() -> None:
    arrays = {**lstm_arrays(), f"{LSTM}/RMSProp": np.full((70, 120), 9, "f4")}
    roles = {f"{LSTM}/RMSProp": Role("slot", LSTM, "rms", "RMSProp")}
    after = values(made(hidden={LSTM: "normal"}), checkpoint(arrays, roles))[f"{LSTM}/RMSProp"]
    assert (after[:40] == 9).all()
    assert (after[40:] == 1).all()


def test_what_zero_debiasing_keeps() -> None:
    arrays = {
        "w": np.full((4, 3), 9, "f4"),
        "w/a": np.full((4, 3), 9, "f4"),
        "w/a/biased": np.full((4, 3), 9, "f4"),
        "w/a/local_step": np.int64(9),
        "w/Adam": np.full((4, 3), 9, "f4"),
        "w/Adam/a": np.full((4, 3), 9, "f4"),
    }
    roles = {
        "w/a": Role("average", "w"),
        "w/a/biased": Role("average", "w", "biased"),
        "w/a/local_step": Role("average", "w", "local_step"),
        "w/Adam": Role("slot", "w", "m", "Adam"),
        "w/Adam/a": Role("average", "w/Adam", None, "Adam"),
    }
    after = values(made(reinit={"w": "normal"}), checkpoint(arrays, roles))
    assert np.array_equal(after["w/a"], after["w"])
    for name in ("w/a/biased", "w/a/local_step", "w/Adam", "w/Adam/a"):
        assert not after[name].any()
    assert after["w/a/local_step"].dtype == np.int64


def test_an_average_without_its_variable_stands_for_it() -> None:
    name = "w/ExponentialMovingAverage"
    source = checkpoint({name: np.zeros((4, 3), "f4")}, {name: Role("average", None)})
    assert values(made(reinit={"*": "normal"}), source)[name].all()


@pytest.mark.parametrize(
    ("pattern", "reason"),
    [
        ("w/Adam", "a slot follows its variable; choose w"),
        ("averages", "an average follows its variable; choose w"),
        ("slots", "a slot follows its variable; choose w"),
        ("global_step", "it is no variable of the model, but step; choose others"),
        ("beta?_power", "it is no variable of the model, but beta power; choose others"),
    ],
)
def test_what_follows_cannot_be_chosen(pattern: str, reason: str) -> None:
    arrays = {
        "w": np.zeros((4, 3), "f4"),
        "w/Adam": np.zeros((4, 3), "f4"),
        "w/Adam_1": np.zeros((4, 3), "f4"),
        "w/ExponentialMovingAverage": np.zeros((4, 3), "f4"),
        "global_step": np.int64(3),
        "beta1_power": np.float32(0.5),
    }
    message = error(checkpoint(arrays), reinit={pattern: "normal"})
    assert message.startswith(f"UsageError: {pattern!r} chooses nothing to draw, such as ")
    assert message.endswith(reason)


def test_words_choose_by_role() -> None:
    source = open_checkpoint(case("tf115_v2_convbn_ema").path)
    after = values(made(reinit={"batch_statistics": "zeros"}), source)
    statistics = [n for n, r in source.roles().items() if r.kind == "batch_statistic"]
    assert statistics
    assert set(changed(source, after)) <= set(statistics)
    after = values(made(reinit={"model": "he_normal"}), source)
    variances = [n for n in statistics if "variance" in n]
    assert variances
    assert all((after[n] == 1).all() for n in variances)


@pytest.mark.parametrize("recorded", VALID, ids=lambda c: c.name)
def test_whole_checkpoints(recorded: Case) -> None:
    """Everything that is drawn is finite; steps, powers and tables stay."""
    source = open_checkpoint(recorded.path)
    roles = source.roles()
    floats = [n for n, v in source.items() if roles[n].kind == "model" and v.dtype.is_float]
    if not floats or any("[" in name or "\\" in name for name in floats):
        return
    strategy = made(reinit=dict.fromkeys(floats, "normal"))
    after = source.derive(strategy.apply(source))
    assert list(after) == list(source)
    for name, variable in after.items():
        assert (variable.shape, variable.dtype) == (source[name].shape, source[name].dtype)
        if roles[name].kind in ("step", "beta_power", "table", "optimizer", "object_graph"):
            assert variable is source[name]
        elif variable.dtype.is_float:
            assert np.isfinite(variable.read().astype("f8")).all()
    list(strategy.notes(source))


# --- how it is said ---


@pytest.mark.parametrize(
    "text",
    [
        *("normal", "orthogonal"),
        *map(slow, ("zeros", "match", "identity", "uniform_unit_scaling")),
    ],
)
def test_the_contract_is_kept(text: str) -> None:
    check_strategy(Reinit(reinit={"*": parse_initializer(text, BUILT_IN)}))
    check_strategy(Reinit(reinit={"scope/variable": parse_initializer(text, BUILT_IN)}, seed=7))


def test_options_pass_through_a_recipe() -> None:
    strategy = made(
        reinit={"a=b": "normal(stddev=0.5)", "c": 2},
        hidden={"k": "orthogonal"},
        units={"k": 3},
        seed=5,
    )
    assert isinstance(strategy.reinit["a=b"], Initializer)
    given = json.loads(json.dumps(values_of(strategy)))
    assert given == {
        "reinit": {"a=b": "normal(stddev=0.5)", "c": "constant(value=2)"},
        "hidden": {"k": "orthogonal"},
        "units": {"k": 3},
        "seed": 5,
    }
    assert build(Reinit, given, "x") == strategy


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "reinit: nothing is to be drawn; give --reinit 'GLOB=INITIALIZER'"),
        ({"reinit": {"w": "nromal"}}, "reinit: reinit 'w' must be an initializer, got 'nromal'"),
        ({"reinit": {"w": True}}, "reinit: reinit 'w' must be an initializer such as"),
        ({"reinit": {"w": [1]}}, "reinit: reinit 'w' must be an initializer such as"),
        ({"reinit": "normal"}, "reinit: reinit must be a table of GLOB=INITIALIZER, got 'normal'"),
        ({"reinit": {"w": "normal"}, "units": {"w": 0}}, "reinit: units 'w' must be 1 or more"),
        ({"hidden": {"w": "template"}}, "reinit: template takes values of a template; give"),
        ({"reinit": {"w": "zeros"}, "seed": 1.5}, "reinit: seed must be an integer, got 1.5"),
    ],
)  # fmt: skip
def test_options_that_cannot_be_meant(given: Any, message: str) -> None:
    with pytest.raises(ConverterError) as caught:
        made(**given)
    assert str(caught.value).startswith(message)


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, list(map(str, arguments)))


def test_the_command_line(tmp_path: Path, lstm: str) -> None:
    arguments = ["ckpt", lstm, "--reinit", "charlm/softmax/*=normal(mean=0, stddev=0.5)"]
    hidden = ["--reinit-hidden", "charlm/*=orthogonal(gain=2)", "--reinit-seed", "4"]
    done = run(*arguments, *hidden, "-o", tmp_path / "one", "--to", "tf")
    assert done.exit_code == 0, done.output
    after = open_checkpoint(tmp_path / "one")
    kernel = after["charlm/rnn/lstm_cell/kernel"].read()
    source = open_checkpoint(lstm)
    old = source["charlm/rnn/lstm_cell/kernel"].read()
    assert np.array_equal(kernel[:8], old[:8])
    for gate in np.split(kernel[8:], 4, axis=1):
        assert np.allclose(gate.T @ gate, 4 * np.eye(30), atol=1e-4)
    assert abs(after["charlm/softmax/kernel"].read().std() - 0.5) < 0.08
    assert after["charlm/embedding"].read().tolist() == source["charlm/embedding"].read().tolist()
    # The graph still describes it.
    assert (tmp_path / "one" / "model.ckpt-300.meta").exists()
    # Streams depend on names, not on what else is done.
    other = ["--plugin", "reinit", "--reinit", "*/kernel=normal(stddev=0.5)", "--reinit-seed", "4"]
    alone_path = tmp_path / "x.safetensors"
    done = run("ckpt", lstm, "--keep", "charlm/softmax/kernel", *other, "-o", alone_path)
    assert done.exit_code == 0, done.output
    alone = open_checkpoint(alone_path)["charlm/softmax/kernel"].read()
    assert np.array_equal(alone, after["charlm/softmax/kernel"].read())


@pytest.mark.parametrize(
    ("flag", "code", "message"),
    [
        ("w=normal(stddev=1", 2, "got 'w=normal(stddev=1'; close its bracket"),
        ("normal(stddev=1)", 2, "--reinit: must be GLOB=INITIALIZER, got 'normal(stddev=1)'"),
        ("=normal", 2, "--reinit: must be GLOB=INITIALIZER, got '=normal'"),
        (
            "charlm/*=glorot",
            2,
            "reinit: reinit 'charlm/*' must be an initializer, got 'glorot'; did",
        ),
        ("*=normal(x=1)", 2, "normal has no argument 'x'; it has mean, stddev"),
        ("softmax=zeros", 2, "reinit: 'softmax' fits none of the 23 variables; did you mean"),
        ("global_step=zeros", 2, "'global_step' chooses nothing to draw"),
        ("charlm/softmax/bias=orthogonal", 4, "cannot draw [14]; only a matrix is orthogonal"),
    ],
)
def test_the_command_line_refuses(lstm: str, flag: str, code: int, message: str) -> None:
    done = run("ckpt", lstm, "--reinit", flag, "-n")
    assert done.exit_code == code, done.output
    assert message in done.output
    assert done.output.count("\n") == 1


def test_names_with_equals_signs_and_brackets(tmp_path: Path) -> None:
    arrays = {"a=(b)": np.zeros((2, 2), "f4"), "c": np.zeros((2, 2), "f4")}
    convert_to(tmp_path / "in.safetensors", arrays)
    for flag, expected in {
        "a=(b)=ones": 1.0,
        "a=(b)=constant(value=2)": 2.0,
        "a=(b)=3": 3.0,
    }.items():
        out = tmp_path / f"{expected}.safetensors"
        done = run("ckpt", tmp_path / "in.safetensors", "--reinit", flag, "-o", out)
        assert done.exit_code == 0, done.output
        assert (open_checkpoint(out)["a=(b)"].read() == expected).all()
        assert not open_checkpoint(out)["c"].read().any()


def test_a_recipe(tmp_path: Path, lstm: str) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        '[[step]]\nplugin = "reinit"\nseed = 3\n'
        'reinit = { "charlm/softmax/kernel" = "uniform(minval=1, maxval=2)" }\n'
    )
    out = tmp_path / "out.safetensors"
    done = run("ckpt", lstm, "--recipe", recipe, "--reinit", "charlm/embedding=7", "-o", out)
    assert done.exit_code == 0, done.output
    # A flag replaces the option of the recipe.
    assert (open_checkpoint(out)["charlm/embedding"].read() == 7).all()


OWN = '''
from __future__ import annotations
from dataclasses import dataclass
from typing import ClassVar
import numpy as np
from converter import Initializer, option

@dataclass(frozen=True)
class Sparse(Initializer):
    """Zeros, but for some entries that are normal."""

    name: ClassVar[str] = "sparse"
    share: float = option(0.1, help="how many entries are not zero")

    def __call__(self, rng, shape, fan_in, fan_out, old, template):
        return rng.standard_normal(shape) * (rng.random(shape) < self.share)
'''


def test_a_file_brings_an_initializer(tmp_path: Path, lstm: str) -> None:
    own = tmp_path / "sparse.py"
    own.write_text(OWN)
    out = tmp_path / "out.safetensors"
    flag = "charlm/softmax/kernel=sparse(share=0.25)"
    done = run("ckpt", lstm, "--plugin", own, "--reinit", flag, "-o", out)
    assert done.exit_code == 0, done.output
    kernel = open_checkpoint(out)["charlm/softmax/kernel"].read()
    assert 0.15 < (kernel != 0).mean() < 0.35
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        '[[step]]\nplugin = "sparse.py"\n[[step]]\nplugin = "reinit"\n'
        'reinit = { "charlm/softmax/kernel" = "sparse(share=0.25)" }\n'
    )
    done = run("ckpt", lstm, "--recipe", recipe, "-o", out, "-f")
    assert done.exit_code == 0, done.output
    assert np.array_equal(open_checkpoint(out)["charlm/softmax/kernel"].read(), kernel)
    recipe.write_text('[[step]]\nplugin = "sparse.py"\nshare = 0.25\n')
    done = run("ckpt", lstm, "--recipe", recipe, "-n")
    assert done.exit_code == 2
    assert "sparse.py has no strategy" in done.output
    done = run("ckpt", lstm, "--reinit", flag, "-n")
    assert done.exit_code == 2
    assert "must be an initializer, got 'sparse'" in done.output


@pytest.mark.slow
def test_many_are_drawn_once_and_again_when_the_initializer_changes(
    tmp_path: Path, lstm: str
) -> None:
    fleet = tmp_path / "fleet"
    shutil.copytree(Path(lstm).parent, fleet / "a")
    own = tmp_path / "sparse.py"
    own.write_text(OWN)
    arguments: list[str | Path] = [
        "batch",
        fleet,
        "--plugin",
        own,
        "--reinit",
        "model=sparse(share=0.5)",
    ]
    done = run(*arguments, "-o", tmp_path / "out")
    assert done.exit_code == 0, done.output
    assert "done    1 checkpoint," in done.output
    done = run(*arguments, "-o", tmp_path / "out")
    assert "skipped 1 checkpoint" in done.output
    own.write_text(OWN + "# changed")
    done = run(*arguments, "-o", tmp_path / "out", "-f")
    assert "done    1 checkpoint," in done.output
    (out,) = (tmp_path / "out").rglob("*.safetensors")
    assert 0.3 < (open_checkpoint(out)["charlm/softmax/kernel"].read() != 0).mean() < 0.7


def test_the_list_of_plugins_has_initializers(tmp_path: Path) -> None:
    done = run("plugins")
    assert "\nInitializers:\n" in done.output
    assert "orthogonal            A random matrix with orthonormal columns" in done.output
    explained = run("plugins", "truncated_normal").output
    assert explained.startswith("truncated_normal(mean=0, stddev=0.05)  (built in)\n")
    assert "  stddev\n      their standard deviation before the cut\n" in explained
    own = tmp_path / "sparse.py"
    own.write_text(OWN)
    assert run("plugins", own).output == (
        f"sparse  Zeros, but for some entries that are normal  ({own})\n"
    )
    rows = json.loads(run("plugins", own, "--json").output)
    assert rows["plugins"] == []
    assert rows["initializers"] == [
        {
            "name": "sparse",
            "summary": "Zeros, but for some entries that are normal",
            "origin": str(own),
            "signature": "sparse(share=0.1)",
            "arguments": [{"name": "share", "help": "how many entries are not zero"}],
        }
    ]


def test_a_damaged_source_is_told_as_such() -> None:
    source = case("bad_flipped_data_byte").path
    strategy = made(reinit={"RNN/GRUCell/Gates/Linear/Matrix": "match"})
    with pytest.raises(ConverterError) as caught:
        convert(source, "/nonexistent/out.safetensors", [strategy])
    assert caught.value.exit_code in (1, 3)


@pytest.mark.slow
def test_a_model_that_is_drawn_anew_trains_from_its_own_graph(tmp_path: Path) -> None:
    tf = pytest.importorskip("tensorflow").compat.v1
    recorded = case("tf14_v2_charlm_lstm_ema")
    strategy = made(reinit={"*": "glorot_uniform"}, hidden={"*lstm*": "orthogonal"})
    convert(recorded.path, tmp_path / "out", [strategy], to="tf")
    prefix = str(tmp_path / "out" / "model.ckpt-300")
    text = np.array([recorded.record["vocabulary"].index(c) for c in recorded.record["text"]])
    x, y = text[None, :-1], text[None, 1:]

    def loss(session: Any) -> float:
        logits = session.run("charlm/softmax/BiasAdd:0", {"x:0": x})[0].astype("f8")
        logits -= np.log(np.exp(logits).sum(axis=-1, keepdims=True))
        return float(-logits[np.arange(y.size), y[0]].mean())

    losses = []
    with tf.Graph().as_default(), tf.Session() as session:
        saver = tf.train.import_meta_graph(f"{prefix}.meta")
        saver.restore(session, recorded.path)
        losses.append(loss(session))
        saver.restore(session, prefix)
        losses.append(loss(session))
        for _ in range(60):
            session.run("Adam", {"x:0": x, "y:0": y})
        losses.append(loss(session))
    assert losses[0] < 0.2
    # As before the training: all letters are about as likely.
    assert abs(losses[1] - recorded.record["training"]["first_loss"]) < 0.2
    assert losses[2] < 0.7 * losses[1]


def test_notes_tell_how_kernels_are_cut(lstm: str) -> None:
    source = open_checkpoint(lstm)
    start = "recurrent kernels are drawn gate by gate: 1, such as charlm/rnn/lstm_cell/kernel, "
    for given, layout in (
        ({"reinit": {"*/kernel": "normal"}}, "38 rows"),
        ({"hidden": {"*/kernel": "normal"}}, "30 hidden rows"),
        (
            {"reinit": {"*/kernel": "normal"}, "input": {"*/kernel": "zeros"}},
            "8 input rows + 30 hidden rows",
        ),
    ):
        assert f"{start}{layout}, 4*30 columns (i, j, f, o)" in made(**given).notes(source)


def test_the_example_in_the_docstring_works(tmp_path: Path, lstm: str) -> None:
    (line,) = (r for r in (Reinit.__doc__ or "").splitlines() if "convert ckpt" in r)
    arguments = shlex.split(line)[1:]
    arguments[arguments.index("model.ckpt")] = lstm
    arguments[arguments.index("out/")] = f"{tmp_path}/out/"
    done = run(*arguments)
    assert done.exit_code == 0, done.output
    after = open_checkpoint(tmp_path / "out")["charlm/softmax/kernel"].read()
    assert 0.9 * math.sqrt(6 / 44) < limit(after) <= math.sqrt(6 / 44)


@pytest.mark.parametrize(
    ("name", "adds"),
    [
        ("rnn/cudnn_compatible_lstm_cell/bias", False),
        ("RNN/LayerNormBasicLSTMCell/linear/b", True),
        ("RNN/MultiRNNCell/Cell0/LSTMCell/B", True),
        ("rnn/gru_cell/gates/bias", False),
    ],
)
def test_what_adds_a_forget_bias_is_that_of_its_class(name: str, adds: bool) -> None:
    source = checkpoint({name: np.full(8, 9, "f4")})
    told = [note for note in made(reinit={name: "zeros"}).notes(source) if "forget bias" in note]
    assert bool(told) == adds
