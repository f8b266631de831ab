"""Detection of hung stages (R10): the end of a chain of waits hangs, not the stages that wait. No process, no clock."""

from __future__ import annotations

from typing import NamedTuple

from ...ipc.messages import StageStats

MAX_CHECK_GAP_S = 5.0
"""Largest gap between two checks. After a larger gap the supervisor itself did not run: no stage is hung."""
MIN_CHECK_GAP_S, MAX_GAP_SHARE = 1.0, 0.25
"""Largest gap with a short limit, for which a shorter pause of the whole machine would pass for a hang: this share of
the limit, at least this time, since a busy machine is no sleeping one."""


class Hang(NamedTuple):
    """A stage to be killed; `what` describes the hang, with the stage as its subject."""

    stage: str
    what: str


class _Activity:
    """Activity of one stage since it became ready, in seconds of the supervisor's clock."""

    def __init__(self, now_s: float) -> None:
        self.published_s = self.waits_since_s = self.worked_s = now_s
        """Time of the last statistics, of the begin of the present wait, and of the last progress."""
        self.waiting_on = ""
        self.work: object = None
        """All counters of the stage: a change of any of them is progress."""


class Watchdog:
    """Finds stages that have published nothing for `limit_s` (each publishes every second), or that another stage waits
    for and that made no progress for `limit_s`. A stage that waits for a restarting one does not hang, however long the
    restart takes. A `limit_s` of 0 finds none."""

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._max_gap_s = min(MAX_CHECK_GAP_S, max(MIN_CHECK_GAP_S, MAX_GAP_SHARE * limit_s))
        self._stages: dict[str, _Activity] = {}
        self._restarting: set[str] = set()
        """Stages that have ended and whose successor is not ready."""
        self._checked_s = 0.0

    def on_ready(self, stage: str, now_s: float) -> None:
        """Watch a stage from now on."""
        self._restarting.discard(stage)
        self._stages[stage] = _Activity(now_s)

    def on_ended(self, stage: str) -> None:
        """Stop watching a stage that has ended, until its successor is ready."""
        self._stages.pop(stage, None)
        self._restarting.add(stage)

    def on_stats(self, stats: StageStats, now_s: float) -> None:
        """Note the statistics of a stage."""
        activity = self._stages.get(stats.stage)
        if activity is None:
            return
        work = (stats.done, stats.queue, stats.counters)
        activity.published_s = now_s
        if stats.waiting_on != activity.waiting_on:
            activity.waiting_on, activity.waits_since_s = stats.waiting_on, now_s
        if work != activity.work:
            activity.work, activity.worked_s = work, now_s

    def check(self, now_s: float) -> list[Hang]:
        """Return the hung stage, at most one at a time: its end may free the others."""
        gap_s, self._checked_s = now_s - self._checked_s, now_s
        if gap_s > self._max_gap_s:
            self._reset_times(now_s)
        hang = self._find_silent(now_s) or self._find_stuck(now_s) if self._limit_s else None
        if hang is None:
            return []
        self._reset_times(now_s)
        return [hang]

    def _find_silent(self, now_s: float) -> Hang | None:
        for stage, activity in self._stages.items():
            if now_s - activity.published_s > self._limit_s:
                return Hang(stage, f"has published nothing for {self._limit_s:g} s")
        return None

    def _find_stuck(self, now_s: float) -> Hang | None:
        for stage in self._stages:
            *waiting, last = self._wait_chain(stage)
            late_s = now_s - self._limit_s
            if (
                waiting
                and self._stages[last].waiting_on not in self._restarting
                and self._stages[last].worked_s < late_s
                and all(self._stages[waiter].waits_since_s < late_s for waiter in waiting)
            ):
                return Hang(last, f"has kept {waiting[-1]} waiting for {self._limit_s:g} s without progress")
        return None

    def _wait_chain(self, stage: str) -> list[str]:
        """Return a stage, the stage it waits on, the stage that one waits on, …"""
        chain = [stage]
        while (next_stage := self._stages[chain[-1]].waiting_on) in self._stages and next_stage not in chain:
            chain.append(next_stage)
        return chain

    def _reset_times(self, now_s: float) -> None:
        """Restart all times at `now_s`."""
        for activity in self._stages.values():
            activity.published_s = activity.waits_since_s = activity.worked_s = now_s
