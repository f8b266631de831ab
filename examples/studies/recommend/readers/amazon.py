"""Amazon reviews of 2018 and 2023: JSON lines as published, and the split files of 2023."""

from __future__ import annotations

import ast
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from .lines import read_lines, read_table
from .rows import BadRows, DataError, Interaction, ItemFacts, Ratings, build_ratings
from .values import STARS, parse_rating, parse_time

SPLIT_HEADER = ["user_id", "parent_asin", "rating", "timestamp"]
VALID_FROM_MS, TEST_FROM_MS = 1628643414042, 1658002729837
"""First times of the validation and the test part of 2023's splits by time, the same for all categories."""
_TIMES_2023 = ("timestamp", "sort_timestamp", "sortTimestamp")
"""Names of the time: the last two are those of an early release and of the lab's own script."""

Parse = Callable[[dict[str, Any]], Interaction]


def read_amazon(folder: Path, bad: BadRows) -> Ratings:
    """Read the reviews (and the metadata, if there) of one category; the year is told by the fields. Raises DataError.

    Of repeated reviews of one item by one user the earliest is kept, as the 2023 splits do.
    """
    reviews = _single(folder, lambda name: ".jsonl" in name and not name.startswith("meta_") or _is_2018(name))
    meta = [file for file in sorted(folder.iterdir()) if file.name.startswith("meta_")]
    year, parse = _format_of(reviews)
    rows = keep_earliest(_parsed(reviews, parse, bad))
    facts = dict(_facts(meta[0], bad)) if meta else {}
    return build_ratings(f"Amazon {year} {reviews.name.partition('.')[0]}", rows, facts)


def read_amazon_split(file: Path, bad: BadRows) -> list[Interaction]:
    """Read one split file of 2023 (CATEGORY.csv, .train.csv, .valid.csv, .test.csv), with or without its header.

    A fifth column, the history, may be there and may be empty. Raises DataError.
    """
    rows = []
    for line, cells in read_table(file):
        if cells[:4] == SPLIT_HEADER:
            continue
        try:
            user, item, rating, time_ms = cells[:4]
            if not user or not item:
                raise ValueError("no user or no item")
            rows.append(Interaction(user, item, parse_rating(rating, STARS), parse_time(time_ms) // 1000))
        except ValueError as error:
            bad.report(file, line, _reason(error, len(cells)), ",".join(cells))
    return rows


def split_part(time_ms: int) -> str:
    """Return train, valid or test: the part of 2023's splits by time that a time belongs to."""
    return "test" if time_ms >= TEST_FROM_MS else "valid" if time_ms >= VALID_FROM_MS else "train"


def keep_earliest(rows: Iterable[Interaction]) -> list[Interaction]:
    """Return the earliest of the rows with the same user and item; of equal times the first in the file."""
    kept: dict[tuple[str, str], Interaction] = {}
    for row in rows:
        known = kept.get((row.user, row.item))
        if known is None or row.seconds < known.seconds:
            kept[row.user, row.item] = row
    return list(kept.values())


def keep_core(rows: list[Interaction], least: int) -> list[Interaction]:
    """Return the k-core: rows whose users and items all have at least `least` rows left."""
    while True:
        users, items = _counts(row.user for row in rows), _counts(row.item for row in rows)
        kept = [row for row in rows if users[row.user] >= least and items[row.item] >= least]
        if len(kept) == len(rows):
            return kept
        rows = kept


def _counts(names: Iterable[str]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for name in names:
        counts[name] = counts.get(name, 0) + 1
    return counts


def _is_2018(name: str) -> bool:
    return not name.startswith("meta_") and name.removesuffix(".gz").endswith(".json")


def _single(folder: Path, wanted: Callable[[str], bool]) -> Path:
    """Return the one file of reviews. Raises DataError if there is none, or several."""
    found = [file for file in sorted(folder.iterdir()) if file.is_file() and wanted(file.name)]
    if len(found) == 1:
        return found[0]
    what = f"holds {len(found)} files of reviews: {', '.join(file.name for file in found[:5]) or 'none'}"
    raise DataError(
        what, str(folder), "Put the reviews of one category (.jsonl, .json, .gz) into a folder of their own"
    )


def _format_of(file: Path) -> tuple[int, Parse]:
    """Return the year and the parser of a file of reviews, by the fields of its first line. Raises DataError."""
    line, text = next(read_lines(file), (1, ""))
    fields = _load(text)
    if fields is not None and "parent_asin" in fields:
        return 2023, _parse_2023
    if fields is not None and "reviewerID" in fields:
        return 2018, _parse_2018
    raise DataError("is no review of 2018 or 2023", f"{file}:{line}", "It needs reviewerID or parent_asin")


def _parsed(file: Path, parse: Parse, bad: BadRows) -> Iterator[Interaction]:
    for line, text in read_lines(file):
        try:
            if (fields := _load(text)) is None:
                raise ValueError("no JSON object")
            yield parse(fields)
        except KeyError as error:
            bad.report(file, line, f"has no {error.args[0]}", text)
        except (ValueError, TypeError) as error:
            bad.report(file, line, _reason(error, 4), text)


def _reason(error: Exception, cells: int) -> str:
    if cells < 4:
        return f"has {cells} fields, not 4"
    return str(error) if str(error).startswith(("rating", "no JSON", "no user")) else "no number"


def _load(text: str) -> dict[str, Any] | None:
    """Return the object of a line: JSON, or a Python dict as in the metadata of 2014. None if it is neither."""
    try:
        fields = json.loads(text)
    except RecursionError:
        return None
    except ValueError:
        try:
            fields = ast.literal_eval(text)
        except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
            return None
    return fields if isinstance(fields, dict) else None


def _parse_2023(fields: dict[str, Any]) -> Interaction:
    """Return a review of 2023: keyed by parent_asin, as the metadata is; its time is in milliseconds."""
    name = next((name for name in _TIMES_2023 if name in fields), _TIMES_2023[0])
    rating = parse_rating(fields["rating"], STARS)
    user, item = _names(fields["user_id"], fields["parent_asin"])
    return Interaction(user, item, rating, parse_time(fields[name]) // 1000)


def _parse_2018(fields: dict[str, Any]) -> Interaction:
    """Return a review of 2018: its time is in seconds, at whole days."""
    rating = parse_rating(fields["overall"], STARS)
    user, item = _names(fields["reviewerID"], fields["asin"])
    return Interaction(user, item, rating, parse_time(fields["unixReviewTime"]))


def _names(user: object, item: object) -> tuple[str, str]:
    if not (isinstance(user, str) and isinstance(item, str) and user and item):
        raise ValueError("no user or no item")
    return user, item


def _facts(file: Path, bad: BadRows) -> Iterator[tuple[str, ItemFacts]]:
    """Yield item and facts of a file of metadata; a price may be a number, text or null and is not read."""
    for line, text in read_lines(file):
        fields = _load(text)
        key = None if fields is None else fields.get("parent_asin") or fields.get("asin")
        if fields is None or not key:
            bad.report(file, line, "no JSON object" if fields is None else "has no asin", text)
            continue
        yield str(key), ItemFacts(_title(fields), _labels(fields))


def _title(fields: dict[str, Any]) -> str:
    """Return title and first description, as the paper's encoders read them."""
    description = fields.get("description") or ""
    first = next(iter(description), "") if isinstance(description, list) else description
    return f"{fields.get('title') or ''} {first}".strip()


def _labels(fields: dict[str, Any]) -> tuple[str, ...]:
    """Return the categories: a flat list, or in 2014 a list of lists."""
    categories = fields.get("categories") or fields.get("category") or []
    entries = categories if isinstance(categories, list) else [categories]
    flat = [name for entry in entries for name in (entry if isinstance(entry, list) else [entry])]
    return tuple(map(str, flat)) or ((str(fields["main_category"]),) if fields.get("main_category") else ())
