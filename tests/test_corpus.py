"""Every real checkpoint: what is read, and what comes back from both outputs."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from conftest import DAMAGED, VALID, Case, all_cases, digest, expected
from safetensors import deserialize

from converter import Checkpoint, convert, open_checkpoint
from converter.cli import cli
from converter.dtype import BY_SAFETENSORS
from converter.formats import bundle

KINDS = {
    "weight": "model",
    "nontrainable": "model",
    "recurrent_state": "model",
    "bn_statistic": "batch_statistic",
    "ema": "average",
}


def names_by_key(checkpoint: Checkpoint) -> dict[str, str]:
    return {key: name for name in checkpoint for key in checkpoint.stored_keys.get(name, (name,))}


@pytest.mark.parametrize("case", VALID, ids=lambda case: case.name)
def test_reads_what_was_recorded(case: Case) -> None:
    checkpoint = open_checkpoint(case.path)
    names = names_by_key(checkpoint)
    recorded = case.variables()
    assert set(names) == set(recorded)
    for key, record in recorded.items():
        variable = checkpoint[names[key]]
        assert variable.dtype.name == record["dtype"], key
        assert list(variable.shape) == record["shape"], key
        assert digest(variable) == expected(record), key


@pytest.mark.parametrize("case", VALID, ids=lambda case: case.name)
def test_roles_are_those_recorded(case: Case) -> None:
    checkpoint = open_checkpoint(case.path)
    names = names_by_key(checkpoint)
    roles = checkpoint.roles()
    for key, record in case.variables().items():
        role = roles[names[key]]
        kind = KINDS.get(record["role"], record["role"])
        if kind == "optimizer_scalar":
            kind = "beta_power"
        assert role.kind == kind, key
        if kind == "slot":
            assert role.slot == record["slot"], key
        if "of" in record:
            assert role.of == names[record["of"]], key


@pytest.mark.parametrize("case", VALID, ids=lambda case: case.name)
def test_partitions_are_those_recorded(case: Case) -> None:
    checkpoint = open_checkpoint(case.path)
    found = {
        name: sorted([s.start for s in region] for region in regions)
        for name, regions in checkpoint.partitions.items()
    }
    assert found == {
        name: sorted(piece["offset"] for piece in record["partition"]["slices"])
        for name, record in case.variables().items()
        # TensorFlow stores a single slice that covers everything as a plain variable.
        if len(record.get("partition", {}).get("slices", ())) > 1
    }


def _keep_all(case: Case, output: Path, to: str) -> Any:
    return convert(case.path, output, to=to, sidecar=True)


@pytest.mark.slow
@pytest.mark.parametrize("case", VALID, ids=lambda case: case.name)
def test_tensorflow_reads_our_checkpoint(case: Case, tmp_path: Path) -> None:
    import tensorflow as tf

    # Under a name of ours: TensorFlow cannot read paths with brackets, not even its own.
    convert(case.path, tmp_path / "out" / "model.index")
    prefix = tf.train.latest_checkpoint(tmp_path / "out")
    assert prefix == str(tmp_path / "out" / "model")
    reader = tf.train.load_checkpoint(prefix)
    ours = open_checkpoint(case.path)
    recorded = {
        name: record
        for key, record in case.variables().items()
        for name in [key if ours.object_graph is not None else names_by_key(ours)[key]]
    }
    assert set(reader.get_variable_to_shape_map()) == set(recorded)
    for name, record in recorded.items():
        value = reader.get_tensor(name)
        assert list(np.shape(value)) == record["shape"], name
        if record["sha256"] is None:
            assert [v.hex() for v in np.ravel(np.asarray(value, object))] == record["strings_hex"]
        else:
            assert _digest(np.asarray(value)) == record["sha256"], name


def _digest(array: np.ndarray[Any, Any]) -> str:
    import hashlib

    return hashlib.sha256(np.asarray(array, order="C").tobytes()).hexdigest()


@pytest.mark.parametrize("case", VALID, ids=lambda case: case.name)
def test_safetensors_reads_our_file(case: Case, tmp_path: Path) -> None:
    import hashlib

    result = convert(case.path, tmp_path / "model.safetensors", sidecar=True)
    data = (tmp_path / "model.safetensors").read_bytes()
    tensors = dict(deserialize(data))  # type: ignore[no-untyped-call]  # the library has no types
    names = names_by_key(open_checkpoint(case.path))
    beside = {v.name for v in result.plan.sidecar}
    left = {v.name for v, _ in result.plan.left_out}
    for key, record in case.variables().items():
        name = names[key]
        if name in beside or name in left:
            continue
        tensor = tensors.pop(name)
        assert tensor["shape"] == record["shape"]
        assert hashlib.sha256(tensor["data"]).hexdigest() == record["sha256"], name
        assert BY_SAFETENSORS[tensor["dtype"]].itemsize * np.prod(record["shape"]) == len(
            tensor["data"]
        )
    assert not tensors
    if beside:
        sidecar = {v.name: v for v in bundle.read(tmp_path / "model.sidecar.index").variables}
        by_name = {names[key]: record for key, record in case.variables().items()}
        assert set(sidecar) == beside
        for name, variable in sidecar.items():
            assert digest(variable) == expected(by_name[name])


@pytest.mark.parametrize("case", VALID, ids=lambda case: case.name)
def test_same_bytes_twice(case: Case, tmp_path: Path) -> None:
    for to in ("tf", "safetensors"):
        for run in ("a", "b"):
            _keep_all(case, tmp_path / run, to)
        files = sorted(path.name for path in (tmp_path / "a").iterdir())
        assert files == sorted(path.name for path in (tmp_path / "b").iterdir())
        for name in files:
            assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
        for run in ("a", "b"):
            for path in (tmp_path / run).iterdir():
                path.unlink()


@pytest.mark.parametrize("to", ["tf", "safetensors"])
@pytest.mark.parametrize("case", DAMAGED, ids=lambda case: case.name)
def test_damage_is_told_and_nothing_written(case: Case, to: str, tmp_path: Path) -> None:
    output = tmp_path / "out"
    outcome = CliRunner().invoke(cli, ["ckpt", case.path, "-o", str(output), "--to", to])
    assert outcome.exit_code == 3, outcome.output
    assert isinstance(outcome.exception, SystemExit)
    (line,) = outcome.stderr.splitlines()
    assert line.startswith("Error: ")
    assert str(case.directory) in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("tf221_keras3_archive", "a zip archive of Keras 3"),
        ("tf221_keras3_weights_h5", "an HDF5 file (Keras weights)"),
    ],
)
def test_keras_files_are_told_apart(name: str, what: str) -> None:
    case = next(case for case in all_cases() if case.name == name)
    told = (
        f"{what}; only TensorFlow checkpoints and safetensors are read; load it in Keras, and "
        "export the model (model.export)"
    )
    outcome = CliRunner().invoke(cli, ["inspect", case.path])
    assert outcome.exit_code == 3
    assert outcome.stderr == f"Error: {case.path}: {told}\n"
    # A directory is not to be taken for an empty one.
    outcome = CliRunner().invoke(cli, ["inspect", str(case.directory)])
    assert outcome.exit_code == 3
    assert outcome.stderr == f"Error: no checkpoint in {case.directory}; {case.path} is {told}\n"


def test_header_is_aligned_and_ordered(tmp_path: Path, lstm: str) -> None:
    convert(lstm, tmp_path / "x.safetensors")
    data = (tmp_path / "x.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    assert length % 8 == 0
    header = json.loads(data[8 : 8 + length])
    assert header.pop("__metadata__") == {"format": "tf"}
    names = list(header)
    assert names[0] == "global_step"  # int64: the widest element first
    assert names[1:] == sorted(names[1:])
