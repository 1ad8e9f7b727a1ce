"""Object checkpoints: names, copies, and what an optimizer owns, by graphs made by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from object_maker import VALUE, Object, count, listed, scalar, stored, var

from converter import InputError
from converter.formats import OBJECT_GRAPH_KEY as KEY
from converter.formats import bundle, messages, object_graph
from converter.formats.object_graph import Objects
from converter.names import Role
from converter.names.by_name import roles
from converter.names.objects import object_roles
from converter.variable import Stored


def read(root: Object) -> Objects:
    return object_graph.read(*stored(root), "x.index")


def shown(root: Object) -> dict[str, str]:
    """Return name by path of everything but the graph itself."""
    return {entry.path: entry.name for entry in read(root).entries if entry.key != KEY}


def told(root: Object) -> dict[str, Role]:
    """Return role by path of everything but model variables and the graph itself."""
    data, variables = stored(root)
    entries = object_graph.read(data, variables, "x.index").entries
    found = object_roles(entries, {e.name: variables[e.key].rename(e.name) for e in entries})
    assert list(found) == [entry.name for entry in entries]
    return {
        entry.path: found[entry.name]
        for entry in entries
        if entry.key != KEY and found[entry.name].kind != "model"
    }


# -- names ----------------------------------------------------------------------------------------


def test_full_names_where_they_are_unique_else_paths() -> None:
    shared = var("shared")
    model = Object(
        {
            "dense": Object({"kernel": var("net/dense/kernel"), "bias": var("bias")}),
            "other": Object({"bias": var("bias"), "none": var(""), "again": shared}),
            "tied": shared,
        }
    )
    assert shown(Object({"model": model})) == {
        "model/dense/kernel": "net/dense/kernel",
        "model/dense/bias": "model/dense/bias",
        "model/other/bias": "model/other/bias",
        "model/other/none": "model/other/none",
        "model/tied": "shared",
    }


def test_local_names_are_unescaped() -> None:
    objects = Object({"a.b/c": Object({".": var(), "..S": var(), "/": var()})})
    assert shown(objects) == {name: name for name in ["a.b/c/.", "a.b/c/..S", "a.b/c//"]}


def test_names_stay_unique() -> None:
    # The full name of one is the path of another, and two paths are alike unescaped.
    data, variables = stored(
        Object(
            {"a": Object({"b": var("")}), "a/b": var(""), "c": var("d"), "d": var(""), "e": var("")}
        )
    )
    names = {e.key: e.name for e in object_graph.read(data, variables, "x").entries}
    assert names == {
        KEY: KEY,
        "a/b" + VALUE: "a/b" + VALUE,
        "a.Sb" + VALUE: "a.Sb" + VALUE,
        "c" + VALUE: "c",
        "d" + VALUE: "d",
        "e" + VALUE: "e",
    }


def test_names_stay_unique_where_keys_are_paths() -> None:
    inner = Object({VALUE.removeprefix("/"): var("")}, "", (3, 4))
    objects = read(Object({"a": Object({"b": inner}), "a/b": var("")}))
    assert [entry.name for entry in objects.entries] == [entry.key for entry in objects.entries]


def test_a_root_that_is_a_variable_and_a_path_that_is_a_key() -> None:
    root = var("", ())
    assert [e.name for e in read(root).entries] == [KEY, VALUE]
    twisted = Object({"a": var(""), "a" + VALUE: var("")})
    names = [entry.name for entry in read(twisted).entries]
    assert len(set(names)) == 3


def test_other_attributes_keep_their_names() -> None:
    table = Object(attributes={"table-keys": "string", "table-values": "int64"})
    config = Object(attributes={"OBJECT_CONFIG_JSON": "string"})
    root = Object({"vocabulary": table, "layer": config})
    assert list(shown(root)) == [
        "vocabulary/table-keys",
        "vocabulary/table-values",
        "layer/OBJECT_CONFIG_JSON",
    ]
    assert told(root) == {
        "vocabulary/table-keys": Role("table"),
        "vocabulary/table-values": Role("table"),
        "layer/OBJECT_CONFIG_JSON": Role("object_graph"),
    }


def test_keys_without_an_object_are_shown() -> None:
    data, variables = stored(Object({"a": var("name")}))
    variables["b" + VALUE] = variables["a" + VALUE].rename("b" + VALUE)
    names = [entry.name for entry in object_graph.read(data, variables, "x").entries]
    assert names == [KEY, "name", "b"]


# -- copies ---------------------------------------------------------------------------------------


def export(**changed: Any) -> Object:
    names = ["net/kernel", "net/bias", "net/mean"]
    first, second = [var(name) for name in names], [var(name) for name in reversed(names)]
    for name, value in changed.items():
        setattr(second[0], name, value)
    return Object(
        {
            "variables": listed(*first),
            "trainable_variables": listed(*first[:2]),
            "_all_variables": listed(*second),
        }
    )


def test_what_keras_3_exports_twice_appears_once() -> None:
    objects = read(export())
    assert [entry.name for entry in objects.entries] == [KEY, "net/kernel", "net/bias", "net/mean"]
    assert objects.duplicates == {
        f"_all_variables/{copy}{VALUE}": f"variables/{2 - copy}{VALUE}" for copy in range(3)
    }


@pytest.mark.parametrize(
    "changed", [{"crc32c": 8}, {"name": "net/x"}, {"shape": (4, 3)}, {"dtype": "int32"}], ids=str
)
def test_lists_that_differ_are_no_copies(changed: dict[str, Any]) -> None:
    objects = read(export(**changed))
    assert not objects.duplicates
    assert len(objects.entries) == 7


@pytest.mark.parametrize("fault", ["shorter", "bytes", "crc32c", "missing", "nameless", "alone"])
def test_copies_that_cannot_be_compared_are_none(fault: str) -> None:
    root = export(name="") if fault == "nameless" else export()
    children = dict(root.children)
    if fault == "shorter":
        children["_all_variables"] = listed(*list(children["_all_variables"].children.values())[:2])
    if fault == "alone":
        del children["variables"], children["trainable_variables"]
    data, variables = stored(Object(children))
    key = f"_all_variables/0{VALUE}"
    if fault == "bytes":
        variables[key] = replace(variables[key], stored=None)
    if fault == "crc32c":
        variables[key] = replace(variables[key], stored=Stored(Path("x"), 0, 0))
    if fault == "missing":
        del variables[key]
    objects = object_graph.read(data, variables, "x")
    assert not objects.duplicates
    assert len(objects.entries) == len(variables)


def test_equal_lists_of_other_names_are_no_copies() -> None:
    zeros = {name: listed(var("Variable"), var("Variable")) for name in ["m", "v", "variables"]}
    assert not read(Object(zeros)).duplicates
    inner = Object({name: listed(var("w")) for name in ["variables", "_all_variables"]})
    assert not read(Object({"model": inner})).duplicates


def test_elements_that_are_alike_are_not_merged_among_themselves() -> None:
    twice = [listed(var("w"), var("w")) for _ in range(2)]
    objects = read(Object(dict(zip(["variables", "_all_variables"], twice, strict=True))))
    assert [entry.name for entry in objects.entries] == [KEY, "variables/0", "variables/1"]


# -- optimizers -----------------------------------------------------------------------------------


def test_recorded_slots() -> None:
    kernel, bias = var("dense/kernel"), var("dense/bias", (4,))
    optimizer = Object(
        {"iter": count("Adam/iter"), "learning_rate": scalar("Adam/learning_rate")},
        slots=[
            (kernel, "m", var("Adam/dense/kernel/m")),
            (bias, "m", var("Adam/dense/bias/m", (4,))),
            (bias, "average", var("Adam/dense/bias/average", (4,))),
        ],
    )
    assert told(Object({"model": Object({"k": kernel, "b": bias}), "optimizer": optimizer})) == {
        "optimizer/iter": Role("step"),
        "optimizer/learning_rate": Role("optimizer", optimizer="Adam"),
        "model/k/.OPTIMIZER_SLOT/optimizer/m": Role("slot", "dense/kernel", "m", "Adam"),
        "model/b/.OPTIMIZER_SLOT/optimizer/m": Role("slot", "dense/bias", "m", "Adam"),
        "model/b/.OPTIMIZER_SLOT/optimizer/average": Role("average", "dense/bias"),
    }


def test_recorded_slots_of_tensorflow_1() -> None:
    w = var("w")
    slots = [(w, "mg", var("w/RMSProp_3")), (w, "rms", var("w/RMSProp_2"))]
    beta = scalar("beta1_power")
    found = told(Object({"w": w, "o": Object({"beta1_power": beta}, slots=slots)}))
    assert found == {
        "o/beta1_power": Role("beta_power", optimizer="RMSProp"),
        "w/.OPTIMIZER_SLOT/o/mg": Role("slot", "w", "mg", "RMSProp"),
        "w/.OPTIMIZER_SLOT/o/rms": Role("slot", "w", "rms", "RMSProp"),
    }


def test_recorded_slots_win_over_names() -> None:
    a, b = var("a"), var("b")
    optimizer = Object(slots=[(a, "first", var("b/Adam")), (b, "second", var("anything"))])
    found = told(Object({"a": a, "b": b, "mine": optimizer}))
    assert found["a/.OPTIMIZER_SLOT/mine/first"] == Role("slot", "a", "first", "Adam")
    assert found["b/.OPTIMIZER_SLOT/mine/second"] == Role("slot", "b", "second", "Adam")


def test_slots_of_a_variable_that_is_not_stored() -> None:
    gone = Object()
    optimizer = Object(slots=[(gone, "m", var("m"))])
    found = told(Object({"gone": gone, "o": optimizer}))
    assert list(found.values()) == [Role("slot", None, "m", "o")]


def keras_2(prefix: str = "Adam/") -> tuple[Object, Object]:
    """A model, and the optimizer that names its slots and lists them."""
    kernel, bias = var("dense/kernel"), var("dense/bias", (4,))
    m, v = var(f"{prefix}m/dense/kernel"), var(f"{prefix}v/dense/bias", (4,))
    iteration, rate = count("iteration"), scalar("learning_rate")
    optimizer = {
        "_variables": listed(iteration, m, v),
        "_iterations": iteration,
        "_learning_rate": rate,
        "_momentums": listed(m),
        "_velocities": listed(v),
    }
    return Object({"kernel": kernel, "bias": bias}), Object(optimizer)


@pytest.mark.parametrize(("prefix", "name"), [("Adam/", "Adam"), ("", "optimizer")])
def test_keras_2(prefix: str, name: str) -> None:
    model, optimizer = keras_2(prefix)
    assert told(Object({"model": model, "optimizer": optimizer})) == {
        "optimizer/_iterations": Role("step"),
        "optimizer/_learning_rate": Role("optimizer", optimizer=name),
        "optimizer/_variables/1": Role("slot", "dense/kernel", "m", name),
        "optimizer/_variables/2": Role("slot", "dense/bias", "v", name),
    }


def test_two_models_with_an_optimizer_each() -> None:
    models = {}
    for name in "ab":
        model, optimizer = keras_2()
        models[name] = Object({**model.children, "optimizer": optimizer})
    found = told(Object(models))
    for name in "ab":
        assert found[f"{name}/optimizer/_iterations"] == Role("step")
        slot = found[f"{name}/optimizer/_variables/1"]
        assert slot == Role("slot", f"{name}/kernel", "m", "Adam")


def test_two_models_beside_their_optimizers_leave_open_whose_slots_they_are() -> None:
    pairs = [keras_2() for _ in range(2)]
    models = {f"model_{n}": model for n, (model, _) in enumerate(pairs)}
    found = told(Object(models | {f"adam_{n}": adam for n, (_, adam) in enumerate(pairs)}))
    assert found["adam_1/_variables/1"] == Role("slot", None, "m", "Adam")


def test_keras_3() -> None:
    kernel, bias, frozen = var("net/kernel"), var("net/bias", (4,)), var("net/frozen")
    m, v = var("adam/net_kernel_momentum"), var("adam/net_bias_velocity", (4,))
    factors = [var("adam/kernel", (3,)), var("adam/bias", ())]
    dummy, average = scalar("adam/variable"), var("adam/net_kernel_average")
    optimizer = Object(
        {
            "_variables": listed(m, v, *factors, average),
            "_trainable_variables": listed(kernel, bias),
            "_iterations": count("adam/iteration"),
            "_learning_rate": scalar("adam/learning_rate"),
            "_u_product": dummy,
            "_r": listed(*factors),
            "_model_variables_moving_average": listed(average, var("nothing")),
        }
    )
    model = Object({"kernel": kernel, "bias": bias, "frozen": frozen, "optimizer": optimizer})
    expected = {
        "_iterations": Role("step"),
        "_learning_rate": Role("optimizer", optimizer="Adam"),
        "_u_product": Role("optimizer", optimizer="Adam"),
        "_variables/0": Role("slot", "net/kernel", "momentum", "Adam"),
        "_variables/1": Role("slot", "net/bias", "velocity", "Adam"),
        "_variables/2": Role("slot", "net/kernel", "r", "Adam"),
        "_variables/3": Role("slot", "net/bias", "r", "Adam"),
        "_variables/4": Role("average", "net/kernel"),
        "_model_variables_moving_average/1": Role("average", "net/bias"),
    }
    assert told(model) == {f"optimizer/{path}": role for path, role in expected.items()}
    # The weights are the model's also where only the optimizer leads to them.
    assert told(Object({"o": optimizer})) == {f"o/{path}": r for path, r in expected.items()}


@pytest.mark.parametrize(
    ("name", "slot"),
    [("_velocity_hats", "velocity_hat"), ("_velocities", "velocity"), ("_c", "c")],
)
def test_lists_of_an_optimizer_tell_what_names_do_not(name: str, slot: str) -> None:
    w, x = var("w"), var("x")
    kept, more = [var("foo/w"), var()], var()
    optimizer = Object(
        {
            "_variables": listed(*kept, more),
            "_trainable_variables": listed(w, x),
            name: listed(*kept),
            "_iterations": count(),
            "_learning_rate": scalar(),
        }
    )
    assert told(Object({"w": w, "x": x, "o": optimizer})) == {
        "o/_variables/0": Role("slot", "w", slot, "o"),
        "o/_variables/1": Role("slot", "x", slot, "o"),
        "o/_variables/2": Role("optimizer", optimizer="o"),
        "o/_iterations": Role("step"),
        "o/_learning_rate": Role("optimizer", optimizer="o"),
    }


def test_factors_of_adafactor_that_have_one_name() -> None:
    w = var("w", (3, 3))
    factors = [var("Adafactor/r/w", (3,)) for _ in range(2)]
    optimizer = Object(
        {
            "_variables": listed(),
            "_iterations": count(),
            "_learning_rate": scalar(),
            "_r": listed(factors[0]),
            "_c": listed(factors[1]),
        }
    )
    found = told(Object({"w": w, "o": optimizer}))
    assert found["o/_r/0"] == Role("slot", "w", "r", "Adafactor")
    assert found["o/_c/0"] == Role("slot", "w", "c", "Adafactor")


def test_variables_of_one_name_and_different_shapes() -> None:
    names = {"a": var("w"), "b": var("w/Adam"), "c": var("w/Adam", (5,))}
    assert told(Object(names)) == {"b": Role("slot", "w", "m", "Adam")}
    paths = Object({"w": Object({"Adam": var("b")}, "a", (3, 4))})
    assert told(paths) == {}


def test_roles_of_some_of_the_variables() -> None:
    model, optimizer = keras_2()
    data, variables = stored(Object({"model": model, "optimizer": optimizer}))
    entries = object_graph.read(data, variables, "x").entries
    some = {e.name: variables[e.key] for e in entries if e.name != "dense/kernel"}
    assert object_roles(entries, some)["Adam/m/dense/kernel"] == Role(
        "slot", None, "momentum", "Adam"
    )


def test_what_the_model_has_too_is_the_models() -> None:
    model, optimizer = keras_2()
    shared = var("shared")
    mine = Object({**optimizer.children, "_extra": listed(shared)})
    assert "model/extra" not in told(
        Object({"optimizer": mine, "model": Object({**model.children, "extra": shared})})
    )


def test_a_training_loop_is_no_optimizer() -> None:
    loop = {
        "iterations": count(),
        "learning_rate": scalar(),
        "temperature": scalar(),
        "w": var("w"),
        "net": Object({"w": var("net/w")}),
    }
    rate = Role("optimizer", optimizer="loop")
    assert told(Object({"loop": Object(loop)})) == {
        "loop/iterations": Role("step"),
        "loop/learning_rate": rate,
    }
    assert told(Object(loop)) == {
        "iterations": Role("step"),
        "learning_rate": Role("optimizer"),
    }


def test_a_step_or_a_rate_alone_makes_no_optimizer() -> None:
    assert not told(Object({"o": Object({"iter": count(), "x": scalar()})}))
    assert not told(Object({"o": Object({"learning_rate": scalar(), "decay": scalar()})}))


def test_an_optimizer_that_is_the_root() -> None:
    _, optimizer = keras_2("")
    assert told(optimizer) == {
        "_iterations": Role("step"),
        "_learning_rate": Role("optimizer"),
        "_variables/1": Role("slot", None, "momentum"),
        "_variables/2": Role("slot", None, "velocity"),
    }


def test_a_step_that_somebody_gave_the_optimizer() -> None:
    step = count("mine")
    sgd = Object({"iter": step, "decay": scalar("SGD/decay")})
    assert told(Object({"step": step, "sgd": sgd})) == {
        "step": Role("step"),
        "sgd/decay": Role("optimizer", optimizer="sgd"),
    }


def test_steps_and_statistics_by_path() -> None:
    net = Object({"bn": Object({"moving_mean": var()})})
    assert told(Object({"step": count(), "net": net, "save_counter": count("save_counter")})) == {
        "step": Role("step"),
        "net/bn/moving_mean": Role("batch_statistic"),
        "save_counter": Role("save_counter"),
    }


def test_lists_of_slots_kept_by_hand() -> None:
    model = {"a": var("a"), "b": var("b", (4,)), "calls": count("calls")}
    momentum = listed(var(shape=(4,)), var())
    assert told(Object({**model, "momentum": momentum})) == {
        "momentum/0": Role("slot", slot="momentum"),
        "momentum/1": Role("slot", slot="momentum"),
    }
    assert not told(Object({**model, "layers": momentum}))
    assert not told(Object({**model, "momentum": listed(var(), var())}))
    assert not told(Object({**model, "momentum": listed(var())}))
    assert not told(Object({**model, "momentum": Object({"a": var(), "b": var("", (4,))})}))
    counts = {**model, "other": count("other"), "momentum": listed(count(), count())}
    assert not told(Object(counts))


def test_names_alone_tell_the_same_where_they_are_unique() -> None:
    model, optimizer = keras_2()
    data, variables = stored(Object({"model": model, "optimizer": optimizer}))
    entries = object_graph.read(data, variables, "x").entries
    by_name = {e.name: variables[e.key].rename(e.name) for e in entries}
    expected = object_roles(entries, by_name)
    for name, role in roles(by_name).items():
        assert (role.kind, role.of, role.slot) == (
            expected[name].kind,
            expected[name].of,
            expected[name].slot,
        )


# -- damage ---------------------------------------------------------------------------------------


def test_objects_that_do_not_exist_are_refused() -> None:
    graph = messages.message("TrackableObjectGraph")()
    graph.nodes.add().children.add(node_id=1, local_name="a")
    with pytest.raises(InputError, match=r"^x: its object graph is damaged: object 0 refers to "):
        object_graph.read(graph.SerializeToString(), {}, "x")
    graph.nodes[0].children[0].node_id = -1
    with pytest.raises(InputError, match=r"object -1, and there are 1$"):
        object_graph.read(graph.SerializeToString(), {}, "x")
    graph.nodes[0].children[0].node_id = 0
    graph.nodes[0].slot_variables.add(original_variable_node_id=9)
    with pytest.raises(InputError, match="refers to object 9"):
        object_graph.read(graph.SerializeToString(), {}, "x")


def test_no_graph_and_too_large_a_graph_are_refused() -> None:
    with pytest.raises(InputError, match="x: its object graph is damaged"):
        object_graph.read(b"\xff", {}, "x")
    with pytest.raises(InputError, match="over the limit"):
        object_graph.read(bytes(object_graph.MAX_BYTES + 1), {}, "x")
    assert object_graph.read(b"", {}, "x") == Objects((), {})


def test_cycles() -> None:
    one, two = Object(), Object()
    w = var("w")
    one.children = {"two": two, "self": one}
    two.children = {"one": one, "w": w}
    assert shown(one) == {"two/w": "w"}


@given(st.binary(max_size=60), st.integers(0, 400), st.integers(0, 400))
@settings(max_examples=300)
def test_mutants_raise_nothing_else(junk: bytes, start: int, stop: int) -> None:
    model, optimizer = keras_2()
    data, variables = stored(Object({"m": model, "o": optimizer, "w": var(), **export().children}))
    mutant = data[:start] + junk + data[stop:]
    try:
        entries = object_graph.read(mutant, variables, "x").entries
    except InputError:
        return
    names = [entry.name for entry in entries]
    assert len(set(names)) == len(names)
    found = object_roles(entries, {e.name: variables[e.key] for e in entries})
    assert {role.of for role in found.values()} <= {None, *names}


@pytest.mark.usefixtures("must_end")
def test_graphs_made_to_take_long() -> None:
    graph = messages.message("TrackableObjectGraph")()
    root = graph.nodes.add()
    for number in range(500):
        root.children.add(node_id=number + 1, local_name=str(number))
        node = graph.nodes.add()
        for name in ["_variables", "_trainable_variables", "_m", "_v"]:
            node.children.add(node_id=503, local_name=name)
        node.children.add(node_id=501, local_name="_iterations")
        node.children.add(node_id=502, local_name="_learning_rate")
    for key in "ab":
        graph.nodes.add().attributes.add(name="VARIABLE_VALUE", checkpoint_key=key)
    shared = graph.nodes.add()
    for number in range(20_000):
        shared.children.add(node_id=501 + number % 2, local_name=str(number))
    for _ in range(20_000):
        number = len(graph.nodes)
        node = graph.nodes.add()
        node.children.add(node_id=number, local_name="deeper")
        node.slot_variables.add(slot_name="m")
        graph.nodes[number - 1].children.add(node_id=number, local_name="deeper")
    object_graph.read(graph.SerializeToString(), {}, "x")


# -- TensorFlow -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tf() -> Any:
    return pytest.importorskip("tensorflow")


def opened(prefix: Path) -> dict[str, Role]:
    """Return role by name, of a checkpoint on disk."""
    variables = {v.name: v for v in bundle.read(prefix.with_name(prefix.name + ".index")).variables}
    entries = object_graph.read(variables[KEY].read().item(), variables, str(prefix)).entries
    return object_roles(entries, {e.name: variables[e.key].rename(e.name) for e in entries})


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_what_keras_3_writes(tmp_path: Path, tf: Any) -> None:
    keras = tf.keras
    # Keras numbers what has no name of its own, through all tests of a process.
    keras.utils.clear_session()
    net = keras.Sequential(
        [keras.Input((5,)), keras.layers.Dense(4, name="d"), keras.layers.BatchNormalization()],
        name="net",
    )
    net.compile(keras.optimizers.Adam(amsgrad=True, use_ema=True), "mse")
    net.fit(tf.ones((8, 5)), tf.ones((8, 4)), verbose=0)
    net.export(str(tmp_path / "export"), verbose=False)
    found = opened(tmp_path / "export" / "variables" / "variables")
    weights = {variable.path for variable in net.variables if variable.path.startswith("net/")}
    assert set(found) == {*weights, KEY}
    prefix = Path(tf.train.Checkpoint(model=net, optimizer=net.optimizer).save(tmp_path / "c"))
    found = opened(prefix)
    assert weights < set(found)
    assert {name for name in weights if found[name].kind == "batch_statistic"} == {
        "net/batch_normalization/moving_mean",
        "net/batch_normalization/moving_variance",
    }
    assert found["adam/iteration"] == Role("step")
    for variable in net.trainable_variables:
        flat = variable.path.replace("/", "_")
        for slot in ["momentum", "velocity", "velocity_hat"]:
            assert found[f"adam/{flat}_{slot}"] == Role("slot", variable.path, slot, "Adam")
        assert found[f"adam/{flat}_average"] == Role("average", variable.path)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_what_tensorflow_writes(tmp_path: Path, tf: Any) -> None:
    module = tf.Module()
    module.w = tf.Variable(tf.ones([3, 4]), name="w")
    module.table = tf.lookup.experimental.MutableHashTable(tf.string, tf.int64, -1)
    module.table.insert(tf.constant(["a"]), tf.constant([1], tf.int64))
    optimizer = tf.compat.v1.train.RMSPropOptimizer(0.1, centered=True)
    optimizer.apply_gradients([(tf.ones([3, 4]), module.w)])
    checkpoint = tf.train.Checkpoint(module=module, optimizer=optimizer, step=tf.Variable(3))
    found = opened(Path(checkpoint.save(tmp_path / "c")))
    slots = {
        optimizer.get_slot(module.w, name).name.partition(":")[0]: name
        for name in optimizer.get_slot_names()
    }
    assert {name: role.slot for name, role in found.items() if role.kind == "slot"} == slots
    assert {found[name].of for name in slots} == {"w"}
    assert {name: role.kind for name, role in found.items() if name not in slots} == {
        KEY: "object_graph",
        "w": "model",
        "module/table/table-keys": "table",
        "module/table/table-values": "table",
        "Variable": "step",
        "save_counter": "save_counter",
    }
