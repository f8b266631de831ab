"""One run of a demonstration: an engine, prompts streamed through it, a stage killed on request, and the summary."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from rich.console import Console

from ...configs.schema import Config
from ...configs.sizes import format_size
from ..client import Batch, Client, Event
from ..client.watching import Watcher, snapshot_after
from ..engine.starting import EngineHandle, running_engine
from ..monitor.readings import Meter, Reading
from ..monitor.tables import expert_facts, facts_table, stage_table
from .view import Texts, TextView

SAMPLE_S = 1.0


@dataclass(frozen=True)
class RunSpec:
    """The prompts to run, and the stage to kill meanwhile (`kill`; empty: none)."""

    prompts: list[str]
    max_new_tokens: int
    kill: str = ""

    @property
    def kill_after_tokens(self) -> int:
        """Return the number of tokens after which the stage is killed: a third of all, so every text is under way."""
        return len(self.prompts) * self.max_new_tokens // 3


class Interruption:
    """Kills a stage once `after_tokens` have come, and measures the longest pause from then on."""

    def __init__(self, stage: str, after_tokens: int, kill: Callable[[str], None]) -> None:
        self.stage, self.after_tokens = stage, after_tokens
        self.pause_s = 0.0
        self._kill = kill
        self._last_s: float | None = None

    @property
    def happened(self) -> bool:
        """Return whether the stage was killed."""
        return self._last_s is not None

    def take(self, tokens: int, now_s: float) -> None:
        """Note that `tokens` tokens have arrived in all, at `now_s` (seconds)."""
        if self._last_s is not None:
            self.pause_s = max(self.pause_s, now_s - self._last_s)
            self._last_s = now_s
        elif tokens >= self.after_tokens:
            self._kill(self.stage)
            self._last_s = now_s


@dataclass(frozen=True)
class RunResult:
    """Texts, time, counters and the pause of one run."""

    texts: Texts
    seconds: float
    reading: Reading
    pause_s: float | None
    """Seconds of the longest pause after a stage was killed; None if none was."""


def run_prompts(config: Config, spec: RunSpec, view: TextView) -> RunResult:
    """Start an engine, stream all prompts, stop it.

    Raises EngineError, or the error of the first prompt that fails.
    """
    if spec.kill:  # the user asked for the death, so no warning is shown
        logging.getLogger("expertflow").setLevel(logging.ERROR)
    with running_engine(config) as engine, Client(engine.address) as client, Watcher(engine.address) as watcher:
        interruption = Interruption(spec.kill, spec.kill_after_tokens, watcher.kill) if spec.kill else None
        texts, meter = Texts(spec.prompts), Meter(snapshot_after(engine.snapshot, 0))
        started_ns = time.monotonic_ns()
        with view:
            view.start(len(spec.prompts))
            batch = client.submit(spec.prompts, spec.max_new_tokens)
            for event in _sample_while_iterating(batch, engine, meter):
                view.show(texts, texts.take(event))
                if interruption:
                    _interrupt(interruption, texts, view)
        ended_ns = time.monotonic_ns()
        meter.add(snapshot_after(engine.snapshot, ended_ns))
    seconds = (ended_ns - started_ns) / 1e9
    pause_s = interruption.pause_s if interruption and interruption.happened else None
    return RunResult(texts, seconds, meter.reading(seconds), pause_s)


def _sample_while_iterating(batch: Batch, engine: EngineHandle, meter: Meter) -> Iterator[Event]:
    """Yield the batch's events, and read the engine's counters about once a second.

    Counters of a stage that dies are lost, so a frequent reading loses few.
    """
    sampled_s = time.monotonic()
    for event in batch:
        yield event
        if time.monotonic() - sampled_s > SAMPLE_S:
            meter.add(engine.snapshot())
            sampled_s = time.monotonic()


def _interrupt(interruption: Interruption, texts: Texts, view: TextView) -> None:
    before = interruption.happened
    interruption.take(texts.tokens, time.monotonic())
    if interruption.happened and not before:
        view.notify(f"Killed {interruption.stage} with SIGKILL after {texts.tokens} tokens …")


def show_summary(console: Console, result: RunResult, kill: str) -> None:
    """Print stages, experts, memory, and what the kill cost."""
    console.print()
    console.print(stage_table(result.reading.stages))
    console.print()
    console.print(facts_table(summary_facts(result, kill)))


def summary_facts(result: RunResult, kill: str) -> dict[str, str]:
    """Return the rows of the summary below the table of stages, label -> text."""
    tokens = result.texts.tokens
    rate = f"{tokens / result.seconds:.1f} tokens/s"
    facts = {
        "text": f"{len(result.texts.all)} prompts, {tokens} tokens in {result.seconds:.1f} s ({rate})",
        **expert_facts(result.reading.experts),
        "memory of all processes (PSS)": format_size(result.reading.pss_bytes),
    }
    if result.pause_s is not None:
        facts[f"killed {kill}"] = f"the text paused for {result.pause_s:.1f} s, then went on"
    return facts
