"""Base classes of the commands, and their exit codes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar

from msgspec import structs

from ...configs.checks import check_numbers
from ...configs.schema import AUTO, Config

DEFAULT_PRESET = "cpu-disk"
DONE, FAILED, WRONG_USAGE = 0, 1, 2
"""Exit codes."""


@dataclass(frozen=True, kw_only=True)
class Command(ABC):
    """A subcommand. Its docstring and those of its fields are the texts of its help."""

    option_groups: ClassVar[dict[str, tuple[str, ...]]] = {}
    """Heading -> options of the command that help shows under it, in this order; the groups of base classes are added
    to. An engine command may use the headings of the configuration, too. Options that no group names stand first."""

    debug: bool = False
    """Show the traceback when something goes wrong."""

    def __post_init__(self) -> None:
        check_numbers(self)

    @abstractmethod
    def run(self) -> int:
        """Run the command and return its exit code. Raises ExpertFlowError for what went wrong."""


@dataclass(frozen=True, kw_only=True)
class EngineCommand(Command):
    """A command about an engine: takes every option of `Config`, with defaults from a preset."""

    chooses_memory: ClassVar[bool] = False
    """Without the option and without a preset, `expert_memory` is auto."""
    preset: str = DEFAULT_PRESET
    """Preset that gives the engine's options their defaults: cpu-disk, cpu-host, cuda, a baseline (cache-moe, se-moe,
    pregated-moe, moe-infinity, on-demand, plec), or a .toml file of yours."""
    engine: Config = field(default_factory=Config)

    @classmethod
    def engine_defaults(cls, preset: str) -> Config:
        """Return the configuration of a preset, with what the command chooses by itself. Raises UsageError."""
        config = Config.load(preset)
        chooses = cls.chooses_memory and preset == DEFAULT_PRESET
        return structs.replace(config, expert_memory=AUTO) if chooses else config
