"""The file of statistics that `convert stats` writes: documented in docs/statistics.md."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np

from converter.activations.moments import Moments
from converter.activations.probes import Side
from converter.activations.sums import Floats
from converter.checkpoint import Checkpoint, open_checkpoint
from converter.counted import count
from converter.errors import ConverterError, InputError, PlanError, UsageError, printable
from converter.formats import safetensors
from converter.formats.stream import Output
from converter.publish import Outputs, clean, publish, staging
from converter.variable import Array, Variable

Key = tuple[str, Side]
"""A variable, and a side of it."""

NEEDED = ("count", "mean", "mean_abs", "std", "min", "max", "zeros")
"""The statistics from which all others follow, and which merging needs."""

STATISTICS = (*NEEDED[:4], "second_moment", *NEEDED[4:6], "max_abs", NEEDED[6])
"""What a file says of a variable, in the order in which it is listed."""

_CONSUMED = "/consumed"
_SUFFIX = ".safetensors"
_FORMAT = "ckpt-converter statistics"
_VERSION = "1"
_SLACK = 1e-6
_LARGEST = 1e140
"""Its square, times the largest count, is a number."""
_MAX_BATCHES_DIGITS = 18


class Measured(Mapping[Key, Moments]):
    """The moments of each variable and side that was measured.

    Attributes:
        tensors: the tensors that each was measured in.
        batches: how many batches were run; None where nobody says it.
        notes: what else is to be known, one line each; a file does not keep them.
        path: the file that it was read from; None where it was measured or merged.
    """

    def __init__(
        self,
        moments: Mapping[Key, Moments],
        tensors: Mapping[Key, tuple[str, ...]],
        batches: int | None,
        notes: tuple[str, ...] = (),
        path: Path | None = None,
    ) -> None:
        self._moments = dict(moments)
        self.tensors = dict(tensors)
        self.batches = batches
        self.notes = notes
        self.path = path

    def __getitem__(self, key: Key) -> Moments:
        return self._moments[key]

    def __iter__(self) -> Iterator[Key]:
        return iter(self._moments)

    def __len__(self) -> int:
        return len(self._moments)

    def __repr__(self) -> str:
        return f"<Measured {count(len(self), 'side')} of variables, batches: {self.batches}>"


def merged(*parts: Measured) -> Measured:
    """Return the statistics of several runs as if they had been one.

    What only some of them have measured is taken as it is; where they have nothing in common, a
    note says so.

    Raises:
        UsageError: a variable has another number of units, or only some have its covariance; or
            these are no statistics.
    """
    for part in parts:
        if not isinstance(part, Measured):
            raise UsageError(
                f"merged: a {type(part).__name__} is no statistics; give what measure or "
                "read_measured returned, as merged(a, b)"
            )
    if not parts:
        raise UsageError("merged: there are no statistics; give them as merged(a, b)")
    return _merged(parts)


def merged_files(paths: Iterable[str | os.PathLike[str]]) -> Measured:
    """Return the statistics in several files as if they were of one run; one is read at a time.

    Raises:
        UsageError: as `merged`.
        InputError: as `read_measured`.
    """
    return _merged(map(read_measured, paths))


def _merged(parts: Iterable[Measured]) -> Measured:
    parts = iter(parts)
    total = next(parts)
    before = _called(total, 1)
    for number, part in enumerate(parts, 2):
        total = _both(total, part, before, _called(part, number))
        before = "those before it"
    return total


def _called(part: Measured, number: int) -> str:
    return f"number {number}" if part.path is None else str(part.path)


def _both(a: Measured, b: Measured, one: str, other: str) -> Measured:
    """Return the statistics of two runs, which errors call `one` and `other`."""
    found: dict[Key, Moments] = {}
    for key in dict.fromkeys((*a, *b)):
        if key in a and key in b:
            _check_alike(key, a[key], b[key], one, other)
        parts = [side[key] for side in (a, b) if key in side]
        total = Moments.of(parts[0].size, covariance=parts[0].products is not None)
        for part in parts:
            total.merge(part)
        found[key] = total
    tensors = {
        key: tuple(dict.fromkeys((*a.tensors.get(key, ()), *b.tensors.get(key, ()))))
        for key in found
        if key in a.tensors or key in b.tensors
    }
    known = a.batches is not None and b.batches is not None
    batches = (a.batches or 0) + (b.batches or 0) if known else None
    notes = (*a.notes, *b.notes, *_unrelated(a, b, one, other))
    return Measured(found, tensors, batches, tuple(dict.fromkeys(notes)))


def _unrelated(a: Measured, b: Measured, one: str, other: str) -> Iterator[str]:
    """Say that two runs have no variable in common: of one model they can have measured others."""
    ours, theirs = ({name for name, _ in side} for side in (a, b))
    if ours and theirs and ours.isdisjoint(theirs):
        yield (
            f"{other}: no variable of it, such as {min(theirs)}, is in {one}, such as {min(ours)}, "
            "so nothing was added up; if they are of two models, leave one out"
        )


def _check_alike(key: Key, a: Moments, b: Moments, one: str, other: str) -> None:
    if a.size != b.size:
        raise UsageError(
            f"{_prefix(key)}: {one} has {count(a.size, 'unit')} of it, and {other} has {b.size}; "
            "they are of several models"
        )
    if (a.products is None) != (b.products is None):
        lacking, having = (one, other) if a.products is None else (other, one)
        raise UsageError(
            f"{_prefix(key)}: {lacking}: no covariance of it, which {having} "
            f"{'have' if having.startswith('those') else 'has'}; measure it for all of them "
            "(--covariance GLOB), or for none"
        )


def statistics_of(moments: Moments) -> dict[str, Array]:
    """Return what a file says of a variable, by the names of `STATISTICS`, and `covariance`."""
    values: dict[str, Array] = {name: getattr(moments, name) for name in STATISTICS[1:]}
    values = {"count": np.asarray(moments.count, np.int64), **values}
    if (covariance := moments.covariance) is not None:
        values["covariance"] = covariance
    return values


# --- writing ---


def output_path(path: str | os.PathLike[str], *, force: bool) -> Path:
    """Return where a file of statistics is to be written.

    Raises:
        UsageError: its name does not end as it must, or its directory is missing.
        PlanError: it exists, and `force` is not given.
    """
    found = Path(path)
    if found.suffix != _SUFFIX:
        raise UsageError(f"{found}: a file of statistics is NAME{_SUFFIX}")
    if not found.parent.is_dir():
        raise UsageError(f"{found}: there is no directory {found.parent}")
    if (obstacle := _outputs(found).obstacle()) is not None:
        raise PlanError(obstacle)
    if found.exists() and not force:
        raise PlanError(f"{found} exists; use --force")
    return found


def write_measured(
    path: str | os.PathLike[str], measured: Measured, *, force: bool = False
) -> Path:
    """Write a file of statistics; it appears when it is complete.

    Raises:
        UsageError: its name does not end as it must, or its directory is missing.
        PlanError: it exists, and `force` is not given.
        ConverterError: it cannot be written.
    """
    target = output_path(path, force=force)
    variables = [
        Variable.from_array(f"{_prefix(key)}/{name}", values)
        for key, moments in measured.items()
        for name, values in statistics_of(moments).items()
    ]
    tensors = {_prefix(key): list(names) for key, names in measured.tensors.items()}
    metadata = {
        "format": _FORMAT,
        "version": _VERSION,
        "tensors": json.dumps(tensors, sort_keys=True),
    }
    if measured.batches is not None:
        metadata["batches"] = str(measured.batches)
    layout = safetensors.layout(variables, target.stem, metadata=metadata)
    clean(target.parent)
    try:
        with staging(target.parent) as stage:
            safetensors.write(stage, layout, open_output=functools.partial(Output, verify=False))
            publish(stage, _outputs(target), force=force)
    except OSError as error:
        raise ConverterError(f"{target}: {error.strerror}; nothing was published") from error
    return target


def _outputs(path: Path) -> Outputs:
    return Outputs(path.parent, (path.name,), path.name, markers=(path.name,))


def _prefix(key: Key) -> str:
    name, side = key
    return name if side == "produced" else name + _CONSUMED


# --- reading ---


def is_measured(path: str | os.PathLike[str]) -> bool:
    """Whether `convert stats` wrote a file, as its metadata say.

    Raises:
        InputError: it is unreadable or damaged, or no such file.
    """
    if Path(path).suffix == ".npz":
        return False
    return _opened(path).metadata.get("format") == _FORMAT


def read_measured(path: str | os.PathLike[str]) -> Measured:
    """Read a file of statistics.

    Raises:
        InputError: it is unreadable or damaged, no such file, or lacks what all others follow from.
    """
    if (found := Path(path)).exists() and not (found.is_file() and found.suffix == _SUFFIX):
        what = "a directory, and " if found.is_dir() else ""
        raise InputError(f"{found}: it is {what}no file of statistics, which is NAME{_SUFFIX}")
    entries = _opened(path)
    prefixes: dict[str, None] = {}
    for name in entries:
        prefix, _, statistic = name.rpartition("/")
        if statistic in STATISTICS and prefix:
            prefixes.setdefault(prefix)
    if not prefixes:
        raise InputError(
            f"{entries.path}: it has no key VARIABLE/STATISTIC, such as VARIABLE/mean_abs; it is "
            "no file of statistics"
        )
    said = _tensors(entries)
    moments: dict[Key, Moments] = {}
    tensors: dict[Key, tuple[str, ...]] = {}
    for prefix in prefixes:
        key = _key(prefix)
        moments[key] = _moments(entries, prefix)
        if prefix in said:
            tensors[key] = said[prefix]
    batches = entries.metadata.get("batches", "")
    known = batches.isdecimal() and len(batches) <= _MAX_BATCHES_DIGITS
    return Measured(moments, tensors, int(batches) if known else None, path=entries.path)


def _opened(path: str | os.PathLike[str]) -> Checkpoint:
    """Open what may hold statistics: a file, or the prefix of one."""
    found = Path(path)
    if not (found.exists() or Path(f"{found}.index").exists()):
        raise InputError(f"{found}: there is no such file")
    return open_checkpoint(path)


def _key(prefix: str) -> Key:
    if prefix.endswith(_CONSUMED):
        return prefix.removesuffix(_CONSUMED), "consumed"
    return prefix, "produced"


def _tensors(entries: Checkpoint) -> dict[str, tuple[str, ...]]:
    """Return what the metadata says; what it says in another way, nothing needs."""
    try:
        said = json.loads(entries.metadata.get("tensors", "{}"))
    except (ValueError, RecursionError):
        return {}
    if not isinstance(said, dict):
        return {}
    return {
        prefix: tuple(map(str, names)) for prefix, names in said.items() if isinstance(names, list)
    }


def _moments(entries: Checkpoint, prefix: str) -> Moments:
    for name in NEEDED:
        if f"{prefix}/{name}" not in entries:
            raise InputError(
                f"{entries.path}: {printable(prefix)}: it has no {name}; to be merged, a variable "
                f"needs {', '.join(NEEDED)}"
            )
    shape = entries[f"{prefix}/mean"].shape
    if len(shape) != 1 or not shape[0]:
        raise InputError(f"{entries.path}: {prefix}/mean is {list(shape)}; it must be [units]")
    values = {name: _read(entries, f"{prefix}/{name}", shape) for name in NEEDED[1:]}
    count = float(_read(entries, f"{prefix}/count", ()))
    at_least = {"mean_abs": 0.0, "std": 0.0, "zeros": 0.0}
    for name, least in at_least.items():
        if (values[name] < least).any():
            raise InputError(f"{entries.path}: {prefix}/{name} has values below {least:g}")
    if not 1 <= count < 1 << 62 or count != int(count):
        raise InputError(f"{entries.path}: {prefix}/count is {count:g}, no number of observations")
    if (values["zeros"] > 1 + _SLACK).any() or (values["min"] > values["max"]).any():
        raise InputError(
            f"{entries.path}: {prefix}: its zeros exceed 1, or its min exceeds its max; it is "
            "damaged"
        )
    products = None
    if f"{prefix}/covariance" in entries:
        products = _read(entries, f"{prefix}/covariance", shape * 2) * count
    return Moments(
        int(count),
        values["mean"],
        values["std"] ** 2 * count,
        values["mean_abs"] * count,
        values["min"],
        values["max"],
        np.rint(values["zeros"] * count).astype(np.int64),
        products,
    )


def _read(entries: Checkpoint, name: str, shape: tuple[int, ...]) -> Floats:
    entry = entries[name]
    if entry.shape != shape or not entry.dtype.is_number or entry.dtype.name.startswith("complex"):
        raise InputError(
            f"{entries.path}: {name} is {entry.dtype} {list(entry.shape)}; it must be numbers "
            f"{list(shape)}"
        )
    values = entry.read().astype(np.float64)
    if not np.isfinite(values).all():
        raise InputError(f"{entries.path}: {name} has infinities or NaN")
    if (np.abs(values) > _LARGEST).any():
        raise InputError(f"{entries.path}: {name} has values beyond {_LARGEST:g}; it is damaged")
    return values
