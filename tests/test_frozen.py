"""Frozen graphs: which constants are variables, what they hold, and what is refused."""

from __future__ import annotations

import random
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_slices import DTYPES, mutated, random_values, same
from wire_writer import Array, const, field, node, numbers, shape_proto, varint

from converter.dtype import BY_NAME, STRING, DType
from converter.errors import InputError
from converter.formats import Contents, frozen
from converter.variable import Variable

FLOAT32 = BY_NAME["float32"]
INT32 = BY_NAME["int32"]


def content(values: Array) -> bytes:
    return field(4, values.tobytes())


def floats(name: str, *values: float) -> bytes:
    array = np.array(values, "f4")
    return const(name, FLOAT32, array.shape, content(array))


def scalar(name: str, value: int | float) -> bytes:
    dtype = FLOAT32 if isinstance(value, float) else INT32
    return const(name, dtype, (), numbers(dtype, np.array([value], dtype.numpy)))


def inputs(*names: str) -> bytes:
    return b"".join(node(name, "Placeholder") for name in names)


def reading(name: str) -> bytes:
    return node(f"{name}/read", "Identity", [name])


def read(directory: Path, *nodes: bytes) -> Contents:
    path = directory / "graph.pb"
    path.write_bytes(b"".join(nodes) + field(4, field(1, 27)))
    contents = frozen.read(path)
    contents.check(variable.name for variable in contents.variables)
    return contents


def names(contents: Contents) -> list[str]:
    return [variable.name for variable in contents.variables]


def variable(directory: Path, dtype: DType, shape: tuple[int, ...], values: bytes) -> Variable:
    (found,) = read(directory, const("v", dtype, shape, values), reading("v")).variables
    return found


# Which constants are variables


def test_reads_of_tensorflow_1_tell_the_variables(tmp_path: Path) -> None:
    contents = read(
        tmp_path,
        scalar("concat/axis", 1),
        const("shape", INT32, (2,), content(np.array([3, 4], "i4"))),
        floats("dense/kernel", 1, 2),
        reading("dense/kernel"),
        scalar("scale", 2.0),
        reading("scale"),
        scalar("global_step", 7),
        reading("global_step"),
        scalar("keep_prob", 0.5),
        node("Mul", "Mul", ["dense/kernel/read", "keep_prob"]),
    )
    assert names(contents) == ["dense/kernel", "scale", "global_step"]
    assert contents.variables[1].read().tolist() == 2.0
    assert contents.variables[2].read().tolist() == 7


def test_reads_of_resource_variables_tell_the_variables(tmp_path: Path) -> None:
    contents = read(
        tmp_path,
        node("dense/MatMul/ReadVariableOp", "Identity", ["dense/MatMul/ReadVariableOp/resource"]),
        floats("dense/MatMul/ReadVariableOp/resource", 1, 2),
        const("unknown", INT32, (2,), content(np.array([1, 2], "i4"))),
        node("Func/call/input/_1", "Identity", ["unknown"]),
        node("call/ReadVariableOp_3", "Identity", ["Func/call/input/_1"]),
        floats("while/input_4", 5),
        node("while/enter", "Enter", ["while/input_4"]),
        node("while/switch", "Switch", ["while/enter", "while/condition"]),
        node("while/body/ReadVariableOp", "Identity", ["while/switch:1", "^while/condition"]),
        floats("table", 1, 2),
        node("Gather", "GatherV2", ["table", "ids", "Gather/axis"]),
        scalar("Gather/axis", 0),
        const("permutation", INT32, (2,), content(np.array([1, 0], "i4"))),
        node("Gather_1", "GatherV2", ["permutation", "ids", "Gather/axis"]),
        floats("captured", 1, 2),
        scalar("maximum_iterations", -1),
        node("loop", "While", ["maximum_iterations", "captured:0"]),
        inputs("while/condition", "ids"),
    )
    assert names(contents) == [
        "dense/MatMul/ReadVariableOp/resource",
        "unknown",
        "while/input_4",
        "table",
        "captured",
    ]


def test_folded_reads_are_variables(tmp_path: Path) -> None:
    contents = read(
        tmp_path,
        floats("a/read", 1),
        floats("a/MatMul/ReadVariableOp", 1),
        floats("b/read/_12__cf__12", 1),
        scalar("c/read", 3),
        scalar("spread", 1),
    )
    assert names(contents) == ["a/read", "a/MatMul/ReadVariableOp", "b/read/_12__cf__12", "c/read"]


def test_reads_that_are_left_do_not_hide_the_variables_that_lost_theirs(tmp_path: Path) -> None:
    contents = read(
        tmp_path,
        floats("dense/kernel", 1, 2),
        reading("dense/kernel"),
        floats("out/kernel", 1, 2),
        node("out/MatMul", "MatMul", ["dense/kernel/read", "out/kernel"]),
        floats("out/bias", 1),
        node("out/BiasAdd", "BiasAdd", ["out/MatMul", "out/bias"]),
        const("out/quantised", BY_NAME["qint8"], (2,), field(4, b"\1\2")),
        const("shape", INT32, (2,), content(np.array([3, 4], "i4"))),
        scalar("out/epsilon", 0.5),
    )
    assert names(contents) == ["dense/kernel", "out/kernel", "out/bias", "out/quantised"]


def test_without_reads_all_float_arrays_count(tmp_path: Path) -> None:
    quantised = const("q", BY_NAME["quint8"], (2,), field(4, b"\1\2"))
    contents = read(
        tmp_path,
        floats("kernel", 1, 2),
        scalar("keep_prob", 0.5),
        const("shape", INT32, (2,), content(np.array([3, 4], "i4"))),
        quantised,
        floats("table", 1, 2),
        node("Gather", "GatherV2", ["table", "ids", "axis"]),
        node("MatMul", "MatMul", ["x", "kernel"]),
        inputs("ids", "axis", "x"),
    )
    assert names(contents) == ["kernel", "q", "table"]


def test_without_float_arrays_every_constant_counts(tmp_path: Path) -> None:
    contents = read(tmp_path, scalar("a", 1), scalar("b", 2.0))
    assert names(contents) == ["a", "b"]


def test_odd_names_and_chains_of_identities(tmp_path: Path) -> None:
    name = "größe\udcff"
    chain = [node(f"i{k}", "Identity", [f"i{k - 1}" if k else name]) for k in range(3000)]
    loop = [node("x", "Identity", ["y"]), node("y", "Identity", ["x"])]
    contents = read(
        tmp_path,
        floats(name, 1),
        *chain,
        *loop,
        node("ReadVariableOp", "Identity", ["i2999"]),
        node("z/ReadVariableOp", "Identity", ["x"]),
        node("empty/ReadVariableOp", "Identity", []),
    )
    assert names(contents) == [name]


# What they hold


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    dtype=st.sampled_from(DTYPES),
    shape=st.lists(st.integers(0, 5), max_size=4).map(tuple),
    stored=st.integers(0, 40),
    pieces=st.none() | st.lists(st.integers(0, 5), max_size=6),
    draw=st.randoms(use_true_random=False),
)
def test_the_last_value_is_repeated_and_surplus_is_dropped(
    tmp_path: Path,
    dtype: DType,
    shape: tuple[int, ...],
    stored: int,
    pieces: list[int] | None,
    draw: random.Random,
) -> None:
    values = random_values(dtype, (stored,), draw)
    found = variable(tmp_path, dtype, shape, numbers(dtype, values, pieces))
    assert dtype.numpy is not None
    zero = np.zeros(1, dtype.numpy) if dtype is not STRING else np.array([b""], object)
    count = found.size
    last = values[-1:] if stored else zero
    wanted = np.concatenate([values, *[last] * max(0, count - stored)])[:count].reshape(shape)
    assert same(found.read(), wanted)
    if dtype.itemsize:
        blocks = b"".join(block.tobytes() for block in found.blocks(16))
        assert blocks == wanted.tobytes()


@pytest.mark.parametrize("dtype", [d for d in DTYPES if d.itemsize], ids=str)
@pytest.mark.parametrize("shape", [(), (0,), (3, 4)])
def test_raw_contents_are_stored_values(
    tmp_path: Path, dtype: DType, shape: tuple[int, ...]
) -> None:
    values = random_values(dtype, shape, random.Random(1))
    found = variable(tmp_path, dtype, shape, content(values))
    assert same(found.read(), values)
    if values.size:
        assert found.stored is not None
        data = found.stored.file.read_bytes()
        assert data[found.stored.offset :][: found.stored.size] == values.tobytes()
        assert found.stored.crc32c is None


def test_packed_floats_are_stored_values_if_all_are_there(tmp_path: Path) -> None:
    values = np.array([1, 2, 3], "f4")
    assert variable(tmp_path, FLOAT32, (3,), numbers(FLOAT32, values)).stored is not None
    assert variable(tmp_path, FLOAT32, (4,), numbers(FLOAT32, values)).stored is None
    assert variable(tmp_path, FLOAT32, (3,), numbers(FLOAT32, values, [0])).stored is None
    assert variable(tmp_path, INT32, (1,), numbers(INT32, np.array([1]))).stored is None


def test_strings_as_a_list_of_lengths(tmp_path: Path) -> None:
    data = varint(1) + varint(0) + varint(200) + b"a" + b"b" * 200
    found = variable(tmp_path, STRING, (3,), field(4, data))
    assert found.read().tolist() == [b"a", b"", b"b" * 200]


def test_large_contents_stream(tmp_path: Path) -> None:
    values = np.arange(1 << 23, dtype="f4")
    found = variable(tmp_path, FLOAT32, (1, 1 << 23), content(values))
    tracemalloc.start()
    try:
        for block, start in zip(found.blocks(1 << 20), range(0, 1 << 23, 1 << 18), strict=True):
            assert block[0, 0] == start
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 8 << 20


@pytest.mark.parametrize("values", [numbers(FLOAT32, np.array([3], "f4")), b""])
def test_claims_of_size_cost_nothing(tmp_path: Path, values: bytes) -> None:
    tracemalloc.start()
    try:
        found = variable(tmp_path, FLOAT32, (1 << 20, 1 << 20), values)
        corner = found.read((slice((1 << 20) - 3, 1 << 20), slice((1 << 20) - 2, 1 << 20)))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert corner.tolist() == [[3.0 if values else 0.0] * 2] * 3
    assert peak < 8 << 20


@pytest.mark.usefixtures("must_end")
def test_many_nodes_are_walked_in_time(tmp_path: Path) -> None:
    nodes = [node(f"layer_{k}/add", "Add", [f"layer_{k - 1}/add", "v/read"]) for k in range(20_000)]
    nodes.append(inputs("layer_-1/add"))
    assert names(read(tmp_path, *nodes, floats("v", 1), reading("v"))) == ["v"]


# What is refused


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "the graph has no constants"),
        (field(4, field(1, 27)), "the graph has no constants"),
        (b'node {\n  name: "x"\n', "this graph is text, and only binary ones are read"),
        (b"# comment\n\n  versions: {\n", "this graph is text"),
        (field(1, 1) + field(2, b""), "the graph of a SavedModel; open the directory"),
        (field(1, field(5, b"1.15.5")) + field(3, b"x"), "the .meta file of a checkpoint"),
        (field(1, b"") + field(6, b""), "the .meta file of a checkpoint"),
        (
            node("w", "VariableV2") + node("w/read", "Identity", ["w"]) + floats("w/init", 1),
            "not frozen: its 1 variables, w among them, have their values in a checkpoint",
        ),
        (floats("a", 1) + floats("a", 2), "two nodes are named a"),
        (node("a", "Const"), "the constant a has no value"),
        (floats("a", 1) + node("b", "Cons\x1f"), "the node b has no op"),
        (floats("a", 1) + node("b", ""), "the node b has no op"),
        (
            floats("a", 1) + node("b/read", "Identity", ["b"]),
            "the node b/read takes b, which the graph lacks",
        ),
        (floats("a", 1) + node("c", "NoOp", ["^b"]), "the node c takes b, which the graph lacks"),
        (node("a", "Const", attributes={b"value": field(6, 1)}), "the constant a has no value"),
        (floats("a", 1)[:-3], "bytes where"),
        (b"PK\3\4 something else", "read as a GraphDef: there is no field"),
    ],
)
def test_what_is_no_frozen_graph_is_told(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "graph.pb"
    path.write_bytes(data)
    with pytest.raises(InputError, match=f"^{path}.*{message}"):
        frozen.read(path)


def test_a_file_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="missing"):
        frozen.read(tmp_path / "graph.pb")


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (field(1, 20), "its dtype is none"),
        (field(1, 99), "its dtype is none"),
        (field(2, shape_proto((2,))), "its dtype is none"),
        (field(1, 1) + field(2, field(3, 1)), "no known rank"),
        (field(1, 1) + field(2, field(2, field(1, -1))), "no array of shape"),
        (field(1, 1) + field(2, shape_proto((1 << 40, 1 << 40))), "no float32 array of shape"),
        (field(1, 1) + field(2, shape_proto((2,))) + field(4, b"1234"), "4 bytes are stored"),
        (field(1, 1) + field(2, shape_proto((2,))) + field(5, b"123"), "no whole numbers"),
        (field(1, 1) + field(2, shape_proto((2,))) + field(5, 3), "field 5 is a varint"),
        (field(1, 3) + field(2, shape_proto((2,))) + field(7, b"\x80"), "a varint has no end"),
        (field(1, 8) + field(2, shape_proto((2,))) + field(9, b"12345678abcd"), "1.5 values"),
        (field(1, 7) + field(2, shape_proto((1 << 40,))) + field(8, b"a"), "1 values are stored"),
        (field(1, 7) + field(2, shape_proto((2,))) + field(4, b"\1\5a"), "strings of 6 bytes"),
        (field(1, 7) + field(2, shape_proto((2,))) + field(4, b"\1"), "strings of 1 bytes"),
        (field(1, 7) + field(2, shape_proto((2,))) + field(4, b"\x80" * 12), "no such strings"),
    ],
)
def test_damaged_values_are_told(tmp_path: Path, tensor: bytes, message: str) -> None:
    path = tmp_path / "graph.pb"
    path.write_bytes(node("v", "Const", attributes={b"value": field(8, tensor)}) + reading("v"))

    def load() -> Any:
        return frozen.read(path).variables[0].read()

    with pytest.raises(InputError, match=f"^{path}: .*{message}"):
        load()


@pytest.mark.slow
def test_mutants_are_read_or_refused(tmp_path: Path) -> None:
    draw = random.Random(11)
    nodes = []
    for k, dtype in enumerate(DTYPES):
        values = random_values(dtype, (3, 4), draw)
        raw = content(values) if k % 3 and dtype is not STRING else numbers(dtype, values, [1, 0])
        nodes += [const(f"v{k}", dtype, (3, 4), raw), reading(f"v{k}")]
    good = b"".join(nodes)
    path = tmp_path / "graph.pb"
    refused = 0
    for _ in range(1500):
        path.write_bytes(mutated(good, draw))
        try:
            contents = frozen.read(path)
        except InputError:
            refused += 1
            continue
        for found in contents.variables:
            try:
                if found.size < 1 << 20:
                    found.read()
            except InputError:
                refused += 1
    assert refused > 500


# TensorFlow as the reference


@pytest.mark.slow
def test_what_tensorflow_freezes_is_read(tmp_path: Path) -> None:
    import tensorflow as tf

    v1 = tf.compat.v1
    kernel = np.arange(12, dtype="f4").reshape(4, 3)
    for is_resource in (False, True):
        with tf.Graph().as_default() as graph, v1.variable_scope("m", use_resource=is_resource):
            x = v1.placeholder(tf.int32, [None, 5], "x")
            table = v1.get_variable("table", initializer=np.eye(10, 4, dtype="f4"))
            weights = v1.get_variable("kernel", initializer=kernel)
            step = v1.get_variable("step", initializer=np.int64(-3), trainable=False)
            zeros = tf.zeros([3]) + tf.constant([1.0, 2.0, 3.0], name="mean")
            y = tf.tensordot(tf.nn.embedding_lookup(table, x), weights, 1) + zeros
            tf.multiply(y, tf.cast(step, tf.float32), name="out")
            with v1.Session() as session:
                session.run(v1.global_variables_initializer())
                frozen_graph = v1.graph_util.convert_variables_to_constants(
                    session, graph.as_graph_def(), ["m/out"]
                )
        path = tmp_path / "graph.pb"
        path.write_bytes(frozen_graph.SerializeToString())
        found = {variable.name: variable.read() for variable in frozen.read(path).variables}
        assert sorted(found) == ["m/kernel", "m/mean", "m/step", "m/table", "m/zeros"]
        np.testing.assert_array_equal(found["m/kernel"], kernel)
        np.testing.assert_array_equal(found["m/table"], np.eye(10, 4, dtype="f4"))
        assert found["m/step"].tolist() == -3


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [d for d in DTYPES if not d.name.startswith("q")], ids=str)
def test_tensorflow_reads_the_same_from_a_constant(tmp_path: Path, dtype: DType) -> None:
    import tensorflow as tf

    draw = random.Random(3)
    kind = tf.dtypes.as_dtype(dtype.tensorflow)
    values = random_values(dtype, (5,), draw)
    tensors = [
        (shape, numbers(dtype, values[:stored], pieces))
        for shape in [(5,), (2, 4), (), (2,)]
        for stored, pieces in [(5, None), (5, [2, 0]), (1, None), (0, None)]
    ]
    if dtype is not STRING:
        tensors.append(((5,), content(values)))
    made = tf.make_tensor_proto(values, kind).SerializeToString()
    graph_def = tf.compat.v1.GraphDef()
    for k, (shape, stored) in enumerate(tensors):
        graph_def.MergeFromString(const(f"v{k}", dtype, shape, stored) + reading(f"v{k}"))
    attributes = {b"dtype": field(6, dtype.tensorflow), b"value": field(8, made)}
    graph_def.MergeFromString(node("made", "Const", attributes=attributes) + reading("made"))
    path = tmp_path / "graph.pb"
    path.write_bytes(graph_def.SerializeToString())
    with tf.Graph().as_default() as graph:
        # Reading keeps "T" of the Identity unset: only the constants are imported.
        constants = tf.compat.v1.GraphDef(node=[n for n in graph_def.node if n.op == "Const"])
        tf.import_graph_def(constants, name="")
        with tf.compat.v1.Session(graph=graph) as session:
            for found in frozen.read(path).variables:
                wanted = np.asarray(session.run(f"{found.name}:0"))
                if dtype.name in ("int4", "int2"):
                    # Their kernels leave copies of the sign in the bits that do not count.
                    wanted = wanted.astype("i1")
                assert same(found.read(), wanted.astype(dtype.numpy))
