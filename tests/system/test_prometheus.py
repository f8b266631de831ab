"""A real Prometheus scrapes a busy engine: every query of the dashboard and of the alerts gives a value."""

from __future__ import annotations

import json
import math
import socket
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from expertflow import Config, Supervisor
from expertflow.runtime.metrics.server import MetricsServer
from expertflow.tests.runtime.fakes import wait_until
from expertflow.tests.runtime.metrics.programs import require_program
from expertflow.tests.runtime.metrics.record_faults import under_load
from expertflow.tests.runtime.metrics.test_dashboard import FOLDER, queries

MODEL = Path(__file__).parents[2] / "examples" / "model"
CONFIG = """
global: {scrape_interval: 1s, evaluation_interval: 1s}
rule_files: [%s]
scrape_configs: [{job_name: expertflow, static_configs: [{targets: ["%s"]}]}]
"""


@contextmanager
def running_prometheus(folder: Path, target: str) -> Iterator[str]:
    """Yield the address of a Prometheus that scrapes `target` each second."""
    program = require_program("prometheus")
    config = folder / "prometheus.yml"
    config.write_text(CONFIG % (FOLDER / "alerts.yml", target))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        where = f"127.0.0.1:{probe.getsockname()[1]}"
    log = (folder / "prometheus.log").open("wb")
    process = subprocess.Popen(
        [program, f"--config.file={config}", f"--storage.tsdb.path={folder / 'data'}", f"--web.listen-address={where}"],
        stdout=log,
        stderr=log,
    )
    try:
        yield f"http://{where}"
    finally:
        process.terminate()
        process.wait(30)
        log.close()


def ask(url: str, path: str, **query: str) -> Any:
    with urllib.request.urlopen(f"{url}/api/v1/{path}?{urllib.parse.urlencode(query)}", timeout=20) as reply:
        return json.load(reply)["data"]


def has_value(url: str, query: str) -> bool:
    """Return whether the query gives at least one series, and no NaN."""
    try:
        result = ask(url, "query", query=query)["result"]
    except (urllib.error.URLError, ConnectionError):
        return False
    return bool(result) and all(math.isfinite(float(series["value"][1])) for series in result)


@pytest.mark.timeout(240)
def test_every_panel_shows_a_value_of_a_busy_engine(tmp_path: Path) -> None:
    """A query that parses may still ask for labels that never meet, or divide nothing by nothing."""
    config = Config.load(
        "cpu-disk", model=MODEL, expert_memory="25%", kv_memory="64MiB", batch_size=4, prediction="on"
    )
    with (
        MetricsServer("0") as server,
        Supervisor(config) as engine,
        running_prometheus(tmp_path, server.url.removeprefix("http://").removesuffix("/metrics")) as prometheus,
        under_load(engine.address),
    ):
        server.serve(engine.address)
        open_queries = dict.fromkeys(query for _, query in queries(rate_interval="15s"))

        def settle() -> bool:
            for query in [query for query in open_queries if has_value(prometheus, query)]:
                del open_queries[query]
            return not open_queries

        try:
            wait_until(settle, timeout_s=120)
        except AssertionError:
            pytest.fail(f"no value: {list(open_queries)}")
        assert ask(prometheus, "targets")["activeTargets"][0]["health"] == "up"
        rules = ask(prometheus, "rules")["groups"][0]["rules"]
        assert len(rules) == 6 and {rule["health"] for rule in rules} == {"ok"}
