"""safetensors: reads and writes it, in one file or in shards with an index.

A file is the length of its header (8 bytes, little-endian), the header (JSON), and the bytes of
the tensors without holes. It is written here, and not by the safetensors library, because the
library holds everything in memory and writes an array's memory whatever its strides.

References:
    The format: https://github.com/huggingface/safetensors (README, tensor.rs).
    Shards and their index: huggingface_hub, serialization.
"""

from __future__ import annotations

import functools
import json
import math
import re
import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from converter.dtype import BY_NAME, BY_SAFETENSORS, DType
from converter.errors import InputError, PlanError
from converter.formats import Contents
from converter.formats.flat_json import FlatJSON
from converter.formats.region import DataFile, read_region
from converter.formats.stream import Output
from converter.variable import Array, Region, Stored, Variable

MAX_HEADER_BYTES = 100_000_000
"""The limit that the format sets; longer headers are not even read."""

_MAX_DIMENSIONS = 32  # what numpy 1 takes
_METADATA = "__metadata__"
_DTYPES_KEY = "tensorflow_dtypes"

# The library's own order, so that its files and ours are equal to the byte: wide elements first,
# which keeps every tensor aligned.
_DTYPE_ORDER = (
    *("U64", "I64", "F64", "C64", "F32", "U32", "I32", "BF16", "F16", "U16", "I16"),
    *("F8_E5M2FNUZ", "F8_E4M3FNUZ", "F8_E4M3", "F8_E5M2", "I8", "U8", "BOOL"),
)

# One tensor of the header: three fields in any order. What is in them is checked afterwards.
_FIELD = r'S"(?:dtype|shape|data_offsets)"S:S(?:"[^"\\]*"|\[[0-9, \t\r\n]{0,4096}\])S'
_TENSOR = re.compile(rf"\{{{_FIELD},{_FIELD},{_FIELD}\}}".replace("S", r"[ \t\r\n]*"))


# --- reading ---


def read(path: Path) -> Contents:
    """Read the header of a `.safetensors` file, or of all shards that an `.index.json` names.

    Raises:
        InputError: the file, the index or a shard is missing, or is not as the format demands.
    """
    if path.suffix == ".json":
        return _read_sharded(path)
    variables, metadata = _read_file(path)
    return Contents("safetensors", tuple(variables), (path,), metadata=metadata)


def _read_sharded(path: Path) -> Contents:
    weight_map = _read_index(path)
    files = dict.fromkeys(weight_map.values())
    variables: list[Variable] = []
    metadata: dict[str, str] = {}
    for file in files:
        found, texts = _read_file(path.parent / file)
        metadata = texts | metadata
        for variable in found:
            place = weight_map.pop(variable.name, None)
            if place != file:
                fault = f"the index places it in {place}" if place else "the index does not name it"
                if any(variable.name == other.name for other in variables):
                    fault = "another shard holds it, too"
                raise InputError(f"{path.parent / file}: holds {variable.name}, but {fault}")
        variables += found
    for name, file in weight_map.items():
        raise InputError(f"{path}: places {name} in {file}, which does not hold it")
    shards = tuple(path.parent / file for file in files)
    return Contents("safetensors", tuple(variables), (path, *shards), metadata=metadata)


def _read_index(path: Path) -> dict[str, str]:
    """Return the file of every name."""
    file = DataFile(path)
    if file.size > MAX_HEADER_BYTES:
        raise InputError(f"{path}: {file.size} bytes are too many for an index of shards")
    weight_map: dict[str, str] | None = None
    try:
        index = FlatJSON(_decode(path, file.read(0, file.size)))
        for key in index.members():
            if key == "weight_map":
                weight_map = index.strings()
            else:
                index.skip()
        index.end()
    except ValueError as error:
        raise InputError(f"{path}: the index {error}; it is damaged") from None
    if weight_map is None:
        raise InputError(f"{path}: the index has no weight_map; it is no index of shards")
    for name, shard in weight_map.items():
        # An index must not be able to name a file elsewhere, on any system.
        if shard in (".", "..") or not re.fullmatch(r"[^/\\:\0]+", shard):
            raise InputError(
                f"{path}: places {name} in {shard!r}, which is no file name; shards lie beside "
                "their index"
            )
    return weight_map


def _read_file(path: Path) -> tuple[list[Variable], dict[str, str]]:
    """Return the variables of one file in the order of its header, and its metadata."""
    file = DataFile(path)
    text, start = _read_header(file)
    tensors: dict[str, str] = {}
    metadata: dict[str, str] = {}
    try:
        header = FlatJSON(text)
        for name in header.members():
            if name == _METADATA:
                metadata = header.strings()
            else:
                expected = f"the dtype, shape and data_offsets of {name}"
                tensors[name] = header.match(_TENSOR, expected)
        header.end()
        kept = _take_kept_dtypes(metadata)
    except ValueError as error:
        raise InputError(f"{path}: the header {error}; it is damaged") from None
    variables = []
    for name, fields in tensors.items():
        dtype, shape, begin, end = _parse_tensor(path, name, fields)
        tagged = kept.get(name, dtype)
        dtype = tagged if tagged.safetensors == dtype.safetensors else dtype
        load = _loader(file, start + begin, shape, dtype)
        stored = Stored(path, start + begin, end - begin)
        variables.append(Variable(name, dtype, shape, load, (name,), stored))
    _check_places(file, variables, start)
    return variables, metadata


def _read_header(file: DataFile) -> tuple[str, int]:
    """Return the header, and where the data starts."""
    path = file.path
    if file.size < 8:
        raise InputError(f"{path}: {file.size} bytes are too short for a safetensors file")
    (length,) = struct.unpack("<Q", file.read(0, 8))
    if length > min(MAX_HEADER_BYTES, file.size - 8):
        raise InputError(
            f"{path}: a header of {length} bytes does not fit into {file.size} bytes, or exceeds "
            f"{MAX_HEADER_BYTES}; the file is cut short, or it is not safetensors"
        )
    header = file.read(8, length)
    if not header.startswith(b"{"):
        raise InputError(f"{path}: its header does not start with '{{'; it is not safetensors")
    return _decode(path, header), 8 + length


def _parse_tensor(path: Path, name: str, text: str) -> tuple[DType, tuple[int, ...], int, int]:
    """Return the dtype and shape of one tensor, and where it begins and ends in the data."""
    try:
        fields = json.loads(text)
    except ValueError:
        fields = {}
    code, shape, offsets = (fields.get(key) for key in ("dtype", "shape", "data_offsets"))
    if not (isinstance(code, str) and isinstance(shape, list) and isinstance(offsets, list)):
        raise InputError(f"{path}: {name} is {text[:100]} in the header, which is damaged")
    dtype = BY_SAFETENSORS.get(code)
    if dtype is None:
        raise InputError(f"{path}: {name} has dtype {code!r}, for which TensorFlow has none")
    # The product leaves out sizes of 0, which must not hide others that no array can have.
    if len(shape) > _MAX_DIMENSIONS or math.prod(filter(None, shape)) * dtype.itemsize >= 1 << 63:
        raise InputError(f"{path}: {name} is {text[:100]} in the header: no array has this shape")
    size = math.prod(shape) * dtype.itemsize
    if len(offsets) != 2 or offsets[1] - offsets[0] != size:
        raise InputError(
            f"{path}: {name} is {text[:100]} in the header, but {dtype} {shape} takes {size} bytes"
        )
    return dtype, tuple(shape), offsets[0], offsets[1]


def _check_places(file: DataFile, variables: Iterable[Variable], start: int) -> None:
    """Check that the data is covered without holes, overlaps or a rest."""
    path, size = file.path, file.size
    places = [(v.stored.offset, v.stored.size, v.name) for v in variables if v.stored]
    position = start
    for offset, length, name in sorted(places):
        if offset != position:
            raise InputError(
                f"{path}: {name} starts at byte {offset - start} of the data, but the tensors "
                f"before it end at {position - start}; the header is damaged"
            )
        position += length
    if position != size:
        raise InputError(
            f"{path}: the file has {size} bytes, but its header tells of {position}; "
            + ("it is cut short" if size < position else "something was appended to it")
        )


def _take_kept_dtypes(metadata: dict[str, str]) -> dict[str, DType]:
    """Take out of the metadata what `write` put there: the dtypes that the format cannot say."""
    text = FlatJSON(metadata.pop(_DTYPES_KEY, "{}"))
    names = text.strings()
    text.end()
    return {name: BY_NAME[dtype] for name, dtype in names.items() if dtype in BY_NAME}


def _loader(
    file: DataFile, offset: int, shape: tuple[int, ...], dtype: DType
) -> Callable[[Region], Array]:
    assert dtype.numpy is not None  # whatever has a code in safetensors has a numpy type
    return functools.partial(
        read_region, lambda start, size: file.read(offset + start, size), shape, dtype.numpy
    )


def _decode(path: Path, data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: its JSON is no UTF-8 at byte {error.start} of it") from None


# --- writing ---


@dataclass(frozen=True, slots=True)
class Shard:
    """One file that is to be written.

    Attributes:
        file: its name, without a directory.
        header: its first bytes, up to the data.
        variables: in the order of their bytes.
    """

    file: str
    header: bytes
    variables: tuple[Variable, ...]


@dataclass(frozen=True, slots=True)
class Layout:
    """What is to be written: one shard, or several and their index.

    Attributes:
        name: of the checkpoint; the files are named after it.
        shards: at least one.
    """

    name: str
    shards: tuple[Shard, ...]

    @property
    def index_file(self) -> str | None:
        """Name of the index; None for a single file, which needs none."""
        return f"{self.name}.safetensors.index.json" if len(self.shards) > 1 else None

    def index(self) -> bytes:
        """Return the index: which file holds which variable, as huggingface_hub writes it."""
        total = sum(v.nbytes for shard in self.shards for v in shard.variables)
        places = {v.name: shard.file for shard in self.shards for v in shard.variables}
        index = {"metadata": {"total_size": total}, "weight_map": places}
        return (json.dumps(index, indent=2, sort_keys=True) + "\n").encode()


def refusal(variable: Variable) -> str | None:
    """Return why safetensors cannot hold a variable, or None where it can."""
    if variable.dtype.safetensors is None:
        return f"safetensors has no dtype for {variable.dtype}"
    if variable.name == _METADATA:
        return f"safetensors keeps the name {_METADATA} for itself"
    try:
        variable.name.encode()
    except UnicodeEncodeError:
        return "names in safetensors are UTF-8, and this one is not"
    return None


def layout(
    variables: Iterable[Variable],
    name: str,
    *,
    shard_size: int | None = None,
    metadata: Mapping[str, str] | None = None,
) -> Layout:
    """Lay variables out in files, from their names, dtypes and shapes alone.

    Args:
        variables: in the order in which they fill the shards.
        name: what the files are named after: `NAME.safetensors`.
        shard_size: bytes of the variables in one file, which only a single larger variable may
            exceed; None for one file.
        metadata: free text for the `__metadata__` of every file. `format` is `tf` where it does
            not say otherwise: loaders of the Hugging Face libraries look at it, and these are
            TensorFlow's names and layouts.

    Raises:
        PlanError: a variable cannot be held, two have one name, or a header would be longer than
            the format allows.
    """
    groups: list[list[Variable]] = [[]]
    filled = 0
    names: set[str] = set()
    for variable in variables:
        reason = refusal(variable)
        if reason:
            raise PlanError(f"{variable.name}: {reason}; drop it, or write a TensorFlow checkpoint")
        if variable.name in names:
            raise PlanError(f"{variable.name}: two variables would be written under this name")
        names.add(variable.name)
        if shard_size is not None and groups[-1] and filled + variable.nbytes > shard_size:
            groups.append([])
            filled = 0
        groups[-1].append(variable)
        filled += variable.nbytes
    files = [f"{name}-{i:05}-of-{len(groups):05}.safetensors" for i in range(1, len(groups) + 1)]
    if len(groups) == 1:
        files = [f"{name}.safetensors"]
    texts = {"format": "tf"} | dict(metadata or {})
    return Layout(name, tuple(map(functools.partial(_shard, texts), files, groups)))


def write(
    directory: Path, plan: Layout, *, open_output: Callable[[Path], Output]
) -> dict[str, int | None]:
    """Write the files of a layout into a directory, and return the CRC-32C of every variable."""
    checksums: dict[str, int | None] = {}
    for shard in plan.shards:
        with open_output(directory / shard.file) as output:
            output.write(shard.header)
            for variable in shard.variables:
                checksums[variable.name] = output.put(variable)
    if plan.index_file:
        with open_output(directory / plan.index_file) as output:
            output.write(plan.index())
    return checksums


def _shard(metadata: dict[str, str], file: str, variables: list[Variable]) -> Shard:
    coded = [(v.dtype.safetensors or "", v) for v in variables]
    coded.sort(key=lambda pair: (_DTYPE_ORDER.index(pair[0]), pair[1].name))
    # A dtype that reading would not give back is remembered beside the tensors.
    lost = {v.name: v.dtype.name for code, v in coded if BY_SAFETENSORS[code] is not v.dtype}
    if lost:
        metadata = metadata | {_DTYPES_KEY: json.dumps(lost, sort_keys=True)}
    entries: dict[str, object] = {_METADATA: dict(sorted(metadata.items()))}
    position = 0
    for code, v in coded:
        begin, position = position, position + v.nbytes
        entries[v.name] = {"dtype": code, "shape": v.shape, "data_offsets": (begin, position)}
    text = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > MAX_HEADER_BYTES:
        raise PlanError(
            f"{file}: the header of {len(coded)} variables takes {len(text)} bytes, and "
            f"safetensors allow {MAX_HEADER_BYTES}; write more shards, or a TensorFlow checkpoint"
        )
    return Shard(file, struct.pack("<Q", len(text)) + text, tuple(v for _, v in coded))
