"""One round: an engine, all requests, and a fault every few seconds until the last request has ended."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from expertflow import Client
from expertflow.ipc.messages import Snapshot

from .engine_process import EngineProcess
from .faults import Fault, draw_fault, stage_pids, strike
from .judging import Output, find_faults
from .repeats import repeats_watched
from .requests import PlannedRequest, Way, draw_ways
from .senders import Notes, Senders

RECOVERY_S = 180.0
"""Seconds after which a worker that has not come back counts as lost."""
ROUND_S = 1800.0
GAPS_S = (2.0, 6.0)
"""Seconds from where all workers are ready to the next fault, at least and at most."""
STATS_S = 60.0
"""Patience with a supervisor on a busy machine."""


class Limits(NamedTuple):
    """Bounds of a round."""

    faults: int
    """Faults, at most."""
    compute_share: float
    """Share of the faults that fall on compute: its death is the longest pause, of minutes on a busy machine."""


class Setting(NamedTuple):
    """A form of the engine that a round runs with."""

    name: str
    numerics: str
    """Settings of the same numerics have the same outputs, whatever their tier and budget."""
    words: tuple[str, ...]
    """Options of `expertflow serve`."""


class Struck(NamedTuple):
    """A fault that was done: when, and how long the engine took."""

    fault: Fault
    at_s: float
    """Seconds of the monotonic clock."""
    ready_s: float | None
    """Seconds until every worker was ready again; None: none had to be started again."""


class RoundResult(NamedTuple):
    """What came of a round."""

    requests: int
    seconds: float
    struck: list[Struck]
    restarts: int
    faults: list[tuple[str, str]]
    repeated: int
    """Tokens that came again."""
    pauses_s: list[float]
    """For each fault, the longest time around it in which no client got a token."""


def run_quiet(engine: EngineProcess, requests: list[PlannedRequest], rng: random.Random) -> dict[int, Output]:
    """Return the output of each request where nothing fails. Raises RuntimeError where it depends on the way."""
    senders = Senders(engine, draw_ways(rng, requests))
    if not senders.wait(ROUND_S):
        raise RuntimeError(f"the quiet run has not ended after {ROUND_S:.0f} s")
    ended = senders.result().ended
    outputs = {each.number: (each.token_ids, each.text) for each in ended}
    if faults := find_faults(requests, ended, outputs):
        raise RuntimeError(f"the quiet run failed: {faults[:3]}")
    return outputs


def run_round(
    engine: EngineProcess, requests: list[PlannedRequest], quiet: dict[int, Output], rng: random.Random, limits: Limits
) -> RoundResult:
    """Run all requests, with faults meanwhile, and judge what came of them."""
    begun_s = time.monotonic()
    ways: dict[Way, list[PlannedRequest]] = draw_ways(rng, requests)
    struck: list[Struck] = []
    faults: list[tuple[str, str]] = []
    with repeats_watched() as repeats, Client(engine.address) as watcher:
        senders = Senders(engine, ways)
        while not senders.wait(rng.uniform(*GAPS_S)) and time.monotonic() - begun_s < ROUND_S:
            if len(struck) < limits.faults:
                fault = draw_fault(rng, limits.compute_share)
                faults += _strike(engine, watcher, fault, struck)
            engine.require_alive()
        faults += _await_all_ready(watcher)
        restarts = sum(watcher.stats(STATS_S).restarts.values())
    if not senders.done:
        faults.append(("lost", "the round never ended"))
        return RoundResult(len(requests), ROUND_S, struck, restarts, faults, repeats.tokens, [])
    notes = senders.result()
    faults += [*find_faults(requests, notes.ended, quiet), *repeats.changed]
    seconds = time.monotonic() - begun_s
    return RoundResult(len(requests), seconds, struck, restarts, faults, repeats.tokens, _pauses(struck, notes))


def _strike(
    engine: EngineProcess, watcher: Client, fault: Fault, struck: list[Struck]
) -> list[tuple[str, str]]:
    """Do a fault and wait until all workers are ready again: on a busy machine there would be no step in between.

    Faults that meet, or fall on a worker that starts, are kinds of their own. Return what went wrong with the wait.
    """
    before, at_s = watcher.stats(STATS_S), time.monotonic()
    hit = strike(fault, lambda stage: stage_pids(engine.process.pid, stage))
    ready_s = None
    if hit:
        if not _await(watcher, lambda now: _has_recovered(before, now, hit)):
            return [("lost", f"{fault}: a worker was not ready again after {RECOVERY_S:.0f} s")]
        ready_s = time.monotonic() - at_s
    struck.append(Struck(fault, at_s, ready_s))
    return []


def _has_recovered(before: Snapshot, now: Snapshot, hit: Sequence[str]) -> bool:
    return not now.down and all(now.restarts[stage] > before.restarts[stage] for stage in hit)


def _await_all_ready(watcher: Client) -> list[tuple[str, str]]:
    ready = _await(watcher, lambda now: not now.down)
    return [] if ready else [("lost", f"at the end of the round a worker was down for {RECOVERY_S:.0f} s")]


def _await(watcher: Client, condition: Callable[[Snapshot], bool]) -> bool:
    deadline_s = time.monotonic() + RECOVERY_S
    while time.monotonic() < deadline_s:
        if condition(watcher.stats(STATS_S)):
            return True
        time.sleep(0.05)
    return False


def _pauses(struck: list[Struck], notes: Notes) -> list[float]:
    """Return the longest gap between tokens that a fault fell into or was followed by until all were ready."""
    times = sorted(notes.token_times_s)
    gaps = list(zip(times, times[1:], strict=False))
    spans = [(each.at_s, each.at_s + (each.ready_s or 0.0)) for each in struck]
    around = [[end - start for start, end in gaps if end > first and start < last + 1e-9] for first, last in spans]
    return [max(found) for found in around if found]


def summary(values: Sequence[float]) -> str:
    """Return median, 95th percentile and maximum of seconds."""
    if not values:
        return "none"
    ordered = sorted(values)
    return f"{statistics.median(ordered):.1f} / {ordered[int(0.95 * (len(ordered) - 1))]:.1f} / {ordered[-1]:.1f} s"


def log_of(folder: Path, name: str) -> Path:
    """Return the file of an engine's log."""
    return folder / f"{name}.log"
