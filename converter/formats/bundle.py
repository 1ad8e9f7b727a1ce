"""TensorFlow V2 checkpoints ("tensor bundles"): an index beside one or several data files.

TensorFlow names a checkpoint by its prefix. Here it is the path of the index, `PREFIX.index`: a
prefix may end in `/`, which a path cannot.

References:
    tensorflow/core/util/tensor_bundle: tensor_bundle.cc, naming.cc, byte_swap_tensor.cc;
    tensorflow/core/protobuf/tensor_bundle.proto.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from converter.allocation import without_collections
from converter.dtype import STRING, VARIANT
from converter.errors import ConverterError, PlanError
from converter.formats import Contents
from converter.formats.bundle_data import Sliced, Value
from converter.formats.bundle_index import Index, data_file
from converter.formats.messages import message
from converter.formats.stream import Output
from converter.formats.strings import crc_of_variants, encode_strings
from converter.formats.table import mask, write_table
from converter.variable import Stored, Variable

_VERSION = 1


def read(index: Path, *, verify: bool = True) -> Contents:
    """Return the variables of a checkpoint; nothing of its data files is read yet.

    Args:
        index: the path of the index, taken literally.
        verify: compare the index now, and each value when it is first loaded, with its checksum.

    Raises:
        InputError: the index is missing or damaged, or holds what cannot be.
    """
    with without_collections():
        entries = Index(index, verify=verify)
        values = entries.values()
        variables = tuple(map(_variable, values.values()))

    def check(names: Iterable[str]) -> None:
        for name in names:
            values[name].check()

    return Contents(
        "TensorFlow V2",
        variables,
        (index, *sorted(file.path for file in entries.files.values())),
        {
            name: tuple(region for region, _ in value.pieces)
            for name, value in values.items()
            if isinstance(value, Sliced)
        },
        check,
    )


def _variable(value: Value | Sliced) -> Variable:
    stored = None
    if isinstance(value, Value) and value.is_plain:
        # The checksum of variants does not run over their bytes as they stand.
        crc = None if value.dtype is VARIANT else value.crc32c
        stored = Stored(value.file.path, value.offset, value.size, crc)
    return Variable(value.name, value.dtype, value.shape, value, (value.name,), stored)


def _key(name: str) -> bytes:
    try:
        key = name.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        key = b""
    if not key:
        raise PlanError(f"{name!r}: TensorFlow cannot store a variable under this name; rename it")
    return key


def write(
    prefix: Path,
    variables: Iterable[Variable],
    *,
    open_output: Callable[[Path], Output],
    shard_size: int | None = None,
) -> dict[str, int | None]:
    """Write a checkpoint: the data files from their first byte to their last, then the index.

    Everything is in the order of the names, so the same variables give the same files.

    Args:
        prefix: how the paths of all files begin.
        variables: what to write.
        open_output: opens each file, and must leave checksums on.
        shard_size: bytes of a data file beyond which the next one begins. A variable is never
            cut. None puts all into one file.

    Returns:
        By name the CRC-32C of the bytes; None for strings and variants.

    Raises:
        PlanError: a name cannot be stored, or two variables have the same.
        InputError: a source is missing or damaged.
    """
    index = prefix.with_name(f"{prefix.name}.index")
    by_key: dict[bytes, Variable] = {}
    for variable in variables:
        key = _key(variable.name)
        if key in by_key:
            raise PlanError(f"{variable.name}: two variables would be written under this name")
        by_key[key] = variable
    shards = _shards([by_key[key] for key in sorted(by_key)], shard_size)
    header = message("BundleHeaderProto")(num_shards=len(shards))
    header.version.producer = _VERSION
    items = [(b"", header.SerializeToString())]
    checksums: dict[str, int | None] = {}
    for shard, members in enumerate(shards):
        with open_output(data_file(index, shard, len(shards))) as output:
            for variable in members:
                offset = output.position
                crc = _put(output, variable)
                entry = message("BundleEntryProto")(
                    dtype=variable.dtype.tensorflow,
                    shard_id=shard,
                    offset=offset,
                    size=output.position - offset,
                    crc32c=mask(crc),
                )
                # Present even for scalars: TensorFlow tells them from unknown shapes by this.
                entry.shape.SetInParent()
                for size in variable.shape:
                    entry.shape.dim.add(size=size)
                items.append((_key(variable.name), entry.SerializeToString()))
                checksums[variable.name] = crc if variable.dtype.itemsize else None
    with open_output(index) as output:
        write_table(output.write, items)
    return checksums


def _shards(variables: list[Variable], shard_size: int | None) -> list[list[Variable]]:
    if shard_size is None:
        return [variables]
    shards: list[list[Variable]] = [[]]
    filled = 0
    for variable in variables:
        # Strings are encoded twice, so that one variable of them is held at a time.
        size = variable.nbytes if variable.dtype.itemsize else len(_encode(variable)[0])
        if shards[-1] and filled + size > shard_size:
            shards.append([])
            filled = 0
        shards[-1].append(variable)
        filled += size
    return shards


def _put(output: Output, variable: Variable) -> int:
    if not variable.dtype.itemsize:
        data, crc = _encode(variable)
        output.write(data)
        return crc
    checksum = output.put(variable)
    if checksum is None:
        raise ValueError("a TensorFlow checkpoint needs the checksums that open_output left out")
    return checksum


def _encode(variable: Variable) -> tuple[bytes, int]:
    values = variable.read()
    try:
        if variable.dtype is STRING:
            return encode_strings(values)
        data = values.tobytes()
        return data, crc_of_variants(data, variable.size)
    except ValueError as error:
        raise ConverterError(
            f"{variable.name}: cannot be written as {variable.dtype}: {error}"
        ) from None
