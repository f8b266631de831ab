"""Readers of MovieLens and Amazon: every quirk of the published formats, and what a bad row does."""

from __future__ import annotations

import gzip
import json
import zipfile
from pathlib import Path

import pytest
from expertflow.examples.studies.recommend.readers import amazon, movielens, recbole
from expertflow.examples.studies.recommend.readers.folder import read_folder
from expertflow.examples.studies.recommend.readers.rows import BadRows, DataError, Ratings

MOVIES = 'movieId,title,genres\n1,Toy Story (1995),Comedy|Animation\n11,"President, The (1995)",(no genres listed)\n'
ML20M = "userId,movieId,rating,timestamp\n7,11,0.5,200\n3,1,4.5,100\n"
REVIEW_2023 = {"rating": 4.0, "parent_asin": "P", "asin": "A", "user_id": "U", "timestamp": 1588687728923, "images": []}
REVIEW_2018 = {"overall": 5.0, "reviewerID": "U", "asin": "A", "unixReviewTime": 1400000000, "vote": "1,234"}


def write(folder: Path, files: dict[str, str], encoding: str = "utf-8") -> Path:
    for name, text in files.items():
        folder.joinpath(name).write_bytes(text.encode(encoding))
    return folder


def write_lines(folder: Path, name: str, *rows: object) -> Path:
    return write(folder, {name: "".join(json.dumps(row) + "\n" for row in rows)})


def read(folder: Path, skip: bool = False) -> Ratings:
    return read_folder(folder, BadRows(skip))


def test_ml20m_has_half_stars_quoted_commas_and_rows_by_user_not_by_time(tmp_path: Path) -> None:
    ratings = read(write(tmp_path, {"ratings.csv": ML20M, "movies.csv": MOVIES}))
    assert ratings.ratings.tolist() == [4.5, 0.5]
    assert ratings.seconds.tolist() == [100, 200]
    assert ratings.user_names == ["3", "7"]
    assert ratings.item_names == ["1", "11"]
    assert [tuple(facts) for facts in ratings.facts] == [
        ("Toy Story", ("Comedy", "Animation"), 1995),
        ("President, The", (), 1995),
    ]


def test_the_copy_on_kaggle_has_other_names_and_dates(tmp_path: Path) -> None:
    rows = '"userId","movieId","rating","timestamp"\n1,1,3.5,"2005-04-02 23:53:47"\n'
    ratings = read(write(tmp_path, {"rating.csv": rows, "movie.csv": MOVIES}))
    assert ratings.seconds.tolist() == [1112486027]


def test_a_byte_order_mark_is_no_part_of_the_header(tmp_path: Path) -> None:
    assert len(read(write(tmp_path, {"ratings.csv": "\ufeff" + ML20M, "movies.csv": MOVIES}))) == 2


def test_links_keep_the_zeros_of_imdb_and_may_lack_tmdb(tmp_path: Path) -> None:
    write(tmp_path, {"links.csv": "movieId,imdbId,tmdbId\n1,0114709,862\n2,0113497,\n"})
    assert movielens.read_links(tmp_path, BadRows()) == {"1": ("0114709", "862"), "2": ("0113497", "")}


def ml1m(folder: Path) -> Path:
    files = {
        "ratings.dat": "1::661::3::978302109\n",
        "movies.dat": "661::Misérables, Les (1995)::Drama|Musical\n",
        "users.dat": "1::F::1::10::48067\n",
    }
    return write(folder, files, "latin-1")


def test_ml1m_is_latin_1_with_double_colons_and_coded_occupations(tmp_path: Path) -> None:
    ratings = read(ml1m(tmp_path))
    assert ratings.facts[0].title == "Misérables, Les"
    assert ratings.user_fields["occupation"] == ["K-12 student"]
    assert ratings.user_fields["zip"] == ["48067"]


def ml100k(folder: Path) -> Path:
    flags = "|".join(["0"] * 17 + ["1"])
    files = {
        "u.data": "196\t242\t3\t881250949\n186\t267\t4\t891717742\n",
        "u.genre": "".join(f"genre{number}|{number}\n" for number in range(18)) + "\n",
        "u.item": f"242|Él (1953)|24-Jan-1997||http://x|{flags}\n267|unknown||||{flags}\n",
        "u.user": "196|49|M|writer|55105\n186|39|F|executive|T8H1N\n",
    }
    return write(folder, files, "latin-1")


def test_ml100k_has_flags_for_genres_and_a_film_without_a_name(tmp_path: Path) -> None:
    ratings = read(ml100k(tmp_path))
    assert [tuple(facts) for facts in ratings.facts] == [("Él", ("genre17",), 1953), ("unknown", ("genre17",), 0)]
    assert ratings.user_fields["zip"] == ["55105", "T8H1N"]


@pytest.mark.parametrize("name", ["timestamp", "sort_timestamp", "sortTimestamp"])
def test_amazon_2023_counts_milliseconds_and_goes_by_the_parent(tmp_path: Path, name: str) -> None:
    review = {(name if key == "timestamp" else key): value for key, value in REVIEW_2023.items()}
    ratings = read(write_lines(tmp_path, "Video_Games.jsonl", review))
    assert (ratings.item_names, ratings.seconds.tolist()) == (["P"], [1588687728])
    assert ratings.name == "Amazon 2023 Video_Games"


def test_amazon_2023_metadata_may_have_any_price_and_lists(tmp_path: Path) -> None:
    write_lines(tmp_path, "Video_Games.jsonl", *({**REVIEW_2023, "parent_asin": name} for name in "PQR"))
    meta = [
        {"parent_asin": "P", "title": "Pad", "description": ["For two", "x"], "categories": ["Games"], "price": 9.5},
        {
            "parent_asin": "Q",
            "title": None,
            "description": [],
            "categories": [],
            "price": None,
            "main_category": "Toys",
        },
        {"parent_asin": "R", "title": "Rod", "categories": ["A", "B"], "price": "from 12.00"},
    ]
    write_lines(tmp_path, "meta_Video_Games.jsonl", *meta)
    facts = {name: tuple(item) for name, item in zip("PQR", read(tmp_path).facts, strict=True)}
    assert facts == {"P": ("Pad For two", ("Games",), 0), "Q": ("", ("Toys",), 0), "R": ("Rod", ("A", "B"), 0)}


def test_amazon_2018_is_gzipped_json_lines_in_seconds_with_commas_in_votes(tmp_path: Path) -> None:
    (tmp_path / "Books.json.gz").write_bytes(gzip.compress(json.dumps(REVIEW_2018).encode()))
    ratings = read(tmp_path)
    assert (ratings.name, ratings.seconds.tolist()) == ("Amazon 2018 Books", [1400000000])


def test_metadata_of_2014_are_python_dicts(tmp_path: Path) -> None:
    write_lines(tmp_path, "Books.json", REVIEW_2018)
    write(tmp_path, {"meta_Books.json": "{'asin': 'A', 'title': \"It's\", 'categories': [['Books', 'Old']]}\n"})
    assert tuple(read(tmp_path).facts[0]) == ("It's", ("Books", "Old"), 0)


def test_of_repeated_reviews_the_earliest_stays(tmp_path: Path) -> None:
    later = {**REVIEW_2023, "timestamp": 1688687728923, "rating": 1.0}
    ratings = read(write_lines(tmp_path, "A.jsonl", later, REVIEW_2023))
    assert ratings.ratings.tolist() == [4.0]


def test_splits_of_2023_have_a_history_or_no_header(tmp_path: Path) -> None:
    header = "user_id,parent_asin,rating,timestamp,history\nU,P,5.0,1628643414042,\nU,Q,4.0,1658002729837,P\n"
    write(tmp_path, {"Games.valid.csv": header, "Games.train.csv": "U,R,3.0,1600000000000\n"})
    ratings = read(tmp_path)
    assert ratings.item_names == ["R", "P", "Q"]
    times = (1600000000000, amazon.VALID_FROM_MS, amazon.TEST_FROM_MS - 1, amazon.TEST_FROM_MS)
    assert [amazon.split_part(time_ms) for time_ms in times] == ["train", "valid", "valid", "test"]


def test_a_core_is_what_stays_after_users_and_items_went() -> None:
    rows = [amazon.Interaction(user, item, 5.0, 0) for user, item in ["aX", "aY", "bX", "bY", "cY", "cZ", "dZ"]]
    assert {(row.user, row.item) for row in amazon.keep_core(rows, 2)} == {
        ("a", "X"), ("a", "Y"), ("b", "X"), ("b", "Y"),
    }  # fmt: skip


def fake_wheel(folder: Path, inter: str) -> Path:
    tables = {
        "inter": "user_id:token\titem_id:token\trating:float\ttimestamp:float\n" + inter,
        "item": "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n"
        "5\tCopycat\t1995\tCrime Drama\n",
        "user": "user_id:token\tage:token\tgender:token\toccupation:token\tzip_code:token\n1\t24\tM\tother\t05201\n",
    }
    with zipfile.ZipFile(folder / recbole.WHEEL, "w") as archive:
        for kind, text in tables.items():
            archive.writestr(f"{recbole.INSIDE}.{kind}", text)
    return recbole.fetch_wheel(folder)


def test_recboles_copy_has_typed_headers_inside_a_wheel(tmp_path: Path) -> None:
    ratings = recbole.read_recbole(fake_wheel(tmp_path, "1\t5\t3\t881250949\n"), BadRows())
    assert tuple(ratings.facts[0]) == ("Copycat", ("Crime", "Drama"), 1995)
    assert ratings.user_fields["zip"] == ["05201"]


BAD = {
    "a missing field": ("ratings.csv:3", "has 3 fields, not 4", lambda text: text.replace("3,1,4.5,100", "3,1,4.5")),
    "a rating off the scale": ("ratings.csv:2", "outside the scale", lambda text: text.replace("0.5", "5.5")),
    "a rating between steps": ("ratings.csv:2", "outside the scale", lambda text: text.replace("0.5", "0.7")),
    "no number": ("ratings.csv:3", "no number", lambda text: text.replace("4.5", "good")),
    "no item": ("ratings.csv:3", "no user or no item", lambda text: text.replace("3,1,", "3,,")),
}


@pytest.mark.parametrize("where, what, spoil", BAD.values(), ids=BAD)
def test_a_bad_row_names_file_and_line_or_is_counted(tmp_path: Path, where: str, what: str, spoil: object) -> None:
    write(tmp_path, {"ratings.csv": spoil(ML20M), "movies.csv": MOVIES})  # pyright: ignore[reportCallIssue]
    with pytest.raises(DataError, match=what) as error:
        read(tmp_path)
    assert error.value.where.endswith(where)
    bad = BadRows(skip=True)
    assert len(read_folder(tmp_path, bad)) == 1
    assert list(bad.counts.values()) == [1]


@pytest.mark.parametrize(
    "row, what",
    [
        ({key: REVIEW_2023[key] for key in REVIEW_2023 if key != "user_id"}, "has no user_id"),
        ({**REVIEW_2023, "rating": 6.0}, "outside the scale"),
        ({**REVIEW_2023, "timestamp": None}, "no number"),
        (["no", "object"], "no JSON object"),
    ],
)
def test_a_bad_review_names_file_and_line_or_is_counted(tmp_path: Path, row: object, what: str) -> None:
    write_lines(tmp_path, "Games.jsonl", REVIEW_2023, row)
    with pytest.raises(DataError, match=what) as error:
        read(tmp_path)
    assert error.value.where.endswith("Games.jsonl:2")
    bad = BadRows(skip=True)
    assert len(read_folder(tmp_path, bad)) == 1
    assert len(bad.table()) == 1


def test_a_bad_row_inside_the_wheel_is_named(tmp_path: Path) -> None:
    wheel = fake_wheel(tmp_path, "1\t5\t3\t881250949\n1\t5\t9\t881250949\n")
    with pytest.raises(DataError, match="outside the scale") as error:
        recbole.read_recbole(wheel, BadRows())
    assert error.value.where.endswith(".inter:3")


def test_other_files_are_refused_by_name(tmp_path: Path) -> None:
    write(tmp_path, {"ratings.csv": ML20M, "films.csv": MOVIES})
    with pytest.raises(DataError, match=r"none of movies.csv, movie.csv, but: films.csv"):
        read(tmp_path)


def test_another_header_or_encoding_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="must begin with the header"):
        read(write(tmp_path, {"ratings.csv": "user,movie\n1,2\n", "movies.csv": MOVIES}))
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "A.jsonl").write_bytes(b'{"title": "\xe9"}\n')
    with pytest.raises(DataError, match="cannot be read as utf-8"):
        read(tmp_path / "x")


def test_an_empty_folder_and_one_of_two_categories_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds 0 files"):
        read(tmp_path)
    write_lines(tmp_path, "A.jsonl", REVIEW_2023)
    write_lines(tmp_path, "B.jsonl", REVIEW_2023)
    with pytest.raises(DataError, match="holds 2 files"):
        read(tmp_path)
