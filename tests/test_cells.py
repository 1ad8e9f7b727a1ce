"""Structure by names and shapes alone: cells of every era, layers, BERT, and how they are tied."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from conftest import VALID, Case, case, structure_of
from structure_maker import told

from converter import Checkpoint, Variable, open_checkpoint
from converter.errors import PlanError
from converter.graph.node import Output
from converter.graph.ordered import read_ordered
from converter.structure.axes.axis import Axis, Blocks
from converter.structure.cells import by_name, labels_by_name
from converter.structure.infer import infer, infer_from
from converter.structure.structure import Structure

Shapes = dict[str, tuple[int, ...]]


def checkpoint(shapes: Shapes) -> Checkpoint:
    variables = [Variable.from_array(n, np.zeros(s, "f4")) for n, s in shapes.items()]
    return Checkpoint(variables, path=Path("made"))


def made(shapes: Shapes) -> Structure:
    return infer(checkpoint(shapes))


def axes(shapes: Shapes) -> dict[str, str]:
    found = made(shapes)
    return {name: told(found, name) for name in shapes}


def fates(shapes: Shapes) -> dict[str, str]:
    """Return the class of each width, and how it grows."""
    return {
        width.name: f"{width.symmetry} {width.growth if width.resizable else 'fixed'}"
        for width in made(shapes).widths.values()
    }


def units_of(axis: Axis, sizes: Mapping[str, int]) -> list[tuple[tuple[str, int], ...]]:
    """Return of each entry of an axis the units that it is about, without the blocks."""
    found: list[tuple[tuple[str, int], ...]] = []
    for term in axis.terms:
        choices: list[list[tuple[tuple[str, int], ...]]] = []
        for factor in term:
            if isinstance(factor, Blocks):
                choices.append([()] * len(factor.labels))
            elif isinstance(factor, int):
                choices.append([()] * factor)
            elif isinstance(factor, str):
                choices.append([((factor, i),) for i in range(sizes[factor])])
            else:
                choices.append(units_of(factor, sizes))
        found += [sum(parts, ()) for parts in product(*choices)]
    return found


@pytest.mark.parametrize("one", VALID, ids=lambda one: one.name)
def test_names_claim_nothing_that_the_graph_denies(one: Case) -> None:
    source = open_checkpoint(one.path)
    if read_ordered(source) is None:
        return
    _, graph = structure_of(one)
    names = by_name(source, source.roles())
    sizes = {name: width.size for name, width in names.widths.items()}
    by_unit = defaultdict(set)
    by_truth = defaultdict(set)
    for name, found in names.axes.items():
        for axis, truth in zip(found, graph.axes[name], strict=True):
            outer, true_outer = axis.terms[0][0], truth.terms[0][0]
            if isinstance(outer, Blocks):
                assert outer == true_outer, name
            pairs = zip(units_of(axis, sizes), units_of(truth, graph.sizes), strict=True)
            for unit, true_unit in pairs:
                by_unit[unit].add(true_unit)
                by_truth[true_unit].add(unit)
    for claim, truths in by_unit.items():
        # Units that names make one are one.
        assert len(truths) == 1 or not claim, claim
        width = names.widths[claim[0][0]] if claim else None
        if width is not None and width.resizable:
            # Of what can be resized nothing is forgotten, and nothing is promised too much.
            (known,) = truths
            assert by_truth[known] == {claim}, claim
            assert graph.widths[known[0][0]].resizable
            assert not width.exact or graph.widths[known[0][0]].exact, claim


# Of each cell: its variables with input 3, units 4 and projection 2.
CELLS: list[tuple[Shapes, dict[str, str]]] = [
    (
        {"RNN/BasicLSTMCell/Linear/Matrix": (7, 16), "RNN/BasicLSTMCell/Linear/Bias": (16,)},
        {"Matrix": "x + RNN/BasicLSTMCell, [i,j,f,o]*RNN/BasicLSTMCell | consume, produce"},
    ),
    (
        {"rnn/basic_lstm_cell/weights": (7, 16), "rnn/basic_lstm_cell/biases": (16,)},
        {"biases": "[i,j,f,o]*rnn/basic_lstm_cell | shift"},
    ),
    (
        {
            "lstm_cell/kernel": (5, 16),
            "lstm_cell/bias": (16,),
            "lstm_cell/w_f_diag": (4,),
            "lstm_cell/projection/kernel": (4, 2),
        },
        {
            "cell/kernel": "x + lstm_cell/projection, [i,j,f,o]*lstm_cell | consume, produce",
            "w_f_diag": "lstm_cell | gain",
            "projection/kernel": "lstm_cell, lstm_cell/projection | consume, produce",
        },
    ),
    (
        {"LSTMCell/W_0": (5, 16), "LSTMCell/B": (16,), "LSTMCell/W_P_0": (4, 2)},
        {"W_P_0": "LSTMCell, LSTMCell/projection | consume, produce"},
    ),
    (
        {"LSTMBlockCell/W": (7, 16), "LSTMBlockCell/b": (16,), "LSTMBlockCell/wci": (4,)},
        {"wci": "LSTMBlockCell | gain"},
    ),
    (
        {"coupled_input_forget_gate_lstm_cell/W_0": (7, 12)},
        {"W_0": "x + {cell}, [j,f,o]*{cell} | consume, produce"},
    ),
    (
        {
            "gru_cell_1/gates/kernel": (7, 8),
            "gru_cell_1/gates/bias": (8,),
            "gru_cell_1/candidate/kernel": (7, 4),
            "gru_cell_1/candidate/bias": (4,),
        },
        {
            "gates/kernel": "x + gru_cell_1, [r,u]*gru_cell_1 | consume, produce",
            "candidate/kernel": "x + gru_cell_1, gru_cell_1 | consume, produce",
            "candidate/bias": "gru_cell_1 | shift",
        },
    ),
    (
        {
            "GRUBlockCell/w_ru": (7, 8),
            "GRUBlockCell/b_ru": (8,),
            "GRUBlockCell/w_c": (7, 4),
            "GRUBlockCell/b_c": (4,),
        },
        {"b_ru": "[r,u]*GRUBlockCell | shift"},
    ),
    (
        {
            "cudnn_compatible_gru_cell/gates/kernel": (7, 8),
            "cudnn_compatible_gru_cell/candidate/input_projection/kernel": (3, 4),
            "cudnn_compatible_gru_cell/candidate/hidden_projection/kernel": (4, 4),
            "cudnn_compatible_gru_cell/candidate/hidden_projection/bias": (4,),
        },
        {
            "input_projection/kernel": "x, {cell} | consume, produce",
            "hidden_projection/kernel": "{cell}, {cell} | consume, produce",
        },
    ),
    (
        {"basic_rnn_cell/kernel": (7, 4), "basic_rnn_cell/bias": (4,)},
        {"kernel": "x + basic_rnn_cell, basic_rnn_cell | consume, produce"},
    ),
    (
        {"ugrnn_cell/kernel": (7, 8), "ugrnn_cell/bias": (8,)},
        {"bias": "2*ugrnn_cell | shift"},
    ),
    (
        {"nas_cell/kernel": (3, 32), "nas_cell/recurrent_kernel": (4, 32)},
        {"recurrent_kernel": "nas_cell, 8*nas_cell | consume, produce"},
    ),
    (
        {"conv_lstm_cell/kernel": (3, 3, 7, 16), "conv_lstm_cell/biases": (16,)},
        {"kernel": "3, 3, x + {cell}, [i,j,f,o]*{cell} | -, -, consume, produce"},
    ),
    (
        {"lstm/kernel": (3, 16), "lstm/recurrent_kernel": (4, 16), "lstm/bias": (16,)},
        {
            "lstm/kernel": "x, [i,f,c,o]*lstm | consume, produce",
            "recurrent_kernel": "lstm, [i,f,c,o]*lstm | consume, produce",
        },
    ),
    (
        {"gru/kernel": (3, 12), "gru/recurrent_kernel": (4, 12), "gru/bias": (2, 12)},
        {"bias": "2, [z,r,h]*gru | -, shift"},
    ),
    (
        {"simple_rnn/kernel": (3, 4), "simple_rnn/recurrent_kernel": (4, 4)},
        {"recurrent_kernel": "simple_rnn, simple_rnn | consume, produce"},
    ),
    (
        {
            f"cell/{gate}/{leaf}": shape
            for gate in ("input_gate", "forget_gate", "output_gate", "memory_cell")
            for leaf, shape in {"wx": (3, 4), "wt": (4, 4), "bi": (1, 4)}.items()
        },
        {
            "input_gate/wx": "x, cell | consume, produce",
            "memory_cell/wt": "cell, cell | consume, produce",
            "forget_gate/bi": "1, cell | -, shift",
        },
    ),
]


@pytest.mark.parametrize(("shapes", "wanted"), CELLS, ids=lambda value: next(iter(value)))
def test_cells_of_every_era(shapes: Shapes, wanted: dict[str, str]) -> None:
    found = axes(shapes)
    cell = next(n for n in made(shapes).widths if not n.endswith(("/inputs", "/projection")))
    for end, text in wanted.items():
        (axis,) = [told for name, told in found.items() if name.endswith(end)]
        assert axis.replace(f"{cell}/inputs", "x") == text.replace("{cell}", cell)
    sizes = made(shapes).sizes
    assert sizes[f"{cell}/inputs"] == 3
    assert sizes[cell] == 4
    assert all(fate != "opaque fixed" for fate in fates(shapes).values())


def test_a_layer_normalisation_counts_the_units() -> None:
    gates = ("input", "transform", "forget", "output", "state")
    shapes: Shapes = {"layer_norm_basic_lstm_cell/kernel": (7, 16), "softmax/kernel": (4, 3)}
    shapes |= {f"layer_norm_basic_lstm_cell/{gate}/gamma": (4,) for gate in gates}
    shapes |= {f"layer_norm_basic_lstm_cell/{gate}/beta": (4,) for gate in gates}
    assert fates(shapes)["layer_norm_basic_lstm_cell"] == "permutation none"
    assert axes(shapes)["layer_norm_basic_lstm_cell/state/gamma"].endswith("| gain")


@pytest.mark.parametrize(
    "shapes",
    [
        {"lstm_cell/kernel": (7, 15), "lstm_cell/bias": (15,)},
        {"lstm_cell/kernel": (3, 16), "lstm_cell/bias": (16,)},
        {"lstm_cell/kernel": (7, 16), "lstm_cell/bias": (12,)},
        {"LSTMCell/W_0": (4, 16), "LSTMCell/W_1": (3, 16), "LSTMCell/B": (16,)},
        {
            "cu_dnnlstm/kernel": (3, 16),
            "cu_dnnlstm/recurrent_kernel": (4, 16),
            "cu_dnnlstm/bias": (32,),
        },
        {"gru_cell/gates/kernel": (7, 8), "gru_cell/candidate/kernel": (6, 4)},
        {"lstm_cell/kernel": (7, 16), "lstm_cell/w_f_diag": (5,)},
    ],
    ids=str,
)
def test_what_a_name_promises_and_shapes_do_not_keep_is_no_cell(shapes: Shapes) -> None:
    found = checkpoint(shapes)
    assert list(labels_by_name(found, found.roles())) == []
    assert not any(width.resizable for width in infer(found).widths.values())


LM: Shapes = {"embedding": (9, 4), "softmax_w": (4, 9), "softmax_b": (9,)}


def lstm(scope: str, rows: int, units: int = 4) -> Shapes:
    return {f"{scope}/kernel": (rows, 4 * units), f"{scope}/bias": (4 * units,)}


def test_a_stack_between_a_table_and_a_softmax_with_all_sizes_equal() -> None:
    cell = "rnn/multi_rnn_cell/cell_{}/lstm_cell"
    shapes = LM | lstm(cell.format(0), 8) | lstm(cell.format(1), 8) | lstm(cell.format(2), 8)
    found = axes(shapes)
    previous = "embedding"
    for i in range(3):
        name = cell.format(i)
        assert found[f"{name}/kernel"] == (
            f"{previous} + {name}, [i,j,f,o]*{name} | consume, produce"
        )
        previous = name
    assert found["softmax_w"] == f"{previous}, softmax | consume, produce"
    assert made(shapes).widths[cell.format(1)].why == (
        f"the gates of lstm_cell are nonlinear; a residual connection to {cell.format(0)} would be "
        "in no name"
    )
    assert fates(shapes) == {
        "embedding": "permutation any",
        "embedding/vocabulary": "bound any",
        **{cell.format(i): "permutation any" for i in range(3)},
        "softmax": "bound none",
    }


@pytest.mark.parametrize(
    ("fw", "bw", "head"),
    [
        ("bidirectional_rnn/fw/lstm_cell", "bidirectional_rnn/bw/lstm_cell", "softmax"),
        ("BiRNN/FW/LSTMCell", "BiRNN/BW/LSTMCell", "Logits"),
        ("BiRNN_FW/LSTMCell", "BiRNN_BW/LSTMCell", "head"),
        ("bidirectional/forward_lstm/lstm_cell", "bidirectional/backward_lstm/lstm_cell", "out"),
    ],
)
def test_both_directions_of_one_input(fw: str, bw: str, head: str) -> None:
    shapes = lstm(fw, 8, 5) | lstm(bw, 7) | {f"{head}/kernel": (9, 2), f"{head}/bias": (2,)}
    found = axes(shapes)
    assert found[f"{head}/kernel"] == f"{fw} + {bw}, {head} | consume, produce"
    assert found[f"{bw}/kernel"].startswith(f"{fw}/inputs + {bw},")
    assert fates(shapes) == {
        f"{fw}/inputs": "bound fixed",
        fw: "permutation any",
        bw: "permutation any",
        head: "bound none",
    }


def test_directions_that_are_added_are_not_told_from_others() -> None:
    shapes = lstm("bidirectional_rnn/fw/lstm_cell", 7) | lstm("bidirectional_rnn/bw/lstm_cell", 7)
    shapes |= {"softmax/kernel": (4, 2), "softmax/bias": (2,)}
    assert fates(shapes)["bidirectional_rnn/fw/lstm_cell"] == "permutation fixed"
    assert fates(shapes)["bidirectional_rnn/bw/lstm_cell"] == "permutation fixed"


def test_a_stack_of_both_directions() -> None:
    cell = "stack_bidirectional_rnn/cell_{}/bidirectional_rnn/{}/lstm_cell"
    shapes = lstm(cell.format(0, "fw"), 8, 5) | lstm(cell.format(0, "bw"), 7)
    shapes |= lstm(cell.format(1, "fw"), 12, 3) | lstm(cell.format(1, "bw"), 11, 2)
    shapes |= {"softmax/kernel": (5, 7), "softmax/bias": (7,)}
    found = axes(shapes)
    first = f"{cell.format(0, 'fw')} + {cell.format(0, 'bw')}"
    for direction in ("fw", "bw"):
        name = cell.format(1, direction)
        assert found[f"{name}/kernel"].startswith(f"{first} + {name},")
    assert found["softmax/kernel"].startswith(f"{cell.format(1, 'fw')} + {cell.format(1, 'bw')},")
    assert set(fates(shapes).values()) == {"permutation any", "bound none", "bound fixed"}


def test_convolutions_with_their_normalisation() -> None:
    shapes: Shapes = {
        "conv1/kernel": (3, 3, 1, 6),
        "conv2/weights": (3, 3, 6, 8),
        "conv2/biases": (8,),
        "up_transpose/kernel": (3, 3, 5, 8),
        "up_transpose/bias": (5,),
    }
    for leaf in ("gamma", "beta", "moving_mean", "moving_variance"):
        shapes[f"conv1/BatchNorm/{leaf}"] = (6,)
    shapes = {
        name.replace("conv2", "conv1_2").replace("conv1", "c"): s for name, s in shapes.items()
    }
    found = axes(shapes)
    assert found["c/BatchNorm/gamma"] == "c | gain"
    assert found["c/BatchNorm/moving_variance"] == "c | variance"
    assert found["up_transpose/kernel"] == (
        "3, 3, up_transpose, up_transpose/inputs | -, -, produce, consume"
    )


def test_a_projection_wrapper_takes_the_cell_inside() -> None:
    scope = "rnn/output_projection_wrapper"
    shapes = lstm(f"{scope}/lstm_cell", 7) | {f"{scope}/kernel": (4, 5), "softmax/kernel": (5, 2)}
    assert axes(shapes)[f"{scope}/kernel"] == f"{scope}/lstm_cell, {scope} | consume, produce"
    assert fates(shapes)[f"{scope}/lstm_cell"] == "permutation any"


@pytest.mark.parametrize(
    ("names", "is_linked"),
    [
        (("fc1", "fc2", "fc3"), True),
        (("dense", "dense_1", "dense_2"), True),
        (("net/0", "net/1", "net/2"), True),
        (("a", "b", "c"), False),
        (("fc1", "fc3", "fc5"), False),
    ],
)
def test_layers_are_linked_by_their_numbers(names: tuple[str, ...], is_linked: bool) -> None:
    sizes = (9, 8, 6, 4)
    shapes: Shapes = {}
    for name, into, out in zip(names, sizes, sizes[1:], strict=False):
        shapes |= {f"{name}/kernel": (into, out), f"{name}/bias": (out,)}
    shapes |= {"softmax/kernel": (4, 2)}
    first, second, third = names
    taken = axes(shapes)[f"{second}/kernel"].split(",")[0]
    assert taken == (first if is_linked else f"{second}/inputs")
    fate = "permutation none" if is_linked else "permutation fixed"
    assert fates(shapes)[first] == fate
    assert axes(shapes)["softmax/kernel"].startswith(third)


def test_numbers_do_not_tell_what_two_layers_could_give() -> None:
    shapes: Shapes = {
        "fc1/kernel": (9, 6),
        "fc2/kernel": (6, 6),
        "fc3/kernel": (6, 4),
        "softmax/kernel": (4, 2),
    }
    assert fates(shapes)["fc1"] == fates(shapes)["fc2"] == "permutation fixed"


@pytest.mark.parametrize(
    ("more", "why"),
    [
        (
            {"readout": (4, 2)},
            "no name tells whether readout, axis 0 (4) takes it; if so, say it in a layout file: "
            '[variables."readout"] axes = ["rnn/lstm_cell", "readout_1"]',
        ),
        (
            {"context": (6,)},
            "no name tells whether context, axis 0 (6) takes it; if so, say it in a layout file: "
            '[variables."context"] axes = ["rnn/lstm_cell + ..."]',
        ),
        (
            {"tags/kernel": (11, 3), "tags/bias": (3,)},
            "no name tells whether tags/kernel, axis 0 (11) takes it; if so, say it in a layout "
            'file: [variables."tags/kernel"] axes = ["rnn/lstm_cell + ...", "tags"]',
        ),
        (
            {"dense/kernel": (3, 4), "dense/bias": (4,)},
            "no name tells whether softmax/kernel, axis 0 (4) takes it; if so, say it in a layout "
            'file: [variables."softmax/kernel"] axes = ["rnn/lstm_cell", "softmax"]',
        ),
        (
            lstm("decoder/lstm_cell", 5) | {"decoder/lstm_cell/projection/kernel": (4, 3)},
            "no name tells whether it is the same as decoder/lstm_cell; give both one name in a "
            "layout file, or say resizable = true",
        ),
    ],
    ids=str,
)
def test_what_is_ambiguous_is_asked_for(more: Shapes, why: str) -> None:
    shapes = lstm("rnn/lstm_cell", 7) | {"softmax/kernel": (4, 2), "softmax/bias": (2,)}
    assert fates(shapes)["rnn/lstm_cell"] == "permutation any"
    width = made(shapes | more).widths["rnn/lstm_cell"]
    assert not width.resizable
    assert not width.exact
    assert width.why == why


def test_a_state_of_both_directions_may_begin_another_cell() -> None:
    shapes = lstm("bidirectional_rnn/fw/lstm_cell", 5, 3) | lstm(
        "bidirectional_rnn/bw/lstm_cell", 6
    )
    shapes |= lstm("decoder/lstm_cell", 8, 7)
    why = made(shapes).widths["decoder/lstm_cell"].why
    assert "bidirectional_rnn/fw/lstm_cell + bidirectional_rnn/bw/lstm_cell" in why


def test_what_nothing_takes_may_be_added_to_something_of_its_size() -> None:
    cell = "rnn/multi_rnn_cell/cell_{}/lstm_cell"
    shapes = lstm(cell.format(0), 8, 5) | lstm(cell.format(1), 9)
    shapes |= {"dense/kernel": (2, 5), "dense/bias": (5,), "softmax/kernel": (4, 2)}
    widths = made(shapes).widths
    same = "no name tells whether it is the same as "
    assert widths[cell.format(0)].why.startswith(f"{same}dense;")
    assert widths["dense"].why.startswith(f"{same}{cell.format(0)};")
    assert widths[cell.format(1)].exact


def test_one_cell_may_be_all_of_a_stack() -> None:
    shapes = lstm("rnn/multi_rnn_cell/cell_0/lstm_cell", 8) | {"softmax/kernel": (4, 2)}
    (width,) = [w for n, w in made(shapes).widths.items() if n.endswith("lstm_cell")]
    assert width.why.startswith("no name tells whether rnn/multi_rnn_cell/cell_0/lstm_cell/kernel")


def test_what_no_name_tells_is_opaque() -> None:
    found = made({"a/x": (3, 1, 4), "b": (3,)})
    assert {name: list(map(str, axes)) for name, axes in found.axes.items()} == {
        "a/x": ["a/x", "1", "a/x_1"],
        "b": ["b"],
    }
    assert {w.symmetry for w in found.widths.values()} == {"opaque"}
    assert not any(width.resizable or width.exact for width in found.widths.values())
    assert found.findings is None
    assert found.write is None


def test_slots_follow_without_a_graph() -> None:
    found = made(lstm("rnn/lstm_cell", 7) | {"rnn/lstm_cell/kernel/Adam": (7, 16)})
    assert found.axes["rnn/lstm_cell/kernel/Adam"] == found.axes["rnn/lstm_cell/kernel"]
    assert found.widths["rnn/lstm_cell"].produced_by == ("rnn/lstm_cell/kernel",)


def test_bert_without_a_graph() -> None:
    source = open_checkpoint(case("tf115_v2_bert_mini").path)
    found = by_name(source, source.roles())
    layer = "bert/encoder/layer_1"
    assert [str(a) for a in found.axes[f"{layer}/output/dense/kernel"]] == [
        f"{layer}/intermediate/dense",
        "bert/embeddings",
    ]
    widths = found.widths
    assert (widths[f"{layer}/intermediate/dense"].size, widths["bert/embeddings"].size) == (64, 32)
    assert widths[f"{layer}/intermediate/dense"].exact
    assert widths["bert/embeddings"].resizable
    assert not widths["bert/embeddings"].exact
    heads = widths[f"{layer}/attention/self/value"]
    assert not heads.resizable
    assert "heads*head_size" in heads.why
    assert not [w.name for w in widths.values() if w.symmetry == "opaque"]


def test_bert_with_another_shape_is_none() -> None:
    source = open_checkpoint(case("tf115_v2_bert_mini").path)
    model = {n: v.shape for n, v in source.items() if source.roles()[n].kind == "model"}
    model["bert/encoder/layer_1/output/dense/bias"] = (31,)
    assert fates(model)["bert/encoder/layer_1/output/LayerNorm"] == "opaque fixed"


def test_gates_that_names_and_graph_tell_differently_are_refused() -> None:
    """A cell whose new input stands where its name promises the forget gate."""
    source = open_checkpoint(case("tf14_v2_charlm_lstm_ema").path)
    graph = read_ordered(source)
    assert graph is not None
    split = graph.by_name["charlm/rnn/while/rnn/lstm_cell/split"]
    swapped = {1: 2, 2: 1}
    for node in graph.nodes:
        node.inputs = tuple(
            Output(split, swapped.get(port, port)) if made_by is split else Output(made_by, port)
            for made_by, port in node.inputs
        )
    with pytest.raises(PlanError) as error:
        infer_from(graph, source)
    assert str(error.value) == (
        f"{source.path}: charlm/rnn/lstm_cell/kernel, axis 1, is [i,f,c,o]*charlm/rnn/lstm_cell by "
        "the graph, and [i,j,f,o] by the name of the cell; say which it is in a layout file: "
        '[variables."charlm/rnn/lstm_cell/kernel"] axes = ...'
    )
