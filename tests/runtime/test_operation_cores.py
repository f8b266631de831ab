"""The state machines of drains and reloads, without a process."""

from __future__ import annotations

import pytest
from expertflow.errors import BudgetError, EngineError
from expertflow.ipc.messages import StageStats
from expertflow.runtime.engine.operation.changes import ORDER, RELOADABLE, stages_to_restart
from expertflow.runtime.engine.operation.drain import DrainState
from expertflow.runtime.engine.operation.reload import (
    END_S,
    EndStage,
    Exchange,
    KillStarted,
    NoWayBack,
    ReloadOver,
    ReloadState,
    StartStage,
)

DEATH = EngineError("was killed", "stage loader")


def published(**counters: int) -> StageStats:
    return StageStats(stage="scheduler", pid=1, epoch=1, time_ns=0, counters=dict(counters))


def test_a_drain_is_over_when_nothing_is_open_since_the_intake_closed() -> None:
    """What the scheduler published before says nothing: a request may have come since."""
    drain = DrainState(until_s=100.0)
    drain.on_stats(published(accepting=1, open=0))
    assert not drain.is_over(1.0)
    drain.on_stats(published(accepting=0, open=2))
    assert not drain.is_over(1.0) and drain.is_over(100.0)
    drain.on_stats(published(accepting=0, open=0))
    assert drain.is_over(1.0)
    drain.on_scheduler_lost()
    assert not drain.is_over(1.0), "clients submit again what the dead scheduler had"


def test_a_second_drain_can_only_hasten() -> None:
    drain = DrainState(until_s=100.0)
    drain.hasten(200.0)
    assert drain.until_s == 100.0
    drain.hasten(50.0)
    assert drain.is_over(50.0)


def test_stages_end_one_after_the_other_and_start_together() -> None:
    reload = ReloadState(["compute", "loader"])
    assert reload.begin(0.0) == [EndStage("compute")]
    assert reload.on_ended("compute", DEATH, 1.0) == [EndStage("loader")]
    assert reload.on_ended("loader", DEATH, 2.0) == [Exchange(forward=True)]
    assert reload.on_exchanged(None) == [StartStage("compute"), StartStage("loader")]
    assert reload.owns("loader") and not reload.owns("scheduler")
    assert reload.on_ready("loader") == []
    assert reload.on_ready("compute") == [ReloadOver(None)]
    assert not reload.owns("loader")


def test_a_stage_that_dies_by_itself_meanwhile_has_ended_too() -> None:
    reload = ReloadState(["compute", "loader"])
    reload.begin(0.0)
    assert reload.on_ended("loader", DEATH, 1.0) == [], "compute is still asked to end"
    assert reload.on_ended("compute", DEATH, 1.0) == [Exchange(forward=True)]


def test_a_stage_that_does_not_end_is_killed_once() -> None:
    reload = ReloadState(["compute"])
    reload.begin(0.0)
    assert reload.check(END_S - 1) == []
    assert reload.check(END_S) == [KillStarted("compute")]
    assert reload.check(2 * END_S) == []


def test_a_start_that_fails_goes_back_with_its_cause() -> None:
    reload = ReloadState(["compute", "loader"])
    reload.begin(0.0)
    reload.on_ended("compute", DEATH, 0.0)
    reload.on_ended("loader", DEATH, 0.0)
    reload.on_exchanged(None)
    assert reload.on_ended("loader", DEATH, 1.0) == [KillStarted("compute")]
    assert reload.on_ended("compute", EngineError("killed"), 1.0) == [Exchange(forward=False)]
    assert reload.on_exchanged(None) == [StartStage("compute"), StartStage("loader")]
    assert not reload.owns("loader"), "from here on a death is one like any other"
    assert reload.on_ready("compute") == []
    assert reload.on_ready("loader") == [ReloadOver(DEATH)]


def test_without_room_for_either_setup_the_engine_ends() -> None:
    reload, full = ReloadState(["loader"]), BudgetError("needs 1 GB")
    reload.begin(0.0)
    reload.on_ended("loader", DEATH, 0.0)
    assert reload.on_exchanged(full) == [Exchange(forward=False)]
    assert reload.on_exchanged(full) == [NoWayBack(full)]


@pytest.mark.parametrize("name", RELOADABLE)
def test_every_field_names_stages_in_an_order(name: str) -> None:
    stages = stages_to_restart({name: ""})
    assert stages and stages == [stage for stage in ORDER if stage in stages]
