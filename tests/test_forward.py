"""What is found in a graph, without TensorFlow: inputs and their uses, outputs, variables."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from conftest import VALID, Case, case
from graph_maker import Maker

from converter import InputError, UsageError, open_checkpoint
from converter.cli import cli
from converter.forward.dropout import find_dropouts
from converter.forward.feeds import complete, given_values, parse_feed, parse_feeds
from converter.forward.find import Forward, find_forward
from converter.forward.prune import prune
from converter.forward.variables import Held, check_shape, variables_of
from converter.graph.node import Tensor, tensor
from converter.graph.written import Graph, read_graph

RECORDED = [
    case
    for case in VALID
    if case.record.get("io")
    and all("tensor" in output for output in case.record["io"]["outputs"].values())
]


def forward_of(case: Case, **more: Any) -> Forward:
    checkpoint = open_checkpoint(case.path)
    graph = read_graph(checkpoint)
    assert graph is not None
    return find_forward(graph, set(checkpoint), **more)


def chosen(forward: Forward) -> set[str]:
    return {str(output.tensor) for output in forward.outputs}


def recorded(case: Case, what: str) -> set[str]:
    return {str(tensor(entry["tensor"])) for entry in case.record["io"][what].values()}


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, list(map(str, arguments)))


@pytest.mark.parametrize("case", RECORDED, ids=lambda case: case.name)
def test_inputs_are_those_that_were_recorded(case: Case) -> None:
    forward = forward_of(case)
    io = case.record["io"]
    assert {str(found.tensor) for found in forward.inputs} == recorded(case, "inputs") | {
        str(tensor(name)) for name in io["feeds"]
    }
    decided = {str(found.tensor): found.value for found in forward.inputs if found.kind == "flag"}
    assert decided == {str(tensor(name)): value for name, value in io["feeds"].items()}
    dtypes = {str(found.tensor): str(found.dtype) for found in forward.inputs}
    for entry in io["inputs"].values():
        assert dtypes[str(tensor(entry["tensor"]))] == entry["dtype"]


def test_outputs_are_those_that_were_recorded() -> None:
    covered = {case.name: recorded(case, "outputs") & chosen(forward_of(case)) for case in RECORDED}
    # Each has what it was trained to give; the others recorded are layers before it.
    assert all(covered.values())
    assert sum(map(len, covered.values())) >= 26
    states = [recorded(case, "states") & chosen(forward_of(case)) for case in RECORDED]
    assert sum(map(len, states)) >= 26


@pytest.mark.parametrize(
    ("name", "inputs"),
    [
        ("tf14_v2_charlm_lstm_ema", {"x": ("ids", 0, 14)}),
        ("tf10_v2_partitioned", {"ids": ("ids", 0, 23)}),
        (
            "tf14_v2_attention_bahdanau",
            {
                "source": ("ids", 0, 12),
                "source_lengths": ("lengths", 0, None),
                "target_in": ("ids", 0, 12),
            },
        ),
        (
            "tf115_v2_bert_mini",
            {
                "input_ids": ("ids", 0, 100),
                "input_mask": ("data", 0, None),
                "segment_ids": ("ids", 0, 2),
            },
        ),
    ],
)
def test_what_integers_are_for(name: str, inputs: dict[str, tuple[str, int, int | None]]) -> None:
    found = forward_of(case(name)).inputs
    assert {str(i.tensor): (i.kind, i.low, i.limit) for i in found} == inputs


class Everything:
    """The names of a checkpoint that has whatever a graph may want."""

    def __contains__(self, name: object) -> bool:
        return True

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __len__(self) -> int:
        return 0


ALL = Everything()


def labelled(maker: Maker, logits: str, labels: str) -> None:
    """Add a loss, its gradient, and a step of training."""
    loss = maker.op("SparseSoftmaxCrossEntropyWithLogits", logits, labels, name="xent", shape=(-1,))
    mean = maker.op("Mean", loss, maker.constant([0]), name="loss", shape=())
    grad = maker.op("Mul", mean, logits, name="train/gradients/xent_grad/mul", shape=(-1, 3))
    step = maker.op("MatMul", "x", grad, name="train/gradients/MatMul_grad/MatMul_1")
    maker.op("ApplyGradientDescent", "a/w", maker.constant(0.1), step, name="train/update")


def small(producer: int = 134) -> Maker:
    maker = Maker(producer)
    maker.placeholder("x", "float32", (-1, 5))
    return maker


def test_labels_and_gradients_are_no_part_of_it() -> None:
    maker = small()
    labels = maker.placeholder("y", "int32", (-1,))
    logits = maker.dense("x", "a", 5, 3)
    labelled(maker, logits, labels)
    choice = maker.op("ArgMax", logits, maker.constant(1), name="choice", shape=(-1,))
    same = maker.op("Equal", choice, labels, shape=(-1,))
    maker.op("Mean", maker.op("Cast", same, DstT="float32", shape=(-1,)), shape=())
    rate = maker.placeholder("learning_rate", "float32", ())
    maker.op("ApplyGradientDescent", "a/b", rate, "train/gradients/xent_grad/mul")
    forward = find_forward(maker.graph(), {"a/w", "a/b"})
    assert [str(found.tensor) for found in forward.inputs] == ["x"]
    assert chosen(forward) == {"a/add", "choice"}
    assert dict(forward.variables) == {"a/w": Held("a/w"), "a/b": Held("a/b")}
    assert forward.notes == ()


def test_an_autoencoder_gives_what_it_compares_with_its_input() -> None:
    maker = small()
    back = maker.dense(maker.op("Relu", maker.dense("x", "a", 5, 2)), "b", 2, 5)
    difference = maker.op("Sub", back, "x", shape=(-1, 5))
    maker.op(
        "Mean", maker.op("Square", difference, shape=(-1, 5)), maker.constant([0, 1]), shape=()
    )
    assert chosen(find_forward(maker.graph(), ALL)) == {"b/add"}


def test_a_sum_with_the_input_that_goes_on_is_no_loss() -> None:
    maker = small()
    residual = maker.op("Add", maker.dense("x", "a", 5, 5), "x", name="sum", shape=(-1, 5))
    maker.op("Relu", residual, name="out", shape=(-1, 5))
    assert chosen(find_forward(maker.graph(), ALL)) == {"out"}


def test_logits_behind_a_softmax_are_an_output_too() -> None:
    maker = small()
    logits = maker.dense("x", "a", 5, 3)
    maker.op("Softmax", logits, name="p", shape=(-1, 3))
    forward = find_forward(maker.graph(), ALL)
    assert [(str(o.tensor), o.why) for o in forward.outputs] == [
        ("a/add", "before p"),
        ("p", "nothing follows"),
    ]


def test_without_an_output_it_is_said() -> None:
    maker = small()
    maker.op("Mean", "x", maker.constant([0]), shape=())
    with pytest.raises(UsageError, match=r"nothing in it looks like an output; .*--fetch"):
        find_forward(maker.graph(), ALL)


def test_what_leads_to_scalars_alone_gives_the_last_use_of_variables() -> None:
    maker = small()
    maker.op("Mean", maker.dense("x", "a", 5, 3), maker.constant([0, 1]), shape=())
    (output,) = find_forward(maker.graph(), ALL).outputs
    assert (str(output.tensor), output.why) == ("a/add", "the last use of a variable")


def flagged(name: str, where_true: str, where_false: str) -> Forward:
    maker = small()
    maker.placeholder(name, "bool", ())
    hidden = maker.dense("x", "a", 5, 5)
    maker.op("Switch", hidden, name, name="cond/Switch", T="float32", shape=(-1, 5))
    branches = []
    for port, op in ((0, where_false), (1, where_true)):
        part = f"cond/Switch:{port}"
        if op == "RandomUniform":
            random = maker.op(op, maker.op("Shape", part), dtype="float32", shape=(-1, 5))
            branches.append(maker.op("Mul", part, random, shape=(-1, 5)))
        else:
            branches.append(maker.op(op, part, shape=(-1, 5)))
    maker.op("Merge", *branches, name="out", shape=(-1, 5))
    return find_forward(maker.graph(), ALL)


@pytest.mark.parametrize(
    ("name", "where_true", "where_false", "value", "is_told"),
    [
        ("is_training", "Identity", "Identity", False, True),
        ("model/phase_train", "Identity", "Identity", False, True),
        ("is_inference", "Identity", "Identity", True, True),
        ("mode", "RandomUniform", "Identity", False, True),
        ("mode", "Identity", "RandomUniform", True, True),
        ("mode", "Identity", "Identity", False, False),
    ],
)
def test_flags_are_set_to_inference(
    name: str, where_true: str, where_false: str, value: bool, is_told: bool
) -> None:
    forward = flagged(name, where_true, where_false)
    (flag,) = [found for found in forward.inputs if found.kind == "flag"]
    assert flag.value is value
    # What is not taken draws nothing.
    assert forward.random == ()
    assert bool(forward.notes) is not is_told
    if not is_told:
        assert forward.notes[0].startswith("mode: its name does not tell")


def dropped(probability: str, maker: Maker, *, old: bool, hidden: str) -> str:
    """Write dropout out as TensorFlow 1.4 or 1.15 does."""
    random = maker.op("RandomUniform", maker.op("Shape", hidden), name="d/random", dtype="float32")
    span = maker.op("Mul", random, maker.constant(1.0, name="d/random_uniform/sub"))
    uniform = maker.op("Add", span, maker.constant(0.0, name="d/random_uniform/min"))
    if old:
        mask = maker.op("Floor", maker.op("Add", probability, uniform))
        scaled = maker.op("RealDiv", hidden, probability, shape=(-1, 5))
    else:
        keep = maker.op("Sub", maker.constant(1.0), probability)
        scale = maker.op("RealDiv", maker.constant(1.0), keep)
        mask = maker.op("Cast", maker.op("GreaterEqual", uniform, probability), DstT="float32")
        scaled = maker.op("Mul", hidden, scale, shape=(-1, 5))
    return maker.op("Mul", scaled, mask, name="d/mul", T="float32", shape=(-1, 5))


@pytest.mark.parametrize("old", [True, False])
@pytest.mark.parametrize("shape", [(), None])
def test_dropout_is_turned_off(old: bool, shape: tuple[int, ...] | None) -> None:
    maker = small()
    # Before TensorFlow 1.0 nobody can tell a scalar from a shape that is not known.
    maker.op("Placeholder", name="p", dtype="float32", shape=shape)
    out = dropped("p", maker, old=old, hidden=maker.dense("x", "a", 5, 5))
    maker.dense(out, "b", 5, 2)
    forward = find_forward(maker.graph(), ALL)
    decided = [(str(i.tensor), i.kind, i.value) for i in forward.inputs if i.tensor.node == "p"]
    assert decided == [("p", "keep", 1.0) if old else ("p", "rate", 0.0)]
    assert forward.random == ()
    assert forward.bypassed == ()


@pytest.mark.parametrize("old", [True, False])
def test_dropout_that_nothing_turns_off_is_left_out_and_told(old: bool) -> None:
    maker = small()
    hidden = maker.dense("x", "a", 5, 5)
    out = dropped(maker.constant(0.25), maker, old=old, hidden=hidden)
    maker.dense(out, "b", 5, 2)
    graph = maker.graph()
    forward = find_forward(graph, ALL)
    what = "keep probability" if old else "rate"
    assert forward.notes == (
        f"d/mul drops at random, with a {what} 0.25 that the graph holds; it is left out",
    )
    assert dict(forward.instead) == {Tensor("d/mul"): Tensor(hidden)}
    pruned = prune(forward, {})
    assert "d/mul" not in pruned.nodes
    assert not any("random" in name for name in pruned.nodes)


def test_a_probability_can_be_the_complement_of_a_rate() -> None:
    maker = small()
    maker.placeholder("r", "float32", ())
    keep = maker.op("Sub", maker.constant(1.0), "r", shape=())
    dropped(keep, maker, old=True, hidden=maker.dense("x", "a", 5, 5))
    graph = maker.graph()
    assert len(list(find_dropouts(graph))) == 1
    (rate,) = [i for i in find_forward(graph, ALL).inputs if i.tensor.node == "r"]
    assert (rate.kind, rate.value) == ("rate", 0.0)


def test_other_random_numbers_are_told() -> None:
    maker = small()
    hidden = maker.dense("x", "a", 5, 5)
    noise = maker.op(
        "RandomStandardNormal", maker.op("Shape", hidden), name="noise", dtype="float32"
    )
    maker.op("Add", hidden, noise, name="out", shape=(-1, 5))
    forward = find_forward(maker.graph(), ALL)
    assert forward.random == ("noise",)
    assert forward.notes == ("noise draws random numbers, from a fixed seed here",)


def test_single_numbers_are_told() -> None:
    maker = small()
    maker.placeholder("temperature", "float32", ())
    maker.op("RealDiv", maker.dense("x", "a", 5, 3), "temperature", name="out", shape=(-1, 3))
    forward = find_forward(maker.graph(), ALL)
    assert forward.notes == (
        "temperature: a single number, nothing tells what it is; --feed decides",
    )
    assert find_forward(maker.graph(), ALL, fed=["temperature"]).notes == ()


@pytest.mark.parametrize(("value", "is_told"), [(False, False), (True, True), (None, True)])
@pytest.mark.parametrize("negated", [False, True])
def test_notes_are_about_the_branches_that_fed_flags_take(
    value: bool | None, is_told: bool, negated: bool
) -> None:
    maker = small()
    flag = maker.placeholder("is_training", "bool", ())
    if negated:
        flag = maker.op("LogicalNot", flag)
    hidden = maker.dense("x", "a", 5, 5)
    maker.op("Switch", hidden, flag, name="cond/Switch", T="float32", shape=(-1, 5))
    off, on = ("cond/Switch:1", "cond/Switch") if negated else ("cond/Switch", "cond/Switch:1")
    for branch, part in (("off", off), ("on", on)):
        maker.op("FusedBatchNorm", part, name=branch, is_training=branch == "on", shape=(-1, 5))
    noise = maker.op("RandomUniform", maker.op("Shape", "on"), name="noise", dtype="float32")
    noisy = maker.op("Mul", "on", noise, shape=(-1, 5))
    maker.op("Merge", "off", noisy, name="out", shape=(-1, 5))
    values = {} if value is None else {Tensor("is_training"): np.asarray(value)}
    forward = find_forward(maker.graph(), ALL, fed=["is_training"], values=values)
    notes = (
        "noise draws random numbers, from a fixed seed here",
        "on normalises by the batch, as in training",
    )
    assert forward.notes == (notes if is_told else ())
    # What is run may be fed another value the next time.
    assert forward.random == ("noise",)


def looked_up(rows: int, *, offset: int = 0, op: str = "GatherV2") -> Forward:
    maker = Maker()
    ids = maker.placeholder("ids", "int64", (-1, 4))
    table = maker.variable("table", rows, 2)
    if offset:
        ids = maker.op("Sub", ids, maker.constant(offset), T="int64", shape=(-1, 4))
    flat = maker.op("Reshape", ids, maker.constant([-1]), shape=(-1,))
    extra = [maker.constant(0)] if op == "GatherV2" else []
    maker.op(op, table, flat, *extra, name="out", Tparams="float32", shape=(-1, 2))
    return find_forward(maker.graph(), ALL)


@pytest.mark.parametrize("op", ["Gather", "GatherV2"])
def test_indices_stay_within_what_they_look_up(op: str) -> None:
    forward = looked_up(7, offset=1, op=op)
    (ids,) = forward.inputs
    assert (ids.kind, ids.low, ids.limit) == ("ids", 1, 8)
    (values,) = next(complete(forward, {}, 0)).values.values()
    assert values.dtype == np.int64
    assert values.shape == (8, 4)
    assert values.min() >= 1
    assert values.max() < 8


@pytest.mark.parametrize(
    ("begin", "masks", "limit"),
    [
        ([1, 0], (2, 3, 0), 1 + 6),
        ([-3, 0], (2, 3, 0), 1 + 3),
        ([5, 0], (3, 3, 0), 1 + 7),
        ([1, 0], (0, 3, 1), None),
    ],
)
def test_rows_that_are_joined_are_looked_up_together(
    begin: list[int], masks: tuple[int, int, int], limit: int | None
) -> None:
    # A frozen graph notes no shapes, and the first row is often cut off for zeros in its place.
    maker = Maker()
    table = maker.variable("table", 7, 2)
    zeros = maker.constant(np.zeros((1, 2), "f4"))
    ends, ones = maker.constant([0, 0]), maker.constant([1, 1])
    rest = maker.op(
        "StridedSlice",
        table,
        maker.constant(begin),
        ends,
        ones,
        begin_mask=masks[0],
        end_mask=masks[1],
        new_axis_mask=masks[2],
    )
    joined = maker.op("ConcatV2", zeros, rest, maker.constant(0))
    ids = maker.placeholder("ids", "int32", (-1,))
    maker.op("Gather", joined, ids, name="out", Tparams="float32")
    (found,) = find_forward(maker.graph(), ALL).inputs
    assert found.limit == limit


def test_rows_joined_with_what_is_not_known_limit_nothing() -> None:
    maker = Maker()
    unknown = maker.op("Abs", maker.variable("more", 5, 2))
    joined = maker.op("ConcatV2", maker.variable("table", 7, 2), unknown, maker.constant(0))
    ids = maker.placeholder("ids", "int32", (-1,))
    maker.op("Gather", joined, ids, name="out", Tparams="float32")
    inputs = {found.tensor.node: found.limit for found in find_forward(maker.graph(), ALL).inputs}
    assert inputs == {"ids": None}


def test_drawn_values_depend_on_seed_and_name_alone() -> None:
    forward = looked_up(1000)
    first, again, other = (next(complete(forward, {}, seed)).values for seed in (0, 0, 1))
    name = Tensor("ids")
    assert (first[name] == again[name]).all()
    assert not (first[name] == other[name]).all()


def test_strings_cannot_be_drawn() -> None:
    maker = Maker()
    maker.placeholder("words", "string", (-1,))
    ids = maker.op("StringToHashBucketFast", "words", num_buckets=5, shape=(-1,))
    table = maker.variable("table", 5, 2)
    maker.op("Gather", table, ids, name="out", Tparams="float32", shape=(-1, 2))
    forward = find_forward(maker.graph(), ALL)
    with pytest.raises(UsageError, match=r"words: it takes strings.*--inputs"):
        next(complete(forward, {}, 0))


def test_sizes_that_the_graph_fixes_come_first() -> None:
    maker = Maker()
    maker.placeholder("x", "float32", (20, -1, 5))
    maker.placeholder("h", "float32", (-1, 5))
    flat = maker.op("Reshape", "x", maker.constant([-1, 5]), shape=(-1, 5))
    maker.op("Add", maker.dense(flat, "a", 5, 5), maker.dense("h", "b", 5, 5), name="out")
    shapes = [
        {str(name): value.shape for name, value in feeds.values.items()}
        for feeds in complete(find_forward(maker.graph(), ALL), {}, 0)
    ]
    assert shapes[0] == {"x": (20, 8, 5), "h": (20, 5)}
    assert {"x": (20, 8, 5), "h": (8, 5)} in shapes


def saved(spec: str = "", key: str = "average/w") -> Graph:
    maker = small()
    maker.dense("x", "a", 5, 3)
    names = maker.strings(key, "b")
    maker.op("SaveV2", maker.strings("model"), names, maker.strings(spec, ""), "a/w/read", "a/b")
    return maker.graph()


def test_savers_say_which_variable_is_which() -> None:
    graph = saved()
    held = variables_of(graph, {"average/w", "b"})
    assert held == {"a/w": Held("average/w"), "a/b": Held("b")}
    # A saver of other names says nothing about this checkpoint.
    assert variables_of(graph, {"a/w", "a/b"}) == {"a/w": Held("a/w"), "a/b": Held("a/b")}


def test_what_restores_says_it_too() -> None:
    maker = small()
    maker.dense("x", "a", 5, 3)
    names, slices = maker.strings("other", "w"), maker.strings("", "10 3 5,5:-")
    restored = maker.op("RestoreV2", maker.strings("model"), names, slices)
    maker.op("Assign", "a/w", maker.op("Identity", f"{restored}:1"))
    held = variables_of(maker.graph(), {"w"})
    assert held["a/w"] == Held("w", (slice(5, 10), slice(0, 3)))


@pytest.mark.parametrize("spec", ["10 3 0,5", "10 x 0,5:0,3", "10 3 8,5:0,3", "nonsense", "10 3 -"])
def test_slices_that_cannot_be_are_no_slices(spec: str) -> None:
    assert variables_of(saved(spec), {"average/w"})["a/w"] == Held("average/w")


def test_a_graph_of_another_checkpoint_is_told() -> None:
    checkpoint = open_checkpoint(case("tf14_v2_rotation").path)
    graph = saved(key="out/kernel")
    held = variables_of(graph, set(checkpoint))["a/w"]
    with pytest.raises(InputError, match=r"a/w is \[5, 3\], .* is \[9, 2\]; .*another checkpoint"):
        check_shape(graph, "a/w", held, checkpoint["out/kernel"])


def test_partitions_are_slices_of_one_key() -> None:
    some = case("tf10_v2_partitioned")
    held = forward_of(some).variables
    assert held["emb/table/part_1"].key == "emb/table"
    region = held["emb/table/part_1"].region
    assert region is not None
    offsets = [
        tuple(piece["offset"]) for piece in some.variables()["emb/table"]["partition"]["slices"]
    ]
    assert tuple(part.start for part in region) == offsets[1]


def test_averages_in_the_place_of_variables() -> None:
    maker = small()
    maker.dense("x", "a", 5, 3)
    names = maker.strings("a/w/ExponentialMovingAverage", "a/b")
    maker.op("SaveV2", maker.strings("m"), names, maker.strings("", ""), "a/w", "a/b")
    forward = find_forward(maker.graph(), {"a/w", "a/b", "a/w/ExponentialMovingAverage"})
    assert forward.variables["a/w"].key == "a/w/ExponentialMovingAverage"


def test_what_is_inside_a_loop_cannot_be_fetched() -> None:
    some = case("tf14_v2_charlm_lstm_ema")
    with pytest.raises(UsageError, match=r"inside the loop .*; fetch .* charlm/rnn/while/Exit"):
        forward_of(some, fetches=["charlm/rnn/while/Identity"])
    forward = forward_of(some, fetches=["charlm/rnn/while/Exit_2:0"])
    assert chosen(forward) == {"charlm/rnn/while/Exit_2"}


def test_what_is_fetched_must_be_there() -> None:
    with pytest.raises(UsageError, match=r"no tensor 'charlm/softmax/BiasAd'; did you mean"):
        forward_of(case("tf14_v2_charlm_lstm_ema"), fetches=["charlm/softmax/BiasAd"])


def test_what_cannot_be_run_is_left_out() -> None:
    maker = small()
    hidden = maker.dense("x", "a", 5, 3)
    maker.op("OldContrib", hidden, name="warped", shape=(-1, 3))
    maker.op("Relu", hidden, name="out", shape=(-1, 3))
    graph = maker.graph()
    assert chosen(find_forward(graph, ALL)) == {"warped", "out"}
    forward = find_forward(graph, ALL, can_run=lambda op: op != "OldContrib")
    assert chosen(forward) == {"out"}
    assert forward.notes == (
        "warped is left out: it needs warped, and TensorFlow has no op OldContrib any more",
    )
    with pytest.raises(UsageError, match=r"warped: it needs warped.*--feed"):
        find_forward(graph, ALL, fetches=["warped"], can_run=lambda op: op != "OldContrib")


def test_pruning_keeps_what_is_needed_and_no_side_effect() -> None:
    maker = small()
    hidden = maker.dense("x", "a", 5, 3)
    counter = maker.variable("counter")
    count = maker.op("AssignAdd", "counter", maker.constant(1.0), name="count")
    ready = maker.op("NoOp", name="ready")
    maker.op("Identity", hidden, f"^{count}", f"^{ready}", name="out", T="float32", shape=(-1, 3))
    forward = find_forward(maker.graph(), ALL)
    pruned = prune(forward, {Tensor("x"): forward.inputs[0].dtype})  # type: ignore[dict-item]
    assert pruned.nodes == {
        "x",
        "a/w",
        "a/w/read",
        "a/b",
        "a/b/read",
        "MatMul_4",
        "a/add",
        "out",
        "ready",
    }
    assert counter not in pruned.nodes
    assert not pruned.changed
    assert b"_output_shapes" not in pruned.definition


def test_what_is_written_before_it_is_read_is_needed() -> None:
    maker = small()
    for name in ("state", "seed"):
        maker.op("VarHandleOp", name=name, dtype="float32", shape=())
        maker.op("AssignAddVariableOp", name, maker.constant(1.0), name=f"{name}/add")
    for name, after in {"state": "state/add", "seed": "state/add"}.items():
        maker.op("ReadVariableOp", name, f"^{after}", name=f"{name}/read", dtype="float32")
    maker.op("Identity", "x", "^seed/add", name="kept", T="float32", shape=(-1, 5))
    hidden = maker.op("Mul", "kept", "seed/read", name="of_seed", T="float32", shape=(-1, 5))
    graph = maker.graph()
    assert {"seed/add", "state/add"}.isdisjoint(graph.ancestors([Tensor(hidden)]))
    assert "state/add" in graph.ancestors([Tensor("state/read")])
    maker.op("Mul", hidden, "state/read", name="out", T="float32", shape=(-1, 5))
    forward = find_forward(maker.graph(), {"state", "seed"}, fetches=["out"])
    pruned = prune(forward, {Tensor("x"): forward.inputs[0].dtype})  # type: ignore[dict-item]
    assert pruned.changed == {"state"}


def test_cycles_and_long_chains_come_to_an_end() -> None:
    maker = small()
    maker.op("Identity", "loop_b", name="loop_a")
    maker.op("Identity", "loop_a", name="loop_b")
    hidden = maker.dense("x", "a", 5, 5)
    for _ in range(5000):
        hidden = maker.op("Relu", hidden, shape=(-1, 5))
    maker.op("Add", hidden, "loop_a", name="out", shape=(-1, 5))
    graph = maker.graph()
    assert chosen(find_forward(graph, ALL)) == {"out"}
    assert graph.constant(Tensor("loop_a")) is None


def test_damaged_graphs_are_told() -> None:
    maker = small()
    maker.op("Relu", maker.dense("x", "a", 5, 3), "gone", name="out", shape=(-1, 3))
    with pytest.raises(InputError, match="lacks the node gone; it is damaged"):
        find_forward(maker.graph(), ALL)
    maker = small()
    maker.placeholder("x", "float32", ())
    with pytest.raises(InputError, match="two nodes are named x"):
        maker.graph()


@pytest.mark.parametrize(("value", "told"), [("true", 1), ("false", 0)])
def test_inspect_notes_the_branches_that_fed_flags_take(value: str, told: int) -> None:
    path = case("tf115_v2_convbn_ema").path
    outcome = run("inspect", path, "--graph", "--feed", f"is_training={value}")
    assert outcome.exit_code == 0, outcome.output
    assert outcome.output.count("normalises by the batch, as in training") == told


def test_inspect_shows_the_graph() -> None:
    outcome = run("inspect", case("tf115_v2_convbn_ema").path, "--graph")
    assert outcome.exit_code == 0, outcome.output
    lines = [line.split() for line in outcome.stdout.splitlines()]
    assert ["images", "float32", "[?,", "8,", "8,", "2]", "data"] in lines
    assert "is_training  bool     []            flag  fed False" in outcome.stdout
    assert lines[-1][0] == "logits/BiasAdd"
    outcome = run("inspect", case("tf14_v2_charlm_lstm_ema").path, "--graph", "--json")
    document = json.loads(outcome.stdout)
    assert document["inputs"] == [
        {
            "name": "x",
            "dtype": "int32",
            "shape": [-1, -1],
            "kind": "ids",
            "value": None,
            "limit": 14,
            "why": "looks up one of 14",
        }
    ]
    assert [output["name"] for output in document["outputs"]][-1] == "charlm/softmax/BiasAdd"
    assert document["tensorflow"] == "1.4.1"
    assert set(document["variables"].values()) == {
        "charlm/embedding",
        "charlm/rnn/lstm_cell/kernel",
        "charlm/rnn/lstm_cell/bias",
        "charlm/softmax/kernel",
        "charlm/softmax/bias",
    }


def test_inspect_takes_what_decides() -> None:
    path = case("tf115_v2_convbn_ema").path
    outcome = run("inspect", path, "--graph", "--fetch", "features/Reshape", "--json")
    document = json.loads(outcome.stdout)
    assert [output["name"] for output in document["outputs"]] == ["features/Reshape"]
    assert "logits/kernel" not in document["variables"]
    outcome = run("inspect", path, "--fetch", "features/Reshape")
    assert outcome.exit_code == 2
    assert "add --graph" in outcome.stderr


@pytest.mark.parametrize("name", ["tf221_raw_dtypes", "tf221_obj_module"])
def test_a_checkpoint_without_a_graph(name: str) -> None:
    outcome = run("inspect", case(name).path, "--graph")
    assert outcome.exit_code == 3
    assert "it has no graph" in outcome.stderr


@pytest.mark.parametrize("damage", ["cut", "random", "text"])
def test_a_damaged_meta_is_one_line(damage: str, tmp_path: Path) -> None:
    source = Path(case("tf14_v2_rotation").path)
    for file in source.parent.glob(f"{source.name}.*"):
        os.link(file, tmp_path / file.name)
    meta = tmp_path / f"{source.name}.meta"
    data = meta.read_bytes()
    meta.unlink()
    meta.write_bytes(
        {
            "cut": data[:1000],
            "random": bytes(range(256)) * 4,
            "text": b'meta_info_def { tags: "x" }',
        }[damage]
    )
    outcome = run("inspect", tmp_path / source.name, "--graph")
    assert outcome.exit_code == 3
    (line,) = outcome.stderr.splitlines()
    assert str(meta) in line


def test_feeds_on_the_command_line() -> None:
    assert parse_feed("keep:0=0.5") == ("keep", np.asarray(0.5))
    assert parse_feed("flag=True")[1].dtype == bool
    assert parse_feeds(["a=1", "b=2"]) == {"a": 1, "b": 2}
    with pytest.raises(UsageError, match="--feed a: it is given twice; leave one"):
        parse_feeds(["a=1", "a:0=2"])
    assert parse_feed("lengths=[3, 4]")[1].tolist() == [3, 4]
    for text in ("keep", "=1", "x=abc", "x={}", 'x="a"', "x=[1,[2]]", "x=" + "[" * 100_000):
        with pytest.raises(UsageError, match=r"--feed"):
            parse_feed(text)


def test_feeds_must_fit() -> None:
    graph = read_graph(open_checkpoint(case("tf14_v2_attention_bahdanau").path))
    assert graph is not None

    def given(name: str, value: Any) -> dict[Tensor, Any]:
        return given_values(graph, {name: np.asarray(value)}, "x.npz")

    assert given("source", np.ones((2, 6)))[Tensor("source")].dtype == np.int32
    with pytest.raises(UsageError, match=r"x.npz: source: \[2, 5\] is given, .* takes \[\?, 6\]"):
        given("source", np.ones((2, 5)))
    with pytest.raises(UsageError, match=r"x.npz: source: float64 values .* not int32"):
        given("source", np.full((2, 6), 0.5))
    with pytest.raises(UsageError, match=r"x.npz: source: <U1 values .* not int32"):
        given("source", np.full((2, 6), "a"))
    with pytest.raises(UsageError, match=r"x.npz: source: complex128 values .* not int32"):
        given("source", np.full((2, 6), 1j))
    with pytest.raises(UsageError, match=r"x.npz: source: float64 values .* not int32"):
        given("source", np.full((2, 6), np.inf))
    with pytest.raises(UsageError, match=r"x.npz: sourc: .* did you mean 'source'"):
        given("sourc", np.ones((2, 6)))
    with pytest.raises(UsageError, match=r"its inputs are source, source_lengths"):
        given("completely different", np.ones((2, 6)))


def test_an_op_in_a_function_that_cannot_be_run_is_named() -> None:
    some = case("tf221_savedmodel_module")
    with pytest.raises(UsageError, match=r"left out: it needs Tanh, and TensorFlow has no op Tanh"):
        forward_of(some, can_run=lambda op: op != "Tanh")
    with pytest.raises(UsageError, match=r"StatefulPartitionedCall: it needs Tanh, and"):
        forward_of(some, can_run=lambda op: op != "Tanh", fetches=["StatefulPartitionedCall"])
    # What only savers need is not run.
    assert forward_of(some, can_run=lambda op: op != "SaveV2").outputs


@pytest.mark.parametrize(
    ("name", "called", "inputs"),
    [
        ("tf115_v2_convbn_ema", {}, "images, labels, is_training"),
        ("tf221_savedmodel_module", {}, "serving_default_x"),
        ("tf221_savedmodel_module", {"in": "serving_default_x"}, "in"),
    ],
)
def test_what_takes_names_of_files_is_no_input(
    name: str, called: dict[str, str], inputs: str
) -> None:
    graph = read_graph(open_checkpoint(case(name).path))
    assert graph is not None
    with pytest.raises(UsageError) as caught:
        given_values(graph, {"quite another": np.ones(3)}, "x.npz", called)
    assert str(caught.value).endswith(f"no such tensor; its inputs are {inputs}")
    placeholders = [n.name for n in graph.nodes.values() if n.op.startswith("Placeholder")]
    assert any("save" in name for name in placeholders)
    for given, fed in called.items():
        assert list(given_values(graph, {given: np.ones((2, 6))}, "", called)) == [Tensor(fed)]
        twice = {given: np.ones((2, 6)), f"{fed}:0": np.ones((2, 6))}
        with pytest.raises(UsageError, match=f"x.npz: {fed}:0 is given twice"):
            given_values(graph, twice, "x.npz", called)
