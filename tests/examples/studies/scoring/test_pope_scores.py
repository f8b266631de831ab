"""POPE: three readings of an answer, five figures, and files as published."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from expertflow.errors import UsageError
from expertflow.examples.studies.scoring.bad_rows import BadRowError, BadRows
from expertflow.examples.studies.scoring.pope import (
    READINGS,
    PopeQuestion,
    read_exact,
    read_original,
    read_pope,
    read_words,
    score_pope,
    write_pope,
)

ORIGINAL = {
    "No.": "no", "No,": "no", "not sure": "no", "Yes, no dog": "no", "I do not know.": "no",
    "NO": "yes", "no!": "yes", "Not really": "yes", "None": "yes", "There isn't a dog": "yes", "I cannot see it": "yes",
    "": "yes", '"No"': "yes", "No\n": "yes", "Yes. There is no doubt": "yes",
}  # fmt: skip
LINE = {"question_id": 1, "image": "a.jpg", "text": "Is there a dog in the image?", "label": "yes"}


@pytest.mark.parametrize(("text", "answer"), ORIGINAL.items())
def test_the_authors_reading(text: str, answer: str) -> None:
    assert read_original(text) == answer


def test_the_other_two_readings_refuse_what_they_do_not_know() -> None:
    assert [read_exact(text) for text in (" YES\n", "no", "Yes.", "")] == ["yes", "no", "unknown", "unknown"]
    texts = ("Yes, there is.", "There is no dog", "yes or no", "maybe", "NO!")
    assert [read_words(text) for text in texts] == ["yes", "no", "unknown", "unknown", "no"]


def questions(labels: str) -> list[PopeQuestion]:
    words = {"y": "yes", "n": "no"}
    return [PopeQuestion(place, "a.jpg", "", words[label]) for place, label in enumerate(labels)]  # pyright: ignore


@pytest.mark.parametrize("reading", ["original", "exact", "words"])
def test_readings_agree_on_bare_words(reading: str) -> None:
    scores = score_pope(questions("yyyynnnn"), ["Yes", "yes", "Yes", "No", "Yes", "no", "No", "No"], reading)
    assert scores.accuracy == scores.precision == scores.recall == scores.f1 == 0.75
    assert scores.yes_share == 0.5 and scores.questions == 8


def test_no_yes_at_all_divides_by_nothing() -> None:
    scores = score_pope(questions("yn"), ["No", "No"])
    assert (scores.precision, scores.recall, scores.f1, scores.accuracy) == (0.0, 0.0, 0.0, 0.5)


def test_a_sentence_is_nothing_to_the_exact_reading_and_a_miss_to_the_words() -> None:
    sentences = ["Yes, there is a dog in the image.", "I see none."]
    assert score_pope(questions("yy"), sentences, "exact").accuracy == 0.0
    assert score_pope(questions("yy"), sentences, "words").recall == 0.5
    assert score_pope(questions("yy"), sentences, "original").recall == 1.0


def test_each_question_needs_one_answer() -> None:
    with pytest.raises(UsageError, match="1 answers to 2 questions"):
        score_pope(questions("yn"), ["Yes"])


def test_a_published_file_is_read_as_it_was_written(tmp_path: Path) -> None:
    asked = [PopeQuestion(1, "COCO_val2014_1.jpg", "Is there an umbrella in the image?", "no")]
    write_pope(tmp_path / "coco_pope_random.json", asked)
    assert read_pope(tmp_path / "coco_pope_random.json", BadRows()) == asked
    assert asked[0].object_name == "umbrella"


@pytest.mark.parametrize(
    ("row", "what"),
    [
        ({**LINE, "label": None}, "line 2: has no field 'label'"),
        ({**LINE, "label": "maybe"}, "line 2: has the label 'maybe'"),
        ({**LINE, "question_id": "first"}, "line 2: has the question_id 'first'"),
        ({**LINE, "question_id": 1.5}, "line 2: has the question_id 1.5"),
        ([1], "line 2: is not an object"),
        ("x", "line 2: is not JSON"),
    ],
)
def test_a_bad_row_names_its_line_or_is_counted(tmp_path: Path, row: object, what: str) -> None:
    file = tmp_path / "pope.json"
    text = row if isinstance(row, str) else json.dumps(row)
    file.write_text(f"{json.dumps(LINE)}\n{text}\n{json.dumps(LINE)}\n")
    with pytest.raises(BadRowError, match=what):
        read_pope(file, BadRows())
    bad = BadRows(skip=True)
    assert len(read_pope(file, bad)) == 2 and bad.counts == {"pope.json": 1}


def test_an_empty_or_missing_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.json").write_text("\n")
    for name in ("empty.json", "missing.json"):
        with pytest.raises(UsageError, match=name):
            read_pope(tmp_path / name, BadRows())


def test_a_line_separator_of_unicode_inside_a_text_ends_no_line(tmp_path: Path) -> None:
    file = tmp_path / "pope.json"
    text = "Is there a dog\u2028in the image?"
    file.write_text(json.dumps({**LINE, "text": text}, ensure_ascii=False) + "\n", encoding="utf-8")
    assert [each.text for each in read_pope(file, BadRows())] == [text]


def test_the_three_readings_agree_on_answers_of_one_word() -> None:
    for word in ("Yes", "No", "yes", "no"):
        assert {read(word) for read in READINGS.values()} == {word.lower()}
