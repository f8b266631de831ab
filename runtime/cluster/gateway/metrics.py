"""The gateway's counts as Prometheus' metrics, with what replicas last published."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from ...metrics.collector import PREFIX
from ..routing.fleet import Fleet
from .state import Gateway

OF_REPLICAS = (
    ("hits", "Experts in use that were in a slot, by replica."),
    ("misses", "Experts in use that were loaded, by replica."),
    ("loaded_bytes", "Bytes of experts loaded, by replica."),
    ("tokens", "Tokens that compute has run, by replica."),
)
"""Counters of `ReplicaState`, since the start of the replica's engine."""


def gateway_metrics(gateway: Gateway, now_ns: int) -> Iterator[Metric]:
    """Yield the metrics of a gateway at `now_ns` (monotonic)."""
    fleet = gateway.router.fleet
    yield _gauge("replicas", "Replicas that have joined.", len(fleet))
    yield _gauge("requests_waiting", "Requests that wait for a replica.", len(gateway.book.waiting))
    age_s = gateway.queue_age_ns(now_ns) / 1e9
    yield _gauge("queue_age_seconds", "Age of the oldest request that has not started.", age_s)
    yield CounterMetricFamily(
        f"{PREFIX}cluster_requests_moved", "Times that a request went on at another replica.", gateway.moved
    )
    yield from _of_replicas(fleet)


def _of_replicas(fleet: Fleet) -> Iterator[Metric]:
    places = [place for place, name in enumerate(fleet.names) if name]
    running = GaugeMetricFamily(f"{PREFIX}cluster_requests_placed", "Requests at each replica.", labels=["replica"])
    stalls = GaugeMetricFamily(
        f"{PREFIX}cluster_stall_share", "Share of time in which a replica waits for experts.", labels=["replica"]
    )
    counters = {
        name: CounterMetricFamily(f"{PREFIX}cluster_{name}", text, labels=["replica"]) for name, text in OF_REPLICAS
    }
    for place in places:
        label, state = [fleet.names[place]], fleet.states[place]
        running.add_metric(label, int(fleet.outstanding[place]))
        if state is not None:
            stalls.add_metric(label, state.stall_share)
            for name, family in counters.items():
                family.add_metric(label, getattr(state, name))
    yield from (running, stalls, *counters.values())


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(f"{PREFIX}cluster_{name}", text, value)
