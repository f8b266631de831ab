"""Malformed and unusual published files: read, or refused with file and line, or left out; never another exception."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from expertflow.errors import UsageError
from expertflow.examples.studies.routing.answering import image_pixels
from expertflow.examples.studies.scoring.bad_rows import BadRowError, BadRows
from expertflow.examples.studies.scoring.mmbench import read_mmbench
from expertflow.examples.studies.scoring.pope import read_pope
from expertflow.examples.studies.scoring.seed_bench import read_seed
from expertflow.examples.studies.scoring.vqa import read_vqa

POPE = {"question_id": 1, "image": "a.jpg", "text": "Is there a dog in the image?", "label": "yes"}
QUESTION = {"question_id": 1, "image_id": 2, "question": "What?"}
ANNOTATION = {"question_id": 1, "answers": [{"answer": "dog"}] * 10, "answer_type": "other", "question_type": "what"}


@pytest.mark.parametrize("value", ["abc", [1], {"a": 1}, float("inf"), True, "9" * 5000])
def test_an_id_that_is_no_number_is_a_bad_row(tmp_path: Path, value: Any) -> None:
    file, table = tmp_path / "pope.json", tmp_path / "table.json"
    file.write_text(json.dumps(POPE | {"question_id": value}) + "\n" + json.dumps(POPE))
    with pytest.raises(BadRowError, match="no number") as error:
        read_pope(file, BadRows())
    assert error.value.where == f"{file}, line 1"
    bad = BadRows(skip=True)
    assert len(read_pope(file, bad)) == 1 and bad.counts == {"pope.json": 1}
    for asked, answered in ((value, 1), (1, value)):
        body = {
            "questions": [QUESTION | {"question_id": asked}],
            "annotations": [ANNOTATION | {"question_id": answered}],
        }
        table.write_text(json.dumps(body))
        with pytest.raises(BadRowError, match="no number"):
            read_vqa(table, table, BadRows())
        assert read_vqa(table, table, BadRows(skip=True)) == []


def test_separators_of_lines_inside_a_text_and_a_byte_order_mark_are_read(tmp_path: Path) -> None:
    file = tmp_path / "pope.json"
    line = json.dumps(POPE | {"text": "Is there a dog\u2028 in\x85 the image?"}, ensure_ascii=False)
    file.write_text(f"{line}\r\n{line}\n", encoding="utf-8-sig")
    assert len(read_pope(file, BadRows())) == 2


def test_deep_nesting_is_a_bad_row_or_a_broken_file(tmp_path: Path) -> None:
    file = tmp_path / "deep.json"
    file.write_text("[" * 100_000 + "\n" + json.dumps(POPE))
    assert len(read_pope(file, BadRows(skip=True))) == 1
    file.write_text('{"questions": [' + "[" * 100_000)
    with pytest.raises(UsageError, match="is broken inside 'questions'"):
        read_seed(file, BadRows())


def test_an_array_is_found_behind_another_field_of_its_name(tmp_path: Path) -> None:
    file = tmp_path / "table.json"
    body = {"info": {"questions": 1}, "questions": [QUESTION], "annotations": [ANNOTATION]}
    file.write_text(json.dumps(body))
    assert [each.text for each in read_vqa(file, file, BadRows())] == ["What?"]


def test_a_question_whose_image_is_missing_is_a_bad_row(tmp_path: Path) -> None:
    file = tmp_path / "table.json"
    file.write_text(json.dumps({"questions": [QUESTION], "annotations": [ANNOTATION]}))
    with pytest.raises(BadRowError, match="image 2, which is not in the folder"):
        read_vqa(file, file, BadRows(), lambda asked: asked.image_id != 2)
    seed = {name: "x" for name in ("question_id", "question", "choice_a", "choice_b", "choice_c", "choice_d")}
    seed |= {"question_type_id": 1, "data_type": "image", "data_id": "a.jpg", "answer": "A"}  # pyright: ignore
    file.write_text(json.dumps({"questions": [seed]}))
    with pytest.raises(BadRowError, match="'a.jpg', which is not in the folder"):
        read_seed(file, BadRows(), lambda name: name != "a.jpg")


def test_a_table_in_another_encoding_or_with_a_lone_carriage_return_is_refused(tmp_path: Path) -> None:
    file, image = tmp_path / "table.tsv", base64.b64encode(b"x" * 30).decode()
    text = f"index\timage\tquestion\tA\tB\tanswer\n1\t{image}\tWhat?\tdög\tcat\tA\n"
    file.write_text(text, encoding="utf-8-sig")
    assert len(read_mmbench(file, BadRows())) == 1
    file.write_text(text, encoding="latin-1")
    with pytest.raises(UsageError, match="is not UTF-8"):
        read_mmbench(file, BadRows())
    file.write_bytes(text.replace("What?", "Wh\rat?").encode())
    with pytest.raises(UsageError, match="is no table|has no field"):
        read_mmbench(file, BadRows())


def test_bytes_that_are_no_image_are_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is no image"):
        image_pixels(b"x" * 30)
    with pytest.raises(UsageError, match="is no image"):
        image_pixels(tmp_path / "missing.png")
