"""The dashboard and the alerts: queries that parse, metrics that exist, alerts that fire on recorded faults."""

from __future__ import annotations

import json
import re
from itertools import combinations
from pathlib import Path
from typing import Any

import expertflow
import promql_parser
import pytest
from expertflow.tests.runtime.metrics.programs import run_promtool
from expertflow.tests.runtime.metrics.test_page import exported_names

ROOT = Path(expertflow.__file__).resolve().parent
FOLDER = ROOT / "examples" / "monitoring"
RECORD = ROOT / "tests" / "data" / "alerts.json"
STRETCH = 15
"""Seconds for which a recorded one stands."""
COUNTS_EVENTS = "expertflow_stage_restarts_total"


def dashboard() -> dict[str, Any]:
    return json.loads((FOLDER / "grafana.json").read_text())


def panels() -> list[dict[str, Any]]:
    return [panel for panel in dashboard()["panels"] if panel["type"] != "row"]


def queries(rate_interval: str = "1m") -> list[tuple[str, str]]:
    """Return (title of the panel, query as Grafana would send it for all devices)."""
    given = {"$__rate_interval": rate_interval, "$device": ".*"}
    found: list[tuple[str, str]] = []
    for panel in panels():
        for target in panel["targets"]:
            query = target["expr"]
            for name, value in given.items():
                query = query.replace(name, value)
            found.append((panel["title"], query))
    return found


def names_in(query: str) -> set[str]:
    return {re.sub("_(bucket|sum|count)$", "", name) for name in re.findall(r"expertflow_\w+", query)}


@pytest.mark.parametrize(("title", "query"), queries())
def test_a_query_parses_and_names_what_is_exported(title: str, query: str) -> None:
    assert "$" not in query, "a variable that this test does not know"
    promql_parser.parse(query)
    assert names_in(query) and names_in(query) <= exported_names()


def test_a_wrong_query_is_found() -> None:
    with pytest.raises(ValueError, match="."):
        promql_parser.parse("rate(expertflow_steps_total[1m]")
    assert not names_in("expertflow_no_such_thing") <= exported_names()


def test_panels_lie_side_by_side_and_take_the_source_that_is_chosen() -> None:
    shown = dashboard()["panels"]
    assert len({panel["id"] for panel in shown}) == len(shown)
    for one, other in combinations([panel["gridPos"] for panel in shown], 2):
        apart = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        assert apart or one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"], (one, other)
    assert all(panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24 for panel in shown)
    sources = {target["datasource"]["uid"] for panel in panels() for target in panel["targets"]}
    assert sources == {"${datasource}"} and dashboard()["uid"] == "expertflow"


def test_prometheus_accepts_configuration_and_alerts() -> None:
    run_promtool("check", "config", FOLDER / "prometheus.yml")
    run_promtool("check", "rules", FOLDER / "alerts.yml")


def stretched(series: dict[str, list[float]], instance: str) -> list[dict[str, str]]:
    """Return recorded series as promtool reads them; `STRETCH` seconds pass between two samples."""
    lines: list[dict[str, str]] = []
    for key, values in series.items():
        name, _, labels = key.rstrip("}").partition("{")
        factor = STRETCH if name.endswith(("_seconds_total", "_age_seconds")) else 1
        named = ",".join(part for part in (labels, f'instance="{instance}"') if part)
        lines.append({"series": f"{name}{{{named}}}", "values": " ".join(f"{factor * value:.10g}" for value in values)})
    return lines


ALERTS = {
    "healthy": {},
    "stall": {"ExpertFlowStalled": {}},
    "low hit rate": {"ExpertFlowLowHitRate": {}},
    "restart storm": {"ExpertFlowRestartStorm": {"stage": "predictor"}},
    "queue age": {"ExpertFlowQueueOld": {}},
}
SUMMARIES = {
    "ExpertFlowStalled": "Compute at stall waits for experts more than half of the time",
    "ExpertFlowLowHitRate": "Less than half of the experts that layers at low hit rate need are in memory",
    "ExpertFlowRestartStorm": "Stage predictor of restart storm was restarted again and again",
    "ExpertFlowQueueOld": "A request at queue age has waited for more than a minute",
}
SEVERITIES = {"ExpertFlowRestartStorm": "critical"}


@pytest.mark.parametrize("fault", ALERTS)
def test_a_recorded_fault_fires_its_alert_and_no_other_that_is_not_due(fault: str, tmp_path: Path) -> None:
    """tests/runtime/metrics/record_faults.py made the record with a real engine."""
    series = json.loads(RECORD.read_text())[fault]
    expected = ALERTS[fault]
    tests = [
        {
            "eval_time": f"{STRETCH * (len(next(iter(series.values()))) - 1)}s",
            "alertname": name,
            "exp_alerts": [
                {
                    "exp_labels": {
                        "severity": SEVERITIES.get(name, "warning"),
                        "device": "cpu",
                        "instance": fault,
                        **expected[name],
                    },
                    "exp_annotations": {"summary": SUMMARIES[name]},
                }
            ] if name in expected else [],
        }
        for name in SUMMARIES
        if name in expected or fault == "healthy"
    ]  # fmt: skip
    rules = {
        "rule_files": [str(FOLDER / "alerts.yml")],
        "evaluation_interval": f"{STRETCH}s",
        "tests": [
            {"interval": f"{STRETCH}s", "input_series": stretched(series, fault), "alert_rule_test": tests},
        ],
    }
    file = tmp_path / "test.yml"
    file.write_text(json.dumps(rules))  # JSON is YAML
    run_promtool("test", "rules", file)
