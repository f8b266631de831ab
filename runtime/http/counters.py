"""Counts of the HTTP server, and the text of `/metrics`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from ..metrics.collector import PREFIX, build_info, exposition

GONE = 499
"""Status of requests whose clients hung up."""


@dataclass
class Counters:
    """Counts of what the server has done."""

    replies: Counter[tuple[str, int]] = field(default_factory=Counter)
    """Replies by path and status."""
    open_requests: int = 0
    open_streams: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0


def server_exposition(counters: Counters, engine: Iterable[Metric]) -> bytes:
    """Return all metrics in Prometheus' text format: those of the server, and those of what is behind it."""
    return exposition([build_info(), *_http_metrics(counters), *engine])


def _http_metrics(counters: Counters) -> Iterator[Metric]:
    replies = CounterMetricFamily(
        PREFIX + "http_replies", "Replies; 499: the client hung up.", labels=["path", "status"]
    )
    for (path, status), count in counters.replies.items():
        replies.add_metric([path, str(status)], count)
    yield replies
    yield GaugeMetricFamily(PREFIX + "http_requests_open", "Requests open at the engine.", counters.open_requests)
    yield GaugeMetricFamily(PREFIX + "http_streams_open", "Streams being sent.", counters.open_streams)
    yield CounterMetricFamily(PREFIX + "http_prompt_tokens", "Prompt tokens of answers.", counters.prompt_tokens)
    yield CounterMetricFamily(PREFIX + "http_generation_tokens", "Output tokens of answers.", counters.output_tokens)
