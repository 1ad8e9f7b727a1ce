"""TensorFlow V2 checkpoints: what TensorFlow itself says of ours, and what it has written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundle_maker import (
    NUMERIC,
    by_name,
    open_output,
    some_values,
    variables_of,
)

from converter.dtype import STRING, VARIANT
from converter.formats import bundle


@pytest.fixture(scope="module")
def tf() -> Any:
    return pytest.importorskip("tensorflow")


@pytest.mark.slow
def test_tensorflow_reads_what_we_write(tmp_path: Path, tf: Any) -> None:
    arrays = [
        (f"{dtype}/{shape}", dtype, some_values(dtype, shape))
        for dtype in [*NUMERIC, STRING]
        for shape in [(), (3, 4), (0, 2)]
    ]
    variables = variables_of(*arrays)
    bundle.write(tmp_path / "m", variables, open_output=open_output, shard_size=500)
    reader = tf.train.load_checkpoint(str(tmp_path / "m"))
    assert reader.get_variable_to_shape_map() == {v.name: list(v.shape) for v in variables}
    for name, dtype, values in arrays:
        assert reader.get_variable_to_dtype_map()[name].as_datatype_enum == dtype.tensorflow
        restored = tf.raw_ops.RestoreV2(
            prefix=str(tmp_path / "m"),
            tensor_names=[name],
            shape_and_slices=[""],
            dtypes=[tf.as_dtype(dtype.tensorflow)],
        )[0].numpy()
        assert np.asarray(restored).shape == values.shape
        if dtype is STRING:
            assert np.asarray(restored, object).tolist() == values.tolist()
        else:
            assert np.asarray(restored).tobytes() == values.tobytes()


@pytest.mark.slow
def test_our_files_are_tensorflows_byte_by_byte(tmp_path: Path, tf: Any) -> None:
    values = {f"scope_{i // 50}/layer_{i}/kernel": np.full(3, i, "f4") for i in range(12_000)}
    names = sorted(values)
    tf.raw_ops.SaveV2(
        prefix=str(tmp_path / "theirs"),
        tensor_names=names,
        shape_and_slices=[""] * len(names),
        tensors=[tf.constant(values[name]) for name in names],
    )
    theirs = bundle.read(tmp_path / "theirs.index")
    bundle.write(tmp_path / "ours", theirs.variables, open_output=open_output)
    for ending in (".index", ".data-00000-of-00001"):
        ours = (tmp_path / f"ours{ending}").read_bytes()
        assert ours == (tmp_path / f"theirs{ending}").read_bytes()


@pytest.mark.slow
def test_slices_that_tensorflow_wrote(tmp_path: Path, tf: Any) -> None:
    whole_values = np.arange(35, dtype="f2").reshape(5, 7)
    parts = {
        "0,2:0,7": whole_values[:2],
        "2,3:0,4": whole_values[2:, :4],
        "2,3:4,3": whole_values[2:, 4:],
    }
    tf.raw_ops.SaveV2(
        prefix=str(tmp_path / "m"),
        tensor_names=["v"] * 3 + ["w"],
        shape_and_slices=[f"5 7 {part}" for part in parts] + ["4 0,4"],
        tensors=[tf.constant(part) for part in parts.values()] + [tf.range(4)],
    )
    contents = bundle.read(tmp_path / "m.index")
    found = by_name(contents)
    np.testing.assert_array_equal(found["v"].read(), whole_values)
    assert found["w"].read().tolist() == [0, 1, 2, 3]
    assert sorted(contents.partitions) == ["v"]


@pytest.mark.slow
def test_tensorflow_restores_a_copied_iterator(tmp_path: Path, tf: Any) -> None:
    iterator = iter(tf.data.Dataset.range(100).shuffle(10, seed=1).batch(3))
    next(iterator)
    path = tf.train.Checkpoint(iterator=iterator).write(str(tmp_path / "theirs"))
    expected = [next(iterator).numpy().tolist() for _ in range(3)]
    contents = bundle.read(Path(f"{path}.index"))
    assert VARIANT in {variable.dtype for variable in contents.variables}
    bundle.write(tmp_path / "ours", contents.variables, open_output=open_output)
    fresh = iter(tf.data.Dataset.range(100).shuffle(10, seed=1).batch(3))
    tf.train.Checkpoint(iterator=fresh).read(str(tmp_path / "ours"))
    assert [next(fresh).numpy().tolist() for _ in range(3)] == expected
