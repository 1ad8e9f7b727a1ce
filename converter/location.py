"""What a path is: which files make up the checkpoint that somebody means by it."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from converter.errors import InputError
from converter.formats import state

Kind = Literal["bundle", "v1", "safetensors", "frozen"]

_DATA_FILE = re.compile(r"(?s)(.*)\.data-\d{5,}-of-\d{5,}")
_V1_SHARD = re.compile(r"(?s)(.*)-([\d?]{5,})-of-(\d{5,})")
_STEP = re.compile(r"(?s)(?!.*-of-\d+\Z).*-(\d+)")
# What a save that died leaves behind looks like a checkpoint and is none: files of TensorFlow's
# writer, the pieces that it was about to merge, and directories of ours.
_TEMPORARY = re.compile(r".*\.tempstate\d+")
_PIECE = re.compile(r"part-\d{5}-of-\d{5}\..*")
_MERGING = re.compile(r".*_temp(_[0-9a-f]{32})?")
_OURS = ".ckpt-converter-"
_TABLE_MAGIC = bytes.fromhex("57fb808b247547db")
_INDEX_JSON = ".safetensors.index.json"
_SIDECAR = ".sidecar.index"
_HDF5 = b"\x89HDF"
_ZIP = b"PK"
_KERAS = (".keras", ".h5")
_NOT_READ = "only TensorFlow checkpoints and safetensors are read"
_EXPORT = "load it in Keras, and export the model (model.export)"


@dataclass(frozen=True, slots=True)
class Location:
    """The files of one checkpoint.

    Attributes:
        kind: which reader reads them.
        files: what the reader takes: the `.index`; the V1 file or all of its shards in order;
            the safetensors file or its `.index.json`; the `.pb`.
        path: the prefix or file, as people name it.
    """

    kind: Kind
    files: tuple[Path, ...]
    path: str

    @property
    def name(self) -> str:
        """The checkpoint's own name, without directory and ending; `model` where it has none."""
        name = os.path.basename(self.path)
        for ending in (_INDEX_JSON, ".safetensors", ".pb"):
            name = name.removesuffix(ending) if self.kind in ("safetensors", "frozen") else name
        return name or "model"

    @property
    def directory(self) -> Path:
        """The directory that holds the files."""
        return self.files[0].parent

    @property
    def step(self) -> int | None:
        """The step that the name ends in."""
        match = _STEP.fullmatch(self.name)
        return int(match[1]) if match else None

    @property
    def meta(self) -> Path | None:
        """The `.meta` file beside a TensorFlow checkpoint."""
        path = Path(self.path + ".meta")
        if self.path.endswith("/"):
            path = Path(self.path) / ".meta"
        return path if self.kind in ("bundle", "v1") and path.is_file() else None


def locate(path: str) -> Location:
    """Find the checkpoint that `path` means; see `open_checkpoint` for the spellings.

    Raises:
        InputError: there is none, with what was looked for.
    """
    if "\0" in path:
        raise InputError(f"{path!r}: no path can hold a NUL character")
    if os.path.isfile(path + ".index"):
        return _bundle(path)
    if os.path.isdir(path):
        return _in_directory(path)
    if path.endswith(".index") and os.path.isfile(path):
        return _bundle(path.removesuffix(".index"))
    if match := _DATA_FILE.fullmatch(path):
        return _of_data_file(path, match[1])
    if path.endswith(".meta"):
        return locate(path.removesuffix(".meta"))
    if match := _V1_SHARD.fullmatch(path):
        return _shards(match[1], int(match[3]))
    if os.path.isfile(path):
        return _of_file(path)
    if path.endswith(".safetensors") and os.path.isfile(path + ".index.json"):
        return _of_file(path + ".index.json")
    if counts := _shard_counts(path):
        return _shards(path, counts[-1])
    raise InputError(
        f"no checkpoint at {path} (looked for {path}.index, {path}, and shards of it)"
        + _nearby(os.path.dirname(path) or ".", os.path.basename(path))
    )


def find(root: Path, *, deep: bool = True) -> Iterator[Location]:
    """Yield every checkpoint in a directory and below it, in the order of paths.

    Links to directories are not followed, saves that died are passed over.

    Args:
        root: the directory.
        deep: False to stay in `root` itself.
    """
    unreadable: list[str] = []
    for directory, below, files in os.walk(root, onerror=lambda e: unreadable.append(e.filename)):
        below[:] = sorted(d for d in below if deep and not d.startswith(_OURS))
        found = list(_all_in(directory, sorted(files)))
        yield from found
        if deep:
            yield from _broken_in(directory, files, found)
    for directory in unreadable:
        # Opening it tells what is wrong: nothing below the root is passed over in silence.
        yield _bundle(os.path.join(directory, ""))


def _broken_in(
    directory: str, files: Iterable[str], found: Iterable[Location]
) -> Iterator[Location]:
    """Yield what must have been a checkpoint and is none: opening it tells what is wrong.

    Data without their index, and what the state file names and no reader knows.
    """
    known = {location.path for location in found}
    lost: dict[str, str] = {}
    for name in sorted(files):
        if (match := _DATA_FILE.fullmatch(name)) and match[1] + ".index" not in files:
            lost.setdefault(match[1], os.path.join(directory, name))
    if "checkpoint" in files:
        for stored in state.read_state(Path(directory, "checkpoint")):
            base = os.path.basename(stored)
            if base in files and os.path.join(directory, base) not in known:
                lost.setdefault(base, os.path.join(directory, base))
    for path in lost.values():
        yield Location("v1", (Path(path),), path)


def _bundle(prefix: str) -> Location:
    return Location("bundle", (Path(prefix + ".index"),), prefix)


def _of_data_file(path: str, prefix: str) -> Location:
    if not os.path.isfile(prefix + ".index"):
        raise InputError(
            f"{path}: the names and shapes of its variables are in {prefix}.index, which is missing"
        )
    return _bundle(prefix)


def _of_file(path: str) -> Location:
    if path.endswith((".safetensors", _INDEX_JSON)):
        return Location("safetensors", (Path(path),), path)
    try:
        head, tail = _read_ends(path)
    except OSError as error:
        raise InputError(f"{path}: the file cannot be read ({error.strerror})") from None
    if tail.endswith(_TABLE_MAGIC):
        return Location("v1", (Path(path),), path)
    if os.path.basename(path) == "checkpoint" and b"model_checkpoint_path" in head:
        return _in_directory(os.path.dirname(path) or ".")
    if os.path.basename(path) in ("saved_model.pb", "saved_model.pbtxt"):
        return _in_directory(os.path.dirname(path) or ".")
    if path.endswith((".pb", ".pbtxt", ".graphdef")):
        return Location("frozen", (Path(path),), path)
    raise InputError(f"{path}: {_what_else(head, path)}")


def _what_else(head: bytes, path: str) -> str:
    if head.startswith(_HDF5):
        return f"an HDF5 file (Keras weights); {_NOT_READ}; {_EXPORT}"
    if head.startswith(_ZIP) and path.endswith(_KERAS):
        return f"a zip archive of Keras 3; {_NOT_READ}; {_EXPORT}"
    if head.startswith(_ZIP):
        return f"a zip archive (Keras 3, PyTorch or npz); {_NOT_READ}"
    if len(head) > 8 and head[8:9] == b"{":
        return "looks like safetensors; give it the ending .safetensors"
    if not head:
        return "the file is empty"
    # A table that lost its end keeps its beginning: the empty key of the header entry.
    if head[:2] == b"\x00\x00":
        return "looks like a TensorFlow V1 checkpoint whose end is missing; the file was cut"
    return "no checkpoint of any known format (no table, GraphDef or safetensors)"


def _shard_counts(prefix: str) -> list[int]:
    """Return the N of the `PREFIX-00000-of-N` that exist, the newest last."""
    directory, base = os.path.split(prefix)
    found: dict[int, float] = {}
    for name in _listing(directory or "."):
        match = _V1_SHARD.fullmatch(name)
        if match and match[1] == base and match[2].isdigit():
            file = os.path.join(directory, name)
            if _ends(file)[1].endswith(_TABLE_MAGIC):
                count = int(match[3])
                found[count] = max(found.get(count, 0.0), os.path.getmtime(file))
    return sorted(found, key=lambda count: found[count])


def _present_shards(prefix: str, count: int) -> dict[int, Path]:
    directory, base = os.path.split(prefix)
    present = {}
    for name in sorted(_listing(directory or ".")):
        match = _V1_SHARD.fullmatch(name)
        if match and match[1] == base and match[2].isdigit() and int(match[3]) == count:
            present[int(match[2])] = Path(directory, name)
    return present


def _shards(prefix: str, count: int) -> Location:
    present = _present_shards(prefix, count)
    if not present:
        pattern = f"{prefix}-?????-of-{count:05d}"
        near = _nearby(os.path.dirname(prefix) or ".", os.path.basename(prefix))
        raise InputError(f"no checkpoint at {pattern}{near}")
    # Not range(count): the name of a file can claim any number of shards.
    missing = next(i for i in range(len(present) + 1) if i not in present)
    if missing < count:
        raise InputError(
            f"{prefix}-{missing:05d}-of-{count:05d} is missing: {len(present)} of {count} shards "
            "are there, and a V1 checkpoint needs all of them"
        )
    return Location("v1", tuple(present[i] for i in sorted(present)), prefix)


def _in_directory(path: str) -> Location:
    if any(os.path.isfile(os.path.join(path, n)) for n in ("saved_model.pb", "saved_model.pbtxt")):
        prefix = os.path.join(path, "variables", "variables")
        if not os.path.isfile(prefix + ".index"):
            raise InputError(f"{path}: a SavedModel without variables (no {prefix}.index)")
        return _bundle(prefix)
    state_file = Path(path, "checkpoint")
    if os.path.isfile(state_file) and (named := _named_by_state(path, state_file)):
        return named
    found = list(_all_in(path, sorted(_listing(path))))
    if not found:
        raise InputError(f"no checkpoint in {path}" + (_nearby(path) or _keras_in(path)))
    newest = max(found, key=_newness)
    # Of a sharded V1 checkpoint a shard may be missing, which `locate` tells.
    return locate(newest.path) if newest.kind == "v1" else newest


def _keras_in(directory: str) -> str:
    """Say which files of Keras lie in a directory, for an error message."""
    for name in sorted(_listing(directory)):
        path = os.path.join(directory, name)
        if name.endswith(_KERAS) and (head := _ends(path)[0]).startswith((_HDF5, _ZIP)):
            return f"; {path} is {_what_else(head, path)}"
    return ""


def _newness(location: Location) -> tuple[bool, int, float, str]:
    # Steps before times: copying and unpacking lose times, and names keep steps.
    return (
        location.kind in ("bundle", "v1"),
        -1 if location.step is None else location.step,
        max(file.stat().st_mtime for file in location.files),
        location.path,
    )


def _named_by_state(directory: str, state_file: Path) -> Location | None:
    """Return the current checkpoint of a state file, wherever its directory is now.

    What lies in the directory itself comes first: an absolute path may be of another machine, or
    of the original of a copy. A path that leaves the directory is not followed.
    """
    for stored in reversed(state.read_state(state_file)):
        if "\0" in stored:
            continue
        candidates = [os.path.join(directory, os.path.basename(stored))]
        if not os.path.isabs(stored) and ".." not in Path(stored).parts:
            candidates.insert(0, os.path.join(directory, stored))
        for candidate in candidates:
            if os.path.isfile(candidate + ".index"):
                return _bundle(candidate)
            if os.path.isfile(candidate):
                return _of_file(candidate)
            if match := _V1_SHARD.fullmatch(candidate):
                return _shards(match[1], int(match[3]))
            if counts := _shard_counts(candidate):
                return _shards(candidate, counts[-1])
    return None


def _all_in(directory: str, files: Iterable[str]) -> Iterator[Location]:
    """Yield the checkpoints whose files lie in `directory` itself."""
    sharded_v1: dict[tuple[str, int], None] = {}
    merging = _MERGING.fullmatch(os.path.basename(os.path.abspath(directory)))
    # Pipes and devices would be waited for.
    names = {
        n: None
        for n in files
        if not (_TEMPORARY.fullmatch(n) or (merging and _PIECE.fullmatch(n)))
        and os.path.isfile(os.path.join(directory, n))
    }
    for name in names:
        path = os.path.join(directory, name)
        if name.endswith(".index"):
            owner = name.removesuffix(_SIDECAR)
            if owner == name or not {f"{owner}.safetensors", owner + _INDEX_JSON} & names.keys():
                yield _bundle(path.removesuffix(".index"))
        elif name.endswith(_INDEX_JSON):
            yield Location("safetensors", (Path(path),), path)
        elif name.endswith(".safetensors"):
            # A shard without its index is a piece of something, and no checkpoint.
            if not _V1_SHARD.fullmatch(name.removesuffix(".safetensors")):
                yield Location("safetensors", (Path(path),), path)
        elif name.endswith(".pb"):
            if name not in ("saved_model.pb", "fingerprint.pb", "keras_metadata.pb"):
                yield Location("frozen", (Path(path),), path)
        elif _DATA_FILE.fullmatch(name) or name + ".index" in names:
            continue
        elif _ends(path)[1].endswith(_TABLE_MAGIC):
            match = _V1_SHARD.fullmatch(path)
            if match is None:
                yield Location("v1", (Path(path),), path)
            elif (key := (match[1], int(match[3]))) not in sharded_v1:
                sharded_v1[key] = None
                # Some may be missing, which is told when it is opened.
                yield Location("v1", tuple(_present_shards(*key).values()), match[1])


def _ends(path: str) -> tuple[bytes, bytes]:
    """Return the first 64 and the last 8 bytes of a file; nothing of what is unreadable."""
    try:
        return _read_ends(path)
    except OSError:
        return b"", b""


def _read_ends(path: str) -> tuple[bytes, bytes]:
    with open(path, "rb") as file:
        head = file.read(64)
        file.seek(max(0, file.seek(0, os.SEEK_END) - 8))
        return head, file.read(8)


def _listing(directory: str) -> list[str]:
    """Return the names of the files in a directory; nothing where it does not exist."""
    try:
        with os.scandir(directory) as entries:
            return [entry.name for entry in entries if entry.is_file()]
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise InputError(f"{directory}: {error.strerror}") from error


def _nearby(directory: str, wanted: str | None = None) -> str:
    """Say which checkpoints lie in or right below a directory, for an error message.

    Args:
        directory: where to look.
        wanted: the name that was looked for in it: of what is below, only directories that are
            called much like it are told of. None for all.
    """
    places = [directory]
    try:
        with os.scandir(directory) as entries:
            below = {entry.name: entry.path for entry in entries if entry.is_dir()}
    except OSError:
        return ""
    if wanted is not None:
        below = {name: below[name] for name in difflib.get_close_matches(wanted, below)}
    places += sorted(below.values())[:50]
    try:
        found = [loc.path for d in places for loc in _all_in(d, sorted(_listing(d))[:200])][:3]
    except InputError:
        return ""
    return f"; there is {', '.join(found)}" if found else ""
