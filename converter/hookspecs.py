"""The hooks of a plugin: the plugin author's reference.

A plugin brings strategies, initializers, or both. It is an installed package with an entry point
in the group `converter`, or a single file that is named on the command line. Two files make one.
`converter_double.py`:

    \"\"\"Multiplies float variables.\"\"\"

    from __future__ import annotations

    from collections.abc import Iterable
    from dataclasses import dataclass
    from typing import ClassVar

    from converter import Strategy, Variable, hookimpl, option


    @dataclass(frozen=True)
    class Double(Strategy):
        \"\"\"Multiply every float variable by a factor.\"\"\"

        name: ClassVar[str] = "double"
        factor: float = option(2.0, help="what to multiply by")

        def convert(self, variable: Variable) -> Iterable[Variable]:
            if variable.dtype.is_float:
                variable = variable.map(lambda values: values * values.dtype.type(self.factor))
            yield variable


    @hookimpl
    def converter_strategies() -> Iterable[type[Strategy]]:
        yield Double

and `pyproject.toml`:

    [project]
    name = "ckpt-converter-double"
    version = "1.0"
    dependencies = ["ckpt-converter"]

    [project.entry-points.converter]
    double = "converter_double"

After `pip install .`, `convert plugins` lists it and
`convert ckpt model.ckpt --plugin double --double-factor 3 -o out/` uses it. Without a package,
`--plugin ./converter_double.py` does the same.

The name of the entry point is the name of the plugin: messages use it, and
`CONVERTER_DISABLED_PLUGINS=double,other` leaves plugins out by it. A plugin that cannot be loaded
costs one line that names it, and the rest works. Don't import TensorFlow when the module loads.

Hooks return data; they are called once, when plugins are loaded, in no promised order. Hooks are
only ever added here, and only get new arguments, which pluggy lets an implementation leave out.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from converter.initializer import Initializer
    from converter.strategy import Strategy

PROJECT = "converter"

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def converter_strategies() -> Iterable[type[Strategy]]:
    """Give the strategies of this plugin: classes, not instances.

    Called once. Every strategy is a frozen dataclass with a `name` that no other plugin uses:
    two of one name are an error that names both plugins. Give none (an empty list) where the
    plugin finds that it cannot work here, for example because a library is missing.

    Example:
        @hookimpl
        def converter_strategies() -> Iterable[type[Strategy]]:
            return [Double, Half]
    """
    return ()


@hookspec
def converter_initializers() -> Iterable[type[Initializer]]:
    """Give the initializers of this plugin: classes, not instances.

    Called once. Every initializer is a frozen dataclass with a `name` that neither a built-in one
    nor another plugin uses: two of one name are an error that names both. An instance is called
    with `(rng, shape, fan_in, fan_out, old, template)` for each block that is drawn, and returns
    an array of that shape; `converter.Initializer` tells the rest.

    Example:
        @dataclass(frozen=True)
        class Sparse(Initializer):
            \"\"\"Zeros, but for some entries that are normal.\"\"\"

            name: ClassVar[str] = "sparse"
            share: float = option(0.1, help="how many entries are not zero")

            def __call__(self, rng, shape, fan_in, fan_out, old, template):
                return rng.standard_normal(shape) * (rng.random(shape) < self.share)


        @hookimpl
        def converter_initializers() -> Iterable[type[Initializer]]:
            return [Sparse]
    """
    return ()
