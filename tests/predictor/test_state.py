"""When the predictor forecasts, over two links that overtake each other."""

from __future__ import annotations

from expertflow.ipc.messages import PredictStep, StepRouting
from expertflow.workers.predictor.state import REMEMBERED_ROWS, Learn, PredictorState, RunStepPrediction
from hypothesis import given
from hypothesis import strategies as st


def asked(step: int, rows: list[int]) -> PredictStep:
    return PredictStep(step=step, token_ids=[0] * len(rows), rows=rows, positions=[step] * len(rows))


def ran(step: int, rows: list[int]) -> StepRouting:
    return StepRouting(
        step=step, token_ids=[0] * len(rows), rows=rows, positions=[step] * len(rows), top_k=1, experts=b"",
        hits=0, misses=0, stall_ns=0,
    )  # fmt: skip


def test_a_first_forecast_is_made_at_once() -> None:
    state = PredictorState(waits=True)
    assert state.handle(asked(3, [1, 2])) == [RunStepPrediction(asked(3, [1, 2]))]


def test_a_forecast_waits_for_the_routing_of_its_rows() -> None:
    state = PredictorState(waits=True)
    state.handle(asked(3, [1, 2]))
    assert state.handle(asked(5, [2])) == []
    assert state.waiting == 1
    assert state.handle(ran(3, [1, 2])) == [Learn(ran(3, [1, 2])), RunStepPrediction(asked(5, [2]))]
    assert state.waiting == state.dropped == 0


def test_who_does_not_look_at_rows_does_not_wait() -> None:
    state = PredictorState(waits=False)
    state.handle(asked(3, [1]))
    assert state.handle(asked(4, [1])) == [RunStepPrediction(asked(4, [1]))]


def test_other_rows_need_not_wait() -> None:
    state = PredictorState(waits=True)
    state.handle(asked(3, [1]))
    assert state.handle(asked(4, [2])) == [RunStepPrediction(asked(4, [2]))]


def test_after_a_restart_nothing_is_waited_for() -> None:
    """The routing of steps that a predictor before this one was asked about may never come."""
    assert PredictorState(waits=True).handle(asked(900, [1])) == [RunStepPrediction(asked(900, [1]))]


def test_a_waiting_forecast_is_dropped_when_its_step_has_run() -> None:
    state = PredictorState(waits=True)
    state.handle(asked(3, [1]))
    state.handle(asked(4, [1]))
    assert state.handle(ran(4, [1])) == [Learn(ran(4, [1]))]
    assert (state.waiting, state.dropped) == (0, 1)


def test_a_newer_forecast_of_a_row_replaces_the_one_that_waits() -> None:
    state = PredictorState(waits=True)
    state.handle(asked(3, [1]))
    state.handle(asked(4, [1]))
    state.handle(asked(5, [1]))
    assert (state.waiting, state.dropped) == (1, 1)
    assert state.handle(ran(4, [1])) == [Learn(ran(4, [1])), RunStepPrediction(asked(5, [1]))]


def test_a_forecast_that_comes_after_its_step_is_dropped() -> None:
    state = PredictorState(waits=True)
    state.handle(ran(7, [1]))
    assert state.handle(asked(7, [1])) == []
    assert state.dropped == 1


def test_what_is_remembered_of_rows_is_bounded() -> None:
    state = PredictorState(waits=True)
    for row in range(REMEMBERED_ROWS + 1):
        state.handle(asked(row, [row]))
    assert state.handle(asked(9000, [0])) == [RunStepPrediction(asked(9000, [0]))]
    assert state.handle(asked(9001, [REMEMBERED_ROWS])) == []


@st.composite
def histories(draw: st.DrawFn) -> list[PredictStep | StepRouting]:
    """Steps in order on either link, the links merged at will; some messages are lost."""
    steps = [draw(st.lists(st.integers(0, 3), min_size=1, max_size=3, unique=True)) for _ in range(12)]
    forecasts: list[PredictStep | StepRouting] = [
        asked(step, rows) for step, rows in enumerate(steps) if draw(st.integers(0, 9))
    ]
    routings: list[PredictStep | StepRouting] = [
        ran(step, rows) for step, rows in enumerate(steps) if draw(st.integers(0, 9))
    ]
    merged = []
    while forecasts or routings:
        link = forecasts if not routings or (forecasts and draw(st.booleans())) else routings
        merged.append(link.pop(0))
    return merged


@given(histories())
def test_any_history_is_served_in_order_and_accounted_for(history: list[PredictStep | StepRouting]) -> None:
    state, newest_ran = PredictorState(waits=True), -1
    asked_for: dict[int, int] = {}
    awaited: dict[int, int] = {}
    predicted: list[int] = []
    for event in history:
        if isinstance(event, PredictStep):
            awaited[event.step] = max(asked_for.get(row, -1) for row in event.rows)
            asked_for |= dict.fromkeys(event.rows, event.step)
        else:
            newest_ran = max(newest_ran, event.step)
        actions = state.handle(event)
        steps = [action.request.step for action in actions if isinstance(action, RunStepPrediction)]
        learned = [action.routing for action in actions if isinstance(action, Learn)]
        assert learned == ([event] if isinstance(event, StepRouting) else [])
        assert all(awaited[step] <= newest_ran < step for step in steps), "too early, or too late"
        predicted += steps
    assert len(set(predicted)) == len(predicted)
    assert len(predicted) + state.dropped + state.waiting == len(awaited)
