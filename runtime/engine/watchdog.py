"""Finds the stage that hangs (R10): not the one that waits, but the end of what it waits for. No process, no clock."""

from __future__ import annotations

from typing import NamedTuple

from ...ipc.messages import StageStats

BLINK_S = 5.0
"""Between two looks; when more has passed, we ourselves did not run, and nobody is to be blamed for that time."""


class Hang(NamedTuple):
    """A stage that is to be ended; `what` it did or did not do."""

    stage: str
    what: str


class _Seen:
    """What is known of one stage since it became ready."""

    def __init__(self, now_s: float) -> None:
        self.heard_s = self.waits_s = self.moved_s = now_s
        """When it last published, began to wait for what it waits on, and did something."""
        self.waiting_on = ""
        self.work: object = None
        """All that it counts: when any of it changes it has done something."""


class Watchdog:
    """A stage hangs when it has said nothing for `limit_s`, as each publishes every second, or when another waits for
    it and it has done nothing for as long. A `limit_s` of 0: nothing is ever taken for a hang."""

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._seen: dict[str, _Seen] = {}
        self._looked_s = 0.0

    def ready(self, stage: str, now_s: float) -> None:
        """A stage can work from now on."""
        self._seen[stage] = _Seen(now_s)

    def gone(self, stage: str) -> None:
        """A stage has ended; until its successor is ready nothing is expected of it."""
        self._seen.pop(stage, None)

    def on_stats(self, stats: StageStats, now_s: float) -> None:
        """A stage has published."""
        seen = self._seen.get(stats.stage)
        if seen is None:
            return
        work = (stats.done, stats.queue, stats.counters)
        seen.heard_s = now_s
        if stats.waiting_on != seen.waiting_on:
            seen.waiting_on, seen.waits_s = stats.waiting_on, now_s
        if work != seen.work:
            seen.work, seen.moved_s = work, now_s

    def check(self, now_s: float) -> list[Hang]:
        """The stages that hang now, at most one at a time: its end may free the others."""
        missed_s, self._looked_s = now_s - self._looked_s, now_s
        if missed_s > BLINK_S:
            self._forgive(now_s)
        hang = self._silent(now_s) or self._stuck(now_s) if self._limit_s else None
        if hang is None:
            return []
        self._forgive(now_s)
        return [hang]

    def _silent(self, now_s: float) -> Hang | None:
        for stage, seen in self._seen.items():
            if now_s - seen.heard_s > self._limit_s:
                return Hang(stage, f"has said nothing for {self._limit_s:g} s")
        return None

    def _stuck(self, now_s: float) -> Hang | None:
        for stage in self._seen:
            *waiting, end = self._chain(stage)
            late_s = now_s - self._limit_s
            if (
                waiting
                and self._seen[end].moved_s < late_s
                and all(self._seen[each].waits_s < late_s for each in waiting)
            ):
                return Hang(end, f"has kept {waiting[-1]} waiting for {self._limit_s:g} s without doing anything")
        return None

    def _chain(self, stage: str) -> list[str]:
        """A stage, what it waits on, what that waits on, …"""
        chain = [stage]
        while (after := self._seen[chain[-1]].waiting_on) in self._seen and after not in chain:
            chain.append(after)
        return chain

    def _forgive(self, now_s: float) -> None:
        """Everybody's time begins anew."""
        for seen in self._seen.values():
            seen.heard_s = seen.waits_s = seen.moved_s = now_s
