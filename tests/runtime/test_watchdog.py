"""Which stage hangs, as histories: no process, no clock (R10)."""

from __future__ import annotations

import pytest
from expertflow.ipc.messages import StageStats
from expertflow.runtime.engine.watchdog import Hang, Watchdog

LIMIT = 10.0
STAGES = ("scheduler", "compute", "loader")


class History:
    """Every second each stage publishes what it waits on and what it has done, unless it is `silent` or `idle`."""

    def __init__(self, limit_s: float = LIMIT) -> None:
        self.dog, self.now_s = Watchdog(limit_s), 100.0
        self.idle: set[str] = set()
        self.silent: set[str] = set()
        self.waits: dict[str, str] = {"scheduler": "compute", "compute": "loader"}
        self._done: dict[str, int] = dict.fromkeys(STAGES, 0)
        for stage in STAGES:
            self.dog.on_ready(stage, self.now_s)
        self.dog.check(self.now_s)

    def pass_by(self, seconds: int) -> list[Hang]:
        hangs: list[Hang] = []
        for _ in range(seconds):
            self.now_s += 1
            for stage in STAGES:
                self._done[stage] += stage not in self.idle
                if stage not in self.silent:
                    self.dog.on_stats(self._stats(stage), self.now_s)
            hangs += self.dog.check(self.now_s)
        return hangs

    def _stats(self, stage: str) -> StageStats:
        waiting_on, done = self.waits.get(stage, ""), self._done[stage]
        return StageStats(stage=stage, pid=1, epoch=1, time_ns=0, waiting_on=waiting_on, counters={"loads": done})


def test_while_work_is_done_nothing_hangs() -> None:
    assert History().pass_by(100) == []


def test_the_end_of_the_chain_is_ended_not_those_that_wait() -> None:
    history = History()
    history.idle = set(STAGES)
    assert [hang.stage for hang in history.pass_by(12)] == ["loader"]


def test_who_waits_may_do_other_things() -> None:
    """The scheduler takes in requests while its step is lost."""
    history = History()
    history.idle, history.waits = {"compute"}, {"scheduler": "compute"}
    assert [hang.stage for hang in history.pass_by(12)] == ["compute"]


def test_a_slow_end_is_no_hang() -> None:
    """The others wait for ever, and it does something now and then."""
    history = History()
    history.idle = {"scheduler", "compute"}
    assert history.pass_by(60) == []


def test_idle_stages_for_which_nobody_waits_are_left_alone() -> None:
    history = History()
    history.idle, history.waits = set(STAGES), {}
    assert history.pass_by(100) == []


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_that_says_nothing_hangs_whoever_waits(stage: str) -> None:
    history = History()
    history.silent = {stage}
    hangs = history.pass_by(12)
    assert [hang.stage for hang in hangs] == [stage] and "published nothing for 10 s" in hangs[0].what


def test_one_at_a_time_and_everybody_gets_a_new_chance() -> None:
    history = History()
    history.silent = {"compute", "loader"}
    assert len(history.pass_by(12)) == 1
    assert len(history.pass_by(9)) == 0
    assert len(history.pass_by(5)) == 1


def test_a_stage_that_has_ended_is_waited_for_elsewhere() -> None:
    """`start_timeout_s` is for those that start."""
    history = History()
    history.silent = {"loader"}
    history.dog.on_ended("loader")
    history.idle = set(STAGES)
    history.waits = {"compute": "loader"}
    assert history.pass_by(100) == []
    history.dog.on_ready("loader", history.now_s)
    assert [hang.stage for hang in history.pass_by(12)] == ["loader"]


def test_a_supervisor_that_was_stopped_blames_nobody() -> None:
    """Ctrl-Z and fg; a debugger."""
    history = History()
    history.now_s += 1000
    assert history.dog.check(history.now_s) == []
    assert history.pass_by(5) == []


@pytest.mark.parametrize("limit_s", [3.0, 4.0])
def test_a_pause_of_the_whole_machine_is_no_hang_with_a_short_limit_either(limit_s: float) -> None:
    """A virtual machine that moves stands still for some seconds, and nobody could publish (mutant: only 5 s count)."""
    history = History(limit_s)
    assert history.pass_by(2) == []
    history.now_s += limit_s + 0.5
    assert history.dog.check(history.now_s) == []
    assert history.pass_by(20) == []


def test_chains_that_end_where_they_began_are_followed_once() -> None:
    history = History()
    history.idle, history.waits = set(STAGES), {"compute": "loader", "loader": "compute"}
    assert len(history.pass_by(12)) == 1


def test_without_a_limit_nothing_hangs() -> None:
    history = History(limit_s=0)
    history.silent = set(STAGES)
    assert history.pass_by(1000) == []


def test_a_stage_that_waits_for_a_restarting_one_does_not_hang() -> None:
    """A loader may take longer to start than `hang_timeout_s`; its start has a limit of its own."""
    history = History()
    history.idle = set(STAGES)
    history.dog.on_ended("loader")
    assert history.pass_by(40) == []
    history.dog.on_ready("loader", history.now_s)
    assert history.pass_by(8) == []
    assert [hang.stage for hang in history.pass_by(4)] == ["loader"]
