"""Batches from files: `.npz` with arrays by the names of inputs, `.npy` for a single input.

Rows are read as they are needed, so that a file can be larger than the memory.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from converter.activations.asked import Asked, Question, asked
from converter.checkpoint import Checkpoint
from converter.counted import agree, count
from converter.errors import InputError, UsageError
from converter.formats.npz import SUFFIXES, Header, read_headers
from converter.forward.feeds import check_given
from converter.graph.node import Tensor
from converter.variable import Array

BATCH = 64
"""Rows that are run at once where nobody says how many."""

_MAX_BATCH_BYTES = 1 << 31
_BLOCK_BYTES = 16 << 20

Progress = Callable[[int, int], None]
"""Called with the rows that are done and the rows in all."""


@dataclass(frozen=True)
class Data:
    """What a model is run on.

    Attributes:
        paths: files or directories of them.
        rows: of a batch; None for what the graph fixes, or else BATCH.
        whole_files: each file is one batch.
        question: what is run.
    """

    paths: tuple[Path, ...]
    rows: int | None = None
    whole_files: bool = False
    question: Question = field(default_factory=Question)

    def open(self, checkpoint: Checkpoint, progress: Progress | None = None) -> Opened:
        """Open the files, and find all that is wrong with them before anything is run.

        Args:
            checkpoint: with the graph that takes them.
            progress: called while what can be NaN is looked through.

        Raises:
            InputError: there is no graph; a file is unreadable or damaged, or has NaN in it.
            UsageError: a path is missing or no such file; TensorFlow is not installed; the model
                takes no such values, or needs others; the rows cannot be cut into batches.
        """
        files = open_data(self.paths, self.question.flags)
        return Opened(self, files, asked(checkpoint, self.question), progress or _silent)


def _silent(done: int, total: int) -> None:
    pass


@dataclass(frozen=True, slots=True)
class DataFile:
    """A file of arrays that a model is run on.

    Attributes:
        path: the file.
        headers: of its arrays by name; the name is empty in an `.npy` file.
        flags: what the names of the options begin with that say how it is cut, for errors.
    """

    path: Path
    headers: Mapping[str, Header]
    flags: str = "--"

    def rows(self, fixed: Mapping[str, int]) -> int | None:
        """Return how many rows it is cut into; None where it is one batch.

        Arrays without axes, with one row beside others with more, and with as many rows as the
        graph fixes beside others with other numbers, are not cut.

        Args:
            fixed: the sizes of first axes that the graph fixes, by the names of arrays.

        Raises:
            UsageError: the others have not the same number of rows.
        """
        sizes = {name: header.rows for name, header in self.headers.items() if header.shape}
        free = {n: size for n, size in sizes.items() if size != 1 and fixed.get(n) != size}
        # Where the graph fixes all there is nothing to cut but what it takes at once.
        free = free or {name: size for name, size in sizes.items() if size != 1}
        if len(set(free.values())) > 1:
            if all(fixed.get(name) == size for name, size in free.items()):
                return None
            listed = ", ".join(f"{name}: {size}" for name, size in free.items())
            raise UsageError(
                f"{self.path}: its arrays have not the same number of rows ({listed}), so it "
                "cannot be cut into batches; correct them, or say that each file is one batch "
                f"({self.flags}whole-files)"
            )
        return next(iter(free.values()), 1)

    def batches(
        self, rows: int | None, size: int, *, keep_rest: bool
    ) -> Iterator[dict[str, Array]]:
        """Yield its rows in batches; what is not cut goes with each of them.

        Args:
            rows: how many rows it is cut into; None for one batch.
            size: how many rows a batch has.
            keep_rest: whether the last batch may have less rows.

        Raises:
            InputError: it is unreadable or damaged.
            UsageError: a batch is too large.
        """
        is_cut = {name: rows is not None and _is_cut(h, rows) for name, h in self.headers.items()}
        total = 1 if rows is None else rows
        largest = max(
            header.row_bytes * (min(size, total) if is_cut[name] else header.rows)
            for name, header in self.headers.items()
        )
        if largest > _MAX_BATCH_BYTES:
            is_any_cut = any(is_cut.values())
            many = f"a batch of {count(min(size, total), 'row')}" if is_any_cut else "it"
            less = f"take less at once ({self.flags}batch-size N)"
            less = less if is_any_cut else "put less into a file"
            raise UsageError(f"{self.path}: {many} takes {largest / 1e9:.1f} GB; {less}")
        with contextlib.ExitStack() as stack:
            takes = {n: stack.enter_context(h.opened()) for n, h in self.headers.items()}
            whole = {n: takes[n](h.rows) for n, h in self.headers.items() if not is_cut[n]}
            is_whole = keep_rest or rows is None
            for start in range(0, total if is_whole else total - total % size, size):
                taken = min(size, total - start)
                cut = {name: take(taken) for name, take in takes.items() if is_cut[name]}
                yield {name: whole[name] if name in whole else cut[name] for name in self.headers}


def _is_cut(header: Header, rows: int) -> bool:
    return bool(header.shape) and header.rows == rows


def read_inputs(path: Path, names: Callable[[], Sequence[str]]) -> dict[str, Array]:
    """Return the arrays of one file, by the names of inputs.

    Args:
        path: the file.
        names: gives those of all inputs, for an array that has none.

    Raises:
        UsageError: it is missing, a directory or no such file, too large, or an array without a
            name, where there are several inputs.
        InputError: it is unreadable or damaged, or has NaN in it.
    """
    if path.is_dir():
        raise UsageError(f"{path}: it is a directory, and one file is run; give an .npz or .npy")
    (file,) = files = open_data([path])
    only = _only(files, names()) if "" in file.headers else ""
    _look_through(files, _silent)
    (batch,) = file.batches(None, 1, keep_rest=True)
    return {name or only: value for name, value in batch.items()}


def open_data(paths: Iterable[Path], flags: str = "--") -> list[DataFile]:
    """Return the files of data that paths name, directories in the order of their names.

    Only headers are read.

    Args:
        paths: files or directories.
        flags: what the names of the options begin with that say how they are cut, for errors.

    Raises:
        UsageError: a path is missing or no such file, or a directory has none.
        InputError: a file is unreadable or damaged.
    """
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = sorted(p for p in path.iterdir() if p.suffix in SUFFIXES)
            if not inside:
                raise UsageError(f"{path}: there is no .npz or .npy file in it")
            found += inside
        elif not path.exists():
            raise UsageError(f"{path}: there is no such file or directory")
        elif path.suffix not in SUFFIXES:
            raise UsageError(f"{path}: data are .npz or .npy files; save them with np.savez")
        else:
            found.append(path)
    return [_open(path, flags) for path in found]


def _open(path: Path, flags: str) -> DataFile:
    # Nobody may ever write into a pipe.
    if path.exists() and not path.is_file():
        raise InputError(f"{path}: it is no regular file; data are .npz or .npy files")
    headers = read_headers(path)
    if not headers:
        raise InputError(f"{path}: it is no readable .npz file (it holds no arrays)")
    for name, header in headers.items():
        subject = f"{path}: {name}" if name else str(path)
        if header.rows and not header.row_bytes:
            raise InputError(f"{subject}: it is {list(header.shape)}, so its rows hold nothing")
        if header.is_fortran and header.rows * header.row_bytes > _MAX_BATCH_BYTES:
            raise InputError(
                f"{subject}: it is stored column by column, of which "
                f"{header.rows * header.row_bytes / 1e9:.1f} GB are read at once; save it row by "
                "row (np.ascontiguousarray)"
            )
    if "" in headers and not headers[""].shape:
        raise InputError(f"{path}: it is no readable .npy file (it holds a single number, no rows)")
    return DataFile(path, headers, flags)


class Opened:
    """Files that fit a model, cut into batches.

    Args:
        data: what was said of them.
        files: the files.
        model: what is run, and takes them.
        progress: called while they are looked through.

    Attributes:
        question: what is run.
        total: how many rows there are, a file that is one batch counted as one.
        notes: what is to be said of how they are cut, one line each.

    Raises:
        InputError: a file is unreadable or damaged, or has NaN in it.
        UsageError: the model takes no such values, or needs others; rows cannot be cut.
    """

    def __init__(
        self, data: Data, files: Sequence[DataFile], model: Asked, progress: Progress
    ) -> None:
        self.question = data.question
        self._files = files
        self._only = _only(files, list(model.inputs), model.hint)
        fixed = {
            name: found.shape[0]
            for name, found in model.inputs.items()
            if found.shape and found.shape[0] > 0
        }
        fixed[""] = fixed.get(self._only, 0)
        self._rows = [None if data.whole_files else file.rows(fixed) for file in files]
        # What the graph fixes of what is cut cannot be cut in another way.
        sizes = {
            fixed.get(name, 0)
            for file, rows in zip(files, self._rows, strict=True)
            for name, header in file.headers.items()
            if rows is not None and _is_cut(header, rows)
        } - {0}
        self._is_even = bool(sizes)
        self._size = data.rows or (sizes.pop() if len(sizes) == 1 else BATCH)
        self.total = sum(1 if rows is None else rows for rows in self._rows)
        self._check(model, data.question.where)
        left = sum(rows % self._size for rows in self._rows if rows is not None and self._is_even)
        over = f"{left:,} {agree(left, 'is', 'are')} left over"
        self.notes = (f"the graph takes {self._size} rows at once; {over}",) if left else ()
        _look_through(files, progress)

    def batches(self) -> Iterator[dict[str, Array]]:
        """Yield the batches of all files, as often as one likes.

        Raises:
            InputError: a file is unreadable or damaged.
        """
        for file, rows in zip(self._files, self._rows, strict=True):
            for batch in file.batches(rows, self._size, keep_rest=not self._is_even):
                yield {name or self._only: value for name, value in batch.items()}

    def _check(self, model: Asked, where: str) -> None:
        """Refuse what the model does not take, by the headers alone."""
        first: set[str] = set()
        for file, rows in zip(self._files, self._rows, strict=True):
            tensors = self._tensors(model, file, rows)
            names = {name or self._only for name in file.headers}
            if not first:
                given = {**dict.fromkeys(tensors), **model.fed}
                model.check_complete(model.forward(given), given, str(file.path))
                first = names
            if odd := sorted(first ^ names):
                lacking, having = file.path, self._files[0].path
                if odd[0] in names:
                    lacking, having = having, lacking
                raise UsageError(
                    f"{lacking}: it has no {odd[0]}, and {having} has; all files "
                    "must have the same arrays"
                )
        if not self.total:
            raise UsageError(f"{where}: it holds no data")
        if self._is_even and all(rows is not None and rows < self._size for rows in self._rows):
            raise UsageError(
                f"{where}: the graph takes {self._size} rows at once, and no file has as many"
            )

    def _tensors(self, model: Asked, file: DataFile, rows: int | None) -> list[Tensor]:
        """Return the tensors that take the arrays of a file."""
        takers: dict[Tensor, str] = {}
        for name in file.headers:
            other = takers.setdefault(self._checked(model, file, name, rows), name)
            if other != name:
                raise UsageError(f"{file.path}: {other} and {name} are the same input; leave one")
        return list(takers)

    def _checked(self, model: Asked, file: DataFile, name: str, rows: int | None) -> Tensor:
        """Return the tensor that takes an array."""
        header, name = file.headers[name], name or self._only
        tensor = model.tensor(name, str(file.path))
        shape = header.shape
        if rows is not None and _is_cut(header, rows):
            shape = (self._size if self._is_even else min(self._size, rows), *shape[1:])
        check_given(model.graph, tensor, shape, header.dtype, f"{file.path}: {name}")
        return tensor


def _only(files: Sequence[DataFile], names: Sequence[str], others: str = "") -> str:
    """Return the name of the input that `.npy` files are for; empty where there are several.

    Args:
        files: the files.
        names: of all inputs.
        others: what else can be done, for the message.

    Raises:
        UsageError: an array has no name, and the model takes several.
    """
    unnamed = next((file for file in files if "" in file.headers), None)
    if unnamed is not None and len(names) != 1:
        raise UsageError(
            f"{unnamed.path}: it holds one array without a name, and the model takes "
            f"{', '.join(names) or 'nothing'}; save them by name in an .npz{others}"
        )
    return names[0] if len(names) == 1 else ""


def _look_through(files: Sequence[DataFile], progress: Progress) -> None:
    """Refuse data with NaN: not after hours of running."""
    headers = [
        (name, header)
        for file in files
        for name, header in file.headers.items()
        if header.dtype.kind in "fc"
    ]
    total = sum(header.rows for _, header in headers)
    done = 0
    for name, header in headers:
        step = max(_BLOCK_BYTES // max(header.row_bytes, 1), 1)
        nans, first = 0, 0
        with header.opened() as take:
            for start in range(0, header.rows, step):
                progress(done, total)
                values = take(min(step, header.rows - start))
                done += min(step, header.rows - start)
                odd = np.isnan(values)
                if odd.any():
                    first = first if nans else start + int(np.argwhere(odd)[0, :1].sum())
                    nans += int(np.count_nonzero(odd))
        if nans:
            subject = f"{header.path}: {name}" if name else str(header.path)
            size = int(np.prod(header.shape))
            raise InputError(
                f"{subject}: {nans} of {size} values {agree(nans, 'is', 'are')} NaN, the first of "
                f"them in row {first}; leave these rows out"
            )
