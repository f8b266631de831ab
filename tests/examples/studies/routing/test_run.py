"""The quick form of the study: trains two kinds, scores three formats, measures costs, and resumes."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest
from expertflow.errors import UsageError
from expertflow.examples.studies.resumable import ResultFolder
from expertflow.examples.studies.routing import run as study
from expertflow.examples.studies.routing.question_sets import SEED_FILE, read_sets, write_sets
from expertflow.examples.studies.scoring.bad_rows import BadRowError, BadRows


def arguments(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    study.add_options(parser)
    return parser.parse_args(list(words))


def test_the_quick_form_fills_every_part_and_resumes(tmp_path: Path) -> None:
    outputs = ("--picture", str(tmp_path / "picture.png"), "--save", str(tmp_path / "rows.json"))
    asked = arguments("--quick", "--out", str(tmp_path), *outputs)
    rows = study.run(asked)["rows"]
    assert [row["kind"] for row in rows] == ["smoes", "hard"]  # pyright: ignore
    for row in rows:  # pyright: ignore
        assert row["train"]["steps"] >= 1 and 0.0 <= row["quality"]["mean"] <= 1.0
        assert len(row["routing"]["msi"]) == 4 and row["stalls"]["bins"]["loads"] > 0
        assert {each["batch"] for each in row["costs"]["times"]} == {1, 2}
    assert json.loads((tmp_path / "rows.json").read_text()) == rows
    assert (tmp_path / "picture.png").stat().st_size > 10_000
    before = [file.stat().st_mtime_ns for file in sorted((tmp_path / "cells").iterdir())]
    assert study.run(asked)["rows"] == rows
    assert [file.stat().st_mtime_ns for file in sorted((tmp_path / "cells").iterdir())] == before


def test_sets_are_read_as_published_files(tmp_path: Path) -> None:
    write_sets(tmp_path, scenes=12)
    sets = read_sets(tmp_path, BadRows())
    assert len(sets.mmbench) == 48 and len(sets.seed) == 12
    assert {each.answer_type for each in sets.vqa} == {"yes/no", "number", "other"}
    assert len({each.question_id for each in sets.vqa}) == len(sets.vqa)
    assert len({each.image for each in sets.mmbench}) == 12


def test_bad_rows_and_missing_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="MMBench_DEV_EN.tsv"):
        read_sets(tmp_path, BadRows())
    write_sets(tmp_path, scenes=4)
    text = (tmp_path / SEED_FILE).read_text()
    (tmp_path / SEED_FILE).write_text(text.replace('"data_type": "image"', '"other": "image"', 1))
    with pytest.raises(BadRowError, match="SEED-Bench.json, line 3"):
        read_sets(tmp_path, BadRows())
    bad = BadRows(skip=True)
    assert len(read_sets(tmp_path, bad).seed) == 3 and bad.counts == {SEED_FILE: 1}


def test_a_whole_run_takes_no_part_of_a_quick_one_for_its_own(tmp_path: Path) -> None:
    words = ("--out", str(tmp_path), "--kinds", "smoes", "--parts", "train")
    made = ResultFolder(tmp_path, 0, lambda line: None)
    made.run("train-smoes-s0", lambda: {"steps": 1}, {"processor minutes": 1 / 60, "quick": True})
    write_sets(tmp_path / "sets", scenes=4)
    with pytest.raises(UsageError, match="made with other settings"):
        study.run(arguments(*words))


def test_a_model_that_is_gone_is_named_with_the_cell_that_brings_it_back(tmp_path: Path) -> None:
    asked = arguments("--quick", "--out", str(tmp_path), "--parts", "train", "stalls")
    (tmp_path / "cells").mkdir()
    (tmp_path / "cells" / "train-smoes-s0.json").write_text('{"steps": 1}')
    with pytest.raises(UsageError, match=r"models/smoes-s0.pt: is missing.*Remove cells/train-smoes-s0.json"):
        study.run(asked)
