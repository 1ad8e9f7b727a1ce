"""Options of a strategy: declared once as dataclass fields, read from flags and from recipes."""

from __future__ import annotations

import dataclasses
import re
import reprlib
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from converter.errors import ConverterError, UsageError, did_you_mean

_KEY = "converter"


def option(
    default: Any = MISSING,
    *,
    help: str,
    metavar: str | None = None,
    choices: Sequence[str] | None = None,
    shared: bool = False,
    empty: bool = False,
    instead_of: Sequence[str] = (),
) -> Any:
    """Declare a field of a strategy as an option.

    Args:
        default: the value where the user gives none; without it the option must be given.
        help: half a sentence for `--help`, in lower case and without a full stop.
        metavar: what stands for the value in `--help`; None takes it from the field's type.
        choices: the texts that are allowed, where `Literal` in the type does not say it.
        shared: the flag is `--FIELD`, without the plugin's name, and goes to every chosen
            strategy that has it: `--like`, `--shape`.
        empty: the pattern of `PATTERN=VALUE` can be empty, and means something then.
        instead_of: the fields that cannot be given with it: on the command line each of them takes
            the place of what a recipe has of the others.
    """
    declared = {
        "help": help,
        "metavar": metavar,
        "choices": choices,
        "shared": shared,
        "empty": empty,
        "instead_of": tuple(instead_of),
    }
    metadata = {_KEY: declared}
    if isinstance(default, Mapping):
        # dataclasses refuse mutable defaults.
        return dataclasses.field(default_factory=lambda: dict(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True, slots=True)
class Kind:
    """What one value of an option can be.

    Attributes:
        words: for messages: `a number`.
        metavar: what stands for it in `--help`.
        parse: the value of a command-line text; ValueError where it is none.
        check: the value itself, of the exact type; TypeError or ValueError where it is none.
            The path is the directory that relative paths start from.
        read: for what plugins can add to, `NAME` or `NAME(key=value)`: the value of a text, given
            the classes by name, or UsageError; `check` then gets that.
            None for all other kinds.
    """

    words: str
    metavar: str
    parse: Callable[[str], object]
    check: Callable[[object, Path], object]
    read: Callable[[object, Mapping[str, Any]], object] | None = None


@dataclass(frozen=True, slots=True)
class Option:
    """One option of a strategy, as the command line, a recipe and `convert plugins` see it.

    Attributes:
        name: the field, which is also the key in a recipe.
        flag: how the command line spells it; a flag that is on or off (`is_flag`) is switched
            off by `--no-` and the rest.
        help: half a sentence.
        metavar: what stands for the value; empty for one that is on or off.
        choices: the only texts allowed, or None.
        default: the value where none is given; `dataclasses.MISSING` where one is needed.
        selects: whether giving the flag also chooses the strategy: its name is the plugin's.
        shared: whether the flag lacks the plugin's name and goes to all chosen strategies.
        kind: what one value can be.
        container: what holds several values: tuple, dict (by pattern), or None for a single one.
        empty: whether a pattern can be empty.
        instead_of: the options that cannot be given with it.
    """

    name: str
    flag: str
    help: str
    metavar: str
    choices: tuple[str, ...] | None
    default: object
    selects: bool
    shared: bool
    kind: Kind
    container: type | None
    empty: bool = False
    instead_of: tuple[str, ...] = ()

    @property
    def multiple(self) -> bool:
        """Whether the flag can be repeated; `parse` then takes all of its texts at once."""
        return self.container is not None

    @property
    def is_flag(self) -> bool:
        """Whether the flag takes no value, but is on or off."""
        return self.kind is _KINDS[bool] and not self.multiple

    @property
    def required(self) -> bool:
        """Whether there is no default."""
        return self.default is MISSING

    def parse(self, given: str | bool | Sequence[str]) -> object:
        """Return the value of what the command line has: one text, or all of a repeated flag.

        `PATTERN=VALUE` is split at its last `=`, so that patterns can hold one; a value with a
        `=` in it needs a recipe, but for what stands in the brackets of `NAME(key=value)`. What
        plugins can add to (`Kind.read`) stays a text, which `check` reads.

        Raises:
            UsageError: the text is no such value.
        """
        if isinstance(given, bool):
            return given
        texts = [given] if isinstance(given, str) else given
        try:
            values: object
            if self.container is dict:
                values = self._pairs(texts)
            else:
                several = tuple(self._parsed(text) for text in texts)
                values = several if self.multiple else several[-1]
            return values if self.kind.read else self.check(values)
        except UsageError as error:
            raise UsageError(f"{self.flag}: {error}") from None

    def _parsed(self, text: str, subject: str = "") -> object:
        try:
            return self.kind.parse(text)
        except ValueError:
            raise UsageError(f"{subject}must be {self.kind.words}, got {text!r}") from None

    def _pairs(self, texts: Sequence[str]) -> dict[str, object]:
        pairs: dict[str, object] = {}
        for text in texts:
            # The `=` of the arguments separate nothing; names of variables can hold brackets.
            end = text.rfind("(") if self.kind.read and text.endswith(")") else -1
            head, tail = (text, "") if end < 0 else (text[:end], text[end:])
            pattern, separator, value = head.rpartition("=")
            value += tail
            if not separator or not (pattern or self.empty):
                raise UsageError(f"must be {self.metavar}, got {text!r}")
            if self.kind.read and re.search(r"=\w+\([^()]*$", text):
                raise UsageError(f"must be {self.metavar}, got {text!r}; close its bracket")
            if pattern in pairs:
                raise UsageError(f"{pattern!r} is given twice")
            pairs[pattern] = self._parsed(value, f"{pattern!r} ")
        return pairs

    def check(
        self,
        value: object,
        directory: Path = Path(),
        classes: Mapping[str, Any] | None = None,
    ) -> object:
        """Return a value as the strategy's constructor wants it, or refuse it.

        Types are strict: True is no integer, and '128' is none. A text for a path is relative to
        `directory`; a Path is taken as it is. `classes` is for `Kind.read`; None for
        kinds without it.

        Raises:
            UsageError: the value is of another type, or none of the choices; without a subject.
        """
        known = classes or {}
        if self.container is dict:
            if not isinstance(value, Mapping):
                raise UsageError(f"must be a table of {self.metavar}, got {reprlib.repr(value)}")
            return {
                key: self._one(item, directory, known, f"{key!r} ") for key, item in value.items()
            }
        if self.multiple:
            items = value if isinstance(value, (list, tuple)) else [value]
            return tuple(self._one(item, directory, known) for item in items)
        return self._one(value, directory, known)

    def _one(
        self,
        value: object,
        directory: Path,
        classes: Mapping[str, Any],
        subject: str = "",
    ) -> object:
        try:
            if self.kind.read:
                value = self.kind.read(value, classes)
            checked = self.kind.check(value, directory)
        except UsageError as error:
            raise UsageError(f"{subject}{error}") from None
        except (TypeError, ValueError, OverflowError):
            raise UsageError(
                f"{subject}must be {self.kind.words}, got {reprlib.repr(value)}"
            ) from None
        if self.choices and checked not in self.choices:
            text = str(checked)
            raise UsageError(
                f"{subject}must be one of {', '.join(self.choices)}, got {text!r}"
                f"{did_you_mean(text, self.choices)}"
            )
        return checked


def _exactly(*types: type) -> Callable[[object, Path], object]:
    def check(value: object, directory: Path) -> object:
        # By identity: a bool is an int to isinstance.
        if type(value) not in types:
            raise TypeError
        return value

    return check


def _check_number(value: object, directory: Path) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError
    return float(value)


def _check_path(value: object, directory: Path) -> Path:
    if isinstance(value, Path):
        return value
    if not isinstance(value, str) or not value or "\0" in value:
        raise TypeError
    return directory / value


def _check_sizes(value: object, directory: Path) -> tuple[int, ...]:
    if not isinstance(value, (list, tuple)) or any(type(size) is not int for size in value):
        raise TypeError
    return tuple(value)


def _parse_path(text: str) -> Path:
    if not text or "\0" in text:
        raise ValueError
    return Path(text)


def _parse_sizes(text: str) -> tuple[int, ...]:
    # Brackets are allowed, because shapes are printed with them.
    inner = text.strip().removeprefix("[").removesuffix("]").strip()
    return tuple(int(size) for size in inner.split(",")) if inner else ()


def _parse_truth(text: str) -> bool:
    if text not in ("true", "false"):
        raise ValueError
    return text == "true"


_KINDS: dict[object, Kind] = {
    str: Kind("a text", "TEXT", str, _exactly(str)),
    int: Kind("an integer", "INTEGER", int, _exactly(int)),
    float: Kind("a number", "NUMBER", float, _check_number),
    bool: Kind("true or false", "", _parse_truth, _exactly(bool)),
    Path: Kind("a path", "PATH", _parse_path, _check_path),
    tuple[int, ...]: Kind("sizes such as [30592, 768]", "SIZES", _parse_sizes, _check_sizes),
}


def make_option(
    field: dataclasses.Field[Any], hint: object, owner: str, *, prefix: str = ""
) -> Option:
    """Return the option that a dataclass field declares.

    Args:
        field: the field.
        hint: its type, resolved.
        owner: the name of the strategy, `pad`.
        prefix: how messages about a mistake in the declaration begin.

    Raises:
        ConverterError: an option cannot have that type.
    """
    declared = field.metadata.get(_KEY, {})
    kind, container, choices = _resolve(hint, f"{prefix}{field.name}")
    shared = declared.get("shared", False)
    dashed = field.name.replace("_", "-")
    selects = dashed == owner
    default = field.default
    if default is MISSING and field.default_factory is not MISSING:
        default = field.default_factory()
    return Option(
        name=field.name,
        flag=f"--{dashed}" if shared or selects else f"--{owner}-{dashed}",
        help=declared.get("help", ""),
        metavar=declared.get("metavar")
        or (f"PATTERN={kind.metavar}" if container is dict else kind.metavar),
        choices=tuple(declared.get("choices") or choices or ()) or None,
        default=default,
        selects=selects and not shared,
        shared=shared,
        kind=kind,
        container=container,
        empty=declared.get("empty", False),
        instead_of=declared.get("instead_of", ()),
    )


def _resolve(hint: object, subject: str) -> tuple[Kind, type | None, tuple[str, ...] | None]:
    """Return the kind of one value, the container of several (tuple, dict or None), the choices."""
    origin, args = get_origin(hint), get_args(hint)
    if hint in _KINDS:
        return _KINDS[hint], None, None
    # A class can say itself how its values are read.
    if isinstance(kind := getattr(hint, "OPTION_KIND", None), Kind):
        return kind, None, None
    if origin in (Union, types.UnionType):
        rest = [arg for arg in args if arg is not types.NoneType]
        if len(rest) == 1:
            return _resolve(rest[0], subject)
    elif origin is Literal and all(isinstance(arg, str) for arg in args):
        return _KINDS[str], None, args
    elif origin is tuple and len(args) == 2 and args[1] is Ellipsis:
        kind, container, choices = _resolve(args[0], subject)
        if container is None and (kind in (_KINDS[str], _KINDS[Path]) or kind.read):
            return kind, tuple, choices
    elif origin in (Mapping, dict) and args[0] is str:
        kind, container, choices = _resolve(args[1], subject)
        if container is None:
            return kind, dict, choices
    raise ConverterError(
        f"{subject}: an option cannot be {_spell(hint)}; it can be str, int, float, bool, Path, "
        f"Initializer, Literal of texts, tuple[str, ...], tuple[Path, ...], tuple[int, ...], a "
        f"Mapping from str to one of these, or one of these | None"
    )


def _spell(hint: object) -> str:
    return hint.__name__ if isinstance(hint, type) and not get_args(hint) else str(hint)
