"""What the commands share that run prompts: where these come from, checked before an engine starts for nothing."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from ...errors import UsageError
from ..command_line.base import EngineCommand
from ..prompt_sources.prompt_lines import PromptLine, read_prompt_lines, with_images
from ..prompt_sources.workloads import Format


@dataclass(frozen=True, kw_only=True)
class PromptCommand(EngineCommand):
    """A command that runs prompts of texts or token ids."""

    prompt: Annotated[tyro.conf.UseAppendAction[list[str]], tyro.conf.arg(metavar="TEXT")] = field(default_factory=list)
    """A prompt; repeat the option for more."""
    prompts: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """A UTF-8 file with a prompt a line; - reads stdin."""
    format: Format = "lines"
    """What FILE holds: a prompt a line, or records of a published data set (JSON lines or an array), put into prompts
    by its template (docs/workloads.md)."""
    ids: bool = False
    """Prompts are token ids (5 9 11), not text."""


@dataclass(frozen=True, kw_only=True)
class ImagePromptCommand(PromptCommand):
    """One whose prompts may have images, and may be given without an option."""

    file: Annotated[tyro.conf.Positional[Path | None], tyro.conf.arg(metavar="[FILE]")] = None
    """Prompts to run: another way to give the file of prompts."""
    image: Annotated[tyro.conf.UseAppendAction[list[Path]], tyro.conf.arg(metavar="FILE")] = field(default_factory=list)
    """An image for the prompt of a vision-language model; repeat the option for more."""

    def read_prompts(self) -> list[PromptLine]:
        """Raises UsageError for what cannot be used; images are not looked into."""
        lines = read_prompt_lines(self.prompt, self.prompt_file, self.ids, self.format)
        return with_images(lines, self.image)

    @property
    def prompt_file(self) -> Path | None:
        if self.file and self.prompts:
            raise UsageError(f"and {self.file} are both given", "--prompts", "Give one of them")
        return self.file or self.prompts
