"""The quick form of the study: a real engine with a part of the experts answers as transformers with all of them."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from expertflow.examples.studies.pope import run as study


def arguments(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    study.add_options(parser)
    return parser.parse_args(list(words))


def test_answers_of_a_quarter_are_those_of_the_whole_and_a_run_resumes(tmp_path: Path) -> None:
    asked = arguments("--quick", "--out", str(tmp_path), "--architectures", "qwen3_vl_moe")
    done = study.run(asked)
    engine, resident, control = done["rows"]  # pyright: ignore
    assert engine["differing_answers"] == 0 and engine["figures"]["found_when_needed"] < 1.0
    assert resident["figures"]["found_when_needed"] == 1.0
    assert engine["quality"] == resident["quality"] and control["differing_answers"] > 0
    files = sorted((tmp_path / "cells").iterdir())
    stamps = [file.stat().st_mtime_ns for file in files]
    assert len(files) == 3 and study.run(asked)["rows"] == done["rows"]
    assert [file.stat().st_mtime_ns for file in files] == stamps, "no cell ran twice"
    assert [len(json.loads(file.read_text())["answers"]) for file in files] == [12] * 3


def test_no_cell_begins_when_the_time_is_over(tmp_path: Path) -> None:
    done = study.run(
        arguments("--quick", "--out", str(tmp_path), "--architectures", "qwen3_vl_moe", "--minutes", "1e-9")
    )
    assert done["rows"] == [] and len(done["left_out"]) == 3  # pyright: ignore
