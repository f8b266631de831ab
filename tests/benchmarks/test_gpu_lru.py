"""What LRU would have loaded in the very steps that are timed."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from expertflow.benchmarks.gpu import decoding
from expertflow.runtime.replay.source import ReplaySource
from expertflow.workers.traces.trace import Trace

EXPERT_BYTES = 10


def source(slots: int) -> ReplaySource:
    """One layer of four experts. A trial of a prompt and a step, then the run: a prompt and four steps."""
    experts = [0, 1, 0, 1, 2, 3, 2]
    trace = Trace(
        routes=np.array(experts, dtype=np.uint16)[:, None, None],
        token_ids=np.zeros(7, dtype=np.int64),
        offsets=np.array([0, 2, 7]),
        expert_count=4,
        decoded=np.array([False, True, False, True, True, True, True]),
        steps=np.arange(7),
    )
    log: Any = SimpleNamespace(header=SimpleNamespace(slots=slots, expert_bytes=EXPERT_BYTES))
    return ReplaySource(trace, np.arange(7), log, np.arange(7))


@pytest.mark.parametrize(
    ("slots", "warm", "loads", "steps"),
    [(2, 1, 2, 3), (2, 2, 1, 2), (1, 1, 3, 3), (3, 3, 0, 1), (4, 1, 0, 3)],
)
def test_loads_of_the_timed_steps_after_all_that_came_before(
    slots: int, warm: int, loads: int, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a slot for each expert nothing is loaded, not even at first: such an engine starts filled."""
    monkeypatch.setattr(decoding, "open_source", lambda *given: source(slots))
    assert decoding.lru_bytes(Path(), [1], warm) == [pytest.approx(EXPERT_BYTES * loads / steps)]


def test_a_trace_of_another_run_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "open_source", lambda *given: source(2))
    with pytest.raises(RuntimeError, match="2 sequences, not 18"):
        decoding.lru_bytes(Path(), [1, 8], 1)
