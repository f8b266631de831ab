"""Help of a command: its options under headings, those of the configuration after its own, all with flat names."""

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
from .base import Command, EngineCommand

Option = tuple[str, Any, Any]
"""Name, type and default, as `make_dataclass` takes them."""


def group_options(cls: type[Command], defaults: Config) -> type[Any]:
    """Build the dataclass that tyro reads instead of `cls`: a field an ungrouped option, a nested class a heading.

    `defaults` are those of the preset. `make_command` makes the command from an instance.
    """
    groups = all_groups(cls)
    own = {option.name: _own_option(cls, option) for option in fields(cls) if option.name != "engine"}
    options = {heading: [own.pop(name) for name in names] for heading, names in groups.items()}
    if issubclass(cls, EngineCommand):
        configured = {heading: _configured(names, defaults) for heading, names in HEADINGS.items()}
        options = _with_configured(options, configured)
    nested = [make_dataclass(heading, listed, frozen=True, kw_only=True) for heading, listed in options.items()]
    boxes = [(group.__name__, group, field(default_factory=group)) for group in nested]
    namespace = {"command": cls, "headings": tuple(options)}
    return make_dataclass(cls.__name__, [*own.values(), *boxes], namespace=namespace, frozen=True, kw_only=True)


def make_command(options: Any) -> Command:
    """Make the command from an instance of what `group_options` built. Raises UsageError for a refused value."""
    values = {name: value for name, value in vars(options).items() if name not in options.headings}
    for heading in options.headings:
        values |= vars(getattr(options, heading))
    if issubclass(options.command, EngineCommand):
        values["engine"] = Config(**{name: values.pop(name) for name in Config.__struct_fields__})
    return options.command(**values)


def all_groups(cls: type[Command]) -> dict[str, list[str]]:
    """Return heading -> options of the command and its base classes, those of the base classes first."""
    groups: dict[str, list[str]] = {}
    for base in reversed(cls.__mro__):
        for heading, names in vars(base).get("option_groups", {}).items():
            groups.setdefault(heading, []).extend(names)
    return groups


def _with_configured(own: dict[str, list[Option]], configured: dict[str, list[Option]]) -> dict[str, list[Option]]:
    """Return the command's groups, then those of the configuration; under a heading of both, its own options first."""
    first = {heading: options for heading, options in own.items() if heading not in configured}
    return first | {heading: [*own.get(heading, []), *options] for heading, options in configured.items()}


def _configured(names: tuple[str, ...], defaults: Config) -> list[Option]:
    hints, texts = get_type_hints(Config, include_extras=True), _field_texts(Config)
    return [
        (name, Annotated[hints[name], tyro.conf.arg(help=texts[name])], field(default=getattr(defaults, name)))
        for name in names
    ]


def _own_option(cls: type[Command], option: Field[Any]) -> Option:
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
