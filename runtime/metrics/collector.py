"""Metrics of engines from one snapshot. Counters cover all epochs of a stage, so a restart never lets one fall."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from itertools import accumulate

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.registry import Collector

from ... import __version__
from ...ipc.messages import HistogramCounts, Snapshot, StageTotals
from ..client.snapshots import device_of, split_snapshot
from ..monitor.totals import NOTHING, add_epoch
from .catalogue import COUNTERS, GAUGES, HISTOGRAMS, StageMetric

PREFIX = "expertflow_"
EXPOSITION = CONTENT_TYPE_PLAIN_0_0_4
INFO = {"model": "scheduler", "link": "loader", "predictor": "predictor", "kernels": "compute"}
"""Label of `expertflow_engine_info` -> the stage that tells it."""
SLOT_STATES = ("free", "filling", "held")
REASONS = ("died", "failed", "hung")
ENDS = (
    ("request_success", "Requests that ended with a finish reason.", "finished_reason", "finished_",
     ("stop", "length", "cancelled", "deadline")),
    ("request_errors", "Requests refused or ended with an error.", "type", "error_", ("request", "busy", "engine")),
)  # fmt: skip
"""Name, text and label of a metric, the counters of the scheduler that it is made of, and those that start at zero: a
rate needs a first value."""
Totals = dict[str, StageTotals]


def exposition(families: Iterable[Metric]) -> bytes:
    """Return metrics in Prometheus' text format."""
    return generate_latest(_Families(families))


def build_info() -> Metric:
    """Return the version of the package as a metric."""
    return InfoMetricFamily(PREFIX + "build", "Version of the package.", {"version": __version__})


def engine_metrics(snapshot: Snapshot | None) -> Iterator[Metric]:
    """Yield the metrics of an engine, or of all engines of a group. None: the engine gives no snapshot."""
    parts = split_snapshot(snapshot) if snapshot else {}
    engines = {engine or device_of(part).partition(" ")[0] or "cpu": part for engine, part in parts.items()}
    totals = {device: stage_totals(part) for device, part in engines.items()}
    yield _gauge("engine_up", "1 if the engine answers.", [], [((), int(bool(engines)))])
    yield _engine_info(engines)
    yield from _stage_metrics(engines, totals)
    yield from _catalogued(engines, totals)
    yield from _slot_metrics(engines)
    yield from _request_metrics(engines, totals)
    yield from _histograms(totals)


def stage_totals(snapshot: Snapshot) -> Totals:
    """Return stage -> what it counted in all its epochs."""
    return {stage: add_epoch(snapshot.ended.get(stage, NOTHING), stats) for stage, stats in snapshot.stages.items()}


class _Families(Collector):
    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families


def _engine_info(engines: dict[str, Snapshot]) -> Metric:
    info = InfoMetricFamily(PREFIX + "engine", "Model and parts of an engine.", labels=["device"])
    for device, part in engines.items():
        named = {name: str(part.facts.get(stage, {}).get(name, "")) for name, stage in INFO.items()}
        info.add_metric([device], named)
    return info


def _stage_metrics(engines: dict[str, Snapshot], totals: dict[str, Totals]) -> Iterator[Metric]:
    each = [((device, stage), total) for device, found in totals.items() for stage, total in found.items()]
    labels = ["device", "stage"]
    yield _counter("stage_done", "Units of work that a stage finished (docs/metrics.md).", labels,
                   [(key, total.done) for key, total in each])  # fmt: skip
    yield _counter("stage_busy_seconds", "Time that a stage worked.", labels,
                   [(key, total.busy_ns / 1e9) for key, total in each])  # fmt: skip
    yield _counter("stage_stall_seconds", "Time that a stage waited for another one with work to do.", labels,
                   [(key, total.stalled_ns / 1e9) for key, total in each])  # fmt: skip
    yield _gauge("stage_queue", "Work that waits for a stage.", labels,
                 [((device, stage), stats.queue) for device, part in engines.items()
                  for stage, stats in part.stages.items()])  # fmt: skip
    yield _gauge("stage_up", "0 while a stage is restarted.", labels,
                 [((device, stage), int(stage not in part.down)) for device, part in engines.items()
                  for stage in part.restarts])  # fmt: skip
    yield _counter("stage_restarts", "Restarts of a stage.", labels,
                   [((device, stage), count) for device, part in engines.items()
                    for stage, count in part.restarts.items()])  # fmt: skip
    yield _counter("stage_failures", "Processes of a stage that ended while the engine ran.", [*labels, "reason"],
                   [((device, stage, reason), part.failures.get(stage, {}).get(reason, 0))
                    for device, part in engines.items() for stage in part.restarts for reason in REASONS])  # fmt: skip
    yield _gauge("process_pss_bytes", "Memory of a process, shared pages by share.", labels,
                 [((device, stage), size) for device, part in engines.items()
                  for stage, size in part.pss_bytes.items()])  # fmt: skip


def _catalogued(engines: dict[str, Snapshot], totals: dict[str, Totals]) -> Iterator[Metric]:
    for metric in COUNTERS:
        yield _counter(metric.name, metric.text, ["device"], [
            ((device,), found[metric.stage].counters[metric.counter] * metric.scale)
            for device, found in totals.items() if metric.counter in _counters_of(found, metric)
        ])  # fmt: skip
    for metric in GAUGES:
        yield _gauge(metric.name, metric.text, ["device"], [
            ((device,), part.stages[metric.stage].counters[metric.counter] * metric.scale)
            for device, part in engines.items()
            if metric.stage in part.stages and metric.counter in part.stages[metric.stage].counters
        ])  # fmt: skip


def _slot_metrics(engines: dict[str, Snapshot]) -> Iterator[Metric]:
    loaders = {device: part.stages["loader"].counters for device, part in engines.items() if "loader" in part.stages}
    facts = {device: part.facts.get("loader", {}) for device, part in engines.items()}
    yield _gauge("slots", "Slots for experts by state.", ["device", "state"],
                 [((device, state), counters.get(state, 0)) for device, counters in loaders.items()
                  for state in SLOT_STATES])  # fmt: skip
    yield _gauge("slots_budget_bytes", "Memory of all slots.", ["device"],
                 [((device,), int(each.get("slots", 0)) * int(each.get("slot_bytes", 0)))
                  for device, each in facts.items()])  # fmt: skip
    yield _gauge("experts_bytes", "Size of all experts of the model.", ["device"],
                 [((device,), int(each.get("experts_bytes", 0))) for device, each in facts.items()])  # fmt: skip


def _request_metrics(engines: dict[str, Snapshot], totals: dict[str, Totals]) -> Iterator[Metric]:
    schedulers = {device: found["scheduler"].counters for device, found in totals.items() if "scheduler" in found}
    for name, text, label, prefix, usual in ENDS:
        yield _counter(name, text, ["device", label], [
            ((device, key.removeprefix(prefix)), value)
            for device, found in schedulers.items()
            for key, value in ({prefix + each: 0 for each in usual} | found).items() if key.startswith(prefix)
        ])  # fmt: skip
    waiting = [(device, part) for device, part in engines.items() if "scheduler" in part.stages]
    yield _gauge("request_queue_age_seconds", "Age of the request that waits longest for its start.", ["device"],
                 [((device,), _queue_age_s(part)) for device, part in waiting])  # fmt: skip
    facts = {device: part.facts.get("scheduler", {}) for device, part in waiting}
    yield _gauge("request_queue_limit", "Requests that may wait.", ["device"],
                 [((device,), int(each.get("queue_limit", 0))) for device, each in facts.items()])  # fmt: skip
    budgets = {device: int(each.get("kv_budget_bytes", 0)) for device, each in facts.items()}
    yield _gauge("kv_cache_budget_bytes", "Memory that KV caches may take.", ["device"],
                 [((device,), size) for device, size in budgets.items()])  # fmt: skip
    yield _gauge("kv_cache_usage_perc", "Share of the KV budget that rows have reserved, 0 to 1.", ["device"], [
        ((device,), part.stages["scheduler"].counters.get("kv_reserved_bytes", 0) / budgets[device])
        for device, part in waiting if budgets[device]
    ])  # fmt: skip


def _queue_age_s(part: Snapshot) -> float:
    """Return the age of the oldest request that waits, also while the scheduler itself hangs."""
    oldest_ns = part.stages["scheduler"].counters.get("oldest_waiting_ns", 0)
    return max(0.0, (time.monotonic_ns() - oldest_ns) / 1e9) if oldest_ns else 0.0


def _histograms(totals: dict[str, Totals]) -> Iterator[Metric]:
    for source, (name, text) in HISTOGRAMS.items():
        family = HistogramMetricFamily(PREFIX + name, text, labels=["device"])
        for device, found in totals.items():
            if "scheduler" in found and source in found["scheduler"].histograms:
                counts = found["scheduler"].histograms[source]
                family.add_metric([device], _buckets(counts), counts.sum_ns / 1e9)
        yield family


def _buckets(counts: HistogramCounts) -> list[tuple[str, float]]:
    """Return (upper bound, durations up to it) of each bucket."""
    bounds = [*(str(bound) for bound in counts.bounds_s), "+Inf"]
    return list(zip(bounds, map(float, accumulate(counts.counts)), strict=True))


def _counters_of(totals: Totals, metric: StageMetric) -> dict[str, int | float]:
    return totals[metric.stage].counters if metric.stage in totals else {}


def _counter(name: str, text: str, labels: list[str], samples: Iterable[tuple[tuple[str, ...], float]]) -> Metric:
    family = CounterMetricFamily(PREFIX + name, text, labels=labels)
    for key, value in samples:
        family.add_metric(list(key), value)
    return family


def _gauge(name: str, text: str, labels: list[str], samples: Iterable[tuple[tuple[str, ...], float]]) -> Metric:
    family = GaugeMetricFamily(PREFIX + name, text, labels=labels)
    for key, value in samples:
        family.add_metric(list(key), value)
    return family
