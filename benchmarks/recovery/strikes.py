"""Times of strikes at a stage: until it is noticed, until its successor is ready, and how long a text stands still."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from threading import Thread
from typing import NamedTuple

from expertflow import Client, Supervisor
from expertflow.ipc.messages import Snapshot

from ..chaos.faults import STAGES, stage_pids

SIGNALS = {"SIGKILL": signal.SIGKILL, "SIGSEGV": signal.SIGSEGV, "SIGSTOP": signal.SIGSTOP}
BEFORE, TOKENS = 20, 60
PATIENCE_S = 180.0
POLL_S = 0.002
QUIET_S = 0.5
"""Rest between two strikes."""


class Strike(NamedTuple):
    """Times of one strike, in seconds from the signal; `pause_s` is the longest time between two tokens meanwhile."""

    noticed_s: float
    ready_s: float
    pause_s: float


def strike_all(engine: Supervisor, client: Client, repeats: int) -> dict[tuple[str, str], list[Strike]]:
    """Return (stage, signal) -> its strikes, done in turn, so that a slow minute of the machine falls on all."""
    found: dict[tuple[str, str], list[Strike]] = {(stage, name): [] for stage in STAGES for name in SIGNALS}
    for _ in range(repeats):
        for (stage, name), strikes in found.items():
            strikes.append(strike_stage(engine, client, stage, SIGNALS[name]))
            time.sleep(QUIET_S)
    return found


def strike_stage(engine: Supervisor, client: Client, stage: str, number: signal.Signals) -> Strike:
    """Send a stage a signal in the middle of a text; texts go on until its successor is ready."""
    times: list[float] = []
    gaps: list[float] = []
    blow = Thread(target=lambda: times.extend(_blow(engine, stage, number)))
    last_s = time.monotonic()
    while not times:
        for count, _ in enumerate(client.submit([[3, 5, 7]], max_new_tokens=TOKENS, eos_ids=[])):
            now_s = time.monotonic()
            if blow.ident is not None:
                gaps.append(now_s - last_s)
            last_s = now_s
            if count == BEFORE and blow.ident is None:
                blow.start()
        if blow.ident is not None and not blow.is_alive() and not times:
            raise RuntimeError(f"{stage} did not come back after {number.name}")
    blow.join()
    return Strike(times[0], times[1], max(gaps))


def _blow(engine: Supervisor, stage: str, number: signal.Signals) -> list[float]:
    """Send the signal; return the seconds until the engine says that the stage is down, and that all are ready."""
    before = engine.snapshot().restarts.get(stage, 0)
    [pid, *_] = stage_pids(os.getpid(), stage)
    sent_s = time.monotonic()
    os.kill(pid, number)

    def restarted(now: Snapshot) -> bool:
        return now.restarts.get(stage, 0) > before

    noticed_s = _await(engine, lambda now: stage in now.down or restarted(now))
    ready_s = _await(engine, lambda now: not now.down and restarted(now))
    return [noticed_s - sent_s, ready_s - sent_s]


def _await(engine: Supervisor, condition: Callable[[Snapshot], bool]) -> float:
    """Return when a condition holds, in monotonic seconds."""
    deadline_s = time.monotonic() + PATIENCE_S
    while not condition(engine.snapshot()):
        if time.monotonic() > deadline_s:
            raise TimeoutError(f"nothing came within {PATIENCE_S:.0f} s")
        time.sleep(POLL_S)
    return time.monotonic()
