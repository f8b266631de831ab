"""How a trace is cut into steps."""

from __future__ import annotations

import numpy as np
import pytest
from expertflow.errors import UsageError
from expertflow.runtime.replay.steps import batch_steps, first_tokens, recorded_steps, uses_of
from expertflow.tests.runtime.replay.made import random_trace
from expertflow.workers.traces.trace import Trace


def trace_of(routes: list[list[list[int]]], offsets: list[int], steps: list[int] | None = None) -> Trace:
    return Trace(
        routes=np.array(routes, dtype=np.uint16),
        token_ids=np.zeros(len(routes), dtype=np.int64),
        offsets=np.array(offsets),
        expert_count=4,
        steps=None if steps is None else np.array(steps),
    )


def test_rows_walk_side_by_side_and_take_the_next_sequence_when_theirs_ends() -> None:
    trace = random_trace(0, [3, 1, 2, 2])
    assert batch_steps(trace, 2).tolist() == [0, 1, 2, 0, 1, 2, 3, 4]
    assert batch_steps(trace, 1).tolist() == list(range(8))
    assert batch_steps(trace, 9).tolist() == [0, 1, 2, 0, 0, 1, 0, 1]


def test_a_batch_of_no_rows_is_refused() -> None:
    with pytest.raises(UsageError, match="at least 1"):
        batch_steps(random_trace(0, [3]), 0)


def test_a_step_uses_the_union_of_its_tokens() -> None:
    trace = trace_of([[[0, 1], [2, 3]], [[1, 2], [3, 2]], [[3, 0], [0, 1]]], [0, 1, 3])
    uses = uses_of(trace, batch_steps(trace, 2))
    assert [uses.of(step).tolist() for step in range(uses.steps)] == [[0, 1, 2, 6, 7], [0, 3, 4, 5]]
    assert [keys.tolist() for keys in uses.split(uses.of(0))] == [[0, 1, 2], [6, 7]]
    assert uses.tokens.tolist() == [2, 1]


def test_recorded_steps_are_taken_as_they_ran() -> None:
    trace = trace_of([[[0, 1]], [[1, 2]], [[3, 0]]], [0, 2, 3], steps=[5, 9, 5])
    assert recorded_steps(trace).tolist() == [0, 1, 0]
    with pytest.raises(UsageError, match="which tokens ran together"):
        recorded_steps(trace_of([[[0, 1]]], [0, 1]))


def test_the_first_tokens_of_a_trace_may_cut_a_sequence() -> None:
    trace = random_trace(1, [3, 4, 2])
    head = first_tokens(trace, 5)
    assert head.offsets.tolist() == [0, 3, 5]
    np.testing.assert_array_equal(head.routes, trace.routes[:5])
    assert first_tokens(trace, 3).offsets.tolist() == [0, 3]
    assert first_tokens(trace, 99) is trace
