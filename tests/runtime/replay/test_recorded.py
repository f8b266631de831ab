"""What an engine recorded, taken over into a timed replay."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from expertflow.errors import UsageError
from expertflow.ipc.messages import StepPrediction
from expertflow.runtime.replay.choices import (
    hint_source,
    layer_time_ns,
    prediction_maker,
    recorded_timings,
    slot_counts,
)
from expertflow.runtime.replay.experiment import Experiment, recorded_row
from expertflow.runtime.replay.machine import Machine
from expertflow.runtime.replay.predictions import RecordedHints, RecordedPredictions
from expertflow.runtime.replay.source import ReplaySource, open_source
from expertflow.tests.runtime.replay.made import random_trace
from expertflow.tests.traces.streams import EXPERTS, LAYERS, plan, step, write
from expertflow.workers.traces.trace import write_npz

SCORES = [0, 200, 100] + [0] * (EXPERTS - 3)


def recorded(folder: Path) -> ReplaySource:
    """Three steps of two rows: a prefill of three tokens, and two decodes, the second one hinted and planned."""
    hints = bytes([0] * EXPERTS + SCORES + [0] * EXPERTS)
    write(
        folder,
        step(5, [(0, 0), (0, 1), (1, 0)], started_ns=1000, busy_ns=500, compute_ns=[10, 60, 90, 120]),
        step(6, [(0, 2), (1, 1)], started_ns=1700, busy_ns=400, compute_ns=[11, 61, 91, 121], hits=5, misses=7),
        step(7, [(0, 3), (1, 2)], started_ns=2100, busy_ns=400, compute_ns=[12, 62, 92, 122], hints=hints),
    )
    write(folder, plan(7, 9), stage="predictor")
    return open_source(folder, 0, 0)


def test_steps_times_hints_and_plans_are_found_again(tmp_path: Path) -> None:
    source = recorded(tmp_path)
    assert source.uses.tokens.tolist() == [3, 2, 2]
    timings = recorded_timings(0.0, source)
    assert timings is not None and recorded_timings(1.0, source) is None
    assert [timings.pause_ns(each) for each in range(3)] == [0, 200, 0]
    assert timings.before_ns(2) == 12
    union = int(source.unions[1, 2])
    assert timings.expert_ns(1, 2, 1) * union + timings.after_ns(1, 2) == 121
    assert timings.expert_ns(1, 2, 1) == int(0.7 * 121 / union)
    hints = hint_source("recorded", source, 0)
    assert isinstance(hints, RecordedHints) and hints.of(2).tolist() == [EXPERTS + 1]
    assert hints.scores(2, 1) == bytes(SCORES) and hints.scores(2, 0) is None and hints.scores(1, 1) is None
    assert layer_time_ns(0.0, source) == pytest.approx((280 + 284 + 288) / 9)


def test_a_plan_comes_as_long_after_the_begin_of_a_step_as_it_was_sent(tmp_path: Path) -> None:
    """`plan` of the helper is sent at nanosecond 7: before everything; here it is sent while step 6 runs."""
    source = recorded(tmp_path)
    assert source.log is not None and source.log_indices is not None
    source.log.planned_ns[2] = 1750
    plans = RecordedPredictions(source.log, source.log_indices)
    due = StepPrediction(2, bytes([9]) * (LAYERS * EXPERTS))
    assert [plans.begin(each) for each in range(3)] == [[], [(50, due)], []]


def test_what_the_engine_counted_stands_beside_the_replay(tmp_path: Path) -> None:
    source = recorded(tmp_path)
    row = recorded_row(source)
    assert row is not None and (row.hits, row.accesses, row.loads) == (11, 20, None)
    assert row.seconds == pytest.approx(1500e-9)
    assert recorded_row(open_source(tmp_path, 1, 0)) is None


def test_a_recorded_run_is_timed_with_what_was_foretold(tmp_path: Path) -> None:
    """All compute times are the recorded ones: a run without waiting takes as long as they and the pauses."""
    source = recorded(tmp_path)
    experiment = Experiment(
        source=source,
        sharing="pool",
        hints=hint_source("recorded", source, 0),
        machine=Machine(),
        timings=recorded_timings(0.0, source),
        make_predictions=prediction_maker("recorded", "", 0.0, source),
    )
    row = experiment.run("lru", 9)
    assert row.stall_s == 0 and row.seconds == pytest.approx((280 + 284 + 288 + 200) / 1e9, abs=1e-15)
    assert row.hits + row.loads >= row.accesses == len(source.uses.keys)  # type: ignore[operator]


def test_held_out_sequences_are_those_of_training(tmp_path: Path) -> None:
    trace = random_trace(0, [3, 4, 5, 6, 7])
    write_npz(trace, tmp_path / "trace.npz")
    held = open_source(tmp_path / "trace.npz", 2, 0, 0.4, 3).trace
    np.testing.assert_array_equal(held.routes, trace.split(0.4, 3)[1].routes)


@pytest.mark.parametrize(("text", "slots"), [("2", [6]), ("1,50%", [3, 12]), ("8", [24]), ("20%", [5])])
def test_slots_are_said_for_each_layer_or_as_a_share(text: str, slots: list[int]) -> None:
    assert slot_counts(text, random_trace(0, [3])) == slots


@pytest.mark.parametrize("text", ["9", "0", "101%", "many", "1%", ""])
def test_slots_that_make_no_sense_are_refused(text: str) -> None:
    with pytest.raises(UsageError):
        slot_counts(text, random_trace(0, [3]))


def test_what_was_not_recorded_cannot_be_asked_for(tmp_path: Path) -> None:
    source = open_source(write_trace(tmp_path), 1, 0)
    for ask in (
        lambda: hint_source("recorded", source, 0),
        lambda: prediction_maker("recorded", "", 0.0, source),
        lambda: layer_time_ns(0.0, source),
        lambda: prediction_maker("path", "", 0.0, source)(),
        lambda: hint_source("0.5", source, 0),
    ):
        with pytest.raises(UsageError):
            ask()


def write_trace(folder: Path) -> Path:
    write_npz(random_trace(0, [5, 6]), folder / "trace.npz")
    return folder / "trace.npz"
