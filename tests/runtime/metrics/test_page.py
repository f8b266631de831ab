"""docs/metrics.md names every metric that is exported, and no other."""

from __future__ import annotations

import re
from pathlib import Path

import expertflow
from expertflow.runtime.http.counters import Counters, server_exposition
from expertflow.tests.runtime.metrics.test_collector import busy_board
from prometheus_client.parser import text_string_to_metric_families

PAGE = Path(expertflow.__file__).with_name("docs") / "metrics.md"


def exported_names() -> set[str]:
    """Names as a query has them; a histogram without its suffixes."""
    text = server_exposition(Counters(), busy_board().snapshot()).decode()
    suffixes = {"counter": "_total", "info": "_info"}
    return {family.name + suffixes.get(family.type, "") for family in text_string_to_metric_families(text)}


def test_page_and_exposition_name_the_same_metrics() -> None:
    assert set(re.findall(r"\bexpertflow_\w+[a-z]\b", PAGE.read_text())) == exported_names()
