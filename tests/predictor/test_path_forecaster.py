"""The path predictor in service: bounded histories, restarts, calibrated use of what was seen."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from expertflow.ipc.messages import PredictStep, StepRouting
from expertflow.tests.predictor.paths import (
    LAYERS,
    SHAPE,
    VOCABULARY,
    ask,
    file_of,
    forecaster_of,
    made_up_trace,
    tell,
    untrained,
)
from expertflow.workers.predictor.judging.figures import judge
from expertflow.workers.predictor.judging.replay import decode
from expertflow.workers.predictor.path.forecaster import PathForecaster, split_runs
from expertflow.workers.traces.trace import Trace
from hypothesis import given
from hypothesis import strategies as st


@pytest.fixture
def trace() -> Trace:
    return made_up_trace()


@pytest.fixture
def forecaster(trace: Trace) -> PathForecaster:
    return forecaster_of(untrained(trace, noise=0.2), trace)


def test_one_by_one_or_many_at_once_is_the_same(trace: Trace, forecaster: PathForecaster) -> None:
    for position in range(12):
        forecaster.learn(tell(trace, 1, [position]))
    forecaster.learn(tell(trace, 2, list(range(12))))
    forecaster.learn(tell(trace, 3, list(range(5))))
    forecaster.learn(tell(trace, 3, list(range(5, 12))))
    one, two, three = (forecaster.forecast_tokens(ask(trace, row, [12])) for row in (1, 2, 3))
    assert np.allclose(one, two, atol=1e-5) and np.allclose(one, three, atol=1e-5)


def test_rows_do_not_disturb_each_other(trace: Trace, forecaster: PathForecaster) -> None:
    forecaster.learn(tell(trace, 1, list(range(6))))
    alone = forecaster.forecast_tokens(ask(trace, 1, [6]))
    forecaster.learn(tell(trace, 2, list(range(6)), sequence=3))
    other = ask(trace, 2, [6], sequence=3)
    mine = ask(trace, 1, [6])
    both = PredictStep(
        step=9, token_ids=other.token_ids + mine.token_ids, rows=other.rows + mine.rows, positions=[6, 6]
    )
    together = forecaster.forecast_tokens(both)
    assert np.allclose(together[1], alone[0], atol=1e-5)
    assert np.allclose(together[0], forecaster.forecast_tokens(other)[0], atol=1e-5)


def test_the_forecast_of_a_step_is_the_union_of_its_tokens(trace: Trace, forecaster: PathForecaster) -> None:
    coming = ask(trace, 0, list(range(9)))
    assert np.allclose(
        forecaster.forecast(coming), 1 - (1 - forecaster.forecast_tokens(coming)).prod(axis=0), atol=1e-5
    )


def test_a_row_without_history_still_gets_a_forecast(trace: Trace, forecaster: PathForecaster) -> None:
    """The predictor was restarted: what it says then is what it says where routing is not known."""
    forecast = forecaster.forecast_tokens(ask(trace, 0, [9]))
    assert np.isfinite(forecast).all() and 0 < forecast.sum(axis=2).mean() < 2 * trace.top_k


def test_after_a_gap_the_row_begins_anew(trace: Trace, forecaster: PathForecaster) -> None:
    forecaster.learn(tell(trace, 0, list(range(5))))
    forecaster.learn(tell(trace, 0, [7, 8]))
    fresh = forecaster_of(untrained(trace, noise=0.2), trace)
    fresh.learn(tell(trace, 0, [7, 8]))
    assert np.allclose(
        forecaster.forecast_tokens(ask(trace, 0, [9])), fresh.forecast_tokens(ask(trace, 0, [9])), atol=1e-6
    )


def test_a_row_number_that_begins_again_forgets_its_past(trace: Trace, forecaster: PathForecaster) -> None:
    forecaster.learn(tell(trace, 0, list(range(5)), sequence=3))
    forecaster.learn(tell(trace, 0, list(range(5)), sequence=0))
    forecaster.learn(tell(trace, 1, list(range(5)), sequence=0))
    assert np.allclose(
        forecaster.forecast_tokens(ask(trace, 0, [5])), forecaster.forecast_tokens(ask(trace, 1, [5])), atol=1e-6
    )


def test_only_the_window_is_remembered(trace: Trace, forecaster: PathForecaster) -> None:
    long = made_up_trace(sequences=1, length=200)
    forecaster.learn(tell(long, 0, list(range(199))))
    past = forecaster._rows.past(np.array([forecaster._rows.line(0, 199)]))
    assert sorted(past.positions[0].tolist()) == list(range(199 - SHAPE.window, 199))


def test_the_oldest_row_makes_room(trace: Trace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("expertflow.workers.predictor.path.history.MEMORY_BYTES", 0)
    forecaster = forecaster_of(untrained(trace), trace)
    capacity = forecaster._rows.capacity
    for row in range(capacity + 1):
        forecaster.learn(tell(trace, row, [0]))
    assert forecaster._rows.line(0, 1) == -1
    assert forecaster._rows.line(1, 1) >= 0


class Confused(PathForecaster):
    """Gives rows the routing of each other: a mutant of the bookkeeping."""

    def learn(self, routing: StepRouting) -> None:
        routes = np.frombuffer(routing.experts, np.uint16).reshape(len(routing.rows), -1)
        shifted = np.roll(routes, len(routing.rows) // 2, axis=0).tobytes()
        super().learn(msgspec.structs.replace(routing, experts=shifted))


def test_shuffled_history_makes_it_worse(trace: Trace) -> None:
    """The order in which histories are kept must show in the figures."""
    file = file_of(untrained(trace), trace)
    right, wrong = (
        judge(decode(kind(file, VOCABULARY.__getitem__), trace, rows=4)).recall for kind in (PathForecaster, Confused)
    )
    assert right > wrong + 0.1


def test_an_empty_step_and_a_malformed_one_do_no_harm(trace: Trace, forecaster: PathForecaster) -> None:
    empty = PredictStep(step=0, token_ids=[], rows=[], positions=[])
    assert not forecaster.forecast(empty).any()
    before = forecaster.forecast_tokens(ask(trace, 0, [1]))
    bad = tell(trace, 0, [0], routes=np.full((1, LAYERS, 2), 99))
    forecaster.learn(bad)
    assert np.array_equal(forecaster.forecast_tokens(ask(trace, 0, [1])), before)


def test_it_adapts_to_what_runs(trace: Trace) -> None:
    """A token that now goes elsewhere is soon expected there, in other rows too."""
    still, adapting = (forecaster_of(untrained(trace), trace, adapts) for adapts in (False, True))
    elsewhere = (trace.routes[:1] + 1) % SHAPE.experts
    for row in range(60):
        for forecaster in (still, adapting):
            forecaster.learn(tell(trace, row, [0], routes=elsewhere))
    before, after = (forecaster.forecast_tokens(ask(trace, 99, [0]))[0] for forecaster in (still, adapting))
    there = elsewhere[0].astype(np.int64)
    gained = np.take_along_axis(after, there, 1) - np.take_along_axis(before, there, 1)
    assert gained.min() > 0.1


def test_unknown_tokens_are_told_by_their_spelling(trace: Trace) -> None:
    """With weights that look at spelling, two tokens that the table never saw differ."""
    strings = {1000: "Ġwordy", 1001: "9+9"}
    forecaster = PathForecaster(file_of(untrained(trace, noise=0.3), trace), strings.get)
    both = forecaster.forecast_tokens(PredictStep(step=0, token_ids=[1000, 1001], rows=[0, 1], positions=[0, 0]))
    assert np.abs(both[0] - both[1]).max() > 1e-3


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5)), max_size=12))
def test_tokens_are_parted_into_rows_without_loss(places: list[tuple[int, int]]) -> None:
    rows, positions = np.array(places, dtype=np.int64).reshape(-1, 2).T
    single, runs = split_runs(rows, positions)
    assert sorted([*single.tolist(), *(place for run in runs for place in run.tolist())]) == list(range(len(rows)))
    for run in runs:
        assert len(set(rows[run].tolist())) == 1
        assert (np.diff(positions[run]) == 1).all()
