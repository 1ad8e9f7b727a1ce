"""A structure as a file: TOML that people read, edit and give back.

    [widths."rnn/lstm_cell"]
    size = 30
    class = "permutation"
    resizable = true
    growth = "any"

    [variables."rnn/lstm_cell/kernel"]
    axes = ["embedding + rnn/lstm_cell", "[i,j,f,o]*rnn/lstm_cell"]
    uses = ["consume", "produce"]

Slots and averages are left out: they have the axes of their variable.
"""

from __future__ import annotations

import json
import os
import re
import reprlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast, get_args

from converter.errors import ConverterError, PlanError, UsageError, did_you_mean
from converter.structure.axes.axis import (
    USES,
    Axis,
    Equation,
    Growth,
    Symmetry,
    Use,
    check,
    is_name,
    solve,
)
from converter.toml import read_toml

if TYPE_CHECKING:
    from converter.checkpoint import Checkpoint
    from converter.structure.axes.followers import Uses
    from converter.structure.structure import Structure

_CLASSES: tuple[str, ...] = get_args(Symmetry)
_GROWTHS: tuple[str, ...] = get_args(Growth)
_WIDTH_KEYS = ("size", "class", "growth", "resizable")
_VARIABLE_KEYS = ("axes", "uses")


@dataclass(frozen=True)
class Layout:
    """What a layout file says.

    Attributes:
        path: the file.
        sizes: of the widths that it gives a size.
        classes: of the widths that it gives a class.
        growths: of the widths that it says how to grow.
        resizable: of the widths that it says to have one size only, or any.
        axes: of the variables that it tells.
        uses: what the axes of a variable do with their widths; empty where it does not say.
    """

    path: Path
    sizes: Mapping[str, int]
    classes: Mapping[str, Symmetry]
    growths: Mapping[str, Growth]
    resizable: Mapping[str, bool]
    axes: Mapping[str, tuple[Axis, ...]]
    uses: Mapping[str, Uses]

    def solved(
        self,
        checkpoint: Checkpoint,
        others: Mapping[str, tuple[Axis, ...]] | None = None,
        known: Mapping[str, int] | None = None,
    ) -> dict[str, int]:
        """Return the sizes of the widths in a checkpoint.

        Args:
            checkpoint: whose variables have the axes.
            others: the axes of variables that the file does not tell.
            known: the sizes of widths, for those that the lengths leave open.

        Raises:
            PlanError: an axis cannot be as long as it is, or a width stays unknown.
            UsageError: the checkpoint lacks a variable.
        """
        equations = list(self._equations(checkpoint, {**self.axes, **(others or {})}))
        sizes = solve(equations, self.sizes)
        names = dict.fromkeys(name for e in equations for name in e.axis.widths())
        if known:
            sizes = solve(equations, {n: known[n] for n in names if n in known} | sizes)
        if unknown := [name for name in names if name not in sizes]:
            raise PlanError(
                f"{self.path}: the lengths of the axes leave the size of {', '.join(unknown)} "
                f'open; write it: [widths."{unknown[0]}"] size = ...'
            )
        check(equations, sizes)
        return sizes

    def _equations(
        self, checkpoint: Checkpoint, axes: Mapping[str, tuple[Axis, ...]]
    ) -> Iterator[Equation]:
        for name, found in axes.items():
            if name not in checkpoint:
                near = did_you_mean(name, checkpoint)
                raise UsageError(f"{self.path}: {checkpoint.path} has no variable {name!r}{near}")
            shape = checkpoint[name].shape
            if len(shape) != len(found):
                raise PlanError(
                    f"{self.path}: {name} has {len(shape)} axes, {list(shape)}, and "
                    f"{len(found)} are written: [{', '.join(map(str, found))}]"
                )
            for number, (axis, length) in enumerate(zip(found, shape, strict=True)):
                yield Equation(axis, length, f"{self.path}: {name}, axis {number}")


def layout_text(structure: Structure, names: Sequence[str], title: str) -> str:
    """Return the file of a structure.

    Args:
        structure: what is to be written.
        names: the variables to write.
        title: what stands in its first line.
    """
    lines = [
        f"# {json.dumps(title)[1:-1]}",
        "# An axis is a sum of products of widths, numbers, [labels] and (sums); the left factor",
        "# is the outer one. What an axis does with its widths is one of: " + ", ".join(USES) + ".",
    ]
    for name, width in structure.widths.items():
        lines += [
            "",
            f"[widths.{_quoted(name)}]",
            f"size = {width.size}",
            f'class = "{width.symmetry}"  # {json.dumps(width.why, ensure_ascii=False)[1:-1]}',
        ]
        # Without a graph these follow from the axes, which may be edited.
        if structure.findings is not None:
            lines.append(f"resizable = {json.dumps(width.resizable)}")
        if structure.findings is not None or width.resizable:
            lines.append(f'growth = "{width.growth}"')
    for name in names:
        axes = ", ".join(_quoted(str(axis)) for axis in structure.axes[name])
        uses = ", ".join(_uses(found) for found in structure.uses[name])
        lines += ["", f"[variables.{_quoted(name)}]", f"axes = [{axes}]", f"uses = [{uses}]"]
    return "\n".join(lines) + "\n"


def _uses(found: Mapping[str, tuple[Use, ...]]) -> str:
    """Write the uses of one axis: one text where all widths have the same ones."""
    texts = {name: " ".join(uses) for name, uses in found.items()}
    if len(set(texts.values())) < 2:
        return _quoted(next(iter(texts.values()), ""))
    pairs = ", ".join(f"{_quoted(name)} = {_quoted(text)}" for name, text in texts.items())
    return f"{{ {pairs} }}"


def _quoted(text: str) -> str:
    # A surrogate stands for a byte that is no UTF-8, which TOML cannot hold.
    if any("\ud800" <= c <= "\udfff" for c in text):
        raise UsageError(f"{text!a}: a layout cannot hold this name, as it is no UTF-8; rename it")
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def write_layout(path: Path, text: str) -> None:
    """Write a layout file, which must not exist: somebody may have edited it.

    Raises:
        PlanError: it exists.
        ConverterError: it cannot be written.
    """
    if os.path.lexists(path):
        raise PlanError(f"{path} exists, and may have been edited; write to another file")
    temporary = ""
    try:
        descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
        umask = os.umask(0)
        os.umask(umask)
        Path(temporary).chmod(0o666 & ~umask)
        Path(temporary).replace(path)
    except OSError as error:
        if temporary:
            Path(temporary).unlink(missing_ok=True)
        raise ConverterError(f"{path}: it cannot be written: {error.strerror}") from None


def read_layout(path: str | os.PathLike[str]) -> Layout:
    """Read a layout file.

    Raises:
        UsageError: it cannot be read, is no TOML, or says what no layout says.
    """
    path = Path(path)
    table = read_toml(path, "layout")
    for key in table:
        if key not in ("widths", "variables"):
            near = did_you_mean(key, ("widths", "variables")) or "; it has widths and variables"
            raise UsageError(f"{path}: a layout has no key {key!r}{near}")
    sizes: dict[str, int] = {}
    classes: dict[str, Symmetry] = {}
    growths: dict[str, Growth] = {}
    resizable: dict[str, bool] = {}
    axes: dict[str, tuple[Axis, ...]] = {}
    uses: dict[str, Uses] = {}
    for name, entry in _tables(table, "widths", path, _WIDTH_KEYS):
        if not is_name(name):
            raise UsageError(f"{path}: a width cannot be called {name!r}; use letters and / . - _")
        if "size" in entry:
            sizes[name] = _size(name, entry["size"], path)
        if "class" in entry:
            classes[name] = cast("Symmetry", _word(name, entry, "class", _CLASSES, path))
        if "growth" in entry:
            growths[name] = cast("Growth", _word(name, entry, "growth", _GROWTHS, path))
        if "resizable" in entry:
            resizable[name] = _truth(name, entry["resizable"], path)
    for name, entry in _tables(table, "variables", path, _VARIABLE_KEYS):
        axes[name] = tuple(_axes(name, entry, path))
        if "uses" in entry:
            uses[name] = _read_uses(name, entry["uses"], axes[name], path)
    return Layout(path, sizes, classes, growths, resizable, axes, uses)


def _tables(
    table: Mapping[str, object], key: str, path: Path, keys: Sequence[str]
) -> Iterator[tuple[str, Mapping[str, object]]]:
    entries = table.get(key, {})
    if not isinstance(entries, dict):
        raise UsageError(f"{path}: {key} must be tables, got {reprlib.repr(entries)}")
    for name, entry in entries.items():
        if not isinstance(entry, dict):
            raise UsageError(f"{path}: {key}.{name!r} must be a table with {', '.join(keys)}")
        for field in entry:
            if field not in keys:
                near = did_you_mean(field, keys) or f"; it can have {', '.join(keys)}"
                raise UsageError(f"{path}: {key}.{name!r} has no key {field!r}{near}")
        yield name, entry


def _size(name: str, size: object, path: Path) -> int:
    if type(size) is not int or size < 1:
        raise UsageError(f"{path}: the size of {name} must be a number, got {size!r}")
    return size


def _word(
    name: str, entry: Mapping[str, object], key: str, words: Sequence[str], path: Path
) -> str:
    word = entry[key]
    if not isinstance(word, str) or word not in words:
        raise UsageError(
            f"{path}: the {key} of {name} must be one of {', '.join(words)}, "
            f"got {reprlib.repr(word)}"
        )
    return word


def _truth(name: str, found: object, path: Path) -> bool:
    if not isinstance(found, bool):
        raise UsageError(
            f"{path}: resizable of {name} must be true or false, got {reprlib.repr(found)}"
        )
    return found


def _axes(name: str, entry: Mapping[str, object], path: Path) -> Iterator[Axis]:
    axes = entry.get("axes")
    if not isinstance(axes, list) or not all(isinstance(axis, str) for axis in axes):
        raise UsageError(
            f"{path}: {name} needs axes, a list of texts such as 'features + units', "
            f"got {reprlib.repr(axes)}"
        )
    for axis in axes:
        try:
            yield Axis.parse(axis)
        except UsageError as error:
            raise UsageError(f"{path}: {name}: {error}") from None


def _read_uses(name: str, entry: object, axes: Sequence[Axis], path: Path) -> Uses:
    if not isinstance(entry, list) or len(entry) != len(axes):
        raise UsageError(
            f"{path}: {name} has {len(axes)} axes, so uses must be a list of as many texts, "
            f"got {reprlib.repr(entry)}"
        )
    return tuple(_axis_uses(name, item, axis, path) for item, axis in zip(entry, axes, strict=True))


def _axis_uses(name: str, item: object, axis: Axis, path: Path) -> Mapping[str, tuple[Use, ...]]:
    widths = axis.widths()
    if isinstance(item, str):
        item = dict.fromkeys(widths, item)
    if not isinstance(item, dict) or not all(isinstance(text, str) for text in item.values()):
        raise UsageError(
            f"{path}: {name}: uses must be texts, or tables of widths and texts, "
            f"got {reprlib.repr(item)}"
        )
    found = {}
    for width, text in item.items():
        if width not in widths:
            raise UsageError(f"{path}: {name}: the axis {axis} has no width {width!r}")
        words = re.findall(r"\S+", text)
        if wrong := [word for word in words if word not in USES]:
            near = did_you_mean(wrong[0], USES) or f"; it can be {', '.join(USES)}"
            raise UsageError(f"{path}: {name}: there is no use {wrong[0]!r}{near}")
        found[width] = tuple(cast("Use", word) for word in words)
    return found
