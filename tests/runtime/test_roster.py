"""The supervisor's decisions as histories: no process, no clock."""

from __future__ import annotations

import pytest
from expertflow.errors import BudgetError, EngineError
from expertflow.ipc.messages import ErrorFacts, Peer, PeerDied
from expertflow.ipc.transport.addresses import Party
from expertflow.runtime.engine.roster import GiveUp, Kill, Roster, SendControl, Spawn

END = EngineError("was killed", "stage loader")
PEERS = {"compute": ["loader", "scheduler"], "loader": ["compute"]}


def running(restart_limit: int = 2) -> Roster:
    roster = Roster(PEERS, restart_limit, start_timeout_s=10)
    roster.start(0)
    roster.on_ready("compute", {"threads": 2}, 0)
    roster.on_ready("loader", {}, 0)
    return roster


def test_peers_hear_of_each_other_once_both_are_ready():
    """Told earlier, a stage would send to one that cannot hear; told only one way, the other has no link."""
    roster = Roster(PEERS, 2, 10)
    assert roster.start(0) == [Spawn(Party("compute", 1)), Spawn(Party("loader", 1))]
    assert roster.on_ready("compute", {"threads": 2}, 1) == []
    assert not roster.complete
    assert roster.on_ready("loader", {}, 2) == [
        SendControl(Party("loader", 1), Peer("compute", 1, {"threads": 2})),
        SendControl(Party("compute", 1), Peer("loader", 1, {})),
    ]
    assert roster.complete


def test_a_death_while_starting_ends_the_engine():
    roster = Roster(PEERS, 2, 10)
    roster.start(0)
    assert roster.on_died("loader", END, 1) == [GiveUp(END)]


def test_a_death_later_brings_the_next_epoch_and_old_messages_count_no_more():
    """R8: otherwise a Ready still under way from the dead start would pass for the new one's."""
    roster = running()
    assert roster.on_died("loader", END, 100)[-1] == Spawn(Party("loader", 2))
    assert not roster.is_current(Party("loader", 1))
    assert roster.is_current(Party("loader", 2))
    assert not roster.is_current(Party("stranger", 1))
    assert not roster.is_current(None)
    assert roster.on_ready("loader", {}, 101)[1] == SendControl(Party("compute", 1), Peer("loader", 2, {}))


def test_peers_hear_of_a_death_before_the_successor_is_started():
    """Else they would hand their work to a dead process until the next one is ready."""
    roster = running()
    told = SendControl(Party("loader", 1), PeerDied("compute", 1))
    assert roster.on_died("compute", END, 100) == [told, Spawn(Party("compute", 2))]


def test_nobody_hears_of_the_death_of_a_stage_that_was_not_introduced():
    """A successor that dies while it starts; and what is down itself cannot hear."""
    roster = running()
    roster.on_died("compute", END, 100)
    assert roster.on_died("compute", END, 101) == [Spawn(Party("compute", 3))]
    assert roster.on_died("loader", END, 101) == [Spawn(Party("loader", 2))]


def test_a_stage_that_is_down_is_not_introduced():
    roster = running()
    roster.on_died("loader", END, 100)
    roster.on_died("compute", END, 100)
    assert roster.on_ready("loader", {}, 101) == []
    assert len(roster.on_ready("compute", {}, 102)) == 2


def test_its_own_words_are_the_cause():
    roster = Roster(PEERS, 2, 10)
    roster.start(0)
    roster.on_failed("loader", ErrorFacts("budget", "too large", "slots"))
    [action] = roster.on_died("loader", END, 1)
    assert isinstance(action, GiveUp)
    assert isinstance(action.cause, BudgetError)


@pytest.mark.parametrize("code", ["checkpoint", "usage"])
def test_what_a_restart_would_meet_again_ends_a_running_engine_at_once(code: str):
    """A file that was cut off, an option that is wrong: five restarts would only hide the cause for a while."""
    roster = running()
    roster.on_failed("loader", ErrorFacts(code, "was cut off", "model.safetensors"))
    [action] = roster.on_died("loader", END, 1)
    assert isinstance(action, GiveUp)
    assert str(action.cause) == "model.safetensors: was cut off"


def test_words_of_an_earlier_start_are_not_the_cause_of_a_later_death():
    roster = running()
    roster.on_failed("loader", ErrorFacts("budget", "too large", "slots"))
    for time_s in (1, 2, 3):
        action = roster.on_died("loader", END, time_s)[-1]
    assert "the first time: slots: too large" in str(action)
    assert [cause.what for _, cause in roster.members["loader"].deaths] == ["too large", "was killed", "was killed"]


def test_more_deaths_than_the_limit_within_a_minute_end_the_engine_with_the_first_cause():
    roster = running()
    roster.on_died("loader", EngineError("the first"), 10)
    roster.on_ready("loader", {}, 11)
    roster.on_died("loader", END, 20)
    roster.on_ready("loader", {}, 21)
    [action] = roster.on_died("loader", END, 30)
    assert isinstance(action, GiveUp)
    assert "died 3 times within a minute; the first time: the first" in str(action.cause)


def test_rare_deaths_are_no_storm():
    roster = running()
    for time_s in range(100, 2000, 40):
        assert roster.on_died("loader", END, time_s)[-1] == Spawn(Party("loader", roster.members["loader"].epoch))
        roster.on_ready("loader", {}, time_s)


def test_a_stage_that_takes_a_minute_to_fail_is_a_storm_too():
    """By the clock of the wall its deaths would never fall into one minute, and it would be restarted for ever."""
    roster = running()
    actions = [roster.on_died("loader", END, time_s)[-1] for time_s in (10, 80, 150)]
    assert [type(action) for action in actions] == [Spawn, Spawn, GiveUp]


def test_a_stage_that_is_late_is_killed_once_and_its_lateness_is_the_cause():
    roster = Roster(PEERS, 2, 10)
    roster.start(0)
    roster.on_ready("compute", {}, 1)
    assert roster.check_timeouts(10) == []
    assert roster.check_timeouts(11) == [Kill(Party("loader", 1))]
    assert roster.check_timeouts(12) == []
    [action] = roster.on_died("loader", END, 12)
    assert isinstance(action, GiveUp)
    assert "was not ready after 10 s" in str(action.cause)
