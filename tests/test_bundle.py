"""TensorFlow V2 checkpoints: what is written is read again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from bundle_maker import (
    NUMERIC,
    by_name,
    open_output,
    some_values,
    variables_of,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from converter.dtype import BY_NAME, STRING
from converter.errors import ConverterError, PlanError
from converter.formats import bundle
from converter.formats.stream import crc32c
from converter.variable import Variable


def test_every_dtype_and_shape_comes_back(tmp_path: Path) -> None:
    shapes = [(), (0,), (3,), (2, 0, 3), (2, 3), (1, 2, 3, 1)]
    arrays = [
        (f"{dtype}/{shape}", dtype, some_values(dtype, shape, seed))
        for dtype in [*NUMERIC, STRING]
        for seed, shape in enumerate(shapes)
    ]
    checksums = bundle.write(tmp_path / "m", variables_of(*arrays), open_output=open_output)
    contents = bundle.read(tmp_path / "m.index")
    contents.check(name for name, _, _ in arrays)
    assert contents.files == (tmp_path / "m.index", tmp_path / "m.data-00000-of-00001")
    assert [v.name for v in contents.variables] == sorted(checksums, key=str.encode)
    found = by_name(contents)
    for name, dtype, values in arrays:
        variable = found[name]
        assert (variable.dtype, variable.shape, variable.sources) == (dtype, values.shape, (name,))
        assert variable.read().tobytes() == values.tobytes() or dtype is STRING
        assert variable.read().tolist() == values.tolist()
        if dtype is STRING:
            assert variable.stored is None
            assert checksums[name] is None
        else:
            stored = variable.stored
            assert stored is not None
            assert stored.crc32c == checksums[name] == crc32c(values.tobytes())
            data = stored.file.read_bytes()[stored.offset : stored.offset + stored.size]
            assert data == values.tobytes()


names = st.text(
    st.characters() | st.characters(min_codepoint=0xDC80, max_codepoint=0xDCFF), min_size=1
)


def encodable(name: str) -> bool:
    try:
        return name.encode("utf-8", "surrogateescape").decode("utf-8", "surrogateescape") == name
    except UnicodeError:
        return False


@settings(deadline=None)
@given(st.sets(names.filter(encodable), max_size=30), st.integers(0, 200) | st.none())
def test_any_names_in_any_shards_come_back(
    tmp_path_factory: pytest.TempPathFactory, names: set[str], shard_size: int | None
) -> None:
    directory = tmp_path_factory.mktemp("b")
    arrays = [(name, STRING if i % 5 == 0 else BY_NAME["int64"], i) for i, name in enumerate(names)]
    variables = variables_of(*((n, d, some_values(d, (i,), i)) for n, d, i in arrays))
    bundle.write(directory / "m", variables, open_output=open_output, shard_size=shard_size)
    found = by_name(bundle.read(directory / "m.index"))
    assert found.keys() == names
    for variable in variables:
        assert found[variable.name].read().tolist() == variable.read().tolist()


def test_shards_are_filled_up_to_their_size(tmp_path: Path) -> None:
    sizes = {"a": 60, "b": 40, "c": 1, "d": 500, "e": 0, "f": 99, "g": 1}
    variables = [Variable.from_array(name, np.zeros(n, "u1")) for name, n in sizes.items()]
    bundle.write(tmp_path / "m", variables, open_output=open_output, shard_size=100)
    contents = bundle.read(tmp_path / "m.index")
    placed = {v.name: v.stored.file.name for v in contents.variables if v.stored}
    assert {name: int(file[7:12]) for name, file in placed.items()} == {
        "a": 0, "b": 0, "c": 1, "d": 2, "e": 3, "f": 3, "g": 3,
    }  # fmt: skip
    assert [file.stat().st_size for file in contents.files[1:]] == [100, 1, 500, 100]
    assert {file.name[-5:] for file in contents.files[1:]} == {"00004"}


def test_the_same_variables_give_the_same_files(tmp_path: Path) -> None:
    variables = [Variable.from_array(name, np.arange(9.0)) for name in ("b", "a", "c")]
    for directory in ("one", "two"):
        (tmp_path / directory).mkdir()
        bundle.write(tmp_path / directory / "m", variables, open_output=open_output)
        variables.reverse()
    for name in ("m.index", "m.data-00000-of-00001"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_a_checkpoint_of_nothing(tmp_path: Path) -> None:
    assert bundle.write(tmp_path / "m", [], open_output=open_output) == {}
    assert bundle.read(tmp_path / "m.index").variables == ()
    assert (tmp_path / "m.data-00000-of-00001").read_bytes() == b""


@pytest.mark.parametrize("names", [["a", "b", "a"], [""], ["\ud800"]])
def test_names_that_cannot_be_written(tmp_path: Path, names: list[str]) -> None:
    variables = [Variable.from_array(name, np.zeros(1)) for name in names]
    with pytest.raises(PlanError):
        bundle.write(tmp_path / "m", variables, open_output=open_output)


def test_strings_that_are_none(tmp_path: Path) -> None:
    wrong = Variable("a", STRING, (1,), lambda region: np.array(["text"], object))
    with pytest.raises(ConverterError, match="a: cannot be written as string"):
        bundle.write(tmp_path / "m", [wrong], open_output=open_output)


def test_odd_paths(tmp_path: Path) -> None:
    for prefix in ("a[1]*?", "ünï 'x'", "x.index", "new\nline"):
        bundle.write(tmp_path / prefix, [Variable.from_array("a", 1)], open_output=open_output)
        (variable,) = bundle.read(tmp_path / f"{prefix}.index").variables
        assert variable.read() == 1
    # The prefix `dir/` has hidden files.
    (tmp_path / "dir").mkdir()
    for file in tmp_path.glob("x.index*"):
        file.rename(tmp_path / "dir" / file.name.removeprefix("x.index"))
    (variable,) = bundle.read(tmp_path / "dir" / ".index").variables
    assert variable.read() == 1
