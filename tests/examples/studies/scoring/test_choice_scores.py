"""MMBench and SEED-Bench: options in free answers, tables with images by reference, CircularEval, letters."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from expertflow.errors import UsageError
from expertflow.examples.studies.scoring.bad_rows import BadRowError, BadRows
from expertflow.examples.studies.scoring.choices import find_option
from expertflow.examples.studies.scoring.mmbench import (
    MmbenchRow,
    read_mmbench,
    rotations,
    score_mmbench,
    write_mmbench,
)
from expertflow.examples.studies.scoring.seed_bench import (
    first_letter,
    likeliest_choice,
    read_seed,
    score_seed,
)

OPTIONS = {"A": "red circle", "B": "blue star", "C": "ring", "D": "cross"}
IMAGE = bytes(range(64))
HEADER = "index\timage\tquestion\tA\tB\tanswer"
BASE64 = "AAECAwQFBgcICQoLDA0ODw=="


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("B", "B"),
        ("(C)", "C"),
        ("The answer is D.", "D"),
        ("A blue star is in the picture here", "B"),
        ("B or C", ""),
        ("a ring", "C"),
        ("a ring or a cross", ""),
        ("neither", ""),
        ("Cannot determine the answer", "Z"),
        ("ring " * 40, ""),
    ],
)
def test_one_option_is_found_in_an_answer_or_none(answer: str, letter: str) -> None:
    assert find_option(answer, OPTIONS) == letter


def row(index: int = 5) -> MmbenchRow:
    return MmbenchRow(index, IMAGE, "Which?", "", OPTIONS, "B", "identity", "perception")


def test_a_table_is_read_as_it_was_written_images_by_reference(tmp_path: Path) -> None:
    rows = rotations(row())
    write_mmbench(tmp_path / "dev.tsv", rows)
    assert read_mmbench(tmp_path / "dev.tsv", BadRows()) == rows
    assert (tmp_path / "dev.tsv").read_text().splitlines()[2].split("\t")[1] == "5"


def test_rotations_move_options_and_answer_together() -> None:
    rows = rotations(row())
    assert [each.index for each in rows] == [5, 1_000_005, 2_000_005, 3_000_005]
    assert {each.options[each.answer] for each in rows} == {"blue star"}
    assert {each.answer for each in rows} == set("ABCD")


def test_a_question_is_right_only_in_every_rotation() -> None:
    rows = rotations(row())
    answers = {each.index: each.answer for each in rows}
    assert score_mmbench(rows, answers).circular == 1.0
    with pytest.raises(UsageError, match=f"the first is {rows[1].index}"):
        score_mmbench(rows, {rows[0].index: "A"})
    wrong = score_mmbench(rows, answers | {rows[2].index: "Z"})
    assert (wrong.circular, wrong.plain, wrong.by_category) == (0.0, 1.0, {"identity": 0.0})


@pytest.mark.parametrize(
    ("fields", "what"),
    [
        (("6", "4", "Which?", "x", "y", "A"), "line 3: has the image '4', which is no row"),
        (("6", "5", "Which?", "x", "", "B"), "line 3: has the answer 'B', which is none"),
        (("6", "5", "", "x", "y", "B"), "line 3: has no field 'question'"),
        (("six", "5", "Which?", "x", "y", "B"), "line 3: has the index 'six'"),
        (("6", "?" * 40, "Which?", "x", "y", "B"), "line 3: has the image"),
    ],
)
def test_a_bad_row_of_a_table_names_its_line_or_is_counted(tmp_path: Path, fields: tuple[str, ...], what: str) -> None:
    file = tmp_path / "dev.tsv"
    good = "\t".join(("5", BASE64, "Which?", "x", "y", "A"))
    file.write_text("\n".join((HEADER, good, "\t".join(fields))))
    with pytest.raises(BadRowError, match=what.replace("?", r"\?")):
        read_mmbench(file, BadRows())
    bad = BadRows(skip=True)
    assert [each.index for each in read_mmbench(file, bad)] == [5] and bad.counts == {"dev.tsv": 1}


def test_a_table_without_a_column_is_refused(tmp_path: Path) -> None:
    (tmp_path / "dev.tsv").write_text("index\tquestion\n1\tWhich?\n")
    with pytest.raises(UsageError, match="no column 'image'"):
        read_mmbench(tmp_path / "dev.tsv", BadRows(skip=True))


def seed_question(**changed: Any) -> dict[str, Any]:
    choices = {f"choice_{letter}": letter for letter in "abcd"}
    ids = {"question_id": "1_0", "question_type_id": 3, "data_type": "image", "data_id": "1.png", "segment": []}
    return {**ids, "question": "Which?", **choices, "answer": "B"} | changed


def test_videos_are_left_out_and_letters_scored_by_dimension(tmp_path: Path) -> None:
    rows = [seed_question(), seed_question(question_id="2", data_type="video")]
    (tmp_path / "seed.json").write_text(json.dumps({"questions": rows, "question_type": {}}))
    questions = read_seed(tmp_path / "seed.json", BadRows())
    assert [each.question_id for each in questions] == ["1_0"]
    with pytest.raises(UsageError, match="the first is 1_0"):
        score_seed(questions, {})
    assert score_seed(questions, {"1_0": "b"}) == {"overall": 1.0, "Instance Attributes": 1.0}


@pytest.mark.parametrize("changed", [{"answer": "E"}, {"question_type_id": 13}, {"choice_c": None}])
def test_a_bad_seed_question_names_its_line(tmp_path: Path, changed: dict[str, Any]) -> None:
    (tmp_path / "seed.json").write_text(json.dumps({"questions": [seed_question(**changed)]}))
    with pytest.raises(BadRowError, match="seed.json, line 1"):
        read_seed(tmp_path / "seed.json", BadRows())


def test_the_letter_is_the_likeliest_text_or_the_first_character() -> None:
    assert likeliest_choice([-2.0, -0.5, -3.0, -0.6]) == "B"
    assert [first_letter(text) for text in ("B", " B.", "The answer is B", "")] == ["B", "B", "T", ""]


def test_a_table_that_is_not_utf_8_is_refused(tmp_path: Path) -> None:
    (tmp_path / "table.tsv").write_bytes(HEADER.encode() + b"\n\xff\n")
    with pytest.raises(UsageError, match="is not UTF-8"):
        read_mmbench(tmp_path / "table.tsv", BadRows(skip=True))


@pytest.mark.parametrize("bad_row", ["1000001\t1\tWhich?\tring\tcross\tE", "1000001\t1\t\tring\tcross\tA"])
def test_all_rotations_of_a_skipped_row_are_left_out(tmp_path: Path, bad_row: str) -> None:
    good = [f"{index}\t{BASE64}\tWhich?\tring\tcross\tA" for index in (1, 2)]
    (tmp_path / "table.tsv").write_text("\n".join([HEADER, *good, bad_row]) + "\n")
    bad = BadRows(skip=True)
    assert [row.index for row in read_mmbench(tmp_path / "table.tsv", bad)] == [2]
    assert bad.counts == {"table.tsv": 1}
