"""The commands by name, and the parser of the command line."""

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
from .option_groups import group_options, make_command

NAMES = [
    "demo", "serve", "generate", "verify", "trace", "train", "judge", "replay", "plan", "doctor", "top", "why", "widen",
]  # fmt: skip
"""Commands in the order of the help. The command `name` is the class `Name` of `runtime/commands/name.py`."""

DESCRIPTION = """\
Runs Mixture-of-Experts models that do not fit the memory they run in, with exactly the results of the whole model.

Begin with `expertflow demo`; then `expertflow plan --model FOLDER` says what a model of yours needs, and
`expertflow generate --model FOLDER --prompt "Once upon"` runs it. `expertflow COMMAND --help` explains a command.

Exit codes: 0 done, 1 failed, 2 wrong usage or input, 130 stopped by Ctrl-C.
"""


def parse(arguments: Sequence[str]) -> Command:
    """Return the command that the arguments describe.

    Raises UsageError for a value that the configuration does not allow, SystemExit (2, with an explanation on stderr)
    for unknown options, and SystemExit (0) after help was printed.
    """
    defaults = Config.load(chosen_preset(arguments))
    subcommands = tuple(_subcommand(name, cls, defaults) for name, cls in command_classes().items())
    command: Any = Union[subcommands]  # noqa: UP007 - of a tuple made at run time
    config = (
        tyro.conf.FlagCreatePairsOff,
        tyro.conf.PositionalMetavarFromFieldName,
        tyro.conf.OmitArgPrefixes,  # headings are no part of an option's name
    )
    parsed = tyro.cli(command, prog="expertflow", description=DESCRIPTION, args=arguments, config=config)
    return parsed if isinstance(parsed, Command) else make_command(parsed)


def command_classes() -> dict[str, type[Command]]:
    """Return the commands by name."""
    folder = f"{__name__.rpartition('.command_line.')[0]}.commands"
    return {name: getattr(import_module(f"{folder}.{name}"), name.capitalize()) for name in NAMES}


def option_names() -> set[str]:
    """Return the fields of the configuration and of the commands: names in errors that users type with dashes."""
    own = {field.name for cls in command_classes().values() for field in fields(cls)}
    return (own - {"engine"}) | set(Config.__struct_fields__)  # `engine` is the configuration itself


def chosen_preset(arguments: Sequence[str]) -> str:
    """Return the preset that the arguments name. It is needed first, for the defaults of all other options."""
    chosen = DEFAULT_PRESET
    for word, following in pairwise([*arguments, ""]):
        if word == "--preset" and following:
            chosen = following
        elif word.startswith("--preset="):
            chosen = word.removeprefix("--preset=")
    return chosen


def _subcommand(name: str, cls: type[Command], defaults: Config) -> Any:
    if not issubclass(cls, EngineCommand):
        return Annotated[cls, tyro.conf.subcommand(name)]
    description = inspect.cleandoc(cls.__doc__ or "")
    return Annotated[group_options(cls, defaults), tyro.conf.subcommand(name, description=description)]
