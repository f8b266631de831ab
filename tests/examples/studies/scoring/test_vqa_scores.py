"""VQA-v2: normalisation, accuracy against ten people, and the two files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from expertflow.errors import UsageError
from expertflow.examples.studies.scoring.bad_rows import BadRowError, BadRows
from expertflow.examples.studies.scoring.vqa import normalise_answer, read_vqa, score_vqa, vqa_accuracy

QUESTION = {"question_id": 7, "image_id": 3, "question": "How many?"}


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The two dogs", "2 dogs"),
        ("none", "0"),
        ("1,000", "1000"),
        ("t-shirt", "t shirt"),
        ("a t- shirt", "t shirt"),
        ("3.5", "3.5"),
        ("red.", "red"),
        ("2.", "2"),
        ("dont", "don't"),
        ("shed've", "she'd've"),
        ("somebody'd", "somebodyd"),
        ("Left, right", "left right"),
    ],
)
def test_answers_are_normalised(text: str, normal: str) -> None:
    assert normalise_answer(text) == normal


@pytest.mark.parametrize(("matches", "accuracy"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)])
def test_accuracy_is_the_mean_over_nine_others(matches: int, accuracy: float) -> None:
    people = tuple(["red"] * matches + [f"other {number}" for number in range(10 - matches)])
    assert vqa_accuracy("red", people) == pytest.approx(accuracy)


def test_case_counts_only_where_the_ten_answers_are_equal() -> None:
    assert vqa_accuracy("Red", ("red",) * 10) == 0.0
    assert vqa_accuracy("Red", ("red",) * 10, always_normalise=True) == 1.0
    assert vqa_accuracy("Red", ("red",) * 9 + ("blue",)) == 1.0


def write_files(folder: Path, **changed: Any) -> tuple[Path, Path]:
    answers = [{"answer": "2", "answer_confidence": "yes", "answer_id": number} for number in range(1, 11)]
    row = {"question_id": 7, "answers": answers, "answer_type": "number", "question_type": "how many"} | changed
    (folder / "questions.json").write_text(json.dumps({"info": {}, "questions": [QUESTION]}))
    (folder / "annotations.json").write_text(json.dumps({"annotations": [row]}, indent=1))
    return folder / "questions.json", folder / "annotations.json"


def test_both_files_are_joined_and_scored_by_type(tmp_path: Path) -> None:
    questions = read_vqa(*write_files(tmp_path), BadRows())
    assert (questions[0].text, questions[0].image_id, len(questions[0].answers)) == ("How many?", 3, 10)
    scores = score_vqa(questions, {7: "2"})
    assert scores.overall == scores.by_answer_type["number"] == scores.by_question_type["how many"] == 1.0


@pytest.mark.parametrize(
    ("changed", "what"),
    [
        ({"question_id": 8}, "line 3: answers question 8"),
        ({"answers": [{"answer_id": 1}]}, "line 3: has no answers"),
        ({"answers": [{"answer": "2", "answer_id": 1}] * 3}, "line 3: has 3 answers, not 10"),
        ({"question_id": [7]}, "line 3: has the question_id"),
        ({"answer_type": None}, "line 3: has no field 'answer_type'"),
    ],
)
def test_a_bad_annotation_names_its_line_or_is_counted(tmp_path: Path, changed: dict[str, Any], what: str) -> None:
    files = write_files(tmp_path, **changed)
    with pytest.raises(BadRowError, match=what):
        read_vqa(*files, BadRows())
    bad = BadRows(skip=True)
    assert read_vqa(*files, bad) == [] and bad.counts == {"annotations.json": 1}


@pytest.mark.parametrize(
    "text", ['{"other": []}', '{"questions": [{"question_id": 7}, {"ques', '{"questions": 3, "a": []}']
)
def test_a_file_without_the_array_or_cut_off_is_refused(tmp_path: Path, text: str) -> None:
    files = write_files(tmp_path)
    files[0].write_text(text)
    with pytest.raises(UsageError, match="questions"):
        read_vqa(*files, BadRows(skip=True))


@pytest.mark.parametrize("changed", [{"question_id": [7]}, {"image_id": "COCO_3"}])
def test_a_question_whose_id_is_no_number_names_its_line_or_is_counted(tmp_path: Path, changed: dict[str, Any]) -> None:
    files = write_files(tmp_path)
    files[0].write_text(json.dumps({"questions": [QUESTION | {"question_id": 8}, QUESTION | changed, QUESTION]}))
    with pytest.raises(BadRowError, match="questions.json, line 1: has the .*no number"):
        read_vqa(*files, BadRows())
    bad = BadRows(skip=True)
    assert len(read_vqa(*files, bad)) == 1 and bad.counts == {"questions.json": 1}


def test_a_question_without_an_answer_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no answer to 1 questions, the first is 7"):
        score_vqa(read_vqa(*write_files(tmp_path), BadRows()), {8: "2"})
