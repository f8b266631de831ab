"""`expertflow generate`: text from prompts, with an engine of its own or a running one."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import msgspec

from ...configs.schema import Config
from ...errors import UsageError
from ...workers.checkpoint.resolve import local_folder
from ..client import Client
from ..client.options import OptionNames, Prompt, read_options
from ..client.processor import check_images_taken
from ..client.watching import snapshot_after
from ..engine.preflight import impossible_prompts
from ..engine.starting import running_engine
from ..monitor.readings import EngineMeters, Reading
from ..monitor.tables import PREDICTION_OFF, share_text
from ..prompt_sources.prompt_lines import STDIN, PromptLine, stdin_is_piped
from ..text.chat import require_chat_template
from .batch_progress import show_queue
from .printing import Printer, make_printer
from .prompt_commands import ImagePromptCommand

BARE = "note: this model has a chat template, and prompts go in as they are; --chat puts them into it\n"


@dataclass(frozen=True, kw_only=True)
class Generate(ImagePromptCommand):
    """Continue one prompt or many: a single text streams to stdout, several are printed in the order of the prompts."""

    option_groups: ClassVar = {
        "Prompt": ("chat",),
        "Sampling": ("max_new_tokens", "temperature", "top_k", "top_p", "seed", "deadline_s", "first_token"),
    }
    max_new_tokens: int = 64
    """End after so many tokens, if the model does not end before."""
    temperature: float = 0.0
    """0 takes the likeliest token; higher is more random."""
    top_k: int = 0
    """Sample among the k likeliest tokens only; 0: all."""
    top_p: float = 1.0
    """Sample among the likeliest tokens that together have this probability; 1: all."""
    seed: int | None = None
    """Seed of sampling; prompt i uses seed + i. Without it a seed is drawn."""
    deadline_s: float | None = None
    """End after so many seconds with the tokens so far."""
    first_token: int | None = None
    """Outputs begin with this token id: the target language of a translator such as NLLB-MoE."""
    chat: bool = False
    """Put each text, as a user's message, into the chat template of the model; without it texts go in as they are."""
    json: bool = False
    """One line of JSON for each prompt instead of text."""
    address: str = ""
    """Use the engine at this address; options of the engine but batch_invariant do not apply then."""

    @property
    def prompt_file(self) -> Path | None:
        """Return the file of prompts, which is stdin if nothing else is given and something is piped in."""
        given = super().prompt_file
        return STDIN if given is None and not self.prompt and stdin_is_piped() else given

    def run(self) -> int:
        lines = self.read_prompts()
        self._check_options()
        if not self.address and (errors := impossible_prompts([line.prompt for line in lines], self.engine.model)):
            printer = make_printer(lines, self.engine.model, self.json)
            printer.take_results([*errors])
            return printer.exit_code
        with self._client() as client, closing(make_printer(lines, client.model.model, self.json)) as printer:
            self._run(client, printer)
        return printer.exit_code

    def _run(self, client: Client, printer: Printer) -> None:
        meters, started_ns = EngineMeters(snapshot_after(client.stats, 0)), time.monotonic_ns()
        self._generate(client, printer)
        ended_ns = time.monotonic_ns()
        if printer.engine_failed:  # an error was printed; there are no counters
            return
        meters.add(snapshot_after(client.stats, ended_ns))
        printer.summarise(_summary(printer, meters.readings((ended_ns - started_ns) / 1e9)))

    def _check_options(self) -> None:
        """Check the options before an engine starts for nothing. Raises RequestError or UsageError."""
        read_options(self.max_new_tokens, **self._sampling())
        if self.address and _engine_options(self.engine) != _engine_options(Config.load(self.preset)):
            raise UsageError(
                "options of the engine do not change an engine that runs already",
                "--address",
                "Leave out --address to start an engine with these options, or leave them out",
            )
        if self.chat and (self.image or self.ids):
            other = "image" if self.image else "ids"
            raise UsageError(f"is for prompts of text alone, not with --{other}", "--chat", "Leave one of them out")
        if self.chat and not self.address and (folder := local_folder(self.engine.model)):
            require_chat_template(folder)
        if self.image and not self.address:
            check_images_taken(self.engine.model, self.engine.revision)

    def _sampling(self) -> OptionNames:
        return {
            "temperature": self.temperature,
            "top_k": self.top_k,
            "top_p": self.top_p,
            "seed": self.seed,
            "deadline_s": self.deadline_s,
            "first_token": self.first_token,
            "batch_invariant": self.engine.batch_invariant or None,
        }

    @contextmanager
    def _client(self) -> Iterator[Client]:
        if self.address:
            with Client(self.address) as client:
                yield client
        else:
            with running_engine(self.engine) as engine, Client(engine.address) as client:
                yield client

    def _prompts(self, client: Client, lines: list[PromptLine]) -> list[Prompt]:
        texts = [line.prompt for line in lines if isinstance(line.prompt, str)]
        if self.chat:
            return [client.chat_ids(line.prompt) if isinstance(line.prompt, str) else line.prompt for line in lines]
        if texts and client.has_chat_template:
            sys.stderr.write(BARE)
        return [line.prompt for line in lines]

    def _generate(self, client: Client, printer: Printer) -> None:
        prompts = self._prompts(client, printer.lines)
        batch = client.submit(prompts, self.max_new_tokens, **self._sampling())
        printer.start()
        show_queue(client, batch, "generate", printer.show_progress)
        for event in batch:
            printer.take(event)
        printer.take_results(batch.results(return_errors=True))


def _engine_options(config: Config) -> Config:
    """Return the configuration without what a request can say for itself."""
    return msgspec.structs.replace(config, batch_invariant=False)


def _summary(printer: Printer, readings: list[Reading]) -> str:
    """Return the last line on stderr: tokens, time and experts of all engines together."""
    seconds, experts = readings[0].seconds, [reading.experts for reading in readings]
    hits, misses = sum(counts.hits for counts in experts), sum(counts.misses for counts in experts)
    hit_rate = share_text(hits / (hits + misses) if hits + misses else None)
    loads, paused = sum(counts.loads for counts in experts), any(_paused(reading) for reading in readings)
    count = len(printer.lines)
    return (
        f"{count:,} {'prompt' if count == 1 else 'prompts'}, {printer.tokens:,} tokens in {seconds:.1f} s: "
        f"{printer.tokens / seconds:.1f} tokens/s; experts found in memory: {hit_rate}, loaded: {loads:,}"
        + (f"; prediction is {PREDICTION_OFF}" if paused else "")
    )


def _paused(reading: Reading) -> bool:
    return reading.decoding is not None and not reading.decoding.prediction
