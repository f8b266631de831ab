"""The options of a command about an engine as its help shows them: under headings, with their flat names."""

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


def grouped_options(kind: type[EngineCommand], defaults: Config) -> type[Any]:
    """Build the dataclass that tyro reads instead of `kind`: a field for each own option, a nested one a heading.

    `defaults` are those of the preset. `command_of` makes the command from an instance.
    """
    own = {each.name: _own_option(kind, each) for each in fields(kind) if each.name != "engine"}
    moved = {name: own.pop(name) for name in kind.generation_options}
    groups = [_heading(name, defaults, moved if name == GENERATION else {}) for name in HEADINGS]
    nested = [(group.__name__, group, field(default_factory=group)) for group in groups]
    return make_dataclass(kind.__name__, [*own.values(), *nested], namespace={"kind": kind}, frozen=True, kw_only=True)


def command_of(options: Any) -> EngineCommand:
    """Make the command that an instance of `grouped_options` describes. Raises UsageError for a refused value."""
    values = {name: value for name, value in vars(options).items() if name not in HEADINGS}
    for heading in HEADINGS:
        values |= vars(getattr(options, heading))
    engine = Config(**{name: values.pop(name) for name in Config.__struct_fields__})
    return options.kind(engine=engine, **values)


def _heading(heading: str, defaults: Config, more: dict[str, tuple[str, Any, Any]]) -> type[Any]:
    hints, texts = get_type_hints(Config, include_extras=True), _field_texts(Config)
    listed = [
        (name, Annotated[hints[name], tyro.conf.arg(help=texts[name])], field(default=getattr(defaults, name)))
        for name in HEADINGS[heading]
    ]
    return make_dataclass(heading, [*more.values(), *listed], frozen=True, kw_only=True)


def _own_option(kind: type[EngineCommand], option: Field[Any]) -> tuple[str, Any, Any]:
    hint = get_type_hints(kind, include_extras=True)[option.name]
    described = Annotated[hint, tyro.conf.arg(help=_field_texts(kind)[option.name])]
    return option.name, described, _default(option)


def _default(option: Field[Any]) -> Any:
    """Return the field's default; one without has to be given."""
    if option.default_factory is not MISSING:
        return field(default_factory=option.default_factory)
    return field(default=tyro.MISSING if option.default is MISSING else option.default)


@cache
def _field_texts(kind: type[Any]) -> dict[str, str]:
    """Return the docstring below each field of a class and its bases, on one line."""
    texts: dict[str, str] = {}
    for cls in reversed(kind.__mro__):
        if cls.__module__.startswith(__name__.partition(".")[0] + "."):
            texts |= _texts_in(textwrap.dedent(inspect.getsource(cls)))
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
