"""`expertflow generate`: text from prompts, with an engine of its own or a running one."""

from __future__ import annotations

import sys
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import tyro

from ...errors import UsageError
from ...workers.checkpoint.resolve import local_folder
from ..client import Client
from ..client.options import OptionNames, Prompt, read_options
from ..client.processor import check_images_taken
from ..client.watching import snapshot_after
from ..engine.preflight import impossible_prompts
from ..monitor.readings import EngineMeters, Reading
from ..monitor.request_progress import show_queue
from ..monitor.tables import PREDICTION_OFF, share_text
from ..prompt_sources.prompt_lines import STDIN, PromptLine, stdin_is_piped
from ..text.chat import require_chat_template
from .common.engine_client import open_client, refuse_engine_options
from .common.printing import Printer, make_printer
from .common.prompt_commands import ImagePromptCommand
from .common.sampling_options import SamplingCommand

BARE = "note: this model has a chat template, and prompts go in as they are; --chat puts them into it\n"


@dataclass(frozen=True, kw_only=True)
class Generate(SamplingCommand, ImagePromptCommand):
    """Continue one prompt or many: a single text streams to stdout, several are printed in the order of the prompts."""

    chooses_memory: ClassVar = True
    option_groups: ClassVar = {
        "Prompt": ("chat", "system"),
        "Sampling": ("n", "logprobs", "prompt_logprobs"),
    }
    n: int = 1
    """Outputs of each prompt, each with a seed of its own."""
    logprobs: int | None = None
    """Log-probabilities of the output's tokens, and of so many likeliest ones beside each, in lines of JSON."""
    prompt_logprobs: int | None = None
    """The same for the tokens of the prompt."""
    chat: bool = False
    """Put each text, as a user's message, into the chat template of the model; without it texts go in as they are."""
    system: str = ""
    """System message of every prompt in the chat template."""
    json: bool = False
    """One line of JSON for each prompt instead of text."""
    address: str = ""
    """Use the engine at this address; options of the engine but batch_invariant do not apply then."""
    keys: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None
    """Folder of your keys, for an address over TCP (tcp://HOST:PORT); there --model may name a folder with the model's
    tokenizer."""

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
        outputs = _samples(lines, self.n)
        with (
            open_client(self.engine, self.address, self.keys) as client,
            closing(make_printer(outputs, client.model.model, self.json)) as printer,
        ):
            self._run(client, printer, lines)
        return printer.exit_code

    def _run(self, client: Client, printer: Printer, lines: list[PromptLine]) -> None:
        meters, started_ns = EngineMeters(snapshot_after(client.stats, 0)), time.monotonic_ns()
        self._generate(client, printer, lines)
        ended_ns = time.monotonic_ns()
        if printer.engine_failed:  # an error was printed; there are no counters
            return
        meters.add(snapshot_after(client.stats, ended_ns))
        printer.summarise(_summary(printer, len(lines), meters.readings((ended_ns - started_ns) / 1e9)))

    def _check_options(self) -> None:
        """Check the options before an engine starts for nothing. Raises RequestError or UsageError."""
        read_options(self.max_new_tokens, **self._options())
        if self.address:
            refuse_engine_options(self.engine, self.preset, self.address)
        if (self.logprobs, self.prompt_logprobs) != (None, None) and not self.json:
            option = "--prompt-logprobs" if self.logprobs is None else "--logprobs"
            raise UsageError("are in lines of JSON alone", option, "Give --json, too")
        self._check_chat()
        if self.image and not self.address:
            check_images_taken(self.engine.model, self.engine.revision)

    def _check_chat(self) -> None:
        if self.system and not self.chat:
            raise UsageError("is for the chat template", "--system", "Give --chat, too")
        if self.chat and (self.image or self.ids):
            other = "image" if self.image else "ids"
            raise UsageError(f"is for prompts of text alone, not with --{other}", "--chat", "Leave one of them out")
        if self.chat and not self.address and (folder := local_folder(self.engine.model)):
            require_chat_template(folder)

    def _options(self) -> OptionNames:
        own: OptionNames = {
            "n": self.n,
            "logprobs": self.logprobs,
            "prompt_logprobs": self.prompt_logprobs,
            "batch_invariant": self.engine.batch_invariant or None,
        }
        return self.sampling() | own

    def _prompts(self, client: Client, lines: list[PromptLine]) -> list[Prompt]:
        texts = [line.prompt for line in lines if isinstance(line.prompt, str)]
        if self.chat:
            return [client.chat_ids(self._messages(line.prompt)) for line in lines if isinstance(line.prompt, str)]
        if texts and client.is_chat_model:
            sys.stderr.write(BARE)
        return [line.prompt for line in lines]

    def _messages(self, text: str) -> list[dict[str, str]]:
        system = [{"role": "system", "content": self.system}] if self.system else []
        return [*system, {"role": "user", "content": text}]

    def _generate(self, client: Client, printer: Printer, lines: list[PromptLine]) -> None:
        prompts = self._prompts(client, lines)
        batch = client.submit(prompts, self.max_new_tokens, **self._options())
        printer.start()
        show_queue(client, batch, "generate", printer.show_progress)
        for event in batch:
            printer.take(event)
        printer.take_results(batch.results(return_errors=True))


def _samples(lines: list[PromptLine], count: int) -> list[PromptLine]:
    """Return a line for each output: each prompt `count` times."""
    if count == 1:
        return lines
    return [line._replace(where=f"{line.where}, sample {i}") for line in lines for i in range(1, count + 1)]


def _summary(printer: Printer, count: int, readings: list[Reading]) -> str:
    """Return the last line on stderr: tokens, time and experts of all engines together."""
    seconds, experts = readings[0].seconds, [reading.experts for reading in readings]
    hits, misses = sum(counts.hits for counts in experts), sum(counts.misses for counts in experts)
    hit_rate = share_text(hits / (hits + misses) if hits + misses else None)
    loads, paused = sum(counts.loads for counts in experts), any(_paused(reading) for reading in readings)
    return (
        f"{count:,} {'prompt' if count == 1 else 'prompts'}, {printer.tokens:,} tokens in {seconds:.1f} s: "
        f"{printer.tokens / seconds:.1f} tokens/s; experts found in memory: {hit_rate}, loaded: {loads:,}"
        + (f"; prediction is {PREDICTION_OFF}" if paused else "")
    )


def _paused(reading: Reading) -> bool:
    return reading.decoding is not None and not reading.decoding.prediction
