"""Histograms of the times of requests, with the meanings and bounds that vLLM's metrics of the same names have."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

from ...ipc.messages import HistogramCounts
from .requests import RequestState

FIRST_TOKEN_S = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0,
    640.0, 2560.0,
)  # fmt: skip
INTER_TOKEN_S = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0,
    40.0, 80.0,
)  # fmt: skip
"""vLLM's begin at 0.01: a small model takes less."""
REQUEST_S = (
    0.01, 0.05, 0.1, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0,
    480.0, 960.0, 1920.0, 7680.0,
)  # fmt: skip


class Histogram:
    """Counts of durations by upper bounds."""

    def __init__(self, bounds_s: Sequence[float]) -> None:
        self._bounds_s = list(bounds_s)
        self._bounds_ns = [round(bound * 1e9) for bound in bounds_s]
        self._counts = [0] * (len(bounds_s) + 1)
        self._sum_ns = 0

    def observe(self, duration_ns: int) -> None:
        """Count one duration."""
        self._counts[bisect_left(self._bounds_ns, duration_ns)] += 1
        self._sum_ns += duration_ns

    def counts(self) -> HistogramCounts:
        """Return the counts so far."""
        return HistogramCounts(self._bounds_s, list(self._counts), self._sum_ns)


class RequestLatencies:
    """Times of all requests of this scheduler."""

    def __init__(self) -> None:
        self._queue, self._total = Histogram(REQUEST_S), Histogram(REQUEST_S)
        self._first, self._next = Histogram(FIRST_TOKEN_S), Histogram(INTER_TOKEN_S)

    def on_token(self, request: RequestState, now_ns: int) -> None:
        """Count the time before a token, since the last one or since the request was accepted."""
        if request.last_token_ns is None:
            self._first.observe(now_ns - request.accepted_ns)
        else:
            self._next.observe(now_ns - request.last_token_ns)
        request.last_token_ns = now_ns

    def on_finished(self, request: RequestState, now_ns: int) -> None:
        """Count the whole time of a request that ended with a finish reason, and its time in the queue."""
        self._total.observe(now_ns - request.accepted_ns)
        started_ns = now_ns if request.started_ns is None else request.started_ns
        self._queue.observe(started_ns - request.accepted_ns)

    def counts(self) -> dict[str, HistogramCounts]:
        """Return the histograms by name."""
        return {
            "queue_time": self._queue.counts(),
            "time_to_first_token": self._first.counts(),
            "inter_token_latency": self._next.counts(),
            "e2e_latency": self._total.counts(),
        }
