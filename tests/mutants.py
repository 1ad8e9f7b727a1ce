"""Damaged checkpoints, made of real ones: each from its area and number alone."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

import numpy as np
import wire_writer
from conftest import case
from google.protobuf.message import DecodeError
from mutation import (
    NUMBERS,
    Items,
    Sealed,
    blocks_of,
    compress,
    damage,
    damage_message,
    read_items,
    seal,
    seal_again,
    seal_entries,
)

from converter import convert
from converter.dtype import BY_NAME
from converter.formats import OBJECT_GRAPH_KEY
from converter.formats.messages import message
from converter.formats.strings import decode_strings, encode_strings
from converter.formats.table import Table, encode_tensor_name_slice, mask

Files = dict[str, bytes]


@dataclass(frozen=True)
class Seed:
    """An intact checkpoint: its files by path, and the path to open."""

    name: str
    files: Mapping[str, bytes]
    path: str

    def only(self, ending: str) -> str:
        """Return the path of the file with an ending."""
        return next(name for name in self.files if name.endswith(ending))


@cache
def seed(name: str, path: str | None = None) -> Seed:
    """Return a seed made of a recorded case; its `.meta`, which nobody parses, stays away."""
    found = case(name)
    files = {
        str(file.relative_to(found.directory)): file.read_bytes()
        for file in sorted(found.directory.rglob("*"))
        if file.is_file() and file.suffix not in (".meta", ".npz", ".json")
    }
    return Seed(name, files, path or str(Path(found.path).relative_to(found.directory)))


@cache
def _tables(kind: str) -> list[tuple[Seed, str, Items]]:
    """Return seeds with the path and the items of each table to damage."""
    found = []
    for name in V2 if kind == "v2" else V1:
        one = seed(name)
        tables = [n for n in one.files if n.endswith(".index")]
        if kind == "v1":
            tables = [n for n in one.files if n != "checkpoint"]
        with TemporaryDirectory() as directory:
            for table in tables:
                path = Path(directory, "table")
                path.write_bytes(one.files[table])
                found.append((one, table, read_items(path)))
    return found


V2 = (
    "tf10_v2_partitioned",
    "tf115_v2_odd_names",
    "tf115_v2_sharded",
    "tf14_v2_charlm_lstm_ema",
    "tf221_obj_module",
    "tf221_obj_tfkeras_charlm",
    "tf221_raw_dtypes",
    "tf221_savedmodel_module",
)
V1 = ("tf012_v1_charlm_basiclstm", "tf012_v1_dtypes", "tf10_v1_sharded", "tf14_v1_partitioned")


def _v2(rng: Random) -> tuple[Seed, Files]:
    """Damage an index: its bytes, its blocks, or its entries."""
    if rng.random() < 0.2:
        return _made_v2(rng)
    one, table, items = rng.choice(_tables("v2"))
    if rng.random() < 0.2:
        return one, {table: _raw_table(rng, one.files[table])}
    if rng.random() < 0.3:
        return one, {table: _damaged_blocks(rng, items)}
    data = _data_of(one, table)
    items = _damaged_items(rng, items, _damaged_entry)
    return one, {table: _sealed_table(rng, seal_entries(items, data))}


def _made_v2(rng: Random) -> tuple[Seed, Files]:
    """Make a partitioned variable whose slices are stored as they are listed, wherever they lie."""
    shape = rng.choice(((4,), (4, 3), (2, 0), (1, 4), ()))
    sizes = rng.choice((shape, shape, _sizes(rng)))
    full = message("BundleEntryProto")(dtype=1)
    full.shape.SetInParent()
    for size in sizes:
        full.shape.dim.add(size=size)
    header = message("BundleHeaderProto")(num_shards=1)
    items = {b"": header.SerializeToString()}
    for _ in range(rng.choice((1, 2, 2, 3))):
        extents = [_extent(rng, size) for size in sizes]
        proto = full.slices.add()
        part = message("BundleEntryProto")(dtype=1)
        part.shape.SetInParent()
        for (start, length), size in zip(extents, sizes, strict=True):
            extent = proto.extent.add(start=start)
            if length >= 0:
                extent.length = length
            part.shape.dim.add(size=size if length < 0 else length)
        count = 4 * math.prod(dim.size for dim in part.shape.dim)
        part.size = count if 0 <= count < 1 << 63 else 0
        items[encode_tensor_name_slice(b"v", extents)] = part.SerializeToString()
    items[b"v"] = full.SerializeToString()
    data = {0: bytearray(64)}
    sealed = seal_entries(sorted(items.items()), data)
    one = Seed("made", {"made.data-00000-of-00001": bytes(data[0])}, "made")
    return one, {"made.index": seal(blocks_of(rng, sealed))}


def _sizes(rng: Random) -> tuple[int, ...]:
    """Return a shape that no array can have, or one that is odd."""
    some = rng.choice(((0, 1, 2, 3), (1,), (0, 1 << 62), (-1, -2, 2), (0, 1 << 31, 1 << 62)))
    return tuple(rng.choices(some, k=rng.choice((1, 2, 3, 4, 33, 40))))


def _extent(rng: Random, size: int) -> tuple[int, int]:
    numbers = (0, 0, 1, 2, size, size - 1, -1, 1 << 62)
    return rng.choice(((0, -1), (rng.choice(numbers), abs(rng.choice(numbers)))))


def _data(rng: Random) -> tuple[Seed, Files]:
    """Damage values, strings among them."""
    one, table, items = rng.choice(_tables("v2"))
    data = _data_of(one, table)
    entries = [message("BundleEntryProto").FromString(value) for key, value in items if key]
    entries = [e for e in entries if e.dtype == 7 and e.size] or entries
    entry = rng.choice(entries)
    file = data[entry.shard_id]
    start, stop = entry.offset, entry.offset + min(entry.size, 400)
    if rng.random() < 0.5:
        file[start:stop] = damage(rng, bytes(file[start:stop]), keep_size=True)
    else:
        data[entry.shard_id] = bytearray(damage(rng, bytes(file)))
    sealed = seal_entries(items, data)
    return one, {table: seal(blocks_of(rng, sealed)), **_data_files(one, table, data)}


def _objects(rng: Random) -> tuple[Seed, Files]:
    """Damage the object graph in its string tensor."""
    one, table, items = rng.choice([t for t in _tables("v2") if "obj" in t[0].name])
    data = _data_of(one, table)
    position = next(i for i, (key, _) in enumerate(items) if key == OBJECT_GRAPH_KEY.encode())
    entry = message("BundleEntryProto").FromString(items[position][1])
    stored = bytes(data[0][entry.offset : entry.offset + entry.size])
    graph = decode_strings(stored, (), big_endian=False, verify=True)[0].item()
    for _ in range(rng.choice((1, 1, 3, 10))):
        graph = damage_message(rng, graph)
    again, crc = encode_strings(np.array([graph], object))
    entry.offset, entry.size, entry.crc32c = len(data[0]), len(again), mask(crc)
    data[0] += again
    items = list(items)
    items[position] = (items[position][0], entry.SerializeToString())
    return one, {table: seal(blocks_of(rng, items)), **_data_files(one, table, data)}


def _v1(rng: Random) -> tuple[Seed, Files]:
    """Damage a V1 file: its bytes, its blocks, the list of tensors, or values."""
    if rng.random() < 0.3:
        return _made_v1(rng)
    one, table, items = rng.choice(_tables("v1"))
    if rng.random() < 0.15:
        return one, {table: _raw_table(rng, one.files[table])}
    if rng.random() < 0.25:
        return one, {table: _damaged_blocks(rng, items)}
    return one, {table: _sealed_table(rng, _damaged_items(rng, items, damage_message))}


def _made_v1(rng: Random) -> tuple[Seed, Files]:
    """Damage the values of a tensor of any dtype, encoded in any way."""
    dtype, shape, values = _tensor(rng)
    sizes = rng.choice((shape, shape, (rng.choice(NUMBERS),), _sizes(rng)))
    extents: list[tuple[int, int | None]] = [
        (start, None if length < 0 else length)
        for start, length in (_extent(rng, size) for size in sizes)
    ]
    if rng.random() < 0.7:
        extents = wire_writer.full(sizes)
    proto = wire_writer.field(1, BY_NAME[dtype].tensorflow) + values
    proto = damage_message(rng, proto) if rng.random() < 0.7 else proto
    meta = wire_writer.meta(b"v", BY_NAME[dtype], sizes, [extents])
    items = wire_writer.v1_items([meta], {wire_writer.slice_key(b"v", extents): proto})
    return Seed("made", {}, "made"), {"made": _sealed_table(rng, items)}


def _snappy(rng: Random) -> tuple[Seed, Files]:
    """Damage a compressed block."""
    one, table, items = rng.choice(_tables(rng.choice(("v1", "v2"))))
    blocks = [compress(block) for block in blocks_of(rng, items)]
    at = rng.randrange(len(blocks))
    changed = damage(rng, blocks[at].stored)
    if rng.random() < 0.2:
        changed = wire_writer.varint(rng.choice(NUMBERS)) + blocks[at].stored[1:]
    blocks[at] = Sealed(blocks[at].last, changed, rng.choice((1, 1, 1, 1, 2)))
    return one, {table: seal(blocks)}


def _frozen(rng: Random) -> tuple[Seed, Files]:
    """Damage a graph: a real one, or constants of any dtype encoded in any way."""
    if rng.random() < 0.5:
        one = seed("tf115_frozen")
        change = rng.choice((damage, damage_message, damage_message))
        return one, {one.path: change(rng, one.files[one.path])}
    dtype, shape, values = _tensor(rng)
    shape = rng.choice((shape, shape, _sizes(rng), (rng.choice((3, 70000)),)))
    is_late = rng.random() < 0.3
    if not is_late:
        values = damage_message(rng, values)
    graph = wire_writer.const("v", BY_NAME[dtype], shape, values)
    graph += wire_writer.node("v/read", "Identity", ["v"])
    graph = damage_message(rng, graph) if is_late else graph
    return Seed("made", {}, "made.pb"), {"made.pb": graph}


def _tensor(rng: Random) -> tuple[str, tuple[int, ...], bytes]:
    """Return a dtype, a shape, and values in a TensorProto."""
    dtype = BY_NAME[rng.choice([d.name for d in BY_NAME.values() if d.numpy is not None])]
    shape = rng.choice(((), (0,), (3,), (2, 3), (1, 40), (0, 3)))
    numbers = np.arange(math.prod(shape)) % 3
    if dtype.name == "string":
        values = np.array([b"text %d" % n for n in numbers], object)
    else:
        assert dtype.numpy is not None
        values = numbers.astype(dtype.numpy)
    if rng.random() < 0.3:
        raw = values.tobytes()
        if dtype.name == "string":
            texts = values.ravel().tolist()
            raw = b"".join([*(wire_writer.varint(len(text)) for text in texts), *texts])
            raw = damage(rng, raw)
        return dtype.name, shape, wire_writer.field(4, raw)
    pieces = rng.choice((None, (0, 0), (1, 0, 1), (2, 2)))
    return dtype.name, shape, wire_writer.numbers(dtype, values, pieces)


@cache
def _safetensors_seeds() -> tuple[Seed, ...]:
    seeds = []
    for name, shard_size in (("tf012_v2_gru_seqlen", None), ("tf012_v2_gru_seqlen", 4000)):
        with TemporaryDirectory() as directory:
            output = Path(directory, "model.safetensors")
            convert(case(name).path, output, shard_size=shard_size, sync=False)
            files = {file.name: file.read_bytes() for file in Path(directory).iterdir()}
        path = next((n for n in files if n.endswith(".json")), "model.safetensors")
        seeds.append(Seed(name, files, path))
    return tuple(seeds)


def _safetensors(rng: Random) -> tuple[Seed, Files]:
    """Damage a header or an index: its bytes, or what the JSON says."""
    one = rng.choice(_safetensors_seeds())
    file = rng.choice(sorted(one.files))
    data = one.files[file]
    if file.endswith(".json"):
        if rng.random() < 0.4:
            return one, {file: damage(rng, data)}
        return one, {file: json.dumps(_damaged_json(rng, json.loads(data))).encode()}
    size = 8 + int.from_bytes(data[:8], "little")
    if rng.random() < 0.2:
        return one, {file: damage(rng, data[:size]) + data[size:]}
    header = (
        damage(rng, data[8:size])
        if rng.random() < 0.3
        else json.dumps(_damaged_json(rng, json.loads(data[8:size]))).encode()
    )
    return one, {file: len(header).to_bytes(8, "little") + header + data[size:]}


def _damaged_json(rng: Random, value: object) -> object:
    if isinstance(value, dict) and value and rng.random() < 0.95:
        key = rng.choice(list(value))
        if rng.random() < 0.1:
            return {k: v for k, v in value.items() if k != key}
        if rng.random() < 0.05:
            return {**value, rng.choice(("", "\ud800", "../x", "x" * 5000)): value[key]}
        return {**value, key: _damaged_json(rng, value[key])}
    if isinstance(value, list) and value and rng.random() < 0.9:
        at = rng.randrange(len(value))
        changed = [_damaged_json(rng, value[at])] * rng.choice((0, 1, 1, 1, 2, 40))
        return [*value[:at], *changed, *value[at + 1 :]]
    deep: object = []
    for _ in range(rng.choice((1, 500))):
        deep = [deep]
    return rng.choice((*NUMBERS[::3], -1, 1.5, None, True, "", "F32", "I64", "../x", {}, deep))


@cache
def _state_seeds() -> tuple[Seed, ...]:
    return tuple(
        Seed(one.name, one.files, ".")
        for one in map(seed, ("tf14_v2_rotation", "tf10_v1_sharded", "tf115_v2_odd_names"))
    )


def _state(rng: Random) -> tuple[Seed, Files]:
    """Damage the `checkpoint` file of a directory."""
    one = rng.choice(_state_seeds())
    changed = damage(rng, one.files["checkpoint"])
    for _ in range(rng.choice((0, 0, 5))):
        changed = damage(rng, changed)
    return one, {"checkpoint": changed}


AREAS: Mapping[str, Callable[[Random], tuple[Seed, Files]]] = {
    "v2": _v2,
    "data": _data,
    "objects": _objects,
    "v1": _v1,
    "snappy": _snappy,
    "frozen": _frozen,
    "safetensors": _safetensors,
    "state": _state,
}


# -- tables ---------------------------------------------------------------------------------------


def _raw_table(rng: Random, data: bytes) -> bytes:
    with TemporaryDirectory() as directory:
        path = Path(directory, "table")
        path.write_bytes(data)
        table = Table(path)
    keep_size = rng.random() < 0.8
    return seal_again(damage(rng, data, keep_size=keep_size), table)


def _damaged_blocks(rng: Random, items: Items) -> bytes:
    blocks = blocks_of(rng, items)
    at = rng.randrange(len(blocks))
    if rng.random() < 0.3:
        return seal(blocks, lambda index: damage(rng, index))
    changed = damage(rng, blocks[at].stored)
    last = damage(rng, blocks[at].last) if rng.random() < 0.1 else blocks[at].last
    blocks[at] = Sealed(last, changed)
    return seal(blocks)


def _damaged_items(rng: Random, items: Items, change: Callable[[Random, bytes], bytes]) -> Items:
    items = list(items)
    for _ in range(rng.choice((1, 1, 2))):
        at = rng.randrange(len(items))
        key, value = items[at]
        way = rng.random()
        if way < 0.05:
            del items[at]
        elif way < 0.1:
            items[at] = damage(rng, key), value
        elif way < 0.15:
            items[at] = key, rng.choice(items)[1]
        elif way < 0.2:
            items.insert(at, (key + rng.choice((b"\0", b"/", b"\xff\xfe")), value))
        else:
            items[at] = key, change(rng, value)
        if not items:
            break
    return items if rng.random() < 0.1 else sorted(dict(items).items())


def _damaged_entry(rng: Random, value: bytes) -> bytes:
    """Change an entry of an index; half of the time so that its size fits its shape."""
    entry = message("BundleEntryProto")()
    try:
        entry.MergeFromString(value)
    except DecodeError:
        return damage(rng, value)
    if rng.random() < 0.5:
        return damage_message(rng, value)
    dtype = rng.choice([*BY_NAME.values(), None])
    entry.dtype = dtype.tensorflow if dtype else rng.choice((0, 20, 101, 107, 123))
    if rng.random() < 0.5:
        del entry.shape.dim[:]
        for size in _sizes(rng):
            entry.shape.dim.add(size=size)
    count = math.prod(dim.size for dim in entry.shape.dim) * (dtype.itemsize if dtype else 4)
    entry.size = count if 0 <= count < 1 << 63 else 0
    if rng.random() < 0.3:
        entry.offset = rng.choice((0, 1, 7, 1 << 62))
    encoded: bytes = entry.SerializeToString()
    return encoded


def _sealed_table(rng: Random, items: Items) -> bytes:
    blocks = blocks_of(rng, items)
    if rng.random() < 0.2:
        blocks = [compress(block) for block in blocks]
    return seal(blocks)


def _data_of(one: Seed, table: str) -> dict[int, bytearray]:
    prefix = table.removesuffix(".index") + ".data-"
    return {
        int(name.removeprefix(prefix)[:5]): bytearray(data)
        for name, data in one.files.items()
        if name.startswith(prefix)
    }


def _data_files(one: Seed, table: str, data: Mapping[int, bytearray]) -> Files:
    prefix = table.removesuffix(".index") + ".data-"
    names = sorted(name for name in one.files if name.startswith(prefix))
    return {name: bytes(data[number]) for number, name in enumerate(names)}


@dataclass(frozen=True)
class Mutant:
    """A damaged checkpoint, made from its area and number alone."""

    area: str
    number: int

    def build(self, directory: Path) -> Path:
        """Write the files and return the path to open."""
        one, changed = AREAS[self.area](Random(f"{self.area} {self.number}"))
        for name, data in {**one.files, **changed}.items():
            path = directory / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        return directory / one.path
