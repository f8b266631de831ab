"""The newest activity of an engine's stages, for watchers. Stages report only while somebody has asked lately (I7)."""

from __future__ import annotations

from collections import deque

from ...ipc.messages import Activity, CacheHeat, OpenRequests, Span, StageSpans, Watched

WATCH_NS = 5_000_000_000
"""Time after the last question for which stages go on reporting."""
MAX_KEPT = 6000
"""Spans that are kept for watchers: some 1 MB."""


class ActivityBoard:
    """A pure core: the engine's thread tells it what comes, and sends stages what it returns."""

    def __init__(self) -> None:
        self.is_watched = False
        self._asked_ns = 0
        self._heat: CacheHeat | None = None
        self._requests: OpenRequests | None = None
        self._spans: deque[StageSpans] = deque()
        self._kept = 0
        self._number = 0

    def ask(self, after: int, now_ns: int) -> tuple[Activity, Watched | None]:
        """Return the activity, with the spans after number `after`, and what to tell all stages, if anything."""
        begins, self.is_watched, self._asked_ns = not self.is_watched, True, now_ns
        spans = [spans for spans in self._spans if spans.number > after]
        activity = Activity(time_ns=now_ns, heat=self._heat, requests=self._requests, spans=spans)
        return activity, Watched(on=True) if begins else None

    def check(self, now_ns: int) -> Watched | None:
        """Return what to tell all stages, if anything: nobody has asked for a while."""
        if not self.is_watched or now_ns - self._asked_ns < WATCH_NS:
            return None
        self.is_watched, self._heat, self._requests, self._kept = False, None, None, 0
        self._spans.clear()
        return Watched(on=False)

    def on_report(self, report: CacheHeat | OpenRequests) -> None:
        """Note what a stage reports."""
        match report:
            case CacheHeat():
                self._heat = report
            case OpenRequests():
                self._requests = report

    def on_spans(self, stage: str, spans: list[Span]) -> None:
        """Keep spans that a stage has published, if somebody watches; the oldest beyond `MAX_KEPT` are dropped."""
        if not self.is_watched or not spans:
            return
        self._number += 1
        self._spans.append(StageSpans(self._number, stage, spans))
        self._kept += len(spans)
        while self._kept > MAX_KEPT and len(self._spans) > 1:
            self._kept -= len(self._spans.popleft().spans)

    def on_died(self, stage: str) -> None:
        """Forget what a dead stage reported: its requests and slots may be other ones now."""
        if stage == "loader":
            self._heat = None
        if stage == "scheduler":
            self._requests = None
