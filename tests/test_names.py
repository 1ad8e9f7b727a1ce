"""Roles by name: what TensorFlow's optimizers say of their own slots, and what only looks alike."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import pytest
from conftest import DATA

from converter import Variable
from converter.dtype import BY_NAME
from converter.names import MODEL, Kind, Role, leaf, optimizers
from converter.names.by_name import roles
from converter.names.evidence import scope_of
from converter.names.optimizers import slots_of_op
from converter.variable import Array, Region

# Made by TensorFlow 0.12.1 to 2.21: of each variable the shape, the dtype and the role, which is
# what `Optimizer.get_slot` and `ExponentialMovingAverage.average` answered for it; null where
# they were not asked.
SLOTS = json.loads((DATA / "slots.json").read_text())
MODEL_LEAVES = {"w", "b", "s", "kernel", "bias", "gamma", "beta"}

INT = "int64"


def unread(region: Region) -> Array:
    raise AssertionError("roles are told without reading")


def variables(names: Mapping[str, Any]) -> dict[str, Variable]:
    """Make variables of a shape and float32, or of `(shape, dtype)`."""
    made = {}
    for name, what in names.items():
        shape, dtype = what if what and isinstance(what[0], tuple) else (what, "float32")
        made[name] = Variable(name, BY_NAME[dtype], shape, load=unread)
    return made


def told(names: Mapping[str, Any]) -> dict[str, Role]:
    """Return the roles of all but the model variables."""
    return {name: role for name, role in roles(variables(names)).items() if role != MODEL}


@pytest.mark.parametrize("label", SLOTS)
def test_slots_are_what_tensorflow_says(label: str) -> None:
    recorded = SLOTS[label]
    found = roles(
        variables({n: (tuple(shape), dtype) for n, (shape, dtype, _) in recorded.items()})
    )
    assert list(found) == list(recorded)
    for name, (_, _, expected) in recorded.items():
        role = found[name]
        if expected == ["beta_power"]:
            assert role.kind == "beta_power", name
        elif expected is not None:
            assert [role.kind, role.of, role.slot] == expected, name
        elif name.rpartition("/")[2] in MODEL_LEAVES:
            assert role == MODEL, name


def test_optimizer_is_named() -> None:
    found = told({"w": (3,), "w/Adam": (3,), "w/Adam_1": (3,), "beta1_power": ()})
    assert found == {
        "w/Adam": Role("slot", "w", "m", "Adam"),
        "w/Adam_1": Role("slot", "w", "v", "Adam"),
        "beta1_power": Role("beta_power", optimizer="Adam"),
    }
    found = told({"w": (3,), "w/AdaMax_1": (3,), "x/beta1_power": ()})
    assert found["x/beta1_power"] == Role("beta_power", optimizer="AdaMax")
    assert told({"beta1_power": ()})["beta1_power"].optimizer == "Adam"
    complex_numbers = ((3,), "complex64")
    assert told({"w": complex_numbers, "w/Adam": complex_numbers})["w/Adam"].of == "w"


LOOKALIKES: dict[str, dict[str, Any]] = {
    "no parent": {"Adam": (3,), "net/Momentum": (3,), "x/adam_v": (3,), "v_slot_v": (3,)},
    "another shape": {"w": (3,), "w/Adam": (4,), "w/adam_m": (4,), "Adam/m/w": (4,)},
    "another shape of a part": {"w": (3,), "w/0/Adam": (4,)},
    "no part": {"w": (3,), "w/part_/Adam": (3,), "w//Adam": (4,)},
    "no matrix": {"w": (3, 4), "w/Shampoo": (5, 5), "w/Shampoo_1": (3, 3, 3)},
    "a scope called Adam": {"Adam/w": (3,), "Adam/b": (3,), "Adam/dense/m": (3,)},
    "scopes around a variable": {"w": (3,), "x": (3,), "Adam/w/g": (3,), "Adam/g/w": (3,)},
    "a scope with a step": {"net/iter": ((), INT), "w": (3,), "x": (3,), "net/w/m": (3,)},
    "deep in a scope of Keras": {"Adam/iter/x": ((), INT), "Adam/global_step/y": (3,)},
    "a layer called Momentum": {"Momentum/kernel": (3, 3), "Momentum/bias": (3,)},
    "a scope of Keras 3": {"adam/dense_kernel_momentum": (3,), "dense/bias": (3,)},
    "strings": {"w": ((3,), "string"), "w/Adam": ((3,), "string"), "global_step": ((), "string")},
    "integers": dict.fromkeys(["w", "w/Adagrad", "w/adam_m", "Adam/m/w"], ((3,), INT)),
    "integers elsewhere": dict.fromkeys(["moving_mean", "x", "x_slot_v"], ((3,), INT)),
    "one variable below another": {"prefix": (1,), "prefix/child": (1,), "other": (1,)},
    "an Adam below one of several": {"a": (3,), "b": (3,), "a/my_adam": (3,)},
    "below several, smaller": {"a": (3,), "a/g": (1,), "b": (3,), "b/g": (1,)},
    "below several, one smaller": {"a": (3,), "a/g": (3,), "a/g_1": (1,), "b": (3,), "b/g": (3,)},
    "masks": {"a": (3,), "a/mask": (3,), "b": (3,), "b/mask": (3,)},
    "below one of several": {"a": (3,), "a/g": (3,), "b": (3,), "c": (3,)},
    "also below none": {"a": (3,), "a/g": (3,), "b": (3,), "b/g": (3,), "c/g": (3,)},
    "first below none": dict.fromkeys(["c/g", "a", "a/g", "a/g_1", "b", "b/g", "b/g_1"], (3,)),
    "no slots of Keras": dict.fromkeys(["w", "x", "y", "adam/w_foo", "w/Adam/foo", "z"], (3,)),
    "integers below integers": dict.fromkeys(["a", "a/foo", "b", "b/foo"], ((3,), INT)),
    "slashes at the end": {"a": (3,), "a/": (3,), "b": (3,), "b/": (3,)},
    "no scalars": {"beta1_power": (3,), "global_step": (2,), "iteration": ((2,), INT)},
    "steps of something": {"net/iterations": ((), INT), "net/step": ((), INT), "iteration": ()},
    "steps that do not count": {"step": (), "step_1": ((), INT), "train_step": ((1,), INT)},
    "no step beside": {"learning_rate": (), "net/decay": (), "SGD/decay": (), "net/rho": ()},
    "tables of two sizes": {"x-keys": ((3,), INT), "x-values": (4,)},
    "half a table": {"y-keys": ((3,), INT), "z-values": (3,)},
    "no tables": {"x-keys": (3,), "x-values": (3,), "y-keys": ((), INT), "y-values": ()},
    "factors of another shape": {"v": (3, 4), "v_slot_vr": (3, 4), "v_slot_vc": (5,)},
    "half of GGT": {"grad_buffer": (10, 7), "moment1": (7,), "flat_grad": (6,)},
    "no buffer of GGT": {"grad_buffer": (7,), "moment1": (), "flat_grad": ()},
    "a scale alone": {"loss_scale": (), "moment1": (3,)},
    "debiased what": {"biased": (3,), "local_step": (), "w/biased": (3,)},
    "averages of nothing": {"mean/w": (3,), "x/EMA": (3,)},
    "no bookkeeping": {"save_counter": (), "x/save_counter": ((), INT), "OBJECT_CONFIG_JSON": ()},
    "parts of complex numbers": dict.fromkeys(["w", "w/real", "w/imag", "b", "b/real"], (3,)),
    "targets": dict.fromkeys(["w", "w/target", "b", "b/target", "b/g", "w/g"], (3,)),
    "heads": dict.fromkeys([f"{w}{head}" for w in "ab" for head in ["", "/h", "/h_1"]], (3,)),
    "one below each": dict.fromkeys(["a", "a/foo", "b", "b/foo"], (3,)),
    "odd names": {"": (3,), "/": (3,), "//Adam": (4,)},
}


@pytest.mark.parametrize("label", LOOKALIKES)
def test_what_only_looks_like_state_is_a_model_variable(label: str) -> None:
    assert told(LOOKALIKES[label]) == {}


def test_two_optimizers_on_one_variable() -> None:
    names = {"w": (3,), "w/Momentum": (3,), **{f"w/RMSProp{n}": (3,) for n in ["", "_1", "_2"]}}
    assert [role.slot for role in told(names).values()] == ["momentum", "rms", "mg", "momentum"]
    # Four are two plain ones, five a centred and a plain one in an order that nothing tells.
    names = {"w": (3,)} | {f"w/RMSProp{n}": (3,) for n in ["", "_1", "_2", "_3"]}
    assert [role.slot for role in told(names).values()] == ["rms", "momentum"] * 2
    assert [role.slot for role in told(names | {"w/RMSProp_4": (3,)}).values()] == [
        "rms",
        *[None] * 4,
    ]


def test_three_optimizers_on_one_variable() -> None:
    found = told({"w": (3,), **{f"w/Adadelta{n}": (3,) for n in ["", "_1", "_2", "_3", "_4"]}})
    assert [role.slot for role in found.values()] == [*["accum", "accum_update"] * 2, "accum"]
    found = told({"w": (3,), "w/Momentum": (3,), "w/Momentum_1": (3,), "w/Momentum_2": (3,)})
    assert [role.slot for role in found.values()] == ["momentum"] * 3


def test_slots_that_are_left_of_a_set() -> None:
    found = told({"w": (3,), "w/Adam_1": (3,), "w/Adam_4": (3,), "w/RMSProp_1": (3,)})
    assert [role.slot for role in found.values()] == ["v", "m", "momentum"]
    assert list(told({"w": (3,), "w/Adam": (3,), "w/Adam_1": (5,)})) == ["w/Adam"]


def test_matrices_in_an_order_that_shampoo_has_not() -> None:
    found = told({"w": (3, 4), "w/Shampoo": (3, 4), "w/Shampoo_1": (4, 4), "w/Shampoo_2": (3, 3)})
    assert list(found.values()) == [Role("slot", "w", None, "Shampoo")] * 3
    found = told({"w": (3,), "w/Shampoo": (3,), "w/Shampoo_1": (3, 3), "w/Shampoo_2": (3, 3)})
    assert [role.slot for role in found.values()] == ["gbar", "H_0", "Gbar_0"]


def test_numbers_that_go_on_from_another_graph() -> None:
    names = {"w": (3,), "w/RMSProp_2": (3,), "w/RMSProp_3": (3,), "w/RMSProp_4": (3,)}
    assert [role.slot for role in told(names).values()] == ["rms", "mg", "momentum"]
    assert told({"w": (3,), "w/Adam_1": (3,)})["w/Adam_1"].slot == "v"


def test_the_longest_name_is_the_owner() -> None:
    names = {"w": (3,), "net/w": (3,), "train/net/w/Adam": (3,)}
    assert told(names)["train/net/w/Adam"].of == "net/w"
    assert told(names | {"net/w": (4,)})["train/net/w/Adam"].of == "w"


def test_slots_of_estimators_whose_names_tensorflow_mangles() -> None:
    found = told(
        {
            "dnn/hiddenlayer_0/kernel": (7, 5),
            "dnn/hiddenlayer_0/kernel/t_0/Adagrad": (7, 5),
            "linear/weights": (3, 1),
            "linear/weights/part_0/Ftrl": (3, 1),
            "linear/weights/part_0/Ftrl_1": (3, 1),
            "linear/weights/other_0/Ftrl": (3, 1),
        }
    )
    assert found == {
        "dnn/hiddenlayer_0/kernel/t_0/Adagrad": Role(
            "slot", "dnn/hiddenlayer_0/kernel", "accumulator", "Adagrad"
        ),
        "linear/weights/part_0/Ftrl": Role("slot", "linear/weights", "accum", "Ftrl"),
        "linear/weights/part_0/Ftrl_1": Role("slot", "linear/weights", "linear", "Ftrl"),
    }


def test_slots_with_names_of_their_own() -> None:
    found = told(
        {
            "bert/w": (3, 4),
            "bert/w/adam_m": (3, 4),
            "bert/w/adam_v": (3, 4),
            "t5/w": (3, 4),
            "t5/w_slot_vr": (4,),
            "t5/w_slot_vc": (3,),
            "t5/scale": (4,),
            "t5/scale_slot_v": (4,),
            "t5/scale_slot_m": (4,),
        }
    )
    assert [(role.of, role.slot, role.optimizer) for role in found.values()] == [
        ("bert/w", "m", "AdamWeightDecayOptimizer"),
        ("bert/w", "v", "AdamWeightDecayOptimizer"),
        ("t5/w", "vr", "Adafactor"),
        ("t5/w", "vc", "Adafactor"),
        ("t5/scale", "v", "Adafactor"),
        ("t5/scale", "m", "Adafactor"),
    ]


def test_tensor2tensor() -> None:
    found = told(
        {
            "w": (3, 3),
            "w/Adafactor": (3,),
            "w/Adafactor_1": (3,),
            "x": (3, 4),
            "x/Adafactor": (3, 4),
            "x/Adafactor_1": (3,),
            "x/Adafactor_2": (4,),
            "b": (4,),
            "b/Adafactor": (4,),
            "c": (4,),
            "c/Adafactor": (4,),
            "c/Adafactor_1": (4,),
            "y": (2,),
            "y/Adam": (2,),
            "y/Adam_1": (2,),
            "y/Adam_2": (2,),
        }
    )
    assert [role.slot for role in found.values()] == [
        *["vr", "vc", "m", "vr", "vc", "v", "m", "v"],
        *["m", "v", "grad_acc"],
    ]


def test_a_name_that_somebody_gave_the_optimizer() -> None:
    model: dict[str, tuple[int, ...]] = {"w": (3, 4), "b": (4,), "s": ()}

    def slots(*suffixes: str, **others: tuple[int, ...]) -> dict[str, str | None]:
        names = {f"{name}/{suffix}": shape for name, shape in model.items() for suffix in suffixes}
        found = told(model | names | others)
        assert {found[name].of for name in names} == set(model)
        assert {found[name].kind for name in names} == {"slot"}
        return {suffix: found[f"w/{suffix}"].slot for suffix in suffixes}

    assert slots("foo", "foo_1", beta1_power=(), beta2_power=()) == {"foo": "m", "foo_1": "v"}
    assert slots("D_AdamOptimizer", "D_AdamOptimizer_1") == {
        "D_AdamOptimizer": "m",
        "D_AdamOptimizer_1": "v",
    }
    assert slots("my_momentum") == {"my_momentum": "momentum"}
    two = ("RMSPropOptimizer", "RMSPropOptimizer_1")
    assert slots(*two, beta1_power=()) == dict(zip(two, ["rms", "momentum"], strict=True))


def below(names: str, *suffixes: str) -> dict[str, Any]:
    return {f"{name}/{suffix}": (3,) for name in names for suffix in suffixes}


POWERS: dict[str, Any] = {"beta1_power": (), "beta2_power": ()}


def test_self_named_optimizers_of_several_sets_of_variables() -> None:
    pairs = {"a": (3,), **below("a", "D", "D_1"), "b": (3,), **below("b", "G", "G_1")}
    assert not set(told(pairs | {"c": (3,)} | POWERS)) - set(POWERS)
    a = dict.fromkeys(["a", "b", "c", "d"], (3,))
    two = POWERS | {"G/beta1_power_1": (), "G/beta2_power_1": ()}
    found = told(a | below("ab", "D", "D_1") | below("cd", "G", "G_1") | two)
    assert [(role.of, role.slot, role.optimizer) for role in found.values()][:8] == [
        *(("a", "m", "D"), ("a", "v", "D"), ("b", "m", "D"), ("b", "v", "D")),
        *(("c", "m", "G"), ("c", "v", "G"), ("d", "m", "G"), ("d", "v", "G")),
    ]
    assert told(a | below("ab", "my_adam"))["a/my_adam"].slot == "m"


@pytest.mark.parametrize(
    "state",
    [
        below("ab", "foo", "foo_1"),
        below("ab", "foo") | POWERS,
        below("ab", "foo", "foo_1", "foo_2") | POWERS,
        below("ab", "foo", "foo_1", "bar", "bar_1") | POWERS,
        below("a", "foo", "foo_1") | POWERS,
        below("ab", "foo", "foo_1", "real") | POWERS,
        below("ab", "foo", "foo_1", "Adam", "Adam_1") | POWERS,
        below("ab", "foo", "foo_1", "my_adam", "my_adam_1") | POWERS,
        below("ab", "foo", "foo_1", "Momentum") | {"global_step": ((), INT)},
        below("ab", "foo", "foo_1") | {"beta2_power": ()},
    ],
    ids=[
        "no beta powers",
        "one slot",
        "three slots",
        "more pairs than beta powers",
        "some variables only",
        "variables without slots",
        "the beta powers are Adam's",
        "the beta powers are those of my_adam",
        "another optimizer",
        "half of the beta powers",
    ],
)
def test_what_lies_below_variables_is_kept_unless_beta_powers_explain_it(
    state: dict[str, Any],
) -> None:
    found = told({"a": (3,), "b": (3,)} | state)
    assert not [name for name in found if "/foo" in name or "/bar" in name]


def test_averages() -> None:
    found = told(
        {
            "w": (3,),
            "w/ExponentialMovingAverage": (3,),
            "w/ExponentialMovingAverage/biased": (3,),
            "w/ExponentialMovingAverage/local_step": (),
            "w/Adam": (3,),
            "w/Adam/ExponentialMovingAverage": (3,),
            "bn/moving_mean": (3,),
            "bn/moving_mean/ExponentialMovingAverage": (3,),
            "mul/ExponentialMovingAverage": (),
            "conv/moving_mean/biased": (3,),
            "x": (3,),
            "w/my_ema": (3,),
            "x/my_ema": (3,),
        }
    )
    assert found == {
        "w/ExponentialMovingAverage": Role("average", "w"),
        "w/ExponentialMovingAverage/biased": Role("average", "w", "biased"),
        "w/ExponentialMovingAverage/local_step": Role("average", "w", "local_step"),
        "w/Adam": Role("slot", "w", "m", "Adam"),
        "w/Adam/ExponentialMovingAverage": Role("average", "w/Adam", optimizer="Adam"),
        "bn/moving_mean": Role("batch_statistic"),
        "bn/moving_mean/ExponentialMovingAverage": Role("average", "bn/moving_mean"),
        "mul/ExponentialMovingAverage": Role("average"),
        "conv/moving_mean/biased": Role("batch_statistic"),
        "w/my_ema": Role("average", "w"),
        "x/my_ema": Role("average", "x"),
    }
    assert {name for name, role in found.items() if role.is_optimizer_state} == {
        "w/Adam",
        "w/Adam/ExponentialMovingAverage",
    }


def test_everything_else() -> None:
    found = told(
        {
            "global_step": ((), INT),
            "train/global_step_1": (),
            "step": ((), INT),
            "training/iter": ((), INT),
            "vocabulary-keys": ((4,), "string"),
            "vocabulary-values": ((4,), INT),
            "a/table-keys": ((4, 1), INT),
            "a/table-values": (4, 2),
            "bn/moving_variance_1": (3,),
            "bn/renorm_stddev_weight": (),
            "conv/mean/EMA": (3,),
            "opt/grad_buffer_1": (10, 7),
            "opt/moment1_1": (7,),
            "opt/flat_grad_1": (7,),
            "loss_scale": (),
            "good_steps": ((), "int32"),
            "bad_steps": (1,),
            "iteration": ((), INT),
            "beta": (),
            "layer/OBJECT_CONFIG_JSON": ((), "string"),
            "save_counter": ((), INT),
            "_CHECKPOINTABLE_OBJECT_GRAPH": ((), "string"),
        }
    )
    assert [(role.kind, role.optimizer) for role in found.values()] == [
        *[("step", None)] * 4,
        *[("table", None)] * 4,
        *[("batch_statistic", None)] * 3,
        *[("optimizer", "GGT")] * 3,
        *[("optimizer", None)] * 2,
        ("step", None),
        ("object_graph", None),
        ("save_counter", None),
        ("object_graph", None),
    ]


KERAS = {
    "to 2.10": {
        "training/Adam/iter": ((), INT),
        "training/Adam/beta_1": (),
        "training/Adam/net/w/m": (3, 4),
        "training/Adam/net/w/v": (3, 4),
    },
    "2.11 and later": {
        "iteration": ((), INT),
        "learning_rate": (),
        "Adam/m/net/w": (3, 4),
        "Adam/v/net/w": (3, 4),
    },
    "3": {
        "adam_1/iteration": ((), INT),
        "adam_1/learning_rate": (),
        "adam_1/net_w_momentum": (3, 4),
        "adam_1/net_w_velocity": (3, 4),
    },
}


@pytest.mark.parametrize("era", KERAS)
def test_keras(era: str) -> None:
    found = told({"net/w": (3, 4), "net/x": (3, 4), **KERAS[era]})
    step, hyperparameter, m, v = found.values()
    assert step == Role("step")
    assert hyperparameter.kind == "optimizer"
    assert hyperparameter.optimizer in ("Adam", None)
    names = ("momentum", "velocity") if era == "3" else ("m", "v")
    assert [m, v] == [Role("slot", "net/w", name, "Adam") for name in names]


def test_keras_oddities() -> None:
    found = told(
        {
            "w": (3, 4),
            "adam_w/w_velocity_hat": (3, 4),
            "rm_sprop/w_average_gradient": (3, 4),
            "Adafactor/r/w": (3,),
            "Adafactor/c/w": (4,),
            "Nadam/m/w": (3, 4),
            "Nadam/Variable": (),
            "Adam/average/w": (3, 4),
            "table": (9, 2),
            "table/Adam/m": (9, 2),
            "Mine/iter": ((), INT),
            "Mine/learning_rate": (),
            "Mine/w/rms": (3, 4),
            "Mine/temperature": (),
            "SGD/decay": (),
            "SGD/learning_rate": (),
            "Nadam/other": (),
            "opt/_iterations": ((), INT),
            "opt/_learning_rate": (),
            "opt/beta": (3,),
        }
    )
    assert found == {
        "adam_w/w_velocity_hat": Role("slot", "w", "velocity_hat", "AdamW"),
        "rm_sprop/w_average_gradient": Role("slot", "w", "average_gradient", "RMSprop"),
        "Adafactor/r/w": Role("slot", "w", "r", "Adafactor"),
        "Adafactor/c/w": Role("slot", "w", "c", "Adafactor"),
        "Nadam/m/w": Role("slot", "w", "m", "Nadam"),
        "Nadam/Variable": Role("optimizer", optimizer="Nadam"),
        "Adam/average/w": Role("average", "w"),
        "table/Adam/m": Role("slot", "table", "m", "Adam"),
        "Mine/iter": Role("step"),
        "Mine/learning_rate": Role("optimizer", optimizer="Mine"),
        "Mine/w/rms": Role("slot", "w", "rms", "Mine"),
        "SGD/decay": Role("optimizer", optimizer="SGD"),
        "SGD/learning_rate": Role("optimizer", optimizer="SGD"),
        "Nadam/other": Role("optimizer", optimizer="Nadam"),
        "opt/_iterations": Role("step"),
        "opt/_learning_rate": Role("optimizer", optimizer="opt"),
    }


def test_a_scope_with_a_step_is_not_yet_an_optimizers() -> None:
    names = {"train/iter": ((), INT), "w": (3,), "x": (3,), "train/w/m": (3,), "train/y": (3,)}
    assert told(names) == {"train/iter": Role("step")}
    assert list(told({"Adam/global_step": ((), INT), "Adam/w": (3,)})) == ["Adam/global_step"]
    names = {"Adam/iter": ((), INT), "Adam/other": ()}
    assert told(names)["Adam/other"] == Role("optimizer", optimizer="Adam")


def test_slots_that_keras_left_nameless() -> None:
    found = told(
        {
            "Adam/iterations": ((), INT),
            "Adam/lr": (),
            "training/Adam/Variable": (3, 4),
            "training/Adam/Variable_7": (3, 4),
            "training/SGD/Variable": (3, 4),
            "training/Adam/other": (3, 4),
            "training/Adam/x/m": (3, 4),
        }
    )
    assert found == {
        "Adam/iterations": Role("step"),
        "Adam/lr": Role("optimizer", optimizer="Adam"),
        "training/Adam/Variable": Role("optimizer", optimizer="Adam"),
        "training/Adam/Variable_7": Role("optimizer", optimizer="Adam"),
    }


def test_scope() -> None:
    assert scope_of("a/b/kernel") == "a/b"
    assert [scope_of("a/b/kernel", depth) for depth in range(4)] == ["", "a", "a/b", "a/b"]
    assert scope_of("kernel") == scope_of("kernel", 1) == ""


@pytest.mark.parametrize(
    "names",
    [
        ["/" * 200_000 + "Adam", "Adam/" * 50_000 + "w", "w/" * 100_000 + "Adam_1", "w_" * 100_000],
        ["/".join("a" * 300) + f"/{n}/Adam" for n in range(1000)],
        [
            "w",
            *(f"w/Adam_{n}" for n in range(1, 10_000)),
            *(f"w/foo_{n}" for n in range(1, 10_000)),
        ],
        [f"a/{'9' * n}_{'9' * n}" for n in range(2000)],
    ],
    ids=["long", "deep", "numbered", "digits"],
)
@pytest.mark.usefixtures("must_end")
def test_names_made_to_take_long(names: list[str]) -> None:
    made = variables(dict.fromkeys(names, (3,)))
    assert list(roles(made)) == names


def test_the_page_on_names_lists_every_optimizer_and_its_slots() -> None:
    page = (Path(__file__).parent.parent / "docs" / "names.md").read_text()
    rows = [line for line in page.splitlines() if line.startswith("| `")]
    for optimizer, slots in optimizers.SLOTS.items():
        row = next(row for row in rows if f"`{optimizer}`" in row)
        assert all(slot in row for slot in slots), optimizer
    for kind in get_args(Kind):
        assert any(f"`{kind}`" in row for row in rows), kind
    for name in [*optimizers.NAMED_SLOTS, *leaf.BATCH_STATISTICS]:
        assert name in page or name.removesuffix("_weight") in page, name


@pytest.mark.parametrize(
    ("op", "found"),
    [
        ("ApplyAdam", ("Adam", ("m", "v"))),
        ("ResourceSparseApplyFtrlV2", ("Ftrl", ("accum", "linear"))),
        ("SparseApplyCenteredRMSProp", ("RMSProp", ("mg", "rms", "momentum"))),
        ("ResourceApplyKerasMomentum", ("Momentum", ("momentum",))),
        ("ApplyGradientDescent", (None, ())),
        ("MatMul", (None, ())),
    ],
)
def test_what_an_op_that_applies_gradients_takes(
    op: str, found: tuple[str | None, tuple[str, ...]]
) -> None:
    assert slots_of_op(op) == found
