"""`expertflow verify`: checks that a model out of core gives exactly what it gives with every expert resident."""

from __future__ import annotations

import random
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import msgspec
from msgspec import Meta

from ...errors import UsageError
from ..client import Client
from ..client.options import Prompt
from ..client.processor import check_images_taken
from ..command_line.base import DONE, FAILED
from ..engine.starting import engine_remarks, running_engine
from ..monitor.request_progress import show_batch
from ..monitor.tables import result_console
from ..prompt_sources.prompt_lines import refuse_impossible
from ..verify.subprocess import show_checks
from .common.prompt_commands import ImagePromptCommand

MAX_RANDOM_PROMPT = 24


@dataclass(frozen=True, kw_only=True)
class Verify(ImagePromptCommand):
    """Run prompts, then compare with the same batches with every expert resident (bit by bit), and with transformers.

    It needs memory for the whole model in float32 twice, and with --device once more there: bits are compared on the
    same device. Without prompts, random token ids are run.
    """

    option_groups: ClassVar = {"Prompt": ("count",), "Sampling": ("max_new_tokens",)}
    count: Annotated[int, Meta(ge=1, le=10**6)] = 12
    """Number of random prompts, if none is given."""
    max_new_tokens: Annotated[int, Meta(ge=1)] = 32
    """Tokens for each prompt."""

    def run(self) -> int:
        prompts = self._read_given()
        console = result_console()
        with tempfile.TemporaryDirectory(prefix="verify-expertflow-") as folder:
            config = msgspec.structs.replace(self.engine, record=folder)
            with running_engine(config) as engine, Client(engine.address) as client:
                batch = client.submit(prompts or self._draw(client.model.vocabulary), self.max_new_tokens)
                show_batch(client, batch, "verify")
                batch.results()
                remarks = engine_remarks(engine)
            for remark in remarks:
                console.print(remark, soft_wrap=True)
            holds = show_checks(Path(folder), config, console)
        return DONE if holds else FAILED

    def _read_given(self) -> list[Prompt]:
        """Return the given prompts, empty if random ones are to run. Raises UsageError before an engine starts."""
        if self.prompt or self.prompt_file:
            lines = self.read_prompts()
            refuse_impossible(lines, self.engine.model)
            if self.image:
                check_images_taken(self.engine.model, self.engine.revision)
            return [line.prompt for line in lines]
        for option, given in {"image": self.image, "ids": self.ids, "format": self.format != "lines"}.items():
            if given:
                raise UsageError("is for a prompt, and none is given", option, 'Give --prompts FILE or --prompt "TEXT"')
        return []

    def _draw(self, vocabulary: int) -> list[Prompt]:
        rng = random.Random(0)
        lengths = [rng.randint(1, MAX_RANDOM_PROMPT) for _ in range(self.count)]
        return [[rng.randrange(vocabulary) for _ in range(length)] for length in lengths]
