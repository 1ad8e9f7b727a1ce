"""Strategy: what a plugin provides and `--plugin` names. Its fields are its options."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, get_type_hints

from converter.errors import ConverterError, UsageError, did_you_mean
from converter.initializer import Initializer
from converter.options import Option, make_option, option

if TYPE_CHECKING:
    from converter.checkpoint import Checkpoint
    from converter.resize.exactness import Resizes
    from converter.variable import Variable

__all__ = ["Beside", "Option", "Strategy", "build", "option", "options", "summary", "values_of"]

S = TypeVar("S", bound="Strategy")


@dataclass(frozen=True)
class Beside:
    """What goes along with the variables of an output.

    Attributes:
        metadata: texts for the metadata of safetensors. `format` says whose names and layouts the
            variables have: `pt` those of PyTorch.
        files: JSON files for a folder of safetensors, by name: `config.json`.
    """

    metadata: Mapping[str, str] = dataclasses.field(default_factory=dict)
    files: Mapping[str, bytes] = dataclasses.field(default_factory=dict)


class Strategy:
    """Maps the variables of a checkpoint to variables: the result is what will be written.

    A strategy is a frozen dataclass whose fields are its options, with a docstring whose first
    line is shown in the list of plugins:

        @dataclass(frozen=True)
        class Double(Strategy):
            \"\"\"Multiply every float variable by a factor.\"\"\"

            name: ClassVar[str] = "double"
            factor: float = option(2.0, help="what to multiply by")

            def convert(self, variable: Variable) -> Iterable[Variable]:
                if variable.dtype.is_float:
                    variable = variable.map(lambda values: values * values.dtype.type(self.factor))
                yield variable

    That declaration gives the constructor `Double(factor=3.0)`, the flag `--double-factor 3`, the
    key `factor = 3.0` of a recipe's step, and its checks. A field named like the strategy is the
    flag `--double`, which also chooses the strategy. Fields can be `str`, `int`, `float`, `bool`,
    `Path`, `Literal["a", "b"]`, `Initializer`, `tuple[str, ...]` and `tuple[Path, ...]`
    (repeatable), `tuple[int, ...]` (sizes), a `Mapping` from `str` (a pattern) to one of these
    (repeatable `PATTERN=VALUE`), and `None` beside any.

    In Python an initializer or a path can be given as its text, too. Rules that need more than one
    field belong in `__post_init__`, which calls `super().__post_init__()` and raises UsageError.

    Nothing may be read before the values of the result are asked for: a plan is free. What can
    be known from names, shapes and dtypes is refused with PlanError by `apply` or `convert`,
    never while values load. `converter.testing.check_strategy` tries all this.

    Attributes:
        name: what `--plugin` calls it: lower case letters, digits and single hyphens.
    """

    name: ClassVar[str]

    def __post_init__(self) -> None:
        """Read what options hold in the spelling of a recipe: texts of initializers and paths.

        Raises:
            UsageError: the value of an option is of another type.
        """
        for option_ in _options_of(type(self)):  # type: ignore[arg-type]  # mypy knows classes as such
            value = getattr(self, option_.name)
            if value is option_.default or value == option_.default:
                continue
            try:
                checked = option_.check(_plain_numbers(value), classes=_built_in(option_))
            except UsageError as error:
                raise UsageError(f"{self.name}: {option_.name} {error}") from None
            object.__setattr__(self, option_.name, checked)

    def apply(self, checkpoint: Checkpoint) -> Iterable[Variable]:
        """Give the variables of the result, in the order in which they are to be written.

        Override this instead of `convert` where one variable of the result depends on several:
        merging, splitting by neighbours, averaging. `checkpoint` is what the previous strategy
        gave; it maps names to variables.
        """
        for variable in checkpoint.values():
            yield from self.convert(variable)

    def convert(self, variable: Variable) -> Iterable[Variable]:
        """Give what becomes of one variable: none, one or several."""
        yield variable

    def resizes(self, checkpoint: Checkpoint) -> Resizes | None:
        """Say which widths change when this is applied to `checkpoint`; a `Resizer` knows some."""
        return None

    def notes(self, checkpoint: Checkpoint) -> Iterable[str]:
        """Say what a user should know of before this is applied to `checkpoint`.

        One line each, shown with the plan. What is wrong is no note: refuse it.
        """
        return ()

    def prepare(self, checkpoint: Checkpoint) -> None:
        """Find out what the values of the result of `checkpoint` follow from, if that takes long.

        This is called once before values are written, so that it is not taken for the time of
        writing. Values that are asked for without it are the same.
        """

    def findings(self, checkpoint: Checkpoint) -> Iterable[str]:
        """Say what was found out while the values of the result of `checkpoint` were written.

        One line each, shown with what was written: what notes cannot know, as a plan reads nothing.
        """
        return ()

    def multiples(self, checkpoint: Checkpoint) -> Mapping[str, float]:
        """Say by what tensors are multiplied when this is applied to `checkpoint`.

        By the names of their nodes in the graph; what is not named is promised nothing. A proof
        compares outputs with these multiples of what they were.
        """
        return {}

    def beside(self, checkpoint: Checkpoint) -> Beside | None:
        """Give what goes along with the variables when this is applied to `checkpoint`."""
        return None


def options(strategy: type[Strategy]) -> tuple[Option, ...]:
    """Return the options of a strategy in the order of its fields.

    Raises:
        ConverterError: the class is not declared as a strategy must be.
    """
    spelt = strategy.__qualname__
    _check_class(strategy)
    try:
        hints = get_type_hints(strategy)
    except (NameError, TypeError, AttributeError) as error:
        raise ConverterError(
            f"{spelt}: the type of a field cannot be resolved ({error}); import it outside "
            f"`if TYPE_CHECKING`"
        ) from None
    found = []
    for field in _fields(strategy):
        if field.name in _TAKEN:
            raise ConverterError(
                f"{spelt}.{field.name}: an option cannot have this name; "
                + (
                    f"declare it as `name: ClassVar[str] = {field.default!r}`"
                    if field.name == "name"
                    else "rename the field"
                )
            )
        if field.init:
            found.append(make_option(field, hints[field.name], strategy.name, prefix=f"{spelt}."))
    return tuple(found)


@functools.cache
def _options_of(strategy: type[Strategy]) -> tuple[Option, ...]:
    """Return the options of a strategy; none where the class is declared otherwise.

    The registry tells that; who makes an object of a class does not have to register it.
    """
    try:
        return options(strategy)
    except ConverterError:
        return ()


def _built_in(option_: Option) -> Mapping[str, type[Initializer]] | None:
    """Return the initializers that a text can name; None for an option that takes none."""
    if option_.kind.read is None:
        return None
    # Imported where they are used: a command is to start at once.
    from converter.initializers import BUILT_IN

    return BUILT_IN


def _plain_numbers(value: object) -> object:
    """Return a value with Python's own numbers in the place of numpy's."""
    if isinstance(value, Mapping):
        return {key: _plain_numbers(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(map(_plain_numbers, value))
    # mypy does not know that a number of numpy's has `item`, as numpy is not imported here.
    return value.item() if getattr(value, "shape", None) == () else value  # type: ignore[attr-defined]


# What a field would hide, and the key that names the plugin of a recipe's step.
_TAKEN = {*(name for name in vars(Strategy) if name[0] != "_"), "name", "plugin"}


def _fields(strategy: type[Strategy] | Strategy) -> tuple[dataclasses.Field[Any], ...]:
    return dataclasses.fields(strategy)  # type: ignore[arg-type]  # checked by _check_class


def _check_class(strategy: type[Strategy]) -> None:
    spelt = strategy.__qualname__
    parameters = vars(strategy).get("__dataclass_params__")
    if parameters is None or not parameters.frozen:
        raise ConverterError(
            f"{spelt}: a strategy is a frozen dataclass; decorate it with @dataclass(frozen=True)"
        )
    if missing := sorted(getattr(strategy, "__abstractmethods__", ())):
        raise ConverterError(f"{spelt}: it has no {missing[0]}; define it")
    name = getattr(strategy, "name", None)
    if not isinstance(name, str):
        raise ConverterError(f'{spelt}: it has no name; add `name: ClassVar[str] = "..."`')
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name):
        raise ConverterError(
            f"{spelt}: the name {name!r} must be lower case letters and digits, with single "
            f"hyphens between"
        )
    # dataclass writes a docstring where there is none.
    if not strategy.__doc__ or strategy.__doc__.startswith(f"{strategy.__name__}("):
        raise ConverterError(f"{spelt}: it has no docstring; its first line is what users see")


def summary(strategy: type[Strategy]) -> str:
    """Return the first line of the docstring, without its full stop."""
    return inspect.cleandoc(strategy.__doc__ or "").partition("\n")[0].removesuffix(".")


def build(
    strategy: type[S],
    values: Mapping[str, object],
    where: str,
    directory: Path = Path(),
    initializers: Mapping[str, type[Initializer]] | None = None,
) -> S:
    """Make a strategy of values by option name, as a recipe or the command line has them.

    Args:
        strategy: the class.
        values: the given options, raw (lists, tables, texts) or as `Option.parse` returns them.
        where: the subject of every error: `recipe.toml: step 1 (pad)`, or `pad`.
        directory: what relative paths given as text start from. A Path is taken as it is.
        initializers: those that a text can name; None for the built-in ones.

    Raises:
        UsageError: an option is unknown, missing, or of another type; the strategy refuses them.
    """
    known = {option.name: option for option in options(strategy)}
    checked = {}
    for key, value in values.items():
        if key not in known:
            near = did_you_mean(key, known) or f"; it has {', '.join(known) or 'no options'}"
            raise UsageError(f"{where}: {strategy.name} has no option {key!r}{near}")
        try:
            classes = _built_in(known[key]) if initializers is None else initializers
            checked[key] = known[key].check(value, directory, classes)
        except UsageError as error:
            raise UsageError(f"{where}: {key} {error}") from None
    for option_ in known.values():
        if option_.required and option_.name not in checked:
            raise UsageError(
                f"{where}: {option_.name} is missing; give {option_.flag} {option_.metavar}, or "
                f"{option_.name} in a recipe"
            )
    try:
        return strategy(**checked)
    except ConverterError as error:
        raise type(error)(f"{where}: {error}") from None


def values_of(strategy: Strategy) -> dict[str, object]:
    """Return the options that differ from their defaults, as a recipe would hold them.

    `build(type(strategy), values_of(strategy), where)` is the same strategy again.
    """
    given = {}
    for option_ in options(type(strategy)):
        value = getattr(strategy, option_.name)
        if value != option_.default:
            given[option_.name] = _plain(value)
    return given


def _plain(value: object) -> object:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, (Path, Initializer)) else value
