"""The commands by name, and the parser of the command line."""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence
from dataclasses import fields
from importlib import import_module
from itertools import pairwise
from typing import Annotated, Any, Union, get_type_hints

import tyro

from ...configs.schema import Config
from ...errors import UsageError
from .base import DEFAULT_PRESET, Command, EngineCommand
from .option_groups import group_options, make_command

NAMES = [
    "demo", "serve", "generate", "chat", "batch", "verify", "trace", "train", "judge", "replay", "plan", "doctor",
    "top", "status", "drain", "reload", "why", "bundle", "keys", "cluster", "widen", "quantize", "study",
]  # fmt: skip
"""Commands in the order of the help. The command `name` is the class `Name` of `runtime/commands/name.py`, or of the
module in `OTHER_MODULES`."""
OTHER_MODULES: dict[str, str] = dict.fromkeys(("status", "drain", "reload"), "running.operation") | {
    name: f"running.{name}" for name in ("top", "why", "bundle")
}

CONFIG = (
    tyro.conf.FlagCreatePairsOff,
    tyro.conf.PositionalMetavarFromFieldName,
    tyro.conf.OmitArgPrefixes,  # headings are no part of an option's name
)
DESCRIPTION = """\
Runs Mixture-of-Experts models that do not fit the memory they run in, with exactly the results of the whole model.

Begin with `expertflow demo`; then `expertflow plan --model FOLDER` says what a model of yours needs, and
`expertflow generate --model FOLDER --prompt "Once upon"` runs it. `expertflow COMMAND --help` explains a command.

Exit codes: 0 done, 1 failed, 2 wrong usage or input, 130 stopped by Ctrl-C.
"""


def parse(arguments: Sequence[str]) -> Command:
    """Return the command that the arguments describe.

    Raises UsageError for a value that the configuration does not allow and for options of one letter, SystemExit (2,
    with an explanation on stderr) for unknown options, and SystemExit (0) after help was printed.
    """
    _refuse_letters(arguments)
    preset = chosen_preset(arguments)
    if arguments and arguments[0] in NAMES:  # the modules of the others are not imported: that takes half a second
        return make_command(_parse_one(arguments[0], arguments[1:], preset))
    return make_command(_parse_any(arguments, preset))


def command_class(name: str) -> type[Command]:
    """Return the command of this name, which is one of `NAMES`."""
    folder = f"{__name__.rpartition('.command_line.')[0]}.commands"
    return getattr(import_module(f"{folder}.{OTHER_MODULES.get(name, name)}"), name.capitalize())


def command_classes() -> dict[str, type[Command]]:
    """Return the commands by name."""
    return {name: command_class(name) for name in NAMES}


def option_names() -> set[str]:
    """Return the fields of the configuration and of the commands: names in errors that users type with dashes."""
    own = {field.name for cls in command_classes().values() for field in fields(cls)}
    return (own - {"engine"}) | set(Config.__struct_fields__)  # `engine` is the configuration itself


def flag_names() -> set[str]:
    """Return the options that take no value."""
    own = {field.name for cls in command_classes().values() for field in fields(cls) if field.type in ("bool", bool)}
    return own | {name for name, hint in get_type_hints(Config).items() if hint is bool}


def chosen_preset(arguments: Sequence[str]) -> str:
    """Return the preset that the arguments name. It is needed first, for the defaults of all other options."""
    chosen = DEFAULT_PRESET
    for word, following in pairwise([*arguments, ""]):
        if word == "--preset" and following:
            chosen = following
        elif word.startswith("--preset="):
            chosen = word.removeprefix("--preset=")
    return chosen


def _refuse_letters(arguments: Sequence[str]) -> None:
    """Raise UsageError for an option of one letter, such as vLLM's -i and -o: the parser would name a field instead."""
    for before, word in pairwise(arguments):
        if re.fullmatch(r"-[A-Za-gi-z]", word) and not before.startswith("--"):
            remedy = f"expertflow {arguments[0]} --help lists them"
            if arguments[0] == "batch":
                remedy = "Give the files without options: expertflow batch IN.jsonl OUT.jsonl"
            raise UsageError("is no option here: all have two dashes and a word", word, remedy)


def _parse_one(name: str, arguments: Sequence[str], preset: str) -> Any:
    cls = command_class(name)
    options: Any = group_options(cls, _defaults(cls, preset))
    return tyro.cli(options, prog=f"expertflow {name}", description=_description(cls), args=arguments, config=CONFIG)


def _defaults(cls: type[Command], preset: str) -> Config:
    return cls.engine_defaults(preset) if issubclass(cls, EngineCommand) else Config.load(preset)


def _parse_any(arguments: Sequence[str], preset: str) -> Any:
    subcommands = tuple(
        Annotated[group_options(cls, _defaults(cls, preset)), tyro.conf.subcommand(name, description=_description(cls))]
        for name, cls in command_classes().items()
    )
    command: Any = Union[subcommands]  # noqa: UP007 - of a tuple made at run time
    return tyro.cli(command, prog="expertflow", description=DESCRIPTION, args=arguments, config=CONFIG)


def _description(cls: type[Command]) -> str:
    return inspect.cleandoc(cls.__doc__ or "")
