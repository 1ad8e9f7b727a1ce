"""Initializer: what draws new values. Its fields are its arguments."""

from __future__ import annotations

import dataclasses
import inspect
import math
import re
import reprlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_type_hints

from converter.errors import ConverterError, UsageError, did_you_mean
from converter.options import Kind, Option, make_option

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np

    from converter.values import Values
    from converter.variable import Array

__all__ = ["Initializer", "Zeros", "arguments", "parse_initializer", "signature"]

_LONGEST = 1000
_TEXT = r"[^\s(),=]+"
_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")

_CALL = re.compile(rf"(?s)\s*(?P<name>{_TEXT})\s*(?:\((?P<arguments>.*)\)\s*)?")
_ARGUMENT = re.compile(rf"\s*(?P<key>\w+)\s*=\s*(?P<value>{_TEXT})\s*")


def _read(value: object, classes: Mapping[str, Any]) -> object:
    if isinstance(value, str):
        return parse_initializer(value, classes)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return parse_initializer(repr(value), classes)
    return value


def _check(value: object, directory: Path) -> object:
    if not isinstance(value, Initializer):
        raise TypeError
    return value


class Initializer:
    """Draws the values of a block: of a variable, or of one gate of a recurrent kernel.

    An initializer is a frozen dataclass whose fields are its arguments, with a docstring whose
    first line is shown in the list of plugins:

        @dataclass(frozen=True)
        class Sparse(Initializer):
            \"\"\"Zeros, but for some entries that are normal.\"\"\"

            name: ClassVar[str] = "sparse"
            share: float = option(0.1, help="how many entries are not zero")

            def __call__(self, rng, shape, fan_in, fan_out, old, template):
                return rng.standard_normal(shape) * (rng.random(shape) < self.share)

    Users write it `sparse` or `sparse(share=0.2)`. Fields can be `float`, `int`, `bool`, `str` and
    `Literal["a", "b"]`. What an argument cannot be is refused in `__post_init__` with UsageError,
    and what a block cannot be in `refusal`.

    Attributes:
        name: what users call it: lower case letters, digits and single underscores.
        whole: whether the entries of a block depend on one another. Without it a large block is
            drawn piece by piece, so that it streams; with it there is a limit to its size.
        for_kernels: whether a glob that takes in a whole layer means its kernels: biases, gains
            and statistics then start as TensorFlow's layers start them.
        needs: what it cannot do without: the old values, or a template's.
    """

    name: ClassVar[str]
    whole: ClassVar[bool] = False
    for_kernels: ClassVar[bool] = True
    needs: ClassVar[Literal["old", "template"] | None] = None

    OPTION_KIND: ClassVar[Kind] = Kind(
        "an initializer such as normal(stddev=0.02)", "INITIALIZER", str, _check, _read
    )

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):  # type: ignore[arg-type]  # checked by arguments()
            value = getattr(self, field.name)
            if isinstance(value, float) and not math.isfinite(value):
                raise UsageError(f"{self.name}: {field.name} must be finite, got {value}")
            if isinstance(value, str) and not re.fullmatch(_TEXT, value):
                raise UsageError(
                    f"{self.name}: {field.name} cannot be written, got {reprlib.repr(value)}; "
                    f"leave out spaces, commas, brackets and ="
                )

    def __call__(
        self,
        rng: np.random.Generator,
        shape: tuple[int, ...],
        fan_in: int,
        fan_out: int,
        old: Values | None,
        template: Values | None,
        /,
    ) -> Array:
        """Return new values, as an array of real numbers of a shape.

        The values are rounded to the variable's dtype; float64 is what to compute in.

        Args:
            rng: the only source of chance: seeded by the user's seed, the variable's name, the
                block and the piece, so that order and streaming change nothing.
            shape: of the block; of a piece of it where the initializer is not `whole`.
            fan_in: how many inputs an entry of the block is one of, for the whole block.
            fan_out: how many outputs one input of the block goes to.
            old: the values that the block had; None where there are none.
            template: those that the user's template has for it; None without a template.
        """
        raise NotImplementedError

    def refusal(self, shape: tuple[int, ...]) -> str | None:
        """Return why a block of a shape cannot be drawn, as half a sentence; None where it can."""
        return None

    def __str__(self) -> str:
        """Return what a user would write: `normal(stddev=0.02)`."""
        given = [
            f"{a.name}={_spelt(value)}"
            for a in arguments(type(self))
            if (value := getattr(self, a.name)) != a.default
        ]
        return f"{self.name}({', '.join(given)})" if given else self.name


@dataclasses.dataclass(frozen=True)
class Zeros(Initializer):
    """Zeros."""

    name: ClassVar[str] = "zeros"
    for_kernels: ClassVar[bool] = False

    def __call__(self, rng: np.random.Generator, shape: tuple[int, ...], /, *_: object) -> Array:
        import numpy as np

        return np.zeros(shape)


def arguments(initializer: type[Initializer]) -> tuple[Option, ...]:
    """Return the arguments of an initializer, in the order of its fields.

    Raises:
        ConverterError: the class is not declared as an initializer must be.
    """
    spelt = initializer.__qualname__
    _check_class(initializer)
    try:
        hints = get_type_hints(initializer)
    except (NameError, TypeError, AttributeError) as error:
        raise ConverterError(
            f"{spelt}: the type of a field cannot be resolved ({error}); import it outside "
            f"`if TYPE_CHECKING`"
        ) from None
    found = []
    for field in dataclasses.fields(initializer):  # type: ignore[arg-type]  # by _check_class
        option = make_option(field, hints[field.name], initializer.name, prefix=f"{spelt}.")
        if option.multiple or option.kind.words not in _KINDS:
            raise ConverterError(
                f"{spelt}.{field.name}: an argument can be float, int, bool, str, or a Literal of "
                f"texts"
            )
        found.append(option)
    return tuple(found)


_NUMBERS = ("an integer", "a number")
_KINDS = ("a text", "true or false", *_NUMBERS)


def _check_class(initializer: type[Initializer]) -> None:
    spelt = initializer.__qualname__
    parameters = vars(initializer).get("__dataclass_params__")
    if parameters is None or not parameters.frozen:
        raise ConverterError(
            f"{spelt}: an initializer is a frozen dataclass; decorate it with "
            f"@dataclass(frozen=True)"
        )
    name = getattr(initializer, "name", None)
    if not isinstance(name, str):
        raise ConverterError(f'{spelt}: it has no name; add `name: ClassVar[str] = "..."`')
    if not re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", name):
        raise ConverterError(
            f"{spelt}: the name {name!r} must be lower case letters and digits, with single "
            f"underscores between"
        )
    if not initializer.__doc__ or initializer.__doc__.startswith(f"{initializer.__name__}("):
        raise ConverterError(f"{spelt}: it has no docstring; its first line is what users see")
    if initializer.__call__ is Initializer.__call__:
        raise ConverterError(f"{spelt}: it draws nothing; define __call__")


def signature(initializer: type[Initializer]) -> str:
    """Return how it is written, with its defaults: `normal(mean=0, stddev=0.05)`."""
    given = [
        f"{a.name}={a.metavar if a.required else _spelt(a.default)}" for a in arguments(initializer)
    ]
    return f"{initializer.name}({', '.join(given)})" if given else initializer.name


def explanation(initializer: type[Initializer]) -> list[str]:
    """Return the docstring, line by line."""
    return inspect.cleandoc(initializer.__doc__ or "").splitlines()


def parse_initializer(text: str, known: Mapping[str, type[Initializer]]) -> Initializer:
    """Make an initializer of what a user wrote: `NAME`, `NAME(key=value, ...)`, or a number.

    A number is `constant` of it.

    Args:
        text: what the user wrote.
        known: the initializers by name.

    Raises:
        UsageError: it means none; the message begins with `must be`.
    """
    match = _CALL.fullmatch(text) if len(text) <= _LONGEST else None
    if match is None:
        raise UsageError(
            f"must be {Initializer.OPTION_KIND.words}, got {reprlib.repr(text)}; write NAME or "
            f"NAME(key=value, ...)"
        )
    name, inner = match["name"], match["arguments"]
    if inner is None and _NUMBER.fullmatch(name) and "constant" in known:
        name, inner = "constant", f"value={name}"
    if name not in known:
        near = did_you_mean(name, known) or "; `convert plugins` lists them"
        raise UsageError(f"must be an initializer, got {reprlib.repr(name)}{near}")
    initializer = known[name]
    given = _arguments(initializer, inner or "")
    missing = [a.name for a in arguments(initializer) if a.required and a.name not in given]
    if missing:
        raise UsageError(
            f"must be an initializer: {name} needs its {missing[0]}; write {signature(initializer)}"
        )
    try:
        return initializer(**given)
    except UsageError as error:
        raise UsageError(f"must be an initializer: {error}") from None


def _arguments(initializer: type[Initializer], text: str) -> dict[str, Any]:
    known = {a.name: a for a in arguments(initializer)}
    given: dict[str, Any] = {}
    for part in text.split(",") if text.strip() else []:
        match = _ARGUMENT.fullmatch(part)
        where = f"must be an initializer: {initializer.name}"
        if match is None:
            raise UsageError(
                f"{where} takes key=value between commas, got {reprlib.repr(part)}; write "
                f"{signature(initializer)}"
            )
        key, value = match["key"], match["value"]
        if key not in known:
            near = did_you_mean(key, known) or f"; it has {', '.join(known) or 'none'}"
            raise UsageError(f"{where} has no argument {reprlib.repr(key)}{near}")
        if key in given:
            raise UsageError(f"{where} has its {key} twice")
        given[key] = _value(known[key], value, f"{where}: {key}")
        if given[key] in (math.inf, -math.inf):
            raise UsageError(f"{where}: {key} must be finite, got {value}")
    return given


def _value(argument: Option, text: str, subject: str) -> object:
    words = argument.kind.words
    mistake = UsageError(f"{subject} must be {words}, got {reprlib.repr(text)}")
    # Python's own spellings of numbers are wider: `nan`, `1_0`, digits of other scripts.
    if words in _NUMBERS and not _NUMBER.fullmatch(text):
        raise mistake
    try:
        value = argument.kind.parse(text)
    except ValueError:
        raise mistake from None
    try:
        return argument.check(value)
    except UsageError as error:
        raise UsageError(f"{subject} {error}") from None


def _spelt(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return str(int(value))
    return str(value)
