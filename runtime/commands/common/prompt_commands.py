"""Base classes of the commands that run prompts. Prompts are read before an engine starts for nothing."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, ClassVar

import tyro

from ....errors import UsageError
from ...command_line.base import EngineCommand
from ...prompt_sources.prompt_lines import PromptLine, read_prompt_lines, with_images
from ...prompt_sources.workloads import Format


@dataclass(frozen=True, kw_only=True)
class PromptCommand(EngineCommand):
    """A command that runs prompts: texts or token ids."""

    option_groups: ClassVar = {"Prompt": ("prompt", "prompts", "format", "ids")}
    prompt: Annotated[tyro.conf.UseAppendAction[list[str]], tyro.conf.arg(metavar="TEXT")] = field(default_factory=list)
    """A prompt; repeat the option for more."""
    prompts: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """A UTF-8 file with a prompt a line; - reads stdin."""
    format: Format = "lines"
    """Format of FILE: a prompt a line, or records of a published data set (JSON lines or an array) that become prompts
    by its template (docs/workloads.md)."""
    ids: bool = False
    """Prompts are token ids (5 9 11), not text."""


@dataclass(frozen=True, kw_only=True)
class ImagePromptCommand(PromptCommand):
    """A command whose prompts may have images; the file of prompts may be given without an option."""

    option_groups: ClassVar = {"Prompt": ("image",)}
    file: Annotated[tyro.conf.Positional[Path | None], tyro.conf.arg(metavar="[FILE]")] = None
    """File of prompts: another way to give it."""
    image: Annotated[tyro.conf.UseAppendAction[list[Path]], tyro.conf.arg(metavar="FILE")] = field(default_factory=list)
    """An image for the prompt of a vision-language model; repeat the option for more."""

    def read_prompts(self) -> list[PromptLine]:
        """Return the prompts. Raises UsageError for what cannot be used; images are not opened."""
        lines = read_prompt_lines(self.prompt, self.prompt_file, self.ids, self.format)
        return with_images(lines, self.image)

    @property
    def prompt_file(self) -> Path | None:
        """Return the file of prompts. Raises UsageError if two are given."""
        if self.file and self.prompts:
            raise UsageError(f"and {self.file} are both given", "--prompts", "Give one of them")
        return self.file or self.prompts
