"""One run of a demonstration: an engine, prompts streamed through it, a stage killed if that is asked for."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass

from ...configs.schema import Config
from ..client import Batch, Client, Event
from ..client.watching import Watcher, snapshot_after
from ..engine.starting import EngineHandle, running_engine
from ..monitor.readings import Meter, Reading
from .texts import Interruption, Texts
from .view import TextView

SAMPLE_S = 1.0


@dataclass(frozen=True)
class RunOrder:
    """What is to be run. `kill`: a stage, or empty."""

    prompts: list[str]
    max_new_tokens: int
    kill: str = ""

    @property
    def kill_after_tokens(self) -> int:
        """When every text is well under way."""
        return len(self.prompts) * self.max_new_tokens // 3


@dataclass(frozen=True)
class RunResult:
    """What came of it."""

    texts: Texts
    seconds: float
    reading: Reading
    pause_s: float | None
    """The longest after a stage was killed; None if none was."""


def run_prompts(config: Config, order: RunOrder, view: TextView) -> RunResult:
    """Start an engine, stream all prompts, stop it. Raises what went wrong with the engine or a prompt."""
    if order.kill:  # that it died is no news here
        logging.getLogger("expertflow").setLevel(logging.ERROR)
    with running_engine(config) as engine, Client(engine.address) as client, Watcher(engine.address) as watcher:
        interruption = Interruption(order.kill, order.kill_after_tokens, watcher.kill) if order.kill else None
        texts, meter = Texts(order.prompts), Meter(snapshot_after(engine.snapshot, 0))
        started_ns = time.monotonic_ns()
        with view:
            batch = client.submit(order.prompts, order.max_new_tokens)
            for event in _sampled(batch, engine, meter):
                view.show(texts, texts.take(event))
                if interruption:
                    _interrupt(interruption, texts, view)
        ended_ns = time.monotonic_ns()
        meter.add(snapshot_after(engine.snapshot, ended_ns))
    seconds = (ended_ns - started_ns) / 1e9
    pause_s = interruption.pause_s if interruption and interruption.happened else None
    return RunResult(texts, seconds, meter.reading(seconds), pause_s)


def _sampled(batch: Batch, engine: EngineHandle, meter: Meter) -> Iterator[Event]:
    """The batch's events; about once a second the engine's counters are read on the way, so that a death loses few."""
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
        view.say(f"Killed {interruption.stage} with SIGKILL after {texts.tokens} tokens …")
