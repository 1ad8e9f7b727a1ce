"""Output appears at once or not at all: built under a temporary name, and renamed when complete.

A directory that does not exist yet is built beside its place and renamed as a whole. Into one that
exists, the files are built in a hidden directory inside it (which is on the same filesystem) and
renamed one by one, the file that makes the output readable last. A journal in the hidden directory
lets the next run take back what a killed run had renamed; or go on with it, where an old output
is gone already. A journal may have come with somebody's files, and what it tells of may have been
replaced since: only files that are provably the ones it was written about are touched.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from converter.errors import ConverterError, PlanError

_PREFIX = ".ckpt-converter-"
_JOURNAL = "journal.json"
_MAX_JOURNAL_BYTES = 16 << 20

STATE = "checkpoint"
"""The file that belongs to all TensorFlow checkpoints of a directory."""

COMPANION = re.compile(r"[A-Za-z][A-Za-z0-9_-]*\.json")
"""What a file beside the variables of an output can be called: `config.json`."""

DATA = r"\.data-\d{5,}-of-\d{5,}"

# Not the device: its number may be another one after a restart, which is when it matters.
_Identity = tuple[int, int, int]
"""Inode, size and time of change: they stay as they are when a file is renamed or linked."""


@dataclass(frozen=True, slots=True)
class Outputs:
    """The files of one output.

    Attributes:
        directory: where they go.
        files: their plain names, in any order.
        commit: the one of them without which a reader finds nothing; it is renamed last.
        markers: names of any earlier output of this name that would be read in its place or
            beside it: that output exists as long as one of these does.
        obsolete: names of an earlier output that this one does not replace.
        shared: those of `files` that belong to all outputs of the directory; they are replaced
            without asking, after everything else.
    """

    directory: Path
    files: tuple[str, ...]
    commit: str
    markers: tuple[str, ...] = ()
    obsolete: tuple[str, ...] = ()
    shared: tuple[str, ...] = ()

    @property
    def own(self) -> tuple[str, ...]:
        """Those of `files` that nothing else has a part in."""
        return tuple(name for name in self.files if name not in self.shared)

    def obstacle(self) -> str | None:
        """Return why nothing can take the place of what is there, or None."""
        for name in (*self.markers, *self.files, *self.obsolete):
            path = self.directory / name
            if path.is_dir() and not path.is_symlink():
                return f"{path} is a directory; move it away, or choose another output"
        return None

    def existing(self) -> list[Path]:
        """Return what is there already and would be replaced."""
        names = dict.fromkeys((*self.markers, *self.own))
        return [self.directory / n for n in names if os.path.lexists(self.directory / n)]


@dataclass(frozen=True, slots=True)
class _Journal:
    """What a publication is about to do.

    Attributes:
        commit: as in Outputs; `files` has it last.
        files: what is to be moved, as it was built.
        shared: the same for what is to be moved after the commit.
        markers: as in Outputs.
        obsolete: as in Outputs.
        old: what bore any of these names before.
    """

    commit: str
    files: dict[str, _Identity]
    shared: dict[str, _Identity]
    markers: tuple[str, ...]
    obsolete: tuple[str, ...]
    old: dict[str, _Identity]


def family(commit: str) -> re.Pattern[str] | None:
    """Return what the names of an output's files match, by its file that is renamed last.

    It is None for a name that is none of an output.
    """
    if "/" in commit or "\0" in commit:
        return None
    for ending in (".safetensors.index.json", ".safetensors", ".index"):
        if commit.endswith(ending):
            name = re.escape(commit.removesuffix(ending))
            break
    else:
        return None
    if ending == ".index":
        return re.compile(rf"{name}(\.index|\.meta|{DATA}|\.conversion\.json)")
    return re.compile(
        rf"{name}(\.safetensors|\.safetensors\.index\.json|-\d{{5}}-of-\d{{5}}\.safetensors"
        rf"|\.sidecar(\.index|{DATA})|\.conversion\.json)"
    )


@contextlib.contextmanager
def staging(directory: Path) -> Iterator[Path]:
    """Give a private directory to build the files for `directory` in; it is removed at the end.

    Directories above `directory` are made, and taken away again if nothing was published.
    """
    parent = directory if directory.is_dir() else directory.parent
    made = make_parents(parent)
    try:
        stage, lock = _locked_directory(parent)
        settled = False
        try:
            yield stage
            settled = True
        except BaseException:
            with contextlib.suppress(OSError):
                _settle(stage, parent)
                settled = True
            raise
        finally:
            try:
                # What could not be settled is left to the next run.
                if settled:
                    shutil.rmtree(stage, ignore_errors=True)
            finally:
                os.close(lock)
    finally:
        for path in made:
            with contextlib.suppress(OSError):
                path.rmdir()


def publish(stage: Path, outputs: Outputs, *, force: bool = False, sync: bool = True) -> None:
    """Move the files from `stage` to their directory, so that all of them are there or none.

    An OSError means that nothing was published. What fails when the output can be read already is
    no error: at worst an older state file or files that nothing reads any more are left over.

    Args:
        stage: a directory of `staging(outputs.directory)`, with every file of `outputs` in it,
            each of them on disk already.
        outputs: what to move, and what it replaces.
        force: replace what exists.
        sync: make sure that the new names are on disk before this returns.

    Raises:
        PlanError: something exists by now, and `force` is not given; or it is a directory.
    """
    directory = outputs.directory
    if not directory.is_dir():
        _publish_directory(stage, outputs, sync=sync)
        return
    if not force and (there := outputs.existing()):
        raise PlanError(f"{there[0]} exists by now; use --force")
    if (obstacle := outputs.obstacle()) is not None:
        raise PlanError(obstacle)
    journal = _write_journal(stage, outputs, sync=sync)
    try:
        _move_all(stage, directory, journal, journal.markers, journal.files, force=force, sync=sync)
    except BaseException as error:
        # An error of the disk that did not come again is none.
        if not _settle(stage, directory, sync=sync) or not isinstance(error, OSError):
            raise
        return
    with contextlib.suppress(OSError):
        for name in journal.shared:
            (stage / name).replace(directory / name)
        if sync:
            _sync(directory)
        _tidy(stage, directory, journal)


def _publish_directory(stage: Path, outputs: Outputs, *, sync: bool) -> None:
    directory = outputs.directory
    whole = stage / "output"
    whole.mkdir()
    for name in outputs.files:
        (stage / name).rename(whole / name)
    if sync:
        _sync(whole)
    try:
        whole.rename(directory)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise
        raise PlanError(f"{directory} exists by now; use --force") from error
    if sync:
        with contextlib.suppress(OSError):
            _sync(directory.parent)


def _move_all(
    stage: Path,
    directory: Path,
    journal: _Journal,
    markers: Iterable[str],
    files: Iterable[str],
    *,
    force: bool,
    sync: bool,
) -> None:
    """Take `markers` away, and move `files`."""
    if len(journal.files) > 1 or any(marker != journal.commit for marker in journal.markers):
        # Half of the new beside half of the old must not be readable: first the old goes.
        for marker in markers:
            (directory / marker).unlink(missing_ok=True)
        if sync:
            _sync(directory)
    for name in files:
        _move(stage / name, directory / name, replace=force)


def _move(source: Path, target: Path, *, replace: bool) -> None:
    if replace:
        source.replace(target)
        return
    try:
        os.link(source, target)
    except FileExistsError:
        raise PlanError(f"{target} exists by now; use --force") from None
    except OSError:
        # No hard links here (FAT, some network mounts): the check before has to do.
        source.rename(target)
    else:
        source.unlink()


def _settle(stage: Path, directory: Path, *, sync: bool = True) -> bool:
    """End a publication that was cut short; return whether the output is there.

    As long as the old output is there, or there was none, what was moved is taken back. When the
    old one is gone, the new one, which is complete in `stage`, takes its place.
    """
    journal = _read_journal(stage)
    if journal is None:
        return False
    files, old = journal.files, journal.old
    staged = {n for n, built in files.items() if _identity(stage / n) == built}
    moved = {n for n, built in files.items() if _identity(directory / n) == built}
    if journal.commit in moved:
        _tidy(stage, directory, journal)
        return True
    if journal.commit not in staged:
        return False  # It was there once: what has replaced it is not ours.
    now = {n: _identity(directory / n) for n in (*journal.markers, *files)}
    left = [n for n in journal.markers if n in old and now[n] == old[n]]
    strange = any(
        os.path.lexists(directory / n) and found not in (old.get(n), files.get(n))
        for n, found in now.items()
    )
    if len(left) < len(journal.markers) and len(staged | moved) == len(files) and not strange:
        rest = [n for n in files if n not in moved]
        _move_all(stage, directory, journal, left, rest, force=True, sync=sync)
        _tidy(stage, directory, journal)
        return True
    for name in moved:
        (directory / name).unlink(missing_ok=True)
    return False


def _tidy(stage: Path, directory: Path, journal: _Journal) -> None:
    """Do what comes after the commit, unless somebody was there in the meantime."""
    for name, built in journal.shared.items():
        there = os.path.lexists(directory / name)
        unchanged = not there or _identity(directory / name) == journal.old.get(name, built)
        if unchanged and _identity(stage / name) == built:
            (stage / name).replace(directory / name)
    for name in journal.obsolete:
        if name in journal.old and _identity(directory / name) == journal.old[name]:
            (directory / name).unlink(missing_ok=True)


def _identity(path: Path) -> _Identity | None:
    """Return what tells a file from any other that may bear its name, or None for no file."""
    try:
        status = path.lstat()
    except (OSError, ValueError):
        return None
    if not (stat.S_ISREG(status.st_mode) or stat.S_ISLNK(status.st_mode)):
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns


def staged_bytes(directory: Path) -> int:
    """Return the size of what runs are building in a directory that exists."""
    total = 0
    for path in directory.glob(f"{_PREFIX}*/*"):
        with contextlib.suppress(OSError):  # It may be published by now.
            total += path.lstat().st_size
    return total


def make_parents(directory: Path) -> list[Path]:
    """Make a directory and those above it; return the new ones, innermost first.

    Raises:
        ConverterError: it cannot be made.
    """
    missing = []
    path = directory
    while not path.exists():
        missing.append(path)
        path = path.parent
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConverterError(f"{directory}: {error.strerror}") from error
    return missing


def _locked_directory(parent: Path) -> tuple[Path, int]:
    while True:
        try:
            # Another run that failed may have taken the directory away with its own.
            parent.mkdir(parents=True, exist_ok=True)
            stage = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
        except OSError as error:
            raise ConverterError(f"{parent}: cannot write here: {error.strerror}") from error
        try:
            lock = os.open(stage, os.O_RDONLY)
        except FileNotFoundError:
            continue  # Another run took it for a leftover before it was locked.
        with contextlib.suppress(OSError):  # Some network mounts have no locks.
            fcntl.flock(lock, fcntl.LOCK_EX)
        if stage.is_dir():
            return stage, lock
        os.close(lock)


def clean(directory: Path) -> None:
    """Remove what killed runs left of outputs in a directory, and of the directory itself.

    A publication that was cut short is taken back, since nothing could read it and it would be in
    the way; or finished, if it was to replace an output that is gone.
    """
    for place in dict.fromkeys((directory, directory.parent)):
        _clean(place)


def _clean(parent: Path) -> None:
    """Remove the directories of ours in `parent` that nobody has locked."""
    try:
        with os.scandir(parent) as entries:
            leftovers = [Path(e) for e in entries if e.name.startswith(_PREFIX)]
    except OSError:
        return  # Not ours to look into: nothing of ours can lie there.
    for stage in leftovers:
        try:
            lock = os.open(stage, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError:
            continue
        try:
            if os.fstat(lock).st_uid != os.geteuid():
                continue
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            continue  # In use.
        else:
            with contextlib.suppress(OSError):
                _settle(stage, parent)
                shutil.rmtree(stage, ignore_errors=True)
        finally:
            os.close(lock)


def _write_journal(stage: Path, outputs: Outputs, *, sync: bool) -> _Journal:
    order = [name for name in outputs.own if name != outputs.commit] + [outputs.commit]
    everything = (*outputs.markers, *outputs.files, *outputs.obsolete)
    journal = _Journal(
        outputs.commit,
        _identities(stage, order),
        _identities(stage, outputs.shared),
        outputs.markers,
        outputs.obsolete,
        _identities(outputs.directory, everything),
    )
    with (stage / _JOURNAL).open("w") as file:
        json.dump(asdict(journal), file)
        if sync:
            file.flush()
            os.fsync(file.fileno())
    if sync:
        _sync(stage)
    return journal


def _identities(directory: Path, names: Iterable[str]) -> dict[str, _Identity]:
    found = {name: _identity(directory / name) for name in names}
    return {name: identity for name, identity in found.items() if identity is not None}


def _read_journal(stage: Path) -> _Journal | None:
    """Return what a publication was about to do; None if there is no word of it, or nonsense."""
    try:
        # Not blocking: whatever lies there, opening it takes no time.
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
        with os.fdopen(os.open(stage / _JOURNAL, flags), "rb") as file:
            text = file.read(_MAX_JOURNAL_BYTES)
        read = json.loads(text)
        journal = _Journal(
            str(read["commit"]),
            _told(read["files"]),
            _told(read["shared"]),
            tuple(str(name) for name in read["markers"]),
            tuple(str(name) for name in read["obsolete"]),
            _told(read["old"]),
        )
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None
    pattern = family(journal.commit)
    if pattern is None or journal.commit not in journal.files or journal.shared.keys() - {STATE}:
        return None
    names = (*journal.files, *journal.markers, *journal.obsolete)
    is_known = all(pattern.fullmatch(name) or COMPANION.fullmatch(name) for name in names)
    return journal if is_known else None


def _told(identities: dict[str, Sequence[int]]) -> dict[str, _Identity]:
    return {
        str(name): (int(inode), int(size), int(changed))
        for name, (inode, size, changed) in identities.items()
    }


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
