"""docs/metrics.md names every metric that is exported, and no other."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import expertflow
from expertflow.ipc.messages import Welcome
from expertflow.runtime.cluster.gateway.events import ReplicaJoined, StatePublished
from expertflow.runtime.cluster.gateway.metrics import gateway_metrics
from expertflow.runtime.cluster.gateway.state import Gateway
from expertflow.runtime.cluster.routing.fleet import ReplicaState
from expertflow.runtime.cluster.routing.router import Router
from expertflow.runtime.cluster.routing.rules import make_rule
from expertflow.runtime.http.counters import Counters, server_exposition
from expertflow.runtime.metrics.collector import engine_metrics
from expertflow.tests.runtime.metrics.test_collector import busy_board
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families

PAGE = Path(expertflow.__file__).with_name("docs") / "metrics.md"


def names_in(behind: Iterable[Metric]) -> set[str]:
    """Names as a query has them; a histogram without its suffixes."""
    text = server_exposition(Counters(), behind).decode()
    suffixes = {"counter": "_total", "info": "_info"}
    return {family.name + suffixes.get(family.type, "") for family in text_string_to_metric_families(text)}


def metrics_of_a_cluster() -> list[Metric]:
    """The metrics of a gateway with one replica, which has published its state."""
    gateway = Gateway(Router(make_rule("experts")))
    facts = {"model": "", "vocabulary": 9, "context": 9, "eos_ids": [], "queue_limit": 9, "batch_size": 4}
    gateway.handle(ReplicaJoined("one", Welcome(**facts)), 1)
    gateway.handle(StatePublished("one", ReplicaState(time_ns=1, hits=7, stall_share=0.25)), 2)
    return list(gateway_metrics(gateway, 3))


def exported_names() -> set[str]:
    """All names: those of an engine and of a cluster."""
    return names_in(engine_metrics(busy_board().snapshot())) | names_in(metrics_of_a_cluster())


def test_page_and_exposition_name_the_same_metrics() -> None:
    assert set(re.findall(r"\bexpertflow_\w+[a-z]\b", PAGE.read_text())) == exported_names()


def test_a_cluster_tells_what_its_replicas_have_published() -> None:
    text = server_exposition(Counters(), metrics_of_a_cluster()).decode()
    assert 'expertflow_cluster_hits_total{replica="one"} 7.0' in text
    assert 'expertflow_cluster_stall_share{replica="one"} 0.25' in text
    assert "expertflow_cluster_replicas 1.0" in text and "expertflow_engine_up" not in text
