"""Measurements of memory: they hold nobody up, and they cost 0.2 % of a core at most (I7)."""

from __future__ import annotations

import os

import pytest
from expertflow.runtime.engine import process_memory
from expertflow.runtime.engine.process_memory import REST, UNWATCHED_INTERVAL_NS, WATCHED_INTERVAL_NS, MemorySampler
from expertflow.tests.runtime.fakes import wait_until

S = 1_000_000_000


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The time that the sampler reads, in nanoseconds."""
    clock = [100 * S]
    monkeypatch.setattr(process_memory.time, "monotonic_ns", lambda: clock[0])
    return clock


def test_a_process_is_measured_and_an_ended_one_has_nothing() -> None:
    sampler = MemorySampler()
    sampler.tick({"here": os.getpid(), "ended": 2**22 + 1})
    wait_until(lambda: sampler.pss_bytes)
    assert sampler.pss_bytes["here"] > 2**20 and sampler.pss_bytes["ended"] == 0


def test_measurements_are_rarer_while_nobody_looks_and_when_they_are_dear(
    now: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """13 ms for each GB and process, every second, would slow down a large model for nobody."""
    measured: list[int] = []
    costs = [0]
    monkeypatch.setattr(process_memory, "pss_bytes", lambda pid: measured.append(now[0]) or 1)
    monkeypatch.setattr(process_memory.time, "thread_time_ns", lambda: costs.append(costs[-1] + cost_ns) or costs[-1])

    def count_in(seconds: int, is_watched: bool) -> int:
        before = len(measured)
        for _ in range(10 * seconds):
            now[0] += S // 10
            if is_watched:
                sampler.note_watcher()
            sampler.tick({"one": 1})
            wait_until(lambda: sampler._thread is None or not sampler._thread.is_alive())
        return len(measured) - before

    sampler, cost_ns = MemorySampler(), 1000
    assert count_in(100, is_watched=False) == 100 * S // UNWATCHED_INTERVAL_NS
    assert abs(count_in(20, is_watched=True) - 20 * S // WATCHED_INTERVAL_NS) <= 1
    cost_ns = S // 10
    count_in(10, is_watched=True)
    assert abs(count_in(200, is_watched=True) - 200 * S // (REST * cost_ns)) <= 1


def test_a_process_that_was_never_measured_does_not_wait(now: list[int]) -> None:
    """A stage or spare that is shown without memory looks broken."""
    sampler = MemorySampler()
    sampler.tick({"one": os.getpid()})
    wait_until(lambda: sampler.pss_bytes)
    now[0] += 2 * S
    sampler.tick({"one": os.getpid(), "other": os.getpid()})
    wait_until(lambda: sampler.pss_bytes.get("other"))
