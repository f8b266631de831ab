"""The command: its quick form whole, resumed, and refused."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from expertflow.errors import UsageError
from expertflow.examples.studies.recommend import picture, report
from expertflow.examples.studies.recommend.memory import measure_apart
from expertflow.examples.studies.recommend.readers.rows import BadRows, DataError
from expertflow.examples.studies.recommend.run import add_options, open_ratings, parse_seeds, run
from expertflow.examples.studies.recommend.serving.measure import SYSTEMS
from expertflow.examples.studies.recommend.stream import choices


def options(*words: object) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_options(parser)
    return parser.parse_args([str(word) for word in words])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("study")


@pytest.fixture(scope="module")
def result(folder: Path) -> dict[str, Any]:
    return run(options("--quick", "--out", folder))


def test_the_quick_form_gives_every_part(result: dict[str, Any]) -> None:
    json.dumps(result)
    assert {(row["model"], row["split"]) for row in result["anchors"]} >= {("DeepFM", "random"), ("means", "time")}
    assert [len(stream["windows"]) for stream in result["streams"]] == [3, 3]
    assert {row["unit"] for row in result["speed"]} == {"items", "users", "pairs"}
    assert all(row["exact"] for part in result["served"] for row in part["rows"])
    assert {row["model"] for row in result["baselines"]} == {"DeepFM", "DCN-V2 mix 4", "popularity"}


def test_tables_and_the_picture_hold_every_row(result: dict[str, Any], tmp_path: Path) -> None:
    tables = {title: make(result) for title, make in report.TABLES.items()}
    assert tables["Quality"].count("\n| XSMoE") == 2 * len(choices())
    assert "| popularity | 1 |" in tables["Quality"]
    assert tables["Windows"].count("\n") == 1 + 3
    assert tables["Served"].count("| yes |") == 2 * len(SYSTEMS)
    assert "belady" in tables["Served"]
    assert tables["Rates"].count("| items |") == 4
    picture.draw(result, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 10_000


def test_a_stopped_run_goes_on_where_it_was(result: dict[str, Any], folder: Path) -> None:
    gone = folder / "anchor-time-means-42.json"
    gone.unlink()
    before = {file: file.stat().st_mtime_ns for file in folder.glob("*.json")}
    assert run(options("--quick", "--out", folder)) == result
    assert gone.is_file()
    assert before == {file: file.stat().st_mtime_ns for file in before}


def test_parts_of_other_data_are_not_mixed_in(result: dict[str, Any], folder: Path, tmp_path: Path) -> None:
    rows = "".join(f"{n % 5},{n % 7},4.0,{n}\n" for n in range(60))
    (tmp_path / "ratings.csv").write_text(f"userId,movieId,rating,timestamp\n{rows}")
    (tmp_path / "movies.csv").write_text("movieId,title,genres\n")
    with pytest.raises(UsageError, match="made with other settings"):
        run(options("--quick", "--out", folder, "--data", tmp_path))


def test_a_torn_part_is_named(tmp_path: Path) -> None:
    (tmp_path / "stream-pruned-42.json").write_text('{"settings"')
    with pytest.raises(UsageError, match="no part of this study"):
        run(options("--quick", "--out", tmp_path))


def test_seeds_that_cannot_be_read_are_refused() -> None:
    assert parse_seeds("1,2") == [1, 2]
    with pytest.raises(UsageError, match="cannot read"):
        parse_seeds("1;2")


def test_bad_rows_stop_the_run_or_are_counted(tmp_path: Path) -> None:
    (tmp_path / "ratings.csv").write_text("userId,movieId,rating,timestamp\n1,1,9.0,5\n1,1,4.0,6\n")
    (tmp_path / "movies.csv").write_text("movieId,title,genres\n")
    with pytest.raises(DataError, match="outside the scale"):
        open_ratings(options("--data", tmp_path), BadRows())
    bad = BadRows(skip=True)
    assert len(open_ratings(options("--data", tmp_path), bad)) == 1
    assert bad.table() == {"ratings.csv: rating outside the scale": 1}


def test_the_module_says_what_is_wrong_and_exits_with_two(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "expertflow.examples.studies.recommend", "--data", str(tmp_path / "none")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "is no folder" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.slow
def test_memory_of_a_model_counts_no_other_process() -> None:
    """The process that starts it is larger than the model's own will ever be."""
    held = torch.ones(300_000_000)
    assert measure_apart("DeepFM", 10_000, 16, 100).peak_bytes > 1_000_000
    assert held.numel()
