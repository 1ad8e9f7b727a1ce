"""Object graphs rewritten: what is dropped, moved, renamed and joined, by graphs made by hand."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from converter_plugins.drop import Drop
from converter_plugins.keep import Keep
from converter_plugins.paths import Paths
from converter_plugins.rename import Rename
from hypothesis import given, settings
from hypothesis import strategies as st
from object_maker import VALUE, Object, count, listed, scalar, stored, var

from converter import Checkpoint, PlanError, Strategy, UsageError, Variable
from converter.checkpoint import open_checkpoint
from converter.dtype import STRING
from converter.formats import OBJECT_GRAPH_KEY as KEY
from converter.formats import bundle, messages, object_graph
from converter.formats.object_places import follow
from converter.pipeline import run
from converter.plan import Plan, make_plan
from converter.target import parse_target


def opened(root: Object, tmp_path: Any) -> Checkpoint:
    """Write the objects as TensorFlow would, each variable with its own number as the value."""
    from converter.formats.stream import Output

    data, variables = stored(root)
    tmp_path.mkdir(exist_ok=True)
    made = [Variable.from_array(KEY, np.array(data, object), dtype=STRING)]
    for number, (key, variable) in enumerate(variables.items()):
        if key != KEY:
            values = np.full(variable.shape, number)
            if variable.dtype.name == "string":
                values = values.astype("S")
            made.append(Variable.from_array(key, values.astype(variable.dtype.numpy)))
    bundle.write(tmp_path / "in", made, open_output=lambda path: Output(path, sync=False))
    return open_checkpoint(tmp_path / "in")


class Restored:
    """A written checkpoint as TensorFlow 2 restores it: by edges, from the root."""

    def __init__(self, prefix: Any) -> None:
        contents = bundle.read(prefix.with_name(f"{prefix.name}.index"))
        self.stored = {v.name: v for v in contents.variables}
        graph = self.stored[KEY].read().item()
        self.nodes = messages.parse("TrackableObjectGraph", graph, "x").nodes
        self.names = sorted(open_checkpoint(prefix))

    def node(self, path: str) -> Any:
        number = 0
        for name in path.split("/") if path else []:
            number = {c.local_name: c.node_id for c in self.nodes[number].children}[name]
        return self.nodes[number]

    def at(self, path: str) -> float:
        (attribute,) = self.node(path).attributes
        return float(self.stored[attribute.checkpoint_key].read().ravel()[0])

    def slots(self, optimizer: str) -> dict[tuple[str, str], float]:
        """Return the value of each slot, by the key of its variable and its name."""
        found = {}
        for slot in self.node(optimizer).slot_variables:
            of, variable = (
                self.nodes[number].attributes[0].checkpoint_key
                for number in (slot.original_variable_node_id, slot.slot_variable_node_id)
            )
            found[of.removesuffix(VALUE), slot.slot_name] = float(
                self.stored[variable].read().ravel()[0]
            )
        return found

    def edges(self, path: str = "") -> set[str]:
        return {child.local_name for child in self.node(path).children}


def rewritten(
    root: Object, strategies: Sequence[Strategy], tmp_path: Any
) -> tuple[Restored, Plan, Mapping[str, float]]:
    """Return what is written, its plan, and the values of the source by path."""
    source = opened(root, tmp_path)
    plan = make_plan(source, strategies, parse_target(tmp_path / "out", name="x", to="tf"))
    run(plan, sync=False)
    values = {
        v.path or name: float(v.read().ravel()[0])
        for name, v in source.items()
        if v.dtype.is_number and v.size
    }
    return Restored(tmp_path / "out" / "x"), plan, values


def net() -> Object:
    """Two layers, one with names of its own; a list; an object without variables."""
    first = Object({"w": var("w"), "b": var("b", (4,))})
    second = Object({"w": var("w"), "b": var("b", (4,))})
    return Object(
        {
            "layers": listed(first, second),
            "last": second,
            "scale": scalar("scale"),
            "empty": Object(),
        }
    )


# -- dropping --------------------------------------------------------------------------------------


def adam(model: Object) -> Object:
    kernel = model.children["kernel"]
    slots = [(kernel, slot, var(f"Adam/kernel/{slot}")) for slot in "mv"]
    return Object({"iter": count("Adam/iter"), "lr": scalar("Adam/lr")}, slots=slots)


def test_dropped_variables_leave_with_what_led_to_them_alone(tmp_path: Any) -> None:
    model = Object({"kernel": var("kernel"), "nothing": Object({"below": Object()})})
    root = Object({"model": model, "optimizer": adam(model), "save_counter": count("save_counter")})
    found, plan, values = rewritten(root, [Drop(("optimizer", "step"))], tmp_path)
    assert found.edges() == {"model", "save_counter"}
    # What held no variable before is as TensorFlow had it.
    assert found.edges("model") == {"kernel", "nothing"}
    assert found.edges("model/nothing") == {"below"}
    assert len(found.nodes) == 6
    assert found.at("model/kernel") == values["model/kernel"]
    assert found.names == [KEY, "kernel", "save_counter"]
    assert set(found.stored) == {KEY, "model/kernel" + VALUE, "save_counter" + VALUE}
    assert not plan.left_out


def test_what_is_kept_has_the_save_counter_that_restore_asks_for(tmp_path: Any) -> None:
    root = Object(
        {"model": Object({"kernel": var("kernel")}), "save_counter": count("save_counter")}
    )
    found, plan, _ = rewritten(root, [Keep(("model",))], tmp_path)
    assert found.edges() == {"model", "save_counter"}
    assert plan.notes == ()
    source = open_checkpoint(tmp_path / "in")
    # Safetensors have no objects whose saves could be counted.
    plan = make_plan(source, [Keep(("model",))], parse_target(tmp_path / "x.safetensors", name="x"))
    assert [v.name for v in plan.variables] == ["kernel"]
    assert [v.name for v, _ in plan.left_out] == [KEY, "save_counter"]
    by_name = Checkpoint([source["save_counter"], source["kernel"]])
    assert [v.name for v in Keep(("model",)).apply(by_name)] == ["kernel"]


def test_slots_stay_with_their_optimizer(tmp_path: Any) -> None:
    model = Object({"kernel": var("kernel"), "bias": var("bias", (4,))})
    root = Object({"model": model, "optimizer": adam(model)})
    found, _, values = rewritten(root, [Drop(("bias", "Adam/kernel/v"))], tmp_path)
    assert found.slots("optimizer") == {
        ("model/kernel", "m"): values["model/kernel/.OPTIMIZER_SLOT/optimizer/m"]
    }
    assert found.edges("model") == {"kernel"}


def test_a_slot_without_its_variable_still_has_an_object_of_it(tmp_path: Any) -> None:
    model = Object({"kernel": var("kernel")})
    root = Object({"model": model, "optimizer": adam(model)})
    found, _, _ = rewritten(root, [Drop(("kernel",))], tmp_path)
    assert len(found.node("optimizer").slot_variables) == 2
    assert not found.node("model/kernel").attributes


def test_what_has_values_is_told_anew(tmp_path: Any) -> None:
    """TensorFlow skips what this says holds none."""
    source = opened(Object({"a": var("a"), "b": Object({"c": var("c")})}), tmp_path)
    graph = messages.parse("TrackableObjectGraph", source.object_graph or b"", "x")
    for node in graph.nodes:
        node.has_checkpoint_values.value = True
    source.object_graph = graph.SerializeToString()
    target = parse_target(tmp_path / "out", name="x", to="tf")
    run(make_plan(source, [Drop(("a",)), Rename({"b/c|c": "d/e"})], target), sync=False)
    found = Restored(tmp_path / "out" / "x")
    assert [node.has_checkpoint_values.value for node in found.nodes] == [True] * len(found.nodes)


def test_names_stay_what_the_plan_says(tmp_path: Any) -> None:
    """`w` is the name of one variable only, after the other has gone."""
    found, plan, _ = rewritten(net(), [Drop(("layers/0/w",))], tmp_path)
    assert found.names == sorted(plan.result)
    assert "last/w" in found.names


def test_keep_keeps_the_graph(tmp_path: Any) -> None:
    found, _, values = rewritten(net(), [Keep(("scale",))], tmp_path)
    assert found.edges() == {"scale", "empty"}
    assert found.at("scale") == values["scale"]


# -- moving ----------------------------------------------------------------------------------------


def test_what_all_variables_of_an_object_say_moves_it(tmp_path: Any) -> None:
    root = Object({"net": net()})
    renamed = Rename({"net/(.*)": r"model/encoder/\1"})
    found, plan, values = rewritten(root, [renamed], tmp_path)
    assert found.edges() == {"model"}
    assert found.edges("model/encoder") == {"layers", "last", "scale", "empty"}
    for path in ("layers/0/w", "layers/0/b", "last/w", "scale"):
        assert found.at(f"model/encoder/{path}") == values[f"net/{path}"]
    assert found.at("model/encoder/layers/1/w") == values["net/last/w"]
    # `scale` has a name of its own, and goes along.
    assert "model/encoder/scale" + VALUE in found.stored
    assert found.names == sorted(plan.result)
    assert plan.notes == ("object graph: the object net moves to model/encoder",)


@pytest.mark.parametrize(
    ("pattern", "replacement", "expected"),
    [
        ("net/layers/0/(.)", r"net/first/\1", {"net/first/w": "net/layers/0/w"}),
        ("net/layers/0/w", "net/layers/0/kernel", {"net/layers/0/kernel": "net/layers/0/w"}),
        ("net/layers/0/w", "w0", {"w0": "net/layers/0/w", "net/layers/0/b": "net/layers/0/b"}),
        ("net/layers/0/w", "net/layers/0/w/value", {"net/layers/0/w/value": "net/layers/0/w"}),
        ("net/(.*)", r"\1", {"layers/0/w": "net/layers/0/w", "scale": "net/scale"}),
        ("(net)/(.*)/w", r"\1/\2/kernel", {"net/last/kernel": "net/last/w"}),
        ("net/(.*)", r"other/\1", {"other/x": "other/x", "other/last/b": "net/last/b"}),
        ("net/last/(.)|other/(.)", r"net/last/\g<0>", {"net/last/other/x": "other/x"}),
    ],
)
def test_moves(pattern: str, replacement: str, expected: dict[str, str], tmp_path: Any) -> None:
    root = Object({"net": net(), "other": Object({"x": var("w")})})
    found, plan, values = rewritten(root, [Rename({pattern: replacement})], tmp_path)
    assert {path: found.at(path) for path in expected} == {
        path: values[old] for path, old in expected.items()
    }
    assert found.names == sorted(plan.result)
    everything = [float(v.read().ravel()[0]) for k, v in found.stored.items() if k != KEY]
    assert sorted(everything) == sorted(values.values())


def test_what_leaves_an_object_that_moves_is_not_left_there(tmp_path: Any) -> None:
    root = Object({"net": net()})
    renamed = Rename({"net/layers/(.*)": r"model/stack/\1", "net/(.*)": r"model/\1"})
    found, _, values = rewritten(root, [renamed], tmp_path)
    assert found.edges("model") == {"stack", "last", "scale", "empty"}
    assert found.at("model/stack/0/w") == values["net/layers/0/w"]


def test_given_names_follow_paths_that_end_alike(tmp_path: Any) -> None:
    found, _, _ = rewritten(net(), [Rename({"(.*)/w": r"\1/kernel"})], tmp_path)
    names = {path: found.node(path).attributes[0].full_name for path in found.names if "/" in path}
    assert names == {
        "layers/0/kernel": "kernel",
        "last/kernel": "kernel",
        "layers/0/b": "b",
        "last/b": "b",
    }


def test_objects_become_one_where_they_meet(tmp_path: Any) -> None:
    shared = Object({"x": var("v"), "deep": Object({"y": var("v")})})
    root = Object(
        {
            "a": shared,
            "b": Object({"deep": Object({"z": var("v")})}),
            "again": Object({"a": shared}),
        }
    )
    found, _, values = rewritten(root, [Rename({"a/(.*)": r"b/\1"})], tmp_path)
    assert found.edges() == {"b", "again"}
    for path in ("b/x", "again/a/x"):
        assert found.at(path) == values["a/x"]
    assert found.at("again/a/deep/z") == found.at("b/deep/z") == values["b/deep/z"]


def test_swapped(tmp_path: Any) -> None:
    root = Object({name: Object({"w": var("w")}) for name in "ab"})
    swapped = Rename({"a/w": "b/w", "b/w": "a/w"})
    found, _, values = rewritten(root, [swapped], tmp_path)
    assert (found.at("a/w"), found.at("b/w")) == (values["b/w"], values["a/w"])


def test_shifted(tmp_path: Any) -> None:
    root = Object({f"layer-{n}": Object({"w": var("w"), "o": Object()}) for n in range(3)})
    shifted = Paths({f"layer-{n}/(.*)": rf"layer-{n + 1}/\1" for n in range(3)})
    found, _, values = rewritten(root, [shifted], tmp_path)
    assert found.edges() == {"layer-1", "layer-2", "layer-3"}
    assert [found.at(f"layer-{n}/w") for n in (1, 2, 3)] == [
        values[f"layer-{n}/w"] for n in (0, 1, 2)
    ]


def test_slots_follow_their_variable(tmp_path: Any) -> None:
    model = Object({"kernel": var("x"), "bias": var("x", (4,))})
    root = Object({"net": model, "opt": adam(model)})
    paths = Paths({"net/(.*)": r"model/\1", "opt/(.*)": r"optimizer/\1"})
    found, plan, values = rewritten(root, [paths], tmp_path)
    assert found.slots("optimizer") == {
        ("model/kernel", slot): values[f"net/kernel/.OPTIMIZER_SLOT/opt/{slot}"] for slot in "mv"
    }
    assert "model/kernel/.OPTIMIZER_SLOT/optimizer/m" + VALUE in found.stored
    assert found.at("optimizer/iter") == values["opt/iter"]
    assert found.names == sorted(plan.result)


def test_a_slot_becomes_a_variable(tmp_path: Any) -> None:
    model = Object({"kernel": var("kernel")})
    root = Object({"model": model, "opt": adam(model)})
    moved = Paths({".*/m": "momentum/kernel"})
    found, _, values = rewritten(root, [moved], tmp_path)
    assert found.at("momentum/kernel") == values["model/kernel/.OPTIMIZER_SLOT/opt/m"]
    assert set(found.slots("opt")) == {("model/kernel", "v")}


def test_names_with_slashes_and_dots(tmp_path: Any) -> None:
    root = Object({"a.b/c": Object({"d/e": var("v"), "f": var("v")}), "x": var("v")})
    found, _, values = rewritten(root, [Rename({"a.b/c/(.*)": r"top/a.b/c/\1"})], tmp_path)
    key = "top/a..b.Sc/d.Se" + VALUE
    assert float(found.stored[key].read().ravel()[0]) == values["a.b/c/d/e"]
    assert found.edges("top") == {"a.b/c"}


def test_tables_move_as_a_whole(tmp_path: Any) -> None:
    table = Object(attributes={"table-keys": "string", "table-values": "int64"})
    data, variables = stored(Object({"net": Object({"table": table, "w": var("w")})}))
    graph = messages.parse("TrackableObjectGraph", data, "x")
    graph.nodes[2].attributes.add(name="table", checkpoint_key="net/table/.ATTRIBUTES/table")
    source = open_with(graph.SerializeToString(), variables, tmp_path)
    target = parse_target(tmp_path / "out", name="x", to="tf")
    run(make_plan(source, [Rename({"net/(.*)": r"model/\1"})], target), sync=False)
    found = Restored(tmp_path / "out" / "x")
    (attribute,) = found.node("model/table").attributes
    assert attribute.checkpoint_key == "model/table/.ATTRIBUTES/table"
    assert {f"model/table/.ATTRIBUTES/table-{part}" for part in ("keys", "values")} < set(
        found.stored
    )


def open_with(data: bytes, variables: Mapping[str, Variable], tmp_path: Any) -> Checkpoint:
    from converter.formats.stream import Output

    made = [Variable.from_array(KEY, np.array(data, object), dtype=STRING)]
    for key, variable in variables.items():
        if key != KEY:
            values = np.zeros(variable.shape, "S1" if variable.dtype.name == "string" else "f4")
            made.append(Variable.from_array(key, values))
    bundle.write(tmp_path / "in", made, open_output=lambda path: Output(path, sync=False))
    return open_checkpoint(tmp_path / "in")


def test_another_object_at_the_root_is_told(tmp_path: Any) -> None:
    root = Object({"a": Object({"w": var("w")}), "w": var("only")})
    with pytest.raises(PlanError, match=r"^w: another object of the checkpoint has this path"):
        rewritten(root, [Rename({"a/(.*)": r"\1"})], tmp_path)


@pytest.mark.parametrize("pattern", ["a/w", "a/(.*)"])
def test_another_object_in_the_way_is_told(pattern: str, tmp_path: Any) -> None:
    root = Object({"a": Object({"w": var("w")}), "b": Object({"w": var("only"), "x": var("w")})})
    with pytest.raises(PlanError, match="b/w: another object of the checkpoint has this path"):
        rewritten(root, [Rename({pattern: "b/w"})], tmp_path)


def test_two_variables_of_one_path_are_told(tmp_path: Any) -> None:
    with pytest.raises(PlanError, match="x: both last/w and layers/0/w would have this path"):
        rewritten(net(), [Paths({".*/w": "x"})], tmp_path)


def test_paths_are_of_object_checkpoints() -> None:
    plain = Checkpoint([Variable.from_array("w", np.zeros(3))])
    with pytest.raises(PlanError, match="it is no object checkpoint"):
        list(Paths({"w": "v"}).apply(plain))
    with pytest.raises(UsageError, match="no replacement"):
        Paths({"w": ""})


def test_paths_that_fit_nothing_are_told(tmp_path: Any) -> None:
    message = r"'scael' fits none of the 6 paths; did you mean 'scale'\?"
    with pytest.raises(UsageError, match=message):
        rewritten(net(), [Paths({"scael": "x"})], tmp_path)


def test_paths_move_and_names_stay(tmp_path: Any) -> None:
    root = Object({"net": Object({"v": var("dense/kernel")})})
    found, plan, values = rewritten(root, [Paths({"net/v": "model/kernel"})], tmp_path)
    assert found.at("model/kernel") == values["net/v"]
    assert found.edges() == {"model"}
    assert found.names == [KEY, "dense/kernel"] == sorted(plan.result)


# -- names -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "new", "path", "expected"),
    [
        ("w", "kernel", "net/w", "net/kernel"),
        ("dense/kernel", "dense/w", "model/layer-1/kernel", "model/layer-1/w"),
        ("dense/kernel", "head/kernel", "model/layer-1/kernel", "model/layer-1/kernel"),
        ("a/dense/kernel", "a/head/w", "m/dense/kernel", "m/head/w"),
        ("w", "deep/v", "net/w", "net/deep/v"),
        ("w", "deep/w", "net/w", "net/w"),
        ("a/kernel", "b/w", "m/kernel", None),
        ("Adam/m/w", "Adam/m/v", "optimizer/_variables/3", None),
        ("net/w", "net", "net/w", "net"),
        ("a/net/w", "a", "net/w", None),
    ],
)
def test_what_ends_alike_changes_alike(
    name: str, new: str, path: str, expected: str | None
) -> None:
    assert follow(name, new, path) == expected


def test_a_variable_of_a_new_name_is_found_under_both_paths(tmp_path: Any) -> None:
    root = Object({"net": Object({"w": var("dense/w"), "v": var("dense/v")})})
    found, plan, values = rewritten(root, [Rename({"dense/w": "dense/kernel"})], tmp_path)
    assert found.at("net/w") == found.at("net/kernel") == values["net/w"]
    assert found.names == [KEY, "dense/kernel", "dense/v"]
    assert plan.notes == ("object graph: found under both paths, old and new: net/kernel",)
    taken, plan, values = rewritten(
        root, [Rename({"dense/w": "dense/u/v", "dense/v": "v"})], tmp_path / "2"
    )
    assert taken.at("net/u/v") == values["net/w"]
    assert taken.at("net/v") == values["net/v"]


def test_a_second_path_takes_nothing_away(tmp_path: Any) -> None:
    root = Object({"net": Object({"w": var("dense/w"), "kernel": var("")})})
    found, plan, values = rewritten(root, [Rename({"dense/w": "dense/kernel"})], tmp_path)
    assert found.at("net/kernel") == values["net/kernel"]
    assert found.at("net/w") == values["net/w"]
    assert not plan.notes


def test_a_variable_takes_the_place_of_the_one_whose_name_it_has(tmp_path: Any) -> None:
    """As an average does that is used in place of its variable."""
    root = Object({"net": Object({"w": var("w")}), "averages": Object({"0": var("w/avg")})})
    steps = [Drop(("w",)), Rename({"w/avg": "w"})]
    found, _, values = rewritten(root, steps, tmp_path)
    assert found.at("net/w") == values["averages/0"]
    assert found.edges() == {"net"}


# -- several into one, and one into several --------------------------------------------------------


class Join(Strategy):
    """Joins what ends in the given words to one variable, as merging gates does."""

    name = "join"

    def __init__(self, *ends: str, into: str) -> None:
        self.ends, self.into = ends, into

    def apply(self, checkpoint: Checkpoint) -> list[Variable]:
        parts: dict[str, list[Variable]] = {}
        rest = []
        for name, variable in checkpoint.items():
            end = next((end for end in self.ends if name.endswith(end)), None)
            if end is None:
                rest.append(variable)
            else:
                parts.setdefault(name.removesuffix(end), []).append(variable)
        for scope, variables in parts.items():
            sources = tuple(s for v in variables for s in v.sources)
            values = np.full(3, 100.0, "f4")
            made = Variable.from_array(scope + self.into, values)
            rest.append(Variable(made.name, made.dtype, made.shape, made.load, sources))
        return rest


def test_joined_variables_stand_where_their_parts_did(tmp_path: Any) -> None:
    cell = Object({"wi": var("cell/wi"), "wf": var("cell/wf"), "b": var("cell/b")})
    root = Object({"net": Object({"cell": cell, "c": Object({"wi": var("x"), "wf": var("x")})})})
    found, plan, _ = rewritten(root, [Join("wi", "wf", into="kernel")], tmp_path)
    assert found.at("net/cell/kernel") == found.at("net/c/kernel") == 100
    assert found.edges("net/cell") == {"b", "kernel"}
    assert found.names == sorted(plan.result)


def test_a_new_object_stands_where_another_has_left(tmp_path: Any) -> None:
    cell = Object({"wi": var("cell/wi"), "wf": var("cell/wf"), "kernel": var("old")})
    steps = [Paths({"cell/kernel": "kept/kernel"}), Join("wi", "wf", into="kernel")]
    found, plan, values = rewritten(Object({"cell": cell}), steps, tmp_path)
    assert (found.at("cell/kernel"), found.at("kept/kernel")) == (100, values["cell/kernel"])
    assert found.names == sorted(plan.result)


class Copy(Strategy):
    """Gives every variable a second time."""

    name = "copy"

    def apply(self, checkpoint: Checkpoint) -> Iterator[Variable]:
        for variable in checkpoint.values():
            if variable.name != KEY:
                yield variable.rename(f"{variable.name}/copy")
                yield variable.rename(f"{variable.name}/copied")
            else:
                yield variable


def test_two_variables_of_one_do_not_share_its_object(tmp_path: Any) -> None:
    found, plan, values = rewritten(Object({"a": Object({"b": var("a/b")})}), [Copy()], tmp_path)
    assert found.at("a/b/copy") == found.at("a/b/copied") == values["a/b"]
    assert len(found.stored) == 3
    assert found.names == sorted(plan.result)


def test_joined_slots_are_slots_of_what_was_joined(tmp_path: Any) -> None:
    parts = {name: var(f"cell/{name}") for name in ("wi", "wf")}
    slots = [(v, s, var(f"Adam/cell/{s}/{n}")) for n, v in parts.items() for s in "mv"]
    root = Object({"cell": Object(parts), "opt": Object({"iter": count("i")}, slots=slots)})
    found, plan, _ = rewritten(root, [Join("wi", "wf", into="kernel")], tmp_path)
    assert found.slots("opt") == {("cell/kernel", "m"): 100, ("cell/kernel", "v"): 100}
    assert set(found.stored) == {
        KEY,
        "opt/iter" + VALUE,
        "cell/kernel" + VALUE,
        *(f"cell/kernel/.OPTIMIZER_SLOT/opt/{slot}{VALUE}" for slot in "mv"),
    }
    assert found.names == sorted(plan.result)


def test_what_has_no_object_is_told(tmp_path: Any) -> None:
    parts = {f"{n}": var(f"Adam/m/cell/{name}") for n, name in enumerate(("wi", "wf"))}
    root = Object({"optimizer": Object({"_variables": Object(parts)}), "w": var("w")})
    found, plan, _ = rewritten(root, [Join("wi", "wf", into="kernel")], tmp_path)
    assert plan.notes == (
        "object graph: no object stands for Adam/m/cell/kernel: TensorFlow 2 finds them by these "
        "names, and not from an object",
    )
    assert set(found.stored) == {KEY, "Adam/m/cell/kernel", "w" + VALUE}
    assert found.names == sorted(plan.result)


def test_copies_of_keras_3_go_together(tmp_path: Any) -> None:
    weights = [var("net/kernel"), var("net/bias")]
    copies = [var("net/bias"), var("net/kernel")]
    data, variables = stored(
        Object({"variables": listed(*weights), "_all_variables": listed(*copies)})
    )
    source = open_with(data, variables, tmp_path)
    assert set(source) == {KEY, "net/kernel", "net/bias"}
    target = parse_target(tmp_path / "out", name="x", to="tf")
    run(make_plan(source, [Rename({"net/(.*)": r"model/\1"})], target), sync=False)
    found = Restored(tmp_path / "out" / "x")
    assert found.names == [KEY, "model/bias", "model/kernel"]
    assert len(found.stored) == 5


# -- anything --------------------------------------------------------------------------------------


@st.composite
def graphs(draw: st.DrawFn) -> tuple[bytes, dict[str, Variable]]:
    """Objects that lead anywhere, also in circles, with keys that need not be their paths."""
    size = draw(st.integers(1, 6))
    graph = messages.message("TrackableObjectGraph")()
    names = st.sampled_from(["a", "b", "c", "a/b", ".", ""])
    numbers = st.integers(0, size - 1)
    keys = st.sampled_from([f"{path}{VALUE}" for path in ("a", "a/b", "b", "c/a", "a.Sb", "x")])
    for _ in range(size):
        node = graph.nodes.add()
        for child in draw(st.lists(numbers, max_size=3)):
            node.children.add(node_id=child, local_name=draw(names))
        if draw(st.booleans()):
            node.attributes.add(
                name="VARIABLE_VALUE", full_name=draw(names), checkpoint_key=draw(keys)
            )
        if draw(st.booleans()) and draw(st.booleans()):
            node.slot_variables.add(
                original_variable_node_id=draw(numbers),
                slot_name="m",
                slot_variable_node_id=draw(numbers),
            )
    stored_keys = draw(st.sets(keys, min_size=1))
    variables = {key: Variable.from_array(key, np.zeros(2, "f4")) for key in stored_keys}
    return graph.SerializeToString(), variables


@settings(deadline=None, max_examples=200)
@given(graphs(), st.data())
def test_any_graph_can_be_rewritten(
    made: tuple[bytes, dict[str, Variable]], data: st.DataObject
) -> None:
    graph, variables = made
    from converter.formats.object_places import Placed
    from converter.formats.object_rewrite import rewrite

    texts = st.sampled_from(["a", "b/c", "a/b/c", "", "a//b", "x/a/b", "c"])
    placed = []
    for number, key in enumerate(sorted(variables)):
        what = data.draw(st.sampled_from(["stay", "move", "name", "drop", "new"]))
        name = f"v{number}"
        if what == "new":
            placed.append(Placed(name, (), (key,), data.draw(texts), name))
        elif what != "drop":
            placed.append(
                Placed(
                    name,
                    (key,),
                    path=data.draw(texts) if what == "move" else None,
                    full_name=data.draw(texts) if what == "name" else None,
                    old_name="a/b" if what == "name" else None,
                )
            )
    try:
        found = rewrite(graph, variables, placed, "x")
    except PlanError:
        return
    read = object_graph.parse(found.data, "x")
    assert read.nodes
    assert set(found.keys) == {one.name for one in placed}
    keys = [key for several in found.keys.values() for key in several]
    assert len(set(keys)) == len(keys)
    told = {a.checkpoint_key for node in read.nodes for a in node.attributes}
    assert told <= {*keys, *(set(variables) - {k for p in placed for k in p.keys})} | {
        a.checkpoint_key
        for node in object_graph.parse(graph, "x").nodes
        for a in node.attributes
        if a.checkpoint_key not in variables
    }
