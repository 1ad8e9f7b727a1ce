"""Output appears at once or not at all: built under a temporary name, and renamed when complete.

A directory that does not exist yet is built beside its place and renamed as a whole. Into one that
exists, the files are built in a hidden directory inside it (which is on the same filesystem) and
renamed one by one, the file that makes the output readable last. A journal in the hidden directory
lets the next run take back what a killed run had renamed.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from converter.errors import ConverterError, PlanError

_PREFIX = ".ckpt-converter-"
_JOURNAL = "journal.json"


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

    def existing(self) -> list[Path]:
        """Return what is there already and would be replaced."""
        names = dict.fromkeys((*self.markers, *self.own))
        return [self.directory / n for n in names if os.path.lexists(self.directory / n)]


@contextlib.contextmanager
def staging(directory: Path) -> Iterator[Path]:
    """Give a private directory to build the files for `directory` in; it is removed at the end.

    Directories above `directory` are made, and taken away again if nothing was published.
    """
    parent = directory if directory.is_dir() else directory.parent
    made = make_parents(parent)
    try:
        stage, lock = _locked_directory(parent)
        try:
            yield stage
        except BaseException:
            with contextlib.suppress(OSError):
                _take_back(stage, parent)
            raise
        finally:
            try:
                shutil.rmtree(stage, ignore_errors=True)
            finally:
                os.close(lock)
    finally:
        for path in made:
            with contextlib.suppress(OSError):
                path.rmdir()


def publish(stage: Path, outputs: Outputs, *, force: bool = False, sync: bool = True) -> None:
    """Move the files from `stage` to their directory, so that all of them are there or none.

    Args:
        stage: a directory of `staging(outputs.directory)`, with every file of `outputs` in it,
            each of them on disk already.
        outputs: what to move, and what it replaces.
        force: replace what exists.
        sync: make sure that the new names are on disk before this returns.

    Raises:
        PlanError: something exists by now, and `force` is not given.
    """
    directory = outputs.directory
    if not directory.is_dir():
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
            _sync(directory.parent)
        return
    if not force and (there := outputs.existing()):
        raise PlanError(f"{there[0]} exists by now; use --force")
    _write_journal(stage, outputs, sync=sync)
    others = [name for name in outputs.own if name != outputs.commit]
    if others or any(marker != outputs.commit for marker in outputs.markers):
        # Half of the new beside half of the old must not be readable: first the old goes.
        for marker in outputs.markers:
            (directory / marker).unlink(missing_ok=True)
        if sync:
            _sync(directory)
    for name in (*others, outputs.commit):
        _move(stage / name, directory / name, replace=force)
    for name in outputs.shared:
        (stage / name).replace(directory / name)
    if sync:
        _sync(directory)
    for name in outputs.obsolete:
        (directory / name).unlink(missing_ok=True)


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

    Of a publication that was cut short, what had been renamed is taken back: nothing could read
    it, and it would be in the way.
    """
    for place in dict.fromkeys((directory, directory.parent)):
        _clean(place)


def _clean(parent: Path) -> None:
    """Remove the directories of ours in `parent` that nobody has locked."""
    try:
        with os.scandir(parent) as entries:
            leftovers = [Path(e) for e in entries if e.name.startswith(_PREFIX) and e.is_dir()]
    except OSError:
        return  # Not ours to look into: nothing of ours can lie there.
    for stage in leftovers:
        try:
            lock = os.open(stage, os.O_RDONLY)
        except OSError:
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            continue  # In use.
        else:
            _take_back(stage, parent)
            shutil.rmtree(stage, ignore_errors=True)
        finally:
            os.close(lock)


def _write_journal(stage: Path, outputs: Outputs, *, sync: bool) -> None:
    names: dict[str, str | Sequence[str]] = {
        "files": outputs.own,
        "shared": outputs.shared,
        "commit": outputs.commit,
        "obsolete": outputs.obsolete,
    }
    with (stage / _JOURNAL).open("w") as file:
        json.dump(names, file)
        if sync:
            file.flush()
            os.fsync(file.fileno())
    if sync:
        _sync(stage)


def _take_back(stage: Path, directory: Path) -> None:
    """Undo the part of a publication that a run had done, or finish its last part."""
    try:
        journal = json.loads((stage / _JOURNAL).read_text())
        files = [str(name) for name in journal["files"]]
        shared = [str(name) for name in journal["shared"]]
        obsolete = [str(name) for name in journal["obsolete"]]
        commit = str(journal["commit"])
    except (OSError, ValueError, KeyError, TypeError):
        return
    if _was_moved(stage / commit, directory / commit):
        leftovers = obsolete
        for name in shared:
            if name == Path(name).name and (stage / name).exists():
                (stage / name).replace(directory / name)
    else:
        leftovers = [name for name in files if _was_moved(stage / name, directory / name)]
    for name in leftovers:
        if name == Path(name).name:
            (directory / name).unlink(missing_ok=True)


def _was_moved(source: Path, target: Path) -> bool:
    return target.exists() and (not source.exists() or target.samefile(source))


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
