"""A run of `generate` keeps its speed, without a word of its prompt, and `plan` forecasts by it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from expertflow.runtime.plan.past_runs import FILE, MOST_CORRECTION
from expertflow.tests.runtime.processes import MODEL, ran


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_generate_says_what_it_chose_keeps_its_speed_and_plan_takes_it(tmp_path: Path) -> None:
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    words = ["--prompt", "zebramarker", "--max-new-tokens", "24", "--ignore-eos", "--compute-threads", "1"]
    done = ran("generate", "--model", str(MODEL), *words, env=environment)
    assert done.returncode == 0 and "expert memory: 14.0 MB: all 192 experts fit" in done.stderr, done.stderr
    kept = (tmp_path / "expertflow" / FILE).read_text()
    (run,) = json.loads(kept)["runs"]
    assert (run["rows"], run["share"], run["steps"]) == (1.0, 1.0, 23)
    assert 0 < run["compute_s"] <= run["step_s"] and run["forecast_s"] > 0 and "zebra" not in kept
    planned = ran("plan", "--model", str(MODEL), "--compute-threads", "1", "--json", env=environment)
    assert planned.returncode == 0, planned.stderr
    answer = json.loads(planned.stdout)
    speed = answer["speed"]
    assert speed["past_runs"] == 1 and speed["disk"]["bytes_per_s"] > 0 and "all 192" in answer["choice"]
    slowest, fastest = MOST_CORRECTION * run["forecast_s"], run["forecast_s"] / MOST_CORRECTION
    corrected = min(max(run["compute_s"], fastest), slowest)
    assert speed["decode"][0]["step_s"] == pytest.approx(corrected, rel=0.01)
