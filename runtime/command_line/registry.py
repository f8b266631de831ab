"""From the words of a command line to a command."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import fields
from importlib import import_module
from itertools import pairwise
from typing import Annotated, Any, Union

import tyro

from ...configs.schema import Config
from .base import DEFAULT_PRESET, Command, EngineCommand
from .option_groups import command_of, grouped_options

NAMES = [
    "demo", "serve", "generate", "verify", "trace", "train", "judge", "replay", "plan", "top", "why", "widen",
]  # fmt: skip
"""In the order of the help. The command `name` is the class `Name` of the module `runtime/commands/name.py`."""

DESCRIPTION = """\
Runs Mixture-of-Experts models that do not fit the memory they run in, with exactly the results of the whole model.

Begin with `expertflow demo`; then `expertflow plan --model FOLDER` says what a model of yours needs, and
`expertflow generate --model FOLDER --prompt "Once upon"` runs it. `expertflow COMMAND --help` explains a command.

Exit codes: 0 done, 1 failed, 2 wrong usage or input, 130 stopped by Ctrl-C.
"""


def parse(arguments: Sequence[str]) -> Command:
    """The command that these words describe.

    Raises UsageError for a value the configuration does not allow, SystemExit (2, with an explanation on stderr) for
    words that are no options, and SystemExit (0) after help was asked for.
    """
    defaults = Config.load(chosen_preset(arguments))
    kinds = tuple(_subcommand(name, kind, defaults) for name, kind in command_kinds().items())
    command: Any = Union[kinds]  # noqa: UP007 - of a tuple made at run time
    config = (
        tyro.conf.FlagCreatePairsOff,
        tyro.conf.PositionalMetavarFromFieldName,
        tyro.conf.OmitArgPrefixes,  # headings are no part of an option's name
    )
    given = tyro.cli(command, prog="expertflow", description=DESCRIPTION, args=arguments, config=config)
    return given if isinstance(given, Command) else command_of(given)


def command_kinds() -> dict[str, type[Command]]:
    """The commands by name."""
    folder = f"{__name__.rpartition('.command_line.')[0]}.commands"
    return {name: getattr(import_module(f"{folder}.{name}"), name.capitalize()) for name in NAMES}


def option_names() -> set[str]:
    """Fields of the configuration and of the commands: what errors may name and a person knows with dashes."""
    own = {field.name for kind in command_kinds().values() for field in fields(kind)}
    return own | set(Config.__struct_fields__)


def chosen_preset(arguments: Sequence[str]) -> str:
    """The preset must be known first: it is what the defaults of all other options are read from."""
    chosen = DEFAULT_PRESET
    for word, following in pairwise([*arguments, ""]):
        if word == "--preset" and following:
            chosen = following
        elif word.startswith("--preset="):
            chosen = word.removeprefix("--preset=")
    return chosen


def _subcommand(name: str, kind: type[Command], defaults: Config) -> Any:
    if not issubclass(kind, EngineCommand):
        return Annotated[kind, tyro.conf.subcommand(name)]
    description = inspect.cleandoc(kind.__doc__ or "")
    return Annotated[grouped_options(kind, defaults), tyro.conf.subcommand(name, description=description)]
