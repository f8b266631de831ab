"""Help of a command about an engine: options under headings, with their flat names."""

from __future__ import annotations

import ast
import inspect
import textwrap
from dataclasses import MISSING, Field, field, fields, make_dataclass
from functools import cache
from itertools import pairwise
from typing import Annotated, Any, get_type_hints

import tyro

from ...configs.headings import HEADINGS
from ...configs.schema import Config
from .base import EngineCommand

GENERATION = "Generation"


def group_options(cls: type[EngineCommand], defaults: Config) -> type[Any]:
    """Build the dataclass that tyro reads instead of `cls`: a field for each own option, a nested class a heading.

    `defaults` are those of the preset. `make_command` makes the command from an instance.
    """
    own = {option.name: _own_option(cls, option) for option in fields(cls) if option.name != "engine"}
    moved = {name: own.pop(name) for name in cls.generation_options}
    groups = [_heading(name, defaults, moved if name == GENERATION else {}) for name in HEADINGS]
    nested = [(group.__name__, group, field(default_factory=group)) for group in groups]
    return make_dataclass(cls.__name__, [*own.values(), *nested], namespace={"command": cls}, frozen=True, kw_only=True)


def make_command(options: Any) -> EngineCommand:
    """Make the command from an instance of what `group_options` built. Raises UsageError for a refused value."""
    values = {name: value for name, value in vars(options).items() if name not in HEADINGS}
    for heading in HEADINGS:
        values |= vars(getattr(options, heading))
    engine = Config(**{name: values.pop(name) for name in Config.__struct_fields__})
    return options.command(engine=engine, **values)


def _heading(heading: str, defaults: Config, moved: dict[str, tuple[str, Any, Any]]) -> type[Any]:
    hints, texts = get_type_hints(Config, include_extras=True), _field_texts(Config)
    listed = [
        (name, Annotated[hints[name], tyro.conf.arg(help=texts[name])], field(default=getattr(defaults, name)))
        for name in HEADINGS[heading]
    ]
    return make_dataclass(heading, [*moved.values(), *listed], frozen=True, kw_only=True)


def _own_option(cls: type[EngineCommand], option: Field[Any]) -> tuple[str, Any, Any]:
    hint = get_type_hints(cls, include_extras=True)[option.name]
    described = Annotated[hint, tyro.conf.arg(help=_field_texts(cls)[option.name])]
    return option.name, described, _default(option)


def _default(option: Field[Any]) -> Any:
    """Return the field's default; an option without a default is required."""
    if option.default_factory is not MISSING:
        return field(default_factory=option.default_factory)
    return field(default=tyro.MISSING if option.default is MISSING else option.default)


@cache
def _field_texts(cls: type[Any]) -> dict[str, str]:
    """Return the docstring below each field of a class and its bases, on one line."""
    texts: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if base.__module__.startswith(__name__.partition(".")[0] + "."):
            texts |= _texts_in(textwrap.dedent(inspect.getsource(base)))
    return texts


def _texts_in(source: str) -> dict[str, str]:
    described: Any = ast.parse(source).body[0]
    return {
        before.target.id: " ".join(after.value.value.split())
        for before, after in pairwise(described.body)
        if isinstance(before, ast.AnnAssign)
        and isinstance(before.target, ast.Name)
        and isinstance(after, ast.Expr)
        and isinstance(after.value, ast.Constant)
        and isinstance(after.value.value, str)
    }
