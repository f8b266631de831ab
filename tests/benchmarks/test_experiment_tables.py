"""The pure parts of the experiments: figures of a cell, and what tables make of them."""

from __future__ import annotations

import pytest
from expertflow.benchmarks.experiments.figures import Figures, Measured, figures_of, share_equal
from expertflow.benchmarks.experiments.systems import SYSTEMS
from expertflow.benchmarks.experiments.tables import ablation, exactness, markdown, speedups
from expertflow.configs.schema import Config

GROWN = {"hits": 30, "misses": 10, "steps": 5, "loads": 20, "bytes": 20e6, "useful": 8, "wasted": 2}


def figures(system: str, group: str = "main", rate: float = 2.0, equal: float = 1.0) -> Figures:
    measured = Measured(
        rates=[rate, rate / 2, rate * 2],
        elapsed_s=4.0,
        grown={**GROWN, "stall_ns": 1e9, "cpu_s": 2.0},
        accuracy=None,
        way="1 unit",
        slots=4,
        slot_bytes=500_000,
        pss_bytes=3_000_000,
        generated=[[1, 2, 3, 4], [5, 6, 7, 8, 9, 10]],
    )
    return figures_of(system, group, "25%", 2, measured) | Figures(equal_tokens=equal)  # type: ignore[typeddict-item]


def test_figures_are_per_token_step_and_second() -> None:
    row = figures("ExpertFlow")
    assert (row["tokens_per_s"], row["slowest_block"], row["fastest_block"]) == (2.0, 1.0, 4.0)
    assert (row["hit_ratio"], row["activated_a_step"], row["activated_a_token"]) == (0.75, 8.0, 4.0)
    assert (row["loads_a_token"], row["loaded_mb_a_token"], row["useful_a_token"], row["wasted_a_token"]) == (
        2,
        2,
        0.8,
        0.2,
    )
    assert (row["stall_share"], row["cpu_ms_a_token"], row["expert_memory_mb"], row["pss_mb"]) == (0.25, 200, 2, 3)


def test_sequences_are_equal_only_as_a_whole() -> None:
    assert share_equal([[1, 2], [3, 4]], [[1, 2], [3, 5]]) == 0.5
    with pytest.raises(ValueError, match="1 sequences cannot be compared with 2"):
        share_equal([[1]], [[1], [2]])


def test_a_table_names_cells_with_other_tokens() -> None:
    assert "All 1 cells" in exactness([figures("a")])
    assert "1 of 2 cells" in (text := exactness([figures("a"), figures("b", equal=0.5)]))
    assert "b (25%, batch 2): 0.5" in text


def test_losing_rows_stay_beside_the_claims() -> None:
    rows = [figures("ExpertFlow", rate=3.0), figures("SE-MoE", rate=2.0), figures("Cache-MoE", rate=6.0)]
    lines = speedups(rows).splitlines()
    assert lines[2] == "| SE-MoE | 1.50× | 2.0–5.9× |"
    assert lines[3] == "| Cache-MoE | 0.50× | 1.9–2.2× |"


def test_parts_are_compared_with_all_of_them_at_the_same_size() -> None:
    rows = [figures("all parts", "ablation", rate=4.0), figures("no hints", "ablation", rate=3.0)]
    assert ablation(rows).splitlines()[3].startswith("| no hints (25%, batch 2) | 0.75× | 1.00× | 0.75 |")
    assert len(ablation([*rows, figures("LRU")]).splitlines()) == 4


def test_markdown_says_what_is_not_known() -> None:
    assert markdown(("a", "b"), [("x", None)]) == "| a | b |\n| :-- | --: |\n| x | – |"


@pytest.mark.parametrize("system", SYSTEMS, ids=lambda system: system.name)
def test_every_system_is_a_valid_configuration(system) -> None:
    trained = {"gates_file": "gates"} if system.needs == "gates" else {}
    assert Config.load(system.preset, **system.options, **trained, tier="host", link_rate="4GB")
