"""The `checkpoint` file: what every TensorFlow has written is read, and what we write it reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from conftest import DATA
from hypothesis import given
from hypothesis import strategies as st

from converter.errors import InputError
from converter.formats.state import read_state, state_text

TWO = """
model_checkpoint_path: "m-2"
all_model_checkpoint_paths: "m-1"
all_model_checkpoint_paths: "m-2"
"""


def states(tmp_path: Path, text: str | bytes) -> list[str]:
    path = tmp_path / "checkpoint"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_state(path)


@pytest.mark.parametrize(
    ("text", "paths"),
    [
        ("", []),
        (TWO, ["m-1", "m-2"]),
        # The current one comes last, wherever it stands.
        (TWO.replace('path: "m-2"', 'path: "m-1"'), ["m-2", "m-1"]),
        ('model_checkpoint_path: "a"', ["a"]),
        ("model_checkpoint_path:'it\\'s' \"/b\"", ["it's/b"]),
        ('model_checkpoint_path: "\\303\\251\\x41\\u00e9\\n\\\\"', ["éAé\n\\"]),
        ('model_checkpoint_path: "é"', ["é"]),
        (b'model_checkpoint_path: "\\377\xfe"', ["\udcff\udcfe"]),
        ('all_model_checkpoint_paths: ["a", "b"] model_checkpoint_path: "b";', ["a", "b"]),
        ('#\nmodel_checkpoint_path: "a" # "b"\nall_model_checkpoint_timestamps: 1.5e9', ["a"]),
        ('other { model_checkpoint_path: "no" } model_checkpoint_path: "a"', ["a"]),
        # Cut short, and damaged.
        (TWO[:-6], ["m-1", "m-2"]),
        ('model_checkpoint_path: "a" \0\1 all_model_checkpoint_paths: "b"', ["a"]),
        ('model_checkpoint_path: "a', []),
        (b"\x00\xff" * 100, []),
        ("{" * 100_000, []),
        ('"' + "\\" * 100_001, []),
    ],
    ids=range(17),
)  # fmt: skip
def test_reading(tmp_path: Path, text: str | bytes, paths: list[str]) -> None:
    assert states(tmp_path, text) == paths


@given(
    st.lists(
        st.text(
            st.characters(exclude_categories=[]).filter(
                lambda c: not "\ud800" <= c < "\udc80" and not "\udd00" <= c <= "\udfff"
            ),
            min_size=1,
        ),
        min_size=1,
        unique=True,
    )
)
def test_what_is_written_is_read(
    tmp_path_factory: pytest.TempPathFactory, names: list[str]
) -> None:
    directory = tmp_path_factory.mktemp("s")
    read = states(directory, state_text(*names))
    # Bytes that together are UTF-8 come back as what they are.
    assert [n.encode("utf-8", "surrogateescape") for n in read] == [
        n.encode("utf-8", "surrogateescape") for n in names
    ]


@given(st.binary(max_size=200))
def test_any_bytes_can_be_read(tmp_path_factory: pytest.TempPathFactory, text: bytes) -> None:
    states(tmp_path_factory.mktemp("s"), b'model_checkpoint_path: "' + text)


def test_a_state_file_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        read_state(tmp_path)


def test_real_files() -> None:
    files = sorted(DATA.glob("*/checkpoint"))
    assert len(files) > 10
    for file in files:
        assert read_state(file), file
    assert [Path(p).name for p in read_state(DATA / "tf14_v2_rotation" / "checkpoint")] == [
        "model.ckpt-12",
        "model.ckpt-16",
        "model.ckpt-20",
    ]


@pytest.mark.slow
def test_tensorflow_reads_what_we_write(tmp_path: Path) -> None:
    tf: Any = pytest.importorskip("tensorflow")
    names = ["model-1", 'it\'s "quoted" \\ back', "ünï\nline"]
    (tmp_path / "checkpoint").write_text(state_text(*names))
    state = tf.train.get_checkpoint_state(str(tmp_path))
    assert list(state.all_model_checkpoint_paths) == [str(tmp_path / name) for name in names]
    assert state.model_checkpoint_path == str(tmp_path / names[-1])
