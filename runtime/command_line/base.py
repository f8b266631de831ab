"""What all commands share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar

from ...configs.checks import check_numbers
from ...configs.schema import Config

DEFAULT_PRESET = "cpu-disk"
DONE, FAILED, WRONG_USAGE = 0, 1, 2
"""Exit codes."""


@dataclass(frozen=True, kw_only=True)
class Command(ABC):
    """A subcommand: its docstring and those of its fields are its help."""

    debug: bool = False
    """Show the traceback when something goes wrong."""

    def __post_init__(self) -> None:
        check_numbers(self)

    @abstractmethod
    def run(self) -> int:
        """Do it and return the exit code; raises ExpertFlowError with what was wrong."""


@dataclass(frozen=True, kw_only=True)
class EngineCommand(Command):
    """A command about an engine: it takes every option of `Config`, each on top of a preset."""

    generation_options: ClassVar[tuple[str, ...]] = ()
    """Own options that help shows under the heading Generation."""

    preset: str = DEFAULT_PRESET
    """What the options of the engine start from: cpu-disk, cpu-host, cuda, a baseline (cache-moe, se-moe, pregated-moe,
    moe-infinity, on-demand, plec), or a .toml file of yours."""
    engine: Config = field(default_factory=Config)
