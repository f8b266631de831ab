"""Counts of the HTTP server, and the text of `/metrics`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from ... import __version__
from ...ipc.messages import Snapshot, StageStats
from ..client.snapshots import split_snapshot

GONE = 499
"""Status of requests whose clients hung up."""
EXPOSITION = "text/plain; version=0.0.4; charset=utf-8"


@dataclass
class Counters:
    """Counts of what the server has done."""

    replies: Counter[tuple[str, int]] = field(default_factory=Counter)
    """Replies by path and status."""
    open_requests: int = 0
    open_streams: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0


@dataclass(frozen=True)
class Metric:
    """A metric with its samples: labels and values."""

    name: str
    kind: str
    text: str
    samples: Sequence[tuple[dict[str, str], float]]

    def lines(self) -> Iterator[str]:
        """Yield the lines of the exposition."""
        yield f"# HELP {self.name} {self.text}"
        yield f"# TYPE {self.name} {self.kind}"
        for labels, value in self.samples:
            named = ",".join(f'{name}="{_escape(text)}"' for name, text in labels.items())
            yield f"{self.name}{{{named}}} {value:g}" if named else f"{self.name} {value:g}"


def exposition(counters: Counters, snapshot: Snapshot | None) -> str:
    """Return all metrics in Prometheus' text format. Without a snapshot, those of the HTTP server alone."""
    metrics = [*_http_metrics(counters), *(_engine_metrics(snapshot) if snapshot else ())]
    return "\n".join(line for metric in metrics for line in metric.lines()) + "\n"


def _http_metrics(counters: Counters) -> Iterator[Metric]:
    yield Metric("expertflow_build_info", "gauge", "Version of the package.", [({"version": __version__}, 1)])
    replies = [({"path": path, "status": str(status)}, count) for (path, status), count in counters.replies.items()]
    yield Metric("expertflow_http_replies_total", "counter", "Replies; 499: the client hung up.", replies)
    yield _plain("expertflow_http_requests_open", "gauge", "Requests open at the engine.", counters.open_requests)
    yield _plain("expertflow_http_streams_open", "gauge", "Streams being sent.", counters.open_streams)
    yield _plain("expertflow_prompt_tokens_total", "counter", "Prompt tokens of answers.", counters.prompt_tokens)
    yield _plain("expertflow_generation_tokens_total", "counter", "Output tokens of answers.", counters.output_tokens)


def _engine_metrics(snapshot: Snapshot) -> Iterator[Metric]:
    stages = list(_labelled(snapshot))
    yield Metric("expertflow_stage_busy_seconds_total", "counter", "Time that a stage worked, since it was started.",
                 [(labels, stats.busy_ns / 1e9) for labels, stats in stages])  # fmt: skip
    yield Metric("expertflow_stage_done_total", "counter", "Units of work that a stage finished (docs/protocol.md).",
                 [(labels, stats.done) for labels, stats in stages])  # fmt: skip
    yield Metric("expertflow_stage_queue", "gauge", "Work that waits for a stage.",
                 [(labels, stats.queue) for labels, stats in stages])  # fmt: skip
    for field_name, name, kind, text in (
        ("restarts", "expertflow_stage_restarts_total", "counter", "Restarts of a stage."),
        ("pss_bytes", "expertflow_process_pss_bytes", "gauge", "Memory of a process, shared pages by share."),
    ):
        yield Metric(name, kind, text, list(_values(snapshot, field_name)))


def _labelled(snapshot: Snapshot) -> Iterator[tuple[dict[str, str], StageStats]]:
    for engine, part in split_snapshot(snapshot).items():
        for stage, stats in part.stages.items():
            yield {"engine": engine, "stage": stage}, stats


def _values(snapshot: Snapshot, name: str) -> Iterable[tuple[dict[str, str], float]]:
    for engine, part in split_snapshot(snapshot).items():
        for stage, value in getattr(part, name).items():
            yield {"engine": engine, "stage": stage}, value


def _plain(name: str, kind: str, text: str, value: float) -> Metric:
    return Metric(name, kind, text, [({}, value)])


def _escape(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
