"""The metrics server of `serve --metrics`: beside a real engine, over HTTP, and gone afterwards."""

from __future__ import annotations

import os
import signal
import socket
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import pytest
from expertflow.errors import UsageError
from expertflow.runtime.metrics.__main__ import MAX_CONNECTIONS
from expertflow.runtime.metrics.collector import build_info, engine_metrics, exposition
from expertflow.runtime.metrics.server import MetricsServer
from expertflow.runtime.service.listening import bind
from expertflow.tests.runtime.fakes import fake_engine, wait_until
from expertflow.tests.runtime.metrics.programs import run_promtool
from expertflow.tests.runtime.metrics.test_collector import busy_board
from prometheus_client.parser import text_string_to_metric_families


def scrape(url: str) -> str:
    with urllib.request.urlopen(url, timeout=20) as reply:
        assert reply.headers["content-type"].startswith("text/plain")
        return reply.read().decode()


def value(text: str, name: str, **labels: str) -> float:
    (found,) = [
        sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    ]
    return found


def test_an_engine_is_scraped_and_its_server_is_replaced_when_it_dies() -> None:
    with MetricsServer("0") as server:
        with fake_engine(("compute", "loader")) as engine:
            wait_until(lambda: len(engine.snapshot().stages) == 2)
            server.serve(engine.address)
            text = scrape(server.url)
            assert value(text, "expertflow_engine_up") == 1
            assert value(text, "expertflow_stage_restarts_total", stage="compute") == 0
            with socket.create_connection(server._socket.getsockname()):  # silent, and still there for the next scrape
                engine.kill("compute")
                wait_until(lambda: engine.snapshot().restarts["compute"] == 1)
                assert value(scrape(server.url), "expertflow_stage_restarts_total", stage="compute") == 1
            first = server._process
            assert first is not None
            os.kill(first.pid, signal.SIGKILL)
            first.wait(10)
            server.check()
            assert server._process is not first
            assert value(scrape(server.url), "expertflow_engine_up") == 1
        assert value(scrape(server.url), "expertflow_engine_up") == 0
        process = server._process
    assert process is not None and process.returncode is not None


def test_many_scrape_at_once_and_may_choose_by_name() -> None:
    """More than are answered at a time: the rest waits for its turn."""
    with MetricsServer("0") as server, fake_engine(("compute", "loader")) as engine:
        server.serve(engine.address)
        with ThreadPoolExecutor(3 * MAX_CONNECTIONS) as threads:
            texts = list(threads.map(scrape, [server.url] * 6 * MAX_CONNECTIONS))
        assert [value(text, "expertflow_engine_up") for text in texts] == [1] * len(texts)
        chosen = scrape(f"{server.url}?name[]=expertflow_engine_up&name[]=other")
        assert [line for line in chosen.splitlines() if line[0] != "#"] == ["expertflow_engine_up 1.0"]


@pytest.mark.parametrize("where", ["nowhere", "70000", "127.0.0.1:"])
def test_a_wrong_address_is_refused_before_the_engine_starts(where: str) -> None:
    with pytest.raises(UsageError, match="--metrics"):
        MetricsServer(where)


def test_a_taken_port_is_refused() -> None:
    with bind("127.0.0.1", 0) as taken, pytest.raises(UsageError, match="--metrics"):
        MetricsServer(str(taken.getsockname()[1]))


def test_promtool_accepts_the_exposition() -> None:
    """Units, suffixes, help and types, as Prometheus' own linter wants them."""
    text = exposition([build_info(), *engine_metrics(busy_board().snapshot())])
    assert run_promtool("check", "metrics", text=text).strip() == ""
