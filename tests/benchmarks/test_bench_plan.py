"""What `make bench` runs, and what its page says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from expertflow.benchmarks.bench import PARTS, Part, choose_parts, make_page
from expertflow.benchmarks.comparison.runs import NO_LIMIT
from expertflow.benchmarks.intervals import Interval
from expertflow.benchmarks.targets import (
    Verdict,
    disk_rate,
    disk_steps,
    growth,
    link,
    matrix,
    residency,
    resident,
    start_up,
    under_limit,
)
from expertflow.errors import UsageError

HOUR = 60.0


def part(name: str, minutes: float, *targets: str) -> Part:
    return Part(name, targets, ("-m", name), minutes, f"{name}.json", lambda file: [])


def test_all_parts_but_the_extra_ones_fit_an_hour() -> None:
    extra = {each.name for each in PARTS if each.extra}
    assert set(choose_parts(PARTS, [], HOUR, quick=False).left_out) == extra == {
        "kernels, AVX2", "kernels", "measuring", "model Q", "under limit, 4 bits", "link, 4 bits"
    }  # fmt: skip


def test_an_extra_part_runs_if_asked_for_and_says_how_otherwise() -> None:
    extra = Part("x", ("K1", "K2"), ("x",), 1, "x.json", lambda file: [], extra=True)
    assert choose_parts([extra], [], HOUR, quick=False).left_out == {"x": "runs only if asked for: --only K1 K2"}
    assert choose_parts([extra], ["K2"], HOUR, quick=False).parts == [extra]


def test_the_extra_parts_together_fit_ninety_minutes() -> None:
    assert sum(each.minutes for each in PARTS if each.extra) <= 90


def test_a_part_that_does_not_fit_is_passed_over_and_later_ones_still_run() -> None:
    chosen = choose_parts([part("a", 30, "S1"), part("b", 40, "S2"), part("c", 10, "S3")], [], HOUR, quick=False)
    assert [each.name for each in chosen.parts] == ["a", "c"]
    assert chosen.left_out == {"b": "needs 40 minutes, 30 are left"}


def test_parts_are_chosen_by_target_or_name() -> None:
    parts = [part("a", 1, "S1"), part("b", 1, "S2", "S3"), part("c", 1)]
    assert [each.name for each in choose_parts(parts, ["S3", "c"], HOUR, quick=False).parts] == ["b", "c"]
    with pytest.raises(UsageError, match="S11"):
        choose_parts(parts, ["S11"], HOUR, quick=False)


def test_a_target_is_met_when_the_interval_reaches_it() -> None:
    def said(goal: float, at_least: bool) -> str:
        return Verdict("S1", "", goal, at_least, Interval(2.0, 1.5, 2.5)).outcome

    assert [said(2.4, True), said(2.6, True), said(1.6, False), said(1.4, False)] == ["met", "not met"] * 2
    assert Verdict("S1", "", 1.0, True, None, "killed").cells[-2:] == ("killed", "not run")


def test_figures_of_the_parts_become_verdicts() -> None:
    speedup = {"estimate": 4.0, "low": 3.5, "high": 4.5}
    rows = [
        {"contender": "llama.cpp mmap", "batch": 1, "limit_bytes": 10**9, "speedup": speedup},
        {"contender": "accelerate disk offload", "batch": 8, "limit_bytes": 10**9, "failure": "killed"},
        {"contender": "ExpertFlow", "batch": 1, "limit_bytes": 10**9},
    ]
    assert [verdict.outcome for verdict in under_limit({"rows": rows})] == ["met", "not run"]
    row = {"what": "decode, batch 1", "of resident": [0.9, 0.8], "of one process": [1.2], "messages a step": 3.0}
    assert [verdict.outcome for verdict in resident({"rows": [row]})] == ["not met", "not met", "met"]
    rates = [
        {"model": "r", "contender": f"transfers, {n} readers", "to_best_plain": rate, "quartiles": [rate, rate]}
        for n, rate in ((1, 0.7), (2, 0.95))
    ]
    assert [(verdict.outcome, verdict.figure and verdict.figure.low) for verdict in disk_rate(rates)] == [("met", 0.95)]


def test_figures_of_disk_link_start_and_growth_become_verdicts() -> None:
    steps = {"contender": "auto", "model": "w", "share": "25%", "ratios": [1.3, 1.35], "loads_to_lru": 1.3}
    rows = [steps | {"batch": batch} for batch in (1, 8)] + [steps | {"batch": 1, "contender": "LRU on demand"}]
    assert [verdict.outcome for verdict in disk_steps(rows)] == ["met", "not met", "not met", "not met"]
    run = {"contender": "oracle", "ratio": 1.3, "least": 1.15, "most": 1.4}
    assert [verdict.outcome for verdict in link({"rows": [run]})] == ["met"]
    assert [verdict.outcome for verdict in start_up([{"above_read": 9.0}])] == ["not met"]
    ends = [{"value": value, "total": total, "least": total, "most": total} for value, total in ((8, 1.0), (32, 1.44))]
    (verdict,) = growth([{"axis": "rows"} | end for end in ends])
    assert (verdict.outcome, verdict.figure and round(verdict.figure.estimate, 3)) == ("not met", 0.2)


def test_equal_tokens_and_who_is_killed_become_verdicts() -> None:
    ours = {"contender": "ExpertFlow 25%", "limit_bytes": 0, "batch": 1, "identical": 1.0}
    unequal, late = ours | {"identical": 0.99}, ours | {"identical": None, "failure": "not run: time is over"}
    resident = {"contender": "transformers resident, eager", "limit_bytes": 10**9, "batch": 1}
    killed = resident | {"failure": "killed by the kernel: out of memory"}
    assert [seen.outcome for seen in residency({"rows": [ours, late, killed, killed]})] == ["met", "met"]
    assert [seen.outcome for seen in residency({"rows": [ours, unequal, resident, killed]})] == ["not met", "not met"]
    assert [seen.outcome for seen in matrix({"rows": [late]})] == ["not run"]
    unlimited = resident | {"failure": f"{NO_LIMIT}: no controller"}
    assert [seen.outcome for seen in residency({"rows": [ours | {"identical": None}, unlimited]})] == ["not run"] * 2
    assert matrix({"rows": [ours, ours]})[0].cells[2:] == ("yes", "yes, 2 of 2 cases", "met")


def test_the_page_names_every_target_and_says_what_was_not_run(tmp_path: Path) -> None:
    rows = [{"contender": "llama.cpp mmap", "batch": 1, "limit_bytes": 10**9, "failure": "does not build"}]
    (tmp_path / "under-limit.json").write_text(json.dumps({"rows": rows}))
    lines = make_page(PARTS, "setting", {"resident": "done"}, tmp_path).splitlines()
    assert "| S4 | batch 1, 1.00 GB: times as fast as llama.cpp mmap | ≥ 3 | does not build | not run |" in lines
    targets = [*(f"S{number}" for number in range(1, 11)), *(f"K{number}" for number in range(1, 8))]
    assert {line.split()[1] for line in lines if line.startswith(("| S", "| K"))} == set(targets)
