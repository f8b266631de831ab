"""Malformed and unusual files of ratings: read, or refused with file and line, or left out."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from expertflow.examples.studies.recommend.readers.folder import read_folder
from expertflow.examples.studies.recommend.readers.rows import BadRows, DataError
from expertflow.examples.studies.recommend.synthetic import make_ratings
from expertflow.examples.studies.recommend.windows import require_full_windows

REVIEW = {"user_id": "u", "parent_asin": "i", "rating": 5.0, "timestamp": 1_600_000_000_000}
OLD = {"reviewerID": "u", "asin": "i", "overall": 5.0, "unixReviewTime": 1_600_000_000}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("user_id", None),
        ("user_id", ["u"]),
        ("parent_asin", {"a": 1}),
        ("parent_asin", ""),
        ("timestamp", float("inf")),
        ("timestamp", 10**40),
        ("timestamp", None),
        ("rating", float("nan")),
    ],
)
def test_a_review_with_a_wrong_value_is_a_bad_row(tmp_path: Path, name: str, value: Any) -> None:
    file = tmp_path / "Books.jsonl"
    file.write_text("\n".join(map(json.dumps, (REVIEW, REVIEW | {name: value}))))
    with pytest.raises(DataError) as error:
        read_folder(tmp_path, BadRows())
    assert error.value.where == f"{file}:2"
    bad = BadRows(skip=True)
    assert len(read_folder(tmp_path, bad)) == 1 and sum(bad.counts.values()) == 1


@pytest.mark.parametrize("name", ["reviewerID", "asin", "unixReviewTime"])
def test_a_review_of_2018_without_a_value_is_a_bad_row(tmp_path: Path, name: str) -> None:
    (tmp_path / "Books.json").write_text("\n".join(map(json.dumps, (OLD, OLD | {name: None}))))
    with pytest.raises(DataError):
        read_folder(tmp_path, BadRows())
    assert len(read_folder(tmp_path, BadRows(skip=True))) == 1


@pytest.mark.parametrize("line", ["[" * 100_000, "{[]: 1}", "(" * 500, "{'a': 1"])
def test_a_line_that_is_no_object_is_a_bad_row(tmp_path: Path, line: str) -> None:
    (tmp_path / "Books.jsonl").write_text(json.dumps(REVIEW) + "\n" + line)
    (tmp_path / "meta_Books.jsonl").write_text(line)
    with pytest.raises(DataError):
        read_folder(tmp_path, BadRows())
    assert len(read_folder(tmp_path, BadRows(skip=True))) == 1


def test_facts_of_unusual_types_are_read(tmp_path: Path) -> None:
    (tmp_path / "Books.jsonl").write_text(json.dumps(REVIEW))
    facts = {"parent_asin": "i", "title": "A", "description": 5, "categories": "Books"}
    (tmp_path / "meta_Books.jsonl").write_text(json.dumps(facts))
    assert read_folder(tmp_path, BadRows()).facts[0][:2] == ("A 5", ("Books",))


def movielens(folder: Path, ratings: bytes) -> Path:
    (folder / "movies.csv").write_text("movieId,title,genres\n2,A (1995),Drama\n")
    (folder / "ratings.csv").write_bytes(b"userId,movieId,rating,timestamp\n1,2,3.5,1000\n" + ratings)
    return folder


@pytest.mark.parametrize("ratings", [b"1,2,3.5,\xff\n", b'"' + b"x" * 200_000, b"1,2,3.5\r,1\n"])
def test_a_file_that_is_no_csv_in_utf_8_is_refused_with_its_line(tmp_path: Path, ratings: bytes) -> None:
    with pytest.raises(DataError, match=r"ratings.csv:\d"):
        read_folder(movielens(tmp_path, ratings), BadRows())


def test_a_time_beyond_64_bits_is_a_bad_row_and_empty_lines_are_none(tmp_path: Path) -> None:
    folder = movielens(tmp_path, b"\n1,2,4.0,%d\n\n" % 10**30)
    with pytest.raises(DataError, match="no number"):
        read_folder(folder, BadRows())
    assert len(read_folder(folder, BadRows(skip=True))) == 1


@pytest.mark.parametrize("content", [b"u,i,5.0,1600000000000\nu,i,5.0,\xff\n", b"u,i,5.0,1\n" + b'"' + b"x" * 200_000])
def test_a_split_file_that_cannot_be_read_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "Books.csv").write_bytes(content)
    with pytest.raises(DataError, match=r"Books.csv:\d"):
        read_folder(tmp_path, BadRows())


def test_a_gzipped_file_that_is_broken_is_refused(tmp_path: Path) -> None:
    packed = bytearray(gzip.compress((json.dumps(REVIEW) + "\n").encode() * 2000))
    packed[40:60] = b"\xff" * 20
    (tmp_path / "Books.jsonl.gz").write_bytes(packed)
    with pytest.raises(DataError, match="cannot be read"):
        read_folder(tmp_path, BadRows())


def test_a_data_set_too_small_for_its_windows_is_refused(tmp_path: Path) -> None:
    ratings = read_folder(movielens(tmp_path, b"1,2,3.5,1001\n" * 12), BadRows())
    with pytest.raises(DataError, match="window 1 of 4 has no user"):
        require_full_windows(ratings, 4)
    require_full_windows(make_ratings(), 4)
